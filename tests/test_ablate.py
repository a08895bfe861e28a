"""The grid's command, mostly on a stub of one_run.ipynb: what is run, what is skipped, what is left
after kills, and what the data is called."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import dask
import dask_jobqueue  # noqa: F401  before a test sets values beside its defaults
import nbformat
import numpy as np
import psutil
import pytest
from filelock import FileLock

from protolib import experiment, files, presets
from protolib.__main__ import TABLES, main
from protolib.data import phantom, specs
from protolib.study import ablate, cluster, grid, ledger, recheck

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("drawn_once")]
NAMES = ("preset", "dataset", "data_root", "run_dir", "device", "method", "cache")
PARAMETERS = "\n".join([f"{name} = ''" for name in NAMES] + ["seed = 0", "settings = {}"])
# leaves made-up scores, and slides that bear the name of the fold
STUB = f"""
import json, os, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
import fake_results
from protolib import files
own = Path(run_dir)
with open(own / "count.txt", "a") as count:
    count.write("x")
if settings.get("threshold") == os.environ.get("BREAK", "-"):
    raise RuntimeError("the disk is full")
(own / "pbip_stage1").mkdir(exist_ok=True)
left = sorted(p.name for p in own.iterdir() if p.is_dir())
(own / "pbip_stage1" / "checkpoint.pt").write_text("large")
slides = [f"S{{Path(data_root).name}} {{i}}" for i in range(2)]
made = fake_results.run(f"{{method}} {{len(settings)}}", 60, seed, slides)
kept = {{name: made[name] for name in ("scores", "slides", "curve", "torch", "machine")}}
kept["scores"]["predicted"]["miou"] = (len(method) + len(settings) + seed) / 20
given = [preset, dataset, method, settings, seed]
files.write_json(own / "made.json", kept | {{
    "seconds": 1.5, "device": device, "code": os.environ.get("CODE", "a"), "left": left,
    "threads": int(os.environ["OMP_NUM_THREADS"]), "given": given, "data_root": data_root,
}} | json.loads(os.environ.get("SAYS", "{{}}")))
"""
FULL, CONVOLUTION, MAP = (
    "pbip_stage1",
    "pbip_stage1 similarity=convolution threshold=map",
    "pbip_stage1 threshold=map",
)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project whose one_run.ipynb only notes that it was run; three experiments in table 5, one
    of them shared by table 2."""
    (tmp_path / "notebooks").mkdir()
    v4 = nbformat.v4
    cells = [
        v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
        v4.new_code_cell(STUB),
    ]
    spec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(
        v4.new_notebook(cells=cells, metadata={"kernelspec": spec}),
        tmp_path / "notebooks" / "one_run.ipynb",
    )
    enter(tmp_path, monkeypatch)
    return tmp_path


def enter(folder, monkeypatch):
    """Go there; what the command sets in the environment is put back after the test."""
    monkeypatch.chdir(folder)
    for name in ("JUPYTER_PATH", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, os.environ.get(name, ""))


def drawn(project, seeds):
    """Put the patches of these seeds where a command in a process of its own finds them."""
    home = project / "runs" / "ablations"
    for seed in seeds:
        run = experiment.Run("smoke", run_dir=home, seed=seed, device="cpu")
        for split in specs.SPLITS:
            run.data(split)


def command(*more):
    asked = ["--preset", "smoke", "--device", "cpu", "--jobs", "2", "--notebooks", "notebooks"]
    return ["ablate", *more, *asked]


def runs_of(project):
    """How often each experiment was begun with each seed."""
    return {
        f"{p.parent.parent.name}, {p.parent.name}": len(p.read_text())
        for p in project.rglob("count.txt")
    }


def results_of(project, name="phantom"):
    return json.loads((project / "results" / f"{name}-smoke.json").read_text())


