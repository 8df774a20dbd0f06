"""One driver per study: a lease of numbered attempts, kept beside the study's files.

Taking the lease is creating the next attempt's file, which succeeds for exactly one driver (`Store.create`). The
number is also the fence: workers write under it, so what a dead driver's workers still write never mixes with the next
attempt's. A holder proves that it lives by touching its beat file; on its own machine its process says it at once.

Whoever has lost the lease writes nothing any more. Nobody needs to tell it: a holder that could not beat for as long as
others wait knows by its own clock that it may have been replaced, before it has asked anybody.
"""

import contextlib
import json
import logging
import os
import re
import secrets
import socket
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from wsol_pipeline.errors import LeaseLostError, ResourceError
from wsol_pipeline.storage import STORAGE_ERRORS, Store

logger = logging.getLogger(__name__)

BEAT_SECONDS = 3.0
DEAD_AFTER_SECONDS = 20.0  # without a beat, seen by the one who waits: no clocks are compared
_ATTEMPT = re.compile(r"(\d{6,})\.json")
_OURS = re.compile(r"\d{6,}\.(json|beat|released)")


@dataclass
class Lease:
    """A held lease. `attempt` counts from 1. Use as a context manager.

    `sure`: the driver before is known to have ended; else it was only silent, as every copy of a living one's files is.
    """

    store: Store
    attempt: int
    sure: bool = True
    _replaced: threading.Event = field(default_factory=threading.Event)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _beaten: float | None = None  # when the last beat was written; None before the first is due

    def __enter__(self) -> "Lease":
        self._beaten = _now()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="lease")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join(timeout=10)
        if self.lost:
            return
        try:
            self.store.write(_name(self.attempt, "released"), b"", self.confirm)
        except LeaseLostError:  # while it ended
            return
        except STORAGE_ERRORS as error:  # what ended the work must not be hidden by this; the beats have stopped anyway
            logger.warning("the lease was not released (%s): the next driver finds out by itself", error)

    @property
    def lost(self) -> bool:
        """Whether a later attempt exists, or may: no beat could be written for as long as others wait for one."""
        return self._replaced.is_set() or self._silence() > DEAD_AFTER_SECONDS

    def check(self) -> None:
        """Raise `LeaseLostError` if another driver has taken over, or could have. Asks nobody."""
        lost = f"Attempt {self.attempt} lost its lease on {self.store.uri}"
        if self._replaced.is_set():
            raise LeaseLostError(f"{lost}: another driver took over.")
        if self.lost:
            raise LeaseLostError(
                f"{lost}: it could not beat for {self._silence():.0f} s, so another driver may have taken over. The "
                "same command continues."
            )

    def confirm(self) -> None:
        """`check`, and ask the storage too: before what others see and nobody writes again."""
        self.check()
        self._look()
        self.check()

    def _silence(self) -> float:
        return 0.0 if self._beaten is None else _now() - self._beaten

    def _look(self) -> None:
        if self.store.exists(_name(self.attempt + 1, "json")):
            self._replaced.set()

    def _beat(self) -> None:
        """Look, then beat, until the end. Whatever keeps a beat from being written shows in `lost`."""
        count = 0
        while not (self._stop.is_set() or self.lost):
            with contextlib.suppress(Exception):
                self._look()
                begun = _now()
                self.store.write(_name(self.attempt, "beat"), str(count := count + 1).encode())
                self._beaten = begun  # when it was written at the earliest
            self._stop.wait(BEAT_SECONDS)


def acquire(store: Store, doing: str = "driving this study") -> Lease:
    """Take the lease kept in `store`, at once if its holder ended or died on this machine, else after its beat stopped.

    `doing` says what its holder does. Raises `ResourceError` when a living one holds it, `UsageError` if the folder
    that it lies in is another's.
    """
    Store(store.uri.rpartition("/")[0]).check_spelling()
    attempt = latest_attempt(store)
    if holder := _living(store, attempt):
        raise ResourceError(f"{holder} is {doing} ({store.uri}); wait for it or stop it.")
    sure = attempt == 0 or _has_ended(store, attempt) is True
    me = identity() | {"host": socket.gethostname(), "once": secrets.token_hex(8)}
    if not store.create(_name(attempt + 1, "json"), json.dumps(me).encode()):
        raise ResourceError(f"{_holder(store, attempt + 1)} has just started {doing} ({store.uri}).")
    return Lease(store, attempt + 1, sure)


