"""What every test may ask for; torch and the hub are loaded by those who do."""

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.hookimpl(optionalhook=True)  # pytest-xdist's: make test and make quick
def pytest_xdist_make_scheduler(config, log):
    """Whole files go to whichever process is free, so that what a file shares is made once; all
    notebooks are one file, for each goes on with what those before it have trained."""
    from xdist.scheduler import LoadFileScheduling

    class Files(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "notebooks" if file.endswith(".ipynb") else file

    return Files(config, log)


FIRST = [f"test_{name}.py" for name in ("notebooks", "ablate", "kernels", "classroom")]


def pytest_collection_modifyitems(items):
    """The notebooks, then the files that take minutes: begun last, one of them would keep a process
    at work while the other has nothing left."""
    place = {name: i for i, name in enumerate(FIRST)}
    chapter = lambda item: item.path.suffix == ".ipynb"
    items.sort(key=lambda item: -1 if chapter(item) else place.get(item.path.name, len(FIRST)))


def pytest_configure(config):
    """nbval's kernels are forked, as those of a run are: they compute the same, see test_kernels,
    and none imports again what the first notebook's kernel has imported."""
    if sys.platform != "linux":
        return
    import nbval.kernel

    class Forking(nbval.kernel.KernelManager):
        async def _async_pre_start_kernel(self, **kw):
            from protolib.study import kernels

            self.kernel_id = os.urandom(16).hex()
            own = dict(kernel_id=self.kernel_id, kernel_spec=self.kernel_spec, parent=self)
            self.provisioner = kernels.Forked(**own)
            return await super()._async_pre_start_kernel(**kw)

    nbval.kernel.KernelManager = Forking


@pytest.fixture(autouse=True)
def environment():
    """What a command sets for its kernels, such as their threads, ends with its test: the processes
    of later tests would compute with others than the tests themselves."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(autouse=True)
def checked(tmp_path_factory, monkeypatch):
    """What was found in folders of tests is not kept in HOME."""
    from protolib import files

    home = tmp_path_factory.getbasetemp() / "cache"
    home.mkdir(exist_ok=True)
    monkeypatch.setattr(files, "home_cache", lambda: home if os.access(home, os.W_OK) else None)


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder of the repository."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def read(tmp_path_factory) -> Callable[..., list[dict]]:
    """Results of fake_results as the ledger reads them from their files."""
    import fake_results

    from protolib.study import ledger

    def of(*results: dict) -> list[dict]:
        folder = tmp_path_factory.mktemp("results")
        fake_results.write(folder, *results)
        return ledger.read(folder)

    return of


@pytest.fixture(scope="module")
def drawn_once():
    """The phantom's patches are drawn once for a module whose tests ask for the same ones, each in
    a cache of its own; they are not what it tests."""
    from protolib.data import phantom

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phantom, "draw", functools.cache(phantom.draw))
        yield


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder of weights, empty, and no network."""
    from huggingface_hub import constants

    monkeypatch.setenv("PROTOLIB_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


@pytest.fixture
def x():
    """Two images, (2, 3, 64, 64) in [0, 1], the same each time."""
    import torch

    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
