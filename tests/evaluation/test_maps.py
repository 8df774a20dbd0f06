import warnings

import cv2
import numpy as np
import pytest

from wsol_pipeline.evaluation.levels import level_image
from wsol_pipeline.evaluation.maps import competing_map, normalised_map
from wsol_pipeline.evaluation.protocols import PROTOCOLS, protocol


def smooth(seed, size=28, dtype=np.float32):
    return cv2.GaussianBlur(np.random.default_rng(seed).normal(size=(size, size)), (0, 0), 2.5).astype(dtype)


def reference_levels(raw):
    """wsolevaluation's own steps, one after the other."""
    scoremap = cv2.resize(raw.astype(float), (224, 224), interpolation=cv2.INTER_CUBIC)
    scoremap -= scoremap.min()
    scoremap /= scoremap.max()
    return (scoremap * 255).astype(np.uint8)


@pytest.mark.parametrize("seed", range(20))
def test_benchmark_levels_are_bit_equal(seed):
    raw = smooth(seed)
    before = raw.copy()
    levels, masks = level_image(normalised_map(raw, protocol("wsol-v1")), protocol("wsol-v1"))
    reference = reference_levels(raw)
    np.testing.assert_array_equal(levels, reference)
    assert masks.tolist() == [int(t * np.max(reference)) for t in np.arange(0, 1, 0.001)]
    np.testing.assert_array_equal(raw, before)


def test_bas_normalises_before_the_resize():
    raw = smooth(3)
    raw[10, 10] = 2  # inside, where bilinear points fall beside it
    expected = cv2.resize((raw - raw.min()) / (raw.max() - raw.min()), (224, 224))
    actual = normalised_map(raw, protocol("bas-conf"))
    np.testing.assert_array_equal(actual, expected)
    assert actual.max() < 1  # the bilinear peak stays below the raw one
    assert normalised_map(raw, protocol("bas-ext")).max() < actual.max()


@pytest.mark.parametrize("name", ["bas-ext", "bas-conf"])
def test_bas_masks_are_strictly_above_each_threshold(name):
    rule = protocol(name)
    map_HW = normalised_map(smooth(4), rule)
    grid = rule.thresholds.astype(np.float32)
    map_HW[0, :1000] = grid[:224]  # values that equal a threshold are not above it
    levels, masks = level_image(map_HW, rule)
    for t in (0, 1, 17, 150, 223, 500, 999):
        np.testing.assert_array_equal(levels > masks[t], map_HW > grid[t])


@pytest.mark.parametrize("name", sorted(set(PROTOCOLS) - {"voc-miou"}))
@pytest.mark.parametrize("value", [0.0, 3.5, np.nan, np.inf, -np.inf])
def test_maps_without_range_show_nothing(name, value):
    """Zeros; all ones under mLDFR's rule, whose box is then the whole image."""
    raw = np.full((28, 28), 3.5, np.float32)
    raw[10, 10] = value
    if value == 0:
        raw[:] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        map_HW = normalised_map(raw, protocol(name))
    if name.startswith("mldfr"):
        assert map_HW.shape == (28, 28)
        assert (map_HW == 1).all()
    else:
        assert map_HW.shape == (224, 224)
        assert not map_HW.any()
        assert not level_image(map_HW, protocol(name))[0].any()


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_boolean_map_is_not_normalised(name):
    rule = protocol(name, 28)
    for mask_HW in (smooth(0) > 0, np.ones((28, 28), bool), np.zeros((28, 28), bool)):
        np.testing.assert_array_equal(normalised_map(mask_HW, rule), mask_HW)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_two_maps_are_a_mask_of_where_the_first_is_the_higher(name):
    """(0, 2) enlarged to four positions is 0, 0.5, 1.5, 2: higher than 1 in the last two. Equal ones are background."""
    rule, columns = protocol(name, 4, 4), np.array([0.0, 2.0], np.float32)
    raw = np.stack([np.tile(columns, (2, 1)), np.ones((2, 2), np.float32)])
    np.testing.assert_array_equal(normalised_map(raw, rule, (4, 4)), [[0, 0, 1, 1]] * 4)
    assert not normalised_map(raw[[0, 0]], rule, (4, 4)).any()
    np.testing.assert_array_equal(normalised_map(raw[[1, 0]], rule, (4, 4)), [[1, 1, 0, 0]] * 4)


def test_of_overlapping_masks_the_higher_object_comes_first_and_none_is_below_a_threshold():
    rule = protocol("voc-miou", 3, 3)
    raw = np.array([[[-5.0, 3, 40]], [[-6, 4, 39]]], np.float32)
    first, second = competing_map(raw, rule), competing_map(raw + np.array([[[0.5]], [[0.0]]]), rule)
    assert (first > rule.thresholds.max()).tolist() == [[True, False, True]]
    assert (second > first).tolist() == [[True, False, True]]
    near = np.nextafter(raw, np.inf, dtype=np.float32)
    assert (competing_map(near, rule) >= first).all()
    assert (competing_map(near, rule) > first).tolist() == [[True, False, True]]
    plain = np.array([[1.0, 2, 0]])
    np.testing.assert_array_equal(competing_map(plain, rule), normalised_map(plain, rule))


def test_peak_maps_by_hand():
    rule = protocol("voc-miou")
    raw = np.array([[-1.0, 2], [1, 0]])
    np.testing.assert_allclose(normalised_map(raw, rule), raw / 2.00001)
    for nothing in (np.zeros((2, 2)), -raw.clip(0), np.array([[np.nan, 1]])):
        assert not normalised_map(nothing, rule).any()


def double_mean_mask(raw, threshold):
    """mLDFR's own steps, one after the other."""
    a = raw.astype(np.float64)
    a[a < a.mean()] = 0
    n = (a - a.min()) / (a.max() - a.min())
    n[n < threshold] = 0
    return n >= n.mean()


@pytest.mark.parametrize("shift", [0, 3, -3])  # -3: the mean is negative, and what was zeroed outranks what was kept
def test_double_mean_masks_at_every_threshold(shift):
    rule = protocol("mldfr")
    for seed in range(10):
        raw = smooth(seed) + shift
        levels, masks = level_image(normalised_map(raw, rule), rule)
        for t in (0, 1, 50, 200, 333, 600, 999):
            np.testing.assert_array_equal(levels > masks[t], double_mean_mask(raw, rule.thresholds[t]))


def test_double_mean_by_hand():
    """Mean 4: 9, 5 and 8 stay; of 1, 5/9, 8/9 the mean over all six is 22/54: all three are above it."""
    raw = np.array([[9.0, 0, 0], [5, 2, 8]])
    rule = protocol("mldfr")
    levels, masks = level_image(normalised_map(raw, rule), rule)
    assert (levels > masks[200]).tolist() == [[True, False, False], [True, False, True]]
    assert (levels > masks[600]).tolist() == [[True, False, False], [False, False, True]]


def test_mldfr_maps_have_the_size_of_the_stored_image():
    assert normalised_map(smooth(0), protocol("mldfr"), (50, 37)).shape == (37, 50)
    assert normalised_map(smooth(0), protocol("wsol-v1"), (50, 37)).shape == (224, 224)
