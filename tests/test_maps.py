"""Functions of maps alone, against hand-made cases and slow references."""

import math

import numpy as np
import pytest
import torch

from protolib.maps import (
    argmax_masks,
    background_score,
    cosine_maps,
    diffuse,
    fuse,
    gate,
    masked_average,
    merge_subclasses,
    pose,
    present_share,
    stack_levels,
    unit_range,
    unit_scores,
    unpose,
    winners,
)
from protolib.training import dihedral


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slow_bilinear(grid: np.ndarray, H: int, W: int) -> np.ndarray:
    """One map (h, w) at H x W pixels: pixel centres at half steps, clamped to the centres of the
    outer positions."""
    h, w = grid.shape
    out = np.empty((H, W))
    for y in range(H):
        for x in range(W):
            v, u = (
                np.clip((y + 0.5) * h / H - 0.5, 0, h - 1),
                np.clip((x + 0.5) * w / W - 0.5, 0, w - 1),
            )
            t, l = int(v), int(u)
            b, r, fv, fu = min(t + 1, h - 1), min(l + 1, w - 1), v - t, u - l
            upper, lower = ((1 - fu) * grid[row, l] + fu * grid[row, r] for row in (t, b))
            out[y, x] = (1 - fv) * upper + fv * lower
    return out


# Diffusion


def slow_diffusion(maps: np.ndarray, features: np.ndarray, side: int, tau: float) -> np.ndarray:
    """Position by position: the softmax over the neighbours' cosines, of those inside the map."""
    out, (B, _, h, w), r = np.empty_like(maps), maps.shape, side // 2
    for b, y, x in np.ndindex(B, h, w):
        near = [
            (v, u)
            for v in range(y - r, y + r + 1)
            for u in range(x - r, x + r + 1)
            if 0 <= v < h and 0 <= u < w
        ]
        own = features[b, :, y, x]
        cosines = [
            own @ features[b, :, v, u] / np.linalg.norm(own) / np.linalg.norm(features[b, :, v, u])
            for v, u in near
        ]
        weight = np.exp(np.array(cosines) / tau)
        around = np.stack([maps[b, :, v, u] for v, u in near])  # (n, C)
        out[b, :, y, x] = weight @ around / weight.sum()
    return out


@pytest.mark.parametrize("side, tau", [(1, 0.1), (3, 0.1), (7, 0.5), (15, 0.1)])
def test_diffusion_equals_a_slow_reference_up_to_the_edges(side, tau):
    maps, features = random(2, 3, 5, 6).double(), random(2, 4, 5, 6, seed=1).double()
    found = diffuse(maps, features, side, tau)
    wanted = slow_diffusion(maps.numpy(), features.numpy(), side, tau)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)
    if side == 1:
        torch.testing.assert_close(found, maps, rtol=0, atol=1e-15)


def test_scores_spread_within_a_tissue_and_not_over_its_border():
    left = torch.arange(6) < 3
    features = torch.stack([left, ~left]).double().view(1, 2, 1, 6).expand(1, 2, 4, 6)
    maps = random(1, 1, 4, 6).double()
    found = diffuse(maps, features, 15, tau=0.01)  # all positions are neighbours
    for half in (left, ~left):
        mean = maps[..., half].mean()
        torch.testing.assert_close(found[..., half], mean.expand(1, 1, 4, 3), rtol=0, atol=1e-12)


# Cosine maps


def test_cosine_maps_of_a_hand_made_2x2_map():
    # four positions: (3, 4) and (0, 5) above (-2, 0) and (1, 1)
    features = torch.tensor([[[3.0, 0.0], [-2.0, 1.0]], [[4.0, 5.0], [0.0, 1.0]]])[
        None
    ]  # (1, 2, 2, 2)
    maps = cosine_maps(features, torch.tensor([[2.0, 0.0], [0.0, -0.1]]))
    r = math.sqrt(0.5)
    torch.testing.assert_close(
        maps, torch.tensor([[[[0.6, 0.0], [-1.0, r]], [[-0.8, -1.0], [0.0, -r]]]])
    )


