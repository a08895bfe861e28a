"""The ledger: each number of the paper beside ours, from the result files that `python -m protolib
ablate` writes.

A result file holds the cells of one data set and preset; a cell is one method with its settings and
seed, run once, and tables share cells. The tables of paper.toml and of a result file meet in the
names of tables and rows.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from protolib import files
from protolib.metrics import SCORES
from protolib.study import paper

RERUN = {
    "table1": ("PBIP", "PBIP, stage 1"),
    "table2": ("CLS + FGS + BGS",),
    "table3": ("MedCLIP, SegFormer",),
    "table4": ("K = 3",),
    "table5": ("SIM + AT",),
}  # the rows of the full model, which others ran again
FILE_KEYS = {
    "label": str,
    "official": bool,
    "dataset": str,
    "patches": dict,
    "preset": str,
    "classes": list,
    "tables": dict,
    "not_run": dict,
    "cells": list,
}
CELL_KEYS = {
    "cell": str,
    "method": str,
    "settings": dict,
    "seed": int,
    "run_id": str,
    "scores": dict,
    "seconds": (int, float),
}


class Band(NamedTuple):
    """Mean, lowest and highest over the seeds, in this order, after each epoch. Notebook 04."""

    seeds: tuple[int, ...]
    loss: np.ndarray  # (3, epochs)
    iou: np.ndarray  # (3, epochs, C), of the validation split, fractions


def read(folder: Path) -> list[dict]:
    """All result files of a folder, checked: official data first, then by name; an empty list where
    there are none.

    Returns the contents of each: null in scores and curves is NaN, matrices are arrays (C+1, C+1),
    a curve's loss is (epochs,) and its iou (epochs, C); what a cell may lack ("slides", "curve") is
    empty. Raises ValueError naming file, cell and key of what is missing, of another kind, out of
    range or there twice. Notebook 07.
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        contents = files.read_json(path)
        try:
            found.append(_checked(contents))
        except ValueError as error:
            raise ValueError(
                f"{path.name}: {error}; delete the file and make it again: python -m protolib ablate"
            ) from error
    return sorted(
        found, key=lambda result: (not result["official"], name(result), result["preset"])
    )


def name(result: Mapping) -> str:
    """A data set as each of its numbers is shown with it: "bcss-wsss", or "mosaic, not an official
    benchmark"."""
    return (
        result["label"] if result["official"] else f"{result['label']}, not an official benchmark"
    )


def beside(table: paper.Table, result: Mapping) -> str:
    """The data set of the paper whose numbers stand beside a result file's: its own, or else
    bcss-wsss."""
    known = {value.dataset for value in paper.VALUES if value.table == table.name}
    return result["dataset"] if result["dataset"] in known else "bcss-wsss"


def same(table: paper.Table, result: Mapping) -> bool:
    """Whether a difference to the paper's numbers means anything: the same published data in
    full."""
    return result["official"] and result["dataset"] == beside(table, result)


def point(row: str) -> tuple[str, float] | None:
    """Sweep and position of a row: ("beta/alpha", 0.5) of "beta/alpha = 0.5", ("random", 5) of
    "random, 5 images"."""
    match = re.fullmatch(r"(.+?)(?: = |, )([\d.]+)(?: images)?", row)
    return (match[1], float(match[2])) if match else None


def row_names(table: paper.Table, result: Mapping) -> list[str]:
    """The rows of a table for a result file: the paper's on that data set, then ours; a sweep in
    order of position."""
    own, dataset = result["tables"].get(table.name, {}), beside(table, result)
    printed = {
        value.row for value in paper.VALUES if (value.table, value.dataset) == (table.name, dataset)
    }
    names = list(
        dict.fromkeys([*(row for row in table.rows if row in printed or row in own), *own])
    )
    if all(map(point, names)):
        sweeps = list(dict.fromkeys(point(row)[0] for row in names))
        names.sort(key=lambda row: (sweeps.index(point(row)[0]), point(row)[1]))
    return names


def cells_of(result: Mapping, table: str, row: str) -> list[dict]:
    """The cells of a row that have been run, in order of seeds; an empty list where there are
    none."""
    wanted = result["tables"].get(table, {}).get(row)
    return sorted(
        (cell for cell in result["cells"] if cell["cell"] == wanted), key=lambda cell: cell["seed"]
    )


def why_not(result: Mapping, table: str, row: str) -> str:
    """Why a row has no cell, as its result file says; "not run" where it says nothing."""
    reason = result["not_run"].get(result["tables"].get(table, {}).get(row))
    return f"not run: {reason}" if reason else "not run"


def scale(table: paper.Table) -> int:
    """What a fraction is multiplied by to stand beside the paper's numbers: 100 for percent, 1 for
    F1."""
    return 100 if table.unit == "%" else 1


