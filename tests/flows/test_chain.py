"""A schedule fires a refresh, which starts both trainings, which start the screening: one command, real processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pyarrow.parquet as pq
import pytest
import yaml

from flows.deploy import FILE
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

ROOT = Path(__file__).resolve().parents[2]
MEISSNER = str(Path(sys.executable).with_name("meissner"))
CHAIN = ("refresh-weekly", "train-bnas", "train-s2snet", "screen-monthly")


@pytest.fixture
def up(tmp_path):
    """`meissner up` with a refresh every minute and no calculations: its process, workspace and API."""
    document = yaml.safe_load(FILE.read_text())
    document["deployments"][0]["schedules"] = [{"cron": "* * * * *", "timezone": "Etc/UTC", "slug": "weekly"}]
    (tmp_path / "minutely.yaml").write_text(yaml.safe_dump(document))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment |= {"MEISSNER_BANDS__ENGINE": "none", "PYTHONUNBUFFERED": "1", "COLUMNS": "200"}
    workspace = tmp_path / "w"
    options = ["--profile", str(ROOT / "tests/data/quick.toml"), "--workspace", str(workspace)]
    command = [MEISSNER, "up", *options, "--file", str(tmp_path / "minutely.yaml")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("Prefect's UI"):
            break
    assert process.poll() is None, "".join(lines)
    yield process, workspace, line.split()[2] + "/api"
    if process.poll() is None:
        process.kill()


def runs_of(api, deployment):
    """States of the runs of a deployment, oldest first."""
    wanted = {"deployments": {"name": {"any_": [deployment]}}, "sort": "START_TIME_ASC", "limit": 200}
    return [run["state_name"] for run in httpx.post(f"{api}/flow_runs/filter", json=wanted, timeout=60).json()]


def command_lines():
    return [found.info["cmdline"] or [] for found in psutil.process_iter(["cmdline"])]


def test_a_schedule_leads_to_candidates_and_ctrl_c_ends_everything(up):
    process, workspace, api = up
    deadline = time.monotonic() + 1500
    while "Completed" not in runs_of(api, CHAIN[-1]):
        assert time.monotonic() < deadline, {name: runs_of(api, name) for name in CHAIN}
        assert process.poll() is None
        time.sleep(2)
    for name in CHAIN[:-1]:
        assert "Completed" in runs_of(api, name)
        assert not {"Failed", "Crashed"} & set(runs_of(api, name))
    assert [runs_of(api, name).count("Completed") for name in CHAIN[1:]] == [1, 1, 1], "once each, for one change"
    table = pq.read_table(workspace / "candidates" / "candidates.parquet")
    assert json.loads(table.schema.metadata[b"meissner"])["networks"]["bnas"] == table["bnas_version"][0].as_py()
    asked = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert time.monotonic() - asked < 30
    wait_until(lambda: not [line for line in command_lines() if str(workspace) in " ".join(line)], 30)
