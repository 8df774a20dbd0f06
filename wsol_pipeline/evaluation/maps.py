"""From the raw map of a network to the normalised map of an evaluation."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from wsol_pipeline.evaluation.protocols import Protocol


def normalised_map(
    raw_HW: NDArray[Any], protocol: Protocol, size_wh: tuple[int, int] | None = None
) -> NDArray[np.floating]:
    """The map `raw_HW`, of any size, at the size of the evaluation with values in about 0..1.

    "resized": cast to float64, cubic resize, then min-max, so that the peak is exactly 1 (Choe et al. 2020).
    "raw": float32, min-max at its own size, then bilinear resize, so that peaks may stay below 1 (BAS).
    "double_mean": float64, bilinear resize, zero what lies below the mean, min-max (mLDFR).
    "peak": float64, bilinear resize, divided by the maximum; what was negative stays so (seeds of VOC and COCO).
    A map without range, or with a value that is not finite, is all zeros; under "double_mean" all ones, so that its box
    is the whole image.
    A boolean map is a mask that somebody has cut already (B-CAM): it becomes 0 and 1 and is not normalised.
    `size_wh` of the stored image is asked for where maps have its size.
    """
    size_wh = protocol.map_size(raw_HW.shape[::-1] if size_wh is None else size_wh)
    if raw_HW.dtype == bool:
        return _resize(raw_HW.astype(np.float64), cv2.INTER_NEAREST, size_wh)
    if protocol.normalise == "resized":
        return _min_max(_resize(raw_HW.astype(np.float64), cv2.INTER_CUBIC, size_wh))
    if protocol.normalise == "raw":
        return _resize(_min_max(raw_HW.astype(np.float32), protocol.epsilon), cv2.INTER_LINEAR, size_wh)
    map_HW = _resize(raw_HW.astype(np.float64), cv2.INTER_LINEAR, size_wh)
    if protocol.normalise == "peak":
        peak = map_HW.max()
        return map_HW / (peak + protocol.epsilon) if np.isfinite(map_HW).all() and peak > 0 else np.zeros_like(map_HW)
    map_HW = _min_max(np.where(map_HW < map_HW.mean(), 0, map_HW))
    return map_HW if map_HW.any() else np.ones_like(map_HW)


def _resize(map_HW: NDArray[np.floating], interpolation: int, size_wh: tuple[int, int]) -> NDArray[np.floating]:
    resized: NDArray[np.floating] = cv2.resize(map_HW, size_wh, interpolation=interpolation)  # type: ignore[assignment]
    return resized


def _min_max(map_HW: NDArray[np.floating], epsilon: float = 0.0) -> NDArray[np.floating]:
    """Zero if constant or not finite; else minus the minimum, divided by the range. Keeps the dtype's own rounding."""
    low, high = map_HW.min(), map_HW.max()
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        return np.zeros_like(map_HW)
    map_HW = map_HW - low
    map_HW /= high - low + map_HW.dtype.type(epsilon)
    return map_HW
