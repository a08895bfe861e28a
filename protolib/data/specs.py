"""What each data set is: its spec (names, colours, codes, label spelling) and how its folders must
look."""

import json
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from protolib.data import phantom

SPLITS = ("train", "val", "test")
PLACES = {
    "train": ("train", "train/img", "training", "training/img"),
    "val": ("val/img", "valid/img"),
    "test": ("test/img",),
}  # where the images of a split may stand; their masks: mask/ beside or in it
TREE = """  train/ or training/   NAME[1101].png or NAME[1 1 0 1].png, here or in img/; mask/ of the same names, if any
  val/ or valid/        img/NAME.png and mask/NAME.png
  test/                 img/NAME.png and mask/NAME.png"""
REGION_TREES = {
    ".png": """or the published regions, which are cut to patches:
  images/ or rgbs_colorNormalized/   NAME.png
  masks/                             NAME.png, one code per pixel""",
    ".txt": """or the published regions, which are cut to patches, in one folder or several:
  NAME.png and NAME.txt, the matrix of its codes""",
}
CUT_RECORD = (
    "regions.json"  # in a folder of patches that were cut from regions: from which, and how
)
CUTTING = ".cutting"  # in such a folder until all are cut
ARRANGING = ".arranging.json"  # in a folder that data_download.arrange has not finished


class Cut(NamedTuple):
    """How a data set published as regions is cut to patches: the table `regions` of its spec. Shown
    in notebook 01.

    The paper tells neither its patches nor its split of such sets: these values are ours. At a
    stride of 224 px the published bounds of BCSS hold 70,381 windows and GCSS about 46,000, before
    the limits: overlap is not needed.
    """

    labels: (
        str  # ".png": index masks in masks/; ".txt": a matrix of codes beside or below each image
    )
    seed: str  # of the split by patient, see regions.split_of
    size: int = 224  # px
    stride: int = 224  # px, the same for every split
    white: float = 0.9  # a patch with a larger share of white pixels is glass: dropped
    # a patch with a larger share of ignored pixels is dropped: its label would tell too little
    ignore: float = 0.5
    present: float = (
        0.03  # a class is in a training label from this share of the patch on, as in the phantom
    )


@dataclass(frozen=True)
class DatasetSpec:
    """What the names, labels and masks of one data set mean; a `dataset.toml` has these keys, the
    first five required.

    Raises ValueError where the keys contradict each other. Source: reference section 2. Shown in
    notebook 01.
    """

    name: str  # letters, digits, "-", "_", "."
    classes: tuple[str, ...]  # C short names, in the order of the label's digits
    titles: tuple[str, ...]  # C names for figures
    palette: tuple[
        tuple[int, int, int], ...
    ]  # C + 1 distinct RGB colours of colour masks, the last one ignore
    codes: dict[int, int]  # value in an index mask -> class 0..C-1; any other value is ignore, C
    spelling: str = ""  # of labels: "joined" [1101], "spaced" [1 1 0 1], "" = either
    slide: str = ""  # regular expression that finds the slide in a file name; "" = not told
    patient: str = ""  # the same for the patient
    mpp: float = 0.0  # micrometres per pixel; 0 = not known
    counts: dict[str, tuple[int, ...]] = field(default_factory=dict)  # published patches per split
    ignored: tuple[
        int, ...
    ] = ()  # the values in an index mask that mean ignore; () = any but the codes
    regions: Cut | None = None  # how regions are cut; None = published as patches
    licence: str = ""
    citation: str = ""

    @property
    def C(self) -> int:
        """Number of tissue classes; also the ignore index of every mask."""
        return len(self.classes)

    @property
    def lookup(self) -> np.ndarray:
        """Value in an index mask -> class 0..C-1 or ignore, C: (256,) uint8."""
        table = np.full(256, self.C, np.uint8)
        table[list(self.codes)] = list(self.codes.values())
        return table

    def __post_init__(self):
        C, cut = self.C, self.regions
        for wrong, wanted in (
            (
                not re.fullmatch(r"[\w.-]+", self.name),
                "name: letters, digits, '-', '_' and '.' only",
            ),
            (len(self.titles) != C, f"titles: {C}, one per class"),
            (
                len(set(self.palette)) != C + 1 or {len(c) for c in self.palette} != {3},
                f"palette: {C + 1} different [r, g, b], one per class, then ignore",
            ),
            (
                set(self.codes.values()) != set(range(C)) or not set(self.codes) <= set(range(256)),
                f"codes: mask value 0..255 = class index; every class 0..{C - 1} and no other",
            ),
            (
                self.spelling not in ("", "joined", "spaced"),
                "spelling: 'joined', 'spaced' or '' (either)",
            ),
            (
                set(self.ignored) & set(self.codes),
                "ignored: mask values that are no class of codes",
            ),
            (
                cut and (cut.labels not in REGION_TREES or not 0 < cut.stride or not 0 < cut.size),
                "regions: labels '.png' or '.txt', and a size and stride of at least 1 px",
            ),
        ):
            if wrong:
                raise ValueError(f"data set {self.name!r} needs {wanted}.")
        re.compile(self.slide), re.compile(self.patient)


