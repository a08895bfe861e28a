"""Curves: the paper's and ours over K (Table 4), loss weights (Figure 3) and images (Figure 4); a
training's over its epochs."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from protolib.data.specs import DatasetSpec
from protolib.study import ledger, paper, report

# Okabe and Ito, "Color universal design", 2008: the order keeps neighbours apart in lightness too
OKABE_ITO = ("#D55E00", "#009E73", "#0072B2", "#F0E442", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# no marker stands for both
LOOKS = {
    "paper": tuple(zip((OKABE_ITO[i] for i in (2, 1, 4, 7)), "so^D")),
    "ours": tuple(zip((OKABE_ITO[i] for i in (0, 5, 6)), "vPX")),
}
CAPTION = (
    "Paper: dashed, hollow. Ours: solid, filled, mean and standard deviation over seeds, predicted "
    "image labels."
)
# for each figure, the sweeps that share a panel and what is swept there
PANELS: dict[str, dict[tuple[str, ...], str]] = {
    "table4": {("K",): "K, sub-classes per class"},
    "figure3": {
        ("beta/alpha",): r"$\beta / \alpha$ (values evenly spaced)",
        ("theta2/theta1",): r"$\theta_2 / \theta_1$ (values evenly spaced)",
    },
    "figure4": {("random", "clustering"): "images per sub-class (values evenly spaced)"},
}

WHEN = (
    "Each point one kind of data, mean and standard deviation over seeds. Across: how much better "
    "the nearest prototype, nothing trained, is on val than the network without matching, oracle "
    "labels. Up: what matching adds on test, predicted labels. White: the signs agree, matching "
    "helps where the teacher leads."
)


class Curve(NamedTuple):
    """One line: mIoU in % at each x, and how far the bars reach down and up from it, NaN for
    none."""

    whose: str  # "paper" or "ours"
    label: str
    sweep: str
    x: list[float]
    mean: list[float]
    bars: list[tuple[float, float]]


def figure(results: Sequence[Mapping], name: str) -> Figure:
    """The paper's curves and ours, mIoU in %, of "table4", "figure3" or "figure4".

    results: as ledger.read returns them. Ours is mean ± std over seeds under predicted image
    labels. Runs on the paper's own data stand in the paper's panel; those on other data have panels
    of their own that say so. Files with fewer than three values, such as those whose runs are of
    other tables, are left out. Raises ValueError for another name. Notebook 07.
    """
    if name not in PANELS:
        raise ValueError(f"figure {name!r} is unknown; expected one of {', '.join(PANELS)}")
    table, columns = paper.TABLES[name], PANELS[name]
    panels = _panels(table, results)
    rows, across = (len(panels), len(columns)) if len(columns) > 1 else (1, len(panels))
    fig = Figure(figsize=(5 * across, 3.8 * rows + 0.4), layout="constrained")
    wide = int(10 * fig.get_figwidth())  # characters
    fig.suptitle(textwrap.fill(report.title(table), wide), fontsize=10)
    places = iter(fig.subplots(rows, across, squeeze=False).flat)
    drawn = [curve for _, curves in panels for curve in curves]
    for title, curves in panels:
        for sweeps, label in columns.items():
            ax = next(places)
            positions = sorted({x for c in drawn if c.sweep in sweeps for x in c.x})
            shown = [c for c in curves if c.sweep in sweeps]
            _draw(ax, shown, positions, name_sweeps=len(sweeps) > 1)
            ax.set_title(title, fontsize=9)
            ax.set(xlabel=label, ylabel="mIoU (%)")
    return fig


def _panels(table: paper.Table, results: Sequence[Mapping]) -> list[tuple[str, list[Curve]]]:
    """Titles and curves: the paper's panel with our runs on its data, then other data."""
    beside, others = [], []
    for result in results:
        curves = _ours(table, result)
        if not _enough(curves, PANELS[table.name]):
            continue
        if ledger.same(table, result):
            beside += curves
        else:
            said = "other data than the paper's: heights do not compare"
            others.append((f"ours on {ledger.name(result)}\n{said}", curves))
    title = "published data: the paper" + " and ours" * bool(beside)
    return [(title, [*_paper(table), *beside]), *others]


