"""Otsu's rule: each map is cut where its own values fall into two groups, so that no threshold is chosen by boxes.

A model that is read by it keeps the rule, `OTSU`, in the place of a number. What is cut are values truncated to 256
levels, as the benchmark does.
"""

import numpy as np
from numpy.typing import NDArray

from wsol_pipeline.evaluation.protocols import Protocol

OTSU = "otsu"
Threshold = float | str  # of a map: a number in 0..1, or `OTSU`


def otsu_level(pixels_L: NDArray[np.integer]) -> int | None:
    """The level after which a histogram is cut: the lowest that makes ω0 ω1 (μ0 - μ1)² largest.

    ω are the shares of pixels up to it and beyond, μ their means. None where all pixels are of one level.
    """
    variances_L = _between(pixels_L)
    return int(variances_L.argmax()) if variances_L.any() else None


def separability(pixels_L: NDArray[np.integer]) -> float:
    """The share of the values' variance that lies between the two groups of Otsu's cut, 0..1; 0 of a flat map."""
    shares_L, levels_L = pixels_L / pixels_L.sum(), np.arange(len(pixels_L))
    variance = shares_L @ (levels_L - shares_L @ levels_L) ** 2
    return float(_between(pixels_L).max(initial=0.0) / variance) if variance else 0.0


def _between(pixels_L: NDArray[np.integer]) -> NDArray[np.float64]:
    """ω0 ω1 (μ0 - μ1)² of a cut after each level but the last; 0 where a group is empty."""
    sums_L = (pixels_L * np.arange(len(pixels_L))).cumsum(dtype=np.float64)
    counts_L = pixels_L.cumsum(dtype=np.float64)
    low, high = counts_L[:-1], counts_L[-1] - counts_L[:-1]
    both = (low > 0) & (high > 0)
    apart = np.zeros(len(low))
    apart[both] = (sums_L[:-1][both] / low[both] - (sums_L[-1] - sums_L[:-1])[both] / high[both]) ** 2
    return np.asarray(low * high * apart / counts_L[-1] ** 2)


def histogram(map_HW: NDArray[np.floating]) -> NDArray[np.int64]:
    """Pixels per int(255 * value) of a normalised map, int64 [256]."""
    levels_HW = np.clip(map_HW * 255, 0, 255).astype(np.uint8)
    return np.bincount(levels_HW.ravel(), minlength=256)


def otsu_threshold(map_HW: NDArray[np.floating], protocol: Protocol) -> float:
    """The threshold of the protocol's grid that keeps what lies above Otsu's level of a normalised map.

    Of a flat map that of level 0.
    """
    level = otsu_level(histogram(map_HW)) or 0
    grid = protocol.thresholds
    return float(grid[int(np.searchsorted(grid, (level + 1) / 255)) - 1])
