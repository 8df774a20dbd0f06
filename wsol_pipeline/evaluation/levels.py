"""Level images: all masks that the thresholds of a protocol cut from a map, in one small integer per pixel.

A level is the number of masks that hold the pixel: mask t is `levels > t`. Under the benchmark's rule a map has at
most 255 different masks, so 1000 thresholds cost no more than its levels do.
"""

import numpy as np
from numpy.typing import NDArray

from wsol_pipeline.compiled import jit
from wsol_pipeline.evaluation.protocols import Protocol

Levels = NDArray[np.uint16]


def level_image(map_HW: NDArray[np.floating], protocol: Protocol) -> tuple[Levels, NDArray[np.int64]]:
    """The level image of a normalised map, uint16 [H, W], and the number of the mask that each threshold cuts.

    "resized" maps: value * 255 truncated to uint8, mask T = int(τ * maximum), pixels > T. "raw" maps: pixels > τ.
    "peak" ones too. "double_mean" maps: values below τ become 0, pixels >= the mean of what results.
    """
    if protocol.normalise == "resized":
        levels_HW = _truncate(map_HW)
        return levels_HW, (protocol.thresholds * levels_HW.max()).astype(np.int64)
    if protocol.normalise == "double_mean":
        return _double_mean(map_HW, protocol.thresholds)
    grid = protocol.thresholds.astype(map_HW.dtype)  # compared as the maps are
    return count_below(map_HW, grid), np.arange(len(grid))


def num_masks(protocol: Protocol) -> int:
    """How many masks a level image of `protocol` can have."""
    return 255 if protocol.normalise == "resized" else protocol.num_thresholds


def _double_mean(map_HW: NDArray[np.floating], grid: NDArray[np.float64]) -> tuple[Levels, NDArray[np.int64]]:
    """A pixel is in mask τ if it is >= τ and >= the mean, which is above 0: if it is >= the larger of the two."""
    above_HW = map_HW > 0
    values_N = map_HW[above_HW]
    at_N = np.searchsorted(grid, values_N, side="right")
    sums_T = np.bincount(at_N, weights=values_N, minlength=len(grid) + 1)[::-1].cumsum()[-2::-1]
    cuts, mask_of_threshold = np.unique(np.maximum(grid, sums_T / map_HW.size), return_inverse=True)
    levels_HW = np.zeros(map_HW.shape, np.uint16)
    levels_HW[above_HW] = np.searchsorted(cuts, values_N, side="right")
    return levels_HW, mask_of_threshold


@jit()
def _truncate(map_HW):  # type: ignore[no-untyped-def]
    levels_HW = np.empty(map_HW.shape, np.uint16)
    for y in range(map_HW.shape[0]):
        for x in range(map_HW.shape[1]):
            levels_HW[y, x] = np.uint16(np.int32(map_HW[y, x] * 255))  # int32: the conversion that has a vector form
    return levels_HW


@jit()
def count_below(map_HW, grid):  # type: ignore[no-untyped-def]
    """How many values of the even `grid` over 0..1 lie strictly below each pixel: a guess, then exact steps."""
    levels_HW = np.empty(map_HW.shape, np.uint16)
    for y in range(map_HW.shape[0]):
        for x in range(map_HW.shape[1]):
            value = map_HW[y, x]
            level = max(0, min(len(grid), int(value * len(grid))))
            while level > 0 and grid[level - 1] >= value:
                level -= 1
            while level < len(grid) and grid[level] < value:
                level += 1
            levels_HW[y, x] = level
    return levels_HW
