"""What holds for any input: bounds, symmetry, the names of the classes, the order of a batch, and
half the digits. Hypothesis draws the inputs, the same each time."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from protolib import bank, losses, maps, metrics
from protolib.matching import matching_loss
from protolib.presets import PRESETS
from protolib.study import compare

settings.register_profile("same", derandomize=True, database=None, deadline=None, max_examples=40)
settings.load_profile("same")

C = 3  # tissue classes
seeds = st.integers(0, 2**32 - 1)
masks = arrays(np.uint8, (2, 7, 9), elements=st.integers(0, C))
orders = st.permutations(range(C))


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def labels_of(seed: int, B: int) -> torch.Tensor:
    """(B, C) of 0 and 1, a class in every row."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=(B, C))
    labels[np.arange(B), rng.integers(C, size=B)] = 1
    return torch.from_numpy(labels)


def close(found, wanted, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


# Metrics


@given(masks, masks, st.sampled_from(["dropped", "counted"]))
def test_scores_are_shares_and_dice_follows_from_iou(truth, prediction, ignore):
    assume((truth < C).any())
    found = metrics.Counts.of(truth, prediction, C, ignore).scores()
    for name in ("miou", "fwiou", "biou", "dice", "accuracy"):
        assert 0 <= found[name] <= 1 or math.isnan(found[name])
    iou = np.array(found["iou"])[found["classes_scored"]]
    assert ((iou >= 0) & (iou <= 1)).all()
    assert found["dice"] == pytest.approx((2 * iou / (1 + iou)).mean(), rel=1e-12)
    assert found["classes_scored"] == np.unique(truth[truth < C]).tolist()


@given(masks)
def test_a_mask_that_is_right_scores_1(truth):
    assume((truth < C).any())
    found = metrics.Counts.of(truth, np.minimum(truth, C - 1), C).scores()
    for name in ("miou", "fwiou", "biou", "dice", "accuracy"):
        assert found[name] == 1


@given(masks, masks)
def test_truth_and_prediction_may_change_places_where_nothing_is_ignored(truth, prediction):
    truth, prediction = np.minimum(truth, C - 1), np.minimum(prediction, C - 1)
    one, other = metrics.confusion(truth, prediction, C), metrics.confusion(prediction, truth, C)
    np.testing.assert_array_equal(one, other.T)
    np.testing.assert_array_equal(metrics.per_class(one)["iou"], metrics.per_class(other)["iou"])
    bands = [
        metrics.boundary_counts(*pair, C) for pair in ((truth, prediction), (prediction, truth))
    ]
    np.testing.assert_array_equal(*bands)


@given(masks, masks, orders, st.sampled_from(["dropped", "counted"]))
def test_the_names_of_the_classes_are_only_names(truth, prediction, order, ignore):
    assume((truth < C).any())
    named = np.array([*order, C], np.uint8)  # old index -> new
    found = metrics.Counts.of(named[truth], named[prediction], C, ignore).scores()
    wanted = metrics.Counts.of(truth, prediction, C, ignore).scores()
    np.testing.assert_array_equal(np.array(found["iou"])[order], wanted["iou"])
    for name in ("miou", "fwiou", "biou", "dice", "accuracy"):
        assert found[name] == pytest.approx(wanted[name], rel=1e-12, nan_ok=True)


@given(masks, masks, st.integers(0, 7))
def test_counts_know_neither_order_nor_pose(truth, prediction, k):
    wanted = metrics.Counts.of(truth, prediction, C)
    turned = [maps.pose(torch.from_numpy(m), k).numpy() for m in (truth, prediction)]
    parts = [metrics.Counts.of(truth[i : i + 1], prediction[i : i + 1], C) for i in (1, 0)]
    for found in (metrics.Counts.of(*turned, C), parts[0] + parts[1]):
        np.testing.assert_array_equal(found.matrix, wanted.matrix)
        np.testing.assert_array_equal(found.boundary, wanted.boundary)


@given(seeds, st.integers(1, 12))
def test_a_calibration_error_is_a_share_and_bins_hold_what_lies_in_them(seed, bins):
    rng = np.random.default_rng(seed)
    said, true = rng.random(30).round(2), rng.integers(2, size=30)
    curve = metrics.reliability(said, true, bins)
    full = curve["counts"] > 0
    low, high = curve["edges"][:-1][full], curve["edges"][1:][full]
    assert curve["counts"].sum() == 30
    assert (low - 1e-12 <= curve["confidence"][full]).all()
    assert (curve["confidence"][full] <= high + 1e-12).all()
    assert curve["frequency"][full] @ curve["counts"][full] == pytest.approx(true.sum())
    assert 0 <= metrics.expected_calibration_error(said, true, bins) <= 1


@given(seeds)
def test_a_chosen_cut_is_never_worse_than_the_usual_one(seed):
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(size=(8, C)).round(1), rng.integers(2, size=(8, C))
    chosen = metrics.label_f1(logits, labels, metrics.best_cuts(logits, labels))
    usual = metrics.label_f1(logits, labels)
    assert (np.nan_to_num(chosen) >= np.nan_to_num(usual)).all()


# The bank


@given(seeds, st.integers(1, 4))
def test_each_row_has_the_nearest_centre_and_more_steps_bring_it_nearer(seed, K):
    X = normal(seed, 12, 5).numpy()
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    runs = [bank.lloyd(X, X[:K], max_iter=n) for n in (1, 2, 3, 50)]
    closeness = [run.cosines.max(1).mean() for run in runs]
    assert (np.diff(closeness) > -1e-12).all()
    for run in runs:
        np.testing.assert_array_equal(run.labels, run.cosines.argmax(1))
        np.testing.assert_allclose(np.linalg.norm(run.centres, axis=1), 1, rtol=1e-12)


@given(seeds, st.integers(1, 5))
def test_centres_to_begin_with_are_different_rows(seed, K):
    X = normal(seed, 5, 4).numpy()
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    for found in (bank.seed_centres(X, K, np.random.default_rng(seed)), bank.random_rows(X, K, 0)):
        rows = [int(np.flatnonzero((X == centre).all(1))[0]) for centre in found]
        assert len(set(rows)) == K


@given(seeds)
def test_the_order_of_rows_renames_what_clusters_hold_and_nothing_else(seed):
    X, order = normal(seed, 10, 4).numpy(), np.random.default_rng(seed).permutation(10)
    one, other = bank.lloyd(X, X[:3]), bank.lloyd(X[order], X[:3])
    np.testing.assert_array_equal(other.labels, one.labels[order])
    np.testing.assert_allclose(other.centres, one.centres, rtol=1e-9, atol=1e-12)


@given(seeds)
def test_every_space_gives_unit_rows_to_arrays_tensors_and_half_the_digits(seed):
    features = normal(seed, 20, 6).float().numpy() + 0.5
    owners = np.arange(20) % 2
    for space in (
        bank.raw_space(features),
        bank.standardised_space(features),
        bank.wccn_space(features, owners, 1.0),
    ):
        rows = space.unit(features)
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)
        close(space.unit(torch.from_numpy(features)), torch.from_numpy(rows), 1e-5)
        half = space.unit(torch.from_numpy(features).bfloat16()).float()
        assert ((half * torch.from_numpy(rows)).sum(1) > 0.99).all()


