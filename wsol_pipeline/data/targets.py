"""Boxes that stand in for true ones where models are chosen: annotated by hand for some images, or made by a machine.

A file is CSV, `path,x0,y0,x1,y1` and if wanted `score`, `label`, with the paths that the dataset has as ids; or COCO's
results, a JSON list of `image_id`, `bbox` (x, y, width, height); or COCO's instances, as CVAT exports them. A line
without coordinates is an image that nobody has annotated yet.
"""

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsol_pipeline.data.dataset import Dataset
from wsol_pipeline.data.reader import Batch, ReadConfig, RowsShown, eval_rows
from wsol_pipeline.data.schema import BOX_CONVENTIONS, Box
from wsol_pipeline.errors import DataError, UsageError, unknown
from wsol_pipeline.protocol import Role
from wsol_pipeline.storage import Store

COLUMNS = ("path", "x0", "y0", "x1", "y1")
DRAWN_BY, DISAGREEMENT = "drawn_by", "disagreement"  # a column of files of `wsol annotate`, where images are no sample
MADE_BY = "made_by"  # a column of files of `wsol propose`: the only selector that they may be read as
SLACK = 1.0  # pixels that a box may lie off its image: it is cut
LEAST_COVERAGE = 0.9  # share of the validation images that a machine's file has to have boxes of
MOST_LINES = 5  # that an error names


class Line(NamedTuple):
    """A box of a file, by the line (or the number in a JSON list) where it stands."""

    number: int
    id: str
    box: Box
    label: str
    made_by: str = ""
    drawn_by: str = ""


@dataclass(frozen=True)
class Targets:
    """Boxes by image id, as a file had them, and the SHA-256 of the file with its convention."""

    kind: str  # "annotated" | "pseudo" | ...
    convention: str
    boxes: dict[str, list[Box]]
    labels: dict[str, list[int]]  # class of each box
    sha256: str
    biased: bool = False  # images that a model finds hard: they choose, and measure nothing

    @property
    def truth(self) -> str:
        """What counts that were made with them call them."""
        return f"{self.kind}:{self.sha256[:16]}"

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    @staticmethod
    def from_dict(data: dict[str, Any]) -> "Targets":
        boxes = {id: [tuple(box) for box in found] for id, found in data["boxes"].items()}
        return Targets(**{**data, "boxes": boxes})


@dataclass(frozen=True)
class TargetRows(RowsShown):
    """The rows of `val` (a `LabelledSplit`) that have a target, in the place of boxes, which are never read."""

    targets: Targets

    @property
    def box_convention(self) -> str:
        return self.targets.convention

    def batches(self) -> Iterator[Batch]:
        """All rows of this rank once, in order."""
        for batch in self.rows.batches():
            boxes = [np.array(self.targets.boxes[id], np.float32) for id in batch.ids]
            labels = [np.array(self.targets.labels[id], np.int64) for id in batch.ids]
            yield replace(batch, boxes=boxes, box_labels=labels)


def target_rows(
    dataset: Dataset, targets: Targets, config: ReadConfig, geometry: str, batch_size: int, rank: int = 0,
    world: int = 1,
) -> TargetRows:  # fmt: skip
    """The rows of validation that `targets` are of."""
    split = dataset.val_labels
    at = tuple(number for number, id in enumerate(split.ids) if id in targets.boxes)
    return TargetRows(eval_rows(split, config, geometry, batch_size, rank=rank, world=world, at=at), targets)


