"""S2SNet: from a crystal structure to the probability of superconductivity (Liu et al., "S2SNet", arXiv:2306.16270).

Two readings by name in ``CONFIGS``. ``paper`` follows the paper as printed: distance from the centre of the cell as
position, attention within 2 angstrom, Set2Set, cell lengths. ``s2snet`` and the smaller ``starter`` are ours; they
differ where the paper's choice depends on the description of the crystal instead of the crystal:

- positions: how many atoms stand at each distance from an atom, periodic images included, instead of the distance
  from the centre of an arbitrary cell;
- attention: over all periodic images within a cutoff, one softmax over images (their logarithmic sum is the bias of a
  pair of atoms, as in Crystalformer, Taniai et al., ICLR 2024), instead of a bare mask;
- elements: a map of their Magpie properties instead of a learned embedding, which few crystals cannot teach, and
  Magpie's composition descriptors at the head;
- lattice: volume per atom instead of the lengths of the chosen cell vectors.

So ours give the same answer for any choice of origin, orientation, cell vectors, supercell and order of the atoms.

Shape letters: B crystals, N atoms (padded), E pairs, D width, H heads, L layers, K Gaussians, P element properties.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn
from torch.nn import functional

from models.attention_layers import AttentionLayer, Packing
from models.composition_descriptors import (
    composition_descriptors,
    descriptor_count,
    element_properties,
    standardised,
)
from models.crystals import ELEMENTS, MASKED, PADDING, CrystalBatch
from models.training import Recipe

FARTHEST = 30.0  # largest exponent of a Gaussian: e^-30 is nothing, and smaller numbers are slow on a CPU
SAME = 1e-6  # spread of a descriptor that does not vary
FAR = 5.0  # descriptors beyond so many deviations count as this far
TINY_WEIGHT = 1e-12  # of a neighbour at the cutoff; keeps its logarithm finite


class S2SNetConfig(BaseModel):
    """Architecture; each switch stands where the paper (P), its published code (C) and we differ."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: int = Field(512, ge=1, description="Width D of the embeddings (P 512)")
    layers: int = Field(10, ge=1, description="Attention layers (P 10)")
    heads: int = Field(16, ge=1, description="Attention heads (C 16)")
    feed_forward: int = Field(2048, ge=1, description="Inner width of the feed-forward networks (C 2048)")
    dropout: float = Field(0.3, ge=0, lt=1, description="Dropout (C 0.3)")
    scale_embedding: bool = Field(False, description="Multiply embeddings by sqrt(D) (C)")
    elements: Literal["learned", "properties", "both"] = Field(
        "learned", description="An atom's start: learned by element (P, C), a map of Magpie properties (ours), or both"
    )
    positions: Literal["centre", "environment"] = Field("centre", description="centre (P, C) or environment (ours)")
    gaussians: int = Field(512, ge=2, description="Gaussians that expand a distance (P 512)")
    reach: float = Field(5.12, gt=0, description="Centre of the last Gaussian, angstrom (P 5.12)")
    sigma: float = Field(2.0, gt=0, description="Width in exp(-(d - d0)^2 / sigma^2), angstrom (P 2, C 0.5)")
    position_sum: Literal["add", "normalised"] = Field("add", description="add (P) or normalised (C)")
    attention: Literal["radius", "all", "periodic"] = Field(
        "radius", description="radius (P), all (C), periodic (ours)"
    )
    radius: float = Field(2.0, gt=0, description="Cutoff of radius and periodic attention, angstrom (P 2)")
    set2set_steps: int = Field(10, ge=1, description="Processing steps of Set2Set (C 10)")
    lattice: Literal["lengths", "matrix", "volume", "none"] = Field("lengths", description="P lengths, C matrix")
    composition: bool = Field(False, description="Join composition descriptors at the head (ours)")
    head_layers: Literal[2, 4] = Field(2, description="Fully connected layers at the end (P 2, C 4)")
    temperature: bool = Field(False, description="The last layer also gives ln(Tc/K + 1) (ours)")

    @property
    def by_orbits(self) -> bool:
        """Whether equal atoms get equal embeddings, so that one of each orbit is enough (``orbit_graph``)."""
        return (self.positions, self.attention) == ("environment", "periodic") and self.lattice in {"volume", "none"}


class NamedConfig(NamedTuple):
    """A network and how it is trained.

    ``pretraining`` is None where networks start from random weights; ``masking`` says what it hides (see
    ``models.s2snet_pretraining``). ``freeze`` keeps the pre-trained trunk fixed in fine-tuning (P). ``trees`` blends
    the network with gradient boosting (``models.crystal_trees``).
    """

    network: S2SNetConfig
    pretraining: Recipe | None
    finetuning: Recipe
    freeze: bool
    trees: bool = False
    masking: Literal["atoms", "element"] = "atoms"


