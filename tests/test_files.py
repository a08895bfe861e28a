"""Files whole or not at all: what killed processes leave goes, what living ones hold stays, what is
damaged is named."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest
from filelock import FileLock

from protolib import files


def left_behind(parent, name=".making-dead"):
    """A scratch folder as SIGKILL leaves it: folder and lock are there, nobody holds the lock."""
    folder = parent / name
    folder.mkdir(parents=True)
    (folder / "half.npy").write_bytes(b"half")
    (parent / f"{name}.lock").touch()
    return folder


def old(path):
    """A file that was written an hour ago."""
    path.write_bytes(b"half")
    os.utime(path, (time.time() - 3600,) * 2)
    return path


def test_a_scratch_folder_goes_with_what_is_left_in_it(tmp_path):
    parent = tmp_path / "new" / "cache"
    with files.scratch(parent) as folder:
        assert folder.parent == parent and folder.name.startswith(".making-")
        (folder / "part").mkdir()
        (folder / "part").rename(parent / "made")
        (folder / "rest").touch()
    assert os.listdir(parent) == ["made"]
    with pytest.raises(OSError, match="full"), files.scratch(parent) as folder:
        (folder / "part").touch()
        raise OSError("the disk is full")
    assert os.listdir(parent) == ["made"]


def test_the_next_scratch_folder_sees_the_dead_off_and_lets_the_living_be(tmp_path):
    dead, other = left_behind(tmp_path), left_behind(tmp_path, ".other-dead")
    with files.scratch(tmp_path) as first:
        assert not dead.exists() and other.exists()
        (first / "work").touch()
        with files.scratch(tmp_path) as second:
            assert (first / "work").exists() and first != second
    assert sorted(os.listdir(tmp_path)) == [".other-dead", ".other-dead.lock"]


def test_a_folder_without_its_lock_is_not_touched(tmp_path):
    """Its owner may have made the lock and not the folder yet, never the other way round: this one
    is nobody's of ours."""
    (tmp_path / ".making-mine").mkdir()
    with files.scratch(tmp_path):
        pass
    assert os.listdir(tmp_path) == [".making-mine"]


def test_sweep_removes_what_nobody_holds_at_any_depth(tmp_path):
    dead = left_behind(tmp_path / "cache" / "deep")
    parts = [old(tmp_path / ".a.pt.1.part"), old(tmp_path / "cache" / ".b.json.2.part")]
    kept = [old(tmp_path / "c.part"), old(tmp_path / ".d"), tmp_path / ".e.pt.3.part"]
    kept[-1].touch()  # so young that it may be about to be renamed
    with files.scratch(tmp_path / "cache") as alive, files.whole(tmp_path / "f.pt") as file:
        os.utime(file.fileno(), (time.time() - 3600,) * 2)
        files.sweep(tmp_path)
        assert alive.is_dir() and not dead.exists() and not any(p.exists() for p in parts)
        file.write(b"all of it")
    assert (tmp_path / "f.pt").read_bytes() == b"all of it"
    assert all(path.exists() for path in kept)
    files.sweep(tmp_path / "nowhere")  # nothing there to remove


DIES = """
import os, signal, sys
from protolib import files
with files.scratch(sys.argv[1]) as folder, files.whole(folder.parent / "made.pt") as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_what_a_killed_process_held_is_free(tmp_path):
    assert subprocess.run([sys.executable, "-c", DIES, tmp_path]).returncode == -9
    names = sorted(os.listdir(tmp_path))
    assert [name[:8] for name in names] == [".made.pt", ".making-", ".making-"]
    os.utime(tmp_path / names[0], (time.time() - 3600,) * 2)
    files.sweep(tmp_path)
    assert os.listdir(tmp_path) == []


def test_whole_numbers_of_toml_have_64_bits_wherever_they_stand():
    most, least = 2**63 - 1, -(2**63)
    assert files.toml(f"a = [{most}, {{ b = {least} }}]") == {"a": [most, {"b": least}]}
    for text in (f"a = {most + 1}", f"a = [[0x8{'0' * 15}]]", f"[a]\nb = {{ c = {least - 1} }}"):
        with pytest.raises(ValueError, match="a whole number has more than 64 bits"):
            files.toml(text)


def test_a_lock_that_another_process_would_hold_is_respected(tmp_path):
    folder = left_behind(tmp_path)
    with FileLock(f"{folder}.lock"):
        files.sweep(tmp_path)
        with files.scratch(tmp_path):
            assert folder.exists()
    files.sweep(tmp_path)
    assert os.listdir(tmp_path) == []


def cut(path):
    path.write_bytes(path.read_bytes()[:-30])


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"<!DOCTYPE html>"),
        lambda path: path.write_bytes(path.read_bytes().replace(b"\x00", b"\x01")),
    ],
    ids=["cut", "empty", "text", "other bytes"],
)
def test_a_damaged_npz_or_json_is_named_with_what_to_do(tmp_path, damage):
    npz, text = tmp_path / "a.npz", tmp_path / "a.json"
    files.write_npz(npz, values=np.arange(1000), more=np.zeros(1000))
    files.write_json(text, {"ä": list(range(30))})
    text.write_bytes(text.read_bytes() + b"\xff\x00")
    assert np.array_equal(files.read_npz(npz)["values"], np.arange(1000))
    for path, read, kind in ((npz, files.read_npz, "npz"), (text, files.read_json, "JSON")):
        damage(path)
        with pytest.raises(ValueError) as error:
            read(path)
        said = str(error.value)
        assert said.startswith(f"{path} is no {kind}: ")
        assert said.endswith("; delete it and run the step that writes it again")
