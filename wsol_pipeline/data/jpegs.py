"""Training images as small JPEGs of the side that a recipe needs, kept once on each node, all in one file.

For sets whose pixels no disk holds: an eighth of their bytes, and decoded several times as fast as photographs. What
they show differs a little from the photographs' pixels, by how much is measured when they are made. The same on every
node, so that no batch depends on who made it.
"""

import io
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from typing import TypeVar

import cv2
import numpy as np
import torch
from PIL import Image

from wsol_pipeline.data.cache import built, require_room
from wsol_pipeline.data.dataset import Split, TrainSplit
from wsol_pipeline.data.images import decode_resize
from wsol_pipeline.data.pixels import Rows, decoded, id_and_image, key, rows_at
from wsol_pipeline.data.shards import cache_root
from wsol_pipeline.errors import DataError

S = TypeVar("S")
T = TypeVar("T")
QUALITY = 90  # of those made today; colours are kept at every pixel (4:4:4)
IMAGES, ENDS, SAMPLED = "images.jpegs", "ends.npy", "sampled.json"
_RUNS, _RUN = 8, 16  # of neighbouring rows, which lie in a row group or two, that are sampled
_MARGIN = 1.1  # of what a sample says that all will take


@dataclass(frozen=True)
class Sample:
    """What JPEGs of some images of a split are like: their side in pixels and quality, how many, their mean bytes, and
    the mean absolute difference from the exact pixels in grey levels (of 255)."""

    side: int
    quality: int
    images: int
    bytes: float
    difference: float

    @property
    def told(self) -> str:
        """In words."""
        return (
            f"JPEGs of {self.side}x{self.side}, quality {self.quality}, about {self.bytes / 1000:.1f} KB each; pixels "
            f"differ from the exact ones by {self.difference:.1f} of 255 grey levels on average ({self.images} images)"
        )


@dataclass(frozen=True)
class Jpegs:
    """A split's images as JPEGs: `data` uint8, mapped from the file; image i ends before `ends_N[i]`."""

    data: np.ndarray
    ends_N: np.ndarray
    rows: Rows
    sample: Sample

    @property
    def told(self) -> str:
        """What they are, in words."""
        return f"{self.sample.told}; {len(self.data):,} bytes in all"

    def each(self, rows: Iterable[int]) -> Iterator[np.ndarray]:
        """uint8 [3, size, size] of each of the rows, decoded ahead in as many threads as torch has here."""
        return ordered(self._image, rows, torch.get_num_threads())

    def _image(self, row: int) -> np.ndarray:
        begin = self.ends_N[row - 1] if row else 0
        return decode(self.data[begin : self.ends_N[row]])


def ordered(work: Callable[[S], T], items: Iterable[S], threads: int) -> Iterator[T]:
    """`work` of each of the items in their order, at most three a thread ahead of who takes them; one is no thread."""
    if threads == 1:
        yield from map(work, items)
        return
    begun: deque[Future[T]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            begun.append(pool.submit(work, item))
            if len(begun) > 3 * threads:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()


def cached_jpegs(split: TrainSplit, size: int, quality: int, cache_dir: str | None) -> Jpegs:
    """The split's images at `size` as JPEGs of that quality, from this node's cache; built there as `cached_pixels`.

    Raises what that does.
    """
    place = cache_root(cache_dir) / "jpegs" / f"{key(split, size)}-{quality}"
    with built(place, partial(_fill, split, size, quality)):
        data, ends_N = np.memmap(place / IMAGES, np.uint8, "r"), np.load(place / ENDS)
        return Jpegs(data, ends_N, rows_at(place, split), Sample(**json.loads((place / SAMPLED).read_text())))


def jpeg_bytes(split: Split, sample: Sample) -> int:
    """Bytes that all JPEGs of the split will hardly exceed."""
    return int(_MARGIN * sample.bytes * split.num_rows)


def sampled(split: TrainSplit, size: int, quality: int) -> Sample:
    """Make JPEGs of some of the split's images: the same ones whoever asks, from all over it."""
    starts = np.linspace(0, max(split.num_rows - _RUN, 0), _RUNS).astype(np.int64)
    rows = np.unique(np.minimum(starts[:, None] + np.arange(_RUN), split.num_rows - 1))
    found = []
    for image_CHW in decode_resize(id_and_image(split.shard_set().read(rows, ["id", "image"])), size):
        jpeg = encode(image_CHW, quality)
        found.append((len(jpeg), np.abs(image_CHW.astype(np.int16) - decode(np.frombuffer(jpeg, np.uint8))).mean()))
    return Sample(size, quality, len(found), *(float(fmean(values)) for values in zip(*found, strict=True)))


def encode(image_CHW: np.ndarray, quality: int) -> bytes:
    """A uint8 image as a JPEG with colours at every pixel."""
    sink = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image_CHW.transpose(1, 2, 0))).save(
        sink, "JPEG", quality=quality, subsampling=0
    )
    return sink.getvalue()


def decode(jpeg: np.ndarray) -> np.ndarray:
    """uint8 [3, size, size] of one of our own, which needs no look before: what torchvision makes of it, sooner."""
    image_HWC = cv2.imdecode(jpeg, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    if image_HWC is None:
        raise DataError(
            "A small JPEG of the image cache was altered after it was compared with its checksum: the same command "
            "makes the cache anew."
        )
    return np.ascontiguousarray(image_HWC.transpose(2, 0, 1))


def _fill(split: TrainSplit, size: int, quality: int, folder: Path) -> None:
    sample = sampled(split, size, quality)
    require_room(folder.parent, jpeg_bytes(split, sample))
    (folder / SAMPLED).write_text(json.dumps(asdict(sample)))
    lengths = []
    with (folder / IMAGES).open("wb") as file, ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for _, table, images in decoded(split, size, folder):
            del table  # before the next one is read
            for jpeg in pool.map(partial(encode, quality=quality), images):
                lengths.append(file.write(jpeg))
    np.save(folder / ENDS, np.array(list(accumulate(lengths)), np.int64))
