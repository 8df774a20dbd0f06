"""What a graph of `wsol export` leaves outside, by NumPy alone: the image before it, mask and box after it.

    import json, numpy, onnxruntime
    session = onnxruntime.InferenceSession("model.onnx")
    facts = {key: json.loads(text) for key, text in session.get_modelmeta().custom_metadata_map.items()}
    image = ...  # uint8 RGB [height, width, 3], as viewers show it
    logits, probabilities, maps = session.run(None, {"images": shown(image, facts)[None], "classes": numpy.array([-1])})
    print(facts["classes"][logits[0].argmax()], box(maps[0], image.shape[1::-1], facts))

This file stands alone: copy it, translate it. It is slow and says what is meant; `wsol` does the same faster.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

Array = Any  # a NumPy array, [H, W] unless said otherwise
Facts = dict[str, Any]  # the graph's metadata
Box = tuple[float, ...]
Kernel = Callable[[Array], tuple[Array, int]]  # weights of the pixels near a place, and which is the first of these


def shown(image_HWC: Array, facts: Facts) -> Array:
    """The image as the network takes it, uint8 [3, h, w]: resized, and the centre of it where the geometry crops."""
    size, (height, width) = facts["read_size"], image_HWC.shape[:2]
    short = min(height, width)
    keeps = facts["geometry"] == "short_side"
    rows, columns = (int(size * side / short) if keeps else size for side in (height, width))
    across_HWC = as_bytes(np.einsum("wx,hxc->hwc", triangles(width, columns), image_HWC))
    whole_CHW = as_bytes(np.einsum("hy,ywc->chw", triangles(height, rows), across_HWC))
    if facts["geometry"] != "resize_crop":
        return whole_CHW
    inner = slice(facts["margin"], facts["margin"] + facts["image_size"])
    return whole_CHW[:, inner, inner]


def box(raw_HW: Array, size_wh: tuple[int, ...], facts: Facts) -> Box | None:
    """The box of the largest part of a map's mask, x0, y0, x1, y1: half-open, in pixels of the image; None of a flat
    map or an empty mask."""
    if not (np.isfinite(raw_HW).all() and raw_HW.min() < raw_HW.max()):
        return None
    over_HW = mask(normalised(raw_HW, size_wh, facts), facts)
    if not over_HW.any():
        return None
    part_HW = largest(over_HW, facts["box_rule"])
    columns, rows = np.flatnonzero(part_HW.any(0)), np.flatnonzero(part_HW.any(1))
    corners = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    if facts["geometry"] == "short_side":  # the map had the image's size
        return tuple(map(float, corners))
    sides = 2 * tuple(size_wh)
    scaled = (
        (corner + facts["margin"]) * side / facts["read_size"] for corner, side in zip(corners, sides, strict=True)
    )
    return tuple(float(min(max(value, 0), side)) for value, side in zip(scaled, sides, strict=True))


def normalised(raw_HW: Array, size_wh: tuple[int, ...], facts: Facts) -> Array:
    """The map at the size in which masks are cut, with values in about 0..1."""
    side = facts["image_size"]
    width, height = size_wh if facts["geometry"] == "short_side" else (side, side)
    if facts["normalise"] == "raw":
        return resized(min_max(raw_HW.astype(np.float32), facts["epsilon"]), height, width, linear)
    map_HW = resized(raw_HW.astype(np.float64), height, width, cubic if facts["normalise"] == "resized" else linear)
    if facts["normalise"] == "peak":
        return map_HW / (map_HW.max() + facts["epsilon"]) if map_HW.max() > 0 else np.zeros_like(map_HW)
    if facts["normalise"] == "double_mean":
        map_HW = np.where(map_HW < map_HW.mean(), 0, map_HW)
        return min_max(map_HW) if map_HW.min() < map_HW.max() else np.ones_like(map_HW)
    return min_max(map_HW)


def mask(map_HW: Array, facts: Facts) -> Array:
    """The object's pixels of a normalised map, bool."""
    threshold = otsu(map_HW, facts) if facts["threshold"] == "otsu" else facts["threshold"]
    if not facts["counts_boxes"]:
        over_HW = map_HW > threshold if facts["masks"] == "classes" else map_HW >= threshold
        return ~over_HW if facts["masks"] == "background" else over_HW
    grid = thresholds(facts)
    threshold = grid[np.abs(grid - threshold).argmin()]
    if facts["normalise"] == "resized":
        levels_HW = (map_HW * 255).astype(np.int32)
        return levels_HW > int(threshold * levels_HW.max())
    if facts["normalise"] == "double_mean":
        kept_HW = np.where(map_HW < threshold, 0, map_HW)
        return (kept_HW >= kept_HW.mean()) & (kept_HW > 0)
    return map_HW > map_HW.dtype.type(threshold)


