"""What happened on single images: the box at the chosen threshold, how it overlaps the true one, and how it failed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from wsol_pipeline.evaluation.counts import ImageHits
from wsol_pipeline.evaluation.maps import normalised_map
from wsol_pipeline.evaluation.masks import IGNORED
from wsol_pipeline.evaluation.metrics import found, in_threads, plain, predicted_box_and_iou
from wsol_pipeline.evaluation.otsu import OTSU, Threshold, otsu_threshold
from wsol_pipeline.evaluation.protocols import Protocol

HIT = 0.5  # the IoU of "GT-known"
SEVERAL_SHARE, MORE_SHARE, PART_SHARE = 0.3, 0.7, 0.5

SCORES = ("max_box_acc_v2", "gt_known_loc", "top1_loc")  # metrics that a `Case` has its part in
KINDS = {
    "right": "the box and the class are right",
    "wrong class": "the box is right, another class is predicted first",
    "several objects": "the box holds more than 0.3 of two or more true boxes (M-Ins)",
    "too large": "more than 0.7 of the object is in the box, and much else (More)",
    "too small": "more than half of the box is in the object, but it covers a part alone (Part)",
    "misplaced": "none of these (OT)",
}


@dataclass(frozen=True)
class Case:
    """One image (pair of image and class, of multi-label data) at one readout setting and threshold.

    Boxes are `x0y0x1y1` in evaluation pixels, true ones with inclusive maxima, the predicted one in the convention of
    its rule (`contours.boxes_per_mask`). Where masks are scored in place of boxes, there are no boxes and the overlaps
    are those of the object's pixels.
    """

    row: int  # of the split
    id: str
    label: int
    rank: int  # classes predicted before the true one
    hit: bool  # IoU of 0.5
    iou: float  # the best with any true box, of all boxes where the protocol accepts several
    of_box: float  # share of the box inside the true box of highest IoU (IoP)
    of_object: float  # share of that true box inside the box (IoG)
    objects: int  # true boxes of which the box holds more than 0.3
    size: float  # share of the image that the largest true box (or the mask) takes
    box: tuple[float, ...]  # the largest
    truth: tuple[tuple[float, ...], ...]
    width: int = 0  # of the stored image, in pixels; 0 where an earlier version evaluated
    height: int = 0
    max_box_acc_v2: float | None = None  # what it adds to metrics of boxes (`selection.of_images`), 0 to 1
    gt_known_loc: float | None = None
    top1_loc: float | None = None


def kind(case: Case) -> str:
    """One of `KINDS`, the error analysis of SPA (Pan et al. 2021) and TS-CAM (Gao et al. 2021).

    They count every wrong class first. Here the box comes first: "right" and "wrong class" together are GT-known at
    that threshold, "right" alone is Top-1 localization. A box that is both too large and too small by their shares
    (IoU 0.41 to 0.5) is always larger than the object, so "too large" is asked first.
    """
    if case.hit:
        return "right" if case.rank < 1 else "wrong class"
    if case.objects >= 2:
        return "several objects"
    if case.of_object > MORE_SHARE:
        return "too large"
    return "too small" if case.of_box > PART_SHARE else "misplaced"


def spread(cases: Sequence[Case], count: int) -> dict[str, list[Case]]:
    """`count` cases each of highest, middle and lowest IoU; of equals the first come first."""
    order = sorted(cases, key=lambda case: -case.iou)
    middle = max((len(order) - count) // 2, 0)
    return {"best": order[:count], "median": order[middle : middle + count], "worst": order[::-1][:count]}


def add_cases(
    cases: list[Case],
    threshold: Threshold,
    protocol: Protocol,
    rows_B: ArrayLike,
    batch: Any,
    maps_BHW: Tensor | ArrayLike,
    truth: Sequence[NDArray[np.float64]],
    masks: Sequence[NDArray[np.uint8]] | None,
    ranks_B: Tensor,
) -> None:
    """Append what the maps of a batch show at `threshold`; with the first three bound, `on_maps` of `count`.

    An image whose mask shows no object has no case.
    """
    sizes = [(int(width), int(height)) for width, height in batch.sizes_B2]
    per_image: Any = truth if protocol.ious else masks
    overlaps = in_threads(
        lambda raw_HW, true, size: _overlap(raw_HW, true, size, threshold, protocol), plain(maps_BHW), per_image, sizes
    )
    facts = zip(np.asarray(rows_B).tolist(), batch.ids, batch.labels_B.tolist(), ranks_B.tolist(), strict=True)
    cases += [
        Case(*fact, **overlap, width=width, height=height)
        for fact, overlap, (width, height) in zip(facts, overlaps, sizes, strict=True)
        if overlap["size"] > 0
    ]


def with_scores(cases: Sequence[Case], kept: ImageHits | None, scores: Mapping[str, NDArray[np.float64]]) -> list[Case]:
    """`cases` with what each adds to metrics, by their names; `scores` are in the order of `kept`."""
    if kept is None or not scores:
        return list(cases)
    at = {pair: n for n, pair in enumerate(zip(kept.ids, kept.labels.tolist(), strict=True))}
    found = []
    for case in cases:
        parts: dict[str, Any] = {metric: float(of_N[at[case.id, case.label]]) for metric, of_N in scores.items()}
        found.append(replace(case, **parts))
    return found


def _overlap(
    raw_HW: NDArray[Any], true: NDArray[Any], size_wh: tuple[int, int], threshold: Threshold, protocol: Protocol
) -> dict[str, Any]:
    if not protocol.ious:
        map_HW = normalised_map(raw_HW, protocol, size_wh)
        at = otsu_threshold(map_HW, protocol) if threshold == OTSU else float(threshold)
        return mask_overlap(map_HW >= at, true)
    box, iou = predicted_box_and_iou(raw_HW, true, threshold, protocol, size_wh)
    width, height = protocol.map_size(size_wh)
    hit = found(np.array([iou]), protocol)[protocol.ious.index(HIT), 0]
    return {"hit": bool(hit), "iou": iou, **box_overlap(box, true, width * height)}


def box_overlap(box: NDArray[Any], truth_N4: NDArray[np.float64], pixels: int) -> dict[str, Any]:
    """How a box overlaps the true boxes of an image of so many `pixels`; an inverted true box is never met."""
    box = np.asarray(box, np.float64)
    common_N2 = np.minimum(box[2:], truth_N4[:, 2:]) - np.maximum(box[:2], truth_N4[:, :2]) + 1
    common_N = np.maximum(common_N2, 0).prod(1)
    area, areas_N = float((box[2:] - box[:2] + 1).prod()), np.maximum(truth_N4[:, 2:] - truth_N4[:, :2] + 1, 0).prod(1)
    of_object_N = np.divide(common_N, areas_N, out=np.zeros(len(truth_N4)), where=areas_N > 0)
    nearest = int((common_N / (area + areas_N - common_N)).argmax())
    return {
        "of_box": float(common_N[nearest] / area),
        "of_object": float(of_object_N[nearest]),
        "objects": int((of_object_N > SEVERAL_SHARE).sum()),
        "size": float(areas_N.max() / pixels),
        "box": tuple(box.tolist()),
        "truth": tuple(map(tuple, truth_N4.tolist())),
    }


def mask_overlap(predicted_HW: NDArray[np.bool_], mask_HW: NDArray[np.uint8]) -> dict[str, Any]:
    """How predicted pixels overlap those of the object; pixels of label 255 count neither way."""
    counted_HW, object_HW = mask_HW != IGNORED, mask_HW == 1
    common, area = int((predicted_HW & object_HW).sum()), int(object_HW.sum())
    predicted = int((predicted_HW & counted_HW).sum())
    iou = common / max(predicted + area - common, 1)
    return {
        "hit": iou >= HIT, "iou": iou, "of_box": common / max(predicted, 1), "of_object": common / max(area, 1),
        "objects": 1, "size": area / max(int(counted_HW.sum()), 1), "box": (), "truth": (),
    }  # fmt: skip
