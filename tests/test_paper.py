"""The paper's numbers: complete, as printed, and what they say together."""

import re
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from protolib.metrics import SCORES
from protolib.study import paper

HEAD = {"title": "A", "unit": "%", "stage": "stage 1", "source": "me", "metrics": ["miou", "dice"]}


def of(table, metric="miou"):
    return {
        (v.dataset, v.row): v.mean for v in paper.VALUES if (v.table, v.metric) == (table, metric)
    }


def test_every_table_has_all_its_rows():
    assert {name: len(table.rows) for name, table in paper.TABLES.items()} == {
        "table1": 12,
        "table2": 5,
        "table3": 20,
        "table4": 5,
        "table5": 3,
        "table6": 6,
        "figure3": 20,
        "figure4": 8,
        "ours": 0,
        "schedule": 0,
        "followups": 4,
        "stain": 0,
        "when": 0,
    }
    # 40 rows, 4 of them without FwIoU and bIoU; 20 pairs, 2 of them not run; 5 K on 4 data sets; 6
    # prompts, 5 scores
    assert Counter(v.table for v in paper.VALUES) == {
        "table1": 40 * 4 - 4 * 2,
        "table2": 5 * 4,
        "table3": 18 * 4,
        "table4": 5 * 4,
        "table5": 3 * 4,
        "table6": 6 * 5,
        "figure3": 20,
        "figure4": 8,
        "followups": 5,
    }
    assert Counter(dataset for dataset, _ in of("table1")) == {
        "bcss-wsss": 9,
        "luad-histoseg": 9,
        "gcss": 11,
        "bcss": 11,
    }
    assert {dataset for dataset, _ in of("table4")} == set(paper.DATASETS)
    assert len(paper.VALUES) == len({v[:4] for v in paper.VALUES})


def test_names_of_rows():
    ratios = (0, 0.01, 0.05, 0.1, 0.5, 1, 2, 10, 20, 100)
    assert {
        name: list(table.rows)
        for name, table in paper.TABLES.items()
        if name not in ("table1", "table2", "ours", "schedule", "followups", "stain", "when")
    } == {
        "table3": [
            f"{encoder}, {backbone}"
            for encoder in ("CLIP", "MedCLIP", "PLIP", "DINOv2")
            for backbone in ("SegFormer", "ResNet18", "ResNet38", "ResNet50", "TransUNet")
        ],
        "table4": [f"K = {k}" for k in range(1, 6)],
        "table5": ["SIM", "AT", "SIM + AT"],
        "table6": [
            f"{prompt}, {model}"
            for prompt in ("text", "image")
            for model in ("CLIP", "PLIP", "MedCLIP")
        ],
        "figure3": [
            f"{weights} = {ratio}"
            for weights in ("beta/alpha", "theta2/theta1")
            for ratio in ratios
        ],
        "figure4": [
            *(f"random, {n} images" for n in (0, 5, 50, 100, 200, 500, 1000)),
            "clustering, 100 images",
        ],
    }
    assert paper.TABLES["table1"].rows == (
        "HistoSegNet",
        "TransWS",
        "OEEM",
        "MLPS",
        "TPRO",
        "CLIMS",
        "QA-CLIMS",
        "Proto2Seg",
        "PBIP",
        "SSPCL",
        "SAM-Path",
        "SAM2-Path",
    )


def test_rows_of_ours_have_no_value_and_no_double():
    ours = {name: table.ours for name, table in paper.TABLES.items() if table.ours}
    assert ours == {
        "table1": (
            "CAM",
            "Nearest prototype, nothing trained",
            "Prototypes, no matching loss",
            "PBIP, masked images",
            "PBIP, stage 1",
            "Full supervision",
        ),
        "ours": (
            "full",
            "without masked pooling",
            "without WCCN",
            "negatives of all classes",
            "dense",
            "no matching loss",
            "CAM on the pyramid",
        ),
        "schedule": tuple(
            f"{loss}{time}"
            for loss in ("masked images", "no matching loss", "masked pooling")
            for time in ("", ", 8 epochs", ", 16 epochs")
        ),
        "followups": (
            "full",
            "full, diffusion",
            "learned prototypes",
            "1x1 convolutions, four levels",
            "images, PLIP",
            "text and images, PLIP",
        ),
        "stain": ("stains as they are", "stains jittered"),
    }
    assert not {(v.table, v.row) for v in paper.VALUES} & {
        (name, row) for name, rows in ours.items() for row in rows
    }
    assert paper.TABLES["ours"][:7] == (
        "ours",
        "What makes masked pooling work",
        "%",
        "stage 1",
        "ours",
        False,
        ("miou", "fwiou", "biou", "dice"),
    )


