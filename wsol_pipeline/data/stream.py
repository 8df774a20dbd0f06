"""Training rows by Ray Data, for sets that are larger than a node: the epoch plan as one long streaming execution.

One execution runs over all epochs that are left, since each new one costs seconds before its first batch. A first
stage reads the row groups of a window of the plan and hands its encoded rows on in the plan's order; a second stage,
in small tasks on any node with free CPUs, decodes, crops and flips. Images travel as uint8 at the final size, in
bounded memory: Ray Data stops reading while the trainer is busy. docs/rooms/data.md adds up what a rank may hold.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from wsol_pipeline.data.augment import Augmentation
from wsol_pipeline.data.dataset import TrainSplit, encode_labels
from wsol_pipeline.data.hashes import hash_ids
from wsol_pipeline.data.images import decode_resize
from wsol_pipeline.data.pixels import id_and_image
from wsol_pipeline.data.plan import EpochPlan
from wsol_pipeline.errors import WsolError

_BLOCK_BYTES = 8 * 2**20  # of encoded images for one decoding task: some hundred milliseconds of work
_DECODE_ROWS = 64  # decoded at a time: few enough that their memory is used again
_STORE_BYTES = 512 * 2**20  # of the object store for one rank's stream, after which Ray Data holds its tasks back
_READS = 2  # windows that are read at once: one is handed on meanwhile
_READ_TASKS = 1024  # of one execution: each costs its driver a millisecond and 5 KB before the first batch
_READ_COLUMNS = ["id", "image", "labels", "width", "height"]
Columns = dict[str, np.ndarray]  # the columns of consecutive rows


@dataclass(frozen=True)
class Work:
    """What a task needs to know to make this rank's part of any window of any epoch."""

    split: TrainSplit
    plan: EpochPlan
    augmentation: Augmentation
    cache_dir: str | None
    shard_cache_gb: float
    rank: int
    world: int

    def rows(self, epoch: int, window: int, start_sample: int) -> np.ndarray:
        """This rank's rows of a window, in order, int64."""
        order, bounds = self.plan.windows(epoch)
        low, high = int(bounds[window]), int(bounds[window + 1])
        spans = self.plan.spans(rank=self.rank, world=self.world, start_sample=start_sample)
        parts = [order[max(begin, low) : min(end, high)] for _, begin, end in spans if begin < high and end > low]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def read(self, table: pa.Table) -> Iterator[pa.Table]:
        """Encoded rows of the windows that `table` names, in pieces: Ray copies what it is handed."""
        tasks = table.to_pylist()
        parts = [self.rows(**task) for task in tasks]
        epochs = np.repeat([task["epoch"] for task in tasks], list(map(len, parts)))
        rows = np.concatenate(parts)
        if not len(rows):
            return
        read = self.split.shard_set(self.cache_dir, self.shard_cache_gb).read(rows, _READ_COLUMNS)
        read = read.append_column("epoch", pa.array(epochs))
        yield from (read.slice(first, _DECODE_ROWS) for first in range(0, len(rows), _DECODE_ROWS))
        del read
        pa.default_memory_pool().release_unused()  # else every process that has ever read keeps a window

    def decode(self, table: pa.Table) -> Iterator[Columns]:
        """Encoded rows to images at the final size, cropped and flipped as their ids and epochs say."""
        for first in range(0, table.num_rows, _DECODE_ROWS):
            yield self._decode(table.slice(first, _DECODE_ROWS))

    def _decode(self, table: pa.Table) -> Columns:
        pairs, epochs = id_and_image(table), table["epoch"].to_numpy()
        names = [name for name, _ in pairs]
        sizes_B2 = np.stack([table[side].to_numpy() for side in ("width", "height")], axis=1).astype(np.int64)
        images = decode_resize(pairs, self.augmentation.decoded_size)
        return {
            "image": self.augmentation.apply(images, hash_ids(names), sizes_B2, self.plan.seed, epochs),
            "id": np.array(names, dtype=object),
            "labels": encode_labels(table["labels"].to_pylist(), self.split),
            "size": sizes_B2,
        }


def stream(work: Work, epochs: range, start_sample: int) -> Iterator[Columns]:
    """All rows of this rank in `epochs`, as blocks of any length; `start_sample` counts for the first epoch.

    Closing the iterator ends the execution. Raises what a task raised, if it is one of our errors.
    """
    tasks = (
        {"epoch": epoch, "window": window, "start_sample": start_sample if epoch == epochs.start else 0}
        for epoch in epochs
        for window in range(work.plan.num_windows)
    )
    while part := list(islice(tasks, _READ_TASKS * work.world)):
        yield from _execute(work, part)


def _execute(work: Work, tasks: list[dict[str, Any]]) -> Iterator[Columns]:
    """A task reads its rank's parts of as many windows as there are ranks: of one window's size in all."""
    import ray.data  # cached pixels are read, and a GPU is checked, without it
    from ray.exceptions import RayTaskError

    blocks = -(-len(tasks) // work.world)
    windows = ray.data.from_items(tasks, override_num_blocks=blocks)
    context = windows.context  # its own, which `rows` and `images` share
    context.execution_options.preserve_order = True
    context.execution_options.resource_limits = ray.data.ExecutionResources(object_store_memory=_STORE_BYTES)
    context.target_max_block_size = _BLOCK_BYTES
    context.enable_progress_bars = False
    context.raise_original_map_exception = True
    # Reading waits for storage: it must not hold a CPU that decoding could use, so it is limited by number.
    at_once = min(_READS, blocks)
    rows = windows.map_batches(work.read, batch_size=None, batch_format="pyarrow", num_cpus=0, concurrency=at_once)
    images = rows.map_batches(work.decode, batch_size=None, batch_format="pyarrow", num_cpus=1)
    try:
        yield from images.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=2)
    except RayTaskError as error:
        if isinstance(error.cause, WsolError):
            raise error.cause from None
        raise


def regroup(blocks: Iterator[Columns], sizes: Iterable[int]) -> Iterator[Columns]:
    """Cut a stream of blocks into pieces of the given lengths (at least 1 each), copied once."""
    rest: Columns = {"id": np.empty(0)}
    for size in sizes:
        parts: list[Columns] = []
        while size:
            block = rest if len(rest["id"]) else next(blocks)
            parts.append({name: values[:size] for name, values in block.items()})
            rest = {name: values[size:] for name, values in block.items()}
            size -= len(parts[-1]["id"])
        yield {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
