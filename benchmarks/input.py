"""Whole epochs of training input: cached pixels and streaming beside a torch `DataLoader`.

    python benchmarks/input.py            # about two minutes, 2 cores

Everybody gets the same 256 px JPEGs, decoder, resize, crop, flip and batches of 32 uint8 images of 224 px, and the
same two cores with one thread for each process. The DataLoader reads loose files with two persistent workers. Epochs
are interleaved, so that a busy machine is busy for all; epoch 0 (starts, imports, building the cache) is shown by
itself. Goals: cached at least 3 times the DataLoader, streaming at least 0.8 times.
"""

import io
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from statistics import median

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, here and in the workers

import numpy as np
import ray
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader

from wsol_pipeline.data.augment import crop_flip, draw_crops, hash_ids
from wsol_pipeline.data.dataset import open_dataset
from wsol_pipeline.data.images import decode_resize
from wsol_pipeline.data.importers import Source
from wsol_pipeline.data.ingest import import_dataset
from wsol_pipeline.data.plan import EpochPlan
from wsol_pipeline.data.reader import ReadConfig, TrainReader
from wsol_pipeline.data.schema import Row
from wsol_pipeline.protocol import Role
from wsol_pipeline.storage import Store

IMAGES, EPOCHS, BATCH, SIDE = 2000, 5, 32, 256


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


def timed(epoch: Iterable[torch.Tensor]) -> tuple[float, float]:
    """Images per second of the whole epoch, and seconds to its first batch."""
    start, first, images = time.perf_counter(), 0.0, 0
    for batch in epoch:
        first = first or time.perf_counter() - start
        images += len(batch)
    assert images == IMAGES, images
    return images / (time.perf_counter() - start), first


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


def measure(root: Path) -> dict[str, list[tuple[float, float]]]:
    """(images per second, seconds to the first batch) of each epoch of each way of reading."""
    split = open_dataset(str(root / "data")).train
    plan: EpochPlan = split.plan(BATCH, seed=0)
    cached = ReadConfig(mode="cached", cache_dir=str(root / "cache"))
    loader = DataLoader(LooseFiles(root / "files"), BATCH, shuffle=True, num_workers=2, persistent_workers=True)
    # Epochs one after the other are one streaming execution; it would read ahead while the others are timed. So it is
    # interleaved in turns of EPOCHS epochs, each with an epoch 0 of its own.
    results: dict[str, list[tuple[float, float]]] = {"DataLoader": [], "cached": [], "streaming": []}
    fast: dict[str, Callable[[int], Iterable[torch.Tensor]]] = {"DataLoader": lambda _: loader}
    with TrainReader(split, plan, cached, epochs=2 * EPOCHS) as reader:
        fast["cached"] = lambda epoch: (batch.images_BCHW for batch in reader.epoch(epoch))
        for turn in range(2):
            for epoch in range(turn * EPOCHS, (turn + 1) * EPOCHS):
                for name, read in fast.items():
                    results[name].append(timed(read(epoch)))
            with TrainReader(split, plan, replace(cached, mode="streaming"), epochs=EPOCHS) as stream:
                for epoch in range(EPOCHS):
                    results["streaming"].append(timed(batch.images_BCHW for batch in stream.epoch(epoch)))
    return results


def steady(results: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """All epochs but the first of each turn."""
    return [result for number, result in enumerate(results) if number % EPOCHS]


def report(results: dict[str, list[tuple[float, float]]]) -> None:
    base = median(rate for rate, _ in steady(results["DataLoader"]))
    table = Table("input", "img/s (median)", "lowest to highest", "x DataLoader", "first batch s", "epoch 0 img/s")
    summary = {}
    for name, epochs in results.items():
        rates = [rate for rate, _ in steady(epochs)]
        first = median(seconds for _, seconds in steady(epochs))
        ratio = median(rates) / base
        spread = f"{min(rates):.0f} to {max(rates):.0f}"
        table.add_row(name, f"{median(rates):.0f}", spread, f"{ratio:.2f}", f"{first:.3f}", f"{epochs[0][0]:.0f}")
        summary[name] = {
            "images_per_second": round(median(rates)),
            "ratio": round(ratio, 3),
            "first_s": round(first, 4),
        }
    Console().print(table)
    print(json.dumps({"benchmark": "input", "images": IMAGES, "cores": len(os.sched_getaffinity(0)), **summary}))


def main() -> None:
    torch.set_num_threads(1)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, object_store_memory=10**9, logging_level=logging.WARNING
    )
    with tempfile.TemporaryDirectory() as root:
        prepare(Path(root))
        report(measure(Path(root)))
    ray.shutdown()


if __name__ == "__main__":
    main()