def test_every_run_is_made_once_for_all_its_tables_and_its_numbers_kept(project, capsys):
    assert main(command("table5", "--seeds", "0,1")) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[:2] == ["6 runs, 0 done before", "2 at a time, 1 thread each"]
    assert out[-2:] == [
        "results: results/phantom-smoke.json",
        "tables: python -m protolib report",
    ]
    assert sorted(line.split()[0] for line in out[2:-2]) == [f"{n}/6" for n in range(1, 7)]
    found = results_of(project)
    assert (found["label"], found["official"], found["folds"]) == ("phantom", False, [""])
    assert found["patches"] == {"": {"train": 96, "val": 16, "test": 24}}
    assert found["tables"]["table5"] == {"SIM": FULL, "AT": CONVOLUTION, "SIM + AT": MAP}
    assert [(r["run"], r["seed"], r["scores"]["predicted"]["miou"]) for r in found["runs"]] == [
        (FULL, 0, 0.55),
        (FULL, 1, 0.6),
        (CONVOLUTION, 0, 0.65),
        (CONVOLUTION, 1, 0.7),
        (MAP, 0, 0.6),
        (MAP, 1, 0.65),
    ]
    assert found["runs"][-1]["given"] == [
        "smoke",
        "phantom",
        "pbip_stage1",
        {"threshold": "map"},
        1,
    ]
    assert {(r["threads"], r["device"]) for r in found["runs"]} == {(1, "cpu")}
    assert found["runs"][0]["hours"] > 0
    assert found["runs"][0]["run_id"] == "phantom-smoke/pbip_stage1/seed 0"
    own = project / "runs" / "ablations" / "phantom-smoke" / "pbip_stage1" / "seed 0"
    assert sorted(p.name for p in own.iterdir()) == [
        "count.txt",
        "one_run.ipynb",
        "record.json",
    ]  # weights are not kept

    assert main(command("table2", "table5", "--seeds", "0")) == 0
    assert capsys.readouterr().out.startswith("7 runs, 3 done before")
    assert set(runs_of(project).values()) == {1} and len(results_of(project)["runs"]) == 10
    # a run is a line
    assert len((project / "results" / "phantom-smoke.json").read_text().splitlines()) < 400
    [read] = ledger.read(project / "results")
    assert [seed.scores["predicted"]["miou"] for seed in ledger.seeds_of(read, "table5", "AT")] == [
        0.65,
        0.7,
    ]


def test_killed_three_times_it_goes_on_and_makes_no_finished_run_again(project):
    drawn(project, range(3))
    wanted = [sys.executable, "-m", "protolib", *command("table5", "--seeds", "0,1,2")]
    for finished in (1, 2, 2):  # the n-th line of a finished run, then SIGKILL
        with subprocess.Popen(wanted, stdout=subprocess.PIPE, text=True) as process:
            lines = (line for line in process.stdout if "miou" in line)
            for _ in range(finished):
                next(lines)
            process.kill()
        before = {(r["run"], r["seed"]) for r in results_of(project)["runs"]}
    assert len(before) >= 5
    begun = runs_of(project)
    done = subprocess.run(wanted, capture_output=True, text=True)
    assert done.returncode == 0 and f"9 runs, {len(before)} done before" in done.stdout
    assert len(results_of(project)["runs"]) == 9
    after = runs_of(project)
    assert all(
        after[f"{name}, seed {seed}"] == begun[f"{name}, seed {seed}"] for name, seed in before
    )
    # at most the two in flight, each time
    assert max(after.values()) <= 4 and sum(after.values()) <= 9 + 3 * 2


def test_an_interrupt_ends_at_once_with_all_that_was_started(project):
    drawn(project, range(3))
    wanted = [sys.executable, "-m", "protolib", *command("table5", "--seeds", "0,1,2")]

    def heed():  # a shell in the background hands on an ignored one
        signal.signal(signal.SIGINT, signal.default_int_handler)

    with subprocess.Popen(
        wanted, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed
    ) as process:
        next(line for line in process.stdout if "miou" in line)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted; the same command goes on" in err
    assert 1 <= len(results_of(project)["runs"]) < 9


def test_a_run_that_fails_is_named_and_the_others_go_on(project, monkeypatch, capsys):
    # AT has the same threshold as SIM + AT, so two of the three fail
    monkeypatch.setenv("BREAK", "map")
    assert main(command("table5", "--seeds", "0")) == 1
    err = capsys.readouterr().err
    assert err.count("failed: one_run.ipynb: cell In [3] failed") == 2
    assert "RuntimeError: the disk is full" in err
    assert [r["run"] for r in results_of(project)["runs"]] == [FULL]
    monkeypatch.setenv("BREAK", "no")
    assert main(command("table5", "--seeds", "0")) == 0 and len(results_of(project)["runs"]) == 3


