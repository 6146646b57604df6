"""What nothing refers to is named and removed; what anything may need stays."""

import os
import shutil
import time
from pathlib import Path

import pytest
from jobflow import job, run_locally
from typer.testing import CliRunner

from flows.cli import app
from tasks.exceptions import WorkspaceError
from tasks.job_store import DATA, DOCUMENTS, open_job_store
from tasks.model_store import latest_version, load_model, model_folder, promote, save_model
from tasks.screening import RESULT, join_parts, plan_screening
from tasks.screening_plan import PARTS, PLAN
from tasks.settings import ScreeningSettings
from tasks.workspace import Workspace
from tasks.workspace_check import check_workspace
from tasks.workspace_gc import find_leftovers, remove_leftovers

OLD = 2 * 86400  # seconds


@pytest.fixture
def copy(screened: Workspace, tmp_path: Path) -> Workspace:
    shutil.copytree(screened.local("."), tmp_path / "copy")
    return Workspace(tmp_path / "copy")


def age(workspace: Workspace, name: str, seconds: float = OLD) -> None:
    """Let a file or folder be older than it is."""
    path, moment = workspace.local(name), time.time() - seconds
    for one in (path, *path.rglob("*")):
        os.utime(one, (moment, moment))


def places(workspace: Workspace, now: bool = True) -> list[str]:
    return [leftover.place for leftover in find_leftovers(workspace, now)]


def save_version(workspace: Workspace, version: str, **config: object) -> None:
    stored = load_model(workspace, "bnas", latest_version(workspace, "bnas"))
    folder = model_folder("bnas", stored.version)
    save_model(
        workspace,
        "bnas",
        version,
        members=stored.members,
        config={"network": stored.config["network"], **config},
        metrics=stored.metrics,
        predictions=workspace.read_table(f"{folder}/predictions.parquet"),
        folds=workspace.read_table(f"{folder}/folds.parquet"),
    )


@job(data="large")
def make_large(count: int) -> dict[str, object]:
    return {"large": list(range(count))}


def test_a_finished_workspace_has_nothing_left_over(screened: Workspace):
    assert places(screened) == []


def test_scratch_of_writes_that_broke_off_goes_when_it_is_a_day_old(copy: Workspace):
    names = ["grids/.index.parquet.0a1b2c3d.part", "bands/.a.parquet.00000000.part", f".write-test-{'0' * 32}"]
    for name in names:
        copy.local(name).write_bytes(b"half")
    folder = "report/.figures.0a1b2c3d.part"
    copy.local(folder).mkdir(parents=True)
    (copy.local(folder) / "a.svg").write_bytes(b"half a picture")
    copy.local("prefect").mkdir()
    copy.local("prefect/.of.another.0a1b2c3d.part").write_bytes(b"")
    copy.local("bands/.notes.part").write_bytes(b"mine")
    assert places(copy, now=False) == []
    for name in (*names, folder):
        age(copy, name)
    found = find_leftovers(copy)
    assert {one.place for one in found} == {*names, folder}
    assert remove_leftovers(copy, found) == sum(one.size for one in found) == 3 * 4 + 14
    assert not any(map(copy.exists, (*names, folder)))
    assert copy.exists("bands/.notes.part")
    assert check_workspace(copy) == []


def test_versions_that_anything_names_are_kept(copy: Workspace):
    screened_with = latest_version(copy, "bnas")
    for version in ("once", "again", "idle", "start", "newest"):
        save_version(copy, version, **({"pretrained": "learnt"} if version == "start" else {}))
        if version in ("once", "again"):
            promote(copy, "bnas", version)
    for version in ("learnt", "forgotten"):
        copy.write_json(f"models/bnas-pretraining/{version}/config.json", {"name": "bnas-pretraining"})
    copy.write_bytes("models/bnas/unfinished/parts/member-0.safetensors", b"")
    promote(copy, "bnas", "start")
    found = find_leftovers(copy, now=True)
    assert [one.place for one in found] == ["models/bnas-pretraining/forgotten", "models/bnas/idle"]
    assert found[1].size > 10_000
    remove_leftovers(copy, found)
    kept = {screened_with, "once", "again", "start", "newest", "unfinished"}
    assert {name.rpartition("/")[2] for name in copy.list("models/bnas/*") if not name.endswith(".json")} == kept
    copy.local(RESULT).write_bytes(b"")
    with pytest.raises(WorkspaceError, match=r"candidates.parquet in the workspace .* is damaged"):
        find_leftovers(copy, now=True)


