"""Server, deployments and worker on one machine, for as long as the process lives."""

import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx

from flows.runs import Keeper, mark_crashed_runs
from flows.server import Server, die_with_parent, prefect_home, prefect_server
from tasks.exceptions import WorkspaceError
from tasks.settings import Settings
from tasks.workspace import Workspace

LOOK_SECONDS = 1.0
KEEP_SECONDS = 15.0  # between two looks for lost and crashed runs
RESTART_SECONDS = 5.0
# Of a worker, as of the runs in deployments/prefect.yaml: requests made again until a server or its database is back.
PATIENCE = {"PREFECT_CLIENT_MAX_RETRIES": "8", "PREFECT_CLIENT_RETRY_EXTRA_CODES": "500,504"}
SILENT_SECONDS = 120.0  # of a server, before the process ends and whatever supervises it can start it again

Tell = Callable[[str], None]


@contextmanager
def opened_server(settings: Settings, port: int | None = None) -> Iterator[Server]:
    """The server of the Prefect settings, or one on the workspace, with the runs of a dead process marked."""
    place = Workspace(settings.workspace)
    place.check_writable()
    with prefect_server(place, port) as server:
        mark_crashed_runs(server)
        yield server


def register_everything(settings: Settings, file: str | Path | None, told: Callable[[str, str, str], None]) -> None:
    """Pool, queues, limits, deployments and automations on the server that is open."""
    # Prefect is imported when its address is known
    from flows.automations import register_automations
    from flows.deploy import FILE, register

    register_automations(settings, register(settings, file or FILE, told), told)


def watch(settings: Settings, server: Server, queues: Sequence[str], tell: Tell) -> None:
    """Keep worker, server and runs going until this process is stopped; WorkspaceError when the server stays silent.

    A worker that ends is started again: runs that were waiting are still waiting on the server, and runs that were
    under way go on without it. So is a server, where this process has started it.
    """
    home = prefect_home(Workspace(settings.workspace))
    home.mkdir(parents=True, exist_ok=True)
    log = home / "worker.log"
    with ExitStack() as stack:
        process = _start_worker(stack, log, queues)
        for _ in _looks(settings, server, tell):
            if process.poll() is not None:
                tell(f"The worker ended with code {process.returncode} and is started again; its log: {log}")
                time.sleep(RESTART_SECONDS)
                process = _start_worker(stack, log, queues)
            if server.revive():
                tell("The Prefect server ended and is started again; its log: server.log beside the worker's")


def watch_runs(settings: Settings, server: Server, tell: Tell) -> None:
    """The same for the runs alone: for a group, whose workers and servers have supervisors of their own."""
    for _ in _looks(settings, server, tell):
        pass


def _looks(settings: Settings, server: Server, tell: Tell) -> Iterator[None]:
    """Once a second while the server answers; lost and crashed runs are looked after on the way."""
    keeper, answered, kept = Keeper(server, settings.operations), time.monotonic(), -math.inf
    with httpx.Client(base_url=server.api_url, timeout=5) as client:
        while True:
            time.sleep(LOOK_SECONDS)
            if _answers(client):
                answered = time.monotonic()
            elif time.monotonic() - answered > SILENT_SECONDS:
                raise WorkspaceError(f"The Prefect server {server.ui_url} has not answered for {SILENT_SECONDS:.0f} s")
            if time.monotonic() - kept > KEEP_SECONDS:
                kept = time.monotonic()
                for done in keeper.look():
                    tell(done)
            yield


def _start_worker(stack: ExitStack, log: Path, queues: Sequence[str]) -> subprocess.Popen[bytes]:
    """A process worker in a session of its own, so that Ctrl-C reaches only us; dead with us."""
    from flows.deploy import POOL

    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process"]
    for queue in queues:
        command += ["--work-queue", queue]
    output = stack.enter_context(log.open("ab"))
    return subprocess.Popen(
        command,
        env=PATIENCE | os.environ | {"PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "INFO"},
        stdout=output,
        stderr=output,
        start_new_session=True,
        preexec_fn=die_with_parent,  # noqa: PLW1509
    )


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False
