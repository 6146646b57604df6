"""Work in processes of its own: results and errors come back, and no worker outlives its parent."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tasks.workers import WorkerError, close_workers, run_in_worker
from tests.waiting import has_ended, wait_until


@pytest.fixture(autouse=True)
def no_worker_left():
    yield
    close_workers()


def test_one_process_means_here() -> None:
    assert run_in_worker(os.getpid, processes=1) == os.getpid()


def test_workers_are_other_processes_with_one_thread_and_pass_errors_on() -> None:
    assert run_in_worker(os.getpid, processes=2) != os.getpid()
    assert run_in_worker(os.getenv, "OMP_NUM_THREADS", processes=2) == "1"
    with pytest.raises(FileNotFoundError, match="nowhere"):
        run_in_worker(os.listdir, "/nowhere", processes=2)
    assert run_in_worker(max, 3, 7, processes=2) == 7


def test_worker_that_dies_is_told_and_the_next_call_works() -> None:
    with pytest.raises(WorkerError, match="ended in the middle of its work"):
        run_in_worker(os._exit, 9, processes=2)
    assert run_in_worker(max, 3, 7, processes=2) == 7


def test_no_worker_outlives_a_killed_parent() -> None:
    code = "import os, time\nfrom tasks.workers import run_in_worker\nif __name__ == '__main__':\n    "
    code += "print(run_in_worker(os.getpid, processes=2), flush=True)\n    time.sleep(600)"
    root = Path(__file__).resolve().parents[2]
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=root)
    worker = int(parent.stdout.readline())
    assert psutil.pid_exists(worker)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    wait_until(lambda: has_ended(worker))
