"""Figures of the notebooks: colours that all readers can tell apart, a letter for every tissue, one
way to save."""

import inspect
import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from types import ModuleType

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython import get_ipython
from IPython.display import Code, display
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap, hsv_to_rgb, to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator
from PIL import Image

from protolib import cams, metrics, results
from protolib.blocks import Table
from protolib.data.specs import DatasetSpec
from protolib.experiment import STAGE2, Run, enlarged
from protolib.files import whole, write_text
from protolib.maps import gate
from protolib.metrics import SCORES
from protolib.presets import Preset
from protolib.study.figures import OKABE_ITO

PAGE, LEAST = 880, 11  # px: the width that JupyterLab gives a figure on a laptop; the least text
MARKERS = "o^sDvP"  # sub-class 1, 2, 3, ... of a class; more than six repeat


def colours(spec: DatasetSpec) -> np.ndarray:
    """One colour per class in label order and white for ignore: (C + 1, 3) float in [0, 1], all
    different. Notebook 01."""
    inks = [to_rgb(ink) for ink in OKABE_ITO[: spec.C]]
    for c in range(len(inks), spec.C):  # more classes than inks: hues, in three shades
        inks.append(
            tuple(hsv_to_rgb((c / spec.C, (1, 0.55, 0.8)[c % 3], (0.85, 0.95, 0.5)[c % 3])))
        )
    return np.array([*inks, (1.0, 1.0, 1.0)])


def mask_rgb(mask: np.ndarray, spec: DatasetSpec) -> np.ndarray:
    """A mask (H, W) of class indices as a picture (H, W, 3) float in [0, 1]. Notebook 01."""
    return colours(spec)[mask]


def overlay(
    image: np.ndarray, mask: np.ndarray, spec: DatasetSpec, opacity: float = 0.45
) -> np.ndarray:
    """A mask laid over its image: (H, W, 3) float in [0, 1]. Notebook 01.

    image: (H, W, 3) uint8; mask: (Hm, Wm) uint8, of any size: each pixel of the image takes the
    mask's nearest.
    """
    return (1 - opacity) * image / 255 + opacity * mask_rgb(resized(mask, image.shape), spec)


