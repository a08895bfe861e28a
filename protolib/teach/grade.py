"""Marks for those without nbgrader: each submission's exercises run in a kernel of their own, and
one CSV holds what they earned.

Of a notebook only what a learner wrote runs: the imports, the cells of exercises, and cells that
the course does not have. The checks are the course's own, whatever a submission made of them. What
a learner wrote can read and write files as whoever grades: grade in a container, or as a user who
may do little, where you do not know the class.
"""

import ast
import copy
import csv
import io
import os
import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook

from protolib import files
from protolib.teach import exercises
from protolib.teach.editions import exercise_of, tagged

OURS = "from protolib.teach import exercises"  # the first cell: it loads torch
START = 600  # seconds that it may take: a machine that grades may be busy
CELL = 60  # any other: imports take a few, an answer a moment
NOTEBOOK = 300  # and all of a notebook; what has not run by then earns nothing


class Mark(NamedTuple):
    """What one exercise earned, and the check's words where it is not all."""

    points: int
    words: str = ""


class Course(NamedTuple):
    """A notebook of the course: the ids of its cells, what it imports and its exercises."""

    ids: frozenset[str]
    imports: dict[str, str]  # name -> statement
    exercises: tuple[str, ...]


def course(notebooks: Path) -> dict[str, Course]:
    """The notebooks that hold exercises, by file name; raises ValueError where there is none."""
    found = {}
    for path in sorted(notebooks.glob("0*.ipynb")):
        book = nbformat.read(path, as_version=4)
        names = tuple(filter(None, map(exercise_of, book.cells)))
        if names:
            found[path.name] = Course(frozenset(c.id for c in book.cells), imports(book), names)
    if not found:
        raise ValueError(f"no notebook with exercises in {notebooks}; pass --notebooks DIR")
    return found


def imports(book: NotebookNode) -> dict[str, str]:
    """What the cells of a notebook import at their left edge: {"np": "import numpy as np"}."""
    found = {}
    for cell in book.cells:
        try:
            body = ast.parse(cell.source).body if cell.cell_type == "code" else []
        except SyntaxError:  # what only IPython understands, or nobody
            continue
        for node in body:
            for alias in node.names if isinstance(node, ast.Import | ast.ImportFrom) else ():
                one = copy.copy(node)
                one.names = [alias]
                name = alias.asname or alias.name.partition(".")[0]
                found[name] = ast.unparse(one)
    return found


def submission(book: NotebookNode, of: Course) -> NotebookNode:
    """What runs of a submitted notebook: the imports that its answers name, the learner's cells,
    then the course's checks."""
    own = [
        cell.source
        for cell in book.cells
        if cell.cell_type == "code"
        and not exercise_of(cell)
        and (tagged(cell, "exercise") or cell.get("id") not in of.ids)
    ]
    named = set(re.findall(r"\w+", "\n".join(own)))
    wanted = of.imports | imports(book)  # a learner may have added some
    lines = [line for name, line in wanted.items() if name in named]
    checks = [
        new_code_cell(
            f"{OURS}\nexercises.check_{name}({name})",
            metadata={"nbgrader": {"grade_id": name}},
        )
        for name in of.exercises
    ]
    return new_notebook(cells=[*map(new_code_cell, [OURS, *lines, *own]), *checks])


def marks(book: NotebookNode, of: Course) -> dict[str, Mark]:
    """Run a submission in a kernel of its own, in an empty folder, and give the mark of each
    exercise."""
    work, words, end = submission(book, of), "", 0.0
    done: dict[str, Mark] = {}
    env = os.environ | {"NBGRADER_EXECUTION": "autograde", "MPLBACKEND": "agg"}
    with tempfile.TemporaryDirectory() as place:
        client = NotebookClient(
            work,
            timeout_func=lambda cell: START if cell is work.cells[0] else CELL,
            kernel_name="python3",
            allow_errors=True,
            interrupt_on_timeout=True,
            resources={"metadata": {"path": place}},
        )
        with client.setup_kernel(env=env):
            for index, cell in enumerate(work.cells):
                end = end if index > 1 else time.monotonic() + NOTEBOOK  # ours does not count
                if not words and time.monotonic() > end:
                    words = f"not run: the notebook took more than {NOTEBOOK} s"
                if not words:
                    try:
                        client.execute_cell(cell, index)
                    except (DeadKernelError, CellTimeoutError) as error:
                        words = f"not run: {type(error).__name__}, a cell ended the kernel"
                if name := exercise_of(cell):
                    done[name] = Mark(0, words) if words else _mark(name, cell)
    return done


def _mark(name: str, cell: NotebookNode) -> Mark:
    for output in cell.outputs:
        if output.output_type == "error":
            if output.ename == "AssertionError":
                return Mark(0, output.evalue)
            return Mark(0, f"{output.ename}: {output.evalue}")
    said = "".join(o.text for o in cell.outputs if o.output_type == "stream")
    solved = said.rstrip().endswith(": solved")
    return Mark(exercises.ALL[name].points) if solved else Mark(0, "the check did not end")


def write(notebooks: Path, folder: Path, out: Path | None = None) -> Path:
    """Grade every submission of a folder and write the CSV, whole or not at all; gives its path.

    folder: one folder a learner, FOLDER/NAME/.../NN_words.ipynb with the file names of the course.
    out: FOLDER/grades.csv unless another is given. A row a learner: the points of each exercise,
    their sum, how many there are, and the check's words on what is not solved. A notebook that is
    missing or cannot be read earns nothing, and the row says so. Raises ValueError before any work
    where the folder holds no learner's notebook.
    """
    given = course(notebooks)
    learners = sorted(p for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
    found = {who: _notebooks(who, given) for who in learners}
    if not any(found.values()):
        raise ValueError(
            f"{folder} holds no submission: expected FOLDER/NAME/{next(iter(given))}, one folder "
            "a learner, with the file names of the course"
        )
    names = [name for of in given.values() for name in of.exercises]
    total = sum(exercises.ALL[name].points for name in names)
    rows: list[Sequence] = [["learner", *names, "points", "of", "remarks"]]
    for who, own in found.items():
        earned: dict[str, Mark] = {}
        for file, of in given.items():
            earned |= _graded(own.get(file), file, of)
        words = "; ".join(f"{name}: {m.words}" for name, m in earned.items() if m.words)
        points = [earned[name].points for name in names]
        rows.append([who.name, *points, sum(points), total, words])
        print(f"{who.name}: {sum(points)} of {total}", flush=True)
    text = io.StringIO(newline="")
    csv.writer(text).writerows([[_plain(value) for value in row] for row in rows])
    out = out or folder / "grades.csv"
    files.write_text(out, text.getvalue())
    return out


def _notebooks(who: Path, given: dict[str, Course]) -> dict[str, Path]:
    """The learner's notebooks by file name; copies that Jupyter keeps are none."""
    paths = sorted(p for p in who.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
    return {path.name: path for path in paths if path.name in given}


def _graded(path: Path | None, file: str, of: Course) -> dict[str, Mark]:
    if path is None:
        return dict.fromkeys(of.exercises, Mark(0, f"no {file}"))
    try:
        book = nbformat.read(path, as_version=4)
        nbformat.validate(book)
    except Exception as error:  # whatever nbformat makes of a file that is no notebook
        words = f"{file} is no notebook that can be read ({type(error).__name__})"
        return dict.fromkeys(of.exercises, Mark(0, words))
    return marks(book, of)


def _plain(value):
    """A cell of the table as text that a spreadsheet does not take for a formula."""
    text = " ".join(str(value).split())
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") and isinstance(value, str) else text
