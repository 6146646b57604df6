"""Stage "bands": bundled band structures are adopted, missing ones calculated, each stored as it is finished.

``bands/bundled.parquet`` holds what was adopted, ``bands/<material>.parquet`` one calculated row each, and
``bands/failed/<material>.json`` why a calculation failed. Bands belong to a crystal, known by its structure hash, and
not to a name: several materials with one structure share them.
"""

import hashlib
import re
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from jobflow import Flow, Job, job
from prefect import get_run_logger, task
from pymatgen.core.composition import Composition
from pymatgen.core.structure import Structure

from tasks.crystals import structure_from_json, structure_hash
from tasks.engines import BandEngine, is_passing
from tasks.engines.gpaw import GpawBandMaker
from tasks.exceptions import EngineError, InputError
from tasks.jobflow_prefect import OnFinish
from tasks.logs import log_event
from tasks.progress import Advance, leave_summary, silent
from tasks.schemas import BANDS
from tasks.settings import BandSettings, GpawSettings, VaspSettings
from tasks.stages import Rejection, StageOutcome, StageReport, hash_text, run_stage
from tasks.workspace import Workspace

STAGE = "bands"
CODE_VERSION = 1
ORDERED_TABLE = "crystals/ordered.parquet"
BUNDLED_TABLE = "bands/bundled.parquet"
INDEX_TABLE = "stages/bands/index.parquet"  # which bands each material has: without times, so keys may hang on it
FAILED_FOLDER = "bands/failed"
INDEX = pa.schema([pa.field(name, pa.string(), nullable=False) for name in ("material_id", "bands_hash", "part")])


@dataclass(frozen=True)
class Plan:
    """What is to be calculated, cheapest first, and why the other materials without bands are not.

    ``refused`` names structures by their hash; ``no_engine`` says why nothing can be calculated, or is empty.
    """

    materials: tuple[str, ...]
    refused: tuple[Rejection, ...]
    no_engine: str = ""


def adopt_bands(workspace: Workspace, bundled: str | Path | None) -> int:
    """Take over finished bands of crystals that the ordered table holds, and give the number of materials served.

    A row of the file serves every ordered row with the same structure hash, under that row's material_id. Without a
    file, what was adopted before stays.

    Raises
    ------
    InputError
        If the file is missing, is no Parquet file, or lacks columns of BANDS.
    """
    if bundled is None:
        return 0
    table = read_bundle(Path(bundled))
    ordered = read_ordered(workspace)
    positions = {content: row for row, content in enumerate(table["structure_hash"].to_pylist())}
    served = [
        (row["material_id"], positions[row["structure_hash"]]) for row in ordered if row["structure_hash"] in positions
    ]
    adopted = _renamed(
        table.take(pa.array([position for _, position in served], pa.int64())), [name for name, _ in served]
    )
    workspace.write_table(BUNDLED_TABLE, adopted)
    return len(served)


def read_bundle(path: Path) -> pa.Table:
    """A Parquet file of finished bands, checked."""
    if not path.is_file():
        raise InputError(f"Bundled bands {path} are not there; name another file (bands.bundled) or none")
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"Bundled bands {path} are no readable Parquet file: {error}") from error
    absent = [name for name in BANDS.names if name not in table.column_names]
    if absent:
        raise InputError(f"Bundled bands {path} lack the columns {', '.join(absent)}")
    return table.select(BANDS.names).cast(BANDS)


def read_ordered(workspace: Workspace) -> list[dict[str, Any]]:
    """The ordered crystals without their structures."""
    columns = ["material_id", "structure_hash", "sites", "formula"]
    return list(workspace.read_table(ORDERED_TABLE, columns).to_pylist())


@dataclass(frozen=True)
class Found:
    """Where the bands of a material are."""

    material_id: str
    bands_hash: str
    part: str
    row: int


def find_bands(workspace: Workspace) -> list[Found]:
    """Where the bands of each ordered crystal are, sorted by material_id; materials without bands are left out.

    Adopted bands come before calculated ones.
    """
    parts = [BUNDLED_TABLE] if workspace.exists(BUNDLED_TABLE) else []
    parts += _calculated_parts(workspace)
    places: dict[str, tuple[str, str, int]] = {}
    for part in parts:
        hashes = workspace.read_table(part, ["structure_hash", "bands_hash"]).to_pylist()
        for row, known in enumerate(hashes):
            places.setdefault(known["structure_hash"], (known["bands_hash"], part, row))
    found = [
        Found(row["material_id"], *places[row["structure_hash"]])
        for row in read_ordered(workspace)
        if row["structure_hash"] in places
    ]
    return sorted(found, key=lambda one: one.material_id)


