"""Random walk of class maps over affinities between pixels, stopped by boundaries (IRN, Section 3.3).

Two pixels within a radius are alike unless a boundary lies on the path between them: a = 1 - max e over the path. The
walk multiplies maps T^(2^exponent) times with these affinities, each column of which sums to 1. The matrix has a row
for each pixel (552 MB at 94x125) but 69 numbers in it, so it is sparse. Memory: `walk_bytes`.
"""

import math
import warnings
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
    step_NN = _transition(boundary_HW, radius, beta)
    scores_NC = (maps_CHW**power * (1 - boundary_HW)).flatten(1).T.contiguous()
    for _ in range(2**exponent):
        scores_NC = step_NN @ scores_NC
    return scores_NC.T.reshape(maps_CHW.shape)


def _transition(boundary_HW: Tensor, radius: int, beta: float) -> Tensor:
    """T transposed, sparse [HW, HW]: each row of the affinities, which are symmetric, over its sum."""
    height, width = boundary_HW.shape
    number_HW = torch.arange(boundary_HW.numel(), device=boundary_HW.device).view(height, width)
    ends, weights = [torch.stack([number_HW.flatten()] * 2)], [torch.ones_like(boundary_HW).flatten()]
    for dy, dx in directions(radius):
        if dy < height and abs(dx) < width:
            source_hw = number_HW[: height - dy, max(-dx, 0) : width - max(dx, 0)]
            pair_2E = torch.stack([source_hw.flatten(), source_hw.flatten() + dy * width + dx])
            ends += [pair_2E, pair_2E.flip(0)]
            weights += [affinity(boundary_HW, (dy, dx)).flatten() ** beta] * 2
    places_2E, weights_E = torch.cat(ends, 1), torch.cat(weights)
    sums_N = torch.zeros_like(weights_E[: number_HW.numel()]).index_add(0, places_2E[0], weights_E)
    matrix = torch.sparse_coo_tensor(places_2E, weights_E / sums_N[places_2E[0]], check_invariants=False).coalesce()
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # CSR is "in beta state"
        return matrix.to_sparse_csr()


def walk_bytes(height: int, width: int, radius: int = 5, size: int = 4) -> int:
    """The most bytes that a walk's matrix takes while it is made: its pairs and their weights of `size` bytes."""
    pairs = (1 + 2 * len(directions(radius))) * height * width
    return 4 * pairs * (2 * 8 + size)


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
