"""Fuzzing: whatever stands in what strangers bring, the kit answers with an error of its own, or
reads it.

    .venv/bin/python tests/fuzz.py                       # or: make fuzz; a million cases
    .venv/bin/python tests/fuzz.py --cases 1000 --seed 7 toml results

Cases are valid inputs with a few faults in their bytes or in their structure, drawn from a seed.
A finding is any other exception, a message that does not name the file, or a number that overflows
in silence; it is printed with what made it, and the status is 1. The first cases of each kind run
in `make test`.
"""

import argparse
import io
import json
import random
import shutil
import tarfile
import tempfile
import time
import tomllib
import traceback
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import fake_results
import test_results
from PIL import Image

from data_download import unpack
from data_download.folder import Folder
from data_download.registry import OWN, Refused, inside
from data_download.registry import load as registry
from protolib import cams, files, results
from protolib.data import regions, specs
from protolib.data.pictures import Unfit
from protolib.own import new
from protolib.study import ledger

CASES = 1_000_000
OURS = (ValueError, Unfit, Refused, unpack.Damaged)  # no subclass that another library raises
NAMES = ["a.png", "x+0[1101].png", "TCGA-A1-A0SK_x0_y0[1 0 0 1].png", "ä [01] (2)[0 1].PNG.png"]
PIECES = "[]01 ,;.\\/:-+*?\0\n\r\t\x1b\u202e\ud800é\u0301٣²{}()\"'#=_eE"
VALUES = [
    *(None, True, False, 0, 1, -1, 3, 255, 256, 10**9, 10**400, 0.5, -0.0, 1e308, "", "a", "1101"),
    *(float("nan"), float("inf"), "x" * 300, "../..", "a\0b", "\x1b[31m", "(", "a{99999999999}"),
    *([], {}, [[]], [None], ["a", "a"], {"a": {}}, {"": 1}, [0, 0, 0], [[0, 0, 0]] * 2, [1e400]),
]


class Kind(NamedTuple):
    """One kind of input: its share of the cases, what draws one, and what reads it."""

    share: float
    draw: Callable[[random.Random], Any]
    read: Callable[[Any], object]
    file: str = ""  # where it stands; an error names one of the parts of this path


def text(rng: random.Random) -> str:
    """A name with a few pieces put in, taken out or said twice."""
    name = list(rng.choice(NAMES))
    for _ in range(rng.randrange(6)):
        at = rng.randrange(len(name) + 1)
        name[at : at + rng.randrange(4)] = rng.choices(PIECES, k=rng.randrange(4))
    return "".join(name) * rng.choice((1, 1, 1, 1, 50))


def smashed(data: bytes, rng: random.Random) -> bytes:
    """Bytes with some of them changed, cut, said twice or replaced by what often breaks."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        at, length = rng.randrange(len(found) + 1), rng.choice((1, 1, 2, 4, 30))
        match rng.randrange(6):
            case 0:
                found[at : at + length] = rng.randbytes(length)
            case 1:
                del found[at : at + length]
            case 2:
                found[at:at] = found[at : at + length] * rng.choice((1, 2, 200))
            case 3:
                found = found[:at]
            case 4:
                found[at : at + 1] = rng.choice((b"\0", b"\xff", b"[", b"{", b'"', b"-", b"9"))
            case 5:
                many = (b"[" * 5000, b"9" * 5000, b"\xff\xfe", b"\xef\xbb\xbf", b"nan", b"(" * 300)
                found[at:at] = rng.choice((*many, b"0x" + b"f" * 5000))
    return bytes(found)


def bent(value: Any, rng: random.Random) -> Any:
    """A structure with one part replaced, dropped, said twice or renamed."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.15:
        return rng.choice(VALUES)
    if isinstance(value, list):
        at = rng.randrange(len(value))
        part = [[], [value[at]] * 2, [bent(value[at], rng)]][min(rng.randrange(6), 2)]
        return [*value[:at], *part, *value[at + 1 :]]
    key, made = rng.choice(list(value)), dict(value)
    match rng.randrange(8):
        case 0:
            del made[key]
        case 1:
            made[rng.choice(("", "x", "٣", key + " "))] = made.pop(key)
        case _:
            made[key] = bent(value[key], rng)
    return made


