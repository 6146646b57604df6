"""Validation on compounds whose predictions were published."""

from prefect import flow

from tasks.stages import StageReport
from tasks.validation import validate_pairs


@flow(name="validate-pairs")
def pairs(workspace: str) -> StageReport:
    """Ask the trained BNAS about the paper's Table I, as far as its compounds have bands in the workspace.

    1. validate: find their grids, predict, say what is missing
    """
    return validate_pairs(workspace)
