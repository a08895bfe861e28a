"""What people really bring: each kind is read rightly, or refused in a sentence that names it.

These cases are docs/inputs.md, written by `.venv/bin/python tests/test_inputs.py`.
"""

import contextlib
import io
import os
import re
import shutil
import struct
import sys
import tarfile
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import nbformat
import numpy as np
import pytest
from PIL import Image, ImageOps

from data_download.__main__ import main as data_download
from protolib import files
from protolib.__main__ import main as protolib
from protolib.data import checks, patches, phantom, specs

PAGE = Path(__file__).resolve().parent.parent / "docs" / "inputs.md"
COLOURS = np.array(specs.SPECS["phantom"].palette, np.uint8)
TOML = """name = "mine"
classes = ["TUM", "STR", "LYM", "NEC"]
titles = ["tumour", "stroma", "lymphocytes", "necrosis"]
palette = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [153, 0, 255], [255, 255, 255]]
codes = { 0 = 0, 1 = 1, 2 = 2, 3 = 3 }
ignored = [4]
"""
HEAD = """# What we accept, what we refuse, and how it is said

What people bring is read rightly, or refused in a sentence that names the file and what to do,
before any work. Nothing here is written by hand: each line is a test of `tests/test_inputs.py`, and
`.venv/bin/python tests/test_inputs.py` writes this page from what they got. FOLDER is your folder.
"""


class Case(NamedTuple):
    """One kind of input. `make` brings it into a sound folder. `refused`: a pattern in what is
    said; "" for what is read. `how`: how it is read."""

    what: str
    make: Callable[[Path], object]
    refused: str = ""
    how: str = "read"
    warned: str = ""


def sound(root: Path) -> Path:
    """A folder of 6 training patches, 4 of val and 4 of test, 64 px, with its dataset.toml."""
    phantom.write_folder(root, {"train": 6, "val": 4, "test": 4}, size=64)
    (root / "dataset.toml").write_text(TOML, "utf-8")
    return root


def each(place: str, change: Callable[[Image.Image], Image.Image], root: Path, **saved) -> None:
    """Write every picture of a folder again, changed."""
    for path in sorted((root / place).glob("*.png")):
        with Image.open(path) as image:
            made = change(image.copy())
        made.save(path, format=saved.get("form", "PNG"), **saved.get("options", {}))


def one(place: str, change: Callable[[Path], object], root: Path) -> None:
    """Change the first file of a folder."""
    change(sorted((root / place).glob("*.png"))[0])


def array(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Image.Image], Image.Image]:
    """A change of pixels, as one of a picture."""
    return lambda image: Image.fromarray(change(np.asarray(image)))


