"""ClassNet: a backbone's pyramid compared with projected prototypes gives one similarity map per sub-class and level."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from protolib import encoders


def cosine_maps(features: Tensor, prototypes: Tensor) -> Tensor:
    """Cosine between every cell and every prototype of one level. Eq. (2) before its mean over k, notebook 03.

    features: (B, C_i, h, w) float; prototypes: (S, C_i) float. Returns (B, S, h, w) in [-1, 1].
    """
    return torch.einsum("bchw,sc->bshw", F.normalize(features, dim=1), F.normalize(prototypes, dim=1))


def merge_subclasses(maps: Tensor, K: int) -> Tensor:
    """Mean over the K sub-classes of each class: (B, S, ...) -> (B, C, ...). Eq. (2), notebook 03."""
    return maps.unflatten(1, (-1, K)).mean(2)  # (B, C, K, ...) -> (B, C, ...)


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

    def __init__(self, backbone: str, stride: int, levels: tuple[int, ...], C: int, prototypes: Tensor | None = None):
        super().__init__()
        self.net, self.info = encoders.backbone(backbone, stride)
        self.levels = levels
        self.K = 1 if prototypes is None else len(prototypes) // C
        widths = [self.net.feature_info.channels()[i] for i in levels]
        self.heads = nn.ModuleList(
            nn.Conv2d(w, C, 1) if prototypes is None else PrototypeHead(prototypes, w) for w in widths
        )
        self.bias = nn.Parameter(torch.zeros(len(levels), C))  # where "present" begins, per level and class

    def forward(self, images: Tensor) -> list[Tensor]:
        pyramid = self.net(images * 2 - 1)
        return [head(pyramid[i]) for i, head in zip(self.levels, self.heads)]

    def logits(self, maps: list[Tensor]) -> Tensor:
        """Image-level logits of each level: (L, B, C), the pooled maps GAP(M_i) plus a bias. Eq. (7), notebook 04."""
        return torch.stack([merge_subclasses(m, self.K).mean((2, 3)) for m in maps]) + self.bias[:, None]


def classification_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum over levels of the binary cross-entropy of pooled maps. Eq. (7, 8), notebook 04.

    logits: (L, B, C) float; labels: (B, C) float 0 or 1. Returns a scalar.
    """
    per_level = F.binary_cross_entropy_with_logits(logits, labels.expand_as(logits), reduction="none").mean((1, 2))  # (L,)
    return per_level.sum()
