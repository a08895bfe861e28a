"""The paper's numbers, and those of others about it, as paper.toml holds them, each with its
source. Notebook 07.

Metrics as printed: miou, fwiou, biou, dice in %; f1 (mean of the classes) and f1_CLASS as fractions
in [0, 1].
"""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from protolib import files
from protolib.metrics import SCORES

DATASETS = ("bcss-wsss", "luad-histoseg", "gcss", "bcss")
ENTRY = re.compile(r"-|(N)(?:±(N))?(?:\[(N)\.\.(N)\])?(?:\(([^()]+)\))?".replace("N", r"\d*\.\d+"))
HEAD = {"title": str, "unit": str, "stage": str, "source": str, "metrics": list}


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
    """What one table or figure of the paper, or a table of ours, is about."""

    name: str
    title: str
    unit: str  # "%" or "F1"
    stage: str  # what is scored: "stage 1", "stage 2" or "zero-shot"
    source: str  # "ours" where the paper has no such table
    read_off: bool  # off a plot, not printed
    metrics: tuple[str, ...]
    rows: tuple[str, ...]  # the paper's, in order of first appearance, also without a value
    ours: tuple[str, ...]  # rows of ours, which the paper has no value for


class Claim(NamedTuple):
    """Row `better` of a table beats row `than`: by the paper's numbers, or, as ours, a question."""

    table: str
    text: str
    better: str
    than: str
    metric: str
    dataset: str  # of the paper's numbers; "" for a claim of ours
    ours: bool = False


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


def _named(where: str, line: object, **kinds: type) -> dict[str, Any]:
    """The entries of a line by their names."""
    if not isinstance(line, list) or len(line) != len(kinds):
        raise _fault(where, line, f"[{', '.join(kinds)}]")
    named = dict(zip(kinds, line))
    files.expect(f"paper.toml, {where}", named, kinds)
    return named


def _numbers(where: str, text: object, columns: int) -> list[tuple]:
    """Mean, std, low, high and note of each entry of a line; the mean of "-" is None."""
    words = text.split() if isinstance(text, str) else []
    matches = [ENTRY.fullmatch(word) for word in words]
    if len(matches) != columns or None in matches:
        wanted = "each - or mean, then perhaps ±std, [low..high], (note), no spaces"
        raise _fault(where, text, f"{columns} entries, {wanted}")
    return [
        (*(float(number) if number else None for number in m.groups()[:4]), m[5] or "")
        for m in matches
    ]


def _table(name: str, entries: dict) -> tuple[Table, list[Value]]:
    """One table and its values; the columns of a block are the metrics of each of its data sets in
    turn."""
    blocks = {key: entry for key, entry in entries.items() if set(key.split()) <= set(DATASETS)}
    head = {key: entry for key, entry in entries.items() if key not in blocks}
    more = {"read_off": bool, "ours": list, "notes": dict}
    files.expect(f"paper.toml, [{name}]", head, HEAD, more)
    rows = tuple(dict.fromkeys(row for block in blocks.values() for row in block))
    notes = head.get("notes", {})
    files.expect(f"paper.toml, [{name}] notes", notes, {}, dict.fromkeys(rows, str))
    values = []
    for datasets, block in blocks.items():
        columns = [(dataset, metric) for dataset in datasets.split() for metric in head["metrics"]]
        for row, text in block.items():
            numbers = _numbers(f"[{name}.{datasets}], row {row!r}", text, len(columns))
            for column, (mean, std, low, high, note) in zip(columns, numbers):
                if mean is not None:
                    said = "; ".join(filter(None, (note, notes.get(row))))
                    values.append(Value(name, row, *column, mean, std, low, high, said))
    table = Table(
        name,
        *(head[key] for key in ("title", "unit", "stage", "source")),
        read_off=head.get("read_off", False),
        metrics=tuple(head["metrics"]),
        rows=rows,
        ours=tuple(head.get("ours", ())),
    )
    return table, values


def _claims(table: str, line: object) -> Iterator[Claim]:
    """The claims of a line, one for each of its data sets; "ours" in their place is one of ours."""
    where = f"[claims] {table}"
    names = ("better", "than", "metric", "datasets", "text")
    claim = _named(where, line, **dict.fromkeys(names, str))
    pair, datasets = (claim["better"], claim["than"]), claim.pop("datasets").split()
    if datasets == ["ours"]:
        known = TABLES[table].rows + TABLES[table].ours
        if unknown := [row for row in pair if row not in known]:
            raise _fault(where, unknown[0], f"one of {', '.join(known)}")
        yield Claim(table=table, dataset="", ours=True, **claim)
        return
    for dataset in datasets:
        for row in pair:
            if (place := (table, row, dataset, claim["metric"])) not in _BY_PLACE:
                raise _fault(where, line, f"two rows with a value; none at {' / '.join(place)}")
        yield Claim(table=table, dataset=dataset, **claim)


