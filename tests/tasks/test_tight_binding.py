"""Tight-binding models: Wannier90's files, meshes, filling, closed-form energies, and what is refused."""

import gzip
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.exceptions import InputError
from tasks.tight_binding import BATCH, TightBinding, from_pythtb, read_wannier90_hr, write_wannier90_hr
from tasks.tight_binding_models import CUPRATE_RANGES, honeycomb, one_band_cuprate, three_band_cuprate
from tests.tasks.lattice_models import CONSTANT, FCC, mesh_points, nearest_vectors, tight_binding

GAMMA, X, M, K = (0, 0, 0), (0.5, 0, 0), (0.5, 0.5, 0), (1 / 3, 2 / 3, 0)

# Two orbitals on a chain along the first axis, laid out as Wannier90 3.1 does: six decimals, m fastest.
CHAIN = """ written on 21Nov2026 at 07:00:00
           2
           3
    2    1    2
   -1    0    0    1    1    0.000000    0.000000
   -1    0    0    2    1    0.400000    0.100000
   -1    0    0    1    2    0.000000    0.000000
   -1    0    0    2    2   -0.500000    0.000000
    0    0    0    1    1    1.000000    0.000000
    0    0    0    2    1   -0.300000   -0.200000
    0    0    0    1    2   -0.300000    0.200000
    0    0    0    2    2   -1.000000    0.000000
    1    0    0    1    1    0.000000    0.000000
    1    0    0    2    1    0.000000    0.000000
    1    0    0    1    2    0.400000   -0.100000
    1    0    0    2    2   -0.500000    0.000000
"""
WIN = """num_wann = 2   ! two orbitals
Begin Unit_Cell_Cart
bohr
 7.0 0.0 0.0
 0.0 8.0 0.0   # b

 0.0 0.0 9.0d0
End Unit_Cell_Cart
fermi_energy : 1.25
spinors = .true.
"""


def chain_energies(k):
    """Closed form of CHAIN, (2, n_k) eV."""
    wave = np.exp(2j * np.pi * np.asarray(k))
    first, second = np.ones(len(wave)), -1 - 0.5 * wave.real
    hop = -0.3 + 0.2j + (0.4 - 0.1j) / 2 * wave
    root = np.sqrt((first - second) ** 2 / 4 + np.abs(hop) ** 2)
    return np.stack([(first + second) / 2 - root, (first + second) / 2 + root])


def random_model(seed, bands, reach, count, **changes):
    """A Hermitian model of random hoppings over up to ``count`` pairs of vectors within ``reach`` cells."""
    rng = np.random.default_rng(seed)
    chosen = {tuple(v) for v in rng.integers(-reach, reach + 1, (count, 3)).tolist()} | {(0, 0, 0)}
    blocks, degeneracies = {}, {}
    for vector in sorted(chosen):
        minus = tuple(-i for i in vector)
        if minus in blocks:
            continue
        block = rng.normal(size=(bands, bands)) + 1j * rng.normal(size=(bands, bands))
        blocks[vector], blocks[minus] = block, block.conj().T
        degeneracies[vector] = degeneracies[minus] = rng.integers(1, 5)
    blocks[0, 0, 0] = (blocks[0, 0, 0] + blocks[0, 0, 0].conj().T) / 2
    vectors = np.array(list(blocks))
    return TightBinding(
        vectors, np.stack(list(blocks.values())), np.array([degeneracies[v] for v in blocks]), **changes
    )


@pytest.fixture
def chain_file(tmp_path):
    file = tmp_path / "chain_hr.dat"
    file.write_text(CHAIN)
    return file


def at(model, *points):
    """(n_points, n_bands) eV."""
    return model.energies(points).T


