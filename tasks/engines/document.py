"""The one document that every band engine gives: a row of the table BANDS."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pymatgen.core.structure import Structure

from tasks.crystals import structure_hash, structure_to_json
from tasks.engines import BandEngine
from tasks.formulas import normalise_formula

SYMPREC = 0.01  # angstrom


def band_row(structure: Structure, material_id: str, engine: BandEngine, result: Mapping[str, Any]) -> dict[str, Any]:
    """A row of BANDS from the crystal and what an engine computed (k points, energies, densities of states ...)."""
    from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

    content = structure_hash(structure)
    return {
        "material_id": material_id,
        "formula": normalise_formula(structure.composition.get_el_amt_dict()),
        "chemical_system": structure.composition.chemical_system,
        "space_group": SpacegroupAnalyzer(structure, symprec=SYMPREC).get_space_group_symbol(),
        "sites": len(structure),
        "structure": structure_to_json(structure),
        "structure_hash": content,
        "engine": engine.name,
        "engine_version": engine.version,
        "engine_settings": engine.settings_json,
        "bands_hash": hash_bands(content, result["kpoints"], result["energies"], result["efermi"]),
        **result,
    }


def hash_bands(structure_content: str, kpoints: Sequence[Any], energies: Sequence[Any], efermi: float) -> str:
    """SHA-256 of a band structure: of the crystal's hash, k points, energies (as stored, float32) and E_F.

    Neither names nor times count, so that the same bands computed twice are the same to every later stage.
    """
    content = hashlib.sha256(structure_content.encode())
    for values, kind in ((kpoints, "<f8"), (energies, "<f4"), ([efermi], "<f8")):
        array = np.ascontiguousarray(np.array(values, dtype=kind))
        content.update(str(array.shape).encode())
        content.update(array.tobytes())
    return content.hexdigest()
