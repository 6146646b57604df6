"""From a network's logits to probabilities that mean what they say.

Three ways, of which held-out folds choose: a temperature (Guo et al., ICML 2017), one slope; Platt's sigmoid
("Probabilistic outputs for support vector machines", Advances in Large Margin Classifiers, 1999), slope and intercept;
isotonic regression (Zadrozny and Elkan, KDD 2002), any rising steps. All are fitted to Platt's softened labels, so that
no probability becomes 0 or 1.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from models.exceptions import ModelInputError

MIN_SLOPE = 1e-3  # logits that order held-out materials no better than chance give the base rate for all
BINS = 10
TINY = 1e-12
WILSON = 1.96  # standard deviations of a 95 % interval


@dataclass(frozen=True)
class Calibration:
    """probability = sigmoid(slope * logit + intercept), slope above 0, so the order stays."""

    slope: float
    intercept: float

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        """Probabilities of any shape of logits."""
        return np.asarray(expit(self.slope * np.asarray(logits, dtype=np.float64) + self.intercept))


@dataclass(frozen=True)
class IsotonicCalibration:
    """Probabilities at rising logits, straight lines between them and constant beyond; equal ones lose their order."""

    logits: tuple[float, ...]
    probabilities: tuple[float, ...]

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        """Probabilities of any shape of logits."""
        return np.asarray(np.interp(np.asarray(logits, dtype=np.float64), self.logits, self.probabilities))


AnyCalibration = Calibration | IsotonicCalibration


def fit_platt(logits: np.ndarray, labels: np.ndarray) -> Calibration:
    """Slope and intercept of least cross entropy on held-out materials.

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
    return _fit_sigmoid(logits, labels, intercept=(None, None))


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> Calibration:
    """One slope, 1 / temperature, of least cross entropy; parameters and errors as ``fit_platt``."""
    return _fit_sigmoid(logits, labels, intercept=(0.0, 0.0))


def fit_isotonic(logits: np.ndarray, labels: np.ndarray) -> IsotonicCalibration:
    """Rising steps of least squares; parameters and errors as ``fit_platt``."""
    from sklearn.isotonic import IsotonicRegression

    logits, targets = _softened(logits, labels)
    found = IsotonicRegression(out_of_bounds="clip").fit(logits, targets)
    return IsotonicCalibration(tuple(found.X_thresholds_.tolist()), tuple(found.y_thresholds_.tolist()))


METHODS: dict[str, Callable[[np.ndarray, np.ndarray], AnyCalibration]] = {  # fewest parameters first
    "temperature": fit_temperature,
    "platt": fit_platt,
    "isotonic": fit_isotonic,
}
DEFAULT = "platt"  # where the folds are too few to choose by


def as_document(method: str, calibration: AnyCalibration) -> dict[str, Any]:
    """A calibration as JSON, with the name of its method."""
    return {"method": method, **asdict(calibration)}


def from_document(document: Mapping[str, Any]) -> AnyCalibration:
    """The calibration that ``as_document`` wrote; KeyError or TypeError where it did not."""
    numbers = {name: value for name, value in document.items() if name != "method"}
    if document.get("method") == "isotonic":
        return IsotonicCalibration(tuple(numbers["logits"]), tuple(numbers["probabilities"]))
    return Calibration(**numbers)


def held_out_probabilities(
    logits: np.ndarray, labels: np.ndarray, folds: Sequence[str], method: str = DEFAULT
) -> np.ndarray:
    """(n,) probabilities, each fold's by the calibration of the others; uncalibrated where these have one class."""
    names = np.asarray(folds)
    found = expit(np.asarray(logits, dtype=np.float64))
    for name in np.unique(names):
        here = names == name
        if 0 < labels[~here].sum() < (~here).sum():
            found[here] = METHODS[method](logits[~here], labels[~here])(logits[here])
    return found


def compare_methods(logits: np.ndarray, labels: np.ndarray, folds: Sequence[str]) -> dict[str, dict[str, float]]:
    """Brier score and log loss of held-out probabilities, by method; ``none`` is the plain sigmoid of the logit."""
    found = {"none": expit(np.asarray(logits, dtype=np.float64))}
    found |= {method: held_out_probabilities(logits, labels, folds, method) for method in METHODS}
    return {
        method: {"brier": brier_score(labels, values), "log_loss": log_loss(labels, values)}
        for method, values in found.items()
    }


def choose_method(logits: np.ndarray, labels: np.ndarray, folds: Sequence[str]) -> str:
    """The method of least held-out log loss; DEFAULT where there are fewer than two folds."""
    if len(set(folds)) < 2:
        return DEFAULT
    losses = {method: log_loss(labels, held_out_probabilities(logits, labels, folds, method)) for method in METHODS}
    return min(losses, key=lambda method: losses[method])


def brier_score(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean square of probability minus label, 0 to 1, best is 0."""
    return float(np.mean(np.square(np.asarray(probabilities) - np.asarray(labels))))


def log_loss(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean of -ln of the probability that the true label was given, which counts as at least TINY."""
    given = np.where(np.asarray(labels) > 0, probabilities, 1 - np.asarray(probabilities))
    return float(-np.mean(np.log(np.maximum(given, TINY))))


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


def calibration_error(rows: Sequence[Mapping[str, float]]) -> float:
    """Mean distance of observed shares from predicted ones over all materials (Guo et al., ICML 2017), 0 to 1."""
    distances = [abs(row["predicted"] - row["observed"]) for row in rows]
    return float(np.average(distances, weights=[row["materials"] for row in rows]))


def share_intervals(rows: Sequence[Mapping[str, float]]) -> list[tuple[float, float]]:
    """95 % intervals of the observed shares of a reliability curve (Wilson, J. Am. Stat. Assoc. 22, 209, 1927)."""
    found = []
    for row in rows:
        share, count = row["observed"], row["materials"]
        middle = (share + WILSON**2 / (2 * count)) / (1 + WILSON**2 / count)
        half = WILSON * np.sqrt(share * (1 - share) / count + (WILSON / (2 * count)) ** 2) / (1 + WILSON**2 / count)
        found.append((float(middle - half), float(middle + half)))
    return found


def _fit_sigmoid(logits: np.ndarray, labels: np.ndarray, intercept: tuple[float | None, float | None]) -> Calibration:
    """Least cross entropy of a sigmoid whose intercept stays within bounds."""
    logits, targets = _softened(logits, labels)

    def cross_entropy(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        scores = parameters[0] * logits + parameters[1]
        slopes = (expit(scores) - targets) / len(logits)
        value = float(np.mean(np.logaddexp(0, scores) - targets * scores))
        return value, np.array([slopes @ logits, slopes.sum()])

    found = minimize(cross_entropy, [1.0, 0.0], jac=True, bounds=[(MIN_SLOPE, None), intercept], method="L-BFGS-B")
    return Calibration(float(found.x[0]), float(found.x[1]))


def _softened(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits and Platt's targets: a little off 0 and 1, as if each class had one more material of the other."""
    logits, labels = np.asarray(logits, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if logits.shape != labels.shape or not np.isfinite(logits).all():
        raise ModelInputError(f"Logits {logits.shape} and labels {labels.shape} must be equally many and finite")
    positive = labels.sum()
    if not 0 < positive < len(labels):
        raise ModelInputError("A calibration needs held-out materials of both classes")
    return logits, np.where(labels > 0, (positive + 1) / (positive + 2), 1 / (len(labels) - positive + 2))
