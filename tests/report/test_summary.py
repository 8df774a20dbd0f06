"""Figures and sentences of a report, worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest

from wsol_pipeline.report.summary import (
    by_size,
    gain,
    gain_sentence,
    kinds,
    size_edges,
    training_points,
    wilson,
)
from wsol_pipeline.text import metric_name, parameter_name


def test_the_gain_is_split_into_readout_and_training(facts):
    assert [value for _, value in gain(facts)] == [36, 52.5, 71.75]
    assert gain_sentence(facts) == (
        "MaxBoxAccV2 on test was 36.0 with the published setting as the paper reads it; solving readout and threshold "
        "alone brought it to 52.5 (+16.5 from readout), searching the training to 71.8 (+19.3 from training)."
    )


def test_a_paper_whose_readout_is_not_ours(facts):
    b, published, winner = facts.subjects
    facts = replace(facts, subjects=(b, replace(published, lines=published.lines[1:]), winner))
    assert gain_sentence(facts) == (
        "MaxBoxAccV2 on test was 52.5 with the published setting and its readout solved (the paper's own is not one of "
        "ours), searching the training to 71.8 (+19.3 from training)."
    )


def test_a_winner_that_is_the_published_setting(facts):
    told = gain_sentence(replace(facts, subjects=facts.subjects[:2]))
    assert told.endswith(
        "52.5 (+16.5 from readout). The published setting won the search: training gained nothing over it."
    )


def test_no_gain_without_a_published_setting_or_over_two_splits(facts, make_subject, make_row):
    assert "nothing to measure" in gain_sentence(replace(facts, subjects=facts.subjects[-1:]))
    winner = make_subject("a: winner", "a", [make_row("a: winner", 70, judged=False)])
    assert gain(replace(facts, subjects=(*facts.subjects[:2], winner))) == []


def test_wilsons_interval():
    assert wilson(8, 10) == pytest.approx((49.02, 94.33), abs=0.01)  # statsmodels' proportion_confint
    assert wilson(0, 10) == pytest.approx((0, 27.75), abs=0.01)


def test_ranges_of_size_hold_equally_many_images(make_case):
    cases = [make_case(n, iou) for n, iou in enumerate((0.9, 0.7, 0.2, 0.8, 0.1, 0.1))]  # sizes 0.1 ... 0.6
    shares = by_size(cases, size_edges(cases, groups=2))
    assert [(s.label, s.images) for s in shares] == [("10–35 %", 3), ("35–60 %", 3)]
    assert [s.percent for s in shares] == pytest.approx([200 / 3, 100 / 3])


def test_objects_of_one_size_are_one_range(make_case):
    cases = [replace(make_case(n, 0.9), size=0.25) for n in range(3)]
    (share,) = by_size(cases, size_edges(cases))
    assert (share.label, share.images, share.percent) == ("25–25 %", 3, 100)


def test_kinds_are_counted_in_their_order(make_case):
    counted = kinds([make_case(0, 0.9), replace(make_case(1, 0.8), rank=2), make_case(2, 0.3)])
    assert counted == {
        "right": 1, "wrong class": 1, "several objects": 0, "too large": 0, "too small": 1, "misplaced": 0,
    }  # fmt: skip


def test_a_pruned_trial_is_not_a_complete_one(facts):
    assert training_points(facts.searches[0], "alpha") == {
        "complete": [(0.7, 60)], "published": [(0.5, 50)], "pruned": [(0.1, 20)],
    }  # fmt: skip


def test_names_as_papers_print_them():
    assert [parameter_name(name) for name in ("lambda_", "lambda2", "alpha", "learning_rate", "heads")] == [
        "λ", "λ2", "α", "learning rate", "heads",
    ]  # fmt: skip
    assert metric_name("max_box_acc_iou30") == "MaxBoxAcc, IoU 0.30"


def test_edges_are_unique(make_case):
    cases = [replace(make_case(n, 0.9), size=size) for n, size in enumerate((0.1, 0.1, 0.1, 0.5))]
    assert np.all(np.diff(size_edges(cases)) > 0)
