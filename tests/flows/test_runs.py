"""Lost runs are marked, crashed ones are started again, silence is told, on a real server."""

import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.sorting import DeploymentSort
from prefect.deployments.runner import RunnerDeployment
from prefect.states import Completed, Crashed, Failed, Pending, Running

from flows import runs
from flows.runs import AGAIN, HEARTBEAT, REFRESH, SCREENING, SILENT, Keeper
from flows.server import Server
from tasks.settings import OperationsSettings

pytestmark = pytest.mark.usefixtures("prefect_harness")

SECOND = 1 / 60  # in minutes
QUIET = 1.5 / 86400  # in days
DAY = 1.0


@flow(name="kept")
def kept():
    pass


@pytest.fixture(scope="module")
def client(prefect_harness):
    with get_client(sync_client=True) as client:
        yield client


@pytest.fixture(scope="module")
def server(client):
    return Server(str(client.api_url).rstrip("/").removesuffix("/api"), owned=False)


@pytest.fixture(scope="module")
def deployment(client):
    """A deployment whose runs give signs of life."""
    deployment = RunnerDeployment.from_flow(kept, name="kept", tags=["meissner"]).apply()
    # as those of prefect.yaml, without a pool
    variables = DeploymentUpdate(job_variables={"env": {runs.FREQUENCY: "30"}})
    client.update_deployment(deployment, variables)
    return deployment


@pytest.fixture
def asked(client):
    """Function that asks for a run of a deployment, or of none, and gives it states; the runs go at the end."""
    made = []

    def ask(deployment, *states):
        if deployment:
            run = client.create_flow_run_from_deployment(deployment)
        else:
            run = client.create_flow_run(kept, tags=["meissner"])
        made.append(run)
        for state in states:
            client.set_flow_run_state(run.id, state(), force=True)
        return run

    yield ask
    for run in made:
        client.delete_flow_run(run.id)


def quick(**settings):
    """Settings of operations; minutes may be shorter than a person may set them."""
    return OperationsSettings().model_copy(update=settings)


def test_a_crashed_run_is_started_again_so_many_times(client, server, deployment, asked, monkeypatch):
    made = {crashes: asked(deployment, *[Running, Crashed] * crashes) for crashes in range(4)}
    without = asked(None, Running, Crashed)
    keeper = Keeper(server, quick(restarts=2))
    assert keeper.look() == [], "a crash settles for a minute"
    monkeypatch.setattr(runs, "SETTLING", timedelta(0))
    assert Keeper(server, quick(restarts=0)).look() == []
    wanted = [f"The run {made[crashes].name} had crashed and is started again" for crashes in (1, 2)]
    assert sorted(keeper.look()) == sorted(wanted)
    assert keeper.look() == [], "they wait for a worker"
    states = [client.read_flow_run(run.id).state for run in made.values()]
    assert [each.name for each in states] == ["Scheduled", "AwaitingRetry", "AwaitingRetry", "Crashed"]
    assert states[1].message == AGAIN
    assert client.read_flow_run(without.id).state.name == "Crashed"


def test_an_old_crash_is_left_to_a_person(server, deployment, asked, monkeypatch):
    asked(deployment, Running, Crashed)
    monkeypatch.setattr(runs, "SETTLING", timedelta(0))
    monkeypatch.setattr(runs, "STALE", timedelta(0))
    assert Keeper(server, quick()).look() == []


def beat(server, run):
    """A sign of life; waits until the server knows it."""
    resource = {"prefect.resource.id": f"prefect.flow-run.{run.id}"}
    with httpx.Client(base_url=server.api_url) as client:
        known = runs._newest_heartbeat(client, {"id": run.id})
        event = {"event": HEARTBEAT, "resource": resource, "occurred": datetime.now(UTC).isoformat()}
        client.post("/events", json=[event | {"id": str(uuid4())}]).raise_for_status()
        deadline = time.monotonic() + 60
        while runs._newest_heartbeat(client, {"id": run.id}) == known:
            assert time.monotonic() < deadline
            time.sleep(0.2)


def test_a_silent_run_is_lost_and_one_that_beats_is_not(client, server, deployment, asked):
    silent, alive, other = asked(deployment, Running), asked(deployment, Running), asked(None, Running)
    waiting = asked(deployment, Pending)
    keeper = Keeper(server, quick(lost_minutes=0.5 * SECOND, start_minutes=60))
    beat(server, alive)
    assert keeper.look() == [], "silence begins with the first look"
    time.sleep(0.6)
    beat(server, alive)
    (told,) = keeper.look()
    assert silent.name in told
    assert "No sign of life" in told
    time.sleep(0.6)
    names = [client.read_flow_run(run.id).state.name for run in (silent, other, waiting)]
    assert names == ["Crashed", "Running", "Pending"]
    (told,) = keeper.look()
    assert alive.name in told


def test_a_run_that_a_worker_took_and_did_not_start_is_found(client, server, deployment, asked):
    taken, due = asked(deployment, Pending), asked(deployment)
    keeper = Keeper(server, quick(start_minutes=0.5 * SECOND))
    assert keeper.look() == []
    time.sleep(0.6)
    (told,) = keeper.look()
    assert taken.name in told
    assert client.read_flow_run(taken.id).state.name == "Crashed"
    assert client.read_flow_run(due.id).state.name == "Scheduled"


