"""The searcher over a real ledger and real checkpoints, its driver dying at every step. Workers are faked: no Ray."""

import dataclasses
import errno
import itertools
import json
import os
import sqlite3
from contextlib import nullcontext
from types import SimpleNamespace

import optuna
import pytest
import ray.tune
import torch
from ray.tune.error import TuneError

from wsol_pipeline.errors import DataError, MismatchError, ResourceError, UsageError, WsolError
from wsol_pipeline.storage import Store
from wsol_pipeline.study import tuner
from wsol_pipeline.study.budget import Budget
from wsol_pipeline.study.database import database_needed
from wsol_pipeline.study.identity import Home
from wsol_pipeline.study.lease import Lease
from wsol_pipeline.study.ledger import open_ledger
from wsol_pipeline.study.pareto import Rule
from wsol_pipeline.study.samplers import pruner, sampler
from wsol_pipeline.study.tuner import LedgerScheduler, LedgerSearcher, run_trials, trial_folder
from wsol_pipeline.training.checkpoint import CheckpointStore, Position
from wsol_pipeline.training.config import Job, TrainConfig, as_kept, from_dict

EPOCHS, RUNG = 3, 2
RULE = Rule(("gt_known_loc", "cls_top1", "device_hours"), 1.0)


class Death(BaseException):
    """The driver is gone."""


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch):
    """A killed process loses nothing of what it wrote; only a machine that falls does."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.setattr(tuner.signals, "hush", lambda checkpoints: None)  # there is no cluster to tell


@pytest.fixture
def study(tmp_path):
    """What outlives a driver: the study's folder and its database."""
    return new_study(tmp_path)


def new_study(place):
    return SimpleNamespace(folder=Store.at(place), database=optuna.storages.InMemoryStorage())


class Driver:
    """One life of a driver: a searcher over what its forerunners left, and Ray's part of the conversation."""

    def __init__(self, study, attempt=1, trials=3, die_at=None, pruning="none", budget=None, confirm=(0, 2), rule=None):
        self.folder = study.folder
        self.ledger = open_ledger(
            study.database,
            "s",
            space=lambda trial: {"alpha": trial.suggest_float("alpha", 0.0, 1.0)},
            contract={},
            published={"paper/row": {"alpha": 0.5}},
            sampler=sampler("tpe", seed=0, startup_trials=2),
            pruner=pruner(pruning, RUNG, EPOCHS),
            home=Home("1" * 32, self.folder.uri),
            lease=Lease(self.folder / "lease", attempt),
            rule=rule,
        )
        self.lease = self.ledger.lease
        self.events = []
        self.ids, self.passed, self.die_at = (f"ray-{attempt}-{n}" for n in itertools.count()), 0, die_at
        self.searcher = LedgerSearcher(
            self.ledger, self.lease, self._job, trials, self.folder, self._hear, self._point, budget, confirm
        )

    def _job(self, parameters, seed, folder):
        train = TrainConfig(options=parameters, seed=seed)
        return Job(train, "data", folder.uri, self.lease.attempt, "1" * 32, "fingerprint")

    def _hear(self, event, number, details):
        self.events.append((event, number))

    def _point(self, name):
        self.passed += 1
        if self.passed == self.die_at:
            raise Death(name)

    def start(self):
        """Ask for a trial as Ray does: (Ray's id, job), or None when the study is finished."""
        trial_id = next(self.ids)
        suggested = self.searcher.suggest(trial_id)
        if suggested == self.searcher.FINISHED:
            return None
        job = from_dict(Job, suggested)
        self.searcher.on_trial_start(trial_id)
        return trial_id, job

    def train(self, trial_id, job):
        """What a worker and Ray do with a job, up to its end."""
        for record in work(job):
            if self.record(trial_id, record):
                break
        self.searcher.on_trial_complete(trial_id)

    def record(self, trial_id, record):
        return self.searcher.record(trial_id, record)

    def run(self):
        """Everything that is left to do, one trial after the other."""
        while started := self.start():
            self.train(*started)

    def states(self):
        return [trial.state.name for trial in self.ledger.trials()]

    def checkpoints(self, number, attempt=None):
        return CheckpointStore(trial_folder(self.folder, number), attempt or self.lease.attempt)


