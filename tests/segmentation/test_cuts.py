"""Thresholds by what BAS suppresses: the worked example, and the network's own losses."""

import pytest
import torch

from wsol_models.bas import area_constraint, background_activation_suppression
from wsol_pipeline.segmentation import cuts

LEFT = torch.tensor([[0.1, 0.3, 2.4]], dtype=torch.float64)
AREA = torch.tensor([[0.6, 0.35, 0.1]], dtype=torch.float64)


def test_the_worked_example():
    found = cuts.scored(LEFT, torch.tensor([2.0], dtype=torch.float64), AREA)
    assert torch.allclose(found.scores_CT, torch.tensor([[0.65, 0.5, 1.1]], dtype=torch.float64))
    assert cuts.best(found, 0.9).tolist() == pytest.approx([1 / 3])  # the second of three


def test_a_class_that_is_not_recognised_has_no_say():
    found = cuts.scored(LEFT.repeat(2, 1), torch.tensor([2.0, 0.0], dtype=torch.float64), AREA.repeat(2, 1))
    assert found.seen_C.tolist() == [True, False]
    assert cuts.best(found, 0.9).tolist() == pytest.approx([1 / 3, 1 / 3])
    nobody = cuts.scored(LEFT, torch.tensor([0.0], dtype=torch.float64), AREA)
    assert cuts.best(nobody, 0.9).tolist() == pytest.approx([0.9])


def test_each_class_may_have_its_own():
    found = cuts.Cuts(torch.tensor([[0.1, 0.5], [0.8, 0.2]]), torch.tensor([True, True]))
    assert cuts.best(found, 0.0, "class").tolist() == [0, 0.5]
    assert cuts.best(found, 0.0, "image").tolist() == [0.5, 0.5]


def test_of_equal_scores_the_lowest_threshold_wins():
    found = cuts.Cuts(torch.full((1, 4), 0.3), torch.tensor([True]))
    assert cuts.best(found, 0.9).tolist() == [0]


def test_scores_are_the_papers_losses():
    logits, left = torch.tensor([[2.0]]), torch.tensor([[0.3]])
    mask = torch.zeros(1, 4, 5)
    mask[0, :1] = 1
    own = cuts.scored(left, logits[0], mask.mean((1, 2))[None]).scores_CT
    theirs = background_activation_suppression(logits, left, torch.tensor([0])) + area_constraint(mask)
    assert float(own) == pytest.approx(float(theirs))


def test_maps_meet_the_generators_grid():
    """94x125 at stride 4 -> 96x128 by repeating the last cells -> 24x32."""
    maps = torch.rand(2, 94, 125)
    found = cuts.on_grid(maps, (24, 32), 4)
    assert found.shape == (2, 24, 32)
    assert torch.allclose(found[:, 0, 0], maps[:, :4, :4].mean((1, 2)))
    last = torch.cat([maps[:, 92:, 124:], maps[:, -1:, 124:], maps[:, -1:, 124:]], 1)
    assert torch.allclose(found[:, -1, -1], last.mean((1, 2)))
