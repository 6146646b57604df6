"""Grids of the Materials Project's table of bands: which rows are wanted, and row groups straight into shards.

The rows are listed by small columns (identifier, gap, Fermi level), which are a thousandth of the table. A task then
reads the bands of whole row groups, a few rows in memory at a time, and writes each shard as soon as it is full.

A row counts as the same by its identifier, Fermi level and gap: a task of the Materials Project never changes, while
files of the table are rewritten when it is compacted or copied. So what stands in a collection is not made again.
"""

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, date, datetime
from functools import lru_cache, reduce
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from prefect import task
from prefect.client.schemas.objects import State, TaskRun
from pydantic import BaseModel, ConfigDict

from tasks.band_sources import BandItem
from tasks.exceptions import InputError, RemoteError, WorkspaceError
from tasks.formulas import SYMBOLS
from tasks.grid_sources import SourceChunk, band_facts, fill_shard
from tasks.grids import Grid, assign_groups, make_grid
from tasks.mp_bands import (
    CHANGED,
    COLUMNS,
    FACTS,
    PUBLIC_TABLE,
    ROWS_A_TIME,
    changed_files,
    map_ahead,
    missing_rows,
    open_table,
    read_rows,
    table_errors,
    twice,
    wanted_rows,
)
from tasks.mp_identifiers import table_identifier
from tasks.settings import GridSettings, MpBandSettings
from tasks.sources import read_bytes
from tasks.stages import Rejection, hash_text
from tasks.uniform_bands import UniformBands
from tasks.workspace import Workspace

SOURCE = "mp"
LISTED_AT_ONCE = 8  # row groups, while the rows are listed
NO_ROWS = pa.table({name: [] for name in ("identifier", "efermi", "band_gap", *FACTS, "row")})
TASK_ROWS = (100, 500)  # rows a task: whole row groups until there are so many, and at most so many
RETRY_SECONDS = (5.0, 30.0)


class TableChunk(BaseModel):
    """Rows of a table that one task reads, and the shards that their grids make."""

    model_config = ConfigDict(frozen=True)

    table: str
    listed: str  # when; a process opens the table once for each listing
    shards: tuple[SourceChunk, ...]


class TablePlan(BaseModel):
    """Rows of a table that are wanted, those asked for that it cannot give, and the work that is left."""

    model_config = ConfigDict(frozen=True)

    items: list[BandItem]
    refused: list[Rejection]
    chunks: list[TableChunk]

    @property
    def missing(self) -> int:
        """Rows without a grid."""
        return sum(len(shard.items) for chunk in self.chunks for shard in chunk.shards)


