"""Boxes of several classes as a detector's, and the average precision of PASCAL VOC 2007 (mLDFR, Section IV)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from wsol_pipeline.evaluation.contours import iou_matrix
from wsol_pipeline.evaluation.maps import above_mean
from wsol_pipeline.evaluation.metrics import mask_at
from wsol_pipeline.evaluation.otsu import Threshold
from wsol_pipeline.evaluation.protocols import Protocol

RECALLS = np.arange(11) / 10  # where VOC 2007 reads the precision


@dataclass(frozen=True)
class Detection:
    """One box `x0y0x1y1` (inclusive maxima, pixels of the image) with its score."""

    image: str
    label: int
    score: float
    box: tuple[int, int, int, int]


def component_boxes(
    raw_HW: NDArray[Any], threshold: Threshold, protocol: Protocol, size_wh: tuple[int, int]
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Boxes [N, 4] of the 4-connected components of a map's mask, and the mean activation in each, [N].

    Activation is the map after what lies below its mean became 0. Where that mean is negative the zeroed pixels outrank
    those that were kept, and their components have activation 0. Of two maps that tell a mask it is the object's.
    """
    mask_HW = mask_at(raw_HW, threshold, protocol, size_wh)
    _, labels_HW, stats_N5, _ = cv2.connectedComponentsWithStats(mask_HW.astype(np.uint8), connectivity=4)
    kept_HW = above_mean(raw_HW if raw_HW.ndim == 2 else raw_HW[0], protocol.map_size(size_wh))
    sums_N = np.bincount(labels_HW.ravel(), weights=kept_HW.ravel(), minlength=len(stats_N5))
    x0, y0, across, down, pixels = stats_N5[1:].T  # the first one is the background
    return np.stack([x0, y0, x0 + across - 1, y0 + down - 1], axis=1).astype(np.int32), sums_N[1:] / pixels


def average_precision(
    detections: Iterable[Detection], truth: Mapping[tuple[str, int], NDArray[np.float64]], label: int, iou: float
) -> float:
    """VOC 2007's 11-point average precision of one class; not a number if no image has the class.

    `truth` are the boxes [N, 4] by image and class. From the highest score on, a detection is right if its best IoU
    with a box of its class is >= `iou` and nobody found that box before.
    """
    ranked = sorted((d for d in detections if d.label == label), key=lambda d: -d.score)
    num_true = sum(len(boxes_N4) for (_, of_label), boxes_N4 in truth.items() if of_label == label)
    if not num_true:
        return float("nan")
    taken: set[tuple[str, int]] = set()
    right = np.array([_finds(d, truth, iou, taken) for d in ranked], bool).cumsum()
    recall, precision = right / num_true, right / np.arange(1, len(right) + 1)
    return float(np.mean([precision[recall >= r].max(initial=0.0) for r in RECALLS]))


def mean_average_precision(
    detections: Sequence[Detection], truth: Mapping[tuple[str, int], NDArray[np.float64]], iou: float
) -> float:
    """The mean of `average_precision` over the classes that occur, percent."""
    labels = sorted({label for _, label in truth})
    return 100 * float(np.nanmean([average_precision(detections, truth, label, iou) for label in labels]))


def _finds(
    detection: Detection,
    truth: Mapping[tuple[str, int], NDArray[np.float64]],
    iou: float,
    taken: set[tuple[str, int]],
) -> bool:
    boxes_N4 = truth.get((detection.image, detection.label), np.empty((0, 4)))
    if not len(boxes_N4):
        return False
    ious_N = iou_matrix(np.array([detection.box]), boxes_N4)[0]
    best = int(ious_N.argmax())
    if ious_N[best] < iou or (detection.image, best) in taken:
        return False
    taken.add((detection.image, best))
    return True
