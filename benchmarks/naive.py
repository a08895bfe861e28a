"""A step of the released training, written naively from its formulas: the other side of ratios.

A loop over pairs, each foreground and background picture made and encoded one after the other by
an encoder whose weights take a gradient, and no step fused with another. The equations are those of
the golden vectors' description; nothing here is tuned.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def pair_picture(image: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
    """One picture (3, H, W): image times map, each channel stretched to [0, 1], then masked."""
    product = weight * image
    low = product.flatten(1).min(1).values[:, None, None]
    high = product.flatten(1).max(1).values[:, None, None]
    return (product - low) / (high - low + 1e-8) * mask


def matching_loss(
    images: Tensor, maps: Tensor, labels: Tensor, prototypes: Tensor, encode: nn.Module, K: int
) -> Tensor:
    """The released matching loss of a batch, one pair after the other: a scalar.

    images: (B, 3, H, W); maps: (B, S, h, w) logits of the last level; labels: (B, C).
    """
    large = F.interpolate(maps, images.shape[2:], mode="bilinear", align_corners=True)
    fg, bg, own, other = [], [], [], []
    pooled = maps.mean((2, 3))
    for i in range(len(images)):
        cut = 0.5 * large[i].max()
        for s in range(maps.shape[1]):
            siblings = pooled[i, s // K * K : s // K * K + K]
            if labels[i, s // K].item() == 0 or pooled[i, s].item() <= siblings.mean().item():
                continue
            mask = (large[i, s] >= cut).float()
            fg.append(encode(pair_picture(images[i], large[i, s], mask)[None])[0])
            bg.append(encode(pair_picture(images[i], 1 - large[i, s], 1 - mask)[None])[0])
            own.append(prototypes[s])
            other.append(torch.cat([prototypes[:s], prototypes[s + 1 :]]))
    if not fg:
        return maps.sum() * 0
    unit_fg, unit_bg = (F.normalize(torch.stack(part), dim=1) for part in (fg, bg))
    own, other = torch.stack(own), torch.stack(other)  # (P, D), (P, S - 1, D)
    tau = 0.07
    p_fg = ((unit_fg * own).sum(1) / tau).exp().sum()
    q_fg = (torch.einsum("pd,pnd->pn", unit_fg, other) / tau).exp().sum()
    p_bg = ((unit_bg * own).sum(1) / tau).exp().sum()
    q_bg = (torch.einsum("pd,pnd->pn", unit_bg, other) / tau).exp().mean(1).sum()
    return -(p_fg / (p_fg + q_fg)).log() - (q_bg / (q_bg + p_bg)).log()
