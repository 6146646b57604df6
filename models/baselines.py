"""What any network has to beat, on the same folds: from the plain mean to Magpie descriptors with boosted trees.

Every baseline sees only ``fold.train``. Regression is fitted on ln(Tc + 1) and answers in kelvin; classification
answers with the probability of label 1. The simple ones are one piece of code for both, because the mean of 0/1
labels is a probability. One thread, fixed seeds: the same numbers on every run.

Sources: Magpie descriptors, Ward et al., npj Comput. Mater. 2, 16028 (2016), by matminer; random forest on them for
superconductors, Stanev et al., npj Comput. Mater. 4, 29 (2018).
"""

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from pymatgen.core import Composition, Element, Structure

from models.exceptions import ModelInputError
from models.splits import Fold

MAX_ATOMIC_NUMBER = 118
NEIGHBOURS_BY_SIZE = 15  # materials of nearest cell size that are averaged
TREES = 200
HIDDEN_UNITS = 64
NETWORK_STEPS = 200


@dataclass(frozen=True)
class Descriptors:
    """What the baselines know of each material.

    Attributes
    ----------
    fractions
        (n, 118) float64, atomic fraction of each element, column Z - 1.
    magpie
        (n, 145) float64, NaN where matminer has no value for an element.
    cells
        (n, 6) float64 or None: ln sites, volume per atom (cubic angstrom), density (g/cm^3), sorted cell lengths
        (angstrom).
    """

    fractions: np.ndarray
    magpie: np.ndarray
    cells: np.ndarray | None


Baseline = Callable[[Descriptors, np.ndarray, Fold, int], np.ndarray]


def regression_baselines(
    formulas: Sequence[str], structures: Sequence[Structure] | None, tc: np.ndarray, fold: Fold, seed: int
) -> dict[str, np.ndarray]:
    """Predictions of every regression baseline on ``fold.test``.

    Parameters
    ----------
    formulas
        n chemical formulas; their Magpie descriptors are computed once a process.
    structures
        n crystals, or None: then the baselines that need a cell are left out.
    tc
        (n,) critical temperatures in kelvin, not negative.
    fold
        Indices of the training and the test materials.

    Returns
    -------
    dict
        Name of the baseline to (len(fold.test),) float64, kelvin, not negative.

    Raises
    ------
    ModelInputError
        If lengths differ, a formula cannot be read, or a Tc is negative or not finite.
    """
    target = np.asarray(tc, dtype=np.float64)
    if not np.all(np.isfinite(target)) or np.any(target < 0):
        raise ModelInputError("Critical temperatures must be finite and not negative, in kelvin")
    predictions = _run(_regressors(), describe(formulas, structures), np.log1p(target), fold, seed)
    return {name: np.expm1(np.maximum(values, 0.0)) for name, values in predictions.items()}


def classification_baselines(
    formulas: Sequence[str], structures: Sequence[Structure] | None, label: np.ndarray, fold: Fold, seed: int
) -> dict[str, np.ndarray]:
    """Probabilities of label 1 by every classification baseline on ``fold.test``.

    Parameters as in `regression_baselines`; ``label`` is (n,) of 0 and 1, and both must occur in ``fold.train``.

    Raises
    ------
    ModelInputError
        If lengths differ, a formula cannot be read, or the training part holds one class only.
    """
    target = np.asarray(label, dtype=np.float64)
    if set(np.unique(target[fold.train])) != {0.0, 1.0}:
        raise ModelInputError(f"Fold {fold.name}: the training materials must hold both labels, 0 and 1")
    predictions = _run(_classifiers(), describe(formulas, structures), target, fold, seed)
    return {name: np.clip(values, 0.0, 1.0) for name, values in predictions.items()}


def describe(formulas: Sequence[str], structures: Sequence[Structure] | None) -> Descriptors:
    """Descriptors of n materials; raises ModelInputError for a formula that cannot be read."""
    if structures is not None and len(structures) != len(formulas):
        raise ModelInputError(f"{len(formulas)} formulas but {len(structures)} structures")
    return Descriptors(
        fractions=np.array([element_fractions(formula) for formula in formulas]),
        magpie=np.array([magpie_descriptors(formula) for formula in formulas]),
        cells=None if structures is None else np.array([cell_descriptors(structure) for structure in structures]),
    )


