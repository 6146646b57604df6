"""Star functions: exact where energies are given, right where they are known in closed form, symmetric everywhere."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from tasks.exceptions import InputError
from tasks.interpolation import build_stars, fit_bands, fit_stars, interpolate_bands
from tasks.kpoints import point_group
from tasks.uniform_bands import UniformBands
from tests.tasks.lattice_models import (
    FCC,
    HEXAGONAL,
    KINETIC,
    SIMPLE_CUBIC,
    coarse_points,
    free_electrons,
    lattice_bands,
    mesh_points,
    tight_binding,
)

MESH = (32, 32, 32)
LATTICES = {"simple cubic": SIMPLE_CUBIC, "fcc": FCC, "hexagonal": HEXAGONAL}
every_lattice = pytest.mark.parametrize("lattice", LATTICES.values(), ids=LATTICES.keys())


def gpaw_bands(shared_data, formula, space_group):
    table = pq.read_table(shared_data / "gpaw_bands" / "bands.parquet")
    rows = [r for r in table.to_pylist() if (r["formula"], r["space_group"]) == (formula, space_group)]
    assert len(rows) == 1
    return UniformBands.from_row(rows[0])


def reflected(grid):
    return np.roll(grid[..., ::-1, ::-1, ::-1], 1, axis=(-3, -2, -1))


@pytest.mark.parametrize("shift", [(0, 0, 0), (0.5, 0.5, 0.5)], ids=["with gamma", "without gamma"])
@pytest.mark.parametrize("lattice", [SIMPLE_CUBIC, FCC], ids=["simple cubic", "fcc"])
def test_tight_binding_is_reproduced_on_the_mesh(lattice, shift):
    bands = lattice_bands(lattice, (8, 8, 8), [-1.0, 0.5, 2.0], shift=shift)
    energies, rows = interpolate_bands(bands, 18, MESH, 5)
    expected = np.stack([tight_binding(lattice, mesh_points(MESH), e, 0.5) for e in (-1.0, 0.5, 2.0)])
    assert rows.tolist() == [0, 1, 2]
    assert np.abs(energies - expected).max() < 1e-3


def test_error_falls_with_the_coarse_grid():
    expected = tight_binding(FCC, mesh_points(MESH), 0.0, 0.5)
    errors = []
    for divisions in (4, 6, 8, 12):
        energies, _ = interpolate_bands(lattice_bands(FCC, (divisions,) * 3, [0.0]), 1, MESH, 5)
        errors.append(np.abs(energies[0] - expected).max())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3


def test_lowest_free_electron_band_is_a_parabola_inside_the_zone():
    kpoints, weights = coarse_points(SIMPLE_CUBIC, (10, 10, 10))
    energies = free_electrons(SIMPLE_CUBIC, kpoints, 6)[None]
    bands = replace(
        lattice_bands(SIMPLE_CUBIC, (10, 10, 10), [0.0]),
        kpoints=kpoints,
        weights=weights,
        energies=energies,
        efermi=1.0,
    )
    grid = interpolate_bands(bands, 6, MESH, 5)[0][0] + 1.0
    points = (mesh_points(MESH) + 0.5) % 1.0 - 0.5
    squares = ((points @ (2 * np.pi * np.linalg.inv(SIMPLE_CUBIC).T)) ** 2).sum(axis=-1)
    inside = np.abs(points).max(axis=-1) <= 0.2  # the kinks at the zone boundary are felt further out
    assert inside.sum() == 13**3
    assert np.abs(grid - KINETIC * squares)[inside].max() < 0.04


@every_lattice
def test_energies_come_back_at_the_coarse_points(lattice):
    bands = (
        lattice_bands(lattice, (8, 8, 4), [0.0, 1.0])
        if lattice is HEXAGONAL
        else lattice_bands(lattice, (8, 8, 8), [0.0, 1.0])
    )
    rng = np.random.default_rng(0)
    bands = replace(bands, energies=bands.energies + rng.normal(0, 0.3, bands.energies.shape))
    energies, rows = interpolate_bands(bands, 18, MESH, 5)
    places = tuple(np.rint(bands.kpoints * 32).astype(int).T % 32)
    assert np.abs(energies[:, *places] - bands.pooled[rows]).max() < 1e-6


@every_lattice
def test_grid_has_time_reversal_and_the_point_group(lattice):
    rng = np.random.default_rng(1)
    bands = lattice_bands(lattice, (6, 6, 6), [0.0, 1.0])
    bands = replace(bands, energies=bands.energies + rng.normal(0, 0.3, bands.energies.shape))
    energies, _ = interpolate_bands(bands, 18, MESH, 5)
    np.testing.assert_allclose(reflected(energies), energies, atol=1e-9)
    group = point_group(bands.lattice, bands.coords, bands.species, 1e-4)
    assert len(group) == (24 if lattice is HEXAGONAL else 48)
    points = np.rint(mesh_points(MESH) * 32).astype(int)
    for rotation in group:
        image = (points @ rotation) % 32
        np.testing.assert_allclose(energies[:, image[..., 0], image[..., 1], image[..., 2]], energies, atol=1e-9)


def test_full_list_and_irreducible_list_give_the_same_grid():
    full = interpolate_bands(lattice_bands(FCC, (6, 6, 6), [0.0, 1.0], full=True), 18, MESH, 5)[0]
    reduced = interpolate_bands(lattice_bands(FCC, (6, 6, 6), [0.0, 1.0]), 18, MESH, 5)[0]
    np.testing.assert_allclose(full, reduced, atol=1e-9)


def test_order_of_k_points_changes_no_bit():
    bands = lattice_bands(HEXAGONAL, (6, 6, 4), [0.0, 1.0])
    order = np.random.default_rng(2).permutation(len(bands.kpoints))
    shuffled = replace(
        bands, kpoints=bands.kpoints[order], weights=bands.weights[order], energies=bands.energies[..., order]
    )
    assert np.array_equal(interpolate_bands(bands, 18, MESH, 5)[0], interpolate_bands(shuffled, 18, MESH, 5)[0])


def test_whole_reciprocal_vectors_change_nothing():
    bands = lattice_bands(FCC, (6, 6, 6), [0.0])
    moved = replace(bands, kpoints=bands.kpoints + np.random.default_rng(3).integers(-2, 3, bands.kpoints.shape))
    assert np.array_equal(interpolate_bands(bands, 18, MESH, 5)[0], interpolate_bands(moved, 18, MESH, 5)[0])


def test_common_shift_of_energies_and_fermi_level_changes_nothing():
    bands = lattice_bands(FCC, (6, 6, 6), [0.0, 1.0])
    moved = replace(bands, energies=bands.energies + 7.25, efermi=bands.efermi + 7.25)
    np.testing.assert_allclose(
        interpolate_bands(bands, 18, MESH, 5)[0], interpolate_bands(moved, 18, MESH, 5)[0], atol=1e-9
    )


def test_translation_and_order_of_atoms_change_nothing(shared_data):
    bands = gpaw_bands(shared_data, "BeB2", "P6/mmm")
    order = [2, 0, 1]
    moved = replace(
        bands,
        coords=(bands.coords + np.array([0.13, 0.29, 0.41]))[order],
        species=tuple(bands.species[i] for i in order),
    )
    assert np.array_equal(interpolate_bands(bands, 18, MESH, 5)[0], interpolate_bands(moved, 18, MESH, 5)[0])


def test_chosen_bands_are_those_nearest_on_the_mesh():
    onsites = np.linspace(-4.1, 5.2, 30)
    bands = lattice_bands(SIMPLE_CUBIC, (6, 6, 6), list(onsites), hopping=0.3, spins=2)
    energies, rows = interpolate_bands(bands, 18, MESH, 5)
    means = energies.mean(axis=(1, 2, 3))
    pooled = np.concatenate([onsites, onsites + 0.25])
    assert (np.diff(means) >= 0).all()
    assert sorted(rows) == sorted(np.argsort(np.abs(pooled))[:18])
    np.testing.assert_allclose(means, np.sort(pooled[rows]), atol=1e-6)


def test_means_come_from_the_coefficients():
    bands = lattice_bands(FCC, (4, 4, 4), [0.3])
    points, rotations = bands.symmetric_kpoints([0])
    leaders = points.stars(rotations)[1]
    stars = build_stars(bands.lattice, rotations, 5 * len(leaders))
    energies = np.random.default_rng(4).normal(size=(3, len(leaders)))
    fit, miss = fit_stars(bands.lattice, stars, leaders, points.modulus, energies)
    assert miss < 1e-9
    for mesh in [(32, 32, 32), (3, 4, 5)]:
        np.testing.assert_allclose(fit.means(mesh), fit.on_mesh(mesh).mean(axis=(1, 2, 3)), atol=1e-12)


@every_lattice
def test_stars_and_coefficients_are_those_of_boltztrap2(lattice):
    ase = pytest.importorskip("ase")
    fite = pytest.importorskip("BoltzTraP2.fite")
    sphere = pytest.importorskip("BoltzTraP2.sphere")
    bands = lattice_bands(lattice, (6, 6, 6), [0.0])
    points, rotations = bands.symmetric_kpoints([0])
    leaders = points.stars(rotations)[1]
    energies = np.random.default_rng(5).normal(size=(4, len(leaders)))
    stars = build_stars(lattice, rotations, 5 * len(leaders))
    atoms = ase.Atoms("Cu", scaled_positions=bands.coords, cell=lattice, pbc=True)
    theirs = sphere.get_equivalences(atoms, None, 5 * len(leaders))
    as_sets = [{frozenset(map(tuple, star)) for star in found} for found in (stars, theirs)]
    assert as_sets[0] == as_sets[1]
    fit, _ = fit_stars(lattice, stars, leaders, points.modulus, energies)
    data = SimpleNamespace(
        kpoints=leaders / points.modulus, ebands=energies, mommat=None, get_lattvec=lambda: lattice.T
    )
    np.testing.assert_allclose(fit.coefficients, fite.fitde3D(data, stars), atol=1e-9)


def test_rotations_that_the_energies_contradict_are_left_out():
    bands = lattice_bands(SIMPLE_CUBIC, (6, 6, 6), [0.0], full=True)
    strain = 0.3 * np.cos(2 * np.pi * bands.kpoints[:, 2])  # tetragonal, as magnetic order may be in a cubic cell
    bands = replace(bands, energies=bands.energies + strain)
    _, rotations = bands.symmetric_kpoints([0])
    energies, _ = interpolate_bands(bands, 18, MESH, 5)
    expected = tight_binding(SIMPLE_CUBIC, mesh_points(MESH), 0.0, 0.5) + 0.3 * np.cos(
        2 * np.pi * mesh_points(MESH)[..., 2]
    )
    assert len(rotations) == 16
    assert np.abs(energies[0] - expected).max() < 0.01


def test_more_stars_are_taken_where_the_usual_number_cannot_tell_points_apart():
    grid = (4, 4, 8)  # finer along the long axis than the first sphere of lattice vectors reaches
    bands = lattice_bands(np.diag([4.0, 4.0, 6.0]), grid, [0.0])
    rng = np.random.default_rng(6)
    bands = replace(bands, energies=bands.energies + rng.normal(0, 0.2, bands.energies.shape))
    points, rotations = bands.symmetric_kpoints([0])
    leaders = points.stars(rotations)[1]
    stars = build_stars(bands.lattice, rotations, 1.01 * len(leaders))
    assert fit_stars(bands.lattice, stars, leaders, points.modulus, bands.pooled)[1] > 1e-3
    energies, _ = interpolate_bands(bands, 18, grid, 1.01)
    places = tuple(np.rint(bands.kpoints * grid).astype(int).T % np.array(grid)[:, None])
    assert np.abs(energies[0][places] - bands.pooled[0]).max() < 1e-4


def test_a_grid_that_no_stars_can_follow_is_refused():
    bands = lattice_bands(np.diag([4.0, 4.0, 40.0]), (2, 2, 12), [0.0])
    bands = replace(bands, energies=bands.energies + np.random.default_rng(7).normal(0, 0.2, bands.energies.shape))
    with pytest.raises(InputError, match=r"misses the coarse energies by .* with \d+ stars"):
        interpolate_bands(bands, 18, MESH, 1.01)


def test_one_k_point_is_refused():
    bands = lattice_bands(FCC, (1, 1, 1), [6.0])  # at Γ exactly E_F
    with pytest.raises(InputError, match="one inequivalent k point"):
        interpolate_bands(bands, 18, MESH, 5)


def test_three_thousand_bands():
    bands = lattice_bands(SIMPLE_CUBIC, (4, 4, 4), list(np.linspace(-300, 300, 3000)))
    energies, rows = interpolate_bands(bands, 18, MESH, 5)
    assert rows.tolist() == list(range(1491, 1509))
    assert energies.shape == (18, *MESH)


@pytest.mark.parametrize(("formula", "space_group"), [("Zr", "P6_3/mmc"), ("CuO", "P4_2/mmc"), ("TaB", "Cmcm")])
def test_non_symmorphic_crystals_keep_their_full_class(shared_data, formula, space_group):
    bands = gpaw_bands(shared_data, formula, space_group)
    energies, rows = interpolate_bands(bands, 18, tuple(2 * bands.grid), 5)
    places = tuple(np.rint(bands.kpoints * 2 * bands.grid).astype(int).T % (2 * bands.grid)[:, None])
    assert (
        np.abs(energies[:, *places] - bands.pooled[rows]).max() < 3e-4
    )  # equivalent points differ by the code's noise
    points, rotations = bands.symmetric_kpoints(rows)
    assert len(points.stars(rotations)[1]) < len(bands.kpoints)


def test_left_out_points_are_those_of_fits_without_them():
    """One inverse says what a fit without each point would miss there."""
    bands = lattice_bands(FCC, (6, 6, 6), [0.0, 1.0])
    points, rotations = bands.symmetric_kpoints(np.arange(2))
    numbers, leaders = points.stars(rotations)
    energies = bands.pooled[:, np.unique(numbers, return_index=True)[1]]
    stars = build_stars(bands.lattice, rotations, 5 * len(leaders))
    whole, _ = fit_stars(bands.lattice, stars, leaders, points.modulus, energies)
    for place in range(len(leaders)):
        kept = np.arange(len(leaders)) != place
        without, _ = fit_stars(bands.lattice, stars, leaders[kept], points.modulus, energies[:, kept])
        missed = energies[:, place] - without.at(leaders[[place]], points.modulus)[:, 0]
        np.testing.assert_allclose(whole.left_out[:, place], missed, rtol=1e-6, atol=1e-9)


def test_the_estimated_error_follows_the_true_one():
    """Free electrons have kinks at the zone's boundary, as sorted bands have where they cross."""
    found = []
    for divisions in (4, 6, 8, 12):
        kpoints, weights = coarse_points(SIMPLE_CUBIC, (divisions,) * 3)
        bands = replace(
            lattice_bands(SIMPLE_CUBIC, (divisions,) * 3, [0.0]),
            kpoints=kpoints,
            weights=weights,
            energies=free_electrons(SIMPLE_CUBIC, kpoints, 3)[None],
            efermi=5.0,
        )
        fitted = fit_bands(bands, 3, MESH, 5)
        exact = free_electrons(SIMPLE_CUBIC, mesh_points(MESH), 3) - 5.0
        near = np.abs(exact) <= 3
        true = np.sqrt(np.mean((fitted.fit.on_mesh(MESH) - exact)[near] ** 2))
        found.append((fitted.error_ev(), true))
    estimated, true = np.array(found).T
    assert (np.diff(estimated) < 0).all()
    assert ((estimated / true > 1 / 3) & (estimated / true < 3)).all()
