"""Matching: the classes of 3DSC, which crystal is kept, and synthetic doping."""

import numpy as np
import pyarrow as pa
import pytest
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure

from tasks.cleaning import OUTPUT as SUPERCONDUCTOR_TABLE
from tasks.cleaning import clean_reports
from tasks.crystals import OUTPUT as CRYSTAL_TABLE
from tasks.crystals import structure_from_json, structure_to_json
from tasks.doping import DopingError, assign_dopants, dope_structure, find_changes
from tasks.formulas import normalise_formula, parse_formula
from tasks.matching import (
    CLASSES,
    NO_MATCH,
    OUTPUT,
    CrystalIndex,
    compare_compositions,
    composition_difference,
    find_candidates,
    match_class,
    match_compositions,
    match_crystals,
)
from tasks.schemas import CRYSTALS, MATCHES, SUPERCONDUCTORS
from tasks.settings import CleaningSettings, MatchingSettings
from tasks.supercon import read_reports
from tasks.workspace import Workspace
from tests.conftest import STARTER

SETTINGS = MatchingSettings()


def build(group, lattice, species, sites):
    return Structure.from_spacegroup(group, lattice, species, sites).get_primitive_structure()


STRUCTURES = {
    "MgB2": build("P6/mmm", Lattice.hexagonal(3.086, 3.524), ["Mg", "B"], [[0, 0, 0], [1 / 3, 2 / 3, 0.5]]),
    "Nb3Sn": build("Pm-3n", Lattice.cubic(5.29), ["Sn", "Nb"], [[0, 0, 0], [0.25, 0, 0.5]]),
    "La2CuO4": build(
        "I4/mmm",
        Lattice.tetragonal(3.78, 13.2),
        ["La", "Cu", "O", "O"],
        [[0, 0, 0.3606], [0, 0, 0], [0, 0.5, 0], [0, 0, 0.1824]],
    ),
    "BaFe2As2": build(
        "I4/mmm", Lattice.tetragonal(3.96, 13.0), ["Ba", "Fe", "As"], [[0, 0, 0], [0, 0.5, 0.25], [0, 0, 0.354]]
    ),
    "LaFeAsO": build(
        "P4/nmm",
        Lattice.tetragonal(4.03, 8.74),
        ["La", "Fe", "As", "O"],
        [[0, 0.5, 0.1415], [0, 0, 0.5], [0, 0.5, 0.6512], [0, 0, 0]],
    ),
    "MoC": build("Fm-3m", Lattice.cubic(4.28), ["Mo", "C"], [[0, 0, 0], [0.5, 0.5, 0.5]]),
    "Nb": build("Im-3m", Lattice.cubic(3.3), ["Nb"], [[0, 0, 0]]),
}


def crystal_table(rows):
    records = [
        {
            "crystal_id": name,
            "formula": normalise_formula(structure.composition.get_el_amt_dict()),
            "space_group": "",
            "sites": len(structure),
            "ordered": structure.is_ordered,
            "energy_above_hull_ev": energy,
            "crystal_source": "test",
            "structure": structure_to_json(structure),
        }
        for name, structure, energy in rows
    ]
    return pa.Table.from_pylist(records, schema=CRYSTALS)


def measured_table(tmp_path, *formulas):
    path = tmp_path / "reports.csv"
    path.write_text("formula,tc\n" + "".join(f"{formula},5\n" for formula in formulas), encoding="utf-8")
    return clean_reports(read_reports(str(path)), CleaningSettings()).tables[SUPERCONDUCTOR_TABLE]


def match(tmp_path, formulas, crystals=None):
    crystals = crystals or [(name, structure, None) for name, structure in STRUCTURES.items()]
    outcome = match_compositions(measured_table(tmp_path, *formulas), crystal_table(crystals), SETTINGS)
    assert outcome.rows_in == outcome.accounted + len(outcome.rejected)
    assert outcome.tables[OUTPUT].schema.equals(MATCHES)
    rows = {row["formula"]: row for row in outcome.tables[OUTPUT].to_pylist()}
    return rows, {rejection.item: rejection.reason for rejection in outcome.rejected}