@given(seeds)
def test_a_standardised_space_does_not_know_in_which_unit_a_channel_was(seed):
    features = normal(seed, 20, 6).numpy()
    scale, shift = np.exp(normal(seed + 1, 6).numpy()), normal(seed + 2, 6).numpy()
    moved = features * scale + shift
    found = bank.standardised_space(moved).unit(moved)
    # a thousandth of the scale is added to it, so that no channel divides by 0
    np.testing.assert_allclose(found, bank.standardised_space(features).unit(features), atol=1e-4)


@given(seeds, st.floats(0, 1))
def test_text_in_prototypes_goes_from_none_to_all(seed, share):
    made = SimpleNamespace(
        space=bank.raw_space(np.zeros((1, 4))), classes="AB", K=2, prototypes=None
    )
    rows = F.normalize(normal(seed, 6, 4), dim=1).numpy()
    made = bank.Bank(("A", "B"), 2, "centre", rows[:4], made.space, rows, rows, ((),) * 4)
    found = bank.with_text(made, rows[4:], share).prototypes
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-6)
    text = np.repeat(rows[4:], 2, axis=0)
    toward = (found * text).sum(1) - (rows[:4] * text).sum(1)
    assert (toward > -1e-6).all()
    np.testing.assert_allclose(bank.with_text(made, rows[4:], 1.0).prototypes, text, atol=1e-6)
    np.testing.assert_allclose(bank.with_text(made, rows[4:], 0.0).prototypes, rows[:4], atol=1e-6)


