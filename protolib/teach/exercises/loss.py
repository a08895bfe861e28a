"""Exercises of notebook 03: parts of a patch, the loss, and where its gradient points."""

import numpy as np
import torch
import torch.nn.functional as F

from protolib import maps as kernels
from protolib import matching
from protolib.teach.exercises.judge import exercise

generator = torch.Generator().manual_seed(0)


def rand(*shape, dtype=torch.float64):
    """Numbers in [0, 1)."""
    return torch.rand(shape, generator=generator, dtype=dtype)


def pair(cls, C, K, D, tau, dtype=torch.float64):
    """A feature, prototypes and the rest of one pair."""
    rows = F.normalize(rand(C * K + 1, D, dtype=dtype) - 0.4, dim=1)
    return rows[0], rows[1:], cls, K, tau


def own_others(fg, prototypes, cls, K):
    """The cosines with the prototypes of the class, and with all others."""
    s = (prototypes @ fg).view(-1, K)  # (C, K)
    return s[cls], s[torch.arange(len(s)) != cls].flatten()


def foreground(change):
    """A slip of the loss: what becomes of own cosines, other cosines and temperature."""
    return lambda fg, P, cls, K, tau: change(*own_others(fg, P, cls, K), tau)


# of two classes with two prototypes each, the feature near those of the first
FEATURE = torch.tensor([1.0, 0.0], dtype=torch.float64)
PLANE = torch.tensor([[0.6, 0.8], [0.8, -0.6], [-0.6, 0.8], [0.0, 1.0]], dtype=torch.float64)


