"""How much better than chance a ranked list finds what was found later: hits, enrichment, and how sure that is."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import hypergeom

from models.exceptions import ModelInputError
from models.metrics import CONFIDENCE

BLOCK = 2_000_000  # resampled numbers held at once


@dataclass(frozen=True)
class Enrichment:
    """The first ``top`` of a ranked pool.

    Attributes
    ----------
    hits
        How many of them were found later.
    expected
        How many a draw by lot finds on average.
    enrichment, low, high
        ``hits / expected``, with its 95 % bootstrap interval over the materials of the pool.
    largest
        The enrichment of a perfect list.
    p_value
        Chance that a draw by lot has at least so many hits (hypergeometric).
    """

    top: int
    hits: int
    expected: float
    enrichment: float
    low: float
    high: float
    largest: float
    p_value: float


def rank_pool(scores: np.ndarray, seed: int) -> np.ndarray:
    """Row numbers by falling score, (n,) int64; equal scores stand in an order by lot, so that none is favoured."""
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise ModelInputError("Scores must be a list of finite numbers")
    lot = np.random.default_rng(seed).permutation(len(values))
    return np.lexsort((lot, -values))


def enrichment(ranked_found: np.ndarray, top: int, *, seed: int, resamples: int = 1000) -> Enrichment:
    """What the first ``top`` of a ranked list hold.

    Parameters
    ----------
    ranked_found
        (n,) bool in the order of the list, best first: whether it was found later.
    top
        1 to n.

    Raises
    ------
    ModelInputError
        If nothing was found, or ``top`` does not fit the list.
    """
    found = np.asarray(ranked_found, dtype=bool)
    if not found.any():
        raise ModelInputError("Nothing in the pool was found later: there is no enrichment to speak of")
    if not 1 <= top <= len(found):
        raise ModelInputError(f"{top=} is not from 1 to the {len(found)} materials of the pool")
    size, total, hits = len(found), int(found.sum()), int(found[:top].sum())
    expected = top * total / size
    sample = _resampled(found, top, seed, resamples)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(sample, [tail, 1 - tail]) if len(sample) else (np.nan, np.nan)
    return Enrichment(
        top=top,
        hits=hits,
        expected=expected,
        enrichment=hits / expected,
        low=float(low),
        high=float(high),
        largest=min(top, total) / expected,
        p_value=float(hypergeom.sf(hits - 1, size, total, top)),
    )


def _resampled(found: np.ndarray, top: int, seed: int, resamples: int) -> np.ndarray:
    """Enrichment of pools drawn with replacement, each in the order of the list; those without a find are left out."""
    generator, size = np.random.default_rng(seed), len(found)
    step, drawn = max(1, BLOCK // size), []
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        counts = generator.multinomial(size, np.full(size, 1 / size), size=count)
        before = counts.cumsum(axis=1) - counts
        taken = np.clip(top - before, 0, counts)
        share = (counts * found).sum(axis=1) / size
        hits = (taken * found).sum(axis=1) / top
        drawn.append((hits / np.where(share > 0, share, 1.0))[share > 0])
    return np.concatenate(drawn) if drawn else np.empty(0)
