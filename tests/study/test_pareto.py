"""The Pareto front and the rule that picks from it, on numbers worked out by hand."""

import numpy as np
import pytest

from wsol_pipeline.study.outcome import on_front, ranking_markdown
from wsol_pipeline.study.pareto import Rule, cell
from wsol_pipeline.study.standings import Standing

TWO = Rule(("gt_known_loc", "cls_top1"), 1.0)
COSTLY = Rule(("gt_known_loc", "cls_top1", "device_hours"), 1.0)


def test_the_front_is_what_no_other_beats():
    """1 is beaten by 0 in both, 3 by 2 in one alone; 4 and 5 are equal and stay together."""
    assert TWO.front([[60, 80], [59, 79], [70, 60], [70, 59], [50, 90], [50, 90]]) == [0, 2, 4, 5]


def test_cost_is_better_the_less_it_is():
    assert Rule(("gt_known_loc", "device_hours"), 0.0).front([[60, 2.0], [60, 1.0], [50, 1.5], [50, 0.5]]) == [1, 3]


def test_the_front_and_the_order_are_those_of_their_definitions():
    values = np.random.default_rng(0).integers(0, 8, (40, 3))
    gains = values * [1, 1, -1]

    def beats(i, j):
        return all(gains[i] >= gains[j]) and any(gains[i] > gains[j])

    expected = [j for j in range(40) if not any(beats(i, j) for i in range(40))]
    assert COSTLY.front(values) == expected
    order, left = COSTLY.order(values), list(range(40))
    for best in order:
        assert best == left[COSTLY.pick(values[left])]
        left.remove(best)


@pytest.mark.parametrize(
    ("rule", "values", "winner"),
    [
        (TWO, [[62.0, 70.0], [61.0, 75.0], [60.9, 90.0]], 1),  # a whole point is within the tolerance
        (TWO, [[100 * 5 / 300, 70.0], [100 * 2 / 300, 75.0]], 1),  # so is 1 + 2e-16
        (TWO, [[62.0, 70.0], [61.5, 69.0], [61.4, 70.0]], 0),  # 1 and 2 would be near enough, but 0 beats both
        (Rule(TWO.objectives, 0.0), [[62.0, 70.0], [61.9, 99.0]], 0),
        (COSTLY, [[62.0, 70.0, 3.0], [61.5, 69.5, 2.0], [61.2, 68.0, 1.0]], 1),  # 2 is 2 below the best cls_top1
        (COSTLY, [[62.0, 70.0, 3.0], [61.5, 69.5, 2.999], [50.0, 10.0, 0.1]], 1),  # cost has no tolerance
        (Rule(("gt_known_loc", "device_hours"), 1.0), [[62.0, 2.0], [61.0, 1.0], [55.0, 0.1]], 1),
        (COSTLY, [[61.5, 70.5, 2.0], [61.6, 70.0, 2.0]], 1),  # equal cost: the first objective tells them apart
        (TWO, [[62.0, 70.0], [62.0, 70.0]], 0),
    ],
)
def test_the_rule_picks(rule, values, winner):
    assert rule.pick(values) == winner
    assert winner in rule.front(values)


def test_the_next_best_is_who_would_win_without_those_before():
    """0 beats 2, which is near it; 3 is far below the best of the first objective."""
    assert TWO.order([[62.0, 70.0], [61.5, 69.0], [61.9, 69.5], [40.0, 99.0]]) == [0, 2, 1, 3]


def test_the_sentence_counts_who_is_left():
    values = {4: (62.0, 70.0, 3.0), 7: (61.5, 69.5, 2.0), 9: (61.2, 68.0, 1.0), 2: (50.0, 90.0, 9.0), 3: (50, 60, 9)}
    assert COSTLY.sentence(values) == (
        "4 of 5 settings are on the Pareto front; 3 of them at most 1 point below the best gt_known_loc (62.00); "
        "2 of them at most 1 point below the best cls_top1 (70.00); "
        "of these trial 7 has the least device_hours (2) and wins."
    )
    assert TWO.sentence({3: (60, 80), 5: (58.5, 90)}, "confirmed settings") == (
        "2 of 2 confirmed settings are on the Pareto front; "
        "1 of them at most 1 point below the best gt_known_loc (60.00): trial 3 wins."
    )
    assert TWO.sentence({3: (60, 80), 5: (59, 80)}) == "Trial 3 wins: of 2 settings none is better in any objective."


def test_hours_keep_their_digits():
    assert [cell("device_hours", [0.00123]), cell("cls_top1", [61.238]), cell("cls_top1", [60.0, 62.0])] == [
        "0.00123", "61.24", "61.00 ± 1.41 (2)",
    ]  # fmt: skip


def test_the_last_screen_has_the_front_and_the_table_everyone():
    ranking = [
        (Standing((1,), (61.0,), ((70.0,), (0.5,))), "row", {"alpha": 0.5}),
        (Standing((0,), (60.0,), ((70.0,), (0.5,))), "", {}),
        (Standing((2,), (62.0,), ((60.0,), (1.0,))), "", {}),
    ]
    assert [standing.number for standing, _, _ in on_front(ranking, COSTLY)] == [1, 2]
    assert ranking_markdown(ranking, COSTLY.objectives, {}, "Trial 1 wins.").splitlines() == [
        "| trial | setting | parameters | gt_known_loc (validation) | cls_top1 (validation) | device_hours |",
        "|---|---|---|---|---|---|",
        "| 1 | row | alpha 0.5 | 61.00 | 70.00 | 0.5 |",
        "| 0 |  |  | 60.00 | 70.00 | 0.5 |",
        "| 2 |  |  | 62.00 | 60.00 | 1 |",
        "",
        "Trial 1 wins.",
    ]
