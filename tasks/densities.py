"""Mean densities of states by critical temperature, s, p and d apart, as in the BNAS paper's Fig. 2 c to f."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tasks.schemas import DENSITIES_BY_TC

ENERGIES = np.linspace(-8, 5, 261)  # eV relative to E_F
LOW_KELVIN, HIGH_KELVIN = 1.0, 10.0  # both ends belong to the middle range
MEASURED = (f"below {LOW_KELVIN:g} K", f"{LOW_KELVIN:g} to {HIGH_KELVIN:g} K", f"above {HIGH_KELVIN:g} K")
PREDICTED = f"predicted above {HIGH_KELVIN:g} K"


@dataclass(frozen=True, eq=False)
class MeanDensities:
    """Mean densities of a group of materials.

    Attributes
    ----------
    materials
        How many of the group have densities; the others do not count.
    densities
        (3, n_energies) states per eV and atom, both spins, in the order s, p, d; nan where no material has a value.
    """

    materials: int
    densities: NDArray[np.float64]


def tc_range(tc_kelvin: float | None) -> str | None:
    """The range of a measured Tc; None where nothing is measured, or no superconductivity was found (0)."""
    if not tc_kelvin:
        return None
    return MEASURED[0 if tc_kelvin < LOW_KELVIN else 1 if tc_kelvin <= HIGH_KELVIN else 2]


def mean_densities(rows: Sequence[Mapping[str, Any]], energies: NDArray = ENERGIES) -> MeanDensities:
    """Mean over materials on common energies, each per atom.

    ``rows`` are rows of BANDS with ``sites`` and ``dos_…``; those without densities are left out, and where the
    energies of one end it does not count.
    """
    known = [row for row in rows if row["dos_energies"] is not None and len(row["dos_energies"])]
    total, counted = np.zeros((3, len(energies))), np.zeros(len(energies))
    for row in known:
        inside = (energies >= min(row["dos_energies"])) & (energies <= max(row["dos_energies"]))
        counted += inside
        for place, orbital in enumerate("spd"):
            density = np.interp(energies, row["dos_energies"], row[f"dos_{orbital}"])
            total[place] += np.where(inside, density / row["sites"], 0.0)
    mean = np.divide(total, counted, out=np.full_like(total, np.nan), where=counted > 0)
    return MeanDensities(len(known), mean)


def densities_by_tc(
    bands: pa.Table, measured: Mapping[str, float | None], predicted: Mapping[str, float]
) -> dict[str, MeanDensities]:
    """Groups of materials by measured Tc, and those predicted above 10 K; groups without densities are left out.

    Parameters
    ----------
    bands
        Rows of BANDS with ``material_id``, ``sites`` and ``dos_…``.
    measured
        Measured Tc of the labelled materials, kelvin, 0 where no superconductivity was found.
    predicted
        Predicted Tc of materials without a measurement, kelvin.
    """
    members: dict[str, list[Mapping[str, Any]]] = {name: [] for name in (*MEASURED, PREDICTED)}
    for row in bands.to_pylist():
        name = row["material_id"]
        if group := tc_range(measured.get(name)):
            members[group].append(row)
        if predicted.get(name, 0.0) > HIGH_KELVIN:
            members[PREDICTED].append(row)
    found = {name: mean_densities(rows) for name, rows in members.items()}
    return {name: mean for name, mean in found.items() if mean.materials}


def densities_table(groups: Mapping[str, MeanDensities]) -> pa.Table:
    """The curves as a table (DENSITIES_BY_TC)."""
    rows = []
    for name, mean in groups.items():
        shown = np.round(mean.densities, 6)
        for place, energy in enumerate(ENERGIES):
            row = {"group": name, "materials": mean.materials, "energy_ev": round(float(energy), 4)}
            values = {orbital: float(value) for orbital, value in zip("spd", shown[:, place], strict=True)}
            rows.append(row | {key: value if np.isfinite(value) else None for key, value in values.items()})
    return pa.Table.from_pylist(rows, schema=DENSITIES_BY_TC)