def work(job):
    """A worker: epochs from the newest checkpoint on, each sealed before it is reported. Value: 100 alpha - seed."""
    store = CheckpointStore(Store.at(job.trial), job.attempt)
    saved = store.newest()
    records = saved.records if saved else []
    for epoch in range(len(records) + 1, EPOCHS + 1):
        final = epoch == EPOCHS
        record = {
            "epoch": epoch,
            "value": 100 * job.train.options["alpha"] - job.train.seed,
            "searched": final or epoch == RUNG,
            "choice": None,
            "final": final,
            "attempt": job.attempt,
            "device_seconds": 1200.0,
            "val": {"cls_top1": 80 - 60 * job.train.options["alpha"]},
        }
        records = [*records, record]
        if final:
            store.finish(model(job), records)
        else:
            store.save(Position(epoch), {"weight": torch.zeros(1)}, records)
        yield record


def model(job, **changes):
    """The files of a finished model of `job`."""
    told = {"study": job.study, "dataset": job.fingerprint, "train": as_kept(job.train)} | changes
    return {"model.safetensors": b"weights", "model.json": json.dumps(told).encode()}


def write_rung(checkpoints, value):
    """The checkpoint of the rung's epoch, as a worker leaves it."""
    record = {"epoch": RUNG, "value": value, "searched": True, "final": False}
    checkpoints.save(Position(RUNG), {"weight": torch.zeros(1)}, [record])


def ledger_of(driver):
    return [
        (t.number, t.state.name, t.params, t.values, t.intermediate_values, t.user_attrs.get("confirms"))
        for t in driver.ledger.trials()
    ]


@pytest.mark.parametrize(
    ("pruning", "confirm", "rule"),
    [("none", 0, None), ("successive-halving", 0, None), ("successive-halving", 2, None), ("none", 2, RULE)],
)
def test_a_driver_that_dies_at_any_step_changes_nothing_about_the_study(tmp_path, pruning, confirm, rule):
    options = {"trials": 5, "pruning": pruning, "confirm": (confirm, 1), "rule": rule}
    undisturbed = Driver(new_study(tmp_path / "undisturbed"), **options)
    undisturbed.run()
    assert ("PRUNED" in undisturbed.states()) == (pruning != "none")
    assert len(undisturbed.states()) == 5 + confirm
    for step in range(1, undisturbed.passed + 1):
        study = new_study(tmp_path / f"dies-at-{step}")
        with pytest.raises(Death):
            Driver(study, die_at=step, **options).run()
        heir = Driver(study, attempt=2, **options)
        heir.run()
        assert ledger_of(heir) == ledger_of(undisturbed)
        assert heir.ledger.ranking() == undisturbed.ledger.ranking()


def test_a_trial_of_several_objectives_is_told_with_all_of_them(study):
    """alpha 0.5: 50, 80 - 30, and three epochs of 20 minutes, whatever died in between."""
    with pytest.raises(Death):
        Driver(study, trials=1, rule=RULE, die_at=4).run()
    heir = Driver(study, attempt=2, trials=1, rule=RULE)
    heir.run()
    assert heir.ledger.get(0).values == [50.0, 50.0, 1.0]
    assert [direction.name for direction in heir.ledger.study.directions] == ["MAXIMIZE", "MAXIMIZE", "MINIMIZE"]


def test_an_objective_that_is_not_defined_fails_its_trial_only(study):
    driver = Driver(study, trials=1, rule=RULE)
    trial_id, job = driver.start()
    record = {"epoch": 1, "searched": True, "final": True, "value": 50.0, "choice": None, "device_seconds": 1.0}
    record["val"] = {"cls_top1": float("nan")}
    CheckpointStore(Store.at(job.trial), 1).finish(model(job), [record])
    driver.searcher.on_trial_complete(trial_id)
    assert driver.states() == ["FAIL"]
    assert driver.ledger.get(0).user_attrs["failure"]["message"] == "cls_top1 is not defined for these maps"


def test_drivers_that_die_after_every_epoch_get_there_all_the_same(study, tmp_path):
    undisturbed = Driver(new_study(tmp_path / "undisturbed"))
    undisturbed.run()
    for life in range(1, 20):
        driver = Driver(study, attempt=life, die_at=3)  # suggested, launched, and one record in
        try:
            driver.run()
        except Death:
            continue
        break
    assert life > EPOCHS
    assert ledger_of(driver) == ledger_of(undisturbed)


