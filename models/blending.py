"""Blend what two models say of the same materials, by their answers on materials that neither had seen.

The share is fitted together with Platt's calibration (``models.reliability``): stacked generalisation, Wolpert, Neural
Networks 5, 241 (1992), with weights that cannot be negative (Breiman, Mach. Learn. 24, 49 (1996)).
"""

from dataclasses import dataclass

import numpy as np

from models.reliability import DEFAULT, METHODS, Calibration, fit_platt

STEPS = 41  # shares that are tried, evenly from 0 to 1


@dataclass(frozen=True)
class Blend:
    """Answers of a network and of trees, the trees' counted ``share`` (0 to 1)."""

    share: float

    def __call__(self, network: np.ndarray, trees: np.ndarray) -> np.ndarray:
        """Blended logits, or ln(Tc/K + 1), of any equal shapes."""
        return (1 - self.share) * np.asarray(network) + self.share * np.asarray(trees)


def fit_blend(network: np.ndarray, trees: np.ndarray, labels: np.ndarray) -> tuple[Blend, Calibration]:
    """Share of the trees, and calibration of the blended logits, of least cross entropy.

    Parameters
    ----------
    network, trees
        (n,) logits of materials that neither had seen.
    labels
        (n,) of 0 and 1, both present.
    """
    losses, found = [], []
    for share in np.linspace(0, 1, STEPS):
        blend = Blend(float(share))
        logits = blend(network, trees)
        calibration = fit_platt(logits, labels)
        scores = calibration.slope * logits + calibration.intercept
        loss = float(np.mean(np.logaddexp(0, scores) - np.asarray(labels) * scores))
        losses.append(loss)
        found.append((blend, calibration))
    return found[int(np.argmin(losses))]


def held_out_blend(
    network: np.ndarray, trees: np.ndarray, labels: np.ndarray, folds: np.ndarray, method: str = DEFAULT
) -> tuple[np.ndarray, np.ndarray]:
    """(n,) blended logits and (n,) probabilities, each fold's by the blend and the calibration of the others.

    Where the other folds hold one class only, both count half, uncalibrated.
    """
    logits, names = Blend(0.5)(network, trees), np.asarray(folds)
    found = 1 / (1 + np.exp(-logits))
    for name in np.unique(names):
        here = names == name
        if 0 < labels[~here].sum() < (~here).sum():
            blend, _ = fit_blend(network[~here], trees[~here], labels[~here])
            logits[here] = blend(network[here], trees[here])
            found[here] = METHODS[method](blend(network[~here], trees[~here]), labels[~here])(logits[here])
    return logits, found


def fit_share(network: np.ndarray, trees: np.ndarray, target: np.ndarray) -> Blend:
    """Share of the trees of least squared error of (n,) numbers."""
    apart = np.asarray(trees) - network
    total = float(apart @ apart)
    return Blend(float(np.clip(apart @ (target - network) / total, 0, 1)) if total > 0 else 0.5)


def held_out_values(network: np.ndarray, trees: np.ndarray, target: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """(n,) blended numbers, each fold's by the share of the others."""
    found, names = np.empty(len(target)), np.asarray(folds)
    for name in np.unique(names):
        here = names == name
        blend = fit_share(network[~here], trees[~here], target[~here]) if (~here).any() else Blend(0.5)
        found[here] = blend(network[here], trees[here])
    return found
