"""Where images come from: a table of all of them first, in one order, then the bytes of some of them."""

import csv
import fnmatch
import functools
import glob
import hashlib
import io
import json
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wsol_pipeline.data.archives import unpacked
from wsol_pipeline.data.dataset import Split, open_dataset
from wsol_pipeline.data.headers import MAX_BYTES
from wsol_pipeline.data.importers import is_hidden, nfc, read_text
from wsol_pipeline.data.photographs import ENDINGS
from wsol_pipeline.data.shards import MANIFEST
from wsol_pipeline.errors import DataError, ResourceError, UsageError, unknown
from wsol_pipeline.protocol import Role
from wsol_pipeline.storage import STORAGE_ERRORS, Store, describe_storage_error
from wsol_pipeline.training.inputs import file_bytes
from wsol_pipeline.use.options import LocalizeOptions

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")
COLUMN, FOLDER = "column:", "folder"  # what --labels can say
MAX_GROUP_BYTES = 2**29  # of a Parquet file's row group: it is read whole
PER_IMAGE = ("voc", "yolo", "masks", "overlays")  # formats of a file for each image
ROW = "#"  # between a Parquet file or split and a row's number
Item = dict[str, Any]  # a row of a listing
_ONE = threading.Lock()  # row groups are read one at a time: threads that wait find theirs in memory
LISTING = pa.schema([
    ("index", pa.int64()), ("image_id", pa.string()), ("uri", pa.string()), ("size", pa.int64()),
    ("state", pa.string()), ("labels", pa.list_(pa.string())),
])  # fmt: skip


def listed(options: LocalizeOptions) -> list[Item]:
    """All images of the source in their order: that of a list, else sorted by name.

    Raises:
        DataError: there is none, or the source is not what it must be.
        UsageError: an option does not suit the source.
        ResourceError: its storage is away.
    """
    try:
        items = list(_found(options))
    except STORAGE_ERRORS as error:
        raise ResourceError(describe_storage_error(options.source, error)) from error
    if not items:
        raise DataError(
            f"{options.source} has no image (looked for {', '.join(ENDINGS)}; names that begin with a dot are none)."
        )
    return [{"index": index, **item} for index, item in enumerate(items)]


def check_names(items: Iterable[Item], formats: Iterable[str]) -> None:
    """Raise `UsageError` if two images, or one that is listed twice, would have files of one name in `formats`."""
    if not set(formats) & set(PER_IMAGE):
        return
    taken: dict[str, str] = {}
    for item in items:
        name, uri = file_name(item["image_id"]), item["uri"]
        if uri and name in taken:
            twice = f"{uri} is listed twice: its rows" if taken[name] == uri else f"{taken[name]} and {uri}"
            raise UsageError(
                f"{twice} would both be written as {name}: rename or leave out one, or leave out the formats of a "
                f"file an image ({', '.join(PER_IMAGE)})."
            )
        taken[name] = uri


def file_name(image_id: str) -> str:
    """What the files of an image are called, without their ending: its path, `/` as `__`."""
    path = PurePosixPath(image_id)
    return (path.with_suffix("") if path.name else path).as_posix().lstrip("/").replace("/", "__")


def fingerprint(items: Sequence[Item]) -> str:
    """SHA-256 over names, places and states."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(json.dumps(item, sort_keys=True).encode())
    return digest.hexdigest()


def read(item: Item, options: LocalizeOptions) -> bytes:
    """The encoded image of a row of a listing. Raises `DataError` if it cannot be read or is too large."""
    uri = str(item["uri"])
    place, mark, row = uri.rpartition(ROW)
    if item["size"] > MAX_BYTES:
        raise DataError(f"image has {item['size']} bytes, over the limit of {MAX_BYTES}")
    try:
        if not (mark and row.isdecimal()):
            return _named_bytes(uri)
        if place.rpartition(":")[2] in list(Role):
            return _of_split(place, int(row))
        with _ONE:
            value = _of_parquet(place, int(row), options.image_column)
        return _encoded(place, value)
    except STORAGE_ERRORS as error:
        raise DataError(f"file cannot be read: {error}") from error


def _named_bytes(uri: str) -> bytes:
    if not uri:
        raise DataError("the list names no file here")
    return file_bytes(uri)


def _encoded(place: str, value: Any) -> bytes:
    """The image of a Parquet file's cell: bytes, a URI, or {bytes, path} of both as Hugging Face's datasets have it."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str) and value:
        return file_bytes(_beside(place, value))
    if isinstance(value, bytes):
        return value
    raise DataError(f"the image's cell must hold bytes, a URI, or a struct of bytes and path but holds {value!r:.40}")


