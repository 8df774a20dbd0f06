"""How sure a few annotated images are of a threshold, against numbers worked out by hand."""

from dataclasses import replace
from math import comb

import numpy as np
import pytest

from wsol_pipeline.evaluation.certainty import certainty, half_width
from wsol_pipeline.evaluation.counts import SCORE_UNIT, Counts, ImageHits


def counts(scores_NT):
    """Counts of IoUs per image and threshold."""
    images, thresholds = scores_NT.shape
    hits = ImageHits(
        tuple(f"i{n}" for n in range(images)), np.zeros(images, np.int64), np.zeros((images, 0, 0), np.uint8),
        np.zeros(images, np.int64), scores=scores_NT,
    )  # fmt: skip
    nothing, one = np.zeros((1, 0, thresholds), np.int64), np.array([images])
    sums = np.rint(scores_NT.sum(0, keepdims=True) / SCORE_UNIT).astype(np.int64)
    grid = np.arange(thresholds) / 10
    return Counts("x", ("s",), (), grid, nothing, nothing, nothing, one, one, one, hits, scores=sums)


def test_the_half_width_of_a_share_is_the_binomials():
    assert [round(100 * half_width(0.7, n), 1) for n in (50, 100, 400)] == [12.7, 9.0, 4.5]


def test_images_that_agree_leave_no_doubt():
    found = certainty(counts(np.tile([0.2, 0.6, 0.3], (20, 1))), "mean_iou")
    assert set(found.thresholds) == {0.1}
    assert found.losses.max() == 0
    assert found.sentence.endswith("in 19 of 20.")


def test_images_that_do_not_agree_ask_for_more():
    scores_NT = np.array([[0.9, 0.0]] * 3 + [[0.0, 0.8]] * 2)  # .54 at the first threshold, .32 at the second
    found = certainty(counts(scores_NT), "mean_iou")
    assert set(found.thresholds) == {0.0, 0.1}
    assert set(np.round(found.losses, 6)) == {0.0, 22.0}
    # the second wins where .9 k < .8 (5 - k) of k draws of the first kind: k <= 2, of five with a share of .6
    by_hand = sum(comb(5, k) * 0.6**k * 0.4 ** (5 - k) for k in range(3))
    assert np.mean(found.thresholds == 0.1) == pytest.approx(by_hand, abs=0.06)
    assert found.sentence.endswith("annotate more.")


def test_one_setting_of_many_is_read_alone():
    two = counts(np.array([[0.1, 0.5], [0.3, 0.2]]))
    names = ("hits", "top1_hits", "top5_hits", "top1", "top5", "images", "scores")
    twice = {name: np.concatenate([getattr(two, name)] * 2) for name in names}
    several = replace(two, settings=("a", "s"), **twice)
    assert several.at("s").settings == ("s",)
    assert several.at("s").scores.tolist() == two.scores.tolist()
