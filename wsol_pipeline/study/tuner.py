"""Ray Tune over a ledger: what to run next, when to stop it, and what its end means.

Ray Tune only executes; its own state is disposable. The searcher hands out the ledger's trials, adopted ones first; the
scheduler is FIFO and stops what the ledger's pruner says; a trial is COMPLETE only when a worker's final record exists.
"""

import dataclasses
import logging
import math
import re
import time
from collections.abc import Callable
from typing import Any

import ray.tune
from ray.tune.error import TuneError
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from wsol_pipeline import interrupts
from wsol_pipeline.errors import DataError, MismatchError, ResourceError, WsolError
from wsol_pipeline.storage import SHOWS_WITHIN, STORAGE_ERRORS, Store, describe_storage_error
from wsol_pipeline.study.budget import Budget
from wsol_pipeline.study.database import DATABASE_ERRORS
from wsol_pipeline.study.events import Listener
from wsol_pipeline.study.identity import require_made_for
from wsol_pipeline.study.lease import Lease
from wsol_pipeline.study.ledger import FAILURE, Ledger
from wsol_pipeline.study.pareto import COST, Rule
from wsol_pipeline.study.standings import SEED
from wsol_pipeline.study.streak import ABSTAINED, Streak
from wsol_pipeline.training import signals
from wsol_pipeline.training.checkpoint import CheckpointStore
from wsol_pipeline.training.cluster import check_alive
from wsol_pipeline.training.config import Job, to_dict
from wsol_pipeline.training.run import CROWDED, RAY_RETRIES

logger = logging.getLogger(__name__)

_FINAL = re.compile(r"trials/(\d{4,})/attempt-\d{4,}/final/([^/]+)")
Point = Callable[[str], None]  # called with the name of each step passed; tests kill the driver there

OWN_WATCH_FIRST = 10.0  # seconds that a trial's own watch is given to say where it stands still
FAULT_ERRORS = {"mismatch": MismatchError, "data": DataError, "storage": ResourceError}
STOP_WITHIN = 30.0  # seconds that trials have to write a checkpoint and end, once the study is interrupted


