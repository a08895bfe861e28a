"""What a run will take before it is started: memory, time and disk, from ten steps of each training
on this machine."""

import json
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch

from protolib import results
from protolib.blocks import Block, Items, Paragraph, Table
from protolib.experiment import Run
from protolib.nets import weights
from protolib.presets import Preset

STEPS = 5  # of each of two epochs: the first warms up, the second is timed
LOOKED_AT = 32  # patches of val and of test while ten steps are timed: one predicted batch
# what stands for an encoder whose weights are not here: the same network, so the same work
STAND_INS = {"medclip": "swin_random", "medclip_released": "swin_random"}
GPU = Path(__file__).parents[2] / "benchmarks" / "gpu.json"
TIMED = {"paper_text": "paper text", "released_code": "released code"}  # presets, as they stand
UNKNOWN = "not known here"


class Cost(NamedTuple):
    """What ten steps said. Seconds and bytes; a patch: of the split that is worked on."""

    embed: float  # seconds a training patch
    bank: float  # seconds a training patch
    step: dict[str, float]  # {method: seconds a step}
    watch: dict[str, float]  # {method: seconds a val patch, after every epoch}
    mask: float  # seconds a pseudo mask
    score: dict[str, float]  # {method: seconds a test patch}
    memory: float  # bytes, at most
    of_memory: str  # whose
    patch_disk: float  # bytes of a patch in the cache
    mask_disk: float  # bytes of a pseudo mask
    fixed_disk: float  # bytes of networks, bank and scores


class Row(NamedTuple):
    """A line of the plan."""

    what: str
    seconds: float


def stand_in(p: Preset) -> tuple[Preset, list[str]]:
    """The preset with networks that can be had here, and what is said of those that cannot.

    Raises ValueError for an encoder without weights that no other network stands for.
    """
    said, encoder, other = [], p.encoder, p.cluster_encoder
    if not _here(encoder):
        if encoder not in STAND_INS:
            raise ValueError(
                f"no weights of encoder '{encoder}' here, and no other network does the same work; "
                "bring them (notebook 02 says how), or plan with another preset"
            )
        said.append(f"no weights of {encoder} here: random ones did its work")
        encoder = STAND_INS[encoder]
    if other and not _here(other):
        said.append(f"embedding by {other}, whose weights are not here: {UNKNOWN}")
        other = ""
    return replace(p, encoder=encoder, cluster_encoder=other), said


def _here(encoder: str) -> bool:
    name = {"medclip_released": "swin"}.get(encoder, encoder)
    try:
        return weights.published(name) is None or bool(weights.find(name))
    except OSError:
        return False


def measure(p: Preset, device: str, folder: str) -> Cost:
    """Do ten steps of each training of a preset on phantom patches, and what stands around them.

    folder: an empty one. Call it in a process of its own: the memory is all that it ever took.
    """
    train = STEPS * p.batch
    small = replace(p, patches=(train, LOOKED_AT, LOOKED_AT), epochs=2, stage2_epochs=2)
    with warnings.catch_warnings():  # random weights and thin banks are of no matter here
        warnings.simplefilter("ignore")
        run = Run(small, run_dir=folder, device=device)
        for split in ("train", "val", "test"):
            run.data(split)
        run.features("val")  # builds the encoder
        embed = _seconds(run.features)
        bank = _seconds(getattr, run, "bank")
        step, watch, mask, score = {}, {}, 0.0, {}
        for method in run.methods:
            if method == "pbip_stage2":
                mask = _seconds(run.pseudo_masks) / train
            if method != "nearest_prototype":
                step[method], watch[method] = _steps(run, method)
            score[method] = _seconds(run.counts, method) / LOOKED_AT
    if run.device.startswith("cuda"):
        memory, of_memory = float(torch.cuda.max_memory_reserved()), torch.cuda.get_device_name()
    else:
        memory, of_memory = results.peak_rss_mb() * 1e6, "the CPU"
    kept, masks = _size(Path(folder) / "cache"), _size(Path(folder) / "pseudo_masks")
    return Cost(
        embed=embed / train,
        bank=bank / train,
        step=step,
        watch=watch,
        mask=mask,
        score=score,
        memory=memory,
        of_memory=of_memory,
        patch_disk=kept / (train + 2 * LOOKED_AT),
        mask_disk=masks / train,
        fixed_disk=_size(Path(folder)) - kept - masks,
    )


def disk(cost: Cost, patches: Sequence[int]) -> float:
    """Bytes that a run over so many patches of train, val and test leaves."""
    return cost.patch_disk * sum(patches) + cost.mask_disk * patches[0] + cost.fixed_disk


