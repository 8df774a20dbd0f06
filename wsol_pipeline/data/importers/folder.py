"""Your own images in folders: with splits, or a folder for each class of which splits are drawn.

    train/<class>/*.jpg  val/<class>/*.jpg  test/<class>/*.jpg    or    <class>/*.jpg
    boxes.csv                      a line for each box: an image may have several
    masks/<path of the image>.png  as large as the image; not black is the object

A boxes.csv to copy (UTF-8, commas), and the mask of its first image, masks/val/cat/tom.png:

    path,x0,y0,x1,y1
    val/cat/tom.jpg,12,30,118,96
    val/cat/tom.jpg,140,8,200,77
    test/dog/rex.jpg,0,0,64,48

Paths are relative to the source, and are the ids. Corners are left, top, right and bottom in pixels, counted from the
left and upper edge. (x1, y1) is the first pixel outside: 0,0,64,48 is all of an image of 64x48. Where yours is the last
one inside (0,0,63,47), or the first pixel is 1, say so with --convention.

An image of val or test needs a box, a mask or both; --boxes none takes labels alone. Classes are the sorted names of
the folders. Images are JPEG, PNG, WebP or BMP. Without train/, val/ and test/ a share of each class is drawn for val,
and one for test: of its images with a box or mask if any image has one, else of all. Photographs that EXIF asks to turn
are turned, as viewers and annotation tools show them: boxes and masks are for the upright image, or say --exif stored.
"""

import csv
import io
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal

from wsol_pipeline.data.importers import Source, below, faulty, folders_in, hold_out, images_below, nfc, read_text
from wsol_pipeline.data.schema import HELD_OUT, Box, Frame, Kind, Row, RowError
from wsol_pipeline.errors import DataError, UsageError, unknown
from wsol_pipeline.protocol import Role

COLUMNS = ["path", "x0", "y0", "x1", "y1"]
SIGNS = ",;\t"  # between columns: what is right, what Excel writes where commas are decimal, what is copied from it
MASKS = "masks"
# Folders of these names are no classes.
MEANT_AS_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}


@dataclass(frozen=True)
class Options:
    """Options of the folder layout."""

    convention: Literal["inclusive0", "inclusive1", "exclusive0"] = "exclusive0"
    """What the corners in boxes.csv mean: is (x1, y1) the last pixel inside the box, is the first pixel 0 or 1."""
    exif: Literal["upright", "stored"] = "upright"
    """What boxes and masks are drawn on: the image as viewers show it, or as stored, EXIF's orientation ignored."""
    val_share: float = 0.2
    """Share (0 to 1) of each class's images that become `val`, where there are no folders of splits."""
    test_share: float = 0.2
    """Share (0 to 1) of each class's images that become `test`, where there are no folders of splits."""
    seed: int = 0
    """Another seed draws other images for `val` and `test`."""

    def __post_init__(self) -> None:
        if not (self.val_share > 0 < self.test_share and self.val_share + self.test_share < 1):
            raise UsageError(
                "--val-share and --test-share must be over 0 and leave some images to train on but are "
                f"{self.val_share} and {self.test_share}."
            )


@dataclass(frozen=True)
class Found:
    """What was found beside the images: boxes by id, masks by the id of their image without its ending."""

    root: Path
    frame: Frame
    boxes: dict[str, list[Box]]
    masks: dict[str, Path]


def read(source: Path, options: Options) -> Source:
    """Find the images below `source`, with their boxes and masks; draw val and test if no folders say what they are."""
    faults: list[str] = []
    boxes, whole = _boxes(source / "boxes.csv", faults)
    found = Found(source, Frame(options.exif), boxes, _masks(source, faults))
    folders, divided = _folders(source, faults)
    classes = tuple(sorted({nfc(folder.name) for folder in folders[Role.TRAIN]}))
    rows = [
        row for role, own in folders.items() for folder in own for row in _rows(found, role, folder, classes, faults)
    ]
    if not divided:
        rows = _divided(rows, options)
    faults += _strays(found, [row for row in rows if row.role is not Role.TRAIN or not divided], rows)
    return Source(
        classes,
        options.convention,
        rows,
        faults=tuple(faults),
        folders=(source,),
        aside=(source / "boxes.csv",),
        benchmark=False,
        located=HELD_OUT if whole else (),  # no image is said to lack the box that a table has which cannot be read
    )


def _folders(source: Path, faults: list[str]) -> tuple[dict[Role, list[Path]], bool]:
    """The folders of classes of each split, and whether there are splits: if not, all are of train."""
    if (source / "train").is_dir():
        splits = [role for role in Role if (source / role.value).is_dir()]
        return {role: folders_in(source / role.value, faults) for role in splits}, True
    own = [folder for folder in folders_in(source, faults) if folder.name != MASKS] if source.is_dir() else []
    if not own or any(folder.name.lower() in MEANT_AS_SPLITS for folder in own):
        names = ", ".join(folder.name for folder in own[:5]) or "no folder"
        raise DataError(
            f"{source} is not in the folder layout: there is neither train/<class>/ (and val/, test/ beside it) nor a "
            f"folder for each class; it has {names}."
        )
    return {Role.TRAIN: own}, False


