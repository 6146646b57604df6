"""What a repair took away, made again by the stages that made it."""

from collections.abc import Callable, Sequence
from typing import Any

from prefect import flow

from flows.audit import audit
from flows.bands import bands
from flows.crystals import crystals
from flows.dataset import s2s
from flows.grids import grids
from flows.pretrain_s2snet import pretrain_s2snet
from flows.report import report
from flows.screening import screen
from flows.train_bnas import train_bnas
from flows.train_s2snet import train_s2snet
from flows.tune import tune_bnas
from flows.validate import pairs, time_machine
from models.exceptions import MeissnerError
from tasks.cleaning import clean_supercon
from tasks.matching import match_crystals
from tasks.ordering import order_crystals
from tasks.settings import Settings
from tasks.workspace import Workspace
from tasks.workspace_check import inner_workspace
from tasks.workspace_repair import made_with

RUNS: dict[str, Callable[[str, Settings], Any]] = {
    "clean": lambda url, s: clean_supercon(url, s.supercon, s.cleaning, s.mdr, s.fetch),
    "crystals": lambda url, s: crystals(url, s.crystals, s.fetch, s.crystal, s.processes),
    "match": lambda url, s: match_crystals(url, s.matching),
    "order": lambda url, s: order_crystals(url, s.ordering, s.processes),
    "bands": lambda url, s: bands(url, s.bands, s.gpaw, s.vasp, s.cluster, s.processes),
    "grid": lambda url, s: grids(url, s.grid, s.processes),
    "s2s": lambda url, s: s2s(url, s.s2s, s.matching),
    "audit": lambda url, s: audit(url, s.audit),
    "pretrain-s2snet": lambda url, s: pretrain_s2snet(url, s.s2snet_pretraining),
    "train-bnas": lambda url, s: train_bnas(url, s.bnas, s.processes),
    "train-s2snet": lambda url, s: train_s2snet(url, s.s2snet, s.processes),
    "tune": lambda url, s: tune_bnas(url, s.tuning, s.bnas, s.processes),
    "screen": lambda url, s: screen(url, s.screening, grid=s.grid, cluster=s.cluster, processes=s.processes),
    "report": lambda url, s: report(url, s.report),
    "validate-pairs": lambda url, _: pairs(url),
    "time-machine": lambda url, s: time_machine(url, s.time_machine, s.processes),
}


@flow(name="repair")
def repair(workspace: str, work: Sequence[tuple[str, str]], settings: dict[str, Any]) -> list[str]:
    """Run the stages again that made what is gone, each with the settings of its last run.

    1. settings: those in the stage's manifest over ``settings`` (all of ``tasks.settings``, without secrets)
    2. run: the stage, which does only what is missing

    Parameters
    ----------
    work
        Collection (empty: the workspace itself) and stage, in the order in which they run.

    Returns
    -------
    One sentence for each stage that could not run.
    """
    failed = []
    for folder, stage in work:
        try:
            _run(Workspace(workspace), folder, stage, Settings(**settings))
        except MeissnerError as error:
            failed.append(f"{folder or workspace}: {stage} cannot run again: {error}")
    return failed


def _run(home: Workspace, folder: str, stage: str, settings: Settings) -> None:
    place = inner_workspace(home, folder) if folder else home
    settings = made_with(place, stage, settings)
    if folder and stage == "screen":  # it has its networks from the workspace around the collection
        outer, _, name = folder.rpartition("collections/")
        around = inner_workspace(home, outer.rstrip("/")) if outer else home
        screen(around.url, settings.screening, (), name, settings.grid, settings.cluster, settings.processes)
        return
    RUNS[stage](place.url, settings)
