"""Crossing bands of empty lattices, known in closed form: right where star functions smear them."""

from dataclasses import replace

import numpy as np
import pytest

from tasks import crossings
from tasks.crossings import interpolate_crossings
from tasks.exceptions import InputError
from tasks.grids import make_grid
from tasks.interpolation import fit_bands, interpolate_bands
from tasks.settings import GridSettings, Settings
from tests.tasks.lattice_models import (
    FCC,
    SIMPLE_CUBIC,
    coarse_points,
    free_electrons,
    lattice_bands,
    mesh_points,
    tight_binding,
)

MESH = (16, 16, 16)
EFERMI = 9.0


def empty_lattice(spins=1):
    kpoints, weights = coarse_points(FCC, (8, 8, 8))
    energies = np.stack([free_electrons(FCC, kpoints, 5) + 0.3 * spin for spin in range(spins)])
    return replace(
        lattice_bands(FCC, (8, 8, 8), [0.0]),
        species=("Na",),
        kpoints=kpoints,
        weights=weights,
        energies=energies,
        efermi=EFERMI,
    )


@pytest.fixture(scope="module")
def both():
    """Interpolated bands of an empty lattice in two spin channels, and the rows that they are."""
    return interpolate_crossings(empty_lattice(spins=2), 10, MESH, 5)


def test_crossings_are_kept(both):
    energies, rows, error = both
    exact = np.concatenate([free_electrons(FCC, mesh_points(MESH), 5) + 0.3 * spin for spin in range(2)])[rows] - EFERMI
    plain, same = interpolate_bands(empty_lattice(spins=2), 10, MESH, 5)
    assert same.tolist() == rows.tolist()
    near = np.abs(exact) < 3
    errors = [np.sqrt(((found - exact)[near] ** 2).mean()) for found in (energies, plain)]
    assert errors[1] > 0.1
    assert errors[0] < errors[1] / 10
    assert error < fit_bands(empty_lattice(spins=2), 10, MESH, 5).error_ev() / 3


def test_coarse_energies_are_kept(both):
    energies, rows, _ = both
    bands = empty_lattice(spins=2)
    places = tuple(np.rint(bands.kpoints * MESH).astype(int).T % 16)
    np.testing.assert_allclose(energies[(slice(None), *places)], bands.pooled[rows], atol=1e-4)


def test_a_smooth_band_is_not_made_worse(monkeypatch):
    monkeypatch.setattr(crossings, "GOOD_EV", (np.inf,))
    bands = lattice_bands(SIMPLE_CUBIC, (8, 8, 8), [0.5], species=("Na",))
    energies, _, _ = interpolate_crossings(bands, 1, MESH, 5)
    assert np.abs(energies[0] - tight_binding(SIMPLE_CUBIC, mesh_points(MESH), 0.5, 0.5)).max() < 1e-3


def test_what_would_take_too_long_is_left_to_star_functions(monkeypatch):
    monkeypatch.setattr(crossings, "MOST_WORK", 1.0)
    bands = empty_lattice()
    energies, rows, _ = interpolate_crossings(bands, 3, MESH, 5)
    plain, same = interpolate_bands(bands, 3, MESH, 5)
    assert np.array_equal(energies, plain)
    assert np.array_equal(rows, same)


def test_few_coarse_points_are_left_to_star_functions():
    bands = lattice_bands(FCC, (3, 3, 3), [0.0])
    assert np.array_equal(interpolate_crossings(bands, 1, MESH, 5)[0], interpolate_bands(bands, 1, MESH, 5)[0])


def test_the_setting_chooses_the_way_and_numbers_are_reproduced():
    bands = empty_lattice()
    grid = make_grid(bands, GridSettings(bands=5, mesh=8, method="model"))
    assert grid.stars is None
    assert np.array_equal(grid.energies, interpolate_crossings(bands, 5, (8, 8, 8), 5)[0].astype(np.float32))


@pytest.mark.parametrize("store", ["coefficients", "both"])
def test_a_model_has_no_coefficients_to_store(store):
    with pytest.raises(InputError, match=r"set grid.store to grids"):
        Settings.load(grid={"method": "model", "store": store})
