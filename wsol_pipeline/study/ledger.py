"""The study's ledger: every trial's life, in Optuna, written by one driver.

    WAITING   enqueued, not started
    RUNNING   started; what a dead driver leaves RUNNING is adopted with its number, parameters and checkpoint
    COMPLETE  a worker's final record exists
    PRUNED    our pruner stopped it
    FAIL      with a reason in its user attributes

So `started = complete + pruned + failed` when a job ends, whatever died on the way.

A *confirmation* is a trial that trains another's parameters again with a further seed. It counts in those sums, and
nowhere as a proposal: not against the number of trials asked for, not in the pruner's rungs. To the sampler it is one
more observation of a setting.
"""

import contextlib
import logging
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FixedTrial, FrozenTrial, Trial, TrialState

from search_spaces import Space
from wsol_pipeline.errors import LeaseLostError, MismatchError, UsageError
from wsol_pipeline.redaction import redact
from wsol_pipeline.storage import Store
from wsol_pipeline.study.database import on_new_connection
from wsol_pipeline.study.identity import Home, check_move
from wsol_pipeline.study.lease import Lease
from wsol_pipeline.study.pareto import Rule
from wsol_pipeline.study.samplers import Sampler
from wsol_pipeline.study.standings import CONFIRMS, SEED, Standing, standings
from wsol_pipeline.training.config import differences

logger = logging.getLogger(__name__)
optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)  # of the constraints file's version

CONTRACT = "contract"
FAILURE = "failure"
SPENT = "device_seconds"
PUBLISHED = "published"  # user attribute of an enqueued trial: the id of its preset
HOME = "home"  # the study's id and the place of its files
DRIVER = "driver"  # the attempt of the driver that writes here
SCHEMA = 3  # of a study: its database, its files, winner.json
PATIENCE = 20  # tenths of a second


