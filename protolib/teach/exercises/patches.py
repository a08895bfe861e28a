"""Exercises of notebooks 00 and 01: labels, masks, patches."""

import re

import numpy as np

from protolib.data import regions
from protolib.teach.exercises.judge import exercise

rng = np.random.default_rng(0)


SPECK = np.zeros((40, 50), int)  # of class 0, with a single pixel of class 2
SPECK[4, 5] = 2


@exercise(
    "for one class c, ask whether the mask has any pixel of it; then do so for every class",
    inputs=[
        (np.array([[0, 0, 2], [0, 2, 4], [4, 4, 4]], np.uint8), 4),
        (rng.integers(0, 4, (2, 5)).astype(np.uint8), 3),
        (np.full((4, 3), 2), 2),  # nothing but ignore
        (np.array([[5, 3, 3], [3, 6, 5]]).T, 6),  # not contiguous, class 0 is nowhere
        (np.array([[0, 1], [1, 1]]), 5),
        (SPECK, 3),
    ],
    slips={
        "ignore is no class: the label has C digits, 0..C-1": lambda mask, C: [
            (mask == c).any() for c in range(C + 1)
        ],
        "this counts pixels; the label only says whether there is one": lambda mask, C: [
            (mask == c).sum() for c in range(C)
        ],
        "these are shares of the pixels; the label says whether there is one": lambda mask, C: [
            (mask == c).mean() for c in range(C)
        ],
        "a patch may show several classes: give a 1 to each of them, not to the largest only": (
            lambda mask, C: np.eye(C)[np.bincount(mask.ravel(), minlength=C)[:C].argmax()]
        ),
        "these are the indices of the classes; write a 1 at each of them, 0 elsewhere": (
            lambda mask, C: np.unique(mask[mask < C])
        ),
        "the number of classes is C, whatever the highest value of this mask": lambda mask, C: [
            (mask == c).any() for c in range(mask.max() + 1)
        ],
        "a class counts if ANY pixel has it, not only if all have": lambda mask, C: [
            (mask == c).all() for c in range(C)
        ],
        "this says which classes are missing: 1 stands for a class that is there": (
            lambda mask, C: [not (mask == c).any() for c in range(C)]
        ),
        "class 0 is a class too: count from 0 to C - 1, not from 1 to C": lambda mask, C: [
            (mask == c + 1).any() for c in range(C)
        ],
        "this is how many classes there are; which ones?": lambda mask, C: len(
            np.unique(mask[mask < C])
        ),
        "bincount counts what is above C - 1 as well: cut it there": lambda mask, C: (
            np.bincount(mask.ravel(), minlength=C) > 0
        ),
        "bincount ends at the highest value of this mask: minlength=C fills it with zeros": (
            lambda mask, C: np.bincount(mask.ravel())[:C] > 0
        ),
        "one pixel is enough; here two are asked": lambda mask, C: [
            (mask == c).sum() > 1 for c in range(C)
        ],
        "class 0 is a class like the others, no background": lambda mask, C: [
            c > 0 and (mask == c).any() for c in range(C)
        ],
        "the last value of np.unique is ignore only where the mask has ignore": lambda mask, C: (
            np.isin(np.arange(C), np.unique(mask)[:-1])
        ),
        "an ignored pixel is no pixel of class 0": lambda mask, C: [
            (mask % C == c).any() for c in range(C)
        ],
    },
    only={
        "not for a single pixel in a large mask: ANY pixel counts, however small its share": (5,),
    },
)
def check_image_label(mask, C):
    """The image label (C,) of 0 and 1 that a mask (H, W) implies, index C of it is ignore. Right
    answer and check; notebook 00."""
    return np.array([int((mask == c).any()) for c in range(C)])


def judged(rng, shape, C, ignore):
    """A truth with some ignored pixels, and a prediction that is half right."""
    truth, other = rng.integers(0, C, (2, *shape))
    prediction = np.where(rng.random(shape) < 0.5, truth, other)
    truth[rng.random(shape) < 0.3] = ignore
    prediction[rng.random(shape) < 0.2] = ignore
    return truth, prediction, ignore


