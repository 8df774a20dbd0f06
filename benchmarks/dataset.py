"""What a dataset costs as it grows, and importing one beside a bare copy of its files.

    python benchmarks/dataset.py            # about three minutes, 1 core

Growth: datasets of 1,000, 10,000 and 100,000 tiny images, so that what is left is the cost of a row and not of its
pixels; seconds per image of the import, of the first cached epoch (which decodes), of later ones, and of a stream
of three epochs with its start. Goal: with 100,000 rows nothing costs more per image than 1.5 times what it does with
10,000.
Import: photographs of about 30 KB, read, decoded to check them, hashed and written to shards by one process, beside
`shutil.copyfile` of the same files, and beside decoding alone, in one run.
"""

import io
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, here and in the workers

import numpy as np
import ray
import torch
import tyro
from input import textured_jpeg
from PIL import Image
from rich.console import Console
from rich.table import Table

from wsol_pipeline.data.dataset import TrainSplit, open_dataset
from wsol_pipeline.data.images import decode
from wsol_pipeline.data.importers import Source
from wsol_pipeline.data.ingest import import_dataset
from wsol_pipeline.data.reader import ReadConfig, TrainReader
from wsol_pipeline.data.schema import Row
from wsol_pipeline.protocol import Role
from wsol_pipeline.storage import Store

BATCH, SIDE, EPOCHS = 256, 16, 3
MOST_GROWTH = 1.5
COLUMNS = ("import", "open", "cached, first", "cached", "streamed")


def tiny_jpeg(number: int) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(sink, "JPEG")
    return sink.getvalue()


def dataset_of(rows: Iterator[Row] | list[Row], where: Path) -> None:
    held_out = [
        Row(role, role.value, (0,), tiny_jpeg(0), boxes=((0.0, 0.0, 9.0, 9.0),), box_labels=(0,))
        for role in (Role.VAL, Role.TEST)
    ]
    source = Source(("one",), "exclusive0", [*rows, *held_out])
    import_dataset(source, Store.at(where), name="bench", origin={}, shard_bytes=64 * 2**20)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def epochs(split: TrainSplit, config: ReadConfig) -> list[float]:
    """Seconds of each of `EPOCHS` epochs in a row."""
    with TrainReader(split, split.plan(BATCH, seed=0), config, epochs=EPOCHS) as reader:
        return [seconds(lambda e=epoch: sum(len(batch.ids) for batch in reader.epoch(e))) for epoch in range(EPOCHS)]


def growth(images: int, root: Path) -> dict[str, float]:
    """Seconds of each of `COLUMNS` for `images` tiny images."""
    encoded = [tiny_jpeg(number) for number in range(100)]
    rows = [Row(Role.TRAIN, f"{n:07d}", (0,), encoded[n % len(encoded)]) for n in range(images)]
    where = root / str(images)
    times = [seconds(lambda: dataset_of(rows, where)), seconds(lambda: open_dataset(str(where)))]
    split = open_dataset(str(where)).train
    first, *later = epochs(split, ReadConfig(SIDE, SIDE, mode="cached", cache_dir=str(root / "cache")))
    streamed = epochs(split, ReadConfig(SIDE, SIDE, mode="streaming", cache_dir=str(root / "cache")))
    times += [first, min(later), sum(streamed) / EPOCHS]  # one stream of all epochs, which reads ahead
    shutil.rmtree(where)
    return dict(zip(COLUMNS, times, strict=True))


def importing(images: int, root: Path) -> dict[str, float]:
    """Images per second of an import by one process, of copying the same files, and of decoding them."""
    files = root / "files"
    files.mkdir()
    for number in range(images):
        (files / f"{number:05d}.jpg").write_bytes(textured_jpeg(number))
    rows = [Row(Role.TRAIN, path.name, (0,), path) for path in sorted(files.iterdir())]

    def copy() -> None:
        (root / "copy").mkdir()
        for path in files.iterdir():
            shutil.copyfile(path, root / "copy" / path.name)

    def decode_all() -> None:
        for path in files.iterdir():
            decode(path.read_bytes())

    ways = {"import": lambda: dataset_of(rows, root / "imported"), "decode": decode_all, "copy": copy}
    return {name: images / seconds(work) for name, work in ways.items()}


def report(grown: dict[int, dict[str, float]], rates: dict[str, float]) -> dict[str, object]:
    console = Console(width=100)
    table = Table("rows", *(f"{name}" for name in COLUMNS), title="microseconds per image (open: milliseconds)")
    for images, times in grown.items():
        cells = [times[name] * (1e3 if name == "open" else 1e6 / images) for name in COLUMNS]
        table.add_row(f"{images:,}", *(f"{cell:.0f}" for cell in cells))
    console.print(table)
    console.print(", ".join(f"{name} {rate:,.0f} images/s" for name, rate in rates.items()))
    *_, (small, large) = pairwise(grown)
    ratios = {name: (grown[large][name] / large) / (grown[small][name] / small) for name in COLUMNS if name != "open"}
    return {
        "benchmark": "dataset",
        "seconds": grown,
        "growth": {name: round(ratio, 2) for name, ratio in ratios.items()},
        "most_growth": MOST_GROWTH,
        "holds": max(ratios.values()) <= MOST_GROWTH,
        "images_per_second": {name: round(rate) for name, rate in rates.items()},
        "import_of_copy": round(rates["import"] / rates["copy"], 3),
        "import_of_decode": round(rates["import"] / rates["decode"], 3),
    }


def main(sizes: tuple[int, ...] = (1_000, 10_000, 100_000), photographs: int = 1_000) -> None:
    """Measure.

    Args:
        sizes: numbers of tiny images, rising.
        photographs: images of 30 KB to import.
    """
    torch.set_num_threads(1)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    for name, value in {"RAY_idle_worker_killing_time_threshold_ms": "60000", "MALLOC_ARENA_MAX": "2"}.items():
        os.environ.setdefault(name, value)  # as in training/cluster.py
    with tempfile.TemporaryDirectory() as folder:
        rates = importing(photographs, Path(folder))
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=10**9,
            logging_level=logging.WARNING,
        )
        growth(sizes[0], Path(folder) / "warm")  # imports and starts of workers, which belong to no size
        grown = {size: growth(size, Path(folder) / "grown") for size in sizes}
        ray.shutdown()
    print(json.dumps(report(grown, rates)))


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
