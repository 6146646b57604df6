"""A coarse band structure on a uniform grid of k points, checked at the door: what every source is turned into."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tasks.exceptions import InputError
from tasks.kpoints import Floats, IntegerKpoints, Integers, point_group

SYMPRECS = (1e-4, 1e-3, 1e-2, 1e-1)  # angstrom; tried in turn until the k list makes its whole grid
SAME_ENERGY_EV = 0.01  # bands of equivalent k points agree within this; PBE codes reach some 0.2 meV

ROW_COLUMNS = ("material_id", "structure", "kpoints", "weights", "grid", "energies", "efermi")
DENSITIES = ("dos_energies", "dos_s", "dos_p", "dos_d")


@dataclass(frozen=True, eq=False)
class UniformBands:
    """Bands on a uniform grid of k points, or on points that make the grid by crystal symmetry and time reversal.

    Attributes
    ----------
    material_id
        Name used in messages and tables.
    lattice
        (3, 3) angstrom, primitive vectors as rows.
    coords
        (n_atoms, 3) fractional.
    species
        Element symbol of each atom.
    kpoints
        (n_k, 3) fractional coordinates of the reciprocal primitive cell, in any order.
    weights
        (n_k,) shares of the grid, sum 1.
    grid
        (3,) divisions of the full grid.
    energies
        (n_spin, n_bands, n_k) eV, n_spin 1 or 2, on the same scale as ``efermi``.
    efermi
        Fermi level, eV.
    dos_energies, dos_s, dos_p, dos_d
        (n,) eV relative to E_F, and states per eV and cell of both spins; None where unknown.

    Raises
    ------
    InputError
        For shapes that do not fit, numbers that are not finite, and an E_F outside all bands.
    """

    material_id: str
    lattice: Floats
    coords: Floats
    species: tuple[str, ...]
    kpoints: Floats
    weights: Floats
    grid: Integers
    energies: Floats
    efermi: float
    dos_energies: Floats | None = None
    dos_s: Floats | None = None
    dos_p: Floats | None = None
    dos_d: Floats | None = None

    def __post_init__(self) -> None:
        self._check_shapes()
        self._check_numbers()

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "UniformBands":
        """Bands from one row of the table BANDS as a dictionary; pymatgen is not needed.

        Raises
        ------
        InputError
            For a missing column, a structure that is not pymatgen's JSON or is disordered, and as the class does.
        """
        absent = [name for name in ROW_COLUMNS if row.get(name) is None]
        if absent:
            raise InputError(f"Bands of {row.get('material_id')}: no {', '.join(absent)}; needed are {ROW_COLUMNS}")
        name = str(row["material_id"])
        lattice, coords, species = _read_structure(name, row["structure"])
        return cls(
            material_id=name,
            lattice=lattice,
            coords=coords,
            species=species,
            kpoints=_array(name, "kpoints", row["kpoints"]),
            weights=_array(name, "weights", row["weights"]),
            grid=_array(name, "grid", row["grid"]).astype(np.int64),
            energies=_array(name, "energies", row["energies"]),
            efermi=float(row["efermi"]),
            **{key: _array(name, key, row[key]) for key in DENSITIES if row.get(key) is not None},
        )

    @classmethod
    def from_vasprun(cls, path: str | Path, material_id: str | None = None) -> "UniformBands":
        """Bands from a vasprun.xml, plain or gzipped, of a run on a uniform grid.

        The Fermi level is pymatgen's ``calculate_efermi``: VASP's own, moved into the gap where it cuts the edge of
        an insulator's band.

        Raises
        ------
        InputError
            For a file that is missing, cut short or not VASP's, a run along lines, and as the class does.
        """
        from tasks.vasprun import read_vasprun

        return cls(**read_vasprun(Path(path), material_id))

    def symmetric_kpoints(self, rows: Sequence[int] | Integers) -> tuple[IntegerKpoints, Integers]:
        """The k points as integers, and the rotations that both the crystal and the energies obey.

        The tolerance of the symmetry search is the tightest one with which the list makes its whole grid, since that
        is the symmetry that the list was made with. Rotations that the energies contradict, as in a magnet whose
        order lowers the symmetry, are left out.

        Parameters
        ----------
        rows
            Rows of ``pooled`` whose energies must agree at equivalent points. High empty bands often are not
            converged, so callers name those that they need.

        Raises
        ------
        InputError
            If points are missing for every tolerance, or a point is not on the grid.
        """
        points = IntegerKpoints.from_fractional(self.kpoints, self.grid)
        missing = []
        for symprec in SYMPRECS:
            group = point_group(self.lattice, self.coords, self.species, symprec)
            rotations = _obeyed(points, group, self.pooled[rows])
            missing.append(points.missing(rotations))
            if missing[-1] == 0:
                return points, rotations
        divisions = " x ".join(map(str, self.grid))
        raise InputError(
            f"Bands of {self.material_id}: {min(missing)} of the {np.prod(self.grid)} points of the {divisions} grid "
            f"are missing from the {len(self.kpoints)} k points, crystal symmetry and time reversal included"
        )

    @property
    def pooled(self) -> Floats:
        """(n_spin * n_bands, n_k) eV relative to E_F, spin up first."""
        return self.energies.reshape(-1, self.energies.shape[2]) - self.efermi

    @property
    def means(self) -> Floats:
        """(n_spin * n_bands,) mean of each pooled band over the coarse grid, eV relative to E_F."""
        return np.asarray(self.pooled @ (self.weights / self.weights.sum()))

    def _check_shapes(self) -> None:
        n_atoms, n_k = len(self.species), len(self.kpoints)
        allowed: dict[str, tuple[int | None, ...]] = {
            "lattice": (3, 3),
            "coords": (n_atoms, 3),
            "kpoints": (n_k, 3),
            "weights": (n_k,),
            "grid": (3,),
            "energies": (None, None, n_k),
        }
        for name, shape in allowed.items():
            found = getattr(self, name).shape
            if len(found) != len(shape) or any(a not in (b, None) for b, a in zip(found, shape, strict=True)):
                wanted = str(shape).replace("None", "any")
                raise InputError(f"Bands of {self.material_id}: {name} has the shape {found}, not {wanted}")
        if not n_atoms or not n_k or self.energies.shape[0] not in (1, 2) or not self.energies.shape[1]:
            raise InputError(
                f"Bands of {self.material_id}: {n_atoms} atoms and energies of the shape {self.energies.shape} "
                "(spin, band, k); needed are at least one atom, 1 or 2 spins, one band and one k point"
            )

    def _check_numbers(self) -> None:
        for name in ("lattice", "coords", "kpoints", "weights", "energies", "efermi"):
            wrong = int((~np.isfinite(getattr(self, name))).sum())
            if wrong:
                raise InputError(f"Bands of {self.material_id}: {wrong} numbers of {name} are not finite")
        if (self.grid < 1).any():
            raise InputError(f"Bands of {self.material_id}: the grid {self.grid.tolist()} must have positive divisions")
        if (self.weights < 0).any() or not self.weights.sum() > 0:
            raise InputError(f"Bands of {self.material_id}: the weights of the k points must be positive")
        if abs(np.linalg.det(self.lattice)) < 1e-3:
            raise InputError(f"Bands of {self.material_id}: the lattice vectors span no volume")
        low, high = float(self.energies.min()), float(self.energies.max())
        if not low <= self.efermi <= high:
            raise InputError(
                f"Bands of {self.material_id}: E_F = {self.efermi:.3f} eV is outside all bands, "
                f"{low:.3f} to {high:.3f} eV"
            )


def select_bands(means: Floats, count: int) -> Integers:
    """Which bands make a sample: the ``count`` with the smallest absolute mean, sorted by mean, lowest first.

    Parameters
    ----------
    means
        (n,) means of E - E_F over the grid, eV, spin channels pooled.
    count
        Bands wanted; all are taken where there are fewer.

    Returns
    -------
    Indices into ``means``. Equal means keep the order of the bands.

    Notes
    -----
    The rule is that of the published data set of BNAS (SuperBand), 18 bands.
    """
    nearest = np.sort(np.argsort(np.abs(means), kind="stable")[:count])
    return nearest[np.argsort(means[nearest], kind="stable")]


def _obeyed(points: IntegerKpoints, group: Integers, energies: Floats) -> Integers:
    """The rotations of ``group`` under which (n_bands, n_k) energies agree wherever point and image are both listed."""
    codes = points.codes(points.points)
    order = np.argsort(codes, kind="stable")
    images = points.images(group)
    places = order[np.minimum(np.searchsorted(codes, images, sorter=order), len(codes) - 1)]
    listed = codes[places] == images
    kept = [
        rotation
        for rotation, place, here in zip(group, places, listed, strict=True)
        if np.abs(energies[:, place[here]] - energies[:, here]).max(initial=0) <= SAME_ENERGY_EV
    ]
    return _largest_group(kept) if len(kept) < len(group) else group


def _largest_group(allowed: Sequence[Integers]) -> Integers:
    """A group of rotations, with inversion, within those allowed: points that are not listed tell of no breach."""
    inversion = np.stack([np.eye(3, dtype=np.int64), -np.eye(3, dtype=np.int64)])
    names = {rotation.tobytes() for rotation in allowed}
    group = inversion
    for rotation in allowed:
        grown = _closure(np.concatenate([group, rotation[None], -rotation[None]]))
        if all(member.tobytes() in names for member in grown):
            group = grown
    return group


def _closure(rotations: Integers) -> Integers:
    """The group that the rotations generate."""
    while True:
        products = np.unique((rotations[:, None] @ rotations[None]).reshape(-1, 3, 3), axis=0)
        if len(products) == len(rotations):
            return products
        rotations = products


def _array(name: str, column: str, values: Any) -> Floats:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"Bands of {name}: {column} is not a rectangular table of numbers") from error


def _read_structure(name: str, text: str | Mapping[str, Any]) -> tuple[Floats, Floats, tuple[str, ...]]:
    """Lattice, fractional coordinates and elements out of pymatgen's JSON, with no structure object in between."""
    try:
        document = json.loads(text) if isinstance(text, str) else text
        sites = [(site["species"], site["abc"]) for site in document["sites"]]
        lattice = np.asarray(document["lattice"]["matrix"], dtype=np.float64)
        coords = np.asarray([abc for _, abc in sites], dtype=np.float64)
        if any(len(species) != 1 or abs(species[0]["occu"] - 1) > 1e-6 for species, _ in sites):
            raise InputError(f"Bands of {name}: the structure is disordered; bands belong to an ordered one")
        return lattice, coords, tuple(str(species[0]["element"]) for species, _ in sites)
    except (KeyError, IndexError, TypeError, json.JSONDecodeError) as error:
        raise InputError(f"Bands of {name}: the structure is not pymatgen's JSON ({error!r})") from error
