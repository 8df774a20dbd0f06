"""Training crops of stored photographs with label images beside them: scaled, cut, mirrored.

The draws for an image are a function of (seed, epoch, its id), so a restart or another number of workers gives the same
pixels. Encoded bytes are held for the rows of one or two windows of the epoch's plan (128 MiB of images each).
"""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from wsol_pipeline.data.dataset import TrainSplit
from wsol_pipeline.data.hashes import hash_ids
from wsol_pipeline.data.images import decode
from wsol_pipeline.data.plan import EpochPlan
from wsol_pipeline.errors import DataError
from wsol_pipeline.images import normalize
from wsol_pipeline.segmentation import masks
from wsol_pipeline.segmentation.station import Station

IGNORED = 255


@dataclass(frozen=True)
class Cropping:
    """side: of the crop, px. scales: a range to draw from, or single values. smooth: how images are resized. anywhere:
    an image smaller than the crop is placed anywhere in it, else at its top left. fill: RGB 0..255 around it."""

    side: int
    scales: tuple[float, ...] = (0.5, 2.0)
    steps: bool = False  # `scales` are the values themselves
    smooth: Image.Resampling = Image.Resampling.BILINEAR
    anywhere: bool = False
    fill: tuple[float, float, float] = (123.675, 116.28, 103.53)  # 0 once it is normalised


def crop(
    image_HW3: np.ndarray, labels_HW: np.ndarray, how: Cropping, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """float32 RGB 0..255 [3, S, S] and labels uint8 [S, S], 255 beside the image."""
    scale = float(rng.choice(how.scales) if how.steps else rng.uniform(how.scales[0], how.scales[-1]))
    height, width = (max(1, round(side * scale)) for side in labels_HW.shape)
    image = np.asarray(Image.fromarray(image_HW3).resize((width, height), how.smooth))
    labels = np.asarray(Image.fromarray(labels_HW).resize((width, height), Image.Resampling.NEAREST))
    if rng.random() < 0.5:
        image, labels = image[:, ::-1], labels[:, ::-1]
    (from_y, to_y, rows), (from_x, to_x, columns) = (_window(side, how, rng) for side in (height, width))
    out_SS3 = np.tile(np.array(how.fill, np.float32), (how.side, how.side, 1))
    out_SS = np.full((how.side, how.side), IGNORED, np.uint8)
    place, part = (
        np.s_[to_y : to_y + rows, to_x : to_x + columns],
        np.s_[from_y : from_y + rows, from_x : from_x + columns],
    )
    out_SS3[place], out_SS[place] = image[part], labels[part]
    return torch.from_numpy(out_SS3).permute(2, 0, 1).contiguous(), torch.from_numpy(out_SS)


def _window(side: int, how: Cropping, rng: np.random.Generator) -> tuple[int, int, int]:
    """Where the part begins in the image and in the crop, and how long it is."""
    slack = side - how.side
    at = int(rng.integers(0, abs(slack) + 1))
    if slack >= 0:
        return at, 0, how.side
    return 0, at if how.anywhere else 0, side


@dataclass
class Batch:
    """Images float32 normalised [B, 3, S, S], labels uint8 [B, S, S]; `rows` of the whole step, over all ranks."""

    images_BCHW: Tensor
    labels_BHW: Tensor
    global_size: int


class CropReader:
    """The batches of a rank, from the images of `split` and the label images in `column` of a station."""

    def __init__(self, split: TrainSplit, labels: Station, column: str, how: Cropping, plan: EpochPlan) -> None:
        self.split, self.labels, self.column, self.how, self.plan = split, labels, column, how, plan
        self._held: dict[int, dict[int, tuple[str, bytes, bytes]]] = {}  # window -> row -> id, image, labels
        self._lock = threading.Lock()

    def epoch(self, epoch: int, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """From the global sample `start` on; the next batch is made while one is used."""
        sizes = np.diff(self.plan.bounds()).tolist()
        spans = self.plan.batches(epoch, rank=rank, world=world, start_sample=start)
        with ThreadPoolExecutor(1) as ahead:
            made = [ahead.submit(self._batch, epoch, rows, sizes[index]) for index, rows in _first(spans)]
            while made:
                current = made.pop()
                made = [ahead.submit(self._batch, epoch, rows, sizes[index]) for index, rows in _first(spans)]
                yield current.result()

    def _batch(self, epoch: int, rows: np.ndarray, size: int) -> Batch:
        pairs = [self._crop(epoch, *self._row(epoch, int(row))) for row in rows]
        images_BCHW = torch.stack([image for image, _ in pairs])
        return Batch(normalize(images_BCHW), torch.stack([labels for _, labels in pairs]), size)

    def _crop(self, epoch: int, name: str, image: bytes, labels: bytes) -> tuple[Tensor, Tensor]:
        pixels_HW3, labels_HW = decode(image).permute(1, 2, 0).numpy(), masks.decode(labels)
        if pixels_HW3.shape[:2] != labels_HW.shape:
            raise DataError(f"Image {name!r} is {pixels_HW3.shape[:2]} but its pseudo mask {labels_HW.shape}.")
        rng = np.random.default_rng([self.plan.seed, epoch, int(hash_ids([name])[0])])
        return crop(pixels_HW3, labels_HW, self.how, rng)

    def _row(self, epoch: int, row: int) -> tuple[str, bytes, bytes]:
        for held in self._held.values():
            if row in held:
                return held[row]
        order, bounds = self.plan.windows(epoch)
        window = int(np.searchsorted(bounds, int(np.flatnonzero(order == row)[0]), side="right")) - 1
        with self._lock:
            while len(self._held) > 1:
                del self._held[next(iter(self._held))]
            self._held[len(bounds) * epoch + window] = self._read(order[bounds[window] : bounds[window + 1]])
        return self._row(epoch, row)

    def _read(self, rows: np.ndarray) -> dict[int, tuple[str, bytes, bytes]]:
        images = self.split.shard_set().read(rows, ["id", "image"])
        labels = self.labels.read("train", rows, ["id", self.column])
        ids = images["id"].to_pylist()
        if ids != labels["id"].to_pylist():
            raise DataError(f"{self.labels.place.uri} is of other images than {self.split.uri}: make it again.")
        columns = (ids, images["image"].to_pylist(), labels[self.column].to_pylist())
        return {int(row): found for row, found in zip(rows, zip(*columns, strict=True), strict=True)}


def _first(spans: Iterator[tuple[int, np.ndarray]]) -> list[tuple[int, np.ndarray]]:
    """The next of the spans, if there is one."""
    found = next(spans, None)
    return [] if found is None else [found]
