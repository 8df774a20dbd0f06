"""One run of benchmarks/training.py, by either launcher; what is timed is the same generator.

python benchmarks/training_side.py job.json                                              (Ray Train)
torchrun --standalone --nproc-per-node 2 benchmarks/training_side.py job.json            (plain torch)
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed

from wsol_pipeline.data.dataset import open_dataset
from wsol_pipeline.storage import Store
from wsol_pipeline.training import cluster
from wsol_pipeline.training.checkpoint import CheckpointStore
from wsol_pipeline.training.config import Job, from_dict
from wsol_pipeline.training.loop import World, train
from wsol_pipeline.training.run import fit_trainer


def under_torchrun(job: Job) -> None:
    torch.set_num_threads(job.cpus_per_worker)
    world = World(int(os.environ["RANK"]), job.workers)
    if job.workers > 1:
        torch.distributed.init_process_group("gloo")
        world = World(world.rank, world.size, wrap=torch.nn.parallel.DistributedDataParallel)
    checkpoints = CheckpointStore(Store.at(job.trial), job.attempt)
    for _ in train(job.train, open_dataset(job.data), checkpoints, world, job.reading):
        pass
    if job.workers > 1:
        torch.distributed.destroy_process_group()


def under_ray(job: Job) -> None:
    cluster.connect(nested=True)
    fit_trainer(job, json.loads(Path(sys.argv[1]).read_text()))


if __name__ == "__main__":
    described = from_dict(Job, json.loads(Path(sys.argv[1]).read_text()))
    (under_torchrun if "RANK" in os.environ else under_ray)(described)
