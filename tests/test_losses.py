"""What each method minimises: hand-made cases of each part, the weights of the parts, and who
learns from them."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from protolib import losses
from protolib.bank import Bank, Space
from protolib.classnet import ClassNet
from protolib.losses import (
    cam_loss,
    classification_loss,
    diversity_loss,
    lpd_loss,
    match_maps,
    pbip_loss,
    trust,
)
from protolib.maps import fuse
from protolib.matching import matching_loss
from protolib.nets import encoders
from protolib.presets import PRESETS, changed


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


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


# The losses of the methods


def a_bank(prototypes: np.ndarray, K: int, pure: int = 100) -> Bank:
    """A bank of these prototypes (S, D) in the encoder's own space, on `pure` patches a class."""
    S, D = prototypes.shape
    clusters = np.repeat(np.arange(0, S, K), pure)
    space = Space(np.zeros(D, np.float32), np.ones(D, np.float32))
    names = tuple("ABCD"[: S // K])
    return Bank(names, K, "centre", prototypes, space, clusters, clusters, ((),) * S)


class Fixed(nn.Module):
    """A network whose maps are given, of two levels and two classes of two sub-classes, with a
    projection that is a matrix."""

    def __init__(self):
        super().__init__()
        self.sizes, self.asked = (2, 2), []
        self.levels = nn.ParameterList([2 * random(3, 4, n, n, seed=n) for n in (8, 4)])
        self.heads = nn.ModuleList([nn.Module() for _ in range(2)])
        for head in self.heads:
            head.project = nn.Linear(6, 6, bias=False)
            head.project.weight.data = random(6, 6, seed=7)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return list(self.levels)

    def class_maps(self, maps, merge):
        self.asked.append(merge)
        return ClassNet.class_maps(self, maps, merge)

    def logits(self, maps, merge):
        self.asked.append(merge)
        pooled = [m.mean((2, 3)) for m in ClassNet.class_maps(self, maps, merge)]
        return torch.stack(pooled)  # (L, B, C)


class Mosaic:
    """An encoder that looks at colours: maps of two levels, (B, 3, 8, 8) and (B, 3, 4, 4)."""

    def maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [F.adaptive_avg_pool2d(images, n) for n in (8, 4)]


P = replace(
    PRESETS["smoke"],
    K=2,
    levels=(0, 1),
    fusion=(0.3, 0.7),
    level_weights=(1.0, 0.5),
    merge="softmax",
    alpha=0.8,
    beta=0.25,
    penalty=0.0,
)
LABELS = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 1.0]])
BATCH = {
    "image": torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(3)),
    "label": LABELS,
    "step": 0,
}
PROTOTYPES = F.normalize(random(4, 6, seed=5), dim=1).numpy()


def found_by(p, net=None):
    net = net or Fixed()
    return pbip_loss(net, BATCH, p, a_bank(PROTOTYPES, 2), Mosaic()), net


def test_the_loss_of_a_cam_is_the_classification_loss_under_the_merge_of_training():
    net = Fixed()
    p = replace(P, merge="mean", merge_test="softmax")
    found = cam_loss(net, BATCH, p)
    wanted = classification_loss(net.logits(net(None), "mean"), LABELS, (1.0, 0.5))
    assert list(found) == ["loss"] and found["loss"].equal(wanted) and set(net.asked) == {"mean"}


def test_alpha_and_beta_weigh_the_two_parts():
    found, net = found_by(P)
    assert set(net.asked) == {"softmax"}
    classified = cam_loss(net, BATCH, P)["loss"]
    maps = list(net.levels)
    fused = fuse(net.class_maps(maps, "softmax"), (0.3, 0.7), (8, 8))
    seen, prototypes = Mosaic().maps(BATCH["image"]), torch.from_numpy(PROTOTYPES)
    matched = matching_loss(seen, fused, LABELS, prototypes, lambda x: F.normalize(x, dim=1), P)
    torch.testing.assert_close(found["classification"], classified)
    torch.testing.assert_close(found["matching"], matched)
    torch.testing.assert_close(found["loss"], 0.8 * classified + 0.25 * matched)
    without, _ = found_by(replace(P, beta=0.0))
    torch.testing.assert_close(without["loss"], 0.8 * classified)


def test_the_penalty_is_the_mean_of_the_deepest_maps_and_is_paid_for_high_ones():
    plain, net = found_by(P)
    penalised, _ = found_by(replace(P, penalty=0.1))
    mean = net.levels[-1].mean()
    torch.testing.assert_close(penalised["matching"], plain["matching"] + 0.1 * mean)
    torch.testing.assert_close(penalised["loss"], plain["loss"] + 0.25 * 0.1 * mean)
    # so its descent lowers every position alike
    steep, _ = found_by(replace(P, penalty=1e4), net)
    (grad,) = torch.autograd.grad(steep["matching"], [net.levels[-1]])
    assert (grad > 0).all()


