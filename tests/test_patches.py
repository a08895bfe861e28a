"""Specs, label spellings, folder variants, the decoded cache: on small files in exactly the
published formats."""

import dataclasses
import json
import os
import pickle
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from protolib.data import checks, patches, phantom, pictures, specs

BCSS = specs.SPECS["bcss-wsss"]
TRAIN = {
    "TCGA-A1-A0SK-DX1_xmin45749_ymin25055_MPP-0.2500+0[1000].png": 10,
    "TCGA-A1-A0SK-DX1_xmin45749_ymin25055_MPP-0.2500+10[0110].png": 20,
    "TCGA-A2-A0CM-DX1_xmin18562_ymin56852_MPP-0.2500+3[0001].png": 30,
}
PLAN = np.array([[0, 0, 1, 4], [0, 0, 1, 4], [3, 3, 3, 4], [4, 3, 3, 4]], np.uint8)
SIZE = 16  # px
MASK = np.kron(PLAN, np.ones((4, 4), np.uint8))
TOML = """name = "three"
classes = ["A", "B", "D"]
titles = ["first", "second", "third"]
palette = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]
codes = { 7 = 0, 8 = 1, 9 = 2, 10 = 2 }
slide = 's\\d+'
patient = 'p\\d'
mpp = 0.5
"""


def write_image(path, value, size=SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size, size, 3), value, np.uint8)).save(path, format="PNG")


def write_mask(path, mask=MASK, spec=BCSS):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(mask, mode="P")
    image.putpalette(np.array(spec.palette, np.uint8).ravel().tolist())
    image.save(path, format="PNG")


@pytest.fixture
def folder(tmp_path):
    """A BCSS-WSSS tree: training/ flat, valid/ and test/ with img/ and mask/; a "[" in its own name
    must not matter."""
    root = tmp_path / "sets [2022]"
    for name, value in TRAIN.items():
        write_image(root / "training" / name, value)
    for split, slide in (("valid", "TCGA-BH-A0BL-DX1"), ("test", "TCGA-D8-A27M-DX1")):
        write_image(root / split / "img" / f"{slide}_xmin1_ymin2_MPP-0.2500+0.png", 40)
        write_mask(root / split / "mask" / f"{slide}_xmin1_ymin2_MPP-0.2500+0.png")
    return root


@pytest.fixture
def load(folder, tmp_path):
    return lambda split="train", size=32, dataset="bcss-wsss", **given: patches.load(
        dataset, split, size, **{"data_root": folder, "cache": tmp_path / "cache"} | given
    )


# specs


def test_published_facts():
    luad = specs.SPECS["luad-histoseg"]
    assert list(specs.SPECS) == [
        "phantom",
        "bcss-wsss",
        "luad-histoseg",
        "bcss",
        "bcss-merged",
        "gcss",
        "gcss-four",
        "gcss-wsss",
    ]
    six = specs.SPECS["gcss-wsss"]
    assert six.C == 6 and specs.parse_label("a+3[010011].png", six.C) == (0, 1, 0, 0, 1, 1)
    assert "to be named" in "".join(six.titles)
    assert BCSS.classes == ("TUM", "STR", "LYM", "NEC") and luad.classes == (
        "TE",
        "NEC",
        "LYM",
        "TAS",
    )
    assert BCSS.palette == ((255, 0, 0), (0, 255, 0), (0, 0, 255), (153, 0, 255), (255, 255, 255))
    assert luad.palette == (
        (205, 51, 51),
        (0, 255, 0),
        (65, 105, 225),
        (255, 165, 0),
        (255, 255, 255),
    )
    assert BCSS.counts == {"train": (23422,), "val": (3418,), "test": (4986,)}
    assert luad.counts == {"train": (16678,), "val": (300, 306), "test": (307,)}
    assert BCSS.codes == luad.codes == {0: 0, 1: 1, 2: 2, 3: 3} and BCSS.C == luad.C == 4
    assert BCSS.ignored == luad.ignored == (4,) and BCSS.regions is luad.regions is None
    assert (
        specs.SPECS["phantom"].classes == phantom.CLASSES
        and specs.SPECS["phantom"].titles == phantom.TITLES
    )


