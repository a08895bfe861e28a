"""Run records: what is written, what is refused, and every word of their tables."""

import json
import math
import os

import fake_results
import numpy as np
import pytest

from protolib import results
from protolib.files import expect, read_json, write_json, write_npz, write_text
from protolib.metrics import ORACLE, Scorer
from protolib.results import record, table


def block(miou: float, image_labels: str = "predicted") -> dict:
    return {
        "miou": miou,
        "fwiou": 0.5,
        "biou": 0.25,
        "dice": 0.75,
        "iou": [miou, math.nan],
        "image_labels": image_labels,
        "ignore": "dropped",
    }


def run(seed: int = 0, **change) -> dict:
    methods = {
        name: block(miou + seed / 100) | {"oracle": block(miou + 0.1, "oracle")}
        for name, miou in (("pbip_stage1", 0.6), ("cam", 0.5))
    }
    return {
        "preset": "quick",
        "dataset": "phantom",
        "seed": seed,
        "device": "cpu",
        "threads": 1,
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
    value = {"label": "µ", "runs": [{"a": [1, 2], "b": math.nan}, {"runs": []}], "n": 1}
    write_json(tmp_path / "x.json", value, lines="runs")
    assert (tmp_path / "x.json").read_text("utf-8").splitlines() == [
        "{",
        ' "label": "µ",',
        ' "runs": [',
        '  {"a": [1, 2], "b": null},',
        '  {"runs": []}',
        " ],",
        ' "n": 1',
        "}",
    ]
    write_json(tmp_path / "y.json", {"runs": []}, lines="runs")
    assert read_json(tmp_path / "y.json") == {"runs": []}


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


@pytest.mark.parametrize(
    "values, words",
    [
        ({"a": "x", "n": 3}, None),
        ({"a": "x", "n": np.int64(3), "more": 1}, None),
        ({"a": "x", "n": 3, "b": np.float32(0.5)}, None),
        ([], r"f: found \[\]; expected keys a, n"),
        ({"a": "x"}, "f: missing n; unknown nothing; expected a, n"),
        ({"a": 1, "n": 3}, "f: a is 1; expected a text"),
        ({"a": "x", "n": 3.5}, "f: n is 3.5; expected a whole number"),
        ({"a": "x", "n": True}, "f: n is True; expected a whole number"),
    ],
)
def test_expect(values, words):
    if words is None:
        expect("f", values, {"a": str, "n": int})
        return
    with pytest.raises(ValueError, match=f"^{words}$"):
        expect("f", values, {"a": str, "n": int})


@pytest.mark.parametrize(
    "values, words",
    [
        ({"a": {}}, None),
        ({"a": {}, "b": None}, None),
        ({"a": {}, "b": 1}, None),
        ({"a": {}, "c": 1}, "f: missing nothing; unknown c; expected a, b"),
        ({"a": {}, "b": "1"}, "f: b is '1'; expected a number or null"),
        ({"a": [], "b": 1}, r"f: a is \[\]; expected an object"),
    ],
)
def test_expect_with_optional_keys_refuses_others(values, words):
    if words is None:
        expect("f", values, {"a": dict}, {"b": (float, None)})
        return
    with pytest.raises(ValueError, match=f"^{words}$"):
        expect("f", values, {"a": dict}, {"b": (float, None)})


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
        "threads",
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
    mask = np.array([[[0, 1], [1, 1]]])
    scorers = (Scorer(2), Scorer(2, ORACLE))
    for scorer in scorers:
        scorer.update(mask, mask)
    first, second = (scorer.result() for scorer in scorers)
    found = record(**run(methods={"cam": first | {"oracle": second}}))
    assert found["methods"]["cam"] == first | {"oracle": second}


@pytest.mark.parametrize(
    "path, value, words",
    [
        ("preset", None, "run record: missing preset; unknown nothing"),
        ("notes", "x", "run record: missing nothing; unknown notes"),
        ("dataset", "", "dataset is ''; expected a text that is not empty"),
        ("seed", True, "seed is True; expected a whole number"),
        ("seed", 1.5, "seed is 1.5; expected a whole number"),
        (
            "methods",
            {},
            "no method; expected some of cam, nearest_prototype, prototypes, pbip_masked_image, "
            "pbip_stage1, pbip_stage2, full_supervision",
        ),
        ("methods/pbip", {}, "unknown method pbip; expected some of cam"),
        ("methods/cam/biou", None, "cam: missing biou; unknown nothing"),
        ("methods/cam/oracle", None, "cam: missing oracle"),
        ("methods/cam/oracle/iou", None, "cam oracle: missing iou"),
        ("methods/cam/oracle/title", "x", "cam oracle: missing nothing; unknown title"),
        ("methods/cam/f1", 0.5, "cam: missing nothing; unknown f1"),
        ("methods/cam/miou", "x", "cam: miou is 'x'; expected a number or null"),
        (
            "methods/cam/miou",
            63.1,
            "cam: miou is 63.1; expected a finite number from 0 to 1; scores are stored as fract",
        ),
        ("methods/cam/iou", [0.5, -1], "cam: iou 1 is -1"),
        ("methods/cam/iou", [0.5], r"'iou' has \[1, 2\] classes"),
        ("methods/cam/image_labels", "fair", "cam: image_labels = 'fair' is unknown; expected one"),
        ("methods/cam/ignore", "kept", "cam: ignore = 'kept' is unknown; expected one of dropped"),
        ("methods/cam/image_labels", "oracle", "expected oracle image labels in the second only"),
        (
            "methods/cam/oracle/image_labels",
            "predicted",
            "protocols 'predicted image labels, ignore pixels dropped' and, under oracle, 'predict",
        ),
        ("methods/cam/oracle/ignore", "counted", "one rule for ignore pixels"),
        ("seconds/cam", -1.0, "seconds of cam is -1.0; expected a finite number from 0 to inf"),
        ("peak_rss_mb", math.inf, "peak_rss_mb is inf"),
    ],
)
def test_record_refuses(path, value, words):
    with pytest.raises(ValueError, match=words):
        record(**changed(path, value))


def test_table_to_the_letter():
    made = table(record(**run()), classes=("TUM", "STR"))
    assert made.heads == [
        "method",
        "mIoU (%)",
        "FwIoU (%)",
        "bIoU (%)",
        "Dice (%)",
        "IoU TUM (%)",
        "IoU STR (%)",
    ]
    assert made.rows == [
        ["CAM", "50.0", "50.0", "25.0", "75.0", "50.0", "–"],
        ["PBIP stage 1", "60.0", "50.0", "25.0", "75.0", "60.0", "–"],
    ]
    assert made.caption == (
        "Data set phantom, preset quick, seed 0. bIoU: band of 0.02 of the image diagonal.",
        "Protocol: predicted image labels, ignore pixels dropped. "
        "Means are over TUM: the others have no true pixel.",
    )


def test_table_of_a_file_and_under_oracle(tmp_path):
    write_json(tmp_path / "results.json", record(**run()))
    made = table(read_json(tmp_path / "results.json"), oracle=True)
    assert made.caption[1] == (
        "Protocol: oracle image labels, ignore pixels dropped. "
        "Means are over class 0: the others have no true pixel."
    )
    assert made.heads[-2:] == ["IoU class 0 (%)", "IoU class 1 (%)"]
    assert made.rows[0] == ["CAM", "60.0", "50.0", "25.0", "75.0", "60.0", "–"]


def test_table_names_every_protocol_when_methods_differ():
    mixed = changed("methods/pbip_stage1/image_labels", "none")
    assert table(record(**mixed)).caption[1] == (
        "Protocol: predicted image labels, ignore pixels dropped (CAM). "
        "no image labels, ignore pixels dropped (PBIP stage 1). "
        "Means are over class 0: the others have no true pixel."
    )


@pytest.mark.parametrize("oracle", [False, True])
def test_a_method_may_have_a_title_of_its_own(oracle):
    titled = changed("methods/pbip_stage1/title", "LPD")
    made = table(record(**titled), oracle=oracle)
    assert [row[0] for row in made.rows] == ["CAM", "LPD"]


def test_table_refuses_names_that_do_not_fit():
    with pytest.raises(ValueError, match="1 class names for 2 classes"):
        table(record(**run()), classes=("TUM",))