@pytest.mark.parametrize(
    ("measured", "crystal", "difference", "expected"),
    [
        ("MgB2", "Mg2B4", 0.0, "exact"),
        ("La1.85Sr0.15CuO4", "La2CuO4", 0.3 / 7, "similar"),
        ("La1.7Sr0.3CuO4", "La2CuO4", 0.6 / 7, "doped"),
        ("La1.4Sr0.6CuO4", "La2CuO4", 1.2 / 7, None),
        ("Nb0.95Ta0.05", "Nb", 0.1, "doped"),
        ("Mg0.8Al0.2B2", "MgB2", 0.4 / 3, "doped"),
        ("UBe13", "Be", 2 / 14, None),  # R would do, but U differs by more than 0.3 and 20 %
        ("YBa2Cu3O6.9", "YBa2Cu3O7", None, "similar"),
        ("MgB2", "AlB2", None, None),
        ("Nb", "Nb3Sn", None, None),
        ("La1.85Sr0.1Ba0.05CuO4", "La2CuO4", None, None),  # two elements missing
    ],
)
def test_classes_of_3dsc(measured, crystal, difference, expected):
    a, b = parse_formula(measured), parse_formula(crystal)
    assert match_class(a, b, SETTINGS) == expected
    if difference is not None:
        assert composition_difference(a, b) == pytest.approx(difference)


def test_difference_is_symmetric_scale_free_and_bounded():
    a, b = {"Nb": 3.0, "Sn": 1.0}, {"Nb": 1.0, "Ti": 1.0}
    assert composition_difference(a, b) == pytest.approx(composition_difference(b, a)) == pytest.approx(1.0)
    assert composition_difference({"Nb": 6.0, "Sn": 2.0}, a) == pytest.approx(0)
    assert composition_difference(a, {"Al": 1.0}) == pytest.approx(2)


def test_vectorised_comparison_is_the_definition():
    random = np.random.default_rng(0)
    measured, crystals = random.uniform(0.5, 1.5, (20, 3)), random.uniform(0.5, 1.5, (30, 3))
    differences, classes = compare_compositions(measured, crystals, SETTINGS)
    for i, m in enumerate(measured):
        for j, c in enumerate(crystals):
            scaled = m * c.sum() / m.sum()
            d, s = np.abs(c - scaled), c + scaled
            total = 2 * d.sum() / s.sum()
            assert differences[i, j] == pytest.approx(total)
            similar = total <= 0.05 and not np.any((d > 0.15) & (2 * d / s > 0.10))
            doped = total <= 0.15 and not np.any((d > 0.30) & (2 * d / s > 0.20))
            assert classes[i, j] == (1 if similar else 2 if doped else NO_MATCH)


def test_index_finds_what_a_search_over_all_pairs_finds():
    random = np.random.default_rng(1)
    symbols = np.array(["La", "Sr", "Cu", "O", "Fe"])

    def draw(count):
        chosen = (symbols[np.sort(random.choice(5, random.integers(1, 5), replace=False))] for _ in range(count))
        return [{str(s): float(random.integers(1, 4)) + random.choice([0, 0.1]) for s in group} for group in chosen]

    measured, amounts = draw(60), draw(80)
    rows = [
        {"crystal_id": f"c-{k}", "formula": "".join(f"{s}{x:.4f}" for s, x in a.items()), "energy_above_hull_ev": None}
        for k, a in enumerate(amounts)
    ]
    schema = pa.schema([CRYSTALS.field(name) for name in ("crystal_id", "formula", "energy_above_hull_ev")])
    candidates, _ = find_candidates(measured, CrystalIndex(pa.Table.from_pylist(rows, schema=schema)), SETTINGS)
    for m, found in zip(measured, candidates, strict=True):
        fitting = {
            k
            for k, c in enumerate(amounts)
            if set(c) <= set(m)
            and len(m) - len(c) <= (len(m) > 1)
            and compare_compositions(
                np.array([[m[s] for s in sorted(m)]]), np.array([[c.get(s, 0) for s in sorted(m)]]), SETTINGS
            )[1][0, 0]
            < NO_MATCH
        }
        assert {candidate.position for candidate in found} == fitting


