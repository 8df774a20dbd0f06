"""The random walk against its worked examples and against the dense power of the matrix."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from wsol_models.segmentation.walk import affinity, directions, path, random_walk, walk_numbers, walked_maps

E = torch.tensor([[0.0, 0.5, 0.0]], dtype=torch.float64)


def dense(boundary_HW, radius, beta):
    """The matrix T itself, by a loop over pairs of pixels."""
    height, width = boundary_HW.shape
    matrix = torch.eye(height * width, dtype=torch.float64)
    for dy, dx in directions(radius):
        for y in range(height - dy):
            for x in range(max(-dx, 0), width - max(dx, 0)):
                barrier = max(float(boundary_HW[y + v, x + u]) for v, u in path((dy, dx)))
                i, j = y * width + x, (y + dy) * width + x + dx
                matrix[i, j] = matrix[j, i] = (1 - barrier) ** beta
    return matrix / matrix.sum(0)


def test_directions_are_those_of_the_paper():
    assert set(directions(2)) == {(0, 1), (1, -1), (1, 0), (1, 1)}
    assert [len(directions(radius)) for radius in (3, 5, 10)] == [12, 34, 152]


def test_a_path_has_all_points_near_its_line():
    assert path((0, 3)) == ((0, 0), (0, 1), (0, 2), (0, 3))
    assert len(path((1, 2))) == 6
    assert len(path((2, -1))) == 6
    assert {len(path(direction)) for direction in directions(10)} >= {2, 22}
    assert max(len(path(direction)) for direction in directions(10)) == 22


def test_the_worked_walk():
    assert affinity(E, (0, 1)).tolist() == [[0.5, 0.5]]
    start = torch.tensor([[[1.0, 0.0, 0.0]]], dtype=torch.float64)
    expected = {
        0: [0.8, 0.16667, 0.0],
        1: [0.67333, 0.24444, 0.03333],
        2: [0.52619, 0.29768, 0.11659],
        8: [0.3125, 0.3125, 0.3125],
    }
    for exponent, values in expected.items():
        walked = random_walk(start, E, radius=2, beta=2, exponent=exponent)
        assert torch.allclose(walked[0, 0], torch.tensor(values, dtype=torch.float64), atol=5e-6)
    other = random_walk(torch.tensor([[[1.0, 0.8, 0.0]]], dtype=torch.float64), E, radius=2, beta=2, exponent=0)
    assert torch.allclose(other[0, 0], torch.tensor([0.88, 0.43333, 0.08], dtype=torch.float64), atol=5e-6)


def test_the_walk_is_the_dense_power():
    rng = torch.Generator().manual_seed(3)
    boundary = torch.rand((9, 13), generator=rng, dtype=torch.float64) ** 3
    maps = torch.rand((3, 9, 13), generator=rng, dtype=torch.float64)
    power = torch.linalg.matrix_power(dense(boundary, 5, 10), 256)
    expected = ((maps**1.5) * (1 - boundary)).flatten(1) @ power
    walked = random_walk(maps, boundary, power=1.5).flatten(1)
    assert (walked - expected).abs().max() < 1e-12


def test_an_image_smaller_than_the_radius_walks_as_its_dense_power():
    boundary = torch.tensor([[0.2], [0.7]], dtype=torch.float64)
    maps = torch.tensor([[[1.0], [0.5]]], dtype=torch.float64)
    expected = (maps * (1 - boundary)).flatten(1) @ torch.linalg.matrix_power(dense(boundary, 5, 10), 256)
    assert (random_walk(maps, boundary).flatten(1) - expected).abs().max() < 1e-12


def test_boundaries_everywhere_leave_nothing_and_no_nan():
    walked = random_walk(torch.ones(2, 4, 5), torch.ones(4, 5))
    assert (walked == 0).all()
    assert (walked_maps(walked, (16, 20)) == 0).all()


def test_after_the_walk_one_maximum_serves_all_classes():
    scores = torch.tensor([[[0.4, 0.1]], [[0.2, 0.05]]])
    maps = walked_maps(scores, (4, 8))
    assert torch.allclose(maps[0, :, 0], torch.tensor(1.0))
    assert torch.allclose(maps[0, :, -1], torch.tensor(0.25))
    assert torch.allclose(maps[1, :, 0], torch.tensor(0.5))
    assert torch.allclose(maps[1, :, -1], torch.tensor(0.125))


class Largest(TorchDispatchMode):
    """The largest tensor that an operation makes."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and not made._is_view():
            self.numbers = max(self.numbers, made.numel())
        return made


def test_the_matrix_is_never_made():
    with Largest() as seen:
        random_walk(torch.rand(2, 47, 63), torch.rand(47, 63), exponent=1)
    stated = walk_numbers(2, 47, 63)
    assert 0 < seen.numbers <= stated < (47 * 63) ** 2 / 40


def test_maps_of_another_size_are_refused():
    with pytest.raises(ValueError, match="Maps of .2, 3. cannot walk on .3, 3. boundaries"):
        random_walk(torch.ones(1, 2, 3), torch.zeros(3, 3))