class LedgerSearcher(Searcher):
    """Gives Ray Tune the ledger's trials as jobs and brings their results back. Lives in the driver.

    Args:
        ledger: the study.
        lease: checked before each write.
        make_job: (parameters, what to add to the study's seed, trial folder) -> the job to run.
        trials: how many to propose in all, over every life of the study.
        folder: the study's folder; trial `n` works in `trials/<n>`.
        on_event: told about each start, record and end, for the terminal and MLflow.
        budget: limits beside `trials`; `stopped` says which of them was reached.
        confirm: how many of the best to train again, with how many further seeds each.
        stuck_minutes: without a word of a trial, after which its process is ended.
    """

    def __init__(
        self,
        ledger: Ledger,
        lease: Lease,
        make_job: Callable[[dict[str, Any], int, Store], Job],
        trials: int,
        folder: Store,
        on_event: Listener,
        point: Point = lambda name: None,
        budget: Budget | None = None,
        confirm: tuple[int, int] = (0, 0),
        stuck_minutes: float = math.inf,
    ) -> None:
        super().__init__()  # no metric: Ray would end the study with the trial that failed before its first record
        self.ledger, self.lease, self.make_job, self.trials, self.folder = ledger, lease, make_job, trials, folder
        self.on_event, self.point, self.budget, self.confirm = on_event, point, budget or Budget(), confirm
        self.stopped, self.stuck_seconds = "", 60 * stuck_minutes
        self.streak = Streak()
        self.drained = False  # nothing is left to suggest unless a trial that runs comes back
        self.numbers: dict[str, int] = {}  # Ray's trial id -> ours
        self.pruned: set[str] = set()  # Ray's ids of trials that our pruner stopped
        self.live: set[str] = set()  # Ray's ids of trials that it has and that have not ended
        self.launched: set[int] = set()  # trials whose actor has started and not ended
        self.heard: dict[int, tuple[str | None, float]] = {}  # a trial's newest heartbeat, and when it was first seen
        self.ended_at_request: set[int] = set()  # trials that wrote a checkpoint and ended when they were asked to
        self.stop_by = self.asked_at = 0.0  # by when to end, once interrupted; when positions were asked for last
        self.alone: set[int] = set()  # trials that found their share of a GPU too small
        self.crowded: list[int] = []  # those of them that wait for a GPU of their own
        self.orphans = settle_orphans(ledger, self.job, self.checkpoints, on_event)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]  # Ray's FINISHED: a str
        """The next job as plain data: an orphan of a dead driver first, else the next of the study.

        None while there is none but may be: which trials to confirm is known once every proposal has ended.
        """
        self.lease.check()
        if interrupts.asked():
            return Searcher.FINISHED
        number = None if self.drained else self._next_sound()
        if number is None:
            self.drained = bool(self.live) and not self._waits()
            return None if self.live or self._waits() else Searcher.FINISHED
        self.point("suggested")
        self.numbers[trial_id] = number
        self.live.add(trial_id)
        self.on_event("started", number, {"parameters": self.ledger.parameters(number), **self._attrs(number)})
        return to_dict(self.job(number))

    def job(self, number: int) -> Job:
        """What trial `number` runs."""
        folder = trial_folder(self.folder, number)
        job = self.make_job(self.ledger.parameters(number), self._attrs(number).get(SEED, 0), folder)
        return dataclasses.replace(job, gpus=1.0) if number in self.alone else job

    def _attrs(self, number: int) -> dict[str, Any]:
        return self.ledger.get(number).user_attrs

    def _next_sound(self) -> int | None:
        """`_next`, past trials that somebody enqueued with values that are none."""
        while (number := self._next()) is not None and self.ledger.get(number).state.is_finished():
            self.on_event("failed", number, self._attrs(number)[FAILURE])
        return number

    def _next(self) -> int | None:
        """An orphan, else a new trial, else one that needs a whole GPU: before, others keep every GPU in parts, and it
        would wait in the place of one that could train."""
        if self.orphans:
            return self.orphans.pop(0)
        proposes = len(self.ledger.proposals()) < self.trials
        missing = [] if proposes or self._waits() else self.ledger.unconfirmed(*self.confirm)
        if proposes or missing:
            self.stopped = self.stopped or self.budget.spent(self.ledger.device_seconds())
        if self.stopped or not (proposes or missing):
            return self.crowded.pop(0) if self.crowded else None
        return (self.ledger.ask() if proposes else self.ledger.confirm(*missing[0])).number

    def _waits(self) -> bool:
        running = any(not trial.state.is_finished() for trial in self.ledger.proposals())
        return self.confirm[0] > 0 and not self.stopped and running

    def record(self, trial_id: str, record: dict[str, Any]) -> bool:
        """Take a worker's record; True if the trial should stop now."""
        self.point("checkpointed")
        self.lease.check()
        number = self.numbers[trial_id]
        self.streak.further(number)
        self.on_event("epoch", number, record)
        self.ledger.spend(number, record["device_seconds"])
        stop = report(self.ledger, number, record, self.on_event)
        if stop:
            self.pruned.add(trial_id)
        return stop

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the study how the trial ended, from what its worker wrote."""
        self.lease.check()
        self.point("completing")
        number = self.numbers[trial_id]
        self.launched.discard(number)
        self.live.discard(trial_id)
        self.drained = False
        checkpoints = self.checkpoints(number)
        if trial_id in self.pruned or settle(self.ledger, number, self.job, checkpoints, self.on_event):
            self._end(number)
        elif self.stop_by:  # it stays RUNNING, to be adopted
            self.ended_at_request.add(number)
        elif fault := checkpoints.take_fault():
            self._put_back(number, fault)
        elif not error:  # it ended well, as Ray says
            self._settle_late(number)
        else:
            failure = {"kind": "infrastructure", "message": "its worker died again and again; see Ray's logs"}
            self.ledger.fail(number, **failure)
            self.on_event("failed", number, failure)
            self._end(number)

    def _settle_late(self, number: int) -> None:
        """Tell the end of a trial whose worker has written it where it does not show yet: shares show files late."""
        checkpoints, deadline = self.checkpoints(number), time.monotonic() + SHOWS_WITHIN
        while time.monotonic() < deadline:
            time.sleep(1)
            self.lease.check()
            if settle(self.ledger, number, self.job, checkpoints, self.on_event):
                return self._end(number)
        told = f"its worker ended well, but what it wrote does not show in {checkpoints.trial}"
        return self._put_back(number, {"kind": "storage", "message": told})

    def _end(self, number: int) -> None:
        """Free what no trial needs that has ended; start no more once too many in a row have failed alike."""
        self.checkpoints(number).drop_states()
        self.stopped = self.streak.add(number, self._attrs(number).get(FAILURE)) or self.stopped

    def _put_back(self, number: int, fault: dict[str, str]) -> None:
        """Let a trial that could not go on go on, which the ledger has RUNNING. Raises `DataError` or `ResourceError`
        once the fault shows to last."""
        self.on_event("died", number, fault)
        if fault["kind"] == CROWDED:
            self.alone.add(number)
        elif told := self.streak.add(number, fault):
            raise FAULT_ERRORS[fault["kind"]](f"{told} The same command continues: no trial is lost.")
        (self.crowded if number in self.alone else self.orphans).append(number)

    def checkpoints(self, number: int) -> CheckpointStore:
        return CheckpointStore(trial_folder(self.folder, number), self.lease.attempt)

    def on_trial_start(self, trial_id: str) -> None:
        """The trial's actor lives and is about to train."""
        self.point("launched")
        self.launched.add(self.numbers[trial_id])
        self.heard.pop(self.numbers[trial_id], None)
        self.on_event("launched", self.numbers[trial_id], {})

    def on_trial_recover(self, trial_id: str) -> None:
        """The trial's worker died, and Ray starts another. Raises `ResourceError` if all would die: storage is away."""
        number = self.numbers[trial_id]
        self.on_event("died", number, {})
        signals.hush(self.checkpoints(number))
        self.folder.check_writable()

    def step(self) -> None:
        """Tell where the trials stand, every second; end them all once the study is interrupted.

        Raises `KeyboardInterrupt` when they have not ended within `STOP_WITHIN`, `ResourceError` when Ray has ended.
        """
        now = time.monotonic()
        if now - self.asked_at < signals.SECONDS:
            return
        self.asked_at = now
        self.lease.check()
        check_alive()
        self._end_stopped(now)
        stands = {n: at for n in sorted(self.launched) if (at := signals.position(self.checkpoints(n)))}
        for number, position in stands.items():
            self.on_event("position", number, {"position": position})
        if interrupts.asked() and not self.stop_by:
            self.stop_by = now + STOP_WITHIN
            for number in stands:
                signals.ask_to_stop(self.checkpoints(number))
                self.on_event("stopping", number, {})
        if self.stop_by and (now > self.stop_by or not stands):  # who has not trained loses nothing
            raise KeyboardInterrupt

    def _end_stopped(self, now: float) -> None:
        """End the process of a trial that has said nothing for longer than it may stand still.

        Its own watch ends it before, and says where it stood; unless all of it was stopped (SIGSTOP, a machine that
        swaps). Ray then starts another, as for every process that dies.
        """
        for number in sorted(self.launched):
            checkpoints = self.checkpoints(number)
            said, since = self.heard.get(number, (None, now))
            if (heard := signals.heartbeat(checkpoints)) != said:
                self.heard[number] = heard, now
            elif said and now - since > self.stuck_seconds + OWN_WATCH_FIRST:
                logger.warning("trial %d has stood still for %.0f s: its process is ended", number, now - since)
                signals.end(checkpoints)
                self.heard[number] = said, now

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing: the scheduler, which Ray asks first, has taken the record."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is the state."""

    def restore(self, checkpoint_path: str) -> None:
        raise WsolError("A study is continued by starting the same command again, not by Tuner.restore.")

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray pickles its configuration beside its own state; ours stays here


