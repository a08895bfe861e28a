"""Metrics against slow references written here, pixel by pixel, and masks small enough to score by
hand."""

import math
import tracemalloc

import numpy as np
import pytest
import torch

from protolib import metrics
from protolib.maps import gate
from protolib.metrics import (
    DEFAULT,
    ORACLE,
    Counts,
    Protocol,
    Scorer,
    band,
    boundary_counts,
    confusion,
    scores,
)

# a division by 0 that nobody meant
pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

TRUTH = np.array([[[0, 0, 1], [0, 2, 1], [2, 2, 1]]])  # C = 2, so 2 is ignore
PREDICTION = np.array([[[0, 1, 1], [0, 0, 1], [1, 1, 1]]])


def blobs(seed: int, values: int, n: int = 3, size: int = 48, cell: int = 8) -> np.ndarray:
    """Block masks with ragged borders, as uint8."""
    rng = np.random.default_rng(seed)
    masks = np.kron(
        rng.integers(0, values, (n, size // cell, size // cell)), np.ones((1, cell, cell), int)
    )
    noise = rng.random(masks.shape) < 0.03
    return np.where(noise, rng.integers(0, values, masks.shape), masks).astype(np.uint8)


def slow_scores(truth: np.ndarray, prediction: np.ndarray, C: int, ignore: str) -> dict:
    """Every score from sets of pixels, in float64, one class after the other."""
    judged = (0 <= truth) & (truth <= C) & ((truth != C) | (ignore == "counted"))
    truth, prediction = truth[judged], prediction[judged]
    iou, dice, weight = [], [], []
    for c in range(C):
        inside, found = truth == c, prediction == c
        union = float((inside | found).sum())
        iou.append((inside & found).sum() / union if union else math.nan)
        dice.append(
            2 * (inside & found).sum() / float(inside.sum() + found.sum()) if union else math.nan
        )
        weight.append(inside.sum() / float((truth < C).sum()))
    there = [c for c in range(C) if (truth == c).any()]
    iou, dice = ([v if c in there else math.nan for c, v in enumerate(of)] for of in (iou, dice))
    return {
        "miou": sum(iou[c] for c in there) / len(there),
        "fwiou": sum(weight[c] * iou[c] for c in there),
        "dice": sum(dice[c] for c in there) / len(there),
        "accuracy": (truth == prediction).mean(),
        "iou": iou,
    }


def slow_band(mask: np.ndarray, d: int) -> np.ndarray:
    """Pixels of a (H, W) bool mask with something else, or the outside, in the square of 2d+1
    around them."""
    padded = np.pad(mask, d)
    return np.array(
        [
            [
                mask[y, x] and not padded[y : y + 2 * d + 1, x : x + 2 * d + 1].all()
                for x in range(mask.shape[1])
            ]
            for y in range(mask.shape[0])
        ]
    )


def slow_boundary(
    truth: np.ndarray, prediction: np.ndarray, C: int, ignore: str, d: int
) -> np.ndarray:
    counts = np.zeros((2, C), int)
    for t, p in zip(truth, prediction):
        judged = (0 <= t) & (t <= C) & ((t != C) | (ignore == "counted"))
        for c in range(C):
            first, second = slow_band((t == c) & judged, d), slow_band((p == c) & judged, d)
            counts[:, c] += (first & second).sum(), (first | second).sum()
    return counts


def assert_scores(found: dict, wanted: dict) -> None:
    for name in ("miou", "fwiou", "dice", "accuracy", "iou"):
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-13, err_msg=name)


def test_protocol_names_both_choices_everywhere_alike():
    assert str(DEFAULT) == "predicted image labels, ignore pixels dropped"
    assert str(ORACLE) == "oracle image labels, ignore pixels dropped"
    assert str(Protocol("none", "counted")) == "no image labels, ignore pixels counted"
    with pytest.raises(AttributeError):
        DEFAULT.ignore = "counted"


def test_protocol_refuses_unknown_choices():
    with pytest.raises(
        ValueError,
        match="image_labels = 'true' is unknown; expected one of predicted, oracle, none",
    ):
        Protocol("true")
    with pytest.raises(
        ValueError, match="ignore = 'kept' is unknown; expected one of dropped, counted"
    ):
        Protocol(ignore="kept")


def test_confusion_by_hand():
    wanted = [
        [2, 1, 0],  # class 0: two found, one called 1
        [0, 3, 0],
        [1, 2, 0],  # ignore: one called 0, two called 1
    ]
    found = confusion(TRUTH, PREDICTION, 2)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, wanted)


