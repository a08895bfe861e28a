"""The grid's command on a stub of cell.ipynb: what is run, what is skipped, what is left after
kills, and what the data is called."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import nbformat
import pytest
from filelock import FileLock

from protolib import files, presets
from protolib.__main__ import TABLES, main
from protolib.data import phantom, specs
from protolib.study import ablate, grid

pytestmark = pytest.mark.slow
NAMES = ("preset", "dataset", "data_root", "run_dir", "device", "method", "cache")
PARAMETERS = "\n".join([f"{name} = ''" for name in NAMES] + ["seed = 0", "settings = {}"])
STUB = """
import json, os
from pathlib import Path
own = Path(run_dir)
with open(own / "count.txt", "a") as count: count.write("x")
if settings.get("threshold") == os.environ.get("BREAK", "-"): raise RuntimeError("the disk is full")
(own / "pbip_stage1").mkdir(exist_ok=True)
left = sorted(p.name for p in own.iterdir() if p.is_dir())
(own / "pbip_stage1" / "checkpoint.pt").write_text("large")
value = (len(method) + len(settings) + seed) / 20
(own / "cell.json").write_text(json.dumps({"scores": {"predicted": {"miou": value}}, "seconds": 1.5, "device": device,
                                           "code": os.environ.get("CODE", "a"), "left": left, "threads": int(os.environ["OMP_NUM_THREADS"]), "given": [preset, dataset, method, settings, seed]}))
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project whose cell.ipynb only notes that it was run; three cells in table 5, one of them
    shared by table 2."""
    (tmp_path / "notebooks").mkdir()
    v4 = nbformat.v4
    cells = [
        v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
        v4.new_code_cell(STUB),
    ]
    spec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(
        v4.new_notebook(cells=cells, metadata={"kernelspec": spec}),
        tmp_path / "notebooks" / "cell.ipynb",
    )
    monkeypatch.chdir(tmp_path)
    for name in ("JUPYTER_PATH", "OMP_NUM_THREADS"):  # set by the command: put back after the test
        monkeypatch.setenv(name, os.environ.get(name, ""))
    return tmp_path


def command(*more):
    return [
        "ablate",
        *more,
        "--preset",
        "smoke",
        "--device",
        "cpu",
        "--jobs",
        "2",
        "--notebooks",
        "notebooks",
    ]


def runs_of(project):
    """How often each cell and seed was begun."""
    return {
        f"{p.parent.parent.name}, {p.parent.name}": len(p.read_text())
        for p in project.rglob("count.txt")
    }


def results_of(project):
    return json.loads((project / "results" / "phantom-smoke.json").read_text())


def test_every_cell_is_run_once_for_all_its_tables_and_its_numbers_kept(project, capsys):
    assert main(command("table5", "--seeds", "0,1")) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "6 cells, 0 done before" and out[-2:] == [
        "results: results/phantom-smoke.json",
        "tables: python -m protolib report",
    ]
    assert sorted(line.split()[0] for line in out[1:-2]) == [f"{n}/6" for n in range(1, 7)]
    found = results_of(project)
    assert (found["label"], found["official"], found["patches"]) == (
        "phantom",
        False,
        {"train": 96, "val": 16, "test": 24},
    )
    assert found["tables"]["table5"] == {
        "SIM": "pbip_stage1 threshold=none",
        "AT": "pbip_stage1 similarity=convolution",
        "SIM + AT": "pbip_stage1",
    }
    assert [(c["cell"], c["seed"], c["scores"]["predicted"]["miou"]) for c in found["cells"]] == [
        ("pbip_stage1", 0, 0.55),
        ("pbip_stage1", 1, 0.6),
        ("pbip_stage1 similarity=convolution", 0, 0.6),
        ("pbip_stage1 similarity=convolution", 1, 0.65),
        ("pbip_stage1 threshold=none", 0, 0.6),
        ("pbip_stage1 threshold=none", 1, 0.65),
    ]
    assert found["cells"][-1]["given"] == [
        "smoke",
        "phantom",
        "pbip_stage1",
        {"threshold": "none"},
        1,
    ]
    assert {(c["threads"], c["device"]) for c in found["cells"]} == {(1, "cpu")} and found["cells"][
        0
    ]["hours"] > 0
    own = project / "runs" / "ablations" / "phantom-smoke" / "pbip_stage1" / "seed 0"
    assert sorted(p.name for p in own.iterdir()) == [
        "cell.ipynb",
        "cell.json",
        "count.txt",
    ]  # weights are not kept

    assert main(command("table2", "table5", "--seeds", "0")) == 0
    assert capsys.readouterr().out.startswith("7 cells, 3 done before")
    assert set(runs_of(project).values()) == {1} and len(results_of(project)["cells"]) == 10
    assert (
        len((project / "results" / "phantom-smoke.json").read_text().splitlines()) < 400
    )  # a cell is a line


def test_killed_three_times_it_goes_on_and_runs_no_finished_cell_again(project):
    wanted = [sys.executable, "-m", "protolib", *command("table5", "--seeds", "0,1,2")]
    for finished in (1, 2, 2):  # the n-th line of a finished cell, then SIGKILL
        with subprocess.Popen(wanted, stdout=subprocess.PIPE, text=True) as process:
            lines = (line for line in process.stdout if "miou" in line)
            for _ in range(finished):
                next(lines)
            process.kill()
        before = {(c["cell"], c["seed"]) for c in results_of(project)["cells"]}
    assert len(before) >= 5
    begun = runs_of(project)
    done = subprocess.run(wanted, capture_output=True, text=True)
    assert done.returncode == 0 and f"9 cells, {len(before)} done before" in done.stdout
    assert len(results_of(project)["cells"]) == 9
    after = runs_of(project)
    assert all(
        after[f"{cell}, seed {seed}"] == begun[f"{cell}, seed {seed}"] for cell, seed in before
    )
    assert (
        max(after.values()) <= 4 and sum(after.values()) <= 9 + 3 * 2
    )  # at most the two in flight, each time


def test_an_interrupt_ends_at_once_with_all_that_was_started(project):
    wanted = [sys.executable, "-m", "protolib", *command("table5", "--seeds", "0,1,2")]
    heed = lambda: signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell in the background hands on an ignored one
    with subprocess.Popen(
        wanted, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed
    ) as process:
        next(line for line in process.stdout if "miou" in line)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted; the same command goes on" in err
    assert 1 <= len(results_of(project)["cells"]) < 9


def test_a_cell_that_fails_is_named_and_the_others_go_on(project, monkeypatch, capsys):
    monkeypatch.setenv("BREAK", "none")
    assert main(command("table5", "--seeds", "0")) == 1
    err = capsys.readouterr().err
    assert (
        "failed: cell.ipynb: cell In [3] failed" in err and "RuntimeError: the disk is full" in err
    )
    assert [c["cell"] for c in results_of(project)["cells"]] == [
        "pbip_stage1",
        "pbip_stage1 similarity=convolution",
    ]
    monkeypatch.setenv("BREAK", "no")
    assert main(command("table5", "--seeds", "0")) == 0 and len(results_of(project)["cells"]) == 3


def test_a_cell_of_other_code_is_run_again_and_what_cannot_run_is_noted(
    project, monkeypatch, capsys
):
    assert main(command("table5", "--seeds", "0")) == 0
    monkeypatch.setattr(grid, "CODE", "other")
    monkeypatch.setattr(
        grid, "refusal", lambda p, cell, pure: "too few" if "threshold" in cell.settings else ""
    )
    assert main(command("table5", "--seeds", "0")) == 0
    assert "not run, 1 cell: too few\n2 cells, 0 done before" in capsys.readouterr().out
    assert runs_of(project) == {
        "pbip_stage1, seed 0": 2,
        "pbip_stage1 similarity=convolution, seed 0": 2,
        "pbip_stage1 threshold=none, seed 0": 1,
    }
    assert results_of(project)["not_run"] == {"pbip_stage1 threshold=none": "too few"}
    assert (
        main(command("table4", "--seeds", "0")) == 0
    )  # another table: what is known of this one stays
    assert results_of(project)["not_run"] == {"pbip_stage1 threshold=none": "too few"}


def test_a_cell_that_was_killed_keeps_its_training_but_builds_its_bank_again(project):
    own = project / "runs" / "ablations" / "phantom-smoke" / "pbip_stage1" / "seed 0"
    for step in ("bank", "prototypes"):  # left by a kill
        (own / step).mkdir(parents=True)
    assert main(command("table5", "--seeds", "0")) == 0
    assert results_of(project)["cells"][0]["left"] == ["pbip_stage1", "prototypes"]


def test_a_mean_never_mixes_the_seeds_of_two_codes(project, monkeypatch):
    assert main(command("table5", "--seeds", "0,1")) == 0
    monkeypatch.setattr(grid, "CODE", "other")
    monkeypatch.setenv("CODE", "b")
    assert main(command("table5", "--seeds", "1")) == 0
    assert {(c["seed"], c["code"]) for c in results_of(project)["cells"]} == {(1, "b")} and len(
        results_of(project)["cells"]
    ) == 3


def test_refused_before_any_work(project, capsys):
    assert main(["ablate", "table5", "--preset", "quik", "--notebooks", "notebooks"]) == 2
    assert "preset 'quik' is not known" in capsys.readouterr().err
    assert (
        main(
            [
                "ablate",
                "table5",
                "--dataset",
                "bcss-wsss",
                "--data",
                "nowhere",
                "--notebooks",
                "notebooks",
            ]
        )
        == 2
    )
    assert "0 of " in capsys.readouterr().err
    folder = project / "runs" / "ablations" / "phantom-smoke"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        assert main(command("table5", "--seeds", "0")) == 2
    assert "another command is at work on phantom-smoke: wait for it" in capsys.readouterr().err
    assert not (project / "results").exists() and list(TABLES) == list(grid.ROWS)


def test_data_is_called_by_its_folder_unless_it_is_the_published_set_in_full(tmp_path, monkeypatch):
    for name in ("mosaic", "bcss-wsss"):
        phantom.write_folder(tmp_path / name, {"train": 12, "val": 2, "test": 2}, size=64, seed=0)

    def named(dataset, folder=""):
        return grid.named(ablate.Run("smoke", dataset, folder, tmp_path / "run"))

    assert named("phantom") == ("phantom", False)
    assert named("bcss-wsss", tmp_path / "mosaic") == ("mosaic", False)
    assert named("bcss-wsss", tmp_path / "bcss-wsss") == ("bcss-wsss in part", False)
    full = replace(specs.SPECS["bcss-wsss"], counts={"train": (12,), "val": (1, 2), "test": (2,)})
    monkeypatch.setitem(specs.SPECS, "bcss-wsss", full)
    assert named("bcss-wsss", tmp_path / "mosaic") == ("bcss-wsss", True)
    cut = SimpleNamespace(
        spec=replace(full, name="bcss", regions=specs.SPECS["bcss"].regions),
        data=lambda split: range(2),
        data_root="x",
    )
    assert grid.named(cut) == ("bcss cut by protolib", False)


def test_as_many_cells_at_a_time_as_there_is_room_for(monkeypatch):
    monkeypatch.setattr(ablate.os, "sched_getaffinity", lambda _: range(16), raising=False)
    monkeypatch.setattr(ablate.psutil, "virtual_memory", lambda: SimpleNamespace(available=13e9))
    monkeypatch.setattr(ablate.torch.cuda, "device_count", lambda: 0)
    assert ablate._devices("auto", 0) == ["cpu"] * 3 and ablate._devices("cpu", 7) == ["cpu"] * 7
    monkeypatch.setattr(ablate.torch.cuda, "device_count", lambda: 2)
    assert ablate._devices("auto", 0) == ["cuda:0", "cuda:1"] and ablate._devices("cuda", 3) == [
        "cuda:0",
        "cuda:1",
        "cuda:0",
    ]
    assert ablate._devices("cpu", 0) == ["cpu"] * 3


def test_results_survive_a_broken_write(project, monkeypatch):
    assert main(command("table5", "--seeds", "0")) == 0
    before = (project / "results" / "phantom-smoke.json").read_bytes()
    monkeypatch.setattr(
        files.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("no space left"))
    )
    with pytest.raises(OSError, match="no space left"):
        main(command("table5", "--seeds", "0"))
    assert (project / "results" / "phantom-smoke.json").read_bytes() == before and presets.PRESETS[
        "smoke"
    ].name == "smoke"
