"""The runner on small notebooks that the tests write: order, parameters, failures, resume,
report.html."""

import base64
import gc
import json
import os
import signal
import subprocess
import sys
import threading
import warnings
from contextlib import suppress
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest

from protolib import blocks, caches, files, keys, results
from protolib.__main__ import _stoppable, main
from protolib.data import phantom
from protolib.metrics import DEFAULT, ORACLE
from protolib.study import html, runner

PYTHON = os.path.abspath(sys.executable)
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNkYPgPAAEFAQHqqRG1AAAAAElFTkSuQmCC"
)
SCORES = {
    "miou": 0.5,
    "fwiou": 0.6,
    "biou": 0.25,
    "dice": 0.625,
    "iou": [0.75, None, 0.25, 0.5],
    "image_labels": "predicted",
    "ignore": "dropped",
}
RESULTS = {
    "preset": "smoke",
    "dataset": "phantom",
    "seed": 3,
    "device": "cpu",
    "threads": 2,
    "protolib": "0.1.0",
    "methods": {"cam": SCORES | {"oracle": SCORES | {"miou": 0.875, "image_labels": "oracle"}}},
    "seconds": {},
    "peak_rss_mb": None,
}
MAKE = f"""
import json, sys, os
from pathlib import Path
run = Path(run_dir)
seen = {{"K": K, "preset": preset, "python": os.path.abspath(sys.executable), "cwd": os.getcwd()}}
(run / "seen.json").write_text(json.dumps(seen))
with open(run / "count.txt", "a") as count: count.write("first\\n")
(run / "figures").mkdir(exist_ok=True)
(run / "figures" / "00_map.png").write_bytes({PNG!r})
(run / "figures" / "00_map.txt").write_text("A map of <one> pixel.")
"""
SCORE = f"""
import json
from pathlib import Path
Path(run_dir, "results.json").write_text(json.dumps({RESULTS!r}))
with open(Path(run_dir, "count.txt"), "a") as count: count.write("second\\n")
"""


