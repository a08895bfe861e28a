"""Archives from strangers: unpacked whole or not at all; refused before anything is written outside
their folder."""

import bz2
import gzip
import io
import lzma
import re
import shutil
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Self

from data_download.part import CHUNK
from data_download.registry import Refused, inside

SUFFIXES = (".zip", ".tar", ".tgz", ".tar.gz", ".tbz2", ".tar.bz2", ".txz", ".tar.xz")
OTHERS = {
    b"Rar!\x1a\x07": "a RAR",
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip",
    b"\x28\xb5\x2f\xfd": "a Zstandard",
    b"\x04\x22\x4d\x18": "an LZ4",
    b"LZIP": "an lzip",
    b"\x1f\x9d": "a compress",
    b"MSCF": "a cabinet",
    b"PK\x07\x08": "a part of a zip",
}
OTHER_SUFFIXES = (".rar", ".7z", ".zst", ".tzst", ".lz4", ".lz", ".cab")
# one of several files that are one archive together: x.zip.001, x.z01, x.part1.rar, x.r00
VOLUME = re.compile(
    r"\.(?:zip|7z|rar|tar|t?gz|t?xz|zst)\.\d{2,4}$|\.[zr]\d{2,3}$|\.part\d+\.rar$", re.I
)
DIRECTORY = (("<H", 4), ("<I", 12))  # where a zip's end says its number, and its directory's size
READ = {0: "stored", 8: "deflate", 12: "bzip2", 14: "lzma"}  # what zipfile can undo
PACKED = {9: "Deflate64", 93: "Zstandard", 95: "xz", 97: "WavPack", 98: "PPMd", 99: "AES"}
ELSEWHERE = "unpack it yourself (7-Zip, or your system) and give the folder with --from-local"
OPENERS: dict[bytes, Callable] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}
BY_HAND = "if you trust it, unpack it yourself and give the folder with --from-local"


class Damaged(Refused):
    """The archive is not whole; another download may be."""


@dataclass(frozen=True)
class Limits:
    """What no honest archive of these data sets comes near; bytes, and bytes out per byte in once
    `floor` is passed.

    The ratio is high because label matrices written as text pack well; a bomb of zeros comes to
    1000.
    """

    entries: int = 200_000
    total: int = 200 << 30
    ratio: int = 500
    floor: int = 100 << 20
    header: int = 4 << 20  # bytes of a tar between one file and the next: names, not data


LIMITS = Limits()


def is_archive(path: Path) -> bool:
    """Whether this is a zip or tar to unpack: by its suffix or, where it has none, by its first
    bytes."""
    name = path.name.lower()
    if name.endswith((*SUFFIXES, *OTHER_SUFFIXES)) or VOLUME.search(name):
        return True
    head = _head(path)
    return not path.suffix and (
        head[:4] == b"PK\x03\x04"
        or head[257:262] == b"ustar"
        or any(head.startswith(magic) for magic in (*OPENERS, *OTHERS))
    )


