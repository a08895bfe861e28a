"""Statistics against scipy.stats, closed forms, and resampling written out slide by slide."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from protolib import metrics
from protolib.study import compare
from protolib.study.compare import Paired, miou, over_slides, paired, resamples, verdict


def matrices(seed: int, *shape: int, C: int = 4) -> np.ndarray:
    """Confusion matrices as of real maps: most pixels right, one class absent from many."""
    rng = np.random.default_rng(seed)
    found = rng.integers(0, 40, (*shape, C + 1, C + 1)) + 150 * np.eye(C + 1, dtype=int)
    found[..., C] = 0  # nothing is predicted as ignore
    gone = rng.random(shape) < 0.4
    found[gone, C - 1], found[gone, :, C - 1] = 0, 0
    return found


def slow_interval(a, b, ignore, draws, seed):
    """Every draw as a list of slides, scored by metrics.scores."""
    rng, n, found = np.random.default_rng(seed), a.shape[1], []
    for counts in rng.multinomial(n, [1 / n] * n, size=draws):
        drawn = [slide for slide, times in enumerate(counts) for _ in range(times)]
        means = [
            np.mean(
                [
                    metrics.scores(sum(seed[slide] for slide in drawn), ignore)["miou"]
                    for seed in method
                ]
            )
            for method in (a, b)
        ]
        found.append(means[0] - means[1])
    return np.percentile(found, (2.5, 97.5))


def test_paired_by_hand():
    found = paired(
        [3, 5, 7], [2, 3, 4]
    )  # differences 1, 2, 3: mean 2, standard deviation 1, t = 2 sqrt(3)
    half = (
        0.95 * math.sqrt(2 / (1 - 0.95**2)) / math.sqrt(3)
    )  # 2 degrees of freedom have a quantile in closed form
    wanted = (3, 2, 2 - half, 2 + half, 1 - math.sqrt(12 / 14), 2)  # p: 1 - t / sqrt(2 + t^2)
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_paired_is_the_test_of_scipy(n):
    rng = np.random.default_rng(n)
    ours, theirs = rng.normal(60, 2, n), rng.normal(59, 2, n)
    found, test = paired(ours, theirs), stats.ttest_rel(ours, theirs)
    interval = test.confidence_interval(0.95)
    np.testing.assert_allclose(
        found,
        (
            n,
            (ours - theirs).mean(),
            interval.low,
            interval.high,
            test.pvalue,
            test.statistic / math.sqrt(n),
        ),
        rtol=1e-9,
    )
    turned = paired(theirs, ours)
    np.testing.assert_allclose(
        turned, (n, -found.difference, -found.high, -found.low, found.p, -found.d), rtol=1e-12
    )


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "ours, theirs, difference",
    [
        ([61.5], [60], 1.5),  # one seed
        ([0.3, 0.4, 0.7], [0.1, 0.2, 0.5], 0.2),  # equal differences but for rounding
        ([60, 61], [60, 61], 0),
        ([0, 0], [0, 0], 0),
    ],
)
def test_without_spread_there_is_a_difference_and_nothing_else(ours, theirs, difference):
    found = paired(ours, theirs)
    assert (found.n, found.difference) == (len(ours), pytest.approx(difference, abs=1e-15))
    assert all(math.isnan(value) for value in found[2:])


def test_a_score_that_is_missing_decides_nothing():
    found = paired([0.6, math.nan, 0.7], [0.5, 0.5, 0.5])
    assert (
        found.n == 3
        and all(math.isnan(value) for value in found[1:])
        and verdict(found) == "not decided"
    )


@pytest.mark.parametrize(
    "ours, theirs, words", [([1, 2], [1], "2 and 1 scores"), ([], [], "0 and 0 scores")]
)
def test_paired_refuses(ours, theirs, words):
    with pytest.raises(ValueError, match=words):
        paired(ours, theirs)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("ignore", ["dropped", "counted"])
def test_miou_is_that_of_metrics(ignore):
    many = matrices(0, 6, 5)
    many[0, 0] = 0  # nothing at all
    many[0, 1], many[0, 1, 4, :4] = 0, 9  # only ignore, called something
    many[0, 2], many[0, 2, 0, 0], many[0, 2, 1, 0] = 0, 5, 1  # one pixel is a class too
    found = miou(many, ignore)
    wanted = [[metrics.scores(m, ignore)["miou"] for m in row] for row in many]
    assert found.shape == (6, 5) and math.isnan(found[0, 0])
    np.testing.assert_allclose(found, wanted, rtol=1e-14)
    with pytest.raises(ValueError, match="ignore = 'kept'"):
        miou(many, "kept")


@pytest.mark.parametrize("ignore", ["dropped", "counted"])
@pytest.mark.parametrize("slides", [1, 3, 7])
def test_over_slides_against_explicit_resampling(slides, ignore):
    a, b = matrices(1, 2, slides), matrices(2, 2, slides)
    found = over_slides(a, b, ignore, draws=200, seed=5)
    np.testing.assert_allclose(found, slow_interval(a, b, ignore, 200, 5), rtol=0, atol=1e-14)
    assert found == over_slides(a, b, ignore, draws=200, seed=5)


def test_two_slides_give_the_interval_from_one_to_the_other():
    a, b = (
        matrices(3, 1, 2),
        matrices(4, 1, 2),
    )  # the same slide twice comes once in four draws: beyond 2.5 % each
    alone = sorted(miou(a)[0] - miou(b)[0])
    np.testing.assert_allclose(over_slides(a, b, draws=1000), alone, rtol=1e-12)


def test_equal_slides_and_equal_methods_leave_no_width():
    a, b = np.repeat(matrices(5, 2, 1), 4, axis=1), np.repeat(matrices(6, 2, 1), 4, axis=1)
    gap = (miou(a[:, 0]) - miou(b[:, 0])).mean()
    np.testing.assert_allclose(over_slides(a, b, draws=100), (gap, gap), rtol=1e-12)
    assert over_slides(a, a, draws=100) == (0, 0)
    low, high = over_slides(matrices(7, 2, 4), matrices(8, 2, 4), draws=100)
    back = over_slides(matrices(8, 2, 4), matrices(7, 2, 4), draws=100)
    np.testing.assert_allclose(back, (-high, -low), rtol=1e-12)


def test_the_interval_widens_with_fewer_slides_as_theory_says():
    """Slides of one size, each with a share of its pixels right: mIoU is the mean share, its error
    sd / n^.5."""
    shares = np.random.default_rng(9).integers(400, 600, 50)
    a = np.zeros((1, 50, 2, 2), int)
    a[0, :, 0, 0], a[0, :, 0, 1] = shares, 1000 - shares
    b = np.zeros_like(a)
    b[0, :, 0, 1] = 1000
    low, high = over_slides(a, b)
    half = 1.96 * shares.std() / 1000 / math.sqrt(50)
    np.testing.assert_allclose(
        (low, high), (shares.mean() / 1000 - half, shares.mean() / 1000 + half), atol=0.06 * half
    )


def test_over_slides_refuses():
    with pytest.raises(ValueError, match=r"\(2, 3, 5, 5\) and \(2, 4, 5, 5\); expected the same"):
        over_slides(matrices(0, 2, 3), matrices(0, 2, 4))
    with pytest.raises(ValueError, match="expected the same"):
        over_slides(matrices(0, 2, 0), matrices(0, 2, 0))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_resamples_counted_out(n):
    assert resamples(n) == len(
        {tuple(sorted(drawn)) for drawn in itertools.product(range(n), repeat=n)}
    )


@pytest.mark.parametrize(
    "low, high, slides, wanted",
    [
        (0.1, 0.3, None, "supported"),
        (0.1, 0.3, (0.2, 0.4), "supported"),
        (0.1, 0.3, (-0.2, 0.4), "not decided"),
        (-0.1, 0.3, (0.2, 0.4), "not decided"),
        (0, 0.3, (0.2, 0.4), "not decided"),
        (-0.3, -0.1, None, "contradicted"),
        (-0.3, -0.1, (-0.4, -0.2), "contradicted"),
        (-0.3, -0.1, (0.2, 0.4), "not decided"),
        (-0.3, 0, None, "not decided"),
        (0.1, 0.3, (math.nan, math.nan), "not decided"),
    ],
)
def test_verdict(low, high, slides, wanted):
    assert verdict(Paired(3, (low + high) / 2, low, high, 0.04, 2), slides) == wanted


def test_one_seed_decides_nothing():
    assert verdict(paired([0.9], [0.1]), (0.7, 0.9)) == "not decided: one seed"


def test_few_is_said_once():
    assert (compare.FEW_SEEDS, compare.FEW_SLIDES) == (3, 5)
    assert resamples(compare.FEW_SLIDES) == 126 and resamples(compare.FEW_SLIDES - 1) == 35


def test_an_interval_that_touches_0_decides_nothing():
    of = lambda low, high: Paired(3, 0.5, low, high, 0.05, 1.0)
    assert verdict(of(0.0, 1.0)) == verdict(of(-1.0, 0.0)) == "not decided"
    assert (
        verdict(of(0.1, 1.0), (0.0, 0.2)) == verdict(of(-1.0, -0.1), (-0.2, 0.0)) == "not decided"
    )


def test_rounding_is_no_spread_whatever_the_sign_of_the_scores():
    theirs = -1e9 * np.array([1.0, 1.1, 1.3])
    ours = theirs + 0.1  # differences of .1 but for the last bits
    assert 0 < np.std(ours - theirs) < 1e-6
    for a, b in ((ours, theirs), (-ours, -theirs)):
        assert math.isnan(paired(a, b).low)


def test_ten_thousand_draws_from_seed_0_are_what_is_meant_where_nothing_is_said():
    a, b = matrices(0, 2, 9), matrices(1, 2, 9)
    assert over_slides(a, b) == over_slides(a, b, "dropped", 10_000, 0)
    assert over_slides(a, b) != over_slides(a, b, draws=9_999)
