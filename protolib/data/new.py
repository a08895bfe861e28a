"""A data set of your own: from what a folder holds to the dataset.toml that describes it, and where
labels stand elsewhere than in names, to patches that carry them. `python -m protolib new`."""

import colorsys
import csv
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from protolib import files
from protolib.data import regions, specs
from protolib.data.pictures import opened, read_image
from protolib.data.specs import PLACES, SPLITS, Cut, DatasetSpec
from protolib.presets import Preset

IMAGES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
COLOURS = (  # of classes without one of their own; ignore is white
    *((255, 0, 0), (0, 255, 0), (0, 0, 255), (153, 0, 255)),
    *((255, 165, 0), (0, 255, 255), (255, 0, 255), (128, 128, 0)),
)
WHITE = (255, 255, 255)
# a value of masks means ignore where this share of its pixels is as white as glass, and the value
# that it is weighed against shows less than half of it
GLASS = 0.5
FILE_KEYS = ("file", "filename", "image", "patch", "path", "name")
LABEL_KEYS = ("label", "labels", "class", "classes")
SPLIT_WORDS = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}


@dataclass(frozen=True)
class Told:
    """What the person says; empty: found in the folder, or asked for."""

    classes: tuple[str, ...] = ()  # C names, "TUM" or "TUM=tumour", in the order of the label
    codes: tuple[int, ...] = ()  # values in the masks, one per class
    ignored: tuple[int, ...] = ()  # values in the masks that mean no class
    palette: tuple[tuple[int, int, int], ...] = ()  # one colour per class, then ignore
    slide: str = ""  # regular expression that finds the slide in a file name
    mpp: float = 0.0  # micrometres per pixel
    size: int = 224  # px: side of the patches that regions are cut to
    csv: Path | None = None  # table of labels
    ask: Callable[[str], str] | None = None  # how to ask on a terminal


class Made(NamedTuple):
    """What `describe` wrote: where, the spec, the labels (n, C) uint8 of the training patches, and
    what to know about it, a sentence each."""

    root: Path
    spec: DatasetSpec
    labels: np.ndarray
    notes: list[str]


class Masks(NamedTuple):
    """What the masks of a folder hold."""

    n: int
    values: Counter  # value of an index mask -> pixels
    colours: Counter  # (r, g, b) of a colour mask -> pixels
    palette: dict[int, tuple[int, int, int]]  # of indexed masks: value -> colour


class Picture(NamedTuple):
    """One image with what a table or a slide's annotations say of it."""

    path: Path
    split: str
    label: tuple[int, ...]
    mask: Path | None


