"""The stage pretrain-s2snet on small real crystals: what it stores, and how a training starts from it."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from safetensors.torch import load

from models.exceptions import CheckpointError
from models.s2snet import CONFIGS
from tasks.exceptions import InputError, MissingStageError
from tasks.model_store import load_model
from tasks.pretrain_s2snet import divide, gather, learn, make_plan
from tasks.s2snet_data import make_plan as plan_training
from tasks.s2snet_data import read_crystals
from tasks.s2snet_pretraining import choose_pretrained, pretrained_weights, pretraining_config
from tasks.settings import S2SNetPretrainingSettings, S2SNetTrainingSettings
from tasks.train_s2snet import gather as gather_training
from tasks.train_s2snet import score_part, train_part
from tasks.workspace import Workspace
from tests.tasks.test_train_s2snet import CUBIC, cubic, row, write

MEISSNER = Path(sys.executable).with_name("meissner")
NETWORK = CONFIGS["tiny"].network
SETTINGS = S2SNetPretrainingSettings(config="tiny", epochs=3, held_out=0.4, device="cpu")
TRAINING = S2SNetTrainingSettings(
    config="tiny", epochs=1, folds=2, ensemble=1, device="cpu", splits=("chemical-system",), trees=False
)


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return [row(cubic(*key, a)) for key, a in CUBIC.items()]


def pretrain(workspace: Workspace, settings: S2SNetPretrainingSettings = SETTINGS):
    plan = make_plan(read_crystals(workspace, NETWORK), settings)
    learn(workspace, settings, plan)
    return plan, gather(workspace, settings, plan)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory, rows):
    workspace = write(Workspace(tmp_path_factory.mktemp("pretrained")), rows)
    return workspace, *pretrain(workspace)


def test_crystals_are_learnt_from_or_held_out_by_chemical_system(pretrained):
    workspace, plan, outcome = pretrained
    config = pretraining_config(workspace, plan.version)
    crystals = read_crystals(workspace, NETWORK)
    assert sorted(config["material_ids"] + config["held_out_ids"]) == crystals.rows.column("material_id")
    assert outcome.accounted == len(CUBIC)
    systems = np.array(crystals.rows.column("chemical_system"))
    learnt, aside = divide(crystals, SETTINGS)
    assert not set(systems[learnt]) & set(systems[aside])


def test_accuracy_stands_beside_that_of_the_most_frequent_element(pretrained):
    workspace, plan, outcome = pretrained
    found = workspace.read_json(plan.file("metrics.json"))["accuracy"]
    assert 0 <= found["network"] <= 1
    assert 0 <= found["frequency"] <= 1
    assert outcome.counts["hidden_atoms"] == found["atoms"] > 0
    assert workspace.read_table(plan.file("curves.parquet")).num_rows == SETTINGS.epochs
    assert not workspace.exists(plan.file("checkpoint"))


def test_weights_are_those_of_the_trunk_and_the_same_for_a_seed(pretrained, tmp_path, rows):
    workspace, plan, _ = pretrained
    state = pretrained_weights(workspace, plan.version)
    assert "masked_head.weight" in state
    assert not any(name.startswith("head.") for name in state)
    other = write(Workspace(tmp_path), rows)
    assert pretrain(other)[0] == plan
    assert other.read_bytes(plan.file("weights.safetensors")) == workspace.read_bytes(plan.file("weights.safetensors"))


def test_a_frozen_training_keeps_the_pretrained_trunk_and_tells_what_was_seen(pretrained):
    workspace, pretraining, _ = pretrained
    settings = TRAINING.model_copy(update={"pretrained": "latest", "freeze": True, "learning_rate": 1e-4})
    plan = plan_training(workspace, read_crystals(workspace, NETWORK), settings)
    assert plan.pretrained == pretraining.version
    for part in plan.parts:
        (score_part if part.kind == "baselines" else train_part)(workspace.url, settings, plan, part)
    trained = load(workspace.read_bytes(plan.members[0].file))
    for name, value in pretrained_weights(workspace, pretraining.version).items():
        assert np.array_equal(trained[name].numpy(), value.numpy()), name
    gather_training(workspace, settings, plan)
    stored = load_model(workspace, "s2snet", plan.version)
    seen = stored.metrics["pretraining"]["test_materials_seen"]["chemical-system"]
    measured = set(read_crystals(workspace, NETWORK).measured.column("material_id"))
    assert seen == len(measured & set(pretraining_config(workspace, pretraining.version)["material_ids"]))
    assert stored.config["shares"] is None
    assert stored.config["finetuning"]["learning_rate"] == 1e-4


def test_what_cannot_be_started_from_says_why(pretrained, tmp_path):
    workspace, plan, _ = pretrained
    wider = NETWORK.model_copy(update={"width": 16})
    assert choose_pretrained(workspace, "none", NETWORK) is None
    with pytest.raises(InputError, match=r"of another network than this training: width 8, not 16"):
        choose_pretrained(workspace, "latest", wider)
    with pytest.raises(InputError, match=f"No pre-training 'abc' .* there is {plan.version}"):
        choose_pretrained(workspace, "abc", NETWORK)
    empty = Workspace(tmp_path)
    with pytest.raises(MissingStageError, match="meissner pretrain s2snet"):
        choose_pretrained(empty, "latest", NETWORK)
    for file in ("config.json", "weights.safetensors"):
        empty.write_bytes(plan.file(file), workspace.read_bytes(plan.file(file))[: 99999 if "json" in file else 50])
    with pytest.raises(CheckpointError, match="is damaged"):
        pretrained_weights(empty, plan.version)


def test_too_few_crystals_are_refused(tmp_path, rows):
    few = read_crystals(write(Workspace(tmp_path), rows[:4]), NETWORK)
    with pytest.raises(InputError, match="at least 10 crystals in 2 chemical systems, there are 4 in 4"):
        make_plan(few, SETTINGS)


KILLED = """
import functools, os, models.training as training
from tasks.workspace import Workspace
saved = []
def kill(*given):
    save(*given)
    saved.append(given)
    os.kill(os.getpid(), 9) if len(saved) == {at} else None
