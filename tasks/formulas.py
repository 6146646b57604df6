"""Chemical formulas: read what laboratories write, write one formula for one composition, name its family.

Amounts are atoms per formula unit. A formula that cannot be read is refused with a reason (``tasks.formula_reader``).
"""

import math
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from pymatgen.core.periodic_table import Element

from tasks.families import family_of
from tasks.formula_reader import (
    SYMBOLS,
    AmountLimitError,
    FormulaError,
    ParsedFormula,
    UnknownAmountError,
    parse_formula,
    read_formula,
)

__all__ = [
    "SYMBOLS",
    "AmountLimitError",
    "FormulaError",
    "ParsedFormula",
    "UnknownAmountError",
    "chemical_system",
    "composition_difference",
    "family_of",
    "normalise_formula",
    "parse_formula",
    "read_formula",
    "reduce_amounts",
    "sort_elements",
    "write_formula",
]

INTEGER_TOLERANCE = 5e-4  # an amount this near a whole number is that number (thirds are written with 3 decimals)
DECIMALS_KEPT = 3  # a formula unit is one in which no amount needs more
SMALL_COUNT = 4  # whole amounts up to this tell a formula unit from a multiple of it
WHOLE_COUNTS = np.arange(1.0, 15.0)  # one element of a formula unit has one of these amounts
DILUTE_SHARE = 0.93  # of all atoms: UBe13 is a compound (0.929), Nb0.95Ta0.05 an alloy
FRACTION_ERROR = 5e-4  # fractions of at most 7 elements, each rounded to 4 decimals, sum to 1 within this
MAX_UNIT_TOTAL = 100.0  # atoms; no formula unit is larger


@lru_cache(maxsize=200)
def _electronegativity(symbol: str) -> float:
    """Pauling electronegativity, infinite where there is none, so that such elements stand last."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = float(Element(symbol).X)
    return math.inf if math.isnan(value) else value


def sort_elements(symbols: Mapping[str, float] | set[str] | list[str]) -> list[str]:
    """Symbols by electronegativity, then alphabet, as pymatgen writes formulas."""
    return sorted(symbols, key=lambda symbol: (_electronegativity(symbol), symbol))


def _formula_units(values: np.ndarray) -> np.ndarray:
    """Amounts (n_scales, n_elements) in each scale that could be a formula unit: see ``reduce_amounts``."""
    scales = np.outer(WHOLE_COUNTS, 1.0 / values).ravel()
    scaled = np.outer(scales, values)
    whole = np.rint(scaled)
    scaled = np.where((whole > 0) & (np.abs(scaled - whole) <= INTEGER_TOLERANCE), whole, scaled)
    short = np.abs(scaled - np.round(scaled, DECIMALS_KEPT)) < 1e-6
    readable = np.all(short & (scaled >= 10.0**-DECIMALS_KEPT), axis=1) & (scaled.sum(axis=1) <= MAX_UNIT_TOTAL)
    units: np.ndarray = scaled[readable]
    return units


def reduce_amounts(amounts: Mapping[str, float]) -> dict[str, float]:
    """One set of amounts for every multiple of a composition, elements by electronegativity.

    Of all scales in which an element has a whole amount of at most 14 and no amount needs more than 3 decimals, the
    one with most whole numbers is taken (amounts of at most 4, and the total), then one with a whole total, then the
    smallest total: Mg2B4 becomes MgB2, Nb0.5Ti0.5 NbTi, and YBa2Cu3O6.9 or La1.85Sr0.15CuO4 stay as they are written.
    A composition that no such scale fits (many random alloys), and a dilute alloy of one metal, becomes atomic
    fractions.
    """
    symbols = np.array(sort_elements(dict(amounts)))
    values = np.array([amounts[symbol] for symbol in symbols], dtype=float)
    dilute = 1 > values.max() / values.sum() > DILUTE_SHARE and Element(symbols[values.argmax()]).is_metal
    units = _formula_units(values)[:0] if dilute else _formula_units(values)
    if not len(units):
        if abs(values.sum() - 1) > FRACTION_ERROR:
            # rounded twice: a half in the fifth decimal falls the same way whatever the scale it came from
            values = np.round(np.round(values / values.sum(), 9), 4)
            symbols, values = symbols[values > 0], values[values > 0]
        units = units if dilute else _formula_units(values)
    scaled = np.round(_simplest_unit(units) if len(units) else values, 4)
    return dict(zip(symbols[scaled > 0].tolist(), scaled[scaled > 0].tolist(), strict=True))


def _simplest_unit(units: np.ndarray) -> np.ndarray:
    """The scale with most small whole amounts; see ``reduce_amounts``."""
    whole = units == np.rint(units)
    small = (whole & (units <= SMALL_COUNT)).sum(axis=1)
    totals = np.round(units.sum(axis=1), 6)
    whole_total = np.abs(totals - np.rint(totals)) <= INTEGER_TOLERANCE
    best: np.ndarray = units[np.lexsort((totals, ~whole_total, -(small + whole_total)))[0]]
    return best


def write_formula(amounts: Mapping[str, float]) -> str:
    """The formula of these amounts as they are, at most 4 decimals, elements by electronegativity."""
    parts = ((symbol, f"{amounts[symbol]:.4f}".rstrip("0").rstrip(".")) for symbol in sort_elements(dict(amounts)))
    return "".join(symbol + ("" if number == "1" else number) for symbol, number in parts)


def normalise_formula(amounts: Mapping[str, float]) -> str:
    """One formula for every multiple of a composition (see ``reduce_amounts``)."""
    return write_formula(reduce_amounts(amounts))


def composition_difference(a: Mapping[str, float], b: Mapping[str, float]) -> float:
    """3DSC's total relative difference R of two compositions in any scale: 0 if equal, 2 if no element is shared."""
    total_a, total_b = math.fsum(a.values()), math.fsum(b.values())
    symbols = sorted({*a, *b})
    return math.fsum(abs(a.get(symbol, 0.0) / total_a - b.get(symbol, 0.0) / total_b) for symbol in symbols)


def chemical_system(formula: str) -> str:
    """Symbols of a formula's elements in alphabetical order, joined by hyphens: ``B-Mg``."""
    return "-".join(sorted(parse_formula(formula, math.inf)))
