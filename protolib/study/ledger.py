"""The ledger: each number of the paper beside ours, from the result files that
`python -m protolib ablate` writes.

A result file holds the runs of one data set and preset. A run is a method with its settings; it is
made once for each seed and fold of the data, and tables share it. The tables of paper.toml and of a
result file meet in the names of tables and rows.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from protolib import files
from protolib.metrics import SCORES, Counts, Protocol
from protolib.study import paper

# the rows of the full model, which others ran again
RERUN = {
    "table1": ("PBIP", "PBIP, stage 1"),
    "table2": ("CLS + FGS + BGS",),
    "table3": ("MedCLIP, SegFormer",),
    "table4": ("K = 3",),
    "table5": ("SIM + AT",),
}
FILE = {
    "label": str,
    "official": bool,
    "dataset": str,
    "preset": str,
    "size": int,
    "epochs": int,
    "classes": list,
    "folds": list,
    "patches": dict,
    "tables": dict,
    "not_run": dict,
    "runs": list,
}
RUN = {
    "run": str,
    "run_id": str,
    "method": str,
    "settings": dict,
    "base": str,
    "code": str,
    "seed": int,
    "fold": str,
    "scores": dict,
    "seconds": float,
}
ONE = ("method", "settings", "base", "code")  # what all seeds and folds of a run have in common
SCORED = dict.fromkeys(SCORES, (float, None)) | {"iou": list, "image_labels": str, "ignore": str}
MEND = "mend the file, or delete it and make it again: python -m protolib ablate"


class Seed(NamedTuple):
    """A run with one seed, all folds together."""

    seed: int
    scores: dict[str, dict[str, Any]]  # {"predicted" | "oracle" | "f1": fractions}
    slides: dict[str, dict[str, np.ndarray]]  # {slide: {"predicted": (C+1, C+1)}}, or empty
    averaged: tuple[str, ...]  # metrics that are means over folds, for want of counts to pool
    seconds: float
    run_ids: tuple[str, ...]


class Band(NamedTuple):
    """Mean, lowest and highest over the runs, in this order, after each epoch."""

    seeds: tuple[int, ...]
    loss: np.ndarray  # (3, epochs)
    iou: np.ndarray  # (3, epochs, C), of the validation split, fractions


def read(folder: Path) -> list[dict]:
    """All result files of a folder, checked: official data first, then by name; an empty list where
    there are none.

    Returns the contents of each: null in scores and curves is NaN, a slide's matrix (C+1, C+1) and
    boundary (2, C) are arrays, as are a curve's loss (epochs,) and iou (epochs, C); what a run may
    lack ("slides", "curve", a slide's "boundary") is empty. Raises ValueError naming file, run and
    key of what is missing, of another kind, out of range or there twice, and where the runs of one
    name differ in more than seed and fold: a mean must not mix them. Notebook 07.
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        contents = files.read_json(path)
        try:
            found.append(_checked(path.name, contents))
        except ValueError as error:
            raise ValueError(f"{error}; {MEND}") from error
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
    bcss-wsss; "" where the paper has no such table."""
    known = {value.dataset for value in paper.VALUES if value.table == table.name}
    if not known:
        return ""
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
    known = [row for row in table.rows if row in printed or row in own]
    names = list(dict.fromkeys([*known, *own]))
    if all(map(point, names)):
        sweeps = list(dict.fromkeys(point(row)[0] for row in names))
        names.sort(key=lambda row: (sweeps.index(point(row)[0]), point(row)[1]))
    return names


def seeds_of(result: Mapping, table: str, row: str) -> list[Seed]:
    """What was run of a row, in order of seeds: those of which all folds are there.

    With several folds the slides of all are pooled, each scored once by a network that has not seen
    it. bIoU is the mean over folds where a file keeps no counts of its bands, and so is F1.
    """
    by_seed = _by_seed(result, table, row)
    return [
        _pooled(seed, [of[fold] for fold in result["folds"]])
        for seed, of in sorted(by_seed.items())
        if len(of) == len(result["folds"])
    ]


def why_not(result: Mapping, table: str, row: str) -> str:
    """Why a row has no score, or lacks a seed, as its result file says; "" where it says
    nothing."""
    by_seed, folds = _by_seed(result, table, row), result["folds"]
    lacking = [
        f"seed {seed} lacks fold {', '.join(fold for fold in folds if fold not in of)}"
        for seed, of in sorted(by_seed.items())
        if len(of) < len(folds)
    ]
    reason = result["not_run"].get(result["tables"].get(table, {}).get(row), "")
    return "; ".join(lacking) or ("" if by_seed else reason)


def scale(table: paper.Table) -> int:
    """What a fraction is multiplied by to stand beside the paper's numbers: 100 for percent, 1 for
    F1."""
    return 100 if table.unit == "%" else 1


def rows(results: Sequence[Mapping]) -> list[dict[str, Any]]:
    """The ledger as a flat list, ready for JSON: one entry per table, row, metric, result file and
    protocol.

    results: as `read` returns them. Scores are in the paper's unit, percent or F1 as a fraction;
    None stands where there is nothing. ours_mean and ours_std (of a sample) are over the seeds,
    None if a seed gave NaN; seeds is their number, folds that of the folds pooled in each.
    image_labels and ignore are the protocol's (metrics.Protocol), None for F1. paper, paper_std,
    paper_dataset: as printed. difference: ours - paper, where ours is on the same published data
    in full. reruns: {by whom: mIoU}. hours: of training, all seeds together. made_by: the
    commit, for a file that older code made. A row of the paper that no file has run stands there
    once. Notebook 07.
    """
    found = []
    for table in paper.TABLES.values():
        run = set()
        for result in results:
            dataset = beside(table, result)
            for row in row_names(table, result):
                if seeds := seeds_of(result, table.name, row):
                    run.add((row, dataset))
                    found += _entries(table, row, result, seeds)
        for value in paper.VALUES:
            if value.table == table.name and (value.row, value.dataset) not in run:
                reasons = {why_not(result, table.name, value.row) for result in results} - {""}
                entry = _entry(table, value.row, value.metric, value.dataset)
                blank = ": ".join(filter(None, ("not run", "; ".join(sorted(reasons)))))
                found.append(entry | {"note": "; ".join(filter(None, (blank, entry["note"])))})
    return found


def band(results: Sequence[Mapping], run: str, label: str, preset: str) -> Band | None:
    """Reference curves of a run, by its name, on a data set: is a training like this
    normal? Notebook 04.

    results: as `read` returns them; label, preset: those of the result file. Lowest and highest are
    of the seeds and folds, no interval of confidence. A class absent from the split is left out in
    that run, NaN if in all. Files that another commit made are left out: a run of the same name may
    have been another method then. None where no run of that name has a curve.
    """
    runs = [
        entry
        for result in results
        if (result["label"], result["preset"]) == (label, preset) and "made_by" not in result
        for entry in result["runs"]
        if entry["run"] == run and entry["curve"]
    ]
    if not runs:
        return None

    def over(key: str) -> np.ndarray:
        curves = np.ma.masked_invalid([entry["curve"][key] for entry in runs])
        ends = [curves.mean(axis=0), curves.min(axis=0), curves.max(axis=0)]
        return np.ma.stack(ends).filled(math.nan)

    seeds = tuple(dict.fromkeys(entry["seed"] for entry in runs))
    return Band(seeds, over("loss"), over("iou"))


def _by_seed(result: Mapping, table: str, row: str) -> dict[int, dict[str, Mapping]]:
    """The entries of a row's run: {seed: {fold: entry}}."""
    wanted = result["tables"].get(table, {}).get(row)
    found: dict[int, dict[str, Mapping]] = {}
    for entry in result["runs"]:
        if entry["run"] == wanted:
            found.setdefault(entry["seed"], {})[entry["fold"]] = entry
    return found


def _pooled(seed: int, runs: Sequence[Mapping]) -> Seed:
    """One run of each fold as if it were one run."""
    averaged: list[str] = []
    scores = runs[0]["scores"]
    if len(runs) > 1:
        scores = {how: _over_folds(how, runs, averaged) for how in scores}
    slides = {
        slide: {how: counts["matrix"] for how, counts in of.items()}
        for run in runs
        for slide, of in run["slides"].items()
    }
    return Seed(
        seed,
        scores,
        slides,
        tuple(dict.fromkeys(averaged)),
        seconds=sum(run["seconds"] for run in runs),
        run_ids=tuple(run["run_id"] for run in runs),
    )


def _over_folds(how: str, runs: Sequence[Mapping], averaged: list[str]) -> dict[str, Any]:
    """The scores of several folds; `averaged` gets the metrics that could not be pooled."""
    of_folds = [run["scores"][how] for run in runs]
    if how == "f1":
        averaged.append("f1")
        return {metric: float(np.mean([of[metric] for of in of_folds])) for metric in of_folds[0]}
    protocol = {key: of_folds[0][key] for key in ("image_labels", "ignore")}
    counts = [slide[how] for run in runs for slide in run["slides"].values()]
    matrix = sum(of["matrix"] for of in counts)
    if all("boundary" in of for of in counts):
        boundary = sum(of["boundary"] for of in counts)
    else:
        boundary = np.zeros((2, len(matrix) - 1), int)
    found = Counts(matrix, boundary, protocol["ignore"]).scores()
    if not boundary.any():
        averaged.append("biou")
        found["biou"] = float(np.mean([of["biou"] for of in of_folds]))
    return found | {"iou": np.array(found["iou"])} | protocol


def _entry(table: paper.Table, row: str, metric: str, dataset: str) -> dict[str, Any]:
    """One row of the ledger, the paper's side of it."""
    printed = paper.value(table.name, row, dataset, metric)
    stage = "stage 1" if row.endswith("stage 1") else table.stage
    reruns = {
        rerun.by: rerun.miou
        for rerun in paper.RERUNS
        if row in RERUN.get(table.name, ())
        and (metric, stage, dataset) == ("miou", rerun.stage, rerun.dataset)
    }
    return {
        "table": table.name,
        "row": row,
        "dataset": dataset,
        "metric": metric,
        "ours_mean": None,
        "ours_std": None,
        "seeds": 0,
        "folds": 0,
        "paper": printed and printed.mean,
        "image_labels": None,
        "ignore": None,
        "preset": None,
        "run_ids": [],
        "paper_std": printed and printed.std,
        "paper_dataset": printed and dataset,
        "difference": None,
        "reruns": reruns,
        "hours": None,
        "made_by": None,
        "note": f"paper: {printed.note}" if printed and printed.note else "",
    }


def _entries(
    table: paper.Table, row: str, result: Mapping, seeds: Sequence[Seed]
) -> list[dict[str, Any]]:
    """The rows of the ledger for a row that was run: one for each protocol and metric."""
    dataset = beside(table, result)
    found = []
    for protocol, block in seeds[0].scores.items():
        for metric in table.metrics:
            entry = _entry(table, row, metric, dataset)
            of_seeds = [seed.scores[protocol].get(metric, math.nan) for seed in seeds]
            values = scale(table) * np.array(of_seeds)
            mean = _number(values.mean())
            lost = [str(seed.seed) for seed, value in zip(seeds, values) if math.isnan(value)]
            notes = (
                entry["note"],
                why_not(result, table.name, row),
                f"no score with seed {', '.join(lost)}" if lost else "",
                "mean over folds" if metric.split("_")[0] in seeds[0].averaged else "",
            )
            entry |= {
                "dataset": name(result),
                "ours_mean": mean,
                "ours_std": _number(values.std(ddof=1)) if len(seeds) > 1 else None,
                "seeds": len(seeds),
                "folds": len(result["folds"]),
                "image_labels": block.get("image_labels"),
                "ignore": block.get("ignore"),
                "preset": result["preset"],
                "run_ids": [run_id for seed in seeds for run_id in seed.run_ids],
                "hours": sum(seed.seconds for seed in seeds) / 3600,
                "made_by": result.get("made_by"),
                "note": "; ".join(filter(None, notes)),
            }
            if mean is not None and entry["paper"] is not None and same(table, result):
                entry["difference"] = mean - entry["paper"]
            found.append(entry)
    return found


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _checked(file: str, result: Any) -> dict:
    """A result file's contents, refused where tables, runs, folds and seeds do not fit."""
    files.expect(file, result, FILE)
    folds = result["folds"]
    for key in ("folds", "classes"):
        if not all(isinstance(each, str) for each in result[key]):
            raise ValueError(f"{file}: {key} is {result[key]!r:.60}; expected a list of names")
    if not folds or len(set(folds)) < len(folds):
        raise ValueError(f'{file}: folds is {folds}; expected names, each once, or [""] for none')
    files.expect(f"{file}, patches", result["patches"], dict.fromkeys(folds, dict), {})
    files.expect(f"{file}, tables", result["tables"], {}, dict.fromkeys(paper.TABLES, dict))
    for table, names in result["tables"].items():
        files.expect(f"{file}, {table}", names, dict.fromkeys(names, str))
    runs = [_run(file, run, result["classes"], folds) for run in result["runs"]]
    _check_places(file, runs)
    _check_ways(file, runs)
    _check_slides(file, runs)
    return result | {"runs": runs}


def _run(file: str, run: Any, classes: Sequence[str], folds: Sequence[str]) -> dict:
    """One run, with arrays for lists and slides in order of their names."""
    files.expect(f"{file}, runs", run, {"run_id": str})
    where = f"{file}, {run['run_id']}"
    files.expect(where, run, RUN)
    if run["fold"] not in folds:
        raise ValueError(f"{where}: fold is {run['fold']!r}; expected one of {folds}")
    if set(run["scores"]) not in ({"predicted", "oracle"}, {"f1"}):
        found = ", ".join(run["scores"])
        raise ValueError(f"{where}: scores has {found}; expected predicted and oracle, or f1")
    scores = {
        how: _scores(f"{where}, scores, {how}", how, run["scores"][how], classes)
        for how in ("predicted", "oracle", "f1")
        if how in run["scores"]
    }
    slides = run.get("slides") or {}
    if len(folds) > 1 and not slides and "f1" not in scores:
        raise ValueError(f"{where}: slides is missing; several folds are pooled by slide")
    counts = {
        slide: _counts(f"{where}, slides, {slide}", slides[slide], scores, len(classes))
        for slide in sorted(slides)
    }
    curve = _curve(f"{where}, curve", run.get("curve"), len(classes))
    return run | {"scores": scores, "slides": counts, "curve": curve}


def _scores(where: str, how: str, block: Any, classes: Sequence[str]) -> dict:
    """The scores under one protocol, "iou" as an array (C,); the F1 of the classes is named f1_TUM
    and so on."""
    if how == "f1":
        files.expect(where, block, {"f1": (float, None), "per_class": list})
        each = _array(f"{where}: per_class", block["per_class"], (len(classes),), high=1)
        mean = float(_array(f"{where}: f1", block["f1"], (), high=1))
        return {"f1": mean} | {f"f1_{c}": float(value) for c, value in zip(classes, each)}
    files.expect(where, block, SCORED)
    protocol = {key: block[key] for key in ("image_labels", "ignore")}
    try:
        Protocol(**protocol)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if (how == "oracle") != (block["image_labels"] == "oracle"):
        raise ValueError(
            f"{where}: image_labels is {block['image_labels']!r}; "
            "expected oracle under oracle, and there alone"
        )
    scores = {
        metric: float(_array(f"{where}: {metric}", block[metric], (), high=1)) for metric in SCORES
    }
    iou = _array(f"{where}: iou", block["iou"], (len(classes),), high=1)
    return protocol | scores | {"iou": iou}


def _counts(where: str, of: Any, scores: Mapping, C: int) -> dict[str, dict[str, np.ndarray]]:
    """The counts of one slide under each protocol: "matrix", and "boundary" where it is kept."""
    files.expect(where, of, dict.fromkeys(scores, dict))
    shapes = {"matrix": (C + 1, C + 1), "boundary": (2, C)}
    found = {}
    for how in scores:
        files.expect(f"{where}, {how}", of[how], {"matrix": list}, {"boundary": list})
        found[how] = {
            key: _pixels(f"{where}, {how}: {key}", of[how][key], shape)
            for key, shape in shapes.items()
            if key in of[how]
        }
    return found


def _curve(where: str, curve: Any, C: int) -> dict[str, np.ndarray]:
    if not curve:
        return {}
    files.expect(where, curve, {"loss": list, "iou": list})
    epochs = len(curve["loss"])
    return {
        "loss": _array(f"{where}: loss", curve["loss"], (epochs,), low=-math.inf),
        "iou": _array(f"{where}: iou", curve["iou"], (epochs, C), high=1),
    }


def _check_places(file: str, runs: Sequence[Mapping]) -> None:
    """Refuse a run that is there twice, or of another form than with other seeds and folds."""
    places, forms = set(), {}
    for run in runs:
        place = run["run"], run["seed"], run["fold"]
        if place in places:
            of_fold = f", fold {place[2]}" * bool(place[2])
            raise ValueError(f"{file}: {place[0]!r} is there twice with seed {place[1]}{of_fold}")
        places.add(place)
        protocols = {
            how: (block.get("image_labels"), block.get("ignore"))
            for how, block in run["scores"].items()
        }
        form = protocols, len(run["curve"].get("loss", ()))
        if forms.setdefault(run["run"], form) != form:
            raise ValueError(
                f"{file}, {run['run_id']}: protocols or epochs are not those of the run's others"
            )


def _check_ways(file: str, runs: Sequence[Mapping]) -> None:
    """Refuse runs of one name that differ in more than seed and fold."""
    ways: dict[str, dict[str, list[int]]] = {}
    for run in runs:
        way = json.dumps([run[key] for key in ONE], sort_keys=True)
        ways.setdefault(run["run"], {}).setdefault(way, []).append(run["seed"])
    for name_of_run, seeds_by_way in ways.items():
        if len(seeds_by_way) == 1:
            continue
        values = [json.loads(way) for way in seeds_by_way]
        differ = [key for i, key in enumerate(ONE) if any(v[i] != values[0][i] for v in values)]
        seeds = [", ".join(map(str, dict.fromkeys(found))) for found in seeds_by_way.values()]
        raise ValueError(
            f"{file}: {name_of_run!r} was made in {len(values)} ways, by seed {' | '.join(seeds)}, "
            f"which differ in {', '.join(differ)}: a mean must not mix them. Delete the lines of "
            "the older ones"
        )


def _check_slides(file: str, runs: Sequence[Mapping]) -> None:
    """Refuse other slides in runs of one seed and fold, and a slide that two folds score."""
    known: dict[tuple, set[str]] = {}
    for run in runs:
        if slides := set(run["slides"]):
            place = run["seed"], run["fold"]
            if known.setdefault(place, slides) != slides:
                apart = ", ".join(sorted(known[place] ^ slides))
                raise ValueError(
                    f"{file}, {run['run_id']}: not all runs of seed {place[0]} have slides {apart}"
                )
    for (seed, fold), slides in known.items():
        for (other, another), also in known.items():
            if seed == other and fold < another and slides & also:
                raise ValueError(
                    f"{file}: {', '.join(sorted(slides & also))} is scored in fold {fold} and in "
                    f"fold {another} of seed {seed}; pooled, it would count twice"
                )


def _pixels(where: str, values: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers of pixels of that shape: whole, and none missing."""
    array = _array(where, values, shape, high=2.0**53)
    if (array != np.rint(array)).any():  # NaN too
        raise ValueError(f"{where} is {values!r:.60}; expected whole numbers of pixels")
    return array.astype(int)


def _array(
    where: str, values: Any, shape: tuple[int, ...], low: float = 0, high: float = math.inf
) -> np.ndarray:
    """Numbers of that shape in [low, high], NaN for null."""
    try:
        array = np.array(values, dtype=float)
    except (TypeError, ValueError, OverflowError):  # text, or rows of unequal length
        array = np.array(math.inf)
    if array.shape != shape or ((array < low) | (array > high) | np.isinf(array)).any():
        size = f"{' x '.join(map(str, shape))} numbers" if shape else "a number"
        raise ValueError(f"{where} is {values!r:.60}; expected {size} from {low:g} to {high:g}")
    return array
