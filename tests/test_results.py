"""Run records: what is written, what is refused, and every character of the tables."""

import json
import math
import os

import fake_results
import numpy as np
import pytest

from protolib import results
from protolib.files import read_json, write_json, write_npz, write_text
from protolib.results import record, summarise, table

PREDICTED = "predicted image labels, ignore pixels dropped"
ORACLE = "oracle image labels, ignore pixels dropped"


def block(miou: float, protocol: str = PREDICTED) -> dict:
    return {
        "miou": miou,
        "fwiou": 0.5,
        "biou": 0.25,
        "dice": 0.75,
        "iou": [miou, math.nan],
        "protocol": protocol,
    }


def run(seed: int = 0, **change) -> dict:
    methods = {
        name: block(miou + seed / 100) | {"oracle": block(miou + 0.1, ORACLE)}
        for name, miou in (("pbip_stage1", 0.6), ("cam", 0.5))
    }
    return {
        "preset": "quick",
        "dataset": "phantom",
        "seed": seed,
        "device": "cpu",
        "protolib": "0.1.0",
        "methods": methods,
        "seconds": {"cam": 12.5},
        "peak_rss_mb": 900.0,
    } | change


def changed(path: str, value) -> dict:
    """A run with one entry replaced, or dropped where value is None."""
    return fake_results.changed(run(), path.split("/"), value)


def test_write_and_read_back(tmp_path):
    path = tmp_path / "new" / "a.json"
    write_json(
        path,
        {
            "b": np.float32(0.5),
            "a": np.arange(2),
            "µ": [math.nan, np.float64("nan")],
            "t": (1, True),
        },
    )
    text = path.read_bytes().decode("utf-8")
    assert text == (
        '{\n "b": 0.5,\n "a": [\n  0,\n  1\n ],\n "µ": [\n  null,\n  null\n ],\n'
        ' "t": [\n  1,\n  true\n ]\n}\n'
    )
    assert read_json(path) == {"b": 0.5, "a": [0, 1], "µ": [None, None], "t": [1, True]}
    assert os.listdir(path.parent) == ["a.json"]


def test_a_list_of_json_gets_one_line_an_entry(tmp_path):
    value = {"label": "µ", "cells": [{"a": [1, 2], "b": math.nan}, {"cells": []}], "n": 1}
    write_json(tmp_path / "x.json", value, lines="cells")
    assert (tmp_path / "x.json").read_text("utf-8").splitlines() == [
        "{",
        ' "label": "µ",',
        ' "cells": [',
        '  {"a": [1, 2], "b": null},',
        '  {"cells": []}',
        " ],",
        ' "n": 1',
        "}",
    ]
    write_json(tmp_path / "y.json", {"cells": []}, lines="cells")
    assert read_json(tmp_path / "y.json") == {"cells": []}


@pytest.mark.parametrize("value, error", [(math.inf, ValueError), (object(), TypeError)])
def test_refused_json_leaves_the_old_file(tmp_path, value, error):
    path = tmp_path / "a.json"
    write_json(path, 1)
    with pytest.raises(error):
        write_json(path, {"x": value})
    assert (path.read_text(), os.listdir(tmp_path)) == ("1\n", ["a.json"])


def test_a_write_that_breaks_off_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_text(path, "new")
    assert (path.read_text(), os.listdir(tmp_path)) == ("old", ["a.txt"])


def test_npz_comes_back_and_is_the_same_twice(tmp_path):
    arrays = {"path": np.arange(6, dtype=np.uint8).reshape(2, 3), "names": np.array(["a", "bc"])}
    write_npz(tmp_path / "a.npz", **arrays)
    write_npz(tmp_path / "b.npz", **arrays)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with np.load(tmp_path / "a.npz", allow_pickle=False) as found:
        assert sorted(found) == ["names", "path"]
        for name, array in arrays.items():
            assert found[name].dtype == array.dtype
            np.testing.assert_array_equal(found[name], array)


def test_npz_refuses_objects(tmp_path):
    with pytest.raises(ValueError):
        write_npz(tmp_path / "a.npz", a=np.array([{}], dtype=object))
    assert os.listdir(tmp_path) == []


