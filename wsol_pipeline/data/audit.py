"""Masks of training images, apart from all that trains: shards of their own, which only a last evaluation opens.

They score seeds and pseudo masks on the very images that a network learnt from, as the tables of weakly supervised
segmentation do. A dataset is the same with and without them: its shards, and its fingerprint, know nothing of them.
"""

import enum
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace

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
ROWS = 1024  # of a shard
SCHEMA = pa.schema([("id", pa.string()), ("mask", pa.binary()), ("ignore", pa.binary())])


class AuditRole(enum.StrEnum):
    """The role of masks of training images: nothing that searches, trains or selects may be handed it."""

    AUDIT = AUDIT


@dataclass(frozen=True)
class Audit:
    """The masks of training images of a dataset, by id."""

    place: Store
    shards: tuple[Shard, ...]

    @property
    def role(self) -> AuditRole:
        return AuditRole.AUDIT

    def masks(self) -> Iterator[tuple[str, bytes | None, bytes | None]]:
        """(id, mask, ignore): PNGs as `label_mask` reads them."""
        rows = sum(shard.rows for shard in self.shards)
        for first in range(0, rows, ROWS):
            table = ShardSet(self.place, self.shards).read(np.arange(first, min(first + ROWS, rows)), SCHEMA.names)
            yield from zip(*(table[name].to_pylist() for name in SCHEMA.names), strict=True)


def write_audit(rows: Iterable[Row], rules: Rules, out: Store, fingerprint: str) -> tuple[int, int]:
    """Write the masks of sound training rows beside the dataset; how many there are, and how many rows have none."""
    held: list[dict[str, object]] = []
    shards: list[Shard] = []
    without = 0
    for row in (row for row in rows if row.role is Role.TRAIN):
        columns = _masked(row, rules)
        if columns is None:
            without += 1
            continue
        held.append({"id": row.id, **columns})
        if len(held) == ROWS:
            shards.append(_write(out, len(shards), held))
            held = []
    shards += [_write(out, len(shards), held)] if held else []
    told = {"shards": [asdict(shard) for shard in shards], "without": without, "dataset": fingerprint}
    out.write(MANIFEST, json.dumps(told, indent=1).encode())
    return sum(shard.rows for shard in shards), without


def _masked(row: Row, rules: Rules) -> dict[str, object] | None:
    """The mask columns of a training row, checked as those of a held-out one; None for a row without, or a bad one."""
    if not (row.masks or row.class_mask):
        return None
    try:
        columns, _ = checked(replace(row, role=Role.VAL), rules)
    except RowError:
        return None
    return {"mask": columns["mask"], "ignore": columns["ignore"]}


def _write(out: Store, number: int, held: list[dict[str, object]]) -> Shard:
    data, name = encode_shard(pa.Table.from_pylist(held, schema=SCHEMA)), f"{AUDIT}/{number:05d}.parquet"
    out.write(name, data)
    return describe_shard(name, len(held), data)


def is_kept(dataset: Dataset) -> bool:
    """Whether the masks of a dataset's training images were imported, of this very data."""
    place = Store(dataset.uri)
    return place.exists(MANIFEST) and json.loads(place.read(MANIFEST))["dataset"] == dataset.fingerprint


def open_audit(dataset: Dataset) -> Audit:
    """The masks of a dataset's training images. Raises `DataError` if they were not imported, or are of other data."""
    place = Store(dataset.uri)
    if not place.exists(MANIFEST):
        raise DataError(f"{dataset.uri} has no masks of training images: import it with --audit.")
    told = json.loads(place.read(MANIFEST))
    if told["dataset"] != dataset.fingerprint:
        raise DataError(f"The masks of training images in {dataset.uri} are of other data: import them again.")
    return Audit(place, tuple(Shard(**shard) for shard in told["shards"]))
