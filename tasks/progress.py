"""Progress of long work: plain functions take an ``Advance``, tasks hand them one that people can see.

Science functions know only ``Advance``, a function called with the number of items just finished. Tasks use
``stage_progress``, which keeps a progress artifact in Prefect's UI and tells the listeners of ``tasks.events``, and
``leave_summary``, which leaves a stage's counts and refusals as artifacts.
"""

import base64
import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, cast
from uuid import UUID

from prefect.artifacts import (
    create_image_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.context import FlowRunContext, TaskRunContext

from tasks.events import StageEvent, publish
from tasks.stages import StageReport
from tasks.workspace import Workspace

Advance = Callable[[int], None]
SHOWN_REFUSALS = 50


def silent(_count: int) -> None:
    """An Advance that shows nothing."""


@contextlib.contextmanager
def stage_progress(stage: str, total: int) -> Iterator[Advance]:
    """Give an Advance for ``total`` items of a stage; the artifact moves in steps of at least two percent."""
    artifact = cast(UUID, create_progress_artifact(0.0, description=stage)) if _in_run() else None
    lock = threading.Lock()
    done, shown = 0, 0.0

    def advance(count: int = 1) -> None:
        nonlocal done, shown
        with lock:
            done += count
            percent = 100.0 * done / max(total, 1)
            publish(StageEvent(stage, done, total))
            if artifact and (percent - shown >= 2 or done >= total):
                update_progress_artifact(artifact, min(percent, 100.0))
                shown = percent

    publish(StageEvent(stage, 0, total))
    yield advance


class CountedProgress:
    """Progress that says how many items are done and refused, how fast it goes, and how long it will still take."""

    def __init__(self, stage: str, total: int) -> None:
        self.stage, self.total = stage, total
        self.done = self.refused = self.before = 0
        self.began = time.monotonic()
        self.artifact = cast(UUID, create_progress_artifact(0.0, description=self.text())) if _in_run() else None
        publish(StageEvent(stage, 0, total))

    def start(self, done: int, refused: int) -> None:
        """Take items as done that were so before; the rate does not count them."""
        self.before, self.began = done, time.monotonic()
        self.advance(done, refused)

    def advance(self, done: int, refused: int = 0) -> None:
        """Count items just finished, and those of them that were refused."""
        self.done += done
        self.refused += refused
        publish(StageEvent(self.stage, self.done, self.total))
        if self.artifact:
            percent = min(100.0 * self.done / max(self.total, 1), 100.0)
            update_progress_artifact(self.artifact, percent, self.text())

    def text(self) -> str:
        """Say it in a line."""
        line = f"{self.stage}: {self.done:,} of {self.total:,} materials, {self.refused:,} refused"
        now = self.done - self.before
        if not now:
            return line
        rate = now / max(time.monotonic() - self.began, 1e-3)
        left = timedelta(seconds=round((self.total - self.done) / rate))
        return f"{line}, {rate:.3g} a second, {left} left"


@contextlib.contextmanager
def counted_progress(stage: str, total: int) -> Iterator[CountedProgress]:
    """Give a CountedProgress for ``total`` materials of a stage."""
    yield CountedProgress(stage, total)


def leave_summary(workspace: Workspace, report: StageReport) -> StageReport:
    """Leave a stage's counts, times and refusals as an artifact of the run, if there is one; gives the report back."""
    if not _in_run():
        return report
    refused = workspace.read_table(f"stages/{report.stage}/rejected.parquet").to_pylist()
    lines = [
        f"# {report.stage}",
        "Nothing to do: input, settings and code are those of the last run." if report.reused else "",
        "| what | figure |\n|---|---|",
        f"| rows in | {report.rows_in} |\n| refused | {report.rows_refused} |\n| seconds | {report.seconds:.1f} |",
        *(f"| {name} | {value} |" for name, value in report.counts.items()),
    ]
    if refused:
        lines += [f"\n## Refused ({len(refused)})", "| item | reason |\n|---|---|"]
        lines += [f"| {_cell(row['item'])} | {_cell(row['reason'])} |" for row in refused[:SHOWN_REFUSALS]]
    create_markdown_artifact("\n".join(lines), key=f"stage-{report.stage}", description=f"{report.stage}: summary")
    return report


def leave_table(key: str, rows: Sequence[Mapping[str, Any]], description: str) -> None:
    """Leave rows as a table artifact of the run, if there is one."""
    if _in_run():
        create_table_artifact([dict(row) for row in rows], key=key, description=description)


def leave_figure(key: str, png: bytes, description: str) -> None:
    """Leave a picture as an artifact of the run, if there is one."""
    if _in_run():
        url = f"data:image/png;base64,{base64.b64encode(png).decode()}"
        create_image_artifact(image_url=url, key=key, description=description)


def _in_run() -> bool:
    return bool(TaskRunContext.get() or FlowRunContext.get())


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
