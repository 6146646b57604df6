"""Conformal intervals: how wide they must be is read from errors on materials that the networks had not seen.

Source: Vovk et al., Algorithmic Learning in a Random World (2005); over folds as cross-conformal prediction,
Vovk, Ann. Math. Artif. Intell. 74, 9 (2015).
"""

import math
from collections.abc import Sequence

import numpy as np

from models.exceptions import ModelInputError

LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


def conformal_quantile(residuals: np.ndarray, coverage: float) -> float:
    """Half width of an interval that holds a new value with probability ``coverage`` or more.

    Parameters
    ----------
    residuals
        (n,) errors on held-out materials, of either sign.

    Raises
    ------
    ModelInputError
        If the residuals are too few for this coverage: ceil((n + 1) coverage) must not pass n.
    """
    if not 0 < coverage < 1:
        raise ModelInputError(f"{coverage=} must stand between 0 and 1")
    size = np.sort(np.abs(np.asarray(residuals, dtype=np.float64)))
    rank = math.ceil((len(size) + 1) * coverage - 1e-9)
    if rank > len(size):
        raise ModelInputError(
            f"An interval of coverage {coverage:g} needs at least {needed_residuals(coverage)} held-out materials, "
            f"there are {len(size)}"
        )
    return float(size[rank - 1])


def needed_residuals(coverage: float) -> int:
    """Fewest held-out materials for an interval of this coverage."""
    return math.ceil(coverage / (1 - coverage) - 1e-9)


def observed_coverage(residuals: np.ndarray, folds: Sequence[str], coverage: float) -> float:
    """Share of materials inside the interval that the other folds' residuals give; NaN where none can be made."""
    residuals, names = np.asarray(residuals, dtype=np.float64), np.asarray(folds)
    inside: list[bool] = []
    for name in np.unique(names):
        others = residuals[names != name]
        if len(others) >= needed_residuals(coverage):
            width = conformal_quantile(others, coverage)
            inside += (np.abs(residuals[names == name]) <= width).tolist()
    return float(np.mean(inside)) if inside else math.nan


def coverage_curve(
    residuals: np.ndarray, folds: Sequence[str], levels: Sequence[float] = LEVELS
) -> list[dict[str, float]]:
    """Expected against observed coverage, one entry a level."""
    return [{"expected": level, "observed": observed_coverage(residuals, folds, level)} for level in levels]
