"""What a difference between two methods is worth when there are few seeds and few slides.

Two questions, two intervals: would another seed say the same (a paired t-test over seeds, as in the
paper), and would other patients say the same (a bootstrap over slides, for the patches of one slide
are no independent witnesses).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtr, stdtrit  # Student's t; scipy.stats takes long to load

from protolib.metrics import Protocol

FEW_SEEDS = 3  # fewer are warned of
FEW_SLIDES = 5  # with fewer, the slide interval stands on too few different resamples to be trusted


class Paired(NamedTuple):
    """A difference over seeds; the unit is that of the scores."""

    n: int  # pairs
    difference: float  # mean of ours - theirs
    low: float  # 95 % t interval of the difference
    high: float
    p: float  # of the two-sided paired t-test
    d: float  # Cohen's d_z: the difference in standard deviations of the differences


def paired(ours: Sequence[float] | np.ndarray, theirs: Sequence[float] | np.ndarray) -> Paired:
    """Compare two methods over the same seeds by the paired t-test, with interval and effect size.

    ours, theirs: n scores each, in the same order of seeds. One pair has a difference and nothing
    else: low, high, p and d are NaN. So they are where all differences are equal to the last bits
    (standard deviation 0): then the seed changed nothing, and n runs are one run n times. A NaN
    score makes everything NaN. Raises ValueError where the numbers of scores are 0 or unequal.
    """
    if len(ours) != len(theirs) or not len(ours):
        raise ValueError(
            f"paired: {len(ours)} and {len(theirs)} scores; "
            "expected one pair per seed, at least one"
        )
    a, b = np.asarray(ours, float), np.asarray(theirs, float)
    n, mean = len(a), float((a - b).mean())
    sd = float((a - b).std(ddof=1)) if n > 1 else math.nan
    rounding = 8 * np.finfo(float).eps * max(np.abs(a).max(), np.abs(b).max())
    if not sd > rounding:  # NaN too
        return Paired(n, mean, math.nan, math.nan, math.nan, math.nan)
    error = sd / math.sqrt(n)
    half = float(stdtrit(n - 1, 0.975)) * error
    p = float(2 * stdtr(n - 1, -abs(mean) / error))
    return Paired(n, mean, mean - half, mean + half, p, mean / sd)


def miou(matrices: np.ndarray, ignore: str = "dropped") -> np.ndarray:
    """Mean IoU of many confusion matrices at once, where metrics.scores takes one: a bootstrap asks
    for 10,000.

    matrices (..., C+1, C+1), see metrics.confusion; ignore "dropped" or "counted", see
    metrics.Protocol. Returns (...) float64 in [0, 1]; a class without a true pixel is left out
    of the mean, NaN where none is left. Raises ValueError for another rule.
    """
    Protocol(ignore=ignore)
    C = matrices.shape[-1] - 1
    judged = matrices[..., :C, :] if ignore == "dropped" else matrices
    hits = np.diagonal(matrices, axis1=-2, axis2=-1)[..., :C]
    union = matrices[..., :C, :].sum(-1) + judged[..., :C].sum(-2) - hits
    there = matrices[..., :C, :].sum(-1) > 0
    with np.errstate(invalid="ignore"):
        return np.where(there, hits / np.where(there, union, 1), 0).sum(-1) / there.sum(-1)


def over_slides(
    a: np.ndarray, b: np.ndarray, ignore: str = "dropped", draws: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of the difference in mIoU, a - b, if other slides had been scored.

    a, b (seeds, slides, C+1, C+1) int: confusion matrices of the same seeds and slides in the same
    order. Each draw takes as many slides as there are, with replacement, the same for both methods
    and all seeds, all patches of a slide together; a method's score is the mean over seeds of the
    mIoU of the pooled pixels. Returns the 2.5 and 97.5 percentiles, fractions; the same seed gives
    the same. Fewer than FEW_SLIDES slides promise too much: `resamples`. Raises ValueError where
    the shapes differ or hold nothing.
    """
    if a.shape != b.shape or a.ndim != 4 or not a.size:
        raise ValueError(
            f"over_slides: matrices {a.shape} and {b.shape}; "
            "expected the same (seeds, slides, C+1, C+1)"
        )
    slides, rng = a.shape[1], np.random.default_rng(seed)
    times = rng.multinomial(slides, np.full(slides, 1 / slides), size=draws)  # (draws, slides)

    def drawn(matrices: np.ndarray) -> np.ndarray:
        pooled = np.tensordot(times, matrices, axes=(1, 1))  # (draws, seeds, C+1, C+1)
        return miou(pooled, ignore).mean(axis=-1)  # (draws,)

    first, second = drawn(a), drawn(b)
    low, high = np.percentile(first - second, (2.5, 97.5))
    return float(low), float(high)


def resamples(slides: int) -> int:
    """How many different resamples n slides have: n = 3 gives 10, n = 5 gives 126."""
    return math.comb(2 * slides - 1, slides)


def verdict(seeds: Paired, slides: tuple[float, float] | None = None) -> str:
    """What runs say of a claim "a beats b": "supported", "contradicted" or "not decided", with the
    reason if it is one.

    seeds: `paired` of a and b; slides: their interval of `over_slides`, None where no slides were
    scored. Supported only if both intervals lie above 0, contradicted only if both lie below.
    """
    if seeds.n == 1:
        return "not decided: one seed"
    intervals = [(seeds.low, seeds.high)] + ([slides] if slides else [])
    if all(low > 0 for low, _ in intervals):
        return "supported"
    return "contradicted" if all(high < 0 for _, high in intervals) else "not decided"
