"""What is damaged is found and told; what repair takes away is made again, byte for byte."""

import json
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from jobflow import run_locally
from safetensors.torch import save as save_tensors

from tasks.bands import part_name, store_bands
from tasks.events import StageEvent, subscribe
from tasks.grids import assemble_index, make_chunk, plan_chunks
from tasks.job_store import DOCUMENTS, open_job_store
from tasks.model_store import latest_version, load_model, model_folder, promote, save_model
from tasks.schemas import BANDS, CRYSTALS
from tasks.screening import RESULT, join_parts, missing_chunks, plan_screening, screen_to_part
from tasks.screening_kept import KEPT
from tasks.screening_plan import PARTS
from tasks.settings import GridSettings, ScreeningSettings
from tasks.shards import INDEX, shard_object
from tasks.stages import StageOutcome, read_report, run_stage
from tasks.workspace import Workspace
from tasks.workspace_check import STAGE, check_workspace
from tasks.workspace_repair import ASIDE, repair_workspace
from tasks.workspace_tables import COMMANDS, find_problem

ROOT = Path(__file__).resolve().parents[2]
SCREENING = ScreeningSettings(chunk=80)
SHARD = shard_object(0)


@pytest.fixture
def copy(screened: Workspace, tmp_path: Path) -> Workspace:
    shutil.copytree(screened.local("."), tmp_path / "copy")
    return Workspace(tmp_path / "copy")


def flip(workspace: Workspace, name: str, at: float = 0.5) -> None:
    """Change one byte of a file."""
    data = bytearray(workspace.read_bytes(name))
    data[int(at * len(data))] ^= 0x55
    workspace.local(name).write_bytes(data)


def told(workspace: Workspace) -> dict[str, str]:
    return {finding.place: finding.problem for finding in check_workspace(workspace)}


def run_grids(workspace: Workspace) -> None:
    """The grid stage as the fixture ran it."""
    for chunk in plan_chunks(workspace, GridSettings()):
        make_chunk(workspace, chunk, GridSettings())
    run_stage(workspace, "grid", lambda: assemble_index(workspace), code_version=1, inputs=[], settings=GridSettings())


def run_screening(workspace: Workspace) -> None:
    plan = plan_screening(workspace, SCREENING)
    for chunk in missing_chunks(workspace, plan.chunks):
        screen_to_part(workspace, chunk, SCREENING)
    join_parts(workspace, plan, SCREENING)


def test_a_whole_workspace_has_no_findings_and_tells_its_progress(screened: Workspace):
    events: list[StageEvent] = []
    with subscribe(events.append):
        assert check_workspace(screened) == []
    assert {event.stage for event in events} == {STAGE}
    assert events[-1].done == events[-1].total > 15


def test_every_stage_has_its_command_and_every_command_its_stage():
    stages = {
        found
        for file in (ROOT / "tasks").glob("*.py")
        for found in re.findall(r'^STAGE = "([\w-]+)"', file.read_text(), re.MULTILINE)
    }
    assert stages - {STAGE} == set(COMMANDS)


def test_a_changed_byte_of_a_table_is_found_and_the_stage_writes_the_same_bytes(copy: Workspace):
    before = copy.read_bytes(RESULT)
    flip(copy, RESULT)
    findings = check_workspace(copy)
    assert [(one.place, one.stage, one.again) for one in findings] == [(RESULT, "screen", "meissner screen")]
    assert repair_workspace(copy, findings) == ["removed"]
    assert read_report(copy, "screen").key == ""
    assert told(copy) == {RESULT: "is not there"}
    run_screening(copy)
    assert copy.read_bytes(RESULT) == before
    assert told(copy) == {}


def test_a_table_that_can_be_read_but_is_another_is_found(copy: Workspace):
    copy.write_table(RESULT, copy.read_table(RESULT).slice(1))
    assert told(copy) == {RESULT: "is not what the stage screen wrote"}


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "record"])
def test_a_damaged_shard_is_made_again_with_its_index(copy: Workspace, damage: str):
    before = {name: copy.read_bytes(name) for name in (SHARD, INDEX)}
    record = "grids/shards/000000.json"
    if damage == "truncate":
        copy.local(SHARD).write_bytes(before[SHARD][:-100])
    elif damage == "flip":
        flip(copy, SHARD)
    elif damage == "remove":
        copy.remove(SHARD)
    else:
        copy.local(record).write_text("{")
    findings = check_workspace(copy)
    assert {"shard": SHARD, "record of a shard": record}[findings[-1].what] == findings[-1].place
    assert findings[-1].again == "meissner grid"
    assert "shard and index removed" in repair_workspace(copy, findings)
    assert not copy.exists(SHARD)
    if damage == "flip":  # once is enough for the numbers; a grid takes time
        run_grids(copy)
        assert {name: copy.read_bytes(name) for name in before} == before
        assert told(copy) == {}


