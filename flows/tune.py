"""Search for BNAS hyperparameters."""

from datetime import UTC, datetime

from prefect import flow, unmapped

from tasks.progress import wait_with_progress
from tasks.settings import TrainingSettings, TuningSettings
from tasks.stages import StageReport
from tasks.tuning import finish_tuning, plan_study, try_parameters


@flow(name="tune-bnas")
def tune_bnas(
    workspace: str,
    settings: TuningSettings = TuningSettings(),
    training: TrainingSettings = TrainingSettings(),
    processes: int = 1,
) -> StageReport:
    """Search with Optuna; finished trials of an earlier run count.

    1. plan: open the study, number the trials still to run
    2. trials: each asks the study for parameters, trains and validates
    3. finish: the table of trials
    """
    started = datetime.now(UTC)
    numbers = plan_study(workspace, settings, training)
    given = (unmapped(workspace), unmapped(settings), unmapped(training))
    wait_with_progress("tune", try_parameters.map(*given, numbers, unmapped(processes)))
    return finish_tuning(workspace, settings, training, started)
