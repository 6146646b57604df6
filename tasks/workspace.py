"""The workspace: an fsspec URL that holds everything the system makes, written so that no reader sees half a file."""

import contextlib
import hashlib
import json
import os
import posixpath
import shutil
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from models.exceptions import MeissnerError
from tasks.exceptions import MissingStageError, WorkspaceError
from tasks.object_storage import store_errors, store_options

LEAST_FREE = 200_000_000  # bytes; the starter run makes 114 MB


class Workspace:
    """Named tables, documents and files under one URL.

    Names are relative POSIX paths such as ``supercon/superconductors.parquet``. A local file is written beside its
    final name, flushed to disk and renamed over it; an object store puts an object whole. Errors of the file system
    (no permission, full disk) come out as one WorkspaceError that names the file.
    """

    def __init__(self, url: str | Path) -> None:
        self.url = str(url)
        self.fs, root = fsspec.url_to_fs(self.url, **store_options(self.url))
        self.root = root.rstrip("/")
        self.is_local = isinstance(self.fs, LocalFileSystem)

    def __repr__(self) -> str:
        return f"Workspace({self.url!r})"

    def path(self, name: str) -> str:
        """Full path of ``name`` on the workspace's file system."""
        clean = posixpath.normpath(name)
        if clean.startswith(("/", "..")):
            raise WorkspaceError(f"{name!r} is not a name inside the workspace {self.url}")
        return f"{self.root}/{clean}"

    def local(self, name: str) -> Path:
        """The name as a local path, for programs that need a real folder; the workspace must be a local one."""
        if not self.is_local:
            raise WorkspaceError(f"{name} must be a local folder, but the workspace is {self.url}")
        return Path(self.path(name))

    def check_writable(self) -> None:
        """Raise WorkspaceError at once if nothing can be written here, or the disk is all but full."""
        name = f".write-test-{uuid.uuid4().hex}"
        self.write_bytes(name, b"")
        self.remove(name)
        if self.is_local and (free := shutil.disk_usage(self.root).free) < LEAST_FREE:
            raise WorkspaceError(
                f"Cannot work in the workspace {self.url}: {free / 1e6:.0f} MB are free there, and at least "
                f"{LEAST_FREE / 1e6:.0f} MB are needed"
            )

    def exists(self, name: str) -> bool:
        """Whether the file or folder is there."""
        with self.errors("look for", name):
            return bool(self.fs.exists(self.path(name)))

    def list(self, pattern: str) -> list[str]:
        """Names that fit a glob pattern, sorted."""
        prefix = len(self.root) + 1
        with self.errors("look for", pattern):
            return sorted(str(found)[prefix:] for found in self.fs.glob(self.path(pattern)))

    def remove(self, name: str) -> None:
        """Remove a file or a whole folder; nothing happens if it is not there."""
        with self.errors("remove", name):
            if self.fs.exists(self.path(name)):
                self.fs.rm(self.path(name), recursive=True)

    def read_bytes(self, name: str) -> bytes:
        """The file's bytes."""
        with self.errors("read", name):
            return bytes(self.fs.cat_file(self.path(name)))

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a file whole or not at all."""
        with self.errors("write", name):
            target = self.path(name)
            if not self.is_local:
                self.fs.pipe_file(target, data)
                return
            with atomic_path(Path(target)) as scratch, scratch.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())

    def read_json(self, name: str) -> Any:
        """The document in a JSON file."""
        return json.loads(self.read_bytes(name))

    def write_json(self, name: str, document: Any) -> None:
        """Write a document as indented JSON."""
        self.write_bytes(name, (json.dumps(document, indent=1, sort_keys=True, default=str) + "\n").encode())

    def read_table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """A Parquet table, or some of its columns."""
        with self.errors("read", name), self.fs.open(self.path(name), "rb") as file:
            return pq.read_table(file, columns=list(columns) if columns else None)

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write a Parquet table (zstd) whole or not at all."""
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        self.write_bytes(name, sink.getvalue().to_pybytes())

    def modified(self, name: str) -> datetime:
        """When the file was last written."""
        with self.errors("read", name):
            found = self.fs.modified(self.path(name))
        return found if found.tzinfo else found.replace(tzinfo=UTC)

    def fingerprint(self, name: str) -> str:
        """SHA-256 of the file's bytes."""
        return hashlib.sha256(self.read_bytes(name)).hexdigest()

    @contextlib.contextmanager
    def errors(self, verb: str, name: str) -> Iterator[None]:
        """Failures of the file system within the block as one WorkspaceError that names the file."""
        try:
            yield
        except MeissnerError:
            raise
        except FileNotFoundError as error:
            if verb == "write":
                raise WorkspaceError(f"Cannot write {name} in the workspace {self.url}: {error.strerror}") from error
            raise MissingStageError(
                f"{name} is not in the workspace {self.url}; run the stage that makes it (`meissner discover` runs all)"
            ) from error
        except store_errors() as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise WorkspaceError(f"Cannot {verb} {name} in the workspace {self.url}: {reason}") from error
        except pa.ArrowInvalid as error:
            raise WorkspaceError(f"{name} in the workspace {self.url} is damaged: {error}") from error


@contextlib.contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """A scratch path in the target's folder, renamed over the target at the end, removed if anything fails.

    The scratch may become a file or a folder; an existing target folder is replaced.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.part"
    try:
        yield scratch
        if scratch.is_dir() and target.is_dir():
            shutil.rmtree(target)
        scratch.replace(target)
    finally:
        if scratch.is_dir():
            shutil.rmtree(scratch, ignore_errors=True)
        else:
            scratch.unlink(missing_ok=True)