def test_published_facts_of_the_regions():
    bcss, merged, gcss, four = (
        specs.SPECS[name] for name in ("bcss", "bcss-merged", "gcss", "gcss-four")
    )
    assert bcss.classes == merged.classes == BCSS.classes and bcss.palette == BCSS.palette
    assert bcss.codes == {1: 0, 2: 1, 3: 2, 4: 3}
    assert merged.codes == bcss.codes | {19: 0, 20: 0, 10: 2, 11: 2}
    for spec in (bcss, merged):  # every one of the 22 codes has one meaning
        assert sorted([*spec.codes, *spec.ignored]) == list(range(22))
    assert gcss.codes == {1: 0, 2: 1, 3: 2, 4: 3, 5: 4} and gcss.C == 5
    assert four.codes == {1: 0, 2: 1, 3: 1, 4: 2, 5: 3} and four.classes == (
        "TUM",
        "STR",
        "MUS",
        "NEC",
    )
    assert gcss.ignored == four.ignored == (0, 6, 255)
    assert bcss.counts == merged.counts == {"train": (30000,), "val": (2500,), "test": (2500,)}
    assert gcss.counts == four.counts == {"train": (20000,), "val": (2500,), "test": (2500,)}
    assert merged.lookup[[0, 1, 20, 2, 11, 4, 21, 255]].tolist() == [4, 0, 0, 1, 2, 3, 4, 4]


def test_dataset_toml_under_its_three_names(tmp_path):
    root = tmp_path / "mine"
    root.mkdir()
    (root / "dataset.toml").write_text(TOML)
    for name in ("custom", "three", "mine"):
        spec = specs.spec_of(name, root)
        assert (spec.name, spec.C, spec.codes, spec.mpp) == (
            "three",
            3,
            {7: 0, 8: 1, 9: 2, 10: 2},
            0.5,
        )
        assert spec.palette[3] == (255, 255, 255) and spec.spelling == "" and spec.counts == {}
    with pytest.raises(
        ValueError, match="describes 'three', not 'other': pass dataset='three' or 'custom'"
    ):
        specs.spec_of("other", root)


