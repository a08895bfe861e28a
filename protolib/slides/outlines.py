"""From a mask to polygons with holes, and to the GeoJSON that QuPath imports."""

import json
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from protolib import files
from protolib.data.specs import DatasetSpec

ROWS = 1024  # of a mask that are looked at at once
TOLERANCE = 0.5  # px of the mask: how far a simplified outline may leave the drawn one
SMALL = 100  # px of the mask: what the corners of a larger region come to is less than a hundredth
RIGHT, DOWN, LEFT, UP = range(4)  # where a run of an outline goes: its class is on the right hand
STEPS = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])  # x and y of each


def polygons(mask: Any, value: int) -> np.ndarray:
    """The regions of one value of a mask as polygons with holes, (n,) of shapely.

    mask: (H, W) uint8, an array or what gives its rows as one does. A polygon goes through the
    middles of the pixels' edges, in px, x then y, (0, 0) the mask's upper left corner: slanted
    borders come out straight. Pixels that share an edge are one region, those that touch at a
    corner stay apart, so that no two outlines touch and every polygon is valid.
    """
    runs = _runs(mask, value)  # (n, 4): x, y where it begins, its length, where it goes
    if not len(runs):
        return np.empty(0, object)
    points, ring = _middles(runs, *_rings(runs, mask.shape[1]))
    rings = shapely.linearrings(points, indices=ring)
    return _nested(rings)


def _runs(mask: Any, value: int) -> np.ndarray:
    """Straight pieces of the outlines, strip by strip: (n, 4) int64, x, y, length, direction."""
    (H, W), found = mask.shape, []
    for top in range(0, H, ROWS):
        inside = np.zeros((min(ROWS, H - top) + 2, W + 2), np.int8)  # a row above, and one below
        rows = mask[max(0, top - 1) : top + ROWS + 1]
        first = int(top == 0)
        inside[first : first + len(rows), 1:-1] = rows == value
        # between rows: 1 where the class begins below, -1 where it ends above
        flat = np.diff(inside, axis=0)[: len(inside) - 1 - (top + ROWS < H)]
        y, x, n, sign = _stretches(flat)
        found += [np.stack([x - 1, y + top, n, sign], 1)]
        # between columns, each within this strip: those that go on below are joined there
        steep = np.diff(inside[1:-1], axis=1).T
        x, y, n, sign = _stretches(steep)
        found += [np.stack([x, y + top, n, 2 * sign], 1)]
    runs = np.concatenate(found)
    kind = runs[:, 3]
    level, upright = runs[abs(kind) == 1], _joined(runs[abs(kind) == 2])
    for part, forward, back in ((level, RIGHT, LEFT), (upright, UP, DOWN)):
        going = part[:, 3] > 0
        part[:, 3] = np.where(going, forward, back)
    # a run that goes left or up begins at its far end
    level[level[:, 3] == LEFT, 0] += level[level[:, 3] == LEFT, 2]
    upright[upright[:, 3] == UP, 1] += upright[upright[:, 3] == UP, 2]
    return np.concatenate([level, upright])


def _stretches(signs: np.ndarray) -> tuple[np.ndarray, ...]:
    """Runs of equal values other than 0 along the rows: row, start, length and value of each."""
    edge = np.zeros((len(signs), 1), np.int8)
    steps = np.diff(signs, axis=1, prepend=edge, append=edge) != 0
    row, column = steps.nonzero()
    value = signs[row, np.minimum(column, signs.shape[1] - 1)] * (column < signs.shape[1])
    start = np.flatnonzero(value)
    return row[start], column[start], column[start + 1] - column[start], value[start]


def _joined(runs: np.ndarray) -> np.ndarray:
    """Upright runs with those joined that a strip's border cut: x, y, length, value."""
    runs = runs[np.lexsort((runs[:, 1], runs[:, 0]))]
    x, y, n, value = runs.T
    new = np.ones(len(runs), bool)
    new[1:] = (x[1:] != x[:-1]) | (y[1:] != y[:-1] + n[:-1]) | (value[1:] != value[:-1])
    starts = np.flatnonzero(new)
    joined = runs[starts]
    joined[:, 2] = np.add.reduceat(n, starts) if len(starts) else n
    return joined


def _rings(runs: np.ndarray, W: int) -> tuple[np.ndarray, np.ndarray]:
    """The order in which runs follow one another, and the ring of each in that order."""
    x, y, n, way = runs.T
    at = (y * (W + 1) + x) * 4 + way  # where a run begins, and where it goes
    end = (y + STEPS[way, 1] * n) * (W + 1) + x + STEPS[way, 0] * n
    order = np.argsort(at)
    # where two regions meet at a corner, four runs do: turning right keeps them apart
    right = end * 4 + (way + 1) % 4
    place = np.minimum(np.searchsorted(at, right, sorter=order), len(at) - 1)
    turns = at[order[place]] == right
    left = end * 4 + (way + 3) % 4
    other = np.minimum(np.searchsorted(at, left, sorter=order), len(at) - 1)
    follows = memoryview(np.where(turns, order[place], order[other]))
    # machine numbers, not Python's: a slide has millions of runs
    seen, visited, first = bytearray(len(follows)), array("q"), array("q")
    for start in range(len(follows)):
        if not seen[start]:
            first.append(len(visited))
        i = start
        while not seen[i]:
            seen[i] = 1
            visited.append(i)
            i = follows[i]
    lengths = np.diff(np.array(first), append=len(visited))
    return np.array(visited), np.repeat(np.arange(len(first)), lengths)


