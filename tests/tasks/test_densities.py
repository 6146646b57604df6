"""Mean densities of states by Tc: the groups, the mean, and both on the bundled bands."""

import csv
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.densities import ENERGIES, MEASURED, PREDICTED, densities_by_tc, densities_table, mean_densities, tc_range
from tasks.exceptions import InputError
from tasks.figures import figure_bytes
from tasks.formulas import FormulaError, normalise_formula, parse_formula
from tasks.report import DENSITIES, build_report
from tasks.report_sections import draw_densities
from tasks.schemas import CANDIDATES, DENSITIES_BY_TC
from tasks.screening import RESULT
from tasks.settings import ReportSettings
from tasks.workspace import Workspace
from tests.conftest import STARTER

COLUMNS = ["material_id", "formula", "sites", "dos_energies", "dos_s", "dos_p", "dos_d"]
AT_FERMI_LEVEL = int(np.abs(ENERGIES).argmin())


@pytest.fixture(scope="module")
def bands() -> pa.Table:
    return pq.read_table(STARTER / "bands.parquet", columns=COLUMNS)


@pytest.fixture(scope="module")
def measured(bands: pa.Table) -> dict[str, float]:
    """Tc of the bundled materials whose formula stands in the starter table: the mean of its reports."""
    reports: dict[str, list[float]] = {}
    with (STARTER / "supercon.csv").open() as file:
        for row in csv.DictReader(file):
            try:
                formula = normalise_formula(parse_formula(row["formula"], np.inf))
                reports.setdefault(formula, []).append(float(row["tc_kelvin"] or 0))
            except (FormulaError, InputError, ValueError):
                continue
    names = zip(bands["material_id"].to_pylist(), bands["formula"].to_pylist(), strict=True)
    keys = {name: normalise_formula(parse_formula(formula, np.inf)) for name, formula in names}
    return {name: float(np.mean(reports[key])) for name, key in keys.items() if key in reports}


@pytest.mark.parametrize(
    ("tc", "group"),
    [(None, None), (0.0, None), (0.02, 0), (0.999, 0), (1.0, 1), (4.2, 1), (10.0, 1), (10.01, 2), (92.0, 2)],
)
def test_every_superconductor_is_in_one_range_its_ends_too(tc: float | None, group: int | None):
    assert tc_range(tc) == (None if group is None else MEASURED[group])


def test_mean_densities_are_per_atom_and_skip_unknown_ones():
    energies = np.linspace(-1, 1, 5)
    row = {"dos_energies": [-1, 1], "dos_s": [2, 2], "dos_p": [4, 4], "dos_d": [0, 0], "sites": 2}
    mean = mean_densities([row, row | {"dos_energies": None}], energies)
    np.testing.assert_allclose(mean.densities, np.array([1, 2, 0])[:, None] * np.ones(5))
    assert mean.materials == 1


def test_where_a_material_has_no_energies_it_does_not_count():
    energies = np.array([-2.0, 0.0, 2.0])
    row = {"dos_energies": [-2, 0], "dos_s": [2, 2], "dos_p": [0, 0], "dos_d": [0, 0], "sites": 1}
    wide = row | {"dos_energies": [-2, 1], "dos_s": [4, 4]}
    np.testing.assert_allclose(mean_densities([row, wide], energies).densities[0], [3, 3, np.nan])


def test_bundled_bands_fall_into_the_ranges_of_their_tc(bands: pa.Table, measured: dict[str, float]):
    groups = densities_by_tc(bands, measured, {})
    counted = Counter(tc_range(tc) for tc in measured.values())
    assert {name: mean.materials for name, mean in groups.items()} == {name: counted[name] for name in MEASURED}
    assert all(count >= 3 for name, count in counted.items() if name)


def test_the_group_of_one_material_is_that_material(bands: pa.Table):
    aluminium = next(row for row in bands.to_pylist() if row["formula"] == "Al")
    mean = densities_by_tc(bands, {aluminium["material_id"]: 1.18}, {})["1 to 10 K"]
    place = aluminium["dos_energies"].index(0.0)
    own = [aluminium[f"dos_{orbital}"][place] / aluminium["sites"] for orbital in "spd"]
    np.testing.assert_allclose(mean.densities[:, AT_FERMI_LEVEL], own, rtol=1e-5)
    assert own[1] > own[0] > 0.02  # s and p electrons
    assert own[2] < 0.5 * own[0]  # hardly any d states


def test_above_10_kelvin_the_d_states_lead_at_the_fermi_level(bands: pa.Table, measured: dict[str, float]):
    s, p, d = densities_by_tc(bands, measured, {})["above 10 K"].densities[:, AT_FERMI_LEVEL]
    assert d > p > s > 0  # mostly nitrides and carbides of transition metals


def test_no_bundled_material_holds_more_electrons_than_it_has():
    columns = ["electrons", "dos_energies", "dos_s", "dos_p", "dos_d"]
    for row in pq.read_table(STARTER / "bands.parquet", columns=columns).to_pylist():
        below = np.array(row["dos_energies"]) <= 0
        inside = sum(np.trapezoid(np.array(row[f"dos_{orbital}"])[below], dx=0.1) for orbital in "spd")
        # in alkali metals nearly all of the valence lies between the spheres, and their cores below the window
        assert 0.004 * row["electrons"] < inside < 1.02 * row["electrons"]


def test_predicted_materials_are_a_group_of_their_own(bands: pa.Table, measured: dict[str, float]):
    names = bands["material_id"].to_pylist()
    groups = densities_by_tc(bands, measured, {names[0]: 10.0, names[1]: 10.1, names[2]: 40.0})
    assert list(groups) == [*MEASURED, PREDICTED]
    assert groups[PREDICTED].materials == 2


def test_the_table_holds_what_the_figure_shows(bands: pa.Table, measured: dict[str, float]):
    groups = densities_by_tc(bands, measured, {bands["material_id"][0].as_py(): 20.0})
    table = densities_table(groups)
    assert table.schema.equals(DENSITIES_BY_TC)
    assert len(table) == 4 * len(ENERGIES)
    figure = draw_densities(groups)
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert titles == [f"{name} ({mean.materials})" for name, mean in groups.items()]
    drawn = {line.get_label()[0]: line.get_ydata() for line in figure.axes[2].lines[:3]}
    rows = [row for row in table.to_pylist() if row["group"] == "above 10 K"]
    for orbital in "spd":
        np.testing.assert_allclose(drawn[orbital], [row[orbital] for row in rows], atol=1e-6)
    assert figure_bytes(figure) == figure_bytes(draw_densities(groups))


def test_the_report_writes_figure_and_numbers(screened: Workspace, tmp_path):
    import shutil

    shutil.copytree(screened.local("."), tmp_path / "w")
    place = Workspace(tmp_path / "w")
    rows = [row | {"tc_kelvin": 30.0} if row["rank"] == 1 else row for row in place.read_table(RESULT).to_pylist()]
    place.write_table(RESULT, pa.Table.from_pylist(rows, schema=CANDIDATES))
    files = build_report(place, ReportSettings(top=1))
    assert b"<svg" in files[f"{DENSITIES}.svg"]
    table = pq.read_table(pa.BufferReader(files[f"{DENSITIES}.parquet"])).to_pylist()
    counts = {row["group"]: row["materials"] for row in table}
    assert counts == {"1 to 10 K": 4, "above 10 K": 4, PREDICTED: 1}  # ZrN, 10.0 K, is in the middle range
