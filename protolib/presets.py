"""Every setting of a run with its source: a preset is a frozen dataclass, a run is a preset plus data set and seed."""

from dataclasses import dataclass, fields, replace

CHOICES = {
    "order": ("rgb", "bgr"),
    "prototypes": ("nearest_mean", "centre", "learnable"),
    "kmeans_start": ("plusplus", "rows"),
    "similarity": ("cosine", "half"),
    "merge": ("mean", "softmax"),
    "merge_test": ("mean", "softmax"),
    "pool": ("maps", "logits"),
    "space": ("encoder", "projected"),
    "match_maps": ("fused", "last"),
    "pairs": ("classes", "subclasses"),
    "span": ("stretch", "share", "raw"),
    "threshold": ("map", "image"),
    "fill": ("black", "mean", "minmax"),
    "negatives": ("classes", "all"),
    "pooling": ("pair", "batch"),
    "scores": ("logits", "unit"),
    "gating": ("closed", "zeroed"),
    "tta": ("none", "mirror", "six"),
    "pseudo_tta": ("none", "mirror", "six"),
    "image_labels": ("predicted", "oracle", "none"),
    "ignore": ("dropped", "counted"),
}


@dataclass(frozen=True)
class Preset:
    """All settings of one run; what each value of a choice does stands in the kernel that reads it. Notebook 00."""

    name: str
    # data
    size: int  # px, side of the square patches that the networks see
    patches: tuple[int, int, int]  # phantom only: patches drawn for train, val, test
    order: str  # of the colour channels that the networks see
    # bank (notebook 02)
    encoder: str  # frozen image encoder, a name of encoders.ENCODERS
    cluster_encoder: str  # the one that the clustering looks through; empty: the same
    K: int  # sub-classes per class
    N: int  # images per sub-class
    prototypes: str  # mean of the N nearest, cluster centre, or parameters that are learned
    single_class: bool  # cluster patches of exactly one class, or every patch that shows the class
    white_limit: float  # drop a patch with more than this share of white pixels
    standardise: bool  # bring each feature to mean 0 and scale 1 over the training set first
    kmeans_start: str  # centres to begin with: k-means++ or random rows
    restarts: int  # of k-means, the best one is kept
    # network (notebooks 03, 04)
    backbone: str  # a name that backbones.backbone knows
    stride: int  # px per cell of the deepest map
    levels: tuple[int, ...]  # indices into the pyramid
    level_weights: tuple[float, ...]  # of each level in the classification loss, Eq. (8)
    fusion: tuple[float, ...]  # of each level in the fused maps, Eq. (3)
    cam_levels: tuple[int, ...]  # levels of the plain CAM; give it `levels` and `fusion` to see what the pyramid is worth
    cam_fusion: tuple[float, ...]
    hidden: int  # width of the hidden layer that projects prototypes; 0: the level's own
    similarity: str  # Eq. (2): cosine, or half of it, only the cells normalised
    scale: float  # of the similarities when training begins
    scale_learned: bool
    bias: bool  # a learned threshold for "present", per level and class
    merge: str  # sub-classes into a class when training
    merge_test: str  # and when predicting
    pool: str  # the label's logits: of the merged maps, Eq. (7), or merged from the pooled maps
    # matching loss (notebook 03)
    space: str  # where foreground and prototypes are compared
    match_maps: str  # the maps that cut foreground from background
    pairs: str  # of an image with each present class, or with its chosen sub-classes
    span: str  # how logits become maps
    threshold: str  # one per map, Eq. (4), or one per image
    delta: float  # foreground is at least this share of the maximum, Eq. (4)
    fill: str  # what hides the rest, Eq. (5)
    negatives: str  # prototypes of the other classes, or all others, siblings too
    pooling: str  # a loss for each pair, Eq. (9-12), or one ratio for the batch
    tau: float  # temperature, Eq. (9-12)
    alpha: float  # weight of the classification loss, Eq. (6)
    beta: float  # weight of the matching loss, Eq. (6)
    theta_fg: float  # weight of the foreground term, Eq. (13)
    theta_bg: float  # weight of the background term, Eq. (13)
    penalty: float  # of the mean of the maps, added inside Eq. (13)
    chunk: int  # pictures whose activations are kept for the way back, others are encoded twice; 0: all
    align_corners: bool  # of every enlargement of maps
    # learnable prototypes
    diversity: float  # weight of the diversity loss
    diversity_after: int  # steps before it sets in
    # prediction (notebooks 04, 06)
    scores: str  # class scores of a pixel: fused logits, or each map stretched to [0, 1] first
    gating: str  # what an absent class gets: it can never win, or score 0
    tta: str  # views that stage 1 averages: the patch, also its mirror image, or both at three brightnesses
    pseudo_tta: str  # the same when pseudo masks are made
    image_labels: str  # protocol of the scores, metrics.Protocol
    ignore: str
    # optimisation of stage 1
    epochs: int
    batch: int
    lr: float
    lr_power: float  # of the polynomial decay
    warmup: float  # epochs of linear warm-up
    warmup_ratio: float  # share of lr that it begins with
    weight_decay: float
    # stage 2 (notebook 05)
    stage2_backbone: str  # empty: the same
    stage2_epochs: int
    stage2_lr: float
    stage2_stride: int  # px per cell of the segmentation network's deepest map
    stage2_rates: tuple[int, ...]  # dilation of the branches
    stage2_size: int  # px, side at which the segmentation network sees the patches
    stage2_tta: bool  # average over the eight poses of training

    def __post_init__(self):
        """Refuse what no kernel knows before any work starts: raises ValueError naming field, value and choices."""
        for field, choices in CHOICES.items():
            if getattr(self, field) not in choices:
                raise ValueError(f"preset {self.name}: {field} = {getattr(self, field)!r}; choose {' or '.join(choices)}")
        if not 0 < self.delta < 1:
            raise ValueError(f"preset {self.name}: delta = {self.delta} is a share of a map's maximum; give 0 < delta < 1")
        asked = (self.levels, self.fusion), (self.levels, self.level_weights), (self.cam_levels, self.cam_fusion)
        for levels, weights in asked:
            if len(levels) != len(weights):
                raise ValueError(f"preset {self.name}: {len(levels)} levels need as many weights, not {len(weights)}")
        if self.K < 1 or self.N < 1 or self.tau <= 0:
            raise ValueError(f"preset {self.name}: K = {self.K}, N = {self.N}, tau = {self.tau}; all must be positive")
        if self.pairs == "subclasses" and self.K == 1:
            raise ValueError(
                f"preset {self.name}: with K = 1 no sub-class is above the mean of its class, so pairs = 'subclasses' selects "
                "nothing (the released code crashes there); raise K or choose pairs = 'classes'"
            )
        if self.prototypes == "learnable" and self.beta:
            raise ValueError(
                f"preset {self.name}: learnable prototypes have no images to match; set beta = 0 and use the diversity loss"
            )


