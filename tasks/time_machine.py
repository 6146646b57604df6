"""Stage "time-machine": train on what was reported before a year, rank the rest, and count what was found later.

The stage is cut into parts, a year and a kind of model each. A part writes one file, named by a hash of everything it
depends on, and is skipped where that file is there; networks go on from their last checkpoint. ``look_back`` in
``tasks.time_machine_data`` says who stands in the training and who in the pool.
"""

from collections.abc import Callable, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from prefect import task
from pydantic import BaseModel, ConfigDict

from models.enrichment import enrichment, rank_pool
from models.training import resolve_device
from tasks.bnas_data import choose_network as choose_bnas
from tasks.events import StageEvent, publish
from tasks.progress import leave_summary, leave_table
from tasks.s2snet_data import choose_network as choose_s2snet
from tasks.schemas import TIME_MACHINE, TIME_MACHINE_LISTS
from tasks.settings import S2SNetTrainingSettings, TimeMachineSettings, TrainingSettings
from tasks.shards import INDEX
from tasks.stages import Rejection, StageOutcome, StageReport, hash_text, run_stage
from tasks.time_machine_data import History, Moment, choose_years, hash_seed, look_back, read_history
from tasks.time_machine_models import (
    NETWORKS,
    ask_band_baselines,
    ask_bnas,
    ask_crystal_baselines,
    ask_s2snet,
    training_settings,
)
from tasks.workers import close_workers, make_part
from tasks.workspace import Workspace

STAGE = "time-machine"
CODE_VERSION = 3
OUTPUT = "validation/time_machine.parquet"
LISTS = "validation/time_machine_lists.parquet"
FOLDER = "validation/time-machine"
BOTH = "both networks, P × Tc"
LISTED = 100  # places of each list that are kept
SCORES = pa.schema(
    [
        pa.field("model", pa.string(), nullable=False),
        pa.field("material_id", pa.string(), nullable=False),
        pa.field("score", pa.float64(), nullable=False),
    ]
)

Inputs = Literal["crystals", "bands"]


class Part(BaseModel):
    """A year and the models of one kind."""

    model_config = ConfigDict(frozen=True)

    year: int
    inputs: Inputs
    kind: Literal["baselines", "bnas", "s2snet"]
    file: str

    @property
    def name(self) -> str:
        """Name for people, such as ``1990-s2snet``."""
        return f"{self.year}-{self.inputs}-{self.kind}" if self.kind == "baselines" else f"{self.year}-{self.kind}"


class TimeMachinePlan(BaseModel):
    """Years and parts; small enough to pass between tasks."""

    model_config = ConfigDict(frozen=True)

    data: str
    years: tuple[int, ...]
    refused: tuple[Rejection, ...]
    parts: tuple[Part, ...]


def make_plan(workspace: Workspace, settings: TimeMachineSettings) -> TimeMachinePlan:
    """Choose the years and name the parts.

    Raises
    ------
    InputError
        If no year has enough reports before and after it, or a network has no such configuration.
    """
    resolve_device(settings.device)
    choose_bnas(cast(TrainingSettings, training_settings(settings, "bnas")))
    choose_s2snet(cast(S2SNetTrainingSettings, training_settings(settings, "s2snet")))
    history = read_history(workspace, settings)
    years, refused = choose_years(history, settings)
    grids = workspace.fingerprint(INDEX) if history.with_bands.any() else ""
    data = hash_text(history.fingerprint, grids)
    parts = []
    for year in years:
        moment = look_back(history, year, settings.background, settings.seed)
        parts += [_part(settings, data, year, "crystals", "baselines")]
        parts += [_part(settings, data, year, "crystals", "s2snet")] if "s2snet" in settings.networks else []
        if not history.with_bands.any():
            continue
        if problem := _bands_problem(moment.restrict(history.with_bands), settings):
            refused.append(Rejection(f"{year}, bands", problem))
            continue
        parts += [_part(settings, data, year, "bands", "baselines")]
        parts += [_part(settings, data, year, "bands", "bnas")] if "bnas" in settings.networks else []
    return TimeMachinePlan(data=data, years=tuple(years), refused=tuple(refused), parts=tuple(parts))


