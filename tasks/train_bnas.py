"""Stage train-bnas: bands to Tc, judged on held-out folds beside the baselines, then an ensemble for prediction.

The stage is cut into parts: each fold of each cross-validation, its baselines, each network of the ensemble. A part
writes one file in the version's folder and is skipped where that file is there, so a kill loses at most the parts that
were under way, and of these no more than since their last checkpoint.
"""

import logging
from datetime import datetime
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from prefect import task
from pymatgen.core.structure import Structure
from safetensors.torch import load, save

from models.band_features import band_features, forest_predictions
from models.baselines import describe, regression_baselines
from models.bnas_training import kelvin, log_labels, predict_images, train_network
from models.calibration import coverage_curve
from models.fusion import FUSION, TWINS, fusion_predictions
from models.metrics import r2_gain
from models.splits import Fold
from models.training import TrainingLog, one_thread
from tasks.bnas_data import (
    CODE_VERSION,
    NAME,
    Part,
    TrainingPlan,
    fold_of,
    labelled_grids,
    labelled_inputs,
    make_plan,
    read_labelled,
)
from tasks.bnas_ensemble import BnasEnsemble, BnasPrediction, calibration_residuals, load_bnas
from tasks.bnas_pretraining import NAME as PRETRAINING
from tasks.bnas_pretraining import pretrained_weights, pretraining_config
from tasks.epochs import counted_epochs
from tasks.folds import Labelled, cross_validations
from tasks.leakage import audit
from tasks.logs import log_event
from tasks.model_store import model_folder, save_model
from tasks.progress import leave_summary
from tasks.schemas import CURVES, FOLDS, PREDICTIONS
from tasks.scores import score_families, score_models, temperature_scores
from tasks.settings import TrainingSettings
from tasks.stages import StageOutcome, StageReport, hash_text, run_stage
from tasks.training_figures import write_training_figures
from tasks.workers import close_workers, make_part
from tasks.workspace import Workspace

__all__ = ["BnasEnsemble", "BnasPrediction", "load_bnas"]

STAGE = "train-bnas"
ORDERED = "crystals/ordered.parquet"
BAND_FOREST = "band features, random forest"
HEADLINE = "r2_log_all"


def part_seed(seed: int, name: str) -> int:
    """Seed of one part of a training, 31 bits."""
    return int(hash_text(str(seed), name)[:8], 16) % 2**31


@lru_cache(maxsize=1)
def _features(url: str, data: str) -> np.ndarray:
    return band_features(labelled_grids(url, data)[1])


@lru_cache(maxsize=1)
def _structures(url: str, data: str) -> list[Structure] | None:
    """The crystals of the labelled materials, for the baselines that see the cell; None where one is missing."""
    workspace = Workspace(url)
    if not workspace.exists(ORDERED):
        return None
    rows = workspace.read_table(ORDERED, ["material_id", "structure"]).to_pylist()
    known = {row["material_id"]: row["structure"] for row in rows}
    found = [known.get(name) for name in labelled_grids(url, data)[0].column("material_id")]
    return [Structure.from_str(str(text), fmt="json") for text in found] if all(found) else None


def train_part(url: str, settings: TrainingSettings, plan: TrainingPlan, part: Part) -> None:
    """Train the network of a fold and write its predictions, or a network of the ensemble and write its weights."""
    workspace = Workspace(url)
    labelled, inputs = labelled_inputs(url, plan.data, plan.config)
    fold = fold_of(labelled, settings, part) if part.kind == "fold" else None
    train = fold.train if fold else np.arange(len(labelled.table))
    checkpoint = workspace.local(f"{part.file}.checkpoint") if workspace.is_local else None
    counted = counted_epochs(workspace, part.file, plan.recipe.epochs)
    with one_thread(), workspace.errors("write", f"{part.file}.checkpoint"), counted as advance:
        network, log = train_network(
            plan.config,
            plan.recipe.model_copy(update={"seed": part_seed(settings.seed, part.name)}),
            inputs[torch.from_numpy(train)],
            labelled.tc_kelvin[train],
            held_out=(inputs[torch.from_numpy(fold.test)], labelled.tc_kelvin[fold.test]) if fold else None,
            start=pretrained_weights(workspace, plan.pretrained) if plan.pretrained else None,
            device=settings.device,
            devices=settings.devices,
            checkpoint=checkpoint,
            data=plan.data,
            advance=advance,
            curves=workspace.local(f"{curves_folder(plan.version)}/{part.name}") if workspace.is_local else None,
        )
        if fold:
            answers = predict_images(
                [network], inputs[torch.from_numpy(fold.test)], settings.device, tell=log.notes.append
            )
            predicted = kelvin(answers.mean(axis=(0, 1)))
            _write_log(workspace, part, log)
            workspace.write_table(part.file, as_predictions(labelled, part.split, fold, {NAME: predicted}))
        else:
            _write_log(workspace, part, log)
            state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
            workspace.write_bytes(part.file, save(state))
    if checkpoint:
        checkpoint.unlink(missing_ok=True)


