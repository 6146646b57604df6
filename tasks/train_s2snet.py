"""Stage train-s2snet: crystal structure to superconductor or not, judged on held-out folds beside the baselines.

The stage is cut into parts: each fold of each cross-validation, its baselines, each network of the ensemble. A part
writes one file in the version's folder and is skipped where that file is there, so a kill loses at most the parts that
were under way, and of these no more than since their last checkpoint.

Networks are pre-trained per fold, on crystals that are held out from neither themselves nor a relative (see
``pretraining_rows``). Probabilities are calibrated on held-out logits of the grouped split; those that are scored and
stored come from the calibration of the other folds.
"""

from datetime import datetime
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from prefect import task
from safetensors.torch import load, save
from scipy.special import expit

from models.baselines import classification_baselines
from models.metrics import classification_scores
from models.reliability import (
    METHODS,
    as_document,
    brier_score,
    choose_method,
    compare_methods,
    held_out_probabilities,
    reliability_curve,
)
from models.s2snet_training import predict_logits, remove_checkpoints, train_network
from models.splits import Fold
from models.training import one_thread, resolve_device
from tasks.bnas_data import Part
from tasks.bnas_ensemble import CALIBRATION_SPLITS
from tasks.events import StageEvent, publish
from tasks.folds import cross_validations
from tasks.leakage import audit
from tasks.model_store import save_model
from tasks.progress import leave_summary
from tasks.s2snet_data import (
    CODE_VERSION,
    NAME,
    Crystals,
    TrainingPlan,
    choose_network,
    dataset_from_s2s,
    describe_network,
    fold_rows,
    make_plan,
    pretraining_rows,
    read_crystals,
)
from tasks.s2snet_ensemble import S2SEnsemble, S2SPrediction, load_s2snet
from tasks.schemas import PREDICTIONS
from tasks.settings import TrainingSettings
from tasks.stages import StageOutcome, StageReport, run_stage
from tasks.train_bnas import as_fold_table, part_seed
from tasks.training_figures import write_training_figures
from tasks.workers import close_workers, run_in_worker
from tasks.workspace import Workspace

__all__ = ["S2SEnsemble", "S2SPrediction", "dataset_from_s2s", "load_s2snet"]

STAGE = "train-s2snet"
HEADLINE = "roc_auc"
LOGITS = pa.schema(
    [
        pa.field("split", pa.string(), nullable=False),
        pa.field("fold", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),  # among the measured crystals
        pa.field("logit", pa.float64(), nullable=False),
    ]
)


@lru_cache(maxsize=1)
def _crystals(url: str, _data: str, cutoff: float) -> Crystals:
    """Crystals and their neighbours, found once a process for one state of the data."""
    return read_crystals(Workspace(url), cutoff)


def train_part(url: str, settings: TrainingSettings, plan: TrainingPlan, part: Part) -> None:
    """Train the network of a fold and write its logits, or a network of the ensemble and write its weights."""
    workspace, named = Workspace(url), choose_network(settings)
    crystals = _crystals(url, plan.data, named.network.radius)
    fold = fold_rows(crystals, settings, part) if part.kind == "fold" else None
    train = fold.train if fold else np.arange(len(crystals.labels))
    test = crystals.labelled[fold.test] if fold else np.array([], dtype=np.int64)
    checkpoint = workspace.local(f"{part.file}.checkpoint") if workspace.is_local else None
    with one_thread():
        network = train_network(
            named,
            [crystals.graphs[row] for row in crystals.labelled[train]],
            crystals.labels[train],
            [crystals.graphs[row] for row in pretraining_rows(crystals, part.split, test)],
            part_seed(settings.seed, part.name),
            device=settings.device,
            checkpoint=checkpoint,
        )
        if fold:
            logits = predict_logits(network, [crystals.graphs[row] for row in test])
            workspace.write_table(part.file, as_logits(part.split, fold, logits))
        else:
            state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
            workspace.write_bytes(part.file, save(state))
    if checkpoint:
        remove_checkpoints(checkpoint)


