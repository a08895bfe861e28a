"""Each kind of mirror against a stand-in that answers as the place does: what is listed, and what
is refused."""

import json
from urllib.parse import parse_qs, urlsplit

import pytest
from server import QUOTA, Server

from data_download import mirrors, transport
from data_download.part import MirrorFailed
from data_download.registry import Entry, Mirror, Refused

EAGER = transport.Patience(connect=2, stall=5, waits=(0,))
CONFIRM = b"""<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head>
<body><form id="download-form" action="/download" method="get">
<input type="submit" value="Download anyway"/>
<input type="hidden" name="id" value="F1"><input type="hidden" name="confirm" value="t&amp;1">
<input type="hidden" name="uuid" value="u-2"></form></body></html>"""


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")


def entry(**given):
    return Entry("e", "E", "MIT", "me", "me", (), **given)


def listed(kind, id, bodies, given=None, **more):
    """The files that a mirror of this kind lists, as (name, URL below the server, size, hash)."""
    with Server({}) as server, transport.session() as client:
        for path, body in bodies.items():
            text = body if isinstance(body, str) else json.dumps(body)
            server.bodies[path] = text.replace("HOST", server.url).encode()
        mirror = Mirror("m", kind, id.replace("HOST", server.url), base=server.url, **more)
        return [
            (remote.name, remote.url.removeprefix(server.url), remote.size, remote.hash)
            for remote in mirrors.remotes(given or entry(), mirror, client, EAGER)
        ]


def test_one_url_and_its_own_or_another_name():
    assert listed("http", "HOST/a/b%20c.zip", {}) == [("b c.zip", "/a/b%20c.zip", None, "")]
    assert listed("http", "HOST/a/b.zip", {}, save="z.zip") == [("z.zip", "/a/b.zip", None, "")]


def test_a_plain_folder_holds_what_the_registry_lists():
    given = entry(files={"a.zip": {"size": 3, "sha256": "ab"}, "b/c d.png": {}})
    assert listed("http", "HOST/sets/", {}, given) == [
        ("a.zip", "/sets/a.zip", 3, "sha256:ab"),
        ("b/c d.png", "/sets/b/c%20d.png", None, ""),
    ]


def test_a_text_file_that_names_the_url():
    """As MedCLIP publishes its weights."""
    bodies = {"/where.txt": "HOST/w/vit.zip\n"}
    assert listed("pointer", "HOST/where.txt", bodies) == [("vit.zip", "/w/vit.zip", None, "")]
    with pytest.raises(MirrorFailed, match="holds no URL but '404: not found'"):
        listed("pointer", "HOST/where.txt", {"/where.txt": "404: not found"})


def test_zenodo_record():
    record = {
        "files": [
            {
                "key": "a.zip",
                "size": 7,
                "checksum": "md5:0a",
                "links": {"self": "HOST/files/a.zip/content"},
            },
            {"key": "b.txt", "size": 1, "links": {"self": "HOST/files/b.txt/content"}},
        ]
    }
    assert listed("zenodo", "12", {"/api/records/12": record}) == [
        ("a.zip", "/files/a.zip/content", 7, "md5:0a"),
        ("b.txt", "/files/b.txt/content", 1, ""),
    ]
    with pytest.raises(MirrorFailed, match="m shows no file: it is empty, closed to strangers"):
        listed("zenodo", "12", {"/api/records/12": {"files": None}})


def test_figshare_article():
    rows = [
        {"name": "a.zip", "size": 7, "computed_md5": "0a", "download_url": "HOST/f/1"},
        {"name": "b.zip", "size": 8, "computed_md5": "", "download_url": "HOST/f/2"},
    ]
    assert listed("figshare", "3", {"/v2/articles/3/files?page_size=1000": rows}) == [
        ("a.zip", "/f/1", 7, "md5:0a"),
        ("b.zip", "/f/2", 8, ""),
    ]


def test_huggingface_over_two_pages():
    rows = [
        {"type": "directory", "path": "d", "oid": "1"},
        {"type": "file", "path": ".gitattributes", "size": 1, "oid": "2"},
        {"type": "file", "path": "d/a b.png", "size": 5, "oid": "3"},
    ]
    large = [
        {
            "type": "file",
            "path": "x.zip",
            "size": 900,
            "oid": "4",
            "lfs": {"oid": "ff", "size": 900},
        }
    ]
    first, second = (
        "/api/datasets/o/n/tree/main?recursive=true",
        "/api/datasets/o/n/tree/main?recursive=true&cursor=2",
    )

    def spoil(path, start):
        link = f'<{server.url}{second}>; rel="next"' if path == first else ""
        return {"headers": {"Link": link}}

    with Server(
        {first: json.dumps(rows).encode(), second: json.dumps(large).encode()}, spoil=spoil
    ) as server:
        with transport.session() as client:
            found = mirrors.remotes(
                entry(), Mirror("m", "huggingface", "datasets/o/n", base=server.url), client, EAGER
            )
    assert [
        (remote.name, remote.url.removeprefix(server.url), remote.size, remote.hash)
        for remote in found
    ] == [
        ("d/a b.png", "/datasets/o/n/resolve/main/d/a%20b.png", 5, ""),
        ("x.zip", "/datasets/o/n/resolve/main/x.zip", 900, "sha256:ff"),
    ]


