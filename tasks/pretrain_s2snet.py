"""Stage pretrain-s2snet: S2SNet guesses hidden elements of crystals, measured or not (``models.s2snet_pretraining``).

A killed run goes on from its checkpoint, and a finished one is not run again.
"""

import logging
from dataclasses import asdict
from datetime import datetime

import numpy as np
from prefect import task
from pydantic import BaseModel, ConfigDict
from safetensors.torch import save

from models.s2snet import S2SNetConfig
from models.s2snet_pretraining import HiddenElements, can_hide, masked_accuracy, pretrain, trunk_state
from models.training import Recipe, one_thread, resolve_device
from tasks.exceptions import InputError
from tasks.logs import log_event
from tasks.model_store import model_folder, model_version, save_pretraining
from tasks.progress import leave_summary, stage_progress
from tasks.s2snet_data import Crystals, choose_network, crystals_hash, read_crystals
from tasks.s2snet_pretraining import NAME
from tasks.settings import S2SNetPretrainingSettings, S2SNetTrainingSettings
from tasks.stages import StageOutcome, StageReport, run_stage
from tasks.train_bnas import as_curves
from tasks.workspace import Workspace

STAGE = "pretrain-s2snet"
CODE_VERSION = 2  # raised by hand when the same data and settings would give other weights
MIN_CRYSTALS = 10


class PretrainingPlan(BaseModel):
    """What is learnt, and where it goes."""

    model_config = ConfigDict(frozen=True)

    version: str
    data: str
    config: S2SNetConfig
    recipe: Recipe

    def file(self, name: str) -> str:
        """Name in the workspace of a file of this version."""
        return f"{model_folder(NAME, self.version)}/{name}"


def choose_pretraining(settings: S2SNetPretrainingSettings) -> tuple[S2SNetConfig, Recipe]:
    """The named network, and its recipe with the settings' epochs and seed; InputError for an unknown name."""
    named = choose_network(S2SNetTrainingSettings(config=settings.config))
    changes = {"seed": settings.seed} | ({"epochs": settings.epochs} if settings.epochs else {})
    return named.network, (named.pretraining or named.finetuning).model_copy(update=changes)


def make_plan(crystals: Crystals, settings: S2SNetPretrainingSettings) -> PretrainingPlan:
    """Check the crystals and the settings at the door, and name the version."""
    resolve_device(settings.device)
    config, recipe = choose_pretraining(settings)
    _, aside = divide(crystals, settings)
    if not any(can_hide(crystals.graphs[row], settings.masking) for row in aside):
        raise InputError(
            f"In none of the {len(aside)} held-out crystals an element can be hidden beside another: each has one atom "
            "or element. Choose another --seed, or hold out a larger share (s2snet_pretraining.held_out)"
        )
    data = crystals_hash(crystals)
    asked = {"network": config.model_dump(), "recipe": recipe.model_dump(), "masking": settings.masking}
    version = model_version(
        data=data, config=asked | {"held_out": settings.held_out}, seed=settings.seed, code_version=CODE_VERSION
    )
    return PretrainingPlan(version=version, data=data, config=config, recipe=recipe)


def divide(crystals: Crystals, settings: S2SNetPretrainingSettings) -> tuple[np.ndarray, np.ndarray]:
    """Rows to learn from, and those of a share of the chemical systems, held out for the figures that are told.

    Raises
    ------
    InputError
        If there are too few crystals, or all are of one chemical system.
    """
    systems = np.array(crystals.rows.column("chemical_system"))
    known = np.unique(systems)
    if len(systems) < MIN_CRYSTALS or len(known) < 2:
        raise InputError(
            f"A pre-training needs at least {MIN_CRYSTALS} crystals in 2 chemical systems, there are {len(systems)} "
            f"in {len(known)}"
        )
    count = min(max(round(settings.held_out * len(known)), 1), len(known) - 1)
    aside = np.isin(systems, np.random.default_rng(settings.seed).permutation(known)[:count])
    return np.flatnonzero(~aside), np.flatnonzero(aside)


