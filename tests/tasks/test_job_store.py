"""The store of jobs: files in a workspace (a folder, S3), and stores by setting (MongoDB's interface, S3)."""

import json
import logging
import os

import boto3
import mongomock
import pytest
from jobflow import Flow, job, run_locally

from tasks.exceptions import InputError
from tasks.job_store import DATA, DOCUMENTS, FileStore, open_job_store
from tasks.jobflow_prefect import run_on_prefect
from tasks.workspace import Workspace


@job
def add(a, b):
    return a + b


@job(data="large")
def make_large(count):
    return {"large": list(range(count)), "small": count}


@job
def total(numbers):
    return sum(numbers)


def make_flow():
    first = make_large(1000)
    second = total(first.output["large"])
    return Flow([first, second, add(second.output, 1)])


@pytest.fixture
def store(tmp_path):
    return open_job_store(str(tmp_path / "w"), "files")


def test_jobs_find_each_others_outputs_and_large_ones_apart(store, tmp_path):
    flow = make_flow()
    responses = run_locally(flow, store=store, log=False, ensure_success=True)
    assert responses[flow.jobs[2].uuid][1].output == 499501
    place = Workspace(tmp_path / "w")
    assert (len(place.list(f"{DOCUMENTS}/*")), len(place.list(f"{DATA}/*"))) == (3, 1)
    reopened = open_job_store(str(tmp_path / "w"), "files")
    assert reopened.get_output(flow.jobs[0].uuid, load=True) == {"large": list(range(1000)), "small": 1000}
    assert reopened.count({"name": "total"}) == 1
    assert [document["name"] for document in reopened.query(sort={"name": 1})] == ["add", "make_large", "total"]


def test_newest_index_is_found_and_an_update_replaces(tmp_path):
    files = FileStore(str(tmp_path / "w"))
    key = ["uuid", "index"]
    files.update([{"uuid": "a", "index": index, "output": index} for index in (1, 2)], key=key)
    files.update({"uuid": "a", "index": 1, "output": "new"}, key=key)
    assert files.query_one({"uuid": "a"}, sort={"index": -1})["output"] == 2
    assert files.query_one({"uuid": "a", "index": 1})["output"] == "new"
    assert files.count() == 2
    assert sorted(group["index"] for group, _ in files.groupby("index")) == [1, 2]
    files.remove_docs({"uuid": "a"})
    assert files.count() == 0


@pytest.mark.usefixtures("prefect_harness")
def test_a_damaged_file_is_put_aside_and_its_job_runs_again(store, tmp_path, caplog):
    flow = make_flow()
    run_on_prefect(flow, store=store, log=False)
    damaged = next((tmp_path / "w" / DOCUMENTS).glob(f"{flow.jobs[1].uuid}*"))
    damaged.write_bytes(damaged.read_bytes()[:40])
    with caplog.at_level(logging.WARNING):
        responses = run_on_prefect(flow, store=store, log=False, resume=True)
    assert responses[flow.jobs[2].uuid][1].output == 499501
    assert "is damaged" in caplog.text
    assert damaged.with_name(f"{damaged.name}.damaged").exists()
    assert damaged.exists()


def test_files_on_s3(s3_server):
    flow = make_flow()
    store = open_job_store(s3_server("jobs") + "/w", "files")
    responses = run_locally(flow, store=store, log=False, ensure_success=True)
    assert responses[flow.jobs[2].uuid][1].output == 499501
    assert store.count() == 3


@pytest.mark.usefixtures("prefect_harness")
def test_mongodb_with_large_data_on_s3_by_setting(s3_server, tmp_path):
    """MongoDB's place is taken by mongomock, since no MongoDB server is packaged; S3 is a real server (moto's)."""
    bucket = s3_server("blobs").removeprefix("s3://")
    blobs = {
        "type": "S3Store",
        "index": {"type": "MemoryStore", "collection_name": "index"},
        "bucket": bucket,
        "endpoint_url": os.environ["AWS_ENDPOINT_URL"],
        "compress": True,
    }
    path = tmp_path / "store.json"
    jobs = {"type": "MongoStore", "database": "m", "collection_name": "jobs"}
    path.write_text(json.dumps({"docs_store": jobs, "additional_stores": {"data": blobs}}))
    store = open_job_store("unused", str(path))
    collection = store.docs_store._coll = mongomock.MongoClient()["m"]["jobs"]
    flow = make_flow()
    responses = run_on_prefect(flow, store=store, log=False, ensure_success=True)
    assert responses[flow.jobs[2].uuid][1].output == 499501
    assert collection.count_documents({}) == 3
    assert len(boto3.client("s3").list_objects_v2(Bucket=bucket)["Contents"]) == 1


def test_settings_that_name_no_store(tmp_path):
    with pytest.raises(InputError, match="neither 'files', 'memory' nor a file"):
        open_job_store("w", "mongodb://somewhere")
    wrong = tmp_path / "store.yaml"
    wrong.write_text("docs_store: {type: NoSuchStore}")
    with pytest.raises(InputError, match="describes no job store"):
        open_job_store("w", str(wrong))
