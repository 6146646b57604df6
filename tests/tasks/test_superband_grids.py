"""SuperBand's HDF5 file: small files in its layout, one for each of its known faults."""

from itertools import chain

import h5py
import numpy as np
import pytest

from tasks.exceptions import InputError
from tasks.stages import Rejection
from tasks.superband_grids import SuperBandGrid, read_superband, shared_grids

MESH = 8
E_F = 6.2  # eV, where a material's bands are written without subtracting it
A, C = 3.0, 6.0  # angstrom, a tetragonal cell


def tight_binding_bands(count, mesh=MESH):
    """(count, k1, k2, k3) bands of a tetragonal crystal, eV relative to E_F, by mean; uneven in width and distance."""
    k = 2 * np.pi * np.arange(mesh) / mesh
    k1, k2, k3 = np.meshgrid(k, k, k, indexing="ij")
    rng = np.random.default_rng(7)
    plane, upright, pair = rng.normal(size=(3, count, 1, 1, 1)) * np.array([0.5, 0.4, 0.4])[:, None, None, None, None]
    centres = np.cumsum(rng.choice([0.3, 0.6, 2.5], count))[:, None, None, None]
    centres -= centres[count // 2]
    shape = plane * (np.cos(k1) + np.cos(k2)) + upright * np.cos(k3) + pair * np.cos(k1) * np.cos(k2)
    return np.sort(centres + shape, axis=0)


def densities_of(bands):
    """(n, 5) E - E_F, s, p, d, f as VASP gives them: of all bands, the same states at other weights."""
    energies = np.arange(bands.min() - 2, bands.max() + 2, 0.05)
    total = np.histogram(bands, np.append(energies, energies[-1] + 0.05))[0] / bands[0].size / 0.05
    return np.stack([energies, 0.2 * total, 0.3 * total, 0.4 * total, 0.1 * total], axis=1)


def surface_of(bands, reciprocal):
    """Points at which bands cross 0 between neighbours along k1, Cartesian; how many for each band."""
    found = []
    for band in bands:
        following = np.roll(band, -1, axis=0)
        crossings = np.argwhere((band < 0) != (following < 0))
        points = crossings.astype(float)
        here, there = band[tuple(crossings.T)], following[tuple(crossings.T)]
        points[:, 0] += here / (here - there)
        if len(points):
            found.append(points / MESH)
    return np.concatenate(found) @ reciprocal, [len(points) for points in found]


def padded(bands):
    channels = np.zeros((18, *bands.shape[1:]))
    first = (18 - len(bands)) // 2
    channels[first : first + len(bands)] = bands
    return channels


def material(count=18, shift=0.0, **changes):
    """Attributes and datasets of one group; ``count`` bands of which E_F was subtracted unless ``shift`` is it."""
    bands = tight_binding_bands(count)
    parts = {
        "formula": "CuO2",
        "Tc": 12.5,
        "SG_num": 123,
        "SG_sys": "tetragonal",
        "volume": A * A * C,
        "atoms": ["Cu", "O", "O"],
        "cell": np.diag([A, A, C]),
        "position": np.array([[0, 0, 0], [A / 2, 0, 0], [0, A / 2, 0]]),
        "sc_bands": padded(bands + shift).transpose(0, 3, 2, 1),
        "sc_DOSs": densities_of(bands),
    }
    return {key: value for key, value in {**parts, **changes}.items() if value is not None}


def write_superband(path, materials):
    """A file with a group for each material."""
    with h5py.File(path, "w") as file:
        for name, parts in materials.items():
            group = file.create_group(name)
            for key, value in parts.items():
                if key in ("formula", "Tc", "SG_num", "SG_sys", "volume"):
                    group.attrs[key] = value
                else:
                    group.create_dataset(key, data=value)
    return path


@pytest.fixture
def write(tmp_path):
    def write_file(**materials):
        named = {name.removeprefix("_"): parts for name, parts in materials.items()}
        return write_superband(tmp_path / "0724.hdf5", named)

    return write_file


@pytest.fixture
def read(write):
    def read_one(parts, name="10001"):
        return next(read_superband(write(**{f"_{name}": parts}), mesh=MESH))[0]

    return read_one


def refused(result, words):
    assert isinstance(result, Rejection), result.notes
    assert result.item == "10001"
    assert words in result.reason, result.reason


def test_a_sound_material_comes_back_whole(read):
    grid = read(material())
    assert isinstance(grid, SuperBandGrid), grid
    np.testing.assert_allclose(grid.energies, tight_binding_bands(18), atol=1e-6)
    assert grid.energies.dtype == np.float32
    assert (grid.material_id, grid.formula, grid.tc_kelvin) == ("10001", "CuO2", 12.5)
    assert (grid.space_group, grid.crystal_system, grid.species) == (123, "tetragonal", ("Cu", "O", "O"))
    np.testing.assert_allclose(grid.coords, [[0, 0, 0], [0.5, 0, 0], [0, 0.5, 0]])
    np.testing.assert_array_equal(grid.lattice, np.diag([A, A, C]))
    np.testing.assert_array_equal([grid.dos_energies, grid.dos_s, grid.dos_p, grid.dos_d], material()["sc_DOSs"].T[:4])
    assert (grid.first_band, grid.real_bands) == (0, 18)
    assert grid.notes == ()


def test_streaming_in_batches_loses_none(write):
    path = write(_3=material(), _1=material(), _4=material(Tc="unknown"), _2=material(), _5=material())
    batches = list(read_superband(path, batch=2, mesh=MESH))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    names = [r.item if isinstance(r, Rejection) else r.material_id for r in chain(*batches)]
    assert names == ["1", "2", "3", "4", "5"]


def test_few_bands_lack_e_f_and_the_densities_tell_it(read):
    grid = read(material(7, E_F))
    np.testing.assert_allclose(grid.energies, padded(tight_binding_bands(7)), atol=0.1)
    assert (grid.energies[:5] == 0).all()
    assert (grid.energies[12:] == 0).all()
    assert (grid.first_band, grid.real_bands) == (5, 7)
    assert any("E_F had not been subtracted: 6." in note and "densities" in note for note in grid.notes)


def test_few_bands_with_e_f_subtracted_are_left(read):
    grid = read(material(7))
    np.testing.assert_allclose(grid.energies, padded(tight_binding_bands(7)), atol=1e-6)
    assert not any("had not been subtracted" in note for note in grid.notes)


def test_the_fermi_surface_tells_e_f_where_densities_are_missing(read):
    reciprocal = 2 * np.pi * np.diag([1 / A, 1 / A, 1 / C])
    points, lens = surface_of(tight_binding_bands(7), reciprocal)
    surface = {"fermi_line": points, "fermi_lens": lens, "recip_latt": reciprocal}
    grid = read(material(7, E_F, sc_DOSs=None, **surface))
    np.testing.assert_allclose(grid.energies, padded(tight_binding_bands(7)), atol=0.05)
    assert any("Fermi surface" in note for note in grid.notes)
    assert grid.dos_energies is None
    refused(read(material(7, E_F, sc_DOSs=None, **{**surface, "fermi_lens": [3]})), "fermi_lens counts other than")


def test_witnesses_that_contradict_each_other_refuse_the_material(read):
    reciprocal = 2 * np.pi * np.diag([1 / A, 1 / A, 1 / C])
    points, _ = surface_of(tight_binding_bands(7), reciprocal)
    densities = densities_of(tight_binding_bands(7)) + np.array([2, 0, 0, 0, 0])
    refused(read(material(7, E_F, sc_DOSs=densities, fermi_line=points, recip_latt=reciprocal)), "E_F cannot be told")


def test_few_bands_and_no_witness_are_refused(read):
    refused(read(material(7, E_F, sc_DOSs=None)), "neither the densities nor the Fermi surface tell E_F")


def test_flat_densities_are_no_witness(read):
    densities = densities_of(tight_binding_bands(7))
    densities[:, 1:] = 1.0
    refused(read(material(7, E_F, sc_DOSs=densities)), "neither the densities nor the Fermi surface tell E_F")


def test_exactly_18_bands_without_padding_are_found_out_by_the_densities(read):
    grid = read(material(18, E_F))
    np.testing.assert_allclose(grid.energies, tight_binding_bands(18), atol=0.1)
    assert any("E_F had not been subtracted" in note for note in grid.notes)


def test_a_full_grid_is_not_moved_by_the_surface_alone_nor_against_it(read):
    bands, reciprocal = tight_binding_bands(18), 2 * np.pi * np.diag([1 / A, 1 / A, 1 / C])
    elsewhere, here = (surface_of(bands - level, reciprocal)[0] for level in (3.0, 0.0))
    grid = read(material(sc_DOSs=None, fermi_line=elsewhere, recip_latt=reciprocal))
    np.testing.assert_allclose(grid.energies, bands, atol=1e-6)
    assert "E_F counts as subtracted: the densities do not tell" in grid.notes
    moved = densities_of(bands) - np.array([3.0, 0, 0, 0, 0])
    assert any("had not been subtracted: 3." in note for note in read(material(sc_DOSs=moved)).notes)
    grid = read(material(sc_DOSs=moved, fermi_line=here, recip_latt=reciprocal))
    np.testing.assert_allclose(grid.energies, bands, atol=1e-6)


def test_constant_channels_hold_no_band(read):
    stored = material(7, E_F)["sc_bands"]
    stored[:5] = -1.25
    grid = read(material(7, E_F, sc_bands=stored))
    assert (grid.energies[:5] == 0).all()
    assert grid.real_bands == 7
    refused(read(material(sc_bands=np.ones((18, 8, 8, 8)))), "none of the channels of sc_bands holds a band")


def test_e_f_outside_all_bands(read):
    refused(read(material(18, 30.0, sc_DOSs=None)), "E_F is outside all bands")


def test_unsorted_bands_are_sorted(read):
    grid = read(material(sc_bands=material()["sc_bands"][::-1]))
    np.testing.assert_allclose(grid.energies, tight_binding_bands(18), atol=1e-6)
    assert "bands were not sorted by mean and have been sorted" in grid.notes


def test_axes_that_symmetry_says_were_not_turned_are_left(read):
    grid = read(material(sc_bands=tight_binding_bands(18)))
    np.testing.assert_allclose(grid.energies, tight_binding_bands(18), atol=1e-6)
    assert any("axes were (k1, k2, k3) already" in note for note in grid.notes)


def test_spins_without_magnetism_are_told(read):
    twice = np.repeat(tight_binding_bands(9), 2, axis=0)
    grid = read(material(sc_bands=twice.transpose(0, 3, 2, 1), sc_DOSs=densities_of(tight_binding_bands(9))))
    assert any("equal pairs" in note for note in grid.notes)


def test_energies_that_are_not_periodic_are_measured(read):
    stored = material()["sc_bands"]
    slope = np.zeros(MESH)
    slope[-2:] = 3.0  # two planes, so that the steps beside the boundary stay as they are
    broken = stored + slope[None, None, None, :]  # the last axis of the file is k1
    grid = read(material(sc_bands=broken))
    noted = [note for note in grid.notes if "not periodic" in note]
    assert len(noted) == 1
    assert "along k1" in noted[0]
    assert f"{grid.boundary_jump_ev:.3f} eV" in noted[0]
    assert 2.5 < grid.boundary_jump_ev < 3.5
    assert read(material()).boundary_jump_ev < 1


def test_a_doped_formula_on_its_parents_bands_is_told(read):
    grid = read(material(formula="Cu0.9Zn0.1O2"))
    assert any("stands on the bands of CuO2, difference 0.067" in note for note in grid.notes)


def test_groups_keyed_by_reduced_formula_are_told(read):
    assert any("polymorphs were merged" in note for note in read(material(), name="CuO2").notes)


def test_space_group_number_counts(read):
    grid = read(material(SG_sys="cubic"))
    assert grid.crystal_system == "tetragonal"
    assert any("written as cubic, but space group 123 is tetragonal" in note for note in grid.notes)


def test_densities_on_their_side_are_turned(read):
    grid = read(material(sc_DOSs=material()["sc_DOSs"].T))
    np.testing.assert_array_equal(grid.dos_energies, material()["sc_DOSs"][:, 0])


def test_text_is_read_as_bytes_or_with_blanks(read):
    assert read(material(Tc="2.64 ", formula=np.bytes_("CuO2"))).tc_kelvin == 2.64


HOLED = material()["sc_bands"]
HOLED[3, 1, 2, 3] = np.nan


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sc_bands": np.zeros((17, 8, 8, 8))}, "sc_bands has the shape (17, 8, 8, 8), not (18, 8, 8, 8)"),
        ({"sc_bands": HOLED}, "1 numbers of sc_bands are not finite"),
        ({"sc_bands": None}, "no sc_bands"),
        ({"Tc": None}, "no Tc"),
        ({"Tc": -1.0}, "Tc = '-1.0' is not a temperature"),
        ({"Tc": "nan"}, "Tc = 'nan' is not a temperature"),
        ({"formula": "Qq2"}, "not a readable formula"),
        ({"formula": "MgB2"}, "no element in common"),
        ({"atoms": ["Cu", "O"]}, "2 atoms, positions of the shape (3, 3)"),
        ({"atoms": ["Cu", "O", "Qq"]}, "Qq are no elements"),
        ({"cell": np.zeros((3, 3))}, "the cell spans 0.000"),
        ({"volume": 70.0}, "the volume is given as 70"),
        ({"SG_num": 231}, "SG_num = 231"),
        ({"sc_DOSs": np.zeros((20, 3))}, "sc_DOSs has the shape (20, 3)"),
        ({"sc_DOSs": np.zeros((20, 4))}, "do not ascend"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_what_is_refused(read, changes, words):
    refused(read(material(**changes)), words)


def test_one_crystal_for_many_formulas(write):
    other = material(sc_bands=material()["sc_bands"] * 1.01)
    path = write(
        _1=material(Tc=3.0),
        _2=material(Tc=113.0, formula="Cu0.9Zn0.1O2"),
        _3=other,
        _4=material(Tc="?"),
        _5=material(sc_bands=None),
    )
    (shared,) = shared_grids(path)
    assert shared.material_ids == ("1", "2", "4")
    assert shared.formulas == ("CuO2", "Cu0.9Zn0.1O2", "CuO2")
    assert (shared.tc_lowest, shared.tc_highest) == (3.0, 113.0)


@pytest.mark.parametrize("reader", [read_superband, shared_grids])
def test_files_that_cannot_be_read(reader, write, tmp_path):
    with pytest.raises(InputError, match="no such file"):
        reader(tmp_path / "none.hdf5")
    (tmp_path / "text.hdf5").write_text("not HDF5")
    with pytest.raises(InputError, match="not an HDF5 file"):
        reader(tmp_path / "text.hdf5")
    whole = write(_1=material()).read_bytes()
    (tmp_path / "short.hdf5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cut short"):
        reader(tmp_path / "short.hdf5")
    with pytest.raises(InputError, match="holds no materials"):
        reader(write())


def test_batch_is_checked_before_the_file_is_read(tmp_path):
    with pytest.raises(InputError, match="batch=0 must be at least 1"):
        read_superband(tmp_path / "none.hdf5", batch=0)
