"""Editions of the notebooks for each side of the desk: student, teacher, slides, answers.

An edition is a folder of files and a zip of it, with a page to start from. The notebooks in the
repository are the only source: nothing is executed, committed outputs stay.
"""

import base64
import copy
import html
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell

from protolib import files
from protolib.teach import exercises

MINUTES = 6  # a learner needs for a point of an exercise; our estimate, not measured
WORDS = 180  # read in a minute, of prose that explains
REVEAL = "sphinx_revealjs"  # the package that brings reveal.js' own files; its code is not run
# of it; other themes fetch their fonts from the network
PARTS = (
    "LICENSE",
    "dist/reveal.js",
    "dist/*.css",
    "dist/theme/white.css",
    "dist/theme/fonts/source*/*",
)
NO_REVEAL = (
    "slides: reveal.js is not installed, and slides that fetch it would need a network; it comes "
    "with a package: .venv/bin/uv pip install --no-deps sphinx-revealjs"
)


def tagged(cell: NotebookNode, tag: str) -> bool:
    """Whether a cell has a tag: "exercise", "check" or "solution"."""
    return tag in cell.metadata.get("tags", [])


def exercise_of(cell: NotebookNode) -> str:
    """The name of the exercise that a cell checks, or ""."""
    return cell.metadata.get("nbgrader", {}).get("grade_id", "")


def student(book: NotebookNode) -> NotebookNode:
    """Without solutions and what they and the checks printed; stubs and all other outputs stay."""
    book.cells = [cell for cell in book.cells if not tagged(cell, "solution")]
    for cell in book.cells:
        if tagged(cell, "check"):
            cell.outputs, cell.execution_count = [], None
    return book


def teacher(book: NotebookNode) -> NotebookNode:
    """All of it, with the minutes it takes at the top, and at each exercise what learners get wrong
    and what to say."""
    cells = []
    for cell in book.cells:
        cells.append(cell)
        if name := exercise_of(cell):
            cells.append(new_markdown_cell(mistakes(name), id=f"{cell.id}-teacher"))
    book.cells = [cells[0], new_markdown_cell(timing(book), id="teacher-timing"), *cells[1:]]
    for cell in filter(lambda cell: tagged(cell, "solution"), book.cells):
        cell.metadata.pop("jupyter", None)  # shown: the teacher need not unfold it
    return book


def answers(book: NotebookNode) -> NotebookNode:
    """The exercises alone: text, answer, check. The imports stay, so that they run."""
    kept = [book.cells[0]]
    for cell in book.cells:
        if cell.cell_type == "markdown" and cell.source.startswith("### Exercise"):
            kept.append(cell)
        elif tagged(cell, "solution"):
            cell.metadata.pop("jupyter", None)
            kept.append(cell)
        elif cell.cell_type == "code" and cell.id == "imports":
            kept.append(cell)
        elif cell.cell_type == "code" and (lines := imports(cell.source)):
            kept.append(new_code_cell("\n".join(lines), id=f"{cell.id}-imports"))
    book.cells = kept
    return book


def imports(source: str) -> list[str]:
    """The import statements of a cell that stand at its left edge, one a line."""
    return re.findall(r"(?m)^(?:import|from) .*[^(\n]$", source)


def mistakes(name: str) -> str:
    """What to say to an answer that is not right, from the exercise's own slips."""
    check = exercises.ALL[name]
    hints = "\n".join(f"- {hint[0].upper()}{hint[1:]}." for hint in check.slips)
    return (
        f"> **For the teacher**, {name}: {check.points} point{'s' * (check.points > 1)}, about "
        f"{check.points * MINUTES} minutes. First say: *{check.nudge}*\n\n"
        f"Typical mistakes, each as the check names it:\n\n{hints}"
    )


def timing(book: NotebookNode) -> str:
    """How long a notebook takes in a room: reading, running, exercises."""
    prose = " ".join(cell.source for cell in book.cells if cell.cell_type == "markdown")
    reading = round(len(prose.split()) / WORDS)
    tasks = [exercises.ALL[name] for cell in book.cells if (name := exercise_of(cell))]
    points = sum(task.points for task in tasks)
    asked = sum(cell.source.count("**Question") for cell in book.cells)
    return (
        f"> **For the teacher**: about {reading} minutes to read, {asked} questions of a minute "
        f"each to predict before a cell is run, {len(tasks)} exercises of {points} points in all, "
        f"about {points * MINUTES} minutes. (Estimates: {WORDS} words a minute, {MINUTES} minutes "
        "a point. What the cells take to run stands above.)"
    )


def slides(book: NotebookNode) -> NotebookNode:
    """A slide for each heading and for each figure, without code; exercises keep their text."""
    cells = []
    for cell in book.cells:
        if cell.cell_type == "markdown":
            parts = re.split(r"(?m)^(?=#{1,3} )", cell.source)
            cells += [new_markdown_cell(with_pictures(part)) for part in parts if part.strip()]
        elif not tagged(cell, "solution") and not tagged(cell, "check"):
            cell.outputs = [o for o in cell.get("outputs", []) if o.output_type != "stream"]
            if cell.outputs:
                cells.append(cell)
    for cell in cells:
        heading = cell.cell_type == "markdown" and cell.source.startswith("#")
        kind = "slide" if heading else "subslide"
        cell.metadata["slideshow"] = {"slide_type": kind}
    book.cells = cells
    return book


FORMULA = re.compile(r"\$\$(.+?)\$\$|\$(?!\s)([^$\n]+?)(?<!\s)\$", re.DOTALL)


def with_pictures(text: str) -> str:
    """Prose with its formulas as pictures: MathJax comes over the network, matplotlib is here.

    What matplotlib cannot set stays as it is written.
    """
    return FORMULA.sub(lambda found: picture(found[1] or found[2]) or found[0], text)


