"""Faults drawn at random, at random moments of real studies: what must hold at the end is told from outside.

    python -m tests.reliability.schedule --seed 17 --count 1   # replays one, and keeps its folder

A life is a forked process that runs a study as a job does (lease, ledger, searcher, MLflow, winner), but trains in
itself, without Ray: it takes seconds. One to three faults are drawn for each of one to three lives, each at a passing
of a point: a step of the driver or of training, a call of store, database or MLflow. Lives without faults follow until
the study is complete. The test split's shards are not there at all: whatever opened them would fail.
"""

import contextlib
import errno
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import mlflow
import sqlalchemy.exc
from optuna.storages import RDBStorage

from tests.reliability.exits import FORK, import_data, in_a_process
from tests.reliability.row import Injection, Row
from wsol_pipeline.console.command_line import command_line
from wsol_pipeline.console.main import run_main
from wsol_pipeline.data.dataset import open_dataset
from wsol_pipeline.errors import PartialError
from wsol_pipeline.storage import Store
from wsol_pipeline.study import execute, lease, mlflow_listener, mlflow_view, tuner
from wsol_pipeline.study.mlflow_listener import MlflowListener
from wsol_pipeline.study.options import StudyOptions
from wsol_pipeline.study.plan import Plan, make_plan
from wsol_pipeline.tracking.connect import connect_mlflow
from wsol_pipeline.training import cluster, loop, signals
from wsol_pipeline.training.config import Job, from_dict
from wsol_pipeline.training.run import OWN_FAILURES, _own_failures, epochs, reportable

OUTSIDE = Path(__file__).with_name("outside.py")
TRIALS, CLEAN = 3, 6  # of a study; lives without faults that may be needed after those with some
MOMENTS = 240  # passings of points of an undisturbed life, about: faults are drawn among them
PLACES = ("home", "work")  # of a life's own, which it leaves empty
ENDS = (0, 1)  # of a study: with a winner, or with the words that no trial is complete
CODES = (*ENDS, 2, 3, 4, 5, -signal.SIGKILL, -signal.SIGBUS)  # how a life may end: never with a traceback
STORE = ("read", "write", "create", "exists", "list", "remove")
LEDGER = ("create_new_trial", "set_trial_param", "set_trial_user_attr", "set_trial_intermediate_value",
          "set_trial_state_values", "get_all_trials")  # fmt: skip
TRACKING = ("create_run", "log_batch", "search_runs", "set_terminated", "create_model_version")


@dataclass(frozen=True)
class Fault:
    """What happens at the `at`-th passing of a point; `calls` is for how many of them it lasts."""

    kind: str
    at: int
    calls: int


KINDS = ("kill", "pause", "clock", "disk full", "network", "database away", "database rolled back", "stale", "slow",
         "rival", "cache", "mlflow", "mlflow lies", "data", "checkpoint", "not a number")  # fmt: skip
LAST = ("kill", "database rolled back", "checkpoint", "data")  # after which a life ends, or cannot go on


def draw(seed: int) -> tuple[list[list[Fault]], bool]:
    """The faults of each life of a schedule, and whether its drivers are of machines that don't see each other."""
    chance = random.Random(seed)
    lives = [
        sorted((Fault(chance.choice(KINDS), chance.randrange(MOMENTS), chance.randint(1, 12))
                for _ in range(chance.randint(1, 3))), key=lambda fault: fault.at)
        for _ in range(chance.randint(1, 3))
    ]  # fmt: skip
    apart = chance.random() < 0.5 or any(fault.kind == "pause" for life in lives for fault in life)
    return lives, apart


