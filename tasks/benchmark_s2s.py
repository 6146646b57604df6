"""Stage benchmark-s2s: S2SNet and all baselines on the same folds of one dataset, and the paper's tables again.

The stage is cut into parts, a method on a fold each. A part writes one file, named by the hash of everything that it
depends on, and is skipped where that file is there: a killed run goes on, and another run with other methods shares
what is the same. Probabilities are those of the networks as trained; nothing is calibrated on held-out crystals.
"""

from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from prefect import task
from pydantic import BaseModel, ConfigDict
from pymatgen.core import Lattice, Structure
from scipy.special import expit

from models.baselines import classification_baselines
from models.cgcnn import CgcnnConfig, thin
from models.crystals import CrystalGraph, graph
from models.exceptions import LeakageError
from models.graph_training import (
    Energies,
    predict_graphs,
    remove_graph_checkpoints,
    train_graph_network,
    tune_graph_network,
)
from models.megnet import MegnetConfig
from models.s2snet_training import predict_logits, remove_checkpoints, train_network
from models.splits import Fold, composition_key
from models.training import one_thread, resolve_device
from tasks.benchmark_methods import (
    Method,
    check_methods,
    choose_methods,
    describe_method,
    graphs_of,
    s2snet_of,
)
from tasks.benchmark_tables import (
    METHODS_FILE,
    OUTPUT,
    as_markdown,
    leave_results,
    score_table,
    write_benchmark_figures,
)
from tasks.events import StageEvent, publish
from tasks.exceptions import InputError
from tasks.folds import Labelled, cross_validations
from tasks.leakage import audit
from tasks.model_store import without_nan
from tasks.progress import leave_summary
from tasks.s2s_files import CrystalDataset, dataset_from_s2s, read_unlabelled
from tasks.schemas import PREDICTIONS
from tasks.settings import AuditSettings, BenchmarkSettings
from tasks.sources import hash_source
from tasks.stages import StageOutcome, StageReport, hash_text, run_stage
from tasks.workers import close_workers, make_part
from tasks.workspace import Workspace

STAGE = "benchmark-s2s"
CODE_VERSION = 1  # raised by hand when the same data and settings would give other predictions
FOLDER = "benchmarks/s2s"
PREDICTED = f"{FOLDER}/predictions.parquet"
TABLES = f"{FOLDER}/tables.md"


class BenchmarkPart(BaseModel):
    """A method on a fold."""

    model_config = ConfigDict(frozen=True)

    method: Method
    split: str
    number: int
    file: str

    @property
    def name(self) -> str:
        """Name for people, such as ``cgcnn-random-0``."""
        return f"{self.method.name}-{self.split}-{self.number}"


class BenchmarkPlan(BaseModel):
    """What a benchmark consists of; small enough to pass between tasks."""

    model_config = ConfigDict(frozen=True)

    data: str
    data_hash: str
    unlabelled_hash: str
    methods: tuple[Method, ...]
    parts: tuple[BenchmarkPart, ...]
    leakage: dict[str, list[dict[str, Any]]]


@lru_cache(maxsize=2)
def _dataset(path: str, _hash: str, disorder: Any) -> CrystalDataset:
    return dataset_from_s2s(path, disorder)


@lru_cache(maxsize=1)
def _more(source: str, _hash: str, disorder: Any) -> CrystalDataset:
    return read_unlabelled(source, disorder)


@lru_cache(maxsize=2)
def _graphs(path: str, content: str, disorder: Any, cutoff: float) -> list[CrystalGraph]:
    return [graph(crystal, cutoff) for crystal in _dataset(path, content, disorder).crystals]


@lru_cache(maxsize=1)
def _more_graphs(source: str, content: str, disorder: Any, cutoff: float) -> list[CrystalGraph]:
    return [graph(crystal, cutoff) for crystal in _more(source, content, disorder).crystals]


@lru_cache(maxsize=3)
def _thinned(path: str, content: str, disorder: Any, cutoff: float, neighbours: int | None) -> list[CrystalGraph]:
    crystals = _dataset(path, content, disorder).crystals
    return [thin(graph(crystal, cutoff), cutoff, neighbours) for crystal in crystals]


def as_rows(dataset: CrystalDataset) -> Labelled:
    """The crystals as rows of which folds are made; the class stands for Tc."""
    return Labelled(
        pa.table(
            {
                "material_id": dataset.names,
                "formula": dataset.formulas,
                "chemical_system": dataset.chemical_systems,
                "tc_kelvin": dataset.labels.astype(np.float64),
            }
        )
    )


