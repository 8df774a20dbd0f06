"""One driver per study, and whoever lost that place knows it."""

import contextlib
import json
import multiprocessing
import time
from pathlib import Path

import pytest

from wsol_pipeline.errors import ResourceError, UsageError
from wsol_pipeline.storage import Store
from wsol_pipeline.study import lease


@pytest.fixture
def store(tmp_path):
    return Store.at(tmp_path / "lease")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Beats come often, but a driver that the machine keeps waiting for a while has lost nothing."""
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(lease, "DEAD_AFTER_SECONDS", 60)


@contextlib.contextmanager
def little_patience():
    """Within, who has not beaten for 0.4 s has lost."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lease, "DEAD_AFTER_SECONDS", 0.4)
        yield


def holder(store: Store, attempt: int, **changes: object) -> None:
    """A lease as another process left it."""
    store.create(f"{attempt:06d}.json", json.dumps(lease.identity() | {"host": "elsewhere"} | changes).encode())


def never_waits(*_):
    pytest.fail("no need to wait for beats")


def beating(store, monkeypatch):
    """The holder of every lease goes on beating."""
    beats, real_read = iter(range(1000)), Store.read
    monkeypatch.setattr(Store, "exists", lambda self, name="": not name.endswith("released"))
    monkeypatch.setattr(
        Store, "read", lambda self, name: str(next(beats)).encode() if name.endswith("beat") else real_read(self, name)
    )


def test_a_released_lease_is_taken_at_once_with_the_next_number(store):
    with lease.acquire(store) as first:
        assert first.attempt == 1
    with lease.acquire(store) as second:
        assert second.attempt == 2


def test_on_a_disk_that_folds_case_two_names_are_told_apart(tmp_path, monkeypatch):
    """`Cam` and `cam` are one folder there: the second study would go on in the first one's."""
    with lease.acquire(Store.at(tmp_path / "Cam/lease")):
        pass
    real = Path.exists
    monkeypatch.setattr(Path, "exists", lambda self: real(self) or real(self.with_name(self.name.capitalize())))
    with pytest.raises(UsageError, match=r"/cam is the folder 'Cam'.*does not tell names apart"):
        lease.acquire(Store.at(tmp_path / "cam/lease"))
    assert lease.acquire(Store.at(tmp_path / "Cam/lease")).attempt == 2


def test_on_a_disk_that_does_not_fold_case_both_names_are_folders(tmp_path):
    for name in ("Cam", "cam"):
        assert lease.acquire(Store.at(tmp_path / name / "lease")).attempt == 1


def test_a_living_driver_on_this_host_keeps_others_out(store):
    with lease.acquire(store), pytest.raises(ResourceError, match=r"Process \d+ on .* is driving this study"):
        lease.acquire(store)


def test_a_dead_driver_of_this_machine_is_replaced_at_once(store, monkeypatch):
    monkeypatch.setattr(lease, "_beats", never_waits)
    process = multiprocessing.get_context("spawn").Process(target=int)
    process.start()
    process.join()
    holder(store, 1, pid=process.pid)
    assert lease.acquire(store).attempt == 2


def test_a_reused_process_id_is_not_the_holder(store, monkeypatch):
    monkeypatch.setattr(lease, "_beats", never_waits)
    holder(store, 1, started=1)
    assert lease.acquire(store).attempt == 2


def test_a_clock_that_was_set_changes_nothing(store, monkeypatch):
    """A process's start in seconds since 1970 moves with it; in ticks since the boot it does not."""
    with lease.acquire(store):
        monkeypatch.setattr(time, "time", lambda: 4e9)
        monkeypatch.setattr(lease, "_beats", never_waits)
        with pytest.raises(ResourceError, match="is driving this study"):
            lease.acquire(store)


@pytest.mark.parametrize("foreign", [{"namespace": "pid:[1]"}, {"boot": "another"}, {"boot": None}])
@pytest.mark.parametrize("pid", [1, 2**22 - 1])
def test_of_a_process_that_cannot_be_seen_from_here_the_beats_decide(store, monkeypatch, foreign, pid):
    holder(store, 1, pid=pid, **foreign)
    silent = Store.at(store.uri + "-silent")
    holder(silent, 1, pid=pid, **foreign)
    with little_patience():
        assert lease.acquire(silent).attempt == 2
    beating(store, monkeypatch)
    with pytest.raises(ResourceError, match=f"Process {pid} on elsewhere is driving"):
        lease.acquire(store)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"pid": "x"}'])