def test_a_worker_that_died_is_told_of_and_a_full_disk_ends_the_study(study, monkeypatch):
    driver = Driver(study)
    trial_id, _ = driver.start()
    driver.searcher.on_trial_recover(trial_id)
    assert driver.events[-1] == ("died", 0)

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Store, "write", full)
    with pytest.raises(ResourceError, match="No space left on device"):
        driver.searcher.on_trial_recover(trial_id)


def test_an_adopted_trial_goes_on_from_its_checkpoint(study):
    with pytest.raises(Death):
        Driver(study, die_at=4).run()  # suggested, launched, and two epochs in
    heir = Driver(study, attempt=2)
    assert heir.searcher.orphans == [0]
    heir.run()
    assert [record["attempt"] for record in heir.checkpoints(0).records()] == [1, 1, 2]
    assert heir.events.count(("started", 0)) == 1


def test_a_finished_model_is_told_complete_without_a_run(study):
    with pytest.raises(Death):
        Driver(study, trials=1, die_at=6).run()  # the final record is written and not told
    heir = Driver(study, attempt=2, trials=1)
    assert heir.states() == ["COMPLETE"]
    assert heir.ledger.get(0).value == 50.0
    assert heir.start() is None


def test_a_database_of_before_the_rungs_learns_them_from_the_finished_model(study):
    """Later trials are compared with them; the one that is finished is not pruned any more."""
    run = {"trials": 3, "pruning": "successive-halving"}
    whole = Driver(study, **run)
    whole.run()
    assert whole.states() == ["COMPLETE", "PRUNED", "COMPLETE"]
    study.database = optuna.storages.InMemoryStorage()  # as it was when the first trial had begun
    with pytest.raises(Death):
        Driver(study, attempt=2, die_at=1, **run).run()
    assert Driver(study, attempt=3, trials=1).ledger.get(0).intermediate_values == {RUNG: 50.0}


def test_a_failure_that_a_dead_driver_did_not_tell_is_told(study):
    dead = Driver(study, trials=1)
    dead.start()
    dead.checkpoints(0).fail("nan", "the gradient is nan")
    heir = Driver(study, attempt=2, trials=1)
    assert heir.states() == ["FAIL"]
    assert heir.ledger.get(0).user_attrs["failure"] == {"kind": "nan", "message": "the gradient is nan"}
    assert heir.start() is None


def test_a_pruner_whose_word_a_dead_driver_did_not_hear_is_asked(study):
    """The worker wrote its rung; the driver died before the record reached it."""
    Driver(study, trials=1, pruning="successive-halving").run()  # alpha 0.5: the rung's best value is 50
    dead = Driver(study, attempt=2, trials=2, pruning="successive-halving")
    dead.start()
    write_rung(dead.checkpoints(1), value=-1.0)
    heir = Driver(study, attempt=3, trials=2, pruning="successive-halving")
    assert heir.states() == ["COMPLETE", "PRUNED"]
    assert heir.events == [("pruned", 1)]
    assert heir.start() is None


def test_nothing_starts_once_the_device_hours_are_spent_and_a_larger_limit_goes_on(study):
    driver = Driver(study, budget=Budget(max_device_hours=1.5))  # a trial costs three times 20 minutes
    driver.run()
    assert driver.states() == ["COMPLETE"] * 2
    assert driver.searcher.stopped == "2 device hours are spent, of --max-device-hours 1.5"
    again = Driver(study, attempt=2, budget=Budget(max_device_hours=2))
    again.run()
    assert again.states() == ["COMPLETE"] * 2
    larger = Driver(study, attempt=3, budget=Budget(max_device_hours=9))
    larger.run()
    assert larger.states() == ["COMPLETE"] * 3
    assert larger.searcher.stopped == ""
    assert larger.ledger.device_seconds() == 3 * EPOCHS * 1200


def test_a_trial_of_a_dead_driver_goes_on_though_the_time_is_up(study):
    Driver(study).start()
    again = Driver(study, attempt=2, budget=Budget(time_budget=1e-9))
    again.run()
    assert again.states() == ["COMPLETE"]
    assert "of --time-budget 1e-09" in again.searcher.stopped


