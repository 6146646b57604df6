"""What an activation map of S2SNet is worth: a second method, networks without learning, and the share of the atoms.

A map over atoms (``models.cam``) looks plausible in any network, so it is held against three things: integrated
gradients, which add up to a known difference of logits; networks with fresh random weights (the sanity check of
Adebayo et al., NeurIPS 2018); and how much of the logit comes through the atoms at all, because composition and
lattice have ways of their own to the head.
"""

import copy
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import ArrayLike

from models.cam import atom_weights
from models.crystals import MASKED, CrystalBatch, CrystalGraph, collate, collate_by_size
from models.map_checks import FIRST_SEED, SEEDS, rank_correlation
from models.s2snet import CrystalHead, S2SNet
from models.training import build

STEPS = 32  # points of the Gauss-Legendre rule along the path, doubled until the sum is right
MOST_STEPS = 1024
COMPLETE = 0.002  # largest gap between sum and difference of logits, in units of the larger of 1 and the difference
AT_ONCE = 8  # points of the path in one batch
DECIMALS = 4  # of a map whose largest value is 1: below, equivalent atoms differ by rounding only
FEWEST = 3  # different values that a rank correlation needs to say anything


Parts = dict[str, torch.Tensor]


@dataclass(frozen=True, eq=False)
class Attribution:
    """Integrated gradients of one crystal, the mean over some networks.

    Attributes
    ----------
    atoms
        (atoms,) float64, what knowing the element of each atom adds to the logit.
    difference
        Logit of the crystal minus the logit with all elements hidden from the atoms' path.
    """

    atoms: np.ndarray
    difference: float

    @property
    def gap(self) -> float:
        """Sum over the atoms minus ``difference``: 0 but for the error of the quadrature (completeness)."""
        return float(self.atoms.sum() - self.difference)


def integrated_gradients(networks: Sequence[S2SNet], crystal: CrystalGraph, steps: int = STEPS) -> Attribution:
    """What knowing the elements of a crystal's atoms adds to the logit, atom by atom.

    Integrated gradients (Sundararajan, Taly and Yan, ICML 2017) by captum, on what the atoms start from, along the
    straight line from atoms in the same places whose elements are hidden, as in the pre-training. Lattice and
    composition descriptors stay those of the crystal. In 64 bits; ``steps`` is doubled, up to MOST_STEPS, until the sum
    over the atoms is complete.
    """
    found = [_integrate(copy.deepcopy(network).double().eval(), crystal, steps) for network in networks]
    return Attribution(np.mean([atoms for atoms, _ in found], axis=0), float(np.mean([both for _, both in found])))


def random_atom_weights(networks: Sequence[S2SNet], crystal: CrystalGraph, seeds: int = SEEDS) -> np.ndarray:
    """(seeds, atoms) class activation of networks of the same configuration with fresh random weights.

    The scale of the descriptors, which is no weight, is that of the first network. The first seeds are the same for any
    number of them.
    """
    maps = []
    for seed in range(FIRST_SEED, FIRST_SEED + seeds):
        fresh = build(lambda: S2SNet(networks[0].config), seed)
        fresh.load_state_dict(dict(networks[0].named_buffers()), strict=False)
        maps.append(atom_weights([fresh], crystal))
    return np.asarray(maps)


def map_correlation(one: ArrayLike, other: ArrayLike) -> float | None:
    """Rank correlation, -1 to 1, of two maps over the same atoms; None where one has fewer than 3 different values."""
    both = [_rounded(values) for values in (one, other)]
    if min(len(np.unique(values)) for values in both) < FEWEST:
        return None
    return rank_correlation(*both)