def test_confusion_takes_tensors_and_every_integer():
    wanted = confusion(TRUTH, PREDICTION, 2)
    for kind in (np.uint8, np.int16, np.int32, np.uint64):
        np.testing.assert_array_equal(
            confusion(TRUTH.astype(kind), PREDICTION.astype(kind), 2), wanted
        )
    np.testing.assert_array_equal(
        confusion(torch.tensor(TRUTH), torch.tensor(PREDICTION), 2), wanted
    )


def test_confusion_against_a_loop_with_values_outside():
    rng = np.random.default_rng(0)
    truth = rng.choice([-1, 0, 1, 2, 3, 4, 5, 255], (2, 20, 21))
    prediction = rng.integers(0, 5, (2, 20, 21))
    wanted = np.zeros((5, 5), int)
    for t, p in zip(truth.ravel(), prediction.ravel()):
        if 0 <= t <= 4:
            wanted[t, p] += 1
    np.testing.assert_array_equal(confusion(truth, prediction, 4), wanted)


def test_confusion_of_nothing_is_zero():
    np.testing.assert_array_equal(
        confusion(np.zeros((0, 4, 4), int), np.zeros((0, 4, 4), int), 2), np.zeros((3, 3))
    )


@pytest.mark.parametrize(
    "prediction, words",
    [
        (PREDICTION + 2, "prediction holds values 2 to 3; expected 0..1 for a class or 2 for none"),
        (PREDICTION - 1, "prediction holds values -1 to 0"),
        (PREDICTION[0], r"truth has shape \(1, 3, 3\), prediction \(3, 3\); expected the same"),
        (PREDICTION / 2, "prediction has dtype float64; expected integers"),
    ],
)
def test_confusion_refuses(prediction, words):
    with pytest.raises(ValueError, match=words):
        confusion(TRUTH, prediction, 2)


def test_scores_by_hand_under_both_rules():
    matrix = confusion(TRUTH, PREDICTION, 2)
    # dropped, class 0: 2 of 2+1; class 1: 3 of 3+1
    assert_scores(
        scores(matrix),
        {
            "iou": [2 / 3, 3 / 4],
            "miou": (2 / 3 + 3 / 4) / 2,
            "fwiou": (2 / 3 + 3 / 4) / 2,
            "dice": (4 / 5 + 6 / 7) / 2,
            "accuracy": 5 / 6,
        },
    )
    # counted: the ignore pixels join the unions, one for class 0 and two for class 1
    assert_scores(
        scores(matrix, "counted"),
        {
            "iou": [2 / 4, 3 / 6],
            "miou": 1 / 2,
            "fwiou": 1 / 2,
            "dice": (4 / 6 + 6 / 9) / 2,
            "accuracy": 5 / 9,
        },
    )


def test_scores_leave_the_matrix_alone():
    matrix = confusion(TRUTH, PREDICTION, 2)
    scores(matrix, "dropped")
    assert matrix[2].tolist() == [1, 2, 0]


@pytest.mark.parametrize("ignore", ["dropped", "counted"])
@pytest.mark.parametrize("seed", [0, 1])
def test_scores_against_the_slow_reference(ignore, seed):
    truth = blobs(seed, 6).astype(int)  # true value 5 is outside 0..C
    prediction = blobs(seed + 10, 5)
    mixed = np.where(
        np.random.default_rng(seed).random(truth.shape) < 0.6, np.minimum(truth, 4), prediction
    )
    assert_scores(scores(confusion(truth, mixed, 4), ignore), slow_scores(truth, mixed, 4, ignore))


