"""Decoded pixels of a split, kept once on each node: a memory-mapped uint8 file that all workers and trials share.

A study decodes its data once; an epoch is then a permutation of rows.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wsol_pipeline.data.cache import built, require_room
from wsol_pipeline.data.dataset import LabelledSplit, Split, encode_labels
from wsol_pipeline.data.hashes import hash_ids
from wsol_pipeline.data.images import decode_resize, decoder, label_mask
from wsol_pipeline.data.schema import PIXEL_COLUMNS, schema
from wsol_pipeline.data.shards import ShardSet, cache_root
from wsol_pipeline.protocol import Role

_FORMAT = 2
CHUNK_ROWS, CHUNK_BYTES = 256, 16 * 2**20  # read and decoded between two writes: whichever is fewer rows
EXACT = "exact pixels"
IMAGES, MASKS, ROWS = "images.npy", "masks.npy", "rows.parquet"


@dataclass(frozen=True)
class Rows:
    """What a split knows of its rows besides pixels, as columns."""

    ids: list[str]
    hashes_N: np.ndarray  # uint64
    labels_N: np.ndarray  # or multi-hot labels_NK
    sizes_N2: np.ndarray  # width, height of the stored image
    boxes: list[np.ndarray] | None  # N4 float32 each; None for training rows
    box_labels: list[np.ndarray] | None  # N int64 each


@dataclass(frozen=True)
class Pixels:
    """A split decoded and resized: `images` uint8 [N, 3, size, size], mapped from the file; `masks` [N, size, size], of
    `label_mask`, if any row has one."""

    images: np.ndarray
    masks: np.ndarray | None
    rows: Rows
    told = EXACT

    def each(self, rows: Iterable[int]) -> Iterator[np.ndarray]:
        """The image of each of the rows."""
        return map(self.images.__getitem__, rows)


def read_rows(table, split: Split) -> Rows:  # type: ignore[no-untyped-def]  # pyarrow has no types
    """The columns of a shard table (without pixels) as arrays."""
    ids = table["id"].to_pylist()
    boxes = box_labels = None
    if "boxes" in table.column_names:
        boxes = [np.array(row, np.float32).reshape(-1, 4) for row in table["boxes"].to_pylist()]
        box_labels = [np.array(row, np.int64) for row in table["box_labels"].to_pylist()]
    sizes_N2 = np.stack([table[side].to_numpy() for side in ("width", "height")], axis=1).astype(np.int64)
    labels_N = encode_labels(table["labels"].to_pylist(), split)
    return Rows(ids, hash_ids(ids), labels_N, sizes_N2, boxes, box_labels)


def read_masks(table, split: Split, sizes: np.ndarray) -> list[np.ndarray]:  # type: ignore[no-untyped-def]
    """`label_mask` of each row of a shard table, at its own of `sizes` (width, height)."""
    columns = zip(table["mask"].to_pylist(), table["ignore"].to_pylist(), sizes.tolist(), strict=True)
    return [label_mask(mask, ignore, size, split.multilabel) for mask, ignore, size in columns]


def fact_columns(split: Split) -> list[str]:
    """All columns but the encoded images that the split may read."""
    role = Role.TRAIN if isinstance(split, LabelledSplit) else split.role  # training rows have labels alone too
    return [name for name in schema(role).names if name not in PIXEL_COLUMNS]


def pixel_bytes(split: Split, size: int) -> int:
    """Bytes of the split when it is decoded and resized to `size`."""
    return split.num_rows * 3 * size * size


def cached_pixels(split: Split, size: int, cache_dir: str | None) -> Pixels:
    """The split's pixels at `size`, from this node's cache; built there if they are not in it, or not as they were.

    Raises `DataError` for a shard that is missing or altered, `ResourceError` if the disk has no room, or the cache is
    not this user's alone.
    """
    place = cache_root(cache_dir) / "pixels" / key(split, size)
    with built(place, partial(_fill, split, size)):
        images = np.load(place / IMAGES, mmap_mode="r")
        masks = np.load(place / MASKS, mmap_mode="r") if split.has_masks else None
        return Pixels(images, masks, rows_at(place, split))


def key(split: Split, size: int) -> str:
    """Rows in another order have another file: the shards' own digests are part of the name."""
    facts = [_FORMAT, split.fingerprint, [shard.sha256 for shard in split.shards], size]
    what = "labels" if isinstance(split, LabelledSplit) else split.role.value
    return f"{what}-{size}-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]}"


def rows_at(place: Path, split: Split) -> Rows:
    """The rows that `decoded` left in a folder."""
    return read_rows(pq.read_table(place / ROWS), split)


def _fill(split: Split, size: int, folder: Path) -> None:
    require_room(folder.parent, pixel_bytes(split, size))
    images = _open(folder / IMAGES, (split.num_rows, 3, size, size))
    masks = _open(folder / MASKS, (split.num_rows, size, size)) if split.has_masks else None
    for first, table, resized in decoded(split, size, folder):
        for row, image in enumerate(resized, start=first):
            images[row] = image
        if masks is not None:
            sizes = np.full((table.num_rows, 2), size)
            masks[first : first + table.num_rows] = read_masks(table, split, sizes)
        del table  # before the next one is read
    for file in (images, masks):
        if file is not None:
            file.flush()


def decoded(split: Split, size: int, folder: Path) -> Iterator[tuple[int, pa.Table, Iterator[np.ndarray]]]:
    """All rows, some at a time: the number of the first, their table, and their images at `size`, decoded in threads.

    What else is known of them is written to `folder` once all are through.
    """
    facts = []
    with decoder(len(os.sched_getaffinity(0))) as pool:
        for first, table in _encoded(split, split.shard_set()):  # each byte is read once: no copy of them is kept
            facts.append(table.select(fact_columns(split)))
            yield first, table, decode_resize(id_and_image(table), size, pool)
            del table  # before the next one is read
    pq.write_table(pa.concat_tables(facts), folder / ROWS)


def _open(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """A new file of zeros. Its room is taken now: a page that no disk has room for would end the process (SIGBUS)."""
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    with path.open("rb+") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def _encoded(split: Split, shard_set: ShardSet) -> Iterator[tuple[int, pa.Table]]:
    columns = [*fact_columns(split), "image", *(("mask", "ignore") if split.has_masks else ())]
    chunk = split.rows_within(CHUNK_BYTES, CHUNK_ROWS)
    for first in range(0, split.num_rows, chunk):
        rows = np.arange(first, min(first + chunk, split.num_rows))
        yield first, shard_set.read(rows, columns)


def id_and_image(table) -> list[tuple[str, bytes]]:  # type: ignore[no-untyped-def]
    """`(id, encoded image)` of each row of a shard table."""
    return list(zip(table["id"].to_pylist(), table["image"].to_pylist(), strict=True))
