"""Check a data folder file by file: what patches.load would stumble over, and what it would not
notice.

A row of the report is a defect; a note is a fact to know, such as another number of patches than
the paper's. `guard` stands before every run, `data_download verify` shows all.
"""

import hashlib
import os
import shlex
import warnings
from collections import Counter, defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm.auto import tqdm

from protolib import files, keys
from protolib.data import patchcheck, pictures, regions, specs
from protolib.data.specs import SPLITS, DatasetSpec, Layout

ASIDE = "quarantine"
# a run goes on with these, and says so: what is read is right, but a person should look
HARMLESS = frozenset(
    {"not PNG", "bytes after end", "mode", "blank", "no class", "label or mask", "not read"}
    | {"duplicate", "leak", "name", "slide", "patient", "count", "ignore"}
)
SHOWN = 10  # rows of one kind that the table shows
KEPT = {"test": 0, "val": 1, "train": 2}  # of two equal patches the one for scoring stays


class Row(NamedTuple):
    """One defect: its kind, split, file below the folder (or what splits share), what is wrong,
    what `fix` moves."""

    kind: str
    split: str
    name: str
    detail: str
    files: tuple[Path, ...] = ()


class Pair(NamedTuple):
    """A patch and its mask; either may be missing."""

    split: str
    name: str
    image: Path | None
    mask: Path | None

    def row(self, folder: Path, kind: str, path: Path, detail: str) -> Row:
        """A defect of one of the two files; what is moved away is the pair."""
        return Row(
            kind,
            self.split,
            _below(folder, path),
            detail,
            tuple(p for p in (self.image, self.mask) if p),
        )


@dataclass
class Report:
    """What verify found: counts per split, defects, notes and the files moved away."""

    name: str
    folder: Path
    counts: dict[str, int]
    rows: list[Row]
    notes: list[str]
    moved: list[Path] = field(default_factory=list)
    cause: str = ""  # of mask values that are no code, with their share

    @property
    def ok(self) -> bool:
        """Whether the folder is sound now: no defect, or only such as were moved away."""
        return all(row.files and set(row.files) <= set(self.moved) for row in self.rows)

    def table(self) -> str:
        """Give the report as text: a head line, the defects by kind, the notes, and what was
        moved."""
        counts = ", ".join(f"{split} {n}" for split, n in self.counts.items())
        defects = "1 defect" if len(self.rows) == 1 else f"{len(self.rows) or 'no'} defects"
        lines, by_kind = [f"{self.name} in {self.folder}: {counts}; {defects}"], defaultdict(list)
        for row in self.rows:
            by_kind[row.kind].append(f"  {row.kind:<15} {row.split:<10} {row.name}: {row.detail}")
        for kind, rows in by_kind.items():
            lines += rows[:SHOWN] + (
                [f"  {kind:<15} and {len(rows) - SHOWN} more"] if len(rows) > SHOWN else []
            )
        lines += [f"  note: {note}" for note in self.notes]
        lines += (
            [f"  moved to {self.folder / ASIDE}: {len(self.moved)} files; none was deleted"]
            if self.moved
            else []
        )
        return "\n".join(lines)


def check(
    spec: DatasetSpec,
    folder: str | Path,
    counts: Mapping[str, int] | None = None,
    workers: int | None = None,
) -> Report:
    """Read every file of a data folder, patches or published regions, and what its splits share.

    counts: patches that must be there per split. Another number is a defect, and so is one that
    differs from the counts in the folder's own dataset.toml; one that differs from the paper is a
    note. workers: threads, None = one a core.
    """
    folder = Path(folder)
    # Pillow, zlib and hashing let go of the lock
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        return _verify_regions(spec, folder, pool) or _verify_patches(
            spec, folder, counts or {}, pool
        )


_guarded: dict[str, str] = {}  # what each folder that was checked in this process is warned of


