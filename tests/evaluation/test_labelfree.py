"""Selectors without boxes against the numbers of docs/labels-only.md, worked out by hand."""

import numpy as np
import pytest
import torch

from wsol_pipeline.errors import UsageError
from wsol_pipeline.evaluation.labelfree import (
    EVIDENCE_GRID,
    Area,
    Consensus,
    Evidence,
    Observed,
    Otsu,
    OwnMask,
    Vote,
    beyond_chance,
    concluded,
    evidence_grid,
    gains,
    kappa,
    lower_median,
    nearest_area,
)
from wsol_pipeline.evaluation.protocols import protocol
from wsol_pipeline.evaluation.selection import choose
from wsol_pipeline.selectors import parse, said

RULES = protocol("wsol-v1", 32, 36)


def test_evidence_is_the_worked_example():
    """S = 8; at τ .2, .4, .6 S_b 1, 2, 5 and areas .5, .25, .1: E .625, .5, .725."""
    evidence, rest = torch.tensor([8.0] * 3, dtype=torch.float64), torch.tensor([1.0, 2, 5], dtype=torch.float64)
    gain = gains(evidence, rest, torch.tensor([0.5, 0.25, 0.1], dtype=torch.float64))
    assert (1 - gain).tolist() == pytest.approx([0.625, 0.5, 0.725], abs=1e-8)
    assert int(gain.argmax()) == 1


def test_an_empty_mask_has_e_of_one_and_a_full_one_about_one():
    one = torch.ones(1, dtype=torch.float64)
    assert gains(8 * one, 8 * one, 0 * one).item() == 0
    assert gains(8 * one, 0 * one, one).item() == 0
    assert gains(8 * one, 9 * one, 0.2 * one).item() == pytest.approx(-0.2)  # never more than all of it is lost


def test_images_without_evidence_are_left_out_not_scored():
    zero, half = torch.zeros(1, dtype=torch.float64), torch.full((1,), 0.5, dtype=torch.float64)
    assert gains(zero, zero, half).isnan().all()
    seen = np.full((1, 6), 0.4)
    curve = Evidence().curve(np.concatenate([seen, np.full((3, 6), np.nan)]))
    assert curve.scores.tolist() == [0.4] * 6
    assert not np.isnan(curve.of_images).any()
    nothing = Evidence().curve(np.full((3, 6), np.nan))
    assert nothing.scores.tolist() == [0] * 6
    assert "under 0.1" in Evidence().reason(0.0)


def test_evidence_abstains_below_a_gain_of_a_tenth():
    assert Evidence().reason(10.0) == ""
    assert Evidence().reason(9.9).startswith("the evidence gain is 0.099, under 0.1")


def test_many_settings_are_compared_at_six_thresholds_and_one_is_read_at_nineteen():
    assert evidence_grid(True).tolist() == EVIDENCE_GRID.tolist() == pytest.approx(np.arange(0.05, 1, 0.05))
    assert evidence_grid(False).tolist() == pytest.approx([0.1, 0.25, 0.4, 0.55, 0.7, 0.85])


def test_kappa_is_the_worked_example_and_zero_for_whole_images():
    assert float(beyond_chance(0.60, 0.35)) == pytest.approx(0.3846153846153846)
    assert float(beyond_chance(1.0, 1.0)) == 0
    whole = np.tile(np.array([0.0, 0, 31, 31]), (7, 3, 1))
    assert kappa(whole, whole).tolist() == np.zeros((3, 3)).tolist()


def test_kappa_is_that_of_a_loop_over_images_and_shifts():
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 20, (2, 8, 3, 2))
    mine, theirs = np.concatenate([corners, corners + rng.integers(1, 12, corners.shape)], -1).astype(float)

    def iou(a, b):
        sides = [min(a[k + 2], b[k + 2]) - max(a[k], b[k]) + 1 for k in (0, 1)]
        common = max(sides[0], 0) * max(sides[1], 0)
        areas = [(c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b)]
        return common / (sum(areas) - common)

    for t in range(3):
        for u in range(3):
            observed = np.mean([iou(mine[i, t], theirs[i, u]) for i in range(8)])
            chance = np.mean([iou(mine[i, t], theirs[(i + k) % 8, u]) for i in range(8) for k in range(1, 6)])
            assert kappa(mine, theirs)[t, u] == pytest.approx((observed - chance) / (1 - chance), abs=1e-12)


def test_thresholds_whose_boxes_are_nearly_everything_are_left_out_of_a_consensus():
    rng = np.random.default_rng(0)
    low = rng.integers(0, 4, (6, 1, 1, 2))
    boxes = np.concatenate([low, low + 26], -1) + np.zeros((1, 1, 2, 1))
    areas = np.broadcast_to(np.array([0.81, 0.7]), (6, 1, 2))[..., None]
    one = np.concatenate([boxes, areas], -1)
    kept = np.tile(np.concatenate([one, one], 1), (1, 1, 1, 1))
    scores = Consensus(None).curve(kept).scores
    assert scores[0] == -1
    assert scores[1] > 0


