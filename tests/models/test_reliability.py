import json

import numpy as np
import pytest
from scipy.special import expit

from models.exceptions import ModelInputError
from models.reliability import (
    METHODS,
    Calibration,
    as_document,
    brier_score,
    calibration_error,
    choose_method,
    compare_methods,
    fit_isotonic,
    fit_platt,
    fit_temperature,
    from_document,
    held_out_probabilities,
    log_loss,
    reliability_curve,
    share_intervals,
)


@pytest.fixture
def overconfident() -> tuple[np.ndarray, np.ndarray]:
    """Logits three times too large, shifted by one, with labels drawn from the true probabilities."""
    generator = np.random.default_rng(0)
    true = generator.normal(size=4000)
    return 3 * true + 1, (generator.random(4000) < expit(true)).astype(float)


def test_calibration_finds_the_true_scale(overconfident):
    found = fit_platt(*overconfident)
    assert found.slope == pytest.approx(1 / 3, rel=0.1)
    assert found.intercept == pytest.approx(-1 / 3, abs=0.1)


def test_held_out_probabilities_have_a_better_brier_score(overconfident):
    logits, labels = overconfident
    calibrated = held_out_probabilities(logits, labels, [str(number % 5) for number in range(len(labels))])
    assert np.mean((calibrated - labels) ** 2) < np.mean((expit(logits) - labels) ** 2) - 0.01


def test_a_fold_is_calibrated_without_its_own_labels(overconfident):
    logits, labels = overconfident
    folds = np.where(np.arange(len(labels)) < 1000, "0", "1")
    other = np.where(folds == "0", 1 - labels, labels)
    here = folds == "0"
    first, second = (held_out_probabilities(logits, known, folds.tolist())[here] for known in (labels, other))
    np.testing.assert_array_equal(first, second)


def test_logits_without_order_give_the_base_rate():
    labels = np.array([1.0, 0, 0, 0] * 25)
    found = fit_platt(np.linspace(3, -3, 100) * np.where(labels > 0, -1, 1) * 5, labels)
    assert found.slope > 0
    assert found(np.array([-2.0, 2.0])) == pytest.approx([0.25, 0.25], abs=0.03)


def test_order_is_kept():
    assert (np.diff(Calibration(0.1, -3)(np.linspace(-5, 5, 11))) > 0).all()


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [([0.0, 1.0], [1, 1], "both classes"), ([np.nan, 1.0], [0, 1], "finite"), ([0.0], [0, 1], "equally many")],
    ids=["one class", "NaN", "lengths"],
)
def test_what_cannot_be_calibrated_is_refused(logits, labels, message):
    with pytest.raises(ModelInputError, match=message):
        fit_platt(np.array(logits), np.array(labels))


def test_reliability_curve_counts_every_material():
    labels, probabilities = np.array([0, 0, 1, 1]), np.array([0.05, 0.31, 0.39, 1.0])
    curve = reliability_curve(labels, probabilities)
    assert sum(entry["materials"] for entry in curve) == 4
    assert curve[1] == {"predicted": pytest.approx(0.35), "observed": 0.5, "materials": 2}


def test_a_temperature_is_found_where_nothing_is_shifted():
    generator = np.random.default_rng(1)
    true = generator.normal(size=4000)
    labels = (generator.random(4000) < expit(true)).astype(float)
    found = fit_temperature(4 * true, labels)
    assert found.slope == pytest.approx(1 / 4, rel=0.1)
    assert found.intercept == 0


def test_isotonic_steps_rise_and_stay_off_certainty():
    labels = np.array([0, 0, 1, 0, 1, 1, 1, 1])
    found = fit_isotonic(np.arange(8.0), labels)
    probabilities = found(np.linspace(-100, 100, 401))
    assert (np.diff(probabilities) >= 0).all()
    assert probabilities[0] == pytest.approx(1 / 5)  # three of label 0: (0 + 1) / (3 + 2)
    assert probabilities[-1] == pytest.approx(6 / 7)  # five of label 1: (5 + 1) / (5 + 2)


def test_the_method_that_fits_is_chosen(overconfident):
    generator = np.random.default_rng(2)
    folds = [str(number % 5) for number in range(4000)]
    assert choose_method(*overconfident, folds) == "platt"  # shifted, so a temperature is not enough
    steps = generator.normal(size=4000)
    share = np.select([steps < -1, steps < 1], [0.45, 0.5], 0.97)  # no sigmoid has this shape
    labels = (generator.random(4000) < share).astype(float)
    assert choose_method(steps, labels, folds) == "isotonic"
    assert choose_method(steps, labels, ["0"] * 4000) == "platt"


def test_methods_are_compared_by_held_out_scores(overconfident):
    logits, labels = overconfident
    folds = [str(number % 5) for number in range(len(labels))]
    found = compare_methods(logits, labels, folds)
    assert list(found) == ["none", *METHODS]
    assert found["none"]["brier"] == pytest.approx(np.mean((expit(logits) - labels) ** 2))
    assert max(found[name]["log_loss"] for name in METHODS) < found["none"]["log_loss"] - 0.05
    held_out = held_out_probabilities(logits, labels, folds, "isotonic")
    assert found["isotonic"] == {"brier": brier_score(labels, held_out), "log_loss": log_loss(labels, held_out)}


def test_log_loss_of_known_probabilities():
    assert log_loss(np.array([1, 0]), np.array([0.5, 0.75])) == pytest.approx(-np.log(0.5 * 0.25) / 2)
    assert np.isfinite(log_loss(np.array([1]), np.array([0.0])))


@pytest.mark.parametrize("method", METHODS)
def test_a_stored_calibration_gives_the_same_probabilities(overconfident, method):
    logits, labels = (values[:300] for values in overconfident)
    fitted = METHODS[method](logits, labels)
    again = from_document(json.loads(json.dumps(as_document(method, fitted))))
    np.testing.assert_array_equal(again(logits), fitted(logits))


def test_a_calibration_without_a_method_is_a_sigmoid():
    assert from_document({"slope": 0.5, "intercept": 1.0}) == Calibration(0.5, 1.0)
    with pytest.raises(TypeError):
        from_document({"width": 3})


def test_expected_calibration_error_weighs_by_materials():
    rows = [{"predicted": 0.1, "observed": 0.2, "materials": 30}, {"predicted": 0.9, "observed": 0.4, "materials": 10}]
    assert calibration_error(rows) == pytest.approx((30 * 0.1 + 10 * 0.5) / 40)


def test_intervals_of_observed_shares():
    rows = [{"observed": 0.25, "materials": 8}, {"observed": 1.0, "materials": 4}]
    found = share_intervals(rows)
    np.testing.assert_allclose(found, [(0.0715, 0.5907), (0.5101, 1.0)], atol=1e-3)  # Wilson, 2 of 8 and 4 of 4