class LedgerScheduler(FIFOScheduler):
    """First come, first served; stops a trial when the ledger's pruner says so."""

    def __init__(self, searcher: LedgerSearcher) -> None:
        super().__init__()
        self.searcher = searcher

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if "searched" in result and self.searcher.record(trial.trial_id, result):
            return TrialScheduler.STOP
        return TrialScheduler.CONTINUE

    def __getstate__(self) -> dict[str, Any]:
        return {}


class Steps(ray.tune.Callback):
    """Tells the searcher what Ray tells nobody else: a trial's actor has started, has died, time has passed."""

    def __init__(self, searcher: LedgerSearcher) -> None:
        self.searcher = searcher

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.searcher.on_trial_start(trial.trial_id)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.searcher.on_trial_recover(trial.trial_id)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        signals.forget(self.searcher.checkpoints(self.searcher.numbers[trial.trial_id]))

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self.searcher.step()


def trial_folder(study: Store, number: int) -> Store:
    """The folder of trial `number`."""
    return study / f"trials/{number:04d}"


def final_files(study: Store, name: str) -> dict[int, str]:
    """File `name` of every trial's finished model, by the trial's number, found without reading any model."""
    found = (_FINAL.fullmatch(file) for file in study.list("trials"))
    return {int(of[1]): of[0] for of in found if of and of[2] == name}


def report(ledger: Ledger, number: int, record: dict[str, Any], on_event: Listener) -> bool:
    """Show a record to the pruner; True if the trial is PRUNED by it.

    It is told before Ray stops the trial: a driver killed in between leaves no trial that was half pruned.
    """
    if not is_rung(record):
        return False
    stop = ledger.report(number, record["epoch"], record["value"])
    if stop:
        ledger.prune(number)
        on_event("pruned", number, {})
    return stop


def is_rung(record: dict[str, Any]) -> bool:
    """Whether the pruner compares this record: values of one readout setting don't compare with searched ones."""
    return bool(record["searched"] and not record["final"])


