"""Error of interpolated bands against direct DFT on the 32 x 32 x 32 points, beside other ways.

    python tests/benchmarks/grid_exactness.py --materials Al Nb MgB2 NbN --densities 3.0 4.5 --folder FOLDER

For each material GPAW finds the density once; bands at that density are then calculated on coarse grids and on the
fine one, so all errors are of interpolation. Compared are energies within 3 eV of E_F, each band with itself. The ways:
ours; ours with a fitted model (grid.method = model; CPU seconds, with OMP_NUM_THREADS=1); zero-padded FFT of the sorted
bands on the full coarse grid; and the published one, IFermi's interpolation with a resize by scikit-image (read with
its origin moved to Γ, which favours it). What FOLDER holds is not calculated again.

    python tests/benchmarks/grid_exactness.py --table bands.parquet --count 20 --seed 0

does no DFT: of crystals drawn from a table of bands every second k point in each direction is used, and the energies
at all points of the table's grid are compared.
"""

# ruff: noqa: T201 - a benchmark prints its table

import argparse
import json
import sys
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from pymatgen.core import Lattice, Structure

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tasks.crossings import interpolate_crossings
from tasks.crystals import structure_to_json
from tasks.engines.gpaw import run_worker, worker_task
from tasks.engines.inputs import kpoint_grid
from tasks.exceptions import InputError
from tasks.interpolation import interpolate_bands
from tasks.settings import GpawSettings, GridSettings
from tasks.uniform_bands import ROW_COLUMNS, UniformBands
from tests.benchmarks.grid_speed import published_bands, to_pymatgen

MESH = 32
WINDOW_EV = 3.0
CRYSTALS = {  # experimental lattice constants, angstrom
    "Al": Structure.from_spacegroup("Fm-3m", Lattice.cubic(4.05), ["Al"], [[0, 0, 0]]),
    "Nb": Structure.from_spacegroup("Im-3m", Lattice.cubic(3.30), ["Nb"], [[0, 0, 0]]),
    "MgB2": Structure.from_spacegroup(
        "P6/mmm", Lattice.hexagonal(3.086, 3.524), ["Mg", "B"], [[0, 0, 0], [1 / 3, 2 / 3, 0.5]]
    ),
    "NbN": Structure.from_spacegroup("Fm-3m", Lattice.cubic(4.39), ["Nb", "N"], [[0, 0, 0], [0.5, 0.5, 0.5]]),
    "LaB6": Structure.from_spacegroup("Pm-3m", Lattice.cubic(4.156), ["La", "B"], [[0, 0, 0], [0.1996, 0.5, 0.5]]),
}


def calculate(name: str, grid: list[int], folder: Path) -> UniformBands:
    """Bands of a material on a grid, at the density that is in the folder or made there."""
    structure = CRYSTALS[name].get_primitive_structure()
    settings, place = GpawSettings(), folder / name
    target = place / f"bands-{'-'.join(map(str, grid))}.json"
    if not target.exists():
        if not (place / "density.gpw").exists():
            run_worker(worker_task("ground-state", structure, settings), place, 3600)
        begin = time.time()
        with tempfile.TemporaryDirectory(dir=place) as scratch:
            (Path(scratch) / "density.gpw").symlink_to(place / "density.gpw")
            result = run_worker({**worker_task("bands", structure, settings), "band_grid": grid}, Path(scratch), 3600)
        target.write_text(json.dumps({**result, "grid": grid}))
        print(f"  {name} on {grid}: {len(result['kpoints'])} k points, {time.time() - begin:.0f} s", flush=True)
    row = json.loads(target.read_text())
    return UniformBands.from_row({**row, "material_id": name, "structure": structure_to_json(structure)})


def full_grid(bands: UniformBands) -> np.ndarray:
    """(n_bands, n_1, n_2, n_3) absolute energies of all bands on the whole coarse grid."""
    points, rotations = bands.symmetric_kpoints(np.arange(len(bands.pooled)))
    codes = points.images(rotations)  # (n_rotations, n_k)
    place = {}
    for rotation in codes:
        for k, code in enumerate(rotation):
            place.setdefault(int(code), k)
    order = np.stack(np.meshgrid(*[np.arange(n) for n in bands.grid], indexing="ij"), axis=-1).reshape(-1, 3)
    whole = type(points).from_fractional(order / bands.grid, bands.grid)
    listed = [place[int(code)] for code in whole.codes(whole.points)]
    return (bands.pooled + bands.efermi)[:, listed].reshape(-1, *bands.grid)


def padded_fft(bands: UniformBands) -> np.ndarray:
    """All bands on the fine mesh by trigonometric interpolation of the sorted coarse ones."""
    coarse = full_grid(bands)
    waves = np.fft.fftn(coarse, axes=(1, 2, 3), norm="forward")
    for axis in (1, 2, 3):
        waves = _pad(waves, axis)
    return np.fft.ifftn(waves, axes=(1, 2, 3), norm="forward").real