def test_a_run_of_other_code_is_made_again_and_what_cannot_run_is_noted(
    project, monkeypatch, capsys
):
    assert main(command("table5", "--seeds", "0")) == 0
    monkeypatch.setitem(experiment.CODE, "nets", "other")
    monkeypatch.setattr(
        grid, "refusal", lambda p, asked, pure: "too few" if asked.name == MAP else ""
    )
    assert main(command("table5", "--seeds", "0")) == 0
    assert "not run, 1 experiment: too few\n2 runs, 0 done before" in capsys.readouterr().out
    assert runs_of(project) == {
        f"{FULL}, seed 0": 2,
        f"{CONVOLUTION}, seed 0": 2,
        f"{MAP}, seed 0": 1,
    }
    assert results_of(project)["not_run"] == {MAP: "too few"}
    # another table: what is known of this one stays
    assert main(command("table4", "--seeds", "0")) == 0
    assert results_of(project)["not_run"] == {MAP: "too few"}


def test_a_run_that_was_killed_goes_on_with_what_it_has_made(project):
    own = project / "runs" / "ablations" / "phantom-smoke" / "pbip_stage1" / "seed 0"
    for step in ("bank", "prototypes"):  # left by a kill; a step that is not whole has no key
        (own / step).mkdir(parents=True)
    assert main(command("table5", "--seeds", "0")) == 0
    assert results_of(project)["runs"][0]["left"] == ["bank", "pbip_stage1", "prototypes"]


def test_a_mean_never_mixes_the_seeds_of_two_codes(project, monkeypatch):
    assert main(command("table5", "--seeds", "0,1")) == 0
    monkeypatch.setitem(experiment.CODE, "", "other")
    monkeypatch.setenv("CODE", "b")
    assert main(command("table5", "--seeds", "1")) == 0
    found = results_of(project)["runs"]
    assert {(r["seed"], r["code"]) for r in found} == {(1, "b")} and len(found) == 3
    assert len(ledger.read(project / "results")) == 1  # the ledger takes it


def test_what_is_there_is_told_by_its_key_alone(project, capsys):
    assert main(command("table5", "--seeds", "0")) == 0
    file = project / "results" / "phantom-smoke.json"
    found = results_of(project)
    found["runs"][1]["key"] = "of other pixels"
    file.write_text(json.dumps(found))
    record = project / "runs" / "ablations" / found["runs"][1]["run_id"] / "record.json"
    record.write_text(json.dumps(found["runs"][1]))
    capsys.readouterr()
    assert main(command("table5", "--seeds", "0")) == 0
    assert capsys.readouterr().out.startswith("3 runs, 2 done before")
    assert runs_of(project)[f"{CONVOLUTION}, seed 0"] == 2
    assert results_of(project)["runs"][1]["key"] != "of other pixels"
    # nor is a run made again whose record is sound: the command was killed before it took it in
    file.write_text(json.dumps(found))
    assert main(command("table5", "--seeds", "0")) == 0
    assert capsys.readouterr().out.startswith("3 runs, 3 done before")
    assert results_of(project)["runs"][1]["key"] != "of other pixels"


def test_the_key_is_the_kernels_own(project, monkeypatch, capsys):
    # the code was edited after the grid had begun: the kernel that started then has another key
    monkeypatch.setenv("SAYS", '{"key": "of the edited code", "base": "its base"}')
    assert main(command("table5", "--seeds", "0")) == 0
    assert {(r["key"], r["base"]) for r in results_of(project)["runs"]} == {
        ("of the edited code", "its base")
    }
    monkeypatch.setenv("SAYS", "{}")
    capsys.readouterr()
    assert main(command("table5", "--seeds", "0")) == 0
    assert capsys.readouterr().out.startswith("3 runs, 0 done before")


