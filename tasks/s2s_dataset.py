"""Stage s2s: from reports and ordered crystals to the training set of S2SNet.

Superconducting are the crystals that carry a measured Tc. The others are drawn from crystals that are not known to
superconduct: no composition with a Tc agrees with theirs by the classes of 3DSC, and none was measured on their parent
crystal. Crystals in which superconductivity was looked for and not found down to a known temperature come first; the
rest are unlabelled, as are those for which a report only gives no Tc. Every other crystal is for pre-training.
"""

import gzip
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from prefect import task

from models.crystals import crystal_arrays
from models.exceptions import ModelInputError
from tasks.cleaning import OUTPUT as SUPERCONDUCTOR_TABLE
from tasks.crystals import natural_key, structure_from_json
from tasks.exceptions import InputError
from tasks.formulas import chemical_system, parse_formula
from tasks.matching import CLASSES, CrystalIndex, find_candidates
from tasks.ordering import OUTPUT as ORDERED_TABLE
from tasks.progress import Advance, leave_summary, silent, stage_progress
from tasks.schemas import S2S
from tasks.settings import MatchingSettings, S2sSettings
from tasks.stages import Rejection, StageOutcome, StageReport, hash_text, run_stage
from tasks.workspace import Workspace, atomic_path

STAGE = "s2s"
CODE_VERSION = 1
OUTPUT = "datasets/s2s.parquet"
DECIMALS = 6  # of the exported cells and coordinates, as in the published set

Row = dict[str, Any]
COPIED = ("material_id", "parent_id", "formula", "supercon_formula", "family", "year_first", "sites")


def build_s2s(
    ordered: pa.Table,
    superconductors: pa.Table,
    settings: S2sSettings,
    matching: MatchingSettings,
    advance: Advance = silent,
) -> StageOutcome:
    """The training and the pre-training set, each crystal with the reason why it is in.

    Parameters
    ----------
    ordered
        Rows of ORDERED.
    superconductors
        Rows of SUPERCONDUCTORS: whose Tc are known, and how far down others were measured.

    Returns
    -------
    StageOutcome
        Table ``datasets/s2s.parquet`` (``S2S``) in natural order of the ids. Refused are cells that are too large or
        that the network cannot take, and all but the first of equal cells: a superconducting one before a bound, and
        that before the others.

    Raises
    ------
    InputError
        If no superconducting crystal is left.
    """
    bounds = dict(zip(*(superconductors[name].to_pylist() for name in ("formula", "lowest_kelvin")), strict=True))
    rows = [_as_candidate(row, bounds) for row in ordered.to_pylist()]
    usable, rejected = check_cells(rows, settings, advance)
    positives = [row for row in usable if row["label_source"] == "measured"]
    if not positives:
        raise InputError(
            f"None of {len(rows)} ordered crystals carries a Tc above 0; match reports to crystals first "
            "(`meissner refresh --until order`)"
        )
    others = [row for row in usable if row["label_source"] != "measured"]
    known = find_known(others, positives, superconductors, matching)
    wanted = round(settings.negatives_per_positive * len(positives))
    free = [row for row in others if row["material_id"] not in known]
    drawn = {row["material_id"] for row in draw(free, wanted, settings.seed)}
    finished = sorted(
        (_finish(row, row["material_id"] in drawn, known.get(row["material_id"])) for row in usable),
        key=lambda row: natural_key(row["material_id"]),
    )
    return StageOutcome(
        rows_in=len(rows),
        accounted=len(finished),
        tables={OUTPUT: pa.Table.from_pylist(finished, schema=S2S)},
        rejected=rejected,
        counts=_counts(finished, wanted),
    )


def _as_candidate(row: Row, bounds: dict[str, float | None]) -> Row:
    """A crystal with what is known of its superconductivity."""
    tc, lowest = row["tc_kelvin"] or None, bounds.get(row["supercon_formula"])
    label = "measured" if tc else "bound" if lowest is not None and row["tc_kelvin"] == 0 else "unlabelled"
    return row | {"tc_kelvin": tc, "lowest_kelvin": lowest if label == "bound" else None, "label_source": label}


def check_cells(rows: Sequence[Row], settings: S2sSettings, advance: Advance) -> tuple[list[Row], list[Rejection]]:
    """Rows that the network can take, each cell once, and why the others are refused."""
    rank = {"measured": 0, "bound": 1, "unlabelled": 2}
    first: dict[str, str] = {}
    kept, rejected = [], []
    for row in sorted(rows, key=lambda row: (rank[row["label_source"]], natural_key(row["material_id"]))):
        advance(1)
        try:
            crystal_arrays(structure_from_json(row["structure"]), settings.max_sites)
        except ModelInputError as error:
            rejected.append(Rejection(row["material_id"], str(error)))
            continue
        twin = first.setdefault(row["structure_hash"], row["material_id"])
        if twin == row["material_id"]:
            kept.append(row)
        else:
            rejected.append(Rejection(row["material_id"], f"the same ordered cell as {twin}"))
    return kept, rejected


