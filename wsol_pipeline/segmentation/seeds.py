"""Class maps of an image as labels: sizes, normalisation, fusion, background rules. Plain mathematics on tensors.

C classes of the image, by `classes_C` of K in all. Label 0 is the background, k + 1 class k, 255 counts neither way.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

EPSILON = 1e-5
IGNORED = 255
STRIDE, CELL = 4, 16  # pixels per cell of strided maps, and of the canvas that maps are laid out on
FOREGROUND = ("replace", "average", "average_all")


def scaled(size_HW: Sequence[int], scale: float) -> tuple[int, int]:
    """An image's size at a scale; halves go to the even number."""
    height, width = (max(1, round(scale * side)) for side in size_HW)
    return height, width


def strided(size_HW: Sequence[int], stride: int = STRIDE) -> tuple[int, int]:
    height, width = ((side - 1) // stride + 1 for side in size_HW)
    return height, width


def canvas(size_HW: Sequence[int]) -> tuple[int, int]:
    """Sides rounded up to whole cells of 16 px, on which a network with that stride rounds its map up too."""
    height, width = (math.ceil(side / CELL) * CELL for side in size_HW)
    return height, width


def full_size(views: Sequence[Tensor], size_HW: tuple[int, int]) -> Tensor:
    """The sum of maps [C, h, w] of several scales, each on the image's canvas and cut to the image."""
    height, width = size_HW
    return torch.stack([_enlarged(view, canvas(size_HW)) for view in views]).sum(0)[:, :height, :width]


def strided_sum(views: Sequence[Tensor], size_HW: tuple[int, int]) -> Tensor:
    """The sum of maps [C, h, w] of several scales at stride 4."""
    return torch.stack([_enlarged(view, strided(size_HW)) for view in views]).sum(0)


def _enlarged(maps_CHW: Tensor, size_HW: Sequence[int]) -> Tensor:
    return F.interpolate(maps_CHW[None], list(size_HW), mode="bilinear", align_corners=False)[0]


def normalised(maps_CHW: Tensor, epsilon: float = EPSILON) -> Tensor:
    """Each map over its maximum; one that is nowhere above 0, or not finite, is 0 everywhere."""
    maps_CHW = torch.where(torch.isfinite(maps_CHW).all((1, 2), keepdim=True), maps_CHW, 0).clamp(min=0)
    top_C11 = maps_CHW.amax((1, 2), keepdim=True)
    return torch.where(top_C11 > 0, maps_CHW / (top_C11 + epsilon).clamp(min=torch.finfo(maps_CHW.dtype).tiny), 0)


def fused(parts: Sequence[Tensor], weights: Sequence[float] | None = None, epsilon: float = EPSILON) -> Tensor:
    """Maps of several methods as one: each normalised, added, normalised once more."""
    weights = weights or [1.0] * len(parts)
    if len(weights) != len(parts):
        raise ValueError(f"{len(parts)} methods need as many weights but got {len(weights)}.")
    weighted = [weight * normalised(part, epsilon) for weight, part in zip(weights, parts, strict=True)]
    return normalised(torch.stack(weighted).sum(0), epsilon)


def with_foreground(maps_CHW: Tensor, foreground_HW: Tensor, how: str = "average") -> Tensor:
    """Maps held to a class-agnostic map of all objects G, where they are above it: its value (`replace`), or the mean
    of both (`average`); `average_all` is the mean everywhere."""
    if how not in FOREGROUND:
        raise ValueError(f"Unknown use of a foreground map {how!r}. Known: {', '.join(FOREGROUND)}.")
    mean_CHW = (maps_CHW + foreground_HW) / 2
    if how == "average_all":
        return mean_CHW
    return torch.where(maps_CHW > foreground_HW, foreground_HW if how == "replace" else mean_CHW, maps_CHW)


def labels_of(maps_CHW: Tensor, classes_C: Tensor, background: Tensor | float) -> Tensor:
    """uint8 [H, W]: the class of the highest map, or the background where that is not above `background`.

    Of equal maps the first wins, whatever the device. `background`: a constant, or one for each pixel or class
    ([C, 1, 1]: a class takes part where it is above its own).
    """
    if not len(maps_CHW):
        return torch.zeros(maps_CHW.shape[1:], dtype=torch.uint8)
    held_CHW = torch.where(maps_CHW > background, maps_CHW, -torch.inf)
    top_HW = held_CHW.amax(0)
    first_HW = (held_CHW == top_HW).to(torch.uint8).argmax(0)
    labels_HW = (classes_C.to(held_CHW.device).long() + 1)[first_HW]
    return torch.where(top_HW > -torch.inf, labels_HW, 0).to(torch.uint8)


def power_background(maps_CHW: Tensor, alpha: float) -> Tensor:
    """(1 - max A)^alpha, [H, W]: a background score, to be read beside the maps; `power_cut` says what it cuts."""
    return (1 - maps_CHW.amax(0)).clamp(min=0) ** alpha


def power_cut(alpha: float) -> float:
    """The constant that a plain argmax with `power_background` amounts to: the root of a = (1 - a)^alpha."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if middle < (1 - middle) ** alpha else (low, middle)
    return (low + high) / 2


def confident(
    maps_CHW: Tensor,
    classes_C: Tensor,
    foreground: float,
    background: float,
    power: float = 1.0,
    field: Callable[[Tensor, int], Tensor] | None = None,
) -> Tensor:
    """uint8 [H, W]: labels that hold at a high and a low threshold, 255 where only the low one finds an object.

    `field`: what becomes of labels 0..C at each threshold, e.g. a dense random field over the image; C + 1 of them.
    """
    places_C = torch.arange(len(maps_CHW))
    found = [labels_of(maps_CHW**power, places_C, threshold) for threshold in (foreground, background)]
    if field and len(maps_CHW):
        found = [field(labels_HW, len(maps_CHW) + 1) for labels_HW in found]
    sure_HW, maybe_HW = (torch.cat([torch.zeros(1), classes_C + 1]).long()[found_HW.long()] for found_HW in found)
    return torch.where(sure_HW > 0, sure_HW, torch.where(maybe_HW == 0, 0, IGNORED)).to(torch.uint8)
