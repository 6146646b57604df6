"""Bands out of a VASP run: vasprun.xml, plain or compressed, read by pymatgen."""

import bz2
import gzip
import lzma
import zlib
from pathlib import Path
from typing import Any
from xml.parsers import expat

import numpy as np

from tasks.engines.gpaw_worker import band_gap
from tasks.exceptions import InputError
from tasks.kpoints import Floats, deduce_grid, point_group

HEAD_BYTES = 4096  # read at once in search of the first element
DECIMALS = 5  # VASP writes energies to 1e-4 eV
SYMPREC = 1e-3  # angstrom, for the images of listed k points where the file does not name the grid


def read_vasprun(path: Path, material_id: str | None = None) -> dict[str, Any]:
    """What UniformBands is made of, from the last ionic step of a run on a uniform grid.

    Raises
    ------
    InputError
        For a file that is missing, cut short or not VASP's, and for a run along lines.
    """
    return _uniform_bands(_parse(path), path, material_id)


def read_calculation(path: Path) -> dict[str, Any]:
    """Columns of the table BANDS that a run on a uniform grid tells, its ``structure``, and VASP's version.

    Raises
    ------
    InputError
        As ``read_vasprun``.
    """
    run = _parse(path)
    bands = _uniform_bands(run, path, None)
    energies, efermi = bands["energies"].round(DECIMALS), round(bands["efermi"], DECIMALS)
    densities = {name: bands[name].round(DECIMALS).tolist() for name in bands if name.startswith("dos_")}
    return {
        "kpoints": bands["kpoints"].round(10).tolist(),
        "weights": bands["weights"].tolist(),
        "grid": bands["grid"].tolist(),
        "energies": energies.tolist(),
        "efermi": efermi,
        "band_gap_ev": round(band_gap(energies, efermi), DECIMALS),
        "electrons": float(run.parameters["NELECT"]),
        "magnetic_moment": _moment(energies, bands["weights"], efermi),
        "pseudopotentials": ", ".join(run.potcar_symbols),
        **densities,
        "structure": run.final_structure,
        "program": run.vasp_version,
    }


def _moment(energies: Floats, weights: Floats, efermi: float) -> float:
    """Bohr magnetons a cell: states below E_F of spin up minus those of spin down."""
    filled = ((energies < efermi) * (weights / weights.sum())).sum(axis=(1, 2))
    return round(float(filled[0] - filled[-1]), DECIMALS)


def _uniform_bands(run: Any, path: Path, material_id: str | None) -> dict[str, Any]:
    if run.kpoints.style.name == "Line_mode":
        raise InputError(f"{path} is a line-mode run; a sample needs bands on a uniform grid of k points")
    if not run.eigenvalues:
        raise InputError(f"{path} holds no eigenvalues")
    structure = run.final_structure
    lattice = np.asarray(structure.lattice.matrix, dtype=np.float64)
    species = tuple(site.specie.symbol for site in structure)
    kpoints = np.asarray(run.actual_kpoints, dtype=np.float64)
    channels = sorted(run.eigenvalues, key=lambda spin: -int(spin))
    if run.kpoints.style.name in ("Gamma", "Monkhorst"):
        grid = np.asarray(run.kpoints.kpts[0], dtype=np.int64)
    else:
        grid = deduce_grid(kpoints, point_group(lattice, structure.frac_coords, species, SYMPREC))
    return {
        "material_id": material_id or f"{structure.composition.reduced_formula} ({path.name})",
        "lattice": lattice,
        "coords": np.asarray(structure.frac_coords, dtype=np.float64),
        "species": species,
        "kpoints": kpoints,
        "weights": np.asarray(run.actual_kpoints_weights, dtype=np.float64),
        "grid": grid,
        "energies": np.stack([run.eigenvalues[spin][:, :, 0].T for spin in channels]),
        "efermi": float(run.calculate_efermi()),
        **_densities(run),
    }


def _parse(path: Path) -> Any:
    from pymatgen.io.vasp.outputs import Vasprun

    try:
        refuse_entities(path)
        return Vasprun(path, parse_potcar_file=False, parse_projected_eigen=False)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist") from error
    except InputError:
        raise
    except (SyntaxError, EOFError, zlib.error, lzma.LZMAError, expat.ExpatError) as error:
        raise InputError(f"{path} is cut short or not XML ({error}); did the VASP run end?") from error
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, OSError) as error:
        raise InputError(f"{path} is not a vasprun.xml that pymatgen can read ({error!r})") from error


def refuse_entities(path: Path) -> None:
    """Refuse an XML file with a document type, the only place where entities are declared; VASP writes none.

    Read is what stands before the first element, so nothing is expanded here either.

    Raises
    ------
    InputError
        If there is one: its entities could expand without end or name other files.
    """

    def refuse(*_: object) -> None:
        raise InputError(f"{path} declares a document type, which vasprun.xml never has; entities are not read")

    found: list[bool] = []
    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = lambda *_: found.append(True)
    openers: dict[str, Any] = {
        ".gz": gzip.open,
        ".z": gzip.open,
        ".bz2": bz2.open,
        ".xz": lzma.open,
        ".lzma": lzma.open,
    }
    with openers.get(path.suffix.lower(), open)(path, "rb") as file:
        while not found and (block := file.read(HEAD_BYTES)):
            parser.Parse(block)


def _densities(run: Any) -> dict[str, Floats]:
    """The s, p and d densities of states of both spins, where VASP projected them (LORBIT)."""
    if not getattr(run, "pdos", None):
        return {}
    by_orbital = run.complete_dos.get_spd_dos()
    names = {"s": "dos_s", "p": "dos_p", "d": "dos_d"}
    found = {names[o.name]: sum(dos.densities.values()) for o, dos in by_orbital.items() if o.name in names}
    energies = np.asarray(run.tdos.energies, dtype=np.float64) - float(run.calculate_efermi())
    zeros = np.zeros_like(energies)
    return {"dos_energies": energies, **{name: np.asarray(found.get(name, zeros)) for name in names.values()}}
