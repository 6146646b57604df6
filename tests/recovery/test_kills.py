"""SIGKILL for each part of a running group: the work goes on, nothing is lost, nothing comes twice, the bytes are the
same. `tests/benchmarks/recovery.py` does it at many random moments.
"""

import shutil
import time

import pytest

from tasks.dataset_events import EVENT
from tests.recovery import plain
from tests.recovery.points import DEPLOYMENTS, make_bucket, prepare
from tests.recovery.rig import ENDED, contents, open_rig, small_inputs
from tests.tasks.screening_workspace import make_workspace

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """Where each stage begins, and what it leaves when nothing disturbs it."""
    folder = tmp_path_factory.mktemp("calm")
    small_inputs(folder)
    plain.refresh(str(folder / "refreshed"), folder)
    shutil.copytree(folder / "refreshed", folder / "trained")
    plain.train(str(folder / "trained"))
    make_workspace(folder / "networks")
    shutil.copytree(folder / "networks", folder / "screened")
    plain.screen(str(folder / "screened"))
    begins = {"train": folder / "refreshed", "screen": folder / "networks"}
    ends = {"refresh": "refreshed", "train": "trained", "screen": "screened"}
    return begins, {stage: contents(str(folder / name)) for stage, name in ends.items()}


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recovery")
    small_inputs(folder)
    with open_rig(folder) as rig, pytest.MonkeyPatch.context() as patch:
        for name, value in rig.keys.items():
            patch.setenv(name, value)
        make_bucket()
        yield rig


def test_every_part_is_killed_and_all_three_stages_end_as_if_nothing_had_been(group, calm):
    """The refresh works on S3, the others on disk; all at once, as the queues allow."""
    begins, ends = calm
    places = {"refresh": "S3", "train": "disk", "screen": "disk"}
    workspaces = {stage: prepare(group, stage, place, f"kill-{stage}", begins) for stage, place in places.items()}
    runs = {stage: group.begin(DEPLOYMENTS[stage], workspaces[stage]) for stage in places}
    for stage in places:
        group.await_state(runs[stage], {"RUNNING"})
    assert group.kill("worker", runs["screen"]) == 1
    assert group.kill("flow", runs["screen"]) >= 1  # with nobody left to see it: a zombie
    for part in ("store", "server", "postgres"):
        group.kill(part, None)
        group.revive(part)
        time.sleep(2)
    assert group.kill("flow", runs["train"]) >= 1
    for stage, run in runs.items():
        found = group.await_state(run, ENDED)
        assert found["state_name"] == "Completed", found["state"]["message"]
        assert contents(workspaces[stage]) == ends[stage], stage
    assert "Crashed" in group.states(runs["screen"])
    assert "Crashed" in group.states(runs["train"])
    assert "Crashed" not in group.states(runs["refresh"]), "its process lived on"
    assert group.events(workspaces["refresh"], EVENT) == 1
