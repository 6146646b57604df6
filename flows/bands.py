"""Band structures: bundled ones are adopted, missing ones calculated, every job of every material a task run."""

from datetime import UTC, datetime

from prefect import flow

from tasks.bands import adopt_bundled, finish_bands, make_engine, plan_bands, prepare_calculations
from tasks.engines import BandEngine, is_passing
from tasks.job_store import open_job_store
from tasks.jobflow_prefect import run_on_prefect
from tasks.progress import stage_progress
from tasks.runners import DFT_TAG, limit_everywhere, open_task_runner
from tasks.settings import BandSettings, ClusterSettings, GpawSettings, VaspSettings
from tasks.stages import StageReport
from tasks.workspace import Workspace


@flow(name="bands")
def bands(
    workspace: str,
    settings: BandSettings = BandSettings(),
    gpaw: GpawSettings = GpawSettings(),
    vasp: VaspSettings = VaspSettings(),
    cluster: ClusterSettings = ClusterSettings(),
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
    plan = plan_bands(workspace, settings, gpaw, vasp)
    if plan.materials:
        engine = make_engine(workspace, settings, gpaw, vasp)
        retries = vasp.retries if settings.engine == "vasp" else gpaw.retries
        calculate(workspace, plan.materials, engine, settings, cluster, settings.at_once or processes, retries)
    return finish_bands(workspace, settings, plan, started)


def calculate(
    workspace: str,
    materials: tuple[str, ...],
    engine: BandEngine,
    settings: BandSettings,
    cluster: ClusterSettings,
    at_once: int,
    retries: int,
) -> None:
    """Calculate materials: jobs in threads where each waits for a process of its own, else in processes or on Slurm."""
    limit_everywhere(settings.at_once_everywhere)
    with stage_progress("bands", len(materials)) as advance:
        jobs, on_finish = prepare_calculations(Workspace(workspace), materials, engine, advance)
        if not jobs.jobs:  # the engine refused every one of them
            return
        with open_task_runner(cluster, at_once, processes=engine.run_folder is not None) as runner:
            run_on_prefect(
                jobs,
                store=open_job_store(workspace, settings.store),
                root_dir=engine.run_folder,
                create_folders=engine.run_folder is not None,
                log=False,
                resume=True,
                at_once=2 * (cluster.jobs if cluster.kind == "slurm" else at_once),  # one runs, one is ready to
                task_runner=runner,
                retries=retries,
                retry_delay_seconds=[settings.retry_delay_seconds * 2**number for number in range(retries)],
                retry_condition=is_passing,
                explain=engine.explain,
                tags=[DFT_TAG],
                on_finish=on_finish,
            )
