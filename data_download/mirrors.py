"""What a place of publication holds: every kind of mirror turned into a list of files with URL,
size and hash.

All through one transport rather than one library for each place (gdown, huggingface_hub): so
resuming, limits of time and the checks are the same for all, and each is tested against a local
stand-in (`base` in the registry).
"""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any
from urllib.parse import quote, unquote, urlencode, urljoin, urlsplit

import requests

from data_download.part import MirrorFailed, Remote
from data_download.registry import Entry, Mirror, inside
from data_download.transport import PATIENT, Patience, listing

DEPTH = 6  # folders within folders; a Drive folder may hold a link to itself
HOSTS = {
    "drive-folder": "https://drive.google.com",
    "drive-file": "https://drive.usercontent.google.com",
    "zenodo": "https://zenodo.org",
    "huggingface": "https://huggingface.co",
    "figshare": "https://api.figshare.com",
}
QUOTA = (
    "the quota that Google Drive sets for this file is used up: try again in a day, choose "
    "another place with --mirror, or get the file in a browser that is signed in to Google and "
    "give it with --from-local FILE"
)
Listed = list[Remote]


def address(mirror: Mirror) -> str:
    """A URL of the host that the mirror is at, to ask whether it answers."""
    return mirror.id if mirror.kind in ("http", "pointer") else _host(mirror) + "/"


def remotes(
    entry: Entry, mirror: Mirror, client: requests.Session, patience: Patience = PATIENT
) -> Listed:
    """The files that a mirror holds; size and SHA-256 are the registry's where it knows them, else
    the mirror's own.

    Raises MirrorFailed if it does not answer, lists nothing, or lacks what the registry asks of it.
    """
    found = LISTERS[mirror.kind](entry, mirror, client, patience)
    if mirror.file:
        found = [remote for remote in found if remote.name == mirror.file]
    if not found:
        raise MirrorFailed(
            f"{mirror.name} shows no {mirror.file or 'file'}: it is empty, closed to strangers, or "
            "its pages have changed"
        )
    if mirror.save and len(found) == 1:
        found = [replace(found[0], name=mirror.save)]
    return [_known(entry, replace(remote, name=inside(remote.name))) for remote in found]


def _known(entry: Entry, remote: Remote) -> Remote:
    known = (entry.files or {}).get(remote.name, {})
    if not known:
        return (
            replace(remote, told_by="as the mirror itself says")
            if remote.size or remote.hash
            else remote
        )
    hash = f"sha256:{known['sha256']}" if known.get("sha256") else remote.hash
    return replace(
        remote, size=known.get("size", remote.size), hash=hash, told_by="as registry.toml says"
    )


def _host(mirror: Mirror) -> str:
    return (mirror.base or HOSTS[mirror.kind]).rstrip("/")


def _json(url: str, client: requests.Session, patience: Patience) -> tuple[Any, str]:
    text, following = listing(url, client, patience)
    try:
        return json.loads(text), following
    except json.JSONDecodeError as error:
        raise MirrorFailed(f"{url} sent no JSON: {error}") from error


def _http(entry: Entry, mirror: Mirror, client: requests.Session, patience: Patience) -> Listed:
    """One URL, or, where it ends in "/", the files that the registry lists for this entry below
    it."""
    if not mirror.id.endswith("/"):
        return [Remote(unquote(urlsplit(mirror.id).path.rsplit("/", 1)[-1]), mirror.id)]
    return [Remote(name, mirror.id + quote(name)) for name in entry.files or {}]


def _pointer(entry: Entry, mirror: Mirror, client: requests.Session, patience: Patience) -> Listed:
    """A text file that holds nothing but the URL."""
    url = listing(mirror.id, client, patience)[0].strip()
    if not re.fullmatch(r"https?://\S+", url):
        raise MirrorFailed(f"{mirror.id} holds no URL but {url[:60]!r}")
    return [Remote(unquote(urlsplit(url).path.rsplit("/", 1)[-1]), url)]


def _zenodo(entry: Entry, mirror: Mirror, client: requests.Session, patience: Patience) -> Listed:
    record, _ = _json(f"{_host(mirror)}/api/records/{mirror.id}", client, patience)
    return [
        Remote(file["key"], file["links"]["self"], file["size"], file.get("checksum", ""))
        for file in record.get("files") or []
    ]


