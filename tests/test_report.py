"""The ledger in words: verdicts against the statistics called by hand, and what is said with every
number."""

import copy
import re

import fake_results
import numpy as np
import pytest

from protolib import blocks, metrics
from protolib.study import compare, ledger, paper, report

WORDS = "mosaic, not an official benchmark"
TABLES = paper.TABLES


@pytest.fixture(scope="module")
def mosaic(read):
    return read(fake_results.result(slides=3))


@pytest.fixture(scope="module")
def parts(mosaic):
    return report.sections(mosaic)


def words(section: dict) -> str:
    """What a section says, as Markdown with long lines."""
    return blocks.markdown(block for part in section.values() for block in part)


def tables(part: list) -> list[blocks.Table]:
    return [block for block in part if isinstance(block, blocks.Table)]


def without(result: dict, run: str, seeds=None) -> dict:
    """A result file without these seeds of a run; without the run where none are named."""
    kept = [
        made
        for made in result["runs"]
        if made["run"] != run or (seeds is not None and made["seed"] not in seeds)
    ]
    return result | {"runs": kept}


def test_findings_are_the_statistics_of_the_two_rows(mosaic):
    first, foreground, *_ = report.findings(TABLES["table2"], mosaic[0])
    assert (first.claim.better, first.claim.than) == ("CLS + FGS + BGS", "CLS")
    full, plain = (
        fake_results.runs_of(mosaic[0], name) for name in ("pbip_stage1", "pbip_stage1 beta=0.0")
    )
    wanted = compare.paired(
        *([100 * c["scores"]["predicted"]["miou"] for c in of] for of in (full, plain))
    )
    assert first.ours == wanted and first.n_slides == 3
    matrices = [
        np.array([[c["slides"][s]["predicted"]["matrix"] for s in ("S0", "S1", "S2")] for c in of])
        for of in (full, plain)
    ]
    np.testing.assert_allclose(
        first.slides, [100 * end for end in compare.over_slides(*matrices)], rtol=1e-12
    )
    assert first.printed == pytest.approx(67.54 - 62.08) and first.verdict == "supported"
    assert foreground.ours.high > 0 > foreground.slides[1] and foreground.verdict == "not decided"


def test_each_claim_of_a_table_has_its_finding_and_only_those_beside_the_data(mosaic):
    for table in TABLES.values():
        places = ((table.name, "bcss-wsss"), (table.name, ""))  # the paper's, then ours
        wanted = [c for place in places for c in paper.CLAIMS if (c.table, c.dataset) == place]
        assert [finding.claim for finding in report.findings(table, mosaic[0])] == wanted
    assert {f.verdict for f in report.findings(TABLES["table3"], mosaic[0])} == {"not run"}


def test_counted_ignore_pixels_are_counted_over_slides_too(read, mosaic):
    result = copy.deepcopy(fake_results.result(slides=3))
    for made in result["runs"]:
        for how in {"predicted", "oracle"} & set(made["scores"]):
            made["scores"][how]["ignore"] = "counted"
    [counted, *_], [dropped, *_] = (
        report.findings(TABLES["table2"], r) for r in (read(result)[0], mosaic[0])
    )
    assert counted.ours == dropped.ours  # the scores in the file
    assert (
        counted.slides[1] < dropped.slides[1]
    )  # 200 ignored pixels a slide now lower both scores and their gap


def test_seeds_in_common_are_compared_and_without_any_it_is_not_run(read):
    result = fake_results.result(seeds=(0, 1, 2, 3))
    result = without(result, "pbip_stage1 beta=0.0", (0, 2))
    result = without(result, "pbip_stage1 theta2=0.0", (1, 2, 3))
    result = without(result, "pbip_stage1", (0,))
    both, few, *_ = report.findings(TABLES["table2"], read(result)[0])
    assert both.ours.n == 2
    assert (few.verdict, few.ours) == ("not run: no seed in common", None)


