"""Exercises of notebooks 06 and 07: counting, scores, few seeds."""

import numpy as np
import torch
from scipy.special import ndtri, stdtrit

from protolib import metrics
from protolib.maps import background_score
from protolib.study import compare
from protolib.teach.exercises.judge import exercise

rng = np.random.default_rng(0)


def masks(C, *shape, outside=False, dtype=np.int64):
    """A truth and a prediction of 0..C that agree in half of the pixels, and C."""
    truth, other = rng.integers(0, C + 1, (2, *shape))
    prediction = np.where(rng.random(shape) < 0.5, truth, other)
    if outside:
        truth[rng.random(shape) < 0.3] = 255
    return truth.astype(dtype), prediction.astype(dtype), C


def counted(truth, prediction, n):
    """How often each pair of values 0..n-1 meets (n, n)."""
    matrix = np.zeros((n, n), int)
    there = (truth < n) & (prediction < n)
    np.add.at(matrix, (truth[there].astype(int), prediction[there].astype(int)), 1)
    return matrix


def crowded(truth, prediction, C):
    """Counting by truth * (C + 1) + prediction in the masks' own uint8."""
    n = truth.dtype.type(C + 1)
    pair = (truth * n + prediction)[truth <= C]
    return np.bincount(pair.ravel(), minlength=(C + 1) ** 2)[: (C + 1) ** 2].reshape(C + 1, C + 1)


@exercise(
    "one pixel adds 1 to one cell of the matrix; which row, which column?",
    inputs=[
        (np.array([[0, 0, 1], [0, 1, 2]]), np.array([[0, 1, 1], [0, 0, 1]]), 2),
        masks(3, 4, 5),
        masks(4, 2, 3, 6, outside=True),  # a batch, and true values that are in no row
        tuple(m.T if isinstance(m, np.ndarray) else m for m in masks(2, 7, 3)),
        masks(20, 9, 11, dtype=np.uint8),  # 20 * 21 is more than uint8 holds
        # a cell that is more than a short integer holds, and classes that are nowhere
        (np.zeros((260, 260), int), np.zeros((260, 260), int), 1),
        (np.array([[0, 1, 2]]), np.array([[0, 2, 2]]), 5),
        (np.array([[0, 3, 7, 2]]), np.array([[0, 1, 1, 1]]), 2),  # above C by little
    ],
    slips={
        "rows are the truth, columns the prediction; here they are swapped": lambda t, p, C: (
            counted(t, p, C + 1).T
        ),
        "ignore has a row and a column of its own: (C + 1, C + 1)": lambda t, p, C: counted(
            t, p, C
        ),
        "truth * (C + 1) + prediction needs more room than uint8 has: to int64 first": crowded,
        "count the pixels; this divides by how many there are": lambda t, p, C: (
            counted(t, p, C + 1) / t.size
        ),
        "count the pixels; this divides each row by its sum": lambda t, p, C: np.nan_to_num(
            counted(t, p, C + 1) / counted(t, p, C + 1).sum(1, keepdims=True)
        ),
        "mistakes count as well: here only the diagonal is filled": lambda t, p, C: np.diag(
            np.diag(counted(t, p, C + 1))
        ),
        "a true value outside 0..C is in no row; here it is counted as ignore": lambda t, p, C: (
            counted(np.minimum(t, C), p, C + 1)
        ),
        "a pair that occurs often counts each time; matrix[t, p] += 1 with arrays counts it once": (
            lambda t, p, C: (counted(t, p, C + 1) > 0).astype(int)
        ),
        "the row of ignore is part of the matrix; whether it is dropped is decided later": (
            lambda t, p, C: counted(t, p, C + 1) * (np.arange(C + 1) < C)[:, None]
        ),
        "row and column of ignore are part of the matrix: here both are empty": lambda t, p, C: (
            np.pad(counted(t, p, C), (0, 1))
        ),
        "a pair is counted in one cell, not in two": lambda t, p, C: (
            counted(t, p, C + 1) + counted(t, p, C + 1).T
        ),
        "both at once: true class t AND called p": lambda t, p, C: np.array(
            [[((t == i) | (p == j)).sum() for j in range(C + 1)] for i in range(C + 1)]
        ),
        "what is called ignore is counted too, in the last column": lambda t, p, C: (
            counted(t, p, C + 1) * (np.arange(C + 1) < C)
        ),
        "(C + 1, C + 1), whatever the highest value of these masks": lambda t, p, C: (
            lambda n: counted(t, p, n + 1)
        )(int(max(t[t <= C].max(), p.max()))),
    },
    points=2,
    only={
        "not for many pixels: 67600 in a cell are more than a short integer holds": (5,),
        "not where the highest classes are nowhere: (C + 1, C + 1) all the same": (5, 6),
        "not where the truth is above C, 255 or any other: such a pixel counts nowhere": (2, 7),
        "not for masks of uint8: to int64 before you multiply": (4,),
    },
)
def check_confusion(truth, prediction, C):
    """Pixels by true and predicted class: two masks of one shape, 0..C, C is ignore; a true value
    above C counts nowhere -> (C + 1, C + 1), rows truth. As metrics.confusion. Right answer and
    check; notebook 06."""
    return metrics.confusion(truth, prediction, C)


