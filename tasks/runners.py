"""Where jobs run: threads or processes of this machine, or jobs of a Slurm cluster."""

import logging
import os
import shlex
import sys
from typing import Any

from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from tasks.settings import ClusterSettings

WORKER_NAME = "meissner"
DFT_TAG = "dft"  # of every job of a band calculation


def make_task_runner(cluster: ClusterSettings, at_once: int, *, processes: bool) -> TaskRunner[Any]:
    """A Prefect task runner for band calculations, to be used in a ``with`` block.

    Parameters
    ----------
    cluster
        This machine or Slurm.
    at_once
        Jobs at once on this machine; on Slurm ``cluster.jobs`` counts.
    processes
        Whether jobs need a process of their own, since each changes its working directory.
    """
    if cluster.kind == "slurm":
        return _slurm(cluster)
    if processes:
        return _local_processes(at_once)
    return ThreadPoolTaskRunner(max_workers=at_once)


def limit_everywhere(at_once: int) -> None:
    """Set how many jobs of band calculations run at once in all flows of the Prefect server; 0 leaves it as it is."""
    if not at_once:
        return
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        client.create_concurrency_limit(tag=DFT_TAG, concurrency_limit=at_once)


def _local_processes(at_once: int) -> TaskRunner[Any]:
    """Dask on this machine: a process a job at a time, replaced when it is lost, gone when this one is."""
    from prefect_dask import DaskTaskRunner

    options = {"n_workers": at_once, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    _quiet()
    return DaskTaskRunner(cluster_class="distributed.LocalCluster", cluster_kwargs={**options, "memory_limit": None})


def _quiet() -> None:
    """Let Dask's own account of its connections not fill the log; warnings stay."""
    logging.getLogger("distributed").setLevel(logging.WARNING)


def _slurm(cluster: ClusterSettings) -> TaskRunner[Any]:
    """Dask on Slurm: each worker is a Slurm job that runs one calculation at a time; lost ones are replaced."""
    from prefect_dask import DaskTaskRunner

    _quiet()
    return DaskTaskRunner(
        cluster_class="dask_jobqueue.SLURMCluster",
        cluster_kwargs=slurm_options(cluster),
        adapt_kwargs={"minimum": cluster.least_jobs, "maximum": cluster.jobs, "wait_count": 60},
    )


def slurm_options(cluster: ClusterSettings) -> dict[str, Any]:
    """What dask-jobqueue is told about the Slurm jobs that are its workers."""
    limit = wall_time_seconds(cluster.wall_time)
    return {
        "job_name": WORKER_NAME,
        "cores": 1,  # calculations at once in one Slurm job; the cores of each are cpus-per-task
        "processes": 1,
        "job_cpu": cluster.cores,
        "memory": cluster.memory,
        "queue": cluster.partition,
        "account": cluster.account,
        "walltime": cluster.wall_time,
        "interface": cluster.interface,
        "python": shlex.quote(sys.executable),
        "local_directory": cluster.scratch,
        "log_directory": cluster.logs,
        "death_timeout": 300,
        "job_extra_directives": list(cluster.options),
        "job_script_prologue": [*_exports(), *cluster.prologue],
        # a worker stops taking work before its Slurm job ends
        "worker_extra_args": ["--lifetime", f"{max(limit - 300, limit // 2)}s", "--lifetime-stagger", "60s"],
        "scheduler_options": {"dashboard_address": ":0"},
    }


def _exports() -> list[str]:
    """Lines of the job script that carry over what workers need: where Prefect's server and the POTCARs are."""
    from prefect.settings import PREFECT_API_URL

    known = {"PREFECT_API_URL": PREFECT_API_URL.value(), "PMG_VASP_PSP_DIR": os.environ.get("PMG_VASP_PSP_DIR")}
    return [f"export {name}={shlex.quote(str(value))}" for name, value in known.items() if value]


def wall_time_seconds(wall_time: str) -> int:
    """Seconds of Slurm's [days-]hours:minutes:seconds."""
    days, _, clock = wall_time.rpartition("-")
    hours, minutes, seconds = (int(part) for part in clock.split(":"))
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
