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
    "folds",
    "paper",
    "image_labels",
    "ignore",
    "preset",
    "run_ids",
    "paper_std",
    "paper_dataset",
    "difference",
    "reruns",
    "hours",
    "made_by",
    "note",
]
MOSAIC = fake_results.result()
OFFICIAL = fake_results.result("bcss-wsss", True, preset="paper_text", seeds=(0, 1))
FOLDS = fake_results.result(folds=("a", "b", "c"), slides=2)


@pytest.fixture(scope="module")
def both(read):
    return read(MOSAIC, OFFICIAL)


def find(rows, **wanted) -> list[dict]:
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def raw(result: dict, run: str, how: str, metric: str) -> list[float]:
    """The scores of a run as the file has them, in percent."""
    return [100 * made["scores"][how][metric] for made in fake_results.runs_of(result, run)]


def test_files_are_read_whole_and_published_data_comes_first(both, tmp_path):
    assert [(r["label"], len(r["runs"])) for r in both] == [("bcss-wsss", 22), ("mosaic", 33)]
    run, wanted = both[1]["runs"][4], MOSAIC["runs"][4]
    assert run["run_id"] == wanted["run_id"] == "mosaic-lean/pbip_stage1/seed 1"
    for counts in ("matrix", "boundary"):
        found = run["slides"]["S3"]["oracle"][counts]
        np.testing.assert_array_equal(found, wanted["slides"]["S3"]["oracle"][counts])
    np.testing.assert_array_equal(run["curve"]["iou"][2], [0.5, 0.25, math.nan, 0.2 + 0.01])
    scores, file = run["scores"]["predicted"], wanted["scores"]["predicted"]
    np.testing.assert_array_equal(scores["iou"], file["iou"])
    assert both[1]["runs"][-1]["scores"]["f1"]["f1_NEC"] == 0.8 + 0.02
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
        "folds": 1,
        "paper": 76.6,
        "image_labels": "predicted",
        "ignore": "dropped",
        "preset": "lean",
        "run_ids": [f"mosaic-lean/pbip_stage1 beta=0.0/seed {seed}" for seed in (0, 1, 2)],
        "paper_std": 0.3,
        "paper_dataset": "bcss-wsss",
        "difference": None,
        "reruns": {},
        "hours": pytest.approx(0.06),
        "made_by": None,
        "note": "",
    }
    oracle = raw(MOSAIC, "pbip_stage1 beta=0.0", "oracle", "dice")
    assert second["image_labels"] == "oracle"
    assert second["ours_mean"] == pytest.approx(statistics.mean(oracle), rel=1e-12)


def test_a_difference_is_taken_on_the_same_data_only(both):
    rows = ledger.rows(both)
    assert {row["dataset"] for row in rows if row["difference"] is not None} == {"bcss-wsss"}
    [row] = find(
        rows,
        table="table2",
        row="CLS + FGS + BGS",
        metric="miou",
        preset="paper_text",
        image_labels="predicted",
    )
    mean = statistics.mean(raw(OFFICIAL, "pbip_stage1", "predicted", "miou"))
    assert row["difference"] == pytest.approx(mean - 67.54, abs=1e-11)
    assert row["reruns"] == {"SSHR's authors": 66.74}  # stage 1
    [row] = find(rows, table="table1", row="PBIP", metric="miou", paper_dataset="bcss-wsss")
    assert row["reruns"] == {"SSHR's authors": 69.16, "ProBAG's authors": 69.03}  # stage 2
    place = {"table": "table1", "row": "PBIP, stage 1", "metric": "miou"}
    [row] = find(rows, **place, preset="lean", image_labels="predicted")
    assert (row["paper"], row["paper_dataset"], row["reruns"]) == (
        None,
        None,
        {"SSHR's authors": 66.74},
    )


