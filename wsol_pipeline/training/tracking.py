"""MLflow as a projection of ledger and records: written by the driver alone, idempotent, never waited for.

A parent run per study, a child run per trial. Runs are found by their tags, metrics carry the time of their record, so
writing the same thing again changes nothing: a projection that was interrupted, or whose server was away, is simply
written again. A thread does it every few seconds; what it could not deliver waits for the next turn.
"""

import contextlib
import json
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow
from filelock import FileLock
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from wsol_pipeline.errors import ResourceError
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
MAX_PARAM = 6000  # characters MLflow keeps of a parameter


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
    """Writes a study's trials to MLflow in the background. `trials` and `summary` are called anew at each turn.

    `ended`: trials whose end MLflow has. `trials` may leave them out, so that a turn costs what is new.
    """

    client: mlflow.MlflowClient
    experiment_id: str
    study: str
    tags: dict[str, str]
    trials: Callable[[], Iterable[TrialView]]
    summary: Callable[[], StudyView | None] = lambda: None
    ended: set[int] = field(default_factory=set)
    _runs: dict[str, str] = field(default_factory=dict)  # value of TRIAL_TAG -> run id
    _written: dict[int, tuple[str, int]] = field(default_factory=dict)  # trial -> (state, records) delivered
    _study: StudyView | None = None  # delivered
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _warned: bool = False

    def __enter__(self) -> "Projection":
        self._thread = threading.Thread(target=self._loop, daemon=True, name="mlflow")
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stop.set()
        if self._thread:  # who is interrupted waits a few seconds for a last turn, not for a server that is away
            self._thread.join(timeout=60 if kind is None else 5)

    @property
    def away(self) -> bool:
        """Whether MLflow could not be reached the last time."""
        return self._warned

    def flush(self) -> bool:
        """Write what is not written yet; False if MLflow could not be reached."""
        try:
            self.parent_run()  # finds what an earlier driver has delivered
            for trial in self.trials():
                self._write(trial)
            self._write_study()
        except (MlflowException, *STORAGE_ERRORS) as error:
            self._runs.clear()  # one may have been created although the answer was lost: look again
            if not self._warned:
                reason = redact(str(error))[:200]
                logger.warning("MLflow is away (%s): the study goes on and is written when it is back.", reason)
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

    Raises `ResourceError` within seconds if MLflow does not answer.
    """
    for name, value in {"TIMEOUT": "10", "MAX_RETRIES": "0"}.items():
        os.environ.setdefault(f"MLFLOW_HTTP_REQUEST_{name}", value)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
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
    except (MlflowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ResourceError(redact(f"MLflow at {uri} does not answer: {reason}")[:400]) from error


def sqlite_file(uri: str | None) -> Path | None:
    """The file behind an SQLite URL; None for any other."""
    return Path(uri.removeprefix("sqlite:///")) if uri and uri.startswith("sqlite:///") else None


def _one_at_a_time(uri: str) -> contextlib.AbstractContextManager[Any]:
    """Two drivers that create the tables of one new SQLite file at once would both fail."""
    file = sqlite_file(uri)
    return FileLock(f"{file}.lock") if file else contextlib.nullcontext()


def wait_for_flush(projection: Projection, seconds: float) -> bool:
    """Flush until it works or `seconds` are over."""
    deadline = time.monotonic() + seconds
    while not projection.flush():
        if time.monotonic() > deadline:
            return False
        time.sleep(1)
    return True
