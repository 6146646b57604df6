"""What a physicist would read from a band grid first, for a baseline that BNAS has to beat."""

import numpy as np

from models.exceptions import ModelInputError

WINDOWS_EV = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)  # half widths of energy windows around E_F
SLOPE_EV = 0.3  # states on the two sides of E_F up to here make the slope
TREES = 200

FEATURES = (
    "crossing_bands",
    *(f"states_per_ev_{window:g}" for window in WINDOWS_EV),
    "slope",
    "curvature",
    "mean_width",
    "crossing_width",
    "narrowest_crossing_width",
    "lowest_ev",
    "highest_ev",
    "real_bands",
)


def band_features(energies: np.ndarray) -> np.ndarray:
    """Features of grids, named by ``FEATURES``.

    Parameters
    ----------
    energies
        (n, C, M, M, M) eV relative to E_F; channels that are 0 everywhere are padding and left out.

    Returns
    -------
    numpy.ndarray
        (n, len(FEATURES)) float64: how many bands cross E_F; states per eV and cell within windows around it (its
        density of states at growing broadening); slope and curvature of that density; band widths, of all and of
        those that cross; the span of the bands; their number.
    """
    if energies.ndim != 5:
        raise ModelInputError(f"Band features need grids (n, bands, M, M, M), not {energies.shape}")
    return np.stack([_features_of_one(grid.reshape(len(grid), -1)) for grid in energies])


def forest_predictions(
    features: np.ndarray, label: np.ndarray, train: np.ndarray, test: np.ndarray, seed: int
) -> np.ndarray:
    """Labels of the rows ``test`` by a random forest that saw the rows ``train``."""
    from sklearn.ensemble import RandomForestRegressor

    forest = RandomForestRegressor(TREES, min_samples_leaf=2, random_state=seed, n_jobs=1)
    return np.asarray(forest.fit(features[train], label[train]).predict(features[test]))


def _features_of_one(bands: np.ndarray) -> np.ndarray:
    real = bands[np.any(bands != 0, axis=1)]
    if not len(real):
        return np.zeros(len(FEATURES))
    low, high = real.min(axis=1).astype(float), real.max(axis=1).astype(float)
    width, crossing = high - low, (low < 0) & (high > 0)
    points = real.shape[1]
    density = [np.count_nonzero(np.abs(real) < window) / points / (2 * window) for window in WINDOWS_EV]
    above = np.count_nonzero((real >= 0) & (real < SLOPE_EV)) / points / SLOPE_EV
    below = np.count_nonzero((real < 0) & (real > -SLOPE_EV)) / points / SLOPE_EV
    crossed = width[crossing] if crossing.any() else np.zeros(1)
    slope, curvature = (above - below) / SLOPE_EV, density[0] - (above + below) / 2
    shape = [slope, curvature, width.mean(), crossed.mean(), crossed.min(), low.min(), high.max(), len(real)]
    return np.array([crossing.sum(), *density, *shape])
