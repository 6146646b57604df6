"""The one training loop of both networks, on Lightning Fabric: a function of network, data, recipe and device.

All randomness of an epoch (order of the samples, augmentation, dropout) is drawn from a seed made of the recipe's seed
and the epoch's number. So a run is the same whatever ran before it in the process, and a run that was killed goes on
from a checkpoint, which stands between epochs, to the same bits on a CPU with a fixed number of threads.
"""

import contextlib
import hashlib
import io
import logging
import math
import os
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from models.exceptions import CheckpointError, TrainingError

logger = logging.getLogger(__name__)
Made = TypeVar("Made")

CHECKPOINT_SECONDS = 20.0  # between checkpoints; a kill loses no more


class Recipe(BaseModel):
    """How a network is trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(100, ge=1, description="Passes over the training set")
    batch_size: int = Field(32, ge=1, description="Samples a step")
    optimizer: Literal["sgd", "adamw"] = "adamw"
    learning_rate: float = Field(1e-3, gt=0, description="Peak learning rate")
    momentum: float = Field(0.9, ge=0, lt=1, description="Of sgd")
    weight_decay: float = Field(1e-5, ge=0)
    warmup: float = Field(0.0, ge=0, lt=1, description="Share of all steps in which the rate rises linearly")
    schedule: Literal["constant", "cosine"] = Field("constant", description="Of the rate, after the warm-up")
    clip: float | None = Field(None, gt=0, description="Largest norm of the gradient; none: not clipped")
    seed: int = Field(0, ge=0, description="Of order, augmentation and dropout")
    precision: Literal["32-true", "bf16-mixed"] = "32-true"


class Batches(Protocol):
    """Training samples. ``__call__`` gives what the loss takes, on the device."""

    def __len__(self) -> int:
        """Give the number of samples."""
        ...

    def __call__(self, rows: Tensor, generator: torch.Generator, device: torch.device) -> Any:
        """Give samples ``rows`` (int64, on the CPU) as a batch; ``generator`` (CPU) draws their augmentation."""
        ...


@dataclass
class TrainingLog:
    """What a training did: the mean loss and the last learning rate of each epoch, and what is worth saying."""

    losses: list[float] = field(default_factory=list)
    learning_rates: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    resumed_from: int = 0
    seconds: float = 0.0


Loss = Callable[[nn.Module, Any], Tensor]  # mean over the batch
AfterEpoch = Callable[[int, nn.Module], None]  # epochs done, network


def fit(
    network: nn.Module,
    loss: Loss,
    batches: Batches,
    recipe: Recipe,
    *,
    device: str = "auto",
    checkpoint: Path | None = None,
    advance: Callable[[int], None] = lambda _count: None,
    resume: bool = True,
    after_epoch: AfterEpoch | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> TrainingLog:
    """Train ``network`` in place; it is left in evaluation mode on the device.

    Parameters
    ----------
    loss
        ``loss(network, batch)``, the mean over the batch.
    device
        ``auto`` (CUDA where there is one), ``cpu`` or ``cuda``.
    checkpoint
        File to write every ``checkpoint_seconds`` between epochs and at the end, and to go on from if ``resume``.
    advance
        Called with 1 after each epoch.
    after_epoch
        Called after each epoch with the network in evaluation mode, to validate or to stop by an exception.

    Raises
    ------
    TrainingError
        For a loss, gradient or weight that is not finite, before the step or checkpoint that would keep it; for an
        empty training set; where memory does not hold a single sample.
    CheckpointError
        If the checkpoint belongs to another network, recipe or number of samples.
    """
    from lightning.fabric import Fabric

    if not len(batches):
        raise TrainingError("The training set is empty")
    started = time.perf_counter()
    notes: list[str] = []
    fabric = Fabric(accelerator=resolve_device(device), devices=1, precision=recipe.precision)
    optimizer = _optimizer(network, recipe)
    signature = _signature(network, recipe, len(batches))
    log = TrainingLog()
    model, optimizer = fabric.setup(network, optimizer)
    if checkpoint and resume and checkpoint.exists():
        log = _load_checkpoint(checkpoint, network, optimizer, signature, fabric.device)
        advance(len(log.losses))
    saved = time.perf_counter()
    steps = _Steps(fabric, model, optimizer, loss, batches, recipe, notes)
    with _own_randomness(fabric.device):
        for epoch in range(len(log.losses), recipe.epochs):
            network.train()
            log.losses.append(steps.run_epoch(epoch))
            log.learning_rates.append(float(optimizer.param_groups[0]["lr"]))
            network.eval()
            done = epoch + 1
            if checkpoint and (done == recipe.epochs or time.perf_counter() - saved >= checkpoint_seconds):
                _save_checkpoint(checkpoint, network, optimizer, signature, log)
                saved = time.perf_counter()
            advance(1)
            if after_epoch:
                after_epoch(done, network)
    network.eval()
    log.notes += notes
    log.seconds = time.perf_counter() - started
    return log


def build(factory: Callable[[], Made], seed: int) -> Made:
    """What ``factory`` gives with PyTorch seeded, such as a network's initial weights; the seed outside is kept."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return factory()


