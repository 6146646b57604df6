"""Train S2SNet: crystal structure to superconductor or not."""

from datetime import UTC, datetime

from prefect import flow, unmapped

from tasks.settings import S2SNetTrainingSettings
from tasks.stages import StageReport
from tasks.train_s2snet import finish_training, plan_training, score_baselines, train_fold, train_member


@flow(name="train-s2snet")
def train_s2snet(
    workspace: str, settings: S2SNetTrainingSettings = S2SNetTrainingSettings(), processes: int = 1
) -> StageReport:
    """Train and judge S2SNet on the ordered crystals of the workspace.

    1. plan: check the crystals and their classes, make the folds, audit them for leakage
    2. folds: pre-train and fine-tune on each, and predict what was held out
    3. baselines: the same folds
    4. ensemble: networks trained on everything, for prediction
    5. finish: scores with intervals, calibrated probabilities, the stored model
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
