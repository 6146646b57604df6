"""CGCNN, a published graph network of crystals, as a baseline of S2SNet (Xie and Grossman, PRL 120, 145301 (2018)).

Atoms begin as one-hot classes of nine properties of their element (table S2 of the paper's supplement; the values are
pymatgen's), pairs as Gaussians of their distance; three gated convolutions (torch-geometric's CGConv), a mean over the
atoms, a hidden layer, one logit. Unlike the published code, the gate has no batch normalisation of its own.

Shape letters: B crystals, A atoms of all crystals, E pairs, C channels.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional
from torch_geometric.nn import CGConv, global_mean_pool

from models.crystals import ELEMENTS, CrystalGraph
from models.exceptions import ModelInputError

BLOCKS = "spdf"
FARTHEST = 30.0  # largest exponent of a Gaussian: smaller numbers than e^-30 are slow on a CPU


class CgcnnConfig(BaseModel):
    """Architecture; the defaults are the published code's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: int = Field(64, ge=1, description="Channels of an atom")
    convolutions: int = Field(3, ge=1, description="Convolution layers")
    hidden: int = Field(128, ge=1, description="Width of the layer after pooling")
    dropout: float = Field(0.5, ge=0, lt=1, description="Before the last layer (the published classifier has it)")
    cutoff: float = Field(8.0, gt=0, description="Farthest neighbour, angstrom")
    neighbours: int | None = Field(12, ge=1, description="Nearest neighbours of an atom that count; none: all")
    step: float = Field(0.2, gt=0, description="Distance and width of the Gaussians, angstrom")


@dataclass(frozen=True, eq=False)
class GraphBatch:
    """B crystals as one graph.

    Attributes
    ----------
    numbers
        (A,) int64 atomic numbers.
    owner
        (A,) int64, the crystal of each atom.
    pairs
        (2, E) int64, neighbour and centre; an atom is not its own neighbour, its images may be.
    distances
        (E,) float32, angstrom.
    size
        B.
    """

    numbers: Tensor
    owner: Tensor
    pairs: Tensor
    distances: Tensor
    size: int

    def to(self, device: torch.device | str) -> "GraphBatch":
        """Give the batch on a device."""
        tensors = {f.name: getattr(self, f.name).to(device) for f in fields(self) if f.name != "size"}
        return GraphBatch(**tensors, size=self.size)


def thin(crystal: CrystalGraph, cutoff: float, neighbours: int | None) -> CrystalGraph:
    """Keep the nearest ``neighbours`` of each atom within ``cutoff`` angstrom, without the atom itself.

    Of neighbours at one distance, those stay that stand first in the crystal's own order.

    Raises
    ------
    ModelInputError
        If the crystal's neighbours were not looked for so far away.
    """
    if cutoff > crystal.cutoff:
        raise ModelInputError(f"Neighbours are known up to {crystal.cutoff} angstrom, not up to {cutoff}")
    near = np.flatnonzero((crystal.distances > 0) & (crystal.distances < cutoff))
    near = near[np.lexsort((crystal.distances[near], crystal.centres[near]))]
    if neighbours is not None:
        counts = np.bincount(crystal.centres[near], minlength=len(crystal))
        rank = np.arange(len(near)) - np.repeat(np.cumsum(counts) - counts, counts)
        near = near[rank < neighbours]
    kept = (crystal.centres[near], crystal.neighbours[near], crystal.distances[near])
    return CrystalGraph(crystal.arrays, *kept, cutoff)


def join(crystals: Sequence[CrystalGraph]) -> GraphBatch:
    """Put thinned crystals into one graph; raises ModelInputError for an empty batch."""
    if not crystals:
        raise ModelInputError("A batch needs at least one crystal")
    sizes = [len(crystal) for crystal in crystals]
    starts = np.repeat(np.cumsum(sizes) - sizes, [len(crystal.distances) for crystal in crystals])
    pairs = np.stack([np.concatenate([getattr(c, name) for c in crystals]) for name in ("neighbours", "centres")])
    return GraphBatch(
        numbers=torch.from_numpy(np.concatenate([crystal.arrays.atomic_numbers for crystal in crystals])),
        owner=torch.from_numpy(np.repeat(np.arange(len(crystals)), sizes)),
        pairs=torch.from_numpy(pairs + starts),
        distances=torch.from_numpy(np.concatenate([crystal.distances for crystal in crystals])),
        size=len(crystals),
    )