def learn(workspace: Workspace, settings: S2SNetPretrainingSettings, plan: PretrainingPlan) -> None:
    """Pre-train and write weights, curves and figures, unless they are there."""
    if workspace.exists(plan.file("metrics.json")):
        return
    crystals = read_crystals(workspace, plan.config)
    learnt, aside = (
        HiddenElements([crystals.graphs[row] for row in rows], settings.masking) for rows in divide(crystals, settings)
    )
    checkpoint = workspace.local(plan.file("checkpoint")) if workspace.is_local else None
    with (
        stage_progress(STAGE, plan.recipe.epochs) as advance,
        one_thread(),
        workspace.errors("write", plan.file("checkpoint")),
    ):
        network, log = pretrain(
            plan.config,
            plan.recipe,
            learnt.crystals,
            masking=settings.masking,
            device=settings.device,
            devices=settings.devices,
            checkpoint=checkpoint,
            curves=workspace.local(plan.file("tensorboard")) if workspace.is_local else None,
            advance=advance,
        )
        found = masked_accuracy(network, learnt, aside, settings.seed)
    workspace.write_bytes(plan.file("weights.safetensors"), save(trunk_state(network)))
    workspace.write_table(plan.file("curves.parquet"), as_curves("pretraining", log))
    for note in log.notes:
        log_event(note, level=logging.WARNING, stage=STAGE)
    workspace.write_json(plan.file("metrics.json"), {"accuracy": asdict(found), "notes": log.notes})
    if checkpoint:
        checkpoint.unlink(missing_ok=True)


def gather(workspace: Workspace, settings: S2SNetPretrainingSettings, plan: PretrainingPlan) -> StageOutcome:
    """Write what the version is, and the pointer last."""
    crystals = read_crystals(workspace, plan.config)
    ids = np.array(crystals.rows.column("material_id"))
    learnt, aside = (ids[rows].tolist() for rows in divide(crystals, settings))
    found = workspace.read_json(plan.file("metrics.json"))["accuracy"]
    config = {
        "network": plan.config.model_dump(),
        "recipe": plan.recipe.model_dump(),
        "settings": settings.model_dump(mode="json"),
        "data": plan.data,
        "code_version": CODE_VERSION,
    }
    files = save_pretraining(workspace, NAME, plan.version, config=config, learnt=learnt, held_out=aside)
    counts = {"version": plan.version, "learnt": len(learnt), "held_out": len(aside), "hidden_atoms": found["atoms"]}
    counts |= {"accuracy": round(found["network"], 4), "most_frequent": round(found["frequency"], 4)}
    return StageOutcome(
        rows_in=len(ids) + len(crystals.rejected),
        accounted=len(ids),
        rejected=crystals.rejected,
        counts=counts,
        files=files,
    )


@task(name="plan-s2snet-pretraining")
def plan_pretraining(workspace: str, settings: S2SNetPretrainingSettings) -> PretrainingPlan:
    """Check the crystals and name the version."""
    return make_plan(read_crystals(Workspace(workspace), choose_pretraining(settings)[0]), settings)


@task(name="pretrain-s2snet")
def pretrain_network(workspace: str, settings: S2SNetPretrainingSettings, plan: PretrainingPlan) -> None:
    """Let the network guess hidden elements."""
    learn(Workspace(workspace), settings, plan)


@task(name="finish-s2snet-pretraining")
def finish_pretraining(
    workspace: str, settings: S2SNetPretrainingSettings, plan: PretrainingPlan, started: datetime | None = None
) -> StageReport:
    """Store what was learnt; the pointer to the latest version is written last."""
    store = Workspace(workspace)
    report = run_stage(
        store,
        STAGE,
        lambda: gather(store, settings, plan),
        code_version=CODE_VERSION,
        inputs=[plan.data, plan.version],
        settings=settings,
        started=started,
    )
    return leave_summary(store, report)