def test_claims_of_ours_are_asked_of_any_data():
    ours = [claim for claim in paper.CLAIMS if claim.ours]
    assert {(claim.dataset, claim.metric) for claim in ours} == {("", "miou")}
    full, *others, nothing_new = paper.TABLES["ours"].ours
    asked = [(c.better, c.than) for c in ours if c.table == "ours"]
    assert asked == [*((full, other) for other in others), (others[-1], nothing_new)]
    assert [(c.better, c.than) for c in ours if c.table == "table1"] == [
        ("PBIP, stage 1", "Nearest prototype, nothing trained"),
        ("PBIP, stage 1", "Prototypes, no matching loss"),
        ("PBIP, stage 1", "PBIP, masked images"),
        ("PBIP", "PBIP, stage 1"),
    ]


def test_what_a_table_is_about():
    assert paper.TABLES["table2"] == (
        "table2",
        "Losses",
        "%",
        "stage 1",
        "Table 2",
        False,
        ("miou", "fwiou", "biou", "dice"),
        ("CLS", "CLS + FGS", "CLS + BGS", "FGS + BGS", "CLS + FGS + BGS"),
        (),
    )
    assert [name for name, table in paper.TABLES.items() if table.read_off] == [
        "figure3",
        "figure4",
    ]
    assert {
        name: table.stage for name, table in paper.TABLES.items() if table.stage != "stage 1"
    } == {"table1": "stage 2", "table6": "zero-shot"}
    ours = [name for name, table in paper.TABLES.items() if table.source == "ours"]
    assert ours == ["ours", "schedule", "stain", "when"]
    assert paper.TABLES["followups"].source == "their own papers"
    of_paper = {n: t for n, t in paper.TABLES.items() if n not in (*ours, "followups")}
    assert list(of_paper) == list(paper.TABLES)[:-5]
    for name, table in of_paper.items():
        assert (
            table.name == name
            and table.title
            and table.source.replace(" ", "").lower().startswith(name)
        )
        assert table.unit == ("F1" if name == "table6" else "%")
        assert list(table.metrics) == (
            ["f1_TUM", "f1_STR", "f1_LYM", "f1_NEC", "f1"]
            if table.unit == "F1"
            else ["miou"]
            if name in ("table4", "figure3", "figure4")
            else list(SCORES)
        )
        assert {(v.row, v.metric) for v in paper.VALUES if v.table == name} <= {
            (row, metric) for row in table.rows for metric in table.metrics
        }


