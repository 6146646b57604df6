"""Cross-validation folds of materials, and the audit of what stands on both sides of a fold.

A row is a material; augmentation happens after the split, inside a side. Only the random split may have one parent
crystal or one chemical system on both sides: there it is counted, anywhere else it stops the training.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from pymatgen.core.composition import Composition
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.stats import hypergeom
from sklearn.model_selection import KFold, StratifiedGroupKFold, StratifiedKFold

from models.exceptions import LeakageError, ModelInputError
from models.roundings import rounded_alike

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
    material_ids: Sequence[str] | None = None,
    parents: Sequence[str] | None = None,
    formulas: Sequence[str] | None = None,
    systems: Sequence[str] | None = None,
    labels: Sequence[Any] | None = None,
) -> dict[str, int | None]:
    """How many test materials have a relative in the training; None where a column that tells is not given.

    Returns
    -------
    dict
        ``train`` and ``test``: materials on each side. ``materials``: test materials that are training materials.
        ``parents``: whose parent crystal is also in the training; ``doped_parents``: of these, those that stand
        there only with other compositions. ``compositions``: whose composition is in the training, however spelled;
        ``respelled``: of these, those that stand there only with another text; ``rounded``: others that stand there
        with other decimals (see ``models.roundings``); ``polymorphs``: of the compositions, those that stand there
        only with other parents; ``merged_polymorphs``: of these, those that have their label there. ``systems``:
        whose chemical system is in the training. ``relatives``: of which any of this is true.
    """
    keys = [composition_key(formula) for formula in formulas] if formulas is not None else None
    material, parent, system = (_shared(fold, values) for values in (material_ids, parents, systems))
    same, text, exact = _shared(fold, keys), _shared(fold, formulas), _shared(fold, parents, keys)
    polymorph = _and_not(same, exact)
    with_label = _shared(fold, keys, labels)
    rounded = None if formulas is None else _and_not(_in_other_decimals(fold, formulas), same)
    known = [mask for mask in (material, parent, same, rounded, system) if mask is not None]
    masks = {
        "materials": material,
        "parents": parent,
        "doped_parents": _and_not(parent, exact),
        "compositions": same,
        "respelled": _and_not(same, text),
        "rounded": rounded,
        "polymorphs": polymorph,
        "merged_polymorphs": None if polymorph is None or with_label is None else polymorph & with_label,
        "systems": system,
        "relatives": np.any(known, axis=0) if known else None,
    }
    counts = {name: None if mask is None else int(mask.sum()) for name, mask in masks.items()}
    return {"train": len(fold.train), "test": len(fold.test), **counts}


def find_leak(
    split: str, table: Mapping[str, Any], name: str = "", max_share: float = 0.0, max_share_random: float = 1.0
) -> str | None:
    """What a fold's ``leakage_table`` holds that its split promises to keep apart, as a sentence; None for nothing.

    A material on both sides breaks every split. Relatives in the training break a split where more than ``max_share``
    of the test materials have one; in the random split, where more than ``max_share_random``.
    """
    limit = max_share_random if split == "random" else max_share
    share = (table.get("relatives") or 0) / max(table["test"], 1)
    forbidden = ["materials", *(("parents", "compositions", "rounded", "systems") if share > limit else ())]
    found = {key: table[key] for key in forbidden if table.get(key)}
    if not found:
        return None
    counts = ", ".join(f"{count} {key}" for key, count in found.items())
    allowed = f" ({share:.0%} have a relative there, at most {limit:.0%} may)" if share > limit else ""
    return f"Fold {name!r} of the split {split!r} leaks: {counts} of the test stand in the training{allowed}"


def check_leakage(
    split: str, table: Mapping[str, Any], name: str = "", max_share: float = 0.0, max_share_random: float = 1.0
) -> None:
    """Raise LeakageError where a fold holds what its split promises to keep apart; see ``find_leak``."""
    if leak := find_leak(split, table, name, max_share, max_share_random):
        raise LeakageError(leak)


def order_test(test: np.ndarray) -> tuple[int, float, float]:
    """Whether a side follows the order of its rows, as blocks do, or every fifth row.

    Parameters
    ----------
    test
        (n,) bool along the file, true for test.

    Returns
    -------
    tuple
        Stretches of test rows; how many are to be expected of rows drawn by lot; the chance, exact up to a factor of 2,
        that a lot is as far off. Stretches are counted (their number is hypergeometric: Wald and Wolfowitz, Ann. Math.
        Stat. 11, 147 (1940)), and equal distances are looked for.
    """
    rows, chosen = len(test), int(test.sum())
    stretches = int(test[:1].sum() + (test[1:] & ~test[:-1]).sum())
    lot = hypergeom(rows, rows - chosen + 1, chosen)
    chance = 2 * min(lot.cdf(stretches), lot.sf(stretches - 1))
    if chosen > 2 and len(np.unique(np.diff(np.flatnonzero(test)))) == 1:
        progressions = sum(range(rows - (chosen - 1), 0, -(chosen - 1)))  # with each distance that there is room for
        chance = min(chance, progressions / math.comb(rows, chosen))
    return stretches, chosen * (rows - chosen + 1) / max(rows, 1), float(min(chance, 1.0))


@lru_cache(maxsize=100_000)
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


def _shared(fold: Fold, *columns: Sequence[Any] | None) -> np.ndarray | None:
    """Which test rows agree with a training row in all of the columns; None where one is not given."""
    given = [column for column in columns if column is not None]
    if len(given) < len(columns):
        return None
    values = list(zip(*given, strict=True))
    train = {values[row] for row in fold.train}
    return np.asarray([values[row] in train for row in fold.test], dtype=bool)


def _and_not(mask: np.ndarray | None, other: np.ndarray | None) -> np.ndarray | None:
    return None if mask is None or other is None else mask & ~other


def _in_other_decimals(fold: Fold, formulas: Sequence[str]) -> np.ndarray:
    """Which test rows have a training row whose formula is theirs in other decimals."""
    train = {formulas[row] for row in fold.train}
    alike = rounded_alike(tuple(formulas))
    return np.asarray([not train.isdisjoint(alike.get(formulas[row], ())) for row in fold.test], dtype=bool)


def _stratification(labels: Sequence[Any] | np.ndarray | None, folds: int, size: int) -> np.ndarray | None:
    if labels is None or size == 0:
        return None
    _, codes, counts = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
    return codes if counts.min() >= folds and len(counts) > 1 else None


def _needed(column: Sequence[Any] | np.ndarray | None, split: str, name: str) -> np.ndarray:
    if column is None:
        raise ModelInputError(f"The split {split!r} needs {name}")
    return np.asarray(column, dtype=object) if not isinstance(column, np.ndarray) else column