def run_part(url: str, settings: TimeMachineSettings, part: Part, data: str) -> None:
    """Train the models of a part and write what they say of the pool (SCORES)."""
    workspace = Workspace(url)
    history, moment = moment_of(url, settings, part.year, part.inputs, data)
    seed = hash_seed(settings.seed, part.name)
    work: Mapping[str, Callable[..., dict[str, np.ndarray]]] = {
        "bnas": ask_bnas,
        "s2snet": ask_s2snet,
        "baselines": ask_band_baselines if part.inputs == "bands" else ask_crystal_baselines,
    }
    found = work[part.kind](workspace, settings, part.file, history, moment, seed)
    names = history.column("material_id")
    rows = [
        {"model": model, "material_id": names[row], "score": float(value)}
        for model, values in found.items()
        for row, value in zip(moment.pool, values, strict=True)
    ]
    workspace.write_table(part.file, pa.Table.from_pylist(rows, schema=SCORES))


@lru_cache(maxsize=1)
def history_of(url: str, settings: TimeMachineSettings, _data: str) -> History:
    """The reports of a workspace, read once a process for one state of the data."""
    return read_history(Workspace(url), settings)


def moment_of(url: str, settings: TimeMachineSettings, year: int, inputs: Inputs, data: str) -> tuple[History, Moment]:
    """The reports and what a year knew of the materials that have such inputs."""
    history = history_of(url, settings, data)
    moment = look_back(history, year, settings.background, settings.seed)
    return history, moment.restrict(history.with_bands) if inputs == "bands" else moment


def judge(workspace: Workspace, settings: TimeMachineSettings, plan: TimeMachinePlan) -> dict[str, pa.Table]:
    """Enrichment of every list (TIME_MACHINE), and the first places of each (TIME_MACHINE_LISTS)."""
    judged, listed = [], []
    for year in plan.years:
        parts = [part for part in plan.parts if part.year == year]
        for inputs in sorted({part.inputs for part in parts}, reverse=True):
            history, moment = moment_of(workspace.url, settings, year, inputs, plan.data)
            for model, scores in _all_scores(workspace, parts, inputs, history, moment).items():
                order = rank_pool(scores, hash_seed(settings.seed, year, inputs, model))
                common = {"year": year, "inputs": inputs, "model": model}
                judged += [common | row for row in _judge_list(history, moment, order, settings)]
                listed += [common | row for row in _first_places(history, moment, order, scores)]
    return {
        OUTPUT: pa.Table.from_pylist(judged, schema=TIME_MACHINE),
        LISTS: pa.Table.from_pylist(listed, schema=TIME_MACHINE_LISTS),
    }


def gather(workspace: Workspace, settings: TimeMachineSettings, plan: TimeMachinePlan) -> StageOutcome:
    """The tables, and how many years are known."""
    tables = judge(workspace, settings, plan)
    history = history_of(workspace.url, settings, plan.data)
    superconducts = history.tc_kelvin > 0
    counts = {
        "years": len(plan.years),
        "superconducting_materials": int(superconducts.sum()),
        "with_a_year": int((superconducts & ~np.isnan(history.years)).sum()),
        "lists": len(tables[OUTPUT]),
    }
    wanted = len(plan.years) + len(plan.refused)
    return StageOutcome(wanted, len(plan.years), tables=tables, rejected=plan.refused, counts=counts)


def _part(settings: TimeMachineSettings, data: str, year: int, inputs: Inputs, kind: Any) -> Part:
    own = {kind: getattr(settings, kind), "epochs": settings.epochs} if kind in NETWORKS else {}
    asked = settings.model_dump(include={"year_table", "background", "seed"}) | own
    key = hash_text(str(CODE_VERSION), data, str(year), inputs, kind, str(sorted(asked.items(), key=str)))
    return Part(year=year, inputs=inputs, kind=kind, file=f"{FOLDER}/{year}-{inputs}-{kind}-{key[:12]}.parquet")


def _bands_problem(moment: Moment, settings: TimeMachineSettings) -> str:
    """Why the materials with bands cannot be judged in a year, or nothing."""
    trained, found = int((moment.tc_kelvin > 0).sum()), int((~np.isnan(moment.found)).sum())
    if trained >= settings.min_trained and found >= settings.min_found and trained < len(moment.train):
        return ""
    return f"{trained} superconductors with bands were reported before, {found} of {len(moment.pool)} were found later"