def describe(name: str, folder: str | Path, told: Told, out: str | Path = "") -> Made:
    """Describe the data set in `folder` under that name, in a dataset.toml.

    Three kinds are known: patches with labels in their names (the toml is written beside them),
    patches with a table of labels, and region images with annotations that QuPath exported as
    GeoJSON; the patches of the last two are written to `out`, which appears whole or not at all.
    Nothing is written over. Raises ValueError with what was found and what to say, before anything
    is written.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: give the one that holds the images.")
    if not re.fullmatch(r"[\w.-]+", name) or name in specs.SPECS:
        raise ValueError(
            f"{name!r} cannot be the name of a data set of your own: take letters, digits, '-', "
            f"'_' and '.', and none of {', '.join(specs.SPECS)}."
        )
    drawn = below(folder, (".geojson",))
    tables = [told.csv] if told.csv else sorted(folder.glob("*.csv"))
    labelled = [path for path in _training(folder).values() if _has_label(path.name)]
    if labelled and not told.csv and not drawn:
        return _from_names(name, folder, told)
    if not drawn and len(tables) != 1:
        raise ValueError(
            f"{folder} holds no training patch with a label in its name, no annotations "
            f"(.geojson), and {len(tables)} tables (.csv) where one could tell the labels "
            f"(--csv FILE). Expected, for patches:\n{specs.TREE}"
        )
    if not str(out) or Path(out) == Path():
        raise ValueError(
            f"labels stand in {(drawn or tables)[0].name}, so patches that carry them are written "
            "anew: say where, with --out DIR."
        )
    root = Path(out)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ValueError(f"{root} is there already: give --out a new folder.")
    return (_from_regions if drawn else _from_table)(name, folder, told, root, drawn or tables)


def needs(labels: np.ndarray, classes: Sequence[str], p: Preset) -> list[str]:
    """What the method needs of the training patches and has, a sentence each.

    labels: (n, C) 0 or 1. p: K, the sub-classes of a class, and enough, the patches of one class
    alone with which a class teaches at full weight.
    """
    K, enough = p.K, p.enough
    single, said = labels.sum(1) == 1, []
    shown, alone = labels.sum(0), labels[single].sum(0)
    for name, n, pure in zip(classes, shown, alone):
        said.append(f"{name}: {n} of {len(labels)} training patches show it, {pure} nothing else")
    fewest = int(alone.argmin())
    if alone.min() >= enough:
        return [*said, f"enough: each class has {enough} patches of its own or more"]
    least, name = int(alone.min()), classes[fewest]
    if least < K:
        line = f"{name} has {least} patches of its own and K = {K} wants as many: "
        ways = [f"-p K={least} runs with them"] * (least > 0)
        if shown.min() >= K:
            ways.append(
                f"-p single_class=false counts all that show a class ({shown.min()} at least), "
                "whose prototypes are then less pure"
            )
        return [*said, line + ("; ".join(ways) or f"bring more patches of {name} alone")]
    return [
        *said,
        f"{name} has {least} patches of its own, {enough} teach at full weight: the matching loss "
        f"will count {least / enough:.0%}; -p single_class=false would stand on {shown.min()}, "
        "less pure",
    ]


def toml(spec: DatasetSpec) -> str:
    """A spec as the text of its dataset.toml, with what each line means beside it."""
    colours = ", ".join(str(list(colour)) for colour in spec.palette)
    codes = ", ".join(f"{code} = {index}" for code, index in spec.codes.items())
    lines = [
        f"name = {_text(spec.name)}",
        f"classes = {_texts(spec.classes)}  # in the order of the label's digits",
        f"titles = {_texts(spec.titles)}  # for figures",
        f"palette = [{colours}]  # one colour per class, then ignore",
        f"codes = {{ {codes} }}  # value in a mask = class, from 0",
    ]
    if spec.ignored:
        lines.append(f"ignored = {list(spec.ignored)}  # values in a mask that mean no class")
    if spec.spelling:
        lines.append(f"spelling = {_text(spec.spelling)}  # of labels")
    if spec.slide:
        lines.append(f"slide = {_text(spec.slide)}  # finds the slide in a file name")
    if spec.mpp:
        lines.append(f"mpp = {spec.mpp:g}  # micrometres per pixel")
    return "\n".join(lines) + "\n"


def below(folder: Path, endings: tuple[str, ...]) -> list[Path]:
    """The files of a folder and those below it that end so, sorted; hidden ones are no data."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in endings
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


# labels in names


def _from_names(name: str, root: Path, told: Told) -> Made:
    own = root / "dataset.toml"
    if own.exists():
        raise ValueError(f"{own} is there already: the folder is described; remove it first.")
    images = _training(root)
    label, spelling = _labels_of(images)
    labels = np.array(list(label.values()), np.uint8)
    C = labels.shape[1]
    classes, titles = _names(told, C, f"the {C} digits of the labels")
    seen, pairs = _masks(root)
    codes, ignored, palette, notes = _meaning(told, seen, C, pairs)
    spec = _spec(
        told,
        name,
        classes,
        titles,
        codes=codes,
        ignored=ignored,
        palette=palette,
        spelling=spelling,
    )
    layouts = specs.check_layout(spec, root)
    notes.insert(
        0, ", ".join(f"{split} {len(layouts[split].ids)}" for split in SPLITS) + " patches"
    )
    notes.append(_sizes(path for layout in layouts.values() for path in layout.images))
    notes.append(_slides(spec, [name for layout in layouts.values() for name in layout.ids]))
    files.write_text(own, toml(spec))
    return Made(root, spec, labels, notes)


def _training(root: Path) -> dict[str, Path]:
    found = (specs.pngs(root / place) for place in PLACES["train"])
    return next((images for images in found if images), {})


