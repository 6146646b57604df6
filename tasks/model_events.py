"""Prefect events about the networks: both are ready to screen with, or one is worse than the one in use.

After new data both networks are trained, in any order. ``meissner.networks.ready`` is told once, by the training that
finishes last: each training notes which state of the data it has seen, the one that ``tasks.dataset_events`` told last.
A training on demand tells it at its end, too. It also notes which version it has left as the latest: the one in use
before the next training, where none is promoted.
"""

from typing import Any

from prefect.context import FlowRunContext
from prefect.events import Event

from tasks.dataset_events import ANNOUNCED, tell, workspace_resource
from tasks.exceptions import MissingStageError
from tasks.model_store import latest_version, promoted_version
from tasks.model_versions import HEADLINE, HONEST_SPLITS, read_version
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
    seen = {"announced": _announced(workspace), "version": latest_version(workspace, name)}
    workspace.write_json(_seen_file(name), seen)
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
    """How much worse the latest version is than the one in use before: the promoted one, else the latest until then.

    Both are compared on the most honest split that both have.

    Returns
    -------
    ``used``, ``latest``, ``split``, ``score``, ``before``, ``after``, and ``drop``, positive where it is worse; None
    where there is nothing to compare.
    """
    used, latest = promoted_version(workspace, name) or _seen_version(workspace, name), latest_version(workspace, name)
    if used is None or used == latest:
        return None
    try:
        old, new = (read_version(workspace, name, version).scores for version in (used, latest))
    except MissingStageError:  # a version that was cleaned up
        return None
    score = HEADLINE[name]
    for split in HONEST_SPLITS:
        before, after = (scores.get(split, {}).get(score) for scores in (old, new))
        if before is not None and after is not None:
            found = {"used": used, "latest": latest, "split": split, "score": score}
            return found | {"before": before, "after": after, "drop": before - after}
    return None


def tell_drop(workspace: Workspace, name: str, allowed: float) -> Event | None:
    """Emit DROPPED where the latest version is worse than the one in use before by more than what is allowed."""
    found = score_drop(workspace, name)
    if found is None or found["drop"] <= allowed:
        return None
    resource = workspace_resource(workspace)
    return tell(DROPPED, resource, {"workspace": workspace.url, "network": name, **found})


def _seen_version(workspace: Workspace, name: str) -> str | None:
    """The latest version when a training ended before this one; None where none did."""
    try:
        found = workspace.read_json(_seen_file(name)).get("version")
    except MissingStageError:
        return None
    return None if found is None else str(found)


def _seen_file(name: str) -> str:
    return f"stages/train-{name}/data-seen.json"


def _announced(workspace: Workspace) -> dict[str, str]:
    try:
        return dict(workspace.read_json(ANNOUNCED))
    except MissingStageError:
        return {}
