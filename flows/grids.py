"""Coarse bands become samples of BNAS, a chunk of materials a task, on several processes."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, cast

from prefect import Task, flow, unmapped
from prefect.futures import as_completed
from prefect.task_runners import ProcessPoolTaskRunner, ThreadPoolTaskRunner

from tasks.grid_sources import collection, finish_source_grids, plan_source_grids, source_grid_chunk
from tasks.grids import GridChunk, finish_grids, grid_chunk, plan_grids
from tasks.mp_grids import as_tables, plan_table_grids, table_grid_chunk
from tasks.progress import stage_progress
from tasks.settings import GridSettings, MpBandSettings
from tasks.stages import Rejection, StageReport
from tasks.workspace import Workspace

WORTH_A_PROCESS = 100  # materials; a new process imports for about 4 s of CPU, a grid takes under 0.1 s


@flow(name="grids")
def grids(
    workspace: str, settings: GridSettings = GridSettings(), processes: int = 1, verify: bool = False
) -> StageReport:
    """Bring every band structure onto its grid.

    1. plan: which materials have bands but no grid, and the shard for each; with ``verify``, damaged shards too
    2. map the chunks over processes, none being started where nothing is missing
    3. finish: the index of all grids, and what was refused
    """
    started = datetime.now(UTC)
    chunks = plan_grids(workspace, settings, verify)
    if chunks:
        map_chunks(workspace, chunks, settings, processes)
    return finish_grids(workspace, settings, started)


@flow(name="grid-source")
def grid_source(
    workspace: str,
    sources: tuple[str, ...],
    name: str,
    settings: GridSettings = GridSettings(),
    efermi: float | None = None,
    processes: int = 1,
    mp_bands: MpBandSettings = MpBandSettings(),
    verify: bool = False,
) -> StageReport:
    """Bring the bands of files, and of the Materials Project's table, onto grids in a collection of their own.

    1. list: which band structures the files hold, and which have no grid yet; with ``verify``, damaged shards too
    2. map them over processes, a shard a task
    3. the same for tables, some row groups a task
    4. finish: the index of the collection, and what was refused
    """
    started = datetime.now(UTC)
    place = collection(Workspace(workspace), name).url
    files, tables = as_tables(sources)
    items, chunks = plan_source_grids(place, files, settings, verify)
    if chunks:
        work = {"place": place, "chunk": chunks, "settings": unmapped(settings), "efermi": efermi}
        _map(source_grid_chunk, work, sum(len(chunk.items) for chunk in chunks), len(chunks), processes)
    refused: list[Rejection] = []
    for table in tables:
        plan = plan_table_grids(place, table, settings, mp_bands)
        if plan.chunks:
            rows = {"place": place, "chunk": plan.chunks, "settings": unmapped(settings)}
            _map(table_grid_chunk, rows, plan.missing, len(plan.chunks), processes)
        items, refused = [*items, *plan.items], [*refused, *plan.refused]
    return finish_source_grids(place, items, settings, started, refused)


def map_chunks(workspace: str, chunks: Sequence[GridChunk], settings: GridSettings, processes: int) -> None:
    """One task a chunk."""
    work = {"workspace": workspace, "chunk": list(chunks), "settings": unmapped(settings)}
    _map(grid_chunk, work, sum(len(chunk.material_ids) for chunk in chunks), len(chunks), processes)


def _map(one: Task[..., int], work: dict[str, Any], materials: int, chunks: int, processes: int) -> None:
    """Tasks over processes, at most so many at once; few materials are made faster than a process starts."""
    workers = min(processes, chunks, materials // WORTH_A_PROCESS)
    pool: ProcessPoolTaskRunner | ThreadPoolTaskRunner
    pool = ProcessPoolTaskRunner(workers) if workers > 1 else ThreadPoolTaskRunner(max_workers=1)
    with pool as runner, stage_progress("grid", materials) as advance:
        futures = runner.map(one, work)
        for future in as_completed(list(futures)):
            advance(cast(int, future.result()))
