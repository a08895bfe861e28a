"""Cosine maps, their merge and the classification loss against hand-made cases; the network's
shapes and gradients."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from protolib import presets
from protolib.classnet import ClassNet, PrototypeHead
from protolib.losses import classification_loss, diversity_loss
from protolib.maps import cosine_maps, merge_subclasses

BACKBONE = "tf_efficientnet_lite0"


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network(
    stride: int = 16,
    levels: tuple = (2, 3, 4),
    C: int = 2,
    prototypes: torch.Tensor | None = None,
    **more,
):
    torch.manual_seed(0)
    equal = (1 / len(levels),) * len(levels)
    chosen = dict(
        levels=levels,
        fusion=equal,
        level_weights=equal,
        stride=stride,
        merge="mean",
        merge_test="mean",
    )
    return ClassNet(replace(presets.PRESETS["quick"], **chosen | more), C, prototypes)


@pytest.fixture(scope="module")
def net() -> ClassNet:
    """Two classes of three sub-classes, in float64: sums in another order then differ by 1e-14, not
    by 1e-6."""
    return network(prototypes=random(6, 8)).double().eval()


# Cosine maps


def test_cosine_maps_of_a_hand_made_2x2_map():
    # four cells: (3, 4) and (0, 5) above (-2, 0) and (1, 1)
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


def test_an_empty_cell_is_similar_to_nothing():
    assert cosine_maps(torch.zeros(1, 3, 2, 2), random(4, 3)).eq(0).all()


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


# Heads and network


def test_a_head_is_the_cosine_with_the_projected_prototypes_times_its_scale():
    torch.manual_seed(0)
    head, features = PrototypeHead(8, 5, 0, "cosine", 10.0, True), random(2, 5, 3, 3, seed=1)
    W1, b1, W2, b2 = (p.detach().double().numpy() for p in head.project.parameters())
    P = np.maximum(random(6, 8).double().numpy() @ W1.T + b1, 0) @ W2.T + b2  # (6, 5)
    X = features.double().numpy().transpose(0, 2, 3, 1)  # (2, 3, 3, 5)
    cosines = X @ P.T / np.linalg.norm(X, axis=-1, keepdims=True) / np.linalg.norm(P, axis=1)
    scale = math.exp(head.log_scale.item())
    np.testing.assert_allclose(
        head(features, random(6, 8)).detach().permute(0, 2, 3, 1),
        scale * cosines,
        rtol=0,
        atol=1e-5,
    )
    assert scale == pytest.approx(10)


@pytest.mark.parametrize("stride, cells", [(8, (8, 8, 8)), (16, (8, 4, 4)), (32, (8, 4, 2))])
def test_maps_at_every_level_have_the_cells_of_their_stride(stride, cells):
    net = network(stride, prototypes=random(6, 8)).eval()
    maps = net(torch.rand(2, 3, 64, 64))
    assert [tuple(m.shape) for m in maps] == [(2, 6, c, c) for c in cells]
    assert [tuple(m.shape) for m in net.class_maps(maps)] == [(2, 2, c, c) for c in cells]
    assert net.sizes == (3, 3) and net.logits(maps).shape == (3, 2, 2)
    assert net.state_dict()["prototypes"].equal(
        random(6, 8)
    )  # saved with the weights, though not learned


def test_without_prototypes_every_level_is_a_1x1_convolution_and_K_is_1():
    net = network(levels=(2, 4), C=4)
    assert net.sizes == (1,) * 4 and [tuple(h.weight.shape) for h in net.heads] == [
        (4, 40, 1, 1),
        (4, 320, 1, 1),
    ]
    maps = net.eval()(torch.rand(1, 3, 64, 64))
    assert [tuple(m.shape) for m in maps] == [(1, 4, 8, 8), (1, 4, 4, 4)]
    assert all(m.equal(c) for m, c in zip(maps, net.class_maps(maps)))


def test_image_logits_are_the_mean_of_each_map_plus_a_bias_of_level_and_class(net):
    a = torch.tensor([[[1.0, 3.0], [5.0, 7.0]], [[0.0, 0.0], [0.0, 8.0]]])[
        None
    ].double()  # (1, 2, 2, 2): means 4, 2
    b = torch.tensor([[[-1.0]], [[6.0]]])[None].double()  # (1, 2, 1, 1)
    small = network(levels=(2, 4)).double()
    with torch.no_grad():
        small.bias.copy_(torch.tensor([[0.5, -2.0], [1.0, 0.0]]))
        assert small.logits([a, b]).tolist() == [[[4.5, 0.0]], [[0.0, 6.0]]]


def test_in_evaluation_mode_an_image_s_maps_do_not_depend_on_its_neighbours(net):
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        together, alone = net(images), net(images[1:2])
        for a, b in zip(together, alone):
            torch.testing.assert_close(a[1:2], b, rtol=0, atol=1e-11)
        net.train()
        moved = (net(images)[2][1:2] - net(images[1:2])[2]).abs().max()
        net.eval()
    assert (
        moved > 1e-3
    )  # batch normalisation sees the neighbours while training: the check above can fail


def test_maps_stay_within_the_scale_of_their_level(net):
    maps = net(torch.rand(2, 3, 64, 64).double())
    for head, m in zip(net.heads, maps):
        assert m.abs().max() <= head.log_scale.exp() * (1 + 1e-12)


# Loss


def test_the_classification_loss_equals_numpy_with_exp_and_log_as_printed():
    logits, labels = (
        random(3, 4, 2).double(),
        torch.tensor([[1, 0], [0, 0], [1, 1], [0, 1]]).double(),
    )
    p, y = 1 / (1 + np.exp(-logits.numpy())), labels.numpy()
    wanted = sum(-(y * np.log(q) + (1 - y) * np.log(1 - q)).mean() for q in p)
    assert classification_loss(logits, labels, (1.0,) * 3).item() == pytest.approx(
        wanted, rel=1e-12
    )
    weighted = classification_loss(torch.zeros(3, 4, 2), labels.float(), (0.0, 0.5, 2.0)).item()
    assert weighted == pytest.approx(2.5 * math.log(2), rel=1e-6)


def test_the_classification_loss_teaches_backbone_projection_scale_and_bias_but_not_prototypes():
    net = network(prototypes=random(6, 8))
    labels = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    classification_loss(net.logits(net(torch.rand(2, 3, 64, 64))), labels, (1.0,) * 3).backward()
    still = [
        name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0
    ]
    assert still == ["prototypes"]


def test_every_public_name_says_where_it_is_shown():
    public = (
        cosine_maps,
        merge_subclasses,
        PrototypeHead,
        ClassNet,
        ClassNet.logits,
        classification_loss,
    )
    assert all("otebook 0" in f.__doc__ for f in public)


# Variants


def test_half_a_cosine_keeps_the_length_of_the_prototypes():
    features = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)
    prototypes = torch.tensor([[2.0, 0.0], [0.0, -0.1]])
    torch.testing.assert_close(
        cosine_maps(features, prototypes, "half").flatten(), torch.tensor([1.2, -0.08])
    )


def test_logits_pooled_first_are_merged_after():
    maps = torch.tensor(
        [[[[0.0, 4.0]], [[2.0, 2.0]]]]
    ).double()  # (1, 2, 1, 2): two sub-classes of one class
    first, last = (
        network(levels=(4,), C=1, prototypes=random(2, 8), merge_test="softmax", pool=pool)
        .double()
        .eval()
        for pool in ("logits", "maps")
    )
    assert first.logits([maps]).item() == pytest.approx(2)  # both average 2
    cell = (
        2 * math.exp(2) / (1 + math.exp(2)),
        (4 * math.exp(2) + 2) / (1 + math.exp(2)),
    )  # softmax of (0, 2), (4, 2)
    assert last.logits([maps]).item() == pytest.approx(sum(cell) / 2, rel=1e-12)


def test_training_and_prediction_may_merge_in_two_ways():
    net = network(levels=(4,), C=1, prototypes=random(2, 8), merge="mean", merge_test="softmax")
    maps = [torch.tensor([50.0, -50.0]).view(1, 2, 1, 1)]
    assert (
        net.train().class_maps(maps)[0].item() == 0 and net.eval().class_maps(maps)[0].item() == 50
    )


def test_bgr_turns_the_order_of_colours_and_nothing_else():
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    rgb, bgr = (network(levels=(4,), order=order).eval() for order in ("rgb", "bgr"))
    torch.testing.assert_close(bgr.prepare(image), rgb.prepare(image.flip(1)), rtol=0, atol=0)
    torch.testing.assert_close(bgr(image)[0], rgb(image.flip(1))[0], rtol=0, atol=0)


def test_equal_maps_are_wholly_alike_and_disjoint_ones_not():
    same = torch.tensor([[0.0, 1.0, 2.0, 3.0]]).view(1, 1, 2, 2).repeat(1, 2, 1, 1)
    assert diversity_loss(same, K=2).item() == pytest.approx(1)
    apart = torch.tensor([[9.0, -9.0], [-9.0, 9.0]]).view(1, 2, 1, 2)
    assert diversity_loss(apart, K=2).item() == pytest.approx(math.exp(-36), rel=1e-3, abs=0)
    a, b = np.array([0.5, 0.5]), np.array([0.2, 0.8])
    jeffreys = ((a - b) * (np.log(a) - np.log(b))).sum()
    pair = torch.tensor(np.log([a, b])).view(1, 2, 1, 2)
    assert diversity_loss(pair, K=2).item() == pytest.approx(math.exp(-jeffreys), rel=1e-12)
    assert diversity_loss(pair, K=1).item() == 0


def test_learnable_prototypes_learn():
    p = replace(presets.PRESETS["quick"], prototypes="learnable", beta=0.0)
    net = ClassNet(p, 2, random(6, 8))
    classification_loss(
        net.logits(net(torch.rand(2, 3, 64, 64))), torch.eye(2), (1.0,) * 3
    ).backward()
    assert net.prototypes.grad.abs().sum() > 0


def test_levels_that_a_backbone_lacks_are_named_with_those_it_has():
    with pytest.raises(
        ValueError,
        match=r"'mit_test' has levels 0 to 3 at \(4, 8, 16, 16\) px per cell, preset 'quick' asks for",
    ):
        ClassNet(replace(presets.PRESETS["quick"], backbone="mit_test"), 2, random(6, 8))


def test_a_preset_s_own_scaling_is_applied_to_the_channels_as_they_come():
    net = network(levels=(4,), order="bgr", scaling=((0.5, 0.25, 0.0), (0.5, 0.25, 2.0)))
    pixel = torch.tensor([1.0, 0.5, 0.75]).view(1, 3, 1, 1)  # R, G, B; so B is scaled first
    torch.testing.assert_close(net.prepare(pixel).flatten(), torch.tensor([0.5, 1.0, 0.5]))
    assert "net.mean" not in net.state_dict()
