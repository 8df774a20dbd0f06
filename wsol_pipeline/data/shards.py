"""Shards on disk or in an object store: what the manifest says of them, and how a reader gets only that.

A shard is a Parquet file of encoded images. The manifest holds the SHA-256 of its footer, and the footer that of each
column of each row group. So a reader takes no byte that it does not need and uses none that it has not compared: a
shard that is cut, swapped or altered is refused by name.
"""

import hashlib
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from io import BytesIO
from mmap import mmap
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wsol_pipeline.data.schema import BOX_CONVENTIONS, ROW_GROUP, VERSION
from wsol_pipeline.data.shard_cache import NodeCopy, Piece, node_copy
from wsol_pipeline.data.typed import typed
from wsol_pipeline.errors import DataError, ResourceError
from wsol_pipeline.protocol import Role
from wsol_pipeline.storage import STORAGE_ERRORS, Store, describe_storage_error

MANIFEST = "manifest.json"
QUARANTINE = "quarantine.json"
_DIGESTS = b"sha256"  # in a footer: SHA-256 of [row group][column]
_HEX = re.compile("[0-9a-f]{64}")
_LEAST_FOOTER, _LARGEST = 12, 2**36  # bytes of a footer, its length and the magic number; of a shard
_AT_ONCE = 16 * 2**20  # bytes of one request: what a fault costs at most


@dataclass(frozen=True)
class Shard:
    """One Parquet file of a dataset; `name` is relative to the dataset."""

    name: str
    rows: int
    bytes: int
    sha256: str
    footer_bytes: int
    footer_sha256: str

    @property
    def footer(self) -> Piece:
        return Piece(self.bytes - self.footer_bytes, self.bytes, self.footer_sha256)


@dataclass(frozen=True)
class SplitInfo:
    """What the manifest says of a split. `fingerprint` covers ids, labels, boxes and images, not their order."""

    rows: int
    per_class: tuple[int, ...]
    fingerprint: str
    shards: tuple[Shard, ...]
    masks: int  # rows that have one
    boxes: int  # rows that have one, of each of their classes if they can be of several


@dataclass(frozen=True)
class Manifest:
    """A dataset's table of contents, written last: without it there is no dataset."""

    name: str
    classes: tuple[str, ...]
    multilabel: bool
    box_convention: str
    source: dict[str, Any]  # importer, place and options
    quarantine: dict[str, int]  # reason -> rows left out
    splits: dict[Role, SplitInfo]
    version: int = VERSION
    left_out: dict[str, int] = field(default_factory=dict)  # what the importer did not offer -> how many of it
    passed_over: dict[str, dict[str, int]] = field(default_factory=dict)  # why files were not read -> ending -> files
    notes: dict[str, int] = field(default_factory=dict)  # what was done to stored rows -> how many
    located: bool = True  # val has boxes or masks to choose by; if not, it has labels alone

    def to_json(self) -> bytes:
        return (json.dumps(asdict(self), indent=1, sort_keys=True) + "\n").encode()

    @staticmethod
    def from_json(text: bytes, uri: str) -> "Manifest":
        """Raises `DataError` unless `text` is a whole manifest of this version. `uri` names it in the message."""
        try:
            found = json.loads(text)
            version = found["version"]
            if version != VERSION:
                raise DataError(
                    f"Dataset {uri} has format version {version!r}; this code reads {VERSION}: import it again."
                )
            manifest = typed(Manifest, found, "the manifest")
            _check(manifest)
            splits = {role: manifest.splits[role] for role in Role if role in manifest.splits}  # in their order
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(
                f"The manifest of {uri} is broken ({type(error).__name__}: {error}): import it again."
            ) from error
        if odd := [name for name in (manifest.name, *manifest.classes) if not name.isprintable()]:
            raise DataError(f"The manifest of {uri} has a name that cannot be printed: {odd[0]!a}.")
        if manifest.box_convention not in BOX_CONVENTIONS:
            raise DataError(
                f"Dataset {uri} has box convention {manifest.box_convention!r}; known: {', '.join(BOX_CONVENTIONS)}."
            )
        return replace(manifest, splits=splits)


def _check(manifest: Manifest) -> None:
    """Raise `ValueError` for what cannot be, although each field is of its type."""
    if not manifest.classes or len(set(manifest.classes)) < len(manifest.classes):
        raise ValueError("classes must be there, each once")
    for role, info in manifest.splits.items():
        if not 0 < info.rows == sum(shard.rows for shard in info.shards) or max(info.masks, info.boxes) > info.rows:
            raise ValueError(f"the rows of {role.value} do not add up")
        if len(info.per_class) != len(manifest.classes) or sum(info.per_class) < info.rows:
            raise ValueError(f"the classes of {role.value} do not add up to its rows")
        for shard in info.shards:
            _check_shard(role, shard)
        if not _HEX.fullmatch(info.fingerprint):
            raise ValueError(f"the fingerprint of {role.value} is none")


