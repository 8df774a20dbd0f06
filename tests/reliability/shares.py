"""Storage as one machine of several sees it: what others change shows late, and what was read is kept for a while."""

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from wsol_pipeline.storage import Store


class Machine:
    """What a machine keeps of a share: names, that they are missing included, contents and lists, for `late` seconds.

    That is how NFS's clients do it. What it changes itself it sees at once.
    """

    def __init__(self, late: float) -> None:
        self.late, self.kept = late, dict[tuple[str, str], tuple[float, Any]]()

    def look(self, kind: str, path: str, ask: Callable[[], Any]) -> Any:
        at, value = self.kept.get((kind, path), (-self.late, None))
        if time.monotonic() - at >= self.late:
            value = ask()
            self.kept[kind, path] = time.monotonic(), value
        return value

    def forget(self, path: str) -> None:
        """This machine has changed `path`."""
        for kind, kept in [*self.kept]:
            if kept == path or (kind == "list" and path.startswith(f"{kept}/")):
                del self.kept[kind, kept]


def _contents(path: str) -> bytes | None:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def late_share(late: float) -> Iterator[Machine]:
    """Within, every `Store` is a share as this process's machine sees it; a process that is forked is another one."""
    machine, real = Machine(late), {name: getattr(Store, name) for name in ("write", "create", "remove", "list")}

    def read(store: Store, name: str) -> bytes:
        path = store.path(name)
        data = machine.look("file", path, lambda: _contents(path))
        if data is None:
            raise FileNotFoundError(path)
        return data

    def exists(store: Store, name: str = "") -> bool:
        path = store.path(name)
        return Path(path).is_dir() or machine.look("file", path, lambda: _contents(path)) is not None

    def listed(store: Store, prefix: str = "") -> list[str]:
        return [*machine.look("list", store.path(prefix), lambda: real["list"](store, prefix))]

    def changing(name: str) -> Callable[..., Any]:
        def change(store: Store, file: str, *args: Any) -> Any:
            done = real[name](store, file, *args)
            if done is not False:
                machine.forget(store.path(file))
            return done

        return change

    seen = {"read": read, "exists": exists, "list": listed, "size": lambda store, name: len(store.read(name))}
    seen |= {"read_range": lambda store, name, begin, end: store.read(name)[begin:end]}
    with mock.patch.multiple(Store, **seen, **{name: changing(name) for name in ("write", "create", "remove")}):
        yield machine


@contextlib.contextmanager
def failing(call: str, at: int, times: int, told: Path, error: int) -> Iterator[None]:
    """Within, `os.<call>` fails `times` times, from the `at`-th on of this process and of those that it forks.

    Each time is noted in the file `told`, so that a process that comes later fails no more.
    """
    real, count = getattr(os, call), itertools.count()

    def broken(*args: Any, **options: Any) -> Any:
        if next(count) >= at and (told.stat().st_size if told.exists() else 0) < times:
            with told.open("a") as file:
                file.write("x")
            raise OSError(error, os.strerror(error))
        return real(*args, **options)

    with mock.patch.object(os, call, broken):
        yield
