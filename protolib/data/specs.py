"""What each data set is: its spec (names, colours, codes, label spelling) and how its folders must
look."""

import os
import re
import time
import tomllib
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np

from protolib import files
from protolib.data import phantom
from protolib.keys import digest

SPLITS = ("train", "val", "test")
# where the images of a split may stand; their masks: mask/ beside or in it
PLACES = {
    "train": ("train", "train/img", "training", "training/img"),
    "val": ("val/img", "valid/img"),
    "test": ("test/img",),
}
TREE = """  train/ or training/   NAME[1101].png or NAME[1 1 0 1].png, here or in img/;
                        mask/ of the same names, if any
  val/ or valid/        img/NAME.png and mask/NAME.png
  test/                 img/NAME.png and mask/NAME.png"""
REGION_TREES = {
    ".png": """or the published regions, which are cut to patches:
  images/ or rgbs_colorNormalized/   NAME.png
  masks/                             NAME.png, one code per pixel""",
    ".txt": """or the published regions, which are cut to patches, in one folder or several:
  NAME.png and NAME.txt, the matrix of its codes""",
}
# files in a folder of patches that were cut from regions: from which and how; and until all are cut
CUT_RECORD = "regions.json"
CUTTING = ".cutting"
ARRANGING = ".arranging.json"  # in a folder that data_download.arrange has not finished
# images that are not read, for masks and labels are told by names that end in .png
OTHER_IMAGES = (".jpg", ".jpeg", ".jp2", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".ppm", ".pgm")
# what systems leave beside files
LITTER = ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "@eadir", "__macosx")
CONTROL = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029\\ud800-\\udfff]")
GROUP = re.compile(r"\[([^\[\]]*)\]")
DIGITS = re.compile(r" *[01]( *[01])* *")
# A folder that changed in the last 2 s may change again without another time of change.
SETTLED = 2 * 10**9  # ns
_checked: dict[tuple[str, str], tuple[list[int], dict[str, "Layout"]]] = {}


class Cut(NamedTuple):
    """How a data set published as regions is cut to patches: the table `regions` of its spec.

    The paper tells neither its patches nor its split of such sets: these values are ours. At a
    stride of 224 px the published bounds of BCSS hold 70,381 windows and GCSS about 46,000, before
    the limits: overlap is not needed.
    """

    labels: str  # ".png": index masks in masks/; ".txt": a matrix of codes for each image
    seed: str  # of the split by patient, see regions.split_of
    size: int = 224  # px
    stride: int = 224  # px, the same for every split
    white: float = 0.9  # a patch with a larger share of white pixels is glass: dropped
    # a patch with a larger share of ignored pixels is dropped: its label would tell too little
    ignore: float = 0.5
    # a class is in a training label from this share of the patch on, as in the phantom
    present: float = 0.03