def resized(mask: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """A mask at a picture's height and width: each pixel takes the nearest of the mask. Notebook
    08."""
    rows, columns = ((np.arange(n) + 0.5) * m // n for n, m in zip(shape, mask.shape))
    return mask[np.ix_(rows.astype(int), columns.astype(int))]


def label_text(label: np.ndarray, spec: DatasetSpec) -> str:
    """An image label (C,) in words: "TUM + STR", or "no class". Notebook 01."""
    return " + ".join(c for c, present in zip(spec.classes, label) if present) or "no class"


def letters(spec: DatasetSpec) -> list[str]:
    """C short marks: as many first letters as tell the classes apart, "T", but "TE" beside "TA"."""
    longest = max(map(len, spec.classes))
    enough = next(
        (n for n in range(1, longest) if len({c[:n] for c in spec.classes}) == spec.C), longest
    )
    return [c[:enough] for c in spec.classes]


def letter_regions(
    ax,
    mask: np.ndarray,
    spec: DatasetSpec,
    at: tuple[int, int] = (0, 0),
    every: float = math.inf,
) -> None:
    """Write each class's letters inside its region of a mask, for readers who cannot rely on
    colour. Notebook 01.

    mask: (H, W) of class indices; at: x and y of its corner on the axes, in its pixels; every: of
    the regions of a class all that are this deep are marked, px from their border; else the deepest
    alone.
    """
    from scipy.ndimage import distance_transform_edt, label, maximum_position

    for c in np.unique(mask[mask < spec.C]):
        depth = distance_transform_edt(np.pad(mask == c, 1))[1:-1, 1:-1]
        # the point farthest from the region's border
        places = [np.unravel_index(depth.argmax(), depth.shape)]
        if depth.max() >= every:
            parts, n = label(mask == c)
            middles = maximum_position(depth, parts, range(1, n + 1))
            places += [m for m in middles if depth[m] >= every and parts[m] != parts[places[0]]]
        for y, x in places if depth.max() > 4 else ():
            ax.text(
                x + at[0],
                y + at[1],
                letters(spec)[c],
                ha="center",
                va="center",
                weight="bold",
                fontsize=9,
                color="black",
                bbox=dict(boxstyle="circle,pad=0.15", fc="white", ec="none", alpha=0.8),
            )


def show_mask(ax, mask: np.ndarray, spec: DatasetSpec, image: np.ndarray | None = None) -> None:
    """A mask of a large picture, or the picture with the mask over it, letters in all large
    regions. Notebook 08.

    mask: (Hm, Wm) of class indices; image: (H, W, 3) uint8, of any size.
    """
    shape = mask.shape if image is None else image.shape[:2]
    h, w = (math.ceil(n * min(1, 400 / max(shape))) for n in shape)  # enough to find the middles
    small = resized(mask, (h, w))
    drawing = mask_rgb(small, spec) if image is None else overlay(image, mask, spec)
    smooth = "nearest" if image is None else "auto"
    ax.imshow(drawing, interpolation=smooth, extent=(-0.5, w - 0.5, h - 0.5, -0.5))
    letter_regions(ax, small, spec, every=max(h, w) / 20)


def class_legend(fig: Figure, spec: DatasetSpec, white: str = "ignore") -> None:
    """A legend of tissue names and colours, and of what white means, below a
    figure. Notebook 01."""
    handles = [
        Patch(fc=c, ec="black", label=f"{s}  {t}")
        for s, t, c in zip(spec.classes, spec.titles, colours(spec))
    ]
    handles.append(Patch(fc="white", ec="black", label=white))
    # about 1.35 inches an entry
    columns = max(2, min(len(handles), int(fig.get_figwidth() / 1.35)))
    fig.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)


def grid(rows: int, columns: int, side: float = 1.9, **more) -> tuple[Figure, np.ndarray]:
    """A figure of pictures without ticks, `side` inches each, and its axes, always
    (rows, columns). Notebook 01."""
    fig, axes = plt.subplots(
        rows,
        columns,
        figsize=(side * columns, side * rows + 0.5),
        squeeze=False,
        layout="constrained",
        **more,
    )
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    return fig, axes


def name_rows(axes: np.ndarray, names: Sequence[str]) -> None:
    """Names at the left of the rows of a grid, level and with room to be read; long ones in several
    lines. Notebook 04.

    axes: the first of each row.
    """
    lines = ["\n".join(textwrap.fill(line, 18) for line in name.splitlines()) for name in names]
    for ax, name in zip(axes, lines):
        ax.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    longest = max(len(line) for name in lines for line in name.splitlines())
    fig = axes[0].figure
    fig.set_figwidth(fig.get_figwidth() + 0.1 * longest)  # in inches, a tenth a character


def montage(rows: list[np.ndarray], names: list[str], side: float = 0.9) -> Figure:
    """One row of patches per name; a row may be short. rows: arrays (n_i, H, W, 3)
    uint8. Notebooks 01 and 02."""
    fig, axes = grid(len(rows), max(1, *map(len, rows)), side)
    name_rows(axes[:, 0], names)
    for own, patches in zip(axes, rows):
        for ax, patch in zip(own, patches):
            ax.imshow(patch)
        for ax in own[len(patches) :]:
            ax.axis("off") if ax is not own[0] else ax.set_frame_on(False)
    return fig


def sheet(
    ax: Axes, rows: Sequence[Sequence[np.ndarray]], gap: float = 0.08
) -> list[tuple[int, int]]:
    """Pictures of one size side by side on one pair of axes, framed: a control cannot wait for
    dozens of axes.

    rows: pictures (H, W, 3) float in [0, 1]; gap: between them, a share of the height. Returns x
    and y of each picture's corner, row after row.
    """
    H, W = rows[0][0].shape[:2]
    down, across = H + int(gap * H), W + max(2, int(min(gap, 0.08) * W))
    paper, places = np.ones((down * len(rows), across * max(map(len, rows)), 3)), []
    for r, row in enumerate(rows):
        for c, picture in enumerate(row):
            x, y = c * across, (r + 1) * down - H  # the gap is above: there are names
            paper[y : y + H, x : x + W] = picture
            paper[y : y + H, [x, x + W - 1]] = paper[[y, y + H - 1], x : x + W] = 0
            places.append((x, y))
    ax.imshow(paper)
    ax.axis("off")
    return places


def keep_compiled(*modules: ModuleType) -> None:
    """Let numba keep on disk what it compiles of these modules: the first UMAP of a machine takes
    twelve seconds for it, a later one half a second. Notebook 02.

    Where no folder can be written it is compiled anew each time, as if nobody had asked.
    """
    from numba.core.dispatcher import Dispatcher  # here: others need not wait for it

    for module in modules:
        for function in vars(module).values():
            if isinstance(function, Dispatcher):
                with suppress(RuntimeError):  # numba's word for no place to keep it
                    function.enable_caching()


def scatter(
    ax,
    points: np.ndarray,
    classes: np.ndarray,
    marks: np.ndarray,
    spec: DatasetSpec,
    names: list[str],
):
    """Points coloured by class, their markers by a second group, for instance the
    cluster. Notebooks 01 and 02.

    points: (n, 2) float; classes, marks: (n,) int from 0; names: of the marks, for the legend.
    """
    for c, m in sorted(set(zip(classes.tolist(), marks.tolist()))):
        own = points[(classes == c) & (marks == m)]  # (n_own, 2)
        ax.scatter(
            *own.T,
            color=colours(spec)[c],
            marker=MARKERS[m % len(MARKERS)],
            s=24,
            ec="black",
            lw=0.4,
        )
    for m, name in enumerate(names):
        fill = colours(spec)[m] if np.array_equal(marks, classes) else "0.7"
        ax.scatter(
            [],
            [],
            color=fill,
            marker=MARKERS[m % len(MARKERS)],
            s=24,
            ec="black",
            lw=0.4,
            label=name,
        )
    # below: no place inside is sure to be empty
    ax.legend(
        fontsize=8,
        handletextpad=0.2,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.16),
        ncols=min(3, len(names)),
        frameon=False,
    )


def neighbours(
    points: np.ndarray,
    classes: np.ndarray,
    marks: np.ndarray,
    near: np.ndarray,
    images: np.ndarray,
    spec: DatasetSpec,
) -> Figure:
    """A patch of the bank and those nearest to it: where they lie among all, and what they look
    like. Notebook 02.

    points: (n, 2) float; classes, marks: (n,) int, class and sub-class from 0; near: (m,) rows of
    points, the patch first, m up to 6; images: (m, H, W, 3) uint8, of near.
    """
    fig, (page, side) = plt.subplots(
        1, 2, figsize=(9.6, 4), width_ratios=(1, 1), layout="constrained"
    )
    scatter(page, points, classes, marks, spec, [f"{k + 1}" for k in range(max(marks) + 1)])
    shapes, numbers = page.get_legend_handles_labels()
    page.get_legend().remove()
    # all in one row, however many sub-classes there are: the pictures stay where they are
    inks = [Patch(fc=c, ec="black", label=name) for c, name in zip(colours(spec), spec.classes)]
    words = [*spec.classes, f"sub-class {numbers[0]}", *numbers[1:]]
    fig.legend(
        [*inks, *shapes],
        words,
        loc="outside lower center",
        ncols=len(words),
        frameon=False,
        columnspacing=1,
    )
    page.set(xticks=[], yticks=[], xlabel="UMAP 1 (no unit)", ylabel="UMAP 2 (no unit)")
    H, W = images.shape[1:3]
    places = sheet(side, [list(images[:3] / 255), list(images[3:] / 255)], gap=0.25)
    for n, (i, (x, y)) in enumerate(zip(near, places)):
        name = f"{n or 'P'}: {spec.classes[classes[i]]} {marks[i] + 1}"
        side.text(x + W / 2, y - 0.04 * H, name, ha="center", va="bottom", fontsize=10)
        ring = dict(boxstyle="circle,pad=0.2", fc="white", ec="black")
        at = dict(ha="center", va="center", zorder=10 - n)  # the patch itself on top
        page.text(*points[i], n or "P", weight="bold", bbox=ring, **at)
    return fig