def test_half_the_image_ignored_is_one_half_when_counted():
    truth = np.repeat([0, 1, 2, 2], 4).reshape(1, 4, 4)
    found = np.repeat([0, 1, 0, 1], 4).reshape(1, 4, 4)
    matrix = confusion(truth, found, 2)
    assert scores(matrix)["miou"] == 1.0
    assert scores(matrix, "counted")["miou"] == 0.5


def test_dice_is_the_mean_of_class_dice():
    matrix = np.array([[9, 1, 0], [0, 1, 0], [0, 0, 0]])  # IoU .9 and .5
    found = scores(matrix)
    np.testing.assert_allclose(found["dice"], (18 / 19 + 2 / 3) / 2, rtol=1e-15)
    # what the paper's tables derive
    assert abs(found["dice"] - 2 * found["miou"] / (1 + found["miou"])) > 0.01
    np.testing.assert_allclose(found["fwiou"], 10 / 11 * 0.9 + 1 / 11 * 0.5, rtol=1e-15)


def test_absent_class_is_nan_and_outside_the_means():
    truth = np.array([[[0, 0], [1, 3]]])
    found = scores(confusion(truth, np.array([[[0, 0], [0, 1]]]), 3))
    np.testing.assert_equal(found["iou"], [2 / 3, 0.0, math.nan])
    assert (found["miou"], found["fwiou"], found["dice"]) == (
        1 / 3,
        pytest.approx(4 / 9, rel=1e-15),
        0.4,
    )


def test_a_class_found_where_it_is_not_is_no_class_of_the_mean():
    """What one method predicts must not change over which classes it is compared with another."""
    truth = np.repeat([0, 1, 2], 1000).reshape(1, 50, 60)
    stray = truth.copy()
    stray[0, 0, 0] = 3
    for prediction, miou in ((truth, 1.0), (stray, (0.999 + 1 + 1) / 3)):
        scorer = Scorer(4)
        scorer.update(truth, prediction)
        found = scorer.result()
        assert found["classes_scored"] == [0, 1, 2] and math.isnan(found["iou"][3])
        assert found["miou"] == pytest.approx(miou, rel=1e-12)
        assert found["biou"] > 0.98


def test_prediction_of_none_is_a_miss():
    found = scores(confusion(np.array([0, 0, 1, 2]), np.array([0, 2, 1, 2]), 2))
    assert (found["iou"], found["accuracy"]) == ([0.5, 1.0], 2 / 3)


@pytest.mark.filterwarnings("error")
def test_only_ignore_gives_nan_without_warning():
    found = scores(confusion(np.full(4, 2), np.zeros(4, int), 2))
    assert all(
        math.isnan(v)
        for v in (found["miou"], found["fwiou"], found["dice"], found["accuracy"], *found["iou"])
    )


def test_scores_refuse():
    with pytest.raises(ValueError, match="ignore = 'kept'"):
        scores(np.zeros((3, 3)), "kept")
    with pytest.raises(ValueError, match=r"matrix has shape \(3, 2\)"):
        scores(np.zeros((3, 2)))


def test_per_class_by_hand_holds_the_row_of_ignore():
    found = metrics.per_class(np.array([[2, 1, 0], [0, 3, 0], [1, 0, 4]]))
    np.testing.assert_array_equal(found["iou"], [2 / 4, 3 / 4, 4 / 5])
    np.testing.assert_array_equal(found["dice"], [4 / 6, 6 / 7, 8 / 9])
    np.testing.assert_array_equal(found["recall"], [2 / 3, 3 / 3, 4 / 5])


def test_band_width_is_a_share_of_the_diagonal():
    sizes = (224, 224), (128, 128), (3, 3), (300, 400)
    assert [metrics.band_width(*size) for size in sizes] == [6, 4, 1, 10]


