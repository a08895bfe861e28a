"""The story's steps on real tissue, laid out by the script beside the ingredients; not an official
benchmark."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from protolib import results
from protolib.data import patches, specs
from protolib.experiment import Run

SCRIPT = Path(__file__).resolve().parents[2] / "shared" / "data" / "make_patches.py"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not SCRIPT.exists(), reason="../shared/data with the real tissue is not beside this clone"
    ),
]

LUAD3 = """
name = "luad3"
classes = ["TUM", "STR", "NOR"]
titles = ["tumor", "stroma", "normal"]
palette = [[0, 64, 128], [64, 128, 0], [243, 152, 0], [255, 255, 255]]
codes = { 0 = 0, 1 = 1, 2 = 2 }
"""


@pytest.fixture(scope="module")
def mosaic(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mosaic")
    counts = ["--train", "78", "--val", "13", "--test", "13"]
    subprocess.run([sys.executable, SCRIPT, "mosaic", folder, *counts], check=True)
    return folder


def test_mosaic_loads_as_bcss_wsss(mosaic, tmp_path):
    splits = [
        patches.load("bcss-wsss", s, 64, data_root=mosaic, cache=tmp_path) for s in specs.SPLITS
    ]
    assert [len(s) for s in splits] == [78, 13, 13]
    # 4 of 13 label vectors are pure
    assert splits[0].labels.sum(1).min() == 1 and len(splits[0].single_class()) == 24
    assert splits[2].masks.shape == (13, 224, 224) and set(np.unique(splits[2].masks)) <= {
        0,
        1,
        2,
        3,
        4,
    }
    assert patches.split_overlap(*splits).slides == {}


def test_mosaic_runs_from_patches_to_scores(mosaic, tmp_path):
    run = Run("smoke", "bcss-wsss", mosaic, tmp_path / "run", device="cpu")
    record = run.record()
    assert list(record["methods"]) == list(results.METHODS)
    assert run.masked_split().patches.split == "val"  # BCSS-WSSS publishes no training masks
    assert run.masks("pbip_stage2", "test", range(13)).shape == (13, 224, 224)
    # one epoch of 78 patches: far from trained, yet with the image label given every method must
    # beat a constant guess
    assert record["methods"]["pbip_stage1"]["oracle"]["miou"] > 0.25


def test_luad3_runs_as_a_custom_data_set_and_reports_thin_classes(tmp_path):
    root = tmp_path / "luad3"
    subprocess.run([sys.executable, SCRIPT, "luad3", root], check=True)
    (root / "dataset.toml").write_text(LUAD3)
    run = Run("smoke", "custom", root, tmp_path / "run", device="cpu")
    assert run.spec.C == 3 and len(run.data("train")) == 323
    assert run.bank.prototypes.shape == (9, 496)
    # four pure tumor patches for three sub-classes
    assert any(name.startswith("TUM") for name in run.bank.thin)
    scores = run.scores("prototypes")
    assert len(scores["iou"]) == 3 and 0 < scores["miou"] < 1
