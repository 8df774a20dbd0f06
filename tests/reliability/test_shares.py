"""Storage that is a network's share: what others did shows late, and single system calls fail."""

import errno
import json
import threading
import time
from unittest import mock

import pytest

from tests.reliability import schedule
from tests.reliability.schedule import Fault
from tests.reliability.shares import failing, late_share
from wsol_pipeline import storage
from wsol_pipeline.errors import ResourceError
from wsol_pipeline.storage import Store
from wsol_pipeline.study import lease
from wsol_pipeline.study.identity import home


def elsewhere(store: Store, name: str, data: bytes, after: float = 0.0) -> None:
    """Another machine writes `name`, now or `after` some seconds."""
    path = store.path(name)

    def write() -> None:
        with open(path, "xb") as file:  # noqa: PTH123  # `Path` may be this machine's
            file.write(data)

    threading.Timer(after, write).start() if after else write()


def test_a_machine_sees_late_what_others_did_and_its_own_at_once(tmp_path):
    store = Store.at(tmp_path)
    with late_share(0.3):
        assert not store.exists("a")
        assert store.list() == []
        elsewhere(store, "a", b"1")
        assert not store.exists("a")
        assert store.list() == []
        store.write("b", b"2")
        assert store.read("b") == b"2"
        assert store.list() == ["a", "b"]
        time.sleep(0.4)
        assert store.read("a") == b"1"


def test_a_lease_that_another_machine_has_just_taken_is_refused_in_its_words(tmp_path):
    """Its attempt is not in the list yet, but cannot be created any more, and can be read a moment later."""
    store = Store.at(tmp_path)
    store.write("000001.released", b"")
    store.write("000001.json", b"{}")
    with late_share(1.0):
        assert not store.exists("000002.json")
        assert lease.latest_attempt(store) == 1
        elsewhere(store, "000002.json", json.dumps({"pid": 7, "host": "another"}).encode())
        with pytest.raises(ResourceError, match="Process 7 on another has just started driving this study"):
            lease.acquire(store)


def test_a_home_that_another_machine_has_just_made_is_waited_for(tmp_path):
    folder = Store.at(tmp_path)
    with late_share(1.0):
        assert not folder.exists("study.json")
        elsewhere(folder, "study.json", json.dumps({"id": "7" * 32, "places": [folder.uri]}).encode())
        assert home(folder).id == "7" * 32


def test_what_never_shows_is_waited_for_within_limits(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "SHOWS_WITHIN", 0.6)
    store = Store.at(tmp_path)
    with late_share(60):
        assert not store.exists("a")
        elsewhere(store, "a", b"1")
        assert not store.create("a", b"2")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    schedule.make_base(folder)
    return folder


def wrong(base, root, *lives: list[Fault], apart: bool = True) -> str:
    """What is wrong with a study that these faults struck, as every random schedule is looked at."""
    with mock.patch.object(schedule, "draw", return_value=(lives, apart)):
        return schedule.run_schedule(base, root, 0)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("late", [2.0, 9.0])  # shorter, and longer than others wait for a driver's beat (6 s here)
@pytest.mark.parametrize("second", ["rival", "kill"])
def test_a_study_on_a_late_share_holds(base, tmp_path, late, second):
    """A living driver may lose its lease where its beats show too late; it is told so, and nothing is wrong."""
    with late_share(late):
        assert wrong(base, tmp_path / "root", [Fault("kill", 100, 1)], [Fault(second, 60, 1)]) == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "at"),
    [
        ("fsync", 0),
        ("fsync", 9),
        ("fsync", 25),
        ("replace", 1),
        ("replace", 12),
        ("replace", 22),
        ("link", 0),
        ("link", 2),
    ],
)
@pytest.mark.timeout(1200)
def test_a_study_whose_storage_fails_in_one_call_alone_holds(base, tmp_path, call, at):
    told, times = tmp_path / "told", 1 + at % 3
    with failing(call, at, times, told, errno.EIO):
        assert wrong(base, tmp_path / "root", [], apart=False) == ""
    assert told.stat().st_size == times
