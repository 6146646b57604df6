"""What a screening of a source keeps beside its candidates: all that the report reads, in the collection.

Grids and bands of the first candidates are made once more from the source; the networks, the table of what is measured
and a finished time machine are copied from the workspace, so that the collection is a whole workspace, which can be
moved alone.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pymatgen.core import Structure

from tasks.band_sources import BandItem, load_bands
from tasks.bands import BUNDLED_TABLE
from tasks.crystals import structure_hash
from tasks.grid_sources import CODE_VERSION, SourceChunk, band_facts, fill_shard, index_sources
from tasks.grids import Grid, assign_shards, make_grid
from tasks.model_store import model_folder
from tasks.mp_grids import read_items
from tasks.prediction import SUPERCONDUCTORS
from tasks.schemas import BANDS
from tasks.screening_plan import Chunk, Plan, choose_version
from tasks.settings import GridSettings, ScreeningSettings
from tasks.stages import Rejection, hash_text, run_stage
from tasks.time_machine import LISTS, OUTPUT, STAGE
from tasks.uniform_bands import DENSITIES, UniformBands
from tasks.workspace import Workspace

RESULT = "candidates/candidates.parquet"
TIME_MACHINE = (OUTPUT, LISTS, f"stages/{STAGE}/rejected.parquet", f"stages/{STAGE}/manifest.json")
KEPT = "candidates/kept.json"  # the collection's grids are those that a screening has kept


def keep_best(home: Workspace, place: Workspace, plan: Plan, settings: ScreeningSettings, grid: GridSettings) -> int:
    """Keep grids, crystals and bands of the first candidates of a source, and copy what the report reads.

    Grids that stand in the collection on their own account are left as they are.

    Returns
    -------
    How many materials are kept; what a source no longer gives is left out.
    """
    lend(home, place, settings)
    chunks = [chunk for chunk in plan.chunks if chunk.items[0].kind != "grid"]
    if not chunks:
        return 0
    ranked = place.read_table(RESULT, ["rank", "material_id"])
    wanted = ranked.filter(pc.is_valid(ranked["rank"]))["material_id"].to_pylist()[: settings.kept]
    contents = {item.material_id: item.content for chunk in chunks for item in chunk.items}
    sources = {item.material_id: source_row(item, chunk) for chunk in chunks for item in chunk.items}
    kept = {"materials": {name: contents[name] for name in wanted}, "grid": settings_of(grid)}
    there = place.read_json(KEPT) if place.exists(KEPT) else {}
    if kept | {"whole": True, "sources": there.get("sources", {})} == there:  # rows may stand in other files since
        return len(wanted)
    kept["sources"] = {name: sources[name] for name in wanted}
    place.write_json(KEPT, kept | {"whole": False})
    found = dict(_bands(chunks, set(wanted)))
    items = [item for chunk in chunks for item in chunk.items if item.material_id in found]
    _store(place, items, found, grid)
    rows = [band_row(found[item.material_id], item, sources[item.material_id]) for item in items]
    place.write_table(BUNDLED_TABLE, pa.Table.from_pylist(rows, schema=BANDS))
    if len(items) == len(wanted):
        place.write_json(KEPT, kept | {"whole": True})
    return len(items)


def settings_of(grid: GridSettings) -> dict[str, object]:
    """Grid settings as they stand in JSON."""
    return grid.model_dump(mode="json")


def lend(home: Workspace, place: Workspace, settings: ScreeningSettings) -> None:
    """Copy the networks that were asked, what is measured, and the time machine where it was run, to a collection."""
    moving = [SUPERCONDUCTORS, *(TIME_MACHINE if home.exists(TIME_MACHINE[-1]) else ())]
    names = []
    for network, chosen in (("bnas", settings.bnas_version), ("s2snet", settings.s2snet_version)):
        number = choose_version(home, network, chosen)
        found = home.list(f"{model_folder(network, number)}/*")
        names += [name for name in found if home.fs.isfile(home.path(name))]  # not figures and curves
        latest, pointer = {"name": network, "version": number}, f"models/{network}/latest.json"
        if not place.exists(pointer) or place.read_json(pointer) != latest:
            place.write_json(pointer, latest)
    names = [name for name in names if not place.exists(name)]  # a version never changes
    for name in (*names, *moving):
        place.write_bytes(name, home.read_bytes(name))


def source_row(item: BandItem, chunk: Chunk) -> dict[str, object]:
    """Where the bands of a material were read: the file, and of a table the row and when its rows were listed."""
    if not chunk.table:
        return {"file": item.url, "kind": item.kind} | ({"row": item.row} if item.kind == "table" else {})
    place = {"table": chunk.table, "listed": chunk.listed, "file": item.url}
    return place | {"row_group": item.row_group, "row": item.row}


def read_source_rows(place: Workspace) -> dict[str, dict[str, object]]:
    """Where the bands of the kept materials were read, by material; nothing where no screening has kept any."""
    return dict(place.read_json(KEPT).get("sources", {})) if place.exists(KEPT) else {}


def band_row(bands: UniformBands, item: BandItem, source: Mapping[str, object]) -> dict[str, object]:
    """Bands of a source as a row of BANDS.

    The engine's version and settings are not in a source: of a table it is told when its rows were listed.
    """
    facts = band_facts(bands)
    structure = Structure(bands.lattice, bands.species, bands.coords)
    numbers = {name: value.tolist() for name in DENSITIES if (value := getattr(bands, name)) is not None}
    return {
        **facts,
        **numbers,
        "material_id": item.material_id,
        "sites": len(structure),
        "structure_hash": structure_hash(structure),
        "kpoints": bands.kpoints.tolist(),
        "weights": bands.weights.tolist(),
        "grid": np.asarray(bands.grid).tolist(),
        "energies": bands.energies.tolist(),
        "efermi": float(bands.efermi),
        "engine": "Materials Project" if item.kind == "mp" else f"not calculated here ({item.kind})",
        "engine_version": f"table listed {source['listed']}" if "listed" in source else "unknown",
        "engine_settings": "{}",
        "seconds": 0.0,
        "bands_hash": item.content,
    }


def _bands(chunks: list[Chunk], wanted: set[str]) -> Iterator[tuple[str, UniformBands]]:
    """Bands of the wanted materials, read from their source once more."""
    for chunk in chunks:
        items = [item for item in chunk.items if item.material_id in wanted]
        if chunk.table and items:
            rows = read_items(chunk.table, chunk.listed, items, last=True)
            pairs = zip(items, rows, strict=True)
            yield from ((item.material_id, bands) for item, bands in pairs if not isinstance(bands, Rejection))
            continue
        for item in items:
            bands = load_bands(item, GridSettings())
            if isinstance(bands, UniformBands):
                yield item.material_id, bands


def _store(place: Workspace, items: list[BandItem], found: dict[str, UniformBands], settings: GridSettings) -> None:
    """Grids and index of the kept materials, as the grid stage leaves them."""

    def make(item: BandItem) -> tuple[Grid, dict[str, object]]:
        bands = found[item.material_id]
        return make_grid(bands, settings), band_facts(bands)

    by_content = {item.content: item for item in items}
    for shard, contents in assign_shards(place, settings, list(by_content)).items():
        fill_shard(place, SourceChunk(shard=shard, items=tuple(by_content[one] for one in contents)), make)
    run_stage(
        place,
        "grid",
        lambda: index_sources(place, items),
        code_version=CODE_VERSION,
        inputs=[hash_text(*(f"{item.material_id} {item.content}" for item in items))],
        settings=settings,
    )
