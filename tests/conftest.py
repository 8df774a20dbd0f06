"""Fixtures that several rooms use."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: its threads would wait for each other on a busy machine

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import boto3
import pytest
from botocore.exceptions import BotoCoreError, ClientError


def free_port() -> int:
    """A free port above 20000: Ray's workers take those below."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            if (port := probe.getsockname()[1]) > 20000:
                return port


@pytest.fixture(scope="session", name="free_port")
def _free_port() -> Callable[[], int]:
    return free_port


@pytest.fixture(scope="session")
def s3_bucket() -> Iterator[str]:
    """`s3://bucket` on an S3 server of this test session; the AWS variables point to it, in child processes too."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    settings = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in settings.items():
                patch.setenv(name, value)
            _create_bucket("bucket", server)
            yield "s3://bucket"
    finally:
        server.terminate()
        server.wait()


def _create_bucket(name: str, server: "subprocess.Popen[bytes]") -> None:
    client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    for _ in range(120):
        assert server.poll() is None, "the S3 test server ended"
        try:
            client.create_bucket(Bucket=name)
        except (BotoCoreError, ClientError):
            time.sleep(0.5)
        else:
            return
    pytest.fail("the S3 test server did not answer")
