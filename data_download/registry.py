"""What can be had, from where, under which licence: registry.toml, read and checked."""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from protolib.files import expect, toml

OWN = Path(__file__).with_name("registry.toml")
FREE = ("CC0", "Apache-2.0", "MIT")  # licences whose text asks nobody to agree before the download
KINDS = ("http", "pointer", "drive-folder", "drive-file", "zenodo", "huggingface", "figshare")
# the keys of an entry and of a mirror in registry.toml, and those that may be left out
ENTRY = {"title": str, "licence": str, "licence_source": str, "citation": str, "mirrors": dict}
MORE_ENTRY = {"kind": str, "spec": str, "size": int, "files": dict, "expected": dict}
MIRROR = {"kind": str, "id": str}
MORE_MIRROR = {"file": str, "save": str, "base": str}


class Refused(Exception):
    """What ends the command: a sentence that says what was found and what to do."""


@dataclass(frozen=True)
class Mirror:
    """One place of publication, as a line under `mirrors` in registry.toml describes it."""

    name: str  # what --mirror takes
    kind: str  # one of KINDS, read by mirrors.py
    # Drive id, Zenodo record, datasets/OWNER/NAME, figshare article, or a URL (http, pointer)
    id: str
    file: str = ""  # the one file wanted out of a hub's repository; "" = all
    save: str = ""  # the name that a single file gets here; "" = its own
    base: str = ""  # another host that speaks the kind's language: an institution's copy, a test


@dataclass(frozen=True)
class Entry:
    """A data set or weight file; registry.toml gives these keys, the first five always."""

    name: str
    title: str
    licence: str  # as stated; "none stated" where nobody does
    licence_source: str  # who states it
    citation: str
    mirrors: tuple[Mirror, ...]  # in the order of trying
    kind: str = "data"  # "data": archives are unpacked; "weights": files stay as they are
    spec: str = ""  # data set of protolib.data.specs it is arranged and verified as
    size: int = 0  # bytes in all, about; 0 = not known
    files: dict[str, dict[str, Any]] | None = None  # name -> size and sha256, where known
    # pattern in the finished folder -> numbers of files
    expected: dict[str, tuple[int, ...]] | None = None

    @property
    def free(self) -> bool:
        """Whether the licence lets everyone download without agreeing to anything first."""
        return self.licence.startswith(FREE)


def load(path: str | Path = OWN) -> dict[str, Entry]:
    """Read a registry; the path may be another one, an institution's or a test's.

    Raises Refused naming the file, the entry and the key that is missing, unknown or of no known
    kind.
    """
    path = Path(path)
    try:
        tables = toml(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise Refused(
            f"the registry {path} cannot be read: {error}; give another with --registry FILE"
        ) from error
    try:
        expect(path.name, tables, dict.fromkeys(tables, dict))
        return {
            name: _entry(name, table, f"{path.name}, [{name}]") for name, table in tables.items()
        }
    except (ValueError, Refused) as error:
        said = str(error)
        raise Refused(said if path.name in said else f"{path.name}: {said}") from error


def find(entries: dict[str, Entry], name: str) -> Entry:
    """The entry of that name; raises Refused with the names there are."""
    if name not in entries:
        raise Refused(f"{name!r} is not in the registry; there are: {', '.join(entries)}")
    return entries[name]


def inside(name: str) -> str:
    """A relative path with forward slashes that stays in its folder on every system.

    Raises Refused for an absolute path, a drive, "..", an empty name or a control character: names
    come from strangers.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    windows = PureWindowsPath(name)
    if (
        not path.parts
        or path.is_absolute()
        or windows.drive
        or windows.root
        or ".." in path.parts
        or any(ord(letter) < 32 for letter in name)
    ):
        raise Refused(f"the name {name!r} would leave its folder, so nothing under it is written")
    return str(path)


def _entry(name: str, table: dict[str, Any], where: str) -> Entry:
    expect(where, table, ENTRY, MORE_ENTRY)
    if table.get("kind", "data") not in ("data", "weights"):
        raise Refused(f"{where}: kind is {table['kind']!r}, expected 'data' or 'weights'")
    places, files, counts = (table.get(key, {}) for key in ("mirrors", "files", "expected"))
    for key, held, kind in (
        ("mirrors", places, dict),
        ("files", files, dict),
        ("expected", counts, list),
    ):
        expect(f"{where} {key}", held, dict.fromkeys(held, kind))
    if not places:
        raise Refused(f"{where}: no mirror, so it can be had from nowhere")
    return Entry(
        name=inside(name),
        **table
        | {
            "mirrors": tuple(_mirror(key, place, where) for key, place in places.items()),
            "files": {inside(file): known for file, known in files.items()},
            "expected": {pattern: tuple(numbers) for pattern, numbers in counts.items()},
        },
    )


def _mirror(key: str, place: dict[str, Any], where: str) -> Mirror:
    expect(f"{where}, mirror {key}", place, MIRROR, MORE_MIRROR)
    if place["kind"] not in KINDS:
        raise Refused(
            f"{where}, mirror {key}: kind is {place['kind']!r}, expected one of {', '.join(KINDS)}"
        )
    return Mirror(name=inside(key), **place)
