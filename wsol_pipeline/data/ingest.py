"""From an importer's rows to shards: check every row, write every shard, then the manifest.

Which candidate rows make a shard is fixed before anything is read, so the bytes are the same whatever the parallelism,
and a run that was killed keeps the shards it had written. A row that cannot be trusted is left out with its reason in
`quarantine.json`; too many of them, and there is no dataset.
"""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unicodedata import category

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from wsol_pipeline.data.augment import hash_ids
from wsol_pipeline.data.images import IGNORED, MAX_BYTES, decode, probe
from wsol_pipeline.data.importers import Source, read_file
from wsol_pipeline.data.schema import ROW_GROUP, VERSION, Box, ClassMask, Kind, Row, RowError, schema
from wsol_pipeline.data.shards import (
    MANIFEST,
    QUARANTINE,
    Manifest,
    Shard,
    SplitInfo,
    describe_shard,
    encode_shard,
    read_manifest,
)
from wsol_pipeline.errors import DataError, UsageError
from wsol_pipeline.protocol import Role
from wsol_pipeline.storage import Store

_PROGRESS = "progress"  # what is known of shards that are written, until the manifest says it


@dataclass(frozen=True)
class ShardJob:
    """Candidate rows of one shard: everything that a worker needs to write it."""

    store: Store
    name: str
    role: Role
    rows: tuple[Row, ...]
    num_classes: int
    multilabel: bool

    def digest(self) -> str:
        """Changes when a candidate row does: its annotation, or size or time of its file."""
        facts = [VERSION, self.num_classes, self.multilabel, [(row, _stamp(row)) for row in self.rows]]
        return hashlib.sha256(repr(facts).encode()).hexdigest()


@dataclass(frozen=True)
class ShardReport:
    """What came of a `ShardJob`. `facts` has a line for each stored row, for the fingerprint."""

    digest: str
    shard: dict[str, Any] | None  # as `Shard`; None if no row was fit to be stored
    per_class: list[int]
    facts: list[str]
    bad: list[dict[str, str]]  # id, split, kind and reason of each row that was left out
    masks: int  # stored rows that have one
    boxes: int  # those that have a box, of each of their classes
    kept: bool = False  # written by an earlier run


def import_dataset(
    source: Source,
    out: Store,
    *,
    name: str,
    origin: dict[str, Any],
    max_bad: float = 0.001,
    workers: int = 1,
    shard_bytes: int = 128 * 2**20,
    on_shard: Callable[[ShardReport, int, int], None] = lambda report, done, total: None,
) -> Manifest:
    """Write `source` as a dataset at `out`, or leave it if the same import has finished there.

    `origin` says what is imported (importer, place, options); `max_bad` is the share of rows that may be left out;
    `workers` over 1 writes shards in Ray tasks; `on_shard` hears (report, done, total) after each shard.
    Raises `DataError` for a source that cannot make a dataset, `UsageError` if `out` holds another one.
    """
    if out.exists(MANIFEST):
        return _finished(out, origin)
    if source.faults:
        others = f" {len(source.faults) - 1} more: --check tells all." if len(source.faults) > 1 else ""
        raise DataError(source.faults[0] + others)
    out.check_writable()
    jobs = _plan(_by_role(source), source, out, shard_bytes)
    total, allowed = sum(len(job.rows) for job in jobs), max_bad * sum(len(job.rows) for job in jobs)
    reports: list[ShardReport] = []
    for report in _run(jobs, workers):
        reports.append(report)
        on_shard(report, len(reports), len(jobs))
        if sum(len(report.bad) for report in reports) > allowed:
            break  # the rest cannot mend it
    bad = [row for report in reports for row in report.bad]
    out.write(QUARANTINE, (json.dumps(bad, indent=1) + "\n").encode())
    if len(bad) > allowed:
        raise DataError(
            f"{len(bad)} of {total} rows are bad, over --max-bad {max_bad:g}. The first is {bad[0]['id']!r}: "
            f"{bad[0]['reason']}. All are in {out.path(QUARANTINE)}."
        )
    manifest = _manifest(source, name, origin, jobs, reports)
    out.write(MANIFEST, manifest.to_json())
    for job in jobs:
        out.remove(_progress(job))
    return manifest