def test_band_by_hand():
    mask = np.zeros((1, 5, 7), int)
    mask[0, :, 6] = 1
    wanted = [
        [1, 1, 1, 1, 1, 1, 1],
        [1, 0, 0, 0, 0, 1, 1],
        [1, 0, 0, 0, 0, 1, 1],
        [1, 0, 0, 0, 0, 1, 1],
        [1, 1, 1, 1, 1, 1, 1],
    ]
    np.testing.assert_array_equal(band(mask, 1)[0], np.array(wanted, bool))


@pytest.mark.parametrize("d", [1, 2, 5])
def test_band_of_every_class_at_once(d):
    masks = blobs(2, 5)
    for found, mask in zip(band(masks, d), masks):
        for c in range(5):
            np.testing.assert_array_equal(found & (mask == c), slow_band(mask == c, d))


@pytest.mark.parametrize("ignore", ["dropped", "counted"])
@pytest.mark.parametrize("d", [1, 3])
def test_boundary_against_the_slow_reference(ignore, d, monkeypatch):
    monkeypatch.setattr(metrics, "band_width", lambda H, W: d)
    truth, prediction = blobs(3, 6, cell=16).astype(int), blobs(4, 5, cell=16)
    truth[truth == 5] = 255
    prediction = np.where(blobs(5, 2) == 0, np.minimum(truth, 4), prediction)
    found = boundary_counts(truth, prediction, 4, ignore)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, slow_boundary(truth, prediction, 4, ignore, d))


def test_boundary_by_hand():
    truth = np.zeros((1, 5, 5), int)
    truth[0, :, 3:] = 1
    shifted = np.zeros((1, 5, 5), int)
    shifted[0, :, 4:] = 1
    # d = 1. Class 0: bands of 5x3 and 5x4 without their insides of 3x1 and 3x2, so 12 and 14
    # pixels, and 11 are common (the column x = 2 loses its inner three). Class 1: 10 and 5 pixels,
    # one within the other
    np.testing.assert_array_equal(boundary_counts(truth, shifted, 2), [[9, 5], [17, 10]])


def test_boundary_is_one_where_every_judged_pixel_is_right():
    truth = np.zeros((1, 50, 50), int)
    truth[0, :, 25:] = 1  # ignore: C = 1
    everywhere = np.zeros((1, 50, 50), int)
    inter, union = boundary_counts(truth, everywhere, 1)
    assert inter == union > 0
    inter, union = boundary_counts(truth, everywhere, 1, "counted")
    assert inter < union


def test_boundary_refuses_masks_without_images():
    with pytest.raises(ValueError, match=r"masks have shape \(3, 3\); expected \(B, H, W\)"):
        boundary_counts(TRUTH[0], PREDICTION[0], 2)


@pytest.mark.parametrize("chunk", [metrics.CHUNK, 2 * 48 * 48])
def test_groups_are_counted_as_each_would_be_alone(chunk, monkeypatch):
    monkeypatch.setattr(metrics, "CHUNK", chunk)
    truth, prediction = blobs(6, 4, n=7, cell=16).astype(int), blobs(7, 5, n=7)
    truth[::3, :20] = 4  # ignore, in some masks alone
    truth[1, 30:] = truth[3, 35:] = 255
    truth[5] = 4  # nothing but ignore
    groups = ["b", "a", "a", "b", "c", "a", "b"]
    found = metrics.of_groups(truth, prediction, groups, 4)
    assert list(found) == ["a", "b", "c"] and all(
        list(of) == list(metrics.IGNORE) for of in found.values()
    )
    for group, rules in found.items():
        own = np.array(groups) == group
        for rule, counts in rules.items():
            wanted = Counts.of(truth[own], prediction[own], 4, rule)
            assert counts.ignore == rule and wanted.matrix.any() and wanted.boundary.any()
            np.testing.assert_array_equal(counts.matrix, wanted.matrix)
            np.testing.assert_array_equal(counts.boundary, wanted.boundary)