def test_f1_is_compared_over_seeds_alone(read):
    result = fake_results.result(slides=3)
    result["tables"] = fake_results.TABLES | {
        "table6": {"image, PLIP": "zero_shot", "image, MedCLIP": "other"}
    }
    others = [
        copy.deepcopy(made) | {"run": "other", "run_id": f"other {made['seed']}"}
        for made in fake_results.runs_of(result, "zero_shot")
    ]
    for made in others:
        made["scores"]["f1"]["f1"] -= 0.1 + made["seed"] / 100
    result["runs"] = result["runs"] + others
    found = read(result)
    finding = report.findings(TABLES["table6"], found[0])[-1]
    assert (finding.verdict, finding.slides, finding.n_slides) == ("supported", None, 0)
    assert finding.ours.difference == pytest.approx(0.11, rel=1e-12)
    section = report.sections(found)["table6"]
    assert (
        f"- supported on {WORDS}: images prompt PLIP better than MedCLIP (image, PLIP over image, "
        "MedCLIP; the paper +0.065 on bcss-wsss). Ours +0.110 F1; over 3 seeds +0.085 to +0.135, "
        "p = 0.0027, d = 11.0."
    ) in words(section)
    assert "Protocol: nearest prototype, main class of each test patch. The" in words(section)


ROWS = "CLS + FGS + BGS", "CLS"


def test_a_sentence_holds_everything_it_rests_on(mosaic, parts):
    ours, slides = report.findings(TABLES["table2"], mosaic[0])[0][4:6]
    oracle = [
        np.array([100 * made["scores"]["oracle"]["miou"] for made in fake_results.runs_of(*of)])
        for of in ((mosaic[0], mosaic[0]["tables"]["table2"][row]) for row in ROWS)
    ]
    gain = oracle[0] - oracle[1]
    half = 4.302653 * gain.std(ddof=1) / 3**0.5  # t at .975 with two degrees of freedom
    said = words(parts["table2"])
    assert (
        f"- supported on {WORDS}: both matching losses together help (CLS + FGS + BGS over CLS; "
        f"the paper +5.46 on bcss-wsss). Ours {ours.difference:+.2f} mIoU points; over 3 seeds "
        f"{ours.low:+.2f} to {ours.high:+.2f}, p = {ours.p:.2g}, d = {ours.d:.1f}; over 3 slides "
        f"(WARNING: only 10 different resamples, too narrow) {slides[0]:+.2f} to {slides[1]:+.2f}; "
        f"image labels given: {gain.mean():+.2f} {gain.mean() - half:+.2f} to "
        f"{gain.mean() + half:+.2f}.\n"
    ) in said
    assert (
        f"- not run on {WORDS}: the background loss without the other hurts (CLS over CLS + BGS; "
        "the paper +11.85 on bcss-wsss); classification helps beside the matching losses"
    ) in said


def test_five_slides_are_enough_and_three_seeds_too(read):
    said = words(report.sections(read(fake_results.result(slides=5)))["table2"])
    assert "over 5 slides +" in said and "WARNING" not in said


@pytest.mark.parametrize(
    "seeds, said",
    [
        ([0], f"- not decided: one seed on {WORDS}: both"),
        ([0], "over 1 seed (WARNING: too few) no"),
        ([0, 1], "over 2 seeds (WARNING: too few) +"),
        ([0], "CLS (1); CLS + FGS (1); CLS + FGS + BGS (1)."),
        (
            [0, 1],
            f"WARNING: fewer than 3 seeds on {WORDS}, which tells little: CLS (2); CLS + FGS (2)",
        ),
    ],
)
def test_fewer_than_three_seeds_are_warned_of(read, seeds, said):
    assert said in words(report.sections(read(fake_results.result(seeds=seeds)))["table2"])


def test_the_table_has_ours_beside_the_papers_and_names_the_data(mosaic, parts):
    [table] = tables(parts["table2"]["runs"])
    head, rows = table.heads, table.rows
    assert head == [
        WORDS,
        "mIoU (%)",
        "paper mIoU",
        "FwIoU (%)",
        "paper FwIoU",
        "bIoU (%)",
        "paper bIoU",
        "Dice (%)",
        "paper Dice",
        "oracle mIoU (%)",
        "seeds",
        "hours",
        "run",
    ]
    entry, oracle = [
        e
        for e in ledger.rows(mosaic)
        if (e["table"], e["row"], e["metric"]) == ("table2", "CLS", "miou")
    ]
    assert rows[0][:3] == [
        "CLS",
        f"{entry['ours_mean']:.2f} ± {entry['ours_std']:.1f}",
        "62.08 ± 0.3",
    ]
    assert rows[0][-4:] == [
        f"{oracle['ours_mean']:.2f} ± {oracle['ours_std']:.1f}",
        "3",
        "0.06",
        "pbip_stage1 beta=0.0",
    ]
    assert rows[2] == [
        "CLS + BGS",
        "",
        "50.23 ± 2.4",
        "",
        "52.11 ± 1.7",
        "",
        "19.20 ± 0.7",
        "",
        "66.87 ± 2.7",
        "",
        "",
        "",
        "not run",
    ]
    assert table.caption == [
        f"{WORDS} (train 390, val 65, test 130), preset lean (64 px, 3 epochs). Protocol: "
        "predicted image labels, ignore pixels dropped; oracle mIoU: oracle image labels, ignore "
        "pixels dropped. The paper: Table 2, bcss-wsss, other data, so no difference is taken, "
        "protocol not stated. Run ids as mosaic-lean/pbip_stage1 beta=0.0/seed 0."
    ]


