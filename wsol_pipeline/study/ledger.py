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
import copy
import json
import logging
import sqlite3
import statistics
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.study import StudyDirection
from optuna.trial import BaseTrial, FixedTrial, FrozenTrial, Trial, TrialState
from sqlalchemy.exc import IntegrityError, ProgrammingError, SQLAlchemyError
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_random

from wsol_pipeline.errors import DataError, ResourceError, UsageError, unknown
from wsol_pipeline.redaction import redact
from wsol_pipeline.storage import Store
from wsol_pipeline.study.pareto import Rule, cell, deviation

logger = logging.getLogger(__name__)
optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)  # of the constraints file's version

DATABASE_ERRORS = (optuna.exceptions.StorageInternalError, SQLAlchemyError, sqlite3.Error)
Space = Callable[[BaseTrial], dict[str, Any]]
CONTRACT = "contract"
FAILURE = "failure"
SPENT = "device_seconds"
PUBLISHED = "published"  # user attribute of an enqueued trial: the id of its preset
CONFIRMS, SEED = "confirms", "seed"  # of a confirmation: whose parameters it repeats; what is added to the study's seed
SCHEMA = 1
LOCK_SECONDS = 5.0  # how long another process may hold the database when a study begins


class ObjectJournal(BaseJournalBackend):
    """Optuna's journal as numbered objects in a `Store`: a study that lives in a bucket, with no database.

    Each append creates the next number (If-None-Match), so two writers can't overwrite each other; the study's lease
    keeps them from trying.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._logs: list[dict[str, Any]] = []
        self._objects = 0

    def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
        self._catch_up()
        return self._logs[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        while not self.store.create(_journal_name(self._objects), json.dumps(logs).encode()):
            self._catch_up()
        self._logs += logs
        self._objects += 1

    def _catch_up(self) -> None:
        if self._objects == 0:
            for name in self.store.list():
                self._take(name)
        while self.store.exists(_journal_name(self._objects)):
            self._take(_journal_name(self._objects))

    def _take(self, name: str) -> None:
        self._logs += json.loads(self.store.read(name))
        self._objects += 1


def _journal_name(number: int) -> str:
    return f"{number:08d}.json"


def open_storage(store: Store, database: str | None) -> BaseStorage:
    """Where the study lives: `database` (an SQLAlchemy URL), else SQLite in a local `store`, else a journal in `store`.

    Raises `ResourceError` if the database can't be opened, within seconds if another process has locked it.
    """
    if not database and not store.is_local:
        return JournalStorage(ObjectJournal(store / "journal"))
    url = database or f"sqlite:///{store.path('study.db')}"
    with _database_errors(url):
        if not database:
            Path(store.uri).mkdir(parents=True, exist_ok=True)
        if not url.startswith("sqlite:///"):
            return _open_database(url)
        _check_unlocked(url.removeprefix("sqlite:///"))
        return RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60}})


@contextlib.contextmanager
def database_needed() -> Iterator[None]:
    """Within, a database that fails (locked for a minute, its disk full, its server gone) is a `ResourceError`."""
    try:
        yield
    except DATABASE_ERRORS as error:
        why = redact(str(error.__cause__ or error).partition("\n")[0])[:300]  # SQL follows
        raise ResourceError(f"The study's database does not answer: {why}. The same command continues.") from error


@contextlib.contextmanager
def _database_errors(url: str) -> Iterator[None]:
    """What a database that is away, locked, broken or of another Optuna raises, as a `ResourceError`."""
    try:
        yield
    except (
        *DATABASE_ERRORS, ImportError, OSError, ValueError,
        RuntimeError,  # Optuna's word for tables of another version
    ) as error:  # fmt: skip
        why = redact(" ".join(str(error.__cause__ or error).split()))[:300]
        raise ResourceError(f"The study's database {redact(url)} cannot be opened: {why}") from error


def _check_unlocked(file: str) -> None:
    """Write nothing to an SQLite file, but as a writer: who holds it is told of in seconds, not after a minute."""
    with contextlib.closing(sqlite3.connect(file, timeout=LOCK_SECONDS, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")


def check_trials_are_known(storage: BaseStorage, name: str, folder: Store) -> None:
    """Raise `DataError` if `folder` holds trials of a study that `storage` has never heard of.

    Then the database was removed, or is another one: trials numbered anew would go on from the old ones' checkpoints.
    """
    if name not in optuna.study.get_all_study_names(storage) and folder.list("trials"):
        raise DataError(
            f"{folder.path('trials')} holds trials of a study {name!r} that its database does not know: bring the "
            "database back (or its --study-db), or give another --name."
        )


# Of two drivers that make the tables of a new database at once one fails; it finds them made when it tries again.
@retry(
    retry=retry_if_exception_type((IntegrityError, ProgrammingError)),
    stop=stop_after_attempt(4),
    wait=wait_random(0, 2),
    reraise=True,
)
def _open_database(url: str) -> RDBStorage:
    return RDBStorage(url, engine_kwargs={"pool_pre_ping": True})


Sampler = Callable[[int], optuna.samplers.BaseSampler]  # trial number -> what proposes its parameters

SAMPLERS: dict[str, Callable[[int, int, int], optuna.samplers.BaseSampler]] = {  # (seed, trial number, startup trials)
    "tpe": lambda seed, number, startup: optuna.samplers.TPESampler(
        seed=_seed_of(seed, number), n_startup_trials=startup, multivariate=True, constant_liar=True
    ),
    "gp": lambda seed, number, startup: optuna.samplers.GPSampler(
        seed=_seed_of(seed, number), n_startup_trials=startup, deterministic_objective=False
    ),
    "cma-es": lambda seed, number, startup: optuna.samplers.CmaEsSampler(
        seed=_seed_of(seed, number), n_startup_trials=startup, warn_independent_sampling=False
    ),
    # a sequence of points, of which each trial takes the next: its seed must stay
    "qmc": lambda seed, number, startup: optuna.samplers.QMCSampler(
        seed=seed, scramble=True, warn_independent_sampling=False
    ),
    "random": lambda seed, number, startup: optuna.samplers.RandomSampler(seed=_seed_of(seed, number)),
    # its parents are its own proposals alone: Optuna counts enqueued trials to no generation
    "nsga2": lambda seed, number, startup: optuna.samplers.NSGAIISampler(
        seed=_seed_of(seed, number), population_size=max(2, startup)
    ),
}
FOR_ONE, FOR_SEVERAL = ("cma-es",), ("nsga2",)  # samplers of studies with one objective, with several

PRUNERS: dict[str, Callable[[int, int], optuna.pruners.BasePruner]] = {  # (first rung, epochs)
    "successive-halving": lambda first, epochs: optuna.pruners.SuccessiveHalvingPruner(
        min_resource=first, reduction_factor=2
    ),
    "hyperband": lambda first, epochs: optuna.pruners.HyperbandPruner(
        min_resource=first, max_resource=epochs, reduction_factor=2
    ),
    "median": lambda first, epochs: optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=first - 1),
    "none": lambda first, epochs: optuna.pruners.NopPruner(),
}


def sampler(name: str, seed: int, startup_trials: int) -> Sampler:
    """Optuna's sampler by name, seeded for each trial by its number, so that proposals don't depend on restarts."""
    if name not in SAMPLERS:
        raise unknown("sampler", name, SAMPLERS)
    return lambda number: SAMPLERS[name](seed, number, startup_trials)


def _seed_of(seed: int, number: int) -> int:
    return (seed * 1_000_003 + number) % 2**32


def pruner(name: str, first_rung: int, epochs: int) -> optuna.pruners.BasePruner:
    """Optuna's pruner by name; `first_rung` is the first epoch at which it is asked."""
    if name not in PRUNERS:
        raise unknown("pruner", name, PRUNERS)
    return PRUNERS[name](first_rung, epochs)


