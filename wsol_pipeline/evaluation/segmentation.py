"""The maps of an image's classes as a segmentation, at every background threshold at once (VOC, COCO seeds).

A pixel takes the class of its highest map if that is above the threshold, else it is background. One histogram per
class holds all confusion matrices of a split that a mean over classes needs.
"""

import numpy as np
from numpy.typing import NDArray

from wsol_pipeline.errors import DataError
from wsol_pipeline.evaluation.levels import count_below
from wsol_pipeline.evaluation.masks import IGNORED

RIGHT, CLAIMED, TRUE = range(3)


def count_classes(
    maps_CHW: NDArray[np.floating],
    classes_C: NDArray[np.int64],
    labels_HW: NDArray[np.uint8],
    thresholds: NDArray[np.float64],
    num_classes: int,
) -> NDArray[np.int64]:
    """Pixels of an image by how many of the even `thresholds` lie below their highest map, int64 [3, K + 1, T + 1].

    First those of each class that are claimed by it, then all that it claims, then all that are of it, label 0 (the
    background) in the last alone. `maps_CHW` are those of `classes_C`; of equal maps the first wins. `labels_HW`: 0 the
    background, k + 1 class k, 255 left out.
    """
    if labels_HW.shape != maps_CHW.shape[1:]:
        raise ValueError(f"Labels must have their maps' size {maps_CHW.shape[1:]} but have {labels_HW.shape}.")
    if (top := labels_HW[labels_HW != IGNORED].max(initial=0)) > num_classes:
        raise DataError(f"Labels of a class mask must be in 0..{num_classes} or {IGNORED} but one is {top}.")
    counted_HW = labels_HW != IGNORED
    truth_N = labels_HW[counted_HW].astype(np.int64)
    claimed_N = classes_C[maps_CHW.argmax(0)[counted_HW]] + 1
    levels_N = count_below(maps_CHW.max(0), thresholds)[counted_HW]
    shape = num_classes + 1, len(thresholds) + 1
    right_N = truth_N == claimed_N
    parts = ((truth_N[right_N], levels_N[right_N]), (claimed_N, levels_N), (truth_N, levels_N))
    cells = [np.ravel_multi_index((labels, levels), shape) for labels, levels in parts]
    return np.stack([np.bincount(cell, minlength=shape[0] * shape[1]).reshape(shape) for cell in cells])


def class_metrics(pixels_S3KT: NDArray[np.number]) -> dict[str, NDArray[np.float64]]:
    """Means over background and classes at each threshold, float64 [S, T] each: IoU, recall, precision, specificity.

    A class whose ratio is 0 / 0 is left out of the mean.
    """
    below_S3KT = pixels_S3KT.cumsum(-1)
    total_S3K1 = below_S3KT[..., -1:]
    above_S3KT = (total_S3K1 - below_S3KT)[..., :-1]
    right_SKT, claimed_SKT = above_S3KT[:, RIGHT].copy(), above_S3KT[:, CLAIMED].copy()
    right_SKT[:, 0] = below_S3KT[:, TRUE, 0, :-1]
    claimed_SKT[:, 0] = below_S3KT[:, TRUE, :, :-1].sum(1)
    true_SK1 = total_S3K1[:, TRUE]
    false_SK1 = true_SK1.sum(1, keepdims=True) - true_SK1
    return {
        "miou": _mean_ratio(right_SKT, true_SK1 + claimed_SKT - right_SKT),
        "mean_recall": _mean_ratio(right_SKT, true_SK1),
        "mean_precision": _mean_ratio(right_SKT, claimed_SKT),
        "mean_specificity": _mean_ratio(false_SK1 - (claimed_SKT - right_SKT), false_SK1),
    }


def _mean_ratio(parts_SKT: NDArray[np.number], wholes_SKT: NDArray[np.number]) -> NDArray[np.float64]:
    """The mean over classes of part / whole, without those whose whole is 0, float64 [S, T]."""
    known_SKT = np.broadcast_to(wholes_SKT > 0, parts_SKT.shape)
    ratios_SKT = np.divide(parts_SKT, wholes_SKT, out=np.zeros(parts_SKT.shape), where=known_SKT)
    return np.asarray(ratios_SKT.sum(1) / np.maximum(known_SKT.sum(1), 1))