def head_parts(network: S2SNet, crystals: Sequence[CrystalGraph]) -> Parts:
    """What reaches the head's fully connected layers from some crystals, by name: (crystals, ...) each."""
    found: dict[str, list[torch.Tensor]] = {}
    order: list[np.ndarray] = []
    with torch.no_grad():
        for places, batch in collate_by_size(crystals):
            order.append(places)
            for name, part in network.eval().head.parts(network.encode(batch), batch).items():
                found.setdefault(name, []).append(part)
    back = torch.from_numpy(np.argsort(np.concatenate(order)))
    return {name: torch.cat(parts)[back] for name, parts in found.items()}


def path_contributions(
    networks: Sequence[S2SNet], crystal: CrystalGraph, references: Sequence[Parts]
) -> dict[str, float]:
    """How much each way into the head adds to the logit, compared with reference crystals.

    Shapley values (Lundberg and Lee, NeurIPS 2017) of the parts that the head joins: ``atoms`` (Set2Set), ``lattice``,
    ``composition``. A part that is left out is taken from a reference crystal, and the mean over these counts. The
    values add up to the crystal's logit minus the mean logit of the references; mean over the networks.

    Parameters
    ----------
    references
        For each network, the ``head_parts`` of the reference crystals.
    """
    values = [
        _shapley(network.head, head_parts(network, [crystal]), others)
        for network, others in zip(networks, references, strict=True)
    ]
    return {name: float(np.mean([found[name] for found in values])) for name in values[0]}


def path_share(contributions: Mapping[str, float], name: str = "atoms") -> float | None:
    """Share of one way in the sizes of all, 0 to 1; None where nothing contributes."""
    total = sum(abs(value) for value in contributions.values())
    return abs(contributions[name]) / total if total > 0 else None


def _integrate(network: S2SNet, crystal: CrystalGraph, steps: int) -> tuple[np.ndarray, float]:
    from captum.attr import IntegratedGradients

    batches: dict[int, CrystalBatch] = {}

    def logits(atoms: torch.Tensor) -> torch.Tensor:
        count = len(atoms)
        batch = batches.setdefault(count, _double(collate([crystal] * count)))
        return network.classify(network.attend(atoms, batch), batch)

    batch = _double(collate([crystal]))
    with torch.no_grad():
        start = network.start(batch)
        hidden = network.start(replace(batch, numbers=torch.full_like(batch.numbers, MASKED)))
        difference = float(logits(start) - logits(hidden))
    method = IntegratedGradients(logits)
    while True:
        found = method.attribute(start, hidden, n_steps=steps, internal_batch_size=AT_ONCE).sum(dim=-1)[0].detach()
        if abs(float(found.sum()) - difference) <= COMPLETE * max(1.0, abs(difference)) or steps >= MOST_STEPS:
            return found.numpy(), difference
        steps *= 2


def _double(batch: CrystalBatch) -> CrystalBatch:
    return replace(
        batch,
        positions=batch.positions.double(),
        lattices=batch.lattices.double(),
        distances=batch.distances.double(),
        multiplicity=batch.multiplicity.double(),
    )


@torch.no_grad()
def _shapley(head: CrystalHead, own: Parts, others: Parts) -> dict[str, float]:
    names = tuple(own)

    def logit(present: Iterable[str]) -> float:
        parts = {name: own[name].expand_as(others[name]) if name in present else others[name] for name in names}
        return float(head.join(parts)[:, 0].double().mean())

    subsets = [frozenset(some) for size in range(len(names) + 1) for some in itertools.combinations(names, size)]
    logits = {some: logit(some) for some in subsets}
    found = {}
    for name in names:
        without = [some for some in subsets if name not in some]
        weights = [1 / (len(names) * math.comb(len(names) - 1, len(some))) for some in without]
        found[name] = sum(
            weight * (logits[some | {name}] - logits[some]) for weight, some in zip(weights, without, strict=True)
        )
    return found


def _rounded(values: ArrayLike) -> np.ndarray:
    """The map with a largest size of 1, rounded so that equivalent atoms are equal."""
    found = np.asarray(values, dtype=np.float64)
    largest = np.abs(found).max()
    return np.round(found / largest, DECIMALS) if largest > 0 else found
