"""Slurm on this machine: six materials as Slurm jobs, one of them killed and tried again. Needs slurm-wlm and munge."""

import subprocess
import sys
import threading
import time

import pytest
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure

from deployments.slurm.loopback import SlurmError, SlurmOnLoopback
from flows.bands import bands
from tasks.runners import wall_time_seconds
from tasks.settings import ROOT, BandSettings, ClusterSettings, VaspSettings
from tasks.workspace import Workspace
from tests.tasks.test_bands import write_ordered
from tests.vasp_stand_in.potcars import write_potcars

PROGRAM = ROOT / "tests" / "vasp_stand_in" / "vasp_std.py"


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    if reason := SlurmOnLoopback.unavailable_reason():
        pytest.skip(reason)
    try:
        with SlurmOnLoopback(tmp_path_factory.mktemp("slurm"), cpus=4) as running:
            yield running
    except SlurmError as error:
        pytest.skip(f"Slurm cannot run here: {error}")


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)
    return found


def test_a_job_runs_and_a_cancelled_one_is_gone(slurm, tmp_path):
    said = tmp_path / "said"
    slurm.run("sbatch", "--wrap", f"echo $SLURM_JOB_ID > {said}", "-o", "/dev/null")
    assert wait_for(lambda: said.exists() and said.read_text().strip().isdigit())
    number = slurm.run("sbatch", "--parsable", "--wrap", "sleep 600", "-o", "/dev/null")
    wait_for(lambda: number in slurm.run("squeue", "-h", "-t", "running", "-o", "%i").split())
    slurm.run("scancel", number)
    wait_for(lambda: number not in slurm.run("squeue", "-h", "-o", "%i").split())


def test_script_runs_a_command_and_gives_its_status(slurm):
    script = [sys.executable, str(ROOT / "deployments" / "slurm" / "loopback.py")]
    done = subprocess.run([*script, "bash", "-c", "sinfo -h -o %T; exit 3"], capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == ("idle", 3)


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_harness")
def test_six_materials_as_slurm_jobs_and_one_job_killed(slurm, tmp_path, monkeypatch):
    for name, value in slurm.environment.items():
        monkeypatch.setenv(name, value)
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
        begun = wait_for(lambda: list(state.glob("start-*-static-*")), 240)[0]
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


@pytest.mark.parametrize(
    ("text", "seconds"), [("24:00:00", 86400), ("1-02:30:00", 95400), ("00:05:30", 330)], ids=["day", "days", "short"]
)
def test_wall_time(text, seconds):
    assert wall_time_seconds(text) == seconds
