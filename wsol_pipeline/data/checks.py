"""Is a row to be trusted, and what does a shard store of it: the same question for an import and for `--check`."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple
from unicodedata import category

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsol_pipeline.data.headers import (
    IGNORED,
    MAX_BYTES,
    READ,
    STORED,
    orientation,
    oriented,
    probe,
    without_orientation,
)
from wsol_pipeline.data.images import decode, upright
from wsol_pipeline.data.importers import read_file
from wsol_pipeline.data.schema import Box, ClassMask, Fault, Frame, Kind, Note, Row, RowError, Rules, Size
from wsol_pipeline.errors import DataError
from wsol_pipeline.protocol import Role

Pixels = NDArray[np.uint8]


class Checked(NamedTuple):
    """A row that passed: the columns of its shard, and what is to be said of it."""

    columns: dict[str, Any]
    notes: tuple[Note, ...]


def looks(rows: list[Row], rules: Rules, threads: int = 1) -> Iterator[tuple[Row, Checked | Fault]]:
    """Each row with what it is, or with what is wrong with it."""

    def look(row: Row) -> tuple[Row, Checked | Fault]:
        try:
            return row, checked(row, rules)
        except RowError as error:
            return row, error.fault

    with ThreadPoolExecutor(threads) as pool:
        at_once = 16 * threads  # a pool holds all that it has done: images of a million rows are much
        for first in range(0, len(rows), at_once):
            yield from pool.map(look, rows[first : first + at_once])


def checked(row: Row, rules: Rules) -> Checked:
    """What is stored of a row. Raises `RowError` if it cannot be trusted."""
    if row.fault:
        raise RowError(*row.fault)
    if any(category(sign) in ("Cc", "Cs") for sign in row.id):
        raise RowError(Kind.NAME, f"id {row.id!a} has control characters, or is not UTF-8")
    if not row.labels or not all(0 <= label < rules.num_classes for label in row.labels):
        raise RowError(Kind.LABEL, f"labels {list(row.labels)} are not classes 0..{rules.num_classes - 1}")
    with _of_kind(Kind.IMAGE):
        image, size, notes = _settled(row)
    columns = {"id": row.id, "image": image, "width": size[0], "height": size[1], "labels": list(row.labels)}
    if row.role is Role.TRAIN:
        return Checked(columns, notes)
    if row.role not in rules.located:
        return Checked(columns | {"boxes": [], "box_labels": [], "mask": None, "ignore": None}, notes)
    try:
        return Checked(columns | _boxes(row, rules, size) | _masks(row, rules, size), (*notes, *row.notes))
    except RowError as error:
        turned = " (the image turned upright, as its EXIF orientation says)" if Note.UPRIGHT in notes else ""
        raise RowError(error.fault.kind, error.fault.reason + turned) from error


@contextmanager
def _of_kind(kind: Kind) -> Iterator[None]:
    """A `DataError` that says nothing of its kind is one of `kind`."""
    try:
        yield
    except RowError:
        raise
    except DataError as error:
        raise RowError(kind, str(error)) from error


def _bytes(image: Path | bytes) -> bytes:
    return image if isinstance(image, bytes) else read_file(image, MAX_BYTES)


def _settled(row: Row) -> tuple[bytes, Size, tuple[Note, ...]]:
    """The image in the frame of its annotation, as a JPEG or PNG; its size; what was done to it."""
    data = _bytes(row.image)
    kind, *sides = probe(data, READ)
    stored, turn = (sides[0], sides[1]), orientation(data)
    turned = _is_for_upright(row, stored, turn)
    size = oriented(stored, turn) if turned else stored
    if row.size and row.size != size:
        wanted = "{}x{}".format(*row.size)
        raise RowError(Kind.SIZE, f"image is {stored[0]}x{stored[1]} but its annotation is for {wanted}")
    pixels_CHW = decode(data, READ)  # to its end: a truncated image has a sound header
    if turned or kind not in STORED:
        data = upright(pixels_CHW, turn if turned else 1, kind)
    elif turn != 1:  # whoever opens what is stored, viewers too, has the frame of its boxes
        data = without_orientation(data, kind)
    of_turn = () if turn == 1 else (Note.UPRIGHT if turned else Note.STORED,)
    return data, size, of_turn if kind in STORED else (*of_turn, Note.CONVERTED)


def _is_for_upright(row: Row, stored: Size, turn: int) -> bool:
    """Whether the annotation is for the image as EXIF's orientation turns it."""
    if row.frame is Frame.SIZED:
        return row.size not in (None, stored) and row.size == oriented(stored, turn)
    return turn != 1 and row.frame is Frame.UPRIGHT


