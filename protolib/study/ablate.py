"""Runs the grid of the paper's tables, one notebook a run, as many at a time as the machine has
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
from dataclasses import fields
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np
import papermill
import psutil
import torch
from filelock import FileLock, Timeout

from protolib import bank, files, presets
from protolib.data import specs
from protolib.experiment import Run
from protolib.study import grid, runner

NOTEBOOK = "one_run.ipynb"
MADE = "made.json"  # what that notebook leaves
# the fields of a preset that say what data is asked for
DATA = ("size", "patches", *(f.name for f in fields(presets.Preset) if f.name.startswith("drawn_")))
MEMORY = 3e9  # bytes that one run may take on a CPU


class Plan(NamedTuple):
    """What is asked for: tables of grid.toml, for a preset on a data set, over folds and seeds."""

    tables: Sequence[str]
    preset: str
    dataset: str
    roots: Sequence[str]  # a data folder for each fold; one empty text for the phantom
    seeds: Sequence[int]


class Task(NamedTuple):
    """One run that is still to be made."""

    experiment: grid.Experiment
    run: Run
    fold: str
    key: str
    base: str


def run(notebooks: Path, plan: Plan, device: str = "auto", jobs: int = 0) -> int:
    """Make every run of a plan that results/<data>-<preset>.json does not hold yet.

    notebooks: the folder of one_run.ipynb; runs/ and results/ stand beside it. jobs: runs at a
    time, 0: one per GPU, or per CPU core and 3 GB of free memory. A run that is done is in the file
    before the next one begins, so a grid that was stopped goes on where it was. On a CPU each run
    has one thread: the scores do not depend on the machine's load. Returns the exit status: 0 done,
    1 a run failed, 130 interrupted. Raises ValueError before any work for what cannot be.
    """
    if jobs < 0:
        raise ValueError(f"--jobs {jobs}: give 0 (as many as there is room for) or more")
    p = presets.preset(plan.preset)
    for root in plan.roots:
        if plan.dataset != "phantom":
            specs.check_layout(specs.spec_of(plan.dataset, root), root)
    home = notebooks.parent / "runs" / "ablations"
    folds = fold_names(plan.roots)
    opened = {
        (fold, seed): Run(p, plan.dataset, root, home, seed, device, home / "cache")
        for fold, root in zip(folds, plan.roots)
        for seed in plan.seeds
    }
    check_classes(opened)
    label, official = pooled_name(list(opened.values()), plan.roots)
    stem = re.sub(r"[^\w.-]+", "-", f"{label}-{plan.preset}")
    folder, file = home / stem, notebooks.parent / "results" / f"{stem}.json"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            book = Results(file, opened, label, official)
            todo = _todo(book, plan.tables, opened)
            devices = _devices(next(iter(opened.values())).device, jobs)
            return _execute(book, notebooks / NOTEBOOK, folder, todo, devices)
    except Timeout:
        raise ValueError(
            f"another command is at work on {stem}: wait for it, or stop it; this one would go on "
            "after it"
        ) from None


def fold_names(roots: Sequence[str]) -> list[str]:
    """What the folds are called in the results: their folders' names, "" where there is one.

    Raises ValueError for two folders of one name.
    """
    if len(roots) == 1:
        return [""]
    names = [Path(root).resolve().name for root in roots]
    if len(set(names)) < len(names):
        raise ValueError(f"folds need folders of different names, these are {', '.join(names)}")
    return names


def check_classes(opened: dict[tuple[str, int], Run]) -> None:
    """Raises ValueError for folds of different classes: their slides could not be pooled."""
    found = {fold: run.spec.classes for (fold, _), run in opened.items()}
    if len(set(found.values())) > 1:
        said = "; ".join(f"{fold}: {', '.join(names)}" for fold, names in found.items())
        raise ValueError(f"folds need the same classes in the same order, these have {said}")


def pooled_name(opened: Sequence[Run], roots: Sequence[str]) -> tuple[str, bool]:
    """What the data is called in the results, and whether it is a published set in full: folds
    share what their folders' names begin with."""
    if len(roots) == 1:
        return grid.named(opened[0])
    common = os.path.commonprefix([Path(root).resolve().name for root in roots])
    return re.sub(r"[\W_\d]+$", "", common) or Path(roots[0]).resolve().parent.name, False


