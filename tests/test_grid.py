"""The grid: experiments of a preset, those that rows share, what is refused, what identifies a run
and what it yields."""

from dataclasses import replace

import numpy as np
import pytest

from protolib import experiment, metrics, presets
from protolib.data import phantom, specs
from protolib.experiment import Run
from protolib.nets import weights
from protolib.study import grid, paper
from protolib.study.grid import Experiment

QUICK, MASKED = presets.PRESETS["quick"], presets.PRESETS["masked_image"]
SMALL = replace(QUICK, size=64, patches=(16, 4, 4))
PURE = {"TUM": 30, "STR": 40}


def test_every_row_of_the_paper_has_its_experiment_but_the_rivals():
    made = grid.tables(QUICK)
    assert list(made) == list(paper.TABLES)
    for name, rows in made.items():
        rest = set(paper.TABLES[name].rows) - set(rows)
        assert rest == (
            set(paper.TABLES["table1"].rows) - {"PBIP"} if name == "table1" else set()
        ), name


def test_a_row_is_the_preset_with_its_change():
    rows = grid.tables(MASKED)
    assert rows["table2"]["CLS + FGS"] == Experiment(
        "pbip_stage1 theta_bg=0.0", "pbip_stage1", {"theta_bg": 0.0}
    )
    assert rows["table4"]["K = 5"].settings == {"K": 5}
    assert rows["table5"]["AT"] == Experiment(
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
def test_every_experiment_of_every_preset_is_a_preset_or_says_why_not(name):
    p, refused = presets.PRESETS[name], set()
    for rows in grid.tables(p).values():
        for row, wanted in rows.items():
            try:
                made = presets.changed(p, wanted.settings)
                assert all(
                    getattr(made, k) == presets.frozen(v) != getattr(p, k)
                    for k, v in wanted.settings.items()
                ), row
            except ValueError:
                refused.add(row)
    if name in ("quick", "smoke", "lean", "recommended", "paper_text"):
        assert not refused
    if name == "released_code":
        # no sub-class above the mean of its class; four weights for three levels of other backbones
        assert {"K = 1", "AT"} <= refused
        assert not refused & {"CLS", "K = 2", "SIM"}


def test_rows_that_come_to_the_same_share_an_experiment():
    rows = grid.tables(MASKED)
    full = Experiment("pbip_stage1", "pbip_stage1", {})
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
    quick = grid.tables(QUICK)
    for table, row in [("table5", "SIM"), ("figure3", "beta/alpha = 1"), ("ours", "full")]:
        assert quick[table][row] == full, row
    assert (
        rows["figure3"]["beta/alpha = 0"]
        == rows["table2"]["CLS"]
        == Experiment("prototypes", "prototypes", {})
    )
    assert grid.tables(presets.PRESETS["paper_text"])["figure4"]["clustering, 100 images"] == full
    names = [e.name for table in rows.values() for e in table.values()]
    made = {(e.name, e.method, str(e.settings)) for table in rows.values() for e in table.values()}
    assert len(set(names)) == len(made)  # a name tells its experiment


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
        row: grid.refusal(QUICK, wanted, PURE)
        for table in rows.values()
        for row, wanted in table.items()
    }
    assert why["text, CLIP"].startswith("no weights of clip and clip_tokenizer on this machine")
    unread = "protolib reads no text tower of encoder medclip: that of clip and plip alone"
    assert why["text, MedCLIP"] == unread
    assert why["text and images, PLIP"].startswith("no weights of clip_tokenizer and plip on")
    assert not any(why[row] for row in ("LPD", "SSHR's gates", "full, diffusion"))
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
        released, Experiment("", "pbip_stage1", {"K": 1}), PURE
    )
    assert grid.refusal(released, Experiment("", "pbip_stage1", {}), PURE).startswith(
        "no weights of mit_b1 and swin on"
    )
    # what needs neither bank nor encoder is refused for neither
    alone = {"encoder": "clip", "prototypes": "learnable", "beta": 0.0}
    none = {"TUM": 0}
    assert grid.refusal(QUICK, Experiment("", "pbip_stage1", alone), none) == ""
    assert grid.refusal(QUICK, rows["followups"]["SSHR's gates"], none) == ""
    matched = Experiment("", "pbip_stage1", alone | {"beta": 0.1})
    assert grid.refusal(QUICK, matched, none).startswith("no weights of clip on")
    few = grid.refusal(QUICK, Experiment("", "pbip_stage1", {"K": 5}), {"TUM": 9, "NEC": 4})
    assert few == "NEC has 4 training patches for the bank, this takes 5"


