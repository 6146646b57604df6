"""Checks of attention maps against computations by hand, by lot and by SciPy."""

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from models.bnas import CONFIGS
from models.exceptions import ModelInputError
from models.map_checks import (
    mean_agreement,
    patch_symmetry,
    random_attention,
    rank_correlation,
    symmetric_share,
    symmetrise,
)
from models.rollout import to_mesh

MESH = 12
IDENTITY = np.eye(3, dtype=int)[None]
INVERSION = np.concatenate([IDENTITY, -IDENTITY])
CUBIC = np.array(
    [
        np.diag(signs) @ np.eye(3, dtype=int)[list(order)]
        for order in itertools.permutations(range(3))
        for signs in itertools.product((1, -1), repeat=3)
    ]
)
WAVES = 2 * np.pi * np.indices((MESH,) * 3) / MESH


def random_map(seed: int, side: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).random((side,) * 3)


def test_a_symmetric_band_keeps_everything() -> None:
    band = np.cos(WAVES).sum(axis=0)
    assert symmetric_share(band, CUBIC) == pytest.approx(1.0, abs=1e-12)
    np.testing.assert_allclose(symmetrise(band, CUBIC), band, atol=1e-12)


def test_a_pattern_that_changes_sign_keeps_nothing() -> None:
    assert symmetric_share(np.sin(WAVES[0]), INVERSION) == pytest.approx(0.0, abs=1e-12)
    assert symmetric_share(np.sin(WAVES[0]), IDENTITY) == pytest.approx(1.0)


@pytest.mark.parametrize(("point", "images"), [((0, 0, 0), 1), ((1, 0, 0), 6), ((2, 1, 0), 24), ((3, 2, 1), 48)])
def test_one_point_keeps_one_part_in_its_images(point: tuple[int, int, int], images: int) -> None:
    values = np.zeros((MESH,) * 3)
    values[point] = 1
    count = MESH**3
    assert symmetric_share(values, CUBIC) == pytest.approx((1 / images - 1 / count) / (1 - 1 / count))


def test_the_share_is_a_squared_correlation_and_a_mean_square_difference() -> None:
    values = to_mesh(random_map(0), MESH)
    found, share = symmetrise(values, CUBIC), symmetric_share(values, CUBIC)
    assert share == pytest.approx(np.corrcoef(values.ravel(), found.ravel())[0, 1] ** 2)
    assert share == pytest.approx(1 - np.mean((values - found) ** 2) / values.var())
    assert share == pytest.approx(symmetric_share(3 - 7 * values, CUBIC))  # neither scale nor zero matter


def test_equal_values_have_no_pattern() -> None:
    assert symmetric_share(np.full((MESH,) * 3, 0.1), CUBIC) is None


def test_shuffled_patches_are_the_mean_over_shuffles() -> None:
    values, generator = random_map(1).ravel(), np.random.default_rng(2)
    shares = [symmetric_share(to_mesh(generator.permutation(values).reshape(4, 4, 4), MESH), CUBIC) for _ in range(300)]
    spread = np.std(shares) / np.sqrt(len(shares))
    assert np.mean(shares) == pytest.approx(patch_symmetry(4, MESH, CUBIC).shuffled, abs=4 * spread)


def test_no_map_in_patches_is_more_symmetric_than_the_most_and_one_is_as_much() -> None:
    most = patch_symmetry(4, MESH, INVERSION).most
    assert 0.5 < most < 1
    shares = []
    for seed in range(20):
        values = random_map(seed)
        for _ in range(60):  # power iteration: average over the group, back to patches
            values = symmetrise(to_mesh(values, MESH), INVERSION).reshape(4, 3, 4, 3, 4, 3).mean(axis=(1, 3, 5))
            values = (values - values.mean()) / values.std()
        shares.append(symmetric_share(to_mesh(values, MESH), INVERSION))
    assert max(shares) <= most + 1e-9
    assert max(shares) == pytest.approx(most, abs=1e-3)


def test_without_rotations_every_map_is_symmetric() -> None:
    found = patch_symmetry(4, MESH, IDENTITY)
    assert (found.shuffled, found.most) == pytest.approx((1, 1))


def test_rank_correlation_is_that_of_scipy_with_ties() -> None:
    one, other = random_map(3).round(1), random_map(4).round(1)
    assert rank_correlation(one, other) == pytest.approx(spearmanr(one.ravel(), other.ravel()).statistic)
    assert rank_correlation(one, np.exp(one)) == pytest.approx(1)
    assert rank_correlation(one, -one) == pytest.approx(-1)
    assert rank_correlation(one, np.ones((4, 4, 4))) is None


def test_agreement_is_the_mean_over_pairs() -> None:
    maps = [random_map(5), random_map(5) ** 3, -random_map(5)]
    assert mean_agreement(maps) == pytest.approx((1 - 1 - 1) / 3)
    assert mean_agreement(maps[:1]) is None


def test_random_networks_are_the_same_each_time_and_differ_from_each_other() -> None:
    config, energies = CONFIGS["tiny"][0], torch.randn(2, 18, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    maps = random_attention(config, energies, seeds=3)
    assert maps.shape == (3, 2, 2, 2, 2)
    assert maps.sum(axis=(2, 3, 4)) == pytest.approx(np.ones((3, 2)))
    np.testing.assert_array_equal(random_attention(config, energies, seeds=2), maps[:2])
    assert not np.allclose(maps[0], maps[1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: symmetric_share(np.zeros((4, 4, 3)), CUBIC), r"shape \(4, 4, 3\) are not on a cube"),
        (lambda: symmetric_share(random_map(0), np.empty((0, 3, 3))), "at least the identity"),
        (lambda: patch_symmetry(5, 12, CUBIC), "mesh=12 is not a multiple"),
        (lambda: rank_correlation(np.zeros(3), np.zeros(4)), "3 and 4 values cannot be compared"),
    ],
    ids=["no cube", "no group", "no multiple", "sizes"],
)
def test_bad_input_is_told(call, message: str) -> None:
    with pytest.raises(ModelInputError, match=message):
        call()
