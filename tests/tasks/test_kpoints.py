"""k points as integers: grids, stars, completeness."""

import numpy as np
import pytest

from tasks.exceptions import InputError
from tasks.kpoints import IntegerKpoints, deduce_grid, point_group
from tests.tasks.lattice_models import FCC, HEXAGONAL, ORIGIN, SIMPLE_CUBIC, coarse_points, mesh_points

LATTICES = {"simple cubic": (SIMPLE_CUBIC, (6, 6, 6)), "fcc": (FCC, (5, 5, 5)), "hexagonal": (HEXAGONAL, (6, 6, 4))}
every_lattice = pytest.mark.parametrize(("lattice", "grid"), LATTICES.values(), ids=LATTICES.keys())


def rotations_of(lattice):
    return point_group(lattice, ORIGIN, ("Cu",), 1e-4)


@every_lattice
def test_irreducible_points_make_the_whole_grid(lattice, grid):
    kpoints, weights = coarse_points(lattice, grid)
    points = IntegerKpoints.from_fractional(kpoints, np.array(grid))
    numbers, leaders = points.stars(rotations_of(lattice))
    assert points.missing(rotations_of(lattice)) == 0
    assert len(leaders) == len(set(numbers)) == len(kpoints) == len(weights)


@every_lattice
def test_a_missing_point_is_missed_with_its_whole_star(lattice, grid):
    kpoints, weights = coarse_points(lattice, grid)
    for gone in (0, len(kpoints) // 2):
        points = IntegerKpoints.from_fractional(np.delete(kpoints, gone, axis=0), np.array(grid))
        assert points.missing(rotations_of(lattice)) == round(weights[gone] * np.prod(grid))


@every_lattice
def test_stars_of_the_full_grid_are_the_irreducible_points(lattice, grid):
    full = IntegerKpoints.from_fractional(mesh_points(grid).reshape(-1, 3), np.array(grid))
    reduced = IntegerKpoints.from_fractional(coarse_points(lattice, grid)[0], np.array(grid))
    rotations = rotations_of(lattice)
    assert np.array_equal(full.stars(rotations)[1], reduced.stars(rotations)[1])


@pytest.mark.parametrize("shift", [(0, 0, 0), (0.5, 0.5, 0.5)], ids=["with gamma", "without gamma"])
@every_lattice
def test_grid_is_deduced_from_its_points(lattice, grid, shift):
    if lattice is HEXAGONAL and any(shift):
        shift = (0, 0, 0.5)
    kpoints, _ = coarse_points(lattice, grid, shift)
    assert deduce_grid(kpoints.round(8), rotations_of(lattice)).tolist() == list(grid)
    points = IntegerKpoints.from_fractional(kpoints, np.array(grid))
    assert points.shifted.tolist() == [s > 0 for s in shift]
    assert points.missing(rotations_of(lattice)) == 0


def test_points_along_a_line_are_no_grid():
    line = np.linspace([0, 0, 0], [0.5, 0.5, 0.123456], 47)
    with pytest.raises(InputError, match="47 k points make no uniform grid"):
        deduce_grid(line, rotations_of(FCC))


def test_points_off_the_grid_are_named():
    with pytest.raises(InputError, match=r"k point \[0.1, 0.0, 0.0\] is not on a uniform 4 x 4 x 4 grid"):
        IntegerKpoints.from_fractional(np.array([[0, 0, 0], [0.1, 0, 0]]), np.array([4, 4, 4]))


def test_time_reversal_stands_in_for_inversion():
    zinc_blende = np.array([[0, 0, 0], [0.25, 0.25, 0.25]])
    group = point_group(FCC, zinc_blende, ("Zn", "S"), 1e-4)
    assert len(group) == 48
    assert any((rotation == -np.eye(3)).all() for rotation in group)


def test_atoms_in_one_place_are_refused():
    with pytest.raises(InputError, match="spglib finds no symmetry"):
        point_group(FCC, np.zeros((2, 3)), ("Cu", "Cu"), 1e-2)
