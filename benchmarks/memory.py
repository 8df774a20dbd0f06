"""What each way of reading holds in memory, over a dataset many times as large as the cap that it is held to.

    python benchmarks/memory.py            # about six minutes, 2 cores, 5 GB of disk

The caps are those of docs/rooms/data.md, scaled down by small shards, windows and object store, so that 2 GB of images
to train on are about ten times each, and 0.5 GB to validate on six times. Measured is what all processes of a way hold
together beside files, which the system drops when memory is short: anonymous and shared memory, a page of n processes
counted as n-ths (PSS). From the peak what the same processes held at the beginning is taken away: a process that has
imported Ray and torch holds 0.5 GB.
Every image is the same noise, which no encoding shrinks.
"""

import io
import json
import logging
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event, Thread
from unittest.mock import patch

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, here and in the workers

import numpy as np
import psutil
import ray
import torch
import tyro
from PIL import Image
from rich.console import Console
from rich.table import Table

from wsol_pipeline.data import ingest, pixels
from wsol_pipeline.data.dataset import TrainSplit, ValSplit, open_dataset
from wsol_pipeline.data.importers import Source
from wsol_pipeline.data.reader import ReadConfig, TrainReader, eval_rows
from wsol_pipeline.data.schema import ROW_GROUP, Row
from wsol_pipeline.protocol import Role
from wsol_pipeline.storage import Store

SIDE, BATCH, CORES = 224, 32, 2
SHARD, WINDOW, STORE = 16 * 2**20, 8 * 2**20, 10**8
DECODED = 3 * SIDE * SIDE


@dataclass(frozen=True)
class Held:
    """Bytes: what a way held at its peak over its beginning, what it may hold, and what it read."""

    peak: int
    cap: int
    read: int


def noise(side: int) -> bytes:
    sink = io.BytesIO()
    pixels_HWC = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(pixels_HWC).save(sink, "JPEG", quality=100, subsampling=0)
    return sink.getvalue()