def _write_log(workspace: Workspace, part: Part, log: TrainingLog) -> None:
    workspace.write_table(curves_file(part), as_curves(part.name, log))
    if log.notes:
        workspace.write_json(notes_file(part), log.notes)


def curves_folder(version: str) -> str:
    """Where TensorBoard finds the curves of a training's parts."""
    return f"{model_folder(NAME, version)}/tensorboard"


def curves_file(part: Part) -> str:
    """The curves of one part, until they are put together."""
    return f"{part.file}.curves"


def notes_file(part: Part) -> str:
    """What was out of the ordinary in the training of a part, such as want of memory; not there if nothing was."""
    return f"{part.file}.notes.json"


def read_notes(workspace: Workspace, part: Part) -> list[str]:
    """The sentences of ``notes_file``."""
    return list(workspace.read_json(notes_file(part))) if workspace.exists(notes_file(part)) else []


def as_curves(part: str, log: TrainingLog) -> pa.Table:
    """Losses and learning rate by epoch (CURVES)."""
    validations = dict(log.validations)
    rows = [
        {"part": part, "epoch": epoch, "loss": loss, "validation_loss": validations.get(epoch), "learning_rate": rate}
        for epoch, (loss, rate) in enumerate(zip(log.losses, log.learning_rates, strict=True), start=1)
    ]
    return pa.Table.from_pylist(rows, schema=CURVES)


def score_part(url: str, settings: TrainingSettings, plan: TrainingPlan, part: Part) -> None:
    """Fit every baseline on a fold and write its predictions."""
    labelled, _grids = labelled_grids(url, plan.data)
    fold, tc = fold_of(labelled, settings, part), labelled.tc_kelvin
    seed = part_seed(settings.seed, part.name)
    found = regression_baselines(labelled.formulas, _structures(url, plan.data), tc, fold, seed)
    features, label = _features(url, plan.data), log_labels(tc)
    found[BAND_FOREST] = kelvin(forest_predictions(features, label, fold.train, fold.test, seed))
    materials = describe(labelled.formulas, _structures(url, plan.data))
    found[FUSION] = kelvin(fusion_predictions(materials, features, label, fold, seed))
    Workspace(url).write_table(part.file, as_predictions(labelled, part.split, fold, found))


