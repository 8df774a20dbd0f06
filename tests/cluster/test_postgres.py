"""A real PostgreSQL under both at once, the studies' ledgers and MLflow as cluster/mlflow starts it: nothing is lost.

Needs PostgreSQL's server programs, as tests/postgres.py says.
"""

import functools
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import optuna
import psutil
import pytest

from search_spaces import bas
from tests.cluster.manifests import CLUSTER
from tests.postgres import programs, unprivileged
from wsol_pipeline.storage import Store
from wsol_pipeline.study.database import open_storage
from wsol_pipeline.study.identity import Home
from wsol_pipeline.study.lease import Lease
from wsol_pipeline.study.ledger import Ledger, open_ledger
from wsol_pipeline.study.samplers import pruner, sampler
from wsol_pipeline.tracking import projection
from wsol_pipeline.tracking import runs as study_runs
from wsol_pipeline.tracking.connect import connect
from wsol_pipeline.tracking.projection import Projection, TrialView
from wsol_pipeline.tracking.runs import STUDY_TAG, TRIAL_TAG, StudyRuns, deliver

STUDIES, TRIALS, EPOCHS = 4, 5, 6  # drivers at once, trials that each of them runs at once, epochs of a trial
SUPERUSER = "postgres"


pytestmark = [pytest.mark.slow, pytest.mark.postgres, pytest.mark.timeout(1200)]


@dataclass(frozen=True)
class Server:
    """A PostgreSQL server of this test with the databases of init.sql; `passwords` by the names of the secrets."""

    port: int
    folder: Path
    passwords: dict[str, str]

    def url(self, user: str, database: str, secret: str) -> str:
        return f"postgresql+psycopg://{user}:{self.passwords[secret]}@127.0.0.1:{self.port}/{database}"

    def statements(self) -> Counter[str]:
        """How many statements each database has got so far, by the server's log."""
        log = (self.folder / "log").read_text()
        return Counter(re.findall(r"^(\w+) LOG:  (?:execute|statement)", log, flags=re.M))


