"""What can be had, from where, under which licence: registry.toml, read and checked."""

import tomllib
from dataclasses import MISSING, dataclass, fields
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

OWN = Path(__file__).with_name("registry.toml")
FREE = ("CC0", "Apache-2.0", "MIT")  # licences whose text asks nobody to agree before the download
KINDS = ("http", "pointer", "drive-folder", "drive-file", "zenodo", "huggingface", "figshare")


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
    """A data set or weight file; registry.toml gives these keys, the first five always. Shown in
    notebook 01."""

    name: str
    title: str
    licence: str  # as stated; "none stated" where nobody does
    licence_source: str  # who states it
    citation: str
    mirrors: tuple[Mirror, ...]  # in the order of trying
    kind: str = "data"  # "data": archives are unpacked; "weights": files stay as they are
    spec: str = ""  # data set of protolib.datasets it is arranged and verified as
    size: int = 0  # bytes in all, about; 0 = not known
    files: dict[str, dict[str, Any]] | None = None  # name -> size and sha256, where known
    expected: dict[str, tuple[int, ...]] | None = (
        None  # pattern in the finished folder -> numbers of files
    )

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
        tables = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise Refused(
            f"the registry {path} cannot be read: {error}; give another with --registry FILE"
        ) from error
    return {name: _entry(name, table, f"{path.name}, [{name}]") for name, table in tables.items()}


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
    _check_keys(Entry, table, where, given=("name",))
    if table.get("kind", "data") not in ("data", "weights"):
        raise Refused(f"{where}: kind is {table['kind']!r}, expected 'data' or 'weights'")
    mirrors = []
    for key, place in table["mirrors"].items():
        _check_keys(Mirror, place, f"{where}, mirror {key}", given=("name",))
        if place["kind"] not in KINDS:
            raise Refused(
                f"{where}, mirror {key}: kind is {place['kind']!r}, expected one of {', '.join(KINDS)}"
            )
        mirrors.append(Mirror(name=inside(key), **place))
    if not mirrors:
        raise Refused(f"{where}: no mirror, so it can be had from nowhere")
    files = {inside(file): known for file, known in table.get("files", {}).items()}
    expected = {pattern: tuple(counts) for pattern, counts in table.get("expected", {}).items()}
    return Entry(
        name=inside(name),
        **table | {"mirrors": tuple(mirrors), "files": files, "expected": expected},
    )


def _check_keys(of: type, table: dict[str, Any], where: str, given: tuple[str, ...]) -> None:
    keys = [field for field in fields(of) if field.name not in given]
    required = {field.name for field in keys if field.default is MISSING}
    missing, unknown = required - set(table), set(table) - {field.name for field in keys}
    if missing or unknown:
        raise Refused(
            f"{where}: keys missing: {sorted(missing)}, unknown: {sorted(unknown)}; "
            f"known: {', '.join(field.name for field in keys)}"
        )
