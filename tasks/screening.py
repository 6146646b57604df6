"""Screening: both networks on every material that has bands, joined, judged for trust, and ranked.

A **chunk** of materials is predicted at a time and stored as a part, named by a hash of everything it depends on: a run
that was killed goes on where it stood, and a changed network reaches every part. ``finish_screening`` puts the parts
together, ranks what is new, and writes ``candidates/candidates.parquet``. Numbers are rounded, so that the table is
the same to the last byte however often the work was interrupted.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from prefect import task
from pymatgen.core import Structure

from models.exceptions import MeissnerError
from tasks.bands import read_bands
from tasks.exceptions import InputError
from tasks.held_out import HeldOut, read_held_out
from tasks.known import Known, element_amounts, find_hazards
from tasks.model_store import latest_version
from tasks.prediction import INDEX, SUPERCONDUCTORS, Prediction, Predictor, predict, round_significant
from tasks.progress import Advance, leave_summary, silent, stage_progress
from tasks.schemas import CANDIDATES
from tasks.settings import ScreeningSettings
from tasks.shards import read_grids
from tasks.stages import Rejection, StageOutcome, StageReport, hash_text, rejected_table, run_stage
from tasks.workspace import Workspace

__all__ = [
    "Plan",
    "Prediction",
    "finish_screening",
    "plan_screening",
    "predict",
    "rank_candidates",
    "screen_chunk",
    "screen_materials",
]

CODE_VERSION = 1
STAGE = "screen"
RESULT = "candidates/candidates.parquet"
SUPERCONDUCTOR_KELVIN = 1.0  # BNAS says superconductor from here on: its label ln(Tc + 1) hardly resolves less
SUPERCONDUCTOR_PROBABILITY = 0.5  # S2SNet says superconductor from here on
BATCH = 16  # grids given to BNAS at once: 16 x 24 images of 2.4 MB
TC_COLUMNS = ("tc_kelvin", "tc_low_kelvin", "tc_high_kelvin", "tc_image_spread_kelvin")
PROBABILITY_COLUMNS = ("probability", "probability_low", "probability_high")


@dataclass(frozen=True)
class Chunk:
    """Materials that are screened together, and the name of the part that holds the answer."""

    part: str
    material_ids: tuple[str, ...]

    @property
    def table(self) -> str:
        """The part's rows of CANDIDATES; written last, so that its presence says that the chunk is done."""
        return f"candidates/parts/{self.part}.parquet"

    @property
    def rejected(self) -> str:
        """What the chunk refused."""
        return f"candidates/parts/{self.part}-rejected.parquet"

    @property
    def timing(self) -> str:
        """How long it took."""
        return f"candidates/parts/{self.part}.json"


@dataclass(frozen=True)
class Plan:
    """What is to be screened and what is not: a gap that is too large, or not asked for."""

    chunks: tuple[Chunk, ...]
    excluded: tuple[Rejection, ...]
    not_asked: int


def plan_screening(workspace: Workspace, settings: ScreeningSettings, chunk: int) -> Plan:
    """Choose the materials, in the order of their ids, and cut them into chunks of at most ``chunk``.

    Materials with a larger gap than ``max_gap_ev`` are excluded with that reason; those without one of ``elements``
    and those beyond ``limit`` are only counted. InputError if nothing is left.
    """
    columns = ["material_id", "tc_kelvin", "band_gap_ev", "sha256", "bands_hash", "chemical_system"]
    rows = workspace.read_table(INDEX, columns).sort_by("material_id").to_pylist()
    wanted = [row for row in rows if row["band_gap_ev"] <= settings.max_gap_ev]
    elements = set(settings.elements)
    asked = [row for row in wanted if not elements or elements & set(row["chemical_system"].split("-"))]
    asked = asked[: settings.limit]
    if not asked:
        holding = f" and holds one of {', '.join(settings.elements)}" if elements else ""
        raise InputError(
            f"None of the {len(rows)} materials in {INDEX} has a band gap up to {settings.max_gap_ev} eV{holding}"
        )
    shared = _shared_inputs(workspace, settings)
    return Plan(
        chunks=tuple(_name_chunk(shared, asked[start : start + chunk]) for start in range(0, len(asked), chunk)),
        excluded=tuple(
            Rejection(row["material_id"], f"band gap {row['band_gap_ev']:.3f} eV is above {settings.max_gap_ev} eV")
            for row in rows
            if row["band_gap_ev"] > settings.max_gap_ev
        ),
        not_asked=len(wanted) - len(asked),
    )


