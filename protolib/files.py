"""Files written whole or not at all: every module that leaves something behind leaves it through
here."""

import io
import json
import math
import os
import shutil
import sys
import tempfile
import time
import tomllib
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from numbers import Integral, Real
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4
from zipfile import BadZipFile

import numpy as np
from filelock import FileLock, Timeout, lock_descriptor

# What `expect` takes for each kind, and its name in a message.
KINDS: dict[Any, tuple[Any, str]] = {
    str: (str, "a text"),
    bool: (bool, "true or false"),
    int: (Integral, "a whole number"),
    float: (Real, "a number"),
    list: ((list, tuple), "a list"),
    dict: (Mapping, "an object"),
    None: (type(None), "null"),
}
AGAIN = "delete it and run the step that writes it again"  # what to do with a damaged file
SCRATCH = ".making-"  # how a folder begins in which something is made
YOUNG = 10.0  # s: a file that was written so lately may be about to take its place


def weights_folder() -> Path:
    """The folder for weights that a person brings, and for those on no hub: PROTOLIB_WEIGHTS or
    ~/.cache/protolib."""
    return Path(os.environ.get("PROTOLIB_WEIGHTS") or "~/.cache/protolib").expanduser()


def home_cache() -> Path | None:
    """The folder of caches in HOME, or that of XDG_CACHE_HOME; None where it cannot be written."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    there = next(place for place in (cache, *cache.parents) if place.exists())
    return cache if os.access(there, os.W_OK) else None


def own_cache() -> Path:
    """This user's folder for what can be made again: protolib in the caches of HOME; where they
    cannot be written, a private one in the temporary folder."""
    if home := home_cache():
        return home / "protolib"
    user = getattr(os, "getuid", lambda: "")()
    own = Path(tempfile.gettempdir(), f"protolib-{user}")
    own.mkdir(mode=0o700, exist_ok=True)
    if own.is_symlink() or (user != "" and own.stat().st_uid != user):
        own = Path(tempfile.mkdtemp(prefix="protolib-"))  # somebody else's
    return own


def printed(name: object) -> str:
    """A name as a terminal may have it: control characters and lone surrogates as escapes."""
    return "".join(c if c.isprintable() or c == " " else ascii(c)[1:-1] for c in str(name))


def speak_anywhere() -> None:
    """Let no letter stop a command because the terminal cannot show it: it is escaped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def place(path: str | Path) -> Path:
    """A path as people write it: ~ and $NAME mean what they mean in a shell, but where a file of
    just this name is there."""
    literal = Path(path)
    if not str(path) or literal.exists():
        return literal
    return Path(os.path.expandvars(literal)).expanduser()


