"""A small Hamiltonian of plane waves and atomic orbitals, fitted to energies: bands that cross where the real ones do.

Plane waves feel a local potential and a separable one of each element; orbitals mix with the plane waves and hop to
near neighbours. This unites the empirical pseudopotential (Cohen and Bergstresser, Phys. Rev. 141, 789 (1966)) and the
interpolation scheme of Hodges, Ehrenreich and Lang for d bands (Phys. Rev. 152, 505 (1966)). H(k) is linear in its
parameters, so the gradient of an energy is an expectation value (Hellmann and Feynman), and the fit is that of
Levenberg and Marquardt. Every term keeps the symmetry of the crystal.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from tasks.kpoints import Floats

Complexes = npt.NDArray[np.complex128]

KINETIC = 3.80998  # hbar^2 / 2m, eV angstrom^2
CUTOFF = 4.0  # largest |k + G|, 1 / angstrom, unless the mean number of plane waves leaves its range
WAVES = (28, 48)
TAPER = 0.7  # share of the cutoff beyond which a plane wave is let go gradually
POTENTIAL_STEP = 1.0  # 1 / angstrom, between the points of the local potential, linear in between
POTENTIAL_END = 7.0
PROJECTOR = 0.8  # angstrom, width of the separable potential
ORBITAL_WIDTHS = (0.5, 0.9)  # angstrom, of an orbital as the plane waves see it
HOP_DECAY = 0.7  # angstrom
HOP_RANGE = 1.25  # times the shortest distance between two elements
FAR_EV = 1e3  # energy of places that hold no plane wave


def orbital_moments(symbol: str) -> tuple[int, ...]:
    """Angular momenta of the orbitals that an element gets beside plane waves, by its block of the periodic table."""
    from pymatgen.core import Element

    element = Element(symbol)
    if element.block == "s":
        return (0,) if element.row == 1 else () if element.row <= 3 else (2,)
    return {"p": (0, 1), "d": (2,), "f": (2, 3)}[str(element.block)]


@dataclass(frozen=True)
class Parameter:
    """One parameter: what it multiplies, and the spread that is expected of it in eV (kinetic: without unit)."""

    kind: str  # kinetic, local, separable, level, mixing or hopping
    elements: tuple[str, ...]
    numbers: tuple[int, ...]  # point of the potential; angular momenta; width or |m|
    spread: float


@dataclass(frozen=True, eq=False)
class ModelHamiltonian:
    """The form of H(k) for one crystal.

    Attributes
    ----------
    lattice
        (3, 3) angstrom, vectors as rows.
    coords
        (n_atoms, 3) fractional.
    species
        Element symbol of each atom.
    """

    lattice: Floats
    coords: Floats
    species: tuple[str, ...]

    @cached_property
    def elements(self) -> list[str]:
        """The different elements."""
        return sorted(set(self.species))

    @cached_property
    def cutoff(self) -> float:
        """Largest |k + G| in 1 / angstrom."""
        least, most = np.cbrt(6 * np.pi**2 * np.array(WAVES) / self.volume)
        return float(np.clip(CUTOFF, least, most))

    @cached_property
    def volume(self) -> float:
        """Of the cell, angstrom^3."""
        return float(abs(np.linalg.det(self.lattice)))

    @cached_property
    def reciprocal(self) -> Floats:
        """(3, 3) reciprocal vectors as rows, 1 / angstrom."""
        return np.asarray(2 * np.pi * np.linalg.inv(self.lattice).T)

    @cached_property
    def positions(self) -> Floats:
        """(n_atoms, 3) angstrom."""
        return np.asarray(self.coords @ self.lattice)

    @cached_property
    def orbitals(self) -> list[tuple[int, int, int]]:
        """Atom, angular momentum and first place of each shell of orbitals."""
        shells, place = [], 0
        for atom, symbol in enumerate(self.species):
            for moment in orbital_moments(symbol):
                shells.append((atom, moment, place))
                place += 2 * moment + 1
        return shells

    @cached_property
    def n_orbitals(self) -> int:
        """How many orbitals there are."""
        return sum(2 * moment + 1 for _, moment, _ in self.orbitals)

    @cached_property
    def knots(self) -> Floats:
        """Points of the local potential, 1 / angstrom."""
        return np.arange(0, POTENTIAL_END + POTENTIAL_STEP / 2, POTENTIAL_STEP)

    @cached_property
    def parameters(self) -> list[Parameter]:
        """All parameters, in the order of the vector."""
        found = [Parameter("kinetic", (), (), 0.1)]
        for symbol in self.elements:
            for number, knot in enumerate(self.knots):
                spread = 10.0 if number == 0 else 3.0 * float(np.exp(-((knot / 4) ** 2))) + 0.05
                found.append(Parameter("local", (symbol,), (number,), spread))
            found += [Parameter("separable", (symbol,), (moment,), 5.0) for moment in range(3)]
            for moment in orbital_moments(symbol):
                found.append(Parameter("level", (symbol,), (moment,), 5.0))
                found += [Parameter("mixing", (symbol,), (moment, i), 2.0) for i in range(len(ORBITAL_WIDTHS))]
        return found + [
            Parameter("hopping", key[0], key[1], 2.0 * float(np.exp((2.5 - shortest) / 1.2)) + 0.02)
            for key, (shortest, *_) in self._hoppings.items()
        ]

    @cached_property
    def spreads(self) -> Floats:
        """(n_parameters,) spread of each."""
        return np.array([parameter.spread for parameter in self.parameters])

    @cached_property
    def _hoppings(self) -> dict[tuple[tuple[str, ...], tuple[int, ...]], tuple[float, Floats, Floats]]:
        """By elements and (l, l', |m|): shortest distance, cells (n, 3), matrices (n, n_orbitals, n_orbitals)."""
        cells = np.stack(np.meshgrid(*[np.arange(-3, 4)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
        away = self.positions[None, :] - self.positions[:, None]
        vectors = away[:, :, None] + cells @ self.lattice  # (from, to, cell, 3)
        lengths = np.linalg.norm(vectors, axis=-1)
        found: dict[tuple[tuple[str, ...], tuple[int, ...]], tuple[float, list[Floats], list[Floats]]] = {}
        for one, moment, place in self.orbitals:
            for two, other, there in self.orbitals:
                ends = [(self.species[one], moment), (self.species[two], other)]
                turned = ends[0] > ends[1]
                (first, low), (second, high) = sorted(ends)
                same = [np.array(self.species) == symbol for symbol in (first, second)]
                reach = lengths[np.ix_(*same)]
                shortest = float(reach[reach > 0.1].min())
                near = (lengths[one, two] > 0.1) & (lengths[one, two] <= HOP_RANGE * shortest)
                for cell, vector, length in zip(
                    cells[near], vectors[one, two][near], lengths[one, two][near], strict=True
                ):
                    sign = (-1.0) ** (moment + other) if turned else 1.0
                    size = sign * np.exp((shortest - length) / HOP_DECAY)
                    for m, angular in enumerate(two_centre(moment, other, vector)):
                        matrix = np.zeros((self.n_orbitals, self.n_orbitals))
                        matrix[place : place + 2 * moment + 1, there : there + 2 * other + 1] = size * angular
                        key = ((first, second), (low, high, m))
                        bond = found.setdefault(key, (shortest, [], []))
                        bond[1].append(cell)
                        bond[2].append(matrix)
        return {key: (shortest, np.array(v), np.array(m)) for key, (shortest, v, m) in found.items()}

    def place(self, kind: str, *names: str | int) -> int:
        """Place in the vector of the parameter with these elements and numbers."""
        wanted = (kind, tuple(n for n in names if isinstance(n, str)), tuple(n for n in names if isinstance(n, int)))
        return self._places[wanted]

    @cached_property
    def _places(self) -> dict[tuple[str, tuple[str, ...], tuple[int, ...]], int]:
        return {(p.kind, p.elements, p.numbers): i for i, p in enumerate(self.parameters)}

    def waves(self, kpoint: Floats) -> Floats:
        """(n_waves, 3) vectors k + G within the cutoff, 1 / angstrom."""
        bounds = np.ceil(self.cutoff * np.linalg.norm(self.lattice, axis=1) / (2 * np.pi)).astype(int) + 1
        near = kpoint - np.rint(kpoint)
        span = np.stack(np.meshgrid(*[np.arange(-b, b + 1) for b in bounds], indexing="ij"), axis=-1).reshape(-1, 3)
        vectors = (near + span) @ self.reciprocal
        return np.asarray(vectors[np.linalg.norm(vectors, axis=1) < self.cutoff])

    def terms(self, kpoint: Floats) -> Complexes:
        """(n_parameters, n, n) what each parameter multiplies in H(k) at one k point."""
        waves = self.waves(kpoint)
        count = len(waves)
        found = np.zeros((len(self.parameters), count + self.n_orbitals, count + self.n_orbitals), dtype=complex)
        lengths, fade, steps, phases = self._plane_waves(waves)
        corner = found[:, :count, :count]
        corner[0, range(count), range(count)] = KINETIC * lengths**2
        pairs = _pairs(fade)
        for symbol in self.elements:
            sums = self._structure(symbol, phases)
            for number, knot in enumerate(self.knots):
                tent = np.clip(1 - np.abs(steps - knot) / POTENTIAL_STEP, 0, None)
                corner[self.place("local", symbol, number)] = sums * pairs * tent
            for moment in range(3):
                project = self._projectors(moment, waves, lengths, fade)
                corner[self.place("separable", symbol, moment)] = sums * (project @ project.T)
        for atom, moment, place in self.orbitals:
            symbol, rows = self.species[atom], slice(count + place, count + place + 2 * moment + 1)
            found[self.place("level", symbol, moment), rows, rows] = np.eye(2 * moment + 1)
            for number in range(len(ORBITAL_WIDTHS)):
                mixing = self._mixing(moment, number, waves, lengths, fade) * phases[atom][:, None]
                term = found[self.place("mixing", symbol, moment, number)]
                term[:count, rows], term[rows, :count] = mixing, mixing.conj().T
        for (symbols, numbers), (_, cells, matrices) in self._hoppings.items():
            wave = np.exp(2j * np.pi * (cells @ kpoint))
            found[self.place("hopping", *symbols, *numbers), count:, count:] = np.tensordot(wave, matrices, 1)
        return found

    def matrix(self, kpoint: Floats, values: Floats) -> Complexes:
        """(n, n) H(k) for one vector of parameters: the sum of ``terms``, put together faster."""
        waves = self.waves(kpoint)
        count = len(waves)
        found = np.zeros((count + self.n_orbitals, count + self.n_orbitals), dtype=complex)
        lengths, fade, steps, phases = self._plane_waves(waves)
        corner = found[:count, :count]
        pairs = _pairs(fade)
        projectors = [self._projectors(moment, waves, lengths, fade) for moment in range(3)]
        for symbol in self.elements:
            first = self.place("local", symbol, 0)
            heights = np.append(values[first : first + len(self.knots)], 0.0)
            local = np.interp(steps, np.append(self.knots, self.knots[-1] + POTENTIAL_STEP), heights) * pairs
            for moment, project in enumerate(projectors):
                local += values[self.place("separable", symbol, moment)] * (project @ project.T)
            corner += self._structure(symbol, phases) * local
        corner[range(count), range(count)] += values[0] * KINETIC * lengths**2
        for atom, moment, place in self.orbitals:
            symbol, rows = self.species[atom], slice(count + place, count + place + 2 * moment + 1)
            found[rows, rows] += values[self.place("level", symbol, moment)] * np.eye(2 * moment + 1)
            mixing = sum(
                values[self.place("mixing", symbol, moment, i)] * self._mixing(moment, i, waves, lengths, fade)
                for i in range(len(ORBITAL_WIDTHS))
            )
            found[:count, rows] = mixing * phases[atom][:, None]
            found[rows, :count] = found[:count, rows].conj().T
        for (symbols, numbers), (_, cells, matrices) in self._hoppings.items():
            wave = np.exp(2j * np.pi * (cells @ kpoint))
            found[count:, count:] += values[self.place("hopping", *symbols, *numbers)] * np.tensordot(wave, matrices, 1)
        return found

    def energies(self, kpoints: Floats, values: Floats, count: int) -> Floats:
        """(n_k, count) lowest eigenvalues, ascending, eV."""
        return np.stack([np.linalg.eigvalsh(self.matrix(kpoint, values))[:count] for kpoint in kpoints])

    def _plane_waves(self, waves: Floats) -> tuple[Floats, Floats, Floats, Complexes]:
        """Lengths, weights of the taper, |G - G'| and (n_atoms, n_waves) phases."""
        lengths = np.linalg.norm(waves, axis=1)
        outer = np.clip((lengths / self.cutoff - TAPER) / (1 - TAPER), 0, 1)
        steps = np.linalg.norm(waves[:, None] - waves[None], axis=-1)
        return lengths, np.cos(np.pi / 2 * outer) ** 2, steps, np.exp(-1j * self.positions @ waves.T)

    def _structure(self, symbol: str, phases: Complexes) -> Complexes:
        """(n_waves, n_waves) sum of exp(-i (G - G') tau) over the atoms of an element."""
        chosen = phases[[i for i, one in enumerate(self.species) if one == symbol]]
        return chosen.T @ chosen.conj()

    def _projectors(self, moment: int, waves: Floats, lengths: Floats, fade: Floats) -> Floats:
        """(n_waves, 2 l + 1) Gaussians times harmonics."""
        scaled = lengths * PROJECTOR
        size = 4 * np.sqrt(PROJECTOR**3 / self.volume)
        return np.asarray(harmonics(moment, waves) * (size * scaled**moment * np.exp(-0.5 * scaled**2) * fade)[:, None])

    def _mixing(self, moment: int, number: int, waves: Floats, lengths: Floats, fade: Floats) -> Complexes:
        """(n_waves, 2 l + 1) overlap of plane waves with an orbital of one of the widths at the origin."""
        width = ORBITAL_WIDTHS[number]
        scaled = lengths * width
        size = 1.5 * np.sqrt(4 * np.pi * width**3 / self.volume)
        radial = size * scaled**moment * np.exp(-0.5 * scaled**2) * fade
        return np.asarray((-1j) ** moment * harmonics(moment, waves) * radial[:, None])


def _pairs(fade: Floats) -> Floats:
    """Products of the taper's weights, 1 on the diagonal."""
    pairs = fade[:, None] * fade[None]
    np.fill_diagonal(pairs, 1.0)
    return pairs


def harmonics(moment: int, vectors: Floats) -> Floats:
    """Real spherical harmonics times sqrt(4 pi), of l up to 3.

    Returns
    -------
    (n, 2 l + 1): m = 0, then cosine and sine of each m; for a zero vector 0 unless l = 0.
    """
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    x, y, z = (vectors / np.where(lengths > 1e-9, lengths, 1.0)).T
    x, y, z = (np.where(lengths[:, 0] > 1e-9, one, 0.0) for one in (x, y, z))
    r2 = x * x + y * y + z * z
    columns = {
        0: [np.ones_like(x)],
        1: [np.sqrt(3) * one for one in (z, x, y)],
        2: [
            np.sqrt(5) / 2 * (3 * z * z - r2),
            np.sqrt(15) * x * z,
            np.sqrt(15) * y * z,
            np.sqrt(15) / 2 * (x * x - y * y),
            np.sqrt(15) * x * y,
        ],
        3: [
            np.sqrt(7) / 2 * z * (5 * z * z - 3 * r2),
            np.sqrt(42) / 4 * x * (5 * z * z - r2),
            np.sqrt(42) / 4 * y * (5 * z * z - r2),
            np.sqrt(105) / 2 * z * (x * x - y * y),
            np.sqrt(105) * x * y * z,
            np.sqrt(70) / 4 * x * (x * x - 3 * y * y),
            np.sqrt(70) / 4 * y * (3 * x * x - y * y),
        ],
    }
    return np.stack(columns[moment], axis=1)


def two_centre(moment: int, other: int, vector: Floats) -> list[Floats]:
    """Angular parts of hopping along a vector (Slater and Koster, Phys. Rev. 94, 1498 (1954)).

    Returns
    -------
    For |m| = 0, 1, ... a (2 l + 1, 2 l' + 1) matrix; sigma, pi, delta and so on have one coefficient each.
    """
    axis = vector / np.linalg.norm(vector)
    side = np.cross(axis, np.eye(3)[np.abs(axis).argmin()])
    side /= np.linalg.norm(side)
    turn = np.stack([side, np.cross(axis, side), axis], axis=1)  # takes z to the axis
    left, right = _turned(moment, turn), _turned(other, turn)
    columns = [[0], *([2 * m - 1, 2 * m] for m in range(1, min(moment, other) + 1))]
    return [left[:, chosen] @ right[:, chosen].T for chosen in columns]


def _turned(moment: int, turn: Floats) -> Floats:
    """(2 l + 1, 2 l + 1) the harmonics turned by a rotation, as columns of those not turned."""
    points = np.random.default_rng(0).normal(size=(40, 3))
    return np.asarray(np.linalg.lstsq(harmonics(moment, points), harmonics(moment, points @ turn), rcond=None)[0])


@dataclass(frozen=True, eq=False)
class FitData:
    """Terms of a Hamiltonian at some k points, with the energies wanted there.

    Attributes
    ----------
    terms
        (n_k, n_parameters, n, n) real: real plus imaginary part, which says all of a Hermitian matrix.
    empty
        (n_k, n) places that hold no plane wave.
    energies, weights
        (n_k, n_bands) eV, the lowest bands; and their shares in the sum of squares.
    """

    terms: Floats
    empty: npt.NDArray[np.bool_]
    energies: Floats
    weights: Floats

    @classmethod
    def at(cls, model: ModelHamiltonian, kpoints: Floats, energies: Floats, weights: Floats) -> "FitData":
        """Terms at (n_k, 3) fractional k points."""
        found = [model.terms(kpoint) for kpoint in kpoints]
        size = max(one.shape[1] for one in found)
        terms = np.zeros((len(found), len(model.parameters), size, size))
        empty = np.ones((len(found), size), dtype=bool)
        for i, one in enumerate(found):
            terms[i, :, : one.shape[1], : one.shape[1]] = one.real + one.imag
            empty[i, : one.shape[1]] = False
        return cls(terms, empty, energies, weights)

    def target(self, energies: Floats, weights: Floats) -> "FitData":
        """The same terms with other energies."""
        return FitData(self.terms, self.empty, energies, weights)

    def part(self, chosen: Sequence[int] | npt.NDArray[np.int64]) -> "FitData":
        """The same at some of the k points."""
        return FitData(self.terms[chosen], self.empty[chosen], self.energies[chosen], self.weights[chosen])

    def solve(self, values: Floats) -> tuple[Floats, Complexes]:
        """Eigenvalues (n_k, n_bands) and eigenvectors (n_k, n, n_bands) of the lowest bands."""
        shape = self.terms.shape
        packed = np.matmul(values, self.terms.reshape(shape[0], shape[1], -1)).reshape(shape[0], *shape[2:])
        turned = packed.transpose(0, 2, 1)
        matrices = (packed + turned) / 2 + 0.5j * (packed - turned)
        index = np.arange(shape[2])
        matrices[:, index, index] += FAR_EV * self.empty
        energies, vectors = np.linalg.eigh(matrices)
        count = self.energies.shape[1]
        return energies[:, :count], vectors[:, :, :count]

    def slopes(self, vectors: Complexes) -> Floats:
        """(n_k, n_bands, n_parameters) derivatives of the energies of some eigenvectors."""
        density = _packed_density(vectors)
        flat = self.terms.reshape(*self.terms.shape[:2], -1).transpose(0, 2, 1)
        return np.matmul(density.reshape(*density.shape[:2], -1), flat)

    def fit(self, values: Floats, spreads: Floats, ridge: float, rounds: int, centre: Floats) -> tuple[Floats, float]:
        """Parameters of least squares near some start.

        Parameters
        ----------
        values
            Start.
        spreads
            What is expected of each parameter, eV.
        ridge
            eV^2 for parameters that are all a spread away from ``centre``.
        rounds
            Steps at most.

        Returns
        -------
        Parameters, and the root mean square miss in eV.
        """
        shares = self.weights / self.weights.sum()
        count = len(values)

        def cost(energies: Floats, at: Floats) -> float:
            away = ridge * (((at - centre) / spreads) ** 2).mean()
            return float((shares * (energies - self.energies) ** 2).sum() + away)

        energies, vectors = self.solve(values)
        costs, damping = [cost(energies, values)], 1e-2
        for _ in range(rounds):
            slopes = (self.slopes(vectors) * spreads).reshape(-1, count)
            misses = (energies - self.energies).ravel()
            weighted = slopes * shares.ravel()[:, None]
            normal = weighted.T @ slopes + ridge / count * np.eye(count)
            right = weighted.T @ misses + ridge / count * (values - centre) / spreads
            for _ in range(8):
                damped = normal + damping * np.diag(np.diag(normal)) + 1e-12 * np.eye(count)
                tried = values - spreads * np.linalg.solve(damped, right)
                energies, new = self.solve(tried)
                found = cost(energies, tried)
                if found < costs[-1]:
                    break
                damping *= 4
            else:
                break
            values, vectors, damping = tried, new, max(damping / 5, 1e-6)
            costs.append(found)
            if len(costs) > 6 and costs[-7] - costs[-1] < 0.02 * costs[-1]:
                break
        misses = self.solve(values)[0] - self.energies
        return values, float(np.sqrt((shares * misses**2).sum()))


def _packed_density(vectors: Complexes) -> Floats:
    """(n_k, n_bands, n, n) whose product with packed terms, summed, is each band's expectation value."""
    real, imaginary = vectors.real.transpose(0, 2, 1), vectors.imag.transpose(0, 2, 1)
    plus, minus = real + imaginary, real - imaginary
    return np.asarray(real[..., :, None] * minus[..., None, :] + imaginary[..., :, None] * plus[..., None, :])