def heat_map(ax, matrix: np.ndarray, names: list[str], block: int) -> None:
    """A square matrix of cosines with its numbers, up to 24 rows, and lines around blocks of
    `block` rows. Notebook 02."""
    ax.imshow(matrix, cmap="RdBu_r", vmin=-1, vmax=1)
    for (row, column), value in np.ndenumerate(matrix) if len(matrix) <= 24 else ():
        text = f"{value:.2f}".replace("0.", ".").replace("-.00", ".00")
        colour = "white" if abs(value) > 0.7 else "black"
        ax.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    for edge in range(block, len(matrix), block):
        ax.axhline(edge - 0.5, color="black", lw=1.5)
        ax.axvline(edge - 0.5, color="black", lw=1.5)
    ax.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    ax.set_yticks(range(len(names)), names, fontsize=8)


PLAYED: list[Callable] = []  # what the controls of this notebook draw with: desk.free spares it


def play(draw: Callable[..., Figure], **controls: widgets.Widget) -> widgets.VBox:
    """Controls over the picture that draw makes of their values, drawn again when one
    moves. Notebook 01.

    draw: takes the values under the controls' names and returns a figure. Not ipywidgets.interact:
    nbclient answers its output area on the socket where it waits for a cell's end, and now and then
    misses that end, for ever.
    """
    picture = widgets.Image(format="jpeg")
    # size of the figure, places of its axes: to find them takes longest, and axes that stay do not
    # jump
    places: list = []

    def redraw(_=None) -> None:
        fig = draw(**{name: control.value for name, control in controls.items()})
        fig.set_dpi(90)
        legible(fig)
        canvas = FigureCanvasAgg(fig)
        size = tuple(fig.get_size_inches())
        if places and places[0] == size and len(places) == 1 + len(fig.axes):
            fig.set_layout_engine("none")
            for ax, place in zip(fig.axes, places[1:]):
                ax.set_position(place)
        else:  # what stands above pictures is measured before they shrink to their shape: once more
            canvas.draw()
        canvas.draw()  # once: savefig draws twice, to find out how large it all is
        file = BytesIO()
        drawn = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
        drawn.save(file, format="jpeg", quality=85)
        places[:] = [size, *(ax.get_position() for ax in fig.axes)]
        plt.close(fig)
        picture.value = file.getvalue()

    for name, control in controls.items():
        control.description = control.description or name
        # the longest name, "heterogeneity", and the longest method are cut at less
        control.style.description_width, control.layout.width = "9em", "34em"
        control.observe(redraw, "value")
    redraw()
    PLAYED.append(draw)
    return widgets.VBox([*controls.values(), picture])


def show_source(*kernels) -> Code:
    """The source of functions or classes as coloured code, so that page and library cannot
    drift. Notebook 02."""
    return Code(
        "\n\n".join(inspect.getsource(kernel).rstrip() for kernel in kernels), language="python"
    )


def save(fig: Figure, run_dir: str | Path, name: str, caption: str) -> None:
    """Keep a figure for the report: figures/<name>.png and its caption beside it, each whole or
    not; where the notebook shows it, the caption is its alternative text. Notebook 00.

    name: two digits of the notebook, underscore, words: "02_umap"; caption: a sentence that says
    what to see. Text that a page would show smaller than LEAST px is enlarged.
    """
    legible(fig)
    describe(fig, caption)
    folder = Path(run_dir) / "figures"
    with whole(folder / f"{name}.png") as file:
        fig.savefig(file, format="png", dpi=110, bbox_inches="tight")
    write_text(folder / f"{name}.txt", caption + "\n")


def legible(fig: Figure) -> None:
    """Enlarge what is written smaller than LEAST px where a page of PAGE px shows the figure."""
    shown = fig.dpi * min(1, PAGE / (fig.get_figwidth() * fig.dpi))  # px an inch
    least = 72 * LEAST / shown  # points
    for ax in (ax for ax in fig.axes if ax.axison):
        for axis in (ax.xaxis, ax.yaxis):  # numbers at ticks are made when the figure is drawn
            size = axis.get_tick_params().get("labelsize", plt.rcParams["xtick.labelsize"])
            if FontProperties(size=size).get_size_in_points() < least:
                axis.set_tick_params(labelsize=least)
    for text in fig.findobj(Text):
        if float(text.get_fontsize()) < least:
            text.set_fontsize(least)


def describe(fig: Figure, words: str) -> None:
    """Give a figure the words that stand in a notebook for who cannot see it."""
    fig.set_label(words)
    if not (shell := get_ipython()):
        return
    for kind in ("image/png", "image/jpeg"):
        formatter = shell.display_formatter.formatters[kind]
        plain = formatter.type_printers.get(Figure)
        if plain and getattr(plain, "__name__", "") != "described":
            formatter.for_type(Figure, _described(plain))


