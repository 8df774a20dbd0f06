"""What a row is: as an importer finds it (`Row`), and as a shard stores it (`schema`).

Image, boxes and masks of a stored row share one frame: the pixels as they decode. Which frame that is was settled at
import: an image is turned there if its annotation is for the upright one (`Frame`), and one that is left as stored
loses what asks viewers to turn it. Nothing turns a stored image again, whether it heeds EXIF or not.
"""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from wsol_pipeline.errors import DataError
from wsol_pipeline.protocol import Role

VERSION = 3  # of the shards and the manifest; a reader refuses another one
ROW_GROUP = 32  # rows that are read together: about 1 to 4 MB of encoded images
BOX_CONVENTIONS = (
    "inclusive0",
    "inclusive1",
    "exclusive0",
)  # is (x1, y1) inside the box; does counting start at 0 or 1

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels of the stored image
Size = tuple[int, int]  # width, height

_LABELLED = [
    pa.field("id", pa.string(), nullable=False),
    pa.field("image", pa.binary(), nullable=False),  # JPEG or PNG: as the source had it, unless EXIF has a turn
    pa.field("width", pa.int32(), nullable=False),
    pa.field("height", pa.int32(), nullable=False),
    pa.field("labels", pa.list_(pa.int32()), nullable=False),
]
_LOCATED = [
    pa.field("boxes", pa.list_(pa.list_(pa.float32(), 4)), nullable=False),
    pa.field("box_labels", pa.list_(pa.int32()), nullable=False),
    pa.field("mask", pa.binary()),  # PNG, nonzero is the object; multi-label: 0 background, k + 1 class k, 255 neither
    pa.field("ignore", pa.binary()),  # PNG, nonzero counts neither way
]
HELD_OUT = (Role.VAL, Role.TEST)
PIXEL_COLUMNS = ("image", "mask", "ignore")


def schema(role: Role) -> pa.Schema:
    """The columns of a split's shards. Training shards have no place for a box or a mask: supervision is weak."""
    return pa.schema(_LABELLED if role is Role.TRAIN else _LABELLED + _LOCATED)


class ClassMask(Protocol):
    """The pixels of an image's classes, drawn where its shard is written: a value to be pickled, `repr` says it all."""

    def draw(self) -> NDArray[np.uint8]:
        """uint8 [H, W] at the image's size: 0 background, k + 1 class k, 255 counts neither way.

        Raises `RowError` if it cannot be drawn.
        """


class Frame(StrEnum):
    """Which pixels the boxes and masks of an image are of that EXIF asks to turn."""

    STORED = "stored"  # as it is stored: the published benchmarks
    UPRIGHT = "upright"  # as viewers and annotation tools show it
    SIZED = "sized"  # the one of the annotation's width and height; as stored where both have these, or none is known


class Note(StrEnum):
    """What was done to a row, or found of it, that is no fault. Counted in the manifest."""

    UPRIGHT = "images turned upright, as their EXIF orientation says"
    STORED = "images left as stored, although their EXIF orientation would turn them"
    CONVERTED = "images of another kind stored as PNG"
    CLIPPED = "images with boxes or polygons that were cut off at the edge of the image"
    RING = "images with polygons of less than three points, which were dropped"


class Kind(StrEnum):
    """What is wrong with a row that is left out."""

    NAME = "name"  # its id, or the name of a file, is none
    FILE = "file"  # a file is missing, or is not one to be read
    IMAGE = "image"  # it cannot be decoded, or not within limits
    ANNOTATION = "annotation"  # it is missing, or is not in its format
    SIZE = "size"  # the image is not of the size that its annotation is for
    LABEL = "label"  # of the image or of a box
    BOX = "box"
    MASK = "mask"


class Fault(NamedTuple):
    """Why a row is left out."""

    kind: Kind
    reason: str


class RowError(DataError):
    """A row, or part of it, cannot be trusted."""

    def __init__(self, kind: Kind, reason: str) -> None:
        super().__init__(kind, reason)
        self.fault = Fault(kind, reason)

    def __str__(self) -> str:
        return self.fault.reason


@dataclass(frozen=True)
class Row:
    """One image as the importer found it, nothing of it read or checked yet. Boxes of training rows are left behind."""

    role: Role
    id: str
    labels: tuple[int, ...]
    image: Path | bytes
    size: Size | None = None  # that the annotation was made for
    boxes: tuple[Box, ...] = ()
    box_labels: tuple[int, ...] = ()
    masks: tuple[Path | bytes, ...] = ()  # one PNG for each instance
    ignore: Path | None = None
    class_mask: ClassMask | None = None  # instead of `masks` and `ignore`
    fault: Fault | None = None  # what the importer found: the row is quarantined
    frame: Frame = Frame.STORED
    notes: tuple[Note, ...] = ()


class Rules(NamedTuple):
    """What holds for all rows of a source."""

    num_classes: int
    multilabel: bool
    box_convention: str
    located: tuple[Role, ...] = HELD_OUT  # whose images have boxes or masks; of others those there are stay behind
    scaled_masks: bool = False  # a mask may have another size than its image, not another shape