@pytest.mark.parametrize(
    "place, printed",
    [
        (("table1", "HistoSegNet", "bcss-wsss", "miou"), (32.19, 5.8, None, None, "")),
        (("table1", "TransWS", "luad-histoseg", "dice"), (72.02, None, None, None, "")),
        (("table1", "QA-CLIMS", "luad-histoseg", "dice"), (36.03, 10.0, None, None, "")),
        (
            ("table1", "SAM-Path", "gcss", "biou"),
            (58.78, None, None, None, "typo?; full supervision"),
        ),
        (("table1", "SSPCL", "bcss", "miou"), (62.47, None, None, None, "semi-supervised")),
        (("table1", "PBIP", "bcss", "biou"), (23.65, 0.3, None, None, "")),
        (("table1", "PBIP", "gcss", "fwiou"), (57.05, 1.2, None, None, "")),
        (("table2", "CLS + BGS", "bcss-wsss", "dice"), (66.87, 2.7, None, None, "")),
        (("table2", "FGS + BGS", "bcss-wsss", "biou"), (25.68, 0.7, None, None, "")),
        (("table3", "CLIP, TransUNet", "bcss-wsss", "biou"), (17.81, None, None, None, "")),
        (("table3", "DINOv2, ResNet38", "bcss-wsss", "fwiou"), (70.47, None, None, None, "")),
        (("table4", "K = 4", "luad-histoseg", "miou"), (73.72, 1.2, None, None, "")),
        (("table4", "K = 5", "bcss", "miou"), (53.50, 0.9, None, None, "")),
        (("table5", "AT", "bcss-wsss", "fwiou"), (73.01, None, None, None, "")),
        (("table6", "text, PLIP", "bcss-wsss", "f1_STR"), (0.008, None, None, None, "")),
        (("table6", "image, MedCLIP", "bcss-wsss", "f1"), (0.809, None, None, None, "")),
        (("figure3", "beta/alpha = 0.05", "bcss-wsss", "miou"), (66.2, None, None, None, "")),
        (("figure3", "theta2/theta1 = 20", "bcss-wsss", "miou"), (63.2, None, None, None, "")),
        (("figure4", "random, 500 images", "bcss-wsss", "miou"), (68.65, None, 67.15, 69.4, "")),
        (
            ("figure4", "clustering, 100 images", "bcss-wsss", "miou"),
            (69.60, None, None, None, "printed in the text"),
        ),
    ],
)
def test_values_as_printed(place, printed):
    assert paper.value(*place) == (*place, *printed)


@pytest.mark.parametrize(
    "place",
    [
        ("table1", "TransWS", "bcss-wsss", "biou"),
        ("table1", "TransWS", "gcss", "miou"),
        ("table1", "CAM", "bcss-wsss", "miou"),
        ("table3", "DINOv2, ResNet18", "bcss-wsss", "miou"),
        ("figure4", "random, 1 images", "bcss-wsss", "miou"),
    ],
)
def test_none_where_the_paper_has_nothing(place):
    assert paper.value(*place) is None


def test_ranges():
    for v in paper.VALUES:
        assert 0 <= v.mean <= (1 if paper.TABLES[v.table].unit == "F1" else 100), v
        assert v.std is None or 0 < v.std < v.mean, v
        assert (v.low is None) == (v.high is None) and (v.low is None or v.low < v.mean < v.high), v
    assert {v.row for v in paper.VALUES if v.low} == {
        f"random, {n} images" for n in (5, 50, 100, 200, 500)
    }
    assert {v.table for v in paper.VALUES if v.std} == {"table1", "table2", "table4"}


def test_mean_f1_is_the_mean_of_the_classes():
    """Each printed number is rounded: the mean by .0005, the mean of four rounded ones by as much
    again."""
    means = of("table6", "f1")
    assert len(means) == 6
    for place, mean in means.items():
        classes = [of("table6", f"f1_{name}")[place] for name in ("TUM", "STR", "LYM", "NEC")]
        assert abs(sum(classes) / 4 - mean) <= 0.0005 + 0.0005 + 1e-9, place


def test_rows_whose_dice_follows_from_miou():
    """Printed mIoU stands for anything within .005 of it, so does Dice; 2 m / (1 + m) grows with
    m."""

    def derived(miou):
        return 200 * miou / (100 + miou)

    dice = of("table1", "dice")
    off = {
        place: round(dice[place] - derived(miou), 2)
        for place, miou in of("table1").items()
        if not derived(miou - 0.005) - 0.005 <= dice[place] <= derived(miou + 0.005) + 0.005
    }
    assert off == {
        ("luad-histoseg", "TPRO"): -0.01,
        ("gcss", "HistoSegNet"): -0.03,  # a last digit, and one rounding more
        ("gcss", "SAM-Path"): -0.93,
        ("gcss", "TPRO"): 3.07,
        ("bcss-wsss", "Proto2Seg"): 0.15,
        ("luad-histoseg", "Proto2Seg"): 0.31,
        ("gcss", "Proto2Seg"): 1.36,
        ("bcss", "Proto2Seg"): -0.47,
    }


