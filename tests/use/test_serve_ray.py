"""`wsol serve` as it is run: a process with a Ray of its own, asked over its port, ended by Ctrl+C."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

import wsol
from tests.use.conftest import paint
from wsol_pipeline.errors import ResourceError
from wsol_pipeline.use import serve
from wsol_pipeline.use.options import ServeOptions

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ask(address, path, body=None):
    request = urllib.request.Request(f"{address}{path}", body, {"Content-Type": "image/png"})
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def listening(pid):
    """Addresses at which a process and what it started listen."""
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    sockets = [one for process in family for one in process.net_connections("inet")]
    return {one.laddr.ip for one in sockets if one.status == psutil.CONN_LISTEN}


def test_a_busy_machine_may_take_long_to_start_what_listens(final, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv(serve.READY, "")
    monkeypatch.delenv(serve.READY)
    seen = []

    def connect(nested):
        seen.append(os.environ.get("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"))
        raise ResourceError("enough")

    monkeypatch.setattr(serve.cluster, "connect", connect)
    with pytest.raises(ResourceError, match="enough"), serve.serving(ServeOptions(model=final.uri, port=free_port())):
        pass
    assert seen == ["60"]


@pytest.mark.slow
def test_it_answers_as_predict_does_and_ends_by_ctrl_c_with_all_that_it_started(final, tmp_path):
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "WSOL_SERVE_TOKEN")}
    server = subprocess.Popen(
        [sys.executable, "rayjobs/serve.py", "--model", final.uri, "--port", str(port), "--max-mib", "0.05"],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert server.stdout is not None
        told = server.stdout.readline()
        assert f"Serving at http://127.0.0.1:{port}; Ctrl+C ends it." in told
        address, model = f"http://127.0.0.1:{port}", wsol.load_model(final.uri, "cpu")
        images = [paint(tmp_path / f"{seed}.png", seed) for seed in range(12)]
        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(lambda path: ask(address, "/api/localize", path.read_bytes()), images))
        for path, (status, body) in zip(images, answers, strict=True):
            (found,), (expected,) = json.loads(body)["found"], model.predict(str(path))
            assert (status, found["label"]) == (200, expected.label)
            assert found["box"] == (None if expected.box is None else list(expected.box))
        assert ask(address, "/")[0] == 200
        assert ask(address, "/api/localize", b"no image")[0] == 422
        assert ask(address, "/api/localize", bytes(60_000))[0] == 413
        assert listening(server.pid) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
        started = psutil.Process(server.pid).children(recursive=True)
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=300) == 0
        assert server.stdout.read() == "ended\n"
        assert psutil.wait_procs(started, timeout=150)[1] == []
    finally:
        for process in [*psutil.Process(server.pid).children(recursive=True), server] if server.poll() is None else []:
            process.kill()
