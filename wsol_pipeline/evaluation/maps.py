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
    A mask that somebody has cut already is not normalised, but 0 and 1: a boolean map, or two, [2, H, W], of the object
    and the background, which are resized bilinearly and compared (B-CAM).
    `size_wh` of the stored image is asked for where maps have its size.
    """
    size_wh = protocol.map_size(raw_HW.shape[:-3:-1] if size_wh is None else size_wh)
    if raw_HW.ndim == 3:
        object_HW, background_HW = _planes(raw_HW, size_wh)
        return (object_HW > background_HW).astype(np.float64)
    if raw_HW.dtype == bool:
        return _resize(raw_HW.astype(np.float64), cv2.INTER_NEAREST, size_wh)
    if protocol.normalise == "resized":
        return _min_max(_resize(raw_HW.astype(np.float64), cv2.INTER_CUBIC, size_wh))
    if protocol.normalise == "raw":
        return _resize(_min_max(raw_HW.astype(np.float32), protocol.epsilon), cv2.INTER_LINEAR, size_wh)
    if protocol.normalise == "peak":
        map_HW = _resize(raw_HW.astype(np.float64), cv2.INTER_LINEAR, size_wh)
        peak = map_HW.max()
        return map_HW / (peak + protocol.epsilon) if np.isfinite(map_HW).all() and peak > 0 else np.zeros_like(map_HW)
    map_HW = _min_max(above_mean(raw_HW, size_wh))
    return map_HW if map_HW.any() else np.ones_like(map_HW)


def above_mean(raw_HW: NDArray[Any], size_wh: tuple[int, int]) -> NDArray[np.float64]:
    """A map at the size of the evaluation, float64, 0 where it is below its mean (mLDFR)."""
    map_HW = _resize(raw_HW.astype(np.float64), cv2.INTER_LINEAR, size_wh)
    return np.where(map_HW < map_HW.mean(), 0, map_HW)


def competing_map(
    raw_HW: NDArray[Any], protocol: Protocol, size_wh: tuple[int, int] | None = None
) -> NDArray[np.floating]:
    """`normalised_map`, to be compared with those of other classes of the same image.

    Where masks of two maps overlap, the class whose object map is the higher has the pixel. Hence a mask has no 1 but
    1.5 + arctan(object) / π: above every threshold, and in the order of the object maps.
    """
    map_HW = normalised_map(raw_HW, protocol, size_wh)
    if raw_HW.ndim == 2:
        return map_HW
    object_HW, _ = _planes(raw_HW, map_HW.shape[::-1])
    return np.where(map_HW > 0, 1.5 + np.arctan(object_HW) / np.pi, 0)


def _planes(raw_2HW: NDArray[Any], size_wh: tuple[int, ...]) -> list[NDArray[np.floating]]:
    return [_resize(raw_HW.astype(np.float64), cv2.INTER_LINEAR, size_wh) for raw_HW in raw_2HW]


def _resize(map_HW: NDArray[np.floating], interpolation: int, size_wh: tuple[int, ...]) -> NDArray[np.floating]:
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
