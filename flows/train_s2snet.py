"""Train S2SNet: crystal structure to superconductor or not."""

from datetime import UTC, datetime
from functools import partial

from prefect import flow, unmapped

from tasks.epochs import parts_under_way
from tasks.model_events import tell_of_training
from tasks.progress import wait_with_progress
from tasks.settings import S2SNetTrainingSettings
from tasks.stages import StageReport
from tasks.train_s2snet import finish_training, plan_training, score_baselines, train_fold, train_member
from tasks.workspace import Workspace


@flow(name="train-s2snet")
def train_s2snet(
    workspace: str,
    settings: S2SNetTrainingSettings = S2SNetTrainingSettings(),
    processes: int = 1,
    allowed_drop: float = 0.05,
) -> StageReport:
    """Train and judge S2SNet on the ordered crystals of the workspace.

    1. plan: check the crystals and their classes, make the folds, audit them for leakage
    2. folds: pre-train and fine-tune on each, and predict what was held out
    3. baselines: the same folds
    4. ensemble: networks trained on everything, for prediction
    5. finish: scores with intervals, calibrated probabilities, the stored model
    6. tell: that both networks are ready to screen with, or that this one is worse than the one in use before
       by more than ``allowed_drop``
    """
    started = datetime.now(UTC)
    plan = plan_training(workspace, settings)
    given = (unmapped(workspace), unmapped(settings), unmapped(plan))
    folds = train_fold.map(*given, list(plan.folds), unmapped(processes))
    baselines = score_baselines.map(*given, list(plan.baselines), unmapped(processes))
    members = train_member.map(*given, list(plan.members), unmapped(processes))
    networks = [part.file for part in (*plan.folds, *plan.members)]
    under_way = partial(parts_under_way, Workspace(workspace), networks)
    wait_with_progress("train-s2snet", [*folds, *baselines, *members], under_way)
    report = finish_training(workspace, settings, plan, started)
    tell_of_training(workspace, "s2snet", allowed_drop)
    return report
