"""CUB-200-2011 (Wah et al. 2011): 200 species of birds.

    CUB_200_2011/  images.txt               id path        images/<path>
                   classes.txt              id name        segmentations/<path>.png (optional, a separate download)
                   image_class_labels.txt   id class
                   train_test_split.txt     id 1           (1 is train, 0 is test)
                   bounding_boxes.txt       id x y w h

The official test images are `test` and nothing else. `val` is CUBV2, 1,000 other photos with boxes that Choe et al.
2020 collected for the choices that need boxes, or a share of the official training images. Ids are image paths, as in
the wsolevaluation lists, and boxes end at x + w and y + h as theirs do.

A segmentation counts the annotators who saw the bird at a pixel; one of them is enough to make it foreground.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from wsol_pipeline.data.archives import unpacked
from wsol_pipeline.data.importers import Count, Source, below, hold_out, read_lines
from wsol_pipeline.data.importers.wsolevaluation import validation
from wsol_pipeline.data.schema import Box, Row
from wsol_pipeline.errors import DataError, UsageError
from wsol_pipeline.protocol import Role

ROLES = {"1": Role.TRAIN, "0": Role.TEST}  # of train_test_split.txt
CUBV2_COUNTS = {Role.TRAIN: Count(5994, (29, 30)), Role.VAL: Count(1000, (3, 6)), Role.TEST: Count(5794, (11, 30))}


@dataclass(frozen=True)
class Options:
    """Options of the CUB layout. Without CUBV2, a share of the training images has to be given up for `val`."""

    cubv2: str = ""
    """Folder or archive of the CUBV2 images (001.Black_footed_Albatross/...), absolute or relative to the source."""
    cubv2_metadata: str = ""
    """Folder of CUBV2's lists: metadata/CUB/val of github.com/clovaai/wsolevaluation. Default: the folder cubv2."""
    val_share: float = 0.0
    """Share (0 to 1) of each class's training images that become `val` in place of CUBV2. mLDFR: 0.1."""

    def __post_init__(self) -> None:
        if not 0 <= self.val_share < 1:
            raise UsageError(f"val_share is a share of the training images in 0..1 but got {self.val_share}.")


def read(source: Path, options: Options) -> Source:
    """Find the images listed below `source`, or below its folder `CUB_200_2011` as the archive has it."""
    root = source / "CUB_200_2011" if (source / "CUB_200_2011").is_dir() else source
    if not (root / "images.txt").exists():
        raise DataError(f"{source} is not in the CUB layout: there is no images.txt.")
    if bool(options.cubv2) == bool(options.val_share):
        raise UsageError(
            "CUB needs validation images that are not its test images. Either give the CUBV2 images as --cubv2 and "
            "their lists, metadata/CUB/val of github.com/clovaai/wsolevaluation (whose README links the images), as "
            "--cubv2-metadata; or give up a share of the training images: --val-share 0.1."
        )
    numbers = sorted(_table(root / "classes.txt", 1).items(), key=lambda item: int(item[0]))
    labels = {number: label for label, (number, _) in enumerate(numbers)}
    rows = list(_rows(source, root, labels))
    if options.cubv2:
        images = unpacked(source / options.cubv2)
        lists = source / options.cubv2_metadata if options.cubv2_metadata else images
        rows += validation(lists, images, len(labels))
    else:
        as_val = (replace(row, role=Role.VAL) for row in rows if row.role is Role.TRAIN)
        rows = hold_out(rows, as_val, options.val_share)
    counts = CUBV2_COUNTS if options.cubv2 else {Role.TEST: CUBV2_COUNTS[Role.TEST]}
    return Source(tuple(name for _, (name,) in numbers), "inclusive0", rows, counts=counts)


def _rows(source: Path, root: Path, labels: dict[str, int]) -> Iterator[Row]:
    """The official training and test images, each with its box."""
    names = _table(root / "images.txt", 1)
    classes, splits = _table(root / "image_class_labels.txt", 1), _table(root / "train_test_split.txt", 1)
    boxes = _table(root / "bounding_boxes.txt", 4)
    beside = [folder / "segmentations" for folder in (root, source) if (folder / "segmentations").is_dir()]
    for number, (name,) in names.items():
        if any(number not in table for table in (classes, splits, boxes)):
            raise DataError(f"Image {number} ({name}) of images.txt lacks a class, a split or a box in {root}.")
        (species,), (split,) = classes[number], splits[number]
        if species not in labels:
            raise DataError(f"Image {name} is of class {species!r}, which classes.txt does not list.")
        if split not in ROLES:
            raise DataError(f"train_test_split.txt must say 1 (train) or 0 (test) but says {split!r} of image {name}.")
        masks = tuple(below(folder, str(Path(name).with_suffix(".png"))) for folder in beside[:1])
        own, box = (labels[species],), _box(boxes[number])
        yield Row(ROLES[split], name, own, below(root / "images", name), None, (box,), own, masks)


def _table(path: Path, fields: int) -> dict[str, list[str]]:
    """The words after the number that begins each line, by that number."""
    table = {}
    for line in read_lines(path):
        number, *words = line.split()
        if len(words) != fields or not number.isdigit():
            raise DataError(f"{path} has a line that is not a number and {fields} more words: {line[:80]!r}.")
        table[number] = words
    return table


def _box(words: list[str]) -> Box:
    try:
        x, y, width, height = map(float, words)
    except ValueError as error:
        raise DataError(f"bounding_boxes.txt has {' '.join(words)!r} where four numbers belong.") from error
    return x, y, x + width, y + height
