"""Decoded pixels of a split, kept once on each node: a memory-mapped uint8 file that all workers and trials share.

A study decodes its data once; an epoch is then a permutation of rows. The file is built under a lock, aside, and
renamed when it is whole: a build that is killed leaves nothing that a later one would mistake for pixels. What a disk
does to it later is found by checksums, once in each process and after each change, and it is built again.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
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
from wsol_pipeline.private import distrust, own_folder
from wsol_pipeline.protocol import Role

logger = logging.getLogger(__name__)

_FORMAT = 2
CHUNK_ROWS, CHUNK_BYTES = 256, 16 * 2**20  # read and decoded between two writes: whichever is fewer rows
IMAGES, MASKS, ROWS = "images.npy", "masks.npy", "rows.parquet"
SEAL = "seal.json"  # written last: the checksums of the files above, without which they are none
_SUMMED = 32 * 2**20  # bytes of one checksum


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
    """The split's pixels at `size`, from this node's cache; built there if they are not in it, or not as they were.

    Raises `DataError` for a shard that is missing or altered, `ResourceError` if the disk has no room, or the cache is
    not this user's alone.
    """
    shard_set = split.shard_set()  # each byte of it is read once: no copy of the shards is kept
    place = cache_root(cache_dir) / "pixels" / _key(split, shard_set, size)
    with _usable(place):
        own_folder(place.parent)
        if not _is_whole(place):
            with FileLock(f"{place}.lock"):
                if not _is_whole(place):
                    _build(split, shard_set, size, place)
        images = np.load(place / IMAGES, mmap_mode="r")
        masks = np.load(place / MASKS, mmap_mode="r") if split.has_masks else None
        return Pixels(images, masks, read_rows(pq.read_table(place / ROWS), split))


@contextlib.contextmanager
def _usable(place: Path) -> Iterator[None]:
    """Within, what the disk refuses is a `ResourceError`."""
    try:
        yield
    except OSError as error:
        raise ResourceError(
            f"The pixel cache {place} cannot be used ({error}): mend that, choose another cache_dir, or mode "
            "'streaming'."
        ) from error


def _is_whole(place: Path) -> bool:
    """Whether the files at `place` are there, as they were built."""
    if not os.path.lexists(place):
        return False
    try:
        files = json.loads((place / SEAL).read_bytes())
        if not distrust(place) and files == _sums(place, _state(place, files)):
            return True
    except (OSError, ValueError, TypeError):
        pass
    logger.warning("the pixel cache %s is not what was built: it is built again", place)
    return False


def _state(place: Path, names: Iterable[str]) -> tuple[tuple[str, int, int, int, int], ...]:
    """What changes whenever one of the files does. Raises `FileNotFoundError`."""
    stats = ((name, (place / name).stat(follow_symlinks=False)) for name in sorted(names))
    return tuple((name, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in stats)


@lru_cache(maxsize=256)
def _sums(place: Path, state: tuple[tuple[str, int, int, int, int], ...]) -> dict[str, list[int]]:
    """The CRC-32 of each piece of each file, which are in this `state`: read again when that changes."""
    return {name: _checksums(place / name, size) for name, _, size, _, _ in state}


def _checksums(path: Path, size: int) -> list[int]:
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            return list(pool.map(partial(_checksum, file), range(0, size, _SUMMED)))
    finally:
        os.close(file)


def _checksum(file: int, begin: int) -> int:
    return zlib.crc32(os.pread(file, _SUMMED, begin))


def _key(split: Split, shard_set: ShardSet, size: int) -> str:
    """Rows in another order have another file: the shards' own digests are part of the name."""
    facts = [_FORMAT, split.fingerprint, [shard.sha256 for shard in shard_set.shards], size]
    what = "labels" if isinstance(split, LabelledSplit) else split.role.value
    return f"{what}-{size}-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]}"


def _build(split: Split, shard_set: ShardSet, size: int, place: Path) -> None:
    aside = Path(f"{place}.aside")
    for old in (aside, place):  # of a build that was killed, or damaged: we hold the lock
        shutil.rmtree(old, ignore_errors=True)
    _require_room(place.parent, pixel_bytes(split, size))
    aside.mkdir(mode=0o700)
    try:
        _fill(split, shard_set, size, aside)
        _seal(aside)
    except OSError:  # a disk that is full is left as it was
        shutil.rmtree(aside, ignore_errors=True)
        raise
    aside.rename(place)


def _fill(split: Split, shard_set: ShardSet, size: int, folder: Path) -> None:
    images = _open(folder / IMAGES, (split.num_rows, 3, size, size))
    masks = _open(folder / MASKS, (split.num_rows, size, size)) if split.has_masks else None
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
    pq.write_table(pa.concat_tables(facts), folder / ROWS)


def _seal(folder: Path) -> None:
    """Write down what the files are, once the disk has them: after a power cut a name may have zeros behind it."""
    names = sorted(path.name for path in folder.iterdir())
    for name in names:
        with (folder / name).open("rb+") as file:
            os.fsync(file.fileno())
    (folder / SEAL).write_text(json.dumps(_sums(folder, _state(folder, names))))


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


def _require_room(where: Path, needed: int) -> None:
    free = shutil.disk_usage(where).free
    if needed > free:
        raise ResourceError(
            f"The pixel cache needs {needed / 2**30:.1f} GiB but {where} has {free / 2**30:.1f} GiB free: "
            "choose another cache_dir, or mode 'streaming'."
        )
