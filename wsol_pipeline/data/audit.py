"""Masks and boxes of training images, apart from all that trains: shards of their own, which only a last evaluation
opens.

They score seeds, pseudo masks and boxes on the very images that a network learnt from, as the tables of weakly
supervised segmentation and CorLoc do. A dataset is the same with and without them: its shards, and its fingerprint,
know nothing of them.
"""

import enum
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from wsol_pipeline.data.checks import checked
from wsol_pipeline.data.dataset import Dataset
from wsol_pipeline.data.schema import Row, RowError, Rules
from wsol_pipeline.data.shards import Shard, ShardSet, describe_shard, encode_shard
from wsol_pipeline.errors import DataError
from wsol_pipeline.protocol import Role
from wsol_pipeline.storage import Store

AUDIT = "audit"
MANIFEST = f"{AUDIT}/manifest.json"
FORMAT = 2  # with boxes
ROWS = 1024  # of a shard
SCHEMA = pa.schema([
    ("id", pa.string()), ("mask", pa.binary()), ("ignore", pa.binary()),
    ("boxes", pa.list_(pa.list_(pa.float32()))), ("box_labels", pa.list_(pa.int32())),
])  # fmt: skip


class AuditRole(enum.StrEnum):
    """The role of what is true of training images: nothing that searches, trains or selects may be handed it."""

    AUDIT = AUDIT


@dataclass(frozen=True)
class Audit:
    """Masks and boxes of training images of a dataset, by id."""

    place: Store
    shards: tuple[Shard, ...]

    @property
    def role(self) -> AuditRole:
        return AuditRole.AUDIT

    @property
    def digest(self) -> str:
        """SHA-256 over what is kept: another one says other masks or boxes."""
        return hashlib.sha256(json.dumps([shard.sha256 for shard in self.shards]).encode()).hexdigest()

    def masks(self) -> Iterator[tuple[str, bytes, bytes | None]]:
        """(id, mask, ignore) of images that have a mask: PNGs as `label_mask` reads them."""
        return (found for found in self._read(["id", "mask", "ignore"]) if found[1] is not None)

    def boxes(self) -> Iterator[tuple[str, list[list[float]], list[int]]]:
        """(id, boxes, their classes) of images that have boxes, in the dataset's convention."""
        return (found for found in self._read(["id", "boxes", "box_labels"]) if found[1])

    def _read(self, columns: list[str]) -> Iterator[tuple[Any, ...]]:
        rows = sum(shard.rows for shard in self.shards)
        for first in range(0, rows, ROWS):
            table = ShardSet(self.place, self.shards).read(np.arange(first, min(first + ROWS, rows)), columns)
            yield from zip(*(table[name].to_pylist() for name in columns), strict=True)


def write_audit(rows: Iterable[Row], rules: Rules, out: Store, fingerprint: str) -> tuple[int, int]:
    """Write masks and boxes of sound training rows beside the dataset; how many have some, and how many none."""
    held: list[dict[str, object]] = []
    shards: list[Shard] = []
    without = 0
    for row in (row for row in rows if row.role is Role.TRAIN):
        columns = _true(row, rules)
        if columns is None:
            without += 1
            continue
        held.append({"id": row.id, **columns})
        if len(held) == ROWS:
            shards.append(_write(out, len(shards), held))
            held = []
    shards += [_write(out, len(shards), held)] if held else []
    told = {"format": FORMAT, "shards": [asdict(shard) for shard in shards], "without": without, "dataset": fingerprint}
    out.write(MANIFEST, json.dumps(told, indent=1).encode())
    return sum(shard.rows for shard in shards), without


def _true(row: Row, rules: Rules) -> dict[str, object] | None:
    """Masks and boxes of a training row, checked as those of a held-out one; None for a row without, or a bad one."""
    for part in (row, replace(row, boxes=(), box_labels=())):  # a bad box costs no mask
        if not (part.masks or part.class_mask or part.boxes):
            return None
        try:
            columns, _ = checked(replace(part, role=Role.VAL), rules)
        except RowError:
            continue
        is_known = columns["mask"] is not None or columns["boxes"]
        return {name: columns[name] for name in SCHEMA.names if name != "id"} if is_known else None
    return None


def _write(out: Store, number: int, held: list[dict[str, object]]) -> Shard:
    data, name = encode_shard(pa.Table.from_pylist(held, schema=SCHEMA)), f"{AUDIT}/{number:05d}.parquet"
    out.write(name, data)
    return describe_shard(name, len(held), data)


def is_kept(dataset: Dataset) -> bool:
    """Whether what is true of a dataset's training images was imported, of this very data."""
    place = Store(dataset.uri)
    if not place.exists(MANIFEST):
        return False
    told = json.loads(place.read(MANIFEST))
    return (told.get("format"), told["dataset"]) == (FORMAT, dataset.fingerprint)


def open_audit(dataset: Dataset) -> Audit:
    """What is true of a dataset's training images. Raises `DataError` if it was not imported, or is of other data."""
    place = Store(dataset.uri)
    if not place.exists(MANIFEST):
        raise DataError(f"{dataset.uri} has no masks or boxes of training images: import it with --audit.")
    told = json.loads(place.read(MANIFEST))
    if not is_kept(dataset):
        what = "of other data" if told["dataset"] != dataset.fingerprint else "in an older form, without boxes"
        raise DataError(f"What {dataset.uri} has of its training images is {what}: import it again with --audit.")
    return Audit(place, tuple(Shard(**shard) for shard in told["shards"]))
