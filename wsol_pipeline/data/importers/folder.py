"""Your own images in folders.

    train/<class>/*.jpg     val/<class>/*.jpg     test/<class>/*.jpg
    boxes.csv               path,x0,y0,x1,y1 for the images of val and test; a line for each box
    masks/val/<class>/*.png masks/test/<class>/*.png       named as the image; nonzero is the object

An image of val or test needs a box, a mask or both. Paths are relative to the source and are the ids. Classes are the
sorted folder names of train/.
"""

import csv
import io
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from wsol_pipeline.data.importers import MAX_LIST_BYTES, Source, below, faulty, images_below, read_file
from wsol_pipeline.data.schema import Box, Kind, Row, RowError
from wsol_pipeline.errors import DataError, unknown
from wsol_pipeline.protocol import Role

COLUMNS = ["path", "x0", "y0", "x1", "y1"]


@dataclass(frozen=True)
class Options:
    """Options of the folder layout."""

    convention: Literal["inclusive0", "inclusive1", "exclusive0"] = "exclusive0"
    """What the corners in boxes.csv mean: is (x1, y1) the last pixel inside the box, is the first pixel 0 or 1."""


def read(source: Path, options: Options) -> Source:
    """Find the images below `source`, with the boxes and masks of those of val and test."""
    if not (source / "train").is_dir():
        raise DataError(f"{source} is not in the folder layout: there is no train/<class>/.")
    classes = tuple(sorted(path.name for path in (source / "train").iterdir() if path.is_dir()))
    boxes, faults = _boxes(source / "boxes.csv")
    rows = [row for role in Role for row in _split(role, source, classes, boxes)]
    strays = sorted(boxes.keys() - {row.id for row in rows})
    faults += [f"boxes.csv has boxes of {name!r}, which is not an image below {source}." for name in strays]
    places = {f"masks/{Path(row.id).with_suffix('.png').as_posix()}" for row in rows if row.role is not Role.TRAIN}
    drawn = [path.relative_to(source).as_posix() for path in images_below(source / "masks")]
    faults += [
        f"{name} is a mask of no image of val or test: it must be masks/<path of the image>.png."
        for name in drawn
        if name not in places
    ]
    return Source(classes, options.convention, rows, faults=tuple(faults))


def _split(role: Role, source: Path, classes: tuple[str, ...], boxes: dict[str, list[Box]]) -> Iterator[Row]:
    for folder in sorted(path for path in (source / role).glob("*") if path.is_dir()):
        for path in images_below(folder):
            name = path.relative_to(source).as_posix()
            try:
                yield _row(role, source, name, _label(folder.name, role, classes), boxes)
            except RowError as error:
                yield faulty(role, name, error.fault)


def _label(name: str, role: Role, classes: tuple[str, ...]) -> int:
    if name not in classes:
        raise RowError(Kind.LABEL, str(unknown(f"class in {role.value}/", name, classes)))
    return classes.index(name)


def _row(role: Role, source: Path, name: str, label: int, boxes: dict[str, list[Box]]) -> Row:
    if role is Role.TRAIN:
        return Row(role, name, (label,), below(source, name))
    own = tuple(boxes.get(name, ()))
    mask = below(source, f"masks/{Path(name).with_suffix('.png').as_posix()}")
    masks = (mask,) if mask.exists() else ()
    return Row(role, name, (label,), below(source, name), None, own, (label,) * len(own), masks)


def _boxes(path: Path) -> tuple[dict[str, list[Box]], list[str]]:
    """Boxes of each image, by path, and what is wrong with lines; none if there is no file."""
    found: dict[str, list[Box]] = defaultdict(list)
    faults: list[str] = []
    if not path.exists():
        return found, faults
    try:
        table = csv.DictReader(io.StringIO(read_file(path, MAX_LIST_BYTES).decode(), newline=""))
        if table.fieldnames != COLUMNS:
            raise DataError(f"{path} must begin with the line {','.join(COLUMNS)} but has {table.fieldnames}.")
        for line in table:
            try:
                x0, y0, x1, y1 = (float(line[side]) for side in COLUMNS[1:])
            except (TypeError, ValueError):
                faults.append(f"{path} line {table.line_num}: a box is four numbers.")
            else:
                found[line["path"]].append((x0, y0, x1, y1))
    except (RowError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"Cannot read {path}: {error}.") from error
    return found, faults
