import numpy as np
import pytest
from pymatgen.core import Structure

from models.baselines import (
    NEED_CELLS,
    classification_baselines,
    describe,
    element_fractions,
    magpie_descriptors,
    regression_baselines,
)
from models.exceptions import ModelInputError
from models.splits import Fold
from tests.models.crystal_examples import EXAMPLES

# Critical temperatures in kelvin, 0 for no superconductivity found (Roberts, J. Phys. Chem. Ref. Data 5, 581 (1976)).
MEASURED = {
    "Al": 1.18,
    "Nb": 9.25,
    "V": 5.4,
    "Ta": 4.47,
    "Pb": 7.2,
    "Sn": 3.72,
    "In": 3.41,
    "Hg": 4.15,
    "Nb3Sn": 18.05,
    "Nb3Ge": 23.2,
    "V3Si": 17.1,
    "MgB2": 39.0,
    "NbN": 16.0,
    "NaCl": 0.0,
    "KCl": 0.0,
    "MgO": 0.0,
    "Si": 0.0,
    "Ge": 0.0,
    "Cu": 0.0,
    "Ag": 0.0,
    "Au": 0.0,
    "GaAs": 0.0,
    "ZnO": 0.0,
    "Al2O3": 0.0,
}
FORMULAS = [*MEASURED, "Nb3.02Sn", "LiF"]
TC = np.array([*MEASURED.values(), 17.5, 0.0])
TRAIN, TEST = np.arange(24), np.array([24, 25])
FOLD = Fold("all", TRAIN, TEST)


@pytest.fixture(scope="module")
def kelvin() -> dict[str, np.ndarray]:
    return regression_baselines(FORMULAS, None, TC, FOLD, 0)


@pytest.fixture(scope="module")
def structures() -> list[Structure]:
    made = [make() for make in EXAMPLES.values()]
    return [made[number % len(made)] for number in range(len(FORMULAS))]


def test_simple_baselines_are_what_their_names_say(kelvin):
    log_mean = np.expm1(np.log1p(TC[TRAIN]).mean())
    assert kelvin["mean"] == pytest.approx([log_mean, log_mean])
    niobium_tin_and_germanium = np.flatnonzero(np.array(FORMULAS[:24]) == "Nb3Sn")[0]
    assert kelvin["same element set"] == pytest.approx([TC[niobium_tin_and_germanium], log_mean])
    assert kelvin["nearest composition"][0] == pytest.approx(18.05)


def test_predictions_are_kelvin_not_negative_and_one_a_material(kelvin):
    assert len(kelvin) == 8 - len(NEED_CELLS)
    for name, values in kelvin.items():
        assert values.shape == (2,), name
        assert np.isfinite(values).all(), name
        assert (values >= 0).all(), name


def test_learned_baselines_tell_niobium_tin_from_lithium_fluoride(kelvin):
    for name in ("Magpie, random forest", "element fractions, network"):
        superconductor, salt = kelvin[name]
        assert superconductor > salt + 3


def test_same_seed_gives_the_same_numbers(kelvin):
    for name, values in regression_baselines(FORMULAS, None, TC, FOLD, 0).items():
        np.testing.assert_array_equal(values, kelvin[name])


def test_test_labels_are_not_seen(kelvin):
    changed = TC.copy()
    changed[TEST] = [0.0, 100.0]
    for name, values in regression_baselines(FORMULAS, None, changed, FOLD, 0).items():
        np.testing.assert_array_equal(values, kelvin[name])


def test_probabilities_of_every_baseline_with_structures(structures):
    found = classification_baselines(FORMULAS, structures, TC > 0, FOLD, 0)
    assert set(found) > NEED_CELLS
    for name, values in found.items():
        assert values.shape == (2,), name
        assert ((values >= 0) & (values <= 1)).all(), name
    assert found["mean"] == pytest.approx((TC[TRAIN] > 0).mean())
    assert found["Magpie, random forest"][0] > 0.5 > found["Magpie, random forest"][1]


def test_size_only_sees_nothing_but_the_number_of_sites(structures):
    other = ["Fe2O3"] * len(FORMULAS)
    first, second = (classification_baselines(f, structures, TC > 0, FOLD, 0)["size only"] for f in (FORMULAS, other))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(("one", "other"), [("MgB2", "Mg2B4"), ("YBa2Cu3O7", "Cu3Ba2YO7"), ("D2O", "H2O")])
def test_spelling_of_a_composition_does_not_matter(one, other):
    np.testing.assert_allclose(element_fractions(one), element_fractions(other))
    np.testing.assert_allclose(magpie_descriptors(one), magpie_descriptors(other))


def test_magpie_has_its_145_descriptors():
    values = magpie_descriptors("MgB2")
    assert values.shape == (145,)
    assert np.isfinite(values).all()
    assert describe(["MgB2", "Al"], None).magpie.shape == (2, 145)


def test_an_element_unknown_to_magpie_is_left_to_the_trees():
    formulas, tc = [*FORMULAS, "Og"], np.append(TC, 0.0)
    found = regression_baselines(formulas, None, tc, Fold("unknown", TRAIN, np.array([26])), 0)
    assert np.isfinite(list(found.values())).all()


BAD = {
    "not a formula": ({"formulas": ["Xx2"]}, "not a chemical formula"),
    "negative": ({"tc": np.array([-1.0])}, "not negative"),
    "NaN": ({"tc": np.array([np.nan])}, "finite"),
    "lengths": ({"tc": np.array([1.0, 2.0])}, "1 formulas but 2"),
    "structures": ({"structures": []}, "1 formulas but 0 structures"),
}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_refused(changes, message):
    given = {"formulas": ["Al"], "structures": None, "tc": np.array([1.0])} | changes
    with pytest.raises(ModelInputError, match=message):
        regression_baselines(**given, fold=Fold("one", np.array([0]), np.array([0])), seed=0)


def test_one_class_is_refused():
    with pytest.raises(ModelInputError, match="Fold all: the training materials must hold both labels"):
        classification_baselines(FORMULAS, None, np.ones(len(FORMULAS)), FOLD, 0)
