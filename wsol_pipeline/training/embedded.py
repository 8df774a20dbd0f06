"""The embedded dataset and start: made on first use, so that every job runs without a download."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch

from wsol_pipeline.data.dataset import Dataset, open_dataset
from wsol_pipeline.data.importers import synthetic
from wsol_pipeline.data.ingest import import_dataset
from wsol_pipeline.storage import Store
from wsol_pipeline.training.checkpoint import CheckpointStore
from wsol_pipeline.training.config import Recipe, TrainConfig
from wsol_pipeline.training.loop import Record, train
from wsol_pipeline.training.model import BACKBONE

START = TrainConfig(method="cam", readout="cam", recipe=Recipe(epochs=5, learning_rate=0.02, clip_norm=1.0))


def embedded_dataset(store: Store) -> Dataset:
    """The synthetic dataset below `store`, generated if it is not there yet; as `import_dataset.py` without options."""
    options, out = synthetic.Options(), store / "data/synthetic"
    origin = {"importer": "synthetic", "source": "", "options": dataclasses.asdict(options), "shard_mb": 128}
    import_dataset(synthetic.read(Path(), options), out, name="synthetic", origin=origin)
    return open_dataset(out.uri)


def embedded_weights(store: Store, dataset: Dataset, on_record: Callable[[Record], None]) -> str:
    """What ImageNet weights are to a real study: a small classifier, trained on the embedded labels once; its path.

    `on_record` is told of each epoch. From scratch the area term of BAS empties the maps before there is a classifier
    to object.
    """
    checkpoints = CheckpointStore(store / "data/synthetic-start", attempt=1)
    if checkpoints.final() is None:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # so small a network loses more to a busy machine's waiting threads than it gains
        for record in train(START, dataset, checkpoints):
            on_record(record)
        torch.set_num_threads(threads)
    return (checkpoints.own / "final").path(BACKBONE)
