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
from wsol_pipeline.evaluation.evaluate import batch_boxes
from wsol_pipeline.evaluation.metrics import LocalizationCounts
from wsol_pipeline.evaluation.protocols import Protocol

AREA_FRACTIONS = np.arange(1, 21) / 20
SETTING = "centred_box"


def centred_boxes(protocol: Protocol) -> NDArray[np.int32]:
    """A centred box of the image's aspect per area fraction, `x0y0x1y1` with inclusive maxima, int32 [20, 4]."""
    sides = np.sqrt(AREA_FRACTIONS) * protocol.image_size
    low = np.floor((protocol.image_size - sides) / 2).astype(np.int32)
    high = protocol.image_size - 1 - low
    return np.stack([low, low, high, high], axis=1)


def count_centred(rows: Any, protocol: Protocol, ranks: Mapping[str, int] | None = None) -> Counts:
    """Counts of the centred box over `rows`; the axis of thresholds is that of area fractions.

    `ranks` gives a classifier's rank of the true class for each image id (`ImageHits` has both), so that Top-1 and
    Top-5 compare with those of a method. Without it every class counts as right, and both equal GT-known.
    """
    metric = LocalizationCounts(replace(protocol, num_thresholds=len(AREA_FRACTIONS)), settings=(SETTING,))
    boxes_A4 = centred_boxes(protocol)
    for batch in rows.batches():
        truth = batch_boxes(batch, rows.box_convention, protocol)
        ranks_B = np.array([ranks[i] if ranks else 0 for i in batch.ids])
        metric.update_ious(0, [ious_of_boxes(boxes_A4, truth_N4) for truth_N4 in truth], ranks_B)
    return replace(metric.counts(), thresholds=AREA_FRACTIONS)