def read_targets(
    file: str, dataset: Dataset, kind: str, convention: str = "exclusive0", allow_partial: bool = False
) -> Targets:
    """The boxes of `file` for validation images; those of training images are left out.

    A `kind` but "annotated" has one box an image, and boxes of nine in ten images unless `allow_partial`.

    Raises:
        UsageError: an unknown convention, or a file that was made by something else than `kind`.
        DataError: a file that is not to be trusted, with its lines: it is of unknown images, of test images (they would
            leak into a choice), of too few, or has boxes that are none.
    """
    if convention not in BOX_CONVENTIONS:
        raise unknown("box convention", convention, BOX_CONVENTIONS)
    data = _bytes(file)
    lines = list(_coco(file, data, dataset) if file.endswith(".json") else _csv(file, data))
    _check_maker(file, lines, kind)
    split = dataset.val_labels
    rows = {id: row for row, id in enumerate(split.ids)}
    _check_images(file, lines, rows, dataset)
    own = [line for line in lines if line.id in rows]
    if not own:
        raise DataError(f"{file} has no box of any of the {len(rows):,} validation images.")
    if max(value for line in own for value in line.box) <= 1:
        raise DataError(f"{file} has no corner over 1: shares of an image's sides, it seems, where pixels are meant.")
    if kind != "annotated":
        _check_single(file, own)
    boxes: dict[str, list[Box]] = {}
    labels: dict[str, list[int]] = {}
    faults = []
    for line in own:
        row = rows[line.id]
        size_wh = tuple(split.sizes_N2[row].tolist())
        box, label = _cut(line.box, size_wh, convention), _label(line, split.labels[row], dataset)
        if box is None or label is None:
            faults.append((line, size_wh if box is None else f"label {line.label!r}"))
        else:
            boxes.setdefault(line.id, []).append(box)
            labels.setdefault(line.id, []).append(label)
    if faults:
        told = "; ".join(f"line {line.number}: {line.box} of {line.id}, {what}" for line, what in faults[:MOST_LINES])
        raise DataError(f"{file} has {len(faults)} boxes that are none of their image ({convention}; {told}).")
    if kind != "annotated" and len(boxes) < LEAST_COVERAGE * len(rows) and not allow_partial:
        raise DataError(
            f"{file} has boxes of {len(boxes):,} of {len(rows):,} validation images ({len(boxes) / len(rows):.0%}), "
            f"less than {LEAST_COVERAGE:.0%}: what it lacks may be what is hard. --allow-partial takes it as it is."
        )
    biased = any(line.drawn_by == DISAGREEMENT for line in own)
    return Targets(kind, convention, boxes, labels, hashlib.sha256(convention.encode() + data).hexdigest(), biased)


def described(targets: Targets, dataset: Dataset) -> str:
    """What a file of boxes is like, in a line: coverage, and how large its boxes are."""
    x0, y0, x1, y1, width, height = _with_sizes(targets, dataset).T
    touching_N = (x0 <= 0).astype(int) + (y0 <= 0) + (x1 >= width) + (y1 >= height)
    areas_N, images = shares(targets, dataset), dataset.val_labels.num_rows
    return (
        f"{targets.kind}: boxes of {len(targets.boxes):,} of {images:,} validation images "
        f"({len(targets.boxes) / images:.0%}); share of the image, quartiles {quartiles(areas_N)}; the whole image "
        f"{(areas_N >= 1).mean():.0%}; three borders or more {(touching_N >= 3).mean():.0%}"
    )


def shares(targets: Targets, dataset: Dataset) -> NDArray[np.float64]:
    """The share of its image that each box takes, [N]."""
    x0, y0, x1, y1, width, height = _with_sizes(targets, dataset).T
    found: NDArray[np.float64] = (x1 - x0) * (y1 - y0) / (width * height)
    return found


def quartiles(shares_N: NDArray[np.float64]) -> str:
    """`0.21, 0.34, 0.50`."""
    return ", ".join(f"{value:.2f}" for value in np.quantile(shares_N, [0.25, 0.5, 0.75]))


def _with_sizes(targets: Targets, dataset: Dataset) -> NDArray[np.float64]:
    """Each box as half-open pixels, with width and height of its image, [N, 6]."""
    sizes = dict(zip(dataset.val_labels.ids, dataset.val_labels.sizes_N2.tolist(), strict=True))
    boxes = ((id, edges(box, targets.convention)) for id, of in targets.boxes.items() for box in of)
    return np.array([(*box, *sizes[id]) for id, box in boxes], np.float64)


def edges(box: Box, convention: str) -> Box:
    """A box in a convention as half-open pixels counted from 0."""
    x0, y0, x1, y1 = box
    first, after = (1 if convention == "inclusive1" else 0), (1 if convention == "inclusive0" else 0)
    return x0 - first, y0 - first, x1 + after, y1 + after


def _bytes(file: str) -> bytes:
    folder, name = file.rsplit("/", 1) if file.startswith("s3://") else (str(Path(file).parent), Path(file).name)
    try:
        return Store.at(folder).read(name)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise UsageError(f"There is no file of boxes at {file!r}.") from error


def _csv(file: str, data: bytes) -> Iterator[Line]:
    try:
        reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig")))
        if missing := set(COLUMNS) - set(reader.fieldnames or ()):
            raise DataError(f"{file} needs the columns {','.join(COLUMNS)} but lacks {', '.join(sorted(missing))}.")
        for row in reader:
            corners = [(row[name] or "").strip() for name in COLUMNS[1:]]
            if any(corners):
                more = (row.get(name) or "" for name in ("label", MADE_BY, DRAWN_BY))
                yield Line(reader.line_num, row["path"], _box(file, reader.line_num, corners), *more)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file} cannot be read as CSV: {error}.") from error


