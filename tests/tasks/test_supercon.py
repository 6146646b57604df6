"""Published tables of reports: recognised by their columns, read cell by cell, cleaned by the rules."""

import csv
import io

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.cleaning import APART, KEPT, OUTPUT, RULES, clean_reports, clean_supercon
from tasks.exceptions import InputError
from tasks.schemas import SUPERCONDUCTORS, UNDER_PRESSURE
from tasks.settings import CleaningSettings
from tasks.supercon import REPORTS, read_reports
from tasks.workspace import Workspace
from tests.tasks.mdr_files import COLUMNS, mdr_text, symbols, write_mdr

LSCO = {"ma1": "LA", "ma2": "1.85", "mb1": "SR", "mb2": "0.15", "mc1": "CU", "mc2": "1", "mo1": "O", "mo2": "4"}
YBCO = {"ma1": "Y", "ma2": "1", "mb1": "Ba", "mb2": "2", "mc1": "Cu", "mc2": "3", "mo1": "O"}


def read(tmp_path, rows, **options):
    return read_reports(write_mdr(tmp_path / "mdr.txt", rows, **options)).to_pylist()


def check_counts(outcome):
    assert outcome.rows_in == outcome.accounted + len(outcome.rejected)
    assert sum(outcome.counts[f"refused_{rule}"] for rule in RULES) == len(outcome.rejected)
    assert sum(outcome.counts[f"kept_{kind}"] for kind in KEPT) == outcome.accounted


def clean(tmp_path, rows, **choices):
    outcome = clean_reports(read_reports(write_mdr(tmp_path / "mdr.txt", rows)), CleaningSettings(**choices))
    check_counts(outcome)
    kept = {row["formula"]: row for row in outcome.tables[OUTPUT].to_pylist()}
    refused = {rule: outcome.counts[f"refused_{rule}"] for rule in RULES if outcome.counts[f"refused_{rule}"]}
    return kept, refused, outcome


@pytest.mark.parametrize("options", [{}, {"shuffled": True}, {"labels": False}], ids=["published", "shuffled", "bare"])
def test_the_datasheet_is_recognised_by_its_columns(tmp_path, options):
    assert len(symbols()) == len(set(symbols())) == COLUMNS
    rows = [
        {"element": "Hg", "tc": "4,15", "utc": "K", "year": "1911", "journal": "Phys. Lett., 120b", "t2": "4.2"},
        {"element": "Au", "tcn": "0.05", "refno": "ZZ7"},
    ]
    first, second = read(tmp_path, rows, **options)
    expected = {"row": 1, "formula": "Hg", "tc_kelvin": "4,15", "tc_definition": "recommended", "unit": "K"}
    expected |= {"year": "1911", "reference": "ZZ00001, Phys. Lett., 120b", "lowest_kelvin": None}
    assert {name: first[name] for name in expected} == expected
    assert first["problem"] is second["problem"] is None
    assert (second["formula"], second["tc_kelvin"], second["lowest_kelvin"]) == ("Au", None, "0.05")
    assert (second["tc_definition"], second["reference"]) == (None, "ZZ7")


@pytest.mark.parametrize(
    ("cells", "tc", "definition"),
    [
        ({"tc": "9.2", "t1": "9.1", "t3": "9.4"}, "9.2", "recommended"),
        ({"t1": "9.1", "t2": "9.2", "t3": "9.4", "tcsus": "9"}, "9.1", "zero resistance"),
        ({"t2": "9.2", "t3": "9.4"}, "9.2", "midpoint"),
        ({"t3": "9.4", "tcsus": "9"}, "9.4", "onset"),
        ({"tcsus": "9"}, "9", "susceptibility"),
        ({"tc": "0", "t1": "0.0", "t2": "9.2"}, "9.2", "midpoint"),
        ({"tc": "0", "t1": "0.0"}, "0", None),
        ({"tc": "NaN", "t1": "-"}, None, None),
        ({}, None, None),
    ],
)
def test_the_best_definition_of_tc_counts(tmp_path, cells, tc, definition):
    (row,) = read(tmp_path, [{"element": "Nb"} | cells])
    assert (row["tc_kelvin"], row["tc_definition"]) == (tc, definition)


