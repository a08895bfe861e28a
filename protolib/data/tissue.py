"""The painter of the phantom: one table says how twelve sub-types of tissue look, one function
draws any row of it.

Everything is drawn as amounts of two stains, (2, H, W): hematoxylin, then eosin. phantom.py makes
light of them.
"""

from typing import NamedTuple

import numpy as np
from scipy import fft, ndimage
from scipy.spatial import cKDTree
from scipy.special import ndtri


class Look(NamedTuple):
    """How a sub-type looks: lengths in pixels, stain amounts as optical density."""

    eosin: float  # of the ground
    haze: float  # hematoxylin of the ground
    ink: float  # hematoxylin of the nuclei
    spacing: float  # least distance between nuclei
    radius: float
    spread: float  # of the radius, relative
    aspect: float  # length over breadth of a nucleus
    fill: float = 1.0  # share of the places that hold a nucleus
    align: float = 0.0  # share of the nuclei that lie along the fibres
    vesicular: float = 0.0  # 1 = pale nucleus with a dark rim and a nucleolus
    fibre: float = 0.0  # contrast of the fibres
    width: float = 3.0  # of a fibre
    wave: float = 0.0  # sideways swing of the fibres
    gaps: float = 0.0  # share of white clefts
    grain: float = 0.1  # contrast of the finest texture
    membrane: float = 0.0  # borders between cells: above 0 pink, below 0 pale
    crumbs: float = 0.0  # nuclear dust, fragments per 1000 square pixels
    nest: float = 70.0  # distance between nests
    stretch: float = 1.0  # of the nests along the fibres
    septum: float = -9.0  # half the breadth of the stroma between nests; below 0 there is none
    lumen: float = 0.0  # share of the nest's radius that is hollow
    basal: float = 0.0  # share of the nuclei lined up along the border of the nest


LOOKS = np.array(
    [
        [
            Look(
                0.34,
                0.12,
                0.80,
                7.5,
                5.2,
                0.10,
                1.9,
                vesicular=0.4,
                nest=54,
                septum=3,
                lumen=0.50,
                basal=1,
                membrane=0.1,
            ),
            Look(
                0.28, 0.28, 0.86, 9.5, 5.8, 0.18, 1.25, vesicular=0.5, nest=44, septum=8, grain=0.1
            ),
            Look(0.28, 0.22, 0.82, 14, 7.8, 0.25, 1.25, vesicular=0.85, grain=0.15, membrane=-0.4),
        ],
        [
            Look(
                0.24,
                0.05,
                0.75,
                26,
                4.0,
                0.2,
                2.4,
                align=0.7,
                fibre=0.9,
                width=3.2,
                wave=13,
                gaps=0.18,
            ),
            Look(0.42, 0.06, 0.80, 17, 3.8, 0.2, 3.6, align=1, fibre=0.36, width=1.7, wave=2),
            Look(
                0.40, 0.03, 0.70, 40, 3.6, 0.2, 2.4, align=1, fibre=0.3, width=9, wave=6, grain=0.03
            ),
        ],
        [
            Look(0.16, 0.20, 0.98, 9.2, 5.4, 0.09, 1.1, grain=0.15, membrane=-0.85),
            Look(0.26, 0.08, 0.95, 11, 5.3, 0.12, 1.15, fill=0.5, fibre=0.4, width=3, wave=6),
            Look(
                0.20,
                0.16,
                0.95,
                9.2,
                5.2,
                0.10,
                1.15,
                nest=34,
                stretch=4,
                septum=8,
                membrane=-0.5,
                wave=4,
            ),
        ],
        [
            Look(0.42, 0.07, 0.38, 15, 6.2, 0.15, 1.2, vesicular=0.3, membrane=0.5, grain=0.10),
            Look(0.34, 0.16, 0.55, 24, 4.5, 0.3, 1.2, grain=0.45, crumbs=9, gaps=0.03),
            Look(0.46, 0.08, 0.35, 45, 4.0, 0.3, 1.4, grain=0.08, crumbs=0.7),
        ],
    ]
)  # (C, K, 22)
COLOURS = 2  # the first columns, the ground's two stains: what the dial "similarity" moves
# the stroma between nests
MATRIX = Look(0.34, 0.05, 0.76, 24, 3.8, 0.2, 3.0, align=0.9, fibre=0.4, width=2.5, wave=5)
DUST = Look(0.34, 0.05, 0.90, 4, 1.8, 0.35, 1.3)