def picture(formula: str) -> str:
    """A formula as an inline SVG image, "" where matplotlib does not know a command in it."""
    from io import BytesIO

    from matplotlib.mathtext import math_to_image

    plain = " ".join(formula.replace(r"\qquad", r"\quad").split())
    drawn = BytesIO()
    try:
        math_to_image(f"${plain}$", drawn, dpi=120, format="svg")
    except ValueError:
        return ""
    data = base64.b64encode(drawn.getvalue()).decode()
    alt = html.escape(formula, quote=True).replace("\n", " ")
    return f'<img alt="{alt}" src="data:image/svg+xml;base64,{data}" style="display:inline">'


# One page of slides as nbconvert makes it, but for what it would fetch: reveal.js is started by a
# script of its own, not by require.js.
TEMPLATE = """{%- extends 'reveal/index.html.j2' -%}
{%- block html_head_js -%}<script src="reveal.js/dist/reveal.js"></script>{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block footer_js -%}
<script>Reveal.initialize({controls: true, progress: true, hash: true, slideNumber: true,
width: 1100, height: 760, margin: 0.04});</script>
<style>.reveal .slides section {font-size: 20px; text-align: left; max-height: 760px;
overflow-y: auto} .reveal h1, .reveal h2, .reveal h3 {text-transform: none}
.reveal p img[alt] {margin: 0; vertical-align: middle}</style>
{%- endblock -%}
"""


def slide_page(book: NotebookNode, name: str) -> str:
    """The HTML of a notebook's slides; its reveal.js is expected in reveal.js/ beside it."""
    from nbconvert import SlidesExporter

    exporter = SlidesExporter(
        raw_template=TEMPLATE, reveal_url_prefix="reveal.js", reveal_theme="white"
    )
    exporter.exclude_input = exporter.exclude_input_prompt = exporter.exclude_output_prompt = True
    return exporter.from_notebook_node(book, resources={"metadata": {"name": name}})[0]


def reveal_files() -> Path:
    """The folder with reveal.js' dist/; raises ValueError where the package is missing."""
    spec = find_spec(REVEAL)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        folder = Path(place) / "_static" / "revealjs"
        if (folder / "dist" / "reveal.js").is_file():
            return folder
    raise ValueError(NO_REVEAL)


# what each edition makes of a notebook, and what its page says
EDITIONS: dict[str, tuple[Callable[[NotebookNode], NotebookNode], str]] = {
    "student": (
        student,
        "Open the notebooks in order, in JupyterLab, from the folder of the course, with protolib "
        "installed. Write your answers where it says NotImplementedError, then run the cell below: "
        "it tells whether they are right, and if not, what may be wrong.",
    ),
    "teacher": (
        teacher,
        "The notebooks with their answers, the time that each takes, and at each exercise the "
        "typical mistakes and what to say.",
    ),
    "slides": (slides, "Open a page in any browser; no network is needed. F is full screen."),
    "answers": (answers, "The exercises with an answer to each; other right answers exist."),
}


def write(notebooks: Path, edition: str, out: Path) -> Path:
    """Write an edition of all notebooks into the folder out/EDITION and out/EDITION.zip; gives the
    zip.

    notebooks: folder with 0*.ipynb. Nothing that stands there is lost: raises ValueError where the
    folder of the edition holds anything already, or there is no notebook.
    """
    change, words = EDITIONS[edition]
    paths = sorted(notebooks.glob("0*.ipynb"))
    if not paths:
        raise ValueError(f"no notebook 0*.ipynb in {notebooks}; pass --notebooks DIR")
    place = out / edition
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise ValueError(f"{place} holds something already: pass another folder, or remove it")
    reveal = reveal_files() if edition == "slides" else None
    with files.scratch(out) as scratch:
        made = scratch / edition
        made.mkdir()
        titles = {}
        for path in paths:
            book = change(copy.deepcopy(nbformat.read(path, as_version=4)))
            name = f"{path.stem}.html" if reveal else path.name
            titles[name] = title(book)
            content = slide_page(book, titles[name]) if reveal else nbformat.writes(book) + "\n"
            files.write_text(made / name, content)
        if reveal:
            for path in (p for part in PARTS for p in reveal.glob(part) if p.is_file()):
                copied = made / "reveal.js" / path.relative_to(reveal)
                copied.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, copied)
        files.write_text(made / "start here.html", start_page(edition, words, titles))
        if place.exists():
            place.rmdir()
        made.rename(place)
    with files.whole(out / f"{edition}.zip") as handle, zipfile.ZipFile(handle, "w") as archive:
        for path in sorted(tree(place)):
            archive.write(path, path.relative_to(out), zipfile.ZIP_DEFLATED)
    return out / f"{edition}.zip"


def tree(folder: Path) -> Iterator[Path]:
    """All files below a folder."""
    return (path for path in folder.rglob("*") if path.is_file())


def title(book: NotebookNode) -> str:
    """The first heading of a notebook."""
    return book.cells[0].source.splitlines()[0].lstrip("# ")


def start_page(edition: str, words: str, titles: dict[str, str]) -> str:
    """The page to start from: what this is, and a link to every file."""
    links = "\n".join(
        f'<li><a href="{html.escape(name)}">{html.escape(text)}</a></li>'
        for name, text in titles.items()
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>protolib: {edition}</title>\n"
        "<style>body {font: 18px/1.5 sans-serif; max-width: 40em; margin: 3em auto; "
        "padding: 0 1em}</style></head>\n"
        f"<body><main><h1>protolib, {edition} edition</h1>\n<p>{html.escape(words)}</p>\n"
        f"<ol>\n{links}\n</ol></main></body></html>\n"
    )
