"""How many of the starter's small crystals GPAW finishes, and how long one takes on one core.

python tests/benchmarks/gpaw_speed.py --workspace WORKSPACE --count 25 [--sites 4]

Takes the crystals with up to so many sites from a workspace's ordered table, draws some at random, and calculates them
one after another, as the stage "bands" does. CPU seconds are those of the calculation itself, so that they hold on a
machine with other work, too.
"""

import argparse
import random
import resource
import statistics
import sys
import tempfile
import time

from jobflow import JobStore, run_locally
from maggma.stores import MemoryStore

from tasks.bands import ORDERED_TABLE
from tasks.crystals import structure_from_json
from tasks.engines.gpaw import GpawBandMaker
from tasks.exceptions import MeissnerError
from tasks.workspace import Workspace


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", default="workspace")
    parser.add_argument("--count", type=int, default=25)
    parser.add_argument("--sites", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    columns = ["material_id", "sites", "structure"]
    rows = Workspace(options.workspace).read_table(ORDERED_TABLE, columns).to_pylist()
    small = sorted((row for row in rows if row["sites"] <= options.sites), key=lambda row: row["material_id"])
    chosen = random.Random(options.seed).sample(small, min(options.count, len(small)))
    walls, processor, failed = [], [], []
    for row in chosen:
        begin, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        reason = calculate(row)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        wall = time.perf_counter() - begin
        sys.stdout.write(f"{row['material_id']:32s} {wall:7.1f} s wall {seconds:7.1f} s CPU  {reason or 'finished'}\n")
        sys.stdout.flush()
        if reason:
            failed.append(row["material_id"])
        else:
            walls.append(wall)
            processor.append(seconds)
    share = 100 * len(walls) / len(chosen)
    sys.stdout.write(
        f"{len(walls)} of {len(chosen)} finished ({share:.0f} %), out of {len(small)} crystals with up to "
        f"{options.sites} sites; median {statistics.median(walls):.1f} s wall, "
        f"{statistics.median(processor):.1f} s CPU on one core\n"
    )


def calculate(row: dict[str, object]) -> str:
    """Run both jobs for one crystal; gives why it failed, or nothing."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            flow = GpawBandMaker(folder=folder).make(
                structure_from_json(str(row["structure"])), str(row["material_id"])
            )
            run_locally(flow, store=JobStore(MemoryStore()), log=False, ensure_success=True, raise_immediately=True)
        except (MeissnerError, RuntimeError) as error:
            return str(error)
    return ""


if __name__ == "__main__":
    main()
