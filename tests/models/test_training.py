"""The training loop: same seed same bits, resume to the same bits, stop before a bad step, live with little memory."""

import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.exceptions import CheckpointError, TrainingError
from models.training import Extras, Recipe, build, fit, one_thread, rate_factor, resolve_device

RECIPE = Recipe(epochs=6, batch_size=8, learning_rate=0.01, warmup=0.2, schedule="cosine", clip=1.0)
INPUTS = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))


class Samples:
    def __init__(self, targets: Tensor | None = None) -> None:
        self.targets = INPUTS.sum(1, keepdim=True) if targets is None else targets
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(INPUTS)

    def __call__(self, rows: Tensor, generator: torch.Generator, device: torch.device) -> tuple[Tensor, Tensor]:
        self.asked.append(len(rows))
        noise = torch.randn(len(rows), 4, generator=generator)
        return (INPUTS[rows] + 0.01 * noise).to(device), self.targets[rows].to(device)


def network() -> nn.Module:
    return build(lambda: nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 1)), seed=1)


def loss(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.mse_loss(model(batch[0]), batch[1])


def train(
    recipe: Recipe = RECIPE, after_epoch: Any = None, advance: Any = None, **extras: Any
) -> tuple[nn.Module, Any]:
    model, options = network(), {"advance": advance} if advance else {}
    with one_thread():
        log = fit(
            model, loss, Samples(), recipe, device="cpu", extras=Extras(**extras), after_epoch=after_epoch, **options
        )
    return model, log


def equal(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_training_learns() -> None:
    _, log = train(RECIPE.model_copy(update={"epochs": 80, "learning_rate": 0.03}))
    assert log.losses[-1] < 0.3 * log.losses[0]
    assert len(log.losses) == len(log.learning_rates) == 80


def test_same_bits_whatever_ran_before_and_the_seed_outside_is_kept() -> None:
    first, _ = train()
    torch.manual_seed(99)
    before = torch.get_rng_state()
    second, _ = train()
    assert torch.equal(before, torch.get_rng_state())
    assert equal(first, second)
    other, _ = train(RECIPE.model_copy(update={"seed": 5}))
    assert not equal(first, other)


@pytest.mark.parametrize("change", [{"optimizer": "sgd"}, {"optimizer": "adamw"}, {"average": 0.9}])
@pytest.mark.parametrize("stop", [1, 4])
def test_killed_training_resumes_to_the_same_bits(tmp_path: Path, change: dict[str, Any], stop: int) -> None:
    recipe = RECIPE.model_copy(update=change)
    whole, log = train(recipe)

    def kill(epoch: int, _network: nn.Module) -> None:
        if epoch == stop:
            raise KeyboardInterrupt

    file = tmp_path / "checkpoint.pt"
    with pytest.raises(KeyboardInterrupt):
        train(recipe, checkpoint=file, checkpoint_seconds=0, after_epoch=kill)
    resumed, rest = train(recipe, checkpoint=file)
    assert rest.resumed_from == stop
    assert rest.losses == log.losses
    assert equal(whole, resumed)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_progress_counts_the_resumed_epochs_too(tmp_path: Path) -> None:
    steps: list[int] = []
    train(checkpoint=tmp_path / "c.pt", advance=steps.append)
    assert steps == [1] * 6
    steps.clear()
    train(checkpoint=tmp_path / "c.pt", advance=steps.append)
    assert steps == [6]


def other_network(file: Path) -> None:
    fit(nn.Linear(4, 1), loss, Samples(), RECIPE, device="cpu", extras=Extras(file))


def other_recipe(file: Path) -> None:
    train(RECIPE.model_copy(update={"learning_rate": 1.0}), checkpoint=file)


def other_data(file: Path) -> None:
    train(checkpoint=file, data="second")


def damaged(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:100])
    train(checkpoint=file)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (other_network, "network, data differ"),
        (other_recipe, "recipe, data differ"),
        (other_data, "another training: data differ; remove it to begin anew"),
        (damaged, "cannot be read"),
    ],
    ids=["network", "recipe", "data", "damaged"],
)
def test_foreign_checkpoint_is_refused(tmp_path: Path, use: Callable[[Path], None], message: str) -> None:
    file = tmp_path / "c.pt"
    train(checkpoint=file, data="first")
    with pytest.raises(CheckpointError, match=message):
        use(file)


