"""A real PostgreSQL on loopback, for as long as the tests run."""

import contextlib
import ctypes
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

PROGRAMS = ("initdb", "postgres", "pg_ctl", "createdb", "dropdb", "pg_isready", "psql")
NEEDED = "apt-get install --no-install-recommends postgresql postgresql-contrib"
USER, PASSWORD = "prefect", "loopback-only"
START_SECONDS = 60


@dataclass
class PostgresCluster:
    """A cluster of its own in a folder of its own, started, stopped and killed by the tests."""

    folder: Path
    port: int
    process: subprocess.Popen | None = None

    def start(self):
        options = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": self.folder,
            "max_connections": 200,
            "fsync": "off",
        }
        settings = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        with (self.folder / "postgres.log").open("ab") as log:
            self.process = subprocess.Popen(
                [program("postgres"), "-D", self.folder / "data", *settings],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,
                preexec_fn=die_with_parent,
                **owner(),
            )
        deadline = time.monotonic() + START_SECONDS
        while self.run("pg_isready", check=False).returncode:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start: {(self.folder / 'postgres.log').read_text()[-500:]}")
            time.sleep(0.1)

    def stop(self, kill=False):
        """Stop in order, or (``kill``) as a machine that loses its power: PostgreSQL recovers at the next start."""
        self.process.send_signal(signal.SIGKILL if kill else signal.SIGINT)
        self.process.wait(timeout=60)

    def fresh(self):
        """URL of a new, empty database."""
        name = f"test_{os.urandom(6).hex()}"
        self.run("createdb", name)
        return f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{self.port}/{name}"

    def drop(self, url):
        self.run("dropdb", "--force", "--if-exists", url.rpartition("/")[2])

    def run(self, name, *arguments, check=True):
        connection = {"PGHOST": "127.0.0.1", "PGPORT": str(self.port), "PGUSER": USER, "PGPASSWORD": PASSWORD}
        command = [program(name), *arguments]
        return subprocess.run(command, env=os.environ | connection, capture_output=True, text=True, check=check)


def program(name):
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name), reverse=True)
    return shutil.which(name, path=os.pathsep.join([*map(str, folders), os.environ["PATH"]]))


def owner():
    """PostgreSQL refuses to run as root: then it runs as a user without rights."""
    if os.getuid():
        return {}
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    raise RuntimeError("no user to run PostgreSQL as")


def free_port():
    """A port that nothing listens on, from below those that outgoing connections are given."""
    while True:
        port = secrets.choice(range(20000, 32768))
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def die_with_parent():
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGQUIT)  # PR_SET_PDEATHSIG


@pytest.fixture(scope="session")
def postgres_cluster():
    if missing := [name for name in PROGRAMS if not program(name)]:
        pytest.skip(f"{', '.join(missing)} not installed ({NEEDED})")
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))  # not pytest's own, which only root may enter
    try:
        (folder / "password").write_text(PASSWORD)
        if not os.getuid():
            for path in (folder, folder / "password"):
                os.chown(path, owner()["user"], owner()["group"])
        command = [program("initdb"), "-D", folder / "data", "-U", USER, "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"]
        command += ["--auth=scram-sha-256", f"--pwfile={folder / 'password'}"]
        subprocess.run(command, cwd=folder, capture_output=True, check=True, **owner())
        cluster = PostgresCluster(folder, free_port())
        cluster.start()
        yield cluster
        cluster.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres_url(postgres_cluster):
    """URL of an empty database, gone after the test."""
    url = postgres_cluster.fresh()
    yield url
    postgres_cluster.drop(url)
