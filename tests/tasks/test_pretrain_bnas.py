"""The stage pretrain-bnas on synthetic grids: what it stores, that it goes on, and how a training starts from it."""

import os
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from flows.pretrain_bnas import pretrain_bnas
from flows.train_bnas import train_bnas
from models.bnas import CONFIGS, Bnas
from models.exceptions import CheckpointError, ModelInputError
from tasks.bnas_data import make_plan as plan_training
from tasks.bnas_pretraining import choose_pretrained, pretrained_weights, pretraining_config
from tasks.exceptions import InputError, MissingStageError
from tasks.leakage import audit_tables
from tasks.model_store import load_model
from tasks.pretrain_bnas import divide, learn, make_plan, network_inputs
from tasks.schemas import CURVES
from tasks.settings import AuditSettings, PretrainingSettings, TrainingSettings
from tasks.shards import read_index
from tasks.workspace import Workspace
from tests.tasks.grid_workspace import make_grid_workspace

TINY = CONFIGS["tiny"][0]
SETTINGS = PretrainingSettings(config="tiny", device="cpu", epochs=3)
TRAINING = TrainingSettings(config="tiny", folds=2, ensemble=1, device="cpu", splits=("chemical-system",), epochs=1)
MEISSNER = Path(sys.executable).with_name("meissner")


def unlabelled(rows: list[dict]) -> list[dict]:
    return [row | {"tc_kelvin": None} if number >= 16 else row for number, row in enumerate(rows)]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory, prefect_harness: None) -> tuple[Workspace, Any]:
    workspace = make_grid_workspace(tmp_path_factory.mktemp("pretraining"), count=24, change=unlabelled)
    return workspace, pretrain_bnas(workspace.url, SETTINGS)


def test_all_grids_are_accounted_for_with_a_label_or_without(pretrained: tuple) -> None:
    workspace, report = pretrained
    assert (report.stage, report.rows_in, report.rows_refused) == ("pretrain-bnas", 24, 0)
    config = pretraining_config(workspace, report.counts["version"])
    learnt, aside = config["material_ids"], config["held_out_ids"]
    assert sorted(learnt + aside) == [f"m-{number:03d}" for number in range(24)]
    assert len(learnt) == report.counts["learnt"]
    system = {row["material_id"]: row["chemical_system"] for row in read_index(workspace).to_pylist()}
    assert not {system[name] for name in learnt} & {system[name] for name in aside}


def test_what_is_stored(pretrained: tuple) -> None:
    workspace, report = pretrained
    version = report.counts["version"]
    folder = f"models/bnas-pretraining/{version}"
    assert workspace.read_json("models/bnas-pretraining/latest.json")["version"] == version
    state = load(workspace.read_bytes(f"{folder}/weights.safetensors"))
    left_out = set(Bnas(TINY).state_dict()) - set(state)
    assert left_out == {"output.weight", "output.bias"}
    metrics = workspace.read_json(f"{folder}/metrics.json")
    assert set(metrics["baselines"]) == {"visible mean", "training mean"}
    assert 0 < metrics["error"] == pytest.approx(report.counts["error"], abs=1e-5)
    curves = workspace.read_table(f"{folder}/curves.parquet")
    assert curves.schema.equals(CURVES)
    assert curves["validation_loss"].to_pylist() == [None, None, metrics["error"]]
    assert list(workspace.local(f"{folder}/tensorboard").glob("events.out.tfevents.*"))
    assert not workspace.exists(f"{folder}/checkpoint")


