"""The composition beside the bands: Magpie's descriptors in units of their spread, and a layer on them.

Shape letters: B materials, W width of the branch.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.baselines import element_fractions
from models.composition_descriptors import descriptor_count, element_properties, fraction_descriptors
from models.crystals import ELEMENTS
from models.exceptions import ModelInputError

SAME = 1e-6  # spread of a descriptor that does not vary
FAR = 5.0  # descriptors beyond so many deviations count as this far


class CompositionBranch(nn.Module):
    """Standardised composition descriptors through one layer, (B, 95) atomic fractions to (B, W)."""

    table: Tensor  # (97, P)
    mean: Tensor  # (descriptors,)
    deviation: Tensor  # (descriptors,)

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        count = descriptor_count()
        self.register_buffer("table", torch.from_numpy(element_properties().copy()))
        self.register_buffer("mean", torch.zeros(count))
        self.register_buffer("deviation", torch.ones(count))
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(count, width)

    def fit(self, fractions: Tensor) -> None:
        """Take mean and deviation from the training materials; a descriptor that does not vary keeps its size."""
        deviation, self.mean = torch.std_mean(fraction_descriptors(fractions, self.table), dim=0, correction=0)
        self.deviation = torch.where(deviation > SAME, deviation, torch.ones_like(deviation))

    def forward(self, fractions: Tensor) -> Tensor:
        """(B, W) of (B, 95) atomic fractions."""
        found = (fraction_descriptors(fractions, self.table) - self.mean) / self.deviation
        return functional.gelu(self.linear(self.dropout(found.clamp(-FAR, FAR))))


def composition_fractions(formulas: Sequence[str]) -> Tensor:
    """(n, 95) float32 atomic fractions, column Z - 1; ModelInputError for no formula or an element beyond Am."""
    fractions = np.stack([element_fractions(formula) for formula in formulas]) if formulas else np.empty((0, ELEMENTS))
    beyond = [formula for formula, row in zip(formulas, fractions, strict=True) if row[ELEMENTS:].any()]
    if beyond:
        raise ModelInputError(
            f"{beyond[0]!r} holds an element beyond atomic number {ELEMENTS}, which the networks do not know"
        )
    return torch.from_numpy(fractions[:, :ELEMENTS].astype(np.float32))
