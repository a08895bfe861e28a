"""The bank: white filter, spherical k-means, the nearest images, prototypes, files."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from protolib import bank
from protolib.presets import PRESETS

P = replace(PRESETS["quick"], normalise="standardise")


def unit(X):
    return X / np.linalg.norm(X, axis=-1, keepdims=True)


def blobs(n=20, D=16, K=3, spread=0.15, seed=0):
    """K groups of n unit rows around K orthogonal directions, and their group."""
    rng = np.random.default_rng(seed)
    X = np.repeat(np.eye(K, D), n, 0) + spread * rng.standard_normal((K * n, D))
    return unit(X).astype(np.float32), np.repeat(np.arange(K), n)


def patches(labels, white=()):
    """A training split of grey 4x4 patches, some of them white."""
    images = np.full((len(labels), 4, 4, 3), 120, np.uint8)
    images[list(white)] = 250
    labels = np.array(labels, np.uint8)
    return SimpleNamespace(
        spec=SimpleNamespace(classes=("A", "B")),
        ids=[f"p{i}" for i in range(len(labels))],
        images=images,
        labels=labels,
        single_class=lambda: np.flatnonzero(labels.sum(1) == 1),
    )


def test_white_needs_every_channel_to_be_clear():
    image = np.array([[[255, 255, 255], [220, 220, 220]], [[219, 255, 255], [0, 0, 0]]], np.uint8)
    # -ln((v + 1) / 256) is .147 at 220 and .152 at 219: two of the four pixels are white
    assert bank.white_share(image[None]) == pytest.approx([0.5])


def test_lloyd_equals_a_slow_reference():
    X, _ = blobs(spread=0.6)
    centres = X[[0, 1, 2]]
    slow = centres.astype(np.float64)
    for _ in range(100):
        labels = np.array(
            [max(range(3), key=lambda k: (float(x @ slow[k]), -k)) for x in X.astype(np.float64)]
        )
        new = np.stack(
            [
                unit(X[labels == k].astype(np.float64).mean(0)) if (labels == k).any() else slow[k]
                for k in range(3)
            ]
        )
        if np.allclose(new, slow, rtol=1e-5, atol=1e-8):
            break
        slow = new
    found, _, moved, _ = bank.lloyd(X, centres)
    np.testing.assert_array_equal(found, labels)
    np.testing.assert_allclose(moved, slow, atol=1e-5)  # float32 against float64


def test_kmeans_finds_planted_groups_and_unit_centres():
    X, group = blobs()
    labels, _, centres, _ = bank.spherical_kmeans(X, 3, seed=0)
    assert adjusted_rand_score(group, labels) == 1
    np.testing.assert_allclose(np.linalg.norm(centres, axis=1), 1, atol=1e-6)


def test_restarts_never_do_worse_than_one_run():
    X, _ = blobs(K=8, n=6, spread=0.3)

    def quality(restarts):
        run = bank.spherical_kmeans(X, 8, seed=3, restarts=restarts)
        return (X * run.centres[run.labels]).sum(1).mean()

    assert quality(20) >= quality(1)


def test_seeding_takes_distinct_rows_while_there_are_any():
    X = np.eye(3, dtype=np.float32)[
        [0] * 50 + [1, 2]
    ]  # 50 copies of one row: uniform draws would take it again
    for seed in range(5):
        assert np.linalg.matrix_rank(bank.seed_centres(X, 3, np.random.default_rng(seed))) == 3


def test_copies_leave_a_cluster_empty_without_nan():
    X = np.eye(2, dtype=np.float32)[[0, 0, 1]]
    labels, _, centres, _ = bank.spherical_kmeans(X, 3)
    assert len(set(labels)) == 2
    assert np.isfinite(centres).all()


def test_too_few_rows_are_counted():
    with pytest.raises(ValueError, match="2 rows cannot fill K = 3"):
        bank.spherical_kmeans(np.eye(2, dtype=np.float32), 3)


# The space of features and prototypes


def test_a_space_in_closed_form_and_a_tensor_equals_an_array():
    X, origin = np.array([[4.0, 6.0], [1.0, 3.0]]), np.array([1.0, 2.0])
    for transform, expected in (
        (np.array([1.0, 0.5]), [[3 / 13**0.5, 2 / 13**0.5], [0, 1]]),  # (3, 4) and (0, 1) scaled
        (np.array([[0.0, 1.0], [1.0, 1.0]]), [[4 / 65**0.5, 7 / 65**0.5], [0.5**0.5, 0.5**0.5]]),
    ):
        space = bank.Space(origin, transform)
        np.testing.assert_allclose(space.unit(X), expected)
        np.testing.assert_allclose(space.unit(torch.tensor(X)), expected)
        np.testing.assert_allclose(space.unit(X[None]), [expected])  # any shape before D
        nothing = torch.tensor(origin[None])
        assert space.unit(nothing).eq(0).all()  # the origin has no direction, and no NaN


def test_an_array_and_a_tensor_agree_in_every_space():
    X = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    owner = np.arange(40) % 3
    for space in (bank.raw_space(X), bank.standardised_space(X), bank.wccn_space(X, owner, 0.5)):
        tensor = space.unit(torch.from_numpy(X)).numpy()
        np.testing.assert_allclose(tensor, space.unit(X), rtol=0, atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(tensor, axis=1), 1, atol=1e-6)


def test_the_raw_space_is_the_encoder_s_own_and_the_standardised_one_has_mean_0_and_scale_1():
    X = np.array([[1.0, -20.0], [3.0, 40.0]], np.float32)
    np.testing.assert_allclose(bank.raw_space(X).unit(X), unit(X), rtol=1e-6)
    origin, transform = bank.standardised_space(X)
    np.testing.assert_allclose(origin, [2, 10])
    np.testing.assert_allclose(transform, [1, 1 / 30], rtol=1e-5)
    np.testing.assert_allclose((X - origin) * transform, [[-1, -1], [1, 1]], rtol=1e-5)


def two_classes(n: int = 60):
    """Rows around (10, 0) and (0, 4), twice as many of the first, with an exact covariance within
    the classes: variances 4 and 1 along (1, 1) and (1, -1)."""
    rng = np.random.default_rng(0)
    rows, owners = [], []
    for c, (count, mean) in enumerate(((2 * n, (10, 0)), (n, (0, 4)))):
        z = rng.normal(size=(count, 2))
        z -= z.mean(0)
        z = z @ np.linalg.inv(np.linalg.cholesky(z.T @ z / count)).T  # covariance exactly 1
        rows.append(z * (2, 1) @ np.array([[1, 1], [1, -1]]) / 2**0.5 + mean)
        owners += [c] * count
    return np.concatenate(rows), np.array(owners)


WITHIN = np.array([[2.5, 1.5], [1.5, 2.5]])  # 4 along (1, 1), 1 along (1, -1)


def covariance_within(X, owners):
    parts = [X[owners == c] - X[owners == c].mean(0) for c in np.unique(owners)]
    within = np.concatenate(parts)
    return within.T @ within / len(within)


def test_wccn_takes_the_root_of_the_covariance_within_the_classes():
    X, owners = two_classes()
    np.testing.assert_allclose(covariance_within(X, owners), WITHIN, atol=1e-12)
    origin, matrix = bank.wccn_space(X, owners, shrinkage=0.0)
    # the mean of the class means (10, 0) and (0, 4), not of the rows, which lies at (6.7, 1.3)
    np.testing.assert_allclose(origin, [5, 2], atol=1e-6)
    # 1/2 along (1, 1) and 1 along (1, -1)
    np.testing.assert_allclose(matrix, [[0.75, -0.25], [-0.25, 0.75]], atol=1e-6)
    assert origin.dtype == matrix.dtype == np.float32
    after = covariance_within((X - origin) @ matrix, owners)
    np.testing.assert_allclose(after, np.eye(2), atol=1e-6)


def test_wccn_is_symmetric_and_its_shrinkage_is_in_mean_variances():
    rng = np.random.default_rng(1)
    X, owners = rng.normal(size=(50, 7)) @ rng.normal(size=(7, 7)), rng.integers(3, size=50)
    for shrinkage in (0.0, 0.3, 1.0, 1e8):
        _, matrix = bank.wccn_space(X, owners, shrinkage)
        np.testing.assert_allclose(matrix, matrix.T, rtol=0, atol=1e-6 * np.abs(matrix).max())
        W = covariance_within(X, owners)
        W += shrinkage * np.trace(W) / 7 * np.eye(7)
        found = matrix.astype(np.float64) @ W @ matrix.astype(np.float64)
        np.testing.assert_allclose(found, np.eye(7), atol=1e-5)
    # so much of it leaves nothing but a scale
    np.testing.assert_allclose(matrix / matrix[0, 0], np.eye(7), atol=1e-5)


def test_wccn_is_of_any_order_of_rows_and_any_name_of_classes():
    X, owners = two_classes()
    wanted, order = bank.wccn_space(X, owners, 0.1), np.random.default_rng(2).permutation(len(X))
    for other in (
        bank.wccn_space(X[order], owners[order], 0.1),
        bank.wccn_space(X, 7 - owners, 0.1),
    ):
        for found, part in zip(other, wanted):
            np.testing.assert_allclose(found, part, rtol=0, atol=1e-6)


def test_the_bank_s_space_is_that_of_its_candidates_alone():
    dataset, features = patches([[1, 0]] * 6 + [[0, 1]] * 6 + [[1, 1]] * 3), two_classes(7)[0][:15]
    p = replace(PRESETS["quick"], K=1, N=2, normalise="wccn", shrinkage=0.5)
    made = bank.build(dataset, features, p, 0)
    wanted = bank.wccn_space(features[:12], np.repeat([0, 1], 6), 0.5)
    for found, part in zip(made.space, wanted):
        np.testing.assert_array_equal(found, part)  # 12 to 14 show two classes: they are no part
    raw = bank.build(dataset, features, replace(p, normalise="none"), 0)
    assert raw.space.origin.tolist() == [0, 0] and raw.space.transform.tolist() == [1, 1]


# The bank


def built(kind="nearest_mean", N=2, K=1, normalise="standardise", **more):
    dataset = patches([[1, 0]] * 3 + [[0, 1]] * 3 + [[1, 1]], **more)
    features = np.array([[4, 0], [4, 1], [4, -3], [-4, 0], [-4, 1], [-4, 9], [50, 50]], np.float32)
    return (
        dataset,
        features,
        bank.build(
            dataset, features, replace(P, K=K, N=N, prototypes=kind, normalise=normalise), 0
        ),
    )


def test_members_are_the_nearest_to_the_centre_and_prototypes_their_mean():
    dataset, features, made = built()
    X = made.normalize(features)
    for c, rows in enumerate(([0, 1, 2], [3, 4, 5])):
        centre = unit(X[rows].mean(0))
        nearest = sorted(rows, key=lambda i: -float(X[i] @ centre))[:2]
        assert made.members[c] == tuple(dataset.ids[i] for i in nearest)
        np.testing.assert_allclose(made.prototypes[c], unit(X[nearest].mean(0)), atol=1e-6)


def test_centre_kind_is_the_cluster_centre():
    _, features, made = built("centre")
    X = made.normalize(features)
    np.testing.assert_allclose(made.prototypes[1], unit(X[[3, 4, 5]].mean(0)), atol=1e-6)


def test_mixed_and_white_patches_are_no_candidates():
    _, _, made = built(white=[1])
    assert made.candidates.tolist() == [0, 2, 3, 4, 5]  # 6 has two classes, 1 is white


def test_a_class_short_of_candidates_is_named_with_its_count():
    with pytest.raises(
        ValueError, match="A has 3 single-class patches, K = 4 sub-classes need 4; pass K = 3"
    ):
        built(K=4)


def test_a_class_that_the_white_filter_would_empty_keeps_its_patches_and_says_so():
    with pytest.warns(
        UserWarning,
        match="only 1 of 3 single-class patches of A are at most 50% white; all are kept",
    ):
        made = built(K=2, white=[0, 1, 3])[2]
    assert made.candidates.tolist() == [0, 1, 2, 4, 5]  # of B, only the white one is dropped


def test_a_random_bank_is_n_patches_of_the_class_by_the_seed():
    dataset, features, made = built("random_mean", N=2)
    X = made.normalize(features)
    A, B = {"p0", "p1", "p2"}, {"p3", "p4", "p5"}
    for names, own, prototype in zip(made.members, (A, B), made.prototypes):
        assert len(set(names)) == 2 and set(names) <= own
        np.testing.assert_allclose(
            prototype, unit(X[[int(n[1]) for n in names]].mean(0)), atol=1e-6
        )
    p = replace(P, K=1, N=2, prototypes="random_mean")
    draws = {bank.build(dataset, features, p, seed).members for seed in range(20)}
    assert len(draws) > 4 and built("random_mean", N=2)[2].members == made.members
    with pytest.raises(ValueError, match="A has 3 candidates, N = 4 are to be drawn; lower N"):
        built("random_mean", N=4)


def test_random_draws_of_a_class_do_not_depend_on_the_other_classes():
    p, rng = replace(P, K=2, N=3, prototypes="random_mean"), np.random.default_rng(0)
    features = rng.normal(size=(30, 4)).astype(np.float32)
    names = {}
    for more in (8, 14):  # candidates of A; B has the same ten each time
        labels = [[1, 0]] * more + [[1, 1]] * (20 - more) + [[0, 1]] * 10
        names[more] = bank.build(patches(labels), features, p, 0).members
    assert names[8][2:] == names[14][2:] and names[8][:2] != names[14][:2]
    # and two classes of the same candidates draw apart
    twins = patches([[1, 1]] * 30)
    found = bank.build(twins, features, replace(p, single_class=False), 0).members
    assert found[:2] != found[2:]


def test_thin_subclasses_are_reported():
    assert built()[2].thin == {"A 1": 2, "B 1": 2}


@pytest.mark.parametrize("normalise", ["none", "standardise", "wccn"])
def test_saved_and_opened_bank_is_the_same(tmp_path, normalise):
    made = built(normalise=normalise)[2]
    made.save(tmp_path)
    found = bank.Bank.open(tmp_path)
    assert (found.classes, found.K, found.kind, found.members) == (
        made.classes,
        made.K,
        made.kind,
        made.members,
    )
    for name in ("prototypes", "candidates", "clusters"):
        np.testing.assert_array_equal(getattr(found, name), getattr(made, name))
    for part, wanted in zip(found.space, made.space):
        np.testing.assert_array_equal(part, wanted)
        assert part.dtype == wanted.dtype
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bank.json", "bank.npz"]


def test_sub_types_are_sought_where_the_class_still_varies():
    """WCCN shrinks the direction in which a class varies most: the one that parts its sub-types."""
    rng = np.random.default_rng(0)
    # each class has two sub-types, far apart in six channels at once; the other six have noise
    side = np.tile([-1.0, 1.0], 40)
    features = rng.normal(0, 0.2, (80, 12)).astype(np.float32)
    features[:, :6] += side[:, None]
    features[:40, 6] += 1
    dataset = patches([[1, 0]] * 40 + [[0, 1]] * 40)
    p = replace(P, K=2, N=5, normalise="wccn", shrinkage=1e-3)
    made = bank.build(dataset, features, p, 0)
    for c in range(2):
        own = made.clusters[made.candidates // 40 == c] % 2
        assert (own == own[0]).tolist() == (side[:40] == side[0]).tolist()
    # in the bank's own space the same k-means cannot tell them: half of its pairs are torn apart
    X = made.space.unit(features[:40])
    lost = bank.spherical_kmeans(X, 2, 0).labels
    assert 0.2 < (lost == (side[:40] > 0)).mean() < 0.8


# As released


def test_rows_to_begin_with_are_those_of_the_released_seed():
    X = np.arange(20.0)[:, None] * np.ones(3)
    np.random.seed(42)
    wanted = np.random.choice(20, 4, replace=False)
    np.testing.assert_array_equal(bank.random_rows(X, 4, seed=0)[:, 0], wanted)
    assert bank.random_rows(X, 4, seed=1)[:, 0].tolist() != wanted.tolist()


def test_rows_of_any_length_are_assigned_by_cosine_and_longer_ones_weigh_more():
    X = np.array([[1.0, 0.0], [0.0, 3.0], [-1.0, 0.1]])
    run = bank.lloyd(X, np.array([[2.0, 2.0], [-5.0, 0.0]]), max_iter=1)
    assert run.labels.tolist() == [0, 0, 1] and run.steps == 1
    np.testing.assert_allclose(run.cosines[:, 1], [-1, 0, 1 / np.sqrt(1.01)], atol=1e-12)
    np.testing.assert_allclose(run.centres[0], np.array([1, 3]) / np.sqrt(10), atol=1e-12)


def test_without_the_filter_a_patch_counts_for_each_of_its_classes():
    dataset = patches([[1, 0], [1, 1], [0, 1], [0, 1]], white=[0])
    found, owner = bank.candidates(dataset, 1, white_limit=1.0, single_class=False)
    assert list(zip(found.tolist(), owner.tolist())) == [(0, 0), (1, 0), (1, 1), (2, 1), (3, 1)]


def test_another_encoder_may_do_the_clustering():
    dataset = patches([[1, 0]] * 4 + [[0, 1]] * 4)
    features = np.array([[1, 0], [0, 1], [1, 0.1], [0.1, 1]] * 2, np.float32)
    other = np.array(
        [[1, 0], [1, 0.1], [0.1, 1], [0, 1]] * 2, np.float32
    )  # pairs 0-1 and 2-3, where features pair 0-2, 1-3
    p = replace(P, K=2, N=2, normalise="none")
    own, by_other = bank.build(dataset, features, p, 0), bank.build(dataset, features, p, 0, other)
    assert sorted(map(sorted, own.members[:2])) == [["p0", "p2"], ["p1", "p3"]]
    assert sorted(map(sorted, by_other.members[:2])) == [["p0", "p1"], ["p2", "p3"]]
    row = [sorted(m) for m in by_other.members].index(["p0", "p1"])
    raw = unit(features[:2])
    np.testing.assert_allclose(
        by_other.prototypes[row], unit(raw.mean(0)), atol=1e-6
    )  # of the encoder's own features


# Text


def a_bank(P, K, **space):
    S, D = P.shape
    origin, transform = np.zeros(D, np.float32), np.ones(D, np.float32)
    return bank.Bank(
        classes=("A", "B")[: S // K],
        K=K,
        kind="nearest_mean",
        prototypes=P,
        space=bank.Space(**{"origin": origin, "transform": transform} | space),
        candidates=np.arange(2),
        clusters=np.arange(2),
        members=(("p0",),) * S,
    )


def test_text_is_blended_into_every_prototype_of_its_class():
    P = np.array([[1, 0, 0], [0, 1, 0], [0.6, 0.8, 0], [0, 0, 1]], np.float32)
    text = np.array([[0, 1, 0], [1, 0, 0]], np.float32)
    found = bank.with_text(a_bank(P, K=2), text, 0.6)
    # .6 t + .4 v: (.4, .6, 0), (0, 1, 0), (.84, .32, 0), (.6, 0, .4), back to unit length
    rows = [[0.4, 0.6, 0], [0, 1, 0], [0.84, 0.32, 0], [0.6, 0, 0.4]]
    np.testing.assert_allclose(found.prototypes, unit(np.array(rows)), rtol=0, atol=1e-7)
    assert found.prototypes.dtype == np.float32
    assert found.members == a_bank(P, K=2).members
    alone = bank.with_text(a_bank(P, K=2), text, 1.0)
    np.testing.assert_array_equal(alone.prototypes, text[[0, 0, 1, 1]])
    np.testing.assert_allclose(bank.with_text(a_bank(P, K=2), text, 0.0).prototypes, P, atol=1e-7)


@pytest.mark.parametrize(
    "space, text",
    [
        ({"transform": np.eye(3, dtype=np.float32)}, np.eye(2, 3)),  # WCCN
        ({"origin": np.full(3, 0.1, np.float32)}, np.eye(2, 3)),
        ({}, np.eye(2, 4)),
        ({}, np.eye(3, 3)),
    ],
)
def test_text_has_no_place_in_another_space(space, text):
    made = a_bank(np.eye(4, 3, dtype=np.float32), K=2, **space)
    with pytest.raises(ValueError, match="expected \\(C, D\\) of both in the encoder's own space"):
        bank.with_text(made, text.astype(np.float32), 0.6)


# What a small fault would change


def test_fewer_than_five_images_are_thin_and_five_are_not():
    made = replace(built()[2], members=(("a",) * 4, ("a",) * 5))
    assert made.thin == {"A 1": 4}


def test_a_patch_that_is_as_white_as_allowed_is_a_candidate():
    dataset = patches([[1, 0]] * 3 + [[0, 1]] * 3)
    dataset.images[1, :2] = 250  # half of its pixels
    assert bank.candidates(dataset, 1, 0.5)[0].tolist() == [0, 1, 2, 3, 4, 5]
    assert bank.candidates(dataset, 1, 0.49)[0].tolist() == [0, 2, 3, 4, 5]


def test_short_features_have_a_direction_too():
    X, space = np.array([[3e-4, 4e-4]]), bank.raw_space(np.zeros((1, 2)))
    for features in (X, torch.from_numpy(X)):
        np.testing.assert_allclose(space.unit(features), [[0.6, 0.8]], rtol=1e-9)


def test_lloyd_ends_where_nothing_moves_any_more():
    X, _ = blobs(spread=0.6)
    stable = bank.lloyd(X, X[[0, 1, 2]])
    assert 1 < stable.steps < 100
    again = bank.lloyd(X, stable.centres)
    assert again.steps == 1
    np.testing.assert_array_equal(again.labels, stable.labels)
    assert bank.lloyd(X, X[[0, 1, 2]], max_iter=2).steps == 2


def test_a_centre_is_drawn_in_proportion_to_its_distance():
    # cosine distances to the first row: 0, .5 and 1.5
    X = np.array([[1, 0], [0.5, 0.75**0.5], [-0.5, 0.75**0.5]])

    class First(np.random.Generator):
        """A generator whose first row is row 0."""

        def integers(self, *_):
            return 0

    drawn = [
        bank.seed_centres(X, 2, First(np.random.PCG64(seed)))[1].tolist() for seed in range(2000)
    ]
    shares = [np.mean([row == x.tolist() for row in drawn]) for x in X]
    # .25 and .75, give or take four standard deviations
    np.testing.assert_allclose(shares, [0, 0.25, 0.75], atol=0.04)
    assert shares[0] == 0


def test_rows_to_begin_with_follow_the_seed():
    X = np.eye(50)
    first, second = bank.random_rows(X, 5, 0), bank.random_rows(X, 5, 1)
    wanted = [np.random.RandomState(42 + seed).permutation(50)[:5] for seed in (0, 1)]
    np.testing.assert_array_equal(first.argmax(1), wanted[0])
    np.testing.assert_array_equal(second.argmax(1), wanted[1])


def test_lloyd_goes_on_while_a_centre_moves_by_less_than_its_length():
    angles = np.radians([10, 20, 30, 40, 61, 71, 81])
    X = np.stack([np.cos(angles), np.sin(angles)], 1)
    run = bank.lloyd(X, X[:2])  # at 10 and 20 degrees
    assert run.labels.tolist() == [0] * 4 + [1] * 3
    wanted = np.radians([25, 71])
    np.testing.assert_allclose(run.centres, np.stack([np.cos(wanted), np.sin(wanted)], 1))


def test_what_is_meant_where_nothing_is_said_of_k_means(monkeypatch):
    X, _ = blobs(K=8, n=6, spread=0.5)
    found, wanted = bank.spherical_kmeans(X, 8), bank.spherical_kmeans(X, 8, 0, 20, "plusplus")
    np.testing.assert_array_equal(found.centres, wanted.centres)
    rows = bank.spherical_kmeans(X, 8, seed=5, restarts=1, start="rows")
    np.testing.assert_array_equal(
        rows.centres, bank.lloyd(X, bank.random_rows(X, 8, seed=5)).centres
    )
    runs, lloyd = [], bank.lloyd
    monkeypatch.setattr(bank, "lloyd", lambda *of: runs.append(lloyd(*of)) or runs[-1])
    seeds = []
    of_seed = np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda seed: seeds.append(seed) or of_seed(seed))
    bank.spherical_kmeans(X, 8)
    assert seeds == [0] and len(runs) == 20
    monkeypatch.setattr(np, "allclose", lambda *_, **__: False)  # it never stands still
    assert lloyd(X, X[:3]).steps == 100


def test_short_rows_have_the_cosines_of_long_ones():
    X, _ = blobs(spread=0.6)
    long, short = (bank.lloyd(X * scale, X[:3], max_iter=2) for scale in (1, 1e-3))
    np.testing.assert_allclose(short.cosines, long.cosines, rtol=0, atol=1e-6)


def test_a_tensor_of_more_dimensions_has_unit_rows_too():
    X, space = np.random.default_rng(0).normal(size=(2, 3, 4)), bank.raw_space(np.zeros((1, 4)))
    np.testing.assert_allclose(space.unit(torch.from_numpy(X)), unit(X), rtol=1e-12)


def test_a_channel_that_never_changes_is_multiplied_by_a_million():
    np.testing.assert_allclose(bank.standardised_space(np.ones((3, 1))).transform, 1e6)


def test_pure_patches_are_counted_by_class():
    made = replace(a_bank(np.eye(4, dtype=np.float32), K=2), clusters=np.array([0, 1, 1, 2, 3]))
    assert made.pure() == {"A": 3, "B": 2}


def test_a_class_is_counted_alone_and_K_patches_are_enough():
    dataset = patches([[1, 0]] * 3 + [[0, 1]] * 2 + [[1, 1]])
    with pytest.raises(ValueError, match="B has 2 single-class patches, K = 3"):
        bank.candidates(dataset, 3, 1.0)
    assert bank.candidates(dataset, 2, 1.0)[0].tolist() == [0, 1, 2, 3, 4]  # not 5, of both


def test_a_warning_of_the_white_filter_names_who_asked():
    dataset = patches([[1, 0]] * 2 + [[0, 1]] * 2, white=[0, 1])
    with pytest.warns(UserWarning, match="only 0 of 2 single-class patches of A") as seen:
        bank.candidates(dataset, 1, 0.5)
    assert [warning.filename for warning in seen] == [__file__]


def test_another_encoder_s_features_count_by_their_direction_alone():
    angles = np.radians([0, 10, 30, 60, 80, 90] * 2)  # centres at 13 and 77 degrees
    other = np.stack([np.cos(angles), np.sin(angles)], 1)
    lengths = np.array([1, 1, 50, 50, 1, 1] * 2)[:, None]
    features = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    dataset, p = patches([[1, 0]] * 6 + [[0, 1]] * 6), replace(P, K=2, N=1, normalise="none")
    made = bank.build(dataset, features, p, 0, lengths * other)
    assert set(made.members) == {("p1",), ("p4",), ("p7",), ("p10",)}


def test_a_candidate_stands_in_the_cluster_that_names_it():
    dataset = patches([[1, 0]] * 6 + [[0, 1]] * 6)
    X, _ = blobs(n=3, D=8, K=4)
    made = bank.build(dataset, X, replace(P, K=2, N=2, normalise="none"), 0)
    for s, names in enumerate(made.members):
        rows = [int(name[1:]) for name in names]
        assert len(rows) == 2 and (made.clusters[rows] == s).all()
    assert np.bincount(made.clusters).tolist() == [3] * 4


def test_of_as_many_candidates_as_are_drawn_all_are():
    members = built("random_mean", N=3)[2].members
    assert [sorted(names) for names in members] == [["p0", "p1", "p2"], ["p3", "p4", "p5"]]


def test_equally_near_rows_keep_their_order_and_an_empty_cluster_gives_the_nearest():
    Z, labels = np.tile([[1.0, 0.0]], (100, 1)), np.zeros(100, int)
    Z[7] = [0.6, 0.8]
    run = bank.Clustering(labels, Z, np.array([[1.0, 0.0], [0.0, 1.0]]), 1)
    nearest, own = bank.nearest_of(Z, run, 0)
    assert nearest.tolist() == [*range(7), *range(8, 100), 7] and own.tolist() == [*range(100)]
    assert [found.tolist() for found in bank.nearest_of(Z, run, 1)] == [[7], [7]]
