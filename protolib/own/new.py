"""A data set of your own: from what a folder holds to the dataset.toml that describes it, and where
labels stand elsewhere than in names, to patches that carry them. `python -m protolib new`."""

import hashlib
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from protolib import files
from protolib.data import regions, specs
from protolib.data.pictures import IMAGES, indexed, read_image
from protolib.data.specs import PLACES, SPLITS, Cut, DatasetSpec
from protolib.own import codes, tables
from protolib.own.codes import Codes, Colour
from protolib.presets import Preset


@dataclass(frozen=True)
class Told:
    """What the person says; empty: found in the folder, or asked for."""

    classes: tuple[str, ...] = ()  # C names, "TUM" or "TUM=tumour", in the order of the label
    codes: tuple[int, ...] = ()  # values in the masks, one per class
    ignored: tuple[int, ...] = ()  # values in the masks that mean no class
    palette: tuple[Colour, ...] = ()  # one colour per class, then ignore
    slide: str = ""  # regular expression that finds the slide in a file name
    mpp: float = 0.0  # micrometres per pixel
    size: int = 224  # px: side of the patches that regions are cut to
    csv: Path | None = None  # table of labels
    ask: Callable[[str], str] | None = None  # how to ask on a terminal

    @property
    def names(self) -> list[str]:
        """The names of the classes without their titles."""
        return [one.partition("=")[0] for one in self.classes]

    @property
    def meaning(self) -> Codes:
        """What is said of the masks."""
        return Codes(self.codes, self.ignored, self.palette)


class Made(NamedTuple):
    """What `describe` wrote: where, the spec, the labels (n, C) uint8 of the training patches, and
    what to know about it, a sentence each."""

    root: Path
    spec: DatasetSpec
    labels: np.ndarray
    notes: list[str]


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
    listed = [told.csv] if told.csv else sorted(folder.glob("*.csv"))
    labelled = [path for path in _training(folder).values() if _has_label(path.name)]
    if labelled and not told.csv and not drawn:
        return _from_names(name, folder, told)
    if not drawn and len(listed) != 1:
        raise ValueError(
            f"{folder} holds no training patch with a label in its name, no annotations "
            f"(.geojson), and {len(listed)} tables (.csv) where one could tell the labels "
            f"(--csv FILE). Expected, for patches:\n{specs.TREE}"
        )
    if not str(out) or Path(out) == Path():
        raise ValueError(
            f"labels stand in {(drawn or listed)[0].name}, so patches that carry them are written "
            "anew: say where, with --out DIR."
        )
    root = Path(out)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ValueError(f"{root} is there already: give --out a new folder.")
    if drawn:
        return _from_regions(name, folder, told, root, drawn)
    return _from_table(name, folder, told, root, listed[0])


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
    label, spelling = _labels_of(_training(root))
    labels = np.array(list(label.values()), np.uint8)
    C = labels.shape[1]
    names = _names(told, C, f"the {C} digits of the labels")
    found = codes.meaning(_pairs(root), C, told.meaning)
    spec = _spec(told, name, names, found, spelling)
    layouts = specs.check_layout(spec, root)
    notes = [
        _counted({split: len(layouts[split].ids) for split in SPLITS}),
        *found.notes,
        _sizes(path for layout in layouts.values() for path in layout.images),
        _slides(spec, [name for layout in layouts.values() for name in layout.ids]),
    ]
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


def _pairs(root: Path) -> list[tuple[Path, Path]]:
    """The images of all splits that have a mask, each with its own."""
    pairs = []
    for place in dict.fromkeys(place for places in PLACES.values() for place in places):
        masks = specs.pngs(specs.mask_folder(root / place))
        pairs += [(path, masks[n]) for n, path in specs.pngs(root / place).items() if n in masks]
    return pairs


# a table of labels


def _from_table(name: str, folder: Path, told: Told, root: Path, table: Path) -> Made:
    said, rows = tables.read(table, folder, told.names)
    names = _names(told, len(said), f"the classes {', '.join(said)}", said)
    pairs = [(row.path, row.mask) for row in rows if row.mask]
    found = codes.meaning(pairs, len(said), told.meaning)
    spec = _spec(told, name, names, found, "joined")
    notes = [
        _counted(Counter(row.split for row in rows)),
        *found.notes,
        _slides(spec, [row.path.stem for row in rows]),
    ]
    with _appears(root) as scratch:
        for row in rows:
            image = read_image(row.path)
            if image.shape[0] != image.shape[1]:
                raise ValueError(
                    f"{row.path} is {image.shape[1]} x {image.shape[0]} px: patches must be "
                    "square, cut them first."
                )
            save = partial(shutil.copyfile, row.mask) if row.mask else None
            _write(scratch, row.split, row.path.stem, row.label, image, save)
        _finish(scratch, spec)
    labels = [row.label for row in rows if row.split == "train"]
    return Made(root, spec, np.array(labels, np.uint8), notes)


