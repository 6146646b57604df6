"""The trained BNAS of a workspace, ready to be asked."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from models.augmentation import IMAGES
from models.bnas import Bnas, BnasConfig, BnasInputs, prepare
from models.bnas_training import kelvin, log_labels, predict_images
from models.calibration import conformal_quantile
from models.composition_branch import composition_fractions
from models.exceptions import CheckpointError, ModelInputError
from models.map_checks import SEEDS, random_attention
from models.rollout import class_attention, to_mesh
from models.training import one_thread
from tasks.bnas_data import NAME
from tasks.logs import log_event
from tasks.model_store import load_model, load_state, model_folder
from tasks.workspace import Workspace

COVERAGE = 0.9
CALIBRATION_SPLITS = ("chemical-system", "family", "year", "random")  # the first of these that was run is used
PREPARED_AT_ONCE = 256  # grids, 2.4 MB each


@dataclass(frozen=True, eq=False)
class BnasPrediction:
    """Predicted critical temperatures of n materials, each field (n,) float64 in kelvin.

    Attributes
    ----------
    tc_kelvin
        Of the mean of ln(Tc + 1) over the networks and the images.
    tc_low_kelvin, tc_high_kelvin
        Interval whose coverage was calibrated on held-out groups.
    tc_image_spread_kelvin
        Standard deviation over the images, each the mean of the networks: 0 for a model that knows the symmetry, and
        where only one image was asked about.
    """

    tc_kelvin: np.ndarray
    tc_low_kelvin: np.ndarray
    tc_high_kelvin: np.ndarray
    tc_image_spread_kelvin: np.ndarray


@dataclass(frozen=True, eq=False)
class BnasEnsemble:
    """Trained networks with their calibrated half width of ln(Tc + 1)."""

    version: str
    config: BnasConfig
    networks: list[Bnas]
    half_width: float
    coverage: float

    def predict(
        self,
        grids: np.ndarray,
        device: str = "auto",
        *,
        images: int = IMAGES,
        formulas: Sequence[str] | None = None,
    ) -> BnasPrediction:
        """Ask all networks about grids (n, 18, 32, 32, 32), eV relative to E_F: all 24 images, or the first ones.

        ``formulas``, one a grid, are needed by networks that see the composition; others do not look at them.
        """
        if self.config.composition and formulas is None:
            raise ModelInputError(f"BNAS {self.version} sees compositions as well: give the formula of each grid")
        fractions = composition_fractions(formulas) if self.config.composition and formulas is not None else None
        parts = []
        with one_thread():
            for start in range(0, len(grids), PREPARED_AT_ONCE):
                rows = slice(start, start + PREPARED_AT_ONCE)
                chunk = BnasInputs(self._prepare(grids[rows]), None if fractions is None else fractions[rows])
                parts.append(predict_images(self.networks, chunk, device, images, self._tell).mean(axis=0))
        answers = np.concatenate(parts, axis=1) if parts else np.empty((1, 0))
        label = answers.mean(axis=0)
        return BnasPrediction(
            tc_kelvin=kelvin(label),
            tc_low_kelvin=kelvin(label - self.half_width),
            tc_high_kelvin=kelvin(label + self.half_width),
            tc_image_spread_kelvin=kelvin(answers).std(axis=0),
        )

    def rollout(self, grid: np.ndarray, method: Literal["nearest", "periodic"] = "nearest") -> np.ndarray:
        """Where the networks look: attention rollout of one grid (18, 32, 32, 32), mean over the networks.

        Returns
        -------
        numpy.ndarray
            (32, 32, 32) float64 on the grid's k points, mean 1.
        """
        attention = self.patch_attention(grid).mean(axis=0)
        return to_mesh(attention / attention.mean(), grid.shape[-1], method)

    def patch_attention(self, grid: np.ndarray) -> np.ndarray:
        """Attention rollout of one grid (18, 32, 32, 32) in each network: (networks, p, p, p), sum 1 over patches."""
        energies = self._prepare(grid[None])
        with one_thread():
            maps = [class_attention(network.cpu().attention_weights(energies))[0] for network in self.networks]
        return np.stack(maps)

    def random_attention(self, grids: np.ndarray, seeds: int = SEEDS) -> np.ndarray:
        """Rollouts of grids (n, 18, 32, 32, 32) in networks with fresh random weights: (seeds, n, p, p, p)."""
        with one_thread():
            return random_attention(self.config, self._prepare(grids), seeds)

    def _tell(self, note: str) -> None:
        log_event(note, level=logging.WARNING, item=f"BNAS {self.version}")

    def _prepare(self, grids: np.ndarray) -> torch.Tensor:
        return prepare(torch.from_numpy(np.ascontiguousarray(grids, dtype=np.float32)), self.config)


def load_bnas(workspace: Workspace, version: str | None = None, coverage: float = COVERAGE) -> BnasEnsemble:
    """Load a trained ensemble, the latest if no version is named, with intervals of the given coverage.

    Raises
    ------
    MissingStageError
        If there is none.
    CheckpointError
        If weights are damaged or belong to another architecture.
    ModelInputError
        If the held-out materials are too few for this coverage.
    """
    stored = load_model(workspace, NAME, version)
    try:
        config = BnasConfig.model_validate(stored.config["network"])
    except (KeyError, ValueError) as error:
        raise CheckpointError(
            f"The configuration of BNAS {stored.version} is not one of this network: {error}"
        ) from error
    networks = []
    for number, state in enumerate(stored.members):
        network = Bnas(config)
        load_state(network, state, f"BNAS {stored.version}, network {number}")
        networks.append(network.eval())
    table = workspace.read_table(f"{model_folder(NAME, stored.version)}/predictions.parquet")
    half_width = conformal_quantile(calibration_residuals(table)[1], coverage)
    return BnasEnsemble(stored.version, config, networks, half_width, coverage)


def calibration_residuals(table: pa.Table) -> tuple[str, np.ndarray, list[str]]:
    """Split, errors of ln(Tc + 1) and folds of BNAS's out-of-fold predictions (PREDICTIONS) that calibrate it."""
    own = table.filter(pc.equal(table["model"], NAME))
    ran = own["split"].unique().to_pylist()
    split = next(name for name in CALIBRATION_SPLITS if name in ran)
    chosen = own.filter(pc.equal(own["split"], split))
    measured, predicted = (chosen[name].to_numpy() for name in ("tc_kelvin", "tc_predicted_kelvin"))
    errors = log_labels(predicted).astype(np.float64) - log_labels(measured)
    return split, errors, chosen["fold"].to_pylist()
