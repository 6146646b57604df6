"""Which atoms a picture of a crystal joins: contacts that a chemist would draw, found by radii and electronegativity.

Two atoms touch where they are nearer than ``BOND_FACTOR`` times the sum of their covalent radii (Cordero et al., Dalton
Trans. 2008, 2832, by pymatgen). Not every contact is drawn:

- One of an electropositive atom (alkali, alkaline earth, rare earth, ...) only where its partner touches nothing else:
  Na-Cl in NaCl, but neither La-B nor La-La in LaB6, neither Ba-S nor Ba-Fe in BaFe2S3.
- One of two metals that anions hold together only where it is short: Mo-Mo inside the clusters of a Chevrel phase, but
  no Fe-Fe across the sulphur of BaFe2S3.
- One of two metals only where it belongs to the first shell of either: not the cell's edges in Nb.
"""

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pymatgen.analysis.molecule_structure_comparator import CovalentRadius
from pymatgen.core import Element, Structure

BOND_FACTOR = 1.2  # atoms closer than this times the sum of their covalent radii touch
SHORT_FACTOR = 0.92  # the same for two metals that both touch anions
SHELL = 1.14  # first shell of an atom, times its nearest distance; bcc has the second at 1.155
ELECTROPOSITIVE = 1.4  # Pauling; metals below it are cations where there is anything else
ANION = 2.1  # Pauling; other elements from it on are anions
UNKNOWN_RADIUS = 1.5  # angstrom


def covalent_radii(symbols: Sequence[str]) -> NDArray[np.float64]:
    """Covalent radii in angstrom."""
    return np.array([CovalentRadius.radius.get(symbol, UNKNOWN_RADIUS) for symbol in symbols])


def bonds(structure: Structure, sites: Sequence[int], positions: NDArray) -> list[tuple[int, int]]:
    """Pairs of shown atoms to join.

    Parameters
    ----------
    sites
        (n,) index of the site that each shown atom repeats.
    positions
        (n, 3) angstrom.
    """
    symbols = [site.specie.symbol for site in structure]
    radii, metals = covalent_radii(symbols), np.array([Element(symbol).is_metal for symbol in symbols])
    electronegativity = _electronegativity(symbols)
    cations, anions = metals & (electronegativity < ELECTROPOSITIVE), ~metals & (electronegativity >= ANION)
    one, other, _, distances = structure.get_neighbor_list(2 * BOND_FACTOR * radii.max())
    touching = distances < BOND_FACTOR * (radii[one] + radii[other])
    one, other, distances = one[touching], other[touching], distances[touching]
    held = np.zeros(len(structure), dtype=bool)  # touches something that is no cation
    held[one[~cations[other]]] = True
    by_anions = np.zeros(len(structure), dtype=bool)
    by_anions[one[anions[other]]] = True
    nearest = np.full(len(structure), np.inf)  # angstrom, from a metal to the next one
    alloyed = metals[one] & metals[other]
    np.minimum.at(nearest, one[alloyed], distances[alloyed])

    shown = np.asarray(sites)
    distance = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    reach = radii[shown][:, None] + radii[shown][None]
    near = (distance > 0.1) & (distance < BOND_FACTOR * reach)
    cation = cations[shown]
    mixed = cation[:, None] != cation[None]
    partner_held = np.where(cation[:, None], held[shown][None], held[shown][:, None])
    near &= ~(mixed & partner_held)
    if not cations.all():
        near &= ~(cation[:, None] & cation[None])
    across = (by_anions & metals)[shown]
    near &= ~(across[:, None] & across[None]) | (distance < SHORT_FACTOR * reach)
    shell = SHELL * np.maximum(nearest[shown][:, None], nearest[shown][None])
    metal = metals[shown]
    near &= ~(metal[:, None] & metal[None]) | (distance < shell)
    return [(int(a), int(b)) for a, b in np.argwhere(np.triu(near))]


def _electronegativity(symbols: Sequence[str]) -> NDArray[np.float64]:
    """Pauling's, NaN where there is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pymatgen tells of argon and others
        return np.array([Element(symbol).X for symbol in symbols])
