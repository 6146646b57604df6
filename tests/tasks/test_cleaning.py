"""Cleaning: every row of every report ends in a composition or in the refusals."""

import gzip

import pytest

from tasks.cleaning import OUTPUT, clean_reports, clean_supercon
from tasks.exceptions import InputError
from tasks.schemas import SUPERCONDUCTORS
from tasks.settings import CleaningSettings
from tasks.supercon import read_reports
from tasks.workspace import Workspace
from tests.conftest import STARTER


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return str(path)


def clean(tmp_path, rows, header="formula,tc_kelvin,lowest_kelvin,year,reference"):
    outcome = clean_reports(
        read_reports(write(tmp_path / "reports.csv", "\n".join([header, *rows]))), CleaningSettings()
    )
    assert outcome.rows_in == outcome.accounted + len(outcome.rejected)
    rows = outcome.tables[OUTPUT].to_pylist()
    return {row["formula"]: row for row in rows}, {r.item: r.reason for r in outcome.rejected}


def test_equal_compositions_are_merged_with_their_provenance(tmp_path):
    kept, refused = clean(tmp_path, ["MgB2,39,,2001,A", "Nb,9.2,,1960,C", "Mg2B4,38,,2002,B", "B2Mg,37,,1999,A"])
    assert refused == {}
    assert kept["MgB2"] == {
        "formula": "MgB2",
        "tc_kelvin": 38.0,
        "tc_std_kelvin": pytest.approx((2 / 3) ** 0.5, abs=1e-6),
        "lowest_kelvin": None,
        "tc_definitions": [],
        "reports": 3,
        "year_first": 1999,
        "references": ["A", "B"],
        "family": "carbide/boride/nitride",
        "source": "",
        "source_rows": [1, 3, 4],
    }


def test_a_value_that_one_reference_repeats_counts_once(tmp_path):
    kept, _ = clean(tmp_path, ["Nb,9,,,A", "Nb,9,,,A", "Nb,10,,,B"])
    assert kept["Nb"]["tc_kelvin"] == 9.5
    assert kept["Nb"]["reports"] == 2
    assert kept["Nb"]["source_rows"] == [1, 2, 3]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        pytest.param("H3S,203,,,", "above the credible limit of 145", id="too-high"),
        pytest.param("Nb,-4,,,", "at least 0", id="negative"),
        pytest.param("Nb,nan,,,", "neither a Tc nor a lowest temperature", id="nan"),
        pytest.param("Nb,,0,,", "0 K bounds nothing", id="bound-of-zero"),
        pytest.param("Nb,2,4,,", "not above the lowest temperature measured, 4 K", id="below-its-own-bound"),
        pytest.param("Nb,<4,,,", "Tc '<4' is not a number", id="limit"),
        pytest.param("Nb,4-5,,,", "not a number", id="interval"),
        pytest.param("Nb300Sn100,9,,,", "at most 150", id="amount"),
        pytest.param("Nb,9,,,A,too,many", "the row has 7 cells, the header 5", id="misplaced"),
        pytest.param("Nb,inf,,,", "finite", id="infinite"),
        pytest.param("Nb,about 9,,,", "not a number", id="words"),
        pytest.param("Nb,,,,", "neither a Tc nor a lowest temperature", id="nothing-measured"),
        pytest.param(",9,,,", "no formula", id="no-formula"),
        pytest.param("Bi2Sr2CaCu2Oz,80,,,", "variable 'z'", id="unreadable"),
    ],
)
def test_bad_rows_are_refused_with_a_reason(tmp_path, row, reason):
    kept, refused = clean(tmp_path, ["MgB2,39,,,", row])
    assert list(kept) == ["MgB2"]
    (text,) = refused.values()
    assert reason in text


def test_reports_that_spread_too_far_are_all_refused(tmp_path):
    kept, refused = clean(tmp_path, ["Be,0.026,,,A", "Be,12,,,B", "Nb,9.2,,,"])
    assert list(kept) == ["Nb"]
    assert len(refused) == 2
    assert all("standard deviation of 5.99 K" in reason for reason in refused.values())


def test_negatives(tmp_path):
    kept, refused = clean(
        tmp_path,
        [
            "Cu,,0.01,1980,A",
            "Cu,0,0.1,1970,B",
            "Au,0,,,",
            "WTe2,,2,,A",
            "WTe2,0.8,,,B",
            "V3Si,17,,,A",
            "V3Si,0,,,B",
            "ZrB2,5.5,,,A",
            "ZrB2,,0.7,,B",
            "NbN,16,,,A",
            "NbN,16.4,,,B",
            "NbN,,1.5,,C",
        ],
    )
    assert (kept["Cu"]["tc_kelvin"], kept["Cu"]["lowest_kelvin"], kept["Cu"]["year_first"]) == (0, 0.01, 1970)
    assert (kept["Au"]["tc_kelvin"], kept["Au"]["lowest_kelvin"]) == (0, None)
    assert kept["Te2W"]["tc_kelvin"] == 0.8, "measured only above its Tc: no contradiction"
    assert kept["Te2W"]["source_rows"] == [4, 5]
    assert kept["V3Si"]["tc_kelvin"] == 17
    assert "ZrB2" not in kept
    assert kept["NbN"]["tc_kelvin"] == 16.2
    assert "no Tc is given here" in refused["row 7: V3Si"]
    assert "against 1 of no superconductivity" in refused["row 8: ZrB2"]
    assert "contradicted by 2 reports" in refused["row 12: NbN"]


