"""Speed of BNAS: training beside vit_pytorch's model in a plain loop, and on a GPU the paper's whole training.

    python tests/benchmarks/bnas_speed.py --batch 16 --steps 5

CPU: the published network, the same synthetic grids, SGD as published; seconds a step, better of two rounds, and the
share of this machine's own float32 matrix-product rate. With one thread (OMP_NUM_THREADS=1) these are seconds of the
processor, which hold on a machine with other work, too. GPU, where there is one: steps of batch 64 in bf16 with all 24
images made on the device, extrapolated to the paper's 59,376 samples x 700 epochs; and predictions from grids that lie
on the device, one image each.
"""

# ruff: noqa: T201 - a benchmark prints its table

import argparse
import contextlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from models.bnas import CONFIGS, Bnas
from models.bnas_training import GridBatches, squared_error
from models.training import fit
from tests.models.test_bnas import make_vit

SAMPLES, EPOCHS = 59_376, 700  # the paper's
FORWARD_FLOP = 4.68e9  # a sample, published network; a training step costs three times as much
H100_BF16 = 989e12  # FLOP/s, dense, as its maker states


def seconds_of(run: Callable[[], Any], rounds: int = 2) -> float:
    """Seconds of the fastest round."""
    on_one_core = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    clock, times = time.process_time if on_one_core else time.perf_counter, []
    for _ in range(rounds):
        begin = clock()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(clock() - begin)
    return min(times)


def matrix_rate(size: int, dtype: torch.dtype, device: str) -> float:
    """FLOP/s of a square matrix product."""
    a = torch.randn(size, size, dtype=dtype, device=device)
    count = 3 if device == "cpu" else 50
    a @ a
    return count * 2 * size**3 / seconds_of(lambda: [a @ a for _ in range(count)], rounds=3)


def plain_loop(network: nn.Module, grids: Tensor, labels: Tensor, batch: int) -> None:
    """What the published notebook does, without its data loading."""
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-5)
    network.train()
    for some, known in zip(grids.split(batch), labels.split(batch), strict=True):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(network(some).squeeze(-1), known)
        loss.backward()
        optimizer.step()
        loss.item()


def on_cpu(batch: int, steps: int) -> None:
    config, recipe = CONFIGS["paper"]
    recipe = recipe.model_copy(update={"epochs": 1, "batch_size": batch, "learning_rate": 1e-4, "images": "one"})
    grids, labels = torch.randn(batch * steps, config.bands, *(config.mesh,) * 3), torch.rand(batch * steps)
    rate = matrix_rate(2048, torch.float32, "cpu")
    theirs, ours = make_vit(config), Bnas(config)
    plain = seconds_of(lambda: plain_loop(theirs, grids, labels, batch)) / steps
    fitted = seconds_of(lambda: fit(ours, squared_error, GridBatches(grids, labels), recipe, device="cpu")) / steps
    share = 3 * FORWARD_FLOP * batch / fitted / rate
    print(f"CPU, {torch.get_num_threads()} threads, batch {batch}: matrix products {rate / 1e9:.0f} GFLOP/s")
    print(f"  vit_pytorch, plain loop   {plain:8.2f} s a step")
    print(f"  here, images and checks   {fitted:8.2f} s a step, {plain / fitted:.2f} times as fast")
    print(f"  share of the matrix-product rate {100 * share:.0f} %")


def on_gpu(steps: int) -> None:
    config, recipe = CONFIGS["paper"]
    name = torch.cuda.get_device_name()
    materials = 2474
    grids = torch.randn(materials, config.bands, *(config.mesh,) * 3, device="cuda")
    labels = torch.rand(materials, device="cuda")
    measured = matrix_rate(8192, torch.bfloat16, "cuda")
    print(f"{name}: bf16 matrix products {measured / 1e12:.0f} TFLOP/s (stated for an H100: {H100_BF16 / 1e12:.0f})")
    for compiled in (False, True):
        chosen = recipe.model_copy(update={"epochs": 1, "precision": "bf16-mixed", "compiled": compiled})
        network = Bnas(config)
        few, many = steps // 5, steps
        with contextlib.suppress(KeyboardInterrupt):
            warm = GridBatches(grids[: few * 64 // 24 + 1], labels[: few * 64 // 24 + 1], "all")
            timed = GridBatches(grids[: many * 64 // 24 + 1], labels[: many * 64 // 24 + 1], "all")
            fit(network, squared_error, warm, chosen, device="cuda")
            seconds = seconds_of(lambda: fit(network, squared_error, timed, chosen, device="cuda"), rounds=1)  # noqa: B023
        samples = len(timed) / seconds
        flops = 3 * FORWARD_FLOP * samples
        print(
            f"  training{', compiled' if compiled else '':<10} {samples:9.0f} samples/s, {flops / 1e12:.0f} TFLOP/s: "
            f"{100 * flops / measured:.0f} % of measured, {100 * flops / H100_BF16:.0f} % of stated; "
            f"{SAMPLES} x {EPOCHS} in {SAMPLES * EPOCHS / samples / 60:.0f} minutes"
        )
    network = Bnas(config).cuda().eval()
    for compiled in (False, True):
        model = torch.compile(network) if compiled else network

        def ask() -> None:
            with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
                for part in grids.split(512):
                    model(part)  # noqa: B023

        ask()
        rate = materials / seconds_of(ask, rounds=5)
        print(f"  prediction{', compiled' if compiled else '':<10} {rate:9.0f} materials/s from grids on the device")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16, help="samples a step on the CPU")
    parser.add_argument("--steps", type=int, default=5, help="timed steps on the CPU")
    parser.add_argument("--gpu-steps", type=int, default=400, help="timed steps on the GPU")
    options = parser.parse_args()
    torch.manual_seed(0)
    on_cpu(options.batch, options.steps)
    if torch.cuda.is_available():
        on_gpu(options.gpu_steps)
    else:
        print("No GPU here: the paper's whole training was not measured.")


if __name__ == "__main__":
    main()
