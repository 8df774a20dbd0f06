"""Shards on disk or in an object store: what the manifest says of them, and how a reader gets only that.

A shard is a Parquet file of encoded images. Its SHA-256 stands in the manifest and is checked before the first row is
used, once on each node: a shard that is cut, swapped or altered is refused by name.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
from filelock import FileLock
from tenacity import retry, retry_if_exception, stop_after_attempt, wait_exponential_jitter

from wsol_pipeline.data.schema import BOX_CONVENTIONS, ROW_GROUP, VERSION
from wsol_pipeline.errors import DataError, ResourceError
from wsol_pipeline.protocol import Role
from wsol_pipeline.storage import Store, describe_storage_error

MANIFEST = "manifest.json"
QUARANTINE = "quarantine.json"


@dataclass(frozen=True)
class Shard:
    """One Parquet file of a dataset; `name` is relative to the dataset."""

    name: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class SplitInfo:
    """What the manifest says of a split. `fingerprint` covers ids, labels, boxes and images, not their order."""

    rows: int
    per_class: tuple[int, ...]
    fingerprint: str
    shards: tuple[Shard, ...]


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
            infos = found.pop("splits")
            splits = {role: _split_info(infos[role]) for role in Role if role in infos}
            manifest = Manifest(**{**found, "classes": tuple(found["classes"]), "splits": splits})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"The manifest of {uri} is broken ({type(error).__name__}: {error}): import it again."
            ) from error
        if manifest.box_convention not in BOX_CONVENTIONS:
            raise DataError(
                f"Dataset {uri} has box convention {manifest.box_convention!r}; known: {', '.join(BOX_CONVENTIONS)}."
            )
        return manifest


def _split_info(found: dict[str, Any]) -> SplitInfo:
    shards = tuple(Shard(**shard) for shard in found["shards"])
    return SplitInfo(found["rows"], tuple(found["per_class"]), found["fingerprint"], shards)


def read_manifest(store: Store) -> Manifest:
    """Raises `DataError` if there is no dataset at `store`, `ResourceError` if the place cannot be reached."""
    try:
        return Manifest.from_json(store.read(MANIFEST), store.uri)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(
            f"There is no dataset at {store.uri} (no {MANIFEST}): give the place that rayjobs/import_dataset.py wrote."
        ) from error
    except (OSError, BotoCoreError, ClientError) as error:
        raise ResourceError(describe_storage_error(store.uri, error)) from error


def cache_root(cache_dir: str | None) -> Path:
    """Where this node keeps what can be made again: `cache_dir`, or the user's cache folder."""
    if cache_dir:
        return Path(cache_dir).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wsol"


@dataclass(frozen=True)
class ShardSet:
    """The shards of one split as one table, read by row number. Picklable; opens files where it is used."""

    store: Store
    shards: tuple[Shard, ...]
    cache_dir: str | None = None

    def read(self, rows: np.ndarray, columns: list[str]) -> pa.Table:
        """The given rows (int64 [N], any order) in their order, reading each row group once."""
        shard_of, group_of, offset_of = self._locate(rows)
        keys, inverse = np.unique(np.stack([shard_of, group_of]), axis=1, return_inverse=True)
        with ThreadPoolExecutor(1 if self.store.is_local else 16) as pool:
            groups = list(pool.map(lambda key: self._group(int(key[0]), int(key[1]), columns), keys.T))
        starts = np.cumsum([0, *(group.num_rows for group in groups)])
        return pa.concat_tables(groups).take(starts[inverse.ravel()] + offset_of)

    def read_all(self, columns: list[str]) -> pa.Table:
        """Some columns of all rows."""
        return pa.concat_tables(self.tables(columns))

    def tables(self, columns: list[str]) -> Iterator[pa.Table]:
        """Some columns of all rows, shard by shard."""
        for shard in self.shards:
            yield self._shielded(shard, lambda file: file.read(columns=columns, use_threads=False))

    def _locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        starts = np.cumsum([0, *(shard.rows for shard in self.shards)])
        shard_of = np.searchsorted(starts, rows, side="right") - 1
        within = rows - starts[shard_of]
        return shard_of, within // ROW_GROUP, within % ROW_GROUP

    def _group(self, number: int, group: int, columns: list[str]) -> pa.Table:
        return self._shielded(
            self.shards[number], lambda file: file.read_row_group(group, columns=columns, use_threads=False)
        )

    def _shielded(self, shard: Shard, read: Any) -> pa.Table:
        """Verify, open and read with retries; what is wrong with the shard or the place is said by name."""
        path = self.store.path(shard.name)
        try:
            verify(self.store, shard, str(cache_root(self.cache_dir)))
            return _read_with_retries(path, shard.sha256, read)
        except FileNotFoundError as error:
            raise DataError(f"Shard {path} is missing: import the dataset again.") from error
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise DataError(f"Shard {path} is not a readable Parquet file: {error}.") from error
        except (OSError, BotoCoreError, ClientError) as error:
            raise ResourceError(describe_storage_error(path, error)) from error