def test_the_best_are_trained_again_with_further_seeds_once_all_have_ended(study):
    driver = Driver(study, trials=2, confirm=(1, 2))
    first, second = driver.start(), driver.start()
    assert driver.searcher.suggest("third") is None  # nobody knows yet who is best
    driver.train(*second)
    assert driver.searcher.suggest("third") is None
    driver.train(*first)
    driver.run()
    assert [t.user_attrs.get("confirms") for t in driver.ledger.trials()] == [None, None, 0, 0]
    assert driver.ledger.ranking()[0].values == (50.0, 49.0, 48.0)  # 100 x 0.5 - seed
    again = Driver(study, attempt=2, trials=3, confirm=(1, 2))
    again.run()
    assert again.ledger.get(4).value > 50.0
    assert [t.user_attrs.get("confirms") for t in again.ledger.trials()] == [None, None, 0, 0, None, 4, 4]


def test_confirmations_start_within_the_limits_too(study):
    driver = Driver(study, trials=1, confirm=(1, 2), budget=Budget(max_device_hours=1.5))  # a trial costs an hour
    driver.run()
    assert driver.states() == ["COMPLETE"] * 2
    assert "2 device hours are spent" in driver.searcher.stopped


@pytest.mark.parametrize("limits", [{"max_device_hours": 0}, {"time_budget": -1.0}])
def test_limits_must_leave_something(limits):
    with pytest.raises(UsageError, match="must be positive hours"):
        Budget(**limits)


def test_the_worker_that_failed_by_itself_fails_its_trial_only(study):
    driver = Driver(study, trials=2)
    trial_id, _ = driver.start()
    driver.checkpoints(0).fail("out_of_memory", "20 GiB are too many")
    driver.searcher.on_trial_complete(trial_id)
    driver.run()
    assert driver.states() == ["FAIL", "COMPLETE"]
    assert driver.ledger.balance() == {"started": 2, "complete": 1, "pruned": 0, "fail": 1, "running": 0}


def test_a_worker_that_kept_dying_fails_its_trial_as_infrastructure(study):
    driver = Driver(study, trials=1)
    trial_id, job = driver.start()
    next(work(job))
    driver.searcher.on_trial_complete(trial_id, error=True)
    assert driver.states() == ["FAIL"]
    assert driver.ledger.get(0).user_attrs["failure"]["kind"] == "infrastructure"


def test_what_a_share_shows_late_is_waited_for(study, monkeypatch):
    """A trial whose worker ended well does not FAIL because another machine sees its files a moment later."""
    driver = Driver(study, trials=1)
    trial_id, job = driver.start()
    list(work(job))
    shown = iter([[], [], []])
    right = CheckpointStore._finals
    monkeypatch.setattr(tuner.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(CheckpointStore, "_finals", lambda self: right(self) if next(shown, None) is None else [])
    driver.searcher.on_trial_complete(trial_id)
    assert driver.states() == ["COMPLETE"]


def test_what_never_shows_is_the_storages_fault(study, monkeypatch):
    driver = Driver(study, trials=1)
    monkeypatch.setattr(tuner, "SHOWS_WITHIN", 0.0)
    for turn in range(3):
        trial_id, _ = driver.start()
        with pytest.raises(ResourceError, match="3 times .*does not show") if turn == 2 else nullcontext():
            driver.searcher.on_trial_complete(trial_id)
    assert driver.states() == ["RUNNING"]


def test_pruned_is_told_before_ray_stops_the_trial(study):
    driver = Driver(study, trials=2, pruning="successive-halving")
    driver.train(*driver.start())
    trial_id, _ = driver.start()
    record = {"epoch": RUNG, "value": -1.0, "searched": True, "final": False, "device_seconds": 1.0}
    decision = LedgerScheduler(driver.searcher).on_trial_result(None, SimpleNamespace(trial_id=trial_id), record)
    assert decision == LedgerScheduler.STOP
    assert driver.states() == ["COMPLETE", "PRUNED"]
    driver.searcher.on_trial_complete(trial_id)  # as Ray says next
    assert driver.states() == ["COMPLETE", "PRUNED"]


@pytest.mark.parametrize("step", ["suggest", "record", "complete"])
def test_a_driver_that_lost_its_lease_writes_nothing(study, step):
    driver = Driver(study)
    trial_id, job = driver.start()
    worker = work(job)
    record = next(worker)
    before = ledger_of(driver)
    driver.lease._replaced.set()
    if step == "complete":
        list(worker)
    actions = {
        "suggest": lambda: driver.searcher.suggest("another"),
        "record": lambda: driver.searcher.record(trial_id, {**record, "epoch": RUNG, "searched": True}),
        "complete": lambda: driver.searcher.on_trial_complete(trial_id),
    }
    with pytest.raises(ResourceError, match="lost its lease"):
        actions[step]()
    assert ledger_of(driver) == before


def test_results_that_are_no_records_are_let_pass(study):
    driver = Driver(study)
    scheduler = LedgerScheduler(driver.searcher)
    assert scheduler.on_trial_result(None, SimpleNamespace(trial_id="x"), {"done": True}) == scheduler.CONTINUE


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (ResourceError("lost the lease"), "lost the lease"),
        (ConnectionError("no route"), "cannot be reached: ConnectionError: no route The same command continues."),
    ],
)
def test_what_the_searcher_raises_comes_through_ray_as_it_is(study, monkeypatch, raised, expected):
    def fit(self):
        wrapped = TuneError("a traceback")
        wrapped.__context__ = raised  # Ray raises it where it caught the other, without `from`
        raise wrapped

    monkeypatch.setattr(ray.tune.Tuner, "fit", fit)
    with pytest.raises(ResourceError, match=expected):
        run_trials(Driver(study).searcher, lambda config: None, 1, {"CPU": 1}, study.folder)


