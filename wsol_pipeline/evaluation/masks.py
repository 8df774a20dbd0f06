"""Map values inside and outside the objects' masks: histograms over all pixels of a split, and what follows of them.

Both are whole numbers, so they merge over images and workers to the last pixel. The first has the cuts of the
benchmark's mask evaluator (Choe et al. 2020), the thresholds τ and 1; the second the 256 levels of BAS's IoU curve.
"""

import numpy as np
from numpy.typing import NDArray

from wsol_pipeline.compiled import jit
from wsol_pipeline.errors import DataError

IGNORED = 255  # label of pixels that count neither way
NUM_LEVELS = 256


@jit()
def count_pixels(map_HW, mask_HW, cuts):  # type: ignore[no-untyped-def]
    """Pixels per half-open bin of values that starts at one of `cuts` (even steps from 0 to 1), and per level
    int(255 * value): int64 [2, bins] and [2, 256], outside of the object first, then inside.

    `map_HW` has values in 0..1; `mask_HW` uint8 is 0 outside and 1 inside, other labels are left out.
    """
    last = len(cuts) - 1
    pixels, levels = np.zeros((2, len(cuts)), np.int64), np.zeros((2, NUM_LEVELS), np.int64)
    for y in range(mask_HW.shape[0]):
        for x in range(mask_HW.shape[1]):
            inside = mask_HW[y, x]
            if inside > 1:
                continue
            value = np.float64(map_HW[y, x])
            at = min(int(value * last), last)  # a guess, then exact steps
            while cuts[at] > value:
                at -= 1
            while at < last and cuts[at + 1] <= value:
                at += 1
            pixels[inside, at] += 1
            levels[inside, int(value * 255)] += 1
    return pixels, levels


def iou_curve(pixels_S2T: NDArray[np.number]) -> NDArray[np.float64]:
    """TP / (TP + FP + FN) over all pixels, of the masks "value >= cut", per setting and cut, float64 [S, T]."""
    fp_ST, tp_ST = _above(pixels_S2T)
    return np.asarray(tp_ST / (fp_ST + _object_pixels(tp_ST)), np.float64)


def pixel_average_precision(pixels_S2T: NDArray[np.number]) -> NDArray[np.float64]:
    """PxAP, the sum of precision * Δrecall from the highest cut to the lowest, per setting, float64 [S].

    Not a number for binary maps, whose values are 0 and 1 alone: they have one mask and no curve.
    """
    fp_ST, tp_ST = (above_ST[:, ::-1] for above_ST in _above(pixels_S2T))
    predicted_ST = tp_ST + fp_ST
    precision_ST = np.divide(tp_ST, predicted_ST, out=np.zeros(tp_ST.shape), where=predicted_ST > 0)
    recall_ST = tp_ST / _object_pixels(tp_ST[:, ::-1])
    average_S = (precision_ST * np.diff(recall_ST, axis=1, prepend=0.0)).sum(1)
    binary_S = (pixels_S2T[:, :, -1].sum(1) > 0) & (pixels_S2T[:, :, 1:-1].sum((1, 2)) == 0)
    return np.where(binary_S, np.nan, average_S)


def _above(pixels_S2T: NDArray[np.number]) -> tuple[NDArray[np.number], NDArray[np.number]]:
    """False and true positives of the mask "value >= cut", [S, T] each."""
    above_S2T = pixels_S2T[:, :, ::-1].cumsum(-1)[:, :, ::-1]
    return above_S2T[:, 0], above_S2T[:, 1]


def _object_pixels(tp_ST: NDArray[np.number]) -> NDArray[np.number]:
    """Pixels of the objects, [S, 1]: all of them lie above the lowest cut."""
    if not tp_ST[:, 0].all():
        raise DataError("Mask metrics need a pixel that belongs to an object but the masks have none.")
    return tp_ST[:, :1]
