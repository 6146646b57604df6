"""BNAS trained on grids and asked about them, whatever stores the grids and the weights."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from models.augmentation import IMAGES, image, some_images
from models.bnas import Bnas, BnasConfig, BnasInputs
from models.checkpoints import content_hash
from models.exceptions import ModelInputError
from models.training import (
    EVALUATION_BATCH,
    AfterEpoch,
    Extras,
    Portions,
    Recipe,
    TrainingLog,
    build,
    fit,
    resolve_device,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class GridBatches:
    """Training samples, held where ``inputs`` lies: on the device where they fit.

    ``inputs`` n materials, or their (n, C, M, M, M) alone as ``models.bnas.prepare`` gives them; ``labels`` (n,)
    ln(Tc/K + 1). ``images`` says whether an epoch holds one random image of each material or all 24.
    """

    inputs: Tensor | BnasInputs
    labels: Tensor
    images: Literal["one", "all"] = "one"

    def __len__(self) -> int:
        """Give the number of samples an epoch."""
        return len(self.inputs) * (IMAGES if self.images == "all" else 1)

    def __call__(self, rows: Tensor, generator: torch.Generator, device: torch.device) -> tuple[Tensor, ...]:
        """Give an image for each of the rows, made on the device, the compositions if any, and the labels."""
        materials = (rows // IMAGES if self.images == "all" else rows).to(self.labels.device)
        inputs, labels = as_inputs(self.inputs)[materials].to(device), self.labels[materials].to(device)
        numbers = rows % IMAGES if self.images == "all" else torch.randint(IMAGES, (len(rows),), generator=generator)
        images = some_images(inputs.energies, numbers)
        return (images, labels) if inputs.fractions is None else (images, inputs.fractions, labels)


@dataclass(frozen=True, eq=False)
class HeldOutLoss:
    """Squared error of the label on materials that are not learnt from, of their identity image."""

    inputs: Tensor | BnasInputs
    labels: Tensor

    def __call__(self, network: nn.Module, at_once: int = EVALUATION_BATCH) -> float:
        """Give the mean over the materials; the network is in evaluation mode."""
        device, answers = next(network.parameters()).device, []
        for part in as_inputs(self.inputs).split(at_once):
            given = part.to(device)
            answers.append(network(given.energies, given.fractions).cpu())
        return float(nn.functional.mse_loss(torch.cat(answers), self.labels))


def as_inputs(inputs: Tensor | BnasInputs) -> BnasInputs:
    """Energies alone as what a network is asked about."""
    return inputs if isinstance(inputs, BnasInputs) else BnasInputs(inputs)


def train_network(
    config: BnasConfig,
    recipe: Recipe,
    inputs: Tensor | BnasInputs,
    tc_kelvin: np.ndarray,
    *,
    held_out: tuple[Tensor | BnasInputs, np.ndarray] | None = None,
    start: Mapping[str, Tensor] | None = None,
    device: str = "auto",
    devices: int = 1,
    checkpoint: Path | None = None,
    curves: Path | None = None,
    data: str = "",
    advance: Callable[[int], None] = lambda _count: None,
    after_epoch: AfterEpoch | None = None,
) -> tuple[Bnas, TrainingLog]:
    """Train one BNAS from the start, or from its checkpoint.

    Parameters
    ----------
    inputs
        n materials; for a network of bands alone their (n, C, M, M, M), as ``models.bnas.prepare`` gives them, will do.
    tc_kelvin
        (n,) measured; 0 for a material that is no superconductor.
    held_out
        Inputs and Tc of other materials, for the validation loss in the log; it decides nothing.
    start
        Weights to begin with, by name, such as those of a pre-training; the others are drawn.
    devices, checkpoint, curves
        As ``models.training.fit`` and ``models.training.Extras``.
    data
        Version of inputs and labels, for the checkpoint; empty: a hash of them.

    Raises
    ------
    CheckpointError
        If the checkpoint belongs to another network, recipe or data.
    ModelInputError
        For labels that are negative or not finite, or do not fit the inputs in number, or missing compositions.
    """
    inputs = as_inputs(inputs)
    labels = torch.from_numpy(log_labels(tc_kelvin))
    if len(labels) != len(inputs):
        raise ModelInputError(f"{len(labels)} labels for {len(inputs)} grids")
    network = build(lambda: Bnas(config), recipe.seed)
    if start:
        network.load_state_dict(start, strict=False)
    if network.composition is not None:
        if inputs.fractions is None:
            raise ModelInputError("This BNAS takes energies and compositions")
        network.composition.fit(inputs.fractions)
    if config.centred:
        network.start_at(float(labels.mean()))
    validate = HeldOutLoss(held_out[0], torch.from_numpy(log_labels(held_out[1]))) if held_out else None
    place = _roomy_device(resolve_device(device), inputs.energies) if devices == 1 else torch.device("cpu")
    if checkpoint and not data:
        data = content_hash(np.asarray(tc_kelvin, dtype=np.float64), inputs.energies, inputs.fractions)
    log = fit(
        network,
        squared_error,
        GridBatches(inputs.to(place), labels.to(place), recipe.images),
        recipe,
        device=device,
        devices=devices,
        extras=Extras(checkpoint=checkpoint, validate=validate, curves=curves, data=data),
        advance=advance,
        after_epoch=after_epoch,
    )
    return network, log


def _roomy_device(device: str, inputs: Tensor) -> torch.device:
    """The device if half of its free memory holds the inputs, else the CPU, from where batches are brought."""
    if device != "cuda":
        return torch.device(device)
    free, _ = torch.cuda.mem_get_info()
    return torch.device("cuda" if inputs.nbytes < free / 2 else "cpu")


def log_labels(tc_kelvin: np.ndarray) -> np.ndarray:
    """ln(Tc/K + 1), (n,) float32; ModelInputError for a negative or missing Tc."""
    tc = np.asarray(tc_kelvin, dtype=np.float64)
    if not (np.isfinite(tc).all() and (tc >= 0).all()):
        raise ModelInputError("Critical temperatures must be finite and not below 0 kelvin")
    return np.log1p(tc).astype(np.float32)


def squared_error(network: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """Mean squared error of the label over a batch: images, compositions if the network sees them, labels."""
    *inputs, labels = batch
    return nn.functional.mse_loss(network(*inputs), labels)


@torch.no_grad()
def predict_images(
    networks: Sequence[Bnas],
    inputs: Tensor | BnasInputs,
    device: str = "auto",
    images: int = IMAGES,
    tell: Callable[[str], None] = logger.warning,
) -> np.ndarray:
    """Ask each network about the first images, by default all 24: (networks, images, n) float64, ln(Tc/K + 1).

    The first image is the grid itself. The networks must be in evaluation mode; they are moved to the device. Where
    memory does not hold a batch, it is halved, and ``tell`` is called with a sentence on it.
    """
    place = torch.device(resolve_device(device))
    answers = np.empty((len(networks), images, len(inputs)))

    def ask(at_once: int) -> None:
        for member, network in enumerate(networks):
            network.to(place)
            for start in range(0, len(inputs), at_once):
                batch = as_inputs(inputs)[start : start + at_once].to(place)
                for number in range(images):
                    answer = network(image(batch.energies, number), batch.fractions)
                    answers[member, number, start : start + len(batch)] = answer.double().cpu().numpy()

    Portions(EVALUATION_BATCH, tell)(ask, "a prediction")
    return answers


def kelvin(label: np.ndarray) -> np.ndarray:
    """Tc in kelvin of ln(Tc/K + 1); labels below 0 are 0 K."""
    return np.asarray(np.expm1(np.maximum(label, 0.0)))
