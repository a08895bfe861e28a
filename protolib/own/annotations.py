"""Annotations of QuPath, exported as GeoJSON: their polygons with classes and colours, the images
that they lie on, and the pixels that they cover."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from shapely import affinity, box, contains, contains_xy, intersects, prepare
from shapely.errors import ShapelyError
from shapely.geometry import shape
from shapely.validation import make_valid

from protolib.data.regions import Patch

# name of a region as QuPath's tile exporter writes it: SLIDE [d=4,x=0,y=512,w=2048,h=2048]
REGION = re.compile(
    r"^(?P<slide>.+?) ?\[(?:d=(?P<d>[\d.]+),)?x=(?P<x>\d+),y=(?P<y>\d+),"
    r"w=(?P<w>\d+),h=(?P<h>\d+)\]$"
)
BLOCK = 64  # px: side of the squares that a polygon is filled in
IGNORE = "Ignore*"  # QuPath's name for what is to be left out; other names with * are no tissue


class Area(NamedTuple):
    """One image of an annotated slide: where its upper left corner lies on the slide and what it
    covers there, px, 0 where the name does not say; how many px of the slide one of its own is; and
    (class, polygon of shapely) in px of the slide, large ones first."""

    image: Path
    slide: str
    x: float
    y: float
    w: float
    h: float
    downsample: float
    polygons: list[tuple[str, Any]]

    def mask(self, shape: tuple[int, int], classes: Sequence[str]) -> np.ndarray:
        """What the image shows, (H, W) uint8: index of a class, C where nothing of them is
        annotated.

        shape: H and W of the image, px. Raises ValueError where such an image cannot lie where its
        name puts it: the masks would be of other places.
        """
        (H, W), C = shape, len(classes)
        placed = list(self._placed())
        if self.w and max(abs(self.w / self.downsample - W), abs(self.h / self.downsample - H)) > 1:
            raise ValueError(
                f"{self.image} is {W} x {H} px, and its name says {self.w:g} x {self.h:g} px of "
                f"the slide at d={self.downsample:g}: export it again, in pixels."
            )
        far = [polygon for _, polygon in placed if not polygon.intersects(box(0, 0, W, H))]
        if far and not self.w:
            raise ValueError(
                f"{self.image} is {W} x {H} px, and {len(far)} annotations of {self.slide} lie "
                "beyond it: was it exported smaller than the slide? Name it as QuPath does, "
                f"'{self.slide} [d=4,x=0,y=0,w={4 * W},h={4 * H}].png' for a quarter of each side."
            )
        mask = np.full(shape, C, np.uint8)
        for kind, polygon in placed:
            if kind in (*classes, IGNORE):
                fill(mask, polygon, classes.index(kind) if kind in classes else C)
        return mask

    def _placed(self) -> Iterator[tuple[str, Any]]:
        """The polygons in px of the image."""
        scale = 1 / self.downsample
        matrix = [scale, 0, 0, scale, -self.x * scale, -self.y * scale]
        for kind, polygon in self.polygons:
            yield kind, affinity.affine_transform(polygon, matrix)

    def name(self, patch: Patch) -> str:
        """The name of one of its patches: slide, and the corner, px of the slide."""
        x, y = (
            round(c + own * self.downsample) for c, own in ((self.x, patch.x), (self.y, patch.y))
        )
        return f"{self.slide}_x{x}_y{y}".replace("[", "(").replace("]", ")")


def read(
    drawn: Sequence[Path], images: Sequence[Path]
) -> tuple[list[Area], dict[str, tuple[int, int, int] | None], Counter]:
    """The annotated images, the colour of each class, and why how many annotations are left out.

    drawn: NAME.geojson, one a slide. images: NAME.png beside it, or regions of it anywhere, under
    the names that QuPath gives them. Raises ValueError for a file that is no such GeoJSON, a name
    that comes twice, annotations without an image, and images of several resolutions.
    """
    areas, colours, left_out = [], {}, Counter()
    for stem, n in Counter(path.stem for path in drawn).items():
        if n > 1:
            raise ValueError(f"{n} files are called {stem}.geojson: give each slide its own name.")
    for path in drawn:
        mine = list(_areas(path, images, _polygons(path, colours, left_out)))
        if not mine:
            raise ValueError(
                f"no image for {path.name}: put {path.stem}.png (or .tif, .jpg) beside it, or "
                f"regions of it, named as QuPath does: '{path.stem} [d=1,x=0,y=0,w=9,h=9].png'."
            )
        areas += mine
    scales = sorted({area.downsample for area in areas})
    if len(scales) > 1:
        raise ValueError(
            f"images of several resolutions, d={scales[0]:g} and d={scales[-1]:g}: export all "
            "regions at one downsample, for a network knows tissue at one size."
        )
    return areas, colours, left_out


def _polygons(path: Path, colours: dict, left_out: Counter) -> list[tuple[str, Any]]:
    """The polygons of a GeoJSON file with their classes, large ones first: of two that overlap the
    smaller was drawn into the larger. colours and left_out are added to."""
    found = []
    try:
        read = json.loads(path.read_text("utf-8-sig"))
        features = read.get("features", [read]) if isinstance(read, dict) else read
        for feature in features:
            said = feature.get("properties") or {}
            kind, colour = _class_of(said.get("classification") or {})
            polygon = shape(feature["geometry"])
            if why := _left_out(said.get("objectType", "annotation"), kind, polygon):
                left_out[why] += 1
            else:
                found.append((kind, polygon if polygon.is_valid else make_valid(polygon)))
                colours.setdefault(kind, colour)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ShapelyError) as error:
        raise ValueError(
            f"{path} is no GeoJSON as QuPath exports it ({type(error).__name__}: {error}): export "
            "annotations with File > Export objects as GeoJSON."
        ) from error
    return sorted(found, key=lambda one: -one[1].area)


def _left_out(what: str, kind: str, polygon: Any) -> str:
    """Why an object of QuPath says nothing about tissue; "" if it does."""
    if what != "annotation":
        return f"that are a {what}"
    if polygon.area == 0:
        return "without an area (points and lines)"
    if not kind:
        return "without a class"
    return f"of class {kind}, no tissue to QuPath" if kind.endswith("*") and kind != IGNORE else ""


def _class_of(said: Mapping[str, Any]) -> tuple[str, tuple[int, int, int] | None]:
    """Name and colour of a classification, in the forms that versions of QuPath write."""
    name = said.get("name") or ": ".join(said.get("names") or ())
    colour = said.get("color")
    if colour is None and isinstance(packed := said.get("colorRGB"), int):
        colour = [packed >> 16 & 255, packed >> 8 & 255, packed & 255]
    if not colour:
        return name, None
    red, green, blue = map(int, colour)
    return name, (red, green, blue)


def _areas(drawn: Path, images: Sequence[Path], polygons: list[tuple[str, Any]]) -> Iterator[Area]:
    """The images that a GeoJSON file speaks of."""
    for path in images:
        found = REGION.match(path.stem)
        if path.stem == drawn.stem and path.parent == drawn.parent:
            yield Area(path, drawn.stem, 0.0, 0.0, 0.0, 0.0, 1.0, polygons)
        elif found and found["slide"] == drawn.stem:
            x, y, w, h, downsample = (float(found[part] or 1) for part in "xywhd")
            yield Area(path, drawn.stem, x, y, w, h, downsample, polygons)


def fill(codes: np.ndarray, polygon: Any, value: int) -> None:
    """Set the pixels of codes (H, W) uint8 whose centre lies in a polygon of shapely, in place.

    Squares that lie in it whole are filled at once; points are asked only along its border.
    """
    (H, W), (left, top, right, bottom) = codes.shape, polygon.bounds
    xs = np.arange(max(0, int(left)), min(W, int(right) + 1), BLOCK)
    ys = np.arange(max(0, int(top)), min(H, int(bottom) + 1), BLOCK)
    if not len(xs) or not len(ys):
        return
    x, y = (grid.ravel() for grid in np.meshgrid(xs, ys))
    prepare(polygon)
    squares = box(x, y, x + BLOCK, y + BLOCK)
    whole, touched = contains(polygon, squares), intersects(polygon, squares)
    for column, row, full in zip(x[touched], y[touched], whole[touched]):
        block = codes[row : row + BLOCK, column : column + BLOCK]  # a view
        h, w = block.shape
        if full:
            block[:] = value
        else:
            px, py = np.meshgrid(column + np.arange(w) + 0.5, row + np.arange(h) + 0.5)
            block[contains_xy(polygon, px, py)] = value
