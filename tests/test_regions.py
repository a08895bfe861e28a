"""Regions cut to patches: the rule on hand-made cases, both published formats, resuming, the split
by patient."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from protolib.data import patches, regions, specs

BCSS, MERGED, GCSS, FOUR = (
    specs.SPECS[name] for name in ("bcss", "bcss-merged", "gcss", "gcss-four")
)
# patients whose split the rule gives: see splits/bcss.txt for all
TRAIN, VAL, TEST = "TCGA-A1-A0SP", "TCGA-A2-A0T2", "TCGA-A1-A0SK"
TISSUE, GLASS = (180, 120, 170), (240, 238, 241)


def small(spec, **rule):
    """The spec with patches of 4 px."""
    return specs.DatasetSpec(
        **spec.__dict__ | {"regions": spec.regions._replace(**{"size": 4, "stride": 4} | rule)}
    )


def image_of(height, width, colour=TISSUE):
    return np.full((height, width, 3), colour, np.uint8)


def region(patient, x=1, y=2):
    return f"{patient}-DX1_xmin{x}_ymin{y}_MPP-0.2500"


def write_bcss(root, images="images"):
    """Three regions of 450 x 230 px as published: two windows each; codes 1 | 2, and DCIS, 20,
    below them in train."""
    rng = np.random.default_rng(0)
    for patient in (TRAIN, VAL, TEST):
        codes = np.repeat([[1, 2]], 224, 1).repeat(230, 0).astype(np.uint8)  # (230, 448)
        codes = np.pad(codes, ((0, 0), (0, 2)))
        if patient == TRAIN:
            codes[150:, :224] = 20
        for folder, pixels in (
            (images, rng.integers(90, 200, (230, 450, 3), np.uint8)),
            ("masks", codes),
        ):
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / folder / f"{region(patient)}.png")
    return root


def write_gcss(root, images="", labels=""):
    """Three regions of 224 x 448 px, each an image and a text matrix: -1 and 1 on the left, 3 and 6
    on the right."""
    rng = np.random.default_rng(1)
    names = {"train": "case 1", "val": "case 3", "test": "case 21"}
    codes = np.full((224, 448), -1)
    codes[100:, :224], codes[:, 224:], codes[:10, 224:] = 1, 3, 6
    for name in names.values():
        for folder in (images, labels):
            (root / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(90, 200, (224, 448, 3), np.uint8)).save(
            root / images / f"{name}.png"
        )
        np.savetxt(root / labels / f"{name}.txt", codes, fmt="%d")
    return root


def tree(root):
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))


# the split


def test_the_split_rule():
    seed = "protolib/bcss"
    # printf protolib/bcss/TCGA-A1-A0SP | sha256sum begins b7efabd9: .718 of 2^32; the others
    # 015f93a0 and 1e9809bb
    for patient, fraction, split in (
        (TRAIN, 0.718, "train"),
        (VAL, 0.005, "val"),
        (TEST, 0.1195, "test"),
    ):
        assert ("val" if fraction < 0.1 else "test" if fraction < 0.2 else "train") == split
        assert regions.split_of(seed, patient) == split
    shares = [regions.split_of("s", f"p{i}") for i in range(4000)]
    # three standard deviations, 19, and fixed by the seed
    assert shares.count("val") == pytest.approx(400, abs=60)
    assert shares.count("test") == pytest.approx(400, abs=60)
    assert regions.split_of("another", TRAIN) in specs.SPLITS


def test_the_committed_list_is_what_the_rule_gives(root):
    lines = (root / "protolib" / "data" / "splits" / "bcss.txt").read_text().split("\n")[:-1]
    assert lines == sorted(set(lines)) and len(lines) == 151
    for line in lines:
        patient, split = line.split(" ")
        assert (
            re.fullmatch(BCSS.patient, patient)
            and regions.split_of(BCSS.regions.seed, patient) == split
        )
    assert [sum(line.endswith(split) for line in lines) for split in specs.SPLITS] == [123, 13, 15]


def test_all_reductions_share_a_split_and_nameless_regions_are_patients():
    assert BCSS.regions == MERGED.regions and GCSS.regions == FOUR.regions
    assert regions.patient_of(BCSS, region(VAL)) == VAL
    assert regions.patient_of(GCSS, "case 1") == "case 1"
    assert regions.patient_of(GCSS, "TCGA-BR-4187-01Z-00-DX1_roi") == "TCGA-BR-4187"


# the cut


def test_white_share_of_hand_made_patches():
    half = image_of(4, 4)
    half[:2] = 220
    assert regions.white_share(
        np.stack([image_of(4, 4), half, image_of(4, 4, (255, 219, 255))])
    ).tolist() == [0, 0.5, 0]


def test_white_share_is_the_rule_for_every_value():
    """The least white value stands for the logarithm of the rule, as float32 as it used to be."""
    values = np.arange(256, dtype=np.uint8)
    density = -np.log((values.astype(np.float32) + 1) / 256)
    images = np.broadcast_to(values[:, None, None, None], (256, 1, 1, 3))
    np.testing.assert_array_equal(regions.white_share(images), density < regions.CLEAR)
    noise = np.random.default_rng(0).integers(150, 256, (5, 7, 9, 3), np.uint8)
    slow = [np.mean([pixel.min() >= 220 for row in image for pixel in row]) for image in noise]
    assert regions.white_share(noise).tolist() == slow


def test_white_share_of_rows_in_batches():
    images = np.random.default_rng(1).integers(200, 256, (9, 4, 4, 3), np.uint8)
    rows = np.array([7, 0, 0, 8, 3])
    wanted = regions.white_share(images)
    for batch in (1, 2, 5, 32):
        np.testing.assert_array_equal(regions.white_share(images, rows, batch), wanted[rows])
    assert regions.white_share(images, np.array([], int)).shape == (0,)


def test_cut_by_hand():
    codes = np.zeros((9, 13), np.uint8)
    image = image_of(9, 13)
    codes[:4, :4] = 1  # window (0, 0): all tumour
    codes[:4, 4:8] = 2  # window (4, 0): stroma, one pixel of necrosis, 1/16 >= 3 %
    codes[0, 4] = 4
    codes[:4, 8:10] = 3  # window (8, 0): half ignored, just allowed
    codes[4:8, :4], image[4:8, :4] = 1, GLASS  # window (0, 4): white
    codes[4:6, 4:8] = 1  # window (4, 4): one pixel too many ignored
    codes[4, 4] = 9
    codes[4:8, 8:12], image[4:8, 8:12] = 1, GLASS
    image[4, 8:10] = TISSUE  # window (8, 4): 14 of 16 white, 0.875 <= 0.9
    found = list(regions.cut_region(image, codes, small(BCSS)))
    assert [(p.x, p.y, p.label) for p in found] == [
        (0, 0, (1, 0, 0, 0)),
        (4, 0, (0, 1, 0, 1)),
        (8, 0, (0, 0, 1, 0)),
        (8, 4, (1, 0, 0, 0)),
    ]
    assert found[1].codes.tolist() == codes[:4, 4:8].tolist()
    assert np.array_equal(found[3].image, image[4:8, 8:12])


def test_stride_and_present_against_a_slow_reference():
    rng = np.random.default_rng(3)
    spec = small(MERGED, size=8, stride=3, ignore=0.6, present=0.2, white=0.4)
    codes = np.kron(rng.choice([0, 1, 2, 10, 20, 9], (7, 8)), np.ones((5, 5))).astype(np.uint8)
    image = rng.integers(200, 256, (35, 40, 3), np.uint8)
    expected = []
    for y in range(0, 28, 3):
        for x in range(0, 33, 3):
            classes = [MERGED.codes.get(int(v), 4) for v in codes[y : y + 8, x : x + 8].ravel()]
            white = [(pixel >= 220).all() for pixel in image[y : y + 8, x : x + 8].reshape(-1, 3)]
            if classes.count(4) <= 0.6 * 64 and sum(white) <= 0.4 * 64:
                expected.append((x, y, tuple(int(classes.count(c) >= 0.2 * 64) for c in range(4))))
    assert [p[:3] for p in regions.cut_region(image, codes, spec)] == expected
    assert 30 < len(expected) < 110


def test_a_region_smaller_than_a_patch_gives_none():
    assert list(regions.cut_region(image_of(3, 40), np.ones((3, 40), np.uint8), small(BCSS))) == []


# the published formats


@pytest.mark.parametrize("images", ["images", "rgbs_colorNormalized"])
def test_bcss_as_published(tmp_path, images):
    root = write_bcss(tmp_path / "published", images)
    to = regions.cut(BCSS, specs.check_layout(BCSS, root)["regions"], tmp_path / "patches")
    # stroma is 224 of 224 px wide; of the left train window 74 rows are DCIS, ignored here: 0.33 of
    # it
    name = region(TRAIN)
    assert tree(to) == sorted(
        [
            f"train/{sub}{name}_x{x}_y0+0[{y}].png"
            for sub in ("", "mask/")
            for x, y in ((0, "1000"), (224, "0100"))
        ]
        + [
            f"{split}/{sub}/{region(patient)}_x{x}_y0.png"
            for split, patient in (("val", VAL), ("test", TEST))
            for sub in ("img", "mask")
            for x in (0, 224)
        ]
    )
    with Image.open(to / f"train/mask/{name}_x0_y0+0[1000].png") as mask:
        assert mask.mode == "P" and np.unique(np.asarray(mask)).tolist() == [1, 20]
        assert [
            tuple(mask.getpalette()[3 * code : 3 * code + 3]) for code in (1, 2, 3, 4, 0, 20)
        ] == [*BCSS.palette[:4], (255, 255, 255), (255, 255, 255)]
    right = to / "train" / f"{name}_x224_y0+0[0100].png"
    with Image.open(root / images / f"{name}.png") as whole, Image.open(right) as patch:
        assert np.array_equal(np.asarray(whole)[:224, 224:448], np.asarray(patch))
    record = json.loads((to / "regions.json").read_text())
    assert record["regions"][name] == {"split": "train", "windows": 2, "patches": 2}
    assert (
        record["dataset"] == "bcss"
        and record["rule"]["stride"] == 224
        and not (to / ".cutting").exists()
    )
    layout = specs.check_layout(BCSS, to)
    assert [len(layout[split].ids) for split in specs.SPLITS] == [2, 2, 2] and len(
        layout["train"].masks
    ) == 2


@pytest.mark.parametrize("images, labels", [("", ""), ("images", "labels"), ("ROI/a", "ROI/a")])
def test_gcss_as_published(tmp_path, images, labels):
    root = write_gcss(tmp_path / "published", images, labels)
    (root / "README.txt").write_text("not a matrix")
    for spec, left, right in ((GCSS, "10000", "00100"), (FOUR, "1000", "0100")):
        to = regions.cut(spec, specs.check_layout(spec, root)["regions"], tmp_path / spec.name)
        assert tree(to)[-4:] == [
            f"val/{sub}/case 3_x{x}_y0.png" for sub in ("img", "mask") for x in (0, 224)
        ]
        assert tree(to / "train" / "mask") == [
            f"case 1_x0_y0+0[{left}].png",
            f"case 1_x224_y0+0[{right}].png",
        ]
        with Image.open(to / f"train/mask/case 1_x0_y0+0[{left}].png") as mask:
            assert np.unique(np.asarray(mask), return_counts=True)[1].tolist() == [
                124 * 224,
                100 * 224,
            ]
            assert np.unique(np.asarray(mask)).tolist() == [1, 255]  # -1 is kept as 255


@pytest.mark.parametrize(
    "text, message",
    [
        ("1 2\n3\n", "number of columns changed"),
        ("1 2.5\n3 4\n", "not whole"),
        ("1,2\n3,4\n", "could not convert"),
        (
            "1 2\n3 4\n",
            "case 1.txt is 2 x 2 px and its image case 1.png is 448 x 224 px: they must agree",
        ),
    ],
)
def test_matrices_that_are_none(tmp_path, text, message):
    root = write_gcss(tmp_path)
    (root / "case 1.txt").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        regions.read_region(root / "case 1.png", root / "case 1.txt", GCSS)
    assert "case 1.txt" in str(error.value)


def test_a_matrix_may_be_written_as_floats(tmp_path):
    root = write_gcss(tmp_path)
    whole = regions.read_region(root / "case 1.png", root / "case 1.txt", GCSS)[1]
    # numpy's own format, 1.000000000000000000e+00
    np.savetxt(root / "case 1.txt", np.where(whole == 255, -1, whole))
    assert np.array_equal(
        regions.read_region(root / "case 1.png", root / "case 1.txt", GCSS)[1], whole
    )


def test_layouts_that_do_not_pair(tmp_path):
    root = write_bcss(tmp_path / "b")
    (root / "masks" / f"{region(VAL)}.png").unlink()
    with pytest.raises(
        ValueError, match=f"(?s)1 regions without labels and 0 .*'{region(VAL)}'.*published regions"
    ):
        specs.check_layout(BCSS, root)
    root = write_gcss(tmp_path / "g", "images", "labels")
    (root / "old").mkdir()
    (root / "images" / "case 1.png").rename(root / "old" / "case 3.png")
    with pytest.raises(ValueError, match="have the same name: a region must be there once"):
        specs.check_layout(GCSS, root)
    with pytest.raises(ValueError, match="(?s)train: 0 of .*Expected:.*or rgbs_colorNormalized/"):
        specs.check_layout(BCSS, tmp_path / "nowhere")


# whole, resumed, refused


def test_a_stopped_cut_goes_on(tmp_path, monkeypatch):
    layout = specs.check_layout(BCSS, write_bcss(tmp_path / "published"))["regions"]
    expected = tree(regions.cut(BCSS, layout, tmp_path / "expected"))
    read, calls = regions.read_region, []

    def stopping(image, labels, spec):
        calls.append(image.stem)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return read(image, labels, spec)

    to = tmp_path / "patches"
    monkeypatch.setattr(regions, "read_region", stopping)
    with pytest.raises(KeyboardInterrupt):
        regions.cut(BCSS, layout, to, workers=1)
    # no split is visible yet
    assert [path.name for path in to.iterdir() if not path.name.startswith(".")] == []
    # stopped again, between the last region and the last rename
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", failing_on(to / "test"))
        with pytest.raises(OSError, match="stopped"):
            regions.cut(BCSS, layout, to, workers=1)
    with pytest.raises(ValueError, match="test: 0 of"):
        specs.check_layout(BCSS, to)
    assert tree(regions.cut(BCSS, layout, to, workers=1)) == expected
    assert len(calls) == 4 and len(set(calls)) == 3  # only the one that was stopped was read twice
    assert regions.cut(BCSS, layout, to) == to and len(calls) == 4  # done: nothing is read


def failing_on(target, rename=Path.rename):
    def stopped(self, to):
        if Path(to) == target:
            raise OSError("stopped")
        return rename(self, to)

    return stopped


def test_what_a_cut_refuses(tmp_path):
    root = write_bcss(tmp_path / "published")
    layout = specs.check_layout(BCSS, root)["regions"]
    (tmp_path / "full" / "train").mkdir(parents=True)
    with pytest.raises(ValueError, match="full holds train/ already: pass a new folder"):
        regions.cut(BCSS, layout, tmp_path / "full")
    to = regions.cut(BCSS, layout, tmp_path / "patches")
    with pytest.raises(ValueError, match="other regions or by other rules"):
        regions.cut(MERGED, layout, to)
    with pytest.raises(
        ValueError, match="cut for bcss, and their labels are of its classes: pass dataset='bcss'"
    ):
        specs.check_layout(MERGED, to)
    one = specs.Layout(*(part[:1] for part in layout))
    with pytest.raises(ValueError, match="none of the 1 regions is of a patient in train"):
        regions.cut(BCSS, one, tmp_path / "one")
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(root / "masks" / f"{region(VAL)}.png")
    with pytest.raises(ValueError, match=r"masks.*is 5 x 5 px and its image .* is 450 x 230 px"):
        regions.cut(BCSS, layout, tmp_path / "new")
    Image.fromarray(np.zeros((230, 450, 3), np.uint8)).save(root / "masks" / f"{region(VAL)}.png")
    with pytest.raises(ValueError, match="1 colours outside the palette of bcss"):
        regions.cut(BCSS, layout, tmp_path / "new")


# through data.load


def test_load_cuts_once_and_reads_both_forms(tmp_path, monkeypatch):
    root = write_bcss(tmp_path / "published")

    def load(split, name="bcss", where=root):
        return patches.load(name, split, 64, data_root=where, cache=tmp_path / "cache")

    train, val = load("train"), load("val")
    assert train.labels.tolist() == [[1, 0, 0, 0], [0, 1, 0, 0]] and train.patients == [
        TRAIN,
        TRAIN,
    ]
    areas = np.unique(train.masks[0], return_counts=True)[1]
    assert areas.tolist() == [150 * 224, 74 * 224]  # DCIS is ignored
    assert val.masks.shape == (2, 224, 224) and val.labels.tolist() == [[1, 0, 0, 0], [0, 1, 0, 0]]
    assert patches.split_overlap(train, val, load("test")).patients == {}
    assert (
        patches.count_report(train, val)
        == "bcss: train 2 (published: 30000), val 2 (published: 2500)."
    )
    monkeypatch.setattr(regions, "read_region", None)  # cutting again would fail
    arranged = regions.cut(
        BCSS, specs.check_layout(BCSS, root)["regions"], next(tmp_path.glob("cache/bcss-patches-*"))
    )
    assert np.array_equal(load("train", where=arranged).images, train.images)
    monkeypatch.undo()
    merged = load("train", "bcss-merged")
    assert np.unique(merged.masks[0]).tolist() == [0] and merged.ids == train.ids  # DCIS is tumour


def test_load_gcss(tmp_path):
    root = write_gcss(tmp_path / "published")
    four = patches.load("gcss-four", "test", 64, data_root=root, cache=tmp_path / "cache")
    assert [np.unique(mask).tolist() for mask in four.masks] == [[0, 4], [1, 4]]
    five = patches.load("gcss", "train", 64, data_root=root, cache=tmp_path / "cache")
    assert (
        five.labels.tolist() == [[1, 0, 0, 0, 0], [0, 0, 1, 0, 0]]
        and five.ids[0] == "case 1_x0_y0+0[10000]"
    )
