"""Train BNAS: energy bands to the critical temperature."""

from datetime import UTC, datetime
from functools import partial

from prefect import flow, unmapped

from flows.grids import grid_source
from tasks.epochs import parts_under_way
from tasks.grid_sources import collection, collection_name
from tasks.model_events import tell_of_training
from tasks.progress import wait_with_progress
from tasks.settings import GridSettings, TrainingSettings
from tasks.stages import StageReport
from tasks.train_bnas import finish_training, plan_training, score_baselines, train_fold, train_member
from tasks.workspace import Workspace


@flow(name="train-bnas")
def train_bnas(
    workspace: str,
    settings: TrainingSettings = TrainingSettings(),
    processes: int = 1,
    data: str | None = None,
    grid: GridSettings = GridSettings(),
    allowed_drop: float = 0.05,
) -> StageReport:
    """Train and judge BNAS on the labelled grids of the workspace, or on those of ``data``.

    1. data: bands with a measured Tc of a file or folder, onto grids in a collection of their own, where all is kept
    2. plan: check the data, make the folds, audit them for leakage
    3. folds: train on each and predict what was held out
    4. baselines: the same folds
    5. ensemble: networks trained on everything, for prediction
    6. finish: scores with intervals, calibration, figures, the stored model
    7. tell: that both networks are ready to screen with, or that this one is worse than the one in use before
       by more than ``allowed_drop``
    """
    if data:
        name = collection_name(data)
        grid_source(workspace, (data,), name, grid, processes=processes)
        workspace = collection(Workspace(workspace), name).url
    started = datetime.now(UTC)
    plan = plan_training(workspace, settings)
    given = (unmapped(workspace), unmapped(settings), unmapped(plan))
    folds = train_fold.map(*given, list(plan.folds), unmapped(processes))
    baselines = score_baselines.map(*given, list(plan.baselines), unmapped(processes))
    members = train_member.map(*given, list(plan.members), unmapped(processes))
    networks = [part.file for part in (*plan.folds, *plan.members)]
    under_way = partial(parts_under_way, Workspace(workspace), networks)
    wait_with_progress("train-bnas", [*folds, *baselines, *members], under_way)
    report = finish_training(workspace, settings, plan, started)
    tell_of_training(workspace, "bnas", allowed_drop)
    return report
