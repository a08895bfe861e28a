"""Scores of predicted masks under a named protocol: one confusion matrix for pixels, one count of
bands for borders.

A score without its protocol says little, for two choices move it by many points: which image labels
may close classes that are absent, and what becomes of the pixels marked ignore. Masks hold classes
0..C-1 and C for ignore (white background).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

if (
    TYPE_CHECKING
):  # takes tensors and calls their methods: whoever only reads scores need not wait for torch
    import torch

IMAGE_LABELS = {
    "predicted": "predicted image labels",
    "oracle": "oracle image labels",
    "none": "no image labels",
}
IGNORE = {"dropped": "ignore pixels dropped", "counted": "ignore pixels counted"}
SCORES = {"miou": "mIoU", "fwiou": "FwIoU", "biou": "bIoU", "dice": "Dice"}
DILATION = 0.02  # width of the boundary band, as a share of the image diagonal (Cheng et al. 2021)


def _known(name: str, value: str, choices: dict[str, str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} = {value!r} is unknown; expected one of {', '.join(choices)}")


@dataclass(frozen=True)
class Protocol:
    """The two choices behind every score, and their wording.

    `image_labels`: whose labels close absent classes before the argmax: "predicted" by the
    classifier, "oracle" (read off the true mask) or "none". `ignore`: "dropped" leaves ignore
    pixels out; "counted" is the rule of the released code: they stay and are false positives of the
    class predicted there (E4). `str(protocol)` is the wording printed beside scores. Raises
    ValueError for any other value. Notebook 06.
    """

    image_labels: str = "predicted"
    ignore: str = "dropped"

    def __post_init__(self):
        _known("image_labels", self.image_labels, IMAGE_LABELS)
        _known("ignore", self.ignore, IGNORE)

    def __str__(self) -> str:
        return f"{IMAGE_LABELS[self.image_labels]}, {IGNORE[self.ignore]}"


DEFAULT = Protocol()
ORACLE = Protocol(image_labels="oracle")
PROTOCOLS = {
    str(p): p for p in (Protocol(labels, ignore) for labels in IMAGE_LABELS for ignore in IGNORE)
}


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
    either protocol: it is in no row, as in the released code. A prediction may be C ("none of the
    classes": a miss where the truth is a class). Raises ValueError for other predictions, unequal
    shapes and numbers that are not integers. Notebook 06.
    """
    truth, prediction = _masks(truth, prediction, C)
    judged = (truth >= 0) & (truth <= C)
    cell = truth[judged].astype(np.int64) * (C + 1) + prediction[judged].astype(np.int64)
    return np.bincount(cell, minlength=(C + 1) ** 2).reshape(C + 1, C + 1)


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
    pixels; "iou" list of C. Ignore itself is never a class of the means. A class absent from truth
    AND prediction is NaN in "iou" and left out of the means; the released code's mean is NaN then.
    Raises ValueError for another rule or a matrix that is not square. Notebook 06.
    """
    _known("ignore", ignore, IGNORE)
    matrix = np.array(matrix)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(
            f"scores: matrix has shape {matrix.shape}; expected (C+1, C+1) as confusion() returns it"
        )
    C = len(matrix) - 1
    if ignore == "dropped":
        matrix[C] = 0
    overlap, true_pixels = per_class(matrix), matrix[:C].sum(axis=1)
    iou = overlap["iou"][:C]
    # a NaN here has no true pixel, so its weight is 0
    return {
        "miou": _mean(iou),
        "fwiou": _ratio(np.nansum(true_pixels * iou), true_pixels.sum()),
        "dice": _mean(overlap["dice"][:C]),
        "accuracy": _ratio(np.trace(matrix), matrix.sum()),
        "iou": iou.tolist(),
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
    low = high = np.asarray(masks, dtype=np.int16)
    for axis in (1, 2):
        # outside: a value above every class for the maximum, nothing new for the minimum
        high = ndimage.maximum_filter1d(
            high, 2 * d + 1, axis=axis, mode="constant", cval=np.iinfo(np.int16).max
        )
        low = ndimage.minimum_filter1d(low, 2 * d + 1, axis=axis, mode="nearest")
    return low != high


def boundary_counts(truth, prediction, C: int, ignore: str = "dropped") -> np.ndarray:
    """Pixels in the intersection and in the union of the true and the predicted band of each class.

    truth, prediction (B, H, W) as in `confusion`. Returns (2, C) int64: add them up over a data
    set, then divide row 0 by row 1. Pixels that are not judged (true value outside 0..C; ignore too
    when "dropped") are cut out of BOTH masks before the bands are drawn. So the edge of the ignored
    region is a border of both, like the edge of the image, and a mask that is right on every judged
    pixel scores 1. Raises ValueError as `confusion` does. Notebook 06.
    """
    _known("ignore", ignore, IGNORE)
    truth, prediction = _masks(truth, prediction, C)
    if truth.ndim != 3:
        raise ValueError(
            f"boundary_counts: masks have shape {truth.shape}; expected (B, H, W): borders need images"
        )
    judged = (truth >= 0) & (truth <= C - (ignore == "dropped"))
    truth, prediction = np.where(judged, truth, C + 1), np.where(judged, prediction, C + 1)
    d = band_width(*truth.shape[1:])
    in_truth, in_prediction = band(truth, d), band(prediction, d)

    def count(values: np.ndarray) -> np.ndarray:
        return np.bincount(values, minlength=C + 2)[:C]

    both = count(truth[in_truth & in_prediction & (truth == prediction)])
    return np.stack([both, count(truth[in_truth]) + count(prediction[in_prediction]) - both])


class Scorer:
    """Adds up batches of masks and scores them all at once under one protocol.

    `matrix` (C+1, C+1) and `boundary` (2, C) int64 hold the counts so far. The protocol's image
    labels are a name here: the caller gates the class scores (`gate`) before the argmax. Scores are
    those of the pooled pixels, not means over images. Notebook 06.
    """

    def __init__(self, C: int, protocol: Protocol = DEFAULT):
        self.C, self.protocol = C, protocol
        self.matrix = np.zeros((C + 1, C + 1), dtype=np.int64)
        self.boundary = np.zeros((2, C), dtype=np.int64)

    def update(self, truth, prediction) -> None:
        """Add a batch: truth and prediction (B, H, W) integers, see `confusion` for values and
        errors."""
        # a refused batch leaves no trace, so both counts come before either sum
        boundary = boundary_counts(truth, prediction, self.C, self.protocol.ignore)
        self.matrix += confusion(truth, prediction, self.C)
        self.boundary += boundary

    def result(self) -> dict:
        """The scores of all pixels so far, with their protocol.

        Returns "miou", "fwiou", "biou", "dice", "accuracy" (fractions, float), "iou" (list of C)
        and "protocol" (its wording). "biou" is the mean boundary IoU of the classes that are there
        (band: 0.02 of the diagonal). See `scores` for NaN. Raises ValueError when nothing was
        added.
        """
        if not self.matrix.any():
            raise ValueError(
                "Scorer: no pixel was added; call update(truth, prediction) before result()"
            )
        found = scores(self.matrix, self.protocol.ignore)
        with np.errstate(invalid="ignore"):
            biou = _mean(self.boundary[0] / self.boundary[1])
        return {
            "miou": found["miou"],
            "fwiou": found["fwiou"],
            "biou": biou,
            "dice": found["dice"],
            "accuracy": found["accuracy"],
            "iou": found["iou"],
            "protocol": str(self.protocol),
        }


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


def _mean(values: np.ndarray) -> float:
    """Mean of what is there, NaN when nothing is."""
    return _ratio(np.nansum(values), np.count_nonzero(~np.isnan(values)))


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else math.nan
