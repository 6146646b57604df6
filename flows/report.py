"""The report: one page that opens without a network."""

from prefect import flow

from tasks.report import write_report
from tasks.settings import ReportSettings
from tasks.stages import StageReport


@flow(name="report")
def report(workspace: str, settings: ReportSettings = ReportSettings()) -> StageReport:
    """Write the page about the last screening.

    1. report: scores, candidates, panels, provenance
    """
    return write_report(workspace, settings)