@contextmanager
def whole(path: str | Path) -> Iterator[BinaryIO]:
    """A file beside `path` that takes its place only when all of it is on disk; see sweep."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid4().hex}.part")
    try:
        with open(part, "xb") as handle:
            with suppress(OSError):  # a disk without locks: what is left there stays
                lock_descriptor(handle.fileno(), blocking=False)
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def scratch(parent: str | Path, prefix: str = SCRATCH) -> Iterator[Path]:
    """A new folder in `parent` to make something in, gone with what is left in it at the end.

    What killed processes left there goes first. The lock beside the folder is taken before the
    folder is made, and the system lets go of it when its holder ends: a folder whose lock is free
    is nobody's.
    """
    parent = Path(parent)
    parent.mkdir(parents=True, exist_ok=True)
    _clear(list(parent.glob(f"{prefix}*.lock")))
    folder = parent / f"{prefix}{uuid4().hex}"
    lock = Path(f"{folder}.lock")
    try:
        with FileLock(lock, thread_local=False):
            folder.mkdir(mode=0o700)
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    finally:
        lock.unlink(missing_ok=True)


def sweep(folder: str | Path) -> None:
    """Remove what killed processes left below a folder: files of `whole`, folders of `scratch`.
    What a living process holds stays."""
    for place, _, names in os.walk(folder):
        for name in names:
            if name.startswith(SCRATCH) and name.endswith(".lock"):
                _clear([Path(place, name)])
            elif name.startswith(".") and name.endswith(".part"):
                _drop(Path(place, name))


def _clear(locks: Iterable[Path]) -> None:
    """Remove the scratch folders whose lock nobody holds."""
    for lock in locks:
        with suppress(OSError, Timeout), FileLock(lock, timeout=0):
            shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
            lock.unlink(missing_ok=True)


def _drop(part: Path) -> None:
    """Remove a file of `whole` that nobody holds, nor is about to rename."""
    with suppress(OSError):  # gone meanwhile, or somebody else's
        with open(part, "rb") as handle:
            free = lock_descriptor(handle.fileno(), blocking=False)
        if free and time.time() - part.stat().st_mtime > YOUNG:
            part.unlink()


def write_text(path: str | Path, text: str) -> None:
    """Write text as UTF-8, whole or not at all; makes missing folders."""
    with whole(path) as handle:
        handle.write(text.encode("utf-8"))


def write_json(path: str | Path, obj: Any, lines: str = "") -> None:
    """Write JSON, whole or not at all.

    lines: the key of a list that gets one line an entry, so that a long file stays short and its
    changes readable. numpy scalars and arrays become numbers and lists, NaN becomes null. Raises
    ValueError for an infinite number and TypeError for what JSON cannot hold, before anything is
    written.
    """
    plain, line = _plain(obj), partial(json.dumps, ensure_ascii=False, allow_nan=False)
    text = line(plain | {lines: []} if lines else plain, indent=1)
    if lines:
        entries = ",\n  ".join(map(line, plain[lines]))
        text = text.replace(f'"{lines}": []', f'"{lines}": [\n  {entries}\n ]')
    write_text(path, text + "\n")


def write_npz(path: str | Path, /, **arrays: np.ndarray) -> None:
    """Write named arrays as a compressed npz, whole or not at all; the same arrays give the same
    bytes.

    Raises ValueError for arrays of Python objects: those would need pickle, and no pickle is ever
    read here.
    """
    with whole(path) as handle:
        np.savez_compressed(handle, allow_pickle=False, **arrays)


def read_npz(path: str | Path) -> dict[str, np.ndarray]:
    """Read the arrays that write_npz wrote, by name.

    Raises FileNotFoundError, or ValueError naming the file where it is cut, empty or no npz.
    """
    with _named(path, "npz"), np.load(path) as file:
        return dict(file)


def read_json(path: str | Path, kinds: Mapping[str, Any] | None = None) -> Any:
    """Read a JSON file; null comes back as None, which `record` takes for NaN.

    kinds: where given, the file must hold an object with these keys of these kinds, see `expect`.
    Raises FileNotFoundError, or ValueError naming the file and the first mistake, with its line and
    column where it is one of JSON.
    """
    with _named(path, "JSON"):
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    if kinds is not None:
        try:
            expect(str(path), found, kinds)
        except ValueError as error:
            raise ValueError(f"{error}; {AGAIN}") from error
    return found


def toml(text: str) -> dict[str, Any]:
    """What a text of TOML says.

    Raises ValueError for what is none, and for a whole number beyond the 64 bits that TOML asks
    for: Python reads one of any length in hex, and then cannot print it. Raises RecursionError
    where it is nested too deep.
    """
    found = tomllib.loads(text)
    left: list[Any] = [found]
    while left:
        value = left.pop()
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ValueError("a whole number has more than 64 bits")
        if isinstance(value, (dict, list)):
            left += value.values() if isinstance(value, dict) else value
    return found


@contextmanager
def _named(path: str | Path, kind: str) -> Iterator[None]:
    """Name a file that cannot be read, and say what to do."""
    try:
        yield
    # no UTF-8, no JSON, too many digits; too deep; cut
    except (ValueError, RecursionError, EOFError, BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is no {kind}: {error}; {AGAIN}") from error


def expect(
    where: str, values: Any, kinds: Mapping[str, Any], optional: Mapping[str, Any] | None = None
) -> None:
    """Refuse what is no mapping with these keys of these kinds.

    kinds: {key: one of KINDS, or a tuple of some}; a bool is no number. optional: keys that may be
    missing, with their kinds; any other key is refused then, and allowed where it is None. Raises
    ValueError that begins with `where`.
    """
    if not isinstance(values, Mapping):
        keys = ", ".join(kinds) or "and values"
        raise ValueError(f"{where}: found {values!r:.60}; expected keys {keys}")
    known = {**kinds, **(optional or {})}
    missing = [key for key in kinds if key not in values]
    unknown = [key for key in values if optional is not None and key not in known]
    if missing or unknown:
        raise ValueError(
            f"{where}: missing {', '.join(missing) or 'nothing'}; "
            f"unknown {', '.join(unknown) or 'nothing'}; expected {', '.join(known)}"
        )
    for key, wanted in known.items():
        of = wanted if isinstance(wanted, tuple) else (wanted,)
        if key in values and not any(_is(values[key], kind) for kind in of):
            words = " or ".join(KINDS[kind][1] for kind in of)
            raise ValueError(f"{where}: {key} is {values[key]!r:.60}; expected {words}")


def _is(value: Any, kind: type | None) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, KINDS[kind][0])


def _plain(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