def _described(plain: Callable[[Figure], bytes | str]) -> Callable:
    """A formatter that hands the words on beside the picture, as nbconvert reads them."""

    def described(fig: Figure):
        picture = plain(fig)
        return (picture, {"alt": fig.get_label()}) if picture and fig.get_label() else picture

    return described


class LivePlot:
    """Loss curves of several trainings side by side, redrawn in place in Jupyter after each
    epoch. Notebooks 04 and 05.

    titles: one panel each. Call it with a title and the history that training.fit hands to
    on_epoch; a call with a finished history draws the same, so one picture stays, whether the
    networks were trained or loaded.
    """

    def __init__(self, titles: list[str]):
        self.histories = {title: pd.DataFrame() for title in titles}
        self.shown = None

    def figure(self) -> Figure:
        """The picture as it stands: mean loss over epochs, one panel per training, the same axis
        for all."""
        fig, axes = plt.subplots(
            1,
            len(self.histories),
            figsize=(3.4 * len(self.histories), 3.2),
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
        for ax, (title, history) in zip(axes[0], self.histories.items()):
            for name, marker, colour in zip(
                self.losses(history), "os^", (OKABE_ITO[2], OKABE_ITO[5], OKABE_ITO[1])
            ):
                ax.plot(history["epoch"], history[name], marker=marker, color=colour, label=name)
            ax.set(title=title, xlabel="epoch", xlim=(0.5, max(len(history), 1) + 0.5))
            ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        labelled = [ax.get_legend_handles_labels() for ax in axes[0]]
        fig.legend(*max(labelled, key=lambda own: len(own[1])), loc="outside lower center", ncols=3)
        losses = [h[self.losses(h)].max(axis=None) for h in self.histories.values() if len(h)]
        ax.set_ylim(0, 1.1 * max(losses, default=1))  # of all panels: they share the axis
        axes[0, 0].set_ylabel("loss (nats)")
        legible(fig)
        describe(fig, f"Mean loss over epochs: {', '.join(self.histories)}.")
        return fig

    @staticmethod
    def losses(history: pd.DataFrame) -> list[str]:
        """The columns of a history that hold losses."""
        return [
            name
            for name in history
            if name not in ("epoch", "seconds", "watched") and not name.startswith("IoU ")
        ]

    def __call__(self, title: str, history: pd.DataFrame) -> None:
        self.histories[title] = history
        fig = self.figure()
        if self.shown is None:
            self.shown = display(fig, display_id=True)
        else:
            self.shown.update(fig)
        plt.close(fig)


def monitor(history: pd.DataFrame, epoch: int, spec: DatasetSpec, band=None) -> Figure:
    """A training as it looks after some epochs: its loss, and the IoU of each class on val, beside
    the band of reference runs where there is one. Notebook 04.

    history: of all epochs, see Run.history; band: see ledger.band.
    """
    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    epochs, names = np.arange(1, len(history) + 1), [f"IoU {c}" for c in spec.classes]
    left.plot(epochs[:epoch], history["loss"][:epoch], color="black", marker="o")
    top = history["loss"].max()
    if band:
        n = np.arange(1, band.loss.shape[1] + 1)
        left.fill_between(n, *band.loss[1:], color="0.8", label="reference, lowest to highest")
        left.legend(frameon=False)
        top = max(top, band.loss.max())
    left.set(ylim=(0, 1.1 * top), ylabel="loss (nats)")
    for c, (name, title) in enumerate(zip(names, spec.titles)):
        look = dict(color=colours(spec)[c], marker=MARKERS[c % len(MARKERS)], mec="black")
        if name in history:
            right.plot(epochs[:epoch], 100 * history[name][:epoch], label=title, **look)
        if band:
            right.plot(n, 100 * band.iou[0, :, c], color=colours(spec)[c], ls="--", lw=1)
    right.set(ylim=(0, 100), ylabel="IoU on val (%)")
    for ax in (left, right):
        ax.set(xlabel="epoch", xlim=(0.5, len(history) + 0.5))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    fig.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return fig


def score_table(scored: dict[str, dict], spec: DatasetSpec) -> pd.DataFrame:
    """Scores in percent with one decimal, a row per name: mIoU, FwIoU, bIoU, Dice, then IoU of each
    class. Notebook 04.

    scored: {row name: what metrics.Scorer.result returns}. Prints over which classes the means are,
    where it is not all of them.
    """
    if said := results.means_over(scored, {name: name for name in scored}, spec.classes):
        print(said.strip())
    rows = {name: [*(s[key] for key in SCORES), *s["iou"]] for name, s in scored.items()}
    heads = [*SCORES.values(), *(f"IoU {c}" for c in spec.classes)]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=heads, dtype=float)
    return (100 * table).round(1).rename(columns=lambda head: f"{head} (%)")