save, training.save_checkpoint = training.save_checkpoint, kill
import models.s2snet_pretraining, models.s2snet_training
for module in (models.s2snet_pretraining, models.s2snet_training):
    module.Extras = functools.partial(training.Extras, checkpoint_seconds=0)
workspace = Workspace({url!r})
"""


def run_and_kill(code: str) -> None:
    """Run in a process of its own until it kills itself."""
    found = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=600)
    assert found.returncode == -signal.SIGKILL, found.stderr


def test_a_run_killed_in_the_middle_goes_on_to_the_same_weights(pretrained, tmp_path, rows):
    whole, plan, _ = pretrained
    killed = write(Workspace(tmp_path), rows)
    code = (
        "import tasks.pretrain_s2snet as stage\n"
        f"settings = stage.S2SNetPretrainingSettings.model_validate_json({SETTINGS.model_dump_json()!r})\n"
        "crystals = stage.read_crystals(workspace, stage.choose_pretraining(settings)[0])\n"
        "stage.learn(workspace, settings, stage.make_plan(crystals, settings))\n"
    )
    run_and_kill(KILLED.format(at=2, url=killed.url) + code)
    assert killed.exists(plan.file("checkpoint"))
    assert not killed.exists(plan.file("weights.safetensors"))
    learn(killed, SETTINGS, plan)
    for file in ("weights.safetensors", "metrics.json", "curves.parquet"):
        assert killed.read_bytes(plan.file(file)) == whole.read_bytes(plan.file(file)), file


@pytest.mark.parametrize("at", [1, 3], ids=["in the pre-training", "in the fine-tuning"])
def test_a_training_killed_in_the_middle_goes_on_to_the_same_weights(tmp_path, rows, at):
    settings = TRAINING.model_copy(update={"epochs": 2})
    whole, killed = (write(Workspace(tmp_path / name), rows) for name in ("whole", "killed"))
    plan = plan_training(whole, read_crystals(whole, NETWORK), settings)
    member = plan.members[0]
    train_part(whole.url, settings, plan, member)
    code = (
        "from tasks.s2snet_data import TrainingPlan\n"
        "from tasks.settings import S2SNetTrainingSettings\n"
        "from tasks.train_s2snet import train_part\n"
        f"settings = S2SNetTrainingSettings.model_validate_json({settings.model_dump_json()!r})\n"
        f"plan = TrainingPlan.model_validate_json({plan.model_dump_json()!r})\n"
        "train_part(workspace.url, settings, plan, plan.members[0])\n"
    )
    run_and_kill(KILLED.format(at=at, url=killed.url) + code)
    left = {stage: killed.exists(f"{member.file}.checkpoint.{stage}") for stage in ("pretraining", "finetuning")}
    assert left == {"pretraining": True, "finetuning": at == 3}
    assert not killed.exists(member.file)
    train_part(killed.url, settings, plan, member)
    assert killed.read_bytes(member.file) == whole.read_bytes(member.file)
    assert not any(killed.exists(f"{member.file}.checkpoint.{stage}") for stage in left)


@pytest.mark.slow  # two commands with Prefect servers of their own
def test_the_commands_pretrain_and_train(tmp_path, rows):
    workspace = write(Workspace(tmp_path), rows)
    common = ["--workspace", str(tmp_path), "--config", "tiny", "--epochs", "2", "--device", "cpu"]

    def run(*command: str) -> str:
        found = subprocess.run(
            [str(MEISSNER), *command, *common],
            capture_output=True,
            text=True,
            timeout=600,
            env=os.environ | {"COLUMNS": "250"},
        )
        assert found.returncode == 0, found.stderr
        return found.stdout

    shown = run("pretrain", "s2snet", "--masking", "element", "--seed", "2")
    version = workspace.read_json("models/s2snet-pretraining/latest.json")["version"]
    assert version in shown
    assert pretraining_config(workspace, version)["settings"]["masking"] == "element"
    asked = ("--pretrained", "latest", "--freeze", "--no-trees", "--folds", "2", "--split", "random")
    shown = run("train", "s2snet", *asked)
    stored = load_model(workspace, "s2snet")
    assert stored.config["pretrained"] == version
    assert "S2SNet" in shown
    assert "network and trees" not in shown
    assert f"Screening and prediction ask {stored.version}\n" in shown
    shown = run("train", "s2snet", "--folds", "2", "--split", "random")
    latest = load_model(workspace, "s2snet").version
    assert "network and trees" in shown
    assert re.search(r"Its network alone: random \d\.\d\d .*\nIts trees alone: random \d\.\d\d ", shown)
    assert f"ask {latest} from now on, in place of {stored.version} (" in shown
    assert re.search(r"\d\.\d\d on folds random, where that had \d\.\d\d\); back: ", shown)
    assert f"back: meissner models promote --workspace {tmp_path} {stored.version}" in shown


def test_held_out_crystals_that_can_tell_nothing_are_refused_before_the_training(tmp_path, rows):
    crystals = read_crystals(write(Workspace(tmp_path), rows), NETWORK)
    settings = SETTINGS.model_copy(update={"held_out": 0.1, "seed": 1})  # aluminium and niobium
    with pytest.raises(InputError, match=r"none of the 2 held-out crystals .* another --seed"):
        make_plan(crystals, settings)


@pytest.mark.usefixtures("prefect_harness")
def test_the_flow_hides_whole_elements_and_reuses_what_is_there(tmp_path, rows):
    from flows.pretrain_s2snet import pretrain_s2snet

    workspace = write(Workspace(tmp_path), rows)
    settings = SETTINGS.model_copy(update={"masking": "element", "epochs": 1})
    report = pretrain_s2snet(workspace.url, settings)
    assert (report.stage, report.rows_in) == ("pretrain-s2snet", len(CUBIC))
    materials = workspace.read_table(f"models/s2snet-pretraining/{report.counts['version']}/materials.parquet")
    assert set(materials["role"].to_pylist()) == {"pretrain", "held-out"}
    assert isinstance(materials, pa.Table)
    assert pretrain_s2snet(workspace.url, settings).reused
