import numpy as np
import pytest

from models.blending import Blend, fit_blend, fit_share, held_out_blend, held_out_values
from models.metrics import auc_gain

DRAW = np.random.default_rng(0)
LABELS = DRAW.integers(0, 2, 400)
GOOD, NOISE = 4 * LABELS - 2 + DRAW.normal(size=400), DRAW.normal(size=400)
FOLDS = np.repeat(["a", "b", "c", "d"], 100)


def test_the_better_model_has_the_larger_share():
    assert fit_blend(GOOD, NOISE, LABELS)[0].share < 0.3
    assert fit_blend(NOISE, GOOD, LABELS)[0].share > 0.7


def test_two_models_of_independent_errors_are_better_together():
    other = 4 * LABELS - 2 + np.random.default_rng(1).normal(size=400)
    blurred = GOOD + 2 * NOISE, other + 2 * np.random.default_rng(2).normal(size=400)
    blend, calibration = fit_blend(*blurred, LABELS)
    assert 0.2 < blend.share < 0.8
    assert calibration.slope > 0
    _, probabilities = held_out_blend(*blurred, LABELS, FOLDS)
    assert ((probabilities > 0) & (probabilities < 1)).all()
    for alone in blurred:
        gain = auc_gain(LABELS, probabilities, alone, seed=0)
        assert 0 < gain.low <= gain.value <= gain.high


def test_the_labels_of_a_fold_do_not_reach_its_own_answers():
    flipped = np.where(FOLDS == "a", 1 - LABELS, LABELS)
    for one, other in zip(
        held_out_blend(GOOD, NOISE, LABELS, FOLDS), held_out_blend(GOOD, NOISE, flipped, FOLDS), strict=True
    ):
        np.testing.assert_array_equal(one[FOLDS == "a"], other[FOLDS == "a"])
        assert not np.array_equal(one, other)


def test_share_of_least_squares():
    target = GOOD + 3
    assert fit_share(GOOD + 1, GOOD + 5, target) == Blend(pytest.approx(0.5))
    assert fit_share(target, NOISE, target).share == pytest.approx(0)
    assert fit_share(GOOD, GOOD, target).share == 0.5
    np.testing.assert_allclose(held_out_values(GOOD + 1, GOOD + 5, target, FOLDS), target)
