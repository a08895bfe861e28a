"""The paper's numbers, and those of others about it, as paper.toml holds them, each with its
source. Notebook 07.

Metrics as printed: miou, fwiou, biou, dice in %; f1 (mean of the classes) and f1_CLASS as fractions
in [0, 1].
"""

import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from protolib.metrics import SCORES

DATASETS = ("bcss-wsss", "luad-histoseg", "gcss", "bcss")
CELL = re.compile(r"-|(N)(?:±(N))?(?:\[(N)\.\.(N)\])?(?:\(([^()]+)\))?".replace("N", r"\d*\.\d+"))


class Value(NamedTuple):
    """One printed number and what is printed with it."""

    table: str
    row: str
    dataset: str
    metric: str
    mean: float
    std: float | None  # of the seeds; None = not printed
    low: float | None  # lowest and highest of ten draws, figure 4
    high: float | None
    note: str  # such as "typo?" or "full supervision"; "" = none


class Table(NamedTuple):
    """What one table or figure of the paper is about."""

    name: str
    title: str
    unit: str  # "%" or "F1"
    stage: str  # what is scored: "stage 1", "stage 2" or "zero-shot"
    source: str
    read_off: bool  # off a plot, not printed
    metrics: tuple[str, ...]
    rows: tuple[str, ...]  # in order of first appearance, those without a value too


class Claim(NamedTuple):
    """The paper's numbers say that row `better` of a table beats row `than`."""

    table: str
    text: str
    better: str
    than: str
    metric: str
    dataset: str


class Rerun(NamedTuple):
    """PBIP as others got it, test mIoU in %."""

    by: str
    stage: str
    dataset: str
    miou: float
    iou: tuple[float, ...]  # of each class; empty = not given
    note: str


class Peer(NamedTuple):
    """Another method as its authors report it, test mIoU in %; protocols differ."""

    method: str
    year: int
    backbone: str  # and foundation model
    stages: int
    miou: dict[str, float]  # by data set
    rerun: dict[str, float]  # the same as others re-ran it
    note: str  # "oracle": with true image labels


def _fault(where: str, found: object, expected: str) -> ValueError:
    return ValueError(f"paper.toml, {where}: found {found!r}; expected {expected}")


def _keys(where: str, entries: dict, needed: Iterable[str], more: Iterable[str] = ()) -> None:
    missing, unknown = set(needed) - set(entries), set(entries) - set(needed) - set(more)
    if missing or unknown:
        raise ValueError(
            f"paper.toml, {where}: keys missing: {sorted(missing)}, unknown: {sorted(unknown)}; "
            f"keys: {', '.join((*needed, *more))}"
        )


def _entries(where: str, row: list, *kinds: type) -> list:
    if not isinstance(row, list) or [type(entry) for entry in row] != list(kinds):
        raise _fault(where, row, f"[{', '.join(kind.__name__ for kind in kinds)}]")
    return row


def _cells(where: str, text: str, columns: int) -> list[tuple]:
    """Mean, std, low, high and note of each cell in a line; the mean of "-" is None."""
    matches = [CELL.fullmatch(cell) for cell in text.split()] if isinstance(text, str) else []
    if len(matches) != columns or None in matches:
        raise _fault(
            where,
            text,
            f"{columns} cells, each - or mean, then perhaps ±std, [low..high], (note), no spaces",
        )
    return [
        (*(float(number) if number else None for number in m.groups()[:4]), m[5] or "")
        for m in matches
    ]


def _table(name: str, entries: dict) -> tuple[Table, list[Value]]:
    """One table and its values; the columns of a block are the metrics of each of its data sets in
    turn."""
    blocks = {key: entry for key, entry in entries.items() if set(key.split()) <= set(DATASETS)}
    head = {"read_off": False} | {key: entry for key, entry in entries.items() if key not in blocks}
    _keys(
        f"[{name}], beside data sets",
        head,
        ("title", "unit", "stage", "source", "read_off", "metrics"),
        ["notes"],
    )
    rows = tuple(dict.fromkeys(row for block in blocks.values() for row in block))
    notes, values = head.pop("notes", {}), []
    _keys(f"[{name}] notes", notes, (), rows)
    for datasets, block in blocks.items():
        columns = [(dataset, metric) for dataset in datasets.split() for metric in head["metrics"]]
        for row, text in block.items():
            cells = _cells(f"[{name}.{datasets}], row {row!r}", text, len(columns))
            values += [
                Value(
                    name,
                    row,
                    *column,
                    *cell[:4],
                    "; ".join(filter(None, (cell[4], notes.get(row)))),
                )
                for column, cell in zip(columns, cells, strict=True)
                if cell[0] is not None
            ]
    return Table(name, rows=rows, **head | {"metrics": tuple(head["metrics"])}), values


