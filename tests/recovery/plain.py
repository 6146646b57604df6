"""Refresh, training and screening as functions, without Prefect: what a run that nothing disturbs leaves."""

from prefect.logging import disable_run_logger

from tasks.bands import adopt_bundled, finish_bands, plan_bands
from tasks.cleaning import clean_supercon
from tasks.crystals import collect_crystals
from tasks.grids import finish_grids, grid_chunk, plan_grids
from tasks.matching import match_crystals
from tasks.ordering import order_crystals
from tasks.screening import finish_screening, plan_best_chunks, plan_chunks, screen_chunk
from tasks.screening_plan import pin_networks
from tasks.settings import (
    BandSettings,
    CleaningSettings,
    CrystalSettings,
    FetchSettings,
    GpawSettings,
    GridSettings,
    MatchingSettings,
    MdrSettings,
    OrderingSettings,
    ScreeningSettings,
    TrainingSettings,
    VaspSettings,
)
from tasks.train_bnas import finish_training, plan_training, score_baselines, train_fold, train_member
from tasks.workspace import Workspace

GRIDS = GridSettings(mesh=8)  # as much as the small network takes
SCREENING = ScreeningSettings(chunk=80)  # some materials a chunk
TRAINING = TrainingSettings(config="tiny", epochs=2, folds=2, ensemble=1, splits=("random",))


def refresh(workspace, inputs):
    """Reports, crystals, bands, grids."""
    bands = BandSettings(engine="none")
    clean_supercon.fn(workspace, f"{inputs}/supercon.csv", CleaningSettings(), MdrSettings(), FetchSettings())
    collect_crystals.fn(workspace, (f"{inputs}/crystals.csv",), CrystalSettings(), 1)
    match_crystals.fn(workspace, MatchingSettings())
    order_crystals.fn(workspace, OrderingSettings(), 1)
    adopt_bundled.fn(workspace, bands)
    with disable_run_logger():
        plan = plan_bands.fn(workspace, bands, GpawSettings(), VaspSettings())
    finish_bands.fn(workspace, bands, plan)
    for chunk in plan_grids.fn(workspace, GRIDS):
        grid_chunk.fn(workspace, chunk, GRIDS)
    finish_grids.fn(workspace, GRIDS)


def train(workspace):
    """BNAS, its smallest network, on the labelled grids."""
    plan = train_networks(workspace)
    for part in plan.baselines:
        score_baselines.fn(workspace, TRAINING, plan, part, 1)
    finish_training.fn(workspace, TRAINING, plan)


def train_networks(workspace):
    """The networks of a training, without the baselines, which take most of its time; gives the plan."""
    plan = plan_training.fn(workspace, TRAINING)
    for work, parts in ((train_fold, plan.folds), (train_member, plan.members)):
        for part in parts:
            work.fn(workspace, TRAINING, plan, part, 1)
    return plan


def screen(workspace):
    """Both networks on all materials with bands."""
    pinned = pin_networks(Workspace(workspace), SCREENING)
    plan = plan_chunks.fn(workspace, workspace, (), pinned)
    work = {"workspace": workspace, "place": workspace, "settings": pinned, "grid": GRIDS}
    for chunk in plan.chunks:
        screen_chunk.fn(chunk=chunk, **work)
    best = plan_best_chunks.fn(workspace, plan, pinned)
    for chunk in best:
        screen_chunk.fn(chunk=chunk, **work)
    finish_screening.fn(workspace, workspace, plan, pinned, best, grid=GRIDS)