def test_weights_that_are_there_are_enough(no_weights, tmp_path):
    (tmp_path / "plip.safetensors").write_bytes(b"")  # found; what is in it is the run's affair
    assert grid.refusal(QUICK, grid.tables(QUICK)["table6"]["image, PLIP"], PURE) == ""


def test_table_3_is_every_encoder_with_every_backbone():
    strides = {"ResNet38": {"stride": 8}, "TransUNet": {"stride": 16}}
    names = {
        "SegFormer": "mit_b1",
        "ResNet18": "resnet18",
        "ResNet38": "resnet38d",
        "ResNet50": "resnet50",
        "TransUNet": "transunet",
    }
    wanted = {}
    for encoder in ("CLIP", "MedCLIP", "PLIP", "DINOv2"):
        for title, backbone in names.items():
            deep = title != "SegFormer"
            levels = {
                "levels": [1, 2, 3] if deep else [0, 1, 2],
                "cam_levels": [4] if deep else [3],
            }
            own = {"encoder": encoder.lower(), "backbone": backbone}
            wanted[f"{encoder}, {title}"] = own | levels | strides.get(title, {})
    assert grid.ROWS["table3"] == wanted and list(grid.ROWS["table3"]) == list(wanted)


def test_when_is_every_kind_of_data_under_three_methods():
    rows = grid.tables(QUICK)["when"]
    kinds = list(dict.fromkeys(row.rpartition(", ")[0] for row in rows))
    assert len(rows) == 3 * len(kinds) and kinds[0] == "as it is"
    assert rows["as it is, matching"] == Experiment("pbip_stage1", "pbip_stage1", {})
    assert rows["pure 0.05, student"] == Experiment(
        "prototypes drawn_pure=0.05", "prototypes", {"drawn_pure": 0.05}
    )
    assert rows["size 224, encoder 112, teacher"].settings == {"size": 224, "encoder_size": 112}
    dials = {field for e in rows.values() for field in e.settings if field.startswith("drawn_")}
    assert dials == {f for f in vars(QUICK) if f.startswith("drawn_")}


def of(settings, method="pbip_stage1"):
    return Experiment("", method, settings)


def same(*identities):
    """Whether keys, and whether bases, are all equal."""
    return tuple(len(set(part)) == 1 for part in zip(*identities))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return Run(SMALL, run_dir=tmp_path_factory.mktemp("small"), device="cpu")


def test_a_key_tells_setting_method_seed_and_data_and_a_base_the_first_two(small, tmp_path):
    folders = [tmp_path / name for name in ("one", "two")]
    for seed, folder in enumerate(folders):
        phantom.write_folder(folder, {"train": 12, "val": 2, "test": 2}, size=64, seed=seed)

    def opened(p=SMALL, **more):
        return Run(p, run_dir=tmp_path / "run", device="cpu", cache=small.cache, **more)

    full = grid.identity(small, of({}))
    assert same(full, grid.identity(opened(), of({}))) == (True, True)
    assert same(full, grid.identity(opened(seed=1), of({}))) == (False, True)
    folds = [opened(dataset="bcss-wsss", data_root=folder) for folder in folders]
    assert same(*(grid.identity(fold, of({})) for fold in folds)) == (False, True)
    assert same(full, grid.identity(small, of({"K": 1}))) == (False, False)
    assert same(full, grid.identity(opened(replace(SMALL, lr=0.1)), of({}))) == (False, False)
    assert same(full, grid.identity(small, of({}, "cam"))) == (False, False)
    # named by what they are, not by how they are asked for
    assert same(
        grid.identity(opened(replace(SMALL, lr=0.1)), of({})), grid.identity(small, of({"lr": 0.1}))
    ) == (True, True)


