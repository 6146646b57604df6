"""Recipes of S2SNet on the same crystals, folds and seeds: which one learns most from the S2S set.

    OMP_NUM_THREADS=1 python tests/benchmarks/s2snet_recipes.py s2s.jsonl.gz --recipes s2snet --output logits
    OMP_NUM_THREADS=1 python tests/benchmarks/s2snet_recipes.py s2s.jsonl.gz --recipes "trees alone" --fold-seed 11

For each recipe: the network alone, the trees alone, their blend, and what the blend adds, each calibrated and blended
by the other folds' held-out answers, with bootstrap intervals over the crystals, and the gain over the recipe that is
named first. Choose recipes on one ``--fold-seed`` and tell the scores of another, so that no recipe is chosen by the
folds that it is scored on. ``--output`` keeps the answers fold by fold, and a run that was ended goes on from them.

``--hide 0.5`` takes half of the superconductors of the training folds for others, and asks how well they are found
again: by taking others at their word, and by positive-unlabelled learning with the true share.
"""

# ruff: noqa: T201 - a benchmark prints its table

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.special import logit
from sklearn.ensemble import ExtraTreesClassifier

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from models import reported_compositions
from models.blending import held_out_blend
from models.crystal_trees import crystal_features, fit_trees
from models.crystals import CrystalGraph
from models.metrics import auc_gain, classification_scores
from models.reliability import held_out_probabilities
from models.reported_compositions import DOPED, Reports
from models.s2snet import CONFIGS, NamedConfig
from models.s2snet_training import predict_logits, train_network
from models.splits import Fold, composition_key, connected_groups, make_folds
from tasks.reported import reports_of_file
from tasks.s2s_files import CrystalDataset, dataset_from_s2s, read_unlabelled
from tasks.s2snet_data import seen_by


class Tried(NamedTuple):
    """A named configuration with changes of ``network``, ``finetuning``, ``pretraining`` or ``masking``.

    ``networks``: the mean of so many, which differ by their seed. ``positive_share``: positive-unlabelled learning with
    this share. ``wider``: pre-trained on the crystals of ``--unlabelled``, too.
    """

    base: str = "s2snet"
    changes: Mapping[str, Any] = MappingProxyType({})
    networks: int = 1
    positive_share: float | None = None
    wider: bool = False


@dataclass(frozen=True)
class Trees:
    """The trees alone, or with something more.

    ``doped``: with the reports of ``--reports``, and which of these are relatives. ``more``: with the descriptors of
    ``--descriptors``. ``randomised``: the mean of their logits and those of extremely randomised trees.
    """

    doped: float | None = None
    more: bool = False
    randomised: bool = False


PLAIN = {"pretraining": None}
BEFORE = {"epochs": 20, "batch_size": 32, "learning_rate": 1e-3, "average": None}
PRETRAINED = {"pretraining": {"epochs": 15}}
TOGETHER = PRETRAINED | {"masking": "element", "network": {"radius": 6.0, "reach": 6.0, "elements": "both"}}
RECIPES: dict[str, Tried | Trees] = {
    "trees alone": Trees(),
    "trees with reports": Trees(doped=DOPED),
    "trees with reports, doped forms too": Trees(doped=0.0),
    "trees with reports, farther from the held-out": Trees(doped=2 * DOPED),
    "trees with more descriptors": Trees(more=True),
    "trees and extremely randomised ones": Trees(randomised=True),
    "s2snet": Tried(),
    "starter": Tried("starter"),
    "starter, not pre-trained": Tried("starter", PLAIN),
    "before: 3 layers, batch 32, rate 1e-3, no average": Tried(
        changes={"network": {"layers": 3}, "finetuning": BEFORE}
    ),
    "attention to all atoms alike": Tried(changes={"network": {"attention": "all"}}),
    "attention within 5 angstrom, no distances": Tried(changes={"network": {"attention": "radius"}}),
    "no composition at the head": Tried(changes={"network": {"composition": False}}),
    "no lattice": Tried(changes={"network": {"lattice": "none"}}),
    "elements learned": Tried(changes={"network": {"elements": "learned"}}),
    "elements learned too": Tried(changes={"network": {"elements": "both"}}),
    "radius 6": Tried(changes={"network": {"radius": 6.0, "reach": 6.0}}),
    "dropout 0.4": Tried(changes={"network": {"dropout": 0.4}}),
    "40 epochs": Tried(changes={"finetuning": {"epochs": 40}}),
    "pre-trained": Tried(changes=PRETRAINED),
    "pre-trained, elements hidden whole": Tried(changes=PRETRAINED | {"masking": "element"}),
    "pre-trained on more": Tried(changes=PRETRAINED, wider=True),
    "pre-trained on more, elements hidden whole": Tried(changes=PRETRAINED | {"masking": "element"}, wider=True),
    "three networks": Tried(networks=3),
    "ten networks": Tried(networks=10),
    "together": Tried(changes=TOGETHER),
    "together, three networks": Tried(changes=TOGETHER, networks=3),
    "positive-unlabelled, 5 per cent": Tried(positive_share=0.05),
}
Answers = dict[str, np.ndarray]  # probabilities by name of the model
Fit = Callable[[np.ndarray, Fold, int], np.ndarray]  # labels, fold, seed to logits of the fold's test crystals


