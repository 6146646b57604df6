"""SIGKILL of one part of a running group at random moments of a refresh, a training and a screening.

    python tests/benchmarks/recovery.py --points 20 --seed 1

Started are PostgreSQL, a Prefect server on it, `meissner up` with its worker, and an S3 store. Of each stage one run
is left alone; then one part is killed at a random moment of another (from the moment a run is asked for to its end,
or with ``--running`` from the moment it is Running), and started again as its supervisor would; a wall clock jumps by
two minutes instead (tests/recovery/clock.c). The workspace is compared with the undisturbed one, file by file. Exit
code 1 if one differs, or a run did not end well.
"""

# ruff: noqa: T201 - a benchmark prints its table

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.recovery.points import DEPLOYMENTS, disturb, draw_points, leftovers, make_bucket, twice, undisturbed
from tests.recovery.rig import contents, open_rig, small_inputs
from tests.tasks.screening_workspace import make_workspace

REVIVED = {
    "flow": "`meissner up` runs it again",
    "worker": "`meissner up` starts it again",
    "machine": "`meissner up` is started again",
    "server": "started again",
    "postgres": "started again",
    "store": "started again",
    "clock": "stays 2 min ahead, or is right again",
}


def measure(rig, points, inputs, running):
    calm = {}
    for stage in DEPLOYMENTS:
        calm[stage] = seconds, ran, files = undisturbed(rig, stage, "disk", inputs)
        print(f"Undisturbed {stage}: {seconds:.0f} s, Running for {ran:.0f} of them, {len(files)} files", flush=True)
    print("\n| | killed | stage | on | at, s | the run was | then | the run's states | lost, s | result |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    good = []
    for point in points:
        seconds, ran, files = calm[point.stage]
        found = disturb(rig, point, ran if running else seconds, inputs, running=running)
        time.sleep(6)  # the server writes events down every five
        same, doubled = contents(found["workspace"]) == files, twice(rig, found)
        good.append(same and not doubled and found["ended"] == "Completed")
        result = ["identical" if same else "DIFFERENT", f"{doubled} TWICE" if doubled else "nothing twice"]
        if found["ended"] != "Completed":
            result.append(found["message"])
        if scratch := leftovers(found["workspace"]):
            result.append(f"{len(scratch)} scratch file(s) left for `gc`")
        part = point.part if found["killed"] else f"{point.part} (had none)"
        lost = f"{found['seconds'] - seconds:.0f}"
        cells = [point.number, part, point.stage, point.place, f"{found['moment']:.1f}", found["state"]]
        cells += [REVIVED[point.part], " → ".join(found["states"]), lost, ", ".join(result)]
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
    return good


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--running", action="store_true", help="moments only while the run is Running")
    asked = parser.parse_args()
    began = time.monotonic()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before")
    with tempfile.TemporaryDirectory(prefix="recovery-") as name:
        folder = Path(name)
        small_inputs(folder)
        with open_rig(folder) as rig:
            os.environ.update(rig.keys)
            make_bucket()
            inputs = {"train": folder / "runs" / "calm-refresh-disk", "screen": folder / "networks"}
            make_workspace(folder / "networks")
            good = measure(rig, draw_points(asked.points, asked.seed), inputs, asked.running)
    print(f"\n{sum(good)} of {len(good)} points good; {(time.monotonic() - began) / 60:.0f} min in all")
    sys.exit(not all(good))


if __name__ == "__main__":
    main()