@dataclass(frozen=True)
class DatasetSpec:
    """What the names, labels and masks of one data set mean; a `dataset.toml` has these keys, the
    first five required.

    Raises ValueError where the keys contradict each other.
    """

    name: str  # letters, digits, "-", "_", "."
    classes: tuple[str, ...]  # C short names, in the order of the label's digits
    titles: tuple[str, ...]  # C names for figures
    # C + 1 different RGB colours of colour masks, the last one ignore
    palette: tuple[tuple[int, int, int], ...]
    codes: dict[int, int]  # value in an index mask -> class 0..C-1
    spelling: str = ""  # of labels: "joined" [1101], "spaced" [1 1 0 1], "" = either
    slide: str = ""  # regular expression that finds the slide in a file name; "" = not told
    patient: str = ""  # the same for the patient
    mpp: float = 0.0  # micrometres per pixel; 0 = not known
    counts: dict[str, tuple[int, ...]] = field(default_factory=dict)  # published patches per split
    ignored: tuple[int, ...] = ()  # values in an index mask for ignore; () = not said: see `ignore`
    regions: Cut | None = None  # how regions are cut; None = published as patches
    licence: str = ""
    citation: str = ""

    @property
    def C(self) -> int:
        """Number of tissue classes; also the ignore index of every mask."""
        return len(self.classes)

    @property
    def rule(self) -> Cut:
        """How its regions are cut. Raises ValueError for a data set that is published as
        patches."""
        if self.regions is None:
            raise ValueError(f"{self.name} is published as patches: there are no regions to cut.")
        return self.regions

    @property
    def ignore(self) -> int | None:
        """The value in an index mask that is written for ignore: the first that is said to be; not
        said, C where it is no code, as in every mask here. None where all values are codes."""
        free = (value for value in (self.C, *range(254, -1, -1)) if value not in self.codes)
        return self.ignored[0] if self.ignored else next(free, None)

    @property
    def known(self) -> frozenset[int]:
        """The values that an index mask may hold: codes, and those for ignore."""
        return frozenset({*self.codes, *self.ignored, self.ignore} - {None})

    @property
    def lookup(self) -> np.ndarray:
        """Value in an index mask -> class 0..C-1 or ignore, C: (256,) uint8."""
        table = np.full(256, self.C, np.uint8)
        table[list(self.codes)] = list(self.codes.values())
        return table

    def __post_init__(self):
        for key, fits, wanted in (
            ("name", re.fullmatch(r"[\w.-]+", self.name), "letters, digits, '-', '_' and '.'"),
            (
                "classes",
                _different(self.classes),
                "2 to 254 different names"
                + ": every judged pixel would be of the one, add the rest as a class"
                * (len(self.classes) == 1),
            ),
            (
                "titles",
                len(self.titles) == self.C and all(map(_is_text, self.titles)),
                f"{self.C} names, one per class",
            ),
            (
                "palette",
                len(set(self.palette)) == len(self.palette) == self.C + 1
                and all(_is_colour(colour) for colour in self.palette),
                f"{self.C + 1} different [r, g, b] of 0..255, one per class, then ignore",
            ),
            (
                "codes",
                set(self.codes.values()) == set(range(self.C))
                and set(self.codes) <= set(range(256)),
                f"mask value 0..255 = class index; every class 0..{self.C - 1} and no other",
            ),
            ("spelling", self.spelling in ("", "joined", "spaced"), "'joined', 'spaced' or ''"),
            ("slide", _is_pattern(self.slide), "a regular expression"),
            ("patient", _is_pattern(self.patient), "a regular expression"),
            ("mpp", 0 <= self.mpp < 1e4, "micrometres per pixel, 0 where they are not known"),
            (
                "counts",
                all(_is_whole(n) for numbers in self.counts.values() for n in numbers),
                "whole numbers of patches",
            ),
            (
                "ignored",
                not set(self.ignored) & set(self.codes) and set(self.ignored) <= set(range(256)),
                "values 0..255 that are none of codes",
            ),
            (
                "regions",
                self.regions is None
                or self.regions.labels in REGION_TREES
                and min(self.regions.size, self.regions.stride) > 0,
                "labels '.png' or '.txt', and a size and stride of at least 1 px",
            ),
        ):
            if not fits:
                found = getattr(self, key)
                raise ValueError(f"data set {self.name!r}: {key} is {found!r}; expected {wanted}.")


def _different(classes: tuple) -> bool:
    """Whether these are names of classes to tell apart; 255 is left for one more than ignore."""
    named = all(map(_is_text, classes))
    return named and 2 <= len(classes) == len(set(classes)) <= 254


def _is_text(name: object) -> bool:
    """Whether this is a name on one line, which a figure or a terminal can show."""
    return isinstance(name, str) and bool(name.strip()) and not CONTROL.search(name)


