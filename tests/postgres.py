"""A PostgreSQL of a test: its own cluster in a folder for temporary files, on loopback, run by a user without rights.

Needs PostgreSQL's server programs (Debian: `apt-get install postgresql`). Tests marked `postgres` are deselected where
they are missing, and the run says so.
"""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

USER, DATABASE = "wsol", "studies"
MISSING = "tests of PostgreSQL were deselected: its server programs are missing (Debian: apt-get install postgresql)"


def programs() -> Path | None:
    """The folder of PostgreSQL's server programs, which Debian keeps off the PATH."""
    folders = [*Path("/usr/lib/postgresql").glob("*/bin"), *map(Path, os.environ["PATH"].split(":"))]
    return next((folder for folder in folders if (folder / "initdb").exists() and (folder / "psql").exists()), None)


def deselect(config: pytest.Config, items: list[pytest.Item]) -> int:
    """Take the tests marked `postgres` out of `items` where they cannot be run; how many those are."""
    without = [] if programs() else [item for item in items if item.get_closest_marker("postgres")]
    if without:
        config.hook.pytest_deselected(items=without)
        items[:] = [item for item in items if item not in without]
    return len(without)


def unprivileged(folder: Path) -> dict[str, Any]:
    """How `subprocess` runs a program as a user to whom `folder` belongs from now on: root is refused by PostgreSQL."""
    if os.geteuid() != 0:
        return {}
    shutil.chown(folder, "nobody", "nogroup")
    return {"user": "nobody", "group": "nogroup", "extra_groups": []}


@dataclass(frozen=True)
class Postgres:
    """One address, behind which one cluster after another may run: each is a folder by its name."""

    folder: Path
    port: int
    password: str

    def url(self, password: bool = False) -> str:
        """For SQLAlchemy; with its `password`, or for somebody who has it in PGPASSWORD."""
        secret = f":{self.password}" if password else ""
        return f"postgresql+psycopg://{USER}{secret}@127.0.0.1:{self.port}/{DATABASE}"

    def run(self, program: str, *arguments: object) -> None:
        """One of PostgreSQL's programs, as the server's user. Raises `RuntimeError` with what it said if it fails."""
        bin_folder, said = programs(), self.folder / "said"
        assert bin_folder
        with said.open("w") as log:  # no pipe: a server that was started would hold it
            ended = subprocess.run(
                [bin_folder / program, *map(str, arguments)], env=os.environ | {"PGPASSWORD": self.password},
                stdout=log, stderr=log, cwd="/", **unprivileged(self.folder),
            )  # fmt: skip
        if ended.returncode:
            logs = "".join(path.read_text()[-1500:] for path in self.folder.glob("log-*"))
            raise RuntimeError(f"{program} ended with {ended.returncode}: {said.read_text()}{logs}")

    def make(self, name: str) -> None:
        """A new, empty cluster."""
        (self.folder / "password").write_text(self.password)
        (self.folder / "password").chmod(0o644)
        where = ("-D", self.folder / name, "-U", USER, "--pwfile", self.folder / "password")
        self.run("initdb", *where, "--auth=scram-sha-256", "--no-sync")

    def copy(self, name: str, *arguments: str) -> None:
        """A copy of the cluster that runs; with `-R` one that follows it when it is started."""
        self.run("pg_basebackup", *self.address(), "-D", self.folder / name, "-c", "fast", *arguments)

    def clone(self, name: str, to: str) -> None:
        """A copy of a cluster that does not run, as `copy` made it."""
        names = [self.folder / name, self.folder / to]
        subprocess.run(["cp", "-a", *names], check=True, cwd="/", **unprivileged(self.folder))

    def start(self, name: str, port: int | None = None, **settings: object) -> None:
        """Let a cluster answer at the address, or at another `port`, once it has recovered."""
        told = {"listen_addresses": "127.0.0.1", "unix_socket_directories": self.folder, "fsync": "off", **settings}
        options = "".join(f" -c {key}='{value}'" for key, value in told.items())
        log = self.folder / f"log-{name}"
        where = ("-D", self.folder / name, "-l", log, "-o", f"-p {port or self.port}{options}")
        self.run("pg_ctl", "start", "-w", "-t", 120, *where)

    def stop(self, name: str, mode: str = "immediate") -> None:
        """End a cluster: `immediate` is a crash."""
        self.run("pg_ctl", "stop", "-w", "-D", self.folder / name, "-m", mode)

    def promote(self, name: str) -> None:
        """Let a standby be the server to write to."""
        self.run("pg_ctl", "promote", "-w", "-D", self.folder / name)

    def sql(self, statement: str, database: str = DATABASE) -> str:
        """What `statement` gives, as text."""
        self.run("psql", *self.address(), "-d", database, "-v", "ON_ERROR_STOP=1", "-Atc", statement)
        return (self.folder / "said").read_text().strip()

    def address(self) -> tuple[object, ...]:
        """Of the server, for its client programs."""
        return "-h", "127.0.0.1", "-p", self.port, "-U", USER


@contextlib.contextmanager
def postgres(port: int, password: str) -> Iterator[Postgres]:
    """An address for clusters; what still runs at the end is ended, and all is removed."""
    server = Postgres(Path(tempfile.mkdtemp(prefix="wsol-pg-")), port, password)
    server.folder.chmod(0o755)
    try:
        yield server
    finally:
        for running in server.folder.glob("*/postmaster.pid"):
            with contextlib.suppress(RuntimeError):
                server.stop(running.parent.name)
        shutil.rmtree(server.folder, ignore_errors=True)
