"""Coarse bands become samples of BNAS, a chunk of materials a task, on several processes."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import cast

from prefect import flow, unmapped
from prefect.futures import as_completed
from prefect.task_runners import ProcessPoolTaskRunner, ThreadPoolTaskRunner

from tasks.grids import GridChunk, finish_grids, grid_chunk, plan_grids
from tasks.progress import stage_progress
from tasks.settings import GridSettings
from tasks.stages import StageReport

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


def map_chunks(workspace: str, chunks: Sequence[GridChunk], settings: GridSettings, processes: int) -> None:
    """One task a chunk, at most ``processes`` at once; few materials are made faster than a process starts."""
    materials = sum(len(chunk.material_ids) for chunk in chunks)
    workers = min(processes, len(chunks), materials // WORTH_A_PROCESS)
    pool: ProcessPoolTaskRunner | ThreadPoolTaskRunner
    pool = ProcessPoolTaskRunner(workers) if workers > 1 else ThreadPoolTaskRunner(max_workers=1)
    with pool as runner, stage_progress("grid", materials) as advance:
        futures = runner.map(
            grid_chunk, {"workspace": workspace, "chunk": list(chunks), "settings": unmapped(settings)}
        )
        for future in as_completed(list(futures)):
            advance(cast(int, future.result()))
