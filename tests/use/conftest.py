"""A tiny finished model, and a folder of images that nobody labelled."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wsol_pipeline.storage import Store
from wsol_pipeline.training.checkpoint import CheckpointStore
from wsol_pipeline.training.loop import train


@pytest.fixture(scope="session")
def final(tmp_path_factory, make_config, dataset, reading) -> Store:
    """The sealed folder of a model of three classes."""
    torch.set_num_threads(1)
    checkpoints = CheckpointStore(Store.at(tmp_path_factory.mktemp("use")), 1)
    list(train(make_config("bas"), dataset, checkpoints, reading=reading))
    found = checkpoints.final()
    assert found is not None
    return found


def paint(path: Path, seed: int, size: tuple[int, int] = (60, 44), **options) -> Path:
    """An image of noise with a bright square."""
    width, height = size
    pixels = np.random.default_rng(seed).integers(0, 120, (height, width, 3), np.uint8)
    pixels[height // 4 : height // 2, width // 4 : width // 2, seed % 3] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.fixture
def photographs(tmp_path) -> Path:
    """Eleven images of two sizes in two folders of classes."""
    for number in range(11):
        folder, size = (("cross", (60, 44)), ("ring", (40, 90)))[number % 2]
        paint(tmp_path / f"photos/{folder}/{number:02d}.png", number, size)
    return tmp_path / "photos"
