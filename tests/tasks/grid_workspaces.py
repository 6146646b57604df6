"""Workspaces with bands of lattice models, as the band stage leaves them."""

import numpy as np
import pyarrow as pa
from pymatgen.core import Lattice, Structure

from tasks.bands import ORDERED_TABLE
from tasks.schemas import BANDS, ORDERED
from tasks.stages import hash_text
from tasks.workspace import Workspace
from tests.tasks.lattice_models import FCC, SIMPLE_CUBIC, lattice_bands


def bands_row(material_id, onsites, lattice=SIMPLE_CUBIC, **changes):
    """A row of BANDS."""
    bands = lattice_bands(lattice, (4, 4, 4), onsites)
    structure = Structure(Lattice(bands.lattice), bands.species, bands.coords).to_json()
    row = {
        "material_id": material_id,
        "formula": "Cu",
        "chemical_system": "Cu",
        "space_group": "Pm-3m",
        "sites": 1,
        "structure": structure,
        "structure_hash": hash_text(material_id),
        "kpoints": bands.kpoints.tolist(),
        "weights": bands.weights.tolist(),
        "grid": bands.grid.tolist(),
        "energies": bands.energies.tolist(),
        "efermi": 0.0,
        "band_gap_ev": 0.0,
        "engine": "tight-binding",
        "engine_version": "1",
        "engine_settings": "{}",
        "seconds": 0.0,
        "bands_hash": hash_text(structure, str(onsites)),
    }
    return {**row, **changes}


def rows_of(count, first=0):
    """Different rows, one and two bands in turn."""
    return [
        bands_row(f"m{i:03d}", [0.1 * i, 1.0][: 1 + i % 2], FCC if i % 3 else SIMPLE_CUBIC)
        for i in range(first, first + count)
    ]


def write_bands(workspace, rows, name="bands/model.parquet", labels=None):
    """Put bands into the workspace, and their crystals, with labels by material_id, into the ordered table."""
    workspace.write_table(name, pa.Table.from_pylist(rows, schema=BANDS))
    known = workspace.read_table(ORDERED_TABLE).to_pylist() if workspace.exists(ORDERED_TABLE) else []
    crystals = {row["material_id"]: row for row in known}
    for row in rows:
        crystals[row["material_id"]] = {
            "material_id": row["material_id"],
            "parent_id": f"{row['material_id']}-parent",
            "formula": row["formula"],
            "space_group": row["space_group"],
            "sites": 1,
            "supercell": np.eye(3, dtype=int).ravel().tolist(),
            "composition_error": 0.0,
            "structure_hash": row["structure_hash"],
            **(labels or {}).get(row["material_id"], {}),
        }
    workspace.write_table(ORDERED_TABLE, pa.Table.from_pylist(list(crystals.values()), schema=ORDERED))


def grid_files(workspace: Workspace):
    """Every file of the grids with its fingerprint."""
    names = [name for name in workspace.list("grids/**") if not workspace.fs.isdir(workspace.path(name))]
    return {name: workspace.fingerprint(name) for name in names}
