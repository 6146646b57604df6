"""Pre-trained weights of S2SNet in the workspace, ``models/s2snet-pretraining/<version>/``; a training finds them here.

| file | what |
|---|---|
| ``weights.safetensors`` | the network without its head |
| ``config.json`` | network, recipe, settings, data version, ids of the crystals learnt from and held out |
| ``materials.parquet`` | the same crystals with their role, as ``meissner audit --pretraining`` takes them |
| ``metrics.json`` | share of hidden elements that are guessed, beside that of the most frequent element |
| ``curves.parquet``, ``tensorboard/`` | loss and learning rate by epoch (CURVES) |
| ``../latest.json`` | written last: a version that it names is whole |
"""

from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load

from models.exceptions import CheckpointError
from models.s2snet import S2SNetConfig
from models.s2snet_pretraining import trunk_differences
from tasks.exceptions import InputError, MissingStageError
from tasks.model_store import State, latest_version, model_folder
from tasks.workspace import Workspace

NAME = "s2snet-pretraining"
COMMAND = "`meissner pretrain s2snet`"


def choose_pretrained(workspace: Workspace, asked: str | None, config: S2SNetConfig) -> str | None:
    """The version of the pre-training that a training starts from; ``asked`` is latest, a version, none or None.

    Raises
    ------
    MissingStageError
        If nothing was pre-trained yet.
    InputError
        If there is no such version, or its weights do not fit the network.
    """
    if asked in (None, "none"):
        return None
    if asked == "latest" and not workspace.exists(f"models/{NAME}/latest.json"):
        raise MissingStageError(f"No pre-trained S2SNet in the workspace {workspace.url}; make one with {COMMAND}")
    version = latest_version(workspace, NAME) if asked == "latest" else str(asked)
    found = S2SNetConfig.model_validate(pretraining_config(workspace, version)["network"])
    if different := trunk_differences(found, config):
        raise InputError(
            f"The pre-training {version} is of another network than this training: {', '.join(different)}; "
            f"pre-train the same configuration with {COMMAND} --config …"
        )
    return version


def pretraining_config(workspace: Workspace, version: str) -> dict[str, Any]:
    """What a version says of itself; InputError where there is none of that name."""
    file = f"{model_folder(NAME, version)}/config.json"
    if not (version.isalnum() and workspace.exists(file)):
        known = sorted({name.split("/")[-2] for name in workspace.list(f"models/{NAME}/*/config.json")})
        raise InputError(
            f"No pre-training {version!r} in the workspace {workspace.url}; "
            f"there is {', '.join(known) or 'none yet'}: make one with {COMMAND}"
        )
    return dict(workspace.read_json(file))


def pretrained_weights(workspace: Workspace, version: str) -> State:
    """Weights by their names in ``models.s2snet.S2SNet``; CheckpointError for a damaged file."""
    file = f"{model_folder(NAME, version)}/weights.safetensors"
    try:
        return load(workspace.read_bytes(file))
    except SafetensorError as error:
        raise CheckpointError(f"{file} in the workspace {workspace.url} is damaged: {error}") from error
