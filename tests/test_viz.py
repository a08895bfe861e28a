"""Colours, letters, pictures and files of the notebooks' figures, by value."""

import io
import time
from dataclasses import replace
from itertools import combinations
from types import SimpleNamespace

import ipywidgets as widgets
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.text import Text
from PIL import Image

from protolib import bank, metrics, results
from protolib.data.specs import SPECS
from protolib.presets import PRESETS
from protolib.results import METHODS
from protolib.study import ledger
from protolib.teach import viz

SPEC = SPECS["phantom"]
WHITE = [1.0, 1.0, 1.0]
ORANGE = [0xD5 / 255, 0x5E / 255, 0x00 / 255]  # Okabe and Ito's vermilion, the first class
GREEN = [0x00 / 255, 0x9E / 255, 0x73 / 255]  # bluish green, the second


@pytest.fixture(autouse=True)
def closed():
    """No figure of one test is left for the next."""
    yield
    plt.close("all")


def texts(ax):
    return {t.get_text(): t.get_position() for t in ax.texts}


def test_mask_rgb_gives_each_class_its_colour_and_ignore_white():
    picture = viz.mask_rgb(np.array([[0, 1], [1, SPEC.C]], np.uint8), SPEC)
    np.testing.assert_allclose(picture, [[ORANGE, GREEN], [GREEN, WHITE]])


def test_no_two_classes_share_a_colour_however_many_they_are():
    for spec in SPECS.values():
        assert len({tuple(c) for c in viz.colours(spec)}) == spec.C + 1
    twenty = replace(
        SPEC,
        classes=tuple("ABCDEFGHIJKLMNOPQRST"),
        titles=tuple("ABCDEFGHIJKLMNOPQRST"),
        codes={i: i for i in range(20)},
        ignored=(),
        palette=tuple((i, 0, 0) for i in range(21)),
    )
    made = viz.colours(twenty)
    np.testing.assert_array_equal(made[:4], viz.colours(SPEC)[:4])
    apart = np.abs(made[:, None] - made).max(2) + np.eye(21)
    assert apart.min() > 0.04  # ten of 255 steps in one channel


def test_overlay_mixes_by_opacity():
    image = np.full((1, 2, 3), 51, np.uint8)  # 51 / 255 = 0.2
    mixed = viz.overlay(image, np.array([[0, SPEC.C]], np.uint8), SPEC, opacity=0.25)
    np.testing.assert_allclose(mixed, [[[0.15 + 0.25 * c for c in ORANGE], [0.4, 0.4, 0.4]]])


def test_overlay_takes_the_nearest_pixel_of_a_larger_mask():
    mask = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [4, 4, 0, 0], [4, 4, 0, 0]], np.uint8)
    mixed = viz.overlay(np.zeros((2, 2, 3), np.uint8), mask, SPEC, opacity=1)
    np.testing.assert_allclose(mixed, [[ORANGE, GREEN], [WHITE, ORANGE]])


def test_label_text():
    assert viz.label_text(np.array([1, 0, 1, 0]), SPEC) == "TUM + LYM"
    assert viz.label_text(np.zeros(4, int), SPEC) == "no class"


def test_letters_are_as_many_as_tell_the_classes_apart():
    assert viz.letters(SPEC) == ["T", "S", "L", "N"]
    assert viz.letters(SPECS["luad-histoseg"]) == ["TE", "NE", "LY", "TA"]


def test_letters_stand_in_the_middle_of_large_regions_only():
    mask = np.full((31, 41), SPEC.C, np.uint8)
    mask[5:20, 10:25] = 0  # 15 x 15: the middle is row 12, column 17
    mask[25:30, 30:35] = 1  # 5 x 5: no room for a letter
    ax = plt.figure().add_subplot()
    viz.letter_regions(ax, mask, SPEC)
    assert texts(ax) == {"T": (17, 12)}


