"""The grid stage: samples, chunks, the index, and what happens when it is run again."""

import numpy as np
import pyarrow as pa
import pytest

from flows.grids import grids as grids_flow
from tasks.exceptions import WorkspaceError
from tasks.grids import assemble_index, make_chunk, make_grid, plan_chunks
from tasks.schemas import GRID_INDEX
from tasks.settings import GridSettings
from tasks.shards import read_grids, read_records, shard_object
from tasks.stages import read_report
from tasks.uniform_bands import UniformBands
from tasks.workspace import Workspace
from tests.tasks.grid_workspaces import bands_row, grid_files, rows_of, write_bands
from tests.tasks.lattice_models import SIMPLE_CUBIC, lattice_bands, mesh_points, tight_binding

SETTINGS = GridSettings(chunk=3)


def run_here(workspace, settings=SETTINGS, verify=False, stop_after=None):
    """The stage without Prefect; how many chunks were made."""
    chunks = plan_chunks(workspace, settings, verify)
    for chunk in chunks[:stop_after]:
        make_chunk(workspace, chunk, settings)
    return len(chunks[:stop_after])


def write_index(workspace):
    outcome = assemble_index(workspace)
    for name, table in outcome.tables.items():
        workspace.write_table(name, table)
    return outcome


@pytest.fixture
def workspace(tmp_path):
    place = Workspace(tmp_path / "w")
    write_bands(place, rows_of(7))
    return place


def test_a_sample_is_the_bands_on_the_mesh():
    grid = make_grid(lattice_bands(SIMPLE_CUBIC, (8, 8, 8), list(np.linspace(-9, 9, 20))), GridSettings())
    assert (grid.energies.shape, grid.energies.dtype) == ((18, 32, 32, 32), np.float32)
    assert (grid.first_band, grid.real_bands) == (0, 18)
    lowest = tight_binding(SIMPLE_CUBIC, mesh_points((32,) * 3), np.linspace(-9, 9, 20)[1], 0.5)
    np.testing.assert_allclose(grid.energies[0], lowest, atol=0.01)
    # a band of half width 3 eV crosses E_F where its centre is nearer than that
    assert grid.crossing_bands == (np.abs(np.linspace(-9, 9, 20)) < 3).sum()


@pytest.mark.parametrize(("real", "first"), [(1, 8), (2, 8), (3, 7), (17, 0), (18, 0)])
def test_fewer_bands_stand_in_the_middle_of_zeros(real, first):
    bands = lattice_bands(SIMPLE_CUBIC, (4, 4, 4), list(np.linspace(-1, 1.5, real)))
    grid = make_grid(bands, GridSettings())
    assert (grid.first_band, grid.real_bands, grid.crossing_bands) == (first, real, real)
    filled = np.abs(grid.energies).max(axis=(1, 2, 3)) > 0
    assert np.flatnonzero(filled).tolist() == list(range(first, first + real))


def test_both_spins_are_pooled():
    grid = make_grid(lattice_bands(SIMPLE_CUBIC, (4, 4, 4), [0.0, 1.0], spins=2), GridSettings())
    assert grid.real_bands == 4
    means = grid.energies[7:11].mean(axis=(1, 2, 3))
    np.testing.assert_allclose(means, [0.0, 0.25, 1.0, 1.25], atol=1e-5)


def test_grids_are_even_in_k():
    grid = make_grid(lattice_bands(SIMPLE_CUBIC, (6, 6, 6), [0.0]), GridSettings()).energies
    turned = np.roll(grid[:, ::-1, ::-1, ::-1], 1, axis=(1, 2, 3))
    np.testing.assert_allclose(turned, grid, atol=1e-6)


def test_a_sample_is_reproduced_bit_by_bit(shared_data):
    bands = UniformBands.from_vasprun(shared_data / "vasp" / "MgB2" / "vasprun.xml.gz")
    first, second = (make_grid(bands, GridSettings()).energies for _ in range(2))
    assert np.array_equal(first, second)


def test_chunks_hold_every_material_once(workspace):
    chunks = plan_chunks(workspace, SETTINGS)
    assert [chunk.shard for chunk in chunks] == [0, 1, 2]
    assert [name for chunk in chunks for name in chunk.material_ids] == [f"m{i:03d}" for i in range(7)]
    assert [len(chunk.material_ids) for chunk in chunks] == [3, 3, 1]


def test_index_has_labels_and_the_arrays_order(workspace):
    label = {"tc_kelvin": 9.2, "family": "element", "supercon_formula": "Cu", "year_first": 1930}
    write_bands(workspace, rows_of(7), labels={"m001": label})
    run_here(workspace)
    outcome = write_index(workspace)
    index, grids = read_grids(workspace)
    assert index.schema.equals(GRID_INDEX)
    assert len(index) == len(grids) == outcome.rows_in == outcome.accounted == 7
    assert outcome.counts == {"grids": 7, "measured": 1, "metals": 7, "padded": 7}
    rows = {row["material_id"]: row for row in index.to_pylist()}
    assert {name: rows["m001"][name] for name in label} == label
    assert (rows["m002"]["tc_kelvin"], rows["m002"]["parent_id"]) == (None, "m002-parent")
    assert rows["m001"]["real_bands"] == 2
    assert 0 < rows["m001"]["error_ev"] < 0.1, "estimated, of a smooth band"
    assert rows["m001"]["first_band"] == 8