def mask_rows(
    images: np.ndarray, masks: dict[str, np.ndarray], spec: DatasetSpec, names: list[str]
) -> Figure:
    """One row per patch: the image, then its mask under every title, with letters and a
    legend. Notebook 04.

    images: (n, H, W, 3) uint8; masks: {title: (n, Hm, Wm) uint8}; names: n short texts at the left
    of the rows.
    """
    n, H, W = images.shape[:3]
    lines = ["\n".join(textwrap.fill(part, 18) for part in name.splitlines()) for name in names]
    longest = max((len(part) for name in lines for part in name.splitlines()), default=0)
    left = 0.1 * longest  # inches
    above = 0.25 * max(title.count("\n") + 1 for title in masks)
    size = 1.6 * (1 + len(masks)) + left, 1.6 * n + above + 0.5
    fig, ax = plt.subplots(figsize=size)
    # it counts a little less than words take
    fig.set_layout_engine("constrained", w_pad=0.15, h_pad=0.15)
    own = [[resized(mask, (H, W)) for mask in row] for row in zip(*masks.values())]
    rows = [
        [image / 255, *(mask_rgb(mask, spec) for mask in row)] for image, row in zip(images, own)
    ]
    places = np.reshape(sheet(ax, rows), (n, -1, 2))  # x, y
    for name, (x, y) in zip(lines, places[:, 0]):
        ax.text(x - W / 20, y + H / 2, name, ha="right", va="center", fontsize=9)
    for title, (x, y) in zip(("image", *masks), places[0]):
        ax.text(x + W / 2, y - H / 20, title, ha="center", va="bottom", fontsize=9)
    for row, corners in zip(own, places[:, 1:]):
        for mask, corner in zip(row, corners):
            letter_regions(ax, mask, spec, at=corner)
    class_legend(fig, spec)
    return fig


def error_rgb(truth: np.ndarray, prediction: np.ndarray, spec: DatasetSpec) -> np.ndarray:
    """The colour of the true class where wrong, white where right or ignored: (H, W, 3) float in
    [0, 1]. Notebook 05."""
    return np.where((truth == prediction)[..., None], 1.0, mask_rgb(truth, spec))


def main_mistake(truth: np.ndarray, prediction: np.ndarray, spec: DatasetSpec) -> str:
    """The largest confusion of a patch in words: "STR taken for TUM, 31% of the pixels", or "no
    mistake". Notebook 05."""
    wrong = metrics.confusion(truth, prediction, spec.C)[: spec.C, : spec.C]
    share = wrong / max(wrong.sum(), 1)
    np.fill_diagonal(share, 0)
    true, said = np.unravel_index(share.argmax(), share.shape)
    words = f"{spec.classes[true]} taken for {spec.classes[said]},\n{share.max():.0%} of the pixels"
    return words if share.max() else "no mistake"


def circle(ax, prototypes: np.ndarray, K: int, points: dict[str, np.ndarray]) -> None:
    """Prototypes of classes A, B, C... on the unit circle, and named points on it. Notebook 03.

    prototypes: (S, 2) unit rows, K per class; points: name -> (2,).
    """
    ax.add_patch(plt.Circle((0, 0), 1, fill=False, color="0.7"))
    for s, (x, y) in enumerate(prototypes):
        c, k = divmod(s, K)
        ax.plot([0, x], [0, y], color=OKABE_ITO[c], lw=1)
        ax.plot(x, y, MARKERS[c % len(MARKERS)], color=OKABE_ITO[c], ms=9, mec="black", zorder=4)
        ax.text(
            0.72 * x,
            0.72 * y,
            f"{chr(ord('A') + c)}{k + 1}",
            ha="center",
            va="center",
            bbox=dict(fc="white", ec="none", pad=1),
        )
    for name, (x, y) in points.items():
        ax.plot(x, y, "*", color="black", ms=13, zorder=5)
        ax.text(1.2 * x, 1.2 * y, name, ha="center", va="center")
    ax.set(xlim=(-1.45, 1.45), ylim=(-1.45, 1.45), aspect="equal")
    ax.axis("off")


def outline(ax, region: np.ndarray) -> None:
    """The border of a region (H, W) of 0 and 1 over a picture, black on white to show on any
    tissue. Notebook 03."""
    if 0 < region.mean() < 1:
        for width, colour in ((2.4, "white"), (1.0, "black")):
            ax.contour(region, [0.5], colors=[colour], linewidths=width)


def pair_grid(
    images: np.ndarray, regions: np.ndarray, names: list[str], titles: list[str], side: float = 1.35
):
    """One row per pair of patch and class: the patch, pale outside the class, then axes under
    `titles`. Notebook 03.

    images: (n, H, W, 3) uint8; regions: (n, H, W) 0 and 1; names: n. Returns the figure and the
    empty axes (n, titles).
    """
    fig, axes = grid(len(images), 1 + len(titles), side)
    for ax, title in zip(axes[0], ["patch, pale\noutside", *titles]):
        ax.set_title(title, fontsize=9)
    for ax, image, region, name in zip(axes[:, 0], images, regions, names):
        ax.imshow(np.where(region[..., None] > 0, image, 140 + image * 0.45).astype(np.uint8))
        ax.set_ylabel(name)
        outline(ax, region)
    return fig, axes[:, 1:]


def pull(ax, image: np.ndarray, values: np.ndarray) -> None:
    """A signed map (h, w) over its patch in grey: orange above 0, purple below, full colour for the
    top 3 %. Notebook 03."""
    H, W = image.shape[:2]
    ax.imshow(255 - (255 - image.mean(-1)) / 2, cmap="gray", vmin=0, vmax=255)
    top = np.quantile(np.abs(values), 0.97) or 1.0
    ax.imshow(
        values, cmap="PuOr_r", vmin=-top, vmax=top, alpha=0.7, extent=(-0.5, W - 0.5, H - 0.5, -0.5)
    )


# what a method's difference to its neighbour isolates, in the order of results.METHODS
STEPS = {
    ("prototypes", "cam"): "the pyramid of levels, and prototypes in place of a convolution",
    ("prototypes", "nearest_prototype"): "a trained network; the prototypes are the same",
    ("pbip_masked_image", "prototypes"): "the paper's matching loss, and the space of its bank",
    ("pbip_stage1", "prototypes"): "the matching loss, nothing else",
    ("pbip_stage1", "pbip_masked_image"): "how matching looks at a part of a patch, and its space",
    ("pbip_stage2", "pbip_stage1"): "learning the pseudo masks once more, pixel by pixel",
    ("full_supervision", "pbip_stage2"): "true masks in place of pseudo masks",
}