def test_cosine_maps_ignore_the_length_of_features_and_prototypes():
    features, prototypes = random(2, 5, 4, 4).double(), random(3, 5, seed=1).double()
    maps = cosine_maps(features, prototypes)
    longer = torch.tensor([0.01, 7, 300.0], dtype=torch.float64)[:, None]
    torch.testing.assert_close(
        cosine_maps(features * 40, prototypes * longer), maps, rtol=1e-12, atol=1e-14
    )
    assert maps.abs().max() <= 1 + 1e-12
    torch.testing.assert_close(
        cosine_maps(prototypes[:1, :, None, None], prototypes)[0, 0], torch.ones(1, 1).double()
    )


def test_an_empty_position_is_similar_to_nothing():
    assert cosine_maps(torch.zeros(1, 3, 2, 2), random(4, 3)).eq(0).all()


def test_half_a_cosine_keeps_the_length_of_the_prototypes():
    features = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)
    prototypes = torch.tensor([[2.0, 0.0], [0.0, -0.1]])
    torch.testing.assert_close(
        cosine_maps(features, prototypes, "half").flatten(), torch.tensor([1.2, -0.08])
    )


# Merging sub-classes


def test_the_mean_over_sub_classes_of_a_hand_made_map():
    maps = torch.tensor([1.0, 2.0, 6.0, -1.0, 0.0, 4.0]).view(1, 6, 1, 1) * torch.tensor(
        [[1.0, 10.0]]
    )  # (1, 6, 1, 2)
    torch.testing.assert_close(
        merge_subclasses(maps, (3, 3), "mean"), torch.tensor([[[[3.0, 30.0]], [[1.0, 10.0]]]])
    )


def test_the_softmax_merge_weighs_each_sub_class_by_its_own_softmax():
    logits = torch.tensor([[0.0, math.log(3), 5.0, 5.0]])  # (1, 4): weights 1/4 and 3/4, then equal
    torch.testing.assert_close(
        merge_subclasses(logits, (2, 2), "softmax"), torch.tensor([[0.75 * math.log(3), 5.0]])
    )
    far = torch.tensor([[50.0, -50.0]])
    torch.testing.assert_close(
        merge_subclasses(far, (2,), "softmax"), torch.tensor([[50.0]])
    )  # one sub-type is enough
    torch.testing.assert_close(merge_subclasses(far, (2,), "mean"), torch.tensor([[0.0]]))


@pytest.mark.parametrize("how", ["mean", "softmax"])
def test_with_one_sub_class_a_merge_changes_nothing(how):
    maps = random(2, 3, 4, 4)
    assert merge_subclasses(maps, (1, 1, 1), how).equal(maps)


# Ranges and shares


def test_unit_range_stretches_each_map_by_its_own_ends():
    maps = torch.tensor([[[-1.0, 0.0], [1.0, 3.0]], [[10.0, 10.5], [11.0, 12.0]]])
    torch.testing.assert_close(
        unit_range(maps), torch.tensor([[[0, 0.25], [0.5, 1]], [[0, 0.25], [0.5, 1]]])
    )
    assert (
        unit_range(torch.full((2, 2), 7.0)).eq(0).all()
    )  # a constant map has no foreground to speak of


def test_each_present_class_has_its_share_of_every_position():
    logits = torch.tensor([[[[0.0, 2.0]], [[math.log(3), 2.0]], [[9.0, -9.0]]]])  # (1, 3, 1, 2)
    shares = present_share(logits, torch.tensor([[1, 1, 0]]))
    torch.testing.assert_close(shares, torch.tensor([[[[0.25, 0.5]], [[0.75, 0.5]], [[0.0, 0.0]]]]))
    assert (
        present_share(logits, torch.tensor([[0, 1, 0]]))[0, 1].eq(1).all()
    )  # alone, a class has it all
    logits.requires_grad_()
    nothing = present_share(logits, torch.tensor([[0, 0, 0]]))
    nothing.sum().backward()
    assert (
        nothing.eq(0).all() and logits.grad.eq(0).all()
    )  # no class, no share, and no NaN on the way back


