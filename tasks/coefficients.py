"""Star coefficients on disk: some ten kilobytes a material, of which its grid is made again within a meV.

A file in ``grids/coefficients/`` belongs to one shard and has a row (STAR_BANDS) for each of its materials. The
coefficients are whole numbers of a step, which compress well.
"""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from models.star_bands import StarBands
from tasks.schemas import STAR_BANDS
from tasks.workspace import Workspace

FOLDER = "grids/coefficients"
STEP_EV = 2e-5  # each of some hundred coefficients is off by half a step at most: up to 0.6 meV in the sum


def coefficients_object(shard: int) -> str:
    """Name of a shard's coefficients in the workspace."""
    return f"{FOLDER}/{shard:06d}.parquet"


def write_coefficients(workspace: Workspace, shard: int, bands: Mapping[int, StarBands]) -> None:
    """Write the coefficients of one shard, by slot, whole."""
    rows = [
        {
            "position": position,
            "first_band": one.first_band,
            "step_ev": STEP_EV,
            "rotations": one.rotations.astype(np.int8).ravel(),
            "stars": one.stars.astype(np.int16).ravel(),
            "coefficients": np.rint(one.coefficients / STEP_EV).astype(np.int32).ravel(),
        }
        for position, one in bands.items()
    ]
    workspace.write_table(coefficients_object(shard), pa.Table.from_pylist(rows, schema=STAR_BANDS))


def read_coefficients(workspace: Workspace, shard: int) -> dict[int, StarBands]:
    """Bands by slot; WorkspaceError if the file is damaged or not there."""
    table = workspace.read_table(coefficients_object(shard))
    rotations, stars, numbers = (
        [row.values.to_numpy() for row in table[name]] for name in ("rotations", "stars", "coefficients")
    )
    found = {}
    for row, (position, first_band, step) in enumerate(
        zip(*(table[name].to_pylist() for name in ("position", "first_band", "step_ev")), strict=True)
    ):
        vectors = stars[row].reshape(-1, 3)
        coefficients = (numbers[row].reshape(-1, len(vectors)) * step).astype(np.float32)
        found[position] = StarBands(rotations[row].reshape(-1, 3, 3), vectors, coefficients, first_band)
    return found
