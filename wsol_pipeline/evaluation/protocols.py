"""What an evaluation is, by name: geometry, map, box rule and comparison of each of the field's evaluators.

The same metric name means different numbers in different papers. Everything that differs stands in the fields of a
`Protocol`; nothing else in this package knows a paper.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wsol_pipeline.errors import UsageError, unknown

BOX_CONVENTIONS = ("inclusive0", "inclusive1", "exclusive0")


@dataclass(frozen=True)
class Protocol:
    """One evaluation: how an image is cut, its map normalised, a box read and compared. Sizes in pixels."""

    name: str
    geometry: str  # "resize": straight to image_size | "resize_crop": to resize_size, then the centre image_size
    box_rule: str  # see `contours.boxes_per_mask`
    normalise: str  # "resized": float64, cubic, min-max last | "raw": float32, min-max at map size, bilinear last
    epsilon: float  # added to the range of a "raw" map
    integer_boxes: bool  # true boxes truncated to pixels
    strict: bool  # a hit is IoU > δ, not >= δ
    over_classes: bool = False  # accuracies are means over classes, not over images
    image_size: int = 224
    resize_size: int = 256
    ious: tuple[float, ...] = (0.3, 0.5, 0.7)
    num_thresholds: int = 1000

    def __post_init__(self) -> None:
        if not 0 < self.image_size <= self.resize_size:
            raise UsageError(
                f"image_size must be in 1..resize_size but got image_size={self.image_size}, "
                f"resize_size={self.resize_size}."
            )

    @property
    def margin(self) -> int:
        """Pixels that the centre crop leaves off at the left and at the top, rounded as torchvision's CenterCrop."""
        return round((self.resize_size - self.image_size) / 2) if self.geometry == "resize_crop" else 0

    @property
    def read_size(self) -> int:
        """Side in pixels to which an image is resized, before the centre crop if there is one."""
        return self.resize_size if self.geometry == "resize_crop" else self.image_size

    @cached_property
    def thresholds(self) -> NDArray[np.float64]:
        """τ = 0, .001, ... .999 as the authors compute it; `linspace` differs in the last bit."""
        return np.arange(0, 1, 1 / self.num_thresholds)


_BENCHMARK = Protocol("wsol-v1", "resize", "largest_contour", "resized", 0.0, integer_boxes=True, strict=False)
_BAS = Protocol("bas-ext", "resize_crop", "largest_component", "raw", 1e-5, integer_boxes=True, strict=False)

PROTOCOLS = {
    p.name: p
    for p in (
        _BENCHMARK,  # Choe et al. 2020, MaxBoxAcc
        replace(_BENCHMARK, name="wsol-v2", box_rule="all_contours"),  # the same, MaxBoxAccV2; B-CAM, BagCAMs
        _BAS,  # BAS, the journal's code
        replace(_BAS, name="bas-conf", epsilon=0.0, integer_boxes=False, strict=True, over_classes=True),
    )
}


def protocol(name: str, image_size: int = 224, resize_size: int = 256) -> Protocol:
    """The evaluation called `name`, at a size of your own if it is not the papers' 224 of 256."""
    if name not in PROTOCOLS:
        raise unknown("protocol", name, PROTOCOLS)
    return replace(PROTOCOLS[name], image_size=image_size, resize_size=resize_size)


def ground_truth_boxes(
    boxes_N4: ArrayLike, size_wh: tuple[int, int], convention: str, protocol: Protocol
) -> NDArray[np.float64]:
    """Stored boxes `x0y0x1y1` of an image of `size_wh` in evaluation pixels, float64 [N, 4], as the authors had them.

    Every evaluator takes coordinates as if they were 0-based with inclusive maxima ("inclusive0"); the other
    conventions are brought there first. Straight resize: int(x * 224 / w). With a centre crop: scaled, cut to the crop,
    shifted; a box wholly outside comes out inverted, which no prediction hits.
    """
    if convention not in BOX_CONVENTIONS:
        raise unknown("box convention", convention, BOX_CONVENTIONS)
    boxes_N4 = np.asarray(boxes_N4, np.float64).reshape(-1, 4)
    if convention == "inclusive1":
        boxes_N4 = boxes_N4 - 1
    if convention == "exclusive0":
        boxes_N4 = boxes_N4 - [0, 0, 1, 1]
    boxes_N4 = boxes_N4 * protocol.read_size / np.tile(np.asarray(size_wh, np.float64), 2)
    if protocol.geometry == "resize_crop":
        boxes_N4 = _crop(boxes_N4, protocol)
    return np.trunc(boxes_N4) if protocol.integer_boxes else boxes_N4


def _crop(boxes_N4: NDArray[np.float64], protocol: Protocol) -> NDArray[np.float64]:
    shifted = boxes_N4 - protocol.margin
    last = protocol.image_size - 1 if protocol.integer_boxes else protocol.image_size
    return np.concatenate([np.maximum(shifted[:, :2], 0), np.minimum(shifted[:, 2:], last)], axis=1)
