"""A data set of one's own: what `new` writes is read with the right labels and masks, and what it
cannot know it refuses without a file."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import shapely
from PIL import Image

from protolib.__main__ import main
from protolib.data import patches, phantom, specs
from protolib.data.phantom import Drawing
from protolib.own import annotations, new
from protolib.presets import PRESETS

CLASSES = ("TUM", "STR", "LYM", "NEC")
SPLITS = {"train": 20, "val": 4, "test": 4}
KNOWN = new.Told(classes=CLASSES)


def load(root, split, tmp_path, size=64):
    return patches.load("custom", split, size, cache=tmp_path / "cache", data_root=root)


def tree(root) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def drawn():
    return {split: phantom.draw(split, 64, Drawing(n, 0)) for split, n in SPLITS.items()}


@pytest.fixture
def folder(tmp_path):
    phantom.write_folder(tmp_path / "set", SPLITS, size=64)
    return tmp_path / "set"


def recode(folder, change):
    for path in folder.rglob("mask/*.png"):
        Image.fromarray(change(np.asarray(Image.open(path)))).save(path)


# patches with labels in their names


@pytest.mark.parametrize(
    "change, codes, ignored",
    [
        (lambda mask: mask, (0, 1, 2, 3), (4,)),
        (lambda mask: (mask + 1) % 5, (1, 2, 3, 4), (0,)),  # background first
        (lambda mask: np.where(mask == 4, 255, mask).astype(np.uint8), (0, 1, 2, 3), (255,)),
    ],
    ids=["the last is white", "the first is white", "255"],
)
def test_a_described_folder_is_read_as_it_was_drawn(
    folder, tmp_path, drawn, change, codes, ignored
):
    recode(folder, change)
    made = new.describe("mine", folder, KNOWN)
    assert specs.spec_of("mine", folder) == made.spec and made.spec.spelling == "joined"
    assert tuple(made.spec.codes) == codes and made.spec.ignored == ignored
    for split, truth in drawn.items():
        found = load(folder, split, tmp_path)
        order = np.argsort(truth.ids)
        np.testing.assert_array_equal(found.images, truth.images[order])
        if split == "train":
            np.testing.assert_array_equal(found.labels, truth.labels[order])
            np.testing.assert_array_equal(made.labels, truth.labels[order])
        else:
            np.testing.assert_array_equal(found.masks, truth.masks[order])


def test_the_palette_of_masks_is_kept_and_one_of_greys_is_none(folder):
    colours = [(10, 20, 30), (200, 0, 0), (0, 200, 0), (0, 0, 200), (250, 250, 250)]

    def save(flat):
        for path in folder.rglob("mask/*.png"):
            mask = Image.fromarray(np.asarray(Image.open(path)), mode="P")
            mask.putpalette(flat)
            mask.save(path)

    save([v for colour in colours for v in colour])
    assert new.describe("mine", folder, KNOWN).spec.palette == tuple(colours)
    (folder / "dataset.toml").unlink()
    save([v for i in range(256) for v in (i, i, i)])
    assert new.describe("mine", folder, KNOWN).spec.palette[:2] == ((255, 0, 0), (0, 255, 0))


def test_what_the_masks_mean_is_told_where_it_cannot_be_seen(folder):
    before = tree(folder)
    # the class 0 as white as ignore, 4
    for path in folder.rglob("img/*.png"):
        Image.new("RGB", (64, 64), "white").save(path)
    with pytest.raises(ValueError, match="masks hold 0 to 4 for 4 classes .*: say --codes 0,1,2,3"):
        new.describe("mine", folder, KNOWN)
    assert tree(folder).keys() == before.keys()
    told = new.Told(classes=CLASSES, codes=(1, 2, 3, 4))
    assert new.describe("mine", folder, told).spec.codes == {1: 0, 2: 1, 3: 2, 4: 3}
    (folder / "dataset.toml").unlink()
    recode(folder, lambda mask: mask * 50)
    with pytest.raises(ValueError, match=r"masks hold 0 \(.*%\), 50 .* for 4 classes: say --codes"):
        new.describe("mine", folder, KNOWN)


def test_colours_of_masks_are_told(folder, tmp_path, drawn):
    palette = ((9, 9, 9), (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255))
    recode(folder, lambda mask: np.array(palette, np.uint8)[mask])
    with pytest.raises(ValueError, match=r"masks are in colours: \(0, 0, 255\) \(.*--palette"):
        new.describe("mine", folder, KNOWN)
    new.describe("mine", folder, new.Told(classes=CLASSES, palette=palette))
    found = load(folder, "test", tmp_path)
    np.testing.assert_array_equal(found.masks, drawn["test"].masks[np.argsort(drawn["test"].ids)])


def test_masks_in_a_format_that_smears_them_are_refused(folder):
    path = min((folder / "test" / "mask").iterdir())
    Image.open(path).convert("L").save(path, "JPEG", quality=100)
    with pytest.raises(ValueError, match="is JPEG, which changes values: give PNG"):
        new.describe("mine", folder, KNOWN)


def test_names_are_asked_for_on_a_terminal_and_titles_may_be_given(folder):
    asked = []

    def ask(question):
        asked.append(question)
        return "TUM=tumour, STR, LYM , NEC"

    made = new.describe("mine", folder, new.Told(ask=ask))
    assert made.spec.classes == CLASSES and made.spec.titles == ("tumour", "STR", "LYM", "NEC")
    assert asked == ["Names of the 4 digits of the labels, in their order, separated by commas: "]


@pytest.mark.parametrize(
    "name, told, message",
    [
        ("mine", new.Told(), "0 names of classes for 4 classes; give --classes A,B,C,D"),
        ("mine", new.Told(classes=("A", "B")), "2 names of classes for 4 classes"),
        ("bcss", KNOWN, "'bcss' cannot be the name of a data set of your own"),
        ("my set", KNOWN, "'my set' cannot be the name"),
        ("mine", new.Told(classes=CLASSES, slide="X"), "--slide 'X' finds nothing in 'PH-"),
        ("mine", new.Told(classes=("A", "A", "B", "C")), "classes is .*different names"),
        ("mine", new.Told(classes=CLASSES, codes=(0, 1)), "expected 4 values, one per class"),
        (
            "mine",
            new.Told(classes=CLASSES, codes=(0, 1, 2, 3), ignored=(9,)),
            "masks hold 4, which --codes and --ignored do not name",
        ),
    ],
)
def test_refused_in_a_sentence_and_nothing_is_written(folder, name, told, message):
    before = tree(folder)
    with pytest.raises(ValueError, match=message):
        new.describe(name, folder, told)
    assert tree(folder) == before


def test_nothing_is_written_over(folder):
    new.describe("mine", folder, KNOWN)
    before = tree(folder)
    with pytest.raises(ValueError, match="dataset.toml is there already"):
        new.describe("mine", folder, KNOWN)
    assert tree(folder) == before


def test_labels_of_several_lengths_and_patches_without_one_are_named(folder):
    first = min((folder / "training").iterdir())
    odd = first.with_name("odd[101].png")
    first.rename(odd)
    with pytest.raises(ValueError, match="1 of 3 digits, 19 of 4 digits; expected as many in each"):
        new.describe("mine", folder, KNOWN)
    odd.rename(odd.with_name("odd.png"))
    with pytest.raises(ValueError, match="odd.png has no label in its name, others have"):
        new.describe("mine", folder, KNOWN)


def test_a_folder_of_nothing_says_what_is_expected(tmp_path):
    with pytest.raises(ValueError, match="no training patch with a label .* Expected, for patches"):
        new.describe("mine", tmp_path, KNOWN)
    with pytest.raises(ValueError, match="is no folder"):
        new.describe("mine", tmp_path / "none", KNOWN)


def test_the_text_of_a_spec_is_read_back_whatever_it_holds(tmp_path):
    spec = specs.DatasetSpec(
        name="x",
        classes=('a "b"', "c\\d", "é='"),
        titles=("Gewebe ä", "#", "]"),
        palette=((1, 2, 3), (4, 5, 6), (7, 8, 9), (255, 255, 255)),
        codes={3: 0, 200: 2, 7: 1},
        ignored=(0, 255),
        slide=r"^it's\d+",
        mpp=0.5,
    )
    (tmp_path / "dataset.toml").write_text(new.toml(spec), "utf-8")
    assert specs.spec_of("custom", tmp_path) == spec


# what the method needs


@pytest.mark.parametrize(
    "alone, mixed, wanted",
    [
        ((40, 35), 10, "enough: each class has 30 patches of its own or more"),
        (
            (40, 12),
            10,
            "b has 12 patches of its own, 30 teach at full weight: the matching loss will count "
            "40%; -p single_class=false would stand on 22, less pure",
        ),
        (
            (40, 2),
            10,
            "b has 2 patches of its own and K = 3 wants as many: -p K=2 runs with them; "
            "-p single_class=false counts all that show a class (12 at least), whose prototypes "
            "are then less pure",
        ),
        ((40, 0), 1, "b has 0 patches of its own and K = 3 wants as many: bring more patches of b"),
    ],
)
def test_needs_in_numbers(alone, mixed, wanted):
    labels = np.array([[1, 0]] * alone[0] + [[0, 1]] * alone[1] + [[1, 1]] * mixed)
    a, b, last = new.needs(labels, ("a", "b"), replace(PRESETS["quick"], K=3, enough=30))
    assert a == f"a: {alone[0] + mixed} of {len(labels)} training patches show it, 40 nothing else"
    assert b.endswith(f"{alone[1]} nothing else") and last.startswith(wanted)


# a table of labels


@pytest.fixture
def flat(tmp_path, drawn):
    """Images without labels in their names, masks beside those of val and test."""
    root = tmp_path / "flat"
    for split, truth in drawn.items():
        (root / split / "mask").mkdir(parents=True)
        for name, image, mask in zip(truth.ids, truth.images, truth.masks):
            Image.fromarray(image).save(root / split / f"{name}.png")
            if split != "train":
                Image.fromarray(mask).save(root / split / "mask" / f"{name}.png")
    return root


def table(path, rows):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows(rows)


@pytest.mark.parametrize("words", [False, True], ids=["a column each", "names in one column"])
def test_a_table_of_labels_is_read_as_it_was_drawn(flat, tmp_path, drawn, words):
    rows = [["file", "label"] if words else ["image", "center", *CLASSES]]
    for split, truth in drawn.items():
        for name, label in zip(truth.ids, truth.labels):
            said = ";".join(c for c, shown in zip(CLASSES, label) if shown)
            # images may be called without their ending
            rows.append(
                [f"{split}/{name}.png", said] if words else [f"{split}/{name}", "A", *label]
            )
    table(flat / "labels.csv", rows)
    before = tree(flat)
    made = new.describe("mine", flat, KNOWN, tmp_path / "out")
    assert tree(flat) == before and made.spec.classes == CLASSES
    for split, truth in drawn.items():
        found, order = load(tmp_path / "out", split, tmp_path), np.argsort(truth.ids)
        np.testing.assert_array_equal(found.images, truth.images[order])
        if split == "train":
            np.testing.assert_array_equal(found.labels, truth.labels[order])
        else:
            np.testing.assert_array_equal(found.masks, truth.masks[order])


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda rows: [["x", *rows[0][1:]], *rows[1:]], "has no column named file or filename"),
        (lambda rows: rows + [["train/none.png", *"1000"]], "names 'train/none.png', which is not"),
        (lambda rows: rows + rows[-1:], "2 images of test are called"),
        (lambda rows: [row for row in rows if "val/" not in row[0]], "0 images are in val"),
        (
            lambda rows: [rows[0], [rows[1][0], *"0000"], *rows[2:]],
            "shows no class; remove its row",
        ),
        (lambda rows: [rows[0], [rows[1][0], *"2000"], *rows[2:]], "expected one per class that "),
        (lambda rows: rows[:1], "has no row below its head"),
        (
            lambda rows: [[*rows[0], "split"], *([*row, "trian"] for row in rows[1:])],
            "split 'trian' of 'train/",
        ),
    ],
)
def test_a_table_that_does_not_fit_is_refused(flat, tmp_path, drawn, change, message):
    rows = [["file", *CLASSES]]
    for split, truth in drawn.items():
        rows += [[f"{split}/{n}.png", *map(str, y)] for n, y in zip(truth.ids, truth.labels)]
    table(flat / "labels.csv", change(rows))
    with pytest.raises(ValueError, match=message):
        new.describe("mine", flat, KNOWN, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["flat"]


def test_patches_are_written_to_a_new_folder_only(flat, tmp_path, drawn):
    table(flat / "labels.csv", [["file", "label"]])
    with pytest.raises(ValueError, match="labels stand in labels.csv.*say where, with --out DIR"):
        new.describe("mine", flat, KNOWN)
    with pytest.raises(ValueError, match="flat is there already: give --out a new folder"):
        new.describe("mine", flat, KNOWN, flat)


# annotations of QuPath


def polygon(*corners, holes=(), kind="Tumor", colour=(200, 0, 0), **more):
    ring = [[*corners, corners[0]], *([*hole, hole[0]] for hole in holes)]
    said = {"objectType": "annotation", "classification": {"name": kind, "color": list(colour)}}
    geometry = {"type": "Polygon", "coordinates": ring}
    return {"type": "Feature", "geometry": geometry, "properties": said | more}


def square(x, y, side, **more):
    return polygon((x, y), (x + side, y), (x + side, y + side), (x, y + side), **more)


TUMOUR = square(0, 0, 96, holes=[[(8, 8), (24, 8), (24, 24), (8, 24)]])
# in the tumour, so it is on top though it comes first
STROMA = square(64, 0, 32, kind="Stroma", colour=(0, 160, 0))
LEFT_OUT = square(40, 40, 8, kind="Ignore*")
OTHERS = [
    square(0, 0, 96, kind="Region*"),
    square(0, 0, 5, objectType="detection"),
    square(0, 0, 5, classification=None),
    {
        "type": "Feature",
        "geometry": {"type": "Point", "coordinates": [1, 1]},
        "properties": {"classification": {"name": "Tumor"}},
    },
]


def truth() -> np.ndarray:
    """The codes of a slide of 96 px with these annotations: 0 stroma, 1 tumour, 2 ignore."""
    codes = np.full((96, 96), 1, np.uint8)
    codes[8:24, 8:24] = 2
    codes[:32, 64:] = 0
    codes[40:48, 40:48] = 2
    return codes


@pytest.fixture
def slides(tmp_path):
    root, rng = tmp_path / "slides", np.random.default_rng(0)
    root.mkdir()
    for name in "abcd":
        Image.fromarray(rng.integers(90, 160, (96, 96, 3), np.uint8)).save(root / f"{name}.png")
        features = [STROMA, TUMOUR, LEFT_OUT, *OTHERS]
        text = json.dumps({"type": "FeatureCollection", "features": features})
        (root / f"{name}.geojson").write_text(text)
    return root


def test_annotations_become_patches_masks_and_labels(slides, tmp_path):
    before = tree(slides)
    made = new.describe("mine", slides, new.Told(size=32), tmp_path / "out")
    assert tree(slides) == before
    assert made.spec.classes == ("Stroma", "Tumor") and made.spec.ignored == (2,)
    assert made.spec.palette == ((0, 160, 0), (200, 0, 0), (255, 255, 255))
    assert "left out: 4 annotations of class Region*, no tissue to QuPath" in made.notes
    assert "left out: 4 annotations that are a detection" in made.notes
    assert "left out: 4 annotations without a class" in made.notes
    assert "left out: 4 annotations without an area (points and lines)" in made.notes
    codes, seen = truth(), {}
    for split in specs.SPLITS:
        found = load(tmp_path / "out", split, tmp_path, size=32)
        seen[split] = set(found.slides)
        assert len(found) == 9 * len(seen[split])
        for name, slide, image, mask, label in zip(
            found.ids, found.slides, found.images, found.masks, found.labels
        ):
            x, y = (int(part[1:]) for part in name.split("[")[0].split("_")[1:])
            pixels = np.asarray(Image.open(slides / f"{slide}.png"))
            window = np.s_[y : y + 32, x : x + 32]
            np.testing.assert_array_equal(image, pixels[window])
            np.testing.assert_array_equal(mask, codes[window])
            np.testing.assert_array_equal(label, [(codes[window] == c).any() for c in range(2)])
    # each slide in one split
    assert {split: len(names) for split, names in seen.items()} == {"train": 2, "val": 1, "test": 1}
    assert set().union(*seen.values()) == set("abcd")


def test_regions_lie_on_their_slide_at_their_own_scale(slides, tmp_path):
    """A region exported at half the resolution, from (32, 0) of the slide."""
    for name in "abcd":
        (slides / f"{name}.png").unlink()
        region = Image.fromarray(np.full((32, 32, 3), 120, np.uint8))
        region.save(slides / f"{name} [d=2,x=32,y=0,w=64,h=64].png")
    new.describe("mine", slides, new.Told(size=32), tmp_path / "out")
    for split in specs.SPLITS:
        found = load(tmp_path / "out", split, tmp_path, size=32)
        # pixel (i, j) has its centre at (32 + 2 j + 1, 2 i + 1) of the slide: all borders are even
        wanted = truth()[1:64:2, 33:96:2]
        for name, mask in zip(found.ids, found.masks):
            assert "_x32_y0" in name
            np.testing.assert_array_equal(mask, wanted)


def test_folders_may_be_named_from_where_one_stands(slides, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(slides)
    assert main(["new", "mine", ".", "--size", "32"]) == 2
    assert "labels stand in a.geojson" in capsys.readouterr().err
    assert main(["new", "mine", ".", "--size", "32", "--out", "made"]) == 0
    assert specs.spec_of("mine", "made").classes == ("Stroma", "Tumor")


@pytest.mark.parametrize(
    "change, told, message",
    [
        (lambda root: (root / "a.png").unlink(), {}, "no image for a.geojson: put a.png"),
        (lambda root: (root / "a.geojson").write_text("[1]"), {}, "a.geojson is no GeoJSON as QuP"),
        (lambda root: None, {"classes": ("Stroma", "Fat")}, "nothing is annotated as 'Fat'"),
        (lambda root: None, {"size": 128}, "no patch of 128 px for train: at least half of one"),
        (
            lambda root: [(root / f"{name}.geojson").unlink() for name in "ab"],
            {},
            r"2 annotated slides \(c, d\): train, val and test need one each",
        ),
    ],
)
def test_annotations_that_do_not_do_are_refused(slides, tmp_path, change, told, message):
    change(slides)
    with pytest.raises(ValueError, match=message):
        new.describe("mine", slides, new.Told(**{"size": 32} | told), tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["slides"]


@pytest.mark.parametrize(
    "names, side, message",
    [
        # a quarter of the slide under the slide's name: all but TUMOUR and LEFT_OUT lie beyond it
        (["{}"], 24, "annotations of a lie beyond it: was it exported smaller .*d=4,x=0,y=0,w=96"),
        (["{} [d=2,x=0,y=0,w=96,h=96]"], 96, "96 x 96 px, and its name says 96 x 96 .* at d=2"),
        (
            ["{} [d=2,x=0,y=0,w=64,h=64]", "{} [d=1,x=64,y=0,w=32,h=32]"],
            32,
            "images of several resolutions, d=1 and d=2",
        ),
    ],
)
def test_an_image_that_does_not_lie_where_its_name_says_is_refused(
    slides, tmp_path, names, side, message
):
    for slide in "abcd":
        (slides / f"{slide}.png").unlink()
        for name in names:
            Image.new("RGB", (side, side), (120, 90, 120)).save(
                slides / f"{name.format(slide)}.png"
            )
    with pytest.raises(ValueError, match=message):
        new.describe("mine", slides, new.Told(size=16), tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["slides"]


@pytest.mark.parametrize(
    "said, wanted",
    [
        ({"name": "Tumor", "color": [1, 2, 3]}, ("Tumor", (1, 2, 3))),
        ({"name": "Tumor", "colorRGB": -3670016}, ("Tumor", (200, 0, 0))),  # older: packed ARGB
        ({"names": ["Tumor", "Positive"], "color": [1, 2, 3]}, ("Tumor: Positive", (1, 2, 3))),
        ({}, ("", None)),
    ],
)
def test_classes_in_every_form_of_qupath(said, wanted):
    assert annotations._class_of(said) == wanted


@pytest.mark.parametrize("seed", range(4))
def test_filling_is_asking_each_centre(seed):
    """A star with a hole, partly beyond the image, against one point at a time."""
    rng = np.random.default_rng(seed)
    turns, centre = np.linspace(0, 2 * np.pi, 14, endpoint=False), rng.uniform(20, 140, 2)
    rays = rng.uniform(30, 110, 14)[:, None] * np.stack([np.cos(turns), np.sin(turns)], 1)
    star = shapely.Polygon(centre + rays).difference(shapely.Point(*centre).buffer(15))
    codes = np.zeros((150, 170), np.uint8)
    annotations.fill(codes, star, 7)
    wanted = [
        [7 * star.covers(shapely.Point(x + 0.5, y + 0.5)) for x in range(170)] for y in range(150)
    ]
    np.testing.assert_array_equal(codes, wanted)


# the command


def test_the_command_prints_what_it_wrote_and_what_is_needed(folder, capsys):
    argv = ["new", "mine", str(folder), "--classes", "TUM,STR,LYM,NEC", "--mpp", "0.5"]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert new.toml(specs.spec_of("mine", folder)) in out and "mpp = 0.5" in out
    assert "- train 20, val 4, test 4 patches\n" in out and "training patches show it" in out
    assert f"make run DATASET=mine DATA={folder}" in out
    assert main(argv) == 2
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option, value, message",
    [
        ("--codes", "0,x", "'0,x': give mask values of 0..255, as in 0,1,2"),
        ("--codes", "0,256", "give mask values of 0..255"),
        ("--palette", "ff0000,fff", "give colours as in ff0000,00ff00,ffffff"),
        ("--palette", "red", "give colours as in ff0000"),
    ],
)
def test_options_are_checked(folder, capsys, option, value, message):
    with pytest.raises(SystemExit, match="2"):
        main(["new", "mine", str(folder), option, value])
    assert message in capsys.readouterr().err
