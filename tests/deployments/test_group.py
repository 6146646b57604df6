"""The servers of a group as compose.yaml starts them, on a real PostgreSQL and a real Redis: two API servers without
services, one process with them, a proxy with TLS, a worker.
"""

import contextlib
import json
import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import httpx
import psutil
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from tests.deployments.compose import DEPLOYMENTS, Machine
from tests.postgres import free_port

pytestmark = pytest.mark.slow

ROOT = DEPLOYMENTS.parent
AUTH = ("group", "planted5password6of7a8group")
EVENT = "meissner.dataset.refreshed"
PORTS = ("api-1", "api-2", "proxy", "inside", "worker", "worker-training", "tensorboard")
CHANNELS = (
    "events/in",
    "events/out",
    "logs/out",
    "task_runs/subscriptions/scheduled",
    "work_pools/meissner/workers/connect",
)
DEPLOYED = {"refresh-weekly", "train-bnas", "train-s2snet", "tune-bnas", "screen-monthly", "bands-on-demand"}
REGISTER = """
import json
from prefect.automations import Automation
from prefect.deployments.runner import RunnerDeployment
from prefect.events.actions import RunDeployment
from prefect.events.schemas.automations import EventTrigger

found = {
    name: RunnerDeployment.from_entrypoint(
        "tests.deployments.small_flow.small", name=name, tags=tags, work_pool_name="meissner", work_queue_name=queue
    ).apply()
    for name, queue, tags in (("small", "cpu", []), ("large", "gpu", []), ("crashed", "cpu", ["meissner"]))
}
trigger = EventTrigger(expect={"meissner.dataset.refreshed"}, threshold=1, within=0)
action = RunDeployment(source="selected", deployment_id=found["small"], parameters={"number": 21})
Automation(name="after a refresh", trigger=trigger, actions=[action]).create()
print(json.dumps({name: str(identifier) for name, identifier in found.items()}))
"""


def wait_for(found, seconds=300, what="nothing came"):
    deadline = time.monotonic() + seconds
    while not (answer := found()):
        assert time.monotonic() < deadline, what() if callable(what) else what
        time.sleep(0.3)
    return answer