@exercise(
    "first find the pixels that are judged, truth != ignore; everything else looks at them alone",
    inputs=[
        (np.array([[0, 1, 2], [1, 1, 2]]), np.array([[0, 1, 2], [0, 1, 1]]), 2),
        judged(rng, (3, 5), 3, 3),
        judged(rng, (2, 4, 6), 4, 255),
        tuple(m.T if isinstance(m, np.ndarray) else m for m in judged(rng, (7, 4), 2, 2)),
        (np.full((2, 3), 9), np.zeros((2, 3), int), 9),  # nothing is judged
        judged(rng, (4, 5), 4, 1),  # ignore lies among the classes
        (np.array([[0, 1, 1]]), np.array([[0, 1, 2]]), 0),  # and may be 0
        (np.array([[0, 1], [1, 0]]), np.array([[1, 0], [0, 1]]), 9),  # judged, and none is right
        (np.array([[0, 1, 2, 1]]), np.array([[0, 1, 1, 1]]), 3),  # nothing is ignored
    ],
    slips={
        "ignored pixels are neither right nor wrong: they do not count": lambda t, p, i: (
            t == p
        ).mean(),
        "divide by the number of judged pixels, not of all": lambda t, p, i: (
            (t == p) & (t != i)
        ).mean(),
        "divide by how many pixels are judged, not by how many there are": lambda t, p, i: (
            ((t == p) & (t != i)).mean() if (t != i).any() else np.nan
        ),
        "whether a pixel is judged is up to the truth alone; a prediction cannot withdraw it": (
            lambda t, p, i: (t == p)[(t != i) & (p != i)].mean()
        ),
        "the truth says what is ignored, not the prediction": lambda t, p, i: (t == p)[
            p != i
        ].mean(),
        "this is the share of wrong pixels": lambda t, p, i: (t != p)[t != i].mean(),
        "this is a number of pixels; divide by how many are judged": lambda t, p, i: (t == p)[
            t != i
        ].sum(),
        "where no pixel is judged there is no share: NaN, not 0": lambda t, p, i: (
            (t == p)[t != i].mean() if (t != i).any() else 0.0
        ),
        "where no pixel is judged there is no share: NaN, not 1": lambda t, p, i: (
            (t == p)[t != i].mean() if (t != i).any() else 1.0
        ),
        "an ignored pixel that was called ignore is no hit: it is not judged": lambda t, p, i: (
            (t == p).sum() / (t != i).sum()
        ),
        "an ignored pixel is not right, it is not judged": lambda t, p, i: (
            (t == p) | (t == i)
        ).mean(),
        "all judged pixels together; this is a mean of the rows' shares": lambda t, p, i: np.mean(
            [(a == b)[a != i].mean() for a, b in zip(t, p)]
        ),
        "ignore need not lie above the classes: truth != ignore, not truth < ignore": (
            lambda t, p, i: (t == p)[t < i].mean()
        ),
        "ignore is an argument: here the highest value of the truth is left out": lambda t, p, i: (
            t == p
        )[t != t.max()].mean(),
        "all judged pixels together; this is a mean of the classes' shares": lambda t, p, i: (
            np.mean([(p == c)[t == c].mean() for c in np.unique(t[t != i])])
        ),
    },
    only={
        "not where no pixel is judged: NaN": (4,),
        "not where ignore lies among the classes: ask for truth != ignore and nothing else": (5,),
        "not where ignore is 0: a number like any other": (6,),
        "not where every judged pixel is wrong: the share is 0 there": (7,),
    },
)
def check_accuracy(truth, prediction, ignore):
    """The share of judged pixels that are right, NaN where none is judged. Right answer and check;
    notebook 00."""
    there = truth != ignore
    return (truth == prediction)[there].mean() if there.any() else np.nan


