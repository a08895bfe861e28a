"""A table of labels (CSV): the classes that it speaks of, and the images that its rows name."""

import csv
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from protolib.data.pictures import IMAGES
from protolib.data.specs import SPLITS

FILE_KEYS = ("file", "filename", "image", "patch", "path", "name")
LABEL_KEYS = ("label", "labels", "class", "classes")
SPLIT_WORDS = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}


class Row(NamedTuple):
    """One image with what the table says of it."""

    path: Path
    split: str
    label: tuple[int, ...]  # C digits, 0 or 1
    mask: Path | None


def read(table: Path, folder: Path, wanted: Sequence[str] = ()) -> tuple[list[str], list[Row]]:
    """The C classes of a table, in the order of the labels, and its rows.

    folder: where the named images stand. wanted: classes and their order, all that the table has
    where none are given. Raises ValueError for a table without files or labels, a file that is not
    there or comes twice, a training image without a class, and an image of val or test without a
    mask.
    """
    rows, keys = _rows(table)
    file = next((key for key in keys if key.lower() in FILE_KEYS), None)
    if file is None:
        raise ValueError(f"{table} has no column named {' or '.join(FILE_KEYS)}: {keys}.")
    classes, label = _columns(table, rows, keys, wanted, file)
    found = [_row(table, folder, row, row[file], label(row)) for row in rows]
    for (split, stem), n in Counter((row.split, row.path.stem) for row in found).items():
        if n > 1:
            raise ValueError(f"{n} images of {split} are called {stem}: give each its own name.")
    for split in SPLITS:
        mine = [row for row in found if row.split == split]
        bare = [row for row in mine if row.mask is None]
        if not mine or (split != "train" and bare):
            raise ValueError(
                f"{table}: {len(mine)} images are in {split}, {len(bare)} of them without a mask. "
                "Expected a column 'split' (train, val, test) or folders of these names, and for "
                "each image of val and test a mask of its name in mask/, or in a column 'mask': "
                "scores are counted on masks."
            )
    return classes, found


def _rows(table: Path) -> tuple[list[dict[str, str]], list[str]]:
    try:
        text = table.read_text("utf-8-sig")
        dialect = csv.Sniffer().sniff(text.partition("\n")[0], ",;\t")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{table} cannot be read as a table in UTF-8: {error}.") from error
    reader = csv.DictReader(text.splitlines(), dialect=dialect)
    rows = [{key: (value or "").strip() for key, value in row.items() if key} for row in reader]
    if not rows:
        raise ValueError(f"{table} has no row below its head.")
    return rows, [key for key in reader.fieldnames or () if key]


def _columns(
    table: Path, rows: list[dict[str, str]], keys: list[str], wanted: Sequence[str], file: str
) -> tuple[list[str], Callable[[dict[str, str]], tuple[int, ...]]]:
    """The classes that a table speaks of, and how a row gives its label."""
    if words := next((key for key in keys if key.lower() in LABEL_KEYS), None):
        shown = {name for row in rows for name in _words(row[words])}
        names = [*wanted] or sorted(shown)
        if lacking := shown - set(names):
            raise ValueError(f"{table} has the class {min(lacking)!r}, which --classes does not.")

        def by_words(row: dict[str, str]) -> tuple[int, ...]:
            return tuple(int(name in _words(row[words])) for name in names)

        return names, by_words
    binary = [key for key in keys if {row[key] for row in rows} <= {"0", "1"} and key != file]
    names = [*wanted] or binary
    if len(names) < 2 or set(names) - set(binary):
        raise ValueError(
            f"{table} has the columns {', '.join(keys)}; expected one per class that holds 0 or 1"
            f"{' (' + ', '.join(wanted) + ')' if wanted else ''}, or a column 'label' with names "
            "of classes, several joined by ';'."
        )
    return names, lambda row: tuple(int(row[name]) for name in names)


def _words(text: str) -> set[str]:
    return {word.strip() for word in re.split(r"[;|+,]", text) if word.strip()}


def _row(
    table: Path, folder: Path, row: Mapping[str, str], file: str, label: tuple[int, ...]
) -> Row:
    """The image that a row names, with its split and its mask."""
    path = folder / file
    if not path.is_file():
        options = [path.with_name(path.name + ending) for ending in IMAGES]
        path = next((option for option in options if option.is_file()), path)
    if not path.is_file():
        raise ValueError(f"{table} names {file!r}, which is not in {folder}.")
    lowered = {key.lower(): value for key, value in row.items()}
    split = _split(lowered.get("split", ""), file)
    if split == "train" and not any(label):
        raise ValueError(f"{table}: {file!r} shows no class; remove its row, or label it.")
    if lowered.get("mask"):
        mask = folder / lowered["mask"]
        if not mask.is_file():
            raise ValueError(f"{table} names the mask {lowered['mask']!r}, not in {folder}.")
        return Row(path, split, label, mask)
    homes = [path.parent, path.parent.parent]
    masks = (home / kind / f"{path.stem}.png" for home in homes for kind in ("mask", "masks"))
    return Row(path, split, label, next((mask for mask in masks if mask.is_file()), None))


def _split(said: str, file: str) -> str:
    """The split of a row: its column, else a folder of that name above the image, else train."""
    for word in [said] if said else Path(file).parts[:-1]:
        found = SPLIT_WORDS.get(word.lower(), word.lower())
        if found in SPLITS:
            return found
    if said:
        raise ValueError(f"split {said!r} of {file!r} is none of {', '.join(SPLITS)}.")
    return "train"
