"""Still pictures of crystals: what covers what, where bonds end, and where they are seen from."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from tasks.crystal_pictures import (
    VIEWS,
    Balls,
    _hidden,
    _paint,
    _project,
    _write_symbols,
    clearest_view,
    still_figure,
    visible_bonds,
)
from tasks.crystals import read_structure
from tasks.figures import figure_bytes
from tests.conftest import ROOT

CRYSTALS = ROOT / "docs" / "crystals"


def test_bonds_end_at_the_edges_of_the_discs():
    across, depth = np.array([[0.0, 0.0], [3.0, 4.0]]), np.array([0.0, 2.0])
    balls = Balls(["H", "H"], across, depth, np.array([0.5, 1.0]))
    parts = visible_bonds(balls, [(0, 1)])
    points = np.vstack([ends for ends, _ in parts])
    np.testing.assert_allclose(points[0], [0.3, 0.4])
    np.testing.assert_allclose(points[-1], [2.4, 3.2])
    deep = [here for _, here in parts]
    assert deep == sorted(deep)
    assert 0 < deep[0] < deep[-1] < 2


def test_a_bond_between_discs_that_cover_each_other_is_hidden():
    balls = Balls(["H", "H"], np.array([[0.0, 0.0], [0.5, 0.0]]), np.array([0.0, 2.0]), np.array([0.5, 0.5]))
    assert visible_bonds(balls, [(0, 1)]) == []


@pytest.fixture
def pair() -> Balls:
    """An atom and a nearer one that covers its middle."""
    return Balls(["S", "H"], np.array([[0.0, 0.0], [0.3, 0.0]]), np.array([2.0, 0.0]), np.array([0.5, 0.5]))


def test_the_nearest_atom_is_painted_last(pair):
    axis = Figure().subplots()
    _paint(axis, pair, [], np.array([[1.0, 0, 0, 1], [0, 0, 1.0, 1]]))
    np.testing.assert_allclose(axis.collections[0].get_facecolors(), [[0, 0, 1, 1], [1, 0, 0, 1]])


def test_only_an_atom_whose_middle_is_seen_has_a_label_and_that_on_top(pair):
    axis = Figure().subplots()
    _paint(axis, pair, [], np.ones((2, 4)))
    _write_symbols(axis, pair, np.zeros(2), 0.5)
    (label,) = axis.texts
    assert label.get_text() == "S"
    assert label.get_zorder() > axis.collections[0].get_zorder()


def test_the_view_is_the_clearest_of_all():
    positions = np.array([[0.0, 0, 0], np.append(2 * np.array([np.cos(np.radians(-45)), np.sin(np.radians(-45))]), 0)])
    radii = np.array([0.5, 0.5])
    view = clearest_view(positions, radii, [])
    hidden = [_hidden(_project(positions, other)[0], radii, []) for other in VIEWS]
    assert view[0] != -45
    assert max(hidden) > 0
    assert _hidden(_project(positions, view)[0], radii, []) == min(hidden)


def test_a_bond_over_an_atom_makes_a_view_worse():
    across, radii = np.array([[0.0, 0], [4.0, 0], [2.0, 0.2]]), np.full(3, 0.4)
    assert _hidden(across, radii, []) == 0
    assert _hidden(across, radii, [(0, 1)]) == pytest.approx(0.3**2)


def test_a_title_stands_over_the_picture_and_fits_into_it():
    structure = read_structure(CRYSTALS / "Sr2CuO2Cl2.cif")
    title = "S2SNet: Sr₂Cu(ClO)₂, P = 0.53; the trees have 100 % of the say; colours: the networks alone"
    figure = still_figure(structure, {"one": np.zeros(len(structure)), "two": np.zeros(len(structure))}, title)
    assert figure.get_suptitle().replace("\n", " ") == title
    figure_bytes(figure)
    assert figure._suptitle.get_window_extent().x1 < figure.bbox.x1


def test_a_crystal_of_hundreds_of_atoms_is_drawn_in_seconds():
    structure = read_structure(CRYSTALS / "BaFe2S3.cif").make_supercell([2, 2, 4])
    assert len(structure) == 384
    figure = still_figure(structure, {"one": np.zeros(384), "two": np.zeros(384)})
    assert [len(axis.collections) for axis in figure.axes[:2]] == [1, 1]  # an artist an atom would take a minute
    figure_bytes(figure)
