"""A flow for the tests of servers and workers."""

import os
import sys

from prefect import flow, task


@task
def double(number: int) -> int:
    return 2 * number


@flow(name="small")
def small(number: int = 1) -> int:
    sys.stdout.write(f"a job of {os.environ.get('SLURM_JOB_ID', 'this machine')}\n")
    return double(number)
