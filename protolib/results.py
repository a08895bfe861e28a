"""A run's record: what results.json holds, checked, and its table."""

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from protolib import files
from protolib.blocks import Table
from protolib.metrics import DILATION, SCORES, Protocol

try:
    import resource
except ImportError:  # Windows has no such module
    resource = None

METHODS = {
    "cam": "CAM",
    "nearest_prototype": "Nearest prototype, nothing trained",
    "prototypes": "Prototypes, no matching loss",
    "pbip_masked_image": "PBIP stage 1, the paper's loss on masked images",
    "pbip_stage1": "PBIP stage 1",
    "pbip_stage2": "PBIP stage 2",
    "full_supervision": "Full supervision",
}
RECORD = {
    "preset": str,
    "dataset": str,
    "seed": int,
    "device": str,
    "threads": int,
    "protolib": str,
    "methods": dict,
    "seconds": dict,
    "peak_rss_mb": (float, None),
}
BLOCK = dict.fromkeys(SCORES, (float, None)) | {"iou": list, "image_labels": str, "ignore": str}
MORE = {"accuracy": (float, None), "classes_scored": list}  # of a block, where they are known


def peak_rss_mb() -> float:
    """Largest resident memory so far of this process or of one finished child, in MB of 10^6 bytes.

    A notebook that papermill has run is such a child. NaN on Windows, which does not count it this
    way.
    """
    if resource is None:
        return math.nan
    peak = max(
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6  # macOS counts bytes, Linux KiB


def record(**values: Any) -> dict:
    """The checked record of one run, as results.json holds it.

    preset, dataset, device, protolib (its version): text. seed, threads: int. seconds {step:
    seconds}.
    peak_rss_mb: MB, may be NaN. methods: {key of METHODS: {"miou", "fwiou", "biou", "dice", "iou"
    (list of C), "image_labels", "ignore" (see metrics.Protocol), "oracle": {the same}}}; a run
    may hold only some of the methods. Scores are fractions in [0, 1] or NaN (None is taken for
    NaN). "accuracy", "classes_scored" and, for a method that METHODS names wrongly, "title" may
    stand beside them. Returns a new dict with keys and methods in a fixed order. Raises
    ValueError naming what is unknown, missing or out of range. `record(**read_json(path))` checks
    a file. Notebook 06.
    """
    files.expect("run record", values, RECORD, optional={})
    for key, kind in RECORD.items():
        if kind is str and not values[key]:
            raise ValueError(f"run record: {key} is ''; expected a text that is not empty")
    seconds = {step: _number(f"seconds of {step}", s) for step, s in values["seconds"].items()}
    checked = {
        "seed": int(values["seed"]),
        "methods": _methods(values["methods"]),
        "seconds": seconds,
        "peak_rss_mb": _number("peak_rss_mb", values["peak_rss_mb"]),
    }
    return {key: checked.get(key, values[key]) for key in RECORD}


def table(run: Mapping, classes: Sequence[str] = (), oracle: bool = False) -> Table:
    """The methods of a run record as a table; its caption names run, seed and protocol.

    run: what `record` returns, or what read_json reads of it. classes: C names for the columns of
    IoU, numbers when left out. oracle: the scores under oracle labels instead. Percent with one
    decimal; a dash where a class has no true pixel, and the caption says over which classes the
    means are. Raises ValueError when the classes do not fit. Notebook 06.
    """
    found = {name: block["oracle"] if oracle else block for name, block in run["methods"].items()}
    C = len(next(iter(found.values()))["iou"])
    if classes and len(classes) != C:
        raise ValueError(
            f"table: {len(classes)} class names for {C} classes; expected one per entry of 'iou'"
        )
    named = classes or [f"class {c}" for c in range(C)]
    heads = [*SCORES.values(), *(f"IoU {name}" for name in named)]
    titles = {name: block.get("title", METHODS[name]) for name, block in run["methods"].items()}
    rows = []
    for name, block in found.items():
        scores = [*(block[score] for score in SCORES), *block["iou"]]
        rows.append([titles[name], *map(_percent, scores)])
    caption = (
        f"Data set {run['dataset']}, preset {run['preset']}, seed {run['seed']}. "
        f"bIoU: band of {DILATION:g} of the image diagonal.",
        f"Protocol: {_protocols(found, titles)}.{means_over(found, titles, named)}",
    )
    return Table(["method", *(f"{head} (%)" for head in heads)], rows, caption)


def _methods(methods: Mapping) -> dict[str, dict]:
    """Blocks in the order of METHODS, all of one C, each with its oracle's."""
    unknown = [name for name in methods if name not in METHODS]
    if unknown or not methods:
        found = f"unknown method {', '.join(unknown)}" if methods else "no method"
        raise ValueError(f"run record: {found}; expected some of {', '.join(METHODS)}")
    checked = {name: _pair(name, methods[name]) for name in METHODS if name in methods}
    lengths = {len(of["iou"]) for block in checked.values() for of in (block, block["oracle"])}
    if len(lengths) > 1:
        raise ValueError(
            f"run record: 'iou' has {sorted(lengths)} classes in different methods; expected one C"
        )
    return checked


def _pair(name: str, block: Any) -> dict:
    """The scores of one method, with those under oracle labels, and its own title if it has one."""
    files.expect(name, block, BLOCK | {"oracle": dict}, MORE | {"title": str})
    files.expect(f"{name} oracle", block["oracle"], BLOCK, MORE)
    checked = _block(name, block)
    oracle = _block(f"{name} oracle", block["oracle"])
    apart = checked["image_labels"] != "oracle" and oracle["image_labels"] == "oracle"
    if not apart or checked["ignore"] != oracle["ignore"]:
        raise ValueError(
            f"{name}: protocols {_protocol(checked)!r} and, under oracle, {_protocol(oracle)!r}; "
            "expected oracle image labels in the second only and one rule for ignore pixels"
        )
    title = {"title": block["title"]} if "title" in block else {}
    return checked | title | {"oracle": oracle}


def _block(where: str, block: Mapping) -> dict:
    """The scores of one method under one protocol."""
    try:
        _protocol(block)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    scores = [name for name in (*SCORES, "accuracy") if name in block]
    checked: dict = {name: _number(f"{where}: {name}", block[name], top=1) for name in scores}
    checked["iou"] = [
        _number(f"{where}: iou {c}", value, top=1) for c, value in enumerate(block["iou"])
    ]
    others = ("classes_scored", "image_labels", "ignore")
    return checked | {name: block[name] for name in others if name in block}


def _number(where: str, value: Any, top: float = math.inf) -> float:
    """A number in [0, top], or NaN."""
    try:
        number = math.nan if value is None else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.inf  # no number, or too large for one: refused below
    if not (math.isnan(number) or 0 <= number <= top) or math.isinf(number):
        hint = "; scores are stored as fractions, `table` prints percent" if top == 1 else ""
        raise ValueError(f"{where} is {value!r}; expected a finite number from 0 to {top:g}{hint}")
    return number


def _protocol(block: Mapping) -> str:
    return str(Protocol(block["image_labels"], block["ignore"]))


def _protocols(found: Mapping[str, Mapping], titles: Mapping[str, str]) -> str:
    """The protocol of all methods, or each with the methods that it is of."""
    of: dict[str, list[str]] = {}
    for name, block in found.items():
        of.setdefault(_protocol(block), []).append(titles[name])
    if len(of) == 1:
        return next(iter(of))
    return ". ".join(f"{protocol} ({'; '.join(names)})" for protocol, names in of.items())


def means_over(
    found: Mapping[str, Mapping], titles: Mapping[str, str], named: Sequence[str]
) -> str:
    """Over which classes means are, where it is not all of them: the same for each method, but in
    results that an earlier protolib wrote."""
    of: dict[str, list[str]] = {}
    for name, block in found.items():
        there = [c for c, value in zip(named, block["iou"]) if value is not None and value == value]
        if len(there) < len(named):
            of.setdefault(", ".join(there) or "no class", []).append(titles[name])
    means = [f" Means of {'; '.join(who)} are over {what} only." for what, who in of.items()]
    if len(of) == 1 and len(next(iter(of.values()))) == len(found):
        return f" Means are over {next(iter(of))}: the others have no true pixel."
    return "".join(means)


def _percent(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{100 * value:.1f}"
