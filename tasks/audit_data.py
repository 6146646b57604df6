"""What a leakage audit reads: materials, a split, crystals of a pre-training, predictions; columns found by name.

A table is Parquet or text with commas, semicolons or tabs: a name in the workspace, a file, or a URL. Of the names of
a column that are listed here, whatever their case, the first that is there counts. Only the columns that are needed are
read.
"""

import io
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from models.splits import Fold, composition_key
from tasks.exceptions import InputError
from tasks.folds import Labelled
from tasks.formulas import FormulaError, chemical_system
from tasks.sources import decode_text, read_bytes, read_cells
from tasks.stages import Rejection
from tasks.workspace import Workspace

Columns = Mapping[str, list[Any]]

DATA = {
    "material_id": ("material_id", "id", "mp_id"),
    "formula": ("formula", "composition", "element", "name"),
    "supercon_formula": ("supercon_formula",),
    "class": ("superconductor", "is_superconductor", "label"),
    "tc_kelvin": ("tc_kelvin", "tc", "critical_temp", "tc (k)", "tc_k"),
    "parent_id": ("parent_id", "crystal_id", "cif"),
    "chemical_system": ("chemical_system",),
    "family": ("family",),
    "year_first": ("year_first", "year", "time"),
    "structure_hash": ("structure_hash",),
}
PREVENTED = {
    "material_id": "one material on both sides, a given split, pre-training and predictions",
    "formula": "compositions, chemical systems and polymorphs",
    "tc_kelvin": "polymorphs merged under one label, and classes spread evenly over the folds",
    "parent_id": "one crystal under several formulas, and polymorphs",
    "family": "the split family",
    "year_first": "the split year",
}
SPLIT = {"material_id": ("material_id", "id"), "split": ("split",), "fold": ("fold",), "side": ("side",)}
EVIDENCE = {
    "pretraining": {"material_id": ("material_id", "id"), "structure_hash": ("structure_hash",), "role": ("role",)},
    "predictions": {name: SPLIT[name] for name in ("material_id", "split", "fold")} | {"model": ("model",)},
}
SIDES = ("train", "test")
UNNAMED = "given"  # a split without a name; judged as a grouped one
NO_VALUE = frozenset(["nan", "none", "null", "-"])  # in lower case
_TYPES = {"tc_kelvin": pa.float64(), "year_first": pa.int32()}
CLASSES = {"0": 0.0, "1": 1.0, "false": 0.0, "true": 1.0, "0.0": 0.0, "1.0": 1.0}


@dataclass(frozen=True)
class Dataset:
    """Materials to audit, in the order of their file.

    Attributes
    ----------
    rows
        The readable ones, with those of GRID_INDEX's columns that the file has; of a 0/1 label, ``tc_kelvin`` is the
        class. ``chemical_system`` follows from the formula where the file does not say it.
    missing
        What the file lacks, each with what that keeps from being seen.
    rows_in
        How many rows the file has.
    """

    rows: Labelled
    missing: dict[str, str]
    rejected: list[Rejection]
    rows_in: int


def read_named(workspace: Workspace, name: str) -> bytes:
    """The bytes of a name in the workspace, a file or a URL; InputError where there is no such thing."""
    inside = "://" not in name and not PurePath(name).is_absolute() and ".." not in PurePath(name).parts
    if inside and workspace.exists(name):
        return workspace.read_bytes(name)
    try:
        return read_bytes(name)
    except InputError as error:
        raise InputError(f"{name} is not in the workspace {workspace.url}, and as a file: {error}") from error


def read_columns(data: bytes, name: str, wanted: Mapping[str, Sequence[str]]) -> dict[str, list[Any]]:
    """The wanted columns of a table, under our names; those that it lacks are left out. None for an empty cell."""
    if data[:4] == b"PAR1":
        try:
            file = pq.ParquetFile(io.BytesIO(data))
            found = _find(file.schema_arrow.names, wanted)
            table = file.read(columns=list(found.values()))
        except pa.ArrowException as error:
            raise InputError(f"{name} is not a Parquet file that can be read: {error}") from error
        return {ours: table[theirs].to_pylist() for ours, theirs in found.items()}
    header, rows = read_cells(decode_text(data, name), name)
    found = _find(header, wanted)
    place = {ours: header.index(theirs) for ours, theirs in found.items()}
    return {ours: [(row[k] or None) if k < len(row) else None for row in rows] for ours, k in place.items()}


def _find(header: Sequence[str], wanted: Mapping[str, Sequence[str]]) -> dict[str, str]:
    by_name = {name.strip().lower(): name for name in reversed(header)}
    named = {ours: next((by_name[name] for name in names if name in by_name), None) for ours, names in wanted.items()}
    return {ours: theirs for ours, theirs in named.items() if theirs is not None}


def read_dataset(data: bytes, name: str) -> Dataset:
    """Materials to audit; InputError where the file has neither formulas nor ids, or no row can be read."""
    columns = read_columns(data, name, DATA)
    if not {"material_id", "formula"} & set(columns):
        raise InputError(f"{name} has neither ids ({', '.join(DATA['material_id'])}) nor {', '.join(DATA['formula'])}")
    label = "class" if "class" in columns else "tc_kelvin"
    names = set(columns) - {"class"} | ({"tc_kelvin"} if label in columns else set())
    names |= {"chemical_system"} if "formula" in names else set()
    size = len(next(iter(columns.values())))
    rows, rejected = [], []
    for number in range(size):
        row = {column: values[number] for column, values in columns.items()}
        try:
            rows.append(_read_row(row, label, number + 1))
        except (FormulaError, ValueError) as error:
            rejected.append(Rejection(f"{name} row {number + 1}", str(error)))
    if not rows:
        raise InputError(f"{name} has no row that can be audited, of {size}")
    table = pa.table({name: pa.array([row.get(name) for row in rows], _TYPES.get(name)) for name in sorted(names)})
    missing = {column: prevented for column, prevented in PREVENTED.items() if column not in names}
    return Dataset(Labelled(table), missing, rejected, size)