# Maps


@given(seeds)
def test_cosines_lie_between_minus_1_and_1_and_half_the_digits_find_the_same(seed):
    features, prototypes = 5 * normal(seed, 2, 6, 3, 3), normal(seed + 1, 4, 6)
    found = maps.cosine_maps(features, prototypes)
    assert found.abs().max() <= 1 + 1e-12
    close(maps.cosine_maps(features, prototypes.flip(0)), found.flip(1))
    close(maps.cosine_maps(-features, 3 * prototypes), -found)
    half = maps.cosine_maps(features.bfloat16(), prototypes.bfloat16())
    assert (half.double() - found).abs().max() < 2**-5


@given(seeds, st.sampled_from(["mean", "softmax"]))
def test_a_merged_map_lies_between_its_sub_classes(seed, how):
    found = maps.merge_subclasses(m := 3 * normal(seed, 2, 6, 2, 3), (2, 3, 1), how)
    for c, group in enumerate(m.split((2, 3, 1), 1)):
        assert (found[:, c] <= group.amax(1) + 1e-12).all()
        assert (found[:, c] >= group.amin(1) - 1e-12).all()
        assert (found[:, c] >= group.mean(1) - 1e-12).all()  # a softmax favours what is high
    close(maps.merge_subclasses(m[:, [1, 0, 4, 2, 3, 5]], (2, 3, 1), how), found)
    close(maps.merge_subclasses(m + 2, (2, 3, 1), how), found + 2)


@given(seeds)
def test_a_stretched_map_reaches_both_ends_whatever_its_unit(seed):
    found = maps.unit_range(m := normal(seed, 2, C, 3, 4))
    assert found.amin() == 0 and found.amax((2, 3)).eq(1).all()
    close(maps.unit_range(7 * m - 3), found)
    close(maps.unit_range(found), found)
    shown = maps.unit_scores(m)
    assert shown.amin() >= 0 and shown.amax() <= 1 and (shown[m <= 0] == 0).all()


@given(seeds)
def test_shares_of_present_classes_add_up_to_1(seed):
    m, labels = normal(seed, 3, C, 2, 2), labels_of(seed, 3)
    found = maps.present_share(m, labels)
    close(found.sum(1), torch.ones(3, 2, 2).double())
    assert (found[labels == 0] == 0).all() and (found >= 0).all()
    close(maps.present_share(m + 5, labels), found)


@given(seeds)
def test_a_masked_average_lies_among_what_it_averages(seed):
    levels = [normal(seed, 2, 3, 4, 4), normal(seed + 1, 2, 2, 2, 2)]
    weights = torch.rand(2, C, 2, 2, generator=torch.Generator().manual_seed(seed)).double() + 0.01
    found = maps.masked_average(levels, weights)
    for part, level in zip(found.split((3, 2), 2), levels):
        assert (part <= level.amax((2, 3))[:, None] + 1e-12).all()
        assert (part >= level.amin((2, 3))[:, None] - 1e-12).all()
    close(maps.masked_average([m.flip(0) for m in levels], weights.flip(0)), found.flip(0))
    close(maps.masked_average(levels, 0.01 * weights), found)