@pytest.mark.parametrize(
    ("cells", "pressure"),
    [
        ({"pmax": "1.5"}, "1.5"),
        ({"sample": "#3, P=2.4GPa"}, "2.4 GPa"),
        ({"commt": "measured at p = 12 kbar in oil"}, "12 kbar"),
        ({"sample": "P = 0 GPa", "pmax": "8"}, "0 GPa"),
        ({"sample": "made at 6 GPa"}, None),
        ({}, None),
    ],
)
def test_pressure_is_read_where_it_stands(tmp_path, cells, pressure):
    (row,) = read(tmp_path, [{"element": "Nb", "tc": "9"} | cells])
    assert row["pressure"] == pressure


def test_sodium_is_an_element_and_not_a_missing_value(tmp_path):
    (row,) = read(tmp_path, [{"element": "Na", "tcn": "0.1", "ma1": "Na", "year": "na"}])
    assert (row["formula"], row["elements"], row["year"]) == ("Na", "Na", None)


def test_formulas_of_the_datasheet(tmp_path):
    kept, refused, outcome = clean(
        tmp_path,
        [
            {"element": "LA1.85SR0.15CU1O4", "tc": "36"} | LSCO,
            {"element": "Y1Ba2Cu3O7-Y", "oz": "6.93", "tc": "91"} | YBCO,
            {"element": "Y1Ba2Cu3OZ", "oz": "6,5", "tc": "60"} | YBCO,
            {"element": "Y1Ba2Cu3O7-Y", "oz": "0.07", "tc": "92"} | YBCO,
            {"element": "Y1Ba2Cu3OY", "tc": "92"} | YBCO,
            {"element": "Y1Ba2Cu3O6.98", "oz": "6.5", "tc": "92"} | YBCO,
            {"element": "La2-xSrxCu1O4", "tc": "30", "ma2": "2-x", "mb2": "x"},
            {"element": "Pd1D0,63", "tc": "2,9", "ma1": "Pd", "mb1": "D"},
            {"element": "Nb3Xx1", "tc": "5"},
            {"element": "Nb3000Sn1", "tc": "5"},
            {"element": "Ba(Fe0.92Co0.08)2As2", "tc": "22"},
        ],
    )
    assert kept["Sr0.15La1.85CuO4"]["tc_kelvin"] == 36
    assert kept["Ba2YCu3O6.93"]["tc_kelvin"] == 91
    assert kept["Ba4Y2Cu6O13"]["tc_kelvin"] == 60
    assert kept["Ba2YCu3O6.98"]["tc_kelvin"] == 92, "a number is never replaced by the measured content"
    assert kept["H0.63Pd"]["tc_kelvin"] == 2.9
    assert len(kept) == 6
    assert refused == {"unknown_amount": 3, "unreadable_formula": 1, "amount_limit": 1}
    assert outcome.counts["interpreted_formulas"] == 4


