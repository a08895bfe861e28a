"""Run records: checked, summarised over seeds, printed as tables."""

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from protolib.metrics import DILATION, PROTOCOLS, SCORES

try:
    import resource
except ImportError:  # Windows has no such module
    resource = None

METHODS = {
    "cam": "CAM",
    "prototypes": "Prototypes, no matching loss",
    "pbip_stage1": "PBIP stage 1",
    "pbip_stage2": "PBIP stage 2",
    "full_supervision": "Full supervision",
}


TEXTS = ("preset", "dataset", "device", "protolib")
KEYS = (*TEXTS, "seed", "methods", "seconds", "peak_rss_mb")


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

    preset, dataset, device, protolib (its version): text. seed: int. seconds {step: seconds}.
    peak_rss_mb: MB, may be NaN. methods: {key of METHODS: {"miou", "fwiou", "biou", "dice", "iou"
    (list of C), "protocol", "oracle": {the same}}}; a run may hold only some of the methods. Scores
    are fractions in [0, 1] or NaN (None is taken for NaN); "accuracy" may stand beside them.
    Returns a new dict with keys and methods in a fixed order. Raises ValueError naming what is
    unknown, missing or out of range. `record(**read_json(path))` checks a file.
    """
    _keys("run record", values, KEYS)
    for key in TEXTS:
        if not isinstance(values[key], str) or not values[key]:
            raise ValueError(
                f"run record: {key} is {values[key]!r}; expected a text that is not empty"
            )
    if isinstance(values["seed"], bool) or not isinstance(values["seed"], (int, np.integer)):
        raise ValueError(f"run record: seed is {values['seed']!r}; expected an int")
    methods = _methods(values["methods"])
    return {
        "preset": values["preset"],
        "dataset": values["dataset"],
        "seed": int(values["seed"]),
        "device": values["device"],
        "protolib": values["protolib"],
        "methods": methods,
        "seconds": {
            step: _number(f"seconds of {step}", s) for step, s in values["seconds"].items()
        },
        "peak_rss_mb": _number("peak_rss_mb", values["peak_rss_mb"]),
    }


def summarise(records: Sequence[Mapping]) -> dict:
    """Mean and standard deviation over the seeds of one experiment.

    records: run records that differ in nothing but seed, machine and version. Returns "preset",
    "dataset", "device", "protolib" (all that occur), "seeds" (sorted), and "methods" as in a record
    with {"mean", "std"} (fractions) for every score. std is that of a sample (n - 1), NaN for one
    seed. A score that is NaN in one seed is NaN here: a mean over fewer seeds would hide it. Raises
    ValueError for no record, a seed twice, or mixed presets, data sets, methods, numbers of classes
    or protocols.
    """
    records = sorted((record(**r) for r in records), key=lambda r: r["seed"])
    if not records:
        raise ValueError("summarise: no record; pass the results.json of one run or more")
    seeds = [r["seed"] for r in records]
    if len(set(seeds)) < len(seeds):
        raise ValueError(
            f"summarise: seeds {seeds} hold one twice; pass each run once, or its std means nothing"
        )
    for name, of in (
        ("presets", lambda r: r["preset"]),
        ("data sets", lambda r: r["dataset"]),
        ("methods", lambda r: ", ".join(r["methods"])),
        ("protocols", _protocols),
        ("numbers of classes", lambda r: len(next(iter(r["methods"].values()))["iou"])),
    ):
        if len(found := sorted({of(r) for r in records})) > 1:
            raise ValueError(
                f"summarise: mixed {name}: {' | '.join(map(str, found))}; summarise each apart"
            )
    return {
        "preset": records[0]["preset"],
        "dataset": records[0]["dataset"],
        "seeds": seeds,
        "device": ", ".join(sorted({r["device"] for r in records})),
        "protolib": ", ".join(sorted({r["protolib"] for r in records})),
        "methods": {
            name: _spread([r["methods"][name] for r in records]) for name in records[0]["methods"]
        },
    }


def table(run: Mapping, classes: Sequence[str] = (), oracle: bool = False) -> str:
    """Markdown table of the methods of a run record or of a summary.

    run: what `record` or `summarise` returns. classes: C names for the columns of IoU, numbers when
    left out. oracle: the scores under oracle labels instead. Percent with one decimal, "mean ± std"
    for a summary; a dash where a class is in neither truth nor prediction. The lines above the
    table name run, seeds and protocol. Raises ValueError when the classes do not fit. Notebook 05.
    """
    blocks = {name: block["oracle"] if oracle else block for name, block in run["methods"].items()}
    C = len(next(iter(blocks.values()))["iou"])
    if classes and len(classes) != C:
        raise ValueError(
            f"table: {len(classes)} class names for {C} classes; expected one per entry of 'iou'"
        )
    heads = [
        *SCORES.values(),
        *(f"IoU {name}" for name in (classes or [f"class {c}" for c in range(C)])),
    ]
    lines = [
        *_caption(run, blocks),
        "",
        "| method | " + " | ".join(f"{head} (%)" for head in heads) + " |",
        "|---|" + "---:|" * len(heads),
    ]
    for name, block in blocks.items():
        cells = [_percent(value) for value in (*(block[score] for score in SCORES), *block["iou"])]
        lines.append(f"| {METHODS[name]} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _keys(where: str, found: Mapping, wanted: Sequence[str], optional: Sequence[str] = ()) -> None:
    missing = [key for key in wanted if key not in found]
    unknown = [key for key in found if key not in wanted and key not in optional]
    if missing or unknown:
        raise ValueError(
            f"{where}: missing {', '.join(missing) or 'nothing'}; "
            f"unknown {', '.join(unknown) or 'nothing'}; expected {', '.join(wanted)}"
        )


def _number(where: str, value: Any, top: float = math.inf) -> float:
    """A number in [0, top], or NaN."""
    number = math.nan if value is None else float(value)
    if not (math.isnan(number) or 0 <= number <= top) or math.isinf(number):
        hint = "; scores are stored as fractions, `table` prints percent" if top == 1 else ""
        raise ValueError(f"{where} is {value!r}; expected a finite number from 0 to {top:g}{hint}")
    return number


def _methods(methods: Mapping) -> dict[str, dict]:
    if not methods or (unknown := [name for name in methods if name not in METHODS]):
        found = f"unknown method {', '.join(unknown)}" if methods else "no method"
        raise ValueError(f"run record: {found}; expected some of {', '.join(METHODS)}")
    checked = {}
    for name in (name for name in METHODS if name in methods):
        block = _block(name, methods[name], "oracle")
        block["oracle"] = _block(f"{name} oracle", methods[name]["oracle"])
        first, second = PROTOCOLS[block["protocol"]], PROTOCOLS[block["oracle"]["protocol"]]
        if (
            first.image_labels == "oracle"
            or second.image_labels != "oracle"
            or first.ignore != second.ignore
        ):
            raise ValueError(
                f"{name}: protocols {str(first)!r} and, under oracle, {str(second)!r}; expected oracle "
                "image labels in the second only and one rule for ignore pixels"
            )
        checked[name] = block
    if (
        len(
            lengths := {
                len(b["iou"]) for block in checked.values() for b in (block, block["oracle"])
            }
        )
        > 1
    ):
        raise ValueError(
            f"run record: 'iou' has {sorted(lengths)} classes in different methods; expected one C"
        )
    return checked


def _block(where: str, block: Mapping, *more: str) -> dict:
    """The scores of one method under one protocol."""
    _keys(where, block, (*SCORES, "iou", "protocol", *more), optional=("accuracy",))
    if block["protocol"] not in PROTOCOLS:
        raise ValueError(
            f"{where}: protocol {block['protocol']!r} is unknown; expected str(Protocol(...)), one of: "
            + "; ".join(PROTOCOLS)
        )
    checked = {
        name: _number(f"{where}: {name}", block[name], top=1)
        for name in (*SCORES, "accuracy")
        if name in block
    }
    iou = [_number(f"{where}: iou {c}", value, top=1) for c, value in enumerate(block["iou"])]
    return checked | {"iou": iou, "protocol": block["protocol"]}


def _protocols(run: Mapping) -> str:
    return "; ".join(f"{name}: {block['protocol']}" for name, block in run["methods"].items())


def _spread(blocks: Sequence[dict]) -> dict:
    """One method over the seeds: the same keys, {"mean", "std"} for each score."""

    def over(values: Sequence[float]) -> dict[str, float]:
        return {
            "mean": float(np.mean(values)),
            "std": float(np.std(values, ddof=1)) if len(values) > 1 else math.nan,
        }

    summary = {name: over([b[name] for b in blocks]) for name in SCORES}
    summary["iou"] = [over(values) for values in zip(*(b["iou"] for b in blocks))]
    summary["protocol"] = blocks[0]["protocol"]
    if "oracle" in blocks[0]:
        summary["oracle"] = _spread([b["oracle"] for b in blocks])
    return summary


def _caption(run: Mapping, blocks: Mapping[str, Mapping]) -> list[str]:
    seeds = run.get("seeds", [run.get("seed")])
    over = f"mean ± std over {len(seeds)} seeds" if len(seeds) > 1 else "1 seed"
    by_protocol: dict[str, list[str]] = {}
    for name, block in blocks.items():
        by_protocol.setdefault(block["protocol"], []).append(METHODS[name])
    protocols = (
        list(by_protocol)
        if len(by_protocol) == 1
        else [f"{protocol} ({'; '.join(titles)})" for protocol, titles in by_protocol.items()]
    )
    return [
        f"Data set {run['dataset']}, preset {run['preset']}, {over} ({', '.join(map(str, seeds))}). "
        f"bIoU: band of {DILATION:g} of the image diagonal.",
        "",
        f"Protocol: {'. '.join(protocols)}.",
    ]


def _percent(value: float | None | Mapping) -> str:
    if isinstance(value, Mapping):
        mean, std = value["mean"], value["std"]
        return _percent(mean) + ("" if std is None or math.isnan(std) else f" ± {100 * std:.1f}")
    return "–" if value is None or math.isnan(value) else f"{100 * value:.1f}"
