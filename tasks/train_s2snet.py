"""Stage train-s2snet: crystal structure to superconductor or not, judged on held-out folds beside the baselines.

The stage is cut into parts: each fold of each cross-validation, its baselines, each network of the ensemble. A part
writes one file in the version's folder and is skipped where that file is there, so a kill loses at most the parts that
were under way, and of these no more than since their last checkpoint.

Networks are pre-trained per fold: where folds are grouped, on crystals of no held-out group; where they are random,
on all but the held-out crystals and equal structures (see ``pretraining_rows``). Probabilities are calibrated on
held-out logits of the grouped split; those that are scored and stored come from the calibration of the other folds.
"""

from dataclasses import asdict
from datetime import datetime
from functools import lru_cache

import numpy as np
import pyarrow as pa
from prefect import task
from safetensors.torch import load, save

from models.baselines import classification_baselines, regression_baselines
from models.crystal_trees import crystal_features, fit_trees
from models.crystals import crystal_arrays
from models.reported_compositions import Reports, composition_features
from models.s2snet import S2SNetConfig
from models.s2snet_training import predict_answers, remove_checkpoints, train_network
from models.splits import Fold
from models.training import one_thread
from tasks.bnas_data import Part
from tasks.epochs import counted_epochs
from tasks.folds import cross_validations
from tasks.held_out import reports_file
from tasks.leakage import audit
from tasks.model_store import model_folder, save_model
from tasks.progress import leave_summary
from tasks.reported import learnt_formulas, reports_for, reports_of_workspace
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
from tasks.s2snet_pretraining import pretrained_weights
from tasks.s2snet_scores import (
    as_answers,
    as_predictions,
    calibrate,
    choose_calibration,
    own_predictions,
    score_fusion,
    seen_in_pretraining,
)
from tasks.scores import class_scores, score_families, score_models, temperature_scores
from tasks.settings import S2SNetTrainingSettings
from tasks.stages import StageOutcome, StageReport, run_stage
from tasks.train_bnas import as_fold_table, part_seed
from tasks.training_figures import write_training_figures
from tasks.workers import close_workers, make_part
from tasks.workspace import Workspace

__all__ = ["S2SEnsemble", "S2SPrediction", "dataset_from_s2s", "load_s2snet"]

STAGE = "train-s2snet"
HEADLINE = "roc_auc"


@lru_cache(maxsize=1)
def _crystals(url: str, _data: str, config: S2SNetConfig) -> Crystals:
    """Crystals and their neighbours, found once a process for one state of the data."""
    return read_crystals(Workspace(url), config)


@lru_cache(maxsize=1)
def _features(url: str, data: str, config: S2SNetConfig) -> np.ndarray:
    """(labelled, features) what the trees see of the measured crystals, found once a process."""
    return np.array([crystal_features(crystal_arrays(crystal)) for crystal in _crystals(url, data, config).structures])


def _reports(
    url: str,
    settings: S2SNetTrainingSettings,
    plan: TrainingPlan,
    part: Part,
    fold: Fold | None,
    features: np.ndarray,
) -> Reports | None:
    """Reports that the trees of a part learn from, too; None where that is not asked for."""
    if not settings.reports:
        return None
    found = reports_of_workspace(url, plan.data)
    if fold is None:
        return found
    measured = _crystals(url, plan.data, choose_network(settings).network).measured
    return reports_for(found, part.split, fold, features, measured)


def train_part(url: str, settings: S2SNetTrainingSettings, plan: TrainingPlan, part: Part) -> None:
    """Train the network of a fold and write its answers, or a network of the ensemble and write its weights.

    Where the configuration blends, the trees of the part are trained, too.
    """
    workspace, named = Workspace(url), choose_network(settings)
    crystals = _crystals(url, plan.data, named.network)
    fold = fold_rows(crystals, settings, part) if part.kind == "fold" else None
    train = fold.train if fold else np.arange(len(crystals.labels))
    test = crystals.labelled[fold.test] if fold else np.array([], dtype=np.int64)
    checkpoint = workspace.local(f"{part.file}.checkpoint") if workspace.is_local else None
    labels, log_tc, seed = crystals.labels[train], crystals.log_tc[train], part_seed(settings.seed, part.name)
    pretraining = None if plan.pretrained else named.pretraining
    epochs = named.finetuning.epochs + (pretraining.epochs if pretraining else 0)
    counted = counted_epochs(workspace, part.file, epochs)
    with one_thread(), workspace.errors("write", f"{part.file}.checkpoint"), counted as advance:
        network = train_network(
            named,
            [crystals.graphs[row] for row in crystals.labelled[train]],
            labels,
            [crystals.graphs[row] for row in pretraining_rows(crystals, part.split, test)],
            seed,
            log_tc=log_tc,
            positive_share=settings.positive_share,
            start=pretrained_weights(workspace, plan.pretrained) if plan.pretrained else None,
            device=settings.device,
            devices=settings.devices,
            checkpoint=checkpoint,
            advance=advance,
        )
        features = _features(url, plan.data, named.network) if named.trees else None
        trees = None
        if features is not None:
            reports, measured = _reports(url, settings, plan, part, fold, features), None
            if reports is not None:
                formulas = crystals.measured.formulas
                measured = composition_features([formulas[row] for row in train])
            trees = fit_trees(features[train], labels, log_tc, seed, settings.positive_share, reports, measured)
        if fold:
            answers = predict_answers(network, [crystals.graphs[row] for row in test])
            workspace.write_table(part.file, as_answers(part.split, fold, answers, trees, features))
        else:
            if trees is not None:
                workspace.write_json(trees_file(part), asdict(trees))
            state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
            workspace.write_bytes(part.file, save(state))
    if checkpoint:
        remove_checkpoints(checkpoint)