def test_parts_of_earlier_screenings_go_when_the_newest_has_finished(copy: Workspace):
    settings = ScreeningSettings(chunk=80)
    needed = {chunk.part for chunk in plan_screening(copy, settings).chunks}
    assert set(copy.read_json(PLAN)["parts"]) == needed
    for file in copy.list(f"{PARTS}/*"):
        name = file.replace(min(needed), "0" * 24)
        if name != file:
            copy.write_bytes(name, copy.read_bytes(file))
    assert places(copy) == []  # younger than the plan: a screening that has not finished
    join_parts(copy, plan_screening(copy, settings), settings)
    found = find_leftovers(copy, now=True)
    assert [(one.place, len(one.files)) for one in found] == [(f"{PARTS}/{'0' * 24}", 3)]
    before = copy.read_bytes(RESULT)
    remove_leftovers(copy, found)
    assert {file.split("/")[-1][:24] for file in copy.list(f"{PARTS}/*")} == needed
    join_parts(copy, plan_screening(copy, settings), settings)
    assert copy.read_bytes(RESULT) == before


def test_documents_of_jobs_go_with_their_materials(copy: Workspace):
    store = open_job_store(copy.url, "files")
    there = copy.read_table("crystals/ordered.parquet", ["material_id"])["material_id"][0].as_py()
    for material in (there, "mp-gone", None):
        one = make_large(100)
        one.metadata = {"material_id": material} if material else {}
        run_locally(one, store=store, log=False, ensure_success=True)
    found = find_leftovers(copy, now=True)
    assert [(one.why, len(one.files)) for one in found] == [("a job of mp-gone, which is gone", 2)]
    remove_leftovers(copy, found)
    assert (len(copy.list(f"{DOCUMENTS}/*")), len(copy.list(f"{DATA}/*"))) == (2, 2)


def test_the_commands_tell_ask_and_end_with_their_codes(copy: Workspace):
    run = CliRunner(env={"COLUMNS": "250"}).invoke  # or a long path folds the lines
    options = ["--workspace", copy.url]
    done = run(app, ["workspace", "check", *options])
    assert (done.exit_code, "is whole" in done.output) == (0, True)
    copy.local(RESULT).write_bytes(b"short")
    done = run(app, ["workspace", "check", "--json", *options])
    assert done.exit_code == 1
    assert f'"place": "{RESULT}"' in done.stdout
    done = run(app, ["workspace", "check", "--repair", "--no-run", *options])
    assert (done.exit_code, "meissner screen" in done.output) == (1, True)
    assert not copy.exists(RESULT)
    scratch = "grids/.index.parquet.0a1b2c3d.part"
    copy.local(scratch).write_bytes(b"half")
    assert "Nothing in" in run(app, ["workspace", "gc", *options]).output
    assert "Nothing was removed" in run(app, ["workspace", "gc", "--now", *options], input="n\n").output
    assert copy.exists(scratch)
    done = run(app, ["workspace", "gc", "--now", "--yes", *options])
    assert (done.exit_code, "Removed 1" in done.output, copy.exists(scratch)) == (0, True, False)


def test_what_a_collection_has_left_is_named_with_its_place(copy: Workspace):
    inner = Workspace(copy.path("collections/mine"))
    shutil.copytree(copy.local("models"), inner.local("models"))
    save_version(inner, "idle")
    save_version(inner, "newest")
    assert places(copy) == ["collections/mine/models/bnas/idle"]
    remove_leftovers(copy, find_leftovers(copy, now=True))
    assert not inner.exists("models/bnas/idle")
    assert inner.exists("models/bnas/newest")
