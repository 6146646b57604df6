"""Optuna's tables and its page as compose.yaml starts them, on a real PostgreSQL."""

import time

import httpx
import pytest

from tests.deployments.compose import Machine
from tests.postgres import free_port

pytestmark = pytest.mark.slow


def test_the_page_of_studies_starts_on_an_empty_database(postgres_url, tmp_path):
    password = postgres_url.split("@")[0].rpartition(":")[2]
    names = ("PREFECT_AUTH", "POSTGRES_PASSWORD", "REDIS_PASSWORD", "S3_ACCESS_KEY", "S3_SECRET_KEY")
    machine = Machine(tmp_path, dict.fromkeys(names, password), {"postgres:5432/optuna": postgres_url.split("@")[1]})
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
    finally:
        machine.stop()
