"""The network is the published one: size, numbers, shapes."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from models.augmentation import all_images
from models.bnas import CONFIGS, Bnas, BnasConfig, patchify, prepare
from models.bnas_training import GridBatches, kelvin, predict_images, train_network
from models.composition_branch import composition_fractions
from models.exceptions import CheckpointError, ModelInputError
from models.splits import make_folds
from models.training import Recipe, TrainingLog, build, one_thread

SMALL = BnasConfig(embed_dim=16, depth=2, heads=3, head_dim=8, mlp_dim=24, bands=5, mesh=8, patch=4)
TINY = CONFIGS["tiny"][0]


def load_vit_3d() -> ModuleType:
    """``vit_pytorch.vit_3d`` by its file: the package imports torchvision, which nothing here needs."""
    package = importlib.util.find_spec("vit_pytorch")
    if package is None or not package.submodule_search_locations:
        pytest.skip("vit_pytorch is not installed")
    file = Path(package.submodule_search_locations[0]) / "vit_3d.py"
    spec = importlib.util.spec_from_file_location("vit_3d", file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_vit(config: BnasConfig) -> nn.Module:
    """``vit_pytorch``'s network of the same sizes."""
    return load_vit_3d().ViT(
        image_size=config.mesh,
        image_patch_size=config.patch,
        frames=config.mesh,
        frame_patch_size=config.patch,
        num_classes=1,
        dim=config.embed_dim,
        depth=config.depth,
        heads=config.heads,
        dim_head=config.head_dim,
        mlp_dim=config.mlp_dim,
        channels=config.bands,
        dropout=config.dropout,
        emb_dropout=config.embed_dropout,
    )


def as_vit_names(name: str) -> str:
    """Our parameter's name to the one in ``vit_3d.ViT``."""
    start = {
        "class_token": "cls_token",
        "positions": "pos_embedding",
        "embedding.": "to_patch_embedding.",
        "norm.": "mlp_head.0.",
        "output.": "mlp_head.1.",
        "blocks.": "transformer.layers.",
    }
    ours, theirs = next((o, t) for o, t in start.items() if name.startswith(o))
    name = name.replace(ours, theirs, 1)
    if theirs == "to_patch_embedding.":
        number = int(name.split(".")[1])
        name = name.replace(f".{number}.", f".{number + 1}.", 1)  # theirs begins with the rearrangement
    return name.replace(".attention.", ".0.").replace(".mlp.", ".1.net.")


@pytest.mark.parametrize("config", [SMALL, BnasConfig()], ids=["small", "published"])
def test_equals_vit_pytorch_with_the_same_weights(config: BnasConfig) -> None:
    theirs = make_vit(config)
    ours = build(lambda: Bnas(config), 0)
    theirs.load_state_dict({as_vit_names(name): value for name, value in ours.state_dict().items()})
    generator = torch.Generator().manual_seed(0)
    energies = 3 * torch.randn(2, config.bands, config.mesh, config.mesh, config.mesh, generator=generator)
    ours.eval(), theirs.eval()
    with torch.no_grad(), one_thread():
        assert torch.allclose(ours(energies), theirs(energies).squeeze(-1), atol=1e-5)


def test_published_network_has_34_million_parameters() -> None:
    with torch.device("meta"):  # counts without making the numbers
        network = Bnas(CONFIGS["paper"][0])
    assert round(sum(weights.numel() for weights in network.parameters()) / 1e6, 2) == 34.56


def test_published_recipe() -> None:
    recipe = CONFIGS["paper"][1]
    assert recipe.optimizer == "sgd"
    numbers = (recipe.learning_rate, recipe.momentum, recipe.weight_decay, recipe.batch_size, recipe.epochs)
    assert numbers == (0.001, 0.9, 1e-5, 64, 700)
    assert (recipe.schedule, recipe.warmup, recipe.clip) == ("constant", 0, None)


@pytest.mark.parametrize("name", ["starter", "tiny", "paper"])
def test_every_configuration_takes_real_grids(name: str) -> None:
    config = CONFIGS[name][0]
    network = build(lambda: Bnas(config), 0).eval()
    energies = torch.randn(2, 18, 32, 32, 32)
    with torch.no_grad(), one_thread():
        fractions = composition_fractions(["MgB2", "Nb"]) if config.composition else None
        assert network(prepare(energies, config), fractions).shape == (2,)


def test_patches_stand_in_order_and_bands_run_fastest() -> None:
    energies = torch.arange(2 * 4**3, dtype=torch.float32).reshape(1, 2, 4, 4, 4)
    patches = patchify(energies, 2)
    assert patches.shape == (1, 8, 16)
    assert patches[0, 1, :4].tolist() == [
        energies[0, 0, 0, 0, 2],
        energies[0, 1, 0, 0, 2],
        energies[0, 0, 0, 0, 3],
        energies[0, 1, 0, 0, 3],
    ]
    assert torch.equal(patches[0, 4, 0], energies[0, 0, 2, 0, 0])