def as_predictions(labelled: Labelled, split: str, fold: Fold, found: dict[str, np.ndarray]) -> pa.Table:
    """Predictions (kelvin) on a fold's test materials as a table (PREDICTIONS), model by model."""
    ids, formulas, tc = labelled.column("material_id"), labelled.column("formula"), labelled.tc_kelvin
    rows = [
        {
            "split": split,
            "fold": fold.name,
            "model": model,
            "material_id": ids[row],
            "formula": formulas[row],
            "tc_kelvin": float(tc[row]),
            "tc_predicted_kelvin": float(value),
            "superconductor": bool(tc[row] > 0),
        }
        for model, values in found.items()
        for row, value in zip(fold.test, values, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=PREDICTIONS)


def as_fold_table(labelled: Labelled, folds: dict[str, list[Fold]]) -> pa.Table:
    """Who stood on which side (FOLDS)."""
    ids = labelled.column("material_id")
    rows = [
        {"split": split, "fold": fold.name, "material_id": ids[row], "side": side}
        for split, members in folds.items()
        for fold in members
        for side, numbers in (("train", fold.train), ("test", fold.test))
        for row in numbers
    ]
    return pa.Table.from_pylist(rows, schema=FOLDS)


def score_ablation(table: pa.Table, seed: int) -> dict[str, dict[str, Any]]:
    """What the bands add to composition and crystal, by split: the gain in R2 of ln(Tc + 1), with its interval."""
    gains = {}
    for split in table["split"].unique().to_pylist():
        rows = table.filter(pc.equal(table["split"], split)).sort_by("material_id")
        twin = next(name for name in TWINS if name in set(rows["model"].to_pylist()))
        with_bands, without = (rows.filter(pc.equal(rows["model"], model)) for model in (FUSION, twin))
        predicted = [part["tc_predicted_kelvin"].to_numpy() for part in (with_bands, without)]
        gains[split] = r2_gain(with_bands["tc_kelvin"].to_numpy(), *predicted, seed=seed).as_json()
    return gains


def seen_in_pretraining(workspace: Workspace, plan: TrainingPlan, table: pa.Table) -> dict[str, Any]:
    """How many test materials of each split the pre-training has learnt from, without their labels."""
    if plan.pretrained is None:
        return {}
    known = set(pretraining_config(workspace, plan.pretrained)["material_ids"])
    own = table.filter(pc.equal(table["model"], NAME)).select(["split", "material_id"]).to_pylist()
    seen = dict.fromkeys(table["split"].unique().to_pylist(), 0)
    for row in own:
        seen[row["split"]] += row["material_id"] in known
    return {"pretraining": {"name": PRETRAINING, "version": plan.pretrained, "test_materials_seen": seen}}


def gather(workspace: Workspace, settings: TrainingSettings, plan: TrainingPlan) -> StageOutcome:
    """Put the parts together: scores, calibration, and the stored model."""
    labelled = read_labelled(workspace)
    folds = cross_validations(labelled, settings)
    table = pa.concat_tables(workspace.read_table(part.file) for part in plan.folds + plan.baselines)
    split, errors, names = calibration_residuals(table)
    scores, positive = score_models(table, temperature_scores, settings.seed), int((labelled.tc_kelvin > 0).sum())
    metrics = {
        "scores": scores,
        "families": score_families(table, temperature_scores, settings.seed),
        "bands_add": score_ablation(table, settings.seed),
        "leakage": audit(labelled, folds),
        "calibration": {"split": split, "materials": len(errors), "coverage": coverage_curve(errors, names)},
        "materials": len(labelled.table),
        "superconductors": positive,
        "notes": {part.name: notes for part in plan.folds + plan.members if (notes := read_notes(workspace, part))},
        **seen_in_pretraining(workspace, plan, table),
    }
    config = {
        "network": plan.config.model_dump(),
        "recipe": plan.recipe.model_dump(),
        "settings": settings.model_dump(mode="json"),
        "data": plan.data,
        "pretrained": plan.pretrained,
        "code_version": CODE_VERSION,
    }
    files = save_model(
        workspace,
        NAME,
        plan.version,
        members=[load(workspace.read_bytes(part.file)) for part in plan.members],
        config=config,
        metrics=metrics,
        predictions=table,
        folds=as_fold_table(labelled, folds),
    )
    curves = [workspace.read_table(curves_file(part)) for part in plan.folds + plan.members]
    files.append(f"{model_folder(NAME, plan.version)}/curves.parquet")
    workspace.write_table(files[-1], pa.concat_tables(curves))
    counts = {"version": plan.version, "materials": len(labelled.table), "superconductors": positive}
    counts |= {f"{HEADLINE} {name}": round(found[NAME][HEADLINE]["value"], 3) for name, found in scores.items()}
    return StageOutcome(rows_in=len(labelled.table), accounted=len(labelled.table), counts=counts, files=files)


def _run_part(workspace: str, settings: TrainingSettings, plan: TrainingPlan, part: Part, processes: int) -> str:
    work = score_part if part.kind == "baselines" else train_part
    made = make_part(workspace, part.file, work, settings, plan, part, device=settings.device, processes=processes)
    for note in read_notes(Workspace(workspace), part):
        log_event(note, level=logging.WARNING, stage=STAGE, item=part.name)
    return made


@task(name="plan-bnas")
def plan_training(workspace: str, settings: TrainingSettings) -> TrainingPlan:
    """Check the labelled grids, make and audit the folds, name the parts."""
    return make_plan(Workspace(workspace), settings)


@task(name="train-bnas-fold", task_run_name="bnas-{part.name}")
def train_fold(workspace: str, settings: TrainingSettings, plan: TrainingPlan, part: Part, processes: int) -> str:
    """Train on one fold and predict its held-out materials."""
    return _run_part(workspace, settings, plan, part, processes)


@task(name="score-bnas-baselines", task_run_name="baselines-{part.name}")
def score_baselines(workspace: str, settings: TrainingSettings, plan: TrainingPlan, part: Part, processes: int) -> str:
    """Fit the baselines on one fold and predict its held-out materials."""
    return _run_part(workspace, settings, plan, part, processes)


@task(name="train-bnas-member", task_run_name="bnas-{part.name}")
def train_member(workspace: str, settings: TrainingSettings, plan: TrainingPlan, part: Part, processes: int) -> str:
    """Train one network of the ensemble on all labelled materials."""
    return _run_part(workspace, settings, plan, part, processes)


@task(name="finish-bnas")
def finish_training(
    workspace: str, settings: TrainingSettings, plan: TrainingPlan, started: datetime | None = None
) -> StageReport:
    """Score, calibrate and store the ensemble; the pointer to the latest version is written last."""
    close_workers()
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
    write_training_figures(store, NAME)
    return leave_summary(store, report)
