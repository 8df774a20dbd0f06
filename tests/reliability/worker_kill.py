"""SIGKILL of a real training worker: what was lost, how long it took, and the same weights at the end."""

import random
from collections.abc import Iterator
from pathlib import Path

from tests.reliability.exits import import_data, in_a_process
from tests.reliability.row import Injection, Row
from tests.reliability.studies import INTERVAL, kill_worker, study


def inject(times: int, folder: Path) -> Iterator[Injection]:
    """Two of three kills meet a trial of one worker; the others one of two, which both begin again."""
    assert in_a_process(import_data, folder / "data", 96, 24) == 0
    in_groups = times // 3
    for workers, kills in ((1, times - in_groups), (2, in_groups)):
        options = f"--trials 1 --workers {workers} --epochs {10 + 4 * kills}"
        with study(folder / f"undisturbed-{workers}", folder / "data", options) as undisturbed:
            assert not (wrong := undisturbed.finish()), wrong
        draw = random.Random(0)
        with study(folder / f"killed-{workers}", folder / "data", options) as killed:
            for _ in range(kills):
                yield kill_worker(killed, draw)
            wrong = killed.finish()
            if not wrong and killed.weights(1) != undisturbed.weights(1):
                wrong = "other weights at the end"
            if wrong:
                yield Injection(f"after all kills of {workers} worker(s)", wrong=wrong)


ROW = Row("worker-kill", "SIGKILL a training worker", 12, "batches", INTERVAL, 120, inject)