def changed(recipe: Tried) -> NamedConfig:
    """The network and recipes of a configuration with changes."""
    named = CONFIGS[recipe.base]
    for part, update in recipe.changes.items():
        if isinstance(update, dict):
            model = getattr(named, part) or named.finetuning
            update = type(model).model_validate(model.model_dump() | update)  # noqa: PLW2901
        named = named._replace(**{part: update})
    return named


def folds_of(data: CrystalDataset, split: str, seed: int) -> list[Fold]:
    """Five folds of the set; groups are crystals of one chemical system or composition."""
    groups = connected_groups(data.chemical_systems, [composition_key(formula) for formula in data.formulas])
    return make_folds(split, size=len(data.labels), folds=5, seed=seed, groups=groups, labels=data.labels)


def networks(
    recipe: Tried, data: CrystalDataset, share: float | None = None, more: CrystalDataset | None = None
) -> Fit:
    """Networks of a recipe; pre-trained, where the recipe says so, on crystals of no chemical system that is tested."""
    named = changed(recipe)
    graphs = [seen_by(named.network, crystal) for crystal in data.crystals]
    others: list[tuple[str, CrystalGraph]] = []
    if more is not None and recipe.wider:
        graphs_of_more = [seen_by(named.network, crystal) for crystal in more.crystals]
        others = list(zip(more.chemical_systems, graphs_of_more, strict=True))

    def fit(labels: np.ndarray, fold: Fold, seed: int) -> np.ndarray:
        train = [graphs[row] for row in fold.train]
        tested = {data.chemical_systems[row] for row in fold.test}
        unlabelled = [crystal for system, crystal in others if system not in tested]
        logits = []
        for member in range(recipe.networks):
            network = train_network(
                named,
                train,
                labels[fold.train],
                train + unlabelled,
                seed + 1000 * member,
                positive_share=share or recipe.positive_share,
                device="cpu",
            )
            logits.append(predict_logits(network, [graphs[row] for row in fold.test]))
        return np.mean(logits, axis=0)

    return fit


def trees(
    recipe: Trees,
    data: CrystalDataset,
    share: float | None = None,
    reports: Reports | None = None,
    more: np.ndarray | None = None,
) -> Fit:
    """Gradient boosting on the crystals' descriptors, and ``more`` of them, (crystals, any)."""
    features = np.array([crystal_features(crystal) for crystal in data.crystals])
    if recipe.more and more is not None:
        features = np.column_stack([features, more])

    def fit(labels: np.ndarray, fold: Fold, seed: int) -> np.ndarray:
        unknown = np.full(len(fold.train), np.nan)
        apart = None
        if reports is not None and recipe.doped is not None:
            reported_compositions.DOPED = recipe.doped
            apart = reports.apart_from(features[fold.test])
        found = fit_trees(features[fold.train], labels[fold.train], unknown, seed, share, apart)
        logits = found.logits(features[fold.test])
        if not recipe.randomised:
            return logits
        forest = ExtraTreesClassifier(600, max_features=0.2, random_state=seed)
        chances = forest.fit(features[fold.train], labels[fold.train]).predict_proba(features[fold.test])[:, 1]
        return (logits + logit(np.clip(chances, 1e-3, 1 - 1e-3))) / 2

    return fit


def answers(fit: Fit, labels: np.ndarray, folds: list[Fold], kept: Path | None) -> np.ndarray:
    """(crystals,) held-out logits, NaN where no fold tests."""
    logits = np.full(len(labels), np.nan)
    for number, fold in enumerate(folds):
        file = kept and kept.with_name(f"{kept.name}-{number}.npy")
        begin = time.process_time()
        found = np.load(file) if file and file.exists() else fit(labels, fold, number)
        if file and not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, found)
            print(f"  fold {number}: {time.process_time() - begin:.0f} CPU seconds", flush=True)
        logits[fold.test] = found
    return logits


def show(name: str, labels: np.ndarray, probabilities: np.ndarray) -> None:
    found = classification_scores(labels, probabilities)
    cells = [f"{s.value:.3f} ({s.low:.3f} to {s.high:.3f})" for s in (found["roc_auc"], found["accuracy"])]
    print(f"{name:<16} AUC {cells[0]}   ACC {cells[1]}   Brier {found['brier'].value:.4f}", flush=True)


def compare(
    labels: np.ndarray, names: np.ndarray, network: np.ndarray | None, boosted: np.ndarray, first: Answers
) -> Answers:
    """Print the scores of what is there, the gains of the blend, and those over what the first recipe gave."""
    alone = {"trees alone": boosted} | ({} if network is None else {"network alone": network})
    found = {name: held_out_probabilities(logits, labels, names.tolist()) for name, logits in alone.items()}
    if network is not None:
        found["blend"] = held_out_blend(network, boosted, labels, names)[1]
    for name, probabilities in found.items():
        show(name, labels, probabilities)
    for name in alone if network is not None else []:
        show_gain(f"blend over {name}", labels, found["blend"], found[name])
    for name in ("trees alone", "network alone", "blend"):
        if name in found and name in first and not np.array_equal(found[name], first[name]):
            show_gain(f"{name} over that of the first recipe", labels, found[name], first[name])
    return found