def _complete_curve(ledger: Ledger, number: int, records: list[dict[str, Any]]) -> None:
    """Note what a database brought back from an older copy lacks of a finished trial; the pruner's word is too late."""
    told = ledger.get(number).intermediate_values
    for record in records:
        if is_rung(record) and record["epoch"] not in told:
            ledger.report(number, record["epoch"], record["value"])


def settle(
    ledger: Ledger, number: int, job: Callable[[int], Job], checkpoints: CheckpointStore, on_event: Listener
) -> bool:
    """Tell COMPLETE or FAIL if the trial's worker has written its end; False if it has not.

    Raises `MismatchError` for a finished model that is not what `job` of its number asks for.
    """
    if final := checkpoints.final():
        require_made_for(job(number), final)
        records = checkpoints.records()
        _complete_curve(ledger, number, records)
        if reason := (records[-1]["choice"] or {}).get("reason"):  # its score is no match for others'
            ledger.fail(number, ABSTAINED, reason)
            on_event("failed", number, {"kind": ABSTAINED, "message": reason})
            return True
        values = reached(records, ledger.rule)
        undefined = [name for name, value in values.items() if not math.isfinite(value)]
        if not undefined:
            ledger.complete(number, *values.values())
            on_event("complete", number, {"record": records[-1], "folder": final.uri, "values": values})
            return True
        failure = {"kind": "configuration", "message": f"{undefined[0]} is not defined for these maps"}  # PxAP of masks
    else:
        failure = checkpoints.failure() or {}
    if failure:
        ledger.fail(number, failure["kind"], failure["message"])
        on_event("failed", number, failure)
        return True
    return False


def reached(records: list[dict[str, Any]], rule: Rule | None) -> dict[str, float]:
    """A finished trial's value of each objective, from the records of its epochs; the first is the one solved for.

    Cost counts every epoch once: what died and was done again is no fault of the setting.
    """
    last = records[-1]
    if rule is None:
        return {"value": last["value"]}
    first, *others = rule.objectives
    known = {**last["val"], COST: sum(record["device_seconds"] for record in records) / 3600}
    return {first: last["value"]} | {name: known[name] for name in others}


def settle_orphans(
    ledger: Ledger, job: Callable[[int], Job], checkpoints: Callable[[int], CheckpointStore], on_event: Listener
) -> list[int]:
    """Tell what a dead driver could not any more, the pruner's word included; return the trials that have to go on."""

    def ended(number: int) -> bool:
        ledger.parameters(number)  # completes them; FAIL where somebody enqueued what are none
        if ledger.get(number).state.is_finished():
            on_event("failed", number, ledger.get(number).user_attrs[FAILURE])
            return True
        if settle(ledger, number, job, checkpoints(number), on_event):
            return True
        return any(report(ledger, number, record, on_event) for record in checkpoints(number).records())

    left = []
    for number in ledger.running():
        if ended(number):
            checkpoints(number).drop_states()
        else:
            left.append(number)
    return left


def run_trials(searcher: LedgerSearcher, trainable: Any, concurrent: int, resources: Any, folder: Store) -> None:
    """Run until the searcher is finished. Ray Tune's own files go below `folder` and may be deleted any time.

    Raises what the searcher raised, and `ResourceError` when storage is away or a machine's memory is full; Ray wraps
    each in a traceback of its own.
    """
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(trainable, resources),
        tune_config=ray.tune.TuneConfig(
            search_alg=searcher,
            scheduler=LedgerScheduler(searcher),
            num_samples=-1,  # until the searcher says finished
            max_concurrent_trials=concurrent,
            reuse_actors=True,
        ),
        run_config=ray.tune.RunConfig(
            name=f"tune-{searcher.lease.attempt:04d}",
            storage_path=folder.url("ray"),
            failure_config=ray.tune.FailureConfig(max_failures=RAY_RETRIES),
            callbacks=[Steps(searcher)],
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    except (TuneError, *STORAGE_ERRORS) as error:
        cause = error.__context__ if isinstance(error, TuneError) else error
        if isinstance(cause, (WsolError, BrokenPipeError, *DATABASE_ERRORS)):  # a pipe: who read the terminal has ended
            raise cause from cause.__cause__  # which says what the database said
        if isinstance(cause, STORAGE_ERRORS):
            raise ResourceError(f"{describe_storage_error(folder.uri, cause)} The same command continues.") from error
        raise
    except RuntimeError as error:  # so Ray Tune ends at what it does not expect of a trial's process
        if not isinstance(error.__cause__, ray.exceptions.OutOfMemoryError):
            raise
        told = str(error.__cause__).splitlines()[0][:200]
        raise ResourceError(
            f"Ray ended a trial's process because its machine's memory was full: {told} Free some, or let fewer trials "
            "run at once (--concurrent). The same command continues."
        ) from error
