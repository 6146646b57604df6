"""Pre-trained weights of BNAS in the workspace, ``models/bnas-pretraining/<version>/``, and how a training finds them.

| file | what |
|---|---|
| ``weights.safetensors`` | the network without its last layer |
| ``config.json`` | network, recipe, settings, data version, ids of the materials learnt from and held out |
| ``materials.parquet`` | the same materials with their role, as ``meissner audit --pretraining`` takes them |
| ``metrics.json`` | error on held-out grids beside those of plain answers |
| ``curves.parquet``, ``tensorboard/`` | loss and learning rate by epoch (CURVES) |
| ``../latest.json`` | written last: a version that it names is whole |

A training in a collection takes those of the collection, or else those of the workspace that the collection is in.
"""

from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load

from models.bnas import BnasConfig
from models.bnas_pretraining import trunk_differences
from models.exceptions import CheckpointError
from tasks.exceptions import InputError, MissingStageError
from tasks.model_store import State, latest_version, model_folder
from tasks.workspace import Workspace

NAME = "bnas-pretraining"
COMMAND = "`meissner pretrain bnas`"


def choose_pretrained(workspace: Workspace, asked: str | None, config: BnasConfig) -> str | None:
    """The version of the pre-training that a training starts from.

    Parameters
    ----------
    asked
        ``latest``, a version, or ``none``, which is the same as None.
    config
        The network to train.

    Raises
    ------
    MissingStageError
        If nothing was pre-trained yet.
    InputError
        If there is no such version, or its weights do not fit the network.
    """
    if asked in (None, "none"):
        return None
    version = _latest(workspace) if asked == "latest" else str(asked)
    found = BnasConfig.model_validate(pretraining_config(workspace, version)["network"])
    if different := trunk_differences(found, config):
        raise InputError(
            f"The pre-training {version} is of another network than this training: {', '.join(different)}; "
            f"pre-train the same configuration with {COMMAND} --config …"
        )
    return version


def pretraining_config(workspace: Workspace, version: str) -> dict[str, Any]:
    """What a version says of itself; InputError where there is none of that name."""
    place = _place(workspace, version)
    return dict(place.read_json(f"{model_folder(NAME, version)}/config.json"))


def pretrained_weights(workspace: Workspace, version: str) -> State:
    """Weights by their names in ``models.bnas.Bnas``; CheckpointError for a damaged file."""
    place, file = _place(workspace, version), f"{model_folder(NAME, version)}/weights.safetensors"
    try:
        return load(place.read_bytes(file))
    except SafetensorError as error:
        raise CheckpointError(f"{file} in the workspace {place.url} is damaged: {error}") from error


def _places(workspace: Workspace) -> list[Workspace]:
    """The workspace, and the one that it is a collection of."""
    home, inside, name = workspace.url.rstrip("/").rpartition("/collections/")
    return [workspace, Workspace(home)] if inside and "/" not in name else [workspace]


def _latest(workspace: Workspace) -> str:
    for place in _places(workspace):
        if place.exists(f"models/{NAME}/latest.json"):
            return latest_version(place, NAME)
    raise MissingStageError(f"No pre-trained BNAS in the workspace {workspace.url}; make one with {COMMAND}")


def _place(workspace: Workspace, version: str) -> Workspace:
    for place in _places(workspace):
        if version.isalnum() and place.exists(f"{model_folder(NAME, version)}/config.json"):
            return place
    files = [name for place in _places(workspace) for name in place.list(f"models/{NAME}/*/config.json")]
    known = sorted({name.split("/")[-2] for name in files})
    raise InputError(
        f"No pre-training {version!r} in the workspace {workspace.url}; "
        f"there is {', '.join(known) or 'none yet'}: make one with {COMMAND}"
    )