def groups(name):
    """All bracket groups of a name, as texts."""
    return re.findall(r"\[([^\]]*)\]", name)


@exercise(
    "find the last '[' of the name and the ']' behind it; what stands between, without blanks?",
    inputs=[
        ("TCGA-A1-A0SK-DX1_xmin45749_ymin25055_MPP-0.2500+0[1101].png",),
        ("1031280-2300-27920-[1 0 0 1].png",),
        ("scan[2]_x17+0[0 1 1].png",),
        ("data [10]/set[0]/p-[01101].tif",),
        ("a[1].jpeg",),
        ("b[0000000010].png",),
        ("c[0 1 1]-level2.jp2",),  # digits behind the bracket
        ("d-[ 1  0 1 ].png",),  # blanks at the border, and two in a row
        ("e-[1 0 0 1].h5",),
        ("f-[110]",),  # no ending at all
    ],
    slips={
        "the label is the LAST bracket group of the name": lambda name: [
            int(d) for d in groups(name)[0].replace(" ", "")
        ],
        "1101 is four digits, not one number: go through the text digit by digit": lambda name: [
            int(groups(name)[-1].replace(" ", ""))
        ],
        "in the joined spelling no blank stands between the digits: split() finds one number": (
            lambda name: [int(part) for part in groups(name)[-1].split()]
        ),
        "the digits of the whole name are more than the label": lambda name: [
            int(d) for d in name if d.isdigit()
        ],
        "the digits stand in the order of the classes; this turns them round": lambda name: [
            int(d) for d in groups(name)[-1].replace(" ", "")
        ][::-1],
        "the label need not have four digits, nor the ending four letters: look for brackets": (
            lambda name: [int(d) for d in name[-9:-5] if d.isdigit()]
        ),
        "this is the sum of the digits: how many classes, not which": lambda name: groups(name)[
            -1
        ].count("1"),
        "a blank is no digit: leave blanks out": lambda name: [int(d) for d in groups(name)[-1]],
        "this is one number: go through the text digit by digit": lambda name: int(
            groups(name)[-1].replace(" ", "")
        ),
        "the whole name was searched: first cut out what stands between the last brackets": (
            lambda name: [int(d) for d in name if d in "01"]
        ),
        "these are the places of the ones; the digits themselves are asked": lambda name: [
            i for i, d in enumerate(groups(name)[-1].replace(" ", "")) if d == "1"
        ],
        "what stands behind the ] is no label: cut the name there too": lambda name: [
            int(d) for d in name[name.rindex("[") :] if d.isdigit()
        ],
        "these are characters; int() makes a number of each": lambda name: [
            d for d in groups(name)[-1] if d != " "
        ],
        "this is a text; int() makes a number of each of its digits": lambda name: groups(name)[-1],
        "every second character is right only where blanks stand between the digits": (
            lambda name: [int(d) for d in groups(name)[-1][::2]]
        ),
        "the label does not stand at a fixed place of the name: look for the brackets": (
            lambda name: [int(d) for d in name[-9:-5]]
        ),
        "from the first [ to the last ] is too much: the last [ and the ] behind it": (
            lambda name: [int(d) for d in name[name.index("[") : name.rindex("]")] if d.isdigit()]
        ),
        "a number has no leading zeros: go through the text digit by digit": lambda name: [
            int(d) for d in str(int(groups(name)[-1].replace(" ", "")))
        ],
        "other brackets may stand in the file name too, not only in its folders": lambda name: [
            int(d) for d in groups(name.split("/")[-1])[0].replace(" ", "")
        ],
        "there may be any number of digits; this stops at four": lambda name: [
            int(d) for d in groups(name)[-1].replace(" ", "")
        ][:4],
        "joined digits have no blanks between them, and two blanks in a row hold an empty text": (
            lambda name: [int(part) for part in groups(name)[-1].split(" ")]
        ),
    },
    only={
        "not where the name has other dots: cut it at the brackets": (0,),
        "not where two blanks stand in a row, or one beside a bracket": (7,),
        "not where digits stand behind the brackets": (6,),
        "not where the name ends otherwise than in .png: the brackets count, not the end": (
            3,
            4,
            6,
            8,
            9,
        ),
        "not where other brackets stand before the last": (2, 3),
        "not where there are many digits: any number of them": (3, 5),
        "not where blanks stand between the digits": (1, 2, 6, 7, 8),
        "not where the digits are joined": (0, 3, 4, 5, 9),
    },
)
def check_parse_label(name):
    """The digits of the last bracket group of a file name, as whole numbers. Right answer and
    check; notebook 01."""
    return tuple(int(digit) for digit in groups(name)[-1].replace(" ", ""))