def test_one_file_of_a_model():
    rows = [
        {
            "type": "file",
            "path": "pytorch_model.bin",
            "size": 9,
            "oid": "3",
            "lfs": {"oid": "ee", "size": 9},
        },
        {"type": "file", "path": "README.md", "size": 5, "oid": "3"},
    ]
    bodies = {"/api/models/o/n/tree/main?recursive=true": rows}
    assert listed("huggingface", "models/o/n", bodies, file="pytorch_model.bin", save="n.bin") == [
        ("n.bin", "/o/n/resolve/main/pytorch_model.bin", 9, "sha256:ee")
    ]
    with pytest.raises(MirrorFailed, match="m shows no model.safetensors"):
        listed("huggingface", "models/o/n", bodies, file="model.safetensors")


def folder_page(*links):
    rows = "".join(
        f'<div class="flip-entry"><a href="{href}" target="_blank"><div><img src="i.png"/></div>'
        f'<div class="flip-entry-title">{name}</div></a><div>1/1/22</div></div>'
        for href, name in links
    )
    return f"<html><head><title>set</title></head><body>{rows}</body></html>"


def test_drive_folder_with_folders_in_it():
    bodies = {
        "/embeddedfolderview?id=TOP": folder_page(
            ("https://drive.google.com/file/d/F1/view?usp=drive_web", "a [1 0].zip"),
            ("https://docs.google.com/document/d/D1/edit", "notes"),
            ("https://drive.google.com/drive/folders/SUB?usp=sharing", "R&amp;D"),
        ),
        "/embeddedfolderview?id=SUB": folder_page(
            ("https://drive.google.com/file/d/F_-2/view", "b/c.zip"),
            ("https://drive.google.com/drive/folders/TOP", "loop"),
        ),
    }
    found = listed("drive-folder", "TOP", bodies)
    assert found[:2] == [
        ("a [1 0].zip", "/download?id=F1&export=download&confirm=t", None, ""),
        ("R&D/b_c.zip", "/download?id=F_-2&export=download&confirm=t", None, ""),
    ]
    assert [name.count("/") for name, *_ in found] == [0, 1, 2, 3, 4, 5]  # the loop ends at DEPTH
    with pytest.raises(MirrorFailed, match="m shows no file"):
        listed("drive-folder", "TOP", {"/embeddedfolderview?id=TOP": folder_page()})


def test_drive_confirm_page_leads_to_the_file(tmp_path):
    def spoil(path, start):
        if "uuid" not in path:
            return {"status": 200, "type": "text/html; charset=utf-8", "body": CONFIRM}

    confirmed = "/download?id=F1&confirm=t%261&uuid=u-2"
    with Server({confirmed: b"data"}, spoil=spoil) as server, transport.session() as client:
        mirror = Mirror("m", "drive-file", "F1", save="a.zip", base=server.url)
        (remote,) = mirrors.remotes(entry(), mirror, client, EAGER)
        transport.get(remote, tmp_path / "a.zip", client, EAGER)
    assert (tmp_path / "a.zip").read_bytes() == b"data"
    assert parse_qs(urlsplit(server.asked[0][1]).query) == {
        "id": ["F1"],
        "export": ["download"],
        "confirm": ["t"],
    }


@pytest.mark.parametrize(
    "page, message",
    [
        (
            QUOTA,
            "quota that Google Drive sets for this file is used up: try again in a day, "
            ".*--from-local",
        ),
        (
            b"<html><title>Sign in</title></html>",
            "may be gone or not shared any more; see http://127.0.0.1",
        ),
    ],
)
def test_drive_quota_page_is_told_as_such(tmp_path, page, message):
    with Server(
        {}, spoil=lambda path, start: {"status": 200, "type": "text/html", "body": page}
    ) as server:
        with transport.session() as client:
            mirror = Mirror("m", "drive-file", "F1", save="a", base=server.url)
            (remote,) = mirrors.remotes(entry(), mirror, client, EAGER)
            with pytest.raises(MirrorFailed, match=message):
                transport.get(remote, tmp_path / "a", client, EAGER)
    assert list(tmp_path.iterdir()) == []


def test_the_registry_knows_better_than_the_mirror():
    record = {
        "files": [{"key": "a.zip", "size": 7, "checksum": "md5:0a", "links": {"self": "HOST/a"}}]
    }
    given = entry(files={"a.zip": {"sha256": "cd"}})
    assert listed("zenodo", "1", {"/api/records/1": record}, given) == [
        ("a.zip", "/a", 7, "sha256:cd")
    ]


def test_names_from_a_mirror_stay_inside():
    record = {"files": [{"key": "../../x", "size": 7, "links": {"self": "HOST/a"}}]}
    with pytest.raises(Refused, match="'../../x' would leave its folder"):
        listed("zenodo", "1", {"/api/records/1": record})


def test_no_json_where_json_is_expected():
    with pytest.raises(MirrorFailed, match="/api/records/1 sent no JSON"):
        listed("zenodo", "1", {"/api/records/1": "<html>maintenance</html>"})


def test_where_to_ask_whether_a_mirror_answers():
    assert mirrors.address(Mirror("m", "zenodo", "1")) == "https://zenodo.org/"
    assert mirrors.address(Mirror("m", "drive-folder", "1")) == "https://drive.google.com/"
    assert mirrors.address(Mirror("m", "http", "http://a/b.zip")) == "http://a/b.zip"
