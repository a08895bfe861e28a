"""Runs the grid of the paper's tables, one notebook a cell, as many at a time as the machine has
room for."""

import os
import queue
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from threading import Lock

import numpy as np
import papermill
import psutil
import torch
from filelock import FileLock, Timeout

from protolib import bank, files, presets
from protolib.data import specs
from protolib.experiment import Run
from protolib.study import grid, runner

NOTEBOOK = "cell.ipynb"
MEMORY = 4e9  # bytes that one cell may take on a CPU: the peak of preset quick with a matching loss


def run(
    notebooks: Path,
    names: Sequence[str],
    dataset: str,
    data_root: str,
    preset: str,
    seeds: Sequence[int],
    device: str = "auto",
    jobs: int = 0,
) -> int:
    """Run every cell of these tables that results/<data>-<preset>.json does not hold yet. Notebook
    07.

    notebooks: the folder of cell.ipynb; runs/ and results/ stand beside it. names: tables of
    grid.toml. jobs: cells at a time, 0: one per GPU, or per CPU core and 4 GB of free memory. A
    cell that is done is in the file before the next one begins, so a run that was stopped goes on
    where it was. On a CPU each cell has one thread: the scores do not depend on the machine's load.
    Returns the exit status: 0 done, 1 a cell failed, 130 interrupted. Raises ValueError before any
    work for what cannot be.
    """
    p = presets.preset(preset)
    tables = grid.tables(p)
    if dataset != "phantom":
        specs.check_layout(specs.spec_of(dataset, data_root), data_root)
    runs = [
        Run(
            preset,
            dataset,
            data_root,
            seed=seed,
            cache=notebooks.parent / "runs" / "ablations" / "cache",
        )
        for seed in seeds
    ]
    label, official = grid.named(runs[0])
    stem = re.sub(r"[^\w.-]+", "-", f"{label}-{preset}")
    folder, file = (
        notebooks.parent / "runs" / "ablations" / stem,
        notebooks.parent / "results" / f"{stem}.json",
    )
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            book = Results(file, runs[0], label, official, tables)
            todo = _todo(
                book, p, {cell.name: cell for name in names for cell in tables[name].values()}, runs
            )
            return _execute(book, notebooks / NOTEBOOK, folder, todo, device, jobs)
    except Timeout:
        raise ValueError(
            f"another command is at work on {stem}: wait for it, or stop it; this one would go on after it"
        ) from None


class Results:
    """results/<data>-<preset>.json: numbers and where they come from, one line a cell, whole at
    every moment."""

    def __init__(self, file: Path, run: Run, label: str, official: bool, tables: dict):
        old = files.read_json(file) if file.exists() else {}
        self.file, self.lock = file, Lock()
        self.cells = {(c["cell"], c["seed"]): c for c in old.get("cells", [])}
        self.head = {
            "label": label,
            "official": official,
            "dataset": run.dataset,
            "patches": {split: len(run.data(split)) for split in ("train", "val", "test")},
            "preset": run.preset.name,
            "size": run.preset.size,
            "epochs": run.preset.epochs,
            "classes": run.spec.classes,
            "not_run": old.get("not_run", {}),
            "tables": {
                name: {row: cell.name for row, cell in rows.items()}
                for name, rows in tables.items()
            },
        }

    def has(self, cell: str, seed: int, key: str) -> bool:
        """Whether the scores of this cell are there, made from the same settings, data and code."""
        return self.cells.get((cell, seed), {}).get("key") == key

    def add(self, made: dict) -> None:
        """Take in a cell and write the file; what other code made of the same cell goes: a mean
        must not mix the two."""
        with self.lock:
            other = [
                k
                for k, c in self.cells.items()
                if k[0] == made["cell"] and c.get("code") != made.get("code")
            ]
            for place in other:
                del self.cells[place]
            self.cells[made["cell"], made["seed"]] = made
            self.write()

    def write(self) -> None:
        """Write all that is known, cells in the order of their names."""
        self.file.parent.mkdir(exist_ok=True)
        files.write_json(
            self.file,
            self.head | {"cells": [self.cells[k] for k in sorted(self.cells)]},
            lines="cells",
        )


