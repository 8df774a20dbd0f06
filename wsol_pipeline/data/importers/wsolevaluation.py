"""The text files of the wsolevaluation benchmark (Choe et al. 2020) beside any folder of images.

    <metadata>/{train,val,test}/image_ids.txt     path of an image below <images>, which is its id
                                class_labels.txt  id,label            (several lines for several labels)
                                image_sizes.txt   id,width,height     (optional: OpenImages30k comes without)
                                localization.txt  id,x0,y0,x1,y1      (a line for each box)
                                                  id,mask,ignore      (a line for each mask; ignore on the first one)

Their `train-weaksup`, `train-fullsup` and `test` are `train`, `val` and `test` here. Boxes and masks have no label of
their own: they are of the image's, so an image of several labels cannot have any.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from wsol_pipeline.data.importers import Source, below, faulty, read_lines
from wsol_pipeline.data.schema import Box, Kind, Row, RowError
from wsol_pipeline.errors import DataError
from wsol_pipeline.protocol import Role


@dataclass(frozen=True)
class Options:
    """Options of the wsolevaluation layout; folders are relative to the source."""

    metadata: str = "metadata"
    """Folder with train/, val/ and test/ of text files."""
    images: str = "."
    """Folder that the ids in image_ids.txt are paths below."""
    masks: str = "."
    """Folder that the mask paths in localization.txt are below."""
    class_names: str = ""
    """Text file with a class name on each line, in the order of labels. Default: the numbers."""


def read(source: Path, options: Options) -> Source:
    """Read the lists below `source`; only labels are read of the training rows."""
    metadata = source / options.metadata
    if not metadata.is_dir():
        raise DataError(f"There is no folder {metadata}: give --metadata, relative to --source.")
    images, masks = source / options.images, source / options.masks
    rows = [row for role in Role for row in read_split(role, metadata / role, images, masks)]
    classes = read_lines(source / options.class_names) if options.class_names else _numbered(rows)
    multilabel = any(len(row.labels) > 1 for row in rows)
    return Source(tuple(classes), "inclusive0", rows, multilabel, scaled_masks=True)


def _numbered(rows: list[Row]) -> list[str]:
    """0 to the largest label of the training images, which cannot be more classes than images."""
    labels = [label for row in rows if row.role is Role.TRAIN for label in row.labels]
    top = max(labels, default=-1)
    if top >= len(labels):
        raise DataError(f"The labels go up to {top} but there are {len(labels)} training images: labels count from 0.")
    return [str(label) for label in range(top + 1)]


def read_split(role: Role, lists: Path, images: Path, masks: Path) -> Iterator[Row]:
    """The rows that the text files in `lists` name. Raises `DataError` if one of the files cannot be read."""
    labels, given = _by_id(lists / "class_labels.txt"), lists / "image_sizes.txt"
    sizes = _by_id(given) if given.exists() else None
    placed = lists / "localization.txt"
    located = _by_id(placed) if role is not Role.TRAIN and placed.exists() else {}
    for name in map(str.strip, read_lines(lists / "image_ids.txt")):
        try:
            own = tuple(label for (label,) in _integers(labels.get(name, []), 1, "class_labels.txt"))
            size = None
            if sizes is not None:
                ((width, height),) = _integers(sizes.get(name, [])[:1], 2, "image_sizes.txt")
                size = width, height
            if name in located and len(own) > 1:
                raise RowError(
                    Kind.LABEL,
                    f"localization.txt has boxes or masks of this image, which is of the classes {list(own)}, but "
                    "does not say of which one each is: give it one label, or no boxes and masks",
                )
            boxes, instances, ignore = _located(located.get(name, []), masks)
            yield Row(role, name, own, below(images, name), size, boxes, own * len(boxes), instances, ignore)
        except RowError as error:
            yield faulty(role, name, error.fault)


def validation(lists: Path, images: Path, num_classes: int) -> list[Row]:
    """The benchmark's `val` rows for a layout that has its own train and test: CUBV2, ImageNetV2.

    Raises `DataError` if `images` does not have them, or if they are of other classes than 0..num_classes - 1: labels
    are numbers, and mean the same only among the same classes.
    """
    rows = list(read_split(Role.VAL, lists, images, images))
    if not any(isinstance(row.image, Path) and row.image.exists() for row in rows[:10]):
        raise DataError(f"{lists} names the image {rows[0].id if rows else ''!r}, which is not below {images}.")
    if (found := len({label for row in rows for label in row.labels})) != num_classes:
        raise DataError(f"{lists} has images of {found} classes but the training images are of {num_classes}.")
    return rows


def _by_id(path: Path) -> dict[str, list[list[str]]]:
    """The fields after the id of each line, grouped by id."""
    grouped = defaultdict(list)
    for line in read_lines(path):
        name, *fields = line.strip().split(",")
        grouped[name].append(fields)
    return grouped


def _integers(lines: list[list[str]], count: int, file: str) -> list[list[int]]:
    """Lines of `count` whole numbers. Raises `RowError` for others, and if there is no line."""
    try:
        numbers = [[int(field) for field in fields] for fields in lines]
    except ValueError:
        numbers = []
    if not numbers or any(len(line) != count for line in numbers):
        said = " and ".join(repr(",".join(fields)) for fields in lines[:3]) or "nothing"
        raise RowError(Kind.ANNOTATION, f"{file} says {said[:200]} of this image where {count} whole numbers belong")
    return numbers


def _located(lines: list[list[str]], root: Path) -> tuple[tuple[Box, ...], tuple[Path, ...], Path | None]:
    """Boxes, masks and the ignore mask of one image: four fields are a box, two are masks."""
    boxes: list[Box] = []
    masks: list[Path] = []
    ignore = None
    for fields in lines:
        try:
            if len(fields) == 4:
                x0, y0, x1, y1 = map(float, fields)
                boxes.append((x0, y0, x1, y1))
                continue
            mask, skip = fields
        except ValueError as error:
            raise RowError(
                Kind.ANNOTATION, f"localization.txt says {fields!a:.200}, which is neither a box nor a mask and ignore"
            ) from error
        masks.append(below(root, mask))
        ignore = ignore or (below(root, skip) if skip else None)
    return tuple(boxes), tuple(masks), ignore