def test_a_reader_of_the_terminal_that_has_ended_is_no_fault_of_the_storage(study, monkeypatch):
    def fit(self):
        wrapped = TuneError("a traceback")
        wrapped.__context__ = BrokenPipeError(32, "Broken pipe")  # of a listener that prints
        raise wrapped

    monkeypatch.setattr(ray.tune.Tuner, "fit", fit)
    with pytest.raises(BrokenPipeError):
        run_trials(Driver(study).searcher, lambda config: None, 1, {"CPU": 1}, study.folder)


def test_a_study_ends_when_rays_own_process_has(study, monkeypatch):
    node = SimpleNamespace(dead_processes=lambda: [("raylet", None)])
    monkeypatch.setattr(ray._private.worker, "_global_node", node)
    with pytest.raises(ResourceError, match=r"Ray's raylet on this machine has ended\..*The same command continues"):
        Driver(study).searcher.step()


def test_what_the_database_said_comes_through_ray_and_optuna(study, monkeypatch):
    def fit(self):
        try:
            raise optuna.exceptions.StorageInternalError("maybe this") from sqlite3.OperationalError("locked")
        except optuna.exceptions.StorageInternalError:
            raise TuneError("a traceback")  # noqa: B904  # as Ray does

    monkeypatch.setattr(ray.tune.Tuner, "fit", fit)
    with pytest.raises(ResourceError, match="does not answer: locked. The same"), database_needed():
        run_trials(Driver(study).searcher, lambda config: None, 1, {"CPU": 1}, study.folder)


def test_memory_that_others_have_filled_is_no_traceback(study, monkeypatch):
    def fit(self):  # as Ray's actor manager does it where its monitor has killed a trial's process
        killed = ray.exceptions.OutOfMemoryError(
            "1 worker(s) were killed due to the node running low.\nMemory usage: ..."
        )
        raise RuntimeError(f"Caught unexpected exception: {killed}") from killed

    monkeypatch.setattr(ray.tune.Tuner, "fit", fit)
    with pytest.raises(ResourceError, match=r"memory was full: 1 worker\(s\) were killed.*The same") as told:
        run_trials(Driver(study).searcher, lambda config: None, 1, {"CPU": 1}, study.folder)
    assert "\n" not in str(told.value)


def test_rays_own_way_to_continue_is_refused(study):
    with pytest.raises(WsolError, match="same command"):
        Driver(study).searcher.restore("somewhere")