@exercise(
    "which K rows are the class's own? Add their cosines, add all others; what is compared then?",
    inputs=[
        pair(1, 3, 2, 4, 0.5),
        pair(0, 2, 3, 5, 0.3),
        pair(3, 4, 3, 4, 1.0, torch.float32),
        pair(2, 3, 1, 6, 0.7),
        pair(0, 2, 2, 3, 1e-3),  # exp overflows
        pair(1, 2, 2, 3, 1e-3),
        (FEATURE, PLANE, 0, 2, 1e-4),
        (FEATURE, PLANE, 1, 2, 1e-4),  # log(sigmoid) is -inf
    ],
    slips={
        "right, until exp overflows at tau = 0.001: -log(e^a / (e^a + e^b)) is softplus(b - a), "
        "which cannot": foreground(
            lambda p, n, t: (
                -torch.log((p.sum() / t).exp() / ((p.sum() / t).exp() + (n.sum() / t).exp()))
            )
        ),
        "divide the similarities by tau": foreground(lambda p, n, t: F.softplus(n.sum() - p.sum())),
        "divide by tau, do not multiply": foreground(
            lambda p, n, t: F.softplus((n.sum() - p.sum()) * t)
        ),
        "the foreground's similarities are sums; means belong to the background's term": foreground(
            lambda p, n, t: F.softplus((n.mean() - p.mean()) / t)
        ),
        "each exp holds the SUM of the class's cosines; here exp comes first and the sum after": (
            foreground(lambda p, n, t: (torch.cat([p, n]) / t).logsumexp(0) - (p / t).logsumexp(0))
        ),
        "own and other classes are swapped, or the minus sign before the log is missing": (
            foreground(lambda p, n, t: F.softplus((p.sum() - n.sum()) / t))
        ),
        "this is the difference inside; the loss is its softplus": foreground(
            lambda p, n, t: (n.sum() - p.sum()) / t
        ),
        "siblings are friends: s_FF adds all K prototypes of the own class": foreground(
            lambda p, n, t: F.softplus((n.sum() + p[1:].sum() - p[0]) / t)
        ),
        "s_FB holds the OTHER classes only: with the own one in it, s_FF cancels": (
            foreground(lambda p, n, t: F.softplus(n.sum() / t))
        ),
        "the prototypes stand class by class: rows K * cls to K * cls + K - 1, not every Cth": (
            lambda fg, P, cls, K, tau: F.softplus(
                ((P @ fg).sum() - 2 * (P @ fg).view(K, -1)[:, cls].sum()) / tau
            )
        ),
        "this is the share itself; the loss is its logarithm, with a minus": foreground(
            lambda p, n, t: torch.sigmoid((p.sum() - n.sum()) / t)
        ),
        "the sign: a loss is not negative; minus the logarithm": foreground(
            lambda p, n, t: -F.softplus((n.sum() - p.sum()) / t)
        ),
        "two slips: each exp holds the SUM of cosines, and exp overflows for a small tau": (
            foreground(
                lambda p, n, t: -((p / t).exp().sum() / (torch.cat([p, n]) / t).exp().sum()).log()
            )
        ),
        "row cls is one prototype; the class has K of them, from row K * cls on": (
            lambda fg, P, cls, K, tau: F.softplus(((P @ fg).sum() - (P @ fg)[cls]) / tau)
        ),
        "this is a hinge, with a corner at 0; softplus has none": foreground(
            lambda p, n, t: F.relu((n.sum() - p.sum()) / t)
        ),
        "ALL other classes are negatives: those before the class are left out": (
            lambda fg, P, cls, K, tau: F.softplus(
                ((P @ fg)[K * cls + K :].sum() - (P @ fg)[K * cls : K * cls + K].sum()) / tau
            )
        ),
        "ALL other classes are negatives: those behind the class are left out": (
            lambda fg, P, cls, K, tau: F.softplus(
                ((P @ fg)[: K * cls].sum() - (P @ fg)[K * cls : K * cls + K].sum()) / tau
            )
        ),
        "s_FB is a sum as s_FF is: the negatives are averaged here": foreground(
            lambda p, n, t: F.softplus((n.mean() - p.sum()) / t)
        ),
        "s_FF is a sum as s_FB is: the positives are averaged here": foreground(
            lambda p, n, t: F.softplus((n.sum() - p.mean()) / t)
        ),
        "a slice stops before its end: the K rows are [K * cls : K * cls + K]": foreground(
            lambda p, n, t: F.softplus((n.sum() - p[:-1].sum()) / t)
        ),
        "all prototypes count: here only the highest cosine of each side does": foreground(
            lambda p, n, t: F.softplus((n.max() - p.max()) / t)
        ),
        "ALL other classes are negatives: this compares with the next one alone": (
            lambda fg, P, cls, K, tau: (lambda s: F.softplus((s.roll(-1)[cls] - s[cls]) / tau))(
                (P @ fg).view(-1, K).sum(1)
            )
        ),
        "the sums are of K cosines: nothing is divided by K": foreground(
            lambda p, n, t: F.softplus((n.sum() - p.sum()) / t / len(p))
        ),
        "the negatives have ONE sum: here each class has an exp of its own": (
            lambda fg, P, cls, K, tau: (lambda s: s.logsumexp(0) - s[cls])(
                (P @ fg).view(-1, K).sum(1) / tau
            )
        ),
    },
    points=3,
    gradient="fg",
    only={
        "not for a small tau: take tau as it is; where e^(s / tau) is too large or too small for a "
        "float nothing is left to divide, and softplus(b - a) needs no e^(s / tau)": (4, 5, 6, 7)
    },
)
def check_foreground_loss(fg, prototypes, cls, K, tau):
    """L_FGS of one pair: a unit feature (D,), prototypes (S, D) of unit rows, class by class, the
    class, K and the temperature -> scalar, with a gradient for the feature. Eq. (9, 10). Right
    answer and check; notebook 03."""
    s = prototypes @ fg
    positives = torch.arange(len(s)) // K == cls
    return F.softplus((s[~positives].sum() - s[positives].sum()) / tau)


