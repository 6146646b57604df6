"""How much a Prefect server carries: flow runs queued at once, taken by two workers, on PostgreSQL and on SQLite.

    python tests/benchmarks/server_load.py --runs 200 --tasks 20 --workers 2

The workers are processes that live on: they take runs from a queue of the server as Prefect's workers do (each run is
claimed by the state Pending, which the server gives once) and run the flow themselves. So the server is measured, and
not the three to five seconds of CPU that a new Python process with Prefect takes. A run counts as complete when the
server says so, a task run when it has come through the server's events. Exit code 1 if one is lost or comes twice.
"""

# ruff: noqa: T201 - a benchmark prints its table

import argparse
import asyncio
import inspect
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import httpx

from tests import postgres

POOL = "load"
START_SECONDS = 600
QUIET_SECONDS = 60  # without a change, the measurement ends


@contextmanager
def server(folder, database_url):
    port = postgres.free_port()
    environment = os.environ | {
        "PREFECT_HOME": str(folder),
        "PREFECT_API_DATABASE_CONNECTION_URL": database_url,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_SERVER_LEVEL": "WARNING",
    }
    environment.pop("PREFECT_API_URL", None)
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    api = f"http://127.0.0.1:{port}/api"
    try:
        wait_for(lambda: answers(f"{api}/ready"))
        yield api
    finally:
        process.terminate()
        process.wait(timeout=60)


def answers(url):
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def wait_for(ready):
    deadline = time.monotonic() + START_SECONDS
    while not ready():
        if time.monotonic() > deadline:
            raise SystemExit(f"no server after {START_SECONDS} s")
        time.sleep(0.5)


def settled(count, wanted):
    """When the count reached what is wanted, or changed for the last time: a minute without a change ends the wait."""
    last, changed = None, time.monotonic()
    while last != wanted and time.monotonic() < changed + QUIET_SECONDS:
        if (now := count()) != last:
            last, changed = now, time.monotonic()
        time.sleep(0.5)
    return changed


def count(api, kind, **state):
    body = {kind: {"state": state}} if state else {}
    return httpx.post(f"{api}/{kind}/count", json=body, timeout=120).json()


def queue(api, runs, tasks):
    """The deployment and its runs, asked for by sixteen requests at a time of Prefect's client, which retries a 503."""
    from prefect.client.orchestration import PrefectClient

    made = {"name": "load", "work_pool_name": POOL, "enforce_parameter_schema": False}
    with httpx.Client(base_url=api, timeout=300) as client:
        client.post("/work_pools/", json={"name": POOL, "type": "process", "base_job_template": {}})
        flow = client.post("/flows/", json={"name": "load"}).json()["id"]
        deployment = client.post("/deployments/", json=made | {"flow_id": flow}).json()["id"]

    async def all_at_once():
        limit = asyncio.Semaphore(16)
        async with PrefectClient(api) as client:

            async def ask(number):
                async with limit:
                    wanted = {"parameters": {"tasks": tasks}, "idempotency_key": str(number)}
                    return (await client.create_flow_run_from_deployment(deployment, **wanted)).id

            return await asyncio.gather(*(ask(number) for number in range(runs)))

    return asyncio.run(all_at_once())


def work(total):
    """One worker: claim a run, run it, until all are complete or a minute brought nothing to do."""
    from prefect import flow, task
    from prefect.client.orchestration import get_client
    from prefect.flow_engine import run_flow
    from prefect.states import Pending

    @task
    def step(number: int) -> int:
        return number

    @flow(name="load")
    def load(tasks: int) -> int:
        return sum(step(number) for number in range(tasks))

    done, last = 0, time.monotonic()
    with get_client(sync_client=True) as client:
        completed = {"flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}
        while time.monotonic() < last + QUIET_SECONDS:
            if client.request("POST", "/flow_runs/count", json=completed).json() == total:
                break
            body = {"limit": 5}
            found = client.request("POST", f"/work_pools/{POOL}/get_scheduled_flow_runs", json=body).json()
            if not found:
                time.sleep(0.2)
            for entry in found:
                run = client.read_flow_run(entry["flow_run"]["id"])
                if not run.state.is_scheduled():
                    continue
                claimed = client.set_flow_run_state(run.id, Pending())
                if claimed.status.value != "ACCEPT":
                    continue
                run_flow(load, flow_run=client.read_flow_run(run.id), parameters=run.parameters)
                done, last = done + 1, time.monotonic()
    print(json.dumps([done, last]))


def measure(name, url, runs, tasks, workers):
    with tempfile.TemporaryDirectory() as folder, server(Path(folder), url.format(folder=folder)) as api:
        environment = os.environ | {
            "PREFECT_API_URL": api,
            "PREFECT_HOME": folder,
            "PREFECT_LOGGING_LEVEL": "WARNING",
        }
        started = time.monotonic()
        ids = queue(api, runs, tasks)
        queued = time.monotonic() - started
        assert len(set(ids)) == runs
        command = [sys.executable, __file__, "--work", str(runs)]
        started = time.monotonic()
        running = [
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(workers)
        ]
        done = [json.loads(process.communicate()[0].splitlines()[-1]) for process in running]
        shares, ends = zip(*done, strict=True)
        seconds = max(ends) - started
        wanted = runs * tasks
        completed = {"type": {"any_": ["COMPLETED"]}}
        recorded = settled(lambda: count(api, "task_runs", **completed), wanted) - started
        found = {
            "flow runs": count(api, "flow_runs"),
            "completed": count(api, "flow_runs", **completed),
            "task runs": count(api, "task_runs"),
            "task runs completed": count(api, "task_runs", **completed),
        }
    whole = found == {"flow runs": runs, "completed": runs, "task runs": wanted, "task runs completed": wanted}
    print(
        f"| {name} | {runs} × {tasks} | {queued:.1f} | {seconds:.1f} | {runs / seconds * 60:.0f} | "
        f"{wanted / seconds:.0f} | {recorded:.1f} | "
        f"{' + '.join(map(str, shares))} | {'none lost, none twice' if whole else found} |",
        flush=True,
    )
    return whole and sum(shares) == runs


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--tasks", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", choices=("postgresql", "sqlite"), help="one database instead of both")
    parser.add_argument("--work", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.work:
        work(asked.work)
        return
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before")
    print("| database | flow runs × tasks | queued, s | run, s | flow runs/min | tasks/s | recorded, s | by worker | |")
    print("|---|---|---|---|---|---|---|---|---|")
    good = []
    if asked.only != "sqlite":
        cluster = contextmanager(inspect.unwrap(postgres.postgres_cluster))  # the fixture of the tests
        with cluster() as databases:
            url = databases.fresh().replace("postgresql://", "postgresql+asyncpg://")
            good.append(measure("PostgreSQL", url, asked.runs, asked.tasks, asked.workers))
    if asked.only != "postgresql":
        url = "sqlite+aiosqlite:///{folder}/prefect.db"
        good.append(measure("SQLite", url, asked.runs, asked.tasks, asked.workers))
    print(f"load {os.getloadavg()[0]:.1f} after")
    sys.exit(not all(good))


if __name__ == "__main__":
    main()
