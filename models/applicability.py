"""How far a composition lies from the training set, in units of the training set's own spread.

A network asked about chemistry unlike anything it was trained on still returns a number. The distance here tells when
not to believe it: the mean distance to the nearest training compositions in the space of element statistics (in the
manner of Magpie, npj Comput. Mater. 2, 16028 (2016)), divided by how far the training compositions themselves lie from
those of *other* chemical systems. At 1, a material is as far as the outermost 5 % of the training set are from the
rest of it, which is where the scores of the grouped split were measured; beyond, nothing was measured.
"""

import warnings
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from pymatgen.analysis.molecule_structure_comparator import CovalentRadius
from pymatgen.core import Element
from sklearn.metrics import pairwise_distances_chunked

from models.exceptions import ModelInputError

NEIGHBOURS = 5  # as many as are averaged in a distance; one alone would follow single odd entries
SPREAD_PERCENTILE = 95.0  # of the distances within the training set: the unit of length
ELEMENT_PROPERTIES = (
    "electronegativity",  # Pauling; 0 for the noble gases that have none
    "covalent radius",  # angstrom, Cordero et al., Dalton Trans. 2008, 2832
    "Mendeleev number",  # neighbours are chemically alike
    "row",
    "group",
    "valence s electrons",
    "valence p electrons",
    "valence d electrons",
    "valence f electrons",
)
STATISTICS = ("mean", "mean absolute deviation", "minimum", "maximum")


@cache
def element_properties(symbol: str) -> tuple[float, ...]:
    """Numbers of one element in the order of ELEMENT_PROPERTIES; ModelInputError where an element has none."""
    element = Element(symbol)
    name = "H" if symbol in {"D", "T"} else symbol
    if name not in CovalentRadius.radius:
        raise ModelInputError(f"{symbol} has no tabulated covalent radius; elements from H to Cm are allowed")
    with warnings.catch_warnings():  # pymatgen says aloud that He, Ne and Ar have none
        warnings.simplefilter("ignore", UserWarning)
        electronegativity = float(np.nan_to_num(element.X))
    outer = dict.fromkeys("spdf", 0)
    depth = {"s": 0, "p": 0, "d": 1, "f": 2}  # the d shell of row n has n - 1, the f shell n - 2
    for shell, orbital, electrons in element.full_electronic_structure:
        if shell == element.row - depth[orbital]:
            outer[orbital] = electrons
    return (
        electronegativity,
        float(CovalentRadius.radius[name]),
        float(element.mendeleev_no),
        float(element.row),
        float(element.group),
        *(float(outer[orbital]) for orbital in "spdf"),
    )


def describe_composition(amounts: Mapping[str, float]) -> NDArray[np.float64]:
    """Statistics of a composition's elements, weighted by their fractions.

    Parameters
    ----------
    amounts
        Amount of each element by symbol; only their ratios matter.

    Returns
    -------
    (len(STATISTICS) * len(ELEMENT_PROPERTIES),) float64, the statistics one after the other.
    """
    total = sum(amounts.values())
    if not amounts or not np.isfinite(total) or min(amounts.values()) < 0 or total <= 0:
        raise ModelInputError(f"{dict(amounts)} is no composition: amounts must be finite and positive in sum")
    present = sorted(symbol for symbol, amount in amounts.items() if amount > 0)
    values = np.array([element_properties(symbol) for symbol in present])
    fractions = np.array([amounts[symbol] / total for symbol in present])
    mean = fractions @ values
    deviation = fractions @ np.abs(values - mean)
    description = np.concatenate([mean, deviation, values.min(axis=0), values.max(axis=0)])
    return description.round(9)  # so that Nb2C2 is the same point as NbC


