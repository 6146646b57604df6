"""What Prefect costs a job: many trivial jobs in one flow, by ``run_on_prefect`` and by ``jobflow.run_locally``.

    python tests/benchmarks/manager_speed.py --jobs 500

The Prefect server is the embedded one, with SQLite. Wall time and CPU time of this process, and its memory after a
tenth of the jobs and after all, show what the manager itself needs.
"""

# ruff: noqa: T201 - a benchmark prints its table

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from flows.server import prefect_server
from tasks.workspace import Workspace


def measure(function: Callable[[], Any], jobs: int) -> tuple[float, float]:
    """Milliseconds of wall and of CPU time a job."""
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    return 1e3 * (time.perf_counter() - wall) / jobs, 1e3 * (time.process_time() - cpu) / jobs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=500)
    count = parser.parse_args().jobs
    with tempfile.TemporaryDirectory() as folder, prefect_server(Workspace(folder)):
        from jobflow import Flow, JobStore, job, run_locally
        from maggma.stores import MemoryStore

        from tasks.jobflow_prefect import run_on_prefect

        @job
        def add(a: int, b: int) -> int:
            return a + b

        def flow(size: int) -> Flow:
            return Flow([add(1, number) for number in range(size)], name="trivial jobs")

        def on_prefect(size: int) -> dict[str, Any]:
            return run_on_prefect(flow(size), store=JobStore(MemoryStore()), log=False)

        def memory() -> float:
            return psutil.Process().memory_info().rss / 2**20

        on_prefect(5)  # imports and connections
        print(f"memory at the start: {memory():.0f} MiB")
        on_prefect(count // 10)
        print(f"after {count // 10} jobs: {memory():.0f} MiB")
        wall, cpu = measure(lambda: on_prefect(count), count)
        print(f"after {count} more: {memory():.0f} MiB")
        print(f"run_on_prefect: {wall:.1f} ms a job ({cpu:.1f} ms of CPU time in this process)")
        wall, cpu = measure(lambda: run_locally(flow(count), store=JobStore(MemoryStore()), log=False), count)
        print(f"run_locally:    {wall:.1f} ms a job ({cpu:.1f} ms of CPU time in this process)")


if __name__ == "__main__":
    main()