def finish_with(driver, **changes):
    trial_id, job = driver.start()
    record = {"value": 50.0, "val": {}, "device_seconds": 1.0}
    CheckpointStore(Store.at(job.trial), job.attempt).finish(model(job, **changes), [record])
    return trial_id


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"study": "2" * 32}, "study was '2+', now '1+'"),
        ({"dataset": "other"}, "data was 'other', now 'fingerprint'"),
        ({"train": as_kept(TrainConfig(options={"alpha": 0.9}))}, "train.options.alpha was 0.9, now 0.5"),
    ],
)
def test_a_model_of_another_study_data_or_setting_stops_the_study_with_both(study, changes, told):
    driver = Driver(study)
    trial_id = finish_with(driver, **changes)
    with pytest.raises(MismatchError, match=told):
        driver.searcher.on_trial_complete(trial_id)
    assert driver.states() == ["RUNNING"]
    with pytest.raises(MismatchError, match=told):  # adopted by the next driver
        Driver(study, attempt=2)


def fault(driver, kind, message):
    """A trial starts, and cannot go on for what is around it."""
    trial_id, job = driver.start()
    CheckpointStore(Store.at(job.trial), job.attempt).note_fault(kind, message)
    driver.searcher.on_trial_complete(trial_id)


@pytest.mark.parametrize(("kind", "error"), [("data", DataError), ("storage", ResourceError)])
def test_a_fault_around_the_trials_ends_the_study_early_and_costs_no_trial(study, kind, error):
    driver = Driver(study, trials=30)
    driver.train(*driver.start())
    fault(driver, kind, "shard 7 is missing")
    fault(driver, kind, "shard 3 is missing")
    with pytest.raises(error, match="3 times in a row .*shard 5 is missing.* Look at .*The same command continues"):
        fault(driver, kind, "shard 5 is missing")
    assert driver.states() == ["COMPLETE", "RUNNING"]
    again = Driver(study, attempt=2, trials=3)  # all is mended
    again.run()
    assert again.states() == ["COMPLETE"] * 3


def test_a_fault_that_passes_is_a_death_like_others(study):
    driver = Driver(study, trials=2)
    for _ in range(4):
        fault(driver, "data", "a shard is missing")
        trial_id, job = driver.start()
        driver.record(trial_id, next(work(job)))  # it got further
        CheckpointStore(Store.at(job.trial), job.attempt).note_fault("data", "a shard is missing")
        driver.searcher.on_trial_complete(trial_id)
        if len(driver.checkpoints(0).records()) == 2:
            break
    driver.run()
    assert driver.states() == ["COMPLETE"] * 2


def test_a_trial_that_comes_back_is_started_though_nothing_else_was_left(study):
    driver = Driver(study, trials=1)
    trial_id, job = driver.start()
    assert driver.searcher.suggest("another") is None  # not finished: this one may come back
    CheckpointStore(Store.at(job.trial), job.attempt).note_fault("storage", "away")
    driver.searcher.on_trial_complete(trial_id)
    driver.run()
    assert driver.states() == ["COMPLETE"]


@pytest.mark.parametrize("confirm", [(0, 2), (1, 1)])
def test_a_trial_that_found_its_share_of_a_gpu_too_small_has_one_of_its_own(study, confirm):
    """However many do: it is the share that was too small, and no fault of the environment. Before, they would wait
    while others keep the GPU in parts, so these come first, but for those that confirm the best of all."""
    driver, shares = Driver(study, trials=7, confirm=confirm), []
    driver.searcher.make_job = shared(driver.searcher.make_job)
    while started := driver.start():
        trial_id, job = started
        shares.append((int(job.trial[-4:]), job.gpus))
        if job.gpus < 1 and len(shares) <= 5:
            CheckpointStore(Store.at(job.trial), job.attempt).note_fault("crowded", "CUDA out of memory")
            driver.searcher.on_trial_complete(trial_id)
        else:
            driver.train(trial_id, job)
    assert shares[:12] == [(n, 0.25) for n in range(7)] + [(n, 1.0) for n in range(5)]
    assert shares[12:] == [(7, 0.25)] * confirm[0]
    assert driver.states() == ["COMPLETE"] * (7 + confirm[0])


