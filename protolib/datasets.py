"""What each data set is: its spec (names, colours, codes, label spelling) and how its folders must look."""
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from protolib import phantom

SPLITS = ("train", "val", "test")
TREE = """  train/ or training/   NAME[1101].png or NAME[1 1 0 1].png, here or in img/; mask/ of the same names, if any
  val/ or valid/        img/NAME.png and mask/NAME.png
  test/                 img/NAME.png and mask/NAME.png"""


@dataclass(frozen=True)
class DatasetSpec:
    """What the names, labels and masks of one data set mean; a `dataset.toml` has these keys, the first five required.

    Raises ValueError where the keys contradict each other. Source: reference section 2. Shown in notebook 01.
    """

    name: str                                   # letters, digits, "-", "_", "."
    classes: tuple[str, ...]                    # C short names, in the order of the label's digits
    titles: tuple[str, ...]                     # C names for figures
    palette: tuple[tuple[int, int, int], ...]   # C + 1 distinct RGB colours of colour masks, the last one ignore
    codes: dict[int, int]                       # value in an index mask -> class 0..C-1; any other value is ignore, C
    spelling: str = ""                          # of labels: "joined" [1101], "spaced" [1 1 0 1], "" = either
    slide: str = ""                             # regular expression that finds the slide in a file name; "" = not told
    patient: str = ""                           # the same for the patient
    mpp: float = 0.0                            # micrometres per pixel; 0 = not known
    counts: dict[str, tuple[int, ...]] = field(default_factory=dict)   # published patches per split
    licence: str = ""
    citation: str = ""

    @property
    def C(self) -> int:
        """Number of tissue classes; also the ignore index of every mask."""
        return len(self.classes)

    def __post_init__(self):
        C = self.C
        for wrong, wanted in (
            (not re.fullmatch(r"[\w.-]+", self.name), "name: letters, digits, '-', '_' and '.' only"),
            (len(self.titles) != C, f"titles: {C}, one per class"),
            (len(set(self.palette)) != C + 1 or {len(c) for c in self.palette} != {3},
             f"palette: {C + 1} different [r, g, b], one per class, then ignore"),
            (set(self.codes.values()) != set(range(C)) or not set(self.codes) <= set(range(256)),
             f"codes: mask value 0..255 = class index; every class 0..{C - 1} and no other"),
            (self.spelling not in ("", "joined", "spaced"), "spelling: 'joined', 'spaced' or '' (either)"),
        ):
            if wrong:
                raise ValueError(f"data set {self.name!r} needs {wanted}.")
        re.compile(self.slide), re.compile(self.patient)


def _spec(table: dict, where: str) -> DatasetSpec:
    """Turn one TOML table into a DatasetSpec, with every wrong key named."""
    known = DatasetSpec.__dataclass_fields__
    missing = {"name", "classes", "titles", "palette", "codes"} - set(table)
    if missing or set(table) - set(known):
        raise ValueError(f"{where}: keys missing: {sorted(missing)}, unknown: {sorted(set(table) - set(known))}. "
                         f"Keys: {', '.join(known)}.")
    table = table | {key: tuple(table[key]) for key in ("classes", "titles")}
    table["palette"] = tuple(tuple(colour) for colour in table["palette"])
    table["codes"] = {int(value): index for value, index in table["codes"].items()}
    table["counts"] = {split: tuple(n) for split, n in table.get("counts", {}).items()}
    return DatasetSpec(**table)


def _known() -> dict[str, DatasetSpec]:
    tables = tomllib.loads(Path(__file__).with_name("datasets.toml").read_text("utf-8"))
    tables["phantom"] |= {"classes": phantom.CLASSES, "titles": phantom.TITLES, "mpp": phantom.MPP}
    return {name: _spec(table | {"name": name}, "datasets.toml") for name, table in tables.items()}


SPECS = _known()


def spec_of(dataset: str, data_root: str | Path = "") -> DatasetSpec:
    """Find the spec of a known data set, or read it from `data_root/dataset.toml`.

    dataset: a key of SPECS, or "custom", or the name in the dataset.toml, or the folder's name. Raises ValueError where
    nothing fits, saying what is known. Shown in notebook 01.
    """
    own = Path(data_root) / "dataset.toml"
    if dataset == "phantom" and str(data_root) not in ("", "."):   # "." is what Path("") says
        raise ValueError(f"dataset='phantom' is drawn, but data_root is {str(data_root)!r}: name the data set of that "
                         f"folder ({', '.join(sorted(SPECS.keys() - {'phantom'}))} or 'custom'), or drop data_root.")
    if dataset in SPECS:
        return SPECS[dataset]
    if not str(data_root) or not own.is_file():
        raise ValueError(f"dataset {dataset!r} is not known. Known: {', '.join(SPECS)}. For a folder of your own, "
                         "describe it in a dataset.toml inside it (keys: DatasetSpec in datasets.py), and pass "
                         f"data_root; looked for {own}.")
    try:
        spec = _spec(tomllib.loads(own.read_text("utf-8")), str(own))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{own} is not valid TOML: {error}.") from error
    if dataset not in ("custom", spec.name, own.resolve().parent.name):
        raise ValueError(f"{own} describes {spec.name!r}, not {dataset!r}: pass dataset={spec.name!r} or 'custom'.")
    return spec


