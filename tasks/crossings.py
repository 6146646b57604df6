"""Bands interpolated as a model Hamiltonian plus a smooth rest, which keeps the kinks of sorted bands where they cross.

Sorted bands have kinks at crossings, and star functions smear them. A model that is fitted to the coarse energies
crosses in nearly the same places; star functions then interpolate only the difference, so that the result still goes
through every coarse energy. A band for which left-out k points say that the model does not help stays as it was.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np
import numpy.typing as npt

from tasks.interpolation import NearestBands, fit_bands, fit_smoothly
from tasks.kpoints import Floats, IntegerKpoints, Integers
from tasks.model_hamiltonian import FitData, ModelHamiltonian
from tasks.uniform_bands import UniformBands

GAPS_EV = (8.0, 2.0)  # bands below a gap this wide are left to the star functions; both are tried
GAP_BELOW_EV = -5.0  # relative to E_F
FITTED_EV = 8.0  # bands that reach below this energy are fitted
NEAR_EV, WIDE_EV = 3.5, 7.0  # full weight within the first, little beyond the second
WIDE_SHARE, FAR_SHARE = 0.2, 0.03
STARTS = 16  # in a round
KEPT = 4  # of them, fitted further
GOOD_EV = (0.03, 0.03, 0.05, np.inf)  # root mean square miss that ends the search, after each round
FEW_POINTS, MOST_POINTS = 16, 80  # coarse k points that the search and the last fit look at
FEW_RIDGE, SOME_RIDGE, LAST_RIDGE = 1e-2, 1e-3, 1e-4  # eV^2; see FitData.fit
FOLDS = 4
CLEAR = 0.8  # a model must bring the sum of squares at left-out points below this share
LEAST_POINTS = 8  # inequivalent coarse k points without which no model is fitted
MOST_WORK = 8e8  # inequivalent fine k points times size of the Hamiltonian cubed: some 25 CPU seconds


@dataclass(frozen=True, eq=False)
class _Coarse:
    """Inequivalent coarse k points of one spin channel; energies (n_bands, n_k) relative to E_F."""

    points: Integers
    modulus: int
    shares: Floats
    energies: Floats

    @property
    def fractional(self) -> Floats:
        return self.points / self.modulus


@dataclass(frozen=True, eq=False)
class _Fitted:
    """A fitted model: its lowest band is band ``first`` of the channel; ``listed`` are the k points in ``data``."""

    model: ModelHamiltonian
    first: int
    listed: Integers
    data: FitData
    values: Floats

    @property
    def count(self) -> int:
        return self.data.energies.shape[1]

    def energies(self, kpoints: Floats, numbers: Integers) -> Floats:
        """(n, n_k) the model's energies of some bands of the channel."""
        return self.model.energies(kpoints, self.values, self.count).T[numbers - self.first]

    def without(self, left_out: Integers) -> "_Fitted":
        """The same model fitted without some coarse k points."""
        kept = np.flatnonzero(~np.isin(self.listed, left_out))
        data = self.data.part(kept)
        values, _ = data.fit(self.values, self.model.spreads, LAST_RIDGE, 4, self.values)
        return _Fitted(self.model, self.first, self.listed[kept], data, values)


