"""One file over a bad line: against every kind of server in server.py, always the same bytes or a
clear error."""

import hashlib
import itertools
import json
import random
import shutil
import socket
import threading
import time
import tracemalloc

import pytest
from server import QUOTA, Server

from data_download import part, transport
from data_download.part import MirrorFailed, Remote
from data_download.registry import Refused

DATA = random.Random(0).randbytes(300_000)
SHA = hashlib.sha256(DATA).hexdigest()
# tries as the real one does, without the waits
EAGER = transport.Patience(connect=2, stall=5, waits=(0, 0, 0))


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    """What the tests serve is on this machine."""
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
def bring(tmp_path):
    """Download /x of a server to tmp_path/x; anything of Remote may be given."""

    def call(server, patience=EAGER, moved=lambda have, total: None, **given):
        with transport.session() as client:
            return transport.get(
                Remote("x", f"{server.url}/x", **given), tmp_path / "x", client, patience, moved
            )

    return call


def cuts(*lengths, **more):
    """Spoil the first len(lengths) answers, each closed after so many bytes of its body."""
    left = iter(lengths)
    return lambda path, start: (
        {"cut": cut, **more} if (cut := next(left, None)) is not None else None
    )


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# whole, resumed, begun anew


def test_whole_file(bring, tmp_path):
    seen = []
    with Server({"/x": DATA}) as server:
        assert bring(server, moved=lambda have, total: seen.append((have, total))) == SHA
    assert (tmp_path / "x").read_bytes() == DATA and names(tmp_path) == ["x"]
    assert seen[-1] == (300_000, 300_000) and seen == sorted(seen) and server.gets() == [""]


@pytest.mark.parametrize("reset", [False, True])
def test_a_cut_is_resumed_where_it_was(bring, tmp_path, reset):
    with Server({"/x": DATA}, spoil=cuts(100_000, 50_000, reset=reset)) as server:
        assert bring(server) == SHA
    first, second, third = server.gets()
    assert first == "" and all(wanted.startswith("bytes=") for wanted in (second, third))
    if not reset:  # a reset may swallow bytes that were on their way
        assert (second, third) == ("bytes=100000-", "bytes=150000-")
    assert (tmp_path / "x").read_bytes() == DATA


def test_a_later_run_goes_on(bring, tmp_path):
    with Server({"/x": DATA}, spoil=cuts(120_000, 0, 0, 0)) as server:
        with pytest.raises(MirrorFailed, match="x: gave up after 3 tries: .*what came is kept"):
            bring(server, transport.Patience(waits=(0, 0)))
        assert (
            names(tmp_path) == ["x.part", "x.part.json"]
            and (tmp_path / "x.part").read_bytes() == DATA[:120_000]
        )
        assert bring(server) == SHA
    assert server.gets()[-1] == "bytes=120000-" and names(tmp_path) == ["x"]


@pytest.mark.parametrize(
    "etag, given, again", [(False, {}, ""), (False, {"hash": f"sha256:{SHA}"}, "bytes=120000-")]
)
def test_bytes_that_nothing_vouches_for_are_not_spliced(bring, tmp_path, etag, given, again):
    """Neither ETag nor date nor hash: a file that was replaced meanwhile could not be told from the
    old one."""
    with Server({"/x": DATA}, etag=etag, spoil=cuts(120_000, 0)) as server:
        with pytest.raises(MirrorFailed):
            bring(server, transport.Patience(waits=()), **given)
        with pytest.raises(MirrorFailed):
            bring(server, transport.Patience(waits=()), **given)
        assert server.gets()[1] == again
        assert bring(server, **given) == SHA


def test_a_file_that_changes_meanwhile_is_not_spliced(bring, tmp_path):
    new = bytes(reversed(DATA))
    with Server({"/x": DATA}, spoil=cuts(120_000)) as server:

        def changed(have, total):
            server.bodies["/x"] = new

        assert bring(server, moved=changed) == hashlib.sha256(new).hexdigest()
    assert server.gets() == ["", "bytes=120000-"] and (tmp_path / "x").read_bytes() == new


