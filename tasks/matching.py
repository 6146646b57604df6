"""Measured compositions find their crystals, by the classes of 3DSC (Sci. Data 10, 816 (2023))."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from prefect import task

from tasks.cleaning import OUTPUT as SUPERCONDUCTOR_TABLE
from tasks.crystals import OUTPUT as CRYSTAL_TABLE
from tasks.crystals import natural_key, structure_from_json, structure_to_json
from tasks.doping import DopingError, dope_structure
from tasks.formulas import composition_difference, parse_formula, reduce_amounts
from tasks.progress import Advance, leave_summary, silent, stage_progress
from tasks.schemas import MATCHES
from tasks.settings import MatchingSettings
from tasks.stages import Rejection, StageOutcome, StageReport, run_stage
from tasks.workspace import Workspace

__all__ = ["OUTPUT", "CrystalIndex", "composition_difference", "match_class", "match_compositions", "match_crystals"]

STAGE = "match"
CODE_VERSION = 1
OUTPUT = "crystals/matches.parquet"
CLASSES = ("exact", "similar", "doped")
NO_MATCH = len(CLASSES)
EXACT_R = 5e-4  # what is left of R = 0 where thirds are written with three decimals
BLOCK = 4_000_000  # numbers compared at once: 32 MB an array


def compare_compositions(
    measured: np.ndarray, crystals: np.ndarray, settings: MatchingSettings
) -> tuple[np.ndarray, np.ndarray]:
    """Difference R and class of each measured composition against each crystal.

    Both are brought to the total of the crystal's formula unit, or, where the crystal is an element, of the measured
    one: the thresholds of d_i are atoms, and UBe13 is no doped beryllium. With d_i the difference in the amount of
    element i and r_i = 2 d_i / (sum of the two amounts), R = 2 sum d_i / (sum of all amounts of both).

    Parameters
    ----------
    measured, crystals
        (n, n_elements) and (m, n_elements) float, amounts per formula unit of the same elements in the same order; a
        crystal may have zeros.

    Returns
    -------
    tuple of arrays
        R, (n, m) float in [0, 2]; position in ``CLASSES``, (n, m) int, ``NO_MATCH`` for no match.
    """
    units = np.where(
        (crystals > 0).sum(axis=1)[None] > 1, crystals.sum(axis=1)[None], measured.sum(axis=1, keepdims=True)
    )
    first = (measured / measured.sum(axis=1, keepdims=True))[:, None, :] * units[:, :, None]
    second = (crystals / crystals.sum(axis=1, keepdims=True))[None] * units[:, :, None]
    both, differences = first + second, np.abs(first - second)
    total_difference = 2 * differences.sum(axis=2) / both.sum(axis=2)
    relative = 2 * differences / np.maximum(both, 1e-12)
    complete = np.all(crystals > 0, axis=1)[None]
    similar_broken = np.any((differences > settings.similar_amount) & (relative > settings.similar_relative), axis=2)
    doped_broken = np.any((differences > settings.doped_amount) & (relative > settings.doped_relative), axis=2)
    classes = np.select(
        [
            (total_difference <= EXACT_R) & complete,
            (total_difference <= settings.similar_r) & ~similar_broken,
            (total_difference <= settings.doped_r) & ~doped_broken,
        ],
        range(NO_MATCH),
        default=NO_MATCH,
    )
    return total_difference, classes


def match_class(a: Mapping[str, float], b: Mapping[str, float], settings: MatchingSettings) -> str | None:
    """3DSC's class of agreement of a measured composition ``a`` with a crystal's ``b``, both in any scale.

    Returns exact, similar or doped, or None: also where the crystal has an element that is not measured, or lacks more
    than one (any, where one element was measured).
    """
    if not _elements_fit(frozenset(a), frozenset(b)):
        return None
    measured, crystal = reduce_amounts(a), reduce_amounts(b)
    symbols = sorted(a)
    first = np.array([[measured.get(symbol, 0.0) for symbol in symbols]], dtype=float)
    second = np.array([[crystal.get(symbol, 0.0) for symbol in symbols]], dtype=float)
    position = int(compare_compositions(first, second, settings)[1][0, 0])
    return CLASSES[position] if position < NO_MATCH else None


def _elements_fit(measured: frozenset[str], crystal: frozenset[str]) -> bool:
    return crystal <= measured and len(measured) - len(crystal) <= (1 if len(measured) > 1 else 0)


@dataclass(frozen=True, order=True)
class Candidate:
    """A crystal that agrees with a composition; sorts from best to worst."""

    difference: float  # R, rounded so that the last digits of arithmetic decide nothing
    other_total: bool  # its formula unit has another number of atoms
    energy_above_hull_ev: float  # infinite where unknown
    id_rank: int  # position of the crystal's id in natural order
    position: int  # in the table of crystals
    match: int  # position in CLASSES


class CrystalIndex:
    """Crystals by the set of their elements, so that no composition meets crystals of other elements."""

    def __init__(self, crystals: pa.Table) -> None:
        self.ids: list[str] = crystals["crystal_id"].to_pylist()
        self.formulas: list[str] = crystals["formula"].to_pylist()
        self.amounts = [parse_formula(formula, math.inf) for formula in self.formulas]
        energies = crystals["energy_above_hull_ev"].to_pylist()
        self.energies = [math.inf if energy is None else float(energy) for energy in energies]
        order = sorted(range(len(self.ids)), key=lambda position: natural_key(self.ids[position]))
        self.id_ranks = {position: rank for rank, position in enumerate(order)}
        self.systems: dict[frozenset[str], list[int]] = defaultdict(list)
        for position, amounts in enumerate(self.amounts):
            self.systems[frozenset(amounts)].append(position)

    def with_elements(self, system: frozenset[str]) -> list[int]:
        """Crystals of these elements, or of all but one of them."""
        subsystems = [system - {symbol} for symbol in sorted(system)] if len(system) > 1 else []
        return [position for elements in (system, *subsystems) for position in self.systems.get(elements, ())]


def find_candidates(
    measured: Sequence[Mapping[str, float]], index: CrystalIndex, settings: MatchingSettings
) -> tuple[list[list[Candidate]], dict[int, tuple[float, int]]]:
    """Crystals that agree with each composition, best first, and for the others the nearest one with its R."""
    candidates: list[list[Candidate]] = [[] for _ in measured]
    nearest: dict[int, tuple[float, int]] = {}
    for rows, positions, symbols in _blocks(measured, index):
        compositions = np.array([[measured[row][symbol] for symbol in symbols] for row in rows])
        crystals = np.array([[index.amounts[p].get(symbol, 0.0) for symbol in symbols] for p in positions])
        differences, classes = compare_compositions(compositions, crystals, settings)
        totals_differ = np.abs(compositions.sum(axis=1)[:, None] - crystals.sum(axis=1)[None]) > 1e-3
        for i, j in zip(*np.nonzero(classes < NO_MATCH), strict=True):
            position = positions[j]
            candidates[rows[i]].append(
                Candidate(
                    difference=round(float(differences[i, j]), 6),
                    other_total=bool(totals_differ[i, j]),
                    energy_above_hull_ev=index.energies[position],
                    id_rank=index.id_ranks[position],
                    position=position,
                    match=int(classes[i, j]),
                )
            )
        for i, j in enumerate(differences.argmin(axis=1)):
            nearest[rows[i]] = (float(differences[i, j]), positions[j])
    for found in candidates:
        found.sort()
    return candidates, nearest


def _blocks(
    measured: Sequence[Mapping[str, float]], index: CrystalIndex
) -> Iterator[tuple[list[int], list[int], list[str]]]:
    """Compositions of one chemical system, the crystals that they may match, and the elements, in bounded blocks."""
    systems: dict[frozenset[str], list[int]] = defaultdict(list)
    for row, amounts in enumerate(measured):
        systems[frozenset(amounts)].append(row)
    for system, rows in systems.items():
        positions = index.with_elements(system)
        if not positions:
            continue
        step = max(1, BLOCK // (len(positions) * len(system)))
        for start in range(0, len(rows), step):
            yield rows[start : start + step], positions, sorted(system)


def match_compositions(
    superconductors: pa.Table, crystals: pa.Table, settings: MatchingSettings, advance: Advance = silent
) -> StageOutcome:
    """The best crystal of each measured composition, doped where it has to be.

    Best is lowest R, then the same total of atoms, then lowest energy above the hull, then the id in natural order. A
    crystal that cannot clearly be doped gives way to the next best. Of polymorphs that agree equally well only the
    best one is kept: which of them was measured is not known.

    Returns
    -------
    StageOutcome
        Table ``crystals/matches.parquet`` (``MATCHES``), in the order of the compositions; every other composition is
        refused with the reason.
    """
    index = CrystalIndex(crystals)
    measured = [parse_formula(formula, math.inf) for formula in superconductors["formula"].to_pylist()]
    candidates, nearest = find_candidates(measured, index, settings)
    texts = crystals["structure"]
    load = lru_cache(maxsize=2000)(lambda position: structure_from_json(texts[position].as_py()))
    rows, rejected = [], []
    for row, record in enumerate(superconductors.to_pylist()):
        advance(1)
        reason = _why_none(index, nearest.get(row), settings)
        for candidate in candidates[row]:
            position = candidate.position
            try:
                if CLASSES[candidate.match] == "exact":
                    structure = texts[position].as_py()
                else:
                    doped = dope_structure(load(position), index.amounts[position], measured[row])
                    structure = structure_to_json(doped)
            except DopingError as error:
                if candidate is candidates[row][0]:
                    reason = f"{index.ids[position]} ({index.formulas[position]}) is nearest, but {error}"
                continue
            rows.append(_row(record, crystals, candidate, structure))
            break
        else:
            rejected.append(Rejection(record["formula"], reason))
    table = pa.Table.from_pylist(rows, schema=MATCHES)
    counts = {match: sum(row["match"] == match for row in rows) for match in CLASSES}
    no_crystal = sum(not found for found in candidates)
    return StageOutcome(
        rows_in=superconductors.num_rows,
        accounted=len(rows),
        tables={OUTPUT: table},
        rejected=rejected,
        counts={**counts, "no_crystal": no_crystal, "not_clear": len(rejected) - no_crystal},
    )


def _row(record: Mapping[str, Any], crystals: pa.Table, candidate: Candidate, structure: str) -> dict[str, Any]:
    copied = ("formula", "tc_kelvin", "tc_std_kelvin", "year_first", "family")
    return {
        **{name: record[name] for name in copied},
        "crystal_id": crystals["crystal_id"][candidate.position].as_py(),
        "crystal_source": crystals["crystal_source"][candidate.position].as_py(),
        "match": CLASSES[candidate.match],
        "difference": candidate.difference,
        "structure": structure,
    }


def _why_none(index: CrystalIndex, nearest: tuple[float, int] | None, settings: MatchingSettings) -> str:
    if nearest is None:
        return "no crystal has its elements, or all but one of them"
    difference, position = nearest
    return (
        f"no crystal agrees: the nearest, {index.ids[position]} ({index.formulas[position]}), "
        f"has R = {difference:.3f} (at most {settings.doped_r:g}, and no element far off)"
    )


@task(name="match")
def match_crystals(workspace: str, settings: MatchingSettings) -> StageReport:
    """Match the workspace's compositions to its crystals; see ``match_compositions``."""
    space = Workspace(workspace)

    def compute() -> StageOutcome:
        superconductors, crystals = space.read_table(SUPERCONDUCTOR_TABLE), space.read_table(CRYSTAL_TABLE)
        with stage_progress(STAGE, superconductors.num_rows) as advance:
            return match_compositions(superconductors, crystals, settings, advance)

    inputs = [space.fingerprint(SUPERCONDUCTOR_TABLE), space.fingerprint(CRYSTAL_TABLE)]
    report = run_stage(space, STAGE, compute, code_version=CODE_VERSION, inputs=inputs, settings=settings)
    return leave_summary(space, report)
