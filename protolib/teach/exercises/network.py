"""Exercises of notebooks 04 and 05: maps, masks, the segmentation network and its loss."""

import torch
import torch.nn.functional as F

from protolib import maps as kernels
from protolib import segmentation
from protolib.teach.exercises.judge import exercise

generator = torch.Generator().manual_seed(0)


def randn(*shape, dtype=torch.float64):
    """Normal draws."""
    return torch.randn(shape, generator=generator, dtype=dtype)


def draws(high, *shape):
    """Whole numbers 0..high - 1."""
    return torch.randint(high, shape, generator=generator)


unit = F.normalize  # of length 1 along axis 1
DOTS = "bdhw,sd->bshw"


@exercise(
    "a cosine is a product of two vectors of length 1; along which axis is a position's vector?",
    inputs=[
        (randn(2, 3, 4, 5), randn(6, 3)),
        (randn(1, 4, 4, 4), 5 * randn(4, 4)),
        (randn(3, 8, 2, 3, dtype=torch.float32), randn(2, 8, dtype=torch.float32)),
        (randn(2, 5, 6, 3).transpose(1, 3), randn(3, 4).T),  # not contiguous
        (0.05 * randn(2, 3, 2, 4), 0.05 * randn(5, 3)),  # short vectors
    ],
    slips={
        "both have lengths of their own: divide positions and prototypes by them": (
            lambda features, prototypes: torch.einsum(DOTS, features, prototypes)
        ),
        "the prototypes still have their own length": lambda features, prototypes: torch.einsum(
            DOTS, unit(features), prototypes
        ),
        "the positions still have their own length": lambda features, prototypes: torch.einsum(
            DOTS, features, unit(prototypes)
        ),
        "a position's vector lies along axis 1; here length is taken along the width": (
            lambda features, prototypes: torch.einsum(
                DOTS, F.normalize(features, dim=3), unit(prototypes)
            )
        ),
        "a position's vector lies along axis 1; here length is taken over the positions": (
            lambda features, prototypes: torch.einsum(
                DOTS, features / features.flatten(2).norm(dim=2)[..., None, None], unit(prototypes)
            )
        ),
        "the length of a prototype is along axis 1; this divides columns": (
            lambda features, prototypes: torch.einsum(
                DOTS, unit(features), F.normalize(prototypes, dim=0)
            )
        ),
        "this is the distance; the cosine is asked": lambda features, prototypes: (
            1 - torch.einsum(DOTS, unit(features), unit(prototypes))
        ),
        "the maps of the prototypes are axis 1: (B, S, h, w), not (B, h, w, S)": (
            lambda features, prototypes: torch.einsum(
                "bdhw,sd->bhws", unit(features), unit(prototypes)
            )
        ),
        "reshape does not move axes: (B, D, h, w) must be permuted before D can be last": (
            lambda features, prototypes: (
                (unit(features.reshape(-1, features.shape[1])) @ unit(prototypes).T)
                .view(len(features), *features.shape[2:], -1)
                .permute(0, 3, 1, 2)
            )
        ),
        "(B, h * w, S) has to be transposed before it is shaped to (B, S, h, w)": (
            lambda features, prototypes: (
                unit(features).flatten(2).mT @ unit(prototypes).T
            ).reshape(len(features), -1, *features.shape[2:])
        ),
        "this pools over the positions; one cosine for each of them is asked": (
            lambda features, prototypes: unit(features.mean((2, 3))) @ unit(prototypes).T
        ),
        "a cosine may be negative: nothing is cut at 0": lambda features, prototypes: torch.einsum(
            DOTS, unit(features), unit(prototypes)
        ).relu(),
        "each position has its own length; this divides by the length of the whole": (
            lambda features, prototypes: (
                torch.einsum(DOTS, features, prototypes) / (features.norm() * prototypes.norm())
            )
        ),
        "each position has its own length; this divides each patch by one": (
            lambda features, prototypes: torch.einsum(
                DOTS, features / features.flatten(1).norm(dim=1).view(-1, 1, 1, 1), unit(prototypes)
            )
        ),
        "each patch has its own maps: here those of the first serve all": (
            lambda features, prototypes: torch.einsum(
                DOTS, unit(features[:1]).expand_as(features), unit(prototypes)
            )
        ),
        "a cosine goes from -1 to 1: nothing is moved to 0..1": lambda features, prototypes: (
            torch.einsum(DOTS, unit(features), unit(prototypes)) / 2 + 0.5
        ),
        "each cosine for itself: no softmax over the prototypes": lambda features, prototypes: (
            torch.einsum(DOTS, unit(features), unit(prototypes)).softmax(1)
        ),
        "divide by the length, the root of the sum of squares, not by the sum of squares": (
            lambda features, prototypes: torch.einsum(
                DOTS, features / features.pow(2).sum(1, keepdim=True), unit(prototypes)
            )
        ),
        "the length is the root of the sum of squares, not the sum of absolute values": (
            lambda features, prototypes: torch.einsum(
                DOTS, F.normalize(features, p=1), F.normalize(prototypes, p=1)
            )
        ),
        "a cosine has a sign: no absolute value": lambda features, prototypes: torch.einsum(
            DOTS, unit(features), unit(prototypes)
        ).abs(),
    },
    points=2,
    only={
        "not for short vectors: an epsilon must stay far below their length": (4,),
    },
)
def check_cosine_maps(features, prototypes):
    """The cosine of every position with every prototype: features (B, D, h, w), prototypes (S, D),
    of any length -> (B, S, h, w). As maps.cosine_maps; Eq. (2). Right answer and check; notebook
    04."""
    return kernels.cosine_maps(features, prototypes)


