"""Waiting for what comes by itself, and for the end of processes."""

import time

import psutil


def wait_until(done, seconds=120):
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"not so after {seconds} s"
        time.sleep(0.1)


def has_ended(pid):
    """Whether a process is gone, or only waits for its parent to take note."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
