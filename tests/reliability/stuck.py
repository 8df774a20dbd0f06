"""A worker that stands still: a training step that never ends, and a rank that the others wait for."""

import random
import time
from collections.abc import Iterator
from pathlib import Path

from tests.reliability import trace
from tests.reliability.exits import import_data, in_a_process
from tests.reliability.row import Injection, Row
from tests.reliability.studies import INTERVAL, Study, recovered, study

LIMIT = 30.0  # seconds without a batch


def inject(times: int, folder: Path) -> Iterator[Injection]:
    """Two of three in a trial of one worker, the others in one of two, of which the last stands still."""
    assert in_a_process(import_data, folder / "data", 96, 24) == 0
    in_groups, draw = times // 3, random.Random(0)
    for workers, hangs in ((1, times - in_groups), (2, in_groups)):
        options = f"--trials 1 --workers {workers} --epochs {10 + 4 * hangs} --stuck-minutes {LIMIT / 60}"
        with study(folder / str(workers), folder / "data", options) as running:
            for _ in range(hangs):
                yield hung(running, draw, f"1 of {workers} worker(s)")
            wrong = running.finish()
            if wrong:
                yield Injection(f"after all hangs of {workers} worker(s)", wrong=wrong)


def hung(running: Study, draw: random.Random, where: str) -> Injection:
    """Let the last rank stand still, and wait until another process goes on."""
    began, batches = len(running.lines()), draw.randrange(5, 15)
    running.wait(lambda lines: len(lines) >= began + batches)
    order = running.folder / "trace" / trace.HANG
    order.touch()
    deadline = time.monotonic() + 60
    while order.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    found = recovered(running, running.lines()[-1], where)
    said = running.worker_log(int((running.folder / "trace" / trace.HUNG).read_text()))
    if "Timeout" not in said or 'trace.py", line' not in said:
        return Injection(where, found.lost, found.seconds, "no stack of the thread that stood still is in Ray's logs")
    return found


ROW = Row("stuck", f"a step or a rank that hangs, limit {LIMIT:g} s", 3, "batches", INTERVAL, 150, inject)
