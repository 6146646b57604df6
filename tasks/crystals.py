"""Crystals of any source as standardised primitive cells, each once."""

import hashlib
import json
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from prefect import task
from prefect.client.schemas.objects import State, TaskRun
from pymatgen.core.lattice import Lattice
from pymatgen.core.periodic_table import Element
from pymatgen.core.structure import Structure

from tasks.crystal_files import (
    CRYSTAL_NAMES,
    CrystalText,
    build_structure,
    check_single,
    crystal_kind,
    read_crystals,
)
from tasks.crystal_sources import (
    MATERIALS_PROJECT,
    STAGE,
    FetchReport,
    as_sources,
    fetch_source,
    read_sources,
    source_hash,
)
from tasks.exceptions import InputError, RemoteError
from tasks.formulas import normalise_formula
from tasks.processes import Failure, run_jobs
from tasks.progress import Advance, leave_summary, silent, stage_progress
from tasks.schemas import CRYSTALS
from tasks.secrets import read_key
from tasks.settings import CrystalSettings, FetchSettings
from tasks.stages import Rejection, StageOutcome, StageReport, run_stage
from tasks.workspace import Workspace

CODE_VERSION = 3
OUTPUT = "crystals/crystals.parquet"
MIN_DISTANCE = 0.5  # angstrom; atoms nearer than this overlap (the bond of H2 has 0.74)
CENTRINGS = 4  # a conventional cell holds at most so many primitive cells
STORED_DECIMALS = 10  # of coordinates and cell vectors: what is left of the arithmetic beyond is not kept
HASH_DECIMALS = 4  # two structures that agree in so many decimals are the same
RETRY_SECONDS: list[float] = [10, 60]  # between whole fetches; each request has been tried several times by then
FEW = 50  # below this, starting processes costs more than it gives


def read_structure(path: str | Path) -> Structure:
    """The one structure in a CIF, POSCAR or pymatgen JSON file, as written there.

    Raises
    ------
    InputError
        If the file is missing, unreadable, or holds no or several crystals; the message names the file.
    """
    check_single(Path(path))
    if Path(path).name.lower().endswith((".csv", ".csv.gz")):
        raise InputError(f"{path} is a table of crystals; one CIF, POSCAR or JSON file is expected")
    if not crystal_kind(Path(path).name):
        raise InputError(f"{path} is no crystal file by its name; allowed are {CRYSTAL_NAMES}, and these with .gz")
    crystals = list(read_crystals(str(path)))
    if len(crystals) != 1:
        raise InputError(f"{path} holds {len(crystals)} crystals; one is expected")
    try:
        structure = plain_structure(build_structure(crystals[0]))
        check_distances(structure)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return structure


def structure_from_json(text: str) -> Structure:
    """A structure from the JSON that the tables hold."""
    return Structure.from_dict(json.loads(text))


def structure_to_json(structure: Structure) -> str:
    """JSON of a structure, the same for the same content."""
    return json.dumps(structure.as_dict(verbosity=0), sort_keys=True)


def structure_hash(structure: Structure) -> str:
    """SHA-256 of a structure's content: cell, species, occupancies and fractional coordinates.

    It does not change under copies, a JSON round trip, the order of the sites, whole lattice translations of a site, or
    a rotation of the cell in space. Numbers are rounded to 4 decimals, coordinates wrapped into [0, 1). It does change
    with the choice of cell and origin: standardise first where that must not count.
    """
    cell = np.round(structure.lattice.parameters, HASH_DECIMALS) + 0.0
    coordinates = np.round(structure.frac_coords, HASH_DECIMALS) % 1.0 % 1.0 + 0.0
    sites = sorted(
        (
            sorted((str(species), f"{amount:.{HASH_DECIMALS}f}") for species, amount in site.species.items()),
            [f"{x:.{HASH_DECIMALS}f}" for x in position],
        )
        for site, position in zip(structure, coordinates, strict=True)
    )
    content = json.dumps([[f"{x:.{HASH_DECIMALS}f}" for x in cell], sites])
    return hashlib.sha256(content.encode()).hexdigest()


def plain_structure(structure: Structure) -> Structure:
    """The structure with elements only: no oxidation states, labels or properties; D and T are hydrogen."""
    species = []
    for site in structure:
        occupancies: dict[str, float] = defaultdict(float)
        for kind, amount in site.species.items():
            symbol = str(getattr(kind, "symbol", kind))
            occupancies["H" if symbol in {"D", "T"} else symbol] += float(amount)
        species.append({Element(symbol): amount for symbol, amount in sorted(occupancies.items())})
    return Structure(structure.lattice, species, structure.frac_coords)


