"""PASCAL VOC, or your own data in the folders of its devkit.

    JPEGImages/<id>.jpg              Annotations/<id>.xml        (corners are inclusive, the first pixel is 1)
    ImageSets/<kind>/<list>.txt      SegmentationClass/<id>.png  (optional; 0 background, k + 1 class k, 255 void)

All of VOC2007 is annotated: Main/train, Main/val and Main/test are the splits. The test annotations of VOC2012 are not
public: there Main/val is the test split, as it is in papers, and a share of the training images is held out as `val`.
For segmentation choose --test Segmentation/val, and SBD's list as --train Segmentation/train_aug.

An object marked difficult is not scored, as in VOC's own evaluation, but a training image that shows it has its label,
as the labels of weakly supervised segmentation do. Images without a mask count in nothing that is read from masks.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsol_pipeline.data.images import MAX_BYTES, probe
from wsol_pipeline.data.importers import Source, below, faulty, hold_out, read_file, read_lines
from wsol_pipeline.data.importers._xml import Annotation, read_annotation
from wsol_pipeline.data.schema import Fault, Kind, Row, RowError
from wsol_pipeline.errors import DataError, UsageError, unknown
from wsol_pipeline.protocol import Role

CLASSES = [
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
]
NOTHING = "images without an object to score"


@dataclass(frozen=True)
class Options:
    """Options of the VOC layout; a list is a file of ImageSets, without `.txt`."""

    train: str = "Main/train"
    """List of the training images."""
    val: str = ""
    """List of the validation images. Default: Main/val beside the test list Main/test, else a share of the training
    images."""
    test: str = ""
    """List of the test images. Default: Main/test, or Main/val where there is none."""
    val_share: float = 0.1
    """Share (0 to 1) of the training images that becomes `val` where no list does."""
    class_names: str = ""
    """Text file, relative to the source, with a class name on each line in the order of the masks' values. Default:
    the classes that have a list <class>_train in ImageSets/Main, sorted; without such lists the 20 of VOC."""

    def __post_init__(self) -> None:
        if not 0 < self.val_share < 1:
            raise UsageError(f"--val-share must lie between 0 and 1 but got {self.val_share}.")


@dataclass(frozen=True)
class LabelImage:
    """A PNG whose values are labels, with a palette or grey."""

    path: Path

    def draw(self) -> NDArray[np.uint8]:
        """uint8 [H, W] as `ClassMask.draw`."""
        try:
            data = read_file(self.path, MAX_BYTES)
            probe(data)
            with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
                if image.mode not in ("P", "L"):
                    raise RowError(Kind.MASK, f"mask has mode {image.mode!r}: it must be a PNG with a palette or grey")
                return np.array(image)
        except (OSError, SyntaxError, ValueError) as error:
            raise RowError(Kind.MASK, f"mask cannot be read: {error}") from error


def read(source: Path, options: Options) -> Source:
    """Read lists and annotations below `source`: VOC2007 or VOC2012, or a folder that has one of them."""
    root = _root(source)
    classes = _classes(source, root, options)
    members = _members(root, options)
    found = {name: _annotation(root, name, classes) for names in members.values() for name in names}
    rows = [_row(root, role, name, found[name], classes) for role, names in members.items() for name in names]
    if Role.VAL not in members:
        as_val = (_row(root, Role.VAL, name, found[name], classes) for name in members[Role.TRAIN])
        rows = hold_out(rows, as_val, options.val_share)
    kept = [row for row in rows if row.labels or row.fault]
    multilabel = any(len(row.labels) > 1 for row in kept)
    left_out = {NOTHING: len(rows) - len(kept)} if len(rows) > len(kept) else {}
    return Source(tuple(classes), "inclusive1", kept, multilabel, left_out)


def _root(source: Path) -> Path:
    """The one folder with ImageSets and JPEGImages at `source` or where the archives put it."""
    places = [source, *sorted(source.glob("VOC*")), *sorted(source.glob("VOCdevkit/VOC*"))]
    roots = [place for place in places if (place / "ImageSets").is_dir() and (place / "JPEGImages").is_dir()]
    if not roots:
        raise DataError(f"{source} is not in the VOC layout: there is no folder with ImageSets and JPEGImages.")
    if len(roots) > 1:
        raise DataError(f"{source} has several datasets: give one of {', '.join(map(str, roots))} as --source.")
    return roots[0]


def _classes(source: Path, root: Path, options: Options) -> list[str]:
    if options.class_names:
        return [line.strip() for line in read_lines(source / options.class_names)]
    lists = (root / "ImageSets" / "Main").glob("*_train.txt")
    return sorted(path.name.removesuffix("_train.txt") for path in lists) or CLASSES


def _members(root: Path, options: Options) -> dict[Role, list[str]]:
    """The ids of each split in lists; without `val` if it is to be held out of `train`."""
    sets = root / "ImageSets"
    test = options.test or ("Main/test" if (sets / "Main/test.txt").exists() else "Main/val")
    val = options.val or ("Main/val" if test == "Main/test" else "")
    named = {Role.TRAIN: options.train, Role.VAL: val, Role.TEST: test}
    return {role: list(_listed(sets, name)) for role, name in named.items() if name}


def _listed(sets: Path, name: str) -> Iterator[str]:
    """The ids in a list: the first word of each line, or the name of a file.

    In a list of one class, -1 after an id says that the image does not show it, 0 that it shows difficult ones alone.
    """
    path = below(sets, f"{name}.txt")
    if not path.exists():
        known = (path.relative_to(sets).with_suffix("").as_posix() for path in sets.glob("*/*.txt"))
        raise unknown("image list", name, known)
    for line in read_lines(path):
        first, *rest = line.split()
        if rest not in (["-1"], ["0"]):
            yield PurePosixPath(first).name.removesuffix(".jpg")


def _annotation(root: Path, name: str, classes: list[str]) -> Annotation | Fault:
    """What is known of an image, or why nothing is."""
    try:
        found = read_annotation(below(root, f"Annotations/{name}.xml"))
    except RowError as error:
        return error.fault
    if strange := [thing.name for thing in found.objects if thing.name not in classes]:
        return Fault(Kind.LABEL, f"object is a {strange[0]!r:.80}; known classes: {', '.join(classes)}")
    return found


def _labels(found: Annotation | Fault, classes: list[str], role: Role) -> tuple[int, ...]:
    """The classes that an image shows; of a held-out one those that can be scored."""
    if isinstance(found, Fault):
        return ()
    seen = (thing for thing in found.objects if role is Role.TRAIN or not thing.difficult)
    return tuple(sorted({classes.index(thing.name) for thing in seen}))


def _row(root: Path, role: Role, name: str, found: Annotation | Fault, classes: list[str]) -> Row:
    if isinstance(found, Fault):
        return faulty(role, name, found)
    image, labels = below(root, f"JPEGImages/{name}.jpg"), _labels(found, classes, role)
    if role is Role.TRAIN:
        return Row(role, name, labels, image, found.size)
    scored = [thing for thing in found.objects if not thing.difficult]
    mask = below(root, f"SegmentationClass/{name}.png")
    return Row(
        role,
        name,
        labels,
        image,
        found.size,
        tuple(thing.box for thing in scored),
        tuple(classes.index(thing.name) for thing in scored),
        class_mask=LabelImage(mask) if mask.exists() else None,
    )
