"""The GPAW engine: its inputs, its refusals, and one real crystal."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from jobflow import Flow, JobStore, run_locally
from maggma.stores import MemoryStore
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure

from tasks.engines import PassingEngineError, gpaw, gpaw_worker, is_passing
from tasks.engines.gpaw import GpawBandMaker, gpaw_available, run_worker, worker_task
from tasks.engines.inputs import check_crystal, kpoint_grid
from tasks.exceptions import EngineError, InputError
from tasks.schemas import BANDS
from tasks.settings import ROOT, GpawSettings
from tests.waiting import has_ended, wait_until

ALUMINIUM = Structure(Lattice.from_parameters(2.8635, 2.8635, 2.8635, 60, 60, 60), ["Al"], [[0, 0, 0]])
IRON = Structure.from_spacegroup("Im-3m", Lattice.cubic(2.8665), ["Fe"], [[0, 0, 0]]).get_primitive_structure()
COARSE = GpawSettings(cutoff_ev=250, scf_density=1.0, band_density=1.2)

needs_gpaw = [pytest.mark.gpaw, pytest.mark.skipif(not gpaw_available(), reason=gpaw_available().reason)]


@pytest.mark.parametrize(
    ("structure", "density", "expected"),
    [
        pytest.param(ALUMINIUM, 4.5, [13, 13, 13], id="Al at 4.5"),
        pytest.param(ALUMINIUM, 0.1, [2, 2, 2], id="at least two"),
        pytest.param(Structure(Lattice.hexagonal(3.073, 3.527), ["B"], [[0, 0, 0]]), 4.5, [11, 11, 9], id="hexagonal"),
    ],
)
def test_kpoint_grid_is_vector_length_times_density_rounded_up(structure, density, expected):
    assert kpoint_grid(structure, density) == expected


def test_kpoint_grid_is_that_of_the_reference_calculations(shared_data):
    import pyarrow.parquet as pq

    rows = pq.read_table(shared_data / "gpaw_bands" / "bands.parquet", columns=["structure", "grid"]).to_pylist()
    for row in rows[::6]:
        assert kpoint_grid(Structure.from_str(row["structure"], "json"), 4.5) == row["grid"]


def test_uuids_follow_from_crystal_and_settings():
    flows = [GpawBandMaker().make(ALUMINIUM, "Al"), GpawBandMaker().make(ALUMINIUM.copy(), "Al")]
    assert flows[0].job_uuids == flows[1].job_uuids
    other = GpawBandMaker(settings=GpawSettings(cutoff_ev=500)).make(ALUMINIUM, "Al")
    assert not set(flows[0].job_uuids) & set(other.job_uuids)
    patient = GpawBandMaker(settings=GpawSettings(seconds=1, launcher="mpirun -n 2")).make(ALUMINIUM, "Al")
    assert patient.job_uuids == flows[0].job_uuids, "a time limit is no property of a result"


def test_flow_has_two_named_jobs_with_metadata():
    flow = GpawBandMaker().make(ALUMINIUM, "mp-134")
    assert isinstance(flow, Flow)
    assert [job.name for job in flow.jobs] == ["self-consistent Al", "bands Al"]
    assert flow.jobs[0].metadata == {"formula": "Al", "material_id": "mp-134"}


@pytest.mark.skipif(not gpaw_available(), reason=gpaw_available().reason)
@pytest.mark.parametrize(
    ("structure", "error", "message"),
    [
        pytest.param(
            Structure(Lattice.cubic(3), ["Tc"], [[0, 0, 0]]), EngineError, "no PAW data set .* Tc", id="no data"
        ),
        pytest.param(
            Structure(Lattice.cubic(5), ["Al", "Al"], [[0, 0, 0], [0.2, 0, 0]]),
            InputError,
            "Al and Al are 1.00 angstrom apart; at least 1.21",
            id="atoms too close",
        ),
        pytest.param(
            Structure(Lattice.cubic(1.0), ["Al"], [[0, 0, 0]]),
            InputError,
            "1.00 angstrom apart",
            id="own image too close",
        ),
        pytest.param(
            Structure(Lattice.cubic(3), [{"Al": 0.5, "Nb": 0.5}], [[0, 0, 0]]),
            InputError,
            "disordered",
            id="disordered",
        ),
    ],
)
def test_what_cannot_be_calculated_is_refused_before_it_starts(structure, error, message):
    with pytest.raises(error, match=message):
        GpawBandMaker().make(structure, "x")


@pytest.mark.skipif(not gpaw_available(), reason=gpaw_available().reason)
def test_hydrogen_molecule_is_not_too_close():
    check_crystal(Structure(Lattice.cubic(5), ["H", "H"], [[0, 0, 0], [0.148, 0, 0]]), "H2")


def test_absent_gpaw_is_said_and_not_raised(monkeypatch):
    monkeypatch.setattr(gpaw, "find_spec", lambda name: None)
    answer = gpaw_available()
    assert not answer
    assert "GPAW is not installed" in answer.reason


@pytest.mark.parametrize(
    ("energies", "expected"),
    [
        pytest.param([[[-2.0, -1.0], [0.5, 1.5]]], 1.5, id="insulator"),
        pytest.param([[[-2.0, 0.2], [0.5, 1.5]]], 0.0, id="crossing band"),
        pytest.param([[[-2.0, -1.0], [0.5, 1.5]], [[-2.0, -0.2], [0.1, 1.5]]], 0.3, id="two spins"),
        pytest.param([[[-2.0, -1.0], [-1.005, 1.5]]], 0.0, id="semimetal"),
    ],
)
def test_band_gap(energies, expected):
    assert gpaw_worker.band_gap(np.array(energies), 0.0) == pytest.approx(expected)


def test_number_of_plane_waves_is_that_of_a_real_run():
    assert gpaw_worker.plane_waves(ALUMINIUM.volume, 400) == pytest.approx(304, rel=0.03)  # GPAW: 291 to 310 a k point


STAND_IN = """
import json, os, signal, sys, time
task = json.load(open(sys.argv[1]))
{action}
"""


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """Put a small program in the worker's place."""

    def use(action: str):
        program = tmp_path / "worker.py"
        program.write_text(STAND_IN.format(action=action))
        real = subprocess.run

        def start(command, **options):
            return real([command[0], str(program), *command[3:]], **options)

        monkeypatch.setattr(gpaw.subprocess, "run", start)

    return use


