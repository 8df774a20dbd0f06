"""Trainings on Ray whose workers write down every batch, and stand still when they find a file that says so."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from wsol_pipeline.training import loop, run

FOLDER = "WSOL_TRACE"  # the environment variable that names where
PACE = 0.03  # seconds more for a batch: tiny ones would be over before they can be killed
HANG, HUNG = "hang", "hung"  # the file at which the last rank stands still, and the one that has its process id then
WORKER_LOOP = run.worker_loop


class Line(NamedTuple):
    """A batch that was trained on: when, in which process, and which."""

    time: float
    pid: int
    trial: str
    rank: int
    epoch: int
    samples: int

    @property
    def place(self) -> tuple[int, int]:
        return self.epoch, self.samples


def read(folder: Path) -> list[Line]:
    """What all workers have written so far, in the order of time."""
    whole = (text for file in folder.glob("*.trace") for text in file.read_text().splitlines(keepends=True))
    return sorted(Line(*json.loads(text)) for text in whole if text.endswith("\n"))


@contextmanager
def tracing() -> Iterator[None]:
    """Within, this process writes down its batches."""
    folder, step = Path(os.environ[FOLDER]), loop.train_step

    def traced(training: loop.Run, epoch: int, batch: Any) -> None:
        world = training.world
        if world.rank == world.size - 1 and (folder / HANG).exists():
            (folder / HUNG).write_text(str(os.getpid()))
            (folder / HANG).unlink()
            time.sleep(10**6)
        step(training, epoch, batch)
        trial, samples = training.checkpoints.trial.name, training.progress.position.samples
        line = [time.time(), os.getpid(), trial, world.rank, epoch, samples]
        with (folder / f"{os.getpid()}.trace").open("a") as file:
            file.write(json.dumps(line) + "\n")
        time.sleep(PACE)

    with mock.patch.object(loop, "train_step", traced):
        yield


def run_on_one_device(payload: dict[str, Any]) -> None:
    with tracing():
        run.run_on_one_device(payload)


def run_on_workers(payload: dict[str, Any]) -> None:
    with mock.patch.object(run, "worker_loop", worker_loop):
        run.run_on_workers(payload)


def worker_loop(config: dict[str, Any]) -> None:
    with tracing():
        WORKER_LOOP(config)