def living(store: Store) -> str:
    """Who holds the lease kept in `store`, in words; "" if nobody does. Waits for beats where only they can tell."""
    return _living(store, latest_attempt(store))


def released(store: Store, attempt: int) -> str:
    """The file that says that the driver with this attempt has ended."""
    return store.path(_name(attempt, "released"))


def latest_attempt(store: Store) -> int:
    """The highest attempt ever taken; 0 if none was. Files that no driver names so are passed over, and named."""
    names = store.list()
    if odd := [name for name in names if not _OURS.fullmatch(name)]:
        logger.warning("%s holds what is no part of a lease, and is passed over: %s", store.uri, ", ".join(odd[:5]))
    return max((int(found[1]) for found in map(_ATTEMPT.fullmatch, names) if found), default=0)


def identity(pid: int | None = None) -> dict[str, Any]:
    """What tells a process from every other: its id, when it started, and of which boot and namespace both are.

    Clock ticks since the boot don't move when somebody sets the clock. Linux says all of it; elsewhere None stands for
    what is not known, and nobody is told apart by it. Raises `OSError` if there is no such process.
    """
    pid = os.getpid() if pid is None else pid
    if not _proc_is_ours():
        return {"boot": None, "namespace": None, "pid": pid, "started": None}
    state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    if state in "ZX":
        raise ProcessLookupError(f"process {pid} has ended")
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    namespace = str(Path("/proc/self/ns/pid").readlink())
    return {"boot": boot, "namespace": namespace, "pid": pid, "started": int(fields[18])}


def _proc_is_ours() -> bool:
    """Whether there is a /proc, and it is of this process's namespace."""
    with contextlib.suppress(OSError):
        return Path("/proc/self").readlink().name == str(os.getpid())
    return False


def _living(store: Store, attempt: int) -> str:
    ended = attempt == 0 or _has_ended(store, attempt)
    return "" if ended or (ended is None and not _beats(store, attempt)) else _holder(store, attempt)


def _has_ended(store: Store, attempt: int) -> bool | None:
    """Whether the holder has said so, or is a process of this machine that ended; None where only its beats tell."""
    if store.exists(_name(attempt, "released")):
        return True
    runs = _runs_here(_read(store, attempt))
    return None if runs is None else not runs


def _runs_here(holder: dict[str, Any]) -> bool | None:
    """Whether the holder is a process that this one sees; None if it may be one that this one does not see."""
    try:
        mine = identity()
        if mine["boot"] is None or any(holder.get(key) != mine[key] for key in ("boot", "namespace")):
            return None
        return identity(holder["pid"]) == {key: holder[key] for key in mine}
    except ProcessLookupError:
        return False
    except FileNotFoundError:
        return None if psutil.pid_exists(holder["pid"]) else False  # another user's, which /proc may hide
    except (OSError, KeyError, TypeError, ValueError):
        return None


def _beats(store: Store, attempt: int) -> bool:
    def beat() -> bytes:
        name = _name(attempt, "beat")
        return store.read(name) if store.exists(name) else b""

    first, deadline = beat(), _now() + DEAD_AFTER_SECONDS
    while _now() < deadline:
        time.sleep(BEAT_SECONDS / 3)
        if beat() != first:
            return True
    return False


def _holder(store: Store, attempt: int) -> str:
    holder = _read(store, attempt)
    return f"Process {holder.get('pid', '?')} on {holder.get('host', 'an unknown host')}"


def _read(store: Store, attempt: int) -> dict[str, Any]:
    """What an attempt's file says of its holder; nothing if it is damaged: then its beats decide."""
    try:
        holder = json.loads(store.read(_name(attempt, "json")))
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _name(attempt: int, kind: str) -> str:
    return f"{attempt:06d}.{kind}"


def _now() -> float:
    """Seconds that go on while the machine sleeps, where the system has such a clock."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
