"""From an importer's rows to shards: check every row, write every shard, then the manifest.

Which candidate rows make a shard is fixed before anything is read, so the bytes are the same whatever the parallelism,
and a run that was killed keeps the shards it had written. A row that cannot be trusted is left out with its reason in
`quarantine.json`; too many of them, and there is no dataset.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from wsol_pipeline.data.checks import checked, looks
from wsol_pipeline.data.findings import LEFT_OUT, Finding, Refused, allowed, in_a_line, of_rows, of_source
from wsol_pipeline.data.hashes import hash_ids
from wsol_pipeline.data.importers import Source
from wsol_pipeline.data.schema import ROW_GROUP, VERSION, Fault, Kind, Row, RowError, Rules, schema
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
from wsol_pipeline.data.survey import by_ending, passed_over, tally
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
    rules: Rules

    def digest(self) -> str:
        """Changes when a candidate row does: its annotation, or size or time of its file."""
        facts = [VERSION, self.rules, [(row, _stamp(row)) for row in self.rows]]
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
    notes: dict[str, int]  # what was done to stored rows -> how many
    kept: bool = False  # written by an earlier run


OnShard = Callable[[ShardReport, int, int], None]


def import_dataset(
    source: Source,
    out: Store,
    *,
    name: str,
    origin: dict[str, Any],
    max_bad: float | None = None,
    workers: int = 1,
    shard_bytes: int = 128 * 2**20,
    on_shard: OnShard = lambda report, done, total: None,
    check: Callable[[], None] = lambda: None,
) -> Manifest:
    """Write `source` as a dataset at `out`; if the same import has finished there, write anew what was damaged since.

    `origin` says what is imported (importer, place, options); `max_bad` is the share of rows that may be left out (by
    default as many as `allowed`); `workers` over 1 writes shards in
    Ray tasks; `on_shard` hears (report, done, total) after each shard; `check` is called there
    and before the manifest, and raises once another import may write here.
    Raises `Refused` for a source that cannot make a dataset, `UsageError` if `out` holds another one.
    """

    def tell(report: ShardReport, done: int, total: int) -> None:
        on_shard(report, done, total)
        check()

    if out.exists(MANIFEST):
        return _mended(_finished(out, origin), source, out, workers, shard_bytes, tell)
    rows = list(source.rows)
    out.check_writable()  # a refusal is kept there too
    _require_sound(source, rows, workers, out)
    jobs = _plan(_by_role(rows), source.rules, out, shard_bytes)
    at_most = allowed(source, max_bad, len(rows)) if source.benchmark else len(rows)
    reports = _written(jobs, workers, tell, at_most)
    bad = [row for report in reports for row in report.bad]
    _quarantine(out, bad)
    _require_few(source, rows, bad, max_bad, out)
    manifest = _manifest(source, rows, name, origin, jobs, reports)
    out.write(MANIFEST, manifest.to_json(), check)
    for job in jobs:
        out.remove(_progress(job))
    return manifest


def _require_sound(source: Source, rows: list[Row], threads: int, out: Store) -> None:
    """Raise `Refused` for what is wrong beside single rows, with all that is wrong with these, and keep it at `out`.

    Of a benchmark only with what the importer found of them: its images are many, and take `--check`.
    """
    if not (beside := of_source(source, rows)):
        return
    looked_at = [row for row in rows if row.fault] if source.benchmark else rows
    looked = looks(looked_at, source.rules, threads)
    bad = [_bad(row, found) for row, found in looked if isinstance(found, Fault)]
    of_all = [{"id": "", "split": "", "kind": "source", "reason": item} for finding in beside for item in finding.items]
    _quarantine(out, [*of_all, *bad])
    findings = of_source(source, rows, of_rows(faults_of(bad)))
    raise _refused(source, rows, bad, findings, in_a_line(findings), out)


def _require_few(source: Source, rows: list[Row], bad: list[dict[str, str]], max_bad: float | None, out: Store) -> None:
    """Raise `Refused` for more bad rows than may be left out, and for those that leave a split or a class empty."""
    if len(bad) > (most := allowed(source, max_bad, len(rows))):
        limit = f"over --max-bad {max_bad:g}" if max_bad is not None else f"and {int(most)} pass without --max-bad"
        first = f"The first is {bad[0]['id']!r}: {bad[0]['reason']}."
        what = f"{len(bad)} of {len(rows)} rows are bad, {limit}. {first}"
        raise _refused(source, rows, bad, of_rows(faults_of(bad)), what, out)
    if bad and (empty := of_source(source, rows, sound=_without(rows, bad))):
        raise _refused(source, rows, bad, [*of_rows(faults_of(bad), LEFT_OUT), *empty], in_a_line(empty), out)


def _bad(row: Row, fault: Fault) -> dict[str, str]:
    """A row that is left out, as `quarantine.json` has it."""
    return {"id": row.id, "split": row.role.value, **fault._asdict()}


def _quarantine(out: Store, bad: list[dict[str, str]]) -> None:
    out.write(QUARANTINE, (json.dumps(bad, indent=1) + "\n").encode())


def _without(rows: list[Row], bad: list[dict[str, str]]) -> list[Row]:
    ids = {row["id"] for row in bad}
    return [row for row in rows if not row.fault and row.id not in ids]


def _written(jobs: list[ShardJob], workers: int, on_shard: OnShard, at_most: float) -> list[ShardReport]:
    """The reports of all shards, or of the first ones if these have more than `at_most` bad rows."""
    reports: list[ShardReport] = []
    for report in _run(jobs, workers):
        reports.append(report)
        on_shard(report, len(reports), len(jobs))
        if sum(len(report.bad) for report in reports) > at_most:
            break  # the rest cannot mend it
    return reports


def faults_of(quarantine: list[dict[str, str]]) -> Iterator[tuple[str, Fault]]:
    """Id and fault of each entry of `quarantine.json`."""
    return ((row["id"], Fault(Kind(row["kind"]), row["reason"])) for row in quarantine)


def _refused(
    source: Source, rows: list[Row], bad: list[dict[str, str]], findings: list[Finding], what: str, out: Store
) -> Refused:
    found = tally(source, _without(rows, bad), passed_over(source, rows))
    return Refused(f"{what} All that were found are in {out.path(QUARANTINE)}.", findings, found)


def _finished(out: Store, origin: dict[str, Any]) -> Manifest:
    manifest = read_manifest(out)
    if manifest.source != json.loads(json.dumps(origin)):
        raise UsageError(f"{out.uri} holds another dataset, made from {manifest.source}: choose another --out.")
    return manifest


def _mended(
    manifest: Manifest,
    source: Source,
    out: Store,
    workers: int,
    shard_bytes: int,
    on_shard: OnShard,
) -> Manifest:
    """`manifest` once each of its shards is what it says: those that are not are written again, from `source`.

    Raises `DataError` if the source is not any more what they were made from.
    """
    shards = [shard for info in manifest.splits.values() for shard in info.shards]
    with ThreadPoolExecutor(1 if out.is_local else 16) as pool:
        whole = list(pool.map(lambda shard: _is_whole(out, shard), shards))
    damaged = {shard.name: shard for shard, fine in zip(shards, whole, strict=True) if not fine}
    if not damaged:
        return manifest
    jobs = [job for job in _plan(_by_role(list(source.rows)), source.rules, out, shard_bytes) if job.name in damaged]
    reports = {job.name: report for job, report in zip(jobs, _written(jobs, workers, on_shard, np.inf), strict=True)}
    for name, shard in damaged.items():
        report = reports.get(name)
        if report is None or report.shard != asdict(shard):
            raise DataError(
                f"{out.path(name)} is damaged, and {manifest.source.get('source') or 'its source'} does not give it "
                "again: it has changed since. Bring that back, or import into another --out."
            )
    for job in jobs:
        out.remove(_progress(job))
    return manifest


def _is_whole(out: Store, shard: Shard) -> bool:
    try:
        return out.size(shard.name) == shard.bytes and _sha256(out.read(shard.name)) == shard.sha256
    except FileNotFoundError:
        return False


def _by_role(rows: list[Row]) -> dict[Role, list[Row]]:
    """Rows of each split in the order they are stored: training rows shuffled by a hash of the id, others by id.

    Class masks of training rows, which no shard holds, are not sent to who writes shards.
    """
    splits = {role: [row for row in rows if row.role is role] for role in Role}
    splits[Role.TRAIN] = [replace(row, class_mask=None) for row in splits[Role.TRAIN]]
    hashes = hash_ids(row.id for row in splits[Role.TRAIN])
    shuffled = [splits[Role.TRAIN][at] for at in np.argsort(hashes, kind="stable")]
    held_out = {role: sorted(splits[role], key=lambda row: row.id) for role in (Role.VAL, Role.TEST)}
    return {Role.TRAIN: shuffled, **held_out}


def _plan(splits: dict[Role, list[Row]], rules: Rules, out: Store, shard_bytes: int) -> list[ShardJob]:
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
                jobs.append(ShardJob(out, name, role, tuple(held), rules))
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
    stored, bad, facts, counts, noted = [], [], [], Counter[int](), Counter[str]()
    for row in job.rows:
        try:
            columns, notes = checked(row, job.rules)
        except RowError as error:
            bad.append(_bad(row, error.fault))
            continue
        stored.append({name: columns[name] for name in schema(job.role).names})
        facts.append(_facts(columns))
        counts.update(row.labels)
        noted.update(notes)
    shard = _write(job, stored) if stored else None
    per_class = [counts[label] for label in range(job.rules.num_classes)]
    masks = sum(row.get("mask") is not None for row in stored)
    boxes = sum(_has_boxes(row, job.rules.multilabel) for row in stored)
    own = asdict(shard) if shard else None
    report = ShardReport(digest, own, per_class, facts, bad, masks, boxes, dict(noted))
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


def _facts(columns: dict[str, Any]) -> str:
    """What the fingerprint covers of a row, as one line of JSON."""
    pixels = [columns.get(name) for name in ("image", "mask", "ignore")]
    digests = [data and _sha256(data) for data in pixels]
    return json.dumps(
        [columns["id"], columns["labels"], columns.get("boxes", []), columns.get("box_labels", []), *digests]
    )


def _manifest(
    source: Source, rows: list[Row], name: str, origin: dict[str, Any], jobs: list[ShardJob], reports: list[ShardReport]
) -> Manifest:
    splits = {
        role: _split(role, [report for job, report in zip(jobs, reports, strict=True) if job.role is role])
        for role in Role
    }
    noted = sum((Counter(report.notes) for report in reports), Counter[str]())
    return Manifest(
        name,
        source.classes,
        source.multilabel,
        source.box_convention,
        origin,
        {role.value: 0 for role in Role} | Counter(row["split"] for report in reports for row in report.bad),
        splits,
        left_out=dict(source.left_out),
        passed_over={reason: by_ending(files) for reason, files in passed_over(source, rows).items()},
        notes=dict(noted),
        located=Role.VAL in source.located,
    )


def _split(role: Role, reports: list[ShardReport]) -> SplitInfo:
    """What the manifest says of a split, from the reports of its shards."""
    facts = sorted(line for report in reports for line in report.facts)
    return SplitInfo(
        len(facts),
        tuple(np.sum([report.per_class for report in reports], axis=0).tolist()),
        _sha256("\n".join(facts).encode()),
        tuple(Shard(**report.shard) for report in reports if report.shard),
        sum(report.masks for report in reports),
        sum(report.boxes for report in reports),
    )
