"""One part of the group killed at one moment of one stage, and what became of the run."""

import contextlib
import random
import time
from dataclasses import dataclass
from pathlib import Path

import httpx

from tasks.dataset_events import EVENT
from tests.recovery.rig import ENDED, PARTS, contents, copy_workspace

DEPLOYMENTS = {"refresh": "refresh-weekly", "train": "train-bnas", "screen": "screen-monthly"}
BUCKET = "s3://recovery"


@dataclass(frozen=True)
class Point:
    """What is killed, in which stage, on disk or S3, and when, as a share of an undisturbed run's time."""

    number: int
    part: str
    stage: str
    place: str
    share: float


def draw_points(count, seed):
    """Parts and stages in turn, so that each comes up; moments at random. The store is killed only where it is used."""
    generator = random.Random(seed)
    pairs = [(part, stage) for stage in DEPLOYMENTS for part in PARTS]
    generator.shuffle(pairs)
    chosen = [pairs[number % len(pairs)] for number in range(count)]
    return [
        Point(number, part, stage, "S3" if part == "store" else generator.choice(("disk", "S3")), generator.random())
        for number, (part, stage) in enumerate(chosen, start=1)
    ]


def prepare(rig, stage, place, name, inputs):
    """A fresh workspace in which the stage is due; its address."""
    target = str(rig.folder / "runs" / name) if place == "disk" else f"{BUCKET}/{name}"
    if stage in inputs:
        copy_workspace(inputs[stage], target)
    return target


def make_bucket():
    """The bucket of all workspaces on S3; the environment names the store."""
    import boto3

    boto3.client("s3").create_bucket(Bucket=BUCKET.removeprefix("s3://"))


def undisturbed(rig, stage, place, inputs):
    """Seconds from asking for a run to its end, seconds that it was Running, and what the workspace holds then."""
    workspace = prepare(rig, stage, place, f"calm-{stage}-{place}", inputs)
    began = time.monotonic()
    found = rig.await_state(rig.begin(DEPLOYMENTS[stage], workspace), ENDED | {"CRASHED"})
    assert found["state_type"] == "COMPLETED", f"{found['state']['message']}\n{rig.logs()}"
    return time.monotonic() - began, found["total_run_time"], contents(workspace)


def disturb(rig, point, seconds, inputs, *, running=False):
    """Kill the part at the point's moment, start it as its supervisor does, wait for the end; what became of it.

    The moment is a share of these seconds after the request, or after the run is Running.
    """
    workspace = prepare(rig, point.stage, point.place, f"point-{point.number}", inputs)
    began = time.monotonic()
    run = rig.begin(DEPLOYMENTS[point.stage], workspace)
    counted = began
    if running:
        rig.await_state(run, ENDED | {"RUNNING", "CRASHED"})
        counted = time.monotonic()
    time.sleep(max(0.0, counted + point.share * seconds - time.monotonic()))
    state = state_of(rig, run)
    killed = rig.kill(point.part, run)
    rig.revive(point.part)
    found = rig.await_state(run, ENDED, 600)
    lasted = time.monotonic() - began
    return {
        "workspace": workspace,
        "run": run,
        "killed": killed,
        "moment": point.share * seconds,
        "state": state,
        "states": rig.states(run),
        "ended": found["state_name"],
        "message": found["state"]["message"],
        "seconds": lasted,
    }


def state_of(rig, run):
    with contextlib.suppress(httpx.HTTPError):
        return rig.run(run)["state_name"]
    return "unknown"


def twice(rig, outcome):
    """What came more than once: success of the run, the event of new data."""
    found = outcome["states"].count("Completed") - 1
    return found + max(rig.events(outcome["workspace"], EVENT) - 1, 0)


def leftovers(workspace):
    """Scratch files on a disk."""
    return [] if "://" in workspace else list(Path(workspace).rglob("*.part"))
