"""SIGKILL for each part of a running group: the work goes on, nothing is lost, nothing comes twice, the bytes are the
same. `tests/benchmarks/recovery.py` does it at many random moments.
"""

import shutil
import time

import pytest

from tasks.dataset_events import EVENT
from tests.recovery import plain
from tests.recovery.points import DEPLOYMENTS, make_bucket, prepare
from tests.recovery.rig import ENDED, contents, open_rig, small_inputs, wait_for
from tests.tasks.screening_workspace import make_workspace

pytestmark = [pytest.mark.slow, pytest.mark.recovery, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def ends(refreshed, networks, tmp_path_factory):
    """What each stage leaves, and the folder with the workspace in which the screening begins."""
    folder = tmp_path_factory.mktemp("ends")
    make_workspace(folder / "begin")
    for source, name in ((networks, "trained"), (folder / "begin", "screened")):
        shutil.copytree(source, folder / name)
    plain.train(str(folder / "trained"))
    plain.screen(str(folder / "screened"))
    places = {"refresh": refreshed, "train": folder / "trained", "screen": folder / "screened"}
    return {stage: contents(str(place)) for stage, place in places.items()}, folder / "begin"


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recovery")
    small_inputs(folder)
    with open_rig(folder) as rig, pytest.MonkeyPatch.context() as patch:
        for name, value in rig.keys.items():
            patch.setenv(name, value)
        make_bucket()
        yield rig


def test_every_part_is_killed_and_all_three_stages_end_as_if_nothing_had_been(group, refreshed, ends):
    """Training and screening work on disk, the refresh on S3."""
    wanted, screening = ends
    begins = {"train": refreshed, "screen": screening}
    workspaces, runs = {}, {}

    def begin(stage, place):
        workspaces[stage] = prepare(group, stage, place, f"kill-{stage}", begins)
        runs[stage] = group.begin(DEPLOYMENTS[stage], workspaces[stage])
        group.await_state(runs[stage], {"RUNNING"})

    begin("train", "disk")
    assert group.kill("flow", runs["train"]) >= 1  # its worker sees it
    wait_for(lambda: "Crashed" in group.states(runs["train"]), 120, group.logs)
    begin("screen", "disk")
    assert group.kill("worker", None) == 1
    assert group.kill("flow", runs["screen"]) >= 1  # with nobody left to see it
    begin("refresh", "S3")
    for part in ("store", "server", "postgres"):
        assert group.kill(part, None)
        group.revive(part)
        time.sleep(1)
    for stage, run in runs.items():
        found = group.await_state(run, ENDED)
        assert found["state_name"] == "Completed", found["state"]["message"]
        assert contents(workspaces[stage]) == wanted[stage], stage
        assert ("Crashed" in group.states(run)) == (stage != "refresh")
    wait_for(lambda: group.events(workspaces["refresh"], EVENT), 30)
    assert group.events(workspaces["refresh"], EVENT) == 1


def test_a_clock_that_jumps_ends_no_run(group, refreshed, ends):
    wanted, screening = ends
    begins = {"train": refreshed, "screen": screening}
    for stage in begins:
        workspace = prepare(group, stage, "disk", f"clock-{stage}", begins)
        run = group.begin(DEPLOYMENTS[stage], workspace)
        group.await_state(run, {"RUNNING"})
        for _ in ("ahead", "back"):
            assert group.kill("clock", run)
            time.sleep(3)
        assert group.await_state(run, ENDED)["state_name"] == "Completed"
        assert contents(workspace) == wanted[stage], stage
        assert "Crashed" not in group.states(run)