def guard(
    spec: DatasetSpec, root: str | Path, cache: str | Path | None = None
) -> dict[str, Layout]:
    """The layouts of a folder, once every file of it was checked: all that `check` finds, before
    any work.

    A folder is read once by each user: what was found stands in files.own_cache() under a hash of
    its files' names, sizes and times. Warns of defects that leave numbers right (HARMLESS), once a
    process, and once for all where `cache` is the same. Raises ValueError for any other, and as
    specs.check_layout does.
    """
    layouts = specs.check_layout(spec, root)
    place = repr(spec), os.path.abspath(root)
    stamps = {split: specs.stamp(layout) for split, layout in layouts.items()}
    key = keys.digest(place, stamps, keys.CODE["data"])[:16]
    record = Path(cache) / f"checked-{spec.name}-{key}.json" if cache else None
    if record and record.is_file():
        _guarded.setdefault(key, "")
    if key not in _guarded:
        _guarded[key] = _found(spec, Path(os.path.abspath(root)), key)
        if _guarded[key]:
            warnings.warn(f"{_guarded[key]}; {_all(spec, root)}", stacklevel=3)
    if record and not record.is_file():
        files.write_json(record, {"warned": _guarded[key]})
    return layouts


def _found(spec: DatasetSpec, root: Path, key: str) -> str:
    """What a sound folder is warned of, from this user's record of it or from its files."""
    kept = files.own_cache() / "checked" / f"{keys.digest(repr(spec), str(root))[:16]}.json"
    known = files.read_json(kept) if kept.is_file() else {}
    if known.get("key") == key:
        return known["warned"]
    report = check(spec, root)
    if wrong := [row for row in report.rows if row.kind not in HARMLESS]:
        raise ValueError(_refusal(spec, report, wrong))
    warned = _summary(report)
    with suppress(OSError, ValueError):  # what cannot be kept costs another reading, no more
        files.write_json(kept, {"root": str(root), "key": key, "warned": warned})
        for other in kept.parent.glob("*.json"):
            if not os.path.isdir(files.read_json(other)["root"]):
                other.unlink(missing_ok=True)  # of a folder that is gone
    return warned


def _all(spec: DatasetSpec, root: str | Path) -> str:
    name = spec.name if specs.SPECS.get(spec.name) == spec else "custom"
    shown = shlex.join(["python", "-m", "data_download", "verify", name, "--to", str(root)])
    return f"all of them: {files.printed(shown)}"


def _summary(report: Report) -> str:
    """The harmless defects in a sentence, "" where there are none."""
    by_kind = defaultdict(list)
    for row in report.rows:
        by_kind[row.kind].append(row)
    found = [
        f"{kind}: {len(rows)} (first {files.printed(rows[0].name)}: {rows[0].detail})"
        for kind, rows in by_kind.items()
    ] + [note for note in report.notes if "published" not in note]
    return f"{report.name} in {files.printed(report.folder)}: {'; '.join(found)}" * bool(found)


def _refusal(spec: DatasetSpec, report: Report, wrong: list[Row]) -> str:
    """What stops a run: the first defect with its file, how many there are, and values that are no
    code with their share and likely cause."""
    first = wrong[0]
    more = f", and {len(wrong) - 1} defects more" if len(wrong) > 1 else ""
    where = files.printed(report.folder / first.name)
    found = f"{where}: {first.kind}: {first.detail}{more}. {report.cause}".rstrip()
    return f"{found} Nothing was done; {_all(spec, report.folder)}"