def test_read_json_names_file_and_place(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": }')
    with pytest.raises(ValueError, match="a.json is no JSON: .*line 1 column 7"):
        read_json(path)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none.json")


@pytest.mark.parametrize("platform, mb", [("linux", 2048.0), ("darwin", 2.0)])
def test_peak_memory_by_platform(platform, mb, monkeypatch):
    counts = {"self": 1_000_000, "children": 2_000_000}

    class Fake:
        RUSAGE_SELF, RUSAGE_CHILDREN = "self", "children"

        @staticmethod
        def getrusage(who):
            return type("Usage", (), {"ru_maxrss": counts[who]})

    monkeypatch.setattr(results, "resource", Fake)
    monkeypatch.setattr(results.sys, "platform", platform)
    assert results.peak_rss_mb() == mb


def test_peak_memory_without_the_module_is_nan(monkeypatch):
    monkeypatch.setattr(results, "resource", None)
    assert math.isnan(results.peak_rss_mb())


def test_record_keeps_values_and_orders_methods():
    found = record(**run())
    assert list(found) == [
        "preset",
        "dataset",
        "seed",
        "device",
        "protolib",
        "methods",
        "seconds",
        "peak_rss_mb",
    ]
    assert list(found["methods"]) == ["cam", "pbip_stage1"]
    np.testing.assert_equal(found, run())


def test_record_survives_the_file(tmp_path):
    path = tmp_path / "results.json"
    write_json(path, record(**run()))
    assert json.loads(path.read_text())["methods"]["cam"]["iou"] == [0.5, None]
    np.testing.assert_equal(record(**read_json(path)), record(**run()))


def test_record_takes_what_the_scorer_returns():
    from protolib.metrics import ORACLE as oracle
    from protolib.metrics import Scorer

    mask = np.array([[[0, 1], [1, 1]]])
    blocks = []
    for scorer in (Scorer(2), Scorer(2, oracle)):
        scorer.update(mask, mask)
        blocks.append(scorer.result())
    found = record(**run(methods={"cam": blocks[0] | {"oracle": blocks[1]}}))
    one = dict(miou=1.0, fwiou=1.0, biou=1.0, dice=1.0, accuracy=1.0, iou=[1.0, 1.0])
    assert found["methods"]["cam"] == one | {
        "protocol": PREDICTED,
        "oracle": one | {"protocol": ORACLE},
    }


@pytest.mark.parametrize(
    "path, value, words",
    [
        ("preset", None, "run record: missing preset; unknown nothing"),
        ("notes", "x", "run record: missing nothing; unknown notes"),
        ("dataset", "", "dataset is ''; expected a text"),
        ("seed", True, "seed is True; expected an int"),
        ("seed", 1.5, "seed is 1.5; expected an int"),
        (
            "methods",
            {},
            "no method; expected some of cam, prototypes, pbip_stage1, pbip_stage2, full_supervision",
        ),
        ("methods/pbip", {}, "unknown method pbip; expected some of cam"),
        ("methods/cam/biou", None, "cam: missing biou; unknown nothing"),
        ("methods/cam/oracle", None, "cam: missing oracle"),
        ("methods/cam/oracle/iou", None, "cam oracle: missing iou"),
        ("methods/cam/f1", 0.5, "cam: missing nothing; unknown f1"),
        (
            "methods/cam/miou",
            63.1,
            "cam: miou is 63.1; expected a finite number from 0 to 1; scores are stored as fract",
        ),
        ("methods/cam/iou", [0.5, -1], "cam: iou 1 is -1"),
        ("methods/cam/iou", [0.5], r"'iou' has \[1, 2\] classes"),
        (
            "methods/cam/protocol",
            "fair",
            "cam: protocol 'fair' is unknown; expected .*" + PREDICTED,
        ),
        ("methods/cam/protocol", ORACLE, "expected oracle image labels in the second only"),
        (
            "methods/cam/oracle/protocol",
            PREDICTED,
            "expected oracle image labels in the second only",
        ),
        (
            "methods/cam/oracle/protocol",
            ORACLE.replace("dropped", "counted"),
            "one rule for ignore pixels",
        ),
        ("seconds/cam", -1.0, "seconds of cam is -1.0; expected a finite number from 0 to inf"),
        ("peak_rss_mb", math.inf, "peak_rss_mb is inf"),
    ],
)
def test_record_refuses(path, value, words):
    with pytest.raises(ValueError, match=words):
        record(**changed(path, value))


def test_table_to_the_letter():
    assert (
        table(record(**run()), classes=("TUM", "STR"))
        == """\
Data set phantom, preset quick, 1 seed (0). bIoU: band of 0.02 of the image diagonal.

Protocol: predicted image labels, ignore pixels dropped.

| method | mIoU (%) | FwIoU (%) | bIoU (%) | Dice (%) | IoU TUM (%) | IoU STR (%) |
|---|---:|---:|---:|---:|---:|---:|
| CAM | 50.0 | 50.0 | 25.0 | 75.0 | 50.0 | – |
| PBIP stage 1 | 60.0 | 50.0 | 25.0 | 75.0 | 60.0 | – |
"""
    )


def test_table_of_a_file_and_under_oracle(tmp_path):
    write_json(tmp_path / "results.json", record(**run()))
    lines = table(read_json(tmp_path / "results.json"), oracle=True).splitlines()
    assert lines[2] == "Protocol: oracle image labels, ignore pixels dropped."
    assert lines[4].endswith("| IoU class 0 (%) | IoU class 1 (%) |")
    assert lines[6] == "| CAM | 60.0 | 50.0 | 25.0 | 75.0 | 60.0 | – |"


def test_table_names_every_protocol_when_methods_differ():
    mixed = changed("methods/pbip_stage1/protocol", "no image labels, ignore pixels dropped")
    assert table(record(**mixed)).splitlines()[2] == (
        "Protocol: predicted image labels, ignore pixels dropped (CAM). "
        "no image labels, ignore pixels dropped (PBIP stage 1)."
    )


def test_table_refuses_names_that_do_not_fit():
    with pytest.raises(ValueError, match="1 class names for 2 classes"):
        table(record(**run()), classes=("TUM",))


def test_summary_by_hand():
    found = summarise([run(2), run(0), run(4, device="cuda")])
    assert (found["seeds"], found["device"], found["protolib"]) == ([0, 2, 4], "cpu, cuda", "0.1.0")
    cam = found["methods"]["cam"]
    # .50, .52, .54: mean .52, sample variance (.02^2 + 0 + .02^2) / 2
    assert cam["miou"] == {
        "mean": pytest.approx(0.52, rel=1e-14),
        "std": pytest.approx(0.02, rel=1e-12),
    }
    assert cam["fwiou"] == {"mean": 0.5, "std": 0.0}
    assert cam["iou"][0] == cam["miou"] and math.isnan(cam["iou"][1]["mean"])
    assert (cam["protocol"], cam["oracle"]["protocol"]) == (PREDICTED, ORACLE)
    assert cam["oracle"]["miou"]["mean"] == pytest.approx(0.6, rel=1e-14)
    lines = table(found).splitlines()
    assert lines[0].startswith("Data set phantom, preset quick, mean ± std over 3 seeds (0, 2, 4).")
    assert (
        lines[6] == "| CAM | 52.0 ± 2.0 | 50.0 ± 0.0 | 25.0 ± 0.0 | 75.0 ± 0.0 | 52.0 ± 2.0 | – |"
    )


@pytest.mark.filterwarnings("error")
def test_summary_of_one_seed_has_no_std(tmp_path):
    found = summarise([run(3)])
    assert math.isnan(found["methods"]["cam"]["miou"]["std"])
    write_json(tmp_path / "summary.json", found)
    for summary in (found, read_json(tmp_path / "summary.json")):
        lines = table(summary).splitlines()
        assert lines[0].startswith("Data set phantom, preset quick, 1 seed (3).")
        assert lines[6] == "| CAM | 53.0 | 50.0 | 25.0 | 75.0 | 53.0 | – |"


def test_a_class_missing_in_one_seed_is_missing_in_the_summary():
    other = run(1)
    other["methods"]["cam"]["iou"] = [math.nan, 0.5]
    assert all(
        math.isnan(v)
        for entry in summarise([run(0), other])["methods"]["cam"]["iou"]
        for v in entry.values()
    )


def test_summary_refuses_to_mix():
    other_protocol, fewer, third = run(1), run(1), run(1)
    for name in ("cam", "pbip_stage1"):
        other_protocol["methods"][name]["protocol"] = "no image labels, ignore pixels dropped"
        for part in (third["methods"][name], third["methods"][name]["oracle"]):
            part["iou"] = [0.1, 0.2, 0.3]
    del fewer["methods"]["cam"]
    for second, words in (
        (run(1, preset="smoke"), r"mixed presets: quick \| smoke"),
        (run(1, dataset="mosaic"), r"mixed data sets: mosaic \| phantom"),
        (other_protocol, "mixed protocols: cam: no image labels"),
        (fewer, r"mixed methods: cam, pbip_stage1 \| pbip_stage1"),
        (third, r"mixed numbers of classes: 2 \| 3"),
        (run(0), r"seeds \[0, 0\] hold one twice"),
    ):
        with pytest.raises(ValueError, match=words):
            summarise([run(0), second])
    with pytest.raises(ValueError, match="no record"):
        summarise([])
