"""Materials as both networks take them, a few in memory at a time, whatever they are read from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from models.exceptions import MeissnerError
from tasks.band_sources import BandItem, load_bands, read_labels
from tasks.bands import ORDERED_TABLE
from tasks.crystal_facts import Facts
from tasks.exceptions import InputError, RemoteError
from tasks.grid_sources import band_facts
from tasks.grids import make_grid
from tasks.mp_grids import read_items
from tasks.screening_plan import Chunk
from tasks.settings import GridSettings
from tasks.shards import read_grids
from tasks.stages import Rejection
from tasks.uniform_bands import UniformBands
from tasks.workspace import Workspace

GRIDS_AT_ONCE = 32  # 2.4 MB each


@dataclass(frozen=True, eq=False)
class Material:
    """What is asked about.

    Attributes
    ----------
    facts
        ``material_id``, ``formula``, ``space_group``, ``band_gap_ev`` and ``structure`` (JSON); ``tc_kelvin`` and
        ``supercon_formula`` where it carries a label; ``energy_above_hull_ev`` and ``theoretical`` where known.
    grid
        (18, 32, 32, 32) float32, eV relative to E_F.
    """

    facts: dict[str, Any]
    grid: NDArray[np.float32]


def read_materials(
    place: Workspace, chunk: Chunk, settings: GridSettings, known: Facts, last: bool = False
) -> Iterator[Material | Rejection]:
    """Each material of a chunk in its order, or why it cannot be used.

    Parameters
    ----------
    place
        Where the grids are, for a chunk of grids.
    known
        What crystals are known to be, by their name; see ``read_crystal_facts``.
    last
        Refuse what a server does not give; otherwise RemoteError is raised.
    """
    for found in _read(place, chunk, settings, last):
        if isinstance(found, Material) and not np.isfinite(found.grid).all():
            name = found.facts["material_id"]
            yield Rejection(name, f"The grid of {name} holds numbers that are not finite")
        elif isinstance(found, Material):
            yield Material(_completed(found.facts, known), found.grid)
        else:
            yield found


def _completed(facts: dict[str, Any], known: Facts) -> dict[str, Any]:
    """The facts, with what is known of the crystal or of that it was made from where they do not say."""
    told = {name: value for name, value in facts.items() if value is not None}
    return known.get(facts.get("parent_id") or "", {}) | known.get(facts["material_id"], {}) | told


def _read(place: Workspace, chunk: Chunk, settings: GridSettings, last: bool) -> Iterator[Material | Rejection]:
    if chunk.table:
        rows = read_items(chunk.table, chunk.listed, chunk.items, last)
        for item, bands in zip(chunk.items, rows, strict=True):
            yield bands if isinstance(bands, Rejection) else _make(item, bands, settings)
    elif chunk.items[0].kind == "grid":
        for start in range(0, len(chunk.items), GRIDS_AT_ONCE):
            yield from _stored(place, chunk.material_ids[start : start + GRIDS_AT_ONCE])
    else:
        for item in chunk.items:
            yield _load(item, settings)


def _make(item: BandItem, bands: UniformBands, settings: GridSettings) -> Material | Rejection:
    """A material of coarse bands, its grid made in memory."""
    try:
        facts = {
            **band_facts(bands),
            "material_id": item.material_id,
            "energy_above_hull_ev": item.energy_above_hull_ev,
            "theoretical": item.theoretical,
        }
        return Material(facts, make_grid(bands, settings).energies)
    except MeissnerError as error:
        return Rejection(item.material_id, str(error))


def _load(item: BandItem, settings: GridSettings) -> Material | Rejection:
    """A material of a file."""
    try:
        bands = load_bands(item, settings)
        if not isinstance(bands, UniformBands):
            raise InputError(f"Bands of {item.material_id}: no crystal comes with them, which S2SNet asks for")
        labels = read_labels(item)
    except RemoteError:
        raise
    except (MeissnerError, OSError) as error:
        return Rejection(item.material_id, str(error))
    made = _make(item, bands, settings)
    if isinstance(made, Rejection):
        return made
    kept = {name: labels[name] for name in ("tc_kelvin", "supercon_formula", "formula") if name in labels}
    return Material(made.facts | kept, made.grid)


def _stored(place: Workspace, names: Sequence[str]) -> Iterator[Material | Rejection]:
    """Materials whose grids stand in a workspace."""
    index, grids = read_grids(place, names)
    crystals = _read_crystals(place, names)
    rows = {row["material_id"]: (row, grid) for row, grid in zip(index.to_pylist(), grids, strict=True)}
    for name in names:
        row, grid = rows[name]
        if name not in crystals:
            yield Rejection(name, f"{ORDERED_TABLE} in {place.url} has no crystal {name}")
            continue
        columns = ("material_id", "formula", "supercon_formula", "tc_kelvin", "band_gap_ev")
        yield Material({column: row[column] for column in columns} | crystals[name], grid)


def _read_crystals(place: Workspace, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    if not place.exists(ORDERED_TABLE):
        return {}
    table = place.read_table(ORDERED_TABLE, ["material_id", "parent_id", "space_group", "structure"])
    chosen = table.filter(pc.is_in(table["material_id"], value_set=pa.array(names, pa.string())))
    return {row["material_id"]: row for row in chosen.to_pylist()}