def filled(images, weight, mean):
    """The weighted part of images (P, 3, H, W), the rest of a colour (P, 3, 1, 1)."""
    return weight[:, None] * images + (1 - weight[:, None]) * mean


def mean_colour(images, weight, dims=(2, 3)):
    """The mean of images by a weight (P, H, W) over some axes."""
    w = weight[:, None].expand_as(images)
    return (w * images).sum(dims, keepdim=True) / w.sum(dims, keepdim=True)


FAINT = rand(2, 3, 4) / 50  # adds up to less than 1
FAINT[:, 1, 2] = 0.6


@exercise(
    "the mean colour of what is kept is a weighted mean over height and width, for each channel",
    inputs=[
        (rand(2, 3, 3, 5), rand(2, 3, 5)),
        (rand(3, 3, 4, 4), (rand(3, 4, 4) > 0.4).double()),
        (rand(1, 3, 2, 6, dtype=torch.float32), 0.2 + rand(1, 2, 6, dtype=torch.float32) / 2),
        (rand(2, 3, 6, 4).transpose(2, 3), rand(2, 6, 4).transpose(1, 2)),
        (rand(2, 3, 3, 4), FAINT),
    ],
    slips={
        "what is not kept is black here; it should have the mean colour of what is kept": (
            lambda images, weight: weight[:, None] * images
        ),
        "this is the mean of the whole image; only what is kept counts, by its weight": (
            lambda images, weight: filled(images, weight, images.mean((2, 3), keepdim=True))
        ),
        "the mean of weight times image is divided by the sum of the weights, not by H * W": (
            lambda images, weight: filled(
                images, weight, (weight[:, None] * images).mean((2, 3), keepdim=True)
            )
        ),
        "each patch has a mean colour of its own: this is one for the batch": (
            lambda images, weight: filled(images, weight, mean_colour(images, weight, (0, 2, 3)))
        ),
        "a colour has three channels: this is one grey for all of them": lambda images, weight: (
            filled(images, weight, mean_colour(images, weight, (1, 2, 3)))
        ),
        "kept and filled are swapped: the image stays where the weight is 1": (
            lambda images, weight: filled(images, 1 - weight, mean_colour(images, 1 - weight))
        ),
        "this fills with the colour of what is left out; what is kept gives the colour": (
            lambda images, weight: filled(images, weight, mean_colour(images, 1 - weight))
        ),
        "the colour fills only where the image is not kept: weigh it by 1 - weight": (
            lambda images, weight: weight[:, None] * images + mean_colour(images, weight)
        ),
        "a weight between 0 and 1 keeps a share: no threshold": lambda images, weight: torch.where(
            weight[:, None] > 0.5, images, mean_colour(images, weight)
        ),
        "a weight between 0 and 1 keeps a share: here it is cut to 0 or 1 first": (
            lambda images, weight: filled(
                images, (weight > 0.5).to(weight), mean_colour(images, (weight > 0.5).to(weight))
            )
        ),
        "this is the mean colour; the picture is what is kept plus the colour elsewhere": (
            lambda images, weight: mean_colour(images, weight)
        ),
        "the image is kept by its weight: here it is added whole": lambda images, weight: (
            images + (1 - weight[:, None]) * mean_colour(images, weight)
        ),
        "each patch is divided by its own sum of weights, not by that of the batch": (
            lambda images, weight: filled(
                images, weight, (weight[:, None] * images).sum((2, 3), keepdim=True) / weight.sum()
            )
        ),
        "the colour comes from the patch itself: this is grey for all": lambda images, weight: (
            filled(images, weight, 0.5)
        ),
        "weigh the pixels: this is the plain mean of all that are kept at all": (
            lambda images, weight: filled(
                images, weight, mean_colour(images, (weight > 0).double())
            )
        ),
        "a weight has no channel axis, images have one: weight[:, None]": lambda images, weight: (
            weight * images
        ),
        "the mean is over all pixels at once: this is a mean of the rows' means": (
            lambda images, weight: filled(
                images, weight, mean_colour(images, weight, 3).nan_to_num().mean(2, keepdim=True)
            )
        ),
        "the weight itself counts in the mean: here it is cut to 0 or 1 for it": (
            lambda images, weight: filled(
                images, weight, mean_colour(images, (weight >= 0.5).double())
            )
        ),
        "the colour fills 1 - weight of each pixel, not only those of weight 0": (
            lambda images, weight: torch.where(
                weight[:, None] > 0, images, mean_colour(images, weight)
            )
        ),
        "the weight counts once in the mean: here it is squared": lambda images, weight: filled(
            images,
            weight,
            (weight[:, None] ** 2 * images).sum((2, 3), keepdim=True)
            / weight.sum((1, 2))[:, None, None, None],
        ),
        "kept and filled are swapped: weight keeps the image, 1 - weight takes the colour": (
            lambda images, weight: filled(mean_colour(images, weight), weight, images)
        ),
        "the mean over height AND width: this is one for each column": lambda images, weight: (
            filled(images, weight, mean_colour(images, weight, 2).nan_to_num())
        ),
        "the mean colour, not the brightest": lambda images, weight: filled(
            images, weight, (weight[:, None] * images).amax((2, 3), keepdim=True)
        ),
        "each patch and each channel has a mean of its own: this is one number for all": (
            lambda images, weight: filled(images, weight, mean_colour(images, weight, (0, 1, 2, 3)))
        ),
    },
    points=2,
    only={
        "not where the weights add up to less than 1: a faint patch has a mean colour too": (4,),
    },
)
def check_mean_fill(images, weight):
    """The weighted part of each image (P, 3, H, W), the rest in the mean colour of that part;
    weight: (P, H, W) in [0, 1], not 0 everywhere. As matching.keep. Right answer and check;
    notebook 03."""
    return matching.keep(images, weight, "mean")


