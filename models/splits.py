"""Cross-validation folds of materials, and the audit of what stands on both sides of a fold.

A row is a material; augmentation happens after the split, inside a side. Only the random split may have one parent
crystal or one chemical system on both sides: there it is counted, anywhere else it stops the training.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pymatgen.core.composition import Composition
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import KFold, StratifiedGroupKFold, StratifiedKFold

from models.exceptions import ModelInputError

SPLITS = ("random", "chemical-system", "family", "year")
UNKNOWN_FAMILY = "unknown"
AMOUNT_DIGITS = 3  # atomic fractions that agree to so many digits are one composition


@dataclass(frozen=True, eq=False)
class Fold:
    """Row numbers of the two sides of one fold, sorted int64; a row may stand on neither side."""

    name: str
    train: np.ndarray
    test: np.ndarray


def make_folds(
    split: str,
    *,
    size: int,
    folds: int,
    seed: int,
    groups: Sequence[Any] | np.ndarray | None = None,
    years: Sequence[int | None] | np.ndarray | None = None,
    labels: Sequence[Any] | np.ndarray | None = None,
    related: Sequence[Any] | np.ndarray | None = None,
) -> list[Fold]:
    """Folds of ``size`` materials.

    Parameters
    ----------
    split
        ``random``: by material. ``chemical-system``: no group on both sides, folds of near equal size. ``family``:
        one group left out at a time. ``year``: test on a span of years, train on all before; the spans follow each
        other and hold near equal numbers of materials.
    folds
        Number of folds; ``family`` has as many as there are families; ``year`` may have fewer where years are few.
    groups
        (size,) the group of each row: needed by ``chemical-system`` (see ``connected_groups``) and ``family``, where
        None stands for ``unknown``.
    years
        (size,) year of the first report, None or NaN where unknown: such rows stand on neither side.
    labels
        (size,) classes to spread evenly over the folds of ``random`` and ``chemical-system``, such as "is a
        superconductor"; used where each class has at least ``folds`` members.
    related
        (size,) further groups for ``family`` and ``year``: training rows whose group stands in the test are left out.

    Raises
    ------
    ModelInputError
        For an unknown split, or too few materials or groups.
    """
    for name, column in {"groups": groups, "years": years, "labels": labels, "related": related}.items():
        if column is not None and len(column) != size:
            raise ModelInputError(f"{name} has {len(column)} entries for {size} materials")
    if split == "random":
        return _random_folds(size, folds, seed, _stratification(labels, folds, size))
    if split == "chemical-system":
        return _grouped_folds(_needed(groups, split, "groups"), folds, seed, _stratification(labels, folds, size))
    if split == "family":
        return _purge(_family_folds(_needed(groups, split, "groups")), related)
    if split == "year":
        return _purge(_year_folds(_needed(years, split, "years"), folds), related)
    raise ModelInputError(f"{split=} is not one of {', '.join(SPLITS)}")


def connected_groups(*keys: Sequence[Any]) -> np.ndarray:
    """Group numbers such that rows that share a value in any of ``keys`` share a group, directly or through others.

    A chemical system alone does not keep a parent crystal together with its doped forms, which hold one more element.
    """
    size = len(keys[0])
    rows, nodes, offset = [], [], size
    for key in keys:
        _, code = np.unique(np.asarray([str(value) for value in key]), return_inverse=True)
        rows.append(np.arange(size))
        nodes.append(code + offset)
        offset += int(code.max(initial=-1)) + 1
    row, node = np.concatenate(rows), np.concatenate(nodes)
    graph = coo_array((np.ones(len(row)), (row, node)), shape=(offset, offset))
    return np.asarray(connected_components(graph, directed=False)[1][:size])


def leakage_table(
    fold: Fold,
    *,
    material_ids: Sequence[str],
    parents: Sequence[str],
    formulas: Sequence[str],
    systems: Sequence[str],
) -> dict[str, int]:
    """How many test materials have a relative in the training.

    Returns
    -------
    dict
        ``train`` and ``test``: materials on each side. ``materials``: test materials that are training materials.
        ``parents``: whose parent crystal is also in the training; ``doped_parents``: of these, those that stand
        there only with other compositions. ``compositions``: whose composition is in the training, however spelled
        or rounded; ``polymorphs``: of these, those that stand there only with other parents. ``systems``: whose
        chemical system is in the training.
    """
    composition = [composition_key(formula) for formula in formulas]
    both = list(zip(parents, composition, strict=True))
    parent, same = _shared(fold, parents), _shared(fold, composition)
    exact = _shared(fold, both)
    return {
        "train": len(fold.train),
        "test": len(fold.test),
        "materials": int(_shared(fold, material_ids).sum()),
        "parents": int(parent.sum()),
        "doped_parents": int((parent & ~exact).sum()),
        "compositions": int(same.sum()),
        "polymorphs": int((same & ~exact).sum()),
        "systems": int(_shared(fold, systems).sum()),
    }


def check_leakage(split: str, table: dict[str, int], name: str = "") -> None:
    """Stop where a fold holds what its split promises to keep apart.

    Raises
    ------
    ModelInputError
        If a material stands on both sides of any split, or a parent crystal, composition or chemical system on both
        sides of a split other than ``random``.
    """
    forbidden = ["materials"] if split == "random" else ["materials", "parents", "compositions", "systems"]
    found = {key: table[key] for key in forbidden if table[key]}
    if found:
        counts = ", ".join(f"{count} {key}" for key, count in found.items())
        raise ModelInputError(f"Fold {name!r} of the split {split!r} leaks: {counts} of the test stand in the training")


def composition_key(formula: str) -> str:
    """The composition as rounded atomic fractions, equal for every spelling of it."""
    fractions = Composition(formula).fractional_composition.get_el_amt_dict()
    return " ".join(f"{element}{round(fractions[element], AMOUNT_DIGITS):g}" for element in sorted(fractions))


def _random_folds(size: int, folds: int, seed: int, strata: np.ndarray | None) -> list[Fold]:
    if size < folds:
        raise ModelInputError(f"{folds} folds need at least {folds} materials, not {size}")
    kind = KFold if strata is None else StratifiedKFold
    parts = kind(folds, shuffle=True, random_state=seed).split(np.zeros(size), strata)
    return _numbered(parts)


def _grouped_folds(groups: np.ndarray, folds: int, seed: int, strata: np.ndarray | None) -> list[Fold]:
    count = len(np.unique(groups))
    if count < folds:
        raise ModelInputError(f"{folds} grouped folds need at least {folds} groups of materials, not {count}")
    labels = np.zeros(len(groups), dtype=int) if strata is None else strata
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    made = _numbered(splitter.split(np.zeros(len(groups)), labels, groups))
    return [fold for fold in made if len(fold.test) and len(fold.train)]


def _family_folds(groups: np.ndarray) -> list[Fold]:
    families = np.asarray([UNKNOWN_FAMILY if group is None else str(group) for group in groups])
    names = np.unique(families)
    if len(names) < 2:
        raise ModelInputError(f"Leaving one family out needs at least 2 families, not {len(names)}")
    return [Fold(str(n), np.flatnonzero(families != n), np.flatnonzero(families == n)) for n in names]


def _year_folds(years: np.ndarray, folds: int) -> list[Fold]:
    year = np.asarray([np.nan if value is None else float(value) for value in years])
    known = np.sort(year[~np.isnan(year)])
    if len(np.unique(known)) < 2:
        raise ModelInputError("Training before and testing after needs materials of at least 2 different years")
    starts = np.unique([known[len(known) * part // (folds + 1)] for part in range(1, folds + 1)])
    starts = starts[starts > known[0]] if (starts > known[0]).any() else np.array([known[known > known[0]][0]])
    made = []
    for start, stop in zip(starts, [*starts[1:], np.inf], strict=True):
        test = np.flatnonzero((year >= start) & (year < stop))
        span = f"from {start:.0f}" if np.isinf(stop) else f"{start:.0f} to {stop - 1:.0f}"
        made.append(Fold(span, np.flatnonzero(year < start), test))
    return made


def _purge(folds: list[Fold], related: Sequence[Any] | np.ndarray | None) -> list[Fold]:
    if related is None:
        return folds
    groups = np.asarray([str(value) for value in related])
    kept = [Fold(f.name, f.train[~np.isin(groups[f.train], groups[f.test])], f.test) for f in folds]
    return [fold for fold in kept if len(fold.train)]


def _numbered(parts: Any) -> list[Fold]:
    return [Fold(str(number), np.sort(train), np.sort(test)) for number, (train, test) in enumerate(parts)]


def _shared(fold: Fold, values: Sequence[Any]) -> np.ndarray:
    train = {values[row] for row in fold.train}
    return np.asarray([values[row] in train for row in fold.test], dtype=bool)


def _stratification(labels: Sequence[Any] | np.ndarray | None, folds: int, size: int) -> np.ndarray | None:
    if labels is None or size == 0:
        return None
    _, codes, counts = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
    return codes if counts.min() >= folds and len(counts) > 1 else None


def _needed(column: Sequence[Any] | np.ndarray | None, split: str, name: str) -> np.ndarray:
    if column is None:
        raise ModelInputError(f"The split {split!r} needs {name}")
    return np.asarray(column, dtype=object) if not isinstance(column, np.ndarray) else column
