"""PASCAL VOC, or your own data in the folders of its devkit.

    JPEGImages/<id>.jpg              Annotations/<id>.xml        (corners are inclusive, the first pixel is 1;
                                                                  other tools than VOC's: see --convention)
    ImageSets/<kind>/<list>.txt      SegmentationClass/<id>.png  (optional; 0 background, k + 1 class k, 255 void)

All of VOC2007 is annotated: Main/train, Main/val and Main/test are the splits. The test annotations of VOC2012 are not
public: there Main/val is the test split, as it is in papers, and a share of the training images is held out as `val`.
For segmentation choose --test Segmentation/val, and --train Segmentation/train with --sbd, or a list train_aug.

SBD (Hariharan et al. 2011) has class masks of 11,355 images of VOC2012: those that no other split has become training
images, 10,582 with the 1,464 of Segmentation/train. Their labels are the classes of these masks; one that is held out
for `val` has VOC's boxes and SBD's mask.

    benchmark_RELEASE/dataset/{train,val}.txt   cls/<id>.mat, img/<id>.jpg (where JPEGImages has none)

An object marked difficult is not scored, as in VOC's own evaluation, but a training image that shows it has its label,
as the labels of weakly supervised segmentation do. Images without a mask count in nothing that is read from masks.

Your own images may be .png, .jpeg, ... too. Where an annotation's width and height are those of the image as EXIF turns
it, the image is turned; a size of 0x0, or none, is not known.
"""

import io
import os
import struct
import zlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from wsol_pipeline.data.archives import unpacked
from wsol_pipeline.data.headers import IGNORED, MAX_BYTES, probe
from wsol_pipeline.data.importers import (
    Source,
    below,
    faulty,
    hold_out,
    is_hidden,
    is_image,
    nfc,
    read_file,
    read_lines,
)
from wsol_pipeline.data.importers._xml import Annotation, read_annotation
from wsol_pipeline.data.schema import Fault, Frame, Kind, Row, RowError
from wsol_pipeline.errors import DataError, UsageError, unknown
from wsol_pipeline.protocol import Role