@functools.lru_cache(maxsize=100_000)
def element_fractions(formula: str) -> np.ndarray:
    """(118,) atomic fractions of a formula; isotopes count as their element."""
    try:
        composition = Composition(formula)
        amounts = [(Element.from_Z(element.Z).Z, amount) for element, amount in composition.items()]
    except (ValueError, AttributeError) as error:
        raise ModelInputError(f"{formula!r} is not a chemical formula: {error}") from error
    fractions = np.zeros(MAX_ATOMIC_NUMBER)
    for number, amount in amounts:
        fractions[number - 1] += amount
    if not fractions.sum() > 0:
        raise ModelInputError(f"{formula!r} holds no atoms")
    fractions /= fractions.sum()
    fractions.setflags(write=False)
    return fractions


@functools.lru_cache(maxsize=100_000)
def magpie_descriptors(formula: str) -> np.ndarray:
    """(145,) Magpie descriptors of a formula; all NaN where matminer does not know an element."""
    fractions = element_fractions(formula)
    composition = Composition(
        {Element.from_Z(index + 1): fractions[index] for index in np.flatnonzero(fractions).tolist()}
    )
    featurizers = _magpie_featurizers()
    try:
        values = np.concatenate([np.asarray(f.featurize(composition), dtype=np.float64) for f in featurizers])
    except (ValueError, KeyError, IndexError, TypeError, ZeroDivisionError):
        values = np.full(sum(len(f.feature_labels()) for f in featurizers), np.nan)
    values[~np.isfinite(values)] = np.nan
    values.setflags(write=False)
    return values


@functools.cache
def _magpie_featurizers() -> tuple:
    from matminer.featurizers.composition import ElementProperty, IonProperty, Stoichiometry, ValenceOrbital

    return (
        ElementProperty.from_preset("magpie"),
        Stoichiometry(),
        ValenceOrbital(props=["frac"]),
        IonProperty(fast=True),
    )


def cell_descriptors(structure: Structure) -> np.ndarray:
    """(6,) size, volume, density and sorted lengths of a cell, as in `Descriptors.cells`."""
    sites = len(structure)
    lengths = sorted(structure.lattice.abc)
    return np.array([np.log(sites), structure.volume / sites, float(structure.density), *lengths])


def _run(
    baselines: dict[str, Baseline], materials: Descriptors, target: np.ndarray, fold: Fold, seed: int
) -> dict[str, np.ndarray]:
    if len(target) != len(materials.fractions):
        raise ModelInputError(f"{len(materials.fractions)} formulas but {len(target)} target values")
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    with threadpool_limits(1):  # sums in one order, and no threads beside the worker processes
        return {
            name: baseline(materials, target, fold, seed)
            for name, baseline in baselines.items()
            if materials.cells is not None or name not in NEED_CELLS
        }


def _mean(_materials: Descriptors, target: np.ndarray, fold: Fold, _seed: int) -> np.ndarray:
    return np.full(len(fold.test), target[fold.train].mean())


def _same_elements(materials: Descriptors, target: np.ndarray, fold: Fold, _seed: int) -> np.ndarray:
    """Mean over the training materials with the same set of elements; the mean of all where there is none."""
    systems = [np.flatnonzero(row).tobytes() for row in materials.fractions]
    known: dict[bytes, list[float]] = {}
    for index in fold.train:
        known.setdefault(systems[index], []).append(float(target[index]))
    everything = target[fold.train].tolist()
    return np.array([np.mean(known.get(systems[index], everything)) for index in fold.test])


def _nearest_composition(materials: Descriptors, target: np.ndarray, fold: Fold, _seed: int) -> np.ndarray:
    """Mean over the training compositions at the smallest sum of absolute differences of the fractions."""
    from scipy.spatial.distance import cdist

    distances = cdist(materials.fractions[fold.test], materials.fractions[fold.train], metric="cityblock").round(9)
    nearest = distances == distances.min(axis=1, keepdims=True)
    return nearest @ target[fold.train] / nearest.sum(axis=1)