class TestEnergies:
    def test_a_file_gives_its_closed_form(self, chain_file):
        model = read_wannier90_hr(chain_file)
        k = np.linspace(-1, 1, 23)
        points = np.column_stack([k, np.full(23, 0.3), np.full(23, 0.7)])
        np.testing.assert_allclose(model.energies(points), chain_energies(k), atol=1e-12)
        mesh = model.on_mesh((7, 2, 3))
        assert mesh.shape == (2, 7, 2, 3)
        np.testing.assert_allclose(mesh[:, :, 1, 2], chain_energies(np.arange(7) / 7), atol=1e-12)

    @settings(max_examples=40, deadline=None)
    @given(
        seed=st.integers(0, 2**32),
        bands=st.integers(1, 4),
        reach=st.integers(0, 6),
        count=st.integers(1, 12),
        mesh=st.tuples(*[st.integers(1, 6)] * 3),
    )
    def test_a_mesh_is_the_energies_of_its_points(self, seed, bands, reach, count, mesh):
        model = random_model(seed, bands, reach, count)
        expected = model.energies(mesh_points(mesh).reshape(-1, 3)).reshape(bands, *mesh)
        np.testing.assert_allclose(model.on_mesh(mesh), expected, atol=1e-10)

    @settings(max_examples=40, deadline=None)
    @given(
        seed=st.integers(0, 2**32),
        point=st.tuples(*[st.floats(-1, 1)] * 3),
        shift=st.tuples(*[st.integers(-3, 3)] * 3),
    )
    def test_energies_are_periodic_and_ascending(self, seed, point, shift):
        model = random_model(seed, 3, 3, 6)
        here, there = at(model, point, np.add(point, shift))
        np.testing.assert_allclose(here, there, atol=1e-10)
        assert (np.diff(here) >= 0).all()

    def test_one_orbital_is_a_sum_of_cosines(self):
        vectors = np.vstack([np.zeros((1, 3), dtype=int), nearest_vectors(FCC)])
        hops = np.array([0.25] + [-0.5] * 12).reshape(-1, 1, 1).astype(complex)
        model = TightBinding(vectors, hops, np.ones(13, dtype=int), FCC)
        points = mesh_points((8, 8, 8))
        np.testing.assert_allclose(model.on_mesh(8)[0], tight_binding(FCC, points, 0.25, 0.5), atol=1e-12)

    def test_degeneracies_divide(self):
        model = random_model(5, 3, 2, 8)
        ones = np.ones_like(model.degeneracies)
        same = TightBinding(model.vectors, model.hamiltonians / model.degeneracies[:, None, None], ones)
        np.testing.assert_allclose(model.on_mesh(4), same.on_mesh(4), atol=1e-12)
        assert (model.degeneracies > 1).any()

    def test_batches_join(self, monkeypatch):
        model, points = random_model(1, 2, 2, 5), mesh_points((5, 5, 5)).reshape(-1, 3)
        whole = model.energies(points)
        assert len(points) * 4 < BATCH
        monkeypatch.setattr("tasks.tight_binding.BATCH", 100)
        np.testing.assert_allclose(model.energies(points), whole, atol=1e-12)

    @pytest.mark.parametrize("points", [[0.1, 0.2, 0.3], [[0.1, 0.2]], [[0, 0, np.nan]]], ids=["flat", "two", "nan"])
    def test_bad_points_are_refused(self, points):
        with pytest.raises(InputError, match="not rows of three finite numbers"):
            honeycomb().energies(points)

    @pytest.mark.parametrize("mesh", [0, (4, 4), (4, -1, 4), (4, 4, 2.5)], ids=str)
    def test_bad_meshes_are_refused(self, mesh):
        with pytest.raises(InputError, match="not one positive integer or three"):
            honeycomb().on_mesh(mesh)


