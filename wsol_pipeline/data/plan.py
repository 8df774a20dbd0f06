"""The order of training rows: one plan that every executor, worker, restart and world size is a slice of.

(seed, epoch) gives the order of all rows; batch t is a slice of it; a rank's part is a slice of the batch. So each
sample comes exactly once in an epoch, whatever dies or is resized in the middle of it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from wsol_pipeline.errors import UsageError


@dataclass(frozen=True)
class EpochPlan:
    """Which rows make which batch.

    The shuffle has two levels, so that an executor which cannot hold all rows can follow it: blocks of `block_rows`
    neighbours are permuted, then the rows inside each; a window of `window_rows` deals a row of each of its blocks in
    turn, so that every batch draws on all of them alike. (Shards hold training rows in a random order already, so a
    block is no batch of one class.) Inside a batch rows stand by their blocks: the ranks, which get neighbouring parts
    of it, then share few blocks, and together read little more than one epoch's bytes.
    """

    rows: int
    batch_size: int  # global: over all ranks
    seed: int
    block_rows: int = 32  # a Parquet row group
    window_rows: int = 4096
    drop_last: bool = False  # leave out what is left of an epoch after its last whole batch

    def __post_init__(self) -> None:
        for name in ("rows", "batch_size", "block_rows", "window_rows"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1 but got {getattr(self, name)}.")
        if self.seed < 0:
            raise UsageError(f"seed cannot be negative but got {self.seed}.")

    @property
    def num_batches(self) -> int:
        """Batches of an epoch. The last one is short, unless it has under half of a batch: then it joins the one
        before, so that no step trains on a handful of images. With `drop_last` all are whole, but the only one of a set
        smaller than a batch."""
        full, rest = divmod(self.rows, self.batch_size)
        return max(1, full + (not self.drop_last and rest >= max(1, self.batch_size // 2)))

    @property
    def samples(self) -> int:
        """Rows that an epoch trains on: all, unless `drop_last` leaves some out, others in every epoch."""
        return min(self.rows, self.num_batches * self.batch_size) if self.drop_last else self.rows

    def bounds(self) -> np.ndarray:
        """Where the batches begin and the last one ends, in samples, int64 [num_batches + 1]."""
        bounds = np.arange(self.num_batches + 1, dtype=np.int64) * self.batch_size
        bounds[-1] = self.samples
        return bounds

    def windows(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The order of an epoch, int64 [rows], and the bounds of its windows, int64 [windows + 1]."""
        return _shuffle(self, epoch)

    @property
    def num_windows(self) -> int:
        blocks = -(-self.rows // self.block_rows)
        return -(-blocks // self._window_blocks)

    @property
    def _window_blocks(self) -> int:
        return max(1, self.window_rows // self.block_rows)

    def order(self, epoch: int) -> np.ndarray:
        """The rows in the order of this epoch, int64 [rows]."""
        return self.windows(epoch)[0]

    def spans(self, *, rank: int = 0, world: int = 1, start_sample: int = 0) -> Iterator[tuple[int, int, int]]:
        """(batch index, begin, end) of this rank's part of each batch: positions in any epoch's order.

        `start_sample` is how many samples of the epoch were used already, by all ranks together. Raises `UsageError`
        if that is no batch boundary, or if a rank could be left without rows.
        """
        self._check_world(rank, world)
        bounds = self.bounds()
        first = int(np.searchsorted(bounds, start_sample))
        if first == len(bounds) or bounds[first] != start_sample:
            raise UsageError(
                f"start_sample must be a batch boundary (a multiple of {self.batch_size} up to {bounds[-2]}, or the "
                f"epoch's {self.samples} rows) but got {start_sample}."
            )
        for index in range(first, self.num_batches):
            begin, share = int(bounds[index]), divmod(int(bounds[index + 1] - bounds[index]), world)
            yield index, begin + _cut(share, rank), begin + _cut(share, rank + 1)

    def batches(
        self, epoch: int, *, rank: int = 0, world: int = 1, start_sample: int = 0
    ) -> Iterator[tuple[int, np.ndarray]]:
        """(batch index, this rank's rows int64) from `start_sample` on. Errors as of `spans`."""
        order = self.order(epoch)
        for index, begin, end in self.spans(rank=rank, world=world, start_sample=start_sample):
            yield index, order[begin:end]

    def _check_world(self, rank: int, world: int) -> None:
        if not 0 <= rank < world:
            raise UsageError(f"rank must be in 0..{world - 1} but got {rank}.")
        if self.batch_size < 2 * world and world > 1:
            raise UsageError(
                f"The global batch size must be at least twice the number of workers ({2 * world}) but got "
                f"{self.batch_size}: a worker would be left without rows."
            )
        if self.rows < world:
            raise UsageError(f"{self.rows} rows cannot be divided over {world} workers.")


def _cut(share: tuple[int, int], part: int) -> int:
    """Where part number `part` begins; the first `share[1]` parts have one row more (as `numpy.array_split`)."""
    each, longer = share
    return part * each + min(part, longer)


@lru_cache(maxsize=2)  # every window's task of an epoch asks for it, and at its end those of the next one
def _shuffle(plan: EpochPlan, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([plan.seed, epoch])
    blocks = rng.permutation(-(-plan.rows // plan.block_rows))
    windows = []
    for first in range(0, len(blocks), plan._window_blocks):
        starts = blocks[first : first + plan._window_blocks, None] * plan.block_rows
        dealt = rng.permuted(starts + np.arange(plan.block_rows), axis=1).T.ravel()
        windows.append(dealt[dealt < plan.rows])
    order = _by_blocks(plan, np.concatenate(windows).astype(np.int64), blocks)
    order.flags.writeable = False  # shared by all who ask
    return order, np.cumsum([0, *map(len, windows)])


def _by_blocks(plan: EpochPlan, order: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    """The rows of each batch in the order of their blocks, hence of their windows."""
    place = np.empty_like(blocks)
    place[blocks] = np.arange(len(blocks))
    batch = np.searchsorted(plan.bounds(), np.arange(plan.rows), side="right")
    return order[np.lexsort((place[order // plan.block_rows], batch))]
