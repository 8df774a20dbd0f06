"""COCO 2014 or 2017 instances, or your own data in their JSON.

    annotations/instances_<set>.json     <set>/<file_name> or images/<set>/<file_name>      set: train2017, val2017, ...

COCO's test annotations are not public, so its validation set is the test split and a share of the training images is
held out as `val`, unless --val names a set. Classes are the categories by id that a training image shows. Boxes x, y,
width, height become x, y, x + width, y + height.

Images without instances are left out. A crowd region counts neither way, nor does a category that no training image
shows; a training image that shows a crowd has its label. Of overlapping instances the smaller one has the pixels.
Images of which some instance has no segmentation have no mask.

What other tools write is read too: numbers as text or floats, file names that begin with the set's folder, boxes and
polygons that leave the image by less than half of themselves (they are cut off at its edge), polygons of one or two
points beside sound ones (they are dropped). Where width and height are those of the image as EXIF turns it, it is
turned.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as polygons

from wsol_pipeline.data.headers import IGNORED
from wsol_pipeline.data.importers import Source, below, faulty, hold_out, read_file
from wsol_pipeline.data.schema import Box, Fault, Frame, Kind, Note, Row, RowError, Size
from wsol_pipeline.errors import DataError, UsageError, unknown
from wsol_pipeline.protocol import Role

MAX_JSON_BYTES = 2 * 2**30  # the largest of COCO's has 0.5 GB
NO_INSTANCE = "images without an instance to learn or score"
UNSEEN = "categories that no training image shows"
PUBLISHED_CLASSES = 80


@dataclass(frozen=True)
class Options:
    """Options of the COCO layout; a set is what follows `instances_` in the name of a file of annotations/."""

    train: str = "train2017"
    """Set of the training images."""
    val: str = ""
    """Set of the validation images. Default: a share of the training images."""
    test: str = "val2017"
    """Set of the test images."""
    val_share: float = 0.1
    """Share (0 to 1) of the training images that becomes `val` where no set does."""

    def __post_init__(self) -> None:
        if not 0 < self.val_share < 1:
            raise UsageError(f"--val-share must lie between 0 and 1 but got {self.val_share}.")


@dataclass(frozen=True)
class Instances:
    """The segmentations of an image of `size` (width, height), each with its value in the mask."""

    size: Size
    parts: tuple[tuple[int, Any], ...]

    def draw(self) -> NDArray[np.uint8]:
        """uint8 [H, W] as `ClassMask.draw`: what is ignored first, then instances from the largest on."""
        width, height = self.size
        drawn = [(value, segment(shape, width, height)) for value, shape in self.parts]
        labels_HW = np.zeros((height, width), np.uint8)
        for value, mask_HW in sorted(drawn, key=lambda part: (part[0] != IGNORED, -part[1].sum())):
            labels_HW[mask_HW] = value
        return labels_HW


@dataclass(frozen=True)
class Set:
    """One file of annotations: the folder of its images, its images, annotations by image id, names by category id."""

    name: str
    folder: Path
    images: list[dict[str, Any]]
    annotations: Mapping[Any, list[dict[str, Any]]]
    categories: dict[int, str]
    faults: tuple[str, ...]


def read(source: Path, options: Options) -> Source:
    """Read the annotations below `source`."""
    names = {Role.TRAIN: options.train, Role.VAL: options.val, Role.TEST: options.test}
    sets = {role: _set(source, name) for role, name in names.items() if name}
    named = _categories(sets.values())
    ids = (note.get("category_id") for notes in sets[Role.TRAIN].annotations.values() for note in notes)
    shown = {category for category in ids if isinstance(category, int)}
    labels = {category: label for label, category in enumerate(category for category in named if category in shown)}
    if len(labels) >= IGNORED:
        raise DataError(f"{source} has {len(labels)} categories but a class mask holds {IGNORED - 1} at most.")
    rows = [row for role, part in sets.items() for row in _rows(role, part, named, labels)]
    if Role.VAL not in sets:
        rows = hold_out(rows, _rows(Role.VAL, sets[Role.TRAIN], named, labels), options.val_share)
    kept = [row for row in rows if row.labels or row.fault]
    left_out = {NO_INSTANCE: len(rows) - len(kept), UNSEEN: len(named) - len(labels)}
    classes = tuple(named[category] for category in labels)
    return Source(
        classes,
        "exclusive0",
        kept,
        True,
        {what: count for what, count in left_out.items() if count},
        faults=tuple(fault for part in sets.values() for fault in part.faults),
        aside=[row.image for row in rows if not (row.labels or row.fault) and isinstance(row.image, Path)],
        benchmark=len(classes) == PUBLISHED_CLASSES,
    )


def _set(source: Path, name: str) -> Set:
    """One set. Raises `DataError` unless its file is in COCO's form."""
    path = below(source, f"annotations/instances_{name}.json")
    if not path.exists():
        known = [file.stem.removeprefix("instances_") for file in path.parent.glob("instances_*.json")]
        if not known:
            raise DataError(f"{source} is not in the COCO layout: there is no annotations/instances_<set>.json.")
        raise unknown("set of images", name, known)
    folders = [folder for folder in (source / name, source / "images" / name) if folder.is_dir()]
    if not folders:
        raise DataError(f"The images of {path} are missing: there is neither {name}/ nor images/{name}/ in {source}.")
    try:
        data = json.loads(read_file(path, MAX_JSON_BYTES))
        kinds = ("images", "annotations", "categories")
        images, notes, categories = ({_key(entry["id"]): entry for entry in data[kind]} for kind in kinds)
        faults = [fault for kind in kinds for fault in _repeated(data, kind, path)]
        grouped = defaultdict(list)
        for note in notes.values():
            note["category_id"] = _key(note.get("category_id"))
            grouped[_key(note.get("image_id"))].append(note)
        names = {int(category): str(entry["name"]) for category, entry in categories.items()}
        for number, image in images.items():
            image |= {"id": number, "file_name": str(image["file_name"])}
    except (RowError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise DataError(f"{path} is not in COCO's form: {type(error).__name__}: {error}.") from error
    strays = [number for number in grouped if number not in images]
    faults += [f"{path} has annotations of image {number!r}, which it does not list." for number in strays]
    return Set(name, folders[0], list(images.values()), grouped, names, tuple(faults))


def _key(value: Any) -> Any:
    """An id; as a whole number if it is one that was written as text or as a float."""
    if isinstance(value, str) and value.strip().isdecimal():
        return int(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _repeated(data: Any, kind: str, path: Path) -> list[str]:
    counts = Counter(_key(entry["id"]) for entry in data[kind])
    twice = [number for number, count in counts.items() if count > 1]
    return [f"{path} has {number!r} more than once among the ids of {kind!r}: ids must be unique." for number in twice]


def _categories(sets: Iterable[Set]) -> dict[int, str]:
    """Names by category id, in the order of ids. Raises `DataError` if two sets differ on one."""
    pairs = sorted({pair for part in sets for pair in part.categories.items()})
    named = dict(pairs)
    if len(named) < len(pairs):
        twice = next(pair for pair in pairs if named[pair[0]] != pair[1])
        raise DataError(f"The sets differ on category {twice[0]}: {twice[1]!r} and {named[twice[0]]!r}.")
    return named


def _rows(role: Role, part: Set, named: Mapping[int, str], labels: Mapping[int, int]) -> list[Row]:
    return [_row(role, part, image, named, labels) for image in part.images]


def _row(role: Role, part: Set, image: dict[str, Any], named: Mapping[int, str], labels: Mapping[int, int]) -> Row:
    """One image; its labels are the classes that it shows, of a held-out one those with an instance to score."""
    name = f"{part.name}/{image['file_name']}"
    notes = part.annotations.get(image["id"], [])
    try:
        name, path = _file(part, image["file_name"])
        if strange := [note for note in notes if note["category_id"] not in named]:
            raise RowError(
                Kind.LABEL,
                f"category {strange[0]['category_id']!r} of annotation {strange[0]['id']!r} is not listed",
            )
        size = _pixels(image["width"]), _pixels(image["height"])
        if role is Role.TRAIN:
            known = {labels[note["category_id"]] for note in notes}
            drawn = _mask(notes, [_without_lines(note.get("segmentation")) for note in notes], size, labels)
            # its mask is for `data/audit.py` alone
            return Row(role, name, tuple(sorted(known)), path, size, class_mask=drawn, frame=Frame.SIZED)
        return _held_out(role, name, path, size, notes, labels)
    except RowError as error:
        fault = error.fault
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        fault = Fault(Kind.ANNOTATION, f"annotation is not in COCO's form: {type(error).__name__}: {error}")
    return faulty(role, name, fault)


def _held_out(
    role: Role, name: str, path: Path, size: Size, notes: list[dict[str, Any]], labels: Mapping[int, int]
) -> Row:
    """A row with boxes and a mask; its labels are those of the instances that are scored."""
    scored = [note for note in notes if not _is_crowd(note) and note["category_id"] in labels]
    of_boxes, given = tuple(labels[note["category_id"]] for note in scored), [_box(note) for note in scored]
    boxes = [_clipped(box, size) for box in given]
    drawn = [note.get("segmentation") for note in notes]
    shapes = [_without_lines(shape) for shape in drawn]
    clipped = boxes != given or any(_leaves(shape, size) for shape in shapes)
    dropped = any(shape and shape != before for shape, before in zip(shapes, drawn, strict=True))
    return Row(
        role,
        name,
        tuple(sorted(set(of_boxes))),
        path,
        size,
        tuple(boxes),
        of_boxes,
        class_mask=_mask(notes, shapes, size, labels),
        frame=Frame.SIZED,
        notes=(Note.CLIPPED,) * clipped + (Note.RING,) * dropped,
    )


def _file(part: Set, name: str) -> tuple[str, Path]:
    """Id and path of an image by its file name; some exports put the set's folder before it, or write Windows' strokes.

    Raises `RowError` if it leads out of the folder.
    """
    plain, turned = PurePosixPath(name), PurePosixPath(name.replace("\\", "/"))
    cut = next((at for at, folder in enumerate(turned.parts) if folder not in ("images", part.name)), 0)
    paths = {form: below(part.folder, str(form)) for form in (plain, turned, PurePosixPath(*turned.parts[cut:]))}
    form = next((form for form, path in paths.items() if path.is_file()), plain)
    return f"{part.name}/{form.as_posix()}", paths[form]


def _is_crowd(note: dict[str, Any]) -> bool:
    return bool(_key(note.get("iscrowd")))


def _pixels(side: Any) -> int:
    """A width or height. Raises `ValueError` if it is no whole number."""
    if float(side) != int(float(side)):
        raise ValueError(f"{side!r:.40} is no number of pixels")
    return int(float(side))


def _box(note: dict[str, Any]) -> Box:
    x, y, width, height = map(float, note["bbox"])
    if not (width > 0 and height > 0):
        raise RowError(
            Kind.BOX, f"box {note['bbox']} of annotation {note['id']!r} has no area: it must be x, y, width, height"
        )
    return x, y, round(x + width, 2), round(y + height, 2)  # the files' own precision: no 640.0000001 of 640


def _clipped(box: Box, size: Size) -> Box:
    """The box cut off at the image's edge if more than half of it is on the image; else it is left to be refused."""
    x0, y0, x1, y1 = max(box[0], 0.0), max(box[1], 0.0), min(box[2], size[0]), min(box[3], size[1])
    left = max(x1 - x0, 0) * max(y1 - y0, 0)
    return (x0, y0, x1, y1) if 2 * left > (box[2] - box[0]) * (box[3] - box[1]) else box


def _without_lines(shape: Any) -> Any:
    """A segmentation without polygons of less than three points, if it has others or these are empty."""
    if not isinstance(shape, list):
        return shape
    rings = [ring for ring in shape if not (isinstance(ring, list) and len(ring) in (0, 2, 4))]
    return rings if rings or not any(shape) else shape


def _leaves(shape: Any, size: Size) -> bool:
    """Whether a polygon goes over the edge of the image by more than the pixel that rounding does."""
    rings = shape if isinstance(shape, list) else []
    return any(
        isinstance(ring, list) and len(ring) % 2 == 0 and not _is_within(np.array(ring, np.float64), size, (1, 1))
        for ring in rings
    )


def _is_within(ring: NDArray[np.float64], size: Size, margin: Size) -> bool:
    """Whether all points of a polygon are on the image, or not further from it than `margin` (x, y)."""
    points = ring.reshape(-1, 2)
    return bool(((points >= np.negative(margin)) & (points <= np.add(size, margin))).all())


def _mask(notes: list[dict[str, Any]], shapes: list[Any], size: Size, labels: Mapping[int, int]) -> Instances | None:
    """What is to be drawn of an image; none if part of it would be missing."""
    if not all(shapes):
        return None
    values = (IGNORED if _is_crowd(note) else labels.get(note["category_id"], IGNORED - 1) + 1 for note in notes)
    return Instances(size, tuple(zip(values, shapes, strict=True)))


def segment(shape: Any, width: int, height: int) -> NDArray[np.bool_]:
    """The pixels [H, W] of a segmentation as the files have it: polygons, or the runs of a mask.

    Raises `RowError` if it does not fit the image.
    """
    try:
        if isinstance(shape, dict):
            return _filled(shape, width, height)
        rings = [np.array(ring, np.float64) for ring in shape]
        for ring in rings:
            _check_ring(ring, width, height)
        encoded = polygons.frPyObjects([ring.tolist() for ring in rings], height, width)
        return np.asarray(polygons.decode(polygons.merge(encoded)), bool)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise RowError(Kind.MASK, f"segmentation cannot be drawn: {type(error).__name__}: {error}") from error


def _check_ring(ring: NDArray[np.float64], width: int, height: int) -> None:
    """At least a triangle (four numbers would be drawn as a box), and no further off the image than its own size."""
    if ring.ndim == 0:
        raise RowError(
            Kind.MASK, "segmentation is a list of numbers: it must be a list of polygons, each a list x, y, ..."
        )
    if ring.ndim != 1 or len(ring) < 6 or len(ring) % 2:
        raise RowError(Kind.MASK, f"polygon has the shape {ring.shape}: it must be x, y of at least three points")
    if not _is_within(ring, (width, height), (width, height)):
        raise RowError(Kind.MASK, f"polygon is not on the image of {width}x{height}")


def _filled(shape: dict[str, Any], width: int, height: int) -> NDArray[np.bool_]:
    """Runs, down the columns, that are outside and inside in turn.

    Not by pycocotools: where runs end too early it leaves the rest of the mask as the memory was.
    """
    lengths = _lengths(shape["counts"])
    if list(shape["size"]) != [height, width] or sum(lengths) != height * width or min(lengths) < 0:
        raise RowError(
            Kind.MASK,
            f"RLE of {sum(lengths)} pixels and size {shape['size']} does not fit the image of {width}x{height}",
        )
    return np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(width, height).T


def _lengths(counts: list[int] | str) -> list[int]:
    """Lengths of runs: as they are, or from COCO's compressed text.

    There a number is groups of 5 bits from the lowest on, a character each (from "0" on; 32 says that more follow, 16
    in the last is the sign), and from the fourth on it is the difference to the length before the last.
    """
    if not isinstance(counts, str):
        return [int(count) for count in counts]
    lengths: list[int] = []
    value = shift = 0
    for code in counts.encode():
        value |= (code - 48 & 31) << shift
        shift += 5
        if shift > 60:
            raise RowError(Kind.MASK, "RLE has a number of over 60 bits")
        if code - 48 & 32:
            continue
        if code - 48 & 16:
            value -= 1 << shift
        lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
        value = shift = 0
    return lengths
