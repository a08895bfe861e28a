"""The whole way from a registry to a finished folder: interrupted, killed, refused; always whole or
a clear error."""

import hashlib
import io
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest
from server import QUOTA, Server

from data_download import __main__, fetch, registry, transport
from data_download.folder import LOCK, STAGE, Folder
from data_download.registry import Refused

EAGER = transport.Patience(connect=5, stall=20, waits=(0, 0))
draw = random.Random(7)
INNER = {
    "img/1.png": draw.randbytes(90_000),
    "img/2.png": draw.randbytes(70_000),
    "mask/1.png": bytes(5000),
}


def packed(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, body in members.items():
            file.writestr(zipfile.ZipInfo(name), body)
    return buffer.getvalue()


PLAIN = {
    "a.bin": draw.randbytes(400_000),
    "sub/b.bin": draw.randbytes(250_000),
    "c.txt": b"",
    "d [1 0].png": b"d" * 3000,
}
PUBLISHED = PLAIN | {"set.zip": packed(INNER), "sub/more.zip": packed({"x": b"more"})}  # about 1 MB
FINISHED = PLAIN | {f"set/{name}": body for name, body in INNER.items()} | {"sub/more/x": b"more"}


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.chdir(tmp_path)


def serve(published=PUBLISHED, **how):
    return Server(
        {
            f"/{name.replace(' ', '%20').replace('[', '%5B').replace(']', '%5D')}": body
            for name, body in published.items()
        },
        **how,
    )


def write_registry(places, published=PUBLISHED, licence="MIT", more="", kind="data"):
    """One entry "e" with these mirrors (name -> inline table), and the published files with their
    sizes and hashes."""
    lines = [
        "[e]",
        'title = "E"',
        f'licence = "{licence}"',
        'licence_source = "the tests"',
        'citation = "Them, 2026"',
        f'kind = "{kind}"',
        more,
        "[e.files]",
    ]
    lines += [
        f'"{name}" = {{ size = {len(body)}, sha256 = "{hashlib.sha256(body).hexdigest()}" }}'
        for name, body in published.items()
    ]
    lines += ["[e.mirrors]", *(f"{name} = {place}" for name, place in places.items())]
    Path("registry.toml").write_text("\n".join(lines), "utf-8")


def http(url):
    return f'{{ kind = "http", id = "{url}" }}'


def get(**given):
    return fetch.get(
        registry.load("registry.toml")["e"],
        Path("out"),
        patience=given.pop("patience", EAGER),
        **given,
    )


def command(*words):
    return __main__.main([*words, "--registry", "registry.toml"])


def contents(root="out"):
    """Everything in a folder but what is the download's own."""
    root = Path(root)
    return {
        name: path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
        and not (name := path.relative_to(root).as_posix()).startswith(f"{STAGE}/")
        and name != LOCK
    }


class Watcher:
    """Reads the folder over and over while it is made, and keeps what under its final name was not
    whole."""

    def __init__(self, root, finished, published):
        self.root, self.finished, self.published, self.bad, self.rounds = (
            Path(root),
            finished,
            published,
            [],
            0,
        )
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self):
        while not self._over.wait(0.002):
            self.rounds += 1
            self.bad += [name for name, body in self._visible() if self.finished.get(name) != body]
            staged = self.root / STAGE / "e/files/m"
            self.bad += [
                name
                for name, body in self.published.items()
                if (staged / name).is_file() and self._read(staged / name) not in (body, None)
            ]

    @staticmethod
    def _read(path):
        try:
            return path.read_bytes()
        except FileNotFoundError:  # renamed, or removed at the end, since it was listed
            return None

    def _visible(self):
        for place, below, names in os.walk(self.root):
            below[:] = [name for name in below if name != STAGE]
            for name in names:
                path = Path(place, name)
                if (
                    not name.startswith(f".{LOCK}")
                    and name != LOCK
                    and (body := self._read(path)) is not None
                ):
                    yield path.relative_to(self.root).as_posix(), body

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._over.set()
        self._thread.join()