def warn_untrained(p: Preset) -> None:
    """Say so where a preset trains too little for its scores to mean anything. Notebook 04."""
    if p.epochs == 1:
        print(
            f"preset {p.name} trains 1 epoch, to try the code: the scores below mean nothing, "
            "and methods may stand in any order"
        )


def narrow(title: str) -> str:
    """A method's name as the head of a narrow column. Notebook 04."""
    return "\n".join(textwrap.wrap(title, 12))


def history_table(run: Run, methods: Sequence[str]) -> pd.DataFrame:
    """Losses and seconds of the first and the last epoch of each method. Notebook 04."""
    named = run.titles
    ends = {named[m]: run.history(m).iloc[[0, -1]].drop_duplicates() for m in methods}
    table = pd.concat(ends, names=["method", ""]).droplevel(1).set_index("epoch", append=True)
    losses = table[[column for column in table if not column.startswith("IoU ")]].round(3)
    units = {"loss": "loss (nats)", "seconds": "time (s)"}
    return losses.rename(columns=lambda c: units.get(c, f"{c} (nats)")).astype(object).fillna("")


def step_table(run: Run, split: str, methods: Sequence[str]) -> Table:
    """Each method's mIoU minus its neighbour's, in how many slides it is higher, and what the
    difference isolates; predicted image labels. Notebook 04."""
    rows, named = [], run.titles
    for (better, than), isolates in STEPS.items():
        if better not in methods or than not in methods:
            continue
        if named[better].endswith("LPD"):
            isolates = "the diversity of the learned prototypes"
        points = 100 * (run.scores(better, split)["miou"] - run.scores(than, split)["miou"])
        higher = [a > b for a, b in zip(_by_slide(run, better, split), _by_slide(run, than, split))]
        step = f"{named[better]}, against: {named[than]}"
        rows.append([step, f"{points:+.1f}", f"{sum(higher)} of {len(higher)}", isolates])
    heads = ["step", "mIoU (points)", "slides where higher", "what it isolates"]
    protocol = metrics.Protocol(ignore=run.preset.ignore)
    caption = f"{run.spec.name} {split}, preset {run.preset.name}, seed {run.seed}; {protocol}."
    return Table(heads, rows, (caption,))


def _by_slide(run: Run, method: str, split: str) -> list[float]:
    """mIoU of each slide under predicted labels, NaN where none of it is judged."""
    found = run.counts(method, split).values()
    counts = [of["predicted"][run.preset.ignore] for of in found]
    return [c.scores()["miou"] if c.matrix.any() else math.nan for c in counts]


def class_shares(masks: Iterable[np.ndarray], C: int) -> np.ndarray:
    """Share of each mask's area that each class covers: (n, C) float in [0, 1]. Notebook 04."""
    return np.array([np.bincount(m.ravel(), minlength=C + 1)[:C] / m.size for m in masks])


def near_border(masks: np.ndarray, d: int) -> np.ndarray:
    """Pixels closer than d px to the border of two regions: (n, H, W) bool. Notebook 05.

    masks: (n, H, W) integers. Unlike metrics.band, the picture's edge is no border here.
    """
    padded = np.pad(masks, ((0, 0), (d, d), (d, d)), mode="edge")
    return metrics.band(padded, d)[:, d:-d, d:-d]


def map_grid(rows: dict[str, Sequence], heads: Sequence[str], label: str, limits=(0, 1)) -> Figure:
    """Maps on one scale, a row for each name: the truth in grey, then a map under each head.
    Notebook 04.

    rows: {name: [truth (H, W) bool, maps (h, w) float in limits]}; label: of the scale.
    """
    fig, axes = grid(len(rows), len(heads), side=1.6)
    fig.set_figwidth(fig.get_figwidth() + 1)  # for the scale
    name_rows(axes[:, 0], list(rows))
    for own, (truth, *maps) in zip(axes, rows.values()):
        own[0].imshow(truth, cmap="gray", vmin=0, vmax=1)
        for ax, values in zip(own[1:], maps):
            drawn = ax.imshow(values, vmin=limits[0], vmax=limits[1], cmap="viridis")
    for ax, head in zip(axes[0], heads):
        ax.set_title(head, fontsize=9)
    fig.colorbar(drawn, ax=axes, shrink=0.7, fraction=0.03, label=label)
    return fig


def subclass_grid(image: np.ndarray, truth: np.ndarray, maps: dict[str, tuple]) -> Figure:
    """The similarity maps of a class's sub-classes and their mean, on one scale, under their bank
    images. Notebook 04.

    image: (H, W, 3) uint8; truth: (H, W) bool; maps: {name: ((h, w) cosines, bank image or None)}.
    """
    cosines = [np.asarray(own) for own, _ in maps.values()]
    top = np.abs(cosines).max()
    fig, axes = grid(2, len(maps) + 2, side=1.6)
    axes[0, 0].imshow(image)
    axes[1, 0].imshow(truth, cmap="gray")
    for (above, below), (name, (own, banked)) in zip(axes.T[1:], maps.items()):
        above.set_title(name)
        if banked is not None:
            above.imshow(banked)
        below.imshow(own, vmin=-top, vmax=top, cmap="cividis")
    axes[0, -1].set_axis_off()
    drawn = axes[1, -1].imshow(np.mean(cosines, axis=0), vmin=-top, vmax=top, cmap="cividis")
    for ax, title in ((axes[0, 0], "patch"), (axes[1, 0], "truth"), (axes[1, -1], "mean")):
        ax.set_title(title)
    fig.colorbar(drawn, ax=axes, shrink=0.7, fraction=0.03, label="cosine with the prototype")
    return fig


