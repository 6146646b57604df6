"""Ordering: whole numbers of atoms, compact cells, lowest Ewald energy, and labels on the right rows."""

import itertools
import math

import numpy as np
import pyarrow as pa
import pytest
from pymatgen.analysis.ewald import EwaldSummation
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure

from tasks import ordering
from tasks.crystals import OUTPUT as CRYSTAL_TABLE
from tasks.crystals import structure_from_json, structure_hash, structure_to_json
from tasks.exceptions import InputError
from tasks.formulas import normalise_formula, parse_formula
from tasks.matching import OUTPUT as MATCH_TABLE
from tasks.matching import composition_difference
from tasks.ordering import OUTPUT, guess_charges, order_all, order_crystals, order_structure, unit_interaction
from tasks.schemas import CRYSTALS, MATCHES, ORDERED
from tasks.settings import OrderingSettings
from tasks.supercells import VACANCY, compact_supercell, hermite_matrices, plan_supercell, whole_counts
from tasks.workspace import Workspace

SETTINGS = OrderingSettings()
BCC = Lattice([[-1.65, 1.65, 1.65], [1.65, -1.65, 1.65], [1.65, 1.65, -1.65]])


def alloy(**occupancies):
    return Structure(BCC, [occupancies], [[0, 0, 0]])


def cuprate(x):
    lattice = Lattice.tetragonal(3.78, 13.2)
    la = {"La": 1 - x / 2, "Sr": x / 2} if x else "La"
    sites = [[0, 0, 0.3606], [0, 0, 0], [0, 0.5, 0], [0, 0, 0.1824]]
    return Structure.from_spacegroup("I4/mmm", lattice, [la, "Cu", "O", "O"], sites).get_primitive_structure()


def test_hermite_matrices_are_all_sublattices():
    for size in range(1, 9):
        matrices = hermite_matrices(size)
        assert np.allclose(np.linalg.det(matrices), size)
        # sum over divisors d1 d2 d3 = size of d2 d3^2 (the number of sublattices of index n in three dimensions)
        expected = sum(b * c**2 for a, b, c in itertools.product(range(1, size + 1), repeat=3) if a * b * c == size)
        assert len(matrices) == expected


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 12])
def test_supercells_are_compact(size):
    cell = np.diag([4.0, 4.0, 4.0])
    matrix = compact_supercell(cell, size)
    assert round(float(np.linalg.det(matrix))) == size
    longest = np.linalg.norm(matrix @ cell, axis=1).max()
    assert longest <= 4.0 * 2.3 * size ** (1 / 3)
    if size == 8:
        assert longest == pytest.approx(8.0)


def test_supercells_stay_in_the_plane_of_a_layered_crystal():
    matrix = compact_supercell(np.diag([4.0, 4.0, 30.0]), 5)
    assert np.abs(matrix).tolist()[-1] == [0, 0, 1]
    assert np.linalg.norm((matrix @ np.diag([4.0, 4.0, 30.0]))[:2], axis=1).tolist() == pytest.approx([4 * 5**0.5] * 2)


@pytest.mark.parametrize(
    ("occupancies", "sites", "counts"),
    [
        ({"La": 0.925, "Sr": 0.075}, 8, {"La": 7, "Sr": 1}),
        ({"La": 0.925, "Sr": 0.075}, 2, {"La": 2, "Sr": 0}),
        ({"O": 0.9}, 10, {"O": 9, VACANCY: 1}),
        ({"A": 1 / 3, "B": 1 / 3, "C": 1 / 3}, 3, {"A": 1, "B": 1, "C": 1}),
        ({"A": 0.5, "B": 0.5}, 1, {"A": 1, "B": 0}),
    ],
)
def test_whole_counts(occupancies, sites, counts):
    assert whole_counts(occupancies, sites) == counts
    assert sum(counts.values()) == sites


def test_plans_lose_no_element_and_take_the_smallest_cell():
    cells, counts, error = plan_supercell(
        [({"La": 0.925, "Sr": 0.075}, 2), ({"Cu": 1.0}, 1), ({"O": 1.0}, 4)], 0.05, 60
    )
    assert (cells, counts[0]) == (4, {"La": 7, "Sr": 1})
    assert error == pytest.approx(0.1 * 2 / 7)
    assert plan_supercell([({"Nb": 0.999, "Ta": 0.001}, 1)], 0.05, 60) is None


