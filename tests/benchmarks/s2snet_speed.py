"""Speed of S2SNet: neighbours and batches, a training step, predictions at the published size.

    OMP_NUM_THREADS=1 python tests/benchmarks/s2snet_speed.py shared/data/s2s.jsonl.gz --crystals 300

Everything is timed in one run, in CPU seconds (others may use the machine), on crystals drawn by a seeded rule from
JSON lines, CIF files, a folder or a zip. (a) Neighbours by vesin and one padded batch, against pymatgen's
get_all_neighbors and a loop over sites. (b) A training step of batched crystals with fused attention, against the same
weights crystal by crystal with attention written out; both losses must agree. (c) Predictions of the published network
(512 wide, 10 layers), with the share of this machine's own rate of matrix products. (d) The same on a GPU. (e) Masked
pre-training of the published network, extrapolated to an epoch of the paper's 69,239 crystals: on a GPU in bf16 and in
several batch sizes, else the measured limit of this CPU, in the published batches of 8.
"""

# ruff: noqa: T201 - a benchmark prints its table

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pymatgen.core import Lattice, Structure
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from models.attention_layers import AttentionLayer, Packing
from models.crystals import CrystalArrays, CrystalBatch, CrystalGraph, collate, collate_by_size, graph
from models.s2snet import CONFIGS, S2SNet, S2SNetConfig
from models.s2snet_pretraining import HiddenElements, masked_loss
from models.s2snet_training import LabelledCrystals, predict_logits, supervised_loss
from models.training import build, fit
from tasks.s2s_files import LINES, dataset_from_s2s, read_unlabelled

CUTOFF = 5.0
PAPER_CRYSTALS = 69_239  # of an epoch of the published pre-training
GPU_BATCHES = (8, 64, 256)


def seconds_of(run: Callable[[], Any], rounds: int = 2) -> float:
    """CPU seconds of the fastest round; on a GPU, seconds until it is idle."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    times = []
    for _ in range(rounds):
        begin = clock()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(clock() - begin)
    return min(times)


def draw_crystals(source: str, count: int) -> list[CrystalArrays]:
    """Crystals of a source, at most ``count`` of them, in an order drawn by lot."""
    read = dataset_from_s2s(source) if source.endswith(LINES) else read_unlabelled(source)
    order = np.random.default_rng(0).permutation(len(read.crystals))[:count]
    print(f"{len(order)} of {len(read.crystals)} crystals of {source}, {len(read.rejected)} refused")
    return [read.crystals[row] for row in order]


def batch_ours(crystals: Sequence[CrystalArrays]) -> Any:
    """Neighbours and batches of 64."""
    graphs = [graph(crystal, CUTOFF) for crystal in crystals]
    return [collate_by_size(graphs[start : start + 64]) for start in range(0, len(graphs), 64)]


def batch_by_loop(structures: Sequence[Structure]) -> Any:
    """What scripts do: pymatgen's neighbours, a loop over sites and neighbours, tensors a crystal."""
    found = []
    for structure in structures:
        centres, neighbours, distances = [], [], []
        for centre, near in enumerate(structure.get_all_neighbors(CUTOFF)):
            for neighbour in near:
                centres.append(centre)
                neighbours.append(neighbour.index)
                distances.append(neighbour.nn_distance)
        numbers = torch.tensor([site.specie.Z for site in structure])
        found.append((numbers, torch.tensor([centres, neighbours]), torch.tensor(distances)))
    return found


def compare_batching(crystals: Sequence[CrystalArrays]) -> None:
    structures = [Structure(Lattice(c.lattice), c.atomic_numbers.tolist(), c.frac_coords) for c in crystals]
    pairs = sum(len(graph(crystal, CUTOFF).distances) - len(crystal) for crystal in crystals[:20])
    same = sum(len(found[2]) for found in batch_by_loop(structures[:20]))
    rounds = 2 if len(crystals) <= 500 else 1
    ours = seconds_of(lambda: batch_ours(crystals), rounds)
    theirs = seconds_of(lambda: batch_by_loop(structures), rounds)
    print(
        f"(a) neighbours within {CUTOFF:g} angstrom and batches of {len(crystals)} crystals, {sum(map(len, crystals))}"
    )
    print(f"    atoms; pairs of the first 20: {pairs} and {same}")
    print(f"    pymatgen and a loop {theirs:7.2f} s, here {ours:6.2f} s: {theirs / ours:.1f} times as fast")


