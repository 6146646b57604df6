"""The Prefect server that a run reports to: the one in your Prefect settings, or one of our own beside the workspace.

One of our own answers on loopback alone, unless another address is asked for and a password is set.

Prefect is not imported before the address stands in the environment: it reads its settings once, at import.
"""

import contextlib
import ctypes
import ipaddress
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
from filelock import FileLock, Timeout

from tasks.exceptions import InputError, WorkspaceError
from tasks.workspace import Workspace

PORTS = range(4200, 4300)  # from Prefect's usual one; below those that systems give to outgoing connections
LOOPBACK = "127.0.0.1"
AUTH = "PREFECT_SERVER_API_AUTH_STRING"  # what a server asks for
CLIENT_AUTH = "PREFECT_API_AUTH_STRING"  # what a client says
START_SECONDS = 300  # on a busy machine; 7 s on an idle one
QUIET = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_CLI_PROMPT": "false",
    "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",  # a pickled result could be exchanged for another by who can write it
}
# Of a server of our own: runs keep their place under a limit when it is killed and started again; leases in memory go,
# and the runs then end themselves.
LASTING = {"PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem"}
# Flow and task logs go to the server, where they can be read by run; the terminal shows the stages and one sentence
# about what went wrong.
CONSOLE = {"PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL", "PREFECT_LOGGING_ROOT_LEVEL": "ERROR"}


@dataclass(frozen=True)
class Server:
    """Where a server answers, and whether this process started it.

    ``revive`` starts it again where this process started it and it has ended; it says whether it did.
    """

    ui_url: str
    owned: bool
    revive: Callable[[], bool] = field(default=lambda: False, compare=False)

    @property
    def api_url(self) -> str:
        return f"{self.ui_url}/api"


def configured_api_url() -> str | None:
    """The Prefect API of the environment or of the active Prefect profile; None where there is none."""
    return prefect_setting("PREFECT_API_URL")


def has_server(workspace: Workspace) -> bool:
    """Whether a run on the workspace would report to a server that is there already."""
    return bool(configured_api_url() or _running_server(prefect_home(workspace)))


def prefect_setting(name: str) -> str | None:
    """A setting of Prefect from the environment or the active Prefect profile; None where it is not set."""
    if value := os.environ.get(name):
        return value
    home = Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser()
    profiles = Path(os.environ.get("PREFECT_PROFILES_PATH", home / "profiles.toml"))
    if not profiles.is_file():
        return None
    document = tomllib.loads(profiles.read_text())
    active = os.environ.get("PREFECT_PROFILE", document.get("active"))
    value = document.get("profiles", {}).get(active, {}).get(name)
    return str(value) if value else None


def served_address(host: str | None = None) -> str:
    """The address that a server of our own binds to: the one asked for, PREFECT_SERVER_API_HOST, or loopback.

    Raises
    ------
    InputError
        For an address that others reach, while no password is set: whoever reaches Prefect's API can start flows.
    """
    address = host or os.environ.get("PREFECT_SERVER_API_HOST") or LOOPBACK
    if not is_loopback(address) and not prefect_setting(AUTH):
        raise InputError(
            f"The Prefect server would answer on {address} without authentication: set {AUTH}=user:password (and "
            f"{CLIENT_AUTH} to the same for those who use it), and put TLS before it by a reverse proxy, since Prefect "
            "itself speaks plain HTTP (docs/cluster.md shows how), or leave it on 127.0.0.1"
        )
    return address


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches the address."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(address.strip("[]")).is_loopback
    return address == "localhost"


def _reached_at(address: str) -> str:
    """The host of a URL by which this machine reaches a server that binds to the address."""
    with contextlib.suppress(ValueError):
        number = ipaddress.ip_address(address.strip("[]"))
        host = {4: LOOPBACK, 6: "::1"}[number.version] if number.is_unspecified else str(number)
        return f"[{host}]" if number.version == 6 else host
    return address


def credentials() -> httpx.BasicAuth | None:
    """What a server with a password is asked with; None where none is set."""
    user, _, password = (os.environ.get(CLIENT_AUTH) or prefect_setting(AUTH) or "").partition(":")
    return httpx.BasicAuth(user, password) if user else None


def prefect_home(workspace: Workspace) -> Path:
    """Folder of the embedded server's database: in a local workspace, else in the user's home."""
    return workspace.local("prefect") if workspace.is_local else Path("~/.meissner/prefect").expanduser()


@contextlib.contextmanager
def prefect_server(
    workspace: Workspace,
    port: int | None = None,
    meanwhile: Callable[[], None] = lambda: None,
    host: str | None = None,
) -> Iterator[Server]:
    """A Prefect server for the time of the block, its address set for this process and its children.

    In this order: the configured one, the one that `meissner ui` has open on this workspace, one started here on
    ``host`` (loopback unless told otherwise, see ``served_address``) with SQLite and stopped at the end (or when this
    process dies, however it dies). ``meanwhile`` is called while the server comes up: the place for slow imports.
    """
    with _environment_kept("PREFECT_API_URL", "PREFECT_HOME", CLIENT_AUTH, *QUIET, *CONSOLE):
        os.environ.update({name: value for name, value in (QUIET | CONSOLE).items() if name not in os.environ})
        if url := configured_api_url():
            meanwhile()
            yield Server(url.rstrip("/").removesuffix("/api"), owned=False)
            return
        address = served_address(host)
        if CLIENT_AUTH not in os.environ and (password := prefect_setting(AUTH)):
            os.environ[CLIENT_AUTH] = password
        home = prefect_home(workspace)
        home.mkdir(parents=True, exist_ok=True)
        os.environ["PREFECT_HOME"] = str(home)
        if found := _running_server(home):
            os.environ["PREFECT_API_URL"] = found.api_url
            meanwhile()
            yield found
            return
        with claimed_port(address, port) as free, _start_server(home, address, free, meanwhile) as server:
            try:
                yield server
            finally:
                _send_last_logs()


