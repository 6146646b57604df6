"""k points as exact integers: crystal symmetry, stars of equivalent points, and whether a list makes a whole grid.

A k point is written as three integers modulo ``modulus``, which all grids and all rotations keep exact, so that
equivalence is a comparison of integers and not of rounded numbers.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.exceptions import InputError

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

ON_GRID = 1e-3  # largest distance of a listed k point from its grid point, in steps of the grid
MAX_DIVISIONS = 200  # grid divisions looked for along one axis where a file names only the points


def point_group(lattice: Floats, coords: Floats, species: tuple[str, ...], symprec: float) -> Integers:
    """Rotations of a crystal and, by time reversal, their negatives: all that leave E(k) as it is.

    Parameters
    ----------
    lattice
        (3, 3) angstrom, vectors as rows.
    coords
        (n_atoms, 3) fractional.
    species
        One symbol an atom.
    symprec
        Tolerance of the search, angstrom.

    Returns
    -------
    (n, 3, 3) integers W. A lattice vector R (column) goes to W R, a k point (row) to k W; both in fractional
    coordinates. Translations of the space group do not matter here, so non-symmorphic groups give their full class.

    Raises
    ------
    InputError
        If spglib finds no symmetry at all, as with two atoms at one place.
    """
    numbers = [np.ascontiguousarray(values, dtype=np.float64).tobytes() for values in (lattice, coords)]
    return _search_group(*numbers, species, symprec)


@lru_cache(maxsize=16)  # one material asks several times: for its grid, its weights and its fit
def _search_group(lattice: bytes, coords: bytes, species: tuple[str, ...], symprec: float) -> Integers:
    import spglib

    cell = (np.frombuffer(lattice).reshape(3, 3), np.frombuffer(coords).reshape(-1, 3))
    types = np.unique(np.array(species), return_inverse=True)[1]
    found: Any = spglib.get_symmetry((*cell, types), symprec=symprec)
    if found is None:
        raise InputError(f"spglib finds no symmetry in this structure (symprec {symprec} angstrom): see its sites")
    rotations = np.asarray(found["rotations"], dtype=np.int64)
    group = np.unique(np.concatenate([rotations, -rotations]), axis=0)
    group.flags.writeable = False
    return group


@dataclass(frozen=True, eq=False)
class IntegerKpoints:
    """k points of one uniform grid in exact integers.

    Attributes
    ----------
    points
        (n_k, 3) integers in [0, modulus): fractional coordinates times ``modulus``.
    grid
        Divisions along each axis.
    shifted
        Whether the grid is moved by half a step along each axis.
    modulus
        A multiple of twice every division.
    """

    points: Integers
    grid: Integers
    shifted: npt.NDArray[np.bool_]
    modulus: int

    @classmethod
    def from_fractional(cls, kpoints: Floats, grid: Integers) -> "IntegerKpoints":
        """Integers of (n_k, 3) fractional k points; InputError for a point that is not on the grid."""
        halves = kpoints * (2 * grid)
        nearest = np.rint(halves).astype(np.int64)
        shifted = nearest[0] % 2 == 1
        wrong = (np.abs(halves - nearest) > 2 * ON_GRID) | ((nearest % 2 == 1) != shifted)
        if wrong.any():
            first = kpoints[np.flatnonzero(wrong.any(axis=1))[0]]
            divisions = " x ".join(map(str, grid))
            raise InputError(f"k point {first.round(6).tolist()} is not on a uniform {divisions} grid")
        modulus = int(2 * np.lcm.reduce(grid))
        return cls(nearest * (modulus // (2 * grid)) % modulus, grid, shifted, modulus)

    def codes(self, points: Integers) -> Integers:
        """One integer for each point (…, 3), equal where the points differ by a reciprocal lattice vector."""
        inside = points % self.modulus
        return (inside[..., 0] * self.modulus + inside[..., 1]) * self.modulus + inside[..., 2]

    def images(self, rotations: Integers) -> Integers:
        """(n_rotations, n_k) codes of the images of all points."""
        return self.codes(self.points @ rotations)

    def stars(self, rotations: Integers) -> tuple[Integers, Integers]:
        """Stars of points that the rotations turn into each other.

        Returns
        -------
        numbers
            (n_k,) the star of each point.
        leaders
            (n_stars, 3) integers, one point for each star; neither these nor their order depend on the list's.
        """
        codes, numbers = np.unique(self.images(rotations).min(axis=0), return_inverse=True)
        return numbers, np.stack(np.unravel_index(codes, (self.modulus,) * 3), axis=1)

    def missing(self, rotations: Integers) -> int:
        """How many points of the full grid no listed point reaches under the rotations."""
        images = (self.points @ rotations).reshape(-1, 3)
        steps = self.modulus // self.grid
        on_grid = ((images - self.shifted * (steps // 2)) % steps == 0).all(axis=1)
        return int(np.prod(self.grid) - len(np.unique(self.codes(images[on_grid]))))


def deduce_grid(kpoints: Floats, rotations: Integers) -> Integers:
    """Divisions of the uniform grid that a list of k points comes from, where nothing else tells.

    The coordinates along an axis give its divisions, first those listed, then, since an irreducible list may lack
    some, those of all images.

    Raises
    ------
    InputError
        If the points and their images make no whole grid of up to 200 divisions an axis, as with points along lines.
    """
    for images in (kpoints, (kpoints @ rotations).reshape(-1, 3)):
        divisions = [_divisions(values) for values in images.T]
        if max(divisions) <= MAX_DIVISIONS:
            grid = np.array(divisions, dtype=np.int64)
            if IntegerKpoints.from_fractional(kpoints, grid).missing(rotations) == 0:
                return grid
    raise InputError(
        f"The {len(kpoints)} k points make no uniform grid: a line-mode band structure, or points missing?"
    )


def _divisions(values: Floats) -> int:
    """Steps of the coarsest uniform axis, through 0 or half a step off, that holds all coordinates."""
    distinct = np.unique((values % 1.0).round(6))
    fractions = [Fraction(float(value)).limit_denominator(2 * MAX_DIVISIONS) for value in distinct]
    divisions = math.lcm(*(fraction.denominator for fraction in fractions))
    halved = divisions % 2 == 0 and all((fraction * divisions).numerator % 2 == 1 for fraction in fractions)
    return divisions // 2 if halved else divisions
