"""The ledger: proposals, adoption, pruning, contract, journal in a bucket."""

import contextlib
import json
import shutil
import sqlite3
from types import SimpleNamespace

import optuna
import pytest
import sqlalchemy
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from wsol_pipeline.errors import DataError, LeaseLostError, MismatchError, ResourceError, UsageError
from wsol_pipeline.storage import Store
from wsol_pipeline.study import database
from wsol_pipeline.study import ledger as ledger_module
from wsol_pipeline.study.database import ObjectJournal, database_needed, open_storage, warn_of_password
from wsol_pipeline.study.identity import Home, home
from wsol_pipeline.study.lease import Lease, acquire
from wsol_pipeline.study.ledger import open_ledger
from wsol_pipeline.study.options import FOR_ONE, FOR_SEVERAL
from wsol_pipeline.study.pareto import Rule
from wsol_pipeline.study.samplers import PRUNERS, SAMPLERS, pruner, sampler
from wsol_pipeline.study.standings import front

HOME = Home("1" * 32, "/runs/s")
RULE = Rule(("gt_known_loc", "device_hours"), 1.0)


def space(trial):
    return {"alpha": trial.suggest_float("alpha", 0.0, 1.0), "beta": trial.suggest_float("beta", 0.5, 2.5)}


def ledger(storage, **changes):
    settings = {
        "space": space,
        "contract": {"data": "d1", "train": {"epochs": 4}},
        "published": {"paper/row": {"alpha": 0.5, "beta": 1.5}},
        "sampler": sampler("tpe", seed=3, startup_trials=2),
        "pruner": pruner("none", 1, 4),
        "home": HOME,
        "lease": Lease(Store("/nowhere/lease"), 1),
    } | changes
    return open_ledger(storage, "s", **settings)


@pytest.fixture(params=["sqlite", "journal"])
def storage(request, tmp_path):
    def reopen():
        if request.param == "sqlite":
            return open_storage(Store.at(tmp_path), None)
        return optuna.storages.JournalStorage(ObjectJournal(Store.at(tmp_path / "journal")))

    return reopen


def test_published_settings_come_first_and_once(storage):
    first = ledger(storage()).ask()
    assert first.params == {"alpha": 0.5, "beta": 1.5}
    assert first.user_attrs["published"] == "paper/row"
    again = ledger(storage())
    assert again.ask().params != first.params
    assert again.balance()["started"] == 2


def test_a_trial_left_running_keeps_its_number_and_parameters(storage):
    number = ledger(storage()).ask().number
    reopened = ledger(storage())
    assert reopened.running() == [number]
    assert reopened.parameters(number) == {"alpha": 0.5, "beta": 1.5}


def test_random_proposals_depend_on_their_number_alone():
    """Not on which trials have ended, which is a matter of time: the demo's table rests on it."""

    def proposals(ends: bool) -> list[dict[str, float]]:
        book = ledger(optuna.storages.InMemoryStorage(), sampler=sampler("random", seed=3, startup_trials=2))
        for value in range(6):
            number = book.ask().number
            if ends:
                book.complete(number, float(value))
        return [trial.params for trial in book.trials()]

    assert proposals(ends=True) == proposals(ends=False)


def test_a_driver_killed_between_asking_and_suggesting_loses_no_trial(storage):
    first = ledger(storage())
    first.ask()
    bare = first.study.ask()  # RUNNING, no parameter yet
    reopened = ledger(storage())
    values = reopened.parameters(bare.number)
    assert reopened.parameters(bare.number) == values
    again = ledger(optuna.storages.InMemoryStorage())
    assert values == [again.ask(), again.ask()][1].params  # what it would have proposed had it lived


@pytest.mark.parametrize(
    ("name", "rule"),
    [(name, None) for name in SAMPLERS if name not in FOR_SEVERAL]
    + [(name, RULE) for name in SAMPLERS if name not in FOR_ONE],
)
def test_proposals_depend_on_seed_and_number_not_on_restarts(name, rule):
    def proposals(restart: bool, seed: int = 3) -> list[dict]:
        where, found = optuna.storages.InMemoryStorage(), []
        settings = {"published": {}, "sampler": sampler(name, seed, startup_trials=2), "rule": rule}
        book = ledger(where, **settings)
        for _ in range(6):
            if restart:  # of a driver that died asking, too: what it proposes anew is the same
                book = ledger(where, **settings)
                number = book.study.ask().number
                book.parameters(number)
            else:
                number = book.ask().number
            trial = book.get(number)
            peak = -((trial.params["alpha"] - 0.3) ** 2)  # inside: samplers come back to a bound
            book.complete(number, peak, *[trial.params["beta"]] * bool(rule))
            found.append(trial.params)
        return found

    assert proposals(False) == proposals(True)
    assert proposals(False) != proposals(False, seed=4)
    assert len({trial["alpha"] for trial in proposals(False)}) >= (3 if name == "nsga2" else 6)  # genes are inherited


