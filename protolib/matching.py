"""The matching loss: what a map keeps of a patch should look like its class's prototypes, what it
leaves like the others'.

A part of a patch can be looked at in two ways (`look` of a preset). "masked_image", the paper's:
the rest of the picture is hidden, and the frozen encoder sees what is left, once for each part.
"masked_pooling": the encoder sees the whole patch once, and its features are averaged under the
map; no gradient passes through the encoder. "positions" needs no parts: each position learns the
class of the prototype that is nearest to its own features.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from protolib.maps import (
    masked_average,
    merge_subclasses,
    present_share,
    stack_levels,
    unit_range,
)
from protolib.presets import Preset
from protolib.processes import weight

# images and their classes (or sub-classes), row by row: (P,) and (P,) int64
Pairs = tuple[Tensor, Tensor]


def pool_foreground(maps: Tensor, delta: float, shared: bool = False) -> Tensor:
    """Binary foreground of each map: at least `delta` of its own maximum. Eq. (4), notebook 03.

    maps: (..., h, w) float similarity; delta: in (0, 1); shared: of the maximum over all maps of
    the image, maps (B, ., h, w), as in the released code: one strong class empties the others.
    Returns bool of the same shape. Raises ValueError if delta is outside (0, 1).
    """
    if not 0 < delta < 1:
        raise ValueError(
            f"delta = {delta}: the adaptive threshold is a share of the map's maximum, "
            "give 0 < delta < 1"
        )
    return maps >= delta * maps.amax((-3, -2, -1) if shared else (-2, -1), keepdim=True)


def regions(maps: Tensor, delta: float, threshold: str) -> tuple[Tensor, Tensor]:
    """Which positions may be foreground, and which background: two bool tensors like maps.
    Eq. (4), notebook 03.

    threshold: one per "map" or per "image", see pool_foreground; "none": every position may be
    both (Table 5 without AT).
    """
    if threshold == "none":
        everywhere = torch.ones_like(maps, dtype=torch.bool)
        return everywhere, everywhere
    b = pool_foreground(maps, delta, threshold == "image")
    return b, ~b


def weights(maps: Tensor, delta: float, threshold: str = "map") -> tuple[Tensor, Tensor]:
    """How much of each position is foreground, b*M, and background, (1-b)*(1-M): two tensors like
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
    area = weight.sum((2, 3), keepdim=True).clamp_min(1e-3)  # (P, 1, 1, 1)
    mean = kept.sum((2, 3), keepdim=True) / area  # (P, 3, 1, 1)
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
    stretched = (product - low) / (high - low + 1e-8)
    # not a product with b: the encoder's gradient at a black picture may overflow, and 0 * inf
    # would reach the maps
    return torch.where(b.unsqueeze(1), stretched, 0)


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
    above = logits > expand_labels(merged, sizes)  # (B, S)
    return above & (expand_labels(labels, sizes) > 0)


def choose_pairs(maps: Tensor, labels: Tensor, p: Preset) -> Tensor:
    """The pairs of image and class (or sub-class) that are compared: (B, U) bool. Notebook 03.

    maps: (B, U, h, w) float logits; labels: (B, C) 0 or 1; U is C, or S where p.pairs is
    "subclasses". Under span "share" a patch of one class is all foreground whatever its map: it
    would have no gradient, and is left out.
    """
    if p.span == "share":
        labels = labels * (labels.sum(1, keepdim=True) > 1)
    if p.pairs == "classes":
        return labels > 0
    sizes = (p.K,) * labels.shape[1]
    return select_subclasses(maps.mean((2, 3)), labels, sizes, p.merge)


def sides(pairs: Pairs, labels: Tensor, p: Preset) -> tuple[Tensor, Tensor]:
    """Which prototypes are a pair's positives, and which its negatives: two (P, S) bool.
    Eq. (9-12), notebook 03.

    pairs: P of image and class or sub-class; labels: (B, C) 0 or 1. p.negatives: prototypes of the
    other "classes"; of the "present" ones alone, for an absent class has no part in the patch that
    could be taken for it; or "all" but the positives, siblings of a sub-class too (released code).
    """
    image, unit = pairs  # (P,), (P,)
    S = labels.shape[1] * p.K
    s = torch.arange(S, device=unit.device)
    owner = unit if p.pairs == "classes" else unit // p.K  # (P,) class of each pair
    family = s // p.K == owner[:, None]  # (P, S)
    positives = family if p.pairs == "classes" else s == unit[:, None]
    if p.negatives == "all":
        return positives, ~positives
    if p.negatives == "classes":
        return positives, ~family
    present = expand_labels(labels, (p.K,) * labels.shape[1])[image] > 0  # (P, S)
    return positives, present & ~family


