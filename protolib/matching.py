"""The contrastive matching loss: what a map keeps should look like its class's prototypes, what it leaves like the others'."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def unit_range(maps: Tensor) -> Tensor:
    """Each map (..., h, w) stretched to [0, 1] by its own minimum and maximum; a constant map becomes 0. Notebook 03."""
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    return (maps - low) / (high - low).clamp_min(1e-6)


def pool_foreground(maps: Tensor, delta: float) -> Tensor:
    """Binary foreground of each map: at least `delta` of its own maximum. Eq. (4), notebook 03.

    maps: (..., h, w) float similarity; delta: in (0, 1). Returns bool of the same shape.
    Raises ValueError if delta is outside (0, 1).
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta = {delta}: the adaptive threshold is a share of the map's maximum, give 0 < delta < 1")
    return maps >= delta * maps.amax((-2, -1), keepdim=True)


def present_share(maps: Tensor, labels: Tensor) -> Tensor:
    """Each present class's share of every cell: the softmax over the classes of the image label. Notebook 03.

    maps: (B, C, h, w) float logits; labels: (B, C) 0 or 1. Returns (B, C, h, w) in [0, 1], 0 for absent classes. A patch of
    one class is all foreground, where stretching its map to [0, 1] would call its weakest part background.
    """
    absent = (labels == 0)[:, :, None, None]
    return maps.masked_fill(absent, -torch.inf).softmax(1).masked_fill(absent, 0)  # an image of no class: NaN becomes 0


def weights(maps: Tensor, delta: float) -> tuple[Tensor, Tensor]:
    """How much of each pixel is foreground, b*M, and background, (1-b)*(1-M): two tensors like maps. Eq. (4, 5), notebook 03.

    maps: (..., h, w) float in [0, 1]. The gradient reaches them through the products; the threshold passes none.
    """
    b = pool_foreground(maps, delta)
    return b * maps, ~b * (1 - maps)


def keep(images: Tensor, weight: Tensor, fill: str) -> Tensor:
    """The weighted part of each image, the rest filled. Eq. (5), notebook 03.

    images: (P, 3, H, W) float in [0, 1]; weight: (P, H, W) in [0, 1]. fill: "black" as in Eq. (5), or "mean", the mean
    colour of what is kept: a black hole looks like no tissue to the encoder, the tissue's own colour disturbs it least.
    """
    weight = weight.unsqueeze(1)  # (P, 1, H, W)
    kept = weight * images
    if fill == "black":
        return kept
    mean = kept.sum((2, 3), keepdim=True) / weight.sum((2, 3), keepdim=True).clamp_min(1e-3)  # (P, 3, 1, 1)
    return kept + (1 - weight) * mean


def matching_terms(fg: Tensor, bg: Tensor, prototypes: Tensor, classes: Tensor, K: int, tau: float) -> tuple[Tensor, Tensor]:
    """The two contrastive terms of each pair of image and class. Eq. (9-12), notebook 03.

    fg, bg: (P, D) float, unit rows: features of the foreground and of the background; prototypes: (S, D) unit rows; classes:
    (P,) int64, the class of each pair; tau: temperature > 0. Returns L_FGS and L_BGS, each (P,).
    """
    own = torch.arange(len(prototypes), device=classes.device) // K == classes[:, None]  # (P, S): prototypes of the class
    s_fg, s_bg = fg @ prototypes.T, bg @ prototypes.T  # (P, S) cosines
    others = (~own).sum(1)
    # Step 1: the foreground should match its own class's prototypes and no others; similarities are sums, Eq. (9, 10).
    s_FF, s_FB = (s_fg * own).sum(1), (s_fg * ~own).sum(1)  # (P,)
    # Step 2: the background the other way round; similarities are means, Eq. (11, 12).
    s_BF, s_BB = (s_bg * own).sum(1) / K, (s_bg * ~own).sum(1) / others  # (P,)
    # Step 3: -log(e^a / (e^a + e^b)) = softplus(b - a), which cannot overflow.
    return F.softplus((s_FB - s_FF) / tau), F.softplus((s_BF - s_BB) / tau)


def matching_loss(
    images: Tensor, maps: Tensor, labels: Tensor, prototypes: Tensor, encode: Callable[[Tensor], Tensor], *,
    K: int, span: str, delta: float, fill: str, tau: float, theta_fg: float, theta_bg: float,
) -> Tensor:  # fmt: skip
    """L_SIM = theta1 * L_FGS + theta2 * L_BGS, the mean over all pairs of image and present class. Eq. (13), notebook 03.

    images: (B, 3, H, W) float in [0, 1]; maps: (B, C, h, w) float class logits; labels: (B, C) 0 or 1; prototypes: (S, D)
    unit rows; encode: (P, 3, H, W) -> (P, D) unit rows, frozen; span: how logits become maps in [0, 1], "stretch" by
    unit_range or "share" by present_share. A term whose foreground or background is empty is left out: an image of nothing
    looks like no class; so are, under "share", patches of one class. Returns a scalar, 0 without pairs.
    """
    if span == "share":  # a patch of one class is all foreground, whatever its map: it has no gradient, and is not encoded
        labels = labels * (labels.sum(1, keepdim=True) > 1)
    image, cls = labels.nonzero(as_tuple=True)  # (P,), (P,): every present class of every image, row-major
    if len(image) == 0:
        return maps.sum() * 0
    unit = unit_range(maps) if span == "stretch" else present_share(maps, labels)
    M = F.interpolate(unit[image, cls][:, None], images.shape[2:], mode="bilinear")[:, 0]  # (P, H, W)
    w = torch.cat(weights(M, delta))  # (2P, H, W): foregrounds, then backgrounds
    full = w.detach().amax((1, 2)) > 0  # (2P,)
    features = M.new_zeros(len(w), prototypes.shape[1])
    features[full] = encode(keep(images[image].repeat(2, 1, 1, 1)[full], w[full], fill))  # one pass for both: (2P, D)
    l_fg, l_bg = matching_terms(*features.chunk(2), prototypes, cls, K, tau)
    full_fg, full_bg = full.chunk(2)
    return (theta_fg * l_fg * full_fg + theta_bg * l_bg * full_bg).mean()