@contextlib.contextmanager
def _environment_kept(*names: str) -> Iterator[None]:
    """Give the variables back their values at the end, however the block ends: the next server has its own."""
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _running_server(home: Path) -> Server | None:
    try:
        address = json.loads((home / "server.json").read_text())["ui_url"]
        answer = httpx.get(f"{address}/api/version", timeout=2, auth=credentials())
    except (OSError, ValueError, httpx.HTTPError):
        return None
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        raise InputError(f"The Prefect server {address} asks for a password: set {CLIENT_AUTH}=user:password")
    return Server(address, owned=False) if answer.status_code == httpx.codes.OK else None


@contextlib.contextmanager
def _start_server(home: Path, address: str, port: int, meanwhile: Callable[[], None]) -> Iterator[Server]:
    server = Server(f"http://{_reached_at(address)}:{port}", owned=True)
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", address, "--port", str(port)]
    environment = LASTING | {"PREFECT_UI_API_URL": _url_for_browsers(server, address, port)} | os.environ
    environment["PREFECT_LOGGING_SERVER_LEVEL"] = "WARNING"
    environment.pop("PREFECT_API_URL", None)
    process = _launch(command, environment, home)

    def revive() -> bool:
        nonlocal process
        if process.poll() is None:
            return False
        process = _launch(command, environment, home)
        _note(server, process, home)
        return True

    server = Server(server.ui_url, owned=True, revive=revive)
    os.environ["PREFECT_API_URL"] = server.api_url
    try:
        meanwhile()
        _wait_until_healthy(server, process, home)
        _note(server, process, home)
        yield server
    finally:
        (home / "server.json").unlink(missing_ok=True)
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()


def _launch(command: list[str], environment: dict[str, str], home: Path) -> subprocess.Popen:
    with (home / "server.log").open("ab") as log:
        # A session of its own, so that Ctrl-C reaches only us; dead with us, so that no server is left behind.
        return subprocess.Popen(
            command,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=die_with_parent,  # noqa: PLW1509
        )


def _note(server: Server, process: subprocess.Popen, home: Path) -> None:
    (home / "server.json").write_text(json.dumps({"ui_url": server.ui_url, "pid": process.pid}))


def _url_for_browsers(server: Server, address: str, port: int) -> str:
    """The API as the UI's page asks for it: by this machine's name where other machines open the page."""
    return server.api_url if is_loopback(address) else f"http://{socket.gethostname()}:{port}/api"


def _wait_until_healthy(server: Server, process: subprocess.Popen, home: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with contextlib.suppress(httpx.HTTPError):
            healthy = httpx.get(f"{server.api_url}/health", timeout=2).status_code == httpx.codes.OK
            if healthy and _listens(process.pid, server):
                return
        time.sleep(0.2)
    process.kill()
    last = (home / "server.log").read_text(errors="replace").strip().splitlines()[-1:]
    raise WorkspaceError(f"The Prefect server did not start; last line of {home / 'server.log'}: {' '.join(last)}")


def _listens(pid: int, server: Server) -> bool:
    """Whether it is this process that answers there, and not another server on the same port."""
    port = int(server.ui_url.rpartition(":")[2])
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        sockets = [one for each in (process, *process.children(recursive=True)) for one in each.net_connections("tcp")]
        return any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in sockets)
    return False


def _send_last_logs() -> None:
    """Wait for the logs and events still on their way, or they would find the server gone."""
    if "prefect" in sys.modules:
        from prefect.events.worker import EventsWorker
        from prefect.logging.handlers import APILogWorker

        APILogWorker.drain_all(timeout=5)
        EventsWorker.drain_all(timeout=5)


@contextlib.contextmanager
def claimed_port(address: str, port: int | None) -> Iterator[int]:
    """The port that is asked for, or the first free one of PORTS.

    Of two runs that start together both would find it free, seconds before their servers take it: who holds its lock
    may have it. The lock ends with the block, or with the process.
    """
    if port:
        yield port
        return
    for free in PORTS:
        lock = FileLock(Path(tempfile.gettempdir()) / f"meissner-{os.getuid()}-port-{free}.lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            continue
        try:
            if _is_free(address, free):
                yield free
                return
        finally:
            lock.release()
    raise WorkspaceError(f"No port of {PORTS[0]} to {PORTS[-1]} on {address} is free for the Prefect server")


def _is_free(address: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.strip("[]"), port))
        except OSError:
            return False
    return True


def die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
