"""CGCNN and MEGNet: neighbours, equal numbers for equal crystals, and that they learn."""

import numpy as np
import pytest
import torch
from torch_geometric.nn import CGConv

from models.cgcnn import CgcnnConfig, GatedConvolution, element_classes, join, thin
from models.crystals import crystal_arrays, graph
from models.exceptions import ModelInputError
from models.graph_training import (
    Energies,
    GraphModel,
    make_network,
    predict_graphs,
    train_graph_network,
    tune_graph_network,
)
from models.megnet import MegnetConfig
from models.training import Recipe
from tests.models.crystal_examples import EXAMPLES, example_graph

CUTOFF = 5.0
CONFIGS = {
    "cgcnn": CgcnnConfig(width=8, convolutions=2, hidden=8, cutoff=CUTOFF, neighbours=None, dropout=0.0),
    "megnet": MegnetConfig(blocks=2, hidden=(8, 8, 4), gaussians=8, cutoff=CUTOFF),
}


def logit(network, *structures) -> np.ndarray:
    crystals = [thin(graph(crystal_arrays(s), CUTOFF), CUTOFF, None) for s in structures]
    return predict_graphs(network, crystals)


@pytest.fixture(scope="module", params=CONFIGS)
def network(request):
    torch.manual_seed(0)
    return make_network(CONFIGS[request.param])


def test_the_nearest_neighbours_of_each_atom_are_kept():
    found = thin(example_graph("NaCl"), 4.5, 12)
    assert np.bincount(found.centres).tolist() == [12] * 8
    first = np.sort(found.distances[found.centres == 0])
    np.testing.assert_allclose(first, [5.6402 / 2] * 6 + [5.6402 / 2**0.5] * 6, atol=1e-4)
    assert len(thin(example_graph("NaCl"), 3.0, None).distances) == 6 * 8
    with pytest.raises(ModelInputError, match=r"up to 5.0 angstrom, not up to 8"):
        thin(example_graph("NaCl"), 8.0, 12)


def test_a_batch_is_one_graph_of_crystals_that_do_not_touch():
    crystals = [thin(example_graph(name), 4.0, None) for name in ("Al", "MgB2")]
    batch = join(crystals)
    assert batch.numbers.tolist() == [13, 12, 5, 5]
    assert batch.owner.tolist() == [0, 1, 1, 1]
    assert (batch.owner[batch.pairs[0]] == batch.owner[batch.pairs[1]]).all()
    with pytest.raises(ModelInputError, match="at least one crystal"):
        join([])


def test_elements_begin_as_one_class_of_each_known_property():
    table = element_classes()
    assert table.shape == (96, 93)
    assert set(np.unique(table)) == {0, 1}
    assert table[0].sum() == 0
    assert (table[1:95].sum(axis=1) >= 7).all()
    niobium = np.flatnonzero(table[41])
    assert {4, 18 + 4} <= set(niobium)  # group 5, row 5
    assert table[41, 18 + 9 + 10 + 10 + 12 + 10 + 10 + 2] == 1  # block d


def test_the_convolution_gives_the_numbers_of_the_library():
    torch.manual_seed(1)
    batch = join([thin(example_graph(name), 4.0, 12) for name in ("NaCl", "MgB2")])
    ours, theirs = GatedConvolution(6, 5, batch_norm=True), CGConv(6, 5, batch_norm=True)
    theirs.load_state_dict(ours.state_dict())
    atoms, features = torch.randn(11, 6), torch.randn(len(batch.distances), 5)
    torch.testing.assert_close(ours(atoms, batch.pairs, features), theirs(atoms, batch.pairs, features))


def test_a_crystal_has_one_logit_whatever_its_description_and_company(network):
    crystal = EXAMPLES["Nb3Sn"]()
    alone = logit(network, crystal)
    shifted = crystal.copy().translate_sites(range(len(crystal)), [0.13, 0.4, 0.77])
    turned = crystal.from_sites(crystal.sites[::-1])
    doubled = crystal.make_supercell([2, 1, 1], in_place=False)
    for other in (shifted, turned, doubled):
        np.testing.assert_allclose(logit(network, other), alone, atol=2e-5)
    together = logit(network, *(make() for make in EXAMPLES.values()))
    np.testing.assert_allclose(together[list(EXAMPLES).index("Nb3Sn")], alone[0], atol=2e-5)
    assert np.ptp(together) > 1e-4


def test_an_atom_without_neighbours_has_a_finite_logit(network):
    from pymatgen.core import Lattice, Structure

    alone = Structure(Lattice.cubic(20), ["He"], [[0, 0, 0]])
    assert np.isfinite(logit(network, alone, EXAMPLES["Al"]())).all()


@pytest.mark.parametrize("name", CONFIGS)
def test_it_learns_the_class_and_starts_its_last_layer_anew_after_energies(name):
    recipe = Recipe(epochs=40, batch_size=5, learning_rate=0.02, weight_decay=0.0)
    model = GraphModel(CONFIGS[name], recipe)
    crystals = [thin(example_graph(example), CUTOFF, None) for example in EXAMPLES]
    labels = np.array([1, 0, 1, 1, 0])
    network = train_graph_network(model, crystals, labels, 0, device="cpu")
    logits = predict_graphs(network, crystals)
    assert logits[labels == 1].min() > logits[labels == 0].max()
    few = model._replace(recipe=recipe.model_copy(update={"epochs": 1}))
    energies = Energies(crystals, np.array([0.0, -2.0, -0.5, -0.2, 0.0]))
    plain, pretrained = (
        predict_graphs(train_graph_network(few, crystals, labels, 0, energies=given, device="cpu"), crystals)
        for given in (None, energies)
    )
    assert np.abs(plain - pretrained).max() > 1e-4


def test_inner_folds_choose_the_settings_that_learn():
    crystals = [thin(example_graph(name), CUTOFF, None) for name in EXAMPLES for _ in range(3)]
    blind = GraphModel(CONFIGS["cgcnn"], Recipe(epochs=1, batch_size=8, learning_rate=1e-9))
    seeing = GraphModel(CONFIGS["cgcnn"], Recipe(epochs=15, batch_size=8, learning_rate=0.02))
    network = train_graph_network(blind, crystals, np.zeros(15), 0, device="cpu")
    lowest = np.argsort(predict_graphs(network, crystals[::3]))[:2]
    labels = np.repeat(np.isin(np.arange(5), lowest), 3).astype(int)  # what the untrained network gets all wrong
    for tried in ({"blind": blind, "seeing": seeing}, {"seeing": seeing, "blind": blind}):
        assert tune_graph_network(tried, lambda _: crystals, labels, None, 0, device="cpu") == "seeing"
