"""What a screening of a source keeps beside its candidates: all that the report reads, in the collection.

Grids and bands of the first candidates are made once more from the source; the networks and the table of what is
measured are copied from the workspace, so that the collection is a whole workspace, which can be moved alone.
"""

from collections.abc import Iterator
from importlib.metadata import version

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pymatgen.core import Structure

from tasks.band_sources import BandItem, load_bands
from tasks.bands import BUNDLED_TABLE
from tasks.crystals import structure_hash
from tasks.grid_sources import CODE_VERSION, SourceChunk, band_facts, fill_shard, index_sources
from tasks.grids import assign_shards, make_grid
from tasks.model_store import model_folder
from tasks.mp_grids import read_items
from tasks.prediction import SUPERCONDUCTORS
from tasks.schemas import BANDS
from tasks.screening_plan import Chunk, Plan, choose_version
from tasks.settings import GridSettings, ScreeningSettings
from tasks.stages import Rejection, hash_text, run_stage
from tasks.uniform_bands import DENSITIES, UniformBands
from tasks.workspace import Workspace

RESULT = "candidates/candidates.parquet"
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
    wanted = set(ranked.filter(pc.is_valid(ranked["rank"]))["material_id"].to_pylist()[: settings.kept])
    found = dict(_bands(chunks, wanted))
    items = [item for chunk in chunks for item in chunk.items if item.material_id in found]
    place.write_json(KEPT, sorted(found))
    _store(place, items, found, grid)
    rows = [band_row(found[item.material_id], item) for item in items]
    place.write_table(BUNDLED_TABLE, pa.Table.from_pylist(rows, schema=BANDS))
    return len(items)


def lend(home: Workspace, place: Workspace, settings: ScreeningSettings) -> None:
    """Copy the networks that were asked and the table of what is measured into a collection."""
    names = [SUPERCONDUCTORS]
    for network, chosen in (("bnas", settings.bnas_version), ("s2snet", settings.s2snet_version)):
        number = choose_version(home, network, chosen)
        names += home.list(f"{model_folder(network, number)}/*")
        latest = {"name": network, "version": number}
        if (
            not place.exists(f"models/{network}/latest.json")
            or place.read_json(f"models/{network}/latest.json") != latest
        ):
            place.write_json(f"models/{network}/latest.json", latest)
    for name in names:
        if name == SUPERCONDUCTORS or not place.exists(name):  # a version never changes
            place.write_bytes(name, home.read_bytes(name))


def band_row(bands: UniformBands, item: BandItem) -> dict[str, object]:
    """Bands of a source as a row of BANDS."""
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
        "engine": "materials-project" if item.kind == "mp" else item.kind,
        "engine_version": version("meissner"),
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
    by_content = {item.content: item for item in items}
    for shard, contents in assign_shards(place, settings, list(by_content)).items():
        chunk = SourceChunk(shard=shard, items=tuple(by_content[content] for content in contents))
        fill_shard(
            place,
            chunk,
            lambda item: (make_grid(found[item.material_id], settings), band_facts(found[item.material_id])),
        )
    run_stage(
        place,
        "grid",
        lambda: index_sources(place, items),
        code_version=CODE_VERSION,
        inputs=[hash_text(*(f"{item.material_id} {item.content}" for item in items))],
        settings=settings,
    )
