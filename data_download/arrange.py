"""Bring any published tree of a data set into the one that protolib.data reads; regions are cut to
patches."""

import os
import re
import shutil
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

from protolib import files
from protolib.data import regions, specs
from protolib.data.specs import SPLITS, DatasetSpec

IMAGES = ("", "img", "imgs", "image", "images")
MASKS = ("mask", "masks", "label", "labels")
# "train", "2.validation", "3_testing": the words that published folders use for a split
SPLIT_WORD = re.compile(r"(?:\d+[._ -]*)?(train|val|test)(?:ing|id|idation)?", re.IGNORECASE)


class Move(NamedTuple):
    """One file and where it goes, below the new folder; a region goes into many patches, so its
    target ends in "*"."""

    source: Path
    target: str


def plan(name: str, source: str | Path) -> list[Move]:
    """Say for each file of a published folder where it goes: train/NAME[..].png, val/ and test/
    with img/ and mask/.

    Split folders may stand below others, as archives unpack, and be called training, valid,
    2.validation and alike; NAME.png.png becomes NAME.png. Regions, where the data set is published
    so, go to {split}/REGION_x*. Hidden files and those that are no PNG, such as a Readme, are left.
    Raises ValueError for a split that is missing or stands in two places, for folders of no known
    meaning and for two files with one target.
    """
    source = Path(source)
    spec = specs.spec_of(name, source)
    if (layout := _regions(spec, source)) is not None:
        splits = [
            regions.split_of(spec.rule.seed, regions.patient_of(spec, region))
            for region in layout.ids
        ]
        return [
            Move(path, f"{split}/{region}_x*")
            for path, region, split in zip(layout.images, layout.ids, splits)
        ]
    moves, homes, unknown = [], defaultdict(set), Counter()
    for path in sorted(source.rglob("*")):
        parts = path.relative_to(source).parts
        if path.suffix.lower() != ".png" or any(
            part.startswith((".", "__MACOSX")) for part in parts
        ):
            continue
        found = _place(parts[:-1])
        if found is None:
            unknown["/".join(parts[:-1]) or "."] += 1
            continue
        split, home, mask = found
        homes[split].add(home)
        folder = "mask/" if mask else "" if split == "train" else "img/"
        moves.append(Move(path, f"{split}/{folder}{specs.patch_name(path.name)}.png"))
    _check(spec, source, moves, homes, unknown)
    own = source / "dataset.toml"
    return moves + ([Move(own, own.name)] if own.is_file() else [])


def arrange(
    name: str, source: str | Path, to: str | Path, dry_run: bool = True, workers: int | None = None
) -> str:
    """Move a published folder into the tree that protolib.data reads, or cut its regions; says what
    it did or would do.

    Within a file system files are moved; over two, or through links, they are copied and the source
    stays. Regions are never touched. What goes where is written into `to` first: a call that was
    stopped goes on, and until it has, data.load refuses the folder. dry_run: change nothing.
    workers: threads that cut. Raises ValueError before any work where plan does, or where `to`
    holds one of the files already.
    """
    source, to = Path(source), Path(to)
    spec = specs.spec_of(name, source if (source / "dataset.toml").is_file() else to)
    journal = to / specs.ARRANGING
    if journal.is_file():
        moves = [Move(Path(path), target) for path, target in files.read_json(journal)]
    else:
        moves = plan(name, source)
    if (layout := _regions(spec, source)) is not None and not journal.is_file():
        if not dry_run:
            regions.cut(spec, layout, to, workers)
        return _summary(
            name,
            moves,
            f"{'would cut' if dry_run else 'cut'} into patches of {spec.rule.size} px",
            to,
        )
    moves = [move for move in moves if move.source != to / move.target]
    if not journal.is_file():
        held = [move.target for move in moves if (to / move.target).exists()]
        if held:
            raise ValueError(
                f"{to} holds {len(held)} of the {len(moves)} files already, first {held[0]}: pass "
                "a new folder."
            )
    if not dry_run and moves:
        files.write_json(journal, [(os.path.abspath(move.source), move.target) for move in moves])
        for move in moves:
            _move(move.source, to / move.target)
        journal.unlink()
    return _summary(name, moves, "would move" if dry_run else "moved", to)


def _regions(spec: DatasetSpec, source: Path) -> specs.Layout | None:
    """The published regions of a source, in the folder itself or in the one folder that holds
    all."""
    if not spec.regions:
        return None
    while (layout := specs.find_regions(spec, source)) is None:
        below = (
            [path for path in source.iterdir() if not path.name.startswith((".", "__MACOSX"))]
            if source.is_dir()
            else []
        )
        inner = [path for path in below if path.is_dir()]
        if len(inner) != 1:
            return None
        source = inner[0]
    return layout


def _place(parts: tuple[str, ...]) -> tuple[str, str, bool] | None:
    """Split, the folder it stands in, and whether this holds masks; None for a folder that is part
    of no split."""
    words = [
        (i, match[1].lower())
        for i, part in enumerate(parts)
        if (match := SPLIT_WORD.fullmatch(part))
    ]
    if not words:
        return None
    i, split = words[-1]
    inner = "/".join(parts[i + 1 :]).lower()
    if inner not in IMAGES and inner not in MASKS:
        return None
    return split, "/".join(parts[: i + 1]), inner in MASKS


def _check(
    spec: DatasetSpec, source: Path, moves: list[Move], homes: dict[str, set], unknown: Counter
) -> None:
    """Raise ValueError where the plan would lose, mix or overwrite something."""
    lost = [f"{n} PNG files in {folder}" for folder, n in unknown.most_common(5)]
    for split in SPLITS:
        if len(homes[split]) != 1:
            raise ValueError(
                f"{spec.name} in {source}: {split} stands in {len(homes[split])} folders, not one"
                f"{': ' if homes[split] else ''}{', '.join(sorted(homes[split]))}. Of no split: "
                f"{'; '.join(lost) or 'no PNG file'}. Expected somewhere below:\n{specs.TREE}"
            )
    if lost:
        raise ValueError(
            f"{spec.name} in {source}: it is not told what these are: {'; '.join(lost)}. Put them "
            f"away, or into a split: {', '.join(IMAGES[1:])} for images, {', '.join(MASKS)} for "
            "masks."
        )
    twice = [target for target, n in Counter(move.target for move in moves).items() if n > 1]
    if twice:
        both = " and ".join(str(move.source) for move in moves if move.target == twice[0])
        raise ValueError(
            f"{spec.name}: {len(twice)} patches are there twice, first {both}: remove one of each."
        )


def _move(source: Path, target: Path) -> None:
    """Move a file, or copy what a link points to or lies elsewhere; a target that is there is an
    earlier call's."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        if source.is_symlink():  # moved, a relative link would point to nothing
            raise OSError(f"{source} is a link")
        os.rename(source, target)
    except OSError:  # another file system, or a link
        with files.whole(target) as handle, open(source, "rb") as content:
            shutil.copyfileobj(content, handle)


def _summary(name: str, moves: list[Move], done: str, to: Path) -> str:
    """Say for each folder how many files go there, from where, with the first as an example."""
    groups = defaultdict(list)
    for move in moves:
        groups[move.source.parent, os.path.dirname(move.target)].append(move)
    lines = [
        f"{name}: {done}: {len(moves)} files, to {to}"
        if moves
        else f"{name}: {to} is arranged, nothing to do"
    ]
    for (_, folder), group in groups.items():
        example = f"{group[0].source} -> {group[0].target}"
        lines.append(f"  {folder + '/':<12} {len(group):>6} files, first {example}")
    return "\n".join(lines)