@dataclass
class Ledger:
    """One study's ledger, held by the driver. Numbers are Optuna's trial numbers, from 0."""

    study: optuna.Study
    storage: BaseStorage  # as it is, without what Optuna remembers of it
    space: Space
    sampler: Sampler
    home: Home
    lease: Lease
    rule: Rule | None = None  # of a study of several objectives
    _proposing: threading.Lock = field(default_factory=threading.Lock)  # MLflow's thread reads parameters meanwhile
    _reconnected: threading.Event = field(default_factory=threading.Event)

    def fence(self) -> None:
        """Raise `LeaseLostError` if another driver writes here, `MismatchError` if it is another study than was opened.

        Called before each write, and asks the database: a driver that took over has left its attempt there, and a
        database that was replaced has another study, or an older driver's.
        """
        self.lease.check()
        try:
            attrs = self.study.user_attrs
        except KeyError:  # Optuna's word for a study that is gone
            attrs = {}
        if attrs.get(HOME) != self.home.kept:
            found = Home(**attrs[HOME]) if HOME in attrs else "no study"
            raise MismatchError(f"The study's database was replaced: it held {self.home} and now holds {found}.")
        if attrs.get(DRIVER) != self.lease.attempt:
            raise LeaseLostError(
                f"Attempt {self.lease.attempt} no longer writes study {self.study.study_name!r}: its database says "
                f"attempt {attrs.get(DRIVER)} does (another driver took over, or an older copy was brought back)."
            )
        if self._reconnected.is_set():
            self._reconnected.clear()
            self._check_nothing_is_lost()

    def confirm_driver(self) -> None:
        """`fence`, and ask the storage too: before what others see and nobody writes again.

        Storage alone does not do: a share may show late that another driver took over; the database says it at once.
        """
        self.lease.confirm()
        self.fence()

    def _check_nothing_is_lost(self) -> None:
        """Raise `MismatchError` if the database knows less than it did: a standby that lagged, or an older copy.

        Optuna remembers the trials that have ended, and would not notice.
        """
        known, study = self.trials(waiting=True), self.study
        told = {trial.number: trial.state for trial in self.storage.get_all_trials(study._study_id, deepcopy=False)}
        for trial in known:
            now = told.get(trial.number)
            if now is None or (trial.state.is_finished() and now is not trial.state):
                raise MismatchError(
                    f"The study's database was replaced by an older state: trial {trial.number} was "
                    f"{trial.state.name} and now is {now.name if now is not None else 'not there'}. Bring the newer "
                    "one back, or let the same command continue from this one as far as its files allow."
                )

    def ask(self) -> FrozenTrial:
        """Start the next trial: an enqueued one, else the sampler's proposal. It is RUNNING when this returns.

        One that somebody enqueued with values that the space does not take is FAIL.
        """
        self.fence()
        with self._proposing:
            self.study.sampler = self.sampler(len(self.trials()))
            trial = self.study.ask()
            self._propose(trial)
        return self.get(trial.number)

    def parameters(self, number: int) -> dict[str, Any]:
        """What the space makes of trial `number`'s parameters. Completes those of a trial whose driver died asking."""
        trial = self.get(number)
        if trial.state.is_finished():  # no sampler needs to look at the whole study for it
            try:
                return self.space(FixedTrial(trial.params))
            except ValueError:  # FAIL, since it was enqueued with values that are none
                return trial.params
        with self._proposing:
            self.study.sampler = self.sampler(number)
            return self._propose(Trial(self.study, trial._trial_id))

    def _propose(self, trial: Trial) -> dict[str, Any]:
        """Give `trial` what it lacks of parameters; FAIL if somebody enqueued it with what the space does not take."""
        try:
            return self.space(trial)
        except (TypeError, ValueError) as error:
            enqueued = self.get(trial.number).system_attrs.get("fixed_params")
            if not enqueued:
                raise
            self.fail(trial.number, "configuration", f"the space does not take {enqueued}, which was enqueued: {error}")
            return trial.params

    def report(self, number: int, epoch: int, value: float) -> bool:
        """Note the searched objective after `epoch`; True if the pruner would stop the trial.

        The first value of an epoch stands. The verdict is given once: asked again, Optuna's successive halving counts
        the trial as past its rung, so the caller tells it at once (a driver killed in between lets the trial go on).
        Published settings are never pruned: they are what the winner is compared with. The pruner is asked for them
        too, because only values it was asked about stand in the rung that other trials have to reach. Confirmations
        are neither pruned nor noted: their setting stands in the rungs already. Nor are trials of several objectives:
        what is poor in one may be the best of another.
        """
        frozen = self.get(number)
        if CONFIRMS in frozen.user_attrs or self.rule:
            return False
        trial = Trial(self.study, frozen._trial_id)
        with self._writing():
            if epoch not in frozen.intermediate_values:
                trial.report(value, step=epoch)
            return trial.should_prune() and PUBLISHED not in frozen.user_attrs

    def spend(self, number: int, device_seconds: float) -> None:
        """Add to what a running trial has cost; an epoch done again after a crash has cost twice."""
        trial = self.get(number)
        spent = trial.user_attrs.get(SPENT, 0.0) + device_seconds
        with self._writing():
            self.study._storage.set_trial_user_attr(trial._trial_id, SPENT, spent)

    def device_seconds(self) -> float:
        """What all trials have cost, as far as their workers could report it."""
        return sum(trial.user_attrs.get(SPENT, 0.0) for trial in self.trials())

    def unconfirmed(self, count: int, seeds: int) -> list[tuple[int, int]]:
        """The (trial, seed) that are missing of `seeds` confirmations for each of the best `count` proposals."""
        begun = {(t.user_attrs[CONFIRMS], t.user_attrs[SEED]) for t in self.trials() if CONFIRMS in t.user_attrs}
        own = [standing.number for standing in standings(self.proposals(), self.rule)][:count]
        return [pair for number in own for pair in ((number, seed + 1) for seed in range(seeds)) if pair not in begun]

    def confirm(self, number: int, seed: int) -> FrozenTrial:
        """Start a confirmation of trial `number`. It is RUNNING when this returns."""
        self.fence()
        of = self.get(number)
        self.study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.RUNNING,
                params=of.params,
                distributions=of.distributions,
                user_attrs={CONFIRMS: number, SEED: seed},
            )
        )
        return self.trials(waiting=True)[-1]

    def complete(self, number: int, *values: float) -> None:
        """Tell the end of a trial with its value of each objective."""
        with self._writing():
            self.study.tell(number, values, state=TrialState.COMPLETE)

    def prune(self, number: int) -> None:
        with self._writing():
            self.study.tell(number, state=TrialState.PRUNED)

    def fail(self, number: int, kind: str, message: str) -> None:
        reason = {"kind": kind, "message": redact(message)[:1000]}
        with self._writing():
            self.study._storage.set_trial_user_attr(self.get(number)._trial_id, FAILURE, reason)
            self.study.tell(number, state=TrialState.FAIL)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Around a write to a trial: the fence before it, and Optuna's word for a trial that is gone."""
        self.fence()
        try:
            yield
        except (optuna.exceptions.UpdateFinishedTrialError, ValueError):  # another driver has told the trial's end
            self.fence()
            raise
        except KeyError as error:
            raise MismatchError(f"The study's database was replaced: it lacks a trial that ran ({error}).") from error

    def get(self, number: int) -> FrozenTrial:
        """Trial `number`. Raises `MismatchError` if the database has never heard of it."""
        trials = self.trials(waiting=True)
        if number >= len(trials):
            raise MismatchError(
                f"The study's database was replaced: it knows {len(trials)} trials, and of trial {number} nothing any "
                "more. Bring it back."
            )
        return trials[number]

    def trials(self, waiting: bool = False) -> list[FrozenTrial]:
        """All started trials (and those enqueued, with `waiting`), by number."""
        trials = self.study.get_trials(deepcopy=False)
        return [trial for trial in trials if waiting or trial.state is not TrialState.WAITING]

    def proposals(self) -> list[FrozenTrial]:
        """The started trials that confirm none, by number: what a study's number of trials counts."""
        return [trial for trial in self.trials() if CONFIRMS not in trial.user_attrs]

    def running(self) -> list[int]:
        return [trial.number for trial in self.trials() if trial.state is TrialState.RUNNING]

    def balance(self) -> dict[str, int]:
        """How many trials were started, and how they stand: the four kinds add up to `started`."""
        states = [trial.state for trial in self.trials()]
        kinds = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING)
        return {"started": len(states)} | {kind.name.lower(): states.count(kind) for kind in kinds}

    def ranking(self) -> list[Standing]:
        """The completed proposals, best first, as `standings` says."""
        return standings(self.trials(), self.rule)


