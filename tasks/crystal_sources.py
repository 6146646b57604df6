"""Where crystals come from: files, and databases whose answers are kept in the workspace.

A source is a path or fsspec URL, ``mp`` (the Materials Project) or ``optimade:`` with a provider or an address. What a
database answered lies in ``crystals/sources/<name>.parquet`` (FETCHED_CRYSTALS), with the query, its hash and the date
in the file's metadata; the same query is not asked twice. Finished pages lie beside it until the last one is there, so
a fetch that broke off goes on where it was.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, SecretStr

from tasks.crystal_files import CrystalText, read_crystals
from tasks.events import StageEvent, publish
from tasks.exceptions import InputError, MissingStageError
from tasks.materials_project import NAME as MATERIALS_PROJECT
from tasks.materials_project import MaterialsProjectSource
from tasks.optimade import PREFIX as OPTIMADE
from tasks.optimade import OptimadeSource
from tasks.remote import Database, Page
from tasks.schemas import FETCHED_CRYSTALS
from tasks.settings import FetchSettings
from tasks.sources import hash_source
from tasks.stages import hash_text
from tasks.workspace import Workspace

STAGE = "crystals"
FOLDER = "crystals/sources"
METADATA = b"meissner"
PAGES_KEPT = timedelta(days=1)  # pages of an older unfinished fetch are not mixed with new ones


class FetchReport(BaseModel):
    """What was fetched from a database; it stands in the file's metadata too."""

    model_config = ConfigDict(frozen=True)

    source: str
    query: dict[str, Any]
    query_hash: str
    fetched: datetime
    rows: int
    reused: bool = False


def as_sources(sources: str | Sequence[str]) -> tuple[str, ...]:
    """One source or several, as a tuple."""
    return (sources,) if isinstance(sources, str) else tuple(sources)


def is_database(source: str) -> bool:
    """Whether a source is asked over the network; a file named ``mp`` is given as ``./mp``."""
    return source == MATERIALS_PROJECT or source.startswith(OPTIMADE)


def fetched_name(source: str) -> str:
    """Where a database's answer lies in the workspace; addresses carry a hash, so that they stay apart."""
    plain = source.replace(":", "-", 1)
    safe = re.sub(r"[^A-Za-z0-9.-]+", "-", plain).strip("-.")
    suffix = "" if safe == plain else f"-{hash_text(source)[:8]}"
    return f"{FOLDER}/{safe}{suffix}.parquet"


def fetch_source(workspace: Workspace, source: str, settings: FetchSettings, key: SecretStr | None) -> FetchReport:
    """Fetch a database's crystals into the workspace, unless the same query was answered before.

    Raises
    ------
    RemoteError
        If the database does not answer now.
    InputError
        If the key, the filter or the name is wrong, or nothing fits the query.
    """
    database = _open_database(source, settings, key)
    if found := _answered(workspace, source, database, settings):
        return found.model_copy(update={"reused": True})
    database.check()
    query_hash = _query_hash(source, database)
    pages = _Pages(workspace, source, query_hash)
    _fetch_missing(database, pages)
    table = pages.table()
    if not table.num_rows:
        pages.remove()
        raise InputError(f"{source} has no crystal for the query {json.dumps(database.query)}")
    report = FetchReport(
        source=source, query=database.query, query_hash=query_hash, fetched=datetime.now(UTC), rows=table.num_rows
    )
    about = {METADATA: report.model_dump_json(exclude={"reused"})}
    workspace.write_table(fetched_name(source), table.replace_schema_metadata(about))
    pages.remove()
    return report


def check_databases(
    workspace: Workspace, sources: Sequence[str], settings: FetchSettings, key: SecretStr | None
) -> None:
    """Raise InputError where a database could not be asked: a wrong filter, or no key. Nothing is asked."""
    for source in filter(is_database, sources):
        database = _open_database(source, settings, key)
        if not _answered(workspace, source, database, settings):
            database.check()


def _open_database(source: str, settings: FetchSettings, key: SecretStr | None) -> Database:
    return MaterialsProjectSource(settings, key) if source == MATERIALS_PROJECT else OptimadeSource(source, settings)


def _query_hash(source: str, database: Database) -> str:
    return hash_text(source, json.dumps(database.query, sort_keys=True))


def _answered(workspace: Workspace, source: str, database: Database, settings: FetchSettings) -> FetchReport | None:
    """The answer to the same query, where there is one that may be taken."""
    found = None if settings.refetch else read_fetch_report(workspace, source)
    return found if found and found.query_hash == _query_hash(source, database) else None


