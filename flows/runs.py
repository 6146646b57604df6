"""Runs that stopped without an end: they are marked, and started again; schedules without success: they are told.

Over the server's HTTP API and without Prefect itself, so that a person's Ctrl-C is answered at once.
"""

import contextlib
import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid5

import httpx
import psutil

from flows.server import Server, credentials
from tasks.settings import OperationsSettings

LOST = "No sign of life for {minutes:g} minutes: its process, machine or network is gone."
UNBEGUN = "A worker took it and did not start it within {minutes:g} minutes."
AGAIN = "Its process is gone; it goes on from what it has finished."
HEARTBEAT, FREQUENCY = "prefect.flow-run.heartbeat", "PREFECT_FLOWS_HEARTBEAT_FREQUENCY"
# A worker tells of a crash twice, seconds apart; the second time would end the run that was started in between.
SETTLING = timedelta(minutes=1)
STALE = timedelta(hours=1)  # of a crash that nobody was there to answer: then a person decides
REFRESH, SCREENING = "refresh-weekly", "screen-monthly"  # the deployments with a schedule
SILENT = "meissner.deployment.silent"
TOLD = "meissner_silence_told_{id}"  # name of the server's variable that says when a deployment's silence was told


class Keeper:
    """Keeps the runs of deployments going: lost ones are marked as crashed, crashed ones are started again.

    A deployment with a schedule and without success for too many days is told once, by the event SILENT.

    It looks at the state of the runs again and again, and does not wait for the events that tell of changes: a server
    without Redis forgets the order of its events when it is killed, and then holds back those of the runs under way
    for 15 minutes. Silence is measured on this machine's own clock, from when the server answered and for as long as
    it answers: neither a clock that jumps nor a server that was away makes a run look dead.

    Parameters
    ----------
    server
        Whose runs.
    settings
        ``lost_minutes``, ``start_minutes``, ``restarts``, ``quiet_days`` and ``quiet_days_screening`` are used.
    """

    def __init__(self, server: Server, settings: OperationsSettings) -> None:
        self._server, self._settings = server, settings
        self._signs: dict[str, tuple[Any, float]] = {}  # of each run: its last sign of life, and when that was new
        self._silent: set[str] = set()  # deployments that were silent at the last look

    def look(self) -> list[str]:
        """Mark, start again and tell what is due now; gives a sentence for each, none where no server answers."""
        try:
            with _client(self._server, timeout=30) as client:
                return [*self._mark_lost(client), *self._start_crashed(client), *self._tell_silence(client)]
        except httpx.HTTPError:
            self._signs.clear()
            self._silent.clear()
            return []

    def _mark_lost(self, client: httpx.Client) -> Iterable[str]:
        signs, limits = {}, (self._settings.lost_minutes, self._settings.start_minutes)
        for run in _ask_runs(client, {"state": {"type": {"any_": ["RUNNING", "PENDING"]}}}):
            running = run["state_type"] == "RUNNING"
            if running and not _gives_signs(client, run):
                continue
            sign = run["state_id"], _newest_heartbeat(client, run) if running else None
            before = self._signs.get(run["id"], (None, 0.0))
            since = before[1] if before[0] == sign else time.monotonic()
            signs[run["id"]] = sign, since
            minutes = limits[0] if running else limits[1]
            if time.monotonic() - since > 60 * minutes:
                message = (LOST if running else UNBEGUN).format(minutes=minutes)
                _set_state(client, run, {"type": "CRASHED", "name": "Crashed", "message": message})
                yield f"The run {run['name']} is marked as crashed: {message}"
        self._signs = signs

    def _start_crashed(self, client: httpx.Client) -> Iterable[str]:
        clock = datetime.now(UTC)
        due = {"after_": (clock - STALE).isoformat(), "before_": (clock - SETTLING).isoformat()}
        for run in _ask_runs(client, {"state": {"type": {"any_": ["CRASHED"]}}, "end_time": due}):
            history = client.get("/flow_run_states/", params={"flow_run_id": run["id"]}).raise_for_status().json()
            crashes = sum(each["type"] == "CRASHED" for each in history)
            now = client.get(f"/flow_runs/{run['id']}").raise_for_status().json()  # another machine may look, too
            if now["state_type"] == "CRASHED" and crashes <= self._settings.restarts:
                _set_state(client, run, {"type": "SCHEDULED", "name": "AwaitingRetry", "message": AGAIN})
                yield f"The run {run['name']} had crashed and is started again"

    def _tell_silence(self, client: httpx.Client) -> Iterable[str]:
        silent, limits = set(), {REFRESH: self._settings.quiet_days, SCREENING: self._settings.quiet_days_screening}
        for deployment in _ask_scheduled(client, list(limits)):
            since, days = _last_success(client, deployment), limits[deployment["name"]]
            if datetime.now(UTC) - since < timedelta(days=days):
                continue
            silent.add(deployment["id"])
            # Not at the first look: a server that has just started takes events before its automations hear them.
            if deployment["id"] in self._silent and _note_silence(client, deployment, since, days):
                yield f"{deployment['name']} has had no success for {days:g} days"
        self._silent = silent