def test_letters_stand_in_every_region_that_is_deep_enough_where_asked():
    mask = np.full((31, 61), SPEC.C, np.uint8)
    mask[5:20, 10:25] = 0  # 15 x 15: the middle is row 12, column 17
    mask[5:16, 30:41] = 0  # 11 x 11: row 10, column 35, 6 px deep
    mask[5:14, 50:59] = 0  # 9 x 9: 5 px deep
    found = {}
    for every in (6, 7):
        ax = plt.figure().add_subplot()
        viz.letter_regions(ax, mask, SPEC, at=(100, 0), every=every)
        found[every] = [(t.get_text(), *t.get_position()) for t in ax.texts]
    assert found == {6: [("T", 117, 12), ("T", 135, 10)], 7: [("T", 117, 12)]}


def test_a_mask_of_a_large_picture_is_drawn_small_with_its_letters():
    mask = np.full((800, 400), 4, np.uint8)
    mask[100:302, 100:302] = 1  # at half the size: 50 to 150, the middle is 100
    ax, over = plt.figure().subplots(1, 2)
    viz.show_mask(ax, mask, SPEC)
    assert ax.images[0].get_array().shape == (400, 200, 3)
    assert texts(ax) == {"S": (100, 100)}
    viz.show_mask(over, mask, SPEC, np.zeros((1600, 800, 3), np.uint8))
    assert over.images[0].get_array().shape == (1600, 800, 3)
    assert over.images[0].get_extent() == ax.images[0].get_extent() == [-0.5, 199.5, 399.5, -0.5]
    assert texts(over) == {"S": (100, 100)}


def test_class_legend_names_every_class_and_ignore():
    fig = plt.figure(layout="constrained")
    viz.class_legend(fig, SPEC)
    said = [t.get_text() for t in fig.legends[0].get_texts()]
    assert said == ["TUM  tumour", "STR  stroma", "LYM  lymphocytes", "NEC  necrosis", "ignore"]


def test_grid_is_always_two_dimensional_and_has_no_ticks():
    fig, axes = viz.grid(1, 3, side=2)
    assert axes.shape == (1, 3) and tuple(fig.get_size_inches()) == (6, 2.5)
    assert all(len(ax.get_xticks()) == len(ax.get_yticks()) == 0 for ax in axes.flat)


def test_montage_puts_patch_i_of_row_r_there_and_leaves_the_rest_empty():
    patches = np.arange(3 * 2 * 2 * 3, dtype=np.uint8).reshape(3, 2, 2, 3)
    fig = viz.montage([patches, patches[:1], patches[:0]], ["all", "one", "none"])
    axes = np.array(fig.axes).reshape(3, 3)
    np.testing.assert_array_equal([ax.images[0].get_array() for ax in axes[0]], patches)
    assert [[len(ax.images) for ax in row] for row in axes] == [[1, 1, 1], [1, 0, 0], [0, 0, 0]]
    assert [row[0].get_ylabel() for row in axes] == ["all", "one", "none"]


def test_scatter_draws_class_colour_and_group_marker():
    points = np.array([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]])
    ax = plt.figure().add_subplot()
    viz.scatter(ax, points, np.array([0, 0, 1]), np.array([0, 1, 1]), SPEC, ["first", "second"])
    drawn = [
        (c.get_offsets().tolist(), c.get_facecolor()[0, :3].tolist()) for c in ax.collections[:3]
    ]
    assert drawn == [([[0.0, 1.0]], ORANGE), ([[2.0, 3.0]], ORANGE), ([[4.0, 5.0]], GREEN)]
    paths = [c.get_paths()[0].vertices for c in ax.collections]
    np.testing.assert_array_equal(paths[1], paths[2])  # one marker for one group
    assert len(paths[0]) != len(paths[1])
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["first", "second"]


def test_heat_map_writes_the_numbers_and_separates_the_classes():
    ax = plt.figure().add_subplot()
    viz.heat_map(ax, np.array([[1, -0.001], [-0.25, 1]]), ["A", "B"], block=1)
    assert [(t.get_text(), t.get_position()) for t in ax.texts] == [
        ("1.00", (0, 0)),
        (".00", (1, 0)),
        ("-.25", (0, 1)),
        ("1.00", (1, 1)),
    ]
    assert [line.get_xydata()[:, axis].tolist() for line, axis in zip(ax.lines, (1, 0))] == [
        [0.5, 0.5],
        [0.5, 0.5],
    ]