def rows(results: Sequence[Mapping]) -> list[dict[str, Any]]:
    """The ledger as a flat list, ready for JSON: one entry per table, row, metric, result file and
    protocol.

    results: as `read` returns them. Scores are in the paper's unit, percent or F1 as a fraction;
    None stands where there is nothing. ours_mean and ours_std (of a sample) are over the seeds,
    None if a seed gave NaN; seeds is their number. paper, paper_std, paper_dataset: as printed.
    difference: ours - paper, where ours is on the same published data in full. reruns: {by whom:
    mIoU}. hours: of all seeds together. A row of the paper that no file has run stands there once.
    Notebook 07.
    """
    found = []
    for table in paper.TABLES.values():
        run = set()
        for result in results:
            for row in row_names(table, result):
                if cells := cells_of(result, table.name, row):
                    run.add((row, beside(table, result)))
                    found += [
                        _entry(table, row, metric, beside(table, result), result, cells, protocol)
                        for protocol in cells[0]["scores"]
                        for metric in table.metrics
                    ]
        for value in paper.VALUES:
            if value.table == table.name and (value.row, value.dataset) not in run:
                reasons = {why_not(result, table.name, value.row) for result in results} - {
                    "not run"
                }
                found.append(
                    _entry(
                        table,
                        value.row,
                        value.metric,
                        value.dataset,
                        note="; ".join(sorted(reasons)) or "not run",
                    )
                )
    return found


def band(results: Sequence[Mapping], cell: str, label: str, preset: str) -> Band | None:
    """Reference curves of a cell, by its name, on a data set: is a training like this normal?
    Notebook 04.

    results: as `read` returns them; label, preset: those of the result file. Lowest and highest are
    of the seeds, no interval of confidence. A class absent from the split is left out in that seed,
    NaN if in all. None where no cell of that name has a curve.
    """
    cells = [
        c
        for result in results
        if (result["label"], result["preset"]) == (label, preset)
        for c in result["cells"]
        if c["cell"] == cell and c["curve"]
    ]
    if not cells:
        return None
    curves = [np.ma.masked_invalid([c["curve"][key] for c in cells]) for key in ("loss", "iou")]
    loss, iou = (
        np.ma.stack([of.mean(axis=0), of.min(axis=0), of.max(axis=0)]).filled(math.nan)
        for of in curves
    )
    return Band(tuple(c["seed"] for c in cells), loss, iou)


