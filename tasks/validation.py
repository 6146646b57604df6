"""Stage "validate-pairs": the eight compounds of the BNAS paper's Table I, asked of the network trained here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from prefect import task
from pymatgen.core import Composition, Structure

from tasks.attention import collections_of
from tasks.bands import ORDERED_TABLE
from tasks.bnas_data import NAME
from tasks.bnas_ensemble import COVERAGE, load_bnas
from tasks.exceptions import InputError
from tasks.held_out import read_held_out
from tasks.model_store import chosen_version
from tasks.prediction import round_significant
from tasks.progress import leave_summary, leave_table
from tasks.schemas import PAIRS
from tasks.shards import INDEX, read_grids
from tasks.stages import Rejection, StageOutcome, StageReport, run_stage
from tasks.workspace import Workspace

STAGE = "validate-pairs"
CODE_VERSION = 1
OUTPUT = "validation/pairs.parquet"
SYMPREC = 0.1  # angstrom, for the space group of a relaxed or measured crystal
GPAW_LANTHANIDES = frozenset({"La", "Lu"})  # the others have no data set there


@dataclass(frozen=True)
class Compound:
    """A row of the paper's Table I.

    Attributes
    ----------
    pair
        1 to 4; the two of a pair are alike, and only one is a superconductor.
    space_group
        As printed, and its number: Ammm is another setting of Cmmm, and Amam of Cmcm.
    measured_kelvin
        None: measured without superconductivity.
    published_kelvin
        What the paper's network predicts; ``published_bound``: less than this.
    """

    pair: int
    formula: str
    space_group: str
    space_group_number: int
    measured_kelvin: float | None
    published_kelvin: float
    published_bound: bool = False
    pressure_gpa: float = 0.0


TABLE_I = (  # of the BNAS paper; its text names two pairs the wrong way round
    Compound(1, "Ba2Cu4PrO8", "Cmmm", 65, None, 0.01, published_bound=True),
    Compound(1, "Ba2Cu4TmO8", "Ammm", 65, 80.0, 103.4),
    Compound(2, "LaYAs2Fe2O2", "P4mm", 99, None, 0.01, published_bound=True),
    Compound(2, "LaAsFeO", "P4/nmm", 129, 10.2, 12.6),
    Compound(3, "La3Ni2O7", "Amam", 63, None, 0.45),
    Compound(3, "La3Ni2O7", "Fmmm", 69, 80.0, 116.3, pressure_gpa=29.5),
    Compound(4, "IrSiTb", "Pnma", 62, None, 0.01, published_bound=True),
    Compound(4, "IrSiZr", "Pnma", 62, 2.04, 1.79),
)


@dataclass(frozen=True)
class Candidate:
    """A grid whose composition is one of the table's.

    Attributes
    ----------
    collection
        Name of the collection that holds it; empty: the workspace itself.
    space_group
        International symbol and number; None where no crystal is stored.
    tc_kelvin
        Its label, None where it carries none.
    """

    material_id: str
    formula: str
    collection: str
    place: Workspace
    space_group: tuple[str, int] | None
    tc_kelvin: float | None


def find_candidates(workspace: Workspace, compounds: Sequence[Compound] = TABLE_I) -> list[Candidate]:
    """Grids of the workspace and of its collections whose reduced formula is one of the compounds'.

    Raises
    ------
    MissingStageError
        If there are no grids at all.
    """
    wanted = {_reduced(compound.formula) for compound in compounds}
    collections = collections_of(workspace)
    places = [workspace, *collections] if workspace.exists(INDEX) or not collections else collections
    found = []
    for place in places:
        rows = place.read_table(INDEX, ["material_id", "formula", "tc_kelvin"]).to_pylist()
        chosen = [row for row in rows if _reduced(row["formula"]) in wanted]
        groups = _space_groups(place, [row["material_id"] for row in chosen])
        collection = "" if place is workspace else place.url.rstrip("/").rpartition("/")[2]
        found += [Candidate(**row, collection=collection, place=place, space_group=groups[row["material_id"]])
                  for row in chosen]  # fmt: skip
    return found


def match_compound(
    compound: Compound, candidates: Sequence[Candidate], compounds: Sequence[Compound] = TABLE_I
) -> list[tuple[Candidate, str]]:
    """Candidates that stand for a compound, each with what is not certain about that.

    The formula decides. Where the crystal is known, a space group that belongs to another row of the same formula
    excludes it from this one.
    """
    others = {
        other.space_group_number
        for other in compounds
        if other != compound and _reduced(other.formula) == _reduced(compound.formula)
    }
    found = []
    for candidate in candidates:
        group = candidate.space_group
        if _reduced(candidate.formula) != _reduced(compound.formula):
            continue
        if group is None:
            doubt = "the crystal is not stored, so its polymorph is not known"
            doubt += f"; {compound.formula} stands twice in the table" if others else ""
        elif group[1] == compound.space_group_number:
            doubt = ""
        elif group[1] in others:
            continue
        else:
            doubt = f"another polymorph: {group[0]} in place of {compound.space_group}"
        if compound.pressure_gpa or others:
            doubt = "; ".join(filter(None, [doubt, "the pressure of the cell is not stored"]))
        found.append((candidate, doubt))
    return found


def say_missing(workspace: Workspace, compound: Compound) -> str:
    """What is missing for a compound without bands, and the commands that make it."""
    elements = Composition(compound.formula).elements
    lanthanides = {element.symbol for element in elements if element.is_lanthanoid}
    engine = "gpaw" if lanthanides <= GPAW_LANTHANIDES else "vasp"
    own = "`meissner grid RUNS --collection pairs` reads your own VASP runs"
    if compound.pressure_gpa:
        pressed = f"Relax the {compound.space_group} cell under {compound.pressure_gpa:g} GPa (VASP: PSTRESS = "
        return f"no bands. {pressed}{10 * compound.pressure_gpa:g}), run uniform bands; {own}"
    computed = (
        f"`meissner refresh --crystals {compound.formula}.cif --engine {engine} --until bands --workspace pairs`, then "
        f"`meissner grid pairs/bands/*.parquet --collection pairs`, computes those of a CIF file "
        f"({compound.space_group}); {own}"
    )
    if _has_crystal(workspace, compound):
        return (
            f"its crystal is there, its bands are not. The refresh that made this workspace, with --engine {engine}, "
            f"computes them; or {computed}"
        )
    table = f"meissner grid mp --collection mp --elements {','.join(str(element) for element in elements)}"
    return f"neither crystal nor bands. `{table}` reads the Materials Project's; {computed}"


def validate(workspace: Workspace, compounds: Sequence[Compound] = TABLE_I, coverage: float = COVERAGE) -> pa.Table:
    """Predict what can be predicted: a row a compound and grid, and a row for each compound without one (PAIRS).

    Raises
    ------
    MissingStageError
        If no BNAS is trained, or there are no grids at all.
    """
    bnas = load_bnas(workspace, coverage=coverage)
    held_out = read_held_out(workspace, NAME, bnas.version)
    candidates = find_candidates(workspace, compounds)
    trained = _trained_compositions(workspace, held_out.trained)
    rows = []
    for compound in compounds:
        known = _published(compound) | {"bnas_version": bnas.version}
        matches = match_compound(compound, candidates, compounds)
        if not matches:
            rows.append(known | {"found": False, "note": say_missing(workspace, compound)})
        for candidate, doubt in matches:
            _, grids = read_grids(candidate.place, [candidate.material_id])
            prediction = bnas.predict(grids, "cpu", [candidate.formula])
            names = ("tc_kelvin", "tc_low_kelvin", "tc_high_kelvin", "tc_image_spread_kelvin")
            own = not candidate.collection and candidate.material_id in held_out.trained
            held = held_out.values.get(candidate.material_id) if own else None
            memory = "trained on it: see the held-out value" if own else "its composition was trained on"
            seen = own or _reduced(compound.formula) in trained
            rows.append(
                known
                | {name: round_significant(float(getattr(prediction, name)[0])) for name in names}
                | {
                    "found": True,
                    "material_id": candidate.material_id,
                    "collection": candidate.collection or None,
                    "material_space_group": candidate.space_group[0] if candidate.space_group else None,
                    "trained_on": seen,
                    "tc_held_out_kelvin": round_significant(held),
                    "note": "; ".join(filter(None, [doubt, memory if seen else ""])) or None,
                }
            )
    return pa.Table.from_pylist(rows, schema=PAIRS)


def run_validation(workspace: Workspace, coverage: float = COVERAGE) -> StageReport:
    """Stage "validate-pairs": the table, with the compounds that have no bands as refusals."""

    def compute() -> StageOutcome:
        table = validate(workspace, coverage=coverage)
        missing = table.filter(pc.invert(table["found"])).to_pylist()
        there = table.filter(table["found"])
        accounted = len(TABLE_I) - len(missing)
        return StageOutcome(
            rows_in=len(TABLE_I),
            accounted=accounted,
            tables={OUTPUT: table},
            rejected=[Rejection(_name(row), row["note"], retryable=True) for row in missing],
            counts={"compounds": accounted, "grids": len(there), "missing": len(missing)} | count_pairs(table),
        )

    version = chosen_version(workspace, NAME)
    places = [place for place in [workspace, *collections_of(workspace)] if place.exists(INDEX)]
    inputs = [version, str(coverage), *(f"{place.url} {place.fingerprint(INDEX)}" for place in places)]
    inputs += [workspace.fingerprint(ORDERED_TABLE)] if workspace.exists(ORDERED_TABLE) else []
    return run_stage(workspace, STAGE, compute, code_version=CODE_VERSION, inputs=inputs)


def count_pairs(table: pa.Table) -> dict[str, int]:
    """Pairs of which both compounds were predicted, and those in which the superconductor has the higher Tc.

    A compound with several grids counts with their mean; a held-out value stands for a Tc that is a memory. A grid that
    cannot be told from the other compound's, as of La3Ni2O7 without its crystal, counts for neither.
    """
    values: dict[tuple[int, str | None, str], dict[bool, float]] = {}
    for row in table.filter(table["found"]).to_pylist():
        value = row["tc_kelvin"] if row["tc_held_out_kelvin"] is None else row["tc_held_out_kelvin"]
        grid = row["pair"], row["collection"], row["material_id"]
        values.setdefault(grid, {})[row["superconductor"]] = value
    by_side: dict[tuple[int, bool], list[float]] = {}
    for (pair, _, _), sides in values.items():
        for side, value in sides.items() if len(sides) == 1 else ():
            by_side.setdefault((pair, side), []).append(value)
    means = {side: sum(found) / len(found) for side, found in by_side.items()}
    whole = sorted({pair for pair, _ in means if {(pair, True), (pair, False)} <= set(means)})
    return {"pairs": len(whole), "pairs_in_order": sum(means[pair, True] > means[pair, False] for pair in whole)}


def check_found(report: StageReport, workspace: Workspace) -> None:
    """Raise InputError where none of the compounds has bands, so that nothing was validated."""
    if not report.counts["compounds"]:
        raise InputError(
            f"None of the {len(TABLE_I)} compounds of Table I has a grid in {workspace.url} or its collections, so "
            "nothing was validated; the notes of the table say how to get their bands"
        )


def _published(compound: Compound) -> dict[str, Any]:
    return {
        "pair": compound.pair,
        "formula": compound.formula,
        "space_group": compound.space_group,
        "pressure_gpa": compound.pressure_gpa,
        "superconductor": compound.measured_kelvin is not None,
        "tc_measured_kelvin": compound.measured_kelvin,
        "tc_published_kelvin": compound.published_kelvin,
        "published_bound": compound.published_bound,
    }


def _name(row: Mapping[str, Any]) -> str:
    return row["formula"] + (f" at {row['pressure_gpa']:g} GPa" if row["pressure_gpa"] else "")


def _reduced(formula: str) -> str:
    """The reduced formula; the text itself where it is no formula, as for a lattice model."""
    try:
        return str(Composition(formula).reduced_formula)
    except ValueError:
        return formula


def _space_groups(place: Workspace, names: Sequence[str]) -> dict[str, tuple[str, int] | None]:
    """Space group of each material's crystal; None where there is none, or spglib finds none."""
    groups: dict[str, tuple[str, int] | None] = dict.fromkeys(names)
    if names and place.exists(ORDERED_TABLE):
        table = place.read_table(ORDERED_TABLE, ["material_id", "structure"])
        chosen = table.filter(pc.is_in(table["material_id"], pa.array(list(names), pa.string())))
        for row in chosen.to_pylist():
            try:
                symbol, number = Structure.from_str(row["structure"], fmt="json").get_space_group_info(SYMPREC)
            except (ValueError, TypeError):
                continue
            groups[row["material_id"]] = (str(symbol), int(number))
    return groups


def _trained_compositions(workspace: Workspace, trained: frozenset[str]) -> set[str]:
    """Reduced formulas of the materials that the networks were trained on."""
    if not workspace.exists(INDEX):
        return set()
    rows = workspace.read_table(INDEX, ["material_id", "formula"]).to_pylist()
    return {_reduced(row["formula"]) for row in rows if row["material_id"] in trained}


def _has_crystal(workspace: Workspace, compound: Compound) -> bool:
    if not workspace.exists(ORDERED_TABLE):
        return False
    formulas = workspace.read_table(ORDERED_TABLE, ["formula"])["formula"].to_pylist()
    return _reduced(compound.formula) in set(map(_reduced, formulas))


@task(name="validate-pairs")
def validate_pairs(workspace: str) -> StageReport:
    """Predict the compounds of Table I that have bands, unless that was done with the same network and grids."""
    store = Workspace(workspace)
    report = run_validation(store)
    leave_table("validate-pairs", store.read_table(OUTPUT).to_pylist(), "Table I of the BNAS paper, predicted here")
    return leave_summary(store, report)
