"""The grid: cells of hand-made presets, shared cells, what is refused, what a cell yields."""

from dataclasses import replace

import numpy as np
import pytest

from protolib import experiment, presets
from protolib.data import specs
from protolib.experiment import Run
from protolib.nets import weights
from protolib.study import grid, paper
from protolib.study.grid import Cell

QUICK = presets.PRESETS["quick"]
PURE = {"TUM": 30, "STR": 40}


def test_every_row_of_the_paper_has_its_cell_but_the_rivals():
    made = grid.tables(QUICK)
    assert list(made) == list(paper.TABLES)
    for name, rows in made.items():
        rest = set(paper.TABLES[name].rows) - set(rows)
        assert rest == (
            set(paper.TABLES["table1"].rows) - {"PBIP"} if name == "table1" else set()
        ), name


def test_a_row_is_the_preset_with_its_change():
    rows = grid.tables(QUICK)
    assert rows["table2"]["CLS + FGS"] == Cell(
        "pbip_stage1 theta_bg=0.0", "pbip_stage1", {"theta_bg": 0.0}
    )
    assert rows["table4"]["K = 5"].settings == {"K": 5}
    assert rows["table5"]["AT"] == Cell(
        "pbip_stage1 similarity=convolution", "pbip_stage1", {"similarity": "convolution"}
    )
    assert rows["figure3"]["beta/alpha = 20"].settings == {"beta": 20.0}
    assert rows["figure4"]["random, 25 images"].settings == {"N": 25, "prototypes": "random_mean"}
    assert (
        rows["table3"]["CLIP, ResNet18"].name
        == "pbip_stage1 backbone=resnet18 encoder=clip levels=1,2,3"
    )
    assert (
        list(rows["figure4"])[-2:] == ["clustering, 8 images", "clustering, 100 images"]
        and "image, lite0" in rows["table6"]
    )


@pytest.mark.parametrize("name", presets.PRESETS)
def test_every_cell_of_every_preset_is_a_preset_or_says_why_not(name):
    p, refused = presets.PRESETS[name], set()
    for rows in grid.tables(p).values():
        for row, cell in rows.items():
            try:
                made = presets.changed(p, cell.settings)
                assert all(
                    getattr(made, k) == presets.frozen(v) != getattr(p, k)
                    for k, v in cell.settings.items()
                ), row
            except ValueError:
                refused.add(row)
    if name in ("quick", "smoke", "lean", "recommended", "paper_text"):
        assert not refused
    if (
        name == "released_code"
        # no sub-class above the mean of its class; four weights for the three levels of other backbones
    ):
        assert {"K = 1", "AT"} <= refused
        assert not refused & {"CLS", "K = 2", "SIM"}


def test_rows_that_come_to_the_same_share_a_cell():
    rows = grid.tables(QUICK)
    full = Cell("pbip_stage1", "pbip_stage1", {})
    for table, row in [
        ("table1", "PBIP, stage 1"),
        ("table2", "CLS + FGS + BGS"),
        ("table4", "K = 3"),
        ("table5", "SIM + AT"),
        ("figure3", "beta/alpha = 0.5"),
        ("figure3", "theta2/theta1 = 0.5"),
        ("figure4", "clustering, 8 images"),
    ]:
        assert rows[table][row] == full, row
    assert (
        rows["figure3"]["beta/alpha = 0"]
        == rows["table2"]["CLS"]
        == Cell("prototypes", "prototypes", {})
    )
    assert grid.tables(presets.PRESETS["paper_text"])["figure4"]["clustering, 100 images"] == full
    names = [cell.name for table in rows.values() for cell in table.values()]
    cells = {(c.name, c.method, str(c.settings)) for table in rows.values() for c in table.values()}
    assert len(set(names)) == len(cells)  # a name tells its cell


@pytest.fixture
def no_weights(monkeypatch, tmp_path):
    monkeypatch.setenv("PROTOLIB_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(
        weights, "_from_address", lambda name, known: (_ for _ in ()).throw(FileNotFoundError(name))
    )
    grid._weighted.cache_clear()
    yield
    grid._weighted.cache_clear()


