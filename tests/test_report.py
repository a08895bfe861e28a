"""The ledger in words: verdicts against the statistics called by hand, and what is said with every
number."""

import copy
import re

import fake_results
import numpy as np
import pytest

from protolib.study import compare, ledger, paper, report

WORDS = "mosaic, not an official benchmark"
TABLES = paper.TABLES


@pytest.fixture(scope="module")
def mosaic(read):
    return read(fake_results.result(slides=3))


@pytest.fixture(scope="module")
def parts(mosaic):
    return report.sections(mosaic)


def cells(table: str) -> list[list[str]]:
    """The cells of the first Markdown table, head first, without the rule."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [
        [cell.strip() for cell in line[1:-1].split("|")]
        for line in lines
        if not line.startswith("|-")
    ]


def test_findings_are_the_statistics_of_the_two_rows(mosaic):
    first, foreground, *_ = report.findings(TABLES["table2"], mosaic[0])
    assert (first.claim.better, first.claim.than) == ("CLS + FGS + BGS", "CLS")
    full, plain = (
        [c for c in mosaic[0]["cells"] if c["cell"] == name]
        for name in ("pbip_stage1", "pbip_stage1 beta=0.0")
    )
    wanted = compare.paired(
        *([100 * c["scores"]["predicted"]["miou"] for c in of] for of in (full, plain))
    )
    assert first.ours == wanted and first.n_slides == 3
    matrices = [
        np.array([[c["slides"][s]["predicted"] for s in ("S0", "S1", "S2")] for c in of])
        for of in (full, plain)
    ]
    np.testing.assert_allclose(
        first.slides, [100 * end for end in compare.over_slides(*matrices)], rtol=1e-12
    )
    assert first.printed == pytest.approx(67.54 - 62.08) and first.verdict == "supported"
    assert foreground.ours.high > 0 > foreground.slides[1] and foreground.verdict == "not decided"


def test_each_claim_of_a_table_has_its_finding_and_only_those_beside_the_data(mosaic):
    for table in TABLES.values():
        wanted = [c for c in paper.CLAIMS if (c.table, c.dataset) == (table.name, "bcss-wsss")]
        assert [finding.claim for finding in report.findings(table, mosaic[0])] == wanted
    assert {f.verdict for f in report.findings(TABLES["table3"], mosaic[0])} == {"not run"}


def test_counted_ignore_pixels_are_counted_over_slides_too(read, mosaic):
    result = copy.deepcopy(fake_results.result(slides=3))
    for cell in result["cells"]:
        for block in cell["scores"].values():
            block["protocol"] = block["protocol"].replace("dropped", "counted")
    [counted, *_], [dropped, *_] = (
        report.findings(TABLES["table2"], r) for r in (read(result)[0], mosaic[0])
    )
    assert counted.ours == dropped.ours  # the scores in the file
    assert (
        counted.slides[1] < dropped.slides[1]
    )  # 200 ignored pixels a slide now lower both scores and their gap


def test_seeds_in_common_are_compared_and_without_any_it_is_not_run(read):
    result = fake_results.result(seeds=(0, 1, 2, 3))
    result["cells"] = [
        c for c in result["cells"] if c["cell"] != "pbip_stage1 beta=0.0" or c["seed"] in (1, 3)
    ]
    result["cells"] = [
        c for c in result["cells"] if c["cell"] != "pbip_stage1 theta2=0.0" or c["seed"] == 0
    ]
    both, few, *_ = report.findings(TABLES["table2"], read(result)[0])
    assert both.ours.n == 2
    assert (few.verdict, few.ours) == ("not run: no seed in common", None)


def test_f1_is_compared_over_seeds_alone(read):
    result = fake_results.result(slides=3)
    result["tables"] = fake_results.TABLES | {
        "table6": {"image, PLIP": "zero_shot", "image, MedCLIP": "other"}
    }
    others = [
        copy.deepcopy(c) | {"cell": "other", "run_id": f"other {c['seed']}"}
        for c in result["cells"]
        if c["cell"] == "zero_shot"
    ]
    for cell in others:
        cell["scores"]["f1"]["f1"] -= 0.1 + cell["seed"] / 100
    result["cells"] = result["cells"] + others
    found = read(result)
    finding = report.findings(TABLES["table6"], found[0])[-1]
    assert (finding.verdict, finding.slides, finding.n_slides) == ("supported", None, 0)
    assert finding.ours.difference == pytest.approx(0.11, rel=1e-12)
    said = report.sections(found)["table6"]
    assert (
        f"- supported on {WORDS}: images prompt PLIP better than MedCLIP (image, PLIP over image, MedCLIP; the "
        "paper +0.065 on bcss-wsss). Ours +0.110 F1; over 3 seeds +0.085 to +0.135, p = 0.0027, d = 11.0."
    ) in said


def test_a_sentence_holds_everything_it_rests_on(mosaic, parts):
    ours, slides = report.findings(TABLES["table2"], mosaic[0])[0][4:6]
    assert (
        f"- supported on {WORDS}: both matching losses together help (CLS + FGS + BGS over CLS; the paper +5.46 on "
        f"bcss-wsss). Ours {ours.difference:+.2f} mIoU points; over 3 seeds {ours.low:+.2f} to {ours.high:+.2f}, "
        f"p = {ours.p:.2g}, d = {ours.d:.1f}; over 3 slides (WARNING: only 10 different resamples, too narrow) "
        f"{slides[0]:+.2f} to {slides[1]:+.2f}.\n"
    ) in parts["table2"]
    assert (
        f"- not run on {WORDS}: the background loss without the other hurts (CLS over CLS + BGS; the paper +11.85 "
        "on bcss-wsss); classification helps beside the matching losses"
    ) in parts["table2"]


def test_five_slides_are_enough_and_three_seeds_too(read):
    said = report.sections(read(fake_results.result(slides=5)))["table2"]
    assert "over 5 slides +" in said and "WARNING" not in said


@pytest.mark.parametrize(
    "seeds, words",
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
def test_fewer_than_three_seeds_are_warned_of(read, seeds, words):
    assert words in report.sections(read(fake_results.result(seeds=seeds)))["table2"]


def test_the_table_has_ours_beside_the_papers_and_names_the_data(mosaic, parts):
    head, *rows = cells(parts["table2"])
    assert head == [
        f"{WORDS} (paper: bcss-wsss)",
        "mIoU (%)",
        "paper",
        "FwIoU (%)",
        "paper",
        "bIoU (%)",
        "paper",
        "Dice (%)",
        "paper",
        "oracle mIoU (%)",
        "seeds",
        "hours",
        "cell, or why blank",
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
    assert (
        f"{WORDS} (train 390, val 65, test 130), preset lean. Protocol: predicted image labels, ignore pixels "
        "dropped; oracle mIoU: oracle image labels, ignore pixels dropped. The paper: Table 2, bcss-wsss, other "
        "data, so no difference is taken, protocol not stated. Run id: mosaic-lean/CELL/seed N.\n\n|"
    ) in parts["table2"]


def test_a_number_that_is_missing_says_which_seed(read):
    result = copy.deepcopy(fake_results.result())
    cell = next(c for c in result["cells"] if c["run_id"] == "mosaic-lean/pbip_stage1/seed 1")
    cell["scores"]["predicted"]["miou"] = None
    row = cells(report.sections(read(result))["table2"])[-1]
    assert (row[0], row[1], row[-1]) == ("CLS + FGS + BGS", "", "pbip_stage1; no score with seed 1")


def test_published_data_shows_the_difference_and_where_stage_1_lies(read):
    gains = {
        gain: read(fake_results.result("bcss-wsss", True, preset="paper_text", gain=gain))
        for gain in (5, 11.5)
    }
    for gain, (predicted, oracle) in {5: ("below", "above"), 11.5: ("inside", "above")}.items():
        said = report.sections(gains[gain])
        head, *rows = cells(said["table2"])
        assert head[0] == "bcss-wsss" and "not an official" not in said["table2"]
        ours = float(rows[-1][1].split()[0])
        assert rows[-1][head.index("ours - paper")] == f"{ours - 67.54:+.2f}"
        assert (
            f"- bcss-wsss: 66.7 to 69.6. Ours: {ours:.2f}, {predicted} (preset paper_text, predicted image labels, "
            f"3 seeds); {rows[-1][head.index('oracle mIoU (%)')].split()[0]}, {oracle} (preset paper_text, oracle "
            "image labels, 3 seeds)."
        ) in said["window"]


def test_other_data_say_nothing_of_the_window(parts):
    assert (
        "- bcss-wsss: 66.7 to 69.6. Not run.\n- luad-histoseg: 74.5 to 74.9. Not run."
        in parts["window"]
    )


def test_no_number_of_ours_stands_without_the_words(mosaic, parts):
    """Every score of ours, in its printed form, is in a table or a sentence that carries the
    words."""
    for entry in ledger.rows(mosaic):
        if entry["seeds"] and entry["metric"] in ("miou", "f1"):
            blocks = [
                b
                for b in parts[entry["table"]].split("\n\n")
                if f"| {entry['row']} " in b and WORDS in b
            ]
            digits = 3 if entry["metric"] == "f1" else 2
            assert any(f"{entry['ours_mean']:.{digits}f} ±" in block for block in blocks), entry
    for part in parts.values():
        for line in part.splitlines():
            assert (
                not re.match(r"- (supported|contradicted|not decided)", line)
                or f"on {WORDS}: " in line
            )


def test_without_results_the_papers_numbers_stand_and_ours_is_blank():
    parts = report.sections([])
    assert (
        "No results yet: `python -m protolib ablate table2 --dataset phantom` makes the first."
        in parts["head"]
    )
    assert cells(parts["table5"])[1] == ["SIM", "63.25", "66.80", "25.89", "77.98"]
    assert (
        "Not run on gcss. The paper, Table 4, mIoU (%) at K 1: 51.26 ± 0.8, 2: 52.07 ± 0.8, 3: 53.21 ± 1.2, "
        "4: 53.91 ± 1.0, 5: 53.54 ± 0.9."
    ) in parts["table4"]
    assert "at random 0: 65.1, 5: 66.25 [63.4..69.1], 50:" in parts["figure4"]
    assert (
        "Conclusions of the paper on bcss-wsss, not run: the adaptive threshold helps; "
        in parts["table5"]
    )
    assert "ours" not in "".join(parts[name].lower() for name in TABLES)


def test_the_paper_is_shown_once_where_ours_stands_beside_it(parts):
    assert parts["table4"].count("67.03 ± 0.4") == 1
    assert (
        "Not run on bcss-wsss" not in parts["table4"]
        and "Not run on luad-histoseg" in parts["table4"]
    )


def test_what_others_report_and_where_the_paper_disagrees(parts):
    found = cells(parts["others"])
    assert found[5] == [
        "ProBAG's authors",
        "stage 2",
        "bcss-wsss",
        "69.03",
        "78.13, 65.56, 62.11, 70.31",
        "",
    ]
    assert next(row for row in found if row[0] == "MLPS")[3:5] == ["62.55 (69.07)", "73.63 (75.27)"]
    assert next(row for row in found if row[0] == "LPD")[3:6] == ["71.96", "", "oracle"]
    assert parts["itself"].count("\n- ") == len(paper.contradictions()) == 7


def test_text_is_all_parts_in_lines_for_a_terminal(mosaic, parts):
    text = report.text(mosaic)
    assert re.sub(r"\s+", " ", text) == re.sub(r"\s+", " ", "\n".join(parts.values()) + "\n")
    assert [
        line for line in text.splitlines() if len(line) > 120 and not line.startswith(("|", "#"))
    ] == []
    columns = [line for line in parts["table2"].splitlines() if line.startswith("|")]
    assert len({len(line) for line in columns}) == 1  # padded


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
    said = report.sections(read(result))["figure4"]
    assert (
        "(random, 8 images over random, 5 images; the paper +2.40 on bcss-wsss with random, 500 images over random, 5 images)"
        in said
    )
    rows["random, 100 images"] = rows["random, 8 images"]
    assert report.findings(TABLES["figure4"], read(result)[0])[0].rows == (
        "clustering, 100 images",
        "random, 100 images",
    )


def test_the_budget_of_a_preset_stands_in_the_caption(read):
    said = report.sections(read(fake_results.result() | {"size": 64, "epochs": 3}))["table2"]
    assert "preset lean (64 px, 3 epochs). Protocol" in " ".join(said.split())
