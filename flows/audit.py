"""Audit a dataset and its split for leakage."""

from prefect import flow

from tasks.leakage import audit_dataset, check_audit
from tasks.settings import AuditSettings
from tasks.stages import StageReport


@flow(name="audit")
def audit(workspace: str, settings: AuditSettings = AuditSettings()) -> StageReport:
    """Count what stands on both sides of each fold, and fail where more of it does than the settings allow.

    1. audit: make or read the folds, count, write the table
    2. check: the first fold that leaks ends the run
    """
    report = audit_dataset(workspace, settings)
    check_audit(workspace)
    return report