def _verify_patches(
    spec: DatasetSpec, folder: Path, promised: Mapping[str, int], pool: ThreadPoolExecutor
) -> Report:
    rows: list[Row] = []
    pairs = [pair for split in SPLITS for pair in _pairs(folder, split, rows)]
    rows += _strays(folder, pairs, movable=all(row.kind != "layout" for row in rows))
    work = pool.map(
        lambda pair: patchcheck.check(spec, pair.image, pair.mask, pair.split == "train"), pairs
    )
    seen = list(tqdm(work, total=len(pairs), desc=f"verify {spec.name}", leave=False))
    rows += [pair.row(folder, *fault) for pair, one in zip(pairs, seen) for fault in one.faults]
    rows += _sizes(folder, pairs, seen)
    rows += _duplicates(folder, pairs, [one.digest for one in seen])
    rows += _foreign(spec, folder, pairs) + _shared(spec, pairs)
    counts = {
        split: sum(pair.split == split and pair.image is not None for pair in pairs)
        for split in SPLITS
    }
    # a count in the folder's own dataset.toml is a promise, one of the paper is not
    own = {} if spec.name in specs.SPECS else spec.counts
    expected = {split: (n,) for split, n in promised.items()} or own
    rows += [
        Row("count", split, split, f"{counts[split]} patches, expected {_either(n)}")
        for split, n in expected.items()
        if counts[split] not in n
    ]
    notes = [
        f"{split} has {counts[split]} patches, published are {_either(n)}"
        for split, n in spec.counts.items()
        if split not in expected and counts[split] not in n
    ]
    classless = [
        pair.name
        for pair, one in zip(pairs, seen)
        if one.areas is not None and not one.areas[:-1].any()
    ]
    notes += (
        [f"{len(classless)} masks show no class at all, first {classless[0]}"] if classless else []
    )
    values = sum((one.values for one in seen if one.values is not None), np.zeros(256, int))
    _said_nowhere(spec, seen, rows, notes)
    return Report(spec.name, folder, counts, rows, notes, cause=cause_of(spec, values))


def _either(numbers: tuple[int, ...]) -> str:
    return " or ".join(map(str, numbers))