class Results:
    """results/<data>-<preset>.json: numbers and where they come from, one line a run, whole at
    every moment."""

    def __init__(self, file: Path, opened: dict[tuple[str, int], Run], label: str, official: bool):
        old = files.read_json(file) if file.exists() else {}
        one, folds = next(iter(opened.values())), list(dict.fromkeys(fold for fold, _ in opened))
        if old:
            _check_book(file.name, old, folds)
        self.file, self.lock = file, Lock()
        self.runs = {(r["run"], r["fold"], r["seed"]): r for r in old.get("runs", [])}
        self.head = {
            "label": label,
            "official": official,
            "dataset": one.dataset,
            "preset": one.preset.name,
            "size": one.preset.size,
            "epochs": one.preset.epochs,
            "classes": one.spec.classes,
            "folds": folds,
            "patches": {
                fold: {split: len(run.data(split)) for split in specs.SPLITS}
                for (fold, _), run in opened.items()
            },
            "not_run": old.get("not_run", {}),
            "tables": {
                table: {row: experiment.name for row, experiment in rows.items()}
                for table, rows in grid.tables(one.preset).items()
            },
        }

    def has(self, task: Task) -> bool:
        """Whether the scores of this run are there, made from the same settings, data and code."""
        place = task.experiment.name, task.fold, task.run.seed
        return self.runs.get(place, {}).get("key") == task.key

    def add(self, made: dict) -> None:
        """Take in a run and write the file; runs of the same experiment that were made with other
        settings, code or weights go: a mean must not mix the two."""
        with self.lock:
            others = [
                place
                for place, run in self.runs.items()
                if run["run"] == made["run"] and run["base"] != made["base"]
            ]
            for place in others:
                del self.runs[place]
            self.runs[made["run"], made["fold"], made["seed"]] = made
            self.write()

    def write(self) -> None:
        """Write all that is known, runs in the order of their names."""
        self.file.parent.mkdir(exist_ok=True)
        ordered = [self.runs[place] for place in sorted(self.runs)]
        files.write_json(self.file, self.head | {"runs": ordered}, lines="runs")


def _check_book(file: str, old: dict, folds: Sequence[str]) -> None:
    """Refuse a result file that new runs may not join."""
    files.expect(file, old, {"folds": list, "runs": list})
    if sorted(old["folds"]) != sorted(folds):
        raise ValueError(
            f"{file} holds the folds {old['folds']}, these are {folds}: a mean must not "
            "mix them; give the same folders, or move the file away"
        )
    if "made_by" in old:
        raise ValueError(
            f"{file} was made by commit {old['made_by']}: a table must not mix its runs with "
            "today's; move the file away"
        )


def _todo(book: Results, tables: Sequence[str], opened: dict[tuple[str, int], Run]) -> list[Task]:
    """What is still to be run; what cannot be is noted with its reason."""
    p = next(iter(opened.values())).preset
    made_of = grid.tables(p)
    wanted = {e.name: e for name in tables for e in made_of[name].values()}
    reasons = _refusals(p, wanted, list(opened.values()))
    not_run = {name: why for name, why in reasons.items() if why}
    kept = {name: why for name, why in book.head["not_run"].items() if name not in wanted}
    book.head["not_run"] = kept | not_run
    _tell_refusals(not_run)
    tasks = [
        Task(experiment, run, fold, *grid.identity(run, experiment))
        for (fold, _), run in opened.items()
        for name, experiment in wanted.items()
        if name not in not_run
    ]
    todo = [task for task in tasks if not book.has(task)]
    print(f"{len(tasks)} runs, {len(tasks) - len(todo)} done before", flush=True)
    book.write()
    return todo


def _refusals(
    p: presets.Preset, wanted: dict[str, grid.Experiment], opened: Sequence[Run]
) -> dict[str, str]:
    """Why each experiment cannot run, "" where it can: what its bank could stand on is counted on
    the data that it asks for."""
    pure: dict[str, dict[str, int]] = {}
    reasons = {}
    for name, experiment in wanted.items():
        data = {f: v for f, v in experiment.settings.items() if f in DATA}
        if opened[0].dataset != "phantom" and data.keys() - {"size"}:
            reasons[name] = "these dials are of the phantom, which is drawn; other data is as it is"
            continue
        if str(data) not in pure:
            own = presets.changed(p, data)
            runs = [run.variant(own, run.folder) for run in opened] if data else opened
            pure[str(data)] = _fewest_pure(own, runs)
        reasons[name] = grid.refusal(p, experiment, pure[str(data)])
    return reasons


