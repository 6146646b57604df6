"""What `meissner up` does with its own server, and with what an earlier one left behind."""

import os
import subprocess
import sys
import time

import httpx
import psutil
import pytest

from flows.runs import mark_crashed_runs
from flows.server import CONSOLE, QUIET, prefect_server
from tasks.workspace import Workspace

pytestmark = pytest.mark.slow


def test_its_server_comes_back_with_all_runs_and_orphans_of_an_earlier_one_are_ended(tmp_path, monkeypatch):
    for name in ("PREFECT_API_URL", "PREFECT_HOME", "PREFECT_PROFILES_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (QUIET | CONSOLE).items():
        monkeypatch.setenv(name, value)
    with prefect_server(Workspace(tmp_path)) as server:
        flow = httpx.post(f"{server.api_url}/flows/", json={"name": "long"}).json()["id"]
        running = {"flow_id": flow, "state": {"type": "RUNNING"}}
        run = httpx.post(f"{server.api_url}/flow_runs/", json=running).json()["id"]
        assert not server.revive(), "it is well"
        for process in psutil.Process().children():
            if "server" in process.cmdline():
                process.kill()
                process.wait(timeout=10)
        assert server.revive()
        deadline = time.monotonic() + 120
        while not answers(server):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        command = [sys.executable, "-c", "import time; time.sleep(600)"]
        orphan, other = (
            subprocess.Popen(command, env=os.environ | {"PREFECT__FLOW_RUN_ID": name}) for name in (run, "another")
        )
        assert mark_crashed_runs(server) == 1
        assert httpx.get(f"{server.api_url}/flow_runs/{run}").json()["state_name"] == "Crashed"
        orphan.wait(timeout=10)
        assert other.poll() is None
        other.kill()
        other.wait()


def answers(server):
    try:
        return httpx.get(f"{server.api_url}/health", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False