def _spec(table: dict, where: str) -> DatasetSpec:
    """Turn one TOML table into a DatasetSpec, with every wrong key named."""
    known = DatasetSpec.__dataclass_fields__
    missing = {"name", "classes", "titles", "palette", "codes"} - set(table)
    if missing or set(table) - set(known):
        raise ValueError(
            f"{where}: keys missing: {sorted(missing)}, unknown: {sorted(set(table) - set(known))}. "
            f"Keys: {', '.join(known)}."
        )
    table = table | {key: tuple(table[key]) for key in ("classes", "titles")}
    table["palette"] = tuple(tuple(colour) for colour in table["palette"])
    table["codes"] = {int(value): index for value, index in table["codes"].items()}
    table["counts"] = {split: tuple(n) for split, n in table.get("counts", {}).items()}
    table["ignored"] = tuple(table.get("ignored", ()))
    try:
        table["regions"] = Cut(**table["regions"]) if "regions" in table else None
    except TypeError as error:
        raise ValueError(
            f"{where}: regions: {error}. Keys: {', '.join(Cut._fields)}; labels and seed must be there."
        ) from error
    return DatasetSpec(**table)


def _known() -> dict[str, DatasetSpec]:
    tables = tomllib.loads(Path(__file__).with_name("specs.toml").read_text("utf-8"))
    tables["phantom"] |= {"classes": phantom.CLASSES, "titles": phantom.TITLES, "mpp": phantom.MPP}
    tables = {name: tables.get(table.pop("like", ""), {}) | table for name, table in tables.items()}
    return {name: _spec(table | {"name": name}, "specs.toml") for name, table in tables.items()}


SPECS = _known()


def spec_of(dataset: str, data_root: str | Path = "") -> DatasetSpec:
    """Find the spec of a known data set, or read it from `data_root/dataset.toml`.

    dataset: a key of SPECS, or "custom", or the name in the dataset.toml, or the folder's name.
    Raises ValueError where nothing fits, saying what is known. Shown in notebook 01.
    """
    own = Path(data_root) / "dataset.toml"
    if dataset == "phantom" and str(data_root) not in ("", "."):  # "." is what Path("") says
        raise ValueError(
            f"dataset='phantom' is drawn, but data_root is {str(data_root)!r}: name the data set of that "
            f"folder ({', '.join(sorted(SPECS.keys() - {'phantom'}))} or 'custom'), or drop data_root."
        )
    if dataset in SPECS:
        return SPECS[dataset]
    if not str(data_root) or not own.is_file():
        raise ValueError(
            f"dataset {dataset!r} is not known. Known: {', '.join(SPECS)}. For a folder of your own, "
            "describe it in a dataset.toml inside it (keys: DatasetSpec in protolib/data/specs.py), and pass "
            f"data_root; looked for {own}."
        )
    try:
        spec = _spec(tomllib.loads(own.read_text("utf-8")), str(own))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{own} is not valid TOML: {error}.") from error
    if dataset not in ("custom", spec.name, own.resolve().parent.name):
        raise ValueError(
            f"{own} describes {spec.name!r}, not {dataset!r}: pass dataset={spec.name!r} or 'custom'."
        )
    return spec


def _label_text(name: str) -> str:
    groups = re.findall(r"\[([^\[\]]*)\]", Path(name).name)
    if not groups or not re.fullmatch(r" *[01]( *[01])* *", groups[-1]):
        raise ValueError(
            f"no label in {Path(name).name!r}: the name of a training patch ends in [1101] or [1 1 0 1], "
            "one 0 or 1 per class."
        )
    return groups[-1].strip()


def parse_label(name: str, C: int) -> tuple[int, ...]:
    """Read the image-level label, C digits of 0 or 1, from the last bracket group of a file name.

    Both published spellings: `x+0[1101].png` and `x-[1 0 0 1].png`; folders before the name are not
    looked at. Raises ValueError without such a group, or with another number of digits. Shown in
    notebook 01.
    """
    label = tuple(int(digit) for digit in _label_text(name).replace(" ", ""))
    if len(label) != C:
        fits = [key for key, spec in SPECS.items() if spec.C == len(label) and key != "phantom"]
        raise ValueError(
            f"{Path(name).name!r} has a label of {len(label)} digits, expected {C}, one per class. "
            f"Known data sets with {len(label)}: {', '.join(fits) or 'none'}. Pass dataset= one of these, "
            "or 'custom' with a dataset.toml in the folder."
        )
    return label


class Layout(NamedTuple):
    """The files of one split, sorted by name; masks[i] belongs to images[i]."""

    ids: list[str]  # file names without .png
    images: list[Path]
    masks: list[Path] | None


