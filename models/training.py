"""The one training loop of both networks, on Lightning Fabric: a function of network, data, recipe and device.

All randomness of an epoch (order of the samples, augmentation, dropout) is drawn from a seed made of the recipe's seed
and the epoch's number. So a run is the same whatever ran before it in the process, and a run that was killed goes on
from a checkpoint, which stands between epochs, to the same bits on a CPU with a fixed number of threads.
"""

import contextlib
import copy
import hashlib
import logging
import math
import multiprocessing
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from models.checkpoints import load_checkpoint, save_checkpoint
from models.exceptions import TrainingError

logger = logging.getLogger(__name__)
Made = TypeVar("Made")
Found = TypeVar("Found")

warnings.filterwarnings("ignore", message="The `srun` command is available")  # Lightning's advice, for every training

EVALUATION_BATCH = 64  # samples at once where nothing is learnt
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
    at_once: int | None = Field(
        None, ge=1, description="Samples a device takes at once; the gradient of a batch is summed. none: whole batches"
    )
    average: float | None = Field(
        None, gt=0, lt=1, description="Decay of a running average of the weights, which is what is kept; none: the last"
    )
    compiled: bool = Field(False, description="Compile the network by torch.compile, for long runs on a GPU")
    images: Literal["one", "all"] = Field(
        "one", description="Of BNAS: one random image of 24 of each sample an epoch, or all 24 as published"
    )
    validate_every: int = Field(10, ge=1, description="Epochs between validations, where there is something to")


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
    """What a training did: mean loss and last learning rate of each epoch, validations (epoch, loss), and notes."""

    losses: list[float] = field(default_factory=list)
    learning_rates: list[float] = field(default_factory=list)
    validations: list[tuple[int, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    resumed_from: int = 0
    seconds: float = 0.0


Loss = Callable[[nn.Module, Any], Tensor]  # mean over the batch
AfterEpoch = Callable[[int, nn.Module], None]  # epochs done, network
Validate = Callable[[nn.Module, int], float]  # network, samples to take at once


def _silent(_count: int) -> None:
    """Show no progress."""


@dataclass(frozen=True)
class Extras:
    """What a training may do beside its steps. All of it must be picklable where there are several devices.

    Attributes
    ----------
    checkpoint
        File to write every ``checkpoint_seconds`` between epochs and at the end, and to go on from if ``resume``.
    validate
        Gives a loss of the network in evaluation mode, asked every ``Recipe.validate_every`` epochs and at the end;
        it is written down and decides nothing. Its second argument is how many samples to take at once.
    curves
        Folder for TensorBoard's event files: loss, validation loss and learning rate by epoch.
    data
        Version or hash of what is learnt from; a checkpoint of other data is refused.
    """

    checkpoint: Path | None = None
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    resume: bool = True
    validate: Validate | None = None
    curves: Path | None = None
    data: str = ""


def fit(
    network: nn.Module,
    loss: Loss,
    batches: Batches,
    recipe: Recipe,
    *,
    device: str = "auto",
    devices: int = 1,
    extras: Extras = Extras(),
    advance: Callable[[int], None] = _silent,
    after_epoch: AfterEpoch | None = None,
) -> TrainingLog:
    """Train ``network`` in place; it is left in evaluation mode on the device.

    Parameters
    ----------
    loss
        ``loss(network, batch)``, the mean over the batch.
    device
        ``auto`` (CUDA where there is one), ``cpu`` or ``cuda``.
    devices
        Processes, each with a GPU or with CPU cores, that share every batch (distributed data parallel). The network
        comes back on the CPU. Scripts must then guard their entry point, as with ``multiprocessing``.
    advance
        Called with 1 after each epoch.
    after_epoch
        Called after each epoch with the network in evaluation mode, to stop by an exception; on one device only.

    Raises
    ------
    TrainingError
        For a loss, gradient or weight that is not finite, before the step or checkpoint that would keep it; for an
        empty training set; where memory does not hold a single sample.
    CheckpointError
        If the checkpoint belongs to another network, recipe or data.
    """
    from lightning.fabric import Fabric

    if not len(batches):
        raise TrainingError("The training set is empty")
    place = resolve_device(device)
    if devices == 1:
        fabric = Fabric(accelerator=place, devices=1, precision=recipe.precision)
        return _fit(fabric, network, loss, batches, recipe, extras, advance, after_epoch)
    if after_epoch:
        raise TrainingError("A training on several devices cannot be asked to stop after an epoch")
    if place == "cuda" and devices > torch.cuda.device_count():
        raise TrainingError(f"{devices} devices are asked for, but PyTorch finds {torch.cuda.device_count()} here")
    fabric = Fabric(accelerator=place, devices=devices, strategy="ddp_spawn", precision=recipe.precision)
    given = (network.cpu(), loss, batches, recipe, extras)
    with tempfile.TemporaryDirectory() as folder, _forwarded(advance) as queue:
        answer = Path(folder) / "answer.pt"  # a file, since Lightning's queue stands still beyond 64 kB
        fabric.launch(partial(_fit_rank, given=given, queue=queue, answer=answer))
        found = torch.load(answer, weights_only=True)
    network.load_state_dict(found["network"])
    network.eval()
    return TrainingLog(**found["log"])


def _fit_rank(fabric: Any, given: tuple[Any, ...], queue: Any, answer: Path) -> None:
    """What each process of a distributed training does; the first one's answer counts."""
    shared, loss, batches, recipe, extras = given
    network = copy.deepcopy(shared)  # what comes from the parent lies in memory that the processes share
    with one_thread() if fabric.device.type == "cpu" else contextlib.nullcontext():
        log = _fit(fabric, network, loss, batches, recipe, extras, queue.put, None)
    if fabric.is_global_zero:
        torch.save({"network": network.cpu().state_dict(), "log": asdict(log)}, answer)


@contextlib.contextmanager
def _forwarded(advance: Callable[[int], None]) -> Iterator[Any]:
    """A queue whose numbers reach ``advance`` in this process."""
    queue = multiprocessing.get_context("spawn").SimpleQueue()

    def forward() -> None:
        while count := queue.get():
            advance(count)

    thread = threading.Thread(target=forward, daemon=True)
    thread.start()
    try:
        yield queue
    finally:
        queue.put(0)
        thread.join()


def _fit(
    fabric: Any,
    network: nn.Module,
    loss: Loss,
    batches: Batches,
    recipe: Recipe,
    extras: Extras,
    advance: Callable[[int], None],
    after_epoch: AfterEpoch | None,
) -> TrainingLog:
    started = time.perf_counter()
    optimizer = _optimizer(network, recipe)
    signature = _signature(network, recipe, len(batches), extras.data)
    log = TrainingLog()
    model, optimizer = fabric.setup(torch.compile(network) if recipe.compiled else network, optimizer)
    average = _average(network, recipe.average) if recipe.average else None
    kept = {"network": network, "optimizer": optimizer} | ({"average": average} if average else {})
    if extras.checkpoint and extras.resume and extras.checkpoint.exists():
        log = TrainingLog(**load_checkpoint(extras.checkpoint, kept, signature, fabric.device))
        log.resumed_from = len(log.losses)
        if fabric.is_global_zero and log.losses:
            advance(len(log.losses))
    judged = average.module if average else network
    saved = time.perf_counter()
    follow = (lambda: average.update_parameters(network)) if average else (lambda: None)

    def tell(note: str) -> None:
        log.notes.append(note)
        logger.warning(note)

    evaluation = Portions(EVALUATION_BATCH, tell)
    steps = _Steps(fabric, model, optimizer, follow, loss, batches, recipe, tell)
    with _own_randomness(fabric.device), _curves(extras.curves if fabric.is_global_zero else None, log) as draw:
        for epoch in range(len(log.losses), recipe.epochs):
            network.train()
            log.losses.append(steps.run_epoch(epoch))
            log.learning_rates.append(float(optimizer.param_groups[0]["lr"]))
            network.eval()
            judged.eval()
            done = epoch + 1
            if extras.validate and (done % recipe.validate_every == 0 or done == recipe.epochs):
                with torch.no_grad():
                    ask = partial(extras.validate, judged)
                    log.validations.append((done, evaluation(ask, f"the validation after epoch {done}")))
            late = done == recipe.epochs or time.perf_counter() - saved >= extras.checkpoint_seconds
            if extras.checkpoint and late and fabric.is_global_zero:
                save_checkpoint(extras.checkpoint, kept, signature, _written(log))
                saved = time.perf_counter()
            if fabric.is_global_zero:
                draw(done)
                advance(1)
            if after_epoch:
                after_epoch(done, judged)
    if average:
        network.load_state_dict(average.module.state_dict())
    network.eval()
    log.seconds = time.perf_counter() - started
    return log


def _written(log: TrainingLog) -> dict[str, Any]:
    """What a checkpoint keeps of a log."""
    return {name: getattr(log, name) for name in ("losses", "learning_rates", "validations", "notes")}


def _average(network: nn.Module, decay: float) -> Any:
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    return AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


@contextlib.contextmanager
def _curves(folder: Path | None, log: TrainingLog) -> Iterator[Callable[[int], None]]:
    """A function that writes an epoch's figures for TensorBoard, or nothing."""
    if folder is None:
        yield _silent
        return
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder), purge_step=len(log.losses) + 1) as writer:  # type: ignore[no-untyped-call]

        def draw(epoch: int) -> None:
            figures = {"loss/training": log.losses[-1], "learning rate": log.learning_rates[-1]}
            if log.validations and log.validations[-1][0] == epoch:
                figures["loss/validation"] = log.validations[-1][1]
            for name, value in figures.items():
                writer.add_scalar(name, value, epoch)  # type: ignore[no-untyped-call]

        yield draw


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


