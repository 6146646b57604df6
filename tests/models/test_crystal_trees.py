import json
from dataclasses import asdict

import numpy as np
import pytest

from models.crystal_trees import CrystalTrees, crystal_features, fit_trees
from models.crystals import crystal_arrays
from models.exceptions import CheckpointError
from tests.models.crystal_examples import EXAMPLES


@pytest.fixture(scope="module")
def taught() -> tuple[np.ndarray, np.ndarray, CrystalTrees]:
    features = np.random.default_rng(0).normal(size=(200, 6))
    labels = (features[:, 0] + features[:, 1] > 0).astype(int)
    return features, labels, fit_trees(features, labels, np.where(labels == 1, 2.0, 0.0), 0)


def test_features_are_as_many_as_told_and_mostly_known():
    found = np.array([crystal_features(crystal_arrays(make())) for make in EXAMPLES.values()])
    assert found.shape == (len(EXAMPLES), 402)
    assert np.isfinite(found[:, :239]).all()


def test_trees_learn_classes_and_temperatures_and_are_the_same_for_a_seed(taught):
    features, labels, trees = taught
    assert ((trees.logits(features) > 0) == (labels == 1)).mean() > 0.95
    assert np.abs(trees.log_tc(features) - 2 * labels).mean() < 0.3
    assert fit_trees(features, labels, np.where(labels == 1, 2.0, 0.0), 0) != trees  # another object …
    assert asdict(fit_trees(features, labels, np.where(labels == 1, 2.0, 0.0), 0)) == asdict(trees)  # … of equal text


def test_trees_without_temperatures_say_that_they_know_none(taught):
    features, labels, trees = taught
    alone = fit_trees(features, labels, np.full(len(labels), np.nan), 0)
    assert alone.regressor is None
    assert np.isnan(alone.log_tc(features)).all()
    np.testing.assert_array_equal(alone.logits(features), trees.logits(features))


def test_trees_go_through_a_document(taught):
    features, _, trees = taught
    again = CrystalTrees(**json.loads(json.dumps(asdict(trees))))
    np.testing.assert_array_equal(again.logits(features), trees.logits(features))


def test_damaged_trees_are_refused():
    with pytest.raises(CheckpointError, match="damaged"):
        CrystalTrees("tree\nversion=v4\n").logits(np.zeros((1, 6)))


def test_hidden_superconductors_gain_by_positive_unlabelled_learning(taught):
    features, labels, _ = taught
    shown = np.where(np.random.default_rng(1).random(len(labels)) < 0.5, 0, labels)
    hidden, unknown = (labels == 1) & (shown == 0), np.full(len(labels), np.nan)
    share = hidden.sum() / (shown == 0).sum()
    plain = fit_trees(features, shown, unknown, 0).logits(features)
    aware = fit_trees(features, shown, unknown, 0, positive_share=share).logits(features)
    assert aware[hidden].mean() > plain[hidden].mean() + 1
    assert (aware[hidden] > 0).mean() > (aware[labels == 0] > 0).mean()
