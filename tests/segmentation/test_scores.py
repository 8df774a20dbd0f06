"""Confusion matrices, per-class IoU and their intervals."""

import numpy as np
import pytest

from wsol_pipeline.errors import DataError
from wsol_pipeline.evaluation.segmentation import class_metrics, count_classes
from wsol_pipeline.segmentation import scores


@pytest.mark.parametrize(
    ("matrix", "ious", "mean", "present"),
    [
        ([[6, 1, 0], [2, 5, 0], [0, 0, 0]], [6 / 9, 5 / 8, np.nan], 0.64583, 0.64583),
        ([[6, 1, 1], [2, 5, 0], [0, 0, 0]], [0.6, 0.625, 0], 0.40833, 0.6125),
        ([[6, 1, 0], [2, 5, 0], [0, 1, 0]], [0.66667, 0.55556, 0], 0.40741, 0.40741),
    ],
)
def test_worked_matrices(matrix, ious, mean, present):
    matrix = np.array(matrix)
    assert scores.class_iou(matrix) == pytest.approx(ious, abs=5e-6, nan_ok=True)
    found = scores.figures(matrix, ["one", "two"])
    assert found["miou"] / 100 == pytest.approx(mean, abs=5e-6)
    assert found["miou_present"] / 100 == pytest.approx(present, abs=5e-6)


def test_what_is_absent_is_named_and_a_claim_of_it_counts():
    found = scores.figures(np.array([[6, 1, 0], [2, 5, 0], [0, 0, 0]]), ["one", "two"])
    assert found["absent"] == ["two"]
    assert "two" not in found["classes"]
    assert scores.figures(np.array([[6, 1, 1], [2, 5, 0], [0, 0, 0]]), ["one", "two"])["classes"]["two"] == 0


def test_pixels_that_count_neither_way():
    truth = np.array([[0, 1, 255]], np.uint8)
    assert scores.confusion(truth, np.array([[0, 255, 1]], np.uint8), 1).tolist() == [[1, 0], [1, 0]]
    with pytest.raises(DataError, match="No pixel has a true label"):
        scores.figures(scores.confusion(np.full((2, 2), 255, np.uint8), np.zeros((2, 2), np.uint8), 1), ["one"])
    with pytest.raises(DataError, match="must be in 0..1 or 255 but one is 7"):
        scores.confusion(np.array([[7]], np.uint8), np.zeros((1, 1), np.uint8), 1)
    with pytest.raises(DataError, match=r"A mask of \(1, 1\) cannot judge a prediction of \(1, 2\)"):
        scores.confusion(np.zeros((1, 1), np.uint8), np.zeros((1, 2), np.uint8), 1)


def test_every_threshold_is_read_from_one_histogram():
    rng = np.random.default_rng(0)
    maps, truth = rng.random((2, 9, 11)), rng.integers(0, 4, (9, 11)).astype(np.uint8)
    thresholds, classes = np.linspace(0, 1, 50, endpoint=False), np.array([0, 2])
    pixels = count_classes(maps, classes, truth, thresholds, 3)
    for number, threshold in enumerate(thresholds):
        labels = np.where(maps.max(0) > threshold, classes[maps.argmax(0)] + 1, 0).astype(np.uint8)
        expected = scores.class_iou(scores.confusion(truth, labels, 3))
        assert scores.iou_at(pixels, number) == pytest.approx(expected, nan_ok=True)
    best, value = scores.best_threshold(pixels)
    means = class_metrics(pixels[None])["miou"][0]
    assert (best, value) == (means.argmax(), pytest.approx(means.max()))


def test_no_threshold_is_chosen_by_masks_of_nothing():
    with pytest.raises(DataError, match="no threshold can be chosen"):
        scores.best_threshold(np.zeros((3, 4, 11), np.int64))


def test_intervals_draw_images():
    good, bad = np.array([[8, 0], [0, 8]]), np.array([[0, 8], [8, 0]])
    low, high = scores.bootstrap(np.stack([good] * 10 + [bad] * 10))
    assert 0 <= low < 100 * 1 / 3 < high <= 100
    assert scores.bootstrap(np.stack([good] * 4)) == (100, 100)
    low, high = scores.paired(np.stack([bad] * 4), np.stack([good] * 4))
    assert (low, high) == (100, 100)