# A table says for each field (value, source); a preset is one table laid over others.
QUICK = {
    "size": (112, "ours: seven cells of the deepest map; the story ends within ten minutes on two cores"),
    "patches": ((320, 64, 96), "ours: as size"),
    "order": ("rgb", "ours: what the embedded weights were trained on"),
    "encoder": ("lite0", "ours: the weights that come with pip"),
    "cluster_encoder": ("", "ours: one space for clusters and prototypes"),
    "K": (3, "paper, Sec. 4.1"),
    "N": (8, "ours: the paper takes 100 of thousands, the phantom has about ten pure patches a cluster"),
    "prototypes": ("nearest_mean", "paper, Sec. 3.4"),
    "single_class": (True, "paper, Sec. 3.2"),
    "white_limit": (0.5, "ours: the paper filters and gives no limit"),
    "standardise": (True, "ours: lite0's channels differ a hundredfold in scale"),
    "kmeans_start": ("plusplus", "ours: Arthur and Vassilvitskii, SODA 2007"),
    "restarts": (20, "ours: notebook 02 shows the spread of single starts"),
    "backbone": ("tf_efficientnet_lite0", "ours: the weights that come with pip"),
    "stride": (16, "released code, config.yaml: strides 4,2,2,1"),
    "levels": ((2, 3, 4), "ours: strides 8, 16, 16"),
    "level_weights": ((1.0, 1.0, 1.0), "paper, Eq. (8)"),
    "fusion": ((0.3, 0.3, 0.4), "released code, utils/validate.py"),
    "cam_levels": ((4,), "Zhou et al., CVPR 2016: the deepest map alone"),
    "cam_fusion": ((1.0,), "as cam_levels"),
    "hidden": (0, "ours: no width to choose"),
    "similarity": ("cosine", "paper, Eq. (2)"),
    "scale": (10.0, "ours: a bare cosine keeps the sigmoid of Eq. (7) between .27 and .73"),
    "scale_learned": (True, "released code, model/model.py"),
    "bias": (True, "ours: cosines have no zero that means absent"),
    "merge": ("softmax", "ours: one strong sub-type stands for its class; the released code at test"),
    "merge_test": ("softmax", "released code, config.yaml: merge_test"),
    "pool": ("maps", "paper, Eq. (7)"),
    "space": ("encoder", "released code, train_stage_1.py"),
    "match_maps": ("fused", "paper, Eq. (3-5)"),
    "pairs": ("classes", "paper, Eq. (9-12)"),
    "span": ("share", "ours: a patch of one class is all foreground; stretching finds a background in it"),
    "threshold": ("map", "paper, Eq. (4)"),
    "delta": (0.5, "released code, config.yaml: mask_adapter_alpha"),
    "fill": ("mean", "ours: a black hole looks like no tissue to the encoder"),
    "negatives": ("classes", "paper, Eq. (9-12)"),
    "pooling": ("pair", "paper, Eq. (9-12)"),
    "tau": (1.0, "paper, Sec. 4.1"),
    "alpha": (1.0, "paper, Sec. 4.1"),
    "beta": (0.5, "paper, Sec. 4.1"),
    "theta_fg": (1.0, "paper, Sec. 4.1"),
    "theta_bg": (0.5, "paper, Sec. 4.1"),
    "penalty": (0.0, "paper, Eq. (13)"),
    "chunk": (0, "ours: memory is no matter at this size"),
    "align_corners": (False, "ours: a map's cells stay where they are"),
    "diversity": (0.0, "paper: none"),
    "diversity_after": (0, "paper: none"),
    "scores": ("logits", "paper, Sec. 3.3"),
    "gating": ("closed", "ours: an absent class never wins"),
    "tta": ("mirror", "ours: half of the released code's views"),
    "pseudo_tta": ("mirror", "ours: as tta"),
    "image_labels": ("predicted", "MLPS, TPRO, SSHR and C2RM-Seg; the paper does not say"),
    "ignore": ("dropped", "MLPS, SSHR and C2RM-Seg; the paper does not say"),
    "epochs": (4, "ours: as size"),
    "batch": (16, "ours: as size"),
    "lr": (1e-3, "ours: a small network and few steps"),
    "lr_power": (1.0, "released code, config.yaml: power"),
    "warmup": (0.0, "released code, config.yaml: warmup_iter"),
    "warmup_ratio": (0.0, "ours: plays no part without warm-up"),
    "weight_decay": (3e-3, "paper, Sec. 4.1"),
    "stage2_backbone": ("", "ours: the weights that come with pip"),
    "stage2_epochs": (12, "ours: as size"),
    "stage2_lr": (2e-3, "ours: a third to a half of it scored lower on val"),
    "stage2_stride": (16, "ours: stride 8 begins badly, its dilated depthwise layers never saw such input"),
    "stage2_rates": ((1, 2, 3, 4), "ours: DeepLab-v2's 6, 12, 18, 24 suit 41 cells"),
    "stage2_size": (160, "ours: ten cells instead of seven; .70 instead of .68 mIoU on 256 val patches of phantom seed 0"),
    "stage2_tta": (True, "ours: tissue has no up or down"),
}  # fmt: skip
SMOKE = {
    "size": (64, "ours: the smallest size at which every step still has something to do"),
    "patches": ((96, 16, 24), "ours: as size"),
    "N": (4, "ours: as size"),
    "epochs": (1, "ours: as size"),
    "stage2_epochs": (1, "ours: as size"),
    "stage2_size": (96, "ours: as size"),
}
# What the paper says; where it says nothing the released code's value, and where that says nothing ours.
PAPER_TEXT = {
    "size": (224, "paper, Sec. 4.1"),
    "patches": ((400, 100, 100), "ours: phantom only"),
    "encoder": ("medclip", "paper, Sec. 3.4"),
    "cluster_encoder": ("clip", "paper, Eq. (1)"),
    "N": (100, "paper, Sec. 4.1"),
    "standardise": (False, "paper, Eq. (1): cosines of the features themselves"),
    "backbone": ("mit_b1", "paper, Sec. 4.1 says SegFormer MiT; B1 is the released code's, config.yaml"),
    "stride": (32, "paper, Sec. 3.3: strides 4, 8, 16, then 32"),
    "levels": ((0, 1, 2), "paper, Sec. 3.3"),
    "fusion": ((1.0, 1.0, 1.0), "paper, Eq. (3)"),
    "cam_levels": ((3,), "Zhou et al., CVPR 2016"),
    "hidden": (256, "the paper's MLP has no width; 256 is the released code's"),
    "scale": (1.0, "paper, Eq. (2): none"),
    "scale_learned": (False, "paper, Eq. (2): none"),
    "bias": (False, "paper, Eq. (7): none"),
    "merge": ("mean", "paper, Eq. (2)"),
    "merge_test": ("mean", "paper, Eq. (2)"),
    "space": ("projected", "paper, Eq. (5): the same MLP; of which level is not said, here the deepest"),
    "span": ("stretch", "Eq. (5) needs maps in [0, 1]; the paper does not say how a sum of cosines gets there"),
    "delta": (0.15, "paper, Sec. 4.1"),
    "fill": ("black", "paper, Eq. (5)"),
    "tta": ("none", "paper: not in the main text"),
    "pseudo_tta": ("none", "paper: not in the main text"),
    "epochs": (10, "paper, Sec. 4.1"),
    "batch": (10, "paper, Sec. 4.1"),
    "lr": (1e-5, "paper, Sec. 4.1"),
    "stage2_backbone": ("resnet101", "Chen et al., TPAMI 2018: the paper says unmodified DeepLab-v2, no more"),
    "stage2_epochs": (10, "ours: the paper gives no setting of stage 2"),
    "stage2_lr": (2.5e-4, "ours: Chen et al., TPAMI 2018, begin with it, under SGD"),
    "stage2_stride": (8, "Chen et al., TPAMI 2018"),
    "stage2_rates": ((6, 12, 18, 24), "Chen et al., TPAMI 2018"),
    "stage2_size": (224, "paper, Sec. 4.1: as size"),
    "stage2_tta": (False, "paper: not in the main text"),
}  # fmt: skip
# What the released code does (commit 6d40540), laid over PAPER_TEXT: its stage 2, which the release lacks.
RELEASED_CODE = {
    "size": (224, "config.yaml: input_size"),
    "order": ("bgr", "read with OpenCV and never swapped"),
    "encoder": ("medclip_released", "train_stage_1.py: MedCLIP without weights is Swin-T and a random projection"),
    "cluster_encoder": ("", "the same"),
    "N": (100, "not implemented: centres take its place"),
    "prototypes": ("centre", "bcss_label_fea_pro_3333"),
    "single_class": (False, "no filter; that a patch counts for each of its classes is our reading"),
    "white_limit": (1.0, "no filter"),
    "kmeans_start": ("rows", "np.random.choice after seed 42"),
    "restarts": (1, "none"),
    "stride": (16, "config.yaml: strides 4,2,2,1"),
    "levels": ((0, 1, 2, 3), "model/model.py"),
    "level_weights": ((0.0, 0.1, 1.0, 1.0), "config.yaml: l1 to l4"),
    "fusion": ((0.0, 0.3, 0.3, 0.4), "utils/validate.py"),
    "hidden": (256, "model/model.py: from its parameter count"),
    "similarity": ("half", "model/model.py: projected prototypes are not normalised"),
    "scale": (1 / 0.07, "model/model.py"),
    "scale_learned": (True, "model/model.py"),
    "merge": ("mean", "config.yaml: merge_train"),
    "merge_test": ("softmax", "config.yaml: merge_test"),
    "pool": ("logits", "utils/hierarchical_utils.py"),
    "space": ("encoder", "train_stage_1.py"),
    "match_maps": ("last", "train_stage_1.py: cam4; the other maps are detached"),
    "pairs": ("subclasses", "train_stage_1.py: above the mean of their class"),
    "span": ("raw", "utils/fgbg_feature.py"),
    "threshold": ("image", "utils/fgbg_feature.py"),
    "delta": (0.5, "config.yaml: mask_adapter_alpha"),
    "fill": ("minmax", "utils/fgbg_feature.py"),
    "negatives": ("all", "utils/hierarchical_utils.py"),
    "pooling": ("batch", "utils/contrast_loss.py"),
    "tau": (0.07, "train_stage_1.py"),
    "beta": (0.1, "config.yaml: l5"),
    "theta_bg": (1.0, "train_stage_1.py"),
    "penalty": (0.0005, "train_stage_1.py"),
    "align_corners": (True, "utils/fgbg_feature.py, utils/validate.py"),
    "scores": ("unit", "utils/validate.py"),
    "gating": ("zeroed", "utils/validate.py"),
    "tta": ("six", "utils/validate.py"),
    "pseudo_tta": ("none", "utils/validate.py"),
    "image_labels": ("oracle", "utils/validate.py: read off the true mask"),
    "ignore": ("counted", "utils/evaluate.py"),
    "epochs": (8, "config.yaml"),
    "batch": (10, "config.yaml"),
    "lr": (5e-5, "config.yaml"),
    "warmup_ratio": (1e-6, "config.yaml"),
    "weight_decay": (1e-3, "config.yaml"),
}  # fmt: skip


