"""Both ends of every notebook: badges and first cell know one address, the head says the memory of
the last run, and the first cell installs the kit where it is not."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import nbformat
import pytest

from protolib.teach import heads

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
new = nbformat.v4


def book_of(path: Path, memory: str, took: str = ""):
    cells = [
        new.new_markdown_cell(f"# One\n\n**Needs** a minute, {memory}, no disk."),
        new.new_code_cell("1 + 1"),
        new.new_code_cell("old", id="free"),
    ]
    if took:
        said = f"most memory that this notebook took: {took} GB; now 0.40 GB\n"
        cells[2].outputs = [new.new_output("stream", text=said)]
    nbformat.write(new.new_notebook(cells=cells), path)
    return path


@pytest.mark.parametrize(
    "took, says", [("1.26", "1.5 GB"), ("2.00", "2 GB"), ("2.01", "2.5 GB"), ("", "300 MB")]
)
def test_a_head_says_the_memory_of_the_last_run_rounded_up(tmp_path, took, says):
    path = book_of(tmp_path / "00_a.ipynb", "300 MB of memory", took)
    heads.stamp(path, "https://github.com/us/kit")
    title = nbformat.read(path, 4).cells[0].source
    assert f"a minute, {says} of memory, no disk." in title


def test_a_notebook_gets_badge_first_and_last_cell_once(tmp_path):
    path = book_of(tmp_path / "00_a.ipynb", "1 GB of memory", "0.90")
    heads.stamp(path, "https://github.com/us/kit")
    first = path.read_text()
    heads.stamp(path, "https://github.com/us/kit")
    assert path.read_text() == first
    title, install, kept, free = nbformat.read(path, 4).cells
    assert kept.source == "1 + 1" and free.source == heads.FREE and free.outputs
    assert 'address = "https://github.com/us/kit"' in install.source
    places = re.findall(r"\((https[^)]*)\)", title.source)
    assert places == [
        "https://colab.research.google.com/github/us/kit/blob/main/notebooks/00_a.ipynb",
        "https://kaggle.com/kernels/welcome?src="
        "https://github.com/us/kit/blob/main/notebooks/00_a.ipynb",
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_is_stamped_with_the_one_address(path, tmp_path):
    copy = shutil.copy(path, tmp_path)
    heads.stamp(Path(copy), heads.address(ROOT))
    assert Path(copy).read_text() == path.read_text(), "make notebooks brings both ends up to date"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_notebook_takes_more_memory_than_its_head_says(path):
    book = nbformat.read(path, 4)
    number, unit = heads.MEMORY.search(book.cells[0].source).groups()
    took = heads.peak(book)
    if took is None:
        pytest.skip("its last cell was not run yet: make notebooks")
    assert took <= float(number) / (1000 if unit == "M" else 1)


def test_the_first_cell_does_nothing_on_a_machine_of_ones_own(tmp_path):
    cell = nbformat.read(NOTEBOOKS[0], 4).cells[1].source
    own = {k: v for k, v in os.environ.items() if not k.startswith(("COLAB_", "KAGGLE_"))}
    done = subprocess.run(
        [sys.executable, "-c", cell + "\nprint(os.getcwd())"],
        cwd=tmp_path,
        env=own,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{tmp_path}\n" and list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("host", ["COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE"])
def test_the_first_cell_installs_the_kit_in_an_environment_that_has_never_seen_it(tmp_path, host):
    """A copy of this checkout stands in for the address, this environment's libraries for what such
    a machine has."""
    source = tmp_path / "source"
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout
    for name in tracked.splitlines():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "-C", str(source)]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "kit"]):
        subprocess.run([*git, *words], check=True)
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", bare], check=True)
    uninstall = [bare / "bin" / "python", "-m", "pip", "uninstall", "--yes", "-q", "setuptools"]
    subprocess.run(uninstall, check=True)  # Python's own is too old to build the kit
    here = sysconfig.get_paths()
    site = Path(here["purelib"].replace(here["data"], str(bare)))
    (site / "libraries.pth").write_text(here["purelib"] + "\n")  # its own .pth files are not read
    content = tmp_path / "content"
    content.mkdir()
    stand_in = {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.file://{source}.insteadOf",
        "GIT_CONFIG_VALUE_0": heads.address(ROOT),
    }
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment |= stand_in | {host: "1", "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0"}
    environment["PIP_IGNORE_INSTALLED"] = "1"  # nothing of this environment is touched
    cell = nbformat.read(NOTEBOOKS[0], 4).cells[1].source
    after = "\nimport protolib; print(protolib.__file__, os.getcwd(), os.path.isdir('../results'))"
    for _ in range(2):  # a second time, as after a restart of the kernel
        done = subprocess.run(
            [bare / "bin" / "python", "-c", cell + after],
            cwd=content,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        kit = content / "protolib-kit"
        assert done.stdout.split()[-3:] == [
            str(kit / "protolib" / "__init__.py"),
            str(kit / "notebooks"),
            "True",
        ]
