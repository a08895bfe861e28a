"""ClassNet: a backbone's pyramid compared with projected prototypes gives one similarity map per sub-class and level."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from protolib import backbones


def cosine_maps(features: Tensor, prototypes: Tensor) -> Tensor:
    """Cosine between every cell and every prototype of one level. Eq. (2) before its mean over k, notebook 03.

    features: (B, C_i, h, w) float; prototypes: (S, C_i) float. Returns (B, S, h, w) in [-1, 1].
    """
    return torch.einsum("bchw,sc->bshw", F.normalize(features, dim=1), F.normalize(prototypes, dim=1))


def merge_subclasses(maps: Tensor, K: int, how: str) -> Tensor:
    """One map or logit per class from its K sub-classes: (B, S, ...) -> (B, C, ...). Notebook 03.

    how: "mean", Eq. (2); or "softmax", their mean weighted by their own softmax, which lets one strong sub-type stand for its
    class where a mean lets two absent ones vote it down (the released code merges so at test, and calls it "max").
    """
    groups = maps.unflatten(1, (-1, K))  # (B, C, K, ...)
    return groups.mean(2) if how == "mean" else (groups.softmax(2) * groups).sum(2)


class PrototypeHead(nn.Module):
    """Maps of one level: project the prototypes to the level's width, compare them with every cell. Eq. (2), notebook 03.

    prototypes: (S, D) unit rows, fixed. features (B, C_i, h, w) -> (B, S, h, w) logits, the cosines times a learned scale
    (the released code has the scale, the paper does not: a cosine alone keeps the sigmoid of Eq. (7) between .27 and .73).
    """

    def __init__(self, prototypes: Tensor, channels: int):
        super().__init__()
        self.register_buffer("prototypes", prototypes)
        self.project = nn.Sequential(nn.Linear(prototypes.shape[1], channels), nn.ReLU(), nn.Linear(channels, channels))
        self.log_scale = nn.Parameter(torch.tensor(10.0).log())

    def forward(self, features: Tensor) -> Tensor:
        return self.log_scale.exp() * cosine_maps(features, self.project(self.prototypes))


class ClassNet(nn.Module):
    """Similarity maps of an image at L levels. Sec. 3.3, notebook 04.

    images (B, 3, H, W) float in [0, 1] -> list of L logit maps (B, S, h_i, w_i), finest first. With prototypes None each
    level has a 1x1 convolution instead, K is 1 and S is C: the plain CAM classifier, the baseline of Table 5.
    """

    def __init__(
        self, backbone: str, stride: int, levels: tuple[int, ...], fusion: tuple[float, ...], C: int,
        prototypes: Tensor | None = None, merge: str = "mean",
    ):  # fmt: skip
        super().__init__()
        self.net = backbones.backbone(backbone, stride)
        self.info = self.net.info
        self.levels, self.fusion, self.merge = levels, fusion, merge
        self.K = 1 if prototypes is None else len(prototypes) // C
        widths = [self.net.channels[i] for i in levels]
        self.heads = nn.ModuleList(
            nn.Conv2d(w, C, 1) if prototypes is None else PrototypeHead(prototypes, w) for w in widths
        )
        self.bias = nn.Parameter(torch.zeros(len(levels), C))  # where "present" begins, per level and class

    def forward(self, images: Tensor) -> list[Tensor]:
        pyramid = self.net(images)
        return [head(pyramid[i]) for i, head in zip(self.levels, self.heads)]

    def class_maps(self, maps: list[Tensor]) -> list[Tensor]:
        """Sub-classes merged at every level: L maps (B, S, h_i, w_i) -> L maps (B, C, h_i, w_i). Eq. (2), notebook 04."""
        return [merge_subclasses(m, self.K, self.merge) for m in maps]

    def logits(self, class_maps: list[Tensor]) -> Tensor:
        """Image-level logits of each level: (L, B, C), the pooled maps GAP(M_i) plus a bias. Eq. (7), notebook 04."""
        return torch.stack([m.mean((2, 3)) for m in class_maps]) + self.bias[:, None]


def classification_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum over levels of the binary cross-entropy of pooled maps. Eq. (7, 8), notebook 04.

    logits: (L, B, C) float; labels: (B, C) float 0 or 1. Returns a scalar.
    """
    per_level = F.binary_cross_entropy_with_logits(logits, labels.expand_as(logits), reduction="none").mean((1, 2))  # (L,)
    return per_level.sum()
