"""The grid of the paper's tables: which experiments a preset asks for, which of them cannot run
here, and what a run of one yields."""

import platform
import tomllib
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from protolib import __version__, metrics, presets, results
from protolib.data import specs
from protolib.experiment import Run, plain
from protolib.keys import CODE
from protolib.nets import encoders, weights
from protolib.presets import Preset

UNTRAINED = ("zero_shot", "text", "nearest_prototype")
# teacher and student: their scores on val say, before anything is matched, whether it will help
ON_VAL = ("nearest_prototype", "prototypes")


def _rows(table: Mapping[str, dict]) -> Mapping[str, dict]:
    """What each row of a table of grid.toml changes; two tables within one are multiplied."""
    if table.keys() not in ({"encoders", "backbones"}, {"data", "methods"}):
        return table
    first, second = table.values()
    return {
        f"{name}, {other}": change | more
        for name, change in first.items()
        for other, more in second.items()
    }


_GRID = tomllib.loads(Path(__file__).with_name("grid.toml").read_text("utf-8"))
ROWS = {name: _rows(table) for name, table in _GRID.items()}


class Experiment(NamedTuple):
    """One row's work, whatever its seed and data: a method and the fields that it changes in the
    preset."""

    name: str
    method: str
    settings: dict[str, Any]


def tables(p: Preset) -> dict[str, dict[str, Experiment]]:
    """The experiment of every row of every table. A change to what the preset has anyway is none,
    so tables share experiments."""
    return {
        table: {row.format(**asdict(p)): _experiment(p, change) for row, change in rows.items()}
        for table, rows in ROWS.items()
    }


def _experiment(p: Preset, change: Mapping[str, Any]) -> Experiment:
    method, own = change.get("method", "pbip_stage1"), asdict(p)
    wanted = {field: value for field, value in sorted(change.items()) if field != "method"}
    settings = {f: v for f, v in wanted.items() if presets.frozen(v) != own[f]}
    words = (
        f"{f}={','.join(map(str, v)) if isinstance(v, list) else v}" for f, v in settings.items()
    )
    return Experiment(" ".join((method, *words)), method, settings)


def refusal(p: Preset, experiment: Experiment, pure: Mapping[str, int]) -> str:
    """Why an experiment cannot run here, in a sentence; "" if it can.

    pure: how many training patches of each class could be in a bank. A network without its weights
    does not stand for the paper's, so a backbone that would start from random ones is refused like
    an encoder.
    """
    try:
        made = presets.changed(p, experiment.settings)
    except ValueError as error:
        return str(error)
    by_text = experiment.method == "text" or made.text_share
    if by_text and made.encoder not in encoders.TEXT:
        return (
            f"protolib reads no text tower of encoder {made.encoder}: that of "
            f"{' and '.join(encoders.TEXT)} alone"
        )
    needed = {made.encoder, encoders.TOKENS} if by_text else {made.encoder}
    bankless = made.prototypes == "learnable" or plain(made) or experiment.method == "text"
    if not bankless:
        needed.add(made.cluster_encoder)
    elif not by_text and not made.beta:
        needed = set()  # nothing is looked at but by the network
    if experiment.method not in UNTRAINED:
        needed.add(made.backbone)
    needed = {"swin" if name == "medclip_released" else name for name in needed}
    lacking = [n for n in sorted(needed) if weights.published(n) and not _weighted(n)]
    if lacking:
        return (
            f"no weights of {' and '.join(lacking)} on this machine, and none could be had "
            "(notebook 02 says what to bring)"
        )
    if bankless:
        return ""
    fewest = min(pure, key=lambda name: pure[name])
    most = max(made.K, made.N if "N" in experiment.settings else 0)
    if pure[fewest] < most:
        return f"{fewest} has {pure[fewest]} training patches for the bank, this takes {most}"
    return ""


@cache
def _weighted(name: str) -> bool:
    """Whether the weights of that name are here, once they have been asked for: a dead network
    takes seconds to say so."""
    try:
        return bool(weights.find(name))
    except OSError:  # not found, no access
        return False


def identity(run: Run, experiment: Experiment) -> tuple[str, str]:
    """Key and base of an experiment's scores, as its run has them: of all that they depend on, and
    of all but seed and data.

    run: of the preset that the experiment changes.
    """
    own = run.variant(presets.changed(run.preset, experiment.settings), run.folder)
    return _identity(own, experiment.method)


def _identity(run: Run, method: str) -> tuple[str, str]:
    asked = method if method in ("zero_shot", "text") else "counts", method, "test"
    return run.key(*asked), run.base(*asked)


def named(run: Run) -> tuple[str, bool]:
    """What the data of a run is called in the results, and whether it is a published set in full.
    Notebook 04.

    Full means: as many patches in each split as its publishers say. Anything else bears the name of
    its folder.
    """
    spec, folder = run.spec, Path(run.data_root).resolve().name
    if spec.regions:  # the paper's patches and split are not published
        return f"{spec.name} cut by protolib", False
    if spec.counts and all(len(run.data(split)) in n for split, n in spec.counts.items()):
        return spec.name, True
    if spec.name == "phantom":
        return spec.name, False
    return f"{folder} in part" if folder in specs.SPECS else folder, False


def measure(run: Run, method: str) -> dict:
    """What a run adds to the results: scores, counts by slide, curve, seconds, key and base, and
    where it ran."""
    key, base = _identity(run, method)
    if method in ("zero_shot", "text"):
        made = _zero_shot(run, "image" if method == "zero_shot" else "text")
    else:
        made = _segmented(run, method)
    return made | {
        "key": key,
        "base": base,
        "peak_rss_mb": round(results.peak_rss_mb()),
        "device": run.device,
        "threads": torch.get_num_threads(),
        "protolib": __version__,
        "torch": torch.__version__,
        # with wider vectors sums come in another order: a seed may be a point off by it
        "machine": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "code": "".join(digest[:8] for digest in CODE.values()),
    }


def _segmented(run: Run, method: str) -> dict:
    labels, rule = ("predicted", "oracle"), run.preset.ignore
    scores = {how: run.scores(method, protocol=metrics.Protocol(how, rule)) for how in labels}
    slides = {
        slide: {
            how: {"matrix": found[how][rule].matrix, "boundary": found[how][rule].boundary}
            for how in labels
        }
        for slide, found in run.counts(method).items()
    }
    made = {"scores": scores, "slides": slides, "seconds": 0.0}
    if method in ON_VAL:
        oracle = metrics.Protocol("oracle", rule)
        made["val"] = run.scores(method, "val", oracle)["miou"]
    if method in UNTRAINED:
        return made
    history = run.history(method)
    made["seconds"] = round(float(history["seconds"].sum()), 1)
    heads = [f"IoU {name}" for name in run.spec.classes]
    if set(heads) <= set(history):  # stage 2 is not watched
        made["curve"] = {
            "loss": history["loss"].round(4).tolist(),
            "iou": history[heads].to_numpy().round(4),
        }
    return made


def _zero_shot(run: Run, prompt: str) -> dict:
    from sklearn.metrics import f1_score  # here: a second and a half that other runs need not wait

    truth, said = run.zero_shot(prompt=prompt)
    per_class = f1_score(truth, said, labels=range(run.spec.C), average=None, zero_division=np.nan)
    f1 = {"f1": float(np.nanmean(per_class)), "per_class": per_class}
    return {"scores": {"f1": f1}, "seconds": 0.0}
