"""The phantom: H&E-like tissue drawn from a seed, with known masks and known
sub-types. Notebook 01.

tissue.py draws the amounts of stain; here stand the plan of a split, the regions of a patch, and
the slides, each with its own stain. The scale is fixed, 0.5 um per pixel: a smaller patch is a
smaller field of view, never a resized one.
"""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from protolib.data.tissue import Look, field, joined, looks, stamp, tissue

CLASSES = ("TUM", "STR", "LYM", "NEC")
TITLES = ("tumour", "stroma", "lymphocytes", "necrosis")
SUBTYPES = (
    ("gland", "nest", "sheet"),
    ("loose fibres", "aligned collagen", "hyalinised"),
    ("follicle", "diffuse", "cords"),
    ("ghost cells", "granular debris", "homogeneous"),
)
MPP = 0.5  # micrometres per pixel
IGNORE, SUB_IGNORE = 4, 12  # white background, in masks and in sub-type maps
# a class is in the image label where it covers more than this share of the patch
LABEL_SHARE = 0.03
SLIDES = {"train": 12, "val": 4, "test": 6}
PATCH, TURN, SLIDE, COMPANY = range(4)  # what a generator is for
PAIR = (0, 1)  # the classes that the dial "together" ties: tumour and stroma

# Unit optical density of hematoxylin and eosin in R, G, B:
# Ruifrok and Johnston, Anal Quant Cytol Histol 23 (2001) 291-299.
STAINS = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105]])
# The same two read off real slides, Macenko et al., ISBI 2009: every slide is turned part of the
# way towards these.
STAINS_SEEN = np.array([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]])


class Drawing(NamedTuple):
    """What is drawn: how many patches, from which seed, under which dials, each in [0, 1].

    heterogeneity spreads the sub-types of a class, similarity pulls the colours of the classes
    together. pure: share of the patches that show one class. together: share of the other patches
    in which tumour never comes without stroma, nor stroma without tumour; 0 leaves them to chance.
    never_pure: a sub-type 0..11 that is in mixed patches only, -1 for none. Notebook 01.
    """

    patches: int
    seed: int = 0
    heterogeneity: float = 0.5
    similarity: float = 1.0
    pure: float = 0.45
    together: float = 0.0
    never_pure: int = -1


class Phantom(NamedTuple):
    """The patches of one split."""

    ids: list[str]  # "PH-train-s03+17": slide, then index
    slides: list[str]  # "PH-train-s03"
    images: np.ndarray  # (n, H, W, 3) uint8 RGB
    masks: np.ndarray  # (n, H, W) uint8: 0..3, 4 = white background
    subtypes: np.ndarray  # (n, H, W) uint8: 3 * class + k, 12 = white background
    labels: np.ndarray  # (n, 4) uint8


def optical_density(amounts: np.ndarray, stains: np.ndarray = STAINS) -> np.ndarray:
    """Mix hematoxylin and eosin by optical density, -log10 of the share of light let through.

    amounts: (..., 2), hematoxylin first; stains: (2, 3) vectors in R, G, B. Returns (..., 3),
    0 = clear glass.
    """
    return amounts[..., :1] * stains[0] + amounts[..., 1:] * stains[1]


def generator(seed: int, split: str, *key: int) -> np.random.Generator:
    """The random numbers of one thing: they depend on its key and on nothing drawn before."""
    return np.random.default_rng([seed, list(SLIDES).index(split), *key])


