"""Published trees to the one tree: every known variant, dry runs, stopped moves, copies,
refusals."""

import errno
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from data_download import arrange, verify
from protolib.data import regions, specs

WSSS, LUAD, BCSS = (specs.SPECS[name] for name in ("bcss-wsss", "luad-histoseg", "bcss"))
FILES = {  # the arranged tree: two training patches, one in val, one in test
    "train/TCGA-A1-A0SK-DX1_xmin1_ymin2_MPP-0.2500+0[1000].png": 1,
    "train/TCGA-A1-A0SK-DX1_xmin1_ymin2_MPP-0.2500+1[0110].png": 2,
    "val/img/TCGA-EW-A1PB-DX1_xmin3_ymin4_MPP-0.2500+0.png": 3,
    "val/mask/TCGA-EW-A1PB-DX1_xmin3_ymin4_MPP-0.2500+0.png": 4,
    "test/img/TCGA-D8-A27F-DX1_xmin5_ymin6_MPP-0.2500+0.png": 5,
    "test/mask/TCGA-D8-A27F-DX1_xmin5_ymin6_MPP-0.2500+0.png": 6,
}


def published(root, **renamed):
    """The tree with its folders renamed, "train" -> ..., and a Readme beside; the content of a file
    is its number."""
    names = {
        "train": "train",
        "val_img": "val/img",
        "val_mask": "val/mask",
        "test_img": "test/img",
        "test_mask": "test/mask",
    } | renamed
    for target, number in FILES.items():
        folder, name = target.rsplit("/", 1)
        path = root / names[folder.replace("/", "_")] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([number]))
    (root / "Readme.txt").write_text("of the data set")
    return root


def contents(root):
    return {
        path.relative_to(root).as_posix(): path.read_bytes()[0]
        for path in sorted(root.rglob("*.png"))
    }


VARIANTS = [
    {},
    {"train": "training", "val_img": "valid/img", "val_mask": "valid/mask"},
    {
        "train": "BCSS-WSSS/train/img",
        "val_img": "BCSS-WSSS/val/img",
        "val_mask": "BCSS-WSSS/val/mask",
        "test_img": "BCSS-WSSS/test/img",
        "test_mask": "BCSS-WSSS/test/mask",
    },
    {
        "train": "a/1.training",
        "val_img": "a/2.validation/images",
        "val_mask": "a/2.validation/masks",
        "test_img": "a/3.testing/img",
        "test_mask": "a/3.testing/mask",
    },
    {
        "train": "train/train",
        "val_img": "val/val/img",
        "val_mask": "val/val/mask",
    },  # one archive a split
    {"val_img": "Val", "val_mask": "Val/Mask"},
]


@pytest.mark.parametrize("renamed", VARIANTS)
@pytest.mark.parametrize("twice", [False, True])
def test_every_variant_becomes_the_tree(tmp_path, renamed, twice):
    root, to = published(tmp_path / "old [1]", **renamed), tmp_path / "new"
    if twice:
        for path in list(root.rglob("*.png")):
            path.rename(path.with_name(path.name + ".png"))
    (root / "__MACOSX" / "train").mkdir(parents=True)
    (root / "__MACOSX" / "train" / "._x[1000].png").write_bytes(b"9")
    before = sorted(root.rglob("*"))
    text = arrange.arrange("bcss-wsss", root, to)
    assert sorted(root.rglob("*")) == before and not to.exists()  # a dry run
    assert text.startswith(f"bcss-wsss: would move: 6 files, to {to}\n  ")
    assert "  train/            2 files, first" in text
    assert arrange.arrange("bcss-wsss", root, to, dry_run=False).startswith(
        "bcss-wsss: moved: 6 files"
    )
    assert contents(to) == FILES
    assert [len(layout.ids) for layout in specs.check_layout(WSSS, to).values()] == [2, 1, 1]
    assert (root / "Readme.txt").read_text() == "of the data set" and not list(root.rglob("TCGA*"))


