"""What stands at both ends of every notebook: links to Colab and Kaggle with the cell that installs
the kit there, the memory that it takes, and the cell that gives memory back."""

import math
import re
import tomllib
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from protolib import files

INSTALL = """# On Colab or Kaggle this installs the kit; anywhere else it does nothing.
import os
import subprocess
import sys

address = "ADDRESS"
hosted = {"COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE"} & set(os.environ)
if hosted and not os.path.isdir("../protolib"):
    kit = os.path.abspath("protolib-kit")
    if not os.path.isdir(kit):
        subprocess.run(["git", "clone", "--depth", "1", address, kit], check=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "-e", kit], check=True)
    sys.path.insert(0, kit)
    os.chdir(os.path.join(kit, "notebooks"))"""
FREE = """# how much memory it took; a kernel that stays open keeps the rest
from protolib.teach import desk

desk.free(globals())"""
NOBODY = "your_name"  # no account of a code host can have this name
MEMORY = re.compile(r"([\d.]+)\s([GM])B\s+of\s+memory")


def address(kit: Path) -> str:
    """Where the repository is published, as pyproject.toml says: the one place that knows."""
    project = tomllib.loads((kit / "pyproject.toml").read_text("utf-8"))["project"]
    return project["urls"]["Repository"]


def published(kit: Path) -> str:
    """Where pages may link to: the address, or "" while nobody has put it in, or in a folder that
    does not say."""
    if not (kit / "pyproject.toml").is_file() or f"/{NOBODY}/" in (place := address(kit)):
        return ""
    return place


def badges(name: str, published: str) -> str:
    """The line with which a notebook is opened elsewhere. Words, not pictures: a picture would be
    asked for from there at every reading."""
    path = f"{published.removeprefix('https://github.com/')}/blob/main/notebooks/{name}.ipynb"
    colab = f"https://colab.research.google.com/github/{path}"
    kaggle = f"https://kaggle.com/kernels/welcome?src=https://github.com/{path}"
    return f"Without installing anything: [open in Colab]({colab}), [open in Kaggle]({kaggle})."


def badged(book: NotebookNode, where: str) -> NotebookNode:
    """A notebook with its badges where they lead somewhere, without them where nobody has said
    where the kit is published."""
    if not where:
        book.cells[0].source = _unbadged(book.cells[0].source)
    return book


def _unbadged(text: str) -> str:
    lines = (line for line in text.splitlines() if "](https://colab." not in line)
    return "\n".join(lines).rstrip()


def peak(book: NotebookNode) -> float | None:
    """The most memory, GB, that a notebook took in its last run; None where it does not say."""
    said = [
        output.get("text", "")
        for cell in book.cells
        if cell.id == "free"
        for output in cell.get("outputs", [])
    ]
    found = re.search(r"notebook took: ([\d.]+) GB", "\n".join(said))
    return float(found[1]) if found else None


def stamp(path: Path, published: str) -> None:
    """Bring both ends of a notebook up to date; a head says the memory of its last run, rounded up
    to half a GB."""
    book = nbformat.read(path, as_version=4)
    title = book.cells[0] if book.cells[0].cell_type == "markdown" else book.cells[1]
    text = _unbadged(title.source)
    if (took := peak(book)) is not None:
        text = MEMORY.sub(f"{math.ceil(2 * took) / 2:g} GB of memory", text)
    title.source = f"{text}\n\n{badges(path.stem, published)}"
    kept = {cell.id: cell for cell in book.cells}
    ends = {}
    for name, source in (("install", INSTALL.replace("ADDRESS", published)), ("free", FREE)):
        ends[name] = kept.get(name) or nbformat.v4.new_code_cell(id=name)
        ends[name].source = source
    ends["install"].metadata = NotebookNode(jupyter={"source_hidden": True})
    between = [cell for cell in book.cells if cell.id not in ends and cell is not title]
    book.cells = [title, ends["install"], *between, ends["free"]]
    files.write_text(path, nbformat.writes(book) + "\n")


def stamp_all(kit: Path) -> None:
    """Stamp every notebook of a kit."""
    for path in sorted((kit / "notebooks").glob("*.ipynb")):
        stamp(path, address(kit))