def _found(options: LocalizeOptions) -> Iterator[Item]:
    source = options.source
    head, _, split = source.rpartition(":")
    if split in list(Role) and head:
        return _dataset(head, Role(split), options)
    name = source.lower()
    if options.labels.startswith(COLUMN) and not name.endswith((".csv", ".parquet")):
        raise UsageError(f"--labels {options.labels} needs a .csv or .parquet list but --source is {source!r}.")
    if name.endswith(".parquet"):
        return _parquet(source, options)
    if name.endswith((".txt", ".csv")):
        return _list(source, options)
    if name.endswith(ARCHIVES):
        if not Store.at(source).is_local:
            raise UsageError(f"{source} is an archive in a bucket: copy it to a disk, or unpack it to a prefix.")
        return _folder(Store.at(unpacked(Path(source).expanduser().resolve())), options)
    if glob.has_magic(source) and not Store.at(source).exists():
        return _glob(source, options)
    folder, _, last = Store.at(source).uri.rpartition("/")
    if name.endswith(ENDINGS) and Store(folder).exists(last):
        return iter([_file(Store(folder), last, _state(Store(folder), last), options)])
    return _folder(Store.at(source), options)


def _file(store: Store, name: str, state: tuple[int, str], options: LocalizeOptions, labels: Any = None) -> Item:
    parent = PurePosixPath(store.path(name)).parent.name
    known = [nfc(parent)] if options.labels == FOLDER else [options.labels] if options.labels else None
    size, stamp = state
    own = labels if labels is not None else known
    return {"image_id": nfc(name), "uri": store.path(name), "size": size, "state": stamp, "labels": own}


def _folder(store: Store, options: LocalizeOptions) -> Iterator[Item]:
    facts = store.facts()
    if not facts and not store.exists():
        raise DataError(f"--source {store.uri} does not exist.")
    if MANIFEST in facts:
        raise UsageError(f"{store.uri} is an imported dataset: say which split, as {store.uri}:val.")
    for name in sorted((name for name in facts if _is_image(name)), key=str.encode):
        yield _file(store, name, facts[name], options)


def _is_image(name: str) -> bool:
    return name.lower().endswith(ENDINGS) and not any(is_hidden(part) for part in name.split("/"))


def _glob(pattern: str, options: LocalizeOptions) -> Iterator[Item]:
    parts = pattern.split("/")
    heads = ["/".join(parts[:end]) for end in range(1, len(parts))]  # "ph [1]" can be a folder's name
    fixed = next((i for i, head in enumerate(heads) if glob.has_magic(parts[i]) and not Store.at(head).exists()), -1)
    store = Store.at("/".join(parts[:fixed]) or ("/" if pattern.startswith("/") else "."))
    rest = "/".join(parts[fixed:])
    if store.is_local:
        names = [path.relative_to(store.uri).as_posix() for path in Path(store.uri).glob(rest)]
        facts = {name: _state(store, name) for name in names if Path(store.path(name)).is_file()}
    else:
        facts = {name: of for name, of in store.facts().items() if fnmatch.fnmatchcase(name, rest)}
    for name in sorted((name for name in facts if _is_image(name)), key=str.encode):
        yield _file(store, name, facts[name], options)


def _state(store: Store, name: str) -> tuple[int, str]:
    """Size and state of a file; nothing is known of one that is not there, which is told when it is read."""
    if not store.exists(name):
        return 0, ""
    if store.is_local:
        stat = Path(store.path(name)).stat()
        return stat.st_size, str(stat.st_mtime_ns)
    return store.size(name), ""


def _list(source: str, options: LocalizeOptions) -> Iterator[Item]:
    """A list's lines in their order; relative ones are relative to the list."""
    text = _text(source)
    if source.lower().endswith(".txt"):
        yield from (_named(source, line.strip(), options) for line in text.splitlines() if line.strip())
        return
    table = csv.DictReader(io.StringIO(text, newline=""))
    columns = list(table.fieldnames or ())
    column = next((name for name in ("path", "uri") if name in columns), None)
    if column is None:
        raise DataError(f"{source} must have a column path or uri but has {', '.join(columns) or 'none'}.")
    label = _label_column(options, columns, source)
    for line in table:
        yield _named(source, line[column] or "", options, None if label is None else [line[label] or ""])


def _text(source: str) -> str:
    store = Store.at(source)
    if store.is_local:
        return read_text(Path(store.uri))
    try:
        return file_bytes(store.uri).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"Cannot read {source}: {error}.") from error


def _label_column(options: LocalizeOptions, columns: Sequence[str], source: str) -> str | None:
    if not options.labels.startswith(COLUMN):
        return None
    if (name := options.labels.removeprefix(COLUMN)) not in columns:
        raise unknown(f"column of {source}", name, columns)
    return name