def read_bands(workspace: Workspace, columns: Sequence[str] | None = None) -> pa.Table:
    """Bands of the current ordered crystals, sorted by material_id, with all columns of BANDS or some.

    Materials without bands have no row.
    """
    wanted = list(columns or BANDS.names)
    schema = pa.schema([BANDS.field(name) for name in wanted])
    by_part: dict[str, list[Found]] = {}
    for one in find_bands(workspace):
        by_part.setdefault(one.part, []).append(one)
    tables = [schema.empty_table()]
    names: list[str] = []
    for part, found in by_part.items():
        rows = workspace.read_table(part, wanted).take([one.row for one in found])
        tables.append(_renamed(rows, [one.material_id for one in found]).cast(schema))
        names += [one.material_id for one in found]
    order = sorted(range(len(names)), key=names.__getitem__)
    return pa.concat_tables(tables).take(pa.array(order, pa.int64()))


def plan_calculations(workspace: Workspace, settings: BandSettings, engine: BandEngine) -> Plan:
    """Which ordered crystals are calculated: those not adopted, cheapest first, one for each structure.

    The choice under ``limit`` counts finished calculations too, so that a run that was killed and started again
    calculates the same materials as one that was not. Failures for good are not tried again with the same settings.
    """
    adopted = _hashes(workspace, BUNDLED_TABLE)
    distinct = {row["structure_hash"]: row for row in sorted(read_ordered(workspace), key=_cost, reverse=True)}
    candidates = sorted((row for content, row in distinct.items() if content not in adopted), key=_cost)
    small = [row for row in candidates if row["sites"] <= settings.max_sites]
    no_engine = _no_engine(settings, engine)
    limit = 0 if no_engine else len(small) if settings.limit is None else settings.limit
    reason = no_engine or f"limit of {settings.limit} new calculations (bands.limit)"
    refused = [Rejection(row["structure_hash"], f"not calculated: {reason}", True) for row in small[limit:]]
    refused += [
        Rejection(row["structure_hash"], f"not calculated: {row['sites']} sites; at most {settings.max_sites} allowed")
        for row in candidates
        if row["sites"] > settings.max_sites
    ]
    over = _finished(workspace, engine)
    chosen = [row for row in small[:limit] if row["structure_hash"] not in over]
    return Plan(tuple(row["material_id"] for row in chosen), tuple(refused), no_engine)


def _no_engine(settings: BandSettings, engine: BandEngine) -> str:
    """Why nothing can be calculated, or nothing."""
    if settings.engine == "none":
        return "no engine is chosen (bands.engine)"
    return engine.available().reason


def _cost(row: dict[str, Any]) -> tuple[int, float, str]:
    """Sort key of the cost of a calculation: sites, electrons of the cell, then the name."""
    composition = Composition(row["formula"])
    electrons = sum(element.Z * amount for element, amount in composition.items()) / composition.num_atoms
    return row["sites"], round(electrons * row["sites"], 3), row["material_id"]


def _hashes(workspace: Workspace, name: str) -> set[str]:
    """Structure hashes in a part, none where it is not there."""
    return set(workspace.read_table(name, ["structure_hash"])[0].to_pylist()) if workspace.exists(name) else set()


def _finished(workspace: Workspace, engine: BandEngine) -> set[str]:
    """Structure hashes of the calculations that are over: finished, or failed for good, with these settings."""
    columns = ["structure_hash", "engine", "engine_settings"]
    rows = [row for name in _calculated_parts(workspace) for row in workspace.read_table(name, columns).to_pylist()]
    rows += [failure for failure in read_failures(workspace) if not failure["retryable"]]
    return {
        row["structure_hash"]
        for row in rows
        if (row["engine"], row["engine_settings"]) == (engine.name, engine.settings_json)
    }


def _calculated_parts(workspace: Workspace) -> list[str]:
    return [name for name in workspace.list("bands/*.parquet") if name != BUNDLED_TABLE]


