"""Results of jobs kept by the content of the job: a stage that runs again computes only what is new.

A stage's key decides whether it runs at all (``tasks.stages``); this decides how much of it. Results stand as JSON in
``stages/<stage>/memo/*.parquet``, a part every minute, so that a killed run loses a minute at most. What failed for a
passing reason is tried again.
"""

import json
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from tasks.exceptions import WorkspaceError
from tasks.processes import Failure, run_jobs
from tasks.progress import Advance, silent
from tasks.stages import hash_text
from tasks.workspace import Workspace

PART_SECONDS = 60.0
SCHEMA = pa.schema([pa.field("key", pa.string(), nullable=False), pa.field("result", pa.string(), nullable=False)])


class Memo:
    """``run`` does what ``tasks.processes.run_jobs`` does, but only for jobs that it has not seen before.

    Parameters
    ----------
    stage, code_version
        Whose results these are; another version remembers nothing.
    content
        Everything that the result of a job depends on, as text.
    """

    def __init__(self, workspace: Workspace, stage: str, code_version: int, content: Callable[[Any], str]) -> None:
        self.workspace, self.folder = workspace, f"stages/{stage}/memo"
        self.key = lambda job: hash_text(str(code_version), content(job))

    def run(
        self,
        function: Callable[[Any], Any],
        jobs: Sequence[Any],
        *,
        processes: int = 0,
        seconds: float | None = None,
        advance: Advance = silent,
    ) -> list[Any]:
        """Results in the order of the jobs, a Failure where a job raised or was stopped; results must be JSON."""
        keys = [self.key(job) for job in jobs]
        known, parts = self._read()
        new = [position for position, key in enumerate(keys) if key not in known]
        advance(len(jobs) - len(new))
        fresh: dict[str, str] = {}
        written = time.monotonic()

        def keep(position: int, result: Any) -> None:
            nonlocal fresh, written
            if not (isinstance(result, Failure) and result.retryable):
                fresh[keys[new[position]]] = _to_text(result)
            if time.monotonic() - written > PART_SECONDS and fresh:
                parts.append(self._write(fresh))
                known.update(fresh)
                fresh, written = {}, time.monotonic()

        options: dict[str, Any] = {"processes": processes, "seconds": seconds, "advance": advance}
        computed = run_jobs(function, [jobs[position] for position in new], keep=keep, **options)
        results = dict(zip(new, computed, strict=True))
        if fresh or len(parts) > 1:
            known.update(fresh)
            self._write({key: known[key] for key in dict.fromkeys(keys) if key in known})
            for part in parts:
                self.workspace.remove(part)
        return [results[k] if k in results else _from_text(known[key]) for k, key in enumerate(keys)]

    def _read(self) -> tuple[dict[str, str], list[str]]:
        """All that is remembered, and the parts it stands in; a part that cannot be read counts as forgotten."""
        known: dict[str, str] = {}
        parts = self.workspace.list(f"{self.folder}/*.parquet")
        for part in parts:
            try:
                table = self.workspace.read_table(part)
                known.update(zip(table["key"].to_pylist(), table["result"].to_pylist(), strict=True))
            except (WorkspaceError, KeyError):
                continue
        return known, parts

    def _write(self, results: dict[str, str]) -> str:
        name = f"{self.folder}/{uuid.uuid4().hex}.parquet"
        table = pa.table({"key": list(results), "result": list(results.values())}, schema=SCHEMA)
        self.workspace.write_table(name, table)
        return name


def _to_text(result: Any) -> str:
    return json.dumps({"failure": result.reason} if isinstance(result, Failure) else {"value": result})


def _from_text(text: str) -> Any:
    found = json.loads(text)
    return Failure(found["failure"]) if "failure" in found else found["value"]