def extents(found: dict[str, dict], spec: DatasetSpec) -> Figure:
    """Area, recall and precision of each class, a mark for each method. Notebook 04.

    found: {method: what metrics.extent returns}.
    """
    panels = {"area": "area, predicted / true", "recall": "recall", "precision": "precision"}
    fig, axes = plt.subplots(1, 3, figsize=(10, 3.2), layout="constrained")
    places, inks = np.arange(spec.C), (7, 5, 6, 2, 0)  # of OKABE_ITO: apart in lightness
    for ax, (key, title) in zip(axes, panels.items()):
        for i, (name, values) in enumerate(found.items()):
            shift = (i - (len(found) - 1) / 2) * 0.16
            look = dict(marker=MARKERS[i % len(MARKERS)], color=OKABE_ITO[inks[i % len(inks)]])
            ax.plot(places + shift, values[key], ls="", ms=8, mec="black", label=name, **look)
        ax.axhline(1, color="black", lw=1, ls="--")
        ax.set_xticks(places, spec.classes)
        top = max(1, np.nanmax([values[key] for values in found.values()]))
        ax.set(title=title, ylim=(0, 1.08 * top))
        ax.grid(axis="y", color="0.9")
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    return fig


def hatched_bars(table: pd.DataFrame, xlabel: str, title: str) -> Figure:
    """Two bars a row with their values, told apart by colour and hatch. Notebook 05."""
    fig, ax = plt.subplots(figsize=(9, 1.4 + 0.6 * len(table)), layout="constrained")
    places = np.arange(len(table))
    inks, hatches = (OKABE_ITO[6], OKABE_ITO[5]), ("", "//")
    for shift, name, ink, hatch in zip((-0.19, 0.19), table, inks, hatches):
        bars = ax.barh(places + shift, table[name], 0.38, label=name, color=ink, edgecolor="black")
        for bar in bars:
            bar.set_hatch(hatch)
        ax.bar_label(bars, fmt="%.1f", padding=2, fontsize=8)
    ax.set_yticks(places, [textwrap.fill(name, 26) for name in table.index])
    ax.invert_yaxis()
    ax.margins(x=0.15)
    fig.legend(loc="outside lower center", ncols=2, frameon=False)
    ax.set(xlabel=xlabel, title=title)
    return fig


def boundary(image: np.ndarray, regions: Sequence, bands: Sequence, heads: Sequence) -> Figure:
    """A patch, one class's region and band in truth and mask, and both laid over each other.
    Notebook 06.

    image: (H, W, 3) uint8; regions, bands: of truth and of mask, two (H, W) bool each.
    """
    fig, axes = grid(1, 5, side=1.8)
    axes[0, 0].imshow(image)
    for ax, region, edge in zip(axes[0, 1:3], regions, bands):
        ax.imshow(np.where(edge, 1.0, 0.35 * region), cmap="gray_r", vmin=0, vmax=1)
    tones = ListedColormap(["white", "black", OKABE_ITO[5], OKABE_ITO[6]])
    for ax, (a, b) in zip(axes[0, 3:], (regions, bands)):
        shared = np.select([a & b, a, b], [1, 2, 3], 0)
        ax.imshow(shared, cmap=tones, vmin=0, vmax=3, interpolation="nearest")
    for ax, head in zip(axes[0], heads):
        ax.set_title(head, fontsize=9)
    handles = [Patch(fc=tones(k), ec="black") for k in (1, 2, 3)]
    names = ("both", "truth only", "mask only")
    fig.legend(handles, names, loc="outside lower right", ncols=3, frameon=False)
    return fig


def protocol_panel(
    image: np.ndarray, masks: Sequence[np.ndarray], own: dict, usual: dict, spec: DatasetSpec
) -> Figure:
    """A patch as a protocol judges it, and the IoU of each class beside that of the usual protocol.
    Notebook 06.

    image: (H, W, 3) uint8; masks: truth and prediction, (Hm, Wm) uint8 each, white where nothing is
    judged; own, usual: what metrics.Scorer.result returns.
    """
    fig, axes = plt.subplots(
        1, 4, figsize=(10, 2.9), width_ratios=(1, 1, 1, 1.9), layout="constrained"
    )
    axes[0].imshow(image)
    for ax, mask in zip(axes[1:3], masks):
        ax.imshow(mask_rgb(mask, spec), interpolation="nearest")
        letter_regions(ax, mask, spec)
    for ax, head in zip(axes, ("image", "truth", "mask, as judged")):
        ax.set(title=head, xticks=[], yticks=[])
    chart, places, inks = axes[3], np.arange(spec.C), colours(spec)[:-1]
    chart.bar(places, 100 * np.array(own["iou"]), color=inks, edgecolor="black", width=0.7)
    line = 100 * np.array(usual["iou"])
    chart.hlines(line, places - 0.45, places + 0.45, color="black", lw=3)
    chart.set_xticks(places, spec.classes)
    chart.set(ylim=(0, 100), ylabel="IoU (%)", xlabel="line: predicted, dropped")
    chart.set_title(f"mIoU {100 * own['miou']:.1f} %; usual: {100 * usual['miou']:.1f} %")
    return fig


