"""Cleaning, matching and ordering at full size, matching beside the published way.

    OMP_NUM_THREADS=1 python tests/benchmarks/data_speed.py WORKSPACE SUPERCON_CSV --synthetic 150000 --pairs 200

WORKSPACE has been refreshed until ``order`` with SUPERCON_CSV. CPU seconds are counted, since others may be using the
machine. The published way of matching (3DSC) compares each composition with each crystal that may match it, pair by
pair, with pymatgen's Composition; it is timed on ``--pairs`` compositions and must give the same classes.
"""

# ruff: noqa: T201 - a benchmark prints its table

import argparse
import math
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pymatgen.core import Composition

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tasks.cleaning import clean_reports, read_reports
from tasks.formulas import parse_formula, reduce_amounts, write_formula
from tasks.matching import CLASSES, EXACT_R, CrystalIndex, find_candidates, match_compositions
from tasks.ordering import _order_job
from tasks.schemas import SUPERCONDUCTORS
from tasks.settings import CleaningSettings, MatchingSettings, OrderingSettings
from tasks.workspace import Workspace

SETTINGS = MatchingSettings()


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """What a function gives, and its CPU seconds."""
    start = time.process_time()
    result = function()
    return result, time.process_time() - start


def published_class(measured: Composition, crystal: Composition) -> str | None:
    """3DSC's class of one pair, element by element; elements are known to fit."""
    unit = crystal.num_atoms if len(crystal) > 1 else measured.num_atoms
    first, second = measured * (unit / measured.num_atoms), crystal * (unit / crystal.num_atoms)
    differences = {element: abs(first[element] - second[element]) for element in first}
    relative = {e: 2 * d / (first[e] + second[e]) for e, d in differences.items()}
    total = 2 * sum(differences.values()) / (first.num_atoms + second.num_atoms)
    if total <= EXACT_R and len(crystal) == len(measured):
        return "exact"
    broken = [any(differences[e] > d and relative[e] > r for e in first) for d, r in ((0.15, 0.10), (0.30, 0.20))]
    if total <= 0.05 and not broken[0]:
        return "similar"
    return "doped" if total <= 0.15 and not broken[1] else None


def published_way(formulas: list[str], crystals: list[Composition]) -> list[set[tuple[int, str]]]:
    """Positions and classes of the crystals that match each composition, all pairs looked at."""
    found = []
    for formula in formulas:
        measured = Composition(reduce_amounts(parse_formula(formula, math.inf)))
        elements, matches = set(measured), set()
        for position, crystal in enumerate(crystals):
            inside = set(crystal) <= elements
            if inside and len(elements) - len(crystal) <= (len(elements) > 1):
                name = published_class(measured, crystal)
                if name:
                    matches.add((position, name))
        found.append(matches)
    return found


def synthetic_compositions(table: pa.Table, count: int, seed: int = 0) -> pa.Table:
    """Measured compositions with every amount changed by up to 5 %, drawn by a seeded rule."""
    random = np.random.default_rng(seed)
    rows = table.to_pylist()
    made = []
    for position in random.integers(0, len(rows), count):
        amounts = parse_formula(rows[position]["formula"], math.inf)
        changed = {e: max(x * random.uniform(0.95, 1.05), 1e-3) for e, x in amounts.items()}
        made.append({**rows[position], "formula": write_formula(changed)})
    return pa.Table.from_pylist(made, schema=SUPERCONDUCTORS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workspace")
    parser.add_argument("supercon")
    parser.add_argument("--synthetic", type=int, default=150_000)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--ordered", type=int, default=60)
    arguments = parser.parse_args()
    workspace = Workspace(arguments.workspace)
    crystals = workspace.read_table("crystals/crystals.parquet")

    cleaned, seconds = timed(lambda: clean_reports(read_reports(arguments.supercon), CleaningSettings()))
    print(f"clean: {cleaned.rows_in} rows in {seconds:.1f} s", flush=True)
    measured = cleaned.tables["supercon/superconductors.parquet"]

    matched, seconds = timed(lambda: match_compositions(measured, crystals, SETTINGS))
    print(
        f"match: {len(measured)} compositions, {len(crystals)} crystals, doping included: {seconds:.1f} s", flush=True
    )

    many = synthetic_compositions(measured, arguments.synthetic)
    _, seconds = timed(lambda: match_compositions(many, crystals, SETTINGS))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"match: {len(many)} synthetic compositions: {seconds:.1f} s, at most {peak:.2f} GiB", flush=True)

    index = CrystalIndex(crystals)
    sample = np.random.default_rng(0).choice(len(measured), arguments.pairs, replace=False)
    formulas = [measured["formula"][int(row)].as_py() for row in sample]
    compositions = [Composition(reduce_amounts(amounts)) for amounts in index.amounts]
    theirs, slow = timed(lambda: published_way(formulas, compositions))
    everything = [parse_formula(formula, math.inf) for formula in measured["formula"].to_pylist()]
    (candidates, _), fast = timed(lambda: find_candidates(everything, index, SETTINGS))
    ours = [{(one.position, CLASSES[one.match]) for one in candidates[int(row)]} for row in sample]
    same = sum(a == b for a, b in zip(ours, theirs, strict=True))
    each = slow / len(sample), fast / len(everything)
    print(
        f"classes of a composition, published way {1e3 * each[0]:.2f} ms, ours {1e3 * each[1]:.3f} ms: "
        f"{each[0] / each[1]:.0f} times; the same for {same} of {len(sample)}",
        flush=True,
    )

    matches = matched.tables["crystals/matches.parquet"].to_pylist()
    disordered = [row["structure"] for row in matches if row["match"] != "exact"]
    chosen = np.random.default_rng(0).choice(len(disordered), min(arguments.ordered, len(disordered)), replace=False)
    times = []
    for position in chosen:
        try:
            _, seconds = timed(lambda: _order_job((disordered[position], OrderingSettings())))  # noqa: B023
        except Exception as error:  # noqa: BLE001 - too large: counted by the stage
            print(f"  {error}")
            continue
        times.append(seconds)
    print(f"order: median {statistics.median(times):.2f} s, largest {max(times):.1f} s of {len(times)} crystals")


if __name__ == "__main__":
    main()
