"""Planted secrets do their work and are found nowhere afterwards."""

import base64
import gzip
import os
import subprocess
import sys
from pathlib import Path

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.exceptions import MeissnerError
from tasks.exceptions import InputError
from tasks.settings import Settings, TuningSettings
from tasks.tuning import storage_url
from tasks.workspace import Workspace
from tests.tasks.materials_project import KEY, materials_project

MEISSNER = Path(sys.executable).with_name("meissner")
AWS_SECRET = "planted6aws7secret8"
PASSWORD = "planted9password0of1prefect"
WEBHOOK = "https://hooks.example.invalid/services/planted4webhook5path"
HOOK = "planted3hook"
TELL_TO_A_HOOK_THAT_REFUSES = """
import sys, time
from flows.up import opened_server, register_everything
from tasks.dataset_events import tell, workspace_resource
from tasks.model_events import DROPPED
from tasks.settings import Settings
from tasks.workspace import Workspace
from tests.tasks.local_servers import hook
folder, secret = sys.argv[1:]
with hook(status=404) as (url, posted):
    settings = Settings(workspace=folder, notify_url=f"{url}/{secret}")
    with opened_server(settings):
        register_everything(settings, None, lambda *_: None)
        for _ in range(30):  # until the server's triggers have learnt of the new automations
            tell(DROPPED, workspace_resource(Workspace(folder)), {})
            time.sleep(2)
            if posted:
                break
        time.sleep(2)  # until the answer is dealt with
print(len(posted))
"""


def readable(name: str, data: bytes) -> bytes:
    """A file with what it holds in compressed form: all of a table's text, and its metadata; what gzip has packed."""
    if data[:2] == b"\x1f\x8b":
        return data + readable(name.removesuffix(".gz"), gzip.decompress(data))
    if data[:4] != b"PAR1":
        return data
    table = pq.read_table(pa.BufferReader(data))
    rows = repr(table.to_pylist()).encode()  # nested columns, too
    return b"\n".join([data, rows, *(part for pair in (table.schema.metadata or {}).items() for part in pair)])


def find(secret: str, files: dict[str, bytes]) -> list[str]:
    """Names of the files that hold a secret: plain, in base64, or in hexadecimal."""
    forms = [secret.encode(), base64.b64encode(secret.encode()), secret.encode().hex().encode()]
    return [name for name, data in files.items() if any(form in readable(name, data) for form in forms)]


