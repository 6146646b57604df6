"""Coarse bands at the door: rows, vasprun files, and what is refused."""

import gzip
import json
from dataclasses import replace

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from tasks.exceptions import InputError
from tasks.uniform_bands import UniformBands, select_bands
from tests.tasks.lattice_models import FCC, SIMPLE_CUBIC, lattice_bands
from tests.tasks.vasprun_files import write_vasprun


def as_row(bands, **changes):
    structure = Structure(Lattice(bands.lattice), bands.species, bands.coords)
    row = {
        "material_id": bands.material_id,
        "structure": structure.to_json(),
        "kpoints": bands.kpoints.tolist(),
        "weights": bands.weights.tolist(),
        "grid": bands.grid.tolist(),
        "energies": bands.energies.tolist(),
        "efermi": bands.efermi,
    }
    return {**row, **changes}


@pytest.fixture
def bands():
    return lattice_bands(FCC, (4, 4, 4), [-1.0, 1.0], spins=2)


def test_row_and_bands_agree(bands):
    read = UniformBands.from_row(as_row(bands, dos_energies=[-1.0, 0.0], dos_s=[0.5, 0.25], dos_p=None))
    for name in ("lattice", "coords", "kpoints", "weights", "grid", "energies"):
        np.testing.assert_array_equal(getattr(read, name), getattr(bands, name))
    assert read.species == ("Cu",)
    assert read.pooled.shape == (4, len(bands.kpoints))
    assert read.dos_s.tolist() == [0.5, 0.25]
    assert read.dos_p is None


def test_every_bundled_kind_of_row_is_read(shared_data):
    import pyarrow.parquet as pq

    rows = pq.read_table(shared_data / "gpaw_bands" / "bands.parquet").slice(0, 40).to_pylist()
    for row in rows:
        bands = UniformBands.from_row(row)
        points, rotations = bands.symmetric_kpoints(select_bands(bands.means, 18))
        assert points.missing(rotations) == 0


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"efermi": None}, "no efermi"),
        ({"energies": [[[0.0, 1.0], [0.0]]]}, "energies is not a rectangular table"),
        ({"energies": [[[0.0, 1.0]]]}, r"energies has the shape \(1, 1, 2\), not \(any, any, 8\)"),
        ({"weights": [1.0]}, r"weights has the shape \(1,\), not \(8,\)"),
        ({"weights": [0.0] * 8}, "weights of the k points must be positive"),
        ({"grid": [4, 4]}, r"grid has the shape \(2,\)"),
        ({"grid": [4, 0, 4]}, "must have positive divisions"),
        ({"efermi": 100.0}, "E_F = 100.000 eV is outside all bands, -7.000 to 3.250 eV"),
        ({"efermi": float("nan")}, "1 numbers of efermi are not finite"),
        ({"structure": "{}"}, "not pymatgen's JSON"),
        ({"structure": "no json"}, "not pymatgen's JSON"),
        ({"kpoints": []}, "kpoints has the shape"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_bad_rows_are_refused_in_one_sentence(bands, changes, sentence):
    with pytest.raises(InputError, match=sentence):
        UniformBands.from_row(as_row(bands, **changes))


def test_disordered_structures_are_refused(bands):
    structure = json.loads(as_row(bands)["structure"])
    structure["sites"][0]["species"] = [{"element": "Cu", "occu": 0.5}, {"element": "Au", "occu": 0.5}]
    with pytest.raises(InputError, match="disordered"):
        UniformBands.from_row(as_row(bands, structure=json.dumps(structure)))


def test_numbers_that_are_not_finite_are_counted(bands):
    energies = bands.energies.copy()
    energies[0, 0, :3] = np.nan
    with pytest.raises(InputError, match="3 numbers of energies are not finite"):
        replace(bands, energies=energies)


def test_missing_k_points_are_counted(bands):
    short = replace(bands, kpoints=bands.kpoints[1:], weights=bands.weights[1:], energies=bands.energies[..., 1:])
    with pytest.raises(InputError, match=r"1 of the 64 points of the 4 x 4 x 4 grid are missing from the 7 k points"):
        short.symmetric_kpoints([0])


def test_symmetry_is_searched_with_the_tolerance_that_the_list_was_made_with(bands):
    bent = replace(bands, lattice=bands.lattice + np.diag([0.004, 0, 0]))
    points, rotations = bent.symmetric_kpoints([0])
    assert points.missing(rotations) == 0
    assert len(rotations) == 48


@pytest.mark.parametrize(
    ("means", "count", "expected"),
    [
        ([3.0, -1.0, 0.5, -4.0], 2, [1, 2]),
        ([3.0, -1.0, 0.5, -4.0], 9, [3, 1, 2, 0]),
        ([1.0, -1.0, 1.0, -1.0], 3, [1, 0, 2]),
    ],
    ids=["nearest", "fewer than asked for", "ties keep the order of the bands"],
)
def test_selection(means, count, expected):
    assert select_bands(np.array(means), count).tolist() == expected


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("style", ["Gamma", "explicit"])
def test_vasprun_comes_back(tmp_path, style, compressed):
    bands = lattice_bands(SIMPLE_CUBIC, (4, 4, 4), [-1.0, 1.0], spins=2)
    path = write_vasprun(tmp_path / "vasprun.xml", bands, style)
    if compressed:
        path = path.with_suffix(".xml.gz")
        path.write_bytes(gzip.compress((tmp_path / "vasprun.xml").read_bytes()))
    read = UniformBands.from_vasprun(path, "mine")
    assert (read.material_id, read.species, read.grid.tolist()) == ("mine", ("Cu",), [4, 4, 4])
    np.testing.assert_allclose(read.energies, bands.energies, atol=1e-4)
    np.testing.assert_allclose(read.kpoints, bands.kpoints, atol=1e-7)
    assert read.symmetric_kpoints([0])[0].missing(read.symmetric_kpoints([0])[1]) == 0


def test_vasprun_along_lines_is_refused(tmp_path):
    bands = lattice_bands(SIMPLE_CUBIC, (4, 4, 4), [-1.0, 1.0])
    path = write_vasprun(tmp_path / "vasprun.xml", bands, "line")
    with pytest.raises(InputError, match="line-mode run"):
        UniformBands.from_vasprun(path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "does not exist"),
        (b"", "cut short or not XML"),
        (b"<?xml version='1.0'?><modeling></modeling>", "not a vasprun.xml"),
        (b"\x1f\x8b\x08\x00broken", "cut short|not a vasprun.xml"),
    ],
    ids=["missing", "empty", "another file", "broken gzip"],
)
def test_unreadable_vasprun_is_refused(tmp_path, content, sentence):
    path = tmp_path / ("vasprun.xml.gz" if content and content.startswith(b"\x1f") else "vasprun.xml")
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        UniformBands.from_vasprun(path)


def test_truncated_vasprun_is_refused(tmp_path):
    path = write_vasprun(tmp_path / "vasprun.xml", lattice_bands(SIMPLE_CUBIC, (4, 4, 4), [0.0]), "Gamma")
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(InputError, match="cut short"):
        UniformBands.from_vasprun(path)


def test_real_vasp_run(shared_data):
    bands = UniformBands.from_vasprun(shared_data / "vasp" / "MgB2" / "vasprun.xml.gz")
    assert bands.species == ("Mg", "B", "B")
    assert bands.energies.shape == (2, 64, 40)
    assert bands.grid.tolist() == [8, 8, 7]
    assert bands.efermi == pytest.approx(5.09505239)
    assert bands.dos_p.max() > bands.dos_d.max() > 0