@dataclass(frozen=True)
class Standing:
    """What is known of a proposal's setting: values of its own trial, then of its completed confirmations by seed.

    `others`: of each further objective the same.
    """

    trials: tuple[int, ...]
    values: tuple[float, ...]
    others: tuple[tuple[float, ...], ...] = ()

    @property
    def number(self) -> int:
        return self.trials[0]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def std(self) -> float:
        """Over seeds (n - 1); 0 of a single one."""
        return deviation(self.values)

    @property
    def means(self) -> tuple[float, ...]:
        """Of every objective."""
        return tuple(statistics.fmean(values) for values in (self.values, *self.others))

    def cells(self, objectives: Sequence[str]) -> list[str]:
        """Of each of the study's objectives what a table shows."""
        return [cell(name, values) for name, values in zip(objectives, (self.values, *self.others), strict=True)]

    def __str__(self) -> str:
        """`61.25`, or `61.25 ± 0.80 (3)` of three seeds."""
        return cell("", self.values)


def standings(trials: Iterable[FrozenTrial], rule: Rule | None = None) -> list[Standing]:
    """The completed proposals, best first: those with confirmations by their mean, then the others by their value.

    A single value is no match for a mean: the best of many single values is mostly a lucky one. The earliest comes
    first among equals; a confirmation that failed does not count. Of several objectives `rule` says what is best.
    """
    runs: dict[int, list[tuple[int, int, list[float]]]] = {}
    for trial in trials:
        if trial.state is TrialState.COMPLETE:
            attrs = trial.user_attrs
            run = attrs.get(SEED, 0), trial.number, trial.values
            runs.setdefault(attrs.get(CONFIRMS, trial.number), []).append(run)
    found = []
    for of in map(sorted, runs.values()):
        values, *others = zip(*(values for _, _, values in of), strict=True)
        found.append(Standing(tuple(number for _, number, _ in of), values, tuple(others)))
    if rule is None:
        return sorted(found, key=lambda standing: (len(standing.values) == 1, -standing.mean, standing.number))
    found.sort(key=lambda standing: standing.number)
    confirmed, single = ([s for s in found if (len(s.values) > 1) is several] for several in (True, False))
    return [pool[n] for pool in (confirmed, single) if pool for n in rule.order([s.means for s in pool])]


