"""What an attention map is worth: its symmetry, and how far it is the same without anything learnt.

A map in patches looks plausible in any network, so it is held against three things: the rotations that the energies
obey (the network is not told of them), networks with fresh random weights (the sanity check of Adebayo et al.,
NeurIPS 2018), and the other networks of the same ensemble.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from models.bnas import Bnas, BnasConfig
from models.exceptions import ModelInputError
from models.rollout import class_attention
from models.training import build

SEEDS = 5  # networks with random weights that a map is compared with
FLAT = 1e-6  # spread over largest value, below which a map has no pattern: attention is computed in 32 bits
FIRST_SEED = 1_000_003  # far from the seeds that trainings are given


@dataclass(frozen=True)
class PatchSymmetry:
    """Which symmetric shares a map in patches can have at all; see ``patch_symmetry``.

    Attributes
    ----------
    shuffled
        Mean over all ways to shuffle a map's values among its patches.
    most
        The largest of any map.
    """

    shuffled: float
    most: float


def symmetrise(values: ArrayLike, rotations: ArrayLike) -> NDArray[np.float64]:
    """Mean of values (k, k, k) over the images of each k point.

    Parameters
    ----------
    values
        On the Γ-centred fractional points i/k of the reciprocal cell.
    rotations
        (n, 3, 3) integers W of a group: the k point (row) goes to k W. They turn the grid into itself.
    """
    grid = _cube(values)
    flat = grid.ravel()
    return np.asarray(np.mean([flat[points] for points in _images(len(grid), rotations)], axis=0).reshape(grid.shape))


def symmetric_share(values: ArrayLike, rotations: ArrayLike) -> float | None:
    """How much of the pattern of values (k, k, k) obeys a group of rotations, 0 to 1.

    It is the variance over the k points of the symmetrised values, divided by that of the values themselves; the
    same number is the square of Pearson's correlation of the two, and 1 minus their mean-square difference in units
    of the variance, because averaging over a group is a projection. 1: the values have the full symmetry. 0: nothing
    is left of the pattern when the images are averaged. None for values that are all equal
    (FLAT), which have no pattern.

    A map in patches cannot reach 1 (``patch_symmetry``): a patch starts at its first point and is not centred, so
    that its image is not a patch.
    """
    grid = _cube(values)
    if _is_flat(grid):
        return None
    return min(1.0, float(symmetrise(grid, rotations).var() / grid.var()))


def patch_symmetry(side: int, mesh: int, rotations: ArrayLike) -> PatchSymmetry:
    """Symmetric shares of maps in ``side`` patches an axis, drawn on ``mesh`` points an axis.

    The share is a quadratic form of the patches' values. On those whose sum is 0, its largest eigenvalue is what any
    map can reach, and its trace over their number the mean over all ways to shuffle.
    """
    if mesh % side or side < 2:
        raise ModelInputError(f"{mesh=} is not a multiple of at least 2 patches ({side=})")
    which = np.indices((mesh,) * 3) // (mesh // side)
    patch = ((which[0] * side + which[1]) * side + which[2]).ravel()
    count, points = side**3, (mesh // side) ** 3
    form, operations = np.zeros((count, count)), 0
    for images in _images(mesh, rotations):
        form += np.bincount(patch * count + patch[images], minlength=count**2).reshape(count, count)
        operations += 1
    shares = np.linalg.eigvalsh((form + form.T) / (2 * operations * points))  # the largest, 1, is that of equal values
    return PatchSymmetry(float(shares[:-1].mean()), float(shares[-2]))


def rank_correlation(one: ArrayLike, other: ArrayLike) -> float | None:
    """Spearman's rank correlation of two maps of the same shape, -1 to 1; None where one has all values equal."""
    first, second = (np.asarray(values, dtype=np.float64).ravel() for values in (one, other))
    if first.shape != second.shape:
        raise ModelInputError(f"Maps of {first.size} and {second.size} values cannot be compared")
    if _is_flat(first) or _is_flat(second):
        return None
    ranks = [rankdata(values) - (first.size + 1) / 2 for values in (first, second)]
    return float(ranks[0] @ ranks[1] / np.sqrt(np.square(ranks[0]).sum() * np.square(ranks[1]).sum()))


def mean_agreement(maps: Sequence[ArrayLike]) -> float | None:
    """Mean rank correlation over all pairs of maps; None for fewer than two maps that have a pattern."""
    found = [rank_correlation(one, other) for one, other in itertools.combinations(maps, 2)]
    known = [value for value in found if value is not None]
    return float(np.mean(known)) if known else None


def random_attention(config: BnasConfig, energies: torch.Tensor, seeds: int = SEEDS) -> NDArray[np.float64]:
    """The same maps from networks of the same configuration with fresh random weights.

    Parameters
    ----------
    energies
        (n, bands, mesh, mesh, mesh) as ``prepare`` gives them.
    seeds
        How many networks; the first ones are the same for any number.

    Returns
    -------
    numpy.ndarray
        (seeds, n, p, p, p), the share of each of the p^3 patches in the class token's rollout.
    """
    maps = []
    for seed in range(FIRST_SEED, FIRST_SEED + seeds):
        network = build(lambda: Bnas(config), seed).eval()
        maps.append([class_attention(network.attention_weights(one[None]))[0] for one in energies])
    return np.asarray(maps)


def _is_flat(values: NDArray[np.float64]) -> bool:
    """Whether all values are equal, up to the rounding of networks."""
    return bool(values.std() <= FLAT * np.abs(values).max())


def _cube(values: ArrayLike) -> NDArray[np.float64]:
    grid = np.asarray(values, dtype=np.float64)
    if grid.ndim != 3 or len(set(grid.shape)) != 1 or not grid.size:
        raise ModelInputError(f"Values of shape {grid.shape} are not on a cube of k points")
    return grid


def _images(mesh: int, rotations: ArrayLike) -> Iterator[NDArray[np.int64]]:
    """For each rotation, the flat number of each grid point's image."""
    group = np.asarray(rotations, dtype=np.int64).reshape(-1, 3, 3)
    if not len(group):
        raise ModelInputError("A group of rotations has at least the identity")
    points = np.indices((mesh,) * 3).reshape(3, -1).T
    for rotation in group:
        image = points @ rotation % mesh
        yield (image[:, 0] * mesh + image[:, 1]) * mesh + image[:, 2]