def find_known(
    others: Sequence[Row], positives: Sequence[Row], superconductors: pa.Table, matching: MatchingSettings
) -> dict[str, str]:
    """Of the others, by material id, those that are known to superconduct in some form, and how that is known."""
    table = superconductors.filter(pc.greater(superconductors["tc_kelvin"], 0))
    formulas, temperatures = table["formula"].to_pylist(), table["tc_kelvin"].to_pylist()
    crystals = {
        "crystal_id": [row["material_id"] for row in others],
        "formula": [row["formula"] for row in others],
        "energy_above_hull_ev": [None] * len(others),
    }
    candidates, _ = find_candidates(
        [parse_formula(formula, np.inf) for formula in formulas], CrystalIndex(pa.table(crystals)), matching
    )
    parents = {row["parent_id"]: row for row in reversed(positives)}
    known = {}
    for row in others:
        if relative := parents.get(row["parent_id"]):
            known[row["material_id"]] = f"its parent crystal superconducts as {relative['supercon_formula']}"
    best: dict[int, tuple[float, int, int]] = {}
    for measured, found in enumerate(candidates):
        for candidate in found:
            order = (candidate.difference, candidate.match, measured)
            best[candidate.position] = min(order, best.get(candidate.position, order))
    for position, (_, match, measured) in best.items():
        how = f"{CLASSES[match]} match of {formulas[measured]}, {temperatures[measured]:g} K"
        known[others[position]["material_id"]] = how
    return known


def draw(rows: Iterable[Row], count: int, seed: int) -> list[Row]:
    """So many of the rows, those with a bound before the others, by a seeded order of their ids.

    Where a crystal stands in that order hangs on its id and the seed alone: a new crystal displaces one at most.
    """
    return sorted(rows, key=lambda row: (row["label_source"] != "bound", hash_text(str(seed), row["material_id"])))[
        :count
    ]


def _finish(row: Row, drawn: bool, known: str | None) -> Row:
    """A crystal as a row of S2S."""
    source = row["label_source"]
    bound = f"no superconductivity down to {row['lowest_kelvin']:g} K" if source == "bound" else ""
    silent_report = f"; {row['supercon_formula']} is reported without a Tc" if row["supercon_formula"] else ""
    if source == "measured":
        label, reason = 1, f"Tc of {row['tc_kelvin']:g} K reported for {row['supercon_formula']} ({row['match']} match)"
    elif drawn:
        label, reason = 0, bound or f"drawn from the crystals that are not known to superconduct{silent_report}"
    else:
        label, reason = None, known or "not drawn"
    return {
        **{name: row[name] for name in (*COPIED, "label_source", "tc_kelvin", "lowest_kelvin")},
        "chemical_system": chemical_system(row["formula"]),
        "superconductor": label,
        "role": "pretrain" if label is None else "train",
        "reason": reason,
        "structure_hash": row["structure_hash"],
        "structure": row["structure"],
    }


def _counts(rows: Sequence[Row], wanted: int) -> dict[str, Any]:
    superconducting, others = ([row for row in rows if row["superconductor"] == label] for label in (1, 0))
    return {
        "superconductors": len(superconducting),
        "others": len(others),
        "others_with_a_bound": sum(row["label_source"] == "bound" for row in others),
        "others_wanted": wanted,
        "pretraining": sum(row["role"] == "pretrain" for row in rows),
        "median_sites_superconductors": median(row["sites"] for row in superconducting),
        "median_sites_others": median(row["sites"] for row in others) if others else None,
    }


def export_lines(table: pa.Table) -> str:
    """The training crystals as JSON lines in the layout of the published set: class, cell, atoms, coordinates."""
    lines: list[str] = []
    for row in table.filter(pc.equal(table["role"], "train")).to_pylist():
        crystal = crystal_arrays(structure_from_json(row["structure"]))
        document = {
            "index": len(lines),
            "superconductor": row["superconductor"],
            "lattice": np.round(crystal.lattice, DECIMALS).tolist(),
            "atomic_numbers": crystal.atomic_numbers.tolist(),
            "frac_coords": np.round(crystal.frac_coords, DECIMALS).tolist(),
        }
        lines.append(json.dumps(document) + "\n")
    return "".join(lines)


@task(name="s2s")
def build_dataset(
    workspace: str, settings: S2sSettings, matching: MatchingSettings = MatchingSettings()
) -> StageReport:
    """Build the training set in the workspace; see ``build_s2s``."""
    place = Workspace(workspace)

    def compute() -> StageOutcome:
        ordered, superconductors = place.read_table(ORDERED_TABLE), place.read_table(SUPERCONDUCTOR_TABLE)
        with stage_progress(STAGE, ordered.num_rows) as advance:
            return build_s2s(ordered, superconductors, settings, matching, advance)

    inputs = [place.fingerprint(ORDERED_TABLE), place.fingerprint(SUPERCONDUCTOR_TABLE), matching.model_dump_json()]
    report = run_stage(place, STAGE, compute, code_version=CODE_VERSION, inputs=inputs, settings=settings)
    return leave_summary(place, report)


@task(name="export-s2s")
def export_dataset(workspace: str, file: str) -> str:
    """Write the training crystals as JSON lines, gzipped where the name ends in .gz; the same set, the same bytes."""
    target = Path(file)
    text = export_lines(Workspace(workspace).read_table(OUTPUT, ["role", "superconductor", "structure"])).encode()
    try:
        with atomic_path(target) as scratch:
            scratch.write_bytes(gzip.compress(text, mtime=0) if target.suffix == ".gz" else text)
    except OSError as error:
        raise InputError(f"Cannot write {file}: {error.strerror or error}") from error
    return str(target)
