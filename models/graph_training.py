"""Train the graph networks that S2SNet is compared with: as published, or with settings tried on inner folds.

Pre-training on formation energies, as in the papers, where they are known: the same network learns them first, and its
last layer starts anew.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.cgcnn import Cgcnn, CgcnnConfig, GraphBatch, join
from models.crystals import CrystalGraph, crystals_hash
from models.exceptions import ModelInputError
from models.megnet import Megnet, MegnetConfig
from models.metrics import classification_scores
from models.splits import make_folds
from models.training import Extras, Loss, Recipe, build, fit

GraphNetwork = Cgcnn | Megnet
INNER_FOLDS = 4  # one of so many parts of the training crystals validates settings


class GraphModel(NamedTuple):
    """A graph network and how it is trained."""

    network: CgcnnConfig | MegnetConfig
    recipe: Recipe


_TRIED = Recipe(epochs=30, batch_size=32, learning_rate=3e-3, weight_decay=0.01, schedule="cosine", clip=1.0)

# CGCNN's code stops at 30 epochs by default; MEGNet's papers train for hundreds to thousands: `epochs` is to be chosen.
PUBLISHED = {
    "cgcnn": GraphModel(
        CgcnnConfig(),
        Recipe(epochs=30, batch_size=256, optimizer="sgd", learning_rate=0.01, momentum=0.9, weight_decay=0.0),
    ),
    "megnet": GraphModel(MegnetConfig(), Recipe(epochs=30, batch_size=128, learning_rate=1e-3, weight_decay=0.0)),
}
TRIED = {
    "cgcnn": {
        "Adam": GraphModel(CgcnnConfig(dropout=0.2), _TRIED),
        "Adam, half as wide": GraphModel(CgcnnConfig(width=32, hidden=64, dropout=0.2), _TRIED),
    },
    "megnet": {
        "12 neighbours": GraphModel(MegnetConfig(hidden=(32, 32, 16), neighbours=12), _TRIED),
        "12 neighbours, 2 blocks": GraphModel(MegnetConfig(blocks=2, hidden=(32, 32, 16), neighbours=12), _TRIED),
    },
}


@dataclass(frozen=True, eq=False)
class GraphSamples:
    """Thinned crystals with a (crystals,) target each."""

    crystals: Sequence[CrystalGraph]
    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.crystals)

    def __call__(self, rows: Tensor, generator: torch.Generator, device: torch.device) -> tuple[GraphBatch, Tensor]:
        """Crystals ``rows`` as one graph with their float32 targets; nothing is drawn."""
        del generator
        targets = torch.from_numpy(np.asarray(self.targets, dtype=np.float32)[rows.numpy()])
        return join([self.crystals[row] for row in rows]).to(device), targets.to(device)


@dataclass(frozen=True, eq=False)
class Energies:
    """Crystals with (crystals,) formation energies, eV an atom."""

    crystals: Sequence[CrystalGraph]
    energies: np.ndarray


def make_network(config: CgcnnConfig | MegnetConfig) -> GraphNetwork:
    """Make the network of a configuration."""
    return Cgcnn(config) if isinstance(config, CgcnnConfig) else Megnet(config)


def train_graph_network(
    model: GraphModel,
    crystals: Sequence[CrystalGraph],
    labels: np.ndarray,
    seed: int,
    *,
    energies: Energies | None = None,
    device: str = "auto",
    checkpoint: Path | None = None,
) -> GraphNetwork:
    """Make and train a network.

    Parameters
    ----------
    crystals, labels
        Crystals, thinned as the configuration says (`models.cgcnn.thin`), and their (crystals,) labels 0 or 1.
    energies
        Thinned crystals with formation energies, to learn first; none: no pre-training.
    checkpoint
        Files beside this path are written between epochs and gone on from.
    """
    network = build(lambda: make_network(model.network), seed)
    if energies is not None:
        values = np.asarray(energies.energies, dtype=np.float64)
        scaled = (values - values.mean()) / max(float(values.std()), 1e-9)
        _fit(
            network, _energy_loss, GraphSamples(energies.crystals, scaled), model.recipe, seed, device, checkpoint, "e"
        )
        build(network.forget_output, seed + 1)
    _fit(network, _class_loss, GraphSamples(crystals, labels), model.recipe, seed, device, checkpoint, "c")
    return network


def tune_graph_network(
    tried: dict[str, GraphModel],
    crystals: Callable[[GraphModel], Sequence[CrystalGraph]],
    labels: np.ndarray,
    groups: np.ndarray | None,
    seed: int,
    *,
    device: str = "auto",
) -> str:
    """Name of the settings of highest ROC AUC on one inner fold of the training crystals.

    Parameters
    ----------
    crystals
        Gives the training crystals, thinned for a model.
    labels, groups
        (crystals,) labels, and groups that the inner fold keeps apart; none: by crystal.
    """
    split = "random" if groups is None else "chemical-system"
    fold = make_folds(split, size=len(labels), folds=INNER_FOLDS, seed=seed, groups=groups, labels=labels)[0]
    found = {}
    for name, model in tried.items():
        given = crystals(model)
        chosen = [given[row] for row in fold.train]
        network = train_graph_network(model, chosen, labels[fold.train], seed, device=device)
        logits = predict_graphs(network, [given[row] for row in fold.test])
        score = classification_scores(labels[fold.test], 1 / (1 + np.exp(-logits)), resamples=0)["roc_auc"].value
        found[name] = -np.inf if np.isnan(score) else score
    return max(found, key=lambda name: found[name])


def predict_graphs(network: GraphNetwork, crystals: Sequence[CrystalGraph], batch_size: int = 64) -> np.ndarray:
    """(crystals,) float64 logits in the order given; the network is left in evaluation mode."""
    device = next(network.parameters()).device
    network.eval()
    with torch.inference_mode():
        parts = [
            network(join(crystals[start : start + batch_size]).to(device)).double().cpu()
            for start in range(0, len(crystals), batch_size)
        ]
    return torch.cat(parts).numpy()


def remove_graph_checkpoints(checkpoint: Path) -> None:
    """Remove what ``train_graph_network`` left beside this path."""
    for kind in ("e", "c"):
        checkpoint.with_name(f"{checkpoint.name}.{kind}").unlink(missing_ok=True)


def _fit(
    network: GraphNetwork,
    loss: Loss,
    samples: GraphSamples,
    recipe: Recipe,
    seed: int,
    device: str,
    checkpoint: Path | None,
    kind: str,
) -> None:
    if len(samples) < 2:
        raise ModelInputError("A graph network needs at least 2 crystals to learn from")
    size = recipe.batch_size
    while len(samples) % size == 1:  # batch normalisation has no spread in a last batch of one atom
        size += 1
    changed = recipe.model_copy(update={"seed": seed, "batch_size": size})
    data = crystals_hash(samples.crystals, samples.targets) if checkpoint else ""
    extras = Extras(checkpoint and checkpoint.with_name(f"{checkpoint.name}.{kind}"), data=data)
    fit(network, loss, samples, changed, device=device, extras=extras)


def _class_loss(network: nn.Module, given: tuple[GraphBatch, Tensor]) -> Tensor:
    batch, labels = given
    return functional.binary_cross_entropy_with_logits(network(batch), labels)


def _energy_loss(network: nn.Module, given: tuple[GraphBatch, Tensor]) -> Tensor:
    batch, energies = given
    return functional.mse_loss(network(batch), energies)
