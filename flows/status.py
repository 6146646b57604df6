"""How things stand: the runs on the Prefect server, the stages of the workspace, the networks in use."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tasks.model_versions import ModelVersion, list_versions
from tasks.progress import count_reasons
from tasks.report_data import read_stages
from tasks.stages import StageReport, read_report
from tasks.workspace import Workspace

BAD = ["FAILED", "CRASHED"]
PAGE = 200  # the most that the server gives at once
SHOWN_REASONS = 3  # of a stage's refusals
HEADINGS = {"reason": "why", "progress": "progress"}
COLOURS = {"Completed": "green", "Failed": "red", "Crashed": "red", "Late": "yellow", "Running": "cyan"}


class Run(BaseModel):
    """A run of a flow."""

    model_config = ConfigDict(frozen=True)

    flow: str
    run: str
    state: str
    at: datetime | None
    seconds: float | None
    reason: str | None
    progress: str | None = None


class Stage(BaseModel):
    """A finished stage of the workspace; ``reasons`` counts the commonest of its refusals."""

    model_config = ConfigDict(frozen=True)

    stage: str
    finished: datetime
    rows_in: int
    rows_refused: int
    reasons: dict[str, int]
    counts: dict[str, Any]
    versions: dict[str, str]


class Status(BaseModel):
    """All of it; ``meissner status --json`` prints this."""

    model_config = ConfigDict(frozen=True)

    at: datetime
    server: str
    workspace: str
    last: list[Run]
    running: list[Run]
    next: list[Run]
    late: list[Run]
    failed: list[Run]
    stages: list[Stage]
    networks: list[ModelVersion]


def read_status(workspace: Workspace, server: str, days: float = 7, count: int = 5) -> Status:
    """Ask the open Prefect server and read the workspace.

    Parameters
    ----------
    days
        How far back a failure is told.
    count
        Failures, late runs and runs under way at most.
    """
    with get_client(sync_client=True) as client:
        flows = client.request("POST", "/flows/filter", json={"sort": "NAME_ASC", "limit": PAGE}).json()
        names = {UUID(flow["id"]): flow["name"] for flow in flows}
        now = datetime.now(UTC)
        since = {"after_": (now - timedelta(days=days)).isoformat()}
        began = {"state": {"type": {"not_any_": ["SCHEDULED"]}}}
        ended = {"state": {"type": {"any_": BAD}}, "expected_start_time": since}
        last = [run for flow in names for run in _runs(client, began, 1, flow=flow)]
        running = _runs(client, {"state": {"type": {"any_": ["RUNNING"]}}}, count)
        progress = [_progress(client, run) for run in running]
        late = _runs(client, {"state": {"name": {"any_": ["Late"]}}}, count)
        failed = _runs(client, ended, count)
        waiting = {"state": {"name": {"any_": ["Scheduled", "AwaitingConcurrencySlot"]}}}
        due = _runs(client, waiting, PAGE, "EXPECTED_START_TIME_ASC")
    first_due = {run.deployment_id: run for run in reversed(due)}
    return Status(
        at=now,
        server=server,
        workspace=workspace.url,
        last=[_told(run, names) for run in sorted(last, key=lambda run: _when(run) or now, reverse=True)],
        running=[
            _told(run, names).model_copy(update={"progress": text}) for run, text in zip(running, progress, strict=True)
        ],
        next=[_told(run, names) for run in sorted(first_due.values(), key=lambda run: _when(run) or now)],
        late=[_told(run, names) for run in late],
        failed=[_told(run, names) for run in failed],
        stages=_stages(workspace),
        networks=[row for row in list_versions(workspace) if row.in_use or row.latest],
    )


def _runs(
    client: SyncPrefectClient,
    wanted: dict[str, Any],
    count: int,
    sort: str = "EXPECTED_START_TIME_DESC",
    flow: UUID | None = None,
) -> list[FlowRun]:
    """Runs that no other flow has started."""
    alone = wanted | {"parent_task_run_id": {"is_null_": True}}
    body: dict[str, Any] = {"flow_runs": alone, "limit": count, "sort": sort}
    body |= {"flows": {"id": {"any_": [str(flow)]}}} if flow else {}
    answer = client.request("POST", "/flow_runs/filter", json=body)
    return [FlowRun.model_validate(run) for run in answer.json()]


def _progress(client: SyncPrefectClient, run: FlowRun) -> str | None:
    """What moved last, in the run or in a flow that it has started."""
    wanted: dict[str, Any] = {"flow_runs": {"parent_flow_run_id": {"any_": [str(run.id)]}}}
    started = client.request("POST", "/flow_runs/filter", json=wanted).json()
    those = {"any_": [str(run.id), *(one["id"] for one in started)]}
    wanted = {"artifacts": {"type": {"any_": ["progress"]}, "flow_run_id": those}}
    found = client.request("POST", "/artifacts/filter", json=wanted | {"sort": "UPDATED_DESC", "limit": 1}).json()
    return f"{found[0]['description']}, {found[0]['data']:.0f} %" if found else None


def _when(run: FlowRun) -> datetime | None:
    return run.end_time or run.start_time or run.expected_start_time


def _told(run: FlowRun, names: dict[Any, str]) -> Run:
    ran = run.start_time is not None
    return Run(
        flow=names.get(run.flow_id, str(run.flow_id)),
        run=run.name,
        state=run.state_name or "",
        at=_when(run),
        seconds=round(run.estimated_run_time.total_seconds(), 1) if ran else None,
        reason=run.state.message if run.state else None,
    )


def _stages(workspace: Workspace) -> list[Stage]:
    found = [*read_stages(workspace), read_report(workspace, "report")]
    fields = set(Stage.model_fields)
    return [
        Stage(**report.model_dump(include=fields), reasons=_reasons(workspace, report)) for report in found if report
    ]


def _reasons(workspace: Workspace, report: StageReport) -> dict[str, int]:
    name = f"stages/{report.stage}/rejected.parquet"
    if not report.rows_refused or not workspace.exists(name):
        return {}
    return count_reasons(workspace.read_table(name).to_pylist(), SHOWN_REASONS)


def print_status(console: Console, status: Status) -> None:
    """Print the tables, empty ones left out."""
    console.print(f"[dim]{escape(status.workspace)} · Prefect server {status.server}[/]")
    _print_runs(console, "Last runs", status.last, status.at)
    _print_runs(console, "Under way", status.running, status.at, more="progress")
    _print_runs(console, "Next", status.next, status.at)
    _print_runs(console, "Late: no worker has taken them", status.late, status.at)
    _print_runs(console, "Failed", status.failed, status.at, more="reason")
    table = _table("Stages of the workspace", "stage", "finished", "rows in", "refused", "most often because")
    for stage in status.stages:
        row = stage.stage, age(status.at, stage.finished), str(stage.rows_in), str(stage.rows_refused)
        table.add_row(*row, "\n".join(f"{count} × {escape(reason)}" for reason, count in stage.reasons.items()))
    if table.row_count:
        console.print(table)
    table = _table("Networks", "network", "version", "score", "on folds", "trained", "")
    for network in status.networks:
        split, score = network.headline or ("", None)
        use = "in use, promoted" if network.promoted else "in use" if network.in_use else "latest, not in use"
        number, trained = "" if score is None else f"{score:.3f}", age(status.at, network.trained)
        table.add_row(network.name, network.version, number, split, trained, use)
    if table.row_count:
        console.print(table)


def _print_runs(console: Console, title: str, runs: Sequence[Run], now: datetime, more: str = "") -> None:
    """One line a run; ``more`` names a field whose first line stands at the end."""
    table = _table(title, "flow", "run", "state", "when", "took", *([HEADINGS[more]] if more else []))
    for run in runs:
        colour = COLOURS.get(run.state, "")
        state = f"[{colour}]{run.state}[/]" if colour else run.state
        took = "" if run.seconds is None else f"{run.seconds:.1f} s"
        last = [escape((getattr(run, more) or "").partition("\n")[0])] if more else []
        table.add_row(escape(run.flow), escape(run.run), state, age(now, run.at), took, *last)
    if runs:
        console.print(table)


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", show_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def age(now: datetime, then: datetime | None) -> str:
    """How long ago, or in how long, in the largest unit: ``3 h ago``, ``in 2 d``."""
    if then is None:
        return ""
    seconds = (now - then).total_seconds()
    units = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
    size, unit = next((entry for entry in units if abs(seconds) >= entry[0]), units[-1])
    text = f"{abs(seconds) / size:.0f} {unit}"
    return f"{text} ago" if seconds >= 0 else f"in {text}"