def _label_text(name: str) -> str:
    groups = re.findall(r"\[([^\[\]]*)\]", Path(name).name)
    if not groups or not re.fullmatch(r" *[01]( *[01])* *", groups[-1]):
        raise ValueError(f"no label in {Path(name).name!r}: the name of a training patch ends in [1101] or [1 1 0 1], "
                         "one 0 or 1 per class.")
    return groups[-1].strip()


def parse_label(name: str, C: int) -> tuple[int, ...]:
    """Read the image-level label, C digits of 0 or 1, from the last bracket group of a file name.

    Both published spellings: `x+0[1101].png` and `x-[1 0 0 1].png`; folders before the name are not looked at.
    Raises ValueError without such a group, or with another number of digits. Shown in notebook 01.
    """
    label = tuple(int(digit) for digit in _label_text(name).replace(" ", ""))
    if len(label) != C:
        fits = [key for key, spec in SPECS.items() if spec.C == len(label) and key != "phantom"]
        raise ValueError(f"{Path(name).name!r} has a label of {len(label)} digits, expected {C}, one per class. "
                         f"Known data sets with {len(label)}: {', '.join(fits) or 'none'}. Pass dataset= one of these, "
                         "or 'custom' with a dataset.toml in the folder.")
    return label


class Layout(NamedTuple):
    """The files of one split, sorted by name; masks[i] belongs to images[i]."""

    ids: list[str]              # file names without .png
    images: list[Path]
    masks: list[Path] | None


def check_layout(spec: DatasetSpec, root: str | Path) -> dict[str, Layout]:
    """Find the files of train, val and test in any published folder variant, and check names before any work.

    Raises ValueError with what was found and the expected tree, for images and masks that do not pair by name, and for
    training names whose label does not fit the spec. Shown in notebook 01.
    """
    if not str(root):
        raise ValueError(f"{spec.name} is read from a folder: pass data_root. Expected in it:\n{TREE}")
    root = Path(root)
    layouts = {}
    for split, bases in zip(SPLITS, (("train", "training"), ("val", "valid"), ("test",))):
        places = [f"{base}/{sub}" for base in bases for sub in (("", "img") if split == "train" else ("img",))]
        filled = [root / place for place in places if _pngs(root / place)]
        if len(filled) != 1:
            raise ValueError(_layout_message(spec, root, f"{split}: {len(filled)} of {places} hold PNG files, not one"))
        images = _pngs(filled[0])
        masks = _pngs((filled[0].parent if filled[0].name == "img" else filled[0]) / "mask")
        alone = sorted(set(images) ^ set(masks))
        if alone and (masks or split != "train"):
            raise ValueError(_layout_message(
                spec, root, f"{split}: {len(set(images) - set(masks))} images without a mask and "
                            f"{len(set(masks) - set(images))} masks without an image, first {alone[0]!r}"))
        layouts[split] = Layout(list(images), list(images.values()), list(masks.values()) or None)
    for path in layouts["train"].images:
        parse_label(path.name, spec.C)
        spelling = "spaced" if " " in _label_text(path.name) else "joined"
        if spec.C > 1 and spec.spelling not in ("", spelling):
            others = [key for key, other in SPECS.items() if other.spelling == spelling and key != "phantom"]
            raise ValueError(f"the label of {path.name!r} is {spelling}, that of {spec.name} is {spec.spelling}: this "
                             f"is the spelling of {others[0]}, whose classes differ; pass dataset={others[0]!r}, or "
                             "'custom' with a dataset.toml in the folder.")
    return layouts


def _pngs(folder: Path) -> dict[str, Path]:
    """Name without .png (or .png.png) -> path, sorted; hidden files such as macOS leaves in archives are not data."""
    found = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix.lower() == ".png" and not path.name.startswith("."):
            name = re.sub(r"(\.png)+$", "", path.name, flags=re.IGNORECASE)
            if name in found:
                raise ValueError(f"{path} and {found[name].name} are the same patch twice: remove one.")
            found[name] = path
    return dict(sorted(found.items()))


def _layout_message(spec: DatasetSpec, root: Path, problem: str) -> str:
    folders = sorted(p for p in [*root.glob("*"), *root.glob("*/*")] if p.is_dir()) if root.is_dir() else []
    seen = [f"  {p.relative_to(root).as_posix()}/   {len(_pngs(p))} PNG files" for p in folders[:20]]
    return f"{spec.name} in {root}: {problem}.\nFound:\n" + ("\n".join(seen) or "  no folder") + f"\nExpected:\n{TREE}"
