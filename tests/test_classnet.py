"""The network's heads, maps and logits against hand-made cases, their shapes and gradients."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from protolib import presets
from protolib.classnet import ClassNet, Gates, PrototypeHead
from protolib.losses import classification_loss


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
    chosen = {"levels": levels, "fusion": equal, "level_weights": equal, "stride": stride}
    return ClassNet(replace(presets.PRESETS["quick"], **chosen | more), C, prototypes)


@pytest.fixture(scope="module")
def net() -> ClassNet:
    """Two classes of three sub-classes, in float64: sums in another order then differ by 1e-14, not
    by 1e-6."""
    return network(prototypes=random(6, 8)).double().eval()


# Heads and network


def test_a_head_is_the_cosine_with_the_projected_prototypes_times_its_scale():
    torch.manual_seed(0)
    p = replace(presets.PRESETS["quick"], hidden=0, similarity="cosine", scale=10.0)
    head, features = PrototypeHead(8, 5, p), random(2, 5, 3, 3, seed=1)
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


def test_the_width_between_and_whether_the_scale_is_learned_are_the_preset_s():
    p = replace(presets.PRESETS["quick"], hidden=7)
    for learned in (False, True):
        head = PrototypeHead(8, 5, replace(p, scale_learned=learned))
        shapes = [tuple(part.shape) for part in head.project.parameters()]
        assert shapes == [(7, 8), (7,), (5, 7), (5,)]
        assert head.log_scale.requires_grad == learned


@pytest.mark.parametrize("stride, sides", [(8, (8, 8, 8)), (16, (8, 4, 4)), (32, (8, 4, 2))])
def test_maps_at_every_level_have_the_positions_of_their_stride(stride, sides):
    net = network(stride, prototypes=random(6, 8)).eval()
    maps = net(torch.rand(2, 3, 64, 64))
    assert [tuple(m.shape) for m in maps] == [(2, 6, c, c) for c in sides]
    assert [tuple(m.shape) for m in net.class_maps(maps, "mean")] == [(2, 2, c, c) for c in sides]
    assert net.sizes == (3, 3) and net.logits(maps, "mean").shape == (3, 2, 2)
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
    assert all(m.equal(c) for m, c in zip(maps, net.class_maps(maps, "mean")))


def test_image_logits_are_the_mean_of_each_map_plus_a_bias_of_level_and_class(net):
    a = torch.tensor([[[1.0, 3.0], [5.0, 7.0]], [[0.0, 0.0], [0.0, 8.0]]])[
        None
    ].double()  # (1, 2, 2, 2): means 4, 2
    b = torch.tensor([[[-1.0]], [[6.0]]])[None].double()  # (1, 2, 1, 1)
    small = network(levels=(2, 4)).double()
    with torch.no_grad():
        small.bias.copy_(torch.tensor([[0.5, -2.0], [1.0, 0.0]]))
        assert small.logits([a, b], "mean").tolist() == [[[4.5, 0.0]], [[0.0, 6.0]]]


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


def test_the_classification_loss_teaches_backbone_projection_scale_and_bias_but_not_prototypes():
    net = network(prototypes=random(6, 8))
    labels = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    classification_loss(
        net.logits(net(torch.rand(2, 3, 64, 64)), "mean"), labels, (1.0,) * 3
    ).backward()
    still = [
        name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0
    ]
    assert still == ["prototypes"]


# Variants


def test_logits_pooled_first_are_merged_after():
    maps = torch.tensor(
        [[[[0.0, 4.0]], [[2.0, 2.0]]]]
    ).double()  # (1, 2, 1, 2): two sub-classes of one class
    first, last = (
        network(levels=(4,), C=1, prototypes=random(2, 8), pool=pool).double()
        for pool in ("logits", "maps")
    )
    assert first.logits([maps], "softmax").item() == pytest.approx(2)  # both average 2
    merged = (
        2 * math.exp(2) / (1 + math.exp(2)),
        (4 * math.exp(2) + 2) / (1 + math.exp(2)),
    )  # softmax of (0, 2), (4, 2)
    assert last.logits([maps], "softmax").item() == pytest.approx(sum(merged) / 2, rel=1e-12)


def test_training_and_prediction_may_merge_in_two_ways():
    net = network(levels=(4,), C=1, prototypes=random(2, 8))
    maps = [torch.tensor([50.0, -50.0]).view(1, 2, 1, 1)]
    for mode in (net.train(), net.eval()):  # whoever calls says which, not the mode of the network
        assert mode.class_maps(maps, "mean")[0].item() == 0
        assert mode.class_maps(maps, "softmax")[0].item() == 50


def test_bgr_turns_the_order_of_colours_and_nothing_else():
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    rgb, bgr = (network(levels=(4,), order=order).eval() for order in ("rgb", "bgr"))
    torch.testing.assert_close(bgr.prepare(image), rgb.prepare(image.flip(1)), rtol=0, atol=0)
    torch.testing.assert_close(bgr(image)[0], rgb(image.flip(1))[0], rtol=0, atol=0)


@pytest.mark.parametrize("learned", [False, True])
def test_a_bias_learns_where_the_preset_says_so(learned):
    assert network(bias=learned).bias.requires_grad == learned


def test_learnable_prototypes_learn():
    p = replace(presets.PRESETS["quick"], prototypes="learnable", beta=0.0)
    net = ClassNet(p, 2, random(6, 8))
    logits = net.logits(net(torch.rand(2, 3, 64, 64)), p.merge)
    classification_loss(logits, torch.eye(2), (1.0,) * 3).backward()
    assert net.prototypes.grad.abs().sum() > 0


def test_levels_that_a_backbone_lacks_are_named_with_those_it_has():
    has = r"'mit_test' has levels 0 to 3 at \(4, 8, 16, 16\) px per position"
    with pytest.raises(ValueError, match=has + ", preset 'quick' asks for"):
        ClassNet(replace(presets.PRESETS["quick"], backbone="mit_test"), 2, random(6, 8))


def test_a_preset_s_own_scaling_is_applied_to_the_channels_as_they_come():
    net = network(levels=(4,), order="bgr", scaling=((0.5, 0.25, 0.0), (0.5, 0.25, 2.0)))
    pixel = torch.tensor([1.0, 0.5, 0.75]).view(1, 3, 1, 1)  # R, G, B; so B is scaled first
    torch.testing.assert_close(net.prepare(pixel).flatten(), torch.tensor([0.5, 1.0, 0.5]))
    assert "net.mean" not in net.state_dict()


# SSHR's gates


def test_gates_add_weighed_channels_and_a_mean_of_neighbours():
    torch.manual_seed(0)
    gates = Gates(channels=4, deepest=16).double()
    assert [tuple(v.shape) for v in gates.parameters() if v.ndim > 1] == [
        (2, 16),
        (4, 2),
        (4, 1, 15, 15),
    ]
    assert Gates(channels=4, deepest=7).weigh[0].out_features == 1  # an eighth, but not none
    features, deepest = random(2, 4, 3, 20).double(), random(2, 16, 2, 2, seed=1).double()
    assert gates(features, deepest).equal(features)  # g1 = g2 = 0: as if it were not there
    with torch.no_grad():
        gates.g1.fill_(0.5)
        gates.g2.fill_(-2.0)
    W1, W2 = (layer.weight.detach().numpy() for layer in (gates.weigh[0], gates.weigh[2]))
    pooled = deepest.mean((2, 3)).numpy()  # (2, 16)
    w = 1 / (1 + np.exp(-(np.maximum(pooled @ W1.T, 0) @ W2.T)))  # (2, 4)
    F = features.numpy()
    padded = np.pad(F, ((0, 0), (0, 0), (7, 7), (7, 7)))
    s = np.empty_like(F)
    for y, x in np.ndindex(3, 20):
        s[:, :, y, x] = padded[:, :, y : y + 15, x : x + 15].sum((2, 3)) / 225
    wanted = F + 0.5 * w[:, :, None, None] * F - 2 * s
    # 1 / 225 is kept as float32
    np.testing.assert_allclose(gates(features, deepest).detach(), wanted, rtol=0, atol=1e-7)


def test_a_network_with_gates_begins_as_one_without_and_learns_them():
    more = {"similarity": "convolution", "beta": 0.0, "levels": (2, 4)}
    plain, gated = network(**more).eval(), network(**more, refine="gates").eval()
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for a, b in zip(plain(images), gated(images)):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert plain.gates is None and [g.weigh[0].in_features for g in gated.gates] == [320, 320]
    assert [g.weigh[2].out_features for g in gated.gates] == [40, 320]
    three = network(**more | {"levels": (2, 3, 4)}, refine="gates")
    assert [g.weigh[0].in_features for g in three.gates] == [320] * 3  # what the deepest says
    assert [f.shape[1] for f in three.features(three.prepare(images))] == [40, 112, 320]
    sum(m.square().sum() for m in gated(images)).backward()
    assert all(g.g1.grad.abs() > 0 and g.g2.grad.abs() > 0 for g in gated.gates)


def test_maps_are_the_features_of_the_levels_compared(net):
    prepared = net.prepare(random(2, 3, 64, 64).double())
    with torch.no_grad():
        features = net.features(prepared)
        assert [f.shape[1] for f in features] == [40, 112, 320]
        for a, b in zip(net.read(prepared), net.compare(features)):
            assert a.equal(b)