def _enough(curves: Sequence[Curve], columns: Mapping[tuple[str, ...], str]) -> bool:
    """Whether some panel has three values to draw a curve through."""
    return any(
        len({x for curve in curves if curve.sweep in sweeps for x in curve.x}) > 2
        for sweeps in columns
    )


class Case(NamedTuple):
    """One kind of data of table `when`, differences in points of mIoU, one entry a seed."""

    data: str
    lead: list[float]  # of the teacher over the student, on val
    gain: list[float]  # of matching over the student, on test


def cases(result: Mapping) -> list[Case]:
    """The kinds of data of table `when` whose three methods a result file has, over the seeds that
    all of them have; val is the mean over folds, test is pooled over them."""
    found, known = [], set()
    rows = result["tables"].get("when", {})
    for data in dict.fromkeys(row.rpartition(", ")[0] for row in rows):
        three = [f"{data}, {method}" for method in ("teacher", "student", "matching")]
        runs = tuple(map(rows.get, three))
        if runs in known:  # what the preset is anyway, under another name
            continue
        known.add(runs)
        teacher, student = (_val(result, rows.get(row)) for row in three[:2])
        alone, matched = (_test(result, row) for row in three[1:])
        seeds = sorted(set(teacher) & set(student) & set(alone) & set(matched))
        if seeds:
            lead = [100 * (teacher[seed] - student[seed]) for seed in seeds]
            gain = [100 * (matched[seed] - alone[seed]) for seed in seeds]
            found.append(Case(data, lead, gain))
    return found


def _val(result: Mapping, run: str | None) -> dict[int, float]:
    """mIoU on val of each seed of a run, the mean over its folds."""
    values: dict[int, list[float]] = {}
    for entry in result["runs"]:
        if entry["run"] == run and entry.get("val") is not None:
            values.setdefault(entry["seed"], []).append(entry["val"])
    return {seed: float(np.mean(of)) for seed, of in values.items()}


def _test(result: Mapping, row: str) -> dict[int, float]:
    """mIoU on test of each seed of a row, predicted labels."""
    found = ledger.seeds_of(result, "when", row)
    return {seed.seed: seed.scores["predicted"]["miou"] for seed in found}


def when(results: Sequence[Mapping]) -> Figure:
    """The map of when matching helps: teacher minus student on val against the gain of matching on
    test, a panel for each result file that has table `when`.

    results: as ledger.read returns them.
    """
    known = [(result, cases(result)) for result in results]
    known = [(result, found) for result, found in known if found]
    fig = Figure(figsize=(7, 4.4 * max(len(known), 1)), layout="constrained")
    axes = fig.subplots(max(len(known), 1), squeeze=False)[:, 0]
    if not known:
        axes[0].text(0.5, 0.5, "not run", transform=axes[0].transAxes, ha="center", color="0.4")
        axes[0].set(xticks=[], yticks=[])
    for ax, (result, found) in zip(axes, known):
        _map(ax, found)
        right = [case for case in found if np.mean(case.lead) * np.mean(case.gain) > 0]
        clear = sum(_clear(case.lead) and _clear(case.gain) for case in right)
        seeds = min(len(c.lead) for c in found)
        said = f"{ledger.name(result)}, {result['preset']}, {seeds} seed{'s' * (seeds > 1)}"
        held = f"the signs agree for {len(right)} of {len(found)}, beyond the bars for {clear}"
        ax.set_title(f"{said}\n{held}", fontsize=9)
        ax.set(
            xlabel="teacher minus student on val (points of mIoU)",
            ylabel="gain of matching on test (points of mIoU)",
        )
    return fig


