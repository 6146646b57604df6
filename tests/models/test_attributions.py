import numpy as np
import pytest
import torch

from models.attributions import (
    head_parts,
    integrated_gradients,
    map_correlation,
    path_contributions,
    path_share,
    random_atom_weights,
)
from models.cam import atom_weights
from models.crystals import collate
from models.map_checks import FIRST_SEED
from models.s2snet import CONFIGS, S2SNet
from models.training import build
from tests.models.crystal_examples import example_graph

TINY = CONFIGS["tiny"].network
NAMES = ("Al", "NaCl", "MgB2", "Nb3Sn", "Si")


def network(seed: int = 0, **changes) -> S2SNet:
    return build(lambda: S2SNet(TINY.model_copy(update=changes)), seed).eval()


def logit(one: S2SNet, name: str) -> float:
    with torch.no_grad():
        return float(one(collate([example_graph(name)])))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"elements": "both", "attention": "all", "position_sum": "add"},
        {"positions": "centre", "lattice": "lengths"},
    ],
    ids=["ours", "learned too", "centre"],
)
def test_integrated_gradients_are_complete(changes):
    networks = [network(seed, **changes) for seed in (1, 2)]
    for name in ("MgB2", "NaCl"):
        found = integrated_gradients(networks, example_graph(name))
        assert abs(found.difference) > 1e-3
        assert found.gap == pytest.approx(0, abs=1e-5 * max(1, abs(found.difference)))
        assert found.atoms.shape == (len(example_graph(name)),)


def test_equivalent_atoms_have_equal_gradients():
    _, *boron = integrated_gradients([network()], example_graph("MgB2")).atoms
    assert boron[0] == pytest.approx(boron[1], abs=1e-9)


def test_a_network_that_does_not_know_elements_attributes_nothing():
    blind = network()
    with torch.no_grad():
        blind.property_map.weight.zero_()
    found = integrated_gradients([blind], example_graph("NaCl"))
    np.testing.assert_allclose(found.atoms, 0, atol=1e-12)
    assert found.difference == 0


def test_the_networks_are_left_as_they_were():
    one = network()
    integrated_gradients([one], example_graph("MgB2"))
    assert next(one.parameters()).dtype == torch.float32


def test_starting_and_attending_is_encoding():
    one, batch = network(), collate([example_graph(name) for name in NAMES])
    with torch.no_grad():
        torch.testing.assert_close(one.attend(one.start(batch), batch), one.encode(batch))


def test_an_untrained_network_is_found_out():
    crystal, untrained = example_graph("Nb3Sn"), network(FIRST_SEED + 1)
    maps = random_atom_weights([untrained], crystal, seeds=3)
    np.testing.assert_allclose(maps[1], atom_weights([untrained], crystal), atol=1e-6)
    assert np.abs(maps[0] - maps[1]).max() > 0.01


def test_random_networks_keep_the_scale_of_the_descriptors():
    trained, crystal = network(FIRST_SEED), example_graph("NaCl")
    trained.fit_descriptors([collate([example_graph(name) for name in NAMES])])
    np.testing.assert_allclose(
        random_atom_weights([trained], crystal, 1)[0], atom_weights([trained], crystal), atol=1e-6
    )


def test_contributions_add_up_to_the_logit_beyond_the_references():
    networks = [network(1), network(2)]
    graphs = [example_graph(name) for name in NAMES]
    references = [head_parts(one, graphs) for one in networks]
    for name in ("MgB2", "NaCl"):
        found = path_contributions(networks, example_graph(name), references)
        assert set(found) == {"atoms", "lattice", "composition"}
        beyond = [logit(one, name) - np.mean([logit(one, other) for other in NAMES]) for one in networks]
        assert sum(found.values()) == pytest.approx(np.mean(beyond), abs=1e-5)


def test_a_way_that_the_head_does_not_read_contributes_nothing():
    one = network(3)
    with torch.no_grad():
        one.head.fully_connected[1].weight[:, 2 * TINY.width :].zero_()  # behind the atoms stand the descriptors
    references = [head_parts(one, [example_graph(name) for name in NAMES])]
    found = path_contributions([one], example_graph("NaCl"), references)
    assert found["composition"] == pytest.approx(0, abs=1e-7)
    assert found["atoms"] != 0


def test_atoms_alone_carry_all():
    one = network(composition=False, lattice="none")
    references = [head_parts(one, [example_graph("Al"), example_graph("NaCl")])]
    assert path_share(path_contributions([one], example_graph("MgB2"), references)) == 1
    assert path_share({"atoms": 0.0, "lattice": 0.0}) is None
    assert path_share({"atoms": -1.0, "lattice": 3.0}) == 0.25


def test_correlation_of_maps_needs_three_values_and_forgives_rounding():
    assert map_correlation([1, 0.5, 0.5], [3, 1, 1]) is None
    assert map_correlation([0, 0, 0], [1, 2, 3]) is None
    noisy = np.array([1, 0.5, 0.5 + 1e-7, -0.2])
    assert map_correlation(noisy, [40, 30, 30 + 1e-6, 2]) == pytest.approx(1)
    assert map_correlation(noisy, [-40, -30, -30, -2]) == pytest.approx(-1)
