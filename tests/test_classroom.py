"""Editions of the notebooks for each side of the desk, marks for a class of three, and nbgrader on
the student edition."""

import csv
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup

from protolib import files
from protolib.__main__ import main
from protolib.study.runner import use_own_kernel
from protolib.teach import editions, exercises, grade, heads, site

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
SHORT = ("00_start_here.ipynb", "07_reproduce_the_paper.ipynb")  # they train nothing


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A folder with three editions of all notebooks, made by the command."""
    folder = tmp_path_factory.mktemp("editions")
    for edition in ("student", "teacher", "answers"):
        assert main(["edition", edition, str(folder)]) == 0
    return folder


def read(folder):
    """The notebooks of a folder, or those of an edition."""
    folder = folder / "notebooks" if (folder / "notebooks").is_dir() else folder
    return {p.name: nbformat.read(p, as_version=4) for p in sorted(folder.glob("0*.ipynb"))}


def solutions(book):
    return [c for c in book.cells if editions.tagged(c, "solution")]


SOURCE = read(NOTEBOOKS)


def everything(book):
    """All text of a notebook, sources and outputs."""
    return nbformat.writes(book).encode().decode("unicode_escape", "ignore")


def words_of(source):
    """A cell without what links and badges lead to."""
    lines = [line for line in source.splitlines() if "](https://colab." not in line]
    return re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", "\n".join(lines)).rstrip()


# student


def test_a_student_finds_no_line_of_a_solution(out):
    text = "\n".join(everything(book) for book in read(out / "student").values())
    lines = {
        line.strip()
        for book in SOURCE.values()
        for cell in solutions(book)
        for line in cell.source.splitlines()
        if len(line.strip()) >= 20
    }
    assert len(lines) > 50
    assert [line for line in lines if line in text] == []
    assert "_solution" not in text and ": solved" not in text


def test_a_student_finds_every_stub_and_every_other_cell_as_it_was(out):
    """The stubs and checks of all exercises; tests/test_exercises.py runs them as they stand here:
    each fails as a stub and passes with its solution."""
    found = []
    for name, book in read(out / "student").items():
        found += filter(None, map(editions.exercise_of, book.cells))
        kept = [c for c in SOURCE[name].cells if not editions.tagged(c, "solution")]
        assert [c.id for c in book.cells] == [c.id for c in kept]
        for mine, theirs in zip(book.cells, kept):
            assert words_of(mine.source) == words_of(theirs.source)
            if editions.tagged(theirs, "check"):
                assert mine.outputs == []
            else:
                assert mine.get("outputs") == theirs.get("outputs")
        stubs = [c for c in book.cells if editions.tagged(c, "exercise")]
        assert all(c.source.endswith("raise NotImplementedError") for c in stubs)
        nbformat.validate(book)
    assert sorted(found) == sorted(exercises.ALL)


def test_an_edition_is_zipped_with_a_page_to_start_from(out):
    for edition in ("student", "teacher", "answers"):
        with zipfile.ZipFile(out / f"{edition}.zip") as archive:
            assert archive.testzip() is None
            held = [p.relative_to(out).as_posix() for p in editions.tree(out / edition)]
            assert sorted(archive.namelist()) == sorted(held)
        page = (out / edition / "start here.html").read_text("utf-8")
        links = re.findall(r'href="([^"]+)"', page)
        assert links == [f"notebooks/{name}" for name in SOURCE]
        assert "00 Start here" in page


# teacher and answers


def test_a_teacher_finds_time_answers_mistakes_and_what_to_say(out):
    for name, book in read(out / "teacher").items():
        assert len(solutions(book)) == len(solutions(SOURCE[name]))
        assert re.search(r"about \d+ minutes to read", book.cells[1].source)
        for task in filter(None, map(editions.exercise_of, book.cells)):
            [note] = [c for c in book.cells if c.id == f"ex-{task.replace('_', '-')}-check-teacher"]
            check = exercises.ALL[task]
            assert check.nudge in note.source
            assert note.source.count("\n- ") == len(check.slips)
        assert not any(c.metadata.get("jupyter") for c in solutions(book))
        nbformat.validate(book)


def test_the_answers_run_by_themselves(out):
    tried = 0
    for name, book in read(out / "answers").items():
        code = [c.source for c in book.cells if c.cell_type == "code"]
        texts = [c for c in book.cells if c.source.startswith("### Exercise")]
        assert len(texts) == len(solutions(book)) == len(solutions(SOURCE[name]))
        tried += len(texts)
        if name in SHORT:
            space = {}
            for source in code:
                exec(source, space)
    assert tried == len(exercises.ALL)


def test_what_stands_there_is_not_written_over(out, capsys):
    before = sorted((p, p.stat().st_mtime_ns) for p in out.rglob("*"))
    assert main(["edition", "student", str(out)]) == 2
    assert "holds something already" in capsys.readouterr().err
    assert sorted((p, p.stat().st_mtime_ns) for p in out.rglob("*")) == before


# links


def anchors(text):
    return {site.anchor(line.lstrip("# ")) for line in text.splitlines() if line.startswith("#")}


@pytest.mark.parametrize("edition", ["student", "teacher", "answers"])
def test_every_link_of_an_edition_leads_to_a_page_and_a_heading_in_it(out, edition):
    texts = {
        path: "\n".join(c.source for c in nbformat.read(path, 4).cells if c.cell_type == "markdown")
        for path in (out / edition).glob("notebooks/*.ipynb")
    }
    texts |= {path: path.read_text("utf-8") for path in (out / edition).glob("docs/*.md")}
    led = 0
    for path, text in texts.items():
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if not target.startswith("https://"):
                name, _, heading = target.partition("#")
                file = (path.parent / name).resolve() if name else path
                assert file in texts and (not heading or heading in anchors(texts[file])), target
                led += 1
            assert heads.NOBODY not in target
    assert led > 15


def test_an_edition_holds_what_its_notebooks_read(out):
    for edition in ("student", "teacher", "answers"):
        held = {p.name: p.read_bytes() for p in (out / edition / "results").iterdir()}
        assert held == {p.name: p.read_bytes() for p in (ROOT / "results").glob("*.json")} != {}


def test_a_link_to_a_file_that_no_edition_holds_leads_to_the_repository_or_is_words(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "notebooks").mkdir()
    shutil.copy(NOTEBOOKS / SHORT[0], tmp_path / "notebooks")
    (tmp_path / "docs" / "a.md").write_text("# A\n[code](../protolib/bank.py), [b](b.md#b)\n")
    (tmp_path / "docs" / "b.md").write_text("# B\n")
    found = []
    for place in ("your_name", "us"):
        address = f"https://example.org/{place}/kit"
        (tmp_path / "pyproject.toml").write_text(f'[project.urls]\nRepository = "{address}"\n')
        editions.write(tmp_path / "notebooks", "answers", tmp_path / place)
        found.append((tmp_path / place / "answers" / "docs" / "a.md").read_text().splitlines()[1])
    code = "[code](https://example.org/us/kit/blob/main/protolib/bank.py)"
    assert found == ["code, [b](b.md#b)", f"{code}, [b](b.md#b)"]


# slides


@pytest.fixture(scope="module")
def decks(tmp_path_factory):
    """The folder of the slides, made by the command."""
    folder = tmp_path_factory.mktemp("slides")
    assert main(["edition", "slides", str(folder)]) == 0
    return folder / "slides"


@pytest.mark.slow  # formulas are drawn
def test_slides_ask_for_nothing_and_hold_figures_and_no_code(decks):
    page = (decks / "notebooks" / "03_matching_loss.html").read_text("utf-8")
    soup = BeautifulSoup(page, "html.parser")
    assert not soup.find_all(["script", "iframe", "object", "input"])
    assert not soup.select("link:not([href^='data:']), img:not([src^='data:'])")
    assert "@import" not in page and "url(" not in page
    assert len(soup.select("section")) > 30 and page.count("data:image/jpeg") >= 7
    assert "def draw_toy" not in page and "_solution" not in page and not soup.select(".highlight")
    assert len(soup.select("section.question")) == len(
        re.findall(r"(?m)^\*\*Question", story("03"))
    )
    assert all(image["alt"] for image in soup.find_all("img"))


def story(number):
    """The prose of a notebook."""
    [book] = [book for name, book in SOURCE.items() if name.startswith(number)]
    return "\n".join(c.source for c in book.cells if c.cell_type == "markdown")


@pytest.mark.slow
def test_every_link_of_the_slides_leads_to_a_page_and_a_heading_beside_them(decks):
    soups = {
        path: BeautifulSoup(path.read_text("utf-8"), "html.parser")
        for path in decks.rglob("*.html")
    }
    assert len(soups) > 15 and (decks / "site.css").is_file()
    for page, soup in soups.items():
        for link in soup.select("a[href]"):
            name, _, heading = link["href"].partition("#")
            if not name.startswith("https:"):
                target = (page.parent / name).resolve() if name else page
                assert target in soups, f"{page.name}: {link['href']}"
                assert not heading or soups[target].find(id=heading), f"{page.name}: {link['href']}"


# grading


@pytest.fixture
def school(tmp_path):
    """A course of two short notebooks, and the folder of its class."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    for name in SHORT:
        shutil.copy(NOTEBOOKS / name, folder)
    return folder, tmp_path / "class"