def _fetch_missing(database: Database, pages: "_Pages") -> None:
    """Ask for the pages that are not there."""
    if pages.finished:
        return
    for page in database.pages(pages.cursor):
        left = None if database.limit is None else database.limit - pages.rows
        enough = left is not None and len(page.rows) >= left
        pages.add(Page(page.rows[:left], None if enough else page.next))
        publish(StageEvent(STAGE, pages.rows, min(page.total or 0, database.limit or page.total or 0)))
        if enough:
            return


class _Pages:
    """The pages of an unfinished fetch, in the workspace: a file a page, with the place of the next in its metadata."""

    def __init__(self, workspace: Workspace, source: str, query_hash: str) -> None:
        self.workspace = workspace
        self.folder = f"{fetched_name(source).removesuffix('.parquet')}.pages"
        self.prefix = f"{self.folder}/{query_hash[:16]}"
        self.names = workspace.list(f"{self.prefix}-*.parquet")
        self.rows, self.cursor, self.finished = 0, None, False
        read = [workspace.read_table(name, ["crystal_id"]) for name in self.names]
        abouts = [json.loads(table.schema.metadata[METADATA]) for table in read]
        if abouts and datetime.now(UTC) - datetime.fromisoformat(abouts[0]["fetched"]) > PAGES_KEPT:
            self.remove()
        elif abouts:
            self.rows = sum(table.num_rows for table in read)
            self.cursor = abouts[-1]["next"]
            self.finished = self.cursor is None

    def add(self, page: Page) -> None:
        """Keep one more page."""
        about = {"next": page.next, "fetched": datetime.now(UTC).isoformat()}
        table = pa.Table.from_pylist(list(page.rows), schema=FETCHED_CRYSTALS)
        name = f"{self.prefix}-{len(self.names):06}.parquet"
        self.workspace.write_table(name, table.replace_schema_metadata({METADATA: json.dumps(about)}))
        self.names.append(name)
        self.rows += table.num_rows

    def table(self) -> pa.Table:
        """All pages as one table."""
        read = [self.workspace.read_table(name).replace_schema_metadata() for name in self.names]
        return pa.concat_tables(read)

    def remove(self) -> None:
        """Remove all pages of this source, those of other queries too."""
        self.workspace.remove(self.folder)
        self.names = []


def read_fetch_report(workspace: Workspace, source: str) -> FetchReport | None:
    """What was fetched from a database last, or None."""
    try:
        table = workspace.read_table(fetched_name(source), ["crystal_id"])
    except MissingStageError:
        return None
    about = (table.schema.metadata or {}).get(METADATA)
    return FetchReport.model_validate_json(about) if about else None


def source_hash(workspace: Workspace, source: str) -> str:
    """Content hash of a source: of the file, of the folder, or of what the database answered."""
    return workspace.fingerprint(_fetched(workspace, source)) if is_database(source) else hash_source(source)


def read_source(workspace: Workspace, source: str, licence: str | None = None) -> list[CrystalText]:
    """The crystals of one source; ``licence`` is that of crystals from files."""
    if not is_database(source):
        return [replace(crystal, licence=crystal.licence or licence) for crystal in read_crystals(source)]
    rows = workspace.read_table(_fetched(workspace, source)).to_pylist()
    return [
        CrystalText(
            row["crystal_id"],
            row["kind"],
            row["text"],
            row["crystal_source"],
            row["reference"],
            row["energy_above_hull_ev"],
            row["licence"],
        )
        for row in rows
    ]


def read_sources(workspace: Workspace, sources: Sequence[str], licence: str | None = None) -> list[CrystalText]:
    """The crystals of several sources, one after another.

    An id that an earlier source has taken gets the number of its own source, as in ``mp-763@2``: two files of one name
    need not be one crystal. Whether they are is for the comparison of structures.
    """
    crystals: list[CrystalText] = []
    taken: set[str] = set()
    for number, source in enumerate(sources, start=1):
        read = read_source(workspace, source, licence)
        crystals += [replace(c, crystal_id=f"{c.crystal_id}@{number}") if c.crystal_id in taken else c for c in read]
        taken |= {crystal.crystal_id for crystal in read}
    return crystals


def _fetched(workspace: Workspace, source: str) -> str:
    """The name of a database's answer in the workspace, which must be there."""
    name = fetched_name(source)
    if not workspace.exists(name):
        raise MissingStageError(f"{source} has not been fetched into the workspace {workspace.url}")
    return name
