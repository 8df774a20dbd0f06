"""A checkpoint that a disk or bucket has truncated, altered or lost: never loaded, named, and the one before serves."""

import contextlib
import logging
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from tests.reliability.exits import import_tiny, in_a_process, plan_of, weights_of
from tests.reliability.row import Injection, Row
from wsol_pipeline.storage import Store
from wsol_pipeline.training.checkpoint import SEAL, CheckpointStore, Position
from wsol_pipeline.training.config import Job
from wsol_pipeline.training.loop import Order, World
from wsol_pipeline.training.run import epochs

HARMS = ("truncate", "flip a bit of", "lose")
FILES = ("state.pt", "records.json", SEAL)
NEWEST, BEFORE = Position(0, 56), Position(0, 28)


class Killed(BaseException):
    """The end of a training after the checkpoint at `NEWEST`."""


def inject(times: int, folder: Path) -> Iterator[Injection]:
    assert in_a_process(import_tiny, folder) == 0
    plan = plan_of(folder, folder)
    begun, undisturbed = (plan.job({}, 0, Store.at(folder / name), 1, "cpu") for name in ("begun", "undisturbed"))
    list(epochs(undisturbed, World()))
    with contextlib.suppress(Killed):
        list(epochs(begun, World(orders=end_at_newest)))
    draw = random.Random(0)
    for number in range(times):
        harm, name = HARMS[number % 3], FILES[number // 3 % 3]
        yield continued(plan.job({}, 0, Store.at(folder / "harmed"), 2, "cpu"), begun, undisturbed, harm, name, draw)
        shutil.rmtree(folder / "harmed")


def end_at_newest(position: Position) -> Order:
    if position > NEWEST:
        raise Killed
    return Order.GO_ON


def continued(job: Job, begun: Job, undisturbed: Job, harm: str, name: str, draw: random.Random) -> Injection:
    """A copy of a trial that was `begun`, harmed and trained to its end."""
    shutil.copytree(begun.trial, job.trial)
    file = Path(job.trial) / f"attempt-0001/e0000-s{NEWEST.samples:08d}" / name
    data = bytearray(file.read_bytes())
    if harm == "truncate":
        file.write_bytes(data[: draw.randrange(len(data))])
    elif harm == "lose":
        file.unlink()
    else:
        bit = draw.randrange(8 * len(data))
        data[bit // 8] ^= 1 << bit % 8
        file.write_bytes(data)
    said, started = Said(), time.monotonic()
    logger = logging.getLogger("wsol_pipeline.training.checkpoint")
    logger.addHandler(said)
    logger.propagate = False
    checkpoints = CheckpointStore(Store.at(job.trial), 2)
    found = checkpoints.newest()
    seconds = time.monotonic() - started
    list(epochs(job, World()))
    logger.removeHandler(said)
    logger.propagate = True
    where, unsealed = f"{harm} {name}", (harm, name) == ("lose", SEAL)  # without a seal it never was a checkpoint
    if found is None or found.position != BEFORE:
        return Injection(where, wrong=f"{found and found.position} was loaded, not {BEFORE}")
    if not unsealed and file.parent.name not in "".join(said.lines):
        return Injection(where, wrong=f"the broken checkpoint was not named: {said.lines}")
    wrong = "" if weights_of(job.trial) == weights_of(undisturbed.trial) else "other weights at the end"
    return Injection(where, (NEWEST.samples - BEFORE.samples) // 14, seconds, wrong)


class Said(logging.Handler):
    """Keeps what was logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


ROW = Row("checkpoints", "checkpoint truncated, bit flipped or a file of it missing", 100, "batches", 2, 10, inject)
