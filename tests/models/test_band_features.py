"""Band features say what they are named for."""

import numpy as np
import pytest

from models.band_features import FEATURES, band_features, forest_predictions
from models.exceptions import ModelInputError


def grid(*centres_and_widths: tuple[float, float]) -> np.ndarray:
    k = np.cos(2 * np.pi * np.arange(16) / 16)
    shape = (k[:, None, None] + k[None, :, None] + k[None, None, :]) / 6  # from -0.5 to 0.5
    bands = np.zeros((1, 18, 16, 16, 16), dtype=np.float32)
    for channel, (centre, width) in enumerate(centres_and_widths):
        bands[0, channel + 4] = centre + width * shape
    return bands


def features(energies: np.ndarray) -> dict[str, float]:
    return dict(zip(FEATURES, band_features(energies)[0], strict=True))


def test_padding_is_left_out() -> None:
    found = features(grid((0.0, 2.0), (5.0, 1.0)))
    assert found["real_bands"] == 2
    assert found["crossing_bands"] == 1
    assert found["mean_width"] == pytest.approx(1.5)
    assert found["crossing_width"] == found["narrowest_crossing_width"] == pytest.approx(2.0)
    assert found["lowest_ev"] == pytest.approx(-1.0)
    assert found["highest_ev"] == pytest.approx(5.5)


def test_density_of_states_counts_the_states_of_a_band() -> None:
    found = features(grid((0.0, 1.0)))
    assert found["states_per_ev_0.5"] == pytest.approx(1.0, abs=0.01)  # the whole band within 1 eV
    assert features(grid((0.0, 4.0)))["states_per_ev_0.5"] < found["states_per_ev_0.5"]


def test_slope_has_the_sign_of_the_side_with_more_states() -> None:
    assert features(grid((0.3, 1.0)))["slope"] > 0 > features(grid((-0.3, 1.0)))["slope"]


def test_insulator_crosses_nothing() -> None:
    found = features(grid((-3.0, 1.0), (3.0, 1.0)))
    assert found["crossing_bands"] == found["states_per_ev_1"] == found["crossing_width"] == 0


def test_images_of_a_grid_have_its_features() -> None:
    energies = grid((0.0, 2.0), (0.4, 1.0))
    turned = np.roll(energies.transpose(0, 1, 4, 2, 3)[..., ::-1], 1, axis=-1)
    assert band_features(turned) == pytest.approx(band_features(energies), rel=1e-5)


def test_forest_learns_the_width() -> None:
    widths = np.linspace(0.5, 4, 40)
    energies = np.concatenate([grid((0.0, width)) for width in widths])
    train, test = np.arange(0, 40, 2), np.arange(1, 40, 2)
    found = forest_predictions(band_features(energies), widths, train, test, seed=0)
    assert np.abs(found - widths[test]).mean() < 0.2


def test_wrong_shape_is_told() -> None:
    with pytest.raises(ModelInputError, match=r"need grids \(n, bands, M, M, M\), not \(18, 4, 4, 4\)"):
        band_features(np.zeros((18, 4, 4, 4)))
