"""Crystals: every kind of source, standard cells, duplicates, and a hash of content."""

import gzip
import io
import json
import os
import tarfile
import time
import zipfile

import numpy as np
import pytest
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure
from pymatgen.io.cif import CifWriter
from pymatgen.io.vasp.inputs import Poscar

from tasks.crystal_files import MAX_FILE_BYTES, build_structure, read_crystals
from tasks.crystals import (
    OUTPUT,
    collect_crystals,
    gather_crystals,
    natural_key,
    read_structure,
    standardise,
    structure_from_json,
    structure_hash,
    structure_to_json,
)
from tasks.exceptions import InputError
from tasks.processes import Failure, run_jobs
from tasks.schemas import CRYSTALS
from tasks.settings import CrystalSettings
from tasks.workspace import Workspace
from tests.conftest import STARTER

HEADER = "crystal_id,formula,space_group,a,b,c,alpha,beta,gamma,sites,reference"
MGB2 = "MgB2-191,MgB2,P6/mmm,3.086,3.086,3.524,90,90,120,Mg 0 0 0; B 1/3 2/3 1/2,Nagamatsu 2001"
NBTI = "NbTi-229,Nb0.5Ti0.5,229,3.28,3.28,3.28,90,90,90,Nb:0.5+Ti:0.5 0 0 0,Pearson"


@pytest.fixture
def magnesium_diboride():
    lattice = Lattice.hexagonal(3.086, 3.524)
    return Structure.from_spacegroup("P6/mmm", lattice, ["Mg", "B"], [[0, 0, 0], [1 / 3, 2 / 3, 0.5]])


@pytest.fixture
def aluminium():
    return Structure.from_spacegroup("Fm-3m", Lattice.cubic(4.05), ["Al"], [[0, 0, 0]])


def facts(tmp_path, *rows):
    path = tmp_path / "crystals.csv"
    path.write_text("\n".join([HEADER, *rows]), encoding="utf-8")
    return str(path)


def gather(source):
    outcome = gather_crystals(list(read_crystals(str(source))), CrystalSettings())
    assert outcome.rows_in == outcome.accounted + len(outcome.rejected)
    return outcome.tables[OUTPUT].to_pylist(), {r.item: r.reason for r in outcome.rejected}


def test_facts_become_standard_primitive_cells(tmp_path):
    rows, refused = gather(facts(tmp_path, MGB2, NBTI))
    assert refused == {}
    assert [(row["formula"], row["space_group"], row["sites"], row["ordered"]) for row in rows] == [
        ("MgB2", "P6/mmm", 3, True),
        ("TiNb", "Im-3m", 1, False),
    ]
    assert rows[0]["reference"] == "Nagamatsu 2001"
    structure = structure_from_json(rows[0]["structure"])
    assert structure.lattice.abc == pytest.approx((3.086, 3.086, 3.524))


def test_facts_fill_the_cell_as_pymatgen_does(tmp_path):
    row = "x,LiTi2O4,Fd-3m,8.405,8.405,8.405,90,90,90,Li 0 0 0; Ti 5/8 5/8 5/8; O 0.3875 0.3875 0.3875,made"
    (crystal,) = read_crystals(facts(tmp_path, row))
    ours = build_structure(crystal)
    sites = [[0, 0, 0], [0.625] * 3, [0.3875] * 3]
    theirs = Structure.from_spacegroup("Fd-3m", Lattice.cubic(8.405), ["Li", "Ti", "O"], sites)
    assert structure_hash(ours) == structure_hash(theirs)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        pytest.param(MGB2.replace("MgB2,P6", "MgB3,P6"), "formula says MgB3, but", id="formula-disagrees"),
        pytest.param(MGB2.replace("P6/mmm", "P6/xyz"), "no space group", id="unknown-group"),
        pytest.param(MGB2.replace("P6/mmm", "Fm-3m"), "does not allow the cell", id="cell-against-group"),
        pytest.param(MGB2.replace("B 1/3", "Xx 1/3"), "'Xx' is not an element", id="unknown-element"),
        pytest.param(MGB2.replace("1/3 2/3 1/2", "1/3 2/3"), "is not 'SPECIES x y z'", id="two-coordinates"),
        pytest.param(MGB2.replace("1/3", "1/0"), "'1/0' is not a number", id="division-by-zero"),
        pytest.param(MGB2.replace("3.524", "-3.5"), "no cell has", id="negative-length"),
        pytest.param(NBTI.replace("Nb:0.5", "Nb:0.8"), "sum to more than 1", id="occupancy"),
        pytest.param("a,B,P1,3,3,3,90,90,90,B 0 0 0; B 0.05 0 0,made", "atoms overlap", id="overlap"),
        pytest.param("a,B,P1,3,3,3", "its row has 6 cells", id="short-row"),
    ],
)
def test_bad_facts_are_refused_and_the_rest_goes_on(tmp_path, row, reason):
    rows, refused = gather(facts(tmp_path, row, "Po-221,Po,221,3.35,3.35,3.35,90,90,90,Po 0 0 0,Pearson"))
    assert [row["crystal_id"] for row in rows] == ["Po-221"]
    (text,) = refused.values()
    assert reason in text


