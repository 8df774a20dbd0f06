"""What a worker is told between batches: to stop, by its driver; to write a checkpoint, by a node that leaves."""

import pytest

from wsol_pipeline.storage import Store
from wsol_pipeline.training import ray_internals, signals
from wsol_pipeline.training.checkpoint import CheckpointStore, Position
from wsol_pipeline.training.loop import Order
from wsol_pipeline.training.signals import LEAVING_SECONDS, Signals


class Cluster:
    """In place of Ray's: its clock, its key-value store, and its nodes that are draining."""

    def __init__(self) -> None:
        self.now, self.store, self.leaving = 100.0, {}, set()

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def cluster(monkeypatch) -> Cluster:
    cluster = Cluster()
    monkeypatch.setattr(signals, "time", cluster)
    monkeypatch.setattr(ray_internals, "leaving_nodes", lambda: cluster.leaving)
    monkeypatch.setattr(ray_internals, "put", lambda key, value: cluster.store.update({key: value}))
    monkeypatch.setattr(ray_internals, "get", cluster.store.get)
    monkeypatch.setattr(ray_internals, "exists", cluster.store.__contains__)
    monkeypatch.setattr(ray_internals, "delete", lambda key: cluster.store.pop(key, None))
    return cluster


@pytest.fixture
def trial(tmp_path) -> CheckpointStore:
    return CheckpointStore(Store.at(tmp_path), 1)


def orders(cluster: Cluster, worker: Signals, seconds: int) -> list[Order]:
    """What the worker is told in each of so many seconds."""
    told = []
    for second in range(seconds):
        cluster.now += 1.0
        told.append(worker(Position(0, second)))
    return told


def test_the_driver_knows_where_a_trial_stands_and_can_stop_it(cluster, trial):
    worker = Signals(trial)
    assert worker(Position(2, 96)) is Order.GO_ON
    assert signals.position(trial) == Position(2, 96)
    signals.ask_to_stop(trial)
    assert worker(Position(2, 112)) is Order.GO_ON  # it has asked within this second
    assert orders(cluster, worker, 1) == [Order.STOP]
    signals.forget(trial)
    assert cluster.store == {}


def test_the_driver_hears_that_a_trial_goes_on_and_can_end_it(cluster, trial, monkeypatch):
    ended = []
    monkeypatch.setattr(ray_internals, "own_actor", lambda: "abc")
    monkeypatch.setattr(ray_internals, "kill_actor", ended.append)
    assert signals.heartbeat(trial) is None
    signals.end(trial)  # nobody has said a word
    worker = Signals(trial)
    worker.beat()
    first = signals.heartbeat(trial)
    worker.beat()
    assert signals.heartbeat(trial) == first  # within this second
    cluster.now += 1.0
    worker.beat()
    assert signals.heartbeat(trial) != first
    signals.end(trial)
    assert ended == ["abc"]
    signals.forget(trial)
    assert cluster.store == {}


def test_a_trial_writes_checkpoints_while_a_node_of_its_own_is_about_to_leave(cluster, trial):
    worker = Signals(trial, ["mine", "of the second rank"])
    cluster.leaving = {"another's"}
    assert set(orders(cluster, worker, 3)) == {Order.GO_ON}
    cluster.leaving = {"another's", "of the second rank"}
    told = orders(cluster, worker, 2 * int(LEAVING_SECONDS) + 1)
    assert [second for second, order in enumerate(told) if order is Order.SAVE] == [0, 10, 20]
    signals.ask_to_stop(trial)
    assert orders(cluster, worker, 1) == [Order.STOP]
