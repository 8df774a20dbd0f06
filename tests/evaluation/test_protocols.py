import numpy as np
import pytest

from wsol_pipeline.errors import UsageError
from wsol_pipeline.evaluation.protocols import PROTOCOLS, ground_truth_boxes, protocol


def boxes(name, box, size_wh=(500, 400), convention="inclusive0"):
    return ground_truth_boxes([box], size_wh, convention, protocol(name))[0].tolist()


def test_benchmark_boxes_are_scaled_and_truncated():
    # 13 * 224 / 500 = 5.824; 99 * 224 / 400 = 55.44; 499 * .448 = 223.552; 399 * .56 = 223.44
    assert boxes("wsol-v1", [13, 99, 499, 399]) == [5, 55, 223, 223]
    assert boxes("wsol-v2", [13, 99, 499, 399]) == [5, 55, 223, 223]


def test_crop_boxes_are_scaled_shifted_and_cut():
    # scale .512 and .64, shift 16: (100 * .512 - 16, 100 * .64 - 16, 300 * .512 - 16, 399 * .64 - 16 > 224)
    assert boxes("bas-conf", [100, 100, 300, 399]) == pytest.approx([35.2, 48.0, 137.6, 224.0])
    assert boxes("bas-ext", [100, 100, 300, 399]) == [35, 48, 137, 223]
    assert boxes("bas-ext", [0, 0, 499, 399]) == [0, 0, 223, 223]


def test_a_box_outside_the_crop_is_inverted():
    x0, _, x1, _ = boxes("bas-conf", [0, 0, 20, 399])
    assert x1 < x0


def test_conventions_meet():
    assert boxes("wsol-v1", [10, 20, 30, 40], (224, 224), "inclusive0") == [10, 20, 30, 40]
    assert boxes("wsol-v1", [11, 21, 31, 41], (224, 224), "inclusive1") == [10, 20, 30, 40]
    assert boxes("wsol-v1", [10, 20, 31, 41], (224, 224), "exclusive0") == [10, 20, 30, 40]


def test_no_box_gives_no_box():
    assert ground_truth_boxes([], (10, 10), "inclusive0", protocol("wsol-v1")).shape == (0, 4)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_grid_is_the_authors_own(name):
    np.testing.assert_array_equal(protocol(name).thresholds, list(np.arange(0, 1, 0.001)))
    assert len(protocol(name).thresholds) == 1000


def test_sizes_follow_the_caller():
    assert ground_truth_boxes([[0, 0, 99, 99]], (100, 100), "inclusive0", protocol("wsol-v1", 64))[0, 2] == 63


def test_unknown_names_answer_with_the_known_ones():
    with pytest.raises(UsageError, match="wsol-v1"):
        protocol("wsol-v3")
    with pytest.raises(UsageError, match="inclusive1"):
        boxes("wsol-v1", [0, 0, 1, 1], convention="inclusive2")
    with pytest.raises(UsageError, match="image_size=300"):
        protocol("wsol-v1", 300)
