"""Two ranks of torch.distributed (gloo), as processes of their own, train a segmentation network.

python tests/segmentation/ranks.py task.json trial-folder
"""

import json
import multiprocessing
import sys
from pathlib import Path

import torch
import torch.distributed

from wsol_pipeline.segmentation.fit import fit
from wsol_pipeline.segmentation.network import SegmentTask
from wsol_pipeline.storage import Store
from wsol_pipeline.training.checkpoint import CheckpointStore
from wsol_pipeline.training.loop import World

RANKS = 2


def run(rank: int, task: SegmentTask, trial: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{trial}-rendezvous", world_size=RANKS, rank=rank)
    world = World(rank, RANKS, wrap=torch.nn.parallel.DistributedDataParallel)
    list(fit(task, CheckpointStore(Store.at(trial), 1), world))
    torch.distributed.destroy_process_group()


def main(task: str, trial: str) -> int:
    fork = multiprocessing.get_context("fork")
    args = SegmentTask(**json.loads(Path(task).read_text())), trial
    ranks = [fork.Process(target=run, args=(rank, *args)) for rank in range(RANKS)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    return max(abs(rank.exitcode or 0) for rank in ranks)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