def _todo(
    book: Results, p: presets.Preset, cells: dict[str, grid.Cell], runs: Sequence[Run]
) -> list[tuple]:
    """Cells with their seed, run and key that are still to be run; what cannot be is noted with its
    reason."""
    owners = [
        bank.candidates(run.data("train"), 1, p.white_limit, p.single_class)[1] for run in runs
    ]
    pure = {
        name: min(int((o == c).sum()) for o in owners)
        for c, name in enumerate(runs[0].spec.classes)
    }
    not_run = {name: why for name, cell in cells.items() if (why := grid.refusal(p, cell, pure))}
    book.head["not_run"] = {
        name: why for name, why in book.head["not_run"].items() if name not in cells
    } | not_run
    reasons = Counter(not_run.values()).most_common()
    for why, count in reasons[:5]:
        print(f"not run, {count} {'cells' if count > 1 else 'cell'}: {why}", flush=True)
    if rest := sum(count for _, count in reasons[5:]):
        print(
            f"not run, {rest} more cells for such reasons: python -m protolib report tells each",
            flush=True,
        )
    wanted = [
        (cell, run, grid.key(p, cell, run.seed, run.data("train").fingerprint))
        for run in runs
        for name, cell in cells.items()
        if name not in not_run
    ]
    todo = [(cell, run, key) for cell, run, key in wanted if not book.has(cell.name, run.seed, key)]
    print(f"{len(wanted)} cells, {len(wanted) - len(todo)} done before", flush=True)
    book.write()
    return todo


def _execute(
    book: Results, notebook: Path, folder: Path, todo: list[tuple], device: str, jobs: int
) -> int:
    devices = _devices(device, jobs)
    free, began, failed = queue.SimpleQueue(), time.monotonic(), 0
    for place in devices:
        free.put(place)
    runner.use_own_kernel()
    if devices[0] == "cpu":
        os.environ["OMP_NUM_THREADS"] = "1"  # of the kernels to come
    with ThreadPoolExecutor(len(devices)) as pool:
        futures = [pool.submit(_one, book, notebook, folder, free, *task) for task in todo]
        try:
            for n, future in enumerate(as_completed(futures), start=1):
                failed += not _told(future, n, len(todo), began)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for kernel in psutil.Process().children():
                # its thread ends with it; what the cell has made so far stays in its folder
                kernel.kill()
            print(
                f"\ninterrupted; the same command goes on. Finished cells: {runner.short(book.file)}",
                file=sys.stderr,
            )
            return 130
    print(f"results: {runner.short(book.file)}\ntables: python -m protolib report", flush=True)
    return 1 if failed else 0


def _devices(device: str, jobs: int) -> list[str]:
    """One entry for each cell that runs at a time."""
    gpus = torch.cuda.device_count() if device != "cpu" else 0
    if gpus:
        return [f"cuda:{i % gpus}" for i in range(jobs or gpus)]
    room = int(psutil.virtual_memory().available // MEMORY)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return ["cpu"] * (jobs or max(1, min(cores, room)))


def _one(
    book: Results,
    notebook: Path,
    folder: Path,
    free: queue.SimpleQueue,
    cell: grid.Cell,
    run: Run,
    key: str,
) -> dict:
    """Run one cell in its folder, then keep its numbers and its notebook and drop the rest."""
    place, own, began = free.get(), folder / cell.name / f"seed {run.seed}", time.monotonic()
    try:
        own.mkdir(parents=True, exist_ok=True)
        # made anew, also after a kill: building it moves the random numbers that the initial
        # weights are drawn from, loading does not
        shutil.rmtree(own / "bank", ignore_errors=True)
        parameters = {
            "preset": run.preset.name,
            "dataset": run.dataset,
            "data_root": run.data_root,
            "run_dir": str(own),
            "seed": run.seed,
            "device": place,
            "method": cell.method,
            "settings": cell.settings,
            "cache": str(run.cache),
        }
        try:
            papermill.execute_notebook(
                notebook,
                own / NOTEBOOK,
                parameters,
                kernel_name="python3",
                progress_bar=False,
                config=runner.KERNEL,
                shutdown_kernel="immediate",
            )
        except Exception as error:
            raise RuntimeError(runner.explain(error, notebook, own / NOTEBOOK)) from error
        made = {
            "cell": cell.name,
            "method": cell.method,
            "settings": cell.settings,
            "seed": run.seed,
            "key": key,
            "run_id": f"{folder.name}/{cell.name}/seed {run.seed}",
            **files.read_json(own / "cell.json"),
            "hours": round((time.monotonic() - began) / 3600, 4),
        }
        book.add(made)
        for step in (entry for entry in own.iterdir() if entry.is_dir()):
            shutil.rmtree(step)  # a grid of MiT-B1 checkpoints would be tens of gigabytes
        return made
    finally:
        free.put(place)


def _told(future: Future, n: int, of: int, began: float) -> bool:
    """Print one line on a cell that has ended; whether it went well."""
    left = (time.monotonic() - began) / n * (of - n) / 60
    try:
        made = future.result()
    except RuntimeError as error:
        print(f"{n:>4}/{of}  failed: {error}", file=sys.stderr, flush=True)
        return False
    scores = made["scores"].get("predicted") or made["scores"]["f1"]
    [(name, value)] = [(k, scores[k]) for k in ("miou", "f1") if k in scores]
    print(
        f"{n:>4}/{of}  {made['cell']}, seed {made['seed']}: {name} {np.nan if value is None else value:.3f}, "
        f"{made['hours'] * 3600:.0f} s, about {left:.0f} min left",
        flush=True,
    )
    return True
