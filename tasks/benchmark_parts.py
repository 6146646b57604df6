"""A method of the S2S benchmark on a fold: what it learns from, and its held-out probabilities.

Network and trees of S2SNet are trained and blended by the functions that ``tasks.train_s2snet`` calls. Probabilities
are those of the models as trained; the blend alone is calibrated, by the other folds.
"""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pymatgen.core import Lattice, Structure
from scipy.special import expit, logit

from models.baselines import classification_baselines
from models.blending import held_out_blend
from models.cgcnn import CgcnnConfig, thin
from models.crystal_trees import crystal_features, fit_trees
from models.crystals import CrystalGraph, graph
from models.graph_training import (
    Energies,
    predict_graphs,
    remove_graph_checkpoints,
    train_graph_network,
    tune_graph_network,
)
from models.megnet import MegnetConfig
from models.reported_compositions import ask_reported, fit_reported
from models.s2snet import S2SNetConfig
from models.s2snet_training import predict_logits, remove_checkpoints, train_network
from models.splits import Fold
from models.training import one_thread
from tasks.benchmark_methods import Method, graphs_of, s2snet_of
from tasks.benchmark_plan import BenchmarkPart, BenchmarkPlan, as_rows, read_judged
from tasks.reported import reports_for
from tasks.s2s_files import CrystalDataset
from tasks.s2snet_data import seen_by
from tasks.schemas import PREDICTIONS
from tasks.train_bnas import part_seed
from tasks.workspace import Workspace

CERTAIN = 1e-12  # probabilities keep this distance from 0 and 1, so that their logits are finite
Source = tuple[str, str, Any]  # file of the crystals, its hash, rule for partial occupancies


@lru_cache(maxsize=2)
def _seen(source: Source, config: S2SNetConfig) -> list[CrystalGraph]:
    """The crystals as S2SNet takes them."""
    return [seen_by(config, crystal) for crystal in read_judged(*source).crystals]


@lru_cache(maxsize=3)
def _thinned(source: Source, cutoff: float, neighbours: int | None) -> list[CrystalGraph]:
    """The crystals as the graph networks take them."""
    return [thin(graph(crystal, cutoff), cutoff, neighbours) for crystal in read_judged(*source).crystals]


@lru_cache(maxsize=1)
def _features(source: Source) -> np.ndarray:
    """The crystals as the trees take them."""
    return np.array([crystal_features(crystal) for crystal in read_judged(*source).crystals])


def run_part(url: str, plan: BenchmarkPlan, part: BenchmarkPart) -> None:
    """Train a method on a fold and write its held-out probabilities (PREDICTIONS)."""
    workspace = Workspace(url)
    dataset, fold = plan.read(), plan.fold(part)
    seed = part_seed(plan.settings.seed, f"{part.split}-{part.number}")
    checkpoint = workspace.local(f"{part.file}.checkpoint") if workspace.is_local else None
    with one_thread(), workspace.errors("write", f"{part.file}.checkpoint"):
        if part.method.family == "baselines":
            found = classification_baselines(dataset.formulas, _structures(dataset), dataset.labels, fold, seed)
        else:
            work: Callable[..., np.ndarray] = _LOGITS[part.method.family]
            found = {part.method.title: expit(work(workspace, plan, part, fold, seed, checkpoint))}
    tables = [_as_predictions(dataset, part.split, fold, name, found[name]) for name in found]
    workspace.write_table(part.file, pa.concat_tables(tables))
    if checkpoint:
        remove_checkpoints(checkpoint)
        remove_graph_checkpoints(checkpoint)


def _s2snet_logits(
    _workspace: Workspace, plan: BenchmarkPlan, part: BenchmarkPart, fold: Fold, seed: int, checkpoint: Path | None
) -> np.ndarray:
    named = s2snet_of(part.method, plan.settings)
    graphs = _seen(plan.source, named.network)
    before: list[CrystalGraph] = []
    if part.method.pretrained:
        own, others = plan.pretraining_rows(part.split, fold)
        more = plan.read_more()
        before = [graphs[row] for row in own]
        before += [seen_by(named.network, more.crystals[row]) for row in others] if more else []
    network = train_network(
        named,
        [graphs[row] for row in fold.train],
        plan.read().labels[fold.train],
        before,
        seed,
        device=plan.settings.device,
        checkpoint=checkpoint,
    )
    return predict_logits(network, [graphs[row] for row in fold.test])


def _trees_logits(
    _workspace: Workspace, plan: BenchmarkPlan, part: BenchmarkPart, fold: Fold, seed: int, _checkpoint: Path | None
) -> np.ndarray:
    features = _features(plan.source)
    no_temperatures = np.full(len(fold.train), np.nan)
    reports = reports_for(plan.read_reports(), part.split, fold, features) if part.method.reports else None
    trees = fit_trees(features[fold.train], plan.read().labels[fold.train], no_temperatures, seed, reports=reports)
    return trees.logits(features[fold.test])


