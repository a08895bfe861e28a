"""What the settings of a run mean; their values, each with its source, stand in presets.toml."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from math import isfinite
from pathlib import Path
from typing import Any, get_args, get_origin

CHOICES = {
    "order": ("rgb", "bgr"),
    "prototypes": ("nearest_mean", "random_mean", "centre", "learnable"),
    "kmeans_start": ("plusplus", "rows"),
    "normalise": ("none", "standardise", "wccn"),
    "refine": ("none", "gates"),
    "similarity": ("cosine", "half", "convolution"),
    "merge": ("mean", "softmax"),
    "merge_test": ("mean", "softmax"),
    "pool": ("maps", "logits"),
    "space": ("encoder", "projected"),
    "match_maps": ("fused", "last"),
    "look": ("masked_image", "masked_pooling", "positions"),
    "pairs": ("classes", "subclasses"),
    "span": ("stretch", "share", "raw"),
    "threshold": ("map", "image", "none"),
    "fill": ("black", "mean", "minmax"),
    "negatives": ("classes", "present", "all"),
    "pooling": ("pair", "batch"),
    "scores": ("logits", "unit"),
    "gating": ("closed", "zeroed"),
    "tta": ("none", "mirror", "six"),
    "pseudo_tta": ("none", "mirror", "six"),
    "precision": ("float32", "tf32", "bfloat16", "float16"),
    "image_labels": ("predicted", "oracle", "none"),
    "ignore": ("dropped", "counted"),
}

# what a number may be, ends included
RANGES = {
    "K": (1, 100),
    "N batch epochs stage2_epochs restarts": (1, 1e6),
    "size stage2_size": (16, 4096),
    "encoder_size chunk hidden enough diversity_after matching_after": (0, 1e6),
    "diffusion": (0, 63),
    "drawn_heterogeneity drawn_similarity drawn_pure drawn_together text_share": (0, 1),
    "drawn_never_pure": (-1, 11),
    "tau scale": (1e-6, 1e6),
    "lr stage2_lr": (0, 100),
    "white_limit warmup_ratio stain_jitter": (0, 1),
    "alpha beta theta_fg theta_bg penalty diversity": (0, 1e6),
    "shrinkage lr_power warmup weight_decay": (0, 1e6),
}


@dataclass(frozen=True)
class Preset:
    """All settings of one run; what each value of a choice does stands in the kernel that reads it.
    Notebook 00."""

    name: str
    # data
    size: int  # px, side of the square patches that the networks see
    patches: tuple[int, int, int]  # phantom only: patches drawn for train, val, test
    # phantom only: the dials of what is drawn, see data.phantom.Drawing
    drawn_heterogeneity: float
    drawn_similarity: float
    drawn_pure: float
    drawn_together: float
    drawn_never_pure: int
    order: str  # of the colour channels that stage 1 sees
    # mean and std of the channels in that order; empty: the backbone's own
    scaling: tuple[tuple[float, ...], ...]
    # bank (notebook 02)
    encoder: str  # frozen image encoder, a name of encoders.ENCODERS, timm:... or hf:...
    encoder_size: int  # px at which it reads a patch; 0: its own size, or the patch's
    cluster_encoder: str  # the one that the clustering looks through; empty: the same
    K: int  # sub-classes per class
    N: int  # images per sub-class
    # mean of the N nearest, of N at random, cluster centre, or parameters that are learned
    prototypes: str
    single_class: bool  # cluster patches of exactly one class, or every patch that shows the class
    white_limit: float  # drop a patch with more than this share of white pixels
    # the space of features and prototypes: the encoder's own, each channel to mean 0 and scale 1
    # over the training set, or within-class covariance normalised (bank.wccn_space)
    normalise: str
    shrinkage: float  # of that covariance, in mean variances
    # of text in each prototype, beside the images; 0: none. Text and images meet in the joint space
    # of a vision-language encoder and nowhere else: see bank.with_text
    text_share: float
    prompts: str  # what the text says: a table of nets/prompts.toml
    kmeans_start: str  # centres to begin with: k-means++ or random rows
    restarts: int  # of k-means, the best one is kept
    # network (notebooks 03, 04)
    backbone: str  # a name that backbones.backbone knows
    stride: int  # px per position of the deepest map
    levels: tuple[int, ...]  # indices into the pyramid
    level_weights: tuple[float, ...]  # of each level in the classification loss, Eq. (8)
    fusion: tuple[float, ...]  # of each level in the fused maps, Eq. (3)
    # levels of the plain CAM; give it `levels` and `fusion` to see what the pyramid is worth
    cam_levels: tuple[int, ...]
    cam_fusion: tuple[float, ...]
    refine: str  # what a level's features pass before they are compared: nothing, or SSHR's gates
    hidden: int  # width of the hidden layer that projects prototypes; 0: the level's own
    # Eq. (2): cosine, half of it, only the positions normalised, or a 1x1 convolution in its place
    similarity: str
    scale: float  # of the similarities when training begins
    scale_learned: bool
    bias: bool  # a learned threshold for "present", per level and class
    merge: str  # sub-classes into a class when training
    merge_test: str  # and when predicting
    pool: str  # the label's logits: of the merged maps, Eq. (7), or merged from the pooled maps
    # matching loss (notebook 03)
    look: str  # how a part of a patch is seen: masked image, masked pooling, or each position
    space: str  # where foreground and prototypes are compared
    match_maps: str  # the maps that cut foreground from background
    pairs: str  # of an image with each present class, or with its chosen sub-classes
    span: str  # how logits become maps
    threshold: str  # one per map, Eq. (4), one per image, or none: the maps weigh, nothing is cut
    delta: float  # foreground is at least this share of the maximum, Eq. (4)
    fill: str  # what hides the rest of a masked image, Eq. (5)
    negatives: str  # prototypes of the other classes, of those present, or all others
    pooling: str  # a loss for each pair, Eq. (9-12), or one ratio for the batch
    tau: float  # temperature, Eq. (9-12)
    alpha: float  # weight of the classification loss, Eq. (6)
    beta: float  # weight of the matching loss, Eq. (6)
    # pure patches of a class that a bank needs to teach at that weight, see losses.trust; 0: any
    enough: int
    matching_after: int  # steps before it sets in, where prototypes are learned
    theta_fg: float  # weight of the foreground term, Eq. (13)
    theta_bg: float  # weight of the background term, Eq. (13)
    penalty: float  # of the mean of the maps, added inside Eq. (13)
    # pictures whose activations are kept for the way back, others are encoded twice; 0: all
    chunk: int
    align_corners: bool  # of every enlargement of maps
    # learnable prototypes
    diversity: float  # weight of the diversity loss
    diversity_after: int  # steps before it sets in
    # prediction (notebooks 04, 06)
    scores: str  # class scores of a pixel: fused logits, or each map stretched to [0, 1] first
    gating: str  # what an absent class gets: it can never win, or score 0
    # positions a side over which a map's scores are spread by likeness of features; 0: none
    diffusion: int
    # views that stage 1 averages: the patch, also its mirror image, or both at three brightnesses
    tta: str
    pseudo_tta: str  # the same when pseudo masks are made
    image_labels: str  # protocol of the scores, metrics.Protocol
    ignore: str
    # optimisation of stage 1
    epochs: int
    batch: int
    # how far hematoxylin and eosin of a patch may stray, see training.restained; 0: as they are
    stain_jitter: float
    lr: float
    lr_power: float  # of the polynomial decay
    warmup: float  # epochs of linear warm-up
    warmup_ratio: float  # share of lr that it begins with
    weight_decay: float
    precision: str  # of the forward passes of both stages; the weights stay float32
    # stage 2 (notebook 05)
    stage2_backbone: str  # empty: the same
    stage2_epochs: int
    stage2_lr: float
    stage2_stride: int  # px per position of the segmentation network's deepest map
    stage2_rates: tuple[int, ...]  # dilation of the branches
    stage2_size: int  # px, side at which the segmentation network sees the patches
    stage2_tta: bool  # average over the eight poses of training

    def __post_init__(self):
        """Refuse what no kernel knows before any work starts: raises ValueError naming field, value
        and what it may be."""
        where = f"preset {self.name}:"
        for field in fields(self):
            value = getattr(self, field.name)
            if not _fits(value, field.type):
                raise ValueError(f"{where} {field.name} = {value!r}; give {_words(field.type)}")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{where} {name} = {getattr(self, name)!r}; choose {' or '.join(choices)}"
                )
        for names, (low, high) in RANGES.items():
            for name in names.split():
                if not low <= getattr(self, name) <= high:
                    raise ValueError(
                        f"{where} {name} = {getattr(self, name)}; give {low:g} to {high:g}"
                    )
        if not 0 < self.delta < 1:
            raise ValueError(
                f"{where} delta = {self.delta} is a share of a map's maximum; give 0 < delta < 1"
            )
        asked = (
            (self.levels, self.fusion),
            (self.levels, self.level_weights),
            (self.cam_levels, self.cam_fusion),
        )
        for levels, weights in asked:
            if len(levels) != len(weights):
                raise ValueError(
                    f"{where} {len(levels)} levels need as many weights, not {len(weights)}"
                )
        self._refuse_pairs_without_sense(where)

    def _refuse_pairs_without_sense(self, where: str) -> None:
        """Choices that are right alone and mean nothing together."""
        if self.pairs == "subclasses" and self.K == 1:
            raise ValueError(
                f"{where} with K = 1 no sub-class is above the mean of its class, so pairs = "
                "'subclasses' selects nothing (the released code crashes there); raise K or "
                "choose pairs = 'classes'"
            )
        if self.pairs == "subclasses" and self.similarity == "convolution":
            raise ValueError(f"{where} a convolution has no sub-classes; choose pairs = 'classes'")
        if self.pairs == "subclasses" and self.look == "positions":
            raise ValueError(f"{where} positions learn classes; choose pairs = 'classes'")
        if self.look == "masked_pooling" and self.span == "raw":
            raise ValueError(
                f"{where} raw logits cannot weigh features, for they may be negative; choose "
                "span = 'share' or 'stretch'"
            )
        if self.diffusion and self.diffusion % 2 == 0:
            raise ValueError(
                f"{where} diffusion = {self.diffusion} has no middle; give an odd number, or 0"
            )
        if self.text_share:
            self._refuse_text_elsewhere(where)

    def _refuse_text_elsewhere(self, where: str) -> None:
        """Text means something in the joint space of the encoder that read it, and nowhere else."""
        images = tuple(way for way in CHOICES["prototypes"] if way != "learnable")
        wanted: dict[str, tuple[str, ...]] = {"normalise": ("none",), "look": ("masked_image",)}
        wanted["prototypes"] = images
        for name, allowed in wanted.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{where} text_share = {self.text_share} blends text and images in the joint "
                    f"space of whole patches, {name} = {getattr(self, name)!r} leaves it; choose "
                    f"{' or '.join(map(repr, allowed))}, or text_share = 0"
                )


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a field's type; a whole number is a number, true is neither."""
    if get_origin(kind) is tuple:
        inner = get_args(kind)
        if not isinstance(value, tuple):
            return False
        if inner[-1] is Ellipsis:
            return all(_fits(item, inner[0]) for item in value)
        return len(value) == len(inner) and all(map(_fits, value, inner))
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _words(kind: Any) -> str:
    """A type as a reader calls it."""
    words = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a text"}
    return words.get(kind, f"a list, as {kind}".replace("tuple", "list"))


