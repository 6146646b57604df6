"""What starts after what, and who is told when something goes wrong: Prefect's automations, kept as code.

``refresh`` tells ``meissner.dataset.refreshed``: both networks are trained. The training that ends last tells
``meissner.networks.ready``: everything is screened. Notifications go to blocks of the server, see ``notify`` in the
settings; an address from the environment becomes a block of its own. Lost and crashed runs, and what tells
``meissner.deployment.silent``: ``flows/runs.py``.
"""

from collections.abc import Mapping
from typing import Any, TypeAlias
from uuid import UUID

from prefect.automations import Automation
from prefect.blocks.notifications import CustomWebhookNotificationBlock, SlackWebhook
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.sorting import AutomationSort
from prefect.events.actions import CallWebhook, RunDeployment, SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger
from prefect.exceptions import ObjectNotFound
from pydantic import SecretStr

from flows.deploy import CREATED, UNCHANGED, UPDATED, Outcome
from flows.runs import REFRESH, SCREENING, SILENT
from tasks.dataset_events import EVENT, workspace_resource
from tasks.exceptions import InputError
from tasks.model_events import DROPPED, READY
from tasks.settings import Settings
from tasks.workspace import Workspace

PREFIX = "meissner: "  # of the names of all automations that are kept here
TRAINING = ("train-bnas", "train-s2snet")
FAILED = {"prefect.flow-run.Failed", "prefect.flow-run.Crashed"}
OWN = {"prefect.resource.role": "tag", "prefect.resource.id": "prefect.tag.meissner"}
FAILURE = "{{ flow.name }} ended as {{ flow_run.state.name }}: {{ flow_run.state.message }}\n{{ flow_run|ui_url }}"
SILENCE = (
    "No success of {{ event.payload.deployment }} for {{ event.payload.days }} days, since {{ event.payload.since }}. "
    "Ask `meissner status` why."
)
DROP = (
    "{{ event.payload.network }} {{ event.payload.latest }}: {{ event.payload.score }} on folds "
    "{{ event.payload.split }} is {{ event.payload.after }}; "
    "{{ event.payload.used }}, in use before, has {{ event.payload.before }}"
)
BLOCK = "meissner"  # name of the block that is made for an address
PAGE = 200  # automations in one answer, the most that the server gives
Notify: TypeAlias = SendNotification | CallWebhook


def wanted_automations(settings: Settings, deployments: Mapping[str, UUID]) -> list[AutomationCore]:
    """All automations for the workspace of the settings, without those that would notify nobody."""
    place = workspace_resource(Workspace(settings.workspace))["prefect.resource.id"]
    here: dict[str, str | list[str]] = {"prefect.resource.id": place}
    found = [
        _automation(
            "train after new data",
            "Both networks learn from the data that a refresh has changed",
            EventTrigger(expect={EVENT}, match=here),
            [RunDeployment(deployment_id=deployments[name]) for name in TRAINING],
        ),
        _automation(
            "screen after training",
            "Both networks have seen the newest data",
            EventTrigger(expect={READY}, match=here),
            [RunDeployment(deployment_id=deployments[SCREENING])],
        ),
    ]
    return found + (_notifying(settings, deployments, here) if notified_blocks(settings) else [])


def _notifying(
    settings: Settings, deployments: Mapping[str, UUID], here: dict[str, str | list[str]]
) -> list[AutomationCore]:
    scheduled: list[str] = [f"prefect.deployment.{deployments[name]}" for name in (REFRESH, SCREENING)]
    return [
        _automation(
            "tell of failures",
            "A run of a deployment failed or crashed",
            EventTrigger(expect=FAILED, match_related=OWN),
            _notify(settings, "meissner: {{ flow.name }} failed", FAILURE),
        ),
        _automation(
            "tell of silence",
            f"{REFRESH} or {SCREENING} has had no success for too many days",
            EventTrigger(expect={SILENT}, match={"prefect.resource.id": scheduled}),
            _notify(settings, "meissner: {{ event.payload.deployment }} is silent", SILENCE),
        ),
        _automation(
            "tell of a worse network",
            f"A new network scores lower than the one in use before by more than {settings.operations.score_drop:g}",
            EventTrigger(expect={DROPPED}, match=here),
            _notify(settings, "meissner: {{ event.payload.network }} got worse", DROP),
        ),
    ]


def _automation(name: str, description: str, trigger: EventTrigger, actions: list[Any]) -> AutomationCore:
    return AutomationCore(name=f"{PREFIX}{name}", description=description, trigger=trigger, actions=actions)


