"""Boxes of several classes as a detector's, and the average precision of PASCAL VOC 2007 (mLDFR, Section IV)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from wsol_pipeline.evaluation.contours import ious_of_boxes
from wsol_pipeline.evaluation.levels import level_image
from wsol_pipeline.evaluation.maps import normalised_map
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
    raw_HW: NDArray[Any], threshold: float, protocol: Protocol, size_wh: tuple[int, int]
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Boxes [N, 4] of the 4-connected components of a map's mask, and the mean raw activation in each, [N]."""
    width, height = protocol.map_size(size_wh)
    levels_HW, mask_of_threshold = level_image(normalised_map(raw_HW, protocol, size_wh), protocol)
    mask_HW = levels_HW > mask_of_threshold[int(np.argmin(np.abs(protocol.thresholds - threshold)))]
    _, labels_HW, stats_N5, _ = cv2.connectedComponentsWithStats(mask_HW.astype(np.uint8), connectivity=4)
    enlarged_HW = cv2.resize(raw_HW.astype(np.float64), (width, height), interpolation=cv2.INTER_LINEAR)
    sums_N = np.bincount(labels_HW.ravel(), weights=enlarged_HW.ravel(), minlength=len(stats_N5))
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
    box_14 = np.array([detection.box])
    ious = [float(ious_of_boxes(box_14, boxes_N4[n : n + 1])[0]) for n in range(len(boxes_N4))]
    best = int(np.argmax(ious))
    if ious[best] < iou or (detection.image, best) in taken:
        return False
    taken.add((detection.image, best))
    return True
