"""Random crop and flip, drawn for an image in an epoch: the same whoever draws, wherever and whenever.

The draws are a counter-based hash of (seed, epoch, image id), so a restart, another number of workers or the other
executor give the same pixels.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from wsol_pipeline.data.hashes import _GOLDEN, splitmix64
from wsol_pipeline.data.resample import resample

TRAIN_GEOMETRIES = ("crop", "random_resized_crop", "random_resized_crop_stored")
_TRIES = 10  # regions drawn until one fits, as torchvision does
_ASPECTS = (3 / 4, 4 / 3)  # of a region's width to its height


class Crops(NamedTuple):
    """For each image of a batch: the crop's first row and column, and whether to mirror it."""

    top_B: np.ndarray
    left_B: np.ndarray
    flip_B: np.ndarray


class Regions(NamedTuple):
    """For each image of a batch: what to cut out, in pixels of the stored image, and whether to mirror it."""

    top_B: np.ndarray
    left_B: np.ndarray
    height_B: np.ndarray
    width_B: np.ndarray
    flip_B: np.ndarray


@dataclass(frozen=True)
class Augmentation:
    """What a training image goes through, the same for both executors. Sizes in pixels.

    geometry: "crop": a random square of the image resized to `resize_size`, the aspect ignored | "random_resized_crop":
        a random region of the stored image, cut out of the resized one: where it was drawn to half a pixel of that, and
        no sharper than that | "random_resized_crop_stored": the same region, cut out of the stored image itself, which
        has to be decoded every time.
    crop_scale: smallest share of the stored image's area that a region has.
    """

    geometry: str
    resize_size: int
    image_size: int
    crop_scale: float

    @property
    def decoded_size(self) -> int | None:
        """Side to which images are resized before; None: not at all."""
        return None if self.geometry == "random_resized_crop_stored" else self.resize_size

    def apply(
        self,
        images: Iterable[np.ndarray],
        hashes_B: np.ndarray,
        sizes_B2: np.ndarray,
        seed: int,
        epoch: int | np.ndarray,
    ) -> np.ndarray:
        """uint8 [B, 3, image_size, image_size] of uint8 [3, H, W] each; `sizes_B2`: width, height of those stored."""
        if self.geometry == "crop":
            crops = draw_crops(hashes_B, seed, epoch, self.resize_size, self.image_size)
            return crop_flip(images, crops, self.image_size)
        regions = draw_regions(hashes_B, seed, epoch, sizes_B2, self.crop_scale)
        return cut_resize_flip(images, regions, sizes_B2, self.image_size)


def uniform(hashes_B: np.ndarray, seed: int, epoch: int | np.ndarray, draws: int) -> np.ndarray:
    """`draws` numbers in [0, 1) for each id hash, float64 [draws, B]; `epoch` is one for all, or each image's own."""
    key = splitmix64(splitmix64(np.array([seed], np.uint64)) ^ np.asarray(epoch, np.uint64))
    state_B = splitmix64(hashes_B ^ key)
    counters_D1 = np.arange(1, draws + 1, dtype=np.uint64)[:, None] * _GOLDEN
    return (splitmix64(state_B + counters_D1) >> np.uint64(11)) * 2.0**-53


def draw_crops(hashes_B: np.ndarray, seed: int, epoch: int | np.ndarray, size: int, crop: int) -> Crops:
    """A uniform position of a `crop` square in a `size` square, and a mirror image half of the time."""
    top_B, left_B, flip_B = uniform(hashes_B, seed, epoch, 3)
    span = size - crop + 1
    return Crops((top_B * span).astype(np.int64), (left_B * span).astype(np.int64), flip_B < 0.5)


def crop_flip(images: Iterable[np.ndarray], crops: Crops, size: int) -> np.ndarray:
    """Cut each of B images (uint8 [3, R, R]) as it comes: uint8 [B, 3, size, size], written once."""
    cut_BCHW = np.empty((len(crops.flip_B), 3, size, size), np.uint8)
    places = zip(images, *(values.tolist() for values in crops), strict=True)
    for i, (image, top, left, flip) in enumerate(places):
        cut_CHW = image[:, top : top + size, left : left + size]
        cut_BCHW[i] = cut_CHW[:, :, ::-1] if flip else cut_CHW
    return cut_BCHW


