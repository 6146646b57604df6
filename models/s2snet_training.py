"""Train S2SNet: first to guess hidden elements of crystals, then to tell superconductors from others."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.crystals import CrystalBatch, CrystalGraph, collate, collate_by_size
from models.s2snet import NO_TARGET, NamedConfig, S2SNet, mask_atoms
from models.training import Extras, build, fit

Parts = list[tuple[CrystalBatch, Tensor]]  # a batch, cut into crystals of similar size, with what is to be learnt


@dataclass(frozen=True, eq=False)
class LabelledCrystals:
    """Training samples of the binary task: crystals and their (crystals,) labels 0 or 1."""

    crystals: Sequence[CrystalGraph]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.crystals)

    def __call__(self, rows: Tensor, generator: torch.Generator, device: torch.device) -> Parts:
        """Crystals ``rows`` in parts of similar size, each with its (B,) float32 labels; nothing is drawn."""
        del generator
        chosen = rows.numpy()
        labels = torch.from_numpy(np.asarray(self.labels, dtype=np.float32)[chosen])
        parts = collate_by_size([self.crystals[row] for row in chosen])
        return [(batch.to(device), labels[part].to(device)) for part, batch in parts]


@dataclass(frozen=True, eq=False)
class HiddenElements:
    """Training samples of the pre-training: crystals with some elements hidden anew in each epoch."""

    crystals: Sequence[CrystalGraph]

    def __len__(self) -> int:
        return len(self.crystals)

    def __call__(self, rows: Tensor, generator: torch.Generator, device: torch.device) -> Parts:
        """Crystals ``rows`` in parts of similar size, each with its (B, N) int64 hidden elements."""
        parts = [mask_atoms(batch, generator) for _, batch in collate_by_size([self.crystals[row] for row in rows])]
        return [(batch.to(device), targets.to(device)) for batch, targets in parts]


def train_network(
    named: NamedConfig,
    crystals: Sequence[CrystalGraph],
    labels: np.ndarray,
    pretraining: Sequence[CrystalGraph],
    seed: int,
    *,
    device: str = "auto",
    checkpoint: Path | None = None,
    advance: Callable[[int], None] = lambda _count: None,
) -> S2SNet:
    """Make, pre-train and fine-tune a network.

    Parameters
    ----------
    crystals, labels
        Crystals and their (crystals,) labels 0 or 1.
    pretraining
        Crystals whose elements are guessed first, labelled or not; none: no pre-training.
    seed
        Of initial weights, order, hidden atoms and dropout.
    checkpoint
        Files beside this path are written between epochs and gone on from.
    advance
        Called with 1 after each epoch.
    """
    network = build(lambda: S2SNet(named.network), seed)
    network.fit_descriptors(collate([crystal]) for crystal in crystals)
    if len(pretraining):
        recipe = named.pretraining.model_copy(update={"seed": seed})
        state = checkpoint and checkpoint.with_name(f"{checkpoint.name}.pretraining")
        samples = HiddenElements(pretraining)
        fit(network, masked_loss, samples, recipe, device=device, extras=Extras(state), advance=advance)
    if named.freeze:
        network.freeze_trunk()
    recipe = named.finetuning.model_copy(update={"seed": seed})
    state = checkpoint and checkpoint.with_name(f"{checkpoint.name}.finetuning")
    samples_with_labels = LabelledCrystals(crystals, labels)
    fit(network, classification_loss, samples_with_labels, recipe, device=device, extras=Extras(state), advance=advance)
    return network


def remove_checkpoints(checkpoint: Path) -> None:
    """Remove what ``train_network`` left beside this path."""
    for stage in ("pretraining", "finetuning"):
        checkpoint.with_name(f"{checkpoint.name}.{stage}").unlink(missing_ok=True)


def classification_loss(network: nn.Module, parts: Parts) -> Tensor:
    """Binary cross entropy, mean over the crystals."""
    total = sum(len(labels) for _, labels in parts)
    losses = [
        functional.binary_cross_entropy_with_logits(network(batch), labels, reduction="sum") for batch, labels in parts
    ]
    return torch.stack(losses).sum() / total


def masked_loss(network: nn.Module, parts: Parts) -> Tensor:
    """Cross entropy of the hidden elements, mean over the hidden atoms; 0 where none is hidden."""
    hidden = sum(int((targets != NO_TARGET).sum()) for _, targets in parts)
    losses = [
        functional.cross_entropy(
            network(batch, masked=True).flatten(0, 1), targets.flatten(), ignore_index=NO_TARGET, reduction="sum"
        )
        for batch, targets in parts
    ]
    return torch.stack(losses).sum() / max(hidden, 1)


def predict_logits(network: S2SNet, crystals: Sequence[CrystalGraph], batch_size: int = 64) -> np.ndarray:
    """(crystals,) float64 logits in the order given; the network is left in evaluation mode."""
    device = next(network.parameters()).device
    order = np.argsort([len(crystal) for crystal in crystals], kind="stable")
    logits = np.zeros(len(crystals))
    network.eval()
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = collate([crystals[index] for index in chosen]).to(device)
            logits[chosen] = network(batch).double().cpu().numpy()
    return logits