def product(features, weights):
    """The weighted sum over positions (B, U, D)."""
    return torch.einsum("buhw,bdhw->bud", weights, features)


def area(weights):
    """The sum of the weights of each map (B, U, 1)."""
    return weights.sum((2, 3))[..., None]


def pooled(features, weights):
    """The weighted mean over positions (B, U, D), zeros for a map of zeros."""
    return product(features, weights) / area(weights).clamp_min(1e-9)


STRONG = (  # a weight may be above 1
    torch.tensor([[[[0.2, 0.9, 0.4]], [[0.7, 0.1, 0.6]]]], dtype=torch.float64),
    torch.tensor([[[[3.0, 1.0, 0.5]]]], dtype=torch.float64),
)
EMPTY = rand(2, 2, 3, 4)
EMPTY[1, 0] = 0


@exercise(
    "a weighted mean: multiply, add over the positions, then divide; by the sum of what?",
    inputs=[
        (rand(2, 3, 4, 5), rand(2, 2, 4, 5)),
        (rand(1, 2, 3, 3) - 0.5, rand(1, 2, 3, 3)),
        (rand(2, 4, 3, 4), EMPTY),
        (rand(3, 5, 6, 2).transpose(2, 3), rand(3, 1, 6, 2).transpose(2, 3)),
        (rand(2, 2, 2, 2, dtype=torch.float32), rand(2, 3, 2, 2, dtype=torch.float32)),
        (rand(2, 3, 2, 4), rand(2, 2, 2, 4) / 20),  # faint: the weights add up to less than 1
        STRONG,
    ],
    slips={
        "this is the weighted sum; divide by the sum of the weights": product,
        "divide by the sum of the weights, not by the number of positions": (
            lambda features, weights: product(features, weights) / features[0, 0].numel()
        ),
        "a map of zeros gives zeros, not NaN: do not divide by 0": lambda features, weights: (
            product(features, weights) / area(weights)
        ),
        "this is the plain mean over positions: the weights are not used": (
            lambda features, weights: features.mean((2, 3))[:, None].expand(
                -1, weights.shape[1], -1
            )
        ),
        "each map is divided by its own sum, not by that of the whole batch": (
            lambda features, weights: product(features, weights) / weights.sum()
        ),
        "each map is divided by its own sum, not by that of all maps of its patch": (
            lambda features, weights: (
                product(features, weights) / weights.sum((1, 2, 3))[:, None, None]
            )
        ),
        "one row for each map, one column for each feature: (B, U, D), not (B, D, U)": (
            lambda features, weights: pooled(features, weights).mT
        ),
        "this takes the highest value; masked pooling is a mean": lambda features, weights: (
            features[:, None] * weights[:, :, None]
        ).amax((3, 4)),
        "a weight counts as it is: no threshold": lambda features, weights: pooled(
            features, (weights > 0.5).to(weights)
        ),
        "the weights are given: no softmax over positions": lambda features, weights: product(
            features, weights.flatten(2).softmax(2).view(weights.shape)
        ),
        "a faint map is divided by its own small sum too: a clamp at 1 is too high": (
            lambda features, weights: product(features, weights) / area(weights).clamp_min(1)
        ),
        "this is the mean of the background, weighted by 1 - weight": lambda features, weights: (
            product(features, 1 - weights) / area(1 - weights)
        ),
        "a weight counts as it is: this asks only whether it is above 0": (
            lambda features, weights: pooled(features, (weights > 0).to(weights))
        ),
        "nothing is added to the sum of the weights": lambda features, weights: (
            product(features, weights) / (area(weights) + 1)
        ),
        "each map is divided by its own sum, not by that of its place over the batch": (
            lambda features, weights: (
                product(features, weights) / weights.sum((0, 2, 3))[:, None].clamp_min(1e-9)
            )
        ),
        "reshape swaps no axes: (B, D, U) must be transposed": lambda features, weights: pooled(
            features, weights
        ).mT.reshape(*weights.shape[:2], -1),
        "the mean of the features, weighted: the highest weight is no sum of weights": (
            lambda features, weights: (
                product(features, weights) / weights.amax((2, 3))[..., None].clamp_min(1e-9)
            )
        ),
        "the weights count as they are: here they are squared": lambda features, weights: pooled(
            features, weights**2
        ),
        "the features count as they are: here each position has length 1 first": (
            lambda features, weights: pooled(F.normalize(features), weights)
        ),
        "the mean as it is: here it has length 1": lambda features, weights: F.normalize(
            product(features, weights), dim=2
        ),
        "each map for itself: one map of zeros says nothing of the others of its patch": (
            lambda features, weights: (
                pooled(features, weights) * area(weights).gt(0).all(1, keepdim=True)
            )
        ),
    },
    points=3,
    gradient="weights",
    only={
        "not for a map of zeros: it gives zeros": (2,),
        "not where the weights add up to less than 1: a faint map is a mean as well": (5,),
        "not for weights above 1: they count as they are": (6,),
    },
)
def check_masked_pooling(features, weights):
    """Masked average pooling: features (B, D, h, w) and weights (B, U, h, w) >= 0 -> (B, U, D),
    zeros for a map of zeros, with a gradient for the weights. As maps.masked_average of one level.
    Right answer and check; notebook 03."""
    return kernels.masked_average([features], weights)