def _check_shard(role: Role, shard: Shard) -> None:
    if not re.fullmatch(rf"{role.value}/\d{{5,}}\.parquet", shard.name):
        raise ValueError(f"{shard.name[:60]!r} is no shard of {role.value}")
    if shard.rows < 1 or not _LEAST_FOOTER <= shard.footer_bytes < shard.bytes <= _LARGEST:
        raise ValueError(f"the sizes of {shard.name} cannot be")
    if not (_HEX.fullmatch(shard.sha256) and _HEX.fullmatch(shard.footer_sha256)):
        raise ValueError(f"a SHA-256 of {shard.name} is none")


def read_manifest(store: Store) -> Manifest:
    """Raises `DataError` if there is no dataset at `store`, `ResourceError` if the place cannot be reached."""
    try:
        return Manifest.from_json(store.read(MANIFEST), store.uri)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(
            f"There is no dataset at {store.uri} (no {MANIFEST}): give the place that rayjobs/import_dataset.py wrote."
        ) from error
    except STORAGE_ERRORS as error:
        raise ResourceError(describe_storage_error(store.uri, error)) from error


def cache_root(cache_dir: str | None) -> Path:
    """Where this node keeps what can be made again: `cache_dir`, or the user's cache folder."""
    if cache_dir:
        return Path(cache_dir).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wsol"


def encode_shard(table: pa.Table) -> bytes:
    """A table as the file of a shard."""
    data = _parquet(table)
    footer = pq.read_metadata(pa.BufferReader(data))
    digests = [
        [_sha256(data[begin:end]) for begin, end in _extents(footer, group)] for group in range(footer.num_row_groups)
    ]
    return _parquet(table.replace_schema_metadata({_DIGESTS: json.dumps(digests)}))  # moves none of these bytes


def _parquet(table: pa.Table) -> bytes:
    sink = BytesIO()
    # JPEG does not shrink further, and every image is another: neither compression nor dictionaries pay.
    pq.write_table(
        table, sink, row_group_size=ROW_GROUP, compression="none", use_dictionary=False, write_statistics=False
    )
    return sink.getvalue()


def describe_shard(name: str, rows: int, data: bytes) -> Shard:
    """What the manifest says of a shard."""
    footer_bytes = int.from_bytes(data[-8:-4], "little") + 8  # as the end of every Parquet file says
    return Shard(name, rows, len(data), _sha256(data), footer_bytes, _sha256(data[-footer_bytes:]))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _extents(footer: pq.FileMetaData, group: int) -> list[tuple[int, int]]:
    """Where the columns of a row group begin and end in the file."""
    columns = [footer.row_group(group).column(number) for number in range(footer.num_columns)]
    return [(column.data_page_offset, column.data_page_offset + column.total_compressed_size) for column in columns]


def _pieces(footer: pq.FileMetaData, groups: list[int], columns: list[str]) -> list[Piece]:
    """What must be read for `columns` of row groups."""
    names = [footer.row_group(0).column(number).path_in_schema.split(".")[0] for number in range(footer.num_columns)]
    digests = json.loads(footer.metadata[_DIGESTS])
    return [
        Piece(*extent, digest)
        for group in groups
        for name, extent, digest in zip(names, _extents(footer, group), digests[group], strict=True)
        if name in columns
    ]


