"""The registry: what the reference says of each data set, and every mistake in one named."""

import re

import pytest

from data_download import mirrors, registry
from protolib.data import specs

MIRROR = 'x = { kind = "http", id = "http://127.0.0.1/x.zip" }'
GOOD = f"""[a]
title = "A"
licence = "MIT"
licence_source = "me"
citation = "me"
[a.mirrors]
{MIRROR}
"""


def load(tmp_path, text):
    path = tmp_path / "r.toml"
    path.write_text(text)
    return registry.load(path)


def test_own_registry_is_that_of_the_reference():
    entries = registry.load()
    assert list(entries) == [
        "bcss-wsss",
        "luad-histoseg",
        "bcss",
        "gcss",
        "gcss-wsss",
        "mit_b1",
        "medclip",
        "swin",
    ]
    places = {
        name: [(mirror.kind, mirror.id) for mirror in entry.mirrors]
        for name, entry in entries.items()
    }
    assert places["bcss-wsss"] == [
        ("drive-folder", "1iS2Z0DsbACqGp7m6VDJbAcgzeXNEFr77"),
        ("drive-file", "178eSM9xs5jITt5P2kjaswDlJzwlU5gps"),
    ]
    assert places["luad-histoseg"] == [
        ("drive-folder", "1E3Yei3Or3xJXukHIybZAgochxfn6FJpr"),
        ("drive-file", "1lWAeCp6UN30VRVmqv97kA2sJ1Pp2frhC"),
    ]
    assert places["bcss"] == [
        ("drive-folder", "1zqbdkQF8i5cEmZOGmbdQm-EP8dRYtvss"),
        ("huggingface", "datasets/nabil-m/bcss"),
        ("huggingface", "datasets/Angelou0516/BCSS"),
    ]
    assert places["gcss"] == [
        ("zenodo", "8176354"),
        ("huggingface", "datasets/zeyugao/GastricSemanticSegmentation"),
    ]
    assert places["gcss-wsss"] == [("drive-file", "1yr81vqiAZ7KUPu1SelpDPBdauIQM2q0M")]
    assert entries["gcss-wsss"].licence == specs.SPECS["gcss-wsss"].licence
    assert places["mit_b1"] == [("huggingface", "models/nvidia/mit-b1")]
    assert [name for name, entry in entries.items() if entry.free] == ["bcss", "swin"]
    assert [name for name, entry in entries.items() if entry.kind == "weights"] == [
        "mit_b1",
        "medclip",
        "swin",
    ]
    assert all(entry.citation and entry.licence_source for entry in entries.values())


@pytest.mark.parametrize("name", ["bcss-wsss", "luad-histoseg"])
def test_expected_counts_are_those_of_the_spec(name):
    """Each image of val and test has a mask, so the spec's count stands twice."""
    counts = specs.SPECS[name].counts
    expected = {"train/*.png": counts["train"]} | {
        f"{split}/{kind}/*.png": counts[split]
        for split in ("val", "test")
        for kind in ("img", "mask")
    }
    assert registry.load()[name].expected == expected
    assert registry.load()[name].licence == specs.SPECS[name].licence


def test_every_kind_has_its_lister():
    assert tuple(mirrors.LISTERS) == registry.KINDS


def test_a_whole_entry(tmp_path):
    text = GOOD.replace(
        "[a.mirrors]",
        'size = 5\n[a.files]\n"x.zip" = { size = 3, sha256 = "00" }\n'
        '[a.expected]\n"*.png" = [1, 2]\n[a.mirrors]',
    )
    entry = load(tmp_path, text)["a"]
    mirror = registry.Mirror("x", "http", "http://127.0.0.1/x.zip")
    assert entry == registry.Entry(
        "a",
        "A",
        "MIT",
        "me",
        "me",
        (mirror,),
        "data",
        "",
        5,
        {"x.zip": {"size": 3, "sha256": "00"}},
        {"*.png": (1, 2)},
    )


@pytest.mark.parametrize(
    "text, message",
    [
        ("[a", "cannot be read"),
        (
            GOOD.replace('citation = "me"\n', ""),
            r"r.toml, \[a\]: missing citation; unknown nothing; expected title,",
        ),
        (GOOD.replace("citation", "cite"), "missing citation; unknown cite;"),
        (
            GOOD.replace('"http",', '"ftp",'),
            "mirror x: kind is 'ftp', expected one of http, pointer",
        ),
        (GOOD.replace("id =", "key ="), "mirror x: missing id; unknown key; expected kind"),
        (GOOD.replace(MIRROR, ""), "no mirror"),
        (GOOD.replace('"MIT"', "3"), r"r.toml, \[a\]: licence is 3; expected a text"),
        (GOOD.replace('"http",', "7,"), "mirror x: kind is 7; expected a text"),
        (
            GOOD.replace("[a.mirrors]", "[a.expected]\n'*' = 3\n[a.mirrors]"),
            r"expected: \* is 3; expected a list",
        ),
        (GOOD.replace(MIRROR, "x = 3"), "mirrors: x is 3; expected an object"),
        (
            GOOD.replace("[a.mirrors]", 'kind = "film"\n[a.mirrors]'),
            "kind is 'film', expected 'data' or 'weights'",
        ),
        (
            GOOD.replace("[a.mirrors]", '[a.files]\n"../x" = {}\n[a.mirrors]'),
            "'../x' would leave its folder",
        ),
    ],
)
def test_mistakes_are_named(tmp_path, text, message):
    with pytest.raises(registry.Refused, match=message):
        load(tmp_path, text)


def test_absent_registry_and_unknown_name(tmp_path):
    with pytest.raises(registry.Refused, match="give another with --registry"):
        registry.load(tmp_path / "none.toml")
    with pytest.raises(
        registry.Refused, match=re.escape("'bcs' is not in the registry; there are: a")
    ):
        registry.find(load(tmp_path, GOOD), "bcs")


@pytest.mark.parametrize(
    "licence, free",
    [
        ("CC0 1.0", True),
        ("Apache-2.0", True),
        ("MIT", True),
        ("none stated", False),
        ("CC-BY-4.0", False),
        ("other: non-commercial, MIT for the code", False),
    ],
)
def test_which_licence_asks_nobody(tmp_path, licence, free):
    assert load(tmp_path, GOOD.replace('"MIT"', f'"{licence}"'))["a"].free is free


@pytest.mark.parametrize("name", ["a.png", "a/b [1 0 0 1].png", "a\\b.png", "..a/b..", "./a"])
def test_names_that_stay_inside(name):
    assert registry.inside(name) == name.replace("\\", "/").removeprefix("./")


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "/etc/passwd",
        "..",
        "a/../../b",
        "a\\..\\..\\b",
        "C:x",
        "C:\\x",
        "\\\\host\\x",
        "\\x",
        "a\nb",
        "a\0b",
    ],
)
def test_names_that_would_leave(name):
    with pytest.raises(registry.Refused, match="would leave its folder"):
        registry.inside(name)