def hand_in(school, who, *, solved=(), change=None):
    """The student edition, with the solutions of some exercises in the stubs' place."""
    for name in SHORT:
        book = editions.student(nbformat.read(school[0] / name, as_version=4))
        for cell in book.cells:
            for solution in solutions(SOURCE[name]):
                task = solution.id.removeprefix("ex-").removesuffix("-solution").replace("-", "_")
                if task in solved and cell.id == f"ex-{task.replace('_', '-')}-stub":
                    cell.source = solution.source.split("\n\n\nassert")[0].replace("_solution", "")
        if change:
            change(book)
        path = school[1] / who / "week 1" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(book, path)


ALL = ("image_label", "accuracy", "paired_interval")  # 1, 1 and 3 points


@pytest.mark.slow  # 6 kernels, half a minute
def test_a_class_of_three_gets_its_marks(school, capsys):
    hand_in(school, "ada", solved=ALL)
    hand_in(school, "bob", solved=("image_label", "paired_interval"))
    hand_in(school, "=cleo")
    (school[1] / "ada" / ".ipynb_checkpoints").mkdir()
    arguments = ["grade", str(school[1]), "--notebooks", str(school[0])]
    assert main(arguments) == 0
    with open(school[1] / "grades.csv", newline="", encoding="utf-8") as file:
        rows = {row["learner"]: row for row in csv.DictReader(file)}
    assert {who: [row[n] for n in (*ALL, "points", "of")] for who, row in rows.items()} == {
        "ada": ["1", "1", "3", "5", "5"],
        "bob": ["1", "0", "3", "4", "5"],
        "'=cleo": ["0", "0", "0", "0", "5"],
    }
    assert rows["ada"]["remarks"] == ""
    assert rows["bob"]["remarks"].startswith("accuracy: not solved yet: ")