class Cells(NamedTuple):
    """Nuclei and fragments to be stamped, every field (n,) float64."""

    y: np.ndarray
    x: np.ndarray
    radius: np.ndarray
    aspect: np.ndarray
    angle: np.ndarray  # radians
    ink: np.ndarray
    vesicular: np.ndarray

    def where(self, keep: np.ndarray) -> "Cells":
        """Those that `keep`, (n,) bool, names."""
        return Cells(*(column[keep] for column in self))

    def on(self, plane: np.ndarray) -> np.ndarray:
        """`plane` (H, W) read at the centres (n,); a centre beyond the patch reads its edge."""
        row, column = np.clip([self.y, self.x], 0, len(plane) - 1).astype(int)
        return plane[row, column]


def looks(heterogeneity: float, similarity: float) -> np.ndarray:
    """Give the table of looks (C, K, 22) under the two dials.

    Dials in [0, 1]. Heterogeneity h moves each row away from the mean of its class by a factor
    sqrt(2 h), so 0 makes the sub-types one and 0.5 is the table, but never beyond what some row
    shows. Similarity s then moves the ground's two stains towards their mean over all rows by a
    share s: 0 is the table, 1 one colour for all.
    """
    mean = LOOKS.mean(1, keepdims=True)  # (C, 1, 22)
    table = np.clip(
        mean + np.sqrt(2 * heterogeneity) * (LOOKS - mean), LOOKS.min((0, 1)), LOOKS.max((0, 1))
    )
    colour = table[..., :COLOURS]
    table[..., :COLOURS] = colour + similarity * (colour.mean((0, 1)) - colour)
    return table


def field(
    rng: np.random.Generator, size: int, along: float, across: float = 0, angle: float = 0
) -> np.ndarray:
    """Smooth Gaussian noise (H, W) float32 of mean 0 and variance 1, correlated over `along` and
    `across` pixels."""
    across = across or along
    # larger than shown: no wrap-around
    n = fft.next_fast_len(size + int(2 * max(along, across)), real=True)
    fy, fx = fft.fftfreq(n)[:, None], fft.rfftfreq(n)
    u, v = fx * np.cos(angle) + fy * np.sin(angle), fy * np.cos(angle) - fx * np.sin(angle)
    # (n, n // 2 + 1)
    gain = np.exp(-2 * np.pi**2 * ((along * u) ** 2 + (across * v) ** 2)).astype(np.float32)
    twice = np.full(len(fx), 2)  # rfft keeps one of each pair of opposite frequencies
    twice[[0] if n % 2 else [0, -1]] = 1
    noise = fft.irfft2(fft.rfft2(rng.standard_normal((n, n), dtype=np.float32)) * gain, (n, n))
    return noise[:size, :size] * (n / float(np.sqrt((gain**2 * twice).sum())))


def warped(values: np.ndarray, shift: np.ndarray, angle: float) -> np.ndarray:
    """`values` (H, W) read `shift` pixels to the side of the direction `angle`."""
    y, x = np.mgrid[: len(values), : len(values)].astype(np.float32)
    places = [y + shift * np.cos(angle), x - shift * np.sin(angle)]
    return ndimage.map_coordinates(values, places, order=1, mode="mirror")