def test_a_score_that_stands_in_two_places_is_the_same():
    for metric in SCORES:
        assert (
            of("table5", metric)["bcss-wsss", "SIM + AT"]
            == of("table3", metric)["bcss-wsss", "MedCLIP, SegFormer"]
        )
    assert of("table5")["bcss-wsss", "SIM + AT"] == of("table4")["bcss-wsss", "K = 3"] == 68.01
    assert next(peer.miou for peer in paper.PEERS if peer.method == "PBIP") == {
        dataset: of("table1")[dataset, "PBIP"] for dataset in ("bcss-wsss", "luad-histoseg")
    }


def test_claims_hold_in_the_papers_own_numbers():
    of_paper = [claim for claim in paper.CLAIMS if not claim.ours]
    assert Counter(claim.table for claim in of_paper) == {
        "table1": 3,
        "table2": 4,
        "table3": 2,
        "table4": 3,
        "table5": 2,
        "table6": 4,
        "figure3": 4,
        "figure4": 2,
    }
    for claim in of_paper:
        better, than = (
            of(claim.table, claim.metric)[claim.dataset, row] for row in (claim.better, claim.than)
        )
        # figures are read off to .2, so a difference of two is known to .4
        assert better - than > (0.4 if paper.TABLES[claim.table].read_off else 0), claim
        assert claim.text


def test_claims_are_left_out_where_the_numbers_say_no():
    for table, better, than, wrong in (
        ("table1", "PBIP", "Proto2Seg", "bcss"),
        ("table4", "K = 3", "K = 1", "luad-histoseg"),
    ):
        claimed = {
            c.dataset for c in paper.CLAIMS if (c.table, c.better, c.than) == (table, better, than)
        }
        assert claimed == {d for d in paper.DATASETS if of(table)[d, better] > of(table)[d, than]}
        assert claimed == set(paper.DATASETS) - {wrong}


def test_reruns():
    assert [(r.by, r.stage, r.dataset, r.miou) for r in paper.RERUNS] == [
        ("SSHR's authors", "stage 1", "bcss-wsss", 66.74),
        ("SSHR's authors", "stage 2", "bcss-wsss", 69.16),
        ("SSHR's authors", "stage 1", "luad-histoseg", 74.46),
        ("SSHR's authors", "stage 2", "luad-histoseg", 75.89),
        ("ProBAG's authors", "stage 2", "bcss-wsss", 69.03),
        ("ProBAG's authors", "stage 1", "luad-histoseg", 66.05),
    ]
    (given,) = (r for r in paper.RERUNS if r.iou)
    assert given.iou == (78.13, 65.56, 62.11, 70.31)  # TUM, STR, LYM, NEC
    assert abs(sum(given.iou) / 4 - given.miou) <= 0.005 + 0.005  # both sides are rounded
    assert {r.stage for r in paper.RERUNS} <= {table.stage for table in paper.TABLES.values()}
    assert all((r.dataset, "PBIP") in of("table1") for r in paper.RERUNS)


def test_peers():
    peers = {peer.method: peer for peer in paper.PEERS}
    assert {name: peer.miou["bcss-wsss"] for name, peer in peers.items()} == {
        "MLPS": 62.55,
        "TPRO": 65.64,
        "PistoSeg": 70.75,
        "ARML": 70.56,
        "PDSeg augmented": 70.77,
        "PBIP": 69.54,
        "LPD": 71.96,
        "DualProtoSeg": 71.35,
        "ConStruct": 70.96,
        "SSHR": 71.82,
        "C2RM-Seg": 72.17,
        "ProBAG": 73.48,
    }
    assert {
        name: peer.miou["luad-histoseg"]
        for name, peer in peers.items()
        if "luad-histoseg" in peer.miou
    } == {
        "MLPS": 73.63,
        "TPRO": 76.80,
        "ARML": 77.11,
        "PDSeg augmented": 77.46,
        "PBIP": 76.44,
        "SSHR": 77.93,
        "C2RM-Seg": 79.62,
        "ProBAG": 76.41,
    }
    assert {name: peer.rerun for name, peer in peers.items() if peer.rerun} == {
        "MLPS": {"bcss-wsss": 69.07, "luad-histoseg": 75.27}
    }
    assert [name for name, peer in peers.items() if peer.note == "oracle"] == [
        "LPD",
        "DualProtoSeg",
        "ConStruct",
    ]
    assert [name for name, peer in peers.items() if peer.stages == 1] == [
        "LPD",
        "DualProtoSeg",
        "ConStruct",
        "SSHR",
    ]
    assert [peer.year for peer in paper.PEERS] == sorted(peer.year for peer in paper.PEERS)
    assert peers["MLPS"][1:4] == (2022, "ResNet38, then DeepLabv3+", 2)


