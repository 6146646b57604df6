"""A Prefect event that the data of a workspace have changed, for automations that train or screen again.

What was last told stands in ``stages/announced.json``: a hash of each stage's outputs. So a change is told once, also
where the run that made it was killed before its end, and a run that changed nothing tells nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.events import Event, RelatedResource
from prefect.events.related import related_resources_from_run_context
from prefect.utilities.asyncutils import run_coro_as_sync

from tasks.exceptions import MissingStageError
from tasks.stages import StageReport, hash_text
from tasks.workspace import Workspace

EVENT = "meissner.dataset.refreshed"
DATA_STAGES = ("clean", "crystals", "match", "order", "bands", "grid", "s2s")
ANNOUNCED = "stages/announced.json"
ID_DIGITS = 16


def workspace_resource(workspace: Workspace) -> dict[str, str]:
    """The workspace as a resource of Prefect: its id is a hash of the full address, the same from any folder."""
    protocol = workspace.fs.protocol
    address = f"{protocol if isinstance(protocol, str) else protocol[0]}://{workspace.root}"
    return {
        "prefect.resource.id": f"meissner.workspace.{hash_text(address)[:ID_DIGITS]}",
        "prefect.resource.name": address,
    }


def tell(event: str, resource: Mapping[str, str], payload: Mapping[str, Any]) -> Event:
    """Tell the Prefect server of an event and see that it took it.

    Prefect's own way of events has no answer, and gives up a server that is away for ten seconds; a request is made
    again as often as PREFECT_CLIENT_MAX_RETRIES says, and then fails, and the run with it.
    """
    related = run_coro_as_sync(_related()) or []
    found = Event(event=event, resource=dict(resource), payload=dict(payload), related=related)
    with get_client(sync_client=True) as client:
        client.request("POST", "/events", json=[found.model_dump(mode="json")])
    return found


async def _related() -> list[RelatedResource]:
    async with get_client() as client:
        return await related_resources_from_run_context(client=client)


def outputs_hash(report: StageReport) -> str:
    """One hash of all outputs of a stage, whatever their order."""
    return hash_text(*(f"{name} {digest}" for name, digest in sorted(report.outputs.items())))


def changed_stages(workspace: Workspace, reports: Sequence[StageReport]) -> dict[str, dict[str, Any]]:
    """Data stages whose outputs differ from those last told, with their rows, counts and hash."""
    told = _announced(workspace)
    return {
        report.stage: {
            "rows_in": report.rows_in,
            "rows_refused": report.rows_refused,
            "counts": report.counts,
            "sha256": outputs_hash(report),
        }
        for report in reports
        if report.stage in DATA_STAGES and told.get(report.stage) != outputs_hash(report)
    }


def announce_changes(workspace: str, reports: Sequence[StageReport]) -> Event | None:
    """Emit one event for all data stages that changed; None where none did, or where no flow runs."""
    place = Workspace(workspace)
    changed = changed_stages(place, reports)
    if not changed or FlowRunContext.get() is None:
        return None
    resource = workspace_resource(place)
    payload = {"workspace": resource["prefect.resource.name"], "changed": list(changed), "stages": changed}
    event = tell(EVENT, resource, payload)
    told = {stage: found["sha256"] for stage, found in changed.items()}
    place.write_json(ANNOUNCED, _announced(place) | told)
    return event


def _announced(workspace: Workspace) -> dict[str, str]:
    try:
        return dict(workspace.read_json(ANNOUNCED))
    except MissingStageError:
        return {}
