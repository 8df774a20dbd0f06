"""MLflow as a projection of ledger and records: written by the driver alone, idempotent, never waited for.

A parent run per study, a child run per trial. Runs are found by their tags, metrics carry the time of their record, so
writing the same thing again changes nothing: a projection that was interrupted, or whose server was away, is simply
written again. A thread does it every few seconds; what it could not deliver waits for the next turn, and from the end
of the work on for `PATIENCE` at most. A server that is away when a study begins is connected to at a later turn.
"""

import contextlib
import json
import logging
import math
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import mlflow
from filelock import FileLock
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.store.db.db_types import DATABASE_ENGINES
from sqlalchemy.exc import SQLAlchemyError

from wsol_pipeline.errors import ResourceError, UsageError, WsolError
from wsol_pipeline.redaction import redact
from wsol_pipeline.storage import STORAGE_ERRORS

logger = logging.getLogger(__name__)

STUDY_TAG, TRIAL_TAG, PARENT_TAG = "wsol.study", "wsol.trial", "mlflow.parentRunId"
PAGE_TAG = "mlflow.sharedViewState"
EXPERIMENT_TAGS = {  # MLflow would guess from traces, which we have none of, that this is about language models
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.note.content": "Studies of weakly supervised object localization: a run per study, its trials as children.",
}
PARENT = "study"  # the value of TRIAL_TAG on a study's own run
STATUS = {"RUNNING": "RUNNING", "COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}
SECONDS_BETWEEN = 5.0
PATIENCE = 30.0  # seconds that the end of the work waits for MLflow
Connect = Callable[[], tuple[mlflow.MlflowClient, str]]  # (client, experiment id), or a `ResourceError`
MAX_PARAM = 6000  # characters MLflow keeps of a parameter


AWAY = (
    MlflowException,
    SQLAlchemyError,
    ValueError,
    *STORAGE_ERRORS,
)  # of calls that MLflow did not answer well


class ServerAway(ResourceError):
    """A server that may be back later."""


@dataclass(frozen=True)
class TrialView:
    """What MLflow shows of one trial. `state` is Optuna's name of it; `records` the trial's curve."""

    number: int
    state: str
    parameters: dict[str, Any]
    tags: dict[str, str]
    records: list[dict[str, Any]]
    readout: Callable[[Path], dict[str, float]] | None = None
    """Of a trial that has ended, if it kept what is needed: writes files into a folder, returns metrics."""


@dataclass(frozen=True)
class StudyView:
    """What MLflow shows of the study itself so far. `metrics` only ever grow.

    `page`: the state of MLflow's page of runs, which `?viewStateShareKey=STUDY` opens.
    """

    parameters: dict[str, Any]
    tags: dict[str, str]
    metrics: list[Metric]
    page: dict[str, Any] = field(default_factory=dict)


@dataclass
class Projection:
    """Writes a study's trials to MLflow in the background. `trials` and `summary` are called anew at each turn,
    `connect` until it has succeeded.

    `ended`: trials whose end MLflow has. `trials` may leave them out, so that a turn costs what is new.
    """

    connect: Connect
    study: str
    tags: dict[str, str]
    trials: Callable[[], Iterable[TrialView]]
    summary: Callable[[], StudyView | None] = lambda: None
    ended: set[int] = field(default_factory=set)
    _runs: dict[str, str] = field(default_factory=dict)  # value of TRIAL_TAG -> run id
    _written: dict[int, tuple[str, int]] = field(default_factory=dict)  # trial -> (state, records) delivered
    _study: StudyView | None = None  # delivered
    _writing: threading.Lock = field(default_factory=threading.Lock)  # two that write would each create a run
    _deadline: float = math.inf  # of `write`, as `time.monotonic` counts
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _warned: bool = False

    def __enter__(self) -> "Projection":
        self._thread = threading.Thread(target=self._loop, daemon=True, name="mlflow")
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stop.set()
        self.hurry()
        if self._thread:  # who is interrupted waits a few seconds for a last turn, not for a server that is away
            self._thread.join(timeout=2 * PATIENCE if kind is None else 5)

    @property
    def away(self) -> bool:
        """Whether MLflow could not be reached the last time."""
        return self._warned

    @cached_property
    def _connection(self) -> tuple[mlflow.MlflowClient, str]:
        return self.connect()

    @property
    def client(self) -> mlflow.MlflowClient:
        return self._connection[0]

    @property
    def experiment_id(self) -> str:
        return self._connection[1]

    def hurry(self) -> None:
        """Give `write` no longer than `PATIENCE` from now on."""
        self._deadline = time.monotonic() + PATIENCE

    def write(self) -> None:
        """Write what is not written yet. Raises one of `AWAY`, or what `connect` raises, if MLflow doesn't take it."""
        with self._writing:
            try:
                self.parent_run()  # finds what an earlier driver has delivered
                for trial in self.trials():
                    if time.monotonic() > self._deadline:
                        raise ResourceError("it is too slow")
                    self._write(trial)
                self._write_study()
            except AWAY:
                self._runs.clear()  # one may have been created although the answer was lost: look again
                raise

    def flush(self) -> bool:
        """`write`; False, and a warning the first time, if MLflow did not take everything."""
        try:
            self.write()
        except (WsolError, *AWAY) as error:
            if not self._warned:
                logger.warning("MLflow is away (%s): the study goes on and is written when it is back.", reason(error))
            self._warned = True
            return False
        self._warned = False
        return True

    def parent_run(self) -> str:
        """The id of the study's own run, created if it is not there."""
        return self._run(PARENT, self.study, self.tags)

    def trial_run(self, number: int) -> str:
        """The id of trial `number`'s run, created if it is not there."""
        parent = self.parent_run()
        return self._run(str(number), f"{self.study} {number:04d}", {PARENT_TAG: parent})

    def add_pictures(self, paths: Iterable[Path]) -> None:
        """Put pictures on the study's run, over earlier ones of the same names."""
        for path in paths:
            self.client.log_artifact(self.parent_run(), str(path), "pictures")

    def add_text(self, name: str, text: str) -> None:
        """Put a text file on the study's run, over an earlier one of that name."""
        self.client.log_text(self.parent_run(), redact(text), name)

    def close_parent(self) -> None:
        self.client.set_terminated(self.parent_run())

    def _loop(self) -> None:
        while not self._stop.wait(SECONDS_BETWEEN):
            self.flush()
        self.flush()

    def _write(self, trial: TrialView) -> None:
        state, delivered = self._written.get(trial.number, ("", 0))
        if trial.number in self.ended or (state, delivered) == (trial.state, len(trial.records)):
            return
        run_id = self.trial_run(trial.number)
        metrics = [metric for record in trial.records[delivered:] for metric in record_metrics(record)]
        if trial.readout and trial.state != "RUNNING":
            metrics += self._add_readout(run_id, trial.readout, trial.records)
        tags = {**self.tags, **trial.tags, "wsol.state": trial.state}
        self._log(run_id, metrics, {} if state else trial.parameters, tags)
        if trial.state != "RUNNING":
            self.client.set_terminated(run_id, STATUS[trial.state])
            self.ended.add(trial.number)
        self._written[trial.number] = (trial.state, len(trial.records))

    def _add_readout(
        self, run_id: str, readout: Callable[[Path], dict[str, float]], records: list[dict[str, Any]]
    ) -> list[Metric]:
        """Files of a trial's readout search on its run; its metrics bear the time of the trial's last record."""
        with tempfile.TemporaryDirectory() as folder:
            values = readout(Path(folder))
            self.client.log_artifacts(run_id, folder, "readout")
        when, epoch = int(records[-1]["time"] * 1000), records[-1]["epoch"]
        return [Metric(f"readout/{name}", value, when, epoch) for name, value in values.items()]

    def _write_study(self) -> None:
        view, before = self.summary(), self._study
        if view is None or (before and (before.tags, len(before.metrics)) == (view.tags, len(view.metrics))):
            return
        metrics, parameters = (view.metrics[len(before.metrics) :], {}) if before else (view.metrics, view.parameters)
        if before is None and view.page:
            page = json.dumps(redact(view.page))
            self.client.set_experiment_tag(self.experiment_id, f"{PAGE_TAG}.{self.study}", page)
        self._log(self.parent_run(), metrics, parameters, view.tags)
        self._study = view

    def _log(self, run_id: str, metrics: list[Metric], parameters: dict[str, Any], tags: dict[str, str]) -> None:
        """Metrics in as many requests as they need, the rest with the first."""
        given = redact({key: str(value) for key, value in parameters.items()})
        params = [Param(key, value[:MAX_PARAM]) for key, value in given.items()]
        run_tags = [RunTag(key, value) for key, value in redact(tags).items()]
        for start in range(0, max(len(metrics), 1), 500):
            self.client.log_batch(run_id, metrics=metrics[start : start + 500], params=params, tags=run_tags)
            params, run_tags = [], []

    def _run(self, trial: str, name: str, tags: dict[str, str]) -> str:
        if not self._runs:
            self._runs = self._find_runs()
        if trial not in self._runs:
            tags = redact({STUDY_TAG: self.study, TRIAL_TAG: trial, **tags})
            self._runs[trial] = self.client.create_run(self.experiment_id, tags=tags, run_name=name).info.run_id
        return self._runs[trial]

    def _find_runs(self) -> dict[str, str]:
        found: dict[str, str] = {}
        token = None
        while True:
            page = self.client.search_runs(
                [self.experiment_id], f"tags.`{STUDY_TAG}` = '{self.study}'", page_token=token, max_results=1000
            )
            found |= {run.data.tags[TRIAL_TAG]: run.info.run_id for run in page if TRIAL_TAG in run.data.tags}
            # terminated is what a trial is last, after all else of it was delivered
            over = {run.data.tags.get(TRIAL_TAG, PARENT) for run in page if run.info.status != STATUS["RUNNING"]}
            self.ended |= {int(trial) for trial in over - {PARENT}}
            token = page.token
            if not token:
                return found


def record_metrics(record: dict[str, Any]) -> list[Metric]:
    """A record as MLflow metrics at its epoch, stamped with its own time so that writing it twice changes nothing."""
    values = {f"train/{name}": value for name, value in record["train"].items()}
    values |= {f"val/{name}": value for name, value in record["val"].items()}
    values |= {name: record[name] for name in ("learning_rate", "images_per_second", "seconds") if name in record}
    if record["searched"]:
        values["objective"] = record["value"]
    when = int(record["time"] * 1000)
    return [Metric(name, float(value), when, record["epoch"]) for name, value in values.items()]


def connect(uri: str, experiment: str, artifacts: str | None) -> tuple[mlflow.MlflowClient, str]:
    """(client, experiment id). `artifacts` is where a database without a server keeps files.

    Within seconds raises `ServerAway` if a server does not answer or fails, `UsageError` for an address that is none or
    answers with a refusal (401, 403, 404), `ResourceError` for a database that cannot be opened.
    """
    for name, value in {"TIMEOUT": "10", "MAX_RETRIES": "0"}.items():
        os.environ.setdefault(f"MLFLOW_HTTP_REQUEST_{name}", value)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        mlflow.set_tracking_uri(uri)
        location = None if uri.startswith("http") else artifacts
        with _one_at_a_time(uri):
            client = mlflow.MlflowClient(uri)  # makes a new file's tables
            known = client.get_experiment_by_name(experiment)
            return client, known.experiment_id if known else client.create_experiment(
                experiment, location, EXPERIMENT_TAGS
            )
    except (ImportError, *AWAY) as error:
        raise _refused(uri, error) from error


def _refused(uri: str, error: Exception) -> WsolError:
    where, why = f"MLflow at {redact(uri)}", reason(error, 300)
    scheme = uri.split(":")[0].split("+")[0]
    if scheme in DATABASE_ENGINES:
        return ResourceError(f"{where} cannot be opened: {why}")
    if scheme not in ("http", "https"):
        return UsageError(f"{where} is neither a server (http://...) nor a database (sqlite:///...): {why}")
    status = error.get_http_status_code() if isinstance(error, MlflowException) else 500
    if 400 <= status < 500 and status not in (408, 429):  # a timeout, too many requests: those pass
        return UsageError(f"{where} answers with status {status}: check the address and the password. {why}")
    return ServerAway(f"{where} does not answer: {why}")


def sqlite_file(uri: str | None) -> Path | None:
    """The file behind an SQLite URL; None for any other."""
    return Path(uri.removeprefix("sqlite:///")) if uri and uri.startswith("sqlite:///") else None


def _one_at_a_time(uri: str) -> contextlib.AbstractContextManager[Any]:
    """Two drivers that create the tables of one new SQLite file at once would both fail."""
    file = sqlite_file(uri)
    return FileLock(f"{file}.lock") if file else contextlib.nullcontext()


def reason(error: Exception, most: int = 200) -> str:
    """An error in a line of at most `most` characters, without secrets."""
    return redact(" ".join(str(error).split()))[:most]


def deliver(projection: Projection, steps: Mapping[str, Callable[[], object]]) -> str:
    """Write the trials, then take `steps` in their order, each repeated until MLflow takes it or `PATIENCE` is over.

    `steps`: what each writes -> the call, which changes nothing when repeated. Returns what is missing and why, or "".
    """
    steps = {"trials": projection.write, **steps}
    projection.hurry()
    deadline = time.monotonic() + PATIENCE
    left = list(steps)
    while left:
        try:
            steps[left[0]]()
            left.pop(0)
        except (ResourceError, UsageError, *AWAY) as error:
            if isinstance(error, UsageError) or time.monotonic() > deadline:
                return f"MLflow lacks {', '.join(left)} ({reason(error)})"
            time.sleep(1)
    return ""
