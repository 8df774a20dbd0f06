"""Studies on Ray that are watched by the batches of their workers, and what they lost when something was killed."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import optuna
import psutil

from tests.reliability import trace
from tests.reliability.exits import weights_of
from tests.reliability.row import Injection
from wsol_pipeline.storage import Store
from wsol_pipeline.study.database import open_storage

ROOT = Path(__file__).parents[2]
INTERVAL = 4  # batches between checkpoints, of 6 an epoch
WAIT = 300.0  # seconds after which nothing goes on any more
OPTIONS = (
    f"--name s --batch-size 16 --image-size 32 --resize-size 36 --checkpoint-batches {INTERVAL} --published 1 "
    "--pruner none"
)


@dataclass(frozen=True)
class Study:
    """A study whose driver runs as a process of its own."""

    folder: Path
    driver: "subprocess.Popen[str]"
    ray: Path  # where Ray keeps its logs

    def lines(self) -> list[trace.Line]:
        return trace.read(self.folder / "trace")

    def wait(self, ready: Callable[[list[trace.Line]], bool], seconds: float = WAIT) -> list[trace.Line]:
        """The lines so far, once they are `ready`. Raises `RuntimeError` if the driver ends before or it takes long."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if ready(lines := self.lines()):
                return lines
            if self.driver.poll() is not None:
                raise RuntimeError(f"the driver ended with {self.driver.returncode}: {self.said()}")
            time.sleep(0.1)
        raise RuntimeError(f"nothing went on for {seconds:g} s: {self.said()}")

    def said(self) -> str:
        return (self.folder / "log").read_text()[-1500:]

    def finish(self, seconds: float = 600) -> str:
        """Wait for its end; what was wrong with it, "" if nothing."""
        code = self.driver.wait(timeout=seconds)
        return "" if code == 0 else f"the driver ended with {code}: {self.said()}"

    def worker_log(self, pid: int) -> str:
        """What a worker of the study has said."""
        return "".join(log.read_text() for log in self.ray.glob(f"wsol-*/ray/session_*/logs/worker-*-{pid}.err"))

    def states(self) -> list[str]:
        storage = open_storage(Store.at(self.folder / "runs" / "s"), None)
        return [trial.state.name for trial in optuna.load_study(study_name="s", storage=storage).trials]

    def weights(self, trials: int) -> list[str | None]:
        return [weights_of(str(self.folder / f"runs/s/trials/{number:04d}")) for number in range(trials)]


def environment_of(folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), trace.FOLDER: str(folder / "trace")}


@contextmanager
def study(
    folder: Path,
    data: Path,
    options: str,
    environment: dict[str, str] | None = None,
    extra: dict[str, str] | None = None,
    prefix: Sequence[str] = (),
) -> Iterator[Study]:
    """A study that has just started, on local Ray unless `environment` says where; its processes end with the block.

    `extra` is added to its environment, `prefix` a command that runs it.
    """
    (folder / "trace").mkdir(parents=True, exist_ok=True)
    with ray_folder() as ray:
        own = environment or environment_of(folder) | {"RAY_TMPDIR": ray}
        where = f"--data {data} --storage {folder / 'runs'} --cache-dir {folder / 'pixels'}"
        command = [sys.executable, "-m", "tests.reliability.driver", *f"{OPTIONS} {where} {options}".split()]
        with (folder / "log").open("a") as log:
            driver = subprocess.Popen(
                [*prefix, *command], cwd=ROOT, env=own | (extra or {}), stdout=log, stderr=log, text=True
            )
        try:
            yield Study(folder, driver, Path(own["RAY_TMPDIR"]))
        finally:
            family = psutil.Process(driver.pid).children(recursive=True) if driver.poll() is None else []
            driver.kill()
            for process in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            driver.wait()


@contextmanager
def ray_folder() -> Iterator[str]:
    """A folder for Ray's files, with a short name: its socket paths have a limit."""
    folder = tempfile.mkdtemp(prefix="wsol-")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def kill_worker(watched: Study, draw: random.Random) -> Injection:
    """SIGKILL the process that trained the newest batch, some batches after it began, and wait for others."""
    began = len(watched.lines())
    batches = draw.randrange(5, 15)
    lines = watched.wait(lambda lines: len(lines) >= began + batches)
    victim = lines[-1]
    os.kill(victim.pid, signal.SIGKILL)
    return recovered(watched, victim, f"worker at batch {len(lines)}")


def recovered(watched: Study, victim: trace.Line, where: str) -> Injection:
    """What the trial of `victim`, which was killed now, lost until another process went on with it."""
    killed = time.time()
    before = [line for line in watched.lines() if line.trial == victim.trial]
    dead = {line.pid for line in before}  # the other workers of a group end with one of them

    def others(lines: list[trace.Line]) -> list[trace.Line]:
        return [line for line in lines if line.trial == victim.trial and line.pid not in dead]

    first = others(watched.wait(lambda lines: bool(others(lines))))[0]
    return Injection(where, len({line.place for line in before if line.place >= first.place}), first.time - killed)
