"""The results of a grid: what is kept of runs that several processes and machines made, in any
order."""

from itertools import permutations

import pytest

from protolib import files
from protolib.study import book
from protolib.study.book import Book


def head(*folds: str) -> dict:
    return {"label": "x", "folds": list(folds or ("",))}


def made(name: str, seed: int = 0, fold: str = "", base: str = "b", ended: str = "") -> dict:
    key = f"{base} {fold} {seed}"
    own = {"run": name, "seed": seed, "fold": fold, "base": base, "key": key}
    return own | ({"ended": ended} if ended else {})


def leave(folder, run: dict) -> None:
    own = book.own_folder((run["run"], run["fold"], run["seed"]))
    files.write_json(folder / own / book.RECORD, run)


def test_runs_of_another_base_go_when_a_new_one_comes(tmp_path):
    results = Book(tmp_path / "x.json", head("one", "two"))
    for fold in ("one", "two"):
        for seed in (0, 1):
            results.add(made("cam", seed, fold))
            results.add(made("pbip_stage1", seed, fold))
    results.add(made("cam", 1, "two", base="new"))
    kept = files.read_json(results.file)["runs"]
    places = [(r["run"], r["fold"], r["seed"], r["base"]) for r in kept]
    assert places == [
        ("cam", "two", 1, "new"),
        *(("pbip_stage1", fold, seed, "b") for fold in ("one", "two") for seed in (0, 1)),
    ]
    # read again as it was written
    assert Book(results.file, head("one", "two")).runs == results.runs


def test_the_order_in_which_machines_are_merged_plays_no_part():
    runs = [
        made("cam", 0, base="old", ended="2026-01-01T10:00"),
        made("cam", 1, base="old", ended="2026-01-01T12:00"),
        made("cam", 0, base="new", ended="2026-01-01T11:00"),
        made("cam", 2, base="new", ended="2026-01-01T13:00"),
        made("pbip_stage1", 0, base="old", ended="2026-01-01T09:00"),
    ]
    wanted = {("cam", "", 0): runs[2], ("cam", "", 2): runs[3], ("pbip_stage1", "", 0): runs[4]}
    for order in permutations(runs):
        assert book.newest(order) == wanted
        # what one has merged, the other merges again
        assert book.newest([*book.newest(order[:3]).values(), *order]) == wanted


def test_a_run_of_old_without_a_time_gives_way():
    old, new = made("cam", base="old"), made("cam", base="new", ended="2026-01-01T10:00")
    assert book.newest([new, old]) == book.newest([old, new]) == {("cam", "", 0): new}


def test_a_record_is_taken_in_once_and_only_under_its_key(tmp_path):
    folder, results = tmp_path / "runs", Book(tmp_path / "x.json", head())
    leave(folder, made("cam", 0))
    leave(folder, made("cam", 1, base="edited"))
    asked = {("cam", "", seed): f"b  {seed}" for seed in (0, 1, 2)}
    assert results.take(folder, asked) == 1 and results.take(folder, asked) == 0
    assert [r["seed"] for r in files.read_json(results.file)["runs"]] == [0]
    assert book.record_in(folder / "cam" / "seed 1", "edited  1")["seed"] == 1
    assert book.record_in(folder / "cam" / "seed 1", "b  1") == {}
    assert book.record_in(folder / "cam" / "seed 2", "b  2") == {}


def test_shards_are_gathered_until_nothing_is_missing(tmp_path):
    grids, results = tmp_path / "ablations", tmp_path / "results"
    assert book.gather(grids, results) == {}  # nothing was ever run
    for part in (0, 1):
        asked = {("cam", "", seed): f"b  {seed}" for seed in (part, part + 2)}
        book.note_shard(grids / "x-lean" / f"shard-{part + 1}-of-2.json", head(), asked)
    for seed in (0, 1, 2):
        leave(grids / "x-lean", made("cam", seed))
    assert book.gather(grids, results) == {"x-lean.json": (3, 1)}
    assert book.gather(grids, results) == {"x-lean.json": (0, 1)}
    assert [f.name for f in grids.rglob("shard-*")] == ["shard-2-of-2.json"]
    leave(grids / "x-lean", made("cam", 3))
    assert book.gather(grids, results) == {"x-lean.json": (1, 0)}
    assert book.gather(grids, results) == {} and not list(grids.rglob("shard-*"))
    assert [r["seed"] for r in files.read_json(results / "x-lean.json")["runs"]] == [0, 1, 2, 3]


def test_a_file_that_is_none_of_todays_is_refused_and_left(tmp_path):
    file = tmp_path / "x-smoke.json"
    cases = [
        ({"label": "x", "cells": []}, "x-smoke.json: missing folds, runs"),
        ({"folds": [""], "runs": [], "made_by": "e6b49dd"}, "was made by commit e6b49dd"),
        ({"folds": ["one", "two"], "runs": []}, r"holds the folds \['one', 'two'\], these are"),
    ]
    for contents, message in cases:
        files.write_json(file, contents)
        before = file.read_bytes()
        with pytest.raises(ValueError, match=message):
            Book(file, head())
        assert file.read_bytes() == before
