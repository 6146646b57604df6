"""Pre-train S2SNet without labels: elements of a crystal are hidden and guessed from the others and the structure.

Two ways to hide. ``atoms``: 15 % of the atoms, as published; where the network sees one atom of each orbit, that is a
whole sublattice, which cannot be copied from an equal atom. ``element``: all atoms of one element of the crystal.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.crystals import MASKED, PADDING, CrystalBatch, CrystalGraph, collate_by_size, crystals_hash
from models.exceptions import ModelInputError
from models.s2snet import S2SNet, S2SNetConfig
from models.training import Extras, Recipe, TrainingLog, build, fit

Masking = Literal["atoms", "element"]
Parts = list[tuple[CrystalBatch, Tensor]]  # a batch, cut into crystals of similar size, with what is to be learnt
NO_TARGET = -100  # an atom whose element is not asked for; what cross_entropy ignores
FINE_TUNED = ("head.",)  # weights that no hidden element teaches


@dataclass(frozen=True, eq=False)
class HiddenElements:
    """Training samples of the pre-training: crystals with some elements hidden anew in each epoch."""

    crystals: Sequence[CrystalGraph]
    masking: Masking = "atoms"

    def __len__(self) -> int:
        return len(self.crystals)

    def __call__(self, rows: Tensor, generator: torch.Generator, device: torch.device) -> Parts:
        """Crystals ``rows`` in parts of similar size, each with its (B, N) int64 hidden elements."""
        hide = mask_atoms if self.masking == "atoms" else mask_element
        parts = [hide(batch, generator) for _, batch in collate_by_size([self.crystals[row] for row in rows])]
        return [(batch.to(device), targets.to(device)) for batch, targets in parts]


def can_hide(crystal: CrystalGraph, masking: Masking) -> bool:
    """Whether an element of a crystal can be hidden while another atom, or element, stays visible."""
    return len(crystal) > 1 if masking == "atoms" else len(np.unique(crystal.arrays.atomic_numbers)) > 1


def mask_atoms(
    batch: CrystalBatch, generator: torch.Generator, fraction: float = 0.15, at_least: int = 2
) -> tuple[CrystalBatch, Tensor]:
    """Hide the elements of some atoms of each crystal.

    At least ``at_least`` atoms and ``fraction`` of the atoms are hidden, drawn by ``generator`` (on the CPU); one atom
    of a crystal always stays visible, so a crystal of one atom has none hidden.

    Returns
    -------
    tuple
        The batch with hidden elements, and (B, N) int64 targets: atomic number - 1 where hidden, -100 elsewhere.
    """
    mask = batch.mask
    atoms = mask.sum(dim=1)
    count = (atoms * fraction).ceil().long().clamp(min=at_least).minimum(atoms - 1)
    draw = torch.rand(mask.shape, generator=generator).to(mask.device).masked_fill(~mask, 2.0)
    return _hidden(batch, draw.argsort(dim=1).argsort(dim=1) < count[:, None])


def mask_element(batch: CrystalBatch, generator: torch.Generator) -> tuple[CrystalBatch, Tensor]:
    """Hide all atoms of one element of each crystal, drawn by ``generator``; in a crystal of one element, none.

    Returns as ``mask_atoms``.
    """
    present = functional.one_hot(batch.numbers, MASKED + 1).amax(dim=1).bool()
    present[:, PADDING] = False
    draw = torch.rand(present.shape, generator=generator).to(batch.numbers.device).masked_fill(~present, -1.0)
    several = present.sum(dim=1, keepdim=True) > 1
    return _hidden(batch, (batch.numbers == draw.argmax(dim=1, keepdim=True)) & several)


def _hidden(batch: CrystalBatch, hidden: Tensor) -> tuple[CrystalBatch, Tensor]:
    targets = torch.where(hidden, batch.numbers - 1, NO_TARGET)
    return replace(batch, numbers=batch.numbers.masked_fill(hidden, MASKED)), targets


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


@dataclass(frozen=True)
class MaskedAccuracy:
    """Share of hidden atoms whose element is guessed: by the network, and by the most frequent element.

    ``frequency`` is the share of the element that is hidden most often in the crystals that were learnt from;
    ``atoms`` counts hidden atoms of the crystals that were not.
    """

    network: float
    frequency: float
    atoms: int


def masked_accuracy(
    network: S2SNet, learnt: HiddenElements, held_out: HiddenElements, seed: int, batch_size: int = 64
) -> MaskedAccuracy:
    """How often the network names a hidden element of crystals that it has not seen; ModelInputError for none."""
    device, generator = next(network.parameters()).device, torch.Generator().manual_seed(seed)
    frequent = np.bincount(np.concatenate([t for _, t in _asked(learnt, generator, batch_size, device)])).argmax()
    right, common, atoms = 0, 0, 0
    network.eval()
    with torch.inference_mode():
        for batch, targets in _asked(held_out, generator, batch_size, device):
            guessed = network(batch, masked=True).argmax(dim=-1).cpu().numpy()
            asked = batch.numbers.cpu().numpy() == MASKED
            right += int((guessed[asked] == targets).sum())
            common += int((targets == frequent).sum())
            atoms += len(targets)
    if not atoms:
        raise ModelInputError("No element could be hidden in the held-out crystals: each has one atom or element")
    return MaskedAccuracy(right / atoms, common / atoms, atoms)


def _asked(
    samples: HiddenElements, generator: torch.Generator, batch_size: int, device: torch.device
) -> list[tuple[CrystalBatch, np.ndarray]]:
    """Batches with hidden elements, and these elements as they stand in the batch (int64, atomic number - 1)."""
    found = []
    for rows in torch.arange(len(samples)).split(batch_size):
        for batch, targets in samples(rows, generator, device):
            flat = targets.cpu().numpy()
            found.append((batch, flat[flat != NO_TARGET]))
    return found


def pretrain(
    config: S2SNetConfig,
    recipe: Recipe,
    crystals: Sequence[CrystalGraph],
    *,
    masking: Masking = "atoms",
    device: str = "auto",
    devices: int = 1,
    checkpoint: Path | None = None,
    curves: Path | None = None,
    advance: Callable[[int], None] = lambda _count: None,
) -> tuple[S2SNet, TrainingLog]:
    """A network that has learnt to guess hidden elements; the recipe's seed draws all that is drawn."""
    network = build(lambda: S2SNet(config), recipe.seed)
    data = crystals_hash(crystals) if checkpoint else ""
    samples, extras = HiddenElements(crystals, masking), Extras(checkpoint, curves=curves, data=data)
    log = fit(network, masked_loss, samples, recipe, device=device, devices=devices, extras=extras, advance=advance)
    return network, log


def trunk_state(network: S2SNet) -> dict[str, Tensor]:
    """The weights that hidden elements teach, on the CPU: all but those of the head."""
    state = network.state_dict().items()
    return {name: value.detach().cpu().contiguous() for name, value in state if not name.startswith(FINE_TUNED)}


def trunk_differences(found: S2SNetConfig, wanted: S2SNetConfig) -> list[str]:
    """Settings by which the trunks of two configurations differ."""
    head = {"dropout", "set2set_steps", "lattice", "composition", "head_layers", "temperature"}
    return [
        f"{name} {getattr(found, name)}, not {getattr(wanted, name)}"
        for name in S2SNetConfig.model_fields
        if name not in head and getattr(found, name) != getattr(wanted, name)
    ]


def start_from(network: S2SNet, state: Mapping[str, Tensor]) -> None:
    """Give a network a pre-trained trunk; ModelInputError where the weights are of another one."""
    try:
        missing, unknown = network.load_state_dict(dict(state), strict=False)
    except RuntimeError as error:
        raise ModelInputError(f"The pre-trained weights are of another network: {error}") from error
    if unknown or any(not name.startswith(FINE_TUNED) for name in missing):
        raise ModelInputError("The pre-trained weights are of another network: they have other names")
