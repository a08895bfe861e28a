"""The folder that a download ends in: its lock against others, its record, and the steps on the way
there.

FOLDER/protolib-lock.json          what came from where, with every file's size and SHA-256;
                                   enforced ever after
FOLDER/.download/NAME/files/M/     what mirror M gave; archives stay, so nothing is downloaded twice
FOLDER/.download/NAME/unpacked/    all of it unpacked; there only when complete
FOLDER/.download/NAME/tree/        being arranged
FOLDER/.download/NAME/ready/       complete; its contents are renamed into FOLDER
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from data_download.registry import Refused
from protolib import files

LOCK = "protolib-lock.json"
STAGE = ".download"
HELD = {"complete": bool, "contents": list, "files": dict}  # of an entry, where it is recorded


class Folder:
    """Where entry `name` is brought to under `root`; the record of other entries in the same folder
    is left alone."""

    def __init__(self, root: Path, name: str):
        self.root, self.name = root, name
        self.stage = root / STAGE / name
        self.files, self.unpacked, self.tree, self.ready = (
            self.stage / step for step in ("files", "unpacked", "tree", "ready")
        )

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep others out; the system lets go of the lock when its holder dies, so none is ever
        stale.

        Raises Refused, naming the process that holds it, or why the folder cannot be written.
        """
        holder = self.root / STAGE / "holder"
        try:
            holder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.root / STAGE / "lock", timeout=0):
                holder.write_text(f"{os.getpid()}\n")
                # of a run that was killed as it wrote the record
                for litter in self.root.glob(f".{LOCK}.*.part"):
                    litter.unlink()
                yield
                holder.unlink(missing_ok=True)
        except Timeout as error:
            who = holder.read_text().strip() if holder.is_file() else "?"
            raise Refused(
                f"process {who} is downloading into {self.root}: wait for it, or end it"
            ) from error
        except OSError as error:
            raise Refused(
                f"{error.filename or self.root} cannot be written: {error.strerror}; choose "
                "another folder with --to"
            ) from error

    def record(self) -> dict[str, Any]:
        """What is recorded of this entry, {} if nothing; raises Refused if the record cannot be
        read."""
        return self._everything().get(self.name, {})

    def _everything(self) -> dict[str, dict[str, Any]]:
        """What is recorded of all entries, by their names; raises Refused as `record` does."""
        try:
            found = files.read_json(self.root / LOCK, {})
            for name, held in found.items():
                files.expect(name, held, {key: kind for key, kind in HELD.items() if key in held})
                if not all(isinstance(part, str) for part in held.get("contents", ())):
                    raise ValueError(f"{name}: contents is no list of names")
            return found
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError) as error:
            raise Refused(
                f"{self.root / LOCK} cannot be read ({error}): put its backup there, or delete it "
                "and trust the next download as the first"
            ) from error

    def note(self, **changes: Any) -> None:
        """Write into the record, whole or not at all."""
        everything = self._everything()
        everything[self.name] = everything.get(self.name, {}) | changes
        files.write_json(self.root / LOCK, everything)

    def note_files(self, changes: dict[str, dict | None]) -> None:
        """Write sizes and hashes of files into the record; None: forget that file."""
        if changes:
            known = self.record().get("files", {}) | changes
            self.note(files={name: facts for name, facts in known.items() if facts})

    @property
    def complete(self) -> bool:
        """Whether all that was ever put into the folder for this entry is still there."""
        record = self.record()
        return bool(record.get("complete")) and all(
            os.path.exists(self.root / name) for name in record.get("contents", ())
        )

    def foreign(self) -> list[str]:
        """What lies in the folder and is not of any download here."""
        try:
            everything = self._everything()
        except Refused:
            everything = {}
        ours = {STAGE, LOCK}.union(*(known.get("contents", ()) for known in everything.values()))
        there = {path.name for path in self.root.iterdir()} if self.root.is_dir() else set()
        # half a record, of a kill
        return sorted(name for name in there - ours if not name.startswith(f".{LOCK}."))

    def forget(self) -> None:
        """Go back to what was downloaded: the steps after it are made anew."""
        for step in (self.unpacked, self.tree, self.ready):
            shutil.rmtree(step, ignore_errors=True)
        self.note(complete=False)

    def publish(self) -> None:
        """Give everything in `ready` its final name, one rename each; goes on where an earlier run
        was killed.

        Raises Refused, before the first rename, if a name is taken.
        """
        contents = sorted(path.name for path in self.ready.iterdir())
        if taken := [
            name for name in contents if (self.root / name).exists() or name in (STAGE, LOCK)
        ]:
            raise Refused(
                f"{', '.join(taken[:5])} in {self.root} is in the way: move it, then run this "
                "again; all that was downloaded is kept"
            )
        if contents:
            self.note(
                contents=sorted({*self.record().get("contents", ()), *contents}), complete=False
            )
        for name in contents:
            os.rename(self.ready / name, self.root / name)
        self.note(complete=True)

    def tidy(self, keep: Callable[[Path], bool]) -> int:
        """Remove all steps on the way but those downloaded files that `keep` says yes to; returns
        their bytes.

        `ready` goes last: while it is there, something may be left to tidy.
        """
        for step in set(self.stage.iterdir()) - {self.files, self.ready}:
            shutil.rmtree(step)
        kept = 0
        for path in sorted(self.files.rglob("*"), reverse=True):
            if path.is_dir():
                if not any(path.iterdir()):
                    path.rmdir()
            elif keep(path):
                kept += path.stat().st_size
            else:
                path.unlink()
        shutil.rmtree(self.ready)
        return kept