# Masked averages and hypercolumns


def pyramid(dtype=torch.float64) -> list[torch.Tensor]:
    """Three levels of two images: (2, 3, 8, 8), (2, 5, 4, 4), (2, 2, 2, 2)."""
    sides = ((3, 8), (5, 4), (2, 2))
    return [random(2, D, n, n, seed=D).to(dtype) for D, n in sides]


def slow_average(features: list[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """One image, one map of weights, one channel after the other."""
    B, U = weights.shape[:2]
    fine = features[0].shape[2:]
    out = np.zeros((B, U, sum(level.shape[1] for level in features)))
    for b, u in np.ndindex(B, U):
        enlarged, done = slow_bilinear(weights[b, u], *fine), 0
        for level in features:
            D, h, w = level.shape[1:]
            # the mean of the block of fine positions under each of the level's own
            blocks = enlarged.reshape(h, fine[0] // h, w, fine[1] // w).mean((1, 3))
            for d in range(D):
                total = sum(blocks[y, x] * level[b, d, y, x] for y, x in np.ndindex(h, w))
                out[b, u, done + d] = total / blocks.sum()
            done += D
    return out


@pytest.mark.parametrize("side", [2, 4, 8, 3])
def test_masked_average_equals_a_walk_over_levels_channels_and_positions(side):
    weights = torch.rand(2, 4, side, side, generator=torch.Generator().manual_seed(1)).double()
    found = masked_average(pyramid(), weights)
    assert found.shape == (2, 4, 10)
    wanted = slow_average([level.numpy() for level in pyramid()], weights.numpy())
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)


def test_a_weight_of_1_gives_the_mean_of_each_level_and_any_constant_the_same():
    levels = pyramid()
    wanted = torch.cat([level.mean((2, 3)) for level in levels], 1)  # (2, D)
    for constant in (1.0, 0.01, 7.0):
        found = masked_average(levels, torch.full((2, 1, 8, 8), constant).double())
        torch.testing.assert_close(found[:, 0], wanted, rtol=1e-12, atol=1e-12)


def test_one_position_of_weight_picks_its_features_at_every_level():
    levels, one_hot = pyramid(), torch.zeros(2, 1, 8, 8).double()
    one_hot[:, :, 5, 2] = 0.3  # its length plays no part
    found = masked_average(levels, one_hot)[:, 0]  # (2, D)
    # position (5, 2) of eight lies in (2, 1) of four and (1, 0) of two
    wanted = torch.cat([levels[0][:, :, 5, 2], levels[1][:, :, 2, 1], levels[2][:, :, 1, 0]], 1)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_two_positions_average_by_their_weights():
    level = torch.tensor([[[[10.0, 20.0], [30.0, 40.0]]]])
    weights = torch.tensor([[[[1.0, 0.0], [0.0, 3.0]]]])
    assert masked_average([level], weights).item() == pytest.approx((10 + 3 * 40) / 4)


def test_a_weight_of_zeros_gives_zeros_and_a_finite_gradient():
    weights = torch.zeros(2, 2, 4, 4).double().requires_grad_()
    found = masked_average(pyramid(), weights)
    found.sum().backward()
    assert found.eq(0).all() and weights.grad.isfinite().all()


def test_the_gradient_of_a_masked_average_is_how_far_a_position_stands_from_the_mean():
    level = random(1, 3, 4, 4).double()
    weights = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(1)).double()
    weights.requires_grad_()
    look = torch.tensor([0.5, -2.0, 1.0]).double()
    mean = masked_average([level], weights)[0, 0]  # (3,)
    (mean @ look).backward()
    # d/dw_i of sum w x / sum w is (x_i - mean) / sum w
    away = level[0].permute(1, 2, 0) - mean.detach()  # (4, 4, 3)
    torch.testing.assert_close(
        weights.grad[0, 0], away @ look / weights.detach().sum(), rtol=1e-12, atol=1e-14
    )


def test_an_average_under_one_map_does_not_depend_on_the_other_maps_and_images():
    levels = pyramid()
    weights = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(1)).double()
    whole = masked_average(levels, weights)
    alone = masked_average([level[1:] for level in levels], weights[1:, 2:])
    torch.testing.assert_close(alone[0, 0], whole[1, 2], rtol=1e-12, atol=0)


