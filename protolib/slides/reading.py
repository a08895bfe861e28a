"""Pictures on disk, read window by window at any scale: plain images, TIFF of all kinds, slides of
scanners. A picture that cannot be what a network learned from is refused when it is opened."""

import logging
import math
import re
import warnings
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image, ImageOps

try:  # the extra "slides"; without it TIFF and plain images are read all the same
    import openslide
except ImportError:
    openslide = None

# what it finds odd in a file is said in our own sentence, or is no matter
logging.getLogger("tifffile").setLevel(logging.CRITICAL)

PLAIN = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
TIFF = (".tif", ".tiff", ".btf", ".svs", ".ndpi", ".scn", ".bif", ".qptiff")
SCANNER = (".mrxs", ".vms", ".vmu", ".svslide", ".dcm", ".czi")  # only OpenSlide reads these
MICROSCOPES = 0.05, 10.0  # um per pixel; 72 dpi, 353 um, is a printer's number that files carry
WHOLE = 100  # Mpx that are decoded in one piece at most: of a plain image, or of a TIFF's strip
PIECES = 1 << 26  # bytes of decoded pieces of a TIFF that are kept: windows overlap
STRIP = 1 << 24  # px that are read at once where a picture is shrunk

Read = Callable[[int, int, int, int, int], np.ndarray]


class Refused(ValueError):
    """A picture that is not read: its path, what was found, what to do."""


class Picture:
    """A picture on disk. Make it with `open_picture`.

    levels: (width, height) px of each level of its pyramid, the picture itself first; mpp:
    micrometres to a pixel of the first, 0 where the file does not say; read: level, x, y, width,
    height in px of that level, all inside -> (height, width, 3) uint8 RGB.
    """

    def __init__(self, path: Path, levels: list[tuple[int, int]], mpp: float, read: Read):
        self.path, self.levels, self.mpp, self.read = path, levels, mpp, read

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, px."""
        return self.levels[0]

    def scaled(self, scale: float) -> tuple[int, int]:
        """Width and height of the picture at a scale, px, at least 1."""
        width, height = (max(1, round(scale * side)) for side in self.size)
        return width, height

    def window(self, scale: float, x: int, y: int, width: int, height: int) -> np.ndarray:
        """A window of the picture at a scale, (height, width, 3) uint8 RGB.

        scale: px of the window to a px of the picture; x, y, width, height: in px of the window,
        inside `scaled(scale)`. A pixel does not depend on the window that it is read in.
        """
        full = self.scaled(scale)
        # the coarsest level that still has all that the scale asks for
        level = max(
            i for i, (w, _) in enumerate(self.levels) if i == 0 or w >= full[0] * (1 - 1e-3)
        )
        if self.levels[level] == full:
            return self.read(level, x, y, width, height)
        # px of the level to a px of the window, and as many px more as the filter reaches
        steps = [side / own for side, own in zip(self.levels[level], full)]
        starts, stops = [], []
        for start, n, step, side in zip((x, y), (width, height), steps, self.levels[level]):
            reach = math.ceil(2 * max(step, 1)) + 1
            starts.append(max(0, math.floor(start * step) - reach))
            stops.append(min(side, math.ceil((start + n) * step) + reach))
        pixels = self.read(level, *starts, *(b - a for a, b in zip(starts, stops)))
        left, top = (start * step - a for start, step, a in zip((x, y), steps, starts))
        box = (
            left,
            top,
            min(left + width * steps[0], pixels.shape[1]),
            min(top + height * steps[1], pixels.shape[0]),
        )
        # as patches are brought to their size, see data/patches.py
        resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC, box)
        return np.asarray(resized)

    def strips(self, scale: float) -> Iterator[tuple[int, np.ndarray]]:
        """The whole picture at a scale, a strip at a time from its top: first row, and
        (rows, width, 3) uint8 RGB. Memory does not grow with the picture's height."""
        width, height = self.scaled(scale)
        rows = max(1, int(STRIP * min(scale, 1) ** 2 / width))
        for y in range(0, height, rows):
            n = min(rows, height - y)
            yield y, self.window(scale, 0, y, width, n)

    def shrunk(self, scale: float) -> np.ndarray:
        """The whole picture at a scale, (h, w, 3) uint8 RGB."""
        return np.concatenate([strip for _, strip in self.strips(scale)])