def screen_materials(
    workspace: Workspace, material_ids: Sequence[str], settings: ScreeningSettings, advance: Advance = silent
) -> tuple[pa.Table, list[Rejection]]:
    """Predict and judge some materials.

    Returns
    -------
    Rows of CANDIDATES without a rank, in the order of the grid index, and the materials that were refused.
    """
    predictor = Predictor(workspace, settings.coverage)
    s2snet = predictor.s2snet  # weights that cannot be loaded stop the run; they are no fault of a material
    index, grids = read_grids(workspace, list(material_ids))
    crystals = _read_crystals(workspace, material_ids)
    held_out = {network: read_held_out(workspace, network) for network in ("bnas", "s2snet")}
    entries = index.to_pylist()
    rows, rejected = [], []
    for start in range(0, len(entries), BATCH):
        batch = entries[start : start + BATCH]
        temperatures = _ask_bnas(predictor.bnas, grids[start : start + BATCH], batch, held_out["bnas"])
        for entry, temperature in zip(batch, temperatures, strict=True):
            try:
                crystal = crystals[entry["material_id"]]
                row = _identify(entry, crystal, predictor) | temperature
                row |= _ask_s2snet(s2snet, crystal["structure"], entry, held_out["s2snet"])
                rows.append(_judge(row, settings))
            except MeissnerError as error:
                rejected.append(Rejection(entry["material_id"], str(error)))
            advance(1)
    nearest = predictor.known.nearest([element_amounts(row["formula"]) for row in rows])
    for row, (place,) in zip(rows, nearest, strict=True):
        row["nearest_formula"] = predictor.known.formulas[place]
    return pa.Table.from_pylist(rows, schema=CANDIDATES), rejected


def screen_to_part(workspace: Workspace, chunk: Chunk, settings: ScreeningSettings, advance: Advance = silent) -> None:
    """Screen a chunk and write its part, the rows last."""
    started = time.perf_counter()
    table, rejected = screen_materials(workspace, chunk.material_ids, settings, advance)
    workspace.write_table(chunk.rejected, rejected_table(STAGE, rejected))
    workspace.write_json(chunk.timing, {"seconds": round(time.perf_counter() - started, 2)})
    workspace.write_table(chunk.table, table)


def join_parts(
    workspace: Workspace, plan: Plan, settings: ScreeningSettings, started: datetime | None = None
) -> StageReport:
    """Stage "screen": all parts as one ranked table."""

    def compute() -> StageOutcome:
        table = rank_candidates(pa.concat_tables(workspace.read_table(chunk.table) for chunk in plan.chunks))
        refused = pa.concat_tables(workspace.read_table(chunk.rejected) for chunk in plan.chunks).to_pylist()
        rejected = [Rejection(row["item"], row["reason"], row["retryable"]) for row in refused]
        seconds = sum(workspace.read_json(chunk.timing)["seconds"] for chunk in plan.chunks)
        counts = {"gap_too_large": len(plan.excluded), "not_asked_for": plan.not_asked}
        return StageOutcome(
            rows_in=sum(len(chunk.material_ids) for chunk in plan.chunks) + len(plan.excluded),
            accounted=len(table),
            tables={RESULT: table},
            rejected=[*plan.excluded, *rejected],
            counts=summarise(table) | counts | {"seconds_of_both_networks": round(seconds, 2)},
        )

    parts = [chunk.part for chunk in plan.chunks]
    excluded = [f"{rejection.item} {rejection.reason}" for rejection in plan.excluded]
    inputs = [*parts, *excluded, str(plan.not_asked)]
    return run_stage(
        workspace, STAGE, compute, code_version=CODE_VERSION, inputs=inputs, settings=settings, started=started
    )


def rank_candidates(table: pa.Table) -> pa.Table:
    """Number the unknown materials that the model does not abstain from, best score first, and sort the table so.

    Known materials and abstentions follow without a rank, by score. Equal scores stand in the order of their ids.
    """
    rows = table.to_pylist()
    rows.sort(key=lambda row: (_is_unranked(row), -row["score"], row["material_id"]))
    for place, row in enumerate(rows, start=1):
        row["rank"] = None if _is_unranked(row) else place
    return pa.Table.from_pylist(rows, schema=CANDIDATES)


def summarise(table: pa.Table) -> dict[str, Any]:
    """Counts worth showing of a ranked table."""
    rows = table.to_pylist()
    ranked = [row for row in rows if row["rank"] is not None]
    return {
        "screened": len(rows),
        "known": sum(row["known"] != "none" for row in rows),
        "abstained": sum(row["abstain"] for row in rows),
        "ranked": len(ranked),
        "above_2_kelvin": sum(row["tc_kelvin"] > 2 for row in ranked),
        "above_10_kelvin": sum(row["tc_kelvin"] > 10 for row in ranked),
        "both_networks_agree": sum(row["agree"] for row in ranked),
        "both_say_superconductor": sum(
            row["agree"] and row["probability"] >= SUPERCONDUCTOR_PROBABILITY for row in ranked
        ),
    }


def _shared_inputs(workspace: Workspace, settings: ScreeningSettings) -> list[str]:
    """What every material's answer depends on: code, networks, what is measured, the training set, the limits."""
    return [
        str(CODE_VERSION),
        latest_version(workspace, "bnas"),
        latest_version(workspace, "s2snet"),
        workspace.fingerprint(SUPERCONDUCTORS),
        workspace.fingerprint(INDEX),
        str(settings.max_distance),
        str(settings.coverage),
    ]