def test_play_draws_again_when_a_control_moves():
    asked = []

    def draw(a, b):
        asked.append((a, b))
        return plt.figure(figsize=(1 + a, 1))

    control = widgets.FloatSlider(0.0, min=0, max=1)
    box = viz.play(draw, a=control, b=widgets.IntSlider(7))
    before = Image.open(io.BytesIO(box.children[-1].value)).size
    control.value = 1.0
    after = Image.open(io.BytesIO(box.children[-1].value)).size
    assert asked == [(0.0, 7), (1.0, 7)]
    assert [c.description for c in box.children[:-1]] == ["a", "b"]
    assert {c.style.description_width for c in box.children[:-1]} == {"9em"}  # no name is cut
    assert after[0] > before[0] and plt.get_fignums() == []


def test_axes_stay_where_they_are_when_a_control_moves():
    drawn = []

    def draw(a):
        fig, ax = plt.subplots(layout="constrained")
        ax.set(ylabel="\n" * int(a), title="t")  # a label of more lines would push the axes aside
        drawn.append((fig, ax))
        return fig

    control = widgets.IntSlider(1, min=1, max=9)
    viz.play(draw, a=control)
    control.value = 9
    places = [ax.get_position().bounds for _, ax in drawn]
    assert places[0] == pytest.approx(places[1])


# what the notebooks draw, at the sizes of preset quick

RNG = np.random.default_rng(0)
PATCHES = RNG.integers(0, 256, (6, 112, 112, 3)).astype(np.uint8)
MASKS = np.kron(RNG.integers(0, SPEC.C + 1, (3, 4, 4)), np.ones((28, 28), int)).astype(np.uint8)
HEADS = [viz.narrow(title) for title in METHODS.values()]


def panel(n=0):
    scores = [dict(iou=[0.1 * (c + n % 3) for c in range(SPEC.C)], miou=m) for m in (0.4, 0.6)]
    return viz.protocol_panel(PATCHES[n % 6], MASKS[:2], *scores, SPEC)


def explored(n=0):
    owner, marks = np.arange(140) % SPEC.C, np.arange(140) // SPEC.C % (3 + n % 4)
    points = np.random.default_rng(n).normal(size=(140, 2))
    near = np.arange(n, n + 6)
    return viz.neighbours(points, owner, marks, near, PATCHES, SPEC)


def monitored(n=0):
    history = {"loss": np.ones(8)} | {f"IoU {c}": np.full(8, 0.2) for c in SPEC.classes}
    iou = np.tile(np.linspace(0, 1, 8)[:, None], (3, 1, SPEC.C))
    band = ledger.Band((0, 1, 2), np.tile([[0.5], [0.2], [0.9]], 8), iou)
    return viz.monitor(pd.DataFrame(history), n % 9, SPEC, band)


def cut(n=0):
    values = np.kron(RNG.random((8, 8)), np.ones((14, 14)))
    fig, axes = viz.grid(1, 3, side=2.2)
    viz.map_and_parts(axes[0], values, values > 0.1 * n, PATCHES[:2] / 255)
    return fig


def laid_over(n=0):
    fig, axes = viz.grid(1, 2, side=2.6)
    for ax in axes[0]:
        ax.imshow(PATCHES[n % 6])
        viz.outline(ax, MASKS[0] == 0)
    axes[0, 1].imshow(RNG.random((14, 14)), alpha=0.1 * n, extent=(-0.5, 111.5, 111.5, -0.5))
    return fig


def rows(n=0):
    columns = dict.fromkeys(("truth", *HEADS), MASKS[[n % 3]])
    label = "label\n" + " +\n".join(SPEC.classes[: 1 + n % SPEC.C])
    return viz.mask_rows(PATCHES[[n % 6]], columns, SPEC, [label])


def seen(n=0):
    fig, axes = viz.grid(1, 2, side=4.2)
    axes[0, 0].imshow(PATCHES[n % 6])
    viz.show_mask(axes[0, 1], MASKS[n % 3], SPEC, PATCHES[n % 6])
    viz.class_legend(fig, SPEC, white="none of these")
    return fig


