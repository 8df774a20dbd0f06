"""Tiny datasets, and a Ray of this room's own."""

import io
from pathlib import Path

import numpy as np
import pytest
import ray
from PIL import Image

from wsol_pipeline.data.dataset import Dataset, open_dataset
from wsol_pipeline.data.doctor import examine
from wsol_pipeline.data.importers import Source
from wsol_pipeline.data.ingest import import_dataset
from wsol_pipeline.data.schema import Row
from wsol_pipeline.protocol import Role
from wsol_pipeline.storage import Store


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """Nothing of a test is cached in the user's folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def jpeg():
    """`jpeg(seed, size)`: the bytes of a smooth coloured JPEG of `size` = (width, height)."""

    def make(seed: int, size: tuple[int, int] = (40, 30)) -> bytes:
        coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
        sink = io.BytesIO()
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(sink, "JPEG", quality=92)
        return sink.getvalue()

    return make


@pytest.fixture(scope="session")
def png():
    """`png()`: the bytes of a mask of 40x30 with an object."""

    def make() -> bytes:
        sink = io.BytesIO()
        mask = Image.new("L", (40, 30))
        mask.paste(255, (5, 5, 20, 20))
        mask.save(sink, "PNG")
        return sink.getvalue()

    return make


@pytest.fixture(scope="session")
def make_source(jpeg):
    """`make_source(train, val, test)`: rows of 3 classes; every image is another, boxes come one or two to an image."""

    def rows(counts: dict[Role, int]):
        for part, (role, count) in enumerate(counts.items()):
            for number in range(count):
                label = number % 3
                size = (40 + number % 5, 30 + number % 7)
                boxes = ((1.0, 2.0, 20.0, 25.0), (5.5, 6.0, 9.0, 8.25))[: 1 + number % 2]
                yield Row(
                    role,
                    f"{role.value}-{number:04d}",
                    (label,),
                    jpeg(1000 * part + number, size),
                    size,
                    boxes,
                    (label,) * len(boxes),
                )

    def make(train: int = 150, val: int = 11, test: int = 7) -> Source:
        counts = {Role.TRAIN: train, Role.VAL: val, Role.TEST: test}
        return Source(("ant", "bee", "cat"), "inclusive0", list(rows(counts)))

    return make


@pytest.fixture(scope="session")
def told():
    """`told(source)`: all that is wrong with a source, one line each, as --check tells it."""

    def make(source: Source) -> str:
        return "\n".join(item for finding in examine(source) if not finding.is_note for item in finding.items)

    return make


@pytest.fixture(scope="session")
def write(make_source):
    """`write(where, source)`: import a source (default: the tiny one) into several small shards and open it."""

    def make(where: Path | str, source: Source | None = None, **options) -> Dataset:
        settings = {"name": "tiny", "origin": {"importer": "test"}, "shard_bytes": 60_000} | options
        import_dataset(source or make_source(), Store.at(where), **settings)
        return open_dataset(str(where))

    return make


@pytest.fixture(scope="session")
def tiny(write, tmp_path_factory) -> Dataset:
    """150 training, 11 validation, 7 test rows. Nobody changes its files."""
    return write(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def local_ray():
    """A private Ray of two workers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=200_000_000,
            logging_level="warning",
        )
        yield
        ray.shutdown()
