"""Inject faults into real jobs and say what they cost: `make reliability`.

    python -m tests.reliability --only exits checkpoints --times 10 --json out.json

One row per fault: how often it was injected, what was lost, how long it took until work went on, pass or fail with the
reason. `--json` adds the rows to a file, in place of earlier ones of the same name. Ends with 1 if a row failed.
"""

import importlib
import json
import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: its threads would wait for each other on a busy machine

from tests.reliability.row import Result, Row
from wsol_pipeline import interrupts
from wsol_pipeline.console.command_line import command_line
from wsol_pipeline.console.main import run_main
from wsol_pipeline.errors import unknown

MODULES = (
    "exits", "worker_kill", "node_kill", "preemption", "driver_kill", "world_size", "object_store", "checkpoints",
    "outages", "stuck", "soak", "schedule", "schedule_ray",
)  # fmt: skip


@dataclass(frozen=True)
class Options:
    """Which faults are injected."""

    only: tuple[str, ...] = ()
    """Rows by name; by default all."""
    times: int | None = None
    """How often each is injected; by default as often as its row says."""
    json: Path | None = None
    """File to which the rows are added."""


def rows() -> dict[str, Row]:
    """Every row, by name."""
    found = [importlib.import_module(f"tests.reliability.{module}").ROW for module in MODULES]
    return {row.name: row for row in found}


def run(row: Row, times: int) -> Result:
    """Inject a row's faults, and tell each on a line."""
    result, crash = [], ""
    with tempfile.TemporaryDirectory(prefix="wsol-", ignore_cleanup_errors=True) as folder:
        try:
            for injection in row.inject(times, Path(folder)):
                seconds = "" if injection.seconds is None else f", back after {injection.seconds:.1f} s"
                print(
                    f"{row.name} {injection.where}: {injection.lost:g} {row.unit} lost{seconds} {injection.wrong}",
                    flush=True,
                )
                result.append(injection)
        except KeyboardInterrupt:
            crash = "interrupted"
        except Exception as error:  # noqa: BLE001  # whatever a row raises is its result
            traceback.print_exc()
            crash = f"{type(error).__name__}: {str(error)[:300]}"
    return Result(row, times, result, crash)


def table(results: Iterable[dict[str, Any]]) -> str:
    """The rows as a table in Markdown."""
    lines = [
        "| fault | injected | lost, at worst (limit) | s until work went on: median, worst (limit) | result |",
        "|---|---:|---:|---:|---|",
    ]
    for row in results:
        lost, seconds = row["lost"], row["seconds"]
        times = f"{seconds['median']:.1f}, {seconds['worst']:.1f} ({seconds['within']:g})" if seconds["worst"] else ""
        result = "pass" if row["passed"] else f"FAIL: {row['reason']}"
        worst = f"{lost['worst']:g} {lost['unit']} ({lost['may_lose']:g})"
        lines.append(f"| {row['fault']} | {row['injected']} | {worst} | {times} | {result} |")
    return "\n".join(lines)


def main() -> int:
    options, known = command_line(Options, sys.argv[1:], __doc__), rows()
    for name in options.only:
        if name not in known:
            raise unknown("row", name, known)
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        del os.environ[name]  # the runs of faults belong in no server of the user's
    kept = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    failed = 0
    for name in options.only or known:
        started = time.strftime("%Y-%m-%d %H:%M")
        found = run(known[name], options.times or known[name].times).to_dict()
        machine = f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}"
        kept[name] = found | {"command": " ".join(sys.argv[1:]), "date": started, "machine": machine}
        failed += not found["passed"]
        if options.json:
            options.json.write_text(json.dumps(kept, indent=1))
        if interrupts.asked():
            return interrupts.exit_code()
    print(table(kept[name] for name in options.only or known))
    return int(failed > 0)


if __name__ == "__main__":
    run_main(main)