# the plain way


def test_get_unpacks_records_and_is_done_once(capsys):
    with serve() as server:
        write_registry(
            {"m": http(f"{server.url}/")},
            more='expected = { "set/img/*.png" = [2], "*.bin" = [1, 3] }',
        )
        assert get() == 0
        asked = len(server.asked)
        assert get() == 0 and len(server.asked) == asked
    assert contents() == FINISHED
    shown = capsys.readouterr().out
    assert (
        "licence:  MIT (the tests)\nplease cite: Them, 2026\n" in shown
        and shown.count("please cite") == 1
    )
    assert "e in out: nothing wrong" in shown and "e is in out already" in shown
    record = json.loads(Path("out", LOCK).read_text())["e"]
    assert (
        record["complete"]
        and record["mirror"] == "m"
        and record["contents"] == sorted({name.split("/")[0] for name in FINISHED})
    )
    assert {name: facts["sha256"] for name, facts in record["files"].items()} == {
        f"m/{name}": hashlib.sha256(body).hexdigest() for name, body in PUBLISHED.items()
    }
    kept = sorted(path.relative_to("out").as_posix() for path in Path("out", STAGE).rglob("*.*"))
    assert kept == [f"{STAGE}/e/files/m/set.zip", f"{STAGE}/e/files/m/sub/more.zip"]


def test_a_deleted_tree_is_made_again_from_the_kept_archives():
    published = {"set.zip": PUBLISHED["set.zip"]}
    with serve(published) as server:
        write_registry({"m": http(f"{server.url}/")}, published)
        get()
        for path in sorted(Path("out/set").rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        Path("out/set").rmdir()
        server.asked.clear()
        assert get() == 0 and server.gets() == []
    assert contents() == {f"set/{name}": body for name, body in INNER.items()}


def test_weights_stay_as_they_are_beside_others(monkeypatch):
    body = packed({"pytorch_model.bin": b"w"})
    Path("w").mkdir()
    Path("w/other.bin").write_bytes(b"mine")
    monkeypatch.setenv("PROTOLIB_WEIGHTS", str(Path("w").resolve()))
    with Server({"/x.zip": body}) as server:
        write_registry(
            {"m": f'{{ kind = "http", id = "{server.url}/x.zip", save = "e.zip" }}'},
            {},
            kind="weights",
        )
        assert command("get", "e") == 0
    assert contents("w") == {"other.bin": b"mine", "e.zip": body}
    assert not list(Path("w", STAGE).rglob("*.zip"))


def test_counts_that_differ_are_told_and_fail(capsys):
    with serve() as server:
        write_registry(
            {"m": http(f"{server.url}/")}, more='expected = { "set/img/*.png" = [3, 1000] }'
        )
        assert get() == 1
    assert "set/img/*.png: 2 files, published are 3 or 1,000" in capsys.readouterr().out
    assert contents() == FINISHED


def test_verify_finds_what_was_altered(capsys):
    with serve() as server:
        write_registry({"m": http(f"{server.url}/")})
        get()
    Path("out/a.bin").write_bytes(b"not that")
    Path("out/c.txt").unlink()
    assert command("verify", "e", "--to", "out") == 1
    shown = capsys.readouterr().out
    assert "a.bin: not what was downloaded, its sha256 differs" in shown and "c.txt: gone" in shown
    assert (
        command("verify", "e") == 1
        and "data/e is not there; get it with" in capsys.readouterr().err
    )


def test_list_and_status(capsys):
    with serve(spoil=lambda path, start: {"cut": 1000} if path == "/sub/b.bin" else None) as server:
        write_registry({"m": http(f"{server.url}/")}, licence="none stated")
        assert command("list") == 0 and command("status") == 0
        assert capsys.readouterr().out == (
            f"{'e':<16}E\n"
            f"{'':<16}licence: none stated   (needs --accept-licence)\n"
            f"{'':<16}mirrors: m\n"
            f"{'e':<16}data/e: not here\n"
        )
        with pytest.raises(Refused):
            get(accept=True, patience=transport.Patience(waits=()))
        assert command("status", "--to", "out") == 0
        assert (
            "out: begun, 401,000 bytes here; go on with: python -m data_download get e"
            in capsys.readouterr().out
        )
        server.spoil = lambda path, start: None
        get()
        command("status", "--to", "out")
    assert "out: complete, from m on 20" in capsys.readouterr().out


# licences, places, locks


def test_consent_comes_before_the_first_byte(capsys, monkeypatch):
    with serve() as server:
        write_registry({"m": http(f"{server.url}/")}, licence="none stated")
        monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))  # no terminal: nobody to ask
        assert command("get", "e", "--to", "out") == 1
        assert "repeat the command with --accept-licence" in capsys.readouterr().err
        assert server.asked == [] and not Path("out").exists()
        assert command("get", "e", "--to", "out", "--accept-licence") == 0