def _all_scores(
    workspace: Workspace, parts: list[Part], inputs: Inputs, history: History, moment: Moment
) -> dict[str, np.ndarray]:
    """Scores (pool,) of each model that read such inputs; for bands also the product of both networks."""
    ids = history.column("material_id")
    names = [ids[row] for row in moment.pool]

    def scores_of(part: Part) -> dict[str, np.ndarray]:
        table = workspace.read_table(part.file)
        found = {}
        for model in table["model"].unique().to_pylist():
            rows = table.filter(pc.equal(table["model"], model))
            values = dict(zip(rows["material_id"].to_pylist(), rows["score"].to_pylist(), strict=True))
            found[model] = np.array([values[name] for name in names])
        return found

    found: dict[str, np.ndarray] = {}
    for part in sorted((one for one in parts if one.inputs == inputs), key=lambda one: one.kind == "baselines"):
        found |= scores_of(part)
    other = next((part for part in parts if part.kind == "s2snet"), None)
    if inputs == "bands" and NETWORKS["bnas"] in found and other:
        probability = scores_of(other)[NETWORKS["s2snet"]]
        product = probability * np.maximum(found[NETWORKS["bnas"]], 0.0)
        found = {BOTH: product, NETWORKS["s2snet"]: probability} | found
    return found


def _judge_list(
    history: History, moment: Moment, order: np.ndarray, settings: TimeMachineSettings
) -> list[dict[str, Any]]:
    """Rows of TIME_MACHINE of one list, over the whole pool and over what is of a new chemical system."""
    systems = history.systems
    known = {systems[row] for row in moment.train}
    new = np.array([systems[row] not in known for row in moment.pool[order]], dtype=bool)
    found = ~np.isnan(moment.found[order])
    common = {
        "trained": len(moment.train),
        "trained_superconductors": int((moment.tc_kelvin > 0).sum()),
        "background": moment.background,
    }
    rows = []
    for pool, ranked in {"all": found, "new systems": found[new]}.items():
        tops = [top for top in settings.top if top < len(ranked)] if ranked.any() else []
        for top in tops:
            score = enrichment(ranked, top, seed=settings.seed)
            rows.append(
                common
                | {
                    "pool": pool,
                    "top": top,
                    "hits": score.hits,
                    "expected": score.expected,
                    "enrichment": score.enrichment,
                    "enrichment_low": score.low,
                    "enrichment_high": score.high,
                    "enrichment_largest": score.largest,
                    "p_value": score.p_value,
                    "pool_materials": len(ranked),
                    "pool_found": int(ranked.sum()),
                }
            )
    return rows


def _first_places(history: History, moment: Moment, order: np.ndarray, scores: np.ndarray) -> list[dict[str, Any]]:
    names, formulas = history.column("material_id"), history.column("formula")
    return [
        {
            "rank": rank,
            "material_id": names[moment.pool[place]],
            "formula": formulas[moment.pool[place]],
            "score": float(scores[place]),
            "year_found": None if np.isnan(moment.found[place]) else int(moment.found[place]),
        }
        for rank, place in enumerate(order[:LISTED], start=1)
    ]


@task(name="plan-time-machine")
def plan_time_machine(workspace: str, settings: TimeMachineSettings) -> TimeMachinePlan:
    """Choose the years that the reports allow and name the parts."""
    return make_plan(Workspace(workspace), settings)


@task(name="time-machine-part", task_run_name="time-machine-{part.name}")
def run_time_machine_part(
    workspace: str, settings: TimeMachineSettings, plan: TimeMachinePlan, part: Part, processes: int
) -> str:
    """Do a part in a worker unless its file is there, and tell how far the stage is."""
    store, device = Workspace(workspace), settings.device
    file = make_part(workspace, part.file, run_part, settings, part, plan.data, device=device, processes=processes)
    publish(StageEvent(STAGE, sum(store.exists(other.file) for other in plan.parts), len(plan.parts)))
    return file


@task(name="finish-time-machine")
def finish_time_machine(
    workspace: str, settings: TimeMachineSettings, plan: TimeMachinePlan, started: datetime | None = None
) -> StageReport:
    """Judge every list and write both tables."""
    close_workers()
    store = Workspace(workspace)
    report = run_stage(
        store,
        STAGE,
        lambda: gather(store, settings, plan),
        code_version=CODE_VERSION,
        inputs=[plan.data, *(part.file for part in plan.parts)],
        settings=settings,
        started=started,
    )
    leave_table("time-machine", store.read_table(OUTPUT).to_pylist(), "Enrichment of what was found later")
    return leave_summary(store, report)
