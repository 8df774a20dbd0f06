"""A station of the walk: a folder of Parquet shards, each made from some rows of a split, sealed when all are there.

    <storage>/<name>/identity.json            what it is made of: seals, options; another question is refused
                     train/00000.parquet      the answer for rows 0..255, with what was counted beside it
                     train/00000.json
                     manifest.json, seal.json written last: all shards with their SHA-256, what was chosen

A shard depends on its rows and the identity alone, so whatever dies, the same command makes the missing ones, and all
are what an undisturbed run has made. They are made here, or by a pool of Ray actors.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import ray
from ray.util import ActorPool

from wsol_pipeline.data.shards import Shard, ShardSet, describe_shard, encode_shard
from wsol_pipeline.errors import DataError, MismatchError, UsageError
from wsol_pipeline.protocol import Role
from wsol_pipeline.storage import Store
from wsol_pipeline.training.checkpoint import SEAL, read_sealed, seal_of, write_sealed

IDENTITY, MANIFEST = "identity.json", "manifest.json"
ROWS = 256  # of a shard: what a fault costs at most
LIVES = 4  # an actor may die as often, and be given its shard again


@dataclass(frozen=True)
class Part:
    """Rows `begin` to `end` of a split, which make the shard of this `number`."""

    role: str
    number: int
    begin: int
    end: int

    @property
    def name(self) -> str:
        return f"{self.role}/{self.number:05d}"


class Worker(Protocol):
    """Makes the table of a part, and what is counted of it: plain data."""

    def __call__(self, part: Part) -> tuple[pa.Table, dict[str, Any]]: ...


Make = Callable[[], Worker]


def parts_of(role: str, rows: int, size: int = ROWS) -> list[Part]:
    return [Part(role, number, begin, min(begin + size, rows)) for number, begin in enumerate(range(0, rows, size))]


def begin(place: Store, identity: Mapping[str, Any]) -> None:
    """Note what a station is made of. Raises `UsageError` if its name belongs to another one."""
    wanted = json.dumps(identity, indent=1, sort_keys=True)
    if not place.exists(IDENTITY):
        place.write(IDENTITY, wanted.encode())
    kept = json.loads(place.read(IDENTITY))
    now = json.loads(wanted)
    if odd := sorted(name for name in kept | now if kept.get(name) != now.get(name)):
        raise UsageError(f"{place.uri} holds an answer to another question ({', '.join(odd)} differ): use a --name.")


def run_parts(
    place: Store, make: Make, parts: Sequence[Part], workers: int = 1, device: str = "cpu"
) -> Iterator[dict[str, Any]]:
    """The reports of all parts in their order; those that were made before are only read.

    With one worker and no Ray they are made here, else by a pool of actors; an actor that dies costs its shard.
    """
    made = [kept(place, part) for part in parts]
    missing = iter(
        _spread(place, make, [p for p, report in zip(parts, made, strict=True) if not report], workers, device)
    )
    for report in made:
        yield report or next(missing)


def _spread(place: Store, make: Make, parts: Sequence[Part], workers: int, device: str) -> Iterator[dict[str, Any]]:
    if not parts:
        return
    if not ray.is_initialized():
        worker = make()
        yield from (write(place, part, worker) for part in parts)
        return
    resources = {"num_cpus": 1, "num_gpus": int(device == "cuda")}
    kind = ray.remote(Maker).options(max_restarts=LIVES, max_task_retries=LIVES, **resources)
    pool: ActorPool = ActorPool([kind.remote(place, make) for _ in range(min(workers, len(parts)))])
    yield from pool.map(lambda actor, part: actor.write.remote(part), list(parts))


class Maker:
    """An actor: it loads its networks once."""

    def __init__(self, place: Store, make: Make) -> None:
        self.place, self.worker = place, make()

    def write(self, part: Part) -> dict[str, Any]:
        return write(self.place, part, self.worker)


def write(place: Store, part: Part, worker: Worker) -> dict[str, Any]:
    """Make a part's shard, then its report: without that the shard does not count."""
    table, report = worker(part)
    data, name = encode_shard(table), f"{part.name}.parquet"
    place.write(name, data)
    report |= {"shard": asdict(describe_shard(name, table.num_rows, data))}
    place.write(f"{part.name}.json", json.dumps(report).encode())
    return report