@pytest.mark.parametrize("name", PRUNERS)
def test_every_pruner_lets_the_best_go_on(storage, name):
    book = ledger(storage(), published={}, pruner=pruner(name, 2, 4))
    numbers = [book.ask().number for _ in range(8)]
    stopped = [book.report(number, 2, 50.0 - number) for number in numbers]
    assert not stopped[0]
    for number in numbers:
        book.complete(number, 1.0)
    late = [book.report(book.ask().number, 2, 0.0) for _ in range(6)]  # not every bracket of hyperband asks so early
    assert any(late) == (name != "none")


def test_the_books_balance(storage):
    book = ledger(storage())
    for end in ("complete", "prune", "fail", "leave"):
        number = book.ask().number
        if end == "complete":
            book.complete(number, 12.5)
        elif end == "prune":
            book.report(number, 2, 1.0)
            book.prune(number)
        elif end == "fail":
            book.fail(number, "nan", "the gradient is nan")
    assert book.balance() == {"started": 4, "complete": 1, "pruned": 1, "fail": 1, "running": 1}
    assert book.get(2).user_attrs["failure"] == {"kind": "nan", "message": "the gradient is nan"}
    assert book.get(2).state is TrialState.FAIL


def test_ranking_is_by_value_then_by_number(storage):
    book = ledger(storage())
    for value in (10.0, 30.0, 30.0):
        book.complete(book.ask().number, value)
    assert [trial.number for trial in book.ranking()] == [1, 2, 0]


def finished(book, *values):
    for value in values:
        book.complete(book.ask().number, value)


def test_the_best_are_confirmed_once_and_a_driver_killed_in_between_adds_the_rest(storage):
    book = ledger(storage())
    finished(book, 10.0, 30.0, 20.0)
    assert book.unconfirmed(2, 2) == [(1, 1), (1, 2), (2, 1), (2, 2)]
    begun = book.confirm(*book.unconfirmed(2, 2)[0])
    assert (begun.number, begun.state, begun.params) == (3, TrialState.RUNNING, book.get(1).params)
    reopened = ledger(storage())
    assert reopened.running() == [3]
    assert reopened.get(3).user_attrs == {"confirms": 1, "seed": 1}
    assert reopened.parameters(3) == reopened.parameters(1)
    reopened.fail(3, "nan", "the gradient is nan")
    for pair in reopened.unconfirmed(2, 2):
        reopened.complete(reopened.confirm(*pair).number, 5.0)
    assert reopened.unconfirmed(2, 2) == []
    assert [trial.number for trial in reopened.proposals()] == [0, 1, 2]
    assert reopened.balance() == {"started": 7, "complete": 6, "pruned": 0, "fail": 1, "running": 0}
    assert reopened.unconfirmed(3, 2) == [(0, 1), (0, 2)]


def test_confirmed_settings_stand_first_by_their_mean(storage):
    book = ledger(storage())
    finished(book, 10.0, 30.0, 28.0, 29.0)
    for number, seed, value in ((1, 2, 22.0), (1, 1, 26.0), (2, 1, 27.0), (3, 1, 0.0)):
        confirmation = book.confirm(number, seed).number
        if value:
            book.complete(confirmation, value)
        else:
            book.fail(confirmation, "nan", "the gradient is nan")
    found = book.ranking()
    assert [(standing.number, standing.values) for standing in found] == [
        (2, (28.0, 27.0)),  # mean 27.5
        (1, (30.0, 26.0, 22.0)),  # mean 26, deviations 4, 0, -4
        (3, (29.0,)),
        (0, (10.0,)),
    ]
    assert found[1].trials == (1, 5, 4)
    assert [str(standing) for standing in found[1:3]] == ["26.00 ± 4.00 (3)", "29.00"]