@pytest.mark.parametrize(
    "old, new, message",
    [
        ('name = "three"', "", "missing name; unknown nothing"),
        ("mpp", "micrometres", "unknown micrometres; expected name, classes"),
        ('"second", ', "", "titles is .*; expected 3 names, one per class"),
        ("[0, 0, 255], ", "", r"palette is .*; expected 4 different"),
        ("[0, 0, 255], ", "[0, 255, 0], ", r"palette is .*; expected 4 different"),
        ("9 = 2, 10 = 2", "9 = 1", r"every class 0..2 and no other"),
        ("10 = 2", "256 = 2", r"mask value 0..255"),
        ("three", "a b", "name is 'a b'; expected letters"),
        ("codes =", "codes", "is not valid TOML"),
        (
            "mpp =",
            "ignored = [0, 9]\nmpp =",
            r"ignored is \(0, 9\); expected values 0..255 that are none of codes",
        ),
        (
            "mpp =",
            'regions = { labels = ".tif", seed = "s" }\nmpp =',
            "regions is .*; expected labels '.png' or '.txt'",
        ),
        (
            "mpp =",
            'regions = { labels = ".png", steps = 3 }\nmpp =',
            "regions: missing seed; unknown steps; expected labels, seed, size",
        ),
        ('["A", "B", "D"]', "[]", r"classes is \(\); expected 2 to 254 different names"),
        ('["A", "B", "D"]', '["A"]', r"classes is \('A',\); expected 2 to 254"),
        ('["A", "B", "D"]', '["A", "B", "A"]', r"classes is \('A', 'B', 'A'\); expected 2 to 254"),
        ('["A", "B", "D"]', '["A", "", "D"]', "classes is .*; expected 2 to 254"),
        ('["A", "B", "D"]', "[1, 2, 3]", "classes is .*; expected 2 to 254"),
        ('["A", "B", "D"]', '"ABD"', "classes is 'ABD'; expected a list"),
        ('"B", "D"]', '"B", "D", "E"]', "titles is .*; expected 4 names"),
        (
            '"B", "D"]\ntitles = ["first", ',
            '"B", "D", "E"]\ntitles = ["zeroth", "first", ',
            r"palette is .*; expected 5 different \[r, g, b\] .* one per class, then ignore",
        ),
        ("[0, 0, 255], ", "[0, 0, 256], ", r"palette is .*; expected 4 different"),
        ("[0, 0, 255], ", '"blue", ', r"palette holds 'blue'; expected \[r, g, b\]"),
        ("7 = 0", "seven = 0", "'seven' in codes or ignored; expected a mask value 0..255"),
        ("7 = 0", "07 = 0", "'07' in codes or ignored; expected a mask value 0..255"),
        ("7 = 0", f"{'9' * 5000} = 0", "'9{59} in codes or ignored; expected a mask value 0..255"),
        ("mpp = 0.5", f"mpp = 0x{'f' * 5000}", "dataset.toml is not .* number has more than 64"),
        ("7 = 0", "7 = 'A'", "codes: 7 is 'A'; expected a whole number"),
        ("mpp =", "ignored = [[0]]\nmpp =", r"\[0\] in codes or ignored; expected a mask value"),
        ("[0, 0, 255], ", "[0, [0], 255], ", r"palette holds \[0, \[0\], 255\]; expected"),
        (r"'s\d+'", "'s('", r"slide is 's\('; expected a regular expression"),
        ("mpp = 0.5", "mpp = true", "mpp is True; expected a number"),
        ("mpp =", "counts = { train = 3 }\nmpp =", "counts has train = 3; expected train, val"),
    ],
)
def test_dataset_toml_errors_name_the_key(tmp_path, old, new, message):
    (tmp_path / "dataset.toml").write_text(TOML.replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        specs.spec_of("custom", tmp_path)


def test_unknown_data_set_and_phantom_with_a_folder(tmp_path):
    with pytest.raises(
        ValueError, match="'tiger' is not known. Known: phantom, bcss-wsss, luad-histoseg"
    ):
        specs.spec_of("tiger", tmp_path)
    with pytest.raises(ValueError, match="'phantom' is drawn, but data_root is"):
        specs.spec_of("phantom", tmp_path)
    assert (
        specs.spec_of("phantom", "") is specs.spec_of("phantom", Path("")) is specs.SPECS["phantom"]
    )
    with pytest.raises(ValueError, match="read from a folder: pass data_root"):
        specs.check_layout(BCSS, "")


# labels


@pytest.mark.parametrize(
    "name, label",
    [
        ("TCGA-A1-A0SK-DX1_xmin45749_ymin25055_MPP-0.2500+104[1101].png", (1, 1, 0, 1)),
        ("1031280-2300-27920-[1 0 0 1].png", (1, 0, 0, 1)),
        ("x[1101].png.png", (1, 1, 0, 1)),
        ("old [2]/a[0000]/x[1][0100].png", (0, 1, 0, 0)),
        ("part00-0-[1 1 0].png", (1, 1, 0)),
        ("x[1].png", (1,)),
        ("x[01010101010].png", (0, 1) * 5 + (0,)),
    ],
)
def test_parse_label_both_spellings(name, label):
    assert specs.parse_label(name, len(label)) == label


def test_parse_label_errors_teach():
    with pytest.raises(
        ValueError, match=r"4 digits, expected 3.*bcss-wsss, luad-histoseg.*dataset.toml"
    ):
        specs.parse_label("x[1101].png", 3)
    with pytest.raises(ValueError, match="3 digits, expected 4.*with 3: none"):
        specs.parse_label("x[1 0 1].png", 4)
    for name in ("x.png", "[1101]/x.png", "x[12].png", "x[].png", "x[1101][a].png"):
        with pytest.raises(ValueError, match="no label in"):
            specs.parse_label(name, 4)


# folders


@pytest.mark.parametrize("train", ["train", "training", "train/img", "training/img"])
@pytest.mark.parametrize("val", ["val", "valid"])
@pytest.mark.parametrize("masked", [False, True])
def test_every_folder_variant(folder, train, val, masked):
    (folder / "training").rename(folder / "moved")
    (folder / train).parent.mkdir(exist_ok=True)
    shutil.move(folder / "moved", folder / train)
    (folder / "valid").rename(folder / val)
    beside = folder / train.split("/")[0] / "mask"
    for name in TRAIN if masked else ():
        write_mask(beside / name)
    write_image(folder / val / "img" / "._hidden.png", 0)  # left by macOS in archives
    layouts = specs.check_layout(BCSS, folder)
    assert list(layouts) == ["train", "val", "test"]
    assert layouts["train"].ids == sorted(name.removesuffix(".png") for name in TRAIN)
    assert [path.parent for path in layouts["train"].images] == [folder / train] * 3
    assert layouts["train"].masks == (
        [beside / path.name for path in layouts["train"].images] if masked else []
    )
    assert layouts["val"].ids == ["TCGA-BH-A0BL-DX1_xmin1_ymin2_MPP-0.2500+0"]
    assert [path.name for path in layouts["val"].masks] == [
        path.name for path in layouts["val"].images
    ]


def test_png_twice_in_the_name_pairs_with_once(folder):
    image = next((folder / "test" / "img").iterdir())
    image.rename(image.with_name(image.name + ".png"))
    assert specs.check_layout(BCSS, folder)["test"].ids == [image.stem]
    write_image(image, 1)
    with pytest.raises(ValueError, match="the same patch twice"):
        specs.check_layout(BCSS, folder)


def test_layout_errors_show_found_and_expected(folder):
    shutil.move(folder / "test" / "mask", folder / "test" / "masks")
    with pytest.raises(
        ValueError,
        match=r"(?s)test: 1 images without a mask and 0 masks without an image, "
        r"first 'TCGA-D8.*Found:.*  test/masks/   1 PNG files.*Expected:.*test/ +img",
    ):
        specs.check_layout(BCSS, folder)
    shutil.copytree(folder / "training", folder / "train")
    with pytest.raises(ValueError, match="train: 2 of .* hold PNG files, not one"):
        specs.check_layout(BCSS, folder)
    with pytest.raises(ValueError, match="(?s)train: 0 of .*Found:\n  no folder\nExpected:"):
        specs.check_layout(BCSS, folder / "nowhere")


def test_a_foreign_label_spelling_is_refused(folder):
    path = folder / "training" / next(iter(TRAIN))
    path.rename(path.with_name("1031280-2300-27920-[1 0 0 1].png"))
    with pytest.raises(
        ValueError, match=r"1\].png' is spaced, that of bcss-wsss is joined.*dataset='luad-hist"
    ):
        specs.check_layout(BCSS, folder)
    either = dataclasses.replace(BCSS, spelling="")
    assert "1031280-2300-27920-[1 0 0 1]" in specs.check_layout(either, folder)["train"].ids


# reading


def test_train_items(folder, load):
    d = load()
    assert len(d) == 3 and d.masks is None and d.subtypes is None
    assert d.images.shape == (3, 32, 32, 3) and [int(v) for v in d.images[:, 5, 5, 0]] == [
        10,
        20,
        30,
    ]
    assert (
        d.labels.tolist() == [[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]]
        and d.labels.dtype == np.uint8
    )
    assert d.single_class().tolist() == [0, 2]
    assert d.slides == ["TCGA-A1-A0SK-DX1"] * 2 + ["TCGA-A2-A0CM-DX1"]
    assert d.patients == ["TCGA-A1-A0SK"] * 2 + ["TCGA-A2-A0CM"]
    item = d[1]
    assert set(item) == {"image", "label", "index"} and item["index"] == 1
    assert (
        torch.equal(item["image"], torch.full((3, 32, 32), 20, dtype=torch.uint8))
        and item["image"].is_contiguous()
    )
    assert torch.equal(item["label"], torch.tensor([0.0, 1.0, 1.0, 0.0]))
    write_image(folder / "training" / "TCGA-A1-A0SK-DX1+00[0000].png", 0)  # white only: of no class
    assert load().labels.sum(1).tolist() == [0, 1, 2, 1] and load().single_class().tolist() == [
        1,
        3,
    ]


def test_masks_by_code_at_their_own_size_and_labels_by_any_pixel(load):
    d = load("val")
    assert np.array_equal(d.masks[0], MASK)
    assert d.labels.tolist() == [[1, 1, 0, 1]] and "mask" not in d[0]


def test_mask_in_the_item_where_it_has_the_size_of_the_image(folder, load):
    big = np.kron(PLAN, np.ones((8, 8), np.uint8))
    for name in TRAIN:
        write_image(folder / "training" / name, 5, size=32)
        write_mask(folder / "training" / "mask" / name, big)
    for split in ("valid", "test"):
        for path in (folder / split / "img").iterdir():
            write_image(path, 5, size=32), write_mask(path.parent.parent / "mask" / path.name, big)
    d = load()
    assert torch.equal(d[2]["mask"], torch.from_numpy(big.astype(np.int64)))
    assert d.labels.tolist() == [[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]]  # still of the names
    assert "mask" not in load(size=48)[2]


def test_custom_codes_and_colour_masks(folder, load):
    (folder / "dataset.toml").write_text(TOML)
    for path in (folder / "training").iterdir():
        path.unlink()
    write_image(folder / "training" / "p1-s10-[1 1 0].png", 1)
    index = np.kron([[7, 8], [9, 10]], np.ones((8, 8))).astype(np.uint8)
    colour = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8)
    colour = colour.repeat(8, axis=0).repeat(8, axis=1)
    for split, mask in (("valid", index), ("test", colour)):
        for path in (folder / split / "img").iterdir():
            write_image(path, 2)
            Image.fromarray(mask).save(folder / split / "mask" / path.name)  # modes L and RGB
    val, test = load("val", dataset="custom"), load("test", dataset="custom")
    assert val.masks[0][::8, ::8].tolist() == [[0, 1], [2, 2]]
    assert test.masks[0][::8, ::8].tolist() == [[0, 1], [2, 3]]
    assert (load(dataset="custom").slides, load(dataset="custom").patients) == (["s10"], ["p1"])
    colour[0, 0] = 254, 0, 0
    Image.fromarray(colour).save(next((folder / "test" / "mask").iterdir()))
    with pytest.raises(
        ValueError, match=r"1 colours outside the palette of three, first \(254, 0, 0\)"
    ):
        load("test", dataset="custom")


