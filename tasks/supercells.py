"""Compact supercells and whole numbers of atoms for disordered crystals."""

from collections.abc import Mapping, Sequence

import numpy as np

from tasks.formulas import composition_difference

VACANCY = ""  # stands for an empty site among the occupants of a group
REDUCTIONS = 30  # rounds of pairwise reduction; a cell of 100 primitive cells needs fewer than ten


def hermite_matrices(size: int) -> np.ndarray:
    """All integer matrices in Hermite normal form of a determinant, (n, 3, 3): one for each sublattice."""
    found = [
        [[a, 0, 0], [b, c, 0], [d, e, f]]
        for a in range(1, size + 1)
        if size % a == 0
        for c in range(1, size // a + 1)
        if (size // a) % c == 0
        for f in [size // a // c]
        for b in range(a)
        for d in range(a)
        for e in range(c)
    ]
    return np.array(found, dtype=float)


def compact_supercell(cell: np.ndarray, size: int) -> np.ndarray:
    """The most compact supercell of a size: of all sublattices the one whose reduced vectors have least square sum.

    Parameters
    ----------
    cell
        (3, 3) cell vectors as rows, angstrom.
    size
        Number of cells in the supercell.

    Returns
    -------
    (3, 3) int array of determinant ``size``: rows are the supercell's vectors in units of the cell's.
    """
    if size == 1:
        return np.eye(3, dtype=int)
    vectors = hermite_matrices(size) @ cell
    for _ in range(REDUCTIONS):
        before = vectors.copy()
        for i, j in ((0, 1), (0, 2), (1, 2), (1, 0), (2, 0), (2, 1)):
            along = np.einsum("nk,nk->n", vectors[:, i], vectors[:, j]) / np.einsum("nk,nk->n", *[vectors[:, j]] * 2)
            vectors[:, i] -= np.trunc(along + np.sign(along) * (0.5 - 1e-6))[:, None] * vectors[:, j]
        if np.allclose(before, vectors):
            break
    square_sums = np.round(np.sum(vectors**2, axis=(1, 2)), 6)
    best = vectors[int(np.argmin(square_sums))]
    matrix: np.ndarray = np.rint(best @ np.linalg.inv(cell)).astype(int)
    return matrix if np.linalg.det(matrix) > 0 else -matrix


def whole_counts(occupancies: Mapping[str, float], sites: int) -> dict[str, int]:
    """Whole numbers of occupants of ``sites`` sites, by largest remainders; what is left over are vacancies.

    >>> whole_counts({"La": 0.925, "Sr": 0.075}, 8)
    {'La': 7, 'Sr': 1}
    """
    shares = dict(sorted(occupancies.items()))
    empty = 1.0 - sum(shares.values())
    if empty > 1e-6:
        shares[VACANCY] = empty
    exact = {occupant: round(share * sites, 6) for occupant, share in shares.items()}
    counts = {occupant: int(amount) for occupant, amount in exact.items()}
    by_remainder = sorted(exact, key=lambda occupant: (counts[occupant] - exact[occupant], occupant))
    for occupant in by_remainder[: sites - sum(counts.values())]:
        counts[occupant] += 1
    return counts


def plan_supercell(
    groups: Sequence[tuple[Mapping[str, float], int]], tolerance: float, most_cells: int
) -> tuple[int, list[dict[str, int]], float] | None:
    """Smallest supercell whose whole numbers of atoms are near enough to the composition, and lose no element.

    Parameters
    ----------
    groups
        For each group of sites its occupancies by element, and its number of sites in one cell.
    tolerance
        Largest total relative difference R between asked-for and reached composition.
    most_cells
        Where the search ends.

    Returns
    -------
    Number of cells, occupants of each group, and R; None if no supercell of at most ``most_cells`` will do.
    """
    asked = _amounts([({k: v * sites for k, v in occupancies.items()}) for occupancies, sites in groups])
    for cells in range(1, most_cells + 1):
        plan = [whole_counts(occupancies, sites * cells) for occupancies, sites in groups]
        reached = _amounts(plan)
        error = composition_difference(asked, reached)
        if set(reached) == set(asked) and error <= tolerance:
            return cells, plan, error
    return None


def _amounts(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for part in parts:
        for occupant, amount in part.items():
            if occupant != VACANCY and amount > 0:
                total[occupant] = total.get(occupant, 0.0) + amount
    return total
