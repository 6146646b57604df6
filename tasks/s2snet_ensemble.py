"""The trained S2SNet of a workspace, ready to be asked."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pymatgen.core import Structure

from models.attributions import (
    Attribution,
    Parts,
    head_parts,
    integrated_gradients,
    path_contributions,
    random_atom_weights,
)
from models.blending import Blend
from models.cam import atom_weights
from models.crystal_trees import CrystalTrees, TreeAttribution, attribute_trees, crystal_features
from models.crystals import ELEMENTS, CrystalGraph, crystal_arrays, graph
from models.exceptions import CheckpointError
from models.map_checks import FIRST_SEED, SEEDS
from models.reliability import AnyCalibration, from_document
from models.s2snet import S2SNet, S2SNetConfig
from models.s2snet_training import predict_answers
from models.training import build, one_thread, resolve_device
from tasks.model_store import load_model, load_state, model_folder
from tasks.s2snet_data import NAME
from tasks.workspace import Workspace


@dataclass(frozen=True, eq=False)
class S2SPrediction:
    """Probabilities of superconductivity of n crystals, each field (n,) float64.

    Attributes
    ----------
    probability
        Calibrated, of the mean blended logit of the networks and their trees.
    probability_low, probability_high
        Smallest and largest calibrated probability among the networks, each with its trees.
    tc_kelvin
        Critical temperature as the crystal alone gives it, kelvin; NaN where the training had none.
    """

    probability: np.ndarray
    probability_low: np.ndarray
    probability_high: np.ndarray
    tc_kelvin: np.ndarray


@dataclass(frozen=True, eq=False)
class S2SEnsemble:
    """Trained networks, the trees that are blended with each, and the calibration of the blended logits.

    Attributes
    ----------
    trees
        As many as networks, or none.
    blend, tc_blend
        The trees' shares in logits and in ln(Tc/K + 1).
    """

    version: str
    config: S2SNetConfig
    networks: list[S2SNet]
    calibration: AnyCalibration
    trees: list[CrystalTrees]
    blend: Blend
    tc_blend: Blend

    @property
    def trees_share(self) -> float:
        """Share of the trees in the logit of the probability, 0 to 1; the networks have the rest."""
        return self.blend.share if self.trees else 0.0

    def predict(self, structures: Sequence[Structure]) -> S2SPrediction:
        """Ask all networks about ordered crystals; ModelInputError for one that they cannot take."""
        return self.predict_graphs([self.graph(structure) for structure in structures])

    def predict_graphs(self, graphs: Sequence[CrystalGraph], device: str = "auto") -> S2SPrediction:
        """Ask all networks about crystals as ``graph`` gives them, many at a time."""
        place = resolve_device(device)
        with one_thread():
            answers = np.array([predict_answers(network.to(place), graphs) for network in self.networks])
        logits, log_tc = answers[..., 0], answers[..., 1]
        if self.trees:
            features = np.array([crystal_features(graph.arrays) for graph in graphs])
            logits = self.blend(logits, np.array([trees.logits(features) for trees in self.trees]))
            of_trees = np.array([trees.log_tc(features) for trees in self.trees])
            log_tc = of_trees if np.isnan(log_tc).all() else self.tc_blend(log_tc, of_trees)
        members = self.calibration(logits)
        tc = np.expm1(np.maximum(log_tc.mean(axis=0), 0.0))
        return S2SPrediction(self.calibration(logits.mean(axis=0)), members.min(axis=0), members.max(axis=0), tc)

    def atom_weights(self, structure: Structure) -> np.ndarray:
        """(atoms,) float64 in [-1, 1], in the order of the sites: which atoms raise or lower the networks' logit."""
        return atom_weights([network.cpu() for network in self.networks], self.graph(structure))

    def atom_weights_each(self, structure: Structure) -> list[np.ndarray]:
        """The same of each network alone."""
        return [atom_weights([network.cpu()], self.graph(structure)) for network in self.networks]

    def attribute(self, structure: Structure) -> Attribution:
        """Integrated gradients of the networks' logit of an ordered crystal, in the order of its sites."""
        with one_thread():
            return integrated_gradients(self.networks, self.graph(structure))

    def random_atom_weights(self, structure: Structure, seeds: int = SEEDS) -> np.ndarray:
        """(seeds, atoms) ``atom_weights`` of networks that have learnt nothing."""
        return random_atom_weights(self.networks, self.graph(structure), seeds)

    def references(self, structures: Sequence[Structure]) -> list[Parts]:
        """What ``path_contributions`` compares with: a few crystals such as those of the training set."""
        graphs = [self.graph(structure) for structure in structures]
        with one_thread():
            return [head_parts(network, graphs) for network in self.networks]

    def path_contributions(self, structure: Structure, references: Sequence[Parts]) -> dict[str, float]:
        """How much atoms, lattice and composition add to the networks' logit, compared with the references."""
        return path_contributions(self.networks, self.graph(structure), references)

    def tree_contributions(self, structure: Structure) -> TreeAttribution | None:
        """What each descriptor adds through the trees to the blended logit, before calibration; None without."""
        if self.trees_share == 0:
            return None
        return attribute_trees(self.trees, crystal_features(crystal_arrays(structure)), self.trees_share)

    def element_embeddings(self) -> np.ndarray:
        """(95, networks x width) float64: what an atom of each element, Z = 1 to 95, starts from."""
        return _embed_elements(self.networks)

    def random_element_embeddings(self, seeds: int = SEEDS) -> list[np.ndarray]:
        """The same of ensembles that have learnt nothing."""
        count = len(self.networks)
        starts = range(FIRST_SEED, FIRST_SEED + seeds * count, count)
        return [
            _embed_elements([build(lambda: S2SNet(self.config), seed) for seed in range(start, start + count)])
            for start in starts
        ]

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
        calibration = from_document(stored.config["calibration"])
        shares = stored.config.get("shares")  # none in models from before the blend
        blends = [Blend((shares or {}).get(name) or 0.0) for name in ("logit", "tc")]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"The configuration of S2SNet {stored.version} is not one of this network: {error}"
        ) from error
    networks = []
    for number, state in enumerate(stored.members):
        network = S2SNet(config)
        load_state(network, state, f"S2SNet {stored.version}, network {number}")
        networks.append(network.eval())
    trees = [_load_trees(workspace, stored.version, number) for number in range(len(networks))] if shares else []
    return S2SEnsemble(stored.version, config, networks, calibration, trees, *blends)


def _load_trees(workspace: Workspace, version: str, number: int) -> CrystalTrees:
    file = f"{model_folder(NAME, version)}/trees-{number}.json"
    try:
        return CrystalTrees(**workspace.read_json(file))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{file} in the workspace {workspace.url} does not hold trees: {error}") from error


def _embed_elements(networks: Sequence[S2SNet]) -> np.ndarray:
    numbers = torch.arange(1, ELEMENTS + 1)
    with torch.no_grad():
        return np.concatenate([network.embed_elements(numbers).double().numpy() for network in networks], axis=1)
