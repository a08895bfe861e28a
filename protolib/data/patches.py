"""Patches for training: decoded once into a memory-mapped cache, checked by content, then read
without decoding."""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from protolib import files
from protolib.data import checks, phantom, pictures, regions
from protolib.data.specs import (
    SPLITS,
    DatasetSpec,
    Layout,
    check_layout,
    parse_label,
    shared,
    spec_of,
    stamp,
    told,
)
from protolib.keys import CODE, digest

CHUNK = 1 << 22  # bytes under one SHA-256 of the cache
# chunks of an array that are read again on every load: at most 256 MiB, a fraction of a second
CHECKED = 64
ARRAYS = ("images", "masks", "labels", "subtypes")


class PatchDataset(Dataset):
    """One split, read from its cache folder; make it with `load`.

    ids, slides, patients: n strings each ("" where the name does not tell it); images (n, H, W, 3)
    uint8 RGB; labels (n, C) uint8 0 or 1; masks (n, Hm, Wm) uint8 0..C-1, ignore C, or None;
    subtypes (n, H, W) uint8 0..S-1, ignore S, or None; fingerprint: SHA-256 of the names and of
    every array. The arrays are memory-mapped, read-only. An item: image (3, H, W) uint8, label (C,)
    float32, index, and mask (H, W) int64 where it has the image's size.
    """

    def __init__(self, spec: DatasetSpec, split: str, folder: Path):
        manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
        self.spec, self.split, self.folder = spec, split, folder
        self.ids, self.slides, self.patients = (
            manifest["ids"],
            manifest["slides"],
            manifest["patients"],
        )
        self.fingerprint = manifest["fingerprint"]
        arrays = {
            name: np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r"))
            for name in manifest["arrays"]
        }
        self.images, self.labels = arrays["images"], arrays["labels"]
        self.masks, self.subtypes = arrays.get("masks"), arrays.get("subtypes")

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> dict:
        item = {
            "image": torch.from_numpy(self.images[i].transpose(2, 0, 1).copy()),  # (3, H, W)
            "label": torch.from_numpy(self.labels[i].astype(np.float32)),  # (C,)
            "index": int(i),
        }
        if self.masks is not None and self.masks.shape[1:] == self.images.shape[1:3]:
            item["mask"] = torch.from_numpy(self.masks[i].astype(np.int64))  # (H, W)
        return item

    def __reduce__(self):
        # worker processes open the cache again: pickled arrays would be copies of the whole split
        return PatchDataset, (self.spec, self.split, self.folder)

    def single_class(self) -> np.ndarray:
        """Indices (m,) int64 of the patches whose image label has exactly one class
        (Sec. 3.2). Notebook 02."""
        return np.flatnonzero(self.labels.sum(1) == 1)


def load(
    dataset: str,
    split: str,
    size: int,
    *,
    cache: str | Path,
    data_root: str | Path = "",
    drawing: phantom.Drawing | None = None,
) -> PatchDataset:
    """Give one split of a data set as patches of size x size pixels, through the cache: the entry
    that notebooks call.

    phantom: what `drawing` says, see phantom.draw; labels as drawn, by area. Any other: all patches
    of the folder `data_root` (drawing plays no part), images resized with antialiasing, masks at
    their own size, those of train too where the folder has them. Published regions are cut to
    patches first, once, into the cache, see regions.cut. Labels of train: from the file name.
    Labels of val and test: a class counts if any pixel of the mask has it, as in the released code,
    so one stray pixel is enough. Files are checked before any work, see checks.guard. Raises
    ValueError for names, folders, sizes and masks that do not fit.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is none of {', '.join(SPLITS)}.")
    if size % 16 or not 32 <= size <= 512:
        raise ValueError(
            f"size {size} does not fit the networks: pass a multiple of 16 from 32 to 512."
        )
    spec = spec_of(dataset, data_root)
    if dataset == "phantom":
        if drawing is None:
            raise ValueError("the phantom is drawn: pass drawing=phantom.Drawing(patches).")
        phantom.check(split, size, drawing)
        source: dict = {"size": size} | drawing._asdict()
        make = partial(_draw, spec, split, size, drawing)
        return PatchDataset(spec, split, _cached(Path(cache), spec, split, source, make))
    layouts = checks.guard(spec, data_root, cache)
    if "regions" in layouts:
        key = _key(spec, "patches", stamp(layouts["regions"]))
        layouts = check_layout(
            spec, regions.cut(spec, layouts["regions"], Path(cache) / f"{spec.name}-patches-{key}")
        )
    layout = layouts[split]
    source = {"size": size, "files": stamp(layout)}
    make = partial(_decode, spec, split, size, layout)
    return PatchDataset(spec, split, _cached(Path(cache), spec, split, source, make))


def shrinkage(spec: DatasetSpec, data_root: str | Path, size: int) -> float:
    """Pixels of a patch as published to a pixel of it at `size`: how much coarser it is then. The
    phantom's patches are drawn at their size, never resized: 1."""
    if spec.name == "phantom":
        return 1.0
    layouts = check_layout(spec, data_root)
    if "regions" in layouts:
        return spec.rule.size / size
    with Image.open(layouts["train"].images[0]) as first:
        return first.width / size


