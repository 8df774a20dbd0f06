"""One box of many proposals, by numbers worked out by hand."""

import numpy as np
import pytest

from wsol_pipeline.evaluation.pointing import candidates, centres, holding, inside, most_telling, peak


def test_the_peak_is_the_centre_of_its_cell_in_pixels_of_the_image():
    map_HW = np.zeros((2, 4))
    map_HW[1, 2] = 1
    assert peak(map_HW, (0, 0, 640, 480)) == (400, 360)  # cells of 160 x 240
    assert peak(map_HW, (40, 30, 600, 450)) == (390, 345)  # of 140 x 210, in the window of a crop
    assert peak(np.ones((2, 4)), (0, 0, 640, 480)) == (80, 120)  # of equals the first
    assert centres(10, 16, 3).tolist() == [11, 13, 15]


def test_what_is_small_or_nearly_the_image_or_elsewhere_is_dropped_in_order():
    boxes = np.array([
        [0, 0, 100, 100],  # the image
        [0, 0, 70, 100],  # .7 exactly: kept
        [0, 0, 71, 100],
        [40, 40, 65, 60],  # .05 exactly: kept
        [40, 40, 64, 60],
        [51, 0, 100, 100],  # does not hold the peak
        [0, 0, 50, 100],  # its last pixel is 49: neither
        [50, 50, 90, 90],
    ], float)  # fmt: skip
    assert candidates(boxes, (50.0, 50.0), (100, 100)).tolist() == [1, 3, 7]
    assert holding(boxes, (50.0, 50.0)).tolist() == [True, True, True, True, True, False, False, True]
    assert candidates(np.empty((0, 4)), (50.0, 50.0), (100, 100)).tolist() == []


def test_the_network_sees_the_cells_whose_centres_are_in_the_box():
    """Four columns of 25 pixels with centres 12.5, 37.5, ...; two rows of 40 with 20, 60."""
    boxes = np.array([[12.5, 0, 62.5, 80], [13, 21, 88, 60], [13, 21, 88, 61]], float)
    found = inside(boxes, (0, 0, 100, 80), (2, 4)).astype(int)
    assert found[0].tolist() == [[1, 1, 0, 0], [1, 1, 0, 0]]  # half-open: 62.5 is outside
    assert found[1].tolist() == [[0, 0, 0, 0], [0, 0, 0, 0]]
    assert found[2].tolist() == [[0, 0, 0, 0], [0, 1, 1, 1]]
    cropped = inside(np.array([[0.0, 0, 100, 80]]), (100, 0, 200, 80), (2, 2))
    assert not cropped.any()  # what the network does not see is nothing of it


def test_the_box_in_which_the_object_is_seen_and_without_which_it_is_not():
    """p_in .6 .9 .8, p_out .1 .8 .2: differences .5 .1 .6."""
    given = {0: (0.6, 0.1), 1: (0.9, 0.8), 2: (0.8, 0.2)}
    boxes = np.array([[n, 0, n + 1, 1] for n in given], float)
    found = most_telling(boxes, *(lambda of, k=k: np.array([given[int(x)][k] for x in of[:, 0]]) for k in (0, 1)))
    assert found == (2, pytest.approx(0.6))
    assert most_telling(np.empty((0, 4)), None, None) is None


def test_sixteen_are_seen_alone_and_the_surest_six_of_them_taken_away():
    asked = {}

    def score(name):
        def give(boxes):
            asked[name] = boxes[:, 0].astype(int).tolist()
            return np.array([{"in": n % 8 / 10, "out": 0.5 - n / 100}[name] for n in asked[name]])

        return give

    boxes = np.array([[n, 0, n + 1, 1] for n in range(40)], float)
    best, apart = most_telling(boxes, score("in"), score("out"))
    assert asked["in"] == list(range(16))
    assert asked["out"] == [7, 15, 6, 14, 5, 13]  # of equals the earlier one first
    assert (best, apart) == (15, pytest.approx(0.7 - 0.35))
