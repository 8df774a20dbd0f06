import numpy as np
import pytest
from scipy import ndimage

from wsol_pipeline.evaluation.detection import Detection, average_precision, component_boxes, mean_average_precision
from wsol_pipeline.evaluation.levels import level_image
from wsol_pipeline.evaluation.maps import normalised_map
from wsol_pipeline.evaluation.protocols import protocol

RULE = protocol("mldfr-multi")


def test_components_and_their_means_are_scipys():
    for seed in range(5):
        raw = np.random.default_rng(seed).normal(size=(9, 14)).astype(np.float32)
        boxes, scores = component_boxes(raw, 0.2, RULE, (14, 9))
        levels, masks = level_image(normalised_map(raw, RULE), RULE)
        labels, number = ndimage.label(levels > masks[200])
        found = {(c.start, r.start, c.stop - 1, r.stop - 1) for r, c in ndimage.find_objects(labels)}
        assert {tuple(box) for box in boxes.tolist()} == found
        means = ndimage.mean(raw, labels, range(1, number + 1))
        np.testing.assert_allclose(np.sort(scores), np.sort(means), atol=1e-6)


def test_a_map_without_range_is_one_box():
    boxes, scores = component_boxes(np.full((3, 4), 2.0), 0.2, RULE, (40, 30))
    assert (boxes.tolist(), scores.tolist()) == ([[0, 0, 39, 29]], [2.0])


def test_a_components_score_is_its_mean_without_what_is_below_the_maps_mean():
    """Mean 10/3: 3 is zeroed, (4, 5) and (8) are above the mean of what is left.

    With a mean of -1.5, -3 becomes 0 and outranks the -1 that is kept: its component has score 0.
    """
    boxes, scores = component_boxes(np.array([[4.0, 5, 0, 3, 0, 8]]), 0.2, RULE, (6, 1))
    assert (boxes.tolist(), scores.tolist()) == ([[0, 0, 1, 0], [5, 0, 5, 0]], [4.5, 8.0])
    boxes, scores = component_boxes(np.array([[-1.0, -3, -1, -1]]), 0.2, RULE, (4, 1))
    assert (boxes.tolist(), scores.tolist()) == ([[1, 0, 1, 0]], [0.0])


def test_a_component_that_is_partly_below_the_mean_counts_that_part_as_nothing():
    """Mean -1.3: -2.5 and -3 become 0 and outrank the -1 that are kept; with the 1 beside them their mean is 1/3."""
    boxes, scores = component_boxes(np.array([[-1, 1, -2.5, -3, -1]]), 0.2, RULE, (5, 1))
    assert boxes.tolist() == [[1, 0, 3, 0]]
    assert scores.tolist() == pytest.approx([1 / 3])


def test_components_of_a_mask_have_the_objects_mean_activation():
    """Where (3, 5, 1, 9) is above (1, 1, 4, 1): 3 is below the object's mean of 4.5 and counts as nothing."""
    raw = np.array([[[3.0, 5, 1, 9]], [[1, 1, 4, 1]]])
    boxes, scores = component_boxes(raw, 0.2, RULE, (4, 1))
    assert (boxes.tolist(), scores.tolist()) == ([[0, 0, 1, 0], [3, 0, 3, 0]], [2.5, 9.0])


HERE, THERE = (0, 0, 9, 9), (20, 20, 29, 29)
TRUTH = {
    ("a", 0): np.array([HERE, THERE], float),
    ("b", 0): np.array([HERE], float),
    ("b", 1): np.array([THERE], float),
}


def test_average_precision_by_hand():
    """Right, wrong (found before), right, wrong (not there): precision 1, 1/2, 2/3, 2/4 at recall 1/3, 1/3, 2/3, 2/3.

    Of eleven recalls 0 to .3 read 1, .4 to .6 read 2/3 and .7 to 1 read nothing.
    """
    found = [
        Detection("a", 0, 0.9, HERE),
        Detection("a", 0, 0.8, HERE),
        Detection("b", 0, 0.7, (0, 0, 9, 11)),  # IoU 100 / 120
        Detection("b", 0, 0.6, THERE),
        Detection("b", 1, 0.1, THERE),
    ]
    assert average_precision(found, TRUTH, 0, 0.5) == pytest.approx((4 + 3 * 2 / 3) / 11)
    assert average_precision(found, TRUTH, 0, 0.9) == pytest.approx(4 / 11)
    assert average_precision(found, TRUTH, 1, 0.5) == 1
    assert np.isnan(average_precision(found, TRUTH, 2, 0.5))
    assert mean_average_precision(found, TRUTH, 0.5) == pytest.approx(50 * (1 + 6 / 11))


def test_nothing_found_scores_nothing():
    assert mean_average_precision([], TRUTH, 0.5) == 0