def _figshare(entry: Entry, mirror: Mirror, client: requests.Session, patience: Patience) -> Listed:
    found, _ = _json(
        f"{_host(mirror)}/v2/articles/{mirror.id}/files?page_size=1000", client, patience
    )
    return [
        Remote(
            file["name"],
            file["download_url"],
            file["size"],
            f"md5:{file['computed_md5']}" if file.get("computed_md5") else "",
        )
        for file in found
    ]


def _huggingface(
    entry: Entry, mirror: Mirror, client: requests.Session, patience: Patience
) -> Listed:
    """Every file of the repository's main branch but git's own; large ones come with their
    SHA-256."""
    host, found = _host(mirror), []
    url = f"{host}/api/{mirror.id}/tree/main?recursive=true"
    while url:
        rows, url = _json(url, client, patience)
        found += [
            row for row in rows if row["type"] == "file" and not row["path"].startswith(".git")
        ]
    place = f"{host}/{mirror.id.removeprefix('models/')}/resolve/main/"
    return [
        Remote(
            row["path"],
            place + quote(row["path"]),
            row["size"],
            f"sha256:{row['lfs']['oid']}" if row.get("lfs") else "",
        )
        for row in found
    ]


def _drive_file(
    entry: Entry, mirror: Mirror, client: requests.Session, patience: Patience
) -> Listed:
    return [_drive_remote(mirror.save or mirror.id, mirror.id, _host(mirror))]


def _drive_folder(
    entry: Entry, mirror: Mirror, client: requests.Session, patience: Patience
) -> Listed:
    """The files of a shared folder and of those in it; Google's own documents have no file to
    download."""
    host = _host(mirror)
    download = mirror.base or HOSTS["drive-file"]

    def walk(folder: str, prefix: str, depth: int) -> Listed:
        found = []
        for href, name in _links(
            listing(f"{host}/embeddedfolderview?id={folder}", client, patience)[0]
        ):
            path, name = urlsplit(href).path, name.replace("/", "_")
            if file := re.search(r"/file/d/([\w-]+)", path):
                found.append(_drive_remote(prefix + name, file[1], download))
            elif (inner := re.search(r"/folders/([\w-]+)", path)) and depth < DEPTH:
                found += walk(inner[1], f"{prefix}{name}/", depth + 1)
        return found

    return walk(mirror.id, "", 1)


def _drive_remote(name: str, file: str, host: str) -> Remote:
    url = f"{host}/download?" + urlencode({"id": file, "export": "download", "confirm": "t"})
    return Remote(name, url, onward=lambda text: _drive_onward(text, url))


def _drive_onward(text: str, url: str) -> str:
    """Where Drive's "too large to scan for viruses" page leads to; any other page is a refusal."""
    form = _Form()
    form.feed(text)
    if form.action is not None:
        return (
            urljoin(url, form.action)
            + ("&" if "?" in form.action else "?")
            + urlencode(form.hidden)
        )
    if re.search(r"quota exceeded|too many users have viewed or downloaded", text, re.IGNORECASE):
        raise MirrorFailed(QUOTA)
    raise MirrorFailed(
        "Google Drive sent a web page, not the file: it may be gone or not shared any more; see "
        f"{url}"
    )


class _Form(HTMLParser):
    """The form `download-form` of Drive's confirm page."""

    action: str | None = None

    def __init__(self):
        super().__init__()
        self.hidden: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "form" and given.get("id") == "download-form":
            self.action = given.get("action") or ""
        elif (
            tag == "input"
            and given.get("type") == "hidden"
            and self.action is not None
            and given.get("name")
        ):
            self.hidden[given["name"]] = given.get("value") or ""


class _Anchors(HTMLParser):
    """The links of a page with the text in them."""

    def __init__(self):
        super().__init__()
        self.found: list[tuple[str, str]] = []
        self._open = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.found.append((dict(attrs).get("href") or "", ""))
            self._open = True

    def handle_endtag(self, tag: str) -> None:
        self._open = self._open and tag != "a"

    def handle_data(self, data: str) -> None:
        if self._open:
            href, text = self.found[-1]
            self.found[-1] = href, text + data.strip()


def _links(text: str) -> list[tuple[str, str]]:
    page = _Anchors()
    page.feed(text)
    return page.found


LISTERS: dict[str, Callable[[Entry, Mirror, requests.Session, Patience], Listed]] = {
    "http": _http,
    "pointer": _pointer,
    "drive-folder": _drive_folder,
    "drive-file": _drive_file,
    "zenodo": _zenodo,
    "huggingface": _huggingface,
    "figshare": _figshare,
}
