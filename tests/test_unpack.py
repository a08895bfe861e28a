"""Archives: honest ones byte for byte, malicious ones refused with nothing left, damaged ones told
apart from both."""

import gzip
import io
import os
import random
import shutil
import stat
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from contextlib import contextmanager

import pytest

from data_download.registry import Refused
from data_download.unpack import LIMITS, Damaged, Limits, is_archive, unpack

TREE = {
    "top/a [1 0 0 1].png": random.Random(0).randbytes(200_000),
    "top/sub/ü.txt": b"text",
    "top/empty.txt": b"",
    "readme": b"x" * 70_000,
}
SUFFIXES = {"zip": ".zip", "": ".tar", "gz": ".tar.gz", "bz2": ".tar.bz2", "xz": ".tar.xz"}


def make_tar(path, members, mode="w"):
    """members: name -> bytes, or a TarInfo's type (with linkname "readme")."""
    with tarfile.open(path, mode) as file:
        for name, body in members.items():
            info = tarfile.TarInfo(name)
            if body in (
                tarfile.SYMTYPE,
                tarfile.LNKTYPE,
                tarfile.CHRTYPE,
                tarfile.FIFOTYPE,
                tarfile.DIRTYPE,
            ):
                info.type, info.linkname, body = body, "readme", b""
            info.size = len(body)
            file.addfile(info, io.BytesIO(body))
    return path


def make_zip(path, members):
    """members: name -> bytes, or a file type of stat (with the content "readme")."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, body in members.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            if isinstance(body, int):
                info.external_attr, body = body << 16, b"readme"
            file.writestr(info, body)
    return path


def make(path, members, kind):
    return make_zip(path, members) if kind == "zip" else make_tar(path, members, f"w:{kind}")


def tree(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def refused(tmp_path):
    """The message of a refusal, and the proof that nothing but the archive is on the disk after
    it."""

    def call(archive, limits=LIMITS, error=Refused):
        home = tmp_path / "here"
        home.mkdir(exist_ok=True)
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(error) as found:
            unpack(archive, home / "out", limits)
        assert sorted(tmp_path.rglob("*")) == before
        return str(found.value)

    return call


@contextmanager
def peak_below(limit):
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


# honest archives


@pytest.mark.parametrize("kind", SUFFIXES)
def test_unpacked_byte_for_byte(tmp_path, kind):
    archive = make(tmp_path / f"a{SUFFIXES[kind]}", TREE, kind)
    assert is_archive(archive)
    assert unpack(archive, tmp_path / "out") == 4
    assert tree(tmp_path / "out") == TREE and sorted(path.name for path in tmp_path.iterdir()) == [
        archive.name,
        "out",
    ]
    # a Drive file may have no suffix: its first bytes tell
    bare = archive.rename(tmp_path / "copy")
    assert is_archive(bare) and unpack(bare, tmp_path / "again") == 4


def test_what_is_an_archive(tmp_path):
    files = {
        "a.png": b"\x89PNG",
        "x.npz": b"PK\x03\x04",
        "w.bin": b"PK\x03\x04",
        "notes": b"text",
        "b.rar": b"",
        "c.7z": b"",
        "D.ZIP": b"",
        "e.tgz": b"",
    }
    for name, body in files.items():
        (tmp_path / name).write_bytes(body)
    assert [name for name in files if is_archive(tmp_path / name)] == [
        "b.rar",
        "c.7z",
        "D.ZIP",
        "e.tgz",
    ]


def test_folders_and_the_dot_of_tar(tmp_path):
    archive = make_tar(
        tmp_path / "a.tar", {".": tarfile.DIRTYPE, "./d": tarfile.DIRTYPE, "./d/x": b"one"}
    )
    assert unpack(archive, tmp_path / "out") == 1 and tree(tmp_path / "out") == {"d/x": b"one"}


def test_windows_separators(tmp_path):
    assert unpack(make_zip(tmp_path / "a.zip", {"img\\x.png": b"one"}), tmp_path / "out") == 1
    assert tree(tmp_path / "out") == {"img/x.png": b"one"}


def test_what_a_killed_run_left_is_replaced(tmp_path):
    archive = make(tmp_path / "a.zip", TREE, "zip")
    (tmp_path / ".out.unpacking/top").mkdir(parents=True)
    (tmp_path / ".out.unpacking/half").write_bytes(b"half")
    assert unpack(archive, tmp_path / "out") == 4
    assert tree(tmp_path / "out") == TREE and not (tmp_path / ".out.unpacking").exists()


# malicious archives


@pytest.mark.parametrize(
    "name", ["/x", "../x", "a/../../x", "C:\\x", "\\\\host\\x", "..\\..\\x", "a\nb"]
)
@pytest.mark.parametrize("kind", ["zip", "gz"])
def test_paths_that_lead_out(tmp_path, refused, kind, name):
    archive = make(tmp_path / "evil", {"good": b"one", name: b"two"}, kind)
    assert "would leave its folder" in refused(archive)


@pytest.mark.parametrize(
    "type", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_in_a_tar(tmp_path, refused, type):
    archive = make_tar(tmp_path / "evil.tar", {"readme": b"one", "x": type})
    assert "'x' is neither a file nor a folder (a link or a device)" in refused(archive)


@pytest.mark.parametrize(
    "kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK]
)
def test_links_and_devices_in_a_zip(tmp_path, refused, kind):
    archive = make_zip(tmp_path / "evil.zip", {"readme": b"one", "x": kind | 0o777})
    assert "'x' is neither a file nor a folder (a link or a device)" in refused(archive)


def test_a_sparse_file_of_a_tebibyte(tmp_path, refused):
    """GNU's sparse files announce any size and hold nothing."""
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 0
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[483:495] = b"%011o\0" % 7  # real size; any will do
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "evil.tar").write_bytes(bytes(header) + bytes(1024))
    assert "neither a file nor a folder" in refused(tmp_path / "evil.tar")