def _rerun(line: object) -> Rerun:
    kinds = {"by": str, "stage": str, "dataset": str, "miou": float, "iou": list, "note": str}
    named = _named("[others] reruns", line, **kinds)
    return Rerun(**named | {"iou": tuple(named["iou"])})


def _peer(line: object) -> Peer:
    kinds = {"method": str, "year": int, "stages": int, "miou": str, "backbone": str, "note": str}
    named = _named("[others] peers", line, **kinds)
    where = f"[others] peers, row {named['method']!r}"
    # of the first two data sets; in the place of a note, what others got
    numbers = dict(zip(DATASETS, _numbers(where, named["miou"], 2)))
    miou = {dataset: mean for dataset, (mean, *_) in numbers.items() if mean is not None}
    rerun = {dataset: float(again) for dataset, (*_, again) in numbers.items() if again}
    return Peer(**named | {"miou": miou, "rerun": rerun})


def _ends(dataset: str, line: object) -> tuple[float, float]:
    named = _named(f"[others.window] {dataset}", line, low=float, high=float)
    return named["low"], named["high"]


_TOML = tomllib.loads(Path(__file__).with_name("paper.toml").read_text("utf-8"))
_CLAIMS, _OTHERS = _TOML.pop("claims"), _TOML.pop("others")
files.expect("paper.toml, [others]", _OTHERS, {"reruns": list, "peers": list, "window": dict}, {})
files.expect("paper.toml, [claims]", _CLAIMS, {}, dict.fromkeys(_TOML, list))
_READ = {name: _table(name, entries) for name, entries in _TOML.items()}
TABLES: dict[str, Table] = {name: table for name, (table, _) in _READ.items()}
VALUES: tuple[Value, ...] = tuple(value for _, values in _READ.values() for value in values)
_BY_PLACE = {value[:4]: value for value in VALUES}
CLAIMS: tuple[Claim, ...] = tuple(
    claim for table, lines in _CLAIMS.items() for line in lines for claim in _claims(table, line)
)
RERUNS: tuple[Rerun, ...] = tuple(map(_rerun, _OTHERS["reruns"]))
PEERS: tuple[Peer, ...] = tuple(map(_peer, _OTHERS["peers"]))
# by data set: mIoU in % between which stage 1 of a faithful reproduction lies
WINDOW: dict[str, tuple[float, float]] = {
    dataset: _ends(dataset, ends) for dataset, ends in _OTHERS["window"].items()
}


def value(table: str, row: str, dataset: str, metric: str) -> Value | None:
    """What the paper has in that place; None where it has nothing."""
    return _BY_PLACE.get((table, row, dataset, metric))


def contradictions() -> list[tuple[str, str]]:
    """Where the paper disagrees with itself or is silent: (title, sentence), the numbers
    computed."""
    return [
        ("One model, several scores", _full_model()),
        ("Dice follows from mIoU", _dice()),
        ("PBIP does not lead everywhere", _leaders()),
        ("Three sub-classes do not gain everywhere", _subclasses()),
        ("Either matching loss alone hurts", _losses()),
        ("The chosen encoder is not the best", _encoders()),
        (
            "Not stated",
            "The dilation of bIoU, the settings of stage 2, how white a patch of the bank may be, "
            "the augmentation, and whether true image labels close absent classes.",
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
    shown = ", ".join(f"{mean:.2f} ({', '.join(at)})" for mean, at in means.items())
    final = _mean("table1", "PBIP")
    return (
        f"On bcss-wsss, stage 1 of the full model has an mIoU of {shown}; "
        f"stage 2 has {final:.2f} (table1): "
        f"what it adds lies between {final - max(means):+.2f} and {final - min(means):+.2f}."
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
        f"In table1, Dice is 2 mIoU / (1 + mIoU) to rounding in {sum(exact)} of {len(pairs)} rows, "
        f"to a tenth of a point in {len(pairs) - len(far)}: derived, not a mean of the classes' "
        f"Dice. The others: {shown}."
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
    shown = ", ".join(ahead)
    return f"In table1, among methods that learn from image labels alone, it is behind {shown}."


def _subclasses() -> str:
    gains = {
        dataset: _mean("table4", "K = 3", dataset) - _mean("table4", "K = 1", dataset)
        for dataset in DATASETS
    }
    stds = [v.std for v in VALUES if v.table == "table4" and v.row in ("K = 1", "K = 3")]
    shown = ", ".join(f"{gain:+.2f} ({dataset})" for dataset, gain in gains.items())
    return (
        f"In table4, K = 3 gains {shown} mIoU over K = 1; "
        f"the std of these rows is {min(stds)} to {max(stds)}."
    )


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
        f"PLIP, trained on pathology, beats MedCLIP, trained on chest X-rays, in {len(ahead)} of "
        f"{len(pairs)} metrics of table3 with SegFormer ({', '.join(ahead)}), and in table6 with "
        f"image prompts (F1 {' against '.join(f1)})."
    )