def _named(listing: str, name: str, options: LocalizeOptions, labels: Any = None) -> Item:
    """A file that a list names; a line without a name is told when it is read."""
    if not name.strip():
        return {"image_id": "", "uri": "", "size": 0, "state": "", "labels": labels}
    store, _, last = Store.at(_beside(listing, name) or ".").uri.rpartition("/")
    item = _file(Store(store), last, _state(Store(store), last), options, labels)
    return item | {"image_id": nfc(name)}


def _beside(listing: str, name: str) -> str:
    """A name in a list as a place: relative ones are beside the list."""
    if "://" in name or name.startswith("/"):
        return name
    return f"{listing.rpartition('/')[0] or '.'}/{name}"


def _dataset(place: str, role: Role, options: LocalizeOptions) -> Iterator[Item]:
    if role is Role.TEST and not options.allow_test:
        raise UsageError(f"{place}:test is for the final evaluation: --allow-test says that nothing is chosen by it.")
    split = _split(f"{place}:{role}")
    names = open_dataset(place).classes
    labels = split.shard_set().read_all(["labels"])["labels"].to_pylist()
    for row, (name, own) in enumerate(zip(split.ids, labels, strict=True)):
        known = [names[label] for label in own] if options.labels == FOLDER else None
        uri = f"{Store.at(place)}:{role}{ROW}{row}"
        yield {"image_id": name, "uri": uri, "size": 0, "state": split.fingerprint[:16], "labels": known}


@functools.lru_cache(maxsize=4)
def _split(place: str) -> Split:
    where, _, role = place.rpartition(":")
    dataset = open_dataset(where)
    return {Role.TRAIN: dataset.train, Role.VAL: dataset.val}.get(Role(role)) or dataset.test()


def _of_split(place: str, row: int) -> bytes:
    return bytes(_split(place).shard_set().read(np.array([row]), ["image"])["image"][0].as_py())


class RangeFile(io.RawIOBase):
    """A stored file that is read where it is asked for, of a disk or a bucket."""

    def __init__(self, store: Store, name: str) -> None:
        self.store, self.file, self.at, self.length = store, name, 0, store.size(name)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.length}[whence]
        return self.at

    def tell(self) -> int:
        return self.at

    def readinto(self, buffer: Any) -> int:
        data = self.store.read_range(self.file, self.at, min(self.at + len(buffer), self.length))
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)


def _opened(place: str) -> pq.ParquetFile:
    store, _, name = Store.at(place).uri.rpartition("/")
    try:
        return pq.ParquetFile(RangeFile(Store(store), name))
    except (pa.ArrowInvalid, FileNotFoundError) as error:
        raise DataError(f"{place} is no Parquet file: {str(error).splitlines()[0]}.") from error


def _parquet(source: str, options: LocalizeOptions) -> Iterator[Item]:
    file = _opened(source)
    columns = file.schema_arrow.names
    for name in filter(None, (options.image_column, options.id_column)):
        if name not in columns:
            raise unknown(f"column of {source}", name, columns)
    label = _label_column(options, columns, source)
    groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
    if groups and (largest := max(group.total_byte_size for group in groups)) > MAX_GROUP_BYTES:
        raise DataError(
            f"{source} has a row group of {largest} bytes, over {MAX_GROUP_BYTES}: write it with smaller ones, "
            "which are read whole."
        )
    wanted = [name for name in (options.id_column, label) if name]
    table: Mapping[str, list[Any]] = file.read(columns=wanted).to_pydict() if wanted else {}
    uri, state = Store.at(source).uri, hashlib.sha256(file.metadata.serialized_size.to_bytes(8, "big")).hexdigest()[:16]
    for row in range(file.metadata.num_rows):
        name = _cell(table, options.id_column, row) or f"{row:09d}"
        fixed = [options.labels] if options.labels and label is None else None
        own = fixed if label is None else [_cell(table, label, row)]
        yield {"image_id": name, "uri": f"{uri}{ROW}{row}", "size": 0, "state": state, "labels": own}


def _cell(table: Mapping[str, list[Any]], column: str, row: int) -> str:
    """A cell as text, empty where it is null or there is no such column."""
    value = table[column][row] if column else None
    return "" if value is None else str(value)


def _of_parquet(place: str, row: int, column: str) -> Any:
    starts = _starts(place)
    group = int(np.searchsorted(starts, row, side="right")) - 1
    return _group(place, group, column)[row - int(starts[group])].as_py()


@functools.lru_cache(maxsize=2)
def _starts(place: str) -> np.ndarray:
    metadata = _opened(place).metadata
    return np.cumsum([0, *(metadata.row_group(number).num_rows for number in range(metadata.num_row_groups))])


@functools.lru_cache(maxsize=1)
def _group(place: str, group: int, column: str) -> pa.ChunkedArray:
    return _opened(place).read_row_group(group, columns=[column])[column]
