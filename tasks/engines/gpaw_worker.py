"""One GPAW calculation in a process of its own: ``python -m tasks.engines.gpaw_worker input.json output.json``.

The input names the step (``ground-state`` or ``bands``), the crystal and the numbers of the calculation; the output
holds the result, or the kind and the text of the failure. Nothing here knows jobflow, Prefect or the workspace, and
GPAW is imported only here, so that a calculation can be killed, run out of memory or leak without harm to its parent.
"""

import ctypes
import itertools
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

PR_SET_PDEATHSIG = 1  # linux/prctl.h

# Ferromagnetic start, Bohr magnetons an atom: near the moments of the elemental metals, high for Mn and Cr so that a
# magnetic solution is found where there is one.
INITIAL_MOMENTS = {"Cr": 3.0, "Mn": 3.0, "Fe": 2.5, "Co": 1.7, "Ni": 0.7}

DOS_ENERGIES = np.linspace(-10.0, 6.0, 161)  # eV relative to E_F
DOS_WIDTH_EV = 0.1  # Gaussian
DIRECT_PLANE_WAVES = 650  # below, all of the Hamiltonian is diagonalised: faster there, and exact
BUFFER_BANDS = 8  # above the kept bands: carried along so that the kept ones converge (half the time of 4)
RESIDUAL_EV2 = 1e-6  # of the iterative way, per electron: energies within 1e-5 eV of the direct way's (MgB2)
DECIMALS = 5  # energies are stored to 1e-5 eV, far above what differs between two runs
GAP_TOLERANCE_EV = 0.01  # below this a gap is not told from a touching of bands


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, however it ends (Linux; elsewhere nothing happens).

    ``parent`` is its process id, or 0 where a launcher stands between.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if parent and os.getppid() != parent:  # it ended before the kernel was asked
            os._exit(1)


def plan_by_estimate() -> None:
    """Have FFTW choose its plans by rule instead of by timing them, which differs from run to run.

    ``PW(fftwflags=...)`` reaches the wave functions only; the density's transforms take the default.
    """
    from gpaw import fftw

    create_plan = fftw.create_plan
    fftw.create_plan = lambda in_R, out_R, sign, _flags=0: create_plan(in_R, out_R, sign, fftw.ESTIMATE)


def build_atoms(task: dict[str, Any]) -> Any:
    """The crystal as ASE's Atoms, with the ferromagnetic start where an element asks for it."""
    from ase import Atoms

    atoms = Atoms(task["symbols"], cell=task["cell"], scaled_positions=task["scaled_positions"], pbc=True)
    moments = [INITIAL_MOMENTS.get(symbol, 0.0) for symbol in task["symbols"]]
    if any(moments):
        atoms.set_initial_magnetic_moments(moments)
    return atoms


def run_ground_state(task: dict[str, Any]) -> dict[str, Any]:
    """Self-consistent run; the density goes to the file ``task["gpw"]``."""
    from gpaw import GPAW, PW, FermiDirac

    atoms = build_atoms(task)
    atoms.calc = GPAW(
        mode=PW(task["cutoff_ev"]),
        xc=task["functional"],
        occupations=FermiDirac(task["smearing_ev"]),
        kpts={"size": task["scf_grid"], "gamma": True},
        symmetry={"tolerance": 1e-5},
        txt=task["log"],
    )
    energy = atoms.get_potential_energy(force_consistent=True)
    moment = float(atoms.get_magnetic_moment()) if atoms.calc.get_spin_polarized() else 0.0
    # The work is done on a scratch name: a file with the final name is always a whole one.
    scratch = task["gpw"] + ".part.gpw"
    atoms.calc.write(scratch)
    if is_first_rank():
        Path(scratch).replace(task["gpw"])
    return {
        "total_energy_ev": round(float(energy), DECIMALS),
        "magnetic_moment": round(moment, 4),
        "electrons": round(float(atoms.calc.wfs.nvalence), 6),
    }


