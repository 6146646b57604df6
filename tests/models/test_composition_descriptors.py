import numpy as np
import pytest
import torch
from pymatgen.core import Composition

from models.baselines import magpie_descriptors
from models.composition_descriptors import composition_descriptors, descriptor_count, element_properties, standardised
from models.crystals import ELEMENTS, MASKED, PADDING

TABLE = torch.from_numpy(element_properties().copy())


def numbers(formula: str, padding: int = 0) -> torch.Tensor:
    atoms = [element.Z for element, amount in Composition(formula).items() for _ in range(int(amount))]
    return torch.tensor([atoms + [PADDING] * padding])


@pytest.mark.parametrize("formula", ["Al", "MgB2", "NaCl", "Nb3Sn", "YBa2Cu3O7", "LaFeAsO"])
def test_descriptors_are_those_of_matminer(formula):
    found = composition_descriptors(numbers(formula), TABLE)[0].numpy()
    expected = np.delete(magpie_descriptors(formula), 142)  # without the guess of oxidation states
    assert found.shape == expected.shape == (descriptor_count(),)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


def test_padding_order_and_formula_units_change_nothing():
    expected = composition_descriptors(numbers("Nb3Sn"), TABLE)
    for other in (numbers("Nb3Sn", padding=4), numbers("Nb3Sn").flip(1), numbers("Nb6Sn2")):
        torch.testing.assert_close(composition_descriptors(other, TABLE), expected)


def test_standardised_properties_say_nothing_of_padding_and_mask():
    table = standardised(element_properties())
    assert table.shape == (ELEMENTS + 2, 22)
    assert np.isfinite(table).all()
    assert np.abs(table[[PADDING, MASKED]]).sum() == 0
    np.testing.assert_allclose(table[1:-1].mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(table[1:-1].std(axis=0), 1, atol=1e-4)