def _has_label(file: str) -> bool:
    groups = specs.GROUP.findall(file)
    return bool(groups) and bool(specs.DIGITS.fullmatch(groups[-1]))


def _labels_of(images: Mapping[str, Path]) -> tuple[dict[str, tuple[int, ...]], str]:
    """The label of each training patch and how labels are spelt; all must have as many digits."""
    labels, spelt = {}, Counter()
    for name, path in images.items():
        if not _has_label(path.name):
            raise ValueError(
                f"{path} has no label in its name, others have: name it ...[0101].png, one 0 or 1 "
                "per class, or move it elsewhere."
            )
        text = specs.GROUP.findall(path.name)[-1].strip()
        labels[name] = tuple(int(digit) for digit in text.replace(" ", ""))
        spelt["spaced" if " " in text else "joined"] += 1
    digits = Counter(map(len, labels.values()))
    if len(digits) != 1 or min(digits) < 2:
        counted = ", ".join(f"{n} of {C} digits" for C, n in sorted(digits.items()))
        raise ValueError(f"training labels: {counted}; expected as many in each, 2 or more.")
    return labels, spelt.most_common(1)[0][0] if len(spelt) == 1 else ""


def _masks(root: Path) -> tuple[Masks, list[tuple[Path, Path]]]:
    """What the masks of all splits hold, and each mask beside its image."""
    pairs = []
    for place in dict.fromkeys(place for places in PLACES.values() for place in places):
        masks = specs.pngs(specs.mask_folder(root / place))
        pairs += [(path, masks[n]) for n, path in specs.pngs(root / place).items() if n in masks]
    return _look(mask for _, mask in pairs), pairs


def _look(masks: Iterable[Path]) -> Masks:
    """Read every mask once."""
    n, values, colours, palette = 0, Counter(), Counter(), {}
    for path in masks:
        n += 1
        with opened(path) as image:
            if image.mode not in ("1", "L", "P", "I", "I;16"):
                for count, colour in image.convert("RGB").getcolors(image.width * image.height):
                    colours[colour] += count
                continue
            flat = image.getpalette("RGB") if image.mode == "P" else None
            pixels = np.asarray(image).astype(np.int64)
        found, counts = np.unique(pixels, return_counts=True)
        values.update(dict(zip(found.tolist(), counts.tolist())))
        table = list(zip(*[iter(flat)] * 3)) if flat else []
        for value in found.tolist():
            colour = table[value] if value < len(table) else None
            if colour and palette.setdefault(value, colour) != colour:
                raise ValueError(
                    f"{path}: value {value} has the colour {colour}, in masks before it "
                    f"{palette[value]}: save all masks with one palette."
                )
    if all(colour == (value,) * 3 for value, colour in palette.items()):
        palette = {}  # a grey, or as good as one: no colours of classes
    if values and colours:
        raise ValueError("some masks hold values and some colours: save all in one way.")
    return Masks(n, values, colours, palette)


def _meaning(
    told: Told, seen: Masks, C: int, pairs: Sequence[tuple[Path, Path]]
) -> tuple[tuple[int, ...], tuple[int, ...], tuple, list[str]]:
    """What the masks mean: one value per class, values of ignore, the palette, and notes."""
    if not seen.n:
        return tuple(range(C)), told.ignored, _palette(told, {}, C, ()), ["no masks were found"]
    if seen.colours:
        if not told.palette or len(told.palette) != C + 1:
            raise ValueError(
                f"masks are in colours: {_shares(seen.colours)}. Say which is which, one per class "
                "in the order of the classes, then ignore: --palette ff0000,00ff00,...,ffffff."
            )
        if odd := [colour for colour in seen.colours if colour not in told.palette]:
            raise ValueError(f"masks hold {_shares(seen.colours)}: --palette has no {odd[0]}.")
        return tuple(range(C)), (), told.palette, [f"masks in colours: {_shares(seen.colours)}"]
    notes = [f"masks: {_shares(seen.values)}"]
    codes, why = _codes(told, seen, C, pairs)
    ignored = told.ignored or tuple(sorted(seen.values.keys() - set(codes)))
    notes += [why] * bool(why)
    return codes, ignored, _palette(told, seen.palette, C, (*codes, *ignored[:1])), notes


