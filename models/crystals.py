"""From crystals to batches: arrays checked at the door, periodic neighbours, padded tensors.

Shape letters: B crystals, N atoms of the largest crystal in the batch, E pairs of neighbours.

Neighbours are found once a crystal (`graph`) by vesin and kept by the caller; `collate` only pads and stacks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from pymatgen.core import DummySpecies, Structure

from models.checkpoints import content_hash
from models.exceptions import ModelInputError

ELEMENTS = 95  # atomic numbers 1 (H) to 95 (Am) have an embedding
PADDING = 0  # stands where a crystal has no atom
MASKED = ELEMENTS + 1  # stands for an atom whose element is hidden in pre-training
MAX_ATOMS = 444  # largest cell of the published pre-training set
MIN_DISTANCE = 0.3  # angstrom; nearer atoms are one site given twice (H2 has 0.74)
OCTAVES = 2.0  # sizes that differ by less than 2 to this power share a batch
FEW_PAIRS = 20_000  # padded pairs of atoms that cost less than a second batch
BATCH_ATOMS = 1024  # atoms of a batch to predict, padding counted: enough to fill matrix products
MIN_VOLUME = 0.1  # cubic angstrom per atom; far below any solid
SYMPREC = 0.01  # angstrom; atoms that symmetry brings nearer than this onto each other are one orbit


@dataclass(frozen=True, eq=False)
class CrystalArrays:
    """A crystal as arrays.

    Attributes
    ----------
    lattice
        (3, 3) float64, cell vectors as rows, angstrom.
    atomic_numbers
        (atoms,) int64, 1 to 95.
    frac_coords
        (atoms, 3) float64, in units of the cell vectors.
    """

    lattice: np.ndarray
    atomic_numbers: np.ndarray
    frac_coords: np.ndarray

    def __len__(self) -> int:
        return len(self.atomic_numbers)

    @property
    def cartesian(self) -> np.ndarray:
        """(atoms, 3) float64, angstrom."""
        return self.frac_coords @ self.lattice


@dataclass(frozen=True, eq=False)
class CrystalGraph:
    """A crystal and its pairs of neighbours, every periodic image a pair of its own.

    Attributes
    ----------
    centres, neighbours
        (pairs,) int64, indices of atoms; each atom is also its own neighbour at distance 0.
    distances
        (pairs,) float32, angstrom, below ``cutoff``.
    multiplicity
        (atoms,) int64, atoms of the cell that each one stands for (see ``orbit_graph``); None: one each.
    """

    arrays: CrystalArrays
    centres: np.ndarray
    neighbours: np.ndarray
    distances: np.ndarray
    cutoff: float
    multiplicity: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.arrays)


@dataclass(frozen=True, eq=False)
class CrystalBatch:
    """B crystals padded to N atoms.

    Attributes
    ----------
    numbers
        (B, N) int64, atomic number, 0 where there is no atom, 96 where the element is hidden.
    positions
        (B, N, 3) float32, Cartesian, angstrom; 0 where there is no atom.
    lattices
        (B, 3, 3) float32, angstrom.
    pairs
        (E,) int64, flat index b * N * N + centre * N + neighbour; the same index stands for several images.
    distances
        (E,) float32, angstrom.
    multiplicity
        (B, N) float32, atoms of the cell that each one stands for; 0 where there is no atom.
    """

    numbers: torch.Tensor
    positions: torch.Tensor
    lattices: torch.Tensor
    pairs: torch.Tensor
    distances: torch.Tensor
    multiplicity: torch.Tensor

    @property
    def mask(self) -> torch.Tensor:
        """(B, N) bool, true where there is an atom."""
        return self.numbers != PADDING

    def pair_mask(self, radius: float = float("inf")) -> torch.Tensor:
        """(B, N, N) bool, true where any image of the second atom is within ``radius`` of the first, angstrom."""
        size, atoms = self.numbers.shape
        near = torch.zeros(size * atoms * atoms, dtype=torch.bool, device=self.pairs.device)
        near[self.pairs[self.distances < radius]] = True
        return near.view(size, atoms, atoms)

    def to(self, device: torch.device | str) -> "CrystalBatch":
        """Give the batch on a device."""
        return CrystalBatch(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


def crystal_arrays(structure: Structure, max_atoms: int = MAX_ATOMS) -> CrystalArrays:
    """Arrays of an ordered structure.

    Raises
    ------
    ModelInputError
        For no atoms, more than ``max_atoms``, partial occupancies, dummy elements, and what `check_arrays` refuses.
    """
    if len(structure) > max_atoms:
        raise ModelInputError(f"The cell has {len(structure)} atoms; at most {max_atoms} are allowed")
    if not structure.is_ordered:
        raise ModelInputError(f"{structure.formula} has sites of partial occupancy; order the crystal first")
    dummies = [str(species) for species in structure.composition if isinstance(species, DummySpecies)]
    if dummies:
        raise ModelInputError(f"{', '.join(dummies)} is a dummy element; only H to Am are allowed")
    return check_arrays(
        CrystalArrays(
            lattice=np.array(structure.lattice.matrix, dtype=np.float64),
            atomic_numbers=np.array(structure.atomic_numbers, dtype=np.int64),
            frac_coords=np.array(structure.frac_coords, dtype=np.float64).reshape(-1, 3),
        ),
        max_atoms,
    )


def check_arrays(crystal: CrystalArrays, max_atoms: int = MAX_ATOMS) -> CrystalArrays:
    """Give the crystal back if a network can take it.

    Raises
    ------
    ModelInputError
        For no atoms or too many, wrong shapes, numbers that are not finite, a cell without volume, unknown elements.
    """
    atoms = len(crystal)
    if not 1 <= atoms <= max_atoms:
        raise ModelInputError(f"The cell has {atoms} atoms; 1 to {max_atoms} are allowed")
    if crystal.lattice.shape != (3, 3) or crystal.frac_coords.shape != (atoms, 3):
        raise ModelInputError(
            f"Cell {crystal.lattice.shape} and coordinates {crystal.frac_coords.shape} must be (3, 3) and ({atoms}, 3)"
        )
    if not (np.isfinite(crystal.lattice).all() and np.isfinite(crystal.frac_coords).all()):
        raise ModelInputError("Cell vectors and coordinates must be finite numbers")
    volume = abs(np.linalg.det(crystal.lattice))
    if volume < MIN_VOLUME * atoms:
        raise ModelInputError(f"The cell has a volume of {volume:.3g} cubic angstrom for {atoms} atoms")
    wrong = np.setdiff1d(crystal.atomic_numbers, np.arange(1, ELEMENTS + 1))
    if len(wrong):
        raise ModelInputError(f"Atomic numbers {wrong.tolist()} are not between 1 and {ELEMENTS}")
    return crystal


def check_sites(crystal: CrystalArrays) -> CrystalArrays:
    """Give the crystal back unless two of its atoms stand on one site: then ModelInputError."""
    graph(crystal, 2 * MIN_DISTANCE)
    return crystal


def graph(crystal: CrystalArrays, cutoff: float) -> CrystalGraph:
    """Find all pairs of atoms of a crystal, periodic images included, that are nearer than ``cutoff`` angstrom.

    Raises
    ------
    ModelInputError
        If two atoms stand on one site.
    """
    from vesin import NeighborList

    finder = NeighborList(cutoff=cutoff, full_list=True, n_threads=1)
    centres, neighbours, distances = finder.compute(
        points=crystal.cartesian, box=crystal.lattice, periodic=True, quantities="ijd"
    )
    if len(distances) and distances.min() < MIN_DISTANCE:
        raise ModelInputError(f"Two atoms are {distances.min():.3f} angstrom apart; a site seems to be given twice")
    atoms = np.arange(len(crystal))
    centres = np.concatenate([atoms, centres.astype(np.int64)])
    neighbours = np.concatenate([atoms, neighbours.astype(np.int64)])
    distances = np.concatenate([np.zeros(len(crystal)), distances]).astype(np.float32)
    order = np.lexsort((distances, neighbours, centres))  # one order, so that sums are the same on every machine
    return CrystalGraph(crystal, centres[order], neighbours[order], distances[order], cutoff)


def orbit_graph(crystal: CrystalGraph, symprec: float = SYMPREC) -> CrystalGraph:
    """Give the crystal with one atom for each orbit of its symmetry, and the number of atoms that it stands for.

    A network that is told of an atom nothing but its periodic surroundings gives equal atoms equal embeddings, so it
    says the same of this crystal, in a fraction of the time: 45,546 atoms of S2S's crystals are 17,042 orbits.
    The atoms keep their place; cell vectors and distances are those of the whole crystal.
    """
    import spglib

    arrays = crystal.arrays
    cell = (arrays.lattice, arrays.frac_coords, arrays.atomic_numbers)
    found = spglib.get_symmetry_dataset(cell, symprec=symprec)
    if found is None:
        return crystal
    first, orbit, count = np.unique(found.crystallographic_orbits, return_inverse=True, return_counts=True)
    kept = np.isin(crystal.centres, first)
    centres, neighbours, distances = orbit[crystal.centres[kept]], orbit[crystal.neighbours[kept]], crystal.distances
    distances = distances[kept]
    order = np.lexsort((distances, neighbours, centres))
    return CrystalGraph(
        CrystalArrays(arrays.lattice, arrays.atomic_numbers[first], arrays.frac_coords[first]),
        centres[order],
        neighbours[order],
        distances[order],
        crystal.cutoff,
        count,
    )


def crystals_hash(crystals: Sequence[CrystalGraph], *targets: np.ndarray | None) -> str:
    """Hash of cells, elements and positions of crystals, and of what is learnt of them, to six decimals."""
    cells = (graph.arrays for graph in crystals)
    values = (array for cell in cells for array in (cell.lattice, cell.atomic_numbers, cell.frac_coords))
    return content_hash(*(None if target is None else np.round(target, 6) for target in targets), *values)


def collate(crystals: Sequence[CrystalGraph]) -> CrystalBatch:
    """Stack crystals into one padded batch; raises ModelInputError for an empty batch."""
    if not crystals:
        raise ModelInputError("A batch needs at least one crystal")
    sizes = np.array([len(crystal) for crystal in crystals])
    atoms = int(sizes.max())
    occupied = np.arange(atoms) < sizes[:, None]
    numbers = np.zeros(occupied.shape, dtype=np.int64)
    numbers[occupied] = np.concatenate([crystal.arrays.atomic_numbers for crystal in crystals])
    positions = np.zeros((*occupied.shape, 3), dtype=np.float32)
    positions[occupied] = np.concatenate([crystal.arrays.cartesian for crystal in crystals])
    multiplicity = np.zeros(occupied.shape, dtype=np.float32)
    multiplicity[occupied] = np.concatenate(
        [np.ones(len(c)) if c.multiplicity is None else c.multiplicity for c in crystals]
    )
    owner = np.repeat(np.arange(len(crystals)), [len(crystal.distances) for crystal in crystals])
    centres = np.concatenate([crystal.centres for crystal in crystals])
    neighbours = np.concatenate([crystal.neighbours for crystal in crystals])
    return CrystalBatch(
        numbers=torch.from_numpy(numbers),
        positions=torch.from_numpy(positions),
        lattices=torch.from_numpy(np.stack([crystal.arrays.lattice for crystal in crystals]).astype(np.float32)),
        pairs=torch.from_numpy((owner * atoms + centres) * atoms + neighbours),
        distances=torch.from_numpy(np.concatenate([crystal.distances for crystal in crystals])),
        multiplicity=torch.from_numpy(multiplicity),
    )


def collate_by_size(crystals: Sequence[CrystalGraph]) -> list[tuple[np.ndarray, CrystalBatch]]:
    """Stack crystals in a few batches of similar size, so that little is padded; small ones in a single batch.

    Returns
    -------
    list
        Pairs of positions in ``crystals`` (int64) and their batch; together they hold each crystal once.
    """
    if not crystals:
        raise ModelInputError("A batch needs at least one crystal")
    sizes = np.array([len(crystal) for crystal in crystals])
    octave = np.floor(np.log2(sizes) / OCTAVES).astype(np.int64)
    if len(sizes) * sizes.max() ** 2 <= FEW_PAIRS:
        octave[:] = 0
    parts = [np.flatnonzero(octave == value) for value in np.unique(octave)]
    return [(part, collate([crystals[index] for index in part.tolist()])) for part in parts]


def batches_by_size(crystals: Sequence[CrystalGraph], most: int = BATCH_ATOMS) -> list[np.ndarray]:
    """Rows of crystals (int64) in batches of at most ``most`` padded atoms, from small to large; each row once.

    A crystal of more atoms is a batch of its own.
    """
    sizes = np.array([len(crystal) for crystal in crystals], dtype=np.int64)
    order = np.argsort(sizes, kind="stable")
    starts = [0]
    for place, size in enumerate(sizes[order]):
        if place > starts[-1] and (place - starts[-1] + 1) * size > most:
            starts.append(place)
    return np.split(order, starts[1:]) if len(order) else []
