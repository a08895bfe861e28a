"""Soak test: a run that is killed again and again, at random moments, ends in the same results.

    .venv/bin/python tests/soak.py --kills 100           # or: make soak

One run of preset smoke, of the notebooks that make its results, goes through undisturbed. Then
runs are killed, by SIGKILL, SIGTERM or SIGINT, to the command, to one of the kernels that it
started, or to its whole group, and resumed until they end. Each must end in the results of the
first, but for times and memory; a killed one must leave no process, no half-written file and no
traceback of the command's own.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from protolib import files

ROOT = Path(__file__).resolve().parent.parent
STORY = "00", "06"  # the second makes whatever the first has left, and writes results.json
SIGNALS = signal.SIGKILL, signal.SIGTERM, signal.SIGINT
TARGETS = "command", "kernel", "group"
PATIENCE = 3600  # s, after which a run is taken for hanging


class End(NamedTuple):
    """How one start of a run ended."""

    status: int
    seconds: float
    said: str
    killed: str  # by what; "" where it came to its end first
    left: list[str]  # commands of the processes that outlived it


def start(notebooks: Path, words: Sequence[str], kill: tuple[float, int, str] | None = None) -> End:
    """Start a run, kill it if asked to: after so many seconds, by a signal, and whom."""
    command = [sys.executable, "-m", "protolib", "run", "--notebooks", str(notebooks), *words]
    began, killed, family = time.monotonic(), "", []
    with tempfile.TemporaryFile("w+") as said:
        job = subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True)
        if kill:
            after, number, target = kill
            try:
                job.wait(after)
            except subprocess.TimeoutExpired:
                own = psutil.Process(job.pid)
                family = own.children(recursive=True)
                whom = random.choice(family).pid if target == "kernel" and family else job.pid
                (os.killpg if target == "group" else os.kill)(whom, number)
                killed = f"{signal.Signals(number).name} to the {target} after {after:.1f} s"
        try:
            status = job.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(job.pid, signal.SIGKILL)
            status, killed = job.wait(), ""
        _, alive = psutil.wait_procs(family, 30)
        said.seek(0)
        left = [f"{p.pid} {command_of(p)}" for p in alive]
        return End(status, time.monotonic() - began, said.read(), killed, left)


def command_of(process: psutil.Process) -> str:
    """The end of its command; what became of it where it is gone."""
    try:
        return " ".join(process.cmdline()[-2:])
    except psutil.Error as error:
        return str(error)


def outcome(run_dir: Path) -> dict:
    """What a run is compared by: its results without times and memory."""
    found = files.read_json(run_dir / "results.json")
    return {key: value for key, value in found.items() if key not in ("seconds", "peak_rss_mb")}


def litter(run_dir: Path) -> list[str]:
    """Files that a killed run began and nobody removed."""
    marks = (".part", ".making-")
    return sorted(p.name for p in run_dir.rglob(".*") if any(mark in p.name for mark in marks))


def soak(kills: int, seed: int, folder: Path) -> int:
    """Kill so many times; returns the number of faults."""
    rng, faults, done, ends = random.Random(seed), 0, 0, 0
    random.seed(seed)
    story = folder / "notebooks"
    story.mkdir()
    for path in [path for name in STORY for path in (ROOT / "notebooks").glob(f"{name}_*.ipynb")]:
        shutil.copy(path, story)
    first = start(story, ["--preset", "smoke", "--run-dir", str(folder / "first")])
    if first.status:
        print(first.said)
        return 1
    wanted = outcome(folder / "first")
    print(f"undisturbed: {first.seconds:.0f} s", flush=True)
    while done < kills:
        run_dir, ended = folder / f"run{ends}", False
        words = ["--preset", "smoke", "--run-dir", str(run_dir)]
        while not ended:
            kill = rng.uniform(0, first.seconds / 2), rng.choice(SIGNALS), rng.choice(TARGETS)
            end = start(story, words, kill if done < kills else None)
            done, ended = done + bool(end.killed), end.status == 0
            if (run_dir / "run.json").is_file():
                words = ["--resume", str(run_dir)]
            wrong = []
            if end.left:
                wrong.append(f"processes {end.left} are left")
            if "Traceback" in end.said:
                wrong.append(f"a traceback: {end.said[-1500:]}")
            if not end.killed and not ended:
                wrong.append(f"it failed by itself: {end.said[-1500:]}")
            if ended and outcome(run_dir) != wanted:
                wrong.append("its results are others")
            if end.killed:
                print(f"{done} of {kills}: {end.killed}, status {end.status}", flush=True)
            if wrong:
                faults += len(wrong)
                print("  " + "\n  ".join(wrong), flush=True)
            if not end.killed and not ended:
                return faults
        ends += 1
        left = litter(run_dir)
        faults += len(left)
        print(f"run {ends} ended: {len(left)} half-written files {left[:3]}", flush=True)
    print(f"{done} kills, {ends} runs ended in the results of the first, {faults} faults")
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return min(soak(given.kills, given.seed, Path(folder)), 1)


if __name__ == "__main__":
    raise SystemExit(main())
