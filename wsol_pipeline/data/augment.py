"""Random crop and flip, drawn for an image in an epoch: the same whoever draws, wherever and whenever.

The draws are a counter-based hash of (seed, epoch, image id), so a restart, another number of workers or the other
executor give the same pixels.
"""

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Crops(NamedTuple):
    """For each image of a batch: the crop's first row and column, and whether to mirror it."""

    top_B: np.ndarray
    left_B: np.ndarray
    flip_B: np.ndarray


def hash_ids(ids: Iterable[str]) -> np.ndarray:
    """A stable 64-bit hash of each id, uint64 [N]."""
    digests = b"".join(hashlib.blake2b(name.encode(), digest_size=8).digest() for name in ids)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def splitmix64(state: np.ndarray) -> np.ndarray:
    """The output function of SplitMix64 (Steele, Lea, Flood 2014, Fig. 16), uint64 to uint64, elementwise."""
    z = state + _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


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
