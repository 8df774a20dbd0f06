"""Ranks of torch.distributed (gloo), as processes of their own: train the cases of test_workers.py one after another.

    python tests/training/ranks.py 3 cases.json

A case is a plain dict: `job` (as `to_dict(Job)`; trained by as many ranks as its `workers`), `rendezvous` (a file of
its own), `stop_at` ([epoch, samples] at which rank 0 is asked to stop before all go on, or null) and, if compiled,
`backend`; how many graphs a rank traced is then beside the rendezvous. Ranks are forked after the imports, which take
longer than all cases.
"""

import dataclasses
import json
import multiprocessing
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from wsol_pipeline.data.dataset import open_dataset
from wsol_pipeline.storage import Store
from wsol_pipeline.training import compiling
from wsol_pipeline.training.checkpoint import CheckpointStore, Position
from wsol_pipeline.training.config import Job, from_dict
from wsol_pipeline.training.loop import Order, World, ddp_options, train


def run_all(rank: int, cases: list[dict[str, Any]]) -> None:
    torch.set_num_threads(1)
    for case in cases:
        job = from_dict(Job, case["job"])
        compiling.BACKEND = case.get("backend", compiling.BACKEND)
        run(rank, job, case["rendezvous"], case["stop_at"])
        if job.train.compile:
            traced = torch._dynamo.utils.counters["stats"]["unique_graphs"]
            Path(f"{case['rendezvous']}.graphs-{rank}").write_text(str(traced))


def run(rank: int, job: Job, rendezvous: str, stop_at: list[int] | None = None) -> None:
    if rank >= job.workers:
        return
    torch.distributed.init_process_group("gloo", f"file://{rendezvous}", world_size=job.workers, rank=rank)
    ddp = torch.nn.parallel.DistributedDataParallel
    world = World(rank, job.workers, wrap=lambda method: ddp(method, **ddp_options(method)))
    checkpoints = CheckpointStore(Store.at(job.trial), job.attempt)
    reached = Position(*stop_at or ())
    stopped = dataclasses.replace(world, orders=lambda at: Order.STOP if at >= reached else Order.GO_ON)
    for life in [stopped, world] if stop_at else [world]:
        list(train(job.train, open_dataset(job.data), checkpoints, life, job.reading, job.checkpoint_batches))
    torch.distributed.destroy_process_group()


def main(size: int, cases: list[dict[str, Any]]) -> int:
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=run_all, args=(rank, cases)) for rank in range(size)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    return max(abs(rank.exitcode or 0) for rank in ranks)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())))
