"""Stage tune: search for BNAS hyperparameters with Optuna, over the ranges of the paper's Table II or smaller ones.

Trials train and validate inside the training side of the first fold by chemical system, apart by groups of related
materials. So that fold has never been looked at: report a tuned network there. The study lives in a database, so a
killed search goes on where it was; a trial that was under way starts again with its parameters.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from prefect import task
from torch import nn

from models.bnas import BnasConfig, BnasInputs
from models.bnas_training import HeldOutLoss, log_labels, train_network
from models.exceptions import TrainingError
from models.splits import make_folds
from models.training import one_thread
from tasks.bnas_data import choose_network, labelled_inputs, read_labelled
from tasks.exceptions import InputError
from tasks.figures import bar_figure, figure_bytes
from tasks.folds import cross_validations
from tasks.progress import leave_figure, leave_summary
from tasks.schemas import IMPORTANCE, TRIALS
from tasks.settings import TrainingSettings, TuningSettings
from tasks.stages import Rejection, StageOutcome, StageReport, hash_text, run_stage
from tasks.workers import close_workers, run_in_worker
from tasks.workspace import Workspace

if TYPE_CHECKING:
    import optuna

STAGE = "tune"
CODE_VERSION = 1
HELD_BACK_SPLIT = "chemical-system"  # where it is reported; its first fold is held back
VALIDATION_SHARE = 5  # one part of so many validates: the paper's 4 : 1
VALIDATIONS = 10  # a trial, evenly over its epochs; after each it may be pruned
LEAST_TRIALS = 4  # complete ones with different losses, for importances
STARTUP_TRIALS = 5  # finished before the sampler models the losses and the pruner compares

PARAMETERS = ("depth", "embed_dim", "heads", "mlp_dim", "embed_dropout", "dropout")

Range = tuple[int, int] | tuple[float, float]
SPACES: dict[str, dict[str, Range]] = {
    # The smallest and largest value of each column of Table II.
    "paper": {
        "depth": (3, 8),
        "embed_dim": (82, 962),
        "heads": (8, 64),
        "mlp_dim": (226, 3810),
        "embed_dropout": (0.127, 0.492),
        "dropout": (0.141, 0.458),
    },
    "small": {
        "depth": (1, 4),
        "embed_dim": (32, 128),
        "heads": (1, 4),
        "mlp_dim": (32, 512),
        "embed_dropout": (0.0, 0.5),
        "dropout": (0.0, 0.5),
    },
}

# Table II of the paper: validation loss after 100 epochs, then the values in the order of PARAMETERS.
PUBLISHED: tuple[tuple[float, tuple[int, int, int, int, float, float]], ...] = (
    (0.324, (7, 734, 24, 2154, 0.457, 0.458)),
    (0.240, (4, 82, 32, 246, 0.283, 0.360)),
    (0.408, (8, 618, 8, 2346, 0.204, 0.266)),
    (0.346, (8, 468, 16, 2290, 0.412, 0.223)),
    (0.313, (6, 962, 64, 2796, 0.461, 0.438)),
    (0.248, (7, 120, 36, 3810, 0.415, 0.294)),
    (0.239, (5, 754, 16, 1372, 0.268, 0.451)),
    (0.308, (7, 188, 22, 3298, 0.161, 0.189)),
    (0.363, (3, 114, 46, 226, 0.172, 0.241)),
    (0.266, (4, 912, 24, 880, 0.149, 0.327)),
    (0.313, (6, 562, 48, 482, 0.273, 0.141)),
    (0.340, (7, 558, 64, 306, 0.492, 0.240)),
    (0.277, (4, 334, 14, 3478, 0.289, 0.157)),
    (0.228, (3, 534, 64, 1038, 0.127, 0.197)),
)


@dataclass(frozen=True, eq=False)
class TuningFold:
    """Row numbers of the materials that trials train and validate on."""

    train: np.ndarray
    validation: np.ndarray


def storage_url(workspace: Workspace, settings: TuningSettings) -> str:
    """The study's database: as set, or SQLite in a local workspace."""
    if settings.storage:
        return settings.storage
    if not workspace.is_local:
        raise InputError(f"The workspace {workspace.url} holds no SQLite file; give an Optuna storage URL")
    file = workspace.local(f"tuning/{settings.study}.db")
    file.parent.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{file.resolve()}"


