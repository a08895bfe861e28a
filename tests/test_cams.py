"""CAMs: the views of a patch and their average, a split in its order, pseudo masks on disk."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

from protolib import cams
from protolib.data.specs import SPECS
from protolib.files import read_json
from protolib.maps import argmax_masks, diffuse, fuse, unit_scores
from protolib.presets import PRESETS

SPEC = SPECS["phantom"]
H = W = 8
P = replace(
    PRESETS["quick"],
    merge="mean",
    levels=(0, 1),
    level_weights=(1.0, 1.0),
    fusion=(0.25, 0.75),
    pseudo_tta="none",
)


class HandMade(nn.Module):
    """Two levels of four maps: the channels, and half the first; the finer one times a ramp from
    left to right."""

    def __init__(self, fail_after: int = 10**6):
        super().__init__()
        self.weight, self.left = nn.Parameter(torch.ones(1)), fail_after

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        return images

    def read(self, images: torch.Tensor) -> list[torch.Tensor]:
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("the disk is full")
        ramp = torch.arange(images.shape[3]) * self.weight
        four = torch.cat([images, images[:, :1] * 0.5], dim=1)  # (B, 4, H, W)
        return [four * ramp, nn.functional.avg_pool2d(four, 2)]

    def class_maps(self, maps: list[torch.Tensor], merge: str) -> list[torch.Tensor]:
        assert merge == P.merge_test  # a prediction merges as the preset says for the test
        return maps

    def logits(self, maps: list[torch.Tensor], merge: str) -> torch.Tensor:
        return torch.stack([m.mean((2, 3)) for m in self.class_maps(maps, merge)])


class Patches(Dataset):
    """Forty patches of noise with labels, as cams asks of a split."""

    def __init__(self, split: str = "train", fingerprint: str = "f1"):
        rng = np.random.default_rng(0)
        self.spec, self.split, self.fingerprint = SPEC, split, fingerprint
        self.ids = [f"slide+{i}[1101]" for i in range(40)]
        self.images = rng.integers(0, 256, (40, H, W, 3), dtype=np.uint8)
        self.labels = rng.integers(0, 2, (40, SPEC.C), dtype=np.uint8)
        self.labels[:, 0] |= self.labels.sum(1) == 0

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> dict:
        return {"image": torch.from_numpy(self.images[i]).permute(2, 0, 1), "index": i}


def test_predict_averages_the_patch_and_its_mirror_image():
    net, images = HandMade(), torch.rand(2, 3, H, W, generator=torch.Generator().manual_seed(0))
    plain, plain_logits = cams.predict(net, images, P, "none")
    mirrored, mirrored_logits = cams.predict(net, images.flip(3), P, "none")
    both, logits = cams.predict(net, images, P, "mirror")
    assert torch.equal(both, (plain + mirrored.flip(3)) / 2)
    assert torch.equal(logits, (plain_logits + mirrored_logits) / 2)
    four = torch.cat([images, images[:, :1] * 0.5], dim=1)
    # over both passes the ramp 0..7 and its mirror image average to 3.5 in every column
    coarse = nn.functional.interpolate(nn.functional.avg_pool2d(four, 2), (H, W), mode="bilinear")
    torch.testing.assert_close(both, 0.25 * 3.5 * four + 0.75 * coarse, rtol=0, atol=1e-6)
    torch.testing.assert_close(
        logits, (3.5 * four.mean((2, 3)) + four.mean((2, 3))) / 2, rtol=0, atol=1e-6
    )


def test_the_label_is_read_off_all_levels_or_off_the_last_where_maps_are_pooled_first():
    net, images = HandMade(), torch.rand(2, 3, H, W, generator=torch.Generator().manual_seed(0))
    levels = net.logits(net.read(images), P.merge_test)  # (2, B, C)
    assert torch.equal(cams.predict(net, images, P, "none")[1], levels.mean(0))
    pooled_first = replace(P, pool="logits")  # as released
    assert torch.equal(cams.predict(net, images, pooled_first, "none")[1], levels[-1])


def test_diffusion_spreads_the_class_maps_of_each_level_by_its_own_features():
    class WithFeatures(HandMade):
        def features(self, images):
            return [images, nn.functional.avg_pool2d(images, 2)]

        def compare(self, features):
            assert [f.shape[2] for f in features] == [H, H // 2]
            return self.read(features[0])

    net, images = WithFeatures(), torch.rand(2, 3, H, W, generator=torch.Generator().manual_seed(0))
    plain, logits = cams.predict(net, images, P, "none")
    found, same = cams.predict(net, images, replace(P, diffusion=3), "none")
    maps = [diffuse(m, f, 3) for m, f in zip(net.read(images), net.features(images))]
    assert torch.equal(found, fuse(maps, P.fusion, (H, W))) and not torch.equal(found, plain)
    assert torch.equal(same, logits)  # image labels are of the maps as they are


def over(patches, rows=None):
    """Each part of over_split, joined; and how many patches each batch held."""
    net = HandMade()
    parts = list(cams.over_split(lambda x: cams.predict(net, x, P, "none"), patches, "cpu", rows))
    return [torch.cat(part) for part in zip(*parts)], [len(index) for index, _, _ in parts]


def test_over_split_keeps_the_order_of_the_split_and_goes_batch_by_batch():
    patches = Patches()
    (index, maps, logits), sizes = over(patches)
    assert sizes == [32, 8]
    assert index.tolist() == list(range(40))
    images = torch.from_numpy(patches.images).permute(0, 3, 1, 2) / 255
    wanted_maps, wanted_logits = cams.predict(HandMade(), images, P, "none")
    torch.testing.assert_close((maps, logits), (wanted_maps, wanted_logits), rtol=0, atol=1e-6)
    (some, few, _), _ = over(patches, rows=[7, 0, 39])
    assert some.tolist() == [7, 0, 39]  # of the split, in the order asked for
    assert torch.equal(few, maps[[7, 0, 39]])


def test_pseudo_masks_come_back_as_they_were_written(tmp_path):
    patches, folder = Patches(), tmp_path / "pseudo_masks"
    cams.pseudo_masks(HandMade(), patches, folder, P, {"seed": 3})
    images = torch.from_numpy(patches.images).permute(0, 3, 1, 2) / 255
    wanted = argmax_masks(
        cams.predict(HandMade(), images, P, "none")[0], torch.from_numpy(patches.labels)
    )
    masks = cams.PseudoMasks(folder, patches)
    found = np.stack([masks[i] for i in range(len(masks))])
    assert found.dtype == np.uint8 and np.array_equal(found, wanted.numpy())
    rows = np.arange(40)[:, None, None]
    assert patches.labels[rows, found].all()  # no pixel has a class that its image label denies
    with Image.open(folder / f"{patches.ids[7]}.png") as image:
        assert image.mode == "P"
        assert tuple(image.getpalette()[: 3 * (SPEC.C + 1)]) == tuple(
            v for colour in SPEC.palette for v in colour
        )
        colours = np.asarray(image.convert("RGB"))
    assert np.array_equal(colours, np.array(SPEC.palette, dtype=np.uint8)[found[7]])
    manifest = read_json(folder / "manifest.json")
    assert manifest == {
        "seed": 3,
        "dataset": "phantom",
        "split": "train",
        "fingerprint": "f1",
        "ids": patches.ids,
    }
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        [f"{i}.png" for i in patches.ids] + ["manifest.json"]
    )


@pytest.mark.parametrize(
    "other, named",
    [(Patches("val"), "split"), (Patches(fingerprint="f2"), "fingerprint")],
    ids=["split", "pixels"],
)
def test_masks_of_other_patches_are_refused(tmp_path, other, named):
    cams.pseudo_masks(HandMade(), Patches(), tmp_path / "masks", P, {})
    with pytest.raises(ValueError, match=f"another {named} .*make them again"):
        cams.PseudoMasks(tmp_path / "masks", other)


def test_a_mask_that_is_cut_or_gone_is_named_with_what_to_do(tmp_path):
    patches, folder = Patches(), tmp_path / "masks"
    cams.pseudo_masks(HandMade(), patches, folder, P, {})
    masks, file = cams.PseudoMasks(folder, patches), folder / f"{patches.ids[3]}.png"
    right, said = file.read_bytes(), f"delete the folder {re.escape(str(folder))}, and the next run"
    for broken in (b"", right[:20], right[:60], right[:-30], b"<html>", None):
        file.unlink() if broken is None else file.write_bytes(broken)
        with pytest.raises(ValueError, match=f"^{re.escape(str(file))} cannot be read .*{said}"):
            masks[3]
    assert masks[2].shape == (H, W)


def test_pseudo_masks_of_val_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="this is 'val'"):
        cams.pseudo_masks(HandMade(), Patches("val"), tmp_path / "masks", P, {})
    assert list(tmp_path.iterdir()) == []


def test_a_failure_in_the_middle_leaves_the_old_masks(tmp_path):
    folder = tmp_path / "masks"
    cams.pseudo_masks(HandMade(), Patches(), folder, P, {"round": 1})
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(RuntimeError, match="disk is full"):
        cams.pseudo_masks(HandMade(fail_after=1), Patches(), folder, P, {"round": 2})
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    cams.pseudo_masks(
        HandMade(), Patches(), folder, P, {"round": 3}
    )  # what the failure left is no part of it
    assert read_json(folder / "manifest.json")["round"] == 3
    assert len(list(folder.iterdir())) == 41 and [p.name for p in tmp_path.iterdir()] == ["masks"]


def test_a_first_failure_leaves_no_folder(tmp_path):
    with pytest.raises(RuntimeError, match="disk is full"):
        cams.pseudo_masks(HandMade(fail_after=1), Patches(), tmp_path / "masks", P, {})
    assert not (tmp_path / "masks").exists()


def test_six_views_average_two_poses_at_three_brightnesses_and_read_the_label_off_the_plain_one():
    net, images = HandMade(), torch.rand(2, 3, H, W, generator=torch.Generator().manual_seed(0))
    six, logits = cams.predict(net, images, P, "six")
    both, _ = cams.predict(net, images, P, "mirror")
    torch.testing.assert_close(
        six, both, rtol=0, atol=1e-6
    )  # HandMade is linear: .9, 1 and 1.1 average to 1
    assert logits.equal(cams.predict(net, images, P, "none")[1])
    unit = replace(P, scores="unit")
    assert not (six.requires_grad or logits.requires_grad)  # nobody learns from a prediction
    by_hand = []
    for flip in (False, True):
        for factor in (0.9, 1.0, 1.1):
            maps = net.read(factor * (images.flip(3) if flip else images))
            score = fuse([unit_scores(m) for m in maps], P.fusion, (H, W))
            by_hand.append(score.flip(3) if flip else score)
    torch.testing.assert_close(
        cams.predict(net, images, unit, "six")[0], sum(by_hand) / 6, rtol=0, atol=1e-6
    )


def test_the_label_of_six_views_is_that_of_the_plain_one_for_a_network_that_bends():
    class Squares(HandMade):
        def read(self, images):
            return super().read(images**2)  # brightness .9 and 1.1 average to 1.01 then

    net, images = Squares(), torch.rand(2, 3, H, W, generator=torch.Generator().manual_seed(0))
    plain = cams.predict(net, images, P, "none")[1]
    torch.testing.assert_close(cams.predict(net, images, P, "six")[1], plain, rtol=0, atol=0)


def test_brightness_multiplies_what_the_network_sees_and_not_the_picture(monkeypatch):
    """As in the released code: a darker picture would have another mean taken off."""

    class Shifted(HandMade):
        def prepare(self, images):
            return (images - 0.5) / 0.25

    net, images = Shifted(), torch.rand(2, 3, H, W, generator=torch.Generator().manual_seed(0))
    monkeypatch.setitem(cams.VIEWS, "dark", ((False, 0.5, True),))
    found, logits = cams.predict(net, images, P, "dark")
    maps = net.read(0.5 * (images - 0.5) / 0.25)
    assert torch.equal(found, fuse(maps, P.fusion, (H, W)))
    torch.testing.assert_close(logits, net.logits(maps, P.merge_test).mean(0))


def test_corners_stay_where_they_are_where_the_preset_says_so():
    net, images = HandMade(), torch.rand(1, 3, H, W, generator=torch.Generator().manual_seed(0))
    found = [
        cams.predict(net, images, replace(P, align_corners=kept), "none")[0]
        for kept in (True, False)
    ]
    maps = net.read(images)
    for kept, made in zip((True, False), found):
        assert torch.equal(made, fuse(maps, P.fusion, (H, W), kept))
    assert not torch.allclose(*found)


def test_of_three_levels_that_are_pooled_first_the_last_says_the_label():
    class Three(HandMade):
        def read(self, images):
            fine, coarse = super().read(images)
            return [fine, coarse, coarse**2]

    net, images = Three(), torch.rand(2, 3, H, W, generator=torch.Generator().manual_seed(0))
    more = {"levels": (0, 1, 2), "level_weights": (1.0,) * 3, "fusion": (0.2, 0.3, 0.5)}
    levels = net.logits(net.read(images), P.merge_test)
    found = cams.predict(net, images, replace(P, pool="logits", **more), "none")[1]
    assert torch.equal(found, levels[2]) and not torch.equal(levels[1], levels[2])


def test_a_split_is_gone_through_without_gradients_and_its_bar_is_shown_where_it_has_words(
    monkeypatch,
):
    bars = []
    monkeypatch.setattr(cams, "tqdm", lambda of, *words, **more: bars.append((words, more)) or of)
    weight = torch.ones(1, requires_grad=True)
    for bar in ("", "predicted"):
        for _, scores, logits in cams.over_split(
            lambda x: (x * weight, x.mean((2, 3)) * weight), Patches(), "cpu", bar=bar
        ):
            assert not (scores.requires_grad or logits.requires_grad)
    hidden = (("",), {"leave": False, "disable": True})
    assert bars == [hidden, (("predicted",), {"leave": False})]


def test_masks_are_made_by_a_network_in_evaluation_whose_processes_wait_for_each_other(
    tmp_path, monkeypatch
):
    folder, net, seen = tmp_path / "run" / "step" / "masks", HandMade(), []
    part = folder.with_name(".masks.part")

    def waited():
        seen.append((len(list(part.glob("*.png"))) if part.is_dir() else None, folder.is_dir()))

    monkeypatch.setattr(cams.processes, "wait", waited)
    cams.pseudo_masks(net, Patches(), folder, P, {})
    # for the folder, for the masks of all, for their place
    assert seen == [(0, False), (40, False), (None, True)] and not net.training