def test_a_confirmation_is_neither_pruned_nor_in_the_rungs(storage):
    book = ledger(storage(), published={}, pruner=pruner("successive-halving", 2, 4))
    finished(book, 10.0)
    good = book.confirm(0, 1).number
    assert not book.report(good, 2, 99.0)
    assert book.get(good).intermediate_values == {}
    assert not book.report(book.ask().number, 2, 1.0)  # the first in its rung
    assert not book.report(book.confirm(0, 2).number, 2, 0.0)


def test_the_pruner_stops_the_worse_half_but_never_a_published_setting(storage):
    book = ledger(storage(), pruner=pruner("successive-halving", 2, 4))
    published, good, poor = (book.ask().number for _ in range(3))
    assert not book.report(good, 2, 50.0)
    assert book.report(poor, 2, 40.0)
    assert not book.report(published, 2, 1.0)


def test_a_value_reported_again_after_a_restart_does_not_replace_the_first(storage):
    book = ledger(storage())
    number = book.ask().number
    book.report(number, 2, 40.0)
    reopened = ledger(storage())
    reopened.report(number, 2, 99.0)
    assert reopened.get(number).intermediate_values == {2: 40.0}


def test_another_contract_is_refused_with_what_differs(storage):
    ledger(storage())
    with pytest.raises(UsageError, match=r"train\.epochs was 4, now 5.*another --name"):
        ledger(storage(), contract={"data": "d1", "train": {"epochs": 5}})


def test_a_study_of_another_storage_is_refused_with_both_places(storage):
    ledger(storage()).ask()
    with pytest.raises(UsageError, match=r"'s' of this database is kept at /runs/s \(id 1{12}\), not at /b/s \(id 2"):
        ledger(storage(), home=Home("2" * 32, "/b/s"))
    with pytest.raises(UsageError, match="not at /b/s"):  # the folder was copied, its id with it
        ledger(storage(), home=Home("1" * 32, "/b/s"))
    assert ledger(storage()).balance()["started"] == 1


def files_at(folder, places, id="1" * 32):
    """A folder that says that it holds study `id` and has been at `places`."""
    folder.write("study.json", json.dumps({"id": id, "places": places}).encode())
    return home(folder)


def released(folder, attempt=1):
    """A lease kept in `folder` whose driver, of another machine, has said that it ended."""
    (folder / "lease").write(f"{attempt:06d}.json", b'{"host": "afar", "pid": 7}')
    (folder / "lease").write(f"{attempt:06d}.released", b"")


def test_a_study_that_was_moved_goes_on_and_says_so(storage, caplog, tmp_path):
    ledger(storage()).ask()
    there = files_at(Store.at(tmp_path / "b/s"), ["/runs/s"])
    moved = ledger(storage(), home=there, lease=Lease(Store("/nowhere/lease"), 2))
    assert moved.ask().number == 1
    assert caplog.messages == [f"study 's' was moved from /runs/s to {tmp_path}/b/s, where it goes on"]
    caplog.clear()
    ledger(storage(), home=there, lease=Lease(Store("/nowhere/lease"), 3))
    assert not caplog.messages
    back = Home("1" * 32, "/runs/s", (str(tmp_path / "b/s"),))
    assert ledger(storage(), home=back, lease=Lease(Store("/nowhere/lease"), 4)).balance()["started"] == 2


def test_a_copy_with_a_database_of_its_own_goes_on_apart(storage, caplog, tmp_path):
    original = files_at(Store.at(tmp_path / "a/s"), [f"{tmp_path}/a/s"])
    ledger(storage(), home=original)
    released(Store.at(tmp_path / "a/s"))
    copy = files_at(Store.at(tmp_path / "b/s"), [f"{tmp_path}/a/s"])
    assert ledger(storage(), home=copy).ask().number == 0
    assert caplog.messages == [
        f"study 's' is a copy of the one at {tmp_path}/a/s, which stays as it is: they go on apart"
    ]


def test_a_copy_beside_an_original_that_is_driven_is_refused(storage, tmp_path):
    folder = Store.at(tmp_path / "a/s")
    ledger(storage(), home=files_at(folder, [folder.uri]))
    with (
        acquire(folder / "lease"),
        pytest.raises(ResourceError, match=rf"Process \d+ on .* is driving study 's' at {folder}, of"),
    ):
        ledger(storage(), home=files_at(Store.at(tmp_path / "b/s"), [folder.uri]))
    assert ledger(storage(), home=home(folder)).ask().number == 0