def test_one_seed_has_no_std(read):
    rows = find(ledger.rows(read(fake_results.result(seeds=[4]))), table="table4", row="K = 2")
    found = [(row["seeds"], row["ours_std"], row["image_labels"]) for row in rows if row["preset"]]
    assert found == [(1, None, "predicted"), (1, None, "oracle")]


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
    result["runs"][4]["scores"]["predicted"]["biou"] = None  # PBIP, seed 1
    rows = ledger.rows(read(result))
    place = {"table": "table2", "row": "CLS + FGS + BGS", "metric": "biou"}
    [row] = find(rows, **place, image_labels="predicted")
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
    published = {"dataset": "bcss-wsss", "official": True}
    ours = paper.TABLES["ours"]
    assert [ledger.beside(ours, published), ledger.same(ours, published)] == ["", False]


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
    old = [result | {"made_by": "e6b49dd"} for result in both]
    assert ledger.band(old, "pbip_stage1", "mosaic", "lean") is None
    assert ledger.band(both, "pbip_stage1", "mosaic", "quick") is None


def test_the_files_of_these_tests_hold_scores_that_follow_from_their_slides():
    run = MOSAIC["runs"][0]
    slides = [slide["predicted"] for slide in run["slides"].values()]
    matrix, boundary = (sum(np.array(of[key]) for of in slides) for key in ("matrix", "boundary"))
    wanted = metrics.Counts(matrix, boundary).scores()
    for metric in metrics.SCORES:
        assert run["scores"]["predicted"][metric] == pytest.approx(wanted[metric], rel=1e-12)


def test_a_seed_of_several_folds_is_scored_on_the_pooled_pixels(read):
    [result] = read(FOLDS)
    [_, second, _] = ledger.seeds_of(result, "table2", "CLS")
    of_folds = fake_results.runs_of(FOLDS, "pbip_stage1 beta=0.0")[3:6]
    assert [(made["seed"], made["fold"]) for made in of_folds] == [(1, "a"), (1, "b"), (1, "c")]
    matrix, boundary = np.zeros((5, 5)), np.zeros((2, 4))
    for made in of_folds:
        for slide in made["slides"].values():
            matrix += slide["oracle"]["matrix"]
            boundary += slide["oracle"]["boundary"]
    hits, truth, found = np.diag(matrix)[:4], matrix[:4].sum(1), matrix[:4].sum(0)[:4]
    iou = hits / (truth + found - hits)  # ignore pixels are dropped
    block = second.scores["oracle"]
    np.testing.assert_allclose(block["iou"], iou, rtol=1e-12)
    wanted = {
        "miou": iou.mean(),
        "fwiou": (truth * iou).sum() / truth.sum(),
        "dice": (2 * hits / (truth + found)).mean(),
        "biou": (boundary[0] / boundary[1]).mean(),
    }
    assert {metric: block[metric] for metric in wanted} == pytest.approx(wanted, rel=1e-12)
    mean = statistics.mean(made["scores"]["oracle"]["miou"] for made in of_folds)
    assert abs(block["miou"] - mean) > 1e-6  # which is not the mean over folds
    assert (block["image_labels"], block["ignore"], second.averaged) == ("oracle", "dropped", ())
    assert list(second.slides) == ["aS0", "aS1", "bS0", "bS1", "cS0", "cS1"]
    assert second.seconds == 3 * 72 and len(second.run_ids) == 3
    [row, _] = find(ledger.rows([result]), table="table2", row="CLS", metric="dice", seeds=3)
    assert (row["folds"], len(row["run_ids"]), row["hours"]) == (3, 9, pytest.approx(0.18))


def test_without_counts_of_bands_biou_is_the_mean_over_folds_and_says_so(read):
    result = copy.deepcopy(FOLDS)
    for made in fake_results.runs_of(result, "cam"):
        for slide in made["slides"].values():
            for of in slide.values():
                del of["boundary"]
    found = read(result)
    [first, *_] = ledger.seeds_of(found[0], "table1", "CAM")
    of_folds = [m["scores"]["predicted"]["biou"] for m in fake_results.runs_of(result, "cam")[:3]]
    assert first.averaged == ("biou",)
    assert first.scores["predicted"]["biou"] == pytest.approx(statistics.mean(of_folds), rel=1e-12)
    rows = find(ledger.rows(found), table="table1", row="CAM", image_labels="predicted")
    notes = {row["metric"]: row["note"] for row in rows}
    assert notes == {"miou": "", "fwiou": "", "biou": "mean over folds", "dice": ""}
    rows = find(ledger.rows(found), table="table6", row="image, lite0", metric="f1")
    assert [row["note"] for row in rows] == ["mean over folds"]


