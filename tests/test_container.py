"""The container says what the kit needs, asks for nothing that is not there, and runs as nobody
special. It is built only where docker is."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".devcontainer"


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile as (instruction, words), comments left out and lines joined."""
    text = (FOLDER / "Dockerfile").read_text("utf-8")
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    found = lines.replace("\\\n", " ").splitlines()
    return [tuple(line.split(maxsplit=1)) for line in found if line.strip()]


def test_the_devcontainer_builds_our_dockerfile_from_the_kits_folder():
    config = json.loads((FOLDER / "devcontainer.json").read_text("utf-8"))
    build = config["build"]
    assert (FOLDER / build["dockerfile"]).is_file()
    assert (FOLDER / build["context"]).resolve() == ROOT
    users = [words for name, words in instructions() if name == "USER"]
    assert users == [config["remoteUser"]] and users != ["root"]


def test_the_dockerfile_installs_what_make_needs_and_starts_the_lab():
    said = instructions()
    names = [name for name, _ in said]
    known = {"FROM", "RUN", "USER", "WORKDIR", "COPY", "EXPOSE", "CMD"}
    assert names[0] == "FROM" and set(names) <= known
    assert re.fullmatch(r"debian:\w+-slim", said[0][1])  # a name and a version, not "latest"
    packages = said[1][1]
    assert all(f" {name}" in packages for name in ("git", "make", "python3-venv"))
    assert "rm -rf /var/lib/apt/lists" in packages
    command = json.loads(dict(said)["CMD"])
    targets = re.findall(r"(?m)^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"))
    assert command[0] == "make" and command[1] in targets


def test_what_is_made_on_this_machine_does_not_enter_the_container():
    left_out = (FOLDER / "Dockerfile.dockerignore").read_text("utf-8").split()
    assert {".venv", "runs", "work", "data"} <= set(left_out)
    assert not {name for name in left_out if name in ("notebooks", "protolib", "docs", "results")}
