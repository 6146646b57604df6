"""A small workspace with synthetic grids, written by the product's own shard writer."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tasks.schemas import GRID_INDEX
from tasks.shards import SlotRecord, grow_array, prepare_array, read_records, write_shard
from tasks.workspace import Workspace

ELEMENTS = ("Al", "Nb", "V", "Ta", "Mo", "W", "Ti", "Zr", "Hf", "Re", "Pb", "Sn")
BANDS, MESH = 18, 8


def tight_binding(generator: np.random.Generator) -> np.ndarray:
    """Cosine bands (18, 8, 8, 8) around E_F with random widths and centres."""
    k = 2 * np.pi * np.arange(MESH) / MESH
    shape = np.cos(k)[:, None, None] + np.cos(k)[None, :, None] + np.cos(k)[None, None, :]
    centres, widths = np.sort(generator.normal(0, 2, BANDS)), generator.uniform(0.1, 1, BANDS)
    return (centres[:, None, None, None] + widths[:, None, None, None] * shape).astype(np.float32)


def make_grid_workspace(
    path: Path, count: int = 24, change: Callable[[list[dict[str, Any]]], Sequence[dict[str, Any]]] | None = None
) -> Workspace:
    """Synthetic labelled grids; every third material is no superconductor. ``change`` edits the index rows."""
    workspace, generator = Workspace(path), np.random.default_rng(0)
    grids = [tight_binding(generator) for _ in range(count)]
    ids = [f"m-{number:03d}" for number in range(count)]
    prepare_array(workspace, "synthetic", (BANDS, MESH, MESH, MESH), count)
    grow_array(workspace, 1)
    write_shard(workspace, 0, grids, [SlotRecord(position=0, material_id=i, bands_hash=f"b-{i}") for i in ids])
    slots = {slot.material_id: slot for slot in read_records(workspace)[0].slots}
    rows = [_row(number, slots[material_id]) for number, material_id in enumerate(ids)]
    rows = list(change(rows)) if change else rows
    workspace.write_table("grids/index.parquet", pa.Table.from_pylist(rows, schema=GRID_INDEX))
    return workspace


def _row(number: int, slot: SlotRecord) -> dict[str, Any]:
    first, second = ELEMENTS[number % len(ELEMENTS)], ELEMENTS[(number * 5 + 1) % len(ELEMENTS)]
    system = sorted({first, second, "B" if number >= len(ELEMENTS) else "C"})
    return {
        "material_id": slot.material_id,
        "position": slot.position,
        "parent_id": f"parent-{number // 2}",
        "formula": "".join(system),
        "supercon_formula": "".join(system),
        "tc_kelvin": 0.0 if number % 3 == 0 else 1.0 + number,
        "chemical_system": "-".join(system),
        "year_first": 1960 + number,
        "family": ("elements", "borides", "carbides")[number // 2 % 3],
        "band_gap_ev": 0.0,
        "crossing_bands": 1,
        "first_band": 0,
        "real_bands": BANDS,
        "bands_hash": slot.bands_hash,
        "sha256": slot.sha256,
    }