def open_picture(path: str | Path) -> Picture:
    """Open a picture: what OpenSlide knows as a scanner's, a TIFF, or a plain image.

    Raises Refused, in one sentence, for what is no colour picture of 8 or 16 bits: no image at
    all, cut off, empty, of one band, CMYK, a stack, or too large to be decoded in one piece.
    """
    path = Path(path)
    if not path.is_file():
        raise Refused(f"{path} is no file: give an image, a slide, or a folder of them")
    if not path.stat().st_size:
        raise Refused(f"{path} is empty, 0 bytes: copy it again")
    try:
        if openslide and openslide.OpenSlide.detect_format(path) not in (None, "generic-tiff"):
            return scanner(path)
        with open(path, "rb") as file:
            head = file.read(4)
        if head[:2] in (b"II", b"MM") and head[2:4] in (b"*\0", b"\0*", b"+\0", b"\0+"):
            return _tiff(path)
        if not openslide and path.suffix.lower() in SCANNER:
            raise Refused(
                f"{path} is of a scanner: pip install openslide-python openslide-bin to read it"
            )
        return _plain(path)
    except Refused:
        raise
    except Exception as error:  # both libraries pass on whatever a broken file makes them raise
        raise Refused(
            f"{path} cannot be read as a picture ({error}): it is cut off, or no image"
        ) from error


def _told(mpp: float) -> float:
    """Micrometres to a pixel where a microscope can have said it, else 0."""
    return float(mpp) if MICROSCOPES[0] <= mpp <= MICROSCOPES[1] else 0.0


def _on_white(pixels: np.ndarray) -> np.ndarray:
    """(h, w, 3 or 4) uint8 -> (h, w, 3): what is transparent is glass, not black."""
    if pixels.shape[2] == 3:
        return pixels
    colour, alpha = pixels[..., :3].astype(np.uint16), pixels[..., 3:].astype(np.uint16)
    return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _bands(path: Path, found: str) -> Refused:
    return Refused(
        f"{path} is {found}; expected red, green and blue, of 8 or 16 bits: the networks learned "
        "from stained tissue in colour"
    )


