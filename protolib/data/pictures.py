"""Pictures from files as people have them: each mode and depth is read rightly, or refused by
name."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from protolib import files
from protolib.data.specs import OTHER_IMAGES, DatasetSpec

IMAGES = (".png", *OTHER_IMAGES)  # how the names of images end
SMALLEST = 16  # px, side of an image: less, enlarged, shows no tissue
ORIENTATION = 0x0112  # the EXIF tag
GREYS = ("1", "L", "LA")
COLOURS = ("P", "PA", "RGB", "RGBA", "RGBX", "YCbCr")
LOSSY = ("JPEG", "MPO", "JPEG2000", "WEBP")
NUMBERS = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")
DAMAGED = "copy or download it again"


class Unfit(ValueError):
    """A file that is not read, for it would be read wrongly: its kind in a word or two, its path,
    what was found and what to do."""

    def __init__(self, kind: str, path: Path, detail: str):
        super().__init__(f"{files.printed(path)}: {detail}.")
        self.kind, self.path, self.detail = kind, path, detail


def opened(path: Path) -> Image.Image:
    """The one picture of a file with all its pixels, turned as its EXIF says.

    Raises Unfit for a file that cannot be decoded, holds several pictures, or 16 bits a colour.
    """
    try:
        with Image.open(path) as image:
            frames, raw = getattr(image, "n_frames", 1), str(image.tile[:1])
            if frames == 1:
                image.load()
                if image.getexif().get(ORIENTATION, 1) != 1:
                    ImageOps.exif_transpose(image, in_place=True)
    except Exception as error:  # Pillow passes on whatever a broken file makes its parsers raise
        found = "is a folder" if path.is_dir() else f"cannot be decoded ({error or type(error)})"
        if path.is_symlink() and not path.exists():
            found = "cannot be decoded, for it is a link to nothing"
        raise Unfit("unreadable", path, f"{found}: {DAMAGED}") from error
    if frames != 1:
        found = f"holds {frames} pictures, an animation or pages: save the one that is meant"
        raise Unfit("many pictures", path, found)
    if image.mode in ("RGB", "RGBA") and ";16" in raw:
        raise Unfit("depth", path, "has 16 bits a colour: save it with 8, scaled as it should look")
    return image


def transparent(image: Image.Image) -> bool:
    """Whether a picture has pixels that are not opaque."""
    if not image.has_transparency_data:
        return False
    return image.convert("RGBA").getchannel("A").getextrema() != (255, 255)


def coloured(image: Image.Image, path: Path) -> Image.Image:
    """A picture in RGB, 8 bits a channel; what is transparent lies over white, as glass does.

    Raises Unfit for what has no one meaning in RGB: 16-bit greys and floats, whose range a file
    does not tell, and CMYK or LAB.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in NUMBERS:
        found = f"mode {image.mode} does not tell which value is white: save it with 8 bits, scaled"
        raise Unfit("depth", path, found)
    if image.mode not in GREYS + COLOURS:
        raise Unfit("colours", path, f"mode {image.mode} is not RGB: convert it, with its profile")
    if transparent(image):
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")


def read_image(path: Path) -> np.ndarray:
    """Decode one image to (H, W, 3) uint8 RGB; see opened and coloured."""
    return np.asarray(coloured(opened(path), path))


def read_codes(path: Path, spec: DatasetSpec) -> np.ndarray:
    """Decode one mask to the values (H, W) uint8 that spec.codes and spec.ignored speak of.

    Greys of any depth are read by value. Palettes are read by colour where the colours are those of
    spec.palette, whatever the order of their indices; so is RGB. Raises Unfit for colours and
    values that mean nothing here, transparent pixels, and formats that do not keep values.
    """
    image = opened(path)
    if image.format in LOSSY:
        found = f"is {image.format}, which changes values and smears borders: save masks as PNG"
        raise Unfit("lossy", path, found)
    if image.mode not in NUMBERS and transparent(image):
        raise Unfit("transparent", path, "has transparent pixels, and no class is said for them")
    if image.mode in ("RGB", "RGBA"):
        return _by_colour(np.asarray(image.convert("RGB")), path, spec)
    if image.mode in ("P", "PA"):
        return _by_palette(image, path, spec)
    if image.mode in NUMBERS:
        numbers = np.asarray(image)
        if not np.isin(numbers, np.arange(256)).all():
            odd = numbers[~np.isin(numbers, np.arange(256))][0]
            raise Unfit("code", path, f"holds {odd}: a mask holds whole numbers from 0 to 255")
        return numbers.astype(np.uint8)
    if image.mode not in GREYS:
        found = f"mode {image.mode}, expected codes (L, P) or colours (RGB)"
        raise Unfit("mask mode", path, found)
    return np.asarray(image.getchannel(0) if image.mode == "LA" else image.convert("L"))