def changed(p: Preset, settings: Mapping) -> Preset:
    """A preset with other values for some of its fields, checked; lists become tuples.

    Raises ValueError for a field that a preset does not have, with the ones that it has.
    """
    if unknown := settings.keys() - {f.name for f in fields(Preset)} | settings.keys() & {"name"}:
        known = ", ".join(f.name for f in fields(Preset) if f.name != "name")
        raise ValueError(
            f"a preset has no field {', '.join(sorted(unknown))} to change; it has {known}"
        )
    return replace(p, **{field: frozen(value) for field, value in settings.items()})


def frozen(value: Any) -> Any:
    """A value of a TOML file as a preset holds it: lists become tuples."""
    return tuple(map(frozen, value)) if isinstance(value, list) else value


def _read(tables: dict[str, dict]) -> dict[str, tuple[Preset, dict[str, str]]]:
    """Each preset and the source of each of its fields; raises ValueError for a field without a
    value and a source."""
    made, merged, wanted = {}, {}, {f.name for f in fields(Preset)} - {"name"}
    for name, table in tables.items():
        own = {field: entry for field, entry in table.items() if field != "like"}
        merged[name] = merged.get(table.get("like"), {}) | own
        entries = merged[name]
        unsourced = [field for field, entry in entries.items() if not _sourced(entry)]
        if wanted != set(entries) or unsourced:
            raise ValueError(
                f"preset {name}: without value {sorted(wanted - set(entries))}, unknown "
                f"{sorted(set(entries) - wanted)}, without source {unsourced}; give every field "
                "as [value, source]"
            )
        values = {field: frozen(value) for field, (value, _) in entries.items()}
        sources = {field: source for field, (_, source) in entries.items()}
        made[name] = Preset(name=name, **values), sources
    return made


