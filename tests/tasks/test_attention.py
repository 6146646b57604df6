"""Attention maps and their checks: on real bands, on networks whose answer is known, and on the command line."""

import csv
import io
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from pymatgen.core import Structure

from flows import cli
from models.bnas import CONFIGS, Bnas
from models.map_checks import FIRST_SEED, symmetric_share
from models.training import build
from tasks.attention import (
    check_attention,
    crystal_rotations,
    describe_checks,
    explain,
    explain_material,
    find_sample,
    random_weights_control,
    read_crystal,
)
from tasks.bnas_ensemble import BnasEnsemble, load_bnas
from tasks.exceptions import InputError, MissingStageError
from tasks.grid_sources import collection, index_sources, make_source_chunk, plan_sources
from tasks.grids import make_grid
from tasks.material_figures import nearest_band
from tasks.settings import GridSettings
from tasks.shards import read_grids
from tasks.uniform_bands import UniformBands
from tasks.workspace import Workspace
from tests.conftest import STARTER
from tests.tasks.test_bands import make_row
from tests.tasks.vasprun_files import write_vasprun


def ensemble_of(networks: list[Bnas]) -> BnasEnsemble:
    return BnasEnsemble("test", networks[0].config, [network.eval() for network in networks], 0.5, 0.9)


def network(seed: int, config: str = "tiny") -> Bnas:
    return build(lambda: Bnas(CONFIGS[config][0]), seed)


@pytest.fixture(scope="module")
def magnesium_diboride() -> UniformBands:
    table = pq.read_table(STARTER / "bands.parquet")
    return UniformBands.from_row(table.filter(pc.equal(table["formula"], "MgB2")).to_pylist()[0])


@pytest.fixture(scope="module")
def sample(magnesium_diboride: UniformBands) -> tuple[np.ndarray, Structure]:
    bands = magnesium_diboride
    return make_grid(bands, GridSettings()).energies, Structure(bands.lattice, bands.species, bands.coords)


def test_real_bands_obey_the_rotations_of_their_crystal(sample: tuple[np.ndarray, Structure]):
    grid, structure = sample
    rotations = crystal_rotations(structure)
    band = grid[nearest_band(grid)]
    assert len(rotations) == 24  # 6/mmm
    assert symmetric_share(band, rotations) == pytest.approx(1, abs=1e-6)
    assert symmetric_share(np.roll(band, 3, axis=0), rotations) < 0.9  # another origin is no symmetry
    assert symmetric_share(band, np.swapaxes(rotations, 1, 2)) < 0.99  # nor are rotations of the direct lattice


def test_an_untrained_network_is_found_out(sample: tuple[np.ndarray, Structure]):
    grid, structure = sample
    untrained = ensemble_of([network(FIRST_SEED + 1, "starter")])
    each = random_weights_control(untrained, grid, seeds=3)
    assert each[1] == pytest.approx(1)
    assert max(each[0], each[2]) < 0.8
    (checks,) = check_attention(untrained, grid[None], [structure], seeds=3)
    assert checks.random_weights == pytest.approx(np.mean(each), abs=1e-4)
    alike = describe_checks(checks.model_copy(update={"random_weights": 0.9}))
    assert "the picture says little about what was learnt" in alike[1]


def test_a_symmetric_map_is_told_from_a_shuffled_one(sample: tuple[np.ndarray, Structure]):
    grid, structure = sample
    (checks,) = check_attention(ensemble_of([network(3, "starter"), network(4, "starter")]), grid[None], [structure])
    assert 0 < checks.symmetry_shuffled < checks.symmetry_most < 1
    assert 0 <= checks.symmetry <= checks.symmetry_most
    assert checks.band_symmetry == pytest.approx(1, abs=1e-3)
    chance = checks.model_copy(update={"symmetry": checks.symmetry_shuffled})
    assert "hardly more of the crystal's symmetry than chance" in describe_checks(chance)[0]
    full = checks.model_copy(update={"symmetry": checks.symmetry_most})
    assert "most of the symmetry that it could have" in describe_checks(full)[0]
    broken = checks.model_copy(update={"band_symmetry": 0.6})
    assert "its energies break the crystal's symmetry" in describe_checks(broken)[0]


