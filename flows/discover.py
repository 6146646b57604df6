"""The whole system: from reports of superconductors to a ranked list of new candidates."""

from prefect import flow

from flows.refresh import refresh
from flows.report import report as write_report
from flows.screening import screen
from flows.train_bnas import train_bnas
from flows.train_s2snet import train_s2snet
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
    ReportSettings,
    S2SNetTrainingSettings,
    ScreeningSettings,
    TrainingSettings,
    VaspSettings,
)
from tasks.stages import StageReport
from tasks.workspace import Workspace


@flow(name="discover")
def discover(
    workspace: str,
    supercon: str,
    crystals: str | tuple[str, ...],
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
    bnas: TrainingSettings = TrainingSettings(),
    s2snet: S2SNetTrainingSettings = S2SNetTrainingSettings(),
    screening: ScreeningSettings = ScreeningSettings(),
    report: ReportSettings = ReportSettings(),
    processes: int = 1,
) -> list[StageReport]:
    """Run every stage; each does only what is missing.

    1. refresh: clean, crystals, match, order, bands, grid
    2. train-bnas: bands to Tc, judged on held-out folds beside the baselines
    3. train-s2snet: crystal to superconductor or not, judged the same way
    4. screen: both networks on every crystal, ranked
    5. report: one page to open
    """
    data = refresh(
        workspace=workspace,
        supercon=supercon,
        crystals=crystals,
        cleaning=cleaning,
        fetch=fetch,
        mdr=mdr,
        crystal=crystal,
        matching=matching,
        ordering=ordering,
        bands=bands,
        gpaw=gpaw,
        vasp=vasp,
        cluster=cluster,
        grid=grid,
        processes=processes,
    )
    reports = [
        *data,
        train_bnas(workspace, bnas, processes),
        train_s2snet(workspace, s2snet, processes),
        screen(workspace, screening, grid=grid, cluster=cluster, processes=processes),
        write_report(workspace, report),
    ]
    leave_overview(Workspace(workspace), "discover", reports)
    return reports
