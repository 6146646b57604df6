"""Screening: both networks on every material with bands, ranked."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import cache
from typing import Any

from prefect import flow, unmapped
from prefect.futures import PrefectFuture, as_completed
from prefect.task_runners import TaskRunner

from flows.grids import WORTH_A_PROCESS, grid_source
from tasks.progress import counted_progress
from tasks.runners import open_task_runner
from tasks.screening import (
    count_refused,
    finish_screening,
    missing_chunks,
    plan_best_chunks,
    plan_chunks,
    screen_chunk,
    screening_place,
    table_choice,
)
from tasks.screening_plan import Chunk, pin_networks
from tasks.settings import ClusterSettings, GridSettings, ScreeningSettings
from tasks.stages import Rejection, StageReport
from tasks.workspace import Workspace


@flow(name="screen")
def screen(
    workspace: str,
    settings: ScreeningSettings = ScreeningSettings(),
    sources: tuple[str, ...] = (),
    collection: str | None = None,
    grid: GridSettings = GridSettings(),
    cluster: ClusterSettings = ClusterSettings(),
    processes: int = 1,
) -> StageReport:
    """Screen all materials with a small enough gap: of sources, of a collection, or the workspace's own.

    1. keep: where all grids are to be kept, those of the sources first, which are then screened in their collection
    2. plan: which materials, in which chunks
    3. screen: each chunk by both networks, one image each where there are many
    4. best: the best of those again, by all images
    5. finish: one ranked table; of sources the bands and grids of the first
    """
    started, settings = datetime.now(UTC), pin_networks(Workspace(workspace), settings)
    place = screening_place(Workspace(workspace), sources, collection, settings)
    if sources and settings.keep_grids:
        name = place.url.rpartition("/")[2]
        grid_source(workspace, sources, name, grid, processes=processes, mp_bands=table_choice(settings))
        sources, settings = (), settings.model_copy(update={"since": None})
    plan = plan_chunks(workspace, place.url, sources, settings)
    work = {"workspace": workspace, "place": place.url, "settings": settings, "grid": grid}
    workers = max(min(processes, len(plan.chunks), _materials(plan.chunks) // WORTH_A_PROCESS), 1)
    with ExitStack() as stack:
        # processes take seconds to start: only where something is left to do, and once
        runner = cache(lambda: stack.enter_context(open_task_runner(cluster, workers, processes=workers > 1)))
        lost = _map(place, plan.chunks, work, runner)
        best = plan_best_chunks(place.url, plan, settings)
        lost += _map(place, best, work, runner)
    return finish_screening(workspace, place.url, plan, settings, best, lost, grid, started)


def _materials(chunks: Iterable[Chunk]) -> int:
    return sum(len(chunk.items) for chunk in chunks)


def _map(
    place: Workspace, chunks: Sequence[Chunk], work: dict[str, object], opened: Callable[[], TaskRunner[Any]]
) -> list[Rejection]:
    """Screen the chunks that have no part, over processes or a cluster; gives why there is still none, by the part."""
    left = {chunk.part: chunk for chunk in missing_chunks(place, chunks)}
    lost: list[Rejection] = []
    if not left:
        return lost
    done = [chunk for chunk in chunks if chunk.part not in left]
    with counted_progress("screen", _materials(chunks)) as progress:
        runner = opened()
        progress.start(_materials(done), count_refused(place, done))
        shared = {name: unmapped(value) for name, value in work.items()}
        one: Any = screen_chunk  # Prefect types tasks that take keywords only too narrowly
        futures = runner.map(one, {**shared, "chunk": list(left.values())})
        parts: dict[PrefectFuture[int], Chunk] = dict(zip(futures, left.values(), strict=True))
        for future in as_completed(list(parts)):
            chunk, refused = parts[future], 0
            try:
                refused = future.result()
            except Exception as error:  # noqa: BLE001 - whatever ends a task, even its process, loses this chunk only
                refused = len(chunk.items)
                lost.append(Rejection(chunk.part, f"{type(error).__name__}: {error}", retryable=True))
            progress.advance(len(chunk.items), refused)
    return lost
