"""The embedded Prefect server: started beside the workspace, shared, and gone with the process that started it."""

import os
import signal
import socket
import subprocess
import sys
import time

import httpx
import psutil
import pytest

from flows.runs import mark_crashed_runs
from flows.server import (
    LOOPBACK,
    Server,
    claimed_port,
    configured_api_url,
    is_loopback,
    prefect_server,
    served_address,
)
from tasks.exceptions import InputError, WorkspaceError
from tasks.workspace import Workspace
from tests.postgres import free_port
from tests.waiting import has_ended, wait_until

HOLD = """
import sys, time
from flows.server import prefect_server
from tasks.workspace import Workspace
with prefect_server(Workspace(sys.argv[1])) as server:
    from prefect import flow, task
    @task
    def wait():
        print(server.ui_url, server.owned, flush=True)
        time.sleep(600)
    @flow
    def endless():
        wait()
    endless()
"""


@pytest.fixture
def environment():
    unset = {"PREFECT_API_URL", "PREFECT_HOME", "PREFECT_PROFILES_PATH"}
    return {name: value for name, value in os.environ.items() if name not in unset}


def hold(workspace, environment):
    """A process that runs an endless flow on the workspace's server; with its server's address."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, workspace], stdout=subprocess.PIPE, text=True, env=environment
    )
    url, owned = process.stdout.readline().split()
    return process, Server(url, owned == "True")


def end(process):
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_a_server_is_shared_dies_with_its_owner_and_its_runs_are_marked(tmp_path, environment):
    first, server = hold(tmp_path, environment)
    try:
        assert server.owned
        assert httpx.get(f"{server.api_url}/health").json() is True
        pid = next(p.pid for p in psutil.Process(first.pid).children() if "prefect" in " ".join(p.cmdline()))
        second, shared = hold(tmp_path, environment)
        running = {"task_runs": {"state": {"type": {"any_": ["RUNNING"]}}}}
        while len(httpx.post(f"{server.api_url}/task_runs/filter", json=running).json()) < 2:
            time.sleep(0.2)  # the server hears of task runs a little later
        end(second)
        assert (shared.ui_url, shared.owned) == (server.ui_url, False)
        assert mark_crashed_runs(shared) == 0, "a server of somebody else may have runs that are alive"
        assert mark_crashed_runs(server) == 4
        for kind in ("flow_runs", "task_runs"):
            states = httpx.post(f"{server.api_url}/{kind}/filter", json={}).json()
            assert [run["state_type"] for run in states] == ["CRASHED"] * 2
    finally:
        end(first)
    wait_until(lambda: has_ended(pid))


def test_the_address_of_the_environment_comes_first(monkeypatch, tmp_path):
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    assert configured_api_url() == "http://127.0.0.1:1/api"


def test_the_active_prefect_profile_is_used(monkeypatch, tmp_path):
    profiles = tmp_path / "profiles.toml"
    profiles.write_text('active = "group"\n[profiles.group]\nPREFECT_API_URL = "http://127.0.0.1:2/api"\n')
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_PROFILES_PATH", str(profiles))
    assert configured_api_url() == "http://127.0.0.1:2/api"


def test_a_remote_workspace_keeps_its_server_in_the_home():
    from flows.server import prefect_home

    assert prefect_home(Workspace("memory://somewhere")).name == "prefect"


def test_a_server_that_cannot_start_is_one_sentence(tmp_path, monkeypatch):
    from flows import server

    for name in ("PREFECT_API_URL", "PREFECT_PROFILES_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    (tmp_path / "prefect").mkdir()
    (tmp_path / "prefect" / "prefect.db").write_text("not a database" * 1000)
    failure = pytest.raises(WorkspaceError, match=r"The Prefect server did not start; last line of .*server\.log")
    with failure, server.prefect_server(Workspace(tmp_path)):
        pass
    assert "PREFECT_API_URL" not in os.environ, "the next run would look for the server that never came up"


def test_two_runs_that_start_together_have_servers_of_their_own(tmp_path, environment):
    command = [sys.executable, "-c", HOLD]
    starting = [
        subprocess.Popen([*command, tmp_path / name], stdout=subprocess.PIPE, text=True, env=environment)
        for name in ("first", "second")
    ]
    try:
        urls = [process.stdout.readline().split()[0] for process in starting]
        assert len(set(urls)) == 2
        for url in urls:
            assert len(httpx.post(f"{url}/api/flow_runs/filter", json={}).json()) == 1
    finally:
        for process in starting:
            end(process)


@pytest.fixture
def no_settings(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("PREFECT_") and name != "PREFECT_LOGGING_ROOT_LEVEL"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.7.1", "prefect.example.org"])
def test_another_address_needs_a_password(no_settings, monkeypatch, tmp_path, host):
    sentence = f"would answer on {host} without authentication: set PREFECT_SERVER_API_AUTH_STRING.*TLS before it"
    with pytest.raises(InputError, match=sentence):
        served_address(host)
    with pytest.raises(InputError, match=sentence), prefect_server(Workspace(tmp_path), host=host):
        pass
    monkeypatch.setenv("PREFECT_SERVER_API_HOST", host)
    with pytest.raises(InputError, match=sentence), prefect_server(Workspace(tmp_path)):
        pass
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", "user:password")
    assert served_address() == host


@pytest.mark.parametrize("host", [None, "127.0.0.1", "127.0.0.7", "::1", "[::1]", "localhost"])
def test_loopback_needs_none_and_is_the_default(no_settings, host):
    assert is_loopback(served_address(host))


def test_the_command_line_refuses_in_one_sentence(no_settings, tmp_path):
    command = [sys.executable, "-c", "from flows.cli import main; main()"]
    for arguments, more in ((["ui", "--host", "0.0.0.0"], {}), (["refresh"], {"PREFECT_SERVER_API_HOST": "0.0.0.0"})):
        done = subprocess.run(
            [*command, *arguments, "--workspace", tmp_path], capture_output=True, text=True, env=os.environ | more
        )
        assert done.returncode == 2
        assert done.stderr.startswith("meissner: The Prefect server would answer on 0.0.0.0 without authentication")
        assert done.stderr.count("\n") == 1


def test_with_a_password_it_answers_there_to_those_who_know_it(no_settings, monkeypatch, tmp_path):
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", "user:planted")
    with prefect_server(Workspace(tmp_path), host="0.0.0.0") as server:
        assert os.environ["PREFECT_API_AUTH_STRING"] == "user:planted", "for the flows of this process"
        asked = f"{server.api_url}/flow_runs/filter"
        assert httpx.post(asked, json={}).status_code == 401
        assert httpx.post(asked, json={}, auth=("user", "planted")).status_code == 200
        page = httpx.get(server.ui_url, follow_redirects=True)
        assert page.status_code == 200, "the page that asks for the password"
        assert "planted" not in page.text
        assert mark_crashed_runs(server) == 0
        port = int(server.ui_url.rpartition(":")[2])
        bound = {one.laddr.ip for one in psutil.net_connections("tcp") if one.laddr.port == port and not one.raddr}
        assert bound == {"0.0.0.0"}
        with prefect_server(Workspace(tmp_path)) as shared:
            assert (shared.ui_url, shared.owned) == (server.ui_url, False)
        with monkeypatch.context() as stranger:
            stranger.setenv("PREFECT_SERVER_API_AUTH_STRING", "user:other")
            stranger.setenv("PREFECT_API_AUTH_STRING", "user:other")
            stranger.delenv("PREFECT_API_URL")
            with pytest.raises(InputError, match="asks for a password"), prefect_server(Workspace(tmp_path)):
                pass


def test_ports_are_held_by_one_run_each_and_given_back(monkeypatch):
    ports = [free_port() for _ in range(3)]
    monkeypatch.setattr("flows.server.PORTS", ports)
    with socket.create_server((LOOPBACK, ports[0])), claimed_port(LOOPBACK, None) as first:
        assert first == ports[1]
        with claimed_port(LOOPBACK, None) as second:
            assert second == ports[2]
            none = pytest.raises(WorkspaceError, match=f"No port of {ports[0]} to {ports[2]}")
            with none, claimed_port(LOOPBACK, None):
                pass
        with pytest.raises(ZeroDivisionError), claimed_port(LOOPBACK, None):
            _ = 1 / 0
    with claimed_port(LOOPBACK, None) as again, claimed_port(LOOPBACK, 5999) as asked:
        assert (again, asked) == (ports[0], 5999)
