"""Stage 2: DeepLab-v2 trained on pseudo masks alone, and its prediction of whole images."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from protolib.nets.backbones import backbone


class DeepLabV2(nn.Module):
    """A dilated backbone and four atrous branches, summed. Chen et al., TPAMI 40(4), 2018; notebook
    05.

    images (B, 3, H, W) float in [0, 1] -> logits (B, C, H, W). rates: dilation of each branch in
    cells of the deepest map; the published 6, 12, 18, 24 fit the 41 cells of a 321 px image and
    overshoot the 14 of a small patch. zoom: small patches are enlarged for the backbone, which
    gives their deepest map more cells.
    """

    def __init__(
        self,
        name: str,
        stride: int,
        C: int,
        rates: tuple[int, ...] = (6, 12, 18, 24),
        zoom: float = 1.0,
    ):
        super().__init__()
        self.net, self.zoom = backbone(name, stride), zoom
        self.branches = nn.ModuleList(
            nn.Conv2d(self.net.channels[-1], C, 3, padding=r, dilation=r) for r in rates
        )

    def forward(self, images: Tensor) -> Tensor:
        size = images.shape[2:]
        images = F.interpolate(
            images, [round(side * self.zoom) for side in size], mode="bilinear", align_corners=False
        )
        deepest = self.net(images)[-1]  # (B, C_L, h, w)
        logits = sum(branch(deepest) for branch in self.branches)
        return F.interpolate(logits, size, mode="bilinear", align_corners=False)


def segmentation_loss(net: nn.Module, batch: dict) -> dict[str, Tensor]:
    """Pixel cross-entropy on the batch's masks, ignore pixels (index C) left out. Notebook 05."""
    logits = net(batch["image"])
    C = logits.shape[1]
    if (batch["mask"] == C).all():  # cross_entropy of no pixel is NaN
        return {"loss": logits.sum() * 0}
    return {"loss": F.cross_entropy(logits, batch["mask"], ignore_index=C)}


class MaskedPatches(Dataset):
    """The patches of a split with other masks, one per patch: what stage 2 trains on. Notebook 05.

    masks: (n, Hm, Wm) uint8 in 0..C; brought to the patches' size by nearest neighbour, for codes
    have no average.
    """

    def __init__(self, dataset, masks: np.ndarray):
        self.dataset, self.ids = dataset, dataset.ids
        size = dataset.images.shape[1:3]
        self.masks = F.interpolate(torch.from_numpy(masks)[:, None], size, mode="nearest-exact")[
            :, 0
        ]  # (n, H, W)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> dict:
        return self.dataset[i] | {"mask": self.masks[i].long()}


@torch.no_grad()
def predict(net: DeepLabV2, images: Tensor, tta: bool) -> Tensor:
    """Class scores of whole images, averaged over the eight poses of training if tta: (B, C, H, W)
    probabilities. Notebook 05.

    images: (B, 3, H, W) float in [0, 1], H and W of any size: the network is fully convolutional.
    """
    net.eval()
    scores = []
    for pose in range(8 if tta else 1):  # as training.dihedral: mirrored from 4 on, then turned
        view = (images.flip(3) if pose >= 4 else images).rot90(pose % 4, (2, 3))
        back = net(view).softmax(1).rot90(-(pose % 4), (2, 3))
        scores.append(back.flip(3) if pose >= 4 else back)
    return torch.stack(scores).mean(0)


def present_classes(scores: Tensor, share: float = 0.03) -> Tensor:
    """The image label that a segmentation predicts: classes that win at least `share` of its
    pixels. Notebook 05.

    scores: (B, C, H, W) float. Returns (B, C) bool. A segmentation network has no image-level
    output, so its own mask gives the "predicted labels" of the protocol; the share is the phantom's
    own rule for a label.
    """
    winners = F.one_hot(scores.argmax(1), scores.shape[1])  # (B, H, W, C)
    return winners.float().mean((1, 2)) >= share