@pytest.mark.parametrize("answer, status", [("y", 0), ("n", 1), ("", 1)])
def test_on_a_terminal_it_asks(monkeypatch, answer, status):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    with serve() as server:
        write_registry({"m": http(f"{server.url}/")}, licence="other: non-commercial")
        monkeypatch.setattr(sys, "stdin", Terminal(f"{answer}\n"))
        assert command("get", "e", "--to", "out") == status


def test_a_folder_with_other_things_is_left_alone(capsys):
    Path("out").mkdir()
    Path("out/thesis.tex").write_text("mine")
    with serve() as server:
        write_registry({"m": http(f"{server.url}/")})
        assert command("get", "e", "--to", "out") == 1
        assert server.asked == []
    assert (
        "out holds 'thesis.tex', which is not from here: choose a new folder with --to"
        in capsys.readouterr().err
    )
    assert contents() == {"thesis.tex": b"mine"}


def test_a_name_that_is_taken_meanwhile_is_not_overwritten(capsys):
    with serve() as server:

        def spoil(path, start):
            Path("out/set").mkdir(exist_ok=True)

        server.spoil = spoil
        write_registry({"m": http(f"{server.url}/")})
        with pytest.raises(Refused, match="set in out is in the way: move it, then run this again"):
            get()
        Path("out/set").rmdir()
        server.asked.clear()
        assert get() == 0 and server.asked == []
    assert contents() == FINISHED


def test_two_downloads_into_one_folder():
    with serve() as server:
        write_registry({"m": http(f"{server.url}/")})
        with Folder(Path("out"), "other").held():
            with pytest.raises(
                Refused, match=f"process {os.getpid()} is downloading into out: wait for it"
            ):
                get()
        assert get() == 0 and contents() == FINISHED


# mirrors, wrong and changed files


def test_the_next_mirror_takes_over(capsys):
    with (
        serve() as good,
        serve(PUBLISHED | {"a.bin": bytes(400_000)}) as wrong,
        Server({}) as gone,
        serve(
            spoil=lambda path, start: {"status": 200, "type": "text/html", "body": QUOTA}
        ) as full,
    ):
        write_registry(
            {
                "gone": http(f"{gone.url}/"),
                "full": http(f"{full.url}/"),
                "wrong": http(f"{wrong.url}/"),
                "m": http(f"{good.url}/"),
            }
        )
        assert get() == 0
        told = capsys.readouterr().err.splitlines()
        assert [line.split(":")[0] for line in told] == ["gone", "full", "wrong"]
        assert (
            "/a.bin answers 404" in told[0]
            and "sent a web page ('Google Drive - Quota exceeded')" in told[1]
        )
        assert "a.bin has the sha256" in told[2] and "(as registry.toml says)" in told[2]
        assert contents() == FINISHED


def test_one_mirror_on_demand(capsys):
    with serve() as good:
        write_registry({"gone": http("http://127.0.0.1:1/"), "m": http(f"{good.url}/")})
        assert command("get", "e", "--to", "out", "--mirror", "n") == 1
        assert "e has no mirror 'n'; it has: gone, m" in capsys.readouterr().err
        assert command("get", "e", "--to", "out", "--mirror", "m") == 0