def test_thinning_takes_points_of_the_grid() -> None:
    energies = torch.randn(1, 18, 32, 32, 32)
    thinned = prepare(energies, TINY)
    assert torch.equal(thinned, energies[..., ::4, ::4, ::4])
    assert torch.equal(prepare(energies, BnasConfig()), energies)
    scaled = prepare(energies, BnasConfig(window_ev=0.5))
    assert torch.allclose(scaled, torch.tanh(energies / 0.5))


def test_attention_weights_are_those_of_the_fused_kernel() -> None:
    network = build(lambda: Bnas(SMALL), 0).eval()
    energies = torch.randn(2, 5, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    weights = network.attention_weights(energies)
    assert [tuple(w.shape) for w in weights] == [(2, 3, 9, 9)] * 2
    assert torch.allclose(weights[0].sum(-1), torch.ones(2, 3, 9))
    tokens = network.with_positions(network.embed(energies))
    attention = network.blocks[0].attention
    _, _, values = attention._project(tokens)
    by_hand = attention.to_out((weights[0] @ values).transpose(1, 2).flatten(2))
    assert torch.allclose(by_hand, attention(tokens), atol=1e-6)


def test_published_initial_weights_are_an_offer() -> None:
    config = SMALL.model_copy(update={"initial": "kaiming"})
    network = build(lambda: Bnas(config), 0)
    assert network.output.bias.abs() > 0
    assert network.embedding[0].weight.std().item() == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize(
    ("shape", "message"),
    [((1, 17, 32, 32, 32), "18 bands"), ((1, 18, 30, 30, 30), "multiple of 8"), ((18, 32, 32, 32), "do not fit")],
    ids=["bands", "mesh", "no samples"],
)
def test_wrong_shape_is_told(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ModelInputError, match=message):
        prepare(torch.zeros(shape), TINY)


def test_nan_in_a_grid_is_told_with_its_place() -> None:
    energies = torch.zeros(3, 18, 8, 8, 8)
    energies[2, 4, 0, 0, 0] = float("nan")
    with pytest.raises(ModelInputError, match="not finite in 1 grids, the first at position 2"):
        prepare(energies, TINY)


def test_unprepared_energies_are_told() -> None:
    with pytest.raises(ModelInputError, match=r"takes energies of shape \(samples, 18, 8, 8, 8\)"):
        Bnas(TINY)(torch.zeros(1, 18, 32, 32, 32))


def test_patch_that_does_not_divide_the_mesh_is_refused() -> None:
    with pytest.raises(ValidationError, match="mesh=32 is not a multiple of patch=7"):
        BnasConfig(patch=7)


def shifted_bands(count: int) -> tuple[Tensor, Tensor]:
    """Grids whose label is how far the upper bands stand above the lower ones."""
    generator = torch.Generator().manual_seed(0)
    k = 2 * torch.pi * torch.arange(8) / 8
    shape = k.cos()[:, None, None] + k.cos()[None, :, None] + k.cos()[None, None, :]
    shift = torch.rand(count, generator=generator)
    upper = (torch.arange(18) >= 9)[None, :, None, None, None]
    return shape + 6 * shift[:, None, None, None, None] * upper, 30 * shift


def test_learns_a_planted_rule_and_repeats() -> None:
    energies, tc = shifted_bands(48)
    recipe = Recipe(epochs=20, batch_size=12, learning_rate=3e-3, clip=1.0)
    with one_thread():
        networks = [train_network(TINY, recipe, energies[:36], tc[:36].numpy(), device="cpu")[0] for _ in range(2)]
        first, second = (predict_images([network], energies[36:], "cpu") for network in networks)
    assert (first == second).all()
    error = abs(kelvin(first.mean(axis=(0, 1))) - tc[36:].numpy()).mean()
    assert error < 0.5 * abs(tc[36:] - tc[:36].mean()).mean()


@pytest.mark.parametrize("change", ["labels", "energies", "version"])
def test_a_checkpoint_of_other_data_of_the_same_size_is_refused(tmp_path: Path, change: str) -> None:
    (energies, tc), recipe, file = shifted_bands(8), Recipe(epochs=1, batch_size=8), tmp_path / "checkpoint"

    def learn(energies: Tensor, tc: Tensor, data: str = "") -> TrainingLog:
        return train_network(TINY, recipe, energies, tc.numpy(), device="cpu", checkpoint=file, data=data)[1]

    learn(energies, tc)
    assert learn(energies.clone(), tc.clone()).resumed_from == 1
    other = energies.clone()
    other[3, 0, 0, 0, 0] += 0.01
    given = {"labels": (energies, tc.flip(0)), "energies": (other, tc), "version": (energies, tc, "2")}[change]
    with pytest.raises(CheckpointError, match="belongs to another training: data differ; remove it to begin anew"):
        learn(*given)


@settings(max_examples=10, deadline=None)
@given(
    numbers=st.lists(st.integers(0, 7), min_size=4, max_size=12),
    folds=st.integers(2, 4),
    seed=st.integers(0, 9),
    split=st.sampled_from(["random", "chemical-system"]),
    images=st.sampled_from(["one", "all"]),
)
def test_no_image_of_a_held_out_material_is_learnt_from(
    numbers: list[int], folds: int, seed: int, split: str, images: Literal["one", "all"]
) -> None:
    groups = np.array([*numbers, 0, 1, 2, 3])  # as many groups as folds, at least
    size = len(groups)
    planted = torch.arange(float(size))  # the mean of a grid, which its images share, is its row
    pattern = torch.randn(18, 8, 8, 8, generator=torch.Generator().manual_seed(seed))
    energies = planted[:, None, None, None, None] + pattern - pattern.mean()
    learnt: list[int] = []
    others: list[int] = []

    def see(network: nn.Module, given: tuple[Tensor, ...]) -> None:
        if isinstance(network, Bnas):
            (learnt if network.training else others).extend(given[0].mean((1, 2, 3, 4)).round().int().tolist())

    fold = make_folds(split, size=size, folds=folds, seed=seed, groups=groups, labels=np.arange(size) % 2)[0]
    recipe = Recipe(epochs=2, batch_size=16, seed=seed, images=images, validate_every=1)
    tc, held_out = np.arange(float(size)), torch.from_numpy(fold.test)
    with nn.modules.module.register_module_forward_pre_hook(see), one_thread():
        train_network(
            TINY,
            recipe,
            energies[torch.from_numpy(fold.train)],
            tc[fold.train],
            held_out=(energies[held_out], tc[fold.test]),
            device="cpu",
        )
    assert sorted(set(learnt)) == sorted(fold.train.tolist())
    assert len(learnt) == 2 * len(fold.train) * (24 if images == "all" else 1)
    assert sorted(set(others)) == sorted(fold.test.tolist())


def test_centred_network_starts_at_the_mean_label() -> None:
    network = Bnas(SMALL.model_copy(update={"centred": True})).eval()
    network.start_at(1.5)
    assert network(torch.randn(2, 5, 8, 8, 8)).tolist() == [1.5, 1.5]


@pytest.mark.parametrize(
    ("tc", "message"),
    [([1.0, -2.0], "not below 0 kelvin"), ([1.0, float("nan")], "finite"), ([1.0], "1 labels for 2 grids")],
    ids=["negative", "nan", "number"],
)
def test_bad_labels_are_told(tc: list[float], message: str) -> None:
    with pytest.raises(ModelInputError, match=message):
        train_network(TINY, CONFIGS["tiny"][1], torch.zeros(2, 18, 8, 8, 8), torch.tensor(tc).numpy(), device="cpu")


def test_batches_hold_images_of_their_own_rows() -> None:
    energies = torch.arange(4.0)[:, None, None, None, None].expand(4, 18, 8, 8, 8).contiguous()
    batches = GridBatches(energies, torch.arange(4.0))
    images, labels = batches(torch.tensor([3, 1]), torch.Generator(), torch.device("cpu"))
    assert labels.tolist() == [3, 1]
    assert images[:, 0, 0, 0, 0].tolist() == [3, 1]


def test_an_epoch_of_all_images_holds_each_of_the_24_once() -> None:
    energies = torch.randn(3, 18, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    batches = GridBatches(energies, torch.arange(3.0), "all")
    assert len(batches) == 72
    images, labels = batches(torch.arange(24, 48), torch.Generator(), torch.device("cpu"))
    assert labels.tolist() == [1.0] * 24
    for found, expected in zip(images, all_images(energies[1]), strict=True):
        assert torch.equal(found, expected)


def test_weights_can_be_given_and_the_held_out_loss_is_noted() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, tc = torch.randn(6, 18, 8, 8, 8, generator=generator), np.arange(6.0)
    recipe = CONFIGS["tiny"][1].model_copy(update={"epochs": 1, "learning_rate": 1e-12})
    given = build(lambda: Bnas(TINY), 5).state_dict()
    start = {name: value for name, value in given.items() if not name.startswith("output")}
    network, log = train_network(
        TINY, recipe, inputs[:4], tc[:4], held_out=(inputs[4:], tc[4:]), start=start, device="cpu"
    )
    for name, value in network.state_dict().items():
        assert torch.allclose(value, given[name], atol=1e-6) == (name in start), name
    labels = torch.from_numpy(np.log1p(tc[4:])).float()
    with torch.no_grad():
        expected = nn.functional.mse_loss(network(inputs[4:]), labels).item()
    assert log.validations == [(1, pytest.approx(expected, rel=1e-5))]
