import warnings

import cv2
import numpy as np
import pytest

from wsol_pipeline.evaluation.levels import level_image
from wsol_pipeline.evaluation.maps import normalised_map
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


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize("value", [0.0, 3.5, np.nan, np.inf, -np.inf])
def test_maps_without_range_are_zero(name, value):
    raw = np.full((28, 28), 3.5, np.float32)
    raw[10, 10] = value
    if value == 0:
        raw[:] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        map_HW = normalised_map(raw, protocol(name))
    assert map_HW.shape == (224, 224)
    assert not map_HW.any()
    assert not level_image(map_HW, protocol(name))[0].any()
