"""Optuna's tables and its page as compose.yaml starts them, on a real PostgreSQL."""

import time

import httpx
import pytest

from tests.deployments.compose import DEPLOYMENTS, Machine
from tests.postgres import free_port

pytestmark = pytest.mark.slow


@pytest.fixture
def prepared(postgres_cluster):
    """URL of Optuna's database, made by the file that PostgreSQL's container runs once, and of Prefect's beside it."""
    prefect = postgres_cluster.fresh()
    name = prefect.rpartition("/")[2]
    script = ["--set", "ON_ERROR_STOP=1", "--dbname", name, "--file", str(DEPLOYMENTS / "postgres.sql")]
    postgres_cluster.run("psql", *script)
    optuna = prefect.replace(name, "optuna")
    yield prefect, optuna
    for url in (prefect, optuna):
        postgres_cluster.drop(url)


def test_the_databases_are_made_as_prefect_and_optuna_want_them(postgres_cluster, prepared):
    name = prepared[0].rpartition("/")[2]
    ask = ["--tuples-only", "--no-align", "--dbname"]
    query = "SELECT similarity('superconductor', 'superconductors') > 0.5"
    assert postgres_cluster.run("psql", *ask, name, "--command", query).stdout.strip() == "t"
    assert postgres_cluster.run("psql", *ask, "optuna", "--command", "SELECT 1").stdout.strip() == "1"


def test_the_page_of_studies_starts_on_an_empty_database(prepared, tmp_path):
    optuna = prepared[1]
    password = optuna.split("@")[0].rpartition(":")[2]
    names = ("PREFECT_AUTH", "POSTGRES_PASSWORD", "REDIS_PASSWORD", "S3_ACCESS_KEY", "S3_SECRET_KEY")
    machine = Machine(tmp_path, dict.fromkeys(names, password), {"postgres:5432/optuna": optuna.split("@")[1]})
    machine.run("studies")
    port = free_port()
    words = machine.services["optuna-dashboard"]["command"][-1]
    here = machine.here(words).replace("0.0.0.0", "127.0.0.1").replace("--port 8080", f"--port {port}")
    machine.start("optuna-dashboard", (words, here))
    try:
        deadline, status = time.monotonic() + 300, 0
        while status != 200:
            assert machine.processes["optuna-dashboard"].poll() is None, machine.log("optuna-dashboard")
            assert time.monotonic() < deadline, machine.log("optuna-dashboard")
            try:
                status = httpx.get(f"http://127.0.0.1:{port}/api/studies", timeout=5).status_code
            except httpx.HTTPError:
                time.sleep(0.3)
        assert machine.healthy("optuna-dashboard", ("8080", str(port)))
        assert not machine.healthy("optuna-dashboard", ("8080", str(free_port())))
    finally:
        machine.stop()
