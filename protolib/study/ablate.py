"""Runs the grid of the paper's tables, one notebook a run: as many at a time as this machine has
room for, on a cluster, or a shard of it."""

import os
import queue
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import papermill
import psutil
import torch
from filelock import FileLock, Timeout

from protolib import bank, files, presets
from protolib.data import specs
from protolib.experiment import Run
from protolib.study import cluster, grid, kernels, runner
from protolib.study.book import RECORD, Book, Where, note_shard, own_folder, read, record_in
from protolib.study.recheck import chosen, differing, take_over

NOTEBOOK = "one_run.ipynb"
MADE = "made.json"  # what that notebook leaves
WHOLE = (1, 1)  # a grid in one shard
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
    """One run of the grid, and what identifies its scores."""

    experiment: grid.Experiment
    run: Run
    fold: str
    key: str
    base: str

    @property
    def where(self) -> Where:
        """Its place in the grid."""
        return self.experiment.name, self.fold, self.run.seed


class Job(NamedTuple):
    """A task as any process or machine can do it: paths, texts and numbers alone."""

    notebook: Path
    own: Path  # the run's folder
    parameters: dict[str, Any]  # of the notebook, but for the device
    says: dict[str, Any]  # what its record begins with


def run(
    notebooks: Path,
    plan: Plan,
    device: str = "auto",
    jobs: int = 0,
    on: str = "",
    shard: tuple[int, int] = WHOLE,
    recheck: bool = False,
) -> int:
    """Make every run of a plan that results/<data>-<preset>.json does not hold yet.

    notebooks: the folder of one_run.ipynb; runs/ and results/ stand beside it. jobs: runs at a
    time, 0: one per GPU, or per CPU core and 3 GB of free memory. on: "" for this machine, or a
    cluster, see cluster.check. shard: (3, 16) makes every 16th run, from the third on, and leaves
    results/ alone: `report` takes its runs in, or the next command for the whole. A run that is
    done has its record in a file of its own, so a grid that was stopped goes on where it was.
    recheck: make only one run of each experiment that the code has outdated; where all are equal,
    the others stay, see recheck.py. On a CPU each run has one thread: the scores do not depend on
    the machine's load. Returns the exit status: 0 done, 1 a run failed, 130 interrupted. Raises
    ValueError before any work for what cannot be.
    """
    if jobs < 0:
        raise ValueError(f"--jobs {jobs}: give 0 (as many as there is room for) or more")
    if on:
        cluster.check(on, device, jobs)
    p = presets.preset(plan.preset)
    for root in plan.roots:
        if plan.dataset != "phantom":
            specs.check_layout(specs.spec_of(plan.dataset, root), root)
    home = notebooks.parent / "runs" / "ablations"
    folds = fold_names(plan.roots)
    here = "cpu" if cluster.elsewhere(on) else device  # which need not have the device
    opened = {
        (fold, seed): Run(p, plan.dataset, root, home, seed, here, home / "cache")
        for fold, root in zip(folds, plan.roots)
        for seed in plan.seeds
    }
    check_classes(opened)
    label, official = pooled_name(list(opened.values()), plan.roots)
    stem = re.sub(r"[^\w.-]+", "-", f"{label}-{plan.preset}")
    folder, file = home / stem, notebooks.parent / "results" / f"{stem}.json"
    folder.mkdir(parents=True, exist_ok=True)
    # a scheduler gives no run to two workers, so a cluster needs no lock
    with nullcontext() if on else _alone(folder, shard):
        read(file, folds)  # refused before data is decoded
        book = Book(file, head_of(opened, label, official))
        tasks = _tasks(book, plan.tables, opened, shard)
        asked = {task.where: task.key for task in tasks}
        today = {task.where: (task.key, task.base) for task in tasks}
        if recheck:
            again = chosen(asked, book)
            tasks = [task for task in tasks if task.where in again]
        elif shard == WHOLE:
            book.write()
            book.take(folder, asked)
        else:
            note_shard(folder / f"{_shard_name(shard)}.json", book.head, asked)
        todo = [
            _job(notebooks / NOTEBOOK, folder, task)
            for task in tasks
            if not book.has(task.where, task.key)
            and not record_in(folder / own_folder(task.where), task.key)
        ]
        print(f"{len(tasks)} runs, {len(tasks) - len(todo)} done before", flush=True)
        found = device if cluster.elsewhere(on) else next(iter(opened.values())).device
        hands = _cluster(on, found, jobs) if on else _threads(_devices(found, jobs))
        keep = book.add if shard == WHOLE and not recheck else None
        status = _execute(todo, hands, keep)
        if status == 130:
            return status
        if recheck:
            made = [record_in(folder / own_folder(task.where), task.key) for task in tasks]
            return status or _settle(today, made, book)
        if shard == WHOLE:
            print(f"results: {runner.short(file)}\ntables: python -m protolib report", flush=True)
        else:
            print(f"runs: {runner.short(folder)}\nmerged by: python -m protolib report", flush=True)
        return status