def _ask_scheduled(client: httpx.Client, names: list[str]) -> list[dict[str, Any]]:
    """Our deployments of these names that have a schedule."""
    ours = {"tags": {"all_": ["meissner"]}, "name": {"any_": names}}
    found = client.post("/deployments/filter", json={"deployments": ours}).raise_for_status().json()
    return [deployment for deployment in found if deployment["schedules"]]


def _last_success(client: httpx.Client, deployment: dict[str, Any]) -> datetime:
    """When the deployment's last completed run ended, else when the deployment was made."""
    completed = {"state": {"type": {"any_": ["COMPLETED"]}}, "deployment_id": {"any_": [deployment["id"]]}}
    asked = {"flow_runs": completed, "sort": "END_TIME_DESC", "limit": 1}
    found = client.post("/flow_runs/filter", json=asked).raise_for_status().json()
    return datetime.fromisoformat(found[0]["end_time"] if found else deployment["created"])


def _note_silence(client: httpx.Client, deployment: dict[str, Any], since: datetime, days: float) -> bool:
    """Emit SILENT unless this silence was told; whether it was emitted. The server remembers, not this process."""
    name, clock = TOLD.format(id=deployment["id"]), datetime.now(UTC).isoformat()
    noted = client.post("/variables/filter", json={"variables": {"name": {"any_": [name]}}}).raise_for_status().json()
    if noted and datetime.fromisoformat(noted[0]["value"]) >= since:
        return False
    event = {
        "id": str(uuid5(UUID(deployment["id"]), since.isoformat())),  # the same from two machines that look at once
        "event": SILENT,
        "occurred": clock,
        "resource": {"prefect.resource.id": f"prefect.deployment.{deployment['id']}"},
        "payload": {"deployment": deployment["name"], "days": f"{days:g}", "since": f"{since:%Y-%m-%d %H:%M} UTC"},
    }
    client.post("/events", json=[event]).raise_for_status()
    if noted:
        client.patch(f"/variables/{noted[0]['id']}", json={"value": clock}).raise_for_status()
    else:
        client.post("/variables/", json={"name": name, "value": clock}).raise_for_status()
    return True


def _ask_runs(client: httpx.Client, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """Runs of our deployments."""
    ours = {"tags": {"all_": ["meissner"]}, "deployment_id": {"is_null_": False}}
    return list(client.post("/flow_runs/filter", json={"flow_runs": ours | asked}).raise_for_status().json())


def _gives_signs(client: httpx.Client, run: dict[str, Any]) -> bool:
    """Whether the run's deployment asks for signs of life; those of deployments/prefect.yaml do."""
    deployment = client.get(f"/deployments/{run['deployment_id']}").raise_for_status().json()
    return FREQUENCY in (deployment["job_variables"].get("env") or {})


def _newest_heartbeat(client: httpx.Client, run: dict[str, Any]) -> str | None:
    asked = {"event": {"name": [HEARTBEAT]}, "resource": {"id": [f"prefect.flow-run.{run['id']}"]}, "order": "DESC"}
    found = client.post("/events/filter", json={"filter": asked, "limit": 1}).raise_for_status().json()["events"]
    return found[0]["id"] if found else None


def _set_state(client: httpx.Client, run: dict[str, Any], state: dict[str, str]) -> None:
    client.post(f"/flow_runs/{run['id']}/set_state", json={"state": state}).raise_for_status()


def mark_crashed_runs(server: Server) -> int:
    """Mark flow and task runs that a dead process left "Running" as crashed; returns how many.

    Only where the server was just started by this process: then nothing else can be running on it. Processes of such
    runs that have outlived their worker on this machine are ended first, so that no run works twice at once.
    """
    if not server.owned:
        return 0
    _end_orphans(server)
    reason = "The process that ran it is gone; the next run goes on from what it finished."
    state = {"type": "CRASHED", "name": "Crashed", "message": reason}
    return sum(_set_running_states(server, kind, state, timeout=10) for kind in ("flow_runs", "task_runs"))


def _end_orphans(server: Server) -> None:
    known = {run["id"] for run in _under_way(server, "flow_runs", timeout=10)}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get("PREFECT__FLOW_RUN_ID") in known:
                process.kill()
                process.wait(timeout=10)


def mark_cancelled_runs(server: Server) -> int:
    """Mark the running flow runs as cancelled, quickly, when a person stops the run."""
    state = {"type": "CANCELLED", "name": "Cancelled", "message": "Ctrl-C"}
    return _set_running_states(server, "flow_runs", state, timeout=1.5)


def _set_running_states(server: Server, kind: str, state: dict[str, str], timeout: float) -> int:
    """Give all runs of a kind (``flow_runs`` or ``task_runs``) that are under way a state; those of one answer."""
    runs = _under_way(server, kind, timeout)
    with _client(server, timeout) as client:
        for run in runs:
            client.post(f"/{kind}/{run['id']}/set_state", json={"state": state, "force": True})
    return len(runs)


def _under_way(server: Server, kind: str, timeout: float) -> list[dict[str, Any]]:
    running = {kind: {"state": {"type": {"any_": ["RUNNING", "PENDING"]}}}}
    with _client(server, timeout) as client:
        return list(client.post(f"/{kind}/filter", json=running).json())


def _client(server: Server, timeout: float) -> httpx.Client:
    return httpx.Client(base_url=server.api_url, timeout=timeout, auth=credentials())
