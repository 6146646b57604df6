"""Where E_F stands among the bands of a grid, told by the densities of states and by the points of its Fermi surface.

SuperBand subtracts E_F from the bands of most materials but not of those with few, and writes E_F nowhere. Two things
in its file are relative to E_F in any case: the energies of the densities, and the Fermi surface itself.
"""

from dataclasses import dataclass

import numpy as np

from tasks.kpoints import Floats

STEP_EV = 0.05  # between the values of E_F that are tried
SMEAR_EV = 0.15  # of the histogram and the densities, standard deviation
SAME_LEVEL_EV = 0.5  # two values of E_F this near are one answer; also within this of 0, E_F counts as subtracted
LEAST_OVERLAP = 0.6  # of histogram and densities at the best E_F, 1 if proportional
RIVAL_OVERLAP = 0.9  # of the best: what another E_F may reach at most
MOST_MISFIT = 0.3  # mean distance of the nearest band from E_F at the Fermi surface, over that at all k points
RIVAL_MISFIT = 2.0  # times the best: what another E_F must miss by at least
MOST_POINTS = 2000  # of a Fermi surface; evenly taken from more


@dataclass(frozen=True)
class FermiEvidence:
    """E_F on the scale of the bands as they are written, eV, by each witness; None where it cannot tell."""

    by_densities: float | None
    by_surface: float | None

    @property
    def contradictory(self) -> bool:
        """Whether both tell, and tell of different levels."""
        if self.by_densities is None or self.by_surface is None:
            return False
        return abs(self.by_densities - self.by_surface) > SAME_LEVEL_EV

    @property
    def level(self) -> float | None:
        """The surface's value, which is the finer one, else the densities', else None; None if they contradict."""
        if self.contradictory:
            return None
        return self.by_densities if self.by_surface is None else self.by_surface


def find_level_by_densities(bands: Floats, energies: Floats, densities: Floats, complete: bool) -> float | None:
    """E_F that brings the histogram of the bands onto the densities of states.

    Parameters
    ----------
    bands
        (n_bands, m, m, m) eV on a scale of their own.
    energies
        (n,) eV relative to E_F, ascending.
    densities
        (n,) densities of states, any unit, all orbitals together.
    complete
        Whether the bands are all that the calculation had. If not, only the window that they cover is compared.

    Returns
    -------
    E_F on the scale of the bands; None if no level fits, or more than one does.

    Notes
    -----
    The measure is the cosine of the angle between the two curves, both smeared by 0.15 eV.
    """
    axis = np.arange(energies[0], energies[-1] + STEP_EV, STEP_EV)
    density = _smear(np.interp(axis, energies, densities))
    if len(axis) < 10 or not density.max() > 0:
        return None
    low, high = float(bands.min()), float(bands.max())
    edges = np.arange(low - 5 * SMEAR_EV, high + 5 * SMEAR_EV + STEP_EV, STEP_EV)
    histogram = _smear(np.histogram(bands, edges)[0].astype(np.float64))
    centres = (edges[:-1] + edges[1:]) / 2
    # at least half the width of the bands must lie on the axis of the densities
    levels = np.arange((low + high) / 2 - axis[-1], (low + high) / 2 - axis[0], STEP_EV)
    scores = np.zeros(len(levels))
    for i, level in enumerate(levels):
        moved = np.interp(axis + level, centres, histogram, left=0, right=0)
        window = slice(None) if complete else (axis + level >= low) & (axis + level <= high)
        norms = np.linalg.norm(moved[window]) * np.linalg.norm(density[window])
        held = moved.sum() / histogram.sum()  # what falls off the axis counts against the level
        scores[i] = held * (moved[window] @ density[window]) / norms if norms > 0 else 0
    best = int(scores.argmax())
    others = scores[np.abs(levels - levels[best]) > SAME_LEVEL_EV]
    if scores[best] < LEAST_OVERLAP or others.max(initial=0) > RIVAL_OVERLAP * scores[best]:
        return None
    return float(levels[best])


def find_level_by_surface(bands: Floats, points: Floats, reciprocal: Floats) -> float | None:
    """E_F at which every point of the Fermi surface lies on some band.

    Parameters
    ----------
    bands
        (n_bands, m, m, m) eV at k_i = i / m (fractional), on a scale of their own.
    points
        (n, 3) points of the Fermi surface, Cartesian, in the unit of ``reciprocal``.
    reciprocal
        (3, 3) reciprocal lattice vectors as rows.

    Returns
    -------
    E_F on the scale of the bands; None if no level fits, or more than one does.
    """
    from scipy.ndimage import map_coordinates

    if not len(points) or abs(np.linalg.det(reciprocal)) < 1e-9:
        return None
    chosen = points[:: -(-len(points) // MOST_POINTS)]
    places = (chosen @ np.linalg.inv(reciprocal)).T * bands.shape[1]
    found = np.stack([map_coordinates(band, places, order=1, mode="grid-wrap") for band in bands])
    levels = np.arange(found.min(), found.max() + STEP_EV, STEP_EV / 2)
    everywhere = bands.reshape(len(bands), -1)[:, :: -(-bands[0].size // MOST_POINTS)]
    # over the misfit at all points, since a flat band lies near its own energy everywhere
    misfits = np.array([_distance(found, level) / max(_distance(everywhere, level), 1e-6) for level in levels])
    best = int(misfits.argmin())
    others = misfits[np.abs(levels - levels[best]) > SAME_LEVEL_EV]
    if misfits[best] > MOST_MISFIT or others.min(initial=np.inf) < RIVAL_MISFIT * misfits[best]:
        return None
    nearest = np.abs(found - levels[best]).argmin(axis=0)
    return float(np.median(found[nearest, np.arange(found.shape[1])]))


def _distance(energies: Floats, level: float) -> float:
    """Mean over points of the distance of the nearest of (n_bands, n_points) energies from the level, eV."""
    return float(np.abs(energies - level).min(axis=0).mean())


def _smear(values: Floats) -> Floats:
    """Values at every ``STEP_EV``, smeared by a Gaussian."""
    from scipy.ndimage import gaussian_filter1d

    return np.asarray(gaussian_filter1d(values, SMEAR_EV / STEP_EV, mode="constant"))