def _settle(today: dict[Where, tuple[str, str]], made: list[dict], book: Book) -> int:
    """Take the outdated runs over where those that were made again are equal; the exit status."""
    if not made:
        print("nothing to check: no run in the file is outdated", flush=True)
        return 0
    if differ := differing(made, book):
        print(
            "\n".join(["these differ, so every run is to be made again:", *differ]), file=sys.stderr
        )
        return 1
    print(f"{take_over(today, made, book)} outdated runs made again, all equal: the others stay")
    return 0


def _shard_name(shard: tuple[int, int]) -> str:
    return f"shard-{shard[0]}-of-{shard[1]}"


@contextmanager
def _alone(folder: Path, shard: tuple[int, int]) -> Iterator[None]:
    """See to it that no other command makes the same runs: each shard is made by one, and the whole
    by one while no shard is made. Raises ValueError where another is at work."""
    whole = folder / ".lock"
    own = whole if shard == WHOLE else folder / f".{_shard_name(shard)}.lock"
    others = folder.glob(".shard-*.lock") if shard == WHOLE else [whole]
    lock = FileLock(own)
    try:
        lock.acquire(timeout=0)
        for other in others:  # shards that begin at once look at the same one: each in its turn
            with FileLock(other, timeout=5):
                pass
    except Timeout:
        lock.release()
        raise ValueError(
            f"another command is at work on {folder.name}: wait for it, or stop it; this one would "
            "go on after it"
        ) from None
    try:
        yield
    finally:
        lock.release()


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


def head_of(opened: dict[tuple[str, int], Run], label: str, official: bool) -> dict[str, Any]:
    """What a results file says of all its runs."""
    one = next(iter(opened.values()))
    return {
        "label": label,
        "official": official,
        "dataset": one.dataset,
        "preset": one.preset.name,
        "size": one.preset.size,
        "epochs": one.preset.epochs,
        "classes": one.spec.classes,
        "folds": list(dict.fromkeys(fold for fold, _ in opened)),
        "patches": {
            fold: {split: len(run.data(split)) for split in specs.SPLITS}
            for (fold, _), run in opened.items()
        },
        "not_run": {},
        "tables": {
            table: {row: experiment.name for row, experiment in rows.items()}
            for table, rows in grid.tables(one.preset).items()
        },
    }


def _tasks(
    book: Book, tables: Sequence[str], opened: dict[tuple[str, int], Run], shard: tuple[int, int]
) -> list[Task]:
    """The runs of a shard of what is asked for; what cannot be made is noted with its reason."""
    p = next(iter(opened.values())).preset
    made_of = grid.tables(p)
    wanted = {e.name: e for name in tables for e in made_of[name].values()}
    reasons = _refusals(p, wanted, list(opened.values()))
    not_run = {name: why for name, why in reasons.items() if why}
    kept = {name: why for name, why in book.head["not_run"].items() if name not in wanted}
    book.head["not_run"] = kept | not_run
    _tell_refusals(not_run)
    # cut before refusals are left out: those of another machine may be others
    places = [(place, name) for place in opened for name in wanted][shard[0] - 1 :: shard[1]]
    return [
        Task(wanted[name], opened[place], place[0], *grid.identity(opened[place], wanted[name]))
        for place, name in places
        if name not in not_run
    ]


def _refusals(
    p: presets.Preset, wanted: dict[str, grid.Experiment], opened: Sequence[Run]
) -> dict[str, str]:
    """Why each experiment cannot run, "" where it can: what its bank could stand on is counted on
    the data that it asks for."""
    pure: dict[str, dict[str, int] | str] = {}  # or why nothing could be counted
    reasons = {}
    for name, experiment in wanted.items():
        data = {f: v for f, v in experiment.settings.items() if f in DATA}
        if opened[0].dataset != "phantom" and data.keys() - {"size"}:
            reasons[name] = "these dials are of the phantom, which is drawn; other data is as it is"
            continue
        if str(data) not in pure:
            own = presets.changed(p, data)
            runs = [run.variant(own, run.folder) for run in opened] if data else opened
            try:
                pure[str(data)] = _fewest_pure(own, runs)
            except ValueError as error:  # a class without any pure patch
                if not data:  # of what was asked for, not of one row
                    raise
                pure[str(data)] = str(error)
        counted = pure[str(data)]
        if isinstance(counted, str):
            reasons[name] = counted
        else:
            reasons[name] = grid.refusal(p, experiment, counted)
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
    todo: Sequence[Job],
    hands: AbstractContextManager[Callable[[Job], Future]],
    keep: Callable[[dict], None] | None,
) -> int:
    """Make the runs and keep each that is done; returns the exit status."""
    failed = 0
    with hands as submit:
        began, futures = time.monotonic(), [submit(job) for job in todo]
        try:
            for n, future in enumerate(as_completed(futures), start=1):
                failed += not _told(future, keep, n, len(todo), began)
        except KeyboardInterrupt:
            for future in futures:
                future.cancel()
            for process in psutil.Process().children(recursive=True):
                process.kill()  # what it made so far stays in its folder
            print("\ninterrupted; the same command goes on", file=sys.stderr)
            return 130
    return 1 if failed else 0