def test_a_seed_counts_only_if_all_its_folds_were_run(read):
    result = copy.deepcopy(FOLDS)
    result["runs"] = [
        made
        for made in result["runs"]
        if (made["run"], made["seed"], made["fold"])
        not in (("cam", 1, "b"), ("cam", 1, "c"), ("pbip_stage1 K=1", 0, "a"))
        and (made["run"] != "pbip_stage1 K=2" or made["fold"] != "c")
    ]
    [found] = read(result)
    assert [seed.seed for seed in ledger.seeds_of(found, "table1", "CAM")] == [0, 2]
    assert ledger.why_not(found, "table1", "CAM") == "seed 1 lacks fold b, c"
    [row, _] = find(ledger.rows([found]), table="table1", row="CAM", metric="miou")
    assert (row["seeds"], row["note"]) == (2, "seed 1 lacks fold b, c")
    assert ledger.seeds_of(found, "table4", "K = 2") == []
    [row] = find(ledger.rows([found]), table="table4", row="K = 2", paper_dataset="bcss-wsss")
    lacking = "; ".join(f"seed {seed} lacks fold c" for seed in (0, 1, 2))
    assert (row["seeds"], row["note"]) == (0, f"not run: {lacking}")


def test_other_slides_in_another_seed_are_read(read):
    result = copy.deepcopy(MOSAIC)
    for made in result["runs"]:
        if made["seed"] == 1 and made["slides"]:
            made["slides"] = {f"other {slide}": of for slide, of in made["slides"].items()}
    [found] = read(result)
    assert [list(s.slides)[0] for s in ledger.seeds_of(found, "table1", "CAM")] == [
        "S0",
        "other S0",
        "S0",
    ]


@pytest.mark.parametrize(
    "key, value",
    [("base", "another"), ("code", "d"), ("settings", {"beta": 2.0}), ("method", "prototypes")],
)
def test_a_mean_never_mixes_what_was_made_in_different_ways(tmp_path, key, value):
    """Three seeds at .30, then seed 0 under another preset value at .90 in the same file: it was
    printed as 50.0 ± 34.6 over 3 seeds."""
    result = copy.deepcopy(MOSAIC)
    for made in fake_results.runs_of(result, "cam"):
        made["scores"]["predicted"]["miou"] = 0.3
    again = fake_results.runs_of(result, "cam")[0]
    again["scores"]["predicted"]["miou"] = 0.9
    again[key] = value
    write_json(tmp_path / "a.json", result)
    message = (
        "^a.json: 'cam' was made in 2 ways, by seed 0 | 1, 2, which differ in KEY: a mean must not "
        "mix them. Delete the lines of the older ones; mend the file, or delete it and make it "
        "again: python -m protolib ablate$"
    )
    with pytest.raises(ValueError, match=message.replace("|", r"\|").replace("KEY", key)):
        ledger.read(tmp_path)


