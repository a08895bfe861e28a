"""Editions of the notebooks for each side of the desk: student, teacher, slides, answers.

An edition is a folder of files and a zip of it, with a page to start from. The notebooks in the
repository are the only source: nothing is executed, committed outputs stay.
"""

import html
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from string import Template

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from protolib import files
from protolib.study.html import HEAD
from protolib.teach import exercises, heads, site

MINUTES = 6  # a learner needs for a point of an exercise; our estimate, not measured
WORDS = 180  # read in a minute, of prose that explains
# beside the notebooks: what they link to, and what they read
PAGES, READ = "docs/*.md", "results/*.json"
ENDS = ("imports", "free")  # cells that say versions and memory


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
    """Headings, questions and what cells showed, each a cell of its own, and the words between; no
    code, no checks and no solutions. Exercises keep their text."""
    cells = []
    for cell in book.cells:
        if cell.cell_type == "markdown":
            parts = re.split(r"(?m)^(?=#{1,3} |\*\*Question)", cell.source)
            cells += [new_markdown_cell(part) for part in parts if part.strip()]
        elif cell.id not in ENDS and not tagged(cell, "solution") and not tagged(cell, "check"):
            slide: list[NotebookNode] = []  # with one picture at most
            for output in filter(lambda output: not _code(output), cell.get("outputs", [])):
                if _picture(output) and any(map(_picture, slide)):
                    cells.append(new_code_cell(outputs=slide))
                    slide = []
                slide.append(output)
            cells += [new_code_cell(outputs=slide)] if slide else []
    book.cells = cells
    return book


def _picture(output: NotebookNode) -> bool:
    return bool({"image/png", "image/jpeg"} & set(output.get("data", {})))


def _code(output: NotebookNode) -> bool:
    """Whether an output is a kernel's source, as viz.show_source shows it."""
    return "text/latex" in output.get("data", {})


# A page of slides: each a screen high, and a sheet when printed. No script: the browser's own keys
# turn it, space and page down to the next, page up to the last.
DECK = Template(
    HEAD
    + """\
<style>
* { box-sizing: border-box; }
html { scroll-snap-type: y mandatory; }
body { margin: 0; color: #1b1f24; background: #fff; counter-reset: slide;
       font: clamp(1rem, .6vw + 1.3vh, 2rem)/1.45 system-ui, sans-serif; }
section { min-height: 100vh; padding: 5vh 7vw; scroll-snap-align: start; position: relative;
          display: flex; flex-direction: column; justify-content: center;
          counter-increment: slide; overflow-wrap: anywhere; border-bottom: 1px solid #d5dae0; }
section::after { content: counter(slide); position: absolute; right: 2vw; bottom: 2vh;
                 color: #59626d; font-size: .8em; }
section > * { margin: .5em 0; max-width: 100%; }
p, li { max-width: 50em; }
p:has(> img:only-child) { max-width: none; }
h1 { font-size: 2.2em; line-height: 1.2; }
h2 { font-size: 1.7em; line-height: 1.2; }
h3 { font-size: 1.4em; }
a { color: #0a58a8; }
img { max-width: 100%; max-height: 66vh; }
img.math { display: inline; max-width: none; }
p.math { text-align: center; max-width: none; overflow-x: auto; }
section p > img:only-child:not(.math) { width: 100%; max-height: 62vh; object-fit: contain;
                                        object-position: left; }
.question { font-size: 1.5em; background: #f5f7f9; }
code { font: .88em ui-monospace, monospace; }
pre { overflow: auto; max-height: 40vh; }
.wide { overflow: auto; max-height: 66vh; }
table { border-collapse: collapse; font-size: .85em; overflow-wrap: normal; }
th, td { padding: .3em .8em; border-bottom: 1px solid #d5dae0; text-align: left; }
@page { size: A4 landscape; margin: 0; }
@media print {
  body { font-size: 9pt; }
  section { break-after: page; break-inside: avoid; height: 100vh; border: 0; }
}
</style>
</head>
<body>
<main>
$body
</main>
</body>
</html>
"""
)