@pytest.mark.parametrize("kind", ["zip", ""])
@pytest.mark.parametrize("names", [("a.png", "A.PNG"), ("é", "e\u0301"), ("d/x", "D/X")])
def test_names_that_collide_on_some_disks(tmp_path, refused, kind, names):
    archive = make(tmp_path / "evil", dict.fromkeys(names, b"one"), kind)
    assert "is in it twice, or once more in other letters" in refused(archive)


@pytest.mark.parametrize("kind", ["zip", ""])
def test_a_file_that_is_a_folder_too(tmp_path, refused, kind):
    refused(make(tmp_path / "evil", {"a": b"one", "a/b": b"two"}, kind))


def zeros(packed_mebibytes):
    """Raw deflate of about 1030 times as many zeros: one block that leans on nothing before it,
    repeated."""
    packer = zlib.compressobj(9, wbits=-15)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    count = (packed_mebibytes << 20) // len(block)
    return block * count + b"\x03\x00", count << 20


def zip_of(path, packed, size, count=1, name=b"x"):
    """A zip, by hand: `count` directory entries that all point to one file."""
    local = (
        struct.pack(
            "<4s5H3I2H", b"PK\x03\x04", 45, 0, 8, 0, 33, 0, 0xFFFFFFFF, 0xFFFFFFFF, len(name), 20
        )
        + name
    )
    extra = struct.pack("<2H2Q", 1, 16, size, len(packed))
    entry = (
        struct.pack(
            "<4s6H3I5H2I",
            b"PK\x01\x02",
            45,
            45,
            0,
            8,
            0,
            33,
            0,
            0xFFFFFFFF,
            0xFFFFFFFF,
            len(name),
            20,
            0,
            0,
            0,
            0,
            0,
        )
        + name
        + extra
    )
    start, length = len(local) + 20 + len(packed), len(entry) * count
    with open(path, "wb") as file:
        file.write(local + extra + packed)
        file.write(entry * count)
        file.write(
            struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, length, start)
        )
        file.write(struct.pack("<4sIQI", b"PK\x06\x07", 0, start + length, 1))
        file.write(
            struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
        )
    return path


def test_ten_gigabytes_of_zeros_in_ten_megabytes_zip(tmp_path, refused):
    packed, size = zeros(10)
    archive = zip_of(tmp_path / "bomb.zip", packed, size)
    assert size > 10e9 and archive.stat().st_size < 10.6e6
    # a zip that others would unpack
    assert zipfile.ZipFile(archive).infolist()[0].file_size == size
    assert "swells to more than 500 times its size, as bombs do" in refused(archive)


def test_ten_gigabytes_of_zeros_in_ten_megabytes_tar(tmp_path, refused):
    packed, size = zeros(10)
    info = tarfile.TarInfo("x")
    info.size = size
    head = zlib.compressobj(wbits=-15)
    start = head.compress(info.tobuf()) + head.flush(zlib.Z_FULL_FLUSH)
    (tmp_path / "bomb.tgz").write_bytes(b"\x1f\x8b\x08\0\0\0\0\0\0\x03" + start + packed)
    assert "swells to more than 500 times its size" in refused(tmp_path / "bomb.tgz")