@pytest.mark.slow  # 3 kernels, one of them interrupted
def test_whatever_is_handed_in_the_others_get_their_marks(school, monkeypatch):
    monkeypatch.setattr(grade, "CELL", 15)
    use_own_kernel()

    def dies(book):
        book.cells.insert(0, nbformat.v4.new_code_cell("import os\nos._exit(1)"))

    def waits(book):
        book.cells.insert(0, nbformat.v4.new_code_cell("while True:\n    pass"))

    def fakes(book):
        for cell in book.cells:
            if editions.tagged(cell, "check"):
                cell.source = "print('image_label: solved')"

    hand_in(school, "dies", solved=ALL, change=dies)
    hand_in(school, "fakes", change=fakes)
    hand_in(school, "waits", solved=ALL, change=waits)
    for who in ("dies", "fakes", "waits"):
        (school[1] / who / "week 1" / SHORT[1]).write_text("no notebook")
    path = grade.write(school[0], school[1], school[1].parent / "marks.csv")
    rows = {row["learner"]: row for row in csv.DictReader(path.read_text().splitlines())}
    assert {who: row["points"] for who, row in rows.items()} == {
        "dies": "0",
        "fakes": "0",
        "waits": "2",
    }
    assert "ended the kernel" in rows["dies"]["remarks"]
    assert all("is no notebook that can be read" in row["remarks"] for row in rows.values())