def test_an_indexed_mask_keeps_its_values_and_shows_their_colours(tmp_path):
    pictures.indexed(PLAN, BCSS.palette).save(tmp_path / "a.png")
    read = Image.open(tmp_path / "a.png")
    assert read.mode == "P" and (np.asarray(read) == PLAN).all()
    assert (np.asarray(read.convert("RGB")) == np.array(BCSS.palette)[PLAN]).all()


def test_images_are_resized_with_antialiasing(folder, load):
    stripes = np.zeros((128, 128, 3), np.uint8)
    # one pixel wide: without antialiasing 32 px would show only one of the two colours
    stripes[:, ::2] = 200
    for path in folder.rglob("*.png"):
        if path.parent.name == "mask":
            write_mask(path, np.kron(PLAN, np.ones((32, 32), np.uint8)))
        else:
            Image.fromarray(stripes).save(path)
    centre = load().images[0, 8:24, 8:24].astype(int)
    assert abs(centre - 100).max() <= 8


def test_errors_of_files_name_them(folder, load, tmp_path):
    mask = next((folder / "test" / "mask").iterdir())
    write_mask(mask, MASK[:8, :8])
    with pytest.raises(
        ValueError, match=r"mask.*D8.*: mask size: 8 x 8 px, its image is 16 x 16 px.*Nothing was"
    ):
        load("test")
    write_image(folder / "test" / "img" / "z.png", 1, size=32)
    write_mask(mask), write_mask(folder / "test" / "mask" / "z.png", MASK.repeat(2, 0).repeat(2, 1))
    with pytest.raises(ValueError, match=r"z.png: size: 32 x 32 px, most are 16 x 16 px"):
        load("train")  # whatever is read of it, the whole set is checked
    (folder / "test" / "img" / "z.png").unlink(), (folder / "test" / "mask" / "z.png").unlink()
    image = folder / "training" / next(iter(TRAIN))
    whole = image.read_bytes()
    image.write_bytes(whole[:-30])
    with pytest.raises(ValueError, match=r"\+0\[1000\].png: unreadable: "):
        load()
    Image.fromarray(np.zeros((16, 24, 3), np.uint8)).save(image)
    with pytest.raises(ValueError, match="size: 24 x 16 px, most are 16 x 16 px"):
        load()
    image.write_bytes(whole)
    write_mask(next((folder / "valid" / "mask").iterdir()), np.full((16, 16), 4, np.uint8))
    with (
        pytest.warns(match="1 masks show no class at all"),
        pytest.raises(ValueError, match="no patch of bcss-wsss val shows any class: do the codes"),
    ):
        load("val")
    # nothing half made is left
    assert [p.name[:8] for p in (tmp_path / "cache").iterdir()] == ["checked-"]


