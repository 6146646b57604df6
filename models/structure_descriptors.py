"""Descriptors of a crystal for gradient boosting: symmetry, packing, bonds between kinds of elements, their dimension.

They depend on the crystal and not on its description: on no choice of origin, orientation, cell vectors, supercell or
order of the atoms. Sizes are counted in the primitive cell that spglib finds. Two atoms are bonded where they are
nearer than ``BONDED`` times the sum of their covalent radii (Cordero et al., Dalton Trans. 2008, 2832, by pymatgen).
The dimension of a network of bonds is the rank of the translations that it connects (Larsen et al., Phys. Rev.
Materials 3, 034003 (2019)).
"""

import functools
from itertools import combinations_with_replacement

import numpy as np

from models.composition_descriptors import UNITS, WORDS, element_properties, property_names
from models.crystals import CrystalArrays

SYMPREC = 0.05  # angstrom; tolerance of the symmetry
CUTOFF = 6.0  # angstrom; no bond is longer
BONDED = (1.15, 1.3)  # bond lengths in units of the sum of covalent radii
WIDTH = 0.07  # of the soft edge of a neighbour, in the same units
UNKNOWN_RADIUS = 1.5  # angstrom; where there is no covalent radius
KINDS = ("alkaline", "rare earth", "transition metal", "other metal", "metalloid", "hydrogen", "pnictogen", "oxygen",
         "chalcogen", "halogen")  # fmt: skip
NAMED = {  # the other elements are told apart by pymatgen
    "hydrogen": "H",
    "metalloid": "B C Si Ge",
    "pnictogen": "N P As",
    "oxygen": "O",
    "chalcogen": "S Se Te",
    "halogen": "F Cl Br I At He Ne Ar Kr Xe Rn",
}
SITE_STATISTICS = ("mean", "deviation of", "least", "largest")
LOCAL = ("Electronegativity", "MendeleevNumber", "CovalentRadius", "NValence", "NdValence", "NpUnfilled", "MeltingT")


def structure_descriptors(crystal: CrystalArrays) -> np.ndarray:
    """(descriptors,) float64 of a crystal, in the order of ``descriptor_names``; NaN where one has no meaning."""
    bonds = _Bonds(crystal)
    return np.concatenate(
        [_symmetry(crystal), _packing(crystal), bonds.lengths(), bonds.coordination(), bonds.kinds(), bonds.contacts(),
         bonds.dimensions()]
    )  # fmt: skip


@functools.cache
def descriptor_names() -> tuple[str, ...]:
    """Names of the descriptors."""
    names = ["ln(sites)", "ln(symmetry operations)", "space group", "crystal system", "centre of inversion",
             "ln(orbits)", "orbits a site", "orbits an element", "shortest cell vector", "middle cell vector",
             "longest cell vector", "longest by shortest cell vector"]  # fmt: skip
    names += ["volume an atom", "density", "share of spheres", "volume by that of the elements"]
    sites = [f"distance to the nearest neighbour{by}" for by in ("", " by radii")] + ["coordination number"]
    for name in LOCAL:
        sites += [f"difference of {WORDS[name]} to neighbours", f"{WORDS[name]} of neighbours"]
    names += [f"{statistic} {what}" for what in sites for statistic in SITE_STATISTICS]
    pairs = list(combinations_with_replacement(KINDS, 2))
    names += [f"bonds {one} - {other}" for one, other in pairs]
    names += [f"coordination of {kind}" for kind in KINDS] + [f"nearest {kind} to {kind}" for kind in KINDS]
    names += [f"{end} dimension, bonds up to {factor} radii" for factor in BONDED for end in ("least", "largest")]
    return tuple(names)


def descriptor_units() -> dict[str, str]:
    """Units of the descriptors that have one, by name."""
    units = {f"{which} cell vector": "Å" for which in ("shortest", "middle", "longest")}
    units |= {"volume an atom": "Å³", "density": "g/cm³"} | {f"nearest {kind} to {kind}": "Å" for kind in KINDS}
    sites = {"distance to the nearest neighbour": "Å"}
    for name in LOCAL:
        if name in UNITS:
            sites[f"difference of {WORDS[name]} to neighbours"] = sites[f"{WORDS[name]} of neighbours"] = UNITS[name]
    return units | {f"{statistic} {what}": unit for what, unit in sites.items() for statistic in SITE_STATISTICS}


@functools.cache
def _radii() -> np.ndarray:
    from pymatgen.analysis.molecule_structure_comparator import CovalentRadius
    from pymatgen.core import Element

    found = [CovalentRadius.radius.get(Element.from_Z(z).symbol, UNKNOWN_RADIUS) for z in range(1, 96)]
    return np.array([UNKNOWN_RADIUS, *found])


@functools.cache
def _kind_of() -> np.ndarray:
    """(96,) int64 number in KINDS by atomic number."""
    from pymatgen.core import Element

    found = [0]
    for number in range(1, 96):
        element = Element.from_Z(number)
        kind = "transition metal" if element.is_transition_metal else "other metal"
        if element.is_alkali or element.is_alkaline:
            kind = "alkaline"
        if element.is_rare_earth or element.is_actinoid:
            kind = "rare earth"
        named = (name for name, symbols in NAMED.items() if element.symbol in symbols.split())
        found.append(KINDS.index(next(named, kind)))
    return np.array(found)