def test_no_mirror_left_is_one_sentence(capsys):
    with Server({}) as gone:
        write_registry({"m": http(f"{gone.url}/")})
        assert command("get", "e", "--to", "out") == 1
    told = capsys.readouterr().err.splitlines()
    assert told[1:] == [
        "data_download: e could not be had from m. What came is kept: repeat the command later, "
        "try another --mirror, or give a copy with --from-local"
    ]


def test_unknown_checksums_are_trusted_once(capsys):
    """No hash in the registry: that of the first download is recorded, and another file is refused
    ever after."""
    first, second = packed({"x": b"first"}), packed({"x": b"other"})
    with Server({"/s.zip": first}) as server:
        write_registry({"m": http(f"{server.url}/s.zip")}, {})
        assert get() == 0 and contents() == {"s/x": b"first"}
        (
            Path("out/s/x").unlink(),
            Path("out/s").rmdir(),
            Path("out", STAGE, "e/files/m/s.zip").unlink(),
        )
        server.bodies["/s.zip"] = second
        with pytest.raises(Refused, match="could not be had"):
            get()
        told = capsys.readouterr().err
        expected = hashlib.sha256(first).hexdigest()
        assert f"expected {expected} (as {LOCK} recorded at the first download" in told
        server.bodies["/s.zip"] = first
        assert get() == 0 and contents() == {"s/x": b"first"}


def test_a_damaged_archive_is_not_trusted_but_fetched_again(capsys):
    good = packed({"x": b"first" * 100})
    with Server({"/s.zip": good[:300]}) as server:
        write_registry({"m": http(f"{server.url}/s.zip")}, {})
        with pytest.raises(Refused, match="could not be had"):
            get()
        assert "s.zip is damaged" in capsys.readouterr().err
        assert json.loads(Path("out", LOCK).read_text())["e"]["files"] == {}
        server.bodies["/s.zip"] = good
        assert get() == 0 and contents() == {"s/x": b"first" * 100}


def test_an_archive_that_would_escape_is_refused():
    with Server({"/s.zip": packed({"../../x": b"evil"})}) as server:
        write_registry({"m": http(f"{server.url}/s.zip")}, {})
        with pytest.raises(Refused, match="would leave its folder"):
            get()
    assert not list(Path().rglob("x")) and contents() == {}


def test_a_disk_too_small_is_known_before_the_first_byte(monkeypatch):
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 9 * 10**5, 10**5)
    )
    with serve() as server:
        write_registry({"m": http(f"{server.url}/")})
        with pytest.raises(
            Refused, match="e needs about 983,[0-9]+ bytes, to download and to unpack; 100,000 are"
        ):
            get()
        assert server.gets() == []


@pytest.mark.slow
def test_no_network_is_one_sentence_within_ten_seconds(capsys, monkeypatch):
    """Also where the look-up of names hangs, as it does without a network: nothing is waited for
    longer than 6 s."""
    over = threading.Event()

    def hang(*args, **more):
        over.wait(60)
        raise socket.gaierror("no such name")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    write_registry({"m": http("http://one.invalid/"), "n": http("http://two.invalid/")})
    start = time.monotonic()
    assert command("get", "e", "--to", "out") == 1
    assert time.monotonic() - start < 10
    over.set()
    assert capsys.readouterr().err == (
        "data_download: no network: one.invalid, two.invalid cannot be reached. Connect and "
        "repeat the command, or bring the files from elsewhere and give them with --from-local\n"
    )


# what the user has