def test_groups_of_as_many_classes_as_small_integers_hold():
    rng = np.random.default_rng(0)
    truth, prediction = rng.integers(0, 17, (2, 16, 16)), rng.integers(0, 15, (2, 16, 16))
    for rule, counts in metrics.of_groups(truth, prediction, ["a", "a"], 14)["a"].items():
        slow = np.zeros((15, 15), int)
        for t, p in zip(truth.ravel(), prediction.ravel()):
            if t <= 14:  # 15 and 16 lie outside
                slow[t, p] += 1
        np.testing.assert_array_equal(counts.matrix, slow)
        wanted = boundary_counts(truth, prediction, 14, rule)
        np.testing.assert_array_equal(counts.boundary, wanted)


def test_gate_closes_absent_classes_only():
    given = torch.arange(8.0).reshape(2, 2, 1, 2)
    labels = torch.tensor([[1, 0], [0, 0]])
    found = gate(given, labels)
    inf = math.inf
    assert found.tolist() == [
        [[[0.0, 1.0]], [[-inf, -inf]]],
        [[[4.0, 5.0]], [[6.0, 7.0]]],  # no label: left as it is
    ]
    assert found.argmax(1).tolist() == [[[0, 0]], [[1, 1]]]
    assert given.tolist() == torch.arange(8.0).reshape(2, 2, 1, 2).tolist()
    for kind in (torch.bool, torch.float32, torch.uint8):
        assert torch.equal(gate(given, labels.to(kind)), found)


def test_gate_refuses():
    with pytest.raises(ValueError, match="values other than 0 and 1; threshold"):
        gate(torch.zeros(1, 2, 3, 3), torch.tensor([[0.7, 1.0]]))
    with pytest.raises(ValueError, match=r"scores \(1, 2, 3, 3\) and labels \(1, 3\) do not fit"):
        gate(torch.zeros(1, 2, 3, 3), torch.ones(1, 3))


def test_band_takes_every_integer():
    masks = blobs(2, 5)
    wanted = band(masks, 2)
    np.testing.assert_array_equal(band(masks.astype(np.int64), 2), wanted)
    for low, high in ((0, 255), (-1, 4), (3, 70_000)):  # values where a uint8 has no room outside
        wide = np.where(masks == 0, low, np.where(masks == 1, high, masks + 10))
        np.testing.assert_array_equal(band(wide, 2), wanted)
    assert band(masks[:0], 2).shape == (0, 48, 48)


def test_a_band_as_wide_as_the_image_is_all_of_it():
    assert band(np.zeros((1, 5, 7), np.uint8), 3).all()
    assert not band(np.zeros((1, 7, 7), np.uint8), 3)[0, 3, 3]


@pytest.mark.parametrize("C", [14, 15, 40])
def test_many_classes_against_loops(C):
    """From 15 classes on, a pair of classes has no room in a uint8."""
    truth, prediction = blobs(8, C + 2, size=96), blobs(9, C + 1, size=96)
    wanted = np.zeros((C + 2, C + 2), int)
    np.add.at(wanted, (truth, prediction), 1)
    np.testing.assert_array_equal(confusion(truth, prediction, C), wanted[:-1, :-1])
    np.testing.assert_array_equal(
        boundary_counts(truth, prediction, C), slow_boundary(truth, prediction, C, "dropped", d=3)
    )


@pytest.mark.parametrize("ignore", ["dropped", "counted"])
def test_counts_in_parts_are_those_of_the_whole(ignore, monkeypatch):
    truth, prediction = blobs(6, 6, n=7), blobs(7, 5, n=7)
    whole = Counts.of(truth, prediction, 4, ignore)
    monkeypatch.setattr(metrics, "CHUNK", 2 * 48 * 48)  # parts of 2, 2, 2 and 1 masks
    parts = Counts.of(truth, prediction, 4, ignore)
    np.testing.assert_array_equal(parts.matrix, whole.matrix)
    np.testing.assert_array_equal(parts.boundary, whole.boundary)
    flat = confusion(truth.ravel(), prediction.ravel(), 4)
    np.testing.assert_array_equal(flat, whole.matrix)
    assert confusion(truth[0, 0, 0], prediction[0, 0, 0], 4).sum() == 1


