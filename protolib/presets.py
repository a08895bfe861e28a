"""Every setting of a run on one screen: a preset is a frozen dataclass, a run is a preset plus data set and seed."""

from dataclasses import dataclass, replace


CHOICES = {
    "prototypes": ("nearest_mean", "centre"),
    "merge": ("mean", "softmax"),
    "span": ("stretch", "share"),
    "fill": ("black", "mean"),
}


@dataclass(frozen=True)
class Preset:
    """All settings of one run of the story; each notebook parameter of the same name overrides its field. Notebook 00."""

    name: str
    # data
    size: int  # px, side of the square patches that the networks see
    patches: tuple[int, int, int]  # phantom only: patches drawn for train, val, test
    # bank (notebook 02)
    encoder: str = "lite0"  # frozen image encoder, a name of encoders.ENCODERS
    K: int = 3  # sub-classes per class; paper, Sec. 4.1
    N: int = 8  # images per sub-class; the paper takes 100 of thousands, the phantom has about ten pure patches a cluster
    prototypes: str = "nearest_mean"  # mean of the N nearest (paper, Sec. 3.4) or k-means "centre" (released code)
    white_limit: float = 0.5  # drop a patch with more than this share of white pixels; not given in the paper
    # network and loss (notebooks 03, 04)
    backbone: str = "tf_efficientnet_lite0"  # any timm model with features_only
    stride: int = 16  # px per cell of the deepest map
    levels: tuple[int, ...] = (2, 3, 4)  # indices into the pyramid: strides 8, 16, 16
    cam_levels: tuple[int, ...] = (4,)  # the plain CAM baseline reads the deepest map alone, as is usual since Zhou 2016
    cam_fusion: tuple[float, ...] = (1.0,)  # give the baseline `levels` and `fusion` to see what the pyramid alone is worth
    merge: str = "softmax"  # sub-classes into a class: "mean" (paper, Eq. 2) or "softmax" (released code, at test)
    span: str = "share"  # how class logits become maps in [0, 1]: each "stretch"ed, or as a "share" of the present classes
    delta: float = 0.5  # foreground is at least this share of a map's maximum, Eq. (4); released code
    fill: str = "mean"  # what hides the rest of a foreground: "black" (paper, Eq. 5) or its own "mean" colour
    tau: float = 1.0  # temperature of the matching loss, Eq. (9-12); paper, Sec. 4.1
    alpha: float = 1.0  # weight of the classification loss, Eq. (6); paper, Sec. 4.1
    beta: float = 0.5  # weight of the matching loss, Eq. (6); paper, Sec. 4.1
    theta_fg: float = 1.0  # weight of the foreground term, Eq. (13); paper, Sec. 4.1
    theta_bg: float = 0.5  # weight of the background term, Eq. (13); paper, Sec. 4.1
    fusion: tuple[float, ...] = (0.3, 0.3, 0.4)  # weight of each level in the fused CAM; released code
    tta: bool = True  # average over views: stage 1 the patch and its mirror image, stage 2 all eight poses
    # optimisation
    epochs: int = 4
    batch: int = 16
    lr: float = 1e-3
    weight_decay: float = 3e-3  # paper, Sec. 4.1
    # stage 2 (notebook 05)
    stage2_epochs: int = 12
    stage2_lr: float = 2e-3
    stage2_stride: int = 16  # px per cell of the segmentation network's deepest map
    stage2_rates: tuple[int, ...] = (1, 2, 3, 4)  # dilation of the four branches; DeepLab-v2's 6, 12, 18, 24 suit 41 cells

    def __post_init__(self):
        """Refuse what no kernel knows before any work starts: raises ValueError naming field, value and choices."""
        for field, choices in CHOICES.items():
            if getattr(self, field) not in choices:
                raise ValueError(f"preset {self.name}: {field} = {getattr(self, field)!r}; choose {' or '.join(choices)}")
        if not 0 < self.delta < 1:
            raise ValueError(f"preset {self.name}: delta = {self.delta} is a share of a map's maximum; give 0 < delta < 1")
        for levels, weights in ((self.levels, self.fusion), (self.cam_levels, self.cam_fusion)):
            if len(levels) != len(weights):
                raise ValueError(f"preset {self.name}: {len(levels)} levels need as many fusion weights, not {len(weights)}")
        if self.K < 1 or self.N < 1 or self.tau <= 0:
            raise ValueError(f"preset {self.name}: K = {self.K}, N = {self.N}, tau = {self.tau}; all must be positive")


QUICK = Preset(name="quick", size=112, patches=(320, 64, 96))
PRESETS = {
    "quick": QUICK,
    # the same story at the smallest size at which every step still has something to do
    "smoke": replace(QUICK, name="smoke", size=64, patches=(96, 16, 24), N=4, epochs=1, stage2_epochs=1),
}


def preset(name: str) -> Preset:
    """The preset of that name; raises ValueError that lists the known ones. Notebook 00."""
    if name not in PRESETS:
        raise ValueError(f"preset '{name}' is not known; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]
