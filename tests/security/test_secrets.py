"""Planted secrets do their work and are found nowhere afterwards."""

import base64
import os
import subprocess
import sys
from pathlib import Path

import boto3
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
    "secret", [KEY, AWS_SECRET, PASSWORD, f"group:{PASSWORD}"], ids=["materials project", "s3", "prefect", "whole"]
)
def test_no_secret_is_anywhere(run, secret):
    forms = [secret.encode(), base64.b64encode(secret.encode()), secret.encode().hex().encode()]
    found = [name for name, data in run.items() for form in forms if form in data]
    assert found == []


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
