"""Two models on the same images, with figures worked out by hand."""

from dataclasses import replace
from math import comb

import numpy as np
import pytest

from wsol_pipeline.report.facts import Line
from wsol_pipeline.report.significance import bootstrap, compare, mcnemar, paired


@pytest.fixture
def scored(make_case):
    """`scored(values)`: a case for each image, found or not in GT-known."""
    return lambda values: tuple(replace(make_case(n, 0.6), gt_known_loc=value) for n, value in enumerate(values))


@pytest.mark.parametrize(
    ("only_here", "only_there", "p"),
    [
        (0, 0, 1.0),
        (1, 9, 22 / 1024),  # twice the ways of at most one in ten, 1 + 10
        (9, 1, 22 / 1024),
        (5, 5, 1.0),
        (0, 6, 2 / 64),
        (3, 1, 10 / 16),
    ],
)
def test_mcnemar_is_the_binomial_test_of_the_images_that_differ(only_here, only_there, p):
    assert mcnemar(only_here, only_there) == p


def test_mcnemar_takes_as_many_images_as_a_test_split_has():
    assert mcnemar(3000, 3000) == 1.0
    assert 0 < mcnemar(2800, 3200) < 1e-6


def test_a_bootstrap_of_two_images_has_three_outcomes():
    """Differences of 1 and 0: means of 0, 0.5 and 1 with chances of a quarter, a half and a quarter."""
    assert bootstrap(np.array([1.0, 0.0]), np.arange(2)) == (0.0, 100.0)
    assert bootstrap(np.array([1.0, 1.0]), np.arange(2)) == (100.0, 100.0)


def test_a_bootstrap_is_that_of_drawing_images_one_by_one():
    """Of 40 images 12 are better by 1 and 4 worse by 1/3: quantiles of the exact distribution of a redraw's mean."""
    better, worse = 12, 4
    difference = np.concatenate([np.ones(better), np.full(worse, -1 / 3), np.zeros(40 - better - worse)])
    chances: dict[int, float] = {}
    for ups in range(41):
        for downs in range(41 - ups):
            ways = comb(40, ups) * comb(40 - ups, downs)
            chance = ways * (better / 40) ** ups * (worse / 40) ** downs * (24 / 40) ** (40 - ups - downs)
            chances[3 * ups - downs] = chances.get(3 * ups - downs, 0.0) + chance
    values = np.array(sorted(chances))
    cumulated = np.cumsum([chances[v] for v in values])
    exact = [100 * values[np.searchsorted(cumulated, share)] / 120 for share in (0.025, 0.975)]
    assert bootstrap(difference, np.arange(40)) == pytest.approx(exact, abs=100 / 120)  # a step of the distribution


def test_pairs_of_one_image_are_drawn_together():
    """Two images with two classes each, better in both and in none: the same three outcomes as above."""
    assert bootstrap(np.array([1.0, 1.0, 0.0, 0.0]), np.array([0, 0, 1, 1])) == (0.0, 100.0)


def test_two_models_are_compared_image_by_image(scored):
    ours, theirs = scored([1.0, 1.0, 1.0, 1.0, 0.0, 0.0]), scored([0.0, 0.0, 0.0, 1.0, 1.0, 0.0])
    found = paired(ours, theirs[::-1], "gt_known_loc", "b")  # by their ids, whatever the order
    assert (found.images, found.only_here, found.only_there, found.p) == (6, 3, 1, 10 / 16)
    assert found.difference == pytest.approx(100 * 2 / 6)
    assert found.low < found.difference < found.high


def test_shares_of_several_overlaps_have_no_mcnemar(scored):
    found = paired(scored([1 / 3, 1.0]), scored([0.0, 1.0]), "gt_known_loc")
    assert (found.only_here, found.only_there, found.p) == (None, None, None)
    assert found.difference == pytest.approx(100 / 6)


def test_only_what_was_kept_of_the_same_images_is_compared(make_row, scored):
    old, ours = Line(make_row("old", 10), None, scored([None] * 3)), Line(make_row("a", 20), None, scored([1.0] * 3))
    other, fewer = Line(make_row("b", 10), None, scored([0.0] * 3)), Line(make_row("c", 10), None, scored([0.0] * 2))
    box = Line(make_row("box", 5))
    assert [found.other for found in compare([box, old, other, fewer, ours])] == ["b"]
    assert compare([ours, box]) == []
