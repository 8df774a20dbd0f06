"""A study's runs in MLflow: a parent for the study, a child for each trial; found by their tags, kept once."""

import functools
import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import LifecycleStage, Metric, Param, Run, RunTag, ViewType

from wsol_pipeline.errors import LeaseLostError, ResourceError, UsageError
from wsol_pipeline.redaction import redact
from wsol_pipeline.tracking import moved
from wsol_pipeline.tracking.connect import AWAY, Connect, ServerAway, reason, within

logger = logging.getLogger(__name__)

STUDY_TAG, TRIAL_TAG, PARENT_TAG = "wsol.study", "wsol.trial", "mlflow.parentRunId"
ID_TAG, STORAGE_TAG = "wsol.study_id", "wsol.storage"
PARENT = "study"  # the value of TRIAL_TAG on a study's own run
RUNNING = "RUNNING"  # MLflow's status of a run that is not over
PATIENCE = 30.0  # seconds that the end of the work waits for MLflow
TRICKLE = 60.0  # seconds more, for a call that is on its way
COLUMN = 8  # signs that a column of MLflow's page of runs shows
MAX_PARAM = 6000  # characters MLflow keeps of a parameter


@dataclass
class StudyRuns:
    """The runs of the study named `study`, whose own run bears `tags`. `connect` is called until it has succeeded.

    `id` is the study's own: two studies may bear one name. Runs are found by both, and of two that do so on one MLflow
    the one whose own run is younger is refused by name; so is a copy whose runs another place has taken over, unless it
    was `moved_from` there. `ended`: trials whose end MLflow has.
    """

    connect: Connect
    study: str
    tags: dict[str, str]
    id: str = ""
    moved_from: tuple[str, ...] = ()
    ended: set[int] = field(default_factory=set)
    _ids: dict[str, str] = field(default_factory=dict)  # value of TRIAL_TAG -> run id
    _orphans: set[str] = field(default_factory=set)  # ids of trials' runs whose parent somebody deleted

    @cached_property
    def _connection(self) -> tuple[mlflow.MlflowClient, str]:
        return self.connect()

    @property
    def client(self) -> mlflow.MlflowClient:
        return self._connection[0]

    @property
    def experiment_id(self) -> str:
        return self._connection[1]

    def parent(self) -> str:
        """The id of the study's own run, created if it is not there."""
        return self._run(PARENT, self.study, self.tags)

    def trial(self, number: int) -> str:
        """The id of trial `number`'s run, created if it is not there."""
        return self._run(str(number), f"{self.study} {number:04d}", {PARENT_TAG: self.parent()})

    def forget(self) -> None:
        """Look all of them up again: one may have been created although the answer was lost, or deleted by somebody."""
        self._ids.clear()
        self._orphans.clear()
        self.ended.clear()

    def missing(self, run_id: str, metrics: list[Metric]) -> list[Metric]:
        """Those of `metrics` of whose step the run has no value yet."""
        names = self.client.get_run(run_id).data.metrics
        have = {(name, metric.step) for name in names for metric in self.client.get_metric_history(run_id, name)}
        return [metric for metric in metrics if (metric.key, metric.step) not in have]

    def log(self, run_id: str, metrics: list[Metric], parameters: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Metrics in as many requests as they need, the rest with the first. Numbers are rounded for MLflow's pages."""
        metrics = [Metric(each.key, float(short(each.value)), each.timestamp, each.step) for each in metrics]
        given = redact({key: short(value) for key, value in parameters.items()})
        params = [Param(key, value[:MAX_PARAM]) for key, value in given.items()]
        run_tags = [RunTag(key, value) for key, value in redact(dict(tags)).items()]
        for start in range(0, max(len(metrics), 1), 500):
            self.client.log_batch(run_id, metrics=metrics[start : start + 500], params=params, tags=run_tags)
            params, run_tags = [], []

    def add_pictures(self, paths: Iterable[Path]) -> None:
        """Put pictures on the study's run, over earlier ones of the same names."""
        for path in paths:
            self.client.log_artifact(self.parent(), str(path), "pictures")

    def add_text(self, name: str, text: str) -> None:
        """Put a text file on the study's run, over an earlier one of that name."""
        self.client.log_text(self.parent(), redact(text), name)

    def close_parent(self) -> None:
        """Note the end of the study."""
        self.client.set_terminated(self.parent())

    def _run(self, trial: str, name: str, tags: dict[str, str]) -> str:
        if not self._ids:
            self._ids = self._find()
        if trial not in self._ids:
            tags = redact({STUDY_TAG: self.study, TRIAL_TAG: trial, ID_TAG: self.id, **tags})
            self._ids[trial] = self.client.create_run(self.experiment_id, tags=tags, run_name=name).info.run_id
        while trial == PARENT and self._orphans:
            self.client.set_tag(next(iter(self._orphans)), PARENT_TAG, self._ids[PARENT])
            self._orphans.pop()
        return self._ids[trial]

    def _find(self) -> dict[str, str]:
        """This study's runs. Raises `UsageError` for another study's of the same name."""
        named = [run for run in self._named() if TRIAL_TAG in run.data.tags]
        own = [run for run in named if run.data.tags.get(ID_TAG, "") == self.id]
        self._check_is_alone(own, [run for run in named if run not in own])
        self._take_over([run for run in own if run.data.tags[TRIAL_TAG] == PARENT])
        own = self._once(own)
        found = {run.data.tags[TRIAL_TAG]: run.info.run_id for run in own}
        # terminated is what a trial is last, after all else of it was delivered
        over = {run.data.tags[TRIAL_TAG] for run in own if run.info.status != RUNNING}
        self.ended |= {int(trial) for trial in over - {PARENT}}
        trials = [run for run in own if run.data.tags[TRIAL_TAG] != PARENT]
        self._orphans |= {run.info.run_id for run in trials if run.data.tags.get(PARENT_TAG) != found.get(PARENT)}
        return found

    def _once(self, own: list[Run]) -> list[Run]:
        """One run for the study and each trial: that which is over, else the first.

        An answer that lacked what was there made the others, which are deleted; whatever they had is written again.
        """
        kept: dict[str, Run] = {}
        for run in sorted(own, key=lambda run: (run.info.status == RUNNING, run.info.start_time, run.info.run_id)):
            if kept.setdefault(run.data.tags[TRIAL_TAG], run) is not run:
                self.client.delete_run(run.info.run_id)
        return list(kept.values())

    def _take_over(self, parents: list[Run]) -> None:
        """Runs belong to one place, which the study's own run names. Raises `UsageError` if it is another's."""
        here = self.tags.get(STORAGE_TAG)
        for run in parents:
            there = run.data.tags.get(STORAGE_TAG, here)
            if here is None or there == here:
                continue
            if there not in self.moved_from:
                raise UsageError(
                    f"MLflow's runs of study {self.study!r} are those of its copy at {there}, which has gone on: go on "
                    f"there, or give {here} another MLFLOW_TRACKING_URI."
                )
            self._check_files(there, here)
            self.client.set_tag(run.info.run_id, STORAGE_TAG, here)

    def _check_files(self, there: str, here: str) -> None:
        """Say so if MLflow still keeps files in the storage that was left, where it writes further ones too."""
        before, now = (f"{folder.rpartition('/')[0]}/{moved.ARTIFACTS}" for folder in (there, here))
        if self.client.get_experiment(self.experiment_id).artifact_location.rstrip("/") == before:
            logger.warning(
                "MLflow looks for its files at %s still. Once they are copied: "
                "python -m wsol_pipeline.tracking.moved DATABASE %s %s",
                before, before, now,
            )  # fmt: skip

    def _named(self) -> Iterator[Run]:
        named = f"tags.`{STUDY_TAG}` = '{self.study}'"
        return _pages(functools.partial(self.client.search_runs, [self.experiment_id], named, max_results=1000))

    def _check_is_alone(self, own: list[Run], others: list[Run]) -> None:
        """Of several that began at once the one goes on whose run MLflow has first."""
        began = {run.info.run_id: (run.info.start_time, run.info.run_id) for run in (*own, *others)}
        parents = [[r for r in runs if r.data.tags[TRIAL_TAG] == PARENT] for runs in (own, others)]
        first = min((began[run.info.run_id] for run in parents[0]), default=None)
        for run in parents[1]:
            if first is None or began[run.info.run_id] < first:
                where, whose = (run.data.tags.get(tag) or "unknown" for tag in (STORAGE_TAG, ID_TAG))
                raise UsageError(
                    f"MLflow holds another study {self.study!r}, kept at {where} (id {whose[:12]}; this one is "
                    f"{self.id[:12]}, kept at {self.tags.get(STORAGE_TAG, 'unknown')}): give this one another --name, "
                    f"or delete run {run.info.run_id} there."
                )


@dataclass(frozen=True)
class Kept:
    """What an MLflow has of a study: its runs, deleted ones too, and the copy that has taken them over, or ""."""

    runs: tuple[Run, ...] = ()
    elsewhere: str = ""

    @property
    def deletable(self) -> list[str]:
        """Ids of the runs that go with the study: those that are there, and not a copy's."""
        there = [run.info.run_id for run in self.runs if run.info.lifecycle_stage == LifecycleStage.ACTIVE]
        return [] if self.elsewhere else there


def kept_of(client: mlflow.MlflowClient, id: str, places: Collection[str]) -> Kept:
    """The runs of the study of this id in all experiments; it lies, and lay, at `places`."""
    every = ViewType.ALL
    experiments = [each.experiment_id for each in _pages(functools.partial(client.search_experiments, every))]
    found = tuple(_pages(functools.partial(client.search_runs, experiments, f"tags.`{ID_TAG}` = '{id}'", every)))
    owners = {run.data.tags.get(STORAGE_TAG, "") for run in found if run.data.tags.get(TRIAL_TAG) == PARENT}
    return Kept(found, next(iter(sorted(owners - {"", *places})), ""))


def _pages(search: Callable[..., Any]) -> Iterator[Any]:
    """All that a search of MLflow finds."""
    page = search()
    yield from page
    while page.token:
        page = search(page_token=page.token)
        yield from page


def short(value: Any) -> str:
    """A value in signs; long floats to six digits that count, since a column of MLflow's pages is narrow."""
    return f"{value:.6g}" if isinstance(value, float) and len(str(value)) > COLUMN else str(value)


def deliver(steps: Mapping[str, Callable[[], object]]) -> str:
    """Take `steps` in their order, each repeated until MLflow takes it or `PATIENCE` is over.

    `steps`: what each writes -> the call, which changes nothing when repeated. Returns what is missing and why, or "".
    A call that never comes back, of a server that trickles, is left behind `TRICKLE` later.
    """
    left, deadline = list(steps), time.monotonic() + PATIENCE

    def take() -> str:
        while left:
            try:
                steps[left[0]]()
                left.pop(0)
            except LeaseLostError:
                raise
            except (ResourceError, UsageError, *AWAY) as error:
                if isinstance(error, UsageError) or time.monotonic() > deadline:
                    return reason(error)
                time.sleep(1)
        return ""

    try:
        why = within(PATIENCE + TRICKLE, take)
    except ServerAway as error:
        why = reason(error)
    return f"MLflow lacks {', '.join(left)} ({why})" if left else ""
