"""Does the gradient point at the tissue? The experiment of notebook 03 on a fixed batch of the
phantom, its parts by value, and what notebooks 02 and 03 draw of it."""

from dataclasses import replace
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from protolib.experiment import Run
from protolib.presets import PRESETS
from protolib.teach import probe, viz

P = replace(PRESETS["quick"], size=64, encoder_size=0, patches=(120, 32, 8))
LOOKS = {
    "paper": replace(PRESETS["masked_image"], span="stretch", delta=0.15, fill="black"),
    "masked image": PRESETS["masked_image"],
    "raw": replace(P, normalise="none"),
    "standardised": replace(P, normalise="standardise"),
    "WCCN": P,
}


def test_an_area_is_the_share_of_pairs_in_the_right_order():
    main = torch.tensor([[[0, 0], [1, 2]]])  # two classes, one position of ignore
    labels = torch.tensor([[1, 1]])
    pulls = torch.tensor([[[[3.0, 1.0], [2.0, 9.0]], [[0.0, 0.0], [0.0, 5.0]]]])
    # class 0: 3 > 2 but 1 < 2; class 1: ties count half
    np.testing.assert_allclose(probe.gradient_auc(pulls, main, labels), [0.5, 0.5])
    pulls[0, 0, 0, 1] = 2.5
    np.testing.assert_allclose(probe.gradient_auc(pulls, main, labels), [1.0, 0.5])


def test_a_class_that_has_all_positions_or_none_is_left_out():
    main, pulls = torch.zeros(1, 2, 2, dtype=torch.int64), torch.rand(1, 3, 2, 2)
    assert len(probe.gradient_auc(pulls, main, torch.tensor([[1, 1, 0]]))) == 0


def test_a_position_has_the_class_of_most_of_its_pixels():
    mask = np.array([[[0, 0, 1, 2], [0, 1, 2, 2], [1, 1, 1, 1], [1, 1, 0, 1]]], np.uint8)
    assert probe.main_classes(mask, 2, 2).tolist() == [[[0, 2], [1, 1]]]


def test_noise_is_of_its_seed_smooth_and_the_same_for_no_two_maps():
    noise = probe.smooth_noise((2, 3, 16, 16), 0)
    assert torch.equal(noise, probe.smooth_noise((2, 3, 16, 16), 0))
    assert not torch.equal(noise, probe.smooth_noise((2, 3, 16, 16), 1))
    flat = noise.flatten(0, 1).flatten(1)  # (6, 256)
    assert torch.corrcoef(flat).fill_diagonal_(0).abs().max() < 0.9
    steps = noise.diff(dim=3).abs().mean()
    assert steps < noise.std() / 4  # neighbours are alike


@pytest.fixture(scope="module")
def areas(tmp_path_factory):
    """The mean area of each look over the mixed validation patches, under the same noise."""
    folder = tmp_path_factory.mktemp("gradient")
    run = Run(P, run_dir=folder, device="cpu")
    val, C = run.data("val"), run.spec.C
    mixed = np.flatnonzero(val.labels.sum(1) > 1)
    images = torch.from_numpy(val.images[mixed]).movedim(3, 1) / 255  # (B, 3, H, W)
    labels = torch.from_numpy(val.labels[mixed]).float()
    main = probe.main_classes(val.masks[mixed], C, 8)
    noise = probe.smooth_noise((len(mixed), C, 8, 8), 0)
    found = {}
    for name, look in LOOKS.items():
        p = replace(look, size=P.size, encoder_size=P.encoder_size, patches=P.patches)
        bank = run.variant(p, folder / name).bank
        pull = probe.pull(images, noise, labels, bank, run.encoder, p)
        found[name] = probe.gradient_auc(pull, main, labels).mean()
    return found


@pytest.mark.parametrize("name", ["paper", "masked image"])
def test_the_gradient_through_a_masked_image_says_next_to_nothing(areas, name):
    assert areas[name] < 0.62


@pytest.mark.parametrize("name", ["raw", "standardised", "WCCN"])
def test_the_gradient_of_masked_pooling_points_at_the_tissue(areas, name):
    assert areas[name] > 0.65