def _entry(
    table: paper.Table,
    row: str,
    metric: str,
    dataset: str,
    result: Mapping | None = None,
    cells: Sequence[Mapping] = (),
    protocol: str = "",
    note: str = "",
) -> dict[str, Any]:
    """One row of the ledger; without a result file, the paper's side of it."""
    printed = paper.value(table.name, row, dataset, metric)
    values = scale(table) * np.array(
        [cell["scores"][protocol].get(metric, math.nan) for cell in cells]
    )
    mean = _number(values.mean()) if cells else None
    lost = ", ".join(str(cell["seed"]) for cell, value in zip(cells, values) if math.isnan(value))
    notes = (
        note,
        printed and printed.note and f"paper: {printed.note}",
        lost and f"no score with seed {lost}",
    )
    stage = "stage 1" if row.endswith("stage 1") else table.stage
    return {
        "table": table.name,
        "row": row,
        "dataset": name(result) if result else dataset,
        "metric": metric,
        "ours_mean": mean,
        "ours_std": _number(values.std(ddof=1)) if len(cells) > 1 else None,
        "seeds": len(cells),
        "paper": printed and printed.mean,
        "protocol": cells[0]["scores"][protocol]["protocol"] if cells else None,
        "preset": result["preset"] if result else None,
        "run_ids": [cell["run_id"] for cell in cells],
        "paper_std": printed and printed.std,
        "paper_dataset": printed and dataset,
        "difference": None
        if mean is None or not printed or not same(table, result)
        else mean - printed.mean,
        "reruns": {
            rerun.by: rerun.miou
            for rerun in paper.RERUNS
            if row in RERUN.get(table.name, ())
            and (metric, stage, dataset) == ("miou", rerun.stage, rerun.dataset)
        },
        "hours": sum(cell["seconds"] for cell in cells) / 3600 if cells else None,
        "note": "; ".join(filter(None, notes)),
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _checked(result: Any) -> dict:
    """A result file's contents, refused where rows, cells and seeds do not fit each other."""
    _kinds("", result, FILE_KEYS)
    for table, names in result["tables"].items():
        if table not in paper.TABLES:
            raise ValueError(
                f"tables: {table!r} is unknown; expected some of {', '.join(paper.TABLES)}"
            )
        _kinds(f"tables: {table}: ", names, dict.fromkeys(names, str))
    cells = [_cell(cell, result["classes"]) for cell in result["cells"]]
    places, forms = set(), {}
    for cell in cells:
        if (place := (cell["cell"], cell["seed"])) in places:
            raise ValueError(f"cells: {place[0]!r} stands there twice with seed {place[1]}")
        places.add(place)
        protocols = [(key, block["protocol"]) for key, block in cell["scores"].items()]
        form = protocols, list(cell["slides"]), len(cell["curve"].get("loss", ()))
        if forms.setdefault(cell["cell"], form) != form:
            raise ValueError(
                f"{cell['run_id']}: protocols, slides or epochs are not those of the cell's other seeds"
            )
    if len(found := {tuple(cell["slides"]) for cell in cells if cell["slides"]}) > 1:
        raise ValueError(
            f"cells: slides differ: {' | '.join(sorted(', '.join(slides) for slides in found))}"
        )
    return result | {"cells": cells}


def _cell(cell: Any, classes: Sequence[str]) -> dict:
    """One cell, with arrays for lists and slides in order of their names."""
    _kinds("cells: ", cell, {"run_id": str})
    where, C = f"{cell['run_id']}: ", len(classes)
    _kinds(where, cell, CELL_KEYS)
    if set(cell["scores"]) not in ({"predicted", "oracle"}, {"f1"}):
        raise ValueError(
            f"{where}scores has {', '.join(cell['scores'])}; expected predicted and oracle, or f1"
        )
    scores = {
        key: _scores(f"{where}scores: {key}: ", key, cell["scores"][key], classes)
        for key in ("predicted", "oracle", "f1")
        if key in cell["scores"]
    }
    slides, curve = cell.get("slides") or {}, cell.get("curve") or {}
    for slide, matrices in slides.items():
        _kinds(f"{where}slides: {slide}: ", matrices, dict.fromkeys(scores, list))
    matrices = {
        slide: {
            key: _array(
                f"{where}slides: {slide}: {key}", slides[slide][key], (C + 1, C + 1)
            ).astype(int)
            for key in scores
        }
        for slide in sorted(slides)
    }
    if curve:
        _kinds(f"{where}curve: ", curve, {"loss": list, "iou": list})
        epochs = len(curve["loss"])
        curve = {
            "loss": _array(f"{where}curve: loss", curve["loss"], (epochs,), low=-math.inf),
            "iou": _array(f"{where}curve: iou", curve["iou"], (epochs, C), high=1),
        }
    return cell | {"scores": scores, "slides": matrices, "curve": curve}


def _scores(where: str, key: str, block: Any, classes: Sequence[str]) -> dict:
    """The scores under one protocol, "iou" as an array (C,); the F1 of the classes is named f1_TUM
    and so on."""
    metrics, each = (("f1",), "per_class") if key == "f1" else (tuple(SCORES), "iou")
    _kinds(
        where,
        block,
        {"protocol": str, each: list} | dict.fromkeys(metrics, (int, float, type(None))),
    )
    wanted = {
        "predicted": "(predicted|no) image labels, ignore pixels (dropped|counted)",
        "oracle": "oracle image labels, ignore pixels (dropped|counted)",
        "f1": ".+",
    }[key]
    if not re.fullmatch(wanted, block["protocol"]):
        raise ValueError(f"{where}protocol is {block['protocol']!r}; expected {wanted}")
    found = {
        metric: float(_array(f"{where}{metric}", block[metric], (), high=1)) for metric in metrics
    }
    classwise = _array(f"{where}{each}", block[each], (len(classes),), high=1)
    named = (
        {f"f1_{c}": float(value) for c, value in zip(classes, classwise)}
        if key == "f1"
        else {"iou": classwise}
    )
    return {"protocol": block["protocol"]} | found | named


def _kinds(where: str, values: Any, kinds: Mapping[str, Any]) -> None:
    """Refuse what is no mapping with these keys of these kinds; other keys may stand beside
    them."""
    if not isinstance(values, dict):
        raise ValueError(f"{where}found {values!r:.60}; expected {{{', '.join(kinds)}}}")
    for key, kind in kinds.items():
        if key not in values:
            raise ValueError(f"{where}{key} is missing; expected {', '.join(kinds)}")
        if not isinstance(values[key], kind) or isinstance(values[key], bool) and kind is not bool:
            raise ValueError(f"{where}{key} is {values[key]!r:.60}; expected {_words(kind)}")


def _words(kind: Any) -> str:
    words = {
        str: "a text",
        bool: "true or false",
        dict: "an object",
        list: "a list",
        int: "a whole number",
    }
    return words.get(kind, "a number")


def _array(
    where: str, values: Any, shape: tuple[int, ...], low: float = 0, high: float = math.inf
) -> np.ndarray:
    """Numbers of that shape in [low, high], NaN for null."""
    try:
        array = np.array(values, dtype=float)
    except (TypeError, ValueError):  # text, or rows of unequal length
        array = np.array(math.inf)
    if array.shape != shape or ((array < low) | (array > high) | np.isinf(array)).any():
        size = f"{' x '.join(map(str, shape))} numbers" if shape else "a number"
        raise ValueError(f"{where} is {values!r:.60}; expected {size} from {low:g} to {high:g}")
    return array
