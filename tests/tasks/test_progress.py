"""What a run leaves to be read: a summary, the refusals as a table and as lines that can be searched."""

import json
import logging
import time

import httpx
import pytest
from prefect import flow
from prefect.settings import PREFECT_API_URL

from tasks.epochs import counted_epochs, parts_under_way
from tasks.logs import log_event, log_line
from tasks.progress import leave_overview, leave_summary, stage_progress, without_numbers
from tasks.stages import Rejection, StageOutcome, run_stage
from tasks.workspace import Workspace

REFUSED = [Rejection("mp-1", "band gap 1.2 eV is above 0.2 eV"), Rejection("mp-2", "band gap 3 eV is above 0.2 eV")]


def artifact(key):
    found = httpx.get(f"{PREFECT_API_URL.value()}/artifacts/{key}/latest")
    found.raise_for_status()
    return found.json()["data"]


@pytest.mark.usefixtures("prefect_harness")
def test_a_stage_leaves_its_summary_and_its_refusals(tmp_path):
    place = Workspace(tmp_path)

    @flow(name="summarised")
    def summarised():
        outcome = StageOutcome(5, 3, rejected=REFUSED, counts={"grids": 3})
        report = run_stage(place, "odd", lambda: outcome, code_version=7, inputs=["i"])
        leave_overview(place, "odd", [leave_summary(place, report)])
        return report

    report = summarised()
    summary = artifact("stage-odd")
    assert "| rows in | 5 |" in summary
    assert "| grids | 3 |" in summary
    assert "| band gap … eV is above … eV | 2 |" in summary
    assert f"| meissner | {report.versions['meissner']} |" in summary
    assert "stages/odd/rejected.parquet" in summary
    assert [row["item"] for row in json.loads(artifact("refused-odd"))] == ["mp-1", "mp-2"]
    assert "| [odd](/artifacts/key/stage-odd) | 5 | 2 |" in artifact("overview-odd")
    assert (report.code_version, report.inputs) == (7, ["i"])


def test_log_lines_have_fields(caplog):
    with caplog.at_level(logging.INFO, logger="tasks.logs"):
        log_event("refused", stage="order", item="mp-1", reason="no cell", seconds=1.5, empty=None)
    told = [record.getMessage() for record in caplog.records if record.name == "tasks.logs"]  # threads may log, too
    assert told == ['stage=order item=mp-1 refused reason="no cell" seconds=1.5']
    assert log_line("done", item='a"b=c') == 'item="a\\"b=c" done'


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("'Nb3Xx' is no formula", "… is no formula"),
        ("gap 1.25 eV, mp-12, Nb3Sn", "gap … eV, mp-…, Nb3Sn"),
        ("no crystal", "no crystal"),
    ],
)
def test_reasons_are_counted_without_their_numbers(reason, kind):
    assert without_numbers(reason) == kind


@pytest.mark.usefixtures("prefect_harness")
def test_progress_shows_what_is_under_way_between_two_items(monkeypatch):
    monkeypatch.setattr("tasks.progress.LOOK_SECONDS", 0.05)
    seen = []

    def percent():
        only = {"artifacts": {"type": {"any_": ["progress"]}}, "sort": "CREATED_DESC", "limit": 50}
        rows = httpx.post(f"{PREFECT_API_URL.value()}/artifacts/filter", json=only).json()
        return next(row["data"] for row in rows if row["description"] == "half-way")

    @flow(name="half-way")
    def half_way():
        with stage_progress("half-way", 4, lambda: 1.5 if len(seen) < 2 else 0.0) as advance:
            for expected in (37.5, 62.5):
                deadline = time.monotonic() + 120
                while percent() < expected and time.monotonic() < deadline:
                    time.sleep(0.05)
                seen.append(percent())
                advance(1)

    half_way()
    assert seen == [37.5, 62.5]
    assert percent() == 62.5


def test_epochs_are_counted_beside_a_part_until_it_ends(tmp_path):
    place = Workspace(tmp_path)
    with counted_epochs(place, "parts/one.parquet", 8) as advance:
        assert parts_under_way(place, ["parts/one.parquet", "parts/two.parquet"]) == 0
        advance(2)
        assert parts_under_way(place, ["parts/one.parquet", "parts/two.parquet"]) == 0.25
    assert place.list("parts/*") == []
    with counted_epochs(Workspace("memory://epochs"), "parts/one.parquet", 8) as advance:
        advance(1)
    assert parts_under_way(Workspace("memory://epochs"), ["parts/one.parquet"]) == 0