def test_counts_of_slides_add_up_to_the_split():
    truth, prediction = blobs(6, 5, n=5), blobs(7, 5, n=5)
    slides = np.array([0, 1, 0, 2, 1])
    per_slide = [Counts.of(truth[slides == s], prediction[slides == s], 4) for s in range(3)]
    total = sum(per_slide, Counts.none(4))
    assert total.scores() == Counts.of(truth, prediction, 4).scores()
    scorer = Scorer(4)
    scorer.update(truth, prediction)
    assert total.scores().items() <= scorer.result().items()


def test_counts_under_two_rules_do_not_add_up():
    with pytest.raises(ValueError, match="ignore pixels dropped and counted do not add up"):
        Counts.none(2) + Counts.none(2, "counted")
    with pytest.raises(ValueError, match="ignore = 'kept'"):
        Counts.none(2, "kept")


def test_scoring_needs_no_memory_for_more_masks():
    def peak(n: int) -> float:
        truth = np.zeros((n, 64, 64), np.uint8)
        tracemalloc.start()
        Scorer(4).update(truth, truth)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(1500) < 1.1 * peak(300)  # both are more than CHUNK


@pytest.mark.parametrize("ignore", ["dropped", "counted"])
def test_scorer_adds_up_batches(ignore):
    truth, prediction = blobs(6, 5, n=5).astype(int), blobs(7, 5, n=5).astype(int)
    scorer = Scorer(4, Protocol("none", ignore))
    for part in (slice(0, 2), slice(2, 5)):
        scorer.update(torch.tensor(truth[part]), torch.tensor(prediction[part]))
    found = scorer.result()
    fractions = ["miou", "fwiou", "biou", "dice", "accuracy", "iou"]
    assert list(found) == [*fractions, "classes_scored", "image_labels", "ignore"]
    assert (found["image_labels"], found["ignore"]) == ("none", ignore)
    assert found["classes_scored"] == [0, 1, 2, 3]
    assert_scores(found, slow_scores(truth, prediction, 4, ignore))
    # 48 px: 0.02 * 67.9 rounds to 1
    inter, union = slow_boundary(truth, prediction, 4, ignore, d=1)
    np.testing.assert_allclose(found["biou"], (inter / union).mean(), rtol=1e-13)


def test_scorer_of_a_perfect_mask_with_an_absent_class():
    scorer = Scorer(3)
    scorer.update(np.minimum(TRUTH, 1), np.minimum(TRUTH, 1))
    found = scorer.result()
    assert [found[name] for name in ("miou", "fwiou", "biou", "dice", "accuracy")] == [1.0] * 5
    np.testing.assert_equal(found["iou"], [1.0, 1.0, math.nan])
    assert found["classes_scored"] == [0, 1]


def test_scorer_refuses_nothing_and_keeps_nothing_of_a_refused_batch():
    scorer = Scorer(2)
    with pytest.raises(ValueError, match="no pixel was counted"):
        scorer.result()
    with pytest.raises(ValueError, match="prediction holds values"):
        scorer.update(TRUTH, PREDICTION + 2)
    assert not scorer.counts.matrix.any() and not scorer.counts.boundary.any()


@pytest.mark.filterwarnings("error")
def test_what_is_not_there_is_nan_without_a_warning():
    found = metrics.extent(np.array([[2, 1, 0], [0, 0, 0], [0, 0, 0]]))  # no pixel of class 1
    np.testing.assert_array_equal(found["area"], [2 / 3, np.nan])
    np.testing.assert_array_equal(found["precision"], [1, 0])
    np.testing.assert_array_equal(metrics.label_f1([[-1.0, 1.0]], [[0, 1]]), [np.nan, 1])


