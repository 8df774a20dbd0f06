"""Tiny-ImageNet-200 (Stanford CS231n): 200 classes of ImageNet at 64x64 with one box an image.

    train/<wnid>/images/<wnid>_<n>.JPEG     train/<wnid>/<wnid>_boxes.txt     file x0 y0 x1 y1
    val/images/*.JPEG                       val/val_annotations.txt           file wnid x0 y0 x1 y1
    wnids.txt, words.txt                    test/ has no labels and is not read

The official validation images are `test`; the last `val_per_class` training images of each class, by number, are `val`.
Labels count the sorted wnids; ids are paths below the source.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from wsol_pipeline.data.importers import Count, Source, below, faulty, read_lines
from wsol_pipeline.data.schema import Box, Fault, Kind, Row, RowError
from wsol_pipeline.errors import DataError, UsageError
from wsol_pipeline.protocol import Role


@dataclass(frozen=True)
class Options:
    """Options of the Tiny-ImageNet layout."""

    val_per_class: int = 50
    """Training images of each class that become `val`: the last ones by number."""

    def __post_init__(self) -> None:
        if self.val_per_class < 1:
            raise UsageError(f"val_per_class must be at least 1 but got {self.val_per_class}.")


def read(source: Path, options: Options) -> Source:
    """Find the images and boxes below `source` (or its folder `tiny-imagenet-200`, as the archive has it)."""
    root = source / "tiny-imagenet-200" if (source / "tiny-imagenet-200").is_dir() else source
    if not (root / "wnids.txt").exists() or not (root / "val" / "val_annotations.txt").exists():
        raise DataError(f"{source} is not in the Tiny-ImageNet layout: it needs wnids.txt and val/val_annotations.txt.")
    wnids = sorted(line.strip() for line in read_lines(root / "wnids.txt"))
    words = dict(line.strip().split("\t", 1) for line in read_lines(root / "words.txt") if "\t" in line.strip())
    faults: list[str] = []
    rows = [row for label, wnid in enumerate(wnids) for row in _training(root, wnid, label, options, faults)]
    rows += _official_val(root, {wnid: label for label, wnid in enumerate(wnids)}, faults)
    of_class = {Role.TRAIN: 500 - options.val_per_class, Role.VAL: options.val_per_class, Role.TEST: 50}
    counts = {role: Count(number * len(wnids), (number, number)) for role, number in of_class.items()}
    classes = tuple(f"{wnid} {words.get(wnid, '')}".strip() for wnid in wnids)
    return Source(classes, "inclusive0", rows, counts=counts, faults=tuple(faults))


def _training(root: Path, wnid: str, label: int, options: Options, faults: list[str]) -> Iterator[Row]:
    """The training images of a class; the last ones are `val`. Puts what is wrong beside rows into `faults`."""
    try:
        boxes = {name: corners for name, *corners in _fields(below(root, f"train/{wnid}/{wnid}_boxes.txt"), 5, faults)}
    except DataError as error:
        faults.append(str(error))
        return
    names = sorted(boxes, key=lambda name: [int(digits) for digits in re.findall(r"\d{1,18}", name)])
    for at, name in enumerate(names):
        role = Role.VAL if at >= len(names) - options.val_per_class else Role.TRAIN
        yield _row(role, root, f"train/{wnid}/images/{name}", label, boxes[name])


def _official_val(root: Path, labels: dict[str, int], faults: list[str]) -> Iterator[Row]:
    for name, wnid, *corners in _fields(root / "val" / "val_annotations.txt", 6, faults):
        if wnid in labels:
            yield _row(Role.TEST, root, f"val/images/{name}", labels[wnid], corners)
        else:
            fault = Fault(Kind.LABEL, f"image is of class {wnid!r}, which wnids.txt does not list")
            yield faulty(Role.TEST, f"val/images/{name}", fault)


def _row(role: Role, root: Path, name: str, label: int, corners: list[str]) -> Row:
    try:
        return Row(role, name, (label,), below(root, name), None, (_box(corners),), (label,))
    except RowError as error:
        return faulty(role, name, error.fault)


def _fields(path: Path, count: int, faults: list[str]) -> Iterator[list[str]]:
    for line in read_lines(path):
        fields = line.split()
        if len(fields) == count:
            yield fields
        else:
            faults.append(f"{path} has a line of {len(fields)} words where {count} belong: {line[:80]!r}.")


def _box(corners: list[str]) -> Box:
    try:
        x0, y0, x1, y1 = map(float, corners)
    except ValueError as error:
        raise RowError(Kind.BOX, f"box is {' '.join(corners)[:80]!r} where four numbers belong") from error
    return x0, y0, x1, y1