# annotations of QuPath


def _from_regions(name: str, folder: Path, told: Told, root: Path, drawn: Sequence[Path]) -> Made:
    from protolib.own import annotations  # here: nothing else needs polygons

    areas, colours, left_out = annotations.read(drawn, below(folder, IMAGES))
    slides = sorted({area.slide for area in areas})
    if len(slides) < 3:
        raise ValueError(
            f"{len(slides)} annotated slides ({', '.join(slides)}): train, val and test need one "
            "each, for a slide in two of them makes scores too good; annotate more."
        )
    shown = sorted({kind for area in areas for kind, _ in area.polygons} - {annotations.IGNORE})
    if absent := set(told.names) - set(shown):
        raise ValueError(
            f"nothing is annotated as {min(absent)!r}; the annotations have: {', '.join(shown)}."
        )
    classes = told.names or shown
    C, splits = len(classes), _split_slides(name, slides)
    names = _names(told, C, f"the annotations {', '.join(shown)}", classes)
    palette = told.palette or codes.distinct([colours.get(kind) for kind in classes])
    found = Codes(tuple(range(C)), (C,), palette)
    spec = _spec(
        replace(told, slide=told.slide or r"^.+(?=_x\d+_y\d+)"), name, names, found, "joined"
    )
    rule = replace(spec, regions=Cut(".png", name, told.size, told.size))
    kept: dict[str, list[tuple[int, ...]]] = {split: [] for split in SPLITS}
    with _appears(root) as scratch:
        for area in areas:
            image = read_image(area.image)
            mask, split = area.mask(image.shape[:2], classes), splits[area.slide]
            for patch in regions.cut_region(image, mask, rule):
                if any(patch.label):
                    kept[split].append(patch.label)
                    save = indexed(patch.codes, spec.palette).save
                    _write(scratch, split, area.name(patch), patch.label, patch.image, save)
        if empty := [split for split in SPLITS if not kept[split]]:
            raise ValueError(
                f"no patch of {told.size} px for {empty[0]}: at least half of one must be "
                "annotated, and it must not be white. Annotate more, or give a smaller --size."
            )
        _finish(scratch, spec)
    homes = {split: ", ".join(s for s in slides if splits[s] == split) for split in SPLITS}
    notes = [f"{split}: {len(kept[split])} patches of {homes[split]}" for split in SPLITS]
    if others := set(shown) - set(classes):
        notes.append(f"left out, for --classes does not name it: {', '.join(sorted(others))}")
    notes += [f"left out: {n} annotations {why}" for why, n in left_out.items()]
    return Made(root, spec, np.array(kept["train"], np.uint8), notes)


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


def _spec(
    told: Told,
    name: str,
    names: tuple[tuple[str, ...], tuple[str, ...]],
    masks: Codes,
    spelling: str,
) -> DatasetSpec:
    return DatasetSpec(
        name=name,
        classes=names[0],
        titles=names[1],
        palette=masks.palette,
        codes={value: index for index, value in enumerate(masks.values)},
        ignored=masks.ignored,
        spelling=spelling,
        slide=told.slide,
        mpp=told.mpp,
    )


def _write(
    root: Path,
    split: str,
    stem: str,
    label: Sequence[int],
    image: np.ndarray,
    save: Callable[[Path], object] | None,
) -> None:
    """One patch in the published folders; save: writes its mask, None where there is none."""
    file = f"{stem}[{''.join(map(str, label))}].png" if split == "train" else f"{stem}.png"
    home = root / split / ("" if split == "train" else "img")
    home.mkdir(parents=True, exist_ok=True)
    if (home / file).exists():
        raise ValueError(
            f"two patches of {split} would be called {file}: does a region come twice?"
        )
    Image.fromarray(image).save(home / file)
    if save:
        target = specs.mask_folder(home) / file
        target.parent.mkdir(exist_ok=True)
        save(target)


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


def _counted(n: Mapping[str, int]) -> str:
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


def _text(text: str) -> str:
    return f"'{text}'" if "\\" in text and "'" not in text else json.dumps(text, ensure_ascii=False)


def _texts(texts: Iterable[str]) -> str:
    return f"[{', '.join(map(_text, texts))}]"