def score_part(url: str, settings: TrainingSettings, plan: TrainingPlan, part: Part) -> None:
    """Fit every baseline on a fold and write its probabilities."""
    crystals = _crystals(url, plan.data, choose_network(settings).network.radius)
    fold, formulas = fold_rows(crystals, settings, part), crystals.measured.formulas
    seed = part_seed(settings.seed, part.name)
    found = classification_baselines(formulas, crystals.structures, crystals.labels, fold, seed)
    tables = [as_predictions(crystals, part.split, fold.name, name, fold.test, found[name]) for name in found]
    Workspace(url).write_table(part.file, pa.concat_tables(tables))


def as_logits(split: str, fold: Fold, logits: np.ndarray) -> pa.Table:
    """Logits of a fold's test crystals as a table (LOGITS)."""
    count = len(fold.test)
    return pa.table(
        {"split": [split] * count, "fold": [fold.name] * count, "row": fold.test, "logit": logits}, schema=LOGITS
    )


def as_predictions(
    crystals: Crystals, split: str, fold: str, model: str, rows: np.ndarray, probabilities: np.ndarray
) -> pa.Table:
    """Probabilities of measured crystals as a table (PREDICTIONS)."""
    measured = crystals.measured
    ids, formulas, tc = measured.column("material_id"), measured.formulas, measured.tc_kelvin
    found = [
        {
            "split": split,
            "fold": fold,
            "model": model,
            "material_id": ids[row],
            "formula": formulas[row],
            "tc_kelvin": float(tc[row]),
            "superconductor": bool(tc[row] > 0),
            "probability": float(probability),
        }
        for row, probability in zip(rows, probabilities, strict=True)
    ]
    return pa.Table.from_pylist(found, schema=PREDICTIONS)


def choose_calibration(crystals: Crystals, logits: pa.Table) -> str:
    """The calibration of least held-out log loss on the most honest split; three to choose from flatter little."""
    chosen = _calibrating(logits)
    return choose_method(
        chosen["logit"].to_numpy(), crystals.labels[chosen["row"].to_numpy()], chosen["fold"].to_pylist()
    )


def own_predictions(crystals: Crystals, logits: pa.Table, method: str) -> pa.Table:
    """Calibrated probabilities of the networks' held-out logits (PREDICTIONS), each fold by the other folds."""
    tables = []
    for split in logits["split"].unique().to_pylist():
        chosen = logits.filter(pc.equal(logits["split"], split))
        folds, rows = np.array(chosen["fold"].to_pylist()), chosen["row"].to_numpy()
        found = held_out_probabilities(chosen["logit"].to_numpy(), crystals.labels[rows], folds.tolist(), method)
        for fold in np.unique(folds):
            here = folds == fold
            tables.append(as_predictions(crystals, split, str(fold), NAME, rows[here], found[here]))
    return pa.concat_tables(tables)


def score_predictions(table: pa.Table, seed: int) -> dict[str, dict[str, dict[str, Any]]]:
    """Scores by split and model, over the pooled out-of-fold predictions."""
    scores: dict[str, dict[str, dict[str, Any]]] = {}
    for split in table["split"].unique().to_pylist():
        for model in table["model"].unique().to_pylist():
            rows = table.filter(pc.and_(pc.equal(table["split"], split), pc.equal(table["model"], model)))
            label, probability = (
                rows[name].to_numpy(zero_copy_only=False) for name in ("superconductor", "probability")
            )
            found = classification_scores(label, probability, seed=seed)
            scores.setdefault(split, {})[model] = {name: score.as_json() for name, score in found.items()}
    return scores


def calibrate(crystals: Crystals, logits: pa.Table, own: pa.Table, method: str) -> dict[str, Any]:
    """Calibration of the ensemble, the methods it was chosen from, and the reliability before and after."""
    chosen = _calibrating(logits)
    split = chosen["split"][0].as_py()
    judged = own.filter(pc.equal(own["split"], split))
    raw, labels = chosen["logit"].to_numpy(), crystals.labels[chosen["row"].to_numpy()]
    held_out = judged["probability"].to_numpy(), judged["superconductor"].to_numpy(zero_copy_only=False).astype(float)
    return {
        "split": split,
        "materials": len(labels),
        "method": method,
        "compared": compare_methods(raw, labels, chosen["fold"].to_pylist()),
        "fitted": as_document(method, METHODS[method](raw, labels)),
        "reliability": reliability_curve(held_out[1], held_out[0]),
        "brier": brier_score(held_out[1], held_out[0]),
        "reliability_uncalibrated": reliability_curve(labels, expit(raw)),
        "brier_uncalibrated": brier_score(labels, expit(raw)),
    }


