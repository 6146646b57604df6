"""Grids from files of bands: VASP runs, pymatgen's band structures, tight-binding models, tables; folders and zips."""

import gzip
import json
import shutil
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from flows.cli import app
from tasks.band_sources import bands_from_pymatgen, list_bands, load_bands
from tasks.exceptions import InputError, WorkspaceError
from tasks.grid_sources import collection, index_sources, make_source_chunk, plan_sources
from tasks.grids import make_grid
from tasks.schemas import BANDS
from tasks.settings import GridSettings
from tasks.shards import read_grids, shard_object
from tasks.superband_grids import read_superband_material
from tasks.tight_binding import write_wannier90_hr
from tasks.tight_binding_models import one_band_cuprate
from tasks.uniform_bands import UniformBands
from tasks.vasprun import read_vasprun
from tasks.workspace import Workspace
from tests.tasks.test_bands import make_row
from tests.tasks.test_superband_grids import material, write_superband

SETTINGS = GridSettings(mesh=8)


@pytest.fixture
def vasprun(shared_data):
    return shared_data / "vasp" / "MgB2" / "vasprun.xml.gz"


@pytest.fixture
def place(tmp_path):
    return collection(Workspace(tmp_path / "w"), "mine")


@pytest.fixture
def folder(tmp_path):
    """A table of two materials, a tight-binding model with its .win, and what cannot be read."""
    source = tmp_path / "source"
    (source / "cuprate").mkdir(parents=True)
    rows = [make_row("Al-225"), make_row("TiAl")]
    pq.write_table(pa.Table.from_pylist(rows, schema=BANDS), source / "table.parquet")
    write_wannier90_hr(one_band_cuprate(), source / "cuprate" / "wannier90_hr.dat")
    (source / "cuprate" / "wannier90.win").write_text("fermi_energy = -0.2\n")
    (source / "broken_hr.dat").write_text("nothing of the kind\n")
    (source / "notes.txt").write_text("not bands")
    return source


def run(place, *sources, efermi=None, verify=False):
    items, chunks = plan_sources(place, [str(source) for source in sources], SETTINGS, verify)
    made = sum(make_source_chunk(place, chunk, SETTINGS, efermi) for chunk in chunks)
    outcome = index_sources(place, items)
    for name, table in outcome.tables.items():
        place.write_table(name, table)
    return made, outcome


def test_everything_in_a_folder_becomes_a_grid_or_a_reason(place, folder):
    made, outcome = run(place, folder)
    assert (made, outcome.rows_in, outcome.accounted) == (4, 4, 3)
    index, grids = read_grids(place)
    assert index["material_id"].to_pylist() == ["Al-225", "TiAl", "cuprate/wannier90"]
    assert index["formula"].to_pylist()[:2] == ["Al", "TiAl"]
    assert grids.shape == (3, 18, 8, 8, 8)
    assert [refused.item for refused in outcome.rejected] == ["broken"]
    assert "broken_hr.dat" in outcome.rejected[0].reason
    model = one_band_cuprate()
    assert np.abs(grids[2][8] - (model.on_mesh(8)[0] + 0.2)).max() < 1e-5
    expected = make_grid(UniformBands.from_row(make_row("Al-225")), SETTINGS).energies
    assert np.abs(grids[0] - expected).max() < 1e-4  # a table holds float32


def test_nothing_is_made_twice_and_what_is_gone_leaves_the_index(place, folder):
    run(place, folder)
    assert run(place, folder)[0] == 0
    (folder / "broken_hr.dat").unlink()
    made, outcome = run(place, folder)
    assert (made, outcome.rows_in, outcome.accounted) == (0, 3, 3)


def test_a_zip_holds_what_the_folder_holds(place, folder, tmp_path):
    packed = tmp_path / "source.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder))
    run(place, folder)
    other = collection(Workspace(tmp_path / "w"), "zipped")
    run(other, packed)
    assert np.array_equal(read_grids(place)[1], read_grids(other)[1])


def test_fermi_level_of_a_model_without_one(place, tmp_path):
    write_wannier90_hr(one_band_cuprate(), tmp_path / "layer_hr.dat")
    _, outcome = run(place, tmp_path / "layer_hr.dat")
    assert "no Fermi level" in outcome.rejected[0].reason
    other = collection(Workspace(tmp_path / "w"), "other")
    assert run(other, tmp_path / "layer_hr.dat", efermi=0.1)[1].accounted == 1