def toml(value: Any) -> str:
    """A value as TOML has it, tables in one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value).replace("Infinity", "inf").replace("NaN", "nan")


def drawn(
    structure: Any, written: Callable[[Any], str] = json.dumps
) -> Callable[[random.Random], bytes]:
    """What draws a file of a format: a bent structure, or the smashed bytes of the right one."""
    whole = written(structure).encode()

    def draw(rng: random.Random) -> bytes:
        if rng.random() < 0.4:
            return smashed(whole, rng)
        made = structure
        for _ in range(rng.choice((1, 1, 2, 3))):
            made = bent(made, rng)
        return written(made).encode("utf-8", "surrogatepass")

    return draw


def table(value: Any) -> str:
    """A whole TOML file."""
    if not isinstance(value, dict):
        return toml(value)
    return "".join(f"{json.dumps(key)} = {toml(part)}\n" for key, part in value.items())


def archives() -> list[bytes]:
    """A zip and three tars of two small files in a folder."""
    found = []
    for kind in ("zip", "w", "w:gz", "w:xz"):
        with io.BytesIO() as file:
            if kind == "zip":
                with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as made:
                    made.writestr("a/x[10].png", b"x" * 90)
                    made.writestr("a/ü.txt", b"1 2\n")
            else:
                with tarfile.open(fileobj=file, mode=kind) as tar:
                    for name in ("a/x[10].png", "a/ü.txt"):
                        info = tarfile.TarInfo(name)
                        info.size = 90
                        tar.addfile(info, io.BytesIO(b"x" * 90))
            found.append(file.getvalue())
    return found


def kinds(folder: Path) -> dict[str, Kind]:
    """All kinds of input; what reads them finds them in a folder."""
    spec, packed, out = specs.SPECS["bcss"], archives(), folder / "out"
    Image.new("RGB", (16, 16)).save(folder / "r.png")
    matrix = "\n".join(" ".join(str(x * y % 6) for x in range(16)) for y in range(16)).encode()
    patches = SimpleNamespace(
        spec=SimpleNamespace(name="phantom"), split="train", fingerprint="f", ids=["a", "b"]
    )
    ledgers = folder / "ledger"
    ledgers.mkdir()
    result = fake_results.result(seeds=(0, 1), slides=2)
    files.write_json(folder / "r.json", result | {"runs": result["runs"][:4]})
    result = files.read_json(folder / "r.json")
    lock = {"bcss": {"complete": True, "contents": ["r.png"], "files": {"r.png": {"size": 3}}}}
    known = dict(list(tomllib.loads(OWN.read_text("utf-8")).items())[:2])
    limits = unpack.Limits(entries=50, total=10**6, floor=10**5)

    def labels(name: str) -> None:
        specs.parse_label(name, 4)
        specs.other_spelling(name, spec)

    def unpacked() -> None:
        shutil.rmtree(out, ignore_errors=True)
        unpack.unpack(folder / "some.zip", out, limits)

    def recorded() -> None:
        held = files.read_json(folder / "results.json")
        if isinstance(held, dict):  # as record(**held) wants
            results.record(**held)

    def noted() -> None:
        of = Folder(folder, "bcss")
        assert of.complete in (True, False) and isinstance(of.foreign(), list)

    def of_file(share: float, name: str, draw: Callable, read: Callable[[], object]) -> Kind:
        def of(data: bytes) -> None:
            (folder / name).write_bytes(data)
            read()

        return Kind(share, draw, of, f"{folder.name}/{name}")

    manifest, cut = cams.manifest_of(patches) | {"key": "k"}, {"dataset": "bcss", "key": "k"}
    of_toml, of_record = tomllib.loads(new.toml(specs.SPECS["luad-histoseg"])), test_results.run()
    return {
        "labels": Kind(0.45, text, labels),
        "names": Kind(0.27, text, inside),
        "toml": of_file(
            0.08, "dataset.toml", drawn(of_toml, table), lambda: specs.spec_of("custom", folder)
        ),
        "registry": of_file(
            0.02, "sets.toml", drawn(known, table), lambda: registry(folder / "sets.toml")
        ),
        "matrix": of_file(
            0.05,
            "r.txt",
            lambda rng: smashed(matrix, rng),
            lambda: regions.read_region(folder / "r.png", folder / "r.txt", spec),
        ),
        "manifest": of_file(
            0.04, "manifest.json", drawn(manifest), lambda: cams.PseudoMasks(folder, patches)
        ),
        "cut": of_file(
            0.01,
            "regions.json",
            drawn(cut),
            lambda: specs.check_layout(specs.SPECS["gcss"], folder),
        ),
        "lock": of_file(0.02, "protolib-lock.json", drawn(lock), noted),
        # a record does not know its file
        "results": of_file(0.04, "results.json", drawn(of_record), recorded)._replace(file=""),
        "ledger": of_file(0.01, "ledger/x.json", drawn(result), lambda: ledger.read(ledgers)),
        "archives": of_file(
            0.01, "some.zip", lambda rng: smashed(rng.choice(packed), rng), unpacked
        ),
    }


class Found(NamedTuple):
    """What came of the cases of a kind: how many were refused, and the findings, one of a sort."""

    refused: int
    findings: dict[str, str]  # where it was raised: what it was, and what made it


def fuzz(kind: Kind, cases: int, seed: object) -> Found:
    """Read so many cases; each is drawn from the seed and its number alone."""
    refused, findings = 0, {}
    for i in range(cases):
        case = kind.draw(random.Random(f"{seed}/{i}"))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                warnings.simplefilter("error", RuntimeWarning)  # a number that overflows
                kind.read(case)
        except Exception as error:
            refused += 1
            named = not kind.file or any(part in str(error) for part in kind.file.split("/"))
            if type(error) not in OURS or not named:
                last = traceback.extract_tb(error.__traceback__)[-1]
                where = f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}"
                findings.setdefault(where, f"{error!s:.200} of case {i}: {case[-300:]!r}")
    return Found(refused, findings)


def main(words: list[str] | None = None) -> int:
    """Read all cases and print what was found; 1 for a finding."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("kinds", nargs="*", help="some kinds only")
    parser.add_argument("--cases", type=int, default=CASES, help="of all kinds together")
    parser.add_argument("--seed", default="0")
    given, bad = parser.parse_args(words), 0
    with tempfile.TemporaryDirectory() as folder:
        for name, kind in kinds(Path(folder)).items():
            if given.kinds and name not in given.kinds:
                continue
            began, cases = time.monotonic(), max(1, round(kind.share * given.cases))
            refused, findings = fuzz(kind, cases, f"{given.seed}/{name}")
            print(
                f"{name}: {cases:,} cases, {refused:,} refused, {len(findings)} findings, "
                f"{time.monotonic() - began:.0f} s",
                flush=True,
            )
            for where, what in findings.items():
                print(f"  {where}: {what}")
            bad += len(findings)
    return min(bad, 1)


if __name__ == "__main__":
    raise SystemExit(main())