def values(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    """A change of the values in all masks of val and test, as 8-bit greys."""

    def make(root: Path) -> None:
        for place in ("val/mask", "test/mask"):
            each(place, array(lambda m: change(m.astype(int)).astype(np.uint8)), root)

    return make


def coloured(mask: Image.Image) -> Image.Image:
    return Image.fromarray(COLOURS[np.asarray(mask)])


def indexed(palette: np.ndarray, order=(0, 1, 2, 3, 4)) -> Callable[[Image.Image], Image.Image]:
    """A mask as a palette PNG, whose index i stands for class order[i]."""

    def make(mask: Image.Image) -> Image.Image:
        made = Image.fromarray(np.argsort(order).astype(np.uint8)[np.asarray(mask)], mode="P")
        made.putpalette(palette[list(order)].ravel().tolist())
        return made

    return make


def seen_through(image: Image.Image) -> Image.Image:
    """The left half is not there, by its alpha; its colour is black, as readers leave it."""
    pixels = np.asarray(image).copy()
    alpha = np.full(pixels.shape[:2], 255, np.uint8)
    pixels[:, :32], alpha[:, :32] = 0, 0
    return Image.fromarray(np.dstack([pixels, alpha]))


def turned(image: Image.Image, path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image.convert("RGB").transpose(Image.Transpose.ROTATE_90).save(path, "PNG", exif=exif)


def turn_all(root: Path) -> None:
    for path in sorted((root / "val/img").glob("*.png")):
        with Image.open(path) as image:
            turned(image, path)


def twice(path: Path) -> None:
    with Image.open(path) as image:
        image.save(path, "PNG", save_all=True, append_images=[ImageOps.invert(image)])


def written(content: bytes) -> Callable[[Path], object]:
    return lambda path: (path.unlink(), path.write_bytes(content))


def linked(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere.png")


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def saved_as(suffix: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with Image.open(path) as image:
            image.save(path.with_suffix(suffix))
        path.unlink()

    return make


def bomb(path: Path) -> None:
    """A PNG that says it has 900 million pixels."""
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 30_000, 30_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    written(bytes(content))(path)


def toml(old: str, new: str, encoding: str = "utf-8") -> Callable[[Path], object]:
    return lambda root: (root / "dataset.toml").write_bytes(
        TOML.replace(old, new, 1).encode(encoding)
    )


IMAGES = [
    Case("RGB, 8 bits", lambda root: None, how="read as it is"),
    Case(
        "RGBA, opaque",
        partial(each, "val/img", lambda i: i.convert("RGBA")),
        how="read as RGB",
    ),
    Case(
        "RGBA with transparent pixels",
        partial(each, "val/img", seen_through),
        how="they are white, as glass is",
        warned="mode RGBA with transparent pixels, which are read as white",
    ),
    Case(
        "L, 8-bit grey",
        partial(each, "val/img", lambda i: i.convert("L")),
        how="read as grey",
        warned="mode L, expected RGB",
    ),
    Case(
        "LA, grey with alpha",
        partial(each, "val/img", lambda i: i.convert("LA")),
        how="read as grey, transparent pixels white",
        warned="mode LA, expected RGB",
    ),
    Case(
        "P, a palette",
        partial(each, "val/img", lambda i: i.quantize(64)),
        how="read by its colours",
        warned="mode P, expected RGB",
    ),
    Case(
        "1, black and white",
        partial(each, "val/img", lambda i: i.convert("1")),
        how="read as black and white",
        warned="mode 1, expected RGB",
    ),
    Case(
        "I;16, 16-bit grey",
        partial(each, "val/img", array(lambda i: i[..., 0].astype(np.uint16) * 16)),
        "mode I;16 does not tell which value is white: save it with 8 bits, scaled",
    ),
    Case(
        "F, floats (TIFF under the name of a PNG)",
        partial(each, "val/img", lambda i: i.convert("F"), form="TIFF"),
        "mode F does not tell which value is white",
    ),
    Case(
        "CMYK (TIFF or JPEG under the name of a PNG)",
        partial(each, "val/img", lambda i: i.convert("CMYK"), form="TIFF"),
        "mode CMYK is not RGB: convert it, with its profile",
    ),
    Case("turned by its EXIF", turn_all, how="turned upright, as its mask is"),
    Case("animated, or of several pages", partial(one, "val/img", twice), "holds 2 pictures"),
    Case(
        "JPEG under the name of a PNG",
        partial(each, "training", lambda i: i, form="JPEG"),
        how="read",
        warned="is JPEG under the name of a PNG file",
    ),
    Case(
        "another size than the rest",
        partial(one, "training", lambda p: Image.open(p).resize((32, 32)).save(p)),
        "size: 32 x 32 px, most are 64 x 64 px",
    ),
    Case(
        "1 x 1 px, all of them",
        lambda root: [
            each(place, lambda i: i.resize((1, 1)), root)
            for place in ("training", "val/img", "val/mask", "test/img", "test/mask")
        ],
        "size: 1 x 1 px, fewer than the 16 px that show tissue",
    ),
    Case(
        "not square",
        partial(one, "training", lambda p: Image.open(p).resize((64, 32)).save(p)),
        "size: 64 x 32 px",
    ),
    Case("empty", partial(one, "training", written(b"")), "unreadable: no image: 0 bytes"),
    Case(
        "a page of text",
        partial(one, "training", written(b"<!DOCTYPE html><title>Quota")),
        "unreadable: no image: 27 bytes, which begin with",
    ),
    Case(
        "cut off",
        partial(one, "training", lambda p: written(p.read_bytes()[:-40])(p)),
        "unreadable: ",
    ),
    Case("a bomb", partial(one, "training", bomb), "unreadable: .*exceeds limit"),
    Case("a link to nothing", partial(one, "training", linked), "a link to nothing"),
    Case("a folder of this name", partial(one, "training", as_folder), "unreadable: IsADirectory"),
]

MASKS = [
    Case("L, codes", lambda root: None, how="read by value"),
    Case(
        "P, index = code",
        partial(each, "val/mask", indexed(COLOURS)),
        how="read by colour and by value, which agree",
    ),
    Case(
        "P, indices in another order (quantize, optipng, GIMP, CVAT)",
        partial(each, "val/mask", indexed(COLOURS, (3, 1, 4, 0, 2))),
        how="read by colour",
    ),
    Case(
        "P, other colours than the palette's",
        partial(each, "val/mask", indexed(COLOURS // 2 + 9)),
        r"palette: code \d has the colour",
    ),
    Case("RGB, the palette's colours", partial(each, "val/mask", coloured), how="read by colour"),
    Case(
        "RGB, other colours",
        partial(each, "val/mask", lambda m: coloured(m).resize((64, 64), 2, (0, 0, 60, 60))),
        "colours outside the palette of mine, first .*the mask was resized",
    ),
    Case(
        "RGB, codes as greys",
        partial(each, "val/mask", lambda m: m.convert("RGB")),
        "All grey: save the codes as one channel, mode L",
    ),
    Case(
        "RGBA, opaque",
        partial(each, "val/mask", lambda m: coloured(m).convert("RGBA")),
        how="read by colour",
    ),
    Case(
        "transparent pixels",
        partial(each, "val/mask", lambda m: seen_through(coloured(m))),
        "has transparent pixels, and no class is said for them",
    ),
    Case(
        "I;16, codes",
        partial(each, "val/mask", array(lambda m: m.astype(np.uint16))),
        how="read by value",
    ),
    Case(
        "I;16, other values",
        partial(each, "val/mask", array(lambda m: m.astype(np.uint16) * 1000)),
        r"code: holds \d000: a mask holds whole numbers from 0 to 255",
    ),
    Case(
        "F, codes",
        partial(each, "val/mask", lambda m: m.convert("F"), form="TIFF"),
        how="read by value",
        warned="is TIFF under the name of a PNG file",
    ),
    Case(
        "CMYK",
        partial(each, "val/mask", lambda m: coloured(m).convert("CMYK"), form="TIFF"),
        r"mode CMYK, expected codes \(L, P\) or colours \(RGB\)",
    ),
    Case(
        "JPEG",
        partial(each, "val/mask", lambda m: m, form="JPEG"),
        "is JPEG, which changes values and smears borders: save masks as PNG",
    ),
    Case(
        "another size than its image",
        partial(one, "val/mask", lambda p: Image.open(p).resize((32, 32), 0).save(p)),
        "mask size: 32 x 32 px, its image is 64 x 64 px",
    ),
    Case(
        "missing",
        partial(one, "val/mask", lambda p: p.unlink()),
        "val: 1 images without a mask",
    ),
]

VALUES = [
    Case(
        "0 and 255, black and white",
        values(lambda m: np.where(m == 0, 255, 0)),
        r"Masks hold 255, [\d.]+% of all pixels, .* Likely: masks in black and white",
    ),
    Case(
        "0, 127 and 255",
        values(lambda m: np.array([0, 127, 255, 0, 0])[m]),
        r"hold 127, 255, .*black and white",
    ),
    Case(
        "codes times 85",
        values(lambda m: np.minimum(m, 3) * 85),
        "Likely: codes times 85, spread out to be seen",
    ),
    Case("1 to C, shifted by one", values(lambda m: m + 1), "Likely: codes that count from 1"),
    Case(
        "255 for ignore, not said to be",
        values(lambda m: np.where(m == 4, 255, m)),
        r"Masks hold 255, .*say ignored = \[255\]",
    ),
    Case(
        "numbers of objects",
        values(lambda m: np.arange(64 * 64).reshape(64, 64) // 100),
        "Likely: numbers of objects, not of classes",
    ),
    Case(
        "smeared by a smooth resize",
        values(
            lambda m: np.asarray(
                Image.fromarray((m * 60).astype(np.uint8)).resize((20, 20)).resize((64, 64), 3)
            )
        ),
        "Likely: masks that were resized smoothly or saved as JPEG",
    ),
    Case(
        "ignore not said in dataset.toml",
        toml("ignored = [4]\n", ""),
        how="C itself is ignore, as in every mask here",
        warned=r"of the pixels are 4, which is no code and is read as ignore: say ignored = \[4\]",
    ),
    Case(
        "counted from 1, with 0 for none, ignore not said",
        lambda root: (toml("ignored = [4]\n", "")(root), values(lambda m: (m + 1) % 5)(root)),
        how="read, and doubted",
        warned="if it is a class, the codes are wrong",
    ),
    Case(
        "a class of the labels that no mask shows, ignore not said",
        lambda root: (
            toml("ignored = [4]\n", "")(root),
            values(lambda m: np.where(m == 2, 4, m))(root),
        ),
        "training labels have LYM, and no mask does: do the codes fit",
    ),
]

FOLDERS = [
    Case(
        "JPEG beside PNG",
        partial(one, "training", saved_as(".jpg")),
        "train: 1 images in training are not PNG, first .*jpg.*: save them as PNG",
    ),
    Case("TIFF beside PNG", partial(one, "val/img", saved_as(".tif")), "val: 1 images in val/img"),
    Case(
        "Thumbs.db, desktop.ini, .DS_Store, ._files",
        lambda root: [
            (root / "val/img" / name).write_bytes(b"litter")
            for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "._PH-val-s00+2.png")
        ],
        how="passed by",
    ),
    Case(
        "no label in the name of a training patch",
        partial(one, "training", lambda p: p.rename(p.with_name("patch.png"))),
        "no label in 'patch.png'",
    ),
    Case(
        "the same image in two splits",
        lambda root: shutil.copy(
            sorted((root / "val/img").iterdir())[0], sorted((root / "training").iterdir())[0]
        ),
        how="read",
        warned="leak: 1 ",
    ),
]

SETTINGS = [
    Case("as it should be", lambda root: None, how="read"),
    Case("a BOM (Notepad)", toml("", "", "utf-8-sig"), how="read"),
    Case("lines that end in CR LF", toml("\n", "\r\n"), how="read"),
    Case("UTF-16 (PowerShell)", toml("", "", "utf-16"), "dataset.toml is not UTF-8 from byte 0 on"),
    Case(
        "an older encoding, with an umlaut",
        toml("tumour", "Tum\u00f6r", "cp1252"),
        "dataset.toml is not UTF-8 from byte",
    ),
    Case("no TOML", toml("codes =", "codes"), "dataset.toml is not valid TOML"),
    Case("one class", toml('"TUM", "STR", "LYM", "NEC"', '"TUM"'), "expected 2 to 254 different"),
    Case("no class", toml('"TUM", "STR", "LYM", "NEC"', ""), "expected 2 to 254 different names"),
    Case("a class twice", toml('"STR"', '"TUM"'), "expected 2 to 254 different names"),
    Case("numbers as classes", toml('"TUM"', "1"), "classes is .*; expected 2 to 254 different"),
    Case("a title that is a number", toml('"tumour"', "3"), "titles is .*; expected 4 names"),
    Case("a title over two lines", toml("tumour", "tum\\nour"), "titles is .*; expected 4 names"),
    Case("more classes than colours", toml("[255, 0, 0], ", ""), "palette is .*; expected 5 diff"),
    Case("two classes of one colour", toml("[0, 255, 0]", "[255, 0, 0]"), "expected 5 different"),
    Case("fractions as colours", toml("255, 0, 0", "1.0, 0.0, 0.0"), "palette holds .1.0, 0.0"),
    Case("true as a colour", toml("255, 0, 0", "true, 0, 0"), "palette holds .True, 0, 0"),
    Case("a colour over 255", toml("255, 0, 0", "300, 0, 0"), "palette is .*of 0..255"),
    Case("codes as a list", toml("{ 0 = 0, 1 = 1, 2 = 2, 3 = 3 }", "[0, 1]"), "codes is .0, 1."),
    Case("codes by name", toml("0 = 0", "TUM = 0"), "'TUM' in codes or ignored"),
    Case("ignored as a number", toml("[4]", "4"), "ignored is 4; expected a list"),
    Case(
        "ignored over 255",
        toml("[4]", "[4000]"),
        "4000 in codes or ignored; expected a mask value 0..255",
    ),
    Case(
        "no pattern", toml("ignored", "slide = '(\\w+'\nignored"), "slide is .*expected a regular"
    ),
    Case("mpp = nan", toml("ignored", "mpp = nan\nignored"), "mpp is nan; expected micrometres"),
    Case("an unknown key", toml("ignored", "ignore"), "unknown ignore; expected name, classes"),
]


def option(*arguments: str) -> Callable[[Path], object]:
    return lambda root: arguments


PARAMETERS = [
    Case("-p retrain=no", option("-p", "retrain=no"), "retrain=no: give true or false"),
    Case("-p retrain=off", option("-p", "retrain=off"), "retrain=off: give true or false"),
    Case("-p retrain=0", option("-p", "retrain=0"), "retrain=0: give true or false"),
    Case("-p K=3.0", option("-p", "K=3.0"), "K = 3.0; give a whole number"),
    Case("-p 'K=\"3\"'", option("-p", 'K="3"'), "K = '3'; give a whole number"),
    Case("-p K=1e30", option("-p", "K=1e30"), "K = 1e.30; give a whole number"),
    Case("-p K=100000", option("-p", "K=100000"), "K = 100000; give 1 to 100"),
    Case("-p K=true", option("-p", "K=true"), "K = True; give a whole number"),
    Case("-p encoder=3", option("-p", "encoder=3"), "encoder = 3; give a text"),
    Case("-p encoder=null", option("-p", "encoder=null"), "encoder=None: give a text"),
    Case("-p k=3", option("-p", "k=3"), "no notebook has a parameter 'k', did you mean 'K'"),
    Case("--seed -1", option("--seed=-1"), "'-1' is no seed; give 0, 1, 2"),
    Case("--seed 1.5", option("--seed", "1.5"), "'1.5' is no seed"),
    Case("--seed 1e30 in digits", option("--seed", "1" + "0" * 30), "give a whole number from 0"),
    Case("--device cuda:9", option("--device", "cuda:9"), "device 'cuda:9' is not here"),
    Case("--preset quik", option("--preset", "quik"), "preset 'quik' is not known"),
]


def zipped(path: Path, items: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in items.items():
            info = zipfile.ZipInfo("x", (2024, 1, 1, 0, 0, 0))
            info.filename, info.compress_type = name, zipfile.ZIP_DEFLATED  # ZipInfo turns "\\"
            archive.writestr(info, content)
    return path


def tree(root: Path) -> dict[str, bytes]:
    """The files of a sound folder, as an archive of BCSS-WSSS has them."""
    return {
        f"BCSS-WSSS/{path.relative_to(root).as_posix()}": path.read_bytes()
        for path in sorted(root.rglob("*.png"))
    }


def parts(root: Path) -> Path:
    """What a browser saves of a folder that Google Drive packs."""
    files, home = list(tree(root).items()), root.parent / "parts"
    home.mkdir()
    for k in (0, 1):
        zipped(home / f"BCSS-WSSS-20240102T030405Z-00{k + 1}.zip", dict(files[k::2]))
    return home


def powershell(root: Path) -> Path:
    items = {name.replace("/", "\\"): content for name, content in tree(root).items()}
    folders = dict.fromkeys(sorted({name[: name.rindex("\\") + 1] for name in items}), b"")
    return zipped(root.parent / "set.zip", folders | items)


def macos(root: Path) -> Path:
    items = tree(root)
    litter = {f"__MACOSX/{n.replace('/PH', '/._PH')}": b"x" for n in items}
    return zipped(root.parent / "set.zip", items | litter | {"BCSS-WSSS/.DS_Store": b"x"})


def method(number: int) -> Callable[[Path], Path]:
    """A zip that says it was packed by another method."""

    def make(root: Path) -> Path:
        path = zipped(root.parent / "set.zip", tree(root))
        raw = bytearray(path.read_bytes())
        for mark, at in ((b"PK\3\4", 8), (b"PK\1\2", 10)):
            for found in re.finditer(re.escape(mark), bytes(raw)):
                start = found.start() + at
                raw[start : start + 2] = struct.pack("<H", number)
        path.write_bytes(raw)
        return path

    return make


def begins(name: str, content: bytes) -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        path = root.parent / name
        path.write_bytes(content + bytes(600))
        return path

    return make


def volumes(root: Path) -> Path:
    """The last part of a zip in several: its end says so."""
    path = zipped(root.parent / "set.zip", tree(root))
    raw = bytearray(path.read_bytes())
    at = raw.rfind(b"PK\5\6")
    raw[at + 4 : at + 6] = struct.pack("<H", 2)
    path.write_bytes(raw)
    return path


def tarred(root: Path, cut: bool = False) -> Path:
    path = root.parent / "set.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(root, "BCSS-WSSS", filter=lambda i: None if i.name.endswith("toml") else i)
        ends = archive.members[-2].offset
    if cut:
        os.truncate(path, ends)  # between two files, where tarfile sees no fault
    return path


def nested(root: Path) -> Path:
    inner = zipped(root.parent / "inner.zip", tree(root))
    return zipped(root.parent / "set.zip", {"BCSS-WSSS/training.zip": inner.read_bytes()})


ARCHIVES = [
    Case("a zip", lambda root: zipped(root.parent / "set.zip", tree(root))),
    Case("Google Drive's parts -001, -002", parts, how="read as one tree"),
    Case("a zip of Windows, folders with backslashes", powershell),
    Case("a zip of macOS, with __MACOSX and .DS_Store", macos),
    Case("a tar", tarred),
    Case("a tar that was cut", partial(tarred, cut=True), "is damaged or no archive .it ends with"),
    Case("Deflate64 (Windows, over 2 GB)", method(9), "set.zip is packed by Deflate64, which Pyth"),
    Case("a zip by another method", method(98), "set.zip is packed by PPMd, which Python cannot"),
    Case("RAR", begins("set.rar", b"Rar!\x1a\x07\0"), "set.rar is a RAR archive, which Python"),
    Case("7-Zip", begins("set.7z", b"7z\xbc\xaf\x27\x1c"), "set.7z is a 7-Zip archive, which Pyth"),
    Case("Zstandard", begins("set.tar.zst", b"\x28\xb5\x2f\xfd"), "is a Zstandard archive, which"),
    Case("a zip in volumes", volumes, "set.zip is the last of 3 files that are one archive: join"),
    Case("a part, .zip.001", begins("set.zip.001", b"PK\3\4"), "is one of several files that are"),
    Case("a part, .z01", begins("set.z01", b"PK\7\x08"), "set.z01 is one of several files that"),
    Case(
        "archives in an archive",
        nested,
        "has 1 archives in it, first training.zip: unpack them yourself",
    ),
]


def load(root: Path) -> str:
    """What is said when the folder is loaded, "" where nothing is; raises ValueError."""
    with warnings.catch_warnings(record=True) as seen, tempfile.TemporaryDirectory() as cache:
        warnings.simplefilter("always")
        for split in specs.SPLITS:
            patches.load("custom", split, 64, cache=cache, data_root=root)
    return " ".join(str(w.message) for w in seen if "decompression" not in str(w.message))


def parameter(make: Callable[[Path], object], root: Path) -> str:
    book = nbformat.v4.new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "p", "language": "python"}}
    )
    cell = nbformat.v4.new_code_cell(
        'preset = "quick"\nseed = 0\ndevice = "auto"\nencoder = ""\nK = 0\nretrain = False'
    )
    cell.metadata.tags = ["parameters"]
    book.cells.append(cell)
    (root / "notebooks").mkdir()
    nbformat.write(book, root / "notebooks" / "00_one.ipynb")
    return called(protolib, "run", "--notebooks", str(root / "notebooks"), *make(root))


def archive(make: Callable[[Path], object], root: Path) -> str:
    given = str(make(root))
    to = str(root.parent / "to")
    return called(
        data_download,
        *("get", "bcss-wsss", "--accept-licence", "--from-local", given, "--to", to),
    )


def called(main: Callable[[list[str]], int], *arguments: str) -> str:
    """What a command prints where it refuses, "" where it does not."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(list(arguments))
        except SystemExit as error:  # of argparse
            status = error.code
    lines = re.split(r"[\r\n]+", err.getvalue())  # bars too
    said = [
        i
        for i, line in enumerate(lines)
        if re.match(r"protolib: |data_download: |.* error: ", line)
    ]
    if said:
        assert status
        raise ValueError("\n".join(lines[said[0] :]))
    return ""


def loaded(make: Callable[[Path], object], root: Path) -> str:
    make(root)
    return load(root)


SECTIONS = {
    "Images": (IMAGES, loaded),
    "Masks": (MASKS, loaded),
    "Values in masks": (VALUES, loaded),
    "Folders and names": (FOLDERS, loaded),
    "dataset.toml": (SETTINGS, loaded),
    "Parameters": (PARAMETERS, parameter),
    "Archives": (ARCHIVES, archive),
}
EVERY = [(name, case) for name, (cases, _) in SECTIONS.items() for case in cases]


def outcome(section: str, case: Case, root: Path) -> tuple[bool, str]:
    """Whether a case is accepted, and what is said."""
    try:
        return True, SECTIONS[section][1](case.make, root)
    except ValueError as error:
        return False, str(error)


def plain(said: str, root: Path) -> str:
    """What is said, for a page: on one line, without the folders of this machine."""
    said = said.split("\nFound:")[0].replace(str(root.parent / "to"), "TO")
    said = said.replace(str(root), "FOLDER").replace(str(root.parent), "FOLDER")
    said = re.sub(r"\s+", " ", said).strip()
    said = re.sub(r"; all of them: python .*", "", said)
    said = said.removeprefix("data_download: ").removeprefix("protolib: ")
    said = re.sub(r"^(?:usage: .*)?python -m protolib run: error: ", "", said)
    return re.sub(r"([|<*_$~\\])", r"\\\1", said.split(" Known: ")[0][:420])


def page() -> str:
    """docs/inputs.md, from what every case gets."""
    parts = [HEAD]
    for section, (cases, _) in SECTIONS.items():
        rows = [f"## {section}\n", "| what | becomes | what is said |", "|---|---|---|"]
        for case in cases:
            with tempfile.TemporaryDirectory() as scratch:
                root = sound(Path(scratch) / "set")
                accepted, said = outcome(section, case, root)
                becomes = case.how if accepted else "refused"
                what = plain(case.what, root)
                rows.append(f"| {what} | {becomes} | {plain(said, root) or '–'} |")
        parts.append("\n".join(rows) + "\n")
    return "\n".join(parts)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The sound folder, and its splits as they are read."""
    root = sound(tmp_path_factory.mktemp("model") / "set")
    cache = tmp_path_factory.mktemp("cache")
    return root, {
        s: patches.load("custom", s, 64, cache=cache, data_root=root) for s in specs.SPLITS
    }


@pytest.mark.parametrize("section, case", EVERY, ids=[f"{s}: {c.what}" for s, c in EVERY])
def test_it_is_read_or_refused_by_name(section, case, model, tmp_path, capsys):
    root = Path(shutil.copytree(model[0], tmp_path / "set"))
    accepted, said = outcome(section, case, root)
    assert accepted != bool(case.refused), said
    if case.refused:
        assert re.search(case.refused, " ".join(said.split()))
        assert not (root / "runs").exists()  # before any work
    else:
        assert re.search(case.warned, said) if case.warned else not said


@pytest.mark.parametrize("case", [c for c in MASKS if not c.refused], ids=lambda c: c.what)
def test_masks_are_read_as_what_they_show(case, model, tmp_path):
    root = Path(shutil.copytree(model[0], tmp_path / "set"))
    case.make(root)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = patches.load("custom", "val", 64, cache=tmp_path / "cache", data_root=root)
    assert np.array_equal(found.masks, model[1]["val"].masks)
    assert np.array_equal(found.labels, model[1]["val"].labels)


@pytest.mark.parametrize("what", ["RGBA, opaque", "turned by its EXIF", "RGBA with", "L, 8-bit"])
def test_images_are_read_as_what_they_show(what, model, tmp_path):
    root = Path(shutil.copytree(model[0], tmp_path / "set"))
    next(case for case in IMAGES if case.what.startswith(what)).make(root)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = patches.load("custom", "val", 64, cache=tmp_path / "cache", data_root=root).images
    wanted = model[1]["val"].images.copy()
    if what == "RGBA with":
        wanted[:, :, :32] = 255
    if what == "L, 8-bit":
        wanted = np.stack(
            [np.asarray(Image.fromarray(i).convert("L").convert("RGB")) for i in wanted]
        )
    assert np.array_equal(found, wanted)


def test_the_page_says_what_the_tests_hold():
    """A page that is older than the code: .venv/bin/python tests/test_inputs.py"""
    assert PAGE.read_text("utf-8") == page()


def test_a_folder_is_checked_once(model, tmp_path, monkeypatch):
    """What was found is kept for all runs of a user until a file changes, and each run says it."""
    root, calls, check = Path(shutil.copytree(model[0], tmp_path / "set")), [], checks.check
    monkeypatch.setattr(checks, "check", lambda *given: calls.append(given) or check(*given))
    train = sorted((root / "training").iterdir())[0]
    Image.open(train).convert("L").save(train)
    said = []
    for cache in ("one", "one", "two"):
        monkeypatch.setattr(checks, "_guarded", {})  # another process
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            for split in specs.SPLITS:
                patches.load("custom", split, 64, cache=tmp_path / cache, data_root=root)
        said.append([str(w.message) for w in seen if "mode L, expected RGB" in str(w.message)])
    assert len(calls) == 1
    assert len(said[0]) == 1 and said[1] == [] and said[2] == said[0]  # once in each run

    [kept] = (p for p in (files.own_cache() / "checked").iterdir() if str(root) in p.read_text())
    mask = sorted((root / "test/mask").iterdir())[0]
    Image.fromarray(np.full((64, 64), 9, np.uint8)).save(mask)
    with pytest.raises(ValueError, match="4096 pixels of 9, no code of mine"):
        patches.load("custom", "train", 64, cache=tmp_path / "one", data_root=root)
    assert len(calls) == 2

    shutil.move(root, tmp_path / "moved")
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / "moved/test/mask" / mask.name)
    patches.load("custom", "val", 64, cache=tmp_path / "three", data_root=tmp_path / "moved")
    assert len(calls) == 3 and not kept.exists()  # its folder is gone


if __name__ == "__main__":
    sys.stderr = open(os.devnull, "w")  # bars
    PAGE.write_text(page(), "utf-8")
