"""Train BNAS: energy bands to the critical temperature."""

from datetime import UTC, datetime

from prefect import flow, unmapped

from tasks.settings import TrainingSettings
from tasks.stages import StageReport
from tasks.train_bnas import finish_training, plan_training, score_baselines, train_fold, train_member


@flow(name="train-bnas")
def train_bnas(workspace: str, settings: TrainingSettings = TrainingSettings(), processes: int = 1) -> StageReport:
    """Train and judge BNAS on the labelled grids of the workspace.

    1. plan: check the data, make the folds, audit them for leakage
    2. folds: train on each and predict what was held out
    3. baselines: the same folds
    4. ensemble: networks trained on everything, for prediction
    5. finish: scores with intervals, calibration, the stored model
    """
    started = datetime.now(UTC)
    plan = plan_training(workspace, settings)
    given = (unmapped(workspace), unmapped(settings), unmapped(plan))
    folds = train_fold.map(*given, list(plan.folds), unmapped(processes))
    baselines = score_baselines.map(*given, list(plan.baselines), unmapped(processes))
    members = train_member.map(*given, list(plan.members), unmapped(processes))
    for futures in (folds, baselines, members):
        futures.result()
    return finish_training(workspace, settings, plan, started)
