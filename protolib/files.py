"""Files written whole or not at all: every module that leaves something behind leaves it through
here."""

import io
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from numbers import Integral, Real
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import numpy as np

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


def weights_folder() -> Path:
    """The folder for weights that a person brings, and for those on no hub: PROTOLIB_WEIGHTS or
    ~/.cache/protolib."""
    return Path(os.environ.get("PROTOLIB_WEIGHTS") or "~/.cache/protolib").expanduser()


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
    """A file beside `path` that takes its place only when all of it is on disk."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid4().hex}.part")
    try:
        with open(part, "xb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


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


def read_json(path: str | Path, kinds: Mapping[str, Any] | None = None) -> Any:
    """Read a JSON file; null comes back as None, which `record` takes for NaN.

    kinds: where given, the file must hold an object with these keys of these kinds, see `expect`.
    Raises FileNotFoundError, or ValueError naming the file and the first mistake, with its line and
    column where it is one of JSON.
    """
    again = "delete it and run the step that writes it again"
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, too deep, too many digits
        raise ValueError(f"{path} is no JSON: {error}; {again}") from error
    if kinds is not None:
        try:
            expect(str(path), found, kinds)
        except ValueError as error:
            raise ValueError(f"{error}; {again}") from error
    return found


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