def test_window_runs_from_a_rerun_to_the_papers_highest_stage_1():
    assert paper.WINDOW == {"bcss-wsss": (66.7, 69.6), "luad-histoseg": (74.5, 74.9)}
    full = [
        ("table2", "CLS + FGS + BGS"),
        ("table4", "K = 3"),
        ("figure4", "clustering, 100 images"),
    ]
    for dataset, ends in paper.WINDOW.items():
        (rerun,) = (r.miou for r in paper.RERUNS if r[:3] == ("SSHR's authors", "stage 1", dataset))
        highest = max(of(table)[dataset, row] for table, row in full if (dataset, row) in of(table))
        assert ends == (round(rerun, 1), round(highest, 1))


def test_contradictions_by_their_numbers():
    sentences = dict(paper.contradictions())
    number = r"[+-]?\d+\.\d+|\d+ of \d+|(?<=point in )\d+"
    assert {title: re.findall(number, text) for title, text in sentences.items()} == {
        "One model, several scores": [
            "67.54",
            "68.01",
            "69.55",
            "69.60",
            "69.54",
            "-0.06",
            "+2.00",
        ],
        "Dice follows from mIoU": [
            "32 of 40",
            "34",
            "+0.15",
            "+0.31",
            "-0.93",
            "+3.07",
            "+1.36",
            "-0.47",
        ],
        "PBIP does not lead everywhere": [
            "30.71",
            "30.64",
            "22.34",
            "21.40",
            "55.34",
            "55.28",
            "56.72",
            "56.30",
        ],
        "Three sub-classes do not gain everywhere": [
            "+0.98",
            "-0.04",
            "+1.95",
            "+0.04",
            "0.4",
            "1.2",
        ],
        "Either matching loss alone hurts": ["-7.07", "-11.85", "+5.46"],
        "The chosen encoder is not the best": [
            "3 of 4",
            "73.53",
            "73.20",
            "37.21",
            "36.88",
            "81.77",
            "81.62",
            "0.874",
            "0.809",
        ],
        "Not stated": [],
    }


def test_contradictions_in_words():
    sentences = dict(paper.contradictions())
    assert sentences["Three sub-classes do not gain everywhere"] == (
        "In table4, K = 3 gains +0.98 (bcss-wsss), -0.04 (luad-histoseg), +1.95 (gcss), "
        "+0.04 (bcss) mIoU over K = 1; the std of these rows is 0.4 to 1.2."
    )
    assert re.findall(r"(\S+) in (\w+) on (\S+)", sentences["PBIP does not lead everywhere"]) == [
        ("Proto2Seg", "bIoU", "luad-histoseg"),
        ("Proto2Seg", "bIoU", "gcss"),
        ("Proto2Seg", "mIoU", "bcss"),
        ("Proto2Seg", "FwIoU", "bcss"),
    ]


def test_contradictions_are_computed(monkeypatch):
    place = ("table4", "K = 1", "gcss", "miou")
    monkeypatch.setitem(paper._BY_PLACE, place, paper.value(*place)._replace(mean=50.21))
    assert (
        "+3.00 (gcss)" in dict(paper.contradictions())["Three sub-classes do not gain everywhere"]
    )


def test_a_row_of_every_kind_of_entry():
    table, values = paper._table(
        "t",
        HEAD
        | {
            "notes": {"b": "n"},
            "gcss bcss": {"a": "1.5 2.5±.5 - 3.0[2.0..4.0]", "b": "1.0(typo?) - - 9.5"},
        },
    )
    assert table == ("t", "A", "%", "stage 1", "me", False, ("miou", "dice"), ("a", "b"), ())
    assert values == [
        ("t", "a", "gcss", "miou", 1.5, None, None, None, ""),
        ("t", "a", "gcss", "dice", 2.5, 0.5, None, None, ""),
        ("t", "a", "bcss", "dice", 3.0, None, 2.0, 4.0, ""),
        ("t", "b", "gcss", "miou", 1.0, None, None, None, "typo?; n"),
        ("t", "b", "bcss", "dice", 9.5, None, None, None, "n"),
    ]