def _preset(name: str, *tables: dict) -> tuple[Preset, dict[str, str]]:
    """Lay the tables over each other; raises ValueError for a field without a value and a source, or one of no such name."""
    merged = {field: entry for table in tables for field, entry in table.items()}
    wanted = {f.name for f in fields(Preset)} - {"name"}
    bare = [f for f, entry in merged.items() if not (isinstance(entry, tuple) and len(entry) == 2 and entry[1])]
    if wanted != set(merged) or bare:
        raise ValueError(
            f"preset {name}: without value {sorted(wanted - set(merged))}, unknown {sorted(set(merged) - wanted)}, "
            f"without source {bare}; give every field (value, source)"
        )
    return Preset(name=name, **{f: value for f, (value, _) in merged.items()}), {f: s for f, (_, s) in merged.items()}


_MADE = {
    "quick": _preset("quick", QUICK),
    "smoke": _preset("smoke", QUICK, SMOKE),
    "paper_text": _preset("paper_text", QUICK, PAPER_TEXT),
    "released_code": _preset("released_code", QUICK, PAPER_TEXT, RELEASED_CODE),
}
PRESETS: dict[str, Preset] = {name: made for name, (made, _) in _MADE.items()}
SOURCES: dict[str, dict[str, str]] = {name: sources for name, (_, sources) in _MADE.items()}


def preset(name: str) -> Preset:
    """The preset of that name; raises ValueError that lists the known ones. Notebook 00."""
    if name not in PRESETS:
        raise ValueError(f"preset '{name}' is not known; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]