def _plain(path: Path) -> Picture:
    """A PNG, JPEG or the like, decoded whole: their formats have no windows."""
    with warnings.catch_warnings():  # of many pixels: the limit is ours
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image = Image.open(path)
    with image:
        if (frames := getattr(image, "n_frames", 1)) > 1:
            raise Refused(f"{path} is a stack of {frames} pictures; give one picture")
        if image.width * image.height > WHOLE * 10**6:
            raise _in_one_piece(path, image.size)
        if image.mode not in ("RGB", "RGBA", "P"):
            kind = "in CMYK" if image.mode == "CMYK" else f"of one band, mode {image.mode}"
            raise _bands(path, kind)
        dots = image.info.get("dpi", (0, 0))[0]
        alpha = image.mode == "RGBA" or "transparency" in image.info
        # turned as a viewer would show it
        upright = ImageOps.exif_transpose(image).convert("RGBA" if alpha else "RGB")
        pixels = _on_white(np.asarray(upright))

    def read(level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        return pixels[y : y + height, x : x + width]

    return Picture(path, [pixels.shape[1::-1]], _told(25400 / dots if dots else 0), read)


def _in_one_piece(path: Path, size: tuple[int, int]) -> Refused:
    return Refused(
        f"{path} is {size[0]} x {size[1]} px in one piece, and at most {WHOLE} million are decoded "
        "at once: save it as a tiled TIFF, say with: vips tiffsave --tile --pyramid"
    )


def _tiff(path: Path) -> Picture:
    """A TIFF, plain, OME, of a scanner, tiled or in strips: only the pieces under a window are
    read."""
    file = tifffile.TiffFile(path)
    if not len(file.pages) or not math.prod(file.pages[0].shape):
        raise Refused(f"{path} holds no picture, or one of no size: copy it again")
    series = file.series[0]
    pages: list[Any] = [level.keyframe for level in series.levels]
    first = pages[0]
    colours = [tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.YCBCR]
    if series.axes not in ("YXS", "SYX", "YX"):
        axes = " x ".join(map(str, series.shape))
        raise Refused(f"{path} is a stack, {axes} ({series.axes}); give one picture, one focus")
    if first.photometric == tifffile.PHOTOMETRIC.SEPARATED:
        raise _bands(path, "in CMYK")
    if first.photometric not in colours or first.samplesperpixel not in (3, 4):
        raise _bands(path, f"of {first.samplesperpixel} band(s), {first.photometric.name.lower()}")
    if first.dtype not in (np.uint8, np.uint16):
        raise _bands(path, f"of {first.dtype} numbers")
    end = path.stat().st_size
    pages = [page for page in pages if page.dtype == first.dtype]
    for page in pages:
        if any(a + n > end for a, n in zip(page.dataoffsets, page.databytecounts)):
            raise Refused(f"{path} is cut off: its last pieces lie behind its end; copy it again")
    levels = [(page.imagewidth, page.imagelength) for page in pages]
    picture = Picture(path, levels, _tiff_mpp(file, first), _tiff_reader(path, file, pages))
    if first.dtype == np.uint16:
        brightest = picture.shrunk(min(1.0, 512 / max(picture.size))).max()
        if brightest < 32:
            raise Refused(
                f"{path} has 16 bits and is black in all but the lowest: its brightest pixel has "
                f"{brightest} of 255; stretch it to the full range, or save it with 8 bits"
            )
    return picture


def _tiff_reader(path: Path, file: tifffile.TiffFile, pages: list) -> Read:
    """The windows of a TIFF's levels, from its decoded tiles or strips."""
    first = pages[0]
    tile = (first.tilewidth, first.tilelength) if first.is_tiled else None
    piece = tile or (first.imagewidth, first.rowsperstrip)
    flat = first.is_contiguous and first.planarconfig == 1
    if flat and first.dtype == np.uint8:  # not compressed: the disk is the picture

        def mapped(level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
            page = pages[level]
            shape = (page.imagelength, page.imagewidth, page.samplesperpixel)
            pixels = np.memmap(path, np.uint8, "r", page.dataoffsets[0], shape)
            return _on_white(np.array(pixels[y : y + height, x : x + width]))

        if all(page.is_contiguous for page in pages):
            return mapped
    if piece[0] * min(piece[1], first.imagelength) > WHOLE * 10**6:
        raise _in_one_piece(path, (first.imagewidth, first.imagelength))
    size = piece[0] * piece[1] * first.samplesperpixel * first.dtype.itemsize

    @lru_cache(maxsize=max(1, PIECES // size))
    def decoded(level: int, index: int) -> np.ndarray | None:
        page = pages[level]
        if not page.databytecounts[index]:
            return None  # a sparse piece: glass
        file.filehandle.seek(page.dataoffsets[index])
        data = file.filehandle.read(page.databytecounts[index])
        try:
            more = {"jpegtables": page.jpegtables} if page.jpegtables else {}
            return page.decode(data, index, **more)[0][0]  # (h, w, samples)
        except Exception as error:  # each codec raises its own
            raise Refused(
                f"{path} is damaged in piece {index} of level {level}: {error}"
            ) from error

    def read(level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        page = pages[level]
        w, h = (page.tilewidth, page.tilelength) if page.is_tiled else (page.imagewidth, 0)
        h = h or page.rowsperstrip
        across, down = -(-page.imagewidth // w), -(-page.imagelength // h)
        apart = page.planarconfig == 2  # red, green and blue in pieces of their own
        out = np.full((height, width, page.samplesperpixel), 255, np.uint8)
        for band in range(page.samplesperpixel if apart else 1):
            into = out[..., band : band + 1] if apart else out
            for row in range(y // h, -(-(y + height) // h)):
                for column in range(x // w, -(-(x + width) // w)):
                    pixels = decoded(level, (band * down + row) * across + column)
                    if pixels is None:
                        continue
                    top, left = row * h - y, column * w - x  # of the piece in the window
                    part = pixels[max(0, -top) : height - top, max(0, -left) : width - left]
                    part = part if part.dtype == np.uint8 else (part >> 8).astype(np.uint8)
                    place = np.s_[max(0, top) :, max(0, left) :]
                    into[place][: part.shape[0], : part.shape[1]] = part
        return _on_white(out)

    return read


def _tiff_mpp(file: tifffile.TiffFile, page: Any) -> float:
    """Micrometres to a pixel of a TIFF: of OME's words, of a scanner's, or of the resolution tag; 0
    where none says it."""
    if file.ome_metadata:
        found = re.search(r'PhysicalSizeX="([^"]+)"', file.ome_metadata)
        unit = re.search(r'PhysicalSizeXUnit="([^"]+)"', file.ome_metadata)
        factor = {"nm": 1e-3, "mm": 1e3, "cm": 1e4}.get(unit[1] if unit else "", 1.0)
        return _told(factor * float(found[1])) if found else 0.0
    if found := re.search(r"MPP *= *([\d.]+)", page.description):
        return _told(float(found[1]))
    per, tag = {2: 25400.0, 3: 10000.0}.get(page.resolutionunit, 0.0), page.tags.get("XResolution")
    if not per or tag is None or not tag.value[0]:
        return 0.0
    return _told(per * tag.value[1] / tag.value[0])


def scanner(path: Path) -> Picture:
    """A slide by OpenSlide, where it is installed."""
    slide = openslide.OpenSlide(path)
    mpp = slide.properties.get(openslide.PROPERTY_NAME_MPP_X, 0)

    def read(level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        # OpenSlide wants the corner in px of the first level
        step = slide.level_downsamples[level]
        region = slide.read_region((round(x * step), round(y * step)), level, (width, height))
        return _on_white(np.asarray(region))

    return Picture(path, list(slide.level_dimensions), _told(float(mpp)), read)


def pictures(inputs: list[Path]) -> list[Path]:
    """The files of inputs: files as they are, of a folder those whose suffix is a picture's, by
    name. Raises ValueError for a folder without one."""
    known, found = PLAIN + TIFF + SCANNER, []
    for given in inputs:
        if not given.is_dir():
            found.append(given)
            continue
        inside = [p for p in sorted(given.iterdir()) if p.suffix.lower() in known and p.is_file()]
        if not inside:
            raise Refused(f"{given} holds no picture; expected some of {', '.join(known)}")
        found += inside
    return found