def notified_blocks(settings: Settings) -> list[str]:
    """Blocks that are notified, as TYPE/NAME: those of the settings, and the one made for an address."""
    made = [] if settings.notify_url is None else [f"{_block_of(settings.notify_url).get_block_type_slug()}/{BLOCK}"]
    return list(dict.fromkeys([*settings.operations.notify, *made]))


def _block_of(address: SecretStr) -> SlackWebhook | CustomWebhookNotificationBlock:
    """Slack's own block for its addresses, else one that posts subject and text as JSON."""
    if address.get_secret_value().startswith("https://hooks.slack.com/"):
        return SlackWebhook(url=address)
    return CustomWebhookNotificationBlock(
        name=BLOCK,
        url="{{address}}",
        json_data={"subject": "{{subject}}", "text": "{{body}}"},
        secrets={"address": address.get_secret_value()},
    )


def _notify(settings: Settings, subject: str, body: str) -> list[Notify]:
    actions: list[Notify] = []
    with get_client(sync_client=True) as client:
        for slug in notified_blocks(settings):
            identifier = _find_block(client, slug)
            if slug.startswith("webhook/"):
                text = '{"subject": {{ subject }}, "text": {{ text }}}'
                text = text.replace("{{ subject }}", _quoted(subject)).replace("{{ text }}", _quoted(body))
                actions.append(CallWebhook(block_document_id=identifier, payload=text))
            else:
                actions.append(SendNotification(block_document_id=identifier, subject=subject, body=body))
    return actions


def _quoted(template: str) -> str:
    """A template whose result is a JSON string, whatever stands in the values."""
    return "{% filter tojson %}" + template + "{% endfilter %}"


def _find_block(client: SyncPrefectClient, slug: str) -> UUID:
    kind, _, name = slug.partition("/")
    try:
        return client.read_block_document_by_name(name, kind).id
    except ObjectNotFound as error:
        raise InputError(
            f"The Prefect server has no block {slug!r} to notify; make it under Blocks in Prefect's UI, or give an "
            "address as MEISSNER_NOTIFY_URL"
        ) from error


def register_automations(
    settings: Settings, deployments: Mapping[str, UUID], told: Outcome = lambda *_: None
) -> list[str]:
    """Create what is missing, change what differs, remove what is not wanted any more; gives the names."""
    if settings.notify_url is not None:
        block = _block_of(settings.notify_url)
        told("block", notified_blocks(settings)[-1], _save_block(block))
    wanted = {automation.name: automation for automation in wanted_automations(settings, deployments)}
    with get_client(sync_client=True) as client:
        found: dict[str, list[Automation]] = {}
        for old in _read_all(client):
            if old.name.startswith(PREFIX):
                found.setdefault(old.name, []).append(old)
        for name, automation in wanted.items():
            told("automation", name, _save(client, automation, found.pop(name, [])))
        for name, unwanted in found.items():
            for old in unwanted:
                client.delete_automation(old.id)  # type: ignore[arg-type]
            told("automation", name, "removed")
    return list(wanted)


def _read_all(client: SyncPrefectClient) -> list[Automation]:
    found: list[Any] = []
    while True:
        page = client.read_automations(sort=AutomationSort.NAME_ASC, limit=PAGE, offset=len(found))
        found += page
        if len(page) < PAGE:
            return found


def _save(client: SyncPrefectClient, wanted: AutomationCore, found: list[Automation]) -> str:
    for doubled in found[1:]:
        client.delete_automation(doubled.id)  # type: ignore[arg-type]
    if not found:
        client.create_automation(wanted)
        return CREATED
    kept = wanted.model_copy(update={"enabled": found[0].enabled})  # a person may have paused it
    if _comparable(kept) == _comparable(found[0]):
        return UNCHANGED
    client.update_automation(found[0].id, kept)  # type: ignore[arg-type]
    return UPDATED


def _comparable(automation: AutomationCore) -> dict[str, Any]:
    core = AutomationCore(**automation.model_dump(exclude={"id", "created", "updated"}))
    return core.model_dump(mode="python", include={"name", "description", "trigger", "actions"})


def _save_block(block: SlackWebhook | CustomWebhookNotificationBlock) -> str:
    try:
        found: Any = type(block).load(BLOCK)
    except ValueError:
        block.save(BLOCK)
        return CREATED
    fields = set(type(block).model_fields)
    if found.model_dump(include=fields) == block.model_dump(include=fields):
        return UNCHANGED
    block.save(BLOCK, overwrite=True)
    return UPDATED