def test_a_hypercolumn_has_every_level_at_every_position():
    levels = pyramid()
    for size in ((8, 8), (4, 4), (5, 3)):
        found = stack_levels(levels, size).numpy()  # (2, 10, *size)
        channels = [level[:, d] for level in levels for d in range(level.shape[1])]
        for d, channel in enumerate(channels):
            for b in range(2):
                wanted = slow_bilinear(channel[b].numpy(), *size)
                np.testing.assert_allclose(found[b, d], wanted, rtol=0, atol=1e-12)


# Poses


def test_a_pose_is_numpys_flip_and_rot90_and_unpose_is_the_way_back():
    image = torch.arange(30).view(2, 3, 5)  # not square: every turn can be told from another
    seen = set()
    for k in range(8):
        mirrored = np.flip(image.numpy(), 2) if k >= 4 else image.numpy()
        found = pose(image, k)
        assert np.array_equal(found.numpy(), np.rot90(mirrored, k % 4, (1, 2)))
        assert torch.equal(unpose(found, k), image)
        assert torch.equal(pose(unpose(found, k), k), found)
        seen.add((tuple(found.shape), tuple(found.flatten().tolist())))
    assert len(seen) == 8


def test_the_poses_of_training_and_of_prediction_are_the_same_eight():
    images = random(8, 3, 6, 6)
    turned = dihedral(images, torch.arange(8))
    for k in range(8):
        assert torch.equal(turned[k], pose(images[k], k))
        assert torch.equal(unpose(turned[k], k), images[k])


# Fusion and masks


@pytest.mark.parametrize("size", [(8, 8), (7, 11), (3, 5)])
def test_fuse_is_a_weighted_sum_of_bilinear_maps(size):
    rng = np.random.default_rng(1)
    levels = [rng.normal(size=(2, 3, n, m)) for n, m in ((4, 5), (2, 3), (1, 1))]
    weights = (0.5, -2.0, 0.25)
    found = fuse([torch.from_numpy(m) for m in levels], weights, size).numpy()
    for b in range(2):
        for c in range(3):
            wanted = sum(w * slow_bilinear(m[b, c], *size) for w, m in zip(weights, levels))
            np.testing.assert_allclose(found[b, c], wanted, rtol=0, atol=1e-12)


def test_fuse_of_constant_maps_is_their_weighted_sum():
    maps = [torch.full((1, 2, n, n), v) for n, v in ((4, 1.0), (2, 10.0))]
    assert torch.equal(fuse(maps, (0.25, 0.5), (6, 6)), torch.full((1, 2, 6, 6), 5.25))


def test_fuse_wants_one_weight_per_level():
    with pytest.raises(ValueError):
        fuse([torch.zeros(1, 2, 4, 4)], (0.3, 0.7), (8, 8))


def test_argmax_takes_the_strongest_class_that_the_label_allows():
    scores = torch.tensor(
        [
            [[5.0, 5, 5], [0, 0, 0], [-9, -9, -9]],
            [[4, 6, 4], [1, -1, 0], [-8, -8, -8]],
            [[3, 3, 9], [-1, 2, 0], [-7, -7, -7]],
        ]
    )[None].repeat(3, 1, 1, 1)  # (3, 3, 3, 3)
    labels = torch.tensor([[1, 1, 1], [0, 1, 1], [0, 0, 0]])
    masks = argmax_masks(scores, labels)
    everything = [[0, 1, 2], [1, 2, 0], [2, 2, 2]]  # a tie goes to the lowest index
    assert masks.dtype == torch.uint8
    assert masks.tolist() == [everything, [[1, 1, 2], [1, 2, 1], [2, 2, 2]], everything]