@pytest.mark.parametrize(
    "way, value, words",
    [
        (["label"], None, ": missing label; unknown nothing; expected label, official"),
        (["official"], "yes", ": official is 'yes'; expected true or false"),
        (["folds"], [], r": folds is \[\]; expected names, each once"),
        (["folds"], ["a"], ", patches: missing a; unknown "),
        (["tables", "table9"], {}, ", tables: missing nothing; unknown table9; expected table1, "),
        (["tables", "table2", "CLS"], 3, ", table2: CLS is 3; expected a text"),
        (["runs"], [{}], ", runs: missing run_id"),
        (["runs", 0], "cam", ", runs: found 'cam'; expected keys run_id"),
        (["runs", 0, "seed"], True, "seed 0: seed is True; expected a whole number"),
        (["runs", 0, "seconds"], None, "seed 0: missing seconds"),
        (["runs", 0, "base"], None, "seed 0: missing base"),
        (["runs", 0, "fold"], "b", r"seed 0: fold is 'b'; expected one of \[''\]"),
        (
            ["runs", 0, "scores", "f1"],
            {},
            "scores has predicted, oracle, f1; expected predicted and oracle, or f1",
        ),
        (
            ["runs", 0, "scores", "oracle", "image_labels"],
            "predicted",
            "scores, oracle: image_labels is 'predicted'; expected oracle under oracle",
        ),
        (
            ["runs", 0, "scores", "predicted", "image_labels"],
            "oracle",
            "scores, predicted: image_labels is 'oracle'; expected oracle under oracle",
        ),
        (
            ["runs", 0, "scores", "predicted", "ignore"],
            "kept",
            "scores, predicted: ignore = 'kept' is unknown; expected one of dropped, counted",
        ),
        (
            ["runs", 0, "scores", "predicted", "miou"],
            61.5,
            "predicted: miou is 61.5; expected a number from 0 to 1",
        ),
        (
            ["runs", 0, "scores", "predicted", "iou"],
            [0.5] * 3,
            r"iou is \[0.5, 0.5, 0.5\]; expected 4 numbers",
        ),
        (["runs", 0, "slides", "S0", "oracle"], None, "slides, S0: missing oracle"),
        (["runs", 0, "slides", "S0", "oracle", "matrix"], None, "S0, oracle: missing matrix"),
        (
            ["runs", 0, "slides", "S0", "oracle", "matrix"],
            [[1, 2], [3]],
            "S0, oracle: matrix is .*; expected 5 x 5 numbers",
        ),
        (
            ["runs", 0, "slides", "S0", "oracle", "boundary"],
            [1, 2],
            "S0, oracle: boundary is .*; expected 2 x 4 numbers",
        ),
        (
            ["runs", 1, "scores", "predicted", "ignore"],
            "counted",
            "cam/seed 1: protocols or epochs are not those of the run's others",
        ),
        (
            ["runs", 0, "curve", "iou"],
            [[0.5] * 4],
            "curve: iou is .*; expected 3 x 4 numbers from 0 to 1",
        ),
        (["runs", 1, "seed"], 0, ": 'cam' is there twice with seed 0"),
        (
            ["runs", 5, "slides", "S1"],
            None,
            "pbip_stage1/seed 2: not all runs of seed 2 have slides S1",
        ),
    ],
    ids=lambda x: "-".join(map(str, x)) if isinstance(x, list) else None,
)
def test_a_malformed_file_is_named_with_the_key(tmp_path, way, value, words):
    write_json(tmp_path / "mosaic-lean.json", fake_results.changed(MOSAIC, way, value))
    with pytest.raises(ValueError, match=f"^mosaic-lean.json.*{words}"):
        ledger.read(tmp_path)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"slides": {}}, "fold b: slides is missing; several folds are pooled by slide"),
        ({"fold": "a"}, "'cam' is there twice with seed 0, fold a"),
    ],
)
def test_folds_that_cannot_be_pooled_are_refused(tmp_path, change, words):
    result = copy.deepcopy(FOLDS)
    result["runs"][1] |= change  # cam, seed 0, fold b
    write_json(tmp_path / "a.json", result)
    with pytest.raises(ValueError, match=words):
        ledger.read(tmp_path)


def test_a_slide_in_two_folds_would_count_twice(tmp_path):
    result = copy.deepcopy(FOLDS)
    for made in result["runs"]:
        if made["fold"] == "b" and made["slides"]:
            made["slides"]["aS1"] = made["slides"].pop("bS1")
    write_json(tmp_path / "a.json", result)
    words = "a.json: aS1 is scored in fold a and in fold b of seed 0; pooled, it would count twice"
    with pytest.raises(ValueError, match=words):
        ledger.read(tmp_path)