@pytest.mark.parametrize(
    "method, read, unread",
    [
        ("pbip_stage1", "lr", "stage2_lr"),
        ("pbip_stage2", "stage2_lr", "tta"),
        ("cam", "lr", "beta"),
        ("full_supervision", "stage2_lr", "lr"),
        ("nearest_prototype", "K", "lr"),
        ("zero_shot", "restarts", "lr"),
        ("text", "prompts", "K"),
        ("cam", "diffusion", "refine"),
        ("pbip_stage1", "refine", "matching_after"),
        ("cam", "drawn_pure", "beta"),
    ],
)
def test_a_field_that_the_method_does_not_read_changes_nothing(small, method, read, unread):
    other = {"lr": 0.1, "stage2_lr": 0.1, "tta": "none", "beta": 0.1, "K": 1, "restarts": 2}
    other |= {"prompts": "described", "diffusion": 3, "refine": "gates", "matching_after": 9}
    other |= {"drawn_pure": 0.9}
    assert all(getattr(SMALL, field) != value for field, value in other.items())
    full = grid.identity(small, of({}, method))
    assert same(full, grid.identity(small, of({unread: other[unread]}, method))) == (True, True)
    assert same(full, grid.identity(small, of({read: other[read]}, method))) == (False, False)


def test_other_code_is_another_key_and_base(small, monkeypatch):
    before = grid.identity(small, of({}))
    monkeypatch.setitem(experiment.CODE, "nets", "other")
    assert same(before, grid.identity(small, of({}))) == (False, False)


@pytest.fixture
def tiny(tmp_path, monkeypatch, drawn_once):
    p = replace(presets.preset("smoke"), name="tiny", patches=(64, 8, 8), N=3, tta="none")
    monkeypatch.setitem(presets.PRESETS, "tiny", replace(p, epochs=2))
    return Run("tiny", run_dir=tmp_path, device="cpu")


@pytest.mark.slow
def test_a_run_yields_scores_slides_and_curve(tiny):
    made = grid.measure(tiny, "cam")
    assert made["scores"]["predicted"] == tiny.scores("cam")
    assert made["scores"]["predicted"]["image_labels"] == "predicted"
    assert made["scores"]["oracle"]["image_labels"] == "oracle"
    for how in ("predicted", "oracle"):
        total = sum(slide[how]["matrix"] for slide in made["slides"].values())
        assert metrics.scores(total)["miou"] == made["scores"][how]["miou"]
        both, union = sum(slide[how]["boundary"] for slide in made["slides"].values())
        assert np.nanmean(both / union) == pytest.approx(made["scores"][how]["biou"])
    history = tiny.history("cam")
    assert made["curve"]["loss"] == history["loss"].round(4).tolist()
    assert made["curve"]["iou"].shape == (2, 4)
    assert made["seconds"] == round(history["seconds"].sum(), 1)
    code = "".join(digest[:8] for digest in experiment.CODE.values())
    assert (made["device"], made["code"]) == ("cpu", code)
    assert made["key"] == experiment.read_json(tiny.folder / "cam" / "counts_test.json")["key"]
    assert (made["key"], made["base"]) == grid.identity(tiny, of({}, "cam"))
    assert "val" not in made


@pytest.mark.slow
def test_of_teacher_and_student_a_run_tells_val_under_oracle_labels(tiny):
    for method in grid.ON_VAL:
        made = grid.measure(tiny, method)
        assert made["val"] == tiny.scores(method, "val", metrics.ORACLE)["miou"]


@pytest.mark.slow
def test_zero_shot_yields_the_f1_of_each_class(tiny):
    truth, said = tiny.zero_shot()
    made = grid.measure(tiny, "zero_shot")
    shot = made["scores"]["f1"]
    assert set(shot) == {"f1", "per_class"}  # as the ledger reads it
    for c, f1 in enumerate(shot["per_class"]):
        hits = ((truth == c) & (said == c)).sum()
        called, there = (said == c).sum(), (truth == c).sum()
        assert f1 == pytest.approx(2 * hits / (called + there)) if called + there else np.isnan(f1)
    assert len(shot["per_class"]) == len(specs.SPECS["phantom"].classes) == 4
    assert shot["f1"] == pytest.approx(np.nanmean(shot["per_class"]))
    assert (made["key"], made["base"]) == grid.identity(tiny, of({}, "zero_shot"))