def _symmetry(crystal: CrystalArrays) -> np.ndarray:
    import spglib

    cell = (crystal.lattice, crystal.frac_coords, crystal.atomic_numbers)
    primitive = spglib.find_primitive(cell, symprec=SYMPREC) or cell
    found = spglib.get_symmetry_dataset(primitive, symprec=SYMPREC)
    sites, elements = len(primitive[2]), len(np.unique(crystal.atomic_numbers))
    reduced = spglib.niggli_reduce(primitive[0])
    lengths = np.sort(np.linalg.norm(primitive[0] if reduced is None else reduced, axis=1))
    shape = [*lengths, lengths[2] / lengths[0]]
    if found is None:
        return np.array([np.log(sites), 0, 1, 1, 0, np.log(sites), 1, sites / elements, *shape])
    rotations = np.unique(found.rotations, axis=0)
    centre = float((rotations == -np.eye(3, dtype=rotations.dtype)).all(axis=(1, 2)).any())
    orbits = len(np.unique(found.crystallographic_orbits))
    system = int(np.searchsorted([2, 15, 74, 142, 167, 194], found.number)) + 1
    counts = [np.log(orbits), orbits / sites, orbits / elements]
    return np.array([np.log(sites), np.log(len(rotations)), found.number, system, centre, *counts, *shape])


def _packing(crystal: CrystalArrays) -> np.ndarray:
    from pymatgen.core import Element

    volume = abs(np.linalg.det(crystal.lattice))
    numbers = crystal.atomic_numbers
    mass = sum(float(Element.from_Z(int(z)).atomic_mass) for z in numbers)
    spheres = (4 / 3 * np.pi * _radii()[numbers] ** 3).sum()
    elemental = element_properties()[numbers, property_names().index("GSvolume_pa")].sum()
    return np.array([volume / len(numbers), 1.66053907 * mass / volume, spheres / volume, volume / elemental])


def _four(values: np.ndarray) -> list[float]:
    return [values.mean(), values.std(), values.min(), values.max()]


class _Bonds:
    """Neighbours of a crystal with soft weights."""

    def __init__(self, crystal: CrystalArrays) -> None:
        from vesin import NeighborList

        finder = NeighborList(cutoff=CUTOFF, full_list=True, n_threads=1)
        self.one, self.other, self.shifts, self.distances = finder.compute(
            points=crystal.cartesian, box=crystal.lattice, periodic=True, quantities="ijSd"
        )
        self.one, self.other = self.one.astype(np.int64), self.other.astype(np.int64)
        self.numbers = crystal.atomic_numbers
        self.count = len(self.numbers)
        radii = _radii()[self.numbers]
        self.relative = self.distances / (radii[self.one] + radii[self.other])
        self.weights = 1 / (1 + np.exp((self.relative - BONDED[1]) / WIDTH))
        self.kind = _kind_of()[self.numbers]

    def lengths(self) -> np.ndarray:
        """Distance of the nearest atom in angstrom and by radii, over the atoms."""
        found = []
        for values in (self.distances, self.relative):
            nearest = np.full(self.count, CUTOFF if values is self.distances else 2.0)
            np.minimum.at(nearest, self.one, values)
            found += _four(nearest)
        return np.array(found)

    def coordination(self) -> np.ndarray:
        """Soft coordination numbers, and how an atom differs from its neighbours, over the atoms."""
        total = np.bincount(self.one, self.weights, minlength=self.count)
        found = _four(total)
        safe = np.maximum(total, 1e-9)
        for name in LOCAL:
            column = element_properties()[self.numbers, property_names().index(name)].astype(np.float64)
            away = np.abs(column[self.one] - column[self.other])
            for values in (away, column[self.other]):
                found += _four(np.bincount(self.one, self.weights * values, minlength=self.count) / safe)
        return np.array(found)

    def kinds(self) -> np.ndarray:
        """Share of each pair of kinds among the bonds."""
        size = len(KINDS)
        flat = np.bincount(self.kind[self.one] * size + self.kind[self.other], self.weights, minlength=size * size)
        square = flat.reshape(size, size) / max(flat.sum(), 1e-9)
        square = square + square.T - np.diag(np.diag(square))
        return square[np.triu_indices(size)]

    def contacts(self) -> np.ndarray:
        """Mean coordination of each kind, and the shortest distance between two atoms of it."""
        size = len(KINDS)
        atoms = np.bincount(self.kind, minlength=size).astype(np.float64)
        own = np.bincount(self.kind[self.one], self.weights, minlength=size)
        mean = np.divide(own, atoms, out=np.full(size, np.nan), where=atoms > 0)
        nearest = np.full(size, np.nan)
        same = self.kind[self.one] == self.kind[self.other]
        for number in np.unique(self.kind):
            chosen = same & (self.kind[self.one] == number)
            nearest[number] = self.distances[chosen].min() if chosen.any() else CUTOFF
        return np.concatenate([mean, nearest])

    def dimensions(self) -> np.ndarray:
        """Smallest and largest dimension among the networks of bonds, for each bond length."""
        found: list[float] = []
        for factor in BONDED:
            values = self._dimensions(self.relative < factor)
            found += [min(values), max(values)]
        return np.array(found)

    def _dimensions(self, bonded: np.ndarray) -> list[int]:
        near: list[list[tuple[int, np.ndarray]]] = [[] for _ in range(self.count)]
        for one, other, shift in zip(self.one[bonded], self.other[bonded], self.shifts[bonded], strict=True):
            near[one].append((other, shift))
        place: list[np.ndarray | None] = [None] * self.count
        found = []
        for start in range(self.count):
            if place[start] is not None:
                continue
            place[start] = np.zeros(3, dtype=np.int64)
            waiting, loops = [start], {(0, 0, 0)}
            while waiting:
                one = waiting.pop()
                for other, shift in near[one]:
                    there = place[one] + shift
                    if place[other] is None:
                        place[other] = there
                        waiting.append(other)
                    else:
                        loops.add(tuple((there - place[other]).tolist()))
            found.append(int(np.linalg.matrix_rank(np.array(list(loops)))))
        return found
