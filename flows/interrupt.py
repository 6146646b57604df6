"""Ctrl-C and SIGTERM: stop at once, leave nothing running, say how to go on."""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import psutil

from flows.runs import mark_cancelled_runs
from flows.server import Server

Stop = Callable[[int, FrameType | None], None]  # a handler of signals
GO_ON = "meissner: stopped. What is finished is kept; run the same command again to go on.\n"


@contextlib.contextmanager
def stop_on_interrupt(server: Server | None = None, close_display: Callable[[], None] = lambda: None) -> Iterator[None]:
    """End this process and its children on SIGINT or SIGTERM, within seconds, whatever the threads are doing.

    Nothing half written can remain: every result is renamed into place when it is whole.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    stop = _stopper(server, close_display)
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with _heard_by_a_thread(stop):
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _heard_by_a_thread(stop: Stop) -> Iterator[None]:
    """Call ``stop`` on SIGTERM even while a flow runs: Prefect then has a handler of its own, which waits for tasks.

    A process that is forked inside must not keep Python's handlers: a SIGTERM to it would be heard here. Ours are
    spawned.
    """
    ear, mouth = socket.socketpair()
    mouth.setblocking(False)
    before = signal.set_wakeup_fd(mouth.fileno(), warn_on_full_buffer=False)

    def listen() -> None:
        while number := ear.recv(1):
            if number[0] == signal.SIGTERM:
                stop(signal.SIGTERM, None)

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        mouth.close()
        thread.join()
        ear.close()


def _stopper(server: Server | None, close_display: Callable[[], None]) -> Stop:
    once = threading.Lock()

    def stop(number: int, _frame: FrameType | None) -> None:
        if not once.acquire(blocking=False):
            return
        try:
            with contextlib.suppress(Exception):
                close_display()
            sys.stderr.write(GO_ON)
            sys.stderr.flush()
            if server:
                # In a thread and waited for briefly: a server that hangs must not keep a person waiting.
                teller = threading.Thread(target=_tell, args=(server,), daemon=True)
                teller.start()
                teller.join(timeout=2)
            for child in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    child.kill()
        finally:
            os._exit(128 + number)

    return stop


def _tell(server: Server) -> None:
    with contextlib.suppress(Exception):
        mark_cancelled_runs(server)