def test_of_a_damaged_lease_the_beats_decide(store, monkeypatch, text):
    store.write("000001.json", text)
    monkeypatch.setattr(lease, "_beats", lambda *_: True)
    with pytest.raises(ResourceError, match="is driving this study"):
        lease.acquire(store)
    monkeypatch.setattr(lease, "_beats", lambda *_: False)
    assert lease.acquire(store).attempt == 2


@pytest.mark.parametrize("name", ["._000001.json", "000001 (conflicted copy).json", "000002 copy.json", "x"])
def test_names_that_no_driver_gives_are_passed_over_and_named(store, name, caplog):
    store.write(name, b"x")
    assert lease.acquire(store).attempt == 1
    assert name in caplog.text


def test_the_one_who_is_second_to_create_the_attempt_leaves(store, monkeypatch):
    holder(store, 1)
    monkeypatch.setattr(lease, "latest_attempt", lambda store: 0)  # looked before the other one created it
    with pytest.raises(ResourceError, match="has just started driving this study"):
        lease.acquire(store)


def until(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_holder_notices_that_it_was_replaced(store):
    with lease.acquire(store) as held:
        held.check()
        holder(store, 2)
        until(lambda: held.lost)
        with pytest.raises(ResourceError, match="lost its lease.*another driver took over"):
            held.check()
    assert not store.exists("000001.released")


@pytest.mark.parametrize("error", [OSError("no space left"), MemoryError()])
def test_a_holder_that_cannot_beat_looks_all_the_same(store, monkeypatch, error):
    with lease.acquire(store) as held:
        until(lambda: store.exists("000001.beat"))
        holder(store, 2)
        with monkeypatch.context() as patch:
            patch.setattr(Store, "write", raising(error))
            until(lambda: held.lost)


@pytest.mark.parametrize("error", [OSError("no space left"), MemoryError()])
def test_a_holder_that_cannot_beat_for_as_long_as_others_wait_has_lost(store, monkeypatch, error):
    with lease.acquire(store) as held:
        until(lambda: store.exists("000001.beat"))
        monkeypatch.setattr(lease, "DEAD_AFTER_SECONDS", 0.4)
        with monkeypatch.context() as patch:
            patch.setattr(Store, "write", raising(error))
            until(lambda: held.lost)
        with pytest.raises(ResourceError, match="could not beat for .*The same command continues"):
            held.check()
    assert not store.exists("000001.released")


def test_a_fault_that_passes_costs_no_lease(store, monkeypatch):
    with lease.acquire(store) as held:
        until(lambda: store.exists("000001.beat"))
        with monkeypatch.context() as patch:
            failed = []
            patch.setattr(Store, "write", lambda *_: failed.append(1) or raising(MemoryError())())
            until(lambda: len(failed) > 1)
        before = store.read("000001.beat")
        until(lambda: store.read("000001.beat") != before)
        held.check()


def test_who_was_frozen_knows_before_it_has_asked_anybody(store, monkeypatch):
    """Its threads stood still too: no beat was missed by them, but the clock went on."""
    held = lease.Lease(store, 1, _beaten=lease._now())
    held.check()
    clock = lease._now
    monkeypatch.setattr(lease, "_now", lambda: clock() + 3600)
    monkeypatch.setattr(Store, "exists", lambda *_: pytest.fail("asked"))
    with pytest.raises(ResourceError, match="could not beat for 3600 s"):
        held.check()


def test_a_confirmation_asks_the_storage(store, monkeypatch):
    monkeypatch.setattr(lease, "BEAT_SECONDS", 60)
    with lease.acquire(store) as held:
        until(lambda: store.exists("000001.beat"))
        held.confirm()
        holder(store, 2)
        held.check()  # its own thread looks in a minute
        with pytest.raises(ResourceError, match="another driver took over"):
            held.confirm()


def raising(error):
    def fail(*args):
        raise error

    return fail


def test_a_lease_says_whether_the_driver_before_is_known_to_have_ended(store, monkeypatch):
    monkeypatch.setattr(lease, "DEAD_AFTER_SECONDS", 0.1)
    with lease.acquire(store) as first:
        assert first.sure
    assert lease.acquire(store).sure  # the first has said so
    store.write("000003.json", b'{"host": "afar", "pid": 7}')  # a copy of one that may live
    assert not lease.acquire(store).sure


def test_storage_that_is_away_at_the_end_does_not_hide_what_ended_the_work(store, monkeypatch, caplog):
    def away(self, name, data, check=None):
        raise OSError("storage is away")

    def work_that_ends_badly():
        with lease.acquire(store):
            monkeypatch.setattr(Store, "write", away)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work_that_ends_badly()
    assert "was not released (storage is away)" in caplog.text
