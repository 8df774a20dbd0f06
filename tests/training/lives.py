"""Lives of one training: ranks that write down what they read, are killed, and start again in another number.

    python -m tests.training.lives lives.json

A life is a plain dict: `job` (as `to_dict(Job)`), `log` (a file that gets a line of JSON for each batch of each rank),
`dies` (a rank, and the number of the training batch at which it ends; or None), `rendezvous` (a file of its own) and
`ray` (the address of the cluster that streams, or None). Ranks are processes that train together by gloo; one kills
itself and the others are killed with it, as Ray does. Without a rendezvous they are threads, which only meet where
ranks gather: for streaming, since every process waits long for Ray's workers.
"""

import json
import multiprocessing
import os
import signal
import sys
import threading
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count, groupby
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import ray
import torch

from tests.training import ranks
from wsol_pipeline.data.dataset import open_dataset
from wsol_pipeline.data.reader import Batch, EvalRows, TrainReader
from wsol_pipeline.storage import Store
from wsol_pipeline.training.checkpoint import CheckpointStore
from wsol_pipeline.training.config import Job, from_dict
from wsol_pipeline.training.loop import World, train

READ, READ_VALIDATION = TrainReader.epoch, EvalRows.batches


class Killed(BaseException):
    """The death of a thread."""


def keep_log(life: dict[str, Any], die: Callable[[], None]) -> None:
    """Make the readers of this process write down every batch, and one `die` at the batch of its death."""
    numbers: dict[int, Iterator[int]] = defaultdict(count)

    def epoch(reader: TrainReader, epoch: int, start_sample: int = 0) -> Iterator[Batch]:
        done = start_sample
        for batch in READ(reader, epoch, start_sample):
            if [reader.rank, next(numbers[reader.rank])] == life["dies"]:
                die()
            pixels = [zlib.crc32(image.numpy().tobytes()) for image in batch.images_BCHW]
            append(life, {"epoch": epoch, "done": done, "rank": reader.rank, "ids": batch.ids, "pixels": pixels})
            yield batch
            done += batch.global_size

    def batches(rows: EvalRows) -> Iterator[Batch]:
        for batch in READ_VALIDATION(rows):
            append(life, {"validated": batch.ids, "begin": rows.begin})
            yield batch

    TrainReader.epoch, EvalRows.batches = epoch, batches  # type: ignore[method-assign]


def append(life: dict[str, Any], line: dict[str, Any]) -> None:
    with Path(life["log"]).open("a") as file:
        file.write(json.dumps({"time": time.time(), **line}) + "\n")


def live_in_processes(life: dict[str, Any], job: Job) -> None:
    fork = multiprocessing.get_context("fork")  # after the imports, which take longer than a life
    processes = [fork.Process(target=live, args=(rank, life, job)) for rank in range(job.workers)]
    for process in processes:
        process.start()
    if life["dies"]:
        wait([process.sentinel for process in processes])
        for process in processes:
            process.kill()
    for process in processes:
        process.join()
    exits = [process.exitcode for process in processes]
    if life["dies"]:  # another may have lost its connection to the dead one before it was killed itself
        assert exits[life["dies"][0]] == -signal.SIGKILL, exits
        assert set(exits) <= {-signal.SIGKILL, 1}, exits
    else:
        assert set(exits) == {0}, exits


def live(rank: int, life: dict[str, Any], job: Job) -> None:
    torch.set_num_threads(1)
    connect(life)
    keep_log(life, die=lambda: os.kill(os.getpid(), signal.SIGKILL))
    ranks.run(rank, job, life["rendezvous"])


def connect(life: dict[str, Any]) -> None:
    if life["ray"] and not ray.is_initialized():
        ray.init(address=life["ray"], logging_level="warning", log_to_driver=False)


@dataclass(frozen=True)
class ThreadWorld(World):
    """A rank that is a thread."""

    meeting: threading.Barrier = field(default_factory=lambda: threading.Barrier(1))
    brought: list[Any] = field(default_factory=lambda: [None])

    def gather(self, value: Any) -> list[Any]:
        self.brought[self.rank] = value
        self.meeting.wait()
        gathered = list(self.brought)
        self.meeting.wait()
        return gathered

    def total(self, counts: Any) -> Any:
        return sum(self.gather(counts))


def live_in_threads(life: dict[str, Any], job: Job) -> None:
    torch.set_num_threads(1)
    connect(life)
    meeting, brought = threading.Barrier(job.workers), [None] * job.workers

    def die() -> None:
        meeting.abort()
        raise Killed

    def run(rank: int) -> None:
        world = ThreadWorld(rank, job.workers, meeting=meeting, brought=brought)
        checkpoints = CheckpointStore(Store.at(job.trial), job.attempt)
        list(train(job.train, open_dataset(job.data), checkpoints, world, job.reading, job.checkpoint_batches))

    keep_log(life, die)
    with ThreadPoolExecutor(job.workers) as pool:
        ends = [future.exception() for future in [pool.submit(run, rank) for rank in range(job.workers)]]
    for end in ends:
        if not (life["dies"] and isinstance(end, Killed | threading.BrokenBarrierError)):
            assert end is None, end


def read_logs(lives: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The lines that each life has logged."""
    return [[json.loads(line) for line in Path(life["log"]).read_text().splitlines()] for life in lives]


def trained(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A life's training batches, of all ranks, in order."""
    lines = [line for line in log if "epoch" in line]
    return sorted(lines, key=lambda line: (line["epoch"], line["done"], line["rank"]))


def place(line: dict[str, Any]) -> tuple[int, int]:
    return line["epoch"], line["done"]


def counted(logs: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """What the ranks read and no kill undid: the lines of each life before the place where the next one began."""
    lives = [trained(log) for log in logs]
    ends = [place(life[0]) for life in lives[1:]] + [(2, 0)]
    return [line for life, end in zip(lives, ends, strict=True) for line in life if place(line) < end]


def steps(logs: list[list[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
    """The counted lines of each step, in the order of ranks."""
    return [list(lines) for _, lines in groupby(counted(logs), key=place)]


def joined(step: list[dict[str, Any]], name: str) -> list[Any]:
    """A step's global batch, ranks put together in their order: its "ids" or "pixels"."""
    return [value for line in step for value in line[name]]


if __name__ == "__main__":
    for life in json.loads(Path(sys.argv[1]).read_text()):
        (live_in_processes if life["rendezvous"] else live_in_threads)(life, from_dict(Job, life["job"]))
