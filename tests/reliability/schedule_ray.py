"""Faults drawn at random, at random moments of studies on real Ray: told from outside, as those of `schedule`.

    python -m tests.reliability.schedule_ray --seed 3 --count 1   # draws the same faults at the same batches again

Batches are the moments: processes are the system's, so a replay meets them as closely as processes allow.
"""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil

from tests.reliability import schedule
from tests.reliability.row import Injection, Row
from tests.reliability.schedule import TRIALS, damage, make_base, prepare, run_all
from tests.reliability.studies import Study, study
from wsol_pipeline.console.main import run_main

STUDY = f"--trials {TRIALS} --concurrent 2 --epochs 4"
AFTER = 40  # batches of a study, about: faults are drawn among them
CODES = (0, 4, 5, -signal.SIGKILL)  # how a driver may end
KINDS: dict[str, Callable[[Study, random.Random], None]] = {}


def kind(strike: Callable[[Study, random.Random], None]) -> Callable[[Study, random.Random], None]:
    KINDS[strike.__name__.replace("_", " ")] = strike
    return strike


@kind
def worker_killed(running: Study, draw: random.Random) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(draw.choice(running.lines()).pid, signal.SIGKILL)


@kind
def worker_stopped_for_a_while(running: Study, draw: random.Random) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        worker = psutil.Process(running.lines()[-1].pid)
        worker.suspend()
        time.sleep(draw.uniform(0.5, 5))
        worker.resume()


@kind
def driver_killed(running: Study, draw: random.Random) -> None:
    running.driver.kill()


@kind
def driver_stopped_for_a_while(running: Study, draw: random.Random) -> None:
    running.driver.send_signal(signal.SIGSTOP)
    time.sleep(draw.uniform(0.5, 8))
    running.driver.send_signal(signal.SIGCONT)


@kind
def cache_damaged(running: Study, draw: random.Random) -> None:
    """Removed alone: what is cut under a worker that has it mapped is a death of that worker, `worker killed`."""
    damage(running.folder / "pixels/pixels", 4 * draw.randrange(3))


@kind
def checkpoint_damaged(running: Study, draw: random.Random) -> None:
    damage(running.folder / "runs/s/trials", draw.randrange(100), "e0*/*")
    running.driver.kill()


def run_schedule(base: Path, root: Path, seed: int) -> tuple[str, str]:
    """What happened to the study of `seed`, and what was wrong with it."""
    draw, happened, codes = random.Random(seed), [], list[int]()
    prepare(base, root, reference=False)
    for _ in range(schedule.CLEAN):
        faults = [(draw.choice([*KINDS]), draw.randrange(2, AFTER)) for _ in range(draw.randint(1, 2))]
        struck = len(codes) < 2 and bool(faults)
        with study(root, root / "data", STUDY) as running:
            began = len(running.lines())
            for name, batches in faults if struck else ():
                with contextlib.suppress(RuntimeError):  # it ended before
                    running.wait(lambda lines, least=began + batches: len(lines) >= least)
                    KINDS[name](running, draw)
                    happened.append(f"{name} at batch {len(running.lines())}")
            codes.append(running.driver.wait(timeout=900))
        if codes[-1] == 0:
            break
    told = (root / "log").read_text()[-1200:]
    if odd := [code for code in codes if code not in CODES]:
        return "; ".join(happened), f"a driver ended with {odd[0]} ({codes}): {told}"
    if codes[-1] != 0:
        return "; ".join(happened), f"the study does not end ({codes}): {told}"
    outside = [sys.executable, "-I", str(schedule.OUTSIDE), str(root)]
    ended = subprocess.run(outside, capture_output=True, text=True, check=False)
    return "; ".join(happened), f"{ended.stdout}{ended.stderr[-1500:]}".strip()


def inject(times: int, folder: Path, seed: int = 0, keep: bool = False) -> Iterator[Injection]:
    """`times` schedules, from `seed` on."""
    make_base(folder / "base")
    for number in range(seed, seed + times):
        root, began = folder / str(number), time.monotonic()
        happened, wrong = run_schedule(folder / "base", root, number)
        if not keep:
            shutil.rmtree(root)
        yield Injection(f"seed {number}, {time.monotonic() - began:.0f} s ({happened})", wrong=wrong)


ROW = Row("schedule-ray", "faults drawn at random, at random moments of a study on Ray", 30, "trials", 0, 900, inject)

if __name__ == "__main__":
    run_main(partial(run_all, inject, __doc__))
