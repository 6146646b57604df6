"""An event tells once that the data changed, and nothing where nothing did."""

import time

import httpx
import pytest
from prefect.events.worker import EventsWorker
from prefect.settings import PREFECT_API_URL
from pymatgen.core import Lattice, Structure

from flows.dataset import s2s
from flows.refresh import refresh
from tasks.dataset_events import ANNOUNCED, EVENT, announce_changes, changed_stages, outputs_hash, workspace_resource
from tasks.settings import CleaningSettings
from tasks.stages import read_report
from tasks.workspace import Workspace
from tests.tasks.test_s2s_dataset import as_tables
from tests.tasks.test_stages import Counter, run

pytestmark = pytest.mark.usefixtures("prefect_harness")


def events_of(place, count):
    """Events of the workspace that the server has stored, oldest first; waits for ``count`` of them."""
    EventsWorker.drain_all(timeout=60)
    wanted = {
        "event": {"name": [EVENT]},
        "resource": {"id": [workspace_resource(place)["prefect.resource.id"]]},
        "occurred": {"since": "2020-01-01T00:00:00Z"},
        "order": "ASC",
    }
    deadline = time.monotonic() + 120
    while True:
        answer = httpx.post(f"{PREFECT_API_URL.value()}/events/filter", json={"filter": wanted})
        answer.raise_for_status()
        found = answer.json()["events"]
        if len(found) >= count or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


@pytest.fixture
def inputs(tmp_path):
    reports, crystals = tmp_path / "reports.csv", tmp_path / "crystals"
    reports.write_text("formula,tc\nNb,9.2\nMgB2,39\n")
    crystals.mkdir()
    Structure.from_spacegroup("Im-3m", Lattice.cubic(3.3), ["Nb"], [[0, 0, 0]]).to(str(crystals / "Nb.cif"))
    return reports, str(crystals)


def test_a_refresh_tells_what_changed_and_the_next_one_nothing(tmp_path, inputs):
    reports, crystals = inputs
    place = Workspace(tmp_path / "w")

    def refreshed(**options):
        return refresh(place.url, str(reports), crystals, until="order", **options)

    first = refreshed()
    (event,) = events_of(place, 1)
    assert event["resource"]["prefect.resource.id"].startswith("meissner.workspace.")
    assert event["payload"]["changed"] == ["clean", "crystals", "match", "order"]
    clean = event["payload"]["stages"]["clean"]
    assert (clean["rows_in"], clean["counts"]["superconductors"]) == (2, 2)
    assert clean["sha256"] == outputs_hash(first[0])
    assert "flow-run" in {related["prefect.resource.role"] for related in event["related"]}
    assert all(report.reused for report in refreshed())
    refreshed(cleaning=CleaningSettings(max_tc_kelvin=100))  # runs again and writes the same
    reports.write_text("formula,tc\nNb,9.3\nMgB2,39\n")
    refreshed()
    found = events_of(place, 2)
    assert [event["payload"]["changed"] for event in found[1:]] == [["clean", "match", "order"]]


def test_the_training_set_is_told_too(tmp_path):
    place = Workspace(tmp_path)
    ordered, superconductors = as_tables()
    place.write_table("crystals/ordered.parquet", ordered)
    place.write_table("supercon/superconductors.parquet", superconductors)
    s2s(place.url, export=str(tmp_path / "s2s.jsonl"))
    s2s(place.url)
    (event,) = events_of(place, 1)
    assert event["payload"]["stages"]["s2s"]["counts"]["superconductors"] == 3
    assert (tmp_path / "s2s.jsonl").is_file()


def test_outside_a_flow_nothing_is_told_and_nothing_counts_as_told(tmp_path):
    place = Workspace(tmp_path)
    report = run(place, Counter())
    assert announce_changes(place.url, [report]) is None
    assert not place.exists(ANNOUNCED)
    assert set(changed_stages(place, [report])) == {"clean"}
    assert events_of(place, 0) == []


def test_only_other_outputs_are_a_change(tmp_path):
    place = Workspace(tmp_path)
    report = run(place, Counter())
    place.write_json(ANNOUNCED, {"clean": outputs_hash(report)})
    assert changed_stages(place, [report]) == {}
    other = read_report(place, "clean").model_copy(update={"outputs": report.outputs | {"a/out.parquet": "other"}})
    assert set(changed_stages(place, [other])) == {"clean"}
    assert changed_stages(place, [other.model_copy(update={"stage": "train-bnas"})]) == {}


def test_a_workspace_has_one_name_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    near, far = workspace_resource(Workspace("w")), workspace_resource(Workspace(tmp_path / "w"))
    assert near == far
    assert near != workspace_resource(Workspace("memory://w"))
