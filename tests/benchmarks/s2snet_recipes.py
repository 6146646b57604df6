"""Recipes of S2SNet on the same crystals, folds and seeds: which network learns most from the S2S set.

    OMP_NUM_THREADS=1 python tests/benchmarks/s2snet_recipes.py s2s.jsonl.gz --recipes starter s2snet --fold-seed 11

Figures are of the networks' pooled held-out logits, uncalibrated, the mean over ``--seeds``. Choose recipes on one
``--fold-seed`` and tell the scores of another, so that no recipe is chosen by the folds that it is scored on.
"""

# ruff: noqa: T201 - a benchmark prints its table

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from scipy.special import expit

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from models.crystals import graph, orbit_graph
from models.metrics import classification_scores
from models.s2snet import CONFIGS, NamedConfig
from models.s2snet_training import predict_logits, train_network
from models.splits import Fold, composition_key, connected_groups, make_folds
from tasks.s2snet_data import CrystalDataset, dataset_from_s2s

PLAIN = {"pretraining": False}
FAST = {"epochs": 30, "batch_size": 64, "learning_rate": 2e-3, "average": 0.98}
SHALLOW = {"layers": 2}
RECIPES: dict[str, tuple[str, dict]] = {  # configuration, changes of network, finetuning and pretraining
    "starter": ("starter", {}),
    "s2snet": ("s2snet", {}),
    "starter, not pre-trained": ("starter", PLAIN),
    "s2snet, not pre-trained": ("s2snet", PLAIN),
    "average": ("s2snet", PLAIN | {"network": SHALLOW, "finetuning": FAST}),
    "average, pre-trained": (
        "s2snet",
        {"network": SHALLOW, "finetuning": FAST, "pretraining": FAST | {"epochs": 15}},
    ),
    "average, elements learned too": (
        "s2snet",
        PLAIN | {"network": SHALLOW | {"elements": "both"}, "finetuning": FAST},
    ),
    "average, radius 6": ("s2snet", PLAIN | {"network": SHALLOW | {"radius": 6.0, "reach": 6.0}, "finetuning": FAST}),
    "average, dropout 0.4": ("s2snet", PLAIN | {"network": SHALLOW | {"dropout": 0.4}, "finetuning": FAST}),
    "average, 60 epochs": ("s2snet", PLAIN | {"network": SHALLOW, "finetuning": FAST | {"epochs": 60}}),
}


def changed(name: str) -> tuple[NamedConfig, bool]:
    """The network and recipes of a name, and whether it is pre-trained."""
    base, changes = RECIPES[name]
    named = CONFIGS[base]
    for part in ("network", "finetuning", "pretraining"):
        update = changes.get(part)
        if isinstance(update, dict):
            model = getattr(named, part)
            named = named._replace(**{part: type(model).model_validate(model.model_dump() | update)})
    return named, changes.get("pretraining") is not False


def grouped(data: CrystalDataset) -> np.ndarray:
    """Groups of crystals of one chemical system or composition."""
    return connected_groups(data.chemical_systems, [composition_key(formula) for formula in data.formulas])


def folds_of(data: CrystalDataset, split: str, seed: int) -> list[Fold]:
    """Five folds of the set."""
    return make_folds(split, size=len(data.labels), folds=5, seed=seed, groups=grouped(data), labels=data.labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="S2S as JSON lines")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--split", default="chemical-system", choices=["random", "chemical-system"])
    parser.add_argument("--fold-seed", type=int, default=0)
    parser.add_argument("--folds", type=int, default=5, help="The first so many of five folds")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--output", type=Path, help="Folder for the held-out logits, one .npy a recipe")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = dataset_from_s2s(options.data)
    folds = folds_of(data, options.split, options.fold_seed)[: options.folds]
    print(f"{len(data.labels)} crystals, {data.labels.sum()} superconductors, {options.split}, {len(folds)} folds")
    print(f"{'recipe':<44} {'AUC':>7} {'95 % interval':>17} {'ACC':>7} {'s':>6}", flush=True)
    for name in options.recipes:
        named, pretrained = changed(name)
        graphs = [graph(crystal, named.network.radius) for crystal in data.crystals]
        graphs = [orbit_graph(crystal) for crystal in graphs] if named.network.by_orbits else graphs
        logits, begin = np.full((options.seeds, len(graphs)), np.nan), time.perf_counter()
        for seed in range(options.seeds):
            for number, fold in enumerate(folds):
                train = [graphs[row] for row in fold.train]
                network = train_network(
                    named, train, data.labels[fold.train], train if pretrained else [], 100 * seed + number, device="cpu"
                )
                logits[seed, fold.test] = predict_logits(network, [graphs[row] for row in fold.test])
        seconds = (time.perf_counter() - begin) / options.seeds
        if options.output:
            options.output.mkdir(parents=True, exist_ok=True)
            np.save(options.output / f"{name}-{options.split}-{options.fold_seed}.npy", logits)
        known = np.isfinite(logits[0])
        each = [classification_scores(data.labels[known], expit(one[known]), resamples=10) for one in logits]
        auc, accuracy = (np.mean([one[key].value for one in each]) for key in ("roc_auc", "accuracy"))
        together = classification_scores(data.labels[known], expit(logits[:, known].mean(axis=0)))
        interval = f"{together['roc_auc'].low:.3f} to {together['roc_auc'].high:.3f}"
        print(
            f"{name:<44} {auc:7.4f} {interval:>17} {accuracy:7.4f} {seconds:6.0f}  seeds together "
            f"{together['roc_auc'].value:.4f} {together['accuracy'].value:.4f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
