"""Everything that runs in a group, as processes of this machine that can be killed and started again.

PostgreSQL, a Prefect server on it, `meissner up` with its worker, and an S3 store. The store is moto's server, which
keeps its objects in memory; so what is killed is the door before it (front.py): connections end in the middle, then
nobody answers. That is what the death of a gateway over a disk looks like, as the store of compose.yaml is one.
"""

import contextlib
import hashlib
import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import psutil

from flows.server import LASTING
from tasks.dataset_events import workspace_resource
from tasks.workspace import Workspace
from tests import postgres
from tests.recovery import plain

ROOT = Path(__file__).resolve().parents[2]
MEISSNER = str(Path(sys.executable).with_name("meissner"))
PARTS = ("flow", "worker", "machine", "server", "postgres", "store", "clock")
JUMP_SECONDS = 120  # longer than what makes a run count as lost
DOWN_SECONDS = 3.0  # between a kill and the start by whatever supervises the part
ENDED = {"COMPLETED", "FAILED", "CANCELLED"}
TIMES = {"finished", "trained", "created", "started", "versions"}  # of documents: when, not what
LOST_MINUTES, START_MINUTES = 1.0, 5.0  # on a busy machine a run takes its time to begin and to give a sign of life
PROFILE = """
supercon = "{inputs}/supercon.csv"
crystals = ["{inputs}/crystals.csv"]
workers = 1

[bands]
engine = "none"

[grid]
mesh = {mesh}

[bnas]
config = "{training.config}"
epochs = {training.epochs}
folds = {training.folds}
ensemble = {training.ensemble}
splits = ["random"]

[screening]
chunk = {chunk}

[operations]
lost_minutes = {lost}
start_minutes = {start}
"""