def open_ledger(
    storage: BaseStorage,
    name: str,
    *,
    space: Space,
    contract: Mapping[str, Any],
    published: Mapping[str, Mapping[str, Any]],
    sampler: Sampler,
    pruner: optuna.pruners.BasePruner,
    home: Home,
    lease: Lease,
    rule: Rule | None = None,
    shared: bool = False,
) -> Ledger:
    """Open study `name`, creating it with the `published` settings ({preset id: parameters}) as its first trials.

    `contract` is everything that makes its trials comparable (data, objective, space, recipe). Raises `UsageError` that
    says what differs if the study was begun under another one, or lives elsewhere than at `home` and was not moved from
    there. `lease` is its driver's, `rule` that of several objectives; a database that is not among the study's files is
    `shared`.
    """
    lease.confirm()
    directions = rule.directions if rule else [StudyDirection.MAXIMIZE]
    study = _create_or_load(storage, name, directions, pruner, home)
    contract = {"schema": SCHEMA, **contract}
    kept = study.user_attrs.get(CONTRACT)
    if kept and kept["schema"] != SCHEMA:
        raise UsageError(
            f"Study {name!r} was begun by another version of this code (format {kept['schema']!r}; this one has "
            f"{SCHEMA!r}): go on with that version, or give another --name."
        )
    _check_home(name, study, home, lease, shared)
    if kept and (changes := differences(kept, contract)):
        raise UsageError(f"Study {name!r} was begun differently ({changes}): give it another --name.")
    study.set_user_attr(DRIVER, lease.attempt)
    if kept is None:
        for preset, parameters in published.items():  # a driver killed in here enqueues the rest
            study.enqueue_trial(dict(parameters), user_attrs={PUBLISHED: preset}, skip_if_exists=True)
        study.set_user_attr(CONTRACT, contract)
    ledger = Ledger(study, storage, space, sampler, home, lease, rule)
    on_new_connection(storage, ledger._reconnected.set)
    return ledger


def _create_or_load(
    storage: BaseStorage, name: str, directions: list[StudyDirection], pruner: optuna.pruners.BasePruner, own: Home
) -> optuna.Study:
    """The study `name`, whose home is `own` if it was not there: of several drivers one creates it."""
    try:
        study = optuna.create_study(study_name=name, storage=storage, directions=directions, pruner=pruner)
    except optuna.exceptions.DuplicatedStudyError:
        return optuna.load_study(study_name=name, storage=storage, pruner=pruner)
    study.set_user_attr(HOME, own.kept)
    return study


def _check_home(name: str, study: optuna.Study, own: Home, lease: Lease, shared: bool) -> None:
    """Raise `UsageError` if the study has another home than `own`; one that has none yet, or was moved, gets it."""
    for _ in range(PATIENCE):
        if kept := study.user_attrs.get(HOME):
            break
        time.sleep(0.1)  # who creates a study notes its home next, unless it dies there
    else:
        study.set_user_attr(HOME, own.kept)
        kept = study.user_attrs[HOME]
    if kept["id"] == own.id and kept["storage"] in own.before:
        check_move(name, Store(kept["storage"]), own, lease, study.user_attrs.get(DRIVER, 0), shared)
        study.set_user_attr(HOME, own.kept)
    elif kept != own.kept:
        raise UsageError(
            f"Study {name!r} of this database is kept at {Home(**kept)}, not at {own}: give that --storage, or another "
            "--name."
        )
