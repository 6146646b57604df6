"""The production band engine: the user's own VASP, run by atomate2's makers and custodian with the MIT parameters.

``VaspBandMaker().make(structure, "mp-763")`` is a flow of atomate2 jobs, relax → static → uniform bands (and bands
along lines), and a last job that turns the uniform run into a row of the table BANDS. Each job has a folder of its own.
"""

import errno
import json
import math
import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from atomate2 import SETTINGS as ATOMATE2_SETTINGS
from atomate2.utils.path import strip_hostname
from atomate2.vasp.jobs.base import BaseVaspMaker
from atomate2.vasp.jobs.core import NonSCFMaker, RelaxMaker, StaticMaker
from atomate2.vasp.sets.base import VaspInputGenerator
from atomate2.vasp.sets.core import NonSCFSetGenerator, RelaxSetGenerator, StaticSetGenerator
from custodian.custodian import CustodianError, ReturnCodeError, ValidationError
from jobflow import Flow, Job, Maker, job
from pymatgen.core.structure import Structure
from pymatgen.io.vasp.inputs import Kpoints, PotcarSingle
from pymatgen.io.vasp.sets import MITRelaxSet

from tasks.engines import Availability, PassingEngineError
from tasks.engines.document import band_row
from tasks.engines.inputs import LEAST_BANDS, check_crystal, kpoint_grid, named
from tasks.exceptions import EngineError, MeissnerError
from tasks.settings import VaspSettings
from tasks.stages import hash_text
from tasks.vasprun import read_calculation

PARAMETERS = "MIT"
UNUSED = {"auto_ismear": False, "inherit_incar": False}  # of atomate2: the MIT parameters say it themselves
POLLING = {"polling_time_step": 1, "monitor_freq": 300}  # is VASP over: each second; is it stuck: each 300 s
STOPPED = "timeout: sending signal"  # what coreutils' timeout says at its limit
NO_SPACE = "No space left on device"
LOGS = ("std_err.txt", "vasp.out", "OUTCAR")


@dataclass
class UniformSetGenerator(NonSCFSetGenerator):
    """Input of the uniform bands: atomate2's, with a Γ-centred grid of given density and enough empty bands.

    Parameters
    ----------
    density
        k points per inverse angstrom.
    extra_bands
        Bands above the occupied ones.
    """

    density: float = 4.5
    extra_bands: int = 10

    @property
    def kpoints_updates(self) -> dict[str, Any] | Kpoints:
        """The grid of the uniform run; lines as atomate2 draws them."""
        if self.mode != "uniform":
            return super().kpoints_updates
        first, second, third = kpoint_grid(self.structure, self.density)
        return Kpoints.gamma_automatic((first, second, third))

    @property
    def incar_updates(self) -> dict[str, Any]:
        """atomate2's, with at least so many bands."""
        updates = super().incar_updates
        occupied = math.ceil(self.nelect / 2)
        least = max(LEAST_BANDS, occupied + self.extra_bands)
        return {**updates, "NBANDS": max(least, updates.get("NBANDS", 0))}


