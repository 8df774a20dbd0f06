"""Two ranks of torch.distributed (gloo), as processes of their own, train a segmentation network.

python tests/segmentation/ranks.py task.json trial-folder
"""

import json
import multiprocessing
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed

from wsol_pipeline.segmentation.fit import Schedule, fit
from wsol_pipeline.segmentation.network import SegmentLearner, SegmentTask
from wsol_pipeline.storage import Store
from wsol_pipeline.training.checkpoint import CheckpointStore
from wsol_pipeline.training.loop import World

RANKS = 2


@dataclass(frozen=True)
class InDouble:
    """A training in float64: how many ranks share it is then a matter of mathematics, and not of last bits."""

    task: SegmentTask

    @property
    def schedule(self) -> Schedule:
        return self.task.schedule

    @property
    def identity(self) -> str:
        return self.task.identity

    def learner(self, device: torch.device) -> SegmentLearner:
        learner = self.task.learner(device)
        learner.model.double()
        read = learner.reader.epoch

        def epoch(*args, **kwargs):
            for batch in read(*args, **kwargs):
                yield replace(batch, images_BCHW=batch.images_BCHW.double())

        learner.reader.epoch = epoch
        return learner


def run(rank: int, task: SegmentTask, trial: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{trial}-rendezvous", world_size=RANKS, rank=rank)
    world = World(rank, RANKS, wrap=torch.nn.parallel.DistributedDataParallel)
    list(fit(InDouble(task), CheckpointStore(Store.at(trial), 1), world))
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
