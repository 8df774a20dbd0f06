"""Kinds of failure, with overlaps worked out by hand."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from wsol_pipeline.evaluation.cases import KINDS, Case, add_cases, box_overlap, kind, mask_overlap, spread
from wsol_pipeline.evaluation.metrics import ious_per_threshold
from wsol_pipeline.evaluation.protocols import PROTOCOLS, protocol

OBJECT = (10, 10, 19, 19)  # 100 pixels
FAILED = Case(0, "a", 0, 0, False, 0.2, 0.0, 0.0, 0, 0.25, (), ())


def overlap(box, *truth):
    return box_overlap(np.array(box), np.array(truth, float), 400)


@pytest.mark.parametrize(
    ("box", "of_box", "of_object", "expected"),
    [
        ((10, 10, 13, 19), 1.0, 0.4, "too small"),  # 40 pixels, all in the object
        ((5, 5, 19, 19), 100 / 225, 1.0, "too large"),  # 225 pixels around it
        ((15, 15, 24, 24), 0.25, 0.25, "misplaced"),  # a quarter of either
        ((10, 10, 19, 24), 100 / 150, 1.0, "too large"),  # by its share "too small" too, but larger than the object
        ((0, 0, 5, 5), 0.0, 0.0, "misplaced"),
    ],
)
def test_shares_of_box_and_object_tell_the_kind(box, of_box, of_object, expected):
    found = overlap(box, OBJECT)
    assert (found["of_box"], found["of_object"]) == pytest.approx((of_box, of_object))
    assert found["size"] == 0.25
    assert kind(replace(FAILED, **found)) == expected


def test_a_box_around_two_objects_and_one_that_touches_a_second():
    second = (20, 10, 29, 19)
    around = overlap((10, 10, 29, 19), OBJECT, second)
    assert around["objects"] == 2
    assert kind(replace(FAILED, **around)) == "several objects"
    touching = overlap((15, 10, 22, 19), OBJECT, second)  # holds 0.5 of the first and exactly 0.3 of the second
    assert touching["objects"] == 1
    assert touching["of_box"] == 50 / 80


def test_the_nearest_true_box_is_measured_and_an_inverted_one_never_met():
    found = overlap((10, 10, 19, 19), (0, 0, 19, 19), OBJECT, (5, 5, -1, -1))
    assert (found["of_box"], found["of_object"], found["size"]) == (1, 1, 1)
    assert found["objects"] == 1  # a quarter of the large one


def test_a_right_box_is_a_failure_only_of_the_class():
    assert [kind(replace(FAILED, hit=True, rank=rank, objects=2)) for rank in (0, 3)] == ["right", "wrong class"]
    assert "right" in KINDS


def test_pixels_of_a_mask():
    mask = np.array([[1, 1, 0, 255], [1, 1, 0, 0]], np.uint8)
    found = mask_overlap(np.array([[1, 1, 1, 1], [0, 0, 0, 0]], bool), mask)
    assert (found["iou"], found["of_box"], found["of_object"]) == (2 / 5, 2 / 3, 2 / 4)
    assert found["size"] == 4 / 7
    assert not found["hit"]


@pytest.mark.parametrize("name", [name for name, rules in PROTOCOLS.items() if rules.ious])
def test_a_case_has_the_iou_that_the_counts_have(name):
    rules, rng = protocol(name, 32, 32), np.random.default_rng(3)
    maps = 0.4 * rng.random((4, 8, 8), np.float32)
    for number, raw in enumerate(maps):
        raw[number : number + 4, 2:6] += 0.6
    truth = [np.array([[4, 6, 20, 25]], float)] * 4
    batch = SimpleNamespace(ids=list("abcd"), labels_B=torch.arange(4), sizes_B2=np.full((4, 2), 32))
    cases = []
    add_cases(cases, 0.6, rules, range(7, 11), batch, maps, truth, None, torch.tensor([0, 1, 0, 2]))
    expected = [ious_per_threshold(raw, boxes, rules, (32, 32))[600] for raw, boxes in zip(maps, truth, strict=True)]
    assert [case.iou for case in cases] == expected
    assert [(case.row, case.id, case.label, case.rank) for case in cases][1] == (8, "b", 1, 1)
    assert len(set(expected)) > 1


def test_the_best_the_middle_and_the_worst():
    cases = [replace(FAILED, row=row, iou=iou) for row, iou in enumerate([0.1, 0.9, 0.5, 0.7, 0.3])]
    found = {group: [case.row for case in some] for group, some in spread(cases, 1).items()}
    assert found == {"best": [1], "median": [2], "worst": [0]}
    assert spread([], 2) == {"best": [], "median": [], "worst": []}


def test_masks_are_compared_at_the_threshold_where_no_box_is_scored():
    rules = protocol("wsol-mask", 4, 4)
    raw = np.array([[[0, 1, 1, 0]] * 4], np.float32)
    masks = [np.array([[0, 1, 0, 0]] * 4, np.uint8), np.full((4, 4), 255, np.uint8)]  # the second has no object
    batch = SimpleNamespace(ids=["a", "b"], labels_B=torch.tensor([2, 2]), sizes_B2=np.full((2, 2), 9))
    cases = []
    add_cases(cases, 0.9, rules, [0, 1], batch, raw.repeat(2, 0), [np.zeros((0, 4))] * 2, masks, torch.tensor([0, 0]))
    (case,) = cases
    assert (case.iou, case.of_box, case.of_object, case.size, case.box) == (0.5, 0.5, 1, 0.25, ())
    assert kind(case) == "right"
