"""What a study needs and does not have: its database, disk, shared memory, MLflow. Told in a line, continued later.

The disk that fills up is a small one, mounted for it, as is the shared memory: both want the right to mount.
"""

import contextlib
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from tests.reliability.exits import import_data, in_a_process
from tests.reliability.row import Injection, Row
from tests.reliability.studies import Study, study
from tests.servers import FaultProxy, running_mlflow, serving

OPTIONS = "--trials 2 --concurrent 1 --epochs 30"
DISK = "48m"
OWN_SHARED_MEMORY = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=800m none /dev/shm && exec "$@"', "sh")


@dataclass(frozen=True)
class Outage:
    """What `happens` to a running study, until the block ends, and the exit code that is due."""

    name: str
    happens: Callable[[Study], AbstractContextManager[None]]
    code: int = 4
    options: str = ""
    extra: dict[str, str] = field(default_factory=dict)
    prefix: tuple[str, ...] = ()


def inject(times: int, folder: Path) -> Iterator[Injection]:
    """Each in turn."""
    assert in_a_process(import_data, folder / "data", 96, 24) == 0
    (folder / "mlflow").mkdir()
    with running_mlflow(folder / "mlflow") as server, serving(FaultProxy(server)) as proxy:

        @contextlib.contextmanager
        def mlflow_away(running: Study) -> Iterator[None]:
            proxy.harm("closed", method="")
            yield
            proxy.heal()

        tracked = {"MLFLOW_TRACKING_URI": proxy.url, "MLFLOW_HTTP_REQUEST_TIMEOUT": "3"}
        outages = (
            Outage("database locked", locked),
            Outage("disk full", full),
            Outage("/dev/shm full", no_shared_memory, options="--reading streaming", prefix=OWN_SHARED_MEMORY),
            Outage("MLflow away", mlflow_away, 5, extra=tracked),
        )
        for number in range(times):
            with small_disk(folder / str(number)) as where:
                yield out_of_service(where, folder / "data", outages[number % len(outages)])


def out_of_service(where: Path, data: Path, outage: Outage) -> Injection:
    """An outage while a study trains, then its command again."""
    options = f"{OPTIONS} {outage.options}"
    with study(where, data, options, extra=outage.extra, prefix=outage.prefix) as running:
        running.wait(lambda lines: len(lines) > 10)
        began = time.time()
        with outage.happens(running):
            code = running.driver.wait(timeout=800)
        seconds = time.time() - began
        said = [line for line in (where / "log").read_text().splitlines() if line.startswith("error: ")]
    if code != outage.code or len(said) != 1:
        return Injection(outage.name, seconds=seconds, wrong=f"exit code {code}: {said or running.said()}")
    with study(where, data, options, extra=outage.extra, prefix=outage.prefix) as again:
        wrong, states = again.finish(), again.states()
    if not wrong and states != ["COMPLETE"] * 2:
        wrong = f"trials are {states}"
    return Injection(f"{outage.name} ({said[0][:120]})", seconds=seconds, wrong=wrong)


@contextlib.contextmanager
def locked(running: Study) -> Iterator[None]:
    """Another process writes to the study's database, and does not end."""
    database = running.folder / "runs/s/study.db"
    with contextlib.closing(sqlite3.connect(database, timeout=60, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield


def full(running: Study) -> AbstractContextManager[None]:
    """Something else has filled the disk."""
    return filled(running.folder / "runs")


def no_shared_memory(running: Study) -> AbstractContextManager[None]:
    """Something else has filled the driver's /dev/shm, which is its own."""
    return filled(Path(f"/proc/{running.driver.pid}/root/dev/shm"))


@contextlib.contextmanager
def filled(disk: Path) -> Iterator[None]:
    ballast = disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    yield
    with contextlib.suppress(OSError):  # a mount of the driver's own is gone with it
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


ROW = Row("outages", "database locked, disk or /dev/shm full, MLflow away", 4, "trials", 0, 180, inject)