def test_a_kind_of_data_is_counted_before_it_is_refused_and_dials_are_the_phantom_s(folds, capsys):
    p = replace(presets.preset("smoke"), patches=(96, 4, 4))
    wanted = {e.name: e for e in grid.tables(p)["when"].values()}
    run = experiment.Run(p, run_dir=folds / "own", device="cpu")
    why = ablate._refusals(p, wanted, [run])
    pure = {dial: round(96 * float(dial)) for dial in ("0.2", "0.1", "0.05", "0.02")}
    for dial, n in pure.items():  # in turn through twelve sub-types, three a class
        refused = {why[name] for name in wanted if f"drawn_pure={dial}" in name}
        assert len(refused) == 1 and (n >= 12) != bool(refused.pop()), dial
    assert not any(why[name] for name in wanted if "pure" not in name)
    p = replace(p, patches=(8, 2, 2))
    run = experiment.Run(p, "bcss-wsss", folds / "mosaic-1", folds / "own", device="cpu")
    why = ablate._refusals(p, wanted, [run])
    dialled = {name for name in wanted if "drawn_" in name}
    assert {name for name, said in why.items() if "dials are of the phantom" in said} == dialled
    assert any(not said for said in why.values())


def test_shards_make_every_run_once_and_the_report_merges_them(project, monkeypatch, capsys):
    asked = ("table5", "--seeds", "0,1")
    assert main(command(*asked, "--shard", "2/2")) == 0
    out = capsys.readouterr().out
    assert out.startswith("3 runs, 0 done before") and not (project / "results").exists()
    assert out.endswith(
        "runs: runs/ablations/phantom-smoke\nmerged by: python -m protolib report\n"
    )
    report = ["report", "--notebooks", "notebooks"]
    assert main(report) == 0
    assert capsys.readouterr().err == "phantom-smoke.json: 3 runs of shards taken in, 0 missing\n"
    assert len(results_of(project)["runs"]) == 3
    monkeypatch.setenv("BREAK", "map")  # two runs of table 5 have it
    assert main(command(*asked, "--shard", "1/2")) == 1
    capsys.readouterr()
    assert main(report) == 0
    missing = 6 - len(results_of(project)["runs"])
    assert f"{missing} missing" in capsys.readouterr().err and missing
    monkeypatch.setenv("BREAK", "no")
    assert main(command(*asked, "--shard", "1/2")) == 0
    assert f"3 runs, {3 - missing} done before" in capsys.readouterr().out
    # the whole command takes them in as the report would
    assert main(command(*asked)) == 0
    assert capsys.readouterr().out.startswith("6 runs, 6 done before")
    merged = results_of(project)
    assert main(report) == 0 and results_of(project) == merged
    assert not list(project.rglob("shard-*.json"))  # done with

    shutil.rmtree(project / "runs")
    shutil.rmtree(project / "results")
    assert main(command(*asked)) == 0
    clock = ("hours", "ended")
    for found in (merged, whole := results_of(project)):
        for run in found["runs"]:
            for name in clock:
                del run[name]
    assert merged == whole and set(runs_of(project).values()) == {1}


def test_a_shard_and_the_whole_are_not_made_at_once(project, capsys):
    folder = project / "runs" / "ablations" / "phantom-smoke"
    folder.mkdir(parents=True)
    said = "another command is at work on phantom-smoke: wait for it"
    with FileLock(folder / ".shard-1-of-2.lock"):
        assert main(command("table5", "--seeds", "0", "--shard", "1/2")) == 2
        assert said in capsys.readouterr().err
        assert main(command("table5", "--seeds", "0", "--shard", "2/2")) == 0
        capsys.readouterr()


@pytest.fixture
def folds(project):
    """Two folders of the same data set, drawn from two seeds."""
    for seed in (1, 2):
        counts = {"train": 48 + seed, "val": 2, "test": 4}
        phantom.write_folder(project / f"mosaic-{seed}", counts, size=64, seed=seed)
    return project


def of_folds(*names, dataset="bcss-wsss"):
    data = [part for name in names for part in ("--data", name)]
    return command("table5", "--seeds", "0", "--dataset", dataset, *data)


