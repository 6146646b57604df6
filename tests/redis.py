"""A real Redis on loopback, for as long as the tests run."""

import os
import shutil
import subprocess
import time

import pytest

from tests.postgres import die_with_parent, free_port

PASSWORD = "loopback-only"
NEEDED = "apt-get install --no-install-recommends redis-server"


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory):
    """URL of the server."""
    if not shutil.which("redis-server"):
        pytest.skip(f"redis-server is not installed ({NEEDED})")
    folder, port = tmp_path_factory.mktemp("redis"), free_port()
    lines = ["bind 127.0.0.1", f"port {port}", f"requirepass {PASSWORD}", "save ''", "appendonly no", f"dir {folder}"]
    (folder / "redis.conf").write_text("\n".join(lines) + "\n")
    with (folder / "redis.log").open("wb") as log:
        process = subprocess.Popen(
            ["redis-server", folder / "redis.conf"], stdout=log, stderr=log, preexec_fn=die_with_parent
        )
    deadline = time.monotonic() + 30
    while redis_command(port, "ping") != "PONG":
        assert process.poll() is None, (folder / "redis.log").read_text()
        assert time.monotonic() < deadline, "Redis does not answer"
        time.sleep(0.05)
    yield f"redis://:{PASSWORD}@127.0.0.1:{port}/0"
    process.terminate()
    process.wait(timeout=30)


@pytest.fixture
def redis_url(redis_server):
    """URL of the server, empty."""
    redis_command(redis_server.rpartition(":")[2].split("/")[0], "flushall")
    return redis_server


def redis_command(port, *arguments):
    command = ["redis-cli", "-h", "127.0.0.1", "-p", str(port), *arguments]
    done = subprocess.run(command, env=os.environ | {"REDISCLI_AUTH": PASSWORD}, capture_output=True, text=True)
    return done.stdout.strip()
