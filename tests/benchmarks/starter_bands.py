"""Calculate the bundled bands anew, one material after another, and compare them with the bundled ones.

    nice OMP_NUM_THREADS=1 python tests/benchmarks/starter_bands.py rows/            # about 55 CPU seconds a material
    python tests/benchmarks/starter_bands.py rows/ --write deployments/starter/bands.parquet

``rows/`` keeps a finished material as a file each, so that a run that was stopped goes on. The table is written when
all materials are there. What differs from the bundled table is printed material by material: energies, E_F and the
hash of the bands, which every later stage hangs on.
"""

# ruff: noqa: T201 - a benchmark prints what it finds

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jobflow import JobStore, run_locally
from maggma.stores import MemoryStore
from pymatgen.core.structure import Structure

from tasks.engines.gpaw import GpawBandMaker
from tasks.schemas import BANDS
from tasks.settings import STARTER, GpawSettings


def calculate(row: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The row of one crystal by the engine's own jobs, or as it was stored by an earlier run."""
    stored = folder / f"{row['material_id']}.parquet"
    if not stored.exists():
        maker = GpawBandMaker(settings=GpawSettings(seconds=7200), folder=str(folder / "scratch"))
        flow = maker.make(Structure.from_str(row["structure"], "json"), row["material_id"])
        responses = run_locally(flow, store=JobStore(MemoryStore()), log=False, ensure_success=True)
        table = pa.Table.from_pylist([responses[flow.jobs[-1].uuid][1].output], schema=BANDS)
        part = stored.with_suffix(".part")
        pq.write_table(table, part, compression="zstd")
        part.replace(stored)
    return dict(pq.read_table(stored).to_pylist()[0])


def difference(new: dict[str, Any], old: dict[str, Any]) -> dict[str, Any]:
    """What differs between two rows of one crystal: largest change of an energy and of E_F, eV, and electrons seen."""
    energies, before = np.array(new["energies"]), np.array(old["energies"])
    below = np.array(new["dos_energies"]) <= 0
    seen = {
        f"{name}_electrons": [
            round(float(np.trapezoid(np.array(row[f"dos_{name}"])[below], dx=0.1)), 2) for row in both
        ]
        for name in "spd"
        for both in [(old, new)]
    }
    return {
        "material_id": new["material_id"],
        "same_hash": new["bands_hash"] == old["bands_hash"],
        "energies_ev": float(np.abs(energies - before).max()) if energies.shape == before.shape else None,
        "efermi_ev": abs(new["efermi"] - old["efermi"]),
        "seconds": new["seconds"],
        **seen,
    }


def main() -> None:
    """Calculate, compare, and write the table if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where finished materials are kept")
    parser.add_argument("--table", type=Path, default=STARTER / "bands.parquet", help="bands to compare with")
    parser.add_argument("--write", type=Path, help="write all rows here, in the order of the table")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    bundled = pq.read_table(given.table).to_pylist()
    rows = {}
    for old in sorted(bundled, key=lambda row: row["seconds"]):
        new = rows[old["material_id"]] = calculate(old, given.folder)
        print(json.dumps(difference(new, old)), flush=True)
    if given.write:
        table = pa.Table.from_pylist([rows[row["material_id"]] for row in bundled], schema=BANDS)
        pq.write_table(table, given.write, compression="zstd", compression_level=9)


if __name__ == "__main__":
    main()
