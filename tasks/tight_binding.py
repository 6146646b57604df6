"""Tight-binding models as a source of bands: Wannier90's ``_hr.dat`` files, and energies on any k points, exact.

H(k) = sum over R of exp(2 pi i k.R) H(R) / d(R), with k in fractional coordinates of the reciprocal primitive cell, R
in units of the primitive vectors, d(R) the degeneracy of R and H(R)[m, n] = <m at the origin| H |n at R>. On a mesh
k_i = i / n the phase depends on R modulo n only, so H(R) is folded onto the mesh and transformed: no interpolation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.exceptions import InputError
from tasks.kpoints import Floats, Integers
from tasks.uniform_bands import select_bands
from tasks.wannier90 import Complexes, read_hr, read_win, write_hr

HERMITIAN_EV = 1e-5  # largest |H(R)[m, n] - conj(H(-R)[n, m])|; _hr.dat has six decimals
BATCH = 2**22  # matrix elements of H(k) held at a time, 64 MB
PROBE = np.array([[0.1234, 0.3456, 0.2718], [0.0371, 0.4142, 0.1618]])  # k points of no symmetry
SAME_EV = 1e-8  # how closely a model taken over from another program must give its energies
PYTHTB_MESHES = (4, 8, 16, 32)  # tried in turn until all hoppings fit


@dataclass(frozen=True, eq=False)
class TightBinding:
    """A tight-binding model in an orthonormal basis.

    Attributes
    ----------
    vectors
        (n_vectors, 3) lattice vectors R in units of the primitive ones, each once.
    hamiltonians
        (n_vectors, n_bands, n_bands) H(R) in eV, before the division by the degeneracies.
    degeneracies
        (n_vectors,) positive integers, all 1 unless the model is Wannier90's.
    lattice
        (3, 3) angstrom, primitive vectors as rows; None where unknown. Energies at fractional k do not need it.
    efermi
        Fermi level, eV, None where unknown; see ``fermi_level``.
    spin_degeneracy
        Electrons that a band holds at each k: 2, or 1 with spin-orbit coupling or where one spin is described.

    Raises
    ------
    InputError
        For shapes that do not fit, numbers that are not finite, an R listed twice, and an H that is not Hermitian
        within 1e-5 eV.
    """

    vectors: Integers
    hamiltonians: Complexes
    degeneracies: Integers
    lattice: Floats | None = None
    efermi: float | None = None
    spin_degeneracy: int = 2

    def __post_init__(self) -> None:
        self._check_shapes()
        worst, vector, m, n = _asymmetry(self.vectors, self.hamiltonians, self.degeneracies)
        if worst > HERMITIAN_EV:
            raise InputError(f"Tight-binding model: {_asymmetry_sentence(worst, self.vectors[vector], m, n)}")

    @property
    def bands(self) -> int:
        """How many bands the model has."""
        return self.hamiltonians.shape[1]

    def energies(self, kpoints: npt.ArrayLike) -> Floats:
        """Energies at any k points.

        Parameters
        ----------
        kpoints
            (n_k, 3) fractional coordinates of the reciprocal primitive cell.

        Returns
        -------
        (n_bands, n_k) float64, eV, on the scale of H, each k point's energies ascending.

        Raises
        ------
        InputError
            If ``kpoints`` is not a table of three finite numbers a row.
        """
        points = np.asarray(kpoints, dtype=np.float64)
        if points.ndim != 2 or points.shape[1] != 3 or not np.isfinite(points).all():
            raise InputError(f"k points of the shape {points.shape} are not rows of three finite numbers")
        size = self.bands**2
        flat = self._weighted.reshape(-1, size)
        step = max(1, BATCH // max(size, len(self.vectors)))
        found = np.empty((len(points), self.bands))
        for start in range(0, len(points), step):
            phases = np.exp(2j * np.pi * (points[start : start + step] @ self.vectors.T))
            matrices = np.einsum("kr,rx->kx", phases, flat, optimize=True)
            found[start : start + step] = _eigenvalues(matrices.reshape(-1, self.bands, self.bands))
        return found.T

    def on_mesh(self, mesh: int | Sequence[int]) -> Floats:
        """Energies on the k points (i / n_1, j / n_2, l / n_3), Γ among them, by Fourier transform of H(R).

        Axes along which nothing hops are computed once and repeated. Planes of the first axis are done in turn, so
        that H(k) of one plane is held at a time.

        Parameters
        ----------
        mesh
            Points along each reciprocal axis, or one number for all three.

        Returns
        -------
        (n_bands, n_1, n_2, n_3) float64, eV, on the scale of H; the same as ``energies`` gives at these points.
        """
        wanted = _mesh(mesh)
        moves = (self.vectors != 0).any(axis=0)
        small = tuple(n if moving else 1 for n, moving in zip(wanted, moves, strict=True))
        places = np.ravel_multi_index(tuple((self.vectors[:, 1:] % np.array(small[1:])).T), small[1:])
        order = np.argsort(places, kind="stable")
        cells, starts = np.unique(places[order], return_index=True)
        hops, first = self._weighted[order], self.vectors[order, 0]
        found = np.empty((self.bands, *small))
        for i in range(small[0]):
            phases = np.exp(2j * np.pi * ((i * first) % small[0]) / small[0])
            plane = np.zeros((small[1] * small[2], self.bands, self.bands), dtype=np.complex128)
            plane[cells] = np.add.reduceat(phases[:, None, None] * hops, starts, axis=0)
            folded = plane.reshape(small[1], small[2], self.bands, self.bands)
            matrices = np.fft.ifft2(folded, axes=(0, 1), norm="forward")
            found[:, i] = np.moveaxis(_eigenvalues(matrices), -1, 0)
        return np.ascontiguousarray(np.broadcast_to(found, (self.bands, *wanted)))

    def fermi_level(self, electrons: float, mesh: int | Sequence[int] = 32) -> float:
        """Fermi level by filling the lowest states of a mesh, each band with ``spin_degeneracy`` electrons.

        Where the electrons fill a whole number of states it is half-way between the last filled and the first empty
        state, so the middle of the gap in an insulator; else the energy of the state that is filled in part.

        Parameters
        ----------
        electrons
            Electrons a cell in these bands, more than 0 and fewer than they hold.
        mesh
            As in ``on_mesh``.

        Returns
        -------
        eV, on the scale of H.

        Raises
        ------
        InputError
            If the bands would be empty, full or overfull.
        """
        capacity = self.spin_degeneracy * self.bands
        if not 0 < electrons < capacity:
            raise InputError(
                f"{electrons} electrons a cell do not partly fill {self.bands} bands; more than 0 and fewer than "
                f"{capacity} do"
            )
        return _fill(np.sort(self.on_mesh(mesh), axis=None), electrons / capacity)

    def nearest_bands(self, count: int, mesh: int | Sequence[int] = 32) -> Floats:
        """The bands of a sample: those with the smallest absolute mean of E - E_F, as ``select_bands`` takes them.

        Returns
        -------
        (count or fewer, n_1, n_2, n_3) float64, eV relative to ``efermi``, sorted by mean.

        Raises
        ------
        InputError
            If ``efermi`` is unknown.
        """
        if self.efermi is None:
            raise InputError("The tight-binding model has no Fermi level: set efermi, for instance to fermi_level(...)")
        energies = self.on_mesh(mesh) - self.efermi
        return energies[select_bands(energies.mean(axis=(1, 2, 3)), count)]

    @property
    def _weighted(self) -> Complexes:
        """(n_vectors, n_bands, n_bands) H(R) / d(R), eV."""
        return self.hamiltonians / self.degeneracies[:, None, None]

    def _check_shapes(self) -> None:
        count, bands = self.hamiltonians.shape[0], self.hamiltonians.shape[-1]
        allowed = {"vectors": (count, 3), "hamiltonians": (count, bands, bands), "degeneracies": (count,)}
        if self.lattice is not None:
            allowed["lattice"] = (3, 3)
        for name, shape in allowed.items():
            found = getattr(self, name).shape
            if found != shape or not count or not bands:
                raise InputError(f"Tight-binding model: {name} has the shape {found}, which does not fit {allowed}")
            wrong = int((~np.isfinite(getattr(self, name))).sum())
            if wrong:
                raise InputError(f"Tight-binding model: {wrong} numbers of {name} are not finite")
        for name in ("vectors", "degeneracies"):
            if not np.issubdtype(getattr(self, name).dtype, np.integer):
                raise InputError(f"Tight-binding model: {name} must be integers, not {getattr(self, name).dtype}")
        if (self.degeneracies < 1).any():
            raise InputError(f"Tight-binding model: a degeneracy is {self.degeneracies.min()}, not 1 or more")
        unique, counts = np.unique(self.vectors, axis=0, return_counts=True)
        if (counts > 1).any():
            raise InputError(f"Tight-binding model: R = {unique[counts.argmax()].tolist()} is listed twice")
        if self.lattice is not None and abs(np.linalg.det(self.lattice)) < 1e-3:
            raise InputError("Tight-binding model: the lattice vectors span no volume")
        if self.efermi is not None and not np.isfinite(self.efermi):
            raise InputError(f"Tight-binding model: efermi is {self.efermi}, not a finite number")
        if self.spin_degeneracy not in (1, 2):
            raise InputError(f"Tight-binding model: a band holds 1 or 2 electrons, not {self.spin_degeneracy}")


def read_wannier90_hr(
    path: str | Path,
    lattice: npt.ArrayLike | None = None,
    efermi: float | None = None,
    spin_degeneracy: int | None = None,
) -> TightBinding:
    """A model from Wannier90's ``<seedname>_hr.dat``, plain or gzipped.

    What is not given is looked up in ``<seedname>.win`` beside it, if there: the lattice in ``unit_cell_cart``,
    the Fermi level in ``fermi_energy``, and one electron a band if ``spinors`` is true.

    Parameters
    ----------
    path
        The file. Shifts of ``<seedname>_wsvec.dat`` (``use_ws_distance``) are not applied.
    lattice
        (3, 3) angstrom, vectors as rows.
    efermi
        Fermi level, eV.
    spin_degeneracy
        1 for the file of one spin of a magnet; 2, or as ``spinors`` tells, if None.

    Raises
    ------
    InputError
        For a file that is missing, cut short or not Wannier90's, and as the class does; file and line are told.
    """
    file = Path(path)
    vectors, hamiltonians, degeneracies, places = read_hr(file)
    worst, vector, m, n = _asymmetry(vectors, hamiltonians, degeneracies)
    if worst > HERMITIAN_EV:
        raise InputError(f"{file}, line {places[vector, m, n]}: {_asymmetry_sentence(worst, vectors[vector], m, n)}")
    told = read_win(file)
    if lattice is not None:
        told["lattice"] = np.asarray(lattice, dtype=np.float64)
    if efermi is not None:
        told["efermi"] = efermi
    if spin_degeneracy is not None:
        told["spin_degeneracy"] = spin_degeneracy
    return TightBinding(vectors, hamiltonians, degeneracies, **told)


def write_wannier90_hr(model: TightBinding, path: str | Path, comment: str = "written by meissner") -> Path:
    """Write a model as ``_hr.dat``, gzipped where the name ends in .gz; read again, H(R) is the same to the last bit.

    The format has no place for lattice, Fermi level and spin degeneracy: they are ``read_wannier90_hr``'s arguments.

    Raises
    ------
    InputError
        If the file cannot be written.
    """
    return write_hr(Path(path), model.vectors, model.hamiltonians, model.degeneracies, comment)


def from_pythtb(model: Any, efermi: float | None = None) -> TightBinding:
    """A model from a ``tb_model`` of PythTB 1.x that the user made; PythTB itself (GPL) is not needed here.

    Its public functions tell energies and states but not the hoppings, so H(k) is put together on a mesh and
    transformed back, on finer meshes until energies at other k points agree within 1e-8 eV. One and two-dimensional
    models are stacked 10 angstrom apart, without hopping between the layers.

    Raises
    ------
    InputError
        If the object is no ``tb_model``, if not every direction of it is periodic, or if its hoppings reach too far.
    """
    try:
        lattice, orbitals = np.asarray(model.get_lat(), dtype=np.float64), np.asarray(model.get_orb())
        axes = len(lattice)
        model.k_uniform_mesh([1] * axes)
        spinful = model.solve_all(np.zeros((1, axes)), eig_vectors=True)[1].ndim == 4
    except Exception as error:  # PythTB raises plain Exception
        raise InputError(f"{type(model).__name__} is not a PythTB model periodic in all its directions") from error
    full = np.eye(3) * 10.0
    full[:axes, :axes] = lattice
    centres = np.repeat(orbitals, 2, axis=0) if spinful else orbitals
    probe = model.solve_all(PROBE[:, :axes])
    for mesh in PYTHTB_MESHES:
        vectors, hamiltonians = _hoppings(model, mesh, centres)
        ones = np.ones(len(vectors), dtype=np.int64)
        if _asymmetry(vectors, hamiltonians, ones)[0] > HERMITIAN_EV:
            continue
        found = TightBinding(vectors, hamiltonians, ones, full, efermi, 1 if spinful else 2)
        if np.abs(found.energies(PROBE * (np.arange(3) < axes)) - probe).max() < SAME_EV:
            return found
    raise InputError(f"Hoppings of this PythTB model reach beyond {PYTHTB_MESHES[-1] // 2} cells")


def _hoppings(model: Any, mesh: int, centres: Floats) -> tuple[Integers, Complexes]:
    """H(R) of a PythTB model from its states on a mesh, where all hoppings fit into the mesh."""
    axes = centres.shape[1]
    points = np.asarray(model.k_uniform_mesh([mesh] * axes))
    energies, states = model.solve_all(points, eig_vectors=True)
    states = states.reshape(*states.shape[:2], -1)
    matrices = np.einsum("bkm,bk,bkn->kmn", states, energies, states.conj(), optimize=True)
    phases = np.exp(2j * np.pi * points @ centres.T)  # PythTB's phases hold the places of the orbitals
    matrices = phases[:, :, None] * matrices * phases.conj()[:, None, :]
    hops = np.fft.fftn(matrices.reshape(*[mesh] * axes, *matrices.shape[1:]), axes=range(axes), norm="forward")
    wrapped = np.indices([mesh] * axes).reshape(axes, -1).T
    vectors = np.zeros((len(wrapped), 3), dtype=np.int64)
    vectors[:, :axes] = wrapped - mesh * (wrapped > mesh // 2)
    hamiltonians = hops.reshape(-1, *matrices.shape[1:])
    kept = np.flatnonzero((np.abs(hamiltonians).max(axis=(1, 2)) > 1e-12) | (vectors == 0).all(axis=1))
    return vectors[kept], hamiltonians[kept]


def _eigenvalues(matrices: Complexes) -> Floats:
    """Eigenvalues of the Hermitian part, (…, n) ascending."""
    return np.asarray(np.linalg.eigvalsh((matrices + matrices.conj().swapaxes(-1, -2)) / 2), dtype=np.float64)


def _fill(states: Floats, share: float) -> float:
    """Level below which ``share`` of the sorted states lie."""
    filled = share * len(states)
    whole = round(filled)
    if abs(filled - whole) < 1e-6 and 0 < whole < len(states):
        return float(states[whole - 1] + states[whole]) / 2
    return float(states[int(filled)])


def _mesh(mesh: int | Sequence[int]) -> tuple[int, int, int]:
    numbers = (mesh,) * 3 if isinstance(mesh, int | np.integer) else tuple(mesh)
    if len(numbers) != 3 or any(int(n) != n or n < 1 for n in numbers):
        raise InputError(f"{mesh=} is not one positive integer or three")
    return int(numbers[0]), int(numbers[1]), int(numbers[2])


def _asymmetry(vectors: Integers, hamiltonians: Complexes, degeneracies: Integers) -> tuple[float, int, int, int]:
    """The largest difference of H(R) / d(R) and the conjugate transpose at -R, eV, and where; a missing -R is zero."""
    weighted = hamiltonians / degeneracies[:, None, None]
    places = {tuple(vector): i for i, vector in enumerate(vectors.tolist())}
    worst = (0.0, 0, 0, 0)
    for i, (r1, r2, r3) in enumerate(vectors.tolist()):
        other = places.get((-r1, -r2, -r3))
        partner = 0.0 if other is None else weighted[other].conj().T
        miss = np.abs(weighted[i] - partner)
        if miss.max() > worst[0]:
            m, n = np.unravel_index(miss.argmax(), miss.shape)
            worst = (float(miss.max()), i, int(m), int(n))
    return worst


def _asymmetry_sentence(worst: float, vector: Integers, m: int, n: int) -> str:
    r = vector.tolist()
    return (
        f"H is not Hermitian, worst at R = {r}, where H(R)[{m + 1}, {n + 1}] differs from the conjugate of "
        f"H(-R)[{n + 1}, {m + 1}] by {worst:.2g} eV; at most {HERMITIAN_EV:g} eV is allowed"
    )
