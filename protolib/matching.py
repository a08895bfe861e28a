"""The contrastive matching loss: what a map keeps should look like its class's prototypes, what it leaves like the others'."""

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


def foreground_background(images: Tensor, maps: Tensor, delta: float, fill: str = "black") -> tuple[Tensor, Tensor]:
    """Foreground b*M*X and background (1-b)*(1-M)*X of each image under its map. Eq. (5), notebook 03.

    images: (P, 3, H, W) float in [0, 1]; maps: (P, H, W) float in [0, 1], one per image. Returns two (P, 3, H, W) in [0, 1].
    fill: what stands where a weight is 0: "black" as in Eq. (5), or "mean", the mean colour of what is kept: black holes
    look like no tissue to the encoder, a flat patch of the tissue's own colour disturbs it least.
    The gradient reaches the maps through the products; the threshold passes none.
    """
    M = maps.unsqueeze(1)  # (P, 1, H, W)
    b = pool_foreground(M, delta)
    parts = []
    for weight in (b * M, ~b * (1 - M)):
        kept = weight * images
        if fill == "mean":
            mean = kept.sum((2, 3), keepdim=True) / weight.sum((2, 3), keepdim=True).clamp_min(1e-3)  # (P, 3, 1, 1)
            kept = kept + (1 - weight) * mean
        parts.append(kept)
    return parts[0], parts[1]


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


def matching_loss(images, maps, labels, bank_prototypes, encode, *, K, delta, fill, tau, theta_fg, theta_bg) -> Tensor:
    """L_SIM = theta1 * L_FGS + theta2 * L_BGS, the mean over all pairs of image and present class. Eq. (13), notebook 03.

    images: (B, 3, H, W) float in [0, 1]; maps: (B, C, h, w) float class maps of any range; labels: (B, C) 0 or 1;
    bank_prototypes: (S, D) unit rows; encode: (P, 3, H, W) -> (P, D) unit rows, frozen. Returns a scalar, 0 without pairs.
    """
    image, cls = labels.nonzero(as_tuple=True)  # (P,), (P,): every present class of every image, row-major
    if len(image) == 0:
        return maps.sum() * 0
    M = F.interpolate(unit_range(maps[image, cls])[:, None], images.shape[2:], mode="bilinear")[:, 0]  # (P, H, W)
    fg, bg = foreground_background(images[image], M, delta, fill)
    features = encode(torch.cat([fg, bg]))  # one pass for both: (2P, D)
    l_fg, l_bg = matching_terms(*features.chunk(2), bank_prototypes, cls, K, tau)
    return (theta_fg * l_fg + theta_bg * l_bg).mean()
