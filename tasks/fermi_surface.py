"""Fermi surfaces as triangles in the first Brillouin zone, by IFermi."""

import numpy as np
from numpy.typing import NDArray
from pymatgen.core import Structure
from pymatgen.electronic_structure.bandstructure import BandStructure
from pymatgen.electronic_structure.core import Spin

MAX_TRIANGLES = 14_000  # of a Fermi surface; finer ones are drawn from every second k point

Sheet = tuple[int, NDArray[np.float64], NDArray[np.int64]]


def crossing_bands(grid: NDArray) -> list[int]:
    """Which of the bands (n_bands, k, k, k), eV relative to E_F, lie on both sides of E_F."""
    return [int(band) for band in np.flatnonzero((grid.min(axis=(1, 2, 3)) < 0) & (grid.max(axis=(1, 2, 3)) > 0))]


def fermi_meshes(structure: Structure, grid: NDArray) -> list[Sheet]:
    """Band, vertices (n, 3) in 1/angstrom (with 2 pi) and triangles (m, 3) of each sheet, inside the zone.

    Parameters
    ----------
    structure
        The primitive cell that the k points belong to.
    grid
        (n_bands, k, k, k) eV relative to E_F, at fractional k points i / k.
    """
    crossing = crossing_bands(grid)
    sheets: list[Sheet] = []
    for step in (1, 2) if crossing else ():
        sheets = _sheets(structure, grid[crossing][:, ::step, ::step, ::step], crossing)
        if sum(len(triangles) for _, _, triangles in sheets) <= MAX_TRIANGLES:
            break
    return sheets


def _sheets(structure: Structure, energies: NDArray, bands: list[int]) -> list[Sheet]:
    """All surfaces of each of the bands as one sheet."""
    from ifermi.surface import FermiSurface

    divisions = np.array(energies.shape[1:])
    points = np.stack(np.meshgrid(*map(np.arange, divisions), indexing="ij"), axis=-1).reshape(-1, 3) / divisions
    found = FermiSurface.from_band_structure(
        BandStructure(
            points,
            {Spin.up: energies.reshape(len(bands), -1).astype(float)},
            structure.lattice.reciprocal_lattice,
            efermi=0.0,
            structure=structure,
        ),
        wigner_seitz=True,
        calculate_dimensionality=False,
    )
    parts = found.isosurfaces[Spin.up]
    sheets = []
    for place, band in enumerate(bands):
        own = [part for part in parts if part.band_idx == place]
        if own:
            starts = np.cumsum([0, *(len(part.vertices) for part in own[:-1])])
            vertices = np.concatenate([part.vertices for part in own])
            sheets.append((band, vertices, np.concatenate([p.faces + s for p, s in zip(own, starts, strict=True)])))
    return sheets
