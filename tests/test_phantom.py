"""The phantom: determinism, consistency of what is drawn, the two dials, and that colour alone does
not solve it."""

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score, balanced_accuracy_score, confusion_matrix
from sklearn.neighbors import KNeighborsClassifier

from protolib import bank
from protolib.data import phantom, tissue
from protolib.data.phantom import Drawing
from protolib.nets import encoders


@pytest.fixture(scope="module")
def train():
    return phantom.draw("train", 112, Drawing(160))


@pytest.fixture(scope="module")
def test():
    return phantom.draw("test", 112, Drawing(80))


def only(part):
    """Indices and sub-types of the patches of one class, torn edges left out."""
    index = np.flatnonzero((part.labels.sum(1) == 1) & ((part.masks == 4).mean((1, 2)) < 0.5))
    return index, np.array([part.subtypes[i][part.subtypes[i] < 12][0] for i in index])


def same(a, b, n):
    return a.ids[:n] == b.ids[:n] and all(
        np.array_equal(x[:n], y[:n]) for x, y in zip(a[2:], b[2:])
    )


def test_same_seed_same_bytes_for_any_workers_and_n():
    four = phantom.draw("val", 64, Drawing(4, seed=3), workers=1)
    assert same(four, phantom.draw("val", 64, Drawing(4, seed=3), workers=3), 4)
    assert same(four, phantom.draw("val", 64, Drawing(7, seed=3)), 4)


def test_another_seed_or_split_is_another_picture():
    images = [
        phantom.draw(split, 64, Drawing(1, seed)).images[0]
        for split in phantom.SLIDES
        for seed in (0, 1)
    ]
    pairs = [(a, b) for i, a in enumerate(images) for b in images[:i]]
    assert min((a != b).mean() for a, b in pairs) > 0.5


def test_shapes_types_and_ids(train):
    assert train.images.shape == (
        160,
        112,
        112,
        3,
    ) and train.masks.shape == train.subtypes.shape == (160, 112, 112)
    assert {a.dtype for a in train[2:]} == {np.dtype("uint8")}
    assert all(
        f"{slide}+{i}" == name for i, (slide, name) in enumerate(zip(train.slides, train.ids))
    )
    assert train.ids[17].startswith("PH-train-s") and train.ids[17].endswith("+17")