@pytest.mark.parametrize(
    ("structure", "formula", "sites"),
    [
        pytest.param(alloy(Nb=0.5, Ti=0.5), "TiNb", 2, id="alloy"),
        pytest.param(alloy(Nb=0.75, Zr=0.25), "ZrNb3", 4, id="quarter"),
        pytest.param(cuprate(0.5), "La3SrCu2O8", 14, id="cuprate"),
        pytest.param(cuprate(0.15), "La7SrCu4O16", 28, id="dilute"),
    ],
)
def test_ordered_cells(structure, formula, sites):
    cell = order_structure(structure, SETTINGS)
    assert cell.structure.is_ordered
    assert len(cell.structure) == sites
    assert composition_difference(cell.structure.composition.get_el_amt_dict(), parse_formula(formula)) < 1e-9
    asked = structure.composition.get_el_amt_dict()
    reached = cell.structure.composition.get_el_amt_dict()
    assert cell.composition_error == pytest.approx(composition_difference(asked, reached), abs=1e-5)
    assert cell.composition_error <= SETTINGS.tolerance
    size = round(float(np.linalg.det(np.array(cell.supercell).reshape(3, 3))))
    assert cell.structure.volume == pytest.approx(size * structure.volume)


def test_same_input_same_output():
    first, again = order_structure(cuprate(0.15), SETTINGS), order_structure(cuprate(0.15).copy(), SETTINGS)
    assert structure_hash(first.structure) == structure_hash(again.structure)
    assert (first.ewald_energy_ev, first.supercell) == (again.ewald_energy_ev, again.supercell)


def test_ordered_structures_come_back_unchanged():
    structure = cuprate(0)
    cell = order_structure(structure, SETTINGS)
    assert structure_hash(cell.structure) == structure_hash(structure)
    assert (cell.ewald_energy_ev, cell.supercell, cell.composition_error) == (None, (1, 0, 0, 0, 1, 0, 0, 0, 1), 0.0)


def test_energy_is_that_of_pymatgen_and_the_lowest_of_all():
    rocksalt = Structure.from_spacegroup(
        "Fm-3m", Lattice.cubic(4.2), [{"Li": 0.5, "Mg": 0.5}, "O"], [[0, 0, 0], [0.5, 0.5, 0.5]]
    )
    cell = order_structure(rocksalt, SETTINGS)
    charges = guess_charges({"Li": 2, "Mg": 2, "O": 4})

    def energy(structure):
        return EwaldSummation(structure.copy().add_oxidation_state_by_element(charges)).total_energy

    assert energy(cell.structure) == pytest.approx(cell.ewald_energy_ev, abs=1e-4)
    metals = [index for index, site in enumerate(rocksalt) if not site.is_ordered]
    energies = []
    for lithium in itertools.combinations(metals, 2):
        other = rocksalt.copy()
        for index in metals:
            other[index] = "Li" if index in lithium else "Mg"
        energies.append(energy(other))
    assert cell.ewald_energy_ev == pytest.approx(min(energies), abs=1e-4)


def test_descent_by_swaps_reaches_the_best_arrangement():
    best = order_structure(cuprate(0.5), SETTINGS)
    descended = order_structure(cuprate(0.5), OrderingSettings(max_arrangements=1))
    assert descended.ewald_energy_ev == pytest.approx(best.ewald_energy_ev, abs=1e-5)


def test_interaction_is_symmetric_and_translation_free():
    coordinates = np.array([[0, 0, 0], [0.5, 0.5, 0.5], [0.1, 0.2, 0.3]])
    matrix = unit_interaction(Lattice.cubic(4.0), coordinates)
    assert np.allclose(matrix, matrix.T)
    q = np.array([1.0, -2.0, 1.0])
    moved = unit_interaction(Lattice.cubic(4.0), coordinates + 0.37)
    assert q @ matrix @ q == pytest.approx(q @ moved @ q)


@pytest.mark.parametrize(
    ("atoms", "signs"),
    [
        ({"La": 7, "Sr": 1, "Cu": 4, "O": 16}, {"La": 1, "Sr": 1, "O": -1}),
        ({"Nb": 1, "Ti": 1}, {"Ti": 1, "Nb": -1}),
        ({"Ba": 3, "K": 2, "Fe": 10, "As": 10}, {"Ba": 1, "K": 1, "As": -1}),
    ],
)
def test_charges_are_neutral(atoms, signs):
    charges = guess_charges(atoms)
    assert sum(charges[symbol] * number for symbol, number in atoms.items()) == pytest.approx(0, abs=1e-6)
    assert {symbol: math.copysign(1, charges[symbol]) for symbol in signs} == signs


