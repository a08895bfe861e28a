"""Functions of maps alone: compare, merge, stretch, share, pool, fuse, close, take the best."""

import math
from collections.abc import Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor


def cosine_maps(features: Tensor, prototypes: Tensor, similarity: str = "cosine") -> Tensor:
    """Cosine between every position and every prototype of one level. Eq. (2) before its mean over
    k.

    features: (B, C_i, h, w) float; prototypes: (S, C_i) float. Returns (B, S, h, w) in [-1, 1].
    similarity "half": the prototypes keep their length, which is no cosine (released code).
    """
    prototypes = F.normalize(prototypes, dim=1) if similarity == "cosine" else prototypes
    return torch.einsum("bchw,sc->bshw", F.normalize(features, dim=1), prototypes)


def merge_subclasses(maps: Tensor, sizes: tuple[int, ...], how: str) -> Tensor:
    """One map or logit per class from its sub-classes: (B, S, ...) -> (B, C, ...). Notebook 03.

    sizes: sub-classes of each class. how: "mean", Eq. (2); or "softmax", their mean weighted by
    their own softmax, which lets one strong sub-type stand for its class where a mean lets two
    absent ones vote it down (the released code merges so at test, and calls it "max").
    """
    groups = maps.split(sizes, 1)  # C of (B, K_c, ...)
    if how == "mean":
        return torch.stack([group.mean(1) for group in groups], 1)
    return torch.stack([(group.softmax(1) * group).sum(1) for group in groups], 1)


def unit_range(maps: Tensor) -> Tensor:
    """Each map (..., h, w) stretched to [0, 1] by its own minimum and maximum; a constant map
    becomes 0. Notebook 03."""
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    return (maps - low) / (high - low).clamp_min(1e-6)


def present_share(maps: Tensor, labels: Tensor) -> Tensor:
    """Each present class's share of every position: the softmax over the classes of the image
    label. Notebook 03.

    maps: (B, C, h, w) float logits; labels: (B, C) 0 or 1. Returns (B, C, h, w) in [0, 1], 0 for
    absent classes. A patch of one class is all foreground, where stretching its map to [0, 1] would
    call its weakest part background.
    """
    absent = (labels == 0)[:, :, None, None]  # (B, C, 1, 1)
    shares = maps.masked_fill(absent, -math.inf).softmax(1)  # NaN for an image of no class ...
    return shares.masked_fill(absent, 0)  # ... which becomes 0


def masked_average(features: list[Tensor], weights: Tensor) -> Tensor:
    """Weighted mean of feature maps over positions, level by level: masked average pooling.
    Zhang et al., SG-One, 2018 (arXiv 1810.09091); notebook 03.

    features: L maps (B, D_i, h_i, w_i) float, finest first; weights: (B, U, h, w) float >= 0.
    Returns (B, U, D), D the sum of D_i; a weight of zeros gives zeros.
    """
    fine = F.interpolate(weights, features[0].shape[2:], mode="bilinear", align_corners=False)
    pooled = []
    for level in features:
        h, w = level.shape[2:]
        share = F.adaptive_avg_pool2d(fine, (h, w))  # (B, U, h_i, w_i)
        total = torch.einsum("buhw,bdhw->bud", share, level)  # (B, U, D_i)
        pooled.append(total / share.sum((2, 3)).clamp_min(1e-6)[..., None])
    return torch.cat(pooled, 2)  # (B, U, D)


def stack_levels(features: list[Tensor], size: tuple[int, int]) -> Tensor:
    """All levels of a pyramid side by side at every position: a hypercolumn. Hariharan et al.,
    CVPR 2015.

    features: L maps (B, D_i, h_i, w_i) float; size: (h, w). Returns (B, D, h, w).
    """
    same = [F.interpolate(m, size, mode="bilinear", align_corners=False) for m in features]
    return torch.cat(same, 1)  # (B, D, h, w)


def pose(images: Tensor, k: int) -> Tensor:
    """One of the eight poses of a square, mirrored from k = 4 on, then turned: (..., H, W) ->
    same."""
    return (images.flip(-1) if k >= 4 else images).rot90(k % 4, (-2, -1))


def unpose(images: Tensor, k: int) -> Tensor:
    """The way back from `pose` k."""
    back = images.rot90(-(k % 4), (-2, -1))
    return back.flip(-1) if k >= 4 else back


def fuse(
    class_maps: list[Tensor],
    weights: tuple[float, ...],
    size: Sequence[int],
    align_corners: bool = False,
) -> Tensor:
    """Weighted sum over levels of the class maps, upsampled to `size`. Eq. (3) with
    weights, notebook 03.

    class_maps: L logit maps (B, C, h_i, w_i) float; weights: L floats; size: (H, W) px. Returns
    (B, C, H, W) logits.
    """
    side = tuple(size)
    up = [F.interpolate(m, side, mode="bilinear", align_corners=align_corners) for m in class_maps]
    return reduce(torch.add, (w * m for w, m in zip(weights, up, strict=True)))


