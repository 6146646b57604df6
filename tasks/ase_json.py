"""Crystals in the JSON of the Atomic Simulation Environment: its database format and its encoded ``Atoms``.

ASE is not needed. Arrays stand there as ``{"__ndarray__": [shape, type, numbers]}``, cells also as
``{"array": …, "__ase_objtype__": "cell"}``; a database file maps row numbers, listed in ``ids``, to rows.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymatgen.core.lattice import Lattice
from pymatgen.core.periodic_table import Element
from pymatgen.core.structure import Structure

from tasks.exceptions import InputError

NEEDED = frozenset({"numbers", "positions", "cell"})


def ase_rows(document: Any) -> dict[str, dict[str, Any]] | None:
    """Rows of an ASE file by their number, one row as ``1``; None where the document is no ASE file."""
    if not isinstance(document, dict):
        return None
    if document.keys() >= NEEDED:
        return {"1": document}
    ids = document.get("ids")
    if not isinstance(ids, list) or not ids:
        return None
    rows = {str(number): document.get(str(number)) for number in ids}
    good = {number: row for number, row in rows.items() if isinstance(row, dict) and row.keys() >= NEEDED}
    return good if len(good) == len(rows) else None


def structure_from_ase(row: dict[str, Any]) -> Structure:
    """The crystal of a row.

    Raises
    ------
    InputError
        If it is not periodic along all three axes, or its arrays have other shapes than atoms have.
    """
    numbers, positions, cell = (_array(row[name]) for name in ("numbers", "positions", "cell"))
    periodic = _array(row.get("pbc", True))
    if not np.all(periodic) or abs(np.linalg.det(cell.reshape(3, 3))) < 1e-6:
        raise InputError("is not periodic along all three axes: no crystal")
    symbols = [Element.from_Z(int(number)).symbol for number in numbers.ravel()]
    return Structure(Lattice(cell.reshape(3, 3)), symbols, positions.reshape(-1, 3), coords_are_cartesian=True)


def _array(value: Any) -> NDArray[Any]:
    """An array as ASE writes it; InputError where it is none."""
    if isinstance(value, dict) and "array" in value:
        value = value["array"]
    try:
        if isinstance(value, dict):
            shape, kind, numbers = value["__ndarray__"]
            return np.asarray(numbers, dtype=np.dtype(str(kind))).reshape(shape)
        return np.asarray(value, dtype=float)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"holds an array that is not written as ASE does ({error})") from error