def test_a_trial_on_a_gpu_of_its_own_whose_storage_was_away_waits_for_one_again(study):
    driver = Driver(study, trials=2)
    driver.searcher.make_job = shared(driver.searcher.make_job)
    for kind, share in (("crowded", 0.25), ("crowded", 0.25), ("storage", 1.0)):
        trial_id, job = driver.start()
        assert job.gpus == share
        CheckpointStore(Store.at(job.trial), job.attempt).note_fault(kind, "full")
        driver.searcher.on_trial_complete(trial_id)
    assert [driver.start()[1].gpus for _ in range(2)] == [1.0, 1.0]


def shared(make_job):
    return lambda *arguments: dataclasses.replace(make_job(*arguments), gpus=0.25)


def test_data_that_was_replaced_stops_the_study_at_once(study):
    with pytest.raises(MismatchError, match="^holds other data The same command continues"):
        fault(Driver(study), "mismatch", "holds other data")


@pytest.mark.parametrize(
    ("kind", "limit"), [("configuration", 3), ("infrastructure", 3), ("out_of_memory", 5), ("nan", 10)]
)
def test_failures_that_are_alike_end_the_study_early(study, kind, limit):
    driver = Driver(study, trials=30)
    while started := driver.start():
        number = len(driver.states()) - 1
        driver.checkpoints(number).fail(kind, f"{number}.5 GiB after 1e-{number} s")
        driver.searcher.on_trial_complete(started[0])
    assert driver.states() == ["FAIL"] * limit
    assert f"{limit} times in a row a trial failed alike ({kind}: " in driver.searcher.stopped
    assert "Look at " in driver.searcher.stopped


def test_failures_that_differ_or_are_not_in_a_row_are_let_be(study):
    driver = Driver(study, trials=12)
    while started := driver.start():
        number = len(driver.states()) - 1
        if number % 3 == 2:
            driver.train(*started)
            continue
        driver.checkpoints(number).fail("configuration", "a" if number % 2 else "b")
        driver.searcher.on_trial_complete(started[0])
    assert driver.searcher.stopped == ""
    assert len(driver.states()) == 12


def test_a_trial_enqueued_with_values_that_are_none_fails_alone(study):
    driver = Driver(study, trials=3)
    driver.ledger.study.enqueue_trial({"alpha": "x"})
    driver.run()
    assert driver.states() == ["COMPLETE", "FAIL", "COMPLETE"]
    assert ("failed", 1) in driver.events


def test_one_that_a_dead_driver_had_asked_for_fails_alone_too(study):
    dead = Driver(study, trials=3)
    dead.ledger.study.enqueue_trial({"alpha": "x"})
    dead.ledger.study.ask()
    dead.ledger.study.ask()
    heir = Driver(study, attempt=2, trials=3)
    assert heir.states() == ["RUNNING", "FAIL"]
    assert heir.searcher.orphans == [0]


@pytest.fixture
def beats(monkeypatch):
    """What trials have said, and which were ended; the clock is this test's own."""
    said = SimpleNamespace(of={}, ended=[], now=1000.0)
    monkeypatch.setattr(tuner.signals, "heartbeat", lambda checkpoints: said.of.get(checkpoints.trial.name))
    monkeypatch.setattr(tuner.signals, "end", lambda checkpoints: said.ended.append(checkpoints.trial.name))
    monkeypatch.setattr(tuner.signals, "position", lambda checkpoints: None)
    monkeypatch.setattr(tuner.time, "monotonic", lambda: said.now)
    monkeypatch.setattr(tuner, "check_alive", lambda: None)
    return said


def test_a_trial_that_has_said_nothing_for_longer_than_it_may_is_ended(study, beats):
    driver = Driver(study)
    driver.searcher.stuck_seconds = 60
    driver.start()
    driver.start()

    def pass_(seconds, **said):
        for _ in range(seconds // 2):
            beats.now += 2
            driver.searcher.step()
        beats.of |= said

    pass_(400)
    assert beats.ended == []  # they have not begun: there may be no machine yet
    beats.of |= {"0000": "1", "0001": "1"}
    for beat in range(2, 6):
        pass_(20, **{"0001": str(beat)})
    assert beats.ended == ["0000"]
    for beat in range(6, 10):
        pass_(20, **{"0001": str(beat)})
    assert beats.ended == ["0000", "0000"]  # whoever took its place stands still too
    pass_(4, **{"0000": "a", "0001": "11"})
    pass_(40)
    assert beats.ended == ["0000", "0000"]
