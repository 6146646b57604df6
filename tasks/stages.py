"""One stage run once: what it read, what it wrote, what it refused, and whether it has to run again.

A stage's **key** is a hash of its version, its settings and the content of its inputs. The key and the hashes of the
outputs stand in ``stages/<stage>/manifest.json``, written after everything else, beside ``rejected.parquet``. So a
stage that was killed half way is run again, a finished one never is, and a change of input reaches exactly what hangs
on it. This is the project's one cache policy, in place of Prefect's result cache: it lives with the data, holds across
servers and machines, and can be checked by anyone with the files.
"""

import hashlib
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from tasks.events import StageEvent, publish
from tasks.exceptions import MissingStageError, WorkspaceError
from tasks.schemas import REJECTED
from tasks.workspace import Workspace

SHOWN_INPUTS = 20  # content hashes that a manifest lists; of more it holds one hash


@dataclass(frozen=True)
class Rejection:
    """One thing that a stage refused, with a reason that a person can act on."""

    item: str
    reason: str
    retryable: bool = False


@dataclass
class StageOutcome:
    """What a stage computed: tables by their name in the workspace, refusals, and numbers worth showing.

    ``accounted`` is how many input rows the outputs stand for (a merged row stands for several); with the refusals it
    must make ``rows_in``. ``files`` names outputs that the stage wrote itself (arrays, weights).
    """

    rows_in: int
    accounted: int
    tables: Mapping[str, pa.Table] = field(default_factory=dict)
    rejected: Sequence[Rejection] = ()
    counts: Mapping[str, Any] = field(default_factory=dict)
    files: Sequence[str] = ()


class StageReport(BaseModel):
    """The manifest of a finished stage."""

    model_config = ConfigDict(frozen=True)

    stage: str
    key: str
    outputs: dict[str, str]
    rows_in: int
    rows_refused: int
    counts: dict[str, Any]
    seconds: float
    finished: datetime
    versions: dict[str, str]
    code_version: int | None = None
    inputs: list[str] = []
    settings: dict[str, Any]
    reused: bool = False


@cache
def code_revision() -> str | None:
    """Commit of the checkout that this code runs from, with ``-dirty`` where it was changed.

    Outside of a checkout what MEISSNER_REVISION says, as in a container image; None where it says nothing.
    """
    folder, git = Path(__file__).resolve().parents[1], shutil.which("git")
    if git is None or not (folder / ".git").exists():
        return os.environ.get("MEISSNER_REVISION") or None
    asked = [git, "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    found = subprocess.run(asked, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def software_versions() -> dict[str, str]:
    """Versions of the code and of the language, for whatever is stored."""
    revision = code_revision()
    known = {"meissner": version("meissner"), "python": platform.python_version()}
    return known | ({"revision": revision} if revision else {})


def hash_text(*parts: str) -> str:
    """SHA-256 over several strings, unambiguous about where each ends."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def rejected_table(stage: str, rejections: Iterable[Rejection]) -> pa.Table:
    """Refusals as a table."""
    rows = [{"item": r.item, "stage": stage, "reason": r.reason, "retryable": r.retryable} for r in rejections]
    return pa.Table.from_pylist(rows, schema=REJECTED)


def read_report(workspace: Workspace, stage: str) -> StageReport | None:
    """The manifest of a stage, or None where the stage has not finished."""
    try:
        return StageReport.model_validate(workspace.read_json(f"stages/{stage}/manifest.json"))
    except MissingStageError:
        return None


def stage_key(stage: str, code_version: int, inputs: Sequence[str], settings: BaseModel | None) -> str:
    """Key of a stage: its name and version, the content hashes of its inputs, and its settings."""
    return hash_text(stage, str(code_version), *inputs, settings.model_dump_json() if settings else "")


def shown_inputs(inputs: Sequence[str]) -> list[str]:
    """Content hashes as a manifest holds them: each, or one of them all where there are many."""
    return list(inputs) if len(inputs) <= SHOWN_INPUTS else [hash_text(*inputs)]


def run_stage(
    workspace: Workspace,
    stage: str,
    compute: Callable[[], StageOutcome],
    *,
    code_version: int,
    inputs: Sequence[str],
    settings: BaseModel | None = None,
    started: datetime | None = None,
) -> StageReport:
    """Run ``compute`` unless its result is already in the workspace, and write what it gives atomically.

    Parameters
    ----------
    stage
        Name of the stage, e.g. ``clean``.
    code_version
        Raised by hand when the stage's code would give another result for the same input.
    inputs
        Content hashes of everything that the result depends on.
    started
        When the first of the stage's tasks began, where ``compute`` is only the last of them.

    Raises
    ------
    WorkspaceError
        If rows in are not rows accounted for plus rows refused, or nothing can be written.
    """
    key = stage_key(stage, code_version, inputs, settings)
    finished = read_report(workspace, stage)
    if finished and finished.key == key and all(map(workspace.exists, finished.outputs)):
        reused = finished.model_copy(update={"reused": True})
        publish(StageEvent(stage, report=reused))
        return reused
    publish(StageEvent(stage))
    started = started or datetime.now(UTC)
    outcome = compute()
    if outcome.rows_in != outcome.accounted + len(outcome.rejected):
        raise WorkspaceError(
            f"Stage {stage} lost rows: {outcome.rows_in} in, {outcome.accounted} accounted for, "
            f"{len(outcome.rejected)} refused"
        )
    tables = {**outcome.tables, f"stages/{stage}/rejected.parquet": rejected_table(stage, outcome.rejected)}
    for name, table in tables.items():
        workspace.write_table(name, table)
    finished_at = datetime.now(UTC)
    report = StageReport(
        stage=stage,
        key=key,
        outputs={name: workspace.fingerprint(name) for name in [*tables, *outcome.files]},
        rows_in=outcome.rows_in,
        rows_refused=len(outcome.rejected),
        counts=dict(outcome.counts),
        seconds=round((finished_at - started).total_seconds(), 3),
        finished=finished_at,
        versions=software_versions(),
        code_version=code_version,
        inputs=shown_inputs(inputs),
        settings=settings.model_dump(mode="json") if settings else {},
    )
    workspace.write_json(f"stages/{stage}/manifest.json", report.model_dump(mode="json"))
    publish(StageEvent(stage, report=report))
    return report
