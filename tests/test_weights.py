"""Published weights: found, read and loaded whole, or refused with a reason."""

import hashlib
import http.server
import io
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import time
import zipfile
from contextlib import contextmanager
from dataclasses import replace

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import nn

from protolib import files
from protolib.nets import weights

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """No network, an empty folder of weights and an empty cache of the hub."""
    monkeypatch.setenv("PROTOLIB_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "weights").mkdir()
    return tmp_path


def tiny() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))


def file_of(path, state) -> weights.WeightsFile:
    torch.save(state, path)
    return weights.WeightsFile(path, "a test", "r1", "none")


def in_zip(path, state, name="medclip/pytorch_model.bin"):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, buffer.getvalue())


WRITERS = {
    "w.safetensors": lambda path, state: save_file(state, path),
    "w.bin": lambda path, state: torch.save(state, path),
    "w.pth": lambda path, state: torch.save(state, path, _use_new_zipfile_serialization=False),
    "w.zip": in_zip,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_tensors(tmp_path, name):
    state = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.tensor([7])}
    WRITERS[name](tmp_path / name, state)
    read = weights.read(tmp_path / name)
    assert set(read) == set(state) and all(torch.equal(read[k], state[k]) for k in state)


@pytest.mark.parametrize("name", WRITERS)
def test_a_cut_off_file_is_refused_by_name(tmp_path, name):
    WRITERS[name](tmp_path / name, {"a": torch.arange(5000.0)})
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        ValueError, match=f"{name} cannot be read as weights .*: delete it and bring it again"
    ):
        weights.read(tmp_path / name)


def test_code_in_a_pickle_is_never_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    (tmp_path / "trap.bin").write_bytes(pickle.dumps(Trap(), protocol=2))
    torch.save({"a": Trap()}, tmp_path / "trap.pth")
    for name in ("trap.bin", "trap.pth"):
        with pytest.raises(ValueError, match=f"{name} cannot be read as weights"):
            weights.read(tmp_path / name)
    assert not (tmp_path / "sprung").exists()


def test_a_file_of_something_else_is_refused(tmp_path):
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "checkpoint.pth")
    with pytest.raises(ValueError, match="checkpoint.pth holds no plain table of tensors by name"):
        weights.read(tmp_path / "checkpoint.pth")
    in_zip(tmp_path / "other.zip", {"a": torch.zeros(1)}, "readme.txt")
    with pytest.raises(
        ValueError, match="other.zip cannot be read as weights .it holds no pytorch_model.bin"
    ):
        weights.read(tmp_path / "other.zip")
    with pytest.raises(FileNotFoundError):
        weights.read(tmp_path / "absent.bin")


def test_put_loads_all_and_says_what(tmp_path):
    state = {
        f"old.{k}": torch.full_like(v, 2)
        for k, v in tiny().state_dict().items()
        if "num_batches" not in k
    }
    file = file_of(
        tmp_path / "w.bin", state | {"head.weight": torch.ones(9), "head.bias": torch.ones(9)}
    )
    net = tiny()
    rename = ("^new", "x"), (r"^old\.", ""), ("", "y")
    info = weights.put(net, weights.read(file.path), file, (r"head\.", "never"), rename)
    assert all((v == 2).all() for k, v in net.state_dict().items() if "num_batches" not in k)
    sha256 = hashlib.sha256(file.path.read_bytes()).hexdigest()
    assert info == weights.WeightsInfo("a test", "r1", sha256, "none", 6, (), (r"head\.",))


def drop(state):
    del state["0.bias"], state["1.running_var"]


@pytest.mark.parametrize(
    "spoil, message",
    [
        (drop, r"2 missing \(first: 0.bias, 1.running_var\)"),
        (lambda s: s.update(foreign=torch.ones(1)), r"1 unknown \(first: foreign\)"),
        (lambda s: s.update({"0.bias": torch.ones(5)}), r"1 of another shape \(first: 0.bias\)"),
        (lambda s: s["1.weight"].fill_(float("nan")), r"1 not finite \(first: 1.weight\)"),
        (lambda s: s.clear(), r"6 missing \(first: 0.weight, 0.bias, 1.weight\)"),
    ],
)
def test_put_loads_all_or_nothing(tmp_path, spoil, message):
    net, state = tiny(), {k: v.clone() + 1 for k, v in tiny().state_dict().items()}
    spoil(state)
    with pytest.raises(
        ValueError,
        match=f"w.bin does not fit Sequential, which has 7 tensors: {message}. Nothing was",
    ):
        weights.put(net, state, file_of(tmp_path / "w.bin", state))
    before = tiny().state_dict()
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_half_precision_files_load_into_a_float_network(tmp_path):
    state = {k: v.half() if v.is_floating_point() else v for k, v in tiny().state_dict().items()}
    net = tiny()
    weights.put(net, state, file_of(tmp_path / "w.bin", state))
    assert net[0].weight.dtype == torch.float32 and torch.equal(
        net[0].weight, state["0.weight"].float()
    )


