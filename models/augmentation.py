"""The 24 images of a band grid: 6 permutations of the reciprocal axes times 4 sign changes.

A sign change of axis a maps grid index i to (-i) mod M, the point -k_a of a Γ-centred grid. Of the 8 sign changes,
E(k) = E(-k) makes two and two equal: 4 are left, and the 24 images are closed under composition on such energies.
"""

import itertools
from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

PERMUTATIONS = tuple(itertools.permutations(range(3)))
FLIPS: tuple[tuple[int, ...], ...] = ((), (0,), (1,), (2,))  # flipping two axes equals flipping the third
IMAGES = len(PERMUTATIONS) * len(FLIPS)
SPATIAL = -3  # the axes k_x, k_y, k_z stand last


def image(energies: Tensor, number: int) -> Tensor:
    """Image ``number`` (0 to 23, 0 the identity) of energies (..., M, M, M), same shape."""
    permutation, flips = PERMUTATIONS[number // len(FLIPS)], FLIPS[number % len(FLIPS)]
    lead = tuple(range(energies.dim() + SPATIAL))
    permuted = energies.permute(*lead, *(len(lead) + axis for axis in permutation))
    return reverse(permuted, flips)


def reverse(energies: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Energies (..., M, M, M) at -k along the given axes (0 to 2): index i becomes (-i) mod M."""
    if not axes:
        return energies
    dims = [axis + SPATIAL for axis in axes]
    return energies.flip(dims).roll([1] * len(dims), dims)


def all_images(energies: Tensor) -> Iterator[Tensor]:
    """The 24 images of energies (..., M, M, M), one after another."""
    return (image(energies, number) for number in range(IMAGES))


def random_images(energies: Tensor, generator: torch.Generator) -> Tensor:
    """One random image of each sample (B, C, M, M, M), drawn by a CPU generator, made on the samples' device."""
    return some_images(energies, torch.randint(IMAGES, (len(energies),), generator=generator))


def some_images(energies: Tensor, numbers: Tensor) -> Tensor:
    """The image of each sample (B, C, M, M, M) that ``numbers`` (B,), on the CPU, names; on the samples' device."""
    points_BN = _points(energies.shape[-1])[numbers].to(energies.device)
    flat_BCN = energies.flatten(2)
    images = flat_BCN.gather(2, points_BN.unsqueeze(1).expand_as(flat_BCN))
    return images.reshape(energies.shape)


@lru_cache(maxsize=4)
def _points(mesh: int) -> Tensor:
    """(24, M^3) int64, the flat k-point number that each image shows at each k point."""
    numbers = torch.arange(mesh**3).reshape(mesh, mesh, mesh)
    return torch.stack([found.flatten() for found in all_images(numbers)])
