"""Fixtures that several rooms use."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: its threads would wait for each other on a busy machine

import http.client
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import boto3
import pytest
from botocore.exceptions import BotoCoreError, ClientError
from tenacity import stop_after_attempt, wait_none

from wsol_pipeline import storage


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


class FaultProxy(ThreadingHTTPServer):
    """Hands requests on to the S3 server behind it, and does what `harm` says to some of them.

    The Host header goes through as it came: it is part of what S3 requests are signed over.
    """

    daemon_threads = True
    silence = 2.0  # seconds of a "timeout", longer than the client waits

    def __init__(self, behind: str) -> None:
        super().__init__(("127.0.0.1", free_port()), _Forward)
        self.behind = urlsplit(behind).netloc
        self.requests: list[tuple[str, str, int]] = []  # method, path, bytes of the answer's body
        self.injected = 0
        self._plan: tuple[str, int, str, str] = ("", 0, "", "")
        self._lock = threading.Lock()

    def harm(self, fault: str, times: int = 10**9, method: str = "GET", path: str = "") -> None:
        """The next `times` requests of this `method` whose path has `path` in it meet `fault`: a status,
        "timeout" (no answer), "cut" (half of the body; no answer where it is empty) or "wrong" (one byte of it)."""
        self._plan = (fault, times, method, path)

    def count(self, part: str) -> tuple[int, int]:
        """Requests with `part` in their path since the last `requests.clear()`, and bytes of their answers."""
        bodies = [size for _, path, size in self.requests if part in path]
        return len(bodies), sum(bodies)

    def fault_of(self, method: str, path: str) -> str:
        fault, times, of_method, of_path = self._plan
        with self._lock:
            if not times or method != of_method or of_path not in path:
                return ""
            self._plan = (fault, times - 1, of_method, of_path)
            self.injected += 1
            return fault


class _Forward(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultProxy

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.server.fault_of(self.command, self.path)
        if fault == "timeout":
            time.sleep(self.server.silence)
            self.close_connection = True
        elif fault.isdigit():
            codes = {"403": "InvalidAccessKeyId", "500": "InternalError", "503": "SlowDown"}
            text = f"<Error><Code>{codes[fault]}</Code><Message>injected</Message></Error>"
            self.reply(int(fault), [], text.encode())
        else:
            status, headers, data = self.ask(body)
            self.close_connection = fault == "cut"
            if data or fault != "cut":
                self.reply(status, headers, data, fault)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = answer

    def ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(self.server.behind, timeout=60)
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() != "expect":
                connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        return answer.status, answer.getheaders(), data

    def reply(self, status: int, headers: list[tuple[str, str]], data: bytes, fault: str = "") -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        length = next((value for name, value in headers if name.lower() == "content-length"), str(len(data)))
        self.send_header("Content-Length", length)  # of a HEAD: what a GET would send
        self.end_headers()
        if fault == "wrong":
            data = data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]
        if fault == "cut":
            data = data[: len(data) // 2]
        self.server.requests.append((self.command, self.path, len(data)))
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def s3_proxy(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy before the S3 server of this session, which the AWS variables point to; this process's client makes
    3 attempts in a row of a second each."""
    proxy = FaultProxy(os.environ["AWS_ENDPOINT_URL"])
    thread = threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.server_port}")
    monkeypatch.setattr(storage, "_SILENT_SECONDS", 1)
    monkeypatch.setattr(storage._ask_s3.retry, "wait", wait_none())
    monkeypatch.setattr(storage._ask_s3.retry, "stop", stop_after_attempt(3))
    storage._s3.cache_clear()
    yield proxy
    storage._s3.cache_clear()
    proxy.shutdown()
    proxy.server_close()
    thread.join()