@pytest.mark.parametrize(
    "entries, message",
    [
        ({"bcss": {"a": "1.0"}}, r"\[t.bcss\], row 'a': found '1.0'; expected 2 entries"),
        ({"bcss": {"a": "1.0 2.0 3.0"}}, "row 'a': found '1.0 2.0 3.0'; expected 2 entries"),
        (
            {"bcss gcss": {"a": "1.0 2.0"}},
            r"\[t.bcss gcss\], row 'a': found '1.0 2.0'; expected 4 entries",
        ),
        ({"bcss": {"a": "1.0 2.0 ±.5"}}, r"row 'a': found '1.0 2.0 ±.5'"),
        ({"bcss": {"a": "1.0 2.0+-.5"}}, r"row 'a': found '1.0 2.0\+-.5'"),
        ({"bcss": {"a": "1.0 2"}}, "row 'a': found '1.0 2'"),
        ({"bcss": {"a": "1.0 2.0[1.0]"}}, "row 'a': found"),
        ({"bcss": {"a": 1.0}}, "row 'a': found 1.0; expected 2 entries"),
        (
            {"bcss": {"a": "- -"}, "bcs": {"a": "- -"}},
            r"\[t\]: missing nothing; unknown bcs; expected title, unit",
        ),
        ({"tilte": "A"}, r"\[t\]: missing nothing; unknown tilte; expected title, unit"),
        ({"unit": 3}, r"\[t\]: unit is 3; expected a text"),
        (
            {"bcss": {"a": "- -"}, "notes": {"b": "n"}},
            r"\[t\] notes: missing nothing; unknown b; expected a",
        ),
    ],
)
def test_malformed_tables_are_named(entries, message):
    with pytest.raises(ValueError, match=message):
        paper._table("t", HEAD | entries)


def test_a_table_without_its_unit_is_refused():
    with pytest.raises(ValueError, match=r"\[t\]: missing unit; unknown nothing"):
        paper._table("t", {key: entry for key, entry in HEAD.items() if key != "unit"})


def claim(line):
    return list(paper._claims("table2", line))


@pytest.mark.parametrize(
    "read, line, message",
    [
        (
            claim,
            ["CLS", "CSL", "miou", "bcss-wsss", "x"],
            r"\[claims\] table2: found \['CLS', 'CSL'.*two rows with a value; "
            "none at table2 / CSL / bcss-wsss / miou",
        ),
        (claim, ["CLS", "CLS + FGS", "miou", "gcss", "x"], "none at table2 / CLS / gcss / miou"),
        (
            claim,
            ["CLS", "CLS + FGS", "miou"],
            r"\[claims\] table2: found \['CLS'.*expected \[better, than, metric, datasets, text\]",
        ),
        (
            claim,
            ["CLS", "PBIP", "miou", "ours", "x"],
            r"\[claims\] table2: found 'PBIP'; expected one of CLS, CLS \+ FGS",
        ),
        (
            paper._rerun,
            ["me", "stage 1", "bcss", "66.74", [], ""],
            r"\[others\] reruns: miou is '66.74'; expected a number",
        ),
        (
            paper._peer,
            ["X", 2022, 2, "62.55", "b", ""],
            r"\[others\] peers, row 'X': found '62.55'; expected 2 entries",
        ),
        (
            paper._peer,
            ["X", 2022, 2, "62.55 -", "b"],
            r"\[others\] peers: found \['X'.*\[method, year, stages, miou, backbone, note\]",
        ),
    ],
)
def test_malformed_lines_are_named(read, line, message):
    with pytest.raises(ValueError, match=message):
        read(line)


def test_the_wheel_carries_the_numbers(root):
    assert Path(paper.__file__).with_name("paper.toml").is_file()
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))
    assert "*.toml" in project["tool"]["setuptools"]["package-data"]["protolib"]