def _finished(out: Store, origin: dict[str, Any]) -> Manifest:
    manifest = read_manifest(out)
    if manifest.source != json.loads(json.dumps(origin)):
        raise UsageError(f"{out.uri} holds another dataset, made from {manifest.source}: choose another --out.")
    return manifest


def _by_role(source: Source) -> dict[Role, list[Row]]:
    """Rows of each split in the order they are stored: training rows shuffled by a hash of the id, others by id.

    Raises `DataError` for an id that comes twice (in whatever splits), a split without rows, a class without images.
    """
    rows = list(source.rows)
    if twice := [name for name, count in Counter(row.id for row in rows).items() if count > 1]:
        raise DataError(f"{len(twice)} ids come more than once, the first is {twice[0]!r}: ids must be unique.")
    splits = {role: [row for row in rows if row.role is role] for role in Role}
    if empty := [role.value for role, members in splits.items() if not members]:
        raise DataError(f"The source has no images for {' and '.join(empty)}: a dataset needs train, val and test.")
    _require_all_classes(source, Counter(label for row in splits[Role.TRAIN] for label in row.labels))
    hashes = hash_ids(row.id for row in splits[Role.TRAIN])
    shuffled = [splits[Role.TRAIN][at] for at in np.argsort(hashes, kind="stable")]
    held_out = {role: sorted(splits[role], key=lambda row: row.id) for role in (Role.VAL, Role.TEST)}
    return {Role.TRAIN: shuffled, **held_out}


def _require_all_classes(source: Source, counts: Counter[int]) -> None:
    if missing := [name for label, name in enumerate(source.classes) if not counts[label]]:
        raise DataError(f"{len(missing)} classes have no training images, the first is {missing[0]!r}.")


def _plan(splits: dict[Role, list[Row]], source: Source, out: Store, shard_bytes: int) -> list[ShardJob]:
    """Cut each split where the candidates' files reach `shard_bytes`, at a whole number of row groups."""
    jobs = []
    for role, rows in splits.items():
        held: list[Row] = []
        size = number = 0
        for first in range(0, len(rows), ROW_GROUP):
            group = rows[first : first + ROW_GROUP]
            held.extend(group)
            size += sum(_stamp(row)[0] for row in group)
            if size >= shard_bytes or held[-1] is rows[-1]:
                name = f"{role.value}/{number:05d}.parquet"
                jobs.append(ShardJob(out, name, role, tuple(held), len(source.classes), source.multilabel))
                held, size, number = [], 0, number + 1
    return jobs


def _stamp(row: Row) -> tuple[int, str]:
    """Size of the image and what tells one state of it from another."""
    if isinstance(row.image, bytes):
        return len(row.image), hashlib.sha256(row.image).hexdigest()
    try:
        stat = row.image.stat()
    except OSError:
        return 0, "missing"  # it will be quarantined when it is read
    return stat.st_size, str(stat.st_mtime_ns)


def _run(jobs: list[ShardJob], workers: int) -> Iterator[ShardReport]:
    """Reports in the order of `jobs`."""
    if workers <= 1:
        yield from map(write_shard, jobs)
        return
    import ray  # a tiny import on a laptop does without a cluster

    task = ray.remote(num_cpus=1)(write_shard)
    pending: list[Any] = []
    for job in jobs:
        pending.append(task.remote(job))
        if len(pending) == workers:
            yield ray.get(pending.pop(0))
    while pending:
        yield ray.get(pending.pop(0))


def write_shard(job: ShardJob) -> ShardReport:
    """Check a shard's rows and write those that pass; kept if an earlier run has written just this."""
    digest = job.digest()
    if (earlier := _earlier(job, digest)) is not None:
        return earlier
    stored, bad, facts, counts = [], [], [], Counter[int]()
    for row in job.rows:
        try:
            columns = checked(row, job.num_classes, job.multilabel)
        except RowError as error:
            bad.append({"id": row.id, "split": job.role.value, **error.fault._asdict()})
            continue
        stored.append({name: columns[name] for name in schema(job.role).names})
        facts.append(_facts(columns))
        counts.update(row.labels)
    shard = _write(job, stored) if stored else None
    per_class = [counts[label] for label in range(job.num_classes)]
    masks = sum(row.get("mask") is not None for row in stored)
    boxes = sum(_has_boxes(row, job.multilabel) for row in stored)
    report = ShardReport(digest, asdict(shard) if shard else None, per_class, facts, bad, masks, boxes)
    job.store.write(_progress(job), json.dumps(asdict(report)).encode())
    return report


