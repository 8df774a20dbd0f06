"""Boxes that a model guesses at Otsu's threshold: to be corrected by people, and to compare the sizes of others with.

Size bias of the boxes that choose moves thresholds, where noise does not (docs/labels-only.md).
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from wsol_models import readouts
from wsol_pipeline.data.dataset import Dataset
from wsol_pipeline.data.reader import ReadConfig, eval_rows
from wsol_pipeline.data.targets import Targets, quartiles, shares
from wsol_pipeline.evaluation.contours import iou_matrix
from wsol_pipeline.evaluation.evaluate import class_pairs, read_maps, rows_for
from wsol_pipeline.evaluation.metrics import mask_at, plain
from wsol_pipeline.evaluation.otsu import OTSU
from wsol_pipeline.evaluation.protocols import Protocol
from wsol_pipeline.training.model import Model

Box = tuple[float, float, float, float]  # x0, y0, x1, y1, half-open pixels of the stored image
Reading = tuple[Any, Any]  # a readout and one of its settings
OTHERS = 4  # settings of its readout that a model is read at too, where its readings are compared
COMPARED = 200  # images that a model guesses on, spread over validation: enough for a median
FACTOR = 1.5  # between medians, over which sizes are said to differ


def guesses(
    model: Model, dataset: Dataset, rows: Sequence[int], cache_dir: str | None = None, reading: Reading | None = None
) -> dict[tuple[str, int], Box]:
    """A model's box of each image and class at Otsu's threshold, to be corrected; none where its mask is empty.

    By the readout and setting that were chosen for it, or by another `reading`.
    """
    readout, setting = reading or (model.readout, model.choice.readout)
    rules, device = model.protocol, next(model.method.parameters()).device
    read = ReadConfig(rules.resize_size, rules.image_size, cache_dir=cache_dir)
    found: dict[tuple[str, int], Box] = {}
    asked = eval_rows(dataset.val_labels, read, rules.geometry, 32, at=tuple(sorted(rows)))
    for batch in rows_for(readout, asked).batches():
        pairs = class_pairs(batch, rules)
        maps = read_maps(model.method, readout, pairs, pairs.labels_B, setting, rules, device=device)
        for raw, image, label in zip(plain(maps), *(of.tolist() for of in pairs.pairs), strict=True):
            size_wh = tuple(batch.sizes_B2[image].tolist())
            if box := box_of(mask_at(raw, OTSU, rules, size_wh), rules, size_wh):
                found[batch.ids[image], label] = box
    return found


def box_of(mask_HW: NDArray[np.bool_], rules: Protocol, size_wh: tuple[int, ...]) -> Box | None:
    """The box round the largest part of a mask in half-open pixels of an image of `size_wh`; None of an empty one."""
    count, _, stats_N5, _ = cv2.connectedComponentsWithStats(mask_HW.astype(np.uint8), connectivity=8)
    if count < 2:
        return None
    x, y, width, height, _ = stats_N5[1 + int(stats_N5[1:, 4].argmax())].tolist()
    corners = np.array([x, y, x + width, y + height], np.float64)
    if rules.geometry != "short_side":
        corners = (corners + rules.margin) * np.tile(size_wh, 2) / rules.read_size
    x0, y0, x1, y1 = np.clip(corners, 0, np.tile(size_wh, 2)).tolist()
    return x0, y0, x1, y1


def readings(model: Model) -> list[Reading]:
    """Ways to read one model: as was chosen, some other settings of its readout, and Grad-CAM++ at its last stage."""
    own, other = model.readout, readouts.readout("gradcampp")
    rest = [setting for setting in own.settings(model.method) if setting != model.choice.readout]
    some = [rest[at] for at in np.unique(np.linspace(0, len(rest) - 1, min(len(rest), OTHERS)).astype(int))]
    return [*((own, setting) for setting in (model.choice.readout, *some)), (other, other.settings(model.method)[0])]


def agreement(boxes: Sequence[Box | None]) -> float:
    """The mean IoU over all pairs of boxes; one that is missing agrees with none."""
    there = np.array([box for box in boxes if box], np.float64).reshape(-1, 4)
    ious_NN = iou_matrix(there - [0, 0, 1, 1], there - [0, 0, 1, 1])  # which counts last pixels
    pairs = len(list(combinations(boxes, 2)))
    return float(np.triu(ious_NN, 1).sum() / pairs)


def size_bias(targets: Targets, dataset: Dataset, model: Model, cache_dir: str | None = None) -> str:
    """How large the boxes of a file are beside a model's guesses, with a warning where they differ; nothing where all
    maps of the model are flat."""
    split = dataset.val_labels
    rows = np.unique(np.linspace(0, split.num_rows - 1, COMPARED).astype(int)).tolist()
    sizes = dict(zip(split.ids, split.sizes_N2.prod(1).tolist(), strict=True))
    guessed = guesses(model, dataset, rows, cache_dir)
    shares_M = np.array([(x1 - x0) * (y1 - y0) / sizes[id] for (id, _), (x0, y0, x1, y1) in guessed.items()])
    return compared(targets.kind, shares(targets, dataset), shares_M) if len(guessed) else ""


def compared(kind: str, shares_N: NDArray[np.float64], guessed_M: NDArray[np.float64]) -> str:
    """The quartiles of both, and what follows."""
    told = (
        f"{kind}: boxes take {quartiles(shares_N)} of the image (quartiles), this model's at Otsu's threshold "
        f"{quartiles(guessed_M)} ({len(guessed_M)} images)."
    )
    ratio = float(np.median(shares_N) / np.median(guessed_M))
    if 1 / FACTOR <= ratio <= FACTOR:
        return told
    word = "larger" if ratio > 1 else "smaller"
    return (
        f"{told} Size bias: the file's are {max(ratio, 1 / ratio):.1f} times {word} in the median. If they are wrong, "
        "and not the model, so is the threshold that they choose: --threshold-by finds one without them."
    )