@given(seeds, st.booleans())
def test_fused_maps_are_as_far_from_zero_as_their_parts_allow(seed, corners):
    parts = [normal(seed, 2, C, 3, 3), normal(seed + 1, 2, C, 2, 2)]
    found = maps.fuse(parts, (0.25, 0.75), (6, 9), corners)
    top = sum(w * m.abs().amax() for w, m in zip((0.25, 0.75), parts))
    assert found.abs().amax() <= top + 1e-12
    close(maps.fuse([2 * m for m in parts], (0.25, 0.75), (6, 9), corners), 2 * found)
    close(maps.fuse([m.flip(3) for m in parts], (0.25, 0.75), (6, 9), corners), found.flip(3))
    if corners:  # corners stay where they are
        wanted = 0.25 * parts[0][..., 0, 0] + 0.75 * parts[1][..., 0, 0]
        close(found[..., 0, 0], wanted)
    half = maps.fuse([m.bfloat16() for m in parts], (0.25, 0.75), (6, 9), corners)
    assert (half.double() - found).abs().max() < 2**-5


@given(seeds, st.sampled_from([1, 3, 5]))
def test_diffusion_stays_among_the_scores_and_turns_with_the_image(seed, side):
    m, features = normal(seed, 2, C, 4, 4), normal(seed + 1, 2, 5, 4, 4)
    found = maps.diffuse(m, features, side)
    assert (found <= m.amax((2, 3), keepdim=True) + 1e-12).all()
    assert (found >= m.amin((2, 3), keepdim=True) - 1e-12).all()
    close(maps.diffuse(maps.pose(m, 5), maps.pose(features, 5), side), maps.pose(found, 5), 1e-9)
    close(maps.diffuse(torch.ones_like(m), features, side), torch.ones_like(m))


@given(seeds, st.sampled_from(["closed", "zeroed"]), orders)
def test_masks_hold_present_classes_under_whatever_name(seed, gating, order):
    scores, labels = normal(seed, 2, C, 3, 3).abs() + 0.1, labels_of(seed, 2)
    found = maps.argmax_masks(scores, labels, gating).long()
    assert labels.gather(1, found.flatten(1)).all()
    renamed = maps.argmax_masks(scores[:, order], labels[:, order], gating).long()
    close(torch.tensor(order)[renamed], found)
    assert maps.argmax_masks(scores.flip(0), labels.flip(0), gating).equal(found.flip(0).byte())


@given(seeds, st.integers(0, 7))
def test_a_pose_can_be_undone_and_loses_no_pixel(seed, k):
    image = normal(seed, 2, 3, 4, 4)
    posed = maps.pose(image, k)
    assert maps.unpose(posed, k).equal(image)
    assert posed.flatten(2).sort(2).values.equal(image.flatten(2).sort(2).values)


# Losses


@given(seeds)
def test_present_and_absent_may_change_places_in_the_classification_loss(seed):
    logits, labels = 4 * normal(seed, 2, 5, C), labels_of(seed, 5).double()
    weights = (0.3, 2.0)
    found = losses.classification_loss(logits, labels, weights)
    assert found > 0
    close(losses.classification_loss(-logits, 1 - labels, weights), found)
    close(losses.classification_loss(logits.flip(1, 2), labels.flip(0, 1), weights), found)
    doubled = losses.classification_loss(logits.repeat(1, 2, 1), labels.repeat(2, 1), weights)
    close(doubled, found)  # a mean, not a sum
    half = losses.classification_loss(logits.bfloat16(), labels.bfloat16(), weights)
    assert half.item() == pytest.approx(found.item(), rel=2**-5)


@given(seeds, st.integers(2, 4))
def test_alikeness_is_a_share_and_knows_no_order_of_sub_classes(seed, K):
    m = normal(seed, 2, 2 * K, 3, 3)
    found = losses.diversity_loss(m, K)
    assert 0 < found <= 1
    order = [*reversed(range(K)), *reversed(range(K, 2 * K))]
    close(losses.diversity_loss(m[:, order], K), found)
    close(losses.diversity_loss(m + normal(seed + 1, 2, 2 * K, 1, 1), K), found)
    close(losses.diversity_loss(m.flip(0), K), found)
    close(losses.diversity_loss(m[:, :1].repeat(1, 2 * K, 1, 1), K), torch.tensor(1.0).double())


