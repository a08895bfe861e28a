"""Regions of slides cut to patches: from the published form of bcss and gcss to the folders that
data reads.

The paper tells neither its patches nor its split of these sets. The rules here are ours: they stand
in the spec (specs.Cut) and, with what came of them, in regions.json beside the patches.
"""

import hashlib
import json
import math
import os
import shutil
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from filelock import FileLock
from PIL import Image
from tqdm.auto import tqdm

from protolib import files
from protolib.data import pictures
from protolib.data.specs import CUT_RECORD, CUTTING, SPLITS, DatasetSpec, Layout, told

# optical density (natural log) under which Macenko et al. (ISBI 2009) call a pixel transparent
CLEAR = 0.15
# the least value of a channel with a lower density: -ln((v + 1) / 256) < CLEAR from v = 220 on
WHITE = math.ceil(256 * math.exp(-CLEAR)) - 1
HELD_OUT = 0.1  # share of the patients in val, and the same in test


class Patch(NamedTuple):
    """One patch of a region: its upper left corner, px, its label, and views (size, size, 3) and
    (size, size) uint8."""

    x: int
    y: int
    label: tuple[int, ...]  # C digits, 0 or 1
    image: np.ndarray
    codes: np.ndarray  # as published: spec.codes says what they mean


def white_share(images: np.ndarray, rows: np.ndarray | None = None, batch: int = 32) -> np.ndarray:
    """Share of white pixels of each patch: optical density -ln((v + 1) / 256) below 0.15 in every
    channel. Notebook 01.

    images: (n, H, W, 3) uint8 RGB, memory-mapped or not; rows: (m,) indices, all where None is
    given. Returns (m,) float in [0, 1]. Reads `batch` patches at a time, so its memory does not
    grow with m. The paper drops white patches by a rule it does not give.
    """
    rows = np.arange(len(images)) if rows is None else np.asarray(rows)
    share = np.empty(len(rows))
    for start in range(0, len(rows), batch):
        red, green, blue = np.moveaxis(images[rows[start : start + batch]], -1, 0)
        darkest = np.minimum(np.minimum(red, green), blue)  # (batch, H, W): what absorbs most
        share[start : start + batch] = (darkest >= WHITE).mean((1, 2))
    return share


def split_of(seed: str, patient: str) -> str:
    """Give the split of a patient: the first 64 bits of SHA-256 of "seed/patient" as a fraction,
    below .1 val, .2 test.

    seed: of the spec's Cut, the same for every reduction of one data set. A patient's split depends
    on no other patient, so it holds for a part of a data set too. The paper's split is not
    published; ours of BCSS is splits/bcss.txt.
    """
    digest = hashlib.sha256(f"{seed}/{patient}".encode()).digest()
    fraction = int.from_bytes(digest[:8], "big") / 2**64
    return "val" if fraction < HELD_OUT else "test" if fraction < 2 * HELD_OUT else "train"


def patient_of(spec: DatasetSpec, name: str) -> str:
    """Find the patient in the name of a region; a name that does not tell it is a patient of its
    own."""
    return told(spec.patient, name) or name


def cut_region(image: np.ndarray, codes: np.ndarray, spec: DatasetSpec) -> Iterator[Patch]:
    """Cut one region into the patches worth keeping, row by row, from its upper left corner; no
    padding.

    image: (H, W, 3) uint8 RGB; codes: (H, W) uint8 as published. A patch is dropped where it has
    more than its share of white or of ignored pixels (spec.regions); a class is in its label from
    `present` of its pixels on.
    """
    rule, table, (H, W) = spec.rule, spec.lookup, codes.shape
    for y in range(0, H - rule.size + 1, rule.stride):
        for x in range(0, W - rule.size + 1, rule.stride):
            window = np.s_[y : y + rule.size, x : x + rule.size]
            area = np.bincount(table[codes[window]].ravel(), minlength=spec.C + 1)  # (C + 1,) px
            share = area / rule.size**2
            if share[spec.C] <= rule.ignore and white_share(image[window][None])[0] <= rule.white:
                label = tuple(int(present) for present in share[: spec.C] >= rule.present)
                yield Patch(x, y, label, image[window], codes[window])


