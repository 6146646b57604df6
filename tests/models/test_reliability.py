import numpy as np
import pytest
from scipy.special import expit

from models.exceptions import ModelInputError
from models.reliability import Calibration, fit_platt, held_out_probabilities, reliability_curve


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