def test_what_cannot_run_here_says_why(no_weights):
    rows = grid.tables(QUICK)
    why = {
        row: grid.refusal(QUICK, cell, PURE)
        for table in rows.values()
        for row, cell in table.items()
    }
    assert why["text, CLIP"] == "text prompts need a text encoder, and protolib has none"
    assert why["image, PLIP"].startswith(
        "no weights of plip on this machine, and none could be had"
    )
    assert why["MedCLIP, ResNet18"].startswith("no weights of medclip and resnet18 on")
    assert why["random, 50 images"] == "TUM has 30 training patches for the bank, this takes 50"
    assert (
        why["clustering, 100 images"] == "TUM has 30 training patches for the bank, this takes 100"
    )
    assert not any(
        why[row]
        for row in (
            "random, 25 images",
            "clustering, 8 images",
            "K = 5",
            "image, lite0",
            "AT",
            "PBIP",
        )
    )
    released = presets.PRESETS["released_code"]
    assert "with K = 1 no sub-class is above" in grid.refusal(
        released, Cell("", "pbip_stage1", {"K": 1}), PURE
    )
    assert grid.refusal(released, Cell("", "pbip_stage1", {}), PURE).startswith(
        "no weights of mit_b1 and swin on"
    )
    few = grid.refusal(QUICK, Cell("", "pbip_stage1", {"K": 5}), {"TUM": 9, "NEC": 4})
    assert few == "NEC has 4 training patches for the bank, this takes 5"


def test_weights_that_are_there_are_enough(no_weights, tmp_path):
    (tmp_path / "plip.safetensors").write_bytes(b"")  # found; what is in it is the cell's affair
    assert grid.refusal(QUICK, grid.tables(QUICK)["table6"]["image, PLIP"], PURE) == ""


def test_the_key_of_a_cell_tells_setting_seed_pixels_and_code(monkeypatch):
    cells = grid.tables(QUICK)["table4"]
    keys = [
        grid.key(QUICK, cells["K = 1"], 0, "a"),
        grid.key(QUICK, cells["K = 2"], 0, "a"),
        grid.key(QUICK, cells["K = 1"], 1, "a"),
        grid.key(QUICK, cells["K = 1"], 0, "b"),
        grid.key(replace(QUICK, lr=0.1), cells["K = 1"], 0, "a"),
        grid.key(QUICK, grid.tables(QUICK)["table1"]["CAM"], 0, "a"),
    ]
    monkeypatch.setattr(grid, "CODE", "other")
    assert len({*keys, grid.key(QUICK, cells["K = 1"], 0, "a")}) == 7


@pytest.mark.slow
def test_a_cell_yields_scores_slides_and_curve_of_its_run(tmp_path, monkeypatch):
    tiny = replace(
        presets.preset("smoke"), name="tiny", patches=(64, 8, 8), N=3, epochs=2, tta="none"
    )
    monkeypatch.setitem(presets.PRESETS, "tiny", tiny)
    run = Run("tiny", run_dir=tmp_path, device="cpu")
    made = grid.measure(run, "cam")
    assert made["scores"]["predicted"] == run.scores("cam") and made["scores"]["oracle"][
        "protocol"
    ].startswith("oracle")
    for how in ("predicted", "oracle"):
        total = sum(slide[how] for slide in made["slides"].values())
        assert experiment.metrics.scores(total)["miou"] == made["scores"][how]["miou"]
    assert made["curve"]["loss"] == run.history("cam")["loss"].round(4).tolist() and made["curve"][
        "iou"
    ].shape == (2, 4)
    assert (made["device"], made["code"]) == ("cpu", experiment.CODE[:12])
    truth, said = run.zero_shot()
    shot = grid.measure(run, "zero_shot")["scores"]["f1"]
    for c, f1 in enumerate(shot["per_class"]):
        hits, called, there = (
            ((truth == c) & (said == c)).sum(),
            (said == c).sum(),
            (truth == c).sum(),
        )
        assert f1 == pytest.approx(2 * hits / (called + there)) if called + there else np.isnan(f1)
    assert (
        shot["f1"] == pytest.approx(np.nanmean(shot["per_class"]))
        and len(specs.SPECS["phantom"].classes) == 4
    )
