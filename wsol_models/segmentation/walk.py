"""Random walk of class maps over affinities between pixels, stopped by boundaries (IRN, Section 3.3).

Two pixels within a radius are alike unless a boundary lies on the path between them: a = 1 - max e over the path. The
walk multiplies maps T^(2^exponent) times with these affinities, each column of which sums to 1. The matrix has a row
for each pixel (552 MB at 94x125), so it is never made: a direction's affinities are one plane, and a step of the walk
is 2 shifted products for each of the 34 directions. Memory: `walk_numbers`.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

Direction = tuple[int, int]  # dy, dx: from the source of a pair to its other end


@lru_cache(maxsize=8)
def directions(radius: int) -> tuple[Direction, ...]:
    """All directions shorter than `radius`, one of each pair of opposite ones: 34 for 5, 152 for 10."""
    ahead = [(0, dx) for dx in range(1, radius)]
    below = [(dy, dx) for dy in range(1, radius) for dx in range(1 - radius, radius) if dy * dy + dx * dx < radius**2]
    return (*ahead, *below)


@lru_cache(maxsize=512)
def path(direction: Direction) -> tuple[Direction, ...]:
    """The points between both ends of a direction, and these: all of its box less than 1 off its line."""
    dy, dx = direction
    columns = range(min(dx, 0), max(dx, 0) + 1)
    return tuple((y, x) for y in range(dy + 1) for x in columns if (dy * x - dx * y) ** 2 < dy**2 + dx**2)


def affinity(boundary_HW: Tensor, direction: Direction) -> Tensor:
    """1 - max e on the path of each pair that lies in the image, [..., H - dy, W - |dx|]; e is [..., H, W] in 0..1."""
    (dy, dx), (height, width) = direction, boundary_HW.shape[-2:]
    rows, columns, left = height - dy, width - abs(dx), max(-dx, 0)
    points = (boundary_HW[..., y : y + rows, left + x : left + x + columns] for y, x in path(direction))
    return 1 - torch.stack(list(points)).max(0).values


@torch.no_grad()
def random_walk(
    maps_CHW: Tensor, boundary_HW: Tensor, *, radius: int = 5, beta: float = 10, exponent: int = 8, power: float = 1.0
) -> Tensor:
    """Scores [C, H, W]: the maps^power off the boundaries, as row vectors times T^(2^exponent).

    T is the matrix of affinities^beta, with 1 on its diagonal, over the sums of its columns.
    """
    if maps_CHW.shape[1:] != boundary_HW.shape:
        raise ValueError(f"Maps of {tuple(maps_CHW.shape[1:])} cannot walk on {tuple(boundary_HW.shape)} boundaries.")
    near = [d for d in directions(radius) if d[0] < boundary_HW.shape[0] and abs(d[1]) < boundary_HW.shape[1]]
    steps = [(d, affinity(boundary_HW, d) ** beta) for d in near]
    sums_HW = _diffused(torch.ones_like(boundary_HW), steps)
    scores_CHW = maps_CHW**power * (1 - boundary_HW)
    for _ in range(2**exponent):
        scores_CHW = _diffused(scores_CHW, steps) / sums_HW
    return scores_CHW


def _diffused(values_CHW: Tensor, steps: list[tuple[Direction, Tensor]]) -> Tensor:
    """`values` times the symmetric matrix of affinities with 1 on its diagonal."""
    total_CHW = values_CHW.clone()
    height, width = values_CHW.shape[-2:]
    for (dy, dx), weights_HW in steps:
        left, right = max(-dx, 0), max(dx, 0)
        source = (..., slice(height - dy), slice(left, width - right))
        end = (..., slice(dy, None), slice(right, width - left))
        total_CHW[end] += weights_HW * values_CHW[source]
        total_CHW[source] += weights_HW * values_CHW[end]
    return total_CHW


def walk_numbers(classes: int, height: int, width: int, radius: int = 5) -> int:
    """The most numbers that a walk holds at once: affinities of every direction, the longest path, four maps."""
    points = max(len(path(direction)) for direction in directions(radius))
    return (len(directions(radius)) + points + 4 * classes + 4) * height * width


def walked_maps(scores_CHW: Tensor, size_HW: tuple[int, int]) -> Tensor:
    """Scores at stride 4 as maps of the image's size: enlarged, cut, and over the maximum of all classes and pixels.

    Over each class's own maximum a class that the walk has all but dissolved would stand beside one that it has kept.
    A walk that leaves nothing gives zeros, hence background.
    """
    height, width = size_HW
    wide_CHW = F.interpolate(scores_CHW[None], scale_factor=4, mode="bilinear", align_corners=False)[0]
    wide_CHW = wide_CHW[:, :height, :width]
    top = float(wide_CHW.max()) if wide_CHW.numel() else 0.0
    return wide_CHW / top if top > 0 and math.isfinite(top) else torch.zeros_like(wide_CHW)