def test_a_number_that_is_missing_says_which_seed(read):
    result = copy.deepcopy(fake_results.result())
    fake_results.runs_of(result, "pbip_stage1")[1]["scores"]["predicted"]["miou"] = None
    [table] = tables(report.sections(read(result))["table2"]["runs"])
    row = table.rows[-1]
    assert (row[0], row[1], row[-1]) == ("CLS + FGS + BGS", "", "pbip_stage1; no score with seed 1")


def test_published_data_shows_the_difference_and_where_stage_1_lies(read):
    gains = {
        gain: read(fake_results.result("bcss-wsss", True, preset="paper_text", gain=gain))
        for gain in (5, 11.5)
    }
    for gain, (predicted, oracle) in {5: ("below", "above"), 11.5: ("inside", "above")}.items():
        said = report.sections(gains[gain])
        [table] = tables(said["table2"]["runs"])
        head, rows = table.heads, table.rows
        assert head[0] == "bcss-wsss" and "not an official" not in words(said["table2"])
        ours = float(rows[-1][1].split()[0])
        assert rows[-1][head.index("ours - paper")] == f"{ours - 67.54:+.2f}"
        under_oracle = rows[-1][head.index("oracle mIoU (%)")].split()[0]
        assert (
            f"- bcss-wsss: 66.7 to 69.6. Ours: {ours:.2f}, {predicted} (preset paper_text, "
            f"predicted image labels, 3 seeds); {under_oracle}, {oracle} (preset paper_text, "
            "oracle image labels, 3 seeds)."
        ) in words(said["window"])


def test_other_data_say_nothing_of_the_window(parts):
    assert "- bcss-wsss: 66.7 to 69.6. Not run.\n- luad-histoseg: 74.5 to 74.9. Not run." in words(
        parts["window"]
    )


def test_no_number_of_ours_stands_without_the_words(mosaic, parts):
    """Every score of ours, in its printed form, is in a table or a sentence that carries the
    words."""
    for entry in ledger.rows(mosaic):
        if entry["seeds"] and entry["metric"] in ("miou", "f1"):
            digits = 3 if entry["metric"] == "f1" else 2
            mean = f"{entry['ours_mean']:.{digits}f} ±"
            [table] = tables(parts[entry["table"]]["runs"])
            assert table.heads[0] == WORDS
            [row] = [row for row in table.rows if row[0] == entry["row"]]
            assert any(text.startswith(mean) for text in row), entry
    for section in parts.values():
        for line in words(section).splitlines():
            judged = re.match(r"- (supported|contradicted|not decided)", line)
            assert not judged or f"on {WORDS}: " in line


def test_without_results_the_papers_numbers_stand_and_ours_is_blank():
    parts = report.sections([])
    said = {name: words(section) for name, section in parts.items()}
    first = "No results yet: `python -m protolib ablate table2 --dataset phantom` makes the first."
    assert first in said["head"]
    [table] = tables(parts["table5"]["paper"])
    assert table.rows[0] == ["SIM", "63.25", "66.80", "25.89", "77.98"]
    assert (
        "Not run on gcss. The paper, Table 4, mIoU (%) at K 1: 51.26 ± 0.8, 2: 52.07 ± 0.8, "
        "3: 53.21 ± 1.2, 4: 53.91 ± 1.0, 5: 53.54 ± 0.9."
    ) in said["table4"]
    assert "at random 0: 65.1, 5: 66.25 [63.4..69.1], 50:" in said["figure4"]
    claims = "Conclusions of the paper on bcss-wsss, not run: the adaptive threshold helps; "
    assert claims in said["table5"]
    others = [said[name].lower() for name, table in TABLES.items() if table.source != "ours"]
    assert "ours" not in "".join(others)
    assert said["ours"] == "## Ours: What makes masked pooling work (stage 1)\n\nNot run.\n"


