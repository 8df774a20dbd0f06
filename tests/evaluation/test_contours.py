"""Equal to the last box and the last bit of IoU with a contour search per mask."""

import numpy as np
import pytest

from wsol_pipeline.evaluation.contours import BOX_RULES, boxes_per_mask, ious_per_mask

NUM_MASKS = 255


def random_boxes(rng, height, width):
    corners = rng.integers(0, [width, height, width, height], (rng.integers(1, 4), 4))
    return np.hstack([np.minimum(corners[:, :2], corners[:, 2:]), np.maximum(corners[:, :2], corners[:, 2:])])


def check(oracle, levels, truth, box_rule):
    """Compare every mask; masks between two present levels are the same, so the oracle runs once for those."""
    masks = np.unique(np.append(levels, 0))
    masks = masks[masks < NUM_MASKS]
    of_mask = np.searchsorted(masks, np.arange(NUM_MASKS), side="right") - 1
    expected = [oracle.boxes_of(levels > t, box_rule) for t in masks]
    ious = np.array([oracle.best_iou(boxes, truth.tolist()) for boxes in expected])
    np.testing.assert_array_equal(ious_per_mask(levels, NUM_MASKS, truth.astype(float), box_rule), ious[of_mask])
    if box_rule not in ("all_contours", "components"):
        boxes = np.array([boxes[0] for boxes in expected])
        np.testing.assert_array_equal(boxes_per_mask(levels, NUM_MASKS, box_rule), boxes[of_mask])


def check_random(oracle, seeds, box_rule):
    for seed in seeds:
        rng = np.random.default_rng(seed)
        levels = oracle.random_levels(rng)
        check(oracle, levels, random_boxes(rng, *levels.shape), box_rule)


@pytest.mark.parametrize("box_rule", BOX_RULES)
def test_random_maps(oracle, box_rule):
    check_random(oracle, range(3500), box_rule)


@pytest.mark.slow
@pytest.mark.parametrize("box_rule", BOX_RULES)
def test_many_random_maps(oracle, box_rule):
    check_random(oracle, range(10_000, 30_000), box_rule)
