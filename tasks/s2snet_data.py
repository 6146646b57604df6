"""What S2SNet learns from: ordered crystals, those with a measurement labelled, and the plan of a training."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict
from pymatgen.core import Composition, Structure

from models.crystals import CrystalArrays, CrystalGraph, crystal_arrays, graph, orbit_graph
from models.exceptions import ModelInputError
from models.s2snet import CONFIGS, NamedConfig, S2SNetConfig
from models.s2snet_training import check_frozen
from models.splits import Fold
from models.training import resolve_device
from tasks.bnas_data import Part
from tasks.cleaning import OUTPUT as SUPERCONDUCTOR_TABLE
from tasks.exceptions import InputError
from tasks.folds import Labelled, cross_validations
from tasks.leakage import audit
from tasks.model_store import model_folder, model_version
from tasks.s2s_files import CrystalDataset, dataset_from_s2s
from tasks.s2snet_pretraining import choose_pretrained
from tasks.settings import S2SNetTrainingSettings
from tasks.stages import Rejection, hash_text
from tasks.workspace import Workspace

__all__ = ["CrystalDataset", "dataset_from_s2s"]

NAME = "s2snet"
ORDERED = "crystals/ordered.parquet"
CODE_VERSION = 3  # raised by hand when the same data and settings would give other networks or scores
COLUMNS = (
    "material_id",
    "parent_id",
    "formula",
    "supercon_formula",
    "tc_kelvin",
    "year_first",
    "family",
    "structure_hash",
    "structure",
)


class TrainingPlan(BaseModel):
    """What a training consists of; small enough to pass between tasks."""

    model_config = ConfigDict(frozen=True)

    version: str
    data: str
    folds: tuple[Part, ...]
    baselines: tuple[Part, ...]
    members: tuple[Part, ...]
    pretrained: str | None = None

    @property
    def parts(self) -> tuple[Part, ...]:
        """All parts."""
        return self.folds + self.baselines + self.members


@dataclass(frozen=True, eq=False)
class Crystals:
    """Crystals of the workspace that the network can take, in the order of their material ids.

    Attributes
    ----------
    rows
        As ORDERED, with ``chemical_system``; ``tc_kelvin`` is null where nothing was measured.
    graphs
        One a row.
    rejected
        Crystals that the network cannot take.
    """

    rows: Labelled
    graphs: list[CrystalGraph]
    rejected: list[Rejection]

    @property
    def labelled(self) -> np.ndarray:
        """Numbers of the rows with a measurement, int64."""
        return np.flatnonzero(self.rows.table["tc_kelvin"].is_valid().to_numpy())

    @property
    def measured(self) -> Labelled:
        """The rows with a measurement."""
        return Labelled(self.rows.table.take(self.labelled))

    @property
    def labels(self) -> np.ndarray:
        """(labelled,) int64: 1 for a superconductor, Tc above 0."""
        return (self.measured.tc_kelvin > 0).astype(np.int64)

    @property
    def log_tc(self) -> np.ndarray:
        """(labelled,) ln(Tc/K + 1)."""
        return np.log1p(np.maximum(self.measured.tc_kelvin, 0.0))

    @property
    def structures(self) -> list[Structure]:
        """Structures of the rows with a measurement."""
        return [Structure.from_str(text, fmt="json") for text in self.measured.column("structure")]


def read_crystals(workspace: Workspace, config: S2SNetConfig) -> Crystals:
    """Read the ordered crystals and find the neighbours that the network sees."""
    table = workspace.read_table(ORDERED, COLUMNS).sort_by("material_id")
    graphs, kept, rejected = [], [], []
    for number, (name, text) in enumerate(
        zip(*(table[c].to_pylist() for c in ("material_id", "structure")), strict=True)
    ):
        try:
            graphs.append(seen_by(config, crystal_arrays(Structure.from_str(text, fmt="json"))))
            kept.append(number)
        except ModelInputError as error:
            rejected.append(Rejection(name, str(error)))
    table = table.take(pa.array(kept, pa.int64()))
    systems = [Composition(formula).chemical_system for formula in table["formula"].to_pylist()]
    return Crystals(Labelled(table.append_column("chemical_system", pa.array(systems, pa.string()))), graphs, rejected)


def seen_by(config: S2SNetConfig, crystal: CrystalArrays) -> CrystalGraph:
    """A crystal as the network takes it in training: with one atom an orbit where that says the same."""
    whole = graph(crystal, config.radius)
    return orbit_graph(whole) if config.by_orbits else whole


def pretraining_rows(crystals: Crystals, split: str, test: np.ndarray) -> np.ndarray:
    """Rows that may be seen before the networks of a fold are judged on the rows ``test``.

    Elements are guessed in every crystal, measured or not, but in none that is held out, nor in an equal crystal; and
    where the split keeps groups of relatives apart, in none of the group of a held-out one.
    """
    keys = crystals.rows.column("structure_hash") if split == "random" else crystals.rows.groups.tolist()
    held_out = {keys[row] for row in test}
    return np.array([row for row, key in enumerate(keys) if key not in held_out], dtype=np.int64)


def choose_network(settings: S2SNetTrainingSettings) -> NamedConfig:
    """The named network and recipes with what the settings change; the epochs go to both. InputError: unknown name."""
    if settings.config not in CONFIGS:
        raise InputError(f"S2SNet has no configuration {settings.config!r}; choose one of {', '.join(sorted(CONFIGS))}")
    named = CONFIGS[settings.config]
    changes = {"epochs": settings.epochs} if settings.epochs else {}
    rate = {"learning_rate": settings.learning_rate} if settings.learning_rate else {}
    return named._replace(
        pretraining=named.pretraining and named.pretraining.model_copy(update=changes),
        finetuning=named.finetuning.model_copy(update=changes | rate),
        freeze=named.freeze if settings.freeze is None else settings.freeze,
        trees=named.trees if settings.trees is None else settings.trees,
    )


def describe_network(named: NamedConfig) -> dict[str, Any]:
    """Network and recipes as a document."""
    models = {"network": named.network, "pretraining": named.pretraining, "finetuning": named.finetuning}
    recipes = {name: model and model.model_dump() for name, model in models.items()}
    return recipes | {"freeze": named.freeze, "trees": named.trees, "masking": named.masking}


def check_classes(crystals: Crystals, settings: S2SNetTrainingSettings, where: str) -> None:
    """InputError where a class has fewer crystals than there are folds."""
    positive = int(crystals.labels.sum())
    negative = len(crystals.labels) - positive
    if min(positive, negative) < settings.folds:
        raise InputError(
            f"S2SNet needs at least {settings.folds} superconductors and {settings.folds} measured others, one of each "
            f"a fold; {ORDERED} in the workspace {where} has {positive} and {negative}. Add measurements (Tc = 0 for a "
            "measured absence), or ask for fewer folds"
        )


def make_plan(workspace: Workspace, crystals: Crystals, settings: S2SNetTrainingSettings) -> TrainingPlan:
    """Check the data at the door, make and audit the folds, and name the parts."""
    resolve_device(settings.device)
    named = choose_network(settings)
    check_classes(crystals, settings, workspace.url)
    folds = cross_validations(crystals.measured, settings)
    audit(crystals.measured, folds)
    data = data_hash(crystals)
    if settings.reports:
        data = hash_text(data, _reports_hash(workspace, named))
    pretrained = choose_pretrained(workspace, settings.pretrained, named.network)
    check_frozen(named, pretrained=bool(pretrained or named.pretraining))
    asked = {"splits": settings.splits, "folds": settings.folds, "ensemble": settings.ensemble}
    asked |= {"pretrained": pretrained, "positive_share": settings.positive_share}
    version = model_version(
        data=data, config=describe_network(named) | asked, seed=settings.seed, code_version=CODE_VERSION
    )
    folder = f"{model_folder(NAME, version)}/parts"
    keys = [(split, number) for split, members in folds.items() for number in range(len(members))]

    def name(kind: Literal["fold", "baselines"], ending: str) -> tuple[Part, ...]:
        return tuple(Part(kind=kind, split=s, number=n, file=f"{folder}/{s}-{n}{ending}.parquet") for s, n in keys)

    return TrainingPlan(
        version=version,
        data=data,
        folds=name("fold", ""),
        baselines=name("baselines", "-baselines"),
        members=tuple(
            Part(kind="member", number=n, file=f"{folder}/member-{n}.safetensors") for n in range(settings.ensemble)
        ),
        pretrained=pretrained,
    )


def data_hash(crystals: Crystals) -> str:
    """Hash of everything in the rows that a training depends on."""
    content = crystals.rows.table.drop_columns(["structure"])
    return hash_text(*(str(row) for row in content.to_pylist()))


def _reports_hash(workspace: Workspace, named: NamedConfig) -> str:
    """Hash of the reports that the trees learn from; InputError where there are none, or no trees."""
    if not named.trees:
        raise InputError("--reports is for the trees, and there are none: leave --no-trees out")
    if not workspace.exists(SUPERCONDUCTOR_TABLE):
        raise InputError(
            f"--reports needs {SUPERCONDUCTOR_TABLE}, which the workspace {workspace.url} does not have; "
            "run `meissner refresh` first"
        )
    return workspace.fingerprint(SUPERCONDUCTOR_TABLE)


def crystals_hash(crystals: Crystals) -> str:
    """Hash of the crystals alone, which is what a pre-training depends on."""
    return hash_text(*(str(row) for row in crystals.rows.table.select(["material_id", "structure_hash"]).to_pylist()))


def fold_rows(crystals: Crystals, settings: S2SNetTrainingSettings, part: Part) -> Fold:
    """The fold of a part, as row numbers into the measured crystals."""
    only = settings.model_copy(update={"splits": (part.split,)})
    return cross_validations(crystals.measured, only)[part.split][part.number]