def _has_boxes(columns: dict[str, Any], multilabel: bool) -> bool:
    labels = columns.get("box_labels", [])
    return set(columns["labels"]) <= set(labels) if multilabel else bool(labels)


def _progress(job: ShardJob) -> str:
    return f"{_PROGRESS}/{job.name.replace('/', '-')}.json"


def _earlier(job: ShardJob, digest: str) -> ShardReport | None:
    """The report of a run that was cut short, if the shard it speaks of is there and whole."""
    try:
        report = ShardReport(**json.loads(job.store.read(_progress(job))))
        intact = report.shard is None or _sha256(job.store.read(job.name)) == report.shard["sha256"]
    except (FileNotFoundError, TypeError):  # of another version
        return None
    return ShardReport(**{**vars(report), "kept": True}) if intact and report.digest == digest else None


def _write(job: ShardJob, stored: list[dict[str, Any]]) -> Shard:
    data = encode_shard(pa.Table.from_pylist(stored, schema=schema(job.role)))
    job.store.write(job.name, data)
    return describe_shard(job.name, len(stored), data)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def checked(row: Row, num_classes: int, multilabel: bool) -> dict[str, Any]:
    """The columns of a row. Raises `RowError` if it cannot be trusted."""
    if row.fault:
        raise RowError(*row.fault)
    if any(category(sign) in ("Cc", "Cs") for sign in row.id):
        raise RowError(Kind.NAME, f"id {row.id!a} has control characters, or is not UTF-8")
    if not row.labels or not all(0 <= label < num_classes for label in row.labels):
        raise RowError(Kind.LABEL, f"labels {list(row.labels)} are not classes 0..{num_classes - 1}")
    image = _bytes(row.image)
    with _of_kind(Kind.IMAGE):
        _, width, height = probe(image)
        if row.size and row.size != (width, height):
            raise RowError(
                Kind.SIZE, f"image is {width}x{height} but its annotation is for {row.size[0]}x{row.size[1]}"
            )
        decode(image)  # to its end: a truncated image has a sound header
    columns = {"id": row.id, "image": image, "width": width, "height": height, "labels": list(row.labels)}
    if row.role is Role.TRAIN:
        return columns
    if not (row.boxes or row.masks or row.class_mask):
        raise RowError(Kind.ANNOTATION, "image has neither a box nor a mask to be evaluated with")
    if len(row.box_labels) != len(row.boxes) or not all(0 <= label < num_classes for label in row.box_labels):
        raise RowError(
            Kind.LABEL, f"box labels {list(row.box_labels)} are not classes 0..{num_classes - 1}, one for each box"
        )
    for box in row.boxes:
        _check_box(box, width, height)
    boxes = np.array(row.boxes, np.float32).reshape(-1, 4).tolist()
    columns |= {"boxes": boxes, "box_labels": list(row.box_labels)}
    with _of_kind(Kind.MASK):
        if row.class_mask:
            labels_HW = _drawn(row.class_mask, width, height, num_classes)
            return columns | (_of_classes(labels_HW) if multilabel else _of_one_class(labels_HW, row.labels[0]))
        ignore = _mask((row.ignore,)) if row.ignore else None
        return columns | {"mask": _mask(row.masks) if row.masks else None, "ignore": ignore}


@contextmanager
def _of_kind(kind: Kind) -> Iterator[None]:
    """A `DataError` that says nothing of its kind is one of `kind`."""
    try:
        yield
    except RowError:
        raise
    except DataError as error:
        raise RowError(kind, str(error)) from error


def _bytes(image: Path | bytes) -> bytes:
    return image if isinstance(image, bytes) else read_file(image, MAX_BYTES)


