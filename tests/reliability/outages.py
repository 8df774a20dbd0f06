"""A study whose database another process has locked, or whose disk is full: told in a line, and continued later.

MLflow that is away has tests of its own (tests/end_to_end/test_mlflow_away.py). Filling a disk needs the right to mount
a small one.
"""

import contextlib
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.reliability.exits import import_data, in_a_process
from tests.reliability.row import Injection, Row
from tests.reliability.studies import study

OPTIONS = "--trials 2 --concurrent 1 --epochs 30"
DISK = "48m"
Outage = Callable[[Path], "contextlib.AbstractContextManager[None]"]


def inject(times: int, folder: Path) -> Iterator[Injection]:
    """Database and disk in turn."""
    assert in_a_process(import_data, folder / "data", 96, 24) == 0
    outages: tuple[Outage, ...] = (locked, full)
    for number in range(times):
        outage = outages[number % 2]
        with small_disk(folder / str(number)) as where:
            yield out_of_service(where, folder / "data", outage)


def out_of_service(where: Path, data: Path, outage: Outage) -> Injection:
    """An outage while a study trains, then its command again."""
    name, said = outage.__name__, ""
    with study(where, data, OPTIONS) as running:
        running.wait(lambda lines: len(lines) > 10)
        began = time.time()
        with outage(where / "runs"):
            code = running.driver.wait(timeout=300)
        seconds, said = time.time() - began, running.said().splitlines()[-1]
    if code != 4 or not said.startswith("error: "):
        return Injection(name, seconds=seconds, wrong=f"exit code {code}: {said}")
    with study(where, data, OPTIONS) as again:
        wrong = again.finish()
        states = again.states()
    return Injection(
        f"{name} ({said[:120]})", seconds=seconds, wrong=wrong or ("" if states == ["COMPLETE"] * 2 else str(states))
    )


@contextlib.contextmanager
def locked(storage: Path) -> Iterator[None]:
    """Another process writes to the study's database, and does not end."""
    with contextlib.closing(sqlite3.connect(storage / "s/study.db", timeout=60, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield


@contextlib.contextmanager
def full(storage: Path) -> Iterator[None]:
    """Something else has filled the disk."""
    ballast = storage / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    yield
    ballast.unlink()


@contextlib.contextmanager
def small_disk(where: Path) -> Iterator[Path]:
    """A folder whose `runs` is a disk of its own; the rest of it is not."""
    (where / "runs").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "none", str(where / "runs")], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", "--lazy", str(where / "runs")], check=True)
        shutil.rmtree(where)


ROW = Row("outages", "database locked, disk full", 2, "trials", 0, 180, inject)