def _is_whole(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= 0


def _is_colour(colour: tuple) -> bool:
    return len(colour) == 3 and all(_is_whole(v) and v <= 255 for v in colour)


def _is_pattern(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError):
        return False
    return True


KEYS = {"name": str, "classes": list, "titles": list, "palette": list, "codes": dict}
MORE_KEYS = {
    "spelling": str,
    "slide": str,
    "patient": str,
    "mpp": float,
    "counts": dict,
    "ignored": list,
    "regions": dict,
    "licence": str,
    "citation": str,
}
VALUES = set(map(str, range(256)))  # of masks, as TOML has them
CUT_KEYS = {"labels": str, "seed": str}
MORE_CUT_KEYS = {"size": int, "stride": int, "white": float, "ignore": float, "present": float}


def _spec(table: dict, where: str) -> DatasetSpec:
    """Turn one TOML table into a DatasetSpec, with every wrong key named."""
    files.expect(where, table, KEYS, MORE_KEYS)
    for colour in table["palette"]:
        if not isinstance(colour, list) or not all(map(_is_whole, colour)):
            raise ValueError(
                f"{where}: palette holds {colour!r}; expected [r, g, b], whole numbers of 0..255"
            )
    files.expect(f"{where}, codes", table["codes"], dict.fromkeys(table["codes"], int))
    for code in (*table["codes"], *table.get("ignored", ())):
        if str(code) not in VALUES:  # "07" would be 7 a second time
            raise ValueError(
                f"{where}: {code!r:.60} in codes or ignored; expected a mask value 0..255"
            )
    for split, n in table.get("counts", {}).items():
        if split not in SPLITS or not isinstance(n, list):
            raise ValueError(
                f"{where}: counts has {split} = {n!r}; expected {', '.join(SPLITS)} = [n]"
            )
    cut = table.get("regions")
    if cut is not None:
        files.expect(f"{where}, regions", cut, CUT_KEYS, MORE_CUT_KEYS)
    made = table | {
        "classes": tuple(table["classes"]),
        "titles": tuple(table["titles"]),
        "palette": tuple(tuple(colour) for colour in table["palette"]),
        "codes": {int(code): index for code, index in table["codes"].items()},
        "counts": {split: tuple(n) for split, n in table.get("counts", {}).items()},
        "ignored": tuple(table.get("ignored", ())),
        "regions": Cut(**cut) if cut else None,
    }
    try:
        return DatasetSpec(**made)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _known() -> dict[str, DatasetSpec]:
    tables = tomllib.loads(Path(__file__).with_name("specs.toml").read_text("utf-8"))
    tables["phantom"] |= {"classes": phantom.CLASSES, "titles": phantom.TITLES, "mpp": phantom.MPP}
    tables = {name: tables.get(table.pop("like", ""), {}) | table for name, table in tables.items()}
    return {name: _spec(table | {"name": name}, "specs.toml") for name, table in tables.items()}


SPECS = _known()


def spec_of(dataset: str, data_root: str | Path = "") -> DatasetSpec:
    """Find the spec of a known data set, or read it from `data_root/dataset.toml`.

    dataset: a key of SPECS, or "custom", or the name in the dataset.toml, or the folder's name.
    Raises ValueError where nothing fits, saying what is known.
    """
    own = Path(data_root) / "dataset.toml"
    if dataset == "phantom" and str(data_root) not in ("", "."):  # "." is what Path("") says
        raise ValueError(
            f"dataset='phantom' is drawn, but data_root is {str(data_root)!r}: name the data set "
            f"of that folder ({', '.join(sorted(SPECS.keys() - {'phantom'}))} or 'custom'), or "
            "drop data_root."
        )
    if dataset in SPECS:
        return SPECS[dataset]
    if not str(data_root) or not own.is_file():
        raise ValueError(
            f"dataset {dataset!r} is not known. Known: {', '.join(SPECS)}. For a folder of your "
            "own, describe it in a dataset.toml inside it (keys: DatasetSpec in "
            f"protolib/data/specs.py), and pass data_root; looked for {own}."
        )
    spec = _spec(_toml(own), str(own))
    if dataset not in ("custom", spec.name, own.resolve().parent.name):
        raise ValueError(
            f"{own} describes {spec.name!r}, not {dataset!r}: "
            f"pass dataset={spec.name!r} or 'custom'."
        )
    return spec


def _toml(path: Path) -> dict:
    """A TOML file as editors write it; a mark of UTF-8 before the first byte is skipped."""
    try:
        return files.toml(path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n"))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 from byte {error.start} on: save it as UTF-8, as TOML is, not as "
            "UTF-16 or in an older encoding."
        ) from error
    except (ValueError, RecursionError) as error:  # no TOML, too many digits, too deep
        raise ValueError(f"{path} is not valid TOML: {error}.") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error


def _label_text(name: str) -> str:
    file = os.path.basename(name)
    groups = GROUP.findall(file)
    if not groups or not DIGITS.fullmatch(groups[-1]):
        raise ValueError(
            f"no label in {file!r}: the name of a training patch ends in [1101] or [1 1 0 1], "
            "one 0 or 1 per class."
        )
    return groups[-1].strip()


def parse_label(name: str, C: int) -> tuple[int, ...]:
    """Read the image-level label, C digits of 0 or 1, from the last bracket group of a file name.

    Both published spellings: `x+0[1101].png` and `x-[1 0 0 1].png`; folders before the name
    are not looked at. Raises ValueError without such a group, or with another number of
    digits. Notebook 01.
    """
    label = tuple(int(digit) for digit in _label_text(name).replace(" ", ""))
    if len(label) != C:
        fits = [key for key, spec in SPECS.items() if spec.C == len(label) and key != "phantom"]
        raise ValueError(
            f"{os.path.basename(name)!r} has a label of {len(label)} digits, expected {C}, one per "
            f"class. Known data sets with {len(label)}: {', '.join(fits) or 'none'}. Pass dataset= "
            "one of these, or 'custom' with a dataset.toml in the folder."
        )
    return label


def other_spelling(name: str, spec: DatasetSpec) -> str:
    """How the label in a name is spelt, "joined" or "spaced", where the spec asks for the other;
    else ""."""
    spelling = "spaced" if " " in _label_text(name) else "joined"
    return spelling if spec.spelling not in ("", spelling) else ""


def told(pattern: str, name: str) -> str:
    """What a name tells of its slide or patient, by spec.slide or spec.patient; "" for nothing."""
    found = re.search(pattern, name) if pattern else None
    return found.group() if found else ""


def shared(names: Mapping[str, Iterable[str]]) -> dict[str, list[str]]:
    """The slides or patients that stand in two splits: a score on such a split is too good.

    names: split -> what its file names tell, "" where they do not. Returns "train/test" -> sorted
    names, for those pairs that share some.
    """
    named = {split: set(of) - {""} for split, of in names.items()}
    pairs = {f"{a}/{b}": sorted(named[a] & named[b]) for a, b in combinations(named, 2)}
    return {pair: both for pair, both in pairs.items() if both}


class Layout(NamedTuple):
    """The files of one split, sorted by name; masks[i] belongs to images[i]."""

    ids: list[str]  # file names without .png
    images: list[Path]
    masks: list[Path]  # empty where a training split has none


def stamp(layout: Layout) -> str:
    """Hash of the names, sizes and times of a split's files: they tell files apart in milliseconds;
    reading all would cost as much as decoding. Raises ValueError for a file that is not there."""
    stats = []
    for path in layout.images + (layout.masks or []):
        try:
            of = path.stat()
        except OSError as error:
            raise ValueError(
                f"{path} cannot be read ({error.strerror}): a link to nothing, or the file is gone."
            ) from error
        stats.append((path.parent.name, path.name, of.st_size, of.st_mtime_ns))
    return digest(stats)


def check_layout(spec: DatasetSpec, root: str | Path) -> dict[str, Layout]:
    """Find the files of train, val and test in any published folder variant, and check names before
    any work.

    A folder of regions gives one Layout, "regions", and no split: regions.cut makes its patches.
    Folders that have not changed since the last call of this process are not listed again. Raises
    ValueError with what was found and the expected tree, for images and masks that do not pair by
    name, for training names whose label does not fit the spec, and for patches that were cut for
    other classes. Notebook 01.
    """
    if not str(root):
        raise ValueError(
            f"{spec.name} is read from a folder: pass data_root. Expected in it:\n{_tree(spec)}"
        )
    root = Path(root)
    key, changed, now = (repr(spec), os.path.abspath(root)), _changed(root), time.time_ns()
    if key in _checked and _checked[key][0] == changed:
        return _checked[key][1]
    record = root / CUT_RECORD
    if spec.regions and not record.is_file() and (regions := find_regions(spec, root)):
        return {"regions": regions}
    if (root / ARRANGING).is_file():
        raise ValueError(
            f"{root} is arranged in part only: arrange it again, it goes on where it was stopped."
        )
    if (
        record.is_file()
        and (cut_for := files.read_json(record, {"dataset": str})["dataset"]) != spec.name
    ):
        raise ValueError(
            f"the patches in {root} were cut for {cut_for}, and their labels are of its classes: "
            f"pass dataset={cut_for!r}, or cut the published regions for {spec.name}."
        )
    layouts = {split: _pair(spec, root, split) for split in SPLITS}
    for path in layouts["train"].images:
        parse_label(path.name, spec.C)
        if spelling := other_spelling(path.name, spec):
            raise ValueError(_spelling_message(spec, path.name, spelling))
    if max(changed) < now - SETTLED:
        _checked[key] = changed, layouts
    return layouts


def _changed(root: Path) -> list[int]:
    """When each folder that may hold patches or masks was changed last, ns; 0 where it is not
    there."""
    images = [root / place for places in PLACES.values() for place in places]
    folders = dict.fromkeys([root, *images, *map(mask_folder, images)])
    return [folder.stat().st_mtime_ns if folder.is_dir() else 0 for folder in folders]


def _pair(spec: DatasetSpec, root: Path, split: str) -> Layout:
    """List the images and masks of one split; raises ValueError where they do not pair."""
    places = {root / place: pngs(root / place) for place in PLACES[split]}
    filled = [place for place, found in places.items() if found]
    if len(filled) != 1:
        problem = f"{split}: {len(filled)} of {PLACES[split]} hold PNG files, not one"
        raise ValueError(_layout_message(spec, root, problem))
    images, masks = places[filled[0]], pngs(mask_folder(filled[0]))
    for place in (filled[0], mask_folder(filled[0])):
        if others := other_images(place):
            problem = (
                f"{split}: {len(others)} images in {place.relative_to(root).as_posix()} are not "
                f"PNG, first {others[0]!r}: save them as PNG, or put them elsewhere"
            )
            raise ValueError(_layout_message(spec, root, problem))
    alone = sorted(images.keys() ^ masks.keys())
    if alone and (masks or split != "train"):
        problem = (
            f"{split}: {len(images.keys() - masks.keys())} images without a mask and "
            f"{len(masks.keys() - images.keys())} masks without an image, first {alone[0]!r}"
        )
        raise ValueError(_layout_message(spec, root, problem))
    return Layout(list(images), list(images.values()), list(masks.values()))


def _spelling_message(spec: DatasetSpec, name: str, spelling: str) -> str:
    known = [key for key, other in SPECS.items() if other.spelling == spelling and key != "phantom"]
    return (
        f"the label of {name!r} is {spelling}, that of {spec.name} is {spec.spelling}: this is the "
        f"spelling of {known[0]}, whose classes differ; pass dataset={known[0]!r}, or 'custom' "
        "with a dataset.toml in the folder."
    )


def mask_folder(images: Path) -> Path:
    """Say where the masks of the images in this folder stand: mask/ beside img/, else in it."""
    return (images.parent if images.name == "img" else images) / "mask"


def find_regions(spec: DatasetSpec, root: Path) -> Layout | None:
    """Find region images and their labels as published, None where there are no regions.

    ".png": images/, else rgbs_colorNormalized/, and masks/. ".txt": an image and a matrix of the
    same name anywhere below root, but patches that were cut into it; the publication tells no more
    of its folders. Raises ValueError for regions without labels, and for two of one name.
    """
    if spec.rule.labels == ".png":
        images = pngs(root / "images") or pngs(root / "rgbs_colorNormalized")
        labels = pngs(root / "masks")
    else:
        images, labels, twice = {}, {}, None
        made = SPLITS if (root / CUT_RECORD).is_file() or (root / CUTTING).is_dir() else ()
        for path in sorted(root.rglob("*")):
            side = {".png": images, ".txt": labels}.get(path.suffix.lower())
            parts = path.relative_to(root).parts
            aside = parts[0] in made or any(
                part.startswith(".") or part == "quarantine" for part in parts
            )
            if side is None or aside or path.stem.lower() in ("readme", "license"):
                continue
            name = unicodedata.normalize("NFC", path.stem)
            twice = twice or name in side and (path, side[name])
            side[name] = path
        if twice and set(images) & set(labels):
            raise ValueError(
                f"{twice[0]} and {twice[1]} have the same name: a region must be there once."
            )
    if not set(images) & set(labels):
        return None
    if alone := sorted(images.keys() ^ labels.keys()):
        problem = (
            f"{len(images.keys() - labels.keys())} regions without labels and "
            f"{len(labels.keys() - images.keys())} labels without a region, first {alone[0]!r}"
        )
        raise ValueError(_layout_message(spec, root, problem))
    names = sorted(images)
    return Layout(names, [images[name] for name in names], [labels[name] for name in names])


def patch_name(file: str) -> str:
    """Give the name of a patch: that of its file without .png, or without .png.png, its accents
    composed (NFC): macOS takes them apart, so image and mask may come in two spellings."""
    name, ending = unicodedata.normalize("NFC", file), ".png"
    while name.lower().endswith(ending):
        name = name[: -len(ending)]
    return name


def pngs(folder: Path) -> dict[str, Path]:
    """Give name without .png (or .png.png) -> path, sorted; hidden files such as macOS leaves in
    archives are not data.

    A folder that is not there holds none. Raises ValueError where two files are the same patch.
    """
    found: dict[str, str] = {}
    for file in sorted(os.listdir(folder)) if folder.is_dir() else ():
        if file.lower().endswith(".png") and not file.startswith("."):
            name = patch_name(file)
            if name in found:
                raise ValueError(
                    f"{folder / file} and {found[name]} are the same patch twice: remove one."
                )
            found[name] = file
    return {name: folder / found[name] for name in sorted(found)}


def other_images(folder: Path) -> list[str]:
    """The images of a folder that `pngs` passes by for they are not PNG, sorted."""
    return sorted(
        file
        for file in (os.listdir(folder) if folder.is_dir() else ())
        if file.lower().endswith(OTHER_IMAGES) and not file.startswith(".")
    )


def _layout_message(spec: DatasetSpec, root: Path, problem: str) -> str:
    folders = (
        sorted(p for p in [*root.glob("*"), *root.glob("*/*")] if p.is_dir())
        if root.is_dir()
        else []
    )
    seen = [f"  {p.relative_to(root).as_posix()}/   {len(pngs(p))} PNG files" for p in folders[:20]]
    found = "\n".join(seen) or "  no folder"
    return f"{spec.name} in {root}: {problem}.\nFound:\n{found}\nExpected:\n{_tree(spec)}"


def _tree(spec: DatasetSpec) -> str:
    return f"{TREE}\n{REGION_TREES[spec.regions.labels]}" if spec.regions else TREE