def _divided(rows: list[Row], options: Options) -> list[Row]:
    """`rows` with a share of each class as val, and one as test: of the images with a box or mask if any has one."""
    candidates = [row for row in rows if row.boxes or row.masks] or rows
    salt = f"{options.seed} " if options.seed else ""
    rows = hold_out(rows, (replace(row, role=Role.VAL) for row in candidates), options.val_share, salt)
    left = options.test_share / (1 - options.val_share)
    drawn = {row.id for row in rows if row.role is Role.VAL}
    others = (replace(row, role=Role.TEST) for row in candidates if row.id not in drawn)
    return hold_out(rows, others, left, salt)


def _rows(found: Found, role: Role, folder: Path, classes: tuple[str, ...], faults: list[str]) -> Iterator[Row]:
    for path in images_below(folder, faults):
        name = nfc(path.relative_to(found.root).as_posix())
        try:
            yield _row(found, role, name, path, _label(nfc(folder.name), role, classes))
        except RowError as error:
            yield faulty(role, name, error.fault)


def _label(name: str, role: Role, classes: tuple[str, ...]) -> int:
    if name not in classes:
        raise RowError(Kind.LABEL, str(unknown(f"class in {role.value}/", name, classes)))
    return classes.index(name)


def _row(found: Found, role: Role, name: str, path: Path, label: int) -> Row:
    own, mask = tuple(found.boxes.get(name, ())), found.masks.get(_stem(name))
    return Row(
        role,
        name,
        (label,),
        below(found.root, str(path.relative_to(found.root))),
        boxes=own,
        box_labels=(label,) * len(own),
        masks=(below(found.root, str(mask.relative_to(found.root))),) if mask else (),
        frame=found.frame,
    )


def _stem(name: str) -> str:
    return PurePosixPath(name).with_suffix("").as_posix()


def _masks(source: Path, faults: list[str]) -> dict[str, Path]:
    """The masks by the id of their image without its ending."""
    root, found = source / MASKS, {}
    for path in images_below(root, faults):
        if path.suffix == ".png":
            found[_stem(nfc(path.relative_to(root).as_posix()))] = path
        else:
            faults.append(f"{path.relative_to(source).as_posix()} is no mask: masks are masks/<path of the image>.png.")
    return found


def _strays(found: Found, held_out: list[Row], rows: list[Row]) -> Iterator[str]:
    """Boxes and masks of nothing."""
    for name in sorted(found.boxes.keys() - {row.id for row in rows}):
        yield f"boxes.csv has boxes of {name!r}, which is not an image below {found.root}."
    for name in sorted(found.masks.keys() - {_stem(row.id) for row in held_out}):
        yield f"{MASKS}/{name}.png is a mask of no image of val or test: it must be masks/<path of the image>.png."


def _boxes(path: Path, faults: list[str]) -> tuple[dict[str, list[Box]], bool]:
    """Boxes of each image, by id, and whether the file could be read to its end; none if there is no file.

    Puts what is wrong with it into `faults`.
    """
    found: dict[str, list[Box]] = defaultdict(list)
    if not path.exists():
        return found, True
    try:
        for number, line in _lines(path, faults):
            try:
                x0, y0, x1, y1 = (float(line[side]) for side in COLUMNS[1:])
            except (TypeError, ValueError):
                faults.append(f"{path} line {number}: a box is four numbers.")
            else:
                found[_id(line["path"])].append((x0, y0, x1, y1))
    except DataError as error:
        faults.append(str(error))
        return found, False
    except csv.Error as error:
        faults.append(f"Cannot read {path}: {error}.")
        return found, False
    return found, True


def _lines(path: Path, faults: list[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """The lines of a table by number. Of columns with other names or signs between them, which is a fault, the places
    count: it hides no other fault. Raises `DataError` if there are not as many."""
    text = read_text(path)
    head = text.partition("\n")[0].strip()[:100]
    sign = max(SIGNS, key=head.count)
    table = csv.DictReader(io.StringIO(text, newline=""), delimiter=sign)
    names = table.fieldnames or []
    if names != COLUMNS or sign != ",":
        parted = "" if sign == "," else f", with {sign!r} between its columns: save it with commas"
        fault = f"{path} must begin with the line {','.join(COLUMNS)} but begins with {head!r}{parted}."
        if len(names) != len(COLUMNS):
            raise DataError(fault)
        faults.append(fault)
        table.fieldnames = COLUMNS
        if names[-1][:1].isdigit():  # a table that begins with a box
            yield 1, dict(zip(COLUMNS, names, strict=True))
    yield from ((table.line_num, line) for line in table)


def _id(path: str) -> str:
    """A path as an id: tables have it in any Unicode form, with Windows' strokes or from the folder itself."""
    return nfc(path.replace("\\", "/").removeprefix("./"))