def test_a_copy_never_takes_a_database_that_both_places_share(storage, tmp_path):
    folder, copy = Store.at(tmp_path / "a/s"), Store.at(tmp_path / "b/s")
    ledger(storage(), home=files_at(folder, [folder.uri]), shared=True)
    released(folder)
    own = files_at(copy, [folder.uri])
    with pytest.raises(
        UsageError, match=rf"kept at {folder}, where it still is; {copy} is a copy of it.*remove {folder}/study.json"
    ):
        ledger(storage(), home=own, lease=Lease(copy / "lease", 2), shared=True)
    folder.remove("study.json")
    with pytest.raises(
        DataError, match="is an older copy of study 's': its database knows attempt 1, the files attempt 0"
    ):
        ledger(storage(), home=own, lease=Lease(copy / "lease", 1), shared=True)
    with pytest.raises(
        ResourceError, match=rf"has ended cannot be seen from here: if it has, create {copy}/lease/000001.released"
    ):
        ledger(storage(), home=own, lease=Lease(copy / "lease", 2, sure=False), shared=True)
    assert ledger(storage(), home=own, lease=Lease(copy / "lease", 2), shared=True).ask().number == 0
    with pytest.raises(UsageError, match=f"kept at {copy} "):  # the original, brought back
        ledger(storage(), home=files_at(folder, [folder.uri]), lease=Lease(folder / "lease", 3), shared=True)


def test_a_driver_whose_study_was_taken_elsewhere_writes_nothing_more(storage, tmp_path):
    late = ledger(storage())
    late.ask()
    ledger(storage(), home=files_at(Store.at(tmp_path / "b"), ["/runs/s"]))
    with pytest.raises(MismatchError, match=rf"it held /runs/s \(id 1{{12}}\) and now holds {tmp_path}/b"):
        late.complete(0, 1.0)


def test_a_driver_that_died_before_the_study_had_a_home_is_continued(storage, monkeypatch):
    monkeypatch.setattr(ledger_module, "PATIENCE", 1)
    optuna.create_study(study_name="s", storage=storage(), direction="maximize")
    assert ledger(storage()).ask().user_attrs["published"] == "paper/row"


def test_a_study_of_an_older_format_is_refused_with_the_way_on(storage):
    study = optuna.create_study(study_name="s", storage=storage(), direction="maximize")
    study.set_user_attr("contract", {"schema": 1})
    with pytest.raises(UsageError, match="another version of this code .format 1; this one has 3.*another --name"):
        ledger(storage())


WRITES = {
    "ask": lambda book: book.ask(),
    "report": lambda book: book.report(0, 2, 1.0),
    "spend": lambda book: book.spend(0, 1.0),
    "confirm": lambda book: book.confirm(0, 1),
    "complete": lambda book: book.complete(0, 1.0),
    "prune": lambda book: book.prune(0),
    "fail": lambda book: book.fail(0, "nan", "x"),
}


@pytest.mark.parametrize("write", WRITES)
def test_a_driver_that_another_has_replaced_writes_nothing(storage, write):
    """Frozen while the other took over: its own lease has told it nothing yet."""
    late = ledger(storage())
    late.ask()
    heir = ledger(storage(), lease=Lease(Store("/nowhere/lease"), 2))
    before = heir.study.get_trials()
    with pytest.raises(LeaseLostError, match="Attempt 1 no longer writes study 's': its database says attempt 2 does"):
        WRITES[write](late)
    assert heir.study.get_trials() == before


def test_a_driver_frozen_between_its_fence_and_its_write_is_told_of_its_lease(storage, monkeypatch):
    """Not of Optuna's trial that has already finished: the other one told it meanwhile. A random schedule found it."""
    late = ledger(storage())
    number = late.ask().number
    right = type(late).fence

    def frozen(self):
        right(self)
        monkeypatch.setattr(type(late), "fence", right)
        ledger(storage(), lease=Lease(Store("/nowhere/lease"), 2)).complete(number, 1.0)

    monkeypatch.setattr(type(late), "fence", frozen)
    with pytest.raises(LeaseLostError, match="its database says attempt 2 does"):
        late.report(number, 1, 0.5)


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("how", ["written over", "moved there", "removed"])
def test_a_database_that_was_replaced_by_another_study_is_named(tmp_path, write, how):
    book = ledger(open_storage(Store.at(tmp_path / "a"), None))
    book.ask()
    ledger(open_storage(Store.at(tmp_path / "b"), None), home=Home("2" * 32, "/runs/b")).ask()
    mine, other = tmp_path / "a/study.db", tmp_path / "b/study.db"
    {
        "written over": lambda: shutil.copy(other, mine),
        "moved there": lambda: other.replace(mine),
        "removed": mine.unlink,
    }[how]()
    told = "was replaced: it held /runs/s .* and now holds /runs/b"
    with pytest.raises(MismatchError, match=told if how == "written over" else "was removed or replaced under way"):
        WRITES[write](book)


