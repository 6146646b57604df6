"""Gradient boosting on the composition and the structure of crystals, beside the network and blended with it.

LightGBM on Magpie's descriptors, the fractions of the elements, and the descriptors of
``models.structure_descriptors``: small data sets do not fill a network, and trees err on other crystals than it does.
Where reports without a crystal are at hand, what they say of the composition is one more descriptor
(``models.reported_compositions``).
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from models.boosting import booster, predict_logits, train_boosting
from models.composition_descriptors import (
    composition_descriptor_names,
    composition_descriptor_units,
    composition_descriptors,
    element_properties,
)
from models.crystals import ELEMENTS, CrystalArrays
from models.reported_compositions import Reports, ask_reported, can_learn, fit_reported, held_out_logits
from models.structure_descriptors import descriptor_names, descriptor_units, structure_descriptors

ROUNDS = 400
PARAMETERS = {"num_leaves": 15, "learning_rate": 0.04}
REPORTED = ("reports", "reported superconductors of such a composition")  # what stands behind the 402 numbers


def crystal_features(crystal: CrystalArrays) -> np.ndarray:
    """(402,) float64: 144 descriptors of the composition, 95 fractions of elements, 163 of the structure."""
    numbers = torch.from_numpy(crystal.atomic_numbers)[None]
    composition = composition_descriptors(numbers, _table())[0].double().numpy()
    fractions = np.bincount(crystal.atomic_numbers - 1, minlength=ELEMENTS) / len(crystal)
    return np.concatenate([composition, fractions, structure_descriptors(crystal)])


@functools.cache
def feature_names() -> tuple[tuple[str, str], ...]:
    """Kind (composition, element, structure) and name of the 402 numbers of ``crystal_features``."""
    from pymatgen.core import Element

    elements = [f"fraction of {Element.from_Z(number).symbol}" for number in range(1, ELEMENTS + 1)]
    kinds = {"composition": composition_descriptor_names(), "element": elements, "structure": descriptor_names()}
    return tuple((kind, name) for kind, names in kinds.items() for name in names)


@functools.cache
def feature_units() -> dict[str, str]:
    """Units of the descriptors that have one, by name; the answer of the reports is a logit."""
    return composition_descriptor_units() | descriptor_units() | {REPORTED[1]: "logit"}


@functools.cache
def _table() -> torch.Tensor:
    return torch.from_numpy(element_properties().copy())


@dataclass(frozen=True, eq=False)
class CrystalTrees:
    """Trees as LightGBM's own text.

    Attributes
    ----------
    classifier
        Superconductor or not.
    regressor
        ln(Tc/K + 1), where temperatures are known.
    reported
        What reports without a crystal say of a composition, where there are any: a descriptor of the classifier.
    """

    classifier: str
    regressor: str | None = None
    reported: str | None = None

    def logits(self, features: np.ndarray) -> np.ndarray:
        """(n,) logits of being a superconductor, of (n, 402) features."""
        return predict_logits(self.classifier, self.seen(features))

    def seen(self, features: np.ndarray) -> np.ndarray:
        """(n, 402 or 403) what the classifier sees of (n, 402) features: behind them what reports say, if any do."""
        if self.reported is None:
            return features
        return np.column_stack([features, ask_reported(self.reported, features)])

    def contributions(self, features: np.ndarray) -> np.ndarray:
        """(n, seen + 1) what each of the ``seen`` features adds to the logit, and last the expected logit.

        They sum to the logit. Shapley values along the paths of the trees (TreeSHAP, Lundberg et al., Nat. Mach.
        Intell. 2, 56 (2020)), by LightGBM.
        """
        return np.asarray(booster(self.classifier).predict(self.seen(features), pred_contrib=True, num_threads=1))

    def log_tc(self, features: np.ndarray) -> np.ndarray:
        """(n,) ln(Tc/K + 1) of (n, 402) features; NaN where no temperature was learnt."""
        if self.regressor is None:
            return np.full(len(features), np.nan)
        return np.asarray(booster(self.regressor).predict(features, num_threads=1))


@dataclass(frozen=True, eq=False)
class TreeAttribution:
    """What the descriptors of one crystal add to a logit in which trees have a share.

    Attributes
    ----------
    names
        Kind and name of each descriptor: 402, or 403 where reports without a crystal are one.
    features
        (names,) float64, as ``CrystalTrees.seen`` gives them, the mean over the trees.
    contributions
        (names,) float64, times the trees' share.
    expected
        Logit of the trees that know nothing of the crystal, times their share.
    """

    names: tuple[tuple[str, str], ...]
    features: np.ndarray
    contributions: np.ndarray
    expected: float


def attribute_trees(trees: Sequence[CrystalTrees], features: np.ndarray, share: float) -> TreeAttribution:
    """Contributions of (402,) features, the mean over the trees, times ``share`` (0 to 1)."""
    seen = np.mean([one.seen(features[None])[0] for one in trees], axis=0)
    found = share * np.mean([one.contributions(features[None])[0] for one in trees], axis=0)
    names = (*feature_names(), REPORTED)[: len(seen)]
    return TreeAttribution(names, seen, found[:-1], float(found[-1]))


def fit_trees(
    features: np.ndarray,
    labels: np.ndarray,
    log_tc: np.ndarray,
    seed: int,
    positive_share: float | None = None,
    reports: Reports | None = None,
    measured: np.ndarray | None = None,
) -> CrystalTrees:
    """Trees that learn from n crystals.

    Parameters
    ----------
    features
        (n, 402) of ``crystal_features``.
    labels
        (n,) 0 or 1.
    log_tc
        (n,) ln(Tc/K + 1), NaN where it is not known; the regression needs two known ones.
    positive_share
        Share of superconductors among the crystals of label 0; none: these are all taken at their word.
    reports
        Superconductors that were reported, with a crystal or without; none of a crystal that the trees are judged on,
        nor of its relatives (``Reports.apart_from``).
    measured
        (n, 239 or more) ``composition_features`` of what was measured on the crystals, where that differs from them.
    """
    target, weight = np.asarray(labels, dtype=np.float64), np.ones(len(labels))
    reported, seen = None, features
    if reports is not None and can_learn(reports, features, target):
        reported = fit_reported(reports, features[target == 0], seed)
        seen = np.column_stack([features, held_out_logits(reports, features, target, seed, measured)])
    rows = np.arange(len(labels))
    if positive_share:
        share = _hidden_positives(seen, target, seed, positive_share)
        others = np.flatnonzero(target == 0)
        rows = np.concatenate([rows, others])
        target = np.concatenate([target, np.ones(len(others))])
        weight = np.concatenate([1 - share, share[others]])
    known = np.flatnonzero(np.isfinite(log_tc))
    regressor = _train("regression", features[known], log_tc[known], seed=seed) if len(known) > 1 else None
    return CrystalTrees(_train("binary", seen[rows], target, weight, seed=seed), regressor, reported)


def _hidden_positives(features: np.ndarray, labels: np.ndarray, seed: int, positive_share: float) -> np.ndarray:
    """(n,) how much of each crystal of label 0 counts as a superconductor (Elkan and Noto, KDD 2008, section 3.2).

    Its odds, which trees that have not seen it give, times a factor that makes the mean ``positive_share``; 0 where
    the label is 1.
    """
    from sklearn.model_selection import StratifiedKFold

    odds = np.zeros(len(labels))
    for train, test in StratifiedKFold(3, shuffle=True, random_state=seed).split(features, labels):
        odds[test] = np.exp(predict_logits(_train("binary", features[train], labels[train], seed=seed), features[test]))
    others = labels == 0
    low, high = 0.0, 1e12
    for _ in range(100):  # bisection of the logarithm, for a mean of clipped numbers has no closed form
        factor = np.sqrt((low + 1e-12) * high)
        low, high = (factor, high) if np.minimum(odds[others] * factor, 1).mean() < positive_share else (low, factor)
    return np.where(others, np.minimum(odds * factor, 1), 0.0)


def _train(
    objective: str, features: np.ndarray, target: np.ndarray, weight: np.ndarray | None = None, *, seed: int
) -> str:
    return train_boosting(features, target, weight, objective=objective, rounds=ROUNDS, seed=seed, **PARAMETERS)
