"""Recipes of BNAS on the same folds, networks and seeds: which one learns most from few materials.

    OMP_NUM_THREADS=1 python tests/benchmarks/bnas_recipes.py WORKSPACE --recipes published starter best

WORKSPACE holds labelled grids (a collection will do). The recipes train the network of the ``starter`` configuration,
for the published one is too large for a CPU; ``published`` is the paper's optimiser with one image a step, for as many
epochs. ``best`` is the configuration of that name, which sees the composition, too; with ``bands hidden`` it sees
nothing else, with ``composition hidden`` it is its network of the bands alone. R2 is of ln(Tc + 1) over all held-out
materials, grouped by chemical system, mean over seeds; the time is of all folds.
"""

# ruff: noqa: T201 - a benchmark prints its table

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from models.bnas import CONFIGS, BnasConfig, BnasInputs, prepare
from models.bnas_training import kelvin, predict_images, train_network
from models.composition_branch import composition_fractions
from models.metrics import regression_scores
from models.training import Recipe
from tasks.bnas_data import read_labelled
from tasks.folds import cross_validations
from tasks.settings import TrainingSettings
from tasks.shards import read_grids
from tasks.workspace import Workspace

STARTER = CONFIGS["starter"]
RECIPES: dict[str, tuple[dict, dict]] = {  # changes of network and recipe
    "published": (
        {},
        {
            "optimizer": "sgd",
            "learning_rate": 1e-3,
            "weight_decay": 1e-5,
            "warmup": 0,
            "schedule": "constant",
            "clip": None,
            "batch_size": 64,
        },
    ),
    "starter": ({}, {}),
    "average": ({}, {"average": 0.99}),
    "60 epochs": ({}, {"epochs": 60}),
    "60 epochs, average": ({}, {"epochs": 60, "average": 0.99}),
    "60 epochs, batch 64, rate 1e-3, average": (
        {},
        {"epochs": 60, "average": 0.98, "batch_size": 64, "learning_rate": 1e-3},
    ),
    "weight decay 0.3": ({}, {"weight_decay": 0.3}),
    "narrow window": ({"window_ev": 0.3}, {}),
    "wide window": ({"window_ev": 3.0}, {}),
    "patch 8": ({"patch": 8}, {}),
    "one block": ({"depth": 1}, {}),
    "dropout 0.5": ({"embed_dropout": 0.5, "dropout": 0.5}, {}),
}
BEST: dict[str, tuple[dict, dict]] = {  # changes of the ``best`` network and recipe
    "best": ({}, {}),
    "best, bands hidden": ({}, {}),
    "best, composition hidden": ({"composition": None}, {}),
    "best, 120 epochs": ({}, {"epochs": 120}),
    "best, mesh 16": ({"mesh": 16}, {}),
}


def chosen(name: str) -> tuple[BnasConfig, Recipe]:
    """Network and recipe of a name."""
    base, (network, recipe) = (CONFIGS["best"], BEST[name]) if name in BEST else (STARTER, RECIPES[name])
    return base[0].model_copy(update=network), Recipe.model_validate(base[1].model_dump() | recipe)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspace")
    parser.add_argument("--recipes", nargs="+", default=[*RECIPES, *BEST], choices=[*RECIPES, *BEST])
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    place = Workspace(options.workspace)
    labelled = read_labelled(place)
    grids = torch.from_numpy(read_grids(place, labelled.column("material_id"))[1])
    tc, fractions = labelled.tc_kelvin, composition_fractions(labelled.formulas)
    folds = cross_validations(labelled, TrainingSettings(splits=("chemical-system",)))["chemical-system"]
    print(f"{len(tc)} materials, {int((tc > 0).sum())} superconductors, {len(folds)} folds, {options.seeds} seeds")
    print(f"{'recipe':<44} {'R2':>7} {'95 % interval':>17} {'MAE / K':>8} {'s':>6}", flush=True)
    for name in options.recipes:
        config, recipe = chosen(name)
        energies = prepare(grids, config)
        if name.endswith("bands hidden"):
            energies = torch.zeros_like(energies)
        inputs = BnasInputs(energies, fractions if config.composition else None)
        begin, answers = time.perf_counter(), np.zeros((options.seeds, len(tc)))
        for seed in range(options.seeds):
            for number, fold in enumerate(folds):
                network, _ = train_network(
                    config,
                    recipe.model_copy(update={"seed": 100 * seed + number}),
                    inputs[torch.from_numpy(fold.train)],
                    tc[fold.train],
                    device="cpu",
                )
                found = predict_images([network], inputs[torch.from_numpy(fold.test)], "cpu")
                answers[seed, fold.test] = found.mean(axis=(0, 1))
        seconds = (time.perf_counter() - begin) / options.seeds
        each = [regression_scores(tc, kelvin(one), seed=0) for one in answers]
        r2 = float(np.mean([one["r2_log_all"].value for one in each]))
        together = regression_scores(tc, kelvin(answers.mean(axis=0)), seed=0)["r2_log_all"]
        mae = float(np.mean([one["mae_kelvin_all"].value for one in each]))
        interval = f"{together.low:+.2f} to {together.high:+.2f}"
        print(
            f"{name:<44} {r2:7.3f} {interval:>17} {mae:8.2f} {seconds:6.0f}  seeds together {together.value:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
