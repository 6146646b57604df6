"""Bands given by star coefficients, brought onto a mesh by Fourier transforms, on a CPU or a GPU."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.star_bands import StarBands


def star_grids(samples: Sequence[StarBands], channels: int, mesh: int, device: str | torch.device = "cpu") -> Tensor:
    """Energies of all samples on the mesh k_i = i / mesh of the reciprocal primitive cell.

    Parameters
    ----------
    samples
        At least one, each with at most ``channels`` bands.
    channels
        Even number of bands a sample.

    Returns
    -------
    (n_samples, channels, mesh, mesh, mesh) float32 on the device, eV relative to E_F.
    """
    grids = torch.empty((len(samples), channels, mesh, mesh, mesh), dtype=torch.float32, device=device)
    fill_grids(grids, samples)
    return grids


def fill_grids(grids: Tensor, samples: Sequence[StarBands]) -> None:
    """Write the samples' energies into ``grids`` (n_samples, channels, mesh, mesh, mesh), float32.

    E(k) = E(-k) makes every transform real, so that two bands share one: one as its real part, one as its imaginary.
    """
    at_once = len(samples) if grids.device.type == "cuda" else 1  # one sample stays in the caches of a CPU
    channels, mesh, half = grids.shape[1], grids.shape[-1], grids.shape[1] // 2
    for start in range(0, len(samples), at_once):
        some = [_plane_waves(one, channels, mesh, grids.device) for one in samples[start : start + at_once]]
        waves = (torch.stack(some) if at_once > 1 else some[0][None]).unflatten(-1, grids.shape[2:])
        bands = torch.fft.fftn(torch.complex(waves[:, :half], waves[:, half:]), dim=(2, 3, 4))
        grids[start : start + at_once, :half] = bands.real
        grids[start : start + at_once, half:] = bands.imag


def _plane_waves(bands: StarBands, channels: int, mesh: int, device: torch.device) -> Tensor:
    """Coefficients (channels, mesh^3) of plane waves by lattice vector modulo the mesh."""
    places, stars = _members(bands, mesh)
    count = bands.coefficients.shape[1]
    table = np.zeros((channels, count + 1), dtype=np.float32)  # the last column for places that no star reaches
    table[bands.first_band : bands.first_band + len(bands.coefficients), :-1] = bands.coefficients / np.bincount(stars)
    owners = np.full(mesh**3, len(stars), dtype=np.int32)
    owners[places] = np.arange(len(stars))
    on_device = torch.from_numpy(table).to(device)
    waves = on_device.index_select(1, torch.from_numpy(np.append(stars, count)[owners]).to(device))
    others = owners[places] != np.arange(len(stars))  # agree with another vector modulo the mesh
    if others.any():
        added = on_device.index_select(1, torch.from_numpy(stars[others]).to(device))
        waves.index_add_(1, torch.from_numpy(places[others]).to(device), added)
    return waves


def _members(bands: StarBands, mesh: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Place on the mesh, and star, of each distinct lattice vector."""
    rotations, leaders = bands.rotations.astype(np.float32), bands.stars.T.astype(np.float32)
    images = np.matmul(rotations.reshape(-1, 3), leaders).astype(np.int32).reshape(-1, 3, leaders.shape[1])
    reach = np.abs(images).max(axis=(0, 2))
    sizes = 2 * reach + 1
    box = np.full(sizes.prod(), -1, dtype=np.int32)
    images += reach[:, None]
    box[(images[:, 0] * sizes[1] + images[:, 1]) * sizes[2] + images[:, 2]] = np.arange(leaders.shape[1])
    x, y, z = (np.arange(-far, far + 1, dtype=np.int32) % mesh for far in reach)
    places = ((x[:, None, None] * mesh + y[:, None]) * mesh + z).ravel()
    found = np.flatnonzero(box >= 0)
    return places[found], box[found]