def _steps(run: Run, method: str) -> tuple[float, float]:
    """Seconds of a step, and what looking at val took for each of its patches."""
    ends, histories = [], []

    def ended(history: pd.DataFrame) -> None:
        ends.append(time.perf_counter())
        histories.append(history)

    run.net(method, ended)
    seconds = float(histories[-1]["seconds"].iloc[-1])
    return seconds / STEPS, max(0.0, ends[1] - ends[0] - seconds) / LOOKED_AT


def _seconds(work: Callable, *given) -> float:
    began = time.perf_counter()
    work(*given)
    return time.perf_counter() - began


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def rows(cost: Cost, p: Preset, patches: Sequence[int]) -> list[Row]:
    """The seconds of each part of a run over so many patches of train, val and test."""
    train, val, test = patches
    banks = 1 + ("pbip_masked_image" in cost.score)  # which has one in another space
    made = [Row("embedding and bank", banks * (cost.embed + cost.bank) * train)]
    for method, score in cost.score.items():
        if method == "pbip_stage2":
            made.append(Row("pseudo masks", cost.mask * train))
        name = results.METHODS[method]
        if method in cost.step:
            second = method in ("pbip_stage2", "full_supervision")
            epochs = p.stage2_epochs if second else p.epochs
            steps = epochs * max(1, train // p.batch)
            watched = 0.0 if second else epochs * cost.watch[method] * val
            made.append(Row(f"{name}: {steps} steps", steps * cost.step[method] + watched))
        made.append(Row(f"{name}: scores", score * test))
    return made


def splits(p: Preset, images: int) -> tuple[int, int, int]:
    """So many training patches, and val and test in the proportion of the preset's phantom."""
    train, val, test = p.patches
    return images, max(1, round(images * val / train)), max(1, round(images * test / train))


def plan(p: Preset, images: int, device: str = "auto", gpu: str = "") -> list[Block]:
    """The plan in words: each part of a run with its time, then memory and disk.

    images: training patches. gpu: a card that is not here, by a part of its name: what it took
    stands in benchmarks/gpu.json. Raises ValueError for what cannot be planned.
    """
    if images < p.batch:
        raise ValueError(f"--images {images}: give the number of training patches, {p.batch} on")
    counts = splits(p, images)
    told = f"Preset {p.name}: {counts[0]} patches of train, {counts[1]} of val, {counts[2]} of test"
    if gpu:
        return [Paragraph(told), *_on_card(p, counts[0], gpu)]
    asked, said = stand_in(p)
    with tempfile.TemporaryDirectory() as folder:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            cost = pool.submit(measure, asked, device, folder).result()
    made = rows(cost, p, counts)
    made.append(Row("all of it", sum(row.seconds for row in made)))
    return [
        Paragraph(told),
        Table(["part of the run", "time"], [[row.what, _clock(row.seconds)] for row in made]),
        Items(
            [
                f"memory: {cost.memory / 1e9:.1f} GB of {cost.of_memory}",
                f"disk: {disk(cost, counts) / 1e9:.2f} GB",
                *said,
            ]
        ),
        Paragraph(
            "From ten steps of each training on this machine, as busy as it was, on patches of the "
            "phantom. Not in it: reading files for the first time, the start of Python, and what "
            "notebooks draw."
        ),
    ]


def _on_card(p: Preset, train: int, gpu: str) -> list[Block]:
    """What benchmarks/gpu.json knows of a preset on a card."""
    runs = json.loads(GPU.read_text("utf-8")).values() if GPU.exists() else []
    name = f"{TIMED.get(p.name)}, batch {p.batch}, {p.precision}"
    timed = [
        (run["device"], run["steps"][name])
        for run in runs
        if gpu.lower() in run["device"].lower() and name in run["steps"]
    ]
    if not timed:
        return [Paragraph(f"On {gpu}: {UNKNOWN}. benchmarks/gpu.sh measures a card.")]
    card, found = timed[-1]
    steps = p.epochs * max(1, train // p.batch)
    table = [
        [f"PBIP stage 1: {steps} steps", _clock(steps * found["seconds"])],
        ["everything else", UNKNOWN],
    ]
    return [
        Table(["part of the run", f"time on {card}"], table),
        Items([f"memory: {found['peak_gb']:.1f} GB of {card}", f"disk: {UNKNOWN}"]),
        Paragraph("From benchmarks/gpu.json: steps of two classes a patch, with random weights."),
    ]


def _clock(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"