def _codes(told: Told, seen: Masks, C: int, pairs) -> tuple[tuple[int, ...], str]:
    """One value per class, and by which sign, where it was not plain. Raises ValueError where it is
    not told and cannot be seen."""
    values, shifted = set(seen.values), tuple(range(1, C + 1))
    plain, rest = tuple(range(C)), values - {255} - set(told.ignored)
    if told.codes:
        if len(told.codes) != C or len(set(told.codes)) != C:
            raise ValueError(f"--codes names {told.codes}; expected {C} values, one per class.")
        if odd := rest - set(told.codes) if told.ignored else set():
            raise ValueError(f"masks hold {min(odd)}, which --codes and --ignored do not name.")
        return told.codes, ""
    how = (
        f"say --codes {','.join(map(str, plain))} or another list, one value per class, and "
        "--ignored for the rest"
    )
    if rest <= set(plain):
        return plain, ""
    if not rest <= {0, *shifted}:
        raise ValueError(f"masks hold {_shares(seen.values)} for {C} classes: {how}.")
    if 0 not in rest:
        return shifted, f"the values 1 to {C} are taken for the classes in their order"
    # 0 to C: is the first one ignore, or the last?
    low, high = _glass(pairs, 0), _glass(pairs, C)
    said = f"{low:.0%} of the pixels of 0 and {high:.0%} of those of {C} are white as glass"
    if low >= GLASS > 2 * high:
        return shifted, f"{said}: 0 is taken for ignore"
    if high >= GLASS > 2 * low:
        return plain, f"{said}: {C} is taken for ignore"
    raise ValueError(f"masks hold 0 to {C} for {C} classes ({said}), so one is ignore: {how}.")


def _glass(pairs: Iterable[tuple[Path, Path]], value: int, most: int = 200) -> float:
    """Share of white pixels among those where masks have a value, over some of them."""
    white = total = 0
    for image, mask in islice(pairs, most):
        with opened(mask) as codes:
            there = np.asarray(codes) == value
        if there.any():
            pixels = read_image(image)
            if pixels.shape[:2] == there.shape:
                white += int((pixels[there].min(1) >= regions.WHITE).sum())
                total += int(there.sum())
    return white / max(total, 1)


# a table of labels


def _from_table(name: str, folder: Path, told: Told, root: Path, tables: Sequence[Path]) -> Made:
    table = tables[0]
    rows, keys = _rows(table)
    file = next((key for key in keys if key.lower() in FILE_KEYS), None)
    if file is None:
        raise ValueError(f"{table} has no column named {' or '.join(FILE_KEYS)}: {keys}.")
    names, label = _columns(table, rows, keys, told, file)
    classes, titles = _names(told, len(names), f"the classes {', '.join(names)}", names)
    pictures = [
        _picture(table, folder, row, row[file], label(row), _split(row, row[file])) for row in rows
    ]
    _refuse_doubles(pictures)
    for split in SPLITS:
        mine = [picture for picture in pictures if picture.split == split]
        bare = [picture for picture in mine if picture.mask is None]
        if not mine or (split != "train" and bare):
            raise ValueError(
                f"{table}: {len(mine)} images are in {split}, {len(bare)} of them without a mask. "
                "Expected a column 'split' (train, val, test) or folders of these names, and for "
                "each image of val and test a mask of its name in mask/, or in a column 'mask': "
                "scores are counted on masks."
            )
    pairs = [(picture.path, picture.mask) for picture in pictures if picture.mask]
    seen = _look(mask for _, mask in pairs)
    codes, ignored, palette, notes = _meaning(told, seen, len(names), pairs)
    spec = _spec(
        told,
        name,
        classes,
        titles,
        codes=codes,
        ignored=ignored,
        palette=palette,
        spelling="joined",
    )
    notes.append(_slides(spec, [picture.path.stem for picture in pictures]))
    with _appears(root) as scratch:
        for picture in pictures:
            image = read_image(picture.path)
            if image.shape[0] != image.shape[1]:
                raise ValueError(
                    f"{picture.path} is {image.shape[1]} x {image.shape[0]} px: patches must be "
                    "square, cut them first."
                )
            mask = picture.mask and picture.mask.read_bytes()
            _write(scratch, picture.split, picture.path.stem, picture.label, image, mask)
        _finish(scratch, spec)
    labels = [picture.label for picture in pictures if picture.split == "train"]
    notes.insert(0, _counted(pictures))
    return Made(root, spec, np.array(labels, np.uint8), notes)


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
    table: Path, rows: list[dict[str, str]], keys: list[str], told: Told, file: str
) -> tuple[list[str], Callable[[dict[str, str]], tuple[int, ...]]]:
    """The classes that a table speaks of, and how a row gives its label."""
    said = [name.partition("=")[0] for name in told.classes]
    if words := next((key for key in keys if key.lower() in LABEL_KEYS), None):
        shown = {name for row in rows for name in _words(row[words])}
        names = said or sorted(shown)
        if lacking := shown - set(names):
            raise ValueError(f"{table} has the class {min(lacking)!r}, which --classes does not.")

        def by_words(row: dict[str, str]) -> tuple[int, ...]:
            return tuple(int(name in _words(row[words])) for name in names)

        return names, by_words
    binary = [key for key in keys if {row[key] for row in rows} <= {"0", "1"} and key != file]
    names = said or binary
    if len(names) < 2 or set(names) - set(binary):
        raise ValueError(
            f"{table} has the columns {', '.join(keys)}; expected one per class that holds 0 or 1"
            f"{' (' + ', '.join(said) + ')' if said else ''}, or a column 'label' with names of "
            "classes, several joined by ';'."
        )
    return names, lambda row: tuple(int(row[name]) for name in names)