rng = np.random.default_rng(0)


def ranks(tie, turn=1):
    """AUC with another worth of a tie, or of the order turned round."""

    def auc(scores, inside):
        gap = turn * (scores[inside][:, None] - scores[~inside])
        return (gap > 0).mean() + tie * (gap == 0).mean()

    return auc


@exercise(
    "for every pair of a position inside and one outside: does the first score higher?",
    inputs=[
        (np.array([3.0, 1.0, 2.0, 2.0, 0.0]), np.array([True, False, True, False, False])),
        (rng.normal(size=12), rng.random(12) < 0.4),
        (rng.integers(0, 4, 30) - 1.0, rng.random(30) < 0.7),  # many ties
        (np.arange(6.0)[::2], np.array([False, True, True])),
        (np.full(5, -2.0), np.array([True, True, False, False, False])),  # ties alone
        (rng.normal(size=12) * 1e-9, rng.random(12) < 0.6),  # as close as gradients
    ],
    slips={
        "a tie counts one half, not nothing": ranks(0.0),
        "a tie counts one half, not one": ranks(1.0),
        "inside and outside are swapped: this is 1 minus the AUC": ranks(0.5, -1),
        "this is a difference of means; the AUC counts pairs": lambda scores, inside: (
            scores[inside].mean() - scores[~inside].mean()
        ),
        "this counts pairs; divide by how many there are": lambda scores, inside: (
            ranks(0.5)(scores, inside) * inside.sum() * (~inside).sum()
        ),
        "no threshold is needed: this is how often score > 0 is right": lambda scores, inside: (
            (scores > 0) == inside
        ).mean(),
        "compare with every position outside: this compares with their mean alone": (
            lambda scores, inside: (scores[inside] > scores[~inside].mean()).mean()
        ),
        "divide by the pairs of inside and outside, not by all pairs of positions": (
            lambda scores, inside: (
                ranks(0.5)(scores, inside) * inside.sum() * (~inside).sum() / len(scores) ** 2
            )
        ),
        "each position inside meets each one outside, not the one of the same place in its list": (
            lambda scores, inside: np.mean(
                [float(a > b) + (a == b) / 2 for a, b in zip(scores[inside], scores[~inside])]
            )
        ),
        "inside and outside are swapped, and a tie counts one half": ranks(0.0, -1),
        "this compares two means; the AUC counts pairs": lambda scores, inside: (
            scores[inside].mean() > scores[~inside].mean()
        ),
        "this counts pairs, without ties; divide by how many there are": lambda scores, inside: (
            scores[inside][:, None] > scores[~inside]
        ).sum(),
        "compare with the positions outside only, not with all": lambda scores, inside: np.mean(
            (np.sign(scores[inside][:, None] - scores) + 1) / 2
        ),
        "this is a correlation; the AUC counts pairs": lambda scores, inside: np.corrcoef(
            scores, inside
        )[0, 1],
        "below one half is an AUC too: nothing is turned round": lambda scores, inside: max(
            ranks(0.5)(scores, inside), 1 - ranks(0.5)(scores, inside)
        ),
        "each position outside for itself: this compares with their mean": lambda scores, inside: (
            np.heaviside(scores[inside] - scores[~inside].mean(), 0.5).mean()
        ),
        "this is 2 AUC - 1; the share of pairs itself is asked": lambda scores, inside: (
            2 * ranks(0.5)(scores, inside) - 1
        ),
        "scores count with their sign: no absolute values": lambda scores, inside: ranks(0.5)(
            abs(scores), inside
        ),
    },
    points=2,
    only={
        "not where scores lie close together: only equal ones tie, nothing is rounded": (5,),
        "not where scores tie: a tie counts one half": (0, 2, 4),
    },
)
def check_auc(scores, inside):
    """The share of pairs of a position inside and one outside in which the first scores higher, a
    tie counting one half: scores (n,) float, inside (n,) bool -> float. Right answer and check;
    notebook 03."""
    return ranks(0.5)(scores, inside)


