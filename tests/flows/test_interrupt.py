"""Ctrl-C and SIGTERM of a command whose workers are in the middle of their work."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

SLEEPER = """
import pathlib, sys, time
from prefect import flow, task
from flows.interrupt import stop_on_interrupt
from tasks.workers import run_in_worker

@task
def work(number, folder):
    run_in_worker(sleep, number, folder, processes=2)

@flow
def long_flow(folder):
    work.map([0, 1], folder).result()

def sleep(number, folder):
    pathlib.Path(folder, str(number)).touch()
    time.sleep(300)

if __name__ == "__main__":
    with stop_on_interrupt(close_display=lambda: 1 / 0):  # what goes wrong while stopping keeps nothing running
        long_flow(sys.argv[1])
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.usefixtures("prefect_harness")
def test_a_running_flow_ends_at_once_with_its_workers(tmp_path: Path, number: signal.Signals) -> None:
    script = tmp_path / "sleeper.py"
    script.write_text(SLEEPER)
    running = subprocess.Popen([sys.executable, script, tmp_path], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not all((tmp_path / name).exists() for name in "01"):
        assert running.poll() is None, running.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    workers = psutil.Process(running.pid).children(recursive=True)
    assert workers
    running.send_signal(number)
    _, told = running.communicate(timeout=60)
    assert running.returncode == 128 + number
    assert told.count("run the same command again to go on") == 1
    assert psutil.wait_procs(workers, timeout=60)[1] == []