@given(seeds, st.sampled_from(["masked_pooling", "positions"]))
def test_the_matching_loss_knows_neither_the_order_of_a_batch_nor_that_of_sub_classes(seed, look):
    levels = [normal(seed, 3, 4, 4, 4), normal(seed + 1, 3, 2, 2, 2)]
    logits, labels = 2 * normal(seed + 2, 3, C, 2, 2), labels_of(seed, 3)
    prototypes = F.normalize(normal(seed + 3, 2 * C, 6), dim=1)
    p = replace(PRESETS["quick"], K=2, look=look)

    def loss(levels, logits, labels, prototypes):
        unit = lambda x: F.normalize(x, dim=1)
        return matching_loss(levels, logits, labels, prototypes, unit, p)

    found = loss(levels, logits, labels, prototypes)
    assert found >= 0
    turned = loss([m.flip(0) for m in levels], logits.flip(0), labels.flip(0), prototypes)
    close(turned, found)
    close(loss(levels, logits, labels, prototypes[[1, 0, 3, 2, 5, 4]]), found)
    single = [m.float() for m in (*levels, logits, prototypes)]
    close(loss(single[:2], single[2], labels, single[3]).double(), found, 1e-4)


@given(st.lists(st.integers(0, 60), min_size=1, max_size=4), st.integers(0, 40))
def test_trust_is_a_share_that_grows_with_the_rarest_class(pure, enough):
    of = lambda counts: losses.trust(
        SimpleNamespace(pure=lambda: dict(enumerate(counts))),
        replace(PRESETS["quick"], enough=enough),
    )
    assert 0 <= of(pure) <= of([n + 1 for n in pure]) <= 1
    assert of(pure[::-1]) == of(pure) and of([1000, *pure]) == of(pure)


# Statistics


scores = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=6)


@given(scores)
def test_a_difference_turns_its_sign_with_its_sides_and_knows_no_order(pairs):
    ours, theirs = np.array(pairs).T
    found, turned = compare.paired(ours, theirs), compare.paired(theirs, ours)
    np.testing.assert_allclose(turned.difference, -found.difference, rtol=1e-12)
    np.testing.assert_allclose([turned.low, turned.high], [-found.high, -found.low], rtol=1e-12)
    np.testing.assert_allclose([turned.p, turned.d], [found.p, -found.d], rtol=1e-12)
    again = compare.paired(ours[::-1], theirs[::-1])
    np.testing.assert_allclose(again[1:], found[1:], rtol=1e-6, atol=1e-12)
    if not math.isnan(found.low):
        assert found.low < found.difference < found.high and 0 <= found.p <= 1


@given(seeds, st.sampled_from(["dropped", "counted"]))
def test_the_mean_iou_of_many_matrices_is_that_of_each(seed, ignore):
    matrices = np.random.default_rng(seed).integers(0, 4, size=(5, C + 1, C + 1))
    matrices[:, 0, 0] += 1  # a true pixel
    found = compare.miou(matrices, ignore)
    wanted = [metrics.scores(matrix, ignore)["miou"] for matrix in matrices]
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    assert ((found >= 0) & (found <= 1)).all()


@given(seeds)
def test_an_interval_over_slides_turns_its_sign_with_its_sides(seed):
    a, b = np.random.default_rng(seed).integers(0, 9, size=(2, 2, 4, C + 1, C + 1))
    a[..., 0, 0] += 1
    b[..., 0, 0] += 1
    low, high = compare.over_slides(a, b, draws=50)
    assert -1 <= low <= high <= 1
    np.testing.assert_allclose(compare.over_slides(b, a, draws=50), (-high, -low), atol=1e-12)
    np.testing.assert_allclose(compare.over_slides(a[::-1], b[::-1], draws=50), (low, high))


@given(*[st.tuples(st.floats(-1, 1), st.floats(-1, 1)).map(sorted)] * 2)
def test_what_supports_a_claim_contradicts_its_opposite(seeds, slides):
    opposite = {"supported": "contradicted", "contradicted": "supported"}
    of = lambda seeds, slides: compare.verdict(
        compare.Paired(3, 0.0, *seeds, 0.5, 0.0), tuple(slides)
    )
    said = of(seeds, slides)
    turned = of([-seeds[1], -seeds[0]], [-slides[1], -slides[0]])
    assert turned == opposite.get(said, said)