def _by_palette(image: Image.Image, path: Path, spec: DatasetSpec) -> np.ndarray:
    """The codes of an indexed mask. A tool may order indices as it likes; colours stay."""
    indices = np.asarray(image if image.mode == "P" else image.getchannel(0))
    flat = image.getpalette("RGB") or []
    colours = list(zip(flat[::3], flat[1::3], flat[2::3]))
    if not colours or len(colours) > 1 and colours == [(i, i, i) for i in range(len(colours))]:
        return indices  # a grey, or as good as one
    means, table = {c: i for i, c in enumerate(spec.palette)}, np.arange(256, dtype=np.uint8)
    for index in np.flatnonzero(np.bincount(indices.ravel())).tolist():
        colour = colours[index] if index < len(colours) else None
        if colour in means:
            if index not in spec.known or spec.lookup[index] != means[colour]:
                table[index] = _code(spec, means[colour], path)
        elif index in spec.codes:  # another value is ignored as said, or no code: see foreign
            found = (
                f"code {index} has the colour {colour}, not {spec.palette[spec.lookup[index]]}: is "
                f"the palette of {spec.name} that of its masks?"
            )
            raise Unfit("palette", path, found)
    return table[indices]


def _by_colour(pixels: np.ndarray, path: Path, spec: DatasetSpec) -> np.ndarray:
    """The codes of a mask (H, W, 3) in the colours of the palette."""
    # (u,), (H, W)
    colours, inverse = np.unique(pixels @ np.array([65536, 256, 1]), return_inverse=True)
    means = {(r << 16) + (g << 8) + b: index for index, (r, g, b) in enumerate(spec.palette)}
    unknown = [(int(c) >> 16, int(c) >> 8 & 255, int(c) & 255) for c in colours if c not in means]
    if unknown:
        found = (
            f"has {len(unknown)} colours outside the palette of {spec.name}, first {unknown[0]}: "
            f"expected {spec.palette}, the last one for ignore. Many colours: the mask was resized"
        )
        if all(len(set(colour)) == 1 for colour in unknown):
            found += ". All grey: save the codes as one channel, mode L"
        raise Unfit("colour", path, found)
    codes = np.array([_code(spec, means[c], path) for c in colours], np.uint8)
    return codes[inverse].reshape(pixels.shape[:2])


def _code(spec: DatasetSpec, index: int, path: Path) -> int:
    """A value that means a class, or ignore."""
    values = [value for value, of in spec.codes.items() if of == index]
    values = values or [value for value in sorted(spec.known) if value not in spec.codes]
    if not values:
        raise Unfit("code", path, f"shows ignore, and every value is a code of {spec.name}")
    return values[0]


def foreign(codes: np.ndarray, spec: DatasetSpec) -> dict[int, int]:
    """The values of a mask that the spec does not speak of: {value: pixels}."""
    counts = np.bincount(codes.ravel(), minlength=256)
    return {v: int(counts[v]) for v in np.flatnonzero(counts).tolist() if v not in spec.known}


def read_mask(path: Path, spec: DatasetSpec) -> np.ndarray:
    """Decode one mask to (H, W) uint8, 0..C-1, ignore C. Raises Unfit as read_codes does, and for
    values that are no code and not said to be ignored."""
    codes = read_codes(path, spec)
    table = np.full(256, spec.C + 1, np.uint8)  # C is at most 254
    table[list(spec.known)] = spec.lookup[list(spec.known)]
    mask = table[codes]
    if mask.max() > spec.C:
        found = ", ".join(f"{n} pixels of {v}" for v, n in foreign(codes, spec).items())
        raise Unfit(
            "code", path, f"{found}: no code of {spec.name}, and none of its ignored values"
        )
    return mask


def indexed(values: np.ndarray, colours: npt.ArrayLike) -> Image.Image:
    """A mask (H, W) uint8 as an indexed picture: value i is shown in the colour i.

    colours: (n, 3) RGB of 0..255, for each value a mask may hold.
    """
    image = Image.fromarray(values, mode="P")
    image.putpalette(np.asarray(colours, np.uint8).tobytes())
    return image
