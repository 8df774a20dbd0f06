"""Figures of segmentations: confusion matrices and per-class IoU, with bootstrap intervals over images.

M[true, predicted] are whole numbers that add over images, ranks and shards. `pixels`: histograms of `count_classes`,
of which every background threshold is read.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsol_pipeline.errors import DataError
from wsol_pipeline.evaluation.segmentation import TRUE

IGNORED = 255
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def confusion(truth_HW: NDArray[np.uint8], predicted_HW: NDArray[np.uint8], num_classes: int) -> Ints:
    """int64 [K + 1, K + 1]; pixels whose truth is 255 are left out, a prediction of 255 is the background."""
    if truth_HW.shape != predicted_HW.shape:
        raise DataError(f"A mask of {truth_HW.shape} cannot judge a prediction of {predicted_HW.shape}.")
    known_HW, labels = truth_HW != IGNORED, num_classes + 1
    if (top := truth_HW[known_HW].max(initial=0)) > num_classes:
        raise DataError(f"Labels of a class mask must be in 0..{num_classes} or {IGNORED} but one is {top}.")
    predicted_N = np.where(predicted_HW == IGNORED, 0, predicted_HW)[known_HW].astype(np.int64)
    cells_N = truth_HW[known_HW].astype(np.int64) * labels + predicted_N
    return np.bincount(cells_N, minlength=labels**2).reshape(labels, labels)


def class_iou(matrix_LL: NDArray[np.number]) -> Floats:
    """Intersection over union of each label, NaN for one that is neither true nor predicted, [..., L]."""
    right_L = np.diagonal(matrix_LL, axis1=-2, axis2=-1).astype(float)
    union_L = matrix_LL.sum(-1) + matrix_LL.sum(-2) - right_L
    return np.divide(right_L, union_L, out=np.full(right_L.shape, np.nan), where=union_L > 0)


def iou_at(pixels_3LT: NDArray[np.number], threshold: int) -> Floats:
    """IoU of each label at one threshold (its number), of the histograms, [L]. No second pass over images."""
    right_L, claimed_L, true_L = parts_at(pixels_3LT, threshold)
    union_L = (claimed_L + true_L - right_L).astype(float)
    return np.divide(right_L, union_L, out=np.full(union_L.shape, np.nan), where=union_L > 0)


def parts_at(pixels_3LT: NDArray[np.number], threshold: int) -> tuple[Ints, Ints, Ints]:
    """Pixels of each label that are right, claimed and true at one threshold, the background's too, [L] each."""
    below_3L = pixels_3LT[..., : threshold + 1].sum(-1)
    right_L, claimed_L, _ = pixels_3LT.sum(-1) - below_3L
    right_L[0] = below_3L[TRUE, 0]
    claimed_L[0] = below_3L[TRUE].sum()
    return right_L, claimed_L, pixels_3LT[TRUE].sum(-1)


def mean_iou(iou_L: Floats, present_L: NDArray[np.bool_] | None = None) -> float:
    """Mean over labels that are true or predicted anywhere, or over those that are `present` in the truth."""
    known_L = np.isfinite(iou_L) if present_L is None else np.isfinite(iou_L) & present_L
    return float(iou_L[known_L].mean()) if known_L.any() else float("nan")


def figures(matrix_LL: NDArray[np.number], classes: Sequence[str]) -> dict[str, Any]:
    """What is reported of a confusion matrix, percent: means, the background, each class by name, what is absent.

    Raises `DataError` for one without a pixel: masks that are 255 everywhere judge nothing.
    """
    if not matrix_LL.sum():
        raise DataError("No pixel has a true label (all are 255): there is nothing to judge by.")
    iou_L, true_L, predicted_L = class_iou(matrix_LL), matrix_LL.sum(1), matrix_LL.sum(0)
    right_L = np.diagonal(matrix_LL)
    names = ["background", *classes]
    return {
        "miou": 100 * mean_iou(iou_L),
        "miou_present": 100 * mean_iou(iou_L, true_L > 0),
        "miou_foreground": 100 * mean_iou(iou_L[1:]),
        "mean_recall": 100 * _mean_share(right_L, true_L),
        "mean_precision": 100 * _mean_share(right_L, predicted_L),
        "classes": {name: 100 * float(iou) for name, iou in zip(names, iou_L, strict=True) if np.isfinite(iou)},
        "absent": [name for name, true in zip(names, true_L, strict=True) if not true],
    }


def _mean_share(part_L: NDArray[np.number], whole_L: NDArray[np.number]) -> float:
    known_L = whole_L > 0
    return float((part_L[known_L] / whole_L[known_L]).mean()) if known_L.any() else float("nan")


def best_threshold(pixels_3LT: NDArray[np.number]) -> tuple[int, float]:
    """The number of the lowest threshold with the best mIoU, and that mIoU (0..1), over all of them at once."""
    if not pixels_3LT[TRUE].sum():
        raise DataError("No pixel of validation has a true label (all are 255): no threshold can be chosen.")
    values_T = [mean_iou(iou_at(pixels_3LT, number)) for number in range(pixels_3LT.shape[-1] - 1)]
    return int(np.argmax(values_T)), float(np.max(values_T))


def bootstrap(
    matrices_NLL: NDArray[np.number], draws: int = 1000, seed: int = 0, weights: Ints | None = None
) -> tuple[float, float]:
    """95 % interval of mIoU over images that are drawn anew, percent."""
    draws_DN = weights if weights is not None else draws_of(len(matrices_NLL), draws, seed)
    totals_DLL = np.tensordot(draws_DN, matrices_NLL, 1)
    low, high = np.percentile([100 * mean_iou(iou_L) for iou_L in class_iou(totals_DLL)], (2.5, 97.5))
    return float(low), float(high)


def paired(
    first_NLL: NDArray[np.number], second_NLL: NDArray[np.number], draws: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of how much better `second` is than `first` on the same images, points of mIoU."""
    draws_DN = draws_of(len(first_NLL), draws, seed)
    means = [
        np.array([mean_iou(iou_L) for iou_L in class_iou(np.tensordot(draws_DN, matrices_NLL, 1))])
        for matrices_NLL in (first_NLL, second_NLL)
    ]
    low, high = np.percentile(100 * (means[1] - means[0]), (2.5, 97.5))
    return float(low), float(high)


def draws_of(images: int, draws: int, seed: int) -> Ints:
    """How often each image is drawn, int64 [draws, images]."""
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), draws)
