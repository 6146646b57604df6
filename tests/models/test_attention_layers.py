"""Packed atoms: what is padded costs nothing and says nothing."""

import torch

from models.attention_layers import AttentionLayer, Packing
from models.training import build

MASK = torch.tensor([[True, True, False], [True, False, False], [True, True, True]])


def test_packed_atoms_come_back_to_their_places_and_padding_is_zero():
    atoms = torch.arange(1.0, 10.0).view(3, 3, 1)
    packing = Packing.of(MASK)
    packed = packing.pack(atoms)
    assert packed[:, 0].tolist() == [1, 2, 4, 7, 8, 9]
    assert torch.equal(packing.pad(packed), atoms * MASK.unsqueeze(-1))
    full = Packing.of(torch.ones(2, 3, dtype=torch.bool))
    assert full.places is None
    assert torch.equal(full.pad(full.pack(atoms[:2])), atoms[:2])


def test_a_layer_gives_each_crystal_what_it_gets_alone_with_the_same_gradients():
    layer = build(lambda: AttentionLayer(8, 2, 16, dropout=0.0), 0)
    atoms = torch.randn(3, 3, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    bias = torch.zeros(3, 1, 3, 3).masked_fill((MASK[:, :, None] & ~MASK[:, None, :])[:, None], -torch.inf)
    packing = Packing.of(MASK)
    found = packing.pad(layer(packing.pack(atoms), bias, packing))
    (gradient,) = torch.autograd.grad(found.square().sum(), atoms)
    for row, count in enumerate(MASK.sum(dim=1).tolist()):
        own = atoms[row, :count].detach().requires_grad_()
        alone = layer(own, torch.zeros(1, 1, count, count), Packing((1, count), None))
        torch.testing.assert_close(found[row, :count], alone)
        torch.testing.assert_close(gradient[row, :count], torch.autograd.grad(alone.square().sum(), own)[0])
    assert gradient[~MASK].abs().sum() == 0
