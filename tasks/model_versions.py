"""What versions of the networks there are, how they differ, and which one is in use."""

import shlex
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from tasks.exceptions import InputError, MissingStageError
from tasks.model_store import chosen_version, latest_version, model_folder, promoted_version, stored_versions
from tasks.workspace import Workspace

HEADLINE = {"bnas": "r2_log_all", "s2snet": "roc_auc"}  # the score that a version is judged by: higher is better
HONEST_SPLITS = ("chemical-system", "family", "year", "random")  # the first of these that was run counts


class ModelVersion(BaseModel):
    """One trained version with everything that it came from."""

    model_config = ConfigDict(frozen=True)

    name: str
    version: str
    trained: datetime | None
    latest: bool
    promoted: bool
    in_use: bool
    networks: int
    data: str | None
    code_version: int | None
    software: dict[str, str]
    scores: dict[str, dict[str, float | None]]
    parameters: dict[str, Any]

    @property
    def headline(self) -> tuple[str, float] | None:
        """The split that counts and the score on it; None where there is none."""
        return headline_score(self.name, self.scores)


def headline_score(name: str, scores: Mapping[str, Mapping[str, float | None]]) -> tuple[str, float] | None:
    """The most honest split that was run, and the headline score on it."""
    for split in HONEST_SPLITS:
        value = scores.get(split, {}).get(HEADLINE[name])
        if value is not None:
            return split, value
    return None


def own_scores(name: str, metrics: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """The network's own scores of a ``metrics.json``, by split and score, without the baselines'."""
    found = metrics.get("scores", {})
    return {
        split: {score: entry.get("value") for score, entry in models.get(name, {}).items()}
        for split, models in found.items()
    }


def parts_of(name: str, models: Iterable[str]) -> list[str]:
    """The parts of a network that are scored alone beside it, such as its trees: they are no baselines of it."""
    return [model for model in models if model.startswith(f"{name}, ")]


def tell_in_use(workspace: Workspace, name: str, before: str | None) -> str:
    """Which version screening and prediction ask after a training, and how to have another.

    Parameters
    ----------
    before
        The version that they asked before it; none: there was none.
    """
    chosen, latest = chosen_version(workspace, name), latest_version(workspace, name)
    promote = f"meissner models promote --workspace {shlex.quote(workspace.url)}"
    if chosen != latest:
        return f"Screening and prediction still ask {chosen}, which was promoted; change that: {promote} {latest}"
    if before is None:
        return f"Screening and prediction ask {latest}"
    if before == latest:
        return f"Screening and prediction ask {latest}, as before"
    told = f"Screening and prediction ask {latest} from now on, in place of {before}"
    old, new = (read_version(workspace, name, version).scores for version in (before, latest))
    for split in HONEST_SPLITS:
        was, now = (found.get(split, {}).get(HEADLINE[name]) for found in (old, new))
        if was is not None and now is not None:
            told += f" ({now:.2f} on folds {split}, where that had {was:.2f})"
            break
    return f"{told}; back: {promote} {before}"


def read_version(workspace: Workspace, name: str, version: str) -> ModelVersion:
    """Describe one version; MissingStageError where it is not there."""
    folder = model_folder(name, version)
    config = workspace.read_json(f"{folder}/config.json")
    known = {"name", "version", "members", "versions", "data", "code_version", "sha256"}
    return ModelVersion(
        name=name,
        version=version,
        trained=workspace.modified(f"{folder}/metrics.json"),
        latest=version == _latest(workspace, name),
        promoted=version == promoted_version(workspace, name),
        in_use=version == _chosen(workspace, name),
        networks=config["members"],
        data=config.get("data"),
        code_version=config.get("code_version"),
        software=config.get("versions", {}),
        scores=own_scores(name, workspace.read_json(f"{folder}/metrics.json")),
        parameters=_flat({key: value for key, value in config.items() if key not in known}),
    )


def list_versions(workspace: Workspace, name: str | None = None) -> list[ModelVersion]:
    """All versions of one network or of both, the newest first."""
    names = (name,) if name else tuple(HEADLINE)
    found = [read_version(workspace, each, version) for each in names for version in stored_versions(workspace, each)]
    return sorted(found, key=lambda row: (row.name, -(row.trained.timestamp() if row.trained else 0), row.version))


def find_version(workspace: Workspace, start: str) -> tuple[str, str]:
    """Name and version of the network whose version begins so; InputError where it is none, or several."""
    every = [(name, version) for name in HEADLINE for version in stored_versions(workspace, name)]
    found = [entry for entry in every if start and entry[1].startswith(start)]
    if len(found) == 1:
        return found[0]
    what = "No version begins" if not found else f"{len(found)} versions begin"
    known = ", ".join(f"{name} {version}" for name, version in every) or "none"
    raise InputError(f"{what} with {start!r} in the workspace {workspace.url}; there are: {known}")


def compare_versions(workspace: Workspace, one: str, other: str) -> dict[str, tuple[Any, Any]]:
    """What differs between two versions of one network: origins, parameters, and all scores."""
    (name, first), (other_name, second) = find_version(workspace, one), find_version(workspace, other)
    if name != other_name:
        raise InputError(
            f"{first} is a version of {name} and {second} one of {other_name}: there is nothing to compare"
        )
    rows = [_as_row(read_version(workspace, name, version)) for version in (first, second)]
    keys = list(dict.fromkeys([*rows[0], *rows[1]]))
    pairs = {key: (rows[0].get(key), rows[1].get(key)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1] or key.startswith("score ")}


def _as_row(found: ModelVersion) -> dict[str, Any]:
    row: dict[str, Any] = {"version": found.version, "trained": found.trained and f"{found.trained:%Y-%m-%d %H:%M}"}
    row |= {"data": found.data and found.data[:10], "code version": found.code_version}
    row |= {f"software {name}": value for name, value in found.software.items()}
    row |= {f"parameter {name}": value for name, value in found.parameters.items()}
    return row | {
        f"score {score}, {split}": value for split, own in found.scores.items() for score, value in own.items()
    }


def _flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in document.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _latest(workspace: Workspace, name: str) -> str | None:
    try:
        return latest_version(workspace, name)
    except MissingStageError:
        return None


def _chosen(workspace: Workspace, name: str) -> str | None:
    try:
        return chosen_version(workspace, name)
    except MissingStageError:
        return None