def test_a_server_that_ignores_if_range_is_found_out(bring, tmp_path):
    """It sends the rest of another version: its ETag tells."""
    new = bytes(reversed(DATA))
    with Server({"/x": DATA}, spoil=cuts(120_000)) as server:

        def changed(have, total):
            server.bodies["/x"] = new
            if have == 120_000:
                rest = {
                    "status": 206,
                    "body": new[120_000:],
                    "headers": {
                        "ETag": '"new"',
                        "Content-Range": f"bytes 120000-{len(new) - 1}/{len(new)}",
                    },
                }
                answers = iter([rest])
                server.spoil = lambda path, start: next(answers, None)

        assert bring(server, moved=changed) == hashlib.sha256(new).hexdigest()
    assert server.gets() == ["", "bytes=120000-", ""]


def test_a_server_without_ranges_begins_anew(bring, tmp_path):
    with Server({"/x": DATA}, ranges=False, spoil=cuts(100_000, 200_000, 10)) as server:
        assert bring(server) == SHA
    assert len(server.gets()) == 4 and (tmp_path / "x").read_bytes() == DATA


def test_all_bytes_here_but_no_name_yet(bring, tmp_path):
    """Killed between the last byte and the rename: the server refuses the empty range with 416 and
    all bytes."""
    with Server({"/x": DATA}) as server:
        with transport.session() as client:
            piece = part.Part(tmp_path / "x", Remote("x", f"{server.url}/x"))
            with client.get(f"{server.url}/x") as response:
                piece.begin(200, response.headers)
                piece.write(DATA)
            piece.close()
        assert names(tmp_path) == ["x.part", "x.part.json"]
        assert bring(server) == SHA and server.gets() == ["", "bytes=300000-"]


def test_a_shorter_file_than_the_part_begins_anew(bring, tmp_path):
    with Server({"/x": DATA}, spoil=cuts(200_000, 0)) as server:
        with pytest.raises(MirrorFailed):
            bring(server, transport.Patience(waits=()))
        note = json.loads((tmp_path / "x.part.json").read_text())
        server.bodies["/x"] = DATA[:1000]
        etag = f'"{hash(server.bodies["/x"])}"'
        (tmp_path / "x.part.json").write_text(
            json.dumps(note | {"validator": etag})
        )  # the server kept its ETag
        assert bring(server) == hashlib.sha256(DATA[:1000]).hexdigest()


def test_silence_counts_as_a_cut(bring, tmp_path):
    stalls = iter([70_000, 90_000])
    with Server(
        {"/x": DATA}, spoil=lambda path, start: {"stall": n} if (n := next(stalls, None)) else None
    ) as server:
        assert bring(server, transport.Patience(stall=0.5, waits=(0, 0))) == SHA
    assert server.gets() == ["", "bytes=70000-", "bytes=160000-"]


def test_waits_grow_with_jitter_and_begin_anew_after_progress(bring, monkeypatch):
    slept = []
    monkeypatch.setattr(time, "sleep", lambda seconds: slept.append(seconds))
    plan = [0, 0, 50_000, 0, 0]  # no progress twice, then some, then none twice
    with Server({"/x": DATA}, spoil=cuts(*plan)) as server:
        bring(server, transport.Patience(waits=(10, 20, 40)))
    assert len(slept) == 5
    assert all(wait / 2 <= pause <= wait * 1.5 for wait, pause in zip((10, 20, 10, 20, 40), slept))


# pages, refusals, wrong files


@pytest.mark.parametrize("type", ["text/html; charset=utf-8", "application/octet-stream"])
def test_a_page_with_status_200_is_never_saved(bring, tmp_path, type):
    with Server(
        {"/x": DATA}, spoil=lambda path, start: {"status": 200, "type": type, "body": QUOTA}
    ) as server:
        with pytest.raises(
            MirrorFailed, match=r"sent a web page \('Google Drive - Quota exceeded'\) where x is"
        ):
            bring(server)
        assert len(server.gets()) == 1
    assert names(tmp_path) == []


