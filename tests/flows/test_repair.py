"""What is damaged is made again by one command, byte for byte, or the command says what it lacks."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flows.repair import RUNS, repair
from tasks.cleaning import clean_supercon
from tasks.model_store import latest_version, model_folder
from tasks.screening import RESULT
from tasks.settings import CleaningSettings, Settings
from tasks.shards import INDEX, shard_object
from tasks.stages import read_report
from tasks.workspace import Workspace
from tasks.workspace_check import Place, check_workspace
from tasks.workspace_repair import STEPS, plan_repair, repair_workspace, still_lost
from tasks.workspace_tables import COMMANDS
from tests.tasks.screening_workspace import screened  # noqa: F401 - a fixture
from tests.tasks.test_workspace_check import flip

CLEANED = "supercon/superconductors.parquet"
SHARD = shard_object(0)


def meissner(workspace: Workspace, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name("meissner"), "workspace", "check", "--workspace", workspace.url, *options]
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    surroundings |= {"COLUMNS": "250", "MEISSNER_WORKERS": "1", **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=surroundings)


@pytest.fixture
def cleaned(prefect_harness, tmp_path: Path) -> Workspace:
    """A workspace of one stage, run with settings that are not the defaults."""
    (tmp_path / "reports.csv").write_text("formula,tc\nMgB2,39\nNbC,11.1\nAl,1.2\nNbN,16\n")
    workspace = Workspace(tmp_path / "workspace")
    clean_supercon(workspace.url, str(tmp_path / "reports.csv"), CleaningSettings(max_tc_kelvin=20))
    return workspace


def run_repair(workspace: Workspace, **settings: object) -> list[str]:
    found = check_workspace(workspace)
    repair_workspace(workspace, found)
    given = Settings.load(None, workspace=workspace.url, **settings).without_secrets()
    return repair(workspace.url, plan_repair(found), given)


@pytest.mark.slow
def test_the_command_makes_grids_and_candidates_again(screened: Workspace, tmp_path: Path):  # noqa: F811
    shutil.copytree(screened.local("."), tmp_path / "copy")
    copy = Workspace(tmp_path / "copy")
    before = {name: copy.read_bytes(name) for name in (SHARD, INDEX, RESULT)}
    for name in (SHARD, RESULT):
        flip(copy, name)
    done = meissner(copy, "--repair", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {row["place"]: row["left"] for row in json.loads(done.stdout)} == {SHARD: False, RESULT: False}
    assert {name: copy.read_bytes(name) for name in before} == before
    assert check_workspace(copy) == []
    other = f"{model_folder('bnas', latest_version(copy, 'bnas'))}/weights-0.safetensors"
    copy.local(other).write_bytes(b"")
    lost = meissner(copy, "--repair")
    assert lost.returncode == 1
    assert f"{other} is not made again here: meissner train bnas, with the settings in" in lost.stdout


def test_without_running_nothing_is_made(cleaned: Workspace):
    flip(cleaned, CLEANED)
    done = meissner(cleaned, "--repair", "--no-run")
    assert done.returncode == 1
    assert "meissner refresh --until clean" in done.stdout
    assert not cleaned.exists(CLEANED)
    assert not cleaned.exists("prefect")


def test_a_stage_runs_with_the_settings_of_its_manifest(cleaned: Workspace, tmp_path: Path):
    before = cleaned.read_bytes(CLEANED)
    flip(cleaned, CLEANED)
    assert run_repair(cleaned, supercon=str(tmp_path / "reports.csv")) == []
    assert cleaned.read_bytes(CLEANED) == before
    assert read_report(cleaned, "clean").settings["max_tc_kelvin"] == 20
    assert check_workspace(cleaned) == []


@pytest.mark.parametrize(("supercon", "reason"), [("gone.csv", "gone.csv"), ("other.csv", "from something else than")])
def test_inputs_that_are_gone_or_others_are_told_and_not_used(cleaned, tmp_path, supercon, reason):
    (tmp_path / "other.csv").write_text("formula,tc\nMgB2,38\n")
    flip(cleaned, CLEANED)
    [told] = run_repair(cleaned, supercon=str(tmp_path / supercon))
    assert "clean cannot run again" in told
    assert reason in told
    assert not cleaned.exists(CLEANED)
    assert [one.place for one in check_workspace(cleaned)] == [CLEANED]


def test_what_was_moved_aside_and_did_not_come_back_is_lost(cleaned: Workspace):
    cleaned.write_bytes("bands/bundled.parquet", b"PAR1 and no more")
    found = check_workspace(cleaned)
    repair_workspace(cleaned, found)
    assert [one.place for one in still_lost(cleaned, found, check_workspace(cleaned))] == ["bands/bundled.parquet"]


def test_a_collection_runs_only_what_needs_no_source(tmp_path: Path):
    home = Workspace(tmp_path)
    place = Place(Workspace(home.path("collections/mine")), home, "collections/mine")
    runs = {stage: place.find("a", "output", "is not there", "remake", stage).rerun for stage in COMMANDS}
    assert runs["grid"] == runs["clean"] == ""
    assert runs["train-bnas"] == "train-bnas"
    assert runs["screen"] == "screen"
    place.workspace.write_json("candidates/kept.json", {})
    assert place.find("a", "output", "is not there", "remake", "screen").rerun == ""


def test_every_stage_that_runs_again_has_its_command_and_its_settings(tmp_path: Path):
    place = Place(Workspace(tmp_path), Workspace(tmp_path))
    runs = {place.find("a", "output", "is not there", "remake", stage).rerun for stage in COMMANDS} - {""}
    assert runs == set(RUNS)
    assert set(STEPS) == set(RUNS) - {"validate-pairs"}
    assert set(STEPS.values()) <= set(Settings.model_fields)
