"""The open band engine: GPAW, PAW-PBE in plane waves, as jobflow makers in the way of atomate2.

``GpawBandMaker().make(structure, "mp-763")`` is a flow of two jobs, self-consistent density and uniform bands, whose
output is a row of the table BANDS. The calculation itself is in ``gpaw_worker``, one process each.
"""

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jobflow import Flow, Job, Maker, job
from pymatgen.core.structure import Structure

from tasks.engines import Availability, PassingEngineError
from tasks.engines.document import band_row
from tasks.engines.gpaw_worker import INITIAL_MOMENTS
from tasks.engines.inputs import LEAST_BANDS, check_crystal, kpoint_grid, named
from tasks.exceptions import EngineError
from tasks.settings import ROOT, GpawSettings
from tasks.stages import hash_text
from tasks.workers import ONE_THREAD

FUNCTIONAL = "PBE"
FAILURES = {
    "not converged": "did not converge",
    "memory": "ran out of memory",
}


@dataclass
class GpawBandMaker(Maker):
    """Maker of a band structure: self-consistent density, then bands on a uniform grid with densities of states.

    Parameters
    ----------
    name
        Name of the flow and the engine.
    settings
        Numbers of the calculation.
    folder
        Where densities and logs are kept while a calculation runs; each is removed when its bands are there.
    run_folder
        None: the jobs do not care in which folder they run.
    """

    name: str = "gpaw"
    settings: GpawSettings = field(default_factory=GpawSettings)
    folder: str = field(default_factory=lambda: str(Path(tempfile.gettempdir()) / "meissner-gpaw"))
    run_folder: str | None = None

    @property
    def version(self) -> str:
        """Version of GPAW and of its PAW data sets."""
        return ", ".join(f"{package} {_version(package)}" for package in ("gpaw", "gpaw-data"))

    @property
    def settings_json(self) -> str:
        """What the bands depend on; the time limit and the number of tries do not belong to it."""
        numbers = self.settings.model_dump(mode="json", exclude={"launcher", "seconds", "retries"})
        fixed = {"functional": FUNCTIONAL, "least_bands": LEAST_BANDS, "initial_moments": INITIAL_MOMENTS}
        return json.dumps({**numbers, **fixed}, sort_keys=True)

    def available(self) -> Availability:
        """Whether GPAW, its compiled part and its data sets are installed, without importing them."""
        return gpaw_available()

    def explain(self, done: Job, error: BaseException, folder: Path) -> BaseException:  # noqa: ARG002
        """Errors of this engine tell already what was wrong."""
        return error

    def make(self, structure: Structure, material_id: str) -> Flow:
        """The two jobs for one crystal; uuids follow from crystal and settings, so that a restart finds them again.

        Raises
        ------
        InputError
            If the crystal is disordered or atoms are too close.
        EngineError
            If an element has no PAW data set.
        """
        check_crystal(structure, material_id)
        check_datasets(structure)
        key = hash_text(json.dumps(structure.as_dict(), sort_keys=True, default=str), self.settings_json, material_id)
        metadata = {"formula": structure.composition.reduced_formula, "material_id": material_id}
        folder = str(Path(self.folder) / key[:24])
        ground = named(run_ground_state(structure, self, folder), "self-consistent", key, metadata)
        bands = named(run_bands(structure, self, folder, ground.output, material_id), "bands", key, metadata)
        return Flow([ground, bands], output=bands.output, name=f"{self.name} {metadata['formula']}")


@job
def run_ground_state(structure: Structure, maker: GpawBandMaker, folder: str) -> dict[str, Any]:
    """Self-consistent density of a crystal; gives the total energy, moment, electrons and seconds."""
    task = worker_task("ground-state", structure, maker.settings)
    return run_worker(task, Path(folder), maker.settings.seconds, maker.settings.launcher)


@job
def run_bands(
    structure: Structure, maker: GpawBandMaker, folder: str, ground: dict[str, Any], material_id: str
) -> dict[str, Any]:
    """Bands and projected densities of states at that density, as a row of BANDS."""
    task = worker_task("bands", structure, maker.settings)
    result = run_worker(task, Path(folder), maker.settings.seconds, maker.settings.launcher)
    shutil.rmtree(folder, ignore_errors=True)
    times = {"seconds": round(ground["seconds"] + result["seconds"], 2)}
    inputs = {
        "grid": kpoint_grid(structure, maker.settings.band_density),
        "pseudopotentials": ", ".join(f"{element.symbol}.{FUNCTIONAL}" for element in sorted(structure.composition)),
    }
    return band_row(structure, material_id, maker, {**ground, **result, **inputs, **times})


def worker_task(step: str, structure: Structure, settings: GpawSettings) -> dict[str, Any]:
    """Input of the worker: the crystal in plain numbers and every number of the calculation."""
    return {
        "step": step,
        "symbols": [site.specie.symbol for site in structure],
        "cell": structure.lattice.matrix.tolist(),
        "scaled_positions": structure.frac_coords.tolist(),
        "cutoff_ev": settings.cutoff_ev,
        "functional": FUNCTIONAL,
        "smearing_ev": settings.smearing_ev,
        "scf_grid": kpoint_grid(structure, settings.scf_density),
        "band_grid": kpoint_grid(structure, settings.band_density),
        "extra_bands": settings.extra_bands,
        "least_bands": LEAST_BANDS,
    }


