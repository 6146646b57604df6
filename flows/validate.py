"""Validation on what was published: compounds of a table, and what was found after a year."""

from datetime import UTC, datetime

from prefect import flow, unmapped

from tasks.settings import TimeMachineSettings
from tasks.stages import StageReport
from tasks.time_machine import finish_time_machine, plan_time_machine, run_time_machine_part
from tasks.validation import validate_pairs


@flow(name="validate-pairs")
def pairs(workspace: str) -> StageReport:
    """Ask the trained BNAS about the paper's Table I, as far as its compounds have bands in the workspace.

    1. validate: find their grids, predict, say what is missing
    """
    return validate_pairs(workspace)


@flow(name="time-machine")
def time_machine(
    workspace: str, settings: TimeMachineSettings = TimeMachineSettings(), processes: int = 1
) -> StageReport:
    """Go back to several years: train on what was known, rank the rest, count what was found later.

    1. plan: which years the reports allow
    2. parts: the networks and the baselines of each year
    3. finish: enrichment of every list against chance
    """
    started = datetime.now(UTC)
    plan = plan_time_machine(workspace, settings)
    given = (unmapped(workspace), unmapped(settings), unmapped(plan))
    run_time_machine_part.map(*given, list(plan.parts), unmapped(processes)).result()
    return finish_time_machine(workspace, settings, plan, started)