def interpolate_crossings(
    bands: UniformBands, count: int, mesh: Sequence[int], star_ratio: float
) -> tuple[Floats, Integers, float]:
    """The bands nearest E_F on a mesh, crossings kept; parameters as in ``interpolate_bands``.

    Returns its result, and the estimated error as ``NearestBands.error_ev``.

    The same numbers come out each time, for the starts of the search are drawn with a fixed seed. Crystals of low
    symmetry and large cells, where a model would take too long, get the plain interpolant.

    Raises
    ------
    InputError
        As ``interpolate_bands``. A model that does not help is no error.
    """
    found = fit_bands(bands, count, mesh, star_ratio)
    energies, left_out = found.fit.on_mesh(mesh), found.fit.left_out.copy()
    numbers, leaders = _mesh_stars(mesh, found.rotations)
    model = ModelHamiltonian(bands.lattice, bands.coords, bands.species)
    if len(leaders) * (len(model.waves(np.zeros(3))) + model.n_orbitals) ** 3 > MOST_WORK:
        return energies, found.rows, found.error_ev()
    for spin in range(bands.energies.shape[0]):
        mine = np.flatnonzero(found.rows // bands.energies.shape[1] == spin)
        coarse = _inequivalent(bands, spin, found.rotations)
        if not len(mine) or len(coarse.points) < LEAST_POINTS:
            continue
        mine = mine[np.argsort(found.rows[mine])]
        of_spin = found.rows[mine] - spin * bands.energies.shape[1]
        best = _search(model, coarse)
        modelled = (of_spin >= best.first) & (of_spin < best.first + best.count)
        modelled[modelled] = _helps(best, bands, found, coarse, of_spin[modelled], star_ratio)
        if not modelled.any():
            continue
        chosen = of_spin[modelled]
        rest = coarse.energies[chosen] - best.energies(coarse.fractional, chosen)
        fit, _ = fit_smoothly(bands.lattice, found.rotations, coarse.points, coarse.modulus, rest, star_ratio)
        on_fine = best.energies(leaders, chosen)[:, numbers].reshape(-1, *mesh)
        energies[mine[modelled]] = fit.on_mesh(mesh) + on_fine
        energies[mine] = np.sort(energies[mine], axis=0)
        left_out[mine[modelled]] = fit.left_out
    return energies, found.rows, found.error_ev(left_out)


def _inequivalent(bands: UniformBands, spin: int, rotations: Integers) -> _Coarse:
    """Means over equivalent k points, in an order that does not depend on the list's."""
    points = IntegerKpoints.from_fractional(bands.kpoints, bands.grid)
    numbers, leaders = points.stars(rotations)
    order = np.argsort(points.codes(points.points), kind="stable")
    listed = bands.energies[spin][:, order] - bands.efermi
    sums = np.stack([np.bincount(numbers[order], weights=band) for band in listed])
    shares = np.bincount(numbers[order], weights=bands.weights[order])
    return _Coarse(leaders, points.modulus, shares / shares.sum(), sums / np.bincount(numbers))


def _mesh_stars(mesh: Sequence[int], rotations: Integers) -> tuple[Integers, Floats]:
    """Star of each point of the mesh, and one fractional k point of each star."""
    divisions = np.array(mesh)
    points = np.stack(np.meshgrid(*[np.arange(n) for n in mesh], indexing="ij"), axis=-1).reshape(-1, 3)
    whole = IntegerKpoints.from_fractional(points / divisions, divisions)
    numbers, leaders = whole.stars(rotations)
    return numbers, leaders / whole.modulus


def _weights(energies: Floats) -> Floats:
    """How much an energy matters, by its distance from E_F."""
    far = np.abs(energies)
    return np.where(far < NEAR_EV, 1.0, np.where(far < WIDE_EV, WIDE_SHARE, FAR_SHARE))


def _first_bands(energies: Floats) -> list[int]:
    """Where the bands may begin that a model describes: above the highest gap of each width, or at the bottom."""
    below = energies[:-1].max(axis=1)
    gaps = energies[1:].min(axis=1) - below
    return [int(np.flatnonzero((gaps > gap) & (below < GAP_BELOW_EV)).max(initial=-1)) + 1 for gap in GAPS_EV]


def _search(model: ModelHamiltonian, coarse: _Coarse) -> _Fitted:
    """The best fit of rounds of random starts, which end when one is good."""
    random = np.random.default_rng(0)
    listed = random.permutation(len(coarse.points))[:MOST_POINTS]
    whole = FitData.at(model, coarse.fractional[listed], coarse.energies.T[listed], np.ones((len(listed), 1)))
    ranges = []
    for first in _first_bands(coarse.energies):
        wanted = coarse.energies[first:, listed]
        wanted = wanted[wanted.min(axis=1) < FITTED_EV].T
        ranges.append((first, whole.target(wanted, coarse.shares[listed, None] * _weights(wanted))))
    likely, other = ranges
    best = []
    for good in GOOD_EV:
        tried = []
        for (first, data), _ in zip(cycle([likely, likely, likely, other]), range(STARTS), strict=False):
            start = _start(model, float(data.energies.min()), random)
            few = data.part(np.arange(min(FEW_POINTS, len(listed))))
            values, miss = few.fit(start, model.spreads, FEW_RIDGE, 8, start)
            tried.append((miss, first, data, few, values, start))
        for _, first, data, few, values, start in sorted(tried, key=lambda one: one[0])[:KEPT]:
            better, miss = few.fit(values, model.spreads, SOME_RIDGE, 20, start)
            best.append((miss, first, data, better, start))
        best = sorted(best, key=lambda one: one[0])[:1]
        if best[0][0] < good:
            break
    _, first, data, values, start = best[0]
    values, _ = data.fit(values, model.spreads, LAST_RIDGE, 40, start)
    return _Fitted(model, first, listed, data, values)


def _start(model: ModelHamiltonian, bottom: float, random: np.random.Generator) -> Floats:
    """Free electrons that begin near the lowest band, weak potentials, and orbitals above that mix strongly."""
    values = np.zeros(len(model.parameters))
    values[0] = 1.0
    high = random.random() < 0.5
    constant = (bottom + random.uniform(0, 10)) / len(model.species)
    for i, parameter in enumerate(model.parameters):
        compact = parameter.kind in ("level", "mixing") and parameter.numbers[0] >= 2  # d and f
        if parameter.kind == "local":
            values[i] = constant if parameter.numbers[0] == 0 else 0.15 * parameter.spread * random.normal()
        elif parameter.kind == "level":
            values[i] = random.uniform(*((0, 8) if compact else (8, 35) if high else (0, 25)))
        elif parameter.kind == "mixing" and parameter.numbers[1] == 0:
            values[i] = random.uniform(*((3, 9) if compact else (6, 18) if high else (2, 14)))
    return values


def _helps(
    best: _Fitted, bands: UniformBands, found: NearestBands, coarse: _Coarse, numbers: Integers, star_ratio: float
) -> npt.NDArray[np.bool_]:
    """Whether each band comes clearly nearer to left-out energies with the model than without."""
    folds = np.random.default_rng(1).permutation(len(coarse.points)) % FOLDS
    plain = coarse.energies[numbers]
    weights = coarse.shares * _weights(plain)
    sums = np.zeros((2, len(numbers)))
    for fold in range(FOLDS):
        kept, out = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        both = np.concatenate([plain, plain - best.without(out).energies(coarse.fractional, numbers)])
        fit, _ = fit_smoothly(
            bands.lattice, found.rotations, coarse.points[kept], coarse.modulus, both[:, kept], star_ratio
        )
        squares = (fit.at(coarse.points[out], coarse.modulus) - both[:, out]) ** 2
        sums += (squares.reshape(2, len(numbers), -1) * weights[:, out]).sum(axis=2)
    return np.asarray(sums[1] < CLEAR * sums[0])
