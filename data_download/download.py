"""From mirrors, or from what the user has, to one folder with everything unpacked in it."""

import os
import shutil
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from pathlib import Path

import requests
from tqdm import tqdm

from data_download import mirrors, transport
from data_download.folder import LOCK, Folder
from data_download.part import MirrorFailed, Remote, digest
from data_download.registry import Entry, Mirror, Refused
from data_download.transport import Patience
from data_download.unpack import SUFFIXES, Damaged, is_archive, unpack


def download(entry: Entry, folder: Folder, wanted: Iterable[Mirror], patience: Patience) -> None:
    """Fill `folder.unpacked` from the first mirror that can.

    Raises Refused: no network (known within 10 s), no mirror left, or this machine's own trouble;
    what came is kept.
    """
    wanted = tuple(wanted)
    with transport.session() as client:
        if not transport.someone_answers(map(mirrors.address, wanted), client):
            hosts = ", ".join(sorted({mirrors.address(mirror).split("/")[2] for mirror in wanted}))
            raise Refused(
                f"no network: {hosts} cannot be reached. Connect and repeat the command, or bring "
                "the files from elsewhere and give them with --from-local"
            )
        for mirror in wanted:
            try:
                _lay(entry, folder, mirror.name, _files(entry, folder, mirror, client, patience))
                return
            except MirrorFailed as error:
                print(f"{mirror.name}: {error}", file=sys.stderr, flush=True)
    raise Refused(
        f"{entry.name} could not be had from {', '.join(mirror.name for mirror in wanted)}. What "
        "came is kept: repeat the command later, try another --mirror, or give a copy with "
        "--from-local"
    )


def from_local(entry: Entry, folder: Folder, local: Path) -> None:
    """Fill `folder.unpacked` from a file or folder of the user's, which is left as it is; raises
    Refused."""
    if not local.exists():
        raise Refused(
            f"{local} is not there: --from-local takes the archive or folder that you have"
        )
    if local.is_dir():
        found = {
            path.relative_to(local).as_posix(): path
            for path in sorted(local.rglob("*"))
            if path.is_file()
        }
        if not found:
            raise Refused(
                f"{local} holds no file: --from-local takes the archive or folder that you have"
            )
    else:
        found = {local.name: local}
    for name, path in found.items():
        if wanted := (entry.files or {}).get(name, {}).get("sha256"):
            if (has := digest(path)) != wanted:
                raise Refused(
                    f"{path} has the sha256 {has}, registry.toml says {wanted}: another file, or "
                    "damaged"
                )
    if local.is_file():
        folder.note_files({f"local/{local.name}": _facts(local, digest(local), "")})
    # last time it may have been another file
    shutil.rmtree(_work(folder, "local"), ignore_errors=True)
    _lay(entry, folder, "local", found)


def _work(folder: Folder, source: str) -> Path:
    return folder.stage / f"unpacking-{source}"


def _lay(entry: Entry, folder: Folder, source: str, found: dict[str, Path]) -> None:
    """Unpack a data set's archives, each into a folder of its name, and link the other files beside
    them.

    Raises MirrorFailed for a damaged archive among the downloads, which is dropped with its record
    so that the next run gets it anew, and for a data set that cannot be arranged: another mirror's
    may.
    """
    work = _work(folder, source)
    archives = {name for name, path in found.items() if entry.kind == "data" and is_archive(path)}
    targets = {name: work / (_stem(name) if name in archives else name) for name in found}
    _check_apart(targets, archives)
    for name, path in found.items():
        if targets[name].exists():  # of an earlier run: both ways to get there end in a rename
            continue
        try:
            if name in archives:
                print(f"unpacking {name}", flush=True)
                unpack(path, targets[name])
            else:
                _link(path, targets[name])
        except Damaged as error:
            if not path.is_relative_to(folder.files):
                raise
            path.unlink()
            folder.note_files({path.relative_to(folder.files).as_posix(): None})
            raise MirrorFailed(str(error)) from error
    folder.note(mirror=source, date=date.today().isoformat())
    if entry.spec:
        try:
            print(_planned(entry, folder, work, [targets[n] for n in sorted(archives)]), flush=True)
        except ValueError as error:
            nested = _nested(entry, work)
            shutil.rmtree(work)
            raise MirrorFailed(nested or str(error)) from error
    work.rename(folder.unpacked)


def _planned(entry: Entry, folder: Folder, work: Path, parts: list[Path]) -> str:
    """What arranging would do; parts of one tree, such as those of Google Drive, are joined where
    it cannot be done without. Raises ValueError as arrange does."""
    from data_download import arrange  # here, as it loads images and what they need

    try:
        return arrange.arrange(entry.spec, work, folder.tree, dry_run=True)
    except ValueError:
        if not _join(parts):
            raise
        return arrange.arrange(entry.spec, work, folder.tree, dry_run=True)


def _join(parts: list[Path]) -> bool:
    """Move what was unpacked from several archives into the first one's folder, where no path is in
    two of them; says whether it did. One that was stopped goes on."""
    taken: dict[str, Path] = {}
    for part in parts:
        for path in sorted(part.rglob("*")):
            key = unicodedata.normalize("NFC", path.relative_to(part).as_posix()).casefold()
            if path.is_file() and taken.setdefault(key, path) != path:
                return False
    if len(parts) < 2 or not taken:
        return False
    for part in parts[1:]:
        for path in sorted(part.rglob("*")):
            if path.is_file():
                target = parts[0] / path.relative_to(part)
                target.parent.mkdir(parents=True, exist_ok=True)
                path.rename(target)
    for part in parts[1:]:
        shutil.rmtree(part)
    return True