def test_what_is_decoded_is_checked_again(folder, load, tmp_path, monkeypatch):
    """The folder may change between the check and the work."""
    monkeypatch.setattr(checks, "guard", lambda spec, root, cache: specs.check_layout(spec, root))
    mask = next((folder / "test" / "mask").iterdir())
    write_mask(mask, MASK[:8, :8])
    with pytest.raises(
        ValueError, match=r"mask.*D8.* is 8 x 8 px and its image .*img.*D8.* is 16 x 16 px"
    ):
        load("test")
    write_image(folder / "test" / "img" / "z.png", 1, size=32)
    write_mask(mask), write_mask(folder / "test" / "mask" / "z.png", MASK.repeat(2, 0).repeat(2, 1))
    with pytest.raises(
        ValueError, match=r"z.png is 32 x 32 px but .*D8.* is 16 x 16 px: cut the patches"
    ):
        load("test")
    image = folder / "training" / next(iter(TRAIN))
    whole = image.read_bytes()
    image.write_bytes(whole[:-30])
    with pytest.raises(ValueError, match=r"\+0\[1000\].png: cannot be decoded"):
        load()
    Image.fromarray(np.zeros((16, 24, 3), np.uint8)).save(image)
    with pytest.raises(ValueError, match="is 24 x 16 px: patches must be square"):
        load()
    write_mask(next((folder / "valid" / "mask").iterdir()), np.full((16, 16), 9, np.uint8))
    with pytest.raises(ValueError, match="256 pixels of 9: no code of bcss-wsss"):
        load("val")
    assert list((tmp_path / "cache").iterdir()) == []  # nothing half made is left