def test_an_index_that_names_other_grids_is_found(copy: Workspace):
    index = copy.read_table(INDEX)
    hashes = pa.array(["0" * 64, *index["sha256"].to_pylist()[1:]])
    copy.write_table(INDEX, index.set_column(index.schema.names.index("sha256"), "sha256", hashes))
    copy.remove("stages/grid/manifest.json")
    assert told(copy) == {INDEX: "names 1 grids that no shard holds"}


def test_outputs_and_manifests_that_are_gone_or_torn_are_found(copy: Workspace):
    copy.remove("stages/clean/rejected.parquet")
    copy.local("stages/screen/manifest.json").write_text('{"stage": "screen"')
    assert told(copy) == {
        "stages/clean/rejected.parquet": "is not there",
        "stages/screen/manifest.json": "cannot be read",
    }
    before = copy.read_bytes(RESULT)
    repair_workspace(copy, check_workspace(copy))
    run_screening(copy)
    assert copy.read_bytes(RESULT) == before
    assert set(told(copy)) == {"stages/clean/rejected.parquet"}


def test_weights_that_a_stage_vouches_for_are_made_again_and_others_moved_aside(copy: Workspace):
    old = latest_version(copy, "bnas")
    stored = load_model(copy, "bnas")

    def train() -> StageOutcome:
        folder = model_folder("bnas", old)
        tables = {name: copy.read_table(f"{folder}/{name}.parquet") for name in ("predictions", "folds")}
        config = {"network": stored.config["network"]}
        members = [{name: value + 1 for name, value in member.items()} for member in stored.members]
        files = save_model(copy, "bnas", "new", members=members, config=config, metrics=stored.metrics, **tables)
        return StageOutcome(0, 0, files=files)

    run_stage(copy, "train-bnas", train, code_version=1, inputs=[])
    owned, other = (f"{model_folder('bnas', version)}/weights-0.safetensors" for version in ("new", old))
    before = copy.read_bytes(owned)
    flip(copy, owned, 0.9)  # the numbers only: the file still loads
    copy.local(other).write_bytes(copy.read_bytes(other)[:-8])
    findings = check_workspace(copy)
    assert [(one.place, one.remedy) for one in findings] == [(other, "aside"), (owned, "remake")]
    assert "with the settings in models/bnas/" in findings[0].again
    assert repair_workspace(copy, findings) == [f"moved to {ASIDE}/{other}", "removed"]
    assert copy.exists(f"{ASIDE}/{other}")
    run_stage(copy, "train-bnas", train, code_version=1, inputs=[])
    assert copy.read_bytes(owned) == before
    assert told(copy) == {other: "is not there"}


def test_a_version_is_known_by_the_hashes_in_its_configuration(copy: Workspace):
    """No manifest names these versions, and the changed files can still be read."""
    folder = model_folder("bnas", latest_version(copy, "bnas"))
    assert set(copy.read_json(f"{folder}/config.json")["sha256"]) == {
        name.rpartition("/")[2] for name in copy.list(f"{folder}/*") if not name.endswith("config.json")
    }
    flip(copy, f"{folder}/weights-0.safetensors", 0.9)
    metrics = copy.read_json(f"{folder}/metrics.json")
    copy.write_json(f"{folder}/metrics.json", {**metrics, "scores": {}})
    changed = (f"{folder}/metrics.json", f"{folder}/weights-0.safetensors")
    assert told(copy) == dict.fromkeys(changed, "is not what the training wrote")


def test_a_promotion_of_a_version_that_is_gone_is_told_and_left(copy: Workspace):
    version = latest_version(copy, "s2snet")
    promote(copy, "s2snet", version)
    copy.remove(model_folder("s2snet", version))
    found = told(copy)
    gone = f"points to the version {version}, which is not there"
    assert found == {"models/s2snet/latest.json": gone, "models/s2snet/promoted.json": gone}
    done = repair_workspace(copy, check_workspace(copy))
    assert done == ["removed", "left as it is"]
    assert copy.exists("models/s2snet/promoted.json")