CLASSES = [
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
]
MAX_MAT_BYTES = 2**24  # SBD's have a few kilobytes
_NO_MAT = (  # what scipy says of a file that MATLAB did not write
    MatReadError,
    IndexError,
    KeyError,
    MemoryError,
    NotImplementedError,
    OSError,
    OverflowError,
    RowError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
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
    sbd: str = ""
    """Folder or archive of SBD as downloaded (benchmark_RELEASE), absolute or relative to the source: more training
    images."""
    class_names: str = ""
    """Text file, relative to the source, with a class name on each line in the order of the masks' values. Default:
    the classes that have a list <class>_train in ImageSets/Main, sorted; without such lists the 20 of VOC."""

    convention: Literal["inclusive0", "inclusive1", "exclusive0"] = "inclusive1"
    """What corners in the XML mean: VOC's are the last pixel inside and count from 1; labelImg's and CVAT's from 0."""

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


@dataclass(frozen=True)
class Sbd:
    """One image of SBD: what it shows, as MATLAB wrote it."""

    path: Path

    def draw(self) -> NDArray[np.uint8]:
        """uint8 [H, W] as `ClassMask.draw`."""
        try:
            found = loadmat(io.BytesIO(read_file(self.path, MAX_MAT_BYTES)), variable_names=["GTcls"])
            labels_HW = found["GTcls"]["Segmentation"][0, 0]
        except _NO_MAT as error:
            raise RowError(Kind.MASK, f"{self.path} is not of SBD: {type(error).__name__}: {error}") from error
        if not isinstance(labels_HW, np.ndarray) or labels_HW.dtype != np.uint8 or labels_HW.ndim != 2:
            raise RowError(Kind.MASK, f"{self.path} is not of SBD: GTcls.Segmentation must be uint8 of two dimensions")
        return labels_HW


def read(source: Path, options: Options) -> Source:
    """Read lists and annotations below `source`: VOC2007 or VOC2012, or a folder that has one of them."""
    root = _root(source)
    classes = _classes(source, root, options)
    images = _images(root)
    members = _members(root, options, images)
    found = {name: _annotation(root, name, classes) for names in members.values() for name in names}
    rows = [_row(images, role, name, found[name], classes) for role, names in members.items() for name in names]
    more = _of_sbd(source, options, classes, set(found))
    rows += [_sbd_row(images, name, mask, classes) for name, mask in more.items()]
    if Role.VAL not in members:
        as_val = [_row(images, Role.VAL, name, found[name], classes) for name in members[Role.TRAIN]]
        for name, mask in more.items():
            row = _row(images, Role.VAL, name, _annotation(root, name, classes), classes)
            as_val.append(replace(row, class_mask=mask))
        rows = hold_out(rows, as_val, options.val_share)
    kept = [row for row in rows if row.labels or row.fault]
    aside = [row.image for row in rows if not (row.labels or row.fault) and isinstance(row.image, Path)]
    return Source(
        tuple(classes),
        options.convention,
        kept,
        any(len(row.labels) > 1 for row in kept),
        {NOTHING: len(aside)} if aside else {},
        aside=aside,
        benchmark=classes == CLASSES,
    )


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
    lists = (path.name for path in (root / "ImageSets" / "Main").glob("*_train.txt") if not is_hidden(path.name))
    return sorted(nfc(name.removesuffix("_train.txt")) for name in lists) or CLASSES


@dataclass(frozen=True)
class Images:
    """The files of JPEGImages by id, and the dataset's folder."""

    root: Path
    names: dict[str, list[str]]

    def path(self, name: str) -> Path:
        """The image of an id, whatever its ending. Raises `RowError` if two files could be it."""
        own = self.names.get(nfc(name), [])
        if len(own) > 1 and f"{name}.jpg" not in own:
            raise RowError(Kind.FILE, f"JPEGImages has {' and '.join(own)}: which one is image {name!r}?")
        return below(self.root, f"JPEGImages/{own[0] if len(own) == 1 else f'{name}.jpg'}")


def _images(root: Path) -> Images:
    names: dict[str, list[str]] = defaultdict(list)
    for entry in os.scandir(root / "JPEGImages"):
        if is_image(entry.name) and not is_hidden(entry.name):
            names[nfc(Path(entry.name).stem)].append(entry.name)
    return Images(root, names)


def _members(root: Path, options: Options, images: Images) -> dict[Role, list[str]]:
    """The ids of each split in lists; without `val` if it is to be held out of `train`."""
    sets = root / "ImageSets"
    test = options.test or ("Main/test" if (sets / "Main/test.txt").exists() else "Main/val")
    val = options.val or ("Main/val" if test == "Main/test" else "")
    named = {Role.TRAIN: options.train, Role.VAL: val, Role.TEST: test}
    return {role: list(_listed(sets, name, images)) for role, name in named.items() if name}


def _of_sbd(source: Path, options: Options, classes: list[str], known: set[str]) -> dict[str, Sbd]:
    """The images of SBD that no list of VOC has, with their masks."""
    if not options.sbd:
        return {}
    if classes != CLASSES:
        raise UsageError(f"SBD has the 20 classes of VOC, but this dataset has {', '.join(classes)}.")
    given = unpacked(source / options.sbd)
    places = (given, given / "dataset", given / "benchmark_RELEASE/dataset")
    folder = next((place for place in places if (place / "cls").is_dir()), None)
    if folder is None:
        raise DataError(f"{given} is not SBD as it comes: there is no dataset/cls.")
    names = [line.strip() for part in ("train", "val") for line in read_lines(folder / f"{part}.txt")]
    return {name: Sbd(folder / "cls" / f"{PurePosixPath(name).name}.mat") for name in names if name not in known}


def _sbd_row(images: Images, name: str, mask: Sbd, classes: list[str]) -> Row:
    """A training image of SBD; what its mask shows are its labels."""
    try:
        labels_HW = mask.draw()
        values = np.unique(labels_HW[(labels_HW > 0) & (labels_HW != IGNORED)])
        if strange := values[values > len(classes)].tolist():
            raise RowError(Kind.LABEL, f"SBD's mask has the value {strange[0]}; known: 1..{len(classes)} classes")
        image = images.path(name)
    except RowError as error:
        return faulty(Role.TRAIN, name, error.fault)
    if not image.exists():
        image = mask.path.parents[1] / "img" / f"{mask.path.stem}.jpg"
    height, width = labels_HW.shape
    return Row(Role.TRAIN, name, tuple((values - 1).tolist()), image, (width, height))


def _listed(sets: Path, name: str, images: Images) -> Iterator[str]:
    """The ids in a list. In one of a class, -1 after an id says that the image does not show it, 0 that it shows
    difficult ones alone."""
    path = below(sets, f"{name}.txt")
    if not path.exists():
        known = (path.relative_to(sets).with_suffix("").as_posix() for path in sets.glob("*/*.txt"))
        raise unknown("image list", name, known)
    for line in read_lines(path):
        id_, flag = _id_and_flag(line.strip(), images)
        if flag not in ("-1", "0"):
            yield id_


def _id_and_flag(line: str, images: Images) -> tuple[str, str]:
    """What a line names: the whole of it, all but the last word, or its first word if the others are no flag.

    Ids may have blanks. Any of the three may be the name of a file, of any ending, with folders before it.
    """
    *_, last = line.split()
    forms = (line, line.removesuffix(last).rstrip(), line.split()[0])
    known = next((form for form in forms if nfc(_stem(form)) in images.names), None)
    of_flag = forms[1] if last in ("-1", "0", "1") and forms[1] else line
    chosen = known or (forms[2] if "/" in line else of_flag)
    return _stem(chosen), "" if chosen == line else last


def _stem(name: str) -> str:
    """The name of a file as an id."""
    last = PurePosixPath(name).name
    return last.removesuffix(PurePosixPath(last).suffix) if is_image(last) else last


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


def _row(images: Images, role: Role, name: str, found: Annotation | Fault, classes: list[str]) -> Row:
    if isinstance(found, Fault):
        return faulty(role, name, found)
    try:
        image, mask = images.path(name), below(images.root, f"SegmentationClass/{name}.png")
    except RowError as error:
        return faulty(role, name, error.fault)
    labels = _labels(found, classes, role)
    scored = [thing for thing in found.objects if not thing.difficult]
    return Row(  # a training row's boxes and mask are for `data/audit.py` alone
        role,
        name,
        labels,
        image,
        found.size,
        tuple(thing.box for thing in scored),
        tuple(classes.index(thing.name) for thing in scored),
        class_mask=LabelImage(mask) if mask.exists() else None,
        frame=Frame.SIZED,
    )
