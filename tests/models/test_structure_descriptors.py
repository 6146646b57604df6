import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from models.crystals import crystal_arrays
from models.structure_descriptors import descriptor_names, structure_descriptors
from tests.models.crystal_examples import EXAMPLES


def described(structure: Structure) -> dict[str, float]:
    return dict(zip(descriptor_names(), structure_descriptors(crystal_arrays(structure)), strict=True))


@pytest.mark.parametrize("name", EXAMPLES)
def test_cell_origin_orientation_and_order_change_nothing(name):
    structure = EXAMPLES[name]()
    other = structure.make_supercell([[1, 1, 0], [0, 1, 0], [0, -1, 2]], in_place=False)
    other.translate_sites(range(len(other)), [0.31, 0.17, 0.73])
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    order = np.random.default_rng(1).permutation(len(other))
    turned = Structure(
        Lattice(other.lattice.matrix @ rotation),
        [other.species[place] for place in order],
        other.frac_coords[order],
    )
    found, expected = described(turned), described(structure)
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, abs=1e-4, nan_ok=True), key


def test_magnesium_diboride_is_told_as_it_is():
    found = described(EXAMPLES["MgB2"]())
    assert np.exp(found["ln(sites)"]) == pytest.approx(3)
    assert (found["space group"], found["crystal system"], found["centre of inversion"]) == (191, 6, 1)
    assert np.exp(found["ln(symmetry operations)"]) == pytest.approx(24)
    assert found["density"] == pytest.approx(2.63, abs=0.03)
    assert found["least distance to the nearest neighbour"] == pytest.approx(1.78, abs=0.01)
    assert found["nearest metalloid to metalloid"] == pytest.approx(1.78, abs=0.01)
    assert np.isnan(found["coordination of oxygen"])
    assert sum(value for key, value in found.items() if key.startswith("bonds ")) == pytest.approx(1)


def graphite(c: float) -> Structure:
    return Structure(Lattice.hexagonal(2.46, c), ["C", "C"], [[1 / 3, 2 / 3, 0], [2 / 3, 1 / 3, 0]])


DIMENSIONS = {
    "diamond-like": (EXAMPLES["Si"], 3),
    "sheets": (lambda: graphite(6.7), 2),
    "chains": (lambda: Structure(Lattice.tetragonal(8.0, 1.3), ["C"], [[0, 0, 0]]), 1),
    "molecules": (lambda: Structure(Lattice.cubic(6.0), ["N", "N"], [[0, 0, 0], [0, 0, 1.1 / 6]]), 0),
}


@pytest.mark.parametrize(("make", "dimension"), DIMENSIONS.values(), ids=DIMENSIONS)
def test_dimension_of_the_network_of_bonds(make, dimension):
    found = described(make())
    ends = [found[f"{end} dimension, bonds up to 1.15 radii"] for end in ("least", "largest")]
    assert ends == [dimension, dimension]
