"""Archives are read in memory and not trusted: each bad member has its reason, each bad archive its sentence."""

import gzip
import io
import lzma
import stat
import struct
import tarfile
import zipfile

import pytest

from tasks.archives import MAX_ARCHIVE_BYTES, MAX_FILE_BYTES, read_archive
from tasks.exceptions import InputError

TARS = ["a.tar", "a.tar.gz", "a.tgz", "a.tar.xz"]


def tar_bytes(*members):
    """A tar file of (name or TarInfo, bytes)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = info.size or len(data)
            archive.addfile(info, io.BytesIO(data) if info.isreg() else None)
    return buffer.getvalue()


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


def header(name, size, kind=tarfile.REGTYPE):
    """A header alone, which may claim any size."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def write(path, data):
    packed = {".gz": gzip.compress, "tgz": gzip.compress, ".xz": lzma.compress}.get(path.name[-3:], bytes)
    path.write_bytes(packed(data))
    return str(path)


def read(source):
    return {member.name: member.problem or member.data for member in read_archive(source)}


@pytest.mark.parametrize("name", TARS)
def test_members_of_a_tar(tmp_path, name):
    folder = special("b", tarfile.DIRTYPE)
    data = tar_bytes(("b/1.cif", b"one"), folder, ("2.cif", b""), (".hidden", b"x"), ("__MACOSX/2.cif", b"x"))
    assert read(write(tmp_path / name, data)) == {"b/1.cif": b"one", "2.cif": b""}
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_members_of_a_tar_that_are_refused(tmp_path):
    data = tar_bytes(
        ("../climbs.cif", b"x"),
        ("/etc/absolute.cif", b"x"),
        ("C:\\drive.cif", b"x"),
        special("soft.cif", tarfile.SYMTYPE, "/etc/passwd"),
        special("hard.cif", tarfile.LNKTYPE, "good.cif"),
        special("device.cif", tarfile.CHRTYPE),
        special("pipe.cif", tarfile.FIFOTYPE),
        ("huge.cif", bytes(MAX_FILE_BYTES + 1)),
        ("good.cif", b"good"),
    )
    found = read(write(tmp_path / "a.tar.xz", data))
    climbs = "its path climbs out of the archive"
    assert found.pop("good.cif") == b"good"
    assert found == {
        "../climbs.cif": climbs,
        "/etc/absolute.cif": climbs,
        "C:\\drive.cif": climbs,
        "soft.cif": "is a link; only files are read",
        "hard.cif": "is a link; only files are read",
        "device.cif": "is a device or pipe; only files are read",
        "pipe.cif": "is a device or pipe; only files are read",
        "huge.cif": f"is larger than {MAX_FILE_BYTES} bytes",
    }


GOOD = tar_bytes(("1.cif", b"one" * 300), ("2.cif", b"two" * 300))
BAD_TARS = {
    "empty": (b"", "empty"),
    "no tar": (b"no tar at all" * 100, "not a readable tar"),
    "ends in a member": (GOOD[:700], "unexpected end of data"),
    "ends between members": (GOOD[:1536], "no end mark"),
    "ends in a header": (GOOD[:1700], "no end mark"),
    "damaged header": (GOOD[:1536] + b"\xff" * 512 + GOOD[2048:], "no end mark"),
    "bomb": (header("a.cif", MAX_ARCHIVE_BYTES + 1), "would unpack to more"),
    "many bombs": (header("a.cif", MAX_ARCHIVE_BYTES // 2) * 3, "unexpected end of data"),
    "long name": (header("a", 2**33, tarfile.GNUTYPE_LONGNAME), "claims 8589934592 bytes"),
    "long extension": (header("a", 2**33, tarfile.XHDTYPE), "claims 8589934592 bytes"),
}


@pytest.mark.parametrize("name", BAD_TARS)
def test_a_damaged_tar_is_one_sentence(tmp_path, name):
    data, reason = BAD_TARS[name]
    for source in (write(tmp_path / "a.tar", data), write(tmp_path / "a.tar.gz", data)):
        with pytest.raises(InputError, match=reason) as raised:
            read(source)
        assert source in str(raised.value)


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tar.xz"])
@pytest.mark.parametrize("keep", [20, -30, -4])
def test_a_cut_compressed_tar_is_one_sentence(tmp_path, name, keep):
    source = write(tmp_path / name, GOOD)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:keep])
    with pytest.raises(InputError, match="is not a readable tar file"):
        read(source)


def test_a_wrong_checksum_is_seen(tmp_path):
    data = bytearray(gzip.compress(GOOD))
    data[-8] ^= 0xFF
    (tmp_path / "a.tar.gz").write_bytes(bytes(data))
    with pytest.raises(InputError, match="CRC check failed"):
        read(str(tmp_path / "a.tar.gz"))


def test_a_real_bomb_is_not_unpacked(tmp_path):
    """A gigabyte of zeros in a megabyte, as a member that claims more than is allowed."""
    with gzip.open(tmp_path / "a.tar.gz", "wb", compresslevel=1) as file:
        file.write(header("a.cif", MAX_ARCHIVE_BYTES * 2))
        for _ in range(64):
            file.write(bytes(2**20))
    with pytest.raises(InputError, match="would unpack to more"):
        read(str(tmp_path / "a.tar.gz"))


def test_names_that_are_no_text_can_be_told(tmp_path):
    data = tar_bytes(("aaaa.cif", b"x")).replace(b"aaaa.cif", b"\xff\xfeaa.cif")
    blank = data[:148] + b" " * 8 + data[156:512]
    data = data[:148] + f"{sum(blank):06o}\0 ".encode() + data[156:]
    (name,) = read(write(tmp_path / "a.tar", data))
    assert name.encode().endswith(b"aa.cif")


def test_a_zip_that_would_unpack_to_too_much(tmp_path):
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(3):
            archive.writestr(f"{number}.cif", bytes(1000))
    data = bytearray(path.read_bytes())
    for entry in range(3):  # sizes as a bomb states them
        start = [i for i in range(len(data)) if data[i : i + 4] == b"PK\x01\x02"][entry]
        data[start + 24 : start + 28] = struct.pack("<I", MAX_ARCHIVE_BYTES // 2)
    path.write_bytes(bytes(data))
    with pytest.raises(InputError, match="would unpack to 3 files and 6442450944 bytes"):
        read(str(path))


def test_members_of_a_zip_that_are_refused(tmp_path):
    path = tmp_path / "a.zip"
    link = zipfile.ZipInfo("link.cif")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(link, "/etc/passwd")
        for name in (".", "..\\up.cif", "a/../../up.cif", "C:/x.cif", "good.cif"):
            archive.writestr(name, "x")
    found = read(str(path))
    assert found["good.cif"] == b"x"
    assert found["link.cif"] == "is a link; only files are read"
    assert [name for name, problem in found.items() if "climbs" in str(problem)] == [
        "..\\up.cif",
        "a/../../up.cif",
        "C:/x.cif",
    ]


@pytest.mark.parametrize("keep", [0, 10, -30])
def test_a_cut_zip_is_one_sentence(tmp_path, keep):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.cif", "x" * 100)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match="is not a readable zip file"):
        read(str(path))


def test_an_archive_that_is_not_there(tmp_path):
    for name in ("a.zip", "a.tar", "a.tar.gz"):
        with pytest.raises(InputError, match="No such file"):
            read(str(tmp_path / name))