@pytest.mark.parametrize(
    ("action", "message", "passing"),
    [
        pytest.param("time.sleep(60)", r"time limit of 2 s \(no iteration finished\)", False, id="time limit"),
        pytest.param("os.kill(os.getpid(), signal.SIGKILL)", "killed by signal 9", True, id="killed"),
        pytest.param("raise ValueError('odd cell')", "status 1: ValueError: odd cell", False, id="crash"),
        pytest.param(
            "json.dump({'failure': 'not converged', 'message': 'Did not converge!'}, open(sys.argv[2], 'w'))",
            "did not converge: Did not converge!",
            False,
            id="not converged",
        ),
        pytest.param(
            "json.dump({'failure': 'memory', 'message': 'MemoryError'}, open(sys.argv[2], 'w'))",
            "ran out of memory",
            True,
            id="memory",
        ),
    ],
)
def test_failures_of_the_process_become_engine_errors(stand_in, tmp_path, action, message, passing):
    stand_in(action)
    seconds = 2 if "time limit" in message else 120
    with pytest.raises(EngineError, match=message) as caught:
        run_worker(worker_task("bands", ALUMINIUM, COARSE), tmp_path / "run", seconds)
    assert is_passing(caught.value) is passing
    assert isinstance(caught.value, PassingEngineError) is passing


def test_a_launcher_starts_the_worker_and_a_missing_one_is_said(tmp_path):
    """``env`` stands for mpirun: what it starts gets the same arguments and must not look for its parent."""
    task = worker_task("ground-state", ALUMINIUM, COARSE)
    result = run_worker(task, tmp_path, 300, launcher="env OMP_NUM_THREADS=1")
    assert result["electrons"] == 3
    with pytest.raises(EngineError, match="the program 'no-such-mpirun' is not there"):
        run_worker(task, tmp_path / "other", 300, launcher="no-such-mpirun -n 4")


