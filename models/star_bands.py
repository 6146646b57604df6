"""Bands of one material as sums of stars of plane waves.

A star is the set of lattice vectors that symmetry makes of one; a band is the sum over stars of a coefficient times
the star's mean plane wave (Shankland, Koelling and Wood, Int. J. Quantum Chem. 5, 497 (1971)). A few hundred
coefficients a band say all that a grid of 32 x 32 x 32 energies does.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class StarBands:
    """The bands of one material.

    Attributes
    ----------
    rotations
        (n_rotations, 3, 3) integers acting on lattice vectors in units of the primitive ones; -1 among them.
    stars
        (n_stars, 3) integers, one lattice vector of each star.
    coefficients
        (n_bands, n_stars) float32, eV relative to E_F.
    first_band
        Channel of the first band in a sample; the channels around the bands are zero.
    """

    rotations: NDArray[np.integer]
    stars: NDArray[np.integer]
    coefficients: NDArray[np.float32]
    first_band: int = 0
