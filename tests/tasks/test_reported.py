import numpy as np
import pyarrow as pa
import pytest

from models.reported_compositions import composition_features
from models.splits import Fold
from tasks.exceptions import InputError
from tasks.folds import Labelled
from tasks.reported import as_reports, reports_for, reports_of_file
from tasks.schemas import SUPERCONDUCTORS
from tasks.sources import hash_source

ROWS = [  # formula, Tc, family, year
    ("MgB2", 39.0, "borides", 2001),
    ("AlB2", 0.0, "borides", 1970),
    ("NbN", 16.0, "nitrides", 1941),
    ("ZrN", 10.0, "nitrides", 1952),
    ("Nb3Sn", 18.0, "A15", 1954),
    ("CfH2", 1.0, "hydrides", 1990),
    ("PbMo6S8", 15.0, "Chevrel", None),
]


def table() -> pa.Table:
    names = ("formula", "tc_kelvin", "family", "year_first")
    rows = [dict.fromkeys(SUPERCONDUCTORS.names) | dict(zip(names, row, strict=True)) for row in ROWS]
    given = {"tc_std_kelvin": 0.0, "reports": 1, "source": "made", "source_rows": [1]}
    return pa.Table.from_pylist([row | given for row in rows], schema=SUPERCONDUCTORS)


def test_only_superconductors_of_known_elements_are_reports():
    reports = as_reports(table())
    assert reports.families.tolist() == ["borides", "nitrides", "nitrides", "A15", "Chevrel"]
    np.testing.assert_array_equal(reports.years, [2001, 1941, 1952, 1954, np.nan])


@pytest.mark.parametrize(
    ("split", "name", "kept"),
    [
        ("random", "0", ["borides", "nitrides", "A15", "Chevrel"]),
        ("family", "nitrides", ["borides", "A15", "Chevrel"]),
        ("year", "from 1954", ["nitrides"]),  # of those before, NbN is that of a held-out crystal
    ],
)
def test_reports_do_not_know_what_a_fold_holds_out(split, name, kept):
    measured = Labelled(pa.table({"formula": ["Al", "NbN"], "year_first": pa.array([None, 1954], pa.int32())}))
    features = composition_features(["Al", "NbN"])
    fold = Fold(name, np.array([0]), np.array([1]))
    assert reports_for(as_reports(table()), split, fold, features, measured).families.tolist() == kept


def test_a_crystal_is_held_out_by_what_was_measured_too():
    measured = Labelled(pa.table({"formula": ["Al", "Nb4N3"], "supercon_formula": [None, "Nb3Sn"]}))
    fold = Fold("0", np.array([0]), np.array([1]))
    found = reports_for(as_reports(table()), "random", fold, composition_features(["Al", "Nb4N3"]), measured)
    assert found.families.tolist() == ["borides", "nitrides", "Chevrel"]  # ZrN stays, NbN and Nb3Sn do not


def test_a_file_of_reports_is_cleaned_by_the_rules_of_refresh(tmp_path):
    file = tmp_path / "reports.csv"
    file.write_text("name,Tc\nMgB2,39\nMg2B4,39.2\nNbN,0\nXyZ,9\n")
    assert len(reports_of_file(str(file), hash_source(str(file)))) == 1
    file.write_text("name,Tc\nNbN,0\n")
    with pytest.raises(InputError, match=r"no report with a Tc above 0"):
        reports_of_file(str(file), hash_source(str(file)))
