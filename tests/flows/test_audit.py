"""The command `meissner audit`: the table first, then one sentence and exit code 2 where a split leaks."""

import json
import sys

import httpx
import pytest
from prefect.settings import PREFECT_API_URL

from flows import cli
from flows.audit import audit
from tasks.leakage import OUTPUT
from tasks.workspace import Workspace
from tests.tasks.grid_workspace import make_grid_workspace
from tests.tasks.test_leakage import DATA, SPLIT

pytestmark = pytest.mark.usefixtures("prefect_harness")


def command(monkeypatch, *arguments):
    """Run the command line in this process on the tests' server; its exit code."""
    monkeypatch.setenv("PREFECT_API_URL", PREFECT_API_URL.value())
    monkeypatch.setenv("COLUMNS", "150")
    monkeypatch.setattr(sys, "argv", ["meissner", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code


def test_a_leaking_split_shows_its_table_and_ends_with_2(tmp_path, monkeypatch, capsys):
    (tmp_path / "data.csv").write_bytes(DATA)
    (tmp_path / "split.csv").write_bytes(SPLIT)
    place = Workspace(tmp_path / "w")
    options = ["--data", tmp_path / "data.csv", "--split-file", tmp_path / "split.csv", "--workspace", place.url]
    assert command(monkeypatch, "audit", *options) == 2
    shown, told = capsys.readouterr()
    assert "4 (67%)" in shown  # one chemical system on both sides
    sentence = [line for line in told.splitlines() if line.startswith("meissner: ")]
    assert len(sentence) == 1
    assert "Fold '0' of the split 'chemical-system' leaks: 2 parents, 2 compositions" in sentence[0]
    assert place.read_table(OUTPUT).num_rows == 1
    assert command(monkeypatch, "audit", *options, "--max-share", "0.9") == 0


def test_the_flow_runs_with_its_defaults_and_leaves_a_table_in_prefect(tmp_path):
    place = make_grid_workspace(tmp_path, count=24)
    index = place.read_table("grids/index.parquet")
    place.write_table("crystals/ordered.parquet", index)
    report = audit(place.url)
    assert report.counts["leaking_folds"] == 0
    asked = {"artifacts": {"key": {"any_": ["leakage"]}}, "sort": "UPDATED_DESC"}
    artifact = httpx.post(f"{PREFECT_API_URL.value()}/artifacts/filter", json=asked).json()[0]
    assert artifact["type"] == "table"
    rows = json.loads(artifact["data"])
    assert {row["split"] for row in rows} == {"random", "chemical-system", "family", "year"}
    assert len(rows) == report.counts["folds"]