def _middles(
    runs: np.ndarray, visited: np.ndarray, ring: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The middles of the first and the last pixel edge of each run, in the rings' order: (m, 2)
    float, and the ring of each."""
    x, y, n, way = runs[visited].T
    start, step = np.stack([x, y], 1), STEPS[way]
    first = start + 0.5 * step
    last = start + (n - 0.5)[:, None] * step
    points = np.stack([first, last], 1).reshape(-1, 2)  # (2n, 2)
    keep = np.stack([np.ones(len(n), bool), n > 1], 1).ravel()
    return points[keep], np.repeat(ring, 2)[keep]


def _nested(rings: np.ndarray) -> np.ndarray:
    """Rings as polygons: those that go round their inside, each with the holes in it."""
    hole = ~shapely.is_ccw(rings)  # y grows downwards: so a shell has its class on the right hand
    shells = shapely.polygons(rings[~hole])
    if not hole.any():
        return shells
    # a hole is in the smallest shell around it; shells are the prepared side of the query
    spots = shapely.points(shapely.get_coordinates(shapely.get_point(rings[hole], 0)))
    owner, inside = shapely.STRtree(spots).query(shells, predicate="contains")
    by_area = np.lexsort((shapely.area(shells)[owner], inside))
    owner, inside = owner[by_area], inside[by_area]
    _, first = np.unique(inside, return_index=True)
    holes, of = rings[hole], owner[first]
    own = np.argsort(of, kind="stable")
    for shell in np.unique(of):
        a, b = np.searchsorted(of[own], [shell, shell + 1])
        shells[shell] = shapely.polygons(shapely.get_exterior_ring(shells[shell]), holes[own[a:b]])
    return shells


def simplified(shapes: np.ndarray, factors: tuple[float, float]) -> np.ndarray:
    """Polygons with fewer corners, within half a pixel of the mask, in px of the picture to a
    hundredth; each is valid, and as large as its pixels within a hundredth.

    shapes: (n,) of `polygons`; factors: px of the picture to a px of the mask, in x and in y.
    """
    few = shapely.simplify(shapes, TOLERANCE, preserve_topology=True)
    lost = ~shapely.is_valid(few) | shapely.is_empty(few)
    few[lost] = shapes[lost]  # simplified past its own hole: left as it was
    # a region of a few pixels is half corners, which its outline cuts off
    pixels = pixels_of(shapes)
    small = pixels < SMALL
    few[small] = _sized(shapes[small], pixels[small])
    placed = shapely.transform(few, lambda at: np.round(at * factors, 2))
    rounded_away = ~shapely.is_valid(placed)
    placed[rounded_away] = shapely.transform(few[rounded_away], lambda at: at * factors)
    return placed


def pixels_of(shapes: np.ndarray) -> np.ndarray:
    """How many pixels each of `polygons` stands for, (n,): an outline through the middles of edges
    cuts an eighth of a pixel off each corner that goes out, and adds one at each that goes in."""
    return shapely.area(shapes) + 0.5 - 0.5 * shapely.get_num_interior_rings(shapes)


def _sized(shapes: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """Polygons made larger or smaller about their centres, to these areas."""
    scale = np.sqrt(areas / shapely.area(shapes))
    centres = shapely.get_coordinates(shapely.centroid(shapes))
    points, of = shapely.get_coordinates(shapes, return_index=True)
    moved = centres[of] + (points - centres[of]) * scale[of, None]
    return shapely.set_coordinates(shapes.copy(), moved)


def write(path: Path, mask: Any, spec: DatasetSpec, factors: tuple[float, float]) -> np.ndarray:
    """Write the outlines of all classes as GeoJSON in the form that QuPath imports; returns their
    areas, (C,) px of the picture.

    mask: (H, W) uint8, 0..C-1 or ignore C, which is left out. One feature a region: an annotation
    classified by title and colour, in px of the picture's first level, largest first.
    """
    areas = np.zeros(spec.C)
    with files.whole(path) as file:
        file.write(b'{"type": "FeatureCollection", "features": [')
        comma = b"\n"
        for c in range(spec.C):
            shapes = simplified(polygons(mask, c), factors)
            area = shapely.area(shapes)
            areas[c] = area.sum()
            for feature in _features(shapes[np.argsort(-area, kind="stable")], c, spec):
                file.write(comma + feature.encode())
                comma = b",\n"
        file.write(b"\n]}\n")
    return areas


def _features(shapes: np.ndarray, c: int, spec: DatasetSpec) -> Iterator[str]:
    told = {
        "objectType": "annotation",
        "classification": {"name": spec.titles[c], "color": list(spec.palette[c])},
    }
    properties = json.dumps(told, ensure_ascii=False)
    for geometry in shapely.to_geojson(shapes):
        yield f'{{"type": "Feature", "geometry": {geometry}, "properties": {properties}}}'
