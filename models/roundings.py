"""Formulas that are one composition written with more and with fewer decimals, such as O6.93 and O6.9."""

import re
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from pymatgen.core.composition import Composition

_FLAT = re.compile(r"(?:[A-Z][a-z]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)?)+")  # symbols and amounts, no brackets
_PART = re.compile(r"([A-Z][a-z]?)([0-9.]*)")
INSIDE = 1 - 1e-6  # a half in the last decimal may round either way: it proves nothing
ARITHMETIC = 1e-9


@lru_cache(maxsize=4)
def rounded_alike(formulas: Sequence[str]) -> dict[str, frozenset[str]]:
    """For each formula the others that become it, or that it becomes, when amounts are rounded.

    An amount written with d decimals stands for all within half a unit of the last one; an amount without decimals is
    taken as exact. Two formulas are alike where some scale brings one composition into all intervals of the other:
    MgB2 and Mg0.33B0.67, but not La1.85Sr0.15CuO4 and La1.84Sr0.16CuO4. The relation is symmetric, not transitive.
    Formulas without a like one are left out.
    """
    systems: dict[tuple[str, ...], list[tuple[str, np.ndarray, np.ndarray]]] = defaultdict(list)
    for formula in sorted(set(formulas)):
        amounts = {name: x for name, x in Composition(formula).get_el_amt_dict().items() if x > 0}
        elements = tuple(sorted(amounts))
        known = _half_widths(formula)
        widths = np.array([known.get(name, 0.0) for name in elements])
        systems[elements].append((formula, np.array([amounts[name] for name in elements]), widths))
    alike: dict[str, set[str]] = defaultdict(set)
    for members in systems.values():
        names = [name for name, _, _ in members]
        fractions = np.array([amounts / amounts.sum() for _, amounts, _ in members])
        for position, (name, values, margins) in enumerate(members):
            if not margins.any():
                continue
            lowest = ((values - margins) / fractions).max(axis=1)
            highest = ((values + margins) / fractions).min(axis=1)
            for other in np.flatnonzero(lowest <= highest * (1 + ARITHMETIC)):
                if other != position:
                    alike[name].add(names[other])
                    alike[names[other]].add(name)
    return {name: frozenset(others) for name, others in alike.items()}


def _half_widths(formula: str) -> dict[str, float]:
    """Half a unit of the last decimal of each amount that has decimals; nothing where brackets multiply amounts."""
    widths: dict[str, float] = defaultdict(float)
    if _FLAT.fullmatch(formula):
        for symbol, number in _PART.findall(formula):
            decimals = len(number.partition(".")[2])
            widths[symbol] += 0.5 * 10.0**-decimals * INSIDE if decimals else 0.0
    return widths