def _name_chunk(shared: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Chunk:
    hashes = [f"{row['material_id']} {row['sha256']} {row['bands_hash']}" for row in rows]
    return Chunk(hash_text(*shared, *hashes)[:24], tuple(row["material_id"] for row in rows))


def _read_crystals(workspace: Workspace, material_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    table = read_bands(workspace, ["material_id", "space_group", "structure"])
    chosen = table.filter(pc.is_in(table["material_id"], value_set=pa.array(material_ids, pa.string())))
    return {row["material_id"]: row for row in chosen.to_pylist()}


def _identify(entry: Mapping[str, Any], crystal: Mapping[str, Any], predictor: Predictor) -> dict[str, Any]:
    """What is known of a material before a network is asked."""
    amounts = element_amounts(entry["formula"])
    known = predictor.known.find(amounts)
    if known.match == "none" and entry["tc_kelvin"] is not None:  # its label came through an ordered, doped cell
        known = Known("doped", entry["supercon_formula"], entry["tc_kelvin"])
    return {
        "material_id": entry["material_id"],
        "formula": entry["formula"],
        "space_group": crystal["space_group"],
        "band_gap_ev": entry["band_gap_ev"],
        "structure": crystal["structure"],
        "hazards": find_hazards(list(amounts)),
        "known": known.match,
        "known_formula": known.formula,
        "known_tc_kelvin": known.tc_kelvin,
        "distance": float(predictor.distance([amounts])[0]),
    }


def _ask_bnas(
    bnas: Any, grids: np.ndarray, entries: Sequence[Mapping[str, Any]], held_out: HeldOut
) -> list[dict[str, Any]]:
    """Tc of each material: held out where it was trained on, so that no memory is shown as a prediction."""
    names = [entry["material_id"] for entry in entries]
    asked = [place for place, name in enumerate(names) if held_out.origin(name) != "out-of-fold"]
    formulas = [entries[place]["formula"] for place in asked]
    prediction = bnas.predict(grids[asked], formulas=formulas) if asked else None
    rows = {place: row for row, place in enumerate(asked)}
    answers = []
    for place, name in enumerate(names):
        answer: dict[str, Any] = dict.fromkeys(TC_COLUMNS)
        if place in rows:
            answer = {column: float(getattr(prediction, column)[rows[place]]) for column in TC_COLUMNS}
        else:
            answer["tc_kelvin"] = held_out.values[name]
        answers.append(answer | {"tc_origin": held_out.origin(name), "bnas_version": bnas.version})
    return answers


def _ask_s2snet(s2snet: Any, structure: str, entry: Mapping[str, Any], held_out: HeldOut) -> dict[str, Any]:
    """Probability of one material, held out where it was trained on."""
    origin = held_out.origin(entry["material_id"])
    common = {"probability_origin": origin, "s2snet_version": s2snet.version}
    if origin == "out-of-fold":
        return common | dict.fromkeys(PROBABILITY_COLUMNS) | {"probability": held_out.values[entry["material_id"]]}
    prediction = s2snet.predict([Structure.from_str(structure, fmt="json")])
    return common | {name: float(getattr(prediction, name)[0]) for name in PROBABILITY_COLUMNS}


def _judge(row: dict[str, Any], settings: ScreeningSettings) -> dict[str, Any]:
    """Add what follows from both answers, and round the numbers."""
    row = {name: round_significant(value) if isinstance(value, float) else value for name, value in row.items()}
    hot, likely = row["tc_kelvin"] >= SUPERCONDUCTOR_KELVIN, row["probability"] >= SUPERCONDUCTOR_PROBABILITY
    return row | {
        "agree": hot == likely,
        "abstain": row["distance"] > settings.max_distance,
        "score": round_significant(row["probability"] * row["tc_kelvin"]),
    }


def _is_unranked(row: Mapping[str, Any]) -> bool:
    return bool(row["known"] != "none" or row["abstain"])


@task(name="plan-screening")
def plan_chunks(workspace: str, settings: ScreeningSettings, chunk: int) -> Plan:
    """Name the chunks to screen."""
    return plan_screening(Workspace(workspace), settings, chunk)


@task(name="screen-chunk", task_run_name="screen-{chunk.part}", retries=2, retry_delay_seconds=[2, 10])
def screen_chunk(workspace: str, chunk: Chunk, settings: ScreeningSettings) -> str:
    """Screen one chunk unless its part is there; gives the part's name."""
    store = Workspace(workspace)
    if not store.exists(chunk.table):
        with stage_progress(STAGE, len(chunk.material_ids)) as advance:
            screen_to_part(store, chunk, settings, advance)
    return chunk.part


@task(name="finish-screening")
def finish_screening(
    workspace: str, plan: Plan, settings: ScreeningSettings, started: datetime | None = None
) -> StageReport:
    """Put the parts together, rank them, and write ``candidates/candidates.parquet``."""
    store = Workspace(workspace)
    return leave_summary(store, join_parts(store, plan, settings, started))
