"""The flow with the real engine: crystals in, rows of BANDS out, and nothing twice."""

import pytest
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure

from flows.bands import bands
from flows.retry import retry_failed
from tasks.bands import read_bands
from tasks.engines.gpaw import gpaw_available
from tasks.exceptions import InputError
from tasks.settings import BandSettings, GpawSettings
from tasks.workspace import Workspace
from tests.tasks.test_bands import CELLS, make_row, write_bundle, write_ordered

pytestmark = pytest.mark.usefixtures("prefect_harness")

COARSE = GpawSettings(cutoff_ev=250, scf_density=1.0, band_density=1.2)
TECHNETIUM = Structure(Lattice.cubic(3.0), ["Tc"], [[0, 0, 0]])
OVERLAPPING = Structure(Lattice.cubic(5), ["Al", "Al"], [[0, 0, 0], [0.2, 0, 0]])


@pytest.fixture
def place(tmp_path):
    return Workspace(tmp_path / "w")


def refusals(place):
    return {row["item"]: row for row in place.read_table("stages/bands/rejected.parquet").to_pylist()}


@pytest.mark.gpaw
@pytest.mark.skipif(not gpaw_available(), reason=gpaw_available().reason)
def test_real_crystals_bad_ones_refused_and_nothing_calculated_twice(place):
    write_ordered(place, {"Al-225": CELLS["Al-225"], "Tc": TECHNETIUM, "overlapping": OVERLAPPING})
    settings = BandSettings(bundled=None)
    report = bands(place.url, settings, COARSE, processes=2)
    assert report.counts == {"bands": 1, "bundled": 0, "calculated": 1}
    row = read_bands(place).to_pylist()[0]
    assert (row["material_id"], row["formula"], row["space_group"]) == ("Al-225", "Al", "Fm-3m")
    assert row["efermi"] > 5
    assert "no PAW data set (PBE) for Tc" in refusals(place)["Tc"]["reason"]
    assert "angstrom apart" in refusals(place)["overlapping"]["reason"]
    assert place.list("scratch/gpaw/*") == []
    written = place.local("bands/Al-225.parquet").stat().st_mtime_ns
    again = bands(place.url, settings, COARSE, processes=2)
    assert again.reused
    assert place.local("bands/Al-225.parquet").stat().st_mtime_ns == written


@pytest.mark.gpaw
@pytest.mark.skipif(not gpaw_available(), reason=gpaw_available().reason)
def test_time_limit_stops_a_calculation_and_a_retry_finishes_it(place):
    write_ordered(place, {"Nb-229": CELLS["Nb-229"]})
    report = bands(place.url, BandSettings(bundled=None), COARSE.model_copy(update={"seconds": 0.5}), processes=1)
    assert report.rows_refused == 1
    assert "stopped at the time limit of 0.5 s" in refusals(place)["Nb-229"]["reason"]
    assert place.list("bands/*.parquet") == []
    with pytest.raises(InputError, match="has failed for a reason that holds 'memory'"):
        retry_failed(place.url, "memory", BandSettings(bundled=None), COARSE)
    again, grids = retry_failed(place.url, "time limit", BandSettings(bundled=None), COARSE)
    assert again.counts["calculated"] == grids.counts["grids"] == 1


def test_without_calculations_the_bundled_bands_are_there(place, tmp_path):
    write_ordered(place)
    bundled = write_bundle(tmp_path / "b.parquet", [make_row("Al-225"), make_row("TiAl")])
    report = bands(place.url, BandSettings(bundled=str(bundled), limit=0), GpawSettings(), processes=1)
    assert report.counts == {"bands": 2, "bundled": 2, "calculated": 0}
    assert "limit of 0 new calculations" in refusals(place)["Nb-229"]["reason"]
    assert "10 sites" in refusals(place)["row"]["reason"]


def test_flow_runs_with_its_defaults(place):
    write_ordered(place, {"Tc": TECHNETIUM})
    report = bands(place.url)
    assert report.rows_in == report.rows_refused == 1