def test_loss_that_is_not_finite_stops_before_the_step() -> None:
    model, targets = network(), INPUTS.sum(1, keepdim=True)
    targets[7] = float("nan")
    start = network()
    with pytest.raises(TrainingError, match=r"loss is nan in epoch 1, step \d"):
        fit(model, loss, Samples(targets), RECIPE.model_copy(update={"batch_size": 30}), device="cpu")
    assert equal(model, start)


def test_little_memory_halves_the_batch_and_goes_on() -> None:
    samples = Samples()

    def hungry(model: nn.Module, batch: Any) -> Tensor:
        if len(batch[0]) > 3:
            raise torch.OutOfMemoryError("no memory for this")
        return loss(model, batch)

    log = fit(network(), hungry, samples, RECIPE, device="cpu")
    assert [note.split(":")[1] for note in log.notes] == [
        " batches go in parts of 4 samples from here on",
        " batches go in parts of 2 samples from here on",
    ]
    assert max(samples.asked[2:]) == 2
    assert len(log.losses) == RECIPE.epochs


class Narrow(nn.Linear):
    """A network that finds no memory for more than three samples where nothing is learnt."""

    def forward(self, inputs: Tensor) -> Tensor:
        if not self.training and len(inputs) > 3:
            raise torch.cuda.OutOfMemoryError("no memory for this")
        return super().forward(inputs)


def error_in_parts(model: nn.Module, at_once: int) -> float:
    return float(torch.cat([model(part) for part in INPUTS.split(at_once)]).square().mean().detach())


def test_little_memory_in_the_validation_halves_it_and_goes_on() -> None:
    recipe = RECIPE.model_copy(update={"validate_every": 3})
    model = build(lambda: Narrow(4, 1), seed=1)
    log = fit(model, loss, Samples(), recipe, device="cpu", extras=Extras(validate=error_in_parts))
    assert [epoch for epoch, _ in log.validations] == [3, 6]
    assert log.validations[-1][1] == pytest.approx(error_in_parts(model, 3))
    assert log.notes == [
        f"Out of memory in the validation after epoch 3: batches go in parts of {size} samples from here on"
        for size in (32, 16, 8, 4, 2)
    ]


def test_no_memory_for_one_sample_is_told() -> None:
    def starving(model: nn.Module, batch: Any) -> Tensor:
        raise torch.OutOfMemoryError("no memory at all")

    with pytest.raises(TrainingError, match="does not hold a single sample: no memory at all"):
        fit(network(), starving, Samples(), RECIPE, device="cpu")


def test_parts_of_a_batch_give_the_gradient_of_the_whole() -> None:
    recipe = Recipe(epochs=1, batch_size=30, optimizer="sgd", momentum=0, learning_rate=0.1, weight_decay=0)
    whole, parts = nn.Linear(4, 1), nn.Linear(4, 1)
    parts.load_state_dict(whole.state_dict())

    class Plain(Samples):
        def __call__(self, rows: Tensor, generator: torch.Generator, device: torch.device) -> tuple[Tensor, Tensor]:
            return INPUTS[rows], self.targets[rows]

    def hungry(model: nn.Module, batch: Any) -> Tensor:
        if len(batch[0]) > 20:
            raise torch.OutOfMemoryError("no memory for this")
        return loss(model, batch)

    fit(whole, loss, Plain(), recipe, device="cpu")
    fit(parts, hungry, Plain(), recipe, device="cpu")
    assert torch.allclose(whole.weight, parts.weight, atol=1e-6)