def read_region(image: Path, labels: Path, spec: DatasetSpec) -> tuple[np.ndarray, np.ndarray]:
    """Read one region: image (H, W, 3) uint8 RGB and codes (H, W) uint8 as published.

    labels: a mask .png, or .txt with H lines of W whole numbers 0..255, or -1, which becomes 255.
    Raises ValueError that names the file where one cannot be read, is no such mask or matrix, or
    has another size than the image.
    """
    pixels = pictures.read_image(image)
    if labels.suffix.lower() == ".txt":
        codes = _matrix(labels)
    else:
        codes = pictures.read_codes(labels, spec)
    if codes.shape != pixels.shape[:2]:
        raise ValueError(_sizes(labels, codes.shape[::-1], image, pixels.shape[1::-1]))
    return pixels, codes


def _matrix(path: Path) -> np.ndarray:
    """The numbers of a text file, (H, W) uint8; -1 becomes 255."""
    try:
        # float: a matrix saved as 1.0 or 1e+00 is one of 1 too
        codes = np.loadtxt(path, np.float32, ndmin=2)
        if (codes != np.rint(codes)).any():
            raise ValueError("numbers that are not whole")
        if not codes.size or codes.min() < -1 or codes.max() > 255:
            raise ValueError("numbers outside -1..255" if codes.size else "no number")
    except (OSError, ValueError) as error:
        raise pictures.Unfit(
            "unreadable", path, f"cannot be read ({error}): {pictures.DAMAGED}"
        ) from error
    return np.where(codes < 0, 255, codes).astype(np.uint8)


def cut(spec: DatasetSpec, regions: Layout, to: str | Path, workers: int | None = None) -> Path:
    """Cut all regions into `to` as train/, val/ and test/, each with masks that hold the published
    codes; gives `to`.

    regions: of specs.find_regions. workers: threads, one region each, about 7 bytes a pixel of
    it; None = one a core. A region is kept from the moment it is whole, so a run that was stopped
    goes on with the next; train/, val/ and test/ appear when all are cut, regions.json last.
    Nothing is done where it is of the same regions and rules. Raises ValueError before any work for
    a folder that holds something else, sizes that differ and empty splits.
    """
    to, scratch = Path(to), Path(to) / CUTTING
    keys = [_key(spec, image, labels) for image, labels in zip(regions.images, regions.masks)]
    key = hashlib.sha256("".join(keys).encode()).hexdigest()
    parts = [scratch / f"{name}-{own}" for name, own in zip(regions.ids, keys)]
    splits = [split_of(spec.rule.seed, patient_of(spec, name)) for name in regions.ids]
    to.mkdir(parents=True, exist_ok=True)
    with FileLock(to / ".cutting.lock"), warnings.catch_warnings():
        # the largest region of BCSS has 126 million pixels, more than Pillow takes for harmless
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        if _is_done(to, scratch, key):
            return to
        _check(spec, regions, splits, to)
        scratch.mkdir(exist_ok=True)
        # numpy, Pillow and zlib let go of the lock
        with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
            todo = zip(regions.images, regions.masks, regions.ids, splits, parts)
            work = pool.map(lambda one: _cut_to_disk(spec, *one), todo)
            found = list(tqdm(work, total=len(parts), desc=f"cut {spec.name}", leave=False))
        _assemble(parts, splits, scratch / "tree", to)
        rule = spec.rule._asdict() | {"held_out": HELD_OUT}
        files.write_json(
            to / CUT_RECORD,
            {
                "dataset": spec.name,
                "key": key,
                "rule": rule,
                "split": "by patient, protolib's own: the paper's is not published",
                "regions": dict(zip(regions.ids, found)),
            },
        )
        shutil.rmtree(scratch)
    return to


def _key(spec: DatasetSpec, *paths: Path) -> str:
    """What tells one region, cut by one spec, from another: names, sizes and times, and the
    spec."""
    stamps = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return hashlib.sha256(json.dumps([repr(spec), stamps]).encode()).hexdigest()[:16]