def _draw(spec: DatasetSpec, split: str, size: int, drawing: phantom.Drawing, folder: Path) -> dict:
    """Draw phantom patches into the arrays of a cache folder."""
    drawn = phantom.draw(split, size, drawing)
    for name in ARRAYS:
        np.save(folder / f"{name}.npy", getattr(drawn, name))
    return {
        "ids": list(drawn.ids),
        "slides": list(drawn.slides),
        "patients": [told(spec.patient, name) for name in drawn.ids],
    }


def _decode(spec: DatasetSpec, split: str, size: int, layout: Layout, folder: Path) -> dict:
    """Decode the PNG files of a split, in threads, into the arrays of a cache folder."""
    n, C = len(layout.ids), spec.C
    width, height = pictures.opened(layout.images[0]).size
    needed = n * (3 * size * size + (width * height if layout.masks else 0))
    if shutil.disk_usage(folder).free < needed + (1 << 26):
        raise OSError(
            f"the cache of {spec.name} {split} needs {needed / 2**30:.1f} GiB of disk: "
            "pass another cache."
        )
    images = np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, (n, size, size, 3))
    masks = None
    if layout.masks:
        masks = np.lib.format.open_memmap(folder / "masks.npy", "w+", np.uint8, (n, height, width))
    labels = np.zeros((n, C), np.uint8)

    def one(i: int) -> None:
        images[i], own = _read_image(layout.images[i], size)
        if own != (width, height):
            raise ValueError(
                f"{layout.images[i]} is {own[0]} x {own[1]} px but {layout.images[0]} is {width} x "
                f"{height} px: cut the patches of a split to one size."
            )
        if masks is not None:
            mask = pictures.read_mask(layout.masks[i], spec)
            if mask.shape != own[::-1]:
                raise ValueError(
                    f"{layout.masks[i]} is {mask.shape[1]} x {mask.shape[0]} px and its image "
                    f"{layout.images[i]} is {own[0]} x {own[1]} px: they must agree."
                )
            masks[i] = mask
            labels[i] = np.bincount(mask.ravel(), minlength=C + 1)[:C] > 0
        if split == "train":
            labels[i] = parse_label(layout.images[i].name, C)

    # Pillow decodes and resizes outside the interpreter lock
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        work = pool.map(one, range(n))
        for _ in tqdm(work, total=n, desc=f"decode {spec.name} {split}", leave=False):
            pass
    if not labels.any():
        raise ValueError(
            f"no patch of {spec.name} {split} shows any class: "
            f"do the codes {spec.codes} fit its masks?"
        )
    np.save(folder / "labels.npy", labels)
    return {
        "ids": layout.ids,
        "slides": [told(spec.slide, name) for name in layout.ids],
        "patients": [told(spec.patient, name) for name in layout.ids],
    }