def test_the_paper_is_shown_once_where_ours_stands_beside_it(parts):
    said = words(parts["table4"])
    assert said.count("67.03 ± 0.4") == 1
    assert "Not run on bcss-wsss" not in said and "Not run on luad-histoseg" in said


def test_what_others_report_and_where_the_paper_disagrees(parts):
    reruns, peers = tables(parts["others"]["text"])
    assert reruns.rows[4] == [
        "ProBAG's authors",
        "stage 2",
        "bcss-wsss",
        "69.03",
        "78.13, 65.56, 62.11, 70.31",
        "",
    ]
    of = {row[0]: row for row in peers.rows}
    assert of["MLPS"][3:5] == ["62.55 (69.07)", "73.63 (75.27)"]
    assert of["LPD"][3:6] == ["71.96", "", "oracle"]
    [itself] = parts["itself"]["text"]
    assert len(itself.texts) == len(paper.contradictions()) == 7


def test_text_is_all_parts_in_lines_for_a_terminal(mosaic, parts):
    text = report.text(mosaic)
    every = [block for section in parts.values() for part in section.values() for block in part]
    assert text == blocks.markdown(every, width=100)
    prose = [block for block in every if not isinstance(block, blocks.Table)]
    assert " ".join(blocks.markdown(prose, width=100).split()) == " ".join(
        blocks.markdown(prose).split()
    )
    assert [line for line in text.splitlines() if len(line) > 100 and line[0] != "#"] == []


def test_the_class_and_data_names_of_a_user_break_no_table(read):
    odd = "a|b <i>"
    result = fake_results.result(label=odd, preset="x")
    folder = read(result | {"label": "plain"})
    folder[0]["label"] = odd
    text = report.text(folder)
    assert "| a\\|b \\<i>, not an official benchmark |" in text
    shapes = {line.count(" | ") for line in text.splitlines() if line.startswith("| CLS")}
    assert shapes == {4}  # all parts of the table have five columns


def test_smaller_banks_stand_in_for_those_of_figure_4_where_the_data_has_no_more(read, mosaic):
    clustering, more = report.findings(TABLES["figure4"], mosaic[0])
    assert (clustering.claim.better, clustering.claim.than) == (
        "clustering, 100 images",
        "random, 100 images",
    )
    assert (
        clustering.rows == ("clustering, 8 images", "random, 8 images")
        and clustering.verdict == "supported"
    )  # 70 and 64
    assert (
        more.rows == (more.claim.better, more.claim.than) and more.verdict == "not run"
    )  # nothing at 5 images
    result = copy.deepcopy(fake_results.result(slides=3))
    rows = result["tables"]["figure4"]
    rows["random, 5 images"] = rows.pop("random, 1 images")
    more = report.findings(TABLES["figure4"], read(result)[0])[1]
    assert more.rows == ("random, 8 images", "random, 5 images") and more.ours.difference > 0
    assert (
        "(random, 8 images over random, 5 images; the paper +2.40 on bcss-wsss with random, 500 "
        "images over random, 5 images)"
    ) in words(report.sections(read(result))["figure4"])
    rows["random, 100 images"] = rows["random, 8 images"]
    assert report.findings(TABLES["figure4"], read(result)[0])[0].rows == (
        "clustering, 100 images",
        "random, 100 images",
    )


def test_numbers_of_older_code_say_so(read):
    [table] = tables(
        report.sections(read(fake_results.result() | {"made_by": "e6b49dd"}))["table2"]["runs"]
    )
    assert ". Made by commit e6b49dd. Run ids" in table.caption[0]


def test_reasons_stand_below_the_table_the_rows_of_one_together(parts):
    assert parts["table3"]["runs"] == [
        blocks.Paragraph(f"Not run on {WORDS}, preset lean, and why:"),
        blocks.Items(["CLIP, SegFormer: no weights of clip"]),
    ]