def test_networks_that_agree_and_networks_that_do_not(sample: tuple[np.ndarray, Structure]):
    grid, structure = sample
    same, other = ensemble_of([network(3), network(3)]), ensemble_of([network(3), network(8)])
    found = [check_attention(one, grid[None], [structure])[0] for one in (same, other)]
    assert found[0].agreement == pytest.approx(1)
    assert found[1].agreement < 0.9
    assert "they look at the same places" in describe_checks(found[0])[-1]


def test_even_attention_has_no_pattern_to_judge(sample: tuple[np.ndarray, Structure]):
    grid, structure = sample
    even = network(0)
    with torch.no_grad():
        for block in even.blocks:
            block.attention.to_qkv.weight.zero_()
    (checks,) = check_attention(ensemble_of([even]), grid[None], [structure])
    assert (checks.symmetry, checks.random_weights, checks.agreement) == (None, None, None)
    assert describe_checks(checks) == [
        "The symmetry of the rollout is not known, because all patches have the same share."
    ]


def test_without_a_crystal_the_symmetry_is_left_open(sample: tuple[np.ndarray, Structure]):
    (checks,) = check_attention(ensemble_of([network(0)]), sample[0][None], [None])
    assert checks.rotations is None
    assert "the crystal is not stored" in describe_checks(checks)[0]
    assert checks.random_weights is not None


def test_a_crystal_without_symmetry_search_is_left_open():
    twice = Structure(np.eye(3) * 3, ["Mg", "Mg"], [[0, 0, 0], [0, 0, 0]])
    assert crystal_rotations(twice) is None


def test_the_files_hold_what_was_found(screened: Workspace, tmp_path: Path):
    name = screened.read_table("candidates/candidates.parquet")["material_id"][0].as_py()
    found, files = explain_material(screened, name, str(tmp_path / "why"), band=9, point=(0, 0, 0.25))
    assert [Path(file).name for file in files] == ["planes.svg", "planes.png", "numbers.json", "patches.csv"]
    written = json.loads((tmp_path / "why" / "numbers.json").read_text())
    assert written == found.numbers | {"words": found.words}
    assert (written["band"], written["point"], written["material_id"]) == (10, [0, 0, 0.25], name)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "why" / "patches.csv").read_text())))
    assert len(rows) == written["patches"] == 8
    shares = [float(row["share"]) for row in rows]
    assert sum(shares) == pytest.approx(1, abs=1e-5)
    assert shares == sorted(shares, reverse=True)
    assert (tmp_path / "why" / "planes.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (tmp_path / "why" / "planes.svg").read_bytes()
    best = [int(rows[0][f"patch_{axis}"]) for axis in "xyz"]
    rollout = load_bnas(screened).rollout(read_grids(screened, [name])[1][0])
    assert rollout[tuple(16 * place for place in best)] == pytest.approx(rollout.max())
    assert float(rows[0]["times_mean"]) == pytest.approx(rollout.max(), abs=1e-5)
    for axis, place in zip("xyz", best, strict=True):
        assert (float(rows[0][f"k{axis}_first"]), float(rows[0][f"k{axis}_last"])) == (place / 2, place / 2 + 15 / 32)


def test_a_material_of_the_training_set_is_called_one(screened: Workspace, tmp_path: Path):
    index = screened.read_table("grids/index.parquet")
    labelled = index.filter(pc.is_valid(index["tc_kelvin"]))["material_id"][0].as_py()
    found, _ = explain_material(screened, labelled, str(tmp_path))
    assert found.numbers["trained_on"] is True
    assert "a memory and no prediction" in found.words[-1]


def test_a_collection_is_searched_too(screened: Workspace, tmp_path: Path):
    shutil.copytree(screened.local("."), tmp_path / "w")
    place = Workspace(tmp_path / "w")
    (tmp_path / "w" / "collections" / "mine").mkdir(parents=True)
    shutil.move(tmp_path / "w" / "grids", tmp_path / "w" / "collections" / "mine" / "grids")
    name = Workspace(place.path("collections/mine")).read_table("grids/index.parquet")["material_id"][0].as_py()
    found = find_sample(place, name)
    assert (found.name, found.structure, found.grid.shape) == (name, None, (18, 32, 32, 32))


def test_a_vasprun_is_read_with_its_crystal(magnesium_diboride: UniformBands, tmp_path: Path, sample):
    path = tmp_path / "vasprun.xml"
    full = replace(magnesium_diboride, dos_energies=None, dos_s=None, dos_p=None, dos_d=None)
    write_vasprun(path, full, style="explicit")
    found = find_sample(Workspace(tmp_path), str(path))
    assert found.formula == full.material_id or found.structure.composition.num_atoms == len(full.species)
    assert found.grid.shape == (18, 32, 32, 32)
    assert explain(ensemble_of([network(0)]), found).numbers["rotations"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing-1", "'nothing-1' is neither a vasprun.xml nor a material with a grid"),
        ("NbN", "materials with this formula: mp-"),
        ("gone/vasprun.xml", "gone/vasprun.xml does not exist"),
    ],
)
def test_what_is_not_there_is_told(screened: Workspace, name: str, message: str):
    with pytest.raises(InputError, match=message):
        find_sample(screened, name)