@exercise(
    "each map has its own maximum: amax over which axes, and how do its shape and the maps' fit?",
    inputs=[
        # the second map is weak
        (torch.tensor([[[0.8, 0.4], [0.2, 0.1]], [[0.25, 0.125], [0.1, 0.01]]]), 0.5),
        (rand(3, 4, 5), 0.3),
        (rand(2, 2, 2), 0.9),
        (rand(4, 6, 3).transpose(1, 2), 0.15),
        (torch.zeros(1, 2, 3), 0.5),  # every position is at the threshold
        (torch.tensor([[[0.5, 0.6], [0.9, 1.0]]]), 0.85),  # nothing near 0
    ],
    slips={
        "one maximum serves all maps, so the weak map has nothing: take each map's own": (
            lambda maps, delta: maps >= delta * maps.max()
        ),
        "a position exactly at the threshold is foreground: >=, and nothing is added to it": (
            lambda maps, delta: maps > delta * maps.amax((1, 2), keepdim=True)
        ),
        "the threshold is delta times the map's maximum, not delta itself": lambda maps, delta: (
            maps >= delta
        ),
        "the threshold is a share of the maximum, not of the mean": lambda maps, delta: (
            maps >= delta * maps.mean((1, 2), keepdim=True)
        ),
        "foreground and background are swapped: the foreground is where the map is high": (
            lambda maps, delta: maps < delta * maps.amax((1, 2), keepdim=True)
        ),
        "this keeps the map's values; the answer is yes or no for each position": (
            lambda maps, delta: maps * (maps >= delta * maps.amax((1, 2), keepdim=True))
        ),
        "the maximum is over the whole map, not row by row": lambda maps, delta: (
            maps >= delta * maps.amax(2, keepdim=True)
        ),
        "the maximum is over the whole map, not column by column": lambda maps, delta: (
            maps >= delta * maps.amax(1, keepdim=True)
        ),
        "the maximum is over the positions of a map, not over the maps": lambda maps, delta: (
            maps >= delta * maps.amax(0, keepdim=True)
        ),
        "a share of the maximum; nothing is stretched by the minimum": lambda maps, delta: (
            kernels.unit_range(maps) >= delta
        ),
        "a share of the maximum, not of the way from the minimum to it": lambda maps, delta: (
            maps
            >= maps.amin((1, 2), keepdim=True)
            + delta * (maps.amax((1, 2), keepdim=True) - maps.amin((1, 2), keepdim=True))
        ),
        "delta is an argument: this always takes one half": lambda maps, delta: (
            maps >= 0.5 * maps.amax((1, 2), keepdim=True)
        ),
        "without keepdim the maxima meet the columns: each map needs its own, (P, 1, 1)": (
            lambda maps, delta: maps >= delta * maps.amax((1, 2))
        ),
        "the foreground is where the map is high: >=, not <=": lambda maps, delta: (
            maps <= delta * maps.amax((1, 2), keepdim=True)
        ),
        "in a map of zeros every position is at the threshold, 0: multiply, do not divide": (
            lambda maps, delta: maps / maps.amax((1, 2), keepdim=True) >= delta
        ),
        "the threshold is delta times the maximum, not 1 - delta times": lambda maps, delta: (
            maps >= (1 - delta) * maps.amax((1, 2), keepdim=True)
        ),
        "this is the threshold of each map; which positions reach it?": lambda maps, delta: (
            delta * maps.amax((1, 2), keepdim=True)
        ),
        "a share of the maximum, not of the positions: this is a quantile": lambda maps, delta: (
            maps >= maps.flatten(1).quantile(delta, dim=1)[:, None, None].to(maps)
        ),
        "a share of the maximum: multiply by delta, do not take it off": lambda maps, delta: (
            maps >= maps.amax((1, 2), keepdim=True) - delta
        ),
        "each map has its own maximum: this takes that of the first": lambda maps, delta: (
            maps >= delta * maps[0].max()
        ),
    },
    points=2,
    only={
        "not for a map of zeros: all its positions are at the threshold, 0": (4,),
    },
)
def check_adaptive_threshold(maps, delta):
    """The foreground of each map (P, h, w) in [0, 1]: True where it is at least delta of its own
    maximum, as matching.pool_foreground. Eq. (4). Right answer and check; notebook 03."""
    return matching.pool_foreground(maps, delta)
