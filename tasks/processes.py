"""Many small jobs in processes, each with a time limit that really stops it."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import psutil

from models.exceptions import MeissnerError
from tasks.progress import Advance, silent
from tasks.workers import ONE_THREAD, end_with_parent

PATIENCE = 10.0  # a job may take so many times its CPU time of wall time: on a busy machine it is not its own fault
STARTING_SECONDS = 300.0  # a worker that has not imported its function by then is given up


@dataclass(frozen=True)
class Failure:
    """Why a job gave nothing; ``retryable`` where the same job may pass another time (time limit, lost process)."""

    reason: str
    retryable: bool = False


def run_jobs(
    function: Callable[[Any], Any],
    jobs: Sequence[Any],
    *,
    processes: int = 0,
    seconds: float | None = None,
    advance: Advance = silent,
    keep: Callable[[int, Any], None] = lambda _position, _result: None,
) -> list[Any]:
    """Results of ``function(job)`` in the order of the jobs, a Failure where a job raised or was stopped.

    Parameters
    ----------
    function
        Importable by name; workers are started afresh (spawn), with one CPU thread each.
    processes
        Workers; 0: one a core. With one process and no time limit the jobs run here.
    seconds
        Limit of one job in CPU time (in wall time ten times as much): its process is killed and replaced.
    keep
        Called with position and result of each job as it finishes.
    """
    processes = min(processes or os.cpu_count() or 1, len(jobs))
    results: list[Any] = [None] * len(jobs)
    if processes <= 1 and seconds is None:
        for index, job in enumerate(jobs):
            results[index] = _attempt(function, job)
            keep(index, results[index])
            advance(1)
        return results
    for index, result in _run_in_workers(function, jobs, processes, seconds):
        results[index] = result
        keep(index, result)
        advance(1)
    return results


def _attempt(function: Callable[[Any], Any], job: Any) -> Any:
    """The job's result, or a Failure: one bad job must not end the others, whatever it raises."""
    try:
        return function(job)
    except MeissnerError as error:
        return Failure(str(error))
    except Exception as error:  # noqa: BLE001
        return Failure(f"{type(error).__name__}: {error}")


class _Worker:
    """A process that takes one job at a time."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, function), daemon=True)
        with _single_threaded():
            self.process.start()
        theirs.close()
        self.job: int | None = None  # None: starting or idle
        self.ready = False
        self.given = self.spent = 0.0
        self.deadline = time.monotonic() + STARTING_SECONDS

    def give(self, index: int, job: Any, seconds: float | None) -> None:
        self.connection.send(job)
        self.job = index
        self.given, self.spent = time.monotonic(), self._cpu_seconds()
        self.deadline = self.given + seconds if seconds else float("inf")

    def left(self, seconds: float) -> float:
        """Seconds that the job may still go on: what is left of its CPU time, within the bounds of patience."""
        waited = PATIENCE * seconds - (time.monotonic() - self.given)
        return min(seconds - (self._cpu_seconds() - self.spent), waited)

    def _cpu_seconds(self) -> float:
        with contextlib.suppress(psutil.Error):
            times = psutil.Process(self.process.pid).cpu_times()
            return float(times.user + times.system)
        return 0.0

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def _run_in_workers(
    function: Callable[[Any], Any], jobs: Sequence[Any], processes: int, seconds: float | None
) -> Iterator[tuple[int, Any]]:
    """Index and result of each job, as they finish."""
    waiting = list(range(len(jobs)))[::-1]
    workers = [_Worker(function) for _ in range(processes)]
    left = len(jobs)
    try:
        while left:
            timeout = max(0.0, min(worker.deadline for worker in workers) - time.monotonic())
            readable = wait([w.connection for w in workers], None if timeout == float("inf") else timeout)
            for position, worker in enumerate(workers):
                finished = _collect(worker, worker.connection in readable, seconds)
                if finished is not None:
                    left -= 1
                    yield finished
                if not worker.process.is_alive() or worker.connection.closed:
                    worker = workers[position] = _Worker(function)  # noqa: PLW2901
                elif worker.ready and worker.job is None:
                    worker.deadline = float("inf")
                    if waiting:
                        index = waiting.pop()
                        worker.give(index, jobs[index], seconds)
    finally:
        for worker in workers:
            worker.end()


def _collect(worker: _Worker, readable: bool, seconds: float | None) -> tuple[int, Any] | None:
    """What a worker has finished, if anything; a worker that is late or lost is ended."""
    index = worker.job
    if readable:
        try:
            message = worker.connection.recv()
        except (EOFError, OSError):
            message = Failure("its process ended early, most likely for want of memory", retryable=True)
            _end_or_raise(worker, "a worker process could not start")
        worker.ready, worker.job = True, None
        return None if index is None else (index, message)
    if time.monotonic() >= worker.deadline:
        if worker.job is not None and seconds and (left := worker.left(seconds)) > 0 and worker.process.is_alive():
            worker.deadline = time.monotonic() + max(left, 0.05)
            return None
        _end_or_raise(worker, f"a worker process did not start within {STARTING_SECONDS:g} s")
        return None if index is None else (index, Failure(f"took longer than {seconds:g} s", retryable=True))
    return None


def _end_or_raise(worker: _Worker, reason: str) -> None:
    worker.end()
    if not worker.ready:
        raise RuntimeError(reason)


class _single_threaded:  # noqa: N801
    """Environment in which a process starts with one thread for linear algebra: results do not depend on cores."""

    _lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()
        self._before = {name: os.environ.get(name) for name in ONE_THREAD}
        os.environ.update(ONE_THREAD)

    def __exit__(self, *_: object) -> None:
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        self._lock.release()


def _serve(connection: Connection, function: Callable[[Any], Any]) -> None:
    """Body of a worker: say that it is ready, then answer jobs until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()
    connection.send(None)
    while True:
        try:
            job = connection.recv()
        except (EOFError, OSError):
            return
        connection.send(_attempt(function, job))