def test_rate_warms_up_and_falls_to_zero() -> None:
    recipe = Recipe(warmup=0.1, schedule="cosine")
    factors = [rate_factor(recipe, step, 100) for step in range(100)]
    assert factors[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    assert factors[10] == 1
    assert all(later < earlier for earlier, later in pairwise(factors[10:]))
    assert factors[-1] < 0.001


@pytest.mark.parametrize("device", ["tpu", "cuda"])
def test_device_that_is_not_there_is_told(device: str) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(TrainingError, match=device):
        resolve_device(device)


def test_empty_training_set_is_told() -> None:
    class Nothing(Samples):
        def __len__(self) -> int:
            return 0

    with pytest.raises(TrainingError, match="empty"):
        fit(network(), loss, Nothing(), RECIPE, device="cpu")


def test_the_average_of_the_weights_is_what_is_kept() -> None:
    last, _ = train(RECIPE)
    kept, _ = train(RECIPE.model_copy(update={"average": 0.5}))
    weights: list[Tensor] = []

    class Watched(Samples):
        def __call__(self, *arguments: Any) -> tuple[Tensor, Tensor]:
            weights.append(model[0].weight.detach().clone())
            return super().__call__(*arguments)

    model = network()
    with one_thread():
        fit(model, loss, Watched(), RECIPE, device="cpu")
    steps = [*weights[1:], model[0].weight.detach()]
    mean = steps[0]
    for step in steps[1:]:
        mean = mean * 0.5 + step * 0.5
    assert torch.allclose(kept[0].weight, mean, atol=1e-6)
    assert not torch.allclose(kept[0].weight, last[0].weight, atol=1e-4)


def error_at_zero(model: nn.Module, _at_once: int = 1) -> float:
    assert not model.training
    return float(model(torch.zeros(1, 4)).square().detach())


def test_validation_is_written_down_and_decides_nothing(tmp_path: Path) -> None:
    recipe = RECIPE.model_copy(update={"validate_every": 4})
    plain, _ = train(recipe)
    watched, log = train(recipe, validate=error_at_zero, curves=tmp_path)
    assert equal(plain, watched)
    assert [epoch for epoch, _ in log.validations] == [4, 6]
    assert log.validations[-1][1] == error_at_zero(watched)


def test_curves_can_be_read_by_tensorboard_and_go_on_after_a_kill(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def kill(epoch: int, _network: nn.Module) -> None:
        if epoch == 3:
            raise KeyboardInterrupt

    places = {"checkpoint": tmp_path / "c.pt", "checkpoint_seconds": 0, "curves": tmp_path / "curves"}
    with pytest.raises(KeyboardInterrupt):
        train(after_epoch=kill, **places)
    time.sleep(1.1)  # TensorBoard orders files by the second they were begun in
    _, log = train(validate=error_at_zero, **places)
    found = EventAccumulator(str(tmp_path / "curves")).Reload()
    losses = found.Scalars("loss/training")
    assert [event.step for event in losses] == [1, 2, 3, 4, 5, 6]
    assert [event.value for event in losses] == pytest.approx(log.losses)
    assert len(found.Scalars("learning rate")) == 6
    assert [event.step for event in found.Scalars("loss/validation")] == [6]


class Exact:
    """Samples without noise; the last batch has fewer samples than there are devices."""

    def __len__(self) -> int:
        return 17

    def __call__(self, rows: Tensor, generator: torch.Generator, device: torch.device) -> tuple[Tensor, Tensor]:
        return INPUTS[rows].to(device), INPUTS[rows].sum(1, keepdim=True).to(device)


@pytest.mark.slow
def test_several_devices_train_as_one(tmp_path: Path) -> None:
    recipe = RECIPE.model_copy(update={"at_once": 3, "average": 0.8})
    wide = 8000  # 160 kB of weights: more than a pipe holds
    one, two = (build(lambda: nn.Sequential(nn.Linear(4, wide), nn.Linear(wide, 1)), seed=1) for _ in range(2))
    alone = fit(one, loss, Exact(), recipe, device="cpu")
    steps: list[int] = []
    extras = Extras(tmp_path / "c.pt", validate=error_at_zero, curves=tmp_path / "curves")
    shared = fit(two, loss, Exact(), recipe, device="cpu", devices=2, extras=extras, advance=steps.append)
    assert shared.losses == pytest.approx(alone.losses, rel=1e-4)
    for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    assert steps == [1] * 6
    assert shared.validations[-1][1] == pytest.approx(error_at_zero(one), rel=1e-3)
    again = fit(two, loss, Exact(), recipe, device="cpu", devices=2, extras=extras)
    assert again.resumed_from == 6


@pytest.mark.slow
def test_a_compiled_network_learns_the_same() -> None:
    _, plain = train(RECIPE)
    model, compiled = train(RECIPE.model_copy(update={"compiled": True}))
    assert compiled.losses[0] == pytest.approx(plain.losses[0], rel=0.2)
    assert list(model.state_dict()) == list(network().state_dict()), "stored weights have their plain names"