CONTROLLED = (panel, explored, monitored, cut, laid_over, rows, seen)


@pytest.mark.parametrize("draw", CONTROLLED, ids=lambda draw: draw.__name__)
def test_nothing_of_a_control_s_picture_is_cut_off_nor_jumps(draw):
    control = widgets.IntSlider(0)
    box, sizes = viz.play(draw, n=control), set()
    for n in (0, 3):  # as many sub-classes and as long a label as there are
        control.value = n
        drawn = np.asarray(Image.open(io.BytesIO(box.children[-1].value)).convert("L"))
        edge = np.concatenate([drawn[[0, -1]].ravel(), drawn[:, [0, -1]].ravel()])
        sizes.add(drawn.shape)
        assert edge.min() > 200  # a jpeg's white
    assert len(sizes) == 1


def plain():
    """A line with its names: 40 to 50 ms of an idle core."""
    fig, ax = plt.subplots(layout="constrained")
    ax.plot([0, 1], label="a")
    ax.set(title="b", xlabel="c", ylabel="d")
    ax.legend()
    fig.canvas.draw()
    plt.close(fig)


@pytest.mark.parametrize("draw", CONTROLLED, ids=lambda draw: draw.__name__)
def test_a_control_is_answered_within_three_plain_figures(draw):
    """That is 150 ms. Time of the process, the least of some: others compute here as well."""
    control = widgets.IntSlider(0, min=0, max=9)
    viz.play(draw, n=control)
    alone, answered = [], []
    for value in range(1, 5):
        start = time.process_time()
        plain()
        alone.append(time.process_time() - start)
        start = time.process_time()
        control.value = value
        answered.append(time.process_time() - start)
    assert min(answered) < 3 * min(alone)


def drawn_rows():
    names = ["46% right\nLYM taken for TUM,\n54% of the pixels", "TUM + STR + LYM + NEC", "STR"]
    return viz.mask_rows(PATCHES[:3], {"truth": MASKS, "mask": MASKS}, SPEC, names)


def drawn_maps():
    maps = {f"lymphocytes\nPH-val-s03+5{n}": [MASKS[0] == 0, *MASKS, MASKS[0]] for n in range(3)}
    heads = ["truth", HEADS[0], HEADS[2], HEADS[3], HEADS[4]]
    return viz.map_grid(maps, heads, "probability of the class")


def drawn_bars():
    table = pd.DataFrame({"near a border": 53.4, "inside": 13.4}, list(METHODS.values()))
    return viz.hatched_bars(table, "wrong pixels (%)", "Errors near borders and inside")


def drawn_curves():
    live = viz.LivePlot(HEADS[:1] + HEADS[2:5])
    history = dict(epoch=[1, 2], loss=[3.0, 1.0], classification=[2.0, 0.5], matching=[1.0, 0.5])
    live.histories = {title: pd.DataFrame(history) for title in live.histories}
    return live.figure()


def drawn_areas():
    return viz.auc_chart({f"masked image, {n}": [0.5, 0.51] for n in "abc"})


@pytest.mark.parametrize(
    "draw",
    (*CONTROLLED, drawn_rows, drawn_maps, drawn_bars, drawn_curves, drawn_areas),
    ids=lambda draw: draw.__name__,
)
def test_no_words_of_a_figure_lie_over_others(draw):
    plt.rcParams["figure.dpi"] = 64  # as in notebooks 04 to 06: text is large beside its axes
    fig = draw()
    viz.legible(fig)
    fig.canvas.draw()
    words = [
        text
        for text in fig.findobj(Text)
        if text.get_visible() and text.get_text().strip() and _shown(text)
    ]
    boxes = [text.get_window_extent().shrunk(0.9, 0.9) for text in words]
    for (n, a), (m, b) in combinations(enumerate(boxes), 2):
        assert not a.overlaps(b), f"{words[n].get_text()!r} and {words[m].get_text()!r}"
    assert len(words) >= 2 or draw is laid_over


