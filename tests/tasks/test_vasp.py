"""The VASP engine: atomate2's makers and custodian on a program that stands in for VASP."""

import contextlib
import json
import re
import subprocess
import sys

import numpy as np
import psutil
import pytest
from jobflow import run_locally
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure

from tasks.engines import is_passing
from tasks.engines.vasp import VaspBandMaker, limited
from tasks.exceptions import EngineError, InputError
from tasks.grids import make_grid
from tasks.job_store import open_job_store
from tasks.schemas import BANDS
from tasks.settings import ROOT, GridSettings, VaspSettings
from tasks.uniform_bands import UniformBands
from tests.vasp_stand_in.potcars import write_potcars
from tests.waiting import has_ended, wait_until

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::pymatgen.io.vasp.inputs.UnknownPotcarWarning")

PROGRAM = ROOT / "tests" / "vasp_stand_in" / "vasp_std.py"
ALUMINIUM = Structure(Lattice.from_parameters(2.8635, 2.8635, 2.8635, 60, 60, 60), ["Al"], [[0, 0, 0]])
IRON = Structure(Lattice.cubic(2.87), ["Fe"], [[0, 0, 0]])


@pytest.fixture(scope="module")
def potcars(tmp_path_factory):
    return write_potcars(tmp_path_factory.mktemp("potcars"), ["Al", "Fe", "Mg", "B", "O"])


@pytest.fixture
def make_engine(tmp_path, potcars, monkeypatch):
    monkeypatch.delenv("PMG_VASP_PSP_DIR", raising=False)

    def make(*options, **settings):
        state = tmp_path / "state"
        state.mkdir(exist_ok=True)
        command = " ".join([sys.executable, str(PROGRAM), "--state", str(state), *options])
        chosen = {"command": command, "potcars": str(potcars), "band_density": 2.0, **settings}
        return VaspBandMaker(settings=VaspSettings(**chosen), run_folder=str(tmp_path / "run"))

    return make


def run(engine, tmp_path, structure=ALUMINIUM):
    """The flow in this process; gives responses by the name of the job."""
    flow = engine.make(structure, "m-1")
    store = open_job_store(str(tmp_path / "w"), "files")
    responses = run_locally(flow, store=store, root_dir=tmp_path / "run", create_folders=True, log=False)
    return {job.name.rsplit(" ", 1)[0]: responses[job.uuid][1] for job in flow.jobs if job.uuid in responses}


def counted(tmp_path, event):
    return len(list((tmp_path / "state").glob(f"{event}-*")))


@pytest.fixture(scope="module")
def aluminium(tmp_path_factory, potcars):
    folder = tmp_path_factory.mktemp("aluminium")
    command = f"{sys.executable} {PROGRAM} --state {folder / 'state'}"
    settings = VaspSettings(command=command, potcars=str(potcars), band_density=4.5)
    return run(VaspBandMaker(settings=settings, run_folder=str(folder)), folder), folder


def test_relax_static_uniform_line_and_the_row(aluminium):
    responses, _ = aluminium
    assert list(responses) == ["relax", "static", "uniform bands", "line bands", "collect"]
    row = responses["collect"].output
    assert set(row) <= set(BANDS.names)
    assert (row["material_id"], row["engine"], row["grid"]) == ("m-1", "vasp", [13, 13, 13])
    assert row["engine_version"].startswith("VASP 6.4.2, atomate2 ")
    assert row["pseudopotentials"] == "PAW_PBE Al 01Jan2000"
    assert (row["electrons"], row["magnetic_moment"], row["band_gap_ev"]) == (3.0, 0.0, 0.0)
    relaxed = Structure.from_str(row["structure"], "json")
    assert relaxed.lattice.a == pytest.approx(0.998 * ALUMINIUM.lattice.a)
    assert np.shape(row["energies"])[1] >= 18
    assert row["dos_s"] is not None
    assert len(row["dos_s"]) == len(row["dos_energies"])
    assert responses["line bands"].output.vasp_objects


