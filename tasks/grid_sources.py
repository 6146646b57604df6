"""Grids straight from a source of bands, kept in a collection of their own beside the data of SuperCon.

A collection is a workspace within the workspace, ``collections/<name>``: ``grids/`` as the grid stage writes it, the
crystals in ``crystals/ordered.parquet``, and ``stages/grid``. So networks can be trained in it. What stands there is
not made again; what a source no longer holds is left out of the index.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
from prefect import task
from pydantic import BaseModel, ConfigDict
from pymatgen.core import Structure

from models.exceptions import MeissnerError
from tasks.band_sources import BandItem, list_bands, load_bands, read_labels
from tasks.bands import ORDERED_TABLE
from tasks.crystals import structure_hash, structure_to_json
from tasks.engines.gpaw_worker import band_gap
from tasks.exceptions import InputError, RemoteError
from tasks.formulas import normalise_formula
from tasks.grids import RETRY_DELAYS, Grid, assign_shards, grid_of, make_grid, store_grids
from tasks.progress import leave_summary
from tasks.schemas import GRID_INDEX, ORDERED
from tasks.settings import GridSettings
from tasks.shards import INDEX, SlotRecord, read_records
from tasks.stages import Rejection, StageOutcome, StageReport, hash_text, run_stage
from tasks.superband_grids import SuperBandGrid
from tasks.tight_binding import TightBinding
from tasks.uniform_bands import UniformBands
from tasks.workspace import Workspace

STAGE = "grid"
CODE_VERSION = 2
FACTS = "grids/facts"  # formula and gap of what stands in a shard, one file each


class SourceChunk(BaseModel):
    """Band structures whose grids make one shard."""

    model_config = ConfigDict(frozen=True)

    shard: int
    items: tuple[BandItem, ...]


def collection(workspace: Workspace, name: str) -> Workspace:
    """The workspace of a collection.

    Raises
    ------
    InputError
        If the name is not one plain word.
    """
    if not name or not all(letter.isalnum() or letter in "-_." for letter in name) or name.startswith("."):
        raise InputError(f"Collection {name!r} must be a plain name of letters, digits, '-', '_' and '.'")
    return Workspace(workspace.path(f"collections/{name}"))


def collection_name(source: str) -> str:
    """A name for the collection of a source: that of its file or folder."""
    stem = source.rstrip("/").rpartition("/")[2].partition(".")[0]
    return "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in stem) or "data"


def plan_sources(
    place: Workspace, sources: Sequence[str], settings: GridSettings, verify: bool = False
) -> tuple[list[BandItem], list[SourceChunk]]:
    """Everything that the sources hold, and the part of it that has no grid yet, by shards; see ``assign_shards``."""
    items = [item for source in sources for item in list_bands(source)]
    wanted = {item.content: item for item in reversed(items)}
    assigned = assign_shards(place, settings, list(dict.fromkeys(item.content for item in items)), verify)
    chunks = [
        SourceChunk(shard=shard, items=tuple(wanted[content] for content in contents))
        for shard, contents in assigned.items()
    ]
    return items, chunks


def make_source_chunk(place: Workspace, chunk: SourceChunk, settings: GridSettings, efermi: float | None = None) -> int:
    """Make the grids of one shard and write it; bands that cannot be used are recorded as refused.

    Returns
    -------
    How many band structures were dealt with.
    """
    return fill_shard(place, chunk, lambda item: _make_grid(item, settings, efermi))


def fill_shard(place: Workspace, chunk: SourceChunk, make: Callable[[BandItem], tuple[Grid, dict[str, Any]]]) -> int:
    """One shard of what ``make`` gives for each item: its grid, and what the index tells of it.

    Returns
    -------
    How many band structures were dealt with; those for which ``make`` raises a MeissnerError are refused.
    """
    made: list[tuple[SlotRecord, Grid | None]] = []
    facts = {}
    for item in chunk.items:
        slot = SlotRecord(position=0, material_id=item.material_id, bands_hash=item.content)
        try:
            grid, fact = make(item)
        except RemoteError:  # may pass another time
            raise
        except MeissnerError as error:
            made.append((slot.model_copy(update={"refusal": str(error)}), None))
            continue
        made.append((slot, grid))
        facts[item.content] = fact
    place.write_json(f"{FACTS}/{chunk.shard:06d}.json", facts)
    return store_grids(place, chunk.shard, made)


def _make_grid(item: BandItem, settings: GridSettings, efermi: float | None) -> tuple[Grid, dict[str, Any]]:
    """The grid of one band structure, and what the index tells of it."""
    bands = load_bands(item, settings, efermi)
    if isinstance(bands, SuperBandGrid):
        return _finished(bands), {
            "formula": bands.formula,
            "supercon_formula": bands.formula,
            "tc_kelvin": bands.tc_kelvin,
            "chemical_system": "-".join(sorted(set(bands.species))),
            "band_gap_ev": band_gap(bands.energies.reshape(1, len(bands.energies), -1), 0.0),
        }
    if isinstance(bands, TightBinding):
        energies = bands.nearest_bands(settings.bands, settings.mesh)
        gap = band_gap(energies.reshape(1, len(energies), -1), 0.0)
        return grid_of(energies, settings), {"formula": item.material_id, "chemical_system": "", "band_gap_ev": gap}
    return make_grid(bands, settings), band_facts(bands) | read_labels(item)


def _finished(found: SuperBandGrid) -> Grid:
    """SuperBand's own grid, as it is after the repairs."""
    flat = found.energies.reshape(len(found.energies), -1)
    crossing = int(((flat.min(axis=1) < 0) & (flat.max(axis=1) > 0)).sum())
    return Grid(found.energies, crossing, found.first_band, found.real_bands)


