"""Which atoms speak for superconductivity: class activation of S2SNet, atom by atom.

Gradient times activation, Selvaraju et al., "Grad-CAM", ICCV 2017, on the embeddings of the atoms before they are
aggregated.
"""

from collections.abc import Sequence

import numpy as np
import torch

from models.crystals import CrystalGraph, collate
from models.s2snet import S2SNet


def atom_weights(network: S2SNet, crystal: CrystalGraph) -> np.ndarray:
    """(atoms,) float64 in [-1, 1]: positive atoms raise the logit, negative ones lower it, the strongest has size 1.

    Each weight is the sum over the embedding of activation times the gradient of the logit, divided by the largest
    size among the atoms; all are 0 where no atom matters. The network is in evaluation mode afterwards.
    """
    network.eval()
    batch = collate([crystal]).to(next(network.parameters()).device)
    with torch.no_grad():
        embeddings = network.encode(batch)
    embeddings = embeddings.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(network.classify(embeddings, batch).sum(), embeddings)
    return _normalise((gradient * embeddings.detach()).sum(dim=-1)[0].double().cpu().numpy())


def mean_atom_weights(networks: Sequence[S2SNet], crystal: CrystalGraph) -> np.ndarray:
    """(atoms,) mean of the weights over networks, the strongest again of size 1."""
    return _normalise(np.mean([atom_weights(network, crystal) for network in networks], axis=0))


def _normalise(weights: np.ndarray) -> np.ndarray:
    largest = np.abs(weights).max()
    return np.asarray(weights / largest) if largest > 0 else np.zeros_like(weights)