class TrainingDistance:
    """Distance from a training set; the larger, the less the networks' answers are worth.

    Parameters
    ----------
    compositions
        Amounts by element of each training material. Equal compositions count once.
    neighbours
        How many nearest training materials are averaged (fewer where there are fewer).

    Raises
    ------
    ModelInputError
        If the compositions do not span two chemical systems: then there is no spread to measure with.
    """

    def __init__(self, compositions: Sequence[Mapping[str, float]], neighbours: int = NEIGHBOURS) -> None:
        described = {tuple(describe_composition(amounts)): _system(amounts) for amounts in compositions}
        if len(set(described.values())) < 2:
            raise ModelInputError(
                f"{len(compositions)} training materials span {len(set(described.values()))} chemical systems; "
                "a distance from the training set needs at least 2"
            )
        vectors = np.array(sorted(described))
        systems = np.array([described[tuple(vector)] for vector in vectors])
        self.neighbours = neighbours
        self._centre = vectors.mean(axis=0)
        spread = vectors.std(axis=0)
        self._spread = np.where(spread > 0, spread, 1.0)
        self._training = (vectors - self._centre) / self._spread
        own = self._distances(self._training, skip=systems[:, None] == systems[None, :])
        self.unit = float(np.percentile(own, SPREAD_PERCENTILE))

    def __call__(self, compositions: Sequence[Mapping[str, float]]) -> NDArray[np.float64]:
        """Distances, (n,) float64 from 0; above 1 is far."""
        if not compositions:
            return np.zeros(0)
        return self._distances(self._standardise(compositions)) / self.unit

    def _standardise(self, compositions: Sequence[Mapping[str, float]]) -> NDArray[np.float64]:
        vectors = np.array([describe_composition(amounts) for amounts in compositions])
        return np.asarray((vectors - self._centre) / self._spread)

    def _distances(self, points: NDArray[np.float64], skip: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
        """Mean distance of each point to its nearest training points, those marked in ``skip`` left out."""
        found, start = [], 0
        for block in pairwise_distances_chunked(points, self._training, working_memory=64):
            if skip is not None:
                block[skip[start : start + len(block)]] = np.inf
            start += len(block)
            nearest = np.sort(block, axis=1)[:, : self.neighbours]
            usable = np.isfinite(nearest)
            found.append(np.where(usable, nearest, 0).sum(axis=1) / usable.sum(axis=1))
        return np.concatenate(found)


def nearest_compositions(
    wanted: Sequence[Mapping[str, float]], known: Sequence[Mapping[str, float]], count: int = 1
) -> NDArray[np.int64]:
    """Indices of the known compositions that are chemically nearest to each wanted one, nearest first.

    The measure is the element mover's distance (Hargreaves et al., Chem. Mater. 32, 10610 (2020)): how far atoms must
    move along the Mendeleev numbers to turn one composition into the other.

    Returns
    -------
    (len(wanted), count) int64, fewer columns where fewer are known; ties in the order of ``known``.
    """
    return nearest_rows(wanted, cumulate_fractions(known), count)


def nearest_rows(
    wanted: Sequence[Mapping[str, float]], reference: NDArray[np.float64], count: int = 1
) -> NDArray[np.int64]:
    """``nearest_compositions`` among known ones that stand as ``cumulate_fractions`` gives them."""
    if not wanted or not len(reference):
        raise ModelInputError(
            f"{len(wanted)} wanted and {len(reference)} known compositions; one of each is needed at least"
        )
    blocks = pairwise_distances_chunked(cumulate_fractions(wanted), reference, metric="manhattan", working_memory=64)
    if count == 1:
        return np.concatenate([block.round(6).argmin(axis=1)[:, None] for block in blocks])
    return np.concatenate([np.argsort(block.round(6), axis=1, kind="stable")[:, :count] for block in blocks])


def cumulate_fractions(compositions: Sequence[Mapping[str, float]]) -> NDArray[np.float64]:
    """Cumulated atomic fractions along the Mendeleev numbers, (n, 119); their L1 distance is the mover's distance."""
    fractions = np.zeros((len(compositions), 119))
    for row, amounts in zip(fractions, compositions, strict=True):
        for symbol, amount in amounts.items():
            row[int(Element(symbol).mendeleev_no)] += amount / sum(amounts.values())
    return fractions.cumsum(axis=1)


def _system(amounts: Mapping[str, float]) -> str:
    return "-".join(sorted(symbol for symbol, amount in amounts.items() if amount > 0))