def parts(matrix):
    """Hits, true and predicted pixels of each class with ignore dropped, and predicted with it."""
    kept = matrix[:-1]
    return np.diag(kept), kept.sum(1), kept[:, :-1].sum(0), matrix[:, :-1].sum(0)


def iou(matrix):
    """IoU of each class with ignore dropped."""
    hits, truth, found, _ = parts(matrix)
    return hits / (truth + found - hits)


def confused(C):
    """A matrix without symmetry."""
    return (rng.integers(0, 50, (C + 1, C + 1)) + 40 * np.eye(C + 1)).astype(np.int64)


@exercise(
    "union = true + predicted - hits: which entries of the matrix are these, without ignore?",
    inputs=[
        # the third class is nowhere; one pixel was given to no class
        (np.array([[6, 2, 0, 1], [1, 3, 0, 0], [0, 0, 0, 0], [4, 5, 0, 0]]),),
        (confused(2),),
        (confused(4).T,),
        (np.array([[0, 3, 1], [0, 5, 0], [7, 0, 2]]),),  # never found
        (np.array([[9, 1], [2, 3]]),),  # a single class
        # the second class is called but not there, the third one called where truth is ignore
        (np.array([[6, 2, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0], [4, 5, 6, 0]]),),
    ],
    slips={
        "the last row holds pixels whose truth is ignore: drop it before you add up the columns": (
            lambda m: parts(m)[0] / (parts(m)[1] + parts(m)[3] - parts(m)[0])
        ),
        "a pixel of a class that was called nothing is a miss: keep the last COLUMN": lambda m: (
            np.diag(m)[:-1] / (m[:-1, :-1].sum(1) + m[:-1, :-1].sum(0) - np.diag(m)[:-1])
        ),
        "this is the recall, hits / truth; the union is truth + prediction - hits": lambda m: (
            parts(m)[0] / parts(m)[1]
        ),
        "this is the precision, hits / prediction; the union is truth + prediction - hits": (
            lambda m: parts(m)[0] / parts(m)[2]
        ),
        "this is Dice, 2 * hits / (truth + prediction); the union counts the hits once": lambda m: (
            2 * parts(m)[0] / (parts(m)[1] + parts(m)[2])
        ),
        "the hits are counted twice in truth + prediction: take them off once": lambda m: (
            parts(m)[0] / (parts(m)[1] + parts(m)[2])
        ),
        "a class in neither truth nor prediction has no IoU: NaN, not 0": lambda m: np.nan_to_num(
            iou(m)
        ),
        "a class in neither truth nor prediction has no IoU: NaN, not 1": lambda m: np.nan_to_num(
            iou(m), nan=1.0
        ),
        "a class that is called but not there has IoU 0: NaN is for one in neither": lambda m: (
            np.where(parts(m)[1] > 0, iou(m), np.nan)
        ),
        "ignore is no class: give the first C values only": lambda m: np.append(
            iou(m), m[-1, -1] / (m[-1].sum() + m[:, -1].sum() - m[-1, -1])
        ),
        "ignore is no class: give the first C values only, without a 0 for it": lambda m: np.append(
            iou(m), 0.0
        ),
        "one value for each class: this is their mean": lambda m: np.nanmean(iou(m)),
        "this is the share of all pixels that are hits of the class; divide by its union": (
            lambda m: parts(m)[0] / m[:-1].sum()
        ),
        "ignore is dropped, not a class: neither its row counts nor a value for it": lambda m: (
            np.diag(m) / (m.sum(0) + m.sum(1) - np.diag(m))
        ),
        "a class that is never right has IoU 0: NaN is for one in neither": lambda m: np.where(
            parts(m)[0] > 0, iou(m), np.nan
        ),
        "rows are the truth: here rows and columns are swapped": lambda m: iou(m.T),
        "called only where truth is ignore is called nowhere: NaN, not 0": lambda m: np.where(
            parts(m)[1] + parts(m)[3] > 0, np.nan_to_num(iou(m)), np.nan
        ),
        "ignore is no class: give the first C values only, without a NaN for it": lambda m: (
            np.append(iou(m), np.nan)
        ),
        "the LAST index is ignore: here the first is dropped": lambda m: iou(
            np.roll(m, -1, (0, 1))
        ),
        "take the hits off once: they are in truth and in prediction": lambda m: (
            parts(m)[0] / (parts(m)[1] + parts(m)[2] - 2 * parts(m)[0])
        ),
    },
    points=3,
    only={
        "not where a class is in neither truth nor prediction: NaN": (0, 5),
    },
)
def check_iou_from_confusion(matrix):
    """The IoU (C,) of each class with ignore dropped, from (C + 1, C + 1) counts, rows truth, the
    last index ignore; NaN for a class in neither truth nor prediction. As metrics.scores. Right
    answer and check; notebook 06."""
    return iou(matrix)