def _shown(text):
    """Whether a text is drawn: not those of ticks beyond an axis, or of axes that are off."""
    ax = text.axes
    if ax is None or text in (*ax.texts, ax.title):
        return True
    axes = [axis for axis in (ax.xaxis, ax.yaxis) if text in axis.findobj(Text)]
    if not axes or text is axes[0].label:
        return ax.axison or not axes
    marked = {
        of
        for tick in (*axes[0].get_major_ticks(), *axes[0].get_minor_ticks())
        for of in (tick.label1, tick.label2)
        if axes[0].get_view_interval()[0] <= tick.get_loc() <= axes[0].get_view_interval()[1]
    }
    return ax.axison and text in marked


def test_show_source_is_the_source():
    shown = viz.show_source(bank.seed_centres, bank.lloyd).data
    assert shown.startswith("def seed_centres(X: np.ndarray, K: int, ")
    assert "\n\ndef lloyd(" in shown


def test_save_leaves_picture_and_caption_and_nothing_else(tmp_path):
    fig = plt.figure(figsize=(2, 1))
    fig.add_subplot().plot([0, 1])
    viz.save(fig, tmp_path, "01_line", "A line goes up.")
    assert sorted(p.name for p in (tmp_path / "figures").iterdir()) == [
        "01_line.png",
        "01_line.txt",
    ]
    assert (tmp_path / "figures" / "01_line.txt").read_text("utf-8") == "A line goes up.\n"
    with Image.open(tmp_path / "figures" / "01_line.png") as picture:
        picture.load()  # raises on a file cut short
        assert picture.format == "PNG" and picture.info["dpi"] == pytest.approx((110, 110), abs=0.1)


def test_no_text_is_smaller_than_11_px_where_a_page_shows_the_figure():
    wide = plt.figure(figsize=(17.6, 4), dpi=100)  # 1760 px: a page of 880 px shows half of each
    ax = wide.add_subplot()
    ax.plot([0, 1])
    small, large = ax.text(0, 0, "a", fontsize=7), ax.text(0, 1, "b", fontsize=20)
    viz.legible(wide)
    wide.canvas.draw()
    # 11 px shown are 22 px drawn, 15.84 points at 100 dpi
    assert small.get_fontsize() == pytest.approx(15.84) and large.get_fontsize() == 20
    ticks = [text.get_fontsize() for text in ax.get_xticklabels()]
    assert len(ticks) > 3 and ticks == [pytest.approx(15.84)] * len(ticks)
    narrow = plt.figure(figsize=(4, 4), dpi=100)  # drawn and shown alike: 7.92 points are 11 px
    text = narrow.text(0, 0, "a", fontsize=7)
    viz.legible(narrow)
    assert text.get_fontsize() == pytest.approx(7.92)


def test_a_shown_figure_carries_its_words_beside_the_picture(tmp_path, monkeypatch):
    from IPython.core.interactiveshell import InteractiveShell
    from matplotlib_inline.backend_inline import set_matplotlib_formats

    shell = InteractiveShell.instance()
    try:
        monkeypatch.setattr(viz, "get_ipython", lambda: shell)
        shell.display_formatter.active_types = ["text/plain", "image/png"]  # as in a kernel
        set_matplotlib_formats("png")
        fig = plt.figure(figsize=(2, 1))
        fig.add_subplot()  # without axes there is no picture
        for words in ("First.", "A line goes up."):  # told twice, wrapped once
            viz.save(fig, tmp_path, "01_line", words)
        data, metadata = shell.display_formatter.format(fig)
        assert metadata["image/png"] == {"alt": "A line goes up."} and "image/png" in data
        plain, nothing = shell.display_formatter.format(plt.subplots()[0])
        assert "image/png" in plain and not nothing.get("image/png")
    finally:
        InteractiveShell.clear_instance()


