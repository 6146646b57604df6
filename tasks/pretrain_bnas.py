"""Stage pretrain-bnas: BNAS restores hidden patches of grids, labelled or not (``models.bnas_pretraining``).

Grids are streamed from their shards once, brought to the network's input and kept in memory, or beyond
``IN_MEMORY`` bytes in a scratch file that is mapped. A killed run reads them again and goes on from its checkpoint.
"""

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from prefect import task
from pydantic import BaseModel, ConfigDict
from safetensors.torch import save
from torch import Tensor

from models.bnas import BnasConfig, prepare
from models.bnas_pretraining import RECIPES, HeldOutPatches, MaskedGrids, choose_pretraining, mirror_pairs, pretrain
from models.training import Recipe, TrainingLog, one_thread, resolve_device
from tasks.bnas_pretraining import NAME
from tasks.exceptions import InputError
from tasks.grid_loader import GridLoader
from tasks.logs import log_event
from tasks.model_store import model_folder, model_version, save_pretraining, without_nan
from tasks.progress import leave_summary, stage_progress
from tasks.settings import PretrainingSettings
from tasks.shards import read_index
from tasks.stages import StageOutcome, StageReport, hash_text, run_stage
from tasks.train_bnas import as_curves
from tasks.workspace import Workspace

STAGE = "pretrain-bnas"
CODE_VERSION = 1  # raised by hand when the same data and settings would give other weights
MIN_GRIDS = 10
IN_MEMORY = 8 * 2**30


class PretrainingPlan(BaseModel):
    """What is learnt, and where it goes."""

    model_config = ConfigDict(frozen=True)

    version: str
    data: str
    config: BnasConfig
    recipe: Recipe

    def file(self, name: str) -> str:
        """Name in the workspace of a file of this version."""
        return f"{model_folder(NAME, self.version)}/{name}"


def choose_network(settings: PretrainingSettings) -> tuple[BnasConfig, Recipe]:
    """The named network and recipe with the settings' epochs and seed; InputError for an unknown name."""
    if settings.config not in RECIPES:
        raise InputError(f"BNAS has no configuration {settings.config!r}; choose one of {', '.join(sorted(RECIPES))}")
    config, recipe = choose_pretraining(settings.config)
    changes = {"seed": settings.seed} | ({"epochs": settings.epochs} if settings.epochs else {})
    return config, recipe.model_copy(update=changes)


def make_plan(grids: Workspace, settings: PretrainingSettings) -> PretrainingPlan:
    """Check the grids and the settings at the door, and name the version."""
    resolve_device(settings.device)
    config, recipe = choose_network(settings)
    mirror_pairs(config.patches, settings.share)
    index = read_index(grids)
    divide(index, settings)
    data = hash_text(*(str(row) for row in index.select(["material_id", "chemical_system", "sha256"]).to_pylist()))
    asked = {"network": config.model_dump(), "recipe": recipe.model_dump(), "share": settings.share}
    version = model_version(
        data=data, config=asked | {"held_out": settings.held_out}, seed=settings.seed, code_version=CODE_VERSION
    )
    return PretrainingPlan(version=version, data=data, config=config, recipe=recipe)


def divide(index: pa.Table, settings: PretrainingSettings) -> tuple[list[str], list[str]]:
    """Materials to learn from, and those of a share of the chemical systems, held out for the error that is told.

    Raises
    ------
    InputError
        If there are too few grids, or all are of one chemical system.
    """
    systems = np.array(index["chemical_system"].to_pylist())
    known = np.unique(systems)
    if len(index) < MIN_GRIDS or len(known) < 2:
        raise InputError(
            f"A pre-training needs grids of at least {MIN_GRIDS} materials in 2 chemical systems, there are "
            f"{len(index)} in {len(known)}"
        )
    count = min(max(round(settings.held_out * len(known)), 1), len(known) - 1)
    aside = np.isin(systems, np.random.default_rng(settings.seed).permutation(known)[:count])
    ids = np.array(index["material_id"].to_pylist())
    return ids[~aside].tolist(), ids[aside].tolist()


@contextlib.contextmanager
def network_inputs(grids: Workspace, ids: Sequence[str], config: BnasConfig) -> Iterator[Tensor]:
    """The grids of these materials as the network takes them, (n, C, M, M, M), by material_id."""
    loader = GridLoader(grids, ids, device="cpu")
    shape = (len(loader.index), config.bands, *(config.mesh,) * 3)
    with contextlib.ExitStack() as stack:
        if np.prod(shape) * 4 <= IN_MEMORY:
            inputs = torch.empty(shape)
        else:
            file = stack.enter_context(tempfile.NamedTemporaryFile(prefix="meissner-pretraining-"))
            inputs = torch.from_numpy(np.memmap(file.name, dtype=np.float32, mode="w+", shape=shape))
        for batch in loader:
            inputs[torch.from_numpy(batch.rows)] = prepare(batch.energies, config)
        yield inputs


