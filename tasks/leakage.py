"""Stage audit: what a split of any dataset has on both sides, counted fold by fold, and what of it is not allowed.

The trainings audit their own folds by the same counts (``audit``) and stop where a split leaks. The stage looks at
more: pre-training, predictions, and whether a split follows the order of the file. It writes its table first and fails
afterwards. What no table shows, such as a normalisation that was fitted on all data, it cannot see.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from prefect import task

from models.exceptions import LeakageError, ModelInputError
from models.splits import Fold, check_leakage, composition_key, find_leak, leakage_table, order_test
from tasks.audit_data import Evidence, given_folds, read_dataset, read_evidence, read_named
from tasks.exceptions import InputError
from tasks.folds import Labelled, cross_validations
from tasks.progress import leave_summary, leave_table
from tasks.schemas import LEAKAGE
from tasks.settings import AuditSettings
from tasks.stages import Rejection, StageOutcome, StageReport, run_stage
from tasks.workspace import Workspace

STAGE = "audit"
CODE_VERSION = 1
OUTPUT = "audit/leakage.parquet"
ORDERED_SPLITS = ("family", "year")  # files are often sorted by these: following the order is no fault of theirs
KINDS = {  # columns of LEAKAGE in words: a test material has in the training …
    "materials": "itself",
    "parents": "its parent crystal",
    "doped_parents": "· only with other doping",
    "compositions": "its composition",
    "respelled": "· only spelled otherwise",
    "polymorphs": "· only as another crystal",
    "merged_polymorphs": "· that has its label",
    "rounded": "its composition in other decimals",
    "systems": "its chemical system",
    "relatives": "any of these",
    "pretraining": "itself in the pre-training",
    "unpredicted": "(no prediction)",
    "order_chance": "(chance of its order in the file)",
}
FILES = ("data", "split_file", "pretraining", "predictions")


def count_relatives(rows: Labelled, fold: Fold) -> dict[str, int | None]:
    """``models.splits.leakage_table`` of a fold, from the columns that the rows have."""
    known = rows.table.column_names
    return leakage_table(
        fold,
        material_ids=rows.optional("material_id"),
        parents=rows.optional("parent_id"),
        formulas=rows.formulas if "formula" in known else None,
        systems=rows.optional("chemical_system"),
        labels=rows.optional("tc_kelvin"),
    )


def audit(rows: Labelled, folds: Mapping[str, Sequence[Fold]]) -> dict[str, list[dict[str, Any]]]:
    """Table of what stands on both sides of each fold; LeakageError where a split leaks what it must not."""
    found: dict[str, list[dict[str, Any]]] = {}
    for split, members in folds.items():
        for fold in members:
            table = count_relatives(rows, fold)
            check_leakage(split, table, fold.name)
            found.setdefault(split, []).append({"fold": fold.name, **table})
    return found


def make_splits(rows: Labelled, settings: AuditSettings) -> tuple[dict[str, list[Fold]], dict[str, str]]:
    """Those of the settings' splits that the rows allow, and why the others cannot be made."""
    folds: dict[str, list[Fold]] = {}
    skipped: dict[str, str] = {}
    for split in settings.splits:
        try:
            folds |= cross_validations(rows, settings.model_copy(update={"splits": (split,)}))
        except ModelInputError as error:
            skipped[split] = str(error)
    if not folds:
        raise InputError(f"No split can be made: {'; '.join(skipped.values())}")
    return folds, skipped


def count_fold(rows: Labelled, split: str, fold: Fold, evidence: Evidence) -> dict[str, Any]:
    """All counts of a fold: a row of LEAKAGE without its verdict."""
    stretches, expected, chance = (None, None, None) if split in ORDERED_SPLITS else order_test(_sides(rows, fold))
    return {
        "split": split,
        "fold": fold.name,
        **count_relatives(rows, fold),
        "pretraining": _seen_before(rows, fold, evidence.pretrained),
        "unpredicted": _unpredicted(rows, split, fold, evidence),
        "stretches": stretches,
        "expected_stretches": expected,
        "order_chance": chance,
    }


def _sides(rows: Labelled, fold: Fold) -> np.ndarray:
    """(units,) bool along the file, true for test. A unit is a group of relatives that the split keeps together.

    Where files are sorted, relatives stand beside each other: rows of a grouped split follow the order without fault.
    """
    order = np.sort(np.concatenate([fold.train, fold.test]))
    test = np.isin(order, fold.test)
    for key in _kept_together(rows):
        units = key[order]
        _, first, number = np.unique(units, return_index=True, return_inverse=True)
        if np.array_equal(test[first][number], test):
            return np.asarray(test[np.sort(first)])
    return test


def _kept_together(rows: Labelled) -> list[np.ndarray]:
    """Columns by which splits are grouped, the widest groups first."""
    known = set(rows.table.column_names)
    keys = [rows.groups] if known & {"chemical_system", "parent_id", "formula"} else []
    keys += [np.array(rows.column(name)) for name in ("chemical_system", "parent_id", "material_id") if name in known]
    return keys + ([np.array([composition_key(formula) for formula in rows.formulas])] if "formula" in known else [])


