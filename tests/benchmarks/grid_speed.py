"""Time of one sample beside the published way: IFermi's interpolation, then a resize to the sample's mesh.

    OMP_NUM_THREADS=1 python tests/benchmarks/grid_speed.py VASPRUN BANDS_PARQUET --materials 20

Both start from numbers in memory (files are read before the clock starts) and run on one thread. CPU seconds are
counted, those of IFermi's worker process too, since others may be using the machine. The published way is that of the
SuperBand notebooks: ``FourierInterpolator`` with interpolation factor 5 on all bands, the 18 bands nearest E_F, and
scikit-image's ``resize`` from BoltzTraP2's mesh to 32 x 32 x 32.
"""

# ruff: noqa: T201 - a benchmark prints its table

import argparse
import resource
import statistics
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tasks.grids import make_grid
from tasks.settings import GridSettings
from tasks.uniform_bands import UniformBands, select_bands

SETTINGS = GridSettings()
ROUNDS = 2  # the fastest counts


def published_way(band_structure, settings: GridSettings) -> np.ndarray:
    """Grid by IFermi on BoltzTraP2's mesh and an image filter; one worker."""
    return published_bands(band_structure, settings)[0]


def published_bands(band_structure, settings: GridSettings) -> tuple[np.ndarray, np.ndarray]:
    """The same, and which bands it took."""
    from ifermi.interpolate import FourierInterpolator
    from ifermi.kpoints import get_kpoint_mesh_dim
    from skimage.transform import resize

    dense = FourierInterpolator(band_structure).interpolate_bands(settings.star_ratio, nworkers=1)
    energies = np.concatenate(list(dense.bands.values())) - dense.efermi
    rows = select_bands(energies.mean(axis=1), settings.bands)
    chosen = energies[rows]
    kpoints = np.array([point.frac_coords for point in dense.kpoints])
    mesh = get_kpoint_mesh_dim(kpoints)
    order = np.lexsort(kpoints.round(5).T[::-1])
    blocks = chosen[:, order].reshape(-1, *mesh)
    return np.stack([resize(block, (settings.mesh,) * 3) for block in blocks]).astype(np.float32), rows


def to_pymatgen(bands: UniformBands):
    """The same bands as the object that IFermi takes."""
    from pymatgen.core import Lattice, Structure
    from pymatgen.electronic_structure.bandstructure import BandStructure
    from pymatgen.electronic_structure.core import Spin

    structure = Structure(Lattice(bands.lattice), bands.species, bands.coords)
    energies = dict(zip([Spin.up, Spin.down], bands.energies, strict=False))
    return BandStructure(
        bands.kpoints, energies, structure.lattice.reciprocal_lattice, bands.efermi, structure=structure
    )


def cpu_seconds() -> float:
    """CPU time of this process and of its finished children."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def fastest(function: Callable[[], object]) -> float:
    """CPU seconds, of child processes too, of the fastest of a few rounds."""
    seconds = []
    for _ in range(ROUNDS):
        start = cpu_seconds()
        function()
        seconds.append(cpu_seconds() - start)
    return min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("vasprun", type=Path)
    parser.add_argument("bands", type=Path)
    parser.add_argument("--materials", type=int, default=20)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    table = pq.read_table(arguments.bands)
    rows = table.take(np.linspace(0, table.num_rows - 1, arguments.materials).astype(int)).to_pylist()
    samples = [("MgB2 (VASP)", UniformBands.from_vasprun(arguments.vasprun))]
    samples += [(row["formula"], UniformBands.from_row(row)) for row in rows]
    make_grid(samples[0][1], SETTINGS)
    published_way(to_pymatgen(samples[0][1]), SETTINGS)
    ratios = []
    print(f"{'material':<12} {'k points':>8} {'bands':>6} {'published s':>12} {'make_grid s':>12} {'ratio':>6}")
    for name, bands in samples:
        band_structure = to_pymatgen(bands)
        theirs = fastest(lambda: published_way(band_structure, SETTINGS))  # noqa: B023
        ours = fastest(lambda: make_grid(bands, SETTINGS))  # noqa: B023
        ratios.append(theirs / ours)
        count = bands.energies.shape[0] * bands.energies.shape[1]
        print(
            f"{name:<12} {len(bands.kpoints):>8} {count:>6} {theirs:>12.2f} {ours:>12.3f} {ratios[-1]:>6.1f}",
            flush=True,
        )
    print(f"ratio: median {statistics.median(ratios):.1f}, smallest {min(ratios):.1f}, largest {max(ratios):.1f}")


if __name__ == "__main__":
    main()