def draw_regions(
    hashes_B: np.ndarray, seed: int, epoch: int | np.ndarray, sizes_B2: np.ndarray, smallest: float
) -> Regions:
    """Regions as torchvision's RandomResizedCrop draws them: of `smallest` to all of the area, aspects from 3/4 to 4/3,
    uniform in area, in the logarithm of the aspect and in position. `sizes_B2` is width, height.

    The first of ten sizes that fits the image is taken; if none does, the largest centred one of an allowed aspect.
    """
    draws = uniform(hashes_B, seed, epoch, 2 * _TRIES + 3)
    width_B, height_B = sizes_B2.T
    wide_TB, tall_TB = _drawn_sides(draws[: 2 * _TRIES], width_B * height_B, smallest)
    fits_TB = (wide_TB > 0) & (wide_TB <= width_B) & (tall_TB > 0) & (tall_TB <= height_B)
    found_B, first_B, at_B = fits_TB.any(0), fits_TB.argmax(0), np.arange(len(hashes_B))
    largest_wide_B, largest_tall_B = _largest_sides(width_B, height_B)
    wide_B = np.where(found_B, wide_TB[first_B, at_B], largest_wide_B)
    tall_B = np.where(found_B, tall_TB[first_B, at_B], largest_tall_B)
    across_B, down_B, flip_B = draws[2 * _TRIES :]
    left_B = np.where(found_B, across_B * (width_B - wide_B + 1), (width_B - wide_B) // 2).astype(np.int64)
    top_B = np.where(found_B, down_B * (height_B - tall_B + 1), (height_B - tall_B) // 2).astype(np.int64)
    return Regions(top_B, left_B, tall_B, wide_B, flip_B < 0.5)


def _drawn_sides(draws_2TB: np.ndarray, areas_B: np.ndarray, smallest: float) -> tuple[np.ndarray, np.ndarray]:
    """Width and height of each try, int64 [T, B]."""
    areas_TB = areas_B * (smallest + draws_2TB[:_TRIES] * (1 - smallest))
    low, high = map(math.log, _ASPECTS)
    aspects_TB = np.exp(low + draws_2TB[_TRIES:] * (high - low))
    wide_TB, tall_TB = np.rint(np.sqrt(areas_TB * aspects_TB)), np.rint(np.sqrt(areas_TB / aspects_TB))
    return wide_TB.astype(np.int64), tall_TB.astype(np.int64)


def _largest_sides(width_B: np.ndarray, height_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Width and height of the largest region of an allowed aspect."""
    wide_B = np.minimum(width_B, np.rint(height_B * _ASPECTS[1])).astype(np.int64)
    tall_B = np.minimum(height_B, np.rint(width_B / _ASPECTS[0])).astype(np.int64)
    return wide_B, tall_B


def cut_resize_flip(images: Iterable[np.ndarray], regions: Regions, sizes_B2: np.ndarray, size: int) -> np.ndarray:
    """The region of each of B images (uint8 [3, H, W]), bilinear with antialiasing: uint8 [B, 3, size, size].

    A region is in pixels of the stored image of `sizes_B2` and is brought to those of the image that came.
    """
    cut_BCHW = np.empty((len(regions.flip_B), 3, size, size), np.uint8)
    places = zip(images, sizes_B2.tolist(), *(values.tolist() for values in regions), strict=True)
    for i, (image, (width, height), top, left, tall, wide, flip) in enumerate(places):
        rows, columns = _scaled(top, tall, image.shape[1] / height), _scaled(left, wide, image.shape[2] / width)
        resample(image[:, rows, columns], flip, cut_BCHW[i])
    return cut_BCHW


def _scaled(begin: int, length: int, factor: float) -> slice:
    """The pixels of an image `factor` times as large, one at least."""
    first = min(round(begin * factor), round((begin + length) * factor) - 1)
    return slice(max(first, 0), max(round((begin + length) * factor), 1))
