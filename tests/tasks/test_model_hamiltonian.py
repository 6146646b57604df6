"""The model Hamiltonian: symmetric, Hermitian, linear in its parameters, and fitted by true gradients."""

import numpy as np
import pytest

from tasks.kpoints import point_group
from tasks.model_hamiltonian import FitData, ModelHamiltonian, harmonics, orbital_moments, two_centre
from tests.tasks.lattice_models import FCC, HEXAGONAL, ORIGIN, SIMPLE_CUBIC, free_electrons

POINT = np.array([0.13, -0.21, 0.34])
CRYSTALS = {
    "NbN": (FCC * 1.1, np.array([[0, 0, 0], [0.5, 0.5, 0.5]]), ("Nb", "N")),
    "MgB2": (HEXAGONAL * 0.77, np.array([[0, 0, 0], [1 / 3, 2 / 3, 0.5], [2 / 3, 1 / 3, 0.5]]), ("Mg", "B", "B")),
    "CeN": (FCC * 1.3, np.array([[0, 0, 0], [0.5, 0.5, 0.5]]), ("Ce", "N")),
}
every_crystal = pytest.mark.parametrize("crystal", CRYSTALS.values(), ids=CRYSTALS.keys())


def some_values(model):
    values = np.random.default_rng(3).normal(size=len(model.parameters)) * model.spreads * 0.5
    values[0] = 1.0
    return values


@every_crystal
def test_the_matrix_is_the_sum_of_its_terms_and_hermitian(crystal):
    model = ModelHamiltonian(*crystal)
    values = some_values(model)
    matrix = model.matrix(POINT, values)
    np.testing.assert_allclose(matrix, np.tensordot(values, model.terms(POINT), 1), atol=1e-9)
    np.testing.assert_allclose(matrix, matrix.conj().T, atol=1e-9)


@every_crystal
def test_energies_have_the_symmetry_of_the_crystal(crystal):
    model = ModelHamiltonian(*crystal)
    rotations = point_group(*crystal, symprec=1e-4)
    assert len(rotations) in (24, 48)
    energies = model.energies(POINT @ rotations, some_values(model), 12)
    np.testing.assert_allclose(energies, np.broadcast_to(energies[:1], energies.shape), atol=1e-7)
    moved = model.energies(POINT[None] + [2, -1, 3], some_values(model), 12)
    np.testing.assert_allclose(moved, energies[:1], atol=1e-7)


def test_kinetic_energy_alone_is_the_empty_lattice():
    model = ModelHamiltonian(SIMPLE_CUBIC, ORIGIN, ("Na",))
    values = np.zeros(len(model.parameters))
    values[0] = 1.0
    expected = free_electrons(SIMPLE_CUBIC, POINT, 8)
    np.testing.assert_allclose(model.energies(POINT[None], values, 8)[0], expected, atol=1e-4)


def test_gradients_are_those_of_finite_differences():
    model = ModelHamiltonian(*CRYSTALS["NbN"])
    data = FitData.at(model, np.array([POINT, -POINT / 2]), np.zeros((2, 10)), np.ones((2, 10)))
    values = some_values(model)
    slopes = data.slopes(data.solve(values)[1])
    for place in (0, 3, model.place("level", "Nb", 2), model.place("hopping", "N", "Nb", 1, 2, 1)):
        step = np.zeros_like(values)
        step[place] = 1e-4
        change = (data.solve(values + step)[0] - data.solve(values - step)[0]) / 2e-4
        np.testing.assert_allclose(slopes[..., place], change, atol=1e-5)


def test_a_fit_finds_the_energies_of_a_model():
    model = ModelHamiltonian(FCC, ORIGIN, ("Al",))
    kpoints = np.random.default_rng(5).uniform(-0.5, 0.5, size=(12, 3))
    true = some_values(model)
    data = FitData.at(model, kpoints, model.energies(kpoints, true, 5), np.ones((12, 5)))
    start = true + 0.1 * model.spreads * np.random.default_rng(6).normal(size=len(true))
    assert np.abs(data.solve(start)[0] - data.energies).max() > 0.1
    _, miss = data.fit(start, model.spreads, 1e-8, 30, start)
    assert miss < 5e-3


@pytest.mark.parametrize("moment", [0, 1, 2, 3])
def test_harmonics_are_orthonormal(moment):
    heights, weights = np.polynomial.legendre.leggauss(8)
    angles = np.arange(16) * np.pi / 8
    z, angle = np.repeat(heights, 16), np.tile(angles, 8)
    side = np.sqrt(1 - z**2)
    values = harmonics(moment, np.stack([side * np.cos(angle), side * np.sin(angle), z], axis=1))
    overlaps = values.T @ (values * np.repeat(weights, 16)[:, None]) / 32
    np.testing.assert_allclose(overlaps, np.eye(2 * moment + 1), atol=1e-12)


def test_two_centre_integrals_are_those_of_slater_and_koster():
    x, y, z = axis = np.array([2.0, -3.0, 6.0]) / 7
    np.testing.assert_allclose(two_centre(0, 1, 2 * axis)[0][0], [z, x, y], atol=1e-12)
    sigma, pi = two_centre(1, 1, axis)
    np.testing.assert_allclose(sigma[1, 2], x * y, atol=1e-12)
    np.testing.assert_allclose(pi[1, 1], 1 - x * x, atol=1e-12)
    sigma, pi, delta = two_centre(2, 2, axis)
    np.testing.assert_allclose(sigma[4, 4], 3 * x * x * y * y, atol=1e-12)
    np.testing.assert_allclose(pi[4, 4], x * x + y * y - 4 * x * x * y * y, atol=1e-12)
    np.testing.assert_allclose(delta[4, 4], z * z + x * x * y * y, atol=1e-12)


@pytest.mark.parametrize(
    ("symbol", "moments"),
    [("H", (0,)), ("Mg", ()), ("Ba", (2,)), ("B", (0, 1)), ("Nb", (2,)), ("La", (2, 3)), ("Pb", (0, 1))],
)
def test_orbitals_follow_the_block_of_the_periodic_table(symbol, moments):
    assert orbital_moments(symbol) == moments
