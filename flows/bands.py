"""Band structures: bundled ones are adopted, missing ones calculated, every job of every material a task run."""

from datetime import UTC, datetime
from typing import Any

from jobflow import JobStore
from maggma.stores import MemoryStore
from prefect import flow
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from tasks.bands import adopt_bundled, finish_bands, make_engine, plan_bands, prepare_calculations
from tasks.engines import is_passing
from tasks.jobflow_prefect import run_on_prefect
from tasks.progress import stage_progress
from tasks.settings import BandSettings, GpawSettings
from tasks.stages import StageReport
from tasks.workspace import Workspace


@flow(name="bands")
def bands(
    workspace: str,
    settings: BandSettings = BandSettings(),
    gpaw: GpawSettings = GpawSettings(),
    processes: int = 1,
) -> StageReport:
    """Give every ordered crystal its band structure.

    1. adopt: bundled bands of crystals with the same structure
    2. plan: which of the others are calculated, cheapest first
    3. calculate: their jobs on Prefect, each finished material stored at once
    4. finish: the index of all bands, and why the others have none
    """
    started = datetime.now(UTC)
    adopt_bundled(workspace, settings)
    plan = plan_bands(workspace, settings, gpaw)
    if plan.materials:
        calculate(workspace, plan.materials, gpaw, settings.at_once or processes)
    return finish_bands(workspace, settings, plan, started)


def calculate(workspace: str, materials: tuple[str, ...], gpaw: GpawSettings, at_once: int) -> None:
    """Calculate materials, at most so many at once; each thread waits for a process of its own."""
    threads: TaskRunner[Any] = ThreadPoolTaskRunner(max_workers=at_once)
    with stage_progress("bands", len(materials)) as advance, threads as runner:
        jobs, on_finish = prepare_calculations(Workspace(workspace), materials, make_engine(workspace, gpaw), advance)
        if not jobs.jobs:  # the engine refused every one of them
            return
        run_on_prefect(
            jobs,
            store=JobStore(MemoryStore()),
            log=False,
            task_runner=runner,
            retries=gpaw.retries,
            retry_condition=is_passing,
            on_finish=on_finish,
        )