@pytest.mark.parametrize("form", ["archive", "folder", "folder with archives"])
def test_from_local_leaves_the_source_as_it_is(form, tmp_path):
    source = tmp_path / "mine" if form != "archive" else tmp_path / "set.zip"
    if form == "archive":
        source.write_bytes(PUBLISHED["set.zip"])
        expected = {f"set/{name}": body for name, body in INNER.items()}
    else:
        files, expected = (FINISHED, FINISHED) if form == "folder" else (PUBLISHED, FINISHED)
        for name, body in files.items():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes(body)
    before = contents(source) if source.is_dir() else source.read_bytes()
    write_registry({"m": http("http://127.0.0.1:1/")})
    assert command("get", "e", "--to", "out", "--from-local", str(source)) == 0
    assert contents() == expected
    assert (contents(source) if source.is_dir() else source.read_bytes()) == before


def test_two_things_of_one_name_are_not_merged(tmp_path):
    source = tmp_path / "mine"
    (source / "set").mkdir(parents=True)
    (source / "set/x").write_bytes(b"mine")
    (source / "set.zip").write_bytes(PUBLISHED["set.zip"])
    write_registry({"m": http("http://127.0.0.1:1/")})
    with pytest.raises(
        Refused, match="set.zip would be unpacked into set, which is there beside it"
    ):
        get(local=source)


def test_from_local_refusals(tmp_path, capsys):
    write_registry({"m": http("http://127.0.0.1:1/")})
    (tmp_path / "empty").mkdir()
    (tmp_path / "set.zip").write_bytes(b"another")
    for name, message in (
        ("none.zip", "none.zip is not there"),
        ("empty", "empty holds no file"),
        ("set.zip", "set.zip has the sha256 .* registry.toml says"),
    ):
        with pytest.raises(Refused, match=message):
            get(local=tmp_path / name)
    assert (tmp_path / "set.zip").read_bytes() == b"another"


# interruptions


@pytest.mark.slow
def test_two_hundred_interruptions():
    """Cuts at random bytes, soft and hard, servers with and without ranges, web pages: whole or a
    clear error."""
    chance = random.Random(2)
    cuts = refusals = folders = 0

    def spoil(path, start):
        nonlocal cuts
        if chance.random() < 0.55:
            cuts += 1
            if chance.random() < 0.05:
                return {"status": 200, "type": "text/html", "body": QUOTA}
            return {
                "cut": chance.randrange(len(PUBLISHED[path[1:]]) or 1),
                "reset": chance.random() < 0.5,
            }

    published = {name: body for name, body in PUBLISHED.items() if " " not in name}
    finished = {name: body for name, body in FINISHED.items() if " " not in name}
    while cuts < 200:
        folders += 1
        root = Path(f"out{folders}")
        with serve(
            published, ranges=chance.random() < 0.7, etag=chance.random() < 0.7, spoil=spoil
        ) as server:
            write_registry({"m": http(f"{server.url}/")}, published)
            entry = registry.load("registry.toml")["e"]
            with Watcher(root, finished, published) as watcher:
                for _ in range(60):
                    try:
                        assert fetch.get(entry, root, patience=EAGER) == 0
                        break
                    except Refused as error:
                        refusals += 1
                        assert "could not be had from m. What came is kept" in str(error)
                else:
                    pytest.fail("60 runs did not finish it")
        assert contents(root) == finished and watcher.bad == [] and watcher.rounds
        assert not list(root.rglob("*.part*"))
    assert cuts >= 200 and folders > 10 and refusals > 10