def test_real_vasp_run_and_pymatgens_band_structure_agree(vasprun, place, tmp_path):
    from pymatgen.io.vasp.outputs import Vasprun

    source = tmp_path / "runs"
    (source / "MgB2").mkdir(parents=True)
    shutil.copy(vasprun, source / "MgB2" / "vasprun.xml.gz")
    run_ = Vasprun(vasprun, parse_potcar_file=False)
    document = {**run_.get_band_structure().as_dict(), "structure": run_.final_structure.as_dict()}
    with gzip.open(source / "MgB2.json.gz", "wt") as file:
        json.dump(document, file)
    _, outcome = run(place, source)
    assert outcome.rejected == []
    index, grids = read_grids(place)
    assert index["material_id"].to_pylist() == ["MgB2", "MgB2"]
    assert index["formula"].to_pylist() == ["MgB2", "MgB2"]
    assert np.abs(grids[0] - grids[1]).max() < 1e-3
    direct = make_grid(UniformBands(**read_vasprun(vasprun)), SETTINGS).energies
    assert min(np.abs(grid - direct).max() for grid in grids) == 0


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"@class": "BandStructureSymmLine"}, "class 'BandStructureSymmLine', not pymatgen's BandStructure"),
        ({"@class": "BandStructure", "bands": {}}, "holds no structure"),
        ({"@class": "BandStructure", "bands": {}, "structure": {}}, "not a whole BandStructure"),
        ([], "class None"),
    ],
)
def test_json_that_is_no_uniform_band_structure(document, message):
    with pytest.raises(InputError, match=message):
        bands_from_pymatgen(document, "x")


def test_a_source_without_bands_and_a_bad_name(tmp_path):
    with pytest.raises(InputError, match="holds no bands"):
        list_bands(str(tmp_path))
    with pytest.raises(InputError, match="must be a plain name"):
        collection(Workspace(tmp_path), "../x")


def test_superbands_file_keeps_its_grids_and_labels(place, tmp_path):
    path = write_superband(tmp_path / "0724.hdf5", {"CuO2": material(), "bad": material(position=np.zeros((1, 3)))})
    made, outcome = run(place, path)
    assert (made, outcome.accounted) == (2, 1)
    assert [refused.item for refused in outcome.rejected] == ["bad"]
    index, grids = read_grids(place)
    row = index.to_pylist()[0]
    found = read_superband_material(path, "CuO2", mesh=8)
    assert (row["formula"], row["tc_kelvin"]) == (found.formula, found.tc_kelvin)
    assert np.array_equal(grids[0], found.energies)


def test_tables_of_another_kind_are_refused_and_the_rest_goes_on(place, folder):
    pq.write_table(pa.table({"material_id": ["x"], "energy": [1.0]}), folder / "other.parquet")
    (folder / "cut.parquet").write_bytes((folder / "table.parquet").read_bytes()[:1000])
    _, outcome = run(place, folder)
    reasons = {refused.item: refused.reason for refused in outcome.rejected}
    assert outcome.accounted == 3
    assert "no table of bands as in bands/: it lacks structure" in reasons["other"]
    assert "no readable Parquet file" in reasons["cut"]


def test_two_kinds_are_loaded_as_what_they_are(folder):
    kinds = {
        type(load_bands(item, SETTINGS)).__name__ for item in list_bands(str(folder)) if item.material_id != "broken"
    }
    assert kinds == {"UniformBands", "TightBinding"}


@pytest.mark.usefixtures("prefect_harness")
def test_command(folder, tmp_path):
    from flows.grids import grid_source

    report = grid_source(str(tmp_path / "w"), (str(folder),), "mine", SETTINGS)
    assert report.counts["grids"] == 3
    assert grid_source(str(tmp_path / "w"), (str(folder),), "mine", SETTINGS).reused
    assert "--collection" in CliRunner().invoke(app, ["grid", "--help"]).output


def test_a_damaged_shard_of_a_collection_is_made_again(place, folder):
    run(place, folder)
    before = read_grids(place)[1]
    damaged = place.local(shard_object(0))
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(bytes(data))
    with pytest.raises(WorkspaceError, match="is damaged"):
        read_grids(place)
    assert plan_sources(place, [str(folder)], SETTINGS)[1] == []
    assert run(place, folder, verify=True)[0] == 4
    assert np.array_equal(read_grids(place)[1], before)