def test_a_band_that_is_not_there_is_told(screened: Workspace):
    sample = find_sample(screened, screened.read_table("grids/index.parquet")["material_id"][0].as_py())
    with pytest.raises(InputError, match="Band 19 is not one of the bands 1 to 18"):
        explain(load_bnas(screened), sample, band=18)


def test_without_a_network_or_grids_the_missing_stage_is_named(tmp_path: Path):
    with pytest.raises(MissingStageError, match="No trained bnas"):
        explain_material(Workspace(tmp_path), "Nb-229")
    with pytest.raises(MissingStageError, match=r"grids/index\.parquet is not in the workspace"):
        find_sample(Workspace(tmp_path), "Nb-229")


def test_the_command_prints_numbers_and_what_they_mean(screened: Workspace, tmp_path: Path, monkeypatch, capsys):
    name = screened.read_table("candidates/candidates.parquet")["material_id"][0].as_py()
    options = ["--workspace", screened.url, "--output", str(tmp_path / "why")]
    monkeypatch.setenv("COLUMNS", "200")

    def command(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["meissner", "explain", "bnas", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code

    assert command(name, *options) == 0
    shown = capsys.readouterr().out
    assert "symmetric share of the rollout" in shown
    assert "Networks with random weights give maps whose rank correlation with this one is" in shown
    assert str(tmp_path / "why" / "patches.csv") in shown
    assert command(name, *options, "--point", "0,0") == 2
    assert "'0,0' is not three fractional coordinates" in capsys.readouterr().err


def test_a_collection_keeps_the_crystals_of_its_bands(tmp_path):
    place = collection(Workspace(tmp_path), "mine")
    pq.write_table(pa.Table.from_pylist([make_row("Al-225")]), tmp_path / "table.parquet")
    grid_settings = GridSettings(mesh=8)
    items, [chunk] = plan_sources(place, [str(tmp_path / "table.parquet")], grid_settings)
    make_source_chunk(place, chunk, grid_settings)
    for name, table in index_sources(place, items).tables.items():
        place.write_table(name, table)
    found = read_crystal(place, "Al-225")
    assert found is not None
    assert found.matches(Structure.from_str(make_row("Al-225")["structure"], fmt="json"))
    assert read_crystal(place, "absent") is None
