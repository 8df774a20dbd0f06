"""The slow way, as the field's evaluators do it: one mask, one contour search, one list of boxes per threshold."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from scipy import ndimage


@pytest.fixture(scope="session")
def oracle():
    return SimpleNamespace(random_levels=random_levels, boxes_of=boxes_of, best_iou=best_iou)


def random_levels(rng):
    """A level image of 5..40 pixels a side: ties, holes, islands in holes, frames, thin lines, constants, noise."""
    height, width = rng.integers(5, 41, 2)
    kind = rng.integers(7)
    if kind == 0:  # noise of few levels: ties, single pixels, diagonals
        levels = rng.integers(0, rng.integers(2, 6), (height, width))
    elif kind == 1:  # sparse points
        levels = (rng.random((height, width)) < 0.08) * rng.integers(1, 4, (height, width))
    elif kind == 2:  # smooth
        levels = cv2.GaussianBlur(rng.random((height, width)), (0, 0), rng.uniform(0.6, 4))
        levels = 255 * (levels - levels.min()) / np.ptp(levels)
    elif kind == 3:  # nested frames: holes and islands in holes, at any level
        levels = np.zeros((height, width))
        for _ in range(rng.integers(1, 4)):
            y, x = rng.integers(0, height), rng.integers(0, width)
            for margin in range(0, rng.integers(2, 12), rng.integers(1, 3)):
                corner = (x + margin, y + margin), (x + 22 - margin, y + 20 - margin)
                cv2.rectangle(levels, *corner, float(rng.integers(0, 5)), 1)
    elif kind == 4:  # thin lines, whose polygon area is 0
        levels = np.zeros((height, width))
        for _ in range(rng.integers(1, 8)):
            ends = rng.integers(0, 40, 4).tolist()
            cv2.line(levels, ends[:2], ends[2:], float(rng.integers(1, 4)), 1)
    elif kind == 5:  # equal shapes at random places
        levels = np.zeros((height, width))
        for _ in range(rng.integers(2, 12)):
            y, x = rng.integers(0, height), rng.integers(0, width)
            cv2.circle(levels, (int(x), int(y)), 2, float(rng.integers(1, 4)), int(rng.choice([1, -1])))
    else:  # constant
        levels = np.full((height, width), rng.choice([0, 1, 255]))
    return levels.astype(np.uint16)


def contour_boxes(mask, largest):
    """Boxes of the contours of a binary mask as wsolevaluation makes them."""
    height, width = mask.shape
    contours = cv2.findContours(mask.astype(np.uint8) * 255, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
    if len(contours) == 0:
        return [(0, 0, 0, 0)]
    if largest:
        contours = [max(contours, key=cv2.contourArea)]
    boxes = [cv2.boundingRect(c) for c in contours]
    return [(x, y, min(x + w, width - 1), min(y + h, height - 1)) for x, y, w, h in boxes]


def component_box(mask):
    """Box of the component of most pixels as BAS makes it: exclusive maximum, the whole image if there is none."""
    labels, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    sizes = np.bincount(labels.ravel())[1:]
    if len(sizes) == 0:
        return [(0, 0, mask.shape[1], mask.shape[0])]
    rows, columns = ndimage.find_objects(labels)[int(np.argmax(sizes))]
    return [(columns.start, rows.start, columns.stop, rows.stop)]


def component_boxes(mask):
    """Boxes of all 4-connected components, inclusive maxima; the whole image if there is none."""
    found = ndimage.find_objects(ndimage.label(mask)[0])
    boxes = [(columns.start, rows.start, columns.stop - 1, rows.stop - 1) for rows, columns in found]
    return boxes or [(0, 0, mask.shape[1] - 1, mask.shape[0] - 1)]


def whole_box(mask):
    """The box round all pixels, inclusive maxima; the whole image if there is none."""
    rows, columns = np.nonzero(mask if mask.any() else np.ones_like(mask))
    return [(columns.min(), rows.min(), columns.max(), rows.max())]


def boxes_of(mask, box_rule):
    rules = {
        "largest_component": component_box,
        "components": component_boxes,
        "whole_mask": whole_box,
        "largest_contour": lambda mask: contour_boxes(mask, largest=True),
        "all_contours": lambda mask: contour_boxes(mask, largest=False),
    }
    return rules[box_rule](mask)


def iou(a, b):
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]) + 1)
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]) + 1)
    if b[2] < b[0] or b[3] < b[1]:
        return 0.0
    union = (a[2] - a[0] + 1) * (a[3] - a[1] + 1) + (b[2] - b[0] + 1) * (b[3] - b[1] + 1) - width * height
    return width * height / union


def best_iou(boxes, truth):
    return max(iou(a, b) for a in boxes for b in truth)