def test_a_page_in_place_of_the_rest_leaves_the_part(bring, tmp_path):
    spoils = iter([{"cut": 100_000}, {"status": 200, "type": "text/html", "body": QUOTA}])
    with Server({"/x": DATA}, spoil=lambda path, start: next(spoils, None)) as server:
        with pytest.raises(MirrorFailed, match="web page"):
            bring(server)
        assert (tmp_path / "x.part").read_bytes() == DATA[:100_000]
        assert bring(server) == SHA


def test_a_confirm_page_leads_on_once(bring, tmp_path):
    page = {"status": 200, "type": "text/html", "body": b"<html>sure?</html>"}
    with Server(
        {"/x": b"", "/y": DATA}, spoil=lambda path, start: page if path.startswith("/x") else None
    ) as server:
        assert bring(server, onward=lambda text: f"{server.url}/y") == SHA
        (tmp_path / "x").unlink()
        with pytest.raises(MirrorFailed, match="one web page leads to the next"):
            bring(server, onward=lambda text: f"{server.url}/x?again")


@pytest.mark.parametrize("status", [404, 410, 403])
def test_a_refusal_is_not_asked_again(bring, tmp_path, status):
    with Server({"/x": DATA}, spoil=lambda path, start: {"status": status}) as server:
        with pytest.raises(MirrorFailed, match=f"/x answers {status} "):
            bring(server)
        assert len(server.gets()) == 1
    assert names(tmp_path) == []


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(bring, monkeypatch, status):
    slept = []
    monkeypatch.setattr(time, "sleep", lambda seconds: slept.append(seconds))
    busy = iter(
        [{"status": status, "type": "text/html", "body": QUOTA, "headers": {"Retry-After": "7"}}]
    )
    with Server({"/x": DATA}, spoil=lambda path, start: next(busy, None)) as server:
        assert bring(server) == SHA
    assert slept == [7]


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_a_wrong_hash_is_never_saved(bring, tmp_path, algorithm):
    wrong = "0" * len(hashlib.new(algorithm).hexdigest())
    with Server({"/x": DATA}) as server:
        with pytest.raises(
            MirrorFailed,
            match=f"x has the {algorithm} {hashlib.new(algorithm, DATA).hexdigest()}, "
            f"expected {wrong} .as told.; nothing of it is kept",
        ):
            bring(server, hash=f"{algorithm}:{wrong}", told_by="as told")
        assert names(tmp_path) == []
        assert bring(server, hash=f"{algorithm}:{hashlib.new(algorithm, DATA).hexdigest()}") == SHA


def test_a_part_that_broke_on_the_disk_is_fetched_anew(bring, tmp_path):
    with Server({"/x": DATA}, spoil=cuts(100_000, 0)) as server:
        with pytest.raises(MirrorFailed):
            bring(server, transport.Patience(waits=()), hash=f"sha256:{SHA}")
        (tmp_path / "x.part").write_bytes(bytes(100_000))
        assert bring(server, hash=f"sha256:{SHA}") == SHA
    assert (tmp_path / "x").read_bytes() == DATA


def test_another_size_than_announced(bring, tmp_path):
    with Server({"/x": DATA}) as server:
        with pytest.raises(MirrorFailed, match="x has 300,000 bytes at .*/x, expected 300,001"):
            bring(server, size=300_001)
    assert names(tmp_path) == []


