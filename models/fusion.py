"""Bands, composition and crystal together, and what the bands add to the others.

Gradient boosting on descriptors, once with and once without the bands' features: small data sets do not fill a larger
model, and the difference of two equal models is what an ablation can be read from.
"""

import numpy as np

from models.baselines import Descriptors, fitted_regressor
from models.splits import Fold

WITHOUT = "fusion without bands"
WITH = "fusion of composition, crystal and bands"
ESTIMATOR = "boosting"


def fusion_predictions(
    materials: Descriptors, bands: np.ndarray, label: np.ndarray, fold: Fold, seed: int
) -> dict[str, np.ndarray]:
    """Labels of ``fold.test`` with and without the bands, by two models that are equal otherwise.

    Parameters
    ----------
    materials
        Descriptors of n materials; their cells are used where they are known.
    bands
        (n, features) as ``models.band_features.band_features`` gives them.
    label
        (n,) ln(Tc/K + 1).
    """
    known = materials.magpie if materials.cells is None else np.hstack([materials.magpie, materials.cells])
    return {
        name: fitted_regressor(ESTIMATOR, columns, label, fold, seed)
        for name, columns in ((WITHOUT, known), (WITH, np.hstack([known, bands])))
    }
