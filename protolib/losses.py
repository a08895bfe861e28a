"""What each method minimises: classification alone, with the matching loss, or with the diversity
of learned prototypes."""

from __future__ import annotations

import inspect
from itertools import combinations
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from protolib.maps import fuse
from protolib.matching import matching_loss
from protolib.presets import Preset

if TYPE_CHECKING:  # names of types alone: the losses need no network's code
    from protolib.bank import Bank
    from protolib.classnet import ClassNet
    from protolib.nets.encoders import Encoder


def classification_loss(logits: Tensor, labels: Tensor, weights: tuple[float, ...]) -> Tensor:
    """Weighted sum over levels of the binary cross-entropy of pooled maps. Eq. (7, 8), notebook 04.

    logits: (L, B, C) float; labels: (B, C) float 0 or 1; weights: L floats. Returns a scalar.
    """
    per_level = F.binary_cross_entropy_with_logits(
        logits, labels.expand_as(logits), reduction="none"
    ).mean((1, 2))  # (L,)
    return (per_level * per_level.new_tensor(weights)).sum()


def diversity_loss(maps: Tensor, K: int) -> Tensor:
    """How alike the maps of a class's sub-classes are: mean of exp(-J) over pairs, 1 when equal,
    near 0 when apart. Notebook 04.

    maps: (B, S, h, w) float logits of one level; J: the Jeffreys divergence of the two maps as
    distributions over cells. LPD (2025) pushes by this divergence; the bounded form is ours.
    Returns a scalar, 0 where K is 1.
    """
    log_p = maps.flatten(2).log_softmax(2).unflatten(1, (-1, K))  # (B, C, K, h*w)
    pairs = [(log_p[:, :, i], log_p[:, :, j]) for i, j in combinations(range(K), 2)]
    if not pairs:
        return maps.sum() * 0
    return torch.stack(
        [(-((a.exp() - b.exp()) * (a - b)).sum(2)).exp().mean() for a, b in pairs]
    ).mean()


def bare(net: nn.Module) -> nn.Module:
    """The network itself where accelerate has wrapped it for several processes. Notebook 04."""
    return getattr(net, "module", net)


def cam_loss(net: ClassNet, batch: dict, *, preset: Preset) -> dict[str, Tensor]:
    """Classification alone: the loss of the plain CAM and of the prototypes without matching. Eq.
    (7, 8), notebook 04."""
    logits = bare(net).logits(net(batch["image"]))  # (L, B, C)
    return {"loss": classification_loss(logits, batch["label"], preset.level_weights)}


def lpd_loss(net: ClassNet, batch: dict, *, preset: Preset) -> dict[str, Tensor]:
    """Classification, and from step `diversity_after` on the diversity of the learned prototypes'
    maps. LPD (2025), notebook 04."""
    maps = net(batch["image"])
    cls = classification_loss(bare(net).logits(maps), batch["label"], preset.level_weights)
    alike = torch.stack([diversity_loss(m, preset.K) for m in maps]).mean()
    gamma = preset.diversity if batch["step"] >= preset.diversity_after else 0.0
    return {"loss": cls + gamma * alike, "classification": cls, "diversity": alike}


def pbip_loss(
    net: ClassNet, batch: dict, *, preset: Preset, bank: Bank, encoder: Encoder
) -> dict[str, Tensor]:
    """L = alpha * L_CLS + beta * L_SIM, with both parts by name. Eq. (6), notebook 04.

    batch: image (B, 3, H, W) float in [0, 1] and label (B, C); encoder: frozen, the one that made
    the bank.
    """
    images, labels, inner = batch["image"], batch["label"], bare(net)
    maps = net(images)
    cls = classification_loss(inner.logits(maps), labels, preset.level_weights)
    prototypes = images.new_tensor(bank.prototypes)  # (S, D)
    projected = (
        preset.space == "projected" and preset.similarity != "convolution"
    )  # which has no MLP
    project = inner.heads[-1].project if projected else lambda features: features
    # as released, the encoder sees what the network saw, stretched; else its own preparation of the
    # part of the image
    seen, look = (
        (inner.prepare(images), encoder.features) if preset.fill == "minmax" else (images, encoder)
    )
    units = maps if preset.pairs == "subclasses" else inner.class_maps(maps)
    if preset.match_maps == "last":
        chosen = units[-1]  # (B, C or S, h, w)
    else:
        chosen = fuse(units, inner.fusion, maps[0].shape[2:], preset.align_corners)
    match = matching_loss(
        seen,
        chosen,
        labels,
        F.normalize(project(prototypes), dim=1).detach(),
        lambda x: F.normalize(project(bank.normalize(look(x))), dim=1),
        **rules(preset),
    )
    match = match + preset.penalty * maps[-1].mean()
    return {
        "loss": preset.alpha * cls + preset.beta * match,
        "classification": cls,
        "matching": match,
    }


def rules(preset: Preset) -> dict:
    """The fields of a preset that the matching loss reads. Notebook 03."""
    return {
        name: getattr(preset, name) for name in inspect.getfullargspec(matching_loss).kwonlyargs
    }
