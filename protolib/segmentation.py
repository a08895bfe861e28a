"""Stage 2: DeepLab-v2 trained on pseudo masks alone, and its prediction of whole images."""

from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from protolib.maps import pose, unpose, winners
from protolib.nets.backbones import backbone
from protolib.presets import Preset
from protolib.processes import weight


class Masks(Protocol):
    """Masks (H, W) uint8 by index: an array of them, or files that are read when asked for."""

    def __getitem__(self, i: int, /) -> np.ndarray: ...


def stage2(p: Preset) -> Preset:
    """The preset as the training of stage 2 reads it: its own epochs and learning rate, no warm-up,
    stains as they are. Notebook 05."""
    epochs, lr = p.stage2_epochs, p.stage2_lr
    return replace(p, epochs=epochs, lr=lr, lr_power=1.0, warmup=0.0, stain_jitter=0.0)


class DeepLabV2(nn.Module):
    """A dilated backbone and four atrous branches, summed. Chen et al., TPAMI 40(4), 2018;
    notebook 05.

    images (B, 3, H, W) float in [0, 1] -> logits (B, C, H, W). p.stage2_rates: dilation of each
    branch in positions of the deepest map; the published 6, 12, 18, 24 fit the 41 positions of a
    321 px image and overshoot the 14 of a small patch. p.stage2_size: small patches are enlarged
    for the backbone, which gives their deepest map more positions.
    """

    def __init__(self, p: Preset, C: int):
        super().__init__()
        self.net = backbone(p.stage2_backbone or p.backbone, p.stage2_stride)
        self.zoom = p.stage2_size / p.size
        deepest = self.net.channels[-1]
        self.branches = nn.ModuleList(
            nn.Conv2d(deepest, C, 3, padding=rate, dilation=rate) for rate in p.stage2_rates
        )

    def forward(self, images: Tensor) -> Tensor:
        size = images.shape[2:]
        larger = [round(side * self.zoom) for side in size]  # px that the backbone sees
        images = F.interpolate(images, larger, mode="bilinear", align_corners=False)
        deepest = self.net(images)[-1]  # (B, C_L, h, w)
        logits = sum(branch(deepest) for branch in self.branches)  # (B, C, h, w)
        return F.interpolate(logits, size, mode="bilinear", align_corners=False)


def segmentation_loss(net: nn.Module, batch: dict) -> dict[str, Tensor]:
    """Pixel cross-entropy on the batch's masks, ignore pixels (index C) left out. Notebook 05."""
    logits = net(batch["image"])
    C, masks = logits.shape[1], batch["mask"]
    total = F.cross_entropy(logits, masks, ignore_index=C, reduction="sum")
    judged = (masks != C).sum()
    # 0 where no pixel is judged
    return {"loss": weight(judged, total) * total / judged.clamp_min(1)}


class MaskedPatches(Dataset):
    """The patches of a split with other masks, one per patch: what stage 2 trains on. Notebook 05.

    masks: n of (Hm, Wm) uint8 in 0..C, or anything that gives them one by one; each is brought to
    the patches' size by nearest neighbour, for codes have no average.
    """

    def __init__(self, patches, masks: Masks):
        self.patches, self.ids, self.masks = patches, patches.ids, masks

    def __len__(self) -> int:
        return len(self.patches)

    def __getitem__(self, i: int) -> dict:
        item = self.patches[i]  # its own mask, if any, gives way to ours
        mask = torch.from_numpy(np.array(self.masks[i]))[None, None]  # (1, 1, Hm, Wm)
        same = F.interpolate(mask, item["image"].shape[1:], mode="nearest-exact")
        return item | {"mask": same[0, 0].long()}  # (H, W)


@torch.no_grad()
def predict(net: DeepLabV2, images: Tensor, tta: bool) -> Tensor:
    """Class scores of whole images, averaged over the eight poses of training if tta:
    (B, C, H, W) probabilities. Notebook 05.

    images: (B, 3, H, W) float in [0, 1], H and W of any size: the network is fully convolutional.
    """
    net.eval()
    poses = range(8 if tta else 1)
    # probabilities are averaged, not logits: one pose that is very sure must not decide alone
    scores = [unpose(net(pose(images, k)).softmax(1), k) for k in poses]
    return torch.stack(scores).mean(0)


def present_classes(scores: Tensor, share: float = 0.03) -> Tensor:
    """The image label that a mask predicts: classes that win at least `share` of its pixels.
    Notebook 05.

    scores: (B, C, H, W) float. Returns (B, C) bool. A segmentation network has no image-level
    output, so its own mask gives the "predicted labels" of the protocol; the share is the
    phantom's own rule for a label.
    """
    won = winners(scores)  # (B, H, W)
    area = [(won == c).float().mean((1, 2)) for c in range(scores.shape[1])]  # C of (B,)
    return torch.stack(area, 1) >= share