def _words(text: str) -> set[str]:
    return {word.strip() for word in re.split(r"[;|+,]", text) if word.strip()}


def _split(row: Mapping[str, str], file: str) -> str:
    """The split of a row: its column, else a folder of that name above the image, else train."""
    lowered = {key.lower(): value for key, value in row.items()}
    for word in (lowered.get("split", ""), *Path(file).parts[:-1]):
        found = SPLIT_WORDS.get(word.lower(), word.lower())
        if found in SPLITS:
            return found
    if lowered.get("split"):
        raise ValueError(f"split {lowered['split']!r} of {file!r} is none of {', '.join(SPLITS)}.")
    return "train"


def _picture(
    table: Path, folder: Path, row: Mapping[str, str], file: str, label: tuple[int, ...], split: str
) -> Picture:
    path = folder / file
    if not path.is_file():
        options = [path.with_name(path.name + ending) for ending in IMAGES]
        path = next((option for option in options if option.is_file()), path)
    if not path.is_file():
        raise ValueError(f"{table} names {file!r}, which is not in {folder}.")
    if split == "train" and not any(label):
        raise ValueError(f"{table}: {file!r} shows no class; remove its row, or label it.")
    lowered = {key.lower(): value for key, value in row.items()}
    if lowered.get("mask"):
        mask = folder / lowered["mask"]
        if not mask.is_file():
            raise ValueError(f"{table} names the mask {lowered['mask']!r}, not in {folder}.")
        return Picture(path, split, label, mask)
    homes = [path.parent, path.parent.parent]
    masks = (home / kind / f"{path.stem}.png" for home in homes for kind in ("mask", "masks"))
    return Picture(path, split, label, next((mask for mask in masks if mask.is_file()), None))


def _refuse_doubles(pictures: Sequence[Picture]) -> None:
    for (split, stem), n in Counter((p.split, p.path.stem) for p in pictures).items():
        if n > 1:
            raise ValueError(f"{n} images of {split} are called {stem}: give each its own name.")


# annotations of QuPath


