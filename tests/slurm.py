"""A real Slurm on loopback, for as long as the tests run."""

import os

import pytest

from deployments.slurm.loopback import OF_SLURM, SlurmError, SlurmOnLoopback
from tests.waiting import wait_until


@pytest.fixture(scope="session")
def slurm_on_loopback(tmp_path_factory):
    if reason := SlurmOnLoopback.unavailable_reason():
        pytest.skip(reason)
    running = SlurmOnLoopback(tmp_path_factory.mktemp("slurm"))
    try:
        running.__enter__()
    except SlurmError as error:
        pytest.skip(f"Slurm does not start here: {error}")
    yield running
    running.stop()


@pytest.fixture
def slurm(slurm_on_loopback, monkeypatch):
    """The running Slurm, set in the environment of the test; afterwards no job is left."""
    for name in [name for name in os.environ if name.startswith(OF_SLURM)]:
        monkeypatch.delenv(name)
    for name in ("PATH", "SLURM_CONF"):
        monkeypatch.setenv(name, slurm_on_loopback.environment[name])
    yield slurm_on_loopback
    slurm_on_loopback.run("scancel", "--full", f"--user={os.getuid()}")
    wait_until(lambda: not slurm_on_loopback.run("squeue", "--noheader"))