def resolve_device(device: str) -> str:
    """``cpu`` or ``cuda`` for ``auto``, ``cpu`` or ``cuda``; TrainingError for a device that is not there."""
    if device not in {"auto", "cpu", "cuda"}:
        raise TrainingError(f"{device=} is not one of auto, cpu, cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise TrainingError("The device cuda is asked for, but PyTorch finds no CUDA device here")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def rate_factor(recipe: Recipe, step: int, steps: int) -> float:
    """Learning rate of ``step`` (from 0) of ``steps``, as a share of the recipe's."""
    warm = round(recipe.warmup * steps)
    if step < warm:
        return (step + 1) / warm
    if recipe.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1)))


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let PyTorch use one CPU thread inside: sums in one order, so the same numbers on any number of cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Steps:
    """The optimisation steps of a training, one epoch a call."""

    def __init__(
        self,
        fabric: Any,
        model: nn.Module,
        optimizer: Any,
        loss: Loss,
        batches: Batches,
        recipe: Recipe,
        notes: list[str],
    ) -> None:
        self.fabric, self.model, self.optimizer, self.loss = fabric, model, optimizer, loss
        self.batches, self.recipe, self.notes = batches, recipe, notes
        self.at_once = min(recipe.batch_size, len(batches))
        self.steps = math.ceil(len(batches) / recipe.batch_size)
        self.generator = torch.Generator()

    def run_epoch(self, epoch: int) -> float:
        """Mean loss over the samples of an epoch."""
        seed = _epoch_seed(self.recipe.seed, epoch)
        self.generator.manual_seed(seed)
        torch.manual_seed(seed)
        order = torch.randperm(len(self.batches), generator=self.generator)
        total = 0.0
        for number, rows in enumerate(order.split(self.recipe.batch_size)):
            rate = self.recipe.learning_rate
            rate *= rate_factor(self.recipe, epoch * self.steps + number, self.recipe.epochs * self.steps)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            total += self._step(rows, f"epoch {epoch + 1}, step {number + 1}") * len(rows)
        if not all(torch.isfinite(weights).all() for weights in self.model.parameters()):
            raise TrainingError(f"Weights are not finite after epoch {epoch + 1}; try a lower learning rate")
        return total / len(self.batches)

    def _step(self, rows: Tensor, where: str) -> float:
        """One step; where memory does not hold the batch, its gradient is summed over smaller parts."""
        while True:
            try:
                value = self._gradient(rows, where)
                break
            except RuntimeError as error:
                if isinstance(error, TrainingError) or not _is_out_of_memory(error):
                    raise
                failure = str(error)
            self._halve(where, failure)
        if self.recipe.clip:
            try:
                self.fabric.clip_gradients(self.model, self.optimizer, max_norm=self.recipe.clip)
            except RuntimeError as error:
                raise TrainingError(f"The gradient is not finite in {where}; try a lower learning rate") from error
        self.optimizer.step()
        return value

    def _gradient(self, rows: Tensor, where: str) -> float:
        self.optimizer.zero_grad()
        value = 0.0
        for part in rows.split(self.at_once):
            batch = self.batches(part, self.generator, self.fabric.device)
            share = self.loss(self.model, batch) * (len(part) / len(rows))
            if not torch.isfinite(share):
                raise TrainingError(f"The loss is {share.item()} in {where}; check the inputs or lower the rate")
            self.fabric.backward(share)
            value += share.item()
        return value

    def _halve(self, where: str, failure: str) -> None:
        if self.at_once == 1:
            raise TrainingError(f"Memory does not hold a single sample: {failure}")
        self.at_once = math.ceil(self.at_once / 2)
        note = f"Out of memory in {where}: batches go in parts of {self.at_once} samples from here on"
        self.notes.append(note)
        logger.warning(note)
        self.optimizer.zero_grad()
        if self.fabric.device.type == "cuda":
            torch.cuda.empty_cache()


@contextlib.contextmanager
def _own_randomness(device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def _epoch_seed(seed: int, epoch: int) -> int:
    digest = hashlib.sha256(f"{seed}:{epoch}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    weights = network.parameters()
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(weights, recipe.learning_rate, recipe.momentum, weight_decay=recipe.weight_decay)
    return torch.optim.AdamW(weights, recipe.learning_rate, weight_decay=recipe.weight_decay)


def _signature(network: nn.Module, recipe: Recipe, size: int) -> dict[str, str]:
    shapes = ";".join(f"{name}{tuple(value.shape)}" for name, value in network.state_dict().items())
    return {
        "network": hashlib.sha256(shapes.encode()).hexdigest(),
        "recipe": recipe.model_dump_json(),
        "samples": str(size),
    }


def _save_checkpoint(
    path: Path, network: nn.Module, optimizer: Any, signature: dict[str, str], log: TrainingLog
) -> None:
    buffer = io.BytesIO()
    state = {
        "signature": signature,
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "losses": log.losses,
        "learning_rates": log.learning_rates,
        "notes": log.notes,
    }
    torch.save(state, buffer)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with scratch.open("wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def _load_checkpoint(
    path: Path, network: nn.Module, optimizer: Any, signature: dict[str, str], device: torch.device
) -> TrainingLog:
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        raise CheckpointError(f"The checkpoint {path} cannot be read: {error}") from error
    different = [key for key, value in signature.items() if state["signature"].get(key) != value]
    if different:
        raise CheckpointError(f"The checkpoint {path} belongs to another training: {', '.join(different)} differ")
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    losses = state["losses"]
    return TrainingLog(losses, state["learning_rates"], state["notes"], resumed_from=len(losses))