def read_failures(workspace: Workspace) -> list[dict[str, Any]]:
    """What ``note_failure`` kept, sorted by file name."""
    return [workspace.read_json(name) for name in workspace.list(f"{FAILED_FOLDER}/*.json")]


def forget_failures(workspace: Workspace, reason: str | None = None) -> int:
    """Let failed calculations be tried again, and give their number.

    Parameters
    ----------
    reason
        Words of the reason, in any case. Without them: failures for a passing reason (killed, disk full).
    """
    forgotten = 0
    for name in workspace.list(f"{FAILED_FOLDER}/*.json"):
        failure = workspace.read_json(name)
        if failure["retryable"] if reason is None else reason.lower() in failure["reason"].lower():
            workspace.remove(name)
            forgotten += 1
    return forgotten


def part_name(material_id: str) -> str:
    """Name of the file with a material's calculated bands."""
    return f"bands/{safe_name(material_id)}.parquet"


def failure_name(material_id: str) -> str:
    """Name of the file that says why a material's calculation failed."""
    return f"{FAILED_FOLDER}/{safe_name(material_id)}.json"


def safe_name(material_id: str) -> str:
    """A file name for any material_id; ids that had to be changed carry a hash, so that they stay apart."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", material_id).lstrip(".")
    if plain == material_id and f"bands/{plain}.parquet" != BUNDLED_TABLE:
        return plain
    return f"{plain}-{hashlib.sha256(material_id.encode()).hexdigest()[:8]}"


def prepare_calculations(
    workspace: Workspace, materials: Sequence[str], engine: BandEngine, advance: Advance = silent
) -> tuple[Flow, OnFinish]:
    """The jobs that calculate materials and store each, and what is to be called with each job that is over.

    A material that fails, or that the engine refuses before any calculation, is noted with its reason.
    """
    table = workspace.read_table(ORDERED_TABLE, ["material_id", "structure"])
    texts = dict(zip(*map(pa.ChunkedArray.to_pylist, table.columns), strict=True))
    structures = {material_id: structure_from_json(texts[material_id]) for material_id in materials}
    flows, last = [], set()
    for material_id, structure in structures.items():
        try:
            whole = _calculate_and_store(workspace, structure, material_id, engine)
        except (InputError, EngineError) as error:
            note_failure(workspace, material_id, structure, engine, error)
            advance(1)
            continue
        flows.append(whole)
        last.add(whole.jobs[-1].uuid)

    def on_finish(done: Job, error: BaseException | None) -> None:
        material_id = done.metadata.get("material_id", "")
        log_event("job failed" if error else "job finished", stage=STAGE, item=material_id, job=done.name)
        if error is not None:
            note_failure(workspace, material_id, structures[material_id], engine, error)
        if error is not None or done.uuid in last:
            advance(1)

    return Flow(flows, name="bands"), on_finish


def _calculate_and_store(workspace: Workspace, structure: Structure, material_id: str, engine: BandEngine) -> Flow:
    """The engine's flow for one material, and a job that stores what it gives."""
    flow = engine.make(structure, material_id)
    stored = store_bands(workspace.url, flow.output)
    stored.name = f"store {structure.composition.reduced_formula}"
    stored.metadata = {"formula": structure.composition.reduced_formula, "material_id": material_id}
    stored.set_uuid(str(uuid.uuid5(uuid.NAMESPACE_URL, f"{flow.jobs[-1].uuid}/store")))
    return Flow([flow, stored], name=flow.name)


@job
def store_bands(workspace: str, document: dict[str, Any]) -> str:
    """Write a finished band structure into the workspace, whole or not at all."""
    place = Workspace(workspace)
    name = part_name(document["material_id"])
    place.write_table(name, pa.Table.from_pylist([document], schema=BANDS))
    place.remove(failure_name(document["material_id"]))
    return name


