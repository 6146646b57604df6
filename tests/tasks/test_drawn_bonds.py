"""Bonds of drawn crystals: those that a chemist would draw."""

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from tasks.crystals import read_structure
from tasks.drawn_bonds import bonds
from tasks.material_figures import shown_atoms
from tests.conftest import ROOT

CUBE = Lattice.cubic(4.156)
BORON = [[0.1996, 0.5, 0.5], [0.8004, 0.5, 0.5]]
BORON += [[b, a, c] for a, b, c in BORON] + [[b, c, a] for a, b, c in BORON]
CRYSTALS = {
    "LaB6": Structure(CUBE, ["La", *["B"] * 6], [[0, 0, 0], *BORON]),
    "MgB2": Structure(
        Lattice.hexagonal(3.086, 3.524), ["Mg", "B", "B"], [[0, 0, 0], [1 / 3, 2 / 3, 0.5], [2 / 3, 1 / 3, 0.5]]
    ),
    "NaCl": Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]),
    "Mg": Structure(Lattice.hexagonal(3.21, 5.21), ["Mg", "Mg"], [[1 / 3, 2 / 3, 0.25], [2 / 3, 1 / 3, 0.75]]),
    "Nb3Sn": Structure.from_spacegroup("Pm-3n", Lattice.cubic(5.29), ["Sn", "Nb"], [[0, 0, 0], [0.25, 0, 0.5]]),
    "MoO2-like": Structure(Lattice.orthorhombic(2.5, 4, 4), ["Mo", "O"], [[0, 0, 0], [0.5, 0.35, 0]]),
    "Nb": Structure.from_spacegroup("Im-3m", Lattice.cubic(3.3), ["Nb"], [[0, 0, 0]]),
    "argon": Structure(Lattice.cubic(5.3), ["Ar"], [[0, 0, 0]]),
    **{name: read_structure(ROOT / "docs" / "crystals" / f"{name}.cif") for name in ("BaFe2S3", "H3S", "Sr2CuO2Cl2")},
}


def kinds_of_bonds(structure: Structure) -> set[str]:
    sites, fractional = shown_atoms(structure)
    symbols = [structure[site].specie.symbol for site in sites]
    pairs = bonds(structure, sites, fractional @ structure.lattice.matrix)
    return {"-".join(sorted((symbols[one], symbols[other]))) for one, other in pairs}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("LaB6", {"B-B"}),
        ("MgB2", {"B-B"}),
        ("NaCl", {"Cl-Na"}),
        ("Mg", {"Mg-Mg"}),
        ("Nb3Sn", {"Nb-Nb", "Nb-Sn"}),
        ("MoO2-like", {"Mo-Mo", "Mo-O"}),
        ("argon", set()),
        ("BaFe2S3", {"Fe-S"}),
        ("H3S", {"H-S"}),
        ("Sr2CuO2Cl2", {"Cu-O", "Cl-Sr"}),
    ],
)
def test_contacts_across_other_atoms_are_no_bonds(name, expected):
    assert kinds_of_bonds(CRYSTALS[name]) == expected


@pytest.mark.parametrize(("name", "lengths"), [("Nb", [2.858]), ("Nb3Sn", [2.645, 2.957])])
def test_metals_are_joined_in_the_first_shell_only(name, lengths):
    sites, fractional = shown_atoms(CRYSTALS[name])
    positions = fractional @ CRYSTALS[name].lattice.matrix
    found = [
        np.linalg.norm(positions[one] - positions[other]) for one, other in bonds(CRYSTALS[name], sites, positions)
    ]
    np.testing.assert_allclose(sorted(set(np.round(found, 3))), lengths, atol=0.002)


def test_the_octahedron_of_lab6_has_its_twelve_edges():
    sites, fractional = shown_atoms(CRYSTALS["LaB6"])
    positions = fractional @ CUBE.matrix
    pairs = bonds(CRYSTALS["LaB6"], sites, positions)
    assert len(pairs) == 12
    lengths = [np.linalg.norm(positions[one] - positions[other]) for one, other in pairs]
    np.testing.assert_allclose(lengths, 1.766, atol=0.01)