def test_no_length_no_hash_is_refused_but_chunks_are_counted(bring, tmp_path):
    pieces = DATA[:200_000], DATA[200_000:], b""
    packed = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    chunked = {"status": 200, "headers": {"Content-Length": "", "Transfer-Encoding": "chunked"}}
    plain = {"status": 200, "headers": {"Content-Length": ""}, "body": DATA, "cut": len(DATA)}
    answers = iter(
        [
            plain,
            plain,
            chunked | {"body": packed[:150_000], "cut": 150_000},
            chunked | {"body": packed},
        ]
    )
    with Server({"/x": DATA}, spoil=lambda path, start: next(answers)) as server:
        with pytest.raises(
            MirrorFailed, match="does not say how long x is, so a cut could not be noticed"
        ):
            bring(server)
        assert bring(server, hash=f"sha256:{SHA}") == SHA
        (tmp_path / "x").unlink()
        assert bring(server) == SHA
    assert (tmp_path / "x").read_bytes() == DATA


def test_a_full_disk_is_known_before_the_first_byte(bring, tmp_path, monkeypatch):
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 9, 9)
    )
    with Server({"/x": DATA}) as server:
        with pytest.raises(Refused, match="x needs 300,000 more bytes, 9 are free"):
            bring(server)
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_written(bring, tmp_path):
    (tmp_path / "x.part").mkdir()
    with Server({"/x": DATA}) as server:
        with pytest.raises(Refused, match="x cannot be written"):
            bring(server)


# memory, listings, the network itself


def test_memory_does_not_grow_with_the_file(bring, tmp_path):
    """64 MiB pass through; what waits for the hash is AHEAD chunks of 1 MiB at most, and a few are
    under way."""
    data = bytes(64 << 20)
    with Server({"/x": data}) as server:
        tracemalloc.start()
        bring(server)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert (tmp_path / "x").stat().st_size == len(data)
    assert peak < (part.AHEAD + 8) * part.CHUNK


def test_listing_follows_no_more_than_it_should(tmp_path):
    link = {"status": 200, "body": b"[1]", "headers": {"Link": '<http://127.0.0.1/2>; rel="next"'}}
    answers = iter([{"cut": 0}, {"status": 500}, link, {"status": 200, "body": b"[2]"}])
    with (
        Server({"/l": b"[0]"}, spoil=lambda path, start: next(answers)) as server,
        transport.session() as client,
    ):
        assert transport.listing(f"{server.url}/l", client, EAGER) == ("[1]", "http://127.0.0.1/2")
        assert transport.listing(f"{server.url}/l", client, EAGER) == ("[2]", "")
    with Server({"/l": bytes(transport.LISTING + 1)}) as server, transport.session() as client:
        with pytest.raises(MirrorFailed, match="a listing of more than 16,777,216 bytes is none"):
            transport.listing(f"{server.url}/l", client, EAGER)


def closed_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{one.getsockname()[1]}/"


def test_someone_answers(monkeypatch):
    with transport.session() as client:
        assert not transport.someone_answers([closed_port(), closed_port()], client)
        with Server({}) as server:
            # a 404 is an answer
            assert transport.someone_answers([closed_port(), server.url], client)
        blocked = threading.Event()

        def hang(*args, **more):
            blocked.wait(60)
            raise socket.gaierror("no such name")

        monkeypatch.setattr(socket, "getaddrinfo", hang)
        start = time.monotonic()
        assert not transport.someone_answers(["http://nowhere.invalid/"], client, seconds=0.5)
        assert time.monotonic() - start < 9  # 0.5 s and a busy machine
        blocked.set()


@pytest.mark.slow
def test_random_cuts_on_every_kind_of_server(bring, tmp_path):
    """64 files, each with up to four cuts at random bytes: ranges or not, ETag or not, closed
    softly or hard."""
    draw = random.Random(1)
    servers = itertools.product((True, False), (True, False), (True, False))
    for ranges, etag, reset in 8 * list(servers):
        lengths = [draw.randrange(len(DATA)) for _ in range(draw.randrange(5))]
        with Server(
            {"/x": DATA}, ranges=ranges, etag=etag, spoil=cuts(*lengths, reset=reset)
        ) as server:
            assert bring(server, transport.Patience(stall=20, waits=(0,) * 6)) == SHA
        assert (tmp_path / "x").read_bytes() == DATA and names(tmp_path) == ["x"]
        (tmp_path / "x").unlink()
