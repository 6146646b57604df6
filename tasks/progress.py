"""Progress of long work: plain functions take an ``Advance``, tasks hand them one that people can see.

Science functions know only ``Advance``, a function called with the number of items just finished. Tasks use
``stage_progress``, which keeps a progress artifact in Prefect's UI and tells the listeners of ``tasks.events``, and
``leave_summary``, which leaves a stage's counts and refusals as artifacts.
"""

import base64
import contextlib
import contextvars
import logging
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import partial
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
from prefect.futures import PrefectFuture, as_completed

from tasks.events import StageEvent, publish
from tasks.logs import log_event
from tasks.stages import StageReport
from tasks.workspace import Workspace

logger = logging.getLogger(__name__)

Advance = Callable[[int], None]
SHOWN_REFUSALS = 200  # in the table of an artifact, and as lines of the log
SHOWN_REASONS = 20
SHOWN_FILES = 20
LOOK_SECONDS = 2.0  # between two looks at what is under way
NUMBERS = re.compile(r"'[^']*'|\"[^\"]*\"|(?<![A-Za-z])-?\d+(?:\.\d+)?(?:e-?\d+)?")


def silent(_count: int) -> None:
    """An Advance that shows nothing."""


@contextlib.contextmanager
def stage_progress(stage: str, total: int, under_way: Callable[[], float] | None = None) -> Iterator[Advance]:
    """Give an Advance for ``total`` items of a stage; the artifact moves in steps of at least two percent.

    Parameters
    ----------
    under_way
        Asked every two seconds for what is done of items that have not ended, in items, such as 1.5.
    """
    artifact = cast(UUID, create_progress_artifact(0.0, description=stage)) if _in_run() else None
    lock = threading.Lock()
    done, shown = 0, 0.0

    def show(finished: float) -> None:
        nonlocal shown
        percent = min(100.0 * finished / max(total, 1), 100.0)
        if artifact and (percent - shown >= 2 or done >= total):
            update_progress_artifact(artifact, percent)
            shown = percent

    def advance(count: int = 1) -> None:
        nonlocal done
        with lock:
            done += count
            publish(StageEvent(stage, done, total))
            show(done)

    def look(under_way: Callable[[], float]) -> None:
        with lock:
            show(done + under_way())

    publish(StageEvent(stage, 0, total))
    with _repeated(partial(look, under_way), LOOK_SECONDS) if under_way and artifact else contextlib.nullcontext():
        yield advance


@contextlib.contextmanager
def _repeated(act: Callable[[], None], seconds: float) -> Iterator[None]:
    """Do something again and again beside what runs, in a thread with the context of this one."""
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(seconds):
            try:
                act()
            except Exception:
                logger.debug("Progress could not be shown", exc_info=True)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(repeat,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def wait_with_progress(
    stage: str, futures: Sequence[PrefectFuture[Any]], under_way: Callable[[], float] | None = None
) -> None:
    """Wait for all parts of a stage with its progress (see ``stage_progress``); the first failure is raised."""
    with stage_progress(stage, len(futures), under_way) as advance:
        for future in as_completed(list(futures)):
            future.result()
            advance(1)


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
    """Leave a stage's counts, times, versions and refusals as artifacts and log lines; gives the report back.

    Nothing happens outside of a run.
    """
    if not _in_run():
        return report
    log_event("finished", stage=report.stage, rows_in=report.rows_in, refused=report.rows_refused, s=report.seconds)
    refused = workspace.read_table(f"stages/{report.stage}/rejected.parquet").to_pylist()
    figures = {"rows in": report.rows_in, "refused": report.rows_refused, "seconds": f"{report.seconds:.1f}"}
    figures |= {"finished": f"{report.finished:%Y-%m-%d %H:%M} UTC", **report.counts, **report.versions}
    lines = [
        f"# {report.stage}",
        "Nothing to do: input, settings and code are those of the last run." if report.reused else "",
        "| what | figure |\n|---|---|",
        *(f"| {name} | {_cell(str(value))} |" for name, value in figures.items()),
        "\n## Files",
        *(f"- `{workspace.path(name)}`" for name in list(report.outputs)[:SHOWN_FILES]),
    ]
    if refused:
        table = f"[a table](/artifacts/key/refused-{report.stage})"
        lines += [f"\n## Refused ({len(refused)})", f"The first {SHOWN_REFUSALS} are in {table}, by reason:"]
        reasons = count_reasons(refused, SHOWN_REASONS)
        lines += ["\n| reason | items |\n|---|---|", *(f"| {_cell(why)} | {count} |" for why, count in reasons.items())]
        leave_table(f"refused-{report.stage}", refused[:SHOWN_REFUSALS], f"{report.stage}: what it refused, and why")
        for row in () if report.reused else refused[:SHOWN_REFUSALS]:
            fields = {"stage": report.stage, "item": row["item"], "reason": row["reason"]}
            log_event("refused", level=logging.WARNING, **fields, retryable=row["retryable"])
    create_markdown_artifact("\n".join(lines), key=f"stage-{report.stage}", description=f"{report.stage}: summary")
    return report


def leave_overview(workspace: Workspace, key: str, reports: Sequence[StageReport]) -> None:
    """Leave one table of several stages, each with a link to its own summary, as an artifact of the run."""
    if not _in_run():
        return
    lines = [
        f"# {key}: {workspace.url}",
        "| stage | rows in | refused | seconds | what it made |\n|---|---|---|---|---|",
    ]
    for report in reports:
        made = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in report.counts.items())
        time = "nothing to do" if report.reused else f"{report.seconds:.1f}"
        name = f"[{report.stage}](/artifacts/key/stage-{report.stage})"
        lines.append(f"| {name} | {report.rows_in} | {report.rows_refused} | {time} | {_cell(made)} |")
    create_markdown_artifact("\n".join(lines), key=f"overview-{key}", description=f"{key}: all stages")


def count_reasons(refused: Iterable[Mapping[str, Any]], most: int) -> dict[str, int]:
    """How many rows of a REJECTED table have each reason, numbers aside; the ``most`` commonest, in that order."""
    return dict(Counter(without_numbers(row["reason"]) for row in refused).most_common(most))


def without_numbers(reason: str) -> str:
    """A reason with … for its numbers and quoted parts, so that the same reason of several items is one."""
    return NUMBERS.sub("…", reason)


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
