"""Attention rollout: which patches of the reciprocal cell the class token listens to (Abnar and Zuidema, ACL 2020)."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from scipy.ndimage import zoom
from torch import Tensor

from models.exceptions import ModelInputError


def rollout(weights: Sequence[Tensor]) -> Tensor:
    """Flow of attention from each token to each input token.

    Parameters
    ----------
    weights
        (B, H, T, T) of each block, first block first; rows sum to 1.

    Returns
    -------
    Tensor
        (B, T, T), rows sum to 1: the mean over heads plus the identity (the residual), rows renormalised, multiplied
        over the blocks, later ones from the left.
    """
    if not weights:
        raise ModelInputError("Rollout needs the attention weights of at least one block")
    size = weights[0].shape[-1]
    flow = torch.eye(size, dtype=weights[0].dtype, device=weights[0].device).expand(len(weights[0]), size, size)
    for block in weights:
        mixed = block.mean(dim=1) + torch.eye(size, dtype=block.dtype, device=block.device)
        flow = (mixed / mixed.sum(dim=-1, keepdim=True)) @ flow
    return flow


def class_attention(weights: Sequence[Tensor]) -> np.ndarray:
    """(B, n, n, n) share of each patch in the class token's rollout, the class token itself left out, sum 1."""
    row = rollout(weights)[:, 0, 1:].double().cpu().numpy()
    side = round(row.shape[1] ** (1 / 3))
    if side**3 != row.shape[1]:
        raise ModelInputError(f"{row.shape[1]} patches do not fill a cube")
    row = row / row.sum(axis=1, keepdims=True)
    return np.asarray(row.reshape(-1, side, side, side))


def to_mesh(patches: np.ndarray, mesh: int, method: Literal["nearest", "periodic"] = "nearest") -> np.ndarray:
    """Bring patch values (..., n, n, n) to k points (..., mesh, mesh, mesh), mesh a multiple of n.

    ``nearest`` gives each k point its patch's value. ``periodic`` interpolates linearly between the centres of the
    patches, across the border of the reciprocal cell too. Both keep the mean.
    """
    side = patches.shape[-1]
    if mesh % side:
        raise ModelInputError(f"{mesh=} is not a multiple of {side} patches")
    factor = mesh // side
    steps = (1,) * (patches.ndim - 3) + (factor,) * 3
    if method == "nearest":
        return np.asarray(np.kron(patches, np.ones(steps)))
    return np.asarray(zoom(patches, steps, order=1, mode="grid-wrap", grid_mode=True))