def as_tables(sources: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Sources that are files, and the places of the Materials Project's tables: ``mp``, or a copy as ``mp:PLACE``."""
    tables = [source for source in sources if source == SOURCE or source.startswith(f"{SOURCE}:")]
    places = [table.removeprefix(SOURCE).removeprefix(":").rstrip("/") or PUBLIC_TABLE for table in tables]
    return tuple(source for source in sources if source not in tables), tuple(dict.fromkeys(places))


def plan_table(place: Workspace, table: str, settings: GridSettings, choice: MpBandSettings) -> TablePlan:
    """The rows wanted of a table, and the part of them that has no grid yet, by tasks and shards.

    Raises
    ------
    InputError
        As ``list_rows``.
    RemoteError
        If the server does not answer.
    """
    listed = datetime.now(UTC).isoformat()
    items, refused = list_rows(table, choice)
    groups = share_out(items, *TASK_ROWS)
    wanted = {item.content: item for item in items}
    assigned = assign_groups(place, settings, [[item.content for item in group] for group in groups])
    shards: dict[int, list[SourceChunk]] = {}
    for shard, number, contents in assigned:
        shards.setdefault(number, []).append(SourceChunk(shard=shard, items=tuple(wanted[one] for one in contents)))
    chunks = [TableChunk(table=table, listed=listed, shards=tuple(some)) for some in shards.values()]
    return TablePlan(items=items, refused=refused, chunks=chunks)


def list_rows(table: str, choice: MpBandSettings, any_of: Sequence[str] = ()) -> tuple[list[BandItem], list[Rejection]]:
    """The rows of a table that are wanted, in its order, and what was asked for and cannot be had.

    Only small columns are read, with ``elements`` the structures, too. A file that is damaged is refused as a whole.

    Parameters
    ----------
    any_of
        Elements of which a crystal holds at least one; beside ``choice.elements``, which it holds all.

    Raises
    ------
    InputError
        For a place without such a table, a file of ids that cannot be read, and an element that is none.
    RemoteError
        If the server does not answer.
    """
    if unknown := [symbol for symbol in (*choice.elements, *any_of) if symbol not in SYMBOLS]:
        raise InputError(f"Elements {unknown} of mp_bands.elements are no chemical symbols; they are like Nb,Ti")
    names = _read_ids(choice.ids) if choice.ids else None
    dataset = open_table(table)
    predicate, files = _changed_rows(table, dataset.schema, choice.since)
    predicate &= wanted_rows(names, choice.max_gap_ev)
    small = ["identifier", "efermi", "band_gap", *(name for name in FACTS if name in dataset.schema.names)]
    columns = [*small, "path_convention", *(["structure"] if choice.elements or any_of else [])]
    columns += [CHANGED] if choice.since and files is None else []

    def read(group: Any) -> tuple[Any, pa.Table]:
        with table_errors(table):
            rows = group.to_table(schema=dataset.schema, columns=columns)
            rows = rows.append_column("row", pa.array(np.arange(rows.num_rows))).filter(predicate)
            rows = rows.filter(_holds(rows["structure"], choice.elements)) if choice.elements else rows
            return group, rows.filter(_holds(rows["structure"], any_of, np.logical_or)) if any_of else rows

    items: dict[str, BandItem] = {}
    refused: list[Rejection] = []
    with table_errors(table):
        for group, rows in map_ahead(
            _refusing(read, refused), _groups(table, dataset, predicate, files, refused), LISTED_AT_ONCE
        ):
            for row in rows.select([*small, "row"]).to_pylist():
                identifier = str(row["identifier"])
                name = (names or {}).get(identifier, identifier)
                if identifier in items:
                    refused.append(twice(identifier, name))
                    continue
                items[identifier] = BandItem(
                    material_id=name,
                    kind="mp",
                    url=group.path,
                    row_group=group.row_groups[0].id,
                    row=row["row"],
                    content=hash_text("mp", identifier, repr(row["efermi"]), repr(row["band_gap"])),
                    **{name: row[column] for column, name in FACTS.items() if column in row},
                )
                if len(items) == choice.limit:
                    return list(items.values()), refused
    missing = {one: name for one, name in (names or {}).items() if one not in items}
    refused += missing_rows(table, dataset, missing, choice.max_gap_ev)
    return list(items.values()), refused


def _read_ids(file: str) -> dict[str, str]:
    """Names by the table's identifiers, from a file with one a line."""
    names = [line.strip() for line in read_bytes(file).decode("utf-8", errors="replace").splitlines()]
    return {table_identifier(name): name for name in names if name}


def _changed_rows(table: str, schema: Any, since: date | None) -> tuple[Any, set[str] | None]:
    """A predicate of the rows changed since a day, or the names of the files written since; all, None without one."""
    everything = pc.scalar(True)
    if since is None:
        return everything, None
    if CHANGED not in schema.names:
        return everything, changed_files(table, since)
    kind = schema.field(CHANGED).type
    if not pa.types.is_timestamp(kind):
        return pc.field(CHANGED) >= since.isoformat(), None
    first = pa.scalar(datetime.combine(since, datetime.min.time(), UTC if kind.tz else None), kind)
    return pc.field(CHANGED) >= first, None


def _groups(
    table: str, dataset: Any, predicate: Any, files: set[str] | None, refused: list[Rejection]
) -> Iterator[Any]:
    """Row groups that may hold wanted rows, of some files or all; files that are damaged go to ``refused``."""
    for file in dataset.get_fragments(filter=predicate):
        if files is not None and file.path.rpartition("/")[2] not in files:
            continue
        try:
            with table_errors(table):
                groups = file.split_by_row_group(filter=predicate, schema=dataset.schema)
        except InputError as error:
            refused.append(Rejection(file.path, str(error)))
            continue
        yield from groups


def _refusing(read: Callable[[Any], tuple[Any, Any]], refused: list[Rejection]) -> Callable[[Any], tuple[Any, Any]]:
    """``read`` with no rows where a row group is damaged; it goes to ``refused``."""

    def reading(group: Any) -> tuple[Any, Any]:
        try:
            return read(group)
        except InputError as error:
            number = group.row_groups[0].id
            refused.append(Rejection(f"{group.path} row group {number}", str(error)))
            return group, NO_ROWS

    return reading


def _holds(structures: Any, elements: Sequence[str], join: Any = np.logical_and) -> Any:
    """Which crystals hold all of the elements, or by ``np.logical_or`` one; a row without a structure does not."""
    column = structures.combine_chunks()
    if not pa.types.is_struct(column.type):  # pymatgen's JSON
        texts = [pc.match_substring_regex(column, rf'"element"\s*:\s*"{one}"') for one in elements]
        return pa.array(reduce(join, [pc.fill_null(text, False).to_numpy(zero_copy_only=False) for text in texts]))
    sites = pc.struct_field(column, "sites")
    species = pc.struct_field(pc.list_flatten(sites), "species")
    site = pc.list_parent_indices(sites).to_numpy()[pc.list_parent_indices(species).to_numpy()]
    symbols = pc.struct_field(pc.list_flatten(species), "element")
    found = []
    for element in elements:
        here = pc.fill_null(pc.equal(symbols, element), False).to_numpy(zero_copy_only=False)
        found.append(np.bincount(site[here], minlength=len(column)) > 0)
    return pa.array(reduce(join, found))


def share_out(items: Sequence[BandItem], least: int, most: int) -> list[list[BandItem]]:
    """Rows for one task each: whole row groups as far as that gives tasks of at least and at most so many."""
    shares: list[list[BandItem]] = []
    for _group, rows in groupby(items, lambda item: (item.url, item.row_group)):
        whole = list(rows)
        for start in range(0, len(whole), most):
            part = whole[start : start + most]
            if shares and len(shares[-1]) < least:
                shares[-1] += part
            else:
                shares.append(part)
    return shares


def make_table_chunk(place: Workspace, chunk: TableChunk, settings: GridSettings) -> int:
    """Make the grids of some rows, a shard after the other; rows that cannot be used are recorded as refused.

    Returns
    -------
    How many rows were dealt with.

    Raises
    ------
    InputError
        If the table is not what it was when its rows were listed.
    RemoteError
        If the server does not answer.
    """
    found = read_items(chunk.table, chunk.listed, [item for shard in chunk.shards for item in shard.items])

    def make(item: BandItem) -> tuple[Grid, dict[str, Any]]:  # noqa: ARG001 - rows come in the order of the items
        bands = next(found)
        if isinstance(bands, Rejection):
            raise InputError(bands.reason)
        return make_grid(bands, settings), band_facts(bands)

    return sum(fill_shard(place, shard, make) for shard in chunk.shards)


def read_items(
    table: str, listed: str, items: Sequence[BandItem], last: bool = False
) -> Iterator[UniformBands | Rejection]:
    """Bands of each row, or why there are none, in the order of the rows.

    Where a row group is damaged, its rows from there on are refused.

    Parameters
    ----------
    listed
        When the rows were listed; the table is opened once for each.
    last
        Refuse the rows of a row group, too, where the server does not answer: nothing more is tried.

    Raises
    ------
    InputError
        If the table is not what it was when its rows were listed.
    RemoteError
        If the server does not answer.
    """
    schema, files = _open_once(table, listed)
    for (file, number), some in groupby(items, lambda item: (item.url, item.row_group)):
        names = {item.row: item.material_id for item in some}
        if file not in files:
            raise InputError(f"The table {table} has changed while it was read: {file} is gone; run it again")
        waiting = dict(names)
        try:
            with table_errors(table):
                for row, bands in _read_group(files[file], number, schema, names):
                    del waiting[row]
                    yield bands
        except (InputError, RemoteError) as error:
            passing = isinstance(error, RemoteError)
            if passing and not last:
                raise
            reason = f"{error} (row group {number} of {file})"
            yield from (Rejection(name, f"Bands of {name}: {reason}", passing) for name in waiting.values())


def _read_group(
    file: Any, number: int, schema: Any, names: dict[int, str]
) -> Iterator[tuple[int, UniformBands | Rejection]]:
    """Rows of a row group with their numbers, sorted, of which only a few are in memory."""
    first, wanted = 0, np.array(list(names))
    group = file.subset(row_group_ids=[number])
    for batch in group.to_batches(
        schema=schema, columns=list(COLUMNS), batch_size=ROWS_A_TIME, batch_readahead=1, fragment_readahead=1
    ):
        here = wanted[(wanted >= first) & (wanted < first + batch.num_rows)]
        rows = here.tolist()
        found = read_rows(batch.take(pa.array(here - first)), [names[row] for row in rows])
        yield from zip(rows, found, strict=True)
        first += batch.num_rows
        if first > wanted[-1]:
            return


@lru_cache(maxsize=4)
def _open_once(table: str, _listed: str) -> tuple[Any, dict[str, Any]]:
    """Schema of a table and its files by their names."""
    dataset = open_table(table)
    return dataset.schema, {fragment.path: fragment for fragment in dataset.get_fragments()}


def may_pass(_task: object, _run: TaskRun | None, state: State) -> bool:
    """Whether a failed task may succeed another time."""
    return isinstance(state.result(raise_on_failure=False), RemoteError | WorkspaceError)


@task(
    name="list table",
    task_run_name="list {table}",
    retries=len(RETRY_SECONDS),
    retry_delay_seconds=list(RETRY_SECONDS),
    retry_condition_fn=may_pass,
)
def plan_table_grids(place: str, table: str, settings: GridSettings, choice: MpBandSettings) -> TablePlan:
    """The rows wanted of a table, and what of them has no grid; see ``plan_table``."""
    return plan_table(Workspace(place), table, settings, choice)


@task(
    name="table chunk",
    task_run_name="table chunk from shard {chunk.shards[0].shard}",
    retries=len(RETRY_SECONDS),
    retry_delay_seconds=list(RETRY_SECONDS),
    retry_condition_fn=may_pass,
)
def table_grid_chunk(place: str, chunk: TableChunk, settings: GridSettings) -> int:
    """Grids of some rows into their shards; run again, it writes the same bytes."""
    return make_table_chunk(Workspace(place), chunk, settings)