def test_extent_by_hand():
    # class 0: 8 true, 4 predicted of which 3 hits; class 1: 2 true, 6 predicted, 1 hit;
    # class 2 is nowhere but in the prediction; what is called C is a miss
    matrix = np.array([[3, 5, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 2, 4, 9]])
    found = metrics.extent(matrix)
    np.testing.assert_allclose(found["area"], [4 / 8, 6 / 2, math.nan])
    np.testing.assert_allclose(found["recall"], [3 / 8, 1 / 2, math.nan])
    np.testing.assert_allclose(found["precision"], [3 / 4, 1 / 6, math.nan])
    called_none = metrics.extent(np.array([[1, 3], [0, 0]]))  # three pixels given to no class
    np.testing.assert_allclose([called_none[key][0] for key in called_none], [1 / 4, 1 / 4, 1])


def test_reliability_by_hand():
    curve = metrics.reliability([0.0, 0.5, 0.6, 0.9, 1.0], [0, 1, 0, 1, 1], bins=2)
    np.testing.assert_allclose(curve["edges"], [0, 0.5, 1])
    np.testing.assert_array_equal(curve["counts"], [2, 3])  # a bin holds its right edge
    np.testing.assert_allclose(curve["confidence"], [0.25, 2.5 / 3])
    np.testing.assert_allclose(curve["frequency"], [0.5, 2 / 3])
    # (2 * .25 + 3 * (2.5 - 2) / 3) / 5
    error = metrics.expected_calibration_error([0.0, 0.5, 0.6, 0.9, 1.0], [0, 1, 0, 1, 1], bins=2)
    assert error == pytest.approx(0.2)


def test_an_empty_bin_is_nan_and_weighs_nothing():
    curve = metrics.reliability(np.full((2, 2), 0.95), np.ones((2, 2)))
    assert np.isnan(curve["confidence"][:9]).all() and curve["counts"].tolist() == [0] * 9 + [4]
    assert metrics.expected_calibration_error([0.95] * 4, [1] * 4) == pytest.approx(0.05)
    assert math.isnan(metrics.expected_calibration_error([], []))


def test_calibration_error_is_0_for_honest_words_and_grows_with_boasting():
    rng = np.random.default_rng(0)
    p = rng.random(200_000)
    truth = rng.random(p.size) < p
    assert metrics.expected_calibration_error(p, truth) < 0.005
    # always sure, right half the time
    assert metrics.expected_calibration_error(np.ones(4), [0, 1, 0, 1]) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("probability", "truth", "says"),
    [
        ([0.5], [0, 1], "1 probabilities and 2 outcomes"),
        ([1.5], [1], "outside"),
        ([-0.1], [1], "outside"),
        ([math.nan], [1], "outside"),
        ([0.5], [2], "other than 0 and 1"),
    ],
)
def test_reliability_refuses_what_is_no_probability_or_outcome(probability, truth, says):
    with pytest.raises(ValueError, match=says):
        metrics.reliability(probability, truth)


def test_best_cuts_by_hand():
    logits = np.array([[-1.0, 2.0, -3.0], [-2.0, -2.0, -1.0], [3.0, 1.0, 1.0], [-4.0, -9.0, 2.0]])
    labels = np.array([[1, 1, 1], [1, 0, 0], [1, 1, 0], [0, 0, 0]])
    cuts = metrics.best_cuts(logits, labels)
    # all is right between -2 and -4; all was right at 0; saying all is best where only the lowest
    # is true
    np.testing.assert_allclose(cuts, [-3, 0, -4])
    np.testing.assert_allclose(metrics.label_f1(logits, labels), [2 / 4, 1, 0])
    np.testing.assert_allclose(metrics.label_f1(logits, labels, cuts), [1, 1, 2 / 5])


def test_best_cuts_are_as_good_as_any_of_a_fine_grid():
    rng = np.random.default_rng(1)
    labels = rng.random((60, 3)) < 0.4
    logits = rng.normal(size=(60, 3)) + 1.2 * labels - 0.8
    found = metrics.label_f1(logits, labels, metrics.best_cuts(logits, labels))
    swept = [metrics.label_f1(logits, labels, cut) for cut in np.linspace(-5, 5, 2001)]
    np.testing.assert_allclose(found, np.nanmax(swept, axis=0))
    assert (found > metrics.label_f1(logits, labels)).all()


