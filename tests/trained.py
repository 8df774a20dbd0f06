"""A tiny generated dataset, runs that take a tenth of a second, and a store that dies at a chosen position."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch

from wsol_pipeline.data.dataset import Dataset, open_dataset
from wsol_pipeline.data.importers import synthetic
from wsol_pipeline.data.ingest import import_dataset
from wsol_pipeline.storage import Store
from wsol_pipeline.training.checkpoint import CheckpointStore, Position
from wsol_pipeline.training.config import Reading, Recipe, TrainConfig
from wsol_pipeline.training.loop import train

READOUTS = {"bas": "topk"}  # else: cam
MEASURED = ("time", "seconds", "device_seconds", "images_per_second", "used")  # what two equal runs may differ in


class Killed(BaseException):
    """Stands for a death that nothing catches."""


@dataclass(frozen=True)
class MortalStore(CheckpointStore):
    """Dies right after the checkpoint at `last` was written."""

    last: Position

    def seal(self, position: Position, written: Any, records: list[dict[str, Any]]) -> None:
        super().seal(position, written, records)
        if position == self.last:
            raise Killed("killed")


@pytest.fixture(autouse=True)
def _one_thread():
    """Sums in one order, and no fight for cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Dataset:
    """64 training, 25 validation, 24 test images of 40 px in 3 classes. Nobody changes its files."""
    where = tmp_path_factory.mktemp("dataset")
    options = synthetic.Options(train=64, val=25, test=24, classes=3, size=40)
    import_dataset(synthetic.read(Path(), options), Store.at(where), name="tiny", origin={"importer": "synthetic"})
    return open_dataset(str(where))


@pytest.fixture(scope="session")
def reading(tmp_path_factory) -> Reading:
    return Reading(cache_dir=str(tmp_path_factory.mktemp("pixels")))


@pytest.fixture(scope="session")
def make_config() -> Callable[..., TrainConfig]:
    """`make_config(method, **changes)`: two epochs of five steps, the last one short; names of recipe fields too."""

    def make(method: str = "cam", **changes: Any) -> TrainConfig:
        config = TrainConfig(
            method=method,
            readout=READOUTS.get(method, "cam"),
            image_size=32,
            resize_size=36,
            recipe=Recipe(epochs=2, batch_size=14),
        )
        recipe = {name: changes.pop(name) for name in list(changes) if hasattr(config.recipe, name)}
        return replace(config, recipe=replace(config.recipe, **recipe), **changes)

    return make


@pytest.fixture
def fit(dataset, reading, tmp_path) -> Callable[..., SimpleNamespace]:
    """`fit(config, name)`: train to the end in a folder `name`; its records, weights and final folder."""

    def run(config: TrainConfig, name: str = "trial", attempt: int = 1, **options: Any) -> SimpleNamespace:
        checkpoints = CheckpointStore(Store.at(tmp_path / name), attempt)
        records = list(train(config, dataset, checkpoints, reading=reading, **options))
        return finished(checkpoints, records)

    return run


@pytest.fixture
def kill(dataset, reading, tmp_path) -> Callable[..., None]:
    """`kill(config, last, name)`: train until the checkpoint at `last` is written, and die there."""

    def run(config: TrainConfig, last: Position, name: str = "trial", checkpoint_batches: int = 0) -> None:
        store = MortalStore(Store.at(tmp_path / name), 1, last)
        with pytest.raises(Killed):
            list(train(config, dataset, store, reading=reading, checkpoint_batches=checkpoint_batches))

    return run


@pytest.fixture(scope="session")
def mortal_store() -> Callable[[Store, Position], MortalStore]:
    """`mortal_store(trial, last)`: the first attempt's store, which dies once the checkpoint at `last` is written."""
    return lambda trial, last: MortalStore(trial, 1, last)


@pytest.fixture(scope="session")
def outcome() -> Callable[[CheckpointStore], SimpleNamespace]:
    """`outcome(checkpoints)`: the finished run whose last attempt wrote there."""
    return finished


def finished(checkpoints: CheckpointStore, yielded: list[dict[str, Any]] | None = None) -> SimpleNamespace:
    """A finished run: its `weights`, `final` folder, `records` without measured times, and the records `yielded`."""
    final = checkpoints.final()
    assert final is not None
    records = [{key: value for key, value in r.items() if key not in MEASURED} for r in checkpoints.records()]
    weights = safetensors.torch.load(final.read("model.safetensors"))
    return SimpleNamespace(weights=weights, final=final, records=records, yielded=yielded)