def _coco(file: str, data: bytes, dataset: Dataset) -> Iterator[Line]:
    try:
        found = json.loads(data)
        results = _as_results(found, dataset) if isinstance(found, dict) else found
        for number, result in enumerate(results, start=1):
            x, y, width, height = _box(file, number, result["bbox"])
            yield Line(number, str(result["image_id"]), (x, y, x + width, y + height), str(result.get("label", "")))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file} holds neither COCO results (a list of image_id, bbox) nor instances (images, annotations): "
            f"{error!r}."
        ) from error


def _as_results(instances: dict[str, Any], dataset: Dataset) -> list[dict[str, Any]]:
    """COCO's instances with the dataset's ids for images and names for classes."""
    known = set(dataset.val_labels.ids)
    ids = by_copy(dataset.val_labels.ids)
    names = {category["id"]: category["name"] for category in instances.get("categories", ())}
    images = {image["id"]: str(image["file_name"]) for image in instances["images"]}
    return [
        {
            "image_id": name if name in known else ids.get(copy_stem(PurePosixPath(name).name), name),
            "bbox": note["bbox"],
            "label": names.get(note.get("category_id"), ""),
        }
        for note in instances["annotations"]
        for name in [images[note["image_id"]]]
    ]


def copy_stem(id: str) -> str:
    """What the copy that `wsol annotate` lays out of an image is called, without its ending."""
    return str(PurePosixPath(id.replace("/", "__")).with_suffix(""))


def by_copy(ids: Sequence[str]) -> dict[str, str]:
    """Ids by the names of their copies, where these tell them apart."""
    count = Counter(map(copy_stem, ids))
    return {copy_stem(id): id for id in ids if count[copy_stem(id)] == 1}


def _box(file: str, number: int, corners: Any) -> Box:
    try:
        x0, y0, x1, y1 = (float(value) for value in corners)
    except (ValueError, TypeError):
        raise DataError(f"{file}, line {number}: {list(corners)} are not four numbers.") from None
    return x0, y0, x1, y1


def _check_maker(file: str, lines: list[Line], kind: str) -> None:
    """Raise `UsageError` for boxes that would be recorded as made by something else."""
    if made := next((line.made_by for line in lines if line.made_by not in ("", kind)), ""):
        raise UsageError(f"{file} was made by {made}: it is read as {made}:{file} alone, so that this is recorded.")


def _check_images(file: str, lines: list[Line], rows: dict[str, int], dataset: Dataset) -> None:
    """Raise `DataError` for images that the dataset does not have, or that are of test."""
    strange = [line for line in lines if line.id not in rows]
    if not strange:
        return
    test, train = (set(dataset.ids_of(role)) for role in (Role.TEST, Role.TRAIN))
    if leaks := [line for line in strange if line.id in test]:
        raise DataError(f"{file} names test images ({_told(leaks)}): test would leak into a choice.")
    if unknown_ := [line for line in strange if line.id not in train]:
        example = next(iter(rows), "")
        raise DataError(f"{file} names images that the dataset does not have ({_told(unknown_)}); one is {example!r}.")


def _check_single(file: str, lines: list[Line]) -> None:
    seen: dict[str, int] = {}
    for line in lines:
        if line.id in seen:
            both = f"lines {seen[line.id]} and {line.number}"
            raise DataError(f"{file} has two boxes of {line.id} ({both}): one is meant.")
        seen[line.id] = line.number


def _cut(box: Box, size_wh: tuple[int, ...], convention: str) -> Box | None:
    """The box within its image; None if it is none, or lies off it by more than `SLACK`."""
    x0, y0, x1, y1 = edges(box, convention)
    width, height = size_wh
    off = max(-x0, -y0, x1 - width, y1 - height)
    if not (x1 > x0 and y1 > y0 and off <= SLACK):  # not a number either
        return None
    within = max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))
    dx0, dy0, dx1, dy1 = (now - was for now, was in zip(within, (x0, y0, x1, y1), strict=True))
    return box[0] + dx0, box[1] + dy0, box[2] + dx1, box[3] + dy1


def _label(line: Line, labels: Any, dataset: Dataset) -> int | None:
    """The class of a box: the image's, or of several the one that is named; None if it is not among them."""
    own = np.flatnonzero(labels).tolist() if dataset.multilabel else [int(labels)]
    if not line.label:
        return own[0] if len(own) == 1 else None
    known = {name: number for number, name in enumerate(dataset.classes)}
    return known[line.label] if known.get(line.label) in own else None


def _told(lines: list[Line]) -> str:
    more = f", and {len(lines) - MOST_LINES} more" if len(lines) > MOST_LINES else ""
    return ", ".join(f"line {line.number}: {PurePath(line.id)}" for line in lines[:MOST_LINES]) + more