def test_a_file_in_the_folder_comes_first(alone):
    for name in ("medclip-vit-pretrained.zip", "resnet38d.pth", "mit_b1.pth", "mit_b1.safetensors"):
        (alone / "weights" / name).write_bytes(b"x")
    assert weights.find("medclip").path.name == "medclip-vit-pretrained.zip"  # as published
    assert weights.find("resnet38d").path.name == "resnet38d.pth"
    found = weights.find("mit_b1")  # safetensors before pickles
    assert (found.path.name, found.revision) == ("mit_b1.safetensors", "")
    assert found.source == "mit_b1.safetensors, brought by hand"
    assert found.licence == weights.PUBLISHED["mit_b1"].licence


def cached(root, repo, file, content: bytes, blob: str):
    """A file in the layout of the hub's cache."""
    model = root / "hub" / f"models--{repo.replace('/', '--')}"
    snapshot = model / "snapshots" / COMMIT
    for folder in (snapshot, model / "blobs", model / "refs"):
        folder.mkdir(parents=True)
    (model / "refs" / "main").write_text(COMMIT)
    (model / "blobs" / blob).write_bytes(content)
    (snapshot / file).symlink_to(model / "blobs" / blob)


def test_the_cache_of_the_hub_needs_no_network_and_keeps_its_hash(alone):
    state = tiny().state_dict()
    torch.save(state, alone / "w")
    content = (alone / "w").read_bytes()
    cached(
        alone, "nvidia/mit-b1", "pytorch_model.bin", content, hashlib.sha256(content).hexdigest()
    )
    found = weights.find("mit_b1")
    assert (found.source, found.revision) == ("nvidia/mit-b1 pytorch_model.bin", COMMIT)
    assert weights.put(tiny(), weights.read(found.path), found).revision == COMMIT
    cached(alone, "vinid/plip", "pytorch_model.bin", content, "0" * 64)
    found = weights.find("plip")
    with pytest.raises(
        ValueError,
        match="pytorch_model.bin has sha256 .* the hub's is 0000.*: delete .*load it again",
    ):
        weights.put(tiny(), state, found)


def test_identity_sees_a_file_that_arrives_or_is_replaced(alone, monkeypatch):
    assert weights.identity("clip") == "random" == weights.identity("no_such_net")
    path = alone / "weights" / "clip.bin"
    for content in (b"one", b"two", b"three"):  # the first two of one size
        files.write_text(path, content.decode())
        assert weights.identity("clip") == hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(hashlib, "file_digest", None)  # not read again
    assert weights.identity("clip") == hashlib.sha256(b"three").hexdigest()
    path.unlink()
    assert weights.identity("clip") == "random"


