"""What the command does: list, get, verify, status."""

import sys
from pathlib import Path

from data_download.download import download, from_local
from data_download.folder import Folder
from data_download.part import digest
from data_download.registry import Entry, Mirror, Refused
from data_download.transport import PATIENT, Patience
from data_download.unpack import is_archive
from protolib.files import weights_folder

DATA = Path("data")  # data sets, each in a folder of its name


def place(entry: Entry, to: Path | None = None) -> Path:
    """The folder an entry ends in: `to`, or data/NAME; weights go where protolib looks for them,
    PROTOLIB_WEIGHTS."""
    if to is not None:
        return to
    return weights_folder() if entry.kind == "weights" else DATA / entry.name


def table(entries: dict[str, Entry]) -> str:
    """Everything the registry offers, one line each and its licence below."""
    lines = []
    for entry in entries.values():
        ask = "" if entry.free else "   (needs --accept-licence)"
        lines += [
            f"{entry.name:<16}{entry.title}",
            f"{'':<16}licence: {entry.licence}{ask}",
            f"{'':<16}mirrors: {', '.join(mirror.name for mirror in entry.mirrors)}",
        ]
    return "\n".join(lines)


def status(entries: dict[str, Entry], to: Path | None = None) -> str:
    """How far each entry is, in its own folder or in `to`."""
    lines = []
    for entry in entries.values():
        folder = Folder(place(entry, to), entry.name)
        record = folder.record()
        here = sum(
            path.stat().st_size
            for path in folder.files.rglob("*")
            if path.is_file() and not path.name.endswith(".part.json")
        )
        if folder.complete:
            state = f"complete, from {record['mirror']} on {record['date']}"
        elif here or folder.unpacked.exists():
            state = (
                f"begun, {here:,} bytes here; go on with: python -m data_download get {entry.name}"
            )
        else:
            state = "not here"
        lines.append(f"{entry.name:<16}{folder.root}: {state}")
    return "\n".join(lines)


def get(
    entry: Entry,
    to: Path | None = None,
    mirror: str = "",
    accept: bool = False,
    local: Path | None = None,
    patience: Patience = PATIENT,
) -> int:
    """Bring a data set or weight file to its folder, whole and verified, or say in one sentence
    what to do.

    Returns the exit status: 0 done, 1 it is there and its verification found problems. Raises
    Refused; what was downloaded until then is kept and used by the next call.
    """
    folder = Folder(place(entry, to), entry.name)
    wanted = _wanted(entry, mirror)
    if folder.complete:
        if folder.ready.exists():  # the run that completed it was killed as it tidied up
            with folder.held():
                _tidy(entry, folder)
        print(
            f"{entry.name} is in {folder.root} already; check it with: python -m data_download "
            f"verify {entry.name}"
        )
        return 0
    if not folder.record():
        _agree(entry, accept)
    if (
        entry.kind == "data"
        and not folder.record().get("contents")
        and (foreign := folder.foreign())
    ):
        raise Refused(
            f"{folder.root} holds {foreign[0]!r}, which is not from here: choose a new folder with "
            "--to; what you have already can be its --from-local"
        )
    with folder.held():
        folder.note(licence=entry.licence)
        chosen = "local" if local else mirror
        if folder.record().get("complete") or chosen not in ("", folder.record().get("mirror")):
            folder.forget()  # some of it was deleted since, or comes from elsewhere now
        if not folder.ready.exists():
            if not folder.unpacked.exists():
                if local:
                    from_local(entry, folder, local)
                else:
                    download(entry, folder, wanted, patience)
            _arrange(entry, folder)
        folder.publish()
        kept = _tidy(entry, folder)
    if kept:
        print(
            f"what was downloaded stays in {folder.files} ({kept:,} bytes): delete it if you need "
            "the room"
        )
    print(f"{entry.name} is in {folder.root}", flush=True)
    return verify(entry, to)