def test_save_keeps_the_old_picture_when_drawing_fails(tmp_path):
    fig = plt.figure()
    viz.save(fig, tmp_path, "01_line", "First.")
    old = (tmp_path / "figures" / "01_line.png").read_bytes()
    fig.add_subplot().set_title(r"$\unknown$")  # matplotlib finds out while it draws
    with pytest.raises(ValueError, match="unknown"):
        viz.save(fig, tmp_path, "01_line", "Second.")
    assert (tmp_path / "figures" / "01_line.png").read_bytes() == old
    assert sorted(p.name for p in (tmp_path / "figures").iterdir()) == [
        "01_line.png",
        "01_line.txt",
    ]


def test_the_live_plot_draws_losses_and_leaves_out_what_was_watched():
    history = pd.DataFrame(
        {
            "epoch": [1, 2],
            "loss": [2.0, 1.0],
            "half": [1.0, 0.5],
            "seconds": [9.0, 9.0],
            "IoU TUM": [80.0, 90.0],
        }
    )
    assert viz.LivePlot.losses(history) == ["loss", "half"]
    live = viz.LivePlot(["net"])
    live.histories["net"] = history
    [ax] = live.figure().axes
    assert [line.get_ydata().tolist() for line in ax.lines] == [
        [2.0, 1.0],
        [1.0, 0.5],
    ] and ax.get_ylim() == (0, pytest.approx(2.2))
    plt.close("all")


def test_class_shares_are_parts_of_the_whole_area_and_ignore_is_none():
    masks = np.array([[[0, 0], [1, 1]], [[2, 4], [4, 4]]], np.uint8)  # 4 is ignore of four classes
    np.testing.assert_allclose(viz.class_shares(masks, 4), [[0.5, 0.5, 0, 0], [0, 0, 0.25, 0]])


def test_near_border_is_near_another_region_never_the_edge_of_the_picture():
    mask = np.zeros((1, 5, 8), np.uint8)
    mask[..., 4:] = 1
    near = viz.near_border(mask, 2)
    np.testing.assert_array_equal(near[0, 2], [0, 0, 1, 1, 1, 1, 0, 0])
    assert (near == near[:, 2:3]).all() and not viz.near_border(mask[..., 4:], 2).any()


class FakeRun:
    """Two slides of known counts: CAM has half and all of its pixels right, prototypes all."""

    methods = ("cam", "prototypes", "pbip_stage1")
    titles = {method: results.METHODS[method] for method in methods}
    preset = PRESETS["smoke"]
    spec = SPEC
    seed = 3
    right = {"cam": (1, 2), "prototypes": (2, 2), "pbip_stage1": (2, 2)}

    def counts(self, method, split):
        found = {}
        for slide, right in zip("ab", self.right[method]):
            truth = np.array([[[0, 1]]])
            counts = metrics.Counts.of(truth, truth if right == 2 else truth * 0, SPEC.C)
            found[slide] = {"predicted": {"dropped": counts}}
        return found

    def scores(self, method, split):
        slides = [of["predicted"]["dropped"] for of in self.counts(method, split).values()]
        return (slides[0] + slides[1]).scores()

    def history(self, method):
        return pd.DataFrame(
            {"epoch": [1, 2, 3], "loss": [2.0, 1.0, 0.5], "seconds": 4.0, "IoU TUM": 0.1}
        )


def test_step_table_sets_each_method_beside_its_neighbours():
    table = viz.step_table(FakeRun(), "val", FakeRun.methods)
    # CAM pooled: class 0 has 2 of 3 pixels, class 1 has 1 of 2: mIoU 7/12
    assert [row[1:3] for row in table.rows] == [["+41.7", "1 of 2"], ["+0.0", "0 of 2"]]
    assert table.rows[0][0] == "Prototypes, no matching loss, against: CAM"
    assert table.rows[1][3] == "the matching loss, nothing else"
    assert table.caption == (
        "phantom val, preset smoke, seed 3; predicted image labels, ignore pixels dropped.",
    )


def test_every_method_but_two_starts_has_a_neighbour():
    compared = {method for pair in viz.STEPS for method in pair}
    assert compared == set(results.METHODS)
    order = list(results.METHODS)
    assert all(order.index(better) > order.index(than) for better, than in viz.STEPS)