def test_identity_asks_the_network_once_a_process(alone, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(weights, "_refused", set())
    asked = []

    def absent(name):
        asked.append(name)
        raise PermissionError("gated")

    monkeypatch.setattr(weights, "find", absent)
    assert weights.identity("uni") == weights.identity("uni") == "random"
    assert asked == ["uni"]
    (alone / "weights" / "uni.bin").write_bytes(b"x")
    assert weights.identity("uni") == hashlib.sha256(b"x").hexdigest() and asked == ["uni"]


def test_offline_errors_say_what_to_bring_and_where(alone):
    with pytest.raises(FileNotFoundError) as caught:
        weights.find("clip")
    for words in (
        "the weights of 'clip'",
        "HF_HUB_OFFLINE is set",
        "bring model.safetensors or pytorch_model.bin",
        "https://huggingface.co/openai/clip-vit-base-patch32",
        f"put it into {alone / 'weights'} as clip.safetensors",
    ):
        assert words in str(caught.value)
    with pytest.raises(
        FileNotFoundError, match="'ilsvrc-cls_rna-a1_cls1000_ep-0001' of https://.*/jiwoon-ahn/psa"
    ):
        weights.find("resnet38d")
    with pytest.raises(
        FileNotFoundError, match="'medclip-vit-pretrained' of https://github.com/RyanWangZf/MedCLIP"
    ):
        weights.find("medclip")
    with pytest.raises(
        FileNotFoundError, match="no weights are published for 'vgg'; known: resnet18, "
    ):
        weights.find("vgg")


def test_a_gated_repository_names_the_page_to_ask_at(alone, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(
        PermissionError, match="'uni' are gated .HF_TOKEN is not set.: ask for .*co/MahmoodLab/UNI"
    ):
        weights.find("uni")


@contextmanager
def serving(answer):
    """A local web server; answer(method, path, headers) -> status, headers, body. Gives its address
    and its log."""
    log = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            log.append((self.command, self.path))
            status, headers, body = answer(self.command, self.path, self.headers)
            self.send_response(status)
            for key, value in {"Content-Length": len(body), **headers}.items():
                self.send_header(key, str(value))
            self.end_headers()
            self.wfile.write(b"" if self.command == "HEAD" else body)

        do_HEAD = do_GET

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", log
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_file_at_its_own_address_arrives_whole_or_not_at_all(alone, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def answer(method, path, headers):
        size = 3000 if "cut" in path else 2000
        return (
            (404, {}, b"gone") if "absent" in path else (200, {"Content-Length": size}, b"z" * 2000)
        )

    known = weights.PUBLISHED["medclip"]
    with serving(answer) as (address, log):
        for name in ("absent", "cut", "whole"):
            here = replace(known, url=f"{address}/{name}.zip", file="whole")
            monkeypatch.setitem(weights.PUBLISHED, "medclip", here)
            if name == "whole":
                assert weights.find("medclip").path.read_bytes() == b"z" * 2000
            else:
                with pytest.raises(FileNotFoundError, match="404|2000 bytes read, 1000 more"):
                    weights.find("medclip")
                left = [path.name for path in (alone / "weights").iterdir()]
                assert all(path.startswith(f"{name}.zip.part") for path in left)  # to go on with
        before = len(log)
        # from the folder now
        assert weights.find("medclip").path.name == "whole.zip" and len(log) == before


def test_a_file_that_broke_off_goes_on_where_it_stopped(alone, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    content, asked = bytes(range(200)) * 10, []

    def answer(method, path, headers):
        asked.append(headers.get("Range"))
        if headers.get("Range") == "bytes=1200-":
            part = {"Content-Range": "bytes 1200-1999/2000", "ETag": '"v1"'}
            return 206, part, content[1200:]
        return 200, {"Content-Length": 2000, "ETag": '"v1"'}, content[:1200]

    with serving(answer) as (address, log):
        here = replace(weights.PUBLISHED["medclip"], url=f"{address}/w.zip", file="w")
        monkeypatch.setitem(weights.PUBLISHED, "medclip", here)
        found = weights.find("medclip")
    assert found.path.read_bytes() == content and asked[-1] == "bytes=1200-"
    assert found.source.endswith("/w.zip")


def test_an_address_that_nobody_answers_is_an_error_within_seconds(alone, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    nobody = replace(weights.PUBLISHED["medclip"], url="http://127.0.0.1:9/w.zip")
    monkeypatch.setitem(weights.PUBLISHED, "medclip", nobody)
    began = time.perf_counter()
    with pytest.raises(FileNotFoundError, match="no network.*bring 'medclip-vit-pretrained'"):
        weights.find("medclip")
    assert time.perf_counter() - began < 2 * weights.SECONDS
    assert list((alone / "weights").iterdir()) == []


PROGRAM = """
    import sys
    from protolib.nets import weights
    for name in sys.argv[1:]:
        try:
            found = weights.find(name)
            print(name, found.source, found.revision, found.path.read_bytes())
        except Exception as error:
            print(name, type(error).__name__, error)
"""


def test_the_hub_is_asked_once_and_its_refusals_are_told(tmp_path):
    def answer(method, path, headers):
        if path == "/":
            return 200, {}, b""
        if "UNI" in path:
            return 403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "ask first"}, b""
        if "plip" in path:
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        if path == "/nvidia/mit-b1/resolve/main/pytorch_model.bin":
            return 200, {"ETag": '"abc"', "X-Repo-Commit": COMMIT}, b"the weights"
        return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, b""

    with serving(answer) as (address, log):
        environment = os.environ | {
            "HF_ENDPOINT": address,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_TOKEN": "hf_test",
            "PROTOLIB_WEIGHTS": str(tmp_path / "w"),
            "HF_HUB_OFFLINE": "0",
            "TRANSFORMERS_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
        }
        names = ["mit_b1", "mit_b1", "uni", "plip", "clip"]
        program = [sys.executable, "-c", textwrap.dedent(PROGRAM), *names]
        said = subprocess.run(
            program, env=environment, capture_output=True, text=True, check=True
        ).stdout.splitlines()
    first, second, uni, plip, clip = said
    assert first == second == f"mit_b1 nvidia/mit-b1 pytorch_model.bin {COMMIT} b'the weights'"
    assert [path for method, path in log if method == "GET"].count(
        "/nvidia/mit-b1/resolve/main/pytorch_model.bin"
    ) == 1
    assert (
        "PermissionError" in uni
        and "the hub refused the token" in uni
        and "huggingface.co/MahmoodLab/UNI" in uni
    )
    assert "FileNotFoundError" in plip and "the hub shows no vinid/plip" in plip
    assert "clip-vit-base-patch32 has neither model.safetensors nor pytorch_model.bin" in clip


def test_no_answer_is_an_error_within_seconds(alone, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    began = time.perf_counter()
    with pytest.raises(
        FileNotFoundError, match="ConnectError.*bring model.safetensors or pytorch_model.bin"
    ):
        weights.find("mit_b1")
    assert (
        time.perf_counter() - began < 2 * weights.SECONDS
    )  # hf_hub_download alone would try for 23 s
