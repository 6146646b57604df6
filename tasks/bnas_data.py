"""What BNAS learns from: the labelled grids, their audited folds, and the plan of a training cut into parts."""

from functools import lru_cache
from typing import Any, Literal

import numpy as np
import pyarrow.compute as pc
import torch
from pydantic import BaseModel, ConfigDict

from models.bnas import CONFIGS, BnasConfig, BnasInputs, prepare
from models.composition_branch import composition_fractions
from models.splits import Fold
from models.training import Recipe, resolve_device
from tasks.bnas_pretraining import choose_pretrained
from tasks.exceptions import InputError
from tasks.folds import Labelled, cross_validations
from tasks.leakage import audit
from tasks.model_store import model_folder, model_version
from tasks.settings import TrainingSettings
from tasks.shards import INDEX, read_grids
from tasks.workspace import Workspace

NAME = "bnas"
CODE_VERSION = 2  # raised by hand when the same data and settings would give other networks or scores
MIN_LABELLED = 10


class Part(BaseModel):
    """One piece of the training: a network or the baselines on a fold, or a network of the ensemble."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["fold", "baselines", "member"]
    split: str = ""
    number: int
    file: str

    @property
    def name(self) -> str:
        """Name for people, such as ``random-0``."""
        return f"{self.split or 'ensemble'}-{self.number}"


class TrainingPlan(BaseModel):
    """What a training consists of; small enough to pass between tasks."""

    model_config = ConfigDict(frozen=True)

    version: str
    data: str
    config: BnasConfig
    recipe: Recipe
    pretrained: str | None = None
    folds: tuple[Part, ...]
    baselines: tuple[Part, ...]
    members: tuple[Part, ...]

    @property
    def parts(self) -> tuple[Part, ...]:
        """All parts."""
        return self.folds + self.baselines + self.members


def read_labelled(workspace: Workspace) -> Labelled:
    """The materials to learn from; InputError where they are too few or of one class only."""
    index = workspace.read_table(INDEX)
    table = index.filter(pc.is_valid(index["tc_kelvin"])).sort_by("material_id")
    labelled = Labelled(table)
    positive = int((labelled.tc_kelvin > 0).sum())
    if len(table) < MIN_LABELLED or not 0 < positive < len(table):
        raise InputError(
            f"BNAS needs grids of at least {MIN_LABELLED} materials with a measured Tc, superconductors and others "
            f"among them; {INDEX} in the workspace {workspace.url} has {len(table)}: {positive} superconductors and "
            f"{len(table) - positive} others"
        )
    return labelled


def choose_network(settings: TrainingSettings) -> tuple[BnasConfig, Recipe]:
    """The named network and recipe with the settings' epochs, seed and arithmetic; InputError for an unknown name."""
    if settings.config not in CONFIGS:
        raise InputError(f"BNAS has no configuration {settings.config!r}; choose one of {', '.join(sorted(CONFIGS))}")
    config, recipe = CONFIGS[settings.config]
    changes = {"seed": settings.seed} | ({"epochs": settings.epochs} if settings.epochs else {})
    return config, recipe.model_copy(update=changes | choose_arithmetic(settings))


def choose_arithmetic(settings: TrainingSettings) -> dict[str, Any]:
    """``precision`` and ``compiled`` of a recipe; TrainingError for a device that is not there."""
    on_gpu = resolve_device(settings.device) == "cuda"
    reduced = settings.precision == "bf16" or (settings.precision == "auto" and on_gpu)
    return {"precision": "bf16-mixed" if reduced else "32-true", "compiled": settings.compiled}


def fold_of(labelled: Labelled, settings: TrainingSettings, part: Part) -> Fold:
    """The fold that a part trains on."""
    only = settings.model_copy(update={"splits": (part.split,)})
    return cross_validations(labelled, only)[part.split][part.number]


def make_plan(workspace: Workspace, settings: TrainingSettings) -> TrainingPlan:
    """Check the data at the door, make and audit the folds, and name the parts."""
    resolve_device(settings.device)
    labelled = read_labelled(workspace)
    config, recipe = choose_network(settings)
    pretrained = choose_pretrained(workspace, settings.pretrained, config)
    folds = cross_validations(labelled, settings)
    audit(labelled, folds)
    data = labelled.fingerprint
    asked = {"network": config.model_dump(), "recipe": recipe.model_dump(), "splits": settings.splits}
    asked |= {"pretrained": pretrained} if pretrained else {}
    version = model_version(
        data=data,
        config=asked | {"folds": settings.folds, "ensemble": settings.ensemble},
        seed=settings.seed,
        code_version=CODE_VERSION,
    )
    folder = f"{model_folder(NAME, version)}/parts"
    keys = [(split, number) for split, members in folds.items() for number in range(len(members))]
    return TrainingPlan(
        version=version,
        data=data,
        config=config,
        recipe=recipe,
        pretrained=pretrained,
        folds=tuple(Part(kind="fold", split=s, number=n, file=f"{folder}/{s}-{n}.parquet") for s, n in keys),
        baselines=tuple(
            Part(kind="baselines", split=s, number=n, file=f"{folder}/{s}-{n}-baselines.parquet") for s, n in keys
        ),
        members=tuple(
            Part(kind="member", number=n, file=f"{folder}/member-{n}.safetensors") for n in range(settings.ensemble)
        ),
    )


@lru_cache(maxsize=1)
def labelled_grids(url: str, _data: str) -> tuple[Labelled, np.ndarray]:
    """Labelled rows and their grids (n, 18, 32, 32, 32), read once a process for one state of the data."""
    workspace = Workspace(url)
    labelled = read_labelled(workspace)
    return labelled, read_grids(workspace, labelled.column("material_id"))[1]


@lru_cache(maxsize=1)
def labelled_inputs(url: str, data: str, config: BnasConfig) -> tuple[Labelled, BnasInputs]:
    """Labelled rows and what the network takes of them, made once a process."""
    labelled, grids = labelled_grids(url, data)
    fractions = composition_fractions(labelled.formulas) if config.composition else None
    return labelled, BnasInputs(prepare(torch.from_numpy(grids), config), fractions)