def check_distances(structure: Structure) -> None:
    """Raise InputError if two atoms overlap; sites that are never occupied together may."""
    first, second, _, distances = structure.get_neighbor_list(MIN_DISTANCE)
    occupancy = np.array([site.species.num_atoms for site in structure])
    overlapping = np.flatnonzero(occupancy[first] + occupancy[second] > 1 + 1e-3)
    if len(overlapping):
        worst = overlapping[np.argmin(distances[overlapping])]
        pair = f"{structure[first[worst]].species_string} and {structure[second[worst]].species_string}"
        raise InputError(f"{pair} are {distances[worst]:.2f} angstrom apart; atoms overlap below {MIN_DISTANCE}")


def standardise(structure: Structure, settings: CrystalSettings) -> tuple[Structure, str]:
    """Standardised primitive cell and space-group symbol, of ordered and disordered crystals.

    The cell follows the conventions of pymatgen's SpacegroupAnalyzer (Setyawan and Curtarolo, Comput. Mater. Sci. 49,
    299 (2010)); coordinates are in [0, 1).

    Raises
    ------
    InputError
        If atoms overlap, the cell is larger than the settings allow, or no symmetry is found.
    """
    from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

    plain = plain_structure(structure)
    if len(plain) > CENTRINGS * settings.max_sites:
        raise InputError(f"has {len(plain)} sites; at most {settings.max_sites} in the primitive cell are read")
    check_distances(plain)
    try:
        analyzer = SpacegroupAnalyzer(plain, symprec=settings.symprec)
        primitive = analyzer.get_primitive_standard_structure()
        symbol = analyzer.get_space_group_symbol()
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise InputError(f"no space group is found within {settings.symprec} angstrom: {error}") from error
    if len(primitive) > settings.max_sites:
        raise InputError(f"has {len(primitive)} sites in its primitive cell; at most {settings.max_sites} are read")
    return rounded_structure(primitive), symbol


def rounded_structure(structure: Structure) -> Structure:
    """The structure without the last digits of its arithmetic, coordinates in [0, 1)."""
    lattice = Lattice(np.round(structure.lattice.matrix, STORED_DECIMALS) + 0.0)
    coordinates = np.round(structure.frac_coords, STORED_DECIMALS) % 1.0 + 0.0
    return Structure(lattice, [site.species for site in structure], coordinates)


def _prepare(job: tuple[CrystalText, CrystalSettings]) -> dict[str, Any]:
    """One crystal as a row of CRYSTALS."""
    crystal, settings = job
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        structure, space_group = standardise(build_structure(crystal), settings)
    return {
        "crystal_id": crystal.crystal_id,
        "formula": normalise_formula(structure.composition.get_el_amt_dict()),
        "space_group": space_group,
        "sites": len(structure),
        "ordered": structure.is_ordered,
        "energy_above_hull_ev": crystal.energy_above_hull_ev,
        "crystal_source": crystal.source,
        "reference": crystal.reference,
        "licence": crystal.licence,
        "structure": structure_to_json(structure),
    }


def find_same(structures: Sequence[str]) -> list[int]:
    """For each structure (JSON, one composition) the index of the first one that is the same crystal.

    Same means what pymatgen's StructureMatcher says with its default tolerances, cells scaled to one volume.
    """
    from pymatgen.analysis.structure_matcher import StructureMatcher

    matcher = StructureMatcher(primitive_cell=False)
    parsed = [structure_from_json(text) for text in structures]
    kept: list[int] = []
    same = []
    for index, structure in enumerate(parsed):
        alike = (k for k in kept if len(parsed[k]) == len(structure) and matcher.fit(parsed[k], structure))
        first = next(alike, index)
        if first == index:
            kept.append(index)
        same.append(first)
    return same


def _find_duplicates(rows: list[dict[str, Any]], processes: int) -> dict[int, str]:
    """Positions of rows that are the same crystal as an earlier one, with the earlier one's id."""
    groups: dict[str, list[int]] = defaultdict(list)
    for position, row in enumerate(rows):
        groups[row["formula"]].append(position)
    several = [positions for positions in groups.values() if len(positions) > 1]
    jobs = [[rows[position]["structure"] for position in positions] for positions in several]
    duplicates = {}
    for positions, same in zip(several, run_jobs(find_same, jobs, processes=processes), strict=True):
        if isinstance(same, Failure):
            raise InputError(f"Crystals of {rows[positions[0]]['formula']} cannot be compared: {same.reason}")
        for position, first in zip(positions, same, strict=True):
            if positions[first] != position:
                duplicates[position] = rows[positions[first]]["crystal_id"]
    return duplicates