def _below(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()


def _pairs(folder: Path, split: str, rows: list[Row]) -> list[Pair]:
    """The patches of one split, in any published folder; what is wrong with folders and pairs goes
    into rows."""
    places = [folder / place for place in specs.PLACES[split]]
    filled = [place for place in places if _named(folder, split, place, [])]
    if len(filled) != 1:
        names = ", ".join(specs.PLACES[split])
        rows.append(
            Row("layout", split, split, f"{len(filled)} of {names} hold PNG files, not one")
        )
    if not filled:
        return []
    images = _named(folder, split, filled[0], rows)
    masks = _named(folder, split, specs.mask_folder(filled[0]), rows)
    pairs = [
        Pair(split, name, images.get(name), masks.get(name))
        for name in sorted(images.keys() | masks.keys())
    ]
    for pair in pairs:
        if pair.image is None:
            rows.append(pair.row(folder, "no image", pair.mask, "a mask without an image"))
        elif pair.mask is None and (masks or split != "train"):
            rows.append(pair.row(folder, "no mask", pair.image, "an image without a mask"))
    return pairs


def _named(folder: Path, split: str, place: Path, rows: list[Row]) -> dict[str, Path]:
    """Name of a patch -> its PNG file in one folder; a second file of a name goes into rows."""
    found = {}
    for path in sorted(place.iterdir()) if place.is_dir() else ():
        if path.suffix.lower() != ".png" or path.name.startswith("."):
            continue
        name = specs.patch_name(path.name)
        if name in found:
            twin = found[name].name
            rows.append(
                Row(
                    "named twice", split, _below(folder, path), f"the same patch as {twin}", (path,)
                )
            )
        else:
            found[name] = path
    return found


def _aside(name: str) -> bool:
    """Whether systems left this beside the files of people."""
    return name.startswith((".", "~$")) or name.lower() in specs.LITTER


def _strays(folder: Path, pairs: list[Pair], movable: bool) -> list[Row]:
    """Files that data.load would pass by: other files beside patches and masks, PNG files anywhere
    else."""
    read, rows = {path.parent for pair in pairs for path in (pair.image, pair.mask) if path}, []
    for place, below, names in os.walk(folder):
        below[:] = sorted(name for name in below if not _aside(name) and name != ASIDE)
        if Path(place) == folder and (folder / specs.CUT_RECORD).is_file():
            # the regions may well stand beside their patches
            below[:] = [name for name in below if name in SPLITS]
            continue
        for path in (Path(place, name) for name in sorted(names) if not _aside(name)):
            if (path.suffix.lower() == ".png") != (path.parent in read):
                name, other = _below(folder, path), path.suffix.lower() in specs.OTHER_IMAGES
                rows.append(
                    Row(
                        "other image" if other and path.parent in read else "not read",
                        name.split("/")[0],
                        name,
                        "no PNG file, or where none is looked for",
                        (path,) if movable else (),
                    )
                )
    return rows


def _said_nowhere(
    spec: DatasetSpec,
    seen: list[patchcheck.Seen],
    rows: list[Row],
    notes: list[str],
) -> None:
    """Ignore that the dataset.toml does not speak of, and classes of labels that no mask shows:
    together they are what masks that count from another number look like."""
    values = sum((one.values for one in seen if one.by_value), np.zeros(256, int))
    unsaid = not spec.ignored and spec.ignore is not None and values[spec.ignore] > 0
    if unsaid:
        found = (
            f"{values[spec.ignore] / values.sum():.1%} of the pixels are {spec.ignore}, which is "
            f"no code and is read as ignore: say ignored = [{spec.ignore}]; if it is a class, the "
            "codes are wrong"
        )
        rows.append(Row("ignore", "masks", "dataset.toml", found))
    areas = [one.areas for one in seen if one.areas is not None]
    shown = sum(areas, np.zeros(spec.C + 1))[:-1] > 0
    labels = [one.label for one in seen if one.label] or [(0,) * spec.C]
    labelled = np.any(labels, axis=0)  # (C,)
    if areas and shown.any() and (missing := np.flatnonzero(labelled & ~shown).tolist()):
        names = ", ".join(spec.classes[c] for c in missing)
        found = f"training labels have {names}, and no mask does: do the codes fit?"
        if unsaid:  # with a value that nobody explains it is no chance
            rows.append(Row("code", "masks", "dataset.toml", found))
        else:
            notes.append(found)


def cause_of(spec: DatasetSpec, values: np.ndarray) -> str:
    """Why masks hold values that are no code: these values, their share, and the likely cause; ""
    where there are none.

    values (256,): pixels of each value in all masks.
    """
    there = np.flatnonzero(values).tolist()
    unknown = [value for value in there if value not in spec.known]
    if not unknown:
        return ""
    share, top = values[unknown].sum() / values.sum(), max(spec.known)
    spread = [value for value in there if value]
    step = int(np.gcd.reduce(spread)) if len(spread) > 1 else 1
    if 255 in unknown and set(there) <= {0, 127, 128, 255}:
        why = "masks in black and white, as drawing tools write them: name 255 in codes"
    elif unknown == [255]:
        why = "255 is what many tools write for ignore: then say ignored = [255]"
    elif unknown == [top + 1]:
        why = "codes that count from 1, or one class more than was said"
    elif step > 1 and len(there) <= top + 1:
        why = f"codes times {step}, spread out to be seen: say these values in codes"
    elif len(there) > 2 * len(spec.known):
        # codes that were smeared leave peaks, objects are of like sizes
        most = np.sort(values[1:])[-len(spec.known) :].sum() / values[1:].sum()
        listed_on = there == list(range(there[0], there[-1] + 1))
        objects = listed_on and most < 1 / 3
        smeared = "masks that were resized smoothly or saved as JPEG"
        why = "numbers of objects, not of classes" if objects else smeared
    else:
        why = "codes of other masks, or values for ignore: say them in codes or in ignored"
    listed = ", ".join(map(str, unknown[:8])) + (", ..." if len(unknown) > 8 else "")
    where = "dataset.toml" if spec.name not in specs.SPECS else f"what {spec.name} publishes"
    return (
        f"Masks hold {listed}, {share:.1%} of all pixels, which {where} does not know; it knows "
        f"codes {sorted(spec.codes)} and, for ignore, {sorted(spec.known - set(spec.codes))}. "
        f"Likely: {why}."
    )


def _sizes(folder: Path, pairs: list[Pair], seen: list[patchcheck.Seen]) -> list[Row]:
    """Patches of another size than most, such that are not square, and such that are too small."""
    sizes, rows = Counter(one.size for one in seen if one.size), []
    usual = sizes.most_common(1)[0][0] if sizes else ()
    for pair, one in zip(pairs, seen):
        if not one.size:
            continue
        found = "{} x {} px".format(*one.size)
        if min(one.size) < pictures.SMALLEST:
            found += f", fewer than the {pictures.SMALLEST} px that show tissue"
        elif one.size != usual or one.size[0] != one.size[1]:
            found += ", most are {} x {} px".format(*usual)
        else:
            continue
        rows.append(pair.row(folder, "size", pair.image, found))
    return rows


def _duplicates(folder: Path, pairs: list[Pair], digests: list[str]) -> list[Row]:
    """Images of the same pixels under two names: a duplicate within a split, a leak between two."""
    groups, rows = defaultdict(list), []
    for pair, digest in zip(pairs, digests):
        groups[digest].append(pair)
    for digest, group in groups.items():
        first, *others = sorted(group, key=lambda pair: (KEPT.get(pair.split, 0), pair.name))
        for pair in others if digest else ():
            kind = "duplicate" if pair.split == first.split else "leak"
            rows.append(
                pair.row(
                    folder, kind, pair.image, f"the same pixels as {_below(folder, first.image)}"
                )
            )
    return rows


def _foreign(spec: DatasetSpec, folder: Path, pairs: list[Pair]) -> list[Row]:
    """Patches whose name tells no slide where most names tell one: they come from elsewhere."""
    images = [pair for pair in pairs if pair.image]
    silent = [pair for pair in images if spec.slide and not specs.told(spec.slide, pair.name)]
    return [
        pair.row(folder, "name", pair.image, f"it tells no slide, as names of {spec.name} do")
        for pair in silent
        if 2 * len(silent) < len(images)
    ]


def _shared(spec: DatasetSpec, pairs: list[Pair]) -> list[Row]:
    """Slides and patients that stand in two splits: a score on such a split is too good."""
    rows = []
    for kind, pattern in (("slide", spec.slide), ("patient", spec.patient)):
        seen = {split: Counter() for split in SPLITS}
        for pair in pairs:
            if pair.image:
                seen[pair.split][specs.told(pattern, pair.name)] += 1
        for splits, names in specs.shared(seen).items():
            a, b = splits.split("/")
            rows += [
                Row(kind, splits, name, f"{seen[a][name]} patches in {a}, {seen[b][name]} in {b}")
                for name in names
            ]
    return rows


def _verify_regions(spec: DatasetSpec, folder: Path, pool: ThreadPoolExecutor) -> Report | None:
    """Check published regions: pairs, readable files, sizes, codes, duplicates; None for a folder
    of patches."""
    if not spec.regions or (folder / specs.CUT_RECORD).is_file():
        return None
    try:
        layout = specs.find_regions(spec, folder)
    except ValueError as error:
        return Report(
            spec.name, folder, {"regions": 0}, [Row("layout", "regions", ".", str(error))], []
        )
    if layout is None:
        return None
    pairs = [Pair("regions", *one) for one in zip(*layout)]
    work = pool.map(lambda pair: _read_region(spec, folder, pair), pairs)
    seen = list(tqdm(work, total=len(pairs), desc=f"verify {spec.name}", leave=False))
    rows = [row for found, _, _ in seen for row in found]
    rows += _duplicates(folder, pairs, [digest for _, digest, _ in seen])
    cause = cause_of(spec, sum((values for _, _, values in seen), np.zeros(256, int)))
    return Report(spec.name, folder, {"regions": len(pairs)}, rows, [], cause=cause)


def _read_region(spec: DatasetSpec, folder: Path, pair: Pair) -> tuple[list[Row], str, np.ndarray]:
    """The defects of a region, SHA-256 of its pixels, and how often each value is in its mask."""
    empty = np.zeros(256, int)
    try:
        pixels, codes = regions.read_region(pair.image, pair.mask, spec)
    except pictures.Unfit as error:
        return [pair.row(folder, error.kind, error.path, error.detail)], "", empty
    except ValueError as error:
        return [pair.row(folder, "mask size", pair.mask, str(error))], "", empty
    rows = [
        pair.row(folder, "code", pair.mask, f"{n} pixels of {code}, no code of {spec.name}")
        for code, n in pictures.foreign(codes, spec).items()
    ]
    counts = np.bincount(codes.ravel(), minlength=256)
    return rows, hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest(), counts
