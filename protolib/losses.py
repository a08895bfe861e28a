"""What each method minimises: classification alone, with the matching loss (Eq. 6), or with the
diversity of learned prototypes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

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
    # (L,)
    per_level = F.binary_cross_entropy_with_logits(
        logits, labels.expand_as(logits), reduction="none"
    ).mean((1, 2))
    return (per_level * per_level.new_tensor(weights)).sum()


def diversity_loss(maps: Tensor, K: int) -> Tensor:
    """How alike the maps of a class's sub-classes are: mean of exp(-J) over pairs, 1 when equal,
    near 0 when apart.

    maps: (B, S, h, w) float logits of one level; J: the Jeffreys divergence of the two maps as
    distributions over positions. LPD (2025) pushes by this divergence; the bounded form is ours.
    Returns a scalar, 0 where K is 1.
    """
    log_p = maps.flatten(2).log_softmax(2).unflatten(1, (-1, K))  # (B, C, K, h*w)
    pairs = [(log_p[:, :, i], log_p[:, :, j]) for i, j in combinations(range(K), 2)]
    if not pairs:
        return maps.sum() * 0
    return torch.stack(
        [(-((a.exp() - b.exp()) * (a - b)).sum(2)).exp().mean() for a, b in pairs]
    ).mean()


def cam_loss(net: ClassNet, batch: dict, p: Preset) -> dict[str, Tensor]:
    """Classification alone: the loss of the plain CAM and of the prototypes without matching.
    Eq. (7, 8), notebook 04."""
    logits = net.logits(net(batch["image"]), p.merge)  # (L, B, C)
    return {"loss": classification_loss(logits, batch["label"], p.level_weights)}


class Learned(NamedTuple):
    """Learned prototypes in the place of a bank: (S, D), in the encoder's own space, which features
    enter as they are."""

    prototypes: Tensor

    def normalize(self, features: Tensor) -> Tensor:
        """Features (..., D) at length 1."""
        return F.normalize(features, dim=-1)


def lpd_loss(
    net: ClassNet, batch: dict, p: Preset, encoder: Encoder | None = None
) -> dict[str, Tensor]:
    """Classification, from step `diversity_after` on the diversity of the learned prototypes' maps,
    and from `matching_after` on, where p.beta is above 0, the matching loss against them. LPD
    (2025), notebook 04.

    encoder: frozen; not asked before it is needed. Whether LPD's release lets the matching loss
    move the prototypes is not known to us: here it does not, as in PBIP.
    """
    maps = net(batch["image"])
    logits = net.logits(maps, p.merge)  # (L, B, C)
    cls = classification_loss(logits, batch["label"], p.level_weights)
    alike = torch.stack([diversity_loss(m, p.K) for m in maps]).mean()
    gamma = p.diversity if batch["step"] >= p.diversity_after else 0.0
    loss, parts = cls + gamma * alike, {"classification": cls, "diversity": alike}
    if p.beta:
        match = maps[-1].sum() * 0
        if batch["step"] >= p.matching_after:
            learned = Learned(net.prototypes.detach())
            match = match_maps(net, batch, maps, p, learned, encoder)
        loss, parts = loss + p.beta * match, parts | {"matching": match}
    return {"loss": loss} | parts


def pbip_loss(
    net: ClassNet, batch: dict, p: Preset, bank: Bank, encoder: Encoder
) -> dict[str, Tensor]:
    """L = alpha * L_CLS + beta * L_SIM, with both parts by name. Eq. (6), notebook 04.

    batch: image (B, 3, H, W) float in [0, 1] and label (B, C); encoder: frozen, the one that made
    the bank.
    """
    maps = net(batch["image"])  # L maps (B, S, h_i, w_i)
    logits = net.logits(maps, p.merge)  # (L, B, C)
    cls = classification_loss(logits, batch["label"], p.level_weights)
    match = match_maps(net, batch, maps, p, bank, encoder)
    match = match + p.penalty * maps[-1].mean()
    loss = p.alpha * cls + trust(bank, p) * p.beta * match
    return {"loss": loss, "classification": cls, "matching": match}


def trust(bank: Bank, p: Preset) -> float:
    """The share of its weight that the matching loss gets where it teaches from the bank: the pure
    patches of the class that has fewest over p.enough, at most 1. Notebook 04.

    1 where p.enough is 0, as in the paper.
    """
    return min(1.0, min(bank.pure().values()) / p.enough) if p.enough else 1.0


def seen_by(
    encoder: Encoder, images: Tensor, p: Preset, net: ClassNet | Encoder
) -> tuple[Tensor | list[Tensor], Callable[[Tensor], Tensor]]:
    """What a matching loss masks or pools, and what makes features of a part of it: p.look.
    Notebook 03.

    images: (B, 3, H, W) float in [0, 1]; net: whose scaling of them is cut, where p.fill says so.
    Returns the encoder's maps (B, D_i, h_i, w_i), whose parts are features already, or images and
    the encoder.
    """
    if p.look != "masked_image":
        return encoder.maps(images), nn.Identity()
    if p.fill == "minmax":  # as released: what the network saw, stretched again
        return net.prepare(images), encoder.features
    return images, encoder


def match_maps(
    net: ClassNet,
    batch: dict,
    maps: list[Tensor],
    p: Preset,
    bank: Bank | Learned,
    encoder: Encoder,
) -> Tensor:
    """The matching loss of a batch: which maps are matched, what the frozen encoder looks at, and
    the space in which both meet. Eq. (3-5), notebook 03.

    batch: image (B, 3, H, W) float in [0, 1] and label (B, C); maps: L maps (B, S, h_i, w_i) of the
    network. Returns a scalar.
    """
    images = batch["image"]
    units = maps if p.pairs == "subclasses" else net.class_maps(maps, p.merge)
    if p.match_maps == "last":
        matched = units[-1]  # (B, U, h, w)
    else:
        matched = fuse(units, p.fusion, maps[0].shape[2:], p.align_corners)  # (B, U, h, w)
    # the MLP of the deepest level, where features and prototypes meet behind it
    projects = p.space == "projected" and p.similarity != "convolution"
    project = net.heads[-1].project if projects else nn.Identity()
    seen, encode = seen_by(encoder, images, p, net)

    def embed(part: Tensor) -> Tensor:
        return F.normalize(project(bank.normalize(encode(part))), dim=1)

    known = torch.as_tensor(bank.prototypes, dtype=images.dtype, device=images.device)
    prototypes = F.normalize(project(known), dim=1)  # (S, D)
    # the prototypes are what to match, not what to move: no gradient through them
    return matching_loss(seen, matched, batch["label"], prototypes.detach(), embed, p)