def verify(entry: Entry, to: Path | None = None, fix: bool = False) -> int:
    """Check a folder against the registry, its record and, for a data set, the rules of its images
    and masks.

    Returns 0 if all is well, 1 if not; the table says what. fix: problems go to a quarantine,
    nothing is deleted.
    """
    root = place(entry, to)
    if not root.is_dir():
        raise Refused(f"{root} is not there; get it with: python -m data_download get {entry.name}")
    folder = Folder(root, entry.name)
    problems = _miscounted(entry, root) + _altered(folder)
    for problem in problems:
        print(problem)
    if not entry.spec:
        print(
            f"{entry.name} in {root}: "
            f"{'nothing wrong' if not problems else f'{len(problems)} problems'}"
        )
        return int(bool(problems))
    from data_download import verify as rules  # here, as it loads images and what they need

    report = rules.verify(entry.spec, root, fix)
    print(report.table())
    return int(bool(problems) or not report.ok)


def verify_own(root: Path | None, fix: bool = False) -> int:
    """Check a folder that its own dataset.toml describes; as verify, without a registry."""
    if root is None or not root.is_dir():
        raise Refused(f"{root or 'a folder'} is not there; say where it is: verify custom --to DIR")
    from data_download import verify as rules  # here, as it loads images and what they need

    report = rules.verify("custom", root, fix)
    print(report.table())
    return int(not report.ok)


def _wanted(entry: Entry, mirror: str) -> tuple[Mirror, ...]:
    wanted = tuple(place for place in entry.mirrors if mirror in ("", place.name))
    if not wanted:
        known = ", ".join(place.name for place in entry.mirrors)
        raise Refused(f"{entry.name} has no mirror {mirror!r}; it has: {known}")
    return wanted


def _agree(entry: Entry, accept: bool) -> None:
    """Show licence and citation at first use; where the licence is not a free one, go on only with
    consent."""
    print(f"{entry.title}\nlicence:  {entry.licence} ({entry.licence_source})")
    print(f"please cite: {entry.citation}", flush=True)
    if entry.free or accept:
        return
    asked = sys.stdin is not None and sys.stdin.isatty()
    if asked and input("Do you accept this? [y/N] ").strip().lower() in ("y", "yes"):
        return
    raise Refused(
        f"{entry.name} is not under a free licence: read the above and repeat the command with "
        "--accept-licence"
    )


def _arrange(entry: Entry, folder: Folder) -> None:
    """From what was published to the tree that protolib reads; entries without rules stay as they
    were unpacked."""
    if entry.spec:
        from data_download import arrange  # here, as it loads images and what they need

        done = arrange.arrange(entry.spec, folder.unpacked, folder.tree, dry_run=False)
        print(done.splitlines()[0], flush=True)  # the rest was shown before the first move
        folder.tree.rename(folder.ready)
    else:
        folder.unpacked.rename(folder.ready)


def _tidy(entry: Entry, folder: Folder) -> int:
    """Keep archives, and files with no other name any more: the tree was made from them and does
    not hold them."""
    return folder.tidy(
        lambda path: entry.kind == "data" and (is_archive(path) or path.stat().st_nlink == 1)
    )


def _miscounted(entry: Entry, root: Path) -> list[str]:
    """Where the numbers of files are not the published ones."""
    problems = []
    for pattern, counts in (entry.expected or {}).items():
        found = sum(path.is_file() for path in root.glob(pattern))
        if found not in counts:
            problems.append(
                f"{pattern}: {found:,} files, published are {' or '.join(f'{n:,}' for n in counts)}"
            )
    return problems


def _altered(folder: Folder) -> list[str]:
    """Which of the downloaded files, archives and weights, are not any more what the record
    says."""
    record = folder.record()
    problems = [
        f"{name}: gone" for name in record.get("contents", ()) if not (folder.root / name).exists()
    ]
    for key, known in record.get("files", {}).items():
        for path in (folder.files / key, folder.root / key.partition("/")[2]):
            if path.is_file() and digest(path) != known["sha256"]:
                problems.append(
                    f"{path.relative_to(folder.root)}: not what was downloaded, its sha256 differs"
                )
    return problems