def test_history_table_has_the_first_and_the_last_epoch():
    table = viz.history_table(FakeRun(), ["cam", "prototypes"])
    assert list(table.columns) == ["loss (nats)", "time (s)"]
    assert table.loc["CAM", "loss (nats)"].to_dict() == {1: 2.0, 3: 0.5}


def test_a_preset_of_one_epoch_says_that_its_scores_mean_nothing(capsys):
    viz.warn_untrained(PRESETS["quick"])
    assert capsys.readouterr().out == ""
    viz.warn_untrained(PRESETS["smoke"])
    assert "mean nothing" in capsys.readouterr().out


def test_pixel_confidence_is_the_softmax_over_the_open_classes():
    scores = torch.log(torch.tensor([[0.2, 0.1], [0.3, 0.2], [0.4, 0.1], [0.1, 0.6]]))
    scores = scores.T.reshape(1, 2, 4).permute(0, 2, 1)[:, :, None]  # (1, C, 1, 2)
    labels = torch.tensor([[True, True, False, False]])

    class Fake(FakeRun):
        def data(self, split):
            return SimpleNamespace(masks=np.array([[[1, 0]], [[0, SPEC.C]]], np.uint8))

        def predictions(self, method, split, rows):
            yield torch.tensor([0]), scores, labels

    sure, right = viz.pixel_confidence(Fake(), "pbip_stage1", "val", [0])
    np.testing.assert_allclose(sure, [3 / 5, 2 / 3], rtol=1e-5)
    np.testing.assert_array_equal(right, [True, False])


def test_what_numba_compiles_is_kept_where_there_is_a_place(monkeypatch):
    import numba
    from numba.core import caching

    kept = SimpleNamespace(double=numba.njit(lambda x: 2 * x), other=3)
    asked = []
    monkeypatch.setattr(type(kept.double), "enable_caching", lambda self: asked.append(self))
    viz.keep_compiled(kept)
    assert asked == [kept.double]
    monkeypatch.undo()
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])  # nowhere to write
    viz.keep_compiled(kept)
    assert kept.double(4) == 8


def test_half_is_held_back_by_slides_or_where_these_tell_the_class_by_patches(capsys):
    slide, owner = np.array([0, 0, 1, 1, 2, 3]), np.array([0, 1, 0, 1, 0, 1])
    assert viz.held_back(owner, slide).tolist() == [False, False, True, True, False, True]
    assert capsys.readouterr().out == ""
    for told in (np.array([0, 1, 0, 1, 0, 1]), np.zeros(6, int)):  # a slide a class; none known
        found = viz.held_back(owner, told)
        assert found.tolist() == [False, False, True, True, False, False]
        assert "every other patch is held back" in capsys.readouterr().out


def test_a_montage_of_nothing_keeps_its_names():
    fig = viz.montage([np.zeros((0, 8, 8, 3), np.uint8)] * 2, ["A", "B"])
    assert [ax.get_ylabel() for ax in fig.axes] == ["A", "B"]
    plt.close(fig)


@pytest.mark.parametrize("rows, numbers", [(24, 576), (60, 0)])
def test_a_heat_map_has_numbers_as_long_as_they_can_be_read(rows, numbers):
    fig, ax = plt.subplots()
    viz.heat_map(ax, np.eye(rows), [""] * rows, 3)
    assert len(ax.texts) == numbers and len(ax.lines) == 2 * (rows // 3 - 1)
    plt.close(fig)


def test_a_table_says_over_which_classes_its_means_are(capsys):
    truth = np.zeros((1, 8, 8), int)
    truth[0, 4:] = 1

    def scored(truth):
        scorer = metrics.Scorer(SPEC.C)
        scorer.update(truth, np.zeros_like(truth))
        return scorer.result()

    table = viz.score_table({"a": scored(truth), "b": scored(truth)}, SPEC)
    assert capsys.readouterr().out == "Means are over TUM, STR: the others have no true pixel.\n"
    assert table["mIoU (%)"].tolist() == [25, 25]
    viz.score_table({"a": scored(np.arange(64).reshape(1, 8, 8) % SPEC.C)}, SPEC)
    assert capsys.readouterr().out == ""