@pytest.mark.parametrize("size", [0, 16, 100, 528, -32])
def test_sizes_and_splits(load, size):
    with pytest.raises(
        ValueError, match=f"size {size} does not fit.*multiple of 16 from 32 to 512"
    ):
        load(size=size)
    with pytest.raises(ValueError, match="split 'valid' is none of train, val, test"):
        load("valid")


# the folder is listed once


@pytest.fixture
def listed(folder, monkeypatch):
    """The folders that are listed, in order."""
    seen, pngs = [], specs.pngs
    monkeypatch.setattr(specs, "pngs", lambda place: seen.append(place) or pngs(place))
    monkeypatch.setattr(specs, "_checked", {})
    return seen


def age(folder, seconds):
    for place in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        then = time.time() - seconds
        os.utime(place, (then, then))


def test_a_folder_is_listed_once_for_all_splits(folder, load, listed):
    age(folder, 60)
    first = load()
    once = len(listed)
    assert len(set(listed)) == once  # no folder twice, within one look
    for split in specs.SPLITS:
        load(split)
    assert load(size=48).ids == first.ids and len(listed) == once


@pytest.mark.parametrize("split", ["training", "valid/img", "test/img"])
def test_a_folder_that_changed_is_listed_again(folder, load, listed, split):
    age(folder, 60)
    load()
    once = len(listed)
    write_image(folder / split / "new[1000].png", 1)
    if split == "training":
        assert len(load()) == len(TRAIN) + 1 and len(listed) > once
    else:
        with pytest.raises(ValueError, match="1 images without a mask"):
            load()


def test_a_folder_that_may_still_change_is_listed_each_time(folder, load, listed):
    """Two changes within one tick of the clock have one time: only an old time is to be trusted."""
    load()
    once = len(listed)
    load()
    assert len(listed) == 2 * once


