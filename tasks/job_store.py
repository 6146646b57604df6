"""jobflow's store as files in the workspace: no server, one file a document, safe for many processes at once."""

import gzip
import json
import logging
import re
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

from jobflow import JobStore
from maggma.core import Sort, Store
from maggma.stores import MemoryStore
from monty.json import MontyEncoder

from tasks.exceptions import InputError, WorkspaceError
from tasks.workspace import Workspace

DOCUMENTS = "jobs/documents"
DATA = "jobs/data"  # large parts of documents, which jobs ask to keep apart

logger = logging.getLogger(__name__)


class FileStore(Store):  # type: ignore[misc]
    """A maggma store of gzipped JSON files in a workspace, a local folder or S3.

    A document's file is named by its key (and its index), so it is found without reading the others; other queries
    read all files. Files are written whole or not at all. One that cannot be read is put aside under the name
    ``….damaged`` and counts as absent, so that its job runs again.

    Parameters
    ----------
    workspace
        Folder or URL.
    folder
        Where in the workspace.
    key
        Field that names a document.
    """

    def __init__(self, workspace: str, folder: str = DOCUMENTS, key: str = "uuid", **kwargs: Any) -> None:
        self.workspace = workspace
        self.folder = folder
        super().__init__(key=key, **kwargs)

    @property
    def name(self) -> str:
        """A string that names the store."""
        return f"file://{self.workspace}/{self.folder}"

    @property
    def _place(self) -> Workspace:
        return Workspace(self.workspace)

    @property
    def _collection(self) -> Any:
        raise NotImplementedError("files have no MongoDB collection")

    def connect(self, force_reset: bool = False) -> None:
        """Nothing is kept open."""

    def close(self) -> None:
        """Nothing is kept open."""

    def ensure_index(self, key: str, unique: bool = False) -> bool:  # noqa: ARG002
        """File names are the index."""
        return key == self.key

    def count(self, criteria: dict[str, Any] | None = None) -> int:
        """Number of documents that fit."""
        return sum(1 for _ in self.query(criteria))

    def query(
        self,
        criteria: dict[str, Any] | None = None,
        properties: dict[str, Any] | list[str] | None = None,
        sort: dict[str, Sort | int] | None = None,
        skip: int = 0,
        limit: int = 0,
    ) -> Iterator[dict[str, Any]]:
        """Documents that fit a MongoDB filter."""
        yield from self._in_memory(criteria).query(criteria, properties, sort=sort, skip=skip, limit=limit)

    def groupby(
        self,
        keys: list[str] | str,
        criteria: dict[str, Any] | None = None,
        properties: dict[str, Any] | list[str] | None = None,
        sort: dict[str, Sort | int] | None = None,
        skip: int = 0,
        limit: int = 0,
    ) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
        """Documents that fit, grouped by some fields."""
        yield from self._in_memory(criteria).groupby(keys, criteria, properties, sort, skip, limit)

    def update(self, docs: list[dict[str, Any]] | dict[str, Any], key: list[str] | str | None = None) -> None:
        """Write documents; one with the same key (and index, where that belongs to the key) is replaced."""
        for document in [docs] if isinstance(docs, Mapping) else docs:
            plain = {name: value for name, value in document.items() if name != "_id"}
            packed = gzip.compress(json.dumps(plain, cls=MontyEncoder).encode(), compresslevel=3, mtime=0)
            self._place.write_bytes(self._file(plain, key), packed)

    def remove_docs(self, criteria: dict[str, Any]) -> None:
        """Remove the documents that fit."""
        for document in list(self.query(criteria)):
            for name in self._files_of(document[self.key]):
                self._place.remove(name)

    def _file(self, document: Mapping[str, Any], key: list[str] | str | None) -> str:
        fields = [key] if isinstance(key, str) else list(key or [self.key])
        last = f".{document['index']}" if "index" in fields else ""
        return f"{self.folder}/{_safe(document[self.key])}{last}.json.gz"

    def _files_of(self, value: str) -> list[str]:
        return self._place.list(f"{self.folder}/{_safe(value)}.*gz")

    def _in_memory(self, criteria: dict[str, Any] | None) -> MemoryStore:
        """The documents that a filter can concern, in a store that understands MongoDB's filters."""
        wanted = (criteria or {}).get(self.key)
        if isinstance(wanted, str):
            names = self._files_of(wanted)
        elif isinstance(wanted, Mapping) and set(wanted) == {"$in"}:
            names = [name for value in wanted["$in"] for name in self._files_of(value)]
        else:
            names = self._place.list(f"{self.folder}/*.json.gz")
        memory = MemoryStore(key=self.key)
        memory.connect()
        found = [document for name in names if (document := self._read(name)) is not None]
        if found:
            numbers = count()
            memory._collection.insert_many([{**document, "_id": next(numbers)} for document in found])
        return memory

    def _read(self, name: str) -> dict[str, Any] | None:
        place = self._place
        try:
            document: dict[str, Any] = json.loads(gzip.decompress(place.read_bytes(name)))
        except WorkspaceError:  # another process removed or replaced it in between
            return None
        except (OSError, EOFError, ValueError) as error:
            logger.warning("%s is damaged (%s): put aside, its job will run again", place.path(name), error)
            place.write_bytes(f"{name}.damaged", place.read_bytes(name))
            place.remove(name)
            return None
        return document


def _safe(value: str) -> str:
    """A key as part of a file name."""
    return re.sub(r"[^A-Za-z0-9-]", "_", value)


def open_job_store(workspace: str, setting: str) -> JobStore:
    """The store of the band calculations.

    Parameters
    ----------
    setting
        ``files`` (in the workspace), ``memory`` (lost with the process), or a file that describes a store as jobflow's
        own JOB_STORE does: JSON or YAML with ``docs_store`` and ``additional_stores``, such as MongoDB and S3.

    Raises
    ------
    InputError
        If the file is missing or describes no store.
    """
    if setting == "files":
        return JobStore(FileStore(workspace), additional_stores={"data": FileStore(workspace, DATA, "blob_uuid")})
    if setting == "memory":
        return JobStore(MemoryStore(), additional_stores={"data": MemoryStore()})
    path = Path(setting).expanduser()
    if not path.is_file():
        raise InputError(f"Job store {setting!r} is neither 'files', 'memory' nor a file (bands.store)")
    try:
        return JobStore.from_file(path)
    except Exception as error:
        raise InputError(
            f"{path} describes no job store as jobflow's JOB_STORE does: {type(error).__name__}: {error}"
        ) from error
