"""Kernels that are forked: each a process of its own, with its own variables, folder and end."""

import ast
import os
import select
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
import papermill
import pytest
import torch
from jupyter_client import AsyncKernelManager

from protolib import files
from protolib.study import kernels, runner

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux alone"),
]
SAYS = """
import os
import protolib.experiment, torch
print([os.getpid(), os.getppid(), os.environ.get("COLOUR"), os.getcwd(),
       "changed" in globals(), hasattr(torch, "changed")])
changed = torch.changed = True
"""


@pytest.fixture
def said(tmp_path, monkeypatch):
    """What a kernel says of itself."""
    cell = nbformat.v4.new_code_cell(SAYS)
    spec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    book = nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": spec})
    nbformat.write(book, tmp_path / "in.ipynb")
    monkeypatch.setenv("JUPYTER_PATH", os.environ.get("JUPYTER_PATH", ""))
    runner.use_own_kernel()

    def of(cwd):
        done = papermill.execute_notebook(
            tmp_path / "in.ipynb",
            tmp_path / "out.ipynb",
            cwd=cwd,
            kernel_name="python3",
            progress_bar=False,
            kernel_manager_class=kernels.Manager,
            shutdown_kernel="immediate",
        )
        [output] = done.cells[0].outputs
        return ast.literal_eval(output.text)

    return of


def test_kernels_share_a_parent_and_nothing_else(said, tmp_path, monkeypatch):
    monkeypatch.setenv("COLOUR", "red")
    first, parent, *rest = said(tmp_path)
    assert rest == ["red", str(tmp_path), False, False]
    (tmp_path / "other").mkdir()
    monkeypatch.delenv("COLOUR")
    second, same, *rest = said(tmp_path / "other")
    assert rest == [None, str(tmp_path / "other"), False, False]
    nest = kernels.nest()
    assert parent == same == nest.process.pid and first != second
    assert {first, second} <= nest.ended.keys()  # both are gone, and waited for
    assert 100 < kernels.peak_rss_mb() < 3000


def test_another_number_of_threads_is_another_nest(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    one = kernels.nest()
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    two = kernels.nest()
    assert one is not two and kernels.nest() is two
    two.process.kill()
    two.process.wait()
    assert two.fork(["-f", "none.json"], {}, "/") == 0  # and the manager starts a plain one
    assert kernels.Kernel(two, 10**7).poll() == -9


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """A temporary folder of its own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    kernels.connections.cache_clear()
    yield tmp_path / "tmp"
    kernels.connections.cache_clear()


def test_connection_files_stand_in_a_private_folder_of_the_process(said, tmp_path, temporary):
    said(tmp_path)
    [folder, lock] = sorted(temporary.iterdir())  # and nothing else in the temporary folder
    assert folder == kernels.connections() and lock.name == f"{folder.name}.lock"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert list(folder.iterdir()) == []  # its kernel has ended


def told(cell) -> list[dict]:
    """What a cell shows by kind of output, but bars, each of which has a name of its own."""
    found = [output.get("data", {}) for output in cell.get("outputs", [])]
    return [data for data in found if data and not any("widget" in kind for kind in data)]


def test_a_forked_kernel_computes_what_a_plain_one_does(tmp_path, monkeypatch, root):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("JUPYTER_PATH", os.environ.get("JUPYTER_PATH", ""))
    runner.use_own_kernel()
    asked = {"preset": "smoke", "device": "cpu", "settings": {"patches": [48, 4, 8]}}
    made, shown, weights = [], [], []
    for name, kind in (("forked", kernels.Manager), ("plain", AsyncKernelManager)):
        own = tmp_path / name
        own.mkdir()
        done = papermill.execute_notebook(
            root / "notebooks" / "one_run.ipynb",
            own / "one_run.ipynb",
            asked | {"run_dir": str(own)},
            cwd=own,
            kernel_name="python3",
            progress_bar=False,
            config=runner.KERNEL,
            kernel_manager_class=kind,
            shutdown_kernel="immediate",
        )
        made.append(files.read_json(own / "made.json"))
        shown.append([data for cell in done.cells for data in told(cell)])
        file = own / "pbip_stage1" / "checkpoint.pt"
        weights.append(torch.load(file, weights_only=True)["net"])
    for one in made:
        assert one.pop("seconds") > 0 and one.pop("peak_rss_mb") > 0
    assert made[0] == made[1] and shown[0] == shown[1]  # to the last digit, and to the pixel
    assert any("image/png" in data for data in shown[0])
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


NEVER = """
import sys
from protolib.study import kernels
kernels.IMPORTS = ("never",)
kernels.main()
"""


def test_a_nest_that_still_imports_ends_with_its_parent(tmp_path):
    (tmp_path / "never.py").write_text("import signal\nwhile True:\n    signal.pause()\n")
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    with subprocess.Popen([sys.executable, "-c", NEVER], stdin=subprocess.PIPE, env=env) as nest:
        nest.stdin.write(b"{}\n")  # what was asked of it is nobody's any more
        nest.stdin.close()
        assert nest.wait(120) == 0


ORPHAN = """
import os, sys, time
from protolib.study import kernels
(kernels.connections() / "a.json").touch()
nest = kernels.Nest()
pid = nest.fork(["-f", sys.argv[1]], os.environ, "/")
print(nest.process.pid, pid, flush=True)
time.sleep(600)
"""


def test_the_nest_and_its_kernels_end_with_their_parent(tmp_path, temporary):
    command = [sys.executable, "-c", ORPHAN, tmp_path / "kernel.json"]
    env = os.environ | {"TMPDIR": str(temporary)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=env) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        watched = [os.pidfd_open(pid) for pid in pids]  # the kernel still imports
        parent.kill()
    for handle in watched:  # readable from the moment the process ends
        assert select.select([handle], [], [], 60)[0]
        os.close(handle)
    # what it left in the temporary folder goes with the next start
    assert len(list(temporary.glob("protolib-kernels-*"))) == 2
    own = kernels.connections()
    assert sorted(temporary.glob("protolib-kernels-*")) == [own, Path(f"{own}.lock")]
