"""Shards: whole or absent, checked, readable in any order, on any file system."""

import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import zarr

from tasks.exceptions import InputError, MissingStageError, WorkspaceError
from tasks.schemas import GRID_INDEX
from tasks.shards import (
    INDEX,
    SlotRecord,
    checksum,
    discard_shards,
    grow_array,
    open_array,
    prepare_array,
    read_grids,
    read_records,
    shard_object,
    verify_shards,
    write_shard,
)
from tasks.workspace import Workspace

SHAPE = (3, 4, 4, 4)
SLOTS = 4


def random_grids(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, *SHAPE)).astype(np.float32)


def slots_of(names):
    return [SlotRecord(position=-1, material_id=name, bands_hash=f"hash of {name}") for name in names]


def fill(workspace, shards=2):
    """Two full shards; grids by material_id."""
    prepare_array(workspace, "key", SHAPE, SLOTS)
    grow_array(workspace, shards)
    stored = {}
    for shard in range(shards):
        grids = random_grids(SLOTS, seed=shard)
        names = [f"m{9 - shard * SLOTS - i}" for i in range(SLOTS)]  # the array's order is not the names'
        write_shard(workspace, shard, list(grids), slots_of(names))
        stored.update(zip(names, grids, strict=True))
    slots = [slot for record in read_records(workspace) for slot in record.slots]
    rows = [
        {
            **slot.model_dump(exclude={"refusal"}),
            "parent_id": slot.material_id,
            "formula": "Cu",
            "chemical_system": "Cu",
            "band_gap_ev": 0.0,
        }
        for slot in slots
    ]
    workspace.write_table(INDEX, pa.Table.from_pylist(rows, schema=GRID_INDEX))
    return stored


@pytest.fixture(params=["local", "memory"])
def workspace(request, tmp_path):
    return Workspace(tmp_path / "w" if request.param == "local" else f"memory://{uuid.uuid4().hex}")


@pytest.fixture
def local(tmp_path):
    return Workspace(tmp_path / "w")


def test_grids_come_back_bit_by_bit_in_the_order_of_material_ids(workspace):
    stored = fill(workspace)
    index, grids = read_grids(workspace)
    assert index["material_id"].to_pylist() == sorted(stored)
    assert index.schema.equals(GRID_INDEX)
    assert np.array_equal(grids, np.stack([stored[name] for name in sorted(stored)]))
    assert grids.dtype == np.float32


def test_some_grids_are_read_by_name(workspace):
    stored = fill(workspace)
    index, grids = read_grids(workspace, ["m7", "m3"])
    assert index["material_id"].to_pylist() == ["m3", "m7"]
    assert np.array_equal(grids, np.stack([stored["m3"], stored["m7"]]))
    with pytest.raises(InputError, match=r"1 materials have no grid in .*, first 'm77'"):
        read_grids(workspace, ["m7", "m77"])


def test_the_array_is_zarr_v3_with_a_shard_an_object(local):
    fill(local)
    array = open_array(local)
    assert (array.metadata.zarr_format, array.shape, array.chunks, array.shards) == (
        3,
        (2 * SLOTS, *SHAPE),
        (1, *SHAPE),
        (SLOTS, *SHAPE),
    )
    assert array.metadata.dimension_names == ("slot", "band", "k1", "k2", "k3")
    assert local.list("grids/energies.zarr/c/*/*/*/*/*") == [shard_object(0), shard_object(1)]
    assert zarr.open_array(str(local.local("grids/energies.zarr")), mode="r")[0].shape == SHAPE


def test_refused_materials_leave_their_slot_empty(workspace):
    prepare_array(workspace, "key", SHAPE, SLOTS)
    grow_array(workspace, 1)
    grid = random_grids(1)[0]
    write_shard(workspace, 0, [None, grid], slots_of(["bad", "good"]))
    [record] = read_records(workspace)
    assert [slot.sha256 for slot in record.slots] == ["", checksum(grid)]
    assert np.isnan(open_array(workspace)[0]).all()
    assert np.array_equal(open_array(workspace)[1], grid)
    assert verify_shards(workspace) == []


