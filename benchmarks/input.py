"""Whole epochs of training input: cached pixels and streaming beside a torch `DataLoader`.

    python benchmarks/input.py            # about four minutes, 2 cores

Everybody gets the same 256 px JPEGs, decoder, resize, crop, flip and batches of 32 uint8 images of 224 px, and the
same two cores with one thread for each process. The DataLoader reads loose files with two persistent workers. All is
interleaved, so that a busy machine is busy for everybody; epoch 0 (starts, imports, building the cache) is shown by
itself. Ray runs its workers at nice 15, so on a machine with other work compare images per CPU second.
Goals: cached at least 3 times the DataLoader, streaming at least as fast as it.
"""

import io
import json
import logging
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, here and in the workers

import numpy as np
import psutil
import ray
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader

from wsol_pipeline.data.augment import crop_flip, draw_crops
from wsol_pipeline.data.dataset import TrainSplit, open_dataset
from wsol_pipeline.data.hashes import hash_ids
from wsol_pipeline.data.images import decode_resize
from wsol_pipeline.data.importers import Source
from wsol_pipeline.data.ingest import import_dataset
from wsol_pipeline.data.plan import EpochPlan
from wsol_pipeline.data.reader import ReadConfig, TrainReader
from wsol_pipeline.data.schema import Row
from wsol_pipeline.protocol import Role
from wsol_pipeline.storage import Store

IMAGES, EPOCHS, TURNS, BATCH, SIDE = 2000, 16, 2, 32, 256


def textured_jpeg(number: int) -> bytes:
    """A JPEG of about 30 KB with detail at all scales, as a photograph has."""
    rng = np.random.default_rng(number)
    total = np.full((SIDE, SIDE, 3), 128.0)
    for cells, strength in ((4, 60), (32, 30), (128, 22), (SIDE, 8)):
        coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), np.uint8))
        resized = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC), float)
        total += (resized - 128) * strength / 128
    sink = io.BytesIO()
    Image.fromarray(total.clip(0, 255).astype(np.uint8)).save(sink, "JPEG", quality=90)
    return sink.getvalue()


class LooseFiles(torch.utils.data.Dataset[torch.Tensor]):
    """What one writes with torch alone: a file for each image, decoded, resized, cropped and flipped in the worker."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.glob("*.jpg"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        path = self.paths[index]
        resized = decode_resize([(path.name, path.read_bytes())], SIDE)
        return torch.from_numpy(crop_flip(resized, draw_crops(hash_ids([path.name]), 0, 0, SIDE, 224), 224)[0])


class Epoch(NamedTuple):
    """What one epoch took."""

    seconds: float
    first_batch: float  # seconds until it came
    cpu: float  # CPU seconds of this process and all its children


def cpu_seconds() -> dict[int, float]:
    """CPU seconds used so far by this process and each of its living children, Ray's own ones included, by pid."""
    used = {}
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):  # Ray ends idle workers
            used[process.pid] = sum(process.cpu_times()[:2])
    return used


def timed(epoch: Iterable[torch.Tensor]) -> Epoch:
    """Read an epoch to its end."""
    before, start, first, images = cpu_seconds(), time.perf_counter(), 0.0, 0
    for batch in epoch:
        first = first or time.perf_counter() - start
        images += len(batch)
    assert images == IMAGES, images
    seconds = time.perf_counter() - start
    cpu = sum(used - before.get(pid, 0.0) for pid, used in cpu_seconds().items())
    return Epoch(seconds, first, cpu)


def prepare(root: Path) -> None:
    """The loose files, and the same images as a dataset."""
    (root / "files").mkdir()
    for number in range(IMAGES):
        (root / f"files/{number:05d}.jpg").write_bytes(textured_jpeg(number))
    rows = [Row(Role.TRAIN, path.name, (0,), path) for path in sorted((root / "files").glob("*.jpg"))]
    for role in (Role.VAL, Role.TEST):
        rows.append(Row(role, role.value, (0,), textured_jpeg(0), boxes=((0.0, 0.0, 9.0, 9.0),), box_labels=(0,)))
    import_dataset(
        Source(("one",), "exclusive0", rows), Store.at(root / "data"), name="bench", origin={}, shard_bytes=8 * 2**20
    )


