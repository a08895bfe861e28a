"""What docs/security.md promises and no other test holds: pickles that were planted, what the code
may not call, names that are code to a browser or a terminal, who may reach JupyterLab."""

import ast
import os
import pickle
import re
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from bs4 import BeautifulSoup
from torch import nn

from protolib import bank, files, results, training
from protolib.__main__ import main
from protolib.blocks import Table, markdown
from protolib.data import phantom
from protolib.data.patches import load
from protolib.experiment import Run
from protolib.nets.published import PUBLISHED
from protolib.presets import PRESETS
from protolib.study import html
from protolib.teach import desk

ROOT = Path(__file__).resolve().parent.parent
CODE = [path for name in ("protolib", "data_download") for path in (ROOT / name).rglob("*.py")]
HOSTILE = '<script>alert(1)</script> "onload=x" \x1b]0;owned\x07\x1b[31m \u202e'


# no pickle


class Trap:
    """What makes a folder where it is unpickled."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.fixture
def trap(tmp_path):
    """A pickle that would make a folder; the test ends well where it did not."""
    yield Trap(tmp_path / "sprung")
    assert not (tmp_path / "sprung").exists()


def as_array(trap: Trap) -> np.ndarray:
    return np.array([trap], dtype=object)


def test_a_pickle_in_the_cache_of_patches_is_drawn_anew(tmp_path, trap):
    drawn = {"size": 64, "drawing": phantom.Drawing(patches=4), "cache": tmp_path / "cache"}
    wanted = load("phantom", "val", **drawn).images.copy()
    file = next((tmp_path / "cache").rglob("images.npy"))
    os.chmod(file, 0o644)
    np.save(file, as_array(trap), allow_pickle=True)
    with pytest.warns(UserWarning, match="is damaged .*made again"):
        np.testing.assert_array_equal(load("phantom", "val", **drawn).images, wanted)


def test_a_pickle_in_the_cache_of_features_is_refused(tmp_path, trap, monkeypatch):
    run = Run("smoke", run_dir=tmp_path, device="cpu")
    monkeypatch.setattr(run, "_features_key", lambda *_: "k" * 32)
    run.cache.mkdir()
    np.savez(run.cache / f"features-{'k' * 32}.npz", features=as_array(trap))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        run.features()


def test_a_pickle_in_the_bank_of_a_run_is_refused(tmp_path, trap):
    files.write_json(
        tmp_path / "bank.json", {"classes": ["A"], "K": 1, "kind": "centre", "members": [[]]}
    )
    np.savez(tmp_path / "bank.npz", origin=as_array(trap))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        bank.Bank.open(tmp_path)


@pytest.mark.parametrize("save", ["torch", "pickle"])
def test_a_pickle_for_a_checkpoint_is_refused(tmp_path, trap, save):
    place, net = training.Place(tmp_path, "k", 0), nn.Linear(1, 1)
    state = {"key": "k", "net": trap, "history": []}
    if save == "torch":
        torch.save(state, tmp_path / "checkpoint.pt")
    else:
        (tmp_path / "checkpoint.pt").write_bytes(pickle.dumps(state))
    for read in (lambda: training.resume(place, net), lambda: training.finished(place, P)):
        with pytest.raises((ValueError, RuntimeError, pickle.UnpicklingError)):
            read()


P = PRESETS["smoke"]
FORBIDDEN = "pickle joblib dill shelve marshal".split()  # modules that read code from files
RUNNING = "eval exec os.system os.popen yaml.load yaml.unsafe_load".split()


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_reads_a_pickle_or_runs_a_text(path):
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            named = [getattr(node, "module", None) or "", *(name.name for name in node.names)]
            if named == ["pickle", "UnpicklingError"]:  # to catch what torch.load raises
                continue
            assert not {name.split(".")[0] for name in named} & set(FORBIDDEN)
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            given = {word.arg: ast.unparse(word.value) for word in node.keywords}
            assert called not in RUNNING
            assert given.get("shell", "False") == given.get("allow_pickle", "False") == "False"
            assert called != "torch.load" or given["weights_only"] == "True"


# names that are code


def test_what_strangers_wrote_is_no_code_to_a_browser(tmp_path):
    block = {"miou": 0.5, "fwiou": 0.5, "biou": 0.5, "dice": 0.5, "iou": [0.5, 0.5]}
    block |= {"image_labels": "predicted", "ignore": "dropped", "title": HOSTILE}
    oracle = {k: v for k, v in block.items() if k != "title"} | {"image_labels": "oracle"}
    record = dict.fromkeys(("preset", "dataset", "device", "protolib"), HOSTILE)
    record |= {"seed": 0, "threads": 1, "seconds": {HOSTILE: 1.0}, "peak_rss_mb": 1.0}
    record["methods"] = {"cam": block | {"oracle": oracle}}
    files.write_json(tmp_path / "results.json", results.record(**record))
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "04_x.png").write_bytes(b"no picture")
    (tmp_path / "figures" / "04_x.txt").write_text(HOSTILE)
    text = html.write(tmp_path, titles=[HOSTILE, "b"]).read_text("utf-8")
    page = BeautifulSoup(text, "html.parser")
    assert not page.find_all("script") and text.count("&lt;script&gt;") > 5
    for tag in page.find_all(True):
        assert not [name for name in tag.attrs if name.startswith("on")]
    assert page.find("img")["alt"].startswith("<script>")


def test_what_strangers_wrote_is_no_command_to_a_terminal():
    said = markdown([Table([HOSTILE, "x"], [[HOSTILE, "1"]], [HOSTILE])]) + files.printed(HOSTILE)
    assert all(letter.isprintable() or letter == "\n" for letter in said)
    assert r"\x1b]0;owned\x07" in files.printed(HOSTILE)


# JupyterLab


def test_jupyterlab_listens_to_this_machine_alone_and_wants_its_token(tmp_path, monkeypatch):
    from jupyter_server.auth import IdentityProvider
    from jupyter_server.serverapp import ServerApp

    given = [word for word in desk.command(tmp_path, "") if word.startswith("--")]
    known = ("root_dir", "app_settings_dir", "default_url")  # nothing of address, token or origin
    assert given and all(re.match(rf"--\w+\.({'|'.join(known)})=", word) for word in given)
    monkeypatch.delenv("JUPYTER_TOKEN", raising=False)
    app = ServerApp()
    assert app.ip == "localhost" and app.allow_origin == "" and not app.allow_root
    assert len(IdentityProvider().token) >= 32
    docker = (ROOT / ".devcontainer" / "Dockerfile").read_text("utf-8")
    assert "-p 127.0.0.1:8888:8888" in docker and "token" not in docker


# licences, and the page


def test_the_licence_of_every_package_and_all_weights_is_listed(capsys):
    assert main(["doctor", "--licences"]) == 0
    said = capsys.readouterr().out
    for of in metadata.distributions():
        assert f"  {of.name} {of.version}: " in said
    assert "  torch " in said and re.search(r"  numpy \S+: BSD", said)
    for name, of in PUBLISHED.items():
        assert f"  {name}: {of.licence}\n" in said
    assert "  lite0: Apache-2.0\n" in said
    assert all(len(line) < 200 for line in said.splitlines())


def test_a_package_that_says_its_licence_in_any_of_three_ways():
    from protolib.study.doctor import _licence

    def of(**said):
        return SimpleNamespace(get_all=said.get)

    kind = "License :: OSI Approved :: BSD License"
    assert _licence(of(**{"License-Expression": ["MIT"]}, Classifier=[kind])) == "MIT"
    assert _licence(of(License=["\nApache 2\n\nTERMS AND ...\x1b"])) == "Apache 2"
    assert _licence(of(Classifier=["Topic :: x", kind], License=["  "])) == "BSD License"
    assert _licence(of()) == "none stated"


def test_every_test_that_the_page_names_is_there():
    page = (ROOT / "docs" / "security.md").read_text("utf-8")
    named = re.findall(r"`(test_\w+)\.(test_\w+)`", page)
    assert len(named) > 25
    for file, name in named:
        assert f"def {name}(" in (ROOT / "tests" / f"{file}.py").read_text("utf-8"), name


def test_known_holes_of_the_lock_are_looked_for_by_the_workflow():
    workflow = yaml.safe_load((ROOT / ".github/workflows/check.yml").read_text("utf-8"))
    runs = [step["run"] for step in workflow["jobs"]["audit"]["steps"] if "run" in step]
    assert any("pip-audit" in run and "requirements.lock" in run for run in runs)