def test_every_class_and_the_composition_that_doping_reaches(tmp_path):
    formulas = ["MgB2", "La1.85Sr0.15CuO4", "La1.7Sr0.3CuO4", "BaFe1.9Co0.1As2", "LaFeAsO0.9F0.1", "Nb0.95Ta0.05"]
    rows, refused = match(tmp_path, formulas)
    assert refused == {}
    assert [row["match"] for row in rows.values()] == [
        "exact",
        "similar",
        "doped",
        "similar",
        "similar",
        "doped",
    ]
    for formula, row in rows.items():
        reached = structure_from_json(row["structure"]).composition.get_el_amt_dict()
        assert composition_difference(parse_formula(formula), reached) < 1e-3, formula


def test_missing_nonmetals_leave_vacancies(tmp_path):
    rows, _ = match(tmp_path, ["MoC0.95"])
    (row,) = rows.values()
    filled = [site.species.num_atoms for site in structure_from_json(row["structure"])]
    assert sorted(filled) == pytest.approx([0.95, 1.0])


def test_the_dopant_is_on_the_sites_of_its_host(tmp_path):
    rows, _ = match(tmp_path, ["LaFe0.95Co0.05AsO0.9F0.1", "LaFeAsO0.9F0.1"])
    (row,) = [row for formula, row in rows.items() if "Co" not in formula]
    sites = {site.species.formula for site in structure_from_json(row["structure"])}
    assert sites == {"La1", "Fe1", "As1", "O0.9 F0.1"}


def test_what_is_not_clear_is_dropped_with_the_reason(tmp_path):
    _, refused = match(tmp_path, ["La2CuO3.9", "MgB2", "TiTe2", "Nb2Sn"])
    assert refused == {
        "La2CuO3.9": "La2CuO4 (La2CuO4) is nearest, but O changes, but stands on 2 groups of sites: which of them is "
        "not clear",
        "TiTe2": "no crystal has its elements, or all but one of them",
        "Nb2Sn": refused["Nb2Sn"],
    }
    assert "the nearest, Nb3Sn (Nb3Sn), has R = 0.167" in refused["Nb2Sn"]


@pytest.mark.parametrize(
    ("crystal", "measured", "changes"),
    [
        ("YBa2Cu3O7", "YBa2Cu3O6.9", {"O": -0.1}),
        ("La2CuO4", "La1.85Sr0.15CuO4", {"La": -0.15, "Sr": 0.15}),
        ("Nb3Sn", "Nb3.1Sn0.9", {"Nb": 0.1, "Sn": -0.1}),
        ("BaFe2As2", "Ba0.9K0.1Fe1.9Co0.1As2", {"Ba": -0.1, "K": 0.1, "Fe": -0.1, "Co": 0.1}),
        ("MgB2", "Mg2B4", {}),
    ],
)
def test_changes_keep_what_can_be_kept(crystal, measured, changes):
    assert find_changes(parse_formula(crystal), parse_formula(measured)) == pytest.approx(changes)


@pytest.mark.parametrize(
    ("changes", "assigned"),
    [
        ({"La": -0.15, "Sr": 0.1, "Ba": 0.05}, {"La": {"Sr": 0.1, "Ba": 0.05}}),
        ({"O": -0.1, "F": 0.1, "Fe": -0.05, "Co": 0.05}, {"O": {"F": 0.1}, "Fe": {"Co": 0.05}}),
        ({"La": -0.2, "Sr": 0.15, "Ca": 0.05, "O": -0.1}, {"La": {"Sr": 0.15, "Ca": 0.05}, "O": {}}),
        ({"O": -0.1}, {"O": {}}),
    ],
)
def test_amounts_tell_which_element_is_replaced(changes, assigned):
    assert assign_dopants(changes) == assigned


