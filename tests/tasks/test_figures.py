"""Figures: geometry, symmetry and numbers of what is drawn, and that the same input gives the same bytes."""

import itertools

import numpy as np
import plotly.graph_objects as go
import pytest
from matplotlib.figure import Figure
from pymatgen.core import Lattice, Structure

from tasks import figures, material_figures
from tasks.figures import Interval

MESH = 32
NACL = Structure(Lattice([[0, 2, 2], [2, 0, 2], [2, 2, 0]]), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
TRICLINIC = Structure(Lattice.from_parameters(3.1, 4.3, 5.2, 81, 97, 104), ["Nb"], [[0, 0, 0]])


def free_electrons(lattice: Lattice, radius: float) -> np.ndarray:
    """Lowest band of free electrons (1, 32, 32, 32), zero on a sphere; k in the reduced zone."""
    index = np.indices((MESH,) * 3).reshape(3, -1).T / MESH
    images = np.array(list(itertools.product((-1, 0, 1), repeat=3)))
    cartesian = (index[:, None] - images[None]) @ lattice.reciprocal_lattice.matrix
    return ((cartesian**2).sum(axis=-1).min(axis=1) - radius**2).reshape(1, MESH, MESH, MESH)


@pytest.fixture(scope="module")
def bands() -> np.ndarray:
    """18 bands of which two cross E_F and the first is padding."""
    index = np.indices((MESH,) * 3) / MESH
    wave = np.cos(2 * np.pi * index).sum(axis=0)
    grid = np.linspace(-8, 8, 18)[:, None, None, None] + 0.3 * wave
    grid[0] = 0
    return grid.astype(np.float32)


def meshes(figure: go.Figure) -> list[np.ndarray]:
    return [np.stack([trace.x, trace.y, trace.z], axis=1) for trace in figure.data if trace.type == "mesh3d"]


@pytest.mark.parametrize("lattice", [Lattice.cubic(3.0), NACL.lattice], ids=["cubic", "face-centred"])
def test_fermi_surface_of_free_electrons_is_a_sphere(lattice: Lattice):
    (vertices,) = meshes(
        material_figures.fermi_figure(Structure(lattice, ["Na"], [[0, 0, 0]]), free_electrons(lattice, 0.7))
    )
    np.testing.assert_allclose(np.linalg.norm(vertices, axis=1), 0.7, atol=0.02)
    np.testing.assert_allclose(vertices.mean(axis=0), 0, atol=0.05)


@pytest.mark.parametrize("structure", [NACL, TRICLINIC], ids=["face-centred", "triclinic"])
def test_fermi_surface_stays_in_the_first_zone(structure: Structure, bands: np.ndarray):
    reciprocal = structure.lattice.reciprocal_lattice.matrix
    images = np.array([i for i in itertools.product(range(-2, 3), repeat=3) if any(i)]) @ reciprocal
    found = meshes(material_figures.fermi_figure(structure, bands))
    assert len(found) == len(material_figures.crossing_bands(bands)) == 2
    for vertices in found:
        assert (vertices @ images.T <= (images**2).sum(axis=1) / 2 + 0.01).all()


def test_fermi_surface_of_an_insulator_is_empty(bands: np.ndarray):
    assert meshes(material_figures.fermi_figure(NACL, bands[1:6])) == []


def test_nearest_band_crosses_the_fermi_level_and_padding_is_left_out(bands: np.ndarray):
    assert material_figures.nearest_band(bands) in material_figures.crossing_bands(bands)
    assert material_figures.nearest_band(bands[:5]) == 4


def test_interpolation_gives_back_the_grid_and_is_periodic(bands: np.ndarray):
    index = np.array([[0, 0, 0], [3, 7, 31], [16, 16, 16]])
    energies = material_figures.interpolate_periodic(bands, index / MESH)
    np.testing.assert_allclose(energies, bands[:, *index.T], atol=1e-5)
    np.testing.assert_allclose(
        material_figures.interpolate_periodic(bands, index / MESH + [1, -2, 0]), energies, atol=1e-5
    )


def test_standard_cells_have_the_usual_path_and_others_the_axes():
    standard = [label for label, _ in material_figures.band_path(NACL)]
    assert standard[:2] == ["Γ", "X"]
    turned = Structure(
        Lattice(TRICLINIC.lattice.matrix @ np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]])), ["Nb"], [[0] * 3]
    )
    labels = [label for label, _ in material_figures.band_path(turned)]
    assert labels == ["Γ", "½b<sub>1</sub>", "", "Γ", "½b<sub>2</sub>", "", "Γ", "½b<sub>3</sub>"]


def test_bands_start_at_the_zone_centre_and_the_axis_is_labelled(bands: np.ndarray):
    energies = np.linspace(-6, 6, 61)
    densities = {"energies": energies, "s": np.ones(61), "p": np.zeros(61), "d": np.ones(61)}
    figure = material_figures.band_figure(NACL, bands, densities)
    drawn = {trace.name: trace for trace in figure.data}
    assert {"s", "p", "d"} <= set(drawn)
    assert "band 1" not in drawn  # padding
    crossing = material_figures.crossing_bands(bands)
    assert drawn[f"band {crossing[0] + 1}"].y[0] == pytest.approx(bands[crossing[0], 0, 0, 0], abs=1e-4)
    assert drawn[f"band {crossing[0] + 1}"].line.color == material_figures.BAND_COLOURS[0]
    assert "E<sub>F</sub>" in figure.layout.yaxis.title.text
    assert np.abs(drawn["s"].y).max() <= material_figures.WINDOW_EV