def test_while_the_server_is_away_nobody_counts_as_silent(client, server, deployment, asked):
    run = asked(deployment, Running)
    keeper = Keeper(server, quick(lost_minutes=0.5 * SECOND))
    keeper.look()
    time.sleep(0.6)
    keeper._server = Server("http://127.0.0.1:9", owned=False)
    assert keeper.look() == []
    keeper._server = server
    assert keeper.look() == [], "the clock begins anew"
    assert client.read_flow_run(run.id).state.name == "Running"


def test_a_run_whose_deployment_gives_no_signs_is_left_alone(client, server, asked):
    quiet = RunnerDeployment.from_flow(kept, name="quiet", tags=["meissner"]).apply()
    run = asked(quiet, Running)
    keeper = Keeper(server, quick(lost_minutes=0.1 * SECOND))
    keeper.look()
    time.sleep(0.2)
    assert keeper.look() == []
    assert client.read_flow_run(run.id).state.name == "Running"


@pytest.fixture
def unscheduled(client):
    """No deployments that other modules have left on this server."""
    for deployment in client.read_deployments(sort=DeploymentSort.NAME_ASC, limit=200):
        if deployment.name in (REFRESH, SCREENING):
            client.delete_deployment(deployment.id)


@pytest.fixture(params=[REFRESH, SCREENING])
def scheduled(request, client, unscheduled):
    """A deployment with a schedule, made just now, and its limit as a setting."""
    setting = {REFRESH: "quiet_days", SCREENING: "quiet_days_screening"}[request.param]
    made = RunnerDeployment.from_flow(kept, name=request.param, tags=["meissner"], cron="0 3 1 1 *").apply()
    yield made, setting
    client.delete_deployment(made)


def silences(server, deployment, count):
    """Payloads of the events that tell of a deployment's silence, once so many have arrived."""
    asked = {"event": {"name": [SILENT]}, "resource": {"id": [f"prefect.deployment.{deployment}"]}}
    deadline = time.monotonic() + 60
    while True:
        found = httpx.post(f"{server.api_url}/events/filter", json={"filter": asked}).raise_for_status().json()
        if len(found["events"]) >= count:
            return [event["payload"] for event in found["events"]]
        assert time.monotonic() < deadline
        time.sleep(0.2)


def looks(server, setting, days):
    """What two looks of a new keeper tell of silence."""
    keeper = Keeper(server, quick(**{setting: days}))
    return [told for told in keeper.look() + keeper.look() if "no success" in told]


def test_a_schedule_without_success_is_told_once(client, server, scheduled, asked):
    deployment, setting = scheduled
    made = client.read_deployment(deployment)
    assert looks(server, setting, DAY) == [], "counted from when the deployment was made"
    time.sleep(1.6)
    asked(deployment, Running, Failed)
    assert len(looks(server, setting, QUIET)) == 1, "a failure is no success"
    assert looks(server, setting, QUIET) == [], "another keeper, the same silence"
    (payload,) = silences(server, deployment, 1)
    assert payload["deployment"] == made.name
    ended = client.read_flow_run(asked(deployment, Running, Completed).id).end_time
    age = (ended - made.created).total_seconds() / 86400  # grows with what the looks take here
    assert looks(server, setting, 0.9 * age) == [], "counted from the success"
    time.sleep(1.6)
    assert Keeper(server, quick(**{setting: QUIET})).look() == [], (
        "a server that has just started may not hear the first"
    )
    assert len(looks(server, setting, QUIET)) == 1, "the next silence"
    since = {payload["since"] for payload in silences(server, deployment, 2)}
    assert f"{ended:%Y-%m-%d %H:%M} UTC" in since


def test_a_deployment_without_a_schedule_is_never_silent(client, server, unscheduled):
    made = RunnerDeployment.from_flow(kept, name=REFRESH, tags=["meissner"]).apply()
    time.sleep(0.2)
    assert looks(server, "quiet_days", QUIET / 100) == []
    client.delete_deployment(made)


def keep(workspace, **environment):
    """`meissner keep` as a process."""
    command = [str(Path(sys.executable).with_name("meissner")), "keep", "--workspace", str(workspace)]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    kept |= {"PREFECT_HOME": str(workspace / "home"), "PYTHONUNBUFFERED": "1", "COLUMNS": "200"} | environment
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=kept)


def test_the_command_keeps_the_runs_of_a_group_until_ctrl_c(client, server, deployment, asked, tmp_path):
    run = asked(deployment, Pending)
    settings = {"MEISSNER_OPERATIONS__START_MINUTES": "0.75"}
    with keep(tmp_path, PREFECT_API_URL=server.api_url, **settings) as process:
        assert server.ui_url in process.stdout.readline()
        assert run.name in process.stdout.readline()
        assert client.read_flow_run(run.id).state.name == "Crashed"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130


def test_without_a_server_the_command_says_what_to_do(tmp_path):
    with keep(tmp_path) as process:
        assert "PREFECT_API_URL names no Prefect server" in process.communicate(timeout=60)[0]
    assert process.returncode == 2