def test_training_masks_and_a_spec_of_ones_own_go_along(tmp_path):
    root = published(tmp_path / "old", train="training/img")
    for target in list(FILES)[:2]:
        path = root / "training" / "mask" / target.split("/")[1]
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"7")
    (root / "dataset.toml").write_text(
        'name = "mine"\nclasses = ["A", "B", "C", "D"]\ntitles = ["a", "b", "c", "d"]\n'
        "codes = {0 = 0, 1 = 1, 2 = 2, 3 = 3}\n"
        "palette = [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 0, 3], [0, 0, 4]]\n"
    )
    arrange.arrange("custom", root, tmp_path / "new", dry_run=False)
    found = specs.check_layout(specs.spec_of("mine", tmp_path / "new"), tmp_path / "new")["train"]
    assert len(found.masks) == 2 and found.masks[0].parent == tmp_path / "new" / "train" / "mask"


def test_luad_names_and_arranging_in_place(tmp_path):
    root = tmp_path / "LUAD-HistoSeg"
    for name in (
        "training/1031280-2300-27920-[1 0 0 1].png",
        "val/img/385277-44539-46781.png",
        "val/mask/385277-44539-46781.png",
        "test/img/387709-10004-55944.png.png",
        "test/mask/387709-10004-55944.png",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"1")
    arrange.arrange("luad-histoseg", root, root, dry_run=False)
    assert sorted(contents(root)) == [
        "test/img/387709-10004-55944.png",
        "test/mask/387709-10004-55944.png",
        "train/1031280-2300-27920-[1 0 0 1].png",
        "val/img/385277-44539-46781.png",
        "val/mask/385277-44539-46781.png",
    ]
    assert specs.check_layout(LUAD, root)["train"].ids == ["1031280-2300-27920-[1 0 0 1]"]
    assert arrange.arrange("luad-histoseg", root, root, dry_run=False).endswith(
        "is arranged, nothing to do"
    )


@pytest.mark.parametrize("moved", range(6))
def test_a_stopped_move_loses_nothing_and_goes_on(tmp_path, monkeypatch, moved):
    root, to, rename = published(tmp_path / "old", train="training"), tmp_path / "new", os.rename
    done = []

    def stopping(source, target):
        if len(done) == moved:
            raise KeyboardInterrupt
        done.append(source)
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(arrange.os, "rename", stopping)
        with pytest.raises(KeyboardInterrupt):
            arrange.arrange("bcss-wsss", root, to, dry_run=False)
    assert sorted([*contents(root).values(), *contents(to).values()]) == [1, 2, 3, 4, 5, 6]
    with pytest.raises(ValueError, match="arranged in part only: arrange it again"):
        specs.check_layout(WSSS, to)
    assert "would move: 6 files" in arrange.arrange("bcss-wsss", root, to)
    arrange.arrange("bcss-wsss", root, to, dry_run=False)
    assert contents(to) == FILES and specs.check_layout(WSSS, to)["test"].ids


def test_over_two_file_systems_files_are_copied_whole(tmp_path, monkeypatch):
    root, to = published(tmp_path / "old"), tmp_path / "new"

    def other_device(source, target):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(arrange.os, "rename", other_device)
    arrange.arrange("bcss-wsss", root, to, dry_run=False)
    assert contents(to) == FILES == contents(root)
    assert [path.name for path in to.iterdir() if path.name.startswith(".")] == []


def test_links_are_copied_not_broken(tmp_path):
    root, blobs = published(tmp_path / "old"), tmp_path / "blobs"
    blobs.mkdir()
    for i, path in enumerate(sorted(root.rglob("*.png"))):  # as a hub's cache stores them
        path.rename(blobs / str(i))
        path.symlink_to(os.path.relpath(blobs / str(i), path.parent))
    arrange.arrange("bcss-wsss", root, tmp_path / "deeper" / "new", dry_run=False)
    assert contents(tmp_path / "deeper" / "new") == FILES and len(list(blobs.iterdir())) == 6


