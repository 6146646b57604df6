"""From reports and crystals to the samples that both networks learn from."""

from typing import Literal, get_args

from prefect import flow

from flows.bands import bands as compute_bands
from flows.crystals import crystals as gather_crystals
from flows.grids import grids as make_grids
from tasks.cleaning import clean_supercon
from tasks.dataset_events import announce_changes
from tasks.matching import match_crystals
from tasks.ordering import order_crystals
from tasks.progress import leave_overview
from tasks.settings import (
    BandSettings,
    CleaningSettings,
    ClusterSettings,
    CrystalSettings,
    FetchSettings,
    GpawSettings,
    GridSettings,
    MatchingSettings,
    MdrSettings,
    OrderingSettings,
    VaspSettings,
)
from tasks.stages import StageReport
from tasks.workspace import Workspace

Until = Literal["clean", "crystals", "match", "order", "bands", "grid"]
STAGES: tuple[Until, ...] = get_args(Until)


@flow(name="refresh")
def refresh(
    workspace: str,
    supercon: str,
    crystals: str | tuple[str, ...],
    until: Until = "grid",
    cleaning: CleaningSettings = CleaningSettings(),
    mdr: MdrSettings = MdrSettings(),
    fetch: FetchSettings = FetchSettings(),
    crystal: CrystalSettings = CrystalSettings(),
    matching: MatchingSettings = MatchingSettings(),
    ordering: OrderingSettings = OrderingSettings(),
    bands: BandSettings = BandSettings(),
    gpaw: GpawSettings = GpawSettings(),
    vasp: VaspSettings = VaspSettings(),
    cluster: ClusterSettings = ClusterSettings(),
    grid: GridSettings = GridSettings(),
    processes: int = 1,
) -> list[StageReport]:
    """Refresh the data up to a stage.

    1. clean: reports become one row a composition
    2. crystals: files are read, databases asked; standardised primitive cells, no duplicates
    3. match: each measured composition finds its crystal, doped where need be
    4. order: disordered crystals become cells that DFT can take
    5. bands: bundled band structures are adopted, missing ones calculated
    6. grid: coarse bands become 18 x 32 x 32 x 32 energies in shards

    At the end one event tells Prefect's automations which of the tables are others than before.
    """
    stages = {
        "clean": lambda: clean_supercon(workspace, supercon, cleaning, mdr, fetch),
        "crystals": lambda: gather_crystals(workspace, crystals, fetch, crystal, processes),
        "match": lambda: match_crystals(workspace, matching),
        "order": lambda: order_crystals(workspace, ordering, processes),
        "bands": lambda: compute_bands(workspace, bands, gpaw, vasp, cluster, processes),
        "grid": lambda: make_grids(workspace, grid, processes),
    }
    reports = [stages[stage]() for stage in STAGES[: STAGES.index(until) + 1]]
    leave_overview(Workspace(workspace), "refresh", reports)
    announce_changes(workspace, reports)
    return reports