def _from_regions(name: str, folder: Path, told: Told, root: Path, drawn: Sequence[Path]) -> Made:
    from protolib.data import annotations  # here: nothing else needs polygons

    areas, colours, left_out = annotations.read(drawn, below(folder, IMAGES))
    slides = sorted({area.slide for area in areas})
    if len(slides) < 3:
        raise ValueError(
            f"{len(slides)} annotated slides ({', '.join(slides)}): train, val and test need one "
            "each, for a slide in two of them makes scores too good; annotate more."
        )
    shown = sorted({kind for area in areas for kind, _ in area.polygons} - {annotations.IGNORE})
    said = [one.partition("=")[0] for one in told.classes]
    if absent := set(said) - set(shown):
        raise ValueError(
            f"nothing is annotated as {min(absent)!r}; the annotations have: {', '.join(shown)}."
        )
    names = said or shown
    classes, titles = _names(told, len(names), f"the annotations {', '.join(shown)}", names)
    C, splits = len(names), _split_slides(name, slides)
    spec = _spec(
        replace(told, slide=told.slide or r"^.+(?=_x\d+_y\d+)"),
        name,
        classes,
        titles,
        codes=tuple(range(C)),
        ignored=(C,),
        palette=told.palette or _distinct([colours.get(kind) for kind in names]),
        spelling="joined",
    )
    rule = replace(spec, regions=Cut(".png", name, told.size, told.size))
    kept: dict[str, list[tuple[int, ...]]] = {split: [] for split in SPLITS}
    with _appears(root) as scratch:
        for area in areas:
            pixels = read_image(area.image)
            codes = np.full(pixels.shape[:2], C, np.uint8)
            for kind, polygon in area.placed():
                if kind in (*names, annotations.IGNORE):
                    annotations.fill(codes, polygon, names.index(kind) if kind in names else C)
            split = splits[area.slide]
            for patch in regions.cut_region(pixels, codes, rule):
                if any(patch.label):
                    kept[split].append(patch.label)
                    _write(
                        scratch,
                        split,
                        area.name(patch),
                        patch.label,
                        patch.image,
                        _mask(patch, spec),
                    )
        if empty := [split for split in SPLITS if not kept[split]]:
            raise ValueError(
                f"no patch of {told.size} px for {empty[0]}: at least half of one must be "
                "annotated, and it must not be white. Annotate more, or give a smaller --size."
            )
        _finish(scratch, spec)
    homes = {split: ", ".join(s for s in slides if splits[s] == split) for split in SPLITS}
    notes = [f"{split}: {len(kept[split])} patches of {homes[split]}" for split in SPLITS]
    if others := set(shown) - set(names):
        notes.append(f"left out, for --classes does not name it: {', '.join(sorted(others))}")
    notes += [f"left out: {n} annotations {why}" for why, n in left_out.items()]
    return Made(root, spec, np.array(kept["train"], np.uint8), notes)


def _mask(patch: regions.Patch, spec: DatasetSpec) -> Image.Image:
    image = Image.fromarray(patch.codes, mode="P")
    image.putpalette([value for colour in spec.palette for value in colour])
    return image