def test_rules_on_the_measurements(tmp_path):
    kept, refused, outcome = clean(
        tmp_path,
        [
            {"element": "Nb", "tc": "9.2", "utc": "K", "year": "1930", "refno": "A"},
            {"element": "Nb", "t2": "9.3", "utc": "k", "year": "2930", "refno": "B"},
            {"element": "V", "tc": "5300", "utc": "mK"},
            {"element": "Ta", "tc": "4.4(1)", "refno": "C"},
            {"element": "Cu", "tcn": "0.01"},
            {"element": "Ag", "tcn": "<0.05"},
            {"element": "Au", "tcn": "0"},
            {"element": "Pt"},
            {"element": "Pb", "tc": "about 7"},
            {"element": "Sn", "tc": "3.7", "tcn": "4.2"},
            {"element": "In", "t3": "3.4", "tcn": "3.4"},
            {"element": "Al", "tc": "1.2", "tcn": "1.0"},
            {"element": "Li", "tc": "20", "pmax": "48"},
            {"element": "H3S", "tc": "203", "sample": "P=155GPa"},
            {"element": "LaH10", "tc": "250"},
            {"tc": "3"},
            {"element": "Nb3Ge", "tc": "23", "refno": "A"},
            {"element": "Nb3Ge", "tc": "6", "refno": "B"},
        ],
    )
    assert kept["Nb"] | {"source": ""} == {
        "formula": "Nb",
        "tc_kelvin": 9.25,
        "tc_std_kelvin": 0.05,
        "lowest_kelvin": None,
        "tc_definitions": ["recommended", "midpoint"],
        "reports": 2,
        "year_first": 1930,
        "references": ["A", "B"],
        "family": "element",
        "source": "",
        "source_rows": [1, 2],
    }
    assert kept["Ta"]["tc_kelvin"] == 4.4
    assert (kept["Cu"]["tc_kelvin"], kept["Cu"]["lowest_kelvin"], kept["Cu"]["tc_definitions"]) == (0, 0.01, [])
    assert kept["Ag"]["lowest_kelvin"] == 0.05
    assert kept["Al"]["tc_kelvin"] == 1.2
    assert set(kept) == {"Nb", "Ta", "Cu", "Ag", "Al"}
    assert refused == {
        "no_formula": 1,
        "unreadable_number": 1,
        "unit": 1,
        "no_measurement": 2,
        "inconsistent": 2,
        "pressure": 2,
        "tc_limit": 1,
        "spread": 2,
    }
    reasons = {rejection.item: rejection.reason for rejection in outcome.rejected}
    assert "the unit of Tc is mK, not K" in reasons["row 3: V"]
    assert "under pressure (48, unit not given)" in reasons["row 13: Li"]
    assert "under pressure (155 GPa)" in reasons["row 14: H3S"]
    assert outcome.tables[APART].num_rows == 0


def test_reports_under_pressure_are_kept_apart_where_that_is_asked(tmp_path):
    rows = [
        {"element": "Li", "tc": "20", "pmax": "48", "year": "2002"},
        {"element": "H3S", "t1": "203", "sample": "P=155GPa", "refno": "D"},
        {"element": "Cu", "tcn": "0.1", "sample": "P=80kbar"},
        {"element": "Nb", "tc": "9.2", "pmax": "0"},
        {"element": "Xx", "tc": "9.2", "pmax": "1"},
    ]
    kept, refused, outcome = clean(tmp_path, rows, pressure="apart")
    assert set(kept) == {"Nb"}
    assert refused == {"unreadable_formula": 1}
    assert outcome.counts["kept_under_pressure"] == 3
    table = outcome.tables[APART]
    assert table.schema.equals(UNDER_PRESSURE)
    lithium, sulphide, copper = table.to_pylist()
    assert (lithium["pressure"], lithium["pressure_gpa"], lithium["year"]) == ("48", None, 2002)
    assert (sulphide["tc_kelvin"], sulphide["pressure_gpa"], sulphide["source_row"]) == (203, 155, 2)
    assert sulphide["tc_definition"] == "zero resistance"
    assert (copper["tc_kelvin"], copper["lowest_kelvin"], copper["pressure_gpa"]) == (0, 0.1, 8)


def test_a_row_whose_cells_do_not_stand_under_their_headers_is_refused(tmp_path):
    path = tmp_path / "mdr.txt"
    lines = mdr_text([{"element": "Nb", "tc": "9.2", "author": "one"}, {"element": "Ta", "tc": "4.4", "author": "two"}])
    first, second, nb, ta = lines.splitlines()
    path.write_text("\n".join([first, second, nb + "\tmore", ta.rpartition("\t")[0]]))
    outcome = clean_reports(read_reports(str(path)), CleaningSettings())
    assert [rejection.reason for rejection in outcome.rejected] == [
        "the row has 192 cells, the header 191",
        "the row has 190 cells, the header 191",
    ]
    assert outcome.counts["refused_damaged_row"] == 2