ZYGOTE = """
import os, sys
from data_download import __main__, download, fetch, registry, transport, unpack
for line in sys.stdin:
    child = os.fork()
    if not child:
        quiet = os.open(os.devnull, os.O_RDWR)
        [os.dup2(quiet, fd) for fd in range(3)]
        os._exit(__main__.main(line.split()))
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


def complete(root, published, finished):
    """The downloaded files that are whole under their names, in the staging folder or already in
    their final place."""
    staged = root / STAGE / "e/files/m"
    done = {name for name, body in published.items() if (staged / name).is_file()}
    assert all((staged / name).read_bytes() == published[name] for name in done)
    visible = contents(root) if root.exists() else {}
    assert all(
        finished[name] == body for name, body in visible.items() if not name.startswith(f".{LOCK}")
    )
    return done | {name for name in visible if name in published}


STEPS = (
    *(f"{STAGE}/e/{step}" for step in ("unpacking-m", "unpacking-m/set", "unpacked", "ready")),
    "a.bin",
    "sub",
)


def alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_fifty_kills_lose_nothing_that_was_complete(root):
    """kill -9 at random moments of transfer, unpacking and renaming; a process that has imported
    all forks each run."""
    chance = random.Random(3)
    published = {name: body for name, body in PUBLISHED.items() if " " not in name}
    finished = {name: body for name, body in FINISHED.items() if " " not in name}
    total = sum(map(len, published.values()))
    environment = os.environ | {
        "PYTHONPATH": str(root),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    zygote = subprocess.Popen(
        [sys.executable, "-c", ZYGOTE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    kills, folders, pause = 0, 0, threading.Event()
    with serve(published, rate=10e6) as server, zygote:
        write_registry({"m": http(f"{server.url}/")}, published)
        while kills < 50:
            folders += 1
            out, status, done = Path(f"out{folders}"), None, set()
            while status != 0:
                assert status in (None, signal.SIGKILL), "a run ended with an error"
                parts = sum(path.stat().st_size for path in out.rglob("*.part"))
                left = total - parts - sum(len(published[name]) for name in done)
                before, moment = server.sent, chance.uniform(0, 1.6) * left
                zygote.stdin.write(f"get e --to {out} --registry registry.toml\n")
                zygote.stdin.flush()
                child = int(zygote.stdout.readline())
                while server.sent - before < min(moment, left) and alive(child):
                    pause.wait(0.0005)
                if moment >= left:  # after the last byte: as one of the later steps begins
                    step = out / chance.choice(STEPS)
                    while not step.exists() and alive(child):
                        pause.wait(0.0002)
                if alive(child):
                    os.kill(child, signal.SIGKILL)
                status = int(zygote.stdout.readline())
                kills += status == signal.SIGKILL
                asked = {path[1:] for method, path, _ in server.asked if method == "GET"}
                server.asked.clear()
                assert not asked & done, "a file that was complete was asked for again"
                now = complete(out, published, finished)
                assert done <= now | ({*published} if status == 0 else set()), (
                    "a complete file is gone"
                )
                done = now
            assert contents(out) == finished
            assert [path.name for path in (out / STAGE / "e").iterdir()] == ["files"]
        zygote.stdin.close()
    assert kills >= 50


@pytest.mark.slow
def test_control_c_says_how_to_go_on(root):
    with serve(
        spoil=lambda path, start: {"stall": 100_000} if path == "/a.bin" else None
    ) as server:
        write_registry({"m": http(f"{server.url}/")})
        words = ["get", "e", "--to", "out", "--registry", "registry.toml"]
        # a shell that put the tests in the background made them ignore Ctrl-C, and children inherit
        # that
        process = subprocess.Popen(
            [sys.executable, "-m", "data_download", *words],
            stderr=subprocess.PIPE,
            text=True,
            stdout=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": str(root)},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        part = Path("out", STAGE, "e/files/m/a.bin.part")
        guard = threading.Timer(120, process.kill)
        guard.start()
        while process.poll() is None and not (part.is_file() and part.stat().st_size == 100_000):
            guard.finished.wait(0.01)
        process.send_signal(signal.SIGINT)
        error = process.communicate()[1]
        guard.cancel()
        assert process.returncode == 130
        assert error.splitlines()[-1] == (
            "data_download: stopped; what came is kept. Go on with: "
            f"python -m data_download {' '.join(words)}"
        )
        assert "Traceback" not in error and part.read_bytes() == PUBLISHED["a.bin"][:100_000]
        server.spoil = lambda path, start: None
        assert get() == 0 and contents() == FINISHED
    assert ("GET", "/a.bin", "bytes=100000-") in server.asked


def test_the_command_starts_light(root):
    """No torch: `get` must answer at once."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from data_download import __main__, fetch; "
            "print('torch' in sys.modules, 'PIL' in sys.modules)",
        ],
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "False False\n"
