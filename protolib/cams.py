"""From similarity maps to fused CAMs, masks, and pseudo masks on disk with the manifest that says
whose they are."""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm

from protolib import processes
from protolib.classnet import ClassNet
from protolib.data.pictures import indexed
from protolib.files import printed, read_json, write_json
from protolib.maps import argmax_masks, diffuse, fuse, unit_scores
from protolib.presets import Preset

BATCH = 32  # patches that are predicted at once

# what a view does to the patch, and whether the image-level logits are read off it:
# (mirrored, brightness, read)
VIEWS = {
    "none": ((False, 1.0, True),),
    "mirror": ((False, 1.0, True), (True, 1.0, True)),
    # utils/validate.py of the released code
    "six": tuple((m, f, not m and f == 1.0) for m in (False, True) for f in (0.9, 1.0, 1.1)),
}


@torch.no_grad()
def predict(net: ClassNet, images: Tensor, p: Preset, tta: str) -> tuple[Tensor, Tensor]:
    """Fused CAMs and image-level logits of a batch, averaged over the views of `tta`. Notebook 04.

    images: (B, 3, H, W) float in [0, 1]; tta: a key of VIEWS. Returns CAMs (B, C, H, W), logits or
    in [0, L] by p.scores, and logits (B, C); logit > 0 means present. Brightness multiplies the
    prepared image, as in the released code.
    """
    scores, logits = [], []  # one of each view
    for mirrored, brightness, read in VIEWS[tta]:
        prepared = brightness * net.prepare(images.flip(3) if mirrored else images)
        features = net.features(prepared) if p.diffusion else []  # L maps (B, C_i, h_i, w_i)
        maps = net.compare(features) if p.diffusion else net.read(prepared)
        classes = net.class_maps(maps, p.merge_test)  # L maps (B, C, h_i, w_i)
        if p.diffusion:
            classes = [diffuse(m, f, p.diffusion) for m, f in zip(classes, features)]
        if p.scores == "unit":
            classes = [unit_scores(m) for m in classes]
        score = fuse(classes, p.fusion, images.shape[2:], p.align_corners)  # (B, C, H, W)
        scores.append(score.flip(3) if mirrored else score)  # back where it was
        if read:
            levels = net.logits(maps, p.merge_test)  # (L, B, C)
            logits.append(levels.mean(0) if p.pool == "maps" else levels[-1])
    return torch.stack(scores).mean(0), torch.stack(logits).mean(0)


@torch.no_grad()
def over_split(
    predict: Callable[[Tensor], tuple[Tensor, Tensor]],
    patches,
    device: str | torch.device,
    rows: Sequence[int] | None = None,
    bar: str = "",
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield index (B,), class scores (B, C, H, W) and image-level logits (B, C) over a split, on
    the CPU, batch by batch in its order: memory does not grow with the split. Notebook 04.

    predict: images (B, 3, H, W) float in [0, 1] -> scores and logits; rows: of the split, all where
    none are given; bar: what a bar says, none where it is empty.
    """
    chosen = patches if rows is None else Subset(patches, list(rows))
    quiet = {} if bar else {"disable": True}  # disable=False would overrule TQDM_DISABLE
    for items in tqdm(DataLoader(chosen, batch_size=BATCH), bar, leave=False, **quiet):
        scores, logits = predict(items["image"].to(device).float() / 255)
        yield items["index"], scores.cpu(), logits.cpu()


def pseudo_masks(net: ClassNet, patches, folder: Path, p: Preset, manifest: dict) -> None:
    """Write one palette PNG per training patch, its image label closing the absent classes, and
    manifest.json. Notebook 04.

    manifest: what the masks were made from; split, ids and the split's fingerprint are added. The
    folder appears whole or not at all; several processes make it together. Raises ValueError unless
    patches is the training split: the masks of val and test are for scoring.
    """
    if patches.split != "train":
        raise ValueError(
            f"pseudo masks are made of the training split, this is '{patches.split}'; "
            "pass data('train')"
        )
    # under another name until it is whole: a half folder must not look like a finished one
    part = folder.with_name(f".{folder.name}.part")
    if processes.rank() == 0:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    processes.wait()
    net.eval()
    device = next(net.parameters()).device
    views = p.pseudo_tta  # the released code makes them of one view, and scores with six
    rows = processes.own_rows(range(len(patches)), BATCH)
    made = over_split(lambda x: predict(net, x, p, views), patches, device, rows, "pseudo masks")
    for index, scores, _ in made:
        labels = torch.from_numpy(patches.labels[index.numpy()])  # (B, C)
        for i, mask in zip(index.tolist(), argmax_masks(scores, labels, p.gating).numpy()):
            indexed(mask, patches.spec.palette).save(part / f"{patches.ids[i]}.png")
    processes.wait()  # for the masks of all
    if processes.rank() == 0:
        write_json(part / "manifest.json", manifest | manifest_of(patches))
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(part, folder)
    processes.wait()


def manifest_of(patches) -> dict:
    """What identifies a split: data set, split, fingerprint of its pixels, ids."""
    return {
        "dataset": patches.spec.name,
        "split": patches.split,
        "fingerprint": patches.fingerprint,
        "ids": patches.ids,
    }


class PseudoMasks:
    """The pseudo masks of a split in its order, each read when it is asked for: (H, W) uint8 in
    0..C-1. Notebook 05.

    Raises ValueError if the manifest names another data set, another split or other patches, and
    where a mask cannot be read.
    """

    def __init__(self, folder: Path, patches):
        found, expected = read_json(folder / "manifest.json", {}), manifest_of(patches)
        wrong = [k for k in expected if found.get(k) != expected[k]]
        if wrong:
            raise ValueError(
                f"the pseudo masks in {folder.name} were made from another {' and '.join(wrong)} "
                f"({found.get('dataset')} {found.get('split')}) than {expected['dataset']} "
                f"{expected['split']}; make them again"
            )
        self.files = [folder / f"{name}.png" for name in patches.ids]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> np.ndarray:
        path = self.files[i]
        try:
            with Image.open(path) as image:
                return np.asarray(image)
        except Exception as error:  # whatever a broken file makes Pillow's parsers raise
            raise ValueError(
                f"{printed(path)} cannot be read ({error or type(error).__name__}): delete the "
                f"folder {printed(path.parent)}, and the next run makes all its masks again"
            ) from error
