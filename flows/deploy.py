"""Registration of pool, queues, limits and deployments on the Prefect server; twice is once.

The deployments stand in ``deployments/prefect.yaml``; their parameters come from the settings, so that a scheduled run
does what the command line does with the same profile.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import ConcurrencyLimitConfig
from prefect.client.schemas.responses import DeploymentResponse
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectNotFound
from prefect.flows import Flow, load_flow_from_entrypoint
from prefect.schedules import Schedule
from prefect.workers.process import ProcessWorker

from tasks.exceptions import InputError
from tasks.runners import limit_everywhere
from tasks.settings import ROOT, OperationsSettings, Settings, StepSettings
from tasks.stages import software_versions

FILE = ROOT / "deployments" / "prefect.yaml"
POOL = "meissner"
QUEUES = {
    "cpu": "screening and what else runs on a few cores",
    "dft": "refreshes and band calculations",
    "gpu": "training and search for hyperparameters",
}
# Parameters of flows that hold another settings object than the one of the same name.
STEPS_OF: dict[str, dict[str, str]] = {
    "train-bnas": {"settings": "bnas"},
    "train-s2snet": {"settings": "s2snet"},
    "tune-bnas": {"settings": "tuning", "training": "bnas"},
    "screen": {"settings": "screening"},
    "bands": {"settings": "bands"},
}
# What Prefect's form says beside the parameters of flows that are no settings object.
PARAMETERS = {name: str(Settings.model_fields[name].description) for name in ("workspace", "supercon", "crystals")} | {
    "until": "The last stage that runs",
    "processes": "Processes for heavy work",
    "data": "File or folder of bands with a measured Tc to train on; none: the workspace's own",
    "sources": "Sources of bands to screen, such as mp or a folder; none: the workspace's own materials",
    "collection": "Collection of grids to screen; none: the workspace's own",
    "allowed_drop": str(OperationsSettings.model_fields["score_drop"].description),
}
NO_PULL = [{"prefect.deployments.steps.set_working_directory": {"directory": "."}}]
CREATED, UPDATED, UNCHANGED = "created", "updated", "unchanged"
Outcome = Callable[[str, str, str], None]  # kind, name, one of the three above


def read_deployments(file: str | Path = FILE) -> list[dict[str, Any]]:
    """The deployments of a ``prefect.yaml``; InputError where it is none."""
    path = Path(file)
    try:
        found = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read as YAML: {error}") from error
    entries = found.get("deployments") if isinstance(found, dict) else None
    if not entries or not all(isinstance(entry, dict) and {"name", "entrypoint"} <= set(entry) for entry in entries):
        raise InputError(f"{path} has no `deployments`, each with a `name` and an `entrypoint`")
    return [{"pull": found.get("pull") or NO_PULL} | entry for entry in entries]


def load_flow(entrypoint: str) -> Flow[Any, Any]:
    """The flow of an entrypoint such as ``flows.refresh.refresh``; InputError where there is none."""
    try:
        return load_flow_from_entrypoint(entrypoint, use_placeholder_flow=False)
    except Exception as error:  # whatever an import can raise
        raise InputError(f"The entrypoint {entrypoint!r} names no flow that can be imported: {error}") from error


def flow_parameters(flow: Flow[Any, Any], settings: Settings) -> dict[str, Any]:
    """Parameters of a flow from the settings: what differs from the defaults, with whole paths."""
    plain = {
        "workspace": whole_path(settings.workspace, always=True),
        "supercon": whole_path(settings.supercon),
        "crystals": [whole_path(source) for source in settings.crystals],
        "processes": settings.processes,
        "allowed_drop": settings.operations.score_drop,
    }
    steps = STEPS_OF.get(flow.name, {})
    found: dict[str, Any] = {}
    for name in flow.parameters.properties:
        if name in plain:
            found[name] = plain[name]
        elif chosen := _chosen(settings, steps.get(name, name)):
            found[name] = chosen
    return found


def _chosen(settings: Settings, step: str) -> dict[str, Any]:
    """What a step's settings say other than their defaults; nothing for a name that is no step."""
    found = getattr(settings, step, None)
    return found.model_dump(mode="json", exclude_defaults=True) if isinstance(found, StepSettings) else {}


def whole_path(source: str, *, always: bool = False) -> str:
    """An address as it is; the whole path of a file or folder that is there, since workers run in other folders."""
    return str(Path(source).resolve()) if "://" not in source and (always or Path(source).exists()) else source


class PullSteps:
    """What a worker does before a run, as Prefect wants it from a storage."""

    destination = Path()
    pull_interval = None

    def __init__(self, steps: list[dict[str, Any]]) -> None:
        self.steps = steps

    def set_base_path(self, path: Path) -> None:
        """Nothing is stored."""

    async def pull_code(self) -> None:
        """Nothing is fetched here."""

    def to_pull_step(self) -> list[dict[str, Any]]:
        """The steps of the file."""
        return self.steps

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PullSteps) and self.steps == other.steps

    __hash__ = None  # type: ignore[assignment]


