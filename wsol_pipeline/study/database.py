"""Where a study lives: SQLite, a database of a team, or a journal of objects in a bucket."""

import contextlib
import json
import logging
import os
import re
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import BaseJournalBackend
from sqlalchemy.exc import IntegrityError, ProgrammingError, SQLAlchemyError
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_fixed, wait_random

from wsol_pipeline import interrupts
from wsol_pipeline.errors import DataError, MismatchError, ResourceError
from wsol_pipeline.redaction import redact
from wsol_pipeline.storage import Store

logger = logging.getLogger(__name__)

DATABASE_ERRORS = (optuna.exceptions.StorageInternalError, SQLAlchemyError, sqlite3.Error)


LOCK_SECONDS = 5.0  # how long another process may hold the database when a study begins
FAILOVER_SECONDS = 120.0  # how long a study that runs waits for its database's server to come back
# Of PostgreSQL's client, where the URL says nothing else: a standby is no server to write to, and one whose machine is
# gone says nothing at all, so silence has to end.
_CLIENT = {
    "target_session_attrs": "read-write", "connect_timeout": 10, "tcp_user_timeout": 30_000,
    "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3,
}  # fmt: skip
# What writes the same when it is asked again, though the answer to the first time was lost.
_ASKED_AGAIN = (
    "_get_trials", "get_trial", "get_all_trials", "get_study_user_attrs", "get_study_system_attrs",
    "set_study_user_attr", "set_study_system_attr", "_set_trial_param", "set_trial_user_attr", "set_trial_system_attr",
    "set_trial_intermediate_value",
)  # fmt: skip


class ObjectJournal(BaseJournalBackend):
    """Optuna's journal as numbered objects in a `Store`: a study that lives in a bucket, with no database.

    Each append creates the next number (If-None-Match), so two writers can't overwrite each other; the study's lease
    keeps them from trying: `check` is called before each.
    """

    def __init__(self, store: Store, check: Callable[[], None] = lambda: None) -> None:
        self.store, self.check = store, check
        self._logs: list[dict[str, Any]] = []
        self._objects = 0

    def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
        self._catch_up()
        return self._logs[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        self.check()
        while not self.store.create(_journal_name(self._objects), json.dumps(logs).encode()):
            self._catch_up()
            self.check()
        self._logs += logs
        self._objects += 1

    def _catch_up(self) -> None:
        """Read what is new, by number: a list may be stale, and may hold what somebody else has put there."""
        if self._objects == 0:
            self._check_gaps()
        while self.store.exists(_journal_name(self._objects)):
            self._take(_journal_name(self._objects))

    def _check_gaps(self) -> None:
        names = self.store.list()
        numbers = [int(name[:-5]) for name in names if _JOURNAL.fullmatch(name)]
        if odd := [name for name in names if not _JOURNAL.fullmatch(name)]:
            logger.warning("%s holds what is no part of the journal, and is passed over: %s", self.store, odd[:5])
        lost = (_journal_name(number) for number in range(max(numbers, default=-1) + 1))
        if gap := next((name for name in lost if name not in names and not self.store.exists(name)), None):
            raise DataError(f"The study's journal {self.store} has lost {gap}: bring it back, or give another --name.")

    def _take(self, name: str) -> None:
        try:
            self._logs += json.loads(self.store.read(name))
        except (ValueError, TypeError) as error:
            raise DataError(f"{self.store.path(name)} of the study's journal is damaged: bring it back.") from error
        self._objects += 1


_JOURNAL = re.compile(r"\d{8}\.json")


def _journal_name(number: int) -> str:
    return f"{number:08d}.json"


def open_storage(store: Store, database: str | None, check: Callable[[], None] = lambda: None) -> BaseStorage:
    """Where the study lives: `database` (an SQLAlchemy URL), else SQLite in a local `store`, else a journal in `store`.

    `check` is called before each write to a journal, which has no other guard against a second writer.

    Raises `ResourceError` if the database can't be opened, within seconds if another process has locked it.
    """
    if not database and not store.is_local:
        return JournalStorage(ObjectJournal(store / "journal", check))
    url = database or f"sqlite:///{store.path('study.db')}"
    with _database_errors(url):
        if not database:
            Path(store.uri).mkdir(parents=True, exist_ok=True)
        if not url.startswith("sqlite:///"):
            return _open_database(url)
        file = Path(url.removeprefix("sqlite:///"))
        _check_unlocked(file)
        storage = RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60}})
        _watch(storage, file)
        return storage


def warn_of_password(url: str | None) -> None:
    """Say that a password on a command line is everybody's: `ps` shows it to all users of the machine."""
    if url and re.search("://[^/@]*:[^/@]", url) and any(url in word for word in sys.argv):  # not from a --config
        logger.warning(
            "The password in --study-db is seen by every user of this machine (ps): leave it out of the URL, and put "
            "it into PGPASSWORD or ~/.pgpass."
        )


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


def _watch(storage: RDBStorage, file: Path) -> None:
    """Let no transaction begin in an SQLite file that has lost its name: what it writes would be gone with it."""
    opened = file.stat()

    def check(connection: object) -> None:
        if not (file.exists() and os.path.samestat(opened, file.stat())):
            raise MismatchError(f"The study's database {file} was removed or replaced under way: bring it back.")

    sqlalchemy.event.listen(storage.engine, "begin", check)


def _check_unlocked(file: Path) -> None:
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
    known = sqlalchemy.make_url(url)
    client = _CLIENT if known.get_dialect().driver.startswith("psycopg") else {}
    arguments = {name: value for name, value in client.items() if name not in known.query}
    storage = RDBStorage(url, engine_kwargs={"pool_pre_ping": True, "connect_args": arguments})
    sqlalchemy.event.listen(storage.engine, "do_connect", _wait_to_connect)
    again = retry(
        retry=retry_if_exception_type(DATABASE_ERRORS), stop=stop_after_attempt(3), wait=wait_fixed(1), reraise=True
    )
    for name in _ASKED_AGAIN:
        setattr(storage, name, again(getattr(storage, name)))
    return storage


def _wait_to_connect(dialect: sqlalchemy.Dialect, record: object, args: Any, options: Any) -> Any:
    """A connection to a server that may be failing over: whoever asks for one while it is away waits."""
    deadline, told = time.monotonic() + FAILOVER_SECONDS, False
    while True:
        try:
            return dialect.connect(*args, **options)
        except dialect.loaded_dbapi.OperationalError as error:
            if time.monotonic() > deadline or interrupts.asked():
                raise
            if not told:
                logger.warning("the study's database is away, and waited for: %s", str(error).partition("\n")[0][:200])
            told = True
            time.sleep(1)


def on_new_connection(storage: BaseStorage, tell: Callable[[], None]) -> None:
    """Call `tell` whenever a server is connected to: it may be another one than before, that knows less."""
    if isinstance(storage, RDBStorage):
        sqlalchemy.event.listen(storage.engine, "connect", lambda *_: tell())