def _split_slides(name: str, slides: Sequence[str]) -> dict[str, str]:
    """A split for each slide: about one in ten in val and in test, at least one; by a hash of its
    name, so that a slide's share of luck does not depend on the order of files."""
    order = sorted(slides, key=lambda s: hashlib.sha256(f"{name}/{s}".encode()).hexdigest())
    held = max(1, round(regions.HELD_OUT * len(order)))
    ranks = {slide: i // held for i, slide in enumerate(order)}
    return {slide: ("val", "test")[rank] if rank < 2 else "train" for slide, rank in ranks.items()}


# what all have in common


def _names(
    told: Told, C: int, of: str, found: Sequence[str] = ()
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names and titles of C classes: told, found, or asked for."""
    given = told.classes or tuple(found)
    if not given and told.ask:
        answer = told.ask(f"Names of {of}, in their order, separated by commas: ")
        given = tuple(part.strip() for part in answer.split(",") if part.strip())
    if len(given) != C:
        raise ValueError(
            f"{of}: {len(given)} names of classes for {C} classes; give --classes "
            f"{','.join('ABCDEFGH'[:C])} (or A=title of A,...), in their order."
        )
    pairs = [name.partition("=")[::2] for name in given]
    return tuple(name for name, _ in pairs), tuple(title or name for name, title in pairs)


def _palette(told: Told, seen: Mapping[int, tuple], C: int, values: Sequence[int]) -> tuple:
    """C + 1 colours: told, those of the masks, or ours."""
    if told.palette:
        return told.palette
    own = [seen.get(value) for value in values]
    return _distinct(own[:C] or [None] * C, own[C] if len(own) > C else None)


def _distinct(wanted: Sequence[tuple | None], ignore: tuple | None = None) -> tuple:
    """One colour per class, the wanted one where it is no other's, then ignore."""
    spare = [*COLOURS, *(_hue(i) for i in range(1000))]
    last = ignore if ignore and ignore not in wanted else WHITE
    taken: list[tuple] = [last]
    for colour in wanted:
        fits = colour is not None and colour not in taken
        free = (c for c in spare if c not in taken and c not in wanted)
        taken.append(colour if fits else next(free))
    return (*taken[1:], last)


def _hue(i: int) -> tuple[int, int, int]:
    r, g, b = colorsys.hsv_to_rgb(i * 0.618034 % 1, 0.55 + 0.4 * (i % 2), 0.9 - i % 3 * 0.2)
    return round(255 * r), round(255 * g), round(255 * b)


def _spec(
    told: Told,
    name: str,
    classes: tuple[str, ...],
    titles: tuple[str, ...],
    codes: Sequence[int],
    **more: Any,
) -> DatasetSpec:
    return DatasetSpec(
        name=name,
        classes=classes,
        titles=titles,
        codes={code: index for index, code in enumerate(codes)},
        slide=told.slide,
        mpp=told.mpp,
        **more,
    )


def _write(
    root: Path, split: str, stem: str, label: Sequence[int], image: np.ndarray, mask: Any
) -> None:
    """One patch and its mask (an image, bytes of a PNG, or None), in the published folders."""
    file = f"{stem}[{''.join(map(str, label))}].png" if split == "train" else f"{stem}.png"
    home = root / split / ("" if split == "train" else "img")
    home.mkdir(parents=True, exist_ok=True)
    if (home / file).exists():
        raise ValueError(
            f"two patches of {split} would be called {file}: does a region come twice?"
        )
    Image.fromarray(image).save(home / file)
    if mask is not None:
        target = specs.mask_folder(home) / file
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(mask) if isinstance(mask, bytes) else mask.save(target)


def _finish(scratch: Path, spec: DatasetSpec) -> None:
    """Describe a folder of patches, and check that it is read as it was meant."""
    files.write_text(scratch / "dataset.toml", toml(spec))
    specs.check_layout(specs.spec_of("custom", scratch), scratch)


@contextmanager
def _appears(root: Path) -> Iterator[Path]:
    """A folder that takes its place when all in it is written; gone on any error."""
    with files.scratch(root.parent) as scratch:
        made = scratch / root.name
        made.mkdir()
        yield made
        if root.is_dir():
            root.rmdir()  # empty, as was checked
        os.replace(made, root)


def _counted(pictures: Sequence[Picture]) -> str:
    n = Counter(picture.split for picture in pictures)
    return ", ".join(f"{split} {n[split]}" for split in SPLITS) + " patches"


def _sizes(paths: Iterable[Path]) -> str:
    sizes = Counter()
    for path in paths:
        with Image.open(path) as image:
            sizes[image.size] += 1
    said = ", ".join(f"{n} of {w} x {h} px" for (w, h), n in sizes.most_common(4))
    if odd := [f"{w} x {h}" for w, h in sizes if w != h]:
        raise ValueError(f"images of {odd[0]} px are not square: cut patches first. Found: {said}.")
    return f"images: {said}"


def _slides(spec: DatasetSpec, names: Sequence[str]) -> str:
    """What names tell of slides. Raises ValueError for a pattern that finds none."""
    if not spec.slide:
        return "slides: not told; with --slide REGEX one that stands in two splits would be seen"
    found = [specs.told(spec.slide, name) for name in names]
    if not any(found):
        raise ValueError(f"--slide {spec.slide!r} finds nothing in {names[0]!r}.")
    return (
        f"slides: {len(set(found) - {''})}, told by {sum(map(bool, found))} of {len(names)} names"
    )


def _shares(counts: Counter) -> str:
    total = sum(counts.values())
    return ", ".join(f"{value} ({n / total:.1%})" for value, n in sorted(counts.items())[:20])


def _text(text: str) -> str:
    return f"'{text}'" if "\\" in text and "'" not in text else json.dumps(text, ensure_ascii=False)


def _texts(texts: Iterable[str]) -> str:
    return f"[{', '.join(map(_text, texts))}]"