def otsu(map_HW: Array, facts: Facts) -> float:
    """The threshold that parts the map's 256 levels where the variance between both groups is largest."""
    pixels_L = np.bincount(np.clip(map_HW * 255, 0, 255).astype(np.uint8).ravel(), minlength=256)
    low = pixels_L.cumsum()[:-1]
    high, sums_L = map_HW.size - low, (pixels_L * np.arange(256)).cumsum()
    with np.errstate(divide="ignore", invalid="ignore"):
        variances = low * high * (sums_L[:-1] / low - (sums_L[-1] - sums_L[:-1]) / high) ** 2.0
    level = int(np.nan_to_num(variances).argmax())
    grid = thresholds(facts)
    return float(grid[np.searchsorted(grid, (level + 1) / 255) - 1])


def thresholds(facts: Facts) -> Array:
    """Those that a threshold is one of, [T]."""
    return np.arange(0, 1, 1 / facts["num_thresholds"])[: facts["num_thresholds"]]


def largest(over_HW: Array, rule: str) -> Array:
    """The part of a mask that the box is round, bool."""
    if rule in ("whole_mask", "components"):
        return over_HW
    parts_HW = connected(over_HW)
    numbers = np.unique(parts_HW[over_HW])  # by their first pixels
    if rule == "largest_component":  # of equals the first
        return parts_HW == max(numbers, key=lambda number: ((parts_HW == number).sum(), -number))
    return parts_HW == max(numbers, key=lambda number: (enclosed(parts_HW == number), number))  # of equals the last


def connected(over_HW: Array, diagonal: bool = True) -> Array:
    """Each pixel's part by a number from 1 on, in the order of first pixels; 0 outside."""
    height, width = over_HW.shape
    numbers_HW = np.where(over_HW, np.arange(1, over_HW.size + 1).reshape(over_HW.shape), 0)
    steps = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if diagonal or not (x and y)]
    while True:  # each takes the lowest number beside it, and then that one's
        padded = np.pad(np.where(over_HW, numbers_HW, over_HW.size + 1), 1, constant_values=over_HW.size + 1)
        beside = [padded[1 + y : 1 + y + height, 1 + x : 1 + x + width] for y, x in steps]
        lower_HW = np.where(over_HW, np.min(beside, axis=0), 0)
        lower_HW = np.where(over_HW, lower_HW.ravel()[np.maximum(lower_HW, 1) - 1], 0)
        if (lower_HW == numbers_HW).all():
            return numbers_HW
        numbers_HW = lower_HW


def enclosed(part_HW: Array) -> float:
    """The area inside the outline of a part, which runs through the centres of its pixels."""
    framed = np.pad(part_HW, 1)
    filled = connected(~framed, diagonal=False) != 1  # all but what is outside
    quads = sum(filled[y : y - 1 or None, x : x - 1 or None].astype(int) for y in (0, 1) for x in (0, 1))
    return float((quads == 4).sum() + (quads == 3).sum() / 2)


def min_max(map_HW: Array, epsilon: float = 0.0) -> Array:
    """Zero if all is one value; else minus the minimum, divided by the range."""
    low, high = map_HW.min(), map_HW.max()
    return (map_HW - low) / (high - low + map_HW.dtype.type(epsilon)) if low < high else np.zeros_like(map_HW)


def resized(map_HW: Array, height: int, width: int, kernel: Kernel) -> Array:
    """A map at another size, interpolated between pixel centres; beyond the border its last pixels go on."""
    down, across = (samples(old, new, kernel) for old, new in zip(map_HW.shape, (height, width), strict=True))
    return (down @ (map_HW @ across.T)).astype(map_HW.dtype)


def samples(old: int, new: int, kernel: Kernel) -> Array:
    """The weight of each old pixel in each new one, [new, old]."""
    at = ((np.arange(new) + 0.5) * (old / new) - 0.5).astype(np.float32)
    first = np.floor(at).astype(int)
    weights_NK, start = kernel(at - first.astype(np.float32))
    found = np.zeros((new, old))
    for k, weight in enumerate(weights_NK.T):
        np.add.at(found, (np.arange(new), np.clip(first + start + k, 0, old - 1)), weight)
    return found


def linear(part: Array) -> tuple[Array, int]:
    """Weights of the pixels before and after, by how far a place is between them."""
    return np.stack([1 - part, part], 1), 0


def cubic(part: Array) -> tuple[Array, int]:
    """Weights of the two pixels before and after, A = -0.75."""
    a = np.float32(-0.75)

    def near(x: Array) -> Array:
        return ((a + 2) * x - (a + 3)) * x * x + 1

    def far(x: Array) -> Array:
        return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a

    weights = [far(part + 1), near(part), near(1 - part)]
    return np.stack([*weights, 1 - sum(weights)], 1), -1


def triangles(old: int, new: int) -> Array:
    """Weights [new, old] of a bilinear resize that averages where it shrinks."""
    scale = max(old / new, 1.0)
    centres = (np.arange(new) + 0.5) * (old / new)
    distances = np.abs(np.arange(old) + 0.5 - centres[:, None]) / scale
    weights = np.maximum(1 - distances, 0)
    return weights / weights.sum(1, keepdims=True)


def as_bytes(values: Array) -> Array:
    """To the nearest of 0..255."""
    return np.clip(np.floor(values + 0.5), 0, 255).astype(np.uint8)
