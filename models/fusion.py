"""Bands, composition and crystal together, to see what the bands add to the others.

Gradient boosting on descriptors: small data sets do not fill a larger model, and its twin without bands is one of the
baselines, so that the difference of two equal models is what the ablation is read from.
"""

import numpy as np

from models.baselines import Descriptors, fitted_regressor
from models.splits import Fold

FUSION = "fusion with bands, gradient boosting"
TWINS = ("Magpie and cell, gradient boosting", "Magpie, gradient boosting")  # where the cells are known, and where not


def fusion_predictions(
    materials: Descriptors, bands: np.ndarray, label: np.ndarray, fold: Fold, seed: int
) -> np.ndarray:
    """Labels of ``fold.test`` from composition, crystal and bands.

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
    return fitted_regressor("boosting", np.hstack([known, bands]), label, fold, seed)
