"""The released training, clustering and evaluation, written naively from their formulas: the other
side of ratios.

A loop over pairs, each foreground and background picture made and encoded one after the other by
an encoder whose weights take a gradient; a loop over rows; a loop over images, views and classes
through numpy. The equations are those of the golden vectors' description; nothing here is tuned.
"""

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import binary_erosion
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


def kmeans(X: np.ndarray, centres: np.ndarray, max_iter: int = 100) -> np.ndarray:
    """Cosine k-means, one row after the other: labels (n,). X: (n, D); centres: (K, D)."""
    labels = np.zeros(len(X), int)
    for _ in range(max_iter):
        for i, row in enumerate(X):
            length = np.linalg.norm(row)
            labels[i] = np.argmax([row @ c / (length * np.linalg.norm(c)) for c in centres])
        before, centres = centres, centres.copy()
        for k in range(len(centres)):
            if (labels == k).any():
                mean = X[labels == k].mean(0)
                centres[k] = mean / np.linalg.norm(mean)
        if np.allclose(before, centres, rtol=1e-5, atol=1e-8):
            break
    return labels


def white_share(images: np.ndarray) -> np.ndarray:
    """Share of pixels whose optical density is below .15 in every colour: (n,)."""
    density = -np.log((images.astype(float) + 1) / 256)  # (n, H, W, 3)
    return (density < 0.15).all(3).mean((1, 2))


@torch.no_grad()
def six_views(net: nn.Module, images: Tensor, labels: Tensor, weights, K: int) -> list[np.ndarray]:
    """Masks of images, one at a time, each view and class on its way through numpy.

    net: (1, 3, H, W) -> L maps (1, S, h, w); images: (B, 3, H, W); labels: (B, C), 0 or 1.
    """
    masks = []
    for image, label in zip(images, labels):
        total = np.zeros((labels.shape[1], *image.shape[1:]))
        for mirrored in (False, True):
            for brightness in (0.9, 1.0, 1.1):
                view = brightness * (image.flip(2) if mirrored else image)
                for weight, maps in zip(weights, net(view[None])):
                    for c in range(len(total)):
                        group = maps[0, c * K : c * K + K]
                        merged = (group.softmax(0) * group).sum(0).clamp_min(0)
                        low, high = merged.min().item(), merged.max().item()
                        score = (merged - low) / (high - low + 1e-6) * label[c]
                        size = image.shape[1:]
                        large = F.interpolate(
                            score[None, None], size, mode="bilinear", align_corners=True
                        )
                        back = large[0, 0].numpy()
                        total[c] += weight * (back[:, ::-1] if mirrored else back) / 6
        masks.append(total.argmax(0).astype(np.uint8))
    return masks


def score(
    truth: np.ndarray, predicted: np.ndarray, C: int, d: int
) -> tuple[np.ndarray, np.ndarray]:
    """Confusion matrix (C+1, C+1) and, per class, pixels in intersection and union of its border
    bands, (2, C): one image and one class at a time, each band by d erosions."""
    matrix, boundary = np.zeros((C + 1, C + 1), int), np.zeros((2, C), int)
    for t, p in zip(truth, predicted):
        for i in range(C + 1):
            for j in range(C + 1):
                matrix[i, j] += ((t == i) & (p == j)).sum()
        p = np.where(t < C, p, C + 1)  # what is not judged is cut out of both
        for c in range(C):
            bands = []
            for mask in (t == c, p == c):
                inside = binary_erosion(mask, np.ones((3, 3)), iterations=d)
                bands.append(mask & ~inside)
            boundary[0, c] += (bands[0] & bands[1]).sum()
            boundary[1, c] += (bands[0] | bands[1]).sum()
    return matrix, boundary
