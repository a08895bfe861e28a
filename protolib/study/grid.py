"""The grid of the paper's tables: which cells a preset asks for, which of them cannot run here, and
what one of them yields."""

import hashlib
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
from protolib.experiment import CODE, Run
from protolib.nets import weights
from protolib.presets import Preset

ROWS: dict[str, dict[str, dict]] = tomllib.loads(
    Path(__file__).with_name("grid.toml").read_text("utf-8")
)
ZERO_SHOT = "nearest prototype, main class of each test patch"


class Cell(NamedTuple):
    """One experiment, whatever its seed: a method and the fields that it changes in the preset."""

    name: str
    method: str
    settings: dict[str, Any]


def tables(p: Preset) -> dict[str, dict[str, Cell]]:
    """The cell of every row of every table. A change to what the preset has anyway is none, so
    tables share cells. Notebook 07."""
    return {
        t: {row.format(**asdict(p)): _cell(p, change) for row, change in rows.items()}
        for t, rows in ROWS.items()
    }


def _cell(p: Preset, change: Mapping[str, Any]) -> Cell:
    method, own = change.get("method", "pbip_stage1"), asdict(p)
    settings = {
        k: v for k, v in sorted(change.items()) if k != "method" and presets.frozen(v) != own[k]
    }
    words = (
        f"{k}={','.join(map(str, v)) if isinstance(v, list) else v}" for k, v in settings.items()
    )
    return Cell(" ".join((method, *words)), method, settings)


def refusal(p: Preset, cell: Cell, pure: Mapping[str, int]) -> str:
    """Why a cell cannot run here, in a sentence; "" if it can. Notebook 07.

    pure: how many training patches of each class could be in a bank. A network without its weights
    does not stand for the paper's, so a backbone that would start from random ones is refused like
    an encoder.
    """
    if cell.method == "text":
        return "text prompts need a text encoder, and protolib has none"
    try:
        made = presets.changed(p, cell.settings)
    except ValueError as error:
        return str(error)
    needed = {made.encoder, made.cluster_encoder} | (
        {made.backbone} if cell.method != "zero_shot" else set()
    )
    needed = {"swin" if name == "medclip_released" else name for name in needed} & set(
        weights.PUBLISHED
    )
    if lacking := [name for name in sorted(needed) if not _weighted(name)]:
        return f"no weights of {' and '.join(lacking)} on this machine, and none could be had (notebook 02 says what to bring)"
    fewest = min(pure, key=pure.get)
    if pure[fewest] < (most := max(made.K, made.N if "N" in cell.settings else 0)):
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


def key(p: Preset, cell: Cell, seed: int, fingerprint: str) -> str:
    """Hash of all that the scores of a cell depend on: settings, seed, training pixels and kernel
    sources. Notebook 07."""
    said = [asdict(presets.changed(p, cell.settings)), cell.method, seed, fingerprint, CODE]
    return hashlib.sha256(repr(said).encode()).hexdigest()[:16]


def named(run: Run) -> tuple[str, bool]:
    """What the data of a run is called in the results, and whether it is a published set in full.
    Notebook 07.

    Full means: as many patches in each split as its publishers say. Anything else bears the name of
    its folder.
    """
    spec, folder = run.spec, Path(run.data_root).resolve().name
    if (
        spec.counts
        and all(len(run.data(split)) in spec.counts[split] for split in spec.counts)
        and not spec.regions
    ):
        return spec.name, True
    if spec.regions:
        return (
            f"{spec.name} cut by protolib",
            False,
        )  # the paper's patches and split are not published
    return (
        spec.name
        if spec.name == "phantom"
        else f"{folder} in part"
        if folder in specs.SPECS
        else folder
    ), False


def measure(run: Run, method: str) -> dict:
    """What a cell adds to the results: scores, confusion by slide, curve, seconds, and where it
    ran. Notebook 07."""
    made = _zero_shot(run) if method == "zero_shot" else _segmented(run, method)
    return made | {
        "peak_rss_mb": round(results.peak_rss_mb()),
        "device": run.device,
        "threads": torch.get_num_threads(),
        "protolib": __version__,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "code": CODE[:12],
    }


def _segmented(run: Run, method: str) -> dict:
    labels = ("predicted", "oracle")
    scores = {
        how: run.scores(method, protocol=metrics.Protocol(how, run.preset.ignore)) for how in labels
    }
    slides = {how: run.slide_counts(method, image_labels=how) for how in labels}
    history = run.history(method)
    made = {
        "scores": scores,
        "seconds": round(float(history["seconds"].sum()), 1),
        "slides": {s: {how: slides[how][s] for how in labels} for s in slides["predicted"]},
    }
    heads = [f"IoU {c}" for c in run.spec.classes]
    if set(heads) <= set(history):  # stage 2 is not watched
        made["curve"] = {
            "loss": history["loss"].round(4).tolist(),
            "iou": history[heads].to_numpy().round(4),
        }
    return made


def _zero_shot(run: Run) -> dict:
    from sklearn.metrics import f1_score  # here: a second and a half that other cells need not wait

    truth, said = run.zero_shot()
    per_class = f1_score(truth, said, labels=range(run.spec.C), average=None, zero_division=np.nan)
    return {
        "scores": {
            "f1": {
                "f1": float(np.nanmean(per_class)),
                "per_class": per_class,
                "protocol": ZERO_SHOT,
            }
        },
        "seconds": 0.0,
    }
