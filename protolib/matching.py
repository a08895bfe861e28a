"""The contrastive matching loss: what a map keeps should look like its class's prototypes, what it
leaves like the others'."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from protolib.maps import merge_subclasses, present_share, unit_range


def pool_foreground(maps: Tensor, delta: float, shared: bool = False) -> Tensor:
    """Binary foreground of each map: at least `delta` of its own maximum. Eq. (4), notebook 03.

    maps: (..., h, w) float similarity; delta: in (0, 1); shared: of the maximum over all maps of
    the image, maps (B, ., h, w), as in the released code: one strong class empties the others.
    Returns bool of the same shape. Raises ValueError if delta is outside (0, 1).
    """
    if not 0 < delta < 1:
        raise ValueError(
            f"delta = {delta}: the adaptive threshold is a share of the map's maximum, give 0 < delta < 1"
        )
    return maps >= delta * maps.amax((-3, -2, -1) if shared else (-2, -1), keepdim=True)


def regions(maps: Tensor, delta: float, threshold: str) -> tuple[Tensor, Tensor]:
    """Which cells may be foreground, and which background: two bool tensors like maps. Eq. (4),
    notebook 03.

    threshold: one per "map" or per "image", see pool_foreground; "none": every cell may be both
    (Table 5 without AT).
    """
    if threshold == "none":
        return torch.ones_like(maps, dtype=torch.bool), torch.ones_like(maps, dtype=torch.bool)
    b = pool_foreground(maps, delta, threshold == "image")
    return b, ~b


def weights(maps: Tensor, delta: float, threshold: str = "map") -> tuple[Tensor, Tensor]:
    """How much of each pixel is foreground, b*M, and background, (1-b)*(1-M): two tensors like
    maps. Eq. (4, 5), notebook 03.

    maps: (..., h, w) float in [0, 1]. The gradient reaches them through the products; the threshold
    passes none.
    """
    fg, bg = regions(maps, delta, threshold)
    return fg * maps, bg * (1 - maps)


def keep(images: Tensor, weight: Tensor, fill: str) -> Tensor:
    """The weighted part of each image, the rest filled. Eq. (5), notebook 03.

    images: (P, 3, H, W) float in [0, 1]; weight: (P, H, W) in [0, 1]. fill: "black" as in Eq. (5),
    or "mean", the mean colour of what is kept: a black hole looks like no tissue to the encoder,
    the tissue's own colour disturbs it least.
    """
    weight = weight.unsqueeze(1)  # (P, 1, H, W)
    kept = weight * images
    if fill == "black":
        return kept
    mean = kept.sum((2, 3), keepdim=True) / weight.sum((2, 3), keepdim=True).clamp_min(
        1e-3
    )  # (P, 3, 1, 1)
    return kept + (1 - weight) * mean


def rescale(images: Tensor, maps: Tensor, b: Tensor) -> Tensor:
    """Image times map, each colour channel stretched to [0, 1], the rest black: Eq. (5) as
    released. Notebook 03.

    images: (P, 3, H, W) float, normalised as for the network; maps: (P, H, W) float of any range;
    b: (P, H, W) bool, what stays. Returns (P, 3, H, W) in [0, 1]. Utils/fgbg_feature.py of the
    released code.
    """
    product = maps.unsqueeze(1) * images  # (P, 3, H, W)
    low, high = product.amin((2, 3), keepdim=True), product.amax((2, 3), keepdim=True)
    # not a product with b: the encoder's gradient at a black picture may overflow, and 0 * inf
    # would reach the maps
    return torch.where(b.unsqueeze(1), (product - low) / (high - low + 1e-8), 0)


def expand_labels(values: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Each class's value for each of its sub-classes: (B, C) -> (B, S). Notebook 03."""
    return values.repeat_interleave(torch.tensor(sizes, device=values.device), 1)


def select_subclasses(logits: Tensor, labels: Tensor, sizes: tuple[int, ...], how: str) -> Tensor:
    """The sub-classes of present classes that score above their class, merged: (B, S) bool.
    Notebook 03.

    logits: (B, S) float, pooled maps; labels: (B, C) 0 or 1; sizes: sub-classes of each class; how:
    see merge_subclasses. A class of one sub-class never has one above it. Train_stage_1.py of the
    released code.
    """
    merged = merge_subclasses(logits, sizes, how)  # (B, C)
    return (logits > expand_labels(merged, sizes)) & (expand_labels(labels, sizes) > 0)


