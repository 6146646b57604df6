"""The open band engine: GPAW, PAW-PBE in plane waves, as jobflow makers in the way of atomate2.

``GpawBandMaker().make(structure, "mp-763")`` is a flow of two jobs, self-consistent density and uniform bands, whose
output is a row of the table BANDS. The calculation itself is in ``gpaw_worker``, one process each.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from jobflow import Flow, Job, Maker, job
from pymatgen.core.structure import Structure

from tasks.engines import Availability, PassingEngineError
from tasks.engines.document import band_row
from tasks.engines.gpaw_worker import INITIAL_MOMENTS
from tasks.exceptions import EngineError, InputError
from tasks.settings import ROOT, GpawSettings
from tasks.stages import hash_text
from tasks.workers import ONE_THREAD

FUNCTIONAL = "PBE"
LEAST_BANDS = 18  # what a sample of BNAS holds
LEAST_DIVISIONS = 2  # k points along each axis
# Nearest sensible distance of two atoms in units of the sum of their covalent radii: bonds are near 1, H2 has 1.2.
LEAST_DISTANCE = 0.5
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
    """

    name: str = "gpaw"
    settings: GpawSettings = field(default_factory=GpawSettings)
    folder: str = field(default_factory=lambda: str(Path(tempfile.gettempdir()) / "meissner-gpaw"))

    @property
    def version(self) -> str:
        """Version of GPAW and of its PAW data sets."""
        return ", ".join(f"{package} {_version(package)}" for package in ("gpaw", "gpaw-data"))

    @property
    def settings_json(self) -> str:
        """What the bands depend on; the time limit and the number of tries do not belong to it."""
        numbers = self.settings.model_dump(mode="json", exclude={"seconds", "retries"})
        fixed = {"functional": FUNCTIONAL, "least_bands": LEAST_BANDS, "initial_moments": INITIAL_MOMENTS}
        return json.dumps({**numbers, **fixed}, sort_keys=True)

    def available(self) -> Availability:
        """Whether GPAW, its compiled part and its data sets are installed, without importing them."""
        return gpaw_available()

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
        key = hash_text(json.dumps(structure.as_dict(), sort_keys=True, default=str), self.settings_json, material_id)
        metadata = {"formula": structure.composition.reduced_formula, "material_id": material_id}
        folder = str(Path(self.folder) / key[:24])
        ground = _named(run_ground_state(structure, self, folder), "self-consistent", key, metadata)
        bands = _named(run_bands(structure, self, folder, ground.output, material_id), "bands", key, metadata)
        return Flow([ground, bands], output=bands.output, name=f"{self.name} {metadata['formula']}")


def _named(made: Job, step: str, key: str, metadata: dict[str, str]) -> Job:
    """Give a job its name, tags and a uuid that is the same for the same calculation."""
    made.name = f"{step} {metadata['formula']}"
    made.metadata = dict(metadata)
    made.set_uuid(str(uuid.uuid5(uuid.NAMESPACE_URL, f"{key}/{step}")))
    return made


@job
def run_ground_state(structure: Structure, maker: GpawBandMaker, folder: str) -> dict[str, Any]:
    """Self-consistent density of a crystal; gives the total energy, moment, electrons and seconds."""
    task = worker_task("ground-state", structure, maker.settings)
    return run_worker(task, Path(folder), maker.settings.seconds)


@job
def run_bands(
    structure: Structure, maker: GpawBandMaker, folder: str, ground: dict[str, Any], material_id: str
) -> dict[str, Any]:
    """Bands and projected densities of states at that density, as a row of BANDS."""
    task = worker_task("bands", structure, maker.settings)
    result = run_worker(task, Path(folder), maker.settings.seconds)
    shutil.rmtree(folder, ignore_errors=True)
    times = {"seconds": round(ground["seconds"] + result["seconds"], 2)}
    grid = {"grid": kpoint_grid(structure, maker.settings.band_density)}
    return band_row(structure, material_id, maker, {**ground, **result, **grid, **times})


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


def kpoint_grid(structure: Structure, density: float) -> list[int]:
    """Divisions of a Γ-centred grid: length of each reciprocal vector (2π included) times density, rounded up.

    ``density`` in points per inverse angstrom. Lengths are rounded to 1e-4 before, so that axes that symmetry makes
    equal get equal divisions. Al (fcc, primitive) has 13 x 13 x 13 for a density of 4.5.
    """
    lengths = np.array(structure.lattice.reciprocal_lattice.abc)
    return [max(LEAST_DIVISIONS, int(np.ceil(count))) for count in np.round(lengths * density, 4)]


def run_worker(task: dict[str, Any], folder: Path, seconds: float) -> dict[str, Any]:
    """Run one step in a process of its own, which ends with this one, and give what it computed and its seconds.

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
    document = {**task, "gpw": str(density), "log": str(log), "parent": os.getpid(), "started": time.time()}
    source.write_text(json.dumps(document))
    try:
        finished = subprocess.run(
            [sys.executable, "-m", "tasks.engines.gpaw_worker", str(source), str(target)],
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


def check_crystal(structure: Structure, material_id: str) -> None:
    """Refuse before any calculation what cannot be calculated.

    Raises
    ------
    InputError
        If the crystal is disordered, or two atoms are nearer than half the sum of their covalent radii.
    EngineError
        If an element has no PAW data set.
    """
    if not structure.is_ordered:
        raise InputError(f"{material_id}: the crystal is disordered; order it first")
    symbols = [site.specie.symbol for site in structure]
    missing = missing_datasets(symbols)
    if missing:
        raise EngineError(f"gpaw: no PAW data set ({FUNCTIONAL}) for {', '.join(missing)}")
    from ase.data import atomic_numbers, covalent_radii

    radii = np.array([covalent_radii[atomic_numbers[symbol]] for symbol in symbols])
    first, second, _, distances = structure.get_neighbor_list(2 * LEAST_DISTANCE * radii.max())
    near = distances < LEAST_DISTANCE * (radii[first] + radii[second])
    if near.any():
        worst = np.flatnonzero(near)[np.argmin(distances[near])]
        pair = f"{symbols[first[worst]]} and {symbols[second[worst]]}"
        raise InputError(
            f"{material_id}: {pair} are {distances[worst]:.2f} angstrom apart; "
            f"at least {LEAST_DISTANCE * (radii[first[worst]] + radii[second[worst]]):.2f} are allowed"
        )


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