class Rig:
    """The parts by name; ``start`` and ``kill`` them one by one."""

    def __init__(self, folder, cluster):
        self.folder, self.cluster = folder, cluster
        self.database = cluster.fresh().replace("postgresql://", "postgresql+asyncpg://")
        self.ports = {name: postgres.free_port() for name in ("server", "store", "behind")}
        self.api = f"http://127.0.0.1:{self.ports['server']}/api"
        self.s3 = f"http://127.0.0.1:{self.ports['store']}"
        self.client = httpx.Client(base_url=self.api, timeout=60)
        self.processes = {}
        keys = {"AWS_ENDPOINT_URL": self.s3, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
        self.keys = keys | {"AWS_DEFAULT_REGION": "us-east-1"}
        unwanted = ("PREFECT_", "MEISSNER_", "AWS_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
        self.environment = kept | self.keys | {"PREFECT_HOME": str(folder / "prefect"), "DO_NOT_TRACK": "1"}
        self.environment |= {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
        self.environment |= {"HOME": str(folder), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        self.clock = folder / "clock"
        self.environment |= {"LD_PRELOAD": wrong_clock(folder), "CLOCK_FILE": str(self.clock)}
        self.set_clock(0)
        self.profile = folder / "profile.toml"
        chosen = {"mesh": plain.GRIDS.mesh, "training": plain.TRAINING, "chunk": plain.SCREENING.chunk}
        self.profile.write_text(PROFILE.format(inputs=folder, lost=LOST_MINUTES, start=START_MINUTES, **chosen))

    def start(self, part):
        {"postgres": self.cluster.start}.get(part, lambda: self._start(part))()

    def _start(self, part):
        prefect = [sys.executable, "-m", "prefect"]
        command, more = {
            "behind": ([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.ports["behind"])], {}),
            "store": (
                [sys.executable, str(Path(__file__).with_name("front.py")), *map(str, self._doors())],
                {},
            ),
            "server": (
                [*prefect, "server", "start", "--host", "127.0.0.1", "--port", str(self.ports["server"])],
                LASTING
                | {"PREFECT_SERVER_DATABASE_CONNECTION_URL": self.database, "PREFECT_LOGGING_SERVER_LEVEL": "WARNING"},
            ),
            "up": (
                [MEISSNER, "up", "--profile", str(self.profile), "--workspace", str(self.folder / "own")],
                {"PREFECT_API_URL": self.api, "PREFECT_WORKER_QUERY_SECONDS": "1"},
            ),
        }[part]
        with (self.folder / f"{part}.log").open("ab") as log:
            self.processes[part] = subprocess.Popen(
                command,
                env=self.environment | more,
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=postgres.die_with_parent,
            )

    def _doors(self):
        return self.ports["store"], self.ports["behind"]

    def set_clock(self, seconds):
        """Make the wall clock of all parts but PostgreSQL wrong by so much."""
        with self.clock.open("r+b" if self.clock.exists() else "wb") as file:
            file.write(seconds.to_bytes(8, sys.byteorder, signed=True))
        self.wrong = seconds

    def kill(self, part, run):
        """SIGKILL; gives how many processes died. A clock is not killed: it jumps ahead, and the next time back."""
        if part == "clock":
            self.set_clock(0 if self.wrong else JUMP_SECONDS)
            return 1
        if part == "postgres":
            self.cluster.stop(kill=True)
            return 1
        if part in ("server", "store"):
            return end_all([psutil.Process(self.processes[part].pid)], children=True)
        flow, worker = self.flow_processes(run), self.workers()
        if part == "machine":
            return end_all([psutil.Process(self.processes["up"].pid), *worker, *flow])
        return end_all({"flow": flow, "worker": worker}[part])

    def revive(self, part):
        """Start a part as its supervisor does; the worker has one in `meissner up`, a flow has the automations."""
        if started := {"machine": "up", "server": "server", "store": "store", "postgres": "postgres"}.get(part):
            time.sleep(DOWN_SECONDS)
            self.start(started)

    def workers(self):
        """Process of the Prefect worker."""
        children = psutil.Process(self.processes["up"].pid).children()
        return [one for one in children if "worker" in one.cmdline()]

    def flow_processes(self, run):
        """All processes of a flow run."""
        return [one for one in psutil.process_iter() if run_of(one) == run]

    def ask(self, path, **body):
        return self.client.post(f"/{path}", json=body).raise_for_status().json()

    def run(self, name):
        """The flow run with this id."""
        return self.client.get(f"/flow_runs/{name}").raise_for_status().json()

    def begin(self, deployment, workspace):
        """Ask for a run of a deployment on a workspace."""
        found = self.ask("deployments/filter", deployments={"name": {"any_": [deployment]}})[0]
        path = f"deployments/{found['id']}/create_flow_run"
        return self.ask(path, parameters={"workspace": workspace})["id"]

    def await_state(self, run, states, seconds=300):
        """Wait until the run is in one of the states; silence of the server is waited through."""
        deadline, found = time.monotonic() + seconds, None
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.HTTPError):
                found = self.run(run)
                if found["state_type"] in states:
                    return found
            time.sleep(0.5)
        raise TimeoutError(f"{run} is {found and found['state_name']} after {seconds} s\n{self.logs()}")

    def states(self, run):
        """Names of the states that the run went through."""
        answer = self.client.get("/flow_run_states/", params={"flow_run_id": run})
        return [state["name"] for state in sorted(answer.raise_for_status().json(), key=lambda one: one["timestamp"])]

    def events(self, workspace, name):
        """How often an event of a workspace was told."""
        place = {"id": [workspace_resource(Workspace(workspace))["prefect.resource.id"]]}
        asked = {"event": {"name": [name]}, "any_resource": place}
        return self.ask("events/filter", filter=asked)["total"]

    def logs(self):
        """Ends of all logs."""
        names = [*self.folder.glob("*.log"), *self.folder.glob("own/prefect/*.log")]
        return "\n".join(f"== {path.name}\n{path.read_text(errors='replace')[-1500:]}" for path in names)

    def stop(self):
        """End everything."""
        found = [psutil.Process(one.pid) for one in self.processes.values() if one.poll() is None]
        home = str(self.folder)
        mine = [one for one in psutil.process_iter() if variables(one).get("PREFECT_HOME", "").startswith(home)]
        end_all([*found, *mine], children=True)


def wrong_clock(folder):
    """The compiled library that makes a wall clock wrong."""
    library = folder / "clock.so"
    source = Path(__file__).with_name("clock.c")
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    return str(library)


def end_all(processes, children=False):
    """SIGKILL all at once; gives how many there were."""
    found = list(processes)
    for one in list(found) if children else ():
        with contextlib.suppress(psutil.Error):
            found += one.children(recursive=True)
    for one in found:
        with contextlib.suppress(psutil.Error):
            one.send_signal(signal.SIGKILL)
    psutil.wait_procs(found, timeout=10)
    return len(set(found))


def variables(process):
    try:
        return process.environ()
    except (psutil.Error, OSError):
        return {}


def run_of(process):
    """The flow run that a process belongs to; None for others."""
    return variables(process).get("PREFECT__FLOW_RUN_ID")


@contextmanager
def open_rig(folder):
    """A rig with all parts running."""
    with ExitStack() as stack:
        cluster = stack.enter_context(contextmanager(inspect.unwrap(postgres.postgres_cluster))())
        rig = Rig(folder, cluster)
        stack.callback(rig.stop)
        for part in ("behind", "store", "server"):
            rig.start(part)
        wait_for(lambda: answers(f"{rig.api}/health"), 120, rig.logs)
        wait_for(lambda: listens(rig.s3), 60, rig.logs)
        rig.start("up")
        wait_for(lambda: "Prefect's UI" in (folder / "up.log").read_text(), 120, rig.logs)
        yield rig


def answers(url):
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(url, timeout=5).status_code == 200
    return False


def listens(url):
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(url, timeout=5).status_code < 500
    return False


def wait_for(ready, seconds, what=lambda: ""):
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not so after {seconds} s\n{what()}")
        time.sleep(0.1)


def small_inputs(folder, supercon=90, crystals=30):
    """A part of the starter's tables: crystals without disorder, which need no processes to be ordered."""
    starter = ROOT / "deployments" / "starter"
    for name, count in (("supercon.csv", supercon), ("crystals.csv", crystals)):
        lines = (starter / name).read_text().splitlines(keepends=True)
        kept = [line for line in lines if name == "supercon.csv" or "0." not in line.split(",")[1]]
        (folder / name).write_text("".join(kept[: count + 1]))


def contents(url):
    """What a workspace holds: a hash for each file. Times and versions in documents do not count."""
    place, found = Workspace(url), {}
    place.fs.invalidate_cache()
    for path in place.fs.find(place.root):
        name = str(path)[len(place.root) + 1 :]
        if name.startswith(("prefect/", "scratch/")) or name.endswith(".part"):
            continue
        if "/tensorboard/" in name or "/memo/" in name:  # a log with times, and a cache
            continue
        if name.endswith(("data-seen.json", "announced.json")):  # only a run on a server notes what it saw and told
            continue
        data = place.read_bytes(name)
        if name.endswith(".json"):
            data = json.dumps(timeless(json.loads(data)), sort_keys=True).encode()
        found[name] = hashlib.sha256(data).hexdigest()
    return found


def timeless(document):
    """A document without what tells only when it was made, and without hashes of documents that tell it."""
    if isinstance(document, dict):
        return {key: timeless(value) for key, value in document.items() if not is_of_time(key)}
    return [timeless(value) for value in document] if isinstance(document, list) else document


def is_of_time(key):
    return key in TIMES or key.startswith("seconds") or key.endswith(".json")


def copy_workspace(source, target):
    """A copy of a local workspace, on disk or on S3."""
    place = Workspace(target)
    if place.is_local:
        shutil.copytree(source, target, dirs_exist_ok=True)
        return
    for path in Path(source).rglob("*"):
        if path.is_file():
            place.write_bytes(str(path.relative_to(source)), path.read_bytes())