class Portions:
    """How many samples are taken at once: half as many from each time on that memory does not hold them.

    ``tell`` is called with a sentence each time.
    """

    def __init__(self, at_once: int, tell: Callable[[str], None]) -> None:
        self.at_once, self.tell = at_once, tell

    def __call__(self, work: Callable[[int], Found], where: str, *, halve: bool = True) -> Found:
        """Give ``work(at_once)``, begun again with half as many where memory runs out; TrainingError beyond one."""
        while True:
            try:
                return work(self.at_once)
            except RuntimeError as error:
                if isinstance(error, TrainingError) or not _is_out_of_memory(error):
                    raise
                failure = str(error)
            if not halve:
                raise TrainingError(f"Out of memory in {where}; take fewer samples at once (at_once): {failure}")
            if self.at_once == 1:
                raise TrainingError(f"Memory does not hold a single sample: {failure}")
            self.at_once = math.ceil(self.at_once / 2)
            note = f"Out of memory in {where}: batches go in parts of {self.at_once} samples from here on"
            self.tell(note)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


class _Steps:
    """The optimisation steps of a training, one epoch a call."""

    def __init__(
        self,
        fabric: Any,
        model: nn.Module,
        optimizer: Any,
        follow: Callable[[], None],
        loss: Loss,
        batches: Batches,
        recipe: Recipe,
        tell: Callable[[str], None],
    ) -> None:
        self.fabric, self.model, self.optimizer, self.follow, self.loss = fabric, model, optimizer, follow, loss
        self.batches, self.recipe = batches, recipe
        self.portions = Portions(min(recipe.at_once or recipe.batch_size, len(batches)), tell)
        self.steps = math.ceil(len(batches) / recipe.batch_size)
        self.generator = torch.Generator()

    def run_epoch(self, epoch: int) -> float:
        """Mean loss over the samples of an epoch."""
        seed = _epoch_seed(self.recipe.seed, epoch)
        self.generator.manual_seed(seed)
        torch.manual_seed(seed)
        order = torch.randperm(len(self.batches), generator=self.generator)
        if self.fabric.global_rank:  # the same order on each device, other images and dropout
            self.generator.manual_seed(_epoch_seed(seed, self.fabric.global_rank))
            torch.manual_seed(_epoch_seed(seed, self.fabric.global_rank))
        total = 0.0
        for number, rows in enumerate(order.split(self.recipe.batch_size)):
            rate = self.recipe.learning_rate
            rate *= rate_factor(self.recipe, epoch * self.steps + number, self.recipe.epochs * self.steps)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            total += self._step(rows, f"epoch {epoch + 1}, step {number + 1}") * len(rows)
            self.follow()
        if not torch.isfinite(nn.utils.get_total_norm([weights.detach() for weights in self.model.parameters()])):
            raise TrainingError(f"Weights are not finite after epoch {epoch + 1}; try a lower learning rate")
        return total / len(self.batches)

    def _step(self, rows: Tensor, where: str) -> float:
        """One step; where memory does not hold the batch, its gradient is summed over smaller parts."""
        value = self.portions(partial(self._gradient, rows, where), where, halve=self.fabric.world_size == 1)
        if self.recipe.clip:
            try:
                self.fabric.clip_gradients(self.model, self.optimizer, max_norm=self.recipe.clip)
            except RuntimeError as error:
                raise TrainingError(f"The gradient is not finite in {where}; try a lower learning rate") from error
        self.optimizer.step()
        return value

    def _gradient(self, rows: Tensor, where: str, at_once: int) -> float:
        self.optimizer.zero_grad()
        value, world = 0.0, self.fabric.world_size
        own = rows[self.fabric.global_rank :: world]
        shares = len(own) * world / len(rows)  # the devices' gradients are averaged
        parts = (own if len(own) else rows[:1]).split(at_once)
        for number, part in enumerate(parts):
            batch = self.batches(part, self.generator, self.fabric.device)
            with self.fabric.no_backward_sync(self.model, enabled=number + 1 < len(parts)):
                share = self.loss(self.model, batch) * (len(part) / max(len(own), 1) * shares)
                if not torch.isfinite(share):
                    raise TrainingError(f"The loss is {share.item()} in {where}; check the inputs or lower the rate")
                self.fabric.backward(share)
            value += share.item()
        return value if world == 1 else float(self.fabric.all_reduce(torch.tensor(value), reduce_op="mean"))


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
        return torch.optim.SGD(
            weights, recipe.learning_rate, recipe.momentum, weight_decay=recipe.weight_decay, fused=True
        )
    return torch.optim.AdamW(weights, recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True)


def _signature(network: nn.Module, recipe: Recipe, size: int, data: str) -> dict[str, str]:
    shapes = ";".join(f"{name}{tuple(value.shape)}" for name, value in network.state_dict().items())
    return {
        "network": hashlib.sha256(shapes.encode()).hexdigest(),
        "recipe": recipe.model_dump_json(),
        "samples": str(size),
        "data": data,
    }
