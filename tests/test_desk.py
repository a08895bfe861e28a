"""A reader's own copies: what is copied, what is kept, how JupyterLab is started, and memory given
back."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from protolib import __main__
from protolib.teach import desk

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def kit(tmp_path):
    """A kit of two notebooks and a page."""
    for name in ("00_start", "03_loss"):
        (tmp_path / "notebooks").mkdir(exist_ok=True)
        (tmp_path / "notebooks" / f"{name}.ipynb").write_text(f"{name}, as it comes")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "glossary.md").write_text("stroma")
    return tmp_path


def texts(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(folder.glob("*.ipynb"))}


def test_missing_copies_are_made_and_own_work_is_left_alone(kit):
    own = kit / "work"
    own.mkdir()
    (own / "03_loss.ipynb").write_text("mine")
    assert [path.name for path in desk.lay_out(kit / "notebooks", own)] == ["00_start.ipynb"]
    assert texts(own) == {"00_start.ipynb": "00_start, as it comes", "03_loss.ipynb": "mine"}
    assert desk.lay_out(kit / "notebooks", own) == []


def test_reset_makes_one_anew_and_keeps_the_old_one(kit):
    own = kit / "work"
    desk.lay_out(kit / "notebooks", own)
    for written in ("first try", "second try"):
        (own / "03_loss.ipynb").write_text(written)
        (own / "00_start.ipynb").write_text("mine")
        new = desk.lay_out(kit / "notebooks", own, reset="03")
        assert [path.name for path in new] == ["03_loss.ipynb"]
    assert texts(own) == {"00_start.ipynb": "mine", "03_loss.ipynb": "03_loss, as it comes"}
    assert list(texts(own / "old").values()) == ["first try", "second try"]


@pytest.mark.parametrize("reset, found", [("04", 0), ("0", 2)])
def test_reset_names_one_notebook_or_is_refused_before_anything_is_copied(kit, reset, found):
    with pytest.raises(ValueError, match=f"'{reset}' names {found} notebooks.*00_start, 03_loss"):
        desk.lay_out(kit / "notebooks", kit / "work", reset)
    assert not (kit / "work").exists()


def tree(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_two_users_of_one_read_only_kit_have_desks_of_their_own(kit, tmp_path_factory):
    (kit / "results").mkdir()
    (kit / "results" / "a.json").write_text("{}")
    before = tree(kit)
    for path in (*kit.rglob("*"), kit):  # root may write all the same: the tree is compared
        path.chmod(0o555 if path.is_dir() else 0o444)
    homes = [tmp_path_factory.mktemp("home") / name / "protolib" for name in ("ada", "bo")]
    for home in homes:
        new = desk.lay_out(kit / "notebooks", home / "work")
        new[0].write_text(f"{home.parent.name}'s")  # the copies are theirs to write
    assert [tree(home)["work/00_start.ipynb"] for home in homes] == ["ada's", "bo's"]
    for home in homes:
        assert sorted(tree(home)) == [
            "docs/glossary.md",
            "results/a.json",
            "work/00_start.ipynb",
            "work/03_loss.ipynb",
        ]
    for path in (kit, *kit.rglob("*")):
        path.chmod(0o755)
    assert tree(kit) == before


def test_jupyterlab_opens_at_the_first_notebook_or_the_one_made_anew(kit):
    own = kit / "work"
    desk.lay_out(kit / "notebooks", own)
    command = desk.command(own, "", ("--port=9",))
    assert command[:3] == [sys.executable, "-m", "jupyterlab"] and command[-1] == "--port=9"
    assert f"--ServerApp.root_dir={kit}" in command
    assert "--LabApp.default_url=/lab/tree/work/00_start.ipynb" in command
    assert "--LabApp.default_url=/lab/tree/work/03_loss.ipynb" in desk.command(own, "03")
    settings = json.loads((own / ".lab" / "overrides.json").read_text())
    assert settings["@jupyterlab/apputils-extension:notification"]["fetchNews"] == "false"


def test_the_command_line_hands_jupyterlabs_options_on_and_no_others(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(desk, "start", lambda *given: asked.append(given) or 0)
    assert __main__.main(["lab", "--reset", "03", "--no-browser"]) == 0
    assert asked == [(ROOT / "notebooks", ROOT / "work", "03", ("--no-browser",))]
    with pytest.raises(SystemExit) as refused:
        __main__.main(["report", "--no-browser"])
    assert refused.value.code == 2 and "--no-browser" in capsys.readouterr().err


def test_copies_alone_for_a_hub(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(desk, "start", None)
    assert __main__.main(["lab", "--only-copy", "--desk", str(tmp_path / "work")]) == 0
    count = len(list((ROOT / "notebooks").glob("*.ipynb")))
    assert capsys.readouterr().out == f"{count} new copies in {tmp_path / 'work'}\n"
    assert len(list((tmp_path / "work").glob("*.ipynb"))) == count


def test_git_does_not_see_the_copies():
    ignored = subprocess.run(
        ["git", "check-ignore", "work/00_start_here.ipynb"], cwd=ROOT, capture_output=True
    )
    assert ignored.returncode == 0


def test_what_a_control_draws_with_is_spared(monkeypatch):
    names: dict = {}
    exec(
        "from functools import cache\n"
        "def inner(): return [far for _ in (1,)]\n"
        "@cache\n"
        "def kept(): return deep\n"
        "def draw(a, bound=1): return (lambda: near)(), inner(), kept()\n"
        "near, far, deep, other, __name__ = 1, 2, 3, 4, 'n'\n",
        names,
    )
    monkeypatch.setattr("protolib.teach.viz.PLAYED", [names["draw"]])
    desk.free(names)
    assert {"near", "far", "deep", "inner", "draw"} <= set(names) and "other" not in names
    assert names["draw"](0) == (1, [2], 3)


def test_memory_is_given_back_and_the_peak_is_said(capsys):
    import numpy as np

    names = {"np": np, "f": len.__class__, "big": np.ones(25_000_000), "__name__": "n", "_oh": {}}
    desk.free(names)
    assert set(names) == {"np", "f", "__name__", "_oh"}
    said = capsys.readouterr().out
    peak, now = (float(text.split(" GB")[0]) for text in said.split(": ", 1)[1].split("; now "))
    assert peak > now > 0 and peak - now > 0.19  # the array took .2 GB
