"""A localization that can die at any moment: a contract, a listing, parts of it with a seal each.

    contract.json               the model, the options, the listing: what makes two runs the same one
    listing.parquet             every image, numbered
    parts/part-00000.parquet    rows of images [0, chunk), a row a box
    parts/part-00000.json       its seal, written after it: SHA-256, first and last image, the images that are broken
    problems.csv                the broken ones of all parts, at the end

An image is done when a seal covers it. Of writers that meet the first seal wins; a part without one is made anew.
Actors of plain tasks, not Ray Data: a window of slices in flight bounds memory whatever the images weigh, and rows come
back by chunk, in the order of the listing, so that a part's bytes do not depend on who did what when.
"""

import csv
import dataclasses
import hashlib
import io
import itertools
import json
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from wsol_pipeline import interrupts
from wsol_pipeline.errors import DataError, ResourceError, UsageError, unknown
from wsol_pipeline.redaction import redact
from wsol_pipeline.storage import Store
from wsol_pipeline.study.lease import acquire
from wsol_pipeline.training import cluster
from wsol_pipeline.training.config import differences
from wsol_pipeline.training.model import Model, ModelFiles, assemble
from wsol_pipeline.use.localizer import ROWS, Localizer, Problem, Row
from wsol_pipeline.use.models import named
from wsol_pipeline.use.options import LocalizeOptions
from wsol_pipeline.use.sources import COLUMN, FOLDER, LISTING, Item, check_names, fingerprint, listed

CONTRACT, LISTED, PROBLEMS, PARTS = "contract.json", "listing.parquet", "problems.csv", "parts"
NOT_RESULTS = ("batch_size", "device", "workers", "decoders", "max_bad", "storage_is_shared", "out", "format",
               "gallery", "save_conf", "extend", "redo_changed", "verify", "model", "study", "storage",
               "source")  # fmt: skip
RETRIES = 3  # of a slice whose worker dies
IN_FLIGHT = 2  # slices a worker
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True)
class Outcome:
    """What a localization has come to."""

    store: Store
    images: int
    boxes: int
    problems: tuple[Problem, ...]
    done_before: int  # images that an earlier run had done
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Chunk:
    """Images [first, last) of the listing, and their part's number."""

    number: int
    first: int
    last: int

    @property
    def name(self) -> str:
        return f"{PARTS}/part-{self.number:05d}"


def localize(options: LocalizeOptions, progress: Progress) -> Outcome:
    """Localize every image of the source that no seal covers yet.

    Raises:
        UsageError: --out is of another contract, or lies in the source; an option is not what it can be.
        DataError: the source has no image, the model is broken, or more than --max-bad of the images are.
        ResourceError: another process works on this --out, or a place is away.
    """
    files, store = named(options), options.store.check_exclusive()
    _require_outside(store, options.source)
    with acquire(store / "lease"):
        found = listed(options)
        check_names(found, options.format)
        if not store.exists(CONTRACT):  # which would outlive what the model refuses
            _check(assemble(files, "cpu").seeing(options.views), options)
        items, contract, notes = _agreed(store, options, files, found)
        todo = [chunk for chunk in chunks(contract) if sealed(store, chunk) is None]
        left = sum(chunk.last - chunk.first for chunk in todo)
        with progress("localized", left) as add, interrupts.gently():
            _work(store, options, files, [(chunk, items[chunk.first : chunk.last]) for chunk in todo], add)
    return dataclasses.replace(verify(store), done_before=len(items) - left, notes=tuple(notes))


def _check(model: Model, options: LocalizeOptions) -> None:
    """Raise `UsageError` for what the model cannot be asked: of all images, before any is opened."""
    model.check(options.wanted())
    fixed = options.labels and options.labels != FOLDER and not options.labels.startswith(COLUMN)
    if fixed and options.labels not in model.classes:
        raise unknown("class of the model", options.labels, model.classes)


def verify(store: Store) -> Outcome:
    """That parts and problems hold each image of the listing once. Raises `DataError` that names what is not so."""
    contract, items = read_contract(store), read_listing(store)
    problems: list[Problem] = []
    boxes = 0
    for chunk in chunks(contract):
        seal = sealed(store, chunk)
        if seal is None:
            raise DataError(f"{store.path(chunk.name)} has no seal: the same command as before continues.")
        rows = part(store, chunk, seal)
        boxes += sum(row["x0"] is not None for row in rows)
        done, broken = {row["index"] for row in rows}, {problem["index"] for problem in seal["problems"]}
        if done & broken or done | broken != set(range(chunk.first, chunk.last)):
            odd = sorted((done & broken) | (set(range(chunk.first, chunk.last)) ^ (done | broken)))
            raise DataError(f"{store.path(chunk.name)} does not hold each of its images once: see image {odd[0]}.")
        problems += seal["problems"]
    store.write(PROBLEMS, _as_csv(problems))
    return Outcome(store, len(items), boxes, tuple(problems), len(items))


