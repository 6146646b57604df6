import os
import shutil
import subprocess
import sys

import pyarrow as pa
import pytest

from tasks.events import StageEvent, subscribe
from tasks.exceptions import WorkspaceError
from tasks.settings import CleaningSettings
from tasks.stages import Rejection, StageOutcome, read_report, run_stage
from tasks.workspace import Workspace
from tests.conftest import ROOT

TABLE = pa.table({"formula": ["MgB2"]})


class Counter:
    def __init__(self, **outcome):
        self.calls, self.outcome = 0, {"rows_in": 2, "accounted": 1, "tables": {"a/out.parquet": TABLE}, **outcome}
        self.outcome.setdefault("rejected", [Rejection("Xx2", "Xx is not an element")])

    def __call__(self):
        self.calls += 1
        return StageOutcome(**self.outcome)


def run(workspace, compute, inputs=("hash",), settings=None, code_version=1):
    return run_stage(workspace, "clean", compute, code_version=code_version, inputs=inputs, settings=settings)


def test_a_stage_runs_once(tmp_path):
    workspace, compute = Workspace(tmp_path), Counter()
    first = run(workspace, compute)
    second = run(workspace, compute)
    assert compute.calls == 1
    assert (first.reused, second.reused) == (False, True)
    assert (first.rows_in, first.rows_refused) == (2, 1)
    assert read_report(workspace, "clean") == first
    rejected = workspace.read_table("stages/clean/rejected.parquet").to_pylist()
    assert rejected == [{"item": "Xx2", "stage": "clean", "reason": "Xx is not an element", "retryable": False}]


@pytest.mark.parametrize(
    "change",
    [{"inputs": ("other",)}, {"settings": CleaningSettings(max_tc_kelvin=100)}, {"code_version": 2}],
    ids=["input", "settings", "code"],
)
def test_a_stage_runs_again_when_what_it_hangs_on_changes(tmp_path, change):
    workspace, compute = Workspace(tmp_path), Counter()
    run(workspace, compute)
    run(workspace, compute, **change)
    assert compute.calls == 2


def test_a_missing_output_is_made_again(tmp_path):
    workspace, compute = Workspace(tmp_path), Counter()
    run(workspace, compute)
    workspace.remove("a/out.parquet")
    assert not run(workspace, compute).reused
    assert workspace.exists("a/out.parquet")


def test_lost_rows_are_an_error_and_nothing_is_marked_finished(tmp_path):
    workspace = Workspace(tmp_path)
    with pytest.raises(WorkspaceError, match=r"Stage clean lost rows: 3 in, 1 accounted for, 1 refused"):
        run(workspace, Counter(rows_in=3))
    assert read_report(workspace, "clean") is None


def test_listeners_hear_the_start_and_the_end(tmp_path):
    heard: list[StageEvent] = []
    with subscribe(heard.append):
        report = run(Workspace(tmp_path), Counter())
    assert heard == [StageEvent("clean"), StageEvent("clean", report=report)]


@pytest.mark.parametrize(("given", "told"), [("0123456789ab", "0123456789ab"), ("", None)])
def test_code_outside_of_a_checkout_knows_its_commit_by_the_environment(tmp_path, given, told):
    """As in a container image: the same files, no .git."""
    shutil.copytree(ROOT / "tasks", tmp_path / "tasks")
    shutil.copytree(ROOT / "models", tmp_path / "models")
    code = "from tasks import settings, stages as s; settings.Settings.load(); print(s.__file__, s.code_revision())"
    environment = os.environ | {"MEISSNER_REVISION": given, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(tmp_path / "tasks" / "stages.py"), str(told)]