def write(path, parameters, *cells):
    v4, spec = nbformat.v4, {"name": "python3", "display_name": "Python 3", "language": "python"}
    head = [
        v4.new_markdown_cell(f"# The *story* of {path.stem}"),
        v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}),
    ]
    nbformat.write(
        v4.new_notebook(
            cells=head + [v4.new_code_cell(cell) for cell in cells], metadata={"kernelspec": spec}
        ),
        path,
    )


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A project with an empty notebooks/, entered; what the runner does to the environment is
    undone after the test."""
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JUPYTER_PATH", os.environ.get("JUPYTER_PATH", ""))
    monkeypatch.setenv("MPLBACKEND", "agg")
    return tmp_path


@pytest.fixture
def two(folder):
    write(folder / "notebooks" / "00_make.ipynb", "preset = 'quick'\nrun_dir = ''\nK = 3", MAKE)
    write(folder / "notebooks" / "01_score.ipynb", "run_dir = ''\nseed = 0", SCORE)
    return folder


def protolib(*arguments):
    return main([*arguments, "--notebooks", "notebooks"])


def record(run):
    return json.loads((run / "run.json").read_text())


@pytest.mark.slow
def test_the_whole_story(two, monkeypatch, capfd):
    kernels = (
        two / "other" / "kernels" / "python3"
    )  # a user's own kernel of the same name must not be taken
    kernels.mkdir(parents=True)
    (kernels / "kernel.json").write_text(
        '{"argv": ["no-such-python"], "display_name": "other", "language": "python"}'
    )
    monkeypatch.setenv("JUPYTER_PATH", str(two / "other"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as make test has it: the same nest

    assert protolib("run", "--preset", "smoke", "--seed", "3", "-p", "K=4") == 0

    run = Path("runs/latest").resolve()
    assert run.parent == two / "runs" and run.name[8] == "-" and run.name[15:] == "-smoke-phantom-3"
    assert json.loads((run / "seen.json").read_text()) == {
        "K": 4,
        "preset": "smoke",
        "python": PYTHON,
        "cwd": str(two / "notebooks"),
    }
    out, err = capfd.readouterr()
    first, second, third, *table, last = [line for line in out.splitlines() if line]
    assert (
        first == f"run: runs/{run.name}, 1 threads"
        and last == f"report: runs/{run.name}/report.html"
    )
    assert (
        second.split()[::2] == ["00_make", "s", "cells"]
        and third.split()[0] == "01_score"
        and err == ""
    )
    found = json.loads((run / "results.json").read_text())
    made = results.table(found, ("TUM", "STR", "LYM", "NEC"))
    shown = blocks.markdown([made], width=blocks.TERMINAL)
    assert table == [line for line in shown.splitlines() if line]
    assert found["seconds"] == {
        name: entry["seconds"] for name, entry in record(run)["notebooks"].items()
    }
    assert list(found["seconds"]) == ["00_make", "01_score"] and min(found["seconds"].values()) > 0
    assert found["peak_rss_mb"] == record(run)["peak_rss_mb"] > 10
    assert {entry["state"] for entry in record(run)["notebooks"].values()} == {"done"}
    assert (
        len(nbformat.read(run / "notebooks" / "00_make.ipynb", 4).cells) == 4
    )  # with the injected parameters


@pytest.mark.slow
def test_resume_executes_only_what_changed(two, capsys):
    def executed(*arguments):
        Path("count.txt").unlink(missing_ok=True)
        (two / "one" / "count.txt").unlink(missing_ok=True)
        assert protolib("run", *arguments) == 0
        count = two / "one" / "count.txt"
        return count.read_text().split() if count.exists() else []

    assert executed("--run-dir", "one") == ["first", "second"]
    assert executed("--resume") == []
    assert capsys.readouterr().out.count("done before") == 2
    write(two / "notebooks" / "01_score.ipynb", "run_dir = ''\nseed = 0", SCORE + "# changed")
    assert executed("--resume", "one") == ["second"]
    assert executed("--resume", "-p", "K=5") == ["first"]  # 01 does not declare K
    assert executed("--resume") == []  # K=5 was kept
    assert record(two / "one")["parameters"]["K"] == 5
    (two / "one" / "notebooks" / "00_make.ipynb").unlink()
    assert executed("--resume") == ["first"]


TOML = """name = "mine"
classes = ["TUM", "STR", "LYM", "NEC"]
titles = ["tumour", "stroma", "lymphocytes", "necrosis"]
palette = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [153, 0, 255], [255, 255, 255]]
codes = { 0 = 0, 1 = 1, 2 = 2, 3 = 3 }
"""


def executed_again(two, capsys, *arguments):
    """The notebooks that --resume runs again."""
    count = two / "one" / "count.txt"
    count.unlink()
    capsys.readouterr()
    assert protolib("run", "--resume", "one", *arguments) == 0
    done = count.read_text().split() if count.exists() else []
    assert capsys.readouterr().out.count("done before") == 2 - len(done)
    count.touch()
    return done


@pytest.mark.slow
def test_a_run_goes_on_with_the_data_that_is_there_now(two, capsys):
    data = two / "set"
    phantom.write_folder(data, {"train": 4, "val": 2, "test": 2}, size=64)
    (data / "dataset.toml").write_text(TOML)
    assert protolib("run", "--dataset", "custom", "--data", "set", "--run-dir", "one") == 0
    assert executed_again(two, capsys) == []

    (data / "dataset.toml").write_text(TOML.replace("2 = 2, 3 = 3", "2 = 3, 3 = 2"))
    assert executed_again(two, capsys) == ["first", "second"]
    assert executed_again(two, capsys) == []

    mask = sorted((data / "val" / "mask").iterdir())[0]
    before = mask.stat()
    os.utime(mask, ns=(before.st_atime_ns, before.st_mtime_ns + 1))  # mended in place
    assert executed_again(two, capsys) == ["first", "second"]
    assert executed_again(two, capsys) == []

    (data / "dataset.toml").write_text(TOML.replace('"tumour"', '"tumor"'))
    assert executed_again(two, capsys) == ["first", "second"]
    assert record(two / "one")["titles"][0] == "tumor"

    mask.unlink()
    assert protolib("run", "--resume", "one") == 2
    err = capsys.readouterr().err
    assert "val: 1 images without a mask and 0 masks without an image" in err


@pytest.mark.slow
@pytest.mark.parametrize("folder_of_code", ["", "data", "nets"])
def test_a_run_goes_on_with_the_code_that_is_there_now(two, capsys, monkeypatch, folder_of_code):
    assert protolib("run", "--run-dir", "one") == 0
    assert executed_again(two, capsys) == []
    monkeypatch.setattr(keys, "CODE", keys.CODE | {folder_of_code: "changed"})
    assert executed_again(two, capsys) == ["first", "second"]
    assert executed_again(two, capsys) == []


@pytest.mark.slow
def test_what_notebooks_call_beside_the_kernels_is_code_too(two, capsys, monkeypatch):
    assert protolib("run", "--run-dir", "one") == 0
    count = two / "one" / "count.txt"
    monkeypatch.setattr(keys, "teaching", lambda: ["changed"])
    assert count.read_text().split() == ["first", "second"]
    assert executed_again(two, capsys) == ["first", "second"]


@pytest.mark.slow
def test_a_failed_cell_is_named_and_the_run_goes_on_after_the_repair(two, capsys):
    broken = two / "notebooks" / "01_score.ipynb"
    write(
        broken,
        "run_dir = ''",
        "print('made')",
        "def f():\n    raise ValueError('two\\nlines')\nf()",
        "print('no')",
    )
    assert protolib("run") == 1
    run = Path("runs/latest").resolve()
    assert capsys.readouterr().err.splitlines() == [
        "",
        "01_score.ipynb: cell In [4] failed",
        "----> 3 f()",
        "ValueError: two",
        "lines",
        f"executed so far: runs/{run.name}/notebooks/01_score.ipynb",
        f"go on with: {PYTHON} -m protolib run --resume runs/{run.name} --notebooks notebooks",
    ]
    assert [entry["state"] for entry in record(run)["notebooks"].values()] == ["done", "failed"]
    kept = nbformat.read(run / "notebooks" / "01_score.ipynb", 4)
    outputs = [out for cell in kept.cells for out in cell.get("outputs", [])]
    assert [out.text for out in outputs if out.output_type == "stream"] == ["made\n"]
    assert (run / "figures" / "00_map.png").exists() and not (run / "report.html").exists()

    write(broken, "run_dir = ''", SCORE)
    assert protolib("run", "--resume") == 0
    assert (run / "count.txt").read_text().split() == ["first", "second"]
    assert (run / "report.html").exists()


@pytest.mark.slow
def test_a_lost_kernel_is_named(folder, capsys):
    write(
        folder / "notebooks" / "00_lost.ipynb",
        "K = 3",
        "print(1)",
        "import os; os._exit(1)",
        "print(2)",
    )
    assert protolib("run") == 1
    assert capsys.readouterr().err.splitlines()[1:3] == [
        "00_lost.ipynb: cell In [3] was not finished",
        "DeadKernelError: Kernel died",
    ]
    assert record(Path("runs/latest"))["notebooks"]["00_lost"]["state"] == "failed"


@pytest.mark.slow
def test_ctrl_c_leaves_a_run_that_can_be_resumed(folder):
    os.mkfifo("started")  # opening it waits for the other side: no sleep, no polling
    story = folder / "notebooks" / "00_long.ipynb"
    write(
        story,
        "K = 3",
        "import os, time\nwith open('../started', 'w') as pipe: print(os.getpid(), file=pipe)\n"
        "time.sleep(600)",
    )
    command = [sys.executable, "-m", "protolib", "run", "--notebooks", "notebooks"]
    # a shell that put the tests in the background made them ignore Ctrl-C, and children inherit
    # that
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )

    def give_up():
        process.kill()
        os.close(os.open("started", os.O_WRONLY | os.O_NONBLOCK))  # nobody else will open it

    guard = threading.Timer(300, give_up)
    guard.start()
    kernel = int(Path("started").read_text())
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    guard.cancel()
    assert process.returncode == 130
    run = Path("runs/latest").resolve()
    assert err.splitlines() == [
        "",
        f"00_long: interrupted; what it made is kept in runs/{run.name}",
        f"go on with: {PYTHON} -m protolib run --resume runs/{run.name} --notebooks notebooks",
    ]
    assert record(run)["notebooks"]["00_long"]["state"] == "interrupted"
    with pytest.raises(ProcessLookupError):
        os.kill(kernel, 0)


@pytest.mark.slow
def test_a_termination_is_said_in_a_line_and_in_the_status(two):
    write(two / "notebooks" / "00_make.ipynb", "run_dir = ''", "import time\ntime.sleep(60)")
    command = [PYTHON, "-m", "protolib", "run", "--notebooks", "notebooks", "--run-dir", "one"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as job:
        for line in iter(job.stdout.readline, ""):
            if line.startswith("run: "):
                break
        while not (two / "one" / "notebooks" / "00_make.ipynb").is_file():  # its first cell runs
            assert job.poll() is None
        job.send_signal(signal.SIGTERM)
        _, err = job.communicate(timeout=60)
    assert job.returncode == 128 + signal.SIGTERM
    assert "00_make: interrupted; what it made is kept in one" in err
    assert "Traceback" not in err
    assert protolib("run", "--resume", "one", "-p", "K=3") in (1, 2)  # the lock is free again


def test_what_a_termination_cuts_off_says_nothing(capfd):
    class HalfMade:
        def __del__(self):
            raise AttributeError("no socket yet")

    async def awaited_by_nobody():
        pass

    def work():
        half, call = HalfMade(), awaited_by_nobody()
        signal.raise_signal(signal.SIGTERM)
        return half, call

    hook = sys.unraisablehook
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with _stoppable() as caught:
            with suppress(KeyboardInterrupt):
                work()
            gc.collect()
    assert caught == [signal.SIGTERM] and not seen and capfd.readouterr().err == ""
    assert sys.unraisablehook is hook


def test_starts_in_one_moment_get_folders_of_their_own(tmp_path):
    """Whoever makes the folder has it; the others take the next name."""
    settings = {"preset": "smoke", "dataset": "phantom", "seed": 0}
    for round_ in range(5):
        barrier, got, runs = threading.Barrier(4), [], tmp_path / str(round_)

        def start(barrier=barrier, got=got, runs=runs):
            barrier.wait()
            got.append(runner._new_folder(runs, None, settings))

        threads = [threading.Thread(target=start) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(got)) == 4


def test_a_second_run_in_a_folder_is_refused(two, finished, capsys):
    with (
        runner._held(finished),
        pytest.raises(ValueError, match="another run is going on in runs/"),
    ):
        with runner._held(finished):
            pass
    with runner._held(finished):  # free again
        assert protolib("run", "--resume", finished.name) == 2
    assert "another run is going on in " in capsys.readouterr().err


def test_an_install_that_is_only_read(two, finished, monkeypatch, capsys):
    """latest is a convenience; a run needs its own folder alone."""
    monkeypatch.setattr(
        os, "symlink", lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "x"))
    )
    monkeypatch.setattr(os, "access", lambda *_: False)
    runner._point_latest(finished.parent, finished)
    assert capsys.readouterr().out.startswith(
        "runs is not yours to write: go on with --resume runs/"
    )
    (two / "file").write_text("")
    with pytest.raises(
        ValueError, match="cannot be made .*give a folder that you may write to, wi"
    ):
        runner._new_folder(two / "file" / "runs", None, runner.DEFAULTS)


def test_braces_and_escapes_in_a_path():
    assert runner.braced(Path("{lab}/x")).format() == "{lab}/x"
    assert runner.short(Path("/a\x1b[31mb\n")) == r"/a\x1b[31mb\n"


def test_kernels_draw_and_compile_where_home_is_only_read(folder, monkeypatch):
    for name in ("NUMBA_CACHE_DIR", "MPLCONFIGDIR"):
        monkeypatch.delenv(name, raising=False)
    runner.use_own_kernel()
    assert "MPLBACKEND" not in os.environ  # a kernel has one of its own
    monkeypatch.setattr(os, "access", lambda *_: False)
    caches.writable()
    own = Path(os.environ["NUMBA_CACHE_DIR"]).parent
    assert own.stat().st_mode & 0o777 == 0o700 and own.stat().st_uid == os.getuid()
    for name in ("NUMBA_CACHE_DIR", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, "")  # undone after the test


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["-p", "k=4"],
            "no notebook has a parameter 'k', did you mean 'K'? Known: K, retrain; with options of "
            "their own: --preset, --dataset, --data, --seed, --device, --run-dir",
        ),
        (
            ["-p", "epochs=4"],
            "no notebook has a parameter 'epochs'. Known: K, retrain; with options of their own: "
            "--preset, --dataset, --data, --seed, --device, --run-dir",
        ),
        (["-p", "seed=4"], "-p seed=4: 'seed' has an option of its own: --seed 4"),
        (["-p", "K"], "-p K: expected name=value, for example -p K=4"),
        (["-p", "K=2.5"], "preset quick: K = 2.5; give a whole number\n"),
        (["-p", "K=-1"], "preset quick: K = -1; give 1 to 100\n"),
        (["-p", "K=three"], "preset quick: K = 'three'; give a whole number\n"),
        (["-p", "retrain=no"], "-p retrain=no: give true or false; true deletes trained networks"),
        (["-p", "retrain=1"], "-p retrain=1: give true or false; true deletes trained networks"),
        (["--device", "cuda"], "device 'cuda' is not here; choose auto or one of cpu\n"),
        (["--device", "cuda:0"], "device 'cuda:0' is not here; choose auto or one of cpu\n"),
        (["--device", "mps"], "device 'mps' is not here; choose auto or one of cpu\n"),
        (["--device", "tpu"], "device 'tpu' is not here; choose auto or one of cpu\n"),
        (["--preset", "quik"], "preset 'quik' is not known; choose one of "),
        (["--dataset", "bcs"], "dataset 'bcs' is not known. Known: phantom, "),
        (["--dataset", "bcss-wsss", "--data", "nowhere"], "bcss-wsss in "),
        (
            ["--run-dir", "notebooks"],
            "notebooks is there already; choose another --run-dir, or go on with it: --resume ",
        ),
        (
            ["--resume"],
            "no run 'latest' with a run.json in runs; start one with: python -m protolib run",
        ),
    ],
)
def test_refused_before_work(two, monkeypatch, capsys, arguments, message):
    from torch import backends, cuda

    monkeypatch.setattr(cuda, "is_available", lambda: False)
    monkeypatch.setattr(backends.mps, "is_available", lambda: False)
    write(two / "notebooks" / "02_train.ipynb", "run_dir = ''\nretrain = False")
    assert protolib("run", *arguments) == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"protolib: {message}") and out == "" and not (two / "runs").exists()


def test_a_folder_whose_start_was_killed_before_its_record_is_taken(two):
    run = two / "mine"
    (run / "cache").mkdir(parents=True)
    for name in (".running.lock", ".run.json.0f.part"):
        (run / name).touch()
    assert runner._new_folder(two / "runs", run, runner.DEFAULTS) == run
    for name in ("run.json", "notes.txt"):  # a run, and somebody's own files
        (run / name).touch()
        with pytest.raises(ValueError, match="mine is there already"):
            runner._new_folder(two / "runs", run, runner.DEFAULTS)
        (run / name).unlink()


def test_a_folder_without_notebooks_is_refused(folder, capsys):
    assert protolib("run") == 2
    assert (
        capsys.readouterr().err
        == "protolib: no notebook 0*.ipynb in notebooks; pass --notebooks DIR\n"
    )
    (folder / "notebooks" / "00_bad.ipynb").write_text("{")
    assert protolib("run") == 2
    assert capsys.readouterr().err.startswith(
        "protolib: 00_bad.ipynb is no notebook that papermill can read: "
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"parameters": {', "run.json is no JSON: .* line 1"),
        ("[]", "run.json: found .*; expected keys parameters, notebooks"),
        ("{}", "run.json: missing parameters, notebooks, classes"),
        ('"parameters"', "run.json: parameters is 7; expected an object"),
        ('"preset"', "run.json: parameters: preset is 7; expected a text"),
    ],
)
def test_a_damaged_record_of_a_run_is_named(tmp_path, text, said):
    given = {"preset": "smoke", "dataset": "phantom", "data_root": "", "seed": 0}
    whole = {"parameters": given, "notebooks": {}, "classes": [], "titles": [], "peak_rss_mb": None}
    if text.startswith('"'):  # one value is of another kind
        name = json.loads(text)
        (whole if name in whole else given)[name] = 7
        text = json.dumps(whole)
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=said):
        runner.record_of(tmp_path)


def test_another_seed_is_another_run(two, finished, capsys):
    assert protolib("run", "--resume", finished.name, "--seed", "4") == 2
    assert capsys.readouterr().err == (
        f"protolib: runs/{finished.name} was run with --seed 3, not 4: "
        "that is another run; leave --resume away to start it\n"
    )


def test_values_of_p_are_literals_or_text():
    pairs = [
        "a=3",
        "b=1e-4",
        "c=true",
        "d=null",
        "e=lite0",
        "f=[1, 2]",
        "g='3'",
        "h=",
        "i=x=y",
        "j=no",
    ]
    assert runner.parse(pairs) == {
        "a": 3,
        "b": 1e-4,
        "c": True,
        "d": None,
        "e": "lite0",
        "f": [1, 2],
        "g": "3",
        "h": "",
        "i": "x=y",
        "j": "no",
    }


def test_latest_is_a_text_file_where_links_are_not_possible(finished, monkeypatch):
    def refuse(*_, **__):
        raise OSError("no right to make links")

    monkeypatch.setattr(os, "symlink", refuse)
    runner._point_latest(finished.parent, finished)
    assert (finished.parent / "latest.txt").read_text() == f"{finished.name}\n"
    assert runner.find(finished.parent, "latest") == finished


@pytest.fixture
def finished(folder):
    """A run folder as a finished run leaves it, made by hand."""
    run = folder / "runs" / "20260101-000000-smoke-phantom-3"
    (run / "figures").mkdir(parents=True)
    (run / "notebooks").mkdir()
    for name, caption in (("04_b", "Second."), ("04_a", "First <b>."), ("02_umap_plot", None)):
        (run / "figures" / f"{name}.png").write_bytes(PNG)
        if caption:
            (run / "figures" / f"{name}.txt").write_text(caption)
    write(run / "notebooks" / "04_cam_training.ipynb", "K = 3")
    settings = {
        "preset": "smoke",
        "dataset": "phantom",
        "data_root": "",
        "seed": 3,
        "device": "auto",
    }
    titles = ["tumour", "stroma", "lymphocytes", "necrosis"]
    notebooks = {
        "04_cam_training": {"sha256": "", "parameters": {}, "state": "done", "seconds": 61.25}
    }
    files.write_json(
        run / "run.json",
        {
            "protolib": "0.1.0",
            "parameters": settings,
            "titles": titles,
            "classes": ["TUM", "STR", "LYM", "NEC"],
            "notebooks": notebooks,
            "peak_rss_mb": 1234.5,
        },
    )
    files.write_json(run / "results.json", RESULTS)
    return run


class Reader(HTMLParser):
    """Cells of the tables, what figures hold, and every address on a page."""

    def __init__(self, text):
        super().__init__()
        self.cells, self.heads, self.captions, self.addresses, self.tag = [], [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tag = tag
        self.addresses += [
            value for name, value in attributes if name in ("src", "href", "srcset", "action")
        ]

    def handle_data(self, data):
        kept = {"td": self.cells, "th": self.heads} | dict.fromkeys(
            ("h2", "figcaption", "p"), self.captions
        )
        if data.strip():
            kept.get(self.tag, []).append(data.strip())


def test_report_writes_one_page_that_needs_nothing_else(finished, capsys):
    assert protolib("report", finished.name) == 0
    assert "| CAM    |     50.0 |" in capsys.readouterr().out
    text = (finished / "report.html").read_text("utf-8")
    seen = Reader(text)
    image = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    parts = [f"#part-{n}" for n in range(1, 5)]
    assert seen.addresses == ["data:,", *parts, image, image, image] and "http" not in text
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text
    assert seen.cells == [
        "CAM",
        "50.0",
        "60.0",
        "25.0",
        "62.5",
        "75.0",
        "–",
        "25.0",
        "50.0",
        "CAM",
        "87.5",
        "60.0",
        "25.0",
        "62.5",
        "75.0",
        "–",
        "25.0",
        "50.0",
        "04_cam_training",
        "61.2",
        "all",
        "61.2",
    ]
    assert seen.heads[:6] == [
        "method",
        "mIoU (%)",
        "FwIoU (%)",
        "bIoU (%)",
        "Dice (%)",
        "IoU tumour (%)",
    ]
    means = "Means are over tumour, lymphocytes, necrosis: the others have no true pixel."
    order = [
        seen.captions.index(caption)
        for caption in (
            "Preset smoke, seed 3, device cpu, protolib 0.1.0.",
            "Scores on the test split",
            f"Protocol: {DEFAULT}. {means}",
            f"Protocol: {ORACLE}. {means}",
            "notebook 02",
            "umap plot",
            "The story of 04_cam_training",
            "04_cam_training",
            "First <b>.",
            "Second.",
            "Time and memory",
            "Seconds per notebook on this machine. Peak memory of one process: 1234 MB.",
        )
    ]
    assert order == sorted(order)


def test_a_run_without_scores_still_has_its_figures(finished, capsys):
    (finished / "results.json").unlink()
    assert protolib("report", str(finished)) == 0
    assert capsys.readouterr().out == (
        "no results.json: the notebooks of this run wrote no scores\n"
        f"report: runs/{finished.name}/report.html\n"
    )
    assert (
        "The notebooks of this run wrote no scores."
        in Reader((finished / "report.html").read_text()).captions
    )


def test_a_caption_with_a_dollar_or_a_brace_stays_as_it_is(finished):
    (finished / "figures" / "04_a.txt").write_text("costs $title {0} & more")
    assert "costs $title {0} &amp; more" in html.write(finished).read_text("utf-8")