def diffuse(maps: Tensor, features: Tensor, side: int, tau: float = 0.1) -> Tensor:
    """Each position takes the mean of its neighbours' scores, those most whose features are like
    its own: one step of diffusion. As ProBAG (2026, arXiv 2608.11765) ends with; the weights are
    ours, for its own are not known to us.

    maps: (B, C, h, w) float scores; features: (B, D, h, w) float of the same positions; side: odd,
    positions a side of the neighbourhood, itself included; what lies outside the map is left out.
    tau: temperature of the softmax over the neighbours' cosines. Returns the shape of maps.
    """
    h, w = maps.shape[2:]
    r = side // 2
    unit = F.normalize(features, dim=1)
    outside = F.pad(maps.new_zeros(1, h, w), (r, r, r, r), value=1)  # 1 where no position is
    unit_around, maps_around = (F.pad(m, (r, r, r, r)) for m in (unit, maps))
    total, weight = torch.zeros_like(maps), maps.new_zeros(len(maps), 1, h, w)
    # shift by shift: no tensor of side * side copies of the features
    for y in range(side):
        for x in range(side):
            there = slice(y, y + h), slice(x, x + w)
            cosine = (unit * unit_around[:, :, *there]).sum(1, keepdim=True)  # (B, 1, h, w)
            near = ((cosine - 1) / tau).exp() * (1 - outside[:, *there])  # a cosine is at most 1
            total += near * maps_around[:, :, *there]
            weight += near
    return total / weight


def unit_scores(maps: Tensor) -> Tensor:
    """Each map above 0 stretched to [0, 1]; one that is constant there, or below 0, becomes 0.

    maps: (B, C, h, w) float logits. Returns the same shape. Utils/validate.py of the released code:
    a class that is not there is stretched like one that is, so only its image label can close it.
    """
    above = maps.clamp_min(0)
    low, high = above.amin((2, 3), keepdim=True), above.amax((2, 3), keepdim=True)
    return (above - low) / (high - low + 1e-6)


def background_score(scores: Tensor) -> Tensor:
    """The score of "no tissue" that the released code computes and drops: (1 - highest class
    score)^10. Notebook 06.

    scores: (B, C, H, W) in [0, 1]. Returns (B, 1, H, W). TPRO keeps it, and so can predict
    background.
    """
    return (1 - scores.amax(1, keepdim=True)) ** 10


def gate(scores: Tensor, labels: Tensor) -> Tensor:
    """Put the classes that an image label denies out of the argmax.

    scores (B, C, H, W) float, any range; labels (B, C), 0 or 1. Returns scores with -inf in absent
    classes, same shape and dtype. An image with no label at all is left as it is: every pixel must
    get a class, and the argmax of a pixel of -inf alone would be class 0 by accident. Raises
    ValueError for other shapes or labels.
    """
    if scores.ndim != 4 or tuple(labels.shape) != tuple(scores.shape[:2]):
        raise ValueError(
            f"gate: scores {tuple(scores.shape)} and labels {tuple(labels.shape)} do not fit; "
            "expected (B, C, H, W) and (B, C): one label per image and class"
        )
    labels = labels.to(scores.device)
    present = labels == 1
    if not (present | (labels == 0)).all():
        raise ValueError(
            "gate: labels hold values other than 0 and 1; threshold the probabilities first"
        )
    absent = ~present & present.any(dim=1, keepdim=True)
    return scores.masked_fill(absent[:, :, None, None], -math.inf)  # (B, C) -> (B, C, 1, 1)


def closed(scores: Tensor, labels: Tensor, gating: str) -> Tensor:
    """Class scores (B, C, H, W) with the classes closed that labels (B, C) deny: by `gate`, or,
    gating "zeroed", at 0 (released code)."""
    return gate(scores, labels) if gating == "closed" else scores * labels[:, :, None, None]


def argmax_masks(cams: Tensor, labels: Tensor, gating: str = "closed") -> Tensor:
    """The strongest class of each pixel among those the image label allows. Sec. 3.3, notebook 04.

    cams: (B, C, H, W) float; labels: (B, C) 0 or 1; gating "closed": an absent class never wins;
    "zeroed": it scores 0, and the first class wins a tie (released code). Returns (B, H, W) uint8
    in 0..C-1; ignore is never predicted.
    """
    return winners(closed(cams, labels, gating))


def winners(scores: Tensor) -> Tensor:
    """The class of the highest score of each pixel, the first of a tie: (B, C, H, W) float without
    NaN -> (B, H, W) uint8.

    scores.argmax(1) as a running maximum: the classes lie far apart in memory, and an argmax that
    walks from one to the next at each pixel takes eight times as long.
    """
    best = scores[:, 0]  # (B, H, W)
    winner = torch.zeros_like(best, dtype=torch.uint8)
    for c in range(1, scores.shape[1]):
        winner.masked_fill_(scores[:, c] > best, c)
        best = torch.maximum(best, scores[:, c])
    return winner