class PlainLayer(AttentionLayer):
    """The attention layer with attention written out."""

    def attention(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        return (queries @ keys.transpose(-1, -2) / math.sqrt(queries.shape[-1]) + bias).softmax(dim=-1) @ values


def plain_network(network: S2SNet) -> S2SNet:
    """The same weights with attention written out."""
    plain = S2SNet(network.config)
    plain.layers = nn.ModuleList(
        PlainLayer(c.width, c.heads, c.feed_forward, c.dropout) for c in [network.config] * len(network.layers)
    )
    plain.load_state_dict(network.state_dict())
    return plain


def compare_steps(graphs: Sequence[CrystalGraph], name: str, layers: int | None = None) -> None:
    config = CONFIGS[name].network.model_copy(update={"dropout": 0.0} | ({"layers": layers} if layers else {}))
    network = build(lambda: S2SNet(config), 0)
    network.fit_descriptors(collate([crystal]) for crystal in graphs[:64])
    plain = plain_network(network)
    labels = np.arange(len(graphs)) % 2
    samples, rows = LabelledCrystals(graphs, labels), torch.arange(len(graphs))
    singles = [
        (collate([crystal]), torch.tensor([[label, math.nan]])) for crystal, label in zip(graphs, labels, strict=True)
    ]
    losses = {}

    def step(which: str, model: S2SNet, parts: Callable[[], Any]) -> None:
        model.zero_grad()
        loss = supervised_loss(model, parts())
        loss.backward()
        losses[which] = loss.item()

    ours = seconds_of(lambda: step("here", network, lambda: samples(rows, torch.Generator(), torch.device("cpu"))))
    theirs = seconds_of(lambda: step("plain", plain, lambda: singles))
    print(f"(b) training step of {len(graphs)} crystals, {name}, loss {losses['plain']:.5f} and {losses['here']:.5f}")
    print(f"    crystal by crystal {theirs:7.2f} s, here {ours:6.2f} s: {theirs / ours:.1f} times as fast")


def forward_flop(config: S2SNetConfig, sizes: Sequence[int]) -> float:
    """Operations of matrix products in a prediction of crystals of these sizes, padding not counted."""
    d, total = config.width, 0.0
    for atoms in sizes:
        layer = 2 * atoms * (4 * d * d + 2 * d * config.feed_forward) + 4 * atoms * atoms * d
        set2set = config.set2set_steps * (2 * 4 * d * 3 * d + 4 * atoms * d)
        total += config.layers * layer + 2 * atoms * config.gaussians * d + set2set
    return total


class PaddedNetwork(S2SNet):
    """The network with all work done on the padding, too."""

    def _attend(self, atoms: torch.Tensor, batch: CrystalBatch, expanded: torch.Tensor) -> torch.Tensor:
        packing, biases = Packing((len(atoms), atoms.shape[1]), None), self._attention_biases(batch, expanded)
        rows = atoms.flatten(0, 1)
        for layer, bias in zip(self.layers, biases, strict=True):
            rows = layer(rows, bias, packing)
        return packing.pad(self.norm(rows))


def predict_padded(network: S2SNet, graphs: Sequence[CrystalGraph]) -> np.ndarray:
    """Batches of 32 of similar size, each padded to its largest crystal."""
    logits = np.empty(len(graphs))
    order = np.argsort([len(crystal) for crystal in graphs], kind="stable")
    with torch.inference_mode():
        for rows in np.split(order, range(32, len(order), 32)):
            logits[rows] = network(collate([graphs[row] for row in rows])).numpy()
    return logits


def matrix_rate(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of a product of matrices."""
    a = torch.randn(2048 if device == "cpu" else 8192, 2048, device=device, dtype=dtype)
    b = torch.randn(2048, 2048, device=device, dtype=dtype)
    return 2 * a.shape[0] * 2048 * 2048 / seconds_of(lambda: a @ b, rounds=5)


def predict_published(graphs: Sequence[CrystalGraph], device: str, dtype: torch.dtype) -> None:
    config = CONFIGS["paper"].network
    network = build(lambda: S2SNet(config), 0).eval().to(device)

    def ask() -> np.ndarray:
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            return predict_logits(network, graphs)

    rate = matrix_rate(device, dtype)
    seconds = seconds_of(ask)
    work = forward_flop(config, [len(crystal) for crystal in graphs])
    million = sum(weights.numel() for weights in network.parameters()) / 1e6

    def show(name: str, seconds: float) -> None:
        share = work / seconds / rate
        done = f"{work / seconds / 1e9:.1f} of {rate / 1e9:.1f} GFLOP/s: {share:.0%}"
        print(f"    {name}: {len(graphs) / seconds:.1f} crystals/s, {done}")

    print(f"(c) predictions of the published network, {million:.0f} million parameters, {device}, {dtype}")
    show("here", seconds)
    if device == "cpu":
        padded = build(lambda: PaddedNetwork(config), 0).eval()
        found: dict[str, np.ndarray] = {}
        before = seconds_of(lambda: found.update(padded=predict_padded(padded, graphs)), rounds=1)
        show("with padding", before)
        apart = float(np.abs(found["padded"] - ask()).max())
        print(f"    {before / seconds:.1f} times as fast; largest difference of two logits {apart:.1e}")


def pretrain_published(crystals: Sequence[CrystalArrays]) -> None:
    """Masked pre-training on these crystals, whose neighbours are found before the clock starts."""
    on_gpu = torch.cuda.is_available()
    device, dtype = ("cuda", torch.bfloat16) if on_gpu else ("cpu", torch.float32)
    named = CONFIGS["paper"]
    samples = HiddenElements([graph(crystal, named.network.radius) for crystal in crystals])
    sizes = [len(crystal) for crystal in crystals]
    trunk = named.network.model_copy(update={"set2set_steps": 0})  # the head does nothing here
    work, rate = 3 * forward_flop(trunk, sizes), matrix_rate(device, dtype)
    where = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    print(
        f"(e) masked pre-training, published size, {where}, {dtype}: {len(sizes)} crystals, {np.mean(sizes):.1f} atoms"
    )

    def loss(network: nn.Module, parts: Any) -> torch.Tensor:
        with torch.autocast(device, dtype, enabled=on_gpu):
            return masked_loss(network, parts)

    for batch in GPU_BATCHES if on_gpu else (named.finetuning.batch_size,):
        recipe = named.pretraining.model_copy(update={"epochs": 1, "batch_size": batch})
        network = build(lambda: S2SNet(named.network), 0)
        warm = HiddenElements(samples.crystals[: 4 * batch if on_gpu else batch])
        fit(network, loss, warm, recipe, device=device)
        seconds = seconds_of(lambda: fit(network, loss, samples, recipe, device=device), rounds=1)  # noqa: B023
        minutes = seconds / len(sizes) * PAPER_CRYSTALS / 60
        print(
            f"    batches of {batch}: {len(sizes) / seconds:.1f} crystals/s, {work / seconds / 1e9:.1f} of "
            f"{rate / 1e9:.1f} GFLOP/s: {work / seconds / rate:.0%}; {PAPER_CRYSTALS} crystals in {minutes:.1f} minutes"
        )
    if not on_gpu:
        print("    No GPU here: this is the limit of the CPU; under a minute an epoch on a GPU was not measured.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="crystals: JSON lines as S2S, CIF files, folder or zip")
    parser.add_argument("--crystals", type=int, default=100_000, help="at most so many, drawn by lot")
    parser.add_argument("--only", choices=("batching", "steps", "predictions", "pretraining"), help="one; none: all")
    parser.add_argument("--step", type=int, default=64, help="crystals of a training step")
    parser.add_argument("--predict", type=int, default=300, help="crystals that the published network predicts")
    parser.add_argument("--pretrain", type=int, help="crystals of the pre-training; none: 64 on a CPU, 8192 on a GPU")
    options = parser.parse_args()
    torch.manual_seed(0)
    print(f"{torch.get_num_threads()} CPU threads")
    crystals = draw_crystals(options.source, options.crystals)
    if options.only in {None, "batching"}:
        compare_batching(crystals)
    graphs = [graph(crystal, CUTOFF) for crystal in crystals[: max(options.step, options.predict)]]
    if options.only in {None, "steps"}:
        compare_steps(graphs[: options.step], "s2snet")
        compare_steps(graphs[: options.step], "paper", layers=2)
    if options.only in {None, "predictions"}:
        predict_published(graphs[: options.predict], "cpu", torch.float32)
        if torch.cuda.is_available():
            predict_published(graphs[: options.predict], "cuda", torch.bfloat16)
        else:
            print("(d) No GPU here: predictions on one were not measured.")
    if options.only in {None, "pretraining"}:
        count = options.pretrain or (8192 if torch.cuda.is_available() else 64)
        pretrain_published(crystals[:count])


if __name__ == "__main__":
    main()