@exercise(
    "how many classes does each row have? Then: in which rows is that number 1?",
    inputs=[
        (np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1], [0, 0, 0], [0, 1, 0]]),),
        ((rng.random((12, 4)) < 0.3).astype(np.uint8),),
        (np.array([[1, 1], [0, 0], [1, 1]]),),  # none
        ((rng.random((3, 9)) < 0.4).T,),  # of True and False, not contiguous
        (np.eye(3, dtype=np.float32),),
        # three classes or more, the same label twice, a class behind the third and the fourth
        (np.array([[1, 1, 1, 0, 0], *[[0, 0, 0, 0, 1]] * 2, [1] * 5, [0, 0, 0, 1, 0]]),),
        (np.array([[1], [0], [1]]),),  # one class in all
    ],
    slips={
        "this says yes or no for each patch; give the indices where it is yes": lambda labels: (
            labels.sum(1) == 1
        ),
        "this is how many there are; which ones?": lambda labels: (labels.sum(1) == 1).sum(),
        "a patch whose label is empty has no class at all: exactly one, not at most one": (
            lambda labels: np.flatnonzero(labels.sum(1) <= 1)
        ),
        "these patches have a class or more; exactly one is asked": lambda labels: np.flatnonzero(
            labels.sum(1) >= 1
        ),
        "sum over the classes of a patch, axis 1, not over the patches of a class": (
            lambda labels: np.flatnonzero(labels.sum(0) == 1)
        ),
        "these are the classes; the indices of the patches are asked": lambda labels: labels[
            labels.sum(1) == 1
        ].argmax(1),
        "these are the labels; the indices of their patches are asked": lambda labels: labels[
            labels.sum(1) == 1
        ],
        "nonzero gives one array for each axis: take the first, or flatnonzero": lambda labels: (
            np.stack(np.nonzero(labels.sum(1) == 1))
        ),
        "these are the mixed patches": lambda labels: np.flatnonzero(labels.sum(1) != 1),
        "in the order of the patches: here they stand class by class": lambda labels: (
            np.concatenate(
                [np.flatnonzero((labels.sum(1) == 1) & (column == 1)) for column in labels.T]
            )
        ),
        "three classes are not one: count them, an odd number is not enough": lambda labels: (
            np.flatnonzero(labels.astype(int).sum(1) % 2 == 1)
        ),
        "all classes count: this looks at the first three": lambda labels: np.flatnonzero(
            labels[:, :3].astype(int).sum(1) == 1
        ),
        "all classes count: this looks at the first four": lambda labels: np.flatnonzero(
            labels[:, :4].astype(int).sum(1) == 1
        ),
    },
)
def check_single_class(labels):
    """The indices of the patches whose label (n, C) has exactly one class. Right answer and check;
    notebook 01."""
    return np.flatnonzero(labels.astype(int).sum(1) == 1)


def density(images):
    """Optical density by the natural logarithm, (n, H, W, 3)."""
    return -np.log((images.astype(float) + 1) / 256)


# white, white, pink, purple; then white as a whole
PIXELS = np.array([[[255] * 3, [230, 225, 228]], [[240, 190, 238], [120, 60, 150]]], np.uint8)
NEAR = rng.integers(214, 226, (2, 3, 5, 3)).astype(np.uint8)  # around the limit: 220 is white