def _claims(claims: dict[str, list]) -> list[Claim]:
    made = []
    for table, lines in claims.items():
        for line in lines:
            better, than, metric, datasets, text = _entries(
                f"[claims] {table}", line, str, str, str, str, str
            )
            for place in [
                (table, row, dataset, metric)
                for dataset in datasets.split()
                for row in (better, than)
            ]:
                if place not in _BY_PLACE:
                    raise _fault(
                        f"[claims] {table}",
                        line,
                        f"two rows with a value; none at {' / '.join(place)}",
                    )
            made += [
                Claim(table, text, better, than, metric, dataset) for dataset in datasets.split()
            ]
    return made


def _rerun(line: list) -> Rerun:
    *known, iou, note = _entries("[others] reruns", line, str, str, str, float, list, str)
    return Rerun(*known, tuple(iou), note)


def _peer(line: list) -> Peer:
    method, year, stages, text, backbone, note = _entries(
        "[others] peers", line, str, int, int, str, str, str
    )
    cells = dict(
        zip(DATASETS, _cells(f"[others] peers, row {method!r}", text, 2))
    )  # of the first two data sets
    return Peer(
        method,
        year,
        backbone,
        stages,
        {d: cell[0] for d, cell in cells.items() if cell[0] is not None},
        {d: float(cell[4]) for d, cell in cells.items() if cell[4]},
        note,
    )


_TOML = tomllib.loads(Path(__file__).with_name("paper.toml").read_text("utf-8"))
_CLAIMS, _OTHERS = _TOML.pop("claims"), _TOML.pop("others")
_keys("[others]", _OTHERS, ("reruns", "peers", "window"))
_READ = {name: _table(name, entries) for name, entries in _TOML.items()}
TABLES: dict[str, Table] = {name: table for name, (table, _) in _READ.items()}
VALUES: tuple[Value, ...] = tuple(value for _, values in _READ.values() for value in values)
_BY_PLACE = {value[:4]: value for value in VALUES}
CLAIMS: tuple[Claim, ...] = tuple(_claims(_CLAIMS))
RERUNS: tuple[Rerun, ...] = tuple(map(_rerun, _OTHERS["reruns"]))
PEERS: tuple[Peer, ...] = tuple(map(_peer, _OTHERS["peers"]))
# by data set: mIoU in % between which stage 1 of a faithful reproduction lies
WINDOW: dict[str, tuple[float, float]] = {
    dataset: tuple(_entries(f"[others.window] {dataset}", ends, float, float))
    for dataset, ends in _OTHERS["window"].items()
}


def value(table: str, row: str, dataset: str, metric: str) -> Value | None:
    """What the paper has in that place; None where it has nothing. Notebook 07."""
    return _BY_PLACE.get((table, row, dataset, metric))


def contradictions() -> list[tuple[str, str]]:
    """Where the paper disagrees with itself or is silent: (title, sentence), the numbers computed.
    Notebook 07."""
    return [
        ("One model, several scores", _full_model()),
        ("Dice follows from mIoU", _dice()),
        ("PBIP does not lead everywhere", _leaders()),
        ("Three sub-classes do not gain everywhere", _subclasses()),
        ("Either matching loss alone hurts", _losses()),
        ("The chosen encoder is not the best", _encoders()),
        (
            "Not stated",
            "The dilation of bIoU, the settings of stage 2, how white a patch of the bank may be, the "
            "augmentation, and whether true image labels close absent classes.",
        ),
    ]


def _mean(table: str, row: str, dataset: str = "bcss-wsss", metric: str = "miou") -> float:
    return _BY_PLACE[table, row, dataset, metric].mean


