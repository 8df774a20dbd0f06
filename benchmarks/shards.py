"""What is read to have the rows of an epoch: bytes and requests of an object store, and what checking them costs.

    python benchmarks/shards.py            # a minute, 1 core; its object store is moto's, on loopback

Bytes: an epoch plan's windows are read from an S3 server, all rows once, with and without a copy on the node; bytes
that come over the wire are counted and divided by those of the rows' own columns. Goal: at most 1.05, and no request
in a second epoch with the copy. Checking: every byte that is read is compared with its SHA-256; the same rows from
the same local files by pyarrow alone are the peer.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

os.environ["OMP_NUM_THREADS"] = "1"

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro
from botocore.exceptions import BotoCoreError, ClientError
from input import textured_jpeg
from rich.console import Console

from wsol_pipeline.data.dataset import TrainSplit, open_dataset
from wsol_pipeline.data.importers import Source
from wsol_pipeline.data.ingest import import_dataset
from wsol_pipeline.data.schema import ROW_GROUP, Row
from wsol_pipeline.protocol import Role
from wsol_pipeline.storage import Store

COLUMNS = ["id", "image", "labels", "width", "height"]  # what training reads
SETTINGS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_ENDPOINT_URL": "http://127.0.0.1:25353",
}


@dataclass
class Traffic:
    """Ranges that were asked for, and the bytes that came."""

    requests: int = 0
    bytes: int = 0


@contextmanager
def object_store() -> Iterator[str]:
    """`s3://bucket` of a server that lives as long as this block."""
    os.environ |= SETTINGS
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "25353"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(120):
            try:
                boto3.client("s3").create_bucket(Bucket="bucket")
                break
            except (BotoCoreError, ClientError):
                time.sleep(0.5)
        yield "s3://bucket"
    finally:
        server.terminate()
        server.wait()


@contextmanager
def counted() -> Iterator[Traffic]:
    """Counts what `Store.read_range` brings."""
    traffic, read_range = Traffic(), Store.read_range

    def count(store: Store, name: str, begin: int, end: int) -> bytes:
        data = read_range(store, name, begin, end)
        traffic.requests, traffic.bytes = traffic.requests + 1, traffic.bytes + len(data)
        return data

    Store.read_range = count  # type: ignore[method-assign]
    try:
        yield traffic
    finally:
        Store.read_range = read_range  # type: ignore[method-assign]


def write(images: int, where: str) -> TrainSplit:
    encoded = [textured_jpeg(number) for number in range(50)]
    rows = [Row(Role.TRAIN, f"{n:06d}", (0,), encoded[n % len(encoded)]) for n in range(images)]
    for role in (Role.VAL, Role.TEST):
        rows.append(Row(role, role.value, (0,), encoded[0], boxes=((0.0, 0.0, 9.0, 9.0),), box_labels=(0,)))
    source = Source(("one",), "exclusive0", rows)
    import_dataset(source, Store.at(where), name="bench", origin={}, shard_bytes=16 * 2**20)
    return open_dataset(where).train


def read_epoch(split: TrainSplit, epoch: int, cache_dir: str, cache_gb: float) -> int:
    """Read all windows of an epoch; returns the bytes of the rows' own columns."""
    plan, wanted = split.plan(256, seed=0), 0
    order, bounds = plan.windows(epoch)
    for low, high in pairwise(bounds):
        wanted += split.shard_set(cache_dir, cache_gb).read(order[low:high], COLUMNS).nbytes
    return wanted


def remote(images: int, root: Path) -> dict[str, dict[str, float]]:
    """Bytes read over bytes of the rows, and requests, per epoch, with a copy on the node and without."""
    found = {}
    with object_store() as bucket:
        split = write(images, f"{bucket}/data")
        for name, gigabytes in (("copy", 64.0), ("no copy", 0.0)):
            for epoch in (0, 1):
                with counted() as traffic:
                    wanted = read_epoch(split, epoch, str(root / name), gigabytes)
                ratio = round(traffic.bytes / wanted, 4)
                found[f"{name}, epoch {epoch}"] = {"read_of_needed": ratio, "requests": traffic.requests}
    return found


def local(images: int, root: Path, rounds: int) -> dict[str, float]:
    """Megabytes per second of an epoch's row groups, checked and by pyarrow alone, in turns."""
    split = write(images, str(root / "local"))
    paths = [split.shard_set().store.path(shard.name) for shard in split.shards]
    files = [pq.ParquetFile(path) for path in paths]

    def plain() -> int:
        groups = [
            file.read_row_group(group, columns=COLUMNS, use_threads=False)
            for file in files
            for group in range(file.num_row_groups)
        ]
        return pa.concat_tables(groups).take(np.arange(split.num_rows)).nbytes

    def checked() -> int:
        return split.shard_set().read(np.arange(split.num_rows), COLUMNS).nbytes

    rates: dict[str, list[float]] = {"checked": [], "plain": []}
    for _ in range(rounds):
        for name, work in (("checked", checked), ("plain", plain)):
            start = time.perf_counter()
            size = work()
            rates[name].append(size / 2**20 / (time.perf_counter() - start))
    return {name: round(median(values), 1) for name, values in rates.items()}


def main(images: int = 4_000, rounds: int = 5) -> None:
    """Measure.

    Args:
        images: photographs of about 30 KB.
        rounds: of local reading.
    """
    with tempfile.TemporaryDirectory() as folder:
        rates = local(images, Path(folder), rounds)
        traffic = remote(images, Path(folder))
    console = Console(width=100)
    for name, values in traffic.items():
        console.print(f"{name}: {values['read_of_needed']:.3f} x the bytes needed, {values['requests']} requests")
    console.print(f"local: {rates['checked']:.0f} MiB/s checked, {rates['plain']:.0f} MiB/s by pyarrow alone")
    holds = traffic["no copy, epoch 1"]["read_of_needed"] <= 1.05 and traffic["copy, epoch 1"]["requests"] == 0
    result = {"benchmark": "shards", "row_group": ROW_GROUP, "traffic": traffic, "mib_per_second": rates}
    print(json.dumps(result | {"holds": holds}))


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
