"""Grids of the Materials Project's table from S3, in materials a second, beside the published way.

    OMP_NUM_THREADS=1 python tests/benchmarks/mp_grid_speed.py --materials 2000 --published 20

A made-up table in the schema of the open data (emmet-core's ``ElectronicBS``): prototypes of common crystals with
random volumes, 30 to 200 irreducible k points, 20 to 80 bands of random star functions, sorted as a calculation gives
them, half of the materials with two spins. It lies on moto's S3 server, a process of its own that is not counted.

Ours: ``tasks.mp_grids`` from listing the rows to shards and index in a workspace on disk. Published way: one gzipped
JSON a material on the same server, decoded to pymatgen's ``BandStructure`` as mp-api does, IFermi's interpolation and
scikit-image's ``resize`` (see grid_speed.py), every so many rows of the same table. Both run in the same number of
processes, each on one thread and warmed up by one material that does not count. CPU seconds are those of all their
processes, since others may be using the machine.
"""

# ruff: noqa: T201 - a benchmark prints its table

import argparse
import gzip
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tasks.grid_sources import collection, index_sources
from tasks.interpolation import build_stars
from tasks.kpoints import point_group
from tasks.mp_grids import make_table_chunk, plan_table
from tasks.mp_identifiers import table_identifier
from tasks.settings import GridSettings, MpBandSettings
from tasks.shards import read_grids
from tasks.workspace import Workspace
from tests.benchmarks.grid_speed import cpu_seconds, published_way

SETTINGS = GridSettings()
SYMPREC = 1e-5  # angstrom
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
HTTP = {"AWS_ALLOW_HTTP": "true"}
ROWS_A_FILE = 250
BUCKET = "parsed"
TABLE = f"s3://{BUCKET}/core/electronic-structure/bandstructures"
THIRD, TWO_THIRDS = 1 / 3, 2 / 3
# space group, lattice (a, b, c, gamma), elements, coordinates
PROTOTYPES = (
    ("Fm-3m", (3.6, 3.6, 3.6, 90), ["Cu"], [[0, 0, 0]]),
    ("Im-3m", (3.3, 3.3, 3.3, 90), ["Nb"], [[0, 0, 0]]),
    ("P6_3/mmc", (2.95, 2.95, 4.68, 120), ["Ti"], [[THIRD, TWO_THIRDS, 0.25]]),
    ("Fm-3m", (4.4, 4.4, 4.4, 90), ["Nb", "N"], [[0, 0, 0], [0.5, 0.5, 0.5]]),
    ("Pm-3m", (3.0, 3.0, 3.0, 90), ["Ti", "Co"], [[0, 0, 0], [0.5, 0.5, 0.5]]),
    ("Pm-3m", (3.9, 3.9, 3.9, 90), ["Mg", "Ni", "C"], [[0, 0, 0], [0.5, 0.5, 0], [0.5, 0.5, 0.5]]),
    ("P6/mmm", (3.08, 3.08, 3.52, 120), ["Mg", "B"], [[0, 0, 0], [THIRD, TWO_THIRDS, 0.5]]),
    ("P6_3/mmc", (3.6, 3.6, 5.0, 120), ["Ni", "As"], [[0, 0, 0], [THIRD, TWO_THIRDS, 0.25]]),
    ("Fm-3m", (6.4, 6.4, 6.4, 90), ["Lu", "Pd", "Pb"], [[0, 0, 0], [0.25, 0.25, 0.25], [0.5, 0.5, 0.5]]),
    ("Fd-3m", (7.2, 7.2, 7.2, 90), ["Mg", "Cu"], [[0.125, 0.125, 0.125], [0.5, 0.5, 0.5]]),
    ("Pm-3n", (5.3, 5.3, 5.3, 90), ["Nb", "Sn"], [[0.25, 0, 0.5], [0, 0, 0]]),
    ("I4/mmm", (4.0, 4.0, 10.5, 90), ["La", "Ru", "P"], [[0, 0, 0], [0, 0.5, 0.25], [0, 0, 0.37]]),
    ("P4_2/mnm", (4.6, 4.6, 2.96, 90), ["V", "O"], [[0, 0, 0], [0.3, 0.3, 0]]),
    ("P4/nmm", (3.77, 3.77, 5.5, 90), ["Fe", "Se"], [[0.75, 0.25, 0], [0.25, 0.25, 0.27]]),
    ("Pnma", (5.5, 4.06, 2.95, 90), ["Fe", "B"], [[0.18, 0.25, 0.12], [0.036, 0.25, 0.61]]),
    ("P-3m1", (3.36, 3.36, 5.9, 120), ["Ti", "Se"], [[0, 0, 0], [THIRD, TWO_THIRDS, 0.25]]),
)


