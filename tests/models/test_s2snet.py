import numpy as np
import pytest
import torch
from pymatgen.core import Lattice, Structure

from models.attention_layers import AttentionLayer, Packing
from models.crystals import ELEMENTS, MASKED, PADDING, collate, crystal_arrays, graph, orbit_graph
from models.exceptions import CheckpointError
from models.s2snet import (
    CONFIGS,
    S2SNet,
    S2SNetConfig,
    Set2Set,
)
from models.s2snet_pretraining import NO_TARGET, HiddenElements, mask_atoms, mask_element
from models.s2snet_training import LabelledCrystals, positive_unlabelled_loss, predict_logits, train_network
from models.training import Recipe, build
from tests.models.crystal_examples import CUTOFF, EXAMPLES, example_graph

TINY = CONFIGS["tiny"].network
PAPER = CONFIGS["paper"].network.model_copy(
    update={"width": 16, "layers": 2, "heads": 4, "feed_forward": 32, "gaussians": 32, "set2set_steps": 2}
)
PUBLISHED_CODE = PAPER.model_copy(
    update={
        "scale_embedding": True,
        "position_sum": "normalised",
        "sigma": 0.5,
        "attention": "all",
        "lattice": "matrix",
        "head_layers": 4,
    }
)
READINGS = {"ours": TINY, "paper": PAPER, "published code": PUBLISHED_CODE}


def make(config: S2SNetConfig) -> S2SNet:
    return build(lambda: S2SNet(config), 0).eval()


def logit(network: S2SNet, structure: Structure) -> float:
    return float(predict_logits(network, [graph(crystal_arrays(structure), CUTOFF)])[0])


@pytest.fixture(scope="module")
def ours() -> S2SNet:
    return make(TINY)


@pytest.mark.parametrize("config", READINGS.values(), ids=READINGS)
def test_logits_and_masked_elements_have_their_shapes_and_gradients(config):
    network = make(config)
    batch = collate([example_graph(name) for name in EXAMPLES])
    logits, elements = network(batch), network(batch, masked=True)
    assert logits.shape == (5,)
    assert elements.shape == (5, 8, ELEMENTS)
    (logits.sum() + elements[batch.mask].sum()).backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)
    if network.embedding is not None:
        assert network.embedding.weight.grad[PADDING].abs().sum() == 0