class TestFiles:
    @settings(max_examples=25, deadline=None)
    @given(seed=st.integers(0, 2**32), bands=st.integers(1, 3), count=st.integers(1, 20), packed=st.booleans())
    def test_written_and_read_again(self, tmp_path_factory, seed, bands, count, packed):
        model = random_model(seed, bands, 4, count)
        file = tmp_path_factory.mktemp("hr") / ("model_hr.dat.gz" if packed else "model_hr.dat")
        read = read_wannier90_hr(write_wannier90_hr(model, file), spin_degeneracy=1)
        for name in ("vectors", "hamiltonians", "degeneracies"):
            np.testing.assert_array_equal(getattr(read, name), getattr(model, name))
        assert (read.lattice, read.efermi, read.spin_degeneracy) == (None, None, 1)

    def test_the_layout_is_wannier90s(self, tmp_path):
        model = random_model(3, 2, 2, 40)
        lines = write_wannier90_hr(model, tmp_path / "a_hr.dat", comment="one\nline").read_text().splitlines()
        rows = -(-len(model.vectors) // 15)
        assert lines[0] == "one line"
        assert [int(line) for line in lines[1:3]] == [2, len(model.vectors)]
        assert [len(line.split()) for line in lines[3 : 3 + rows - 1]] == [15] * (rows - 1)
        assert [line.split()[3:5] for line in lines[3 + rows :][:4]] == [["1", "1"], ["2", "1"], ["1", "2"], ["2", "2"]]
        assert len(lines) == 3 + rows + 4 * len(model.vectors)

    def test_gzip_is_seen_by_content(self, chain_file):
        chain_file.write_bytes(gzip.compress(CHAIN.encode()))
        assert read_wannier90_hr(chain_file).bands == 2

    def test_an_index_order_of_its_own_is_fine(self, chain_file):
        lines = CHAIN.splitlines()
        lines[4], lines[7] = lines[7], lines[4]
        chain_file.write_text("\n".join(lines))
        np.testing.assert_allclose(read_wannier90_hr(chain_file).energies([[0.1, 0, 0]]).T, chain_energies([0.1]).T)

    def test_the_input_file_beside_it_is_read(self, chain_file):
        chain_file.with_name("chain.win").write_text(WIN)
        model = read_wannier90_hr(chain_file)
        np.testing.assert_allclose(model.lattice, np.diag([7, 8, 9]) * 0.529177210903)
        assert (model.efermi, model.spin_degeneracy) == (1.25, 1)
        given = read_wannier90_hr(chain_file, lattice=np.eye(3) * CONSTANT, efermi=0.5, spin_degeneracy=2)
        np.testing.assert_array_equal(given.lattice, np.eye(3) * CONSTANT)
        assert (given.efermi, given.spin_degeneracy) == (0.5, 2)

    @pytest.mark.parametrize("unit", ["Ang\n", ""], ids=["named", "default"])
    def test_angstrom_is_the_default_and_gz_has_the_same_seed_name(self, tmp_path, unit):
        (tmp_path / "chain.win").write_text(WIN.replace("bohr\n", unit).replace(".true.", "F"))
        file = tmp_path / "chain_hr.dat.gz"
        file.write_bytes(gzip.compress(CHAIN.encode()))
        model = read_wannier90_hr(file)
        np.testing.assert_array_equal(model.lattice, np.diag([7, 8, 9]))
        assert model.spin_degeneracy == 2

    @pytest.mark.parametrize(
        ("old", "new", "sentence"),
        [
            ("8.0 0.0   # b", "8.0", r"chain.win, line 5: '0.0 8.0' is not a lattice vector of three numbers"),
            ("9.0d0", "nine", r"chain.win, line 7: 'nine' is not a number"),
            (" 0.0 0.0 9.0d0\nEnd Unit_Cell_Cart\n", "End Unit_Cell_Cart\n", r"line 7: 'end unit_cell_cart' is not a"),
            (WIN[WIN.index(" 0.0 8.0") :], "", r"line 2: unit_cell_cart has 1 lattice vectors, not 3"),
            ("9.0d0", "0.0", "span no volume"),
            ("1.25", "nan", "efermi is nan"),
        ],
        ids=["two", "word", "end", "short", "flat", "fermi"],
    )
    def test_a_bad_input_file_is_refused(self, chain_file, old, new, sentence):
        assert old in WIN
        chain_file.with_name("chain.win").write_text(WIN.replace(old, new))
        with pytest.raises(InputError, match=sentence):
            read_wannier90_hr(chain_file)

    @pytest.mark.parametrize(
        ("old", "new", "sentence"),
        [
            (CHAIN, "", r"line 2: '' is not num_wann, one positive integer"),
            ("           2\n", "         two\n", r"line 2: 'two' is not num_wann"),
            ("           3\n", "           0\n", r"line 3: '0' is not nrpts"),
            ("           3\n", "           3 4\n", r"line 3: '3 4' is not nrpts"),
            ("    2    1    2\n", "    2    1    x\n", r"line 4: x is not a degeneracy"),
            ("    2    1    2\n", "    2    0    2\n", r"line 4: 0 is not a degeneracy"),
            ("    2    1    2\n", "\n", r"line 4: an empty line is not a degeneracy"),
            ("    2    1    2\n", "    2    1    2    1\n", r"line 4: 4 degeneracies, but nrpts is 3"),
            (CHAIN[CHAIN.index("    2    1    2") :], "    2\n", r"line 4: the file ends after 1 of 3 degeneracies"),
            (CHAIN[CHAIN.index("    1    0    0    2") :], "", r"line 13: the file ends after 9 of 12 elements"),
            (CHAIN[CHAIN.index("   -1") :], "", r"line 4: the file ends after 0 of 12 elements"),
            ("-0.500000    0.000000\n    0", "-0.5000\n    0", r"line 8: 6 numbers, not 7 \(R1 R2 R3 m n Re Im\)"),
            ("0.400000   -0.100000", "0.400000 **********", r"line 15: '\*\*\*\*\*\*\*\*\*\*' is not a finite number"),
            ("0.400000   -0.100000", "NaN   -0.100000", r"line 15: 'NaN' is not a finite number"),
            ("   -1    0    0    2    2", "\n   -1    0    0    2    2", r"line 17: more than the 12 elements"),
            ("    0    0    0    2    1", "    0    0  0.5    2    1", r"line 10: R1 R2 R3 m n must be integers"),
            ("    0    0    0    2    1", "    0    0 1e99    2    1", r"line 10: R1 R2 R3 m n must be integers"),
            (
                "    0    0    0    2    1",
                "    0    0    0    3    1",
                r"line 10: m = 3, n = 1 are not both between 1 and 2",
            ),
            (
                "    0    0    0    2    1",
                "    0    0    0    2    0",
                r"line 10: m = 2, n = 0 are not both between 1 and 2",
            ),
            ("    0    0    0    2    1", "    0    0    5    2    1", r"line 10: R = \[0, 0, 5\] stands within the 4"),
            (
                "    0    0    0    2    1",
                "    0    0    0    1    2",
                r"line 10: this element of H\(R\) is given twice",
            ),
            ("    1    0    0", "   -1    0    0", r"line 13: R = \[-1, 0, 0\] is given twice"),
            ("    1    0    0", "    2    0    0", r"line 8: .* worst at R = \[-1, 0, 0\].* by 0.25 eV"),
            (
                "-0.300000    0.200000",
                "-0.300000    0.190000",
                r"line 11: H is not Hermitian, .* \[0, 0, 0\].* by 0.01 eV",
            ),
            ("    2    1    2\n", "    2    1    1\n", r"line 8: H is not Hermitian, .*; at most 1e-05 eV is allowed"),
        ],
    )
    def test_bad_files_are_refused_with_their_line(self, chain_file, old, new, sentence):
        assert old in CHAIN
        chain_file.write_text(CHAIN.replace(old, new))
        with pytest.raises(InputError, match=sentence):
            read_wannier90_hr(chain_file)

    def test_a_blank_line_in_the_middle_is_named(self, chain_file):
        lines = CHAIN.splitlines()
        chain_file.write_text("\n".join([*lines[:8], "", *lines[9:]]))
        with pytest.raises(InputError, match="line 9: 0 numbers, not 7"):
            read_wannier90_hr(chain_file)

    def test_rounding_of_the_file_passes(self, chain_file):
        chain_file.write_text(CHAIN.replace("-0.300000    0.200000", "-0.300001    0.200000"))
        assert read_wannier90_hr(chain_file).bands == 2

    def test_missing_cut_and_unwritable_files_are_refused(self, tmp_path):
        with pytest.raises(InputError, match=r"none_hr\.dat does not exist"):
            read_wannier90_hr(tmp_path / "none_hr.dat")
        cut = tmp_path / "cut_hr.dat.gz"
        cut.write_bytes(gzip.compress(CHAIN.encode())[:60])
        with pytest.raises(InputError, match="is it cut short"):
            read_wannier90_hr(cut)
        with pytest.raises(InputError, match="cannot be read"):
            read_wannier90_hr(tmp_path)
        (tmp_path / "file").write_text("")
        with pytest.raises(InputError, match="Cannot write"):
            write_wannier90_hr(honeycomb(), tmp_path / "file" / "a_hr.dat")

    @settings(max_examples=60, deadline=None)
    @given(cut=st.integers(0, len(CHAIN)), text=st.text("0123456789.-+eE nN*\n\t\x00é_", max_size=6))
    def test_no_damage_gives_anything_but_a_model_or_a_sentence(self, tmp_path_factory, cut, text):
        file = tmp_path_factory.getbasetemp() / "damaged_hr.dat"
        file.write_text(CHAIN[:cut] + text + CHAIN[cut:])
        try:
            assert np.isfinite(read_wannier90_hr(file).energies([[0.1, 0.2, 0.3]])).all()
        except InputError as error:
            assert str(file) in str(error)  # noqa: PT017


class TestModel:
    @pytest.mark.parametrize(
        ("changes", "sentence"),
        [
            ({"vectors": np.zeros((3, 2), dtype=int)}, r"vectors has the shape \(3, 2\)"),
            ({"hamiltonians": np.zeros((3, 2, 1), dtype=complex)}, r"hamiltonians has the shape \(3, 2, 1\)"),
            ({"hamiltonians": np.zeros((0, 1, 1), dtype=complex)}, r"has the shape"),
            ({"hamiltonians": np.full((3, 1, 1), np.inf, dtype=complex)}, "3 numbers of hamiltonians are not finite"),
            ({"vectors": np.zeros((3, 3))}, "vectors must be integers, not float64"),
            ({"vectors": np.zeros((3, 3), dtype=int)}, r"R = \[0, 0, 0\] is listed twice"),
            ({"degeneracies": np.array([1, 0, 1])}, "a degeneracy is 0, not 1 or more"),
            ({"lattice": np.zeros((3, 3))}, "span no volume"),
            ({"lattice": np.eye(2)}, r"lattice has the shape \(2, 2\)"),
            ({"spin_degeneracy": 3}, "holds 1 or 2 electrons, not 3"),
            ({"efermi": np.inf}, "efermi is inf"),
            (
                {"hamiltonians": np.array([0, 1, 2], dtype=complex).reshape(3, 1, 1)},
                r"worst at R = \[1, 0, 0\].*by 1 eV",
            ),
        ],
    )
    def test_bad_models_are_refused(self, changes, sentence):
        good = {
            "vectors": np.array([[0, 0, 0], [1, 0, 0], [-1, 0, 0]]),
            "hamiltonians": np.ones((3, 1, 1), dtype=complex),
            "degeneracies": np.ones(3, dtype=int),
        }
        TightBinding(**good)
        with pytest.raises(InputError, match=sentence):
            TightBinding(**{**good, **changes})

    def test_half_filling_of_a_symmetric_band_is_its_middle(self):
        model = one_band_cuprate(t_prime=0)
        assert model.fermi_level(1, 16) == pytest.approx(0, abs=1e-12)
        assert model.fermi_level(2 / 256, 16) == pytest.approx((-4 * 0.43 + model.on_mesh(16).ravel()[1 * 256]) / 2)

    def test_an_insulator_has_its_level_in_the_middle_of_the_gap(self, chain_file):
        model = read_wannier90_hr(chain_file)
        lower, upper = model.on_mesh(8)
        assert lower.max() < upper.min()
        assert model.fermi_level(2, 8) == pytest.approx((lower.max() + upper.min()) / 2)
        spinful = read_wannier90_hr(chain_file, spin_degeneracy=1)
        assert spinful.fermi_level(1, 8) == model.fermi_level(2, 8)

    @given(electrons=st.floats(0.02, 3.98))
    @settings(max_examples=30, deadline=None)
    def test_states_below_the_level_hold_the_electrons(self, electrons):
        model = random_model(7, 2, 2, 6)
        states = model.on_mesh(6)
        level = model.fermi_level(electrons, 6)
        assert 2 * (states < level).sum() / 216 <= electrons + 1e-9
        assert 2 * (states <= level).sum() / 216 >= electrons - 1e-5

    @pytest.mark.parametrize("electrons", [0, -1, 6, 7, np.nan], ids=str)
    def test_empty_and_full_bands_have_no_level(self, electrons):
        with pytest.raises(InputError, match="do not partly fill 3 bands; more than 0 and fewer than 6 do"):
            three_band_cuprate().fermi_level(electrons, 4)

    def test_a_sample_holds_the_bands_nearest_to_the_level(self):
        model = random_model(11, 4, 2, 6, efermi=0.2)
        energies = model.on_mesh(4) - 0.2
        means = energies.mean(axis=(1, 2, 3))
        chosen = model.nearest_bands(2, 4)
        np.testing.assert_array_equal(chosen, energies[np.sort(np.argsort(np.abs(means))[:2])])
        assert model.nearest_bands(18, 4).shape == (4, 4, 4, 4)

    def test_a_sample_needs_a_level(self):
        with pytest.raises(InputError, match="no Fermi level"):
            honeycomb().nearest_bands(18, 4)


class TestWorkedModels:
    @pytest.mark.parametrize("material", CUPRATE_RANGES)
    def test_one_band_is_its_formula(self, material):
        t, ratio = 0.43, CUPRATE_RANGES[material]
        points = mesh_points((9, 8, 2))
        x, y = 2 * np.pi * points[..., 0], 2 * np.pi * points[..., 1]
        expected = -2 * t * (np.cos(x) + np.cos(y)) + 4 * ratio * t * np.cos(x) * np.cos(y)
        expected -= ratio * t * (np.cos(2 * x) + np.cos(2 * y))
        np.testing.assert_allclose(one_band_cuprate(material=material).on_mesh((9, 8, 2))[0], expected, atol=1e-12)

    def test_an_unknown_material_is_refused(self):
        with pytest.raises(InputError, match="material='Nb' is not one of La2CuO4, Tl2Ba2CuO6"):
            one_band_cuprate(material="Nb")

    def test_three_bands_at_the_points_of_symmetry(self):
        gap, pd, pp = 3.6, 1.3, 0.65
        gamma, x, m = at(three_band_cuprate(gap, pd, pp), GAMMA, X, M)
        np.testing.assert_allclose(gamma, [-gap, -gap, 0], atol=1e-12)  # nothing couples at Γ
        root = np.sqrt(gap**2 / 4 + 4 * pd**2)  # at X d couples to one p by 2 t_pd
        np.testing.assert_allclose(x, np.sort([-gap / 2 - root, -gap, -gap / 2 + root]), atol=1e-12)
        raised = -gap + 4 * pp  # at M to (p_x - p_y) / sqrt(2) by 2 sqrt(2) t_pd; the other p has no partner
        root = np.sqrt(raised**2 / 4 + 8 * pd**2)
        np.testing.assert_allclose(m, np.sort([raised / 2 - root, -gap - 4 * pp, raised / 2 + root]), atol=1e-12)

    def test_three_bands_along_the_diagonal(self):
        """At k_x = k_y the antibonding band is that of a two by two matrix; t_pp enters by 4 t_pp sin^2."""
        for k in (0.1, 0.2, 0.37):
            s = np.sin(np.pi * k)
            raised = -3.6 + 4 * 0.65 * s**2
            expected = raised / 2 + np.sqrt(raised**2 / 4 + 8 * 1.3**2 * s**2)
            assert at(three_band_cuprate(), (k, k, 0))[0, 2] == pytest.approx(expected)

    def test_both_cuprate_models_have_the_fermi_surface_around_m(self):
        """Undoped, the saddle of the antibonding band at X is filled and its top at M is empty."""
        for model, electrons in ((one_band_cuprate(material="Tl2Ba2CuO6"), 1), (three_band_cuprate(), 5)):
            level = model.fermi_level(electrons)
            gamma, x, m = at(model, GAMMA, X, M)[:, -1]
            assert gamma < x < level < m

    def test_honeycomb_is_its_formula_with_zeros_at_k(self):
        points = mesh_points((6, 9, 2))
        wave = np.abs(1 + np.exp(-2j * np.pi * points[..., 0]) + np.exp(-2j * np.pi * points[..., 1]))
        np.testing.assert_allclose(honeycomb().on_mesh((6, 9, 2)), 2.7 * np.stack([-wave, wave]), atol=1e-12)
        np.testing.assert_allclose(at(honeycomb(), K, (2 / 3, 1 / 3, 0)), 0, atol=1e-12)
        np.testing.assert_allclose(at(honeycomb(), GAMMA, M), [[-8.1, 8.1], [-2.7, 2.7]], atol=1e-12)
        assert honeycomb().fermi_level(2) == pytest.approx(0, abs=1e-12)

    def test_honeycomb_neighbours_are_as_far_as_in_graphene(self):
        model = honeycomb()
        centres = np.array([[0, 0, 0], [1 / 3, 1 / 3, 0]])
        for vector, block in zip(model.vectors, model.hamiltonians, strict=True):
            if block[0, 1]:
                assert np.linalg.norm((vector + centres[1]) @ model.lattice) == pytest.approx(1.42, abs=1e-3)

    @pytest.mark.parametrize("make", [one_band_cuprate, three_band_cuprate, honeycomb])
    def test_layers_do_not_depend_on_k_z(self, make):
        assert np.ptp(make().on_mesh((3, 4, 5)), axis=3).max() == 0
        assert np.ptp(make().energies([(0.1, 0.2, z) for z in (0, 0.3, 0.5)]), axis=1).max() < 1e-12


def test_the_worked_example_of_the_page_prints_what_it_says(capsys):
    page = (Path(__file__).parents[2] / "docs" / "grids.md").read_text().split("## Tight-binding models")[1]
    code, after = page.split("```python\n")[1].split("```\n", 1)
    exec(code, {})
    assert f"prints `{capsys.readouterr().out.strip()}`." in after


class TestPythtb:
    """Runs where the user's PythTB is installed; the project does not depend on it."""

    @pytest.fixture
    def pythtb(self):
        return pytest.importorskip("pythtb")

    def test_a_model_is_taken_over(self, pythtb):
        model = pythtb.tb_model(2, 2, [[2.0, 0.0], [1.0, 1.7]], [[0, 0], [1 / 3, 0.2]])
        model.set_onsite([0.3, -0.4])
        for hop in ((0.5 - 0.1j, 0, 1, [0, 0]), (0.2j, 0, 0, [1, 0]), (-0.3, 0, 1, [2, -3])):
            model.set_hop(*hop)
        ours = from_pythtb(model, efermi=0.1)
        points = np.random.default_rng(0).random((20, 3))
        np.testing.assert_allclose(ours.energies(points), model.solve_all(points[:, :2]), atol=1e-10)
        np.testing.assert_allclose(ours.lattice, [[2, 0, 0], [1, 1.7, 0], [0, 0, 10]])
        assert (len(ours.vectors), ours.efermi, ours.spin_degeneracy) == (5, 0.1, 2)

    def test_three_dimensions_with_spin(self, pythtb):
        model = pythtb.tb_model(3, 3, np.eye(3) * 3, [[0, 0, 0], [0.5, 0.25, 0]], nspin=2)
        model.set_onsite([[0.1, 0.2, 0.3, 0.4], 0.5])
        model.set_hop([[0.1, 0.2j], [0.3, 0.4]], 0, 1, [0, 1, -1])
        ours = from_pythtb(model)
        points = np.random.default_rng(1).random((10, 3))
        np.testing.assert_allclose(ours.energies(points), model.solve_all(points), atol=1e-10)
        assert ours.spin_degeneracy == 1

    def test_ribbons_are_refused(self, pythtb):
        with pytest.raises(InputError, match="not a PythTB model periodic in all"):
            from_pythtb(pythtb.tb_model(1, 2, np.eye(2), [[0, 0]]))

    def test_wannier90_files_are_read_alike(self, pythtb, tmp_path):
        write_wannier90_hr(model := random_model(2, 2, 2, 6), tmp_path / "a_hr.dat")
        (tmp_path / "a.win").write_text("begin unit_cell_cart\n4 0 0\n0 4 0\n0 0 4\nend unit_cell_cart\n")
        (tmp_path / "a_centres.xyz").write_text("2\n\nX 0 0 0\nX 0 0 0\n")
        theirs = pythtb.w90(str(tmp_path), "a").model(ignorable_imaginary_part=None)
        points = np.random.default_rng(2).random((10, 3))
        np.testing.assert_allclose(model.energies(points), theirs.solve_all(points), atol=1e-10)


@pytest.mark.parametrize("other", [None, 3, honeycomb()], ids=["none", "number", "own"])
def test_other_objects_are_not_pythtb_models(other):
    with pytest.raises(InputError, match="is not a PythTB model"):
        from_pythtb(other)


class PythtbHoneycomb:
    """Getters and conventions of PythTB, which need not be installed: phases hold the places of the orbitals."""

    orbitals = np.array([[0.0, 0.0], [1 / 3, 1 / 3]])

    def get_lat(self):
        return honeycomb().lattice[:2, :2]

    def get_orb(self):
        return self.orbitals

    def k_uniform_mesh(self, mesh):
        return np.array(list(product(*map(range, mesh)))) / np.array(mesh)

    def solve_all(self, points, eig_vectors=False):
        neighbours = 1 / 3 - np.array([[0, 0], [1, 0], [0, 1]])
        wave = np.exp(2j * np.pi * np.asarray(points) @ neighbours.T).sum(axis=1, keepdims=True)
        zeros = np.zeros_like(wave)
        blocks = -2.7 * np.stack([np.hstack([zeros, wave]), np.hstack([wave.conj(), zeros])], axis=1)
        energies, states = np.linalg.eigh(blocks)
        return (energies.T, states.transpose(2, 0, 1)) if eig_vectors else energies.T


def test_a_model_in_the_style_of_pythtb_is_taken_over_from_its_states():
    ours = from_pythtb(PythtbHoneycomb())
    np.testing.assert_allclose(ours.on_mesh(6), honeycomb().on_mesh(6), atol=1e-10)
    assert len(ours.vectors) == 5


def test_hoppings_that_reach_beyond_the_finest_mesh_are_refused(monkeypatch):
    monkeypatch.setattr("tasks.tight_binding.PYTHTB_MESHES", (1, 2))
    with pytest.raises(InputError, match="reach beyond 1 cells"):
        from_pythtb(PythtbHoneycomb())