@pytest.fixture(scope="module")
def server(free_port) -> Iterator[Server]:
    folder = Path(tempfile.mkdtemp(prefix="wsol-pg-"))
    names = ("postgres-password", "mlflow-db-password", "studies-db-password", "mlflow-admin-password",
             "mlflow-session-key")  # fmt: skip
    found = Server(free_port(), folder, {name: secrets.token_hex(24) for name in names})
    for name, password in found.passwords.items():
        (folder / name).write_text(password)
        (folder / name).chmod(0o644)
    folder.chmod(0o755)
    who, bin_folder = unprivileged(folder), programs()
    assert bin_folder
    make = [bin_folder / "initdb", "-D", folder / "data", "-U", SUPERUSER, "--auth=scram-sha-256", "--no-sync"]
    subprocess.run([*make, "--pwfile", folder / "postgres-password"], check=True, capture_output=True, cwd="/", **who)
    options = {"listen_addresses": "127.0.0.1", "unix_socket_directories": folder, "log_statement": "all",
               "log_line_prefix": "%d "}  # fmt: skip
    start = [bin_folder / "postgres", "-D", folder / "data", "-p", str(found.port)]
    start += [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(start, stdout=log, stderr=log, cwd="/", **who)
    try:
        fill(bin_folder, found, process)
        yield found
    finally:
        process.send_signal(signal.SIGINT)  # PostgreSQL's fast shutdown: it waits for no client
        process.wait(timeout=300)
        shutil.rmtree(folder, ignore_errors=True)


def fill(bin_folder: Path, server: Server, process: "subprocess.Popen[bytes]") -> None:
    """Run init.sql, as the image of PostgreSQL does with a new folder."""
    environment = os.environ | {"PGPASSWORD": server.passwords["postgres-password"], "SECRETS": str(server.folder)}
    command = [bin_folder / "psql", "-h", "127.0.0.1", "-p", str(server.port), "-U", SUPERUSER]
    for _ in range(120):
        assert process.poll() is None, (server.folder / "log").read_text()
        if subprocess.run([*command, "-c", "SELECT 1"], env=environment, capture_output=True).returncode == 0:
            break
        time.sleep(0.5)
    subprocess.run([*command, "-f", CLUSTER / "mlflow/init.sql"], env=environment, check=True, capture_output=True)


@pytest.fixture(scope="module")
def tracking_url(server: Server, free_port) -> Iterator[str]:
    """MLflow started by serve.sh on that server; in this process the variables of its user `admin`."""
    port = free_port()
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PGHOST": "127.0.0.1",
        "PGPORT": str(server.port),
        "SECRETS": str(server.folder),
        "ARTIFACTS": str(server.folder / "artifacts"),
        "ALLOWED_HOSTS": f"127.0.0.1:{port}",
    }
    command = [CLUSTER / "mlflow/serve.sh", "--port", str(port), "--workers", "2"]
    with (server.folder / "mlflow-log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "120")  # a busy machine is no fault of MLflow's
            patch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
            patch.setenv("MLFLOW_TRACKING_PASSWORD", server.passwords["mlflow-admin-password"])
            url = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + 600
            while answer(f"{url}/health") != 200:
                if process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail((server.folder / "mlflow-log").read_text()[-3000:])
                time.sleep(0.5)
            yield url
    finally:
        process.terminate()
        process.wait(timeout=300)


def answer(url: str, user: str = "", host: str = "") -> int:
    """The status of GET `url` as `user` (name:password), asked under the name `host`; 0 if nobody answers."""
    request = urllib.request.Request(url)
    if user:
        request.add_header("Authorization", f"Basic {b64encode(user.encode()).decode()}")
    if host:
        request.add_header("Host", host)
    try:
        return urllib.request.urlopen(request, timeout=30).status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def a_record(trial: int, epoch: int) -> dict[str, Any]:
    """The record of an epoch, as long as BAS's."""
    losses = dict.fromkeys(("loss", "classification", "background", "area", "foreground"), trial + epoch / 10)
    value = 50.0 + trial + epoch / 10
    return {
        "epoch": epoch, "time": 1_700_000_000.0 + epoch, "train": losses, "val": {"max_box_acc_v2": value, "loss": 1.0},
        "searched": True, "value": value, "learning_rate": 0.1, "images_per_second": 99.0, "seconds": 1.0,
        "final": epoch == EPOCHS,
    }  # fmt: skip


def open_study(server: Server, name: str, tmp_path: Path) -> Ledger:
    storage = open_storage(Store.at(tmp_path), server.url("wsol", "studies", "studies-db-password"))
    return open_ledger(
        storage, name, space=functools.partial(bas.space, beta="free"), contract={"name": name}, published={},
        sampler=sampler("tpe", 0, 10), pruner=pruner("none", 1, EPOCHS),
        home=Home("1", str(tmp_path)), lease=Lease(Store.at(tmp_path / "lease"), 1),
    )  # fmt: skip


def drive(server: Server, url: str, name: str, tmp_path: Path) -> None:
    """What a driver does to the databases while its workers train: TRIALS at once, EPOCHS each, to their end."""
    ledger = open_study(server, name, tmp_path)
    client, experiment = connect(url, "load", None)
    records: dict[int, list[dict[str, Any]]] = {ledger.ask().number: [] for _ in range(TRIALS)}

    def views() -> Iterator[TrialView]:
        for trial in ledger.trials():
            parameters = ledger.parameters(trial.number)
            yield TrialView(trial.number, trial.state.name, parameters, {}, list(records[trial.number]))

    study = StudyRuns(lambda: (client, experiment), name, {})
    writer = Projection(study, views)
    writer.start()
    for epoch in range(1, EPOCHS + 1):
        for number, kept in records.items():
            kept.append(a_record(number, epoch))
            ledger.spend(number, 1.0)
            ledger.report(number, epoch, kept[-1]["value"])
    for number, kept in records.items():
        ledger.complete(number, kept[-1]["value"])
    writer.stop()
    assert deliver({"trials": writer.write, "the study's end": study.close_parent}) == ""


def test_nobody_gets_in_without_the_password_or_under_another_host(server, tracking_url):
    api = f"{tracking_url}/api/2.0/mlflow/experiments/get-by-name?experiment_name=Default"
    assert answer(api, user=f"admin:{server.passwords['mlflow-admin-password']}") == 200
    assert answer(api) == 401
    assert answer(api, user="admin:password1234") == 401  # what older versions of MLflow came with
    assert answer(api, host="evil.example") == 403


def test_no_password_is_in_a_command_line(server, tracking_url):
    lines = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    assert any(f"--port {tracking_url.rpartition(':')[2]}" in line for line in lines)
    assert [line for line in lines if any(password in line for password in server.passwords.values())] == []


def test_twenty_trials_at_once_lose_nothing(server, tracking_url, tmp_path, monkeypatch):
    for module in (projection, study_runs):
        monkeypatch.setattr(module, "PATIENCE", 120.0)
    names = [f"load-{number}" for number in range(STUDIES)]
    connect(tracking_url, "load", None)
    before, started = server.statements(), time.monotonic()
    with ThreadPoolExecutor(STUDIES) as drivers:
        list(drivers.map(lambda name: drive(server, tracking_url, name, tmp_path), names))
    seconds, spent = time.monotonic() - started, server.statements() - before
    epochs = STUDIES * TRIALS * EPOCHS
    print(f"{STUDIES * TRIALS} trials, {epochs} epochs in {seconds:.1f} s; statements a trial and epoch:",
          {database: round(count / epochs, 1) for database, count in spent.items()})  # fmt: skip

    client = mlflow.MlflowClient(tracking_url)
    experiment = client.get_experiment_by_name("load").experiment_id
    for name in names:
        trials = open_study(server, name, tmp_path).trials()
        assert [trial.state for trial in trials] == [optuna.trial.TrialState.COMPLETE] * TRIALS
        runs = client.search_runs([experiment], f"tags.`{STUDY_TAG}` = '{name}'")
        by_trial = {run.data.tags[TRIAL_TAG]: run for run in runs}
        assert len(runs) == len(by_trial) == TRIALS + 1
        assert {run.info.status for run in runs} == {"FINISHED"}
        for trial in trials:
            expected = {epoch: a_record(trial.number, epoch)["value"] for epoch in range(1, EPOCHS + 1)}
            assert trial.intermediate_values == expected
            assert trial.user_attrs["device_seconds"] == EPOCHS
            run = by_trial[str(trial.number)]
            history = client.get_metric_history(run.info.run_id, "objective")
            assert {metric.step: metric.value for metric in history} == expected
            assert len(history) == EPOCHS
            assert {
                name: study_runs.short(value) for name, value in trial.params.items()
            }.items() <= run.data.params.items()
