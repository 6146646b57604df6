"""A real S3 server on loopback (moto's), for as long as the tests run."""

import os

import pytest


@pytest.fixture(scope="session")
def s3_endpoint():
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_server(s3_endpoint, monkeypatch):
    """Makes a bucket and gives its URL; the environment names the server, so that every client finds it."""
    import boto3
    import s3fs

    keys = {"AWS_ENDPOINT_URL": s3_endpoint, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    for name, value in {**keys, "AWS_DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()

    def make(bucket):
        unique = f"{bucket}-{os.urandom(4).hex()}"
        boto3.client("s3").create_bucket(Bucket=unique)
        return f"s3://{unique}"

    yield make
    s3fs.S3FileSystem.clear_instance_cache()