def test_worker_dies_with_its_parent(tmp_path):
    """SIGKILL to the parent leaves no worker behind."""
    parent = tmp_path / "parent.py"
    child = "import os, time; from tasks.engines.gpaw_worker import die_with_parent; "
    child += "die_with_parent(os.getppid()); print(os.getpid(), flush=True); time.sleep(600)"
    parent.write_text(
        f"import subprocess, sys, time\nsubprocess.Popen([sys.executable, '-c', {child!r}])\ntime.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, str(parent)], cwd=ROOT, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout
        number = int(running.stdout.readline())
        os.kill(running.pid, signal.SIGKILL)
    wait_until(lambda: has_ended(number))


@pytest.fixture(scope="module")
def aluminium_rows(tmp_path_factory):
    """Two independent calculations of aluminium."""
    rows = []
    for number in range(2):
        folder = tmp_path_factory.mktemp(f"gpaw{number}")
        flow = GpawBandMaker(settings=COARSE, folder=str(folder)).make(ALUMINIUM, "Al")
        store = JobStore(MemoryStore())
        responses = run_locally(flow, store=store, log=False, ensure_success=True)
        rows.append((responses[flow.jobs[-1].uuid][1].output, list(folder.iterdir())))
    return rows


class TestAluminium:
    pytestmark = needs_gpaw

    def test_document_has_the_columns_and_shapes_of_the_table(self, aluminium_rows):
        row, left = aluminium_rows[0]
        assert set(row) == set(BANDS.names)
        energies, kpoints = np.array(row["energies"]), np.array(row["kpoints"])
        assert energies.shape == (1, 18, len(kpoints))
        assert kpoints.shape[1] == 3
        assert sum(row["weights"]) == pytest.approx(1)
        assert row["electrons"] == 3
        assert row["grid"] == kpoint_grid(ALUMINIUM, COARSE.band_density)
        assert len(row["dos_energies"]) == len(row["dos_s"]) == len(row["dos_d"])
        assert json.loads(row["engine_settings"])["cutoff_ev"] == 250
        assert left == [], "the folder of a finished calculation is removed"

    def test_aluminium_is_a_free_electron_metal(self, aluminium_rows):
        row = aluminium_rows[0][0]
        energies, centre = np.array(row["energies"])[0], np.array(row["kpoints"]).tolist().index([0, 0, 0])
        assert row["band_gap_ev"] == 0
        assert row["efermi"] - energies[0, centre] == pytest.approx(11.1, abs=0.6)  # PBE: 11.1 eV
        assert np.all(np.diff(energies, axis=0) > -1e-4), "bands come in the order of their energies"

    def test_densities_hold_no_more_electrons_than_lie_in_the_sphere(self, aluminium_rows):
        row = aluminium_rows[0][0]
        below = np.array(row["dos_energies"]) <= 0
        s, p, d = (np.trapezoid(np.array(row[f"dos_{name}"])[below], dx=0.1) for name in "spd")
        volume = 4 / 3 * np.pi * 1.085**3  # GPAW's sphere of Al, 2.05 Bohr, of a cell of 16.6 cubic angstrom
        uniform = 3 * volume / ALUMINIUM.volume
        assert s + p + d == pytest.approx(uniform, rel=0.15), "nearly free electrons"
        assert s > p > 5 * d

    def test_a_second_calculation_gives_the_same_numbers(self, aluminium_rows):
        first, second = (row for row, _ in aluminium_rows)
        assert np.array_equal(first["energies"], second["energies"])
        assert first["bands_hash"] == second["bands_hash"]


@pytest.mark.gpaw
@pytest.mark.skipif(not gpaw_available(), reason=gpaw_available().reason)
def test_overlaps_are_those_of_the_partial_waves_inside_the_sphere():
    code = (  # in a process of its own: beside pytest GPAW goes into its debug mode, which changes NumPy for all
        "import json; from gpaw.setup import create_setup; from tasks.engines.gpaw_worker import sphere_overlaps; "
        "c = create_setup('Cu'); n, l = [int(x) for x in c.n_j], [int(x) for x in c.l_j]; "
        "print(json.dumps([n, [[n[a], n[b], l[a], float(o)] for a, b, o in sphere_overlaps(c)]]))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    shells, overlaps = json.loads(told.splitlines()[-1])
    found = {(one, other, angular): overlap for one, other, angular, overlap in overlaps}
    assert set(shells) == {3, 4, -1}
    assert 0.9 < found[3, 3, 2] < 1, "the 3d wave lies inside nearly whole"
    assert found[4, 4, 0] < 0.5, "the 4s wave does not"
    assert found[4, -1, 0] == pytest.approx(found[-1, 4, 0], rel=1e-12) != 0


@pytest.mark.gpaw
@pytest.mark.skipif(not gpaw_available(), reason=gpaw_available().reason)
def test_direct_and_iterative_bands_agree(tmp_path):
    """Both ways of diagonalising give one band structure, of an iron cell with two spins."""
    gpaw_worker_code = (
        "import json, sys; from tasks.engines import gpaw_worker as w; w.plan_by_estimate(); "
        "task = json.load(open(sys.argv[1])); w.run_ground_state(task); answers = []\n"
        "for limit in (1e9, 0):\n    w.DIRECT_PLANE_WAVES = limit; answers.append(w.run_bands(task))\n"
        "json.dump(answers, open(sys.argv[2], 'w'))"
    )
    task = worker_task("bands", IRON, COARSE) | {"gpw": str(tmp_path / "fe.gpw"), "log": None}
    (tmp_path / "in.json").write_text(json.dumps(task))
    command = [sys.executable, "-c", gpaw_worker_code, str(tmp_path / "in.json"), str(tmp_path / "out.json")]
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=400)
    direct, iterative = json.loads((tmp_path / "out.json").read_text())
    assert np.shape(direct["energies"])[:2] == (2, 18)
    assert np.abs(np.array(direct["energies"]) - iterative["energies"]).max() < 2e-4
    assert abs(direct["efermi"] - iterative["efermi"]) < 1e-4
    np.testing.assert_allclose(direct["dos_d"], iterative["dos_d"], atol=2e-2)
