"""The command `meissner benchmark s2s`: tables on the terminal, and nothing done twice."""

import pytest

from flows.benchmark import benchmark_s2s
from tasks.benchmark_plan import FOLDER
from tasks.settings import BenchmarkSettings
from tasks.workspace import Workspace
from tests.flows.test_audit import command
from tests.tasks.test_benchmark_s2s import starter_lines, write_lines

pytestmark = pytest.mark.usefixtures("prefect_harness")


def test_the_command_prints_the_tables_and_a_second_run_does_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MEISSNER_WORKERS", "1")
    data = write_lines(tmp_path / "s2s.jsonl", starter_lines(6))
    place = Workspace(tmp_path / "w")
    options = ["--data", data, "--workspace", place.url, "--folds", "2", "--split", "random", "--config", "tiny"]
    options += ["--methods", "s2snet", "--epochs", "1", "--device", "cpu"]
    assert command(monkeypatch, "benchmark", "s2s", *options) == 0
    shown = capsys.readouterr().out
    assert "Table 2" in shown
    assert "83.33 / 78.52" in shown
    assert "S2SNet, pre-trained" in shown
    settings = BenchmarkSettings(
        folds=2, splits=("random",), config="tiny", methods=("s2snet",), epochs=1, device="cpu"
    )
    assert benchmark_s2s(place.url, data, settings).reused
    assert len(place.list(f"{FOLDER}/parts/*.parquet")) == 6