def test_of_three_levels_the_last_pays_the_penalty_and_projects():
    net = Fixed()
    net.levels.append(nn.Parameter(random(3, 4, 2, 2, seed=9)))
    net.heads.append(nn.Module())
    net.heads[2].project = nn.Linear(6, 6, bias=False)
    p = replace(P, levels=(0, 1, 2), fusion=(0.2, 0.3, 0.5), level_weights=(1.0, 0.5, 0.5))
    plain, _ = found_by(p, net)
    penalised, _ = found_by(replace(p, penalty=0.1), net)
    added = penalised["matching"] - plain["matching"]
    torch.testing.assert_close(added, 0.1 * net.levels[2].mean(), rtol=1e-4, atol=1e-6)
    projected, _ = found_by(replace(p, space="projected"), net)
    projected["matching"].backward()
    used = [head.project.weight.grad is not None for head in net.heads]
    assert used == [False, False, True]


def test_learned_prototypes_of_one_level_wait_for_their_step_too():
    net = Fixed()
    net.levels = nn.ParameterList([net.levels[0]])
    p = replace(P, levels=(0,), fusion=(1.0,), level_weights=(1.0,), diversity=0.0)
    p = replace(p, prototypes="learnable", matching_after=5)
    early = lpd_loss(net, BATCH | {"step": 4}, p)
    assert early["matching"] == 0
    torch.testing.assert_close(early["loss"], cam_loss(net, BATCH, p)["loss"])


def test_the_last_level_alone_is_matched_where_the_preset_says_so():
    found, net = found_by(replace(P, match_maps="last"))
    grads = torch.autograd.grad(found["matching"], list(net.levels), allow_unused=True)
    assert grads[0] is None and grads[1].abs().sum() > 0
    found, net = found_by(P)  # both levels, by the weights of the fusion
    grads = torch.autograd.grad(found["matching"], list(net.levels))
    assert all(grad.abs().sum() > 0 for grad in grads)


def test_the_projection_learns_by_the_features_and_not_by_moving_the_prototypes():
    net, p, bank = Fixed(), replace(P, space="projected"), a_bank(PROTOTYPES, 2)
    match_maps(net, BATCH, list(net.levels), p, bank, Mosaic()).backward()
    project = net.heads[-1].project
    assert project.weight.grad.abs().sum() > 0 and net.heads[0].project.weight.grad is None
    # the same gradient as where the projected prototypes are constants
    prototypes = F.normalize(project(torch.from_numpy(PROTOTYPES)), dim=1)
    fused = fuse(net.class_maps(list(net.levels), p.merge), p.fusion, (8, 8))
    grads = []
    for targets in (prototypes.detach(), prototypes):
        loss = matching_loss(
            Mosaic().maps(BATCH["image"]),
            fused,
            LABELS,
            targets,
            lambda part: F.normalize(project(bank.normalize(part)), dim=1),
            p,
        )
        grads += torch.autograd.grad(loss, project.weight, retain_graph=True)
    torch.testing.assert_close(project.weight.grad, grads[0])
    assert not torch.allclose(grads[0], grads[1])  # or the comparison would say nothing


def test_the_matching_of_learned_prototypes_sets_in_at_its_step_and_does_not_move_them():
    net = Fixed()
    net.prototypes = torch.nn.Parameter(3 * torch.from_numpy(PROTOTYPES))  # of any length
    p = replace(P, prototypes="learnable", beta=0.1, diversity=0.0, matching_after=5)
    early, late = (lpd_loss(net, BATCH | {"step": step}, p, Mosaic()) for step in (4, 5))
    classified = cam_loss(net, BATCH, p)["loss"]
    fused = fuse(net.class_maps(list(net.levels), p.merge), p.fusion, (8, 8))
    embed = lambda part: F.normalize(part, dim=1)
    seen, prototypes = Mosaic().maps(BATCH["image"]), torch.from_numpy(PROTOTYPES)
    matched = matching_loss(seen, fused, LABELS, prototypes, embed, p)
    assert early["matching"] == 0 and matched > 0
    torch.testing.assert_close(early["loss"], classified)
    torch.testing.assert_close(late["matching"], matched)
    torch.testing.assert_close(late["loss"], classified + 0.1 * matched)
    late["loss"].backward()
    assert net.prototypes.grad is None and net.levels[0].grad.abs().sum() > 0
    # before its step nobody asks the encoder
    assert lpd_loss(net, BATCH | {"step": 4}, p)["loss"].equal(early["loss"])


def test_the_diversity_of_learned_prototypes_sets_in_at_its_step():
    net = Fixed()
    p = replace(P, prototypes="learnable", beta=0.0, diversity=0.5, diversity_after=10)
    early, late = (lpd_loss(net, BATCH | {"step": step}, p) for step in (9, 10))
    alike = torch.stack([diversity_loss(m, 2) for m in net.levels]).mean()
    classified = cam_loss(net, BATCH, p)["loss"]
    for found in (early, late):
        torch.testing.assert_close(found["classification"], classified)
        torch.testing.assert_close(found["diversity"], alike)
    torch.testing.assert_close(early["loss"], classified)
    torch.testing.assert_close(late["loss"], classified + 0.5 * alike)