def make_folds(dataset: CrystalDataset, settings: BenchmarkSettings) -> dict[str, list[Fold]]:
    """The folds of every split; InputError where a class is too small or a split cannot be made."""
    positive = int(dataset.labels.sum())
    if min(positive, len(dataset.labels) - positive) < settings.folds:
        raise InputError(
            f"{settings.folds} folds need as many crystals of each class; there are {positive} superconductors and "
            f"{len(dataset.labels) - positive} others. Ask for fewer folds, or give more crystals"
        )
    if wrong := set(settings.splits) - {"random", "chemical-system"}:
        raise InputError(f"--split {min(wrong)!r} is not one of random, chemical-system: S2S has no other facts")
    asked = AuditSettings(splits=settings.splits, folds=settings.folds, seed=settings.seed)
    return cross_validations(as_rows(dataset), asked)


def make_plan(data: str, settings: BenchmarkSettings) -> BenchmarkPlan:
    """Read and check the data, make and audit the folds, name the parts."""
    resolve_device(settings.device)
    content = hash_source(data)
    dataset = _dataset(data, content, settings.disorder)
    other = hash_source(settings.unlabelled) if settings.unlabelled else ""
    energies = bool(np.isfinite(dataset.energies).any())
    if settings.unlabelled:
        energies |= bool(np.isfinite(_more(settings.unlabelled, other, settings.disorder).energies).any())
    methods = choose_methods(settings, energies)
    check_methods(methods, settings)
    folds = make_folds(dataset, settings)
    leakage = audit(as_rows(dataset), folds)
    for split, members in folds.items():
        for fold, row in zip(members, leakage[split], strict=True):
            row["pretraining"] = _count_seen(dataset, fold, *_pretraining(data, content, other, settings, split, fold))
    parts = [
        BenchmarkPart(
            method=method, split=split, number=number, file=_file(method, split, number, content, other, settings)
        )
        for method in methods
        for split, members in folds.items()
        for number in range(len(members))
    ]
    return BenchmarkPlan(
        data=data, data_hash=content, unlabelled_hash=other, methods=methods, parts=parts, leakage=leakage
    )


def _file(method: Method, split: str, number: int, content: str, other: str, settings: BenchmarkSettings) -> str:
    """A part's file, named by everything that it depends on."""
    asked = settings.model_dump(include={"folds", "seed", "disorder"})
    seen = other if method.pretrained else ""
    key = hash_text(
        str(CODE_VERSION), content, seen, str(describe_method(method, settings)), split, str(number), str(asked)
    )
    return f"{FOLDER}/parts/{method.name}-{split}-{number}-{key[:12]}.parquet"


def pretraining_rows(
    dataset: CrystalDataset, more: CrystalDataset | None, split: str, fold: Fold
) -> tuple[np.ndarray, np.ndarray]:
    """Training crystals, and rows of the unlabelled crystals, that may be seen before a fold is judged.

    None that has the composition of a held-out crystal; in grouped splits, none of its chemical system or of a group
    with one. Row numbers, int64.
    """
    count = len(dataset.names)
    formulas = dataset.formulas + (more.formulas if more else [])
    if split == "random":
        keys: list[Any] = [composition_key(formula) for formula in formulas]
    else:
        systems = dataset.chemical_systems + (more.chemical_systems if more else [])
        table = pa.table({"formula": formulas, "chemical_system": systems})
        keys = Labelled(table).groups.tolist()
    held_out = {keys[row] for row in fold.test}
    first = [row for row in fold.train if keys[row] not in held_out]
    second = [row - count for row in range(count, len(keys)) if keys[row] not in held_out]
    return np.array(first, dtype=np.int64), np.array(second, dtype=np.int64)


def _pretraining(
    data: str, content: str, other: str, settings: BenchmarkSettings, split: str, fold: Fold
) -> tuple[np.ndarray, np.ndarray, CrystalDataset | None]:
    more = _more(settings.unlabelled, other, settings.disorder) if settings.unlabelled else None
    return *pretraining_rows(_dataset(data, content, settings.disorder), more, split, fold), more


def _count_seen(
    dataset: CrystalDataset, fold: Fold, own: np.ndarray, others: np.ndarray, more: CrystalDataset | None
) -> int:
    """Held-out crystals whose composition is in the pre-training; LeakageError where there is any."""
    seen = {composition_key(dataset.formulas[row]) for row in own}
    seen |= {composition_key(more.formulas[row]) for row in others} if more else set()
    count = sum(composition_key(dataset.formulas[row]) in seen for row in fold.test)
    if count:
        raise LeakageError(f"Fold {fold.name!r}: {count} held-out crystals would be seen in the pre-training")
    return count


