"""The models of the time machine: each is trained on what a year knew, and asked about the rest."""

from typing import Any, Literal, cast

import numpy as np
import torch
from pymatgen.core import Structure

from models.band_features import band_features, forest_predictions
from models.baselines import classification_baselines, describe, regression_baselines
from models.bnas import BnasInputs, prepare
from models.bnas_training import kelvin, log_labels, predict_images
from models.bnas_training import train_network as train_bnas
from models.composition_branch import composition_fractions
from models.crystals import CrystalGraph, crystal_arrays, graph
from models.exceptions import ModelInputError
from models.fusion import FUSION, fusion_predictions
from models.s2snet_training import predict_logits, remove_checkpoints
from models.s2snet_training import train_network as train_s2snet
from models.splits import Fold
from models.training import one_thread
from tasks.bnas_data import choose_network as choose_bnas
from tasks.s2snet_data import choose_network as choose_s2snet
from tasks.settings import S2SNetTrainingSettings, TimeMachineSettings, TrainingSettings
from tasks.shards import read_grids
from tasks.time_machine_data import History, Moment
from tasks.train_bnas import BAND_FOREST
from tasks.workspace import Workspace

NETWORKS = {"bnas": "BNAS", "s2snet": "S2SNet"}
UNRANKED = frozenset({"mean"})  # says the same of every material


def training_settings(
    settings: TimeMachineSettings, network: Literal["bnas", "s2snet"]
) -> TrainingSettings | S2SNetTrainingSettings:
    """Settings of the network's own training, as far as the time machine has them."""
    kind = {"bnas": TrainingSettings, "s2snet": S2SNetTrainingSettings}[network]
    given = settings.model_dump(include={"epochs", "seed", "device"})
    return kind(config=getattr(settings, network), **given)


def _fold(moment: Moment) -> tuple[np.ndarray, Fold]:
    """Rows of training and pool in one list, and the fold among them."""
    rows = np.concatenate([moment.train, moment.pool])
    trained = len(moment.train)
    return rows, Fold(str(moment.year), np.arange(trained), np.arange(trained, len(rows)))


def _labels(moment: Moment) -> np.ndarray:
    """Tc of training and pool in kelvin; the pool's are no one's to know and are 0."""
    return np.concatenate([moment.tc_kelvin, np.zeros(len(moment.pool))])


def _structures(history: History, rows: np.ndarray) -> list[Structure]:
    texts = history.column("structure")
    return [Structure.from_str(texts[row], fmt="json") for row in rows]


def ask_crystal_baselines(
    _w: Workspace, _s: TimeMachineSettings, _file: str, history: History, moment: Moment, seed: int
) -> dict[str, np.ndarray]:
    """Probabilities of every classification baseline."""
    rows, fold = _fold(moment)
    formulas = [history.formulas[row] for row in rows]
    label = (_labels(moment) > 0).astype(np.int64)
    found = classification_baselines(formulas, _structures(history, rows), label, fold, seed)
    return {name: values for name, values in found.items() if name not in UNRANKED}


def ask_band_baselines(
    workspace: Workspace, _s: TimeMachineSettings, _file: str, history: History, moment: Moment, seed: int
) -> dict[str, np.ndarray]:
    """Tc of every regression baseline, those that read bands among them."""
    rows, fold = _fold(moment)
    formulas, structures = [history.formulas[row] for row in rows], _structures(history, rows)
    tc = _labels(moment)
    found = regression_baselines(formulas, structures, tc, fold, seed)
    features, label = band_features(_grids(workspace, history, rows)), log_labels(tc)
    found[BAND_FOREST] = kelvin(forest_predictions(features, label, fold.train, fold.test, seed))
    found[FUSION] = kelvin(fusion_predictions(describe(formulas, structures), features, label, fold, seed))
    return {name: values for name, values in found.items() if name not in UNRANKED}


def ask_bnas(
    workspace: Workspace, settings: TimeMachineSettings, file: str, history: History, moment: Moment, seed: int
) -> dict[str, np.ndarray]:
    """Tc by a BNAS that was trained on what was known."""
    config, recipe = choose_bnas(cast(TrainingSettings, training_settings(settings, "bnas")))
    rows, fold = _fold(moment)
    fractions = composition_fractions([history.formulas[row] for row in rows]) if config.composition else None
    inputs = BnasInputs(prepare(torch.from_numpy(_grids(workspace, history, rows)), config), fractions)
    checkpoint = workspace.local(f"{file}.checkpoint") if workspace.is_local else None
    with one_thread(), workspace.errors("write", f"{file}.checkpoint"):
        network, _ = train_bnas(
            config,
            recipe.model_copy(update={"seed": seed}),
            inputs[torch.from_numpy(fold.train)],
            moment.tc_kelvin,
            device=settings.device,
            checkpoint=checkpoint,
        )
        answers = predict_images([network], inputs[torch.from_numpy(fold.test)], settings.device)
    if checkpoint:
        checkpoint.unlink(missing_ok=True)
    return {NETWORKS["bnas"]: np.expm1(answers.mean(axis=(0, 1)))}  # below 0 too: the order is what counts


def ask_s2snet(
    workspace: Workspace, settings: TimeMachineSettings, file: str, history: History, moment: Moment, seed: int
) -> dict[str, np.ndarray]:
    """Probability by an S2SNet, without trees, that was trained on what was known and pre-trained on its crystals."""
    named = choose_s2snet(cast(S2SNetTrainingSettings, training_settings(settings, "s2snet")))
    rows, fold = _fold(moment)
    graphs = _graphs(_structures(history, rows), named.network.radius)
    train = [row for row in fold.train if graphs[row] is not None]
    test = [row for row in fold.test if graphs[row] is not None]
    checkpoint = workspace.local(f"{file}.checkpoint") if workspace.is_local else None
    known = [graphs[row] for row in train]
    with one_thread(), workspace.errors("write", f"{file}.checkpoint"):
        labels = (moment.tc_kelvin[train] > 0).astype(np.int64)
        network = train_s2snet(named, known, labels, known, seed, device=settings.device, checkpoint=checkpoint)
        logits = np.full(len(rows), -np.inf)
        logits[test] = predict_logits(network, [graphs[row] for row in test])
    if checkpoint:
        remove_checkpoints(checkpoint)
    return {NETWORKS["s2snet"]: 1 / (1 + np.exp(-logits[fold.test]))}


def _graphs(structures: list[Structure], cutoff: float) -> list[Any]:
    """A CrystalGraph each, None for a crystal that the network cannot take."""

    def make(structure: Structure) -> CrystalGraph | None:
        try:
            return graph(crystal_arrays(structure), cutoff)
        except ModelInputError:
            return None

    return [make(structure) for structure in structures]


def _grids(workspace: Workspace, history: History, rows: np.ndarray) -> np.ndarray:
    """(rows, bands, k, k, k) grids in the order of the rows."""
    names = history.column("material_id")
    wanted = [names[row] for row in rows]
    index, grids = read_grids(workspace, wanted)
    places = {name: place for place, name in enumerate(index["material_id"].to_pylist())}
    return np.asarray(grids[[places[name] for name in wanted]])