class Moments:
    """Counts the points that a life's main thread passes, and lets the faults happen at theirs."""

    def __init__(self, root: Path, faults: list[Fault]) -> None:
        self.root, self.faults, self.passed = root, list(faults), itertools.count()
        self.left: dict[str, int] = {}  # calls that a fault still lasts, by its kind
        self.offset = 0.0  # of a clock that was stepped
        self.listed: dict[tuple[str, str], list[str]] = {}

    def __call__(self, name: str) -> None:
        if threading.current_thread() is threading.main_thread():
            at = next(self.passed)
            while self.faults and self.faults[0].at <= at:
                fault = self.faults.pop(0)
                self.note(f"{fault.kind} at {at}, {name}")
                self._happen(fault)
        self._last(name)

    def note(self, text: str) -> None:
        with (self.root / "told").open("a") as file:
            file.write(f"{text}\n")

    def _happen(self, fault: Fault) -> None:
        match fault.kind:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "pause":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "clock":
                self.offset += (-1) ** fault.calls * 10.0**fault.calls % 10**7
            case "rival":
                (self.root / "rival").touch()
                while (self.root / "rival").exists():
                    time.sleep(0.02)
            case "cache":
                damage(self.root / "cache/pixels", fault.calls)
            case "data":
                swap(self.root / "data", self.root / "other")
            case "database rolled back":
                if (file := self.root / "runs/s/study.db").exists():
                    shutil.copy(file, self.root / "older.db")
                self.faults.append(Fault("kill", fault.at + 10 * fault.calls, 1))
            case "checkpoint":
                damage(self.root / "runs/s/trials", fault.calls, "e0*/*")
                os.kill(os.getpid(), signal.SIGKILL)
            case _:
                self.left[fault.kind] = fault.calls

    def _last(self, name: str) -> None:
        """What a fault that lasts does to this call."""
        what, _, verb = name.removeprefix("before ").partition(".")
        if not name.startswith("before "):
            return
        if what == "Store" and self._lasts("network"):
            raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
        if what == "Store" and verb in ("write", "create") and self._lasts("disk full"):
            raise OSError(errno.ENOSPC, "No space left on device")
        if what == "RDBStorage" and self._lasts("database away"):
            raise sqlalchemy.exc.OperationalError("SELECT", {}, Exception("server closed the connection unexpectedly"))
        if what == "MlflowClient" and self._lasts("mlflow"):
            raise mlflow.MlflowException("the server is away")
        if what == "train_step" and self._lasts("not a number"):
            raise OWN_FAILURES["nan"][0]("The loss is nan.")
        if self._lasts("slow"):
            time.sleep(0.2)

    def _lasts(self, kind: str) -> bool:
        self.left[kind] = self.left.get(kind, 0) - 1
        return self.left[kind] >= 0

    def answer(self, told: str, arguments: tuple[Any, ...], right: Any) -> Any:
        """What a call gives, while storage is stale or MLflow lies."""
        if told == "Store.list":
            key = arguments[0].uri, str(arguments[1:])
            found = self.listed.get(key, right) if self._lasts("stale") else right
            self.listed[key] = right
            return found
        if told == "MlflowClient.search_runs" and self._lasts("mlflow lies"):
            return type(right)([], None)
        return right