def test_what_is_refused(tmp_path):
    root = published(tmp_path / "a", test_img="tset/img")
    with pytest.raises(
        ValueError, match=r"(?s)it is not told what these are: 1 PNG files in tset/img"
    ):
        arrange.plan("bcss-wsss", root)
    root = published(tmp_path / "b")
    shutil.move(root / "val", root / "wal")
    with pytest.raises(
        ValueError,
        match=r"(?s)val stands in 0 folders, not one. Of no split: 1 PNG files in wal/img;",
    ):
        arrange.plan("bcss-wsss", root)
    root = published(tmp_path / "c")
    shutil.copytree(root / "train", root / "training")
    with pytest.raises(ValueError, match="train stands in 2 folders, not one: train, training"):
        arrange.plan("bcss-wsss", root)
    root = published(tmp_path / "d")
    name = list(FILES)[0]
    shutil.copy(root / name, root / f"{name}.png")
    with pytest.raises(
        ValueError, match=r"1 patches are there twice, first .*\.png and .*\.png\.png: remove one"
    ):
        arrange.plan("bcss-wsss", root)
    root, to = published(tmp_path / "e"), published(tmp_path / "f")
    with pytest.raises(ValueError, match="holds 6 of the 6 files already, first"):
        arrange.arrange("bcss-wsss", root, to, dry_run=False)
    assert contents(root) == contents(to) == FILES
    with pytest.raises(ValueError, match="'tiger' is not known"):
        arrange.plan("tiger", root)


@pytest.mark.parametrize("name", ["bcss", "gcss"])
def test_regions_may_stay_beside_their_patches(tmp_path, name):
    spec, rng = specs.SPECS[name], np.random.default_rng(0)
    names = {
        "bcss": ("TCGA-A1-A0SP", "TCGA-A2-A0T2", "TCGA-A1-A0SK"),
        "gcss": ("case 1", "case 3", "case 21"),
    }[name]
    for region in names:  # train, val, test
        image = tmp_path / ("images" if name == "bcss" else "") / f"{region}.png"
        image.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 200, (224, 230, 3), np.uint8)).save(image)
        if name == "bcss":
            (tmp_path / "masks").mkdir(exist_ok=True)
            Image.fromarray(np.full((224, 230), 2, np.uint8)).save(
                tmp_path / "masks" / f"{region}.png"
            )
        else:
            np.savetxt(image.with_suffix(".txt"), np.full((224, 230), 2), fmt="%d")
    for _ in range(2):
        arrange.arrange(name, tmp_path, tmp_path, dry_run=False)
        assert [len(layout.ids) for layout in specs.check_layout(spec, tmp_path).values()] == [
            1,
            1,
            1,
        ]
    report = verify.verify(name, tmp_path)
    assert report.ok and report.rows == [] and report.counts == {"train": 1, "val": 1, "test": 1}


def test_regions_are_cut_here(tmp_path):
    root, to = tmp_path / "0_Public-data", tmp_path / "new"
    regions_of = {"TCGA-A1-A0SP": "train", "TCGA-A2-A0T2": "val", "TCGA-A1-A0SK": "test"}
    for patient in regions_of:
        for folder, pixels in (
            ("rgbs_colorNormalized", np.full((224, 224, 3), 150)),
            ("masks", np.ones((224, 224))),
        ):
            (root / "BCSS" / folder).mkdir(parents=True, exist_ok=True)
            path = root / "BCSS" / folder / f"{patient}-DX1_xmin1_ymin2_MPP-0.2500.png"
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    planned = {move.target for move in arrange.plan("bcss", root)}
    assert planned == {
        f"{split}/{patient}-DX1_xmin1_ymin2_MPP-0.2500_x*" for patient, split in regions_of.items()
    }
    before = sorted(root.rglob("*"))
    assert (
        "would cut into patches of 224 px: 3 files" in arrange.arrange("bcss", root, to)
        and not to.exists()
    )
    assert "cut into patches of 224 px: 3 files" in arrange.arrange("bcss", root, to, dry_run=False)
    assert sorted(root.rglob("*")) == before
    assert [len(layout.ids) for layout in specs.check_layout(BCSS, to).values()] == [1, 1, 1]
    assert (to / specs.CUT_RECORD).is_file()
    with pytest.raises(ValueError, match="cut from other regions or by other rules"):
        regions.cut(specs.SPECS["bcss-merged"], specs.find_regions(BCSS, root / "BCSS"), to)
