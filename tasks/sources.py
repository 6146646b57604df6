"""Input files that the user names: their bytes, text and table cells, and a hash of their content."""

import csv
import hashlib
import io
from pathlib import Path

import fsspec

from tasks.exceptions import InputError

MAX_SOURCE_BYTES = 4 * 2**30  # a larger file is refused before it fills the memory


def read_bytes(source: str) -> bytes:
    """The bytes of a file or fsspec URL, decompressed if its name ends in .gz or the like; InputError if unreadable."""
    try:
        with fsspec.open(source, "rb", compression="infer" if not source.endswith(".zip") else None) as file:
            data = bytes(file.read(MAX_SOURCE_BYTES + 1))
    except (OSError, ValueError, ImportError, EOFError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InputError(f"Cannot read {source}: {reason}") from error
    if len(data) > MAX_SOURCE_BYTES:
        raise InputError(f"{source} is larger than {MAX_SOURCE_BYTES} bytes")
    return data


def decode_text(data: bytes, source: str) -> str:
    """UTF-8 text, with or without a byte-order mark; InputError names the byte where it stops being text."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{source} is not UTF-8 text: byte {error.start} cannot be decoded") from error
    if "\x00" in text:
        raise InputError(f"{source} is not a text file: it holds zero bytes")
    return text


def read_rows(text: str, source: str) -> list[list[str]]:
    """Rows of a table with commas, semicolons or tabs; blanks around cells and empty lines are left out."""
    head = next(iter(text.lstrip().splitlines()), "")
    if not head:
        raise InputError(f"{source} is empty; a table with a header row is expected")
    delimiter = max(",;\t", key=head.count)
    try:
        lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        cells = [[cell.strip() for cell in row] for row in lines]
    except csv.Error as error:
        raise InputError(f"{source} is not a table: {error}") from error
    rows = [row for row in cells if any(row)]
    if not rows:
        raise InputError(f"{source} is empty; a table with a header row is expected")
    return rows


def read_cells(text: str, source: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table as ``read_rows`` reads it."""
    header, *rows = read_rows(text, source)
    if not rows:
        raise InputError(f"{source} holds a header but no rows")
    return header, rows


def hash_source(source: str) -> str:
    """SHA-256 of a file's bytes, or of a folder's sorted names and bytes."""
    folder = Path(source)
    if not folder.is_dir():
        return _hash_file(source)
    digest = hashlib.sha256()
    for path in folder_files(folder):
        digest.update(f"{path.relative_to(folder).as_posix()}\n".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _hash_file(source: str) -> str:
    """SHA-256 of a file as it lies there, compressed or not."""
    try:
        with fsspec.open(source, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError, ImportError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InputError(f"Cannot read {source}: {reason}") from error


def folder_files(folder: Path) -> list[Path]:
    """Files under a folder, sorted by path, without hidden ones and links that lead elsewhere."""
    root = folder.resolve()
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.resolve().is_relative_to(root)
    ]