@dataclass(frozen=True)
class ShardSet:
    """The shards of one split as one table, read by row number. Picklable; opens files where it is used.

    Remote ones are kept on this node if `cache_bytes`, the limit of all such copies in `cache_dir`, has room for all of
    them; otherwise each reading fetches what it needs.
    """

    store: Store
    shards: tuple[Shard, ...]
    cache_dir: str | None = None
    cache_bytes: int = 0

    def read(self, rows: np.ndarray, columns: list[str]) -> pa.Table:
        """The given rows (int64 [N], any order) in their order, reading each row group once.

        Raises `DataError` for a shard that is missing or altered, `ResourceError` if it cannot be reached.
        """
        shard_of, group_of, offset_of = self._locate(rows)
        keys, inverse = np.unique(np.stack([shard_of, group_of]), axis=1, return_inverse=True)
        parts = [(int(number), keys[1, keys[0] == number].tolist()) for number in np.unique(keys[0])]
        copy = self._copy()
        pool = ThreadPoolExecutor(1 if self.store.is_local else 16)
        try:
            tables = list(pool.map(lambda part: self._read(copy, part[0], part[1], columns), parts))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # others wait for the same storage when one has failed
        lengths = [
            min(ROW_GROUP, self.shards[number].rows - group * ROW_GROUP) for number, groups in parts for group in groups
        ]
        starts = np.cumsum([0, *lengths])
        return pa.concat_tables(tables).take(starts[inverse.ravel()] + offset_of)

    def read_all(self, columns: list[str]) -> pa.Table:
        """Some columns of all rows."""
        return self.read(np.arange(sum(shard.rows for shard in self.shards)), columns)

    def _locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        starts = np.cumsum([0, *(shard.rows for shard in self.shards)])
        shard_of = np.searchsorted(starts, rows, side="right") - 1
        within = rows - starts[shard_of]
        return shard_of, within // ROW_GROUP, within % ROW_GROUP

    def _copy(self) -> NodeCopy | None:
        if self.store.is_local or not self.cache_bytes:
            return None
        root, size = cache_root(self.cache_dir), sum(shard.bytes for shard in self.shards)
        key = _sha256("".join(shard.sha256 for shard in self.shards).encode())[:32]
        try:
            return node_copy(root, key, size, self.cache_bytes)
        except OSError as error:
            raise ResourceError(
                f"No shards can be kept in {root} ({error}): choose another cache_dir, or shard_cache_gb 0."
            ) from error

    def _read(self, copy: NodeCopy | None, number: int, groups: list[int], columns: list[str]) -> pa.Table:
        shard, start = self.shards[number], sum(shard.bytes for shard in self.shards[:number])
        path = self.store.path(shard.name)
        try:
            footer = _footer(self.store, copy, start, shard)
            memory = _load(self.store, copy, start, shard, _pieces(footer, groups, columns))
        except FileNotFoundError as error:
            raise DataError(f"Shard {path} is missing: import the dataset again.") from error
        except STORAGE_ERRORS as error:
            raise ResourceError(describe_storage_error(path, error)) from error
        file = pq.ParquetFile(pa.BufferReader(memory), metadata=footer)
        return file.read_row_groups(groups, columns=columns, use_threads=False).replace_schema_metadata(None)


@lru_cache(maxsize=4096)
def _footer(store: Store, copy: NodeCopy | None, start: int, shard: Shard) -> pq.FileMetaData:
    memory = _load(store, copy, start, shard, [shard.footer])
    return pq.read_metadata(pa.BufferReader(memory[shard.footer.begin :]))


def _load(store: Store, copy: NodeCopy | None, start: int, shard: Shard, pieces: list[Piece]) -> memoryview:
    """The shard with these pieces in their places; the rest is zero and takes no memory.

    Mapped by hand: a heap would keep what is given back.
    """
    memory = memoryview(mmap(-1, shard.bytes))
    if copy is None:
        _fetch(store, shard, memory, pieces)
    elif missing := copy.fill(memory, start, pieces):
        with copy.lock(shard.name):
            missing = copy.fill(memory, start, missing)  # another worker may have fetched them meanwhile
            _fetch(store, shard, memory, missing)
            copy.keep(memory, start, missing)
    return memory


def _fetch(store: Store, shard: Shard, memory: memoryview, pieces: list[Piece]) -> None:
    """Read pieces from the store, those that come wrong once more. Raises `DataError` for one that stays wrong."""
    for _ in range(2):
        for begin, end in _ranges(pieces):
            data = store.read_range(shard.name, begin, end)[: end - begin]  # not all servers know ranges
            memory[begin : begin + len(data)] = data
        pieces = [piece for piece in pieces if not piece.is_in(memory)]
    if pieces:
        path, size = store.path(shard.name), store.size(shard.name)
        if size != shard.bytes:
            raise DataError(
                f"Shard {path} has {size} bytes but the manifest says {shard.bytes}: it was cut or swapped."
            )
        raise DataError(f"Shard {path} is not what was imported: its SHA-256 differs from the manifest's.")


def _ranges(pieces: list[Piece]) -> list[tuple[int, int]]:
    """Pieces that follow each other joined, to at most `_AT_ONCE` unless a piece is longer."""
    ranges: list[tuple[int, int]] = []
    for begin, end, _ in pieces:
        if ranges and ranges[-1][1] == begin and end - ranges[-1][0] <= _AT_ONCE:
            ranges[-1] = (ranges[-1][0], end)
        else:
            ranges.append((begin, end))
    return ranges
