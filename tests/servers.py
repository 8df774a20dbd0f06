"""Servers of S3 and MLflow, and a proxy before one of them that answers some requests as a server does that fails."""

import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest import mock
from urllib.parse import urlsplit

import boto3
from botocore.exceptions import BotoCoreError, ClientError


def free_port() -> int:
    """A free port above 20000: Ray's workers take those below."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            if (port := probe.getsockname()[1]) > 20000:
                return port


@contextlib.contextmanager
def running_s3() -> Iterator[dict[str, str]]:
    """A server with an empty `s3://bucket`, in memory; gives the AWS variables that point to it."""
    port = free_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with mock.patch.dict(os.environ, settings):
            _create_bucket("bucket", server)
        yield settings
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
    raise AssertionError("the S3 test server did not answer")


@contextlib.contextmanager
def running_mlflow(where: Path) -> Iterator[str]:
    """An MLflow server on loopback that keeps all in `where`: its address."""
    port = free_port()
    command = (
        f"server --backend-store-uri sqlite:///{where}/mlflow.db --artifacts-destination {where}/artifacts "
        f"--host 127.0.0.1 --port {port} --workers 1"
    )
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", *command.split()],
        env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},  # a dozen processes
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        _wait_until_healthy(port, server)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGKILL)  # it has processes of its own, which take their time otherwise
        server.wait()


def _wait_until_healthy(port: int, server: "subprocess.Popen[bytes]") -> None:
    for _ in range(240):
        assert server.poll() is None, "the MLflow test server ended"
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.5)
        finally:
            connection.close()
    raise AssertionError("the MLflow test server did not answer")


class FaultProxy(ThreadingHTTPServer):
    """Hands requests on to the server behind it (S3, MLflow), and does what `harm` says to some of them.

    The Host header goes through as it came: it is part of what S3 requests are signed over.
    """

    daemon_threads = True
    silence = 2.0  # seconds of a "timeout", longer than the client waits; of a "slow" answer, shorter

    def __init__(self, behind: str) -> None:
        super().__init__(("127.0.0.1", free_port()), _Forward)
        self.behind = urlsplit(behind).netloc
        self.requests: list[tuple[str, str, int]] = []  # method, path, bytes of the answer's body
        self.injected = 0
        self.told: list[bytes] = []  # what pages of a list have said
        self._plan: tuple[str, int, str, str, int] = ("", 0, "", "", 0)
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def harm(self, fault: str, times: int = 10**9, method: str = "GET", path: str = "", after: int = 0) -> None:
        """Of the next requests of this `method` ("": any) whose path has `path` in it the first `after` are let be, and
        the next `times` meet `fault`: a status, "timeout" (no answer), "closed" (nor a wait for it), "slow" (an answer,
        late), "cut" (half of the body; no answer where it is empty), "wrong" (one byte of it), "etag" (another ETag
        than the body's) or "pages" (a list in pages of two, each of which tells those before once more)."""
        self.injected, self._plan = 0, (fault, times, method, path, after)

    def heal(self) -> None:
        """Do no more harm."""
        self._plan = ("", 0, "", "", 0)

    def count(self, part: str) -> tuple[int, int]:
        """Requests with `part` in their path since the last `requests.clear()`, and bytes of their answers."""
        bodies = [size for _, path, size in self.requests if part in path]
        return len(bodies), sum(bodies)

    def fault_of(self, method: str, path: str) -> str:
        with self._lock:
            fault, times, of_method, of_path, after = self._plan
            if not times or of_method not in ("", method) or of_path not in path:
                return ""
            self._plan = (fault, times - (not after), of_method, of_path, max(0, after - 1))
            self.injected += not after
            return "" if after else fault


class _Forward(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultProxy

    def answer(self) -> None:
        body = self.body()
        fault = self.server.fault_of(self.command, self.path)
        if fault in ("timeout", "slow"):
            time.sleep(self.server.silence)
        if fault in ("timeout", "closed"):
            self.close_connection = True
        elif fault.isdigit():
            codes = {"403": "InvalidAccessKeyId", "404": "NoSuchKey", "500": "InternalError", "503": "SlowDown",
                     "307": "TemporaryRedirect"}  # fmt: skip
            text = f"<Error><Code>{codes.get(fault)}</Code><Message>injected</Message></Error>"
            elsewhere = [("Location", f"http://127.0.0.1:1{self.path}")] if fault == "307" else []
            self.reply(int(fault), elsewhere, text.encode())
        else:
            self.path += "&max-keys=2" * (fault == "pages")
            status, headers, data = self.ask(body)
            self.close_connection = fault == "cut"
            if data or fault != "cut":
                self.reply(status, headers, data, fault)

    do_GET = do_PUT = do_HEAD = do_POST = do_PATCH = do_DELETE = answer

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        del self.headers["Transfer-Encoding"]  # MLflow's clients send empty files so
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        self.headers["Content-Length"] = str(len(body))
        return body

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
        if fault == "pages":
            own = re.findall(rb"<Contents>.*?</Contents>", data, re.DOTALL)
            data = data.replace(b"<Contents>", b"".join(self.server.told) + b"<Contents>", 1)
            headers = [(name, value) for name, value in headers if name.lower() != "content-length"]
            self.server.told += own
        if fault == "etag":
            headers = [(name, f'"{"0" * 32}"' if name.lower() == "etag" else value) for name, value in headers]
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        length = next((value for name, value in headers if name.lower() == "content-length"), str(len(data)))
        self.send_header("Content-Length", length)  # of a HEAD: what a GET would send
        if fault == "wrong":
            data = data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]
        if fault == "cut":
            data = data[: len(data) // 2]
        self.server.requests.append((self.command, self.path, len(data)))  # before the client can have its answer
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def serving(proxy: FaultProxy) -> Iterator[FaultProxy]:
    """The proxy while it answers."""
    thread = threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join()
