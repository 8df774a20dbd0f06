"""Otsu's rule against numbers worked out by hand, OpenCV's, and masks at each map's own threshold."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from wsol_pipeline.evaluation.maps import normalised_map
from wsol_pipeline.evaluation.metrics import (
    LocalizationCounts,
    all_boxes,
    ious_per_threshold,
    mask_at,
    predicted_box,
)
from wsol_pipeline.evaluation.otsu import OTSU, histogram, otsu_level, otsu_threshold, separability
from wsol_pipeline.evaluation.protocols import PROTOCOLS, protocol
from wsol_pipeline.evaluation.selection import Choice


@pytest.fixture
def blob():
    """A bright disc on a sloped ground, 14x14."""
    y, x = np.mgrid[:14, :14]
    return np.exp(-((x - 8) ** 2 + (y - 5) ** 2) / 12) + 0.01 * x


def test_the_worked_example_is_cut_after_its_first_level_of_three():
    pixels = np.bincount([0, 0, 0, 1, 2, 3])
    assert otsu_level(pixels) == 1  # variances 1.0, 1.125, 0.8
    assert [v for v in (0, 0, 0, 1, 2, 3) if v > otsu_level(pixels)] == [2, 3]
    assert separability(pixels) == pytest.approx(1.125 / np.var([0, 0, 0, 1, 2, 3]))


def test_a_flat_histogram_has_no_level():
    assert otsu_level(np.bincount([7, 7, 7])) is None
    assert separability(np.bincount([7, 7, 7])) == 0


def test_the_level_is_opencvs_of_the_same_bytes():
    rng = np.random.default_rng(0)
    for _ in range(200):
        low, high = rng.integers(0, 120), rng.integers(130, 256)
        near, far = rng.normal(low, 20, 300), rng.normal(high, 20, rng.integers(20, 300))
        values = np.clip(np.concatenate([near, far]), 0, 255).astype(np.uint8)
        theirs = cv2.threshold(values[None], 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)[0]
        ours = otsu_level(np.bincount(values, minlength=256))
        assert (values > ours).tolist() == (values > theirs).tolist()


@pytest.mark.parametrize("name", [name for name, rules in PROTOCOLS.items() if rules.normalise != "double_mean"])
def test_what_is_kept_lies_above_the_level_under_every_protocol(blob, name):
    rules = protocol(name, 32, 36)
    map_HW = normalised_map(blob, rules, (32, 32))
    level = otsu_level(histogram(map_HW))
    kept_HW = mask_at(blob, OTSU, rules, (32, 32))
    truncated_HW = np.clip(map_HW * 255, 0, 255).astype(int)
    assert (kept_HW == (truncated_HW > level)).mean() > 0.99  # a grid of 0.001 is not one of 1/255
    if rules.normalise == "resized":
        assert (kept_HW == (truncated_HW > level)).all()


def test_boxes_are_those_of_the_maps_own_threshold(blob):
    rules = protocol("wsol-v2", 32, 36)
    own = otsu_threshold(normalised_map(blob, rules), rules)
    assert predicted_box(blob, OTSU, rules).tolist() == predicted_box(blob, own, rules).tolist()
    assert all_boxes(blob, OTSU, rules).tolist() == all_boxes(blob, own, rules).tolist()


@pytest.mark.parametrize("name", ["wsol-v1", "wsol-v2", "bas-ext", "mldfr"])
def test_counted_by_the_rule_every_threshold_is_the_maps_own(blob, name):
    rules, truth = protocol(name, 32, 36), np.array([[9.0, 3.0, 28.0, 22.0]])
    own = rules.thresholds.tolist().index(otsu_threshold(normalised_map(blob, rules, (32, 32)), rules))
    metric = LocalizationCounts(rules, rule=OTSU)
    metric.update(0, blob[None], [truth], np.array([0]), sizes=[(32, 32)])
    hits_IT = metric.hits[0].numpy()
    assert (hits_IT == hits_IT[:, :1]).all()
    at_own = ious_per_threshold(blob, truth, rules, (32, 32))[own]
    assert hits_IT[:, 0].tolist() == [int(at_own >= iou) for iou in rules.ious]


def test_a_flat_map_has_an_empty_mask():
    rules = protocol("wsol-v1", 32, 36)
    assert not mask_at(np.ones((4, 4)), OTSU, rules).any()


def test_a_choice_keeps_the_rule_in_the_place_of_a_number():
    choice = Choice("separability", 80.0, 0, None, {"gt_known_loc": (0.3,)})
    assert choice.threshold == 0.3
    ruled = replace(choice, rule=OTSU, selector="otsu")
    assert ruled.threshold == "otsu"
    assert Choice.from_dict(ruled.to_dict()) == ruled