def unpack(archive: Path, to: Path, limits: Limits = LIMITS) -> int:
    """Unpack a zip or tar (plain, gz, bz2, xz) into the new folder `to`; returns the number of
    files.

    It is built beside `to` and renamed when complete. Raises Refused for paths that lead out,
    links, devices, encrypted or colliding entries and more than the limits allow; Damaged for an
    archive that is not whole. Both leave nothing.
    """
    temporary = to.with_name(f".{to.name}.unpacking")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        head = _head(archive)
        if VOLUME.search(archive.name):
            raise Refused(
                f"{archive.name} is one of several files that are one archive: join or {ELSEWHERE}"
            )
        for magic, kind in OTHERS.items():
            if head.startswith(magic):
                raise Refused(
                    f"{archive.name} is {kind} archive, which Python cannot open: {ELSEWHERE}"
                )
        gate = _Gate(archive, temporary, limits)
        members = _zip(archive, gate) if head.startswith(b"PK") else _tar(archive, gate, head)
        count = sum(1 for _ in members)
        temporary.rename(to)
        return count
    except (
        zipfile.BadZipFile,
        tarfile.TarError,
        EOFError,
        zlib.error,
        lzma.LZMAError,
        struct.error,
        # whatever a broken header makes zipfile and tarfile do: a name that is no UTF-8, or empty
        ArithmeticError,
        LookupError,
        RuntimeError,
        ValueError,
    ) as error:
        raise Damaged(f"{archive.name} is damaged or no archive ({error}): get it again") from error
    except OSError as error:
        # bz2 says so with a bare OSError
        if isinstance(error, gzip.BadGzipFile) or not error.errno:
            raise Damaged(
                f"{archive.name} is damaged or no archive ({error}): get it again"
            ) from error
        raise Refused(
            f"{archive.name} cannot be unpacked into {to.parent}: {error.strerror}"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class _Gate:
    """Every entry passes here before it is written: its name, its kind, and what all of them
    together come to."""

    def __init__(self, archive: Path, folder: Path, limits: Limits):
        self.archive, self.folder, self.limits = archive, folder, limits
        self.count = self.total = 0
        self._packed = archive.stat().st_size
        self._names: set[str] = set()

    def refuse(self, why: str) -> Refused:
        return Refused(f"{self.archive.name} is not unpacked: {why}; {BY_HAND}")

    def check(self, name: str, size: int, regular: bool, directory: bool) -> Path:
        """Where the entry goes; raises Refused if it may not."""
        if directory and PurePosixPath(name) == PurePosixPath("."):  # tar's "./", the folder itself
            return self.folder
        try:
            path = self.folder / inside(name)
        except Refused as error:
            raise self.refuse(str(error)) from error
        self.count += 1
        if self.count > self.limits.entries:
            raise self.refuse(f"it has more than {self.limits.entries:,} entries")
        if not regular and not directory:
            raise self.refuse(f"{name!r} is neither a file nor a folder (a link or a device)")
        self._grow(size)
        folded = unicodedata.normalize("NFC", str(path)).casefold()
        if not directory and folded in self._names:
            raise self.refuse(
                f"{name!r} is in it twice, or once more in other letters, which not every disk can "
                "hold"
            )
        self._names.add(folded)
        return path

    def _grow(self, size: int) -> None:
        self.total += size
        limits = self.limits
        if self.total > limits.total:
            raise self.refuse(f"it holds more than {limits.total:,} bytes")
        if self.total > limits.floor and self.total > limits.ratio * self._packed:
            raise self.refuse(f"it swells to more than {limits.ratio} times its size, as bombs do")

    def room(self, size: int) -> None:
        """Raises Refused if the disk cannot take so many bytes."""
        if size > (free := shutil.disk_usage(self.folder).free):
            raise Refused(
                f"{self.archive.name} needs {size:,} bytes when unpacked, {free:,} are free: make "
                "room or choose another folder with --to"
            )

    def write(self, source: IO[bytes], path: Path, size: int) -> None:
        """Copy `size` bytes, not one more than the entry announced."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "xb") as target:
            left = size
            while chunk := source.read(min(CHUNK, left + 1)):
                left -= len(chunk)
                if left < 0:
                    raise self.refuse(f"{path.name!r} holds more bytes than it announces")
                target.write(chunk)
        if left:
            raise Damaged(
                f"{self.archive.name} is damaged: {left:,} bytes of {path.name!r} are missing; get "
                "it again"
            )


def _zip(archive: Path, gate: _Gate) -> Iterator[Path]:
    """Every entry is checked before the first one is written."""
    if (count := _entries(archive)) > gate.limits.entries:
        raise gate.refuse(f"it has {count:,} entries, over {gate.limits.entries:,}")
    with zipfile.ZipFile(archive) as file:
        plan = []
        for info in file.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if info.flag_bits & 1:
                raise gate.refuse("it is encrypted")
            if info.compress_type not in READ:
                method = PACKED.get(info.compress_type, f"method {info.compress_type}")
                raise Refused(
                    f"{archive.name} is packed by {method}, which Python cannot open: {ELSEWHERE}"
                )
            # tools of Windows write folders so
            folder = info.is_dir() or (info.filename.endswith("\\") and not info.file_size)
            path = gate.check(info.filename, info.file_size, kind in (0, stat.S_IFREG), folder)
            plan.append((info, path, folder))
        gate.room(gate.total)
        for info, path, folder in plan:
            if folder:
                path.mkdir(parents=True, exist_ok=True)
                continue
            with file.open(info) as source:
                gate.write(source, path, info.file_size)
            yield path


def _entries(archive: Path) -> int:
    """How many entries the directory of a zip lists, counted before zipfile builds an object for
    each."""
    with open(archive, "rb") as handle:
        size = handle.seek(0, io.SEEK_END)
        start = handle.seek(max(0, size - 65_557 - 76))
        tail = handle.read()
        end = tail.rfind(b"PK\x05\x06")
        if end < 0 or len(tail) < end + 22:
            raise zipfile.BadZipFile("its directory is missing")
        disk, length = (struct.unpack_from(form, tail, end + at)[0] for form, at in DIRECTORY)
        if 0 < disk < 0xFFFF:
            raise Refused(
                f"{archive.name} is the last of {disk + 1} files that are one archive: join or "
                f"{ELSEWHERE}"
            )
        if (
            end >= 76
            and tail[end - 20 : end - 16] + tail[end - 76 : end - 72] == b"PK\x06\x07PK\x06\x06"
        ):
            end -= 76  # a large zip keeps the numbers in a record before this one
            length = struct.unpack_from("<Q", tail, end + 40)[0]
        handle.seek(max(0, start + end - length))
        count, kept = 0, b""
        while length > 0 and (chunk := handle.read(min(CHUNK, length))):
            length -= len(chunk)
            count += (kept + chunk).count(b"PK\x01\x02")
            kept = chunk[-3:]
        return count


def _tar(archive: Path, gate: _Gate, head: bytes) -> Iterator[Path]:
    """One pass, as nothing tells what a packed tar holds before it is read; `unpack` drops all if
    one is refused."""
    opener = next((opener for magic, opener in OPENERS.items() if head.startswith(magic)), open)
    with opener(archive, "rb") as plain:
        meter = _Meter(plain, gate)
        with tarfile.open(fileobj=meter, mode="r|", bufsize=CHUNK, tarinfo=_Info) as file:
            while (info := file.next()) is not None:
                path = gate.check(
                    info.name, info.size, info.isreg() and not info.issparse(), info.isdir()
                )
                meter.allow(info.size)
                # tarfile keeps every header it has read, in a list that its types do not name
                file.members.clear()  # type: ignore[attr-defined]
                if info.isdir():
                    path.mkdir(parents=True, exist_ok=True)
                    continue
                gate.room(info.size)
                gate.write(file.extractfile(info), path, info.size)
                meter.allow(0)
                yield path


class _Info(tarfile.TarInfo):
    """A header of a tar that ends as tars do, with zeros: tarfile takes a cut for an end."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> Self:
        """The next header. Raises tarfile.ReadError where the file was cut or goes on as none."""
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"it ends without its end: {error}") from error


class _Meter(io.RawIOBase):
    """Lets a tar read no more than the entry at hand announces and a header's worth: headers, too,
    can be bombs."""

    def __init__(self, source: IO[bytes], gate: _Gate):
        super().__init__()
        self._source, self._gate = source, gate
        self._left = 0
        self.allow(0)

    def allow(self, size: int) -> None:
        self._left = size + self._gate.limits.header + 2 * CHUNK

    def read(self, size: int = -1) -> bytes:
        data = self._source.read(min(size, CHUNK) if size >= 0 else CHUNK)
        self._left -= len(data)
        if self._left < 0:
            raise self._gate.refuse("between two entries it holds more than names")
        return data


def _head(path: Path) -> bytes:
    with open(path, "rb") as handle:
        return handle.read(512)