def open_study(workspace: Workspace, settings: TuningSettings, training: TrainingSettings) -> "optuna.Study":
    """Create or load the study; a new one in the paper's ranges gets the points of Table II as its first trials.

    Raises
    ------
    InputError
        If the study was made for other data, another network or other epochs: its losses cannot be compared.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = storage_url(workspace, settings)
    study = optuna.create_study(
        storage=url,
        study_name=settings.study,
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(STARTUP_TRIALS, n_warmup_steps=max(1, settings.epochs // VALIDATIONS)),
    )
    config, recipe = choose_network(training)
    asked = {"epochs": settings.epochs, "space": settings.space, "seed": training.seed, "published": settings.published}
    fixed = config.model_dump(exclude=set(PARAMETERS)) | recipe.model_dump(exclude={"epochs"}) | asked
    key = hash_text(read_labelled(workspace).fingerprint, str(sorted(fixed.items())))
    known = study.user_attrs.get("key")
    if known not in {None, key}:
        raise InputError(
            f"The study {settings.study!r} in {url} was made for other data, ranges or training settings; "
            "its losses cannot be compared. Give the study another name"
        )
    if known is None:
        if settings.space == "paper" and settings.published:
            for loss, values in PUBLISHED:
                point = dict(zip(PARAMETERS, values, strict=True))
                study.enqueue_trial(point, user_attrs={"published_loss": loss}, skip_if_exists=True)
        study.set_user_attr("key", key)
    return study


def recover_trials(study: "optuna.Study") -> int:
    """Give up trials that a killed search left under way, and queue their parameters again; gives their number."""
    from optuna.trial import TrialState

    lost = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    for trial in lost:
        study.tell(trial.number, state=TrialState.FAIL)
        params = trial.params or trial.system_attrs.get("fixed_params")
        if params:
            kept = {name: value for name, value in trial.user_attrs.items() if name == "published_loss"}
            study.enqueue_trial(params, user_attrs=kept)
    return len(lost)


def finished_trials(study: "optuna.Study") -> list[Any]:
    """Trials that came to an end: complete, pruned, or failed for a reason; a killed one did not."""
    return [trial for trial in study.get_trials(deepcopy=False) if _is_finished(trial)]


def plan_trials(workspace: Workspace, settings: TuningSettings, training: TrainingSettings) -> list[int]:
    """Numbers of the trials still to run, up to the number in the settings."""
    study = open_study(workspace, settings, training)
    tuning_fold(workspace, training)
    if not settings.storage:
        recover_trials(study)  # nobody else writes to the workspace's own study
    return list(range(len(finished_trials(study)), settings.trials))


def tuning_fold(workspace: Workspace, training: TrainingSettings) -> TuningFold:
    """Split the training side of the held-back fold by groups of related materials, 4 : 1."""
    labelled = read_labelled(workspace)
    split = HELD_BACK_SPLIT if HELD_BACK_SPLIT in training.splits else training.splits[0]
    outer = cross_validations(labelled, training.model_copy(update={"splits": (split,)}))[split][0].train
    inner = make_folds(
        "chemical-system",
        size=len(outer),
        folds=VALIDATION_SHARE,
        seed=training.seed + 1,
        groups=labelled.groups[outer],
        labels=labelled.tc_kelvin[outer] > 0,
    )[0]
    return TuningFold(outer[inner.train], outer[inner.test])


def run_trial(url: str, settings: TuningSettings, training: TrainingSettings, number: int) -> None:
    """Ask the study for parameters, train, validate, and tell it the loss. ``number`` seeds the sampler."""
    import optuna

    workspace = Workspace(url)
    study = open_study(workspace, settings, training)
    study.sampler = optuna.samplers.TPESampler(n_startup_trials=STARTUP_TRIALS, seed=training.seed + number)
    trial = study.ask()
    config, recipe = choose_network(training)
    config = config.model_copy(update=suggest(trial, SPACES[settings.space]))
    recipe = recipe.model_copy(update={"epochs": settings.epochs})
    labelled, inputs = labelled_inputs(url, read_labelled(workspace).fingerprint, config_of_inputs(config))
    fold = tuning_fold(workspace, training)
    validate = _validator(trial, inputs[fold.validation], labelled.tc_kelvin[fold.validation], settings.epochs)
    try:
        with one_thread():
            train_network(
                config,
                recipe,
                inputs[fold.train],
                labelled.tc_kelvin[fold.train],
                device=training.device,
                after_epoch=validate,
            )
        study.tell(trial, trial.user_attrs["loss"])
    except optuna.TrialPruned:
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    except TrainingError as error:
        trial.set_user_attr("reason", str(error))
        study.tell(trial, state=optuna.trial.TrialState.FAIL)


def suggest(trial: Any, space: dict[str, Range]) -> dict[str, int | float]:
    """Values of a trial within the ranges."""
    values: dict[str, int | float] = {}
    for name, (low, high) in space.items():
        if isinstance(low, int) and isinstance(high, int):
            values[name] = trial.suggest_int(name, low, high)
        else:
            values[name] = trial.suggest_float(name, low, high)
    return values


def config_of_inputs(config: BnasConfig) -> BnasConfig:
    """The configuration without what a trial changes, so that all trials share the prepared inputs."""
    defaults = BnasConfig()
    return config.model_copy(update={name: getattr(defaults, name) for name in PARAMETERS})


def _validator(trial: Any, inputs: BnasInputs, tc_kelvin: np.ndarray, epochs: int) -> Callable[[int, nn.Module], None]:
    """What runs after each epoch: every so often the validation loss, and an end to a trial that is behind."""
    import optuna

    held_out, every = HeldOutLoss(inputs, torch.from_numpy(log_labels(tc_kelvin))), max(1, epochs // VALIDATIONS)

    def validate(epoch: int, network: nn.Module) -> None:
        if epoch % every and epoch != epochs:
            return
        with torch.no_grad():
            loss = held_out(network)
        trial.set_user_attr("loss", loss)
        trial.set_user_attr("epochs", epoch)
        trial.report(loss, epoch)
        if epoch < epochs and trial.should_prune():
            raise optuna.TrialPruned

    return validate


def gather_trials(study: "optuna.Study", settings: TuningSettings) -> StageOutcome:
    """The study as a table (TRIALS); failed trials are refused with their reason."""
    finished = finished_trials(study)
    rejected = [
        Rejection(f"trial {trial.number}", trial.user_attrs["reason"])
        for trial in finished
        if "reason" in trial.user_attrs
    ]
    rows = [_row(trial) for trial in finished if "reason" not in trial.user_attrs]
    table = pa.Table.from_pylist(rows, schema=TRIALS)
    complete = [row for row in rows if row["state"] == "COMPLETE"]
    counts: dict[str, Any] = {"trials": len(finished), "complete": len(complete), "pruned": len(rows) - len(complete)}
    if complete:
        best = min(complete, key=lambda row: (row["loss"], row["trial"]))
        counts |= {"best_trial": best["trial"], "best_loss": round(best["loss"], 4)}
    importance = pa.Table.from_pylist(importances(study), schema=IMPORTANCE)
    return StageOutcome(
        rows_in=len(finished),
        accounted=len(rows),
        tables={f"tuning/{settings.study}.parquet": table, importance_table(settings): importance},
        rejected=rejected,
        counts=counts,
    )


def importance_table(settings: TuningSettings) -> str:
    """Where the importances of a study stand."""
    return f"tuning/{settings.study}-importance.parquet"


def importances(study: "optuna.Study") -> list[dict[str, Any]]:
    """How much each parameter matters for the loss, most first (IMPORTANCE); empty with too few trials to tell.

    By Optuna's fANOVA (Hutter, Hoos and Leyton-Brown, ICML 2014), shares of the variance between complete trials.
    """
    import optuna

    complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    if len({trial.value for trial in complete}) < LEAST_TRIALS:
        return []
    found = optuna.importance.get_param_importances(
        study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0), params=list(PARAMETERS)
    )
    return [{"parameter": name, "importance": float(share)} for name, share in found.items()]


def draw_importances(workspace: Workspace, settings: TuningSettings) -> None:
    """A bar for each parameter, beside the table and as an artifact of the run."""
    rows = workspace.read_table(importance_table(settings)).to_pylist()
    if rows:
        figure = bar_figure({row["parameter"]: row["importance"] for row in rows}, "share of the variance of the loss")
        workspace.write_bytes(f"tuning/{settings.study}-importance.svg", figure_bytes(figure))
        leave_figure("tuning-importance", figure_bytes(figure, "png"), f"{settings.study}: which parameters matter")


def _row(trial: Any) -> dict[str, Any]:
    known = {name: trial.user_attrs.get(name) for name in ("loss", "published_loss", "epochs")}
    return {"trial": trial.number, "state": trial.state.name, **known, **trial.params}


def _is_finished(trial: Any) -> bool:
    from optuna.trial import TrialState

    if trial.state == TrialState.FAIL:
        return "reason" in trial.user_attrs
    return trial.state in {TrialState.COMPLETE, TrialState.PRUNED}


@task(name="plan-trials")
def plan_study(workspace: str, settings: TuningSettings, training: TrainingSettings) -> list[int]:
    """Open the study and number the trials still to run."""
    return plan_trials(Workspace(workspace), settings, training)


@task(name="bnas-trial", task_run_name="trial-{number}")
def try_parameters(
    workspace: str, settings: TuningSettings, training: TrainingSettings, number: int, processes: int
) -> int:
    """Run one trial in a worker."""
    run_in_worker(run_trial, workspace, settings, training, number, processes=processes)
    return number


@task(name="finish-tuning")
def finish_tuning(
    workspace: str, settings: TuningSettings, training: TrainingSettings, started: datetime | None = None
) -> StageReport:
    """Write the table of trials."""
    close_workers()
    store = Workspace(workspace)
    study = open_study(store, settings, training)
    content = [
        str((trial.number, trial.state.name, trial.params, trial.user_attrs)) for trial in finished_trials(study)
    ]
    report = run_stage(
        store,
        STAGE,
        lambda: gather_trials(study, settings),
        code_version=CODE_VERSION,
        inputs=content,
        settings=settings,
        started=started,
    )
    draw_importances(store, settings)
    return leave_summary(store, report)