def deck(book: NotebookNode) -> str:
    """The HTML of slides: a heading, a question or what a cell showed begins one, with the words
    that follow; figures and formulas are in it."""
    sections = []
    for cell in book.cells:
        kind = ' class="question"' if cell.source.startswith("**Question") else ""
        body = site.notebook(new_notebook(cells=[cell]), code=False).strip()
        if cell.cell_type == "code" or kind or cell.source.startswith("#") or not sections:
            sections.append(f"<section{kind}>\n{body}\n</section>")
        else:
            sections[-1] = sections[-1].replace("</section>", f"{body}\n</section>")
    return "\n".join(sections)


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
    "slides": (
        slides,
        "Open a page in any browser; no network is needed. F11 fills the screen, space or page "
        "down is the next slide, page up the last; printed, each slide is a sheet.",
    ),
    "answers": (answers, "The exercises with an answer to each; other right answers exist."),
}


def write(notebooks: Path, edition: str, out: Path) -> Path:
    """Write an edition of all notebooks into the folder out/EDITION and out/EDITION.zip; gives the
    zip.

    notebooks: folder with 0*.ipynb; the pages that they link to and the results that they read
    stand beside it, in the edition too. Nothing that stands there is lost: raises ValueError where
    the folder of the edition holds anything already, or there is no notebook.
    """
    change, words = EDITIONS[edition]
    kit = notebooks.parent
    books = [path.relative_to(kit) for path in sorted(notebooks.glob("0*.ipynb"))]
    if not books:
        raise ValueError(f"no notebook 0*.ipynb in {notebooks}; pass --notebooks DIR")
    place = out / edition
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise ValueError(f"{place} holds something already: pass another folder, or remove it")
    pages = [*books, *(path.relative_to(kit) for path in sorted(kit.glob(PAGES)))]
    address, titles = heads.published(kit), {}
    with files.scratch(out) as scratch:
        made = scratch / edition
        for page in pages:
            text: NotebookNode | str = (kit / page).read_text("utf-8")
            name = site.place(page) if edition == "slides" else page.as_posix()
            if page in books:
                text = change(heads.badged(nbformat.reads(text, as_version=4), address))
                titles[name] = title(text)
            put = _as_page if edition == "slides" else _as_it_is
            files.write_text(made / name, put(text, page, pages, address))
        if edition == "slides":
            files.write_text(made / "site.css", site.css())
        for path in kit.glob(READ) if edition != "slides" else ():
            files.write_text(made / path.relative_to(kit), path.read_text("utf-8"))
        files.write_text(made / "start here.html", start_page(edition, words, titles))
        if place.exists():
            place.rmdir()
        made.rename(place)
    with files.whole(out / f"{edition}.zip") as handle, zipfile.ZipFile(handle, "w") as archive:
        for path in sorted(tree(place)):
            archive.write(path, path.relative_to(out), zipfile.ZIP_DEFLATED)
    return out / f"{edition}.zip"


def _as_page(text: NotebookNode | str, page: Path, pages: list[Path], address: str) -> str:
    """The slides of a notebook, or a page of the docs, as HTML."""
    body = site.markdown(text) if isinstance(text, str) else deck(text)
    body, _ = site.linked(body, page, pages, address)
    parts = dict(title=site.title(body, page), body=body)
    if isinstance(text, NotebookNode):
        return DECK.substitute(parts)
    home = '<a href="../start here.html">protolib</a>'
    return site.PAGE.substitute(parts, nav=home, up="../")


LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)")


def _as_it_is(text: NotebookNode | str, page: Path, pages: list[Path], address: str) -> str:
    """A notebook, or Markdown, whose links lead to pages of the edition; one to any other file of
    the kit leads to the repository, or is plain words."""

    def changed(found: re.Match) -> str:
        words, target = found.groups()
        path = site.beside(target, page)
        if path is None or path in pages:
            return found[0]
        target = site.away(path, address)
        return f"[{words}]({target})" if target else words

    if isinstance(text, str):
        return LINK.sub(changed, text)
    for cell in text.cells:
        if cell.cell_type == "markdown":
            cell.source = LINK.sub(changed, cell.source)
    return nbformat.writes(text) + "\n"


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