class S2SNet(nn.Module):
    """Embedding, attention layers, Set2Set and two heads: superconductor or not, and the masked element."""

    properties: torch.Tensor  # (97, P)

    def __init__(self, config: S2SNetConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = _optional(
            config.elements != "properties", lambda: nn.Embedding(MASKED + 1, config.width, padding_idx=PADDING)
        )
        self.register_buffer("properties", torch.from_numpy(standardised(element_properties())))
        self.property_map = _optional(
            config.elements != "learned", lambda: nn.Linear(self.properties.shape[1], config.width)
        )
        self.radial = Gaussians(config)
        self.position_map = nn.Linear(config.gaussians, config.width)
        self.position_norm = _optional(config.position_sum == "normalised", lambda: nn.LayerNorm(config.width))
        self.image_weights = _optional(
            config.attention == "periodic", lambda: nn.Linear(config.gaussians, config.layers * config.heads)
        )
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            AttentionLayer(config.width, config.heads, config.feed_forward, config.dropout)
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.width)
        self.masked_head = nn.Linear(config.width, ELEMENTS)
        self.head = CrystalHead(config)

    def forward(self, batch: CrystalBatch, *, masked: bool = False, everything: bool = False) -> torch.Tensor:
        """(B,) logits of being a superconductor.

        ``masked``: (B, N, 95) logits of the element of each atom instead. ``everything``: (B, 1 or 2) with
        ln(Tc/K + 1) as the second number, where the configuration has it.
        """
        atoms = self.encode(batch)
        if masked:
            return self.masked_head(atoms)
        return self.head(atoms, batch) if everything else self.classify(atoms, batch)

    def encode(self, batch: CrystalBatch) -> torch.Tensor:
        """(B, N, D) embeddings of the atoms after all attention layers; padding holds numbers without meaning."""
        expanded = self._expand(batch)
        return self._attend(self._embed(batch, expanded), batch, expanded)

    def start(self, batch: CrystalBatch) -> torch.Tensor:
        """(B, N, D) what the atoms start from, elements and places, before any attention layer."""
        return self._embed(batch, self._expand(batch))

    def attend(self, atoms: torch.Tensor, batch: CrystalBatch) -> torch.Tensor:
        """(B, N, D) embeddings after all attention layers from those that `start` gives."""
        return self._attend(atoms, batch, self._expand(batch))

    def _attend(self, atoms: torch.Tensor, batch: CrystalBatch, expanded: torch.Tensor) -> torch.Tensor:
        packing, biases = Packing.of(batch.mask), self._attention_biases(batch, expanded)
        rows = packing.pack(atoms)
        for layer, bias in zip(self.layers, biases, strict=True):
            rows = layer(rows, bias, packing)
        return packing.pad(self.norm(rows))

    def classify(self, atoms: torch.Tensor, batch: CrystalBatch) -> torch.Tensor:
        """(B,) logits from the (B, N, D) embeddings of the atoms."""
        return self.head(atoms, batch)[:, 0]

    def embed_elements(self, numbers: torch.Tensor) -> torch.Tensor:
        """(..., D) what an atom of each atomic number (...) is, before it is told of its place."""
        atoms = self.properties.new_zeros(())
        if self.embedding is not None:
            scale = math.sqrt(self.config.width) if self.config.scale_embedding else 1.0
            atoms = self.embedding(numbers) * scale
        if self.property_map is not None:
            atoms = atoms + self.property_map(self.properties[numbers])
        return atoms

    def fit_descriptors(self, batches: Iterable[CrystalBatch]) -> None:
        """Take mean and deviation of the composition descriptors from training crystals, in place."""
        if self.head.composition is not None:
            self.head.composition.fit(batches)

    def freeze_trunk(self) -> None:
        """Keep embedding, attention layers and Set2Set as they are (P); only the head learns."""
        self.requires_grad_(False)
        self.head.requires_grad_(True)
        self.head.aggregate.requires_grad_(False)

    def _expand(self, batch: CrystalBatch) -> torch.Tensor:
        """(E, K) Gaussians of the pairs; no rows where this configuration needs none."""
        needed = self.config.attention == "periodic" or self.config.positions == "environment"
        return self.radial(batch.distances if needed else batch.distances[:0])

    def _embed(self, batch: CrystalBatch, expanded: torch.Tensor) -> torch.Tensor:
        atoms = self.embed_elements(batch.numbers)
        positions = self.position_map(self._positions(batch, expanded))
        if self.position_norm is None:
            return atoms + positions
        return self.position_norm(atoms + self.dropout(functional.gelu(positions)))

    def _positions(self, batch: CrystalBatch, expanded: torch.Tensor) -> torch.Tensor:
        """(B, N, K) what an atom is told of its place."""
        mask = batch.mask.unsqueeze(-1)
        if self.config.positions == "centre":
            centre = batch.positions.sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True)
            return self.radial((batch.positions - centre).norm(dim=-1)) * mask
        others = (batch.distances > 0).unsqueeze(-1)
        expanded = expanded * _cutoff(batch.distances, self.config.radius) * others
        size, atoms = batch.numbers.shape
        counts = expanded.new_zeros(size * atoms, expanded.shape[-1])
        return counts.index_add(0, batch.pairs // atoms, expanded).view(size, atoms, -1)

    def _attention_biases(self, batch: CrystalBatch, expanded: torch.Tensor) -> list[torch.Tensor]:
        """L biases, (B, 1, N, N) or (B, H, N, N), -inf where an atom does not attend; padding attends to anything."""
        mask = batch.mask
        if self.config.attention == "all":
            allowed = mask[:, None, :].expand(-1, mask.shape[1], -1)
        else:
            allowed = batch.pair_mask(self.config.radius)
        blocked = ~allowed & mask[:, :, None]
        if self.image_weights is None:
            bias = torch.zeros_like(blocked, dtype=batch.distances.dtype).masked_fill(blocked, -torch.inf)
            return [bias.unsqueeze(1)] * self.config.layers
        weights = functional.softplus(self.image_weights(expanded)) * _cutoff(batch.distances, self.config.radius)
        total = weights.new_zeros(blocked.numel(), weights.shape[-1]).index_add(0, batch.pairs, weights)
        bias = total.clamp(min=TINY_WEIGHT).log().masked_fill(blocked.view(-1, 1), -torch.inf)
        bias = bias.view(*blocked.shape, self.config.layers, self.config.heads).permute(3, 0, 4, 1, 2)
        return list(bias.unbind(0))


class Gaussians(nn.Module):
    """exp(-(d - d0)^2 / sigma^2) for K centres d0 evenly from 0 to ``reach``; (...) angstrom to (..., K)."""

    centres: torch.Tensor  # (K,)

    def __init__(self, config: S2SNetConfig) -> None:
        super().__init__()
        self.register_buffer("centres", torch.linspace(0, config.reach, config.gaussians), persistent=False)
        self.sigma = config.sigma

    def forward(self, distances: torch.Tensor) -> torch.Tensor:
        squared = ((distances.unsqueeze(-1) - self.centres) / self.sigma) ** 2
        return torch.exp(-squared.clamp(max=FARTHEST))


class Set2Set(nn.Module):
    """Order-free summary of a set (Vinyals, Bengio and Kudlur, "Order Matters", ICLR 2016, section 4.2)."""

    def __init__(self, width: int, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.lstm = nn.LSTMCell(2 * width, width)

    def forward(self, items: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """(B, N, D) items, each (B, N) ``counts`` times there, to (B, 2 D): the last query and what it read."""
        often = counts.to(items.dtype).log()
        query = cell = items.new_zeros(items.shape[0], items.shape[2])
        summary = torch.cat([query, query], dim=1)
        for _ in range(self.steps):
            query, cell = self.lstm(summary, (query, cell))
            scores = torch.einsum("bnd,bd->bn", items, query) + often
            summary = torch.cat([query, torch.einsum("bn,bnd->bd", scores.softmax(dim=1), items)], dim=1)
        return summary


class CrystalHead(nn.Module):
    """From atoms to a logit a crystal, and ln(Tc + 1): Set2Set, lattice, composition, fully connected layers."""

    def __init__(self, config: S2SNetConfig) -> None:
        super().__init__()
        self.config = config
        inputs = {"lengths": 3, "matrix": 9, "volume": 1}.get(config.lattice, 0)
        self.aggregate = Set2Set(config.width, config.set2set_steps)
        self.lattice_map = _optional(inputs > 0, lambda: nn.Linear(inputs, 2 * config.width))
        self.composition = CompositionBranch(2 * config.width) if config.composition else None
        width = config.width * (4 if config.composition else 2)
        hidden = [config.width] * (config.head_layers - 1)
        layers: list[nn.Module] = []
        for into, out in zip([width, *hidden], hidden, strict=False):
            layers += [nn.Dropout(config.dropout), nn.Linear(into, out), nn.GELU()]
        self.fully_connected = nn.Sequential(*layers, nn.Linear(hidden[-1], 1 + config.temperature))

    def forward(self, atoms: torch.Tensor, batch: CrystalBatch) -> torch.Tensor:
        """(B, N, D) embeddings to (B, 1 or 2) answers."""
        return self.join(self.parts(atoms, batch))

    def parts(self, atoms: torch.Tensor, batch: CrystalBatch) -> dict[str, torch.Tensor]:
        """What reaches the fully connected layers, each (B, ...): ``atoms``, ``lattice``, ``composition``."""
        found = {"atoms": self.aggregate(atoms, batch.multiplicity)}
        if self.lattice_map is not None:
            found["lattice"] = self.lattice_map(_lattice_numbers(self.config.lattice, batch))
        if self.composition is not None:
            found["composition"] = self.composition(batch)
        return found

    def join(self, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """(B, 1 or 2) answers from what `parts` gives; the first is the logit."""
        crystal = parts["atoms"]
        if "lattice" in parts:
            crystal = crystal + parts["lattice"]
        if "composition" in parts:
            crystal = torch.cat([crystal, parts["composition"]], dim=1)
        return self.fully_connected(crystal)


class CompositionBranch(nn.Module):
    """Composition descriptors in units of their spread over the training crystals, and a layer on them."""

    table: torch.Tensor  # (97, P)
    mean: torch.Tensor  # (descriptors,)
    deviation: torch.Tensor  # (descriptors,)

    def __init__(self, width: int) -> None:
        super().__init__()
        count = descriptor_count()
        self.register_buffer("table", torch.from_numpy(element_properties().copy()))
        self.register_buffer("mean", torch.zeros(count))
        self.register_buffer("deviation", torch.ones(count))
        self.linear = nn.Linear(count, width)

    def fit(self, batches: Iterable[CrystalBatch]) -> None:
        """Set mean and deviation; a descriptor that is the same in all crystals keeps its size."""
        found = torch.cat([composition_descriptors(b.numbers, self.table, b.multiplicity) for b in batches])
        deviation, self.mean = torch.std_mean(found, dim=0, correction=0)
        self.deviation = torch.where(deviation > SAME, deviation, torch.ones_like(deviation))

    def forward(self, batch: CrystalBatch) -> torch.Tensor:
        """B crystals to (B, width)."""
        found = composition_descriptors(batch.numbers, self.table, batch.multiplicity)
        descriptors = (found - self.mean) / self.deviation
        return functional.gelu(self.linear(descriptors.clamp(-FAR, FAR)))


def _cutoff(distances: torch.Tensor, radius: float) -> torch.Tensor:
    """(E, 1) weight that falls smoothly from 1 at 0 to 0 at ``radius``."""
    return (0.5 * (torch.cos(math.pi * distances.clamp(max=radius) / radius) + 1)).unsqueeze(-1)


def _lattice_numbers(kind: str, batch: CrystalBatch) -> torch.Tensor:
    if kind == "lengths":
        return batch.lattices.norm(dim=-1)
    if kind == "matrix":
        return batch.lattices.flatten(1)
    volume = torch.linalg.det(batch.lattices).abs() / batch.multiplicity.sum(dim=1)
    return volume.log().unsqueeze(-1)


def _optional(wanted: bool, make: Callable[[], nn.Module]) -> nn.Module | None:
    return make() if wanted else None


_PAPER = S2SNetConfig()
_STARTER = S2SNetConfig(
    width=48,
    layers=2,
    heads=4,
    feed_forward=96,
    dropout=0.2,
    elements="properties",
    positions="environment",
    gaussians=24,
    reach=5.0,
    sigma=0.3,
    position_sum="normalised",
    attention="periodic",
    radius=5.0,
    set2set_steps=3,
    lattice="volume",
    composition=True,
    temperature=True,
)
_TINY = _STARTER.model_copy(update={"width": 8, "heads": 2, "layers": 1, "feed_forward": 16, "gaussians": 8})

_OUR_RECIPE = Recipe(batch_size=16, learning_rate=1e-3, weight_decay=0.1, schedule="cosine", warmup=0.05, clip=1.0)
_PAPER_RECIPE = Recipe(epochs=50, batch_size=8, learning_rate=2.5e-4, weight_decay=0.0)

CONFIGS = {
    "paper": NamedConfig(_PAPER, pretraining=_PAPER_RECIPE, finetuning=_PAPER_RECIPE, freeze=True),
    "s2snet": NamedConfig(
        _STARTER.model_copy(update={"width": 64, "feed_forward": 128}),
        pretraining=None,
        finetuning=_OUR_RECIPE.model_copy(
            update={"epochs": 20, "batch_size": 64, "learning_rate": 2e-3, "average": 0.95}
        ),
        freeze=False,
        trees=True,
    ),
    "starter": NamedConfig(
        _STARTER,
        pretraining=_OUR_RECIPE.model_copy(update={"epochs": 10}),
        finetuning=_OUR_RECIPE.model_copy(update={"epochs": 20}),
        freeze=False,
        trees=True,
    ),
    "tiny": NamedConfig(_TINY, pretraining=Recipe(epochs=2), finetuning=Recipe(epochs=2), freeze=False, trees=True),
}
