"""Small real crystals for the tests of the crystal network (lattice constants in angstrom at room temperature)."""

from pymatgen.core import Lattice, Structure

from models.crystals import CrystalGraph, crystal_arrays, graph

CUTOFF = 5.0


def aluminium() -> Structure:
    return Structure.from_spacegroup("Fm-3m", Lattice.cubic(4.0495), ["Al"], [[0, 0, 0]]).get_primitive_structure()


def salt() -> Structure:
    return Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.6402), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])


def magnesium_diboride() -> Structure:
    return Structure.from_spacegroup(
        "P6/mmm", Lattice.hexagonal(3.0864, 3.5215), ["Mg", "B"], [[0, 0, 0], [1 / 3, 2 / 3, 0.5]]
    )


def niobium_tin() -> Structure:
    return Structure.from_spacegroup("Pm-3n", Lattice.cubic(5.29), ["Sn", "Nb"], [[0, 0, 0], [0.25, 0, 0.5]])


def silicon() -> Structure:
    return Structure.from_spacegroup("Fd-3m", Lattice.cubic(5.431), ["Si"], [[0, 0, 0]]).get_primitive_structure()


EXAMPLES = {
    "Al": aluminium,
    "NaCl": salt,
    "MgB2": magnesium_diboride,
    "Nb3Sn": niobium_tin,
    "Si": silicon,
}


def example_graph(name: str, cutoff: float = CUTOFF) -> CrystalGraph:
    return graph(crystal_arrays(EXAMPLES[name]()), cutoff)