def test_the_running_maximum_is_the_argmax_also_of_ties_and_closed_classes():
    few = torch.randint(0, 3, (4, 5, 16, 16), generator=torch.Generator().manual_seed(0)).float()
    few[0, 1:3] = -torch.inf
    few[1] = -torch.inf
    assert winners(few).equal(few.argmax(1).byte()) and winners(few).dtype == torch.uint8
    assert winners(few[:, :1]).equal(torch.zeros(4, 16, 16, dtype=torch.uint8))


# As released; tests/test_golden.py holds its numbers


def test_unit_scores_stretch_what_is_above_zero():
    maps = torch.tensor(
        [[[-3.0, 0.0], [1.0, 4.0]], [[-1.0, -2.0], [-3.0, -4.0]], [[5.0, 5.0], [5.0, 5.0]]]
    )[None]
    found = unit_scores(maps)
    wanted = torch.tensor(
        [[[0.0, 0.0], [0.25, 1.0]], [[0.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]]
    )[None]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


def test_the_dropped_background_is_high_where_no_class_is():
    scores = torch.tensor([[[0.0, 0.5]], [[0.0, 0.9]]])[None]
    torch.testing.assert_close(
        background_score(scores), torch.tensor([1.0, 1e-10]).view(1, 1, 1, 2), rtol=1e-4, atol=0
    )


def test_a_zeroed_class_ties_with_present_ones_that_score_nothing():
    scores = torch.tensor([[[0.9, 0.9]], [[0.0, 0.4]]])[None]  # (1, 2, 1, 2)
    label = torch.tensor([[0, 1]])
    assert argmax_masks(scores, label).tolist() == [[[1, 1]]]
    # the first class wins the tie
    assert argmax_masks(scores, label, "zeroed").tolist() == [[[0, 1]]]


def test_a_flat_map_is_stretched_as_a_steep_one_is():
    steep = torch.tensor([[[0.0, 1.0], [3.0, 4.0]]])
    wanted = torch.tensor([[[0.0, 0.25], [0.75, 1.0]]])
    for height in (1.0, 1e-3):
        torch.testing.assert_close(unit_range(height * steep), wanted)


def test_with_corners_on_corners_a_fused_map_is_straight_between_them():
    corners = torch.tensor([[[[0.0, 3.0], [6.0, 9.0]]]])
    found = fuse([corners], (2.0,), (4, 4), align_corners=True)[0, 0]
    column, row = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    torch.testing.assert_close(found, 2 * (2 * column + row))
    without = fuse([corners], (2.0,), (4, 4))[0, 0]
    # cells of two pixels: corners repeat the border, a quarter and three quarters stand between
    torch.testing.assert_close(without[0], 2 * torch.tensor([0.0, 0.75, 2.25, 3.0]))


def test_the_temperature_of_diffusion_is_a_tenth_where_none_is_given():
    m, features = torch.rand(1, 2, 4, 4), torch.rand(1, 3, 4, 4)
    assert diffuse(m, features, 3).equal(diffuse(m, features, 3, 0.1))
    assert not torch.allclose(diffuse(m, features, 3), diffuse(m, features, 3, 0.2))


def test_a_map_that_lies_above_0_is_stretched_from_its_own_lowest_value():
    found = unit_scores(torch.tensor([[[[1.0, 2.0], [3.0, 5.0]]]]))
    wanted = torch.tensor([[[[0.0, 0.25], [0.5, 1.0]]]])
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    assert found.max() < 1  # never above: it is added to what is divided by


@pytest.mark.parametrize(
    "scores, labels, words",
    [
        (torch.zeros(2, 3, 4), torch.ones(2, 3), "scores .2, 3, 4. and labels .2, 3. do not fit"),
        (torch.zeros(2, 3, 4, 4), torch.ones(2, 2), "labels .2, 2. do not fit"),
        (torch.zeros(2, 3, 4, 4), torch.full((2, 3), 0.5), "values other than 0 and 1; threshold"),
    ],
)
def test_a_gate_refuses_what_does_not_fit(scores, labels, words):
    with pytest.raises(ValueError, match=words):
        gate(scores, labels)
