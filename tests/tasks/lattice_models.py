"""Lattice models whose bands are known in closed form, as coarse bands and on any mesh."""

from dataclasses import replace
from itertools import product

import numpy as np
import spglib

from tasks.uniform_bands import UniformBands

CONSTANT = 4.0  # angstrom
SIMPLE_CUBIC = np.eye(3) * CONSTANT
FCC = np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]) * CONSTANT / 2
HEXAGONAL = np.array([[1, 0, 0], [-0.5, np.sqrt(0.75), 0], [0, 0, 1.5]]) * CONSTANT
KINETIC = 3.80998211  # hbar^2 / 2m, eV angstrom^2 (CODATA 2018)
ORIGIN = np.zeros((1, 3))


def nearest_vectors(lattice):
    """Shortest lattice vectors in units of the primitive ones."""
    vectors = np.array([v for v in product((-1, 0, 1), repeat=3) if any(v)])
    lengths = np.linalg.norm(vectors @ lattice, axis=1)
    return vectors[lengths < lengths.min() + 1e-6]


def tight_binding(lattice, kpoints, onsite=0.0, hopping=1.0):
    """E(k) = onsite - hopping * sum over nearest neighbours of exp(2 pi i k.R); (…,) eV for (…, 3) fractional k."""
    return onsite - hopping * np.cos(2 * np.pi * np.asarray(kpoints) @ nearest_vectors(lattice).T).sum(axis=-1)


def free_electrons(lattice, kpoints, count):
    """(count, …) lowest bands of the empty lattice, eV."""
    reciprocal = 2 * np.pi * np.linalg.inv(lattice).T
    shells = np.array(list(product((-2, -1, 0, 1, 2), repeat=3)))
    energies = KINETIC * (((np.asarray(kpoints)[..., None, :] + shells) @ reciprocal) ** 2).sum(axis=-1)
    return np.moveaxis(np.sort(energies, axis=-1)[..., :count], -1, 0)


def mesh_points(mesh, shift=(0, 0, 0)):
    """(*mesh, 3) fractional k points i / n, moved by ``shift`` steps."""
    steps = np.stack(np.meshgrid(*map(np.arange, mesh), indexing="ij"), axis=-1)
    return (steps + np.asarray(shift)) / np.asarray(mesh)


def coarse_points(lattice, grid, shift=(0, 0, 0), coords=ORIGIN):
    """Irreducible k points of a grid and their weights, by spglib."""
    cell = (lattice, coords, [1] * len(coords))
    mapping, addresses = spglib.get_ir_reciprocal_mesh(grid, cell, is_shift=[int(2 * s) for s in shift], symprec=1e-5)
    first, counts = np.unique(mapping, return_counts=True)
    return (addresses[first] + np.asarray(shift)) / np.asarray(grid), counts / counts.sum()


def lattice_bands(lattice, grid, onsites, hopping=0.5, shift=(0, 0, 0), full=False, spins=1, **changes):
    """Coarse tight-binding bands, one for each on-site energy; a second spin is 0.25 eV higher. E_F is 0."""
    if full:
        kpoints = mesh_points(grid, shift).reshape(-1, 3)
        weights = np.full(len(kpoints), 1 / len(kpoints))
    else:
        kpoints, weights = coarse_points(lattice, grid, shift)
    energies = [[tight_binding(lattice, kpoints, e + 0.25 * s, hopping) for e in onsites] for s in range(spins)]
    bands = UniformBands(
        material_id="model",
        lattice=lattice,
        coords=ORIGIN,
        species=("Cu",),
        kpoints=kpoints,
        weights=weights,
        grid=np.array(grid),
        energies=np.array(energies),
        efermi=0.0,
    )
    return replace(bands, **changes)
