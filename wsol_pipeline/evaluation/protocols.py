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
    geometry: str
    """"resize": straight to image_size | "resize_crop": to resize_size, then the centre image_size | "short_side": to a
    short side of image_size, the aspect kept; maps and boxes are those of the stored image."""
    box_rule: str  # see `contours.boxes_per_mask`
    normalise: str
    """"resized": float64, cubic, min-max last | "raw": float32, min-max at map size, bilinear last | "double_mean":
    float64, bilinear, zero below the mean, min-max | "peak": float64, bilinear, divided by the maximum."""
    epsilon: float  # added to the range of a "raw" map, to the maximum of a "peak" one
    integer_boxes: bool  # true boxes truncated to pixels
    strict: bool  # a hit is IoU > δ, not >= δ
    over_classes: bool = False  # accuracies are means over classes, not over images
    ten_crop: bool = False  # a final evaluation takes the class from ten crops of an image
    masks: str = ""
    """What maps are compared with, where there are masks: "object" | "background", its inverse | "classes", the maps of
    all classes of an image with its class mask | "", nothing."""
    image_size: int = 224
    resize_size: int = 256
    ious: tuple[float, ...] = (0.3, 0.5, 0.7)  # none: boxes do not count
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

    def map_size(self, size_wh: tuple[int, int]) -> tuple[int, int]:
        """Width and height of the maps and boxes that are compared, for a stored image of `size_wh`."""
        width, height = size_wh if self.geometry == "short_side" else (self.image_size, self.image_size)
        return int(width), int(height)

    @cached_property
    def thresholds(self) -> NDArray[np.float64]:
        """τ = 0, .001, ... .999 as the authors compute it; `linspace` differs in the last bit."""
        return cuts(self.num_thresholds)[:-1]

    @cached_property
    def mask_cuts(self) -> NDArray[np.float64]:
        """Where the bins of mask metrics start: at each τ, and at 1, which a map's peak reaches."""
        return cuts(self.num_thresholds)


_BENCHMARK = Protocol(
    "wsol-v1", "resize", "largest_contour", "resized", 0.0, integer_boxes=True, strict=False, masks="object"
)
_MASK = replace(_BENCHMARK, name="wsol-mask", box_rule="all_contours", ious=())  # MaxBoxAccV2 where boxes must choose
_BAS = Protocol(
    "bas-ext", "resize_crop", "largest_component", "raw", 1e-5, integer_boxes=True, strict=False, ten_crop=True
)
_MLDFR = Protocol("mldfr", "short_side", "whole_mask", "double_mean", 0.0, integer_boxes=False, strict=False)

PROTOCOLS = {
    p.name: p
    for p in (
        _BENCHMARK,  # Choe et al. 2020, MaxBoxAcc
        replace(_BENCHMARK, name="wsol-v2", box_rule="all_contours"),  # the same, MaxBoxAccV2; B-CAM, BagCAMs
        _MASK,  # the same, PxAP and pIoU
        replace(_MASK, name="wsol-mask-background", masks="background"),  # B-CAM, Table 9
        _BAS,  # BAS, the journal's code
        replace(_BAS, name="bas-ext-mask", geometry="resize", masks="object", ious=(), ten_crop=False),
        replace(_BAS, name="bas-conf", epsilon=0.0, integer_boxes=False, strict=True, over_classes=True),
        _MLDFR,  # mLDFR's code; CorLoc is its mean over classes
        replace(_MLDFR, name="mldfr-multi", box_rule="components"),  # the same, a box per component
        replace(
            _MLDFR, name="voc-miou", normalise="peak", epsilon=1e-5, ious=(), masks="classes"
        ),  # seeds of VOC, COCO
    )
}


def cuts(num_thresholds: int) -> NDArray[np.float64]:
    """The grid of thresholds, and 1."""
    return np.append(np.arange(0, 1, 1 / num_thresholds), 1.0)


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
    shifted; a box wholly outside comes out inverted, which no prediction hits. With a short side they stay.
    """
    if convention not in BOX_CONVENTIONS:
        raise unknown("box convention", convention, BOX_CONVENTIONS)
    boxes_N4 = np.asarray(boxes_N4, np.float64).reshape(-1, 4)
    if convention == "inclusive1":
        boxes_N4 = boxes_N4 - 1
    if convention == "exclusive0":
        boxes_N4 = boxes_N4 - [0, 0, 1, 1]
    if protocol.geometry == "short_side":
        return boxes_N4
    boxes_N4 = boxes_N4 * protocol.read_size / np.tile(np.asarray(size_wh, np.float64), 2)
    if protocol.geometry == "resize_crop":
        boxes_N4 = _crop(boxes_N4, protocol)
    return np.trunc(boxes_N4) if protocol.integer_boxes else boxes_N4


def _crop(boxes_N4: NDArray[np.float64], protocol: Protocol) -> NDArray[np.float64]:
    shifted = boxes_N4 - protocol.margin
    last = protocol.image_size - 1 if protocol.integer_boxes else protocol.image_size
    return np.concatenate([np.maximum(shifted[:, :2], 0), np.minimum(shifted[:, 2:], last)], axis=1)