def test_second_run_computes_nothing(pretrained: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace, first = pretrained
    monkeypatch.setattr("tasks.pretrain_bnas.pretrain", lambda *_, **__: pytest.fail("it was trained again"))
    report = pretrain_bnas(workspace.url, SETTINGS)
    assert report.reused
    assert report.outputs == first.outputs


def test_run_killed_in_the_middle_goes_on_to_the_same_bytes(pretrained: tuple, tmp_path: Path) -> None:
    workspace, _ = pretrained
    plan = make_plan(workspace, SETTINGS)
    whole, killed = (Workspace(tmp_path / name) for name in ("whole", "killed"))
    learn(whole, workspace, SETTINGS, plan)
    code = (
        "import os, models.training, tasks.pretrain_bnas as stage\n"
        "from tasks.settings import PretrainingSettings as S\n"
        "from tasks.workspace import Workspace as W\n"
        "save = models.training.save_checkpoint\n"
        "models.training.save_checkpoint = lambda *a: (save(*a), os.kill(os.getpid(), 9))\n"
        "fit = stage.pretrain\n"
        "stage.pretrain = lambda *a, **k: fit(*a, **k, checkpoint_seconds=0)\n"
        f"grids, settings = W({workspace.url!r}), S.model_validate_json({SETTINGS.model_dump_json()!r})\n"
        f"stage.learn(W({killed.url!r}), grids, settings, stage.make_plan(grids, settings))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert killed.exists(plan.file("checkpoint"))
    assert not killed.exists(plan.file("metrics.json"))
    learn(killed, workspace, SETTINGS, plan)
    for name in ("weights.safetensors", "metrics.json", "curves.parquet"):
        assert killed.read_bytes(plan.file(name)) == whole.read_bytes(plan.file(name)), name


@pytest.mark.parametrize("change", [{"share": 0.3}, {"seed": 1}, {"epochs": 2}, {"held_out": 0.3}], ids=str)
def test_version_follows_the_settings(pretrained: tuple, change: dict) -> None:
    workspace, report = pretrained
    assert make_plan(workspace, SETTINGS).version == report.counts["version"]
    assert make_plan(workspace, SETTINGS.model_copy(update=change)).version != report.counts["version"]


def test_inputs_mapped_from_a_file_are_the_same(pretrained: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace, _ = pretrained
    ids = divide(read_index(workspace), SETTINGS)[0]
    with network_inputs(workspace, ids, TINY) as inputs:
        held = inputs.clone()
    monkeypatch.setattr("tasks.pretrain_bnas.IN_MEMORY", 0)
    with network_inputs(workspace, ids, TINY) as inputs:
        assert torch.equal(inputs, held)


def test_training_starts_from_the_stored_weights(pretrained: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace, report = pretrained
    version, seen = report.counts["version"], []
    monkeypatch.setattr(Bnas, "start_at", lambda network, _: seen.append(deepcopy(network.state_dict())))
    monkeypatch.setitem(CONFIGS, "tiny", (TINY.model_copy(update={"centred": True}), CONFIGS["tiny"][1]))
    plain = plan_training(workspace, TRAINING)
    settings = TRAINING.model_copy(update={"pretrained": "latest"})
    plan = plan_training(workspace, settings)
    assert (plain.pretrained, plan.pretrained) == (None, version)
    assert plan.version != plain.version
    assert plan_training(workspace, settings.model_copy(update={"pretrained": version})).version == plan.version
    assert plan_training(workspace, settings.model_copy(update={"pretrained": "none"})).version == plain.version
    train_bnas(workspace.url, settings, 1)
    wanted = pretrained_weights(workspace, version)
    assert len(seen) == 3
    for state in seen:
        assert all(torch.equal(state[name], value) for name, value in wanted.items())
    model = load_model(workspace, "bnas")
    assert model.config["pretrained"] == version
    known = set(pretraining_config(workspace, version)["material_ids"])
    test = {f"m-{number:03d}" for number in range(16)}
    assert model.metrics["pretraining"]["test_materials_seen"] == {"chemical-system": len(known & test)}


def test_collection_takes_the_weights_of_its_workspace(pretrained: tuple, tmp_path: Path) -> None:
    make_grid_workspace(tmp_path / "collections" / "mine", count=16)
    report = pretrain_bnas(str(tmp_path), SETTINGS, "mine")
    inside = Workspace(tmp_path / "collections" / "mine")
    assert Workspace(tmp_path).exists(f"models/bnas-pretraining/{report.counts['version']}/weights.safetensors")
    assert not inside.exists("models")
    assert choose_pretrained(inside, "latest", TINY) == report.counts["version"]
    assert set(pretrained_weights(inside, report.counts["version"])) < set(Bnas(TINY).state_dict())


def test_another_network_is_refused(pretrained: tuple) -> None:
    workspace, report = pretrained
    settings = TRAINING.model_copy(update={"config": "starter", "pretrained": "latest"})
    version = report.counts["version"]
    with pytest.raises(InputError, match=f"pre-training {version} is of another network .* embed_dim 8 and not 64, .*"):
        plan_training(workspace, settings)


def test_missing_or_damaged_weights_are_told(pretrained: tuple, tmp_path: Path) -> None:
    workspace, report = pretrained
    version = report.counts["version"]
    with pytest.raises(MissingStageError, match=r"No pre-trained BNAS in the workspace .* `meissner pretrain bnas`"):
        choose_pretrained(Workspace(tmp_path), "latest", TINY)
    with pytest.raises(InputError, match=f"No pre-training 'abc' in the workspace .*; there is {version}"):
        choose_pretrained(workspace, "abc", TINY)
    name = f"models/bnas-pretraining/{version}/weights.safetensors"
    whole = workspace.read_bytes(name)
    try:
        workspace.write_bytes(name, whole[:50])
        with pytest.raises(CheckpointError, match=r"weights\.safetensors in the workspace .* is damaged"):
            pretrained_weights(workspace, version)
    finally:
        workspace.write_bytes(name, whole)


def few(rows: list[dict]) -> list[dict]:
    return rows[:6]


def one_system(rows: list[dict]) -> list[dict]:
    return [row | {"chemical_system": "Nb"} for row in rows]


@pytest.mark.parametrize(
    ("change", "message"),
    [(few, "at least 10 materials in 2 chemical systems, there are 6 in 6"), (one_system, "there are 16 in 1")],
)
def test_too_little_to_learn_from_is_told(tmp_path: Path, change: Any, message: str) -> None:
    workspace = make_grid_workspace(tmp_path, count=16, change=change)
    with pytest.raises(InputError, match=message):
        make_plan(workspace, SETTINGS)


def test_impossible_settings_are_told(pretrained: tuple, tmp_path: Path) -> None:
    workspace, _ = pretrained
    with pytest.raises(InputError, match="no configuration 'huge'; choose one of best, paper, starter, tiny"):
        make_plan(workspace, SETTINGS.model_copy(update={"config": "huge"}))
    with pytest.raises(ModelInputError, match="bands on a multiple of 16 k points an axis"):
        learn(workspace, workspace, s := SETTINGS.model_copy(update={"config": "starter"}), make_plan(workspace, s))
    with pytest.raises(MissingStageError, match=r"grids/index\.parquet is not in the workspace"):
        make_plan(Workspace(tmp_path), SETTINGS)


def test_audit_counts_what_the_pretraining_has_seen(pretrained: tuple) -> None:
    workspace, report = pretrained
    names = {"data": "grids/index.parquet"}
    names |= {"pretraining": f"models/bnas-pretraining/{report.counts['version']}/materials.parquet"}
    files = {key: workspace.read_bytes(name) for key, name in names.items()}
    outcome = audit_tables(files, AuditSettings(**names, splits=("random",), folds=2))
    rows = outcome.tables["audit/leakage.parquet"].to_pylist()
    known = set(pretraining_config(workspace, report.counts["version"])["material_ids"])
    assert sum(row["pretraining"] for row in rows) == len(known & {f"m-{number:03d}" for number in range(16)})
    assert "test crystals were seen in the pre-training" in rows[0]["problem"]


@pytest.mark.slow  # a command with a Prefect server of its own
def test_the_command_runs(tmp_path: Path) -> None:
    make_grid_workspace(tmp_path / "collections" / "mine", count=16)
    command = [str(MEISSNER), "pretrain", "bnas", "--workspace", str(tmp_path), "--collection", "mine"]
    command += ["--config", "tiny", "--epochs", "2", "--share", "0.5", "--device", "cpu"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=600, env=os.environ | {"COLUMNS": "250"})
    assert shown.returncode == 0, shown.stderr
    assert "Error on hidden patches of" in shown.stdout
    version = Workspace(tmp_path).read_json("models/bnas-pretraining/latest.json")["version"]
    assert version in shown.stdout
    assert pretraining_config(Workspace(tmp_path), version)["settings"]["share"] == 0.5