@exercise(
    "the S = C * K maps stand class by class; which K of them belong to class 0, which to class 1?",
    inputs=[
        (randn(2, 6, 3, 4), 3),
        (randn(1, 6, 2, 2), 2),
        (randn(3, 4, 5, 1, dtype=torch.float32), 2),
        (randn(2, 3, 4, 6).transpose(1, 3), 3),  # not contiguous
        (randn(2, 3, 2, 5), 1),
        (randn(1, 20, 2, 2), 5),
    ],
    slips={
        "neighbours belong together: the first K maps are class 0; here every Cth is taken": (
            lambda maps, K: maps.unflatten(1, (K, -1)).mean(1)
        ),
        "the mean over the K sub-classes, not their maximum": lambda maps, K: maps.unflatten(
            1, (-1, K)
        ).amax(2),
        "this is the sum; divide by K": lambda maps, K: maps.unflatten(1, (-1, K)).sum(2),
        "this is the first sub-class of each class; take the mean of all K": lambda maps, K: maps[
            :, ::K
        ],
        "this merges softly, by softmax, as the released code does at test; the mean is asked": (
            lambda maps, K: (
                maps.unflatten(1, (-1, K)).softmax(2) * maps.unflatten(1, (-1, K))
            ).sum(2)
        ),
        "each class has a map of its own: this is the mean of all S": lambda maps, K: maps.mean(
            1, keepdim=True
        ),
        "the maps keep their positions: this takes the mean over them as well": lambda maps, K: (
            maps.unflatten(1, (-1, K)).mean((2, 3, 4))
        ),
        "the classes are axis 1: here they are merged and the sub-classes are left": (
            lambda maps, K: maps.unflatten(1, (-1, K)).mean(1)
        ),
        "the mean, not the median": lambda maps, K: maps.unflatten(1, (-1, K)).median(2).values,
        "these are the first C maps: maps of one class stand side by side": lambda maps, K: maps[
            :, : maps.shape[1] // K
        ],
        "here S is taken apart as K times C; it is C times K": lambda maps, K: maps.unflatten(
            1, (K, -1)
        ).mean(2),
        "this is the mean of the first class; every class has one": lambda maps, K: maps[
            :, :K
        ].mean(1, keepdim=True),
        "K is an argument: this takes 3": lambda maps, K: maps.unfold(1, 3, 3).mean(-1),
        "K is an argument: this takes 2": lambda maps, K: maps.unfold(1, 2, 2).mean(-1),
        "divide by K, the number of sub-classes, not by the number of classes": lambda maps, K: (
            maps.unflatten(1, (-1, K)).sum(2) * K / maps.shape[1]
        ),
        "the mean over the K sub-classes, not their minimum": lambda maps, K: maps.unflatten(
            1, (-1, K)
        ).amin(2),
        "this is the last sub-class of each class; take the mean of all K": lambda maps, K: maps[
            :, K - 1 :: K
        ],
        "a map may be negative: nothing is cut at 0": lambda maps, K: (
            maps.relu().unflatten(1, (-1, K)).mean(2)
        ),
        "class c begins at map c * K: here the classes overlap": lambda maps, K: maps.unfold(
            1, K, 1
        ).mean(-1)[:, : maps.shape[1] // K],
        "a slice stops before its end: maps c * K to c * K + K": lambda maps, K: maps.unflatten(
            1, (-1, K)
        )[:, :, : max(K - 1, 1)].mean(2),
    },
)
def check_merge_subclasses(maps, K):
    """The mean over the K sub-classes of each class: (B, S, h, w), class by class -> (B, C, h, w).
    As maps.merge_subclasses; Eq. (2). Right answer and check; notebook 04."""
    return kernels.merge_subclasses(maps, (K,) * (maps.shape[1] // K), "mean")


def fused(maps, weights, size, **how):
    """Weighted sum of levels with another way to enlarge."""
    how = {"mode": "bilinear"} | how
    return sum(w * F.interpolate(m, size, **how) for w, m in zip(weights, maps))


@exercise(
    "one level at a time: enlarge it, weigh it; how do the levels come together?",
    inputs=[
        ([randn(2, 3, 4, 6), randn(2, 3, 2, 3)], (0.25, 0.5), (5, 7)),
        ([randn(1, 2, 4, 4), randn(1, 2, 2, 2), randn(1, 2, 1, 1)], (0.2, 0.7, 0.4), (8, 8)),
        ([randn(1, 1, 3, 2, dtype=torch.float32)], (0.3,), (6, 2)),
        ([randn(2, 2, 5, 3).transpose(2, 3), randn(2, 2, 2, 2)], [-1.0, 0.6], (4, 9)),
        ([randn(1, 2, n, n) for n in (6, 5, 4, 3, 2)], (0.1, 0.2, 0.3, 0.4, 0.5), (7, 6)),
    ],
    slips={
        "every level has its weight: multiply before you add": lambda maps, weights, size: fused(
            maps, [1] * len(maps), size
        ),
        "add the weighted levels; do not divide by their number": lambda maps, weights, size: (
            fused(maps, weights, size) / len(maps)
        ),
        "add the weighted levels; do not divide by the sum of the weights": (
            lambda maps, weights, size: fused(maps, weights, size) / sum(weights)
        ),
        "the weights are in the order of the levels, finest first": lambda maps, weights, size: (
            fused(maps, weights[::-1], size)
        ),
        "enlarge with mode='bilinear': the nearest position gives blocks": (
            lambda maps, weights, size: fused(maps, weights, size, mode="nearest")
        ),
        "mode='bicubic' overshoots; 'bilinear' is asked": lambda maps, weights, size: fused(
            maps, weights, size, mode="bicubic"
        ),
        "leave align_corners at False: a position is an area, not a point": (
            lambda maps, weights, size: fused(maps, weights, size, align_corners=True)
        ),
        "size is (height, width): here they are swapped": lambda maps, weights, size: fused(
            maps, weights, size[::-1]
        ),
        "size is an argument: here the maps are brought to that of the finest level": (
            lambda maps, weights, size: fused(maps, weights, tuple(maps[0].shape[2:]))
        ),
        "all levels count: this is the finest alone": lambda maps, weights, size: fused(
            maps[:1], weights[:1], size
        ),
        "all levels count: this is the deepest alone": lambda maps, weights, size: fused(
            maps[-1:], weights[-1:], size
        ),
        "each level goes to size at once: by way of the finest level it is smoothed twice": (
            lambda maps, weights, size: fused([fused(maps, weights, maps[0].shape[2:])], [1], size)
        ),
        "add the levels; this takes the highest of them": lambda maps, weights, size: torch.stack(
            [fused([m], [w], size) for m, w in zip(maps, weights)]
        ).amax(0),
        "add the levels, do not lay them side by side": lambda maps, weights, size: torch.cat(
            [fused([m], [w], size) for m, w in zip(maps, weights)], 1
        ),
        "all levels count, by their weights: this is the finest alone": (
            lambda maps, weights, size: fused(maps[:1], [1], size)
        ),
        "the weights count as they are: no softmax": lambda maps, weights, size: fused(
            maps, torch.tensor(weights, dtype=maps[0].dtype).softmax(0), size
        ),
        "size is height AND width: this makes a square": lambda maps, weights, size: fused(
            maps, weights, (size[0], size[0])
        ),
        "every level has its own weight: here the first serves all": lambda maps, weights, size: (
            fused(maps, [weights[0]] * len(maps), size)
        ),
        "the finest level has a weight too": lambda maps, weights, size: fused(
            maps, [1, *weights[1:]], size
        ),
        "a weighted sum, not a plain mean: multiply each level by its weight": (
            lambda maps, weights, size: fused(maps, [1 / len(maps)] * len(maps), size)
        ),
    },
    points=2,
    only={
        "not for five levels: as many as the list holds": (4,),
    },
)
def check_fuse_levels(maps, weights, size):
    """The weighted sum over L levels of class maps (B, C, h_i, w_i), finest first, each enlarged to
    size (H, W) px by bilinear interpolation: (B, C, H, W). As maps.fuse; Eq. (3). Right answer and
    check; notebook 04."""
    return kernels.fuse(maps, weights, size)


LABELS = torch.tensor([[1, 0, 1], [0, 1, 0]])


def opened(labels):
    """Labels with every class in place of none, (B, C, 1, 1)."""
    labels = labels.int()
    return torch.where(labels.any(1, keepdim=True), labels, 1)[:, :, None, None]


@exercise(
    "what could an absent class score so that it never wins, even where all others are negative?",
    inputs=[
        (randn(2, 3, 2, 4) - 1, LABELS),
        (randn(3, 4, 3, 3), (randn(3, 4) > 0).float()),
        (randn(1, 2, 2, 3), torch.tensor([[0, 0]])),  # no class at all: nothing is closed
        (randn(2, 3, 5, 2).transpose(2, 3) - 20, LABELS.bool()),
        (1e6 * randn(2, 3, 3, 4, dtype=torch.float32) - 1e7, LABELS),
        (randn(3, 3, 2, 3) - 1, torch.tensor([[0, 1, 0], [0, 0, 0], [1, 0, 1]])),  # one closes none
        (randn(2, 4, 3, 2) - 1, torch.tensor([[1, 0, 0, 1], [0, 0, 0, 1]])),  # two are nowhere
        # the lowest score of all is of the class that is there
        (torch.tensor([[[[3.0, 3.0]], [[-5.0, 2.0]]]]), torch.tensor([[0, 1]])),
    ],
    slips={
        "the label closes the classes that it says are absent: here they can win": (
            lambda scores, labels: scores.argmax(1)
        ),
        "a score of 0 still wins where all others are negative: an absent class needs -inf": (
            lambda scores, labels: (scores * labels[:, :, None, None]).argmax(1)
        ),
        "a label without any class closes nothing: every pixel must get a class": (
            lambda scores, labels: scores.masked_fill(
                (labels == 0)[:, :, None, None], -torch.inf
            ).argmax(1)
        ),
        "adding the label lifts present classes by 1 only: an absent one may still win": (
            lambda scores, labels: (scores + labels[:, :, None, None]).argmax(1)
        ),
        "these are the highest scores; which class has it?": lambda scores, labels: (
            scores.masked_fill((labels == 0)[:, :, None, None], -torch.inf).amax(1)
        ),
        "the classes are axis 1, the images axis 0": lambda scores, labels: scores.masked_fill(
            (labels == 0)[:, :, None, None], -torch.inf
        ).argmax(0),
        "each image has its own label: here the first one serves all": lambda scores, labels: (
            scores.masked_fill((labels[:1] == 0)[:, :, None, None], -torch.inf).argmax(1)
        ),
        "a large penalty is not large enough for any score: -inf is": lambda scores, labels: (
            scores - 10.0 * (labels == 0)[:, :, None, None]
        ).argmax(1),
        "this closes the classes that are PRESENT": lambda scores, labels: kernels.gate(
            scores, 1 - labels.int()
        ).argmax(1),
        "the strongest class, not the weakest": lambda scores, labels: kernels.gate(
            -scores, labels.int()
        ).argmax(1),
        "one class per pixel: this is one per image": lambda scores, labels: (
            kernels.gate(scores, labels.int()).mean((2, 3)).argmax(1)
        ),
        "a probability may be 0 as well, then absent classes tie with it: -inf before the argmax": (
            lambda scores, labels: (scores.softmax(1) * labels[:, :, None, None]).argmax(1)
        ),
        "times the label an absent class has 0, which wins over what is negative: give it -inf": (
            lambda scores, labels: (scores * opened(labels)).argmax(1)
        ),
        "softmax gives 0 to what is far behind, and then absent classes tie with it: -inf": (
            lambda scores, labels: (scores.softmax(1) * opened(labels)).argmax(1)
        ),
        "each image has its own label: this closes all by that of the first": (
            lambda scores, labels: scores.masked_fill(opened(labels[:1]) == 0, -torch.inf).argmax(1)
        ),
        "scores compare as they are: a class that is stretched to 0..1 no longer does": (
            lambda scores, labels: (kernels.unit_range(scores) * opened(labels)).argmax(1)
        ),
        "an image without any class closes nothing, also beside others that close some": (
            lambda scores, labels: scores.masked_fill(
                (labels == 0)[:, :, None, None] & labels.any(), -torch.inf
            ).argmax(1)
        ),
        "these are the closed scores; which class is the strongest?": lambda scores, labels: (
            scores.masked_fill((labels == 0)[:, :, None, None], -torch.inf)
        ),
        "each image has its own label: this opens what any image of the batch shows": (
            lambda scores, labels: scores.masked_fill(
                (labels == 0).all(0)[:, None, None] & labels.any(), -torch.inf
            ).argmax(1)
        ),
        "the index among all C classes, not among those of the label": lambda scores, labels: (
            torch.stack([s[y[:, 0, 0] > 0].argmax(0) for s, y in zip(scores, opened(labels))])
        ),
        "a label of zeros closes nothing: here its pixels are given to no class": (
            lambda scores, labels: torch.where(
                labels.any(1)[:, None, None],
                kernels.gate(scores, labels.int()).argmax(1),
                scores.shape[1],
            )
        ),
        "the strongest of the label's classes: a pixel that another one wins is not given up": (
            lambda scores, labels: torch.where(
                opened(labels).expand_as(scores).gather(1, scores.argmax(1)[:, None])[:, 0] > 0,
                scores.argmax(1),
                scores.shape[1],
            )
        ),
        "each pixel has its own strongest class: this is the strongest of the image": (
            lambda scores, labels: (
                kernels.gate(scores, labels.int()).mean((2, 3)).argmax(1)[:, None, None]
            ).expand(-1, *scores.shape[2:])
        ),
    },
    points=2,
    only={
        "not for every score: nothing but -inf keeps an absent class below the others": (4, 7),
        "not for a label of zeros: it closes nothing": (2, 5),
    },
)
def check_closed_masks(scores, labels):
    """The strongest class of each pixel among those of the image label: scores (B, C, H, W) of any
    sign, labels (B, C) 0 or 1 -> (B, H, W); a label of zeros closes nothing. As maps.argmax_masks.
    Right answer and check; notebook 04."""
    return kernels.argmax_masks(scores, labels.int())


def branches(features, weights, biases, rates, pads=None):
    """The outputs of dilated 3 x 3 convolutions."""
    return [
        F.conv2d(features, w, b, padding=pad, dilation=rate)
        for w, b, rate, pad in zip(weights, biases, rates, pads or rates)
    ]


def kernels_of(n, C, D):
    """n kernels (C, D, 3, 3) and n biases (C,)."""
    return [randn(C, D, 3, 3) for _ in range(n)], [randn(C) for _ in range(n)]


@exercise(
    "one branch is F.conv2d with its own dilation; which padding keeps the map's size?",
    inputs=[
        (randn(2, 3, 5, 7), *kernels_of(3, 2, 3), (1, 2, 3)),
        (randn(1, 2, 4, 4), *kernels_of(2, 4, 2), (2, 6)),
        (randn(2, 2, 6, 5).transpose(2, 3), *kernels_of(4, 3, 2), (3, 1, 2, 4)),
        (randn(1, 1, 3, 3), *kernels_of(1, 1, 1), [1]),
        (randn(1, 2, 6, 6), *kernels_of(5, 2, 2), (1, 2, 3, 4, 5)),
    ],
    slips={
        "the branches are added; this is their mean": lambda x, w, b, r: (
            sum(branches(x, w, b, r)) / len(w)
        ),
        "the branches are added, not laid side by side": lambda x, w, b, r: torch.cat(
            branches(x, w, b, r), 1
        ),
        "all branches count: this is the first": lambda x, w, b, r: branches(x, w, b, r)[0],
        "all branches count: this is the last": lambda x, w, b, r: branches(x, w, b, r)[-1],
        "each branch has its dilation: here all are 1": lambda x, w, b, r: sum(
            branches(x, w, b, [1] * len(w))
        ),
        "each branch has its dilation: here the first one serves all": lambda x, w, b, r: sum(
            branches(x, w, b, [r[0]] * len(w))
        ),
        "the biases are left out": lambda x, w, b, r: sum(branches(x, w, [None] * len(w), r)),
        "each branch adds its own bias: here only the first does": lambda x, w, b, r: sum(
            branches(x, w, [b[0], *[None] * (len(w) - 1)], r)
        ),
        "no ReLU: the sum of the branches is the logits": lambda x, w, b, r: sum(
            branches(x, w, b, r)
        ).relu(),
        "no ReLU in a branch: their plain sum is the logits": lambda x, w, b, r: sum(
            branch.relu() for branch in branches(x, w, b, r)
        ),
        "the branches stand side by side: here each reads what all before it made together": (
            lambda x, w, b, r: sum(branches(x, w, b, r)) * len(w)
        ),
        "rates and branches belong together in their order": lambda x, w, b, r: sum(
            branches(x, w, b, list(r)[::-1])
        ),
        "the branches are added; this takes the highest of them": lambda x, w, b, r: torch.stack(
            branches(x, w, b, r)
        ).amax(0),
        "without dilation a branch reads neighbours: F.conv2d(..., dilation=rate)": (
            lambda x, w, b, r: sum(F.conv2d(x, w[i], b[i], padding=k) for i, k in enumerate(r))
        ),
        "without padding the maps shrink, each by another width: padding=rate": lambda x, w, b, r: (
            sum(F.conv2d(x, w[i], b[i], dilation=k) for i, k in enumerate(r))
        ),
        "a padding of 1 keeps the size for dilation 1 only: padding=rate": lambda x, w, b, r: sum(
            F.conv2d(x, w[i], b[i], padding=1, dilation=k) for i, k in enumerate(r)
        ),
        "each branch has its own weight: here the first serves all": lambda x, w, b, r: sum(
            branches(x, [w[0]] * len(w), b, r)
        ),
        "each branch has its own bias: here the first serves all": lambda x, w, b, r: sum(
            branches(x, w, [b[0]] * len(w), r)
        ),
        "all branches count: the last is missing": lambda x, w, b, r: sum(
            branches(x, w, b, r)[:-1] or branches(x, w, b, r)
        ),
        "rates and branches belong together: nothing is sorted": lambda x, w, b, r: sum(
            branches(x, w, b, sorted(r))
        ),
        "the rates are an argument: these are 6, 12, 18, 24": lambda x, w, b, r: sum(
            branches(x, w, b, [6, 12, 18, 24])
        ),
        "F.conv2d takes the kernel as it is: nothing is turned round": lambda x, w, b, r: sum(
            branches(x, [kernel.flip(2, 3) for kernel in w], b, r)
        ),
        "conv2d's own padding is of zeros: here the border is repeated": lambda x, w, b, r: sum(
            F.conv2d(F.pad(x, (k,) * 4, mode="replicate"), w[i], b[i], dilation=k)
            for i, k in enumerate(r)
        ),
        "all branches count: the first is missing": lambda x, w, b, r: sum(
            branches(x, w, b, r)[1:] or branches(x, w, b, r)
        ),
        "each bias is added once: conv2d has added it": lambda x, w, b, r: (
            sum(branches(x, w, b, r)) + torch.stack(list(b)).sum(0)[:, None, None]
        ),
    },
    points=2,
    only={
        "not for five branches: as many as the lists hold": (4,),
        "not for a single branch": (3,),
    },
)
def check_atrous_sum(features, weights, biases, rates):
    """DeepLab-v2's sum of branches: 3 x 3 convolutions of features (B, D, h, w) with n weights
    (C, D, 3, 3), n biases (C,) and n dilations, added: (B, C, h, w). As segmentation.DeepLabV2.
    Right answer and check; notebook 05."""
    return sum(branches(features, weights, biases, rates))


def cross_entropy(logits, masks, **how):
    """Cross-entropy with index C left out."""
    return F.cross_entropy(logits, masks, ignore_index=logits.shape[1], **how)


def judged(logits, masks):
    """Which pixels are judged."""
    return masks < logits.shape[1]


@exercise(
    "the loss of each pixel that is judged, added up; and divided by how many of which pixels?",
    inputs=[
        (2 * randn(2, 3, 2, 4), draws(4, 2, 2, 4)),
        (randn(3, 2, 3, 3), draws(3, 3, 3, 3)),
        (randn(1, 4, 2, 5), torch.full((1, 2, 5), 4)),  # nothing is judged
        (randn(2, 3, 5, 2).transpose(2, 3), draws(4, 2, 5, 2).transpose(1, 2)),
        (20000 * randn(1, 3, 2, 2), draws(3, 1, 2, 2)),  # exp overflows
    ],
    slips={
        "where no pixel is judged the loss is 0, not NaN": cross_entropy,
        "this is the sum; divide by the number of judged pixels": lambda logits, masks: (
            cross_entropy(logits, masks, reduction="sum")
        ),
        "divide by the number of judged pixels, not of all": lambda logits, masks: (
            cross_entropy(logits, masks, reduction="sum") / masks.numel()
        ),
        "this is the mean probability; minus its logarithm is asked": lambda logits, masks: (
            (
                logits.softmax(1).gather(1, masks.clamp_max(logits.shape[1] - 1)[:, None])[:, 0]
                * judged(logits, masks)
            ).sum()
            / judged(logits, masks).sum().clamp_min(1)
        ),
        "logits go in, not probabilities: softmax is in cross_entropy already": (
            lambda logits, masks: (
                cross_entropy(logits.softmax(1), masks, reduction="sum")
                / judged(logits, masks).sum().clamp_min(1)
            )
        ),
        "an ignored pixel is no pixel of the last class: leave it out": lambda logits, masks: (
            F.cross_entropy(logits, masks.clamp_max(logits.shape[1] - 1))
        ),
        "an ignored pixel is no pixel of class 0: leave it out": lambda logits, masks: (
            F.cross_entropy(logits, masks * judged(logits, masks))
        ),
        "one number for the batch: this is one for each pixel": lambda logits, masks: cross_entropy(
            logits, masks, reduction="none"
        ),
        "the mean is over all judged pixels of the batch, not image by image": (
            lambda logits, masks: torch.stack(
                [
                    cross_entropy(z[None], m[None], reduction="sum")
                    / judged(z[None], m[None]).sum().clamp_min(1)
                    for z, m in zip(logits, masks)
                ]
            ).mean()
        ),
        "the sign: a loss is not negative; minus the logarithm": lambda logits, masks: (
            -cross_entropy(logits, masks, reduction="sum")
            / judged(logits, masks).sum().clamp_min(1)
        ),
        "right, until exp overflows: log_softmax takes the logarithm before it can": (
            lambda logits, masks: (
                -(
                    (logits.exp() / logits.exp().sum(1, keepdim=True))
                    .log()
                    .gather(1, masks.clamp_max(logits.shape[1] - 1)[:, None])[:, 0]
                )
                .where(judged(logits, masks), torch.zeros((), dtype=logits.dtype))
                .sum()
                / judged(logits, masks).sum().clamp_min(1)
            )
        ),
        "index C is no class for cross_entropy: ignore_index=C drops it": lambda logits, masks: (
            F.cross_entropy(logits, masks)
        ),
        "reshape does not move axes: (B, C, H, W) must be permuted before C can be last": (
            lambda logits, masks: (
                cross_entropy(logits.reshape(-1, logits.shape[1]), masks.flatten(), reduction="sum")
                / judged(logits, masks).sum().clamp_min(1)
            )
        ),
        "every judged pixel counts the same: here every class does": lambda logits, masks: (
            torch.stack(
                [
                    cross_entropy(logits, masks, reduction="none")[masks == c].mean()
                    for c in masks[judged(logits, masks)].unique()
                ]
                or [logits.sum() * 0]
            ).mean()
        ),
        "nothing is added to the number of judged pixels": lambda logits, masks: (
            cross_entropy(logits, masks, reduction="sum") / (judged(logits, masks).sum() + 1)
        ),
        "divide by the number of judged pixels, not of images": lambda logits, masks: (
            cross_entropy(logits, masks, reduction="sum") / len(logits)
        ),
        "class 0 is judged as well: only index C is left out": lambda logits, masks: (
            cross_entropy(logits, masks, reduction="none")[
                (masks > 0) & judged(logits, masks)
            ].sum()
            / ((masks > 0) & judged(logits, masks)).sum().clamp_min(1)
        ),
        "all judged pixels count: here only those that are wrong": lambda logits, masks: (
            lambda there: (
                cross_entropy(logits, masks, reduction="none")[there].sum()
                / there.sum().clamp_min(1)
            )
        )(judged(logits, masks) & (logits.argmax(1) != masks)),
        "nll_loss takes the LOGARITHM of probabilities: log_softmax": lambda logits, masks: (
            F.nll_loss(logits.softmax(1), masks, ignore_index=logits.shape[1], reduction="sum")
            / judged(logits, masks).sum().clamp_min(1)
        ),
    },
    points=3,
    gradient="logits",
    only={
        "not where logits are large: softmax gives 0, and an epsilon or a clamp only hides it: "
        "log_softmax": (4,),
        "not where no pixel is judged: the loss is 0 there": (2,),
    },
)
def check_pixel_loss(logits, masks):
    """Cross-entropy over the judged pixels: logits (B, C, H, W), masks (B, H, W) int64, C is ignore
    -> scalar, 0 where none is judged, with a gradient for the logits. As
    segmentation.segmentation_loss. Right answer and check; notebook 05."""
    return segmentation.segmentation_loss(lambda _: logits, {"image": None, "mask": masks})["loss"]


def area(scores):
    """The share of pixels that each class wins (B, C)."""
    return F.one_hot(scores.argmax(1), scores.shape[1]).double().mean((1, 2))


# a class wins a quarter, half or more
WINNERS = torch.tensor([[[0, 0], [0, 1]], [[2, 2], [1, 1]]])


@exercise(
    "which class wins a pixel? Then: what share of the pixels does each class win?",
    inputs=[
        (F.one_hot(WINNERS, 3).permute(0, 3, 1, 2) + 0.5, 0.5),
        (randn(3, 4, 3, 5), 0.2),
        (randn(1, 3, 4, 2) - 3, 0.25),
        (randn(2, 2, 6, 3).transpose(2, 3), 1 / 3),
        (randn(4, 5, 2, 2, dtype=torch.float32), 0.03),
        (randn(2, 4, 3, 4) - 9 * (torch.arange(4) == 3)[:, None, None], 0.3),  # the last wins none
    ],
    slips={
        "a class with exactly this share counts as present: >=, not >": lambda scores, share: (
            area(scores) > share
        ),
        "these are the shares; the answer is yes or no for each class": lambda scores, share: area(
            scores
        ),
        "a few pixels are not enough: compare their share with share": lambda scores, share: (
            area(scores) > 0
        ),
        "the mean of the scores is not the area: take each pixel's winner first": (
            lambda scores, share: scores.mean((2, 3)) >= share
        ),
        "rows and columns are swapped: one row per image, one column per class": (
            lambda scores, share: (area(scores) >= share).T
        ),
        "each image has its own label: this is the share over the whole batch": (
            lambda scores, share: (area(scores).mean(0) >= share).expand(len(scores), -1)
        ),
        "a score above share is no area: take each pixel's winner first": lambda scores, share: (
            (scores >= share).any(3).any(2)
        ),
        "a probability of the class over the picture is not its area: take winners first": (
            lambda scores, share: scores.double().softmax(1).mean((2, 3)) >= share
        ),
        "these are the classes that are missing": lambda scores, share: area(scores) < share,
        "a class just below share is not present: nothing is rounded down or taken off": (
            lambda scores, share: (
                area(scores) * scores[0, 0].numel() >= int(share * scores[0, 0].numel()) - 1e-9
            )
        ),
        "share is an argument: this takes one half": lambda scores, share: area(scores) >= 0.5,
        "share * H * W need not be a whole number of pixels: do not round it": (
            lambda scores, share: (
                area(scores) * scores[0, 0].numel() >= round(share * scores[0, 0].numel()) - 1e-9
            )
        ),
        "divide by height times width: an image need not be square": lambda scores, share: (
            area(scores) * scores.shape[3] / scores.shape[2] >= share
        ),
        "a share of all pixels, not of those of the strongest class": lambda scores, share: (
            area(scores) >= share * area(scores).amax(1, keepdim=True)
        ),
        "the highest score wins a pixel, it need not reach a probability of one half": (
            lambda scores, share: (scores.double().softmax(1) > 0.5).double().mean((2, 3)) >= share
        ),
        "a class wins where its score is the highest, not where it is above 0": (
            lambda scores, share: (scores > 0).double().mean((2, 3)) >= share
        ),
        "a class wins where its score is the HIGHEST": lambda scores, share: area(-scores) >= share,
        "several classes may be present, not only the strongest": lambda scores, share: (
            (area(scores) >= share) & (area(scores) == area(scores).amax(1, keepdim=True))
        ),
        "each image has its own label: here that of the first serves all": lambda scores, share: (
            area(scores[:1]) >= share
        ).expand(len(scores), -1),
    },
    points=2,
    only={
        "not where the last class wins no pixel: every class has a column": (5,),
    },
)
def check_present_classes(scores, share):
    """The image label that a mask predicts: scores (B, C, H, W), share in (0, 1] -> (B, C), whether
    a class wins at least this share of the pixels. As segmentation.present_classes. Right answer
    and check; notebook 05."""
    return area(scores) >= share
