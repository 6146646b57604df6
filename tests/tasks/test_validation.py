"""Table I: what it says, how its compounds are found among grids, and what is said of those without."""

import sys
from pathlib import Path

import pyarrow as pa
import pytest
from prefect.settings import PREFECT_API_URL
from pymatgen.core import Lattice, Structure

from flows import cli
from flows.validate import pairs
from tasks.exceptions import InputError, MissingStageError
from tasks.held_out import read_held_out
from tasks.schemas import ORDERED, PAIRS
from tasks.stages import read_report
from tasks.validation import (
    OUTPUT,
    TABLE_I,
    Candidate,
    Compound,
    check_found,
    count_pairs,
    find_candidates,
    match_compound,
    say_missing,
    validate,
)
from tasks.workspace import Workspace
from tests.tasks.grid_workspace import make_grid_workspace
from tests.tasks.screening_workspace import save_networks

pytestmark = pytest.mark.usefixtures("prefect_harness")

FOUND = {3: "ZrSiIr", 4: "TbIrSi", 7: "La3Ni2O7", 8: "LaFeAsO"}  # rows of the synthetic grids that get these formulas


def rename(rows: list[dict]) -> list[dict]:
    return [row | {"formula": FOUND.get(number, row["formula"])} for number, row in enumerate(rows)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Synthetic grids, four of them under the formulas of Table I, and networks stored as trained on all."""
    workspace = make_grid_workspace(tmp_path_factory.mktemp("pairs"), count=16, change=rename)
    save_networks(workspace, workspace.read_table("grids/index.parquet").to_pylist())
    return workspace


def by_row(table: pa.Table) -> dict[tuple[str, float], dict]:
    return {(row["formula"], row["pressure_gpa"]): row for row in table.to_pylist()}


def test_the_table_is_that_of_the_paper():
    assert [compound.pair for compound in TABLE_I] == [1, 1, 2, 2, 3, 3, 4, 4]
    assert [compound.measured_kelvin for compound in TABLE_I] == [None, 80, None, 10.2, None, 80, None, 2.04]
    assert [compound.published_kelvin for compound in TABLE_I] == [0.01, 103.4, 0.01, 12.6, 0.45, 116.3, 0.01, 1.79]
    from pymatgen.symmetry.groups import sg_symbol_from_int_number

    standard = {"Ammm": "Cmmm", "Amam": "Cmcm"}
    for compound in TABLE_I:
        symbol = standard.get(compound.space_group, compound.space_group)
        assert sg_symbol_from_int_number(compound.space_group_number) == symbol


def test_compounds_are_found_by_their_composition_however_written(trained: Workspace):
    found = {candidate.material_id: candidate.formula for candidate in find_candidates(trained)}
    assert found == {f"m-{number:03d}": formula for number, formula in FOUND.items()}


def test_predictions_come_with_intervals_and_held_out_values(trained: Workspace):
    table = validate(trained)
    assert table.schema.equals(PAIRS)
    rows = by_row(table)
    assert len(rows) == len(table) == 8
    assert sum(row["found"] for row in rows.values()) == 5  # La3Ni2O7 stands for both of its rows
    zirconium = rows["IrSiZr", 0.0]
    assert zirconium["tc_low_kelvin"] <= zirconium["tc_kelvin"] <= zirconium["tc_high_kelvin"]
    held_out = read_held_out(trained, "bnas").values[zirconium["material_id"]]
    assert zirconium["tc_held_out_kelvin"] == pytest.approx(held_out, rel=1e-4)
    assert "trained on it" in zirconium["note"]
    for pressure in (0.0, 29.5):
        assert "stands twice in the table" in rows["La3Ni2O7", pressure]["note"]
        assert "the pressure of the cell is not stored" in rows["La3Ni2O7", pressure]["note"]
    missing = rows["Ba2Cu4PrO8", 0.0]
    assert (missing["tc_kelvin"], missing["trained_on"]) == (None, None)
    assert "meissner grid mp --collection mp --elements Ba,Cu,Pr,O" in missing["note"]
    assert "--engine vasp" in missing["note"]  # praseodymium has no GPAW data set
    assert count_pairs(table)["pairs"] == 1  # iridium silicides; La3Ni2O7 cannot be told apart


def test_a_collection_is_searched_and_its_composition_compared(trained: Workspace, tmp_path: Path):
    place = Workspace(tmp_path)
    for name in trained.list("models/**"):
        if trained.fs.isfile(trained.path(name)):
            place.write_bytes(name, trained.read_bytes(name))
    make_grid_workspace(tmp_path / "collections" / "mine", count=16, change=rename)
    rows = by_row(validate(place))
    assert rows["IrSiTb", 0.0]["collection"] == "mine"
    assert rows["IrSiTb", 0.0]["tc_held_out_kelvin"] is None
    assert rows["IrSiTb", 0.0]["trained_on"] is False  # the index that names what was trained on is not here
    place.write_bytes("grids/index.parquet", trained.read_bytes("grids/index.parquet"))
    found = [one for one in find_candidates(place) if one.collection]
    assert {one.formula for one in found} == set(FOUND.values())


def candidate(formula: str, group: tuple[str, int] | None) -> Candidate:
    return Candidate("m", formula, "", Workspace("."), group, None)


LOW, HIGH = (compound for compound in TABLE_I if compound.formula == "La3Ni2O7")


@pytest.mark.parametrize(
    ("compound", "group", "note"),
    [
        (LOW, ("Cmcm", 63), "the pressure of the cell is not stored"),
        (LOW, ("Fmmm", 69), None),
        (HIGH, ("Fmmm", 69), "the pressure of the cell is not stored"),
        (HIGH, ("Cmcm", 63), None),
        (HIGH, ("I4/mmm", 139), "another polymorph: I4/mmm in place of Fmmm"),
        (LOW, None, "the crystal is not stored"),
    ],
    ids=["low", "low not high", "high", "high not low", "another", "unknown"],
)
def test_polymorphs_are_told_apart_by_the_space_group(compound: Compound, group: tuple, note: str | None):
    found = match_compound(compound, [candidate("Ni2La3O7", group), candidate("LaNiO3", ("R-3c", 167))])
    assert [text.startswith(note) for _, text in found] == ([True] if note else [])


def test_the_space_group_is_that_of_the_stored_crystal(tmp_path: Path):
    place = make_grid_workspace(tmp_path, count=16, change=rename)
    tetragonal = Structure.from_spacegroup(
        "P4/nmm",
        Lattice.tetragonal(4.0355, 8.7393),
        ["La", "Fe", "As", "O"],
        [[0.5, 0, 0.1415], [0, 0, 0.5], [0.5, 0, 0.6512], [0, 0, 0]],
    )
    row = dict.fromkeys(ORDERED.names) | {
        "material_id": "m-008",
        "parent_id": "p",
        "formula": "LaFeAsO",
        "space_group": "?",
        "sites": 8,
        "supercell": [1, 0, 0, 0, 1, 0, 0, 0, 1],
        "composition_error": 0.0,
        "structure_hash": "x",
        "structure": tetragonal.to_json(),
    }
    place.write_table("crystals/ordered.parquet", pa.Table.from_pylist([row], schema=ORDERED))
    groups = {one.material_id: one.space_group for one in find_candidates(place)}
    assert groups == {"m-003": None, "m-004": None, "m-007": None, "m-008": ("P4/nmm", 129)}
    iron = next(compound for compound in TABLE_I if compound.formula == "LaAsFeO")
    assert [text for _, text in match_compound(iron, find_candidates(place))] == [""]
    assert say_missing(place, iron).startswith("its crystal is there, its bands are not")


def test_pressure_has_its_own_way():
    text = say_missing(Workspace("."), HIGH)
    assert "under 29.5 GPa (VASP: PSTRESS = 295)" in text
    assert "meissner grid RUNS --collection pairs" in text


def test_pairs_in_order_are_counted_by_the_honest_values():
    row = {"pair": 4, "found": True, "tc_held_out_kelvin": None, "collection": None}
    rows = [
        row | {"material_id": "a", "superconductor": True, "tc_kelvin": 9.0, "tc_held_out_kelvin": 1.0},
        row | {"material_id": "b", "superconductor": False, "tc_kelvin": 3.0},
        row | {"material_id": "c", "pair": 1, "superconductor": True, "tc_kelvin": 5.0},
        row | {"material_id": "d", "pair": 1, "superconductor": True, "tc_kelvin": 5.0},
        row | {"material_id": "d", "pair": 1, "superconductor": False, "tc_kelvin": 5.0},
    ]
    assert count_pairs(pa.Table.from_pylist(rows)) == {"pairs": 1, "pairs_in_order": 0}
    rows[0]["tc_held_out_kelvin"] = 4.0
    assert count_pairs(pa.Table.from_pylist(rows)) == {"pairs": 1, "pairs_in_order": 1}


def test_the_flow_writes_the_table_once(trained: Workspace):
    report = pairs(trained.url)
    assert (report.rows_in, report.counts["compounds"], report.counts["missing"], report.rows_refused) == (8, 5, 3, 3)
    refused = trained.read_table("stages/validate-pairs/rejected.parquet").to_pylist()
    assert {row["item"] for row in refused} == {"Ba2Cu4PrO8", "Ba2Cu4TmO8", "LaYAs2Fe2O2"}
    assert pairs(trained.url).reused
    check_found(report, trained)


def test_without_network_or_grids_it_says_so(tmp_path: Path):
    with pytest.raises(MissingStageError, match="No trained bnas in the workspace"):
        validate(Workspace(tmp_path))
    with pytest.raises(MissingStageError, match=r"grids/index\.parquet is not in the workspace"):
        find_candidates(Workspace(tmp_path))


def test_the_command_prints_the_table_and_says_where_nothing_was_found(trained: Workspace, monkeypatch, capsys):
    monkeypatch.setenv("PREFECT_API_URL", PREFECT_API_URL.value())
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(sys, "argv", ["meissner", "validate", "pairs", "--workspace", trained.url])
    with pytest.raises(SystemExit) as end:
        cli.main()
    shown = capsys.readouterr().out
    assert end.value.code == 0
    assert "La3Ni2O7, 29.5 GPa" in shown
    assert "of 1 pairs with both bands" in shown
    assert OUTPUT in shown
    none = read_report(trained, "validate-pairs").model_copy(update={"counts": {"compounds": 0}})
    with pytest.raises(InputError, match="None of the 8 compounds of Table I has a grid"):
        check_found(none, trained)
