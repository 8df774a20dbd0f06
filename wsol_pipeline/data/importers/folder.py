"""Your own images in folders.

    train/<class>/*.jpg     val/<class>/*.jpg     test/<class>/*.jpg
    boxes.csv               path,x0,y0,x1,y1 for the images of val and test; a line for each box
    masks/val/<class>/*.png masks/test/<class>/*.png       named as the image; nonzero is the object

An image of val or test needs a box, a mask or both. Paths are relative to the source and are the ids. Classes are the
sorted folder names of train/.
"""

import csv
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from wsol_pipeline.data.importers import Source, below, images_below
from wsol_pipeline.data.schema import Box, Row
from wsol_pipeline.errors import DataError, unknown
from wsol_pipeline.protocol import Role

COLUMNS = ["path", "x0", "y0", "x1", "y1"]


@dataclass(frozen=True)
class Options:
    """Options of the folder layout."""

    convention: Literal["inclusive0", "inclusive1", "exclusive0"] = "exclusive0"
    """What the corners in boxes.csv mean: is (x1, y1) the last pixel inside the box, is the first pixel 0 or 1."""


def read(source: Path, options: Options) -> Source:
    """Find the images below `source`; boxes of images that are not there are an error."""
    if not (source / "train").is_dir():
        raise DataError(f"{source} is not in the folder layout: there is no train/<class>/.")
    classes = tuple(sorted(path.name for path in (source / "train").iterdir() if path.is_dir()))
    boxes = _boxes(source / "boxes.csv")
    rows = [row for role in Role for row in _split(role, source, classes, boxes)]
    if strays := sorted(boxes.keys() - {row.id for row in rows}):
        raise DataError(f"boxes.csv has boxes of {strays[0]!r}, which is not an image below {source}.")
    used = {path for row in rows for path in row.masks}
    if lost := [path for path in images_below(source / "masks") if path.resolve() not in used]:
        raise DataError(f"{lost[0]} is a mask of no image of val or test: it must be masks/<path of the image>.png.")
    return Source(classes, options.convention, rows)


def _split(role: Role, source: Path, classes: tuple[str, ...], boxes: dict[str, list[Box]]) -> Iterator[Row]:
    for folder in sorted(path for path in (source / role).glob("*") if path.is_dir()):
        if folder.name not in classes:
            raise unknown(f"class in {role.value}/", folder.name, classes)
        label = classes.index(folder.name)
        for path in images_below(folder):
            name = path.relative_to(source).as_posix()
            own = () if role is Role.TRAIN else tuple(boxes.get(name, ()))
            mask = below(source, f"masks/{path.relative_to(source).with_suffix('.png').as_posix()}")
            masks = (mask,) if role is not Role.TRAIN and mask.exists() else ()
            yield Row(role, name, (label,), below(source, name), None, own, (label,) * len(own), masks)


def _boxes(path: Path) -> dict[str, list[Box]]:
    """Boxes of each image, by path; none if there is no file."""
    found: dict[str, list[Box]] = defaultdict(list)
    if not path.exists():
        return found
    with path.open(newline="", encoding="utf-8") as file:
        table = csv.DictReader(file)
        if table.fieldnames != COLUMNS:
            raise DataError(f"{path} must begin with the line {','.join(COLUMNS)} but has {table.fieldnames}.")
        for line in table:
            try:
                x0, y0, x1, y1 = (float(line[side]) for side in COLUMNS[1:])
            except (TypeError, ValueError) as error:
                raise DataError(f"{path} line {table.line_num}: a box is four numbers.") from error
            found[line["path"]].append((x0, y0, x1, y1))
    return found