def kept(place: Store, part: Part) -> dict[str, Any] | None:
    """The report of a shard that was made before and is whole."""
    try:
        report = json.loads(place.read(f"{part.name}.json"))
        whole = hashlib.sha256(place.read(f"{part.name}.parquet")).hexdigest() == report["shard"]["sha256"]
    except (FileNotFoundError, ValueError, KeyError):
        return None
    return report if whole else None


@dataclass(frozen=True)
class Station:
    """A finished station."""

    place: Store
    manifest: dict[str, Any]

    @cached_property
    def seal(self) -> str:
        return seal_of(self.place)

    @property
    def identity(self) -> dict[str, Any]:
        return self.manifest["identity"]

    @property
    def storage(self) -> Store:
        """Where this station and those that it is made of lie, today."""
        return storage_of(self.place)

    def uri(self, name: str) -> str:
        """Where something that the station is made of, or has made, lies today."""
        return self.storage.resolve(self.manifest["places"][name]).uri

    def uris(self, name: str) -> tuple[str, ...]:
        return tuple(self.storage.resolve(place).uri for place in self.manifest["places"][name])

    def rows(self, role: Role | str) -> int:
        return sum(shard.rows for shard in self.shards(role))

    def shards(self, role: Role | str) -> tuple[Shard, ...]:
        return tuple(Shard(**shard) for shard in self.manifest["shards"].get(str(role), ()))

    def read(self, role: Role | str, rows: np.ndarray, columns: Sequence[str]) -> pa.Table:
        """Some columns of rows, compared with their SHA-256."""
        return ShardSet(self.place, self.shards(role)).read(rows, list(columns))


def storage_of(place: Store) -> Store:
    """Where a station lies among others."""
    return Store(place.uri.rpartition("/")[0])


def finish(
    place: Store,
    kind: str,
    shards: Mapping[str, Sequence[Mapping[str, Any]]],
    places: Mapping[str, str | Sequence[str]],
    found: Mapping[str, Any],
) -> Station:
    """Seal a station whose shards are all there. `places`: URIs of what it is made of and of what it has made, kept so
    that all may move together; `found`: what was chosen and counted."""
    storage = storage_of(place)
    kept = {
        name: storage.relative(uri) if isinstance(uri, str) else [storage.relative(one) for one in uri]
        for name, uri in places.items()
    }
    identity = json.loads(place.read(IDENTITY))
    manifest = {"kind": kind, "identity": identity, "places": kept, "shards": dict(shards), **found}
    write_sealed(place, {MANIFEST: json.dumps(manifest, indent=1, sort_keys=True).encode()})
    return Station(place, manifest)


def finished(store: Store, name: str, kind: str = "") -> Station:
    """A sealed station: `name` in a storage, or without a name the one at `store` itself.

    Raises `DataError` for one that is not there or not finished, `UsageError` for one of another kind.
    """
    place = store / name if name else store
    if not place.exists(SEAL):
        known = sorted({path.split("/")[0] for path in store.list() if path.endswith(f"/{IDENTITY}")})
        state = "is not finished: its command continues it" if name in known else f"is not there: {_known(known)}"
        raise DataError(f"{kind or 'Station'} {name!r} in {store.uri} {state}.")
    manifest = json.loads(read_sealed(place, MANIFEST)[MANIFEST])
    if kind and manifest["kind"] != kind:
        raise UsageError(f"{place.uri} holds {manifest['kind']}, not {kind}.")
    return Station(place, manifest)


def sealed_as(place: Store, seals: Sequence[str], kind: str = "") -> Station:
    """The station at a place, which something is made of that has noted its seal. Raises `MismatchError` if another
    one lies there by now."""
    found = finished(place, "", kind)
    if found.seal not in seals:
        raise MismatchError(f"{place.uri} holds other {found.manifest['kind']} than it held (seal {found.seal[:12]}).")
    return found


def source(found: Station, name: str) -> Station:
    """The station that another one is made of."""
    return sealed_as(Store.at(found.uri(name)), found.identity["sources"])


def is_finished(place: Store) -> bool:
    return place.exists(SEAL)


def _known(names: Sequence[str]) -> str:
    return f"known are {', '.join(names)}" if names else "there are none"
