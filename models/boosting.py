"""Gradient boosting by LightGBM (Ke et al., NeurIPS 2017), trained to the same text from the same data and seed."""

import functools
from typing import Any

import numpy as np

from models.exceptions import CheckpointError

PARAMETERS: dict[str, Any] = {
    "feature_fraction": 0.2,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "min_data_in_leaf": 10,
    "lambda_l2": 1.0,
    "deterministic": True,
    "force_row_wise": True,
    "num_threads": 1,
    "verbose": -1,
}
CERTAIN = 1e-6  # probabilities keep this distance from 0 and 1, so that their logits are finite


def train_boosting(
    features: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray | None = None,
    *,
    objective: str,
    rounds: int,
    seed: int,
    **parameters: Any,
) -> str:
    """LightGBM's own text of so many ``rounds`` of trees on (n, features), with ``parameters`` beside PARAMETERS."""
    import lightgbm

    given = PARAMETERS | parameters | {"objective": objective, "seed": seed}
    return str(lightgbm.train(given, lightgbm.Dataset(features, target, weight=weight), rounds).model_to_string())


@functools.lru_cache(maxsize=64)
def booster(text: str) -> Any:
    """The trees of a text, made once a process; CheckpointError where it is damaged."""
    import lightgbm

    try:
        return lightgbm.Booster(model_str=text)
    except lightgbm.basic.LightGBMError as error:
        raise CheckpointError(f"The stored trees are damaged: {error}") from error


def predict_logits(text: str, features: np.ndarray) -> np.ndarray:
    """(n,) logits of a classifier, of (n, features)."""
    found = np.clip(booster(text).predict(features, num_threads=1), CERTAIN, 1 - CERTAIN)
    return np.asarray(np.log(found / (1 - found)))
