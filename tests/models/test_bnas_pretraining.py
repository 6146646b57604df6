"""Masked band modelling: what is hidden is not seen, only it counts, and something is learnt."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.bnas import CONFIGS, Bnas, BnasConfig, patchify, prepare
from models.bnas_pretraining import (
    RECIPES,
    HeldOutPatches,
    MaskedBnas,
    MaskedGrids,
    hidden_error,
    hide_patches,
    masked_error,
    mirror_pairs,
    pretrain,
    shown_patches,
    trunk_differences,
    visible_mean,
)
from models.bnas_training import train_network
from models.exceptions import CheckpointError, ModelInputError
from models.training import Recipe, build, one_thread
from tests.tasks.grid_workspace import tight_binding

TINY = CONFIGS["tiny"][0]
RECIPE = Recipe(epochs=4, batch_size=8, learning_rate=0.01, warmup=0.1, schedule="cosine", clip=1.0)


def grids(count: int, seed: int = 0) -> Tensor:
    generator = np.random.default_rng(seed)
    return prepare(torch.from_numpy(np.stack([tight_binding(generator) for _ in range(count)])), TINY)


def learn(inputs: Tensor, recipe: Recipe = RECIPE, **options: Any) -> tuple[dict[str, Tensor], Any]:
    with one_thread():
        return pretrain(TINY, recipe, inputs, device="cpu", **options)


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_smooth_bands_are_restored_better_than_by_plain_answers() -> None:
    inputs, aside = grids(48), grids(24, seed=1)
    _, log = learn(inputs, RECIPE.model_copy(update={"epochs": 60}), held_out=aside)
    plain = HeldOutPatches(MaskedGrids(aside, TINY.patch, 0.6)).baselines(MaskedGrids(inputs, TINY.patch, 0.6))
    assert log.validations[-1][1] < 0.5 * min(plain.values())
    assert log.losses[-1] < 0.5 * log.losses[0]


def test_untrained_network_answers_with_the_visible_mean() -> None:
    batch = next(HeldOutPatches(MaskedGrids(grids(6), TINY.patch, 0.6)).batches())
    network = MaskedBnas(TINY).eval()
    shown = shown_patches(batch[0], TINY.patch)
    known = hidden_error(visible_mean(shown, batch[1], TINY.bands), shown, batch[1])
    assert masked_error(network, batch).item() == pytest.approx(known.item())


def test_visible_mean_is_that_of_each_band_over_the_visible_patches() -> None:
    shown = shown_patches(torch.randn(2, TINY.bands, 8, 8, 8, generator=torch.Generator().manual_seed(1)), 4)
    hidden = hide_patches(2, 2, 0.6, torch.Generator().manual_seed(0))
    found = visible_mean(shown, hidden, TINY.bands)
    for sample in range(2):
        band_3 = shown[sample][~hidden[sample]][:, 3 :: TINY.bands]
        assert float(found[sample, 0, 3]) == pytest.approx(float(band_3.mean()), abs=1e-6)
        assert torch.equal(found[sample, 0, 3 :: TINY.bands], found[sample, 0, 3].expand(64))


def untidy_network() -> MaskedBnas:
    network = build(lambda: MaskedBnas(TINY), 0).eval()
    torch.nn.init.normal_(network.decoder.weight, generator=torch.Generator().manual_seed(0))
    return network


def test_answers_do_not_see_what_is_hidden() -> None:
    energies, hidden = grids(3), hide_patches(2, 3, 0.6, torch.Generator().manual_seed(2))
    other = energies.clone()
    points = torch.arange(8) // 4
    patch_of_point = (points[:, None, None] * 2 + points[:, None]) * 2 + points
    for sample in range(3):
        other[sample, :, hidden[sample][patch_of_point]] = 7.0
    changed = patchify(other, 4) != patchify(energies, 4)
    assert torch.equal(changed.any(-1), hidden)
    network = untidy_network()
    assert torch.equal(network(energies, hidden), network(other, hidden))
    assert not torch.equal(network(energies, ~hidden), network(other, ~hidden))


def test_only_hidden_patches_count() -> None:
    generator = torch.Generator().manual_seed(1)
    shown, hidden = torch.randn(2, 8, 5, generator=generator), hide_patches(2, 2, 0.6, generator)
    restored = torch.randn(2, 8, 5, generator=generator).requires_grad_()
    error = hidden_error(restored, shown, hidden)
    error.backward()
    assert error.item() == pytest.approx((restored - shown)[hidden].square().mean().item())
    assert restored.grad is not None
    assert torch.equal((restored.grad != 0).any(-1), hidden)


@pytest.mark.parametrize(("patches", "share", "count"), [(4, 0.6, 38), (2, 0.6, 4), (2, 0.01, 2), (2, 0.99, 6)])
def test_share_is_hidden_in_pairs_of_k_and_minus_k(patches: int, share: float, count: int) -> None:
    hidden = hide_patches(patches, 50, share, torch.Generator().manual_seed(0))
    assert hidden.sum(1).tolist() == [count] * 50
    cubes = hidden.reshape(50, patches, patches, patches)
    assert torch.equal(cubes, cubes.flip(1, 2, 3))
    assert len(hidden.unique(dim=0)) > 3
    assert hidden.float().mean(0).std() < 0.2, "some patches are hidden far more often than others"


@pytest.mark.parametrize(("patches", "share"), [(1, 0.6), (4, 0.0), (4, 1.0)])
def test_nothing_to_hide_is_told(patches: int, share: float) -> None:
    with pytest.raises(ModelInputError, match=r"share is between 0 and 1 and a grid has at least 2 pairs of patches"):
        mirror_pairs(patches, share)


def test_same_seed_same_bits() -> None:
    inputs = grids(12)
    first, _ = learn(inputs)
    torch.manual_seed(99)
    assert equal(first, learn(inputs)[0])
    assert not equal(first, learn(inputs, RECIPE.model_copy(update={"seed": 1}))[0])
    assert not equal(first, learn(inputs, share=0.3)[0])


def test_killed_pretraining_resumes_to_the_same_bits(tmp_path: Path) -> None:
    inputs = grids(12)
    whole, log = learn(inputs)

    def kill(epoch: int, _network: object) -> None:
        if epoch == 2:
            raise KeyboardInterrupt

    file = tmp_path / "checkpoint"
    with pytest.raises(KeyboardInterrupt):
        learn(inputs, checkpoint=file, checkpoint_seconds=0, after_epoch=kill)
    resumed, rest = learn(inputs, checkpoint=file)
    assert rest.resumed_from == 2
    assert rest.losses == log.losses
    assert equal(whole, resumed)
    with pytest.raises(CheckpointError, match="samples, data differ"):
        learn(inputs[:9], checkpoint=file)


def test_weights_are_those_of_bnas_but_for_its_last_layer() -> None:
    state, _ = learn(grids(8))
    wanted = {name: value.shape for name, value in Bnas(TINY).state_dict().items() if not name.startswith("output.")}
    assert {name: value.shape for name, value in state.items()} == wanted


def test_training_starts_from_them() -> None:
    inputs, tc = grids(8), np.linspace(0, 7, 8)
    state, _ = learn(inputs)
    still = RECIPE.model_copy(update={"epochs": 1, "learning_rate": 1e-12, "weight_decay": 0.0})
    with one_thread():
        network, _ = train_network(TINY, still, inputs, tc, start=state, device="cpu")
        fresh, _ = train_network(TINY, still, inputs, tc, device="cpu")
    for name, value in state.items():
        assert torch.allclose(network.state_dict()[name], value, atol=1e-6), name
    assert not torch.allclose(fresh.positions, network.positions, atol=1e-3)


def test_differences_are_those_that_shape_the_weights_or_the_input() -> None:
    assert trunk_differences(TINY, TINY.model_copy(update={"dropout": 0.5, "centred": True})) == []
    other = TINY.model_copy(update={"depth": 3, "window_ev": 1.0})
    assert trunk_differences(TINY, other) == ["depth 2 and not 3", "window_ev None and not 1.0"]


@pytest.mark.parametrize("name", CONFIGS)
def test_every_configuration_has_a_recipe_and_patches_to_hide(name: str) -> None:
    config: BnasConfig = CONFIGS[name][0]
    assert RECIPES[name].epochs > 0
    assert mirror_pairs(config.patches, 0.6)[1] > 0