def test_a_class_without_labels_keeps_its_cut_and_shapes_are_checked():
    assert metrics.best_cuts([[1.0], [-1.0]], [[0], [0]]).tolist() == [0.0]
    with pytest.raises(ValueError, match=r"expected \(B, C\) of both"):
        metrics.best_cuts([1.0, 2.0], [[0], [1]])
    with pytest.raises(ValueError, match=r"logits \(2,\) and labels \(2,\)"):
        metrics.best_cuts([1.0, 2.0], [0, 1])


def test_label_accuracy_by_hand():
    logits = torch.tensor([[2.0, -1.0], [0.5, 0.5], [0.0, -3.0], [-2.0, 1.0]])
    labels = torch.tensor([[1, 0], [1, 0], [0, 0], [1, 1]])
    # 0 is not present; the second and the fourth row have one mistake each
    assert metrics.label_accuracy(logits, labels) == (2 / 4, 6 / 8)
    third = metrics.label_accuracy(logits[:3], labels[:3])
    assert third == (2 / 3, 5 / 6)  # to the last digit of a float64


def test_a_band_of_a_list_is_that_of_the_array():
    mask = [[[0, 0, 1], [0, 0, 1], [0, 0, 1]]]
    np.testing.assert_array_equal(band(mask, 1), band(np.array(mask), 1))


def test_boundary_counts_add_up_and_know_two_rules_only():
    truth, prediction = blobs(6, 5, n=2), blobs(7, 5, n=2)
    each = [Counts.of(truth[i : i + 1], prediction[i : i + 1], 4) for i in range(2)]
    both = Counts.of(truth, prediction, 4)
    np.testing.assert_array_equal((each[0] + each[1]).boundary, both.boundary)
    assert (each[1].boundary > 0).all()
    with pytest.raises(ValueError, match="ignore = 'kept'"):
        boundary_counts(truth, prediction, 4, "kept")


def test_ten_bins_are_what_is_meant_where_none_are_named():
    said, true = np.linspace(0, 1, 77), np.arange(77) % 3 == 0
    assert len(metrics.reliability(said, true)["counts"]) == 10
    assert metrics.expected_calibration_error(said, true) == metrics.expected_calibration_error(
        said, true, 10
    )


def test_a_logit_at_the_cut_is_not_above_it():
    np.testing.assert_array_equal(metrics.label_f1([[0.0], [1.0]], [[0], [1]]), [1.0])


def test_of_cuts_as_good_as_each_other_the_one_nearest_to_0_is_taken():
    # the best one and the best four of five have F1 2/3 each
    cuts = metrics.best_cuts([[-1.0], [-2.0], [-3.0], [-4.0], [-9.0]], [[1], [0], [0], [1], [0]])
    assert cuts.tolist() == [-1.5]
    # a cut lies in the middle of two neighbours, or 1 below the lowest of all
    assert metrics.best_cuts([[-3.0], [-0.5], [1.0]], [[0], [1], [1]]).tolist() == [-1.75]


def test_scores_for_classes_are_refused_by_name_with_a_gradient_too():
    with pytest.raises(ValueError, match="truth has dtype float32"):
        confusion(torch.zeros(2, requires_grad=True), torch.zeros(2), 2)


def test_the_protocol_of_the_oracle_is_its_own():
    assert (metrics.ORACLE.image_labels, metrics.ORACLE.ignore) == ("oracle", "dropped")
    assert (metrics.DEFAULT.image_labels, metrics.DEFAULT.ignore) == ("predicted", "dropped")


def test_a_value_below_0_ends_at_the_edge_of_the_image_too():
    ring = np.ones((5, 5), bool)
    ring[1:-1, 1:-1] = False
    for value in (-1, 0, 254, 255):
        np.testing.assert_array_equal(band(np.full((1, 5, 5), value), 1)[0], ring)
