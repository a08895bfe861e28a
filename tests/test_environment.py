"""One truth for what is installed: pyproject.toml, requirements.lock, environment.yml agree, and
the lock installs."""

import importlib.metadata
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import torchvision
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import protolib

UV = shutil.which("uv", path=Path(sys.executable).parent)
# the machines that the lock is for
MACHINES = [
    {
        "python_version": python,
        "python_full_version": f"{python}.1",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "os_name": os_name,
        "sys_platform": platform,
        "platform_system": system,
        "platform_machine": machine,
    }
    for python, (os_name, platform, system, machine) in itertools.product(
        ("3.11", "3.12", "3.13"),
        (
            ("posix", "linux", "Linux", "x86_64"),
            ("posix", "linux", "Linux", "aarch64"),
            ("posix", "darwin", "Darwin", "arm64"),
            ("nt", "win32", "Windows", "AMD64"),
        ),
    )
]


@pytest.fixture(scope="module")
def project(root):
    return tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]


@pytest.fixture(scope="module")
def blocks(root):
    """The lock as [(requirement, its hashes, who asked for it)]."""
    text = (root / "requirements.lock").read_text("utf-8")
    blocks = re.findall(
        r"^(\S.*?)((?: \\\n    --hash=\S+)+)\n((?:    #.*\n)+)", text, flags=re.MULTILINE
    )
    assert "".join(f"{a}{b}\n{c}" for a, b, c in blocks) == text, (
        "the lock has a line of another kind"
    )
    return [
        (
            Requirement(a),
            re.findall(r"--hash=(\S+)", b),
            re.sub(r"    #( +via)? *", "", c).splitlines(),
        )
        for a, b, c in blocks
    ]


def installed_here(blocks):
    return {
        canonicalize_name(pin.name): pin
        for pin, _, _ in blocks
        if pin.marker is None or pin.marker.evaluate()
    }


def test_every_requirement_is_one_version_with_hashes_and_no_url(root, blocks):
    for pin, hashes, _ in blocks:
        assert [specifier.operator for specifier in pin.specifier] == ["=="] and pin.url is None, (
            pin
        )
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", value) for value in hashes), pin
    text = (root / "requirements.lock").read_text("utf-8")
    assert not re.search(r"://|--(extra-)?index|--find-links| @ ", text)


def test_lock_answers_pyproject_and_nothing_else(project, blocks):
    extras = sum(project["optional-dependencies"].values(), [])  # locked, so that they are tested
    asked = {
        canonicalize_name(r.name): r.specifier
        for r in map(Requirement, [*project["dependencies"], *extras])
    }
    locked = {
        canonicalize_name(pin.name): pin
        for pin, _, via in blocks
        if "protolib (pyproject.toml)" in via
    }
    assert locked.keys() == asked.keys(), "run the uv command that stands in pyproject.toml"
    for name, pin in locked.items():
        assert next(iter(pin.specifier)).version in asked[name], pin


@pytest.mark.parametrize(
    "machine",
    MACHINES,
    ids=lambda m: "-".join(
        m[key] for key in ("python_version", "sys_platform", "platform_machine")
    ),
)
def test_every_machine_gets_one_version_of_each(project, blocks, machine):
    assert machine["python_version"] in SpecifierSet(project["requires-python"])
    names = [
        canonicalize_name(pin.name)
        for pin, _, _ in blocks
        if pin.marker is None or pin.marker.evaluate(machine)
    ]
    assert len(names) == len(set(names))
    assert {canonicalize_name(Requirement(r).name) for r in project["dependencies"]} | {
        "setuptools"
    } <= set(names)


def test_conda_takes_python_and_pip_and_then_the_same_lock(root, project):
    environment = yaml.safe_load((root / "environment.yml").read_text("utf-8"))
    python, pip, section = environment["dependencies"]
    assert (environment["name"], environment["channels"], pip) == (
        "protolib",
        ["conda-forge"],
        "pip",
    )
    assert python == f"python {project['requires-python']}"
    assert section == {"pip": ["-r requirements.lock"]}


