"""Decoded pixels of a split, kept once on each node: a memory-mapped uint8 file that all workers and trials share.

A study decodes its data once; an epoch is then a permutation of rows. The file is built under a lock, aside, and
renamed when it is whole: a build that is killed leaves nothing that a later one would mistake for pixels.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from wsol_pipeline.data.dataset import LabelledSplit, Split, encode_labels
from wsol_pipeline.data.hashes import hash_ids
from wsol_pipeline.data.images import decode_resize, decoder, label_mask
from wsol_pipeline.data.schema import PIXEL_COLUMNS, schema
from wsol_pipeline.data.shards import ShardSet, cache_root
from wsol_pipeline.errors import ResourceError
from wsol_pipeline.protocol import Role

_FORMAT = 2
CHUNK_ROWS, CHUNK_BYTES = 256, 16 * 2**20  # read and decoded between two writes: whichever is fewer rows
IMAGES, MASKS = "images.npy", "masks.npy"


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
    """The split's pixels at `size`, from this node's cache; built there first if they are not in it yet.

    Raises `DataError` for a shard that is missing or altered, `ResourceError` if the disk has no room.
    """
    shard_set = split.shard_set()  # each byte of it is read once: no copy of the shards is kept
    place = cache_root(cache_dir) / "pixels" / _key(split, shard_set, size)
    place.parent.mkdir(parents=True, exist_ok=True)
    if not place.exists():
        with FileLock(f"{place}.lock"):
            if not place.exists():
                _build(split, shard_set, size, place)
    images = np.load(place / IMAGES, mmap_mode="r")
    masks = np.load(place / MASKS, mmap_mode="r") if (place / MASKS).exists() else None
    return Pixels(images, masks, read_rows(pq.read_table(place / "rows.parquet"), split))


def _key(split: Split, shard_set: ShardSet, size: int) -> str:
    """Rows in another order have another file: the shards' own digests are part of the name."""
    facts = [_FORMAT, split.fingerprint, [shard.sha256 for shard in shard_set.shards], size]
    what = "labels" if isinstance(split, LabelledSplit) else split.role.value
    return f"{what}-{size}-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]}"


def _build(split: Split, shard_set: ShardSet, size: int, place: Path) -> None:
    aside = Path(f"{place}.aside")
    shutil.rmtree(aside, ignore_errors=True)  # of a build that was killed: we hold the lock
    _require_room(place.parent, pixel_bytes(split, size))
    aside.mkdir()
    images = _open(aside / IMAGES, (split.num_rows, 3, size, size))
    masks = _open(aside / MASKS, (split.num_rows, size, size)) if split.has_masks else None
    facts = []
    with decoder(len(os.sched_getaffinity(0))) as pool:
        for first, table in _encoded(split, shard_set):
            facts.append(table.select(fact_columns(split)))
            for row, image in enumerate(decode_resize(id_and_image(table), size, pool), start=first):
                images[row] = image
            if masks is not None:
                sizes = np.full((table.num_rows, 2), size)
                masks[first : first + table.num_rows] = read_masks(table, split, sizes)
            del table  # before the next one is read
    for file in (images, masks):
        if file is not None:
            file.flush()
    pq.write_table(pa.concat_tables(facts), aside / "rows.parquet")
    aside.rename(place)


def _open(path: Path, shape: tuple[int, ...]) -> np.memmap:
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)


def _encoded(split: Split, shard_set: ShardSet) -> Iterator[tuple[int, pa.Table]]:
    columns = [*fact_columns(split), "image", *(("mask", "ignore") if split.has_masks else ())]
    chunk = split.rows_within(CHUNK_BYTES, CHUNK_ROWS)
    for first in range(0, split.num_rows, chunk):
        rows = np.arange(first, min(first + chunk, split.num_rows))
        yield first, shard_set.read(rows, columns)


def id_and_image(table) -> list[tuple[str, bytes]]:  # type: ignore[no-untyped-def]
    """`(id, encoded image)` of each row of a shard table."""
    return list(zip(table["id"].to_pylist(), table["image"].to_pylist(), strict=True))


def _require_room(where: Path, needed: int) -> None:
    free = shutil.disk_usage(where).free
    if needed > free:
        raise ResourceError(
            f"The pixel cache needs {needed / 2**30:.1f} GiB but {where} has {free / 2**30:.1f} GiB free: "
            "choose another cache_dir, or mode 'streaming'."
        )
