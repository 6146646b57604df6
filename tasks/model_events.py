"""Prefect events about the networks: both are ready to screen with, or one is worse than the one in use.

After new data both networks are trained, in any order. ``meissner.networks.ready`` is told once, by the training that
finishes last: each training notes which state of the data it has seen, the one that ``tasks.dataset_events`` told last.
A training on demand tells it at its end, too.
"""

from typing import Any

from prefect.context import FlowRunContext
from prefect.events import Event

from tasks.dataset_events import ANNOUNCED, tell, workspace_resource
from tasks.exceptions import MissingStageError
from tasks.model_store import latest_version, promoted_version
from tasks.model_versions import HEADLINE, read_version
from tasks.workspace import Workspace

READY = "meissner.networks.ready"
DROPPED = "meissner.model.score-dropped"


def tell_of_training(workspace: str, name: str, allowed_drop: float) -> list[Event]:
    """Tell what a finished training of ``bnas`` or ``s2snet`` means; nothing outside of a flow."""
    place = Workspace(workspace)
    if FlowRunContext.get() is None:
        return []
    return [event for event in (tell_drop(place, name, allowed_drop), tell_ready(place, name)) if event]


def tell_ready(workspace: Workspace, name: str) -> Event | None:
    """Emit READY where the other network has seen the same data."""
    workspace.write_json(_seen_file(name), {"announced": _announced(workspace)})
    versions = {}
    for other in HEADLINE:
        try:
            if workspace.read_json(_seen_file(other))["announced"] != _announced(workspace):
                return None
            versions[other] = latest_version(workspace, other)
        except MissingStageError:
            return None
    resource = workspace_resource(workspace)
    return tell(READY, resource, {"workspace": workspace.url, "versions": versions})


def score_drop(workspace: Workspace, name: str) -> dict[str, Any] | None:
    """How much worse the latest version is than the promoted one on the split that counts; None if nothing to compare.

    Returns
    -------
    ``promoted``, ``latest``, ``split``, ``score``, ``before``, ``after``, and ``drop``, positive where it is worse.
    """
    before, after = promoted_version(workspace, name), latest_version(workspace, name)
    if before is None or before == after:
        return None
    old, new = (read_version(workspace, name, version) for version in (before, after))
    if old.headline is None:
        return None
    split, was = old.headline
    now = new.scores.get(split, {}).get(HEADLINE[name])
    if now is None:
        return None
    found = {"promoted": before, "latest": after, "split": split, "score": HEADLINE[name]}
    return found | {"before": was, "after": now, "drop": was - now}


def tell_drop(workspace: Workspace, name: str, allowed: float) -> Event | None:
    """Emit DROPPED where the latest version is worse than the promoted one by more than what is allowed."""
    found = score_drop(workspace, name)
    if found is None or found["drop"] <= allowed:
        return None
    resource = workspace_resource(workspace)
    return tell(DROPPED, resource, {"workspace": workspace.url, "network": name, **found})


def _seen_file(name: str) -> str:
    return f"stages/train-{name}/data-seen.json"


def _announced(workspace: Workspace) -> dict[str, str]:
    try:
        return dict(workspace.read_json(ANNOUNCED))
    except MissingStageError:
        return {}
