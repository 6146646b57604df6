"""Crystals of files and databases as standardised primitive cells, each once."""

from prefect import flow

from tasks.crystal_sources import as_sources, is_database
from tasks.crystals import collect_crystals, fetch_crystals
from tasks.settings import CrystalSettings, FetchSettings
from tasks.stages import StageReport


@flow(name="crystals")
def crystals(
    workspace: str,
    sources: str | tuple[str, ...],
    fetch: FetchSettings = FetchSettings(),
    settings: CrystalSettings = CrystalSettings(),
    processes: int = 1,
) -> StageReport:
    """Gather the crystals of all sources.

    1. fetch: what databases hold is asked for, page by page, unless the same query was answered before
    2. crystals: standardised primitive cells, no duplicates
    """
    for source in filter(is_database, as_sources(sources)):
        fetch_crystals(workspace, source, fetch)
    return collect_crystals(workspace, sources, settings, processes)
