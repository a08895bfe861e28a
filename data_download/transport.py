"""One URL into one file, and listings: with retries, resumed, and never a web page in place of
data."""

import itertools
import queue
import random
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import requests
import urllib3

from data_download.part import CHUNK, Again, MirrorFailed, Part, Remote
from data_download.registry import Refused

LISTING = 16 << 20  # bytes; no listing and no error page is longer
MARKUP = re.compile(rb"\s*(<!doctype html|<html)", re.IGNORECASE)
BROKEN = (
    Again,
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,
    urllib3.exceptions.HTTPError,
    ConnectionError,
    TimeoutError,
)
T = TypeVar("T")


@dataclass(frozen=True)
class Patience:
    """How long to wait: seconds to connect, seconds without a byte, seconds before each further
    try.

    A try that brought the file further starts the waits anew: only a server that gives nothing at
    all uses them up.
    """

    connect: float = 4.0
    stall: float = 30.0
    waits: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)


PATIENT = Patience()


def session() -> requests.Session:
    """A session that says who asks and wants bytes as they are stored; proxies come from the
    environment."""
    client = requests.Session()
    client.headers.update({"User-Agent": "protolib data_download", "Accept-Encoding": "identity"})
    return client


def get(
    remote: Remote,
    path: Path,
    client: requests.Session,
    patience: Patience = PATIENT,
    moved: Callable[[int, int | None], None] = lambda have, total: None,
) -> str:
    """Bring one file to `path`, from where an earlier run stopped, and return its SHA-256 (hex).

    moved(have, total): called for every chunk; bytes. Until size and hash agree the file is
    `path`.part; that stays when the network fails and goes when its hash is wrong. Raises
    MirrorFailed (this place), Refused (this machine).
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = Part(path, remote)
        try:
            _fill(part, client, patience, moved)
            resumed = part.resumed
            # the piece of the earlier run may be what is broken
            if (wrong := part.wrong()) and resumed:
                _fill(part, client, patience, moved)
                wrong = part.wrong()
            if wrong:
                raise MirrorFailed(f"{wrong}; nothing of it is kept")
            return part.finish()
        finally:
            part.close()
    except OSError as error:
        raise Refused(f"{path} cannot be written ({error.strerror}); what came is kept") from error


def listing(url: str, client: requests.Session, patience: Patience = PATIENT) -> tuple[str, str]:
    """A page that lists files: its text, and the URL of the next page or "". Raises
    MirrorFailed."""

    def attempt() -> tuple[str, str]:
        with client.get(url, stream=True, timeout=(patience.connect, patience.stall)) as response:
            _check(response)
            text = _text(response.iter_content(CHUNK))
            return text, response.links.get("next", {}).get("url", "")

    return _patiently(attempt, patience, lambda: 0, url)


def someone_answers(urls: Iterable[str], client: requests.Session, seconds: float = 6.0) -> bool:
    """Whether any of these hosts takes a connection, asked all at once: a missing network is known
    within `seconds`.

    In threads, since the look-up of a host's name has no limit of its own.
    """
    answers: queue.Queue[bool] = queue.Queue()

    def ask(url: str) -> None:
        try:
            client.head(url, timeout=seconds / 2)
            answers.put(True)
        except requests.RequestException as error:
            answers.put(isinstance(error, requests.ReadTimeout))

    urls = set(urls)
    for url in urls:
        threading.Thread(target=ask, args=(url,), daemon=True).start()
    end = time.monotonic() + seconds
    try:
        return any(answers.get(timeout=max(0.01, end - time.monotonic())) for _ in urls)
    except queue.Empty:
        return False


def _fill(
    part: Part,
    client: requests.Session,
    patience: Patience,
    moved: Callable[[int, int | None], None],
) -> None:
    """Try until the part holds all bytes, by way of a confirm page if there is one."""
    url = part.remote.url

    def attempt() -> None:
        nonlocal url
        while onward := _stream(url, part, client, patience, moved):
            if url != part.remote.url:
                raise MirrorFailed(
                    f"{part.remote.name}: one web page leads to the next, and none to the file"
                )
            url = onward

    _patiently(attempt, patience, lambda: part.most, part.remote.name)


def _stream(
    url: str,
    part: Part,
    client: requests.Session,
    patience: Patience,
    moved: Callable[[int, int | None], None],
) -> str:
    """One request, read to its end; returns the URL that a web page sent in place of the file leads
    to, "" if none."""
    remote = part.remote
    with client.get(
        url, headers=part.headers(), stream=True, timeout=(patience.connect, patience.stall)
    ) as response:
        if response.status_code == 416:
            if part.is_all(response.headers.get("Content-Range", "")):
                return ""
            part.restart()
            raise Again("the server's file is shorter than what is here")
        chunks = _raw(response)
        first = next(chunks, b"")
        if _is_page(response, first) and not remote.name.lower().endswith((".html", ".htm")):
            text = _text(itertools.chain([first], chunks))
            if remote.onward:
                return remote.onward(text)
            _check(response)
            raise MirrorFailed(
                f"{url} sent a web page{_title(text)} where {remote.name} is expected; nothing is "
                "saved"
            )
        _check(response)
        total = part.begin(response.status_code, response.headers)
        for chunk in itertools.chain([first], chunks):
            part.write(chunk)
            moved(part.size, total)
    if total is not None and part.size != total:
        have = part.size
        if have > total:
            part.restart()
        raise Again(f"the server sent {have:,} bytes where it announced {total:,}")
    return ""


def _patiently(
    attempt: Callable[[], T], patience: Patience, reached: Callable[[], int], what: str
) -> T:
    """Call until it succeeds; gives up after all waits without any progress."""
    failures, before = 0, reached()
    while True:
        try:
            return attempt()
        except requests.exceptions.SSLError as error:
            raise MirrorFailed(f"{what}: no safe connection: {_reason(error)}") from error
        except BROKEN as error:
            failures = failures + 1 if reached() == before else 1
            before = reached()
            if failures > len(patience.waits):
                raise MirrorFailed(
                    f"{what}: gave up after {failures} tries: {_reason(error)}; what came is kept"
                ) from error
            # so that a class does not knock in step
            wait = patience.waits[failures - 1] * random.uniform(0.5, 1.5)
            time.sleep(max(wait, getattr(error, "wait", 0.0)))
        except requests.RequestException as error:
            raise MirrorFailed(f"{what}: {_reason(error)}") from error


def _check(response: requests.Response) -> None:
    """Let a good status pass; a busy server may be asked again, any other place cannot help."""
    code = response.status_code
    if code == 429 or code >= 500:
        after = response.headers.get("Retry-After", "")
        wait = min(float(after), 60.0) if after.isdigit() else 0.0
        raise Again(f"{response.url} answers {code} {response.reason}", wait)
    if code in (401, 403):
        raise MirrorFailed(
            f"{response.url} answers {code} {response.reason}: its owner lets not everyone in"
        )
    if code not in (200, 206):
        raise MirrorFailed(f"{response.url} answers {code} {response.reason}")


def _raw(response: requests.Response) -> Iterator[bytes]:
    while chunk := response.raw.read1(CHUNK, decode_content=False):
        yield chunk


def _is_page(response: requests.Response, first: bytes) -> bool:
    if response.status_code >= 429:  # busy: whatever page it sends, it may be asked again
        return False
    kind = response.headers.get("Content-Type", "")
    return kind.startswith("text/html") or (
        response.status_code == 200 and bool(MARKUP.match(first))
    )


def _text(chunks: Iterable[bytes]) -> str:
    data = bytearray()
    for chunk in chunks:
        data += chunk
        if len(data) > LISTING:
            raise MirrorFailed(f"a listing of more than {LISTING:,} bytes is none")
    return data.decode("utf-8", "replace")


def _title(text: str) -> str:
    match = re.search(r"<title[^>]*>([^<]*)", text, re.IGNORECASE)
    return f" ({match[1].strip()!r})" if match else ""


def _reason(error: Exception) -> str:
    """The innermost cause in a few words: libraries wrap it three times over."""
    seen: list[BaseException] = [error]
    while (
        inner := seen[-1].__cause__
        or seen[-1].__context__
        or next((arg for arg in seen[-1].args if isinstance(arg, Exception)), None)
    ):
        if inner in seen:
            break
        seen.append(inner)
    return re.sub(
        r"<[^>]*object at 0x[0-9a-f]+>:? ?", "", str(seen[-1]) or type(seen[-1]).__name__
    )[:200]