LOOKS = {
    "masked pooling": {},
    "masked images": {"look": "masked_image"},
    "positions": {"look": "positions"},
    "projected": {"space": "projected"},
    "as released": {
        "look": "masked_image",
        "pairs": "subclasses",
        "match_maps": "last",
        "span": "raw",
        "threshold": "image",
        "fill": "minmax",
        "negatives": "all",
        "pooling": "batch",
    },
}


@pytest.mark.parametrize("settings", LOOKS.values(), ids=LOOKS)
def test_only_network_and_projection_learn_from_the_loss(settings):
    encoder = encoders.load("lite0")
    p = changed(PRESETS["smoke"], settings)
    S, g = 2 * p.K, torch.Generator().manual_seed(0)
    prototypes = F.normalize(torch.randn(S, encoder.D, generator=g), dim=1).numpy()
    bank = a_bank(prototypes.copy(), p.K)
    prompts = torch.from_numpy(bank.prototypes)
    net = ClassNet(p, 2, prompts)
    batch = {
        "image": torch.rand(2, 3, 64, 64, generator=g),
        "label": torch.tensor([[1.0, 0.0], [1.0, 1.0]]),
    }
    weights = {k: v.clone() for k, v in encoder.state_dict().items()}
    pbip_loss(net, batch, p, bank, encoder)["matching"].backward()
    assert all(v.grad is None and not v.requires_grad for v in encoder.parameters())
    assert all(v.equal(weights[k]) for k, v in encoder.state_dict().items())  # batch statistics too
    assert net.prototypes.grad is None and not net.prototypes.requires_grad
    for head in net.heads[-1:] if p.match_maps == "last" else net.heads:
        assert (
            head.project[0].weight.grad.abs().sum() > 0
            and head.project[2].weight.grad.abs().sum() > 0
        )
    assert net.net.net.conv_stem.weight.grad.abs().sum() > 0
    np.testing.assert_array_equal(bank.prototypes, prototypes)


@pytest.mark.parametrize("pure, share", [(4, 4 / 30), (29, 29 / 30), (30, 1.0), (400, 1.0)])
def test_a_bank_on_few_pure_patches_teaches_in_their_proportion(pure, share):
    bank = a_bank(np.eye(4, dtype=np.float32), K=2, pure=pure)
    assert trust(bank, PRESETS["quick"]) == pytest.approx(share, rel=1e-12)
    assert trust(bank, PRESETS["paper_text"]) == 1  # the paper's loss as it stands


def test_the_class_with_fewest_pure_patches_decides():
    bank = a_bank(np.eye(4, dtype=np.float32), K=2)
    fewer = replace(bank, clusters=np.repeat([0, 2], [90, 6]))
    assert fewer.pure() == {"A": 90, "B": 6}
    assert trust(fewer, PRESETS["quick"]) == pytest.approx(0.2, rel=1e-12)


def test_learned_prototypes_take_features_of_any_shape_at_length_1():
    features = random(2, 3, 4, 5)
    found = losses.Learned(torch.zeros(1, 5)).normalize(features)
    torch.testing.assert_close(found, features / features.norm(dim=-1, keepdim=True))


def test_what_is_looked_at_is_what_the_preset_says():
    images, net = BATCH["image"], SimpleNamespace(prepare=lambda x: x - 0.5)
    encoder = SimpleNamespace(maps=lambda x: [x[:, :1]], features=object())
    seen, embed = losses.seen_by(encoder, images, replace(P, look="masked_pooling"), net)
    assert seen[0].equal(images[:, :1]) and embed(images) is images
    masked = replace(P, look="masked_image", fill="black")
    assert losses.seen_by(encoder, images, masked, net) == (images, encoder)
    seen, embed = losses.seen_by(encoder, images, replace(masked, fill="minmax"), net)
    assert seen.equal(images - 0.5) and embed is encoder.features


def test_a_float32_bank_serves_images_of_another_precision():
    net, bank = Fixed().double(), a_bank(PROTOTYPES, 2)
    batch = {"image": BATCH["image"].double(), "label": LABELS}
    found = match_maps(net, batch, list(net.levels), P, bank, Mosaic())
    wanted, _ = found_by(P)
    assert found.dtype == torch.float64
    assert found.item() == pytest.approx(wanted["matching"].item(), rel=1e-5)


def test_a_network_of_convolutions_has_no_projection_to_match_behind():
    net, bank = Fixed(), a_bank(PROTOTYPES, 2)
    p = replace(P, space="projected", similarity="convolution")
    found = match_maps(net, BATCH, list(net.levels), p, bank, Mosaic())
    assert found.equal(match_maps(net, BATCH, list(net.levels), P, bank, Mosaic()))


def test_without_prototypes_of_several_kinds_there_is_nothing_alike():
    maps = random(2, 3, 4, 4).requires_grad_()
    loss = diversity_loss(maps, K=1)
    assert loss.item() == 0 and torch.autograd.grad(loss, maps)[0].eq(0).all()
