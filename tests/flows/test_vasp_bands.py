"""The band flow with VASP: atomate2's jobs through Prefect in processes, failures, limits, and on to the grids."""

import sys
import time

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import TaskRunFilter, TaskRunFilterTags
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure

from flows.bands import bands
from flows.grids import grids
from flows.retry import retry_failed
from tasks.bands import read_bands
from tasks.settings import ROOT, BandSettings, GridSettings, VaspSettings
from tasks.workspace import Workspace
from tests.tasks.test_bands import CELLS, write_ordered
from tests.vasp_stand_in.potcars import write_potcars

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_harness")]

PROGRAM = ROOT / "tests" / "vasp_stand_in" / "vasp_std.py"
FIRST = {"sort": "NAME_ASC", "limit": 100}
SETTINGS = BandSettings(engine="vasp", bundled=None, retry_delay_seconds=0.5)


@pytest.fixture
def vasp(tmp_path):
    """Settings of a VASP that notes its runs in a folder, with further options of the stand-in."""
    potcars = write_potcars(tmp_path / "potcars", ["Al", "Be", "Cu", "Ti"])

    def make(*options, **settings):
        command = " ".join([sys.executable, str(PROGRAM), "--state", str(tmp_path / "state"), *options])
        chosen = {"command": command, "potcars": str(potcars), "band_density": 2, "line": False, **settings}
        return VaspSettings(**chosen)

    return make


def runs(tmp_path, event):
    return sorted(path.name.split("-", 3)[1:3] for path in (tmp_path / "state").glob(f"{event}-*"))


def test_jobs_are_retried_failures_told_and_the_rest_becomes_grids(tmp_path, vasp):
    place = Workspace(tmp_path / "w")
    write_ordered(place, {"Al-vasp": CELLS["Al-225"], **{name: CELLS[name] for name in ("Nb-229", "CsCl/BeCu")}})
    settings = vasp("--fail", "killed:Al:static", "--fail", "unconverged:BeCu:relax:99")
    report = bands(place.url, SETTINGS, vasp=settings, processes=2)
    assert report.counts == {"bands": 1, "bundled": 0, "calculated": 1}
    refused = {row["item"]: row for row in place.read_table("stages/bands/rejected.parquet").to_pylist()}
    assert "no POTCAR Nb_pv" in refused["Nb-229"]["reason"]
    assert "vasp, relax: did not converge" in refused["CsCl/BeCu"]["reason"]
    assert f"in {place.local('scratch/vasp').resolve()}" in refused["CsCl/BeCu"]["reason"]
    assert runs(tmp_path, "killed") == [["Al", "static"]]
    ended = [run for run in runs(tmp_path, "end") if run[0] == "Al"]
    assert ended == [["Al", "relax"], ["Al", "static"], ["Al", "uniform"]]
    with get_client(sync_client=True) as client:
        tags = TaskRunFilter(tags=TaskRunFilterTags(all_=["dft", "material_id:Al-vasp"]))

        def names():
            return {run.name: run.run_count for run in client.read_task_runs(task_run_filter=tags, **FIRST)}

        wanted = {"relax Al": 1, "static Al": 2, "uniform bands Al": 1, "collect Al": 1, "store Al": 1}
        deadline = time.monotonic() + 120
        while names() != wanted and time.monotonic() < deadline:  # task runs reach the server through a queue
            time.sleep(0.25)
        assert names() == wanted
    grids(place.url, GridSettings(), processes=1)
    assert place.read_table("grids/index.parquet", ["material_id"])["material_id"].to_pylist() == ["Al-vasp"]
    again = bands(place.url, SETTINGS, vasp=settings, processes=2)
    assert again.reused
    retried = retry_failed(place.url, "converge", SETTINGS, vasp=vasp(), processes=1)
    assert retried[0].counts["bands"] == 2
    assert {row["engine"] for row in read_bands(place).to_pylist()} == {"vasp"}


def test_no_more_jobs_at_once_than_the_server_allows(tmp_path, vasp):
    place = Workspace(tmp_path / "w")
    cells = {name: Structure(Lattice.cubic(3), [name], [[0, 0, 0]]) for name in ("Al", "Be", "Cu", "Ti")}
    write_ordered(place, cells)
    limited = SETTINGS.model_copy(update={"at_once_everywhere": 1})
    with get_client(sync_client=True) as client:
        report = bands(place.url, limited, vasp=vasp("--seconds", "0.5", relax=False), processes=2)
        client.delete_concurrency_limit_by_tag("dft")
    assert report.counts["bands"] == 4
    times = sorted(
        (int(path.name.split("-")[-2]), 1 if path.name.startswith("start") else -1)
        for path in (tmp_path / "state").iterdir()
    )
    together = [sum(step for _, step in times[: count + 1]) for count in range(len(times))]
    assert max(together) == 1


def test_without_vasp_the_reason_is_said(tmp_path, vasp):
    place = Workspace(tmp_path / "w")
    write_ordered(place, {"Al-225": CELLS["Al-225"]})
    bands(place.url, SETTINGS, vasp=vasp(command="no-such-vasp"))
    row = place.read_table("stages/bands/rejected.parquet").to_pylist()[0]
    assert row["reason"] == "not calculated: the program 'no-such-vasp' is not there (vasp.command)"
    assert row["retryable"]
