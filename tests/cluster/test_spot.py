"""A cloud's notice reaches Ray: asked as Amazon and Google want it, and told with the seconds that are left."""

import datetime
import http.server
import json
import threading
import time
from types import SimpleNamespace

import pytest

from cluster import spot
from cluster.nodes import running_cluster


class Metadata(http.server.BaseHTTPRequestHandler):
    """Both metadata services; what a machine would hear is in the server's `notice`."""

    def do_PUT(self):
        self.answer(200, "a token" if "X-aws-ec2-metadata-token-ttl-seconds" in self.headers else "")

    def do_GET(self):
        notice = self.server.notice
        if self.path == "/computeMetadata/v1/instance/preempted":
            self.answer(200 if self.headers["Metadata-Flavor"] == "Google" else 403, "TRUE" if notice else "FALSE")
        elif self.headers["X-aws-ec2-metadata-token"] != "a token":
            self.answer(401, "")
        elif self.path == "/latest/meta-data/spot/instance-action" and notice:
            self.answer(200, json.dumps({"action": "terminate", "time": notice}))
        else:
            self.answer(404, "not found")

    def answer(self, code, text):
        self.send_response(code)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *args):
        pass


@pytest.fixture
def metadata():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata) as server:
        server.notice = ""
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def url_of(server):
    return f"http://127.0.0.1:{server.server_port}"


def in_seconds(seconds):
    return (datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def test_amazon_says_until_when(metadata):
    assert spot.aws(url_of(metadata)) is None
    metadata.notice = in_seconds(120)
    assert 100 < spot.aws(url_of(metadata)) <= 120


def test_google_says_that_it_will(metadata):
    assert spot.gcp(url_of(metadata)) is None
    metadata.notice = "now"
    assert spot.gcp(url_of(metadata)) == spot.GCP_NOTICE


def test_a_service_that_does_not_answer_is_asked_again(monkeypatch, capsys):
    answers = iter([OSError("no route"), ValueError("no JSON"), None, -3.0])

    def cloud():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(spot, "SECONDS", 0.0)
    assert spot.notice(cloud) == 0.0
    assert "no route" in capsys.readouterr().out


def test_ray_is_told_again_until_it_listens(monkeypatch):
    told = []

    def run(command):
        told.append(command[-1])
        return SimpleNamespace(returncode=len(told) < 2)

    monkeypatch.setattr(spot.subprocess, "run", run)
    monkeypatch.setattr(spot.time, "sleep", lambda seconds: None)
    spot.drain(29.7)
    assert told == ["29", "29"]
    spot.drain(0.0)
    assert len(told) == 2


def test_ray_is_told_that_this_machine_leaves(monkeypatch):
    with running_cluster((), head_cpus=1) as cluster:
        for name, value in cluster.environment.items():
            monkeypatch.setenv(name, value)
        spot.drain(29.7)
        deadline = time.monotonic() + 120
        while cluster.alive() and time.monotonic() < deadline:  # nothing runs there, so Ray lets it go at once
            time.sleep(0.2)
        assert b"the cloud takes this machine back" in cluster.ask("/api/v0/nodes?detail=1")
