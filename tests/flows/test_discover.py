"""The whole pipeline as a person runs it: to the end, again, killed, and stopped."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.display import STAGES
from tasks.schemas import CANDIDATES, REJECTED
from tests.conftest import STARTER
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

ROOT = Path(__file__).resolve().parents[2]
MEISSNER = Path(sys.executable).with_name("meissner")
# Killed while the stage after the named one is at work.
KILLED_AFTER = ("crystals", "order", "bands", "grid", "train-bnas")


@pytest.fixture(scope="module")
def profile(tmp_path_factory):
    """The smallest networks on half of the starter crystals and half of their bands."""
    folder = tmp_path_factory.mktemp("inputs")
    head, *crystals = (STARTER / "crystals.csv").read_text().splitlines()
    (folder / "crystals.csv").write_text("\n".join([head, *crystals[::2]]) + "\n")
    bands = pq.read_table(STARTER / "bands.parquet")
    pq.write_table(bands.take(pa.array(range(0, len(bands), 2))), folder / "bands.parquet")
    text = (ROOT / "tests" / "data" / "quick.toml").read_text()
    text = text.replace("[bands]", f'crystals = "{folder}/crystals.csv"\n\n[bands]\nbundled = "{folder}/bands.parquet"')
    (folder / "profile.toml").write_text(text)
    return folder / "profile.toml"


def start(profile: Path, workspace: Path) -> subprocess.Popen:
    command = [MEISSNER, "discover", "--profile", profile, "--workspace", workspace]
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "COLUMNS": "200"}
    for name in ("PREFECT_API_URL", "PREFECT_HOME"):
        environment.pop(name, None)
    return subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=1200)
    assert process.returncode == 0, output
    return output


def wait_for(process: subprocess.Popen, stage: str) -> None:
    for line in process.stdout:
        if line.startswith(f"{stage} "):
            return
    raise AssertionError(f"stage {stage} never finished")


def leftovers(workspace: Path) -> list[list[str]]:
    """Command lines of processes that still work on the workspace."""
    found = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    return [line for line in found if str(workspace) in " ".join(line)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, profile):
    workspace = tmp_path_factory.mktemp("undisturbed")
    return workspace, finish(start(profile, workspace))


def test_it_ends_with_candidates_scores_and_a_report(finished):
    workspace, output = finished
    for stage in STAGES:
        assert f"\n{stage} " in f"\n{output}", f"{stage} was not shown"
    assert "ranked candidates" in output
    assert "chemical-system" in output
    assert str(workspace / "report" / "index.html") in output
    candidates = pq.read_table(workspace / "candidates" / "candidates.parquet")
    assert candidates.schema.equals(CANDIDATES, check_metadata=False)
    ranks = [rank for rank in candidates["rank"].to_pylist() if rank is not None]
    assert sorted(ranks) == list(range(1, len(ranks) + 1))
    assert ranks


def test_every_refused_item_has_its_reason(finished):
    workspace, _ = finished
    tables = [pq.read_table(path) for path in sorted(workspace.glob("stages/*/rejected.parquet"))]
    assert len(tables) == len(STAGES)
    for table in tables:
        assert table.schema.equals(REJECTED, check_metadata=False)
        assert all(reason.strip() for reason in table["reason"].to_pylist())


def test_a_second_run_computes_nothing(finished, profile):
    workspace, _ = finished
    before = (workspace / "candidates" / "candidates.parquet").stat().st_mtime_ns
    output = finish(start(profile, workspace))
    assert output.count("nothing to do") == len(STAGES)
    assert (workspace / "candidates" / "candidates.parquet").stat().st_mtime_ns == before


def test_killed_at_five_points_it_ends_with_the_same_candidates(finished, profile, tmp_path):
    undisturbed, _ = finished
    for stage in KILLED_AFTER:
        process = start(profile, tmp_path)
        wait_for(process, stage)
        time.sleep(1.0)  # into the next stage
        process.send_signal(signal.SIGKILL)
        process.wait()
        wait_until(lambda: not [line for line in leftovers(tmp_path) if "gpaw_worker" in " ".join(line)], 10)
    finish(start(profile, tmp_path))
    name = Path("candidates") / "candidates.parquet"
    assert (tmp_path / name).read_bytes() == (undisturbed / name).read_bytes()


def test_ctrl_c_stops_it_in_seconds_and_says_how_to_go_on(profile, tmp_path):
    process = start(profile, tmp_path)
    wait_for(process, "order")
    time.sleep(2.0)  # a calculation is under way
    asked = time.monotonic()
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert time.monotonic() - asked < 15
    assert process.returncode == 130
    assert "run the same command again to go on" in output
    assert "Traceback" not in output
    wait_until(lambda: not leftovers(tmp_path), 3)  # killed, they take a moment to be gone