def read_contract(store: Store) -> dict[str, Any]:
    """The contract of a localization. Raises `DataError` if there is none."""
    try:
        return json.loads(store.read(CONTRACT))
    except (FileNotFoundError, ValueError) as error:
        raise DataError(f"{store.uri} holds no localization ({error}): --source and --model begin one.") from error


def read_listing(store: Store) -> list[Item]:
    """The images of a localization, by their numbers."""
    return pq.read_table(io.BytesIO(store.read(LISTED))).to_pylist()


def chunks(contract: dict[str, Any]) -> list[Chunk]:
    """The parts of a listing; each of its extensions begins with a part of its own."""
    bounds, first = [], 0
    for count in contract["counts"]:
        end = first + count
        bounds += [(at, min(at + contract["chunk"], end)) for at in range(first, end, contract["chunk"])]
        first = end
    return [Chunk(number, *bound) for number, bound in enumerate(bounds)]


def sealed(store: Store, chunk: Chunk) -> dict[str, Any] | None:
    """The seal over a part, or None."""
    name = f"{chunk.name}.json"
    return json.loads(store.read(name)) if store.exists(name) else None


def part(store: Store, chunk: Chunk, seal: dict[str, Any] | None = None) -> list[Row]:
    """The rows of a part. Raises `DataError` if it is not what its seal says."""
    seal = seal or sealed(store, chunk) or {}
    try:
        data = store.read(f"{chunk.name}.parquet")
    except FileNotFoundError as error:
        raise DataError(f"{store.path(chunk.name)}.parquet is missing: without its seal it is made anew.") from error
    if hashlib.sha256(data).hexdigest() != seal.get("sha256"):
        raise DataError(f"{store.path(chunk.name)}.parquet was altered: without its seal it is made anew.")
    return pq.read_table(io.BytesIO(data)).to_pylist()


def by_image(store: Store) -> Iterator[list[Row]]:
    """The rows of each image that was localized, image by image; a part is in memory at a time."""
    for chunk in chunks(read_contract(store)):
        for _, rows in itertools.groupby(part(store, chunk), key=lambda row: row["index"]):
            yield list(rows)


def _require_outside(store: Store, source: str) -> None:
    place = Store.at(source.rstrip("/") or "/").uri
    if store.uri == place or store.uri.startswith(f"{place}/"):
        raise UsageError(f"--out {store.uri} lies in --source {place}: results would become images of the next run.")


def _agreed(
    store: Store, options: LocalizeOptions, files: ModelFiles, found: list[Item]
) -> tuple[list[Item], dict[str, Any], list[str]]:
    """Listing and contract of `store`, made or continued; and what is to be said of them."""
    told = {key: value for key, value in dataclasses.asdict(options).items() if key not in NOT_RESULTS}
    classes = json.loads(files.description)["classes"]
    versions = {name: version(name) for name in ("wsol", "torch")}
    facts = redact(
        {**json.loads(json.dumps(told)), "model_sha256": files.sha256, "classes": classes, "versions": versions}
    )
    if not store.exists(CONTRACT):
        _write_listing(store, found)
        contract = facts | {"counts": [len(found)], "listing": fingerprint(found)}
        store.write(CONTRACT, json.dumps(contract, indent=1).encode())
        return found, contract, []
    contract, before = read_contract(store), read_listing(store)
    if changes := differences({key: contract.get(key) for key in facts}, facts):
        raise UsageError(f"{store.uri} was begun otherwise ({changes}): give another --out, or the same options.")
    if contract["listing"] == fingerprint(found):
        return before, contract, []
    return _grown(store, options, contract, before, found)


def _grown(
    store: Store, options: LocalizeOptions, contract: dict[str, Any], before: list[Item], found: list[Item]
) -> tuple[list[Item], dict[str, Any], list[str]]:
    """The listing of a source that is another than it was, as far as the options allow it."""
    now, known = _keyed(found), _keyed(before)
    gone = [item for key, item in known.items() if key not in now]
    if gone:
        raise UsageError(f"The source lacks {len(gone)} of the images that {store.uri} lists, {gone[0]['uri']} first.")
    new = [item for key, item in now.items() if key not in known]
    if new and not options.extend:
        raise UsageError(f"The source has {len(new)} new images ({new[0]['uri']} first): --extend localizes them too.")
    kept = [now[key] | {"index": item["index"]} for key, item in known.items()]
    changed = [item["index"] for item, own in zip(before, kept, strict=True) if item != own]
    notes = [f"{len(changed)} images have changed since they were localized ({before[changed[0]]['uri']} first); "
             f"--redo-changed localizes their parts anew."] if changed and not options.redo_changed else []  # fmt: skip
    if not options.redo_changed:
        kept = before
    else:
        for chunk in chunks(contract):
            if any(chunk.first <= index < chunk.last for index in changed):
                store.remove(f"{chunk.name}.json")
    items = kept + [item | {"index": len(kept) + at} for at, item in enumerate(new)]
    counts = [*contract["counts"], len(new)] if new else contract["counts"]
    if notes and not new:
        return items, contract, notes
    _write_listing(store, items)
    contract = contract | {"counts": counts, "listing": fingerprint(items)}
    store.write(CONTRACT, json.dumps(contract, indent=1).encode())
    return items, contract, notes