def stream_epochs(split: TrainSplit, plan: EpochPlan, config: ReadConfig) -> Iterator[Epoch]:
    """The epochs of one streaming execution, on a Ray of its own."""
    for name, value in {"RAY_idle_worker_killing_time_threshold_ms": "60000", "MALLOC_ARENA_MAX": "2"}.items():
        os.environ.setdefault(name, value)  # as in training/cluster.py
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, object_store_memory=10**9, logging_level=logging.WARNING
    )
    with TrainReader(split, plan, config, epochs=EPOCHS) as reader:
        for epoch in range(EPOCHS):
            yield timed(batch.images_BCHW for batch in reader.epoch(epoch))
    ray.shutdown()


def measure(root: Path) -> dict[str, list[Epoch]]:
    """`TURNS` times `EPOCHS` epochs of each way of reading.

    Epochs in a row are one streaming execution, which reads ahead while others would be timed: so streaming is
    interleaved by turns, the others by epochs.
    """
    split = open_dataset(str(root / "data")).train
    plan, cached = split.plan(BATCH, seed=0), ReadConfig(mode="cached", cache_dir=str(root / "cache"))
    loader = DataLoader(LooseFiles(root / "files"), BATCH, shuffle=True, num_workers=2, persistent_workers=True)
    results: dict[str, list[Epoch]] = {"DataLoader": [], "cached": [], "streaming": []}
    with TrainReader(split, plan, cached, epochs=TURNS * EPOCHS) as reader:
        for turn in range(TURNS):
            for epoch in range(turn * EPOCHS, (turn + 1) * EPOCHS):
                results["DataLoader"].append(timed(loader))
                results["cached"].append(timed(batch.images_BCHW for batch in reader.epoch(epoch)))
            results["streaming"].extend(stream_epochs(split, plan, replace(cached, mode="streaming")))
    return results


def turn_rates(epochs: list[Epoch]) -> list[float]:
    """Images per second of each turn, over all of its epochs but the first (a stream's epochs overlap)."""
    turns = [epochs[start + 1 : start + EPOCHS] for start in range(0, len(epochs), EPOCHS)]
    return [len(turn) * IMAGES / sum(epoch.seconds for epoch in turn) for turn in turns]


def report(results: dict[str, list[Epoch]]) -> None:
    base = median(turn_rates(results["DataLoader"]))
    table = Table("input", "img/s", "turns", "x DataLoader", "img per CPU s", "first batch s", "epoch 0 s")
    summary = {}
    for name, epochs in results.items():
        later = [epoch for number, epoch in enumerate(epochs) if number % EPOCHS]
        rates, first = turn_rates(epochs), median(epoch.first_batch for epoch in later)
        rate, per_cpu = median(rates), len(later) * IMAGES / sum(epoch.cpu for epoch in later)
        spread = f"{min(rates):.0f} to {max(rates):.0f}"
        table.add_row(
            name,
            f"{rate:.0f}",
            spread,
            f"{rate / base:.2f}",
            f"{per_cpu:.0f}",
            f"{first:.3f}",
            f"{epochs[0].seconds:.1f}",
        )
        summary[name] = {
            "images_per_second": round(rate),
            "ratio": round(rate / base, 3),
            "images_per_cpu_second": round(per_cpu),
            "first_batch_s": round(first, 4),
        }
    Console(width=100).print(table)
    print(json.dumps({"benchmark": "input", "images": IMAGES, "cores": len(os.sched_getaffinity(0)), **summary}))


def main() -> None:
    torch.set_num_threads(1)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as root:
        prepare(Path(root))
        report(measure(Path(root)))


if __name__ == "__main__":
    main()
