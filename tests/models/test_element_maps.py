import numpy as np
import pytest
from pymatgen.core import Element

from models.element_maps import SYMBOLS, group_contrast, likeness, mendeleev_order, pearson_matrix, place_elements
from models.exceptions import ModelInputError


@pytest.fixture(scope="module")
def by_group() -> np.ndarray:
    """Embeddings that are alike within a group of the periodic table, and nothing else."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(19, 32))
    groups = [Element(symbol).group for symbol in SYMBOLS]
    return centres[groups] + 0.2 * generator.normal(size=(95, 32))


def test_the_order_is_mendeleevs():
    order = mendeleev_order()
    assert sorted(order) == sorted(SYMBOLS)
    numbers = [Element(symbol).mendeleev_no for symbol in order]
    assert numbers == sorted(numbers)
    places = [order.index(symbol) for symbol in ("Ne", "Cs", "La", "Nb", "Fe", "Cu", "B", "O", "F")]
    assert places == sorted(places)


def test_the_matrix_is_pearsons(by_group):
    symbols, found = pearson_matrix(by_group)
    nb, ta = (symbols.index(symbol) for symbol in ("Nb", "Ta"))
    pair = by_group[[SYMBOLS.index("Nb"), SYMBOLS.index("Ta")]]
    assert found[nb, ta] == pytest.approx(np.corrcoef(pair)[0, 1])
    np.testing.assert_array_equal(found, found.T)
    np.testing.assert_array_equal(np.diag(found), 1)


def test_an_element_without_a_pattern_correlates_with_nothing(by_group):
    flat = by_group.copy()
    flat[0] = 2.0
    symbols, found = pearson_matrix(flat)
    row = found[symbols.index("H")]
    assert np.isfinite(found).all()
    assert row.sum() == 1


def test_groups_are_told_apart(by_group):
    same, other = group_contrast(by_group)
    assert same > 0.9
    assert abs(other) < 0.2
    shuffled = np.random.default_rng(1).permutation(by_group)
    assert abs(np.subtract(*group_contrast(shuffled))) < 0.2


def test_likeness_sees_through_a_rotation_but_not_a_shuffle(by_group):
    turned = np.linalg.qr(np.random.default_rng(2).normal(size=(32, 32)))[0]
    assert likeness(by_group, 3 * by_group) == pytest.approx(1)
    assert likeness(by_group, by_group @ turned) > 0.9
    assert abs(likeness(by_group, np.random.default_rng(3).permutation(by_group))) < 0.2


def test_the_map_keeps_groups_together_and_repeats_itself(by_group):
    places = place_elements(by_group)
    np.testing.assert_array_equal(places, place_elements(by_group))
    metals = [SYMBOLS.index(symbol) for symbol in ("Li", "Na", "K", "Rb", "Cs", "Cl", "Br", "I", "Cu", "Ag", "Au")]
    apart = np.linalg.norm(places[metals][:, None] - places[metals][None], axis=-1)
    assert apart[:5, :5].max() < apart[:5, 5:].min()


@pytest.mark.parametrize("values", [np.ones((94, 8)), np.ones((95, 1)), np.full((95, 4), np.nan)])
def test_what_is_no_embedding_is_refused(values):
    with pytest.raises(ModelInputError, match="are not 95 finite rows"):
        pearson_matrix(values)