def test_the_answer_for_one_data_set_is_not_anothers(folder, load, listed):
    age(folder, 60)
    load()
    with pytest.raises(ValueError, match="is joined, that of luad-histoseg is spaced"):
        load(dataset="luad-histoseg")
    (folder / specs.ARRANGING).write_text("[]")
    with pytest.raises(ValueError, match="arranged in part only"):
        load()


# the cache


def test_cache_is_used_keyed_and_stable(folder, load, tmp_path, monkeypatch):
    first = load()
    with monkeypatch.context() as patch:
        patch.setattr(patches, "_decode", lambda *given: 1 / 0)  # a second decoding would fail
        assert load().fingerprint == first.fingerprint
    assert load(size=48).folder != first.folder
    other = load(cache=tmp_path / "other")
    assert other.folder.name == first.folder.name and other.fingerprint == first.fingerprint
    write_image(folder / "training" / next(iter(TRAIN)), 99)
    assert load().fingerprint != first.fingerprint and load().images[0, 0, 0, 0] == 99


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def rename_patch(path):
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"ids": manifest["ids"][::-1]}))


def drop(path):
    path.unlink()


@pytest.mark.parametrize(
    "name, harm",
    [
        ("images.npy", cut),
        ("images.npy", flip),
        ("masks.npy", flip),
        ("labels.npy", flip),
        ("labels.npy", drop),
        ("manifest.json", cut),
        ("manifest.json", rename_patch),
    ],
)
def test_a_damaged_cache_is_made_again(folder, load, name, harm, recwarn):
    for train in TRAIN:
        write_mask(folder / "training" / "mask" / train)
    before = load()
    recwarn.clear()
    expected = {array: getattr(before, array).tolist() for array in ("images", "masks", "labels")}
    ids, fingerprint = before.ids, before.fingerprint
    harm(before.folder / name)
    after = load()
    assert [
        str(w.message).startswith(f"the cache {before.folder.name} is damaged (") for w in recwarn
    ] == [True]
    assert {array: getattr(after, array).tolist() for array in expected} == expected
    assert (after.ids, after.fingerprint) == (ids, fingerprint)
    load()
    assert len(recwarn) == 1


def test_large_arrays_are_checked_from_end_to_end(load, monkeypatch):
    monkeypatch.setattr(patches, "CHUNK", 64)
    monkeypatch.setattr(patches, "CHECKED", 5)
    d = load()  # 3 * 32 * 32 * 3 bytes = 144 chunks of 64
    stored = json.loads((d.folder / "manifest.json").read_text())["arrays"]["images"]["sha256"]
    assert list(stored) == [str(k) for k in range(144)]
    content = (d.folder / "images.npy").read_bytes()
    head = len(content) - 144 * 64
    # the checked ones are np.linspace(0, 143, 5)
    for chunk, seen in ((0, True), (36, True), (72, True), (107, True), (143, True), (1, False)):
        harmed = bytearray(content)
        harmed[head + chunk * 64] ^= 1
        (d.folder / "images.npy").write_bytes(harmed)
        assert bool(patches._fault(d.folder)) == seen, chunk


def test_another_process_may_finish_first(load, monkeypatch):
    first = load()
    kept = first.folder.with_name("kept")
    first.folder.rename(kept)
    decode = patches._decode

    def slower(*given):
        manifest = decode(*given)
        kept.rename(first.folder)  # the other process is done just before us
        return manifest

    monkeypatch.setattr(patches, "_decode", slower)
    assert load().fingerprint == first.fingerprint
    made = [path.name for path in first.folder.parent.iterdir() if path.is_dir()]
    assert made == [first.folder.name]


def test_pickle_carries_no_pixels(load):
    d = load(size=128)
    sent = pickle.dumps(d)
    assert len(sent) < 4000 < d.images.nbytes and torch.equal(
        pickle.loads(sent)[2]["image"], d[2]["image"]
    )


