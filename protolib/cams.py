"""From similarity maps to fused CAMs, masks, and pseudo masks on disk with the manifest that says
whose they are."""

import os
import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from protolib.classnet import ClassNet
from protolib.files import read_json, write_json
from protolib.maps import argmax_masks, fuse, unit_scores
from protolib.presets import Preset

# what a view does to the patch, and whether the image-level logits are read off it: (mirrored,
# brightness, read)
VIEWS = {
    "none": ((False, 1.0, True),),
    "mirror": ((False, 1.0, True), (True, 1.0, True)),
    "six": tuple(
        (m, f, not m and f == 1.0) for m in (False, True) for f in (0.9, 1.0, 1.1)
    ),  # utils/validate.py
}


@torch.no_grad()
def predict(net: ClassNet, images: Tensor, p: Preset, tta: str) -> tuple[Tensor, Tensor]:
    """Fused CAMs and image-level logits of a batch, averaged over the views of `tta`. Notebook 04.

    images: (B, 3, H, W) float in [0, 1]; tta: a key of VIEWS. Returns CAMs (B, C, H, W), logits or
    in [0, L] by p.scores, and logits (B, C); logit > 0 means present. Brightness multiplies the
    prepared image, as in the released code.
    """
    scores, logits = [], []
    for mirrored, brightness, read in VIEWS[tta]:
        maps = net.read(brightness * net.prepare(images.flip(3) if mirrored else images))
        classes = net.class_maps(maps)
        if p.scores == "unit":
            classes = [unit_scores(m) for m in classes]
        score = fuse(classes, net.fusion, images.shape[2:], p.align_corners)
        scores.append(score.flip(3) if mirrored else score)
        if read:
            logits.append(
                net.logits(maps).mean(0) if p.pool == "maps" else net.logits(maps)[-1]
            )  # (L, B, C) -> (B, C)
    return torch.stack(scores).mean(0), torch.stack(logits).mean(0)


@torch.no_grad()
def predict_split(net: ClassNet, dataset, p: Preset, tta: str, batch: int = 32, bar: bool = True):
    """Yield index (B,), CAMs (B, C, H, W) and logits (B, C) over a split, on the CPU, in its order.
    Notebook 04."""
    net.eval()
    device = next(net.parameters()).device
    quiet = {} if bar else {"disable": True}  # disable=False would overrule TQDM_DISABLE
    for items in tqdm(
        DataLoader(dataset, batch_size=batch), f"CAMs of {dataset.split}", leave=False, **quiet
    ):
        cams, logits = predict(net, items["image"].to(device).float() / 255, p, tta)
        yield items["index"], cams.cpu(), logits.cpu()


def pseudo_masks(net: ClassNet, dataset, folder: Path, p: Preset, manifest: dict) -> None:
    """Write one palette PNG per training patch, its image label closing the absent classes, and
    manifest.json. Notebook 04.

    manifest: what the masks were made from; split, ids and the split's fingerprint are added. The
    folder appears whole or not at all. Raises ValueError unless dataset is the training split: the
    masks of val and test are for scoring.
    """
    if dataset.split != "train":
        raise ValueError(
            f"pseudo masks are made of the training split, this is '{dataset.split}'; pass data('train')"
        )
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for index, cams, _ in predict_split(net, dataset, p, p.pseudo_tta):
        labels = torch.from_numpy(dataset.labels[index.numpy()])
        for i, mask in zip(index.tolist(), argmax_masks(cams, labels, p.gating).numpy()):
            image = Image.fromarray(mask, mode="P")
            image.putpalette([v for colour in dataset.spec.palette for v in colour])
            image.save(part / f"{dataset.ids[i]}.png")
    write_json(part / "manifest.json", manifest | manifest_of(dataset))
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)


def manifest_of(dataset) -> dict:
    """What identifies a split: data set, split, fingerprint of its pixels, ids. Notebook 05."""
    return {
        "dataset": dataset.spec.name,
        "split": dataset.split,
        "fingerprint": dataset.fingerprint,
        "ids": dataset.ids,
    }


def read_pseudo_masks(folder: Path, dataset) -> np.ndarray:
    """The pseudo masks of a split in its order: (n, H, W) uint8 in 0..C-1. Notebook 05.

    Raises ValueError if the manifest names another data set, another split or other patches.
    """
    found, expected = read_json(folder / "manifest.json"), manifest_of(dataset)
    wrong = [k for k in expected if found.get(k) != expected[k]]
    if wrong:
        raise ValueError(
            f"the pseudo masks in {folder.name} were made from another {' and '.join(wrong)} "
            f"({found.get('dataset')} {found.get('split')}) than {expected['dataset']} {expected['split']}; make them again"
        )
    return np.stack([np.asarray(Image.open(folder / f"{name}.png")) for name in dataset.ids])