def _size(materials: Descriptors, target: np.ndarray, fold: Fold, _seed: int) -> np.ndarray:
    """Mean over the training materials of most nearly the same number of sites."""
    from sklearn.neighbors import KNeighborsRegressor

    sites = _cells(materials)[:, :1]
    neighbours = KNeighborsRegressor(min(NEIGHBOURS_BY_SIZE, len(fold.train)))
    return np.asarray(neighbours.fit(sites[fold.train], target[fold.train]).predict(sites[fold.test]))


def _fractions(materials: Descriptors) -> np.ndarray:
    return np.sqrt(materials.fractions)  # the root spreads small dopings


def _magpie(materials: Descriptors) -> np.ndarray:
    return materials.magpie


def _magpie_and_cell(materials: Descriptors) -> np.ndarray:
    return np.hstack([materials.magpie, _cells(materials)])


def _cells(materials: Descriptors) -> np.ndarray:
    return np.empty((0, 6)) if materials.cells is None else materials.cells


def _fitted(estimator: str, features: Callable[[Descriptors], np.ndarray], *, classify: bool) -> Baseline:
    """Make a baseline that fits a scikit-learn estimator on features."""

    def predict(materials: Descriptors, target: np.ndarray, fold: Fold, seed: int) -> np.ndarray:
        from sklearn.exceptions import ConvergenceWarning

        columns = features(materials)
        model = _estimators(seed, classify=classify)[estimator]()
        with warnings.catch_warnings(category=ConvergenceWarning, action="ignore"):  # a fixed number of steps is meant
            model.fit(columns[fold.train], target[fold.train])
        if classify:
            return np.asarray(model.predict_proba(columns[fold.test])[:, 1])
        return np.asarray(model.predict(columns[fold.test]))

    return predict


def fitted_regressor(estimator: str, columns: np.ndarray, target: np.ndarray, fold: Fold, seed: int) -> np.ndarray:
    """Targets of ``fold.test`` by a scikit-learn model (``forest`` or ``boosting``) of the baselines' settings."""
    model = _estimators(seed, classify=False)[estimator]()
    return np.asarray(model.fit(columns[fold.train], target[fold.train]).predict(columns[fold.test]))


def _estimators(seed: int, *, classify: bool) -> dict[str, Callable]:
    from sklearn import ensemble, neural_network

    kind = "Classifier" if classify else "Regressor"
    network = getattr(neural_network, f"MLP{kind}")
    forest = getattr(ensemble, f"RandomForest{kind}")
    boosting = getattr(ensemble, f"HistGradientBoosting{kind}")
    return {
        "network": lambda: network(
            hidden_layer_sizes=(HIDDEN_UNITS,), max_iter=NETWORK_STEPS, tol=0, random_state=seed
        ),
        "forest": lambda: forest(TREES, n_jobs=1, random_state=seed),
        "boosting": lambda: boosting(max_leaf_nodes=15, learning_rate=0.05, max_iter=TREES, random_state=seed),
    }


def _simple() -> dict[str, Baseline]:
    return {
        "mean": _mean,
        "same element set": _same_elements,
        "nearest composition": _nearest_composition,
        "size only": _size,
    }


def _learned(*, classify: bool) -> dict[str, Baseline]:
    return {
        "element fractions, network": _fitted("network", _fractions, classify=classify),
        "Magpie, random forest": _fitted("forest", _magpie, classify=classify),
        "Magpie, gradient boosting": _fitted("boosting", _magpie, classify=classify),
        "Magpie and cell, gradient boosting": _fitted("boosting", _magpie_and_cell, classify=classify),
    }


def _regressors() -> dict[str, Baseline]:
    return {**_simple(), **_learned(classify=False)}


def _classifiers() -> dict[str, Baseline]:
    return {**_simple(), **_learned(classify=True)}


NEED_CELLS = frozenset({"size only", "Magpie and cell, gradient boosting"})
