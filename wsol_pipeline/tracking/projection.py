"""MLflow as a projection of ledger and records: written by the driver alone, idempotent, never waited for.

A parent run per study, a child run per trial. Runs are found by their tags, metrics carry the time of their record, of
an epoch that was trained again the first stay: writing the same thing again changes nothing. A projection that was
interrupted, or whose server was away, is simply written again. A thread does it every few seconds; what it could not
deliver waits for the next turn, and from the end of the work on for `PATIENCE` at most. A server that is away when a
study begins is connected to at a later turn.
"""

import json
import logging
import math
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow.entities import Metric

from wsol_pipeline.errors import ResourceError, WsolError
from wsol_pipeline.redaction import redact
from wsol_pipeline.tracking.connect import AWAY, reason
from wsol_pipeline.tracking.runs import PATIENCE, RUNNING, StudyRuns

logger = logging.getLogger(__name__)

PAGE_TAG = "mlflow.sharedViewState"
# What was pruned did what it should, and MLflow's KILLED looks like a failure: the tag wsol.state tells them apart.
STATUS = {"RUNNING": RUNNING, "COMPLETE": "FINISHED", "PRUNED": "FINISHED", "FAIL": "FAILED"}
SECONDS_BETWEEN = 5.0


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

    `trials` may leave out those of `runs.ended`, so that a turn costs what is new.
    """

    runs: StudyRuns
    trials: Callable[[], Iterable[TrialView]]
    summary: Callable[[], StudyView | None] = lambda: None
    away: bool = False  # whether MLflow could not be reached the last time
    _written: dict[int, tuple[str, int]] = field(default_factory=dict)  # trial -> (state, records) delivered
    _study: StudyView | None = None  # delivered
    _writing: threading.Lock = field(default_factory=threading.Lock)  # two that write would each create a run
    _deadline: float = math.inf  # of `write`, as `time.monotonic` counts
    _over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Write every few seconds from now on."""
        self._thread = threading.Thread(target=self._loop, daemon=True, name="mlflow")
        self._thread.start()

    def stop(self, seconds: float = 2 * PATIENCE) -> None:
        """Write once more, and end; no longer than `seconds` are waited for it."""
        self._over.set()
        self.hurry()
        if self._thread:
            self._thread.join(timeout=seconds)

    def hurry(self) -> None:
        """Give `write` no longer than `PATIENCE` from now on."""
        self._deadline = time.monotonic() + PATIENCE

    def write(self) -> None:
        """Write what is not written yet. Raises one of `AWAY`, or what connecting raises, if MLflow doesn't take it."""
        if not self._writing.acquire(timeout=max(0.0, min(self._deadline - time.monotonic(), PATIENCE))):
            raise ResourceError("an earlier call has not come back")
        try:
            self._write_all()
        finally:
            self._writing.release()

    def _write_all(self) -> None:
        try:
            self.runs.parent()  # finds what an earlier driver has delivered
            for trial in self.trials():
                if time.monotonic() > self._deadline:
                    raise ResourceError("it is too slow")
                self._write(trial)
            self._write_study()
        except AWAY:  # somebody may have deleted runs, which are written anew then, from their beginning
            self.runs.forget()
            self._written.clear()
            self._study = None
            raise

    def flush(self) -> bool:
        """`write`; False, and a warning the first time, if MLflow did not take everything."""
        try:
            self.write()
        except (WsolError, *AWAY) as error:
            if not self.away:
                logger.warning("MLflow is away (%s): the study goes on and is written when it is back.", reason(error))
            self.away = True
            return False
        self.away = False
        return True

    def _loop(self) -> None:
        while not self._over.wait(SECONDS_BETWEEN):
            self.flush()
        self.flush()

    def _write(self, trial: TrialView) -> None:
        state, delivered = self._written.get(trial.number, ("", 0))
        if trial.number in self.runs.ended or (state, delivered) == (trial.state, len(trial.records)):
            return
        run_id = self.runs.trial(trial.number)
        metrics = [metric for record in trial.records[delivered:] for metric in record_metrics(record)]
        if trial.readout and trial.state != "RUNNING":
            metrics += self._add_readout(run_id, trial.readout, trial.records)
        if not state:
            metrics = self.runs.missing(run_id, metrics)
        tags = {**self.runs.tags, **trial.tags, "wsol.state": trial.state}
        self.runs.log(run_id, metrics, {} if state else trial.parameters, tags)
        if trial.state != "RUNNING":
            self.runs.client.set_terminated(run_id, STATUS[trial.state])
            self.runs.ended.add(trial.number)
        self._written[trial.number] = (trial.state, len(trial.records))

    def _add_readout(
        self, run_id: str, readout: Callable[[Path], dict[str, float]], records: list[dict[str, Any]]
    ) -> list[Metric]:
        """Files of a trial's readout search on its run; its metrics bear the time of the trial's last record."""
        with tempfile.TemporaryDirectory() as folder:
            values = readout(Path(folder))
            self.runs.client.log_artifacts(run_id, folder, "readout")
        when, epoch = int(records[-1]["time"] * 1000), records[-1]["epoch"]
        return [Metric(f"readout/{name}", value, when, epoch) for name, value in values.items()]

    def _write_study(self) -> None:
        view, before = self.summary(), self._study
        if view is None or (before and (before.tags, len(before.metrics)) == (view.tags, len(view.metrics))):
            return
        metrics, parameters = (view.metrics[len(before.metrics) :], {}) if before else (view.metrics, view.parameters)
        if before is None and view.page:
            page = json.dumps(redact(view.page))
            self.runs.client.set_experiment_tag(self.runs.experiment_id, f"{PAGE_TAG}.{self.runs.study}", page)
        self.runs.log(self.runs.parent(), metrics, parameters, view.tags)
        self._study = view


def record_metrics(record: dict[str, Any]) -> list[Metric]:
    """A record as MLflow metrics at its epoch, stamped with its own time so that writing it twice changes nothing."""
    values = {f"train/{name}": value for name, value in record["train"].items()}
    values |= {f"val/{name}": value for name, value in record["val"].items()}
    values |= {name: record[name] for name in ("learning_rate", "images_per_second", "seconds") if name in record}
    values |= {f"used/{what}": amount for what, amount in record.get("used", {}).items()}
    if record["searched"]:
        values["objective"] = record["value"]
    when = int(record["time"] * 1000)
    return [Metric(name, float(value), when, record["epoch"]) for name, value in values.items()]