def test_columns_are_found_by_name(tmp_path):
    path = tmp_path / "crystals.csv"
    path.write_text("crystal_id,formula\nx,Nb\n", encoding="utf-8")
    with pytest.raises(InputError, match="lacks space_group, a, b"):
        list(read_crystals(str(path)))


def cif(structure):
    return str(CifWriter(structure))


def make_zip(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def test_the_same_crystal_from_every_kind_of_source(tmp_path, magnesium_diboride):
    (tmp_path / "a.cif").write_text(cif(magnesium_diboride), encoding="utf-8")
    (tmp_path / "POSCAR").write_text(str(Poscar(magnesium_diboride)), encoding="utf-8")
    (tmp_path / "b.json").write_text(magnesium_diboride.to_json(), encoding="utf-8")
    record = {"material_id": "mp-763", "structure": magnesium_diboride.as_dict(), "energy_above_hull": 0.01}
    (tmp_path / "c.json").write_text(json.dumps([record]), encoding="utf-8")
    (tmp_path / "d.json").write_text(json.dumps({"mp-763": magnesium_diboride.as_dict()}), encoding="utf-8")
    found = {}
    for name in ("a.cif", "POSCAR", "b.json", "c.json", "d.json"):
        ((row,), refused) = gather(tmp_path / name)
        assert refused == {}
        found[name] = row
    assert len({structure_hash(structure_from_json(row["structure"])) for row in found.values()}) == 1
    assert [row["crystal_id"] for row in found.values()] == ["a", "POSCAR", "b", "mp-763", "mp-763"]
    assert found["c.json"]["energy_above_hull_ev"] == 0.01


def make_tar(path, members):
    with tarfile.open(path, f"w:{path.suffix[1:].removeprefix('tar')}") as archive:
        for name, text in reversed(members.items()):
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            archive.addfile(info, io.BytesIO(text.encode()))
    return path


def test_folder_and_archives(tmp_path, magnesium_diboride, aluminium):
    folder = tmp_path / "folder"
    folder.mkdir()
    members = {
        "mp-1.cif": cif(magnesium_diboride),
        "mp-2.cif": cif(aluminium),
        "mp-3.cif": cif(aluminium * (2, 1, 1)),
        "broken.cif": "data_x\n_cell_length_a 3\n",
        "binary.cif": "data_x\n\0",
        "notes.txt": "not a crystal",
    }
    for name, text in members.items():
        (folder / name).write_text(text, encoding="utf-8")
    expected = ["mp-1", "mp-2"]
    packed = [make_tar(tmp_path / name, members) for name in ("crystals.tar", "crystals.tar.gz", "crystals.tar.xz")]
    for source in (folder, make_zip(tmp_path / "crystals.zip", members), *packed):
        rows, refused = gather(source)
        assert [row["crystal_id"] for row in rows] == expected
        assert refused["mp-3"] == "same crystal as mp-2"
        assert "cut short or damaged: its block data_x has no _cell_length_b" in refused["broken"]
        assert "no crystal file" in refused["notes.txt"]
        assert "is not a text file" in refused["binary.cif"]


def test_a_zip_is_not_trusted(tmp_path, aluminium):
    members = {"../climbs.cif": cif(aluminium), "/etc/absolute.cif": cif(aluminium), "good.cif": cif(aluminium)}
    members["huge.cif"] = b"0" * (MAX_FILE_BYTES + 1)
    path = make_zip(tmp_path / "crystals.zip", members)
    rows, refused = gather(path)
    assert [row["crystal_id"] for row in rows] == ["good"]
    assert "climbs out" in refused["../climbs.cif"]
    assert "climbs out" in refused["/etc/absolute.cif"]
    assert "larger than" in refused["huge.cif"]
    (tmp_path / "cut.zip").write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InputError, match="not a readable zip"):
        list(read_crystals(str(tmp_path / "cut.zip")))


