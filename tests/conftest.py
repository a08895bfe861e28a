"""What every test may ask for; torch and the hub are loaded by those who do."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest


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