def test_a_changed_layout_is_one_sentence_with_what_is_missing_and_what_is_there(tmp_path):
    path = write_mdr(tmp_path / "mdr.txt", [{"element": "Nb", "tc": "9"}], without=("pmax", "oz"))
    with pytest.raises(InputError) as raised:
        read_reports(path)
    text = str(raised.value)
    assert "missing are oz, pmax; found are num, refno, commt, name, element" in text
    assert "(189 in all)" in text
    assert path in text
    assert "\n" not in text
    (row,) = read_reports(path, "element", "t1").to_pylist()
    assert row["formula"] == "Nb"


def test_columns_of_ones_own(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("Material ; T_onset [K];formula\n MgB2;39,1;no\nNb;9.2;no\n", encoding="utf-8")
    rows = read_reports(str(path), "material", "T_onset [k]").to_pylist()
    assert [(row["formula"], row["tc_kelvin"]) for row in rows] == [("MgB2", "39,1"), ("Nb", "9.2")]
    with pytest.raises(InputError, match=r"lacks a Tc column \(accepted: tc_kelvin.*Material, T_onset \[K\], formula"):
        read_reports(str(path))
    with pytest.raises(InputError, match=r"lacks a formula column \(accepted: compound.* and a Tc column \(acc"):
        read_reports(str(path), "compound", "t")
    path.write_text("formula,tc,tc\nNb,9,8\n")
    with pytest.raises(InputError, match="2 columns 'tc'"):
        read_reports(str(path))


def test_columns_of_ones_own_are_settings_of_the_stage(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("material,onset\nMgB2,39.1\n")
    chosen = CleaningSettings(formula_column="material", tc_column="onset")
    report = clean_supercon.fn(str(tmp_path / "w"), str(path), chosen)
    assert report.counts["kept_tc"] == 1
    assert Workspace(tmp_path / "w").read_table(OUTPUT)["formula"].to_pylist() == ["MgB2"]


def test_another_definition_of_tc_can_be_asked_for(tmp_path):
    path = write_mdr(tmp_path / "mdr.txt", [{"element": "Nb", "tc": "9.2", "t1": "9.1"}, {"element": "Ta", "tc": "4"}])
    rows = read_reports(path, tc_column="T1").to_pylist()
    assert [(row["tc_kelvin"], row["tc_definition"]) for row in rows] == [("9.1", "zero resistance"), (None, None)]


@pytest.mark.parametrize("labels", [False, True], ids=["one-header", "two-headers"])
def test_primary_table(tmp_path, labels):
    path = tmp_path / "primary.tsv"
    head = "data number\tcommon formula\tchemical formula\tstructure\tunit of Tc\tTc\tjournal\n" if labels else ""
    rows = "7\tYBCO\tY1Ba2Cu3O6.9\tY123\tK\t92\tPhys. Rev. Lett., 58\n8\tniobium\tNb\tbcc\t\t9.2\t\n"
    path.write_text(f"{head}num\tname\telement\tstr3\tutc\ttc\tjournal\n{rows}")
    first, second = read_reports(str(path)).to_pylist()
    assert (first["formula"], first["tc_kelvin"], first["unit"]) == ("Y1Ba2Cu3O6.9", "92", "K")
    assert (first["reference"], first["tc_definition"]) == ("Phys. Rev. Lett., 58", "recommended")
    assert (second["row"], second["formula"], second["unit"]) == (2, "Nb", None)


def test_columns_of_a_plain_table(tmp_path):
    path = tmp_path / "reports.csv"
    path.write_text("Tc (K),pressure (GPa),element,name,journal\n92,,Nb,niobium,A\n20,48,Li,lithium,B\n1,2 GPa,V,,C\n")
    rows = read_reports(str(path)).to_pylist()
    assert [row["formula"] for row in rows] == ["Nb", "Li", "V"]
    assert [row["pressure"] for row in rows] == [None, "48 GPa", "2 GPa"]
    assert rows[1]["reference"] == "B"


def test_superband_table(shared_data):
    reports = read_reports(str(shared_data / "superband_table.csv.gz"))
    assert reports.num_rows == 8625
    first = reports.slice(0, 1).to_pylist()[0]
    assert (first["formula"], first["tc_kelvin"]) == ("Ag0.02Ge2Pd1.98Sr1", "2.64")
    assert (first["year"], first["reference"]) == ("1987", "10.1063/1.3672089")
    outcome = clean_reports(reports, CleaningSettings())
    check_counts(outcome)
    assert outcome.counts["refused_no_formula"] == 27
    assert outcome.counts["refused_no_measurement"] == 1780, "Tc is NaN there"
    assert outcome.counts["refused_unreadable_formula"] + outcome.counts["refused_amount_limit"] == 1
    years = [year for year in outcome.tables[OUTPUT]["year_first"].to_pylist() if year]
    assert len(years) > 4000
    assert 1911 <= min(years) <= max(years) <= 2025


def test_stanev_table(shared_data):
    outcome = clean_reports(read_reports(str(shared_data / "supercon_stanev2018.csv")), CleaningSettings())
    check_counts(outcome)
    refused = {rule: outcome.counts[f"refused_{rule}"] for rule in RULES if outcome.counts[f"refused_{rule}"]}
    assert refused == {
        "unreadable_formula": 6,
        "unknown_amount": 89,
        "amount_limit": 4,
        "spread": 5,
        "no_tc_reported": 35,
    }
    assert outcome.counts["kept_tc"] + outcome.counts["kept_unbounded_negative"] == outcome.accounted == 16275
    assert outcome.tables[OUTPUT].schema.equals(SUPERCONDUCTORS)


CELLS = st.text(max_size=30) | st.sampled_from(
    ["0", "9,2", "K", "mK", "1e9", "nan", "P=1GPa", "Na", "O7-x", "NbN", "OY", "<4", "4.2(1)", "48 GPa", "-1"]
)
READ = ["element", "oz", "tc", "t1", "tcn", "utc", "pmax", "year", "refno", "journal", "sample", "commt", "ma1", "mo1"]


@given(
    st.lists(st.dictionaries(st.sampled_from(READ), CELLS), min_size=1, max_size=4),
    st.sampled_from(["refuse", "apart"]),
)
@settings(
    max_examples=60,
    deadline=None,  # other work on the machine is no fault of the reader
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@pytest.mark.timeout(300)
def test_any_cells_are_read_or_refused(tmp_path, rows, pressure):
    text = mdr_text(rows).replace("\x00", "").replace("\r", "")  # a bare carriage return ends a row
    path = tmp_path / "any.txt"
    path.write_bytes(text.encode("utf-8", "ignore"))
    reports = read_reports(str(path))
    assert reports.schema.equals(REPORTS)
    assert reports.num_rows == len(rows)
    outcome = clean_reports(reports, CleaningSettings(pressure=pressure))
    check_counts(outcome)
    assert all(rejection.reason for rejection in outcome.rejected)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("cell", ["9" * 100_000 + "x", "0" * 100_000 + "x", "P=" + "1" * 100_000, "(" * 100_000])
def test_long_cells_do_not_hang(tmp_path, cell):
    rows = [{"element": "Nb", "tc": "9", column: cell} for column in READ]
    outcome = clean_reports(read_reports(write_mdr(tmp_path / "mdr.txt", rows)), CleaningSettings())
    check_counts(outcome)
    assert all(len(rejection.reason) < 400 for rejection in outcome.rejected)


@given(st.text(max_size=200), st.sampled_from(["formula,tc\n", "element\ttc\n", ""]))
@settings(
    max_examples=60,
    deadline=None,  # other work on the machine is no fault of the reader
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@pytest.mark.timeout(300)
def test_any_text_is_a_table_or_an_input_error(tmp_path, text, header):
    path = tmp_path / "any.csv"
    path.write_bytes((header + text).encode("utf-8", "ignore"))
    try:
        reports = read_reports(str(path))
    except InputError:
        return
    outcome = clean_reports(reports, CleaningSettings())
    check_counts(outcome)


def test_the_generator_writes_what_csv_reads_back():
    rows = list(csv.reader(io.StringIO(mdr_text([{"element": "Nb"}])), delimiter="\t"))
    assert [len(row) for row in rows] == [COLUMNS] * 3
    assert "\n" in rows[2][rows[1].index("author")]