@pytest.fixture(scope="module")
def run(s3_endpoint, tmp_path_factory):
    """A real run with all secrets: crystals by key, workspace by S3 keys, a server with a password."""
    folder = tmp_path_factory.mktemp("secrets")
    home = folder / "home"
    home.mkdir()
    access = {"aws_access_key_id": "planted2id", "aws_secret_access_key": AWS_SECRET, "region_name": "us-east-1"}
    bucket = boto3.client("s3", endpoint_url=s3_endpoint, **access)
    bucket.create_bucket(Bucket="secrets")
    (folder / "reports.csv").write_text("formula,tc\nMgB2,39\nNbC,11.1\nAl,1.2\n")
    with materials_project(folder) as url:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "AWS_"))}
        environment |= {
            "HOME": str(home),
            "MEISSNER_FETCH__MATERIALS_PROJECT__ENDPOINT": url,
            "MEISSNER_MP_API_KEY": KEY,
            "MEISSNER_NOTIFY_URL": WEBHOOK,
            "AWS_ENDPOINT_URL": s3_endpoint,
            "AWS_ACCESS_KEY_ID": "planted2id",
            "AWS_SECRET_ACCESS_KEY": AWS_SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "PREFECT_SERVER_API_AUTH_STRING": f"group:{PASSWORD}",
            "PREFECT_LOGGING_LEVEL": "DEBUG",
        }
        command = [MEISSNER, "refresh", "--workspace", "s3://secrets/w", "--supercon", folder / "reports.csv"]
        done = subprocess.run(
            [*command, "--crystals", "mp", "--until", "match"],
            env=environment,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=550,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    objects = {}
    for page in bucket.get_paginator("list_objects_v2").paginate(Bucket="secrets"):
        for entry in page.get("Contents", []):
            objects[entry["Key"]] = bucket.get_object(Bucket="secrets", Key=entry["Key"])["Body"].read()
    files = {str(path.relative_to(home)): path.read_bytes() for path in home.rglob("*") if path.is_file()}
    return {"output": done.stdout.encode() + done.stderr.encode(), **objects, **files}


def test_the_run_was_a_real_one_with_a_server_and_a_workspace(run):
    assert len(run["w/crystals/matches.parquet"]) > 100
    [database] = [data for name, data in run.items() if name.endswith("prefect.db")]
    assert b"refresh" in database
    assert b"clean" in database
    assert any(name.endswith("server.log") for name in run)


@pytest.mark.parametrize(
    "secret",
    [KEY, AWS_SECRET, PASSWORD, f"group:{PASSWORD}", WEBHOOK, "planted4webhook5path"],
    ids=["materials project", "s3", "prefect", "whole", "webhook", "its path"],
)
def test_no_secret_is_anywhere(run, secret):
    assert find(secret, run) == []


def test_a_secret_in_a_compressed_file_is_found(run):
    """Planted where the run writes: in a table's cell, a nested one, its metadata, and a job document."""
    table = pq.read_table(pa.BufferReader(run["w/crystals/crystals.parquet"]))
    texts = table["reference"].to_pylist()
    place = table.schema.get_field_index("reference")
    planted = {
        "cell": table.set_column(
            place, "reference", pa.array([f"by {KEY}, whose journal, volume, page and year are told here", *texts[1:]])
        ),
        "nested": table.append_column(
            "more", pa.array([[{"key": KEY, "about": "of the " * 50}]] + [[]] * (len(table) - 1))
        ),
        "metadata": table.replace_schema_metadata({"query": f"key={KEY}"}),
    }
    files = {}
    for name, changed in planted.items():
        pq.write_table(changed, sink := pa.BufferOutputStream(), compression="zstd", write_statistics=False)
        files[f"{name}.parquet"] = sink.getvalue().to_pybytes()
    files["document.json.gz"] = gzip.compress(f'{{"output": "{KEY}"}}'.encode())
    assert KEY.encode() not in files["cell.parquet"] + files["document.json.gz"], "or this would show nothing"
    assert find(KEY, files) == list(files)
    assert find(AWS_SECRET, files) == []


def test_the_address_of_a_hook_that_refuses_is_nowhere(tmp_path):
    """Prefect's block raises it; it would stand in server.log, were that not kept to critical messages."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    command = [sys.executable, "-c", TELL_TO_A_HOOK_THAT_REFUSES, str(tmp_path), HOOK]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0
    files = {str(path.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert {"prefect/server.log", "prefect/prefect.db"} <= files.keys()
    assert find(HOOK, files) == []
    assert HOOK not in done.stderr


@pytest.mark.parametrize("url", ["postgresql://u:planted@h/db", "postgresql+pg8000://u:pl$anted@h:5432/db"])
def test_a_password_in_the_address_of_studies_is_refused_and_not_shown(url):
    with pytest.raises(
        MeissnerError, match=r"'tuning\.storage' holds a password.*write \$\{NAME\} in its place"
    ) as told:
        Settings.load(None, tuning={"storage": url})
    assert "anted" not in str(told.value)


def test_the_password_of_studies_comes_from_the_environment(monkeypatch, tmp_path):
    settings = TuningSettings(storage="postgresql+pg8000://u:${STUDIES}@h/db")
    with pytest.raises(InputError, match="names STUDIES, which is not set"):
        storage_url(Workspace(tmp_path), settings)
    monkeypatch.setenv("STUDIES", "planted")
    assert storage_url(Workspace(tmp_path), settings) == "postgresql+pg8000://u:planted@h/db"
    assert "planted" not in settings.model_dump_json()
