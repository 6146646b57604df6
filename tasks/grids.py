"""The grid stage: coarse bands become samples of BNAS, 18 bands on 32 x 32 x 32 k points."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from prefect import task
from pydantic import BaseModel, ConfigDict

from models.star_bands import StarBands
from tasks.bands import ORDERED_TABLE, read_bands
from tasks.crossings import interpolate_crossings
from tasks.exceptions import InputError, WorkspaceError
from tasks.interpolation import fit_bands
from tasks.kpoints import Floats
from tasks.progress import leave_summary
from tasks.schemas import GRID_INDEX
from tasks.settings import GridSettings
from tasks.shards import (
    INDEX,
    Grids,
    SlotRecord,
    discard_shards,
    grow_array,
    prepare_array,
    read_records,
    verify_shards,
    write_shard,
)
from tasks.stages import Rejection, StageOutcome, StageReport, hash_text, run_stage
from tasks.uniform_bands import ROW_COLUMNS, UniformBands
from tasks.workspace import Workspace

GRID_VERSION = 2  # raised when the same bands would give other numbers
LABELS = ("parent_id", "supercon_formula", "tc_kelvin", "year_first", "family")
RETRY_DELAYS = (1.0, 5.0)  # seconds; for storage that fails for a passing reason


class GridChunk(BaseModel):
    """Materials that one task brings into one shard."""

    model_config = ConfigDict(frozen=True)

    shard: int
    material_ids: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Grid:
    """One sample of BNAS.

    Attributes
    ----------
    energies
        (bands, mesh, mesh, mesh) float32, eV relative to E_F, k_i = i / mesh in fractional coordinates of the
        reciprocal primitive cell, bands sorted by mean. Channels without a band are zero.
    crossing_bands
        How many bands lie on both sides of E_F.
    first_band
        Channel of the first real band; above 0 where there are fewer bands than channels.
    real_bands
        How many channels hold a band.
    stars
        The coefficients that the energies come from; None where they come from elsewhere.
    error_ev
        Estimated error of the interpolation (``NearestBands.error_ev``); None where nothing was interpolated.
    """

    energies: Grids
    crossing_bands: int
    first_band: int
    real_bands: int
    stars: StarBands | None = None
    error_ev: float | None = None


def make_grid(bands: UniformBands, settings: GridSettings) -> Grid:
    """The sample of one material, on one thread and bit by bit reproducible.

    Raises
    ------
    InputError
        If the bands cannot be interpolated; see ``interpolate_bands`` and ``interpolate_crossings``.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    with threadpool_limits(1):
        if settings.method == "model":
            energies, _, error = interpolate_crossings(bands, settings.bands, (settings.mesh,) * 3, settings.star_ratio)
            return replace(grid_of(energies, settings), error_ev=error)
        found = fit_bands(bands, settings.bands, (settings.mesh,) * 3, settings.star_ratio)
        grid = grid_of(found.fit.on_mesh((settings.mesh,) * 3), settings)
    return replace(grid, stars=found.star_bands(grid.first_band), error_ev=found.error_ev())


def grid_of(energies: Floats, settings: GridSettings) -> Grid:
    """The sample that energies make: in the middle of the channels, the others zero.

    Parameters
    ----------
    energies
        (n, mesh, mesh, mesh) eV relative to E_F, at most as many bands as a sample has, sorted by mean.
    """
    real = len(energies)
    first = (settings.bands - real) // 2
    channels = np.zeros((settings.bands, *energies.shape[1:]), dtype=np.float32)
    channels[first : first + real] = energies
    crossing = (channels.min(axis=(1, 2, 3)) < 0) & (channels.max(axis=(1, 2, 3)) > 0)
    return Grid(channels, int(crossing.sum()), first, real)


def plan_chunks(workspace: Workspace, settings: GridSettings, verify: bool = False) -> list[GridChunk]:
    """Which materials still need a grid, and the shard each goes to, by material_id; see ``assign_shards``."""
    table = read_bands(workspace, ["material_id", "bands_hash"]).sort_by("material_id")
    names: dict[str, str] = {}
    for material_id, bands_hash in zip(*map(pa.ChunkedArray.to_pylist, table.columns), strict=True):
        names.setdefault(bands_hash, material_id)
    assigned = assign_shards(workspace, settings, list(names), verify)
    return [GridChunk(shard=s, material_ids=tuple(names[one] for one in hashes)) for s, hashes in assigned.items()]


def assign_shards(
    workspace: Workspace, settings: GridSettings, hashes: Sequence[str], verify: bool = False
) -> dict[int, list[str]]:
    """Fresh shards for those of some bands that have no grid yet, in the order given.

    Bands that stand in the array keep their place, whatever the material is called. Shards that are damaged are
    forgotten first, so that their materials are planned again.

    Parameters
    ----------
    verify
        Look for damage by the checksum of every shard and not only by its size.
    """
    return {shard: some for shard, _group, some in assign_groups(workspace, settings, [hashes], verify)}


def assign_groups(
    workspace: Workspace, settings: GridSettings, groups: Sequence[Sequence[str]], verify: bool = False
) -> list[tuple[int, int, list[str]]]:
    """The same where bands come in groups and no shard may hold bands of two of them.

    Returns
    -------
    Shard, number of the group and bands of each fresh shard, in the order of the groups.
    """
    shape = (settings.bands, *(settings.mesh,) * 3)
    slots = prepare_array(workspace, _key(settings), shape, settings.chunk, settings.store)
    discard_shards(workspace, verify_shards(workspace, thorough=verify))
    records = read_records(workspace)
    made = {slot.bands_hash for record in records for slot in record.slots}
    wanted = [[one for one in group if one not in made] for group in groups]
    parts = [(number, some[i : i + slots]) for number, some in enumerate(wanted) for i in range(0, len(some), slots)]
    used = {record.shard for record in records}
    free = [shard for shard in range(len(used) + len(parts)) if shard not in used]
    assigned = [(shard, number, some) for shard, (number, some) in zip(free, parts, strict=False)]
    if assigned:
        grow_array(workspace, assigned[-1][0] + 1)
    return assigned