def test_folds_are_counted_and_their_slides_pooled(read):
    result = fake_results.result(folds=("a", "b", "c"), slides=2)
    result["patches"]["c"] = {"train": 400, "val": 65, "test": 120}
    [found] = read(result)
    first = report.findings(TABLES["table2"], found)[0]
    rows = [ledger.seeds_of(found, "table2", row) for row in first.rows]
    full, plain = (
        np.array([[of["predicted"] for of in seed.slides.values()] for seed in seeds])
        for seeds in rows
    )
    assert full.shape == (3, 6, 5, 5) and first.n_slides == 6
    low, high = compare.over_slides(full, plain)
    np.testing.assert_allclose(first.slides, (100 * low, 100 * high), rtol=1e-12)
    pooled = [[metrics.scores(seed.sum(0))["miou"] for seed in of] for of in (full, plain)]
    gap = 100 * np.mean(np.subtract(*pooled))
    assert first.ours.difference == pytest.approx(gap, rel=1e-12)
    said = words(report.sections([found])["table2"])
    assert "(3 folds: train 390 to 400, val 65, test 120 to 130)" in said
    assert f"; over 6 slides in 3 folds {100 * low:+.2f} to" in said
    assert "the mean over folds" not in said
    assert "F1: the mean over folds, for no counts are kept." in words(
        report.sections([found])["table6"]
    )


def test_seeds_with_slides_of_their_own_have_an_interval_over_seeds_alone(read, mosaic):
    renamed, redrawn = (copy.deepcopy(fake_results.result(slides=3)) for _ in range(2))
    for made in renamed["runs"]:
        made["slides"] = {f"{made['seed']} {s}": of for s, of in made["slides"].items()}
    for made in redrawn["runs"]:  # the same names on other tissue
        for slide in made["slides"].values():
            for of in slide.values():
                of["matrix"][0][0] += made["seed"]
    wanted = report.findings(TABLES["table2"], mosaic[0])[0]
    for result in (renamed, redrawn):
        [found] = read(result)
        first = report.findings(TABLES["table2"], found)[0]
        assert (first.ours, first.slides, first.n_slides) == (wanted.ours, None, 0)
        assert first.verdict == compare.verdict(wanted.ours) == "supported"
        said = words(report.sections([found])["table2"])
        assert "; no interval over slides, for each seed has test slides of its own; image" in said


def test_rows_on_different_masks_have_no_interval_over_slides(read):
    result = copy.deepcopy(fake_results.result(slides=3))
    for made in fake_results.runs_of(result, "pbip_stage1"):
        made["slides"]["S0"]["predicted"]["matrix"][0][0] += 1
    first = report.findings(TABLES["table2"], read(result)[0])[0]
    assert (first.slides, first.why) == (None, "the rows were scored on different masks")
    for made in result["runs"]:
        made["slides"] = {}
    first = report.findings(TABLES["table2"], read(result)[0])[0]
    assert (first.slides, first.why) == (None, "no slides were kept")


def test_claims_of_ours_stand_apart_and_have_no_number_of_the_paper(read):
    result = fake_results.result(slides=5)
    own = {"full": "pbip_stage1", "no matching loss": "pbip_stage1 beta=0.0"}
    result["tables"] = fake_results.TABLES | {"ours": own}
    [found] = read(result)
    *_, first, last, _ = report.findings(TABLES["ours"], found)
    assert (first.claim.than, first.verdict) == ("dense", "not run")
    theirs = report.findings(TABLES["table2"], found)[0]
    assert (last.ours, last.slides, last.verdict) == (theirs.ours, theirs.slides, "supported")
    assert last.printed is None
    section = report.sections([found])["ours"]
    [table] = tables(section["runs"])
    assert table.heads == [
        WORDS,
        "mIoU (%)",
        "FwIoU (%)",
        "bIoU (%)",
        "Dice (%)",
        "oracle mIoU (%)",
        "seeds",
        "hours",
        "run",
    ]
    assert [row[0] for row in table.rows] == list(own)
    assert "The paper has no such table. Run ids" in table.caption[0]
    title, items = section["conclusions"]
    assert title.text == "Ours, beside the paper:"
    assert items.texts[0].startswith(
        f"supported on {WORDS}: the matching loss helps (full over no matching loss). Ours +"
    )
    assert items.texts[1].startswith(f"not run on {WORDS}: pooling under the map beats masking")