def write(images: int, side: int, where: Path) -> None:
    """A dataset of that many training images, and a quarter as many to validate on."""
    image = where.with_suffix(".jpg")
    image.write_bytes(noise(side))
    located = {"boxes": ((0.0, 0.0, 9.0, 9.0),), "box_labels": (0,)}
    rows = [Row(Role.TRAIN, f"train{n:07d}", (0,), image) for n in range(images)]
    rows += [Row(Role.VAL, f"val{n:07d}", (0,), image, **located) for n in range(-(-images // 4))]
    rows += [Row(Role.TEST, "test", (0,), image, **located)]
    source = Source(("one",), "exclusive0", rows)
    with patch.object(ingest, "decode", lambda data: None):  # it is always the same image
        ingest.import_dataset(source, Store.at(where), name="bench", origin={}, shard_bytes=SHARD)


def held() -> dict[int, int]:
    """Anonymous and shared bytes of this process and all that it has started, by pid."""
    found = {}
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with suppress(OSError, psutil.NoSuchProcess):  # it ended meanwhile
            lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
            sizes = {name: int(size[0]) for name, *size in map(str.split, lines[1:])}
            found[process.pid] = 1024 * (sizes["Pss_Anon:"] + sizes["Pss_Shmem:"])
    return found


def peak_over_start(work: Callable[[], object]) -> int:
    """Bytes. A process that grows over what the largest of Ray's workers held has begun with that: it imports first."""
    before, ended, peaks = held(), Event(), [0]
    usual = max([0, *(size for pid, size in before.items() if pid != os.getpid())])

    def watch() -> None:
        while not ended.wait(0.1):
            now = held()
            begun = {pid: max(before.get(pid, 0), min(size, usual)) for pid, size in now.items()}
            peaks.append(sum(now.values()) - sum(begun.values()))

    watcher = Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        ended.set()
        watcher.join()
    return max(peaks)


def importing(root: Path, images: int) -> Held:
    write(2_000, 16, root / "tiny")
    peak = peak_over_start(lambda: write(images, SIDE, root / "data"))
    return Held(peak, 9 * SHARD, images * (root / "data.jpg").stat().st_size)


def caching(root: Path, images: int) -> Held:
    """Decode into the cache, then an epoch from it."""
    split, config = open_dataset(str(root / "data")).train, ReadConfig(SIDE, SIDE, cache_dir=str(root / "cache"))
    stored = sum(shard.bytes for shard in split.shards)

    def epoch(split: TrainSplit) -> None:
        plan = split.plan(BATCH, seed=0)
        with TrainReader(split, plan, replace(config, mode="cached"), epochs=1) as reader:
            for _ in reader.epoch(0):
                pass

    epoch(open_dataset(str(root / "tiny")).train)

    rows = split.rows_within(pixels.CHUNK_BYTES, pixels.CHUNK_ROWS)
    return Held(peak_over_start(lambda: epoch(split)), int(rows * (11 * stored / images + 2 * DECODED)), stored)


def evaluating(root: Path, images: int) -> Held:
    """Validation rows, decoded each time."""
    config = ReadConfig(SIDE, SIDE, mode="streaming", cache_dir=str(root))

    def read(split: ValSplit) -> None:
        for _ in eval_rows(split, config, "resize", BATCH).batches():
            pass

    read(open_dataset(str(root / "tiny")).val)
    split = open_dataset(str(root / "data")).val
    peak, stored = peak_over_start(lambda: read(split)), sum(shard.bytes for shard in split.shards)
    cap = 5 * (BATCH + ROW_GROUP) * stored / split.num_rows + 4 * BATCH * DECODED
    return Held(peak, int(cap), stored)


def streaming(root: Path, images: int) -> Held:
    """An epoch on a Ray of two cores that has streamed tiny images before: all processes are there."""
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "600000")
    os.environ.setdefault("MALLOC_ARENA_MAX", "2")  # as in training/cluster.py
    ray.init(
        address="local",
        num_cpus=CORES,
        include_dashboard=False,
        object_store_memory=STORE,
        logging_level=logging.WARNING,
    )
    stream(root / "tiny", root)
    split = open_dataset(str(root / "data")).train
    peak, stored = peak_over_start(lambda: stream(root / "data", root)), sum(shard.bytes for shard in split.shards)
    ray.shutdown()
    return Held(peak, 8 * WINDOW + STORE + CORES * 64 * 2**20, stored)


def stream(where: Path, root: Path) -> None:
    split, config = open_dataset(str(where)).train, ReadConfig(SIDE, SIDE, mode="streaming", cache_dir=str(root))
    plan = replace(split.plan(BATCH, seed=0), window_rows=split.rows_within(WINDOW, 4096))
    with TrainReader(split, plan, config, epochs=1) as reader:
        for batch in reader.epoch(0):
            time.sleep(len(batch.ids) * 1e-3)  # a trainer slower than the stream, for which all buffers fill


WAYS = {"import": importing, "cached": caching, "evaluation": evaluating, "streaming": streaming}


def report(results: dict[str, Held]) -> dict[str, object]:
    table = Table("way", "read MB", "peak MB", "cap MB", "read / cap", "holds")
    for name, found in results.items():
        sizes = [f"{size / 1e6:.0f}" for size in (found.read, found.peak, found.cap)]
        table.add_row(name, *sizes, f"{found.read / found.cap:.0f}", str(found.peak <= found.cap))
    Console(width=100).print(table)
    megabytes = {name: {key: round(size / 1e6) for key, size in vars(found).items()} for name, found in results.items()}
    return {"benchmark": "memory", "holds": all(r.peak <= r.cap for r in results.values()), **megabytes}


def measure(way: str, root: Path, images: int) -> Held:
    torch.set_num_threads(1)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return WAYS[way](root, images)


def main(images: int = 9_600) -> None:
    """Measure.

    Args:
        images: training images, of 200 KB each.
    """
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as root:
        results = {}
        for way in WAYS:  # each in a process of its own
            with ProcessPoolExecutor(1, spawn) as pool:
                results[way] = pool.submit(measure, way, Path(root), images).result()
            print(way, results[way], flush=True)
    print(json.dumps(report(results)))


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
