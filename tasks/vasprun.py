"""Bands out of a VASP run: vasprun.xml, plain or compressed, read by pymatgen."""

import zlib
from pathlib import Path
from typing import Any

import numpy as np

from tasks.exceptions import InputError
from tasks.kpoints import Floats, deduce_grid, point_group

SYMPREC = 1e-3  # angstrom, for the images of listed k points where the file does not name the grid


def read_vasprun(path: Path, material_id: str | None = None) -> dict[str, Any]:
    """What UniformBands is made of, from the last ionic step of a run on a uniform grid.

    Raises
    ------
    InputError
        For a file that is missing, cut short or not VASP's, and for a run along lines.
    """
    run = _parse(path)
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
        return Vasprun(path, parse_potcar_file=False, parse_projected_eigen=False)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist") from error
    except (SyntaxError, EOFError, zlib.error) as error:  # both XML parsers raise kinds of SyntaxError
        raise InputError(f"{path} is cut short or not XML ({error}); did the VASP run end?") from error
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, OSError) as error:
        raise InputError(f"{path} is not a vasprun.xml that pymatgen can read ({error!r})") from error


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