@exercise(
    "first the density of every value, as floats; then: below the limit in all three channels?",
    inputs=[
        (np.stack([PIXELS, np.full_like(PIXELS, 250)]),),
        (NEAR,),
        (rng.integers(0, 256, (3, 4, 6, 3)).astype(np.uint8).swapaxes(1, 2),),
        (np.full((1, 2, 3, 3), 255, np.uint8),),
    ],
    slips={
        "255 + 1 is 0 in uint8: turn the images to float before you add": lambda images: (
            (-np.log((images + np.uint8(1)) / 256) < regions.CLEAR).all(-1).mean((1, 2))
        ),
        "a pink pixel is clear in red and blue but not in green: ask for all three channels": (
            lambda images: (density(images) < regions.CLEAR).mean((1, 2, 3))
        ),
        "one clear channel is not white: ask for all three": lambda images: (
            (density(images) < regions.CLEAR).any(-1).mean((1, 2))
        ),
        "the mean over the channels lets clear ones hide a dark one: ask for all three": (
            lambda images: (density(images).mean(-1) < regions.CLEAR).mean((1, 2))
        ),
        "this counts pixels; divide by their number": lambda images: (
            (density(images) < regions.CLEAR).all(-1).sum((1, 2))
        ),
        "one share for each patch: take the mean over height and width only": lambda images: (
            (density(images) < regions.CLEAR).all(-1).mean()
        ),
        "this is the share of tissue; white is where the density is BELOW the limit": (
            lambda images: 1 - (density(images) < regions.CLEAR).all(-1).mean((1, 2))
        ),
        "white is where the density is below the limit in all channels, not above it in all": (
            lambda images: (density(images) > regions.CLEAR).all(-1).mean((1, 2))
        ),
        "the natural logarithm is np.log; with log10 the limit is another": lambda images: (
            (density(images) / np.log(10) < regions.CLEAR).all(-1).mean((1, 2))
        ),
        "the text says v + 1: without it 0 has no logarithm, and the limit moves": lambda images: (
            (-np.log(images / 256) < regions.CLEAR).all(-1).mean((1, 2))
        ),
        "divide by 256, not by 255": lambda images: (
            (-np.log((images + 1.0) / 255) < regions.CLEAR).all(-1).mean((1, 2))
        ),
        "each channel for itself is below the limit: here the sum of the three has to be": (
            lambda images: (density(images).sum(-1) < regions.CLEAR).mean((1, 2))
        ),
        "divide by height times width: a patch need not be square": lambda images: (
            (density(images) < regions.CLEAR).all(-1).sum((1, 2)) / images.shape[1] ** 2
        ),
        "all three channels: this looks at the first": lambda images: (
            density(images)[..., 0] < regions.CLEAR
        ).mean((1, 2)),
        "all three channels: this asks for two of them, by a median": lambda images: (
            np.median(density(images), -1) < regions.CLEAR
        ).mean((1, 2)),
        "a pixel is white in all channels at once: this multiplies the channels' own shares": (
            lambda images: (density(images) < regions.CLEAR).mean((1, 2)).prod(-1)
        ),
        "a pixel is white in all channels at once: this is the smallest of their own shares": (
            lambda images: (density(images) < regions.CLEAR).mean((1, 2)).min(-1)
        ),
        "the sign: a density is MINUS the logarithm": lambda images: (
            (-density(images) < regions.CLEAR).all(-1).mean((1, 2))
        ),
        "the channels are the last axis of (n, H, W, 3)": lambda images: (
            (density(images) < regions.CLEAR).all(1).mean((1, 2))
        ),
    },
    points=2,
)
def check_white_share(images):
    """The share of white pixels of each patch (n, H, W, 3) uint8, as regions.white_share. Right
    answer and check; notebook 01."""
    return regions.white_share(images)
