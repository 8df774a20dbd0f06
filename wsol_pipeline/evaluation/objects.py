"""What a map shows, for who uses a model: masks on the evaluation's grid, half-open boxes in pixels of the image.

Pixel column c covers [c, c + 1), so the box of columns a..b is [a, b + 1). The boxes of `contours`, whose conventions
are the evaluators' own, are for counting alone: scaled, a last pixel that is missing becomes many.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from wsol_pipeline.evaluation.maps import normalised_map
from wsol_pipeline.evaluation.metrics import mask_at
from wsol_pipeline.evaluation.otsu import OTSU, Threshold, otsu_threshold
from wsol_pipeline.evaluation.protocols import Protocol

Size = tuple[int, int]  # width, height
Box = tuple[float, float, float, float]  # x0, y0, x1, y1, half-open
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Frame:
    """Where an evaluation's grid lies in an image: at `offset_xy` of the image once it is resized to `resized_wh`."""

    image_wh: Size
    grid_wh: Size
    resized_wh: Size
    offset_xy: tuple[int, int] = (0, 0)  # of a crop; negative where the image was padded

    @staticmethod
    def of(image_wh: Size, protocol: Protocol) -> "Frame":
        """The grid of `protocol` in an image of `image_wh`."""
        grid_wh = protocol.map_size(image_wh)
        if protocol.geometry == "short_side":
            return Frame(image_wh, grid_wh, image_wh)
        return Frame(image_wh, grid_wh, (protocol.read_size,) * 2, (protocol.margin,) * 2)

    @property
    def window(self) -> Box:
        """What of the image the grid covers."""
        return self.box((0, 0, *self.grid_wh))

    def box(self, grid_box: tuple[float, float, float, float]) -> Box:
        """A half-open box of the grid in pixels of the image, cut to it."""
        x0, y0, x1, y1 = (self._coordinate(value, side % 2) for side, value in enumerate(grid_box))
        return x0, y0, x1, y1

    def mask(self, mask_HW: Mask) -> Mask:
        """The pixels of the image whose centres lie in cells of a mask of the grid."""
        (columns, across), (rows, down) = self._cells(0), self._cells(1)
        mask = mask_HW[rows[:, None], columns]
        return mask & across & down[:, None]

    def _coordinate(self, value: float, axis: int) -> float:
        whole = self.image_wh[axis]
        return float(min(max((value + self.offset_xy[axis]) * whole / self.resized_wh[axis], 0), whole))

    def _cells(self, axis: int) -> tuple[NDArray[np.int64], Mask]:
        """The cell of each column (row) of the image, and whether it is one: a crop leaves some out."""
        pixels = 2 * np.arange(self.image_wh[axis], dtype=np.int64) + 1
        cells = pixels * self.resized_wh[axis] // (2 * self.image_wh[axis]) - self.offset_xy[axis]
        last = self.grid_wh[axis] - 1
        return cells.clip(0, last), (cells >= 0) & (cells <= last)


def cuts_itself(raw_HW: NDArray[Any]) -> bool:
    """Whether a raw map is a mask already, which no threshold changes (see `normalised_map`)."""
    return raw_HW.ndim == 3 or raw_HW.dtype == bool


def is_flat(raw_HW: NDArray[Any]) -> bool:
    """Whether a raw map says nothing of where an object is: all is one value, or one is no number."""
    return not cuts_itself(raw_HW) and not (np.isfinite(raw_HW).all() and raw_HW.min() < raw_HW.max())


def object_mask(
    raw_HW: NDArray[Any], threshold: Threshold, protocol: Protocol, image_wh: Size
) -> tuple[Mask, float | None]:
    """The object's cells of the grid, [H, W], at a threshold or by the rule "otsu"; and what was the threshold.

    Where boxes count a mask is cut as they are; where masks do, as these: at what is not below τ, of class masks above.
    """
    map_HW = normalised_map(raw_HW, protocol, image_wh)
    used = otsu_threshold(map_HW, protocol) if threshold == OTSU else float(threshold)
    if cuts_itself(raw_HW):
        over_HW = map_HW > 0.5
    elif protocol.ious:
        over_HW = mask_at(raw_HW, used, protocol, image_wh)
    else:
        over_HW = map_HW > used if protocol.masks == "classes" else map_HW >= used
    return (~over_HW if protocol.masks == "background" else over_HW), None if cuts_itself(raw_HW) else used


def largest(mask_HW: Mask, protocol: Protocol) -> Mask:
    """The part of a mask that the protocol's largest box is round; all of it where a box is round the whole mask."""
    if protocol.box_rule in ("whole_mask", "components") or not mask_HW.any():
        return mask_HW
    pixels_HW = mask_HW.astype(np.uint8)
    _, labels_HW, stats_N5, _ = cv2.connectedComponentsWithStats(pixels_HW, connectivity=8)
    if protocol.box_rule == "largest_component":
        return labels_HW == 1 + stats_N5[1:, cv2.CC_STAT_AREA].argmax()
    contours = cv2.findContours(pixels_HW, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
    x, y = max(contours, key=cv2.contourArea)[0, 0]
    return labels_HW == labels_HW[y, x]


def components(mask_HW: Mask, protocol: Protocol) -> Iterator[Mask]:
    """The connected parts of a mask, largest first: as the protocol connects them."""
    connectivity = 4 if protocol.box_rule in ("whole_mask", "components") else 8
    _, labels_HW, stats_N5, _ = cv2.connectedComponentsWithStats(mask_HW.astype(np.uint8), connectivity=connectivity)
    for label in 1 + np.argsort(-stats_N5[1:, cv2.CC_STAT_AREA], kind="stable"):
        yield labels_HW == label


def extent(mask_HW: Mask) -> tuple[int, int, int, int]:
    """The half-open box `x0y0x1y1` round a mask that is not empty."""
    columns, rows = np.flatnonzero(mask_HW.any(0)), np.flatnonzero(mask_HW.any(1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
