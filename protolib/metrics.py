"""Scores of predicted masks under a named protocol: one confusion matrix for pixels, one count of
bands for borders.

A score without its protocol says little, for two choices move it by many points: which image labels
may close classes that are absent, and what becomes of the pixels marked ignore. Masks hold classes
0..C-1 and C for ignore (white background).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

# Tensors are only asked for their methods: whoever reads scores need not wait for torch.
if TYPE_CHECKING:
    import torch

IMAGE_LABELS = {
    "predicted": "predicted image labels",
    "oracle": "oracle image labels",
    "none": "no image labels",
}
IGNORE = {"dropped": "ignore pixels dropped", "counted": "ignore pixels counted"}
SCORES = {"miou": "mIoU", "fwiou": "FwIoU", "biou": "bIoU", "dice": "Dice"}
DILATION = 0.02  # width of the boundary band, as a share of the image diagonal (Cheng et al. 2021)
CHUNK = 1 << 19  # pixels that are counted at once: memory that does not grow with the split


def _check_choice(name: str, value: str, choices: dict[str, str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} = {value!r} is unknown; expected one of {', '.join(choices)}")


@dataclass(frozen=True)
class Protocol:
    """The two choices behind every score, and their wording.

    `image_labels`: whose labels close absent classes before the argmax: "predicted" by the
    classifier, "oracle" (read off the true mask) or "none". `ignore`: "dropped" leaves ignore
    pixels out; "counted" is the rule of the released code: they stay and are false positives of the
    class predicted there. `str(protocol)` is the wording printed beside scores. Raises
    ValueError for any other value. Notebook 06.
    """

    image_labels: str = "predicted"
    ignore: str = "dropped"

    def __post_init__(self):
        _check_choice("image_labels", self.image_labels, IMAGE_LABELS)
        _check_choice("ignore", self.ignore, IGNORE)

    def __str__(self) -> str:
        return f"{IMAGE_LABELS[self.image_labels]}, {IGNORE[self.ignore]}"


DEFAULT = Protocol()
ORACLE = Protocol(image_labels="oracle")


def label_accuracy(logits: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
    """How many images have every label right, and how many labels are right, as shares in [0, 1].

    logits (B, C) float, above 0 means present; labels (B, C), 0 or 1. Notebook 06.
    """
    right = (logits > 0) == (labels > 0)
    return right.all(1).double().mean().item(), right.double().mean().item()


def confusion(truth, prediction, C: int) -> np.ndarray:
    """Count pixels by true and predicted class.

    truth, prediction: integer arrays or tensors of one shape. Returns (C+1, C+1) int64: rows truth,
    columns prediction, index C = ignore. A true value outside 0..C (255, say) is ignored under
    either protocol: it is in no row, as in the released code. A prediction may be C
    ("none of the classes": a miss where the truth is a class). Raises ValueError for other
    predictions, unequal shapes and numbers that are not integers. Notebook 06.
    """
    truth, prediction = _masks(truth, prediction, C)
    pairs = np.zeros((C + 2, C + 2), np.int64)
    for t, p in _parts(truth, prediction, C):
        pairs += _tally(t, p, C + 2)
    return pairs[: C + 1, : C + 1]  # without the true values outside


def per_class(matrix: np.ndarray) -> dict[str, np.ndarray]:
    """Overlap of truth and prediction for every row of a confusion matrix, the row of ignore
    included.

    matrix (C+1, C+1). Returns "iou" = hits / (row + column - hits), "dice" = 2 hits / (row +
    column) and "recall" = hits / row, each (C+1,) float64 in [0, 1]; NaN where that divides by 0:
    no epsilon invents a score for a class that is not there.
    """
    hits, row, column = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    with np.errstate(invalid="ignore"):
        return {
            "iou": hits / (row + column - hits),
            "dice": 2 * hits / (row + column),
            "recall": hits / row,
        }


def scores(matrix: np.ndarray, ignore: str = "dropped") -> dict:
    """The scores of a confusion matrix under a rule for ignore pixels.

    matrix (C+1, C+1), see `confusion`; ignore "dropped" or "counted", see `Protocol`. Returns
    fractions in [0, 1]: "miou" mean of class IoU; "fwiou" IoU weighted by the true pixels of each
    class; "dice" mean of class Dice, counted and not derived from mIoU; "accuracy" share of right
    pixels; "iou" list of C; "classes_scored" list of the classes that the means are over: those
    with a true pixel, so methods on the same masks are compared over the same classes. Any other is
    NaN in "iou", also where a method predicts it: one stray pixel would else cost a whole class.
    The released code's mean is NaN then. Raises ValueError for another rule or a matrix that is not
    square. Notebook 06.
    """
    _check_choice("ignore", ignore, IGNORE)
    matrix = np.array(matrix)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(
            f"scores: matrix has shape {matrix.shape}; "
            "expected (C+1, C+1) as confusion() returns it"
        )
    C = len(matrix) - 1
    if ignore == "dropped":
        matrix[C] = 0
    overlap, true_pixels = per_class(matrix), matrix[:C].sum(axis=1)
    iou, dice = (np.where(true_pixels > 0, overlap[name][:C], np.nan) for name in ("iou", "dice"))
    # a NaN here has no true pixel, so its weight is 0
    return {
        "miou": _mean(iou),
        "fwiou": _ratio(np.nansum(true_pixels * iou), true_pixels.sum()),
        "dice": _mean(dice),
        "accuracy": _ratio(np.trace(matrix), matrix.sum()),
        "iou": iou.tolist(),
        "classes_scored": np.flatnonzero(~np.isnan(iou)).tolist(),
    }


def band_width(H: int, W: int) -> int:
    """Width of the boundary band in pixels: 0.02 of the image diagonal, rounded, at least 1 (6 px
    at 224 x 224)."""
    return max(1, round(DILATION * math.hypot(H, W)))


def band(masks: np.ndarray, d: int) -> np.ndarray:
    """Pixels within d px of the border of their own region.

    masks (B, H, W) integers; d >= 1. Returns (B, H, W) bool: another value, or the outside of the
    image, lies in the square of 2d+1 px around the pixel. That square makes it d erosions by 3x3,
    and the outside counts as another region because the reference pads with zeros (Cheng et al.
    2021). One pass serves all classes: a class's band is its pixels there. Notebook 06.
    """
    masks = np.asarray(masks)
    narrow = not masks.size or 0 <= masks.min() <= masks.max() < 255  # eight times as fast
    masks = masks.astype(np.uint8 if narrow else np.int64)
    # The outside is above every class: seen by the maximum, never by the minimum.
    outside = np.iinfo(masks.dtype).max
    padded = np.pad(masks, ((0, 0), (d, d), (d, d)), constant_values=outside)  # (B, H+2d, W+2d)
    return _windows(padded, 2 * d + 1, np.minimum) != _windows(padded, 2 * d + 1, np.maximum)


def _windows(values: np.ndarray, width: int, pick: Callable) -> np.ndarray:
    """The minimum or maximum (`pick`) of every square of width px: (B, H, W) -> (B, H - width + 1,
    W - width + 1).

    Each step doubles the window, so a window of 13 px takes 4 steps an axis, not 12.
    """
    reach = 1
    while reach < width:
        step = min(reach, width - reach)
        values = pick(values[:, :-step], values[:, step:])
        values = pick(values[:, :, :-step], values[:, :, step:])
        reach += step
    return values


def boundary_counts(truth, prediction, C: int, ignore: str = "dropped") -> np.ndarray:
    """Pixels in the intersection and in the union of the true and the predicted band of each class.

    truth, prediction (B, H, W) as in `confusion`. Returns (2, C) int64: add them up over a data
    set, then divide row 0 by row 1. Pixels that are not judged (true value outside 0..C; ignore too
    when "dropped") are cut out of BOTH masks before the bands are drawn. So the edge of the ignored
    region is a border of both, like the edge of the image, and a mask that is right on every judged
    pixel scores 1. Raises ValueError as `confusion` does.
    """
    _check_choice("ignore", ignore, IGNORE)
    truth, prediction = _masks(truth, prediction, C)
    if truth.ndim != 3:
        raise ValueError(
            f"boundary_counts: masks have shape {truth.shape}; "
            "expected (B, H, W): borders need images"
        )
    d = band_width(*truth.shape[1:])
    pairs = np.zeros((C + 2, C + 2), np.int64)
    for t, p in _parts(truth, prediction, C):
        pairs += _tally(*_banded(t, p, C, ignore, d), C + 2)
    return _shared(pairs)


def _banded(
    t: np.ndarray, p: np.ndarray, C: int, ignore: str, d: int
) -> tuple[np.ndarray, np.ndarray]:
    """Both masks (B, H, W), 0..C+1, with C+1 wherever a pixel lies in no band or is not judged."""
    last = C - 1 if ignore == "dropped" else C  # the last true value that is judged
    p = np.where(t <= last, p, C + 1)
    t = np.where(t <= last, t, C + 1)
    return np.where(band(t, d), t, C + 1), np.where(band(p, d), p, C + 1)


def _shared(pairs: np.ndarray) -> np.ndarray:
    """Intersection and union of each class, (2, C), from a tally (C+2, C+2) of banded masks."""
    both = np.diag(pairs)
    union = pairs.sum(axis=1) + pairs.sum(axis=0) - both
    return np.stack([both[:-2], union[:-2]])


@dataclass(frozen=True, eq=False)
class Counts:
    """All that scores need of some masks, so that batches, slides and splits can be added up.

    matrix (C+1, C+1) int64, see `confusion`; boundary (2, C) int64, see `boundary_counts`; ignore:
    the rule that the bands were drawn under, "dropped" or "counted".
    """

    matrix: np.ndarray
    boundary: np.ndarray
    ignore: str = "dropped"

    @classmethod
    def of(cls, truth, prediction, C: int, ignore: str = "dropped") -> Counts:
        """Count masks (B, H, W), in memory that does not grow with B; values and errors as in
        `confusion`."""
        boundary = boundary_counts(truth, prediction, C, ignore)
        return cls(confusion(truth, prediction, C), boundary, ignore)

    @classmethod
    def none(cls, C: int, ignore: str = "dropped") -> Counts:
        """The counts of no mask: where a sum starts."""
        _check_choice("ignore", ignore, IGNORE)
        return cls(np.zeros((C + 1, C + 1), np.int64), np.zeros((2, C), np.int64), ignore)

    def __add__(self, other: Counts) -> Counts:
        if self.ignore != other.ignore:
            raise ValueError(
                f"counts with ignore pixels {self.ignore} and {other.ignore} do not add up: "
                "count the masks again under one rule"
            )
        return Counts(self.matrix + other.matrix, self.boundary + other.boundary, self.ignore)

    def scores(self) -> dict:
        """The scores of the pooled pixels, not means over images.

        Returns what `scores` does and "biou", the mean boundary IoU (band: 0.02 of the diagonal) of
        the same classes. Raises ValueError when nothing was counted.
        """
        if not self.matrix.any():
            raise ValueError(
                "no pixel was counted: add masks that hold a value in 0..C before asking for scores"
            )
        found = scores(self.matrix, self.ignore)
        with np.errstate(invalid="ignore"):
            biou = _mean((self.boundary[0] / self.boundary[1])[found["classes_scored"]])
        return {"miou": found.pop("miou"), "fwiou": found.pop("fwiou"), "biou": biou} | found


def of_groups(truth, prediction, groups, C: int) -> dict[str, dict[str, Counts]]:
    """The counts of each group of masks under each rule for ignore: {group: {rule: Counts}}.

    truth, prediction (B, H, W), values and errors as in `confusion`; groups (B,): what each mask
    belongs to, such as its slide. What `Counts.of` says of a group's masks, but the bands of all
    are drawn at once, and under the second rule only where a mask holds ignore pixels.
    """
    truth, prediction = _masks(truth, prediction, C)
    groups, d = np.asarray(groups), band_width(*truth.shape[1:])
    empty = {rule: Counts.none(C, rule) for rule in IGNORE}
    found = {group: dict(empty) for group in np.unique(groups).tolist()}
    first = 0
    for t, p in _parts(truth, prediction, C):
        of, first = groups[first : first + len(t)], first + len(t)
        white = (t == C).any((1, 2))  # (b,): the others are the same under both rules
        dropped = _banded(t, p, C, "dropped", d)
        counted = dropped[0].copy(), dropped[1].copy()
        for part, judged in zip(counted, _banded(t[white], p[white], C, "counted", d)):
            part[white] = judged
        for group in np.unique(of).tolist():
            own = of == group
            matrix = _tally(t[own], p[own], C + 2)[: C + 1, : C + 1]
            for rule, (a, b) in zip(("dropped", "counted"), (dropped, counted)):
                boundary = _shared(_tally(a[own], b[own], C + 2))
                found[group][rule] += Counts(matrix, boundary, rule)
    return found


class Scorer:
    """Adds up batches of masks and scores them all at once under one protocol.

    `counts` holds them so far. The protocol's image labels are a name here: the caller gates the
    class scores (maps.gate) before the argmax. Notebook 06.
    """

    def __init__(self, C: int, protocol: Protocol = DEFAULT):
        self.C, self.protocol = C, protocol
        self.counts = Counts.none(C, protocol.ignore)

    def update(self, truth, prediction) -> None:
        """Add masks, truth and prediction (B, H, W) integers; a batch that is refused leaves no
        trace. Values and errors as in `confusion`."""
        self.counts += Counts.of(truth, prediction, self.C, self.protocol.ignore)

    def result(self) -> dict:
        """The scores of all pixels so far, with their protocol.

        Returns "miou", "fwiou", "biou", "dice", "accuracy" (fractions, float), "iou" (list of C),
        "classes_scored" (the indices that the means are over), and the protocol's "image_labels"
        and "ignore". See `scores` for NaN. Raises ValueError when nothing was added. Notebook 06.
        """
        protocol = {"image_labels": self.protocol.image_labels, "ignore": self.protocol.ignore}
        return self.counts.scores() | protocol


def extent(matrix: np.ndarray) -> dict[str, np.ndarray]:
    """How much of each class a mask covers, and how much of what it covers is right, ignore
    dropped.

    matrix (C+1, C+1), see `confusion`. Returns "area" = predicted / true pixels, 1 where as much
    was predicted as there is; "recall" = hits / true pixels; "precision" = hits / predicted pixels;
    each (C,) float64, NaN where that divides by 0. A CAM that finds only the most telling part of a
    tissue has an area below 1, a low recall and a high precision. Notebook 04.
    """
    judged = np.asarray(matrix)[:-1]  # (C, C+1): true classes
    hits, true, predicted = np.diag(judged), judged.sum(axis=1), judged.sum(axis=0)[:-1]
    with np.errstate(invalid="ignore", divide="ignore"):
        area = np.where(true, predicted / true, np.nan)
        return {"area": area, "recall": hits / true, "precision": hits / predicted}


def reliability(probability, truth, bins: int = 10) -> dict[str, np.ndarray]:
    """What was said, and what came out: a reliability curve over bins of equal width.
    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, Eq. (2); notebook 06.

    probability: floats in [0, 1] of any shape; truth: 0 or 1 of the same shape, whether what was
    said is so. Returns "edges" (bins + 1,), and per bin "confidence", the mean probability,
    "frequency", the share that is true, and "counts", each (bins,); NaN where a bin is empty. A bin
    holds its right edge; the first one 0 as well. Raises ValueError for other shapes or values.
    """
    probability, truth = np.ravel(probability).astype(float), np.ravel(truth).astype(float)
    if probability.shape != truth.shape:
        raise ValueError(
            f"reliability: {probability.size} probabilities and {truth.size} outcomes; "
            "expected one outcome, 0 or 1, for each probability"
        )
    if not ((probability >= 0) & (probability <= 1)).all():
        raise ValueError(
            "reliability: probabilities outside [0, 1]; give the sigmoid or softmax of logits"
        )
    if not np.isin(truth, (0, 1)).all():
        raise ValueError("reliability: outcomes other than 0 and 1; say what is so and what is not")
    edges = np.linspace(0, 1, bins + 1)
    which = np.clip(np.searchsorted(edges, probability, side="left") - 1, 0, bins - 1)
    counts = np.bincount(which, minlength=bins)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(which, probability, bins) / counts
        frequency = np.bincount(which, truth, bins) / counts
    return {"edges": edges, "confidence": confidence, "frequency": frequency, "counts": counts}


def expected_calibration_error(probability, truth, bins: int = 10) -> float:
    """By how much what is said misses what is so: |frequency - confidence|, the mean over bins
    weighted by their counts. Guo et al., ICML 2017, Eq. (3); notebook 06.

    Arguments and errors as in `reliability`. Returns a float in [0, 1], NaN of no probability.
    """
    curve = reliability(probability, truth, bins)
    gap = np.abs(curve["frequency"] - curve["confidence"])  # (bins,), NaN where empty
    return _ratio(np.nansum(gap * curve["counts"]), curve["counts"].sum())


def label_f1(logits, labels, cuts=0.0) -> np.ndarray:
    """F1 of each class's image labels, 2 hits / (said + true): (C,) float64, NaN where a class is
    neither said nor true. Notebook 06.

    logits (B, C) float, above the cut means present; labels (B, C), 0 or 1; cuts: one, or (C,).
    """
    said, true = np.asarray(logits) > np.asarray(cuts), np.asarray(labels) > 0
    with np.errstate(invalid="ignore"):
        return 2 * (said & true).sum(axis=0) / (said.sum(axis=0) + true.sum(axis=0))


def best_cuts(logits, labels) -> np.ndarray:
    """The cut of each class that gives its image labels the highest F1: (C,) float64.
    Notebook 06.

    logits (B, C) float, labels (B, C), 0 or 1, both of validation images. Tried are 0, the usual
    cut, the middle between any two neighbouring logits, and 1 below the lowest. Of cuts that are as
    good the one nearest to 0 is taken, so a class that gains nothing, or is in no label, keeps 0.
    Raises ValueError for other shapes.
    """
    logits, labels = np.asarray(logits, float), np.asarray(labels) > 0
    if logits.ndim != 2 or logits.shape != labels.shape:
        raise ValueError(
            f"best_cuts: logits {logits.shape} and labels {labels.shape}; expected (B, C) of both"
        )
    cuts = np.zeros(logits.shape[1])
    for c, (own, true) in enumerate(zip(logits.T, labels.T)):
        values = np.unique(own)
        middles = (values[:-1] + values[1:]) / 2
        tried = np.concatenate([[0.0], middles, values[:1] - 1])  # (T,), the last says all
        tried = tried[np.abs(tried).argsort(kind="stable")]  # nearest to 0 first: argmax takes it
        found = label_f1(own[:, None], true[:, None], tried)  # (T,)
        cuts[c] = tried[np.nan_to_num(found).argmax()]
    return cuts


def _masks(truth, prediction, C: int) -> tuple[np.ndarray, np.ndarray]:
    """Both masks as arrays, once they fit each other and C."""
    truth, prediction = (
        m.detach().cpu().numpy() if hasattr(m, "detach") else np.asarray(m)
        for m in (truth, prediction)
    )
    if truth.shape != prediction.shape:
        raise ValueError(
            f"truth has shape {truth.shape}, prediction {prediction.shape}; expected the same: "
            "resize the class scores to the size of the mask, then take the argmax"
        )
    for name, mask in (("truth", truth), ("prediction", prediction)):
        if mask.dtype.kind not in "iu":
            raise ValueError(
                f"{name} has dtype {mask.dtype}; expected integers: class indices, not scores"
            )
    if prediction.size and not 0 <= prediction.min() <= prediction.max() <= C:
        raise ValueError(
            f"prediction holds values {prediction.min()} to {prediction.max()}; "
            f"expected 0..{C - 1} for a class or {C} for none: check C and the argmax axis"
        )
    return truth, prediction


def _parts(truth: np.ndarray, prediction: np.ndarray, C: int) -> Iterator[tuple]:
    """Both masks in parts of about CHUNK pixels, as small integers: 0..C, and C+1 for any other."""
    truth, prediction = np.atleast_1d(truth), np.atleast_1d(prediction)
    rows = max(1, CHUNK // max(1, math.prod(truth.shape[1:])))
    # so small that the number of a pair of values, below (C+2)^2, fits as well
    small = np.uint8 if (C + 2) ** 2 <= 256 else np.uint16
    for start in range(0, len(truth), rows):
        t, p = truth[start : start + rows], prediction[start : start + rows]
        yield np.where((t >= 0) & (t <= C), t, C + 1).astype(small), p.astype(small)


def _tally(rows: np.ndarray, columns: np.ndarray, n: int) -> np.ndarray:
    """How many pixels hold each pair of values 0..n-1: (n, n) int64. n * n must fit the dtype."""
    pair = rows * rows.dtype.type(n) + columns
    return np.bincount(pair.ravel(), minlength=n * n).reshape(n, n)


def _mean(values: np.ndarray) -> float:
    """Mean of what is there, NaN when nothing is."""
    return _ratio(np.nansum(values), int(np.count_nonzero(~np.isnan(values))))


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else math.nan