def channel(scores, power=10, best=None):
    """Scores with a channel of background behind them."""
    best = scores.amax(1, keepdim=True) if best is None else best
    return torch.cat([scores, (1 - best) ** power], 1)


def scores_of(*shape, dtype=torch.float64):
    """Scores in [0, 1], half of the pixels weak."""
    generator = torch.Generator().manual_seed(sum(shape))
    weak = torch.rand(shape[0], 1, *shape[2:], generator=generator, dtype=dtype) < 0.5
    drawn = torch.rand(shape, generator=generator, dtype=dtype)
    return torch.where(weak, drawn * 0.3, drawn)


@exercise(
    "make the background a class like the others: one more channel, then the strongest wins",
    inputs=[
        (scores_of(2, 3, 5, 7),),
        (scores_of(1, 4, 6, 6),),
        (scores_of(3, 2, 8, 4).transpose(2, 3),),
        (torch.zeros(1, 2, 2, 3),),  # nothing is there
        (scores_of(2, 5, 9, 9, dtype=torch.float32),),
        (0.02 + 0.1 * scores_of(2, 3, 4, 5),),  # faint: background everywhere
    ],
    slips={
        "background never wins: is its channel cut off, as in the released code, or too low?": (
            lambda scores: channel(scores)[:, : scores.shape[1]].argmax(1)
        ),
        "the background alone is raised, (1 - max) to the power of 10: here it wins too often": (
            lambda scores: channel(scores, 1).argmax(1)
        ),
        "the power is 10": lambda scores: channel(scores, 2).argmax(1),
        "1 - max comes first, the power after": lambda scores: torch.cat(
            [scores, 1 - scores.amax(1, keepdim=True) ** 10], 1
        ).argmax(1),
        "the highest class of each pixel: the maximum is over the classes, axis 1": lambda scores: (
            channel(
                scores, best=scores.amax((1, 2, 3), keepdim=True).expand(-1, 1, *scores.shape[2:])
            )
        ).argmax(1),
        "the highest score of a pixel, not the mean of its classes": lambda scores: channel(
            scores, best=scores.mean(1, keepdim=True)
        ).argmax(1),
        "background is index C: its channel comes last, not first": lambda scores: torch.cat(
            [background_score(scores), scores], 1
        ).argmax(1),
        "these are the scores with their background; the strongest of each pixel is asked": channel,
        "this says where background is; a mask says which class is where": lambda scores: (
            channel(scores).argmax(1) == scores.shape[1]
        ),
        "this is the score of the background alone": lambda scores: background_score(scores)[:, 0],
        "background is index C, not 255": lambda scores: torch.where(
            channel(scores).argmax(1) == scores.shape[1], 255, scores.argmax(1)
        ),
        "1 minus the highest score, not the highest of 1 - score": lambda scores: channel(
            scores, best=scores.amin(1, keepdim=True)
        ).argmax(1),
        "1 minus the HIGHEST class score, not minus their sum": lambda scores: channel(
            scores, best=scores.sum(1, keepdim=True)
        ).argmax(1),
        "background wins where it scores highest, not only where every class scores 0": (
            lambda scores: torch.where(scores.amax(1) > 0, scores.argmax(1), scores.shape[1])
        ),
        "background is index C, not -1": lambda scores: torch.where(
            channel(scores).argmax(1) == scores.shape[1], -1, scores.argmax(1)
        ),
        "1 minus the HIGHEST class score, not minus their sum, also where that is above 1": (
            lambda scores: channel(scores, best=scores.sum(1, keepdim=True).clamp_max(1)).argmax(1)
        ),
        "to the power of 10, not times 10": lambda scores: torch.cat(
            [scores, 10 * (1 - scores.amax(1, keepdim=True))], 1
        ).argmax(1),
        "1 minus the highest score, not the second": lambda scores: channel(
            scores, best=scores.sort(1).values[:, -2:-1]
        ).argmax(1),
    },
    points=2,
)
def check_background_channel(scores):
    """Masks (B, H, W) of scores (B, C, H, W) in [0, 1] where background, index C, scores
    (1 - highest class score)^10. As maps.background_score, kept. Right answer and check; notebook
    06."""
    return channel(scores).argmax(1)