def check_layout(spec: DatasetSpec, root: str | Path) -> dict[str, Layout]:
    """Find the files of train, val and test in any published folder variant, and check names before
    any work.

    A folder of regions gives one Layout, "regions", and no split: regions.cut makes its patches.
    Raises ValueError with what was found and the expected tree, for images and masks that do not
    pair by name, for training names whose label does not fit the spec, and for patches that were
    cut for other classes. Shown in notebook 01.
    """
    if not str(root):
        raise ValueError(
            f"{spec.name} is read from a folder: pass data_root. Expected in it:\n{_tree(spec)}"
        )
    root = Path(root)
    record = root / CUT_RECORD
    if spec.regions and not record.is_file() and (regions := find_regions(spec, root)):
        return {"regions": regions}
    if (root / ARRANGING).is_file():
        raise ValueError(
            f"{root} is arranged in part only: arrange it again, it goes on where it was stopped."
        )
    if (
        record.is_file()
        and (cut_for := json.loads(record.read_text("utf-8"))["dataset"]) != spec.name
    ):
        raise ValueError(
            f"the patches in {root} were cut for {cut_for}, and their labels are of its classes: "
            f"pass dataset={cut_for!r}, or cut the published regions for {spec.name}."
        )
    layouts = {}
    for split, places in PLACES.items():
        filled = [root / place for place in places if pngs(root / place)]
        if len(filled) != 1:
            raise ValueError(
                _layout_message(
                    spec, root, f"{split}: {len(filled)} of {places} hold PNG files, not one"
                )
            )
        images = pngs(filled[0])
        masks = pngs(mask_folder(filled[0]))
        alone = sorted(set(images) ^ set(masks))
        if alone and (masks or split != "train"):
            raise ValueError(
                _layout_message(
                    spec,
                    root,
                    f"{split}: {len(set(images) - set(masks))} images without a mask and "
                    f"{len(set(masks) - set(images))} masks without an image, first {alone[0]!r}",
                )
            )
        layouts[split] = Layout(list(images), list(images.values()), list(masks.values()) or None)
    for path in layouts["train"].images:
        parse_label(path.name, spec.C)
        spelling = "spaced" if " " in _label_text(path.name) else "joined"
        if spec.C > 1 and spec.spelling not in ("", spelling):
            others = [
                key
                for key, other in SPECS.items()
                if other.spelling == spelling and key != "phantom"
            ]
            raise ValueError(
                f"the label of {path.name!r} is {spelling}, that of {spec.name} is {spec.spelling}: this "
                f"is the spelling of {others[0]}, whose classes differ; pass dataset={others[0]!r}, or "
                "'custom' with a dataset.toml in the folder."
            )
    return layouts


def mask_folder(images: Path) -> Path:
    """Say where the masks of the images in this folder stand: mask/ beside img/, else in it. Shown
    in notebook 01."""
    return (images.parent if images.name == "img" else images) / "mask"


def find_regions(spec: DatasetSpec, root: Path) -> Layout | None:
    """Find region images and their labels as published, None where there are no regions. Shown in
    notebook 01.

    ".png": images/, else rgbs_colorNormalized/, and masks/. ".txt": an image and a matrix of the
    same name anywhere below root, but patches that were cut into it; the publication tells no more
    of its folders. Raises ValueError for regions without labels, and for two of one name.
    """
    if spec.regions.labels == ".png":
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
            twice = twice or path.stem in side and (path, side[path.stem])
            side[path.stem] = path
        if twice and set(images) & set(labels):
            raise ValueError(
                f"{twice[0]} and {twice[1]} have the same name: a region must be there once."
            )
    if not set(images) & set(labels):
        return None
    if alone := sorted(set(images) ^ set(labels)):
        raise ValueError(
            _layout_message(
                spec,
                root,
                f"{len(set(images) - set(labels))} regions without labels and {len(set(labels) - set(images))} "
                f"labels without a region, first {alone[0]!r}",
            )
        )
    names = sorted(images)
    return Layout(names, [images[name] for name in names], [labels[name] for name in names])


def patch_name(path: Path) -> str:
    """Give the name of a patch: that of its file without .png, or without .png.png. Shown in
    notebook 01."""
    return re.sub(r"(\.png)+$", "", path.name, flags=re.IGNORECASE)


def pngs(folder: Path) -> dict[str, Path]:
    """Give name without .png (or .png.png) -> path, sorted; hidden files such as macOS leaves in
    archives are not data.

    A folder that is not there holds none. Raises ValueError where two files are the same patch.
    Shown in notebook 01.
    """
    found = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix.lower() == ".png" and not path.name.startswith("."):
            name = patch_name(path)
            if name in found:
                raise ValueError(
                    f"{path} and {found[name].name} are the same patch twice: remove one."
                )
            found[name] = path
    return dict(sorted(found.items()))


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