def test_a_part_of_a_screening_goes_whole_and_comes_back(copy: Workspace):
    part = next(name for name in copy.list(f"{PARTS}/*.parquet") if "rejected" not in name)
    stem = part.removesuffix(".parquet")
    rows = copy.read_table(part)
    copy.local(part).write_bytes(copy.read_bytes(part)[:50])
    findings = check_workspace(copy)
    assert [(one.place, one.what) for one in findings] == [(part, "piece")]
    repair_workspace(copy, findings)
    assert copy.list(f"{stem}*") == []
    run_screening(copy)
    assert copy.read_table(part).equals(rows)
    copy.remove(f"{stem}-rejected.parquet")
    assert told(copy) == {part: f"stands without {stem.rpartition('/')[2]}-rejected.parquet"}


def test_calculated_bands_are_kept_aside_and_their_job_is_forgotten(copy: Workspace):
    row = copy.read_table("bands/test.parquet").to_pylist()[0]
    store = open_job_store(copy.url, "files")
    run_locally(store_bands(copy.url, row), store=store, log=False, ensure_success=True)
    name = part_name(row["material_id"])
    before = copy.read_bytes(name)
    copy.local(name).write_bytes(before[: len(before) // 2])
    findings = check_workspace(copy)
    assert [(one.place, one.again) for one in findings] == [(name, "meissner refresh --until bands")]
    assert repair_workspace(copy, findings, store) == [f"moved to {ASIDE}/{name}"]
    assert store.count() == 0
    run_locally(store_bands(copy.url, row), store=store, log=False, ensure_success=True)
    assert copy.read_bytes(name) == before
    flip(copy, copy.list(f"{DOCUMENTS}/*")[0])
    assert [one.what for one in check_workspace(copy)] == ["piece"]


def test_fetched_answers_and_adopted_bands_are_never_deleted(copy: Workspace):
    for name in ("crystals/sources/mp.parquet", "bands/bundled.parquet"):
        copy.write_bytes(name, b"PAR1 and no more")
    findings = check_workspace(copy)
    assert len(findings) == 2
    repair_workspace(copy, findings)
    assert copy.read_bytes(f"{ASIDE}/crystals/sources/mp.parquet") == b"PAR1 and no more"
    assert copy.read_bytes(f"{ASIDE}/bands/bundled.parquet") == b"PAR1 and no more"
    assert told(copy) == {}


def test_bands_of_another_version_are_told_and_stay(copy: Workspace):
    name = "bands/test.parquet"
    copy.write_table(name, copy.read_table(name).drop_columns(["dos_d"]))
    findings = check_workspace(copy)
    assert [(one.place, one.problem) for one in findings] == [(name, "lacks the columns dos_d")]
    assert repair_workspace(copy, findings) == ["left as it is"]
    assert copy.exists(name)


def test_a_collection_is_checked_like_the_workspace_and_keeps_its_best_anew(copy: Workspace, tmp_path: Path):
    inner = Workspace(copy.path("collections/screen-mp"))
    for folder in ("grids", "models", "stages/grid"):
        shutil.copytree(copy.local(folder), inner.local(folder))
    inner.write_json(KEPT, {"whole": True})
    assert told(copy) == {}
    weights = inner.list("models/bnas/*/weights-0.safetensors")[0]
    for name in (SHARD, weights):
        inner.local(name).write_bytes(b"")
    findings = check_workspace(copy)
    assert [one.place for one in findings] == [f"collections/screen-mp/{name}" for name in (SHARD, weights)]
    assert findings[0].again == "meissner screen SOURCES --collection screen-mp"
    repair_workspace(copy, findings)
    assert not any(map(inner.exists, (SHARD, weights, KEPT)))
    assert copy.exists(SHARD)


def test_what_a_file_of_that_name_must_be():
    table = pa.BufferOutputStream()
    pa.parquet.write_table(CRYSTALS.empty_table().drop_columns(["formula"]), table)
    assert find_problem("crystals/crystals.parquet", table.getvalue().to_pybytes()) == "lacks the columns formula"
    wrong = pa.table({field.name: pa.array([], pa.int8()) for field in BANDS})
    pa.parquet.write_table(wrong, table := pa.BufferOutputStream())
    assert find_problem("bands/a.parquet", table.getvalue().to_pybytes()).startswith("has other types than declared")
    assert find_problem("models/a/b/weights.safetensors", save_tensors({})) == ""
    assert find_problem("models/a/b/weights.safetensors", b"no").startswith("cannot be read")
    assert find_problem("jobs/data/a.json.gz", b"\x1f\x8b no").startswith("cannot be read")
    assert find_problem("candidates/kept.json", json.dumps({}).encode()) == ""
    assert find_problem("report/index.html", b"anything") == ""