@pytest.mark.parametrize("text", ["9.2", "9,2", "~9.2", "9.2(3)", "9.2 ± 0.1", "9.2+/-0.1", "9.2 K", "0.92e1"])
def test_values_as_they_are_written(tmp_path, text):
    kept, _ = clean(tmp_path, [f"Nb;{text};;;"], "formula;tc;lowest_kelvin;year;reference")
    assert kept["Nb"]["tc_kelvin"] == 9.2


def test_pressure_and_strange_years(tmp_path):
    header = "name;Tc;pressure_gpa;year"
    rows = ["Li;20;48;2002", "Nb;9,2;0;3015", "Ta;4.4;;1961", "Y;17;high;1961", "V;5.4;0.0001;", "Zr;0.6;ambient;"]
    kept, refused = clean(tmp_path, rows, header)
    assert "under pressure (48 GPa)" in refused["row 1: Li"]
    assert "under pressure (high, unit not given)" in refused["row 4: Y"]
    assert kept["V"]["tc_kelvin"] == 5.4
    assert kept["Zr"]["tc_kelvin"] == 0.6
    assert kept["Nb"]["tc_kelvin"] == 9.2
    assert kept["Nb"]["year_first"] is None
    assert kept["Ta"]["year_first"] == 1961


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"", "is empty", id="empty"),
        pytest.param(b"formula,tc_kelvin\n", "no rows", id="header-only"),
        pytest.param(b",,\n,\n", "is empty", id="only-commas"),
        pytest.param(b"compound,tc_kelvin\nNb,9\n", "it has compound, tc_kelvin", id="no-formula-column"),
        pytest.param(b"formula,temperature\nNb,9\n", "tc_kelvin, tc", id="no-tc-column"),
        pytest.param(b"formula,tc\nNb\xff,9\n", "not UTF-8 text: byte 13", id="undecodable"),
        pytest.param(b"formula,tc\n\x00\x00,9\n", "zero bytes", id="binary"),
    ],
)
def test_unusable_files(tmp_path, data, reason):
    path = tmp_path / "reports.csv"
    path.write_bytes(data)
    with pytest.raises(InputError, match=reason):
        read_reports(str(path))


def test_missing_file_and_truncated_archive(tmp_path):
    with pytest.raises(InputError, match="Cannot read"):
        read_reports(str(tmp_path / "absent.csv"))
    path = tmp_path / "reports.csv.gz"
    path.write_bytes(gzip.compress(b"formula,tc\nNb,9\n" * 50)[:-20])
    with pytest.raises(InputError, match="Cannot read"):
        read_reports(str(path))


def test_order_of_the_rows_decides_only_their_numbers(tmp_path):
    rows = ["MgB2,39,,2001,A", "Nb,9.2,,1960,C", "Mg2B4,38,,2002,B", "V3Si,17,,,A", "V3Si,0,,,B"]
    first, _ = clean(tmp_path, rows)
    second, _ = clean(tmp_path, rows[::-1])
    for row in (*first.values(), *second.values()):
        del row["source_rows"]
    assert first == second


def test_starter_reports():
    reports = read_reports(str(STARTER / "supercon.csv"))
    outcome = clean_reports(reports, CleaningSettings())
    assert outcome.rows_in == reports.num_rows == outcome.accounted + len(outcome.rejected)
    table = outcome.tables[OUTPUT]
    assert table.schema.equals(SUPERCONDUCTORS)
    assert table.num_rows > 200
    reasons = " ".join(rejection.reason for rejection in outcome.rejected)
    assert all(part in reasons for part in ("145 K", "variable", "not an element", "not a number", "no formula"))
    rows = {row["formula"]: row for row in table.to_pylist()}
    assert rows["MgB2"]["tc_kelvin"] == pytest.approx(39, abs=1)


def test_task_writes_once_and_again_when_the_file_changes(tmp_path):
    source = tmp_path / "reports.csv"
    write(source, "formula,tc\nNb,9.2\nXx,1\n")
    space = str(tmp_path / "workspace")
    report = clean_supercon.fn(space, str(source), CleaningSettings())
    assert (report.rows_in, report.rows_refused, report.reused) == (2, 1, False)
    assert (report.counts["kept_tc"], report.counts["refused_unreadable_formula"]) == (1, 1)
    table = Workspace(space).read_table(OUTPUT)
    assert table["source"].to_pylist() == ["reports.csv"]
    assert clean_supercon.fn(space, str(source), CleaningSettings()).reused
    write(source, "formula,tc\nNb,9.2\nTa,4.4\n")
    assert clean_supercon.fn(space, str(source), CleaningSettings()).rows_refused == 0
    assert not clean_supercon.fn(space, str(source), CleaningSettings(max_tc_kelvin=9)).reused
