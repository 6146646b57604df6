"""Bands given by star coefficients, brought onto a mesh by three matrix products, on a CPU or a GPU.

Shapes: S samples, C channels, M mesh points an axis; X, Y, Z the lattice vectors in a box.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from models.star_bands import StarBands


def star_grids(samples: Sequence[StarBands], channels: int, mesh: int, device: str | torch.device = "cpu") -> Tensor:
    """Energies of all samples on the mesh k_i = i / M of the reciprocal primitive cell.

    Parameters
    ----------
    samples
        At least one, each with at most ``channels`` bands.
    mesh
        Even number of points along each axis.

    Returns
    -------
    (S, C, M, M, M) float32 on the device, eV relative to E_F.
    """
    place = torch.device(device)
    parts = [samples] if place.type == "cuda" else [[sample] for sample in samples]  # a small box each suits a CPU
    grids = torch.zeros((len(samples), channels, mesh, mesh, mesh), dtype=torch.float32, device=place)
    start = 0
    for part in parts:
        _fill(grids[start : start + len(part)], part)
        start += len(part)
    return grids


def _fill(grids: Tensor, samples: Sequence[StarBands]) -> None:
    """Write the samples' bands into grids of zeros."""
    waves_SCXYZ, lows = _boxes(samples, grids)
    half = grids.shape[-1] // 2 + 1
    bands = _transform(waves_SCXYZ, lows, grids.shape[-1])
    # E(k) = E(-k) gives the other half of the first axis.
    grids[:, :, :half] = bands
    grids[:, :, half:] = bands[:, :, 1 : half - 1].flip((2, 3, 4)).roll((1, 1), (3, 4))


def _boxes(samples: Sequence[StarBands], grids: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    """Plane-wave coefficients (S, C, X, Y, Z) with X >= 0 counted for both signs, and the box's lowest vector.

    Vectors that agree modulo the mesh are the same wave on it; a box is folded where it would be wider than the mesh.
    """
    channels, mesh = grids.shape[1], grids.shape[-1]
    members = [np.matmul(one.rotations.astype(np.int64), one.stars.astype(np.int64).T) for one in samples]
    reach = np.max([np.abs(vectors).max(axis=(0, 2)) for vectors in members], axis=0)
    lows = np.array([0, *(-reach[1:])])
    sizes = reach - lows + 1
    lows, sizes = np.where(sizes > mesh, 0, lows), np.minimum(sizes, mesh)
    places, values = [], []
    for number, (one, vectors) in enumerate(zip(samples, members, strict=True)):
        rotation, star = np.nonzero(vectors[:, 0] >= 0)
        kept = (vectors[rotation, :, star] - lows) % mesh
        places.append(((number * sizes[0] + kept[:, 0]) * sizes[1] + kept[:, 1]) * sizes[2] + kept[:, 2])
        weights = np.where(vectors[rotation, 0, star] > 0, 2.0, 1.0) / len(one.rotations)
        wave = torch.zeros((len(star), channels), dtype=torch.float32, device=grids.device)
        rows = torch.from_numpy(np.ascontiguousarray(one.coefficients.T)).to(grids.device)
        weighted = rows[torch.from_numpy(star).to(grids.device)]
        weighted *= torch.from_numpy(weights.astype(np.float32)).to(grids.device)[:, None]
        wave[:, one.first_band : one.first_band + len(one.coefficients)] = weighted
        values.append(wave)
    boxes = torch.zeros((len(samples) * int(sizes.prod()), channels), dtype=torch.float32, device=grids.device)
    boxes.index_add_(0, torch.from_numpy(np.concatenate(places)).to(grids.device), torch.cat(values))
    shaped = boxes.reshape(len(samples), *map(int, sizes), channels).permute(0, 4, 1, 2, 3)
    return shaped.contiguous(), (int(lows[0]), int(lows[1]), int(lows[2]))


def _transform(waves_SCXYZ: Tensor, lows: tuple[int, int, int], mesh: int) -> Tensor:
    """Sum of cos(2 pi k.R) over the box: (S, C, M/2 + 1, M, M), the first axis up to one half only."""
    (samples, channels, *sizes), half = waves_SCXYZ.shape, mesh // 2 + 1
    cosines, sines = zip(
        *(_waves(low, size, mesh, waves_SCXYZ.device) for low, size in zip(lows, sizes, strict=True)), strict=True
    )  # each (M, size)
    first = torch.stack((cosines[0][:half], sines[0][:half]), dim=1).flatten(0, 1)  # rows (k, cos or sin)
    bands = first @ waves_SCXYZ.reshape(samples * channels, sizes[0], -1)
    bands = bands.reshape(samples * channels * half, 2 * sizes[1], sizes[2])
    # cos(a + b) = cos a cos b - sin a sin b, sin(a + b) = sin a cos b + cos a sin b
    real, imaginary = torch.cat((cosines[1], -sines[1]), dim=1), torch.cat((sines[1], cosines[1]), dim=1)
    second = torch.stack((real, imaginary), dim=1).flatten(0, 1)
    bands = (second @ bands).reshape(-1, 2 * sizes[2])
    third = torch.cat((cosines[2], -sines[2]), dim=1)
    return (bands @ third.T).reshape(samples, channels, half, mesh, mesh)


def _waves(low: int, size: int, mesh: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines (M, size) of 2 pi k R at k = i / M, for R from ``low`` on."""
    turns = (np.outer(np.arange(mesh), np.arange(low, low + size)) % mesh) * (2 * np.pi / mesh)
    cosines, sines = (torch.from_numpy(f(turns).astype(np.float32)).to(device) for f in (np.cos, np.sin))
    return cosines, sines
