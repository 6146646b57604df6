"""The trained S2SNet of a workspace, ready to be asked."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pymatgen.core import Structure

from models.cam import atom_weights
from models.crystals import CrystalGraph, crystal_arrays, graph
from models.exceptions import CheckpointError
from models.reliability import Calibration
from models.s2snet import S2SNet, S2SNetConfig
from models.s2snet_training import predict_logits
from models.training import one_thread, resolve_device
from tasks.model_store import load_model, load_state
from tasks.s2snet_data import NAME
from tasks.workspace import Workspace


@dataclass(frozen=True, eq=False)
class S2SPrediction:
    """Probabilities of superconductivity of n crystals, each field (n,) float64.

    Attributes
    ----------
    probability
        Calibrated, of the mean logit of the networks.
    probability_low, probability_high
        Smallest and largest calibrated probability among the networks.
    """

    probability: np.ndarray
    probability_low: np.ndarray
    probability_high: np.ndarray


@dataclass(frozen=True, eq=False)
class S2SEnsemble:
    """Trained networks with the calibration of their logits."""

    version: str
    config: S2SNetConfig
    networks: list[S2SNet]
    calibration: Calibration

    def predict(self, structures: Sequence[Structure]) -> S2SPrediction:
        """Ask all networks about ordered crystals; ModelInputError for one that they cannot take."""
        return self.predict_graphs([self.graph(structure) for structure in structures])

    def predict_graphs(self, graphs: Sequence[CrystalGraph], device: str = "auto") -> S2SPrediction:
        """Ask all networks about crystals as ``graph`` gives them, many at a time."""
        place = resolve_device(device)
        with one_thread():
            logits = np.array([predict_logits(network.to(place), graphs) for network in self.networks])
        members = self.calibration(logits)
        return S2SPrediction(self.calibration(logits.mean(axis=0)), members.min(axis=0), members.max(axis=0))

    def atom_weights(self, structure: Structure) -> np.ndarray:
        """(atoms,) float64 in [-1, 1], in the order of the sites: which atoms raise or lower the probability."""
        return atom_weights([network.cpu() for network in self.networks], self.graph(structure))

    def graph(self, structure: Structure) -> CrystalGraph:
        """What the networks take of an ordered crystal; ModelInputError where they cannot."""
        return graph(crystal_arrays(structure), self.config.radius)


def load_s2snet(workspace: Workspace, version: str | None = None) -> S2SEnsemble:
    """Load a trained ensemble, the latest if no version is named.

    Raises
    ------
    MissingStageError
        If there is none.
    CheckpointError
        If weights or configuration are damaged or belong to another architecture.
    """
    stored = load_model(workspace, NAME, version)
    try:
        config = S2SNetConfig.model_validate(stored.config["network"])
        calibration = Calibration(**stored.config["calibration"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"The configuration of S2SNet {stored.version} is not one of this network: {error}"
        ) from error
    networks = []
    for number, state in enumerate(stored.members):
        network = S2SNet(config)
        load_state(network, state, f"S2SNet {stored.version}, network {number}")
        networks.append(network.eval())
    return S2SEnsemble(stored.version, config, networks, calibration)
