"""Trained networks in the workspace: ``models/<name>/<version>/``, a pointer to the latest, and one to the promoted.

| file | what |
|---|---|
| ``weights-<i>.safetensors`` | one network of the ensemble each |
| ``config.json`` | network, recipe, seed, data hash, code version: the version is their hash; SHA-256 of the files |
| ``metrics.json`` | honest scores of the network and its baselines |
| ``predictions.parquet`` | out-of-fold predictions of all models (PREDICTIONS) |
| ``folds.parquet`` | who stood on which side (FOLDS) |
| ``../latest.json`` | written last: a version that it names is whole |
| ``../promoted.json`` | the version that screening and prediction use, and those that were promoted before it |

Without a promotion the latest version is used, so a fresh workspace needs none.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from models.exceptions import CheckpointError
from tasks.exceptions import InputError, MissingStageError
from tasks.schemas import FOLDS, PREDICTIONS, PRETRAINING_ROLES
from tasks.stages import hash_text, software_versions
from tasks.workspace import Workspace

State = dict[str, torch.Tensor]
VERSION_DIGITS = 10
PRETRAINING_FILES = ("weights.safetensors", "curves.parquet", "metrics.json", "materials.parquet", "config.json")


@dataclass(frozen=True)
class StoredModel:
    """A trained ensemble as it stands in the workspace; ``members`` are state dictionaries on the CPU."""

    name: str
    version: str
    config: dict[str, Any]
    metrics: dict[str, Any]
    members: list[State]


def model_version(*, data: str, config: Mapping[str, Any], seed: int, code_version: int) -> str:
    """10 hexadecimal digits of the hash of everything that a training depends on."""
    key = hash_text(data, json.dumps(config, sort_keys=True, default=str), str(seed), str(code_version))
    return key[:VERSION_DIGITS]


def model_folder(name: str, version: str) -> str:
    """Folder of a version inside the workspace."""
    return f"models/{name}/{version}"


def save_pretraining(
    workspace: Workspace,
    name: str,
    version: str,
    *,
    config: Mapping[str, Any],
    learnt: Sequence[str],
    held_out: Sequence[str],
) -> list[str]:
    """Say what a pre-trained version is, whose weights and metrics are there; the pointer last. Gives all its files."""
    folder = model_folder(name, version)
    roles = [{"material_id": one, "role": "pretrain"} for one in learnt]
    roles += [{"material_id": one, "role": "held-out"} for one in held_out]
    workspace.write_table(f"{folder}/materials.parquet", pa.Table.from_pylist(roles, schema=PRETRAINING_ROLES))
    names = {"name": name, "version": version}
    document = {**names, **config, "material_ids": list(learnt), "held_out_ids": list(held_out)}
    workspace.write_json(f"{folder}/config.json", json.loads(json.dumps(document)))
    workspace.write_json(f"models/{name}/latest.json", names)
    return [*(f"{folder}/{file}" for file in PRETRAINING_FILES), f"models/{name}/latest.json"]


def save_model(
    workspace: Workspace,
    name: str,
    version: str,
    *,
    members: Sequence[Mapping[str, torch.Tensor]],
    config: Mapping[str, Any],
    metrics: Mapping[str, Any],
    predictions: pa.Table,
    folds: pa.Table,
) -> list[str]:
    """Write a trained ensemble, the pointer last, and give the names of the files."""
    if not members:
        raise InputError(f"The model {name} {version} has no trained network to save")
    folder = model_folder(name, version)
    files = []
    for number, state in enumerate(members):
        tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
        files.append(f"{folder}/weights-{number}.safetensors")
        workspace.write_bytes(files[-1], save(tensors))
    workspace.write_table(f"{folder}/predictions.parquet", predictions.cast(PREDICTIONS))
    workspace.write_table(f"{folder}/folds.parquet", folds.cast(FOLDS))
    workspace.write_json(f"{folder}/metrics.json", without_nan(metrics))
    files += [f"{folder}/{file}" for file in ("predictions.parquet", "folds.parquet", "metrics.json")]
    document = {**config, "name": name, "version": version, "members": len(members), "versions": software_versions()}
    document |= {"sha256": {file.rpartition("/")[2]: workspace.fingerprint(file) for file in files}}
    workspace.write_json(f"{folder}/config.json", document)
    workspace.write_json(f"models/{name}/latest.json", {"name": name, "version": version})
    return [*files, f"{folder}/config.json", f"models/{name}/latest.json"]


def latest_version(workspace: Workspace, name: str) -> str:
    """The version that was trained last; MissingStageError where there is none."""
    try:
        return str(workspace.read_json(f"models/{name}/latest.json")["version"])
    except MissingStageError as error:
        raise MissingStageError(
            f"No trained {name} in the workspace {workspace.url}; train one with `meissner train {name}`"
        ) from error


def stored_versions(workspace: Workspace, name: str) -> list[str]:
    """All whole versions, sorted by name."""
    files = workspace.list(f"models/{name}/*/metrics.json")
    return [file.split("/")[-2] for file in files if workspace.exists(file.replace("metrics", "config"))]


def promoted_version(workspace: Workspace, name: str) -> str | None:
    """The version that was promoted; None where none was."""
    promoted = _promotions(workspace, name)
    return str(promoted[-1]["version"]) if promoted else None


def chosen_version(workspace: Workspace, name: str) -> str:
    """The version that screening and prediction use: the promoted one, else the latest; MissingStageError without."""
    return promoted_version(workspace, name) or latest_version(workspace, name)


def promote(workspace: Workspace, name: str, version: str) -> None:
    """Let screening and prediction use a version from now on; InputError where it is not there whole."""
    versions = stored_versions(workspace, name)
    if version not in versions:
        raise InputError(
            f"No version {version!r} of {name} in {workspace.url}; there are: {', '.join(versions) or '-'}"
        )
    load_model(workspace, name, version)
    if promoted_version(workspace, name) != version:
        entry = {"version": version, "at": datetime.now(UTC).isoformat(timespec="seconds")}
        _write_promotions(workspace, name, [*_promotions(workspace, name), entry])


def rollback(workspace: Workspace, name: str) -> str:
    """Take the last promotion back and give the version that counts again; InputError where none came before it."""
    promoted = _promotions(workspace, name)
    if len(promoted) < 2:
        found = f"only {promoted[0]['version']} was ever promoted" if promoted else "none was ever promoted"
        raise InputError(f"There is no earlier promotion of {name} to go back to: {found}")
    before = promoted[:-1]
    load_model(workspace, name, str(before[-1]["version"]))
    _write_promotions(workspace, name, before)
    return str(before[-1]["version"])


def _promotions(workspace: Workspace, name: str) -> list[dict[str, Any]]:
    """Promotions, the one that counts last."""
    try:
        return list(workspace.read_json(f"models/{name}/promoted.json")["promotions"])
    except MissingStageError:
        return []


def _write_promotions(workspace: Workspace, name: str, promotions: Sequence[Mapping[str, Any]]) -> None:
    document = {"name": name, "version": promotions[-1]["version"], "promotions": promotions}
    workspace.write_json(f"models/{name}/promoted.json", document)


def load_model(workspace: Workspace, name: str, version: str | None = None) -> StoredModel:
    """A trained ensemble; if no version is named, the promoted one, else the latest.

    Raises
    ------
    MissingStageError
        If there is none.
    CheckpointError
        If a weights file is damaged.
    """
    version = version or chosen_version(workspace, name)
    folder = model_folder(name, version)
    config = workspace.read_json(f"{folder}/config.json")
    members = []
    for number in range(config["members"]):
        file = f"{folder}/weights-{number}.safetensors"
        try:
            members.append(load(workspace.read_bytes(file)))
        except SafetensorError as error:
            raise CheckpointError(f"{file} in the workspace {workspace.url} is damaged: {error}") from error
    return StoredModel(name, version, config, workspace.read_json(f"{folder}/metrics.json"), members)


def load_state(network: torch.nn.Module, state: State, where: str) -> None:
    """Put stored weights into a network; CheckpointError where they belong to another architecture."""
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise CheckpointError(
            f"The weights of {where} do not fit the network of its configuration: {reason}"
        ) from error


def without_nan(document: Any) -> Any:
    """The document with null for every number that is not finite, which JSON does not know."""
    if isinstance(document, Mapping):
        return {key: without_nan(value) for key, value in document.items()}
    if isinstance(document, list | tuple):
        return [without_nan(value) for value in document]
    return None if isinstance(document, float) and not math.isfinite(document) else document
