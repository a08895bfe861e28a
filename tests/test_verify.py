"""Every kind of defect, planted in a sound folder of 600 patches: each is found and named, and
nothing else is."""

import os
import shutil
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from data_download import verify
from protolib.data import specs

SPEC = specs.SPECS["bcss-wsss"]
SIZE = 32
SLIDES = {"train": "TCGA-A1-A0S{}-DX1", "val": "TCGA-EW-A1P{}-DX1", "test": "TCGA-D8-A27{}-DX1"}
COUNTS = {"train": 400, "val": 100, "test": 100}


def encoded(pixels, palette=None, form="PNG", **options):
    image = Image.fromarray(pixels, mode="P") if palette else Image.fromarray(pixels)
    if palette:
        image.putpalette([value for colour in palette for value in colour])
    out = BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """600 patches of noise, 4 classes, masks in quarters; val and test with masks, 20 slides a
    split."""
    root, rng = tmp_path_factory.mktemp("sound"), np.random.default_rng(0)
    mask = np.kron([[0, 1], [4, 3]], np.ones((SIZE // 2, SIZE // 2))).astype(np.uint8)
    for split, n in COUNTS.items():
        for folder in [split] if split == "train" else [f"{split}/img", f"{split}/mask"]:
            (root / folder).mkdir(parents=True)
        for i in range(n):
            name = f"{SLIDES[split].format(chr(65 + i % 20))}_xmin1_ymin2_MPP-0.2500+{i}"
            image = encoded(rng.integers(0, 200, (SIZE, SIZE, 3), np.uint8), compress_level=1)
            if split == "train":
                (root / split / f"{name}[{'1000 0100 0011 1111'.split()[i % 4]}].png").write_bytes(
                    image
                )
            else:
                (root / split / "img" / f"{name}.png").write_bytes(image)
                (root / split / "mask" / f"{name}.png").write_bytes(encoded(mask, SPEC.palette))
    (root / "Readme.txt").write_text("published beside")
    (root / "train" / ".DS_Store").write_bytes(b"left by an archive")
    return root


@pytest.fixture
def folder(sound, tmp_path):
    """A copy that may be harmed; files are linked, and unlinked before they are written."""
    shutil.copytree(sound, tmp_path / "data", copy_function=os.link)
    return tmp_path / "data"


def image(folder, i, split="train"):
    """The image of this number."""
    return next(
        folder.glob(f"train/*+{i}[[]*.png" if split == "train" else f"{split}/img/*+{i}.png")
    )


def mask_of(path):
    return path.parent.parent / "mask" / path.name


def put(path, content):
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


def renamed(path, name):
    return path.rename(path.with_name(name))


def pixels(path):
    with Image.open(path) as opened:
        return np.array(opened)


# each plants one defect in the patch of number i and gives the file that must be named


def truncated(folder, i):
    return put(path := image(folder, i), path.read_bytes()[:-40])


def cut_in_half(folder, i):
    return put(path := mask_of(image(folder, i, "val")), path.read_bytes()[:60])


def empty(folder, i):
    return put(image(folder, i, "test"), b"")


def quota_page(folder, i):
    return put(image(folder, i), b"<!DOCTYPE html><html><title>Quota exceeded</title>")


def one_bit(folder, i):
    content = bytearray((path := image(folder, i)).read_bytes())
    content[len(content) // 2] ^= 1
    return put(path, bytes(content))


def jpeg(folder, i):
    return put(path := image(folder, i), encoded(pixels(path), form="JPEG"))


def bytes_behind(folder, i):
    return put(path := image(folder, i), path.read_bytes() + b"more")


def grey(folder, i):
    return put(path := image(folder, i, "val"), encoded(pixels(path)[..., 0]))


def see_through(folder, i):
    return put(
        path := image(folder, i),
        encoded(np.dstack([pixels(path), np.full((SIZE, SIZE), 90, np.uint8)])),
    )


def larger(folder, i):
    return put(
        path := image(folder, i), encoded(np.kron(pixels(path), np.ones((2, 2, 1), np.uint8)))
    )


def oblong(folder, i):
    return put(path := image(folder, i), encoded(pixels(path)[:-1]))


def mask_of_another_size(folder, i):
    return put(
        mask_of(image(folder, i, "test")),
        encoded(np.zeros((SIZE // 2, SIZE // 2), np.uint8), SPEC.palette),
    )


def foreign_code(folder, i):
    changed = pixels(path := mask_of(image(folder, i, "test")))
    changed[3, 4] = 5
    return put(path, encoded(changed, (*SPEC.palette, (9, 9, 9))))


def foreign_palette(folder, i):
    palette = [(1, 2, 3), *SPEC.palette[1:]]
    return put(path := mask_of(image(folder, i, "val")), encoded(pixels(path), palette))


def foreign_colour(folder, i):
    colours = np.array(SPEC.palette, np.uint8)[pixels(path := mask_of(image(folder, i, "val")))]
    colours[0, 0] = 254, 0, 0
    return put(path, encoded(colours))


def photo_as_mask(folder, i):
    return put(mask_of(path := image(folder, i, "val")), path.read_bytes())


def mask_of_bits(folder, i):
    out = BytesIO()
    Image.fromarray(pixels(path := mask_of(image(folder, i, "val"))) > 0).save(out, "PNG")
    return put(path, out.getvalue())


def black(folder, i):
    return put(image(folder, i), encoded(np.zeros((SIZE, SIZE, 3), np.uint8)))


def glass_with_a_class(folder, i):
    return put(image(folder, i, "test"), encoded(np.full((SIZE, SIZE, 3), 243, np.uint8)))


def no_label(folder, i):
    return renamed(path := image(folder, i), path.name.replace("[", "(").replace("]", ")"))


def five_digits(folder, i):
    return renamed(path := image(folder, i), path.name.replace("]", "0]"))


def spaced(folder, i):
    path = image(folder, i)
    return renamed(path, path.name[:-10] + "[" + " ".join(path.name[-9:-5]) + "].png")


def no_class(folder, i):
    path = image(folder, i)
    return renamed(path, path.name[: path.name.index("[")] + "[0000].png")


def without_mask(folder, i):
    mask_of(path := image(folder, i, "val")).unlink()
    return path


def without_image(folder, i):
    (path := image(folder, i, "test")).unlink()
    return mask_of(path)


def same_in_test_and_train(folder, i):
    return put(image(folder, i), image(folder, i, "test").read_bytes())


def same_pixels_in_val_and_train(folder, i):
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "other bytes, the same pixels")
    return put(
        image(folder, i), encoded(pixels(image(folder, i, "val")), pnginfo=info, compress_level=9)
    )


def same_twice(folder, i):
    return put(image(folder, i + 1), image(folder, i).read_bytes())


def same_name_twice(folder, i):
    return put((path := image(folder, i)).with_name(path.name + ".png"), path.read_bytes())


def foreign_name(folder, i):
    return renamed(image(folder, i), "1031280-2300-27920-[1000].png")


def other_file(folder, i):
    return put(
        folder / "val" / "img" / "patch.jpg", encoded(np.zeros((4, 4, 3), np.uint8), form="JPEG")
    )


def wrong_folder(folder, i):
    path = image(folder, i)
    (folder / "train" / "extra").mkdir()
    return path.rename(folder / "train" / "extra" / path.name)


def dead_link(folder, i):
    path = image(folder, i)
    path.unlink()
    path.symlink_to("nowhere.png")
    return path


DEFECTS = {
    truncated: "unreadable",
    cut_in_half: "unreadable",
    empty: "unreadable",
    quota_page: "unreadable",
    one_bit: "unreadable",
    dead_link: "unreadable",
    jpeg: "not PNG",
    bytes_behind: "bytes after end",
    grey: "mode",
    see_through: "mode",
    larger: "size",
    oblong: "size",
    mask_of_another_size: "mask size",
    foreign_code: "code",
    foreign_palette: "palette",
    foreign_colour: "colour",
    photo_as_mask: "colour",
    mask_of_bits: "code",
    black: "blank",
    glass_with_a_class: "blank",
    no_label: "label",
    five_digits: "label",
    spaced: "spelling",
    no_class: "no class",
    without_mask: "no mask",
    without_image: "no image",
    same_in_test_and_train: "leak",
    same_pixels_in_val_and_train: "leak",
    same_twice: "duplicate",
    same_name_twice: "named twice",
    foreign_name: "name",
    other_file: "other image",
    wrong_folder: "not read",
}


def test_no_false_alarm_on_the_sound_folder(sound):
    report = verify.verify("bcss-wsss", sound)
    assert report.rows == [] and report.ok and report.counts == COUNTS
    assert report.notes == [
        "train has 400 patches, published are 23422",
        "val has 100 patches, published are 3418",
        "test has 100 patches, published are 4986",
        "training labels have LYM, and no mask does: do the codes fit?",
    ]
    assert report.table().startswith(
        f"bcss-wsss in {sound}: train 400, val 100, test 100; no defects\n  note: train "
    )


def test_every_planted_defect_is_found_and_nothing_else(folder):
    planted = {
        (kind, plant(folder, 2 * i).relative_to(folder).as_posix())
        for i, (plant, kind) in enumerate(DEFECTS.items())
    }
    before = {
        path: path.is_symlink() or path.read_bytes()
        for path in folder.rglob("*")
        if not path.is_dir()
    }
    report = verify.verify("bcss-wsss", folder)
    assert {row[0:3:2] for row in report.rows} == planted and len(report.rows) == len(DEFECTS) == 33
    assert not report.ok and "; 33 defects\n" in report.table()
    fixed = verify.verify("bcss-wsss", folder, fix=True)
    assert fixed.ok and {row.name for row in fixed.rows} == {name for _, name in planted}
    aside = folder / "quarantine"
    for path in fixed.moved:  # nothing is lost: each stands below quarantine as it stood before
        kept = aside / path.relative_to(folder)
        assert before.pop(path) == (kept.is_symlink() or kept.read_bytes())
    assert all(path.exists() for path in before)
    again = verify.verify("bcss-wsss", folder, fix=True)
    assert again.rows == again.moved == [] and again.ok
    specs.check_layout(SPEC, folder)


def test_a_second_repair_overwrites_nothing(folder):
    name = image(folder, 0)
    for text in (b"first", b"second"):
        name = put(name, text)
        verify.verify("bcss-wsss", folder, fix=True)
    aside = folder / "quarantine" / "train"
    assert {path.name: path.read_bytes() for path in aside.iterdir()} == {
        name.name: b"first",
        f"{name.name}.2": b"second",
    }


def test_slides_and_patients_in_two_splits(folder):
    test_slide = image(folder, 0, "test").name[:16]
    path = image(folder, 4)
    renamed(path, path.name.replace(path.name[:16], test_slide))
    path = image(folder, 5)
    renamed(path, path.name.replace(path.name[:16], test_slide[:12] + "-DX9"))
    report = verify.verify("bcss-wsss", folder, fix=True)
    assert [row[:4] for row in report.rows] == [
        ("slide", "train/test", test_slide, "1 patches in train, 5 in test"),
        ("patient", "train/test", test_slide[:12], "2 patches in train, 5 in test"),
    ]
    assert not report.ok and report.moved == []  # whose these are is a choice


def test_counts_that_were_promised(folder):
    image(folder, 3).unlink()
    assert verify.verify("bcss-wsss", folder).ok
    report = verify.verify("bcss-wsss", folder, counts=COUNTS)
    assert [row[:4] for row in report.rows] == [
        ("count", "train", "train", "399 patches, expected 400")
    ]
    (folder / "dataset.toml").write_text(
        "\n".join(
            [
                'name = "own"',
                f"classes = {list(SPEC.classes)}",
                f"titles = {list(SPEC.titles)}",
                f"palette = {[list(colour) for colour in SPEC.palette]}",
                "codes = { 0 = 0, 1 = 1, 2 = 2, 3 = 3 }",
                "ignored = [4]",
                "counts = { train = [399], val = [99, 101] }",
            ]
        )
    )
    report = verify.verify("custom", folder)
    assert [row[:4] for row in report.rows] == [
        ("count", "val", "val", "100 patches, expected 99 or 101")
    ]
    assert report.notes == ["training labels have LYM, and no mask does: do the codes fit?"]


def test_folders_that_are_none(folder):
    shutil.move(folder / "val", folder / "vla")
    shutil.copytree(folder / "train", folder / "training")
    report = verify.verify("bcss-wsss", folder, fix=True)
    found = [(row.kind, row.split) for row in report.rows if row.kind != "not read"]
    assert found == [("layout", "train"), ("layout", "val")]
    assert sum(row.kind == "not read" for row in report.rows) == 600  # 400 in training, 200 in vla
    assert report.moved == [] and not report.ok  # the folders are wrong, not the files
    assert "  not read        and 590 more\n" in report.table()


def test_label_and_mask_that_cannot_both_be_right(folder):
    for i, path in enumerate(sorted(folder.glob("train/*.png"))):
        label = path.name[-9:-5]
        put(
            path.parent / "mask" / path.name,
            encoded(np.full((SIZE, SIZE), 4 if i else label.index("1"), np.uint8)),
        )
    first = sorted(folder.glob("train/*.png"))[0]
    put(
        first.parent / "mask" / first.name,
        encoded(np.full((SIZE, SIZE), 1 - first.name[-9:-5].index("1"), np.uint8)),
    )
    rows = verify.verify("bcss-wsss", folder).rows
    name = f"train/{first.name}"
    assert [row[3] for row in rows if row.name == name] == [
        "the label has TUM, the mask has none",
        "100% of the mask is STR, the label has none",
    ]
    assert {row.kind for row in rows} == {"label or mask"}


def test_published_regions(tmp_path):
    rng = np.random.default_rng(0)
    for patient in ("TCGA-A1-A0SP", "TCGA-A2-A0T2", "TCGA-A1-A0SK", "TCGA-A2-A04P"):
        for folder, values in (
            ("images", rng.integers(0, 255, (20, 30, 3))),
            ("masks", rng.integers(0, 22, (20, 30))),
        ):
            put(
                tmp_path / folder / f"{patient}-DX1_xmin1_ymin2_MPP-0.2500.png",
                encoded(values.astype(np.uint8)),
            )
    report = verify.verify("bcss", tmp_path)
    assert report.ok and report.rows == [] and report.counts == {"regions": 4}
    images, masks = (sorted((tmp_path / folder).iterdir()) for folder in ("images", "masks"))
    put(images[1], images[0].read_bytes())
    put(masks[2], encoded(np.full((20, 30), 22, np.uint8)))
    put(images[3], images[3].read_bytes()[:-50])
    rows = verify.verify("bcss", tmp_path).rows
    assert [(row.kind, row.name) for row in rows] == [
        ("code", f"masks/{masks[2].name}"),
        ("unreadable", f"images/{images[3].name}"),
        ("duplicate", f"images/{images[1].name}"),
    ]
    assert "600 pixels of 22, no code of bcss" == rows[0].detail
    masks[0].unlink()
    assert verify.verify("bcss", tmp_path).rows[0].kind == "layout"