def test_a_damaged_member_does_not_end_the_archive(tmp_path, aluminium):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("bad.cif", cif(aluminium))
        archive.writestr("good.cif", cif(aluminium))
    data = bytearray(buffer.getvalue())
    data[60] ^= 0xFF
    (tmp_path / "crystals.zip").write_bytes(bytes(data))
    rows, refused = gather(tmp_path / "crystals.zip")
    assert [row["crystal_id"] for row in rows] == ["good"]
    assert "cannot be unpacked" in refused["bad.cif"]


def cif_with(sites):
    return (
        "data_x\n_cell_length_a 3\n_cell_length_b 3\n_cell_length_c 3\n_cell_angle_alpha 90\n_cell_angle_beta 90\n"
        "_cell_angle_gamma 90\n_symmetry_Int_Tables_number 1\nloop_\n_symmetry_equiv_pos_as_xyz\n 'x, y, z'\nloop_\n"
        "_atom_site_label\n_atom_site_type_symbol\n_atom_site_fract_x\n_atom_site_fract_y\n_atom_site_fract_z\n"
        f"_atom_site_occupancy\n{sites}\n"
    )


NB = cif_with("Nb1 Nb 0 0 0 1")
P1 = "_symmetry_Int_Tables_number 1\nloop_\n_symmetry_equiv_pos_as_xyz\n 'x, y, z'\n"
SINGLE = "_atom_site_label Cr1\n_atom_site_fract_x 0\n_atom_site_fract_y 0\n_atom_site_fract_z 0\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param("", "cannot be read as cif", id="empty"),
        pytest.param("no crystal", "cannot be read as cif", id="text"),
        pytest.param(cif_with("Nb1 Nb 0 0 0 1.3"), "site Nb1 has the occupancy 1.3; at most 1", id="occupancy-above-1"),
        pytest.param(cif_with("Nb1 Nb 0 0 0 1\nNb2 Nb 0.05 0 0 1"), "atoms overlap", id="overlap"),
        pytest.param(
            cif_with("Nb1 Nb 0 0 0 .7\nTi1 Ti 0 0 0 .7"),
            "Nb1 and Ti1 are on one site, .* sum to 1.4",
            id="shared-site-above-1",
        ),
        pytest.param(cif_with("Nb1 Nb 0 0 0 .7\nTi1 Ti .001 0 0 .7"), "atoms overlap", id="near-sites-above-1"),
        pytest.param(
            cif_with("Nb1 Nb 0 0 0 1\nNb2 Nb 0 0 1 1"),
            "Nb1 and Nb2 are on one site, .* sum to 2; at most 1",
            id="an-atom-twice",
        ),
        pytest.param(
            NB.replace("'x, y, z'", "'x, y, z'\n 'x, y, z+1/2'") + "Nb2 Nb 0 0 .5 1", "by symmetry", id="image-twice"
        ),
        pytest.param(cif_with("Nb1 Nb nan 0 0 1"), "site Nb1 has the _atom_site_fract_x 'nan'", id="position-of-nan"),
        pytest.param(cif_with("Nb1 Nb 0 0 ? 1"), "site Nb1 has the _atom_site_fract_z", id="position-unknown"),
        pytest.param(
            cif_with("Nb1 Nb 0 0 0 .5\nTi1 Ti 0 0 0 .5\nV1 V .5 .5 .5 .7\nCr1 Cr .5 .5 .5 .7"),
            "V1 and Cr1 are on one site, .* sum to 1.4",
            id="crowded-beside-a-full-site",
        ),
        pytest.param(cif_with("Nb1 Nb 0 0 0 1\nO1 OH .5 .5 .5 1"), "lists 'OH' as an atom", id="hydroxyl"),
        pytest.param(cif_with("Nb1 Nb 0 0 0 1\nVa1 Va .5 .5 .5 1"), "lists 'Va' as an atom", id="vacancy"),
        pytest.param(NB.replace(P1, "_space_group_name_Hall '-F 4 2 3'\n"), "Hall '-F 4 2 3', which is", id="symmetry"),
        pytest.param(NB.split("loop_\n_atom")[0] + SINGLE, "its atom Cr1 outside of a loop_", id="atom-without-a-loop"),
        pytest.param(cif_with("Nb1 Nb 0 0 0 ."), "_atom_site_occupancy '.'; allowed", id="occupancy-not-told"),
        pytest.param(cif_with("Nb1 Nb . 0 0 1"), "site Nb1 has the _atom_site_fract_x '.'", id="position-not-told"),
        pytest.param(cif_with("Nb1 Nb 0 0 0 -.5"), "_atom_site_occupancy '-.5'; allowed", id="occupancy-below-0"),
        pytest.param(NB.replace("_c 3", "_c 0"), "_cell_length_c '0', which is not .* above 0", id="length-of-0"),
        pytest.param(NB.replace("_c 3", "_c -3"), "_cell_length_c '-3', which is not", id="negative-length"),
        pytest.param(NB.replace("_gamma 90", "_gamma 200"), "between 0 and 180 degrees", id="angle-above-180"),
        pytest.param(NB.replace("_gamma 90", "_gamma 20").replace("_beta 90", "_beta 40"), "no volume", id="flat-cell"),
        pytest.param(NB[: NB.index("loop_\n_atom")], "data_x has no _atom_site_label", id="cut-before-the-sites"),
        pytest.param(NB[: NB.index("_occupancy")], "does not hold whole rows", id="cut-in-the-sites'-columns"),
        pytest.param(NB + "Nb2 Nb 0.5 0.5", "does not hold whole rows", id="cut-within-a-site"),
        pytest.param(cif_with("Xx1 Xx 0 0 0 1"), "no element: Xx", id="unknown-element"),
        pytest.param(cif_with("Nb1 Nb 0 0 0 1").replace("_a 3", "_a nan"), "not a finite number", id="cell-of-nan"),
        pytest.param(cif_with("Nb1 Nb 0 0 0 1").replace("_a 3", "_a 1e9"), "edges of 1e.09", id="cell-too-long"),
        pytest.param(cif_with("Nb1 Nb 0 0 0 1").replace("_a 3", "_a .01"), "0.5 cubic angstrom", id="cell-too-small"),
    ],
)
def test_single_files_that_are_no_crystal(tmp_path, text, reason):
    path = tmp_path / "crystal.cif"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=reason):
        read_structure(path)