def _nested(entry: Entry, work: Path) -> str:
    """What to do about archives that came out of archives, "" where there are none."""
    inner = sorted(path.name for path in work.rglob("*") if path.is_file() and is_archive(path))
    if not inner:
        return ""
    return (
        f"{entry.name} cannot be arranged, and has {len(inner)} archives in it, first {inner[0]}: "
        "unpack them yourself and give the folder with --from-local; what was downloaded is kept"
    )


def _check_apart(targets: dict[str, Path], archives: set[str]) -> None:
    """Refuse an archive whose folder is another file's or folder's too: one of both would be
    lost."""
    taken = {target for name, target in targets.items() if name not in archives}
    taken |= {parent for target in taken for parent in target.parents}
    homes = [targets[name] for name in archives]
    for name in sorted(archives):
        if targets[name] in taken or homes.count(targets[name]) > 1:
            raise Refused(
                f"{name} would be unpacked into {targets[name].name}, which is there beside it: "
                "unpack it yourself and give the folder with --from-local"
            )


def _stem(name: str) -> str:
    return next(
        (name[: -len(suffix)] for suffix in SUFFIXES if name.lower().endswith(suffix)), name
    )


def _link(source: Path, target: Path) -> None:
    """The same file under another name, at no cost; a copy where the disk has no links or is
    another one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        half = target.with_name(f".{target.name}.copying")
        shutil.copyfile(source, half)
        os.replace(half, target)


def _files(
    entry: Entry, folder: Folder, mirror: Mirror, client: requests.Session, patience: Patience
) -> dict[str, Path]:
    """Name -> path of every file of a mirror, downloaded but for those that an earlier run
    finished."""
    home = folder.files / mirror.name
    known = {
        key.removeprefix(f"{mirror.name}/"): facts
        for key, facts in folder.record().get("files", {}).items()
        if key.startswith(f"{mirror.name}/")
    }
    remotes = [
        _recorded(known, remote) for remote in mirrors.remotes(entry, mirror, client, patience)
    ]
    paths = {remote.name: home / remote.name for remote in remotes}
    if len({name.casefold() for name in paths}) < len(remotes):
        raise MirrorFailed(
            "lists two files of one name, or of names that differ only in their capitals"
        )
    got: dict[str, dict] = {}
    try:
        missing = [
            remote for remote in remotes if not _is_here(remote, paths[remote.name], known, got)
        ]
        _check_room(entry, folder, remotes, missing)
        with _bars(missing) as moved:
            for remote in missing:
                sha256 = transport.get(remote, paths[remote.name], client, patience, moved(remote))
                got[remote.name] = _facts(paths[remote.name], sha256, remote.url)
    finally:
        folder.note_files({f"{mirror.name}/{name}": facts for name, facts in got.items()})
    return paths


def _recorded(known: dict[str, dict], remote: Remote) -> Remote:
    """The remote file with the size and hash of its first download, if there was one."""
    if not (first := known.get(remote.name)):
        return remote
    return replace(
        remote,
        size=first["size"],
        hash=f"sha256:{first['sha256']}",
        told_by=f"as {LOCK} recorded at the first download; if the publisher replaced it, delete "
        "it there",
    )


def _is_here(remote: Remote, path: Path, known: dict[str, dict], got: dict[str, dict]) -> bool:
    """Whether an earlier run finished this file; one that it could not record any more is hashed
    again."""
    if not path.is_file():
        return False
    size = path.stat().st_size
    if remote.name in known and size == remote.size:
        return True
    algorithm, _, wanted = remote.hash.partition(":")
    if remote.size not in (None, size) or (wanted and digest(path, algorithm) != wanted):
        path.unlink()
        return False
    got[remote.name] = _facts(path, digest(path), remote.url)
    return True


def _facts(path: Path, sha256: str, url: str) -> dict:
    return {"size": path.stat().st_size, "sha256": sha256, "url": url}


def _check_room(entry: Entry, folder: Folder, remotes: list[Remote], missing: list[Remote]) -> None:
    """Refuse before the first byte what the disk cannot hold, archives together with what comes out
    of them."""
    need = sum(_room(entry, remote) for remote in missing)
    if len(missing) == len(remotes) and not any(remote.size for remote in remotes):
        need = 2 * entry.size  # the mirror tells no sizes; the registry knows about how much
    free = shutil.disk_usage(folder.root).free
    if need > free:
        raise Refused(
            f"{entry.name} needs about {need:,} bytes, to download and to unpack; {free:,} are "
            f"free in {folder.root}: make room or choose another folder with --to"
        )


def _room(entry: Entry, remote: Remote) -> int:
    suffix = remote.name.lower().endswith(SUFFIXES) or not Path(remote.name).suffix
    return (2 if entry.kind == "data" and suffix else 1) * (remote.size or 0)


@contextmanager
def _bars(missing: list[Remote]) -> Iterator[Callable[[Remote], Callable[[int, int | None], None]]]:
    """Two bars, of everything and of the file at hand; none where nobody watches."""
    sizes = [remote.size for remote in missing]
    look = {"unit": "B", "unit_scale": True, "disable": None}
    with (
        tqdm(
            total=None if None in sizes else sum(sizes), desc=f"{len(missing)} files", **look
        ) as whole,
        tqdm(position=1, leave=False, **look) as one,
    ):

        def of(remote: Remote) -> Callable[[int, int | None], None]:
            one.set_description(remote.name[-40:], refresh=False)
            one.reset(remote.size)

            def moved(have: int, total: int | None) -> None:
                one.total = total
                whole.update(have - one.n)
                one.update(have - one.n)

            return moved

        yield of