def test_a_database_that_knows_a_trial_no_more_was_replaced(tmp_path):
    book = ledger(open_storage(Store.at(tmp_path), None))
    book.ask()
    shutil.copy(tmp_path / "study.db", tmp_path / "older.db")
    number = book.ask().number
    shutil.copy(tmp_path / "older.db", tmp_path / "study.db")
    with pytest.raises(MismatchError, match="The study's database was replaced"):
        book.complete(number, 1.0)


@pytest.mark.parametrize(("end", "now"), [("complete", "RUNNING"), ("ask", "not there")])
def test_a_server_that_comes_back_with_less_than_it_was_told_is_named(tmp_path, end, now):
    """As a standby does that lagged behind, or a database that was restored: Optuna remembers what it has read."""
    storage = open_storage(Store.at(tmp_path), None)
    book = ledger(storage)
    book.ask()
    shutil.copy(tmp_path / "study.db", tmp_path / "older.db")
    book.complete(0, 1.0) if end == "complete" else book.ask()
    book.trials()
    storage.engine.dispose()
    shutil.copy(tmp_path / "older.db", tmp_path / "study.db")
    number, was = (0, "COMPLETE") if end == "complete" else (1, "RUNNING")
    with pytest.raises(MismatchError, match=f"older state: trial {number} was {was} and now is {now}"):
        book.ask()


def test_a_server_that_comes_back_with_all_that_it_was_told_is_no_fault(tmp_path):
    storage = open_storage(Store.at(tmp_path), None)
    book = ledger(storage)
    book.complete(book.ask().number, 1.0)
    storage.engine.dispose()
    assert book.ask().number == 1


class Server:
    """A database's server that is away for the first `away` times that it is asked for a connection."""

    loaded_dbapi = SimpleNamespace(OperationalError=sqlite3.OperationalError)

    def __init__(self, away):
        self.away = away

    def connect(self, *args, **options):
        self.away -= 1
        if self.away >= 0:
            raise sqlite3.OperationalError("connection refused")
        return "connection", args, options