@pytest.mark.parametrize(
    ("structure", "reason"),
    [
        pytest.param(cuprate(0.04), "too large: needs 91 sites, at most 40", id="dilute"),
        pytest.param(alloy(Nb=0.995, Ta=0.005), "too large: needs more than 60 cells", id="very-dilute"),
        pytest.param(cuprate(0) * (2, 2, 2), "too large: needs 56 sites", id="ordered"),
    ],
)
def test_what_is_too_large_is_refused_with_its_size(structure, reason):
    with pytest.raises(InputError, match=reason):
        order_structure(structure, SETTINGS)


def crystals_and_matches():
    structures = {"Nb": alloy(Nb=1), "NbTi": alloy(Nb=0.5, Ti=0.5), "LSCO": cuprate(0), "Al": alloy(Al=1)}
    crystals = [
        {
            "crystal_id": name,
            "formula": normalise_formula(s.composition.get_el_amt_dict()),
            "space_group": "I4/mmm" if name == "LSCO" else "Im-3m",
            "sites": len(s),
            "ordered": s.is_ordered,
            "crystal_source": "test",
            "structure": structure_to_json(s),
        }
        for name, s in structures.items()
    ]
    found = [
        ("Nb", "Nb", "exact", 0.0, structures["Nb"]),
        ("TiNb", "NbTi", "exact", 0.0, structures["NbTi"]),
        ("Sr0.15La1.85CuO4", "LSCO", "similar", 0.0429, cuprate(0.15)),
        ("Sr0.04La1.96CuO4", "LSCO", "similar", 0.0114, cuprate(0.04)),
    ]
    matches = [
        {
            "formula": formula,
            "tc_kelvin": 9.0,
            "tc_std_kelvin": 0.0,
            "family": "other",
            "crystal_id": name,
            "crystal_source": "test",
            "match": match,
            "difference": difference,
            "structure": structure_to_json(s),
        }
        for formula, name, match, difference, s in found
    ]
    return pa.Table.from_pylist(crystals, schema=CRYSTALS), pa.Table.from_pylist(matches, schema=MATCHES)


def test_labelled_and_unlabelled_rows():
    crystals, matches = crystals_and_matches()
    outcome = order_all(matches, crystals, SETTINGS, processes=1)
    assert outcome.rows_in == outcome.accounted + len(outcome.rejected) == 6
    table = outcome.tables[OUTPUT]
    assert table.schema.equals(ORDERED)
    rows = {row["material_id"]: row for row in table.to_pylist()}
    assert list(rows) == ["Nb", "NbTi~TiNb", "LSCO~Sr0.15La1.85CuO4", "LSCO", "Al"]
    assert [row["tc_kelvin"] for row in rows.values()] == [9.0, 9.0, 9.0, None, None]
    assert [row["supercon_formula"] for row in rows.values()] == ["Nb", "TiNb", "Sr0.15La1.85CuO4", None, None]
    assert rows["NbTi~TiNb"]["sites"] == 2
    assert [(r.item, r.reason.split(":")[0]) for r in outcome.rejected] == [("LSCO~Sr0.04La1.96CuO4", "too large")]
    for row in rows.values():
        structure = structure_from_json(row["structure"])
        assert structure.is_ordered
        assert row["structure_hash"] == structure_hash(structure)


def test_time_limit_stops_a_crystal_and_the_rest_goes_on():
    crystals, matches = crystals_and_matches()
    outcome = order_all(matches, crystals, OrderingSettings(seconds=1e-3), processes=1)
    late = {rejection.item: rejection for rejection in outcome.rejected}
    assert late["NbTi~TiNb"].retryable
    assert late["NbTi~TiNb"].reason == "took longer than 0.001 s"
    assert outcome.accounted == 3


def test_task(tmp_path):
    crystals, matches = crystals_and_matches()
    space = Workspace(tmp_path)
    space.write_table(CRYSTAL_TABLE, crystals.slice(0, 1))
    space.write_table(MATCH_TABLE, matches.slice(0, 1))
    report = order_crystals.fn(space.url, SETTINGS)
    assert (report.rows_in, report.rows_refused, report.counts["labelled"]) == (1, 0, 1)
    first = space.fingerprint(ordering.OUTPUT)
    assert order_crystals.fn(space.url, SETTINGS).reused
    space.remove("stages/order/manifest.json")
    order_crystals.fn(space.url, SETTINGS)
    assert space.fingerprint(ordering.OUTPUT) == first
