"""Failed band calculations once more."""

from prefect import flow

from flows.bands import bands as compute_bands
from flows.grids import grids as make_grids
from tasks.bands import forget_failures
from tasks.exceptions import InputError
from tasks.settings import BandSettings, ClusterSettings, GpawSettings, GridSettings, VaspSettings
from tasks.stages import StageReport
from tasks.workspace import Workspace


@flow(name="retry-failed")
def retry_failed(
    workspace: str,
    reason: str | None = None,
    bands: BandSettings = BandSettings(),
    gpaw: GpawSettings = GpawSettings(),
    vasp: VaspSettings = VaspSettings(),
    cluster: ClusterSettings = ClusterSettings(),
    grid: GridSettings = GridSettings(),
    processes: int = 1,
) -> list[StageReport]:
    """Calculate again what failed for a passing reason, or for a reason that holds some words.

    1. forget: the failures that are meant
    2. bands: as in a refresh; finished calculations stay
    3. grid: of what is new
    """
    if not forget_failures(Workspace(workspace), reason):
        asked = f"a reason that holds {reason!r}" if reason else "a passing reason; name another with --reason"
        raise InputError(f"No calculation in the workspace {workspace} has failed for {asked}")
    return [compute_bands(workspace, bands, gpaw, vasp, cluster, processes), make_grids(workspace, grid, processes)]
