"""The loader of grids: every material once, mixed across shards, the same for the same seed, resumed in the middle."""

import json

import numpy as np
import pytest
import torch

from models.augmentation import all_images
from tasks.exceptions import InputError, WorkspaceError
from tasks.grid_loader import GridLoader
from tasks.grids import assemble_index, make_chunk, plan_chunks
from tasks.settings import GridSettings
from tasks.shards import read_grids, shard_object
from tasks.workspace import Workspace
from tests.tasks.grid_workspaces import rows_of, write_bands

COUNT = 23


def make_workspace(path, store):
    place, settings = Workspace(path), GridSettings(chunk=4, mesh=8, store=store)
    write_bands(place, rows_of(COUNT))
    for chunk in plan_chunks(place, settings):
        make_chunk(place, chunk, settings)
    for name, table in assemble_index(place).tables.items():
        place.write_table(name, table)
    return place


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return make_workspace(tmp_path_factory.mktemp("grids"), "grids")


@pytest.fixture(scope="module", params=["grids", "coefficients", "both"])
def stored(request, tmp_path_factory):
    return make_workspace(tmp_path_factory.mktemp(request.param), request.param)


def loader(place, material_ids=None, **changes):
    return GridLoader(place, material_ids, **{"batch_size": 5, "window": 2, "device": "cpu", **changes})


def all_of(batches):
    rows, energies = zip(*((batch.rows, batch.energies.numpy()) for batch in batches), strict=True)
    return np.concatenate(rows), np.concatenate(energies)


def test_without_shuffling_it_is_what_read_grids_gives(stored):
    rows, energies = all_of(loader(stored))
    index, expected = read_grids(stored)
    assert rows.tolist() == list(range(COUNT))
    np.testing.assert_array_equal(energies, expected)
    assert loader(stored).index.equals(index)
    assert len(loader(stored)) == 5


def test_an_epoch_gives_every_material_once_in_an_order_of_its_own(stored):
    found = loader(stored, shuffle=True)
    (first, energies), (second, _) = all_of(found), all_of(found)
    assert sorted(first) == sorted(second) == list(range(COUNT))
    assert first.tolist() != second.tolist()
    np.testing.assert_array_equal(energies, read_grids(stored)[1][first])


def test_materials_of_several_shards_are_mixed(workspace):
    shards = loader(workspace, shuffle=True, window=3).order(0) // 4  # the array is in the order of the index
    assert len(set(shards[:11])) == 3, "a window holds the materials of its shards"
    assert len(set(shards[:5])) > 1, "and mixes them"
    near = loader(workspace, shuffle=True, window=1).order(0) // 4
    assert np.count_nonzero(np.diff(near)) == 5, "a window of one shard leaves each whole"


@pytest.mark.parametrize("stop", [0, 1, 3, 5, 7])
def test_a_loader_goes_on_where_another_stopped(stored, stop):
    whole = loader(stored, shuffle=True, images=True, seed=3)
    expected = [(batch.rows, batch.energies) for _epoch in range(2) for batch in whole]
    first, given = loader(stored, shuffle=True, images=True, seed=3), 0
    while given < stop:
        for _batch in first:
            given += 1
            if given == stop:
                break
    state = json.loads(json.dumps(first.state_dict()))
    second = loader(stored, shuffle=True, images=True, seed=3)
    second.load_state_dict(state)
    rest = [(batch.rows, batch.energies) for _epoch in range(2) for batch in second][: len(expected) - stop]
    for (rows, energies), (wanted, exact) in zip(rest, expected[stop:], strict=True):
        assert np.array_equal(rows, wanted)
        assert torch.equal(energies, exact)


def test_a_place_in_other_data_is_refused(workspace):
    state = loader(workspace, seed=1).state_dict()
    for other in (loader(workspace, seed=2), loader(workspace, seed=1, batch_size=4), loader(workspace, ["m001"])):
        with pytest.raises(InputError, match="belongs to other materials, another seed or another batch size"):
            other.load_state_dict(state)


def test_images_are_among_the_24_of_each_sample(workspace):
    plain = read_grids(workspace)[1]
    for batch in loader(workspace, images=True):
        for row, energies in zip(batch.rows, batch.energies, strict=True):
            images = all_images(torch.from_numpy(plain[row]))
            assert any(torch.equal(energies, one) for one in images)


def test_some_materials(workspace):
    rows, energies = all_of(loader(workspace, ["m007", "m003"]))
    assert (rows.tolist(), energies.shape) == ([0, 1], (2, 18, 8, 8, 8))
    with pytest.raises(InputError, match="1 materials have no grid"):
        loader(workspace, ["m003", "m999"])


def test_a_damaged_shard_is_named(tmp_path):
    place = make_workspace(tmp_path, "grids")
    damaged = place.local(shard_object(2))
    data = bytearray(damaged.read_bytes())
    data[60] ^= 1
    damaged.write_bytes(bytes(data))
    with pytest.raises(WorkspaceError, match=r"energies\.zarr/c/2/0/0/0/0 in .* is damaged"):
        list(loader(place))