def test_what_is_there_is_not_made_again(workspace):
    assert run_here(workspace) == 3
    before = grid_files(workspace)
    assert run_here(workspace) == 0
    assert grid_files(workspace) == before


def test_new_materials_go_to_fresh_shards_and_old_ones_stay(workspace):
    run_here(workspace)
    positions = {s.material_id: s.position for r in read_records(workspace) for s in r.slots}
    before = grid_files(workspace)
    write_bands(workspace, [*rows_of(2, first=50), bands_row("a-first", [0.77])], "bands/more.parquet")
    assert run_here(workspace) == 1
    after = {s.material_id: s.position for r in read_records(workspace) for s in r.slots}
    assert {name: after[name] for name in positions} == positions
    assert sorted(after[name] for name in ("a-first", "m050", "m051")) == [9, 10, 11]
    same = [name for name in before if "zarr.json" not in name]
    assert {name: grid_files(workspace)[name] for name in same} == {name: before[name] for name in same}


def test_changed_bands_get_a_new_place(workspace):
    run_here(workspace)
    rows = rows_of(7)
    rows[2] = bands_row("m002", [0.123])
    write_bands(workspace, rows)
    assert run_here(workspace) == 1
    write_index(workspace)
    index, grids = read_grids(workspace, ["m002"])
    assert index["position"].to_pylist() == [9]
    assert index["bands_hash"].to_pylist() == [rows[2]["bands_hash"]]
    assert grids[0, 8].mean() == pytest.approx(0.123, abs=1e-5)


def test_two_materials_with_the_same_bands_share_a_place(workspace):
    twin = {**rows_of(1)[0], "material_id": "twin"}
    write_bands(workspace, [twin], "bands/more.parquet")
    run_here(workspace)
    write_index(workspace)
    index, grids = read_grids(workspace, ["m000", "twin"])
    assert len(set(index["position"].to_pylist())) == 1
    assert np.array_equal(grids[0], grids[1])


def test_bands_that_cannot_be_interpolated_are_refused_once(workspace):
    bad = bands_row("bad", [0.0, 1.0])
    bad["kpoints"], bad["weights"] = bad["kpoints"][1:], bad["weights"][1:]
    bad["energies"] = [[band[1:] for band in spin] for spin in bad["energies"]]
    write_bands(workspace, [bad], "bands/more.parquet")
    assert run_here(workspace) == 3
    outcome = write_index(workspace)
    assert (outcome.rows_in, outcome.accounted, len(outcome.rejected)) == (8, 7, 1)
    assert outcome.rejected[0].item == "bad"
    assert "1 of the 64 points" in outcome.rejected[0].reason
    assert run_here(workspace) == 0


def test_the_index_waits_for_every_chunk(workspace):
    run_here(workspace, stop_after=1)
    with pytest.raises(WorkspaceError, match="4 materials have no grid yet, first 'm003'"):
        assemble_index(workspace)


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_an_interrupted_run_ends_like_an_undisturbed_one(workspace, tmp_path, lost):
    undisturbed = Workspace(tmp_path / "other")
    write_bands(undisturbed, rows_of(7))
    run_here(undisturbed)
    write_index(undisturbed)
    run_here(workspace)
    workspace.remove(f"grids/shards/00000{lost}.json")
    workspace.local(shard_object(lost)).write_bytes(b"half of a shard")
    assert run_here(workspace) == 1
    write_index(workspace)
    assert grid_files(workspace) == grid_files(undisturbed)


def test_only_the_materials_of_a_damaged_shard_are_made_again(workspace):
    run_here(workspace)
    before = grid_files(workspace)
    damaged = workspace.local(shard_object(1))
    data = bytearray(damaged.read_bytes())
    data[100] ^= 1
    damaged.write_bytes(bytes(data))
    assert plan_chunks(workspace, SETTINGS) == []  # same size: a quick look does not see it
    [chunk] = plan_chunks(workspace, SETTINGS, verify=True)
    assert (chunk.shard, chunk.material_ids) == (1, ("m003", "m004", "m005"))
    make_chunk(workspace, chunk, SETTINGS)
    assert grid_files(workspace) == before


def test_other_settings_start_again(workspace):
    run_here(workspace)
    assert run_here(workspace, GridSettings(chunk=5)) == 0  # how many share a shard changes no number
    assert run_here(workspace, GridSettings(chunk=5, mesh=16)) == 2


def test_the_flow_gives_the_same_bits_on_one_process_and_on_two(workspace, tmp_path, prefect_harness, monkeypatch):
    monkeypatch.setattr("flows.grids.WORTH_A_PROCESS", 1)
    one = Workspace(tmp_path / "one")
    write_bands(one, rows_of(7))
    reports = [grids_flow(one.url, SETTINGS, processes=1), grids_flow(workspace.url, SETTINGS, processes=2)]
    assert grid_files(one) == grid_files(workspace)
    for report in reports:
        assert (report.stage, report.rows_in, report.rows_refused, report.reused) == ("grid", 7, 0, False)
    assert isinstance(read_grids(workspace)[0], pa.Table)
    assert read_report(workspace, "grid").counts["grids"] == 7


def test_the_flow_run_again_starts_no_process(workspace, prefect_harness, monkeypatch):
    run_here(workspace)
    monkeypatch.setattr("flows.grids.map_chunks", lambda *_: pytest.fail("a pool was started"))
    assert not grids_flow(workspace.url, SETTINGS, processes=2).reused
    assert grids_flow(workspace.url, SETTINGS, processes=2).reused