def _calibrating(logits: pa.Table) -> pa.Table:
    """The logits of the split that calibrates."""
    split = next(name for name in CALIBRATION_SPLITS if name in logits["split"].to_pylist())
    return logits.filter(pc.equal(logits["split"], split))


def gather(workspace: Workspace, settings: TrainingSettings, plan: TrainingPlan) -> StageOutcome:
    """Put the parts together: scores, calibration, and the stored model."""
    named = choose_network(settings)
    crystals = _crystals(workspace.url, plan.data, named.network.radius)
    folds = cross_validations(crystals.measured, settings)
    logits = pa.concat_tables(workspace.read_table(part.file) for part in plan.folds)
    method = choose_calibration(crystals, logits)
    own = own_predictions(crystals, logits, method)
    table = pa.concat_tables([own, *(workspace.read_table(part.file) for part in plan.baselines)])
    scores, calibration = score_predictions(table, settings.seed), calibrate(crystals, logits, own, method)
    counts = {
        "version": plan.version,
        "crystals": len(crystals.graphs),
        "materials": len(crystals.labels),
        "superconductors": int(crystals.labels.sum()),
    }
    metrics = {"scores": scores, "leakage": audit(crystals.measured, folds), "calibration": calibration, **counts}
    config = {
        **describe_network(named),
        "calibration": calibration["fitted"],
        "settings": settings.model_dump(mode="json"),
        "seed": settings.seed,
        "data": plan.data,
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
        folds=as_fold_table(crystals.measured, folds),
    )
    counts |= {f"{HEADLINE} {name}": round(found[NAME][HEADLINE]["value"], 3) for name, found in scores.items()}
    return StageOutcome(
        rows_in=len(crystals.graphs) + len(crystals.rejected),
        accounted=len(crystals.graphs),
        rejected=crystals.rejected,
        counts=counts,
        files=files,
    )


def _run_part(workspace: str, settings: TrainingSettings, plan: TrainingPlan, part: Part, processes: int) -> str:
    """Do a part in a worker unless its file is there, and tell how far the stage is."""
    store = Workspace(workspace)
    if not store.exists(part.file):
        work = score_part if part.kind == "baselines" else train_part
        at_once = 1 if resolve_device(settings.device) == "cuda" else processes
        run_in_worker(work, workspace, settings, plan, part, processes=at_once)
        done = sum(store.exists(other.file) for other in plan.parts)
        publish(StageEvent(STAGE, done, len(plan.parts)))
    return part.file


@task(name="plan-s2snet")
def plan_training(workspace: str, settings: TrainingSettings) -> TrainingPlan:
    """Check the crystals and their classes, make and audit the folds, name the parts."""
    store = Workspace(workspace)
    return make_plan(store, read_crystals(store, choose_network(settings).network.radius), settings)


@task(name="train-s2snet-fold", task_run_name="s2snet-{part.name}")
def train_fold(workspace: str, settings: TrainingSettings, plan: TrainingPlan, part: Part, processes: int) -> str:
    """Train on one fold and predict its held-out crystals."""
    return _run_part(workspace, settings, plan, part, processes)


@task(name="score-s2snet-baselines", task_run_name="baselines-{part.name}")
def score_baselines(workspace: str, settings: TrainingSettings, plan: TrainingPlan, part: Part, processes: int) -> str:
    """Fit the baselines on one fold and predict its held-out crystals."""
    return _run_part(workspace, settings, plan, part, processes)


@task(name="train-s2snet-member", task_run_name="s2snet-{part.name}")
def train_member(workspace: str, settings: TrainingSettings, plan: TrainingPlan, part: Part, processes: int) -> str:
    """Train one network of the ensemble on all measured crystals."""
    return _run_part(workspace, settings, plan, part, processes)


@task(name="finish-s2snet")
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
