"""From a network's logits to probabilities that mean what they say.

Source: Platt, "Probabilistic outputs for support vector machines", Advances in Large Margin Classifiers (1999);
temperature scaling (Guo et al., ICML 2017) is the case without intercept.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from models.exceptions import ModelInputError

MIN_SLOPE = 1e-3  # logits that order held-out materials no better than chance give the base rate for all
BINS = 10


@dataclass(frozen=True)
class Calibration:
    """probability = sigmoid(slope * logit + intercept), slope above 0, so the order stays."""

    slope: float
    intercept: float

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        """Probabilities of any shape of logits."""
        return np.asarray(expit(self.slope * np.asarray(logits, dtype=np.float64) + self.intercept))


def fit_calibration(logits: np.ndarray, labels: np.ndarray) -> Calibration:
    """Calibration of least cross entropy on held-out materials, against Platt's softened labels.

    Parameters
    ----------
    logits
        (n,) of materials that the network had not seen.
    labels
        (n,) of 0 and 1.

    Raises
    ------
    ModelInputError
        If the lengths differ, a logit is not finite, or one class is missing.
    """
    logits, labels = np.asarray(logits, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if logits.shape != labels.shape or not np.isfinite(logits).all():
        raise ModelInputError(f"Logits {logits.shape} and labels {labels.shape} must be equally many and finite")
    positive = labels.sum()
    if not 0 < positive < len(labels):
        raise ModelInputError("A calibration needs held-out materials of both classes")
    targets = np.where(labels > 0, (positive + 1) / (positive + 2), 1 / (len(labels) - positive + 2))

    def cross_entropy(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        scores = parameters[0] * logits + parameters[1]
        slopes = (expit(scores) - targets) / len(logits)
        value = float(np.mean(np.logaddexp(0, scores) - targets * scores))
        return value, np.array([slopes @ logits, slopes.sum()])

    found = minimize(cross_entropy, [1.0, 0.0], jac=True, bounds=[(MIN_SLOPE, None), (None, None)], method="L-BFGS-B")
    return Calibration(float(found.x[0]), float(found.x[1]))


def held_out_probabilities(logits: np.ndarray, labels: np.ndarray, folds: Sequence[str]) -> np.ndarray:
    """(n,) probabilities, each fold's by the calibration of the others; uncalibrated where these have one class."""
    names = np.asarray(folds)
    found = expit(np.asarray(logits, dtype=np.float64))
    for name in np.unique(names):
        here = names == name
        if 0 < labels[~here].sum() < (~here).sum():
            found[here] = fit_calibration(logits[~here], labels[~here])(logits[here])
    return found


def reliability_curve(labels: np.ndarray, probabilities: np.ndarray, bins: int = BINS) -> list[dict[str, float]]:
    """Mean probability against observed share of label 1, in bins of equal width that hold any material."""
    place = np.minimum((np.asarray(probabilities) * bins).astype(np.int64), bins - 1)
    return [
        {
            "predicted": float(np.mean(probabilities[place == number])),
            "observed": float(np.mean(labels[place == number])),
            "materials": int((place == number).sum()),
        }
        for number in np.unique(place)
    ]