def sides(units: Tensor, S: int, K: int, pairs: str, negatives: str) -> tuple[Tensor, Tensor]:
    """Which prototypes a pair's foreground should match, and which not: two (P, S) bool. Eq.
    (9-12), notebook 03.

    units: (P,) int64, the class of each pair (pairs "classes") or its sub-class ("subclasses").
    negatives: prototypes of the other "classes", or "all" but the own: siblings of a sub-class too,
    as in the released code.
    """
    s = torch.arange(S, device=units.device)
    classes = units if pairs == "classes" else units // K
    family = s // K == classes[:, None]  # (P, S)
    own = family if pairs == "classes" else s == units[:, None]
    return own, ~family if negatives == "classes" else ~own


def matching_terms(
    fg: Tensor, bg: Tensor, prototypes: Tensor, own: Tensor, rival: Tensor, tau: float
) -> tuple[Tensor, Tensor]:
    """The two contrastive terms of each pair of image and class. Eq. (9-12), notebook 03.

    fg, bg: (P, D) float, unit rows: features of the foreground and of the background; prototypes:
    (S, D) unit rows; own, rival: (P, S) bool, see sides; tau: temperature > 0. Returns L_FGS and
    L_BGS, each (P,).
    """
    s_fg, s_bg = fg @ prototypes.T, bg @ prototypes.T  # (P, S) cosines
    # Step 1: the foreground should match its own class's prototypes and no others; similarities are
    # sums, Eq. (9, 10).
    s_FF, s_FB = (s_fg * own).sum(1), (s_fg * rival).sum(1)  # (P,)
    # Step 2: the background the other way round; similarities are means, Eq. (11, 12).
    s_BF, s_BB = (s_bg * own).sum(1) / own.sum(1), (s_bg * rival).sum(1) / rival.sum(1)  # (P,)
    # Step 3: -log(e^a / (e^a + e^b)) = softplus(b - a), which cannot overflow.
    return F.softplus((s_FB - s_FF) / tau), F.softplus((s_BF - s_BB) / tau)


def batch_terms(
    fg: Tensor, bg: Tensor, prototypes: Tensor, own: Tensor, rival: Tensor, tau: float
) -> tuple[Tensor, Tensor]:
    """The same two terms as released: exp of every similarity, summed over the batch before one
    log. Notebook 03.

    Arguments as in matching_terms. Returns two scalars. Utils/contrast_loss.py of the released
    code, which gives NaN for a feature of zeros, no pairs and large exponents; here a zero row has
    cosine 0 and the sums are taken in the log.
    """
    if len(fg) == 0:
        return fg.sum(), bg.sum()
    length = torch.stack([fg, bg]).norm(dim=2, keepdim=True)  # (2, P, 1)
    # a zero row stays 0 and gets a gradient of its own size: divided by an epsilon it would be 1e13
    s_fg, s_bg = (
        torch.stack([fg, bg]) / length.where(length > 0, 1) @ prototypes.T / tau
    )  # (P, S) each
    p_fg, q_fg = s_fg[own].logsumexp(0), s_fg[rival].logsumexp(0)
    # the background's rivals count as a mean over prototypes, its own as a sum
    p_bg, q_bg = (
        s_bg[own].logsumexp(0),
        (s_bg - rival.sum(1, keepdim=True).log())[rival].logsumexp(0),
    )
    return F.softplus(q_fg - p_fg), F.softplus(p_bg - q_bg)


