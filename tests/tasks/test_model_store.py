"""Stored networks come back bit for bit; what is damaged or foreign is told; the pointer never runs ahead."""

import json
import math
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from torch import nn

from models.exceptions import CheckpointError
from tasks.exceptions import InputError, MissingStageError, WorkspaceError
from tasks.model_store import latest_version, load_model, load_state, model_version, save_model, without_nan
from tasks.schemas import FOLDS, PREDICTIONS
from tasks.workspace import Workspace

MEMBERS = [nn.Linear(3, 2).state_dict() for _ in range(2)]
PREDICTED = pa.Table.from_pylist(
    [
        {
            "split": "random",
            "fold": "0",
            "model": "bnas",
            "material_id": "m-1",
            "formula": "Nb",
            "tc_kelvin": 9.25,
            "tc_predicted_kelvin": 8.0,
            "superconductor": True,
        }
    ],
    schema=PREDICTIONS,
)
SIDES = pa.Table.from_pylist([{"split": "random", "fold": "0", "material_id": "m-1", "side": "test"}], schema=FOLDS)


def save(workspace: Workspace, version: str = "0123456789", **changes):
    arguments = {
        "members": MEMBERS,
        "config": {"network": {"width": 3}},
        "metrics": {"scores": {"random": {"r2": math.nan}}},
        "predictions": PREDICTED,
        "folds": SIDES,
    }
    return save_model(workspace, "bnas", version, **(arguments | changes))


def test_model_comes_back_bit_for_bit(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    files = save(workspace)
    assert all(workspace.exists(file) for file in files)
    stored = load_model(workspace, "bnas")
    assert (stored.name, stored.version, len(stored.members)) == ("bnas", "0123456789", 2)
    assert stored.config["network"] == {"width": 3}
    assert stored.metrics["scores"]["random"]["r2"] is None
    for saved, loaded in zip(MEMBERS, stored.members, strict=True):
        assert all(torch.equal(saved[name], loaded[name]) for name in saved)


def test_pointer_is_written_last_and_names_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace(tmp_path)
    save(workspace, "aaaaaaaaaa")
    write = Workspace.write_json

    def full(self: Workspace, name: str, document: object) -> None:
        if name.endswith("metrics.json"):
            raise WorkspaceError("No space left on device")
        write(self, name, document)

    monkeypatch.setattr(Workspace, "write_json", full)
    with pytest.raises(WorkspaceError, match="No space"):
        save(workspace, "bbbbbbbbbb")
    monkeypatch.undo()
    assert latest_version(workspace, "bnas") == "aaaaaaaaaa"
    save(workspace, "bbbbbbbbbb")
    assert latest_version(workspace, "bnas") == "bbbbbbbbbb"
    assert load_model(workspace, "bnas", "aaaaaaaaaa").version == "aaaaaaaaaa"


def test_version_follows_everything_the_training_depends_on() -> None:
    base = {"data": "d", "config": {"depth": 2}, "seed": 0, "code_version": 1}
    versions = {model_version(**base)} | {
        model_version(**(base | change))
        for change in ({"data": "e"}, {"config": {"depth": 3}}, {"seed": 1}, {"code_version": 2})
    }
    assert len(versions) == 5
    assert all(len(version) == 10 and int(version, 16) >= 0 for version in versions)
    assert model_version(**base) == model_version(**base)


def test_no_trained_network_is_told(tmp_path: Path) -> None:
    with pytest.raises(MissingStageError, match=r"No trained bnas in the workspace .*`meissner train bnas`"):
        load_model(Workspace(tmp_path), "bnas")


def test_damaged_weights_are_told(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    save(workspace)
    file = tmp_path / "models/bnas/0123456789/weights-1.safetensors"
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(CheckpointError, match=r"weights-1\.safetensors .* is damaged"):
        load_model(workspace, "bnas")


def test_weights_of_another_architecture_are_told() -> None:
    with pytest.raises(CheckpointError, match="do not fit the network of its configuration"):
        load_state(nn.Linear(5, 2), MEMBERS[0], "bnas 0123456789")


def test_model_without_networks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no trained network to save"):
        save(Workspace(tmp_path), members=[])


def test_not_a_number_becomes_null_at_any_depth() -> None:
    document = {"a": [1.0, math.nan, {"b": (math.inf, "x")}]}
    assert json.loads(json.dumps(without_nan(document), allow_nan=False)) == {"a": [1.0, None, {"b": [None, "x"]}]}