def run_worker(task: dict[str, Any], folder: Path, seconds: float, launcher: str | None = None) -> dict[str, Any]:
    """Run one step in a process of its own, which ends with this one, and give what it computed and its seconds.

    With a ``launcher`` (``mpirun -n 4``) it is that program which runs in its own process and spreads the step over
    cores; its processes then end when it does.

    A step that an earlier, killed run of the same calculation finished in this folder is not run again.

    Raises
    ------
    EngineError
        If the calculation failed for good: not converged, time limit, a data set missing.
    PassingEngineError
        If its process was killed or ran out of memory.
    """
    folder.mkdir(parents=True, exist_ok=True)
    step = task["step"]
    source, target, log = (folder / f"{step}{suffix}" for suffix in (".input.json", ".output.json", ".txt"))
    density = folder / "density.gpw"
    if target.exists() and density.exists():
        with contextlib.suppress(EngineError):
            return _read_result(step, target, 0, b"")
    target.unlink(missing_ok=True)
    command = [sys.executable, "-m", "tasks.engines.gpaw_worker", str(source), str(target)]
    parent = 0 if launcher else os.getpid()
    if launcher:
        command = shlex.split(launcher) + command
        if shutil.which(command[0]) is None:
            raise EngineError(f"gpaw, {step}: the program {command[0]!r} is not there (gpaw.launcher)")
    document = {**task, "gpw": str(density), "log": str(log), "parent": parent, "started": time.time()}
    source.write_text(json.dumps(document))
    try:
        finished = subprocess.run(
            command,
            env={**os.environ, **ONE_THREAD, "PYTHONPATH": _python_path()},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"gpaw, {step}: stopped at the time limit of {seconds:g} s ({_progress(log)})") from error
    return _read_result(step, target, finished.returncode, finished.stderr)


def _read_result(step: str, target: Path, code: int, stderr: bytes) -> dict[str, Any]:
    """What the worker wrote, or its failure as an error."""
    if not target.exists():
        lines = stderr.decode(errors="replace").strip().splitlines()
        if code < 0:
            raise PassingEngineError(f"gpaw, {step}: its process was killed by signal {-code}")
        raise EngineError(f"gpaw, {step}: its process ended with status {code}: {lines[-1] if lines else 'no message'}")
    result: dict[str, Any] = json.loads(target.read_text())
    if "failure" in result:
        what = FAILURES.get(result["failure"], f"failed with {result['failure']}")
        kind = PassingEngineError if result["failure"] in {"memory", "OSError"} else EngineError
        raise kind(f"gpaw, {step}: {what}: {result['message']}")
    return result


def _progress(log: Path) -> str:
    """Last line about an iteration in GPAW's log."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    iterations = [" ".join(line.split()) for line in lines if line.startswith("iter:")]
    return iterations[-1] if iterations else "no iteration finished"


def _python_path() -> str:
    """Where the worker finds this package, whatever the directory it is started in."""
    return os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH", "")) if part)


def check_datasets(structure: Structure) -> None:
    """Raise EngineError if an element has no PAW data set."""
    missing = missing_datasets([site.specie.symbol for site in structure])
    if missing:
        raise EngineError(f"gpaw: no PAW data set ({FUNCTIONAL}) for {', '.join(missing)}")


def gpaw_available() -> Availability:
    """Whether GPAW can run here; looks for its parts without importing them."""
    for module, part in (("gpaw", "GPAW"), ("_gpaw", "GPAW's compiled part"), ("ase", "ASE")):
        if find_spec(module) is None:
            return Availability(False, f"{part} is not installed (`pip install meissner[gpaw]`)")
    if not any(folder.is_dir() for folder in dataset_folders()):
        return Availability(False, "GPAW's PAW data sets are not installed (`pip install gpaw-data`)")
    return Availability(True)


def dataset_folders() -> list[Path]:
    """Folders in which GPAW looks for PAW data sets: GPAW_SETUP_PATH, then the package gpaw-data."""
    folders = [Path(part) for part in os.environ.get("GPAW_SETUP_PATH", "").split(os.pathsep) if part]
    spec = find_spec("gpaw_data")
    if spec and spec.origin:
        folders.append(Path(spec.origin).parent / "setups")
    return folders


def missing_datasets(symbols: Sequence[str]) -> list[str]:
    """Elements without a PAW data set of the functional, sorted."""
    names = {symbol: (f"{symbol}.{FUNCTIONAL}", f"{symbol}.{FUNCTIONAL}.gz") for symbol in set(symbols)}
    folders = dataset_folders()
    return sorted(
        symbol
        for symbol, files in names.items()
        if not any((folder / file).exists() for folder in folders for file in files)
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"
