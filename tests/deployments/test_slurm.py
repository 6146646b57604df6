"""The band flow on Slurm: six materials as Slurm jobs, one killed and tried again; jobs that never become workers."""

import subprocess
import sys
import threading

import pytest
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure

from flows.bands import bands
from tasks.runners import wall_time_seconds
from tasks.settings import ROOT, BandSettings, ClusterSettings, VaspSettings
from tasks.workspace import Workspace
from tests.tasks.test_bands import write_ordered
from tests.vasp_stand_in.potcars import write_potcars
from tests.waiting import wait_until

PROGRAM = ROOT / "tests" / "vasp_stand_in" / "vasp_std.py"


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_harness")
def test_six_materials_as_slurm_jobs_and_one_job_killed(slurm, tmp_path):
    elements = ["Ti", "Cu", "Be", "Mg", "Fe", "Ni"]
    place = Workspace(tmp_path / "w")
    sites = [[0, 0, 0], [0.5, 0.5, 0.5]]
    cells = {name: Structure(Lattice.cubic(3.0), [name, "Al"], sites) for name in elements}
    write_ordered(place, cells)
    state = tmp_path / "state"
    options = f"--state {state} --seconds 3"
    vasp = VaspSettings(
        command=f"{sys.executable} {PROGRAM} {options}",
        potcars=str(write_potcars(tmp_path / "potcars", [*elements, "Al"])),
        band_density=2,
        relax=False,
        line=False,
    )
    cluster = ClusterSettings(
        kind="slurm", jobs=2, memory="1GiB", interface="lo", wall_time="01:00:00", logs=str(tmp_path / "logs")
    )
    killed = []

    def kill_a_running_one():
        """Cancel the Slurm job in which a static run has begun and not ended."""
        wait_until(lambda: list(state.glob("start-*-static-*")), 240)
        begun = next(state.glob("start-*-static-*"))
        number = begun.read_text().strip()
        subprocess.run(["scancel", number], env=slurm.environment, check=True)
        killed.append((number, begun.name.split("-")[1]))

    killer = threading.Thread(target=kill_a_running_one)
    killer.start()
    settings = BandSettings(engine="vasp", bundled=None, retry_delay_seconds=1)
    report = bands(place.url, settings, vasp=vasp, cluster=cluster)
    killer.join()
    assert report.counts["bands"] == 6
    number, formula = killed[0]
    starts = [path.read_text().strip() for path in state.glob(f"start-{formula}-static-*")]
    assert number in starts
    assert len(starts) == 2, "the killed job ran once more"
    assert len(set(starts)) == 2, "in another Slurm job"
    assert len(list(state.glob("end-*"))) == 12


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_harness")
def test_slurm_jobs_that_end_at_once_are_told_and_do_not_hang_the_flow(slurm, tmp_path):
    place = Workspace(tmp_path / "w")
    write_ordered(place, {"Al": Structure(Lattice.cubic(3.0), ["Al"], [[0, 0, 0]])})
    potcars = str(write_potcars(tmp_path / "potcars", ["Al"]))
    vasp = VaspSettings(command=f"{sys.executable} {PROGRAM}", potcars=potcars, relax=False, line=False)
    cluster = ClusterSettings(
        kind="slurm", jobs=1, memory="1GiB", interface="lo", logs=str(tmp_path / "logs"), prologue=["exit 3"]
    )
    report = bands(place.url, BandSettings(engine="vasp", bundled=None), vasp=vasp, cluster=cluster)
    assert report.counts["bands"] == 0
    row = place.read_table("stages/bands/rejected.parquet").to_pylist()[0]
    assert "Slurm jobs ended before they could work" in row["reason"]
    assert str(tmp_path / "logs") in row["reason"]
    assert row["retryable"]


@pytest.mark.parametrize(
    ("text", "seconds"), [("24:00:00", 86400), ("1-02:30:00", 95400), ("00:05:30", 330)], ids=["day", "days", "short"]
)
def test_wall_time(text, seconds):
    assert wall_time_seconds(text) == seconds
