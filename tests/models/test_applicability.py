"""The distance from the training set: units, invariances, refusals."""

import numpy as np
import pytest
from pymatgen.core import Composition

from models.applicability import (
    ELEMENT_PROPERTIES,
    STATISTICS,
    TrainingDistance,
    describe_composition,
    element_properties,
    nearest_compositions,
)
from models.exceptions import ModelInputError

INTERMETALLICS = (
    *("NbTi", "Nb3Sn", "Nb3Al", "V3Si", "V3Ga", "Mo3Ir", "TaZr", "ZrRh", "LaAl2", "CeRu2"),
    *("MgB2", "ScRh", "NbN", "NbC", "TiN", "VN", "MoC", "ZrN", "HfN", "TaC"),
)


def amounts(formula: str) -> dict[str, float]:
    return {element.symbol: amount for element, amount in Composition(formula).items()}


@pytest.fixture(scope="module")
def distance() -> TrainingDistance:
    return TrainingDistance([amounts(formula) for formula in INTERMETALLICS])


def test_iron_has_its_textbook_properties():
    values = dict(zip(ELEMENT_PROPERTIES, element_properties("Fe"), strict=True))
    assert values["electronegativity"] == pytest.approx(1.83)
    assert values["valence d electrons"] == 6
    assert values["valence s electrons"] == 2
    assert (values["row"], values["group"]) == (4, 8)


@pytest.mark.parametrize("symbol", ["H", "He", "Ar", "La", "Lu", "Tc", "Po", "U", "Cm"])
def test_every_element_up_to_curium_is_described(symbol: str):
    assert np.isfinite(element_properties(symbol)).all()


def test_description_has_stated_length_and_ignores_scale_and_order():
    one = describe_composition({"Mg": 1, "B": 2})
    assert one.shape == (len(STATISTICS) * len(ELEMENT_PROPERTIES),)
    np.testing.assert_allclose(one, describe_composition({"B": 4, "Mg": 2}), rtol=1e-12)


def test_training_materials_are_near_and_foreign_chemistry_is_far(distance: TrainingDistance):
    near, far = distance([amounts("Nb3Ga"), amounts("CsXeF6")])
    assert near < 1 < far


def test_five_per_cent_of_the_training_set_are_farther_than_one_from_other_systems():
    compositions = [amounts(formula) for formula in INTERMETALLICS]
    distance = TrainingDistance(compositions)
    others = [
        distance([amounts(formula)])[0] for formula in INTERMETALLICS
    ]  # includes the material itself, so no larger than without
    assert np.mean(np.array(others) > 1) <= 0.05


def test_distance_is_deterministic_and_independent_of_the_training_order(distance: TrainingDistance):
    shuffled = TrainingDistance([amounts(formula) for formula in reversed(INTERMETALLICS)])
    wanted = [amounts("MgB2"), amounts("BaFe2As2"), amounts("Hg")]
    np.testing.assert_array_equal(distance(wanted), shuffled(wanted))


def test_repeated_training_materials_change_nothing(distance: TrainingDistance):
    repeated = TrainingDistance([amounts(formula) for formula in [*INTERMETALLICS, *["MgB2"] * 7]])
    assert repeated([amounts("LaNi5")]) == pytest.approx(distance([amounts("LaNi5")]))


def test_one_neighbour_of_a_training_material_is_itself():
    distance = TrainingDistance([amounts(formula) for formula in INTERMETALLICS], neighbours=1)
    assert distance([amounts("Mg2B4")])[0] == pytest.approx(0, abs=1e-6)


def test_no_materials_give_no_distances(distance: TrainingDistance):
    assert distance([]).shape == (0,)


def test_nearest_composition_is_the_chemical_relative():
    known = [amounts(formula) for formula in INTERMETALLICS]
    found = nearest_compositions([amounts("Nb3Ge"), amounts("BeB2"), amounts("TaN")], known)
    assert [INTERMETALLICS[index] for index in found[:, 0]] == ["Nb3Sn", "MgB2", "NbN"]
    assert nearest_compositions([amounts("NbN")], known, count=3).shape == (1, 3)


@pytest.mark.parametrize(
    ("compositions", "message"),
    [([], "span 0 chemical systems"), ([{"Nb": 1}, {"Nb": 2}], "span 1 chemical systems")],
    ids=["none", "one system"],
)
def test_a_training_set_without_spread_is_refused(compositions: list[dict[str, float]], message: str):
    with pytest.raises(ModelInputError, match=message):
        TrainingDistance(compositions)


@pytest.mark.parametrize("bad", [{}, {"Nb": 0.0}, {"Nb": float("nan")}, {"Nb": 2.0, "C": -1.0}], ids=str)
def test_what_is_no_composition_is_refused(bad: dict[str, float]):
    with pytest.raises(ModelInputError, match="is no composition"):
        describe_composition(bad)


def test_an_element_beyond_the_tables_is_refused():
    with pytest.raises(ModelInputError, match="Es has no tabulated covalent radius"):
        describe_composition({"Es": 1})


def test_nothing_known_is_refused():
    with pytest.raises(ModelInputError, match="0 known"):
        nearest_compositions([{"Nb": 1}], [])
