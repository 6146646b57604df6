import numpy as np
import pytest
import torch

from models.cam import atom_weights, contributions
from models.s2snet import CONFIGS, S2SNet
from models.training import build
from tests.models.crystal_examples import EXAMPLES, example_graph


@pytest.fixture(scope="module")
def networks() -> list[S2SNet]:
    return [build(lambda: S2SNet(CONFIGS["tiny"].network), seed).eval() for seed in (0, 1)]


@pytest.mark.parametrize("name", EXAMPLES)
def test_strongest_atom_has_size_one(networks, name):
    crystal = example_graph(name)
    weights = atom_weights(networks, crystal)
    assert weights.shape == (len(crystal),)
    assert np.abs(weights).max() == pytest.approx(1)


def test_networks_are_averaged_before_the_scale_is_lost(networks):
    crystal = example_graph("NaCl")
    mean = np.mean([contributions(network, crystal) for network in networks], axis=0)
    np.testing.assert_allclose(atom_weights(networks, crystal), mean / np.abs(mean).max())


def test_equivalent_atoms_weigh_the_same(networks):
    magnesium, *boron = atom_weights(networks, example_graph("MgB2"))
    assert boron[0] == pytest.approx(boron[1], abs=1e-4)
    assert magnesium != pytest.approx(boron[0], abs=1e-4)


def test_weights_are_the_same_each_time_and_leave_no_gradient(networks):
    crystal = example_graph("NaCl")
    np.testing.assert_array_equal(atom_weights(networks, crystal), atom_weights(networks, crystal))
    assert all(parameter.grad is None for parameter in networks[0].parameters())


def test_an_atom_that_cannot_matter_weighs_nothing():
    network = build(lambda: S2SNet(CONFIGS["tiny"].network), 0)
    with torch.no_grad():
        network.head.fully_connected[-1].weight.zero_()
    np.testing.assert_array_equal(atom_weights([network], example_graph("MgB2")), np.zeros(3))
