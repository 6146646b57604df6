"""Conformal intervals cover what they say."""

import numpy as np
import pytest

from models.calibration import conformal_quantile, coverage_curve, needed_residuals, observed_coverage
from models.exceptions import ModelInputError


def test_quantile_by_hand() -> None:
    assert conformal_quantile(np.array([-1.0, 2, -3, 4, 5, 6, 7, 8, 9]), 0.9) == 9
    assert conformal_quantile(np.array([-1.0, 2, -3, 4, 5, 6, 7, 8, 9]), 0.5) == 5


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9])
def test_new_values_are_covered(coverage: float) -> None:
    generator = np.random.default_rng(0)
    held = [conformal_quantile(generator.standard_t(3, 60), coverage) for _ in range(400)]
    covered = np.abs(generator.standard_t(3, (400, 50))) <= np.array(held)[:, None]
    assert covered.mean() == pytest.approx(coverage, abs=0.02)


def test_observed_coverage_of_like_folds_is_the_expected() -> None:
    generator = np.random.default_rng(1)
    folds = [str(number % 5) for number in range(2000)]
    curve = coverage_curve(generator.normal(size=2000), folds)
    assert all(point["observed"] == pytest.approx(point["expected"], abs=0.03) for point in curve)


def test_a_fold_that_is_harder_shows() -> None:
    errors = np.r_[np.random.default_rng(2).normal(size=200), 10 * np.ones(50)]
    assert observed_coverage(errors, ["easy"] * 200 + ["hard"] * 50, 0.9) < 0.85


@pytest.mark.parametrize(("coverage", "count"), [(0.5, 1), (0.9, 9), (0.95, 19)])
def test_too_few_materials_are_told(coverage: float, count: int) -> None:
    assert needed_residuals(coverage) == count
    conformal_quantile(np.ones(count), coverage)
    with pytest.raises(ModelInputError, match=f"needs at least {count} held-out materials, there are {count - 1}"):
        conformal_quantile(np.ones(count - 1), coverage)


def test_coverage_outside_its_range_is_told() -> None:
    with pytest.raises(ModelInputError, match=r"coverage=1\.5"):
        conformal_quantile(np.ones(5), 1.5)


def test_no_interval_gives_nan() -> None:
    assert np.isnan(observed_coverage(np.ones(4), ["a", "a", "b", "b"], 0.9))