@pytest.mark.parametrize("config", READINGS.values(), ids=READINGS)
def test_crystals_of_1_to_444_atoms_share_a_batch(config):
    """The largest cell of the published pre-training set beside the smallest; each is answered as if it were alone."""
    tungsten = Structure(Lattice.cubic(3.16), ["W", "W"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    salt = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    large = Structure(Lattice.cubic(3.16), ["W"] * 3, [[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5]])
    large = large.make_supercell([4, 37, 1], in_place=False)
    structures = [tungsten.get_primitive_structure(), salt, large]
    assert [len(structure) for structure in structures] == [1, 8, 444]
    graphs = [graph(crystal_arrays(structure), CUTOFF) for structure in structures]
    network = make(config)
    with torch.inference_mode():
        together = network(collate(graphs)).numpy()
    alone = np.concatenate([predict_logits(network, [crystal]) for crystal in graphs])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    hidden, targets = mask_atoms(collate(graphs), torch.Generator().manual_seed(0))
    assert ((targets != NO_TARGET).sum(dim=1)).tolist() == [0, 2, 67]
    network(hidden, masked=True)[hidden.mask].sum().backward()


@pytest.mark.parametrize("config", READINGS.values(), ids=READINGS)
def test_padding_and_neighbours_in_the_batch_change_nothing(config):
    network = make(config)
    crystals = [example_graph(name) for name in EXAMPLES]
    alone = np.concatenate([predict_logits(network, [crystal]) for crystal in crystals])
    np.testing.assert_allclose(predict_logits(network, crystals), alone, atol=1e-5)


@pytest.mark.parametrize("config", READINGS.values(), ids=READINGS)
def test_order_of_the_atoms_changes_nothing(config):
    network, structure = make(config), EXAMPLES["Nb3Sn"]()
    shuffled = Structure.from_sites([structure[index] for index in (5, 0, 7, 2, 1, 6, 3, 4)])
    assert logit(network, shuffled) == pytest.approx(logit(network, structure), abs=1e-5)


@pytest.mark.parametrize("name", ["MgB2", "Nb3Sn", "Si"])
def test_choice_of_origin_changes_nothing(ours, name):
    moved = EXAMPLES[name]()
    moved.translate_sites(range(len(moved)), [0.31, 0.17, 0.73])
    assert logit(ours, moved) == pytest.approx(logit(ours, EXAMPLES[name]()), abs=1e-4)


CELLS = {
    "other cell vectors": [[1, 1, 0], [0, 1, 0], [0, -1, 1]],
    "doubled": [[2, 0, 0], [0, 1, 0], [0, 0, 1]],
    "conventional": [[-1, 1, 1], [1, -1, 1], [1, 1, -1]],
}


@pytest.mark.parametrize("matrix", CELLS.values(), ids=CELLS)
@pytest.mark.parametrize("name", ["Al", "MgB2"])
def test_choice_of_the_cell_changes_nothing(ours, name, matrix):
    other = EXAMPLES[name]().make_supercell(matrix, in_place=False)
    assert logit(ours, other) == pytest.approx(logit(ours, EXAMPLES[name]()), abs=1e-4)


def test_orientation_changes_nothing(ours):
    structure = EXAMPLES["MgB2"]()
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    rotated = Structure(Lattice(structure.lattice.matrix @ rotation), structure.species, structure.frac_coords)
    assert logit(ours, rotated) == pytest.approx(logit(ours, structure), abs=1e-4)


def test_the_papers_position_depends_on_the_cell_which_is_why_ours_differs():
    network = make(PAPER)
    doubled = EXAMPLES["MgB2"]().make_supercell([2, 1, 1], in_place=False)
    assert abs(logit(network, doubled) - logit(network, EXAMPLES["MgB2"]())) > 1e-3


def test_structure_matters_beyond_composition(ours):
    stretched = EXAMPLES["MgB2"]()
    matrix = stretched.lattice.matrix * np.array([[1.0], [1.0], [1.3]])
    other = Structure(Lattice(matrix), stretched.species, stretched.frac_coords)
    assert abs(logit(ours, other) - logit(ours, stretched)) > 1e-4


def test_attention_over_images_is_one_softmax_over_all_of_them():
    """A pair's bias is the log of its images' summed weights: the same as each image attended to on its own."""
    layer = build(lambda: AttentionLayer(8, 2, 16, dropout=0.0), 0).eval()
    atoms = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    images = torch.tensor([[0.5, 2.0, 1.5], [1.0, 0.3, 0.2]])  # of atom 0 once and of atom 1 twice, for each atom
    summed = torch.stack([images[:, 0], images[:, 1] + images[:, 2]], dim=1).log()[None, None]
    apart = images.log()[None, None]
    tripled = torch.cat([atoms, atoms[1:]])
    rows = torch.cat([apart, apart[:, :, 1:]], dim=2)
    of_pairs, of_images = layer(atoms, summed, Packing((1, 2), None)), layer(tripled, rows, Packing((1, 3), None))
    torch.testing.assert_close(of_pairs, of_images[:2])


def test_paper_configuration_is_as_printed():
    paper = CONFIGS["paper"]
    assert (paper.network.width, paper.network.layers, paper.network.radius) == (512, 10, 2.0)
    assert (paper.network.gaussians, paper.network.reach, paper.network.sigma) == (512, 5.12, 2.0)
    assert (paper.network.attention, paper.network.positions) == ("radius", "centre")
    assert (paper.network.lattice, paper.network.head_layers, paper.freeze) == ("lengths", 2, True)
    assert (paper.network.elements, paper.network.composition) == ("learned", False)
    trunk = sum(p.numel() for p in S2SNet(paper.network).layers.parameters())
    assert trunk == pytest.approx(31.5e6, rel=0.01)  # the 31 million of the published trunk


def test_attention_within_2_angstrom_leaves_the_atoms_of_a_metal_alone():
    batch = collate([example_graph("Al"), example_graph("Nb3Sn")])
    network = make(PAPER)
    bias = network._attention_biases(batch, network._expand(batch))[0]
    alone = torch.isfinite(bias[1, 0])
    assert torch.equal(alone, torch.eye(8, dtype=torch.bool))


def test_frozen_trunk_leaves_the_head_to_learn():
    network = make(TINY)
    network.freeze_trunk()
    learning = {name.split(".")[0] for name, p in network.named_parameters() if p.requires_grad}
    assert learning == {"head"}
    assert not any(p.requires_grad for p in network.head.aggregate.parameters())


def test_set2set_reads_only_atoms_and_needs_no_order():
    module = build(lambda: Set2Set(4, 3), 0)
    items = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[True, True, False]])
    read = module(items, mask)
    assert read.shape == (1, 8)
    other = items[:, [1, 0, 2]].clone()
    other[:, 2] = 99.0
    torch.testing.assert_close(module(other, mask), read)


@pytest.mark.parametrize(("name", "expected"), [("Al", 0), ("MgB2", 2), ("NaCl", 2)])
def test_masking_hides_at_least_two_atoms_but_never_all(name, expected):
    batch = collate([example_graph(name), example_graph("NaCl")])
    masked, targets = mask_atoms(batch, torch.Generator().manual_seed(0))
    hidden = targets != NO_TARGET
    assert hidden[0].sum() == expected
    assert torch.equal(masked.numbers == MASKED, hidden)
    assert torch.equal(targets[hidden] + 1, batch.numbers[hidden])
    assert torch.equal(masked.numbers[~hidden], batch.numbers[~hidden])


