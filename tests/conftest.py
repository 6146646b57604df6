"""Shared fixtures. Data beside the checkout is used where it is there; a test that needs it skips with a reason."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.postgres import postgres_cluster, postgres_url  # noqa: F401 - fixtures for every test
from tests.redis import redis_server, redis_url  # noqa: F401 - fixtures for every test
from tests.s3 import s3_endpoint, s3_server  # noqa: F401 - fixtures for every test
from tests.slurm import slurm, slurm_on_loopback  # noqa: F401 - fixtures for every test

os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("PREFECT_LOGGING_ROOT_LEVEL", "ERROR")

# Other work on the machine is no fault of an example; a test that guards against hanging sets its own deadline.
settings.register_profile("shared machine", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared machine")

ROOT = Path(__file__).resolve().parents[1]
STARTER = ROOT / "deployments" / "starter"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the data folder beside the checkout is not there")
    return folder


@pytest.fixture(scope="session")
def prefect_harness():
    """One Prefect server for all tests that run flows in this process."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture
def meissner(monkeypatch, capsys):
    """Calls the command line as the program does; gives exit code, output and error output."""
    from flows.cli import main

    monkeypatch.setenv("COLUMNS", "250")

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["meissner", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, *capsys.readouterr()

    return call


@pytest.fixture(scope="module", autouse=True)
def no_server_left_in_the_environment():
    """A module that leaves the address of a server that is gone would break the commands of the next."""

    def of_prefect() -> dict[str, str]:
        return {name: value for name, value in os.environ.items() if name.startswith("PREFECT_")}

    before = of_prefect()
    yield
    after = of_prefect()
    for name in after.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)
    assert after == before
