"""The ledger on result files made of a formula: every number from the scores in the file, and what
is refused."""

import copy
import json
import math
import statistics

import fake_results
import numpy as np
import pytest

from protolib import metrics
from protolib.files import write_json
from protolib.study import ledger, paper

KEYS = [
    "table",
    "row",
    "dataset",
    "metric",
    "ours_mean",
    "ours_std",
    "seeds",
    "paper",
    "protocol",
    "preset",
    "run_ids",
    "paper_std",
    "paper_dataset",
    "difference",
    "reruns",
    "hours",
    "note",
]
MOSAIC, OFFICIAL = (
    fake_results.result(),
    fake_results.result("bcss-wsss", True, preset="paper_text", seeds=(0, 1)),
)
PREDICTED, ORACLE = fake_results.PROTOCOLS.values()


@pytest.fixture(scope="module")
def both(read):
    return read(MOSAIC, OFFICIAL)


def find(rows, **wanted) -> list[dict]:
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def raw(result: dict, cell: str, protocol: str, metric: str) -> list[float]:
    """The scores of a cell as the file has them, in percent."""
    return [100 * c["scores"][protocol][metric] for c in result["cells"] if c["cell"] == cell]


def test_files_are_read_whole_and_published_data_comes_first(both, tmp_path):
    assert [(r["label"], len(r["cells"])) for r in both] == [("bcss-wsss", 22), ("mosaic", 33)]
    cell, wanted = both[1]["cells"][4], MOSAIC["cells"][4]
    assert cell["run_id"] == wanted["run_id"] == "mosaic-lean/pbip_stage1/seed 1"
    assert cell["slides"]["S3"]["oracle"].tolist() == wanted["slides"]["S3"]["oracle"]
    np.testing.assert_array_equal(cell["curve"]["iou"][2], [0.5, 0.25, math.nan, 0.2 + 0.01])
    np.testing.assert_array_equal(
        cell["scores"]["predicted"]["iou"], wanted["scores"]["predicted"]["iou"]
    )
    assert both[1]["cells"][-1]["scores"]["f1"]["f1_NEC"] == 0.8 + 0.02
    assert ledger.read(tmp_path) == ledger.read(tmp_path / "nowhere") == []


def test_rows_are_json_with_the_keys_in_order_and_name_unofficial_data(both):
    rows = ledger.rows(both)
    assert all(list(row) == KEYS for row in rows)
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    assert {(row["dataset"], row["preset"]) for row in rows if row["seeds"]} == {
        ("mosaic, not an official benchmark", "lean"),
        ("bcss-wsss", "paper_text"),
    }


def test_a_row_with_runs_by_hand(both):
    first, second = find(ledger.rows(both), table="table2", row="CLS", metric="dice", preset="lean")
    scores = raw(MOSAIC, "pbip_stage1 beta=0.0", "predicted", "dice")
    assert first == {
        "table": "table2",
        "row": "CLS",
        "dataset": "mosaic, not an official benchmark",
        "metric": "dice",
        "ours_mean": pytest.approx(statistics.mean(scores), rel=1e-12),
        "ours_std": pytest.approx(statistics.stdev(scores), rel=1e-9),
        "seeds": 3,
        "paper": 76.6,
        "protocol": PREDICTED,
        "preset": "lean",
        "run_ids": [f"mosaic-lean/pbip_stage1 beta=0.0/seed {seed}" for seed in (0, 1, 2)],
        "paper_std": 0.3,
        "paper_dataset": "bcss-wsss",
        "difference": None,
        "reruns": {},
        "hours": pytest.approx(0.06),
        "note": "",
    }
    oracle = raw(MOSAIC, "pbip_stage1 beta=0.0", "oracle", "dice")
    assert second["protocol"] == ORACLE and second["ours_mean"] == pytest.approx(
        statistics.mean(oracle), rel=1e-12
    )