def turned(
    y: np.ndarray, x: np.ndarray, angle: float, stretch: float
) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates along (in units of `stretch`) and across the direction `angle`."""
    return (y * np.sin(angle) + x * np.cos(angle)) / stretch, y * np.cos(angle) - x * np.sin(angle)


def scatter(
    rng, size: int, spacing: float, margin: float, stretch: float = 1, angle: float = 0
) -> np.ndarray:
    """Random points (n, 2) as y, x that keep their distance, out to `margin` pixels beyond the
    patch."""
    side = size + 2 * margin
    points = rng.random((int(1.6 * side**2 / (stretch * spacing**2)) + 2, 2)) * side - margin
    y, x = points.T
    tree = cKDTree(np.stack(turned(y, x, angle, stretch), 1))
    near = tree.query_pairs(spacing, output_type="ndarray")
    kept = np.ones(len(points), bool)
    for i, j in near[np.lexsort((near[:, 1], near[:, 0]))]:  # i < j: who came first stays
        kept[j] &= not kept[i]
    return points[kept]


def nests(rng, size: int, look: Look, angle: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Depth in pixels below the nests' border, position from centre 0 to border 1, and outward
    angle, each (H, W)."""
    y, x = np.mgrid[:size, :size] + 5 * np.stack([field(rng, size, 12), field(rng, size, 12)])
    first, second, outward = (
        np.full((size, size), 1e9),
        np.full((size, size), 1e9),
        np.zeros((size, size)),
    )
    for centre_y, centre_x in scatter(rng, size, look.nest, 1.2 * look.nest, look.stretch, angle):
        distance = np.hypot(*turned(y - centre_y, x - centre_x, angle, look.stretch))
        nearer = distance < first
        outward[nearer] = np.arctan2(y[nearer] - centre_y, x[nearer] - centre_x)
        second = np.where(nearer, first, np.minimum(second, distance))
        first = np.minimum(first, distance)
    depth = (second - first) / 2
    return depth - look.septum, first / (first + depth), outward


def borders(points: np.ndarray, size: int) -> np.ndarray:
    """Closeness to the border between neighbouring cells (H, W), 1 on it."""
    grid = np.mgrid[:size:2, :size:2]  # every second pixel: the border is soft anyway
    distance, _ = cKDTree(points).query(np.moveaxis(grid, 0, -1), k=2)  # (h, w, 2)
    near = np.exp(-((distance[..., 1] - distance[..., 0]) ** 2) / 4)
    return near.repeat(2, 0).repeat(2, 1)[:size, :size]


def nuclei(rng, look: Look, points: np.ndarray, along: float = 0) -> Cells:
    """Nuclei at points (n, 2), each with its own size, shape, direction and ink."""
    n = len(points)
    angle = np.where(
        rng.random(n) < look.align, along + 0.2 * rng.standard_normal(n), rng.random(n) * np.pi
    )
    y, x = points.T
    return Cells(
        y=y,
        x=x,
        radius=look.radius * np.exp(look.spread * rng.standard_normal(n)),
        aspect=1 + (look.aspect - 1) * rng.uniform(0.6, 1.4, n),
        angle=angle,
        ink=look.ink * rng.uniform(0.8, 1.15, n),
        vesicular=np.clip(look.vesicular + 0.2 * rng.standard_normal(n), 0, 1),
    )


def tissue(rng: np.random.Generator, size: int, look: Look) -> tuple[np.ndarray, Cells]:
    """One sub-type over a whole patch: amounts of its ground (2, H, W) and the nuclei to stamp on
    it."""
    angle = rng.random() * np.pi
    depth, radial, outward = nests(rng, size, look, angle)
    points = scatter(rng, size, look.spacing, 12)
    cells = nuclei(rng, look, points, angle)
    lined = rng.random(len(points)) < look.basal
    cells = cells._replace(angle=np.where(lined, cells.on(outward), cells.angle))
    inside = (cells.on(depth) > 0.5 * look.radius) & (cells.on(radial) > look.lumen)
    inside &= ~lined | (cells.on(depth) < 2 * look.radius)
    between = nuclei(rng, MATRIX, scatter(rng, size, MATRIX.spacing, 12), angle)
    dust = nuclei(rng, DUST, rng.random((rng.poisson(look.crumbs * size**2 / 1000), 2)) * size)
    parts = (
        cells.where(inside & (rng.random(len(points)) < look.fill)),
        between.where(between.on(depth) < -2),
        dust,
    )
    return ground(rng, size, look, angle, depth, radial, points), joined(parts)