def _full_model() -> str:
    rows = {
        "table2": "CLS + FGS + BGS",
        "table3": "MedCLIP, SegFormer",
        "table4": "K = 3",
        "table5": "SIM + AT",
        "figure3": "beta/alpha = 0.5",
        "figure4": "clustering, 100 images",
    }
    means: dict[float, list[str]] = {}
    for table, row in rows.items():
        means.setdefault(_mean(table, row), []).append(table)
    shown, final = (
        ", ".join(f"{mean:.2f} ({', '.join(at)})" for mean, at in means.items()),
        _mean("table1", "PBIP"),
    )
    return (
        f"On bcss-wsss, stage 1 of the full model has an mIoU of {shown}; stage 2 has {final:.2f} (table1): what "
        f"it adds lies between {final - max(means):+.2f} and {final - min(means):+.2f}."
    )


def _dice() -> str:
    def derived(miou: float) -> float:
        return 200 * miou / (100 + miou)

    mious = [v for v in VALUES if (v.table, v.metric) == ("table1", "miou")]
    pairs = [(v, _mean("table1", v.row, v.dataset, "dice")) for v in mious]
    # both are rounded: what was printed stands for anything within .005 of it
    exact = [
        derived(v.mean - 0.005) - 0.005 <= dice <= derived(v.mean + 0.005) + 0.005
        for v, dice in pairs
    ]
    far = {
        f"{v.row} on {v.dataset}": dice - derived(v.mean)
        for v, dice in pairs
        if abs(dice - derived(v.mean)) > 0.1
    }
    shown = ", ".join(f"{row} ({off:+.2f})" for row, off in far.items())
    return (
        f"In table1, Dice is 2 mIoU / (1 + mIoU) to rounding in {sum(exact)} of {len(pairs)} rows, to a tenth of a "
        f"point in {len(pairs) - len(far)}: derived, not a mean of the classes' Dice. The others: {shown}."
    )


def _leaders() -> str:
    ahead = []
    for dataset in DATASETS:
        for metric, shown in SCORES.items():
            # methods that learn from image labels alone, as PBIP does
            rivals = [
                v
                for v in VALUES
                if (v.table, v.dataset, v.metric) == ("table1", dataset, metric)
                and "supervis" not in v.note
            ]
            best, ours = max(rivals, key=lambda v: v.mean), _mean("table1", "PBIP", dataset, metric)
            if best.row != "PBIP":
                ahead.append(
                    f"{best.row} in {shown} on {dataset} ({best.mean:.2f} against {ours:.2f})"
                )
    return f"In table1, among methods that learn from image labels alone, it is behind {', '.join(ahead)}."


def _subclasses() -> str:
    gains = {
        dataset: _mean("table4", "K = 3", dataset) - _mean("table4", "K = 1", dataset)
        for dataset in DATASETS
    }
    stds = [v.std for v in VALUES if v.table == "table4" and v.row in ("K = 1", "K = 3")]
    shown = ", ".join(f"{gain:+.2f} ({dataset})" for dataset, gain in gains.items())
    return f"In table4, K = 3 gains {shown} mIoU over K = 1; the std of these rows is {min(stds)} to {max(stds)}."


def _losses() -> str:
    rows = ("CLS + FGS", "CLS + BGS", "CLS + FGS + BGS")
    gains = {row: _mean("table2", row) - _mean("table2", "CLS") for row in rows}
    shown = ", ".join(f"{gain:+.2f} ({row})" for row, gain in gains.items())
    return f"In table2, mIoU against that of classification alone: {shown}."


def _encoders() -> str:
    pairs = {
        shown: [
            _mean("table3", f"{name}, SegFormer", metric=metric) for name in ("PLIP", "MedCLIP")
        ]
        for metric, shown in SCORES.items()
    }
    ahead = [
        f"{shown} {plip:.2f} against {medclip:.2f}"
        for shown, (plip, medclip) in pairs.items()
        if plip > medclip
    ]
    f1 = [f"{_mean('table6', f'image, {name}', metric='f1'):.3f}" for name in ("PLIP", "MedCLIP")]
    return (
        f"PLIP, trained on pathology, beats MedCLIP, trained on chest X-rays, in {len(ahead)} of {len(pairs)} "
        f"metrics of table3 with SegFormer ({', '.join(ahead)}), and in table6 with image prompts "
        f"(F1 {' against '.join(f1)})."
    )