def damage(folder: Path, draw: int, names: str = "*/*") -> None:
    """Cut, empty, blacken or remove one of the files below `folder`, if there are any."""
    files = sorted(path for path in folder.rglob(names) if path.is_file() and path.suffix != ".lock")
    for file in files[draw % max(1, len(files)) :][:1]:
        match draw % 4:
            case 0:
                file.unlink()
            case 1:
                os.truncate(file, file.stat().st_size // 2)
            case 2:
                os.truncate(file, 0)
            case 3:
                with file.open("rb+") as opened:
                    opened.seek(file.stat().st_size // 2)
                    opened.write(bytes(64))


def swap(one: Path, other: Path) -> None:
    """Exchange two folders."""
    one.rename(f"{one}-aside")
    other.rename(one)
    Path(f"{one}-aside").rename(other)


@contextlib.contextmanager
def instrumented(moments: Moments) -> Iterator[None]:
    """Within, calls of store, ledger, MLflow and training pass points."""
    with contextlib.ExitStack() as stack:

        def wrap(owner: Any, name: str, told: str) -> None:
            original = getattr(owner, name)

            def wrapped(*args: Any, **options: Any) -> Any:
                moments(f"before {told}")
                right = moments.answer(told, args, original(*args, **options))
                moments(f"after {told}")
                return right

            stack.enter_context(mock.patch.object(owner, name, wrapped))

        for owner, names in ((Store, STORE), (RDBStorage, LEDGER), (mlflow.MlflowClient, TRACKING)):
            for name in names:
                wrap(owner, name, f"{owner.__name__}.{name}")
        wrap(loop, "train_step", "train_step")
        clock = time.time
        stack.enter_context(mock.patch.object(time, "time", side_effect=lambda: clock() + moments.offset))
        yield


def run_in_this_process(searcher: tuner.LedgerSearcher, *_: Any) -> None:
    """`run_trials` without Ray: one after the other, started again when their training dies, as Ray does it."""
    for trial in map(str, itertools.count()):
        suggested = searcher.suggest(trial)
        if not isinstance(suggested, dict):
            return
        ended = False
        for life in range(8):
            searcher.on_trial_start(trial) if life == 0 else searcher.on_trial_recover(trial)
            if ended := _trained(searcher, trial, from_dict(Job, suggested)):
                break
        searcher.on_trial_complete(trial, error=not ended)


def _trained(searcher: tuner.LedgerSearcher, trial: str, job: Job) -> bool:
    """Whether a trial came to an end of its own, or died: then it is started again."""
    training = epochs(job, loop.World())
    while True:
        try:
            with _own_failures(job):
                record = next(training, None)
                if record is not None and not searcher.record(trial, reportable(record)):
                    continue
            return True
        except OSError:  # its process dies of it
            return False


def live(root: Path, faults: list[Fault], apart: bool) -> None:
    """A life of the study below `root`; its exit code is what the job's would be."""
    os.environ["HOME"], os.environ["TMPDIR"], tempfile.tempdir = str(root / "home"), str(root / "tmp"), None
    os.chdir(root / "work")
    log = os.open(root / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1), os.dup2(log, 2)
    moments = Moments(root, faults)
    with contextlib.ExitStack() as stack:
        for owner, name, other in (
            (execute, "run_trials", run_in_this_process),
            (cluster, "connect", lambda nested: None), (cluster, "check_storage_reaches_all", lambda *_: None),
            (cluster, "check_placement", lambda *_: 1), (cluster, "pick_device", lambda *_: "cpu"),
            (tuner, "check_alive", lambda: None), (signals, "hush", lambda _: None),
            (lease, "BEAT_SECONDS", 0.5), (lease, "DEAD_AFTER_SECONDS", 6.0),
            (mlflow_listener, "draw_study", lambda *_: []), (mlflow_view, "write_surface", lambda *_: {}),
        ):  # fmt: skip
            stack.enter_context(mock.patch.object(owner, name, other))
        if apart:
            stack.enter_context(mock.patch.object(lease, "_runs_here", return_value=None))
        run_main(lambda: _study(plan_of(root), moments))


def _study(plan: Plan, moments: Moments) -> int:
    with instrumented(moments):
        listener = MlflowListener(plan)
        outcome = execute.execute(plan, [listener], moments)
    if listener.missing:
        raise PartialError(listener.missing)
    moments.note(f"passed {next(moments.passed)} moments")
    return 0 if outcome.best is not None else 3


def plan_of(root: Path) -> Plan:
    options = StudyOptions(
        name="s", data=str(root / "data"), storage=str(root / "runs"), trials=TRIALS, epochs=2, batch_size=16,
        image_size=32, resize_size=36, checkpoint_batches=2, cache_dir=str(root / "cache"), published=1, device="cpu",
        reading="cached",
    )  # fmt: skip
    return make_plan(
        options, "cam", lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-3, 0.1, log=True)}
    )


def run_life(root: Path, faults: list[Fault], apart: bool, rivals: list[int]) -> int:
    """The exit code of a life. While it stands still a second driver lives to its end; its code is put to `rivals`."""
    process = FORK.Process(target=live, args=(root, faults, apart))
    process.start()
    assert process.pid is not None
    while True:
        pid, status = os.waitpid(process.pid, os.WNOHANG | os.WUNTRACED)
        if pid and os.WIFSTOPPED(status):
            rivals.append(in_a_process(live, root, [], apart))
            os.kill(process.pid, signal.SIGCONT)
        elif pid:
            return os.waitstatus_to_exitcode(status)
        elif (root / "rival").exists():
            rivals.append(in_a_process(live, root, [], apart))
            (root / "rival").unlink()
        time.sleep(0.01)


def run_schedule(base: Path, root: Path, seed: int) -> str:
    """What was wrong with the study that the faults of `seed` struck, "" if nothing."""
    lives, apart = draw(seed)
    prepare(base, root, reference=all(fault.kind != "not a number" for life in lives for fault in life))
    codes: list[int] = []
    rivals: list[int] = []
    for faults in lives:
        codes.append(run_life(root, faults, apart, rivals))
        heal(base, root, codes, rivals)
    for _ in range(CLEAN):
        codes.append(run_life(root, [], apart, rivals))
        if codes[-1] in ENDS:
            break
    told = (root / "log").read_text()
    if odd := [code for code in (*codes, *rivals) if code not in CODES] or "Traceback" in told:
        return f"a life ended with {odd} ({codes}, rivals {rivals}): {told[-1500:]}"
    if codes[-1] not in ENDS:
        return f"the study does not end ({codes}): {told[-700:]}"
    ended = subprocess.run([sys.executable, "-I", str(OUTSIDE), str(root)], capture_output=True, text=True, check=False)
    return f"{ended.stdout}{ended.stderr[-1500:]}".strip()