def matching_terms(
    fg: Tensor, bg: Tensor, prototypes: Tensor, positives: Tensor, negatives: Tensor, tau: float
) -> tuple[Tensor, Tensor]:
    """The two contrastive terms of each pair of image and class. Eq. (9-12), notebook 03.

    fg, bg: (P, D) float, unit rows: features of the foreground and of the background; prototypes:
    (S, D) unit rows; positives, negatives: (P, S) bool, see sides; tau: temperature > 0. Returns
    L_FGS and L_BGS, each (P,).
    """
    s_fg, s_bg = fg @ prototypes.T, bg @ prototypes.T  # (P, S) cosines
    # Step 1: the foreground should match its own class's prototypes and no others; similarities
    # are sums, Eq. (9, 10).
    s_FF, s_FB = (s_fg * positives).sum(1), (s_fg * negatives).sum(1)  # (P,)
    # Step 2: the background the other way round; similarities are means, Eq. (11, 12).
    s_BF = (s_bg * positives).sum(1) / positives.sum(1)  # (P,)
    s_BB = (s_bg * negatives).sum(1) / negatives.sum(1).clamp_min(1)  # (P,)
    # Step 3: -log(e^a / (e^a + e^b)) = softplus(b - a), which cannot overflow.
    return F.softplus((s_FB - s_FF) / tau), F.softplus((s_BF - s_BB) / tau)


def batch_terms(
    fg: Tensor, bg: Tensor, prototypes: Tensor, positives: Tensor, negatives: Tensor, tau: float
) -> tuple[Tensor, Tensor]:
    """The same two terms as released: exp of every similarity, summed over the batch before one
    log. Notebook 03.

    Arguments as in matching_terms. Returns two scalars. Utils/contrast_loss.py of the released
    code, which gives NaN for a feature of zeros, no pairs and large exponents; here a zero row has
    cosine 0 and the sums are taken in the log.
    """
    if len(fg) == 0:
        return fg.sum(), bg.sum()
    parts = torch.stack([fg, bg])  # (2, P, D)
    length = parts.norm(dim=2, keepdim=True)  # (2, P, 1)
    # a zero row stays 0 and gets a gradient of its own size: divided by an epsilon it would be 1e13
    s_fg, s_bg = parts / length.where(length > 0, 1) @ prototypes.T / tau  # (P, S) each
    p_fg, q_fg = s_fg[positives].logsumexp(0), s_fg[negatives].logsumexp(0)
    # the background's negatives count as a mean over prototypes, its positives as a sum
    log_count = negatives.sum(1, keepdim=True).log()  # (P, 1)
    p_bg, q_bg = s_bg[positives].logsumexp(0), (s_bg - log_count)[negatives].logsumexp(0)
    return F.softplus(q_fg - p_fg), F.softplus(p_bg - q_bg)


def cut_out(images: Tensor, maps: Tensor, pairs: Pairs, p: Preset) -> tuple[Tensor, Tensor]:
    """The foreground and the background of every pair as pictures. Eq. (4, 5), notebook 03.

    images: (B, 3, H, W) float; maps: (B, U, h, w) of classes or sub-classes; pairs: P of image and
    class or sub-class. Returns pictures (n, 3, H, W), foregrounds first, and which of the 2P are
    there, (2P,) bool: an empty part is left out.
    """
    image, unit = pairs  # (P,), (P,)
    M = F.interpolate(maps, images.shape[2:], mode="bilinear", align_corners=p.align_corners)
    X = images[image]  # (P, 3, H, W)
    if p.fill == "minmax":  # the released code encodes black images too, and so does this
        b_fg, b_bg = regions(M, p.delta, p.threshold)  # (B, U, H, W) each
        M, b_fg, b_bg = M[image, unit], b_fg[image, unit], b_bg[image, unit]  # (P, H, W) each
        pictures = torch.cat([rescale(X, M, b_fg), rescale(X, 1 - M, b_bg)])  # (2P, 3, H, W)
        return pictures, torch.ones(len(pictures), dtype=torch.bool, device=X.device)
    fg, bg = weights(M, p.delta, p.threshold)  # (B, U, H, W) each
    w = torch.cat([fg[image, unit], bg[image, unit]])  # (2P, H, W)
    full = w.detach().amax((1, 2)) > 0  # (2P,)
    return keep(X.repeat(2, 1, 1, 1)[full], w[full], p.fill), full


def pool_parts(
    features: list[Tensor], maps: Tensor, pairs: Pairs, p: Preset
) -> tuple[Tensor, Tensor]:
    """The foreground and the background of every pair as features averaged under the map.
    Notebook 03.

    features: L maps (B, D_i, h_i, w_i) of the frozen encoder, finest first; maps: (B, U, h, w) in
    [0, 1]; pairs: P of image and class. Returns (2P, D), foregrounds first, and which of them are
    there, (2P,) bool: the features of an empty part are zeros.
    """
    image, unit = pairs  # (P,), (P,)
    parts, full = [], []
    for side in weights(maps, p.delta, p.threshold):  # foreground, background: (B, U, h, w)
        parts.append(masked_average(features, side)[image, unit])  # (P, D)
        full.append(side.detach().amax((2, 3))[image, unit] > 0)  # (P,)
    return torch.cat(parts), torch.cat(full)


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


