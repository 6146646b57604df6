"""BNAS trained on grids and asked about them, whatever stores the grids and the weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from models.augmentation import IMAGES, all_images, random_images
from models.bnas import Bnas, BnasConfig
from models.exceptions import ModelInputError
from models.training import AfterEpoch, Recipe, TrainingLog, build, fit, resolve_device

PREDICTION_BATCH = 64


@dataclass(frozen=True, eq=False)
class GridBatches:
    """Training samples on the device, each seen as one random image of 24 a step.

    ``inputs`` (n, C, M, M, M) as ``models.bnas.prepare`` gives them; ``labels`` (n,) ln(Tc/K + 1).
    """

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """Give the number of materials."""
        return len(self.inputs)

    def __call__(self, rows: Tensor, generator: torch.Generator, device: torch.device) -> tuple[Tensor, Tensor]:
        """Give one random image of each of the rows, and their labels."""
        rows = rows.to(self.inputs.device)
        images = random_images(self.inputs[rows], generator)
        return images.to(device), self.labels[rows].to(device)


def train_network(
    config: BnasConfig,
    recipe: Recipe,
    inputs: Tensor,
    tc_kelvin: np.ndarray,
    *,
    device: str = "auto",
    checkpoint: Path | None = None,
    advance: Callable[[int], None] = lambda _count: None,
    after_epoch: AfterEpoch | None = None,
) -> tuple[Bnas, TrainingLog]:
    """Train one BNAS from the start, or from its checkpoint.

    Parameters
    ----------
    inputs
        (n, C, M, M, M) as ``models.bnas.prepare`` gives them.
    tc_kelvin
        (n,) measured; 0 for a material that is no superconductor.

    Raises
    ------
    ModelInputError
        For labels that are negative or not finite, or do not fit the inputs in number.
    """
    labels = torch.from_numpy(log_labels(tc_kelvin))
    if len(labels) != len(inputs):
        raise ModelInputError(f"{len(labels)} labels for {len(inputs)} grids")
    place = torch.device(resolve_device(device))
    network = build(lambda: Bnas(config), recipe.seed)
    if config.centred:
        network.start_at(float(labels.mean()))
    batches = GridBatches(inputs.to(place), labels.to(place))
    log = fit(
        network,
        squared_error,
        batches,
        recipe,
        device=device,
        checkpoint=checkpoint,
        advance=advance,
        after_epoch=after_epoch,
    )
    return network, log


def log_labels(tc_kelvin: np.ndarray) -> np.ndarray:
    """ln(Tc/K + 1), (n,) float32; ModelInputError for a negative or missing Tc."""
    tc = np.asarray(tc_kelvin, dtype=np.float64)
    if not (np.isfinite(tc).all() and (tc >= 0).all()):
        raise ModelInputError("Critical temperatures must be finite and not below 0 kelvin")
    return np.log1p(tc).astype(np.float32)


def squared_error(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean squared error of the label over a batch."""
    images, labels = batch
    return nn.functional.mse_loss(network(images), labels)


@torch.no_grad()
def predict_images(networks: Sequence[Bnas], inputs: Tensor, device: str = "auto") -> np.ndarray:
    """Ask each network about each of the 24 images: (networks, 24, n) float64, ln(Tc/K + 1) as it comes out.

    The networks must be in evaluation mode; they are moved to the device.
    """
    place = torch.device(resolve_device(device))
    answers = np.empty((len(networks), IMAGES, len(inputs)))
    for member, network in enumerate(networks):
        network.to(place)
        for start in range(0, len(inputs), PREDICTION_BATCH):
            batch = inputs[start : start + PREDICTION_BATCH].to(place)
            for number, image in enumerate(all_images(batch)):
                answers[member, number, start : start + len(batch)] = network(image).double().cpu().numpy()
    return answers


def kelvin(label: np.ndarray) -> np.ndarray:
    """Tc in kelvin of ln(Tc/K + 1); labels below 0 are 0 K."""
    return np.asarray(np.expm1(np.maximum(label, 0.0)))