@dataclass
class Prototype:
    """A crystal, its stars of lattice vectors, and its irreducible k points of denser and denser grids."""

    structure: Any
    stars: list[np.ndarray]
    kpoints: list[np.ndarray]

    @classmethod
    def build(cls, group: str, constants: tuple, elements: list, coords: list) -> "Prototype":
        """Grids centred on the origin, from the first with 30 points to the last with at most 200."""
        import spglib
        from pymatgen.core import Lattice, Structure

        a, b, c, gamma = constants
        lattice = Lattice.from_parameters(a, b, c, 90, 90, gamma)
        structure = Structure.from_spacegroup(group, lattice, elements, coords).get_primitive_structure()
        cell = (structure.lattice.matrix, structure.frac_coords, structure.atomic_numbers)
        species = tuple(map(str, structure.species))
        stars = build_stars(cell[0], point_group(cell[0], cell[1], species, SYMPREC), 12)[1:]
        kpoints: list[np.ndarray] = []
        for length in np.arange(12, 120, 2.0):  # angstrom
            grid = np.maximum(np.rint(length * np.linalg.norm(np.linalg.inv(cell[0]), axis=0)), 1).astype(int)
            mapping, addresses = spglib.get_ir_reciprocal_mesh(grid, cell, symprec=SYMPREC)
            found = addresses[np.unique(mapping)] / grid
            if len(found) > 200 and kpoints:
                break
            if len(found) >= 30 and (not kpoints or len(found) > len(kpoints[-1])):
                kpoints.append(found)
        return cls(structure, stars, kpoints)

    def bands(self, kpoints: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
        """(count, n_k) eV, some 25 eV from lowest to highest: star functions with decaying random coefficients."""
        waves = np.stack([np.cos(2 * np.pi * kpoints @ star.T).mean(axis=1) for star in self.stars])
        lengths = np.array([np.linalg.norm(star[0] @ self.structure.lattice.matrix) for star in self.stars])
        coefficients = random.normal(size=(count, len(lengths))) * np.exp(-lengths / 3.0) * 6.0
        onsite = np.sort(random.uniform(-12, 13, size=count))[:, None]
        return np.sort(onsite + coefficients @ waves, axis=0)


def made_up_row(number: int, prototypes: Sequence[Prototype]) -> dict:
    """One material of the table."""
    random = np.random.default_rng(number)
    prototype = prototypes[number % len(prototypes)]
    structure = prototype.structure.copy()
    structure.scale_lattice(structure.volume * random.uniform(0.9, 1.3))
    kpoints = prototype.kpoints[random.integers(len(prototype.kpoints))]
    spins = 1 + number // len(prototypes) % 2
    up = prototype.bands(kpoints, int(random.integers(20, 81)), random)
    bands = [(up + 0.2 * spin).round(4).tolist() for spin in range(spins)]
    return {
        "identifier": table_identifier(str(number)),
        "structure": structure.as_dict(),
        "run_type": "GGA",
        "path_convention": "unknown",
        "qpoints": kpoints.tolist(),
        "reciprocal_lattice": structure.lattice.reciprocal_lattice.matrix.tolist(),
        "efermi": float(np.quantile(up, 0.6).round(6)),
        "band_gap": 0.0,
        "is_direct": False,
        "spin_up_bands": bands[0],
        "spin_down_bands": bands[1] if spins == 2 else None,
    }


def write_inputs(materials: int, every: int) -> list[str]:
    """The table, and some of its materials as objects; gives the objects' keys."""
    import boto3
    import pyarrow as pa
    from deltalake import write_deltalake
    from emmet.core.arrow import arrowize
    from emmet.core.band_theory import ElectronicBS

    schema = pa.schema(arrowize(ElectronicBS))
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket=BUCKET)
    prototypes = [Prototype.build(*one) for one in PROTOTYPES]
    keys, points, counts = [], [], []
    for start in range(0, materials, ROWS_A_FILE):
        rows = [made_up_row(number, prototypes) for number in range(start, min(start + ROWS_A_FILE, materials))]
        points += [len(row["qpoints"]) for row in rows]
        counts += [len(row["spin_up_bands"]) for row in rows]
        write_deltalake(TABLE, pa.Table.from_pylist(rows, schema=schema), mode="append", storage_options=HTTP)
        for row in rows[(-start) % every :: every]:
            keys.append(f"bandstructures/{row['identifier']}.json.gz")
            s3.put_object(Bucket=BUCKET, Key=keys[-1], Body=gzip.compress(json.dumps(_document(row)).encode()))
    print(
        f"{materials} materials: {min(points)} to {max(points)} k points, median {np.median(points):.0f}; "
        f"{min(counts)} to {max(counts)} bands a spin, median {np.median(counts):.0f}"
    )
    return keys