def test_reading_the_cache_beats_decoding(folder, load):
    noise = np.random.default_rng(0).integers(0, 255, (224, 224, 3), np.uint8)
    for path in folder.rglob("*.png"):
        if path.parent.name == "mask":
            write_mask(path, np.kron(PLAN, np.ones((56, 56), np.uint8)))
        else:
            Image.fromarray(noise).save(path)
    d, spent = load(size=224), {"cache": [], "decode": []}
    assert torch.equal(d[0]["image"], torch.from_numpy(noise.transpose(2, 0, 1).copy()))
    for _ in range(9):
        start = time.perf_counter()
        d[0]
        middle = time.perf_counter()
        np.asarray(Image.open(folder / "training" / next(iter(TRAIN))))
        spent["cache"].append(middle - start), spent["decode"].append(time.perf_counter() - middle)
    assert 4 * min(spent["cache"]) < min(spent["decode"])  # measured: about 15 times


# the phantom


def test_phantom_is_what_was_drawn(tmp_path):
    drawing = phantom.Drawing(5, seed=3)

    def load(given):
        return patches.load("phantom", "val", 64, cache=tmp_path, drawing=given)

    d, drawn = load(drawing), phantom.draw("val", 64, drawing)
    assert d.ids == list(drawn.ids) and d.slides == list(drawn.slides)
    for name in ("images", "masks", "labels", "subtypes"):
        assert np.array_equal(getattr(d, name), getattr(drawn, name)), name
    assert d[4]["mask"].tolist() == drawn.masks[4].tolist()
    changes = {"patches": 4}, {"seed": 4}, {"similarity": 0.9}, {"pure": 0.1}
    others = [load(drawing._replace(**change)) for change in changes]
    assert len({d.fingerprint, *(other.fingerprint for other in others)}) == 5
    with pytest.raises(ValueError, match="patches = 0: pass a whole number from 1"):
        load(phantom.Drawing(0))
    with pytest.raises(ValueError, match=r"pass drawing=phantom.Drawing\(patches\)"):
        load(None)


def test_phantom_folder_reads_back(tmp_path):
    phantom.write_folder(tmp_path / "set", {"train": 2, "val": 2, "test": 1}, 64, 0)
    drawn = {split: phantom.draw(split, 64, phantom.Drawing(2)) for split in ("train", "val")}
    given = {"data_root": tmp_path / "set", "cache": tmp_path / "cache"}
    read = {split: patches.load("bcss-wsss", split, 64, **given) for split in drawn}
    order = np.argsort(drawn["train"].ids)
    assert np.array_equal(read["train"].images, drawn["train"].images[order])
    assert np.array_equal(read["train"].labels, drawn["train"].labels[order])
    assert np.array_equal(read["val"].masks, drawn["val"].masks[np.argsort(drawn["val"].ids)])


# reports


def test_overlap_of_slides_and_patients(folder, load):
    splits = [load(split) for split in specs.SPLITS]
    assert patches.split_overlap(*splits) == (
        {},
        {},
        "Slides: no two splits share one. Patients: no two splits share one.",
    )
    for name in ("TCGA-A1-A0SK-DX1+1.png", "TCGA-A2-A0CM-DX2+1.png", "else.png"):
        write_image(folder / "test" / "img" / name, 1), write_mask(folder / "test" / "mask" / name)
    (
        write_image(folder / "valid" / "img" / "else.png", 1),
        write_mask(folder / "valid" / "mask" / "else.png"),
    )
    found = patches.split_overlap(*(load(split) for split in specs.SPLITS))
    assert found.slides == {"train/test": ["TCGA-A1-A0SK-DX1"]}
    assert found.patients == {"train/test": ["TCGA-A1-A0SK", "TCGA-A2-A0CM"]}
    assert found.sentence == (
        "Slides: train/test share 1 (first: TCGA-A1-A0SK-DX1), not told by 2 of 9 names. "
        "Patients: train/test share 2 (first: TCGA-A1-A0SK), not told by 2 of 9 names."
    )


def test_counts_beside_the_published_ones(load, monkeypatch):
    splits = [load("val"), load("test")]
    assert (
        patches.count_report(*splits)
        == "bcss-wsss: val 1 (published: 3418), test 1 (published: 4986)."
    )
    spec = dataclasses.replace(BCSS, counts={"val": (1, 2), "test": (300, 306)})
    monkeypatch.setitem(specs.SPECS, "bcss-wsss", spec)
    assert patches.count_report(load("train"), load("val"), load("test")) == (
        "bcss-wsss: train 3 (no published count), val 1 (as published), "
        "test 1 (published: 300 or 306)."
    )
