"""PAMR's worked example, and what holds for any image."""

import pytest
import torch

from wsol_models.segmentation import pamr


def test_the_worked_example():
    image = torch.tensor([[[0.0, 0.0, 1.0]]], dtype=torch.float64)
    mask = torch.tensor([[[1.0, 0.0, 0.0]]], dtype=torch.float64)
    weights = pamr.weights(image, (1,))
    assert torch.allclose(weights[:, 0, 0], torch.full((8,), 1 / 8, dtype=torch.float64))
    assert sorted(weights[:, 0, 1].round(decimals=6).tolist())[-5:] == [0.2] * 5
    once = pamr.refine(mask, image, (1,), 1)
    assert torch.allclose(once[0, 0], torch.tensor([0.625, 0.6, 0.0], dtype=torch.float64), atol=1e-8)
    ten = pamr.refine(mask, image, (1,), 10)
    assert torch.allclose(ten[0, 0], torch.tensor([0.61538, 0.61538, 7e-9], dtype=torch.float64), atol=1e-5)
    assert 1e-9 < float(ten[0, 0, 2]) < 1e-8


def test_sums_over_classes_stay():
    rng = torch.Generator().manual_seed(0)
    masks = torch.rand((3, 20, 30), generator=rng, dtype=torch.float64)
    masks = masks / masks.sum(0)
    refined = pamr.refine(masks, torch.rand((3, 20, 30), generator=rng, dtype=torch.float64))
    assert torch.allclose(refined.sum(0), torch.ones(20, 30, dtype=torch.float64))


def test_a_scale_of_the_colours_changes_nothing_but_the_constant():
    rng = torch.Generator().manual_seed(1)
    image = torch.rand((3, 12, 15), generator=rng, dtype=torch.float64)
    assert torch.allclose(pamr.weights(image), pamr.weights(255 * image), atol=1e-5)


def test_one_colour_gives_even_weights():
    weights = pamr.weights(torch.full((3, 4, 5), 0.3, dtype=torch.float64))
    assert torch.allclose(weights, torch.full_like(weights, 1 / 48))


def test_an_image_of_another_size_is_refused():
    with pytest.raises(ValueError, match="need an image as large"):
        pamr.refine(torch.ones(1, 3, 4), torch.ones(3, 4, 3))
