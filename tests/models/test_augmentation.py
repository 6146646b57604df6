"""The 24 images are what the physics says: periodic, Γ kept, a group on energies with E(k) = E(-k)."""

import itertools

import pytest
import torch
from torch import Tensor

from models.augmentation import IMAGES, all_images, image, random_images, reverse

MESH = 6


def energies_with_time_reversal(seed: int = 0) -> Tensor:
    """Random (2, 6, 6, 6) with E(k) = E(-k)."""
    raw = torch.randn(2, MESH, MESH, MESH, generator=torch.Generator().manual_seed(seed))
    return (raw + reverse(raw, (0, 1, 2))) / 2


def as_set(images: list[Tensor]) -> set[bytes]:
    return {item.contiguous().numpy().tobytes() for item in images}


def test_24_different_images_the_first_is_the_grid() -> None:
    energies = energies_with_time_reversal()
    images = list(all_images(energies))
    assert len(images) == IMAGES == len(as_set(images)) == 24
    assert torch.equal(images[0], energies)


def test_sign_change_maps_index_i_to_minus_i_modulo_the_mesh() -> None:
    energies = torch.arange(MESH**3, dtype=torch.float32).reshape(1, MESH, MESH, MESH)
    turned = reverse(energies, (1,))
    for i, j, k in itertools.product(range(MESH), repeat=3):
        assert turned[0, i, j, k] == energies[0, i, (-j) % MESH, k]
    assert torch.equal(turned[0, 0, 0, 0], energies[0, 0, 0, 0])


def test_images_are_closed_under_composition() -> None:
    energies = energies_with_time_reversal()
    known = as_set(list(all_images(energies)))
    for first, second in itertools.product(range(IMAGES), repeat=2):
        assert image(image(energies, first), second).contiguous().numpy().tobytes() in known


def test_all_48_operations_give_no_more_than_the_24_images() -> None:
    energies = energies_with_time_reversal()
    known = as_set(list(all_images(energies)))
    flips = [axes for count in range(4) for axes in itertools.combinations(range(3), count)]
    operations = [
        reverse(energies.permute(0, *(axis + 1 for axis in permutation)), axes)
        for permutation in itertools.permutations(range(3))
        for axes in flips
    ]
    assert len(operations) == 48
    assert as_set(operations) == known


def test_images_keep_time_reversal_and_the_energies() -> None:
    energies = energies_with_time_reversal()
    for number in range(IMAGES):
        found = image(energies, number)
        assert torch.allclose(found, reverse(found, (0, 1, 2)))
        assert torch.equal(found.flatten().sort().values, energies.flatten().sort().values)


def test_cubic_bands_are_their_own_images() -> None:
    k = (2 * torch.pi * torch.arange(MESH) / MESH).cos()
    cubic = (k[:, None, None] + k[None, :, None] + k[None, None, :])[None]
    assert all(torch.allclose(found, cubic, atol=1e-6) for found in all_images(cubic))


def test_images_of_a_thinned_grid_are_thinned_images() -> None:
    energies = energies_with_time_reversal()
    for number in range(IMAGES):
        assert torch.equal(image(energies, number)[..., ::2, ::2, ::2], image(energies[..., ::2, ::2, ::2], number))


def test_bands_and_samples_are_never_mixed() -> None:
    batch = torch.arange(6.0).reshape(3, 2, 1, 1, 1).expand(3, 2, 4, 4, 4)
    found = random_images(batch, torch.Generator().manual_seed(0))
    assert torch.equal(found, batch)


def test_random_images_are_images_of_their_own_sample_and_follow_the_generator() -> None:
    batch = torch.stack([energies_with_time_reversal(seed) for seed in range(64)])
    one, two = (random_images(batch, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(one, two)
    drawn = set()
    for sample, found in zip(batch, one, strict=True):
        numbers = [number for number in range(IMAGES) if torch.equal(image(sample, number), found)]
        assert len(numbers) == 1
        drawn.add(numbers[0])
    assert len(drawn) > 18


@pytest.mark.parametrize("number", range(24))
def test_image_has_the_shape_of_the_grid(number: int) -> None:
    assert image(torch.zeros(3, 2, 4, 4, 4), number).shape == (3, 2, 4, 4, 4)