def cut_out(
    images: Tensor,
    maps: Tensor,
    chosen: Tensor,
    *,
    threshold: str,
    delta: float,
    fill: str,
    align_corners: bool,
) -> tuple[Tensor, Tensor]:
    """The foreground and the background of every chosen pair as pictures. Eq. (4, 5), notebook 03.

    images: (B, 3, H, W) float; maps: (B, U, h, w) of classes or sub-classes; chosen: (B, U) bool, P
    of them true, taken row by row. Returns pictures (n, 3, H, W), foregrounds first, and which of
    the 2P are there, (2P,) bool: an empty part is left out.
    """
    image, unit = chosen.nonzero(as_tuple=True)  # (P,), (P,)
    M = F.interpolate(
        maps, images.shape[2:], mode="bilinear", align_corners=align_corners
    )  # (B, U, H, W)
    X = images[image]  # (P, 3, H, W)
    if fill == "minmax":  # the released code encodes black images too, and so does this
        M, fg, bg = (
            part[image, unit] for part in (M, *regions(M, delta, threshold))
        )  # (P, H, W) each
        pictures = torch.cat([rescale(X, M, fg), rescale(X, 1 - M, bg)])  # (2P, 3, H, W)
        return pictures, torch.ones(len(pictures), dtype=torch.bool, device=X.device)
    w = torch.cat([part[image, unit] for part in weights(M, delta, threshold)])  # (2P, H, W)
    full = w.detach().amax((1, 2)) > 0  # (2P,)
    return keep(X.repeat(2, 1, 1, 1)[full], w[full], fill), full


def encode_all(encode: Callable[[Tensor], Tensor], pictures: Tensor, chunk: int) -> Tensor:
    """Features (P, D) of pictures (P, 3, H, W), with what the way back needs kept for at most
    `chunk` of them. Notebook 03.

    chunk 0: for all, at once. Else the last `chunk` pictures keep it and the others are encoded a
    second time going back, after the last ones have let go of theirs: less memory, more time, the
    same numbers.
    """
    if not chunk or len(pictures) <= chunk:
        return encode(pictures)
    again = [
        checkpoint(encode, part, use_reentrant=False) for part in pictures[:-chunk].split(chunk)
    ]
    return torch.cat([*again, encode(pictures[-chunk:])])


def matching_loss(
    images: Tensor,
    maps: Tensor,
    labels: Tensor,
    prototypes: Tensor,
    encode: Callable[[Tensor], Tensor],
    *,
    K: int,
    pairs: str,
    merge: str,
    span: str,
    threshold: str,
    delta: float,
    fill: str,
    negatives: str,
    pooling: str,
    tau: float,
    theta_fg: float,
    theta_bg: float,
    align_corners: bool,
    chunk: int,
) -> Tensor:
    """L_SIM = theta1 * L_FGS + theta2 * L_BGS, the mean over all pairs of image and present class.
    Eq. (13), notebook 03.

    images: (B, 3, H, W) float in [0, 1]; maps: (B, C, h, w) float class logits, or (B, S, h, w)
    where pairs is "subclasses"; labels: (B, C) 0 or 1; prototypes: (S, D) unit rows; encode: (P, 3,
    H, W) -> (P, D) unit rows, frozen; the choices are those of presets.Preset. A term whose
    foreground or background is empty is left out: an image of nothing looks like no class; so are,
    under span "share", patches of one class. Returns a scalar, 0 without pairs.
    """
    if (
        span == "share"
        # a patch of one class is all foreground, whatever its map: it has no gradient, and is not
        # encoded
    ):
        labels = labels * (labels.sum(1, keepdim=True) > 1)
    sizes = (K,) * labels.shape[1]
    chosen = (
        labels > 0
        if pairs == "classes"
        else select_subclasses(maps.mean((2, 3)), labels, sizes, merge)
    )
    if not chosen.any():
        return maps.sum() * 0
    maps = {"stretch": unit_range, "share": lambda m: present_share(m, labels), "raw": lambda m: m}[
        span
    ](maps)
    pictures, full = cut_out(
        images,
        maps,
        chosen,
        threshold=threshold,
        delta=delta,
        fill=fill,
        align_corners=align_corners,
    )
    features = maps.new_zeros(len(full), prototypes.shape[1])
    features[full] = encode_all(encode, pictures, chunk)  # one pass for both: (2P, D)
    own, rival = sides(chosen.nonzero()[:, 1], len(prototypes), K, pairs, negatives)
    if pooling == "batch":
        l_fg, l_bg = batch_terms(*features.chunk(2), prototypes, own, rival, tau)
        return theta_fg * l_fg + theta_bg * l_bg
    l_fg, l_bg = matching_terms(*features.chunk(2), prototypes, own, rival, tau)
    full_fg, full_bg = full.chunk(2)
    return (theta_fg * l_fg * full_fg + theta_bg * l_bg * full_bg).mean()
