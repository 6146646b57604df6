"""Heavy work in processes of its own, one CPU thread each: the same results on any number of cores."""

import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from models.exceptions import MeissnerError
from models.training import resolve_device
from tasks.workspace import Workspace

Result = TypeVar("Result")

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class WorkerError(MeissnerError, RuntimeError):
    """A worker process ended before its work was done."""


_lock = threading.Lock()
_one_at_a_time = threading.Lock()
_pools: dict[int, ProcessPoolExecutor] = {}


def run_in_worker(function: Callable[..., Result], *arguments: Any, processes: int) -> Result:
    """Call a function in one of ``processes`` worker processes and wait for what it gives.

    With one process it runs here, one call at a time. Function, arguments and result must be picklable; errors come
    through. Workers are started afresh (no fork of a process with threads), end when this process ends, even by
    SIGKILL, and are kept for the next call until ``close_workers``.
    """
    if processes <= 1:
        with _one_at_a_time:
            return function(*arguments)
    with _lock:
        if processes not in _pools:
            context = multiprocessing.get_context("spawn")
            _pools[processes] = ProcessPoolExecutor(processes, mp_context=context, initializer=_start_worker)
        future = _pools[processes].submit(function, *arguments)
    try:
        return future.result()
    except BrokenProcessPool as error:
        with _lock:
            _pools.pop(processes, None)
        raise WorkerError(
            f"A worker process of {processes} ended in the middle of its work, most likely for want of memory; "
            "run again to go on, with fewer worker processes"
        ) from error


def make_part(
    workspace: str, file: str, work: Callable[..., object], *arguments: Any, device: str, processes: int
) -> str:
    """Have a worker write a part of a stage unless its file is there; gives the file's name.

    ``work`` is called with the workspace and the arguments. On a GPU one part is made at a time.
    """
    if not Workspace(workspace).exists(file):
        at_once = 1 if resolve_device(device) == "cuda" else processes
        run_in_worker(work, workspace, *arguments, processes=at_once)
    return file


def close_workers() -> None:
    """End all idle workers and give their memory back."""
    with _lock:
        while _pools:
            _pools.popitem()[1].shutdown()


def _start_worker() -> None:
    os.environ.update(ONE_THREAD)
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    """Body of a thread of a worker: leave when the parent is gone, even in the middle of a job."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
