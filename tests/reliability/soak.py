"""A study of tiny trials, of which a worker is killed every minute: nothing is lost, nothing grows, nothing is left."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from tests.reliability import trace
from tests.reliability.exits import import_data, in_a_process
from tests.reliability.row import Injection, Row
from tests.reliability.studies import INTERVAL, Study, recovered, study

TRIALS, EPOCHS = 10_000, 12  # more trials than there is time for
GROWTH_MB, GROWTH_FDS = 150.0, 20  # of the driver, from the first third of the soak to the last


def inject(times: int, folder: Path) -> Iterator[Injection]:
    """A kill each minute, so `times` minutes; then the driver is asked to end."""
    assert in_a_process(import_data, folder / "data", 96, 24) == 0
    shared = psutil.disk_usage("/dev/shm").used
    options = f"--trials {TRIALS} --concurrent 2 --epochs {EPOCHS}"
    used = []
    with study(folder, folder / "data", options) as running:
        family = psutil.Process(running.driver.pid)
        for minute in range(times):
            due = time.monotonic() + 60
            victim = running.wait(in_the_midst)[-1]
            os.kill(victim.pid, signal.SIGKILL)
            yield recovered(running, victim, f"minute {minute + 1}")
            time.sleep(max(0.0, due - time.monotonic()))
            used.append((family.memory_info().rss / 2**20, family.num_fds()))
        processes = family.children(recursive=True)
        running.driver.terminate()
        code = running.driver.wait(timeout=800)
        left = psutil.wait_procs(processes, timeout=150)[1]
        grown = psutil.disk_usage("/dev/shm").used - shared
        wrong = "; ".join(
            [
                *([f"the driver ended with {code}"] if code != 143 else []),
                *([f"{len(left)} processes are left"] if left else []),
                *([f"/dev/shm holds {grown / 2**20:.0f} MiB more"] if grown > 50 * 2**20 else []),
                *growth(used),
                *lost(running),
            ]
        )
    done = running.states().count("COMPLETE")
    used_by = " to ".join(f"{mb:.0f} MiB, {files} descriptors" for mb, files in (used[0], used[-1]))
    yield Injection(f"the end after {done} trials, the driver's {used_by}", wrong=wrong)


def in_the_midst(lines: list[trace.Line]) -> bool:
    """Whether the newest batch is of a trial that has some more before it."""
    return bool(lines) and lines[-1].epoch < EPOCHS // 2 and time.time() - lines[-1].time < 1


def growth(used: list[tuple[float, int]]) -> list[str]:
    """What grew beyond its limit from the first third to the last."""
    third = max(1, len(used) // 3)
    early, late = used[:third], used[-third:]
    memory = max(mb for mb, _ in late) - max(mb for mb, _ in early)
    files = max(fds for _, fds in late) - max(fds for _, fds in early)
    found = [f"the driver grew by {memory:.0f} MiB"] if memory > GROWTH_MB else []
    return found + ([f"by {files} descriptors"] if files > GROWTH_FDS else [])


def lost(running: Study) -> list[str]:
    """Trials that failed."""
    states = running.states()
    return [f"{states.count('FAIL')} trials failed"] if "FAIL" in states else []


ROW = Row("soak", "soak: a worker killed every minute, tiny trials", 30, "batches", INTERVAL, 120, inject)