def plan(rng, split: str, index: int, drawing: Drawing) -> list[int]:
    """Sub-types of patch `index`: where it is pure one, and the pure patches take all in turn."""
    share = round(1000 * drawing.pure)  # whole numbers, so that 9 of 20 are 9 of 20 for any index
    rank = -(-share * index // 1000)  # how many of the patches before this one show one class
    if -(-share * (index + 1) // 1000) > rank:
        n = 12 - (drawing.never_pure >= 0)
        turn = generator(drawing.seed, split, TURN, rank // n).permutation(12)
        return [int(turn[turn != drawing.never_pure][rank % n])]
    classes = rng.permutation(4)[: rng.choice([2, 3], p=[0.65, 0.35])]
    if generator(drawing.seed, split, COMPANY, index).random() < drawing.together:
        classes = paired(classes)
    return [int(3 * c + rng.integers(3)) for c in classes]


def paired(classes: np.ndarray) -> np.ndarray:
    """The classes, where one of PAIR is alone with the other in place of the last third one."""
    alone = [c for c in PAIR if c in classes]
    if len(alone) != 1:
        return classes
    other = PAIR[1 - PAIR.index(alone[0])]
    last = np.flatnonzero(classes != alone[0])[-1]
    return np.where(np.arange(len(classes)) == last, other, classes)


def whiteness(rng, classes: int) -> float:
    """Share of white: 1 patch in 4 has some, and 1 in 25 of one class is a torn edge for the bank's
    white filter."""
    if rng.random() > 0.25:
        return 0.0
    if classes > 1:
        return rng.uniform(0.05, 0.30)
    return rng.uniform(0.55, 0.70) if rng.random() < 0.16 else rng.uniform(0.03, 0.12)


def regions(rng, size: int, kinds: list[int], white: float) -> np.ndarray:
    """Sub-type map (H, W) uint8 with organic borders; every sub-type gets a fair share of what is
    not white."""
    areas, left = np.full((size, size), SUB_IGNORE, np.uint8), np.ones((size, size), bool)
    if white:
        landscape = field(rng, size, 26) + 0.08 * field(rng, size, 7)
        left = landscape > np.quantile(landscape, white)
    for rest, kind in zip(range(len(kinds), 0, -1), kinds):
        landscape = field(rng, size, 20) + 0.2 * field(rng, size, 5)
        share = np.clip(rng.normal(1 / rest, 0.08), 0.2, 0.75) if rest > 1 else 1
        chosen = left & (landscape <= np.quantile(landscape[left], share))
        areas[chosen] = kind
        left = left & ~chosen
    return areas


def develop(rng, amounts: np.ndarray, seed: int, split: str, slide: int) -> np.ndarray:
    """Photograph amounts (2, H, W) under a slide's own stain, lamp and focus: (H, W, 3) uint8
    RGB."""
    own = generator(seed, split, SLIDE, slide)
    towards = own.uniform([[0.10], [0.35]], [[0.60], [0.85]])  # (2, 1): eosin turns further
    stains = np.maximum(
        (1 - towards) * STAINS + towards * STAINS_SEEN + 0.03 * own.standard_normal((2, 3)), 0.01
    )
    stains *= np.exp(own.normal(0, 0.18, (2, 1))) / np.linalg.norm(stains, axis=1, keepdims=True)
    lamp = own.uniform(0.90, 0.98) * own.uniform([1, 0.97, 0.97], 1)
    blur = own.uniform(0.45, 0.8)
    thickness = rng.uniform(0.92, 1.08)
    amounts = ndimage.gaussian_filter(thickness * amounts, (0, blur, blur))
    light = lamp * 10 ** -optical_density(np.moveaxis(amounts, 0, -1), stains)  # (H, W, 3)
    return np.clip(np.rint(255 * light + 2.5 * rng.standard_normal(light.shape)), 0, 255).astype(
        np.uint8
    )


def patch(
    index: int, split: str, size: int, drawing: Drawing
) -> tuple[int, np.ndarray, np.ndarray]:
    """Patch `index` of a split: slide number, image (H, W, 3) uint8, sub-type map (H, W)
    uint8. Notebook 01."""
    rng = generator(drawing.seed, split, PATCH, index)
    slide, kinds = int(rng.integers(SLIDES[split])), plan(rng, split, index, drawing)
    areas = regions(rng, size, kinds, whiteness(rng, len(kinds)))
    table = looks(drawing.heterogeneity, drawing.similarity).reshape(12, -1)  # (S, 22)
    amounts, drawn = np.zeros((2, size, size)), []
    for kind in kinds:
        swing = 0.15 * drawing.heterogeneity * rng.standard_normal(len(Look._fields))  # (22,)
        own = table[kind] * np.exp(swing)
        under, cells = tissue(rng, size, Look(*own))
        amounts += under * ndimage.gaussian_filter((areas == kind).astype(float), 1)
        drawn.append(cells.where(cells.on(areas == kind)))  # a nucleus on a border stays whole
    stamp(rng, amounts, joined(drawn))
    return slide, develop(rng, amounts, drawing.seed, split, slide), areas


def check(split: str, size: int, drawing: Drawing, workers: int = 1) -> None:
    """Raise ValueError that says what was found and what is allowed."""
    if split not in SLIDES:
        raise ValueError(
            f"split = {split!r}: the phantom has {', '.join(SLIDES)}; pass one of these."
        )
    whole = {
        "patches": (drawing.patches, 1, 10**6),
        "size": (size, 64, 256),
        "seed": (drawing.seed, 0, 2**63),
        "workers": (workers, 1, 256),
        "never_pure": (drawing.never_pure, -1, 11),
    }
    for name, (value, least, most) in whole.items():
        if value != int(value) or not least <= value <= most:
            raise ValueError(f"{name} = {value}: pass a whole number from {least} to {most}.")
    for name in ("heterogeneity", "similarity", "pure", "together"):
        value, default = getattr(drawing, name), Drawing._field_defaults[name]
        if not 0 <= value <= 1:
            raise ValueError(
                f"{name} = {value}: this dial goes from 0 to 1, and {default} is the default."
            )


def draw(split: str, size: int, drawing: Drawing, workers: int = 2) -> Phantom:
    """Draw the patches of a split; patch i depends on the drawing's seed and dials, split and i,
    never on how many are drawn, nor on workers.

    split: train, val or test, with slides of their own. size: 64 to 256 pixels of 0.5 um. Returns
    Phantom, labels by the share of the area above LABEL_SHARE. Raises ValueError for anything out
    of range.
    """
    check(split, size, drawing, workers)
    one = partial(patch, split=split, size=size, drawing=drawing)
    with ThreadPoolExecutor(workers) as pool:  # threads: numpy and scipy let go of the lock
        numbers, images, areas = zip(*pool.map(one, range(drawing.patches)))
    slides = [f"PH-{split}-s{number:02d}" for number in numbers]
    ids = [f"{slide}+{i}" for i, slide in enumerate(slides)]
    subtypes = np.stack(areas)  # (n, H, W)
    masks = subtypes // 3  # white: 12 // 3 = 4
    present = [(masks == c).mean((1, 2)) > LABEL_SHARE for c in range(4)]
    labels = np.stack(present, 1).astype(np.uint8)  # (n, C)
    return Phantom(ids, slides, np.stack(images), masks, subtypes, labels)


def write_folder(root: Path, counts: dict[str, int], size: int, seed: int = 0) -> None:
    """Write the patches of draw() as PNG in the layout of BCSS-WSSS: training/ID[1101].png, val and
    test/img and /mask. Notebook 01.

    counts: patches per split. Raises FileExistsError where root holds something; root appears whole
    or not at all.
    """
    from PIL import Image  # only here: drawing needs none

    root = Path(root)
    if root.exists() and any(root.iterdir()):
        raise FileExistsError(f"{root} is not empty: pass a new folder, or remove this one.")
    part = root.with_name(root.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    for split, n in counts.items():
        drawn = draw(split, size, Drawing(n, seed))
        for name, image, mask, label in zip(drawn.ids, drawn.images, drawn.masks, drawn.labels):
            if split == "train":
                files = {f"training/{name}[{''.join(map(str, label))}].png": image}
            else:
                files = {f"{split}/img/{name}.png": image, f"{split}/mask/{name}.png": mask}
            for path, pixels in files.items():
                (part / path).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(part / path)
    os.replace(part, root)
