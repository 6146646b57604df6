"""Scores equal scikit-learn's, their intervals cover, and a missing class is told, not a crash."""

import math

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, mean_absolute_error, r2_score, roc_auc_score

from models.exceptions import ModelInputError
from models.metrics import (
    classification_gain,
    classification_scores,
    detection_scores,
    r2_gain,
    regression_scores,
)

GENERATOR = np.random.default_rng(3)
TC = np.where(np.arange(60) % 3 == 0, 0.0, GENERATOR.exponential(10, 60))
PREDICTED = np.maximum(TC + GENERATOR.normal(0, 3, 60), 0)


def test_regression_scores_equal_scikit_learn() -> None:
    scores, positive = regression_scores(TC, PREDICTED, seed=0), TC > 0
    assert scores["r2_kelvin_all"].value == pytest.approx(r2_score(TC, PREDICTED))
    assert scores["r2_log_all"].value == pytest.approx(r2_score(np.log1p(TC), np.log1p(PREDICTED)))
    assert scores["mae_kelvin_superconductors"].value == pytest.approx(
        mean_absolute_error(TC[positive], PREDICTED[positive])
    )
    assert scores["r2_kelvin_superconductors"].value == pytest.approx(r2_score(TC[positive], PREDICTED[positive]))
    assert set(scores) == {
        f"{score}_{unit}_{group}"
        for score in ("r2", "mae")
        for unit in ("kelvin", "log")
        for group in ("superconductors", "all")
    }


def test_classification_scores_equal_scikit_learn_with_ties() -> None:
    label = GENERATOR.integers(0, 2, 80)
    probability = np.clip(np.round(0.5 * label + GENERATOR.random(80) * 0.6, 1), 0, 1)
    scores = classification_scores(label, probability)
    assert scores["roc_auc"].value == pytest.approx(roc_auc_score(label, probability))
    assert scores["brier"].value == pytest.approx(brier_score_loss(label, probability))
    assert scores["accuracy"].value == pytest.approx(((probability >= 0.5) == label).mean())


def test_superconductors_told_by_temperature_are_scored_like_scikit_learn() -> None:
    scores = detection_scores(TC, PREDICTED, 1.0)
    assert scores["roc_auc"].value == pytest.approx(roc_auc_score(TC > 0, PREDICTED))
    assert scores["accuracy"].value == pytest.approx(((PREDICTED >= 1) == (TC > 0)).mean())
    assert scores["accuracy"].low < scores["accuracy"].value < scores["accuracy"].high
    assert detection_scores(TC, TC, 0.0)["accuracy"].value == pytest.approx((TC > 0).mean())
    assert detection_scores(np.ones(4), np.ones(4), 1.0)["roc_auc"].reason == "only one class is present"


def test_intervals_hold_the_value_shrink_with_size_and_repeat() -> None:
    small, again = (regression_scores(TC, PREDICTED, seed=1)["mae_kelvin_all"] for _ in range(2))
    large = regression_scores(np.tile(TC, 25), np.tile(PREDICTED, 25), seed=1)["mae_kelvin_all"]
    assert small == again
    assert small.low < small.value < small.high
    assert (large.high - large.low) * 4 < small.high - small.low


def test_perfect_prediction_scores_one() -> None:
    scores = regression_scores(TC, TC, seed=0)
    assert scores["r2_kelvin_all"].value == scores["r2_kelvin_all"].low == 1
    assert scores["mae_log_all"].high == 0


def test_negative_predictions_count_as_zero() -> None:
    assert regression_scores(TC, PREDICTED - 5 * (PREDICTED == 0), seed=0) == regression_scores(TC, PREDICTED, seed=0)


@pytest.mark.parametrize(
    ("tc", "score", "reason"),
    [
        (np.zeros(5), "r2_kelvin_superconductors", "there are 0"),
        (np.zeros(5), "mae_kelvin_superconductors", "no material of this kind"),
        (np.zeros(5), "r2_kelvin_all", "all measured values are equal"),
        (np.array([0, 0, 7.0]), "r2_log_superconductors", "at least 2 materials"),
    ],
    ids=["no superconductor", "no mean", "constant", "one superconductor"],
)
def test_missing_class_gives_nan_and_a_reason(tc: np.ndarray, score: str, reason: str) -> None:
    found = regression_scores(tc, tc + 1, seed=0)[score]
    assert np.isnan(found.value)
    assert reason in found.reason
    assert found.as_json()["value"] is None


def test_one_class_has_no_roc_curve_but_a_brier_score() -> None:
    scores = classification_scores(np.ones(4), np.full(4, 0.9))
    assert np.isnan(scores["roc_auc"].value)
    assert scores["roc_auc"].reason == "only one class is present"
    assert scores["brier"].value == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("true", "predicted", "message"),
    [([1.0, 2.0], [1.0], "equally long"), ([1.0, np.nan], [1.0, 1.0], "must be finite")],
    ids=["lengths", "nan"],
)
def test_bad_input_is_told(true: list, predicted: list, message: str) -> None:
    with pytest.raises(ModelInputError, match=message):
        regression_scores(np.array(true), np.array(predicted), seed=0)


def test_gain_in_r2_is_paired() -> None:
    """Nearly the same predictions: the difference is far surer than either score."""
    generator = np.random.default_rng(0)
    true = generator.uniform(0, 30, 200)
    noisy = np.maximum(true + generator.normal(0, 3, 200), 0)
    nearer = noisy + 0.05 * (true - noisy)
    gain = r2_gain(true, nearer, noisy, seed=0)
    with_it, without = (regression_scores(true, tc, seed=0)["r2_log_all"] for tc in (nearer, noisy))
    assert gain.value == pytest.approx(with_it.value - without.value)
    assert 0 < gain.low < gain.value < gain.high
    assert gain.high - gain.low < 0.5 * (with_it.high - with_it.low)
    assert r2_gain(true, noisy, noisy, seed=0).value == 0
    assert math.isnan(r2_gain(np.ones(3), np.ones(3), np.zeros(3), seed=0).value)


def test_a_paired_gain_is_the_difference_of_the_scores_and_its_interval_is_narrower_than_theirs() -> None:
    label = np.arange(200) % 2
    first = np.clip(label + GENERATOR.normal(0, 0.8, 200), 0, 1)
    second = np.clip(first + GENERATOR.normal(0, 0.05, 200), 0, 1)
    gains = classification_gain(label, first, second)
    scores = [classification_scores(label, probability) for probability in (first, second)]
    for name, gain in gains.items():
        assert gain.value == pytest.approx(scores[0][name].value - scores[1][name].value)
        assert gain.low <= gain.value <= gain.high
        assert gain.high - gain.low < scores[0][name].high - scores[0][name].low
    assert {gain.value for gain in classification_gain(label, first, first).values()} == {0.0}