def test_folds_are_runs_of_one_file_that_the_ledger_pools(folds, capsys):
    assert main(of_folds("mosaic-1", "mosaic-2")) == 0
    assert capsys.readouterr().out.startswith("6 runs, 0 done before")
    assert [path.name for path in (folds / "results").iterdir()] == ["mosaic-smoke.json"]
    found = results_of(folds, "mosaic")
    assert (found["label"], found["official"]) == ("mosaic", False)
    assert found["folds"] == ["mosaic-1", "mosaic-2"]
    assert found["patches"] == {
        f"mosaic-{seed}": {"train": 48 + seed, "val": 2, "test": 4} for seed in (1, 2)
    }
    of_full = [r for r in found["runs"] if r["run"] == FULL]
    assert [(r["fold"], r["data_root"]) for r in of_full] == [
        (name, str(folds / name)) for name in ("mosaic-1", "mosaic-2")
    ]
    assert of_full[1]["run_id"] == "mosaic-smoke/pbip_stage1/mosaic-2/seed 0"
    assert len({r["key"] for r in of_full}) == 2 and len({r["base"] for r in of_full}) == 1

    [read] = ledger.read(folds / "results")
    [pooled] = ledger.seeds_of(read, "table5", "SIM")
    assert sorted(pooled.slides) == [f"Smosaic-{seed} {i}" for seed in (1, 2) for i in (0, 1)]
    total = sum(
        np.array(slide["oracle"]["matrix"]) for r in of_full for slide in r["slides"].values()
    )
    union = total.sum(0)[:4] + total[:4].sum(1) - np.diag(total)[:4] - total[4, :4]
    iou = np.diag(total)[:4] / union  # ignore pixels dropped
    assert pooled.scores["oracle"]["miou"] == pytest.approx(iou.mean(), abs=1e-12)

    assert main(of_folds("mosaic-2", "mosaic-1")) == 0  # in any order
    assert capsys.readouterr().out.startswith("6 runs, 6 done before")


def test_folds_that_cannot_be_pooled_are_refused(folds, capsys):
    (folds / "results").mkdir()
    files.write_json(folds / "results" / "mosaic-smoke.json", {"folds": ["mosaic-1"], "runs": []})
    assert main(of_folds("mosaic-1", "mosaic-2")) == 2
    assert capsys.readouterr().err == (
        "protolib: mosaic-smoke.json holds the folds ['mosaic-1'], these are "
        "['mosaic-1', 'mosaic-2']: a mean must not mix them; give the same folders, or move the "
        "file away\n"
    )
    shutil.copytree("mosaic-1", "other/mosaic-1")
    assert main(of_folds("mosaic-1", "other/mosaic-1")) == 2
    assert capsys.readouterr().err == (
        "protolib: folds need folders of different names, these are mosaic-1, mosaic-1\n"
    )
    for name, classes in (("mosaic-1", '"A", "B", "C", "D"'), ("mosaic-2", '"B", "A", "C", "D"')):
        Path(name, "dataset.toml").write_text(
            f'name = "mine"\nclasses = [{classes}]\ntitles = ["a", "b", "c", "d"]\n'
            "palette = [[1, 0, 0], [2, 0, 0], [3, 0, 0], [4, 0, 0], [5, 0, 0]]\n"
            "codes = { 0 = 0, 1 = 1, 2 = 2, 3 = 3 }\n"
        )
    assert main(of_folds("mosaic-1", "mosaic-2", dataset="custom")) == 2
    assert capsys.readouterr().err == (
        "protolib: folds need the same classes in the same order, these have "
        "mosaic-1: A, B, C, D; mosaic-2: B, A, C, D\n"
    )
    assert not runs_of(folds)