def around(centre, half):
    """An interval."""
    return centre - half, centre + half


def error(ours, theirs, ddof=1):
    """The standard error of the mean difference."""
    return (ours - theirs).std(ddof=ddof) / np.sqrt(len(ours))


def t(n, share=0.975):
    """Student's t of n scores."""
    return stdtrit(n - 1, share)


@exercise(
    "the seeds are paired: take the differences first, and look at nothing but them",
    inputs=[
        (np.array([62.0, 66.5, 61.0, 70.5]), np.array([60.0, 65.0, 60.5, 66.0])),
        (rng.normal(50, 5, 3), rng.normal(52, 5, 3)),
        (rng.normal(0.7, 0.1, 9), rng.normal(0.6, 0.1, 9)),
        (rng.normal(70, 3, (6, 2))[:, 0], rng.normal(68, 3, (6, 2))[:, 1]),
    ],
    slips={
        "1.96 is for many seeds; with n of them it is t.ppf(0.975, n - 1)": lambda a, b: around(
            (a - b).mean(), 1.96 * error(a, b)
        ),
        "the mean of n differences varies less than one of them: divide by sqrt(n)": lambda a, b: (
            around((a - b).mean(), t(len(a)) * (a - b).std(ddof=1))
        ),
        "the standard error divides by sqrt(n), not by n": lambda a, b: around(
            (a - b).mean(), t(len(a)) * (a - b).std(ddof=1) / len(a)
        ),
        "the deviation of a sample divides by n - 1: std(ddof=1)": lambda a, b: around(
            (a - b).mean(), t(len(a)) * error(a, b, ddof=0)
        ),
        "n differences leave n - 1 degrees of freedom, not n": lambda a, b: around(
            (a - b).mean(), t(len(a) + 1) * error(a, b)
        ),
        "2n - 2 degrees of freedom are those of two samples; paired seeds are one of n": (
            lambda a, b: around(
                (a - b).mean(),
                t(2 * len(a) - 1) * np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / len(a)),
            )
        ),
        "95 % leaves 2.5 % on each side: the quantile is 0.975, not 0.95": lambda a, b: around(
            (a - b).mean(), t(len(a), 0.95) * error(a, b)
        ),
        "the seeds are paired: take the differences first, then their deviation": lambda a, b: (
            around((a - b).mean(), t(len(a)) * np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / len(a)))
        ),
        "the sign: ours - theirs": lambda a, b: around((b - a).mean(), t(len(a)) * error(a, b)),
        "the interval is around the mean difference, not around 0": lambda a, b: around(
            0.0, t(len(a)) * error(a, b)
        ),
        "low comes first": lambda a, b: around((a - b).mean(), t(len(a)) * error(a, b))[::-1],
        "this is the half width; the interval is the mean -+ it": lambda a, b: (
            t(len(a)) * error(a, b)
        ),
        "the error is the deviation over sqrt(n): this is the variance": lambda a, b: around(
            (a - b).mean(), t(len(a)) * (a - b).var(ddof=1) / np.sqrt(len(a))
        ),
        "this is the mean and half the width; low and high are asked": lambda a, b: (
            (a - b).mean(),
            t(len(a)) * error(a, b),
        ),
        "these are the lowest and the highest difference; the interval is of their mean": (
            lambda a, b: ((a - b).min(), (a - b).max())
        ),
        "percentiles of n differences are no interval of their mean": lambda a, b: np.percentile(
            a - b, [2.5, 97.5]
        ),
        "2n - 2 degrees of freedom are those of two samples: n differences leave n - 1": (
            lambda a, b: around((a - b).mean(), t(2 * len(a) - 1) * error(a, b))
        ),
        "the scores of one seed stay together: nothing is sorted": lambda a, b: around(
            (a - b).mean(), t(len(a)) * error(np.sort(a), np.sort(b))
        ),
        "the sign of a difference counts: no absolute values": lambda a, b: around(
            abs(a - b).mean(), t(len(a)) * error(abs(a - b), 0 * a)
        ),
        "std(ddof=1) has the n - 1 already: divide it by sqrt(n)": lambda a, b: around(
            (a - b).mean(), t(len(a)) * (a - b).std(ddof=1) / np.sqrt(len(a) - 1)
        ),
        "the interval is around the mean difference, not the median": lambda a, b: around(
            np.median(a - b), t(len(a)) * error(a, b)
        ),
        "95 % leaves 2.5 % on each side: 0.995 is for 99 %": lambda a, b: around(
            (a - b).mean(), t(len(a), 0.995) * error(a, b)
        ),
        "the deviation of the differences, not of ours alone": lambda a, b: around(
            (a - b).mean(), t(len(a)) * error(a, 0 * b)
        ),
        "t deviations to each side: this is half as wide": lambda a, b: around(
            (a - b).mean(), t(len(a)) * error(a, b) / 2
        ),
        "n differences leave n - 1 degrees of freedom, not n - 2": lambda a, b: around(
            (a - b).mean(), t(len(a) - 1) * error(a, b)
        ),
        "a normal quantile is for many seeds; with n of them it is t.ppf(0.975, n - 1)": (
            lambda a, b: around((a - b).mean(), ndtri(0.975) * error(a, b))
        ),
    },
    points=3,
)
def check_paired_interval(ours, theirs):
    """The 95 % t interval (low, high) of the mean difference of n paired scores, as compare.paired.
    Right answer and check; notebook 07."""
    found = compare.paired(ours, theirs)
    return found.low, found.high
