"""Studies in a real PostgreSQL: over a crash of its server and a failover, and after a point-in-time restore."""

import contextlib
import json
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from unittest import mock

import optuna
import psutil
import pytest

from search_spaces import cam
from tests.postgres import Postgres, postgres
from tests.reliability import schedule
from tests.reliability.exits import import_data, in_a_process
from tests.reliability.schedule import Fault
from tests.reliability.studies import environment_of, study
from wsol_pipeline.errors import DataError, MismatchError
from wsol_pipeline.storage import Store
from wsol_pipeline.study.database import open_storage
from wsol_pipeline.study.identity import Home
from wsol_pipeline.study.lease import Lease
from wsol_pipeline.study.ledger import Ledger, open_ledger
from wsol_pipeline.study.options import StudyOptions
from wsol_pipeline.study.samplers import pruner, sampler

pytestmark = [pytest.mark.slow, pytest.mark.postgres, pytest.mark.timeout(1200)]
FOLLOWED = {"synchronous_standby_names": "*"}  # what is told is told to the standby too


@pytest.fixture
def server(free_port) -> Iterator[Postgres]:
    """An empty PostgreSQL that runs, cluster `first`, with a database for studies."""
    with postgres(free_port(), secrets.token_hex(16)) as found:
        found.make("first")
        (found.folder / "archive").mkdir(mode=0o777)
        (found.folder / "archive").chmod(0o777)
        found.start("first", archive_mode="on", archive_command=f"cp %p {found.folder}/archive/%f")
        found.sql("CREATE DATABASE studies", "postgres")
        yield found


def fail_over(server: Postgres) -> None:
    """A standby takes the first cluster's address; for a second it only lets others read."""
    server.stop("first")
    server.stop("second", "fast")
    server.start("second")
    time.sleep(1)
    server.promote("second")


@contextlib.contextmanager
def command_lines() -> Iterator[set[str]]:
    """All that `ps` shows meanwhile, of every process of the machine."""
    seen, over = set[str](), threading.Event()

    def look() -> None:
        while not over.wait(0.2):
            seen.update(" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"]))

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    try:
        yield seen
    finally:
        over.set()
        looking.join()


def holding(secret: str, *folders: Path) -> list[Path]:
    """Files below `folders` that hold `secret`."""
    files = (path for folder in folders for path in folder.rglob("*") if path.is_file())
    return [path for path in files if secret.encode() in path.read_bytes()]


def test_a_study_goes_on_over_a_crash_and_a_failover_and_tells_its_password_nobody(server, free_port, tmp_path):
    assert in_a_process(import_data, tmp_path / "data", 64, 16) == 0
    root, config = tmp_path / "root", tmp_path / "secret/config.yaml"
    root.mkdir()
    config.parent.mkdir()
    config.write_text(f"study_db: {server.url(password=True)}\n")
    server.copy("second", "-R")
    server.start("second", free_port(), wal_retrieve_retry_interval="200ms")
    server.stop("first", "fast")
    server.start("first", **FOLLOWED)
    options = f"--trials 3 --concurrent 2 --epochs 4 --config {config}"
    with command_lines() as seen, study(root, tmp_path / "data", options) as running:
        running.wait(lambda lines: len(lines) >= 6)
        server.stop("first")
        time.sleep(3)
        server.start("first", **FOLLOWED)
        running.wait(lambda lines: len(lines) >= 24)
        fail_over(server)
        assert running.finish() == ""
        assert holding(server.password, root, running.ray) == []
        page = report(root, server)
    told = (root / "log").read_text()
    assert told.count("is away, and waited for") >= 2
    assert "Traceback" not in told
    assert "max_box_acc_v2" in page
    assert [line for line in seen if server.password in line] == []
    assert any("tests.reliability.driver" in line for line in seen)
    assert any("ray::" in line for line in seen)
    kept = optuna.load_study(study_name="s", storage=server.url(password=True))
    assert [trial.state.name for trial in kept.trials] == ["COMPLETE"] * 3
    assert server.password not in json.dumps([kept.user_attrs, *(trial.user_attrs for trial in kept.trials)])