def test_a_shard_of_refusals_only_needs_no_object(local):
    prepare_array(local, "key", SHAPE, SLOTS)
    grow_array(local, 1)
    write_shard(local, 0, [None], slots_of(["bad"]))
    assert not local.exists(shard_object(0))
    assert verify_shards(local) == []


def test_the_same_shard_written_twice_has_the_same_bytes(local):
    fill(local)
    before = local.fingerprint(shard_object(1)), local.fingerprint("grids/shards/000001.json")
    fill(local)
    assert before == (local.fingerprint(shard_object(1)), local.fingerprint("grids/shards/000001.json"))


def flip_a_byte(path: Path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    "damage",
    [flip_a_byte, lambda path: path.write_bytes(path.read_bytes()[:-9]), Path.unlink],
    ids=["flipped byte", "cut short", "gone"],
)
def test_a_damaged_shard_is_named_and_never_read(local, damage):
    fill(local)
    damage(local.local(shard_object(1)))
    assert verify_shards(local) == [shard_object(1)]
    assert len(read_grids(local, ["m9"])[0]) == 1
    with pytest.raises(WorkspaceError, match=r"energies.zarr/c/1/0/0/0/0 in .* is damaged"):
        read_grids(local)


def test_the_quick_look_sees_lost_objects_and_sizes_only(local):
    fill(local)
    flip_a_byte(local.local(shard_object(0)))
    local.local(shard_object(1)).write_bytes(b"short")
    assert verify_shards(local, thorough=False) == [shard_object(1)]
    assert verify_shards(local) == [shard_object(0), shard_object(1)]


def test_discarded_shards_leave_the_others_alone(local):
    fill(local)
    discard_shards(local, [])
    assert local.exists(INDEX)
    discard_shards(local, [shard_object(0)])
    assert not local.exists(INDEX)  # fresh shards may give its materials other positions
    assert [record.shard for record in read_records(local)] == [1]
    assert not local.exists(shard_object(0))
    assert verify_shards(local) == []


def test_another_key_starts_a_new_array(local):
    fill(local)
    assert prepare_array(local, "key", SHAPE, 99) == SLOTS
    assert prepare_array(local, "another key", (3, 8, 8, 8), 2) == 2
    assert open_array(local).shape == (0, 3, 8, 8, 8)
    assert read_records(local) == []
    with pytest.raises(MissingStageError, match=r"grids/index.parquet is not in the workspace"):
        read_grids(local)


def test_growing_keeps_what_is_there(local):
    stored = fill(local)
    grow_array(local, 5)
    assert open_array(local).shape[0] == 5 * SLOTS
    grow_array(local, 1)
    assert open_array(local).shape[0] == 5 * SLOTS
    assert np.array_equal(read_grids(local, ["m9"])[1][0], stored["m9"])


def test_an_object_without_a_record_does_not_exist(local):
    fill(local)
    local.remove("grids/shards/000001.json")  # as after a kill between the two writes
    assert [record.shard for record in read_records(local)] == [0]
    assert verify_shards(local) == []


def test_half_a_record_counts_as_none(local):
    fill(local)
    record = local.local("grids/shards/000000.json")
    record.write_bytes(record.read_bytes()[:50])
    assert [found.shard for found in read_records(local)] == [1]


def test_too_many_grids_are_refused(local):
    prepare_array(local, "key", SHAPE, SLOTS)
    grow_array(local, 1)
    with pytest.raises(WorkspaceError, match="has no room for 5 grids"):
        write_shard(local, 0, list(random_grids(5)), slots_of("abcde"))
    with pytest.raises(WorkspaceError, match=r"Shard 1 .* has no room"):
        write_shard(local, 1, list(random_grids(1)), slots_of("a"))
