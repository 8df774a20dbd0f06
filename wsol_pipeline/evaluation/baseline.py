"""The centred box: what localization costs without looking. A method that does not beat it has learnt nothing.

Its only parameter, the fraction of the image that the box covers, is chosen on validation and read on test by the same
`selection` functions, with the grid of fractions in the place of thresholds.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsol_pipeline.evaluation.contours import ious_of_boxes
from wsol_pipeline.evaluation.counts import Counts
from wsol_pipeline.evaluation.evaluate import batch_boxes, batch_masks, class_pairs
from wsol_pipeline.evaluation.metrics import LocalizationCounts
from wsol_pipeline.evaluation.protocols import Protocol

AREA_FRACTIONS = np.arange(1, 21) / 20
SETTING = "centred_box"


def centred_boxes(size_wh: tuple[int, int]) -> NDArray[np.int32]:
    """A centred box of the image's aspect per area fraction, `x0y0x1y1` with inclusive maxima, int32 [20, 4]."""
    low_A2 = np.floor((1 - np.sqrt(AREA_FRACTIONS)[:, None]) * size_wh / 2).astype(np.int32)
    return np.concatenate([low_A2, np.array(size_wh, np.int32) - 1 - low_A2], axis=1)


def centred_map(size_wh: tuple[int, int]) -> NDArray[np.float64]:
    """1 minus the area fraction of the smallest centred box that holds the pixel: all centred boxes as one map."""
    across, down = (np.abs(2 * (np.arange(side) + 0.5) / side - 1) for side in size_wh)
    return 1 - np.maximum(across[None], down[:, None]) ** 2


def count_centred(rows: Any, protocol: Protocol, ranks: Mapping[str, int] | None = None) -> Counts:
    """Counts of the centred box over `rows`; the axis of thresholds is that of area fractions.

    `ranks` gives a classifier's rank of the true class for each image id (`ImageHits` has both), so that Top-1 and
    Top-5 compare with those of a method. Without it every class counts as right, and both equal GT-known.

    Of multi-label rows each pair of an image and one of its classes is counted. Where class masks are scored, all
    classes of an image have this one map, and the first of them wins.
    """
    masks = bool(protocol.masks) and rows.has_masks
    boxes = LocalizationCounts(replace(protocol, num_thresholds=len(AREA_FRACTIONS)), settings=(SETTING,))
    pixels = LocalizationCounts(protocol, masks=masks, num_classes=rows.num_classes)
    for found in rows.batches():
        batch = class_pairs(found, protocol)
        truth = batch_boxes(batch, rows.box_convention, protocol)
        ranks_B = np.array([ranks[i] if ranks else 0 for i in batch.ids])
        sizes = [protocol.map_size(size_wh) for size_wh in batch.sizes_B2]
        sized = zip(sizes, truth, strict=True)
        boxes.update_ious(0, [ious_of_boxes(centred_boxes(size), truth_N4) for size, truth_N4 in sized], ranks_B)
        if masks:
            pixels.update_masks(0, list(map(centred_map, sizes)), batch_masks(batch, protocol), batch.pairs)
    of_masks = {name: getattr(pixels.counts(), name) for name in ("mask_pixels", "mask_levels", "class_pixels")}
    return replace(boxes.counts(), thresholds=AREA_FRACTIONS, **of_masks)


def verdict_on_box(value: float, interval: tuple[float, float] | None, box: float | None) -> str:
    """A sentence where the centred box (percent) is in the interval of a model's value, or above it; nothing where it
    is beaten, or there is none."""
    if box is None or (interval[0] if interval else value) > box:
        return ""
    if interval and interval[1] < box:
        return f"A centred box is better ({box:.1f} %): this model localizes worse than a box in the middle."
    held = "The 95 % interval holds" if interval else "It does not beat"
    return f"{held} the centred box ({box:.1f} %): nothing says that it localizes better than a box in the middle."
