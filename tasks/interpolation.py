"""Star-function interpolation of bands, evaluated on any mesh by one Fourier transform a band.

The interpolant is that of Shankland, Koelling and Wood: of all sums of symmetric plane waves ("stars" of lattice
vectors) that go through the given energies the smoothest one, by the roughness that Pickett, Krakauer and Allen gave
(Phys. Rev. B 38, 2721 (1988)), as in BoltzTraP2 (doi:10.1016/j.cpc.2018.05.010). The numbers are those of
BoltzTraP2's ``fitde3D``; here they are found in real arithmetic, and phases of lattice vectors that agree modulo the
coarse grid are computed once, which is several times faster.

On a mesh k_i = i / n a plane wave exp(2 pi i k.R) depends on R modulo n only, so the coefficients are folded onto the
mesh and transformed: the interpolant itself at the points wanted, with no resizing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from models.star_bands import StarBands
from tasks.exceptions import InputError
from tasks.kpoints import Floats, Integers
from tasks.uniform_bands import UniformBands, select_bands

ROUGHNESS = (0.75, 0.75)  # C1 and C2 of Pickett, Krakauer and Allen, as in BoltzTraP2
MARGIN = 4  # bands fitted beyond those wanted, since means on the coarse and the fine grid differ
EXACT_EV = 1e-4  # largest miss of the interpolant at a coarse k point
NEAR_EV = 3.0  # energies nearer to E_F than this make the estimated error
LEFT_OUT_RATIO = 2.9  # 2.5 to 3.6 for Al, Nb, MgB2 and NbN on two grids each, against direct DFT (docs/grids.md)
MAX_DOUBLINGS = 3  # of the number of stars, where a miss is larger


@dataclass(frozen=True, eq=False)
class StarFit:
    """Fitted bands as plane waves.

    Attributes
    ----------
    vectors
        (n_vectors, 3) lattice vectors in units of the primitive ones.
    star
        (n_vectors,) star that each vector belongs to.
    coefficients
        (n_bands, n_stars) real, eV: a band is the sum over stars of coefficient times the mean plane wave of the star.
    left_out
        (n_bands, n_k) eV: what the fit through all other k points misses at each of those it goes through.
    """

    vectors: Integers
    star: Integers
    coefficients: Floats
    left_out: Floats

    def on_mesh(self, mesh: Sequence[int]) -> Floats:
        """Energies (n_bands, n_1, n_2, n_3) in eV on the k points (i / n_1, j / n_2, l / n_3), float64."""
        from scipy import fft

        waves = self._folded(tuple(mesh))
        half = waves[..., : mesh[2] // 2 + 1]  # E(k) = E(-k): the folded waves are real and even
        return np.asarray(fft.irfftn(half, s=tuple(mesh), axes=(1, 2, 3), norm="forward", workers=1))

    def at(self, points: Integers, modulus: int) -> Floats:
        """Energies (n_bands, n_k) in eV at (n_k, 3) k points, fractional coordinates times ``modulus``."""
        return np.asarray(self.coefficients @ _mean_waves(self.vectors, self.star, points, modulus).T)

    def means(self, mesh: Sequence[int]) -> Floats:
        """(n_bands,) mean of each band over the mesh, from the coefficients alone."""
        constant = (self.vectors % np.asarray(mesh) == 0).all(axis=1)
        shares = np.bincount(self.star, weights=constant, minlength=self.coefficients.shape[1])
        return np.asarray(self.coefficients @ (shares / np.bincount(self.star)))

    def _folded(self, mesh: tuple[int, ...]) -> Floats:
        """(n_bands, *mesh) sums of the plane-wave coefficients whose vectors agree modulo the mesh."""
        places = np.ravel_multi_index(tuple((self.vectors % np.asarray(mesh)).T), mesh)
        waves = (self.coefficients / np.bincount(self.star))[:, self.star]
        size = int(np.prod(mesh))
        folded = [np.bincount(places, weights=wave, minlength=size) for wave in waves]
        return np.stack(folded).astype(np.float64).reshape(-1, *mesh)


@dataclass(frozen=True, eq=False)
class NearestBands:
    """The bands nearest E_F, sorted by mean.

    Attributes
    ----------
    fit
        Of these bands alone.
    rows
        (n_bands,) which bands of ``UniformBands.pooled`` they are.
    rotations
        (n, 3, 3) integers, acting on lattice vectors, that make each star of one vector.
    coarse
        (n_bands, n_k) eV relative to E_F, what the fit goes through.
    shares
        (n_k,) part of the coarse grid that each of these k points stands for.
    """

    fit: StarFit
    rows: Integers
    rotations: Integers
    coarse: Floats
    shares: Floats

    def error_ev(self, left_out: Floats | None = None) -> float:
        """Estimated root mean square error between the coarse points, of energies within 3 eV of E_F, in eV.

        From what is missed at each coarse point by a fit without it (or ``left_out``, of another fit). That is
        ``LEFT_OUT_RATIO`` times too much, since the other points are further away there than from a point of the finer
        mesh. Without an energy in the window, all count.
        """
        missed = self.fit.left_out if left_out is None else left_out
        weights = np.where(np.abs(self.coarse) <= NEAR_EV, self.shares, 0.0)
        weights = weights if weights.any() else np.broadcast_to(self.shares, missed.shape)
        return float(np.sqrt(np.average(missed**2, weights=weights))) / LEFT_OUT_RATIO

    def some(self, numbers: Integers) -> "NearestBands":
        """Only these of the bands, in this order."""
        fit = replace(self.fit, coefficients=self.fit.coefficients[numbers], left_out=self.fit.left_out[numbers])
        return replace(self, fit=fit, rows=self.rows[numbers], coarse=self.coarse[numbers])

    def star_bands(self, first_band: int = 0) -> StarBands:
        """The coefficients for storage, float32."""
        leaders = np.unique(self.fit.star, return_index=True)[1]
        coefficients = self.fit.coefficients.astype(np.float32)
        return StarBands(self.rotations, self.fit.vectors[leaders], coefficients, first_band)


def build_stars(lattice: Floats, rotations: Integers, count: float) -> list[Integers]:
    """Lattice vectors in stars of symmetry-equivalent ones, shortest first, the zero vector alone in the first.

    The same partition as BoltzTraP2's ``sphere.get_equivalences``, which searches the symmetry by itself at a fixed
    tolerance; here the rotations are given, so that they are those the k points were reduced with.

    Parameters
    ----------
    lattice
        (3, 3) angstrom, vectors as rows.
    rotations
        (n, 3, 3) integers acting on fractional coordinates, -1 among them.
    count
        Stars wanted, if each had as many members as there are rotations: since short ones have fewer, more come out.

    Returns
    -------
    Stars of (n_members, 3) integers, each whole.
    """
    volume = abs(np.linalg.det(lattice))
    radius = np.cbrt(3 * volume * count * len(rotations) / (4 * np.pi))
    bounds = np.floor(radius * np.linalg.norm(np.linalg.inv(lattice), axis=0)).astype(int)
    box = np.stack(np.meshgrid(*[np.arange(-b, b + 1) for b in bounds], indexing="ij"), axis=-1).reshape(-1, 3)
    inside = box[np.linalg.norm(box @ lattice, axis=1) <= radius * (1 + 1e-9)]
    base = 2 * (int(bounds.max()) + 2)
    digits = np.array([base**2, base, 1])  # a vector as one integer
    images = (digits @ rotations) @ inside.T
    leaders = np.unique(images.min(axis=0), return_index=True)[1]
    members = np.sort(images[:, leaders].T, axis=1)
    distinct = np.diff(members, axis=1, prepend=members[:, :1] - 1) > 0
    vectors = np.stack(np.unravel_index(members[distinct] + base // 2 * digits.sum(), (base,) * 3), axis=1) - base // 2
    stars = np.split(vectors, np.cumsum(distinct.sum(axis=1))[:-1])
    lengths = np.linalg.norm(inside[leaders] @ lattice, axis=1).round(6)
    return [stars[i] for i in np.argsort(lengths, kind="stable")]


def fit_stars(
    lattice: Floats, stars: Sequence[Integers], points: Integers, modulus: int, energies: Floats
) -> tuple[StarFit, float]:
    """The smoothest sum of stars through the energies.

    Parameters
    ----------
    lattice
        (3, 3) angstrom, vectors as rows.
    stars
        As from ``build_stars``.
    points
        (n_k, 3) inequivalent k points, fractional coordinates times ``modulus``; at least 2.
    energies
        (n_bands, n_k) eV.

    Returns
    -------
    The fit, and the largest miss at the given points in eV: infinite where the stars cannot tell the points apart.
    """
    vectors = np.concatenate(stars)
    star = np.repeat(np.arange(len(stars)), [len(members) for members in stars])
    waves = _mean_waves(vectors, star, points, modulus)
    lengths = np.linalg.norm(np.array([members[0] for members in stars]) @ lattice, axis=1)
    squares = (lengths[1:] / lengths[1]) ** 2
    smoothness = 1 / ((1 - ROUGHNESS[0] * squares) ** 2 + ROUGHNESS[1] * squares**3)
    weighted = waves[:, 1:] * smoothness
    count = len(points)
    system = np.zeros((count + 1, count + 1))
    system[:count, :count] = weighted @ waves[:, 1:].T
    system[count, :count] = system[:count, count] = 1  # the constant star costs nothing, so the multipliers sum to 0
    right = np.concatenate([energies.T, np.zeros((1, len(energies)))])
    try:
        solution = np.linalg.solve(system, right)
        # Residuals with each point left out, all from one inverse: Dubrule, J. Int. Assoc. Math. Geol. 15, 687 (1983)
        left_out = solution[:count].T / np.diag(np.linalg.inv(system))[:count]
    except np.linalg.LinAlgError:
        return StarFit(vectors, star, np.zeros((len(energies), len(stars))), np.zeros(energies.shape)), np.inf
    coefficients = np.concatenate([solution[count:], weighted.T @ solution[:count]]).T
    miss = float(np.abs(coefficients @ waves.T - energies).max())
    return StarFit(vectors, star, coefficients, left_out), miss if np.isfinite(miss) else np.inf


def _mean_waves(vectors: Integers, star: Integers, points: Integers, modulus: int) -> Floats:
    """(n_k, n_stars) mean plane wave of each star at each point: real, since -R is in the star of R."""
    from scipy import sparse

    leading = np.take_along_axis(vectors, (vectors != 0).argmax(axis=1)[:, None], axis=1)[:, 0]
    half, of_star = vectors[leading >= 0], star[leading >= 0]
    periods = modulus // np.gcd(np.gcd.reduce(points, axis=0), modulus)  # a wave depends on R modulo these only
    codes, places = np.unique(np.ravel_multi_index(tuple((half % periods).T), periods), return_inverse=True)
    distinct = np.stack(np.unravel_index(codes, periods), axis=1)
    cosines = np.cos(2 * np.pi * np.arange(modulus) / modulus)[(distinct @ points.T) % modulus]
    members = sparse.csr_array((np.ones(len(half)), (of_star, places)), (of_star[-1] + 1, len(distinct)))
    return np.asarray((members @ cosines).T / np.bincount(of_star))


def interpolate_bands(
    bands: UniformBands, count: int, mesh: Sequence[int], star_ratio: float
) -> tuple[Floats, Integers]:
    """The bands nearest E_F on a mesh over the reciprocal primitive cell; see ``fit_bands``.

    Returns
    -------
    energies
        (n, *mesh) float64, eV relative to E_F, sorted by mean.
    rows
        (n,) which bands of ``bands.pooled`` these are.
    """
    found = fit_bands(bands, count, mesh, star_ratio)
    return found.fit.on_mesh(mesh), found.rows


def fit_bands(bands: UniformBands, count: int, mesh: Sequence[int], star_ratio: float) -> NearestBands:
    """Star functions through the bands nearest E_F.

    The bands are chosen by their means on the mesh (``select_bands``). Only candidates are fitted: those nearest by
    the coarse grid's means and a margin, widened until no band outside could have been chosen.

    Parameters
    ----------
    bands
        The coarse bands.
    count
        Bands wanted; fewer come back where there are fewer.
    mesh
        Points along each axis, k_i = i / n.
    star_ratio
        Stars for each inequivalent coarse k point, above 1.

    Raises
    ------
    InputError
        If the k points do not make their grid, all are equivalent, or no smooth function goes through the energies.
    """
    coarse = np.argsort(np.abs(bands.means), kind="stable")
    fitted = count + MARGIN
    while True:
        candidates = np.sort(coarse[:fitted])
        found = _fit_candidates(bands, candidates, star_ratio)
        means = found.fit.means(mesh)
        chosen = select_bands(means, count)
        outside = np.abs(bands.means[coarse[fitted:]]).min(initial=np.inf)
        drift = np.abs(means - bands.means[candidates]).max()
        if outside - drift > np.abs(means[chosen]).max():
            return found.some(chosen)
        fitted *= 2


def _fit_candidates(bands: UniformBands, rows: Integers, star_ratio: float) -> NearestBands:
    """Fit through all coarse energies of the rows, with more stars where the usual number does not do."""
    points, rotations = bands.symmetric_kpoints(rows)
    numbers, leaders = points.stars(rotations)
    if len(leaders) < 2:
        raise InputError(f"Bands of {bands.material_id}: one inequivalent k point says nothing of the dispersion")
    order = np.argsort(points.codes(points.points), kind="stable")  # sums in one order, whatever the list's
    numbers, listed = numbers[order], bands.pooled[np.ix_(rows, order)]
    energies = np.stack([np.bincount(numbers, weights=band) for band in listed]) / np.bincount(numbers)
    shares = np.bincount(numbers, weights=bands.weights[order]).astype(np.float64)
    fit, miss = fit_smoothly(bands.lattice, rotations, leaders, points.modulus, energies, star_ratio)
    if miss <= EXACT_EV:
        return NearestBands(fit, rows, rotations, energies, shares)
    raise InputError(
        f"Bands of {bands.material_id}: the interpolant misses the coarse energies by {miss:.2g} eV "
        f"with {fit.coefficients.shape[1]} stars"
    )


def fit_smoothly(
    lattice: Floats, rotations: Integers, points: Integers, modulus: int, energies: Floats, star_ratio: float
) -> tuple[StarFit, float]:
    """``fit_stars`` with ``star_ratio`` stars a k point, and more where so many do not do."""
    for doubling in range(MAX_DOUBLINGS + 1):
        stars = build_stars(lattice, rotations, star_ratio * len(points) * 2**doubling)
        fit, miss = fit_stars(lattice, stars, points, modulus, energies)
        if miss <= EXACT_EV:
            break
    return fit, miss