def label_logits(run: Run, method: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Image-level logits (n, C) of a split, and the true image labels, (n, C) 0 or 1.
    Notebook 06."""
    patches, rows, logits = run.data(split), [], []
    for index, _, found in cams.over_split(run.predictor(method), patches, run.device):
        rows += index.tolist()
        logits.append(found.numpy())
    return np.concatenate(logits), np.asarray(patches.labels)[rows]


def pixel_confidence(
    run: Run, method: str, split: str, rows: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """The probability of each pixel's class, and whether it is right, (m,) each: some patches of a
    split, ignore left out. Notebook 06.

    The probability is the softmax over the classes that the predicted label leaves open; those of
    stage 2 are probabilities already, and are shared out anew.
    """
    sure, right = [], []
    for index, scores, labels in run.predictions(method, split, rows):
        truth = run.data(split).masks[index.numpy()]
        scores = enlarged(scores, truth.shape[1:], run.preset)
        logits = scores.log() if method in STAGE2 else scores
        chance, best = gate(logits, labels).softmax(1).max(1)
        judged = truth < run.spec.C
        sure.append(chance.numpy()[judged])
        right.append((best.numpy() == truth)[judged])
    return np.concatenate(sure), np.concatenate(right)


def reliability(curves: dict[str, dict], notes: Sequence[str]) -> Figure:
    """Reliability curves, one panel each: how often what is said with a probability is so, over how
    often it is said. Notebook 06.

    curves: {title: what metrics.reliability returns}; notes: a line under each title.
    """
    fig, axes = plt.subplots(
        2,
        len(curves),
        figsize=(2.9 * len(curves), 3.6),
        height_ratios=(3, 1),
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    for (above, below), (title, curve), note in zip(axes.T, curves.items(), notes):
        above.plot((0, 1), (0, 1), color="black", lw=1, ls="--", label="honest")
        look = dict(color=OKABE_ITO[2], marker="o", mec="black", label="measured")
        said = curve["counts"] > 0
        above.plot(curve["confidence"][said], curve["frequency"][said], **look)
        above.set(ylim=(-0.03, 1.03), title=f"{title}\n{note}")
        above.title.set_fontsize(9)
        share = 100 * curve["counts"] / max(curve["counts"].sum(), 1)
        width = np.diff(curve["edges"])
        below.bar(curve["edges"][:-1], share, width, align="edge", color="0.7", edgecolor="black")
        below.set(xlim=(-0.03, 1.03), xlabel="probability")
    axes[0, 0].legend(fontsize=8, frameon=False)
    axes[0, 0].set_ylabel("how often it is so")
    axes[1, 0].set_ylabel("said (%)")
    return fig


def along_and_across(rows: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Features on a page: along the line from the mean of one group to that of another, and across
    it in the direction in which they spread most: (n, 2). Notebook 02.

    rows: (n, D) float, what is drawn; first, second: (m, D) of each group, which may be others than
    those that are drawn: a line through their own means would flatter.
    """
    line = second.mean(0) - first.mean(0)  # (D,)
    line = line / max(np.linalg.norm(line), 1e-12)
    centred = rows - (first.mean(0) + second.mean(0)) / 2
    rest = centred - np.outer(centred @ line, line)
    widest = np.linalg.svd(rest - rest.mean(0), full_matrices=False)[2][0]  # (D,)
    return np.stack([centred @ line, rest @ widest], axis=1)


def held_back(owner: np.ndarray, slide: np.ndarray) -> np.ndarray:
    """Which patches to leave out of a space, to look at them through it: (n,) bool. Those of every
    other slide; where slides do not share their classes, every other patch of each
    class. Notebook 02.

    owner: (n,) class of each; slide: (n,) int, all alike where none is known.
    """
    odd = slide % 2 == 1
    if all(len(set(odd[owner == c])) == 2 for c in set(owner)):
        return odd
    print("not every class is on either half of the slides: every other patch is held back instead")
    return pd.Series(owner).groupby(owner).cumcount().to_numpy() % 2 == 1


def auc_chart(areas: dict[str, list[float]]) -> Figure:
    """Areas under ROC curves, one row a name, from worse than chance to perfect, with a line at
    one half. Notebook 03.

    areas: {name: one area for each repetition}; the point is their mean, the bar their standard
    deviation. Names that begin alike, up to a comma, share colour and marker.
    """
    kinds = list(dict.fromkeys(name.split(",")[0] for name in areas))
    fig, ax = plt.subplots(figsize=(7.4, 0.42 * len(areas) + 0.9), layout="constrained")
    ax.axvline(0.5, color="black", lw=1)
    for row, (name, own) in enumerate(areas.items()):
        kind = kinds.index(name.split(",")[0])
        mean, spread = float(np.mean(own)), float(np.std(own))
        ax.errorbar(
            mean,
            row,
            xerr=spread,
            fmt=MARKERS[kind],
            color=OKABE_ITO[kind],
            mec="black",
            ms=9,
            capsize=4,
        )
        ground = dict(fc="white", ec="none", pad=0.5)  # the line goes behind the number
        ax.text(mean, row - 0.3, f"{mean:.2f}", ha="center", va="bottom", fontsize=8, bbox=ground)
    ax.set_yticks(range(len(areas)), areas)
    ax.set(xlim=(0.3, 1), ylim=(len(areas) - 0.4, -0.95))
    ax.set_xlabel("AUC of the pull (half: says nothing about where the class is)")
    return fig


def map_and_parts(axes, values, region, parts) -> None:
    """A signed map with the outline of a region, and the pictures of both parts under it; black
    ones are named. Notebook 03.

    axes: three; values: (H, W) float; region: (H, W) bool; parts: two pictures (H, W, 3) in [0, 1].
    """
    top = float(abs(values).max()) or 1.0
    axes[0].imshow(values, cmap="PuOr_r", vmin=-top, vmax=top)
    outline(axes[0], region)
    for ax, part, what in zip(axes[1:], parts, ("foreground", "background")):
        ax.imshow(part)
        ax.set_xlabel(what if part.max() > 0 else f"no {what}", fontsize=8)