@pytest.fixture
def no_sleep(monkeypatch):
    """Waiting takes no time, and a second of it is one."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(database, "time", clock)
    clock.monotonic, clock.sleep = lambda: clock.now, lambda seconds: setattr(clock, "now", clock.now + seconds)
    return clock


def test_a_server_that_is_away_for_a_while_is_waited_for(no_sleep, caplog):
    assert database._wait_to_connect(Server(5), None, ("a",), {"b": 1}) == ("connection", ("a",), {"b": 1})
    assert no_sleep.now == 5
    assert caplog.text.count("is away, and waited for: connection refused") == 1


@pytest.mark.parametrize("asked", [False, True])
def test_a_server_that_stays_away_is_waited_for_within_limits(no_sleep, monkeypatch, asked):
    monkeypatch.setattr(database.interrupts, "asked", lambda: asked)
    with pytest.raises(sqlite3.OperationalError, match="connection refused"):
        database._wait_to_connect(Server(10**6), None, (), {})
    assert no_sleep.now == (0 if asked else database.FAILOVER_SECONDS + 1)


def test_what_may_be_asked_again_is_once_its_connection_broke(tmp_path, monkeypatch):
    """A new trial is not: there would be two of it. Optuna asks for it again by itself."""
    asked = []

    def break_once(name):
        original = getattr(RDBStorage, name)

        def broken(*args, **options):
            asked.append(name)
            if asked.count(name) == 1:
                raise optuna.exceptions.StorageInternalError("server closed the connection unexpectedly")
            return original(*args, **options)

        monkeypatch.setattr(RDBStorage, name, broken)

    for name in ("get_study_user_attrs", "set_trial_user_attr", "_get_trials", "set_trial_state_values"):
        break_once(name)
    monkeypatch.setattr(database, "wait_fixed", lambda _: database.wait_random(0, 0))
    storage = database._open_database(f"sqlite:///{tmp_path}/study.db")
    book = ledger(storage, published={})
    book.spend(book.ask().number, 2.0)
    assert book.device_seconds() == 2.0
    with pytest.raises(optuna.exceptions.StorageInternalError):
        book.complete(0, 1.0)
    assert asked.count("set_trial_state_values") == 1


def test_a_client_of_postgresql_wants_a_server_to_write_to_and_no_lasting_silence(monkeypatch):
    engines = []

    def no_storage(url, engine_kwargs):
        engines.append(engine_kwargs["connect_args"])
        engine = sqlalchemy.create_engine("sqlite://")
        return SimpleNamespace(engine=engine, **dict.fromkeys(database._ASKED_AGAIN, len))

    monkeypatch.setattr(database, "RDBStorage", no_storage)
    database._open_database("postgresql+psycopg://wsol@a/studies?connect_timeout=3")
    assert engines[0] == {name: value for name, value in database._CLIENT.items() if name != "connect_timeout"}
    database._open_database("sqlite://")
    assert engines[1] == {}


@pytest.mark.parametrize("values", [{"alpha": "x"}, {"alpha": 0.5, "beta": [1]}, {"alpha": None}])
def test_what_somebody_enqueued_with_wrong_values_fails_alone(storage, values):
    book = ledger(storage(), published={})
    book.study.enqueue_trial(values)
    assert book.ask().state is TrialState.FAIL
    assert book.get(0).user_attrs["failure"]["kind"] == "configuration"
    assert "which was enqueued" in book.get(0).user_attrs["failure"]["message"]
    assert book.parameters(0).keys() <= {"alpha"}
    assert book.ask().state is TrialState.RUNNING


def test_what_is_no_part_of_a_journal_is_passed_over_and_named(tmp_path, caplog):
    journal = Store.at(tmp_path)
    ObjectJournal(journal).append_logs([{"n": 1}])
    for name in ("00000000 copy.json", "._00000000.json", ".DS_Store", "000000001.json"):
        journal.write(name, b'[{"n": 9}]')
    later = ObjectJournal(journal)
    later.append_logs([{"n": 2}])
    assert [log["n"] for log in ObjectJournal(journal).read_logs(0)] == [1, 2]
    assert "00000000 copy.json" in caplog.text


@pytest.mark.parametrize("how", ["stale", "twice"])
def test_a_listing_that_lies_changes_nothing_about_a_journal(tmp_path, monkeypatch, how):
    journal = ObjectJournal(Store.at(tmp_path))
    for n in range(5):
        journal.append_logs([{"n": n}])
    real = Store.list
    lies = {"stale": lambda names: names[:2] + names[3:], "twice": lambda names: [*names, names[1]]}[how]
    monkeypatch.setattr(Store, "list", lambda self, prefix="": lies(real(self, prefix)))
    assert [log["n"] for log in ObjectJournal(Store.at(tmp_path)).read_logs(0)] == [0, 1, 2, 3, 4]


def test_a_journal_that_lost_an_object_is_refused_by_its_name(tmp_path):
    journal = ObjectJournal(Store.at(tmp_path))
    for n in range(3):
        journal.append_logs([{"n": n}])
    (tmp_path / "00000001.json").unlink()
    with pytest.raises(DataError, match="has lost 00000001.json"):
        ObjectJournal(Store.at(tmp_path)).read_logs(0)


def test_a_journal_is_not_written_once_the_lease_is_lost(tmp_path):
    def lost():
        raise LeaseLostError("lost")

    with pytest.raises(LeaseLostError):
        ObjectJournal(Store.at(tmp_path), lost).append_logs([{"n": 1}])
    assert list(tmp_path.iterdir()) == []


def test_two_writers_of_a_journal_do_not_lose_each_others_logs(tmp_path):
    one, two = ObjectJournal(Store.at(tmp_path)), ObjectJournal(Store.at(tmp_path))
    one.append_logs([{"n": 1}])
    two.append_logs([{"n": 2}, {"n": 3}])
    one.append_logs([{"n": 4}])
    assert [log["n"] for log in one.read_logs(0)] == [1, 2, 3, 4]
    assert [log["n"] for log in two.read_logs(2)] == [3, 4]


def test_a_database_that_cannot_be_opened_is_a_resource_error(tmp_path):
    with pytest.raises(ResourceError, match="missing/folder/study.db cannot be opened: unable to open database file"):
        open_storage(Store.at(tmp_path), f"sqlite:///{tmp_path}/missing/folder/study.db")


def test_a_database_that_somebody_has_locked_is_a_resource_error(tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    book = ledger(optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 0.1}}))
    with contextlib.closing(sqlite3.connect(tmp_path / "study.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(ResourceError, match="is locked.* The same command continues"), database_needed():
            book.ask()
    assert book.ask().number == 0


@pytest.mark.parametrize(
    ("url", "given", "told"),
    [
        ("postgresql://me:q7Wz3kT9vX2m@db/studies", "--study-db={}", True),
        ("postgresql://me:q7Wz3kT9vX2m@db/studies", "--config=file.yaml", False),
        ("postgresql://me@db/studies", "{}", False),
        (None, "--trials=2", False),
    ],
)
def test_a_password_that_ps_shows_is_told_of_without_it(caplog, monkeypatch, url, given, told):
    monkeypatch.setattr("sys.argv", ["tune", given.format(url)])
    warn_of_password(url)
    assert ("PGPASSWORD or ~/.pgpass" in caplog.text) is told
    assert "q7Wz" not in caplog.text


def test_an_unknown_sampler_is_answered_with_the_known_ones():
    with pytest.raises(UsageError, match="cma-es"):
        sampler("cmaes", 0, 4)


def test_an_unknown_pruner_is_answered_with_the_known_ones():
    with pytest.raises(UsageError, match="Did you mean 'median'.*successive-halving"):
        pruner("medain", 1, 4)


def test_a_published_setting_counts_in_the_rung_that_others_have_to_reach(storage):
    book = ledger(storage(), pruner=pruner("successive-halving", 2, 4))
    published, poor = (book.ask().number for _ in range(2))
    assert not book.report(published, 2, 50.0)
    assert book.report(poor, 2, 40.0)


def of_two(book, *values):
    for pair in values:
        book.complete(book.ask().number, *pair)


def test_several_objectives_are_ranked_by_the_rule_and_kept_over_restarts(storage):
    """Beaten: 0 by 1. Within a point of 62: 1 and 3, of which 3 costs less; without it 1, then 0, then 2."""
    of_two(ledger(storage(), rule=RULE), (61.0, 3.0), (62.0, 2.0), (50.0, 0.5), (61.0, 1.0))
    book = ledger(storage(), rule=RULE)
    assert [standing.number for standing in book.ranking()] == [3, 1, 0, 2]
    assert book.ranking()[0].means == (61.0, 1.0)
    assert [standing.number for standing in front(book.ranking(), RULE)] == [3, 1, 2]
    assert book.unconfirmed(2, 1) == [(3, 1), (1, 1)]


def test_confirmed_settings_of_several_objectives_are_compared_by_their_means_alone(storage):
    book = ledger(storage(), rule=RULE)
    of_two(book, (60.0, 1.0), (61.0, 2.0), (70.0, 0.1))
    for number, values in ((0, (62.0, 3.0)), (1, (59.0, 1.0))):
        book.complete(book.confirm(number, 1).number, *values)
    first, second, third = book.ranking()
    assert (first.number, first.means, first.others) == (1, (60.0, 1.5), ((2.0, 1.0),))  # 61 and 60: within a point
    assert (second.number, second.means) == (0, (61.0, 2.0))
    assert third.number == 2
    assert front(book.ranking(), RULE) == [first, second]
    assert first.cells(RULE.objectives) == ["60.00 ± 1.41 (2)", "1.5 ± 0.707 (2)"]


def test_nothing_of_several_objectives_is_pruned(storage):
    book = ledger(storage(), published={}, rule=RULE, pruner=pruner("successive-halving", 2, 4))
    assert [book.report(book.ask().number, 2, value) for value in (50.0, 1.0)] == [False, False]


def test_a_study_of_one_objective_does_not_continue_with_several(storage):
    ledger(storage())
    several = {"data": "d1", "train": {"epochs": 4}, "also": ["device_hours"], "tolerance": 1.0}
    with pytest.raises(UsageError, match=r"also was None, now \['device_hours'\]"):
        ledger(storage(), contract=several, rule=RULE)