def joined(parts) -> Cells:
    """The cells of all parts in one."""
    return Cells(*(np.concatenate(columns) for columns in zip(*parts)))


def ground(rng, size: int, look: Look, angle: float, depth, radial, points) -> np.ndarray:
    """What lies under the nuclei (2, H, W): the nests, the stroma between them, hollow lumens and
    clefts."""
    swing = look.wave * field(rng, size, 22, 14, angle)
    fibres = np.tanh(warped(field(rng, size, 10 * look.width, look.width, angle), swing, angle))
    grain = np.exp(look.grain * field(rng, size, 1.4) + 0.12 * field(rng, size, 8))
    eosin = (
        look.eosin * grain * (1 + look.fibre * fibres) * (1 + look.membrane * borders(points, size))
    )
    body = np.clip(depth / 2 + 0.5, 0, 1)  # 1 in the nest, 0 in the stroma, soft over two pixels
    between = (1 - body) * (1 + MATRIX.fibre * fibres)
    amounts = np.stack(
        [body * look.haze * grain + MATRIX.haze * between, body * eosin + MATRIX.eosin * between]
    )
    lumen = (
        15 * (look.lumen - radial + 0.05 * field(rng, size, 12))
        if look.lumen > 0.05
        else np.zeros_like(radial)
    )
    clefts = warped(field(rng, size, 9, 4, angle), swing, angle)
    clefts = 4 * (clefts + ndtri(look.gaps)) if look.gaps > 0.005 else np.zeros_like(radial)
    return np.maximum(amounts, 0.01) * (1 - np.clip(np.maximum(lumen, clefts), 0, 1))


def stamp(rng, amounts: np.ndarray, cells: Cells) -> None:
    """Draw the nuclei onto amounts (2, H, W), in place: each dark nucleus hides most of what lies
    under it."""
    size, reach = amounts.shape[1], np.arange(-15, 16)
    column = Cells(*(values[:, None, None] for values in cells))  # (n, 1, 1)
    row, col = (
        np.floor(column.y).astype(int) + reach[:, None],
        np.floor(column.x).astype(int) + reach,
    )
    row, col = np.broadcast_arrays(row, col)  # (n, 31, 31): a window around every nucleus
    dy, dx, squeeze = row - column.y, col - column.x, np.sqrt(column.aspect)
    along = (dx * np.cos(column.angle) + dy * np.sin(column.angle)) / squeeze
    across = (dy * np.cos(column.angle) - dx * np.sin(column.angle)) * squeeze
    turn, bend = np.arctan2(across, along), 1
    for lobes, dent in ((2, 0.06), (3, 0.04), (5, 0.02)):
        bend = bend + dent * np.sin(lobes * turn + 2 * np.pi * rng.random(column.y.shape))
    r = np.hypot(along, across) / (column.radius * bend)  # 1 on the contour
    cover = np.clip((1 - r) * column.radius + 0.5, 0, 1)
    rim = np.exp(-(((r - 0.85) / 0.18) ** 2))
    nucleolus = np.exp(-((along - 0.3 * column.radius) ** 2 + across**2) / 2.5)
    ink = column.ink * (1 - column.vesicular * (0.6 * (1 - rim) - 0.7 * nucleolus))
    seen = (row >= 0) & (row < size) & (col >= 0) & (col < size) & (cover > 0)
    dark, opaque = np.zeros((2, size, size))
    np.maximum.at(dark, (row[seen], col[seen]), (ink * cover)[seen])
    np.maximum.at(opaque, (row[seen], col[seen]), cover[seen])
    chromatin = np.maximum(1 + 0.22 * field(rng, size, 1.1), 0)
    amounts[0] = amounts[0] * (1 - opaque) + dark * chromatin
    amounts[1] *= 1 - 0.45 * opaque
