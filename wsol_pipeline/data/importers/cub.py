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
from wsol_pipeline.data.importers import Count, Source, below, faulty, hold_out, read_lines
from wsol_pipeline.data.importers.wsolevaluation import validation
from wsol_pipeline.data.schema import Box, Kind, Row, RowError
from wsol_pipeline.errors import DataError, UsageError
from wsol_pipeline.protocol import Role

TABLES = {  # files and the number of words after the number that begins each line
    "images": 1,
    "classes": 1,
    "image_class_labels": 1,
    "train_test_split": 1,
    "bounding_boxes": 4,
}
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
    tables = {name: _table(root / f"{name}.txt", width) for name, width in TABLES.items()}
    numbers = sorted(tables["classes"][0].items(), key=lambda item: int(item[0]))
    labels = {number: label for label, (number, _) in enumerate(numbers)}
    rows = list(_rows(source, root, {name: table for name, (table, _) in tables.items()}, labels))
    if options.cubv2:
        images = unpacked(source / options.cubv2)
        lists = source / options.cubv2_metadata if options.cubv2_metadata else images
        rows += validation(lists, images, len(labels))
    else:
        as_val = (replace(row, role=Role.VAL) for row in rows if row.role is Role.TRAIN)
        rows = hold_out(rows, as_val, options.val_share)
    counts = CUBV2_COUNTS if options.cubv2 else {Role.TEST: CUBV2_COUNTS[Role.TEST]}
    faults = tuple(fault for _, found in tables.values() for fault in found)
    return Source(tuple(name for _, (name,) in numbers), "inclusive0", rows, counts=counts, faults=faults)


def _rows(source: Path, root: Path, tables: dict[str, dict[str, list[str]]], labels: dict[str, int]) -> Iterator[Row]:
    """The official training and test images, each with its box; one without a split counts as a training image."""
    beside = [folder / "segmentations" for folder in (root, source) if (folder / "segmentations").is_dir()]
    for number, (name,) in tables["images"].items():
        role = Role.TRAIN
        try:
            (split,) = _of_image(tables, "train_test_split", number)
            if split not in ROLES:
                raise RowError(Kind.ANNOTATION, f"train_test_split.txt must say 1 or 0 but says {split!r}")
            role = ROLES[split]
            (species,) = _of_image(tables, "image_class_labels", number)
            if species not in labels:
                raise RowError(Kind.LABEL, f"image is of class {species!r}, which classes.txt does not list")
            masks = tuple(below(folder, str(Path(name).with_suffix(".png"))) for folder in beside[:1])
            own, box = (labels[species],), _box(_of_image(tables, "bounding_boxes", number))
            yield Row(role, name, own, below(root / "images", name), None, (box,), own, masks)
        except RowError as error:
            yield faulty(role, name, error.fault)


def _of_image(tables: dict[str, dict[str, list[str]]], table: str, number: str) -> list[str]:
    if number not in tables[table]:
        raise RowError(Kind.ANNOTATION, f"{table}.txt has no line of image {number}")
    return tables[table][number]


def _table(path: Path, fields: int) -> tuple[dict[str, list[str]], list[str]]:
    """The words after the number that begins each line, by that number, and what is wrong with other lines."""
    table, faults = {}, []
    for line in read_lines(path):
        number, *words = line.split()
        if len(words) != fields or not number.isdecimal():
            faults.append(f"{path} has a line that is not a number and {fields} more words: {line[:80]!r}.")
        elif number in table:
            faults.append(f"{path} has several lines of number {number}.")
        else:
            table[number] = words
    return table, faults


def _box(words: list[str]) -> Box:
    try:
        x, y, width, height = map(float, words)
    except ValueError as error:
        raise RowError(
            Kind.BOX, f"bounding_boxes.txt has {' '.join(words)[:80]!r} where four numbers belong"
        ) from error
    return x, y, x + width, y + height
