"""Members of zip and tar archives, read in memory: nothing is ever unpacked to disk, and nothing in them is trusted.

A member that cannot be had is an item with a problem; an archive that is damaged as a whole is an InputError.
"""

import io
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PureWindowsPath
from typing import IO, Any

import fsspec

from tasks.exceptions import InputError
from tasks.sources import read_bytes

MAX_FILE_BYTES = 20 * 2**20  # one crystal; the largest CIFs of databases have a few megabytes
MAX_ARCHIVE_BYTES = 4 * 2**30  # all members together, unpacked
MAX_MEMBERS = 500_000
TAR_COMPRESSIONS = {".tar": None, ".tar.gz": "gzip", ".tgz": "gzip", ".tar.xz": "xz", ".txz": "xz"}
BLOCK = 512  # bytes; a tar file ends with blocks of zeros


@dataclass(frozen=True)
class Member:
    """A file in an archive; ``problem`` says why it was not read."""

    name: str
    data: bytes = b""
    problem: str | None = None


def is_archive(name: str) -> bool:
    """Whether the name is that of an archive that can be read."""
    return name.lower().endswith((".zip", *TAR_COMPRESSIONS))


def read_archive(source: str) -> Iterator[Member]:
    """Members of an archive in its own order; folders and hidden files are left out.

    Raises
    ------
    InputError
        If the archive is damaged, cut short, or would unpack to too much.
    """
    return _zip_members(source) if source.lower().endswith(".zip") else _tar_members(source)


def _zip_members(source: str) -> Iterator[Member]:
    data = read_bytes(source)
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError) as error:
        raise InputError(f"{source} is not a readable zip file: {error}") from error
    infos = [info for info in archive.infolist() if not info.is_dir() and not _hidden(info.filename)]
    size = sum(info.file_size for info in infos)
    if len(infos) > MAX_MEMBERS or size > MAX_ARCHIVE_BYTES:
        raise InputError(
            f"{source} would unpack to {len(infos)} files and {size} bytes; "
            f"allowed are {MAX_MEMBERS} and {MAX_ARCHIVE_BYTES}"
        )
    for info in infos:
        link = stat.S_ISLNK(info.external_attr >> 16)
        if problem := "is a link; only files are read" if link else _problem(info.filename, info.file_size):
            yield Member(info.filename, problem=problem)
            continue
        try:
            with archive.open(info) as file:
                content = file.read(MAX_FILE_BYTES + 1)
        except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError, OSError, zlib.error) as error:
            yield Member(info.filename, problem=f"cannot be unpacked: {error}")
        else:
            yield Member(info.filename, content)


def _tar_members(source: str) -> Iterator[Member]:
    ending = max((ending for ending in TAR_COMPRESSIONS if source.lower().endswith(ending)), key=len)
    try:
        with fsspec.open(source, "rb", compression=TAR_COMPRESSIONS[ending]) as file:
            bounded = _Bounded(file)
            # the type checker asks for a real file, the library for read, seek and tell
            with tarfile.open(fileobj=bounded, mode="r:", errors="replace") as archive:  # type: ignore[call-overload]
                yield from _read_tar(archive)
                bounded.seek(archive.offset)
                if bounded.read(BLOCK) != bytes(BLOCK):
                    raise tarfile.ReadError("it is cut short or damaged: no end mark stands behind the last member")
                while bounded.read(2**20):
                    pass  # to the end of the compressed stream, where its checksum is
    except (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError, ValueError, ImportError) as error:
        if isinstance(error, InputError):
            raise
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InputError(f"{source} is not a readable tar file: {reason}") from error


def _read_tar(archive: tarfile.TarFile) -> Iterator[Member]:
    for count, info in enumerate(archive, start=1):
        if count > MAX_MEMBERS:
            raise tarfile.ReadError(f"it holds more than {MAX_MEMBERS} members")
        if info.isdir() or _hidden(info.name):
            continue
        problem = _problem(info.name, info.size)
        if info.issym() or info.islnk():
            problem = "is a link; only files are read"
        elif not info.isreg():
            problem = "is a device or pipe; only files are read"
        file = None if problem else archive.extractfile(info)
        yield Member(info.name, file.read() if file else b"", problem)


def _hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) and part != ".." for part in PureWindowsPath(name).parts)


def _problem(name: str, size: int) -> str | None:
    """Why a member is not read, as far as its header tells."""
    path = PureWindowsPath(name)  # takes both kinds of slashes, and drives
    if ".." in path.parts or path.anchor:
        return "its path climbs out of the archive"
    if size > MAX_FILE_BYTES:
        return f"is larger than {MAX_FILE_BYTES} bytes"
    return None


class _Bounded:
    """A stream that is read up to a bound and in bounded pieces: the headers of a tar file may claim any length."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_FILE_BYTES + BLOCK:
            raise tarfile.ReadError(f"a header of it claims {size} bytes")
        data = self.file.read(size)
        self._check(self.file.tell())
        return data

    def seek(self, position: int, whence: int = 0) -> int:
        self._check(position)
        return self.file.seek(position, whence)

    def tell(self) -> int:
        return self.file.tell()

    def _check(self, position: int) -> Any:
        if position > MAX_ARCHIVE_BYTES:
            raise tarfile.ReadError(f"it would unpack to more than {MAX_ARCHIVE_BYTES} bytes")
