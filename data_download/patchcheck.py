"""Check one patch: its bytes, its pixels, its mask, its name, and whether they agree with each
other."""

import hashlib
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from protolib.data import regions, specs
from protolib.data.specs import DatasetSpec

IEND = b"\0\0\0\0IEND\xaeB`\x82"  # the last chunk of a PNG file


class Fault(NamedTuple):
    """One defect of one file: its kind, in a word or two, and what was found."""

    kind: str
    path: Path
    detail: str


class Seen(NamedTuple):
    """What a patch showed: defects, SHA-256 of its pixels ("" if of one colour), size, px, a mask
    without a class."""

    faults: list[Fault]
    digest: str = ""
    size: tuple[int, int] | None = None
    classless: bool = False


def check(spec: DatasetSpec, image: Path | None, mask: Path | None, labelled: bool) -> Seen:
    """Read a patch and its mask whole, and compare them with the spec, the name and each other;
    either may be missing.

    labelled: the name of the image must end in an image-level label, as those of training patches
    do.
    """
    faults, label, counts, size, digest, codes, pixels = [], None, None, None, "", None, None
    if labelled and image:
        label = _label(spec, image, faults)
    if mask and (codes := _decode(mask, faults)):
        counts = _count_pixels(spec, codes, mask, faults)
    classless = counts is not None and not counts[: spec.C].any()
    if image and (pixels := _decode(image, faults)):
        size = pixels.size
        digest = _look(pixels, image, label, counts is not None and not classless, faults)
    if codes and pixels and codes.size != size:
        found = f"{codes.width} x {codes.height} px, its image is {size[0]} x {size[1]} px"
        faults.append(Fault("mask size", mask, found))
    if label and counts is not None:
        _compare(spec, label, counts / counts.sum(), image, faults)
    return Seen(faults, digest, size, classless)


def _decode(path: Path, faults: list[Fault]) -> Image.Image | None:
    """Read every byte of a file, compare its checksums and decode every pixel; None where that
    cannot be done."""
    try:
        content = path.read_bytes()
        with Image.open(BytesIO(content)) as image:
            form = image.format
            image.verify()  # compares the checksum of every chunk: decoding does not
        image = Image.open(BytesIO(content))
        image.load()
    except UnidentifiedImageError:
        faults.append(
            Fault(
                "unreadable",
                path,
                f"no image: {len(content)} bytes, which begin with {content[:16]!r}",
            )
        )
        return None
    except Exception as error:  # Pillow passes on whatever a broken file makes its parsers raise
        faults.append(Fault("unreadable", path, f"{type(error).__name__}: {error}"))
        return None
    if form != "PNG":
        faults.append(Fault("not PNG", path, f"is {form} under the name of a PNG file"))
    elif not content.endswith(IEND):
        faults.append(Fault("bytes after end", path, "the file goes on after the image's end"))
    return image


def _label(spec: DatasetSpec, image: Path, faults: list[Fault]) -> tuple[int, ...] | None:
    try:
        label = specs.parse_label(image.name, spec.C)
    except ValueError as error:
        faults.append(Fault("label", image, str(error)))
        return None
    if spelling := specs.other_spelling(image.name, spec):
        found = f"the label is {spelling}, that of {spec.name} is {spec.spelling}"
        faults.append(Fault("spelling", image, found))
    return label


def _look(
    image: Image.Image, path: Path, label: tuple[int, ...] | None, masked: bool, faults: list[Fault]
) -> str:
    """Judge an image by its pixels; gives their SHA-256, "" where all are alike: glass may well be
    there twice."""
    opaque = image.mode == "RGBA" and image.getchannel("A").getextrema() == (255, 255)
    if image.mode != "RGB" and not opaque:
        faults.append(Fault("mode", path, f"mode {image.mode}, expected RGB"))
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    classes = masked or any(label or ())
    if alike := rgb.getcolors(1):  # None where there is more than one colour
        colour = alike[0][1]
        # glass without a class is in order
        if classes or not regions.white_share(np.full((1, 1, 1, 3), colour))[0]:
            faults.append(Fault("blank", path, f"every pixel is {colour}"))
        return ""
    if label and not classes and (white := regions.white_share(np.asarray(rgb)[None])[0]) < 0.5:
        faults.append(
            Fault(
                "no class",
                path,
                f"the label names no class, and only {white:.0%} of the patch is white",
            )
        )
    return hashlib.sha256(repr(rgb.size).encode() + rgb.tobytes()).hexdigest()


def _count_pixels(
    spec: DatasetSpec, mask: Image.Image, path: Path, faults: list[Fault]
) -> np.ndarray | None:
    """Count the pixels of each class in a mask, (C + 1,); None where they cannot be told."""
    if mask.mode in ("P", "L"):
        histogram = np.array(mask.histogram())  # (256,)
        codes, known = np.flatnonzero(histogram).tolist(), {*spec.codes, *spec.ignored}
        for code in codes if spec.ignored else ():
            if code not in known:
                faults.append(
                    Fault(
                        "code", path, f"{histogram[code]} pixels of {code}, no code of {spec.name}"
                    )
                )
        palette = mask.getpalette("RGB") or []
        colours = {
            code: tuple(palette[3 * code : 3 * code + 3])
            for code in codes
            if code in known and mask.mode == "P"
        }
        for code, colour in colours.items():
            if colour != (expected := spec.palette[spec.lookup[code]]):
                faults.append(
                    Fault("palette", path, f"code {code} has the colour {colour}, not {expected}")
                )
                break
        return np.bincount(spec.lookup, histogram, spec.C + 1)
    if mask.mode not in ("RGB", "RGBA"):
        faults.append(
            Fault("mask mode", path, f"mode {mask.mode}, expected codes (P, L) or colours (RGB)")
        )
        return None
    found = mask.convert("RGB").getcolors(256)
    outside = [colour for _, colour in found or () if colour not in spec.palette]
    if found is None or outside:
        what = (
            f"{len(outside)} colours outside the palette, first {outside[0]}"
            if outside
            else "more than 256 colours"
        )
        faults.append(
            Fault("colour", path, f"{what}; a mask that was resized or saved as JPEG has many")
        )
        return None
    counts = np.zeros(spec.C + 1)
    for n, known_colour in found:
        counts[spec.palette.index(known_colour)] += n
    return counts


def _compare(
    spec: DatasetSpec, label: tuple[int, ...], share: np.ndarray, path: Path, faults: list[Fault]
) -> None:
    """Find where label and mask cannot both be right; a label may leave out small areas, so half a
    patch must speak."""
    for name, bit, part in zip(spec.classes, label, share):
        if bit and not part:
            faults.append(Fault("label or mask", path, f"the label has {name}, the mask has none"))
        elif not bit and part >= 0.5:
            faults.append(
                Fault(
                    "label or mask", path, f"{part:.0%} of the mask is {name}, the label has none"
                )
            )