def _reports_logits(
    _workspace: Workspace, plan: BenchmarkPlan, part: BenchmarkPart, fold: Fold, seed: int, _checkpoint: Path | None
) -> np.ndarray:
    features, others = _features(plan.source), fold.train[plan.read().labels[fold.train] == 0]
    reports = reports_for(plan.read_reports(), part.split, fold, features)
    return ask_reported(fit_reported(reports, features[others], seed), features[fold.test])


def _graph_logits(
    workspace: Workspace, plan: BenchmarkPlan, part: BenchmarkPart, fold: Fold, seed: int, checkpoint: Path | None
) -> np.ndarray:
    """Logits of the held-out crystals; leaves the name of the settings that were chosen beside the part."""
    dataset, models, device = plan.read(), graphs_of(part.method, plan.settings), plan.settings.device
    labels = dataset.labels[fold.train]

    def thinned(config: CgcnnConfig | MegnetConfig) -> list[CrystalGraph]:
        return _thinned(plan.source, config.cutoff, config.neighbours)

    name = next(iter(models))
    if len(models) > 1:
        groups = as_rows(dataset).groups[fold.train] if part.split != "random" else None
        name = tune_graph_network(
            models,
            lambda model: [thinned(model.network)[row] for row in fold.train],
            labels,
            groups,
            seed,
            device=device,
        )
    model = models[name]
    graphs = thinned(model.network)
    energies = _energies(plan, part, fold, model.network) if part.method.pretrained else None
    crystals = [graphs[row] for row in fold.train]
    network = train_graph_network(
        model, crystals, labels, seed, energies=energies, device=device, checkpoint=checkpoint
    )
    workspace.write_json(f"{part.file}.json", {"chosen": name})
    return predict_graphs(network, [graphs[row] for row in fold.test])


_LOGITS = {
    "s2snet": _s2snet_logits,
    "paper": _s2snet_logits,
    "trees": _trees_logits,
    "reports": _reports_logits,
    "cgcnn": _graph_logits,
    "megnet": _graph_logits,
}


def _energies(plan: BenchmarkPlan, part: BenchmarkPart, fold: Fold, config: CgcnnConfig | MegnetConfig) -> Energies:
    """Crystals with formation energies that may be seen before the fold is judged."""
    dataset, more = plan.read(), plan.read_more()
    own, others = plan.pretraining_rows(part.split, fold)
    chosen = [(dataset.crystals[row], dataset.energies[row]) for row in own]
    chosen += [(more.crystals[row], more.energies[row]) for row in others] if more else []
    chosen = [(crystal, energy) for crystal, energy in chosen if np.isfinite(energy)]
    graphs = [thin(graph(crystal, config.cutoff), config.cutoff, config.neighbours) for crystal, _ in chosen]
    return Energies(graphs, np.array([energy for _, energy in chosen]))


def blend(predictions: pa.Table, method: Method, titles: dict[str, str]) -> pa.Table:
    """Held-out probabilities of a method that blends two others (PREDICTIONS), as `meissner train s2snet` has them.

    Parameters
    ----------
    predictions
        Rows of all methods that were trained.
    titles
        Titles of the methods by name.
    """
    network, trees = (
        predictions.filter(pc.equal(predictions["model"], titles[name])).sort_by(
            [("split", "ascending"), ("fold", "ascending"), ("material_id", "ascending")]
        )
        for name in method.of
    )
    found = np.empty(len(network))
    splits = np.array(network["split"].to_pylist())
    labels = network["superconductor"].to_numpy(zero_copy_only=False).astype(np.int64)
    folds = np.array(network["fold"].to_pylist())
    logits = [logit(np.clip(of["probability"].to_numpy(), CERTAIN, 1 - CERTAIN)) for of in (network, trees)]
    for split in np.unique(splits):
        here = splits == split
        found[here] = held_out_blend(logits[0][here], logits[1][here], labels[here], folds[here])[1]
    columns = {"model": pa.array([method.title] * len(network)), "probability": pa.array(found)}
    for name, values in columns.items():
        network = network.set_column(network.schema.get_field_index(name), PREDICTIONS.field(name), values)
    return network


def _structures(dataset: CrystalDataset) -> list[Structure]:
    return [Structure(Lattice(c.lattice), c.atomic_numbers.tolist(), c.frac_coords) for c in dataset.crystals]


def _as_predictions(dataset: CrystalDataset, split: str, fold: Fold, model: str, probability: np.ndarray) -> pa.Table:
    rows = [
        {
            "split": split,
            "fold": fold.name,
            "model": model,
            "material_id": dataset.names[row],
            "formula": dataset.formulas[row],
            "superconductor": bool(dataset.labels[row]),
            "probability": float(value),
        }
        for row, value in zip(fold.test, probability, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=PREDICTIONS)