def run_bands(task: dict[str, Any]) -> dict[str, Any]:
    """Bands on the uniform grid at the fixed density of ``task["gpw"]``, and the projected densities of states."""
    from gpaw import GPAW

    ground = GPAW(task["gpw"], txt=None)
    moment = abs(ground.get_magnetic_moment()) if ground.get_spin_polarized() else 0.0
    occupied = int(np.ceil((ground.wfs.nvalence + moment) / 2 - 1e-6))
    kept = max(occupied + task["extra_bands"], task["least_bands"])
    small = plane_waves(ground.atoms.get_volume(), task["cutoff_ev"]) < DIRECT_PLANE_WAVES
    calc = (diagonalise_directly if small else diagonalise_iteratively)(ground, task, kept)
    return {**read_bands(calc, kept), **projected_densities(calc)}


def plane_waves(volume: float, cutoff_ev: float) -> float:
    """Plane waves a k point for a cell of ``volume`` cubic angstrom: the sphere's volume over that of one wave."""
    from ase.units import Bohr, Hartree

    return float(volume / Bohr**3 * (2 * cutoff_ev / Hartree) ** 1.5 / (6 * np.pi**2))


def diagonalise_directly(ground: Any, task: dict[str, Any], kept: int) -> Any:
    """All of the Hamiltonian matrix at each k point: exact, and the faster way for a small cell."""
    from gpaw import GPAW

    changes = {"kpts": {"size": task["band_grid"], "gamma": True}, "nbands": kept, "txt": task["log"]}
    calc = GPAW(**{**ground.parameters, **changes})
    calc.initialize(ground.atoms)
    if calc.wfs.gd.comm.size > 1:  # an MPI run that shares each k point between processes
        return diagonalise_iteratively(ground, task, kept)
    calc.wfs.diagonalize_full_hamiltonian(ground.hamiltonian, ground.atoms, calc.log, nbands=kept, expert=True)
    return calc


def diagonalise_iteratively(ground: Any, task: dict[str, Any], kept: int) -> Any:
    """Davidson iterations for the lowest bands, until the uppermost kept band is converged as well."""
    return ground.fixed_density(
        update_fermi_level=True,
        kpts={"size": task["band_grid"], "gamma": True},
        nbands=kept + BUFFER_BANDS,
        convergence={"bands": kept, "eigenstates": RESIDUAL_EV2},
        txt=task["log"],
    )


def read_bands(calc: Any, kept: int) -> dict[str, Any]:
    """Energies [spin, band, k] in eV, the irreducible points with their weights, E_F and the band gap."""
    spins, points = calc.get_number_of_spins(), calc.get_ibz_k_points()
    energies = np.array(
        [[calc.get_eigenvalues(kpt=k, spin=s)[:kept] for k in range(len(points))] for s in range(spins)]
    ).transpose(0, 2, 1)
    efermi = float(calc.get_fermi_level())
    return {
        "kpoints": points.round(10).tolist(),
        "weights": calc.get_k_point_weights().tolist(),
        "energies": energies.round(DECIMALS).tolist(),
        "efermi": round(efermi, DECIMALS),
        "band_gap_ev": round(band_gap(energies, efermi), DECIMALS),
    }


def band_gap(energies: np.ndarray, efermi: float) -> float:
    """Gap on the k points of ``energies`` [spin, band, k], eV; 0 where a band of either spin crosses E_F."""
    lowest, highest = energies.min(axis=2).ravel(), energies.max(axis=2).ravel()
    if np.any((lowest < efermi - GAP_TOLERANCE_EV) & (highest > efermi + GAP_TOLERANCE_EV)):
        return 0.0
    centre = energies.mean(axis=2).ravel()
    if not np.any(centre > efermi) or not np.any(centre <= efermi):
        return 0.0
    gap = lowest[centre > efermi].min() - highest[centre <= efermi].max()
    return float(gap) if gap > GAP_TOLERANCE_EV else 0.0


