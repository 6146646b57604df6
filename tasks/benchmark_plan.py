"""What the S2S benchmark judges: crystals, folds, the rows that a pre-training may see, and the list of parts."""

from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from models.exceptions import LeakageError
from models.reported_compositions import Reports
from models.splits import Fold, composition_key
from tasks.benchmark_methods import Method, check_methods, choose_methods, choose_size, describe_method
from tasks.exceptions import InputError
from tasks.folds import Labelled, cross_validations
from tasks.leakage import audit
from tasks.reported import reports_of_file
from tasks.s2s_files import CrystalDataset, dataset_from_s2s, read_unlabelled
from tasks.settings import AuditSettings, BenchmarkSettings
from tasks.sources import hash_source
from tasks.stages import hash_text

CODE_VERSION = 2  # raised by hand when the same data and settings would give other predictions
FOLDER = "benchmarks/s2s"


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
    """What a benchmark consists of, with the settings of its size; small enough to pass between tasks."""

    model_config = ConfigDict(frozen=True)

    settings: BenchmarkSettings
    data: str
    data_hash: str
    unlabelled_hash: str
    reports_hash: str
    methods: tuple[Method, ...]
    parts: tuple[BenchmarkPart, ...]
    leakage: dict[str, list[dict[str, Any]]]

    @property
    def source(self) -> tuple[str, str, str]:
        """File of the crystals, its hash, and the rule for partial occupancies: what facts about them depend on."""
        return self.data, self.data_hash, self.settings.disorder

    def read(self) -> CrystalDataset:
        """The crystals that are judged, read once a process."""
        return read_judged(*self.source)

    def read_more(self) -> CrystalDataset | None:
        """More crystals for the pre-training, if any, read once a process."""
        source = self.settings.unlabelled
        return _read_more(source, self.unlabelled_hash, self.settings.disorder) if source else None

    def read_reports(self) -> Reports:
        """Reports beside the crystals, for methods that learn from them; read once a process."""
        return reports_of_file(self.settings.reports or "", self.reports_hash)

    def fold(self, part: BenchmarkPart) -> Fold:
        """The fold of a part."""
        only = self.settings.model_copy(update={"splits": (part.split,)})
        return make_folds(self.read(), only)[part.split][part.number]

    def pretraining_rows(self, split: str, fold: Fold) -> tuple[np.ndarray, np.ndarray]:
        """Rows that may be seen before a fold is judged (see the function of this name)."""
        return pretraining_rows(self.read(), self.read_more(), split, fold)

    def pretraining_sizes(self) -> dict[str, list[int]]:
        """Crystals of the pre-training of each fold, by split."""
        return {
            split: [sum(map(len, self.pretraining_rows(split, fold))) for fold in folds]
            for split, folds in make_folds(self.read(), self.settings).items()
        }


@lru_cache(maxsize=2)
def read_judged(path: str, _hash: str, disorder: Any) -> CrystalDataset:
    """The crystals of one state of a file."""
    return dataset_from_s2s(path, disorder)


@lru_cache(maxsize=1)
def _read_more(source: str, _hash: str, disorder: Any) -> CrystalDataset:
    return read_unlabelled(source, disorder)


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
        refused = dataset.rejected
        first = f" Lines refused: {len(refused)}, the first of them: {refused[0].reason}" if refused else ""
        raise InputError(
            f"{settings.folds} folds need at least {settings.folds} crystals of each class; {positive} superconduct, "
            f"{len(dataset.labels) - positive} do not. Ask for fewer folds, or give more crystals.{first}"
        )
    if wrong := set(settings.splits) - {"random", "chemical-system"}:
        raise InputError(f"--split {min(wrong)!r} is not one of random, chemical-system: S2S has no other facts")
    asked = AuditSettings(splits=settings.splits, folds=settings.folds, seed=settings.seed)
    return cross_validations(as_rows(dataset), asked)


def make_plan(data: str, settings: BenchmarkSettings) -> BenchmarkPlan:
    """Read and check the data, make and audit the folds, name the parts."""
    settings = choose_size(settings)
    content = hash_source(data)
    dataset = read_judged(data, content, settings.disorder)
    other = hash_source(settings.unlabelled) if settings.unlabelled else ""
    more = _read_more(settings.unlabelled, other, settings.disorder) if settings.unlabelled else None
    reports = hash_source(settings.reports) if settings.reports else ""
    if settings.reports:
        reports_of_file(settings.reports, reports)
    energies = any(np.isfinite(known.energies).any() for known in (dataset, more) if known)
    methods = choose_methods(settings, energies)
    check_methods(methods, settings)
    folds = make_folds(dataset, settings)
    leakage = audit(as_rows(dataset), folds)
    for split, members in folds.items():
        for fold, row in zip(members, leakage[split], strict=True):
            row["pretraining"] = count_seen(dataset, fold, *pretraining_rows(dataset, more, split, fold), more)
    parts = [
        BenchmarkPart(
            method=method,
            split=split,
            number=number,
            file=_file(method, split, number, (content, other, reports), settings),
        )
        for method in methods
        if not method.of
        for split, members in folds.items()
        for number in range(len(members))
    ]
    return BenchmarkPlan(
        settings=settings,
        data=data,
        data_hash=content,
        unlabelled_hash=other,
        reports_hash=reports,
        methods=methods,
        parts=parts,
        leakage=leakage,
    )


def _file(method: Method, split: str, number: int, hashes: tuple[str, str, str], settings: BenchmarkSettings) -> str:
    """A part's file, named by everything that it depends on; ``hashes`` of crystals, unlabelled ones and reports."""
    asked = settings.model_dump(include={"folds", "seed", "disorder"})
    content, other, reports = hashes
    seen = (other if method.pretrained else "") + (reports if method.reports else "")
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


def count_seen(
    dataset: CrystalDataset, fold: Fold, own: np.ndarray, others: np.ndarray, more: CrystalDataset | None
) -> int:
    """Held-out crystals whose composition is in the pre-training; LeakageError where there is any."""
    seen = {composition_key(dataset.formulas[row]) for row in own}
    seen |= {composition_key(more.formulas[row]) for row in others} if more else set()
    count = sum(composition_key(dataset.formulas[row]) in seen for row in fold.test)
    if count:
        raise LeakageError(f"Fold {fold.name!r}: {count} held-out crystals would be seen in the pre-training")
    return count