def make_chunk(workspace: Workspace, chunk: GridChunk, settings: GridSettings) -> int:
    """Make the grids of one chunk and write its shard; bands that cannot be interpolated are recorded as refused.

    Returns
    -------
    How many materials were dealt with.
    """
    table = read_bands(workspace, [*ROW_COLUMNS, "bands_hash"])
    rows = table.filter(pc.is_in(table["material_id"], pa.array(chunk.material_ids, pa.string()))).to_pylist()
    made: list[tuple[SlotRecord, Grid | None]] = []
    for row in sorted(rows, key=lambda row: str(row["material_id"])):
        slot = SlotRecord(position=0, material_id=row["material_id"], bands_hash=row["bands_hash"])
        try:
            made.append((slot, make_grid(UniformBands.from_row(row), settings)))
        except InputError as error:
            made.append((slot.model_copy(update={"refusal": str(error)}), None))
    return store_grids(workspace, chunk.shard, made)


def store_grids(workspace: Workspace, shard: int, made: Sequence[tuple[SlotRecord, Grid | None]]) -> int:
    """Write one shard of grids with what their slots tell of them; a refused material has no grid.

    Returns
    -------
    How many materials were dealt with.
    """
    slots = []
    for slot, grid in made:
        names = ("crossing_bands", "first_band", "real_bands", "error_ev") if grid else ()
        numbers = {name: getattr(grid, name) for name in names}
        slots.append(slot.model_copy(update=numbers))
    grids, stars = zip(*((grid.energies, grid.stars) if grid else (None, None) for _slot, grid in made), strict=True)
    write_shard(workspace, shard, grids, slots, stars)
    return len(slots)


def assemble_index(workspace: Workspace) -> StageOutcome:
    """The index of all materials that have bands, with labels of the ordered crystals, and the refusals.

    Raises
    ------
    WorkspaceError
        If some bands were neither made into a grid nor refused.
    """
    slots = {slot.bands_hash: slot for record in read_records(workspace) for slot in record.slots}
    labels = _read_labels(workspace)
    columns = ["material_id", "formula", "chemical_system", "band_gap_ev", "bands_hash"]
    bands = read_bands(workspace, columns).sort_by("material_id").to_pylist()
    absent = [row["material_id"] for row in bands if row["bands_hash"] not in slots]
    if absent:
        raise WorkspaceError(f"{len(absent)} materials have no grid yet, first {absent[0]!r}; run the grid stage again")
    rows, rejected = [], []
    for row in bands:
        slot = slots[row["bands_hash"]]
        if slot.refusal:
            rejected.append(Rejection(row["material_id"], slot.refusal))
            continue
        place = slot.model_dump(exclude={"material_id", "bands_hash", "refusal"})
        rows.append({**row, **labels[row["material_id"]], **place})
    index = pa.Table.from_pylist(rows, schema=GRID_INDEX)
    counts = {
        "grids": len(rows),
        "measured": len(rows) - index["tc_kelvin"].null_count,
        "metals": sum(row["crossing_bands"] > 0 for row in rows),
        "padded": sum(row["first_band"] > 0 for row in rows),
    }
    return StageOutcome(len(bands), len(rows), {INDEX: index}, rejected, counts)


def index_inputs(workspace: Workspace) -> Sequence[str]:
    """Content hashes of all that the index depends on: the bands, and the ordered crystals' labels."""
    table = read_bands(workspace, ["material_id", "bands_hash"]).sort_by("material_id")
    names = [name for column in table.columns for name in column.to_pylist()]
    return [hash_text(*names), workspace.fingerprint(ORDERED_TABLE)]


def _key(settings: GridSettings) -> str:
    """Hash of what the numbers depend on beside the bands; how many materials share a shard is not among it."""
    return hash_text(str(GRID_VERSION), settings.model_dump_json(exclude={"chunk"}))


def _read_labels(workspace: Workspace) -> dict[str, dict[str, Any]]:
    """Labels of the ordered crystals by material_id."""
    rows = workspace.read_table(ORDERED_TABLE, ["material_id", *LABELS]).to_pylist()
    return {row.pop("material_id"): row for row in rows}


@task(name="plan grids", task_run_name="plan grids")
def plan_grids(workspace: str, settings: GridSettings, verify: bool = False) -> list[GridChunk]:
    """Chunks of materials that have bands but no grid."""
    return plan_chunks(Workspace(workspace), settings, verify)


@task(name="grid chunk", task_run_name="grid chunk {chunk.shard}", retries=2, retry_delay_seconds=list(RETRY_DELAYS))
def grid_chunk(workspace: str, chunk: GridChunk, settings: GridSettings) -> int:
    """Grids of one chunk into one shard; run again, it writes the same bytes."""
    return make_chunk(Workspace(workspace), chunk, settings)


@task(name="finish grids", task_run_name="finish grids")
def finish_grids(workspace: str, settings: GridSettings, started: datetime | None = None) -> StageReport:
    """Stage "grid": the index of all grids."""
    place = Workspace(workspace)
    report = run_stage(
        place,
        "grid",
        lambda: assemble_index(place),
        code_version=GRID_VERSION,
        inputs=index_inputs(place),
        settings=settings,
        started=started,
    )
    return leave_summary(place, report)
