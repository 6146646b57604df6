"""Rollout against a computation by hand, and its way to the k mesh."""

import numpy as np
import pytest
import torch

from models.bnas import CONFIGS, Bnas
from models.exceptions import ModelInputError
from models.rollout import class_attention, rollout, to_mesh
from models.training import build


def test_rollout_of_two_blocks_by_hand() -> None:
    first = torch.tensor([[[[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.5, 0.5]]]])  # heads' mean: [[.5, .5], [.5, .5]]
    second = torch.tensor([[[[0.2, 0.8], [1.0, 0.0]], [[0.2, 0.8], [0.0, 1.0]]]])  # [[.2, .8], [.5, .5]]
    # plus identity, halved: A1 = [[.75, .25], [.25, .75]], A2 = [[.6, .4], [.25, .75]]; A2 A1
    expected = torch.tensor([[[0.55, 0.45], [0.375, 0.625]]])
    assert torch.allclose(rollout([first, second]), expected)


def test_rows_sum_to_one_and_blocks_do_not_commute() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.rand(2, 3, 9, 9, generator=generator).softmax(-1) ** 3 for _ in range(2)]
    weights = [w / w.sum(-1, keepdim=True) for w in weights]
    assert torch.allclose(rollout(weights).sum(-1), torch.ones(2, 9))
    assert not torch.allclose(rollout(weights), rollout(weights[::-1]))


def test_class_attention_of_a_network_is_a_share() -> None:
    network = build(lambda: Bnas(CONFIGS["tiny"][0]), 0).eval()
    found = class_attention(network.attention_weights(torch.randn(3, 18, 8, 8, 8)))
    assert found.shape == (3, 2, 2, 2)
    assert found.sum(axis=(1, 2, 3)) == pytest.approx([1, 1, 1])
    assert (found > 0).all()


def test_even_attention_gives_an_even_map() -> None:
    assert class_attention([torch.full((1, 2, 9, 9), 1 / 9)]) == pytest.approx(np.full((1, 2, 2, 2), 1 / 8))


def test_nearest_gives_each_point_its_patch() -> None:
    patches = np.arange(64.0).reshape(4, 4, 4)
    mesh = to_mesh(patches, 32)
    assert mesh.shape == (32, 32, 32)
    for point in [(0, 0, 0), (7, 8, 31), (31, 15, 16)]:
        assert mesh[point] == patches[tuple(index // 8 for index in point)]


def test_periodic_interpolation_keeps_the_mean_and_crosses_the_border() -> None:
    patches = np.random.default_rng(0).random((4, 4, 4))
    mesh = to_mesh(patches, 32, "periodic")
    assert mesh.mean() == pytest.approx(patches.mean())
    rolled = to_mesh(np.roll(patches, 1, axis=2), 32, "periodic")
    assert np.roll(mesh, 8, axis=2) == pytest.approx(rolled)
    assert abs(mesh[..., 0] - mesh[..., -1]).max() < abs(patches[..., 0] - patches[..., -1]).max() / 4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rollout([]), "at least one block"),
        (lambda: class_attention([torch.full((1, 1, 8, 8), 1 / 8)]), "7 patches do not fill a cube"),
        (lambda: to_mesh(np.zeros((4, 4, 4)), 30), "mesh=30 is not a multiple of 4"),
    ],
    ids=["no block", "no cube", "no multiple"],
)
def test_bad_input_is_told(call, message: str) -> None:
    with pytest.raises(ModelInputError, match=message):
        call()
