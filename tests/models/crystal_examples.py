"""Small real crystals for the tests of the crystal network (lattice constants in angstrom at room temperature).

Written out cell by cell: pymatgen takes a second to build a cubic space group of 192 operations.
"""

import numpy as np
from pymatgen.core import Lattice, Structure

from models.crystals import CrystalGraph, crystal_arrays, graph

CUTOFF = 5.0
FACE_CENTRED = np.array([[0.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.5, 0.5, 0.0]])
BODY_CENTRED = np.array([[-0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.5, 0.5, -0.5]])


def aluminium() -> Structure:
    return Structure(Lattice(4.0495 * FACE_CENTRED), ["Al"], [[0, 0, 0]])


def salt() -> Structure:
    sodium = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    return Structure(
        Lattice.cubic(5.6402), ["Na"] * 4 + ["Cl"] * 4, np.vstack([sodium, sodium + np.array([0.5, 0, 0])]) % 1
    )


def magnesium_diboride() -> Structure:
    coords = [[0, 0, 0], [1 / 3, 2 / 3, 0.5], [2 / 3, 1 / 3, 0.5]]
    return Structure(Lattice.hexagonal(3.0864, 3.5215), ["Mg", "B", "B"], coords)


def niobium_tin() -> Structure:
    tin = [[0, 0, 0], [0.5, 0.5, 0.5]]
    chain = np.array([[0.25, 0, 0.5], [0.75, 0, 0.5]])
    chains = np.vstack([chain, np.roll(chain, 1, axis=1), np.roll(chain, 2, axis=1)])
    return Structure(Lattice.cubic(5.29), ["Sn"] * 2 + ["Nb"] * 6, np.vstack([tin, chains]))


def silicon() -> Structure:
    return Structure(Lattice(5.431 * FACE_CENTRED), ["Si", "Si"], [[0, 0, 0], [0.25, 0.25, 0.25]])


EXAMPLES = {
    "Al": aluminium,
    "NaCl": salt,
    "MgB2": magnesium_diboride,
    "Nb3Sn": niobium_tin,
    "Si": silicon,
}


def example_graph(name: str, cutoff: float = CUTOFF) -> CrystalGraph:
    return graph(crystal_arrays(EXAMPLES[name]()), cutoff)
