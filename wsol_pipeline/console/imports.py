"""What an import says: a bar or lines while it runs, what was taken and what was not at its end."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from rich.progress import MofNCompleteColumn, Progress

from wsol_pipeline.console.progress import is_live
from wsol_pipeline.data.dataset import Dataset
from wsol_pipeline.data.doctor import examine
from wsol_pipeline.data.findings import LEFT_OUT, PROBLEM, Finding, Refused
from wsol_pipeline.data.importers import Source
from wsol_pipeline.data.ingest import ShardReport
from wsol_pipeline.data.shards import Manifest
from wsol_pipeline.data.survey import Tally, holds
from wsol_pipeline.errors import DataError
from wsol_pipeline.protocol import Role
from wsol_pipeline.storage import Store
from wsol_pipeline.study.lease import acquire

NO_PROBLEM = "No problem was found."


def labels_alone(manifest: Manifest) -> str:
    """What follows of a validation split without boxes."""
    test = manifest.splits[Role.TEST]
    is_measured = bool(test.boxes or test.masks)
    which, measured = ("val has", "on test alone") if is_measured else ("val and test have", "nowhere")
    return (
        f"note: {which} labels alone (--boxes {'test' if is_measured else 'none'}): models are trained and chosen on "
        "them by --select-by evidence, or better by boxes drawn on 30 to 50 images of val (wsol annotate); where they "
        f"localize is measured {measured}."
    )


@contextmanager
def alone(out: Store) -> Iterator[Callable[[], None]]:
    """Within, no other import writes to `out`; gives what raises `LeaseLostError` once another may.

    Raises `ResourceError` while one does.
    """
    place = out / "import"
    lease = acquire(place, f"importing into {out}")
    try:
        with lease:
            yield lease.confirm
    finally:
        for name in place.list():
            if not lease.lost:
                place.remove(name)
        with suppress(OSError):
            if out.is_local:
                Path(place.uri).rmdir()


def reporter() -> tuple[AbstractContextManager[Any], Callable[[ShardReport, int, int], None]]:
    """How progress is told: a bar for a person at a terminal, a line for each shard otherwise."""
    if not is_live():
        return nullcontext(), lambda report, done, total: print(describe(report, done, total), flush=True)
    bar = Progress(*Progress.get_default_columns(), MofNCompleteColumn())
    task = bar.add_task("shards")
    return bar, lambda report, done, total: bar.update(task, completed=done, total=total)


def describe(report: ShardReport, done: int, total: int) -> str:
    """One line on one shard."""
    stored = f"{report.shard['name']} {report.shard['rows']} rows" if report.shard else "no row fit to be stored"
    verb = " (kept from an earlier run)" if report.kept else ""
    return f"shard {done}/{total}: {stored}{verb}" + (f", {len(report.bad)} bad rows" if report.bad else "")


def check(source: Source, threads: int, max_bad: float | None, at_most: int) -> int:
    """Print what is wrong with a source, `at_most` of a kind by name; the exit code is that of an import."""
    with Progress(disable=not is_live()) as bar:
        task = bar.add_task("images")
        findings, tally = examine(
            source, threads, lambda done, total: bar.update(task, completed=done, total=total), max_bad
        )
    tell(findings, at_most)
    print("\n".join(tally.lines()))
    problems, left_out = (sum(len(one.items) for one in findings if one.weight == by) for by in (PROBLEM, LEFT_OUT))
    print(verdict(problems, left_out, tally.vanished))
    return DataError.exit_code if problems else 0


def verdict(problems: int, left_out: int, vanished: int) -> str:
    """The last line of --check: nothing that is not taken goes without a word."""
    if problems:
        return f"{problems} problems"
    few = [f"An import would leave out {left_out} images, as --max-bad allows."] if left_out else []
    lost = [f"What was taken is sound; {vanished} files or images were not, or not whole (see above)."]
    return " ".join(few + (lost if vanished else [])) or NO_PROBLEM


def tell(findings: Iterable[Finding], at_most: int) -> None:
    for finding in findings:
        print("\n".join(finding.lines(at_most)))


def tell_refusal(error: Refused, at_most: int) -> None:
    """What is wrong, and what is sound of the source."""
    tell(error.findings, at_most)
    print("\n".join(error.tally.lines("nothing was taken; no fault was found in")))


@contextmanager
def counted(place: Path) -> Iterator[None]:
    """Within, a source of which nothing can be read is told with what there is in its place."""
    try:
        yield
    except DataError:
        print(holds(place))
        raise


def summary(manifest: Manifest, out: Store) -> str:
    """What came of an import."""
    splits, bad = manifest.splits, sum(manifest.quarantine.values())
    rows = ", ".join(f"{role.value} {info.rows}" for role, info in splits.items())
    tally = Tally(
        manifest.classes,
        {role: info.rows for role, info in splits.items()},
        {role: info.per_class for role, info in splits.items()},
        manifest.passed_over,
        manifest.left_out,
        manifest.notes,
    )
    alone = [] if manifest.located else [labels_alone(manifest)]
    head = f"{manifest.name}: {len(manifest.classes)} classes, {rows}; {bad} rows left out"
    return "\n".join([head, *tally.lines(), *alone, f"fingerprint {Dataset(out.uri, manifest).fingerprint}"])