def _fewest_pure(p: presets.Preset, opened: Sequence[Run]) -> dict[str, int]:
    """How many training patches of each class a bank could stand on, in the run that has fewest."""
    splits = {train.fingerprint: train for train in (run.data("train") for run in opened)}
    owners = [
        bank.candidates(train, 1, p.white_limit, p.single_class)[1] for train in splits.values()
    ]
    classes = opened[0].spec.classes
    return {name: min(int((o == c).sum()) for o in owners) for c, name in enumerate(classes)}


def _tell_refusals(not_run: dict[str, str]) -> None:
    """The five most common reasons; the report tells each."""
    reasons = Counter(not_run.values()).most_common()
    for why, count in reasons[:5]:
        print(f"not run, {count} experiment{'s' * (count > 1)}: {why}", flush=True)
    if rest := sum(count for _, count in reasons[5:]):
        print(f"not run, {rest} more: python -m protolib report tells each", flush=True)


def _execute(
    book: Results, notebook: Path, folder: Path, todo: list[Task], devices: list[str]
) -> int:
    free, began, failed = queue.SimpleQueue(), time.monotonic(), 0
    for place in devices:
        free.put(place)
    runner.use_own_kernel()
    if devices[0] == "cpu":
        os.environ["OMP_NUM_THREADS"] = "1"  # of the kernels to come
        print(f"{len(devices)} at a time, 1 thread each", flush=True)
    with ThreadPoolExecutor(len(devices)) as pool:
        futures = [pool.submit(_one, book, notebook, folder, free, task) for task in todo]
        try:
            for n, future in enumerate(as_completed(futures), start=1):
                failed += not _told(future, n, len(todo), began)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for kernel in psutil.Process().children():
                kernel.kill()  # its thread ends with it; what it made so far stays in its folder
            print(
                "\ninterrupted; the same command goes on. "
                f"Finished runs: {runner.short(book.file)}",
                file=sys.stderr,
            )
            return 130
    print(f"results: {runner.short(book.file)}\ntables: python -m protolib report", flush=True)
    return 1 if failed else 0


def _devices(device: str, jobs: int) -> list[str]:
    """One entry for each run that goes on at a time; "cuda" stands for all GPUs in turn."""
    if device == "cuda":
        gpus = torch.cuda.device_count()
        return [f"cuda:{i % gpus}" for i in range(jobs or gpus)]
    if device != "cpu":
        return [device] * (jobs or 1)
    room = int(psutil.virtual_memory().available // MEMORY)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return ["cpu"] * (jobs or max(1, min(cores or 1, room)))


def _one(book: Results, notebook: Path, folder: Path, free: queue.SimpleQueue, task: Task) -> dict:
    """Make one run in its folder, then keep its numbers and its notebook and drop the rest."""
    place, run, began = free.get(), task.run, time.monotonic()
    name = "/".join(filter(None, (task.experiment.name, task.fold, f"seed {run.seed}")))
    own = folder / name
    try:
        own.mkdir(parents=True, exist_ok=True)
        parameters = {
            "preset": run.preset.name,
            "dataset": run.dataset,
            "data_root": run.data_root,
            "run_dir": str(own),
            "seed": run.seed,
            "device": place,
            "method": task.experiment.method,
            "settings": task.experiment.settings,
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
            "run": task.experiment.name,
            "method": task.experiment.method,
            "settings": task.experiment.settings,
            "seed": run.seed,
            "fold": task.fold,
            "key": task.key,
            "base": task.base,
            "run_id": f"{folder.name}/{name}",
            # key and base as the kernel had them: code or data may be others since we were started
            **files.read_json(own / MADE),
            "hours": round((time.monotonic() - began) / 3600, 4),
        }
        book.add(made)
        for step in (entry for entry in own.iterdir() if entry.is_dir()):
            shutil.rmtree(step)  # a grid of MiT-B1 checkpoints would be tens of gigabytes
        return made
    finally:
        free.put(place)


def _told(future: Future, n: int, of: int, began: float) -> bool:
    """Print one line on a run that has ended; whether it went well."""
    left = (time.monotonic() - began) / n * (of - n) / 60
    try:
        made = future.result()
    except (RuntimeError, OSError) as error:  # its notebook failed, or its files could not be kept
        print(f"{n:>4}/{of}  failed: {error}", file=sys.stderr, flush=True)
        return False
    scores = made["scores"].get("predicted") or made["scores"]["f1"]
    name = "miou" if "miou" in scores else "f1"
    value = np.nan if scores[name] is None else scores[name]
    print(
        f"{n:>4}/{of}  {made['run_id'].partition('/')[2]}: {name} {value:.3f}, "
        f"{made['hours'] * 3600:.0f} s, about {left:.0f} min left",
        flush=True,
    )
    return True
