"""BNAS with the composition beside the bands: what the branch sees, that it is learnt from, and what is refused."""

import numpy as np
import pytest
import torch

from models.bnas import CONFIGS, Bnas, BnasInputs
from models.bnas_training import kelvin, predict_images, train_network
from models.composition_branch import CompositionBranch, composition_fractions
from models.composition_descriptors import composition_descriptors, element_properties, fraction_descriptors
from models.exceptions import ModelInputError
from models.training import build

TINY, RECIPE = CONFIGS["tiny"]
FUSED = TINY.model_copy(update={"composition": 16, "dropout": 0.0})
FORMULAS = [
    f"{first}{second}{count}" for first in ("Nb", "V", "Ta", "Mo") for second in ("C", "Sn") for count in (1, 2, 3)
]


def test_fractions_give_the_descriptors_of_the_atoms() -> None:
    table = torch.from_numpy(element_properties().copy())
    atoms = torch.tensor([[12, 5, 5, 0], [41, 41, 41, 50]])
    found = fraction_descriptors(composition_fractions(["MgB2", "Nb3Sn"]), table)
    torch.testing.assert_close(found, composition_descriptors(atoms, table))


def test_a_doped_crystal_stands_between_its_ends() -> None:
    fractions = composition_fractions(["La2CuO4", "La1.85Sr0.15CuO4", "Sr2CuO4"])
    assert fractions.shape == (3, 95)
    torch.testing.assert_close(fractions.sum(dim=1), torch.ones(3))
    torch.testing.assert_close(fractions[1], 0.925 * fractions[0] + 0.075 * fractions[2])


def test_an_element_beyond_americium_is_named() -> None:
    with pytest.raises(ModelInputError, match="'CmO2' holds an element beyond atomic number 95"):
        composition_fractions(["UO2", "CmO2"])


def test_descriptors_are_in_units_of_their_spread_over_the_training_materials() -> None:
    branch, fractions = CompositionBranch(4, 0.0), composition_fractions(FORMULAS)
    branch.fit(fractions)
    found = (fraction_descriptors(fractions, branch.table) - branch.mean) / branch.deviation
    torch.testing.assert_close(found.mean(dim=0), torch.zeros(found.shape[1]), atol=1e-3, rtol=0)
    varying = found.std(dim=0, correction=0) > 0.5
    assert varying.sum() > 50
    torch.testing.assert_close(found[:, varying].std(dim=0, correction=0), torch.ones(int(varying.sum())))


def test_what_only_the_composition_tells_is_learnt() -> None:
    """All grids are equal; carbides have 10 K and stannides 1 K."""
    inputs = BnasInputs(torch.zeros(len(FORMULAS), 18, 8, 8, 8), composition_fractions(FORMULAS))
    tc = np.array([10.0 if "C" in formula else 1.0 for formula in FORMULAS])
    recipe = RECIPE.model_copy(update={"epochs": 30, "learning_rate": 3e-3})
    network, log = train_network(FUSED, recipe, inputs, tc, held_out=(inputs, tc), device="cpu")
    found = kelvin(predict_images([network], inputs, "cpu").mean(axis=(0, 1)))
    assert found[tc > 5].min() > 5 > found[tc < 5].max()
    assert log.validations[-1][1] < 0.1 < log.losses[0]


def test_bands_are_seen_beside_the_composition() -> None:
    network = build(lambda: Bnas(FUSED), 0).eval()
    fractions = composition_fractions(["Nb3Sn", "Nb3Sn"])
    energies = torch.randn(2, 18, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    first, second = network(energies, fractions).tolist()
    assert first != second


@pytest.mark.parametrize(
    ("composition", "fractions", "message"),
    [
        pytest.param(16, None, "takes energies and compositions", id="missing"),
        pytest.param(None, torch.zeros(1, 95), "takes energies alone", id="not asked for"),
    ],
)
def test_a_network_is_given_what_it_was_made_for(composition, fractions, message) -> None:
    network = Bnas(TINY.model_copy(update={"composition": composition}))
    with pytest.raises(ModelInputError, match=message):
        network(torch.zeros(1, 18, 8, 8, 8), fractions)


def test_training_without_the_compositions_is_refused() -> None:
    with pytest.raises(ModelInputError, match="takes energies and compositions"):
        train_network(FUSED, RECIPE, torch.zeros(2, 18, 8, 8, 8), np.ones(2), device="cpu")


def test_only_named_configurations_see_the_composition() -> None:
    assert {name for name, (config, _) in CONFIGS.items() if config.composition} == {"best"}