def _keyed(items: list[Item]) -> dict[tuple[str, str, int], Item]:
    """Items by name, place and which of its repetitions each is: a list may name an image twice."""
    seen: Counter[tuple[str, str]] = Counter()
    keyed: dict[tuple[str, str, int], Item] = {}
    for item in items:
        name = item["image_id"], item["uri"]
        keyed[*name, seen[name]] = item
        seen[name] += 1
    return keyed


def _write_listing(store: Store, items: list[Item]) -> None:
    store.write(LISTED, _parquet(pa.Table.from_pylist(items, LISTING)))


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def _work(
    store: Store,
    options: LocalizeOptions,
    files: ModelFiles,
    todo: Sequence[tuple[Chunk, Sequence[Item]]],
    add: Callable[[int], None],
) -> None:
    """Localize chunk by chunk, and seal each once its rows are all there."""
    size = 4 * options.batch_size
    slices = [(chunk, own[at : at + size]) for chunk, own in todo for at in range(0, len(own), size)]
    rows: list[Row] = []
    problems: list[Problem] = []
    broken = total = 0
    results = _results(options, files, [own for _, own in slices])
    for (chunk, own), (more, bad) in zip(slices, results, strict=False):
        rows, problems = rows + more, problems + bad
        add(len(own))
        broken, total = broken + len(bad), total + len(own)
        if own[-1]["index"] + 1 == chunk.last:
            _seal(store, chunk, rows, problems)
            rows, problems = [], []
            if broken > options.max_bad * total:
                raise DataError(
                    f"{broken} of {total} images are broken, over --max-bad {options.max_bad:g}: "
                    f"{store.path(PARTS)} says which and why."
                )
        if interrupts.asked():
            return


def _results(
    options: LocalizeOptions, files: ModelFiles, slices: Sequence[Sequence[Item]]
) -> Iterator[tuple[list[Row], list[Problem]]]:
    """What comes of each slice, in their order: here, or by a pool of actors with a few slices in flight each."""
    if not slices:
        return
    if options.workers == 1 and (not ray.is_initialized() or cluster.pick_device(options.device) == "cpu"):
        localizer = Localizer(files, options)
        yield from map(localizer.run, slices)
        return
    actors, kept = _actors(options, files)
    waiting: deque[Any] = deque()
    try:
        for number, own in enumerate(slices):
            if len(waiting) == IN_FLIGHT * len(actors):
                yield _got(waiting.popleft())
            waiting.append(actors[number % len(actors)].run.remote(own))
        while waiting:
            yield _got(waiting.popleft())
    finally:  # what holds a failure's frames would hold them, and their CPUs
        for actor in actors:
            ray.kill(actor)
        del kept  # not before: an actor that is started again reads its model anew


def _actors(options: LocalizeOptions, files: ModelFiles) -> tuple[list[Any], Any]:
    """The actors, and what they are made of, in Ray's store for as long as somebody holds it."""
    cluster.connect(nested=False)
    if options.source:
        cluster.check_storage_reaches_all(Store.at(options.source), options.storage_is_shared)
    device = cluster.pick_device(options.device)
    own, kind = dataclasses.replace(options, device=device), "GPU" if device == "cuda" else "CPU"
    if options.workers > (there := int(ray.cluster_resources().get(kind, 0))):
        raise ResourceError(f"--workers {options.workers} need a {kind} each but the cluster has {there}.")
    resources = {"num_gpus" if device == "cuda" else "num_cpus": 1}
    made = ray.remote(Localizer).options(max_restarts=RETRIES, max_task_retries=RETRIES, **resources)
    kept = ray.put(files)
    return [made.remote(kept, own) for _ in range(options.workers)], kept


def _got(result: Any) -> tuple[list[Row], list[Problem]]:
    try:
        return ray.get(result)
    except ray.exceptions.RayActorError as error:
        raise ResourceError(
            f"A worker died {RETRIES + 1} times ({str(error).splitlines()[0]}): the same command continues."
        ) from error
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error


def _seal(store: Store, chunk: Chunk, rows: list[Row], problems: list[Problem]) -> None:
    data = _parquet(pa.Table.from_pylist(rows, ROWS))
    store.write(f"{chunk.name}.parquet", data)
    facts = {"sha256": hashlib.sha256(data).hexdigest(), "first": chunk.first, "last": chunk.last, "problems": problems}
    store.create(f"{chunk.name}.json", json.dumps(facts, indent=1).encode())


def _as_csv(problems: Sequence[Problem]) -> bytes:
    sink = io.StringIO()
    table = csv.DictWriter(sink, ["index", "uri", "kind", "reason"], lineterminator="\n")
    table.writeheader()
    table.writerows(problems)
    return sink.getvalue().encode()