def compared(ranking: Sequence[Standing]) -> list[Standing]:
    """Those of a ranking that the winner was picked from: the settings with confirmations, if there are any."""
    return [standing for standing in ranking if len(standing.values) > 1] or list(ranking)


def front(ranking: Sequence[Standing], rule: Rule) -> list[Standing]:
    """The settings on the Pareto front of those compared, in the order of `ranking`."""
    rivals = compared(ranking)
    return [rivals[n] for n in rule.front([standing.means for standing in rivals])]


def first_objective(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """The trials as a study of their first objective would hold them, for charts of a single value."""
    copies = [copy.copy(trial) for trial in trials]
    for trial in copies:
        trial.values = trial.values[:1] if trial.values else None
    return copies


def study_of(trials: Iterable[FrozenTrial]) -> optuna.Study:
    """A study in memory of these trials alone, numbered anew, for what Optuna says of a whole study."""
    study = optuna.create_study(direction="maximize")
    study.add_trials(trials)
    return study


@dataclass
class Ledger:
    """One study's ledger, held by the driver. Numbers are Optuna's trial numbers, from 0."""

    study: optuna.Study
    space: Space
    sampler: Sampler
    rule: Rule | None = None  # of a study of several objectives
    _proposing: threading.Lock = field(default_factory=threading.Lock)  # MLflow's thread reads parameters meanwhile

    def ask(self) -> FrozenTrial:
        """Start the next trial: an enqueued one, else the sampler's proposal. It is RUNNING when this returns."""
        with self._proposing:
            self.study.sampler = self.sampler(len(self.trials()))
            trial = self.study.ask()
            self.space(trial)
        return self.get(trial.number)

    def parameters(self, number: int) -> dict[str, Any]:
        """What the space makes of trial `number`'s parameters. Completes those of a trial whose driver died asking."""
        trial = self.get(number)
        if trial.state.is_finished():  # no sampler needs to look at the whole study for it
            return self.space(FixedTrial(trial.params))
        with self._proposing:
            self.study.sampler = self.sampler(number)
            return self.space(Trial(self.study, trial._trial_id))

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
        if epoch not in frozen.intermediate_values:
            trial.report(value, step=epoch)
        return trial.should_prune() and PUBLISHED not in frozen.user_attrs

    def spend(self, number: int, device_seconds: float) -> None:
        """Add to what a running trial has cost; an epoch done again after a crash has cost twice."""
        trial = self.get(number)
        spent = trial.user_attrs.get(SPENT, 0.0) + device_seconds
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
        self.study.tell(number, values, state=TrialState.COMPLETE)

    def prune(self, number: int) -> None:
        self.study.tell(number, state=TrialState.PRUNED)

    def fail(self, number: int, kind: str, message: str) -> None:
        self.study._storage.set_trial_user_attr(
            self.get(number)._trial_id, FAILURE, {"kind": kind, "message": redact(message)[:1000]}
        )
        self.study.tell(number, state=TrialState.FAIL)

    def get(self, number: int) -> FrozenTrial:
        return self.trials(waiting=True)[number]

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
    rule: Rule | None = None,
) -> Ledger:
    """Open study `name`, creating it with the `published` settings ({preset id: parameters}) as its first trials.

    `contract` is everything that makes its trials comparable (data, objective, space, recipe). Raises `UsageError` that
    says what differs if the study was begun under another one. `rule` is that of several objectives.
    """
    directions = rule.directions if rule else [StudyDirection.MAXIMIZE]
    study = optuna.create_study(
        study_name=name, storage=storage, directions=directions, load_if_exists=True, pruner=pruner
    )
    contract = {"schema": SCHEMA, **contract}
    kept = study.user_attrs.get(CONTRACT)
    if kept is None:
        for preset, parameters in published.items():  # a driver killed in here enqueues the rest
            study.enqueue_trial(dict(parameters), user_attrs={PUBLISHED: preset}, skip_if_exists=True)
        study.set_user_attr(CONTRACT, contract)
    else:
        _check_contract(name, kept, json.loads(json.dumps(contract)))
    return Ledger(study, space, sampler, rule)


def _check_contract(name: str, kept: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    if kept["schema"] != wanted["schema"]:
        raise UsageError(
            f"Study {name!r} was begun by another version of this code (format {kept['schema']!r}; this one has "
            f"{wanted['schema']!r}): go on with that version, or give another --name."
        )
    before, now = _flatten(kept), _flatten(wanted)
    different = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if different:
        changes = "; ".join(f"{key} was {before.get(key)!r}, now {now.get(key)!r}" for key in different[:5])
        more = f"; and {len(different) - 5} more" if len(different) > 5 else ""
        raise UsageError(f"Study {name!r} was begun differently ({changes}{more}): give it another --name.")


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