@functools.cache
def element_classes() -> np.ndarray:
    """(96, classes) float32 one-hot properties by atomic number; a value that is not known sets no class."""
    from pymatgen.core import Element

    rows = np.arange(ELEMENTS + 1)
    columns = []
    for name, (low, high, count) in _CLASSES.items():
        values = np.full(len(rows), np.nan)
        for number in rows[1:]:
            values[number] = _property(Element.from_Z(int(number)), name)
        place = np.floor((values - low) / (high - low) * count)
        known = np.isfinite(place)
        column = np.zeros((len(rows), count), dtype=np.float32)
        column[rows[known], place[known].clip(0, count - 1).astype(int)] = 1
        columns.append(column)
    table = np.hstack(columns)
    table.setflags(write=False)
    return table


_CLASSES: dict[str, tuple[float, float, int]] = {  # lowest, highest value and number of classes, as published
    "group": (0.5, 18.5, 18),
    "row": (0.5, 9.5, 9),
    "electronegativity": (0.5, 4.0, 10),
    "radius": (25, 250, 10),  # picometres; the calculated one stands for the covalent one
    "valence": (0.5, 12.5, 12),
    "ionisation": (1.3, 3.3, 10),  # ln eV
    "affinity": (-3, 3.7, 10),  # eV
    "block": (-0.5, 3.5, 4),
    "volume": (1.5, 4.3, 10),  # ln cm^3/mol
}


def _property(element: "object", name: str) -> float:
    """A property in the units of ``_CLASSES``; NaN where it is not known."""
    import warnings

    read = {
        "group": lambda e: e.group,
        "row": lambda e: e.row,
        "electronegativity": lambda e: e.X,
        "radius": lambda e: 100 * e.atomic_radius_calculated,
        "valence": lambda e: sum(n for shell, _, n in e.full_electronic_structure[-2:] if shell >= e.row - 1),
        "ionisation": lambda e: np.log(e.ionization_energy),
        "affinity": lambda e: e.electron_affinity,
        "block": lambda e: BLOCKS.index(e.block),
        "volume": lambda e: np.log(e.molar_volume),
    }[name]
    with warnings.catch_warnings(action="ignore"):  # pymatgen warns of what it does not know
        try:
            return float(read(element))
        except (TypeError, AttributeError, ValueError):
            return np.nan


class GatedConvolution(CGConv):
    """CGConv that multiplies weights with each atom once, not with each pair: the same numbers, less work."""

    def forward(self, atoms: Tensor, pairs: Tensor, features: Tensor) -> Tensor:  # type: ignore[override]
        """(A, C) atoms, (2, E) pairs and (E, K) features of the pairs, to (A, C)."""
        width = atoms.shape[1]
        weight = torch.cat([self.lin_f.weight, self.lin_s.weight])
        centre = functional.linear(atoms, weight[:, :width], torch.cat([self.lin_f.bias, self.lin_s.bias]))
        neighbour = functional.linear(atoms, weight[:, width : 2 * width])
        mixed = functional.linear(features, weight[:, 2 * width :])
        mixed = mixed + centre.index_select(0, pairs[1]) + neighbour.index_select(0, pairs[0])
        gate, core = mixed.chunk(2, dim=1)
        messages = gate.sigmoid() * functional.softplus(core)
        return atoms + self.bn(torch.zeros_like(atoms).index_add(0, pairs[1], messages))


class Cgcnn(nn.Module):
    """Crystals to one logit each."""

    centres: Tensor  # (K,) angstrom
    classes: Tensor  # (96, classes)

    def __init__(self, config: CgcnnConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("classes", torch.from_numpy(element_classes().copy()), persistent=False)
        count = round(config.cutoff / config.step) + 1
        self.register_buffer("centres", torch.linspace(0, config.cutoff, count), persistent=False)
        self.embedding = nn.Linear(self.classes.shape[1], config.width)
        self.convolutions = nn.ModuleList(
            GatedConvolution(config.width, count, batch_norm=True) for _ in range(config.convolutions)
        )
        self.hidden = nn.Linear(config.width, config.hidden)
        self.dropout = nn.Dropout(config.dropout)
        self.output = nn.Linear(config.hidden, 1)

    def forward(self, batch: GraphBatch) -> Tensor:
        """(B,) logits."""
        atoms = self.embedding(self.classes[batch.numbers])
        squared = ((batch.distances.unsqueeze(1) - self.centres) / self.config.step) ** 2
        features = torch.exp(-squared.clamp(max=FARTHEST))
        for convolution in self.convolutions:
            atoms = convolution(atoms, batch.pairs, features)
        crystal = functional.softplus(global_mean_pool(atoms, batch.owner, batch.size))
        hidden = functional.softplus(self.hidden(crystal))
        return self.output(self.dropout(hidden)).squeeze(1)

    def forget_output(self) -> None:
        """Start the last layer anew, after a pre-training on another target."""
        self.output.reset_parameters()