def test_a_folder_without_submissions_is_refused_before_work(tmp_path, capsys):
    (tmp_path / "ada").mkdir()
    for folder in (tmp_path, tmp_path / "nowhere"):
        assert main(["grade", str(folder)]) == 2
        assert "holds no submission" in capsys.readouterr().err
    assert not (tmp_path / "grades.csv").exists()


def test_only_what_a_learner_wrote_runs(school):
    of = grade.course(school[0])[SHORT[0]]
    book = nbformat.read(school[0] / SHORT[0], as_version=4)
    book.cells[1].source += "\nfrom math import nan"
    next(c for c in book.cells if editions.tagged(c, "exercise")).source = "x = np.array(nan)"
    work = grade.submission(book, of)
    assert work.cells[0].source == grade.OURS
    assert [c.source for c in work.cells[1:4]] == [
        "import numpy as np",
        "from math import nan",
        "x = np.array(nan)",
    ]
    assert len(work.cells) == 1 + 3 + 1 + 2  # ours, the three, the other stub, two checks


@pytest.mark.slow
@pytest.mark.skipif(
    "PROTOLIB_NBGRADER" not in os.environ,
    reason="nbgrader is no dependency: PROTOLIB_NBGRADER=1 builds an environment for it (network)",
)
def test_nbgrader_releases_grades_and_answers_a_class_of_three(school, tmp_path):
    python, uv = tmp_path / "venv" / "bin" / "python", Path(sys.prefix) / "bin" / "uv"
    subprocess.run([uv, "venv", "-q", tmp_path / "venv"], check=True)
    subprocess.run([uv, "pip", "install", "-q", "--python", python, "nbgrader"], check=True)
    spec = tmp_path / "jupyter" / "kernels" / "python3" / "kernel.json"  # where protolib is
    launch = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    files.write_json(spec, {"argv": launch, "display_name": "Python 3", "language": "python"})
    env = {"PYTHONPATH": str(NOTEBOOKS.parent), "JUPYTER_PATH": str(tmp_path / "jupyter")}
    env["PATH"] = f"{python.parent}{os.pathsep}{os.environ['PATH']}"  # it calls alembic by name
    place = tmp_path / "course"
    editions.write(school[0], "student", tmp_path)
    for name in SHORT:
        (place / "source" / "week1").mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / "student" / "notebooks" / name, place / "source" / "week1")

    def nbgrader(*words):
        command = [python, "-m", "nbgrader", *words]
        done = subprocess.run(
            command, cwd=place, env=os.environ | env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr

    nbgrader("generate_assignment", "week1")
    for who, solved in {"ada": ALL, "bob": ALL[:1] + ALL[2:], "cleo": ()}.items():
        hand_in(school, who, solved=solved)
        for path in (school[1] / who / "week 1").iterdir():
            target = place / "submitted" / who / "week1" / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    nbgrader("autograde", "week1", "--create", "--ExecutePreprocessor.timeout=300")
    nbgrader("generate_feedback", "week1")
    nbgrader("export")
    with open(place / "grades.csv", newline="") as file:
        found = {row["student_id"]: float(row["score"]) for row in csv.DictReader(file)}
    assert found == {"ada": 5, "bob": 4, "cleo": 0}
    page = (place / "feedback" / "cleo" / "week1" / "00_start_here.html").read_text("utf-8")
    assert "not solved yet" in page
