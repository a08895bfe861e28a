"""Stage 2: output sizes, four branches in closed form, ignore without gradient, masks resized by
nearest neighbour."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from protolib import segmentation
from protolib.presets import PRESETS

P = replace(PRESETS["quick"], size=64, stage2_size=64)  # nothing is enlarged


class Constant(nn.Module):
    """Stands in for the backbone: deepest map of 5 x 7 positions and two channels, 1 and 10
    everywhere."""

    channels = (2,)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [torch.tensor([1.0, 10.0]).view(1, 2, 1, 1).expand(len(images), 2, 5, 7)]


def with_branches(rates: tuple[int, ...], C: int = 2) -> segmentation.DeepLabV2:
    """A net on constant features whose branch i has weight i + 1 on channel 0, 0 on channel 1, and
    bias class / 4."""
    net = segmentation.DeepLabV2(replace(P, stage2_rates=rates), C)
    net.net, net.branches = (
        Constant(),
        nn.ModuleList(nn.Conv2d(2, C, 3, padding=r, dilation=r) for r in rates),
    )
    for i, branch in enumerate(net.branches):
        nn.init.zeros_(branch.weight)
        branch.weight.data[:, 0] = i + 1.0
        branch.bias.data = torch.arange(C) / 4
    return net.eval()


@pytest.mark.parametrize("size", [(64, 64), (65, 97), (33, 130)])
def test_the_output_has_the_size_of_the_image_whatever_it_is(size):
    net = segmentation.DeepLabV2(replace(P, stage2_rates=(1, 2)), 3).eval()
    with torch.no_grad():
        assert net(torch.rand(1, 3, *size)).shape == (1, 3, *size)
    scores = segmentation.predict(net, torch.rand(1, 3, *size), tta=True)
    assert scores.shape == (1, 3, *size)
    torch.testing.assert_close(scores.sum(1), torch.ones(1, *size), rtol=0, atol=1e-5)


def test_small_patches_are_enlarged_for_the_backbone_and_their_logits_come_back_to_size():
    seen = []
    net = segmentation.DeepLabV2(replace(P, stage2_size=96), 3).eval()
    net.net.register_forward_pre_hook(lambda _, images: seen.append(images[0].shape[2:]))
    with torch.no_grad():
        assert net(torch.rand(1, 3, 64, 64)).shape == (1, 3, 64, 64)
        assert net(torch.rand(1, 3, 32, 50)).shape == (1, 3, 32, 50)
    assert [tuple(size) for size in seen] == [(96, 96), (48, 75)]  # half again as long


def test_pixels_keep_their_places_when_the_image_is_enlarged_and_logits_come_back():
    """The middle of pixel i is at (i + .5) / n of the side, on every grid."""
    seen, net = [], segmentation.DeepLabV2(replace(P, stage2_size=128, stage2_rates=(1,)), 1)

    class First(nn.Module):
        def forward(self, images):  # every second column, at the middle of two
            seen.append(images)
            return [images[:, :1, ::2, ::2]]

    net.net, net.branches[0] = First(), nn.Identity()
    x = torch.arange(64.0)
    logits = net(x.expand(1, 3, 64, 64))
    # the ramp at (i + .5) / 2 - .5, which ends where the image does
    wanted = ((torch.arange(128) + 0.5) / 2 - 0.5).clamp(0, 63)
    torch.testing.assert_close(seen[0], wanted.expand(1, 3, 128, 128))
    torch.testing.assert_close(logits, wanted[::2].expand(1, 1, 64, 64))  # size is the same

    class Second(First):
        def forward(self, images):
            return [x[::2].expand(1, 1, 32, 32)]

    net.net = Second()
    back = (torch.arange(64.0) + 0.5 - 1).clamp(0, 62)  # column j of 32 stands at 2 j
    torch.testing.assert_close(net(torch.zeros(1, 3, 64, 64)), back.expand(1, 1, 64, 64))


def test_stage_2_trains_by_its_own_settings_without_warm_up():
    p = replace(P, stage2_epochs=7, stage2_lr=0.3, lr_power=2.0, warmup=1.0, stain_jitter=0.2)
    found = segmentation.stage2(p)
    assert (found.epochs, found.lr, found.lr_power, found.warmup) == (7, 0.3, 1.0, 0.0)
    assert found.stain_jitter == 0
    same = {"lr_power": 2.0, "warmup": 1.0, "stain_jitter": 0.2}
    assert replace(found, epochs=p.epochs, lr=p.lr, **same) == p


def test_the_backbone_is_stage_2_s_own_where_one_is_named():
    same, own = (
        segmentation.DeepLabV2(replace(P, stage2_backbone=name), 2) for name in ("", "mit_test")
    )
    assert same.net.channels[-1] == 320 and own.net.channels == (8, 16, 24, 32)
    assert [b.weight.shape[1] for b in own.branches] == [32] * len(P.stage2_rates)


def test_four_branches_are_summed_each_with_its_own_dilation():
    rates, (h, w) = (1, 2, 3, 4), (5, 7)
    logits = with_branches(rates)(
        torch.rand(1, 3, h, w)
    )  # as many pixels as positions, so nothing is resized
    for y in range(h):
        for x in range(w):
            # of the nine taps of branch i those inside the map read a 1; outside is padding, 0
            inside = [
                [sum(0 <= v + s < n for s in (-r, 0, r)) for v, n in ((y, h), (x, w))]
                for r in rates
            ]
            taps = [rows * columns for rows, columns in inside]
            wanted = sum((i + 1) * n for i, n in enumerate(taps))
            torch.testing.assert_close(
                logits[0, :, y, x], torch.tensor([wanted, wanted + 1.0]), rtol=0, atol=1e-4
            )


def test_taps_beyond_the_map_leave_the_middle_tap_alone():
    logits = with_branches((7,))(torch.rand(1, 3, 5, 7))
    torch.testing.assert_close(
        logits, torch.tensor([1.0, 1.25]).view(1, 2, 1, 1).expand(1, 2, 5, 7), rtol=0, atol=1e-6
    )


def test_predict_averages_the_eight_poses_of_an_image():
    class Ramp(nn.Module):
        def forward(
            self, images
        ):  # two classes; the first grows from left to right, whatever the image
            ramp = torch.arange(images.shape[3]).float().expand(len(images), 1, *images.shape[2:])
            return torch.cat([ramp, torch.zeros_like(ramp)], dim=1)

    images = torch.rand(2, 3, 4, 6)
    plain = torch.sigmoid(torch.arange(6.0))  # softmax of (x, 0)
    assert torch.allclose(
        segmentation.predict(Ramp(), images, tta=False)[1, 0, 3], plain, atol=1e-7
    )
    rows = torch.sigmoid(
        torch.arange(4.0)
    )  # turned by a quarter, the ramp runs along the image's height
    across, along = (plain + plain.flip(0)) / 2, (rows + rows.flip(0)) / 2
    averaged = segmentation.predict(Ramp(), images, tta=True)
    assert torch.allclose(averaged[1, 0], (across[None] + along[:, None]) / 2, atol=1e-7)


def test_a_prediction_is_made_in_evaluation_and_teaches_nobody():
    net = nn.Conv2d(3, 2, 1).train()
    scores = segmentation.predict(net, torch.rand(1, 3, 4, 4), tta=False)
    assert not net.training and not scores.requires_grad


def test_loss_is_the_mean_cross_entropy_of_the_pixels_that_count():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64).requires_grad_()
    mask = torch.randint(4, (2, 4, 4), generator=generator)  # 3 is ignore
    loss = segmentation.segmentation_loss(lambda images: logits, {"image": None, "mask": mask})[
        "loss"
    ]
    p = logits.detach().exp() / logits.detach().exp().sum(1, keepdim=True)
    places = [tuple(place) for place in (mask < 3).nonzero().tolist()]
    terms = [-p[b, mask[b, y, x], y, x].log() for b, y, x in places]
    assert 0 < len(terms) < 32
    assert loss.item() == pytest.approx(float(sum(terms)) / len(terms), abs=1e-12)
    loss.backward()
    ignored = (mask == 3)[:, None].expand_as(logits)
    wanted = (p - nn.functional.one_hot(mask, 4)[..., :3].permute(0, 3, 1, 2)) / len(terms)
    assert (logits.grad[ignored] == 0).all()  # exactly, not nearly
    torch.testing.assert_close(logits.grad[~ignored], wanted[~ignored], rtol=0, atol=1e-12)


def test_one_judged_pixel_is_the_mean_and_processes_share_by_judged_pixels(monkeypatch):
    logits = torch.tensor([2.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 1, 3)
    batch, net = {"image": None, "mask": torch.tensor([[[0, 2, 2]]])}, lambda images: logits
    wanted = math.log1p(math.exp(-2))
    found = segmentation.segmentation_loss(net, batch)["loss"].item()
    assert found == pytest.approx(wanted, rel=1e-6)
    asked = []
    monkeypatch.setattr(segmentation, "weight", lambda n, like: asked.append(n.item()) or 0.5)
    found = segmentation.segmentation_loss(net, batch)["loss"].item()
    assert found == pytest.approx(wanted / 2, rel=1e-6) and asked == [1]


def test_a_batch_of_nothing_but_ignore_has_loss_0_and_gradient_0():
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    batch = {"image": None, "mask": torch.full((2, 4, 4), 3)}
    loss = segmentation.segmentation_loss(lambda images: logits, batch)["loss"]
    loss.backward()
    assert loss.item() == 0 and (logits.grad == 0).all()


class Patches:
    """Two patches of 4 x 4 px, as MaskedPatches asks of a split."""

    ids, images = ["a", "b"], np.zeros((2, 4, 4, 3), np.uint8)

    def __len__(self) -> int:
        return 2

    def __getitem__(self, i: int) -> dict:
        return {"image": torch.zeros(3, 4, 4), "index": i, "mask": torch.full((4, 4), 9)}


def test_masks_replace_those_of_the_split_and_keep_their_order():
    masks = np.arange(32, dtype=np.uint8).reshape(2, 4, 4) % 5
    patches = segmentation.MaskedPatches(Patches(), masks)
    assert len(patches) == 2 and patches.ids == ["a", "b"]
    for i in (0, 1):
        assert patches[i]["index"] == i and patches[i]["mask"].dtype == torch.int64
        assert patches[i]["mask"].tolist() == masks[i].tolist()


@pytest.mark.parametrize("factor", [2, 3])
def test_larger_masks_are_resized_to_codes_that_were_there(factor):
    codes = np.array([[[0, 4, 1, 4], [4, 0, 4, 1], [2, 4, 3, 4], [4, 2, 4, 3]]], np.uint8).repeat(
        2, axis=0
    )
    large = codes.repeat(factor, axis=1).repeat(
        factor, axis=2
    )  # each pixel a block: any sensible pick gives it back
    assert segmentation.MaskedPatches(Patches(), large)[1]["mask"].tolist() == codes[1].tolist()
    # by the middle of each block when the block is mixed: row 1 of three is the middle, the upper
    # of two rows is not it
    stripes = np.zeros((2, 4 * factor, 4 * factor), np.uint8)
    stripes[:, factor // 2 :: factor] = 4
    assert (segmentation.MaskedPatches(Patches(), stripes)[0]["mask"] == 4).all()


def test_present_classes_are_those_that_win_their_share_of_the_pixels():
    winners = torch.tensor(
        [
            [[0, 0, 0], [0, 0, 0], [0, 1, 2]],
            [[1, 1, 1], [1, 1, 2], [2, 2, 2]],
        ]
    )  # (2, 3, 3)
    scores = nn.functional.one_hot(winners, 4).permute(0, 3, 1, 2) - 0.5  # (2, 4, 3, 3)
    for share, wanted in (
        (1 / 9, [[1, 1, 1, 0], [0, 1, 1, 0]]),
        (2 / 9, [[1, 0, 0, 0], [0, 1, 1, 0]]),
        (0.5, [[1, 0, 0, 0], [0, 1, 0, 0]]),
    ):
        found = segmentation.present_classes(scores, share)
        assert found.dtype == torch.bool and found.int().tolist() == wanted


def test_the_default_share_is_3_percent():
    winners = torch.zeros(1, 10, 10, dtype=torch.long)
    winners[0, 0, :3], winners[0, 1, :2] = 1, 2
    scores = nn.functional.one_hot(winners, 3).permute(0, 3, 1, 2).float()
    assert segmentation.present_classes(scores).tolist() == [[True, True, False]]
