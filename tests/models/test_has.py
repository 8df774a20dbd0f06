"""HaS: hidden cells against a loop over images and cells, and what its draws depend on."""

import numpy as np
import pytest
import torch

import wsol_models
from wsol_models import has


def build(**options) -> has.Method:
    torch.manual_seed(0)
    return wsol_models.build("has", backbone="tiny", num_classes=3, **options)


def images(count: int = 4) -> torch.Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(1)) + 1


def hidden_by_loops(images_BCHW: np.ndarray, draws_BRS: np.ndarray, grid: int, rate: float) -> np.ndarray:
    found = images_BCHW.copy()
    for image, draws in zip(found, draws_BRS, strict=True):
        for i, top in enumerate(range(0, image.shape[1], grid)):
            for j, left in enumerate(range(0, image.shape[2], grid)):
                if draws[i, j] <= rate:
                    image[:, top : top + grid, left : left + grid] = 0
    return found


@pytest.mark.parametrize("grid", [1, 3, 4, 10, 50])
def test_hidden_cells(grid):
    batch = torch.rand(3, 2, 10, 7) + 1
    draws = torch.rand(3, -(-10 // grid), -(-7 // grid))
    hidden = has.hide_cells(batch, draws, has.Config(grid_size=grid, drop_rate=0.4))
    np.testing.assert_array_equal(hidden.numpy(), hidden_by_loops(batch.numpy(), draws.numpy(), grid, 0.4))


def test_cells_are_pixels_a_side_and_the_last_ones_are_cut():
    """Grid 120 of 224 px: cells of 120 and 104. A number equal to the rate hides."""
    draws = torch.tensor([[[0.9, 0.66], [0.9, 0.9]]])
    hidden = has.hide_cells(torch.ones(1, 1, 224, 224), draws, has.Config(grid_size=120, drop_rate=0.66))
    assert hidden.sum() == 224 * 224 - 120 * 104
    assert not hidden[0, 0, :120, 120:].any()


def test_hides_in_training_only():
    method = build(drop_rate=1.0)
    assert not method(images()).features_BCHW.equal(method.eval()(images()).features_BCHW)
    plain = wsol_models.build("cam", backbone="tiny", num_classes=3).eval()
    plain.load_state_dict(method.state_dict())
    assert torch.equal(plain(images()).logits_BK, method(images()).logits_BK)
    assert torch.equal(plain(torch.zeros(1, 3, 32, 32)).logits_BK, method.train()(images(1)).logits_BK)


def test_draws_are_of_the_image_and_the_step_whoever_has_the_image():
    method, names = build(), ["a", "b", "c", "d"]

    def logits(rows: list[int], step: int) -> torch.Tensor:
        torch.manual_seed(step)
        method.begin_step(0, [names[row] for row in rows], len(names))
        return method(images()[rows]).logits_BK

    together = logits([0, 1, 2, 3], step=5)
    torch.testing.assert_close(torch.cat([logits([0, 1], 5), logits([3, 2], 5).flip(0)]), together)
    assert not torch.allclose(logits([0, 1, 2, 3], step=6), together)


def test_a_begun_step_serves_one_forward():
    method = build()
    method.begin_step(0, ["a", "b"], 2)
    assert method(images(2)).logits_BK.shape == (2, 3)
    assert method(images(4)).logits_BK.shape == (4, 3)  # the names are used up: draws by place
    torch.manual_seed(3)
    first = method(images()).logits_BK
    torch.manual_seed(3)
    assert torch.equal(first, method(images()).logits_BK)


def test_bad_values_are_refused():
    with pytest.raises(ValueError, match="grid_size must be at least 1 pixel but is 0"):
        has.Config(grid_size=0)
    with pytest.raises(ValueError, match="drop_rate must be between 0 and 1 but is 1.1"):
        has.Config(drop_rate=1.1)
    with pytest.raises(ValueError, match="head_lr_scale must be a finite number"):
        has.Config(head_lr_scale=-1.0)