def _sourced(entry: Any) -> bool:
    """Whether an entry is [value, source]."""
    pair = isinstance(entry, list) and len(entry) == 2
    return pair and isinstance(entry[1], str) and bool(entry[1])


TABLES = tomllib.loads(Path(__file__).with_name("presets.toml").read_text("utf-8"))
_MADE = _read(TABLES)
PRESETS: dict[str, Preset] = {name: made for name, (made, _) in _MADE.items()}
SOURCES: dict[str, dict[str, str]] = {name: sources for name, (_, sources) in _MADE.items()}


def preset(name: str, encoder: str = "", backbone: str = "", K: int = 0) -> Preset:
    """The preset of that name, with another encoder, backbone or K where one is given. Notebook 00.

    Raises ValueError that lists the known presets.
    """
    if not isinstance(name, str) or name not in PRESETS:
        raise ValueError(f"preset '{name}' is not known; choose one of {', '.join(PRESETS)}")
    given = {"encoder": encoder, "backbone": backbone, "K": K}
    return changed(PRESETS[name], {field: value for field, value in given.items() if value})


# the fields that say what is matched, how, and in which space
MATCHING = (
    *("encoder_size", "normalise", "shrinkage"),
    *("look", "space", "match_maps", "pairs", "span", "threshold", "delta", "fill", "negatives"),
    *("pooling", "tau", "alpha", "beta", "enough", "theta_fg", "theta_bg", "penalty", "chunk"),
)


def with_masked_images(p: Preset) -> Preset:
    """The preset with the paper's matching loss, on masked images, as preset masked_image has it:
    the loss to compare with. Notebook 04."""
    paper = PRESETS["masked_image"]
    return replace(p, **{field: getattr(paper, field) for field in MATCHING})
