"""What a model found in an image, and what it was asked for."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from wsol_pipeline.errors import UsageError
from wsol_pipeline.evaluation.objects import Box, Frame, Mask
from wsol_pipeline.training.config import require
from wsol_pipeline.training.inputs import pixels_of

HEAT, BOX_COLOUR = 0.45, "#ff3344"  # share of the map in a picture


@dataclass(frozen=True)
class Wanted:
    """What a model is asked for, beside images."""

    threshold: float | str | None = None  # on the map: a number, "otsu", or None, the one chosen on validation
    top: int | None = None  # classes an image; None: one, of a multi-label model all over `conf`, and always the first
    conf: float | None = None  # least probability of a class; None: 0, of a multi-label model 0.5
    classes: tuple[str, ...] = ()  # those that may be predicted; none: all
    boxes: Literal["largest", "all"] = "largest"
    max_det: int = 10  # boxes an image and class, where all are wanted
    min_area: float = 0.0  # share of the image that a box takes at least

    def __post_init__(self) -> None:
        value = self.threshold
        known = value is None or value == "otsu" or (not isinstance(value, str) and 0 <= value < 1)
        require(known, "threshold must be a number in 0 <= τ < 1, or 'otsu'", value)
        require(self.top is None or self.top >= 1, "top must be at least 1", self.top)
        require(self.conf is None or 0 <= self.conf <= 1, "conf is a probability in 0..1", self.conf)
        require(self.boxes in ("largest", "all"), "boxes must be 'largest' or 'all'", self.boxes)
        require(self.max_det >= 1, "max_det must be at least 1", self.max_det)
        require(0 <= self.min_area < 1, "min_area is a share of the image in 0 <= a < 1", self.min_area)


@dataclass(frozen=True)
class Localization:
    """An object of a class in an image; `box` is None, and `reason` says why, where none was found.

    Boxes are x0, y0, x1, y1 in pixels of the image as it is shown, half-open: the last pixel inside is x1 - 1.
    """

    image: int  # its number among those that were asked for
    path: str | None
    width: int
    height: int
    label: str
    class_id: int
    label_source: Literal["predicted", "given"]
    predicted: str  # the network's own first class
    class_score: float  # the probability of `label`
    score: float  # the same, times the mean of the map in the part where all boxes are wanted
    box: Box | None
    rank: int  # among the boxes of this image and class, largest first
    threshold: float | None  # where the map was cut; None of one that is a mask
    reason: str
    map_HW: NDArray[np.floating]  # 0..1, of what lies in `window`
    cells_HW: Mask | None  # the object on the map's grid
    frame: Frame

    @property
    def window(self) -> Box:
        """The part of the image that the network saw: all of it, or its centre under a protocol that crops."""
        return self.frame.window

    @cached_property
    def mask(self) -> Mask:
        """The object's pixels, bool [height, width]."""
        if self.cells_HW is None:
            return np.zeros((self.height, self.width), bool)
        return self.frame.mask(self.cells_HW)

    @cached_property
    def rle(self) -> str:
        """`mask` in COCO's compressed run-length code, of size [height, width]."""
        from pycocotools import mask as rle  # training a network does without it (`make gpu-check`)

        return rle.encode(np.asfortranarray(self.mask.astype(np.uint8)))["counts"].decode()

    def to_dict(self) -> dict[str, Any]:
        """Plain data, without map and mask."""
        names = ("image", "path", "width", "height", "label", "class_id", "label_source", "predicted", "class_score",
                 "score", "rank", "threshold", "reason")  # fmt: skip
        box = None if self.box is None else list(self.box)
        return {name: getattr(self, name) for name in names} | {"box": box, "window": list(self.window)}

    def to_coco(self) -> dict[str, Any]:
        """COCO's annotation, as of a results file; ids of image and category count from 1 as in `wsol localize`'s.

        Raises `UsageError` where nothing was found: COCO has no such annotation.
        """
        if self.box is None:
            raise UsageError(
                f"Image {self.image} has no box of {self.label!r} ({self.reason}), and COCO no word for that."
            )
        x0, y0, x1, y1 = self.box
        return {
            "image_id": self.image + 1, "category_id": self.class_id + 1, "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": int(self.mask.sum()), "score": self.score, "iscrowd": 0,
            "segmentation": {"size": [self.height, self.width], "counts": self.rle},
        }  # fmt: skip

    def draw(self, image: Any = None) -> Image.Image:
        """The image under its map, with the box and the class; `image` as `Model.predict` takes it, by default its
        file."""
        if image is None and self.path is None:
            raise UsageError("This image came as pixels: hand them to draw(image).")
        pixels_CHW = pixels_of(self.path if image is None else image)
        drawn = pixels_CHW.permute(1, 2, 0).numpy().astype(np.float32)
        if drawn.shape[:2] != (self.height, self.width):
            size = f"{drawn.shape[1]}x{drawn.shape[0]}"
            raise UsageError(f"The image must have {self.width}x{self.height} pixels, as localized, but has {size}.")
        heat_HW3 = cv2.applyColorMap((255 * self.map_HW.clip(0, 1)).astype(np.uint8), cv2.COLORMAP_JET)[..., ::-1]
        rows, columns = self._window_pixels()
        size_wh = columns.stop - columns.start, rows.stop - rows.start
        drawn[rows, columns] *= 1 - HEAT
        drawn[rows, columns] += HEAT * cv2.resize(heat_HW3.astype(np.float32), size_wh)
        picture = Image.fromarray(np.rint(drawn).astype(np.uint8))
        self._write_on(picture)
        return picture

    def _window_pixels(self) -> tuple[slice, slice]:
        x0, y0, x1, y1 = self.window
        low_x, low_y = min(int(x0), self.width - 1), min(int(y0), self.height - 1)
        return slice(low_y, max(round(y1), low_y + 1)), slice(low_x, max(round(x1), low_x + 1))

    def _write_on(self, picture: Image.Image) -> None:
        pen, text = ImageDraw.Draw(picture), f"{self.label} {self.score:.2f}"
        size = max(12, max(picture.size) // 40)
        x, y = (0.0, 0.0) if self.box is None else self.box[:2]
        if self.box is not None:
            x0, y0, x1, y1 = self.box
            pen.rectangle((x0, y0, max(x1 - 1, x0), max(y1 - 1, y0)), outline=BOX_COLOUR, width=max(2, size // 8))
        pen.text((x + 4, y + 2), text, fill="white", stroke_width=2, stroke_fill="black", font_size=size)