def _is_done(to: Path, scratch: Path, key: str) -> bool:
    """Whether `to` holds just these patches; raises ValueError where it holds others."""
    if (to / CUT_RECORD).is_file():
        if files.read_json(to / CUT_RECORD, {"key": str})["key"] == key:
            return True
        raise ValueError(
            f"{to} holds patches cut from other regions or by other rules: pass a new folder."
        )
    held = [split for split in SPLITS if (to / split).exists()]
    if held and not scratch.is_dir():
        raise ValueError(f"{to} holds {held[0]}/ already: pass a new folder.")
    return False


def _check(spec: DatasetSpec, regions: Layout, splits: list[str], to: Path) -> None:
    """Raise what can be said before hours of work: empty splits, sizes that differ, a full disk."""
    for split in SPLITS:
        if split not in splits:
            raise ValueError(
                f"{spec.name}: none of the {len(splits)} regions is of a patient in {split} (8, 1 "
                "and 1 of 10 are in train, val and test, by regions.split_of): bring more regions."
            )
    area = 0
    for image, labels in zip(regions.images, regions.masks):
        with Image.open(image) as opened:
            size = opened.size
        if labels.suffix.lower() == ".png":
            with Image.open(labels) as opened:
                if sorted(opened.size) != sorted(size):  # EXIF may turn one of them
                    raise ValueError(_sizes(labels, opened.size, image, size))
        area += size[0] * size[1]
    overlap = (spec.rule.size / spec.rule.stride) ** 2
    needed = 2.5 * area * overlap  # bytes: PNG takes two a pixel of tissue
    if shutil.disk_usage(to).free < needed:
        raise OSError(
            f"the patches of {spec.name} may need {needed / 2**30:.1f} GiB of disk: "
            "pass another folder."
        )


def _sizes(labels: Path, found: tuple, image: Path, expected: tuple) -> str:
    return (
        f"{labels} is {found[0]} x {found[1]} px and its image {image.name} is "
        f"{expected[0]} x {expected[1]} px: they must agree."
    )


def _cut_to_disk(
    spec: DatasetSpec, image: Path, labels: Path, name: str, split: str, part: Path
) -> dict:
    """Cut one region into the folder `part`, whole or not at all; says its split, windows and
    patches kept."""
    if not part.is_dir():
        pixels, codes = read_region(image, labels, spec)
        if unknown := pictures.foreign(codes, spec):
            found = ", ".join(f"{n} pixels of {v}" for v, n in unknown.items())
            raise pictures.Unfit("code", labels, f"{found}: no code of {spec.name}")
        windows = [max(0, (n - spec.rule.size) // spec.rule.stride + 1) for n in codes.shape]
        # each code in its class's colour
        colours = np.array(spec.palette)[spec.lookup]
        with files.scratch(part.parent) as scratch:
            made, kept = scratch / "part", 0
            for folder in ("img", "mask"):
                (made / folder).mkdir(parents=True)
            for patch in cut_region(pixels, codes, spec):
                kept += 1
                label = f"+0[{''.join(map(str, patch.label))}]" if split == "train" else ""
                file = f"{name}_x{patch.x}_y{patch.y}{label}.png"
                mask = pictures.indexed(patch.codes, colours)
                Image.fromarray(patch.image).save(made / "img" / file)
                mask.save(made / "mask" / file)
            files.write_json(
                made / "cut.json",
                {"split": split, "windows": windows[0] * windows[1], "patches": kept},
            )
            made.rename(part)
    return files.read_json(part / "cut.json", {"split": str, "windows": int, "patches": int})


def _assemble(parts: list[Path], splits: list[str], tree: Path, to: Path) -> None:
    """Move the patches of all parts into train/, val/img and test/img, masks beside; each split
    appears whole."""
    for part, split in zip(parts, splits):
        for kind in ("img", "mask"):
            # train/ flat, as it is published
            place = tree / split / ("" if (split, kind) == ("train", "img") else kind)
            for path in sorted((part / kind).iterdir()):
                place.mkdir(parents=True, exist_ok=True)
                path.replace(place / path.name)
    for split in SPLITS:
        if not (tree / split).is_dir() and not (to / split).is_dir():
            raise ValueError(
                f"no patch of {split} was kept: do the codes fit these labels? The rule: specs.Cut."
            )
    for split in SPLITS:
        if (tree / split).is_dir():  # else an interrupted run has moved it
            (tree / split).rename(to / split)
