"""What a run leaves to be read: a summary, the refusals as a table and as lines that can be searched."""

import json
import logging

import httpx
import pytest
from prefect import flow
from prefect.settings import PREFECT_API_URL

from tasks.logs import log_event, log_line
from tasks.progress import leave_overview, leave_summary, without_numbers
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
    with caplog.at_level(logging.INFO):
        log_event("refused", stage="order", item="mp-1", reason="no cell", seconds=1.5, empty=None)
    assert caplog.messages == ['stage=order item=mp-1 refused reason="no cell" seconds=1.5']
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