def test_occupancies_that_sum_to_one_but_for_rounding_are_read(tmp_path):
    path = tmp_path / "crystal.cif"
    shares = zip(("Nb", "Ti", "V", "Ta"), (0.2, 0.4, 0.3, 0.1), strict=True)
    path.write_text(cif_with("\n".join(f"{symbol}1 {symbol} 0 0 0 {share}" for symbol, share in shares)))
    assert len(read_structure(path)) == 1


def test_a_poscar_may_have_comments_and_its_volume_as_scale(tmp_path):
    head = "CsCl\n-64 ! volume\n2 0 0 # a\n0 2 0\n0 0 2\nCs Cl ! symbols\n1 1 ! atoms\n"
    (tmp_path / "POSCAR").write_text(f"{head}Cartesian\n0 0 0\n1 1 1\n")
    found = read_structure(tmp_path / "POSCAR")
    assert found.formula == "Cs1 Cl1"
    assert found.volume == pytest.approx(64)
    np.testing.assert_allclose(found.frac_coords, [[0, 0, 0], [0.5, 0.5, 0.5]], atol=1e-9)


def test_gzipped_members_of_a_folder_are_read(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "nb.cif.gz").write_bytes(gzip.compress(NB.encode()))
    (folder / "cut.cif.gz").write_bytes(gzip.compress(NB.encode())[:30])
    rows, refused = gather(folder)
    assert [row["crystal_id"] for row in rows] == ["nb"]
    assert "cannot be unpacked" in refused["cut.cif.gz"]


def test_blocks_of_a_publisher_are_left_out(tmp_path):
    path = tmp_path / "crystal.cif"
    path.write_text(f"data_global\n_publ_section_title 'Niobium'\n{NB}")
    assert read_structure(path).formula == "Nb1"
    path.write_text(NB + NB.replace("data_x", "data_y"))
    with pytest.raises(InputError, match="holds 2 structures"):
        read_structure(path)