def _check_box(box: Box, width: int, height: int) -> None:
    """Raises `RowError` unless a box is finite, ordered and on the image.

    One pixel beyond the last is let pass: sources differ on inclusive corners.
    """
    x0, y0, x1, y1 = box
    if not np.isfinite(box).all():
        raise RowError(Kind.BOX, f"box {box} is not finite")
    if x0 > x1 or y0 > y1:
        raise RowError(Kind.BOX, f"box {box} is reversed: it must be x0, y0, x1, y1")
    if x0 < 0 or y0 < 0 or x1 > width or y1 > height or x0 >= width or y0 >= height:
        raise RowError(Kind.BOX, f"box {box} is not on the image of {width}x{height}")


def _mask(pngs: tuple[Path | bytes, ...]) -> bytes:
    """A PNG mask as it is; several instances are joined to one, 255 where any of them is nonzero."""
    encoded = [_bytes(png) for png in pngs]
    for data in encoded:
        if probe(data)[0] != "PNG":
            raise DataError("mask is not a PNG")
    decoded = [decode(data).amax(0).numpy() > 0 for data in encoded]
    if len({mask.shape for mask in decoded}) > 1:
        raise DataError("masks of one image differ in size")
    if len(encoded) == 1:
        return encoded[0]
    return _png(np.logical_or.reduce(decoded).astype(np.uint8) * 255)


def _drawn(mask: ClassMask, width: int, height: int, num_classes: int) -> NDArray[np.uint8]:
    """A class mask, checked: of the image's size, with labels that there are."""
    labels_HW = mask.draw()
    if labels_HW.shape != (height, width):
        raise DataError(f"image is {width}x{height} but its mask is {labels_HW.shape[1]}x{labels_HW.shape[0]}")
    if (top := labels_HW[labels_HW != IGNORED].max(initial=0)) > num_classes:
        raise DataError(f"mask has the value {top}; known: 0 background, 1..{num_classes} classes, {IGNORED} neither")
    return labels_HW


def _of_classes(labels_HW: NDArray[np.uint8]) -> dict[str, bytes | None]:
    """The mask columns of a multi-label row."""
    return {"mask": _png(labels_HW), "ignore": None}


def _of_one_class(labels_HW: NDArray[np.uint8], label: int) -> dict[str, bytes | None]:
    """The mask columns of a single-label row: what is of its class, and what counts neither way."""
    ignored_HW = labels_HW == IGNORED
    return {
        "mask": _png((labels_HW == label + 1) * np.uint8(255)),
        "ignore": _png(ignored_HW * np.uint8(255)) if ignored_HW.any() else None,
    }


def _png(pixels_HW: NDArray[np.uint8]) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels_HW).save(sink, "PNG")
    return sink.getvalue()


def _facts(columns: dict[str, Any]) -> str:
    """What the fingerprint covers of a row, as one line of JSON."""
    pixels = [columns.get(name) for name in ("image", "mask", "ignore")]
    digests = [data and _sha256(data) for data in pixels]
    return json.dumps(
        [columns["id"], columns["labels"], columns.get("boxes", []), columns.get("box_labels", []), *digests]
    )


def _manifest(
    source: Source, name: str, origin: dict[str, Any], jobs: list[ShardJob], reports: list[ShardReport]
) -> Manifest:
    splits = {}
    for role in Role:
        own = [report for job, report in zip(jobs, reports, strict=True) if job.role is role]
        facts = sorted(line for report in own for line in report.facts)
        if not facts:
            raise DataError(f"No row of {role.value!r} is fit to be stored.")
        shards = tuple(Shard(**report.shard) for report in own if report.shard)
        per_class = tuple(np.sum([report.per_class for report in own], axis=0).tolist())
        fingerprint, masks = _sha256("\n".join(facts).encode()), sum(report.masks for report in own)
        boxes = sum(report.boxes for report in own)
        splits[role] = SplitInfo(len(facts), per_class, fingerprint, shards, masks, boxes)
    _require_all_classes(source, Counter(dict(enumerate(splits[Role.TRAIN].per_class))))
    quarantine = {role.value: 0 for role in Role} | Counter(row["split"] for report in reports for row in report.bad)
    return Manifest(
        name,
        source.classes,
        source.multilabel,
        source.box_convention,
        origin,
        quarantine,
        splits,
        left_out=dict(source.left_out),
    )
