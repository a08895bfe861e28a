"""results/<data>-<preset>.json, the one truth about a grid, and how the runs of several processes
and machines come into it. No torch here: the report merges too."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from protolib import files

RECORD = "record.json"  # what a run leaves in its own folder: its numbers and where they come from

Where = tuple[str, str, int]  # a run's place in the grid: experiment, fold, seed


def own_folder(where: Where) -> str:
    """The folder of a run below that of its grid, which is also its name."""
    experiment, fold, seed = where
    return "/".join(filter(None, (experiment, fold, f"seed {seed}")))


def newest(runs: Iterable[dict]) -> dict[Where, dict]:
    """The runs that a results file holds of those given, one a place: the newest, and of each
    experiment only what has the settings, code and weights of its newest, for a mean must not mix
    two.

    The order of runs of different times plays no part and a run may come twice, so files of several
    machines may be merged at any time, by anyone, again.
    """
    ordered = sorted(runs, key=lambda run: run.get("ended", ""))  # files of old have no times
    base = {run["run"]: run["base"] for run in ordered}
    return {
        (run["run"], run["fold"], run["seed"]): run
        for run in ordered
        if run["base"] == base[run["run"]]
    }


def record_in(own: Path, key: str) -> dict:
    """The record that a run of this key has left in its folder; empty if none."""
    found = files.read_json(own / RECORD, {}) if (own / RECORD).exists() else {}
    return found if found.get("key") == key else {}


def read(file: Path, folds: Sequence[str]) -> dict[str, Any]:
    """A results file as it stands, empty where there is none; raises ValueError for one that runs
    of these folds may not join."""
    if not file.exists():
        return {}
    old = files.read_json(file, {"folds": list, "runs": list})
    if sorted(old["folds"]) != sorted(folds):
        raise ValueError(
            f"{file.name} holds the folds {old['folds']}, these are {folds}: a mean must not "
            "mix them; give the same folders, or move the file away"
        )
    if "made_by" in old:
        raise ValueError(
            f"{file.name} was made by commit {old['made_by']}: a table must not mix its runs with "
            "today's; move the file away"
        )
    return old


class Book:
    """results/<data>-<preset>.json: numbers and where they come from, one line a run, whole at
    every moment."""

    def __init__(self, file: Path, head: Mapping[str, Any]):
        old = read(file, head["folds"])
        self.file, self.runs = file, newest(old.get("runs", []))
        self.head = dict(head) | {"not_run": old.get("not_run", {}) | head.get("not_run", {})}

    def has(self, where: Where, key: str) -> bool:
        """Whether the scores of this run are there, made from the same settings, data and code."""
        return self.runs.get(where, {}).get("key") == key

    def add(self, *made: dict) -> None:
        """Take in runs and write the file."""
        self.runs = newest([*self.runs.values(), *made])
        self.write()

    def take(self, folder: Path, asked: Mapping[Where, str]) -> int:
        """Take in what runs have left in the folder of their grid, and say how many they were.

        asked: the key that each run must have.
        """
        missing = {where: key for where, key in asked.items() if not self.has(where, key)}
        left = [record_in(folder / own_folder(where), key) for where, key in missing.items()]
        made = [record for record in left if record]
        if made:
            self.add(*made)
        return len(made)

    def write(self) -> None:
        """Write all that is known, runs in the order of their names."""
        ordered = [self.runs[where] for where in sorted(self.runs)]
        files.write_json(self.file, self.head | {"runs": ordered}, lines="runs")


def note_shard(file: Path, head: Mapping[str, Any], asked: Mapping[Where, str]) -> None:
    """Leave what a shard of a grid was asked for: its runs join the results later, see gather."""
    listed = [[*where, key] for where, key in asked.items()]
    files.write_json(file, {"head": head, "asked": listed}, lines="asked")


def gather(grids: Path, results: Path) -> dict[str, tuple[int, int]]:
    """Take what shards have made into the results; a shard whose runs are all there is done with.

    grids: runs/ablations. Returns for each results file that shards are not done with, or that has
    got runs: how many it got, and how many are still missing.
    """
    told: dict[str, tuple[int, int]] = {}
    for file in sorted(grids.glob("*/shard-*.json")):
        shard = files.read_json(file, {"head": dict, "asked": list})
        asked = {(run, fold, seed): key for run, fold, seed, key in shard["asked"]}
        book = Book(results / f"{file.parent.name}.json", shard["head"])
        got = book.take(file.parent, asked)
        missing = sum(not book.has(where, key) for where, key in asked.items())
        if not missing:
            file.unlink()
        if got or missing:
            before = told.get(book.file.name, (0, 0))
            told[book.file.name] = before[0] + got, before[1] + missing
    return told