def gather_crystals(
    crystals: Sequence[CrystalText], settings: CrystalSettings, advance: Advance = silent, processes: int = 0
) -> StageOutcome:
    """Standardised, distinct crystals.

    Returns
    -------
    StageOutcome
        Table ``crystals/crystals.parquet`` (``CRYSTALS``), in the order given; of equal crystals the first is kept.
        Every other crystal is refused with its reason.

    Raises
    ------
    InputError
        If no crystal is left.
    """
    workers = 1 if len(crystals) < FEW else processes
    prepared = run_jobs(_prepare, [(crystal, settings) for crystal in crystals], processes=workers, advance=advance)
    rows: list[dict[str, Any]] = []
    rejected: list[Rejection] = []
    taken: set[str] = set()
    for crystal, result in zip(crystals, prepared, strict=True):
        if isinstance(result, Failure):
            rejected.append(Rejection(crystal.crystal_id, result.reason, result.retryable))
        elif crystal.crystal_id in taken:
            rejected.append(Rejection(crystal.crystal_id, "an earlier crystal of the source has this id"))
        else:
            taken.add(crystal.crystal_id)
            rows.append(result)
    duplicates = _find_duplicates(rows, workers)
    rejected += [Rejection(rows[k]["crystal_id"], f"same crystal as {first}") for k, first in duplicates.items()]
    kept = [row for position, row in enumerate(rows) if position not in duplicates]
    if not kept:
        first = f"; the first, {rejected[0].item}: {rejected[0].reason}" if rejected else ""
        raise InputError(f"No crystal can be used, of {len(crystals)}{first}")
    return StageOutcome(
        rows_in=len(crystals),
        accounted=len(kept),
        tables={OUTPUT: pa.Table.from_pylist(kept, schema=CRYSTALS)},
        rejected=rejected,
        counts={
            "crystals": len(kept),
            "disordered": sum(not row["ordered"] for row in kept),
            "compositions": len({row["formula"] for row in kept}),
            "duplicates": len(duplicates),
            "licences": _count_licences(kept),
        },
    )


def _count_licences(rows: Sequence[dict[str, Any]]) -> str:
    """How many crystals stand under each licence, as text: ``CC BY 4.0: 120, unknown: 3``."""
    counts = Counter(row["licence"] or "unknown" for row in rows)
    return ", ".join(f"{licence}: {count}" for licence, count in counts.most_common())


def natural_key(crystal_id: str) -> list[tuple[int, int | str]]:
    """Sort key that puts mp-763 before mp-1001605."""
    parts = re.findall(r"[0-9]+|[^0-9]+", crystal_id)
    return [(0, int(part)) if part.isdigit() and part.isascii() else (1, part) for part in parts]


def _passes(_task: object, _run: TaskRun | None, state: State) -> bool:
    """Whether a failed fetch may succeed another time."""
    return isinstance(state.result(raise_on_failure=False), RemoteError)


@task(name="fetch-crystals", retries=len(RETRY_SECONDS), retry_delay_seconds=RETRY_SECONDS, retry_condition_fn=_passes)
def fetch_crystals(workspace: str, source: str, settings: FetchSettings) -> FetchReport:
    """Fetch a database's crystals; see ``fetch_source``. The key is read here, and is never a parameter."""
    return fetch_source(Workspace(workspace), source, settings, read_key() if source == MATERIALS_PROJECT else None)


@task(name="crystals")
def collect_crystals(
    workspace: str, sources: str | Sequence[str], settings: CrystalSettings, processes: int = 0
) -> StageReport:
    """Standardise the crystals of all sources into the workspace; see ``gather_crystals``.

    What databases hold must have been fetched before (``tasks.crystal_sources``).
    """
    place, named = Workspace(workspace), as_sources(sources)

    def compute() -> StageOutcome:
        crystals = read_sources(place, named, settings.licence)
        with stage_progress(STAGE, len(crystals)) as advance:
            return gather_crystals(crystals, settings, advance, processes)

    inputs = [source_hash(place, source) for source in named]
    report = run_stage(place, STAGE, compute, code_version=CODE_VERSION, inputs=inputs, settings=settings)
    return leave_summary(place, report)