def test_its_bands_become_the_sample_of_free_electrons(aluminium):
    """Cell and program are known, so the grid can be compared with the exact energies."""
    row = aluminium[0]["collect"].output
    bands = UniformBands.from_row(row)
    sample = make_grid(bands, GridSettings()).energies
    mesh = np.stack(np.meshgrid(*[np.arange(32) / 32] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    waves = np.stack(np.meshgrid(*[np.arange(-3, 4)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    vectors = ((mesh - mesh.round())[:, None] + waves) @ (2 * np.pi * np.linalg.inv(bands.lattice).T)
    exact = np.sort(3.80998212 * (vectors**2).sum(axis=2), axis=1)[:, 0] - bands.efermi
    lowest = sample[0].reshape(-1)
    assert np.sqrt(np.mean((lowest - exact) ** 2)) < 0.15  # the lowest band has kinks on the zone's faces


def test_inputs_are_the_mit_parameters(aluminium):
    from pymatgen.io.vasp import Incar, Kpoints

    folders = {}
    for path in sorted((aluminium[1] / "run").glob("job_*/INCAR.gz")):
        incar = Incar.from_file(path)
        folders[incar.get("NSW", 0), incar.get("ICHARG", 0), incar.get("ISMEAR")] = path.parent
    relax = Incar.from_file(folders[99, 1, -5] / "INCAR.gz")
    assert {name: relax[name] for name in ("ENCUT", "ISPIN", "ISYM", "EDIFF", "PREC", "ALGO", "NELM")} == {
        "ENCUT": 520, "ISPIN": 2, "ISYM": 0, "EDIFF": 1e-5, "PREC": "Accurate", "ALGO": "Fast", "NELM": 200,
    }  # fmt: skip
    assert "automatic" in str(Kpoints.from_file(folders[99, 1, -5] / "KPOINTS.gz").style).lower()
    uniform = next(path for (_, charge, smearing), path in folders.items() if (charge, smearing) == (11, -5))
    assert Kpoints.from_file(uniform / "KPOINTS.gz").kpts == [(13, 13, 13)]
    assert Incar.from_file(uniform / "INCAR.gz")["NBANDS"] >= 18
    assert any(charge == 11 and smearing == 0 for _, charge, smearing in folders)


def test_hubbard_u_and_spin_as_in_mit(make_engine, tmp_path):
    from pymatgen.io.vasp import Incar

    oxide = Structure.from_spacegroup("Fm-3m", Lattice.cubic(4.3), ["Fe", "O"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    responses = run(make_engine(relax=False, line=False), tmp_path, oxide.get_primitive_structure())
    static = next((tmp_path / "run").glob("job_*/INCAR.gz"))
    incar = Incar.from_file(static)
    assert (incar["LDAU"], incar["LDAUU"], incar["ISPIN"]) == (True, [4.0, 0], 2)
    assert list(responses) == ["static", "uniform bands", "collect"]
    assert responses["collect"].output["magnetic_moment"] > 0
    assert len(responses["collect"].output["energies"]) == 2


@pytest.mark.parametrize("kind", ["zbrent", "unconverged"])
def test_custodian_corrects_what_can_be_corrected(make_engine, tmp_path, kind):
    responses = run(make_engine("--fail", f"{kind}:Al:relax", line=False), tmp_path)
    assert "collect" in responses
    assert (counted(tmp_path, kind), counted(tmp_path, "start-Al-relax")) == (1, 2)


def failure_of(engine, tmp_path):
    """The error of the first job that fails, as the engine tells it."""
    flow = engine.make(ALUMINIUM, "m-1")
    store = open_job_store(str(tmp_path / "w"), "memory")
    store.connect()
    folder = tmp_path / "one"
    folder.mkdir()
    with contextlib.chdir(folder), pytest.raises(Exception) as caught:  # noqa: PT011
        flow.jobs[0].run(store=store)
    return engine.explain(flow.jobs[0], caught.value, folder)


@pytest.mark.parametrize(
    ("options", "settings", "message", "passing"),
    [
        (["--fail", "killed"], {}, "its process was killed, or an output file is missing or cut short", True),
        (["--fail", "truncated"], {}, "an output file is missing or cut short; last line: writing wavefunctions", True),
        (["--fail", "disk-full"], {}, "no space left on the disk; last line: forrtl: severe \\(38\\)", True),
        (["--fail", "empty-outcar"], {}, "vasp, relax: ", False),
        (["--fail", "zbrent:Al:relax:9"], {"corrections": 2}, "custodian gave up: .*; last line: please rerun", False),
        (["--fail", "unconverged:Al:relax:99"], {}, "did not converge", False),
        (["--seconds", "30"], {"seconds": 1}, "stopped at the wall time of 1 s", False),
    ],
)
def test_failures_are_one_sentence(make_engine, tmp_path, options, settings, message, passing):
    error = failure_of(make_engine(*options, **settings), tmp_path)
    assert isinstance(error, EngineError)
    assert re.search(message, str(error)), str(error)
    assert str(error).startswith("vasp, relax: ")
    assert str(error).endswith(f"in {tmp_path / 'one'}")
    assert is_passing(error) == passing


def test_missing_potcar_is_told_before_anything_starts(make_engine):
    niobium = Structure(Lattice.cubic(3.3), ["Nb"], [[0, 0, 0]])
    with pytest.raises(EngineError, match=r"vasp: no POTCAR Nb_pv in .*POT_GGA_PAW_PBE"):
        make_engine().make(niobium, "Nb")


def test_element_that_the_parameters_do_not_know(make_engine):
    with pytest.raises(EngineError, match="the MIT parameters name no POTCAR for Cf"):
        make_engine().make(Structure(Lattice.cubic(4), ["Cf"], [[0, 0, 0]]), "Cf")


def test_disordered_and_overlapping_crystals_are_refused(make_engine):
    with pytest.raises(InputError, match="disordered"):
        make_engine().make(Structure(Lattice.cubic(3), [{"Al": 0.5, "Mg": 0.5}], [[0, 0, 0]]), "x")
    with pytest.raises(InputError, match="angstrom apart"):
        make_engine().make(Structure(Lattice.cubic(5), ["Al", "Al"], [[0, 0, 0], [0.2, 0, 0]]), "x")


def test_what_is_missing_is_said(make_engine, tmp_path):
    assert make_engine().available()
    assert "'no-such-vasp' is not there (vasp.command)" in make_engine(command="no-such-vasp -n 4").available().reason
    assert "is not there (vasp.potcars)" in make_engine(potcars=str(tmp_path / "absent")).available().reason


def test_uuids_follow_from_crystal_and_settings(make_engine):
    first, again = (make_engine().make(ALUMINIUM, "Al") for _ in range(2))
    assert [job.uuid for job in first.jobs] == [job.uuid for job in again.jobs]
    assert make_engine("--seconds", "1").make(ALUMINIUM, "Al").jobs[0].uuid == first.jobs[0].uuid
    assert make_engine(band_density=3.0).make(ALUMINIUM, "Al").jobs[0].uuid != first.jobs[0].uuid
    assert json.loads(make_engine().settings_json)["parameters"] == "MIT"


def test_vasp_ends_with_the_process_that_started_it(tmp_path):
    """A killed flow must not leave a VASP that computes for nobody."""

    code = f"import subprocess, shlex; subprocess.run(shlex.split({limited('sleep 600', 1000)!r}))"
    parent = subprocess.Popen([sys.executable, "-c", code])

    def started():
        return psutil.Process(parent.pid).children(recursive=True)

    wait_until(lambda: "sleep" in [child.name() for child in started()])
    children = started()
    parent.kill()
    parent.wait()
    wait_until(lambda: all(has_ended(child.pid) for child in children))