def test_masking_hides_fifteen_percent_of_a_large_crystal():
    large = EXAMPLES["NaCl"]().make_supercell([2, 2, 2], in_place=False)
    _, targets = mask_atoms(collate([graph(crystal_arrays(large), 4.0)]), torch.Generator().manual_seed(0))
    assert (targets != NO_TARGET).sum() == 10  # of 64


def test_training_learns_and_is_the_same_for_a_seed():
    crystals = [example_graph(name) for name in EXAMPLES] * 2
    labels = np.array([1, 0, 1, 1, 0] * 2)
    recipe = Recipe(epochs=25, batch_size=5, learning_rate=1e-2)
    named = CONFIGS["tiny"]._replace(finetuning=recipe, pretraining=recipe.model_copy(update={"epochs": 2}))
    first = train_network(named, crystals, labels, crystals, 1, device="cpu")
    again = train_network(named, crystals, labels, crystals, 1, device="cpu")
    logits = predict_logits(first, crystals)
    np.testing.assert_array_equal(logits, predict_logits(again, crystals))
    assert ((logits > 0) == (labels == 1)).all()


def test_a_checkpoint_of_other_labels_is_refused(tmp_path):
    crystals, labels = [example_graph(name) for name in EXAMPLES][:4], np.array([1, 0, 1, 0])
    named = CONFIGS["tiny"]._replace(finetuning=Recipe(epochs=1), pretraining=None)
    for _ in range(2):
        train_network(named, crystals, labels, [], 1, device="cpu", checkpoint=tmp_path / "c")
    with pytest.raises(CheckpointError, match="data differ"):
        train_network(named, crystals, 1 - labels, [], 1, device="cpu", checkpoint=tmp_path / "c")


def test_samples_count_crystals_and_keep_labels_with_them():
    crystals, labels = [example_graph(name) for name in EXAMPLES], np.arange(5)
    samples = LabelledCrystals(crystals, labels)
    assert len(samples) == len(HiddenElements(crystals)) == 5
    for batch, found in samples(torch.tensor([4, 1, 2]), torch.Generator(), torch.device("cpu")):
        for numbers, (label, log_tc) in zip(batch.numbers, found, strict=True):
            assert (numbers > 0).sum() == len(crystals[int(label)])
            assert torch.isnan(log_tc)


@pytest.mark.parametrize("name", EXAMPLES)
def test_one_atom_an_orbit_says_the_same_as_the_whole_crystal(ours, name):
    whole = graph(crystal_arrays(EXAMPLES[name]().make_supercell([2, 1, 1], in_place=False)), CUTOFF)
    orbits = orbit_graph(whole)
    elements = len(set(whole.arrays.atomic_numbers))
    assert len(orbits) == elements < len(whole)
    assert orbits.multiplicity.sum() == len(whole)
    np.testing.assert_allclose(predict_logits(ours, [orbits]), predict_logits(ours, [whole]), atol=1e-4)


def test_masking_an_element_hides_all_its_atoms_and_no_other():
    names = ["MgB2", "Nb3Sn", "Al"]
    batch = collate([example_graph(name) for name in names])
    hidden = set()
    for seed in range(10):
        masked, targets = mask_element(batch, torch.Generator().manual_seed(seed))
        for numbers, target, before in zip(masked.numbers[:2], targets, batch.numbers, strict=False):
            (element,) = (target[target != NO_TARGET] + 1).unique().tolist()
            assert torch.equal(numbers == MASKED, before == element)
            hidden.add(element)
        assert (targets[2] == NO_TARGET).all()
    assert hidden == {5, 12, 41, 50}


def test_positive_unlabelled_loss_is_the_cross_entropy_without_positives_among_the_unlabelled():
    logits, labels = torch.tensor([2.0, -1.0, 0.5, -3.0]), torch.tensor([1.0, 0.0, 0.0, 1.0])
    plain = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
    torch.testing.assert_close(positive_unlabelled_loss(logits, labels, 1e-9), plain)


def test_positive_unlabelled_loss_punishes_a_hidden_superconductor_less():
    labels = torch.tensor([1.0, 1.0, 0.0, 0.0])
    logits = torch.tensor([3.0, 3.0, 3.0, -3.0], requires_grad=True)  # the third is a superconductor, not known as one
    slopes = [
        torch.autograd.grad(positive_unlabelled_loss(logits, labels, share), logits)[0][2] for share in (0.1, 0.4)
    ]
    assert slopes[0] > 0
    assert positive_unlabelled_loss(logits, labels, 0.5) < positive_unlabelled_loss(logits, labels, 1e-9)
    far = torch.full((4,), 9.0, requires_grad=True)
    assert positive_unlabelled_loss(far, labels, 0.9) >= 0