def position_loss(
    features: list[Tensor], maps: Tensor, labels: Tensor, prototypes: Tensor, embed: Callable
) -> Tensor:
    """Each position learns the present class whose prototype is nearest to its own features: the
    dense variant, ours. Notebook 03.

    features: L maps (B, D_i, h_i, w_i) of the frozen encoder; maps: (B, C, h, w) float logits;
    labels: (B, C) 0 or 1; prototypes: (S, D) unit rows; embed: (n, D) -> (n, D) unit rows. Patches
    of one class are left out: there is nothing to tell apart. Returns a scalar.
    """
    mixed = labels.sum(1) > 1  # (B,)
    share = weight(mixed.sum(), maps)
    if not mixed.any():
        return maps.sum() * 0
    C, h, w = maps.shape[1:]
    closeness = nearest_classes([level[mixed] for level in features], prototypes, embed, (C, h, w))
    absent = (labels[mixed] == 0)[:, :, None, None]
    target = closeness.masked_fill(absent, -torch.inf).argmax(1)  # (B', h, w)
    return share * F.cross_entropy(maps[mixed].masked_fill(absent, -torch.inf), target)


@torch.no_grad()
def nearest_classes(
    features: list[Tensor], prototypes: Tensor, embed: Callable, shape: tuple[int, int, int]
) -> Tensor:
    """The cosine of each position to the nearest prototype of each class: what is known before any
    training.

    features: L maps (B, D_i, h_i, w_i) of the frozen encoder; prototypes: (S, D) unit rows; embed:
    (n, D) -> (n, D) unit rows; shape: (C, h, w). Returns (B, C, h, w) in [-1, 1].
    """
    C, h, w = shape
    columns = stack_levels(features, (h, w)).permute(0, 2, 3, 1)  # (B, h, w, D)
    cosines = embed(columns.flatten(0, 2)) @ prototypes.T  # (B*h*w, S)
    return cosines.view(-1, h, w, C, len(prototypes) // C).amax(4).permute(0, 3, 1, 2)


def matching_loss(
    seen, maps: Tensor, labels: Tensor, prototypes: Tensor, embed: Callable, p: Preset
) -> Tensor:
    """L_SIM = theta1 * L_FGS + theta2 * L_BGS, the mean over all pairs of image and present class.
    Eq. (13), notebook 03.

    seen: what is looked at, by p.look: the images (B, 3, H, W) float in [0, 1], or L maps (B, D_i,
    h_i, w_i) of the frozen encoder. maps: (B, U, h, w) float logits, U = C, or S where p.pairs is
    "subclasses"; labels: (B, C) 0 or 1; prototypes: (S, D) unit rows; embed: pictures (P, 3, H, W),
    or features (P, D) -> (P, D) unit rows in the prototypes' space. A term whose foreground or
    background is empty is left out: nothing looks like no class. Returns a scalar, 0 without pairs.
    """
    if p.look == "positions":
        return position_loss(seen, maps, labels, prototypes, embed)
    # Step 1: pairs of an image and a class that it shows.
    image, unit = choose_pairs(maps, labels, p).nonzero(as_tuple=True)  # (P,), (P,)
    pairs = image, unit
    share = weight(len(image), maps)
    if not len(image):
        return maps.sum() * 0
    # Step 2: logits become shares of each position.
    if p.span == "stretch":
        maps = unit_range(maps)
    elif p.span == "share":
        maps = present_share(maps, labels)
    # Step 3: what the encoder says of the foreground and of the background of each pair.
    if p.look == "masked_pooling":
        parts, full = pool_parts(seen, maps, pairs, p)
        features = embed(parts)  # (2P, D)
    else:
        pictures, full = cut_out(seen, maps, pairs, p)
        if not len(pictures):  # nothing to encode: some encoders refuse an empty batch
            return maps.sum() * 0
        found = encode_all(embed, pictures, p.chunk)
        features = found.new_zeros(len(full), found.shape[1]).index_put((full,), found)  # (2P, D)
    fg, bg = features.chunk(2)
    # Step 4: compare both with the prototypes.
    positives, negatives = sides(pairs, labels, p)
    if p.pooling == "batch":
        l_fg, l_bg = batch_terms(fg, bg, prototypes, positives, negatives, p.tau)
        return p.theta_fg * l_fg + p.theta_bg * l_bg
    l_fg, l_bg = matching_terms(fg, bg, prototypes, positives, negatives, p.tau)
    full_fg, full_bg = full.chunk(2)
    return share * (p.theta_fg * l_fg * full_fg + p.theta_bg * l_bg * full_bg).mean()