def test_the_chart_has_a_row_a_name_a_mean_a_bar_and_the_line_of_chance():
    fig = viz.auc_chart({"a, one": [0.4, 0.6], "a, two": [0.7], "b, one": [0.9]})
    [ax] = fig.axes
    assert [text.get_text() for text in ax.get_yticklabels()] == ["a, one", "a, two", "b, one"]
    assert list(ax.lines[0].get_xdata()) == [0.5, 0.5]
    points = [bar.lines[0] for bar in ax.containers]
    np.testing.assert_allclose([point.get_xdata()[0] for point in points], [0.5, 0.7, 0.9])
    [bar] = ax.containers[0].lines[2][0].get_segments()
    np.testing.assert_allclose(bar[:, 0], [0.4, 0.6])
    assert points[0].get_marker() == points[1].get_marker() != points[2].get_marker()
    plt.close(fig)


def test_a_page_lies_along_two_groups_and_across_them():
    first = np.array([[0.0, 0, 0], [0, 2, 0]])
    second = first + [4, 0, 0]
    rows = np.array([[0.0, 0, 0], [4, 0, 0], [2, 0, 6], [2, 0, -6]])
    page = viz.along_and_across(rows, first, second)
    np.testing.assert_allclose(page[:, 0], [-2, 2, 0, 0], atol=1e-9)
    np.testing.assert_allclose(abs(page[:, 1] - page[:, 1].mean()), [0, 0, 6, 6], atol=1e-9)


def test_a_black_picture_is_named():
    fig, axes = plt.subplots(1, 3)
    viz.map_and_parts(axes, np.eye(4), np.eye(4) > 0, [np.ones((4, 4, 3)), np.zeros((4, 4, 3))])
    assert [ax.get_xlabel() for ax in axes[1:]] == ["foreground", "no background"]
    plt.close(fig)


def test_patches_of_several_classes_and_halves_where_there_are_none():
    """A set that was cut inside annotations shows one class a patch; a study needs two."""
    masks = np.zeros((6, 4, 8), np.uint8)
    masks[1], masks[3, :, :1], masks[4], masks[5] = 1, 1, 1, 2  # 3: 12.5 % of class 1; 5: ignore
    images = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 8, 3), np.uint8)
    labels = np.array([[1, 0], [0, 1], [1, 0], [1, 1], [0, 1], [0, 0]], np.uint8)

    def split(rows, name="val", masks=masks):
        return SimpleNamespace(
            spec=SimpleNamespace(C=2),
            split=name,
            images=images[rows],
            masks=None if masks is None else masks[rows],
            labels=labels[rows],
            single_class=lambda: np.flatnonzero(labels[rows].sum(1) == 1),
        )

    train = split([3, 5, 0, 1, 2], "train", None)
    mixed = probe.of_several_classes(split(range(6)), train)
    assert mixed.joined == "" and np.array_equal(mixed.images, images[[3]])
    assert mixed.areas.tolist() == [[0.875, 0.125]]

    mixed = probe.of_several_classes(split([0, 1, 2, 4, 5]), train)
    assert mixed.joined == "two val patches" and (mixed.areas == 0.5).all()
    # each with the next of the other class: 0 with 1, 1 with 2, 2 with 4, 4 with 0
    assert mixed.images[:, 0, 0, 0].tolist() == [0, 1, 2, 4]
    assert mixed.images[:, 0, 7, 0].tolist() == [1, 2, 4, 0]
    assert mixed.masks[0].tolist() == [[0, 0, 0, 0, 1, 1, 1, 1]] * 4

    images[1, 0] = 250  # glass: no class, whatever the label says
    mixed = probe.of_several_classes(split([0, 2]), split([3, 5, 0, 1, 2], "train", None))
    assert mixed.joined == "two training patches of one class"
    assert mixed.images[:, 1, 0, 0].tolist() == [0, 1, 2]
    assert mixed.images[:, 1, 7, 0].tolist() == [1, 2, 1]
    assert mixed.masks[0].tolist() == [[0, 0, 0, 0, 2, 2, 2, 2]] + [[0, 0, 0, 0, 1, 1, 1, 1]] * 3
    assert mixed.areas[1].tolist() == [0.5, 0.375]
