"""One box of an image's proposals, by a classifier alone: the pointing game, then what it sees in and out of a box.

Boxes are half-open pixels of the stored image, float64 [N, 4]. After Murtaza et al. (WACV 2025, arXiv 2404.10034); the
bounds of the area and p_out are ours: without them the box is nearly the whole image (docs/labels-only.md).
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

LEAST_AREA, MOST_AREA = 0.05, 0.7  # shares of the image that a proposal may take
SCORED_IN, SCORED_OUT = 16, 6  # proposals that the classifier sees alone, and of these without
Boxes = NDArray[np.float64]
Scores = NDArray[np.float64]
Point = tuple[float, float]  # x, y in pixels of the stored image
Window = tuple[float, float, float, float]  # the part of the image that the network sees


def peak(map_HW: NDArray[np.floating], window: Window) -> Point:
    """Where a map that covers `window` is highest: the centre of the first such cell."""
    row, column = np.unravel_index(map_HW.argmax(), map_HW.shape)
    x, y = (centres(window[axis], window[axis + 2], map_HW.shape[1 - axis]) for axis in (0, 1))
    return float(x[column]), float(y[row])


def centres(low: float, high: float, count: int) -> NDArray[np.float64]:
    """The centres of `count` equal cells of [low, high]."""
    return low + (np.arange(count) + 0.5) * (high - low) / count


def candidates(boxes_N4: Boxes, point: Point, size_wh: tuple[int, int]) -> NDArray[np.int64]:
    """Which proposals, in their order, are neither small nor nearly the image and hold the point."""
    share_N = (boxes_N4[:, 2:] - boxes_N4[:, :2]).prod(1) / np.prod(size_wh)
    return np.flatnonzero((share_N >= LEAST_AREA) & (share_N <= MOST_AREA) & holding(boxes_N4, point))


def holding(boxes_N4: Boxes, point: Point) -> NDArray[np.bool_]:
    """Which boxes hold a point."""
    return np.all((boxes_N4[:, :2] <= point) & (boxes_N4[:, 2:] > point), axis=1)


def inside(boxes_N4: Boxes, window: Window, shape_HW: tuple[int, ...]) -> NDArray[np.bool_]:
    """The pixels of the network's image, which covers `window`, whose centres lie in each box: [N, H, W]."""
    x_W, y_H = (centres(window[axis], window[axis + 2], shape_HW[1 - axis]) for axis in (0, 1))
    x0, y0, x1, y1 = boxes_N4.T[..., None]
    across_NW, down_NH = (x0 <= x_W) & (x_W < x1), (y0 <= y_H) & (y_H < y1)
    return down_NH[:, :, None] & across_NW[:, None]


def most_telling(
    boxes_N4: Boxes, p_in: Callable[[Boxes], Scores], p_out: Callable[[Boxes], Scores]
) -> tuple[int, float] | None:
    """The candidate with the highest p_in - p_out, and that difference; None of none.

    p_in is the label's probability where the outside of a box is filled, asked of the first `SCORED_IN`; p_out that
    where the inside is, asked of the `SCORED_OUT` of these with the highest p_in.
    """
    if not len(boxes_N4):
        return None
    in_N = p_in(boxes_N4[:SCORED_IN])
    best_M = np.argsort(-in_N, kind="stable")[:SCORED_OUT]
    apart_M = in_N[best_M] - p_out(boxes_N4[best_M])
    return int(best_M[apart_M.argmax()]), float(apart_M.max())
