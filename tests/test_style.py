"""What holds in every file: lines of 100 columns, docstrings that are there and true, short
signatures, and imports that point one way. The code is parsed, not loaded."""

import ast
import importlib
import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("protolib", "data_download")
MODULES = sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CHAPTERS = {path.stem[:2]: path for path in NOTEBOOKS if path.stem[:2].isdigit()}
PROSE = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "Makefile"])
COLUMNS = 100
PARAMETERS = 7
LOW = {"files", "keys", "presets", "metrics", "bank"}  # the kernels that data and nets may know
# what each wing must not know; "" stands for the kernels
ABOVE = {
    "teach": {"own"},
    "slides": {"own", "teach"},
    "study": {"own", "slides", "teach"},
    "own": {"slides", "study", "teach"},
} | dict.fromkeys(("", "data", "nets"), {"own", "slides", "study", "teach"})
RUN = "protolib/experiment.py Run."
REFERENCE = re.compile(r"\bnotebooks?\s+(\d\d(?:(?:,|,?\s+and)\s+\d\d)*)", re.IGNORECASE)


class Definition(NamedTuple):
    """A function or class of the packages, where it stands and what it is called."""

    module: Path
    name: str  # with the class it belongs to: "Run.bank"
    node: ast.FunctionDef | ast.ClassDef

    def __str__(self) -> str:
        return f"{self.module.relative_to(ROOT)} {self.name}"


def definitions(module: Path) -> list[Definition]:
    """Functions and classes of a module, and what stands in its classes."""

    def below(node: ast.AST, outer: str) -> list[Definition]:
        found = []
        for inner in ast.iter_child_nodes(node):
            if isinstance(inner, ast.FunctionDef | ast.ClassDef):
                found.append(Definition(module, outer + inner.name, inner))
                if isinstance(inner, ast.ClassDef):
                    found += below(inner, f"{outer}{inner.name}.")
        return found

    return below(ast.parse(module.read_text("utf-8")), "")


DEFINITIONS = [found for module in MODULES for found in definitions(module)]


def cells(path: Path) -> list[str]:
    """The code cells of a notebook, as text."""
    book = json.loads(path.read_text("utf-8"))
    return ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code"]


# lines


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_line_of_a_notebooks_code_is_longer_than_a_page_is_wide(path):
    lines = [line for cell in cells(path) for line in cell.splitlines()]
    assert [line for line in lines if len(line) > COLUMNS] == []


