"""Fixtures that several rooms use, and how a run of the tests ends."""

import atexit
import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: its threads would wait for each other on a busy machine

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import ray
from tenacity import stop_after_attempt, wait_none

from tests import postgres
from tests.servers import FaultProxy, free_port, running_mlflow, running_s3, serving
from wsol_pipeline import interrupts, storage

pytest_plugins = ["tests.trained"]
sessions: list[pytest.Session] = []
without_postgres: list[int] = []


@pytest.hookimpl(trylast=True)  # of what is selected otherwise
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    without_postgres.append(postgres.deselect(config, items))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if any(without_postgres):
        terminalreporter.write_line(f"{sum(without_postgres)} {postgres.MISSING}", yellow=True)


def pytest_sessionfinish(session: pytest.Session) -> None:
    sessions.append(session)


@atexit.register
def _leave() -> None:
    """End with pytest's exit code, but without taking Python apart.

    Threads of Ray's core and of Ray Data outlive `ray.shutdown`; one run of many ended by a segmentation fault in them,
    after its last test had passed.
    """
    if sessions:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(sessions[0].exitstatus))


@pytest.fixture(autouse=True)
def _signals_given_back() -> Iterator[None]:
    """Jobs that a test calls take over this process's signals, of which pytest-xdist ends it."""
    with interrupts.borrowed():
        yield


@pytest.fixture(scope="session", name="free_port")
def _free_port() -> Callable[[], int]:
    return free_port


@pytest.fixture(scope="session")
def s3_bucket() -> Iterator[str]:
    """`s3://bucket` on an S3 server of this test session; the AWS variables point to it, in child processes too."""
    with running_s3() as settings, pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        yield "s3://bucket"


@pytest.fixture
def s3_proxy(s3_bucket: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[FaultProxy]:
    """A proxy before the S3 server of this session, which the AWS variables point to; this process's client makes
    3 attempts in a row. They last a second each where silence is the subject, else longer than a busy machine's."""
    with serving(FaultProxy(os.environ["AWS_ENDPOINT_URL"])) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        monkeypatch.setattr(storage, "_SILENT_SECONDS", 1 if "timeout" in request.node.name else 30)
        monkeypatch.setattr(storage._ask_s3.retry, "wait", wait_none())
        monkeypatch.setattr(storage._ask_s3.retry, "stop", stop_after_attempt(3))
        storage._s3.cache_clear()
        yield proxy
        storage._s3.cache_clear()


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an MLflow server of this test session."""
    with running_mlflow(tmp_path_factory.mktemp("mlflow-server")) as address:
        yield address


@pytest.fixture
def mlflow_proxy(mlflow_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy before the MLflow server of this session, for whose answers clients of this process wait long enough."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    with serving(FaultProxy(mlflow_server)) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def local_ray():
    """A private Ray of two workers."""
    with private_ray(num_cpus=2):
        yield


@pytest.fixture(scope="module")
def pretended_gpu():
    """A private Ray that is told of a GPU, which is none."""
    with private_ray(num_cpus=3, num_gpus=1):
        yield


@contextmanager
def private_ray(**options: Any) -> Iterator[None]:
    """Within, this process has a Ray of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(
            address="local", include_dashboard=False, object_store_memory=200_000_000, logging_level="warning",
            **options,
        )  # fmt: skip
        yield
        ray.shutdown()
