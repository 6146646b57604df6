"""Work pools of deployments/kubernetes and deployments/slurm: made on a real server by Prefect, and used."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from uuid import uuid4

import pytest
import yaml

from tests.deployments.compose import DEPLOYMENTS, services

ROOT = DEPLOYMENTS.parent
KUBERNETES = DEPLOYMENTS / "kubernetes" / "work-pool.json"
SLURM = DEPLOYMENTS / "slurm" / "work-pool.json"
PREFECT = Path(sys.executable).with_name("prefect")


def create_pool(kind, template):
    name = f"meissner-{uuid4().hex[:8]}"
    command = [PREFECT, "work-pool", "create", name, "--type", kind, "--base-job-template", template]
    environment = os.environ | {"PREFECT_API_URL": api_url()}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return name


def api_url():
    from prefect.settings import PREFECT_API_URL

    return PREFECT_API_URL.value()


def kubernetes_job(**variables):
    """The manifest that Prefect's Kubernetes worker would submit."""
    import asyncio

    from prefect.client.schemas.objects import FlowRun
    from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

    configuration = asyncio.run(
        KubernetesWorkerJobConfiguration.from_template_and_values(json.loads(KUBERNETES.read_text()), variables)
    )
    configuration.prepare_for_flow_run(FlowRun(id=uuid4(), flow_id=uuid4(), name="screen"))
    return configuration.job_manifest


def test_the_kubernetes_pool_is_made_on_a_server(prefect_harness):
    from prefect.client.orchestration import get_client

    name = create_pool("kubernetes", KUBERNETES)
    with get_client(sync_client=True) as client:
        pool = client.read_work_pool(name)
    assert (pool.type, pool.base_job_template) == ("kubernetes", json.loads(KUBERNETES.read_text()))


def test_the_template_has_all_that_prefects_own_has():
    from prefect_kubernetes.worker import KubernetesWorker

    own, ours = KubernetesWorker.get_default_base_job_template(), json.loads(KUBERNETES.read_text())
    assert set(own["variables"]["properties"]) <= set(ours["variables"]["properties"])
    assert set(own["job_configuration"]) <= set(ours["job_configuration"])


@pytest.mark.parametrize("gpus", [None, 2])
def test_a_flow_run_as_a_kubernetes_job(gpus):
    job = kubernetes_job(**({"gpus": gpus} if gpus else {}))
    pod = job["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert job["metadata"]["namespace"] == "meissner"
    assert container["image"] == services()["worker"]["image"]
    assert container["args"] == ["prefect", "flow-run", "execute"]
    limits = {"cpu": "4", "memory": "16Gi"} | ({"nvidia.com/gpu": gpus} if gpus else {})
    assert container["resources"] == {"limits": limits, "requests": {"cpu": "2", "memory": "4Gi"}}
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["envFrom"] == [{"secretRef": {"name": "meissner"}}]
    assert pod["automountServiceAccountToken"] is False
    named = {entry["name"] for entry in container["env"]}
    assert {"PREFECT__FLOW_RUN_ID", "PREFECT_RESULTS_DEFAULT_SERIALIZER"} <= named
    assert not named & {"PREFECT_API_AUTH_STRING", "AWS_SECRET_ACCESS_KEY", "MEISSNER_MP_API_KEY"}


def test_the_kubernetes_worker_may_do_what_it_does_and_no_more():
    documents = list(yaml.safe_load_all((DEPLOYMENTS / "kubernetes" / "worker.yaml").read_text()))
    kinds = [document["kind"] for document in documents]
    assert kinds == ["ServiceAccount", "ServiceAccount", "Role", "RoleBinding", "Deployment"]
    role, deployment = documents[2], documents[4]
    assert not any("secrets" in rule["resources"] or "*" in rule["verbs"] for rule in role["rules"])
    pod = deployment["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == role["metadata"]["name"]
    account = json.loads(KUBERNETES.read_text())["variables"]["properties"]["service_account_name"]["default"]
    assert account in {document["metadata"]["name"] for document in documents[:2]}
    assert pod["containers"][0]["image"] == services()["worker"]["image"]


@pytest.mark.slow
def test_a_flow_run_in_a_slurm_allocation(slurm, prefect_harness, tmp_path):
    from prefect.client.orchestration import get_client
    from prefect.deployments.runner import RunnerDeployment

    name = create_pool("process", SLURM)
    variables = {"python": sys.executable, "cpus": 1, "memory": "200M", "wall_time": "00:10:00"}
    deployment = RunnerDeployment.from_entrypoint(
        "tests.deployments.small_flow.small",
        name="small",
        work_pool_name=name,
        job_variables=variables,
        parameters={"number": 5},
    ).apply()
    environment = os.environ | {"PREFECT_API_URL": api_url(), "PYTHONPATH": str(ROOT)}
    environment |= {"PREFECT_LOGGING_ROOT_LEVEL": "INFO", "PREFECT_LOGGING_LEVEL": "INFO"}
    with get_client(sync_client=True) as client:
        run = client.create_flow_run_from_deployment(deployment)
        command = [PREFECT, "worker", "start", "--pool", name, "--type", "process", "--run-once"]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=500)
        deadline = time.monotonic() + 60
        while not (state := client.read_flow_run(run.id).state).is_final() and time.monotonic() < deadline:
            time.sleep(0.5)
    assert state.is_completed(), f"{state!r}\n{done.stdout}{done.stderr}"
    jobs = [line for line in (done.stdout + done.stderr).splitlines() if "a job of" in line]
    assert jobs, done.stdout + done.stderr
    assert "this machine" not in jobs[0], "it ran outside of Slurm"
