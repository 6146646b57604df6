"""Disordered crystals become ordered cells for DFT: the smallest good supercell, arranged for lowest Ewald energy.

Charges for the Ewald energy are oxidation states where pymatgen guesses some that balance. Where none do (metals and
most intermetallics) they are the differences in electronegativity from the cell's mean, in elementary charges per
Pauling unit: neutral in sum, and unlike atoms attract. The energy only ranks arrangements of one crystal.
"""

import itertools
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from prefect import task
from pymatgen.core.composition import Composition
from pymatgen.core.lattice import Lattice
from pymatgen.core.periodic_table import Element
from pymatgen.core.structure import Structure

from tasks.crystals import OUTPUT as CRYSTAL_TABLE
from tasks.crystals import rounded_structure, structure_from_json, structure_hash, structure_to_json
from tasks.exceptions import InputError
from tasks.formulas import normalise_formula
from tasks.matching import OUTPUT as MATCH_TABLE
from tasks.memo import Memo
from tasks.processes import Failure, run_jobs
from tasks.progress import Advance, leave_summary, silent, stage_progress
from tasks.schemas import ORDERED
from tasks.settings import OrderingSettings
from tasks.stages import Rejection, StageOutcome, StageReport, run_stage
from tasks.supercells import VACANCY, compact_supercell, plan_supercell
from tasks.workspace import Workspace

STAGE = "order"
CODE_VERSION = 1
OUTPUT = "crystals/ordered.parquet"
SYMPREC = 0.01  # angstrom
MOST_CELLS = 60  # where the search for a supercell ends; only to say how large it would be
MOST_GUESSES = 50_000  # combinations of oxidation states that are tried before electronegativities are taken
STARTS = 8  # seeded starts of the descent by swaps, where arrangements are too many to rank all
ENERGY_DECIMALS = 6  # eV; arrangements nearer in energy count as equal, and the first of them is taken


@dataclass(frozen=True)
class OrderedCell:
    """An ordered cell made from a crystal.

    ``supercell`` are 9 integers, row by row: its vectors in units of the crystal's. ``ewald_energy_ev`` is that of the
    cell with the charges of this module, None where nothing had to be ordered. ``composition_error`` is R between
    asked-for and reached composition.
    """

    structure: Structure
    ewald_energy_ev: float | None
    supercell: tuple[int, ...]
    composition_error: float


def order_structure(structure: Structure, settings: OrderingSettings) -> OrderedCell:
    """The ordered cell of lowest Ewald energy in the smallest supercell whose composition is near enough.

    The same input gives the same output. An ordered structure comes back as it is. Amounts are rounded group by group
    (sites with equal occupancies), no element is lost, and of all supercells of the size the most compact is taken. All
    arrangements are ranked if they are at most ``max_arrangements``; beyond, the best of several descents by swaps of
    two occupants is kept.

    Raises
    ------
    InputError
        ``too large: needs N sites`` if the cell would have more sites than the settings allow.
    """
    if structure.is_ordered:
        _check_size(len(structure), settings)
        return OrderedCell(structure, None, (1, 0, 0, 0, 1, 0, 0, 0, 1), 0.0)
    groups = _group_sites(structure)
    plan = plan_supercell([(occupancies, len(sites)) for occupancies, sites in groups], settings.tolerance, MOST_CELLS)
    if plan is None:
        raise InputError(f"too large: needs more than {MOST_CELLS} cells of {len(structure)} sites")
    cells, counts, error = plan
    _check_size(sum(n for group in counts for occupant, n in group.items() if occupant != VACANCY), settings)
    matrix = compact_supercell(structure.lattice.matrix, cells)
    lattice, coordinates, owners = _expand(structure, groups, matrix)
    charges = guess_charges(_total(counts))
    occupants, energy = _arrange(lattice, coordinates, owners, counts, charges, settings)
    kept = [index for index, occupant in enumerate(occupants) if occupant != VACANCY]
    ordered = Structure(lattice, [occupants[index] for index in kept], coordinates[kept]).get_sorted_structure()
    return OrderedCell(rounded_structure(ordered), energy, tuple(int(x) for x in matrix.ravel()), round(error, 6))


def _check_size(sites: int, settings: OrderingSettings) -> None:
    if sites > settings.max_sites:
        raise InputError(f"too large: needs {sites} sites, at most {settings.max_sites} are allowed")