def test_a_tar_header_that_is_itself_a_bomb(tmp_path, refused):
    """A pax header of 10 GB would be read into memory by tarfile, before any file is announced."""
    packed, size = zeros(10)
    info = tarfile.TarInfo("././@PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, size
    head = zlib.compressobj(wbits=-15)
    start = head.compress(info.tobuf(tarfile.GNU_FORMAT)) + head.flush(zlib.Z_FULL_FLUSH)
    (tmp_path / "bomb.tgz").write_bytes(b"\x1f\x8b\x08\0\0\0\0\0\0\x03" + start + packed)
    with peak_below(64 << 20):
        assert "between two entries it holds more than names" in refused(tmp_path / "bomb.tgz")


def test_a_million_entries_in_a_zip(tmp_path, refused):
    """Counted without an object for each: zipfile alone would take half a gigabyte."""
    archive = zip_of(tmp_path / "bomb.zip", b"\x03\x00", 0, count=1_000_000)
    with peak_below(16 << 20):
        assert "it has 1,000,000 entries, over 200,000" in refused(archive)


def test_more_entries_than_the_limit_in_a_tar(tmp_path, refused):
    """A folder may stand in a tar a million times; it is left after the first one over the
    limit."""
    header = make_tar(tmp_path / "d.tar", {"d": tarfile.DIRTYPE}).read_bytes()[:512]
    (tmp_path / "d.tar").write_bytes(gzip.compress(header * 100_000, 1))
    assert "it has more than 1,000 entries" in refused(tmp_path / "d.tar", Limits(entries=1000))


@pytest.mark.parametrize("kind", ["zip", "gz"])
def test_the_limits_hold_for_all_entries_together(tmp_path, refused, kind):
    archive = make(tmp_path / "big", {str(i): bytes(1000) for i in range(20)}, kind)
    assert "it holds more than 19,999 bytes" in refused(archive, Limits(total=19_999))
    assert "swells to more than 5 times" in refused(archive, Limits(ratio=5, floor=0))
    assert unpack(archive, tmp_path / "out", Limits(total=20_000)) == 20


def test_more_than_the_disk_holds(tmp_path, refused, monkeypatch):
    archive = make(tmp_path / "a.zip", TREE, "zip")
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 9, 9)
    )
    assert "a.zip needs 270,004 bytes when unpacked, 9 are free" in refused(archive)


def test_encrypted_and_foreign_kinds(tmp_path, refused):
    archive = make_zip(tmp_path / "a.zip", {"x": b"one"})
    data = bytearray(archive.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(data)
    assert "it is encrypted" in refused(archive)
    for name, magic in (("a.rar", b"Rar!\x1a\x07\x00"), ("a.7z", b"7z\xbc\xaf\x27\x1c")):
        (tmp_path / name).write_bytes(magic)
        assert (
            "which Python cannot open: unpack it yourself (7-Zip, or your system) and give the "
            "folder with --from-local"
        ) in refused(tmp_path / name)


# damaged archives


@pytest.mark.parametrize("kind", SUFFIXES)
def test_cut_archives(tmp_path, refused, kind):
    archive = make(tmp_path / "cut", TREE, kind)
    # a plain tar ends in padding
    os.truncate(archive, archive.stat().st_size * 2 // 3 if kind else 100_000)
    assert "cut is damaged" in refused(archive, error=Damaged)


@pytest.mark.parametrize("kind", ["zip", "gz", "bz2", "xz"])
def test_one_wrong_byte(tmp_path, refused, kind):
    archive = make(tmp_path / "bad", TREE, kind)
    data = bytearray(archive.read_bytes())
    data[100_000] ^= 1
    archive.write_bytes(data)
    assert "bad is damaged" in refused(archive, error=Damaged)


@pytest.mark.parametrize(
    "body", [b"", b"<!doctype html>", b"PK\x03\x04 and no more", b"PK\x05\x06", b"\x1f\x8bno"]
)
def test_no_archive_at_all(tmp_path, refused, body):
    (tmp_path / "a.zip").write_bytes(body)
    assert "a.zip is damaged or no archive" in refused(tmp_path / "a.zip", error=Damaged)


@pytest.mark.parametrize("header", ["local", "central", "empty"])
def test_a_name_that_is_broken_in_either_header_of_a_zip(tmp_path, refused, header):
    make_zip(tmp_path / "a.zip", {"ü.txt": b"1"})
    raw = bytearray((tmp_path / "a.zip").read_bytes())
    first, second = raw.find(b"\xc3\xbc"), raw.rfind(b"\xc3\xbc")
    if header == "empty":  # its name has become a field of its own in the central header
        raw[second - 18 : second - 14] = struct.pack("<HH", 0, 6)
        raw[second : second + 6] = struct.pack("<HH2x", 1, 2)
    else:
        raw[first if header == "local" else second] = 0xFF  # no UTF-8
    (tmp_path / "a.zip").write_bytes(raw)
    assert "a.zip is damaged or no archive" in refused(tmp_path / "a.zip", error=Damaged)
