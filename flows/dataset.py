"""Training sets that are built from the workspace."""

from prefect import flow

from tasks.dataset_events import announce_changes
from tasks.s2s_dataset import build_dataset, export_dataset
from tasks.settings import MatchingSettings, S2sSettings
from tasks.stages import StageReport


@flow(name="dataset-s2s")
def s2s(
    workspace: str,
    settings: S2sSettings = S2sSettings(),
    matching: MatchingSettings = MatchingSettings(),
    export: str | None = None,
) -> StageReport:
    """Build the training set of S2SNet.

    1. s2s: superconducting crystals, others drawn beside them, the rest for pre-training
    2. announce: an event, if the set is another than before
    3. export: JSON lines in the layout of the published set, if a file is named
    """
    report = build_dataset(workspace, settings, matching)
    announce_changes(workspace, [report])
    if export:
        export_dataset(workspace, export)
    return report