def run_part(url: str, settings: BenchmarkSettings, plan: BenchmarkPlan, part: BenchmarkPart) -> None:
    """Train a method on a fold and write its held-out probabilities (PREDICTIONS)."""
    workspace = Workspace(url)
    dataset = _dataset(plan.data, plan.data_hash, settings.disorder)
    fold = make_folds(dataset, settings.model_copy(update={"splits": (part.split,)}))[part.split][part.number]
    seed = int(hash_text(str(settings.seed), part.split, str(part.number))[:8], 16) % 2**31
    checkpoint = workspace.local(f"{part.file}.checkpoint") if workspace.is_local else None
    note = ""
    with one_thread(), workspace.errors("write", f"{part.file}.checkpoint"):
        if part.method.family == "baselines":
            found = classification_baselines(dataset.formulas, _structures(dataset), dataset.labels, fold, seed)
        elif part.method.is_graph:
            logits, note = _graph_logits(settings, plan, part, fold, seed, checkpoint)
            found = {part.method.title: expit(logits)}
        else:
            found = {part.method.title: expit(_s2snet_logits(settings, plan, part, fold, seed, checkpoint))}
    tables = [_as_predictions(dataset, part.split, fold, name, found[name]) for name in found]
    if note:
        workspace.write_json(f"{part.file}.json", {"chosen": note})
    workspace.write_table(part.file, pa.concat_tables(tables))
    if checkpoint:
        remove_checkpoints(checkpoint)
        remove_graph_checkpoints(checkpoint)


def _s2snet_logits(
    settings: BenchmarkSettings,
    plan: BenchmarkPlan,
    part: BenchmarkPart,
    fold: Fold,
    seed: int,
    checkpoint: Path | None,
) -> np.ndarray:
    named = s2snet_of(part.method, settings)
    cutoff = named.network.radius
    graphs = _graphs(plan.data, plan.data_hash, settings.disorder, cutoff)
    seen: list[CrystalGraph] = []
    if part.method.pretrained:
        own, others, _ = _pretraining(plan.data, plan.data_hash, plan.unlabelled_hash, settings, part.split, fold)
        seen = [graphs[row] for row in own]
        if settings.unlabelled:
            more = _more_graphs(settings.unlabelled, plan.unlabelled_hash, settings.disorder, cutoff)
            seen += [more[row] for row in others]
    labels = _dataset(plan.data, plan.data_hash, settings.disorder).labels[fold.train]
    crystals = [graphs[row] for row in fold.train]
    network = train_network(named, crystals, labels, seen, seed, device=settings.device, checkpoint=checkpoint)
    return predict_logits(network, [graphs[row] for row in fold.test])


def _graph_logits(
    settings: BenchmarkSettings,
    plan: BenchmarkPlan,
    part: BenchmarkPart,
    fold: Fold,
    seed: int,
    checkpoint: Path | None,
) -> tuple[np.ndarray, str]:
    """Logits of the held-out crystals, and the name of the settings that were chosen."""
    dataset = _dataset(plan.data, plan.data_hash, settings.disorder)
    models = graphs_of(part.method, settings)
    labels = dataset.labels[fold.train]

    def thinned(config: CgcnnConfig | MegnetConfig) -> list[CrystalGraph]:
        return _thinned(plan.data, plan.data_hash, settings.disorder, config.cutoff, config.neighbours)

    name = next(iter(models))
    if len(models) > 1:
        groups = as_rows(dataset).groups[fold.train] if part.split != "random" else None
        name = tune_graph_network(
            models,
            lambda model: [thinned(model.network)[row] for row in fold.train],
            labels,
            groups,
            seed,
            device=settings.device,
        )
    model = models[name]
    graphs = thinned(model.network)
    energies = _energies(settings, plan, part, fold, model.network) if part.method.pretrained else None
    crystals = [graphs[row] for row in fold.train]
    network = train_graph_network(
        model, crystals, labels, seed, energies=energies, device=settings.device, checkpoint=checkpoint
    )
    return predict_graphs(network, [graphs[row] for row in fold.test]), name


def _energies(
    settings: BenchmarkSettings,
    plan: BenchmarkPlan,
    part: BenchmarkPart,
    fold: Fold,
    config: CgcnnConfig | MegnetConfig,
) -> Energies:
    """Crystals with formation energies that may be seen before the fold is judged."""
    dataset = _dataset(plan.data, plan.data_hash, settings.disorder)
    own, others, more = _pretraining(plan.data, plan.data_hash, plan.unlabelled_hash, settings, part.split, fold)
    chosen = [(dataset.crystals[row], dataset.energies[row]) for row in own]
    chosen += [(more.crystals[row], more.energies[row]) for row in others] if more else []
    chosen = [(crystal, energy) for crystal, energy in chosen if np.isfinite(energy)]
    graphs = [thin(graph(crystal, config.cutoff), config.cutoff, config.neighbours) for crystal, _ in chosen]
    return Energies(graphs, np.array([energy for _, energy in chosen]))


