"""One driver per study: a lease of numbered attempts, kept beside the study's files.

Taking the lease is creating the next attempt's file, which succeeds for exactly one driver (`Store.create`). The
number is also the fence: workers write under it, so what a dead driver's workers still write never mixes with the next
attempt's. A holder proves that it lives by touching its beat file; on its own host its process id says it at once.
"""

import json
import logging
import os
import socket
import threading
import time
from dataclasses import dataclass, field

import psutil

from wsol_pipeline.errors import ResourceError
from wsol_pipeline.storage import STORAGE_ERRORS, Store

logger = logging.getLogger(__name__)

BEAT_SECONDS = 3.0
DEAD_AFTER_SECONDS = 20.0  # without a beat, seen by the one who waits: no clocks are compared


@dataclass
class Lease:
    """A held lease. `attempt` counts from 1. Use as a context manager; `lost` is set when a later attempt exists."""

    store: Store
    attempt: int
    lost: threading.Event = field(default_factory=threading.Event)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> "Lease":
        self._thread = threading.Thread(target=self._beat, daemon=True, name="lease")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join(timeout=10)
        if self.lost.is_set():
            return
        try:
            self.store.write(_name(self.attempt, "released"), b"")
        except STORAGE_ERRORS as error:  # what ended the work must not be hidden by this; the beats have stopped anyway
            logger.warning("the lease was not released (%s): the next driver finds out by itself", error)

    def check(self) -> None:
        """Raise `ResourceError` if another driver has taken over."""
        if self.lost.is_set():
            raise ResourceError(f"Attempt {self.attempt} lost its lease on {self.store.uri}: another driver took over.")

    def _beat(self) -> None:
        count = 0
        while not self._stop.is_set():
            try:
                count += 1
                self.store.write(_name(self.attempt, "beat"), str(count).encode())
                if self.store.exists(_name(self.attempt + 1, "json")):
                    self.lost.set()
                    return
            except STORAGE_ERRORS:  # storage away for a while: a driver that can't beat long enough is taken for dead
                pass
            self._stop.wait(BEAT_SECONDS)


def acquire(store: Store) -> Lease:
    """Take the lease kept in `store`, at once if its holder ended or died on this host, else after its beat stopped.

    Raises `ResourceError` when a living driver holds it.
    """
    attempt = latest_attempt(store)
    if attempt and not _ended(store, attempt):
        raise ResourceError(f"{_holder(store, attempt)} is driving this study ({store.uri}); wait for it or stop it.")
    me = {"host": socket.gethostname(), "pid": os.getpid(), "started": psutil.Process().create_time()}
    if not store.create(_name(attempt + 1, "json"), json.dumps(me).encode()):
        raise ResourceError(f"{_holder(store, attempt + 1)} has just started to drive this study ({store.uri}).")
    return Lease(store, attempt + 1)


def latest_attempt(store: Store) -> int:
    """The highest attempt ever taken; 0 if none was."""
    return max((int(name.split(".")[0]) for name in store.list() if name.endswith(".json")), default=0)


def _ended(store: Store, attempt: int) -> bool:
    if store.exists(_name(attempt, "released")):
        return True
    holder = json.loads(store.read(_name(attempt, "json")))
    if holder["host"] == socket.gethostname():
        return not _runs_here(holder)
    return not _beats(store, attempt)


def _runs_here(holder: dict) -> bool:
    try:
        process = psutil.Process(holder["pid"])
        alive = process.status() != psutil.STATUS_ZOMBIE
        return alive and abs(process.create_time() - holder["started"]) < 1  # a reused id started later
    except psutil.NoSuchProcess:
        return False


def _beats(store: Store, attempt: int) -> bool:
    def beat() -> bytes:
        name = _name(attempt, "beat")
        return store.read(name) if store.exists(name) else b""

    first, deadline = beat(), time.monotonic() + DEAD_AFTER_SECONDS
    while time.monotonic() < deadline:
        time.sleep(BEAT_SECONDS / 3)
        if beat() != first:
            return True
    return False


def _holder(store: Store, attempt: int) -> str:
    holder = json.loads(store.read(_name(attempt, "json")))
    return f"Process {holder['pid']} on {holder['host']}"


def _name(attempt: int, kind: str) -> str:
    return f"{attempt:06d}.{kind}"
