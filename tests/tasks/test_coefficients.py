"""Star coefficients in place of grids: small, and the same grids come back."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from models.star_grids import star_grids
from tasks.coefficients import coefficients_object
from tasks.exceptions import WorkspaceError
from tasks.grids import Grid, assemble_index, make_chunk, make_grid, plan_chunks, store_grids
from tasks.settings import GridSettings
from tasks.shards import (
    ShardReader,
    SlotRecord,
    grow_array,
    prepare_array,
    read_grids,
    shard_object,
    verify_shards,
)
from tasks.uniform_bands import ROW_COLUMNS, UniformBands
from tasks.workspace import Workspace
from tests.conftest import STARTER
from tests.tasks.grid_workspaces import grid_files, rows_of, write_bands

GRID_BYTES = 18 * 32**3 * 4


def settings(store):
    return GridSettings(chunk=3, store=store)


def run_here(workspace, store):
    for chunk in plan_chunks(workspace, settings(store)):
        make_chunk(workspace, chunk, settings(store))
    for name, table in assemble_index(workspace).tables.items():
        workspace.write_table(name, table)


@pytest.fixture
def workspace(tmp_path):
    place = Workspace(tmp_path / "w")
    write_bands(place, rows_of(7))
    return place


@pytest.fixture(scope="module")
def starter_grids():
    rows = pq.read_table(STARTER / "bands.parquet", columns=list(ROW_COLUMNS)).slice(0, 12).to_pylist()
    return [make_grid(UniformBands.from_row(row), GridSettings()) for row in rows]


def test_grids_of_real_bands_come_back_from_a_hundredth_of_their_bytes(starter_grids, tmp_path):
    place = Workspace(tmp_path)
    prepare_array(place, "key", (18, 32, 32, 32), 12, "coefficients")
    grow_array(place, 1)
    slots = [SlotRecord(position=0, material_id=str(i), bands_hash=str(i)) for i in range(12)]
    store_grids(place, 0, list(zip(slots, starter_grids, strict=True)))
    assert not place.exists(shard_object(0))
    assert place.fs.size(place.path(coefficients_object(0))) < 12 * GRID_BYTES / 100
    reader = ShardReader(place)
    for slot, grid in enumerate(starter_grids):
        found = np.empty_like(grid.energies)
        reader.grid(slot, found)
        assert np.abs(found - grid.energies).max() < 1e-3
        np.testing.assert_allclose(found[:, 1:, 1:, 1:], found[:, :0:-1, :0:-1, :0:-1], atol=1e-4)  # E(k) = E(-k)


@pytest.mark.parametrize("mesh", [8, 32, 48])
def test_the_matrix_products_are_the_sum_of_stars(starter_grids, mesh):
    """Against the sum over lattice vectors itself, with boxes narrower and wider than the mesh."""
    for grid in starter_grids[:3]:
        bands = grid.stars
        points = np.random.default_rng(0).integers(0, mesh, (20, 3))
        members = np.einsum("rij,sj->rsi", bands.rotations.astype(int), bands.stars.astype(int))
        waves = np.cos(2 * np.pi / mesh * (members @ points.T)).mean(axis=0)
        expected = bands.coefficients.astype(float) @ waves
        found = star_grids([bands], 18, mesh)[0].numpy()[(slice(None), *points.T)]
        np.testing.assert_allclose(found[grid.first_band : grid.first_band + grid.real_bands], expected, atol=2e-4)


def test_every_way_of_storing_gives_the_same_grids(workspace, tmp_path):
    found = {}
    for store in ("grids", "coefficients", "both"):
        run_here(workspace, store)
        index, found[store] = read_grids(workspace)
        assert len(index) == 7
        array = workspace.exists(shard_object(0))
        assert (array, workspace.exists(coefficients_object(0))) == (store != "coefficients", store != "grids")
    assert np.array_equal(found["grids"], found["both"])
    assert np.abs(found["grids"] - found["coefficients"]).max() < 1e-3


def test_energies_that_come_from_no_stars_are_stored_themselves(tmp_path):
    place = Workspace(tmp_path)
    prepare_array(place, "key", (2, 4, 4, 4), 2, "coefficients")
    grow_array(place, 1)
    exact = Grid(np.random.default_rng(0).normal(size=(2, 4, 4, 4)).astype(np.float32), 2, 0, 2)
    store_grids(place, 0, [(SlotRecord(position=0, material_id="exact", bands_hash="x"), exact)])
    found = np.empty_like(exact.energies)
    ShardReader(place).grid(0, found)
    assert np.array_equal(found, exact.energies)


@pytest.mark.parametrize("store", ["coefficients", "both"])
def test_damaged_coefficients_are_named_and_only_theirs_are_made_again(workspace, store):
    run_here(workspace, store)
    before = grid_files(workspace)
    damaged = workspace.local(coefficients_object(1))
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(bytes(data))
    with pytest.raises(WorkspaceError, match=r"coefficients/000001.parquet in .* is damaged; run the grid stage"):
        ShardReader(workspace).bands(3)
    assert verify_shards(workspace) == [coefficients_object(1)]
    [chunk] = plan_chunks(workspace, settings(store), verify=True)
    assert chunk.material_ids == ("m003", "m004", "m005")
    make_chunk(workspace, chunk, settings(store))
    run_here(workspace, store)
    assert grid_files(workspace) == before
