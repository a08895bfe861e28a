"""docs/results.md: no number in it is typed by hand."""

import importlib.util
import json
import statistics

import fake_results
import pytest

from protolib.study import ledger, paper


@pytest.fixture(scope="module")
def page(root):
    spec = importlib.util.spec_from_file_location("results_page", root / "docs" / "results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_holds_what_results_holds(root, page):
    text = (root / "docs" / "results.md").read_text("utf-8")
    assert page.filled(text, page.known(root / "results")) == text, (
        "run .venv/bin/python docs/results.py"
    )
    assert text.count("<!-- end -->") == len(page.PLACE.findall(text)) > 3


def test_a_row_is_mean_and_deviation_over_seeds_of_the_file(root, page):
    result = page.known(root / "results")["mosaic-lean"]
    file = json.loads((root / "results" / "mosaic-lean.json").read_text("utf-8"))
    table = page.scored(paper.TABLES["table1"], result)
    row = next(row for row in table.rows if row[0] == "PBIP, stage 1")
    mious = []
    for seed in (0, 1, 2):  # over the pooled pixels of all folds, by hand
        own = [r for r in file["runs"] if (r["run"], r["seed"]) == ("pbip_stage1", seed)]
        counts = [of["predicted"]["matrix"] for run in own for of in run["slides"].values()]
        C = len(file["classes"])
        summed = [[sum(m[i][j] for m in counts) for j in range(C)] for i in range(C)]
        ious = [
            summed[c][c] / (sum(summed[c]) + sum(row[c] for row in summed) - summed[c][c])
            for c in range(C)
        ]
        mious.append(100 * statistics.mean(ious))
    assert row[1:3] == ["3", f"{statistics.mean(mious):.1f} ± {statistics.stdev(mious):.1f}"]


def test_a_row_of_one_seed_has_its_mean_and_no_deviation(page, tmp_path):
    fake_results.write(tmp_path, fake_results.result(seeds=[4]))
    (result,) = ledger.read(tmp_path)
    (made,) = fake_results.runs_of(result, "pbip_stage1 beta=0.0")
    row = page.scored(paper.TABLES["table2"], result).rows[0]
    miou = made["scores"]["predicted"]["miou"]
    assert row[:3] == ["CLS", "1", f"{100 * miou:.1f}"]


def test_a_file_without_its_results_is_named(page):
    with pytest.raises(ValueError, match="lost-lean.*is not in results/"):
        page.filled("<!-- lost-lean table1 -->\n<!-- end -->", {})
