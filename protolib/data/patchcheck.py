"""Check one patch: its bytes, its pixels, its mask, its name, and whether they agree with each
other."""

import hashlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from protolib.data import pictures, regions, specs
from protolib.data.specs import DatasetSpec

IEND = b"\0\0\0\0IEND\xaeB`\x82"  # the last chunk of a PNG file


class Fault(NamedTuple):
    """One defect of one file: its kind, in a word or two, and what was found."""

    kind: str
    path: Path
    detail: str


class Seen(NamedTuple):
    """What a patch showed: defects, SHA-256 of its pixels ("" if of one colour), size, px, pixels
    of each class and of ignore in its mask, (C + 1,), of each value in it, (256,), and its
    label."""

    faults: list[Fault]
    digest: str = ""
    size: tuple[int, int] | None = None
    areas: np.ndarray | None = None
    values: np.ndarray | None = None
    label: tuple[int, ...] | None = None
    by_value: bool = False  # whether the mask was read by value, not by colour


def check(spec: DatasetSpec, image: Path | None, mask: Path | None, labelled: bool) -> Seen:
    """Read a patch and its mask whole, and compare them with the spec, the name and each other;
    either may be missing.

    labelled: the name of the image must end in an image-level label, as those of training patches
    do.
    """
    faults: list[Fault] = []
    label, size, digest, areas, values = None, None, "", None, None
    if labelled and image:
        label = _label(spec, image, faults)
    codes, mode = None, ""
    if mask:
        codes, mode = _read(mask, faults, lambda path: pictures.read_codes(path, spec))
    if codes is not None:
        values = np.bincount(codes.ravel(), minlength=256)  # (256,)
        if unknown := pictures.foreign(codes, spec):
            found = ", ".join(f"{n} pixels of {value}" for value, n in unknown.items())
            faults.append(Fault("code", mask, f"{found}, no code of {spec.name}"))
        areas = np.bincount(spec.lookup, values, spec.C + 1)
    pixels = _read(image, faults, pictures.opened)[0] if image else None
    if pixels is not None:
        size = pixels.size
        masked = areas is not None and bool(areas[:-1].any())
        digest = _look(pixels, image, label, masked, faults)
    if codes is not None and pixels is not None and codes.shape != size[::-1]:
        found = f"{codes.shape[1]} x {codes.shape[0]} px, its image is {size[0]} x {size[1]} px"
        faults.append(Fault("mask size", mask, found))
    if label and areas is not None and not unknown:
        _compare(spec, label, areas / areas.sum(), image, faults)
    by_value = mode in pictures.GREYS + pictures.NUMBERS
    return Seen(faults, digest, size, areas, values, label, by_value)


def _read(path: Path, faults: list[Fault], read: Callable[[Path], Any]) -> tuple[Any, str]:
    """What `read` makes of a file, once every byte was read and every checksum compared, and the
    file's mode; None where that cannot be done."""
    try:
        content = path.read_bytes()
        with Image.open(BytesIO(content)) as image:
            form, mode = image.format, image.mode
            image.verify()  # compares the checksum of every chunk: decoding does not
    except UnidentifiedImageError:
        found = f"no image: {len(content)} bytes, which begin with {content[:16]!r}"
        faults.append(Fault("unreadable", path, found))
        return None, ""
    except Exception as error:  # Pillow passes on whatever a broken file makes its parsers raise
        faults.append(Fault("unreadable", path, f"{type(error).__name__}: {error}"))
        return None, ""
    try:
        made = read(path)
    except pictures.Unfit as error:
        faults.append(Fault(error.kind, path, error.detail))
        return None, ""
    if form != "PNG":
        faults.append(Fault("not PNG", path, f"is {form} under the name of a PNG file"))
    elif not content.endswith(IEND):
        faults.append(Fault("bytes after end", path, "the file goes on after the image's end"))
    return made, mode


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
    try:
        rgb = pictures.coloured(image, path)
    except pictures.Unfit as error:
        faults.append(Fault(error.kind, path, error.detail))
        return ""
    if pictures.transparent(image):
        found = f"mode {image.mode} with transparent pixels, which are read as white"
        faults.append(Fault("mode", path, found))
    elif image.mode not in ("RGB", "RGBA"):
        faults.append(Fault("mode", path, f"mode {image.mode}, expected RGB"))
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