def test_planes_show_band_and_rollout_around_the_zone_centre(bands: np.ndarray):
    rollout = np.zeros((MESH,) * 3)
    rollout[0, 0, 0] = 1
    figure = material_figures.plane_figure(bands, rollout)
    images = [axis.images[0].get_array() for axis in figure.axes if axis.images]
    assert len(images) == 6
    for image in images[3:]:
        assert np.unravel_index(np.argmax(image), image.shape) == (MESH // 2, MESH // 2)


def test_planes_have_their_axes_the_right_way_round():
    index = np.indices((MESH,) * 3) / MESH
    grid = np.sin(2 * np.pi * index[0])[None] + 0.01 * np.sin(2 * np.pi * index[2])[None]
    figure = material_figures.plane_figure(grid, np.ones((MESH,) * 3))
    across_x, _, across_z = (axis.images[0].get_array() for axis in figure.axes[:3])
    assert np.ptp(across_x[5]) > 1.9  # changes along k_x, which goes across
    assert np.ptp(across_x[:, 5]) < 0.1
    assert np.ptp(across_z[5]) < 0.1  # k_z across, k_y up


def test_atoms_on_the_borders_are_repeated_and_carry_their_weight():
    figure = material_figures.crystal_figure(NACL, np.array([0.5, -0.25]))
    atoms = next(trace for trace in figure.data if trace.mode == "markers+text")
    assert len(atoms.x) == 9  # sodium on eight corners, chlorine in the middle
    assert sorted(set(np.asarray(atoms.marker.color).tolist())) == [-0.25, 0.5]
    assert sorted(filter(None, atoms.text)) == ["Cl", "Na"]


def test_a_crystal_moved_by_a_lattice_vector_looks_the_same():
    moved = NACL.copy()
    moved.translate_sites([1], [1, 0, -1], to_unit_cell=False)
    one, other = (material_figures.crystal_figure(structure, None) for structure in (NACL, moved))
    np.testing.assert_allclose(one.data[-1].x, other.data[-1].x, atol=1e-3)


SCORES = {
    "random": {"BNAS": Interval(0.8, 0.7, 0.9), "mean": Interval(-3, -9, 0)},
    "other": {"mean": Interval(0.1, 0, 0.2)},
}
LABELS = (np.array([0, 1, 1, 0]), np.array([0.2, 0.9, 0.4, 0.5]))
CURVES = {
    "epoch": np.arange(1, 5),
    "loss": np.array([3.0, 2.0, 1.5, 1.2]),
    "validation_loss": np.array([np.nan, 2.2, np.nan, 1.9]),
    "learning_rate": np.array([5e-4, 1e-3, 5e-4, 0.0]),
}
CURVE = [
    {"predicted": 0.1, "observed": 0.2, "materials": 20, "low": 0.1, "high": 0.4},
    {"predicted": 0.9, "observed": 1, "materials": 9, "low": 0.8, "high": 1},
]
ALL_FIGURES = {
    "curves": lambda: figures.curve_figure({"random-0": CURVES, "random-1": CURVES, "ensemble-0": CURVES}),
    "parity": lambda: figures.parity_figure({"Random": ([0, 9.2, 39], [1, 8, 30]), "Grouped": ([], [])}),
    "scores": lambda: figures.score_figure(SCORES, "BNAS", "R2"),
    "roc": lambda: figures.roc_figure({"Random": {"S2SNet": LABELS, "mean": LABELS}}, "S2SNet"),
    "roc of one class": lambda: figures.roc_figure({"Random": {"S2SNet": (np.ones(3), np.ones(3))}}, "S2SNet"),
    "reliability": lambda: figures.reliability_figure({"Random": {"S2SNet": CURVE, "mean": CURVE[:1]}}),
    "dos": lambda: figures.dos_figure(
        {"all": (4, np.ones((3, 9))), "one": (1, np.ones((3, 9)))}, np.linspace(-1, 1, 9)
    ),
    "elements": lambda: figures.element_figure({"Known": {"Nb": 0.5, "La": 0.1, "U": 0.1}, "New": {}}),
    "no elements": lambda: figures.element_figure({"Known": {}}),
}


@pytest.mark.parametrize("make", ALL_FIGURES.values(), ids=ALL_FIGURES)
def test_figures_of_many_materials_are_drawn_to_the_same_bytes(make):
    assert isinstance(make(), Figure)
    assert figures.to_data_url(make()) == figures.to_data_url(make())


def test_the_learning_rate_stands_below_the_losses():
    above, below = ALL_FIGURES["curves"]().axes
    assert (above.get_ylabel(), below.get_ylabel()) == ("loss (dashed: held out)", "learning rate")
    assert [list(line.get_ydata()) for line in below.lines] == [list(CURVES["learning_rate"])] * 3


def test_scores_are_drawn_best_first_from_chance_on():
    scores = {"random": {name: Interval(value, value, value) for name, value in (("a", 0.6), ("b", 0.9), ("own", 0.8))}}
    (axis,) = figures.score_figure(scores, "own", "ROC AUC", chance=0.5).axes
    assert [text.get_text() for text in axis.get_yticklabels()] == ["own", "b", "a"]
    assert axis.get_xlim()[0] == pytest.approx(0.48)


def test_axes_carry_units():
    (axis, _) = ALL_FIGURES["parity"]().axes
    assert "(K)" in axis.get_xlabel()
    assert "eV" in ALL_FIGURES["dos"]().axes[0].get_xlabel()
    assert "%" in ALL_FIGURES["elements"]().axes[-1].get_xlabel()