def _group_sites(structure: Structure) -> list[tuple[dict[str, float], list[int]]]:
    """Sites with equal occupancies, in the order of their first site."""
    groups: dict[tuple[tuple[str, float], ...], list[int]] = {}
    for index, site in enumerate(structure):
        occupancies = sorted((symbol, round(x, 4)) for symbol, x in site.species.get_el_amt_dict().items())
        groups.setdefault(tuple(occupancies), []).append(index)
    return [(dict(occupancies), sites) for occupancies, sites in groups.items()]


def _expand(
    structure: Structure, groups: Sequence[tuple[Mapping[str, float], list[int]]], matrix: np.ndarray
) -> tuple[Lattice, np.ndarray, np.ndarray]:
    """Cell of the supercell, fractional coordinates of all its sites, and the group of each site, in a fixed order."""
    positions = Structure(structure.lattice, ["H"] * len(structure), structure.frac_coords)
    group_of = np.empty(len(structure), dtype=int)
    for number, (_, sites) in enumerate(groups):
        group_of[sites] = number
    positions.add_site_property("group", group_of.tolist())
    expanded = positions.make_supercell(matrix, in_place=False)
    coordinates = np.round(expanded.frac_coords, 8) % 1.0
    owners = np.array(expanded.site_properties["group"], dtype=int)
    order = np.lexsort((*np.round(coordinates, 5).T[::-1], owners))
    return expanded.lattice, coordinates[order], owners[order]