@dataclass
class VaspBandMaker(Maker):
    """Maker of a band structure by VASP.

    Parameters
    ----------
    name
        Name of the flow and the engine.
    settings
        Program, POTCARs and numbers of the calculation.
    run_folder
        Where each job gets a folder of its own; every worker must reach it.
    """

    name: str = "vasp"
    settings: VaspSettings = field(default_factory=VaspSettings)
    run_folder: str | None = "vasp"

    @property
    def version(self) -> str:
        """Version of atomate2; VASP's own is in the result, since only a run tells it."""
        return f"atomate2 {version('atomate2')}"

    @property
    def settings_json(self) -> str:
        """What the bands depend on: not how VASP is started, nor limits of time and tries."""
        numbers = self.settings.model_dump(
            mode="json", exclude={"command", "potcars", "line", "seconds", "corrections", "retries"}
        )
        return json.dumps({**numbers, "parameters": PARAMETERS, "least_bands": LEAST_BANDS}, sort_keys=True)

    def available(self) -> Availability:
        """Whether the program and the folder of POTCARs are there; starts nothing."""
        program = shlex.split(os.path.expandvars(self.command))
        missing = next((word for word in program[:1] if shutil.which(word) is None), None)
        if not program or missing:
            return Availability(False, f"the program {missing or 'VASP'!r} is not there (vasp.command)")
        folder = potcar_folder(self.settings)
        if folder is None:
            return Availability(False, "no folder of POTCARs is named (vasp.potcars or PMG_VASP_PSP_DIR)")
        release = folder / PotcarSingle.functional_dir[self.settings.potcar_functional]
        if not release.is_dir():
            return Availability(False, f"the folder of POTCARs {release} is not there (vasp.potcars)")
        return Availability(True)

    @property
    def command(self) -> str:
        """How VASP is started: the setting, or atomate2's own."""
        return self.settings.command or ATOMATE2_SETTINGS.VASP_CMD

    def make(self, structure: Structure, material_id: str) -> Flow:
        """The jobs for one crystal; uuids follow from crystal and settings, so that a restart finds them again.

        Raises
        ------
        InputError
            If the crystal is disordered or atoms are too close.
        EngineError
            If an element has no POTCAR in the MIT parameters or in the folder.
        """
        check_crystal(structure, material_id)
        check_potcars(structure, self.settings)
        use_potcars(self.settings)
        key = hash_text(json.dumps(structure.as_dict(), sort_keys=True, default=str), self.settings_json, material_id)
        metadata = {"formula": structure.composition.reduced_formula, "material_id": material_id}
        jobs: list[Job] = []

        def add(made: Job, step: str) -> Any:
            jobs.append(named(made, step, key, metadata))
            return made.output

        runs, relaxed, previous = [], structure, None
        if self.settings.relax:
            runs.append(add(self._maker(RelaxMaker, RelaxSetGenerator).make(structure), "relax"))
            relaxed, previous = runs[-1].structure, runs[-1].dir_name
        runs.append(add(self._maker(StaticMaker, StaticSetGenerator).make(relaxed, prev_dir=previous), "static"))
        static = runs[-1]
        bands = self._maker(NonSCFMaker, UniformSetGenerator, parse_dos=False, parse_bandstructure=False)
        runs.append(add(bands.make(static.structure, prev_dir=static.dir_name, mode="uniform"), "uniform bands"))
        if self.settings.line:
            lines = self._maker(NonSCFMaker, NonSCFSetGenerator)
            add(lines.make(static.structure, prev_dir=static.dir_name, mode="line"), "line bands")
        folders = [run.dir_name for run in runs]
        row = add(collect_bands(structure, material_id, self, folders, static.output.energy), "collect")
        return Flow(jobs, output=row, name=f"{self.name} {metadata['formula']}")

    def _maker(self, maker: type[BaseVaspMaker], inputs: type[VaspInputGenerator], **document: bool) -> BaseVaspMaker:
        """One of atomate2's makers with the MIT parameters."""
        extra = {}
        if inputs is UniformSetGenerator:
            extra = {"density": self.settings.band_density, "extra_bands": self.settings.extra_bands}
        generator = inputs(
            config_dict=mit_parameters(),
            user_potcar_functional=self.settings.potcar_functional,
            **UNUSED,
            **extra,
        )
        return maker(
            input_set_generator=generator,
            run_vasp_kwargs={
                "vasp_cmd": limited(self.command, self.settings.seconds),
                "vasp_gamma_cmd": limited(self.command, self.settings.seconds),
                "max_errors": self.settings.corrections,
                "custodian_kwargs": dict(POLLING),
            },
            task_document_kwargs=dict(document),
            stop_children_kwargs={"handle_unsuccessful": "error"},
        )

    def explain(self, done: Job, error: BaseException, folder: Path) -> BaseException:
        """The failure of a job as EngineError: engine, step, what was wrong, last line of VASP's output, folder."""
        return explain_failure(done, error, folder, self.settings.seconds)


def mit_parameters() -> dict[str, Any]:
    """The MIT High-Throughput parameters as pymatgen has them (Jain et al., Comput. Mater. Sci. 50, 2295 (2011)).

    One is mended: the angular momentum of U for Mn in sulfides is 2, a whole number, where pymatgen's file has 2.5.
    """
    parameters: dict[str, Any] = deepcopy(MITRelaxSet().config_dict)
    parameters["INCAR"]["LDAUL"]["S"]["Mn"] = 2
    return parameters


def limited(command: str, seconds: float) -> str:
    """The command, stopped at its wall time and when the process that started it is gone (where the tools are there).

    util-linux's setpriv has the kernel end the program with its parent, coreutils' timeout sets the limit.
    """
    words = []
    if shutil.which("setpriv"):
        words += ["setpriv", "--pdeathsig", "TERM"]
    if shutil.which("timeout"):
        words += ["timeout", "--verbose", "--kill-after=30", f"{seconds:g}"]
    return " ".join([*words, command])


@job
def collect_bands(
    structure: Structure, material_id: str, maker: VaspBandMaker, folders: Sequence[str], energy: float
) -> dict[str, Any]:
    """The uniform bands, as a row of BANDS, out of the last of the folders; seconds are those of all of them.

    The row is that of the crystal which was asked for: its hash is known by that, the structure in it is the relaxed
    one.
    """
    paths = [Path(strip_hostname(folder)) for folder in folders]
    found = read_calculation(vasp_file(paths[-1], "vasprun.xml"))
    seconds = sum(elapsed_seconds(vasp_file(path, "OUTCAR")) for path in paths)
    calculated = found.pop("structure")
    program = found.pop("program")
    row = band_row(structure, material_id, maker, {**found, "total_energy_ev": energy, "seconds": round(seconds, 2)})
    return {**row, **calculated_structure(calculated), "engine_version": f"VASP {program}, {maker.version}"}


def calculated_structure(structure: Structure) -> dict[str, Any]:
    """The columns of BANDS that tell of the crystal as it was calculated."""
    from tasks.crystals import structure_to_json

    return {"structure": structure_to_json(structure)}