def _read_image(path: Path, size: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Decode one square image to (size, size, 3) uint8 RGB; also its own width and height."""
    rgb = pictures.coloured(pictures.opened(path), path)
    if rgb.width != rgb.height or rgb.width < pictures.SMALLEST:
        found = (
            f"is {rgb.width} x {rgb.height} px: patches must be square, of {pictures.SMALLEST} px "
            "or more, cut them first"
        )
        raise pictures.Unfit("size", path, found)
    # Pillow widens the bicubic kernel when it shrinks: that is the antialiasing
    return np.asarray(rgb.resize((size, size), Image.Resampling.BICUBIC)), rgb.size


def _cached(
    cache: Path, spec: DatasetSpec, split: str, source: dict, make: Callable[[Path], dict]
) -> Path:
    """Give the cache folder of this source: the sound one on disk, else one made anew, whole or not
    at all."""
    folder = cache / f"{spec.name}-{split}-{_key(spec, split, source)}"
    fault = _fault(folder) if folder.exists() else ""
    if folder.exists() and not fault:
        return folder
    if fault:
        warnings.warn(
            f"the cache {folder.name} is damaged ({fault}): it is made again.", stacklevel=3
        )
        shutil.rmtree(folder)
    with files.scratch(cache) as scratch:
        made = scratch / folder.name
        made.mkdir()
        manifest = make(made)
        manifest["arrays"] = {path.stem: _describe(path) for path in sorted(made.glob("*.npy"))}
        manifest["fingerprint"] = _sha256(json.dumps(manifest, sort_keys=True).encode())
        (made / "manifest.json").write_text(json.dumps(manifest), "utf-8")
        try:
            made.rename(folder)
        except OSError:
            # where it is there, another process was faster: its folder has the same content
            if not folder.exists():
                raise
    return folder


def _key(spec: DatasetSpec, split: str, source: dict | str) -> str:
    return digest(repr(spec), split, source, CODE["data"])[:16]


def _describe(path: Path, chunks: list[int] | None = None) -> dict:
    """Shape, dtype and SHA-256 of the 4 MiB chunks (all, or those listed) of an array on disk."""
    array = np.load(path, mmap_mode="r")
    data = memoryview(array).cast("B")
    every = range(-(-len(data) // CHUNK))
    return {
        "shape": list(array.shape),
        "dtype": str(array.dtype),
        "sha256": {
            str(k): _sha256(data[k * CHUNK : (k + 1) * CHUNK])
            for k in (every if chunks is None else chunks)
        },
    }


def _fault(folder: Path) -> str:
    """Say what is wrong with a cache folder, "" if nothing is.

    Names, shapes and lengths are checked whole; of each array, CHECKED chunks spread from the first
    to the last, which is every byte up to 256 MiB. In a larger array a changed byte between them
    can stay unseen, a cut-off file can not.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
        fingerprint = manifest.pop("fingerprint")
        if fingerprint != _sha256(json.dumps(manifest, sort_keys=True).encode()):
            return "its manifest was changed"
        for name, wanted in manifest["arrays"].items():
            last = len(wanted["sha256"]) - 1
            chunks = sorted({round(k) for k in np.linspace(0, last, min(CHECKED, last + 1))})
            found = _describe(folder / f"{name}.npy", chunks)
            if found != wanted | {"sha256": {str(k): wanted["sha256"][str(k)] for k in chunks}}:
                return f"{name}.npy is not what was written"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _sha256(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


class Overlap(NamedTuple):
    """What splits share: "train/test" -> sorted names, empty when they share none; and the same in
    a sentence."""

    slides: dict[str, list[str]]
    patients: dict[str, list[str]]
    sentence: str


def split_overlap(*datasets: PatchDataset) -> Overlap:
    """Report the slides and patients that stand in more than one split; a score on such a split is
    too good.

    datasets: the splits of one data set. Names that do not tell their slide or patient are counted,
    not guessed. Notebook 01.
    """
    found, sentences, total = {}, [], sum(map(len, datasets))
    for kind in ("slides", "patients"):
        pairs = shared({d.split: getattr(d, kind) for d in datasets})
        silent = sum(getattr(d, kind).count("") for d in datasets)
        facts = [f"{pair} share {len(names)} (first: {names[0]})" for pair, names in pairs.items()]
        if not pairs and silent < total:
            facts.append("no two splits share one")
        if silent:
            facts.append(f"not told by {silent} of {total} names")
        found[kind] = pairs
        sentences.append(f"{kind.capitalize()}: {', '.join(facts)}.")
    return Overlap(found["slides"], found["patients"], " ".join(sentences))


def count_report(*datasets: PatchDataset) -> str:
    """Say how many patches each split has, beside the published counts; a difference is no
    error. Notebook 01."""
    parts = []
    for d in datasets:
        published = d.spec.counts.get(d.split, ())
        verdict = (
            "as published"
            if len(d) in published
            else f"published: {' or '.join(map(str, published))}"
        )
        parts.append(f"{d.split} {len(d)} ({verdict if published else 'no published count'})")
    return f"{datasets[0].spec.name}: {', '.join(parts)}."