def test_masks_follow_subtypes_and_one_subtype_per_class(train):
    white = train.masks == phantom.IGNORE
    assert np.array_equal(white, train.subtypes == phantom.SUB_IGNORE)
    assert (
        np.array_equal(train.subtypes[~white] // 3, train.masks[~white]) and train.masks.max() == 4
    )
    for areas in train.subtypes:
        kinds = np.setdiff1d(areas, [12])
        assert len(kinds) == len(set(kinds // 3)) <= 3


def test_label_is_more_than_three_percent_and_never_white(train):
    share = np.stack([(train.masks == c).mean((1, 2)) for c in range(4)], 1)
    assert np.array_equal(train.labels, (share > 0.03).astype(np.uint8))
    assert train.labels.sum(1).min() == 1 and train.labels.sum(1).max() == 3


def test_nine_of_twenty_show_one_class_and_subtypes_take_turns(train):
    single = train.labels.sum(1) == 1
    assert single.sum() == 72  # 9 of 20
    kinds = [areas[areas < 12][0] for areas in train.subtypes[single]]
    assert np.bincount(kinds).tolist() == [6] * 12
    multi = np.bincount(train.labels[~single].sum(1), minlength=4) / (~single).sum()
    assert 0.5 < multi[2] < 0.8 and multi[2] + multi[3] == 1


def test_some_white_background(train):
    share = (train.masks == 4).mean((1, 2))
    assert 0.15 < (share > 0).mean() < 0.35 and share.max() <= 0.71
    assert train.images[train.masks == 4].mean() > 215 > 180 > train.images[train.masks < 4].mean()


def test_slides_are_disjoint_and_several(train, test):
    splits = [set(part.slides) for part in (train, phantom.draw("val", 64, Drawing(30)), test)]
    assert [len(slides) for slides in splits] == [12, 4, 6]
    assert not (splits[0] & splits[1] or splits[0] & splits[2] or splits[1] & splits[2])


def test_stain_mixing_closed_form():
    h, e = np.array([0.650, 0.704, 0.286]), np.array([0.072, 0.990, 0.105])
    amounts = np.array([[0.8, 0], [0, 0.5], [0.3, 0.2], [0, 0]])
    expected = [0.8 * h, 0.5 * e, 0.3 * h + 0.2 * e, 0 * h]
    assert np.allclose(phantom.optical_density(amounts), expected, rtol=0, atol=1e-15)
    assert np.allclose(np.linalg.norm(phantom.STAINS, axis=1), 1, atol=2e-3)


def test_develop_lets_less_light_through_more_stain():
    rng = np.random.default_rng(0)
    flat = [
        phantom.develop(rng, np.full((2, 64, 64), d), 0, "train", 0).mean((0, 1))
        for d in (0, 0.2, 0.4)
    ]
    density = -np.log10(np.array(flat) / flat[0])
    # thickness differs by up to 8 % each time
    assert np.allclose(density[2] / density[1], 2, atol=0.4)
    assert density[1, 1] == max(density[1])  # both stains absorb green most


def test_field_has_unit_variance_and_the_asked_correlation():
    rng = np.random.default_rng(0)
    noise = np.stack([tissue.field(rng, 128, 3.0) for _ in range(40)])
    assert abs(noise.mean()) < 0.02 and abs(noise.var() - 1) < 0.03
    # white noise smoothed by a Gaussian of s has the autocorrelation exp(-d^2 / (4 s^2))
    assert abs((noise[:, :, 3:] * noise[:, :, :-3]).mean() - np.exp(-1 / 4)) < 0.02


def test_scatter_keeps_its_distance():
    points = tissue.scatter(np.random.default_rng(0), 100, 9.0, 10)
    gaps = np.hypot(*(points[:, None] - points[None]).transpose(2, 0, 1)) + 1e9 * np.eye(
        len(points)
    )
    assert gaps.min() >= 9 and 0.4 < len(points) * 9**2 / 120**2 < 1


def test_looks_closed_form():
    table = tissue.LOOKS
    assert np.allclose(tissue.looks(0.5, 0), table, atol=1e-13)
    assert np.allclose(tissue.looks(0, 0), table.mean(1, keepdims=True).repeat(3, 1), atol=1e-15)
    colours = tissue.looks(0.5, 1)[..., :2].reshape(-1, 2)
    assert np.allclose(colours, table[..., :2].mean((0, 1)), atol=1e-15)
    assert np.allclose(
        tissue.looks(0.5, 0.5)[..., :2] - colours[0],
        0.5 * (table[..., :2] - colours[0]),
        atol=1e-15,
    )


def test_similarity_pulls_the_classes_together_in_colour():
    def distance(similarity):
        part = phantom.draw("val", 64, Drawing(40, similarity=similarity))
        means = np.stack([part.images[part.masks == c].mean(0) for c in range(4)])
        return np.linalg.norm(means[:, None] - means[None], axis=-1).sum() / 12

    far, middle, near = map(distance, (0.0, 0.5, 1.0))
    assert far > 1.1 * middle > 1.1 * 1.1 * near


def test_heterogeneity_spreads_the_subtypes_of_a_class():
    def spread(heterogeneity):
        # 24 single patches: each sub-type twice
        part = phantom.draw("train", 64, Drawing(54, heterogeneity=heterogeneity))
        index, kinds = only(part)
        gray = part.images[index].mean(-1)
        texture = np.stack(
            [np.log(ndimage.gaussian_filter(gray, (0, s, s)).std((1, 2)) + 1) for s in (0.5, 2, 5)],
            1,
        )
        means = np.stack([texture[kinds == k].mean(0) for k in range(12)]).reshape(4, 3, 3)
        return means.std(1).mean()

    none, default = spread(0.0), spread(0.5)
    assert default > 1.5 * none


def plans(n, **dials):
    """The sub-types of n patches, and the random number after each: what the pixels depend on."""
    found = []
    for i in range(n):
        rng = phantom.generator(0, "train", phantom.PATCH, i)
        found.append((phantom.plan(rng, "train", i, Drawing(n, **dials)), rng.random()))
    return found


def test_default_dials_leave_the_plan_as_it_was_before_them():
    found = plans(300)
    for i, seen in enumerate(found):
        rng, rank = phantom.generator(0, "train", phantom.PATCH, i), -(-9 * i // 20)
        if -(-9 * (i + 1) // 20) > rank:
            turn = phantom.generator(0, "train", phantom.TURN, rank // 12).permutation(12)
            kinds = [turn[rank % 12]]
        else:
            classes = rng.permutation(4)[: rng.choice([2, 3], p=[0.65, 0.35])]
            kinds = [3 * c + rng.integers(3) for c in classes]
        assert seen == (kinds, rng.random())


@pytest.mark.parametrize("pure, n", [(0.45, 450), (0.1, 100), (0.02, 20), (0.0, 0), (1.0, 1000)])
def test_pure_is_the_share_of_patches_of_one_class(pure, n):
    single = [kinds[0] for kinds, _ in plans(1000, pure=pure) if len(kinds) == 1]
    assert len(single) == n
    turns = np.bincount(single, minlength=12)
    assert turns.max() - turns.min() <= 1  # the twelve in turn


def test_a_subtype_that_is_never_pure_is_in_mixtures_as_before():
    before, found = plans(400), plans(400, never_pure=4)
    single = [kinds[0] for kinds, _ in found if len(kinds) == 1]
    turns = np.bincount(single, minlength=12)
    assert len(single) == 180 and turns[4] == 0 and np.delete(turns, 4).min() >= 16
    mixed = [(seen, old) for seen, old in zip(found, before) if len(seen[0]) > 1]
    assert all(seen == old for seen, old in mixed) and any(4 in seen[0] for seen, _ in mixed)


def test_together_ties_tumour_and_stroma():
    def apart(together):
        mixed = [{k // 3 for k in kinds} for kinds, _ in plans(600, together=together)]
        mixed = [classes for classes in mixed if len(classes) > 1]
        return np.mean([len(classes & {0, 1}) == 1 for classes in mixed]), len(mixed)

    # by chance: 4 of the 6 pairs, half of the triples, and .65 are pairs
    by_chance, n = apart(0.0)
    assert abs(by_chance - (0.65 * 4 / 6 + 0.35 / 2)) < 0.1 and n == 330
    assert apart(1.0) == (0, 330)
    assert abs(apart(0.5)[0] - by_chance / 2) < 0.1


def test_paired_by_hand():
    for given, wanted in (
        ([0, 2], [0, 1]),
        ([3, 1], [0, 1]),
        ([2, 0, 3], [2, 0, 1]),
        ([2, 3, 1], [2, 0, 1]),
        ([1, 0], [1, 0]),
        ([3, 2], [3, 2]),
    ):
        assert phantom.paired(np.array(given)).tolist() == wanted


def test_small_patches_are_drawn_not_resized():
    rng = np.random.default_rng(0)
    # diffuse lymphocytes: nuclei stand apart
    mine = [i for i in range(80) if phantom.plan(rng, "train", i, Drawing(80)) == [7]]

    def nucleus(size):  # median area in pixels
        areas = []
        for _, image, _ in (phantom.patch(i, "train", size, Drawing(80)) for i in mine):
            red = ndimage.gaussian_filter(image[..., 0].astype(float), 1)
            blobs, n = ndimage.label(red < 0.62 * np.median(red))
            areas += list(ndimage.sum_labels(np.ones_like(red), blobs, range(1, n + 1)))
        return np.median([area for area in areas if area > 30])

    assert len(mine) == 3
    assert 0.8 < nucleus(80) / nucleus(200) < 1.25  # resized it would be (80 / 200)^2 = 0.16


@pytest.mark.parametrize(
    "wrong, found",
    [
        ({"split": "training"}, "split = 'training'.*train, val, test"),
        ({"patches": 0}, "patches = 0"),
        ({"size": 32}, "size = 32.*64"),
        ({"size": 512}, "size = 512.*256"),
        ({"seed": -1}, "seed = -1"),
        ({"workers": 0}, "workers = 0"),
        ({"heterogeneity": 1.2}, "heterogeneity = 1.2.*0 to 1"),
        ({"similarity": -0.1}, "similarity = -0.1.*0 to 1"),
        ({"pure": 45}, "pure = 45.*0 to 1, and 0.45 is the default"),
        ({"together": 2}, "together = 2.*0 to 1"),
        ({"never_pure": 12}, "never_pure = 12.*-1 to 11"),
    ],
)
def test_errors_name_what_was_found(wrong, found):
    with pytest.raises(ValueError, match=found):
        dials = {key: value for key, value in wrong.items() if key in Drawing._fields}
        given = {"split": "train", "size": 64} | {
            key: value for key, value in wrong.items() if key not in dials
        }
        phantom.draw(drawing=Drawing(**{"patches": 1} | dials), **given)


def test_write_folder_round_trip(tmp_path):
    root = tmp_path / "phantom"
    phantom.write_folder(root, {"train": 3, "val": 2}, 64, seed=1)
    drawn = phantom.draw("train", 64, Drawing(3, seed=1))
    val = phantom.draw("val", 64, Drawing(2, seed=1))
    names = [f"{i}[{''.join(map(str, label))}].png" for i, label in zip(drawn.ids, drawn.labels)]
    assert sorted(p.name for p in (root / "training").iterdir()) == sorted(names)
    assert all(
        np.array_equal(Image.open(root / "training" / name), a)
        for name, a in zip(names, drawn.images)
    )
    for i, name in enumerate(val.ids):
        assert np.array_equal(Image.open(root / "val/img" / f"{name}.png"), val.images[i])
        assert np.array_equal(Image.open(root / "val/mask" / f"{name}.png"), val.masks[i])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["phantom"]
    with pytest.raises(FileExistsError, match="not empty"):
        phantom.write_folder(root, {"train": 1}, 64)


def features(part, index):
    import torch

    with torch.no_grad():
        return encoders.load("lite0")(
            torch.from_numpy(part.images[index]).permute(0, 3, 1, 2) / 255
        ).numpy()


def unit(x, like):
    x = (x - like.mean(0)) / like.std(0)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_clusters_of_the_embedded_encoder_are_the_subtypes(train):
    index, kinds = only(train)
    raw = features(train, index)
    X = unit(raw, raw)
    for c in range(4):
        mine = kinds // 3 == c
        assert adjusted_rand_score(kinds[mine], bank.spherical_kmeans(X[mine], 3).labels) > 0.6, (
            phantom.CLASSES[c]
        )


def test_colour_alone_does_not_solve_it(train, test):
    """5 nearest neighbours across slides, balanced accuracy over sub-types: colours below .65,
    texture above .8."""
    (i, kinds), (j, truth) = only(train), only(test)

    def histograms(images):
        counts = [np.histogramdd(x.reshape(-1, 3), 6, [(0, 256)] * 3)[0].ravel() for x in images]
        return np.sqrt(np.array(counts) / images[0, ..., 0].size)

    def score(X, Y):
        return balanced_accuracy_score(truth, KNeighborsClassifier(5).fit(X, kinds).predict(Y))

    raw = features(train, i)
    assert score(histograms(train.images[i]), histograms(test.images[j])) < 0.65
    assert score(unit(raw, raw), unit(features(test, j), raw)) > 0.8


def test_pixel_colour_does_not_segment_it(train, test):
    """Logistic regression on colour and its products, trained on true masks: mean IoU below .35 on
    other slides."""

    def pixels(part):
        rng, (rows, truth) = (
            np.random.default_rng(0),
            (part.images.reshape(-1, 3), part.masks.ravel()),
        )
        chosen = rng.choice(np.flatnonzero(truth < 4), 8000, replace=False)
        rgb = rows[chosen] / 255 - 0.6
        return np.concatenate(
            [rgb, rgb[:, [0, 0, 0, 1, 1, 2]] * rgb[:, [0, 1, 2, 1, 2, 2]]], 1
        ), truth[chosen]

    X, truth = pixels(train)
    model = LogisticRegression(max_iter=2000, class_weight="balanced").fit(X, truth)
    X, truth = pixels(test)
    matrix = confusion_matrix(truth, model.predict(X))
    iou = matrix.diagonal() / (matrix.sum(0) + matrix.sum(1) - matrix.diagonal())
    assert iou.mean() < 0.35
