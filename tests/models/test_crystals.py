import numpy as np
import pytest
import torch
from pymatgen.core import DummySpecies, Lattice, Structure

from models.crystals import (
    CrystalArrays,
    batches_by_size,
    check_arrays,
    collate,
    collate_by_size,
    crystal_arrays,
    graph,
)
from models.exceptions import ModelInputError
from tests.models.crystal_examples import CUTOFF, EXAMPLES, aluminium, example_graph, magnesium_diboride


@pytest.mark.parametrize("name", EXAMPLES)
def test_neighbours_are_those_of_pymatgen(name):
    structure = EXAMPLES[name]()
    found = example_graph(name)
    expected = structure.get_all_neighbors(CUTOFF)
    for atom, neighbours in enumerate(expected):
        here = (found.centres == atom) & (found.distances > 0)
        assert here.sum() == len(neighbours)
        np.testing.assert_allclose(np.sort(found.distances[here]), sorted(n.nn_distance for n in neighbours), atol=1e-4)


def test_each_atom_is_its_own_neighbour_at_distance_zero():
    found = example_graph("MgB2")
    own = found.distances == 0
    np.testing.assert_array_equal(found.centres[own], np.arange(3))
    np.testing.assert_array_equal(found.neighbours[own], np.arange(3))


def test_the_order_of_pairs_is_fixed():
    first, second = example_graph("NaCl"), example_graph("NaCl")
    for name in ("centres", "neighbours", "distances"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert (np.diff(first.centres) >= 0).all()


def test_batch_pads_and_keeps_every_crystal():
    names = ["Al", "NaCl", "MgB2"]
    batch = collate([example_graph(name) for name in names])
    assert batch.numbers.shape == (3, 8)
    assert batch.mask.sum(dim=1).tolist() == [1, 8, 3]
    assert batch.numbers[2].tolist() == [12, 5, 5, 0, 0, 0, 0, 0]
    np.testing.assert_allclose(batch.positions[1].numpy(), EXAMPLES["NaCl"]().cart_coords, atol=1e-5)
    assert batch.positions[0, 1:].abs().sum() == 0
    pairs = [len(example_graph(name).distances) for name in names]
    assert len(batch.pairs) == sum(pairs)
    assert torch.bincount(batch.pairs // 64).tolist() == pairs


def test_pair_mask_holds_pairs_within_the_radius_and_only_atoms():
    batch = collate([example_graph("MgB2"), example_graph("Al")])
    near = batch.pair_mask(2.0)
    assert near[0].tolist() == [[True, False, False], [False, True, True], [False, True, True]]  # B-B 1.78, Mg-B 2.5
    assert near[1].tolist() == [[True, False, False], [False, False, False], [False, False, False]]
    assert batch.pair_mask()[0].all()


def test_parts_of_similar_size_hold_each_crystal_once():
    crystals = [example_graph(name) for name in EXAMPLES]
    large = EXAMPLES["NaCl"]().make_supercell([3, 3, 2], in_place=False)
    crystals.append(graph(crystal_arrays(large), 3.0))
    parts = collate_by_size(crystals)
    assert sorted(np.concatenate([rows for rows, _ in parts])) == list(range(len(crystals)))
    assert len(parts) == 3
    assert len(collate_by_size(crystals[:5])) == 1
    for rows, batch in parts:
        assert batch.mask.sum(dim=1).tolist() == [len(crystals[row]) for row in rows]


def _arrays(**changes):
    good = crystal_arrays(magnesium_diboride())
    fields = {"lattice": good.lattice, "atomic_numbers": good.atomic_numbers, "frac_coords": good.frac_coords}
    return CrystalArrays(**(fields | changes))


BAD_ARRAYS = {
    "no atoms": ({"atomic_numbers": np.array([], int), "frac_coords": np.zeros((0, 3))}, "0 atoms"),
    "NaN": ({"frac_coords": np.full((3, 3), np.nan)}, "finite"),
    "flat cell": ({"lattice": np.diag([3.0, 3.0, 0.0])}, "volume of 0"),
    "unknown element": ({"atomic_numbers": np.array([12, 5, 96])}, r"\[96\] are not between 1 and 95"),
    "shape": ({"frac_coords": np.zeros((2, 3))}, "must be"),
}


@pytest.mark.parametrize(("changes", "message"), BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_bad_arrays_are_refused_with_the_reason(changes, message):
    with pytest.raises(ModelInputError, match=message):
        check_arrays(_arrays(**changes))


BAD_STRUCTURES = {
    "partial occupancy": (Structure(Lattice.cubic(3), [{"Nb": 0.5, "Ti": 0.5}], [[0, 0, 0]]), "partial occupancy"),
    "dummy": (Structure(Lattice.cubic(3), [DummySpecies("Xa")], [[0, 0, 0]]), "dummy element"),
    "too large": (aluminium().make_supercell([8, 8, 8], in_place=False), "512 atoms; at most 444"),
    "empty": (Structure(Lattice.cubic(3), [], []), "0 atoms"),
}


@pytest.mark.parametrize(("structure", "message"), BAD_STRUCTURES.values(), ids=BAD_STRUCTURES)
def test_bad_structures_are_refused_with_the_reason(structure, message):
    with pytest.raises(ModelInputError, match=message):
        crystal_arrays(structure)


def test_a_site_given_twice_is_refused():
    twice = Structure(Lattice.cubic(4), ["Na", "Cl"], [[0, 0, 0], [0, 0, 0.01]])
    with pytest.raises(ModelInputError, match="given twice"):
        graph(crystal_arrays(twice), CUTOFF)


def test_an_empty_batch_is_refused():
    for make in (collate, collate_by_size):
        with pytest.raises(ModelInputError, match="at least one crystal"):
            make([])


def test_batches_to_predict_hold_each_crystal_once_from_small_to_large_within_the_limit():
    cells = [aluminium().make_supercell([count, 1, 1], in_place=False) for count in (9, 1, 3, 2, 3, 1)]
    graphs = [graph(crystal_arrays(cell), 3.0) for cell in cells]
    batches = batches_by_size(graphs, most=6)
    assert [rows.tolist() for rows in batches] == [[1, 5, 3], [2, 4], [0]]
    assert batches_by_size([]) == []