def projected_densities(calc: Any) -> dict[str, Any]:
    """s, p and d densities of states inside the atomic spheres, states per eV and cell, both spins summed.

    Inside an atom's sphere a state is the sum of the all-electron partial waves with the projections P_jm as
    coefficients (Blöchl, Phys. Rev. B 50, 17953, 1994), so that its share of angular momentum l there is the sum over
    m and the partial waves j, j' of that l of P*_jm P_j'm O_jj'. What lies between the spheres belongs to no atom.
    """
    dos = calc.dos()
    shares = sphere_shares(calc)
    result: dict[str, Any] = {"dos_energies": DOS_ENERGIES.round(6).tolist()}
    for name, share in zip("spd", shares, strict=True):
        spins = zip(dos.eig_skn, share, strict=True)
        total = sum(dos.calculate(DOS_ENERGIES, energies, weights, DOS_WIDTH_EV) for energies, weights in spins)
        result[f"dos_{name}"] = (total * dos.degeneracy).round(DECIMALS).tolist()
    return result


def sphere_shares(calc: Any) -> np.ndarray:
    """Share of each state in the s, p and d waves of all spheres, (3, spins, k points, bands), from 0 to about 1."""
    points = calc.wfs.kd
    shares = np.zeros((3, points.nspins, points.nibzkpts, calc.wfs.bd.nbands))
    own_bands = calc.wfs.bd.get_slice()
    for kpt in calc.wfs.kpt_u:
        for atom, projections in kpt.projections.items():
            setup = calc.wfs.setups[atom]
            first = np.cumsum([0] + [2 * number + 1 for number in setup.l_j])
            waves = [projections[:, start:stop] for start, stop in itertools.pairwise(first)]
            for one, other, overlap in sphere_overlaps(setup):
                product = (waves[one].conj() * waves[other]).sum(axis=1).real
                shares[setup.l_j[one], kpt.s, kpt.k, own_bands] += overlap * product
    calc.world.sum(shares)  # an atom, a k point and a band of it are in one process of an MPI run each
    return shares


def sphere_overlaps(setup: Any) -> list[tuple[int, int, float]]:
    """Pairs (j, j', O_jj') of an element's s, p and d partial waves: O_jj' is the integral of phi_j phi_j' r^2.

    It runs from the nucleus to the largest cutoff radius of the element's waves, 0.5 to 2 angstrom.
    """
    grid = setup.data.rgd
    inside = grid.r_g <= max(setup.rcut_j)
    volume = (grid.r_g**2 * grid.dr_g)[inside]
    waves = [np.asarray(wave)[: len(inside)][inside] for wave in setup.data.phi_jg]
    momenta = list(enumerate(setup.l_j))
    return [
        (one, other, float(waves[one] @ (volume * waves[other])))
        for one, number in momenta
        for other, same in momenta
        if number == same <= 2
    ]


def run_step(task: dict[str, Any]) -> dict[str, Any]:
    """Run the step that the input names; a band step without its ground state makes that first."""
    from gpaw import KohnShamConvergenceError

    plan_by_estimate()
    try:
        if task["step"] == "ground-state":
            return run_ground_state(task)
        ground = {} if Path(task["gpw"]).exists() else run_ground_state(task)
        return {**ground, **run_bands(task)}
    except KohnShamConvergenceError as error:
        return {"failure": "not converged", "message": last_line(error)}
    except MemoryError as error:
        return {"failure": "memory", "message": last_line(error)}
    except Exception as error:  # noqa: BLE001 - the process ends here; its parent turns this into an EngineError
        return {"failure": type(error).__name__, "message": last_line(error)}


def last_line(error: BaseException) -> str:
    """Last line of the text that is not empty, or the name of the error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def is_first_rank() -> bool:
    """Whether this process is the one of an MPI run that writes; alone, it is."""
    from gpaw.mpi import world

    return bool(world.rank == 0)


def main(source: str, target: str) -> None:
    """Read the input, run the step, write the output."""
    task = json.loads(Path(source).read_text())
    die_with_parent(task["parent"])
    result = run_step(task)
    if not is_first_rank():
        return
    scratch = Path(target + ".part")
    scratch.write_text(json.dumps({**result, "seconds": round(time.time() - task["started"], 2)}))
    scratch.replace(target)


if __name__ == "__main__":
    main(*sys.argv[1:3])