def show_gain(name: str, labels: np.ndarray, better: np.ndarray, other: np.ndarray) -> None:
    gain = auc_gain(labels, better, other, seed=0)
    print(f"  {name}: {gain.value:+.4f} ({gain.low:+.4f} to {gain.high:+.4f}) of AUC", flush=True)


def found_again(labels: np.ndarray, shown: np.ndarray, logits: np.ndarray) -> str:
    """How hidden superconductors stand among the others: AUC, and their share among the best so many."""
    others = shown == 0
    hidden, scores = labels[others], logits[others]
    best = np.argsort(-scores)[: int(hidden.sum())]
    auc = classification_scores(hidden, 1 / (1 + np.exp(-scores)))["roc_auc"]
    interval = f"{auc.value:.3f} ({auc.low:.3f} to {auc.high:.3f})"
    return f"AUC {interval}, of the best {len(best)} hidden {hidden[best].mean():.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="S2S as JSON lines")
    parser.add_argument("--recipes", nargs="+", default=["s2snet"], choices=list(RECIPES))
    parser.add_argument("--split", default="chemical-system", choices=["random", "chemical-system"])
    parser.add_argument("--fold-seed", type=int, default=0)
    parser.add_argument("--folds", type=int, default=5, help="The first so many of five folds")
    parser.add_argument("--hide", type=float, default=0.0, help="Share of the superconductors taken for others")
    parser.add_argument("--unlabelled", help="Crystals of any form that the recipes 'on more' are pre-trained on, too")
    parser.add_argument("--reports", help="Table of reports, as `meissner refresh --supercon` reads it")
    parser.add_argument("--descriptors", type=Path, help="What learned_descriptors.py wrote: a row a crystal")
    parser.add_argument("--output", type=Path, help="Folder for the held-out logits")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = dataset_from_s2s(options.data)
    more = read_unlabelled(options.unlabelled) if options.unlabelled else None
    reports = reports_of_file(options.reports, "") if options.reports else None
    asked = {name: RECIPES[name] for name in options.recipes}
    if more is None and any(isinstance(recipe, Tried) and recipe.wider for recipe in asked.values()):
        parser.error("a recipe pre-trained on more needs --unlabelled")
    if reports is None and any(isinstance(recipe, Trees) and recipe.doped is not None for recipe in asked.values()):
        parser.error("a recipe with reports needs --reports")
    if options.descriptors is None and any(isinstance(recipe, Trees) and recipe.more for recipe in asked.values()):
        parser.error("a recipe with more descriptors needs --descriptors")
    described = np.load(options.descriptors, allow_pickle=False) if options.descriptors else None
    if described is not None and len(described) != len(data.labels):
        parser.error(f"{options.descriptors} has {len(described)} rows for {len(data.labels)} crystals")
    folds = folds_of(data, options.split, options.fold_seed)[: options.folds]
    rows = np.sort(np.concatenate([fold.test for fold in folds]))
    names = np.empty(len(data.labels), dtype=object)
    for fold in folds:
        names[fold.test] = fold.name
    key, kept = f"{options.split}-{options.fold_seed}", options.output
    print(f"{len(data.labels)} crystals, {data.labels.sum()} superconductors, {options.split}, {len(folds)} folds")
    if options.hide:
        draw = np.random.default_rng(options.fold_seed).random(len(data.labels))
        shown = np.where(draw < options.hide, 0, data.labels)
        share = float(data.labels[shown == 0].mean())
        print(f"{int(data.labels.sum() - shown.sum())} superconductors hidden, {share:.3f} of the others")
        for name, recipe in asked.items():
            for title, given in (("others taken at their word", None), ("positive-unlabelled", share)):
                fit = trees(recipe, data, given) if isinstance(recipe, Trees) else networks(recipe, data, given)
                logits = answers(fit, shown, folds, None)
                print(f"{name}, {title}: {found_again(data.labels[rows], shown[rows], logits[rows])}", flush=True)
                show("  by all labels", data.labels[rows], 1 / (1 + np.exp(-logits[rows])))
        return

    def file(name: str) -> Path | None:
        return kept and kept / f"{name}-{key}"

    plain = answers(trees(Trees(), data), data.labels, folds, file("trees"))
    first: Answers = {}
    for name, recipe in asked.items():
        print(name)
        network, boosted = None, plain
        if isinstance(recipe, Tried):
            network = answers(networks(recipe, data, more=more), data.labels, folds, file(name))[rows]
        elif recipe != Trees():
            kept_as = file(f"{name} of {options.descriptors.stem}" if recipe.more else name)
            boosted = answers(trees(recipe, data, reports=reports, more=described), data.labels, folds, kept_as)
        found = compare(data.labels[rows], names[rows], network, boosted[rows], first)
        first = first or found


if __name__ == "__main__":
    main()
