import json
from dataclasses import asdict

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from models.crystal_trees import (
    REPORTED,
    CrystalTrees,
    attribute_trees,
    crystal_features,
    feature_names,
    feature_units,
    fit_trees,
)
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


def test_every_feature_has_a_name_of_its_own_that_stands_at_its_place():
    structure = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    assert len(set(feature_names())) == 402
    found = dict(zip(feature_names(), crystal_features(crystal_arrays(structure)), strict=True))
    expected = {
        ("composition", "mean electronegativity"): (0.93 + 3.16) / 2,
        ("composition", "least melting temperature"): 171.6,
        ("composition", "elements"): 2,
        ("composition", "2-norm of the fractions"): 0.5**0.5,
        ("composition", "share of p among valence electrons"): 5 / 8,
        ("composition", "largest ionic character"): 1 - np.exp(-(2.23**2) / 4),
        ("element", "fraction of Cl"): 0.5,
        ("element", "fraction of Fe"): 0,
        ("structure", "space group"): 225,
        ("structure", "volume an atom"): 5.64**3 / 8,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-4)


def test_units_are_of_descriptors_that_there_are():
    units = feature_units()
    assert set(units) <= {name for _, name in (*feature_names(), REPORTED)}
    expected = {
        "middle cell vector": "Å",
        "density": "g/cm³",
        "least melting temperature": "K",
        "largest melting temperature of neighbours": "K",
        "nearest oxygen to oxygen": "Å",
        "mean distance to the nearest neighbour": "Å",
        "mean band gap of the elements": "eV",
        REPORTED[1]: "logit",
    }
    assert {name: units.get(name) for name in expected} == expected
    assert not {"space group", "ln(sites)", "mean distance to the nearest neighbour by radii"} & set(units)


def test_contributions_add_up_to_the_logit_and_know_what_was_taught(taught):
    features, _, trees = taught
    found = trees.contributions(features)
    np.testing.assert_allclose(found.sum(axis=1), trees.logits(features), atol=1e-6)
    assert set(np.argsort(np.abs(found[:, :-1]).mean(axis=0))[-2:]) == {0, 1}
    other = fit_trees(features, (features[:, 2] > 0).astype(int), np.full(len(features), np.nan), 1)
    both = attribute_trees([trees, other], features[0], share=0.25)
    logit = np.mean([one.logits(features[:1])[0] for one in (trees, other)])
    assert both.contributions.sum() + both.expected == pytest.approx(0.25 * logit, abs=1e-6)


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