def test_a_poscar_without_elements_is_refused_wherever_it_lies(tmp_path, magnesium_diboride):
    lines = str(Poscar(magnesium_diboride)).splitlines()
    bare = [" ".join(line.split()[:3]) for line in lines[8:]]
    old = "\n".join([*lines[:5], *lines[6:8], *bare])
    folder = tmp_path / "folder"
    folder.mkdir()
    members = {"POSCAR": old, "Nb.cif": NB, "good.vasp": "\n".join([*lines[:5], *lines[6:]])}
    for name, text in members.items():
        (folder / name).write_text(text, encoding="utf-8")
    for source in (folder, make_zip(tmp_path / "crystals.zip", members)):
        rows, refused = gather(source)
        assert [row["formula"] for row in rows] == ["Nb", "MgB2"]
        assert refused == {"POSCAR": "names no elements; a line of symbols above the numbers of atoms is needed"}
    with pytest.raises(InputError, match="POSCAR: names no elements; a line of symbols"):
        read_structure(folder / "POSCAR")


@pytest.mark.parametrize(
    ("line", "text", "reason"),
    [
        pytest.param(1, "one", "line 2 is 'one'; one number, the scale", id="scale"),
        pytest.param(4, "0 0", "line 5 is '0 0'; three numbers of a cell vector", id="vector"),
        pytest.param(5, "B", "numbers of atoms are 2, the symbols above them 1", id="too-few-symbols"),
        pytest.param(9, "0.3 x 0.5", "line 10 is '0.3 x 0.5'; three coordinates", id="coordinate"),
        pytest.param(3, None, "cut short: it ends after line 3", id="cut-in-the-cell"),
        pytest.param(7, None, "cut short: it ends after line 7, before the positions", id="cut-before-the-positions"),
        pytest.param(10, None, "cut short: it ends after 2 of 3 positions", id="cut-in-the-positions"),
    ],
)
def test_a_poscar_that_is_no_crystal(tmp_path, magnesium_diboride, line, text, reason):
    lines = str(Poscar(magnesium_diboride)).splitlines()
    lines[line:] = [] if text is None else [text, *lines[line + 1 :]]
    (tmp_path / "POSCAR").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(InputError, match=reason):
        read_structure(tmp_path / "POSCAR")


def site(species, position=(0, 0, 0)):
    return {"species": [{"element": element, "occu": amount} for element, amount in species.items()], "abc": position}


@pytest.mark.parametrize(
    ("sites", "reason"),
    [
        pytest.param([site({"Nb": 1.4})], "sum to more than 1", id="occupancy-above-1"),
        pytest.param([site({"Nb": 0.7, "Ti": 0.7})], "sum to more than 1", id="shared-site-above-1"),
        pytest.param([site({"Nb": -1})], "cannot be negative", id="negative"),
        pytest.param([site({"Nb": 1}), site({"Nb": 1}, (1, 0, 0))], "atoms overlap", id="an-atom-twice"),
        pytest.param([site({"Nb": 1}, (0, 0, float("nan")))], "not a finite number", id="position-of-nan"),
        pytest.param([], "at least 1 site", id="empty"),
    ],
)
def test_json_that_is_no_crystal(tmp_path, sites, reason):
    path = tmp_path / "crystal.json"
    path.write_text(json.dumps({"lattice": {"matrix": [[3, 0, 0], [0, 3, 0], [0, 0, 3]]}, "sites": sites}))
    with pytest.raises(InputError, match=reason):
        read_structure(path)


def test_read_structure(tmp_path, magnesium_diboride):
    path = tmp_path / "crystal.cif"
    path.write_text(cif(magnesium_diboride), encoding="utf-8")
    assert read_structure(path).composition.reduced_formula == "MgB2"
    with pytest.raises(InputError, match="Cannot read"):
        read_structure(tmp_path / "absent.cif")
    (tmp_path / "crystal.docx").touch()
    with pytest.raises(InputError, match=r"is no crystal file by its name; allowed are \*.cif, POSCAR"):
        read_structure(tmp_path / "crystal.docx")
    with pytest.raises(InputError, match="no source of crystals"):
        list(read_crystals(str(tmp_path / "crystal.docx")))
    for read in (read_structure, lambda path: list(read_crystals(str(path)))):
        with pytest.raises(InputError, match=r"absent\.docx: there is no such file"):
            read(tmp_path / "absent.docx")
    with pytest.raises(InputError, match="is a folder; give its files"):
        read_structure(tmp_path)


def test_split_sites_that_are_never_filled_together_may_be_near(aluminium):
    split = Structure(Lattice.cubic(4), [{"Li": 0.5}, {"Li": 0.5}, "O"], [[0, 0, 0], [0.05, 0, 0], [0.5, 0.5, 0.5]])
    assert len(standardise(split, CrystalSettings())[0]) == 3


