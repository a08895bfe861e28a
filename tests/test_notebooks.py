"""The notebooks: their form, what is committed of them, and the whole story at preset smoke through
the runner.

That their cells run and their exact outputs hold is nbval's part: pytest collects notebooks/ beside
tests/.
"""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from protolib import results

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
STORY = [
    path for path in NOTEBOOKS if path.stem != "one_run"
]  # which `ablate` runs, once for each cell of the grid
NAMES = [
    "00_start_here",
    "01_dataset_exploration",
    "02_clustering_prototypes",
    "03_matching_loss",
    "04_cam_training",
    "05_segmentation",
    "06_how_to_score",
    "07_reproduce_the_paper",
    "08_your_own_slides",
]
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
chapter = pytest.mark.parametrize("path", STORY, ids=lambda p: p.stem)


def code_cells(path):
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]


def exercise_cells(path):
    """How many cells belong to exercises: stub, check and solution of each."""
    tags = [c.metadata.get("tags", []) for c in code_cells(path)]
    return sum(bool({"exercise", "check", "solution"} & set(own)) for own in tags)


def test_the_story_is_complete_and_in_order():
    assert [p.stem for p in STORY] == NAMES


@chapter
def test_form(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (
        4,
        5,
    ) and notebook.metadata.kernelspec.name == "python3"
    assert len({c.id for c in notebook.cells}) == len(notebook.cells)
    lines = [len(c.source.splitlines()) for c in code_cells(path)]
    assert 15 <= len(lines) - exercise_cells(path) <= 30 and max(lines) <= 25
    assert path.stat().st_size < 1_000_000
    assert "filterwarnings" not in path.read_text() and "raises-exception" not in path.read_text()


@each
def test_parameters_are_one_cell_of_commented_literals(path):
    [cell] = [c for c in code_cells(path) if "parameters" in c.metadata.get("tags", [])]
    names = []
    for line, statement in zip(cell.source.splitlines(), ast.parse(cell.source).body, strict=True):
        ast.literal_eval(statement.value)
        names.append(statement.targets[0].id)
        assert "#" in line, f"{names[-1]} has no comment"
    if path.stem.startswith("07"):  # the ledger runs nothing
        assert names == ["results_dir", "run_dir"]
        return
    shared = ["preset", "dataset", "data_root", "run_dir", "seed", "device"]
    assert names[: len(shared)] == shared
    assert names[6:9] == (
        ["encoder", "backbone", "K"] if path in STORY else ["method", "settings", "cache"]
    )


@each
def test_committed_outputs_are_there_and_clean(path):
    text = path.read_text()
    assert not re.search(r"/(root|work|tmp|home|Users)/", text), "a private path"
    assert "papermill" not in json.dumps(json.loads(text)["metadata"])
    for n, cell in enumerate(
        code_cells(path), start=1
    ):  # a widget's output means nothing without its kernel: it is dropped
        wanted = None if "nbval-ignore-output" in cell.metadata.get("tags", []) else n
        assert cell.execution_count == wanted, "not executed from top to bottom by `make notebooks`"
    kinds = {o.output_type for c in code_cells(path) for o in c.outputs}
    assert "error" not in kinds and "display_data" in kinds
    assert not [o for c in code_cells(path) for o in c.outputs if o.get("name") == "stderr"], (
        "a warning was left"
    )
    assert "widget-view" not in text, (
        "a bar or a widget was left: it shows nothing without its kernel"
    )


@chapter
def test_every_figure_has_words_for_who_cannot_see_it(path):
    cells = code_cells(path)
    if not next(cell for cell in cells if cell.id == "free").outputs:
        pytest.skip("executed before figures had words: make notebooks")
    for cell in cells:
        for output in cell.outputs:
            kinds = {"image/png", "image/jpeg"} & set(output.get("data", {}))
            words = {
                output.metadata.get(kind, {}).get("alt", output.metadata.get("alt"))
                for kind in kinds
            }
            assert all(words), f"{cell.id}: viz.save gives a figure its words"


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The whole story at preset smoke, run as a user runs it."""
    folder = tmp_path_factory.mktemp("smoke") / "run"
    command = [
        sys.executable,
        "-m",
        "protolib",
        "run",
        "--preset",
        "smoke",
        "--run-dir",
        str(folder),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


@pytest.mark.slow
def test_smoke_scores_every_method_under_both_protocols(smoke):
    record = results.record(**json.loads((smoke / "results.json").read_text()))
    assert (record["preset"], record["dataset"], record["seed"]) == ("smoke", "phantom", 0)
    assert list(record["methods"]) == list(results.METHODS)
    for scores in record["methods"].values():
        assert 0 < scores["miou"] < 1 and len(scores["iou"]) == 4
        assert (scores["image_labels"], scores["ignore"]) == ("predicted", "dropped")
        assert (scores["oracle"]["image_labels"], scores["oracle"]["ignore"]) == (
            "oracle",
            "dropped",
        )
    assert record["peak_rss_mb"] < 4000
    assert set(record["seconds"]) >= set(NAMES)


@pytest.mark.slow
def test_smoke_leaves_executed_notebooks_figures_and_a_page_that_needs_no_network(smoke):
    assert sorted(p.stem for p in (smoke / "notebooks").glob("*.ipynb")) == NAMES
    figures = sorted((smoke / "figures").glob("*.png"))
    assert {p.stem[:2] for p in figures} >= {"01", "02", "03", "04", "05", "06"}
    page = (smoke / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(figures)
    assert not re.search(r"""(src|href)=["'](https?:)?//""", page)