def _document(row: dict) -> dict:
    """The object that mp-api would fetch."""
    from pymatgen.core import Structure
    from pymatgen.electronic_structure.bandstructure import BandStructure
    from pymatgen.electronic_structure.core import Spin

    structure = Structure.from_dict(row["structure"])
    channels = {Spin.up: row["spin_up_bands"], Spin.down: row["spin_down_bands"]}
    bands = {spin: np.array(values) for spin, values in channels.items() if values}
    reciprocal = structure.lattice.reciprocal_lattice
    made = BandStructure(row["qpoints"], bands, reciprocal, row["efermi"], structure=structure).as_dict()
    return {**made, "structure": structure.as_dict()}


def published_material(key: str) -> float:
    """One material the published way; gives its CPU seconds."""
    import boto3
    from monty.json import MontyDecoder
    from pymatgen.core import Structure

    warnings.simplefilter("ignore")
    multiprocessing.set_start_method("fork", force=True)  # as by default: BoltzTraP2's process need not import again
    start = cpu_seconds()
    data = boto3.client("s3").get_object(Bucket=BUCKET, Key=key)["Body"].read()
    document = json.loads(gzip.decompress(data))
    bands = MontyDecoder().process_decoded(document)
    bands.structure = bands.structure or Structure.from_dict(document["structure"])
    assert published_way(bands, SETTINGS).shape == (SETTINGS.bands, *(SETTINGS.mesh,) * 3)
    return cpu_seconds() - start


def our_chunk(place: str, chunk) -> float:
    """One task of ours; gives its CPU seconds."""
    start = cpu_seconds()
    make_table_chunk(Workspace(place), chunk, SETTINGS)
    return cpu_seconds() - start


def over_processes(processes: int, function: Callable, work: Sequence[tuple], warm: tuple) -> tuple[float, float]:
    """Wall and CPU seconds of the work, without the start of the processes."""
    context = multiprocessing.get_context("spawn")
    shared = (context.Lock(), context.Barrier(processes))
    with ProcessPoolExecutor(processes, context, _warm_up, (*shared, function, warm)) as pool:
        for future in [pool.submit(os.getpid) for _ in range(processes)]:
            future.result()
        start = time.perf_counter()
        cpu = sum(future.result() for future in [pool.submit(function, *one) for one in work])
        return time.perf_counter() - start, cpu


def _warm_up(lock, ready, function: Callable, warm: tuple) -> None:
    """One piece of work that does not count, in each process; then all begin together."""
    with lock:
        function(*warm)
    ready.wait(timeout=600)


def ours(folder: Path, processes: int) -> tuple[int, float, float]:
    """Materials, wall and CPU seconds from the table to shards and index."""
    place = collection(Workspace(folder), "mp")
    warm_place = collection(Workspace(folder), "warm")
    warm = plan_table(warm_place, TABLE, SETTINGS, MpBandSettings(limit=1)).chunks[0]
    wall, cpu = time.perf_counter(), cpu_seconds()
    plan = plan_table(place, TABLE, SETTINGS, MpBandSettings())
    wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
    work = [(place.url, chunk) for chunk in plan.chunks]
    grids = over_processes(processes, our_chunk, work, (warm_place.url, warm))
    end, end_cpu = time.perf_counter(), cpu_seconds()
    outcome = index_sources(place, plan.items, plan.refused)
    for name, table in outcome.tables.items():
        place.write_table(name, table)
    assert outcome.rejected == [], outcome.rejected[:3]
    assert np.isfinite(read_grids(place, [plan.items[0].material_id])[1]).all()
    index, index_cpu = time.perf_counter() - end, cpu_seconds() - end_cpu
    print(f"CPU seconds: list {cpu:.1f}, read, grids and shards {grids[1]:.1f}, index {index_cpu:.1f}")
    return len(plan.items), wall + grids[0] + index, cpu + grids[1] + index_cpu


def serve() -> subprocess.Popen:
    """moto's S3 server as a process; the environment names it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    command = [Path(sys.executable).with_name("moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.environ.update({**KEYS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"})
    for _ in range(300):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return server
        time.sleep(0.1)
    raise TimeoutError("moto's server does not answer")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--materials", type=int, default=2000)
    parser.add_argument("--published", type=int, default=20)
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    server = serve()
    try:
        keys = write_inputs(arguments.materials, arguments.materials // arguments.published + 1)
        with tempfile.TemporaryDirectory() as folder:
            count, wall, cpu = ours(Path(folder), arguments.processes)
        work = [(key,) for key in keys]
        their_wall, their_cpu = over_processes(arguments.processes, published_material, work, (keys[0],))
    finally:
        server.terminate()
    print(f"{'way':<10} {'materials':>9} {'wall s':>8} {'a second':>9} {'CPU s a material':>17}")
    for name, n, a, b in (("here", count, wall, cpu), ("published", len(keys), their_wall, their_cpu)):
        print(f"{name:<10} {n:>9} {a:>8.1f} {n / a:>9.2f} {b / n:>17.4f}")
    print(f"ratio: wall {count / wall * their_wall / len(keys):.1f}, CPU {their_cpu / len(keys) / (cpu / count):.1f}")


if __name__ == "__main__":
    main()