@contextmanager
def _threads(devices: Sequence[str]) -> Iterator[Callable[[Job], Future]]:
    """What makes jobs on this machine, each on one of these devices."""
    free = queue.SimpleQueue()
    for place in devices:
        free.put(place)
    if devices[0] == "cpu":
        print(f"{len(devices)} at a time, 1 thread each", flush=True)

    def work(job: Job) -> dict:
        place = free.get()
        try:
            return _one(job, place)
        finally:
            free.put(place)

    with ThreadPoolExecutor(len(devices)) as pool:
        yield lambda job: pool.submit(work, job)


@contextmanager
def _cluster(on: str, device: str, jobs: int) -> Iterator[Callable[[Job], Future]]:
    """What makes jobs on a cluster; a job of the same key that another command has sent there is
    waited for, not made again."""
    places = [] if cluster.elsewhere(on) else _devices(device, jobs)
    one = "cuda" if device.startswith("cuda") and places else device  # a worker sees its own alone
    with cluster.executor(on, device, jobs, places) as pool:
        yield lambda job: pool.submit(
            _one, job, one, key=f"{job.says['run_id']}-{job.says['key']}", pure=False
        )


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


def _job(notebook: Path, folder: Path, task: Task) -> Job:
    """A task in plain words."""
    run, name = task.run, own_folder(task.where)
    parameters = {
        "preset": run.preset.name,
        "dataset": run.dataset,
        "data_root": run.data_root,
        "run_dir": str(folder / name),
        "seed": run.seed,
        "method": task.experiment.method,
        "settings": task.experiment.settings,
        "cache": str(run.cache),
    }
    says = {
        "run": task.experiment.name,
        "method": task.experiment.method,
        "settings": task.experiment.settings,
        "seed": run.seed,
        "fold": task.fold,
        "key": task.key,
        "base": task.base,
        "run_id": f"{folder.name}/{name}",
    }
    return Job(notebook, folder / name, parameters, says)


def _one(job: Job, device: str) -> dict:
    """Make one run in its folder, then keep its record and its notebook and drop the rest.

    Called in a thread of the command or in a worker of a cluster, on whatever machine. A run whose
    record is there is not made again: Dask asks anew for what a lost worker had made.
    """
    began, own = time.monotonic(), job.own
    if found := record_in(own, job.says["key"]):
        return found
    own.mkdir(parents=True, exist_ok=True)
    runner.use_own_kernel()
    if device == "cpu":
        os.environ["OMP_NUM_THREADS"] = "1"  # of the kernel to come
    try:
        papermill.execute_notebook(
            runner.braced(job.notebook),
            runner.braced(own / NOTEBOOK),
            job.parameters | {"device": device},
            kernel_name="python3",
            progress_bar=False,
            config=runner.KERNEL,
            kernel_manager_class=kernels.Manager,
            shutdown_kernel="immediate",
        )
    except Exception as error:
        raise RuntimeError(runner.explain(error, job.notebook, own / NOTEBOOK)) from error
    made = {
        **job.says,
        # key and base as the kernel had them: code or data may be others since we were started
        **files.read_json(own / MADE, {}),
        "hours": round((time.monotonic() - began) / 3600, 4),
        "ended": datetime.now(UTC).isoformat(timespec="milliseconds"),
    }
    files.write_json(own / RECORD, made)
    (own / MADE).unlink()
    for step in (entry for entry in own.iterdir() if entry.is_dir()):
        shutil.rmtree(step)  # a grid of MiT-B1 checkpoints would be tens of gigabytes
    return made


def _told(
    future: Future, keep: Callable[[dict], None] | None, n: int, of: int, began: float
) -> bool:
    """Keep a run that has ended and print one line on it; whether it went well."""
    left = (time.monotonic() - began) / n * (of - n) / 60
    try:
        made = future.result()
        if keep:
            keep(made)
    except Exception as error:  # of its notebook, its files, its worker, the cluster
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