def _read_row(row: dict[str, Any], label: str, number: int) -> dict[str, Any]:
    """One row with our types; ValueError with the reason where it cannot be audited."""
    for column in ("material_id", "formula"):
        if column in row and row[column] is None:
            raise ValueError(f"no {column}")
    read = {name: None if value is None else str(value) for name, value in row.items()}
    if "formula" in row:
        for formula in filter(None, (read["formula"], read.get("supercon_formula"))):
            composition_key(str(formula))
        found = chemical_system(str(read["formula"]))
        read["chemical_system"] = read.get("chemical_system") or found
    if "parent_id" in row:
        read["parent_id"] = read["parent_id"] or f"row {number}, no parent"
    return read | {"tc_kelvin": _label(row.get(label), label), "year_first": _year(row.get("year_first"))}


def _label(value: Any, kind: str) -> float | None:
    """Tc or class as a number, None where nothing is measured."""
    if value is None or str(value).lower() in NO_VALUE:
        return None
    if kind == "class":
        if str(value).lower() not in CLASSES:
            raise ValueError(f"the label {value!r} is neither 0 nor 1")
        return CLASSES[str(value).lower()]
    try:
        number = float(value)
    except ValueError:
        raise ValueError(f"Tc {value!r} is not a number") from None
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"Tc {value} is not a finite number of at least 0")
    return number


def _year(value: Any) -> int | None:
    try:
        return int(float(value))
    except (TypeError, ValueError, OverflowError):
        return None


def given_folds(data: bytes, name: str, rows: Labelled) -> tuple[dict[str, list[Fold]], list[str]]:
    """Folds of a split file as row numbers of the dataset, and the materials that the dataset does not have.

    Raises
    ------
    InputError
        If a column is missing, a side is neither train nor test, or no fold has materials of both sides.
    """
    columns, ids = read_columns(data, name, SPLIT), rows.optional("material_id")
    lacking = [f"{name} has no column {column}" for column in ("material_id", "side") if column not in columns]
    lacking += ["the data have no column material_id"] if ids is None else []
    if lacking or ids is None:
        raise InputError(f"A split file cannot be used: {', and '.join(lacking)}")
    places = defaultdict(list)
    for place, material in enumerate(ids):
        places[material].append(place)
    sides: dict[tuple[str, str], dict[str, set[int]]] = {}
    unknown = set()
    for number, (material, side, key) in enumerate(
        zip(columns["material_id"], columns["side"], _fold_keys(columns), strict=True), start=1
    ):
        if side not in SIDES:
            raise InputError(f"{name} row {number}: the side {side!r} is not one of {', '.join(SIDES)}")
        if str(material) not in places:
            unknown.add(str(material))
        sides.setdefault(key, {side: set() for side in SIDES})[side].update(places.get(str(material), ()))
    folds: dict[str, list[Fold]] = {}
    for (split, fold), found in sides.items():
        train, test = (np.array(sorted(found[side]), dtype=np.int64) for side in SIDES)
        if len(train) and len(test):
            folds.setdefault(split, []).append(Fold(fold, train, test))
    if not folds:
        raise InputError(f"{name} has no fold with both training and test materials that the data have")
    return folds, sorted(unknown)


@dataclass(frozen=True)
class Evidence:
    """What was seen in pre-training (values by column), and what was predicted (ids by split, fold and model)."""

    pretrained: Mapping[str, frozenset[str]]
    predicted: Mapping[tuple[str, str, str], set[str]]

    def models(self, split: str) -> list[str]:
        """Models with predictions on a split."""
        return sorted({model for name, _, model in self.predicted if name == split})


def read_evidence(files: Mapping[str, bytes]) -> Evidence:
    """Read ``pretraining`` (of a table with roles, only those in that role) and ``predictions``, as far as given.

    Raises
    ------
    InputError
        If one of them has no material ids.
    """
    read = {
        name: read_columns(files[name], f"The table of {name}", EVIDENCE[name]) for name in EVIDENCE if name in files
    }
    for name, columns in read.items():
        if "material_id" not in columns:
            raise InputError(f"The table of {name} has no column material_id")
    seen = read.get("pretraining", {})
    roles = seen.get("role")
    pretrained: dict[str, frozenset[str]] = {
        name: frozenset(str(v) for k, v in enumerate(seen[name]) if v and (roles is None or roles[k] == "pretrain"))
        for name in ("material_id", "structure_hash")
        if name in seen
    }
    predicted: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    scored = read.get("predictions", {"material_id": []})
    models = scored.get("model") or [""] * len(scored["material_id"])
    for (split, fold), model, material in zip(_fold_keys(scored), models, scored["material_id"], strict=True):
        predicted[split, fold, str(model)].add(str(material))
    return Evidence(pretrained, predicted)


def _fold_keys(columns: Columns) -> list[tuple[str, str]]:
    size = len(columns["material_id"])
    splits, folds = columns.get("split") or [UNNAMED] * size, columns.get("fold") or ["0"] * size
    return [(str(split), str(fold)) for split, fold in zip(splits, folds, strict=True)]
