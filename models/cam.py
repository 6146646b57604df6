"""Which atoms speak for superconductivity: class activation of S2SNet, atom by atom.

Gradient times activation, Selvaraju et al., "Grad-CAM", ICCV 2017, on the embeddings of the atoms before they are
aggregated.
"""

from collections.abc import Sequence

import numpy as np
import torch

from models.crystals import CrystalGraph, collate
from models.s2snet import S2SNet


def atom_weights(networks: Sequence[S2SNet], crystal: CrystalGraph) -> np.ndarray:
    """(atoms,) float64 in [-1, 1]: positive atoms raise the logit, negative ones lower it, the strongest has size 1.

    The contributions of each atom, averaged over the networks and divided by the largest size among the atoms; all
    are 0 where no atom matters. The networks are in evaluation mode afterwards.
    """
    weights = np.mean([contributions(network, crystal) for network in networks], axis=0)
    largest = np.abs(weights).max()
    return np.asarray(weights / largest) if largest > 0 else np.zeros_like(weights)


def contributions(network: S2SNet, crystal: CrystalGraph) -> np.ndarray:
    """(atoms,) float64: sum over an atom's embedding of activation times the gradient of the logit."""
    network.eval()
    batch = collate([crystal]).to(next(network.parameters()).device)
    with torch.no_grad():
        embeddings = network.encode(batch)
    embeddings = embeddings.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(network.classify(embeddings, batch).sum(), embeddings)
    return np.asarray((gradient * embeddings.detach()).sum(dim=-1)[0].double().cpu().numpy())