def learn(workspace: Workspace, grids: Workspace, settings: PretrainingSettings, plan: PretrainingPlan) -> None:
    """Pre-train and write weights, curves and metrics, unless they are there."""
    if workspace.exists(plan.file("metrics.json")):
        return
    learnt, aside = divide(read_index(grids), settings)
    checkpoint = workspace.local(plan.file("checkpoint")) if workspace.is_local else None
    with (
        stage_progress(STAGE, plan.recipe.epochs) as advance,
        network_inputs(grids, learnt, plan.config) as inputs,
        network_inputs(grids, aside, plan.config) as held_out,
        one_thread(),
        workspace.errors("write", plan.file("checkpoint")),
    ):
        state, log = pretrain(
            plan.config,
            plan.recipe,
            inputs,
            share=settings.share,
            held_out=held_out,
            device=settings.device,
            checkpoint=checkpoint,
            data=plan.data,
            curves=workspace.local(plan.file("tensorboard")) if workspace.is_local else None,
            advance=advance,
        )
        grids_aside = HeldOutPatches(MaskedGrids(held_out, plan.config.patch, settings.share))
        baselines = grids_aside.baselines(MaskedGrids(inputs, plan.config.patch, settings.share))
    workspace.write_bytes(plan.file("weights.safetensors"), save(state))
    for note in log.notes:
        log_event(note, level=logging.WARNING, stage=STAGE)
    workspace.write_table(plan.file("curves.parquet"), as_curves("pretraining", log))
    workspace.write_json(plan.file("metrics.json"), without_nan(as_metrics(log, baselines)))
    if checkpoint:
        checkpoint.unlink(missing_ok=True)


def as_metrics(log: TrainingLog, baselines: dict[str, float]) -> dict[str, Any]:
    """Errors on hidden patches of held-out grids: of the network, of plain answers, and how much less it is."""
    error, least = log.validations[-1][1], min(baselines.values())
    return {"error": error, "baselines": baselines, "less_than_best_baseline": 1 - error / least, "notes": log.notes}


def gather(
    workspace: Workspace, grids: Workspace, settings: PretrainingSettings, plan: PretrainingPlan
) -> StageOutcome:
    """Write what the version is, and the pointer last."""
    learnt, aside = divide(read_index(grids), settings)
    metrics = workspace.read_json(plan.file("metrics.json"))
    config = {
        "network": plan.config.model_dump(),
        "recipe": plan.recipe.model_dump(),
        "settings": settings.model_dump(mode="json"),
        "data": plan.data,
        "code_version": CODE_VERSION,
    }
    files = save_pretraining(workspace, NAME, plan.version, config=config, learnt=learnt, held_out=aside)
    counts = {"version": plan.version, "learnt": len(learnt), "held_out": len(aside)}
    counts |= {"error": round(metrics["error"], 5)}
    counts |= {name: round(value, 5) for name, value in metrics["baselines"].items()}
    total = len(learnt) + len(aside)
    return StageOutcome(rows_in=total, accounted=total, counts=counts, files=files)


@task(name="plan-bnas-pretraining")
def plan_pretraining(grids: str, settings: PretrainingSettings) -> PretrainingPlan:
    """Check the grids and name the version."""
    return make_plan(Workspace(grids), settings)


@task(name="pretrain-bnas")
def pretrain_network(workspace: str, grids: str, settings: PretrainingSettings, plan: PretrainingPlan) -> None:
    """Let the network restore hidden patches."""
    learn(Workspace(workspace), Workspace(grids), settings, plan)


@task(name="finish-bnas-pretraining")
def finish_pretraining(
    workspace: str,
    grids: str,
    settings: PretrainingSettings,
    plan: PretrainingPlan,
    started: datetime | None = None,
) -> StageReport:
    """Store what was learnt; the pointer to the latest version is written last."""
    store = Workspace(workspace)
    report = run_stage(
        store,
        STAGE,
        lambda: gather(store, Workspace(grids), settings, plan),
        code_version=CODE_VERSION,
        inputs=[plan.data, plan.version],
        settings=settings,
        started=started,
    )
    return leave_summary(store, report)