def test_a_difference_is_taken_on_the_same_data_only(both):
    rows = ledger.rows(both)
    assert {row["dataset"] for row in rows if row["difference"] is not None} == {"bcss-wsss"}
    [row] = find(
        rows,
        table="table2",
        row="CLS + FGS + BGS",
        metric="miou",
        preset="paper_text",
        protocol=PREDICTED,
    )
    mean = statistics.mean(raw(OFFICIAL, "pbip_stage1", "predicted", "miou"))
    assert row["difference"] == pytest.approx(mean - 67.54, abs=1e-11)
    assert row["reruns"] == {"SSHR's authors": 66.74}  # stage 1
    [row] = find(rows, table="table1", row="PBIP", metric="miou", paper_dataset="bcss-wsss")
    assert row["reruns"] == {"SSHR's authors": 69.16, "ProBAG's authors": 69.03}  # stage 2
    [row] = find(
        rows, table="table1", row="PBIP, stage 1", metric="miou", preset="lean", protocol=PREDICTED
    )
    assert (row["paper"], row["paper_dataset"], row["reruns"]) == (
        None,
        None,
        {"SSHR's authors": 66.74},
    )


def test_one_seed_has_no_std(read):
    rows = find(ledger.rows(read(fake_results.result(seeds=[4]))), table="table4", row="K = 2")
    assert [(row["seeds"], row["ours_std"], row["protocol"]) for row in rows if row["preset"]] == [
        (1, None, PREDICTED),
        (1, None, ORACLE),
    ]


def test_f1_stays_a_fraction_and_has_its_classes(both):
    rows = find(ledger.rows(both), table="table6", row="image, lite0", preset="lean")
    assert [(row["metric"], round(row["ours_mean"], 12), row["paper"]) for row in rows] == [
        ("f1_TUM", 0.5, None),
        ("f1_STR", 0.6, None),
        ("f1_LYM", 0.7, None),
        ("f1_NEC", 0.81, None),
        ("f1", 0.6525, None),
    ]
    assert rows[3]["ours_std"] == pytest.approx(0.01, rel=1e-9)


def test_every_value_of_the_paper_is_there_and_once_where_nothing_ran(both):
    for results in ([], both):
        rows = ledger.rows(results)
        for value in paper.VALUES:
            found = find(
                rows,
                table=value.table,
                row=value.row,
                metric=value.metric,
                paper_dataset=value.dataset,
            )
            assert found and {row["paper"] for row in found} == {value.mean}
            ran = [row for row in found if row["seeds"]]
            assert len(found) == (len(ran) or 1)
    blank = ledger.rows([])
    assert len(blank) == len(paper.VALUES)
    assert all(
        (row["ours_mean"], row["hours"], row["run_ids"]) == (None, None, []) for row in blank
    )
    assert all(row["dataset"] == row["paper_dataset"] for row in blank)


def test_notes_say_why_not_and_what_the_paper_got_wrong(both):
    rows = ledger.rows(both)
    assert {row["note"] for row in find(rows, row="CLIP, SegFormer")} == {
        "not run: no weights of clip"
    }
    assert {row["note"] for row in find(rows, row="CLS + BGS")} == {"not run"}
    [row] = find(rows, row="SAM-Path", metric="biou", dataset="gcss")
    assert row["note"].startswith("not run; paper: typo?")


def test_a_score_that_is_missing_in_one_seed_blanks_the_row(read):
    result = copy.deepcopy(MOSAIC)
    result["cells"][4]["scores"]["predicted"]["biou"] = None  # PBIP, seed 1
    rows = ledger.rows(read(result))
    [row] = find(rows, table="table2", row="CLS + FGS + BGS", metric="biou", protocol=PREDICTED)
    assert row["ours_mean"] is row["ours_std"] is None
    assert (row["seeds"], row["note"]) == (3, "no score with seed 1")


def test_rows_of_a_sweep_stand_in_order_of_position(both):
    assert ledger.point("theta2/theta1 = 0.05") == ("theta2/theta1", 0.05)
    assert ledger.point("clustering, 100 images") == ("clustering", 100)
    assert ledger.point("K = 3") == ("K", 3) and ledger.point("MedCLIP, ResNet18") is None
    assert ledger.row_names(paper.TABLES["figure4"], both[1]) == [
        "random, 0 images",
        "random, 1 images",
        "random, 5 images",
        "random, 8 images",
        "random, 50 images",
        "random, 100 images",
        "random, 200 images",
        "random, 500 images",
        "random, 1000 images",
        "clustering, 8 images",
        "clustering, 100 images",
    ]
    assert ledger.row_names(paper.TABLES["table1"], both[1])[-3:] == [
        "PBIP",
        "CAM",
        "PBIP, stage 1",
    ]
    assert "SAM-Path" not in ledger.row_names(paper.TABLES["table1"], both[1])  # not on bcss-wsss