def _clear(differences: Sequence[float]) -> bool:
    """Whether a mean lies further from 0 than its standard deviation over seeds."""
    return len(differences) > 1 and abs(np.mean(differences)) > np.std(differences, ddof=1)


def _map(ax: Axes, found: Sequence[Case]) -> None:
    """Cases as points, one look for each dial, and where the rule does not hold in grey."""
    dials = list(dict.fromkeys(case.data.split()[0] for case in found))
    for case in found:
        i = dials.index(case.data.split()[0])
        (x, y), spread = (np.mean(case.lead), np.mean(case.gain)), len(case.lead) > 1
        ax.errorbar(
            x,
            y,
            xerr=np.std(case.lead, ddof=1) if spread else None,
            yerr=np.std(case.gain, ddof=1) if spread else None,
            color=OKABE_ITO[i % len(OKABE_ITO)],
            marker="os^DvPX*"[i % 8],
            mec="black",
            elinewidth=0.7,
        )
    ax.axhline(0, color="0.3", lw=0.8)
    ax.axvline(0, color="0.3", lw=0.8)
    ax.margins(0.15)
    (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
    left, right, low, high = min(left, -1), max(right, 1), min(low, -1), max(high, 1)
    ax.fill_between([left, 0], 0, high, color="0.92", zorder=0, lw=0)
    ax.fill_between([0, right], low, 0, color="0.92", zorder=0, lw=0)
    ax.set(xlim=(left, right), ylim=(low, high))
    names: dict[tuple[float, float], list[str]] = {}  # cases nearly at one place share a name
    close = 0.02 * np.array([right - left, high - low])
    for case in found:
        at = float(np.mean(case.lead)), float(np.mean(case.gain))
        there = [other for other in names if (np.abs(np.subtract(other, at)) < close).all()]
        names.setdefault(there[0] if there else at, []).append(case.data)
    for place, shared in names.items():
        said = "\n".join(shared[::-1])  # the first one lowest, at its point
        ax.annotate(said, place, (5, 5), textcoords="offset points", fontsize=7)


def history(curve: Mapping, spec: DatasetSpec, band: ledger.Band | None = None) -> Figure:
    """Loss and IoU of each class on val after each epoch, on the band of reference runs where there
    is one. Notebook 04.

    curve: {"loss": (E,) nats, "iou": (E, C) fractions}; band: mean, lowest and highest of the
    reference runs, see ledger.band.
    """
    fig = Figure(figsize=(2.3 * (1 + spec.C), 2.9), layout="constrained")
    axes = fig.subplots(1, 1 + spec.C)
    inks = ["black", *(OKABE_ITO[c % len(OKABE_ITO)] for c in range(spec.C))]
    # (E, 1), (E, C)
    own = [
        np.asarray(curve["loss"], float)[:, None],
        100 * np.asarray(curve["iou"], float),
    ]
    reference = [band.loss[..., None], 100 * band.iou] if band else None  # (3, E, 1), (3, E, C)
    for i, (ax, ink, title) in enumerate(zip(axes, inks, ["loss", *spec.titles])):
        part, c = (0, 0) if i == 0 else (1, i - 1)
        if reference:
            mean, low, high = reference[part][..., c]
            epochs = np.arange(1, len(mean) + 1)
            ax.fill_between(
                epochs, low, high, color=ink, alpha=0.25, lw=0, label="reference, lowest to highest"
            )
            ax.plot(epochs, mean, color=ink, ls="--", lw=1, label="reference, mean")
        epochs = np.arange(1, len(own[part]) + 1)
        ax.plot(
            epochs,
            own[part][:, c],
            color=ink,
            marker="os^DvP"[i % 6],
            mec="black",
            label="this run",
        )
        ax.set(
            title=title,
            xlabel="epoch",
            ylabel="loss (nats)" if i == 0 else "IoU on val (%)" if i == 1 else "",
        )
        ax.set_ylim(*((0, None) if i == 0 else (0, 100)))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    # what is said of the loss holds for all panels, which have no room for it
    said = axes[0].get_legend_handles_labels()
    fig.legend(*said, loc="outside lower center", ncols=len(said[0]), fontsize=8, frameon=False)
    return fig


def png(fig: Figure) -> bytes:
    """A figure as the bytes of a PNG."""
    out = BytesIO()
    fig.savefig(out, format="png", dpi=110)
    return out.getvalue()


def _paper(table: paper.Table) -> list[Curve]:
    """One curve per data set and sweep, bars from the printed std or range."""
    found: dict[tuple[str, str], list[paper.Value]] = {}
    for value in paper.VALUES:
        if value.table == table.name:
            found.setdefault((value.dataset, ledger.point(value.row)[0]), []).append(value)
    curves = []
    for (dataset, sweep), values in found.items():
        ranges, stds = any(v.low is not None for v in values), any(v.std for v in values)
        bars = [
            (v.mean - v.low, v.high - v.mean) if v.low is not None else (v.std or math.nan,) * 2
            for v in values
        ]
        label = f"paper, {dataset}" + (
            " (bars: range of draws)" if ranges else " (bars: std)" if stds else ""
        )
        curves.append(
            Curve(
                "paper",
                label,
                sweep,
                [ledger.point(v.row)[1] for v in values],
                [v.mean for v in values],
                bars,
            )
        )
    return curves


def _ours(table: paper.Table, result: Mapping) -> list[Curve]:
    """One curve per sweep that a result file has; its label counts the seeds of the point that has
    fewest."""
    found: dict[str, list[dict]] = {}
    for entry in ledger.rows([result]):
        if (
            entry["table"] == table.name
            and entry["ours_mean"] is not None
            and entry["image_labels"] != "oracle"
        ):
            found.setdefault(ledger.point(entry["row"])[0], []).append(entry)
    curves = []
    for sweep, entries in found.items():
        seeds = min(e["seeds"] for e in entries)
        bars = "s (bars: std)" if seeds > 1 else ""
        label = f"ours, {result['label']}, {result['preset']}, {seeds} seed{bars}"
        curves.append(
            Curve(
                "ours",
                label,
                sweep,
                [ledger.point(e["row"])[1] for e in entries],
                [e["ours_mean"] for e in entries],
                [(math.nan if e["ours_std"] is None else e["ours_std"],) * 2 for e in entries],
            )
        )
    return curves


def _draw(ax: Axes, curves: Sequence[Curve], positions: Sequence[float], name_sweeps: bool) -> None:
    """Curves over evenly spaced positions, the same in every panel: no other axis suits 0 beside
    0.01 to 100."""
    seen = {"paper": 0, "ours": 0}
    for curve in curves:
        colour, marker = LOOKS[curve.whose][seen[curve.whose] % len(LOOKS[curve.whose])]
        seen[curve.whose] += 1
        fill, line = (colour, "-") if curve.whose == "ours" else ("white", "--")
        ax.errorbar(
            [positions.index(x) for x in curve.x],
            curve.mean,
            yerr=list(zip(*curve.bars)),
            color=colour,
            marker=marker,
            ms=6,
            mfc=fill,
            ls=line,
            lw=1.3,
            capsize=3,
            elinewidth=1,
            label=curve.label + f": {curve.sweep}" * name_sweeps,
        )
    ax.set(xlim=(-0.5, len(positions) - 0.5))
    ax.set_xticks(range(len(positions)), [f"{x:g}" for x in positions])
    ax.margins(y=0.12)
    ax.grid(axis="y", color="0.9")
    if curves:
        ax.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.19))
    else:
        ax.text(0.5, 0.5, "not run", transform=ax.transAxes, ha="center", color="0.4")
        ax.set_yticks([])
