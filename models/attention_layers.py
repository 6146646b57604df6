"""Attention layers over the atoms of many crystals: no work is done where a crystal has no atom.

Linear layers, norms and activations run on the atoms in one row after another, (T, D), and only attention on the padded
(B, N, D): crystals of 1 to 444 atoms share a batch, and what is padded is a small part of the work.

Shape letters: B crystals, N atoms (padded), T atoms of all crystals, D width, H heads.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional


@dataclass(frozen=True, eq=False)
class Packing:
    """Where the atoms of a padded batch stand.

    Attributes
    ----------
    shape
        B and N.
    places
        (T,) int64, flat index b * N + atom of each atom, ascending; None: nothing is padded.
    """

    shape: tuple[int, int]
    places: torch.Tensor | None

    @classmethod
    def of(cls, mask: torch.Tensor) -> "Packing":
        """From the (B, N) mask of atoms."""
        places = mask.flatten().nonzero()[:, 0]
        return cls((mask.shape[0], mask.shape[1]), None if len(places) == mask.numel() else places)

    def pack(self, padded: torch.Tensor) -> torch.Tensor:
        """(B, N, ...) to (T, ...)."""
        rows = padded.flatten(0, 1)
        return rows if self.places is None else rows.index_select(0, self.places)

    def pad(self, packed: torch.Tensor) -> torch.Tensor:
        """(T, ...) to (B, N, ...), 0 where there is no atom."""
        if self.places is not None:
            rows = packed.new_zeros(self.shape[0] * self.shape[1], *packed.shape[1:])
            packed = rows.index_copy(0, self.places, packed)
        return packed.unflatten(0, self.shape)


class AttentionLayer(nn.Module):
    """Pre-norm attention and feed-forward network; attention as softmax(q k / sqrt(d) + bias) v."""

    def __init__(self, width: int, heads: int, feed_forward: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, feed_forward),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(feed_forward, width),
            nn.Dropout(dropout),
        )

    def forward(self, atoms: torch.Tensor, bias: torch.Tensor, packing: Packing) -> torch.Tensor:
        """(T, D) and a bias that broadcasts to (B, H, N, N), to (T, D)."""
        parts = packing.pad(self.queries_keys_values(self.norm(atoms)))
        queries, keys, values = parts.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = packing.pack(self.attention(queries, keys, values, bias).transpose(1, 2)).flatten(1)
        atoms = atoms + functional.dropout(self.out(mixed), self.dropout, self.training)
        return atoms + self.feed_forward(atoms)

    def attention(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        """(B, H, N, D / H) each, to what the atoms read, of the same shape."""
        return functional.scaled_dot_product_attention(queries, keys, values, attn_mask=bias)