def score_part(url: str, settings: S2SNetTrainingSettings, plan: TrainingPlan, part: Part) -> None:
    """Fit every baseline on a fold and write its probabilities and temperatures."""
    crystals = _crystals(url, plan.data, choose_network(settings).network)
    fold, formulas = fold_rows(crystals, settings, part), crystals.measured.formulas
    seed = part_seed(settings.seed, part.name)
    found = classification_baselines(formulas, crystals.structures, crystals.labels, fold, seed)
    tc = regression_baselines(formulas, crystals.structures, crystals.measured.tc_kelvin, fold, seed)
    tables = [as_predictions(crystals, part.split, fold.name, name, fold.test, found[name], tc[name]) for name in found]
    Workspace(url).write_table(part.file, pa.concat_tables(tables))


def gather(workspace: Workspace, settings: S2SNetTrainingSettings, plan: TrainingPlan) -> StageOutcome:
    """Put the parts together: scores, calibration, and the stored model."""
    named = choose_network(settings)
    crystals = _crystals(workspace.url, plan.data, named.network)
    folds = cross_validations(crystals.measured, settings)
    answers = pa.concat_tables(workspace.read_table(part.file) for part in plan.folds)
    method = choose_calibration(crystals, answers)
    own = own_predictions(crystals, answers, method)
    table = pa.concat_tables([own, *(workspace.read_table(part.file) for part in plan.baselines)])
    scores, calibration = score_models(table, class_scores, settings.seed), calibrate(crystals, answers, own, method)
    counts = {
        "version": plan.version,
        "crystals": len(crystals.graphs),
        "materials": len(crystals.labels),
        "superconductors": int(crystals.labels.sum()),
    }
    metrics = {
        "scores": scores,
        "tc_scores": score_models(table, temperature_scores, settings.seed),
        "families": score_families(table, class_scores, settings.seed),
        "fusion_adds": score_fusion(table, settings.seed),
        "leakage": audit(crystals.measured, folds),
        "calibration": calibration,
        **seen_in_pretraining(workspace, plan, own),
        **counts,
    }
    config = {
        **describe_network(named),
        "calibration": calibration["fitted"],
        "shares": calibration["shares"],
        "pretrained": plan.pretrained,
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
    files += copy_trees(workspace, plan) if named.trees else []
    if settings.reports:
        files.append(reports_file(NAME, plan.version))
        workspace.write_json(files[-1], learnt_formulas(workspace))
    counts |= {f"{HEADLINE} {name}": round(found[NAME][HEADLINE]["value"], 3) for name, found in scores.items()}
    return StageOutcome(
        rows_in=len(crystals.graphs) + len(crystals.rejected),
        accounted=len(crystals.graphs),
        rejected=crystals.rejected,
        counts=counts,
        files=files,
    )


def copy_trees(workspace: Workspace, plan: TrainingPlan) -> list[str]:
    """Put the trees of the ensemble beside its networks."""
    files = []
    for number, part in enumerate(plan.members):
        files.append(f"{model_folder(NAME, plan.version)}/trees-{number}.json")
        workspace.write_bytes(files[-1], workspace.read_bytes(trees_file(part)))
    return files


def trees_file(part: Part) -> str:
    """The trees of a part of the ensemble, until they are put together."""
    return part.file.replace(".safetensors", ".trees.json")


def _run_part(workspace: str, settings: S2SNetTrainingSettings, plan: TrainingPlan, part: Part, processes: int) -> str:
    work = score_part if part.kind == "baselines" else train_part
    return make_part(workspace, part.file, work, settings, plan, part, device=settings.device, processes=processes)


@task(name="plan-s2snet")
def plan_training(workspace: str, settings: S2SNetTrainingSettings) -> TrainingPlan:
    """Check the crystals and their classes, make and audit the folds, name the parts."""
    store = Workspace(workspace)
    return make_plan(store, read_crystals(store, choose_network(settings).network), settings)


@task(name="train-s2snet-fold", task_run_name="s2snet-{part.name}")
def train_fold(workspace: str, settings: S2SNetTrainingSettings, plan: TrainingPlan, part: Part, processes: int) -> str:
    """Train on one fold and predict its held-out crystals."""
    return _run_part(workspace, settings, plan, part, processes)


@task(name="score-s2snet-baselines", task_run_name="baselines-{part.name}")
def score_baselines(
    workspace: str, settings: S2SNetTrainingSettings, plan: TrainingPlan, part: Part, processes: int
) -> str:
    """Fit the baselines on one fold and predict its held-out crystals."""
    return _run_part(workspace, settings, plan, part, processes)


@task(name="train-s2snet-member", task_run_name="s2snet-{part.name}")
def train_member(
    workspace: str, settings: S2SNetTrainingSettings, plan: TrainingPlan, part: Part, processes: int
) -> str:
    """Train one network of the ensemble on all measured crystals."""
    return _run_part(workspace, settings, plan, part, processes)


@task(name="finish-s2snet")
def finish_training(
    workspace: str, settings: S2SNetTrainingSettings, plan: TrainingPlan, started: datetime | None = None
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
