from dataclasses import asdict

import numpy as np
import pytest

from models.crystal_trees import attribute_trees, fit_trees
from models.exceptions import ModelInputError
from models.reported_compositions import (
    Reports,
    ask_reported,
    composition_features,
    fit_reported,
    held_out_logits,
    reports_of,
    system_weights,
)

METALS = ("Nb", "V", "Ta", "Ti", "Zr", "Hf", "Mo", "W", "Y", "Sc", "La", "Lu", "Cr", "Mn", "Fe", "Co", "Ni", "Cu")
NITRIDES = [f"{a}{b}N2" for a in METALS[:12] for b in METALS[:12] if a < b]
OXIDES = [f"{a}{b}O{k}" for a in METALS for b in METALS if a < b for k in (3, 4)]


@pytest.fixture(scope="module")
def reports() -> Reports:
    return reports_of(NITRIDES)


def test_a_crystals_own_system_and_its_doped_forms_are_no_reports_of_others():
    written = [
        "MgB2",
        "Mg2B4",
        "MgB3",
        "Mg0.9Al0.1B2",
        "Mg0.6Al0.4B2",
        "AlB2",
        "LaFeAsO0.9F0.1",
        "LaFeAsO0.5F0.5",
        "Nb",
    ]
    reports = reports_of(written, families=[str(n) for n in range(len(written))])
    kept = reports.apart_from(composition_features(["MgB2", "LaFeAsO"]))
    assert [written[int(n)] for n in kept.families] == ["Mg0.6Al0.4B2", "AlB2", "LaFeAsO0.5F0.5", "Nb"]
    assert len(reports.apart_from(composition_features([]))) == len(written)
    assert len(reports_of([]).apart_from(composition_features(["Nb"]))) == 0


@pytest.mark.parametrize(
    ("parent", "doped", "other"),
    [
        ("Nb", "Nb0.9Ti0.1", "Nb0.89Ti0.11"),
        ("Mo", "Mo0.9Re0.1", "Mo0.8Re0.2"),
        ("BaFe2As2", "Ba0.5K0.5Fe2As2", "Ba0.4K0.6Fe2As2"),
        ("FeSe", "FeSe0.8Te0.2", "FeSe0.7Te0.3"),
    ],
)
def test_exactly_a_tenth_of_the_atoms_is_a_doped_form(parent, doped, other):
    reports = reports_of([doped, other], families=["doped", "other"])
    assert reports.apart_from(composition_features([parent])).families.tolist() == ["other"]


def test_reports_teach_what_kind_of_composition_superconducts(reports):
    model = fit_reported(reports, composition_features(OXIDES), seed=0)
    nitrides = ask_reported(model, composition_features(["CrFeN2", "MnCoN2", "NiCuN2"]))
    oxides = ask_reported(model, composition_features(["NbTiO5", "ZrWO5", "LaMoO5"]))
    assert nitrides.min() > oxides.max() + 1
    assert fit_reported(reports, composition_features(OXIDES), seed=0) == model


def test_nothing_to_learn_from_is_told(reports):
    with pytest.raises(ModelInputError, match="0 reports of superconductors beside 2 other crystals"):
        fit_reported(reports_of([]), composition_features(["MgO", "CaO"]), seed=0)
    with pytest.raises(ModelInputError, match="beside 0 other crystals"):
        fit_reported(reports, composition_features([]), seed=0)


def test_many_dopings_of_one_compound_weigh_less_than_as_many_compounds():
    features = composition_features(["NbN", "MgB2", "NbN0.9", "Nb2N", "Nb0.95N"])
    np.testing.assert_allclose(system_weights(features), [0.5, 1, 0.5, 0.5, 0.5])


def test_the_logit_of_a_training_crystal_does_not_come_from_its_own_reports():
    features = composition_features(["NbN", "Nb2N", *OXIDES[:40]])
    labels = np.array([1, 1] + [0] * 40)
    own = reports_of([f"NbN{x}" for x in np.linspace(0.7, 1.3, 30)])
    found = held_out_logits(own, features, labels, seed=0)
    assert (found[:2] == 0).all()  # no report is left that could teach of them
    assert (found[2:] != 0).sum() > 20
    measured = composition_features(["NbN", "Nb2N", *["NbN0.5"] * 40])  # by what was measured, all are relatives
    assert (held_out_logits(own, features, labels, 0, measured) == 0).all()


def test_trees_take_what_reports_say_as_one_more_descriptor(reports):
    formulas = ["CrFeN2", "MnCoN2", "NiCuN2", "CrNiN2", "FeCuN2", *OXIDES]
    features, labels = composition_features(formulas), np.array([1] * 5 + [0] * len(OXIDES))
    unknown = np.full(len(labels), np.nan)
    trees = fit_trees(features, labels, unknown, 0, reports=reports)
    assert trees.seen(features).shape == (len(labels), features.shape[1] + 1)
    found = attribute_trees([trees], features[0], share=1.0)
    assert found.contributions.sum() + found.expected == pytest.approx(trees.logits(features[:1])[0], abs=1e-6)
    assert found.contributions[-1] > 0
    assert fit_trees(features, labels, unknown, 0, reports=reports_of([])).reported is None
    one_class = fit_trees(features, np.zeros(len(labels)), unknown, 0, reports=reports)
    assert one_class.reported is None
    assert asdict(fit_trees(features, labels, unknown, 0, reports=reports)) == asdict(trees)