def report(root: Path, server: Postgres) -> str:
    """The page about the study, made by a process that has the password in its environment."""
    where = ("--study", "s", "--storage", root / "runs", "--study-db", server.url())
    made = subprocess.run(
        [sys.executable, "rayjobs/report.py", *where],
        env=environment_of(root) | {"PGPASSWORD": server.password},
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stdout + made.stderr
    assert holding(server.password, root) == []
    assert server.password not in made.stdout + made.stderr
    return (root / "runs/s/report.html").read_text()


def ledger(server: Postgres, folder: Path) -> Ledger:
    storage = open_storage(Store.at(folder), server.url(password=True))
    return open_ledger(
        storage, "s", space=cam.space, contract={"data": "d"}, published={}, sampler=sampler("random", 0, 1),
        pruner=pruner("none", 1, 4), home=Home("1" * 32, str(folder)), lease=Lease(Store.at(folder / "lease"), 1),
    )  # fmt: skip


def test_a_standby_that_lagged_is_noticed_by_the_driver_that_lives(server, free_port, tmp_path):
    book = ledger(server, tmp_path)
    book.complete(book.ask().number, 1.0)
    server.copy("second", "-R")
    book.complete(book.ask().number, 2.0)
    server.start("second", free_port(), primary_conninfo="")
    fail_over(server)
    with pytest.raises(MismatchError, match="older state: trial 1 was RUNNING and now is not there"):
        book.ask()
    assert ledger(server, tmp_path).ask().number == 1


def life(server: Postgres, root: Path, trials: int, *faults: Fault) -> int:
    """The exit code of a driver of the study below `root`, that trains in itself."""
    with (
        mock.patch.object(schedule, "TRIALS", trials),
        mock.patch.object(schedule, "StudyOptions", partial(StudyOptions, study_db=server.url())),
        mock.patch.dict(os.environ, {"PGPASSWORD": server.password}),
    ):
        return in_a_process(schedule.live, root, [*faults], False)


def restore(server: Postgres, point: str) -> None:
    """Let the database be what it was at a restore point of the first cluster."""
    server.clone("backup", point)
    (server.folder / point / "recovery.signal").touch()
    server.start(
        point, restore_command=f"cp {server.folder}/archive/%f %p", recovery_target_name=point,
        recovery_target_action="promote", recovery_target_timeline="1",
    )  # fmt: skip


def test_a_database_restored_to_an_earlier_time_is_what_an_older_file_is(server, tmp_path, capfd):
    root, runs = tmp_path / "root", tmp_path / "root/runs/s"
    with mock.patch.object(schedule, "TRIALS", 1):
        schedule.make_base(tmp_path / "base")
    schedule.prepare(tmp_path / "base", root, reference=False)
    server.copy("backup")
    assert life(server, root, 1) == 0
    server.sql("SELECT pg_create_restore_point('one')")
    assert life(server, root, 3, Fault("kill", 210, 1)) == -9
    assert server.sql("SELECT string_agg(state::text, ' ' ORDER BY number) FROM trials") == "COMPLETE COMPLETE RUNNING"
    server.sql("SELECT pg_create_restore_point('midst')")
    assert life(server, root, 3) == 0
    ended = "SELECT number, state, value FROM trials JOIN trial_values USING (trial_id) ORDER BY number"
    right, winner = server.sql(ended), (runs / "winner.json").read_bytes()
    assert right.count("COMPLETE") == 3
    server.sql("SELECT pg_switch_wal()")
    server.stop("first", "fast")

    restore(server, "midst")
    assert life(server, root, 3) == 0
    assert (server.sql(ended), (runs / "winner.json").read_bytes()) == (right, winner)
    server.stop("midst", "fast")

    restore(server, "one")
    assert life(server, root, 3) == DataError.exit_code
    told = "".join(capfd.readouterr())
    assert "trials/0001 is of a trial that the study's database, which knows 1, has never heard of" in told
    for number in ("0001", "0002"):
        (runs / "trials" / number).rename(tmp_path / number)
    assert life(server, root, 3) == 0
    assert server.sql(ended).count("COMPLETE") == 3
    told += "".join(capfd.readouterr())
    assert "Traceback" not in told
    assert server.password not in told
    assert holding(server.password, root) == []
