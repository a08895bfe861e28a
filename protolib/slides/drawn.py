"""A slide drawn like the phantom's patches, of any size, with its true mask; and its stain
changed."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from protolib.data.phantom import IGNORE, STAINS, SUB_IGNORE, Drawing, develop
from protolib.data.tissue import Look, borders, field, looks, scatter, stamp, tissue

TILE = 250  # px that are drawn at a time: a texture goes no farther
DRAWN = 3  # tiles of each sub-type, which come turned and mirrored: a slide in seconds
FAT = 99  # in the map of sub-types: a tissue that no class has


def slide(side: int, seed: int = 0, fat: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """A piece of tissue on glass: image (side, side, 3) uint8 RGB and mask (side, side) uint8, 0..3
    as the phantom's, 4 where there is none of its classes. Notebook 08.

    side: px of 0.5 um. fat: with a region of fat in the middle, which is no class. It has the stain
    of a slide of the test split: no network has seen it.
    """
    rng = np.random.default_rng([seed, side])
    areas = _areas(rng, side, fat)
    kinds = [int(kind) for kind in np.unique(areas) if kind != SUB_IGNORE]
    seeds = rng.integers(2**32, size=(len(kinds), DRAWN)).ravel()
    with ThreadPoolExecutor(2) as pool:  # numpy and scipy let go of the lock
        drawn = list(pool.map(_tile, np.repeat(kinds, DRAWN), seeds))
    amounts = np.zeros((2, side, side))
    for y in range(0, side, TILE):
        for x in range(0, side, TILE):
            here = amounts[:, y : y + TILE, x : x + TILE]
            for i, kind in enumerate(kinds):
                own = drawn[DRAWN * i + rng.integers(DRAWN)]
                own = own[..., ::-1] if rng.random() < 0.5 else own
                own = np.rot90(own, int(rng.integers(4)), (1, 2))
                where = areas[y : y + TILE, x : x + TILE] == kind
                here += own[:, : where.shape[0], : where.shape[1]] * where
    image = develop(rng, amounts, seed, "test", 0)
    return image, np.where(areas < SUB_IGNORE, areas // 3, IGNORE).astype(np.uint8)


def _areas(rng: np.random.Generator, side: int, fat: bool) -> np.ndarray:
    """Sub-type of every pixel: classes in large regions, two sub-types each, within an outline."""
    coarse = side / 14
    classes = np.argmax([field(rng, side, coarse) for _ in range(4)], 0)
    twin = field(rng, side, coarse) > 0
    areas = (3 * classes + np.where(twin, 1, 0)).astype(np.uint8)
    y, x = (np.mgrid[:side, :side] + 0.5) / side - 0.5
    r = np.hypot(y, x) + 0.03 * field(rng, side, coarse)
    areas[(r > 0.42) | (field(rng, side, coarse / 2) > 2.3)] = SUB_IGNORE
    if fat:
        areas[np.hypot(y - 0.05, x + 0.05) + 0.01 * field(rng, side, coarse) < 0.14] = FAT
    return areas


def _tile(kind: int, seed: int) -> np.ndarray:
    """Amounts of the two stains of one sub-type, nuclei and all: (2, TILE, TILE)."""
    rng = np.random.default_rng(seed)
    if kind == FAT:  # cells of nothing but fat, which is washed out, and the walls between
        walls = borders(scatter(rng, TILE, 34, 12), TILE)
        return np.stack([0 * walls, 0.45 * np.clip(walls, 0, 1)])
    dials = Drawing(patches=0)  # the patches' own
    table = looks(dials.heterogeneity, dials.similarity).reshape(12, -1)  # (S, 22)
    amounts, cells = tissue(rng, TILE, Look(*table[kind]))
    stamp(rng, amounts, cells)
    return amounts


def restained(
    image: np.ndarray, hematoxylin: float = 1.0, eosin: float = 1.0, lamp: tuple = (1, 1, 1)
) -> np.ndarray:
    """An image as another laboratory or scanner would give it: (H, W, 3) uint8. Notebook 08.

    hematoxylin, eosin: of how much there is of each stain, 1 as it is; lamp: share of red, green
    and blue light. Colour is taken apart by optical density, as the phantom puts it together; what
    is neither stain stays.
    """
    density = -np.log10((np.arange(256) + 1) / 256)[image]  # (H, W, 3)
    amounts = density @ np.linalg.pinv(STAINS)  # (H, W, 2)
    more = (hematoxylin - 1, eosin - 1)
    light = 10 ** -(density + (amounts * more) @ STAINS) * np.array(lamp)
    return np.clip(np.rint(256 * light - 1), 0, 255).astype(np.uint8)