def test_data_stand_beside_the_papers_own_or_bcss_wsss():
    table1, table2 = paper.TABLES["table1"], paper.TABLES["table2"]
    luad = {"dataset": "luad-histoseg", "official": True}
    assert [ledger.beside(table1, luad), ledger.same(table1, luad)] == ["luad-histoseg", True]
    assert [ledger.beside(table2, luad), ledger.same(table2, luad)] == ["bcss-wsss", False]
    assert ledger.beside(table1, {"dataset": "phantom"}) == "bcss-wsss"


@pytest.mark.filterwarnings("error")
def test_band_is_mean_lowest_and_highest_of_the_seeds(both):
    band = ledger.band(both, "pbip_stage1", "mosaic", "lean")
    assert band.seeds == (0, 1, 2)
    np.testing.assert_allclose(
        band.loss, [[1.1, 0.5, 0.15], [1, 0.5, 0.05], [1.2, 0.5, 0.25]], rtol=1e-12
    )
    wanted = [
        [0.5, 0.25, math.nan, 0.1 + over] for over in (0.01, 0, 0.02)
    ]  # after the second epoch
    np.testing.assert_allclose(band.iou[:, 1], wanted, rtol=1e-12)
    assert ledger.band(both, "zero_shot", "mosaic", "lean") is None
    assert ledger.band(both, "pbip_stage1", "mosaic", "quick") is None


def test_the_files_of_these_tests_hold_scores_that_follow_from_their_slides():
    cell = MOSAIC["cells"][0]
    pooled = sum(np.array(slide["predicted"]) for slide in cell["slides"].values())
    assert cell["scores"]["predicted"]["miou"] == metrics.scores(pooled)["miou"]


@pytest.mark.parametrize(
    "way, value, words",
    [
        (["label"], None, "label is missing; expected label, official"),
        (["official"], "yes", "official is 'yes'; expected true or false"),
        (["tables", "table9"], {}, "tables: 'table9' is unknown; expected some of table1, "),
        (["tables", "table2", "CLS"], 3, "tables: table2: CLS is 3; expected a text"),
        (["cells"], [{}], "cells: run_id is missing"),
        (["cells", 0], "cam", "cells: found 'cam'; expected"),
        (["cells", 0, "seed"], True, "seed 0: seed is True; expected a whole number"),
        (["cells", 0, "seconds"], None, "seconds is missing"),
        (
            ["cells", 0, "scores", "f1"],
            {},
            "scores has predicted, oracle, f1; expected predicted and oracle, or f1",
        ),
        (
            ["cells", 0, "scores", "oracle", "protocol"],
            PREDICTED,
            "scores: oracle: protocol is 'predicted",
        ),
        (
            ["cells", 0, "scores", "predicted", "miou"],
            61.5,
            "miou is 61.5; expected a number from 0 to 1",
        ),
        (
            ["cells", 0, "scores", "predicted", "iou"],
            [0.5] * 3,
            r"iou is \[0.5, 0.5, 0.5\]; expected 4 numbers",
        ),
        (["cells", 0, "slides", "S0", "oracle"], None, "slides: S0: oracle is missing"),
        (
            ["cells", 0, "slides", "S0", "oracle"],
            [[1, 2], [3]],
            "S0: oracle is .*; expected 5 x 5 numbers",
        ),
        (
            ["cells", 0, "slides", "S1"],
            None,
            "cam/seed 1: protocols, slides or epochs are not those of the cell's other",
        ),
        (
            ["cells", 0, "curve", "iou"],
            [[0.5] * 4],
            "curve: iou is .*; expected 3 x 4 numbers from 0 to 1",
        ),
        (["cells", 1, "seed"], 0, "cells: 'cam' stands there twice with seed 0"),
    ],
    ids=lambda x: "-".join(map(str, x)) if isinstance(x, list) else None,
)
def test_a_malformed_file_is_named_with_the_key(tmp_path, way, value, words):
    write_json(tmp_path / "mosaic-lean.json", fake_results.changed(MOSAIC, way, value))
    with pytest.raises(ValueError, match=f"^mosaic-lean.json: .*{words}"):
        ledger.read(tmp_path)


def test_cells_with_other_slides_are_refused(tmp_path):
    result = copy.deepcopy(MOSAIC)
    for cell in result["cells"][:3]:
        cell["slides"] = {"S0": cell["slides"]["S0"]}
    write_json(tmp_path / "a.json", result)
    with pytest.raises(ValueError, match=r"a.json: cells: slides differ: S0 \| S0, S1, S2"):
        ledger.read(tmp_path)
