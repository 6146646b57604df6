"""What is already measured about a composition, and which elements make it dangerous to handle."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pymatgen.core import Composition, Element, Structure

from models.applicability import cumulate_fractions, nearest_rows
from tasks.matching import composition_difference, match_class
from tasks.settings import MatchingSettings

CLASSES = ("exact", "similar", "doped")  # 3DSC's, nearest first

# Elements whose compounds as a group (osmium: the oxide that forms in air) carry a harmonised classification as toxic
# or carcinogenic: Regulation (EC) No 1272/2008, Annex VI, Table 3.
TOXIC = frozenset({"Be", "As", "Se", "Cd", "Os", "Hg", "Tl", "Pb"})
# Elements without a stable isotope. Bismuth (half-life 2.0e19 years, Nature 422, 876 (2003)) counts as stable.
RADIOACTIVE = frozenset({"Tc", "Pm"} | {Element.from_Z(number).symbol for number in range(84, 119)})


def element_amounts(formula: str) -> dict[str, float]:
    """Amount of each element in a formula, by symbol."""
    return {str(symbol): float(amount) for symbol, amount in Composition(formula).get_el_amt_dict().items()}


def structure_amounts(structure: Structure) -> dict[str, float]:
    """Amount of each element in a cell, by symbol; oxidation states are dropped."""
    amounts = structure.composition.element_composition.get_el_amt_dict()
    return {str(symbol): float(amount) for symbol, amount in amounts.items()}


def find_hazards(elements: Sequence[str]) -> list[str]:
    """Dangerous elements among those given, such as ``toxic: As`` or ``radioactive: U``; sorted."""
    present = set(elements)
    toxic = [f"toxic: {symbol}" for symbol in sorted(present & TOXIC)]
    return [f"radioactive: {symbol}" for symbol in sorted(present & RADIOACTIVE)] + toxic


@dataclass(frozen=True)
class Known:
    """The measured composition that stands for a material: its class of agreement, or ``none``."""

    match: str = "none"
    formula: str | None = None
    tc_kelvin: float | None = None


class KnownSuperconductors:
    """Measured compositions, searched by 3DSC's classes (Sci. Data 10, 816 (2023)).

    Parameters
    ----------
    table
        Rows of SUPERCONDUCTORS with at least ``formula`` and ``tc_kelvin`` (0 for a measured absence).
    """

    def __init__(self, table: pa.Table, settings: MatchingSettings | None = None) -> None:
        self.formulas: list[str] = table["formula"].to_pylist()
        self.tc_kelvin: list[float] = table["tc_kelvin"].to_pylist()
        self._settings = settings or MatchingSettings()
        self._amounts = [element_amounts(formula) for formula in self.formulas]
        self._by_elements: dict[frozenset[str], list[int]] = defaultdict(list)
        for index, amounts in enumerate(self._amounts):
            elements = frozenset(amounts)
            missing_one = [elements - {symbol} for symbol in elements] if len(elements) > 1 else []
            for reachable in [elements, *missing_one]:
                self._by_elements[reachable].append(index)

    def find(self, amounts: Mapping[str, float]) -> Known:
        """The best match: nearest class, then smallest difference R, then highest Tc."""
        found = []
        for index in self._by_elements.get(frozenset(amounts), ()):
            measured = self._amounts[index]
            match = match_class(measured, amounts, self._settings)
            if match:
                difference = round(composition_difference(measured, amounts), 9)
                order = (CLASSES.index(match), difference, -self.tc_kelvin[index], self.formulas[index])
                found.append((order, Known(match, self.formulas[index], self.tc_kelvin[index])))
        return min(found, key=lambda pair: pair[0])[1] if found else Known()

    def nearest(self, wanted: Sequence[Mapping[str, float]], count: int = 1) -> list[list[int]]:
        """Rows of the ``count`` chemically nearest measured compositions for each wanted one, nearest first."""
        if not wanted:
            return []
        return [[int(row) for row in rows] for rows in nearest_rows(wanted, self._fractions, count)]

    @cached_property
    def _fractions(self) -> NDArray[np.float64]:
        return cumulate_fractions(self._amounts)