def test_standard_cell_does_not_depend_on_the_cell_given(aluminium):
    random = np.random.default_rng(0)
    hashes = set()
    for _ in range(4):
        other = aluminium * random.integers(1, 3, 3)
        other.translate_sites(range(len(other)), random.random(3))
        standard, group = standardise(other, CrystalSettings())
        assert group == "Fm-3m"
        assert len(standard) == 1
        hashes.add(round(standard.volume, 6))
    assert hashes == {round(4.05**3 / 4, 6)}


def test_too_large_cells_are_refused():
    silicon = Structure.from_spacegroup("Fd-3m", Lattice.cubic(5.43), ["Si"], [[0, 0, 0]])
    with pytest.raises(InputError, match="has 8 sites; at most 1 in the primitive cell"):
        standardise(silicon, CrystalSettings(max_sites=1))
    with pytest.raises(InputError, match="has 2 sites in its primitive cell; at most 1"):
        standardise(silicon.get_primitive_structure(), CrystalSettings(max_sites=1))


def test_structure_hash_is_one_of_content(magnesium_diboride):
    first = structure_hash(magnesium_diboride)
    assert structure_hash(magnesium_diboride.copy()) == first
    assert structure_hash(structure_from_json(structure_to_json(magnesium_diboride))) == first
    assert structure_hash(Structure.from_sites(magnesium_diboride[::-1])) == first
    shifted = Structure(magnesium_diboride.lattice, magnesium_diboride.species, magnesium_diboride.frac_coords - 1)
    assert structure_hash(shifted) == first
    noisy = Structure(magnesium_diboride.lattice, magnesium_diboride.species, magnesium_diboride.frac_coords - 1e-9)
    assert structure_hash(noisy) == first
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    turned = Lattice(magnesium_diboride.lattice.matrix @ (rotation * np.linalg.det(rotation)))
    assert structure_hash(Structure(turned, magnesium_diboride.species, magnesium_diboride.frac_coords)) == first


@pytest.mark.parametrize("change", ["species", "occupancy", "coordinate", "lattice"])
def test_structure_hash_sees_each_change(magnesium_diboride, change):
    other = magnesium_diboride.copy()
    if change == "species":
        other[0] = "Al"
    elif change == "occupancy":
        other[0] = {"Mg": 0.9, "Al": 0.1}
    elif change == "coordinate":
        other.translate_sites([0], [0.001, 0, 0])
    else:
        other = Structure(Lattice.hexagonal(3.087, 3.524), other.species, other.frac_coords)
    assert structure_hash(other) != structure_hash(magnesium_diboride)


def test_natural_order_of_ids():
    assert sorted(["mp-1001605", "mp-763", "a", "mp-9"], key=natural_key) == ["a", "mp-9", "mp-763", "mp-1001605"]


def slow_square(number):
    while number == 3:
        pass
    if number == 4:
        time.sleep(60)
    if number == 6:
        os._exit(1)
    if number == 5:
        raise InputError("five is refused")
    return number * number


def test_jobs_in_processes_are_stopped_and_kept_in_order():
    results = run_jobs(slow_square, list(range(8)), processes=2, seconds=0.5)
    assert results[:3] == [0, 1, 4]
    assert results[3] == results[4] == Failure("took longer than 0.5 s", retryable=True)
    assert results[5] == Failure("five is refused")
    assert "ended early" in results[6].reason
    assert results[7] == 49


def test_starter_crystals():
    crystals = list(read_crystals(str(STARTER / "crystals.csv")))
    assert len(crystals) >= 120
    outcome = gather_crystals(crystals[::20], CrystalSettings(), processes=1)
    assert outcome.tables[OUTPUT].schema.equals(CRYSTALS)
    assert [rejection.reason for rejection in outcome.rejected] == []


def test_task(tmp_path):
    source, space = facts(tmp_path, MGB2, NBTI), str(tmp_path / "workspace")
    report = collect_crystals.fn(space, source, CrystalSettings())
    assert (report.rows_in, report.counts["disordered"]) == (2, 1)
    assert Workspace(space).read_table(OUTPUT).schema.equals(CRYSTALS)
    assert collect_crystals.fn(space, source, CrystalSettings()).reused


def test_materials_project_zip(shared_data):
    import itertools

    crystals = list(itertools.islice(read_crystals(str(shared_data / "mp_structures.zip")), 10))
    outcome = gather_crystals(crystals, CrystalSettings())
    assert outcome.accounted + len(outcome.rejected) == 10
    assert outcome.accounted >= 9