def test_equal_amounts_do_not_tell_which_element_is_replaced():
    with pytest.raises(DopingError, match="not clear: Co and K for Ba or Fe"):
        assign_dopants({"Ba": -0.1, "Fe": -0.1, "Co": 0.1, "K": 0.1})


def test_doping_leaves_the_parent_alone():
    parent = STRUCTURES["BaFe2As2"]
    before = structure_to_json(parent)
    dope_structure(parent, {"Ba": 1, "Fe": 2, "As": 2}, {"Ba": 0.9, "K": 0.1, "Fe": 2, "As": 2})
    assert structure_to_json(parent) == before


def test_best_crystal_is_kept(tmp_path):
    nb = STRUCTURES["Nb"]
    by_energy = [("a-1", nb, 0.2), ("a-2", nb, 0.1), ("a-3", nb, None)]
    assert match(tmp_path, ["Nb"], by_energy)[0]["Nb"]["crystal_id"] == "a-2"
    by_id = [("mp-100", nb, None), ("mp-9", nb, None)]
    assert match(tmp_path, ["Nb"], by_id)[0]["Nb"]["crystal_id"] == "mp-9"
    doped = dope_structure(STRUCTURES["La2CuO4"], parse_formula("La2CuO4"), parse_formula("La1.8Sr0.2CuO4"))
    by_difference = [("far", STRUCTURES["La2CuO4"], 0.0), ("near", doped, 0.5)]
    rows, _ = match(tmp_path, ["La1.85Sr0.15CuO4"], by_difference)
    (row,) = rows.values()
    assert row["crystal_id"] == "near"


def test_order_of_the_crystals_does_not_matter(tmp_path):
    formulas = ["MgB2", "La1.85Sr0.15CuO4", "Nb0.95Ta0.05"]
    crystals = [(name, structure, None) for name, structure in STRUCTURES.items()]
    assert match(tmp_path, formulas, crystals) == match(tmp_path, formulas, crystals[::-1])


def test_task(tmp_path):
    space = Workspace(tmp_path / "workspace")
    space.write_table(SUPERCONDUCTOR_TABLE, measured_table(tmp_path, "MgB2", "TiTe2"))
    space.write_table(CRYSTAL_TABLE, crystal_table([("mp-763", STRUCTURES["MgB2"], 0.0)]))
    report = match_crystals.fn(space.url, SETTINGS)
    assert (report.rows_in, report.rows_refused, report.counts["exact"]) == (2, 1, 1)
    assert match_crystals.fn(space.url, SETTINGS).reused
    assert space.read_table("stages/match/rejected.parquet")["item"].to_pylist() == ["TiTe2"]


def test_starter_compositions_find_crystals():
    from tasks.crystals import gather_crystals, read_crystals
    from tasks.settings import CrystalSettings

    crystals = [c for c in read_crystals(str(STARTER / "crystals.csv")) if len(c.crystal_id) < 8][:40]
    table = gather_crystals(crystals, CrystalSettings(), processes=1).tables[CRYSTAL_TABLE]
    measured = clean_reports(read_reports(str(STARTER / "supercon.csv")), CleaningSettings())
    outcome = match_compositions(measured.tables[SUPERCONDUCTOR_TABLE], table, SETTINGS)
    assert measured.tables[SUPERCONDUCTOR_TABLE].schema.equals(SUPERCONDUCTORS)
    assert outcome.counts["exact"] > 10
    assert set(outcome.tables[OUTPUT]["match"].to_pylist()) <= set(CLASSES)
