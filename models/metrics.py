"""Scores of predicted critical temperatures and of classifications, with bootstrap intervals over materials."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import rankdata

from models.exceptions import ModelInputError

CONFIDENCE = 0.95
BLOCK = 2_000_000  # resampled numbers held at once

Statistic = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Score:
    """A score with its 95 % bootstrap interval; NaN, with the reason, where it has no meaning."""

    value: float
    low: float
    high: float
    reason: str = ""

    def as_json(self) -> dict[str, Any]:
        """The score as a document; NaN becomes null."""
        return {key: None if isinstance(v, float) and math.isnan(v) else v for key, v in asdict(self).items()}


def regression_scores(
    tc_true: np.ndarray, tc_pred: np.ndarray, *, seed: int, resamples: int = 1000
) -> dict[str, Score]:
    """R2 and mean absolute error of predicted against measured Tc.

    Parameters
    ----------
    tc_true, tc_pred
        (materials,) kelvin; 0 for a material that is no superconductor. Predictions below 0 count as 0.
    seed, resamples
        Of the bootstrap over materials.

    Returns
    -------
    dict
        ``r2_kelvin``, ``mae_kelvin``, ``r2_log`` and ``mae_log`` (of ln(Tc/K + 1)), each with ``_superconductors``
        (Tc > 0, the habit of the papers) and ``_all`` appended. R2 is the coefficient of determination.
    """
    true, pred = _checked(tc_true, tc_pred)
    true, pred = np.maximum(true, 0.0), np.maximum(pred, 0.0)
    scores = {}
    for group, mask in {"superconductors": true > 0, "all": np.ones(len(true), dtype=bool)}.items():
        for unit in ("kelvin", "log"):
            x, y = (np.log1p(tc[mask]) if unit == "log" else tc[mask] for tc in (true, pred))
            scores[f"r2_{unit}_{group}"] = _score(_r2, x, y, seed, resamples, _r2_problem(x))
            scores[f"mae_{unit}_{group}"] = _score(_mae, x, y, seed, resamples, _empty_problem(x))
    return scores


def r2_gain(tc_true: np.ndarray, tc_with: np.ndarray, tc_without: np.ndarray, *, seed: int) -> Score:
    """What one prediction has more of R2 of ln(Tc/K + 1) than another, over all materials.

    The interval is of a paired bootstrap: both are scored on the same resampled materials.
    """
    true, better = (np.log1p(np.maximum(tc, 0.0)) for tc in _checked(tc_true, tc_with))
    worse = np.log1p(np.maximum(_checked(tc_true, tc_without)[1], 0.0))

    def gain(x: np.ndarray, both: np.ndarray) -> np.ndarray:
        return _r2(x, both[..., 0]) - _r2(x, both[..., 1])

    return _score(gain, true, np.stack([better, worse], axis=-1), seed, 1000, _r2_problem(true))


def auc_gain(label: np.ndarray, better: np.ndarray, worse: np.ndarray, *, seed: int) -> Score:
    """What one list of probabilities has more of ROC AUC than another, with the interval of a paired bootstrap.

    Parameters
    ----------
    label
        (materials,) bool or 0/1; ``better`` and ``worse`` are (materials,) probabilities or logits.
    """
    true, first = _checked(np.asarray(label, dtype=float), better)
    both = np.stack([first, _checked(true, worse)[1]], axis=-1)

    def gain(x: np.ndarray, pair: np.ndarray) -> np.ndarray:
        return _roc_auc(x, pair[..., 0]) - _roc_auc(x, pair[..., 1])

    single = "" if 0 < true.sum() < len(true) else "only one class is present"
    return _score(gain, true, both, seed, 1000, _empty_problem(true) or single)


def classification_scores(
    label: np.ndarray, probability: np.ndarray, *, seed: int = 0, resamples: int = 1000
) -> dict[str, Score]:
    """``roc_auc``, ``accuracy`` (threshold 0.5) and ``brier`` of probabilities of being a superconductor.

    Parameters
    ----------
    label
        (materials,) bool or 0/1.
    probability
        (materials,) in [0, 1].
    """
    true, pred = _checked(np.asarray(label, dtype=float), probability)
    if not np.isin(true, (0, 1)).all():
        raise ModelInputError("Labels must be 0 or 1")
    single = "" if 0 < true.sum() < len(true) else "only one class is present"
    return {
        "roc_auc": _score(_roc_auc, true, pred, seed, resamples, _empty_problem(true) or single),
        "accuracy": _score(_accuracy, true, pred, seed, resamples, _empty_problem(true)),
        "brier": _score(_brier, true, pred, seed, resamples, _empty_problem(true)),
    }


def detection_scores(
    tc_true: np.ndarray, tc_pred: np.ndarray, threshold_kelvin: float, *, seed: int = 0, resamples: int = 1000
) -> dict[str, Score]:
    """``roc_auc`` and ``accuracy`` of telling superconductors (measured Tc > 0) by a predicted Tc.

    A temperature is no probability, so there is no Brier score.

    Parameters
    ----------
    tc_true, tc_pred
        (materials,) kelvin.
    threshold_kelvin
        Predicted superconductors are at or above it.
    """
    true, pred = _checked(tc_true, tc_pred)
    label = (true > 0).astype(float)
    single = "" if 0 < label.sum() < len(label) else "only one class is present"
    empty, called = _empty_problem(label), (pred >= threshold_kelvin).astype(float)
    return {
        "roc_auc": _score(_roc_auc, label, pred, seed, resamples, empty or single),
        "accuracy": _score(_accuracy, label, called, seed, resamples, empty),
    }


def classification_gain(
    label: np.ndarray, p_with: np.ndarray, p_without: np.ndarray, *, seed: int = 0, resamples: int = 1000
) -> dict[str, Score]:
    """What one classifier has more of each of ``classification_scores`` than another, by a paired bootstrap.

    Both are scored on the same resampled materials. A Brier score is the better the lower it is.
    """
    true, first = _checked(np.asarray(label, dtype=float), p_with)
    _, second = _checked(true, p_without)
    single = "" if 0 < true.sum() < len(true) else "only one class is present"

    def gain(statistic: Statistic) -> Statistic:
        return lambda x, both: statistic(x, both[..., 0]) - statistic(x, both[..., 1])

    pair, empty = np.stack([first, second], axis=-1), _empty_problem(true)
    return {
        "roc_auc": _score(gain(_roc_auc), true, pair, seed, resamples, empty or single),
        "accuracy": _score(gain(_accuracy), true, pair, seed, resamples, empty),
        "brier": _score(gain(_brier), true, pair, seed, resamples, empty),
    }


def _score(statistic: Statistic, x: np.ndarray, y: np.ndarray, seed: int, resamples: int, problem: str) -> Score:
    if problem:
        return Score(math.nan, math.nan, math.nan, problem)
    generator = np.random.default_rng(seed)
    step = max(1, BLOCK // len(x))
    drawn = []
    with np.errstate(divide="ignore", invalid="ignore"):
        for start in range(0, resamples, step):
            rows = generator.integers(len(x), size=(min(step, resamples - start), len(x)))
            drawn.append(statistic(x[rows], y[rows]))
        value = float(statistic(x[None], y[None])[0])
    sample = np.concatenate(drawn) if drawn else np.array([value])
    sample = sample[np.isfinite(sample)]  # a resample may miss a class
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(sample, [tail, 1 - tail]) if len(sample) else (math.nan, math.nan)
    return Score(value, float(low), float(high))


def _r2(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    total = np.square(x - x.mean(axis=-1, keepdims=True)).sum(axis=-1)
    return np.asarray(1 - np.square(x - y).sum(axis=-1) / total)


def _mae(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.asarray(np.abs(x - y).mean(axis=-1))


def _roc_auc(label: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Probability that a positive stands above a negative, from rank sums (Mann and Whitney 1947)."""
    ranks = rankdata(probability, axis=-1)
    positive = label.sum(axis=-1)
    negative = label.shape[-1] - positive
    return np.asarray(((ranks * label).sum(axis=-1) - positive * (positive + 1) / 2) / (positive * negative))


def _accuracy(label: np.ndarray, probability: np.ndarray) -> np.ndarray:
    return np.asarray(((probability >= 0.5) == (label > 0.5)).mean(axis=-1))


def _brier(label: np.ndarray, probability: np.ndarray) -> np.ndarray:
    return np.asarray(np.square(label - probability).mean(axis=-1))


def _empty_problem(x: np.ndarray) -> str:
    return "" if len(x) else "no material of this kind"


def _r2_problem(x: np.ndarray) -> str:
    if len(x) < 2:
        return f"R2 needs at least 2 materials of this kind, there are {len(x)}"
    return "" if np.ptp(x) > 0 else "all measured values are equal"


def _checked(true: np.ndarray, pred: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(true, dtype=np.float64), np.asarray(pred, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise ModelInputError(f"Measured values {x.shape} and predictions {y.shape} must be two equally long lists")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ModelInputError("Measured values and predictions must be finite")
    return x, y