def _is_transient(error: BaseException) -> bool:
    """A missing or forbidden object stays so; timeouts, resets and server errors pass."""
    lasting = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, NoCredentialsError)
    return isinstance(error, OSError | BotoCoreError | ClientError) and not isinstance(error, lasting)


_patiently = retry(
    retry=retry_if_exception(_is_transient),
    stop=stop_after_attempt(5),
    wait=wait_exponential_jitter(initial=0.2, max=10),
    reraise=True,
)


def _filesystem(path: str) -> tuple[Any, str]:
    options = {"use_listings_cache": False} if path.startswith("s3://") else {}
    return fsspec.core.url_to_fs(path, **options)


@_patiently
def _read_with_retries(path: str, sha256: str, read: Any) -> pa.Table:
    filesystem, name = _filesystem(path)
    with filesystem.open(name, "rb", **({"cache_type": "none"} if path.startswith("s3://") else {})) as handle:
        return read(pq.ParquetFile(handle, metadata=_footer(path, sha256), pre_buffer=True))


@lru_cache(maxsize=4096)
def _footer(path: str, sha256: str) -> pq.FileMetaData:
    """The footer of a verified shard, kept for the content it belongs to: row groups are read one at a time."""
    filesystem, name = _filesystem(path)
    with filesystem.open(name, "rb") as handle:
        return pq.read_metadata(handle)


@cache
def verify(store: Store, shard: Shard, cache_dir: str) -> None:
    """Compare a shard with its SHA-256 in the manifest: once in a process, and once on a node while it stays the same.

    The node's mark holds the file's time or ETag, so a file that changes later is read and compared again.
    Raises `DataError` that names the shard, `FileNotFoundError`.
    """
    path = store.path(shard.name)
    size, stamp = _state(path)
    if size != shard.bytes:
        raise DataError(f"Shard {path} has {size} bytes but the manifest says {shard.bytes}: it was cut or swapped.")
    key = hashlib.sha256(json.dumps([path, shard.sha256, stamp]).encode()).hexdigest()
    mark = Path(cache_dir) / "verified" / key
    if mark.exists():
        return
    mark.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{mark}.lock"):  # several workers of a node wait for one reading
        if mark.exists():
            return
        if _sha256(path) != shard.sha256:
            raise DataError(f"Shard {path} is not what was imported: its SHA-256 differs from the manifest's.")
        mark.touch()


@_patiently
def _state(path: str) -> tuple[int, str]:
    filesystem, name = _filesystem(path)
    info = filesystem.info(name)
    return int(info["size"]), str(info.get("ETag") or info.get("mtime"))


@_patiently
def _sha256(path: str) -> str:
    filesystem, name = _filesystem(path)
    digest = hashlib.sha256()
    with filesystem.open(name, "rb", block_size=16 * 2**20) as handle:
        while chunk := handle.read(8 * 2**20):
            digest.update(chunk)
    return digest.hexdigest()
