"""The exercises of the notebooks: `check_NAME(mine)` judges a learner's function, see judge.

patches: notebooks 00 and 01; prototypes: 02; loss: 03; network: 04 and 05; score: 06 and 07;
slides: 08.
"""

from protolib.teach.exercises.judge import Exercise
from protolib.teach.exercises.loss import (
    check_adaptive_threshold,
    check_auc,
    check_foreground_loss,
    check_masked_pooling,
    check_mean_fill,
)
from protolib.teach.exercises.network import (
    check_atrous_sum,
    check_closed_masks,
    check_cosine_maps,
    check_fuse_levels,
    check_merge_subclasses,
    check_pixel_loss,
    check_present_classes,
)
from protolib.teach.exercises.patches import (
    check_accuracy,
    check_image_label,
    check_parse_label,
    check_single_class,
    check_white_share,
)
from protolib.teach.exercises.prototypes import (
    check_cosine_distance,
    check_lloyd_step,
    check_nearest_mean,
)
from protolib.teach.exercises.score import (
    check_background_channel,
    check_confusion,
    check_iou_from_confusion,
    check_paired_interval,
)
from protolib.teach.exercises.slides import check_blend, check_polygon_area

__all__ = [
    "check_accuracy",
    "check_adaptive_threshold",
    "check_atrous_sum",
    "check_auc",
    "check_background_channel",
    "check_blend",
    "check_closed_masks",
    "check_confusion",
    "check_cosine_distance",
    "check_cosine_maps",
    "check_foreground_loss",
    "check_fuse_levels",
    "check_image_label",
    "check_iou_from_confusion",
    "check_lloyd_step",
    "check_masked_pooling",
    "check_mean_fill",
    "check_merge_subclasses",
    "check_nearest_mean",
    "check_paired_interval",
    "check_parse_label",
    "check_pixel_loss",
    "check_polygon_area",
    "check_present_classes",
    "check_single_class",
    "check_white_share",
]
# by name, "image_label" for check_image_label: what an edition or a grader looks up
ALL: dict[str, Exercise] = {name.removeprefix("check_"): globals()[name] for name in __all__}
