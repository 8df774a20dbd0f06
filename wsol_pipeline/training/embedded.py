"""The embedded dataset and start: made on first use, so that every job runs without a download."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch

from wsol_pipeline.data.dataset import Dataset, open_dataset
from wsol_pipeline.data.importers import synthetic
from wsol_pipeline.data.ingest import import_dataset
from wsol_pipeline.storage import Store
from wsol_pipeline.training.checkpoint import CheckpointStore
from wsol_pipeline.training.config import Recipe, TrainConfig
from wsol_pipeline.training.loop import Record, train
from wsol_pipeline.training.model import BACKBONE

# All trials begin with it: last bits, which differ between CPUs and numbers of threads, must not make other studies of
# them. Hence its precision, and weights of which the first three digits alone are kept.
START = TrainConfig(
    method="cam",
    readout="cam",
    recipe=Recipe(epochs=2, learning_rate=0.02, clip_norm=1.0),
    precision="reproducible",
)
ROUNDED = "start.safetensors"


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
    place = store / "data/synthetic-start"
    if not place.exists(ROUNDED):
        weights = _trained(dataset, CheckpointStore(place, attempt=1), on_record)
        rounded = {name: weight.bfloat16().float() for name, weight in weights.items()}
        place.write(ROUNDED, safetensors.torch.save(rounded))
    return place.path(ROUNDED)


def _trained(
    dataset: Dataset, checkpoints: CheckpointStore, on_record: Callable[[Record], None]
) -> dict[str, torch.Tensor]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a network loses more to a busy machine's waiting threads than it gains
    for record in train(START, dataset, checkpoints):
        on_record(record)
    torch.set_num_threads(threads)
    return safetensors.torch.load((checkpoints.own / "final").read(BACKBONE))
