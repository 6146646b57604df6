"""Size and speed of the three ways to store grids, by the loader, side by side.

    OMP_NUM_THREADS=1 python tests/benchmarks/grid_loader_speed.py [bands.parquet ...] --epochs 3 --batch-size 64

The bands (by default those of the starter inputs) are brought onto grids once for each way of storing, then read in
shuffled epochs, on this machine's CPU and on its GPU where there is one. GB/s counts the float32 energies that arrive.
Beside it: plain float32 files, one a material, read by NumPy in the same order, and the inverse FFT of one sample by
PyTorch alone, which is what any way from coefficients to grids has to compete with.
"""

# ruff: noqa: T201 - a benchmark prints its table

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tasks.coefficients import FOLDER
from tasks.grid_loader import GridLoader
from tasks.grids import make_grid, store_grids
from tasks.schemas import GRID_INDEX
from tasks.settings import GridSettings
from tasks.shards import ARRAY, INDEX, SlotRecord, grow_array, prepare_array, read_records
from tasks.uniform_bands import ROW_COLUMNS, UniformBands
from tasks.workspace import Workspace
from tests.conftest import STARTER

MESH, BANDS = 32, 18
GRID_BYTES = BANDS * MESH**3 * 4
SHARD = 20


def write_grids(place: Workspace, made: list, store: str) -> None:
    """All grids by the product's own writer, with an index that names them."""
    prepare_array(place, store, (BANDS, MESH, MESH, MESH), SHARD, store)
    grow_array(place, -(-len(made) // SHARD))
    for shard, start in enumerate(range(0, len(made), SHARD)):
        part = made[start : start + SHARD]
        slots = [SlotRecord(position=0, material_id=f"{start + i:05d}", bands_hash="") for i in range(len(part))]
        store_grids(place, shard, list(zip(slots, part, strict=True)))
    labels = {"parent_id": "", "formula": "", "chemical_system": "", "band_gap_ev": 0.0}
    rows = [{**labels, **slot.model_dump()} for record in read_records(place) for slot in record.slots]
    place.write_table(INDEX, pa.Table.from_pylist(rows, schema=GRID_INDEX))


def size(place: Workspace, name: str) -> int:
    return sum(path.stat().st_size for path in place.local(name).rglob("*") if path.is_file())


def report(name: str, materials: int, seconds: float, stored: int) -> None:
    rate = materials / seconds
    print(
        f"{name:<28} {stored / 1e3:>10.1f} {GRID_BYTES / stored:>8.1f} {rate:>12.0f} {rate * GRID_BYTES / 1e9:>7.2f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", type=Path, default=[STARTER / "bands.parquet"])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--copies", type=int, default=1, help="each material so many times, for a longer measurement")
    options = parser.parse_args()
    rows = [row for table in options.tables for row in pq.read_table(table, columns=list(ROW_COLUMNS)).to_pylist()]
    made = [make_grid(UniformBands.from_row(row), GridSettings()) for row in rows] * options.copies
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    print(f"{len(made)} grids, {options.threads} threads, " + ", ".join(devices))
    print(f"{'way':<28} {'kB each':>10} {'smaller':>8} {'materials/s':>12} {'GB/s':>7}")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        for store in ("grids", "coefficients", "both"):
            place = Workspace(Path(scratch) / store)
            write_grids(place, made, store)
            stored = (size(place, ARRAY) if store != "coefficients" else 0) + (
                size(place, FOLDER) if store != "grids" else 0
            )
            for device in devices:
                loader = GridLoader(
                    place, batch_size=options.batch_size, shuffle=True, device=device, threads=options.threads
                )
                sum(len(batch.rows) for batch in loader)  # once to fill the caches of the file system
                begin = time.perf_counter()
                for batch in (batch for _epoch in range(options.epochs) for batch in loader):
                    batch.energies[0, 0, 0, 0, 0].item()  # waits for the device
                seconds = time.perf_counter() - begin
                report(f"{store}, {device}", options.epochs * len(made), seconds, stored // len(made))
        folder = Path(scratch) / "plain"
        folder.mkdir()
        for number, grid in enumerate(made):
            np.save(folder / f"{number}.npy", grid.energies)
        order = np.random.default_rng(0).permutation(len(made))
        begin = time.perf_counter()
        for start in range(0, len(order), options.batch_size):
            np.stack([np.load(folder / f"{number}.npy") for number in order[start : start + options.batch_size]])
        report("plain files, one thread", len(made), time.perf_counter() - begin, GRID_BYTES)
    waves = torch.randn(BANDS, MESH, MESH, MESH // 2 + 1, dtype=torch.complex64)
    begin = time.perf_counter()
    for _ in range(100):
        torch.fft.irfftn(waves, s=(MESH,) * 3, dim=(1, 2, 3), norm="forward")
    report("inverse FFT, one thread", 100, time.perf_counter() - begin, GRID_BYTES)


if __name__ == "__main__":
    main()