def _total(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for group in counts:
        for occupant, number in group.items():
            if occupant != VACANCY and number:
                total[occupant] = total.get(occupant, 0) + number
    return dict(sorted(total.items()))


def guess_charges(atoms: Mapping[str, int]) -> dict[str, float]:
    """Charge of each element in a cell, elementary charges, neutral in sum; see the module for where they come from."""
    reduced, _ = Composition(atoms).get_reduced_composition_and_factor()
    amounts = {symbol: int(amount) for symbol, amount in reduced.get_el_amt_dict().items()}
    if _guesses(amounts) <= MOST_GUESSES:
        guesses = reduced.oxi_state_guesses()
        if guesses:
            return {symbol: float(guesses[0][symbol]) for symbol in atoms}
    known = {symbol: _electronegativity(symbol) for symbol in atoms}
    total = sum(atoms.values())
    mean = sum(n * known[symbol] for symbol, n in atoms.items()) / total
    return {symbol: mean - value for symbol, value in known.items()}


def _guesses(amounts: Mapping[str, int]) -> float:
    """How many combinations pymatgen's guess of oxidation states goes through."""
    mixed, sums = 0, 1
    for symbol, amount in amounts.items():
        element = Element(symbol)
        states = element.icsd_oxidation_states or element.common_oxidation_states
        if not states:
            return math.inf
        mixed += math.comb(amount + len(states) - 1, amount)
        sums *= amount * (max(states) - min(states)) + 1
    return mixed + sums


@lru_cache(maxsize=200)
def _electronegativity(symbol: str) -> float:
    """Pauling electronegativity; 2, in the middle of the scale, for the few elements without."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = float(Element(symbol).X)
    return 2.0 if math.isnan(value) else value


def _arrange(
    lattice: Lattice,
    coordinates: np.ndarray,
    owners: np.ndarray,
    counts: Sequence[Mapping[str, int]],
    charges: Mapping[str, float],
    settings: OrderingSettings,
) -> tuple[list[str], float]:
    """Occupant of each site in the arrangement of lowest Ewald energy, and that energy in eV."""
    occupants = [*sorted(charges), VACANCY]
    values = np.array([charges.get(occupant, 0.0) for occupant in occupants])
    numbers = [[group.get(occupant, 0) for occupant in occupants] for group in counts]
    sites = [np.flatnonzero(owners == group) for group in range(len(counts))]
    interaction = unit_interaction(lattice, coordinates)
    if _arrangements(numbers) <= settings.max_arrangements:
        labels = _best_of_all(sites, numbers, values, interaction)
    else:
        labels = _best_descent(sites, numbers, values, interaction)
    q = values[labels]
    return [occupants[label] for label in labels], round(float(q @ interaction @ q), ENERGY_DECIMALS)


def unit_interaction(lattice: Lattice, coordinates: np.ndarray) -> np.ndarray:
    """Ewald matrix of unit charges, (n, n) eV: q @ matrix @ q is the energy of a neutral cell with charges q."""
    from pymatgen.analysis.ewald import EwaldSummation

    unit = Structure(lattice, ["H+"] * len(coordinates), coordinates)
    matrix = np.asarray(EwaldSummation(unit).total_energy_matrix, dtype=float)
    symmetric: np.ndarray = (matrix + matrix.T) / 2
    return symmetric


def _arrangements(numbers: Sequence[Sequence[int]]) -> float:
    total = 1
    for group in numbers:
        left = sum(group)
        for number in group:
            total *= math.comb(left, number)
            left -= number
    return total


def _permutations(sites: Sequence[int], numbers: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """All ways to put the numbered labels on sites, as pairs of site and label."""
    if len(numbers) == 1:
        yield [(site, numbers[0][0]) for site in sites]
        return
    label, number = numbers[0]
    for chosen in itertools.combinations(sites, number):
        taken = set(chosen)
        rest = [site for site in sites if site not in taken]
        for others in _permutations(rest, numbers[1:]):
            yield [*((site, label) for site in chosen), *others]


def _best_of_all(
    sites: Sequence[np.ndarray], numbers: Sequence[Sequence[int]], values: np.ndarray, interaction: np.ndarray
) -> np.ndarray:
    """Labels of lowest energy among all arrangements; of equal ones the first."""
    options = []
    for own, group in zip(sites, numbers, strict=True):
        present = sorted(((label, n) for label, n in enumerate(group) if n), key=lambda pair: pair[1])
        options.append(list(_permutations(own.tolist(), present)))
    arrangements = np.empty((math.prod(map(len, options)), len(interaction)), dtype=int)
    for row, parts in enumerate(itertools.product(*options)):
        for site, label in itertools.chain.from_iterable(parts):
            arrangements[row, site] = label
    q = values[arrangements]
    energies = np.round(np.einsum("ai,ai->a", q @ interaction, q), ENERGY_DECIMALS)
    best: np.ndarray = arrangements[int(np.argmin(energies))]
    return best


def _best_descent(
    sites: Sequence[np.ndarray], numbers: Sequence[Sequence[int]], values: np.ndarray, interaction: np.ndarray
) -> np.ndarray:
    """Labels after the best of several descents by swaps of two occupants of a group."""
    same_group = np.zeros_like(interaction, dtype=bool)
    for own in sites:
        same_group[np.ix_(own, own)] = True
    random = np.random.default_rng(0)
    found = []
    for _ in range(STARTS):
        labels = np.empty(len(interaction), dtype=int)
        for own, group in zip(sites, numbers, strict=True):
            labels[own] = random.permutation(np.repeat(np.arange(len(group)), group))
        _descend(labels, same_group, values, interaction)
        q = values[labels]
        found.append((round(float(q @ interaction @ q), ENERGY_DECIMALS), labels))
    return min(found, key=lambda pair: pair[0])[1]


def _descend(labels: np.ndarray, same_group: np.ndarray, values: np.ndarray, interaction: np.ndarray) -> None:
    """Swap the two occupants that lower the energy most, until no swap does; ``labels`` is changed."""
    diagonal = np.diag(interaction)
    while True:
        q = values[labels]
        potential = interaction @ q
        difference = q[None, :] - q[:, None]
        change = 2 * difference * (potential[:, None] - potential[None, :])
        change += difference**2 * (diagonal[:, None] + diagonal[None, :] - 2 * interaction)
        change[~same_group] = 0.0
        change = np.round(change, ENERGY_DECIMALS)
        i, j = np.unravel_index(int(np.argmin(change)), change.shape)
        if change[i, j] >= 0:
            return
        labels[i], labels[j] = labels[j], labels[i]


def _order_job(job: tuple[str, OrderingSettings]) -> dict[str, Any]:
    """One structure (JSON) as the columns of ORDERED that its ordered cell fills."""
    from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

    text, settings = job
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cell = order_structure(structure_from_json(text), settings)
        space_group = SpacegroupAnalyzer(cell.structure, symprec=SYMPREC).get_space_group_symbol()
    return _columns(cell, space_group)


def _columns(cell: OrderedCell, space_group: str) -> dict[str, Any]:
    return {
        "formula": normalise_formula(cell.structure.composition.get_el_amt_dict()),
        "space_group": space_group,
        "sites": len(cell.structure),
        "ewald_energy_ev": cell.ewald_energy_ev,
        "supercell": list(cell.supercell),
        "composition_error": cell.composition_error,
        "structure_hash": structure_hash(cell.structure),
        "structure": structure_to_json(cell.structure),
    }


def _list_materials(matches: pa.Table, crystals: pa.Table) -> list[dict[str, Any]]:
    """Everything to be ordered: each match with its label, then each crystal that is not itself a labelled one.

    An exact match of an ordered crystal is named by the crystal's id (the nearest composition, where several agree
    exactly), every other match ``<crystal_id>~<formula>``.
    """
    by_id = {row["crystal_id"]: row for row in crystals.to_pylist()}
    labelled: set[str] = set()
    rows = matches.to_pylist()
    materials: list[dict[str, Any]] = [{} for _ in rows]
    for position in sorted(range(len(rows)), key=lambda k: (rows[k]["difference"], k)):
        match = rows[position]
        crystal = by_id[match["crystal_id"]]
        itself = match["match"] == "exact" and crystal["crystal_id"] not in labelled
        if itself:
            labelled.add(crystal["crystal_id"])
        bare = itself and crystal["ordered"]
        materials[position] = {
            "material_id": crystal["crystal_id"] if bare else f"{crystal['crystal_id']}~{match['formula']}",
            "parent_id": crystal["crystal_id"],
            "supercon_formula": match["formula"],
            **{name: match[name] for name in ("tc_kelvin", "year_first", "family", "match", "structure")},
        }
    unlabelled = [
        {"material_id": name, "parent_id": name, "structure": row["structure"]}
        for name, row in by_id.items()
        if name not in labelled
    ]
    return [*materials, *unlabelled]


def order_all(
    matches: pa.Table,
    crystals: pa.Table,
    settings: OrderingSettings,
    advance: Advance = silent,
    processes: int = 0,
    run: Callable[..., list[Any]] = run_jobs,
) -> StageOutcome:
    """Ordered cells of every match, labelled with its Tc, and of every other crystal, to be screened.

    Parameters
    ----------
    run
        ``run_jobs``, or the like of it that remembers results.

    Returns
    -------
    StageOutcome
        Table ``crystals/ordered.parquet`` (``ORDERED``): matches in their order, then crystals in theirs. What is too
        large, or takes longer than the settings allow, is refused.
    """
    materials = _list_materials(matches, crystals)
    known_groups = dict(zip(crystals["structure"].to_pylist(), crystals["space_group"].to_pylist(), strict=True))
    structures = [structure_from_json(material["structure"]) for material in materials]
    disordered = [k for k, structure in enumerate(structures) if not structure.is_ordered]
    jobs = [(materials[k]["structure"], settings) for k in disordered]
    results = run(_order_job, jobs, processes=processes, seconds=settings.seconds, advance=advance)
    columns: dict[int, Any] = dict(zip(disordered, results, strict=True))
    for k in sorted(set(range(len(materials))) - set(disordered)):
        group = known_groups.get(materials[k]["structure"])
        columns[k] = _order_ordered(structures[k], materials[k]["structure"], group, settings)
        advance(1)
    rows = [{**m, **columns[k]} for k, m in enumerate(materials) if not isinstance(columns[k], Failure)]
    rejected = [
        Rejection(m["material_id"], columns[k].reason, columns[k].retryable)
        for k, m in enumerate(materials)
        if isinstance(columns[k], Failure)
    ]
    return StageOutcome(
        rows_in=len(materials),
        accounted=len(rows),
        tables={OUTPUT: pa.Table.from_pylist(rows, schema=ORDERED)},
        rejected=rejected,
        counts={
            "labelled": sum("supercon_formula" in row for row in rows),
            "to_screen": sum("supercon_formula" not in row for row in rows),
            "ordered_from_disorder": sum(row["ewald_energy_ev"] is not None for row in rows),
            "too_large": sum(rejection.reason.startswith("too large") for rejection in rejected),
        },
    )


def _order_ordered(structure: Structure, text: str, group: str | None, settings: OrderingSettings) -> Any:
    """Columns of a crystal that is ordered already; a doped one may be, and then its symmetry is not known."""
    if group is None:
        return run_jobs(_order_job, [(text, settings)], processes=1)[0]
    try:
        return _columns(order_structure(structure, settings), group)
    except InputError as error:
        return Failure(str(error))


@task(name="order")
def order_crystals(workspace: str, settings: OrderingSettings, processes: int = 0) -> StageReport:
    """Order the workspace's matches and crystals; see ``order_all``."""
    space = Workspace(workspace)

    def compute() -> StageOutcome:
        matches, crystals = space.read_table(MATCH_TABLE), space.read_table(CRYSTAL_TABLE)
        total = len(_list_materials(matches, crystals))
        with stage_progress(STAGE, total) as advance:
            return order_all(matches, crystals, settings, advance, processes, memo.run)

    memo = Memo(space, STAGE, CODE_VERSION, content=lambda job: json.dumps([job[0], job[1].model_dump(mode="json")]))
    inputs = [space.fingerprint(MATCH_TABLE), space.fingerprint(CRYSTAL_TABLE)]
    report = run_stage(space, STAGE, compute, code_version=CODE_VERSION, inputs=inputs, settings=settings)
    return leave_summary(space, report)