def test_the_area_rule_is_the_worked_example():
    scores = nearest_area(np.array([0.62, 0.41, 0.30]), 0.35)
    assert scores.argmax() == 2  # .05 away at τ .4; .06 at τ .3
    assert scores.tolist() == pytest.approx([0.73, 0.94, 0.95])


def test_area_adds_sums_over_batches():
    grid = np.array([0.2, 0.3, 0.4])
    parts = [(grid, np.array([1.2, 0.8, 0.6]), 2), (grid, np.array([0.66, 0.43, 0.3]), 1)]
    curve = Area(0.35).curve(Area(0.35).join(parts))
    assert float(curve.thresholds[curve.scores.argmax()]) == 0.4


def test_a_vote_is_the_worked_example():
    assert lower_median([0.34, 0.35, 0.17, 0.23, 0.20]) == 0.23
    assert lower_median([0.1, 0.2, 0.3, 0.4]) == 0.2  # of an even number the lower middle


def test_a_vote_takes_otsus_median_and_the_others_best():
    kept = [np.array([[0.5, 0.9], [0.3, 0.8], [np.nan, np.nan]]), np.tile([0.2, 0.6, 0.4, 0, 0, 0], (3, 1))]
    curve = Vote((Otsu(), Evidence())).curve(kept)
    assert curve.thresholds.tolist() == [0.25]  # of .3 and .25 the lower
    assert curve.scores.tolist() == pytest.approx([0.95])


def test_flat_maps_have_no_say_in_otsus_median():
    curve = Otsu().curve(np.array([[0.4, 0.8], [np.nan, np.nan], [0.2, 0.6]]))
    assert (curve.thresholds.tolist(), curve.scores.tolist()) == ([0.2], [0.7])
    assert Otsu().reason(100 * Otsu().curve(np.full((3, 2), np.nan)).scores[0]) == "every map is flat"


def test_a_map_that_has_values_is_no_mask_of_its_own():
    with pytest.raises(UsageError, match="own-mask needs maps that are masks already"):
        OwnMask().see(None, None, torch.rand(2, 4, 4), None, RULES, False)
    masks = torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[0, 2:5, 2:5] = True
    assert OwnMask().curve(OwnMask().see(None, None, masks, None, RULES, False)).scores.tolist() == [0.5]


def test_what_was_found_is_the_same_in_however_many_parts_and_chosen_as_with_boxes():
    rng = np.random.default_rng(0)
    kept = [rng.random((5, 6)) for _ in range(2)]  # of two settings
    ranks = np.array([0, 0, 3, 7, 0])

    def part(rows):
        ids = tuple(f"i{n}" for n in range(5))[rows]
        return Observed(ids, np.zeros(len(ids), np.int64), ranks[rows], tuple(of[rows] for of in kept))

    whole, nothing = part(slice(0, 5)), Observed((), np.empty(0, np.int64), np.empty(0, np.int64), (None, None))
    one = concluded(Evidence(), "evidence", [whole], RULES, ("a", "b"), fine=False)
    two = concluded(Evidence(), "evidence", [part(slice(0, 2)), nothing, part(slice(2, 5))], RULES, ("a", "b"), False)
    assert one.scores.tolist() == two.scores.tolist()
    assert (one.truth, one.top1.tolist(), one.top5.tolist(), one.images.tolist()) == (
        "evidence",
        [3, 3],
        [4, 4],
        [5, 5],
    )
    choice = choose(one, "evidence_gain")
    means = np.stack(kept).mean(1)
    setting, at = np.unravel_index(means.argmax(), means.shape)
    assert (choice.setting, choice.threshold) == (setting, evidence_grid(False)[at])
    assert choice.value == pytest.approx(100 * means.max(), abs=1e-9)
    assert choice.thresholds["max_box_acc_v2"] == (choice.threshold,) * 3  # one for all


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("evidense", "Unknown selector 'evidense'. Did you mean 'evidence'"),
        ("consensus", "The selector is written consensus:STUDY but got 'consensus'"),
        ("otsu:3", "The selector is written otsu but got 'otsu:3'"),
        ("area:1.5", "in 0..1, but got '1.5'"),
        ("area:half", "in 0..1, but got 'half'"),
        ("vote:otsu", "vote:NAMES takes two or more"),
        ("vote:otsu,otsu", "vote:NAMES takes two or more"),
        ("vote:otsu,boxes", "vote:NAMES takes two or more"),
    ],
)
def test_a_selector_that_is_none_is_refused_with_those_that_are(text, told):
    with pytest.raises(UsageError, match=told):
        parse(text)


def test_selectors_are_recorded_without_places():
    assert parse("annotated:todo/boxes.csv").recorded == "annotated"
    assert parse("consensus:cam").recorded == "consensus:cam"
    assert [str(member) for member in parse("vote:otsu,area:0.3").members] == ["otsu", "area:0.3"]


def test_the_boxes_that_a_detector_hides_are_said_wherever_it_is():
    assert said("detector") == "detector (uses boxes of COCO)"
    assert said("val/detector+otsu") == "val/detector+otsu (uses boxes of COCO)"
    assert said("val/evidence+detector") == "val/evidence+detector (uses boxes of COCO)"
    assert said("val/proposals") == "val/proposals"
    assert said("consensus:cam") == "consensus:cam"