def band_facts(bands: UniformBands) -> dict[str, Any]:
    """Formula, chemical system, gap and crystal of coarse bands, for the index."""
    symbols, counts = np.unique(bands.species, return_counts=True)
    formula = normalise_formula({str(symbol): float(count) for symbol, count in zip(symbols, counts, strict=True)})
    gap = band_gap(bands.energies, bands.efermi)
    structure = Structure(bands.lattice, bands.species, bands.coords)
    return {
        "formula": formula,
        "chemical_system": "-".join(map(str, symbols)),
        "band_gap_ev": gap,
        "space_group": structure.get_space_group_info()[0],
        "structure": structure_to_json(structure),
    }


def index_sources(place: Workspace, items: Sequence[BandItem], refused: Sequence[Rejection] = ()) -> StageOutcome:
    """The index of all that the sources hold, and what was refused, ``refused`` before there was an item included."""
    slots = {slot.bands_hash: slot for record in read_records(place) for slot in record.slots}
    facts: dict[str, Any] = {}
    for name in place.list(f"{FACTS}/*.json"):
        facts |= place.read_json(name)
    rows, crystals, rejected = [], [], list(refused)
    for item in sorted(items, key=lambda item: item.material_id):
        slot = slots[item.content]
        if slot.refusal:
            rejected.append(Rejection(item.material_id, slot.refusal))
            continue
        stands = slot.model_dump(exclude={"material_id", "refusal"})
        row = {"material_id": item.material_id, "parent_id": item.material_id, **facts[item.content], **stands}
        rows.append(row)
        if "structure" in row:
            crystals.append(_crystal(row))
    return StageOutcome(
        rows_in=len(items) + len(refused),
        accounted=len(rows),
        tables={
            INDEX: pa.Table.from_pylist(rows, schema=GRID_INDEX),
            ORDERED_TABLE: pa.Table.from_pylist(crystals, schema=ORDERED),
        },
        rejected=rejected,
        counts={
            "grids": len(rows),
            "metals": sum(row["crossing_bands"] > 0 for row in rows),
            "padded": sum(row["first_band"] > 0 for row in rows),
        },
    )


def _crystal(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of ORDERED of a crystal that came with its bands."""
    structure = Structure.from_str(row["structure"], fmt="json")
    return {
        **row,
        "sites": len(structure),
        "supercell": [1, 0, 0, 0, 1, 0, 0, 0, 1],
        "composition_error": 0.0,
        "structure_hash": structure_hash(structure),
    }


@task(name="list bands", task_run_name="list bands")
def plan_source_grids(
    place: str, sources: tuple[str, ...], settings: GridSettings, verify: bool = False
) -> tuple[list[BandItem], list[SourceChunk]]:
    """What the sources hold, and what of it has no grid; see ``plan_sources``."""
    return plan_sources(Workspace(place), sources, settings, verify)


@task(name="grid chunk", task_run_name="grid chunk {chunk.shard}", retries=2, retry_delay_seconds=list(RETRY_DELAYS))
def source_grid_chunk(place: str, chunk: SourceChunk, settings: GridSettings, efermi: float | None = None) -> int:
    """Grids of one chunk into one shard; run again, it writes the same bytes."""
    return make_source_chunk(Workspace(place), chunk, settings, efermi)


@task(name="finish grids", task_run_name="finish grids")
def finish_source_grids(
    place: str,
    items: list[BandItem],
    settings: GridSettings,
    started: datetime | None = None,
    refused: Sequence[Rejection] = (),
) -> StageReport:
    """Stage "grid" of a collection: the index of all grids."""
    there = Workspace(place)
    report = run_stage(
        there,
        STAGE,
        lambda: index_sources(there, items, refused),
        code_version=CODE_VERSION,
        inputs=[
            hash_text(*(f"{item.material_id} {item.content}" for item in items)),
            *(hash_text(one.item, one.reason) for one in refused),
        ],
        settings=settings,
        started=started,
    )
    return leave_summary(there, report)
