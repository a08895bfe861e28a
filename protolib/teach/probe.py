"""Does a matching loss point at the tissue? Its gradient on maps that know nothing, and how well
that gradient ranks positions: for notebook 03, and for the test that holds what it shows."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor

from protolib.bank import Bank
from protolib.data.patches import PatchDataset
from protolib.data.regions import WHITE
from protolib.losses import seen_by
from protolib.matching import matching_loss
from protolib.nets.encoders import Encoder
from protolib.presets import Preset

GRAIN = 4  # draws along a side of a noise map: blobs of about the size of the phantom's regions
CHUNK = 8  # patches whose masked images are encoded at once; all would take gigabytes


class Mixed(NamedTuple):
    """Patches of several classes, with their masks and the share of each class."""

    images: np.ndarray  # (B, H, W, 3) uint8
    masks: np.ndarray  # (B, Hm, Wm) uint8 0..C
    areas: np.ndarray  # (B, C) float in [0, 1]
    joined: str  # of what they are halves, put side by side; "" where they are whole


def of_several_classes(split: PatchDataset, train: PatchDataset, most: int = 20) -> Mixed:
    """The first patches of a split that show two classes or more, 5 % of the area each.
    Notebook 03.

    A set whose patches were cut inside one annotation has none: then halves of its patches are put
    side by side, each with the next one of another class, so that a study has something to study.
    Where all of them show one and the same class, the halves are those of training patches of one
    class, whose label is their mask but for what is white.
    """
    C, mixed = split.spec.C, np.flatnonzero(split.labels.sum(1) > 1)[:200]
    images, masks, joined = split.images[mixed], split.masks[mixed], ""
    if not (_areas(masks, C) > 0.05).sum(1).max(initial=0) > 1:
        joined, source, shown = (
            f"two {split.split} patches",
            split,
            np.flatnonzero(split.labels.any(1)),
        )
        if len(set(split.labels[shown].argmax(1))) < 2:
            joined, source = "two training patches of one class", train
            shown = train.single_class()
        main = source.labels[shown].argmax(1)  # (n,)
        left = np.arange(min(most, len(shown)))
        right = [(i + np.argmax(np.roll(main, -i) != main[i])) % len(main) for i in left]
        pair = shown[left], shown[right]
        images = _halves(*(source.images[rows] for rows in pair))
        masks = _halves(
            *(_by_label(source, r) if source is train else split.masks[r] for r in pair)
        )
    areas = _areas(masks, C)
    several = np.flatnonzero((areas > 0.05).sum(1) > 1)[:most]
    return Mixed(images[several], masks[several], areas[several], joined)


def _areas(masks: np.ndarray, C: int) -> np.ndarray:
    return np.stack([(masks == c).mean((1, 2)) for c in range(C)], axis=1)  # (n, C)


def _by_label(patches: PatchDataset, rows: np.ndarray) -> np.ndarray:
    """The masks of patches of one class, as their labels tell them: (n, H, W)."""
    white = patches.images[rows].min(3) >= WHITE  # (n, H, W)
    return np.where(white, patches.spec.C, patches.labels[rows].argmax(1)[:, None, None])


def _halves(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The left half of some pictures (n, H, W, ...) beside the right half of others."""
    both = left.copy()
    half = both.shape[2] // 2
    both[:, :, half:] = right[:, :, half:]
    return both


def smooth_noise(shape: tuple[int, int, int, int], seed: int) -> Tensor:
    """Maps that know nothing of the patch: a coarse grid of normal draws, enlarged. Notebook 03.

    shape: (B, U, h, w) of the maps. Returns float32 logits of that shape.
    """
    generator = torch.Generator().manual_seed(seed)
    coarse = 2 * torch.randn(*shape[:2], GRAIN, GRAIN, generator=generator)  # (B, U, 4, 4)
    return F.interpolate(coarse, shape[2:], mode="bicubic", align_corners=False)  # (B, U, h, w)


def main_classes(masks: np.ndarray, C: int, side: int) -> Tensor:
    """The class of most pixels at each position of a map: (B, side, side) int64, C for ignore.
    Notebook 03.

    masks: (B, Hm, Wm) uint8 0..C.
    """
    shares = F.one_hot(torch.from_numpy(masks).long(), C + 1).movedim(-1, 1)  # (B, C + 1, Hm, Wm)
    return F.interpolate(shares.float(), (side, side), mode="area").argmax(1)


def loss_of_maps(
    images: Tensor, maps: Tensor, labels: Tensor, bank: Bank, encoder: Encoder, p: Preset
) -> Tensor:
    """The matching loss of maps that no network made: what losses.match_maps is to a network, where
    features meet prototypes in the encoder's space. Notebook 03.

    images: (B, 3, H, W) float in [0, 1]; maps: (B, U, h, w) float logits, U = C, or S where p.pairs
    is "subclasses"; labels: (B, C) 0 or 1. Returns a scalar.
    """
    seen, encode = seen_by(encoder, images, p, encoder)
    prototypes = images.new_tensor(bank.prototypes)  # (S, D)
    return matching_loss(
        seen, maps, labels, prototypes, lambda part: bank.normalize(encode(part)), p
    )


def pull(
    images: Tensor, maps: Tensor, labels: Tensor, bank: Bank, encoder: Encoder, p: Preset
) -> Tensor:
    """Where the matching loss wants the maps higher, and by how much: -dL/dM, (B, U, h, w) in nats
    a logit. Notebook 03.

    Arguments as in loss_of_maps. A pair's loss is a mean over the pairs of its chunk, so pulls
    compare within a patch, not between patches.
    """
    pulls = []
    for some in torch.arange(len(images)).split(CHUNK):
        leaf = maps[some].detach().requires_grad_()
        loss = loss_of_maps(images[some], leaf, labels[some], bank, encoder, p)
        pulls.append(-torch.autograd.grad(loss, leaf)[0])
    return torch.cat(pulls)


def gradient_auc(pull: Tensor, main: Tensor, labels: Tensor) -> np.ndarray:
    """How well a pull ranks the positions that truly are the class above the others, pair by pair:
    the area under the ROC curve, .5 where it says nothing. Notebook 03.

    pull: (B, C, h, w) float; main: (B, h, w) int64, see main_classes, ignore left out; labels:
    (B, C) 0 or 1. Returns (P,) in [0, 1], of pairs of a patch and a present class that has some of
    the positions and not all.
    """
    areas = []
    for image, c in labels.nonzero().tolist():
        tissue = main[image] < labels.shape[1]  # (h, w)
        inside = (main[image] == c)[tissue]
        if 0 < inside.sum() < len(inside):
            areas.append(roc_auc_score(inside.cpu(), pull[image, c][tissue].cpu()))
    return np.array(areas)