def heal(base: Path, root: Path, codes: list[int], rivals: list[int]) -> None:
    """Mend what was done to the surroundings, as a person would who was told of it."""
    older, database = root / "older.db", root / "runs/s/study.db"
    if older.exists():
        newer = database.rename(root / "newer.db")
        older.rename(database)
        codes.append(run_life(root, [], False, rivals))
        if codes[-1] != 0:  # it was refused: the newer one is brought back
            newer.replace(database)
    told = json.loads((root / "expected.json").read_text())
    if open_dataset(str(root / "data")).fingerprint != told["fingerprint"]:
        swap(root / "data", root / "other")


def prepare(base: Path, root: Path, reference: bool) -> None:
    """A folder for a study: data and MLflow's tables of `base`, and what is expected."""
    for name in ("runs", "tmp", *PLACES):
        (root / name).mkdir(parents=True)
    for name in ("data", "other", "cache"):
        shutil.copytree(base / name, root / name)
    shutil.copy(base / "mlflow.db", root / "runs")
    told = json.loads((base / "expected.json").read_text())
    told["reference"] = str(base / "reference.db") if reference else ""
    (root / "expected.json").write_text(json.dumps(told))


def make_base(base: Path) -> None:
    """Data without a test split's shards, other data, a warm cache, MLflow's tables, and an undisturbed study."""
    for name, rows in (("data", 64), ("other", 48)):
        assert in_a_process(import_data, base / name, rows, 16) == 0
        shutil.rmtree(base / name / "test")
    (base / "cache").mkdir()
    assert in_a_process(connect_mlflow, Store.at(base), "wsol") == 0
    files = ("manifest.json", "train/00000.parquet", "val/00000.parquet")
    told = {
        "trials": TRIALS, "fingerprint": open_dataset(str(base / "data")).fingerprint, "places": PLACES,
        "data": {name: hashlib.sha256((base / "data" / name).read_bytes()).hexdigest() for name in files},
    }  # fmt: skip
    (base / "expected.json").write_text(json.dumps(told))
    prepare(base, base / "undisturbed", reference=False)
    code = run_life(base / "undisturbed", [], False, [])
    assert code == 0, (base / "undisturbed/log").read_text()
    shutil.copy(base / "undisturbed/runs/s/study.db", base / "reference.db")
    shutil.rmtree(base / "cache")
    shutil.copytree(base / "undisturbed/cache", base / "cache")


def inject(times: int, folder: Path, seed: int = 0, keep: bool = False) -> Iterator[Injection]:
    """`times` schedules, from `seed` on."""
    make_base(folder / "base")
    for number in range(seed, seed + times):
        root, began = folder / str(number), time.monotonic()
        wrong = run_schedule(folder / "base", root, number)
        told = (root / "told").read_text().replace("\n", "; ") if (root / "told").exists() else "nothing happened"
        if not keep:
            shutil.rmtree(root)
        seconds = time.monotonic() - began  # of the whole, which no limit is set to: machines are busy
        yield Injection(f"seed {number}, {seconds:.0f} s ({told.strip('; ')})", wrong=wrong)


@dataclass(frozen=True)
class Options:
    """Which schedules are run."""

    seed: int = 0
    """The first."""
    count: int = 1
    """How many, one seed after the other."""
    folder: Path | None = None
    """Where their studies are kept; by default in a new folder below the system's for temporary files."""


def run_all(inject: Callable[[int, Path, int, bool], Iterator[Injection]], description: str | None) -> int:
    """The schedules that the command line asks for, a line each; 1 if one of them went wrong."""
    options, wrong = command_line(Options, sys.argv[1:], description), 0
    folder = options.folder or Path(tempfile.mkdtemp(prefix="wsol-schedule-"))
    for injection in inject(options.count, folder, options.seed, True):
        print(f"{injection.where}: {injection.wrong or 'all holds'}", flush=True)
        wrong += bool(injection.wrong)
    print(f"{options.count} schedules, {wrong} with a violated invariant; their studies are in {folder}")
    return int(wrong > 0)


ROW = Row("schedule", "faults drawn at random, at random moments of a study", 300, "trials", 0, 300, inject)

if __name__ == "__main__":
    run_main(partial(run_all, inject, __doc__))
