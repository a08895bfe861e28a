"""A file on its way: the bytes that are here, their hash, and a note that says what they are bytes
of."""

import hashlib
import json
import os
import queue
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from data_download.registry import Refused

CHUNK = 1 << 20  # bytes per read: with 64 KiB the interpreter, not the wire, sets the pace
AHEAD = 4  # chunks that may wait for the hash: memory stays flat, and they are still in the cache


class MirrorFailed(Refused):
    """One place cannot give what it should; another may."""


class Again(Exception):
    """The attempt broke off in a way that the next one need not; wait: seconds that the server asks
    for."""

    def __init__(self, reason: str, wait: float = 0.0):
        super().__init__(reason)
        self.wait = wait


@dataclass(frozen=True)
class Remote:
    """A file as a mirror announces it."""

    name: str  # relative, forward slashes
    url: str
    size: int | None = None  # bytes; None = not told
    hash: str = ""  # "sha256:hex" or "md5:hex"; "" = not told
    told_by: str = ""  # who says size and hash, for the message when they differ
    onward: Callable[[str], str] | None = (
        None  # web page sent in place of the file -> URL to try, or MirrorFailed
    )


def digest(path: Path, algorithm: str = "sha256") -> str:
    """The hash (hex) of a file on the disk."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, algorithm).hexdigest()


class Digest:
    """Hashes of what streams by, computed in a thread beside it: hashlib lets the other core work
    meanwhile."""

    def __init__(self, algorithms: Iterable[str]):
        self._hashes = {name: hashlib.new(name) for name in algorithms}
        self._chunks: queue.Queue[bytes | None] = queue.Queue(AHEAD)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while (chunk := self._chunks.get()) is not None:
            for known in self._hashes.values():
                known.update(chunk)

    def update(self, chunk: bytes) -> None:
        """Take the next bytes; waits when the hash is AHEAD chunks behind."""
        self._chunks.put(chunk)

    def hex(self, algorithm: str) -> str:
        """The hash of all bytes so far; ends the thread, so nothing can follow."""
        self.close()
        return self._hashes[algorithm].hexdigest()

    def close(self) -> None:
        """End the thread when it has seen everything."""
        if self._thread.is_alive():
            self._chunks.put(None)
            self._thread.join()


class Part:
    """`path`.part and its note `path`.part.json; bytes of an earlier run are kept if they are known
    to be this file's.

    They are if the URL is the same and the server's ETag or date, or a hash, vouches for them.
    Raises OSError.
    """

    def __init__(self, path: Path, remote: Remote):
        self.path, self.remote = path, remote
        self._part, self._note = (
            path.with_name(path.name + end) for end in (".part", ".part.json")
        )
        self._algorithm, _, self._wanted = remote.hash.partition(":")
        self._known = self._read_note()
        self._file = open(self._part, "ab")
        self.size = self.most = self._file.tell()
        self._digest = Digest({"sha256", self._algorithm or "sha256"})
        self.resumed = self.size > 0
        if self._known.get("url") == remote.url and (self._known.get("validator") or remote.hash):
            with open(self._part, "rb") as handle:
                while chunk := handle.read(CHUNK):
                    self._digest.update(chunk)
        else:
            self.restart()

    def _read_note(self) -> dict:
        try:
            return json.loads(self._note.read_text("utf-8"))
        except (OSError, ValueError):
            return {}  # no note: nothing tells what the bytes are, so they count for nothing

    def headers(self) -> dict[str, str]:
        """What a request needs in order to bring only the bytes that are missing, of the same
        version of the file."""
        if not self.size:
            return {}
        validator = self._known.get("validator")
        return {"Range": f"bytes={self.size}-"} | ({"If-Range": validator} if validator else {})

    def begin(self, status: int, headers: Mapping[str, str]) -> int | None:
        """Make the part fit a response of 200 or 206, note what it is of, and return the whole
        size, None if not told.

        Raises Again for another range than asked, MirrorFailed for another size than announced or
        none that could betray a cut, Refused where the disk is too small: all before a byte is
        written.
        """
        if status == 206:
            total = self._total_of(headers)
        else:
            if self.size:
                self.restart()  # the server knows no ranges, or has a new version
            length = headers.get("Content-Length", "")
            total = int(length) if length.isdigit() else None
        name, wanted = self.remote.name, self.remote.size
        if headers.get("Content-Encoding", "identity") != "identity":
            raise MirrorFailed(
                f"{name} comes packed as {headers['Content-Encoding']}, though plain was asked for"
            )
        if None not in (total, wanted) and total != wanted:
            raise MirrorFailed(
                f"{name} has {total:,} bytes at {self.remote.url}, expected {wanted:,}"
                f"{self._teller()}; nothing of it is saved"
            )
        if (
            total is None
            and wanted is None
            and not self._wanted
            and headers.get("Transfer-Encoding") != "chunked"
        ):
            raise MirrorFailed(
                f"{self.remote.url} does not say how long {name} is, so a cut could not be noticed"
            )
        total = wanted if total is None else total
        free = shutil.disk_usage(self.path.parent).free
        if total is not None and free < total - self.size:
            raise Refused(
                f"{name} needs {total - self.size:,} more bytes, {free:,} are free in "
                f"{self.path.parent}: make room or choose another folder with --to; what is here "
                "is kept"
            )
        known = {"url": self.remote.url, "total": total, "validator": _validator(headers)}
        if known != self._known:
            self._known = known
            # a torn note counts as none, so it needs no care
            self._note.write_text(json.dumps(known), "utf-8")
        return total

    def _total_of(self, headers: Mapping[str, str]) -> int:
        """The whole size that a 206 tells, if its range follows on what is here and is of the same
        version."""
        content_range = headers.get("Content-Range", "")
        match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", content_range)
        if not match or int(match[1]) != self.size:
            self.restart()
            raise Again(f"the server sent the range {content_range!r}, not the one asked for")
        total = int(match[2]) + 1 if match[3] == "*" else int(match[3])
        before = self._known.get("total"), self._known.get("validator")
        # some servers ignore If-Range
        if before[0] not in (None, total) or _validator(headers) != before[1]:
            self.restart()
            raise Again("the server's file is not the one of before")
        return total

    def is_all(self, content_range: str) -> bool:
        """Whether a refusal of the range (416, "bytes */N") says that all N bytes are here."""
        return content_range == f"bytes */{self.size}"

    def write(self, chunk: bytes) -> None:
        """Append bytes, on their way to the disk when this returns."""
        self._file.write(chunk)
        self._file.flush()
        self._digest.update(chunk)
        self.size += len(chunk)
        self.most = max(self.most, self.size)

    def restart(self) -> None:
        """Drop the bytes and begin anew."""
        self._digest.close()
        self._digest = Digest({"sha256", self._algorithm or "sha256"})
        self._file.truncate(0)
        self.size, self.resumed = 0, False

    def wrong(self) -> str:
        """What is wrong with the finished bytes, "" if nothing; wrong ones are dropped."""
        remote, found = self.remote, ""
        if remote.size not in (None, self.size):
            found = f"{remote.name} has {self.size:,} bytes, expected {remote.size:,}"
        elif self._wanted and (has := self._digest.hex(self._algorithm)) != self._wanted:
            found = f"{remote.name} has the {self._algorithm} {has}, expected {self._wanted}"
        if not found:
            return ""
        self.restart()
        return found + self._teller()

    def _teller(self) -> str:
        return f" ({self.remote.told_by})" if self.remote.told_by else ""

    def finish(self) -> str:
        """Give the file its name, once all of it is on the disk; returns its SHA-256 (hex)."""
        found = self._digest.hex("sha256")
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._part, self.path)
        self._note.unlink(missing_ok=True)
        return found

    def close(self) -> None:
        """Let go of file and thread; an empty part leaves nothing behind."""
        self._digest.close()
        self._file.close()
        if not self.size:
            self._part.unlink(missing_ok=True)
            self._note.unlink(missing_ok=True)


def _validator(headers: Mapping[str, str]) -> str:
    """What If-Range takes: a strong ETag, or else the date."""
    etag = headers.get("ETag", "")
    return etag if etag.startswith('"') else headers.get("Last-Modified", "")