def _structures(dataset: CrystalDataset) -> list[Structure]:
    return [Structure(Lattice(c.lattice), c.atomic_numbers.tolist(), c.frac_coords) for c in dataset.crystals]


def _as_predictions(dataset: CrystalDataset, split: str, fold: Fold, model: str, probability: np.ndarray) -> pa.Table:
    rows = [
        {
            "split": split,
            "fold": fold.name,
            "model": model,
            "material_id": dataset.names[row],
            "formula": dataset.formulas[row],
            "superconductor": bool(dataset.labels[row]),
            "probability": float(value),
        }
        for row, value in zip(fold.test, probability, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=PREDICTIONS)


def gather(workspace: Workspace, settings: BenchmarkSettings, plan: BenchmarkPlan) -> StageOutcome:
    """Put the parts together: scores beside the forest's, the paper's tables in words, figures."""
    dataset = _dataset(plan.data, plan.data_hash, settings.disorder)
    tables, methods, chosen = [], dict[str, str](), dict[str, list[str]]()
    for part in plan.parts:
        table = workspace.read_table(part.file)
        tables.append(table)
        methods |= dict.fromkeys(table["model"].unique().to_pylist(), part.method.name)
        if workspace.exists(f"{part.file}.json") and part.method.tuned:
            chosen.setdefault(part.method.title, []).append(workspace.read_json(f"{part.file}.json")["chosen"])
    predictions = pa.concat_tables(tables)
    scores = score_table(predictions, methods, settings.seed)
    seen = _pretraining_sizes(plan, settings)
    document = {
        "settings": settings.model_dump(mode="json"),
        "methods": {method.title: describe_method(method, settings) for method in plan.methods},
        "chosen": chosen,
        "leakage": plan.leakage,
    }
    workspace.write_json(METHODS_FILE, without_nan(document))
    text = as_markdown(scores, plan.methods, settings, chosen=chosen, sizes=_sizes(dataset), seen=seen)
    workspace.write_bytes(TABLES, text.encode())
    figures = write_benchmark_figures(workspace, predictions, scores)
    return StageOutcome(
        rows_in=len(dataset.names) + len(dataset.rejected),
        accounted=len(dataset.names),
        tables={OUTPUT: scores, PREDICTED: predictions},
        rejected=dataset.rejected,
        counts={**_sizes(dataset), "parts": len(plan.parts), "methods": len(methods)},
        files=[METHODS_FILE, TABLES, *figures],
    )


def _sizes(dataset: CrystalDataset) -> dict[str, int]:
    positive = int(dataset.labels.sum())
    return {"superconductors": positive, "others": len(dataset.labels) - positive}


def _pretraining_sizes(plan: BenchmarkPlan, settings: BenchmarkSettings) -> dict[str, list[int]]:
    """Crystals of the pre-training of each fold, by split."""
    dataset = _dataset(plan.data, plan.data_hash, settings.disorder)
    found: dict[str, list[int]] = {}
    for split, folds in make_folds(dataset, settings).items():
        for fold in folds:
            own, others, _ = _pretraining(plan.data, plan.data_hash, plan.unlabelled_hash, settings, split, fold)
            found.setdefault(split, []).append(len(own) + len(others))
    return found


def _count_done(store: Workspace, parts: Sequence[BenchmarkPart]) -> int:
    return sum(store.exists(part.file) for part in parts)


@task(name="plan-benchmark")
def plan_benchmark(data: str, settings: BenchmarkSettings) -> BenchmarkPlan:
    """Check data and settings, make and audit the folds, name the parts."""
    return make_plan(data, settings)


@task(name="benchmark-fold", task_run_name="{part.name}")
def benchmark_fold(
    workspace: str, settings: BenchmarkSettings, plan: BenchmarkPlan, part: BenchmarkPart, processes: int
) -> str:
    """Train one method on one fold and predict its held-out crystals."""
    file = make_part(workspace, part.file, run_part, settings, plan, part, device=settings.device, processes=processes)
    publish(StageEvent(STAGE, _count_done(Workspace(workspace), plan.parts), len(plan.parts)))
    return file


@task(name="finish-benchmark")
def finish_benchmark(
    workspace: str, settings: BenchmarkSettings, plan: BenchmarkPlan, started: datetime | None = None
) -> StageReport:
    """Score all methods and write the tables and figures."""
    close_workers()
    store = Workspace(workspace)
    report = run_stage(
        store,
        STAGE,
        lambda: gather(store, settings, plan),
        code_version=CODE_VERSION,
        inputs=[plan.data_hash, plan.unlabelled_hash, *(part.file for part in plan.parts)],
        settings=settings,
        started=started,
    )
    leave_results(store)
    return leave_summary(store, report)