def test_make_looks_for_the_pythons_of_pyproject(root, project):
    low, high = re.search(
        r"\(3, (\d+)\) <= sys.version_info\[:2\] <= \(3, (\d+)\)",
        (root / "Makefile").read_text("utf-8"),
    ).groups()
    assert project["requires-python"] == f">=3.{low},<3.{int(high) + 1}"


def test_this_environment_is_the_lock(blocks):
    wrong = {
        name: importlib.metadata.version(name)
        for name, pin in installed_here(blocks).items()
        if importlib.metadata.version(name) not in pin.specifier
    }
    assert wrong == {}
    check = subprocess.run(
        [UV, "pip", "check", "--python", sys.executable], capture_output=True, text=True
    )
    assert check.returncode == 0, check.stderr


@pytest.mark.slow
def test_pip_section_installs_into_an_empty_venv(root, blocks, tmp_path):
    """uv takes pip's place, with pip's rule of hashes for all or none: pip does the same in
    minutes."""
    section = yaml.safe_load((root / "environment.yml").read_text("utf-8"))["dependencies"][-1][
        "pip"
    ]
    (tmp_path / "section.txt").write_text("\n".join(section))
    shutil.copy(root / "requirements.lock", tmp_path)
    venv = tmp_path / "venv"
    try:
        subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, venv], check=True)
        install = subprocess.run(
            [UV, "pip", "install", "--python", venv, "--require-hashes", "-r", "section.txt"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        if (
            re.search("error sending request|failed to fetch", install.stderr, re.IGNORECASE)
            and "CI" not in os.environ
        ):
            pytest.skip("the package index was not reached")
        assert install.returncode == 0, install.stderr
        listed = subprocess.run(
            [UV, "pip", "freeze", "--python", venv], capture_output=True, text=True, check=True
        ).stdout
    finally:
        shutil.rmtree(
            venv, ignore_errors=True
        )  # 6 GB, though hard links to uv's cache where the file system has them
    expected = sorted(f"{name}{pin.specifier}" for name, pin in installed_here(blocks).items())
    assert sorted(listed.split()) == expected


def unreached(done) -> bool:
    """The index was not reached; in CI that is a failure like any other."""
    lost = re.search("error sending request|failed to fetch", done.stderr, re.IGNORECASE)
    return bool(lost) and "CI" not in os.environ


@pytest.mark.slow
def test_the_lock_has_a_wheel_of_every_package_for_windows_and_no_cuda_there(
    root, blocks, tmp_path
):
    windows = next(m for m in MACHINES if m["sys_platform"] == "win32")
    command = [
        UV,
        "pip",
        "install",
        "--dry-run",
        "--python",
        sys.executable,
        "--only-binary",
        ":all:",
    ]
    where = ["--target", tmp_path, "--python-platform", "x86_64-pc-windows-msvc"]
    done = subprocess.run(
        [*command, *where, "--require-hashes", "-r", root / "requirements.lock"],
        capture_output=True,
        text=True,
    )
    if unreached(done):
        pytest.skip("the package index was not reached")
    assert done.returncode == 0, done.stderr
    found = set(re.findall(r"(?m)^ \+ (\S+?)==", done.stderr))
    wanted = {
        canonicalize_name(pin.name)
        for pin, _, _ in blocks
        if pin.marker is None or pin.marker.evaluate(windows)
    }
    assert found == wanted and "torch" in found
    assert not [name for name in found if name.startswith(("nvidia", "cuda", "triton"))]


@pytest.mark.slow
def test_a_stick_holds_all_that_a_room_without_network_needs(root, tmp_path, monkeypatch):
    """Two small packages stand in for the lock's two hundred; the way is the same."""
    kit, stick, room = (tmp_path / name for name in ("kit", "stick", "room"))
    kit.mkdir()
    text = (root / "requirements.lock").read_text("utf-8")
    few = re.findall(
        r"(?m)^(?:uv|setuptools|packaging)==.*\n(?:    .*\n)+", text
    )  # with what builds the kit
    (kit / "requirements.lock").write_text("".join(few))
    shutil.copy(root / "Makefile", kit)
    (kit / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "kit"\nversion = "1"\n[tool.setuptools]\npy-modules = ["kit"]\n'
    )
    (kit / "kit.py").write_text("print('here')\n")
    for words in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", "-C", kit, *words], check=True)
    refused = make(kit, "offline", f"PYTHON={sys.executable}")
    if "ERROR" in refused.stderr and "index" in refused.stderr:
        pytest.skip("the package index was not reached")
    assert refused.returncode == 2 and "say where to: make offline OUT=" in refused.stderr
    filled = make(kit, "offline", f"OUT={stick}")
    assert filled.returncode == 0, filled.stderr
    assert sorted(path.name.split("-")[0] for path in (stick / "wheels").iterdir()) == [
        "packaging",
        "setuptools",
        "uv",
    ]
    shutil.copytree(stick / "protolib", room)
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "UV_DEFAULT_INDEX"):
        monkeypatch.setenv(name, "http://127.0.0.1:9/")  # nobody answers there
    built = make(room, ".venv/ready", f"WHEELS={stick / 'wheels'}", f"PYTHON={sys.executable}")
    assert built.returncode == 0, built.stderr
    said = subprocess.run(
        [room / ".venv/bin/python", "-c", "import kit, packaging"], capture_output=True, text=True
    )
    assert said.stdout == "here\n"


def test_make_cpu_locks_and_installs_torch_without_cuda(checkout):
    written = make(checkout, "-n", ".venv/ready", "CPU=1").stdout
    assert "--constraints .venv/versions.txt --output-file .venv/cpu.lock" in written
    assert "--torch-backend cpu --require-hashes -r .venv/cpu.lock" in written
    plain = make(checkout, "-n", ".venv/ready").stdout
    assert "--require-hashes -r requirements.lock" in plain and "torch-backend" not in plain
    [sed] = re.findall(r"sed -n '(s/\^[^']*)' requirements.lock > .venv/versions.txt", written)
    shown = subprocess.run(
        ["sed", "-n", sed, "requirements.lock"], cwd=checkout, capture_output=True, text=True
    ).stdout.splitlines()
    assert all(re.fullmatch(r"[a-z0-9._-]+==[^ ;]+", line) for line in shown)
    assert any(line.startswith("torch==") for line in shown) and len(shown) > 150


def test_torchvision_is_built_for_this_torch():
    wanted = next(
        r for r in map(Requirement, importlib.metadata.requires("torchvision")) if r.name == "torch"
    )
    assert torch.__version__.split("+")[0] in wanted.specifier
    assert torch.__version__.partition("+")[2] == torchvision.__version__.partition("+")[2]
    boxes = torch.tensor(
        [[0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 4], [20, 20, 30, 30]], dtype=torch.float32
    )
    # best box 1; box 0 overlaps it by 80 of 100 px, box 2 by 40 of 80 (an IoU of .5 is not above
    # .5), box 3 by none
    kept = torchvision.ops.nms(boxes, scores=torch.tensor([0.8, 0.9, 0.3, 0.5]), iou_threshold=0.5)
    assert kept.tolist() == [1, 3, 2]


def test_version_is_the_same_everywhere(root, project):
    citation = yaml.safe_load((root / "CITATION.cff").read_text("utf-8"))
    assert protolib.__version__ == project["version"] == citation["version"]


def test_import_is_light_and_report_is_one_line_without_paths(capsys):
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, protolib; print('torch' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert loaded.stdout == "False\n"
    protolib.report()
    python = ".".join(map(str, sys.version_info[:3]))
    versions, device = capsys.readouterr().out.split("; ")
    assert (
        versions == f"protolib {protolib.__version__}, Python {python}, torch {torch.__version__}"
    )
    assert re.fullmatch(r"device: (cpu, \d+ threads|cuda, [^/\\]+|mps, \d+ threads)\n", device)


@pytest.fixture
def checkout(root, tmp_path):
    for name in ("requirements.lock", "Makefile"):
        shutil.copy(root / name, tmp_path)
    return tmp_path


def make(folder, *arguments):
    # what `make test ARGS=...` was given is not for this one
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "ARGS"))}
    return subprocess.run(
        ["make", *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )


def printed(done):
    """The words of what make printed, its lines joined."""
    return done.stdout.replace("\\\n", " ").split()


def test_make_says_which_python_it_needs(checkout):
    done = make(checkout, "PYTHON=false no-such-python")
    assert done.returncode == 2 and not (checkout / ".venv").exists()
    assert done.stderr.startswith(
        "protolib needs Python 3.11, 3.12 or 3.13 with its venv module, and none of these is "
        "one: false no-such-python.\n"
    )


def test_make_run_passes_its_variables_on(checkout):
    (checkout / ".venv").mkdir()
    (checkout / ".venv" / "ready").touch()
    done = make(
        checkout,
        "-n",
        "run",
        "PRESET=smoke",
        "DATASET=bcss-wsss",
        "DATA=my folder",
        "SEED=2",
        "ARGS=-p K=4",
    )
    command = ".venv/bin/python -m protolib run"
    options = '--preset smoke --dataset bcss-wsss --data "my folder" --seed 2 -p K=4'
    assert printed(done) == f"{command} {options}".split()
    assert printed(make(checkout, "-n")) == command.split()


def test_make_lab_opens_own_copies(checkout):
    (checkout / ".venv").mkdir()
    (checkout / ".venv" / "ready").touch()
    command = ".venv/bin/python -m protolib lab"
    assert printed(make(checkout, "-n", "lab")) == command.split()
    assert printed(make(checkout, "-n", "lab", "RESET=03")) == f"{command} --reset 03".split()


def test_make_lets_every_process_share_compiled_modules(checkout, monkeypatch):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    (checkout / ".venv" / "bin").mkdir(parents=True)
    (checkout / ".venv" / "ready").touch()
    python = checkout / ".venv" / "bin" / "python"
    python.write_text('#!/bin/sh\necho "$PYTHONPYCACHEPREFIX,$PYTHONDONTWRITEBYTECODE"\n')
    python.chmod(0o755)
    for target in ("run", "test"):
        assert make(checkout, "-s", target).stdout == f"{checkout}/.venv/pycache,\n"


@pytest.mark.parametrize("target", ["quick", "test"])
@pytest.mark.parametrize("ends, code", [(0, 0), (1, 2)])
def test_make_fails_if_a_test_does(checkout, target, ends, code):
    (checkout / ".venv" / "bin").mkdir(parents=True)
    (checkout / ".venv" / "ready").touch()
    python = checkout / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\necho "$OMP_NUM_THREADS $@"\nexit {ends}\n')
    python.chmod(0o755)
    done = make(checkout, "-s", target)
    assert done.returncode == code
    assert done.stdout.startswith("1 -m pytest -n 2 ")  # two processes of one thread
    assert ("-m not slow" in done.stdout) == (target == "quick")


def test_git_strips_notebooks_as_make_does(root):
    [repository] = yaml.safe_load((root / ".pre-commit-config.yaml").read_text("utf-8"))["repos"]
    hook = next(hook for hook in repository["hooks"] if hook["id"] == "nbstripout")
    makefile = (root / "Makefile").read_text("utf-8").replace("\\\n", " ")
    strip = re.search(r"(?m)^STRIP = (.*)", makefile)[1]
    assert shlex.split(hook["entry"]) == [" ".join(word.split()) for word in shlex.split(strip)]


def test_workflow_runs_the_three_commands_on_every_python(root, project):
    workflow = yaml.safe_load((root / ".github/workflows/check.yml").read_text("utf-8"))
    job = workflow["jobs"]["check"]
    assert [f"3.{n}" for n in (11, 12, 13)] == job["strategy"]["matrix"]["python"]
    runs = [step["run"] for step in job["steps"] if "run" in step]
    assert runs == [f"make {name} PYTHON=python" for name in ("check", "quick", "test")]
    browser = workflow["jobs"]["browser"]["steps"]
    assert [s["run"] for s in browser if "run" in s] == ["make browser PYTHON=python"]
    for action in (step["uses"] for step in job["steps"] + browser if "uses" in step):
        assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", action), "pinned to a commit"