def note_failure(
    workspace: Workspace, material_id: str, structure: Structure, engine: BandEngine, error: BaseException
) -> None:
    """Keep why a calculation failed, for the stage's rejections and so that it is not tried again in vain."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    workspace.write_json(
        failure_name(material_id),
        {
            "material_id": material_id,
            "structure_hash": structure_hash(structure),
            "engine": engine.name,
            "engine_settings": engine.settings_json,
            "reason": lines[-1] if lines else type(error).__name__,
            "retryable": is_passing(error),
        },
    )


def summarise(workspace: Workspace, plan: Plan) -> StageOutcome:
    """The stage's outcome: an index of all bands, and for each ordered crystal without bands the reason."""
    ordered, found = read_ordered(workspace), find_bands(workspace)
    reasons = {refusal.item: refusal for refusal in plan.refused}
    for failure in read_failures(workspace):
        reasons[failure["structure_hash"]] = Rejection("", failure["reason"], failure["retryable"])
    unknown = Rejection("", "not calculated: the run ended before", True)
    have = {one.material_id for one in found}
    rejected = []
    for row in ordered:
        if row["material_id"] not in have:
            why = reasons.get(row["structure_hash"], unknown)
            rejected.append(Rejection(row["material_id"], why.reason, why.retryable))
    index = [{"material_id": one.material_id, "bands_hash": one.bands_hash, "part": one.part} for one in found]
    bundled = sum(one.part == BUNDLED_TABLE for one in found)
    return StageOutcome(
        rows_in=len(ordered),
        accounted=len(found),
        tables={INDEX_TABLE: pa.Table.from_pylist(index, schema=INDEX)},
        rejected=rejected,
        counts={"bands": len(found), "bundled": bundled, "calculated": len(found) - bundled},
    )


def finish(workspace: Workspace, settings: BandSettings, plan: Plan, started: datetime | None = None) -> StageReport:
    """Run stage "bands": write the index and the refusals if anything changed."""
    outcome = summarise(workspace, plan)
    inputs = [
        hash_text(*(f"{row['material_id']} {row['structure_hash']}" for row in read_ordered(workspace))),
        hash_text(*(f"{row['material_id']} {row['bands_hash']}" for row in outcome.tables[INDEX_TABLE].to_pylist())),
        hash_text(*(f"{refusal.item} {refusal.reason}" for refusal in outcome.rejected)),
    ]
    return run_stage(
        workspace, STAGE, lambda: outcome, code_version=CODE_VERSION, inputs=inputs, settings=settings, started=started
    )


def _renamed(table: pa.Table, material_ids: list[str]) -> pa.Table:
    """The table under other material ids, where it has that column."""
    if "material_id" not in table.column_names:
        return table
    column = table.column_names.index("material_id")
    return table.set_column(column, BANDS.field("material_id"), pa.array(material_ids, pa.string()))


def make_engine(workspace: str, settings: BandSettings, gpaw: GpawSettings, vasp: VaspSettings) -> BandEngine:
    """The engine that is chosen, with its running calculations in the folder that is named or under the workspace.

    Where the workspace is not local and no folder is named, they run in the machine's scratch folder.
    """
    place = Workspace(workspace)
    scratch = place.local("scratch") if place.is_local else Path(tempfile.gettempdir()) / "meissner"
    folder = Path(settings.folder).expanduser() if settings.folder else scratch
    if settings.engine == "vasp":
        from tasks.engines.vasp import VaspBandMaker

        return VaspBandMaker(settings=vasp, run_folder=str((folder / "vasp").resolve()))
    return GpawBandMaker(settings=gpaw, folder=str((folder / "gpaw").resolve()))


@task(name="adopt bands", task_run_name="adopt bands")
def adopt_bundled(workspace: str, settings: BandSettings) -> int:
    """Adopt the bundled bands; see ``adopt_bands``."""
    return adopt_bands(Workspace(workspace), settings.bundled)


@task(name="plan bands", task_run_name="plan bands")
def plan_bands(workspace: str, settings: BandSettings, gpaw: GpawSettings, vasp: VaspSettings) -> Plan:
    """Choose what is calculated; see ``plan_calculations``."""
    plan = plan_calculations(Workspace(workspace), settings, make_engine(workspace, settings, gpaw, vasp))
    if plan.no_engine and plan.refused:
        get_run_logger().warning("%d crystals stay without bands: %s", len(plan.refused), plan.no_engine)
    return plan


@task(name="finish bands", task_run_name="finish bands")
def finish_bands(workspace: str, settings: BandSettings, plan: Plan, started: datetime | None = None) -> StageReport:
    """Write the stage's index and refusals; see ``finish``."""
    place = Workspace(workspace)
    return leave_summary(place, finish(place, settings, plan, started))