def as_deployment(entry: Mapping[str, Any], settings: Settings) -> RunnerDeployment:
    """An entry of the file with the parameters of the settings."""
    flow, limit, pool = load_flow(entry["entrypoint"]), entry.get("concurrency_limit"), entry.get("work_pool", {})
    software = software_versions()
    deployment = RunnerDeployment.from_entrypoint(
        entry["entrypoint"],
        name=entry["name"],
        description=entry.get("description"),
        tags=entry.get("tags", []),
        schedules=[Schedule(**schedule) for schedule in entry.get("schedules", [])],
        concurrency_limit=ConcurrencyLimitConfig(**limit) if isinstance(limit, dict) else limit,
        parameters=entry.get("parameters", {}) | flow_parameters(flow, settings),
        version=software.get("revision", software["meissner"]),
        work_pool_name=pool.get("name", POOL),
        work_queue_name=pool.get("work_queue_name"),
        job_variables=pool.get("job_variables", {}),
    )
    deployment.storage = PullSteps(entry["pull"])
    for name, field in deployment._parameter_openapi_schema.properties.items():
        if name in PARAMETERS:
            field["description"] = PARAMETERS[name]
    return deployment


def register(settings: Settings, file: str | Path = FILE, told: Outcome = lambda *_: None) -> dict[str, Any]:
    """Register pool, queues, limits and deployments; gives the ids of the deployments by name."""
    wanted = [as_deployment(entry, settings) for entry in read_deployments(file)]
    with get_client(sync_client=True) as client:
        told("pool", POOL, _pool(client))
        limits = settings.operations.model_dump()
        for queue, purpose in QUEUES.items():
            told("queue", queue, _queue(client, queue, purpose, limits[queue]))
        limit_everywhere(settings.bands.at_once_everywhere)
        found = {}
        for deployment in wanted:
            outcome = _deployment(client, deployment)
            told("deployment", deployment.name, outcome)
            found[deployment.name] = client.read_deployment_by_name(deployment.full_name).id
    return found


def _pool(client: SyncPrefectClient) -> str:
    try:
        client.read_work_pool(POOL)
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        description = "Runs of meissner as processes of the machine that a worker runs on"
        pool = WorkPoolCreate(name=POOL, type="process", description=description, base_job_template=template)
        client.create_work_pool(pool)
        return CREATED
    return UNCHANGED  # its template may have been changed by a person


def _queue(client: SyncPrefectClient, name: str, purpose: str, limit: int) -> str:
    try:
        found = client.read_work_queue_by_name(name, work_pool_name=POOL)
    except ObjectNotFound:
        client.create_work_queue(name, description=purpose, concurrency_limit=limit, work_pool_name=POOL)
        return CREATED
    if (found.description, found.concurrency_limit) == (purpose, limit):
        return UNCHANGED
    client.update_work_queue(found.id, description=purpose, concurrency_limit=limit)
    return UPDATED


def _deployment(client: SyncPrefectClient, wanted: RunnerDeployment) -> str:
    try:
        found = client.read_deployment_by_name(wanted.full_name)
    except ObjectNotFound:
        wanted.apply()
        return CREATED
    if _of_server(found) == _of_code(wanted):
        return UNCHANGED
    kept = {schedule.slug for schedule in wanted.schedules or ()}
    for schedule in found.schedules:
        if schedule.slug not in kept:
            client.delete_deployment_schedule(found.id, schedule.id)
    wanted.apply()
    return UPDATED


def _of_code(wanted: RunnerDeployment) -> dict[str, Any]:
    strategy = wanted.concurrency_options.collision_strategy if wanted.concurrency_options else None
    return {
        "schedules": sorted(_clock(schedule) for schedule in wanted.schedules or ()),
        "limit": wanted.concurrency_limit,
        "strategy": strategy,
        "pull": wanted.storage.to_pull_step() if wanted.storage else None,
        "schema": wanted._parameter_openapi_schema.model_dump(exclude_unset=True),  # it has no public name
    } | {name: getattr(wanted, name) for name in SHARED}


def _of_server(found: DeploymentResponse) -> dict[str, Any]:
    return {
        "schedules": sorted(_clock(schedule) for schedule in found.schedules),
        "limit": found.global_concurrency_limit.limit if found.global_concurrency_limit else None,
        "strategy": found.concurrency_options.collision_strategy if found.concurrency_options else None,
        "pull": found.pull_steps,
        "schema": found.parameter_openapi_schema,
    } | {name: getattr(found, name) for name in SHARED}


SHARED = (
    "entrypoint",
    "description",
    "tags",
    "parameters",
    "version",
    "work_pool_name",
    "work_queue_name",
    "job_variables",
)


def _clock(schedule: Any) -> tuple[str, str, str]:
    clock = schedule.schedule
    return schedule.slug or "", str(getattr(clock, "cron", clock)), str(getattr(clock, "timezone", ""))
