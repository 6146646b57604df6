"""What every engine does before it calculates: checks of the crystal, grids of k points, names of jobs."""

import uuid

import numpy as np
from jobflow import Job
from pymatgen.core.structure import Structure

from tasks.exceptions import InputError

LEAST_BANDS = 18  # what a sample of BNAS holds
LEAST_DIVISIONS = 2  # k points along each axis
# Nearest sensible distance of two atoms in units of the sum of their covalent radii: bonds are near 1, H2 has 1.2.
LEAST_DISTANCE = 0.5
UNKNOWN_RADIUS = 1.6  # angstrom, of elements beyond curium


def check_crystal(structure: Structure, material_id: str) -> None:
    """Refuse what no engine can calculate.

    Raises
    ------
    InputError
        If the crystal is disordered, or two atoms are nearer than half the sum of their covalent radii.
    """
    if not structure.is_ordered:
        raise InputError(f"{material_id}: the crystal is disordered; order it first")
    from pymatgen.analysis.molecule_structure_comparator import CovalentRadius

    symbols = [site.specie.symbol for site in structure]
    radii = np.array([CovalentRadius.radius.get(symbol, UNKNOWN_RADIUS) for symbol in symbols])
    first, second, _, distances = structure.get_neighbor_list(2 * LEAST_DISTANCE * radii.max())
    near = distances < LEAST_DISTANCE * (radii[first] + radii[second])
    if near.any():
        worst = np.flatnonzero(near)[np.argmin(distances[near])]
        pair = f"{symbols[first[worst]]} and {symbols[second[worst]]}"
        raise InputError(
            f"{material_id}: {pair} are {distances[worst]:.2f} angstrom apart; "
            f"at least {LEAST_DISTANCE * (radii[first[worst]] + radii[second[worst]]):.2f} are allowed"
        )


def kpoint_grid(structure: Structure, density: float) -> list[int]:
    """Divisions of a Γ-centred grid: length of each reciprocal vector (2π included) times density, rounded up.

    ``density`` in points per inverse angstrom. Lengths are rounded to 1e-4 before, so that axes that symmetry makes
    equal get equal divisions. Al (fcc, primitive) has 13 x 13 x 13 for a density of 4.5.
    """
    lengths = np.array(structure.lattice.reciprocal_lattice.abc)
    return [max(LEAST_DIVISIONS, int(np.ceil(count))) for count in np.round(lengths * density, 4)]


def named(made: Job, step: str, key: str, metadata: dict[str, str]) -> Job:
    """Give a job its name, tags and a uuid that is the same for the same calculation."""
    made.name = f"{step} {metadata['formula']}"
    made.metadata = dict(metadata)
    made.set_uuid(str(uuid.uuid5(uuid.NAMESPACE_URL, f"{key}/{step}")))
    return made