def _pad(waves: np.ndarray, axis: int) -> np.ndarray:
    """Waves of one axis on the longer axis of the fine mesh; the highest of an even axis is shared by both signs."""
    count = waves.shape[axis]
    moved = np.moveaxis(waves, axis, 0)
    longer = np.zeros((MESH, *moved.shape[1:]), dtype=complex)
    half = count // 2
    longer[: (count + 1) // 2] = moved[: (count + 1) // 2]
    longer[MESH - half + (count % 2 == 0) :] = moved[count - half + (count % 2 == 0) :]
    if count % 2 == 0:
        longer[half] += moved[half] / 2
        longer[MESH - half] += moved[half] / 2
    return np.moveaxis(longer, 0, axis)


def errors(direct: UniformBands, fine: np.ndarray, rows: np.ndarray) -> tuple[float, float]:
    """Root mean square and largest error, meV, of the rows' energies on the mesh within the window, by weight."""
    places = tuple((np.rint(direct.kpoints * MESH).astype(int) % MESH).T)
    exact = direct.pooled[rows] + direct.efermi
    found = fine[(slice(None), *places)]
    near = np.abs(exact - direct.efermi) <= WINDOW_EV
    weights = np.broadcast_to(direct.weights, exact.shape)[near]
    misses = (found - exact)[near]
    return 1e3 * float(np.sqrt(np.average(misses**2, weights=weights))), 1e3 * float(np.abs(misses).max())


def every_second(bands: UniformBands) -> UniformBands:
    """The same bands on half the divisions; all must be even."""
    steps = np.rint(bands.kpoints * bands.grid).astype(int)
    kept = (steps % 2 == 0).all(axis=1)
    weights = bands.weights[kept] / bands.weights[kept].sum()
    return replace(
        bands, kpoints=bands.kpoints[kept], weights=weights, grid=bands.grid // 2, energies=bands.energies[..., kept]
    )


def from_table(table: Path, count: int, seed: int, settings: GridSettings) -> None:
    """Errors of both methods on crystals drawn from a table."""
    rows = pq.read_table(table, columns=[*ROW_COLUMNS, "formula"]).to_pylist()
    even = [row for row in rows if all(int(n) % 2 == 0 and int(n) >= 6 for n in row["grid"])]
    print(f"{len(even)} of {len(rows)} crystals have even grids of at least 6; {count} of them, seed {seed}")
    print(f"{'crystal':<18} {'coarse':>8} {'stars rms':>10} {'max':>6} {'model rms':>10} {'max':>6} {'CPU s':>6}")
    ratios: list[float] = []
    for number in np.random.default_rng(seed).permutation(len(even)):
        if len(ratios) == count:
            break
        whole = UniformBands.from_row(even[number])
        half, mesh = every_second(whole), tuple(map(int, whole.grid))
        found = []
        for method in (interpolate_bands, interpolate_crossings):
            begin = time.process_time()
            try:
                energies, listed, *_ = method(half, settings.bands, mesh, settings.star_ratio)
            except InputError:  # every second point is no grid of this symmetry
                break
            places = tuple((np.rint(whole.kpoints * whole.grid).astype(int) % whole.grid).T)
            exact = whole.pooled[listed]
            near = np.abs(exact) <= WINDOW_EV
            misses = (energies[(slice(None), *places)] - exact)[near]
            rms = np.sqrt(np.average(misses**2, weights=np.broadcast_to(whole.weights, exact.shape)[near]))
            found.append((1e3 * rms, 1e3 * np.abs(misses).max(), time.process_time() - begin))
        if len(found) < 2:
            continue
        (plain, most, _), (modelled, largest, seconds) = found
        ratios.append(modelled / plain)
        grid = "x".join(map(str, half.grid))
        name = f"{even[number]['formula']} {whole.material_id}"
        print(
            f"{name:<18} {grid:>8} {plain:10.0f} {most:6.0f} {modelled:10.0f} {largest:6.0f} {seconds:6.0f}", flush=True
        )
    print(f"model / stars, rms: median {np.median(ratios):.2f}, smallest {min(ratios):.2f}, largest {max(ratios):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--materials", nargs="+", default=["Al", "Nb", "MgB2", "NbN"], choices=sorted(CRYSTALS))
    parser.add_argument("--densities", nargs="+", type=float, default=[3.0, 4.5])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "meissner-exactness")
    parser.add_argument("--table", type=Path, help="bands instead of DFT, such as deployments/starter/bands.parquet")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    settings = GridSettings(mesh=MESH)
    if options.table:
        from_table(options.table, options.count, options.seed, settings)
        return
    print(f"{'material':<8} {'coarse':>12} {'way':<12} {'rms meV':>8} {'max meV':>8}")
    for name in options.materials:
        direct = calculate(name, [MESH] * 3, options.folder)
        for density in options.densities:
            grid = kpoint_grid(CRYSTALS[name].get_primitive_structure(), density)
            bands = calculate(name, grid, options.folder)
            energies, rows = interpolate_bands(bands, settings.bands, (MESH,) * 3, settings.star_ratio)
            theirs, chosen = published_bands(to_pymatgen(bands), settings)
            theirs = np.roll(theirs, MESH // 2, axis=(1, 2, 3))
            begin = time.process_time()
            modelled, same, _ = interpolate_crossings(bands, settings.bands, (MESH,) * 3, settings.star_ratio)
            seconds = time.process_time() - begin
            ways = {
                "ours": (energies + bands.efermi, rows),
                f"model {seconds:.0f} s": (modelled + bands.efermi, same),
                "padded FFT": (padded_fft(bands)[rows], rows),
                "published": (theirs + bands.efermi, chosen),
            }
            for way, (fine, which) in ways.items():
                rms, largest = errors(direct, fine, which)
                print(f"{name:<8} {'x'.join(map(str, grid)):>12} {way:<12} {rms:8.1f} {largest:8.0f}", flush=True)


if __name__ == "__main__":
    main()