def _boxes(row: Row, rules: Rules, size: Size) -> dict[str, Any]:
    """The columns of a held-out row's boxes."""
    if not (row.boxes or row.masks or row.class_mask):
        raise RowError(
            Kind.ANNOTATION,
            "image has neither a box nor a mask to be evaluated with (--boxes none imports images and labels alone, "
            "--boxes test boxes of test alone)",
        )
    known = all(0 <= label < rules.num_classes for label in row.box_labels)
    if len(row.box_labels) != len(row.boxes) or not known:
        raise RowError(
            Kind.LABEL,
            f"box labels {list(row.box_labels)} are not classes 0..{rules.num_classes - 1}, one for each box",
        )
    for box in row.boxes:
        _check_box(box, size, rules.box_convention)
    return {"boxes": np.array(row.boxes, np.float32).reshape(-1, 4).tolist(), "box_labels": list(row.box_labels)}


def _check_box(box: Box, size: Size, convention: str) -> None:
    """Raises `RowError` unless a box is finite, ordered and on the image, with a pixel inside.

    One pixel beyond the last is let pass where corners are inclusive and count from 0: sources differ on it.
    """
    x0, y0, x1, y1 = box
    width, height = size
    first = 1 if convention == "inclusive1" else 0
    if not np.isfinite(box).all():
        raise RowError(Kind.BOX, f"box {box} is not finite")
    if x0 > x1 or y0 > y1:
        raise RowError(Kind.BOX, f"box {box} is reversed: it must be x0, y0, x1, y1")
    if convention == "exclusive0" and (x0 == x1 or y0 == y1):
        raise RowError(Kind.BOX, f"box {box} has no area: (x1, y1) is the first pixel outside ({convention})")
    if min(x0, y0) < first or x1 > width or y1 > height or x0 >= width + first or y0 >= height + first:
        from_one = f", whose first pixel is 1 ({convention}): see --convention" if 0 <= min(x0, y0) < first else ""
        raise RowError(Kind.BOX, f"box {box} is not on the image of {width}x{height}{from_one}")


def _masks(row: Row, rules: Rules, size: Size) -> dict[str, Any]:
    """The columns of a held-out row's masks."""
    with _of_kind(Kind.MASK):
        if row.class_mask:
            labels_HW = _drawn(row.class_mask, size, rules.num_classes)
            return _of_classes(labels_HW) if rules.multilabel else _of_one_class(labels_HW, row.labels[0])
        scaled = rules.scaled_masks
        ignore = _mask((row.ignore,), size, scaled) if row.ignore else None
        return {"mask": _mask(row.masks, size, scaled) if row.masks else None, "ignore": ignore}


def _mask(pngs: tuple[Path | bytes, ...], size: Size, scaled: bool) -> bytes:
    """A PNG mask as it is; several instances are joined to one, 255 where any of them is nonzero."""
    encoded = [_bytes(png) for png in pngs]
    for data in encoded:
        kind, width, height = probe(data)
        if kind != "PNG":
            raise DataError("mask is not a PNG")
        _check_size((width, height), size, scaled)
    decoded = [decode(data).amax(0).numpy() > 0 for data in encoded]
    if len({mask.shape for mask in decoded}) > 1:
        raise DataError("masks of one image differ in size")
    if len(encoded) == 1:
        return encoded[0]
    return _png(np.logical_or.reduce(decoded).astype(np.uint8) * 255)


def _check_size(mask: Size, image: Size, scaled: bool) -> None:
    """Raises `DataError` unless a mask has the image's size or, if it may be `scaled`, its shape.

    The shape is the same if the larger one, made as small as the other, misses it by a pixel at most: what rounding
    leaves.
    """
    off = abs(mask[0] * image[1] - mask[1] * image[0])
    if mask != image and not (scaled and off <= max(*mask, *image)):
        raise DataError(f"image is {image[0]}x{image[1]} but its mask is {mask[0]}x{mask[1]}")


def _drawn(mask: ClassMask, size: Size, num_classes: int) -> Pixels:
    """A class mask, checked: of the image's size, with labels that there are."""
    labels_HW = mask.draw()
    _check_size((labels_HW.shape[1], labels_HW.shape[0]), size, scaled=False)
    if (top := labels_HW[labels_HW != IGNORED].max(initial=0)) > num_classes:
        raise DataError(f"mask has the value {top}; known: 0 background, 1..{num_classes} classes, {IGNORED} neither")
    return labels_HW


def _of_classes(labels_HW: Pixels) -> dict[str, bytes | None]:
    """The mask columns of a multi-label row."""
    return {"mask": _png(labels_HW), "ignore": None}


def _of_one_class(labels_HW: Pixels, label: int) -> dict[str, bytes | None]:
    """The mask columns of a single-label row: what is of its class, and what counts neither way."""
    ignored_HW = labels_HW == IGNORED
    return {
        "mask": _png((labels_HW == label + 1) * np.uint8(255)),
        "ignore": _png(ignored_HW * np.uint8(255)) if ignored_HW.any() else None,
    }


def _png(pixels_HW: Pixels) -> bytes:
    sink = BytesIO()
    Image.fromarray(pixels_HW).save(sink, "PNG")
    return sink.getvalue()
