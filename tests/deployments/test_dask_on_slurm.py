"""Dask's workers as Slurm jobs: functions run in them, and the work of a cancelled job is done by another."""

import os
import subprocess
import sys
import time

import dask
import pytest
from dask_jobqueue import SLURMCluster
from distributed import Client

from tasks.runners import slurm_options
from tasks.settings import ClusterSettings
from tests.waiting import wait_until


@pytest.fixture
def make_cluster(slurm, tmp_path):
    """Makes a cluster, closed at the end; a lost worker is given up after a second, not fifteen."""
    made = []

    def make(**options):
        made.append(SLURMCluster(**options))
        return made[-1]

    with dask.config.set({"distributed.deploy.lost-worker-timeout": "1s"}):
        yield make
        for cluster in made:
            cluster.close()


@pytest.fixture
def options(tmp_path):
    """What a worker on this machine needs, and no more."""
    return {
        "cores": 1,
        "processes": 1,
        "memory": "1GiB",
        "interface": "lo",
        "python": sys.executable,
        "log_directory": str(tmp_path / "logs"),
        "local_directory": str(tmp_path),
        "scheduler_options": {"dashboard_address": ":0"},
    }


def jobs(slurm):
    return set(slurm.run("squeue", "--noheader", "--format=%i", "--states=running").split())


def submit_slow(client, started):
    """Submit a task that notes the Slurm job it starts in; it ends at once when it is started a second time."""

    def run():
        job = os.environ["SLURM_JOB_ID"]
        with started.open("a") as file:
            file.write(f"{job}\n")
        if len(started.read_text().split()) == 1:
            time.sleep(600)
        return job

    future = client.submit(run)
    wait_until(lambda: started.exists() and started.read_text().strip())
    return future


def test_functions_run_in_slurm_jobs(make_cluster, options, slurm, tmp_path):
    cluster = make_cluster(**options)
    assert cluster.scheduler_address.startswith("tcp://127.0.0.1:")
    cluster.scale(2)
    with Client(cluster) as client:
        client.wait_for_workers(2, timeout=240)

        def where(number):
            met = tmp_path / "met"
            met.mkdir(exist_ok=True)
            (met / os.environ["SLURM_JOB_ID"]).touch()
            while len(list(met.iterdir())) < 2:  # neither job takes all of the work
                time.sleep(0.1)
            return number**2, os.environ["SLURM_JOB_ID"]

        squares, numbers = zip(*client.gather(client.map(where, range(6))), strict=True)
        assert squares == (0, 1, 4, 9, 16, 25)
        assert set(numbers) == jobs(slurm)
        assert len(set(numbers)) == 2
    cluster.close()
    wait_until(lambda: not jobs(slurm))


def test_the_task_of_a_cancelled_job_is_run_by_another_and_the_number_is_kept(make_cluster, options, slurm, tmp_path):
    cluster = make_cluster(**options)
    cluster.adapt(minimum=2, maximum=2)
    with Client(cluster) as client:
        client.wait_for_workers(2, timeout=240)
        before = jobs(slurm)
        future = submit_slow(client, tmp_path / "started")
        first = (tmp_path / "started").read_text().strip()
        subprocess.run(["scancel", first], check=True)
        second = future.result(timeout=240)
        assert {first, second} == before
        wait_until(lambda: len(jobs(slurm) - before) == 1)
        client.wait_for_workers(2, timeout=240)


def test_the_only_job_is_replaced_with_the_options_of_the_product(make_cluster, slurm, tmp_path):
    settings = ClusterSettings(
        kind="slurm", jobs=1, memory="1GiB", interface="lo", wall_time="00:10:00", logs=str(tmp_path / "logs")
    )
    cluster = make_cluster(**slurm_options(settings))
    cluster.adapt(minimum=settings.least_jobs, maximum=settings.jobs, wait_count=60)
    with Client(cluster) as client:
        future = submit_slow(client, tmp_path / "started")
        first = (tmp_path / "started").read_text().strip()
        assert jobs(slurm) == {first}
        subprocess.run(["scancel", first], check=True)
        second = future.result(timeout=240)
        assert second != first
        assert jobs(slurm) == {second}
        name = slurm.run("squeue", "--noheader", "--format=%j %l", f"--jobs={second}")
        assert name == "meissner 10:00"