@pytest.mark.parametrize(
    "path",
    [*MODULES, *sorted((ROOT / "tests").glob("*.py"))],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_no_line_is_longer_than_a_page_is_wide(path):
    lines = enumerate(path.read_text("utf-8").splitlines(), start=1)
    assert [n for n, line in lines if len(line) > COLUMNS] == []


@pytest.mark.parametrize("path", PROSE, ids=lambda path: path.name)
def test_no_line_of_prose_is_longer_but_tables_and_addresses(path):
    lines = path.read_text("utf-8").splitlines()
    prose = [line for line in lines if not line.startswith("|") and "://" not in line]
    assert [line for line in prose if len(line) > COLUMNS] == []


# docstrings and signatures


def test_every_public_function_and_class_says_what_it_is():
    silent = [
        str(found)
        for found in DEFINITIONS
        if not any(part.startswith("_") for part in found.name.split("."))
        and found.name.split(".")[-1] != "forward"  # of an nn.Module: its class tells the shapes
        and not ast.get_docstring(found.node)
    ]
    assert silent == []


def parameters(node: ast.FunctionDef) -> int:
    """How many a caller may give: without self and cls, each of * and ** as one."""
    given = node.args
    named = [*given.posonlyargs, *given.args, *given.kwonlyargs]
    own = sum(argument.arg not in ("self", "cls") for argument in named)
    return own + (given.vararg is not None) + (given.kwarg is not None)


def test_no_function_takes_more_than_seven_parameters():
    functions = [f for f in DEFINITIONS if isinstance(f.node, ast.FunctionDef)]
    long = {str(f) for f in functions if parameters(f.node) > PARAMETERS}
    assert long == set()


# references to notebooks


def called(path: Path) -> str:
    """The name of a module's file; a package's own module has the package's."""
    return path.parent.name if path.stem == "__init__" else path.stem


def imported(tree: ast.AST) -> dict[str, str]:
    """What the imports of a piece of code mean: {"fuse": "maps.fuse", "bank": "bank"}."""
    meant = {package: package for package in PACKAGES}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES:
            folder = ROOT.joinpath(*node.module.split("."))
            for name in node.names:
                whole = (folder / f"{name.name}.py").exists() or (folder / name.name).is_dir()
                owner = "" if whole else f"{folder.name}."
                meant[name.asname or name.name] = owner + name.name
    return meant


@cache
def borrowed() -> dict[str, str]:
    """What a module has from another: {"bank.white_share": "regions.white_share"}."""
    return {
        f"{called(module)}.{name}": meaning
        for module in MODULES
        for name, meaning in imported(ast.parse(module.read_text("utf-8"))).items()
    }


def used(code: ast.AST, meant: dict[str, str]) -> set[str]:
    """What a piece of code names: "maps.fuse", and ".bank" for an attribute of any object."""
    found = set()
    for node in ast.walk(code):
        if isinstance(node, ast.Attribute):
            owner = meant.get(node.value.id, "") if isinstance(node.value, ast.Name) else ""
            name = f"{owner}.{node.attr}"
            found.add(borrowed().get(name, name))
        elif isinstance(node, ast.Name):
            found.add(meant.get(node.id, node.id))
    return found


@cache
def within() -> dict[str, set[str]]:
    """What each function and class names in its own code: {"cams.predict": {"maps.fuse", ...}}."""
    found = {}
    for module in MODULES:
        own = [d for d in DEFINITIONS if d.module == module]
        meant = imported(ast.parse(module.read_text("utf-8")))
        meant |= {d.name: f"{called(module)}.{d.name}" for d in own}
        found |= {f"{called(module)}.{d.name}": used(d.node, meant) for d in own}
    return found


def shown(notebook: Path) -> set[str]:
    """What a notebook shows: what its code names, what the sources that it prints name, and what
    is named by the steps of a run that it takes, the methods of experiment.Run."""
    code = "\n".join(cells(notebook))
    tree = ast.parse(re.sub("(?m)^%.*", "", code))  # what only IPython understands
    meant = imported(tree)
    found = used(tree, meant)
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "viz.show_source":
            for printed in call.args:
                found |= set().union(*(within().get(name, ()) for name in used(printed, meant)))
    first = {".__init__"} if "experiment.Run" in found else set()
    taken, steps = set(), {d.name[3:] for d in DEFINITIONS if str(d).startswith(RUN)}
    while waiting := (found | first) & steps - taken:
        step = waiting.pop()
        taken.add(step)
        found |= within()[f"experiment.Run{step}"]
    return found


def said(found: Definition) -> set[str]:
    """The notebooks that a docstring names: {"03", "04"}."""
    text = " ".join((ast.get_docstring(found.node) or "").split())
    return {number for listed in REFERENCE.findall(text) for number in re.findall(r"\d\d", listed)}


def true(found: Definition, everywhere: dict[str, set[str]]) -> set[str]:
    """The notebooks that show a function, class or method; what Python calls by itself, such as
    __init__, is shown where its class is."""
    outer, _, name = found.name.rpartition(".")
    if name.startswith("__"):
        outer, name = "", outer
    known = f".{name}" if outer else f"{called(found.module)}.{name}"
    return {number for number, names in everywhere.items() if known in names}


@pytest.fixture(scope="module")
def everywhere():
    return {number: shown(path) for number, path in CHAPTERS.items()}


def test_a_docstring_names_only_notebooks_that_show_it(everywhere):
    wrong = {str(d): said(d) for d in DEFINITIONS if said(d) - true(d, everywhere)}
    assert wrong == {}


# imports


def imports(module: Path) -> set[str]:
    """The modules of the packages that a module imports, as "protolib.data.specs"; what stands
    under TYPE_CHECKING is not run."""
    tree = ast.parse(module.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = [ast.Pass()]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            folder = ROOT.joinpath(*node.module.split("."))
            inside = [n.name for n in node.names if (folder / f"{n.name}.py").exists()]
            found |= {f"{node.module}.{name}" for name in inside} or {node.module}
    return {name for name in found if name.split(".")[0] in PACKAGES}


def wing(module: str) -> str:
    """The wing that a module stands in, "" for a kernel: "data" for "protolib.data.specs"."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and (ROOT / "protolib" / parts[1]).is_dir() else ""


def dotted(module: Path) -> str:
    """The name by which a module is imported."""
    return ".".join(module.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_imports_upwards(module):
    name, found = dotted(module), imports(module)
    ours = {other for other in found if other.startswith("protolib.")}
    if name.startswith("data_download"):  # it lays data out, and knows how that must look
        assert {wing(other) for other in ours} <= {"", "data"}
        return
    if name != "protolib.nets.weights":  # weights come over the same wire as data
        assert not found - ours - {"protolib"}
    if name == "protolib.__main__":  # the command line calls everything
        return
    assert not {wing(other) for other in ours} & ABOVE[wing(name)]
    kernels = {other.removeprefix("protolib.") for other in ours if not wing(other)}
    if wing(name) in ("data", "nets"):
        assert kernels <= LOW
    elif not wing(name) and name != "protolib.experiment":
        assert not kernels & {"experiment", "__main__"}


@pytest.mark.parametrize(
    "module, loads", [("protolib.matching", ["torch"]), ("protolib", []), ("conftest", [])]
)
def test_a_kernel_loads_torch_and_no_more(module, loads):
    heavy = ("torch", "timm", "transformers", "sklearn", "matplotlib", "pandas", "accelerate")
    code = f"import sys, {module}; print(*[name for name in {heavy} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == loads


# prose


@pytest.mark.parametrize("page", PROSE, ids=lambda path: path.name)
def test_links_lead_to_what_is_there(page):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text("utf-8"))
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PROSE, ids=lambda path: path.name)
def test_links_to_a_heading_lead_to_one(page):
    for target, heading in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text("utf-8")):
        text = (page.parent / target if target else page).read_text("utf-8")
        heads = [re.sub(r"[^\w -]", "", head) for head in re.findall(r"(?m)^#+ (.*)", text)]
        assert heading in [head.strip().lower().replace(" ", "-") for head in heads]


def test_commands_in_prose_are_understood():
    prose = [page.read_text("utf-8") for page in PROSE if page.suffix == ".md"]
    pages = "\n".join(prose).replace("\\\n", " ")
    found = re.findall(r"\.venv/bin/python -m (protolib|data_download)\b([^#`\n]*)", pages)
    assert len(found) > 5
    for package, words in found:
        main = importlib.import_module(f"{package}.__main__")
        try:
            main.parser().parse_args(words.split())
        except SystemExit as end:  # --help ends here too
            assert end.code == 0, f"{package}{words}"


def test_readme_and_contributing_name_only_targets_of_make():
    targets = re.findall(r"(?m)^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"))
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        named = re.findall(r"(?m)(?:^|`)make ([a-z]+)", page.read_text("utf-8"))
        assert named and set(named) <= set(targets)