def vasp_file(folder: Path, name: str) -> Path:
    """A file of a run, plain or compressed by atomate2 when it was over."""
    packed = folder / f"{name}.gz"
    return packed if packed.exists() else folder / name


def elapsed_seconds(outcar: Path) -> float:
    """Wall time that VASP notes at the end of OUTCAR."""
    from monty.io import reverse_readfile

    for line in reverse_readfile(outcar):
        if "Elapsed time (sec)" in line:
            return float(line.split(":")[1])
    raise EngineError(f"vasp: {outcar} does not tell the elapsed time; it was cut short")


def potcar_folder(settings: VaspSettings) -> Path | None:
    """The folder of POTCARs: the setting, or pymatgen's own."""
    from pymatgen.core import SETTINGS

    named_folder = settings.potcars or os.environ.get("PMG_VASP_PSP_DIR") or SETTINGS.get("PMG_VASP_PSP_DIR")
    return Path(named_folder).expanduser().resolve() if named_folder else None


def use_potcars(settings: VaspSettings) -> None:
    """Tell pymatgen in this process, and in those that it starts, where the POTCARs are."""
    from pymatgen.core import SETTINGS

    if folder := potcar_folder(settings):
        SETTINGS["PMG_VASP_PSP_DIR"] = os.environ["PMG_VASP_PSP_DIR"] = str(folder)


def potcar_symbols(structure: Structure) -> list[str]:
    """Names of the POTCARs that the MIT parameters choose, in the order of elements by electronegativity.

    Raises
    ------
    EngineError
        If the MIT parameters have none for an element.
    """
    chosen: Mapping[str, Any] = mit_parameters()["POTCAR"]
    elements = sorted(structure.composition.elements, key=lambda element: element.X)
    absent = [element.symbol for element in elements if element.symbol not in chosen]
    if absent:
        raise EngineError(f"vasp: the {PARAMETERS} parameters name no POTCAR for {', '.join(absent)}")
    entries = [chosen[element.symbol] for element in elements]
    return [entry["symbol"] if isinstance(entry, dict) else entry for entry in entries]


def check_potcars(structure: Structure, settings: VaspSettings) -> None:
    """Raise EngineError if a POTCAR that the crystal needs is not in the folder."""
    folder = potcar_folder(settings)
    symbols = potcar_symbols(structure)
    if folder is None:
        raise EngineError("vasp: no folder of POTCARs is named (vasp.potcars or PMG_VASP_PSP_DIR)")
    release = folder / PotcarSingle.functional_dir[settings.potcar_functional]
    absent = [
        symbol
        for symbol in symbols
        if not any(
            (release / name).is_file()
            for plain in (f"POTCAR.{symbol}", f"{symbol}/POTCAR")
            for name in (plain, f"{plain}.gz", f"{plain}.bz2", f"{plain}.Z")
        )
    ]
    if absent:
        raise EngineError(f"vasp: no POTCAR {', '.join(absent)} in {release}")


def explain_failure(done: Job, error: BaseException, folder: Path, seconds: float) -> BaseException:
    """One sentence for what custodian, atomate2 or the system said; errors of our own stay as they are."""
    if isinstance(error, MeissnerError):
        return error
    step = done.name.rsplit(" ", 1)[0]
    passing, what = _cause(error, _tail(folder), seconds)
    line = last_line(folder)
    said = f"; last line: {line}" if line else ""
    kind: type[EngineError] = PassingEngineError if passing else EngineError
    return kind(f"vasp, {step}: {what}{said}; in {folder}")


def _cause(error: BaseException, tail: str, seconds: float) -> tuple[bool, str]:
    """Whether a failure may be gone another time, and what it was."""
    unfinished = isinstance(error, ReturnCodeError | ValidationError)
    if unfinished and STOPPED in tail:
        return False, f"stopped at the wall time of {seconds:g} s"
    if (unfinished and NO_SPACE in tail) or (isinstance(error, OSError) and error.errno == errno.ENOSPC):
        return True, "no space left on the disk"
    if isinstance(error, ValidationError):
        return True, "its process was killed, or an output file is missing or cut short"
    if "was not successful" in str(error) or "onverg" in _first_line(error):
        return False, "did not converge"
    if isinstance(error, CustodianError):
        return False, f"custodian gave up: {_first_line(error)}"
    passing = isinstance(error, MemoryError | ConnectionError)
    return passing, f"{type(error).__name__}: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _tail(folder: Path) -> str:
    texts = [(folder / name).read_text(errors="replace")[-2000:] for name in LOGS[:2] if (folder / name).is_file()]
    return "\n".join(texts)


def last_line(folder: Path) -> str:
    """The last line that VASP wrote: to its error output, else to its output."""
    for name in LOGS:
        path = folder / name
        if path.is_file() and (lines := path.read_text(errors="replace").split("\n")):
            spoken = [line.strip() for line in lines if line.strip()]
            if spoken:
                return spoken[-1][:200]
    return ""
