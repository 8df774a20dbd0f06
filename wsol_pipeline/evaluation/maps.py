"""From the raw map of a network to the normalised map of an evaluation."""

import cv2
import numpy as np
from numpy.typing import NDArray

from wsol_pipeline.evaluation.protocols import Protocol


def normalised_map(raw_HW: NDArray[np.floating], protocol: Protocol) -> NDArray[np.floating]:
    """The map `raw_HW`, of any size, at [image_size, image_size] with values in about 0..1.

    "resized": cast to float64, cubic resize, then min-max, so that the peak is exactly 1 (Choe et al. 2020).
    "raw": float32, min-max at its own size, then bilinear resize, so that peaks may stay below 1 (BAS).
    A map without range, or with a value that is not finite, is all zeros.
    """
    if protocol.normalise == "resized":
        return _min_max(_resize(raw_HW.astype(np.float64), cv2.INTER_CUBIC, protocol), 0.0)
    return _resize(_min_max(raw_HW.astype(np.float32), protocol.epsilon), cv2.INTER_LINEAR, protocol)


def _resize(map_HW: NDArray[np.floating], interpolation: int, protocol: Protocol) -> NDArray[np.floating]:
    resized: NDArray[np.floating] = cv2.resize(map_HW, (protocol.image_size,) * 2, interpolation=interpolation)  # type: ignore[assignment]
    return resized


def _min_max(map_HW: NDArray[np.floating], epsilon: float) -> NDArray[np.floating]:
    """Zero if constant or not finite; else minus the minimum, divided by the range. Keeps the dtype's own rounding."""
    low, high = map_HW.min(), map_HW.max()
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        return np.zeros_like(map_HW)
    map_HW = map_HW - low
    map_HW /= high - low + map_HW.dtype.type(epsilon)
    return map_HW
