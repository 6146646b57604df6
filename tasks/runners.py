"""Where jobs run: threads or processes of this machine, or jobs of a Slurm cluster."""

import contextlib
import logging
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from tasks.settings import ClusterSettings

WORKER_NAME = "meissner"
DFT_TAG = "dft"  # of every job of a band calculation
KEYS = Path("~/.meissner/dask").expanduser()  # where Slurm jobs read the certificates of their run

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def open_task_runner(cluster: ClusterSettings, at_once: int, *, processes: bool) -> Iterator[TaskRunner[Any]]:
    """A started Prefect task runner for band calculations.

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
        with _slurm(cluster) as runner:
            yield runner
    else:
        with _local_processes(at_once) if processes else ThreadPoolTaskRunner(max_workers=at_once) as runner:
            yield runner


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

    options = {"n_workers": at_once, "threads_per_worker": 1, "processes": True, "dashboard_address": None, **_sealed()}
    _quiet()
    return DaskTaskRunner(cluster_class="distributed.LocalCluster", cluster_kwargs={**options, "memory_limit": None})


def _sealed() -> dict[str, Any]:
    """TLS between Dask's processes, with certificates of this run alone.

    What they send one another is pickled, so nobody else on the machine or the cluster may speak to them.
    """
    from distributed.security import Security

    return {"security": Security.temporary(), "protocol": "tls://"}


def _quiet() -> None:
    """Let Dask's own account of its connections not fill the log; warnings stay."""
    logging.getLogger("distributed").setLevel(logging.WARNING)


@contextlib.contextmanager
def _slurm(settings: ClusterSettings) -> Iterator[TaskRunner[Any]]:
    """Dask on Slurm: each worker is a Slurm job that runs one calculation at a time; lost ones are replaced."""
    from dask_jobqueue import SLURMCluster
    from prefect_dask import DaskTaskRunner

    _quiet()
    KEYS.mkdir(parents=True, exist_ok=True)
    KEYS.chmod(0o700)
    with SLURMCluster(**slurm_options(settings), **_sealed(), shared_temp_directory=str(KEYS)) as cluster:
        cluster.adapt(minimum=settings.least_jobs, maximum=settings.jobs, wait_count=60)
        with DaskTaskRunner(cluster=cluster) as runner:
            watch = SlurmWatch(cluster, runner.client, settings.logs)
            watch.start()
            try:
                yield runner
            finally:
                watch.stop()


class SlurmWatch(threading.Thread):
    """Sees to Slurm jobs that end before they have become workers, which Dask waits for without end.

    Such a job is forgotten, so that Dask asks for another. After several in a row all that waits is given up, since the
    next one would most likely end in the same way.
    """

    interval = 5.0  # seconds
    allowed = 3

    def __init__(self, cluster: Any, client: Any, logs: str | None) -> None:
        super().__init__(daemon=True, name="slurm-watch")
        self.cluster, self.client, self.logs = cluster, client, logs
        self.lost = 0
        self.over = threading.Event()

    def run(self) -> None:
        """Look again and again until stopped."""
        while not self.over.wait(self.interval):
            try:
                self.look()
            except (OSError, subprocess.SubprocessError, KeyError, RuntimeError) as error:
                logger.warning("Slurm could not be asked for its jobs: %s", error)

    def stop(self) -> None:
        """End the watch."""
        self.over.set()
        self.join(timeout=60)

    def look(self) -> None:
        """Compare what Dask waits for with what Slurm has."""
        jobs = {name: str(job.job_id) for name, job in self.cluster.workers.items() if getattr(job, "job_id", None)}
        working = {str(info["name"]) for info in self.cluster.scheduler_info["workers"].values()}
        waited = {name: job for name, job in jobs.items() if str(name) not in working}
        if working:
            self.lost = 0
        if self.lost >= self.allowed:
            self._give_up()
        if not waited:
            return
        queue = subprocess.run(["squeue", "-h", "-o", "%i"], capture_output=True, text=True, timeout=60, check=True)  # noqa: S607
        for name, job in waited.items():
            if job not in queue.stdout.split():
                self.lost += 1
                logger.warning("Slurm job %s ended before it could work; see %s", job, self.logs or "its output")
                self.cluster.sync(self._forget, name)

    async def _forget(self, name: Any) -> None:
        """Let Dask know that a job is gone; its adaptive scaling then asks for another."""
        self.cluster.worker_spec.pop(name, None)
        await self.cluster._correct_state()

    def _give_up(self) -> None:
        """Cancel all that waits; what is submitted later is cancelled at the next look."""
        from distributed import Future

        where = f"; their output is in {self.logs}" if self.logs else " (cluster.logs keeps their output)"
        reason = f"{self.lost} Slurm jobs ended before they could work{where}"
        waiting: list[Any] = [
            Future(key, self.client) for key, state in list(self.client.futures.items()) if not state.done()
        ]
        self.client.cancel(waiting, reason="lost", msg=reason)


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