@pytest.fixture(scope="module")
def group(postgres_cluster, redis_server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("group")
    url = postgres_cluster.fresh()
    user, password = url.split("//")[1].split("@")[0].split(":")
    ports = {name: free_port() for name in PORTS}
    values = {
        "PREFECT_AUTH": ":".join(AUTH),
        "POSTGRES_PASSWORD": password,
        "REDIS_PASSWORD": redis_server.split("@")[0].rpartition(":")[2],
        "S3_ACCESS_KEY": "access",
        "S3_SECRET_KEY": "secret",
        "MEISSNER_ADDRESS": f"https://localhost:{ports['proxy']}",
    }
    addresses = {
        "redis:6379": redis_server.split("@")[1].split("/")[0],
        "postgres:5432/optuna": url.split("@")[1],
        "api-1:4200": f"127.0.0.1:{ports['api-1']}",
        "api-2:4200": f"127.0.0.1:{ports['api-2']}",
        "proxy:8080": f"127.0.0.1:{ports['inside']}",
        "http://:8080": f"http://127.0.0.1:{ports['inside']}",
    }
    machine = Machine(folder, values, addresses)
    database = {"PREFECT_SERVER_DATABASE_HOST": "127.0.0.1", "PREFECT_SERVER_DATABASE_USER": user}
    database["PREFECT_SERVER_DATABASE_PORT"] = str(postgres_cluster.port)
    database["PREFECT_SERVER_DATABASE_NAME"] = url.rpartition("/")[2]
    caddy = shutil.which("caddy")
    try:
        machine.run("migrate", **database)
        machine.start("services", **database)
        for name in ("api-1", "api-2"):  # one after the other, as depends_on says
            machine.start(name, ("0.0.0.0", "127.0.0.1"), ("4200", str(ports[name])), **database)
            health = f"http://127.0.0.1:{ports[name]}/api/ready"
            wait_for(lambda health=health: answers(health), what=lambda name=name: machine.log(name))
        if caddy:
            own = {"XDG_DATA_HOME": str(folder / "caddy"), "XDG_CONFIG_HOME": str(folder / "caddy")}
            caddyfile = ("/etc/caddy/Caddyfile", str(DEPLOYMENTS / "proxy" / "Caddyfile"))
            machine.start("proxy", caddyfile, ("--config", "--config"), **own)
        api = f"http://127.0.0.1:{ports['inside' if caddy else 'api-1']}/api"
        wait_for(lambda: answers(f"{api}/health"), what=lambda: machine.log("proxy"))
        yield SimpleNamespace(
            machine=machine, ports=ports, api=api, caddy=caddy, folder=folder, database=database, redis=redis_server
        )
    finally:
        machine.stop()
        postgres_cluster.drop(url)


@pytest.fixture(scope="module")
def deployed(group):
    """What `meissner deploy` says, the first and the second time."""
    return [group.machine.run("deploy", **client(group)) for _ in range(2)]


@pytest.fixture(scope="module")
def registered(group, deployed):
    """Small deployments, one of them with a crashed run, and an automation; the workers and the keeper of the file."""
    found = json.loads(script(group, REGISTER))
    path = f"deployments/{found['crashed']}/create_flow_run"
    crashed = ask(group, "api-1", path, {"state": {"type": "RUNNING"}}).json()["id"]
    for state in ("RUNNING", "CRASHED"):
        body = {"state": {"type": state, "name": state.title()}, "force": True}
        assert ask(group, "api-1", f"flow_runs/{crashed}/set_state", body).json()["status"] == "ACCEPT"
    for name in ("worker", "worker-training"):
        group.machine.start(
            name,
            PREFECT_WORKER_QUERY_SECONDS="1",
            PREFECT_WORKER_WEBSERVER_HOST="127.0.0.1",
            PREFECT_WORKER_WEBSERVER_PORT=str(group.ports[name]),
            **client(group),
        )
    group.machine.start("keeper", **client(group))
    return found


def client(group):
    return {
        "PREFECT_API_URL": group.api,
        "MEISSNER_WORKSPACE": str(group.folder / "workspace"),
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "COLUMNS": "200",
    }


def script(group, code):
    known = group.machine.environment("worker", **client(group))
    done = subprocess.run([sys.executable, "-c", code], env=known, cwd=group.folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""


def answers(url):
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(url, timeout=5, verify=False).status_code == 200
    return False


def ask(group, name, path, body=None, auth=AUTH):
    return httpx.post(f"http://127.0.0.1:{group.ports[name]}/api/{path}", json=body or {}, auth=auth, timeout=60)


def runs_of(group, name, deployment):
    return ask(group, name, "flow_runs/filter", {"deployments": {"name": {"any_": [deployment]}}}).json()


def finished(group, name, count, deployment="small"):
    runs = runs_of(group, name, deployment)
    return len(runs) >= count and all(run["state_type"] == "COMPLETED" for run in runs) and runs


def test_each_server_asks_for_the_password(group):
    for name in ("api-1", "api-2"):
        assert ask(group, name, "flow_runs/filter", auth=None).status_code == 401
        assert ask(group, name, "flow_runs/filter", auth=("group", "wrong")).status_code == 401
        assert ask(group, name, "flow_runs/filter").status_code == 200


def test_nothing_but_signs_of_health_answers_without_the_password(group):
    api = f"http://127.0.0.1:{group.ports['api-1']}/api"
    known = httpx.get(f"{api}/openapi.json", auth=AUTH, timeout=60).json()["paths"]
    paths = [path for path, methods in known.items() if "get" in methods and "{" not in path]
    assert len(paths) > 5
    opened = {path for path in paths if httpx.get(api + path, timeout=60).status_code != 401}
    assert opened == {"/health", "/ready"}
    for page in ("openapi.json", "docs", "redoc"):
        assert httpx.get(f"{api}/{page}", timeout=60).status_code == 401


@pytest.mark.parametrize("channel", CHANNELS)
def test_a_channel_does_not_answer_without_the_password(group, channel):
    place = f"{group.api}/{channel}".replace("http://", "ws://")
    with pytest.raises(InvalidStatus, match="403"):
        connect(place, close_timeout=5)
    said = {"type": "auth"}, {"type": "auth", "token": "group:wrong"}, {"type": "filter", "filter": {}}
    for first in said:
        with (
            connect(place, subprotocols=["prefect"], close_timeout=5) as socket,
            pytest.raises(ConnectionClosed) as end,
        ):
            socket.send(json.dumps(first))
            socket.recv(timeout=30)
        assert end.value.rcvd.code == 1008, first
    with connect(place, subprotocols=["prefect"], close_timeout=5) as socket:
        socket.send(json.dumps({"type": "auth", "token": ":".join(AUTH)}))
        assert json.loads(socket.recv(timeout=30)) == {"type": "auth_success"}


def test_the_command_deploy_registers_everything_and_twice_is_once(group, deployed):
    first, second = ([line.split() for line in told.splitlines()[1:]] for told in deployed)
    assert {words[-1] for words in first} == {"created"}
    assert {words[-1] for words in second} == {"unchanged"}
    assert {words[1] for words in first if words[0] == "deployment"} == DEPLOYED
    found = ask(group, "api-2", "deployments/filter", {"deployments": {"name": {"any_": sorted(DEPLOYED)}}})
    assert {each["name"] for each in found.json()} == DEPLOYED
    assert {each["parameters"]["workspace"] for each in found.json()} == {str(group.folder / "workspace")}
    [tuning] = [each for each in found.json() if each["name"] == "tune-bnas"]
    assert "${POSTGRES_PASSWORD}@" in tuning["parameters"]["settings"]["storage"]
    password = group.machine.environment("deploy")["POSTGRES_PASSWORD"]
    for text in (found.text, *deployed):
        assert password not in text
        assert AUTH[1] not in text
    queues = ask(group, "api-2", "work_pools/meissner/queues/filter").json()
    assert {queue["name"] for queue in queues} == {"default", "cpu", "dft", "gpu"}
    automations = {each["name"] for each in ask(group, "api-2", "automations/filter").json()}
    assert {"meissner: train after new data", "meissner: screen after training"} <= automations


def test_what_one_server_is_told_the_other_knows_and_a_worker_runs_it(group, registered):
    path = f"deployments/{registered['small']}/create_flow_run"
    made = ask(group, "api-1", path, {"parameters": {"number": 4}})
    assert made.status_code == 201, made.text
    [run] = wait_for(
        lambda: finished(group, "api-2", 1),
        what=lambda: f"{ask(group, 'api-2', 'flow_runs/filter').text}\n{group.machine.log('worker')}",
    )
    assert run["id"] == made.json()["id"]
    # task runs come by events: through Redis to the services
    asked = {"flow_runs": {"id": {"any_": [run["id"]]}}}
    tasks = wait_for(
        lambda: [t for t in ask(group, "api-2", "task_runs/filter", asked).json() if t["state_type"] == "COMPLETED"]
    )
    assert [task["name"].split("-")[0] for task in tasks] == ["double"]


def test_the_worker_of_trainings_takes_its_queue(group, registered):
    made = ask(group, "api-1", f"deployments/{registered['large']}/create_flow_run")
    assert made.status_code == 201, made.text
    wait_for(lambda: finished(group, "api-2", 1, "large"), what=lambda: group.machine.log("worker-training"))
    assert made.json()["name"] in group.machine.log("worker-training")
    assert made.json()["name"] not in group.machine.log("worker")


def test_an_event_passes_through_redis_to_an_automation(group, registered):
    import redis

    before = len(runs_of(group, "api-1", "small"))
    script(
        group,
        "from prefect.events import emit_event;"
        f"emit_event({EVENT!r}, resource={{'prefect.resource.id': 'meissner.dataset'}})",
    )
    runs = wait_for(
        lambda: finished(group, "api-2", before + 1),
        what=lambda: f"{group.machine.log('services')}\n{group.machine.log('worker')}",
    )
    newest = max(runs, key=lambda run: run["created"])
    assert newest["parameters"] == {"number": 21}
    assert newest["created_by"]["type"] == "AUTOMATION"
    named = {"filter": {"event": {"name": [EVENT]}}}
    told = wait_for(  # events are stored in batches, which may be later than the run that one starts
        lambda: ask(group, "api-2", "events/filter", named).json()["events"],
        what=lambda: group.machine.log("services"),
    )
    assert len(told) == 1
    streams = [key.decode() for key in redis.from_url(group.redis).keys("*")]
    assert any("events" in key for key in streams), streams


def test_the_keeper_starts_a_crashed_run_again(group, registered):
    wait_for(lambda: finished(group, "api-2", 1, "crashed"), what=lambda: group.machine.log("keeper"))
    assert "had crashed and is started again" in group.machine.log("keeper")


def test_health_checks_of_the_file_pass_here_and_fail_where_nothing_is(group, registered):
    (group.folder / "curves").mkdir()
    there = ("/workspace/models", str(group.folder / "curves")), ("0.0.0.0", "127.0.0.1")
    group.machine.start("tensorboard", *there, ("6006", str(group.ports["tensorboard"])))
    places = {"api-1": ("4200", "api-1"), "worker": ("8080", "worker"), "worker-training": ("8080", "worker-training")}
    places |= {"tensorboard": ("6006", "tensorboard")} | ({"proxy": ("8080", "inside")} if group.caddy else {})
    for name, (port, here) in places.items():
        wait_for(
            lambda name=name, port=port, here=here: group.machine.healthy(name, (port, str(group.ports[here]))),
            what=lambda name=name: group.machine.log(name),
        )
        assert not group.machine.healthy(name, (port, str(free_port()))), name
    assert group.machine.healthy("services")
    url = group.machine.environment("services")["PREFECT_SERVER_DOCKET_URL"]
    another = url.removesuffix("1") + "9"
    assert not group.machine.healthy("services", PREFECT_SERVER_DOCKET_URL=another), "another database of Redis"


def test_the_proxy_speaks_tls_and_goes_on_when_a_server_is_killed(group, registered):
    if not group.caddy:
        pytest.skip("caddy is not installed (apt-get install caddy)")
    public = f"https://localhost:{group.ports['proxy']}/api"
    assert httpx.get(f"{public}/version", verify=False, auth=AUTH, timeout=60).status_code == 200
    assert httpx.get(f"{public}/version", verify=False, timeout=60).status_code == 401
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"http://localhost:{group.ports['proxy']}/api/version", auth=AUTH).raise_for_status()
    killed = group.machine.processes["api-1"]
    for process in [*psutil.Process(killed.pid).children(recursive=True), psutil.Process(killed.pid)]:
        process.kill()
    for _ in range(20):
        assert httpx.get(f"{public}/version", verify=False, auth=AUTH, timeout=60).status_code == 200
    before = len(runs_of(group, "api-2", "small"))
    path = f"deployments/{registered['small']}/create_flow_run"
    assert httpx.post(f"{public}/{path}", json={}, verify=False, auth=AUTH, timeout=60).status_code == 201
    wait_for(lambda: finished(group, "api-2", before + 1), what=lambda: group.machine.log("worker"))


def test_passwords_are_in_no_log_of_the_group(group, registered):
    group.machine.stop()
    for log in group.folder.glob("*.log"):
        assert AUTH[1] not in log.read_text(), log.name