def _seen_before(rows: Labelled, fold: Fold, seen: Mapping[str, frozenset[str]]) -> int | None:
    """Test rows that are crystals of the pre-training: the same id, or the same structure."""
    own = {name: values for name in seen if (values := rows.optional(name)) is not None}
    masks = [[values[row] in seen[name] for row in fold.test] for name, values in own.items()]
    return int(np.any(masks, axis=0).sum()) if masks else None


def _unpredicted(rows: Labelled, split: str, fold: Fold, evidence: Evidence) -> int | None:
    """Test rows that some model which was scored on the split has not predicted."""
    ids = rows.optional("material_id")
    models = evidence.models(split)
    if ids is None or not models:
        return None
    here = [evidence.predicted.get((split, fold.name, model), set()) for model in models]
    return sum(any(ids[row] not in found for found in here) for row in fold.test)


def find_problem(row: Mapping[str, Any], settings: AuditSettings) -> str | None:
    """What of a fold's counts the settings do not allow, as a sentence; None for nothing."""
    name = f"Fold {row['fold']!r} of the split {row['split']!r}"
    limit, test = settings.max_share, row["test"]
    found = [find_leak(row["split"], row, row["fold"], limit, settings.max_share_random)]
    for column, meaning in (
        ("pretraining", "test crystals were seen in the pre-training"),
        ("unpredicted", "test materials have no prediction, so the score is that of a subset"),
    ):
        if row[column] and row[column] > limit * test:
            found.append(f"{name}: {row[column]} of {test} {meaning} (at most {limit:.0%} may)")
    if row["order_chance"] is not None and row["order_chance"] < settings.min_order_chance:
        found.append(
            f"{name} follows the order of the file: its test materials are {row['stretches']} stretches along it, "
            f"where {row['expected_stretches']:.0f} are to be expected by lot"
        )
    return "; ".join(filter(None, found)) or None


def audit_tables(files: Mapping[str, bytes], settings: AuditSettings) -> StageOutcome:
    """Count what each fold has on both sides; see LEAKAGE.

    Parameters
    ----------
    files
        Bytes of the files that the settings name: ``data``, and those of ``split_file``, ``pretraining`` and
        ``predictions`` that are given.

    Returns
    -------
    StageOutcome
        Table ``audit/leakage.parquet``, a row a fold. Folds that are made here are those of the rows with a label (of
        all rows, where nothing is labelled). Refused are rows that cannot be read and materials of the split file that
        the data do not have.
    """
    dataset = read_dataset(files["data"], settings.data)
    evidence = read_evidence(files)
    rows, rejected, skipped = dataset.rows, list(dataset.rejected), dict[str, str]()
    labelled = rows
    if "tc_kelvin" in rows.table.column_names and rows.table["tc_kelvin"].null_count < len(rows.table):
        labelled = Labelled(rows.table.filter(pc.is_valid(rows.table["tc_kelvin"])))
    if "split_file" in files:
        folds, unknown = given_folds(files["split_file"], str(settings.split_file), rows)
        rejected += [
            Rejection(name, f"stands in {settings.split_file}, but not in {settings.data}") for name in unknown
        ]
        audited = rows
    else:
        folds, skipped = make_splits(labelled, settings)
        audited = labelled
    found = [count_fold(audited, split, fold, evidence) for split, members in folds.items() for fold in members]
    found = [{**row, "problem": find_problem(row, settings)} for row in found]
    unseen = [f"no {column}: {prevented}" for column, prevented in dataset.missing.items()]
    told = set(dataset.missing.values())
    unseen += [f"no split {name}: {reason}" for name, reason in skipped.items() if f"the split {name}" not in told]
    return StageOutcome(
        rows_in=dataset.rows_in + len(rejected) - len(dataset.rejected),
        accounted=len(rows.table),
        tables={OUTPUT: pa.Table.from_pylist(found, schema=LEAKAGE)},
        rejected=rejected,
        counts={
            "data": settings.data,
            "materials": len(audited.table),
            "unlabelled": len(rows.table) - len(labelled.table),
            "folds": len(found),
            "leaking_folds": sum(row["problem"] is not None for row in found),
            "not_seen": unseen,
        },
    )


@task(name="audit")
def audit_dataset(workspace: str, settings: AuditSettings) -> StageReport:
    """Audit the dataset and split that the settings name; see ``audit_tables``."""
    place = Workspace(workspace)
    named = {name: getattr(settings, name) for name in FILES if getattr(settings, name)}
    files = {name: read_named(place, str(source)) for name, source in named.items()}
    report = run_stage(
        place,
        STAGE,
        lambda: audit_tables(files, settings),
        code_version=CODE_VERSION,
        inputs=[f"{name} {hashlib.sha256(data).hexdigest()}" for name, data in files.items()],
        settings=settings,
    )
    rows = place.read_table(OUTPUT).to_pylist()
    leave_table("leakage", rows, "Test materials with a relative in the training, fold by fold")
    return leave_summary(place, report)


@task(name="check-audit")
def check_audit(workspace: str) -> None:
    """Raise LeakageError with the first thing that the last audit's settings do not allow."""
    place = Workspace(workspace)
    problems = [row["problem"] for row in place.read_table(OUTPUT, ["problem"]).to_pylist() if row["problem"]]
    if problems:
        more = f" (and {len(problems) - 1} further folds: see {OUTPUT})" if len(problems) > 1 else ""
        raise LeakageError(problems[0] + more)
