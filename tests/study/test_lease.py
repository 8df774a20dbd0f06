"""One driver per study."""

import json
import multiprocessing
import socket

import pytest

from wsol_pipeline.errors import ResourceError
from wsol_pipeline.storage import Store
from wsol_pipeline.study import lease


@pytest.fixture
def store(tmp_path):
    return Store.at(tmp_path / "lease")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(lease, "DEAD_AFTER_SECONDS", 0.4)


def holder(store: Store, attempt: int, **changes: object) -> None:
    """A lease as another process left it."""
    import psutil

    me = psutil.Process()
    facts = {"host": socket.gethostname(), "pid": me.pid, "started": me.create_time()} | changes
    store.create(f"{attempt:06d}.json", json.dumps(facts).encode())


def test_a_released_lease_is_taken_at_once_with_the_next_number(store):
    with lease.acquire(store) as first:
        assert first.attempt == 1
    with lease.acquire(store) as second:
        assert second.attempt == 2


def test_a_living_driver_on_this_host_keeps_others_out(store):
    with lease.acquire(store), pytest.raises(ResourceError, match=r"Process \d+ on .* is driving this study"):
        lease.acquire(store)


def test_a_dead_driver_on_this_host_is_replaced_at_once(store, monkeypatch):
    monkeypatch.setattr(lease, "_beats", lambda *_: pytest.fail("no need to wait for beats"))
    process = multiprocessing.get_context("spawn").Process(target=int)
    process.start()
    process.join()
    holder(store, 1, pid=process.pid)
    assert lease.acquire(store).attempt == 2


def test_a_reused_process_id_is_not_the_holder(store):
    holder(store, 1, started=1.0)
    assert lease.acquire(store).attempt == 2


def test_a_driver_on_another_host_is_believed_while_it_beats(store, monkeypatch):
    holder(store, 1, host="elsewhere")
    beats = iter(range(1000))
    real_read = Store.read
    monkeypatch.setattr(Store, "exists", lambda self, name="": not name.endswith("released"))
    monkeypatch.setattr(
        Store, "read", lambda self, name: str(next(beats)).encode() if name.endswith("beat") else real_read(self, name)
    )
    with pytest.raises(ResourceError, match="on elsewhere is driving"):
        lease.acquire(store)


def test_a_silent_driver_on_another_host_is_replaced(store):
    holder(store, 1, host="elsewhere")
    store.write("000001.beat", b"7")
    assert lease.acquire(store).attempt == 2


def test_the_one_who_is_second_to_create_the_attempt_leaves(store, monkeypatch):
    holder(store, 1)
    monkeypatch.setattr(lease, "latest_attempt", lambda store: 0)  # looked before the other one created it
    with pytest.raises(ResourceError, match="has just started to drive this study"):
        lease.acquire(store)


def test_a_holder_notices_that_it_was_replaced(store):
    with lease.acquire(store) as held:
        held.check()
        holder(store, 2)
        assert held.lost.wait(60)
        with pytest.raises(ResourceError, match="lost its lease"):
            held.check()


def test_storage_that_is_away_at_the_end_does_not_hide_what_ended_the_work(store, monkeypatch, caplog):
    def away(self, name, data):
        raise OSError("storage is away")

    def work_that_ends_badly():
        with lease.acquire(store):
            monkeypatch.setattr(Store, "write", away)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work_that_ends_badly()
    assert "was not released (storage is away)" in caplog.text