@pytest.mark.parametrize(
    "more, message",
    [
        (["--preset", "quik"], "preset 'quik' is not known"),
        (["--dataset", "bcss-wsss", "--data", "nowhere"], "0 of "),
        (["--cluster", "here"], "--cluster here: give local, slurm, or a scheduler's address"),
        (["--cluster", "slurm", "--device", "auto"], "--cluster slurm: say --device cpu or cuda"),
        (["--cluster", "slurm", "--jobs", "0"], "--cluster slurm: say --jobs N, how many jobs"),
        (["--cluster", "tcp://a:1"], "--jobs 2: the cluster at tcp://a:1 has its workers"),
        (["--jobs", "-1"], "--jobs -1: give 0 (as many as there is room for) or more\n"),
        (["--device", "tpu"], "device 'tpu' is not here; choose auto or one of cpu\n"),
        (["--device", "cuda"], "device 'cuda' is not here; choose auto or one of cpu\n"),
        (["--device", "mps"], "device 'mps' is not here; choose auto or one of cpu\n"),
    ],
)
def test_refused_before_any_work(project, monkeypatch, capsys, more, message):
    monkeypatch.setattr(experiment.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(experiment.torch.backends.mps, "is_available", lambda: False)
    assert main([*command("table5"), *more]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("protolib: ") and message in err and out == ""
    assert not (project / "results").exists() and not (project / "runs").exists()


def test_a_grid_that_another_command_makes_is_left_to_it(project, capsys):
    folder = project / "runs" / "ablations" / "phantom-smoke"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        assert main(command("table5", "--seeds", "0")) == 2
    assert "another command is at work on phantom-smoke: wait for it" in capsys.readouterr().err
    assert not (project / "results").exists()


def test_the_tables_of_the_command_line_are_those_of_the_grid():
    assert list(TABLES) == list(grid.ROWS)


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


def test_folds_are_called_by_what_their_names_share():
    def pooled(*roots):
        return ablate.pooled_name([], roots)

    assert pooled("/data/mosaic-1", "/data/mosaic-2") == ("mosaic", False)
    assert pooled("/data/mosaic_fold0", "/data/mosaic_fold1") == ("mosaic_fold", False)
    assert pooled("/data/mosaic/a", "/data/mosaic/b") == ("mosaic", False)  # nothing: their folder


def test_as_many_runs_at_a_time_as_there_is_room_for(monkeypatch):
    monkeypatch.setattr(ablate.os, "sched_getaffinity", lambda _: range(16), raising=False)
    monkeypatch.setattr(ablate.psutil, "virtual_memory", lambda: SimpleNamespace(available=10e9))
    assert ablate._devices("cpu", 0) == ["cpu"] * 3 and ablate._devices("cpu", 7) == ["cpu"] * 7
    assert ablate._devices("mps", 0) == ["mps"]
    monkeypatch.setattr(ablate.torch.cuda, "device_count", lambda: 2)
    assert ablate._devices("cuda", 0) == ["cuda:0", "cuda:1"]
    assert ablate._devices("cuda", 3) == ["cuda:0", "cuda:1", "cuda:0"]
    assert ablate._devices("cuda:1", 2) == ["cuda:1", "cuda:1"]
    assert ablate._devices("cpu", 0) == ["cpu"] * 3
    monkeypatch.setattr(ablate.psutil, "virtual_memory", lambda: SimpleNamespace(available=1e9))
    assert ablate._devices("cpu", 0) == ["cpu"]


def test_auto_is_the_device_that_a_run_takes(project, monkeypatch):
    taken = []
    monkeypatch.setattr(ablate, "_threads", taken.append)
    monkeypatch.setattr(ablate, "_execute", lambda *_: 0)
    auto = [*command("table5", "--seeds", "0"), "--device", "auto"]
    monkeypatch.setattr(experiment.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(experiment.torch.backends.mps, "is_available", lambda: True)
    assert main(auto) == 0
    monkeypatch.setattr(experiment.torch.backends.mps, "is_available", lambda: False)
    assert main(auto) == 0
    monkeypatch.setattr(experiment.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(experiment.torch.cuda, "device_count", lambda: 2)
    assert main(auto) == 0
    assert taken == [["mps", "mps"], ["cpu", "cpu"], ["cuda:0", "cuda:1"]]


def test_results_survive_a_broken_write(project, monkeypatch, capsys):
    assert main(command("table5", "--seeds", "0")) == 0
    before = (project / "results" / "phantom-smoke.json").read_bytes()
    monkeypatch.setattr(
        files.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("no space left"))
    )
    assert main(command("table5", "--seeds", "0")) == 2
    assert capsys.readouterr().err == "protolib: no space left\n"
    assert (project / "results" / "phantom-smoke.json").read_bytes() == before
    assert presets.PRESETS["smoke"].name == "smoke"


def test_a_disk_that_is_full_fails_each_run_and_loses_none_before(project, monkeypatch, capsys):
    assert main(command("table5", "--seeds", "0")) == 0
    kept = results_of(project)["runs"]

    def full(self, *made):
        raise OSError("no space left")

    monkeypatch.setattr(ablate.Book, "add", full)
    assert main(command("table5", "--seeds", "0,1")) == 1
    assert capsys.readouterr().err.splitlines() == [
        f"   {n}/3  failed: no space left" for n in (1, 2, 3)
    ]
    assert results_of(project)["runs"] == kept


def test_data_of_several_seeds_is_searched_once(folds, monkeypatch):
    searched = []
    of = ablate.bank.candidates

    def counted(train, *more):
        searched.append(train)
        return of(train, *more)

    monkeypatch.setattr(ablate.bank, "candidates", counted)
    monkeypatch.setattr(ablate, "_execute", lambda *_: 0)
    seeds = ["--seeds", "0,1,2"]
    assert main([*of_folds("mosaic-1", "mosaic-2"), *seeds]) == 0 and len(searched) == 2
    assert main(command("table5", *seeds)) == 0 and len(searched) == 2 + 3  # the phantom's differ


def kill_a_worker_at_work() -> int:
    """End one of this process's workers whose kernel runs, as a machine that goes down would."""
    until = time.monotonic() + 20  # the next kernel may be a moment away
    while time.monotonic() < until:
        for worker in psutil.Process().children():
            if kernel_below(worker):
                worker.kill()
                return worker.pid
    return 0


def kernel_below(worker: psutil.Process) -> bool:
    try:
        below = [" ".join(process.cmdline()) for process in worker.children(recursive=True)]
    except psutil.Error:  # one that has just ended
        return False
    # a kernel of its own, or one that was forked from another process
    forked = [name for name in below if "protolib.study.kernels" in name]
    return len(forked) > 1 or any("ipykernel_launcher" in name for name in below)


def test_however_runs_are_made_they_give_the_same_numbers(tmp_path, monkeypatch, root):
    rows = {"table1": {"CAM": {"method": "cam"}, "PBIP, stage 1": {}}}
    monkeypatch.setattr(grid, "ROWS", rows)
    plan = ablate.Plan(["table1"], "smoke", "phantom", [""], [0])
    add, found, killed = ablate.Book.add, [], []

    def add_and_kill(book, *made):
        add(book, *made)
        if on and not killed:
            killed.append(kill_a_worker_at_work())

    monkeypatch.setattr(ablate.Book, "add", add_and_kill)
    for way, jobs, on in (("serial", 1, ""), ("at once", 2, ""), ("cluster", 2, "local")):
        notebooks = tmp_path / way / "notebooks"
        notebooks.mkdir(parents=True)
        shutil.copy(root / "notebooks" / "one_run.ipynb", notebooks)
        enter(notebooks, monkeypatch)
        assert ablate.run(notebooks, plan, "cpu", jobs, on) == 0
        [read] = ledger.read(notebooks.parent / "results")
        assert ledger.seeds_of(read, "table1", "PBIP, stage 1")
        found.append(results_of(notebooks.parent)["runs"])
    [pid] = killed  # in the middle of its run, which the other worker has made
    assert pid and (not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie")
    assert [r["run"] for r in found[0]] == ["cam", "pbip_stage1"]
    # the rest is equal to the last digit
    clock = ("seconds", "hours", "peak_rss_mb", "ended")
    serial, parallel, spread = (
        [{name: of[name] for name in of if name not in clock} for of in runs] for runs in found
    )
    assert serial == parallel == spread
    opened = experiment.Run("smoke", run_dir=tmp_path / "by hand", device="cpu")
    wanted = grid.tables(opened.preset)["table1"].values()
    assert [(r["key"], r["base"]) for r in serial] == [grid.identity(opened, e) for e in wanted]


def test_a_cluster_makes_every_run_once_though_a_worker_dies(project, monkeypatch, capsys):
    add, killed = ablate.Book.add, []

    def add_and_kill(book, *made):
        add(book, *made)
        if not killed:
            killed.append(kill_a_worker_at_work())

    monkeypatch.setattr(ablate.Book, "add", add_and_kill)
    monkeypatch.setenv("BREAK", "map")  # two of three runs fail, thrice each
    assert main(command("table5", "--seeds", "0,1", "--cluster", "local")) == 1
    out, err = capsys.readouterr()
    assert out.startswith("6 runs, 0 done before\n2 workers\n") and killed[0]
    assert err.count("RuntimeError: the disk is full") == 4
    assert [(r["run"], r["seed"]) for r in results_of(project)["runs"]] == [(FULL, 0), (FULL, 1)]
    begun = runs_of(project)
    extra = sum(begun.values()) - (2 * 1 + 4 * (1 + cluster.RETRIES))
    assert extra in (0, 1), begun  # the one that was killed, if it had come so far
    monkeypatch.setenv("BREAK", "no")
    assert main(command("table5", "--seeds", "0,1", "--cluster", "local")) == 0
    assert capsys.readouterr().out.startswith("6 runs, 2 done before")
    assert len(results_of(project)["runs"]) == 6


def test_slurm_is_asked_for_workers(project, monkeypatch, capsys):
    # an sbatch that starts its script here
    bin_ = project / "bin"
    bin_.mkdir()
    scripts = {
        "sbatch": 'cp "$1" job.sh; setsid sh job.sh >job.log 2>&1 & echo "Submitted batch job $!"',
        "scancel": 'for job in "$@"; do kill -- "-$job"; done',
    }
    for name, words in scripts.items():
        (bin_ / name).write_text(f"#!/bin/sh\n{words}\n")
        (bin_ / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_}{os.pathsep}{os.environ['PATH']}")
    asked = ["table5", "--seeds", "0", "--cluster", "slurm"]
    assert main(command(*asked)) == 2
    assert "say cores and memory under jobqueue: slurm: in" in capsys.readouterr().err
    size = {"jobqueue.slurm.cores": 1, "jobqueue.slurm.memory": "2GB"}
    with dask.config.set(size | {"jobqueue.slurm.interface": "lo"}):
        assert main([*command(*asked), "--jobs", "1"]) == 0
    assert len(results_of(project)["runs"]) == 3
    script = (project / "job.sh").read_text()
    assert "#SBATCH --mem=2G" in script and "distributed.cli.dask_worker" in script


def test_outdated_runs_stay_where_one_of_each_experiment_is_made_again_and_equal(
    project, monkeypatch, capsys
):
    assert main(command("table5", "--seeds", "0,1")) == 0
    before = results_of(project)["runs"]
    monkeypatch.setitem(experiment.CODE, "", "other")
    monkeypatch.setenv("CODE", "b")
    capsys.readouterr()
    assert main(command("table5", "--seeds", "0,1", "--recheck")) == 0
    assert "3 of 6 outdated runs made again, all equal" in capsys.readouterr().out
    after = results_of(project)["runs"]
    # one of each experiment was made, seeds in turn; all have the key of today, and their scores
    made = {(run["run"], run["seed"]) for run in after if "rechecked" not in run}
    assert sorted(made) == [(FULL, 0), (CONVOLUTION, 1), (MAP, 0)]
    assert {run.get("rechecked", "made") for run in after} == {"3 of 6", "made"}
    assert [run["scores"] for run in after] == [run["scores"] for run in before]
    assert {run["code"] for run in after} == {"b"}
    capsys.readouterr()
    assert main(command("table5", "--seeds", "0,1")) == 0
    assert capsys.readouterr().out.startswith("6 runs, 6 done before")
    assert len(ledger.read(project / "results")) == 1  # the ledger takes it
    assert main(command("table5", "--seeds", "0,1", "--recheck")) == 0
    assert "no run in the file is outdated" in capsys.readouterr().out


def test_a_run_that_comes_out_otherwise_is_named_and_nothing_is_taken_over(
    project, monkeypatch, capsys
):
    assert main(command("table5", "--seeds", "0,1")) == 0
    file = project / "results" / "phantom-smoke.json"
    found = results_of(project)
    of = next(run for run in found["runs"] if (run["run"], run["seed"]) == (CONVOLUTION, 1))
    of["scores"]["predicted"]["miou"] += 1e-9  # the last digits count
    file.write_text(json.dumps(found))
    monkeypatch.setitem(experiment.CODE, "", "other")
    before = file.read_bytes()
    capsys.readouterr()
    assert main(command("table5", "--seeds", "0,1", "--recheck")) == 1
    named = f"{CONVOLUTION}/seed 1: 70.0000001 in the file, 70 today"
    assert named in capsys.readouterr().err
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("machine", "said"),
    [
        ("x86_64 AVX512", ""),
        ("x86_64 AVX2", "; made on x86_64 AVX2, this is x86_64 AVX512"),
    ],
)
def test_where_numbers_differ_machines_of_two_kinds_are_named(machine, said):
    made = {"run_id": "a", "run": "cam", "fold": "", "seed": 0, "machine": "x86_64 AVX512"}
    made |= {"slides": {}, "scores": {"predicted": {"miou": 0.5}}}
    kept = made | {"scores": {"predicted": {"miou": 0.25}}, "machine": machine}
    book = SimpleNamespace(runs={("cam", "", 0): kept})
    assert recheck.differing([made], book) == [f"a: 25 in the file, 50 today{said}"]
